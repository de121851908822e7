//! Plugins that shape requests and responses: `redirect`, `request-id`, `request-size-limit` and `fault`.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::Value;
use signalbox_plugins::builtin;
use signalbox_proxy::telemetry::access_log;

use crate::harness::{Answer, AnyBody, Backend, Client, Harness, Wire, block_on, full, raw, until};
use crate::telling::lines;

/// An example from the page of a plugin type.
pub(crate) fn example(type_name: &str, index: usize) -> Value {
    builtin().find(type_name).unwrap().schema().get("examples").unwrap()[index].clone()
}

/// Routes `/NAME` that forward to `backend`, each with the plugin NAME.
pub(crate) fn document(backend: &Backend, plugins: &[(&str, &str, Value)]) -> String {
    let list: String = plugins
        .iter()
        .map(|(name, type_name, config)| format!("- {{name: {name}, type: {type_name}, config: {config}}}\n"))
        .collect();
    let routes: String = plugins
        .iter()
        .map(|(name, ..)| {
            format!("- {{name: {name}, match: {{paths: [{{prefix: /{name}}}]}}, plugins: [{name}], forward: {{upstreams: [{{name: u}}]}}}}\n")
        })
        .collect();
    let address = backend.address;
    format!(
        "plugins:\n{list}upstreams: [{{name: u, targets: [{{address: '{address}'}}]}}]\nroutes:\n{routes}"
    )
}

pub(crate) async fn ask(
    harness: &Harness,
    wire: Wire,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: AnyBody,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Client::speaking(wire, harness.address()).await.send(request.body(body).unwrap()).await
}

/// A body of unknown length.
fn streamed(parts: &'static [&'static str]) -> AnyBody {
    let frames = parts.iter().map(|part| Ok(Frame::data(Bytes::from_static(part.as_bytes()))));
    BoxBody::new(StreamBody::new(stream::iter(frames)))
}

#[test]
fn redirects_lead_where_they_are_configured_to() {
    block_on(async {
        let backend = Backend::text("passed");
        let plugins = [
            ("tls", "redirect", example("redirect", 0)),
            ("moved", "redirect", example("redirect", 1)),
            ("search", "redirect", example("redirect", 2)),
        ];
        let harness = Harness::start(&document(&backend, &plugins));
        for wire in Wire::BOTH {
            for (method, path, status, location) in [
                ("GET", "/tls/a?q=%20", 308, "https://test.example/tls/a?q=%20"),
                ("HEAD", "/tls", 308, "https://test.example/tls"),
                ("POST", "/tls", 308, "https://test.example/tls"),
                ("GET", "/moved/a?q", 301, "https://www.example.com/shop/moved/a?q"),
                ("GET", "/search?term=a%0d%0ab", 302, "/search?q=a%0D%0Ab"),
            ] {
                let answer = ask(&harness, wire, method, path, &[], full("")).await;
                assert_eq!((answer.status, answer.text()), (status, ""), "{wire:?} {method} {path}");
                assert_eq!(answer.headers["location"], location, "{wire:?} {method} {path}");
            }
            // It is there already.
            let answer = ask(&harness, wire, "GET", "/search?q=", &[], full("")).await;
            assert_eq!((answer.status, answer.text()), (200, "passed"), "{wire:?}");
        }
    });
}

