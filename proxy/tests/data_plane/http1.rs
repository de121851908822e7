//! HTTP/1.1 and HTTP/1.0 requests byte by byte, valid and malformed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, StreamBody};
use signalbox_proxy::telemetry::access_log;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Backend, Client, Harness, block_on, forward_to, full, nobody, raw, read_head, until};
use crate::telling::lines;
use crate::wire::{
    DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, RST_STREAM, Recorder, frame, literals,
};

/// `document` with these fields of the listener `http`.
fn with_listener(fields: &str, document: &str) -> String {
    format!("{document}\nlisteners: [{{name: http, address: '{}', {fields}}}]", nobody())
}

/// Sends `bytes`, closes the sending half, and returns the complete response.
async fn half_closed(harness: &Harness, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(harness.address()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Sends a request over HTTP/2 with these fields, and returns the status of the response; `None`: the stream was
/// reset.
async fn http2_status(harness: &Harness, fields: &[(&str, &[u8])]) -> Option<u16> {
    let mut frames = Frames::connect(harness.address(), &[]).await;
    frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &literals(fields))).await;
    loop {
        let frame = frames.next_within(Duration::from_secs(20)).await.expect("an answer");
        match frame.kind {
            // The static table has these statuses (RFC 7541, appendix A).
            HEADERS => {
                return match frame.payload.first() {
                    Some(0x88) => Some(200),
                    Some(0x8c) => Some(400),
                    Some(0x8d) => Some(404),
                    _ => Some(0),
                };
            }
            RST_STREAM | GOAWAY => return None,
            _ => {}
        }
    }
}

#[test]
fn what_has_come_of_an_answer_is_delivered_before_it_breaks_off() {
    block_on(async {
        let (sender, receiver) = access_log::channel(1000);
        // The backend sends half of a response, and closes.
        let backend = Backend::raw(|mut stream| async move {
            let head = read_head(&mut stream).await.unwrap_or_default();
            let (framing, body) = match head.split(' ').nth(1) {
                Some("/chunked") => ("transfer-encoding: chunked", "5\r\nhello\r\n".to_owned()),
                Some("/large") => ("content-length: 1000000", "x".repeat(200_000)),
                Some("/head") => ("content-length: 10", String::new()),
                _ => ("content-length: 10", "hello".to_owned()),
            };
            let answer = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{body}");
            let _ = stream.write_all(answer.as_bytes()).await;
        });
        let harness = Harness::with_log(&forward_to(backend.address), Some(sender));
        let mut asked = 0;
        for round in 0..60 {
            let (path, body) = match round % 6 {
                0 => ("/chunked", "hello".to_owned()),
                1 => ("/large", "x".repeat(200_000)),
                2 => ("/head", String::new()),
                _ => ("/", "hello".to_owned()),
            };
            let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
            let answer = raw(harness.address(), request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{round} {path}: {answer:?}");
            let got = answer.split_once("\r\n\r\n").unwrap().1;
            let got = if path == "/chunked" { got.trim_start_matches("5\r\n").trim_end() } else { got };
            assert!(got == body, "{round} {path}: {} bytes", got.len());

            let wide = (1 << 31) - 1;
            let mut frames = Frames::connect(harness.address(), &[(4, wide)]).await;
            frames.send(&frame(8, 0, 0, &(wide - 65_535).to_be_bytes())).await;
            let fields = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "a")];
            frames.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &literals(&fields))).await;
            let (mut answered, mut got) = (false, Vec::new());
            loop {
                let next = frames.next_within(Duration::from_secs(20)).await.expect("a frame");
                match next.kind {
                    HEADERS => answered = next.payload.first() == Some(&0x88),
                    DATA => {
                        assert_eq!(next.flags & END_STREAM, 0, "it does not look whole");
                        got.extend_from_slice(&next.payload);
                    }
                    RST_STREAM => break,
                    _ => {}
                }
            }
            assert!(answered && got == body.as_bytes(), "{round} {path}: {answered} {}", got.len());
            asked += 2;
        }
        for line in lines(&receiver, asked).await {
            let sent = match line["path"].as_str().unwrap() {
                "/large" => 200_000,
                "/head" => 0,
                _ => 5,
            };
            assert_eq!((&line["status"], &line["flags"]), (&200.into(), &"UC".into()), "{line}");
            assert_eq!(line["bytes_out"], sent, "{line}");
        }
    });
}

