//! Faults of targets: their consequences for the targets, and for other requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, Notify};

use crate::harness::{AnyBody, Backend, Client, Harness, Wire, block_on, full, nobody, read_head, until};
use crate::resilience::document;
use crate::telling::metrics;
use signalbox_proxy::source::DataPlane as _;

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
        // By its hash, a request would go to the same target every time.
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

/// Answers each call with a message, if `message` is set, and this gRPC status.
pub(crate) fn grpc(status: &'static str, message: bool) -> Backend {
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
            // The error also counts in the metrics.
            let class = if status == "0" {
                "2xx"
            } else if status == "5" {
                "4xx"
            } else {
                "5xx"
            };
            let counted = format!("{{listener=\"http\",route=\"all\",code_class=\"{class}\",flags=\"\"}} 3");
            until(&case, || metrics(&harness).contains(&counted)).await;
            assert_eq!(harness.proxy.traffic().errors, if class == "5xx" { 3 } else { 0 }, "{case}");
            if blamed {
                until(&case, || ejected() || open()).await;
            }
            // An ejected target gets no request: the proxy itself answers UNAVAILABLE.
            let answer = client.send(call(timeout)).await;
            let own = answer.headers.get("grpc-message").is_some();
            assert_eq!((answer.status, own), (200, blamed), "{case}: {:?}", answer.headers);
        }
        let harness = Harness::start(&document(&[nobody()], ", protocol: http2", ""));
        assert_eq!(Client::connect_http2(harness.address()).await.send(call(None)).await.status, 200);
        until("it is counted", || metrics(&harness).contains("code_class=\"5xx\",flags=\"UF\"} 1")).await;
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

