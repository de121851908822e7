//! An endpoint: all that the router and the OpenAPI document must know of one, in one value.

use std::borrow::Cow;
use std::sync::Arc;

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
    pub(super) path: Cow<'static, str>,
    /// The name of the operation for generated clients.
    pub(super) id: String,
    pub(super) tag: &'static str,
    pub(super) summary: String,
    pub(super) access: Access,
    /// The kind of resource it is about, where there is one endpoint for each.
    pub(super) kind: Option<Kind>,
    pub(super) parameters: Vec<Parameter>,
    pub(super) body: Option<Body>,
    pub(super) answers: Vec<ResponseSpec>,
    pub(super) run: Run,
}

/// The function that serves a request.
pub(super) type Run = fn(Call) -> BoxFuture<'static, Result<Response, Problem>>;

/// Returns the schema of a type. The generator collects the types that it refers to.
pub(super) type SchemaOf = Arc<dyn Fn(&mut SchemaGenerator) -> Schema + Send + Sync>;

/// Permission to call an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody may call.
    Public,
    /// Callers with at least this role may call.
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

/// The place of a parameter.
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

/// The format of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Media {
    Json,
    MergePatch,
    /// A declarative document.
    Document,
    /// A file of any kind.
    Bytes,
}

impl Media {
    /// As the OpenAPI document lists them, the usual first.
    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Self::Json => &["application/json"],
            Self::MergePatch => &["application/merge-patch+json"],
            Self::Document => &["application/yaml", "application/json"],
            Self::Bytes => &["application/octet-stream"],
        }
    }
}

/// A response that an endpoint may give.
pub(super) struct ResponseSpec {
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
    pub(super) fn new(
        method: Method,
        path: impl Into<Cow<'static, str>>,
        id: impl Into<String>,
        run: Run,
    ) -> Self {
        Self {
            method,
            path: path.into(),
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

    pub(super) fn body(
        mut self,
        media: Media,
        schema: impl Fn(&mut SchemaGenerator) -> Schema + Send + Sync + 'static,
        limit: usize,
    ) -> Self {
        self.body = Some(Body { media, schema: Arc::new(schema), limit });
        self
    }

    /// Adds a JSON response.
    pub(super) fn answer<T: JsonSchema + 'static>(self, status: u16, text: &'static str) -> Self {
        self.answer_as(status, text, "application/json", SchemaGenerator::subschema_for::<T>)
    }

    pub(super) fn answer_as(
        mut self,
        status: u16,
        text: &'static str,
        media: &'static str,
        schema: impl Fn(&mut SchemaGenerator) -> Schema + Send + Sync + 'static,
    ) -> Self {
        self.answers.push(ResponseSpec { status, text, content: Some((media, Arc::new(schema))) });
        self
    }

    /// Adds a response without a body.
    pub(super) fn empty(mut self, status: u16, text: &'static str) -> Self {
        self.answers.push(ResponseSpec { status, text, content: None });
        self
    }

    /// Adds the errors that the endpoint may answer with, beside those of all endpoints.
    pub(super) fn problems(mut self, statuses: &[u16]) -> Self {
        for status in statuses {
            let text = match status {
                404 => "Not found",
                409 => "The write conflicts with the current resources",
                412 => "The condition of If-Match or If-None-Match is not met",
                413 => "The body is too large",
                415 => "The body has another media type than this operation takes",
                422 => "The body is not valid. The response lists all errors with their fields",
                503 => "The database cannot be reached",
                504 => "The wait timed out",
                _ => "The operation failed",
            };
            self.answers.push(ResponseSpec {
                status: *status,
                text,
                content: Some((
                    "application/problem+json",
                    Arc::new(SchemaGenerator::subschema_for::<ProblemBody>),
                )),
            });
        }
        self
    }
}

/// The most entries of a page.
pub(super) const LIMIT: Parameter = Parameter {
    name: "limit",
    place: Place::Query,
    schema: || json!({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
    text: "The most entries of one page",
};

/// The place where a list goes on.
pub(super) const CURSOR: Parameter = Parameter {
    name: "cursor",
    place: Place::Query,
    schema: || json!({"type": "string"}),
    text: "The `next_cursor` of the previous page",
};

/// The end of a wait.
pub(super) const TIMEOUT: Parameter = Parameter {
    name: "timeout",
    place: Place::Query,
    schema: || json!({"type": "string", "default": "10s"}),
    text: "The longest wait, at most 5m",
};

/// A fleet.
pub(super) const FLEET: Parameter = Parameter {
    name: "fleet",
    place: Place::Query,
    schema: || json!({"type": "string"}),
    text: "The fleet. Absent: all fleets",
};

/// The end of a wait for pinned fleets.
pub(super) const WAIT_FOR: Parameter = Parameter {
    name: "wait_for",
    place: Place::Query,
    schema: || json!({"type": "string", "enum": ["step", "succeeded"], "default": "step"}),
    text: "The end of the wait for progressive fleets: the first step, or the whole rollout",
};

/// The parameters of every write.
pub(super) const WRITE: [Parameter; 6] = [
    Parameter {
        name: "dry_run",
        place: Place::Query,
        schema: || json!({"type": "boolean", "default": false}),
        text: "Checks the write and returns the changes that would be made, but stores nothing",
    },
    Parameter {
        name: "wait",
        place: Place::Query,
        schema: || json!({"type": "string", "examples": ["10s"]}),
        text: "Answers only when every connected proxy serves the revision, after at most 5m; of a progressive fleet, the proxies of the first step. 409 if a proxy rejects it or the rollout does not go on, 504 if that takes longer. The revision stays in any case",
    },
    WAIT_FOR,
    Parameter {
        name: "rollout",
        place: Place::Query,
        schema: || json!({"type": "string", "enum": ["normal", "emergency", "break-glass"], "default": "normal"}),
        text: "The way to progressive fleets. `emergency`: over one proxy, for some seconds. `break-glass`: to all proxies at once. Both need X-Signalbox-Reason",
    },
    Parameter {
        name: "X-Signalbox-Reason",
        place: Place::Header,
        schema: || json!({"type": "string"}),
        text: "The reason for `rollout=emergency` and `rollout=break-glass`, for the audit trail",
    },
    Parameter {
        name: "X-Signalbox-Message",
        place: Place::Header,
        schema: || json!({"type": "string"}),
        text: "The message of the revision: up to 1024 bytes of UTF-8, percent-encoded or not",
    },
];
