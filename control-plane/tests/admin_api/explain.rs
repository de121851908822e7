//! Explaining what a request would meet.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Admin, expect};

#[tokio::test]
async fn explain_names_the_winner_the_losers_and_the_chain() {
    let admin = Admin::with_route().await;
    let document = json!({
        "upstreams": [{"name": "v", "targets": [{"address": "[::1]:81", "weight": 1}, {"address": "b:82", "weight": 3}]}],
        "plugins": [
            {"name": "everywhere", "type": "cors", "global": true, "config": {"origins": ["https://a.example"]}},
            {"name": "own", "type": "cors", "config": {"origins": ["https://b.example"]}},
            {"name": "keys", "type": "key-auth", "config": {}},
        ],
        "routes": [
            {
                "name": "special", "match": {"hosts": ["a.example.com"], "paths": [{"prefix": "/x"}]},
                "plugins": ["own", "keys"],
                "forward": {"upstreams": [{"name": "u", "weight": 1}, {"name": "v", "weight": 3}]},
            },
        ],
    });
    expect(&admin.post("/apply", document).await, 200);
    let answer =
        admin.post("/explain", json!({"method": "GET", "url": "http://A.example.com:80/x/y?q=1"})).await;
    expect(&answer, 200);
    let body = &answer.body;
    assert_eq!(
        (&body["winner"]["route"], &body["action"]),
        (&json!("special"), &json!("forward")),
        "{body:#}"
    );
    assert_eq!(body["losers"][0]["route"], "r", "{body:#}");
    assert_eq!(body["losers"][0]["lost_by"], "path_rank", "{body:#}");
    let chain: Vec<(&Value, bool)> = body["plugins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| (&step["name"], step["skipped"].is_null()))
        .collect();
    assert_eq!(
        chain,
        [(&json!("everywhere"), false), (&json!("own"), true), (&json!("keys"), true)],
        "{body:#}"
    );
    assert_eq!((&body["upstreams"][1]["name"], &body["upstreams"][1]["share"]), (&json!("v"), &json!(0.75)));
    assert_eq!(body["upstreams"][1]["targets"][0], json!({"address": "[::1]:81", "share": 0.25}));

    let before = admin.post("/explain", json!({"url": "http://a.example.com/x/y", "revision": 2})).await;
    assert_eq!(
        (&before.body["winner"]["route"], &before.body["revision"]),
        (&json!("r"), &json!(2)),
        "{before}"
    );
    let nothing = admin.post("/explain", json!({"url": "/", "headers": {"host": "other.example"}})).await;
    assert_eq!((&nothing.body["winner"], &nothing.body["action"]), (&Value::Null, &Value::Null), "{nothing}");
    let wrong =
        admin.post("/explain", json!({"url": "http://[", "method": "a b", "headers": {"a b": "c"}})).await;
    expect(&wrong, 422);
    let fields: BTreeSet<&str> = wrong.fields().into_iter().collect();
    assert_eq!(fields, BTreeSet::from(["headers.a b", "method", "url"]));
    expect(&admin.post("/explain", json!({"url": "/", "revision": 99})).await, 404);
}

#[tokio::test]
async fn explain_says_which_plugin_answers_a_preflight() {
    let admin = Admin::start().await;
    let document = json!({
        "plugins": [
            {"name": "everywhere", "type": "cors", "config": {}},
            {"name": "own", "type": "cors", "config": {"origins": ["https://b.example"]}},
            {"name": "off", "type": "cors", "enabled": false, "config": {}},
        ],
        "routes": [
            {"name": "all", "match": {"paths": [{"prefix": "/a"}]}, "respond": {"body": "x"}},
            {"name": "post", "match": {"paths": [{"prefix": "/a"}], "methods": ["POST"]}, "plugins": ["own"], "respond": {"body": "x"}},
            {"name": "put", "match": {"paths": [{"prefix": "/a"}], "methods": ["PUT"]}, "plugins": ["off"], "respond": {"body": "x"}},
        ],
    });
    expect(&admin.post("/apply", document).await, 200);
    let explain = async |path: &str, asked: &str| {
        let headers = json!({"origin": "https://b.example", "access-control-request-method": asked});
        let question = json!({"method": "OPTIONS", "url": format!("http://h{path}"), "headers": headers});
        let answer = admin.post("/explain", question).await;
        expect(&answer, 200);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        (text(&answer.body["winner"]["route"]), text(&answer.body["preflight_answered_by"]))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(explain("/a", "POST").await, (some("post"), some("own")));
    assert_eq!(explain("/a", "GET").await, (some("all"), None));
    assert_eq!(explain("/a", "PUT").await, (some("all"), None));
    assert_eq!(explain("/b", "PUT").await, (None, None));
    let global = json!({"plugins": [{"name": "everywhere", "type": "cors", "global": true, "config": {}}]});
    expect(&admin.post("/apply", global).await, 200);
    assert_eq!(explain("/b", "PUT").await, (None, some("everywhere")));
    assert_eq!(explain("/a", "PUT").await, (some("put"), some("everywhere")));
    assert_eq!(explain("/a", "POST").await, (some("post"), some("own")));
}

#[tokio::test]
async fn plugins_of_upstreams_and_listeners_are_explained_as_proxies_run_them() {
    let admin = Admin::start().await;
    let limit = |name: &str, global: bool| json!({"name": name, "type": "rate-limit", "global": global, "config": {"limit": 1}});
    let document = json!({
        "plugins": [
            limit("everywhere", true),
            limit("by-listener", false),
            limit("to-upstream", false),
            {"name": "key", "type": "key-auth"},
        ],
        "listeners": [{"name": "http", "address": "0.0.0.0:8080", "plugins": ["by-listener", "key"]}],
        "upstreams": [
            {"name": "a", "targets": [{"address": "127.0.0.1:1"}], "plugins": ["to-upstream"]},
            {"name": "b", "targets": [{"address": "127.0.0.1:1"}]},
        ],
        "routes": [
            {"name": "one", "match": {"paths": [{"prefix": "/one"}]}, "forward": {"upstreams": [{"name": "a"}]}},
            {"name": "two", "match": {"paths": [{"prefix": "/two"}]},
             "forward": {"upstreams": [{"name": "a"}, {"name": "b"}]}},
        ],
    });
    expect(&admin.post("/apply", document).await, 200);
    let chain = async |path: &str| {
        let answer = admin.post("/explain", json!({"url": path, "headers": {"host": "x"}})).await;
        let steps = answer.body["plugins"].as_array().unwrap().clone();
        let text = |step: &Value| {
            let skipped = step["skipped"].as_str().map_or(String::new(), |reason| format!(" ({reason})"));
            let only = step["upstreams"].as_array().map_or(String::new(), |names| format!(" for {names:?}"));
            format!(
                "{} by {}{only}{skipped}",
                step["name"].as_str().unwrap(),
                step["attached"].as_str().unwrap()
            )
        };
        steps.iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(
        chain("/one").await,
        [
            "key by listener",
            "by-listener by listener (the upstream's own to-upstream goes first)",
            "everywhere by global (the upstream's own to-upstream goes first)",
            "to-upstream by upstream",
        ]
    );
    assert_eq!(
        chain("/two").await,
        [
            "key by listener",
            "by-listener by listener for [String(\"b\")]",
            "everywhere by global (the upstream's own to-upstream goes first)",
            "to-upstream by upstream for [String(\"a\")]",
        ]
    );
    let kept = admin.call(Method::DELETE, "/plugins/to-upstream", None).await;
    expect(&kept, 409);
    assert!(kept.to_string().contains("upstream/a"), "{kept}");
}

#[tokio::test]
async fn explain_evaluates_the_conditions_of_plugins() {
    let admin = Admin::with_route().await;
    let limit = json!({"limit": 1, "window": "1h"});
    let plugin =
        |name: &str, type_name: &str, when: &str| json!({"name": name, "type": type_name, "when": when});
    let of_limit = |name: &str, when: &str| {
        let mut plugin = plugin(name, "rate-limit", when);
        plugin["config"] = limit.clone();
        plugin
    };
    let mut tried = of_limit("f-shadow", "true");
    tried["shadow"] = json!(true);
    let mark = json!({"add": {"headers": {"x-a": "b"}}});
    let mut transform = plugin("b-transform", "request-transform", "request.headers['x-none'] == 'a'");
    transform["config"] = mark;
    let document = json!({
        "plugins": [
            of_limit("a-met", "request.path.startsWith('/x/') && request.host == 'b.example.com'"),
            transform,
            of_limit("c-unmet", "request.method == 'POST' || request.scheme == 'https'"),
            of_limit("d-error", "request.headers['x-none'] == 'a'"),
            of_limit("e-unknown", "'vip' in consumer.groups || request.method == 'POST'"),
            tried,
        ],
        "routes": [{
            "name": "conditional", "match": {"hosts": ["b.example.com"], "paths": [{"prefix": "/x"}]},
            "plugins": ["a-met", "b-transform", "c-unmet", "d-error", "e-unknown", "f-shadow"],
            "respond": {"body": "hello"},
        }],
    });
    expect(&admin.post("/apply", document).await, 200);
    let answer = admin.post("/explain", json!({"url": "http://b.example.com/x/y"})).await;
    expect(&answer, 200);
    let step = |name: &str| {
        let steps = answer.body["plugins"].as_array().unwrap();
        steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("no {name} in {answer}"))
    };
    for (name, outcome, reason, runs) in [
        ("a-met", "met", Value::Null, true),
        ("b-transform", "error", json!("the request has no header x-none"), false),
        ("c-unmet", "unmet", Value::Null, false),
        ("d-error", "error", json!("the request has no header x-none"), true),
        ("e-unknown", "unknown", json!("consumer is not known"), true),
        ("f-shadow", "met", Value::Null, true),
    ] {
        let (condition, skipped) = (&step(name)["condition"], &step(name)["skipped"]);
        assert_eq!((&condition["outcome"], &condition["reason"]), (&json!(outcome), &reason), "{name}");
        assert_eq!(skipped.is_null(), runs, "{name}: {skipped}");
        assert_eq!(step(name)["shadow"], name == "f-shadow");
    }
    assert_eq!(
        step("b-transform")["skipped"],
        "its condition cannot be evaluated: the request has no header x-none"
    );

    let wrong = json!({"type": "rate-limit", "config": limit, "when": "request.path == 1"});
    let refused = admin.put("/plugins/wrong", wrong).await;
    expect(&refused, 422);
    let errors = &refused.body["errors"];
    assert_eq!(errors[0]["field"], "when", "{refused}");
    let message = "column 14: both sides of a comparison must have one type; they are string and int";
    assert_eq!(errors[0]["message"], message);
    let wrong = json!({"type": "cors", "config": {"origins": ["*"]}, "when": null, "shadow": true});
    let refused = admin.put("/plugins/wrong", wrong).await;
    expect(&refused, 422);
    let fields: BTreeSet<_> = refused.body["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["field"].as_str().unwrap())
        .collect();
    assert_eq!(fields, BTreeSet::from(["shadow", "when"]), "{refused}");
}
