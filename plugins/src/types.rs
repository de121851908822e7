//! Tests of all types together.

use std::collections::BTreeSet;

use serde_json::json;
use signalbox_config::{FieldError, PluginCatalog as _};
use signalbox_plugin::testing::{check_type, name};
use signalbox_plugin::{Context, States};

use crate::builtin;

/// The default order of the types that are designed, so that users' own `order`s stay right when one is added.
const ORDERS: [(&str, i32); 29] = [
    ("request-id", 100_000),
    ("bot-detection", 2500),
    ("cors", 2000),
    ("ip-restriction", 1990),
    ("request-size-limit", 1951),
    ("csrf", 1900),
    ("mtls-auth", 1460),
    ("jwt", 1450),
    ("hmac-auth", 1430),
    ("oidc", 1430),
    ("basic-auth", 1400),
    ("key-auth", 1350),
    ("auth", 1340),
    ("ext-auth", 1300),
    ("fault", 995),
    ("mirror", 970),
    ("acl", 950),
    ("rate-limit", 910),
    ("token-limit", 908),
    ("concurrency-limit", 905),
    ("request-transform", 801),
    ("response-transform", 800),
    ("redirect", 779),
    ("respond", 778),
    ("grpc-web", 700),
    ("grpc-json", 690),
    ("cache", 100),
    ("compress", 90),
    ("logs", 10),
];

#[test]
fn names_are_unique_and_orders_are_the_documented_ones() {
    for plugin_type in builtin().types() {
        if let Some((_, order)) = ORDERS.iter().find(|(name, _)| *name == plugin_type.name) {
            assert_eq!(plugin_type.default_order, *order, "{}", plugin_type.name);
        }
        assert_eq!(builtin().default_order(plugin_type.name), Some(plugin_type.default_order));
    }
    assert!(builtin().type_names().is_sorted_by(|one, other| one < other));
}

#[test]
fn every_type_can_be_described_drawn_and_built() {
    builtin().types().iter().for_each(check_type);
}

#[test]
fn forms_have_their_fields_in_the_order_of_the_type() {
    for plugin_type in builtin().types() {
        let schema = plugin_type.schema();
        let fields: BTreeSet<&str> =
            schema.get("properties").unwrap().as_object().unwrap().keys().map(String::as_str).collect();
        let order = schema.get("x-order").unwrap().as_array().unwrap();
        assert_eq!(order.iter().map(|name| name.as_str().unwrap()).collect::<BTreeSet<_>>(), fields);
    }
    let order = builtin().find("rate-limit").unwrap().schema().get("x-order").unwrap();
    assert_eq!(order[0], "limit");
}

#[test]
fn what_is_wrong_is_named_by_field_and_all_at_once() {
    let fields = |config| {
        let errors = builtin().check("rate-limit", &config);
        errors.into_iter().map(|FieldError { field, .. }| field).collect::<Vec<_>>()
    };
    assert_eq!(
        fields(json!({"window": "abc", "by": "moon", "burst": 1})),
        ["by", "window", "limit", "burst"]
    );
    assert_eq!(
        fields(json!({"limit": 1, "window": "abc", "header": "x", "burst": 1})),
        ["window", "burst", "header"]
    );
}

#[test]
fn a_configuration_that_was_never_checked_is_refused_not_built() {
    let (name, states) = (name("p"), States::default());
    let context = Context { name: &name, states: &states };
    for (type_name, config) in [
        ("cors", "{\"credentials\": true}"),
        ("key-auth", "{\"anonymous\": \"A B\"}"),
        ("rate-limit", "{\"limit\": 1, \"store\": \"redis\"}"),
        ("rate-limit", "{}"),
        ("request-transform", "{\"max_body\": 0}"),
        ("request-transform", "not JSON"),
    ] {
        let built = builtin().find(type_name).unwrap().build(config.as_bytes(), &context);
        assert!(built.is_err(), "{config}");
    }
    assert!(builtin().find("moon").is_none());
    assert_eq!(builtin().check("moon", &json!({}))[0].message, "unknown plugin type \"moon\"");
}
