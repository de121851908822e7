//! Plugins that run under a condition (`when`), and those that run without effect (`shadow`).

use http::Request;
use signalbox_proxy::telemetry::access_log;

use crate::harness::{Answer, Backend, Client, Harness, Wire, block_on, full};
use crate::telling::lines;

/// Sends `GET path` with these headers, a header line each.
async fn ask(harness: &Harness, wire: Wire, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Client::speaking(wire, harness.address()).await.send(request.body(full("")).unwrap()).await
}

/// Routes `/NAME` with the plugin NAME, which answer by themselves.
fn document(plugins: &[(&str, &str)], more: &str) -> String {
    let list: String = plugins.iter().map(|(name, rest)| format!("- {{name: {name}, {rest}}}\n")).collect();
    let routes: String = plugins
        .iter()
        .map(|(name, _)| {
            format!("- {{name: {name}, match: {{paths: [{{prefix: /{name}}}]}}, plugins: [{name}], respond: {{body: hello}}}}\n")
        })
        .collect();
    format!("plugins:\n{list}routes:\n{routes}{more}")
}

const CONSUMERS: &str = "
consumers:
- {name: alice, groups: [vip], credentials: [{key_auth: {key: alices-secret-key}}]}
- {name: bob, credentials: [{key_auth: {key: bobs-secret-key}}]}
";

fn outcome(harness: &Harness, plugin: &str, outcome: &str) -> u64 {
    harness.proxy.counted(|_, compiled, _, _| {
        let stats = compiled.plugin_stats().find(|stats| stats.name.as_str() == plugin).unwrap();
        stats.outcomes.read().find(|(name, _)| *name == outcome).unwrap().1
    })
}

/// True if a rate limit saw the request.
fn is_limited(answer: &Answer) -> bool {
    answer.headers.contains_key("ratelimit-limit")
}

