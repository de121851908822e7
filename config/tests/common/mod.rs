//! Helpers that the tests of this crate share.
#![allow(dead_code, reason = "each test binary uses its own part")]

use serde_json::{Value, json};
use signalbox_config::{Body, FieldError, Kind, PluginCatalog, Resource, ResourceKey, Route};

/// One plugin type, `limit`, with `{limit: 1…, anonymous: CONSUMER}`.
pub(crate) struct Catalog;

impl PluginCatalog for Catalog {
    fn default_order(&self, type_name: &str) -> Option<i32> {
        (type_name == "limit").then_some(910)
    }

    fn type_names(&self) -> Vec<&'static str> {
        vec!["limit"]
    }

    fn check(&self, _: &str, config: &Value) -> Vec<FieldError> {
        match config.get("limit").and_then(Value::as_u64) {
            Some(1..) => Vec::new(),
            _ => vec![FieldError::new("limit", "must be at least 1")],
        }
    }

    fn references(&self, _: &str, config: &Value) -> Vec<(ResourceKey, String)> {
        let name = config.get("anonymous").and_then(Value::as_str).and_then(|name| name.parse().ok());
        name.map(|name| (ResourceKey::new(Kind::Consumer, name), "anonymous".to_owned()))
            .into_iter()
            .collect()
    }
}

pub(crate) fn parse(kind: Kind, spec: Value) -> Result<Resource, Vec<FieldError>> {
    Resource::parse(kind, spec, &Catalog)
}

/// A route that answers by itself, with these fields beside.
pub(crate) fn route(name: &str, fields: &Value) -> Route {
    let mut spec = json!({"name": name, "respond": {}});
    for (field, value) in fields.as_object().expect("the fields of a route") {
        spec[field] = value.clone();
    }
    let resource = parse(Kind::Route, spec.clone()).unwrap_or_else(|errors| panic!("{spec}: {errors:?}"));
    match resource.body() {
        Body::Route(route) => (**route).clone(),
        other => panic!("{other:?}"),
    }
}
