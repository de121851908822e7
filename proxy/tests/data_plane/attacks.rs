//! Attacks by clients: each costs bounded memory and time, and others are served meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Backend, Client, Harness, block_on, block_on_alone, forward_to, full, until};
use crate::process::Process;
use crate::wire::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, Frames, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS,
    frame, get, literals,
};

/// The error code of RFC 9113, section 7.
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// The maximum memory that any one of these attacks may cost, in bytes.
const MEMORY: u64 = 64 << 20;

/// The maximum CPU time that one of them may cost until it ends; an optimised build takes a fraction of it.
const CPU: Duration = Duration::from_secs(3);

fn code(frame: &Frame) -> u32 {
    let at = if frame.kind == GOAWAY { 4 } else { 0 };
    frame.payload.get(at..at + 4).map_or(0, |code| u32::from_be_bytes(code.try_into().unwrap()))
}

/// Sends `flood` repeatedly and reads the responses until the proxy ends the connection. Returns the code of its
/// GOAWAY, and how often it took the flood.
async fn until_left(
    frames: &mut Frames,
    mut flood: impl FnMut(u32) -> Vec<u8>,
    most: u32,
) -> (Option<u32>, u32) {
    let mut sent = 0;
    while sent < most && frames.send(&flood(sent)).await {
        sent += 1;
    }
    loop {
        match frames.next_within(Duration::from_secs(5)).await {
            Some(frame) if frame.kind == GOAWAY && code(&frame) != 0 => return (Some(code(&frame)), sent),
            Some(_) => {}
            None => return (None, sent),
        }
    }
}