#[test]
fn a_condition_decides_by_method_path_query_and_address() {
    let limit = |when: &str| format!("type: rate-limit, config: {{limit: 1000, window: 1h}}, when: '{when}'");
    block_on(async {
        let harness = Harness::start(&document(
            &[
                ("post", &limit(r#"request.method == "POST""#)),
                ("deep", &limit(r#"request.path.matches("^/deep/[0-9]+$")"#)),
                ("page", &limit(r#"request.query["page"] == "a b""#)),
                ("net", &limit(r#"inCidr(client.ip, "127.0.0.0/8") && request.scheme == "http""#)),
                (
                    "host",
                    &limit(
                        r#"request.host == "test.example" && route.name == "host" && listener.name == "http""#,
                    ),
                ),
                ("old", &limit(r#"time < timestamp("2020-01-01T00:00:00Z")"#)),
                ("size", &limit("request.size == 0")),
            ],
            "",
        ));
        for wire in Wire::BOTH {
            for (path, expected) in [
                ("/post", false),
                ("/deep/12", true),
                ("/deep/x", false),
                ("/page?page=a+b", true),
                ("/page?page=a", false),
                ("/net", true),
                ("/host", true),
                ("/old", false),
                ("/size", true),
            ] {
                let answer = ask(&harness, wire, path, &[]).await;
                assert_eq!((answer.status, is_limited(&answer)), (200, expected), "{wire:?} {path}");
            }
            let mut client = Client::speaking(wire, harness.address()).await;
            let answer = client.send(Request::post("/post").body(full("body")).unwrap()).await;
            assert!(is_limited(&answer), "{wire:?}");
            let answer = client.send(Request::post("/size").body(full("body")).unwrap()).await;
            assert!(!is_limited(&answer), "{wire:?}");
        }
    });
}

#[test]
fn an_authentication_runs_when_its_condition_has_an_error() {
    let keys = r#"type: key-auth, when: 'request.headers["x-internal"] != "1"'"#;
    block_on(async {
        let harness = Harness::start(&document(&[("keys", keys)], CONSUMERS));
        for wire in Wire::BOTH {
            let status = async |headers: &[(&str, &str)]| ask(&harness, wire, "/keys", headers).await.status;
            assert_eq!(status(&[("x-internal", "1")]).await, 200);
            assert_eq!(status(&[("x-internal", "2")]).await, 401);
            let before = outcome(&harness, "keys", "condition_error");
            assert_eq!(status(&[]).await, 401, "there is no header to compare");
            assert_eq!(status(&[("x-internal", "1"), ("x-internal", "1")]).await, 401, "it is there twice");
            assert_eq!(status(&[("x-internal", "1"), ("x-internal", "2")]).await, 401);
            assert_eq!(status(&[("x-internal", "2"), ("x-internal", "1")]).await, 401);
            assert_eq!(outcome(&harness, "keys", "condition_error"), before + 4);
            assert_eq!(status(&[("apikey", "bobs-secret-key")]).await, 200);
        }
    });
}

#[test]
fn a_change_of_the_request_is_left_out_when_its_condition_has_an_error() {
    let plugins = "
plugins:
- name: mark
  type: request-transform
  when: request.headers['x-role'] == 'tester'
  config: {add: {headers: {x-marked: 'yes'}}}
";
    block_on(async {
        let backend = Backend::start(async |request| {
            let marked = request.headers().contains_key("x-marked");
            http::Response::new(full(if marked { "marked" } else { "plain" }))
        });
        let harness = Harness::start(&format!(
            "{plugins}
upstreams: [{{name: u, targets: [{{address: '{}'}}]}}]
routes: [{{name: r, match: {{paths: [{{prefix: /}}]}}, plugins: [mark], forward: {{upstreams: [{{name: u}}]}}}}]
",
            backend.address
        ));
        for (headers, expected) in [
            (&[("x-role", "tester")][..], "marked"),
            (&[("x-role", "user")], "plain"),
            (&[], "plain"),
            (&[("x-role", "tester"), ("x-role", "tester")], "plain"),
        ] {
            assert_eq!(ask(&harness, Wire::Http1, "/", headers).await.text(), expected, "{headers:?}");
        }
    });
}

#[test]
fn a_condition_on_the_consumer_sees_who_was_authenticated_before() {
    let more = r#"
- {name: both, match: {paths: [{prefix: /both}]}, plugins: [keys, limit], respond: {body: hello}}
- {name: before, match: {paths: [{prefix: /before}]}, plugins: [keys, early], respond: {body: hello}}
"#;
    let plugins = [
        ("keys", "type: key-auth"),
        (
            "limit",
            r#"type: rate-limit, config: {limit: 1000, window: 1h}, when: '!("vip" in consumer.groups)'"#,
        ),
        (
            "early",
            r#"type: rate-limit, order: 5000, config: {limit: 1000, window: 1h}, when: 'has(consumer.name) && consumer.name == "alice"'"#,
        ),
    ];
    block_on(async {
        let harness = Harness::start(&document(&plugins, &format!("{more}{CONSUMERS}")));
        let limited = async |path: &str, key: &str| {
            let headers: &[(&str, &str)] = if key.is_empty() { &[] } else { &[("apikey", key)] };
            is_limited(&ask(&harness, Wire::Http1, path, headers).await)
        };
        assert!(!limited("/both", "alices-secret-key").await, "alice is in the group");
        assert!(limited("/both", "bobs-secret-key").await);
        assert!(limited("/limit", "alices-secret-key").await, "nobody is authenticated, so the limit runs");
        assert!(!limited("/before", "alices-secret-key").await, "the consumer is not known yet");
    });
}

#[test]
fn no_hook_is_called_of_a_plugin_whose_condition_is_not_met() {
    let cors = r#"type: cors, config: {origins: ["https://app.example"]}, when: '!request.path.endsWith("/closed")'"#;
    block_on(async {
        let harness = Harness::start(&document(&[("open", cors)], ""));
        let origin = [("origin", "https://app.example")];
        let is_open = |answer: &Answer| answer.headers.contains_key("access-control-allow-origin");
        assert!(is_open(&ask(&harness, Wire::Http1, "/open/x", &origin).await));
        assert!(!is_open(&ask(&harness, Wire::Http1, "/open/closed", &origin).await));
        // A request that is refused before the plugin's turn.
        let refused = [("origin", "https://app.example"), ("expect", "nonsense")];
        let (one, other) = (
            ask(&harness, Wire::Http1, "/open/x", &refused).await,
            ask(&harness, Wire::Http1, "/open/closed", &refused).await,
        );
        assert!(one.status == other.status && !is_open(&other), "{one:?} {other:?}");
        let preflight = |path: &str| {
            Request::options(path)
                .header("origin", "https://app.example")
                .header("access-control-request-method", "GET")
                .body(full(""))
                .unwrap()
        };
        let mut client = Client::connect(harness.address()).await;
        let answered = client.send(preflight("/open/x")).await;
        assert!(answered.status == 204 && is_open(&answered), "{answered:?}");
        let unanswered = client.send(preflight("/open/closed")).await;
        assert!(unanswered.status == 200 && !is_open(&unanswered), "the route answers: {unanswered:?}");
    });
}

#[test]
fn a_plugin_in_shadow_is_counted_and_logged_and_does_nothing() {
    let more = "
- {name: all, match: {paths: [{prefix: /all}]}, plugins: [keys, strict, real], respond: {body: hello}}
";
    let plugins = [
        ("keys", "type: key-auth, shadow: true, config: {hide_credentials: true}"),
        ("strict", "type: rate-limit, shadow: true, config: {limit: 1, window: 1h, by: global}"),
        ("real", "type: rate-limit, config: {limit: 1000, window: 1h, by: global}"),
    ];
    block_on(async {
        let (sender, receiver) = access_log::channel(100);
        let harness = Harness::with_log(&document(&plugins, &format!("{more}{CONSUMERS}")), Some(sender));
        let mut client = Client::connect(harness.address()).await;
        for left in [999, 998] {
            let answer = client.get("/all").await;
            assert_eq!((answer.status, answer.text()), (200, "hello"));
            assert_eq!(answer.headers["ratelimit-limit"], "1000", "the limit in force stays in force");
            assert_eq!(answer.headers["ratelimit-remaining"], left.to_string().as_str());
            assert!(!answer.headers.contains_key("www-authenticate"));
        }
        let known = Request::get("/keys").header("apikey", "bobs-secret-key").body(full("")).unwrap();
        assert_eq!(client.send(known).await.status, 200);
        let lines = lines(&receiver, 3).await;
        let shadow: Vec<_> = lines.iter().map(|line| line["shadow"].as_str()).collect();
        assert_eq!(shadow, [Some("keys:401"), Some("keys:401,strict:429"), None]);
        assert!(
            lines.iter().all(|line| line["consumer"] == "" && line["plugin"] == "" && line["status"] == 200)
        );
        for (plugin, name, count) in [
            ("keys", "would_answer", 2),
            ("keys", "would_pass", 1),
            ("keys", "answered", 0),
            ("strict", "would_answer", 1),
            ("strict", "would_pass", 1),
            ("strict", "answered", 0),
        ] {
            assert_eq!(outcome(&harness, plugin, name), count, "{plugin} {name}");
        }
    });
}

#[test]
fn the_upstream_sees_nothing_of_a_plugin_in_shadow() {
    block_on(async {
        let backend = Backend::start(async |request| {
            let headers = request.headers();
            let told = headers.contains_key("x-consumer-id") || !headers.contains_key("apikey");
            http::Response::new(full(if told { "changed" } else { "unchanged" }))
        });
        let harness = Harness::start(&format!(
            "
plugins: [{{name: keys, type: key-auth, shadow: true, config: {{hide_credentials: true}}}}]
upstreams: [{{name: u, targets: [{{address: '{}'}}]}}]
routes: [{{name: r, match: {{paths: [{{prefix: /}}]}}, plugins: [keys], forward: {{upstreams: [{{name: u}}]}}}}]
{CONSUMERS}",
            backend.address
        ));
        for wire in Wire::BOTH {
            let answer = ask(&harness, wire, "/", &[("apikey", "bobs-secret-key")]).await;
            assert_eq!(answer.text(), "unchanged", "{wire:?}");
        }
        assert_eq!(outcome(&harness, "keys", "would_pass"), 2);
    });
}
