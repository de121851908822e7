use std::time::Duration;

use http::HeaderValue;
use serde_json::{Value, json};

use super::*;
use crate::testing::{Client as TestClient, build, build_as, build_in, consumers, refused};
use signalbox_plugin::States;

fn at(seconds: f64) -> TestClient {
    TestClient::new("GET", "/").at(Duration::from_secs(1000) + Duration::from_secs_f64(seconds))
}

/// How many of `clients` pass, one after another.
fn passing(plugin: &dyn Plugin, clients: impl IntoIterator<Item = TestClient>) -> usize {
    clients.into_iter().filter_map(|mut client| client.meets(plugin).is_none().then_some(())).count()
}

#[test]
fn the_limit_is_let_through_and_no_more_until_the_window_has_passed() {
    let plugin = build("rate-limit", json!({"limit": 3, "window": "10s"}));
    assert_eq!(passing(&*plugin, [0., 1., 2., 3., 9.999].map(at)), 3);
    assert_eq!(passing(&*plugin, [10., 10.5, 11., 12., 12.].map(at)), 3);
}

#[test]
fn answers_say_what_is_left() {
    let plugin = build("rate-limit", json!({"limit": 2, "window": "10s"}));
    let mut first = at(0.);
    assert!(first.meets(&*plugin).is_none());
    let headers = first.answer_headers(&[("ratelimit-limit", "the upstream's")]);
    for prefix in ["", "x-"] {
        let values =
            ["limit", "remaining", "reset"].map(|name| &headers[format!("{prefix}ratelimit-{name}")]);
        assert_eq!(values, ["2", "1", "10"]);
    }
    assert_eq!(headers.len(), 6);
    assert!(at(4.).meets(&*plugin).is_none());
    let mut third = at(6.5);
    let answer = third.meets(&*plugin).unwrap();
    assert_eq!((answer.status, &answer.headers["retry-after"]), (429, &HeaderValue::from_static("4")));
    let headers = third.answer_headers(&[]);
    assert_eq!(
        (&headers["ratelimit-remaining"], &headers["ratelimit-reset"]),
        (&"0".parse().unwrap(), &"8".parse().unwrap())
    );
    assert!(at(10.5).meets(&*plugin).is_none());
}

#[test]
fn the_headers_of_the_ietf_come_on_request_and_all_can_be_hidden() {
    let plugin = build("rate-limit", json!({"limit": 2, "window": "10s", "ietf_headers": true}));
    let mut client = at(0.);
    client.meets(&*plugin);
    let headers = client.answer_headers(&[]);
    assert_eq!(headers["ratelimit-policy"], "\"p\";q=2;w=10");
    assert_eq!(headers["ratelimit"], "\"p\";r=1;t=10");
    let mut second = at(4.);
    second.meets(&*plugin);
    // More will pass when the first request is a window ago.
    assert_eq!(second.answer_headers(&[])["ratelimit"], "\"p\";r=0;t=6");
    let mut third = at(4.5);
    let answer = third.meets(&*plugin).unwrap();
    assert_eq!(answer.headers["retry-after"], "6");
    assert_eq!(third.answer_headers(&[])["ratelimit"], "\"p\";r=0;t=6");

    let plugin =
        build("rate-limit", json!({"limit": 1, "hide_headers": true, "ietf_headers": true, "status": 503}));
    let mut client = at(0.);
    assert!(client.meets(&*plugin).is_none());
    let answer = client.meets(&*plugin).unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.headers.is_empty() && client.answer_headers(&[]).is_empty());
}

