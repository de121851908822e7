//! Lists of names and of other texts.

use std::collections::HashSet;

use crate::error::Errors;
use crate::key::Name;

/// The most names in a list.
const MAX_NAMES: usize = 1000;

pub(crate) fn parse_names(names: &[String], field: &str, errors: &mut Errors) -> Box<[Name]> {
    if names.len() > MAX_NAMES {
        errors.push(field, format_args!("has {} entries; at most {MAX_NAMES}", names.len()));
    }
    let parsed = parse_each(names, field, errors, |name| name.parse::<Name>());
    let mut seen = HashSet::new();
    for (index, name) in names.iter().enumerate() {
        if !seen.insert(name) {
            errors.push(format_args!("{field}[{index}]"), format_args!("{name:?} is listed twice"));
        }
    }
    parsed.into()
}

pub(crate) fn parse_each<T>(
    texts: &[String],
    field: &str,
    errors: &mut Errors,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let mut parsed = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match parse(text) {
            Ok(value) => parsed.push(value),
            Err(message) => errors.push(format_args!("{field}[{index}]"), message),
        }
    }
    parsed
}
