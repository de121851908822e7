//! Declarative documents: several resources in one text, YAML or JSON.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess};
use serde_json::{Map, Number, Value};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{MessageFormatter as _, UserMessageFormatter};

use crate::error::{Errors, FieldError};
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
        match parse_json(text) {
            Ok(value) => vec![value],
            Err(json_error) => parse_yaml(text)
                .map_err(|_| vec![FieldError::new("", format!("is not JSON: {json_error}"))])?,
        }
    } else {
        parse_yaml(text).map_err(|error| vec![FieldError::new("", format!("is not YAML: {error}"))])?
    };
    if documents.iter().all(Value::is_null) {
        // Half written, perhaps. Taken for a set of nothing, it would remove everything.
        return Err(vec![FieldError::new("", "is empty: a document without resources is `routes: []`")]);
    }
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

/// Reads JSON in which no object has two fields of one name: which of them counts would be anyone's guess.
pub fn parse_json(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str::<Strict>(text).map(|strict| strict.0)
}

/// A set of 100,000 routes fits; what expands to more than it says is refused early, for that is how a document of a
/// few lines would fill the memory.
fn parse_yaml(text: &str) -> Result<Vec<Value>, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: 200_000,
            max_nodes: 10_000_000,
            max_events: 25_000_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
        },
        // As YAML 1.2 has it: `no`, `007` and `1_000` are texts.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let place = match error.location() {
            Some(place) => format!("line {} column {}: ", place.line(), place.column()),
            None => String::new(),
        };
        let reason = match error.without_snippet() {
            serde_saphyr::Error::Budget { breach: BudgetBreach::Depth { .. }, .. } => {
                "is nested too deep".to_owned()
            }
            serde_saphyr::Error::Budget { .. } => "is too large".to_owned(),
            serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
                format!("the field {key:?} is there twice")
            }
            error => UserMessageFormatter.format_message(error).replace(char::is_control, " "),
        };
        place + &reason
    })
}

/// Any value, but no object with two fields of one name.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;

        impl<'de> de::Visitor<'de> for Visit {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_string<E>(self, value: String) -> Result<Value, E> {
                Ok(value.into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
                let mut items = Vec::new();
                while let Some(Strict(item)) = list.next_element()? {
                    items.push(item);
                }
                Ok(Value::Array(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
                let mut object = Map::new();
                while let Some(name) = fields.next_key::<String>()? {
                    if object.contains_key(&name) {
                        return Err(de::Error::custom(format_args!("the field {name:?} is there twice")));
                    }
                    let Strict(value) = fields.next_value()?;
                    object.insert(name, value);
                }
                Ok(Value::Object(object))
            }
        }

        deserializer.deserialize_any(Visit).map(Self)
    }
}

fn split_one(document: Value, path: &str, entries: &mut Vec<Entry>, errors: &mut Vec<FieldError>) {
    match document {
        Value::Null => {}
        Value::Array(items) => {
            for (index, item) in items.into_iter().enumerate() {
                if errors.len() >= Errors::MAX {
                    return;
                }
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
        match seen.entry((entry.kind, name)) {
            Slot::Vacant(slot) => {
                slot.insert(&entry.path);
            }
            Slot::Occupied(first) => {
                let first = first.get();
                let message = format!("{} {name:?} is in the document twice, first at {first}", entry.kind);
                errors.push(FieldError::new(crate::error::join(&entry.path, "name"), message));
            }
        }
    }
}
