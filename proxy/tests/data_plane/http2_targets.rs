//! Connections to HTTP/2 targets: their number, and their ends.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::harness::{Backend, Client, Harness, Wire, block_on, forward_over, full, raw, until};

/// The reaction to a request over HTTP/2.
#[derive(Debug, Clone, Copy)]
enum Reaction {
    Answer,
    /// `REFUSED_STREAM`.
    Refuse,
    /// `GOAWAY`: no stream after this one was processed. Then the connection ends.
    GoAway(u32),
    /// The connection ends.
    Close,
    /// The target answers nothing from now on, not even pings.
    FallSilent,
}

/// Frame types and flags of RFC 9113, section 6.
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const END_STREAM_AND_HEADERS: u8 = 5;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Serves a connection frame by frame; `next` returns the reaction to each request.
async fn react(mut stream: TcpStream, next: impl Fn() -> Reaction) {
    let mut preface = [0; 24];
    let _ = stream.read_exact(&mut preface).await;
    let _ = stream.write_all(&frame(SETTINGS, 0, 0, &[])).await;
    let mut head = [0; 9];
    while stream.read_exact(&mut head).await.is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if stream.read_exact(&mut payload).await.is_err() {
            return;
        }
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let reply = match (head[3], head[4]) {
            (SETTINGS, 0) => frame(SETTINGS, ACK, 0, &[]),
            (PING, 0) => frame(PING, ACK, 0, &payload),
            (HEADERS, _) => match next() {
                // `:status: 200` is number 8 of HPACK's static table.
                Reaction::Answer => frame(HEADERS, END_STREAM_AND_HEADERS, id, &[0x88]),
                Reaction::Refuse => frame(RST_STREAM, 0, id, &7u32.to_be_bytes()),
                Reaction::GoAway(last) => {
                    let mut payload = last.to_be_bytes().to_vec();
                    payload.extend([0; 4]);
                    let _ = stream.write_all(&frame(GOAWAY, 0, 0, &payload)).await;
                    return;
                }
                Reaction::Close => return,
                Reaction::FallSilent => return std::future::pending().await,
            },
            _ => continue,
        };
        let _ = stream.write_all(&reply).await;
    }
}

/// A backend that reacts to requests with `reactions` in turn, over any connection; and the number of requests.
fn reacting(reactions: &[Reaction]) -> (Backend, Arc<AtomicUsize>) {
    let reactions = Arc::new(Mutex::new(VecDeque::from(reactions.to_vec())));
    let met = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&met);
    let backend = Backend::raw(move |stream| {
        let (reactions, met) = (Arc::clone(&reactions), Arc::clone(&counted));
        react(stream, move || {
            met.fetch_add(1, Ordering::Relaxed);
            reactions.lock().unwrap().pop_front().unwrap_or(Reaction::Close)
        })
    });
    (backend, met)
}

#[test]
fn what_the_target_has_surely_not_seen_is_sent_again() {
    use Reaction::{Answer, Close, GoAway, Refuse};
    block_on(async {
        for (method, reactions, status, connections) in [
            ("POST", &[Answer, Answer][..], 200, 1),
            ("POST", &[Answer, Refuse, Answer], 200, 2),
            ("POST", &[Answer, GoAway(1), Answer], 200, 2),
            ("POST", &[Answer, GoAway(1), Refuse, Answer], 200, 3),
            // The target may have seen it.
            ("POST", &[Answer, GoAway(3), Answer], 502, 1),
            ("POST", &[Answer, Close, Answer], 502, 1),
            // It may be sent twice; but a connection that never answered is not reused.
            ("GET", &[Answer, Close, Answer], 200, 2),
            ("GET", &[Answer, Close, Close, Answer], 502, 2),
            // The number of repetitions is limited.
            ("POST", &[Answer, Refuse, Refuse, Refuse, Refuse, Answer], 502, 5),
        ] {
            let (backend, met) = reacting(reactions);
            let harness = Harness::start(&forward_over(Wire::Http2, backend.address));
            let mut client = Client::connect(harness.address()).await;
            let first = client.get("/").await;
            assert_eq!(first.status, 200);
            let request = Request::builder().method(method).uri("/").body(full("hello")).unwrap();
            let answer = client.send(request).await;
            let case = format!("{method} {reactions:?}: {}", answer.text());
            assert_eq!(answer.status, status, "{case}");
            assert!(backend.connections() <= connections, "{case}: {}", backend.connections());
            let left = usize::from(status != 200);
            assert_eq!(met.load(Ordering::Relaxed), reactions.len() - left, "{case}");
        }
    });
}

