//! The identity of a proxy, as it states it to a control plane: both planes hold it to the same rules.

use std::fmt;
use std::str::FromStr;

/// A proxy's id, unique among all proxies. It stands in paths and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeId(Box<str>);

/// The most bytes of an id.
const MAX_ID: usize = 128;

/// The most labels of a proxy.
pub const MAX_LABELS: usize = 64;
const MAX_LABEL_KEY: usize = 128;
const MAX_LABEL_VALUE: usize = 256;

impl NodeId {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:@-".contains(&byte);
        if (1..=MAX_ID).contains(&text.len()) && text.bytes().all(is_allowed) {
            return Ok(Self(text.into()));
        }
        let shown: String = text.chars().take(MAX_ID).collect();
        Err(format!("must have 1 to {MAX_ID} letters, digits, '.', '_', ':', '@' and '-'; it is {shown:?}"))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why `key` and `value` cannot be a label of a proxy.
pub fn check_label(key: &str, value: &str) -> Result<(), String> {
    if key.is_empty() || key.len() > MAX_LABEL_KEY || value.len() > MAX_LABEL_VALUE {
        return Err(format!(
            "a label has a key of 1 to {MAX_LABEL_KEY} bytes and a value of at most {MAX_LABEL_VALUE}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_can_stand_in_a_path() {
        for id in ["0198-a.b:c@d_e", &"x".repeat(MAX_ID)] {
            assert_eq!(id.parse::<NodeId>().unwrap().as_str(), id);
        }
        for id in ["", "a/b", "a b", "ä", "a\n", &"x".repeat(MAX_ID + 1)] {
            assert!(id.parse::<NodeId>().unwrap_err().starts_with("must have 1 to 128 letters"), "{id}");
        }
    }

    #[test]
    fn labels_are_bounded() {
        assert!(check_label("zone", "").is_ok());
        assert!(check_label(&"x".repeat(128), &"x".repeat(256)).is_ok());
        for (key, value) in [("", "a"), (&*"x".repeat(129), ""), ("a", &*"x".repeat(257))] {
            assert!(check_label(key, value).is_err(), "{key} {value}");
        }
    }
}
