use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::secret::{hex, sha256, unhex};

/// The name of an uploaded file (a module, a descriptor set): the SHA-256 of its bytes. The text is 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId([u8; 32]);

impl BlobId {
    /// The greatest size of a file, in bytes.
    pub const MAX_SIZE: usize = 32 << 20;

    /// The name of the file that has these bytes.
    pub fn of(content: &[u8]) -> Self {
        Self(sha256(content))
    }
}

/// The text is not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotABlobId;

impl fmt::Display for NotABlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be the SHA-256 of an uploaded file, 64 hexadecimal digits")
    }
}

impl std::error::Error for NotABlobId {}

impl FromStr for BlobId {
    type Err = NotABlobId;

    fn from_str(text: &str) -> Result<Self, NotABlobId> {
        unhex(text).map(Self).ok_or(NotABlobId)
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for BlobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for BlobId {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "BlobId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "blob",
            "pattern": "^[0-9a-fA-F]{64}$",
            "description": "The SHA-256 of an uploaded file: 64 hexadecimal digits.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_named_by_its_sha256() {
        let id = BlobId::of(b"abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(id.to_string(), text);
        assert_eq!(text.to_uppercase().parse(), Ok(id));
        for wrong in ["", "ba", &text[1..], &text.replace('b', "g")] {
            assert_eq!(wrong.parse::<BlobId>(), Err(NotABlobId), "{wrong}");
        }
        assert_eq!(serde_json::to_value(id).unwrap(), text);
        assert!(
            serde_json::from_str::<BlobId>("\"x\"")
                .unwrap_err()
                .to_string()
                .contains("64 hexadecimal digits")
        );
    }
}
