//! Responses of targets: those that reach clients, and those that are refused.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use signalbox_proxy::telemetry::access_log;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{
    Answer, AnyBody, Backend, Client, Harness, Wire, block_on, forward_over, forward_to, full, raw,
    read_head, until,
};
use crate::telling::{lines, metrics};

/// Answers each request of HTTP/1.1 with these bytes, and keeps the connection open.
fn saying(answer: impl Into<Vec<u8>>) -> Backend {
    let answer: Vec<u8> = answer.into();
    Backend::raw(move |mut stream| {
        let answer = answer.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        }
    })
}

/// Answers each request of HTTP/2 with `head` and `body`.
fn saying_http2(head: fn() -> Response<()>, body: &'static [u8]) -> Backend {
    Backend::raw(move |stream| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            if let Ok(mut stream) = respond.send_response(head(), false) {
                let _ = stream.send_data(Bytes::from_static(body), false);
                // Dropping the stream would reset it.
                std::mem::forget(stream);
            }
        }
    })
}

/// Trailers with one field of each forbidden kind, and one allowed field.
fn trailers() -> HeaderMap {
    let fields = [
        ("content-length", "5"),
        ("host", "evil"),
        ("trailer", "x"),
        ("authorization", "x"),
        ("www-authenticate", "x"),
        ("proxy-authenticate", "x"),
        ("cookie", "a=b"),
        ("set-cookie", "a=b"),
        ("cache-control", "no-store"),
        ("content-type", "text/html"),
        ("content-encoding", "gzip"),
        ("content-range", "bytes 0-1/2"),
        ("location", "http://evil"),
        ("range", "bytes=0-1"),
        ("if-match", "x"),
        ("expect", "100-continue"),
        ("max-forwards", "1"),
        ("retry-after", "5"),
        ("x-sum", "42"),
    ];
    fields.map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).into_iter().collect()
}

/// A body of unknown length, with the trailers above.
fn trailed() -> AnyBody {
    let frames = [Frame::data(Bytes::from_static(b"data")), Frame::trailers(trailers())];
    let frames = frames.map(Ok::<_, std::convert::Infallible>);
    StreamBody::new(futures_util::stream::iter(frames)).map_err(|never| match never {}).boxed()
}

#[test]
fn trailers_that_may_not_be_sent_pass_on_no_pair_of_protocols() {
    block_on(async {
        let announced = || trailers().keys().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        let written = || {
            let fields = trailers();
            let lines = fields.iter().map(|(name, value)| format!("{name}: {}\r\n", value.to_str().unwrap()));
            format!("4\r\ndata\r\n0\r\n{}\r\n", lines.collect::<String>())
        };
        // This backend reports the trailers that it received.
        let told = |wire| {
            Backend::speaking(wire, |request| async move {
                let body = request.into_body().collect().await.unwrap();
                let mut names: Vec<_> = body
                    .trailers()
                    .map_or_else(Vec::new, |trailers| trailers.keys().map(ToString::to_string).collect());
                names.sort_unstable();
                Response::new(full(names.join(",")))
            })
        };
        for target in Wire::BOTH {
            let backend = told(target);
            let harness = Harness::start(&forward_over(target, backend.address));
            let head = format!(
                "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\ntrailer: {}\r\n\r\n",
                announced()
            );
            let answer = raw(harness.address(), format!("{head}{}", written()).as_bytes()).await;
            assert!(answer.ends_with("\r\n\r\nx-sum"), "HTTP/1.1 to {target:?}: {answer}");
            let mut client = Client::connect_http2(harness.address()).await;
            let answer = client.send(Request::post("/").body(trailed()).unwrap()).await;
            assert_eq!(answer.text(), "x-sum", "HTTP/2 to {target:?}");
        }
        for target in Wire::BOTH {
            let backend = match target {
                Wire::Http1 => {
                    let head = format!(
                        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: {}\r\n\r\n",
                        announced()
                    );
                    saying(format!("{head}{}", written()))
                }
                Wire::Http2 => Backend::speaking(Wire::Http2, move |_| async move {
                    let named = trailers().keys().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
                    Response::builder().header("trailer", named).body(trailed()).unwrap()
                }),
            };
            let harness = Harness::start(&forward_over(target, backend.address));
            for wire in Wire::BOTH {
                let mut client = Client::speaking(wire, harness.address()).await;
                let request = Request::get("/").header("te", "trailers").body(full("")).unwrap();
                let answer = client.send(request).await;
                assert_eq!((answer.status, answer.text()), (200, "data"), "{target:?} to {wire:?}");
                let trailers = answer.trailers.expect("trailers");
                assert_eq!(trailers.keys().collect::<Vec<_>>(), ["x-sum"], "{target:?} to {wire:?}");
            }
        }
    });
}

