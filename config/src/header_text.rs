//! Headers that Signalbox sends with requests of its own.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::header::{AUTHORIZATION, COOKIE, HOST, PROXY_AUTHORIZATION};
use http::{HeaderName, HeaderValue};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::error::Errors;
use crate::secret::text_reference_schema;

/// The value of a header: a text, or the place of a secret on the host of the program that sends it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum HeaderTextSpec {
    /// The text itself.
    Text(String),
    /// The place of a secret.
    Place(PlaceSpec),
}

/// The place of a secret on the host of a program.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum PlaceSpec {
    /// An environment variable of the program; a line break at its end is not part of the secret.
    Env(String),
    /// A file on its host; likewise.
    File(String),
}

/// The most headers of a request.
const MAX_HEADERS: usize = 32;

/// The headers in `specs`, the field `field`. `program` is the one that sends them, and sets `own` itself.
pub(crate) fn parse_headers(
    specs: &BTreeMap<String, HeaderTextSpec>,
    field: &str,
    program: &str,
    own: &[&str],
    errors: &mut Errors,
) -> Box<[(HeaderName, HeaderTextSpec)]> {
    if specs.len() > MAX_HEADERS {
        errors.push(field, format_args!("has more than {MAX_HEADERS} headers"));
    }
    let mut headers = Vec::new();
    for (text, value) in specs {
        let field = format!("{field}.{text}");
        let Ok(name) = HeaderName::try_from(text.as_str()) else {
            errors.push(field, "is not the name of a header");
            continue;
        };
        if own.contains(&name.as_str()) || name == HOST {
            errors.push(&field, "is set by Signalbox");
        }
        match value {
            HeaderTextSpec::Text(_) if [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].contains(&name) => {
                let message = format_args!(
                    "must be a reference: {{\"env\": \"NAME\"}} or {{\"file\": \"PATH\"}} of the {program}"
                );
                errors.push(&field, message);
            }
            HeaderTextSpec::Text(text) if HeaderValue::from_str(text).is_err() => {
                errors.push(&field, "cannot be the value of a header");
            }
            HeaderTextSpec::Place(PlaceSpec::Env(place) | PlaceSpec::File(place)) if place.is_empty() => {
                errors.push(&field, "must name a place");
            }
            HeaderTextSpec::Text(_) | HeaderTextSpec::Place(_) => {}
        }
        headers.push((name, value.clone()));
    }
    headers.into()
}

impl JsonSchema for HeaderTextSpec {
    fn schema_name() -> Cow<'static, str> {
        "HeaderText".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A text, or a reference to a secret: {env: NAME} or {file: PATH} on the proxy's host; for a webhook, on the control plane's host",
            "anyOf": [
                {"type": "string"},
                text_reference_schema("env", "Environment variable", "The name of an environment variable of the program that sends the header.", "NAME"),
                text_reference_schema("file", "File", "The path of a file on the host of that program.", "/run/secrets/name"),
            ],
        })
    }
}
