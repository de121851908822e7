use http::{Method, Uri};
use serde_json::json;
use signalbox_plugin::States;

use super::*;
use crate::testing::{Client as TestClient, build, build_in, consumers, refused};

fn from(address: &str) -> TestClient {
    TestClient::new("GET", "/").from(address)
}

#[test]
fn so_many_requests_are_under_way_and_no_more() {
    let plugin = build("concurrency-limit", json!({"limit": 2, "retry_after": "2500ms"}));
    let [mut first, mut second, mut third] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(from);
    assert!(first.meets(&*plugin).is_none() && second.meets(&*plugin).is_none());
    let answer = third.meets(&*plugin).unwrap();
    assert_eq!((answer.status, &*answer.detail), (503, "too many requests at once"));
    assert_eq!(answer.headers["retry-after"], "3");
    // One that was refused has nothing to return.
    third.ends(&*plugin, 503);
    assert!(from("192.0.2.4").meets(&*plugin).is_some());
    first.ends(&*plugin, 200);
    let mut fourth = from("192.0.2.4");
    assert!(fourth.meets(&*plugin).is_none());
    assert!(from("192.0.2.5").meets(&*plugin).is_some());
    // Nor does an exchange that is just dropped keep its permit.
    drop((second, fourth));
    let mut again = [from("192.0.2.1"), from("192.0.2.1")];
    assert!(again.iter_mut().all(|client| client.meets(&*plugin).is_none()));
}

#[test]
fn clients_are_told_apart_by_the_property_of_the_configuration() {
    let consumers = consumers(&[("alice", &["a1", "a2"]), ("bob", &["b"])]);
    let key_auth = build("key-auth", json!({}));
    let table = [
        (json!({"limit": 1}), [true, false, false, false]),
        (json!({"limit": 1, "by": "ip"}), [true, false, false, true]),
        (json!({"limit": 1, "by": "consumer"}), [true, false, true, false]),
        (json!({"limit": 1, "by": "credential"}), [true, true, true, false]),
        (json!({"limit": 1, "by": "header", "header": "x-tenant"}), [true, true, false, false]),
        (json!({"limit": 1, "by": "path"}), [true, false, false, true]),
    ];
    let clients = [
        ("a1", "/", "192.0.2.1", "one"),
        ("a2", "/", "192.0.2.1", "two"),
        ("b", "/", "192.0.2.1", "one"),
        ("a1", "/other", "192.0.2.9", "two"),
    ];
    for (config, expected) in table {
        let plugin = build("concurrency-limit", config.clone());
        let mut kept = Vec::new();
        let passed = clients.map(|(key, path, address, tenant)| {
            let client = TestClient::new("GET", path).from(address).knowing(&consumers);
            let mut client = client.header("apikey", key).header("x-tenant", tenant);
            assert!(client.meets(&*key_auth).is_none());
            let passed = client.meets(&*plugin).is_none();
            kept.push(client);
            passed
        });
        assert_eq!(passed, expected, "{config}");
    }
}

#[test]
fn requests_under_way_stay_counted_over_revisions() {
    let states = States::default();
    let build = |config| build_in(&states, "concurrency-limit", config);
    let before = build(json!({"limit": 2}));
    let mut clients = [from("192.0.2.1"), from("192.0.2.2")];
    assert!(clients.iter_mut().all(|client| client.meets(&*before).is_none()));
    let after = build(json!({"limit": 1}));
    drop(before);
    let [first, second] = clients;
    drop(first);
    assert!(from("192.0.2.3").meets(&*after).is_some(), "one of the revision before is under way");
    drop(second);
    let mut third = from("192.0.2.3");
    assert!(third.meets(&*after).is_none());
    let adaptive = build(json!({"adaptive": {"min": 1}}));
    assert!(from("192.0.2.4").meets(&*adaptive).is_some());
    drop(third);
    assert!(from("192.0.2.4").meets(&*adaptive).is_none());
}

#[test]
fn an_adaptive_limit_begins_at_its_minimum() {
    let plugin = build("concurrency-limit", json!({"adaptive": {"min": 3, "max": 9}}));
    let mut clients: Vec<_> = std::iter::repeat_with(|| from("192.0.2.1")).take(4).collect();
    let passed: Vec<_> = clients.iter_mut().map(|client| client.meets(&*plugin).is_none()).collect();
    assert_eq!(passed, [true, true, true, false]);
}

#[test]
fn only_responses_that_tell_of_the_load_are_learned_from() {
    let second = Duration::from_secs(1);
    let table = [
        ("a response", 200, "", Some(1), 2, 0, Some(1)),
        ("an error of the client", 404, "", Some(1), 2, 0, Some(1)),
        ("a server error", 500, "", Some(1), 2, 0, None),
        ("an answer of the proxy or of a plugin", 200, "", None, 2, 0, None),
        ("an upgraded connection", 101, "", Some(1), 2, 0, None),
        ("a stream", 200, "", Some(1), 12, 0, None),
        ("a large request", 200, "", Some(1), 2, 65_537, None),
        ("a timeout", 504, "UT", None, 15, 0, Some(15)),
        ("a timeout after retries", 504, "UT,URX", None, 15, 0, Some(15)),
        ("no connection", 503, "UF", None, 2, 0, None),
    ];
    let (method, uri) = (Method::GET, Uri::from_static("/"));
    for (what, status, flags, upstream, duration, bytes_in, expected) in table {
        let mut record = LogRecord::new(&method, &uri);
        record.status = StatusCode::from_u16(status).unwrap();
        record.flags = flags;
        record.upstream_duration = upstream.map(|seconds: u32| second * seconds);
        record.duration = second * duration;
        record.bytes_in = bytes_in;
        assert_eq!(latency(&record), expected.map(|seconds: u32| second * seconds), "{what}");
    }
}

#[test]
fn what_is_wrong_is_told_by_field() {
    for (config, errors) in [
        (json!({}), "limit: is required, unless adaptive is given"),
        (json!({"limit": 1, "adaptive": {}}), "adaptive: cannot be combined with limit"),
        (json!({"limit": 1, "by": "header"}), "header: is required when by is header"),
        (json!({"limit": 1, "header": "x"}), "header: is only used when by is header"),
        (
            json!({"adaptive": {}, "by": "ip"}),
            "by: must be global, because an adaptive limit is one for all clients",
        ),
        (json!({"adaptive": {"min": 300}}), "adaptive.min: must not be greater than max"),
        (json!({"limit": 1, "retry_after": "10ms"}), "retry_after: must be from 1s to 1h"),
    ] {
        assert_eq!(refused("concurrency-limit", config.clone()), errors, "{config}");
    }
    for (config, field) in [
        (json!({"limit": 0}), "limit: "),
        (json!({"limit": 1_000_001}), "limit: "),
        (json!({"adaptive": {"max": 1_000_001}}), "adaptive.max: "),
        (json!({"adaptive": {"tolerance": 1.2}}), "adaptive.tolerance: "),
        (json!({"adaptive": {"queue": 0}}), "adaptive.queue: "),
    ] {
        let errors = refused("concurrency-limit", config.clone());
        assert!(errors.starts_with(field), "{config}: {errors}");
    }
}