#[test]
fn what_a_426_says_to_switch_to_is_told_over_http1_only() {
    block_on(async {
        let backend = saying(
            "HTTP/1.1 426 Upgrade Required\r\nconnection: upgrade\r\nupgrade: websocket\r\nupgrade: speech/1\r\ncontent-length: 2\r\n\r\nno",
        );
        let harness = Harness::start(&forward_to(backend.address));
        let answer = Client::connect(harness.address()).await.get("/").await;
        assert_eq!((answer.status, answer.text()), (426, "no"));
        assert_eq!(answer.headers["connection"], "upgrade");
        assert_eq!(answer.headers.get_all("upgrade").iter().collect::<Vec<_>>(), ["websocket", "speech/1"]);
        let closing = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let answer = raw(harness.address(), closing).await;
        assert!(
            answer.contains("connection: upgrade\r\n") && answer.contains("connection: close\r\n"),
            "{answer}"
        );
        let answer = Client::connect_http2(harness.address()).await.get("/").await;
        assert_eq!((answer.status, answer.text()), (426, "no"));
        assert!(!answer.headers.contains_key("upgrade") && !answer.headers.contains_key("connection"));

        let backend = saying("HTTP/1.1 200 OK\r\nupgrade: websocket\r\ncontent-length: 2\r\n\r\nok");
        let harness = Harness::start(&forward_to(backend.address));
        let answer = Client::connect(harness.address()).await.get("/").await;
        assert!(!answer.headers.contains_key("upgrade"), "an offer is of the connection to the target");
    });
}

/// A response with `count` cookies and one more field of `size` bytes.
fn with_large_head(count: usize, size: usize) -> Response<AnyBody> {
    let mut response = Response::new(full("ok"));
    for number in 0..count {
        response.headers_mut().append("set-cookie", format!("c{number}=1").parse().unwrap());
    }
    response.headers_mut().insert("x-large", "x".repeat(size).parse().unwrap());
    response
}

