//! Tests of the content of spans.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;

use super::collector::{CLIENT, Collector, SERVER, Span};
use super::{TRUSTED, noting, traced};
use crate::harness::{
    AnyBody, Backend, Client, Harness, Wire, block_on, forward_over, forward_to, full, nobody, until,
};
use crate::telling::lines;
use crate::trace_context::PARENT;

fn status(status: u16) -> Response<AnyBody> {
    Response::builder().status(status).body(full("")).unwrap()
}

/// The spans of one kind.
fn of(kind: i32, spans: &[Span]) -> Vec<&Span> {
    spans.iter().filter(|span| span.kind == kind).collect()
}

#[test]
fn a_status_from_500_is_an_error_on_both_sides_and_one_from_400_for_the_client_alone() {
    block_on(async {
        let collector = Collector::http();
        let (backend, _) = noting(Wire::Http1, |request, _| {
            status(request.uri().path().trim_start_matches('/').parse().unwrap())
        });
        let document = traced(collector.address, "", "") + &forward_to(backend.address);
        let harness = Harness::start(&document);
        for (code, server, client) in [
            ("200", "", ""),
            ("404", "", "404"),
            ("401", "", "401"),
            ("503", "503", "503"),
            ("500", "500", "500"),
        ] {
            harness.get(&format!("/{code}")).await;
            let spans = collector.wait(2).await;
            for (span, error) in spans.iter().zip([server, client]) {
                assert_eq!((span.is_error, span.get("error.type")), (!error.is_empty(), error), "{span:?}");
                assert_eq!(span.get("http.response.status_code"), code);
            }
            collector.clear();
        }
    });
}

#[test]
fn what_the_proxy_answers_itself_has_no_span_of_an_attempt() {
    block_on(async {
        let collector = Collector::http();
        let document = traced(collector.address, "", "")
            + "
plugins: [{name: key, type: key-auth}]
upstreams: [{name: none, targets: []}]
routes:
- {name: private, match: {paths: [{exact: /private}]}, plugins: [key], respond: {body: ok}}
- {name: moved, match: {paths: [{template: '/moved/{id}'}]}, redirect: {path: /}}
- {name: several, match: {paths: [{exact: /one}, {prefix: /two}, {template: '/three/{id}'}, {regex: '/[0-9]+'}]}, respond: {body: ok}}
";
        let document = document.replace("upstreams: [{name: none, targets: []}]\n", "");
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        for (path, code, name, route) in [
            ("/private", "401", "GET /private", "private"),
            ("/moved/4711", "302", "GET /moved/{id}", "moved"),
            ("/one", "200", "GET /one", "several"),
            ("/two/x", "200", "GET /two/*", "several"),
            ("/three/x", "200", "GET /three/{id}", "several"),
            ("/42", "200", "GET /[0-9]+", "several"),
            // Without a route the path is no part of the name.
            ("/nowhere", "404", "GET", ""),
        ] {
            client.get(path).await;
            let spans = collector.wait(1).await;
            let span = &spans[0];
            assert_eq!((span.kind, &*span.name, span.is_error), (SERVER, name, false), "{path}");
            assert_eq!((span.get("url.path"), span.get("http.response.status_code")), (path, code));
            assert_eq!(span.get("signalbox.route"), route);
            collector.clear();
        }
        client.send(Request::builder().method("INVENTED").uri("/one").body(full("")).unwrap()).await;
        let spans = collector.wait(1).await;
        assert_eq!((&*spans[0].name, spans[0].get("http.request.method")), ("HTTP /one", "_OTHER"));
    });
}

/// A gRPC answer: trailers, or a head in their place.
fn grpc(status: &'static str, is_only_trailers: bool) -> Response<AnyBody> {
    let response = Response::builder().header("content-type", "application/grpc");
    if is_only_trailers {
        return response.header("grpc-status", status).body(full("")).unwrap();
    }
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
    let frames = [
        Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"\0\0\0\0\0"))),
        Ok(Frame::trailers(trailers)),
    ];
    response.body(StreamBody::new(stream::iter(frames)).map_err(|never| match never {}).boxed()).unwrap()
}

#[test]
fn the_status_of_a_call_of_grpc_decides() {
    block_on(async {
        let collector = Collector::http();
        let backend = Backend::speaking(Wire::Http2, |request| async move {
            match request.uri().path() {
                "/trailers/5" => grpc("5", false),
                "/trailers/14" => grpc("14", false),
                "/head/5" => grpc("5", true),
                "/head/14" => grpc("14", true),
                _ => grpc("0", false),
            }
        });
        let document = traced(collector.address, "", "") + &forward_over(Wire::Http2, backend.address);
        let harness = Harness::start(&document);
        let mut client = Client::connect_http2(harness.address()).await;
        for (path, name, is_servers) in [
            ("/trailers/0", "OK", false),
            ("/trailers/5", "NOT_FOUND", false),
            ("/trailers/14", "UNAVAILABLE", true),
            ("/head/5", "NOT_FOUND", false),
            ("/head/14", "UNAVAILABLE", true),
        ] {
            let request =
                Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
            client.send(request.body(full("")).unwrap()).await;
            let spans = collector.wait(2).await;
            let is_error: Vec<_> = spans.iter().map(|span| span.is_error).collect();
            assert_eq!(is_error, [is_servers, name != "OK"], "{path}");
            for span in &spans {
                assert_eq!(span.get("rpc.response.status_code"), name);
                assert_eq!(span.get("http.response.status_code"), "200");
                assert_eq!(span.get("error.type"), if span.is_error { name } else { "" });
            }
            collector.clear();
        }
    });
}

