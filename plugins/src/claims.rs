//! Claims that the upstream learns in headers.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use serde_json::Value;
use signalbox_config::Errors;
use signalbox_config::arrival::remove_every_spelling;

/// The headers by which the upstream learns claims.
#[derive(Debug, Default)]
pub(crate) struct ClaimHeaders(Box<[(HeaderName, Box<str>)]>);

impl ClaimHeaders {
    /// Reads the field `claims_to_headers`: header to claim.
    pub(crate) fn of(config: &BTreeMap<String, String>, errors: &mut Errors) -> Self {
        let parsed = config.iter().filter_map(|(name, claim)| match name.parse::<HeaderName>() {
            Ok(header) => Some((header, claim.as_str().into())),
            Err(_) => {
                let message = format_args!("{name:?} is not the name of a header");
                errors.push(format_args!("claims_to_headers.{name}"), message);
                None
            }
        });
        Self(parsed.collect())
    }

    /// Removes the headers from what a client sends, in every spelling that a server may take for them.
    pub(crate) fn strip(&self, headers: &mut HeaderMap) {
        for (name, _) in &self.0 {
            remove_every_spelling(headers, name);
        }
    }

    /// The names of the headers.
    pub(crate) fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.0.iter().map(|(name, _)| name)
    }

    /// The names of the claims.
    pub(crate) fn claims(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(_, claim)| &**claim)
    }

    /// The headers with the values of the claims. A claim that is not there, or is null, has no header.
    pub(crate) fn values<'c>(
        &self,
        claim: impl Fn(&str) -> Option<&'c Value>,
    ) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        self.0.iter().filter_map(move |(name, wanted)| Some((name.clone(), value_of(claim(wanted)?)?)))
    }
}

/// A claim as the value of a header. `None`: it has none.
fn value_of(claim: &Value) -> Option<HeaderValue> {
    /// The bytes that stand for themselves in a value: printable ASCII, and not what the encoding begins with.
    const ENCODED: AsciiSet = CONTROLS.add(b'%');
    let text = match claim {
        Value::Null => return None,
        Value::String(text) => Cow::Borrowed(text.as_str()),
        other => Cow::Owned(other.to_string()),
    };
    HeaderValue::from_str(&Cow::from(percent_encode(text.as_bytes(), &ENCODED))).ok()
}
