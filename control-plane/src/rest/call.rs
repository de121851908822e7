//! One request to an endpoint: who calls, with what; and the means to answer.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use signalbox_config::document::parse_json;
use signalbox_config::{FieldError, HumanDuration, Kind, Name, ResourceKey, check_structure};
use signalbox_process::ErrorChain;

use super::app::App;
use super::problem::Problem;
use super::roles::suffices;
use crate::auth::{Principal, Session};
use crate::store::{Role, Urgent, UrgentMode};
use crate::writer::{Author, Mode, Precondition, Rights};

/// One request, after its caller and its parameters were checked.
pub(super) struct Call {
    pub(super) app: Arc<App>,
    /// The endpoint's.
    pub(super) kind: Option<Kind>,
    /// `None`: the endpoint is for everybody, and nobody is known to call.
    pub(super) caller: Option<Caller>,
    pub(super) method: Method,
    /// Without the query.
    pub(super) uri_path: String,
    pub(super) path: Vec<(String, String)>,
    /// Only parameters that the endpoint has.
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
    /// Empty when the endpoint takes none.
    pub(super) body: Bytes,
    /// Where the client is, as far as the connection says.
    pub(super) peer: IpAddr,
}

/// The principal that calls, and its session.
pub(super) struct Caller {
    pub(super) principal: Principal,
    /// `None`: a token was presented.
    pub(super) session: Option<Arc<Session>>,
}

/// The longest that anything is waited for.
const MAX_WAIT: Duration = Duration::from_secs(300);

const MAX_MESSAGE: usize = 1024;

/// The header with the reason of a write that leaves out the steps of rollouts.
pub(super) const REASON: &str = "X-Signalbox-Reason";

/// The header with the passphrase of a document's secrets.
pub(super) const PASSPHRASE: &str = "X-Signalbox-Passphrase";

/// The shortest passphrase: whoever has the document may try passphrases for as long as they like.
const MIN_PASSPHRASE: usize = 12;
const MAX_PASSPHRASE: usize = 1024;

/// A boolean parameter. Nothing else is taken for one: `prune=` must not be `prune=true`.
pub(super) fn parse_flag(name: &str, text: &str) -> Result<bool, Problem> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(Problem::parameter(name, format!("must be true or false, is {other:?}"))),
    }
}

impl Call {
    /// A parameter of the path.
    pub(super) fn path(&self, name: &str) -> &str {
        self.path.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    /// A number of the path; what is none is not found.
    pub(super) fn number(&self, name: &str) -> Result<u64, Problem> {
        let text = self.path(name);
        text.parse().map_err(|_| Problem::not_found(format!("{text:?} is not a number")))
    }

    /// The resource that the path names. What is no name cannot be found.
    pub(super) fn key(&self) -> Result<ResourceKey, Problem> {
        let kind = self.kind.ok_or_else(|| Problem::not_found("no such kind"))?;
        let name: Name = self.path("name").parse().map_err(|message: String| {
            match self.method {
                // To be written, it would have to be one.
                Method::PUT => Problem::invalid(vec![FieldError::new("name", message)]),
                _ => Problem::not_found(message),
            }
        })?;
        Ok(ResourceKey::new(kind, name))
    }

    /// A parameter of the query, once at most.
    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, Problem> {
        let mut values = self.query.iter().filter(|(known, _)| known == name);
        let value = values.next().map(|(_, value)| value.as_str());
        if values.next().is_some() {
            return Err(Problem::parameter(name, "is there twice"));
        }
        Ok(value)
    }

    /// A parameter of the query, parsed.
    pub(super) fn parsed<T: FromStr<Err: ToString>>(&self, name: &str) -> Result<Option<T>, Problem> {
        let parse =
            |text: &str| text.parse().map_err(|error: T::Err| Problem::parameter(name, error.to_string()));
        self.text(name)?.map(parse).transpose()
    }

    /// True if a parameter of the query is `true`; an absent one is not.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Problem> {
        Ok(self.text(name)?.map(|text| parse_flag(name, text)).transpose()?.unwrap_or(false))
    }

