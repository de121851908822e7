//! Short texts without an allocation of their own.

/// An immutable text; up to 22 bytes lie in place, which the segments of most paths fit in.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Text {
    Short { len: u8, bytes: [u8; 22] },
    Long(Box<str>),
}

impl Text {
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Self::Long(text) => text.as_bytes(),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Short { .. } => std::str::from_utf8(self.as_bytes()).unwrap_or_default(),
            Self::Long(text) => text,
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        let mut bytes = [0; 22];
        match bytes.get_mut(..text.len()) {
            Some(place) => {
                place.copy_from_slice(text.as_bytes());
                Self::Short { len: text.len() as u8, bytes }
            }
            None => Self::Long(text.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_comes_back() {
        for len in [0, 1, 21, 22, 23, 100] {
            let text = "ä".repeat(len / 2) + &"x".repeat(len % 2);
            assert_eq!(Text::from(text.as_str()).as_str(), text);
        }
        assert_eq!(size_of::<Text>(), 24);
    }
}
