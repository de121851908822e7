mod connection_limits;
mod mirrors;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use signalbox_proxy::telemetry::access_log;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::harness::{
    Answer, AnyBody, Backend, Client, Harness, Wire, block_on, block_on_alone, full, nobody, read_head, until,
};
use crate::telling::{lines, metrics};

/// A document with one route that sends everything to the upstream `u`.
pub(crate) fn document(targets: &[SocketAddr], upstream: &str, forward: &str) -> String {
    let targets: Vec<_> = targets.iter().map(|target| format!("{{address: '{target}'}}")).collect();
    format!(
        "
upstreams: [{{name: u, targets: [{}]{upstream}}}]
routes: [{{name: all, forward: {{upstreams: [{{name: u}}]{forward}}}}}]
",
        targets.join(", ")
    )
}

fn request(method: &str, body: AnyBody) -> Request<AnyBody> {
    Request::builder().method(method).uri("/").body(body).unwrap()
}

fn status(status: u16, text: &'static str) -> Response<AnyBody> {
    Response::builder().status(status).body(full(text)).unwrap()
}

/// A body of unknown length.
fn streamed(parts: usize, part: &'static [u8]) -> AnyBody {
    let parts =
        (0..parts).map(move |_| Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(part))));
    StreamBody::new(stream::iter(parts)).map_err(|never| match never {}).boxed()
}

/// A backend that closes the connection once it has a request.
fn resets() -> Backend {
    Backend::raw(|mut stream| async move {
        read_head(&mut stream).await;
    })
}

#[test]
fn what_failed_is_sent_to_another_target() {
    block_on(async {
        let good = Backend::text("good");
        let hangs = Backend::start(|_| std::future::pending());
        let unavailable = Backend::start(|_| async { status(503, "bad") });
        let broken = Backend::start(|_| async { status(500, "bad") });
        let conflict = Backend::start(|_| async { status(409, "bad") });
        let exhausted = Backend::start(|_| async {
            let mut answer = status(200, "");
            answer.headers_mut().insert("grpc-status", "8".parse().unwrap());
            answer
        });
        let reset = resets();
        let [on_reset, on_5xx, on_gateway] = ["[reset]", "[5xx]", "[gateway-error]"];
        for (bad, on, method, retried) in [
            (nobody(), "[connect-failure]", "GET", true),
            (nobody(), on_5xx, "GET", true),
            (nobody(), on_reset, "GET", false),
            // The request was certainly not sent.
            (nobody(), "[connect-failure]", "POST", true),
            (reset.address, on_reset, "GET", true),
            (reset.address, on_gateway, "PUT", true),
            (reset.address, "[connect-failure]", "GET", false),
            // The request may have been processed.
            (reset.address, on_reset, "POST", false),
            (reset.address, "[reset], methods: [POST]", "POST", true),
            (reset.address, "[reset], methods: [POST]", "GET", false),
            (hangs.address, "[reset], per_try_timeout: 2s", "GET", true),
            (unavailable.address, on_gateway, "GET", true),
            (unavailable.address, on_5xx, "DELETE", true),
            (unavailable.address, on_reset, "GET", false),
            (unavailable.address, on_5xx, "POST", false),
            (broken.address, on_5xx, "GET", true),
            (broken.address, on_gateway, "GET", false),
            (conflict.address, "[retriable-4xx]", "GET", true),
            (conflict.address, on_5xx, "GET", false),
            (exhausted.address, "[resource-exhausted]", "grpc", true),
            (exhausted.address, "[unavailable]", "grpc", false),
            (exhausted.address, "[resource-exhausted]", "GET", false),
        ] {
            let harness =
                Harness::start(&document(&[bad, good.address], "", &format!(", retry: {{on: {on}}}")));
            let mut client = Client::connect(harness.address()).await;
            let mut answers = BTreeMap::<String, usize>::new();
            for _ in 0..6 {
                let mut request = match method {
                    "grpc" => request("POST", full("")),
                    method => request(method, full("")),
                };
                if method == "grpc" {
                    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
                }
                *answers.entry(client.send(request).await.text().to_owned()).or_default() += 1;
            }
            // Half of the requests begin with the failing target.
            let expected = if retried { 6 } else { 3 };
            assert_eq!(answers.get("good"), Some(&expected), "{method} {on} at {bad}: {answers:?}");
        }
    });
}