#[test]
fn a_target_that_is_silent_is_asked_and_given_up() {
    block_on(async {
        let (backend, _) = reacting(&[Reaction::FallSilent]);
        let harness = Harness::start(&forward_over(Wire::Http2, backend.address));
        let answer = harness.get("/").await;
        assert_eq!(answer.status, 502, "long before the route's 30 s");
    });
}

/// A backend that answers when it is allowed to, and counts the waiting requests.
fn waiting(max_streams: Option<u32>) -> (Backend, Arc<Semaphore>, Arc<AtomicUsize>) {
    let allowed = Arc::new(Semaphore::new(0));
    let waits = Arc::<AtomicUsize>::default();
    let (allow, count) = (Arc::clone(&allowed), Arc::clone(&waits));
    let backend = Backend::raw(move |stream| {
        let (allow, count) = (Arc::clone(&allow), Arc::clone(&count));
        let service = service_fn(move |_| {
            let (allow, count) = (Arc::clone(&allow), Arc::clone(&count));
            async move {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = allow.acquire().await;
                Ok::<_, std::convert::Infallible>(Response::new(full("waited")))
            }
        });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.max_concurrent_streams(max_streams);
        async move {
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        }
    });
    (backend, allowed, waits)
}

#[test]
fn requests_share_connections_as_far_as_the_target_lets_them() {
    block_on(async {
        for (max_streams, requests, connections) in [(None, 100, 1), (Some(20), 100, 5), (None, 150, 2)] {
            let (backend, allowed, waits) = waiting(max_streams);
            let harness = Harness::start(&forward_over(Wire::Http2, backend.address));
            let Client::Http2(sender) = Client::connect_http2(harness.address()).await else {
                unreachable!()
            };
            let mut running = tokio::task::JoinSet::new();
            for round in 0..2 {
                let begin = |running: &mut tokio::task::JoinSet<_>| {
                    let mut client = Client::Http2(sender.clone());
                    // On a busy machine the proxy may shed some requests. If all were repeated at once, it would go on
                    // shedding.
                    running.spawn(async move {
                        loop {
                            match client.get("/").await.status {
                                503 => tokio::time::sleep(Duration::from_millis(50)).await,
                                status => return status,
                            }
                        }
                    });
                };
                // The first request reveals the target's limit.
                if round == 0 {
                    begin(&mut running);
                    until("the first has come", || waits.load(Ordering::Relaxed) == 1).await;
                    allowed.add_permits(1);
                    assert_eq!(running.join_next().await.unwrap().unwrap(), 200);
                    waits.store(0, Ordering::Relaxed);
                    let _ = allowed.acquire().await.map(tokio::sync::SemaphorePermit::forget);
                    continue;
                }
                (0..requests).for_each(|_| begin(&mut running));
                until("all are there at once", || waits.load(Ordering::Relaxed) == requests).await;
                assert_eq!(backend.connections(), connections, "{max_streams:?} {requests}");
                allowed.add_permits(Semaphore::MAX_PERMITS / 2);
                while let Some(status) = running.join_next().await {
                    assert_eq!(status.unwrap(), 200);
                }
            }
        }
    });
}

#[test]
fn a_connection_whose_target_has_not_sent_its_settings_takes_as_many_requests_as_the_others() {
    block_on(async {
        let hold = Arc::new(Semaphore::new(0));
        let settings = Arc::new(Semaphore::new(1));
        let (held, opened) = (Arc::clone(&hold), Arc::clone(&settings));
        let backend = Backend::raw(move |stream| {
            let (held, opened) = (Arc::clone(&held), Arc::clone(&opened));
            let service = service_fn(move |request: Request<Incoming>| {
                let held = Arc::clone(&held);
                async move {
                    if request.uri().path() == "/held" {
                        let _ = held.acquire().await;
                    }
                    Ok::<_, std::convert::Infallible>(Response::new(full("done")))
                }
            });
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.max_concurrent_streams(2);
            async move {
                opened.acquire().await.unwrap().forget();
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            }
        });
        let harness =
            Harness::with(&forward_over(Wire::Http2, backend.address), |settings| settings.workers = 1);
        let Client::Http2(sender) = Client::connect_http2(harness.address()).await else { unreachable!() };
        // The first connection tells the limit, and then has no room.
        assert_eq!(Client::Http2(sender.clone()).get("/").await.status, 200);
        let mut running = tokio::task::JoinSet::new();
        let mut begin = || {
            let mut client = Client::Http2(sender.clone());
            running.spawn(async move { client.get("/held").await.status });
        };
        (0..3).for_each(|_| begin());
        until("there is a second connection", || backend.connections() == 2).await;
        (0..3).for_each(|_| begin());
        until("there is a third connection", || backend.connections() == 3).await;
        settings.add_permits(2);
        hold.add_permits(1);
        while let Some(status) = running.join_next().await {
            assert_eq!(status.unwrap(), 200);
        }
    });
}

