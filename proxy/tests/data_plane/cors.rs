use std::net::SocketAddr;

use http::Request;
use tokio::io::AsyncReadExt;

use crate::harness::{Answer, Backend, Client, Harness, Wire, block_on, full, nobody};

const ORIGIN: &str = "https://app.example";

fn preflight(path: &str, method: &str) -> Request<crate::harness::AnyBody> {
    Request::options(path)
        .header("origin", ORIGIN)
        .header("access-control-request-method", method)
        .body(full(""))
        .unwrap()
}

/// True if a page of [`ORIGIN`] may read the response.
fn is_open(answer: &Answer) -> bool {
    answer.headers.get("access-control-allow-origin").is_some_and(|origin| origin == ORIGIN)
        && answer.headers.get_all("vary").iter().any(|vary| vary.to_str().unwrap().contains("Origin"))
}

const PLUGIN: &str = "{name: cors, type: cors, config: {origins: ['https://app.example'], methods: [POST]}}";

/// Routes that are named after their purpose; `backend` gets the forwarded requests.
fn routes(backend: SocketAddr) -> String {
    let forward = "forward: {upstreams: [{name: u}]}";
    format!(
        "
plugins: [{PLUGIN}, {{name: limit, type: rate-limit, config: {{limit: 1, window: 1h, by: global}}}}]
upstreams: [{{name: u, targets: [{{address: '{backend}'}}]}}]
routes:
- {{name: rest, match: {{paths: [{{prefix: /}}], hosts: [rest.example]}}, {forward}}}
- {{name: post, match: {{paths: [{{exact: /post}}], methods: [POST]}}, plugins: [cors], {forward}}}
- {{name: bare, match: {{paths: [{{exact: /bare}}], methods: [POST]}}, {forward}}}
- {{name: own, match: {{paths: [{{exact: /own}}], methods: [OPTIONS]}}, {forward}}}
- {{name: own-post, match: {{paths: [{{exact: /own}}], methods: [POST]}}, plugins: [cors], {forward}}}
- {{name: strict, strict_slash: true, match: {{paths: [{{exact: /strict}}], methods: [POST]}}, plugins: [cors], {forward}}}
"
    )
}

#[test]
fn a_preflight_is_answered_by_the_route_of_the_method_it_asks_for() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&routes(backend.address));
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            for (host, path) in [("a.example", "/post"), ("rest.example", "/post"), ("a.example", "/strict/")]
            {
                let mut request = preflight(path, "POST");
                request.headers_mut().insert("host", host.parse().unwrap());
                let expected = if host == "rest.example" { 200 } else { 204 };
                let answer = client.send(request).await;
                // The host of `rest` is more specific, so it would get the request itself.
                assert_eq!(answer.status, expected, "{host}{path}");
                if expected == 204 {
                    assert!(is_open(&answer), "{answer:?}");
                    assert_eq!(answer.headers["access-control-allow-methods"], "POST");
                }
            }
            // No route matches these.
            for (path, method) in [("/post", "PUT"), ("/bare", "POST"), ("/nowhere", "POST")] {
                let answer = client.send(preflight(path, method)).await;
                assert_eq!((answer.status, is_open(&answer)), (404, false), "{method} {path}");
            }
            // A request without the headers of a preflight is not matched to a route of another method either.
            let plain = Request::options("/post").header("origin", ORIGIN).body(full("")).unwrap();
            assert_eq!(client.send(plain).await.status, 404);
            let own = client.send(preflight("/own", "POST")).await;
            assert_eq!(own.json()["method"], "OPTIONS", "a route that names OPTIONS gets it");
            let redirected = Request::post("/strict/").header("origin", ORIGIN).body(full("")).unwrap();
            let redirected = client.send(redirected).await;
            assert_eq!((redirected.status, is_open(&redirected)), (308, true));
        }
    });
}

