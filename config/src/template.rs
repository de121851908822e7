//! Path templates: `/users/{id}/files/{*path}`.

use std::str::FromStr;

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Template {
    /// The text as people wrote it.
    text: Box<str>,
    /// The pattern of each segment, in order.
    segments: Box<[Segment]>,
}

/// The pattern of one segment of a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Segment {
    /// This text.
    Literal(Box<str>),
    /// Any one segment that is not empty.
    Any,
    /// All that is left, one segment or more; only the last.
    Rest,
}

impl Template {
    /// The text as people wrote it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The pattern of each segment, in order; an empty last literal is a slash at the end.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix('/').ok_or_else(|| format!("{text:?} must start with '/'"))?;
        let parts: Vec<&str> = path.split('/').collect();
        let mut segments = Vec::with_capacity(parts.len());
        let mut names: Vec<&str> = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let Some(inner) = part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) else {
                if part.contains(['{', '}']) {
                    return Err(format!("{part:?}: a variable must be a whole segment, like {{id}}"));
                }
                segments.push(Segment::Literal((*part).into()));
                continue;
            };
            let (segment, name) = match inner.strip_prefix('*') {
                Some(name) => (Segment::Rest, name),
                None => (Segment::Any, inner),
            };
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(format!("{part:?}: a variable's name has letters, digits and '_'"));
            }
            if names.contains(&name) {
                return Err(format!("the variable {name:?} is there twice"));
            }
            if segment == Segment::Rest && index + 1 != parts.len() {
                return Err(format!("{part:?} takes all that is left, so it must be the last segment"));
            }
            names.push(name);
            segments.push(segment);
        }
        Ok(Self { text: text.into(), segments: segments.into() })
    }
}
