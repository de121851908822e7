//! Errors as clients see them: `application/problem+json` (RFC 9457).

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use signalbox_config::{Errors, FieldError};

use signalbox_process::ErrorChain;

use crate::store::StoreError;
use crate::writer::{Deletions, WriteError};

/// Why a request was not done. Boxed, for it stands in every result.
#[derive(Debug)]
pub(super) struct Problem(Box<Parts>);

#[derive(Debug)]
struct Parts {
    status: StatusCode,
    detail: String,
    errors: Vec<FieldError>,
    errors_omitted: usize,
    deletions: Option<Deletions>,
    /// Further members.
    members: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// For the log only.
    cause: Option<String>,
}

/// A problem with a request (RFC 9457).
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(super) struct ProblemBody {
    /// Always `about:blank`: the status says what kind of problem it is.
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    /// The status in words.
    pub(super) title: String,
    /// The HTTP status.
    pub(super) status: u16,
    /// A description of the problem for people.
    pub(super) detail: String,
    /// The same by field, where it concerns fields: all that is wrong at once, up to 100.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    pub(super) errors: Vec<FieldError>,
    /// How many more errors there are than are listed, at least: of resources that come behind those with the listed
    /// errors, each that is wrong may be counted once. Absent: none.
    #[serde(skip_serializing_if = "is_zero")]
    #[schemars(default)]
    pub(super) errors_omitted: usize,
    /// The resources that an `apply` with `prune` would delete, where it would delete too much.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) deletions: Option<Deletions>,
    #[serde(flatten)]
    #[schemars(skip)]
    pub(super) members: Map<String, Value>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            status,
            detail: detail.into(),
            errors: Vec::new(),
            errors_omitted: 0,
            deletions: None,
            members: Map::new(),
            headers: Vec::new(),
            cause: None,
        }))
    }

    /// 400
    pub(super) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 404
    pub(super) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// 422
    pub(super) fn invalid(errors: Vec<FieldError>) -> Self {
        let mut problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "").errors(errors);
        let Parts { detail, errors, errors_omitted, .. } = &mut *problem.0;
        *detail = match (errors.as_slice(), *errors_omitted) {
            ([only], 0) => only.to_string(),
            (several, 0) => format!("{} errors", several.len()),
            (listed, more) => format!("{} errors, of which {} are listed", listed.len() + more, listed.len()),
        };
        problem
    }

    /// 503, to be tried again.
    pub(super) fn unavailable(detail: impl Into<String>, retry_after_s: u32) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).header(header::RETRY_AFTER, retry_after_s.into())
    }

    /// A parameter that cannot be read: 400.
    pub(super) fn parameter(name: &str, message: impl Into<String>) -> Self {
        let error = FieldError::new(name, message);
        Self::malformed(format!("the parameter {error}")).errors(vec![error])
    }

    /// Lists errors, up to [`Errors::MAX`]; of the rest their number is told.
    pub(super) fn errors(mut self, errors: Vec<FieldError>) -> Self {
        let mut collected = Errors::default();
        collected.extend_below("", errors);
        if collected.is_empty() {
            return self;
        }
        let mut listed = collected.finish(None::<()>).err().unwrap_or_default();
        if let Some(more) = listed.pop_if(|last| last.omitted > 0) {
            self.0.errors_omitted = more.omitted;
        }
        self.0.errors = listed;
        self
    }

    fn deletions(mut self, deletions: Deletions) -> Self {
        self.0.deletions = Some(deletions);
        self
    }

    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    pub(super) fn member(mut self, name: &str, value: impl Serialize) -> Self {
        self.0.members.insert(name.to_owned(), serde_json::to_value(value).unwrap_or_default());
        self
    }

    /// The cause, which the log tells and the client is not told.
    pub(super) fn cause(&self) -> Option<&str> {
        self.0.cause.as_deref()
    }

    /// Notes what the log should say.
    pub(super) fn because(mut self, cause: String) -> Self {
        self.0.cause = Some(cause);
        self
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let cause = ErrorChain(&error).to_string();
        match error {
            StoreError::Stale => Self::unavailable("another write came first; try again", 1),
            error @ StoreError::ReadOnly => Self::unavailable(error.to_string(), 5),
            StoreError::Unavailable(_) => Self::unavailable("the database is not available", 5),
            error @ StoreError::NoSecretsKey => Self::invalid(vec![FieldError::new("", error.to_string())]),
            StoreError::Broken(_) | StoreError::Url(_) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the database cannot be used; the control plane's log says more",
            ),
        }
        .because(cause)
    }
}

impl From<WriteError> for Problem {
    fn from(refused: WriteError) -> Self {
        let detail = refused.to_string();
        match refused {
            WriteError::NotFound(_) => Self::not_found(detail),
            WriteError::Exists(_) => {
                Self::new(StatusCode::CONFLICT, &*detail).errors(vec![FieldError::new("name", detail)])
            }
            WriteError::Precondition { current, .. } => {
                let problem = Self::new(StatusCode::PRECONDITION_FAILED, detail);
                match current.and_then(|version| HeaderValue::from_str(&format!("\"{version}\"")).ok()) {
                    Some(etag) => problem.header(header::ETAG, etag),
                    None => problem,
                }
            }
            WriteError::NotPermitted { .. } => Self::new(StatusCode::FORBIDDEN, detail),
            WriteError::Unreadable(_) => Self::new(StatusCode::CONFLICT, detail),
            WriteError::Invalid(errors) => Self::invalid(errors),
            WriteError::Conflict { errors, .. } => Self::new(StatusCode::CONFLICT, detail).errors(errors),
            WriteError::MassDelete(deletions) => Self::new(StatusCode::CONFLICT, detail).deletions(deletions),
            WriteError::Busy => Self::unavailable(detail, 1),
            WriteError::Store(error) => error.into(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Parts { status, detail, errors, errors_omitted, deletions, members, headers: further, cause: _ } =
            *self.0;
        let body = ProblemBody {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail,
            errors,
            errors_omitted,
            deletions,
            members,
        };
        let mut response = Response::new(serde_json::to_vec(&body).unwrap_or_default().into());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        for (name, value) in further {
            headers.append(name, value);
        }
        response
    }
}

/// 401
pub(super) fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, detail)
        .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"signalbox\""))
}
