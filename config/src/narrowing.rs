//! Fields that narrow something down, and that a person must therefore not write empty or null.
//!
//! A specification that is stored is not checked like this: an earlier version may have accepted it, and it goes on being served.

use serde_json::Value;

use crate::error::Errors;

/// A field that narrows something down: an empty list would mean "any" or "everything".
#[derive(Debug, Clone, Copy)]
pub(crate) struct Narrowing {
    path: &'static [&'static str],
    /// The meaning of an absent field.
    absent: &'static str,
    empty: Empty,
}

/// The treatment of an empty list or object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Empty {
    /// It would mean the same as a field that is not there.
    Refused,
    /// It means none at all, or the parser refuses it.
    LeftToParser,
}

impl Narrowing {
    /// A field that may be neither null nor empty.
    pub(crate) const fn not_empty(path: &'static [&'static str], absent: &'static str) -> Self {
        Self { path, absent, empty: Empty::Refused }
    }

    /// A field that may not be null. When it is empty, the parser decides.
    pub(crate) const fn not_null(path: &'static [&'static str], absent: &'static str) -> Self {
        Self { path, absent, empty: Empty::LeftToParser }
    }
}

/// The narrowing field that all specifications have.
pub(crate) const FLEETS: Narrowing = Narrowing::not_empty(&["fleets"], "for all fleets");

/// Refuses fields that are there and say nothing. They are taken out of `spec`, so that the rest can be checked further.
pub(crate) fn check_narrowing<'a>(
    fields: impl IntoIterator<Item = &'a Narrowing>,
    spec: &mut Value,
    errors: &mut Errors,
) {
    for Narrowing { path, absent, empty } in fields {
        let Some((name, above)) = path.split_last() else { continue };
        let object = above.iter().try_fold(&mut *spec, |value, name| value.get_mut(*name));
        let Some(object) = object.and_then(Value::as_object_mut) else { continue };
        let Some(value) = object.get(*name) else { continue };
        let is_empty = match value {
            Value::Array(list) => list.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        };
        let wrong = match value {
            Value::Null => "must not be null",
            _ if is_empty && *empty == Empty::Refused => "must not be empty",
            _ => continue,
        };
        errors.push(path.join("."), format_args!("{wrong}; leave it out {absent}"));
        object.remove(*name);
    }
}
