use std::collections::HashSet;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One error of a specification.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct FieldError {
    /// The path within the specification, `match.paths[0].regex`; empty when it concerns the whole.
    pub field: String,
    /// The error, for a person.
    pub message: String,
    /// The number of unlisted errors that this entry stands for; 0: it is an error itself.
    #[serde(skip)]
    #[schemars(skip)]
    pub omitted: usize,
}

impl FieldError {
    /// An error at `field`. What is very long is cut short: fields and messages quote what was sent.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: shortened(field.into()), message: shortened(message.into()), omitted: 0 }
    }

    /// The entry that ends a list which leaves out `omitted` errors.
    pub(crate) fn more(omitted: usize) -> Self {
        let message = format!("there are {omitted} more errors, not listed here");
        Self { field: String::new(), message, omitted }
    }
}

/// The longest field or message, bytes.
const MAX_TEXT: usize = 1024;

fn shortened(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
    text
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}

/// Collects every error of a specification, so that all are reported at once: up to [`Errors::MAX`], for a large
/// document may have as many errors as it has lines.
#[derive(Debug, Default)]
pub struct Errors {
    found: Vec<FieldError>,
    /// The number of errors that are not listed.
    more: usize,
    /// Fields that do not have the right shape, of which nothing else need be said.
    misshapen: HashSet<String>,
}

impl Errors {
    /// The most errors that are listed.
    pub const MAX: usize = 100;

    /// Notes an error at `field`. What cannot be listed any more is only counted.
    pub fn push(&mut self, field: impl fmt::Display, message: impl fmt::Display) {
        if self.found.len() >= Self::MAX && self.misshapen.is_empty() {
            self.more += 1;
            return;
        }
        let field = field.to_string();
        if !self.is_misshapen(&field) {
            self.add(FieldError::new(field, message.to_string()));
        }
    }

    /// Adds errors found elsewhere, their fields below `prefix`.
    pub fn extend_below(&mut self, prefix: &str, errors: impl IntoIterator<Item = FieldError>) {
        for error in errors {
            if error.omitted > 0 {
                self.more += error.omitted;
                continue;
            }
            if self.found.len() >= Self::MAX && self.misshapen.is_empty() {
                self.more += 1;
                continue;
            }
            let field = join(prefix, &error.field);
            if !self.is_misshapen(&field) {
                self.add(FieldError::new(field, error.message));
            }
        }
    }

    /// Adds another collection, its fields below `prefix`.
    pub(crate) fn append_below(&mut self, prefix: &str, other: Self) {
        self.extend_below(prefix, other.found);
        self.more += other.more;
    }

    /// Adds the errors of `check_structure`. It put other values in the place of wrong ones, so later errors that concern
    /// these fields, or fields in them, are left out.
    pub fn extend_misshapen(&mut self, errors: impl IntoIterator<Item = FieldError>) {
        for error in errors {
            if error.omitted > 0 {
                self.more += error.omitted;
                continue;
            }
            self.misshapen.insert(error.field.clone());
            self.add(error);
        }
    }

    /// True if the list is full, and further errors are only counted.
    pub fn is_full(&self) -> bool {
        self.found.len() >= Self::MAX
    }

    /// True if there are no errors.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// `value` when nothing was wrong, else all the errors. `value` may only be `None` when an error was noted.
    pub fn finish<T>(mut self, value: Option<T>) -> Result<T, Vec<FieldError>> {
        match value {
            Some(value) if self.found.is_empty() => Ok(value),
            _ => {
                if self.found.is_empty() {
                    self.push("", "is invalid");
                }
                if self.more > 0 {
                    self.found.push(FieldError::more(self.more));
                }
                Err(self.found)
            }
        }
    }

    fn add(&mut self, error: FieldError) {
        if self.found.len() < Self::MAX {
            self.found.push(error);
        } else {
            self.more += 1;
        }
    }

    /// True if `field`, or something that it is in, does not have the right shape.
    fn is_misshapen(&self, field: &str) -> bool {
        if self.misshapen.is_empty() {
            return false;
        }
        if self.misshapen.contains("") {
            return true;
        }
        let ends = field.match_indices(['.', '[']).map(|(at, _)| at).chain([field.len()]);
        ends.filter_map(|end| field.get(..end)).any(|part| self.misshapen.contains(part))
    }
}

/// `field` below `prefix`: `a` + `b` is `a.b`, `a` + `[0]` is `a[0]`.
pub(crate) fn join(prefix: &str, field: &str) -> String {
    match (prefix.is_empty(), field.is_empty()) {
        (true, _) => field.to_owned(),
        (_, true) => prefix.to_owned(),
        _ if field.starts_with('[') => format!("{prefix}{field}"),
        _ => format!("{prefix}.{field}"),
    }
}