#[test]
fn heads_of_answers_are_taken_up_to_the_upstreams_limits() {
    block_on(async {
        for target in Wire::BOTH {
            // The path holds the count and the size.
            let backend = Backend::speaking(target, |request| {
                let path = request.uri().path().trim_start_matches('/').to_owned();
                let (count, size) = path.split_once('/').unwrap();
                let response = with_large_head(count.parse().unwrap(), size.parse().unwrap());
                async move { response }
            });
            let (sender, receiver) = access_log::channel(100);
            let document = forward_over(target, backend.address);
            let mut harness = Harness::with_log(&document, Some(sender));
            let ask = async |wire, path: &str, limits: &str| {
                let answer = Client::speaking(wire, harness.address()).await.get(path).await;
                let cookies = answer.headers.get_all("set-cookie").iter().count();
                (answer.status, cookies, format!("{target:?} to {wire:?}: {path} {limits}"))
            };
            for wire in Wire::BOTH {
                for (path, cookies) in [("/130/1", 130), ("/900/1", 900), ("/1/70000", 1), ("/1/120000", 1)] {
                    // hyper's client limits the number of fields, or the bytes, over HTTP/1.1.
                    if wire == Wire::Http1 {
                        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
                        let answer = raw(harness.address(), request.as_bytes()).await;
                        assert!(answer.starts_with("HTTP/1.1 200 "), "{target:?} {path}: {}", &answer[..200]);
                        assert_eq!(answer.matches("set-cookie: ").count(), cookies, "{target:?} {path}");
                        continue;
                    }
                    let mut builder = h2::client::Builder::new();
                    builder.max_header_list_size(1 << 20);
                    let stream = TcpStream::connect(harness.address()).await.unwrap();
                    let (mut sender, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
                    tokio::spawn(connection);
                    let request = Request::get(format!("http://a{path}")).body(()).unwrap();
                    let answer = sender.send_request(request, true).unwrap().0.await.unwrap();
                    assert_eq!(answer.status(), 200, "{target:?} {path}");
                    assert_eq!(answer.headers().get_all("set-cookie").iter().count(), cookies);
                }
                for path in ["/1100/1", "/1/140000"] {
                    let (status, _, case) = ask(wire, path, "").await;
                    assert_eq!(status, 502, "{case}");
                }
            }
            let lines = lines(&receiver, 12).await;
            let refused: Vec<_> = lines.iter().filter(|line| line["status"] == 502).collect();
            assert_eq!(refused.len(), 4, "{lines:?}");
            for line in refused {
                assert_eq!(
                    (&line["flags"], &line["upstream_error"]),
                    (&"UPE".into(), &"response_head_too_large".into())
                );
            }
            let counted =
                "signalbox_upstream_errors_total{upstream=\"u\",reason=\"response_head_too_large\"} 4";
            assert!(metrics(&harness).contains(counted), "{}", metrics(&harness));

            for (limits, path, expected) in [
                ("response_header_count: 20", "/10/1", 200),
                ("response_header_count: 20", "/30/1", 502),
                ("response_header_size: 1KiB", "/1/10", 200),
                ("response_header_size: 1KiB", "/1/1100", 502),
            ] {
                let document = document.replace("{name: u, ", &format!("{{name: u, limits: {{{limits}}}, "));
                harness.apply(&document).unwrap();
                let answer = Client::connect_http2(harness.address()).await.get(path).await;
                assert_eq!(answer.status, expected, "{target:?}: {limits} {path}");
            }
        }
    });
}

#[test]
fn a_large_head_may_come_in_small_pieces() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            let _ = stream.set_nodelay(true);
            read_head(&mut stream).await.unwrap();
            let head = format!(
                "HTTP/1.1 200 OK\r\nx: {}\r\ny: z\r\ncontent-length: 2\r\n\r\nok",
                "x".repeat(60_000)
            );
            for part in head.as_bytes().chunks(997) {
                if stream.write_all(part).await.is_err() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
        let harness = Harness::start(&forward_to(backend.address));
        let answer = Client::connect(harness.address()).await.get("/").await;
        assert_eq!(
            (answer.status, answer.text(), &answer.headers["y"]),
            (200, "ok", &HeaderValue::from_static("z"))
        );
    });
}

#[test]
fn whitespace_before_a_colon_is_removed_or_refused_where_it_frames_the_answer() {
    block_on(async {
        for (fields, status) in [
            ("X-Name : value\r\ncontent-length: 2", 200),
            ("Content-Length : 2", 502),
            ("Transfer-Encoding : chunked\r\ncontent-length: 2", 502),
            ("Connection : close\r\ncontent-length: 2", 502),
        ] {
            let backend = saying(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nok"));
            let harness = Harness::start(&forward_to(backend.address));
            for wire in Wire::BOTH {
                let answer = Client::speaking(wire, harness.address()).await.get("/").await;
                assert_eq!(answer.status, status, "{fields} {wire:?}");
                if status == 200 {
                    assert_eq!((answer.text(), answer.headers["x-name"].as_bytes()), ("ok", &b"value"[..]));
                }
            }
        }
    });
}

/// Forwards without a deadline, so that a hanging request hangs forever.
fn without_end(wire: Wire, backend: &Backend) -> String {
    forward_over(wire, backend.address).replace("forward: {", "forward: {timeout: 0s, idle_timeout: 1h, ")
}

#[test]
fn sizes_that_no_answer_has_are_refused_at_once() {
    block_on(async {
        for length in ["9223372036854775808", "18446744073709551615", "99999999999999999999999"] {
            let backend = saying(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"));
            let harness = Harness::start(&without_end(Wire::Http1, &backend));
            for wire in Wire::BOTH {
                let answer = Client::speaking(wire, harness.address()).await.get("/").await;
                assert_eq!(answer.status, 502, "{length} {wire:?}");
            }
        }
        let head = || Response::builder().header("content-length", "9223372036854775808").body(()).unwrap();
        let backend = saying_http2(head, b"x");
        let harness = Harness::start(&without_end(Wire::Http2, &backend));
        for wire in Wire::BOTH {
            let answer = Client::speaking(wire, harness.address()).await.get("/").await;
            assert_eq!(answer.status, 502, "over HTTP/2, {wire:?}");
        }
        for size in ["8000000000000000", "ffffffffffffffff", "10000000000000000"] {
            let backend = saying(format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n{size}\r\nx"
            ));
            let (sender, receiver) = access_log::channel(100);
            let harness = Harness::with_log(&without_end(Wire::Http1, &backend), Some(sender));
            for wire in Wire::BOTH {
                let mut client = Client::speaking(wire, harness.address()).await;
                let broken = match client.start(Request::get("/").body(full("")).unwrap()).await {
                    Ok(answer) => answer.into_body().collect().await.is_err(),
                    Err(_) => true,
                };
                assert!(broken, "{size} {wire:?}");
            }
            for line in lines(&receiver, 2).await {
                let told = (&line["flags"], &line["upstream_error"]);
                assert_eq!(told, (&"UC".into(), &"response_malformed".into()), "{size}");
            }
        }
    });
}

/// The last error of the only target.
fn last_error(harness: &Harness) -> Option<&'static str> {
    harness.proxy.counted(|_, compiled, _, _| {
        let upstream = compiled.active.upstreams.iter().next().unwrap();
        let view = upstream.members.view();
        let error = view.targets.first()?.last_error();
        error.as_ref().map(|error| error.reason.as_str())
    })
}

