//! Tokens of the admin server.

use std::fmt;
use std::str::FromStr;

/// A token of the admin server. Only its hash is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken(blake3::Hash);

const MIN_TOKEN: usize = 16;
const MAX_TOKEN: usize = 512;

impl AdminToken {
    /// A token as a request presents it. Two are compared in constant time, for they are hashes.
    pub fn of(presented: &[u8]) -> Self {
        Self(blake3::hash(presented))
    }
}

impl FromStr for AdminToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !(MIN_TOKEN..=MAX_TOKEN).contains(&text.len()) {
            return Err(format!("a token must have {MIN_TOKEN} to {MAX_TOKEN} characters"));
        }
        let fits = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\');
        if !text.bytes().all(fits) {
            return Err("a token must have only letters, digits and ASCII punctuation except \" , ; and \\"
                .to_owned());
        }
        Ok(Self::of(text.as_bytes()))
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_tokens_are_refused_and_none_is_shown() {
        for weak in ["short", "has a blank in it!!", "has-a-quote-\"-in-it"] {
            assert!(weak.parse::<AdminToken>().is_err(), "{weak}");
        }
        let token: AdminToken = "0123456789abcdef".parse().unwrap();
        assert_eq!(format!("{token:?}"), "AdminToken");
        assert!(token == AdminToken::of(b"0123456789abcdef"));
    }
}