#[test]
fn what_a_target_may_have_begun_is_not_sent_again_when_a_try_is_late() {
    block_on(async {
        let send = async |wire: Wire, protocol: &str| {
            let got = Arc::<AtomicUsize>::default();
            let counted = Arc::clone(&got);
            let hangs = Backend::speaking(wire, move |_| {
                counted.fetch_add(1, Ordering::Relaxed);
                std::future::pending()
            });
            let harness = Harness::start(&document(
                &[hangs.address],
                &format!(", protocol: {protocol}"),
                ", retry: {on: [reset], attempts: 2, per_try_timeout: 2s}",
            ));
            let mut client = Client::connect(harness.address()).await;
            for (method, sent) in [("GET", 3), ("POST", 1), ("POST", 1)] {
                got.store(0, Ordering::Relaxed);
                assert_eq!(client.send(request(method, full("body"))).await.status, 504);
                assert_eq!(got.load(Ordering::Relaxed), sent, "{method} over {protocol}");
            }
        };
        tokio::join!(send(Wire::Http1, "http1"), send(Wire::Http2, "http2"));
    });
}

#[test]
fn retries_end_and_what_came_of_them_is_told() {
    block_on(async {
        let (sender, receiver) = access_log::channel(100);
        let counts = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&counts);
        let bad = Backend::start(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            async { status(503, "from the target") }
        });
        let retry = ", retry: {attempts: 2, on: [5xx]}";
        let mut harness = Harness::with_log(&document(&[bad.address], "", retry), Some(sender));
        let answer = harness.get("/").await;
        assert_eq!((answer.status, answer.text()), (503, "from the target"));
        assert_eq!(counts.load(Ordering::Relaxed), 3);
        harness.apply(&document(&[nobody()], "", retry)).unwrap();
        assert_eq!(harness.get("/").await.status, 503);
        let lines = lines(&receiver, 2).await;
        assert_eq!((&lines[0]["attempts"], &lines[0]["flags"]), (&3.into(), &"URX".into()));
        assert_eq!(lines[1]["flags"], "UF,URX");
        let metrics = metrics(&harness);
        let line = r#"signalbox_upstream_retries_total{upstream="u",outcome="failed"} 4"#;
        assert!(metrics.lines().any(|found| found == line), "{metrics}");
        // The connection of a discarded response is reused.
        assert_eq!(bad.connections(), 1);
    });
}

#[test]
fn the_time_of_a_request_is_not_that_of_an_answer_that_was_not_wanted() {
    block_on(async {
        let (sender, receiver) = access_log::channel(100);
        let first = AtomicBool::new(true);
        let backend = Backend::start(move |_| {
            let hangs = !first.swap(false, Ordering::Relaxed);
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                status(503, "bad")
            }
        });
        let forward = ", timeout: 3s, retry: {on: [5xx]}";
        let harness = Harness::with_log(&document(&[backend.address], "", forward), Some(sender));
        assert_eq!(harness.get("/").await.status, 504);
        let line = &lines(&receiver, 1).await[0];
        assert!(line["duration_ms"].as_f64().unwrap() >= 2900.0, "{line}");
        assert!(line["upstream_ms"].is_null(), "{line}");
    });
}