#[test]
fn with_a_global_cors_plugin_every_answer_of_the_proxy_itself_can_be_seen() {
    block_on(async {
        let silent =
            Backend::raw(
                |mut stream| async move { while matches!(stream.read(&mut [0; 100]).await, Ok(1..)) {} },
            );
        let broken = Backend::raw(|mut stream| async move {
            drop(stream.read(&mut [0; 100]).await);
        });
        let route = |name: &str, upstream: &str, more: &str| {
            format!(
                "- {{name: {name}, match: {{paths: [{{exact: /{name}}}]}}, {more} forward: {{upstreams: [{{name: {upstream}}}], timeout: 200ms}}}}\n"
            )
        };
        let document = format!(
            "
plugins:
- {}
- {{name: first-auth, type: key-auth, order: 3000}}
- {{name: auth, type: key-auth}}
- {{name: limit, type: rate-limit, config: {{limit: 1, window: 1h, by: global}}}}
upstreams:
- {{name: silent, targets: [{{address: '{}'}}]}}
- {{name: broken, targets: [{{address: '{}'}}]}}
- {{name: nobody, targets: [{{address: '{}'}}]}}
- {{name: empty, targets: []}}
listeners: [{{name: http, address: '{}', limits: {{body_size: 10}}}}]
routes:
{}{}{}{}{}{}{}- {{name: strict, strict_slash: true, match: {{paths: [{{exact: /strict}}]}}, respond: {{body: x}}}}
",
            PLUGIN.replace("type: cors", "type: cors, global: true"),
            silent.address,
            broken.address,
            nobody(),
            nobody(),
            route("silent", "silent", ""),
            route("broken", "broken", ""),
            route("nobody", "nobody", ""),
            route("empty", "empty", ""),
            route("first-auth", "silent", "plugins: [first-auth],"),
            route("auth", "silent", "plugins: [auth],"),
            route("limit", "empty", "plugins: [limit],"),
        );
        let harness = Harness::start(&document);
        for wire in Wire::BOTH {
            // Some of these responses end their connection.
            let ask = async |path: &str| {
                let request = Request::get(path).header("origin", ORIGIN).body(full("")).unwrap();
                Client::speaking(wire, harness.address()).await.send(request).await
            };
            for (path, status) in [
                ("/nowhere", 404),
                ("/first-auth", 401),
                ("/auth", 401),
                ("/broken", 502),
                ("/nobody", 503),
                ("/empty", 503),
                ("/silent", 504),
                ("/strict/", 301),
                ("/%2e%2e/x", 400),
            ] {
                let answer = ask(path).await;
                assert_eq!((answer.status, is_open(&answer)), (status, true), "{wire:?} {path}");
                assert_eq!(answer.headers.get_all("vary").iter().count(), 1, "{path}");
            }
            ask("/limit").await;
            let limited = ask("/limit").await;
            assert_eq!((limited.status, is_open(&limited)), (429, true));
            let mut client = Client::speaking(wire, harness.address()).await;
            let preflight = client.send(preflight("/nowhere", "POST")).await;
            assert_eq!((preflight.status, is_open(&preflight)), (204, true), "{wire:?}");
            assert_eq!(preflight.headers["access-control-allow-methods"], "POST");
            // A page of another origin cannot read it.
            let other =
                Request::get("/nowhere").header("origin", "https://evil.example").body(full("")).unwrap();
            let other = client.send(other).await;
            assert_eq!((other.status, is_open(&other)), (404, false));
            let mut client = Client::speaking(wire, harness.address()).await;
            let large =
                Request::post("/silent").header("origin", ORIGIN).body(full("more than ten bytes")).unwrap();
            let large = client.send(large).await;
            assert_eq!((large.status, is_open(&large)), (413, true), "{wire:?}");
        }
    });
}

#[test]
fn a_request_that_is_refused_for_too_much_load_can_be_seen_too() {
    block_on(async {
        let plugin = PLUGIN.replace("type: cors", "type: cors, global: true");
        let harness = Harness::with_limit(&format!("plugins: [{plugin}]\nroutes: []"), None, 0);
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            let request = Request::get("/").header("origin", ORIGIN).body(full("")).unwrap();
            let answer = client.send(request).await;
            assert_eq!((answer.status, is_open(&answer)), (503, true), "{wire:?}");
        }
    });
}

#[test]
fn an_own_cors_plugin_of_a_route_speaks_for_it_before_the_global_one() {
    block_on(async {
        let document = format!(
            "
plugins: [{PLUGIN}, {{name: everywhere, type: cors, global: true, config: {{origins: ['https://other.example']}}}}]
routes: [{{name: r, strict_slash: true, match: {{paths: [{{exact: /r}}], methods: [POST]}}, plugins: [cors], respond: {{body: x}}}}]
"
        );
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        for (path, status, open) in [("/r", 204, true), ("/r/", 204, true), ("/nowhere", 204, false)] {
            let answer = client.send(preflight(path, "POST")).await;
            assert_eq!((answer.status, is_open(&answer)), (status, open), "{path}");
        }
        // The preflight for another method matches no route, so the global plugin answers.
        assert!(!is_open(&client.send(preflight("/r", "DELETE")).await));
    });
}