#[test]
fn why_a_target_cannot_be_reached_is_told() {
    block_on(async {
        let full_backlog = {
            // If the queue is full, connections are not accepted.
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            socket.listen(0).unwrap();
            socket
        };
        let busy = full_backlog.local_addr().unwrap().as_socket().unwrap();
        let mut waiting = Vec::new();
        while let Ok(Ok(stream)) =
            tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(busy)).await
        {
            waiting.push(stream);
        }
        let closing = Backend::raw(|mut stream| async move {
            let _ = stream.read(&mut [0; 1]).await;
        });
        let nonsense = saying("nonsense\r\n\r\n");
        for (target, status, flag, reason, of_target) in [
            (crate::harness::nobody().to_string(), 503, "UF", "connection_refused", true),
            (busy.to_string(), 503, "UF", "connect_timeout", true),
            // No packet is sent: Linux itself reports the error.
            ("255.255.255.255:80".to_owned(), 503, "UF", "unreachable", true),
            ("does-not-exist.invalid:80".to_owned(), 503, "UH", "name_not_resolved", false),
            (closing.address.to_string(), 502, "UC", "connection_closed", true),
            (nonsense.address.to_string(), 502, "UC", "response_malformed", true),
        ] {
            let (sender, receiver) = access_log::channel(100);
            let document = format!(
                "upstreams: [{{name: u, connect_timeout: 300ms, targets: [{{address: '{target}'}}]}}]
routes: [{{name: all, forward: {{upstreams: [{{name: u}}]}}}}]"
            );
            let harness = Harness::with_log(&document, Some(sender));
            let answer = Client::connect(harness.address()).await.get("/").await;
            assert_eq!(answer.status, status, "{target}");
            assert!(!answer.text().contains(reason), "clients are told nothing of the inside");
            let line = &lines(&receiver, 1).await[0];
            assert_eq!((&line["flags"], &line["upstream_error"]), (&flag.into(), &reason.into()), "{target}");
            assert_eq!(last_error(&harness), of_target.then_some(reason), "{target}");
            let counted = format!("signalbox_upstream_errors_total{{upstream=\"u\",reason=\"{reason}\"}} 1");
            assert!(metrics(&harness).contains(&counted), "{target}");
        }
    });
}

