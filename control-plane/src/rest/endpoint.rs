//! What an endpoint is: all that the router and the OpenAPI document must know of it, in one value.

use axum::response::Response;
use futures_util::future::BoxFuture;
use http::Method;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};
use signalbox_config::Kind;

use super::call::Call;
use super::problem::{Problem, ProblemBody};
use crate::store::Role;

/// One method of one path.
pub(super) struct Endpoint {
    pub(super) method: Method,
    /// Below `/api/v1`; `{name}` is a parameter.
    pub(super) path: &'static str,
    /// The name of the operation for generated clients.
    pub(super) id: String,
    pub(super) tag: &'static str,
    pub(super) summary: String,
    pub(super) access: Access,
    /// The kind of resource it is about, where there is one endpoint for each.
    pub(super) kind: Option<Kind>,
    pub(super) parameters: Vec<Parameter>,
    pub(super) body: Option<Body>,
    pub(super) answers: Vec<Answer>,
    pub(super) run: Run,
}

/// Does it.
pub(super) type Run = fn(Call) -> BoxFuture<'static, Result<Response, Problem>>;

/// Gives the schema of a type, and notes the types it refers to.
pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody.
    Public,
    /// Who has at least this role.
    Role(Role),
}

/// A parameter of the query or a header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) place: Place,
    pub(super) schema: fn() -> Value,
    pub(super) text: &'static str,
}

/// Where a parameter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Query,
    Header,
}

/// A request's body.
pub(super) struct Body {
    pub(super) media: Media,
    pub(super) schema: SchemaOf,
    /// Bytes.
    pub(super) limit: usize,
}

/// In which format a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Media {
    Json,
    MergePatch,
    /// A declarative document.
    Document,
}

impl Media {
    /// As the OpenAPI document lists them, the usual first.
    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Json => &["application/json"],
            Self::MergePatch => &["application/merge-patch+json"],
            Self::Document => &["application/yaml", "application/json"],
        }
    }
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) text: &'static str,
    /// Media type and schema; `None`: it has no body.
    pub(super) content: Option<(&'static str, SchemaOf)>,
}

/// The largest body of a single resource, bytes.
pub(super) const RESOURCE_LIMIT: usize = 1 << 20;

/// The largest document, bytes.
pub(super) const DOCUMENT_LIMIT: usize = 32 << 20;

impl Endpoint {
    /// An endpoint without parameters that viewers may call.
    pub(super) fn new(method: Method, path: &'static str, id: impl Into<String>, run: Run) -> Self {
        Self {
            method,
            path,
            id: id.into(),
            tag: "",
            summary: String::new(),
            access: Access::Role(Role::Viewer),
            kind: None,
            parameters: Vec::new(),
            body: None,
            answers: Vec::new(),
            run,
        }
    }

    pub(super) fn text(mut self, tag: &'static str, summary: impl Into<String>) -> Self {
        self.tag = tag;
        self.summary = summary.into();
        self
    }

    pub(super) fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    pub(super) fn of_kind(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        self
    }

    pub(super) fn parameters(mut self, parameters: &[Parameter]) -> Self {
        self.parameters.extend_from_slice(parameters);
        self
    }

    pub(super) fn body(mut self, media: Media, schema: SchemaOf, limit: usize) -> Self {
        self.body = Some(Body { media, schema, limit });
        self
    }

    /// A JSON answer.
    pub(super) fn answer<T: JsonSchema>(self, status: u16, text: &'static str) -> Self {
        self.answer_as(status, text, "application/json", SchemaGenerator::subschema_for::<T>)
    }

    pub(super) fn answer_as(
        mut self,
        status: u16,
        text: &'static str,
        media: &'static str,
        schema: SchemaOf,
    ) -> Self {
        self.answers.push(Answer { status, text, content: Some((media, schema)) });
        self
    }

    /// An answer without a body.
    pub(super) fn empty(mut self, status: u16, text: &'static str) -> Self {
        self.answers.push(Answer { status, text, content: None });
        self
    }

    /// The errors it may answer with, beside those that any may.
    pub(super) fn problems(mut self, statuses: &[u16]) -> Self {
        for status in statuses {
            let text = match status {
                404 => "There is no such thing",
                409 => "It conflicts with what is there",
                412 => "If-Match or If-None-Match does not hold",
                413 => "The body is too large",
                415 => "The body is of another type",
                422 => "It is not valid: every error, by field",
                503 => "The database is away",
                504 => "It was not so in time",
                _ => "It was not done",
            };
            self.answers.push(Answer {
                status: *status,
                text,
                content: Some(("application/problem+json", SchemaGenerator::subschema_for::<ProblemBody>)),
            });
        }
        self
    }
}

/// How many entries of a list are wanted.
pub(super) const LIMIT: Parameter = Parameter {
    name: "limit",
    place: Place::Query,
    schema: || json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
    text: "How many at most",
};

/// Where a list goes on.
pub(super) const CURSOR: Parameter = Parameter {
    name: "cursor",
    place: Place::Query,
    schema: || json!({"type": "string"}),
    text: "`next_cursor` of the page before",
};

/// What every write takes.
pub(super) const WRITE: [Parameter; 3] = [
    Parameter {
        name: "dry_run",
        place: Place::Query,
        schema: || json!({"type": "boolean", "default": false}),
        text: "Check it and answer what would change; store nothing",
    },
    Parameter {
        name: "wait",
        place: Place::Query,
        schema: || json!({"type": "string", "examples": ["10s"]}),
        text: "Answer only when every connected proxy serves it: at most 5m. 409 if one rejects it, 504 if it takes longer; the revision stands in any case",
    },
    Parameter {
        name: "X-Signalbox-Message",
        place: Place::Header,
        schema: || json!({"type": "string"}),
        text: "The message of the revision: up to 1024 bytes of UTF-8, percent-encoded or not",
    },
];