/// Sends `flood` without reading, until the proxy takes no more or `most` bytes were sent.
async fn without_reading(address: SocketAddr, flood: &[u8], most: usize) {
    let mut frames = Frames::connect(address, &[]).await;
    let mut sent = 0;
    while sent < most {
        match tokio::time::timeout(Duration::from_secs(1), frames.stream.write_all(flood)).await {
            Ok(Ok(())) => sent += flood.len(),
            // The proxy waits until its responses are read, or has closed.
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// Another client is served at once.
async fn expect_service(address: SocketAddr) {
    let began = Instant::now();
    assert_eq!(Client::connect(address).await.get("/").await.status, 200);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn floods_of_frames_cost_little_and_end() {
    block_on_alone(async {
        let backend = Backend::text("ok");
        let process = Process::start(&forward_to(backend.address), &[]).await;
        let address = process.address;
        expect_service(address).await;
        let before = process.peak_memory();
        let mut cpu = process.cpu();
        let mut expect_little = async |what: &str| {
            expect_service(address).await;
            let took = process.cpu() - std::mem::replace(&mut cpu, process.cpu());
            println!("{what}: {took:?} of CPU time");
            assert!(took < CPU, "{what}: {took:?}");
        };

        // Rapid reset (CVE-2023-44487): streams that are reset as soon as they are opened.
        let mut frames = Frames::connect(address, &[]).await;
        let cancel = 8u32.to_be_bytes();
        let reset = |n: u32| [get(1 + 2 * n), frame(RST_STREAM, 0, 1 + 2 * n, &cancel)].concat();
        let (left, sent) = until_left(&mut frames, reset, 200_000).await;
        assert!(left.is_none_or(|code| code == ENHANCE_YOUR_CALM) && sent < 200_000, "{left:?} {sent}");
        expect_little("rapid reset").await;

        // The same, slowly: each request has reached the target when it is given up, and the client acknowledges the
        // frames that it gets.
        let silent = Backend::start(|_| std::future::pending());
        let patient = Process::start(&forward_to(silent.address), &[]).await;
        let mut frames = Frames::connect(patient.address, &[]).await;
        let mut given_up = 0;
        while given_up < 2_000 && frames.send(&get(1 + 2 * given_up)).await {
            until("it has come", || silent.connections() > given_up as usize || given_up >= 500).await;
            let ping = frame(PING, 0, 0, &[0; 8]);
            let cancelled = frame(RST_STREAM, 0, 1 + 2 * given_up, &cancel);
            if !frames.send(&[cancelled, ping].concat()).await {
                break;
            }
            while frames.next_within(Duration::from_secs(10)).await.is_some_and(|frame| frame.kind != PING) {}
            given_up += 1;
        }
        assert!((500..1_000).contains(&given_up), "{given_up}");

        // CONTINUATION frames without end (CVE-2024-27316).
        let mut frames = Frames::connect(address, &[]).await;
        let fields = literals(&[("x-filler", &*"y".repeat(16_000))]);
        let begin = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
        frames.send(&frame(HEADERS, END_STREAM, 1, &literals(&begin))).await;
        let (_, sent) = until_left(&mut frames, |_| frame(CONTINUATION, 0, 1, &fields), 20_000).await;
        assert!(sent < 20_000, "{sent}");
        expect_little("CONTINUATION").await;

        // One entry of the table is referenced repeatedly: 4 KB for each byte (RFC 7541, section 7.3).
        let mut frames = Frames::connect(address, &[]).await;
        let mut block = literals(&begin);
        // The entry is the first of the dynamic table, index 62.
        let bomb = literals(&[("x-bomb", &*"b".repeat(4_000))]);
        block.push(0x40);
        block.extend_from_slice(&bomb[1..]);
        block.extend_from_slice(&vec![0x80 | 62; 10_000]);
        frames.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)).await;
        let outcome = loop {
            match frames.next_within(Duration::from_secs(5)).await {
                Some(frame) if frame.kind == HEADERS => break Some(frame.payload),
                Some(frame) if matches!(frame.kind, GOAWAY | RST_STREAM) => break None,
                Some(_) => {}
                None => break None,
            }
        };
        assert!(outcome.is_none_or(|block| block.first() != Some(&0x88)), "it is not taken for a request");
        expect_little("an HPACK bomb").await;

        // These frames require responses, which the client does not read.
        let pings = frame(PING, 0, 0, &[0; 8]).repeat(1000);
        let settings = frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).repeat(1000);
        for (what, flood) in [("PING", &pings), ("SETTINGS", &settings)] {
            without_reading(address, flood, 64 << 20).await;
            expect_little(what).await;
        }

        // DATA frames without data on an open stream.
        let mut frames = Frames::connect(address, &[]).await;
        let post = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
        frames.send(&frame(HEADERS, END_HEADERS, 1, &literals(&post))).await;
        let empty = frame(DATA, 0, 1, &[]).repeat(1000);
        for _ in 0..1000 {
            if !frames.send(&empty).await {
                break;
            }
        }
        expect_little("empty DATA").await;

        let more = process.peak_memory().saturating_sub(before);
        assert!(more < MEMORY, "{more} bytes more");
    });
}

#[test]
fn a_client_that_opens_no_window_holds_little() {
    block_on(async {
        let backend = Backend::start(|_| async { http::Response::new(full(vec![b'x'; 8 << 20])) });
        let document = forward_to(backend.address).replace("forward: {", "forward: {timeout: 3s, ").replace(
            "routes: [",
            "routes: [{name: own, match: {paths: [{exact: /own}]}, respond: {body: own}}, ",
        );
        let process = Process::start(&document, &[]).await;
        let before = process.peak_memory();
        // The window is 0, for 64 responses of 8 MiB.
        let mut frames = Frames::connect(process.address, &[(4, 0)]).await;
        for stream in 0..64 {
            assert!(frames.send(&get(1 + 2 * stream)).await);
        }
        // A stream is given up when its deadline has expired.
        loop {
            let frame = frames.next_within(Duration::from_secs(10)).await.expect("streams are reset");
            assert!(frame.kind != DATA || frame.payload.is_empty(), "there is no window");
            if frame.kind == RST_STREAM {
                break;
            }
        }
        let more = process.peak_memory().saturating_sub(before);
        assert!(more < MEMORY, "{more} bytes more for 512 MiB of answers");
        assert_eq!(Client::connect(process.address).await.get("/own").await.text(), "own");
    });
}

#[test]
fn a_client_that_reads_nothing_holds_little_whatever_its_windows() {
    block_on(async {
        let seen = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&seen);
        let backend = Backend::start(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            async { http::Response::new(full(vec![b'x'; 1 << 20])) }
        });
        let process = Process::start(&forward_to(backend.address), &["--workers", "1"]).await;
        let before = process.peak_memory();
        let wide = (1 << 31) - 1;
        let mut frames = Frames::connect(process.address, &[(4, wide)]).await;
        assert!(frames.send(&frame(8, 0, 0, &(wide - 65_535).to_be_bytes())).await);
        for stream in 0..250 {
            assert!(frames.send(&get(1 + 2 * stream)).await);
        }
        // The requests that the proxy did not refuse for lack of time have reached the backend, and everything that
        // can be written was.
        let (mut last, mut same) = ((0, 0), 0);
        until("many have come", || seen.load(Ordering::Relaxed) > 100).await;
        until("nothing moves any more", || {
            let now = (seen.load(Ordering::Relaxed), process.peak_memory());
            same = if std::mem::replace(&mut last, now) == now { same + 1 } else { 0 };
            same == 100
        })
        .await;
        let begun = seen.load(Ordering::Relaxed);
        let more = process.peak_memory().saturating_sub(before);
        assert!(more < 12 << 20, "{more} bytes more for the beginnings of 250 answers");
        // A client that reads gets all of it.
        let mut taken = std::collections::HashMap::<u32, usize>::new();
        let mut whole = 0;
        while whole < begun {
            let frame = frames.next_within(Duration::from_secs(10)).await.expect("the answers");
            if frame.kind == DATA {
                let taken = taken.entry(frame.stream).or_default();
                *taken += frame.payload.len();
                whole += usize::from(*taken == 1 << 20);
            }
        }
    });
}

