//! What targets do wrong, and what then becomes of them, and of others' requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{AnyBody, Backend, Client, Harness, Wire, block_on, full, nobody, read_head, until};
use crate::resilience::document;
use crate::telling::metrics;

#[test]
fn a_retry_goes_to_a_target_that_has_not_had_the_request() {
    block_on(async {
        let asked = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&asked);
        let bad = Backend::start(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Response::builder().status(503).body(full("bad")).unwrap() }
        });
        let good = Backend::text("good");
        // By its hash a request would go to the same target every time.
        let upstream = ", load_balancing: {policy: ring_hash, hash_on: {header: x-user}}";
        let retry = ", retry: {attempts: 1, on: [5xx], budget: 1}";
        let harness = Harness::start(&document(&[bad.address, good.address], upstream, retry));
        let mut client = Client::connect(harness.address()).await;
        for user in 0..60 {
            let request = Request::get("/").header("x-user", user.to_string()).body(full("")).unwrap();
            let answer = client.send(request).await;
            assert_eq!((answer.status, answer.text()), (200, "good"), "{user}");
        }
        assert!((10..50).contains(&asked.load(Ordering::Relaxed)), "{asked:?}");
    });
}

/// Answers each call with a message, if `message` says so, and this status of gRPC.
fn grpc(status: &'static str, message: bool) -> Backend {
    Backend::speaking(Wire::Http2, move |_| async move {
        let response = Response::builder().header("content-type", "application/grpc");
        if !message {
            return response.header("grpc-status", status).body(full("")).unwrap();
        }
        let trailers =
            HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), status.parse().unwrap())]);
        let frames = [Frame::data(Bytes::from_static(&[0; 5])), Frame::trailers(trailers)];
        let frames = frames.map(Ok::<_, std::convert::Infallible>);
        let body: AnyBody = StreamBody::new(stream::iter(frames)).map_err(|never| match never {}).boxed();
        response.body(body).unwrap()
    })
}

fn call(timeout: Option<&str>) -> Request<AnyBody> {
    let mut request = Request::post("/").header("content-type", "application/grpc").header("te", "trailers");
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    request.body(full(&b"\0\0\0\0\0"[..])).unwrap()
}

#[test]
fn how_a_call_of_grpc_ends_counts_for_its_target() {
    block_on(async {
        let passive =
            ", health_check: {passive: {consecutive_failures: 3, ejection: 1h}, panic_threshold_percent: 0}";
        let breaker = ", circuit_breaker: {error_rate: {min_requests: 3, open_for: 1h}}";
        for (status, message, fields, timeout, blamed) in [
            ("14", false, passive, None, true),
            ("14", true, passive, None, true),
            ("13", true, passive, None, true),
            ("0", true, passive, None, false),
            ("5", false, passive, None, false),
            ("12", false, passive, None, false),
            ("4", true, passive, None, true),
            ("4", true, passive, Some("5S"), false),
            ("14", false, breaker, None, true),
            ("5", false, breaker, None, false),
        ] {
            let backend = grpc(status, message);
            let fields = format!(", protocol: http2{fields}");
            let harness = Harness::start(&document(&[backend.address], &fields, ""));
            let mut client = Client::connect_http2(harness.address()).await;
            for _ in 0..3 {
                let answer = client.send(call(timeout)).await;
                assert_eq!(answer.status, 200);
            }
            let ejected =
                || metrics(&harness).contains("signalbox_upstream_healthy_targets{upstream=\"u\"} 0");
            let open = || metrics(&harness).contains("signalbox_upstream_breaker_state{upstream=\"u\"} 2");
            let case = format!("{status} {message} {timeout:?} {fields}");
            if blamed {
                until(&case, || ejected() || open()).await;
            }
            // A target that is out is not asked: the proxy itself says UNAVAILABLE.
            let answer = client.send(call(timeout)).await;
            let own = answer.headers.get("grpc-message").is_some();
            assert_eq!((answer.status, own), (200, blamed), "{case}: {:?}", answer.headers);
        }
    });
}

#[test]
fn what_comes_behind_an_answer_is_nobody_elses() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            let mut first = true;
            while let Some(head) = read_head(&mut stream).await {
                let path = head.split(' ').nth(1).unwrap().to_owned();
                let ok = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
                let evil = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
                let answer = if first && path == "/1" { format!("{ok}{evil}") } else { ok };
                first = false;
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        let harness = Harness::with(&document(&[backend.address], "", ""), |settings| settings.workers = 1);
        assert_eq!(Client::connect(harness.address()).await.get("/1").await.text(), "/1");
        assert_eq!(Client::connect(harness.address()).await.get("/2").await.text(), "/2");
        assert_eq!(backend.connections(), 2, "the connection is not used again");
    });
}

/// What the checks of the only target have found; `None`: nothing yet.
fn checked(harness: &Harness) -> Option<bool> {
    harness.proxy.counted(|_, compiled, _, _| {
        let upstream = compiled.active.upstreams.iter().flatten().next().unwrap();
        let view = upstream.members.view();
        let target = view.targets.first().unwrap();
        target.health().checks.passed
    })
}

#[test]
fn checks_tell_good_answers_from_bad_ones() {
    block_on(async {
        let answering = |status: u16| {
            Backend::start(move |_| async move { Response::builder().status(status).body(full("")).unwrap() })
        };
        let serving = |status: u8| {
            Backend::speaking(Wire::Http2, move |_| async move {
                let response = Response::builder().header("content-type", "application/grpc");
                let body = full(vec![0, 0, 0, 0, 2, 8, status]);
                response.header("grpc-status", "0").body(body).unwrap()
            })
        };
        let silent = || {
            Backend::raw(|mut stream| async move {
                let _ = stream.read_to_end(&mut Vec::new()).await;
            })
        };
        for (what, backend, check, verdict) in [
            ("200", answering(200), "type: http", true),
            ("500, as wanted", answering(500), "type: http, statuses: [200, 500]", true),
            ("404, not wanted", answering(404), "type: http, statuses: [200, 500]", false),
            ("SERVING", serving(1), "type: grpc", true),
            ("NOT_SERVING", serving(2), "type: grpc", false),
            ("UNKNOWN", serving(0), "type: grpc", false),
            ("silent", silent(), "type: http, timeout: 100ms", false),
            ("silent", silent(), "type: grpc, timeout: 100ms", false),
            ("silent, but there", silent(), "type: tcp", true),
        ] {
            let fields = format!(", health_check: {{active: {{{check}, interval: 1h}}}}");
            let harness = Harness::start(&document(&[backend.address], &fields, ""));
            until(what, || checked(&harness).is_some()).await;
            assert_eq!(checked(&harness), Some(verdict), "{what}: {check}");
        }
        let fields = ", health_check: {active: {type: tcp, interval: 1h}}";
        let harness = Harness::start(&document(&[nobody()], fields, ""));
        until("nobody is there", || checked(&harness) == Some(false)).await;
    });
}
