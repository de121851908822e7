//! Secrets that a program must know in clear, for it computes with them what others compute: the keys of HMACs. The program is a proxy;
//! for the secret of a webhook, it is the control plane.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::secret::REDACTED;

/// Such a secret as people write it. One that is written as it is, is encrypted in the control plane's database.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SharedSecretSpec {
    /// The secret itself, or [`REDACTED`].
    Literal(String),
    /// A reference.
    Reference(SharedSecretReference),
}

/// The place where a program finds the secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum SharedSecretReference {
    /// An environment variable of the program; a line break at its end is not part of the secret.
    Env(String),
    /// A file on its host; likewise.
    File(String),
}

/// Such a secret, parsed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum SharedSecret {
    /// The secret.
    Text(Box<str>),
    /// An environment variable of the program that holds it.
    Env(String),
    /// A file on its host that holds it.
    File(String),
}

/// The longest secret, bytes.
const MAX_SECRET: usize = 4096;

impl SharedSecretSpec {
    /// The parsed secret of at least `min_len` bytes, or why it is none.
    pub(crate) fn parse(&self, min_len: usize) -> Result<SharedSecret, String> {
        match self {
            Self::Literal(text) if text == REDACTED => {
                Err("is \"<redacted>\", but nothing is stored that could be kept".to_owned())
            }
            Self::Literal(text) => {
                check_shared_secret(text.as_bytes(), min_len)?;
                Ok(SharedSecret::Text(text.as_str().into()))
            }
            Self::Reference(SharedSecretReference::Env(name)) if !name.is_empty() => {
                Ok(SharedSecret::Env(name.clone()))
            }
            Self::Reference(SharedSecretReference::File(path)) if !path.is_empty() => {
                Ok(SharedSecret::File(path.clone()))
            }
            Self::Reference(_) => Err("env and file must not be empty".to_owned()),
        }
    }

    pub(crate) fn redact(&mut self) {
        if let Self::Literal(_) = self {
            *self = Self::Literal(REDACTED.to_owned());
        }
    }
}

/// Says why `secret` is too short or too long. A short one can be found from one message that was signed with it.
pub fn check_shared_secret(secret: &[u8], min_len: usize) -> Result<(), String> {
    match secret.len() {
        0 => Err("must not be empty".to_owned()),
        len if len < min_len => Err(format!("has {len} bytes; at least {min_len}, or it could be guessed")),
        len if len > MAX_SECRET => Err(format!("has {len} bytes; at most {MAX_SECRET}")),
        _ => Ok(()),
    }
}

impl fmt::Debug for SharedSecretSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(_) => f.write_str(REDACTED),
            Self::Reference(reference) => reference.fmt(f),
        }
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str(REDACTED),
            Self::Env(name) => f.debug_tuple("Env").field(name).finish(),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl JsonSchema for SharedSecretSpec {
    fn schema_name() -> Cow<'static, str> {
        "SharedSecret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let reference = |name: &str, example: &str| {
            json_schema!({
                "type": "object",
                "properties": {name: {"type": "string", "examples": [example]}},
                "required": [name],
                "additionalProperties": false,
            })
        };
        json_schema!({
            "description": "The secret, or a reference: {env: NAME} or {file: PATH} on the proxy's host; for a webhook, on the control plane's host. The API returns \"<redacted>\" in its place",
            "anyOf": [
                {"type": "string", "format": "password"},
                reference("env", "NAME"),
                reference("file", "/run/secrets/name"),
            ],
        })
    }
}