    /// The passphrase that secrets of a document are encrypted with, if the request has one.
    pub(super) fn passphrase(&self) -> Result<Option<&str>, Problem> {
        let Some(value) = self.headers.get(PASSPHRASE) else { return Ok(None) };
        let text = std::str::from_utf8(value.as_bytes());
        let text = text.map_err(|_| Problem::parameter(PASSPHRASE, "is not UTF-8"))?;
        if !(MIN_PASSPHRASE..=MAX_PASSPHRASE).contains(&text.chars().count()) {
            let message = format!("must have from {MIN_PASSPHRASE} to {MAX_PASSPHRASE} characters");
            return Err(Problem::parameter(PASSPHRASE, message));
        }
        Ok(Some(text))
    }

    /// How many entries of a list are wanted.
    pub(super) fn limit(&self) -> Result<usize, Problem> {
        match self.parsed::<usize>("limit")? {
            None => Ok(100),
            Some(limit @ 1..=1000) => Ok(limit),
            Some(_) => Err(Problem::parameter("limit", "must be from 1 to 1000")),
        }
    }

    /// When a wait of the length in parameter `name` ends.
    pub(super) fn deadline(&self, name: &str) -> Result<Option<Instant>, Problem> {
        match self.parsed::<HumanDuration>(name)? {
            Some(HumanDuration(wait)) if wait > MAX_WAIT => Err(Problem::parameter(name, "at most 5m")),
            wait => Ok(wait.map(|wait| Instant::now() + wait.0)),
        }
    }

    /// Says if the write is to be stored.
    pub(super) fn mode(&self) -> Result<Mode, Problem> {
        Ok(if self.flag("dry_run")? { Mode::DryRun } else { Mode::Store })
    }

    /// The author of a write, and the reason.
    pub(super) fn author(&self) -> Result<Author, Problem> {
        let name = self.caller.as_ref().map_or("unknown".into(), |caller| caller.principal.name.clone());
        let urgent = self.urgent()?;
        let mut action = format!("{} {}", self.method, self.uri_path);
        if let Some(urgent) = &urgent {
            let mode = match urgent.mode {
                UrgentMode::Emergency => "emergency",
                UrgentMode::BreakGlass => "break-glass",
            };
            action.push_str(&format!(" ({mode}: {})", urgent.reason));
        }
        let rights = if self.is_administrator() { Rights::Administrator } else { Rights::Editor };
        Ok(Author { name, message: self.message()?, action, urgent, rights })
    }

    fn is_administrator(&self) -> bool {
        self.caller.as_ref().is_some_and(|caller| suffices(&caller.principal.role, Role::Admin))
    }

    /// The way around the steps of progressive fleets, with its reason, if the write asks for one.
    fn urgent(&self) -> Result<Option<Urgent>, Problem> {
        let reason = self.header_text(REASON)?;
        let mode = match self.text("rollout")? {
            None | Some("normal") => return Ok(None),
            Some("emergency") => UrgentMode::Emergency,
            Some("break-glass") => UrgentMode::BreakGlass,
            Some(other) => {
                let message = format!("must be normal, emergency or break-glass, is {other:?}");
                return Err(Problem::parameter("rollout", message));
            }
        };
        if !self.is_administrator() {
            let detail = "only administrators may leave out the steps of a rollout";
            return Err(Problem::new(StatusCode::FORBIDDEN, detail));
        }
        if reason.is_empty() {
            return Err(Problem::parameter(REASON, "must say why the steps of the rollout are left out"));
        }
        Ok(Some(Urgent { mode, reason }))
    }

    fn message(&self) -> Result<String, Problem> {
        self.header_text("X-Signalbox-Message")
    }

    /// The text of a header for people; empty if it is absent.
    fn header_text(&self, name: &'static str) -> Result<String, Problem> {
        let Some(value) = self.headers.get(name) else { return Ok(String::new()) };
        // Browsers cannot send other than Latin-1 in a header, so what is encoded is decoded; a lone % stays.
        let bytes: Vec<u8> = percent_encoding::percent_decode(value.as_bytes()).collect();
        let text = String::from_utf8(bytes).map_err(|_| Problem::parameter(name, "is not UTF-8"))?;
        if text.len() > MAX_MESSAGE {
            return Err(Problem::parameter(name, format!("has more than {MAX_MESSAGE} bytes")));
        }
        if text.chars().any(|c| c.is_control() && c != '\n') {
            return Err(Problem::parameter(name, "has control characters"));
        }
        Ok(text.trim().to_owned())
    }