#[test]
fn tunnels_that_are_not_read_hold_little() {
    block_on(async {
        let backend =
            Backend::raw(
                |mut stream| async move { while stream.write_all(&[b'x'; 16 << 10]).await.is_ok() {} },
            );
        let document = forward_to(backend.address).replace("{upstreams", "{upgrades: [connect], upstreams");
        let process = Process::start(&document, &["--workers", "1"]).await;
        let before = process.peak_memory();
        let wide = (1 << 31) - 1;
        let mut frames = Frames::connect(process.address, &[(4, wide)]).await;
        assert!(frames.send(&frame(8, 0, 0, &(wide - 65_535).to_be_bytes())).await);
        let connect = literals(&[(":method", "CONNECT"), (":authority", "a:1")]);
        for stream in 0..200 {
            assert!(frames.send(&frame(HEADERS, END_HEADERS, 1 + 2 * stream, &connect)).await);
        }
        until("many have come", || backend.connections() > 100).await;
        let (mut last, mut same) = ((0, 0), 0);
        until("nothing moves any more", || {
            let now = (backend.connections(), process.peak_memory());
            same = if std::mem::replace(&mut last, now) == now { same + 1 } else { 0 };
            same == 100
        })
        .await;
        let more = process.peak_memory().saturating_sub(before);
        assert!(more < 14 << 20, "{more} bytes more");
    });
}

#[test]
fn a_client_that_asks_on_but_reads_nothing_is_left() {
    block_on(async {
        let backend = Backend::start(|_| async { http::Response::new(full(vec![b'x'; 1 << 20])) });
        let process = Process::start(&forward_to(backend.address), &["--workers", "1"]).await;
        let (before, cpu) = (process.peak_memory(), process.cpu());
        let wide = (1 << 31) - 1;
        let mut frames = Frames::connect(process.address, &[(4, wide)]).await;
        assert!(frames.send(&frame(8, 0, 0, &(wide - 65_535).to_be_bytes())).await);
        // These requests exceed the limit on waiting bytes, so later ones wait for room. Each stream is cancelled in
        // favour of the next.
        let cancel = 8u32.to_be_bytes();
        let mut asked = 0;
        while frames.send(&get(1 + 2 * asked)).await {
            asked += 1;
            assert!(asked < 20_000, "it is still there");
            if asked > 200 {
                let reached = backend.connections();
                let given_up = 1 + 2 * (asked - 200);
                // The proxy has begun with the request before it is cancelled.
                tokio::time::timeout(Duration::from_millis(5), async {
                    until("it has begun", || backend.connections() > reached).await;
                })
                .await
                .ok();
                if !frames.send(&frame(RST_STREAM, 0, given_up, &cancel)).await {
                    break;
                }
            }
        }
        expect_service(process.address).await;
        let (more, took) = (process.peak_memory().saturating_sub(before), process.cpu() - cpu);
        assert!(more < MEMORY && took < 2 * CPU, "{asked} requests: {more} bytes more, {took:?}");
    });
}