/// The verdict of the only target's checks; `None`: there is none yet.
fn checked(harness: &Harness) -> Option<bool> {
    harness.proxy.counted(|_, compiled, _, _| {
        let upstream = compiled.active.upstreams.iter().next().unwrap();
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
            ("200", answering(200), "type: http, timeout: 10s", true),
            ("500, as wanted", answering(500), "type: http, timeout: 10s, statuses: [200, 500]", true),
            ("404, not wanted", answering(404), "type: http, timeout: 10s, statuses: [200, 500]", false),
            ("SERVING", serving(1), "type: grpc, timeout: 10s", true),
            ("NOT_SERVING", serving(2), "type: grpc, timeout: 10s", false),
            ("UNKNOWN", serving(0), "type: grpc, timeout: 10s", false),
            ("silent", silent(), "type: http, timeout: 100ms", false),
            ("silent", silent(), "type: grpc, timeout: 100ms", false),
            ("silent, but there", silent(), "type: tcp, timeout: 10s", true),
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

/// Settings by which a target with three failures becomes unavailable.
pub(crate) const STRICT: [&str; 2] = [
    ", health_check: {passive: {consecutive_failures: 3, ejection: 1h}, panic_threshold_percent: 0}",
    ", circuit_breaker: {error_rate: {min_requests: 3, open_for: 1h}}",
];

#[test]
fn a_client_that_does_not_send_on_is_no_fault_of_the_target() {
    block_on(async {
        let cases = STRICT.iter().flat_map(|fields| {
            ["timeout: 2s", "retry: {attempts: 1, on: [5xx], per_try_timeout: 1s}, timeout: 3s"]
                .map(|route| (*fields, route))
        });
        let cases = cases.map(async |(fields, route)| {
            let backend = Backend::echo();
            let harness = Harness::start(&document(&[backend.address], fields, &format!(", {route}")));
            let stalled = (0..4).map(async |_| {
                let mut stream = TcpStream::connect(harness.address()).await.unwrap();
                stream
                    .write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf")
                    .await
                    .unwrap();
                read_head(&mut stream).await.unwrap()
            });
            for answer in futures_util::future::join_all(stalled).await {
                assert!(answer.starts_with("HTTP/1.1 408 "), "{fields} {route}: {answer}");
            }
            assert_eq!(harness.get("/").await.status, 200, "{fields} {route}");
        });
        futures_util::future::join_all(cases).await;
    });
}

#[test]
fn a_client_that_does_not_read_is_no_fault_of_the_target() {
    block_on(async {
        let large = Bytes::from(vec![b'x'; 16 << 20]);
        let backend = Backend::start(move |_| {
            let large = large.clone();
            async { Response::new(full(large)) }
        });
        let cases = STRICT
            .iter()
            .flat_map(|fields| ["timeout: 2s", "idle_timeout: 2s"].map(|route| (*fields, route)));
        let cases = cases.map(async |(fields, route)| {
            let harness = Harness::start(&document(&[backend.address], fields, &format!(", {route}")));
            let mut clients = Vec::new();
            for _ in 0..4 {
                let mut client = Client::connect_http2(harness.address()).await;
                let answer = client.start(Request::get("/").body(full("")).unwrap()).await.unwrap();
                let mut raw = TcpStream::connect(harness.address()).await.unwrap();
                raw.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
                assert!(read_head(&mut raw).await.unwrap().starts_with("HTTP/1.1 200 "));
                clients.push((client, answer, raw));
            }
            let ended = if route.starts_with("idle") { "SI" } else { "UT" };
            let told = format!("upstream=\"u\",code_class=\"2xx\",flags=\"{ended}\"}} 8");
            until("they are given up", || metrics(&harness).contains(&told)).await;
            let head = Client::connect(harness.address())
                .await
                .start(Request::get("/").body(full("")).unwrap())
                .await;
            assert_eq!(head.unwrap().status(), 200, "{fields} {route}");
        });
        futures_util::future::join_all(cases).await;
    });
}

#[test]
fn an_answer_that_is_cut_off_with_its_request_is_not_passed_on_as_whole() {
    block_on(async {
        // It answers before it has the request, and its response ends with the connection.
        let backend = Backend::raw(|mut stream| async move {
            if read_head(&mut stream).await.is_some() {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nbegun").await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        });
        let limits = "listeners: [{name: small, address: '127.0.0.1:1', limits: {body_size: 10}}]";
        let document = format!("{}\n{limits}", document(&[backend.address], "", ""));
        let harness = Harness::with(&document, |settings| {
            settings.listener_overrides.insert("small".to_owned(), ([127, 0, 0, 1], 0).into());
        });
        let mut stream = TcpStream::connect(harness.proxy.listeners()["small"]).await.unwrap();
        stream
            .write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            .await
            .unwrap();
        let mut answer = read_head(&mut stream).await.unwrap().into_bytes();
        assert!(answer.starts_with(b"HTTP/1.1 200 "));
        while !answer.ends_with(b"begun\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"6\r\nsecond\r\n").await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{:?}", String::from_utf8_lossy(&rest));
    });
}

#[test]
fn however_many_idle_connections_a_target_has_closed_none_of_them_is_used() {
    const MANY: usize = 300;
    block_on(async {
        // It answers once all requests have arrived. Those that are told to end do.
        let (all, go) = (Arc::new(Barrier::new(MANY)), Arc::new(Notify::new()));
        let (asked, gone) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (counted, counted_gone, told) = (Arc::clone(&asked), Arc::clone(&gone), Arc::clone(&go));
        let backend = Backend::raw(move |mut stream| {
            let (all, told) = (Arc::clone(&all), Arc::clone(&told));
            let (counted, gone) = (Arc::clone(&counted), Arc::clone(&counted_gone));
            async move {
                let told = told.notified();
                if read_head(&mut stream).await.is_none() {
                    return;
                }
                if counted.fetch_add(1, Ordering::Relaxed) < MANY {
                    all.wait().await;
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                told.await;
                drop(stream);
                gone.fetch_add(1, Ordering::Relaxed);
            }
        });
        let harness = Harness::with(&document(&[backend.address], "", ""), |settings| settings.workers = 1);
        // On a busy machine the proxy may shed some requests.
        let clients = (0..MANY).map(async |_| while harness.get("/").await.status != 200 {});
        futures_util::future::join_all(clients).await;
        go.notify_waiters();
        until("all are gone", || gone.load(Ordering::Relaxed) == MANY).await;
        // The request must not be sent twice.
        let request = Request::post("/").body(full("")).unwrap();
        assert_eq!(Client::connect(harness.address()).await.send(request).await.status, 200);
    });
}

#[test]
fn an_upload_that_no_route_takes_is_answered() {
    block_on(async {
        let harness = Harness::start("routes: [{name: r, match: {paths: [{exact: /r}]}, respond: {}}]");
        let mut stream = TcpStream::connect(harness.address()).await.unwrap();
        let size = 2 << 20;
        let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let began = Instant::now();
        let sent = stream.write_all(&vec![b'x'; size]).await;
        assert!(sent.is_ok(), "the upload is reset: {sent:?} after {:?}", began.elapsed());
        assert!(read_head(&mut stream).await.unwrap().starts_with("HTTP/1.1 404 "));
    });
}

/// Answers each call with success once the whole request has arrived, so that it was mirrored.
fn reads_all() -> Backend {
    Backend::speaking(Wire::Http2, |request| async move {
        request.into_body().collect().await.unwrap();
        let response = Response::builder().header("content-type", "application/grpc");
        response.header("grpc-status", "0").body(full("")).unwrap()
    })
}

/// A document whose requests are mirrored to `shadow`, with more fields of its upstream.
fn mirrored(backend: &Backend, shadow: std::net::SocketAddr, fields: &str) -> String {
    format!(
        "upstreams:
- {{name: u, protocol: http2, targets: [{{address: '{}'}}]}}
- {{name: shadow, targets: [{{address: '{shadow}'}}]{fields}}}
routes: [{{name: all, forward: {{upstreams: [{{name: u}}], mirror: {{upstream: shadow}}}}}}]",
        backend.address
    )
}

#[test]
fn copies_are_judged_as_requests_are() {
    block_on(async {
        let passive =
            ", health_check: {passive: {consecutive_failures: 3, ejection: 1h}, panic_threshold_percent: 0}";
        let breaker = ", circuit_breaker: {error_rate: {min_requests: 3, open_for: 1h}}";
        let backend = reads_all();
        for (status, message, fields, timeout, class, blamed) in [
            ("14", false, passive, None, "5xx", true),
            ("14", true, passive, None, "5xx", true),
            ("0", true, passive, None, "2xx", false),
            ("5", false, passive, None, "4xx", false),
            ("4", true, passive, None, "5xx", true),
            ("4", true, passive, Some("5S"), "5xx", false),
            ("14", false, breaker, None, "5xx", true),
            ("5", false, breaker, None, "4xx", false),
        ] {
            let shadow = grpc(status, message);
            let fields = format!(", protocol: http2{fields}");
            let harness = Harness::start(&mirrored(&backend, shadow.address, &fields));
            let mut client = Client::connect_http2(harness.address()).await;
            for _ in 0..3 {
                assert_eq!(client.send(call(timeout)).await.headers.get("grpc-message"), None);
            }
            let case = format!("{status} {message} {timeout:?} {fields}");
            let counted = format!(
                "signalbox_upstream_requests_total{{upstream=\"shadow\",code_class=\"{class}\",flags=\"\"}} 3"
            );
            until(&case, || metrics(&harness).contains(&counted)).await;
            let out = || {
                let metrics = metrics(&harness);
                metrics.contains("signalbox_upstream_healthy_targets{upstream=\"shadow\"} 0")
                    || metrics.contains("signalbox_upstream_breaker_state{upstream=\"shadow\"} 2")
            };
            if blamed {
                until(&case, out).await;
            } else {
                assert!(!out(), "{case}");
            }
        }
    });
}

#[test]
fn copies_for_which_there_is_no_connection_open_no_breaker() {
    block_on(async {
        let backend = reads_all();
        let shadow = Backend::raw(|mut stream| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let fields = ", circuit_breaker: {limits: {connections: 1, pending: 0}, error_rate: {min_requests: 3, open_for: 1h}}";
        let harness = Harness::start(&mirrored(&backend, shadow.address, fields));
        let mut client = Client::connect_http2(harness.address()).await;
        for _ in 0..6 {
            client.get("/").await;
        }
        let refused =
            "signalbox_upstream_requests_total{upstream=\"shadow\",code_class=\"5xx\",flags=\"UO\"} 5";
        until("one has the connection", || metrics(&harness).contains(refused)).await;
        assert!(metrics(&harness).contains("signalbox_upstream_breaker_state{upstream=\"shadow\"} 0"));
    });
}

#[test]
fn copies_are_balanced_as_the_upstream_of_the_mirror_says() {
    block_on(async {
        let seen = Arc::<Mutex<BTreeMap<String, BTreeSet<usize>>>>::default();
        let shadows: Vec<_> = (0..3)
            .map(|number| {
                let seen = Arc::clone(&seen);
                Backend::start(move |request| {
                    let user = request.headers()["x-user"].to_str().unwrap().to_owned();
                    seen.lock().unwrap().entry(user).or_default().insert(number);
                    async { Response::new(full("")) }
                })
            })
            .collect();
        let backend = Backend::text("ok");
        let targets: Vec<_> = shadows.iter().map(|shadow| shadow.address).chain([nobody()]).collect();
        let targets: Vec<_> = targets.iter().map(|target| format!("{{address: '{target}'}}")).collect();
        let harness = Harness::start(&format!(
            "upstreams:
- {{name: u, targets: [{{address: '{}'}}]}}
- {{name: shadow, targets: [{}], load_balancing: {{policy: ring_hash, hash_on: {{header: x-user}}}},
   health_check: {{passive: {{consecutive_failures: 2, ejection: 1h}}}}}}
routes: [{{name: all, forward: {{upstreams: [{{name: u}}], mirror: {{upstream: shadow}}}}}}]",
            backend.address,
            targets.join(", ")
        ));
        let mut client = Client::connect(harness.address()).await;
        let healthy = "signalbox_upstream_healthy_targets{upstream=\"shadow\"} 3";
        let mut user = 0;
        // The target that does not listen is ejected because of mirrored requests alone.
        while !metrics(&harness).contains(healthy) {
            user += 1;
            let request = Request::get("/").header("x-user", format!("u{user}")).body(full("")).unwrap();
            assert_eq!(client.send(request).await.status, 200);
        }
        seen.lock().unwrap().clear();
        for _ in 0..5 {
            for user in 0..40 {
                let request = Request::get("/").header("x-user", user.to_string()).body(full("")).unwrap();
                assert_eq!(client.send(request).await.status, 200);
            }
        }
        let all = |seen: &BTreeMap<String, _>| (0..40).all(|user| seen.contains_key(&user.to_string()));
        until("all copies are there", || all(&seen.lock().unwrap())).await;
        let mut seen = seen.lock().unwrap();
        // Some mirrored requests of the previous users may have arrived late.
        seen.retain(|user, _| !user.starts_with('u'));
        assert!(seen.values().all(|shadows| shadows.len() == 1), "{seen:?}");
        assert!(seen.values().flatten().collect::<BTreeSet<_>>().len() > 1, "{seen:?}");
    });
}

#[test]
fn the_time_in_which_nothing_may_move_begins_anew_with_the_answer() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            if read_head(&mut stream).await.is_some() {
                for part in ["HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n", "late"] {
                    tokio::time::sleep(Duration::from_secs(3)).await;
                    let _ = stream.write_all(part.as_bytes()).await;
                }
            }
        });
        let harness = Harness::start(&document(&[backend.address], "", ", idle_timeout: 5s"));
        assert_eq!(harness.get("/").await.text(), "late");
    });
}

#[test]
fn an_idle_connection_is_not_used_after_its_time() {
    block_on(async {
        let backend = Backend::text("ok");
        let upstream = ", idle_timeout: 100ms";
        let harness =
            Harness::with(&document(&[backend.address], upstream, ""), |settings| settings.workers = 1);
        for connections in 1..5 {
            assert_eq!(harness.get("/").await.status, 200);
            assert_eq!(backend.connections(), connections);
            let answered = Instant::now();
            until("its time is over", || answered.elapsed() > Duration::from_millis(150)).await;
        }
    });
}

#[test]
fn a_connect_gets_the_connection_that_is_idle() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            while read_head(&mut stream).await.is_some() {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        });
        let limits = ", connect_timeout: 10s, circuit_breaker: {limits: {connections: 1, pending: 1}}";
        let harness = Harness::start(&document(&[backend.address], limits, ", upgrades: [connect]"));
        for _ in 0..5 {
            assert_eq!(harness.get("/").await.status, 200);
            let mut tunnel = TcpStream::connect(harness.address()).await.unwrap();
            tunnel.write_all(b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n").await.unwrap();
            assert!(read_head(&mut tunnel).await.unwrap().starts_with("HTTP/1.1 200 "));
            drop(tunnel);
        }
    });
}

