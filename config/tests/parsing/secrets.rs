//! Secrets and stored forms: what is stored, sent, shown and read back.

use super::*;

// ------------------------------------------------------------------------------------------------------------------
// The canonical form

pub(super) fn examples() -> Vec<(Kind, Value)> {
    vec![
        (Kind::Listener, json!({"name": "l", "address": "0.0.0.0:8080"})),
        (
            Kind::Listener,
            json!({"name": "l", "address": "[::]:80", "protocol": "http", "limits": {"header_size": 65536, "body_size": "10MB", "header_timeout": "1.5s"}, "fleets": ["a"]}),
        ),
        (
            Kind::Route,
            json!({
                "name": "users", "description": "d", "labels": {"b": "2", "a": "1"}, "fleets": ["f"], "enabled": false, "listeners": ["http"],
                "match": {
                    "hosts": ["Admin.Example.com", "*.example.org", "[0:0::1]"],
                    "paths": [{"prefix": "/api/"}, {"exact": "/x"}, {"template": "/{a}/{*b}"}, {"regex": "/[0-9]+"}],
                    "methods": ["GET"],
                    "headers": [{"name": "X-Env", "exact": "beta"}, {"name": "y", "present": false, "invert": true}],
                    "query": [{"name": "v", "regex": "1|2"}],
                },
                "priority": -5, "strict_slash": true, "plugins": ["p"],
                "forward": {
                    "upstreams": [{"name": "a", "weight": 90}, {"name": "b", "weight": 0}, {"name": "c"}],
                    "rewrite": {"path_regex": {"pattern": "^/(?<v>v1)", "substitution": "/${v}$1$$$0"}, "host": "h:80"},
                    "timeout": "0s",
                },
            }),
        ),
        (
            Kind::Route,
            json!({"name": "r", "redirect": {"scheme": "https", "host": "h", "port": 8443, "path_prefix": "/x", "status": 308}}),
        ),
        (
            Kind::Route,
            json!({"name": "r", "respond": {"status": 404, "body": "no\n", "headers": {"x": "y"}}}),
        ),
        (Kind::Upstream, json!({"name": "u", "targets": []})),
        (
            Kind::Upstream,
            json!({"name": "u", "protocol": "http1", "targets": [{"address": "10.0.0.1:80", "weight": 0}, {"address": "h:1"}], "load_balancing": {"policy": "random"}, "connect_timeout": "60s", "idle_timeout": "90s"}),
        ),
        (
            Kind::Upstream,
            json!({
                "name": "u",
                "targets": [{"address": "h:1", "zone": "a"}],
                "load_balancing": {"policy": "maglev", "hash_on": {"cookie": {"name": "sid", "path": "/x", "ttl": "1h"}}, "slow_start": "30s"},
                "health_check": {
                    "active": {"type": "grpc", "service": "s", "host": "h", "interval": "1s", "timeout": "2s", "healthy_after": 1, "unhealthy_after": 1},
                    "passive": {"consecutive_failures": 1, "interval": "1s", "ejection": "1s", "max_ejected_percent": 100},
                    "panic_threshold_percent": 0,
                },
            }),
        ),
        (
            Kind::Upstream,
            json!({"name": "u", "targets": [], "load_balancing": {"policy": "ring_hash", "hash_on": "source_ip"}, "health_check": {"active": {"path": "/h?x", "statuses": [200, 204]}}}),
        ),
        (
            Kind::Plugin,
            json!({"name": "p", "type": "limit", "config": {"z": [1, 2.5], "limit": 3}, "enabled": false, "global": true, "order": 5}),
        ),
        (
            Kind::Consumer,
            json!({"name": "c", "custom_id": "1", "groups": ["g"], "plugins": ["p"], "credentials": [{"key_auth": {"key": "s3cret-key"}}, {"key_auth": {"id": "i", "key": {"env": "KEY"}}}, {"key_auth": {"key": {"file": "/k"}}}, {"key_auth": {"id": "j", "key": {"sha256": "AB".repeat(32)}}}]}),
        ),
    ]
}

#[test]
fn the_canonical_form_reads_back_as_itself() {
    for (kind, spec) in examples() {
        let written = parse(kind, spec.clone()).unwrap_or_else(|errors| panic!("{spec}: {errors:?}"));
        let stored = Resource::from_stored(kind, written.spec(), &Catalog).unwrap();
        let sent = Resource::from_wire(kind, written.encoded(), &Catalog).unwrap();
        let again = parse(kind, serde_json::from_slice(written.spec()).unwrap()).unwrap();
        for other in [&stored, &sent, &again] {
            assert_eq!(other.spec(), written.spec());
            assert_eq!(other.version(), written.version());
            assert_eq!(other.key(), written.key());
            assert_eq!(other.fleets(), written.fleets());
            assert_eq!(format!("{:?}", other.body()), format!("{:?}", written.body()));
        }
    }
}