#[test]
fn streams_beyond_the_limit_are_refused() {
    block_on(async {
        let backend = Backend::start(|_| std::future::pending());
        let harness = Harness::start(&forward_to(backend.address));
        let mut frames = Frames::connect(harness.address(), &[]).await;
        for stream in 0..300 {
            assert!(frames.send(&get(1 + 2 * stream)).await);
        }
        let mut refused = Vec::new();
        while refused.len() < 44 {
            let frame = frames.next_within(Duration::from_secs(5)).await.expect("a refusal");
            if frame.kind == RST_STREAM {
                assert_eq!(code(&frame), REFUSED_STREAM);
                refused.push(frame.stream);
            }
        }
        assert_eq!(refused, (256..300).map(|stream| 1 + 2 * stream).collect::<Vec<_>>());
    });
}

#[test]
fn many_small_fields_are_refused() {
    block_on(async {
        let backend = Backend::text("ok");
        let harness = Harness::start(&forward_to(backend.address));
        let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "a:b\r\n".repeat(5_000));
        let answer = crate::harness::raw(harness.address(), request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        let mut frames = Frames::connect(harness.address(), &[]).await;
        let begin = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
        let block = [literals(&begin), literals(&[("a", "b")]).repeat(3_000)].concat();
        frames.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)).await;
        loop {
            let frame = frames.next_within(Duration::from_secs(5)).await.expect("an answer");
            match frame.kind {
                // 200 is in the static table, 431 is not.
                HEADERS => break assert_ne!(frame.payload.first(), Some(&0x88)),
                GOAWAY | RST_STREAM => break,
                _ => {}
            }
        }
        assert_eq!(backend.connections(), 0);
        expect_service(harness.address()).await;
    });
}

#[test]
fn idle_connections_make_room_for_requests() {
    block_on(async {
        let backend = Backend::text("ok");
        let process = Process::start(&forward_to(backend.address), &["--max-connections", "8"]).await;
        // Some have sent nothing, some have got a response.
        let mut idle = Vec::new();
        for index in 0..8 {
            let mut stream = TcpStream::connect(process.address).await.unwrap();
            if index % 2 == 0 {
                stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
                crate::harness::read_head(&mut stream).await.unwrap();
            }
            idle.push(stream);
        }
        let began = Instant::now();
        for _ in 0..8 {
            assert_eq!(Client::connect(process.address).await.get("/").await.status, 200);
        }
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        // They were closed, and not reset.
        let mut closed = 0;
        for mut stream in idle {
            let mut rest = Vec::new();
            let read = tokio::time::timeout(Duration::from_millis(500), stream.read_to_end(&mut rest)).await;
            closed += usize::from(matches!(read, Ok(Ok(_))));
        }
        assert!(closed > 0);
    });
}

