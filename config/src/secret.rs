use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What is read back in the place of a secret; written, it keeps what is stored.
pub const REDACTED: &str = "<redacted>";

/// A secret as people write it.
///
/// A literal that is only ever compared (an API key) is replaced by its SHA-256 when it is parsed, so that the
/// literal is neither stored nor sent.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SecretSpec {
    /// The secret itself, or [`REDACTED`].
    Literal(String),
    /// A reference, or the hash of a literal.
    Reference(ReferenceSpec),
}

/// Where a proxy finds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum ReferenceSpec {
    /// An environment variable of the proxy.
    Env(String),
    /// A file on the proxy's host; a trailing newline is not part of the secret.
    File(String),
    /// 64 hexadecimal digits.
    Sha256(String),
}

/// A secret that is only compared, parsed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Secret {
    /// Its SHA-256.
    Hash([u8; 32]),
    /// An environment variable of the proxy.
    Env(String),
    /// A file on the proxy's host.
    File(String),
}

impl SecretSpec {
    /// The same secret with a literal replaced by its hash.
    pub(crate) fn hashed(&self) -> Self {
        match self {
            Self::Literal(text) => Self::Reference(ReferenceSpec::Sha256(hex(&sha256(text.as_bytes())))),
            // One hash, one spelling.
            Self::Reference(ReferenceSpec::Sha256(digits)) => {
                Self::Reference(ReferenceSpec::Sha256(digits.to_ascii_lowercase()))
            }
            Self::Reference(_) => self.clone(),
        }
    }

    /// The parsed secret, or why it is none.
    pub(crate) fn parse(&self) -> Result<Secret, String> {
        match self {
            Self::Literal(text) if text == REDACTED => {
                Err("is \"<redacted>\", but nothing is stored that could be kept".to_owned())
            }
            Self::Literal(text) if text.is_empty() => Err("must not be empty".to_owned()),
            Self::Literal(text) => Ok(Secret::Hash(sha256(text.as_bytes()))),
            Self::Reference(ReferenceSpec::Env(name)) if name.is_empty() => {
                Err("env must not be empty".to_owned())
            }
            Self::Reference(ReferenceSpec::Env(name)) => Ok(Secret::Env(name.clone())),
            Self::Reference(ReferenceSpec::File(path)) if path.is_empty() => {
                Err("file must not be empty".to_owned())
            }
            Self::Reference(ReferenceSpec::File(path)) => Ok(Secret::File(path.clone())),
            Self::Reference(ReferenceSpec::Sha256(digits)) => unhex(digits)
                .map(Secret::Hash)
                .ok_or_else(|| "sha256 must be 64 hexadecimal digits".to_owned()),
        }
    }
}

/// The SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

impl fmt::Debug for SecretSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(_) => f.write_str(REDACTED),
            Self::Reference(reference) => reference.fmt(f),
        }
    }
}

impl JsonSchema for SecretSpec {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let reference = |name: &str, schema: Schema| {
            json_schema!({
                "type": "object",
                "properties": {name: schema},
                "required": [name],
                "additionalProperties": false,
            })
        };
        json_schema!({
            "description": "The secret, or {env: NAME} or {file: PATH} on the proxy's host; reads back as \"<redacted>\"",
            "anyOf": [
                {"type": "string", "format": "password"},
                reference("env", json_schema!({"type": "string", "examples": ["NAME"]})),
                reference("file", json_schema!({"type": "string", "examples": ["/run/secrets/name"]})),
                reference("sha256", json_schema!({"type": "string", "pattern": "^[0-9a-fA-F]{64}$", "examples": ["0".repeat(64)]})),
            ],
        })
    }
}
