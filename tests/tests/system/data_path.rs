//! The path of a request through a proxy: plugins, rewrites, errors.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::json;
use signalbox_tests::client::send;
use signalbox_tests::{Answer, Backend, Behaviour, Echo, Load, Protocol, Proxy, eventually, free_port, get};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::fixture::{Gateway, forward, respond, upstream, with};

/// `GET path` with these headers.
async fn ask(proxy: &Proxy, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::get(path).header("host", "api.example.com");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(proxy.http(), request.body(Full::default()).unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_four_plugins_work_together() {
    let gateway = Gateway::start(1).await;
    let api = gateway.control_plane.api();
    let route =
        with(forward("/api"), &json!({"name": "api", "plugins": ["keys", "limit", "browsers", "headers"]}));
    let document = json!({
        "plugins": [
            {"name": "keys", "type": "key-auth", "config": {"names": ["apikey"], "hide_credentials": true, "realm": "tests"}},
            {"name": "limit", "type": "rate-limit", "config": {"limit": 5, "window": "1h", "by": "consumer"}},
            {"name": "browsers", "type": "cors", "config": {"origins": ["https://app.example.com"], "methods": ["GET", "PUT"], "credentials": true}},
            {"name": "headers", "type": "request-transform", "config": {"add": {"headers": {"x-added": "yes"}}, "remove": {"headers": ["x-remove"]}}},
        ],
        "consumers": [
            {"name": "alice", "custom_id": "4711", "groups": ["admins"], "credentials": [{"key_auth": {"key": "alices-secret-key"}}]},
            {"name": "bob", "credentials": [{"key_auth": {"key": "bobs-secret-key"}}]},
        ],
        "routes": [route],
    });
    let revision = api.apply(&document).await.unwrap();
    api.wait_default(revision).await.unwrap();
    let proxy = &gateway.proxies[0];

    let refused = ask(proxy, "/api/x", &[]).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert!(refused.header("www-authenticate").is_some_and(|value| value.starts_with("Key realm=\"tests\"")));
    assert_eq!(ask(proxy, "/api/x", &[("apikey", "wrong")]).await.status, StatusCode::UNAUTHORIZED);

    // CORS comes before authentication: a preflight has no key.
    let preflight = Request::options("/api/x")
        .header("host", "api.example.com")
        .header("origin", "https://app.example.com")
        .header("access-control-request-method", "PUT")
        .body(Full::default())
        .unwrap();
    let preflight = send(proxy.http(), preflight).await.unwrap();
    assert_eq!(preflight.status, StatusCode::NO_CONTENT, "{:?}", preflight.headers);
    assert_eq!(preflight.header("access-control-allow-origin"), Some("https://app.example.com"));
    assert_eq!(gateway.backend.requests(), 0, "nothing has reached the upstream yet");

    let spoofed = [
        ("apikey", "alices-secret-key"),
        ("x-consumer-username", "root"),
        ("x-remove", "me"),
        ("origin", "https://app.example.com"),
    ];
    let answer = ask(proxy, "/api/x?y=1", &spoofed).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example.com"));
    assert_eq!(answer.header("ratelimit-limit"), Some("5"), "{:?}", answer.headers);
    assert_eq!(answer.header("ratelimit-remaining"), Some("4"));
    let echo = Echo::parse(&answer.body).unwrap();
    assert_eq!(echo.path, "/api/x?y=1");
    assert_eq!(echo.header("x-consumer-username"), Some("alice"));
    assert_eq!(echo.header("x-consumer-custom-id"), Some("4711"));
    assert_eq!(echo.header("x-consumer-groups"), Some("admins"));
    assert_eq!(echo.header("x-added"), Some("yes"));
    assert_eq!(echo.header("x-remove"), None);
    assert_eq!(echo.header("apikey"), None, "credentials are hidden");

    for left in [3, 2, 1, 0] {
        let answer = ask(proxy, "/api/x", &[("apikey", "alices-secret-key")]).await;
        assert_eq!(answer.header("ratelimit-remaining"), Some(left.to_string().as_str()));
    }
    // A revision in between does not begin a new window.
    gateway.put("routes", "unrelated", &forward("/unrelated")).await;
    let limited = ask(proxy, "/api/x", &[("apikey", "alices-secret-key")]).await;
    assert_eq!(limited.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(limited.header("retry-after").is_some());
    assert_eq!(ask(proxy, "/api/x", &[("apikey", "bobs-secret-key")]).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_upstream_sees_who_asked_and_nothing_that_is_for_the_proxy_only() {
    let gateway = Gateway::start(1).await;
    let route = json!({
        "match": {"paths": [{"prefix": "/public/users"}]},
        "forward": {"upstreams": [{"name": "echo"}], "rewrite": {"path_prefix": "/", "host": "users.internal"}},
    });
    gateway.put("routes", "r", &route).await;
    let headers = [
        ("connection", "keep-alive, x-hop"),
        ("x-hop", "1"),
        ("te", "gzip"),
        ("proxy-authorization", "x"),
        ("x-end", "2"),
    ];
    let answer = ask(&gateway.proxies[0], "/public/users/42?a=b%20c", &headers).await;
    let echo = Echo::parse(&answer.body).unwrap();
    assert_eq!(echo.path, "/42?a=b%20c");
    assert_eq!(echo.header("host"), Some("users.internal"));
    assert_eq!(echo.header("x-forwarded-host"), Some("api.example.com"));
    assert_eq!(echo.header("x-forwarded-proto"), Some("http"));
    assert_eq!(echo.header("x-forwarded-for"), Some("127.0.0.1"));
    assert!(echo.header("x-request-id").is_some());
    assert_eq!(echo.header("traceparent"), None);
    assert_eq!(echo.header("x-end"), Some("2"));
    for hop in ["x-hop", "te", "proxy-authorization"] {
        assert_eq!(echo.header(hop), None, "{hop}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bodies_are_carried_over_both_protocols() {
    let gateway = Gateway::start(1).await;
    gateway.put("routes", "r", &forward("/")).await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let load = Load::on([gateway.proxies[0].http()])
            .protocol(protocol)
            .request(|number| {
                let body = Bytes::from(vec![b'x'; (number as usize % 7) * 40_000]);
                Request::post(format!("/{}", body.len())).header("host", "a").body(Full::from(body)).unwrap()
            })
            .check(|answer| {
                let echo = Echo::parse(&answer.body).map_err(|error| error.to_string())?;
                if echo.path == format!("/{}", echo.body_length) { Ok(()) } else { Err(format!("{echo:?}")) }
            })
            .start()
            .await
            .unwrap();
        load.wait_for(100).await.unwrap();
        load.finish().assert_flawless(100);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_goes_wrong_upstream_is_answered_and_counted_by_its_flag() {
    let gateway = Gateway::start(1).await;
    let dropping = Backend::start("dropping", Behaviour::Drop).unwrap();
    let hanging = Backend::start("hanging", Behaviour::Hang).unwrap();
    let document = json!({
        "upstreams": [
            with(upstream(&[&dropping]), &json!({"name": "dropping"})),
            with(upstream(&[&hanging]), &json!({"name": "hanging"})),
            {"name": "refusing", "targets": [{"address": format!("127.0.0.1:{}", free_port())}]},
            {"name": "empty", "targets": []},
        ],
        "routes": (["dropping", "hanging", "refusing", "empty"].map(|name| json!({
            "name": name,
            "match": {"paths": [{"prefix": format!("/{name}")}]},
            "forward": {
                "upstreams": [{"name": name}],
                "timeout": (if name == "hanging" { "300ms" } else { "10s" }),
            },
        }))),
    });
    let api = gateway.control_plane.api();
    let revision = api.apply(&document).await.unwrap();
    api.wait_default(revision).await.unwrap();
    let proxy = &gateway.proxies[0];
    for (path, status, flag) in [
        ("/dropping", 502, "UC"),
        ("/hanging", 504, "UT"),
        ("/refusing", 503, "UF"),
        ("/empty", 503, "UH"),
        ("/nowhere", 404, "NR"),
    ] {
        let answer = ask(proxy, path, &[]).await;
        assert_eq!(answer.status.as_u16(), status, "{path}: {}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{path}");
        assert!(!answer.text().contains("127.0.0.1"), "it tells of the inside: {}", answer.text());
        let counted = eventually(Duration::from_secs(10), async || {
            let metrics = proxy.metrics().await.unwrap();
            metrics.sum("signalbox_requests_total", &[&format!("flags=\"{flag}\"")]) == 1.0
        });
        assert!(counted.await, "{path} is not counted as {flag}: {}", proxy.metrics().await.unwrap().0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn idle_connections_take_little_memory_and_serve_again() {
    const COUNT: usize = 1500;
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let gateway = Gateway::start(1).await;
    gateway.put("routes", "r", &respond("/", "here")).await;
    let proxy = &gateway.proxies[0];
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap()
    };
    let mut streams = Vec::new();
    let ask = async |stream: &mut TcpStream| {
        stream.write_all(REQUEST).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nhere") {
            assert_ne!(
                stream.read_buf(&mut answer).await.unwrap(),
                0,
                "{}",
                String::from_utf8_lossy(&answer)
            );
        }
    };
    ask(&mut TcpStream::connect(proxy.http()).await.unwrap()).await;
    let before = resident();
    // It takes three seconds, so that most of them have had none of their own for long.
    let mut pace = tokio::time::interval(Duration::from_millis(2));
    for _ in 0..COUNT {
        pace.tick().await;
        let mut stream = TcpStream::connect(proxy.http()).await.unwrap();
        ask(&mut stream).await;
        streams.push(stream);
    }
    // A request needs 20 KiB, which the next ones use again.
    let little = eventually(Duration::from_secs(10), async || resident() < before + 12 * COUNT).await;
    assert!(little, "{} KiB for {COUNT} connections", resident() - before);
    for stream in &mut streams {
        ask(stream).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_target_that_moves_is_followed() {
    let gateway = Gateway::start(1).await;
    gateway.put("routes", "r", &forward("/")).await;
    let load = Load::on([gateway.proxies[0].http()]).start().await.unwrap();
    let mut before = Vec::new();
    let mut last = Backend::echo("new-0").unwrap();
    gateway.put("upstreams", "echo", &upstream(&[&last])).await;
    for index in 1..4 {
        let next = Backend::echo(&format!("new-{index}")).unwrap();
        gateway.put("upstreams", "echo", &upstream(&[&next])).await;
        let answer = get(gateway.proxies[0].http(), "a", "/").await.unwrap();
        assert_eq!(Echo::parse(&answer.body).unwrap().backend, format!("new-{index}"));
        // Requests of the revision before may still run at the last one.
        load.wait_for(20).await.unwrap();
        before.push(std::mem::replace(&mut last, next));
    }
    load.finish().assert_flawless(50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn requests_without_a_route_are_reported_apart_from_other_failures() {
    let gateway = Gateway::start(1).await;
    gateway.put("routes", "fine", &respond("/fine", "ok")).await;
    for (name, status) in [("missing", 404), ("broken", 503)] {
        let route =
            json!({"match": {"paths": [{"prefix": format!("/{name}")}]}, "respond": {"status": status}});
        gateway.put("routes", name, &route).await;
    }
    let api = gateway.control_plane.api();
    // A report is about two seconds; one of them that has some of each comes soon.
    let mut traffic = json!(null);
    let apart = eventually(Duration::from_secs(30), async || {
        for path in ["/fine", "/none", "/missing", "/broken"] {
            ask(&gateway.proxies[0], path, &[]).await;
        }
        traffic = api.proxy("proxy-0").await.unwrap()["traffic"].clone();
        ["no_route", "4xx", "5xx"].iter().all(|class| {
            let share = traffic["classes"][class].as_f64().unwrap_or_default();
            // A quarter of all, but for where a report cuts the four apart.
            (0.1..0.4).contains(&share)
        })
    });
    assert!(apart.await, "{traffic}");
    assert_eq!(traffic["classes"]["5xx"], traffic["error_ratio"]);
    let all = &api.get("/summary").await.unwrap()["traffic"];
    assert!(all["classes"]["no_route"].as_f64().is_some_and(|share| share > 0.0), "{all}");
}
