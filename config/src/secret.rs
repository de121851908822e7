use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The text that the API returns in the place of a secret. A client that writes it back keeps the stored secret.
pub const REDACTED: &str = "<redacted>";

/// The names that the types of secrets have in schemas.
pub(crate) const SECRET_TYPES: [&str; 3] = ["Secret", "Password", "SharedSecret"];

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

/// The place where a proxy finds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum ReferenceSpec {
    /// An environment variable of the proxy; a line break at its end is not part of the secret.
    Env(String),
    /// A file on the proxy's host; likewise.
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
            Self::Literal(text) => {
                check_key(text.as_bytes())?;
                Ok(Secret::Hash(sha256(text.as_bytes())))
            }
            Self::Reference(ReferenceSpec::Env(name)) if name.is_empty() => {
                Err("env must not be empty".to_owned())
            }
            Self::Reference(ReferenceSpec::Env(name)) => Ok(Secret::Env(name.clone())),
            Self::Reference(ReferenceSpec::File(path)) if path.is_empty() => {
                Err("file must not be empty".to_owned())
            }
            Self::Reference(ReferenceSpec::File(path)) => Ok(Secret::File(path.clone())),
            Self::Reference(ReferenceSpec::Sha256(digits)) => match unhex(digits) {
                Some(hash) if hash == sha256(b"") => {
                    Err("sha256 must not be that of an empty key".to_owned())
                }
                Some(hash) => Ok(Secret::Hash(hash)),
                None => Err("sha256 must be 64 hexadecimal digits".to_owned()),
            },
        }
    }
}

/// The longest API key, bytes.
const MAX_KEY: usize = 4096;

/// Says why no client could present `key` as an API key. Clients send keys in headers, whose values lose the white space at
/// their ends on the way, and cannot have control characters; what becomes of characters beyond ASCII differs from client to
/// client.
pub fn check_key(key: &[u8]) -> Result<(), String> {
    if key.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if key.len() > MAX_KEY {
        return Err(format!("has {} bytes; at most {MAX_KEY}", key.len()));
    }
    let end = |what, byte: Option<&u8>| match byte {
        Some(b'\n' | b'\r') => {
            Some(format!("{what} with a line break, which is no part of what clients send; leave it out"))
        }
        Some(b' ' | b'\t') => {
            Some(format!("{what} with white space, which is no part of what clients send; leave it out"))
        }
        _ => None,
    };
    if let Some(error) = end("begins", key.first()).or_else(|| end("ends", key.last())) {
        return Err(error);
    }
    match key.iter().find(|byte| !(0x20..0x7f).contains(*byte)) {
        Some(byte) if *byte < 0x80 => {
            Err(format!("has the control character U+{byte:04X}, which no header can carry"))
        }
        Some(_) => {
            Err("has a character that is not ASCII, which not every client can send in a header".to_owned())
        }
        None => Ok(()),
    }
}

/// An API key that was read on a proxy's host, from a file or the environment, without the line break that ends it.
pub fn without_line_break(read: &[u8]) -> &[u8] {
    let key = read.strip_suffix(b"\n").unwrap_or(read);
    key.strip_suffix(b"\r").unwrap_or(key)
}

/// The SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(digits: &str) -> Option<[u8; 32]> {
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

/// The schema of a reference: an object with one field.
pub(crate) fn reference_schema(name: &str, title: &str, description: &str, mut schema: Schema) -> Schema {
    schema.insert("title".to_owned(), title.into());
    schema.insert("description".to_owned(), description.into());
    json_schema!({
        "type": "object",
        "properties": {name: schema},
        "required": [name],
        "additionalProperties": false,
    })
}

/// The same with a text, of which there is an example.
pub(crate) fn text_reference_schema(name: &str, title: &str, description: &str, example: &str) -> Schema {
    reference_schema(name, title, description, json_schema!({"type": "string", "examples": [example]}))
}

impl JsonSchema for SecretSpec {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The secret, or a reference: {env: NAME} or {file: PATH} on the proxy's host. The API returns \"<redacted>\" in its place",
            "anyOf": [
                {"type": "string", "format": "password"},
                text_reference_schema("env", "Environment variable", "The name of an environment variable of the proxy.", "NAME"),
                text_reference_schema("file", "File", "The path of a file on the proxy's host.", "/run/secrets/name"),
                reference_schema("sha256", "SHA-256", "The hash of a secret that is only compared.", json_schema!({"type": "string", "pattern": "^[0-9a-fA-F]{64}$", "examples": ["0".repeat(64)]})),
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_no_client_could_send_is_refused() {
        for (key, reason) in [
            ("", "must not be empty"),
            (" key", "begins with white space"),
            ("key ", "ends with white space"),
            ("key\t", "ends with white space"),
            ("key\n", "ends with a line break"),
            ("key\r\n", "ends with a line break"),
            ("\nkey", "begins with a line break"),
            ("k\ney", "has the control character U+000A"),
            ("k\0ey", "has the control character U+0000"),
            ("k\u{7f}ey", "has the control character U+007F"),
            ("k\u{e9}y", "has a character that is not ASCII"),
            ("\u{feff}key", "has a character that is not ASCII"),
            ("key\u{a0}", "has a character that is not ASCII"),
            (&"x".repeat(4097), "has 4097 bytes"),
        ] {
            let error = SecretSpec::Literal(key.to_owned()).parse().expect_err(key);
            assert!(error.starts_with(reason), "{key:?}: {error}");
        }
        for key in ["k", "two words", "a:b;c,d=\"e\"", &"x".repeat(4096)] {
            assert_eq!(
                SecretSpec::Literal(key.to_owned()).parse(),
                Ok(Secret::Hash(sha256(key.as_bytes()))),
                "{key}"
            );
        }
        let empty = SecretSpec::Reference(ReferenceSpec::Sha256(hex(&sha256(b""))));
        assert_eq!(empty.parse().unwrap_err(), "sha256 must not be that of an empty key");
    }

    #[test]
    fn one_line_break_at_the_end_is_no_part_of_a_key_that_is_read() {
        for (read, key) in
            [("k", "k"), ("k\n", "k"), ("k\r\n", "k"), ("k\n\n", "k\n"), ("k \n", "k "), ("\n", ""), ("", "")]
        {
            assert_eq!(without_line_break(read.as_bytes()), key.as_bytes(), "{read:?}");
        }
    }
}