#[test]
fn an_id_is_the_same_for_upstream_client_and_log() {
    block_on(async {
        let backend = Backend::echo();
        let plugins = [
            ("plain", "request-id", example("request-id", 0)),
            ("any", "request-id", example("request-id", 1)),
            ("mine", "request-id", serde_json::json!({"accept": "any"})),
        ];
        let (sender, receiver) = access_log::channel(100);
        let harness = Harness::with_log(&document(&backend, &plugins), Some(sender));
        for wire in Wire::BOTH {
            for (path, header, sent, is_kept) in [
                ("/plain", "x-request-id", "abc-1", false),
                ("/mine", "x-request-id", "abc-2", true),
                ("/mine", "x-request-id", "a b", false),
                ("/any", "x-correlation-id", "abc-3", true),
                ("/any", "x_correlation_id", "abc-4", false),
            ] {
                let answer = ask(&harness, wire, "GET", path, &[(header, sent)], full("")).await;
                let told = answer.json();
                let name = if path == "/any" { "x-correlation-id" } else { "x-request-id" };
                let id = answer.headers[name].to_str().unwrap().to_owned();
                assert_eq!(id == sent, is_kept, "{wire:?} {path} {id}");
                let ids: Vec<&Value> = told["headers"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .filter(|line| line[0].as_str().unwrap().replace('_', "-") == name)
                    .map(|line| &line[1])
                    .collect();
                assert_eq!(ids, [&id], "{wire:?} {path}");
                let line = lines(&receiver, 1).await.remove(0);
                assert_eq!(line["request_id"], id, "{wire:?} {path}");
            }
        }
    });
}

#[test]
fn a_request_that_no_route_takes_has_the_same_id_for_client_and_log() {
    block_on(async {
        let document = "
plugins: [{name: id, type: request-id, global: true, config: {header: x-correlation-id, generator: uuid4, accept: any}}]
routes: [{name: one, match: {paths: [{exact: /one}]}, respond: {status: 200}}]
";
        let (sender, receiver) = access_log::channel(100);
        let harness = Harness::with_log(document, Some(sender));
        for wire in Wire::BOTH {
            for (path, sent, status) in
                [("/none", "abc-1", 404), ("/none", "a b", 404), ("/one", "abc-1", 200)]
            {
                let answer = ask(&harness, wire, "GET", path, &[("x-correlation-id", sent)], full("")).await;
                let id = answer.headers["x-correlation-id"].to_str().unwrap().to_owned();
                assert_eq!((answer.status, id == sent), (status, sent == "abc-1"), "{wire:?} {path} {id}");
                if status == 404 {
                    assert_eq!(answer.json()["request_id"], id, "{wire:?}");
                }
                let line = lines(&receiver, 1).await.remove(0);
                assert_eq!(line["request_id"], id, "{wire:?} {path}");
            }
        }
    });
}

#[test]
fn a_request_that_is_too_large_is_refused_before_and_while_it_comes() {
    block_on(async {
        let complete = Arc::<Mutex<Vec<bool>>>::default();
        let noted = Arc::clone(&complete);
        let backend = Backend::start(move |request: Request<hyper::body::Incoming>| {
            let noted = Arc::clone(&noted);
            async move {
                let whole = request.into_body().collect().await;
                noted.lock().unwrap().push(whole.is_ok());
                Response::new(full(whole.map(|body| body.to_bytes()).unwrap_or_default()))
            }
        });
        let plugins = [
            ("small", "request-size-limit", serde_json::json!({"max_body": "8B"})),
            ("large", "request-size-limit", example("request-size-limit", 0)),
            ("strict", "request-size-limit", example("request-size-limit", 1)),
        ];
        let harness = Harness::start(&document(&backend, &plugins));
        for wire in Wire::BOTH {
            let post = async |path: &str, body: AnyBody| ask(&harness, wire, "POST", path, &[], body).await;
            assert_eq!(post("/small", full("12345678")).await.text(), "12345678", "{wire:?}");
            assert_eq!(post("/small", streamed(&["1234", "5678"])).await.text(), "12345678", "{wire:?}");
            assert_eq!(post("/large", streamed(&["1234", "56789"])).await.text(), "123456789", "{wire:?}");
            assert_eq!(complete.lock().unwrap().split_off(0), [true; 3]);
            assert_eq!(post("/small", full("123456789")).await.status, 413, "{wire:?}");
            assert_eq!(post("/strict", streamed(&["1"])).await.status, 411, "{wire:?}");
            assert_eq!(post("/strict", full("1")).await.status, 200, "{wire:?}");
            assert_eq!(
                complete.lock().unwrap().split_off(0),
                [true],
                "the upstream got nothing of the others"
            );
            // It is known only on the way that it is too large.
            let answer = post("/small", streamed(&["1234", "5678", "9"])).await;
            assert_eq!(answer.status, 413, "{wire:?}");
            assert_eq!(answer.headers["content-type"], "application/problem+json");
            until("the upstream has seen the end", || !complete.lock().unwrap().is_empty()).await;
            assert_eq!(complete.lock().unwrap().split_off(0), [false], "{wire:?}");
            let long = "x".repeat(9000);
            let answer = ask(&harness, wire, "GET", "/strict", &[("x-long", &long)], full("")).await;
            assert_eq!(answer.status, 431, "{wire:?}");
        }
        let head = b"POST /small HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 9\r\nconnection: close\r\n\r\n";
        let answer = raw(harness.address(), head).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    });
}

#[test]
fn faults_delay_and_fail_the_requests_that_they_are_for() {
    block_on(async {
        let backend = Backend::text("passed");
        let plugins = [
            ("abort", "fault", example("fault", 1)),
            ("never", "fault", serde_json::json!({"abort": {"status": 500, "percent": 0}})),
            ("slow", "fault", serde_json::json!({"delay": {"duration": "60ms", "jitter": "20ms"}})),
            ("late", "fault", serde_json::json!({"delay": {"duration": "10m"}})),
        ];
        let document = document(&backend, &plugins)
            .replace("type: fault, config: {\"abort\":{\"status\":500}}", "type: fault, when: 'request.headers[\"x-fault\"] == \"on\"', config: {\"abort\":{\"status\":500}}")
            .replace("plugins: [late], forward: {", "plugins: [late], forward: {timeout: 100ms, ");
        let harness = Harness::start(&document);
        for wire in Wire::BOTH {
            let get = async |path: &str, fault: &str| {
                ask(&harness, wire, "GET", path, &[("x-fault", fault)], full("")).await.status
            };
            assert_eq!(get("/abort", "on").await, 500, "{wire:?}");
            assert_eq!(get("/abort", "off").await, 200, "{wire:?}");
            assert_eq!(get("/never", "on").await, 200, "{wire:?}");
            let began = Instant::now();
            assert_eq!(get("/slow", "on").await, 200, "{wire:?}");
            assert!(began.elapsed() >= Duration::from_millis(60), "{wire:?}");
            assert_eq!(get("/late", "on").await, 504, "{wire:?}");
        }
        // Without the header the condition has no value, and no fault is injected.
        assert_eq!(harness.get("/abort").await.status, 200);
    });
}