#[test]
fn each_retry_has_a_span_and_a_parent_id_of_its_own() {
    block_on(async {
        let collector = Collector::http();
        for wire in Wire::BOTH {
            // The body of the answer and of the request make the head be restored from a copy.
            let (backend, parents) = noting(wire, |_, number| status(if number < 2 { 503 } else { 200 }));
            let document = forward_over(wire, backend.address).replace(
                "upstreams: [{name: u}]",
                "upstreams: [{name: u}], retry: {attempts: 2, on: [5xx], budget: 1}",
            );
            let harness = Harness::start(&(traced(collector.address, TRUSTED, "") + &document));
            let mut client = Client::connect(harness.address()).await;
            let request = Request::put("/").header("traceparent", PARENT).body(full("hello")).unwrap();
            assert_eq!(client.send(request).await.status, 200);
            let spans = collector.wait(4).await;
            let (server, attempts) = (&spans[0], &spans[1..]);
            assert_eq!((server.kind, server.is_error), (SERVER, false));
            let sent: Vec<_> =
                attempts.iter().map(|span| format!("00-{}-{}-01", span.trace_id, span.span_id)).collect();
            assert_eq!(*parents.lock().unwrap(), sent, "{wire:?}");
            let distinct: HashSet<_> = sent.iter().collect();
            assert_eq!(distinct.len(), 3);
            for (index, (span, (resend, code))) in
                attempts.iter().zip([("", "503"), ("1", "503"), ("2", "200")]).enumerate()
            {
                assert_eq!((span.kind, &span.parent), (CLIENT, &server.span_id));
                assert_eq!(span.get("http.request.resend_count"), resend, "{index}");
                assert_eq!(span.get("http.response.status_code"), code);
                assert_eq!(span.is_error, code == "503");
            }
            collector.clear();
        }
    });
}

#[test]
fn an_attempt_that_fails_says_why() {
    block_on(async {
        let collector = Collector::http();
        let resets = Backend::raw(|mut stream| async move {
            crate::harness::read_head(&mut stream).await;
        });
        let breaks = Backend::raw(|mut stream| async move {
            use tokio::io::AsyncWriteExt as _;
            crate::harness::read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await.unwrap();
        });
        for (address, server, attempt, flags) in [
            (nobody(), "503", "connection_refused", "UF"),
            (resets.address, "502", "connection_closed", "UC"),
            (breaks.address, "connection_closed", "connection_closed", "UC"),
        ] {
            let harness = Harness::start(&(traced(collector.address, "", "") + &forward_to(address)));
            let mut client = Client::connect(harness.address()).await;
            if let Ok(response) = client.start(Request::post("/").body(full("x")).unwrap()).await {
                let _ = response.into_body().collect().await;
            }
            let spans = collector.wait(2).await;
            assert_eq!((spans[0].is_error, spans[0].get("error.type")), (true, server), "{spans:#?}");
            assert_eq!(spans[0].get("signalbox.flags"), flags);
            assert!(spans[1].is_error);
            assert_eq!(spans[1].get("error.type").replace('-', "_"), attempt);
            collector.clear();
        }
    });
}