#[test]
fn what_was_waited_for_when_time_was_over_is_told() {
    block_on(async {
        // If the queue is full, connections are not accepted.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let busy = socket.local_addr().unwrap().as_socket().unwrap();
        let mut waiting = Vec::new();
        while let Ok(Ok(stream)) =
            tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(busy)).await
        {
            waiting.push(stream);
        }
        let timeout = "timeout: 300ms";
        let attempt = "retry: {attempts: 1, on: [connect-failure], per_try_timeout: 300ms}";
        let idle = "timeout: 1h, idle_timeout: 300ms";
        for wire in Wire::BOTH {
            let slow = Backend::speaking(wire, |request| async move {
                if request.uri().path() == "/silent" {
                    std::future::pending::<()>().await;
                }
                let part = stream::iter([Ok::<_, std::convert::Infallible>(Frame::data("part".into()))]);
                let body = StreamBody::new(part.chain(stream::pending()));
                Response::new(body.map_err(|never| match never {}).boxed())
            });
            for (target, path, route, status, flag, reason) in [
                (busy, "/", timeout, 504, "UT", "connect_timeout"),
                (busy, "/", attempt, 504, "UT", "attempt_timeout"),
                (slow.address, "/silent", timeout, 504, "UT", "response_timeout"),
                (slow.address, "/silent", attempt, 504, "UT", "attempt_timeout"),
                (slow.address, "/silent", idle, 504, "SI", "idle_timeout"),
                (slow.address, "/part", timeout, 200, "UT", "response_body_timeout"),
                (slow.address, "/part", idle, 200, "SI", "idle_timeout"),
            ] {
                let case = format!("{wire:?} {path} {route}");
                let (sender, receiver) = access_log::channel(100);
                let forward = format!("forward: {{upstreams: [{{name: u}}], {route}}}");
                let document =
                    forward_over(wire, target).replace("forward: {upstreams: [{name: u}]}", &forward);
                let document = document.replace("{name: u, ", "{name: u, connect_timeout: 1h, ");
                let harness = Harness::with_log(&document, Some(sender));
                let mut client = Client::connect(harness.address()).await;
                let answer = client.start(Request::get(path).body(full("")).unwrap()).await.unwrap();
                assert_eq!(answer.status(), status, "{case}");
                assert_eq!(Answer::of(answer).await.is_ok(), status == 504, "{case}");
                let line = &lines(&receiver, 1).await[0];
                let told = (&line["flags"], &line["upstream_error"]);
                assert_eq!(told, (&flag.into(), &reason.into()), "{case}");
                assert_eq!(last_error(&harness), Some(reason), "{case}");
                let counted =
                    format!("signalbox_upstream_errors_total{{upstream=\"u\",reason=\"{reason}\"}} 1");
                assert!(metrics(&harness).contains(&counted), "{case}: {}", metrics(&harness));
            }
        }
    });
}

#[test]
fn an_answer_that_breaks_off_is_counted_with_its_reason() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\npart").await;
        });
        let (sender, receiver) = access_log::channel(100);
        let harness = Harness::with_log(&forward_to(backend.address), Some(sender));
        let mut client = Client::connect(harness.address()).await;
        let answer = client.start(Request::get("/").body(full("")).unwrap()).await.unwrap();
        assert!(Answer::of(answer).await.is_err());
        let line = &lines(&receiver, 1).await[0];
        assert_eq!((&line["flags"], &line["upstream_error"]), (&"UC".into(), &"connection_closed".into()));
        let counted = "signalbox_upstream_errors_total{upstream=\"u\",reason=\"connection_closed\"} 1";
        assert!(metrics(&harness).contains(counted), "{}", metrics(&harness));
        assert_eq!(last_error(&harness), Some("connection_closed"));
    });
}

#[test]
fn what_another_target_did_before_is_not_told_of_an_answer() {
    block_on(async {
        let good = Backend::text("good");
        let (sender, receiver) = access_log::channel(100);
        let document = format!(
            "upstreams: [{{name: u, load_balancing: {{policy: round_robin}}, targets: [{{address: '{}'}}, {{address: '{}'}}]}}]
routes: [{{name: all, forward: {{upstreams: [{{name: u}}], retry: {{attempts: 1, on: [connect-failure], budget: 1}}}}}}]",
            crate::harness::nobody(),
            good.address
        );
        let harness = Harness::with_log(&document, Some(sender));
        let mut client = Client::connect(harness.address()).await;
        for _ in 0..4 {
            assert_eq!(client.get("/").await.text(), "good");
        }
        let lines = lines(&receiver, 4).await;
        assert!(lines.iter().all(|line| line["upstream_error"] == ""), "{lines:?}");
        assert!(lines.iter().any(|line| line["attempts"] == 2), "{lines:?}");
        until("it is counted", || metrics(&harness).contains("reason=\"connection_refused\"")).await;
    });
}
