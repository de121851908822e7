//! Writes resources as a document.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::kind::Kind;
use crate::resource::Resource;

/// The whole set as one document with a list for each kind; without what is secret.
pub fn join<'a>(resources: impl IntoIterator<Item = &'a Resource>) -> Value {
    join_with(resources, |resource, _| resource.redacted())
}

/// The same with resources as `write` writes them, which is told the path of each in the document. Without resources every
/// kind has an empty list, so that the document may stand for a whole set.
pub fn join_with<'a>(
    resources: impl IntoIterator<Item = &'a Resource>,
    mut write: impl FnMut(&Resource, &str) -> Value,
) -> Value {
    let mut lists: BTreeMap<Kind, Vec<Value>> = BTreeMap::new();
    for resource in resources {
        let kind = resource.key().kind;
        let list = lists.entry(kind).or_default();
        let spec = write(resource, &format!("{}[{}]", kind.plural(), list.len()));
        list.push(spec);
    }
    if lists.is_empty() {
        lists.extend(Kind::ALL.map(|kind| (kind, Vec::new())));
    }
    let lists = lists.into_iter().map(|(kind, list)| (kind.plural().to_owned(), Value::Array(list)));
    Value::Object(lists.collect::<Map<_, _>>())
}

/// `value` as YAML.
pub fn to_yaml(value: &Value) -> Result<String, String> {
    serde_saphyr::to_string(value).map_err(|error| error.to_string())
}