#[test]
fn a_stream_keeps_its_deadline_whatever_others_do() {
    block_on(async {
        let large = bytes::Bytes::from(vec![b'x'; 8 << 20]);
        let backend = Backend::start(move |_| {
            let large = large.clone();
            async { http::Response::new(full(large)) }
        });
        let document = forward_to(backend.address).replace("forward: {", "forward: {timeout: 3s, ").replace(
            "routes: [",
            "routes: [{name: own, match: {paths: [{exact: /own}]}, respond: {body: own}}, ",
        );
        let harness = Harness::with(&document, |settings| settings.workers = 1);
        // The client does not read these responses.
        let mut stalled = Frames::connect(harness.address(), &[(4, 0)]).await;
        for stream in 0..8 {
            assert!(stalled.send(&get(1 + 2 * stream)).await);
        }
        // Other requests are answered at once, repeatedly, while the stalled streams are polled.
        let mut client = Client::connect_http2(harness.address()).await;
        let mut reset = 0;
        while reset < 8 {
            assert_eq!(client.get("/own").await.text(), "own");
            assert!(stalled.send(&frame(8, 0, 0, &1u32.to_be_bytes())).await);
            while let Ok(Some(frame)) = tokio::time::timeout(Duration::from_millis(20), stalled.next()).await
            {
                reset += usize::from(frame.kind == RST_STREAM);
            }
        }
    });
}

#[test]
fn the_end_of_an_answer_that_is_not_taken_is_given_up_too() {
    block_on(async {
        // The proxy holds the complete response, and its exchange is over.
        let address = crate::harness::nobody();
        let document = format!(
            "listeners: [{{name: http, address: '{address}', limits: {{idle_timeout: 1s}}}}]
routes: [{{name: own, respond: {{body: {}}}}}]",
            "x".repeat(1000)
        );
        let harness = Harness::start(&document);
        let mut stalled = Frames::connect(harness.address(), &[(4, 0)]).await;
        assert!(stalled.send(&get(1)).await);
        let mut frames = Vec::new();
        while let Some(frame) = stalled.next_within(Duration::from_secs(10)).await {
            frames.push(frame.kind);
            // The connection is not idle.
            if frame.kind == RST_STREAM || frame.kind == GOAWAY {
                break;
            }
        }
        assert!(frames.contains(&RST_STREAM) || frames.contains(&GOAWAY), "{frames:?}");
    });
}

/// Sends `bytes` one by one until the proxy ends the connection or `patience` is over; returns the response.
async fn drip(address: SocketAddr, first: &[u8], bytes: &[u8], patience: Duration) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(first).await.unwrap();
    let mut answer = Vec::new();
    let began = Instant::now();
    let mut next = bytes.iter().cycle();
    while began.elapsed() < patience {
        let mut part = [0; 1024];
        match tokio::time::timeout(Duration::from_millis(50), stream.read(&mut part)).await {
            Ok(Ok(0) | Err(_)) => return Some(answer),
            Ok(Ok(read)) => answer.extend_from_slice(&part[..read]),
            Err(_) => {
                let _ = stream.write_all(&[*next.next().unwrap()]).await;
            }
        }
    }
    None
}

#[test]
fn what_comes_drop_by_drop_has_to_come_in_time() {
    block_on(async {
        let backend = Backend::text("ok");
        let address = crate::harness::nobody();
        let limits = "limits: {header_timeout: 1s, idle_timeout: 2s}";
        let document = |more: &str| {
            format!(
                "{}listeners: [{{name: http, address: '{address}', {limits}{more}}}]",
                forward_to(backend.address)
            )
        };
        let patience = Duration::from_secs(5);
        let harness = Harness::start(&document(""));
        let address = harness.address();
        let began = Instant::now();
        let answer = drip(address, b"GET / HTTP/1.1\r\n", b"x: y\r\n", patience).await.expect("it is ended");
        assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
        assert!(began.elapsed() >= Duration::from_secs(1));
        // The preface of HTTP/2, and the beginning of a head.
        drip(address, b"PRI * HT", b"TP/2.0", patience).await.expect("it is ended");
        drop(harness);
        let harness = Harness::start(&document(", proxy_protocol: require"));
        drip(harness.address(), b"PROXY TCP4 1.2.3.4", b"5", patience).await.expect("it is ended");
        expect_room(&harness).await;
    });
}

/// Waits until nothing is left of the ended connections.
async fn expect_room(harness: &Harness) {
    crate::harness::until("they are gone", || harness.proxy.active_connections() == 0).await;
}