#[test]
fn whoever_was_waited_for_longer_is_at_fault() {
    block_on(async {
        // The target takes two seconds; the client sends its last byte when less than that is left before the
        // deadline.
        let backend = Backend::start(|request| async move {
            let _ = request.into_body().collect().await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            Response::new(full("ok"))
        });
        let attempt = "retry: {attempts: 1, on: [5xx], per_try_timeout: 5s}, timeout: 20s";
        let cases =
            STRICT.iter().flat_map(|fields| [("timeout: 6s", 408), (attempt, 200)].map(|it| (*fields, it)));
        let cases = cases.map(async |(fields, (route, status))| {
            let harness = Harness::start(&document(&[backend.address], fields, &format!(", {route}")));
            let slow = (0..4).map(async |_| {
                let mut stream = TcpStream::connect(harness.address()).await.unwrap();
                stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n1").await.unwrap();
                tokio::time::sleep(Duration::from_millis(5200)).await;
                stream.write_all(b"2").await.unwrap();
                read_head(&mut stream).await.unwrap()
            });
            for answer in futures_util::future::join_all(slow).await {
                assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{fields} {route}: {answer}");
            }
            assert_eq!(harness.get("/").await.status, 200, "{fields} {route}");
        });
        futures_util::future::join_all(cases).await;
    });
}