#[test]
fn two_limits_are_two_policies_and_the_tighter_one_is_told() {
    let states = States::default();
    let config = |limit: u32, window: &str| json!({"limit": limit, "window": window, "ietf_headers": true});
    let tight = build_as(&states, "tight", "rate-limit", &config(3, "1s"));
    let wide = build_as(&states, "wide", "rate-limit", &config(100, "1h"));
    for order in [[&tight, &wide], [&wide, &tight]] {
        let mut client = at(0.);
        for plugin in order {
            assert!(client.meets(&**plugin).is_none());
        }
        let headers = client.answer_headers(&[]);
        assert_eq!(headers["ratelimit-limit"], "3");
        for name in ["ratelimit", "ratelimit-policy"] {
            assert_eq!(headers.get_all(name).iter().count(), 2);
        }
    }
}

#[test]
fn a_window_shorter_than_a_second_is_told_as_one() {
    let plugin = build("rate-limit", json!({"limit": 2, "window": "1ms", "ietf_headers": true}));
    let mut client = at(0.);
    client.meets(&*plugin);
    let headers = client.answer_headers(&[]);
    assert_eq!(
        (&headers["ratelimit-policy"], &headers["ratelimit"]),
        (&HeaderValue::from_static("\"p\";q=2;w=1"), &HeaderValue::from_static("\"p\";r=1;t=1"))
    );
}

#[test]
fn a_token_bucket_fills_evenly_up_to_its_burst() {
    let plugin =
        build("rate-limit", json!({"limit": 10, "window": "10s", "burst": 3, "algorithm": "token-bucket"}));
    assert_eq!(passing(&*plugin, [0.; 5].map(at)), 3);
    let mut early = at(0.9);
    assert_eq!(early.meets(&*plugin).unwrap().headers["retry-after"], "1");
    assert_eq!(passing(&*plugin, [1., 1., 2., 2.5].map(at)), 2);
    assert_eq!(passing(&*plugin, [100.; 5].map(at)), 3);
    // Without a burst the bucket holds the limit.
    let plugin = build("rate-limit", json!({"limit": 10, "algorithm": "token-bucket"}));
    assert_eq!(passing(&*plugin, [0.; 20].map(at)), 10);
}

#[test]
fn a_leaky_bucket_wants_requests_evenly_spaced() {
    let plugin = build("rate-limit", json!({"limit": 10, "window": "10s", "algorithm": "leaky-bucket"}));
    assert_eq!(passing(&*plugin, [0., 0.5, 1., 1.9, 2., 2., 3.].map(at)), 4);
    let plugin =
        build("rate-limit", json!({"limit": 10, "window": "10s", "algorithm": "leaky-bucket", "burst": 2}));
    assert_eq!(passing(&*plugin, [0., 0., 0., 1., 1.].map(at)), 3);
}

#[test]
fn time_that_goes_back_neither_frees_nor_blocks() {
    for algorithm in ["sliding-window", "token-bucket"] {
        let plugin = build("rate-limit", json!({"limit": 2, "window": "10s", "algorithm": algorithm}));
        assert_eq!(passing(&*plugin, [5., 0., 4.9, 0., 5.].map(at)), 2, "{algorithm}");
        assert_eq!(passing(&*plugin, [15., 14., 5., 15.].map(at)), 2, "{algorithm}");
    }
}

/// Checks that two requests count as one client's exactly if `expected` is true.
#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "configurations are written in place")]
fn one_client(config: Value, mut one: TestClient, mut other: TestClient, expected: bool) {
    let plugin = build("rate-limit", config.clone());
    assert!(one.meets(&*plugin).is_none());
    assert_eq!(other.meets(&*plugin).is_some(), expected, "{config}");
}