#[test]
fn however_a_request_ends_it_has_one_span() {
    block_on(async {
        let collector = Collector::http();
        let (backend, _) = noting(Wire::Http1, |request, _| match request.uri().path() {
            "/empty" => status(204),
            "/not-modified" => status(304),
            "/large" => Response::new(full(vec![b'x'; 1 << 20])),
            _ => Response::new(full("text")),
        });
        let hangs = Backend::start(|_| std::future::pending());
        let document = traced(collector.address, "", "")
            + &format!(
                "
upstreams:
- {{name: u, targets: [{{address: '{}'}}]}}
- {{name: hangs, targets: [{{address: '{}'}}]}}
routes:
- {{name: hangs, match: {{paths: [{{prefix: /hangs}}]}}, forward: {{upstreams: [{{name: hangs}}]}}}}
- {{name: late, match: {{paths: [{{prefix: /late}}]}}, forward: {{timeout: 100ms, upstreams: [{{name: hangs}}]}}}}
- {{name: all, forward: {{upstreams: [{{name: u}}]}}}}
",
                backend.address, hangs.address
            );
        let harness = Harness::start(&document);
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            for (method, path, code) in [
                ("GET", "/empty", "204"),
                ("GET", "/not-modified", "304"),
                ("HEAD", "/text", "200"),
                ("GET", "/large", "200"),
                ("POST", "/text", "200"),
                ("GET", "/late", "504"),
            ] {
                client.send(Request::builder().method(method).uri(path).body(full("")).unwrap()).await;
                let spans = collector.wait(2).await;
                let [server] = *of(SERVER, &spans) else { panic!("{spans:#?}") };
                assert_eq!(server.get("http.response.status_code"), code, "{wire:?} {method} {path}");
                assert_eq!(server.is_error, code == "504");
                collector.clear();
            }
            // The client goes: there is nothing wrong with that, and no response.
            let before = hangs.connections();
            let request = client.start(Request::get("/hangs").body(full("")).unwrap());
            tokio::select! {
                _ = request => panic!("there is no answer"),
                () = until("it has reached the backend", || hangs.connections() > before) => {}
            }
            drop(client);
            let spans = collector.wait(2).await;
            assert!(
                spans.iter().all(|span| !span.is_error && span.get("error.type").is_empty()),
                "{spans:#?}"
            );
            assert_eq!(spans[0].get("signalbox.flags"), "DC");
            assert!(spans.iter().all(|span| span.get("http.response.status_code").is_empty()));
            collector.clear();
        }
        // The drain ends with the response that is under way.
        let mut client = Client::connect(harness.address()).await;
        client.get("/text").await;
        assert!(harness.proxy.drain(Duration::ZERO, Duration::from_secs(20)).await);
        tokio::task::block_in_place(|| drop(harness));
        assert_eq!(of(SERVER, &collector.spans()).len(), 1);
        assert_eq!(collector.spans().len(), 2);
    });
}

#[test]
fn the_names_of_spans_stay_few() {
    block_on(async {
        let collector = Collector::http();
        let document = traced(collector.address, "", ", sampling: {per_second: 0}")
            + "routes: [{name: r, match: {paths: [{prefix: /a}]}, respond: {body: ok}}]";
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        for index in 0..3000 {
            let prefix = ["a/", ""][index % 2];
            client.get(&format!("/{prefix}{:016x}", fastrand::u64(..))).await;
        }
        tokio::task::block_in_place(|| drop(harness));
        let spans = collector.spans();
        let names: HashSet<_> = spans.iter().map(|span| &*span.name).collect();
        assert_eq!((spans.len(), names), (3000, HashSet::from(["GET", "GET /a/*"])));
    });
}

#[test]
fn a_span_has_the_path_by_which_the_route_was_found() {
    block_on(async {
        let collector = Collector::http();
        let document = traced(collector.address, "", ", sampling: {per_second: 0}")
            + "routes: [{name: r, match: {paths: [{regex: /.*}, {prefix: /a}, {template: '/a/{x}'}, {exact: /a/b}]}, respond: {body: ok}}]";
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        for path in ["/a/b", "/a/c", "/a/c/d", "/x"] {
            client.get(path).await;
        }
        tokio::task::block_in_place(|| drop(harness));
        let spans = collector.spans();
        let names: Vec<_> = spans.iter().map(|span| &*span.name).collect();
        assert_eq!(names, ["GET /a/b", "GET /a/{x}", "GET /a/*", "GET /.*"]);
    });
}

#[test]
fn errors_and_slow_requests_are_exported_late() {
    block_on(async {
        let collector = Collector::http();
        let backend = Backend::start(|request| async move {
            match request.uri().path() {
                "/error" => status(500),
                "/slow" => {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    status(200)
                }
                _ => status(404),
            }
        });
        let tracing = ", sampling: {ratio: 0}, late: {slower_than: 200ms}";
        let document = traced(collector.address, TRUSTED, tracing) + &forward_to(backend.address);
        let (sender, receiver) = signalbox_proxy::telemetry::access_log::channel(100);
        let harness = Harness::with_log(&document, Some(sender));
        let mut client = Client::connect(harness.address()).await;
        let parent = PARENT.replace("-01", "-00");
        for path in ["/", "/error", "/slow"] {
            let request = Request::get(path).header("traceparent", &parent);
            client.send(request.body(full("")).unwrap()).await;
        }
        let spans = collector.wait(4).await;
        let paths: Vec<_> = spans.iter().map(|span| span.get("url.path")).collect();
        assert_eq!(paths, ["/error", "/slow", "", ""]);
        assert!(spans.iter().all(|span| span.get("signalbox.late") == "true" && span.flags & 1 == 0));
        assert_eq!(&spans[0].parent, super::SPAN);
        // The access log says which.
        let lines = lines(&receiver, 3).await;
        for line in &lines {
            let span = spans.iter().find(|span| line["path"] == span.get("url.path"));
            assert_eq!(line["trace_id"], super::TRACE);
            assert_eq!(line["span_id"], span.map_or("", |span| &span.span_id));
            assert_eq!(line["sampled"], span.is_some());
        }
    });
}