#[test]
fn what_means_the_same_has_one_version() {
    let version = |kind, spec| parse(kind, spec).unwrap().version();
    let targets = json!([{"address": "a:1"}]);
    assert_eq!(
        version(Kind::Upstream, json!({"name": "u", "targets": targets, "connect_timeout": "60s"})),
        version(
            Kind::Upstream,
            json!({"targets": targets, "connect_timeout": "1m", "name": "u", "labels": {}, "load_balancing": {}})
        ),
    );
    assert_ne!(
        version(Kind::Upstream, json!({"name": "u", "targets": targets})),
        version(Kind::Upstream, json!({"name": "v", "targets": targets})),
    );
    let consumer =
        |digits: String| json!({"name": "c", "credentials": [{"key_auth": {"key": {"sha256": digits}}}]});
    assert_eq!(
        version(Kind::Consumer, consumer("ab".repeat(32))),
        version(Kind::Consumer, consumer("AB".repeat(32)))
    );
}

#[test]
fn what_was_stored_wrong_is_refused_with_its_reasons() {
    let refused = |spec: &[u8]| -> Vec<String> {
        let errors = Resource::from_stored(Kind::Upstream, spec, &Catalog).unwrap_err();
        errors.iter().map(FieldError::to_string).collect()
    };
    assert_eq!(refused(br#"{"name":"u","targets":[],"newer":1}"#), ["newer: unknown field"]);
    assert!(refused(b"{").iter().all(|error| error.starts_with("is not JSON: ")));
    assert!(refused(b"\xff").iter().all(|error| error.starts_with("is not JSON: ")));
    assert!(refused("[".repeat(100_000).as_bytes()).iter().all(|error| error.starts_with("is not JSON: ")));
    for bytes in [&b""[..], b"\x1a", b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x1a\x7fx"] {
        assert!(Resource::from_wire(Kind::Upstream, bytes::Bytes::copy_from_slice(bytes), &Catalog).is_err());
    }
}

// ------------------------------------------------------------------------------------------------------------------
// Secrets

pub(super) fn alice(credentials: &Value) -> Value {
    json!({"name": "alice", "credentials": credentials})
}

#[test]
fn a_literal_key_is_neither_stored_nor_sent_nor_shown() {
    let key = "a-very-secret-key";
    let resource = parse(Kind::Consumer, alice(&json!([{"key_auth": {"key": key}}]))).unwrap();
    for text in [
        String::from_utf8_lossy(resource.spec()).into_owned(),
        String::from_utf8_lossy(&resource.encoded()).into_owned(),
        resource.redacted().to_string(),
        format!("{resource:?}"),
    ] {
        assert!(!text.contains(key), "{text}");
    }
    assert_eq!(resource.redacted()["credentials"][0]["key_auth"]["key"], "<redacted>");
    // Nor in what is said of it when something else is wrong.
    let wrong = json!({"name": "alice", "credentials": [{"key_auth": {"key": key, "x": 1}}, {"key_auth": {"key": key}}, {"key_auth": key}, key, {key: 1}]});
    let Err(errors) = parse(Kind::Consumer, wrong) else { panic!("it is wrong") };
    assert!(errors.len() >= 5, "{errors:?}");
    assert!(!errors.iter().any(|error| error.to_string().contains(key)), "{errors:?}");
}

#[test]
fn references_are_shown_and_hashes_are_not() {
    let resource = parse(
        Kind::Consumer,
        alice(&json!([{"key_auth": {"key": {"env": "KEY"}}}, {"key_auth": {"key": {"file": "/k"}}}, {"key_auth": {"key": {"sha256": "ab".repeat(32)}}}])),
    )
    .unwrap();
    assert_eq!(
        resource.redacted()["credentials"],
        json!([
            {"key_auth": {"id": "env:KEY", "key": {"env": "KEY"}}},
            {"key_auth": {"id": "file:/k", "key": {"file": "/k"}}},
            {"key_auth": {"id": "abababababab", "key": "<redacted>"}},
        ])
    );
}

#[test]
fn what_is_read_back_can_be_written_again_and_keeps_its_secrets() {
    let stored = parse(
        Kind::Consumer,
        alice(&json!([{"key_auth": {"key": "one"}}, {"key_auth": {"id": "b", "key": "two"}}])),
    )
    .unwrap();
    let mut again = stored.redacted();
    again["kind"] = "consumer".into();
    stored.restore_secrets(&mut again);
    assert_eq!(parse(Kind::Consumer, again).unwrap().version(), stored.version());

    // In another order, with one left out and one new.
    let mut changed = stored.redacted();
    let list = changed["credentials"].as_array_mut().unwrap();
    list.remove(0);
    list.insert(0, json!({"key_auth": {"id": "c", "key": "three"}}));
    stored.restore_secrets(&mut changed);
    let changed = parse(Kind::Consumer, changed).unwrap();
    let fresh = parse(
        Kind::Consumer,
        alice(&json!([{"key_auth": {"id": "c", "key": "three"}}, {"key_auth": {"id": "b", "key": "two"}}])),
    )
    .unwrap();
    assert_eq!(changed.version(), fresh.version());

    // Without an id, where there is only one.
    let only = parse(Kind::Consumer, alice(&json!([{"key_auth": {"id": "x", "key": "one"}}]))).unwrap();
    let mut plain = alice(&json!([{"key_auth": {"key": "<redacted>"}}]));
    only.restore_secrets(&mut plain);
    assert_eq!(parse(Kind::Consumer, plain).unwrap().version(), only.version());
}

#[test]
fn what_cannot_be_kept_is_an_error_and_what_can_is_kept_beside_other_errors() {
    let stored = parse(
        Kind::Consumer,
        alice(&json!([{"key_auth": {"id": "a", "key": "one"}}, {"key_auth": {"id": "b", "key": "two"}}])),
    )
    .unwrap();
    let restored = |credentials: Value| {
        let mut spec = alice(&credentials);
        stored.restore_secrets(&mut spec);
        errors_of(Kind::Consumer, spec)
    };
    let lost = "is \"<redacted>\", but nothing is stored that could be kept";
    assert_eq!(
        restored(json!([{"key_auth": {"id": "z", "key": "<redacted>"}}])),
        [format!("credentials[0].key_auth.key: {lost}")]
    );
    assert_eq!(
        restored(json!([{"key_auth": {"key": "<redacted>"}}])),
        [format!("credentials[0].key_auth.key: {lost}")]
    );
    assert_eq!(
        restored(json!([{"key_auth": {"id": "a", "key": "<redacted>", "x": 1}}, 5])),
        ["credentials[0].key_auth.x: unknown field", "credentials[1]: must be an object, is a number"]
    );
    for odd in [json!(null), json!([]), json!({"credentials": 5}), json!({"credentials": [{"key_auth": []}]})]
    {
        let mut value = odd.clone();
        stored.restore_secrets(&mut value);
        assert_eq!(value, odd);
    }
}

#[test]
fn an_id_that_was_made_from_a_key_follows_the_key() {
    let consumer = |credentials: Value| json!({"name": "c", "credentials": credentials});
    let parse = |spec: Value| common::parse(Kind::Consumer, spec).unwrap();
    let ids = |resource: &Resource| -> Vec<String> {
        let spec: Value = serde_json::from_slice(resource.spec()).unwrap();
        let credentials = spec["credentials"].as_array().unwrap().iter();
        credentials.map(|it| it["key_auth"]["id"].as_str().unwrap().to_owned()).collect()
    };
    let id_of = |key: &str| ids(&parse(consumer(json!([{"key_auth": {"key": key}}])))).remove(0);
    let stored = parse(consumer(json!([
        {"key_auth": {"key": "key-of-before-1"}},
        {"key_auth": {"id": "named", "key": "key-of-before-2"}},
    ])));
    let (before, after) = (id_of("key-of-before-1"), id_of("key-of-after-1"));
    assert_eq!(ids(&stored), [before.clone(), "named".to_owned()]);
    let sha256 = json!({"sha256": signalbox_config::sha256(b"key-of-before-1").iter().map(|b| format!("{b:02x}")).collect::<String>()});
    for (first, second, expected) in [
        // The UI sends this when the key was replaced: the id that it read, and the new key.
        (json!({"id": before, "key": "key-of-after-1"}), json!("<redacted>"), [&*after, "named"]),
        (json!({"id": before, "key": {"env": "KEY"}}), json!("<redacted>"), ["env:KEY", "named"]),
        (json!({"id": before, "key": "<redacted>"}), json!("key-of-after-2"), [&*before, "named"]),
        (json!({"id": before, "key": "key-of-before-1"}), json!("<redacted>"), [&*before, "named"]),
        (json!({"id": before, "key": sha256}), json!("<redacted>"), [&*before, "named"]),
        (json!({"id": "mine", "key": "key-of-after-1"}), json!("<redacted>"), ["mine", "named"]),
    ] {
        let mut spec = consumer(json!([{"key_auth": first}, {"key_auth": {"id": "named", "key": second}}]));
        stored.restore_secrets(&mut spec);
        assert_eq!(ids(&parse(spec.clone())), expected, "{spec}");
    }
}