#[test]
fn a_body_is_sent_again_as_it_was_up_to_a_size() {
    block_on(async {
        // The backend reads the whole body, and then closes.
        let reset = Backend::raw(|mut stream| async move {
            let head = read_head(&mut stream).await.unwrap();
            if head.contains("chunked") {
                let mut got = Vec::new();
                while !got.ends_with(b"\r\n0\r\n\r\n") && stream.read_buf(&mut got).await.is_ok_and(|n| n > 0)
                {
                }
            } else {
                let mut body = vec![0; 60_000];
                let _ = stream.read_exact(&mut body).await;
            }
        });
        let echo = Backend::start(|request: Request<hyper::body::Incoming>| async move {
            let body = request.into_body().collect().await.unwrap();
            Response::new(full(body.to_bytes()))
        });
        let document = document(&[reset.address, echo.address], "", ", retry: {on: [reset]}");
        // There is one worker, because each has its own round robin position.
        let harness = Harness::with(&document, |settings| settings.workers = 1);
        let mut client = Client::connect(harness.address()).await;
        let sized = Bytes::from((0..60_000u32).map(|index| index as u8).collect::<Vec<_>>());
        for _ in 0..4 {
            let answer = client.send(request("PUT", full(sized.clone()))).await;
            assert!(answer.status == 200 && answer.body == sized, "{} {}", answer.status, answer.body.len());
            let answer = client.send(request("PUT", streamed(600, &[b'x'; 100]))).await;
            assert!(answer.status == 200 && answer.body == vec![b'x'; 60_000], "{}", answer.body.len());
        }
        // Sooner or later a request goes to the failing target, and cannot be retried.
        let mut status = 200;
        for _ in 0..50 {
            let mut client = Client::connect(harness.address()).await;
            status = client.send(request("PUT", streamed(700, &[b'x'; 100]))).await.status;
            if status != 200 {
                break;
            }
        }
        assert_eq!(status, 502);
        assert!(metrics(&harness).contains(r#"outcome="body_too_large"} 1"#));
    });
}

#[test]
fn a_large_body_of_which_nothing_was_taken_goes_to_another_target() {
    block_on(async {
        for (wire, protocol) in [(Wire::Http1, "http1"), (Wire::Http2, "http2")] {
            let good = Backend::speaking(wire, |request: Request<hyper::body::Incoming>| async move {
                let body = request.into_body().collect().await.unwrap();
                Response::new(full(body.to_bytes()))
            });
            let harness = Harness::start(&document(
                &[nobody(), good.address],
                &format!(", protocol: {protocol}"),
                ", retry: {on: [connect-failure]}",
            ));
            let mut client = Client::connect(harness.address()).await;
            let large = Bytes::from(vec![b'x'; 100_000]);
            for _ in 0..6 {
                let answer = client.send(request("POST", full(large.clone()))).await;
                assert_eq!((answer.status, answer.body.len()), (200, 100_000), "{protocol}");
            }
        }
    });
}

#[test]
fn a_connection_on_which_a_request_was_left_unfinished_carries_no_other() {
    block_on(async {
        // The backend answers before it has read the body, and records what arrives next on the same connection.
        let next = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&next);
        let early = Backend::raw(move |mut stream| {
            let noted = Arc::clone(&noted);
            async move {
                read_head(&mut stream).await.unwrap();
                let answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer).await.unwrap();
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
                noted.lock().unwrap().push(String::from_utf8_lossy(&rest).into_owned());
            }
        });
        let good = Backend::start(|request: Request<hyper::body::Incoming>| async move {
            let body = request.into_body().collect().await.unwrap();
            Response::new(full(body.to_bytes()))
        });
        let harness = Harness::start(&document(
            &[early.address, good.address],
            "",
            ", retry: {on: [5xx], attempts: 3, budget: 1}",
        ));
        let address = harness.address();
        let mut clients = JoinSet::new();
        for _ in 0..8 {
            clients.spawn(async move {
                let mut client = Client::connect(address).await;
                let parts = stream::unfold(0, |part| async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    (part < 5).then(|| {
                        (Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from("part "))), part + 1)
                    })
                });
                let answer = client
                    .send(request(
                        "PUT",
                        BodyExt::boxed(StreamBody::new(Box::pin(parts)).map_err(|never| match never {})),
                    ))
                    .await;
                assert_eq!((answer.status, answer.text()), (200, "part part part part part "));
            });
        }
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
        until("all are closed", || next.lock().unwrap().len() == early.connections()).await;
        assert!(early.connections() > 0);
        for rest in next.lock().unwrap().iter() {
            assert!(!rest.contains("HTTP/1.1"), "{rest:?}");
        }
    });
}

