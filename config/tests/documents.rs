//! Declarative documents: what they may look like, and what is refused.

mod common;

use common::{Catalog, parse};
use proptest::prelude::*;
use serde_json::{Value, json};
use signalbox_config::document::{Entry, join, parse_json, split, to_yaml};
use signalbox_config::{Kind, Resource};

/// `kind name @ path` of each resource.
fn read(text: &str) -> Vec<String> {
    let entries = split(text).unwrap_or_else(|errors| panic!("{text}: {errors:?}"));
    let line = |entry: &Entry| {
        format!("{} {} @ {}", entry.kind, entry.spec["name"].as_str().unwrap_or("?"), entry.path)
    };
    entries.iter().map(line).collect()
}

#[track_caller]
fn refused(text: &str, wanted: &[&str]) {
    let errors: Vec<String> = match split(text) {
        Ok(entries) => panic!("{} resources in {text:.200}", entries.len()),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    };
    assert_eq!(errors, wanted, "{text:.200}");
}

#[test]
fn one_or_several_documents_a_list_or_a_list_for_each_kind() {
    assert_eq!(read("kind: route\nname: a\n"), ["route a @ "]);
    assert_eq!(
        read("# first\n---\nkind: route\nname: a\n---\n---\nkind: upstream\nname: b\n...\n"),
        ["route a @ document[0]", "upstream b @ document[1]"]
    );
    assert_eq!(
        read("- kind: route\n  name: a\n- {kind: plugin, name: b}\n"),
        ["route a @ [0]", "plugin b @ [1]"]
    );
    assert_eq!(
        read("routes:\n- name: a\n- name: b\nupstreams: [{name: c}]\nplugins:\nlisteners: []\n"),
        ["route a @ routes[0]", "route b @ routes[1]", "upstream c @ upstreams[0]"]
    );
    assert_eq!(
        read("routes: [{name: a}]\n---\nkind: route\nname: b\n"),
        ["route a @ document[0].routes[0]", "route b @ document[1]"]
    );
    for nothing in ["{}", "[]", "routes: []", "plugins:\n"] {
        assert_eq!(read(nothing), [""; 0], "{nothing:?}");
    }
    // A resource may have a field that is called like the list of a kind, before or behind its kind.
    for (text, plugins) in [
        ("{plugins: [a, b], name: r, kind: route}", json!(["a", "b"])),
        ("{kind: route, name: r, plugins: [a]}", json!(["a"])),
        ("{plugins: null, kind: route}", json!(null)),
        ("{plugins: {a: [b]}, kind: route}", json!({"a": ["b"]})),
    ] {
        let entries = split(text).unwrap_or_else(|errors| panic!("{text}: {errors:?}"));
        assert_eq!((entries.len(), &entries[0].spec["plugins"]), (1, &plugins), "{text}");
    }
}

#[test]
fn what_cannot_stand_for_a_whole_set_is_told() {
    let whole = |text: &str| -> Vec<String> {
        let document = signalbox_config::document::read(text).unwrap();
        let errors = document.check_whole().err().unwrap_or_default();
        errors.iter().map(ToString::to_string).collect()
    };
    for text in ["routes: []", "{kind: route}", "[{kind: route}]", "routes: []\n---\n", "routes: [{name: a}]"]
    {
        assert_eq!(whole(text), [""; 0], "{text:?}");
    }
    let empty = "is empty: a document without resources is `routes: []`";
    let null = |path: &str| format!("{path}: must be a list, is null; without resources it is `[]`");
    for (text, error) in [
        ("{}", empty.to_owned()),
        ("[]", empty.to_owned()),
        ("[null]", empty.to_owned()),
        ("[{}]", empty.to_owned()),
        ("{}\n---\n{}\n", empty.to_owned()),
        ("routes:\n", null("routes")),
        ("{\"routes\":null}", null("routes")),
        ("listeners: [{name: http}]\nroutes:\n", null("routes")),
        ("kind: route\n---\nroutes:\n", null("document[1].routes")),
        ("[{kind: route}, {plugins: ~}]", null("[1].plugins")),
    ] {
        assert_eq!(whole(text), [error], "{text:?}");
    }
}

#[test]
fn a_document_is_kept_in_about_its_own_size() {
    let text = format!("{{\"routes\": [{}]}}", vec!["{\"n\":1}"; 10_000].join(","));
    let document = signalbox_config::document::read(&text).unwrap();
    assert_eq!(document.len(), 10_000);
    assert_eq!(document.iter().last().map(|entry| entry.path), Some("routes[9999]".to_owned()));
    // One resource may not be a tree that takes many times its text.
    let values = vec!["1"; 100_001].join(",");
    for text in [
        format!("{{\"routes\": [{{\"a\": [{values}]}}]}}"),
        format!("{{\"a\": [{values}]}}"),
        format!("{{\"plugins\": [{values}], \"kind\": \"route\"}}"),
    ] {
        let errors = split(&text).expect_err("too many values");
        assert!(errors[0].message.contains("more than 100000 values"), "{errors:?}");
    }
    assert!(parse_json(&format!("[{values}]")).is_err());
}

