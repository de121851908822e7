use std::time::Duration;

use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};
use signalbox_plugin::States;
use signalbox_plugin::testing::{Services, build_type};

use super::*;
use crate::builtin;
use crate::limit::Client;
use crate::testing::{Client as TestClient, build, name, refused};

/// A plugin and the clock that it sees.
fn with_clock(config: Value) -> (Arc<dyn Plugin>, Services) {
    let services = Services::default();
    let plugin_type = builtin().find("token-limit").unwrap();
    let plugin = build_type(plugin_type, &services, &States::default(), config);
    (plugin, services)
}

/// The number of tokens that are left after a request, which is told to its client.
fn left(plugin: &dyn Plugin) -> (Option<u16>, String) {
    let mut client = TestClient::new("POST", "/");
    let status = client.meets(plugin).map(|answer| answer.status);
    (status, client.answer_headers(&[])["ratelimit-remaining"].to_str().unwrap().to_owned())
}

/// Sends a request that is answered with this.
fn ask(plugin: &dyn Plugin, origin: Origin, content_type: &str, body: &str) {
    let mut client = TestClient::new("POST", "/").header("accept-encoding", "gzip");
    assert!(client.meets(plugin).is_none());
    assert_eq!(client.head.headers["accept-encoding"], "identity");
    let response = Response::builder().header("content-type", content_type);
    let received =
        client.receives(plugin, origin, response.body(Bytes::copy_from_slice(body.as_bytes())).unwrap());
    assert_eq!(received.body(), body);
    client.ends(plugin, 200);
}

const JSON: &str =
    r#"{"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 50, "total_tokens": 80}}"#;
const EVENTS: &str = "data: {\"choices\": []}\n\n\
    data: {\"usage\": {\"prompt_tokens\": 30, \"completion_tokens\": 50, \"total_tokens\": 80}}\n\n\
    data: [DONE]\n\n";

#[test]
fn an_estimate_is_replaced_by_what_the_response_says() {
    let json_type = "application/json; charset=utf-8";
    let table = [
        (json!({}), json_type, JSON, 80),
        (json!({"count": "prompt"}), json_type, JSON, 30),
        (json!({"count": "completion"}), json_type, JSON, 50),
        (json!({}), "text/event-stream", EVENTS, 80),
        (json!({"count": "prompt"}), "text/event-stream", EVENTS, 30),
        (json!({}), json_type, r#"{"usage": {"input_tokens": 7, "output_tokens": 5}}"#, 12),
        // More than the estimate, as much, and none.
        (json!({}), json_type, r#"{"usage": {"total_tokens": 700}}"#, 700),
        (json!({}), json_type, r#"{"usage": {"total_tokens": 100}}"#, 100),
        (json!({}), json_type, r#"{"usage": {"total_tokens": 0}}"#, 0),
        // A number that is not told stays estimated.
        (json!({}), json_type, r#"{"error": "no"}"#, 100),
        (json!({"count": "prompt"}), json_type, r#"{"usage": {"total_tokens": 700}}"#, 100),
        (json!({}), "text/plain", JSON, 100),
    ];
    for (mut config, content_type, body, counted) in table {
        config["limit"] = json!(1000);
        config["estimate"] = json!(100);
        let plugin = build("token-limit", config.clone());
        ask(&*plugin, Origin::Upstream, content_type, body);
        assert_eq!(left(&*plugin), (None, (1000_i32 - counted - 100).to_string()), "{config} {body}");
    }
    let plugin = build("token-limit", json!({"limit": 1000, "estimate": 100}));
    ask(&*plugin, Origin::Plugin, json_type, JSON);
    assert_eq!(left(&*plugin), (None, "800".to_owned()), "a response of a plugin is not one of the model");
}

#[test]
fn who_has_used_too_much_waits_until_it_is_a_window_ago() {
    let (plugin, services) = with_clock(json!({"limit": 60, "window": "10s", "estimate": 20}));
    ask(&*plugin, Origin::Upstream, "application/json", JSON);
    let mut client = TestClient::new("POST", "/");
    let answer = client.meets(&*plugin).unwrap();
    assert_eq!((answer.status, &*answer.detail), (429, "too many tokens"));
    assert_eq!(answer.headers["retry-after"], "10");
    assert_eq!(client.answer_headers(&[])["ratelimit-limit"], "60");
    services.clock.advance(Duration::from_secs(9));
    assert_eq!(left(&*plugin), (Some(429), "0".to_owned()));
    services.clock.advance(Duration::from_secs(1));
    assert_eq!(left(&*plugin), (None, "40".to_owned()));
}

#[test]
fn a_number_beyond_all_bounds_blocks_for_a_window_and_does_no_other_harm() {
    let (plugin, services) = with_clock(json!({"limit": 1000, "window": "10s"}));
    let body = format!("{{\"usage\": {{\"total_tokens\": {}}}}}", "9".repeat(60));
    ask(&*plugin, Origin::Upstream, "application/json", &body);
    assert_eq!(left(&*plugin), (Some(429), "0".to_owned()));
    services.clock.advance(Duration::from_secs(11));
    assert_eq!(left(&*plugin), (None, "500".to_owned()));
}

#[test]
fn what_a_response_said_before_it_broke_off_counts() {
    let (services, states) = (Services::default(), States::default());
    let config = serde_json::from_value(json!({"limit": 1000, "estimate": 100})).unwrap();
    let plugin = TokenLimit::build(config, &services.context(&name("p"), &states)).unwrap();
    let account = &plugin.account;
    for (part, expected) in [(EVENTS, 820), ("data: {\"choices\": []}\n\n", 620)] {
        let client = account.counters.id(&Client::Texts([b"alice", b""]));
        let verdict = account.counters.take(client, account.now(), &account.budget, account.estimate);
        let debit = Debit { client: Debtor::Local(client), counted_at: verdict.counted_at };
        let mut reader =
            Reader { scanner: UsageScanner::new(), account: account.clone(), debit: Some(debit) };
        let mut out = Output::default();
        reader.on_data(Bytes::from_static(part.as_bytes()), &mut out).unwrap();
        assert_eq!(out.take().collect::<Vec<_>>(), [part.as_bytes()], "it is sent on at once");
        drop(reader);
        let left = account.counters.take(client, account.now(), &account.budget, account.estimate).remaining;
        assert_eq!(left, expected);
    }
}

#[test]
fn what_is_wrong_is_told_by_field() {
    for (config, errors) in [
        (json!({"limit": 10, "estimate": 11}), "estimate: must not be greater than limit"),
        (json!({"limit": 10, "window": "0s"}), "window: must be at least 1ms"),
        (json!({"limit": 10, "by": "header"}), "header: is required when by is header"),
        (json!({"limit": 10, "store": "redis"}), "redis: is required when the store is in Redis"),
        (json!({"limit": 10, "redis": {"addresses": ["a:1"]}}), "redis: is only used by store redis"),
    ] {
        assert_eq!(refused("token-limit", config.clone()), errors, "{config}");
    }
    for (config, field) in [(json!({}), "limit: "), (json!({"limit": 1, "count": "all"}), "count: ")] {
        let errors = refused("token-limit", config.clone());
        assert!(errors.starts_with(field), "{config}: {errors}");
    }
}