#[test]
fn a_target_that_hangs_is_at_fault_though_a_call_of_grpc_could_go_on() {
    block_on(async {
        let backend = Backend::speaking(Wire::Http2, |_| std::future::pending());
        let upstream = ", protocol: http2, circuit_breaker: {error_rate: {min_requests: 3, open_for: 1h, timeout: 200ms}}";
        let harness = Harness::start(&document(&[backend.address], upstream, ""));
        let mut client = Client::connect_http2(harness.address()).await;
        for _ in 0..3 {
            let (open, body) = tokio::sync::mpsc::channel(1);
            open.send(Ok(Frame::data(Bytes::from_static(&[0; 5])))).await.unwrap();
            let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(body)).boxed();
            let (mut head, _) = call(None).into_parts();
            head.headers.remove("content-length");
            let answer = client.send(Request::from_parts(head, body)).await;
            assert_eq!(answer.headers["grpc-status"], "4", "{:?}", answer.headers);
            drop(open);
        }
        let open = "signalbox_upstream_breaker_state{upstream=\"u\"} 2";
        until("it is isolated", || metrics(&harness).contains(open)).await;
    });
}

#[test]
fn an_answer_without_a_body_is_whole_however_its_stream_ends() {
    block_on(async {
        let backend = Backend::speaking(Wire::Http2, |request| async move {
            // The end of the stream arrives separately.
            let body = http_body_util::StreamBody::new(stream::once(async {
                tokio::task::yield_now().await;
                Ok::<_, std::convert::Infallible>(Frame::data(Bytes::new()))
            }));
            let status = if request.method() == "GET" { 204 } else { 200 };
            Response::builder().status(status).body(body.map_err(|never| match never {}).boxed()).unwrap()
        });
        let harness = Harness::start(&document(&[backend.address], ", protocol: http2", ""));
        let mut client = Client::connect(harness.address()).await;
        for method in ["HEAD", "GET", "HEAD", "GET"] {
            let request = Request::builder().method(method).uri("/").body(full("")).unwrap();
            let answer = client.send(request).await;
            assert!(answer.body.is_empty());
        }
        let whole = "{upstream=\"u\",code_class=\"2xx\",flags=\"\"} 4";
        until("all are whole", || metrics(&harness).contains(whole)).await;
    });
}