#[test]
fn json_is_read_as_well() {
    assert_eq!(read(r#"{"kind": "route", "name": "a"}"#), ["route a @ "]);
    assert_eq!(
        read(r#" [{"kind": "route", "name": "a"}, {"kind": "route", "name": "b"}]"#),
        ["route a @ [0]", "route b @ [1]"]
    );
    assert_eq!(read(r#"{"routes": [{"name": "a", "description": "x\n---\ny"}]}"#), ["route a @ routes[0]"]);
    assert_eq!(
        read("{\"routes\": [{\"name\": \"a\"}]}\n---\n{\"kind\": \"route\", \"name\": \"b\"}"),
        ["route a @ document[0].routes[0]", "route b @ document[1]"]
    );
    // A flow mapping of YAML looks like JSON at first.
    assert_eq!(read("{kind: route, name: a}"), ["route a @ "]);
}

#[test]
fn what_is_no_document_is_refused_with_its_place() {
    for (text, error) in [
        (
            "kind: route\n  name: a\n",
            "is not YAML: line 2 column 7: mapping values are not allowed in this context",
        ),
        ("kind: \"route\n", "is not YAML: line 1 column 7: unclosed quote"),
        (
            "kind: route\nname: a\nname: b\n",
            "is not YAML: line 3 column 1: the field \"name\" is there twice",
        ),
        ("kind: route\nname: *x\n", "is not YAML: line 2 column 7: reference to unknown value"),
        ("kind: route\nx: .inf\n", "is not YAML: line 2 column 4: value `.inf` is not a finite number"),
        ("{\"kind\": \"route\",\n \"x\" 5}", "is not JSON: expected `:` at line 2 column 6"),
        (
            "{\"kind\": \"route\", \"kind\": \"route\"}",
            "is not JSON: the field \"kind\" is there twice at line 1 column 24",
        ),
        ("{\"kind\": \"route\"} {}", "is not JSON: trailing characters at line 1 column 19"),
        ("", "is empty: a document without resources is `routes: []`"),
        ("# nothing yet\n---\n", "is empty: a document without resources is `routes: []`"),
        ("hello", "must be an object with a kind, or with a list for each kind"),
        ("[5]", "[0]: must be an object with a kind, or with a list for each kind"),
        ("kind: 5\n", "kind: must be a string"),
        (
            "kind: rout\n",
            "kind: unknown kind \"rout\"; known are listener, route, upstream, plugin, consumer, consumer-group, certificate, fleet, webhook",
        ),
        ("routes: {a: b}\n", "routes: must be a list"),
        (
            "name: a\n",
            "name: unknown field; known are kind (of a single resource), listeners, routes, upstreams, plugins, consumers, consumer_groups, certificates, fleets, webhooks",
        ),
    ] {
        refused(text, &[error]);
    }
}

#[test]
fn all_errors_of_a_document_come_at_once() {
    refused(
        "routes: 5\nfoo: []\n---\nkind: x\n---\n- kind: route\n  name: a\n- 7\n---\nkind: route\nname: a\n",
        &[
            "document[0].foo: unknown field; known are kind (of a single resource), listeners, routes, upstreams, plugins, consumers, consumer_groups, certificates, fleets, webhooks",
            "document[0].routes: must be a list",
            "document[1].kind: unknown kind \"x\"; known are listener, route, upstream, plugin, consumer, consumer-group, certificate, fleet, webhook",
            "document[2][1]: must be an object with a kind, or with a list for each kind",
            "document[3].name: route \"a\" is in the document twice, first at document[2][0]",
        ],
    );
    refused(
        "routes: [{name: a}, {name: a}, {name: a}]\nupstreams: [{name: a}]\n",
        &[
            "routes[1].name: route \"a\" is in the document twice, first at routes[0]",
            "routes[2].name: route \"a\" is in the document twice, first at routes[0]",
        ],
    );
}

#[test]
fn scalars_are_those_of_yaml_1_2() {
    let entries = split(
        "kind: plugin\nname: a\nconfig: {a: no, b: on, c: 010, d: 1_000, e: 1.10, f: 0x10, g: ~, h: TRUE, i: 12:30:00, j: \"5\", k: }\n",
    );
    assert_eq!(
        entries.unwrap()[0].spec["config"],
        json!({"a": "no", "b": "on", "c": "010", "d": "1_000", "e": 1.1, "f": 16, "g": null, "h": true, "i": "12:30:00", "j": "5", "k": null})
    );
    // Anchors and merge keys work, for many people's files have them.
    assert_eq!(
        read("routes:\n- &a {name: a}\n- <<: *a\n  name: b\n"),
        ["route a @ routes[0]", "route b @ routes[1]"]
    );
}

/// Documents that would fill the memory or the stack if they were read to the end.
#[test]
fn bombs_are_refused_in_a_moment() {
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..20 {
        let alias = format!("*a{}, ", i - 1).repeat(10);
        laughs.push_str(&format!("a{i}: &a{i} [{alias}]\n"));
    }
    let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), "*a, ".repeat(200_000));
    let merges: String = (1..40).map(|i| format!("a{i}: &a{i} {{<<: [*a{0}, *a{0}]}}\n", i - 1)).collect();
    let brackets = |n: usize| "[".repeat(n) + &"]".repeat(n);
    let start = std::time::Instant::now();
    for (text, reason) in [
        (laughs, "is not YAML: line"),
        (long, "is not YAML: line"),
        (format!("a0: &a0 {{x: 1}}\n{merges}"), "is not YAML: line"),
        (brackets(200_000), "is not JSON: recursion limit exceeded"),
        (format!("a: {}", brackets(200_000)), "is not YAML: line 1 column"),
        (
            (0..5_000).map(|i| " ".repeat(i) + "a:\n").collect(),
            "is not YAML: line 65 column 65: is nested too deep",
        ),
        (format!("{}1", "- ".repeat(100_000)), "is not YAML: line"),
        ("--- a\n".repeat(250_000), "is not YAML: line"),
    ] {
        let errors = split(&text).expect_err("a bomb");
        assert_eq!(errors.len(), 1, "{text:.100}");
        assert!(errors[0].message.starts_with(reason), "{text:.100}: {errors:?}");
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn a_large_set_is_read() {
    let routes: String = (0..20_000)
        .map(|i| format!("- name: r{i}\n  match: {{hosts: [a.b], paths: [{{prefix: /a{i}}}]}}\n  forward: {{upstreams: [{{name: u}}]}}\n"))
        .collect();
    assert_eq!(split(&format!("routes:\n{routes}")).map(|entries| entries.len()), Ok(20_000));
    let routes: String = (0..5_000).map(|i| format!("---\nkind: route\nname: r{i}\n")).collect();
    assert_eq!(split(&routes).map(|entries| entries.len()), Ok(5_000));
}

#[test]
fn what_is_exported_can_be_applied() {
    let resources: Vec<Resource> = [
        (Kind::Upstream, json!({"name": "u", "targets": [{"address": "a:1"}]})),
        (Kind::Route, json!({"name": "yes", "description": "no\n\n  - indented: #\n\ttab \u{85}\u{2028} ä", "match": {"headers": [{"name": "x", "exact": "0x10"}, {"name": "y", "exact": "~"}, {"name": "z", "exact": "1e3"}]}, "forward": {"upstreams": [{"name": "u"}]}})),
        (Kind::Route, json!({"name": "b", "respond": {"body": "---\n...\n"}, "labels": {"on": "off", "1": "true"}})),
        (Kind::Consumer, json!({"name": "c", "credentials": [{"key_auth": {"key": "k"}}]})),
    ]
    .into_iter()
    .map(|(kind, spec)| parse(kind, spec).unwrap())
    .collect();
    let exported = join(&resources);
    for text in [to_yaml(&exported).unwrap(), exported.to_string()] {
        let entries = split(&text).unwrap_or_else(|errors| panic!("{text}: {errors:?}"));
        assert_eq!(entries.len(), resources.len());
        for entry in entries {
            let mut spec = entry.spec;
            let same = |resource: &&Resource| {
                resource.key().kind == entry.kind && resource.key().name.as_str() == spec["name"]
            };
            let before = resources.iter().find(same).unwrap();
            before.restore_secrets(&mut spec);
            assert_eq!(Resource::parse(entry.kind, spec, &Catalog).unwrap().version(), before.version());
        }
    }
}

proptest! {
    /// Whatever text a field has, it comes back through YAML.
    #[test]
    fn texts_survive_yaml(text in prop_oneof![any::<String>(), "[-#:'\"&*!|>%@`{}\\[\\],?~ \n\t0-9a-e.xo_+]{0,12}"]) {
        let value = json!({"routes": [{"name": text, text.clone(): text}]});
        prop_assume!(text != "name");
        let yaml = to_yaml(&value).unwrap();
        let entries = split(&yaml);
        prop_assert!(entries.is_ok(), "{yaml:?}: {entries:?}");
        let entries = entries.unwrap_or_default();
        prop_assert_eq!(&entries[0].spec, &value["routes"][0], "{:?}", yaml);
    }

    #[test]
    fn strict_json_reads_what_serde_json_writes(numbers in prop::collection::vec(any::<f64>(), 0..5), text in any::<String>(), int in any::<i64>()) {
        let value = json!({"a": numbers, "b": {"c": text, "d": [int, u64::MAX, null, true]}});
        prop_assert_eq!(parse_json(&value.to_string()).unwrap(), serde_json::from_str::<Value>(&value.to_string()).unwrap());
    }
}

#[test]
fn what_is_wrong_all_over_is_told_as_far_as_anybody_reads() {
    let errors = split(&format!("[{}]", vec!["1"; 100_000].join(","))).expect_err("numbers");
    assert_eq!(errors.len(), 101);
    assert_eq!(errors.last().map(|last| last.omitted), Some(100_000 - 100));
}