    /// `If-Match` and `If-None-Match`, as far as a write needs them.
    pub(super) fn precondition(&self) -> Result<Precondition, Problem> {
        if let Some(value) = self.headers.get(header::IF_NONE_MATCH) {
            return match value.to_str().map(str::trim) {
                Ok("*") => Ok(Precondition::Absent),
                _ => Err(Problem::parameter("If-None-Match", "must be * on a write")),
            };
        }
        if !self.headers.contains_key(header::IF_MATCH) {
            return Ok(Precondition::None);
        }
        let tags = self.tags(&header::IF_MATCH)?;
        if tags.contains(&"*") {
            return Ok(Precondition::Present);
        }
        // A weak tag never matches here (RFC 9110, section 13.1.1).
        let strong = tags.into_iter().filter(|tag| !tag.starts_with("W/"));
        Ok(Precondition::Version(strong.map(|tag| tag.trim_matches('"').to_owned()).collect()))
    }

    /// The entity tags of a header, with their quotes.
    pub(super) fn tags(&self, name: &http::HeaderName) -> Result<Vec<&str>, Problem> {
        let mut tags = Vec::new();
        for value in self.headers.get_all(name) {
            let text = value.to_str().map_err(|_| Problem::parameter(name.as_str(), "is not ASCII"))?;
            tags.extend(text.split(',').map(str::trim).filter(|tag| !tag.is_empty()));
        }
        Ok(tags)
    }

    /// Adds to the audit trail what makes no revision. It was done already, so an error here is only logged.
    pub(super) async fn audit(&self, detail: &str) {
        let actor = self.caller.as_ref().map_or("unknown", |caller| &*caller.principal.name);
        let action = format!("{} {}", self.method, self.uri_path);
        tracing::info!(actor, action, detail, "an action was added to the audit trail");
        let store = &self.app.store;
        if let Err(error) =
            self.app.metrics.store_call("note", store.append_audit(actor, &action, detail)).await
        {
            tracing::error!(error = %ErrorChain(&error), "the audit trail lacks this action");
        }
    }

    /// The body as JSON of a shape: every field that is wrong with it comes back at once.
    pub(super) fn json_as<T: DeserializeOwned + JsonSchema>(&self) -> Result<T, Problem> {
        let mut value = self.json()?;
        let errors = check_structure(&schemars::schema_for!(T), &mut value, &[]);
        if !errors.is_empty() {
            return Err(Problem::invalid(errors));
        }
        serde_json::from_value(value)
            .map_err(|error| Problem::invalid(vec![FieldError::new("", error.to_string())]))
    }

    /// The body as JSON.
    pub(super) fn json(&self) -> Result<Value, Problem> {
        let text = self.utf8()?;
        if text.trim().is_empty() {
            return Err(Problem::malformed("the body is empty; it must be JSON"));
        }
        parse_json(text).map_err(|error| {
            Problem::malformed(format!("the body is not JSON: {error}"))
                .member("line", error.line())
                .member("column", error.column())
        })
    }

    /// The body as text.
    pub(super) fn utf8(&self) -> Result<&str, Problem> {
        std::str::from_utf8(&self.body).map_err(|error| {
            let before = self.body.get(..error.valid_up_to()).unwrap_or_default();
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
            Problem::malformed(format!("the body is not UTF-8, at line {line} column {column}"))
                .member("line", line)
                .member("column", column)
        })
    }
}

/// 200 with JSON.
pub(super) fn ok(value: &impl Serialize) -> Result<Response, Problem> {
    json_response(StatusCode::OK, value)
}

/// JSON.
pub(super) fn json_response(status: StatusCode, value: &impl Serialize) -> Result<Response, Problem> {
    let body = serde_json::to_vec(value)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// An answer without a body.
pub(super) fn no_content() -> Response {
    let mut response = Response::new(axum::body::Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}