/// A document with targets that speak HTTP/2, with these limits.
fn limited(targets: &[std::net::SocketAddr], limits: &str) -> String {
    let targets: Vec<_> = targets.iter().map(|target| format!("{{address: '{target}'}}")).collect();
    format!(
        "
upstreams: [{{name: u, protocol: http2, connect_timeout: 15s, targets: [{}], circuit_breaker: {{limits: {{{limits}}}}}}}]
routes: [{{name: all, forward: {{upstreams: [{{name: u}}]}}}}]
",
        targets.join(", ")
    )
}

/// The number of requests that wait for a connection.
fn awaited(harness: &Harness) -> u32 {
    harness.proxy.counted(|_, compiled, _, _| {
        compiled.active.upstreams.iter().map(|upstream| upstream.transport.load.awaited()).sum()
    })
}

#[test]
fn requests_wait_for_room_where_there_may_be_no_more_connections() {
    block_on(async {
        let (backend, allowed, waits) = waiting(Some(1));
        let document = limited(&[backend.address], "connections: 1, pending: 4");
        let harness = Harness::with(&document, |settings| settings.workers = 1);
        let Client::Http2(sender) = Client::connect_http2(harness.address()).await else { unreachable!() };
        let ask = || {
            let mut client = Client::Http2(sender.clone());
            tokio::spawn(async move { client.get("/").await.status })
        };
        // The first request reveals the target's limit.
        allowed.add_permits(1);
        assert_eq!(ask().await.unwrap(), 200);
        let _ = allowed.acquire().await.map(tokio::sync::SemaphorePermit::forget);
        waits.store(0, Ordering::Relaxed);
        let mut running = vec![ask()];
        until("one has come", || waits.load(Ordering::Relaxed) == 1).await;
        for count in 1..=4 {
            running.push(ask());
            until("it waits", || awaited(&harness) == count).await;
        }
        assert_eq!(ask().await.unwrap(), 503, "with four others");
        allowed.add_permits(1);
        for running in running {
            assert_eq!(running.await.unwrap(), 200);
        }
        assert_eq!((backend.connections(), awaited(&harness)), (1, 0));
    });
}

#[test]
fn all_who_wait_share_the_connection_that_one_of_them_makes() {
    block_on(async {
        let hang = Arc::new(Semaphore::new(0));
        let (gate, held) = (Arc::clone(&hang), Arc::<AtomicUsize>::default());
        let counted = Arc::clone(&held);
        let slow = Backend::speaking(Wire::Http2, move |_| {
            let gate = Arc::clone(&gate);
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                let _ = gate.acquire().await;
                Response::new(full("slow"))
            }
        });
        let other = Backend::speaking(Wire::Http2, |_| async { Response::new(full("other")) });
        let document = limited(&[slow.address, other.address], "connections: 1, pending: 100");
        let harness = Harness::with(&document, |settings| settings.workers = 1);
        let Client::Http2(sender) = Client::connect_http2(harness.address()).await else { unreachable!() };
        let ask = || {
            let mut client = Client::Http2(sender.clone());
            tokio::spawn(async move { client.get("/").await.status })
        };
        // The requests to the other target wait.
        let mut running = Vec::new();
        while held.load(Ordering::Relaxed) == 0 {
            running.push(ask());
            until("it is held or answered", || {
                held.load(Ordering::Relaxed) > 0 || running.iter().all(tokio::task::JoinHandle::is_finished)
            })
            .await;
        }
        running.extend((0..20).map(|_| ask()));
        until("half of them wait", || awaited(&harness) == 10).await;
        hang.add_permits(1);
        for running in running {
            assert_eq!(running.await.unwrap(), 200);
        }
        assert!(other.connections() <= 2, "{}", other.connections());
    });
}

#[test]
fn idle_connections_are_given_up_for_who_waits() {
    block_on(async {
        let answering = || Backend::speaking(Wire::Http2, |_| async { Response::new(full("ok")) });
        // The cases are: another target, and another worker.
        for (targets, pending, workers) in [(2, 0, 1), (1, 4, 2), (2, 4, 2)] {
            let targets: Vec<_> = (0..targets).map(|_| answering()).collect();
            let addresses: Vec<_> = targets.iter().map(|target| target.address).collect();
            let document = limited(&addresses, &format!("connections: 1, pending: {pending}"));
            let harness = Harness::with(&document, |settings| settings.workers = workers);
            for _ in 0..16 {
                assert_eq!(harness.get("/").await.status, 200, "{pending} {workers}");
            }
        }
    });
}