#[test]
fn clients_are_told_apart_as_configured() {
    let get = |uri: &str| TestClient::new("GET", uri);
    let by = |by: &str| json!({"limit": 1, "by": by});
    let from = |address: &str| get("/").from(address);
    one_client(by("ip"), from("192.0.2.1"), from("192.0.2.2"), false);
    one_client(by("ip"), from("192.0.2.1"), from("192.0.2.1"), true);
    one_client(by("ip"), from("192.0.2.1"), from("::ffff:192.0.2.1"), true);
    one_client(by("ip"), from("2001:db8:0:1::1"), from("2001:db8:0:1:ffff::2"), true);
    one_client(by("ip"), from("2001:db8:0:1::1"), from("2001:db8:0:2::1"), false);
    one_client(by("global"), from("192.0.2.1"), from("2001:db8::1"), true);
    one_client(by("path"), get("/a?x"), get("/a?y"), true);
    one_client(by("path"), get("/a"), get("/b"), false);
    let header = || json!({"limit": 1, "by": "header", "header": "X-User"});
    one_client(header(), get("/").header("x-user", "a"), get("/").header("x-user", "b"), false);
    one_client(
        header(),
        from("192.0.2.1").header("x-user", "a"),
        from("192.0.2.2").header("x-user", "a"),
        true,
    );
    one_client(header(), from("192.0.2.1"), from("192.0.2.1"), true);
    one_client(header(), from("192.0.2.1"), from("192.0.2.2"), false);
}

#[test]
fn consumers_and_their_credentials_are_told_apart_and_strangers_by_address() {
    let known = consumers(&[("alice", &["k1", "k2"]), ("bob", &["k3"])]);
    let auth = build("key-auth", json!({"anonymous": "bob"}));
    let with = |key: &str, address: &str| {
        let mut client = TestClient::new("GET", "/").header("apikey", key).from(address).knowing(&known);
        client.meets(&*auth);
        client
    };
    let by = |by: &str| json!({"limit": 1, "by": by});
    one_client(by("consumer"), with("k1", "192.0.2.1"), with("k2", "192.0.2.2"), true);
    one_client(by("consumer"), with("k1", "192.0.2.1"), with("k3", "192.0.2.1"), false);
    one_client(by("consumer"), with("wrong", "192.0.2.1"), with("k3", "192.0.2.1"), true);
    one_client(by("credential"), with("k1", "192.0.2.1"), with("k2", "192.0.2.1"), false);
    one_client(by("credential"), with("k1", "192.0.2.1"), with("k1", "192.0.2.2"), true);
    one_client(by("credential"), with("wrong", "192.0.2.1"), with("wrong", "192.0.2.2"), false);
    let stranger = |address: &str| TestClient::new("GET", "/").from(address);
    one_client(by("consumer"), stranger("192.0.2.1"), stranger("192.0.2.1"), true);
    one_client(by("consumer"), stranger("192.0.2.1"), stranger("192.0.2.2"), false);
}

#[test]
fn a_changed_limit_keeps_the_counts_and_a_changed_window_does_not() {
    for algorithm in ["sliding-window", "token-bucket"] {
        let states = States::default();
        let config =
            |limit: u32, window: &str| json!({"limit": limit, "window": window, "algorithm": algorithm});
        let before = build_in(&states, "rate-limit", config(5, "10s"));
        assert_eq!(passing(&*before, [0.; 4].map(at)), 4);
        let raised = build_in(&states, "rate-limit", config(200, "10s"));
        assert_eq!(passing(&*raised, std::iter::repeat_with(|| at(0.)).take(300)), 196, "{algorithm}");
        let lowered = build_in(&states, "rate-limit", config(3, "10s"));
        assert_eq!(passing(&*lowered, [0., 5.].map(at)), 0, "{algorithm}");
        let other = build_in(&states, "rate-limit", config(3, "20s"));
        assert_eq!(passing(&*other, [0.; 5].map(at)), 3, "{algorithm}");
    }
}

#[test]
fn a_client_waits_as_long_as_told_after_the_limit_was_lowered() {
    let states = States::default();
    let before = build_in(&states, "rate-limit", json!({"limit": 4, "window": "10s"}));
    assert_eq!(passing(&*before, [0., 1., 2., 3.].map(at)), 4);
    let lowered = build_in(&states, "rate-limit", json!({"limit": 2, "window": "10s"}));
    let answer = at(4.).meets(&*lowered).unwrap();
    assert_eq!(answer.headers["retry-after"], "8");
    assert_eq!(passing(&*lowered, [11.9, 12.].map(at)), 1);
}

