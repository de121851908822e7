//! Whatever is sent is read or refused with a reason.

use proptest::prelude::*;

use super::secrets::examples;
use super::*;

fn any_json() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(
        &[
            "name",
            "match",
            "paths",
            "exact",
            "forward",
            "upstreams",
            "weight",
            "credentials",
            "key_auth",
            "key",
            "env",
            "targets",
            "address",
            "config",
            "limits",
            "x",
            "/a",
            "10s",
            "1KiB",
            "a:1",
        ][..],
    );
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(word.clone().prop_map(String::from), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever is sent, it is either read or refused with a reason, and no error is in the place of nothing.
    #[test]
    fn nothing_that_is_sent_makes_it_panic(value in any_json(), kind in prop::sample::select(&Kind::ALL[..])) {
        match parse(kind, value) {
            Ok(resource) => prop_assert!(Resource::from_stored(kind, resource.spec(), &Catalog).is_ok()),
            Err(errors) => prop_assert!(!errors.is_empty()),
        }
    }

    /// One wrong thing put into something right gives errors about that thing, and about nothing else.
    #[test]
    fn an_error_is_told_where_it_is(example in 0..9_usize, at in any::<prop::sample::Index>(), junk in prop_oneof![Just(json!([[]])), Just(json!({"junk": 1})), Just(json!(-1.5)), Just(json!(true))]) {
        let (kind, mut spec) = examples().swap_remove(example);
        let mut pointers = Vec::new();
        collect_pointers(&spec, "", "", &mut pointers);
        let (pointer, field) = at.get(&pointers).clone();
        *spec.pointer_mut(&pointer).expect("it was found there") = junk;
        for error in parse(kind, spec).err().unwrap_or_default() {
            let is_there = error.field.starts_with(&field);
            // Some rules are about several fields, and are told at the one that they are about.
            let rules = ["forward.rewrite", "health_check.active", "load_balancing", "proxy_protocol", "tls"];
            let is_of_a_rule = rules.iter().any(|rule| error.field.starts_with(rule));
            let is_about_it = field.starts_with(&error.field) || is_of_a_rule;
            prop_assert!(is_there || is_about_it, "{field}: {error}");
        }
    }
}

/// Every value in `value`, by JSON pointer and as field errors name it.
fn collect_pointers(value: &Value, pointer: &str, field: &str, all: &mut Vec<(String, String)>) {
    if !pointer.is_empty() {
        all.push((pointer.to_owned(), field.to_owned()));
    }
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                let dot = if field.is_empty() { "" } else { "." };
                let escaped = name.replace('~', "~0").replace('/', "~1");
                collect_pointers(value, &format!("{pointer}/{escaped}"), &format!("{field}{dot}{name}"), all);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                collect_pointers(value, &format!("{pointer}/{index}"), &format!("{field}[{index}]"), all);
            }
        }
        _ => {}
    }
}
