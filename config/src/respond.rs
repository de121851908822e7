//! A fixed response, which the proxy sends without a target.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Errors;

/// Answers with a fixed response.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RespondSpec {
    /// The status, from 200 to 599; default 200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The body, at most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The headers. The default of `content-type` is `text/plain; charset=utf-8`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// A fixed response.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Respond {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub body: Bytes,
    /// The headers, `content-type` among them when there is a body.
    pub headers: Box<[(HeaderName, HeaderValue)]>,
}

const MAX_BODY: usize = 64 << 10;

impl RespondSpec {
    /// Reads it. The fields of its errors are below `at`. Headers that are wrong are missing from the result.
    pub fn parse(&self, at: &str, errors: &mut Errors) -> Respond {
        let mut own = Errors::default();
        let respond = self.parse_fields(&mut own);
        errors.append_below(at, own);
        respond
    }

    fn parse_fields(&self, errors: &mut Errors) -> Respond {
        let status = self.status.unwrap_or(200);
        if !(200..600).contains(&status) {
            errors.push("status", "must be from 200 to 599");
        }
        let body = self.body.clone().unwrap_or_default();
        if body.len() > MAX_BODY {
            errors.push("body", format_args!("has {} bytes; at most {MAX_BODY}", body.len()));
        }
        if matches!(status, 204 | 205 | 304) && !body.is_empty() {
            errors.push("body", format_args!("cannot be sent with status {status}"));
        }
        let mut headers = Vec::with_capacity(self.headers.len() + 1);
        for (name, value) in &self.headers {
            let field = format!("headers.{name}");
            match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                (Ok(name), _) if is_framing(&name) => errors.push(field, "is set by the proxy"),
                (Ok(name), Ok(value)) => headers.push((name, value)),
                (Err(_), _) => errors.push(field, "is not a header name"),
                (_, Err(_)) => errors.push(field, "has a character that a header value cannot have"),
            }
        }
        if !body.is_empty() && !headers.iter().any(|(name, _)| name == http::header::CONTENT_TYPE) {
            headers.push((http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")));
        }
        Respond {
            status: StatusCode::from_u16(status).unwrap_or_default(),
            body: body.into(),
            headers: headers.into(),
        }
    }
}

/// Headers that frame a message or belong to one connection, which no configuration may set.
fn is_framing(name: &HeaderName) -> bool {
    use http::header;
    [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
    ]
    .contains(name)
}