#[test]
fn a_connection_outlives_revisions_and_ends_when_it_is_idle() {
    block_on(async {
        let gone = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&gone);
        let backend = Backend::raw(move |stream| {
            let counted = Arc::clone(&counted);
            async move {
                react(stream, || Reaction::Answer).await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let document = forward_over(Wire::Http2, backend.address);
        let mut harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        assert_eq!(client.get("/").await.status, 200);
        let impatient = document.replace("protocol: http2", "protocol: http2, idle_timeout: 1s");
        harness.apply(&impatient).unwrap();
        assert_eq!(client.get("/").await.status, 200);
        assert_eq!(backend.connections(), 1);
        until("it was idle for too long", || gone.load(Ordering::Relaxed) == 1).await;
        assert_eq!(client.get("/").await.status, 200);
        assert_eq!(backend.connections(), 2);
    });
}

#[test]
fn one_client_that_takes_nothing_holds_up_nobody_else() {
    block_on(async {
        let large: Bytes = vec![b'x'; 8 << 20].into();
        let backend = Backend::speaking(Wire::Http2, move |request| {
            let large = large.clone();
            async move {
                Response::new(full(if request.uri().path() == "/large" { large } else { "small".into() }))
            }
        });
        let harness = Harness::start(&forward_over(Wire::Http2, backend.address));
        // All requests are on one worker, because they share one connection.
        let Client::Http2(sender) = Client::connect_http2(harness.address()).await else { unreachable!() };
        let mut held = Vec::new();
        for _ in 0..20 {
            let mut client = Client::Http2(sender.clone());
            held.push(client.start(Request::get("/large").body(full("")).unwrap()).await.expect("a head"));
        }
        tokio::time::timeout(Duration::from_secs(5), async {
            // The client's own connection is full by now, so other clients send.
            for _ in 0..20 {
                assert_eq!(harness.get("/").await.text(), "small");
            }
        })
        .await
        .expect("nobody waits for who takes nothing");
        assert!(backend.connections() <= 2);
    });
}

#[test]
fn connections_that_finish_old_streams_leave_room_for_new_ones() {
    block_on(async {
        // Each connection accepts two requests, and then a GOAWAY; the first one's response never ends.
        let backend = Backend::raw(|mut stream| async move {
            let mut preface = [0; 24];
            let _ = stream.read_exact(&mut preface).await;
            let _ = stream.write_all(&frame(SETTINGS, 0, 0, &[])).await;
            let mut head = [0; 9];
            let mut asked = 0;
            while stream.read_exact(&mut head).await.is_ok() {
                let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
                if stream.read_exact(&mut payload).await.is_err() {
                    return;
                }
                let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                let reply = match (head[3], head[4]) {
                    (SETTINGS, 0) => frame(SETTINGS, ACK, 0, &[]),
                    (HEADERS, _) => {
                        asked += 1;
                        let end = if asked == 1 { END_HEADERS } else { END_STREAM_AND_HEADERS };
                        let mut reply = frame(HEADERS, end, id, &[0x88]);
                        if asked == 2 {
                            let last = [id.to_be_bytes(), [0; 4]].concat();
                            reply.extend(frame(GOAWAY, 0, 0, &last));
                        }
                        reply
                    }
                    _ => continue,
                };
                let _ = stream.write_all(&reply).await;
            }
        });
        let document = forward_over(Wire::Http2, backend.address);
        let harness = Harness::with(&document, |settings| settings.workers = 1);
        let mut client = Client::connect_http2(harness.address()).await;
        let mut endless = Vec::new();
        while backend.connections() < 80 {
            let answer = client.start(Request::get("/").body(full("")).unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200, "with {} connections", backend.connections());
            endless.push(answer);
        }
    });
}

#[test]
fn who_names_no_host_is_answered_over_http2_too() {
    block_on(async {
        let backend = Backend::speaking(Wire::Http2, |_| async { Response::new(full("ok")) });
        let harness = Harness::start(&forward_over(Wire::Http2, backend.address));
        for request in ["GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n"] {
            let answer = raw(harness.address(), request.as_bytes()).await;
            assert!(answer.contains(" 200 OK\r\n"), "{request}: {answer}");
        }
    });
}
