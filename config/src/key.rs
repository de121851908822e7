use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::Serialize;

use crate::kind::Kind;

/// A resource's name: `[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Name(Arc<str>);

impl Name {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 128;

    /// The name that sorts before all others.
    pub(crate) fn lowest() -> Self {
        Self("0".into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Name> for Arc<str> {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = s.as_bytes();
        let valid = matches!(bytes, [first, .., last] if alnum(*first) && alnum(*last))
            || matches!(bytes, [only] if alnum(*only));
        let inner = bytes.iter().all(|&b| alnum(b) || matches!(b, b'.' | b'_' | b'-'));
        if valid && inner && s.len() <= Self::MAX_LEN {
            Ok(Self(s.into()))
        } else {
            Err(format!(
                "{s:?} is not a name: lower-case letters, digits, '.', '_' and '-', a letter or digit first and last, at most {} bytes",
                Self::MAX_LEN
            ))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A resource's identity: `route/users`, which is also its name in xDS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    /// The kind.
    pub kind: Kind,
    /// Unique within its kind.
    pub name: Name,
}

impl ResourceKey {
    /// A key of a name that was parsed already.
    pub fn new(kind: Kind, name: Name) -> Self {
        Self { kind, name }
    }

    /// The key that sorts before all others.
    pub(crate) fn lowest() -> Self {
        Self { kind: Kind::ALL[0], name: Name::lowest() }
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

impl FromStr for ResourceKey {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (kind, name) = s.split_once('/').ok_or_else(|| format!("{s:?} is not KIND/NAME"))?;
        Ok(Self { kind: kind.parse()?, name: name.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "0", "a-b", "a.b_c-9", &"x".repeat(128)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-", "a-", ".a", "A", "a b", "ä", "a/b", &"x".repeat(129)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_round_trip() {
        let key: ResourceKey = "route/users.v1".parse().unwrap();
        assert_eq!(key.kind, Kind::Route);
        assert_eq!(key.to_string(), "route/users.v1");
        assert!("router/x".parse::<ResourceKey>().unwrap_err().contains("unknown kind"));
    }
}