#[test]
fn an_answer_before_the_upload_has_come_says_that_the_connection_ends() {
    block_on(async {
        let harness = Harness::start("routes: [{name: r, match: {paths: [{exact: /r}]}, respond: {}}]");
        for (length, closes) in [(100, false), (100_000, true)] {
            let mut stream = TcpStream::connect(harness.address()).await.unwrap();
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all(&[head.as_bytes(), &vec![b'x'; length]].concat()).await.unwrap();
            let answer = read_head(&mut stream).await.unwrap();
            assert_eq!(answer.contains("connection: close\r\n"), closes, "{answer}");
        }
        // In a segment of its own, the body may arrive in time or not: in both cases the response is right about the
        // connection.
        let ask = |expect: &str| {
            format!("POST / HTTP/1.1\r\nhost: a\r\n{expect}content-length: 5\r\n\r\n").into_bytes()
        };
        for late in [false, true, false, true] {
            let mut stream = TcpStream::connect(harness.address()).await.unwrap();
            stream.set_nodelay(true).unwrap();
            stream.write_all(&ask("")).await.unwrap();
            if late {
                let answer = read_head(&mut stream).await.unwrap();
                assert!(answer.contains("connection: close\r\n"), "{answer}");
                continue;
            }
            tokio::task::yield_now().await;
            stream.write_all(b"12345").await.unwrap();
            let answer = read_head(&mut stream).await.unwrap();
            if !answer.contains("connection: close\r\n") {
                let length = answer.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
                stream.read_exact(&mut vec![0; length.parse().unwrap()]).await.unwrap();
                stream.write_all(b"GET /r HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
                let next = read_head(&mut stream).await;
                assert!(next.as_ref().is_some_and(|head| head.starts_with("HTTP/1.1 200 ")), "{next:?}");
            }
        }
        let mut stream = TcpStream::connect(harness.address()).await.unwrap();
        stream.write_all(&ask("expect: 100-continue\r\n")).await.unwrap();
        let answer = read_head(&mut stream).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("connection: close\r\n"), "{answer}");
    });
}

#[test]
fn tunnels_are_not_requests_under_way() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let document = document(&[backend.address], "", ", upgrades: [connect]").replace(
            "{name: all,",
            "{name: own, match: {paths: [{exact: /own}]}, respond: {body: ok}}, {name: all,",
        );
        let harness = Harness::with(&document, |settings| {
            settings.workers = 1;
            settings.max_requests = 5;
        });
        let mut tunnels = Vec::new();
        for _ in 0..20 {
            let mut tunnel = TcpStream::connect(harness.address()).await.unwrap();
            tunnel.write_all(b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n").await.unwrap();
            assert!(read_head(&mut tunnel).await.unwrap().starts_with("HTTP/1.1 200 "));
            tunnels.push(tunnel);
        }
        assert_eq!(harness.get("/own").await.status, 200);
    });
}