#[test]
fn retries_keep_to_their_budget() {
    block_on(async {
        let (tries, release) =
            (Arc::new(Mutex::new(BTreeMap::<String, u32>::new())), Arc::new(Semaphore::new(0)));
        let held = Arc::<AtomicUsize>::default();
        let (seen, gate, holding) = (Arc::clone(&tries), Arc::clone(&release), Arc::clone(&held));
        // The backend fails a request once, and does not answer the second one.
        let backend = Backend::start(move |request| {
            let tries = {
                let mut seen = seen.lock().unwrap();
                let tries = seen.entry(request.uri().to_string()).or_default();
                *tries += 1;
                *tries
            };
            let (gate, holding) = (Arc::clone(&gate), Arc::clone(&holding));
            async move {
                if tries == 1 {
                    return status(503, "bad");
                }
                holding.fetch_add(1, Ordering::Relaxed);
                gate.acquire().await.unwrap().forget();
                status(200, "good")
            }
        });
        for (budget, expected) in [("0", 3), ("0.2", 10), ("1", 50)] {
            let harness = Harness::start(&document(
                &[backend.address],
                "",
                &format!(", retry: {{on: [5xx], budget: {budget}}}"),
            ));
            held.store(0, Ordering::Relaxed);
            // Only the retries and these requests are running.
            let mut clients = JoinSet::new();
            let barrier = Arc::new(tokio::sync::Barrier::new(50));
            let refused = Arc::<AtomicUsize>::default();
            for index in 0..50 {
                let (address, barrier, refused) =
                    (harness.address(), Arc::clone(&barrier), Arc::clone(&refused));
                let path = format!("/{budget}/{index}");
                clients.spawn(async move {
                    let mut client = Client::connect(address).await;
                    barrier.wait().await;
                    if client.get(&path).await.status == 503 {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            until("each is held or refused", || {
                held.load(Ordering::Relaxed) + refused.load(Ordering::Relaxed) == 50
            })
            .await;
            // As requests end, the budget shrinks; three retries are always allowed.
            let retried = held.load(Ordering::Relaxed);
            assert!((3..=expected).contains(&retried), "{budget}: {retried}");
            assert!(budget == "0.2" || retried == expected, "{budget}: {retried}");
            release.add_permits(50);
            while clients.join_next().await.is_some() {}
            release.forget_permits(50);
        }
    });
}

#[test]
fn a_stream_in_which_nothing_moves_is_ended() {
    block_on(async {
        let (sender, receiver) = access_log::channel(100);
        let backend = Backend::raw(|mut stream| async move {
            let head = read_head(&mut stream).await.unwrap();
            if head.starts_with("GET /silent") {
                std::future::pending::<()>().await;
            }
            if head.starts_with("GET /empty") {
                return stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n").await.unwrap();
            // The response lasts longer than the idle timeout.
            for _ in 0..12 {
                stream.write_all(b"x").await.unwrap();
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            std::future::pending::<()>().await;
        });
        let forward = ", timeout: 0s, idle_timeout: 2s";
        let harness = Harness::with_log(&document(&[backend.address], "", forward), Some(sender));
        let address = harness.address();
        let mut clients = JoinSet::new();
        for wire in Wire::BOTH {
            clients.spawn(async move {
                let mut client = Client::speaking(wire, address).await;
                assert_eq!(client.get("/silent").await.status, 504);
                // The connection remains usable afterwards.
                assert_eq!(client.get("/empty").await.status, 200);
            });
            clients.spawn(async move {
                let mut client = Client::speaking(wire, address).await;
                let began = Instant::now();
                let response = client.start(request("GET", full(""))).await.unwrap();
                let mut body = response.into_body();
                let mut got = 0;
                while let Some(Ok(frame)) = body.frame().await {
                    got += frame.data_ref().map_or(0, Bytes::len);
                }
                assert_eq!(got, 12);
                assert!(began.elapsed() > Duration::from_secs(3), "{:?}", began.elapsed());
            });
        }
        clients.join_all().await;
        let lines = lines(&receiver, 6).await;
        assert_eq!(lines.iter().filter(|line| line["flags"] == "SI").count(), 4, "{lines:?}");
    });
}

#[test]
fn a_grpc_client_limits_the_time_of_its_call() {
    block_on(async {
        let backend = Backend::start(|_| std::future::pending());
        let harness = Harness::start(&document(&[backend.address], "", ""));
        for mut client in
            [Client::connect(harness.address()).await, Client::connect_http2(harness.address()).await]
        {
            let mut call = request("POST", full(""));
            call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            call.headers_mut().insert("grpc-timeout", "100m".parse().unwrap());
            let began = Instant::now();
            client.start(call).await.unwrap();
            let took = began.elapsed();
            assert!(took >= Duration::from_millis(100) && took < Duration::from_secs(5), "{took:?}");
        }
    });
}

/// The clients' observations: time, status, and duration.
type Seen = Arc<Mutex<Vec<(Instant, u16, Duration)>>>;

/// Clients that request `path` repeatedly until `stop`.
fn load(
    address: SocketAddr,
    path: &'static str,
    clients: usize,
    stop: &Arc<AtomicBool>,
) -> (JoinSet<()>, Seen) {
    let seen = Seen::default();
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let (seen, stop) = (Arc::clone(&seen), Arc::clone(stop));
        tasks.spawn(async move {
            let mut client = Client::connect(address).await;
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                let answer = client.get(path).await;
                seen.lock().unwrap().push((Instant::now(), answer.status, began.elapsed()));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    (tasks, seen)
}

fn p99(seen: &Seen, from: Instant, to: Instant) -> Duration {
    let seen = seen.lock().unwrap();
    let mut took: Vec<_> =
        seen.iter().filter(|(at, ..)| (from..to).contains(at)).map(|(.., took)| *took).collect();
    took.sort_unstable();
    assert!(took.len() > 100, "{} requests say nothing", took.len());
    took[took.len() * 99 / 100]
}

#[test]
fn a_dependency_that_hangs_is_isolated_and_the_rest_does_not_feel_it() {
    block_on(async {
        // The test is repeated if it took too long, because the machine may have paused; a slow breaker would be slow
        // each time.
        for attempt in 1.. {
            let Err(late) = isolate().await else { break };
            assert!(attempt < 3, "{late}");
        }
    });
}

const ISOLATED_WITHIN: Duration = Duration::from_millis(1200);

/// Makes a dependency hang. The error names what took too long.
#[expect(clippy::print_stdout, reason = "the figures are what a reader of the log looks for")]
async fn isolate() -> Result<(), String> {
    let hangs = Arc::<AtomicBool>::default();
    let hung = Arc::clone(&hangs);
    let dependency = Backend::start(move |_| {
        let hung = Arc::clone(&hung);
        async move {
            if hung.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            status(200, "ok")
        }
    });
    let other = Backend::text("other");
    let document = |extra: &str| {
        format!(
            "
upstreams:
- name: dependency
  targets: [{{address: '{}'}}]
  circuit_breaker:
    error_rate: {{timeout: 800ms, window: 10s, min_requests: 20, open_for: 1s, fallback: {{status: 299, body: instead}}}}
- {{name: other, targets: [{{address: '{}'}}]}}
routes:
- {{name: dependency, match: {{paths: [{{exact: /dependency}}]}}, forward: {{upstreams: [{{name: dependency}}]}}}}
- {{name: other, match: {{paths: [{{exact: /other}}]}}, forward: {{upstreams: [{{name: other}}]}}}}
{extra}",
            dependency.address, other.address
        )
    };
    let mut harness = Harness::start(&document(""));
    let stop = Arc::<AtomicBool>::default();
    let (dependent, dependents) = load(harness.address(), "/dependency", 30, &stop);
    let (rest, others) = load(harness.address(), "/other", 8, &stop);
    let began = Instant::now();
    // Many successes are in the window when it begins to hang.
    until("there was traffic", || {
        began.elapsed() > Duration::from_millis(1500) && dependents.lock().unwrap().len() > 1000
    })
    .await;
    let hanging = Instant::now();
    hangs.store(true, Ordering::Relaxed);
    until("it is isolated", || dependents.lock().unwrap().iter().any(|(_, status, _)| *status == 299)).await;
    let isolated = dependents.lock().unwrap().iter().find(|(_, status, _)| *status == 299).unwrap().0;
    let took = isolated.duration_since(hanging);
    if took > ISOLATED_WITHIN {
        return Err(format!("isolated after {took:?}"));
    }
    let state = |state: u8| format!("signalbox_upstream_breaker_state{{upstream=\"dependency\"}} {state}");
    until("the metrics say so", || metrics(&harness).contains(&state(2))).await;
    // A revision that changes something else does not reset the breaker.
    harness
        .apply(&document("- {name: more, match: {paths: [{exact: /more}]}, respond: {status: 204}}"))
        .unwrap();
    until("it has been so for a while", || isolated.elapsed() > Duration::from_millis(1500)).await;
    let end = Instant::now();
    {
        let seen = dependents.lock().unwrap();
        // All later requests are answered at once, except for the probes, three per second.
        let (quick, slow): (Vec<_>, Vec<_>) = seen
            .iter()
            .copied()
            .filter(|(at, _, took)| *at - *took > isolated)
            .partition(|(_, status, _)| *status == 299);
        let tries = 3 * (end.duration_since(isolated).as_secs() as usize + 1);
        assert!(quick.len() > 100 && slow.len() <= tries, "{} and {}", quick.len(), slow.len());
        let failed = seen.iter().filter(|(_, status, _)| !matches!(status, 200 | 299 | 504)).count();
        assert_eq!(failed, 0);
    }
    let (before, during) = (p99(&others, began, hanging), p99(&others, hanging, end));
    println!("isolated after {took:?}; p99 of the rest {before:?} before, {during:?} during");
    // A request that had to wait for the hanging target would wait for the full timeout of 800 ms.
    if during > Duration::from_millis(400) {
        return Err(format!("p99 {before:?} before, {during:?} during"));
    }
    hangs.store(false, Ordering::Relaxed);
    let recovered = Instant::now();
    until("it is used again", || {
        dependents.lock().unwrap().iter().any(|(at, status, _)| *at > recovered && *status == 200)
            && metrics(&harness).contains(&state(0))
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    dependent.join_all().await;
    rest.join_all().await;
    assert!(others.lock().unwrap().iter().all(|(_, status, _)| *status == 200));
    Ok(())
}

#[test]
fn an_open_breaker_without_fallback_answers_503_and_stops_retries() {
    block_on(async {
        let (sender, receiver) = access_log::channel(100);
        let backend = Backend::start(|_| async { status(500, "bad") });
        let upstream = ", circuit_breaker: {error_rate: {min_requests: 3, open_for: 1h}}";
        let forward = ", retry: {attempts: 10, on: [5xx]}";
        let harness = Harness::with_log(&document(&[backend.address], upstream, forward), Some(sender));
        for _ in 0..2 {
            assert_eq!(harness.get("/").await.status, 503);
        }
        let lines = lines(&receiver, 2).await;
        assert_eq!((&lines[0]["attempts"], &lines[0]["flags"]), (&3.into(), &"UO".into()));
        assert_eq!((&lines[1]["attempts"], &lines[1]["flags"]), (&0.into(), &"UO".into()));
    });
}

#[test]
fn a_worker_has_no_more_requests_than_it_may() {
    block_on(async {
        let (sender, receiver) = access_log::channel(100);
        let backend = Backend::start(|_| std::future::pending());
        let harness = Harness::with_limit(&document(&[backend.address], "", ""), Some(sender), 5);
        let address = harness.address();
        for http2 in [false, true] {
            let mut clients = JoinSet::new();
            let refused = Arc::<AtomicUsize>::default();
            for _ in 0..30 {
                let refused = Arc::clone(&refused);
                clients.spawn(async move {
                    let mut client = match http2 {
                        true => Client::connect_http2(address).await,
                        false => Client::connect(address).await,
                    };
                    assert_eq!(client.get("/").await.status, 503);
                    refused.fetch_add(1, Ordering::Relaxed);
                    // The connection remains usable.
                    assert_eq!(client.get("/").await.status, 503);
                });
            }
            // There are two workers.
            until("the others are refused", || refused.load(Ordering::Relaxed) >= 20).await;
            assert!(refused.load(Ordering::Relaxed) <= 25, "{refused:?}");
            clients.abort_all();
            while clients.join_next().await.is_some() {}
            until("they are gone", || harness.proxy.active_connections() == 0).await;
        }
        let lines = lines(&receiver, 60).await;
        assert!(lines.iter().filter(|line| line["flags"] == "OM" && line["status"] == 503).count() >= 40);
    });
}

/// Runs `clients` that repeat requests without a pause for `time`. Returns the duration of each response, and the
/// number of refusals.
async fn storm(address: SocketAddr, clients: usize, time: Duration) -> (Vec<Duration>, usize) {
    let end = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        tasks.spawn(async move {
            let (mut answered, mut refused) = (Vec::new(), 0);
            let mut connection = None;
            while Instant::now() < end {
                let began = Instant::now();
                let mut stream = match connection.take() {
                    Some(stream) => stream,
                    None => tokio::net::TcpStream::connect(address).await.unwrap(),
                };
                stream.write_all(b"GET / HTTP/1.1\r\nhost: test.example\r\n\r\n").await.unwrap();
                let mut answer = Vec::with_capacity(1024);
                while !(answer.ends_with(b"answered") || answer.ends_with(b"}")) {
                    assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
                }
                if answer.starts_with(b"HTTP/1.1 200") {
                    answered.push(began.elapsed());
                    connection = Some(stream);
                } else {
                    assert!(answer.starts_with(b"HTTP/1.1 503"));
                    refused += 1;
                }
            }
            (answered, refused)
        });
    }
    let (mut answered, mut refused) = (Vec::new(), 0);
    for (answers, refusals) in tasks.join_all().await {
        answered.extend(answers);
        refused += refusals;
    }
    answered.sort_unstable();
    (answered, refused)
}

#[test]
fn many_times_as_many_clients_as_it_takes_get_as_much_answered_in_bounded_time() {
    block_on_alone(async {
        let backend = Backend::text("answered");
        let harness = Harness::start(&document(&[backend.address], "", ""));
        let time = Duration::from_secs(1);
        let p99 = |took: &[Duration]| took[took.len() * 99 / 100];
        // The measurements alternate, because the machine may be busy; a proxy that breaks down does so each time.
        for round in 1.. {
            let (enough, _) = storm(harness.address(), 32, time).await;
            let (many, refused) = storm(harness.address(), 640, time).await;
            let told = format!(
                "32 clients: {} answers, p99 {:?}; 640: {}, p99 {:?}, {refused} refused",
                enough.len(),
                p99(&enough),
                many.len(),
                p99(&many)
            );
            println!("{told}");
            if many.len() * 2 > enough.len() && p99(&many) < Duration::from_secs(3) {
                break;
            }
            assert!(round < 5, "{told}");
        }
    });
}