#[test]
fn workers_together_let_through_exactly_the_limit() {
    for (config, expected) in [
        (json!({"limit": 1000, "window": "1h", "by": "ip"}), 1000),
        (json!({"limit": 50, "window": "1h", "by": "ip"}), 50),
        (json!({"limit": 1000, "window": "365d", "by": "ip", "algorithm": "token-bucket"}), 1000),
        (json!({"limit": 10, "window": "365d", "burst": 77, "by": "ip", "algorithm": "leaky-bucket"}), 77),
    ] {
        let plugin = build("rate-limit", config.clone());
        let allowed: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4_u64)
                .map(|worker| {
                    let plugin = &plugin;
                    scope.spawn(move || {
                        // Clocks that disagree, and go to and fro.
                        let now =
                            |i: u64| Duration::from_micros(1_000_000 + (i * 7919 + worker * 104_729) % 5000);
                        passing(&**plugin, (0..2000).map(|i| TestClient::new("GET", "/").at(now(i))))
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(allowed, expected, "{config}");
    }
}

#[test]
fn a_crowd_of_clients_frees_nobody_and_is_forgotten_later() {
    let plugin = build("rate-limit", json!({"limit": 1, "window": "1m", "by": "path"}));
    let path = |i: u32, at: u64| TestClient::new("GET", &format!("/{i}")).at(Duration::from_secs(at));
    assert_eq!(passing(&*plugin, [path(0, 1)]), 1);
    let crowd = passing(&*plugin, (1..100_000).map(|i| path(i, 2)));
    // Each of 64 groups has room for 1024, and one more request for those who share.
    assert_eq!(crowd, 64 * 1025 - 1);
    assert_eq!(passing(&*plugin, [path(0, 3)]), 0);
    assert_eq!(passing(&*plugin, (200_000..200_100).map(|i| path(i, 100))), 100);
}

#[test]
fn bad_configurations_are_refused_with_all_that_is_wrong() {
    let all = refused(
        "rate-limit",
        json!({"limit": 0, "window": "0s", "burst": 5, "by": "header", "store": "redis", "status": 200}),
    );
    for expected in ["limit: must be at least 1", "status: must be at least 400"] {
        assert!(all.contains(expected), "{expected} in {all}");
    }
    let all = refused(
        "rate-limit",
        json!({"limit": 1, "window": "0s", "burst": 5, "by": "header", "store": "redis"}),
    );
    for expected in [
        "window: must be at least 1ms",
        "burst: needs algorithm",
        "header: is required",
        "redis: is required when the store is in Redis",
    ] {
        assert!(all.contains(expected), "{expected} in {all}");
    }
    let store = |fields: Value| {
        let mut config = json!({"limit": 1});
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        refused("rate-limit", config)
    };
    let redis = json!({"addresses": ["redis:6379"]});
    assert!(store(json!({"redis": redis})).starts_with("redis: is only used"));
    assert!(store(json!({"store": "redis", "redis": redis, "lease": 1})).starts_with("lease: is only used"));
    let literal = json!({"addresses": ["redis:6379"], "password": "in the clear"});
    assert!(
        store(json!({"store": "redis", "redis": literal})).starts_with("redis.password: must be a reference")
    );
    let slow = json!({"limit": 1, "window": "365d", "burst": 101, "algorithm": "token-bucket", "store": "redis", "redis": redis});
    assert!(refused("rate-limit", slow).starts_with("window: "));
    assert_eq!(refused("rate-limit", json!({})), "limit: is required");
    assert!(refused("rate-limit", json!({"limit": 1, "header": "x"})).starts_with("header: is only"));
    assert!(
        refused("rate-limit", json!({"limit": 1, "by": "header", "header": "a b"})).starts_with("header: ")
    );
    assert!(refused("rate-limit", json!({"limit": 2_000_000_000})).contains("at most 1000000000"));
}
