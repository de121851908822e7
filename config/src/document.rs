//! Declarative documents: several resources in one text, YAML or JSON.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::FieldError;
use crate::key::Kind;
use crate::resource::Resource;

/// One resource of a document, not parsed further.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its specification.
    pub spec: Value,
    /// Where in the document, as field errors name it: `routes[3]`, or `document[2]` of several.
    pub path: String,
}

/// Splits a document into its resources: one or several YAML documents `{kind: route, name: …}`, a list of such, or
/// one document with a list for each kind. JSON is YAML.
pub fn split(text: &str) -> Result<Vec<Entry>, Vec<FieldError>> {
    let documents: Vec<Value> = if text.trim_start().starts_with(['{', '[']) && !text.contains("\n---") {
        // JSON first: its errors say line and column, and it is much faster for large documents.
        match serde_json::from_str(text) {
            Ok(value) => vec![value],
            Err(json_error) => parse_yaml(text)
                .map_err(|_| vec![FieldError::new("", format!("is not JSON: {json_error}"))])?,
        }
    } else {
        parse_yaml(text).map_err(|error| vec![FieldError::new("", format!("is not YAML: {error}"))])?
    };
    let mut entries = Vec::new();
    let mut errors = Vec::new();
    let several = documents.iter().filter(|document| !document.is_null()).count() > 1;
    for (index, document) in documents.into_iter().enumerate() {
        let path = if several { format!("document[{index}]") } else { String::new() };
        split_one(document, &path, &mut entries, &mut errors);
    }
    refuse_duplicates(&entries, &mut errors);
    if errors.is_empty() { Ok(entries) } else { Err(errors) }
}

/// The whole set as one document with a list for each kind, ready for `apply`; without what is secret.
pub fn join<'a>(resources: impl IntoIterator<Item = &'a Resource>) -> Value {
    let mut lists: BTreeMap<Kind, Vec<Value>> = BTreeMap::new();
    for resource in resources {
        lists.entry(resource.key().kind).or_default().push(resource.redacted());
    }
    let lists = lists.into_iter().map(|(kind, list)| (kind.plural().to_owned(), Value::Array(list)));
    Value::Object(lists.collect::<Map<_, _>>())
}

/// `value` as YAML.
pub fn to_yaml(value: &Value) -> Result<String, String> {
    serde_saphyr::to_string(value).map_err(|error| error.to_string())
}

fn parse_yaml(text: &str) -> Result<Vec<Value>, String> {
    serde_saphyr::from_multiple(text).map_err(|error| error.to_string())
}

fn split_one(document: Value, path: &str, entries: &mut Vec<Entry>, errors: &mut Vec<FieldError>) {
    match document {
        Value::Null => {}
        Value::Array(items) => {
            for (index, item) in items.into_iter().enumerate() {
                split_one(item, &format!("{path}[{index}]"), entries, errors);
            }
        }
        Value::Object(object) if object.contains_key("kind") => {
            match object.get("kind").and_then(Value::as_str).map(str::parse) {
                Some(Ok(kind)) => {
                    entries.push(Entry { kind, spec: Value::Object(object), path: path.to_owned() });
                }
                Some(Err(message)) => errors.push(FieldError::new(crate::error::join(path, "kind"), message)),
                None => errors.push(FieldError::new(crate::error::join(path, "kind"), "must be a string")),
            }
        }
        Value::Object(object) => {
            for (field, list) in object {
                let path = crate::error::join(path, &field);
                match (Kind::from_plural(&field), list) {
                    (Some(kind), Value::Array(items)) => {
                        entries.extend(items.into_iter().enumerate().map(|(index, spec)| Entry {
                            kind,
                            spec,
                            path: format!("{path}[{index}]"),
                        }));
                    }
                    (Some(_), Value::Null) => {}
                    (Some(_), _) => errors.push(FieldError::new(path, "must be a list")),
                    (None, _) if field == "certificates" => {
                        errors.push(FieldError::new(path, "is not supported by this version"));
                    }
                    (None, _) => {
                        let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.plural()).collect();
                        errors.push(FieldError::new(
                            path,
                            format!(
                                "unknown field; known are kind (of a single resource), {}",
                                known.join(", ")
                            ),
                        ));
                    }
                }
            }
        }
        _ => {
            errors.push(FieldError::new(path, "must be an object with a kind, or with a list for each kind"));
        }
    }
}

fn refuse_duplicates(entries: &[Entry], errors: &mut Vec<FieldError>) {
    let mut seen: BTreeMap<(Kind, &str), &str> = BTreeMap::new();
    for entry in entries {
        let Some(name) = entry.spec.get("name").and_then(Value::as_str) else { continue };
        if let Some(first) = seen.insert((entry.kind, name), &entry.path) {
            let message = format!("{} {name:?} is in the document twice, first at {first:?}", entry.kind);
            errors.push(FieldError::new(crate::error::join(&entry.path, "name"), message));
        }
    }
}
