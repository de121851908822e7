//! Tests of all types together.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use signalbox_config::{FieldError, PluginCatalog as _};
use signalbox_plugin::States;
use signalbox_plugin::testing::{Services, check_type, name};

use crate::{ORDERS, builtin};

#[test]
fn names_are_unique_and_orders_are_the_documented_ones() {
    for plugin_type in builtin().types() {
        let order = ORDERS.iter().find(|(name, _)| *name == plugin_type.name);
        assert_eq!(order.map(|(_, order)| *order), Some(plugin_type.default_order), "{}", plugin_type.name);
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
        let fields: BTreeSet<&str> = schema
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(name, _)| name.as_str())
            .collect();
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
    let (name, states, services) = (name("p"), States::default(), Services::default());
    let context = services.context(&name, &states);
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