#[test]
fn options_of_the_whole_server_go_to_routes_that_take_all_paths() {
    block_on(async {
        let recorder = Recorder::start();
        let address = recorder.backend.address;
        let document = |route: &str| {
            format!(
                "upstreams: [{{name: u, targets: [{{address: '{address}'}}]}}]
routes: [{{name: api, match: {{paths: [{{prefix: /api}}, {{template: '/{{any}}'}}]}}, respond: {{body: api}}}}{route}]"
            )
        };
        let options =
            |target: &str| format!("OPTIONS {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let rewrite = "rewrite: {path_prefix: /v2}";
        for (route, target, expected) in [
            ("", "*", Err(404)),
            ("", "http://a", Err(404)),
            (", {name: all, forward: {upstreams: [{name: u}]}}", "*", Ok("*")),
            (", {name: all, forward: {upstreams: [{name: u}]}}", "http://a", Ok("*")),
            (", {name: all, forward: {upstreams: [{name: u}]}}", "http://a/", Ok("/")),
            (", {name: all, forward: {upstreams: [{name: u}]}}", "http://a?x", Ok("/?x")),
            (", {name: all, forward: {upstreams: [{name: u}]}}", "/", Ok("/")),
            (", {name: all, match: {paths: [{prefix: /}]}, forward: {upstreams: [{name: u}]}}", "*", Ok("*")),
            (
                &format!(
                    ", {{name: all, match: {{paths: [{{prefix: /}}]}}, forward: {{upstreams: [{{name: u}}], {rewrite}}}}}"
                ),
                "*",
                Ok("*"),
            ),
            (
                ", {name: all, match: {paths: [{regex: '/.*'}]}, forward: {upstreams: [{name: u}]}}",
                "*",
                Err(404),
            ),
        ] {
            let harness = Harness::start(&document(route));
            let answer = raw(harness.address(), options(target).as_bytes()).await;
            let status: u16 = answer[9..12].parse().unwrap();
            let seen: Vec<_> = recorder.take().into_iter().map(|seen| seen.line).collect();
            match expected {
                Ok(line) => {
                    assert_eq!((status, seen), (200, vec![format!("OPTIONS {line}")]), "{route} {target}");
                }
                Err(wanted) => {
                    assert_eq!((status, seen), (wanted, Vec::new()), "{route} {target}");
                }
            }
        }
        let harness = Harness::start(&document(", {name: all, forward: {upstreams: [{name: u}]}}"));
        for (path, line) in [("*", "OPTIONS *"), ("/", "OPTIONS /")] {
            let fields = [
                (":method", &b"OPTIONS"[..]),
                (":scheme", b"http"),
                (":path", path.as_bytes()),
                (":authority", b"a"),
            ];
            assert_eq!(http2_status(&harness, &fields).await, Some(200), "{path}");
            assert_eq!(recorder.take()[0].line, line);
        }
        // If the whole server has moved, its root has, too.
        let harness = Harness::start(&document(", {name: all, redirect: {host: b}}"));
        let answer = raw(harness.address(), options("*").as_bytes()).await;
        assert!(answer.contains("location: http://b/\r\n"), "{answer}");
    });
}

#[test]
fn an_old_client_is_promised_a_connection_only_where_it_goes_on() {
    block_on(async {
        let backend = Backend::start(|request| async move {
            if request.uri().path() == "/known" {
                return http::Response::new(full("known"));
            }
            let parts =
                tokio_stream::iter(["in ", "parts"].map(|part| Ok(http_body::Frame::data(part.into()))));
            http::Response::new(StreamBody::new(parts).boxed())
        });
        let harness = Harness::start(&forward_to(backend.address));
        let mut stream = TcpStream::connect(harness.address()).await.unwrap();
        for _ in 0..2 {
            stream.write_all(b"GET /known HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await.unwrap();
            let head = read_head(&mut stream).await.expect("the connection goes on");
            assert!(head.contains("connection: keep-alive\r\n"), "{head}");
            stream.read_exact(&mut [0; 5]).await.unwrap();
        }
        stream.write_all(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("\r\n\r\nin parts"), "{answer}");
        assert!(!answer.contains("keep-alive") && answer.contains("connection: close\r\n"), "{answer}");
    });
}

#[test]
fn a_host_that_is_none_is_refused_whoever_names_it() {
    block_on(async {
        let backend = Backend::text("ok");
        let harness = Harness::start(&forward_to(backend.address));
        for host in [
            "x:99999",
            "x:65536",
            "x:-1",
            "x:+80",
            ":80",
            ".",
            "..",
            ".a",
            "a..b",
            "a,b",
            "a;b",
            "a=b",
            "a&b",
            "a'b",
            "a(b)",
            "a!b",
            "a$b",
            "a~b",
            "a+b",
            "*",
            "*.a",
            "%61",
            "a%00",
            "[::1",
            "[::1]:99999",
            "[]",
            "[a]",
            "[v1.a]",
            "::1",
        ] {
            for (target, header) in [("/", host), (&*format!("http://{host}/"), "a")] {
                let request = format!("GET {target} HTTP/1.1\r\nhost: {header}\r\nconnection: close\r\n\r\n");
                let answer = raw(harness.address(), request.as_bytes()).await;
                assert!(answer.starts_with("HTTP/1.1 400 "), "{target} {header}: {answer}");
            }
            let fields = [
                (":method", &b"GET"[..]),
                (":scheme", b"http"),
                (":path", b"/"),
                (":authority", host.as_bytes()),
            ];
            let status = http2_status(&harness, &fields).await;
            // h2 itself refuses a text that is no authority at all.
            assert!(matches!(status, None | Some(400)), "{host}: {status:?}");
        }
        assert_eq!(backend.connections(), 0);
        for host in ["x:65535", "x:", "A.b-c_d.:1", "[::1]:80", "127.0.0.1"] {
            let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            assert!(raw(harness.address(), request.as_bytes()).await.starts_with("HTTP/1.1 200 "), "{host}");
        }
    });
}

#[test]
fn sizes_that_nobody_can_have_are_refused_before_a_target_is_asked() {
    block_on(async {
        let backend = Backend::text("ok");
        let harness = Harness::start(&forward_to(backend.address));
        for length in
            ["9223372036854775808", "18446744073709551615", "18446744073709551616", "99999999999999999999"]
        {
            let request = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\nhello");
            let answer = raw(harness.address(), request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{length}: {answer}");
            let status = http2_status(
                &harness,
                &[
                    (":method", b"POST"),
                    (":scheme", b"http"),
                    (":path", b"/"),
                    (":authority", b"a"),
                    ("content-length", length.as_bytes()),
                ],
            )
            .await;
            assert!(matches!(status, None | Some(400)), "{length}: {status:?}");
        }
        for size in
            ["8000000000000000", "ffffffffffffffff", "10000000000000000", "fffffffffffffffff", "5 ", "g"]
        {
            let request =
                format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{size}\r\nhello");
            let answer = raw(harness.address(), request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{size}: {answer}");
        }
        assert_eq!(backend.connections(), 0);
    });
}

#[test]
fn a_bare_cr_is_refused_at_once() {
    block_on(async {
        let backend = Backend::echo();
        // These are longer than the test may take.
        let limits = "limits: {header_timeout: 10m, body_timeout: 10m}";
        let harness = Harness::start(&with_listener(limits, &forward_to(backend.address)));
        let post = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        for parts in [
            &["GET / HTTP/1.1\r\nhost: a\r\nx: y\rz"][..],
            &["GET / HTTP/1.1\r\nhost: a\r\nx: y\r", "z"],
            &["GET / HTTP/1.1\r\nhost: a\r\nx: y", "z\rz: "],
            &["GET / HTTP/1.1\rhost: a"],
            &["GET / HTTP/1.1\r", "\r"],
            &[post, "5\rhello"],
            &[post, "5;a\r", "b"],
            &[post, "5\r\nhello\r", "x"],
            &[post, "5\r\nhello\r\n0\r\nx: y\rz"],
            &[post, "5\r\nhello\r\n0\r\nx: y\r", "z"],
        ] {
            let mut stream = TcpStream::connect(harness.address()).await.unwrap();
            stream.set_nodelay(true).unwrap();
            for part in parts {
                stream.write_all(part.as_bytes()).await.unwrap();
                // Yielding mostly lets it arrive separately; it is refused in both cases.
                tokio::task::yield_now().await;
            }
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 400 "), "{parts:?}: {answer}");
        }
    });
}

#[test]
fn what_clients_send_raw_in_a_target_is_percent_encoded() {
    block_on(async {
        let recorder = Recorder::start();
        let document = forward_to(recorder.backend.address).replace(
            "routes: [",
            "routes: [{name: cafe, priority: 1, match: {paths: [{exact: '/caf%C3%A9'}, {exact: '/a|b'}]}, respond: {body: own}}, ",
        );
        let harness = Harness::start(&document);
        let get =
            |target: &[u8]| [b"GET ", target, b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"].concat();
        for (target, expected) in [
            (&b"/caf\xc3\xa9/\xff"[..], "/caf%C3%A9/%FF"),
            (b"/\"<>^`{|}", "/%22%3C%3E%5E%60%7B%7C%7D"),
            (b"/?q=\"<>^`{|}\xc3\xa9", "/?q=%22%3C%3E%5E%60%7B%7C%7D%C3%A9"),
            (b"http://a/{x}?\xe9", "/%7Bx%7D?%E9"),
            (b"/x/../{y}", "/%7By%7D"),
            (b"/a[]=~'()*!$,;:@&+", "/a[]=~'()*!$,;:@&+"),
        ] {
            let answer = raw(harness.address(), &get(target)).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{expected}: {answer}");
            assert_eq!(recorder.take()[0].line, format!("GET {expected}"));
        }
        // A route matches the form that is sent on.
        for target in [&b"/caf\xc3\xa9"[..], b"/caf%c3%a9", b"/a|b", b"/a%7cb"] {
            let answer = raw(harness.address(), &get(target)).await;
            assert!(answer.ends_with("\r\n\r\nown"), "{answer}");
        }
        for target in
            [&b"/a b"[..], b"/\x01", b"/\x7f", b"/a\tb", b"/\0", b"http://\xc3\xa9/", b"http://a\"/"]
        {
            let answer = raw(harness.address(), &get(target)).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{target:?}: {answer}");
        }
        assert!(recorder.take().is_empty());
        for (path, expected) in [
            ("/caf\u{e9}/x?\u{e9}", Some("/caf%C3%A9/x?%C3%A9")),
            ("/\"^{|}?^`{|}", Some("/%22%5E%7B%7C%7D?%5E%60%7B%7C%7D")),
            ("?q", None),
        ] {
            let fields = [
                (":method", &b"GET"[..]),
                (":scheme", b"http"),
                (":path", path.as_bytes()),
                (":authority", b"a"),
            ];
            let status = http2_status(&harness, &fields).await;
            let seen: Vec<_> = recorder.take().into_iter().map(|seen| seen.line).collect();
            match expected {
                Some(target) => {
                    assert_eq!((status, seen), (Some(200), vec![format!("GET {target}")]), "{path}");
                }
                None => assert_eq!((status, seen), (Some(400), Vec::new()), "{path}"),
            }
        }
    });
}

#[test]
fn a_client_that_sends_no_more_gets_what_is_ready_but_no_target_works_for_it() {
    block_on(async {
        let (sender, receiver) = access_log::channel(100);
        // The backend answers nothing, and counts the connections that were closed.
        let left = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&left);
        let backend = Backend::raw(move |mut stream| {
            let left = Arc::clone(&counted);
            async move {
                read_head(&mut stream).await;
                assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
                left.fetch_add(1, Ordering::Relaxed);
            }
        });
        let document = forward_to(backend.address).replace("prefix: /}", "prefix: /target}").replace(
            "routes: [",
            "plugins: [{name: key, type: key-auth, config: {}}]
routes: [{name: own, match: {paths: [{exact: /own}]}, respond: {body: own}}, {name: key, match: {paths: [{exact: /key}]}, plugins: [key], forward: {upstreams: [{name: u}]}}, ",
        );
        let harness = Harness::with_log(&document, Some(sender));
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        for (request, statuses) in [
            (get("/own"), &["200"][..]),
            (get("/own") + &get("/nowhere") + &get("/own"), &["200", "404", "200"]),
            (get("/key"), &["401"]),
            ("GET /own HTTP/1.0\r\n\r\n".to_owned(), &["200"]),
            ("GET /own HTTP/1.1\r\n\r\n".to_owned(), &["400"]),
            ("nonsense\r\n\r\n".to_owned(), &["400"]),
            ("POST /own HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nok".to_owned(), &["200"]),
        ] {
            let answer = half_closed(&harness, request.as_bytes()).await;
            let got: Vec<_> = answer.split("HTTP/1.").skip(1).map(|answer| &answer[2..5]).collect();
            assert_eq!(got, statuses, "{request:?}: {answer}");
        }
        assert_eq!(backend.connections(), 0);
        assert_eq!(half_closed(&harness, get("/target").as_bytes()).await, "");
        until("the target is left", || left.load(Ordering::Relaxed) == 1).await;
        let told = lines(&receiver, 10).await;
        let line = told.iter().find(|line| line["path"] == "/target").expect("a line");
        assert_eq!((&line["status"], &line["flags"]), (&499.into(), &"DC".into()));
    });
}

#[test]
fn a_listener_may_let_clients_that_send_no_more_wait_for_their_answer() {
    block_on(async {
        // The backend answers when the proxy has had time to see that the client sends no more.
        let backend = Backend::start(|request| async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let body = request.into_body().collect().await.unwrap().to_bytes();
            http::Response::new(full(body))
        });
        let harness = Harness::start(&with_listener("half_close: allow", &forward_to(backend.address)));
        for request in [
            "GET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ] {
            let answer = half_closed(&harness, request.as_bytes()).await;
            let body = if request.starts_with("POST") { "hello" } else { "" };
            assert!(answer.contains(" 200 OK\r\n"), "{request:?}: {answer}");
            assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{request:?}: {answer}");
        }
        // Two requests that are sent at once are both answered.
        let two = "GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n";
        let answer = half_closed(&harness, two.as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{answer}");
        // A body that is incomplete is an error.
        let half = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhello";
        let answer = half_closed(&harness, half).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    });
}

#[test]
fn a_slow_reader_gets_every_chunk_whole() {
    block_on(async {
        // Each part is different, so that none can be mistaken for another.
        let part = |index: u32| bytes::Bytes::from(index.to_be_bytes().repeat(3_000));
        let taken = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&taken);
        let backend = Backend::start(move |_| {
            let counted = Arc::clone(&counted);
            async move {
                let parts = (0..1000).map(move |index| {
                    counted.fetch_add(1, Ordering::Relaxed);
                    Ok(http_body::Frame::data(part(index)))
                });
                http::Response::new(StreamBody::new(tokio_stream::iter(parts)).boxed())
            }
        });
        let harness = Harness::start(&forward_to(backend.address));
        let mut client = Client::connect(harness.address()).await;
        let answer = client.start(http::Request::get("/").body(full("")).unwrap()).await.unwrap();
        assert!(!answer.headers().contains_key("content-length"));
        let mut body = answer.into_body();
        // Then the kernel's buffer is full, and bytes are written in parts.
        let (mut last, mut same) = (0, 0);
        until("the target is held back", || {
            let now = taken.load(Ordering::Relaxed);
            same = if std::mem::replace(&mut last, now) == now && now > 0 { same + 1 } else { 0 };
            same == 50
        })
        .await;
        let mut got = Vec::new();
        while let Some(frame) = body.frame().await {
            got.extend_from_slice(&frame.expect("a part of the answer").into_data().unwrap());
            tokio::task::yield_now().await;
        }
        assert!(got == (0..1000).flat_map(part).collect::<Vec<_>>(), "{} bytes", got.len());
    });
}

#[test]
fn the_body_of_an_old_request_takes_nothing_of_the_next() {
    block_on(async {
        // The backend answers at once, without waiting for the body.
        let backend = Backend::raw(|mut stream| async move {
            while read_head(&mut stream).await.is_some() {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                let _ = stream.read(&mut [0; 16]).await;
            }
        });
        let harness = Harness::start(&forward_to(backend.address));
        let one = "POST /1 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n";
        for _ in 0..20 {
            let mut stream = TcpStream::connect(harness.address()).await.unwrap();
            stream.set_nodelay(true).unwrap();
            stream.write_all(one.as_bytes()).await.unwrap();
            let head = read_head(&mut stream).await.unwrap();
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            // The next bytes are the body, followed by a request or by nothing.
            let _ = stream.write_all(b"GET /GET /2 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            let mut rest = String::new();
            let _ = stream.read_to_string(&mut rest).await;
            assert!(rest == "ok" || rest.starts_with("okHTTP/1.1 200 "), "{rest}");
        }
    });
}

/// Reads an answer until `end`.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(end.as_bytes()) {
        answer.push(stream.read_u8().await.unwrap_or_else(|error| {
            panic!("{error} behind {:?}", String::from_utf8_lossy(&answer));
        }));
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn an_answer_before_the_request_is_through_says_that_the_connection_ends_or_it_goes_on() {
    block_on(async {
        // Answers as soon as there is a head.
        let backend = Backend::raw(|mut stream| async move {
            let head = read_head(&mut stream).await.unwrap_or_default();
            let (status, framing, body) = match head.split(' ').nth(1) {
                Some("/refused") => ("403 Forbidden", "transfer-encoding: chunked", "2\r\nno\r\n0\r\n\r\n"),
                Some("/empty") => ("200 OK", "content-length: 0", ""),
                Some("/short") => ("200 OK", "content-length: 5", "short"),
                _ => ("200 OK", "transfer-encoding: chunked", "4\r\nlong\r\n0\r\n\r\n"),
            };
            let answer = format!("HTTP/1.1 {status}\r\n{framing}\r\n\r\n{body}");
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        });
        let harness = Harness::start(&forward_to(backend.address));
        for framing in ["content-length: 100000", "transfer-encoding: chunked"] {
            let chunk = if framing.starts_with('c') {
                "x".repeat(50_000)
            } else {
                format!("c350\r\n{}\r\n", "x".repeat(50_000))
            };
            let last = if framing.starts_with('c') { "" } else { "0\r\n\r\n" };
            for path in ["/refused", "/empty", "/short"] {
                let mut stream = TcpStream::connect(harness.address()).await.unwrap();
                let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n");
                stream.write_all(format!("{head}{chunk}").as_bytes()).await.unwrap();
                let answer = read_until(&mut stream, "\r\n\r\n").await;
                assert!(answer.contains("connection: close\r\n"), "{framing} {path}: {answer}");
                // The client gets all of the answer although it goes on sending.
                stream.write_all(format!("{chunk}{last}").as_bytes()).await.unwrap();
                let mut rest = String::new();
                stream.read_to_string(&mut rest).await.expect("an end that is no reset");
                let expected = match path {
                    "/refused" => "2\r\nno\r\n0\r\n\r\n",
                    "/short" => "short",
                    _ => "",
                };
                assert_eq!(rest, expected, "{framing} {path}");
            }
            // An answer of unknown length may go on while the request does, so that the connection does, too.
            let mut stream = TcpStream::connect(harness.address()).await.unwrap();
            for round in 0..3 {
                let head = format!("POST /long HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n");
                stream.write_all(format!("{head}{chunk}").as_bytes()).await.unwrap();
                let answer = read_until(&mut stream, "0\r\n\r\n").await;
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{framing} {round}: {answer}");
                assert!(!answer.contains("connection: close"), "{framing} {round}: {answer}");
                stream.write_all(format!("{chunk}{last}").as_bytes()).await.unwrap();
            }
            // A body that does not come to its end is not waited for.
            let head = "POST /long HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            read_until(&mut stream, "0\r\n\r\n").await;
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        }
    });
}
