use std::time::{Duration, Instant};

use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Backend, Client, Harness, Wire, block_on, forward_to, full, raw, until};

/// A document with a listener of these limits.
fn limited(limits: &str, backend: std::net::SocketAddr) -> String {
    format!("{}\nlisteners: [{{name: small, address: '127.0.0.1:0', limits: {limits}}}]", forward_to(backend))
}

/// A harness whose listener `http` has `limits`.
fn start(limits: &str, backend: std::net::SocketAddr) -> Harness {
    // The port is reserved only briefly, because documents cannot ask for any free port.
    let address = crate::harness::nobody();
    let document = limited(limits, backend).replace("127.0.0.1:0", &address.to_string());
    Harness::start(&document)
}

fn small(harness: &Harness) -> std::net::SocketAddr {
    use signalbox_proxy::source::DataPlane as _;
    harness.proxy.listeners()["small"]
}

fn status_and_problem(answer: &str) -> (u16, serde_json::Value) {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
    assert!(head.contains("content-type: application/problem+json"), "{head}");
    (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap())
}

#[test]
fn what_cannot_be_read_is_answered_with_a_problem() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&forward_to(backend.address));
        let large = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(70_000));
        let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(150));
        for (request, expected) in [
            ("nonsense\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 400),
            (&large, 431),
            (&many, 431),
        ] {
            let request = request.replace("HTTP/1.1\r\n\r\n", "HTTP/1.1\r\nconnection: close\r\n\r\n");
            let (status, problem) = status_and_problem(&raw(harness.address(), request.as_bytes()).await);
            assert_eq!(
                (status, problem["status"].as_u64()),
                (expected, Some(expected.into())),
                "{request:.60}"
            );
            assert_eq!(problem["request_id"].as_str().unwrap().len(), 36);
        }
        assert_eq!(backend.connections(), 0);
    });
}

#[test]
fn a_head_that_began_with_the_request_before_has_its_time_too() {
    block_on(async {
        let backend = Backend::echo();
        let harness = start("{header_timeout: 1s}", backend.address);
        let both = b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /second HT";
        let answers = raw(small(&harness), both).await;
        assert!(answers.starts_with("HTTP/1.1 200 OK\r\n"), "{answers}");
        assert!(answers.contains("HTTP/1.1 408 Request Timeout\r\n"), "{answers}");
    });
}

#[test]
fn a_head_that_does_not_come_in_time_is_answered_408() {
    block_on(async {
        let backend = Backend::echo();
        let harness = start("{header_timeout: 1s}", backend.address);
        let begin = async |first: &str, begun: &str| {
            let mut began = Instant::now();
            let mut stream = TcpStream::connect(small(&harness)).await.unwrap();
            if !first.is_empty() {
                stream.write_all(first.as_bytes()).await.unwrap();
                crate::harness::read_head(&mut stream).await.unwrap();
                began = Instant::now();
            }
            stream.write_all(begun.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert_eq!(status_and_problem(&answer).0, 408);
            assert!(began.elapsed() >= Duration::from_secs(1));
        };
        // The cases are: before and after the protocol is known; on a new and on a used connection.
        tokio::join!(
            begin("", "P"),
            begin("", "GET / HTT"),
            begin("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n", "GET / HTT")
        );
    });
}

#[test]
fn an_idle_connection_is_closed() {
    block_on(async {
        let backend = Backend::echo();
        let harness = start("{idle_timeout: 3s}", backend.address);
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        let (answer, nothing) = tokio::join!(raw(small(&harness), request), raw(small(&harness), b""));
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert_eq!(nothing, "");
        let mut client = Client::connect_http2(small(&harness)).await;
        assert_eq!(client.get("/").await.status, 200);
        until("all are closed", || harness.proxy.active_connections() == 0).await;
    });
}

#[test]
fn a_body_beyond_the_limit_is_answered_413() {
    block_on(async {
        let backend = Backend::echo();
        let harness = start("{body_size: 1000}", backend.address);
        for http2 in [false, true] {
            for (size, announced, expected) in
                [(1000, true, 200), (1001, true, 413), (1000, false, 200), (1_000_000, false, 413)]
            {
                let mut client = match http2 {
                    false => Client::connect(small(&harness)).await,
                    true => Client::connect_http2(small(&harness)).await,
                };
                let body = if announced {
                    full("x".repeat(size))
                } else {
                    let chunk = Frame::data("x".repeat(size / 2).into());
                    let rest = Frame::data("x".repeat(size - size / 2).into());
                    StreamBody::new(tokio_stream::iter([Ok(chunk), Ok(rest)])).boxed()
                };
                let answer = client.send(Request::post("/").body(body).unwrap()).await;
                assert_eq!(answer.status, expected, "{size} {announced} http2: {http2}");
            }
        }
    });
}

#[test]
fn a_request_that_takes_too_long_is_answered_504() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            // The target reads, and sends nothing.
            while matches!(stream.read(&mut [0; 100]).await, Ok(1..)) {}
        });
        let document = forward_to(backend.address).replace("forward: {", "forward: {timeout: 100ms, ");
        let harness = Harness::start(&document);
        for mut client in
            [Client::connect(harness.address()).await, Client::connect_http2(harness.address()).await]
        {
            // The connection remains usable afterwards.
            for _ in 0..2 {
                let began = Instant::now();
                let answer = client.get("/").await;
                assert_eq!((answer.status, answer.json()["status"].as_u64()), (504, Some(504)));
                assert!((100..5000).contains(&began.elapsed().as_millis()));
            }
        }
    });
}

#[test]
fn an_answer_that_takes_too_long_breaks_off() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            crate::harness::read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
            while matches!(stream.read(&mut [0; 100]).await, Ok(1..)) {}
        });
        let document = forward_to(backend.address).replace("forward: {", "forward: {timeout: 3s, ");
        let harness = Harness::start(&document);
        let ask = async |wire: Wire| {
            let mut client = Client::speaking(wire, harness.address()).await;
            let response = client.start(Request::get("/").body(full("")).unwrap()).await.unwrap();
            assert_eq!(response.status(), 200);
            response.into_body().collect().await.unwrap_err();
        };
        tokio::join!(ask(Wire::Http1), ask(Wire::Http2));
    });
}

#[test]
fn a_client_that_does_not_take_its_answer_in_time_is_left() {
    block_on(async {
        let (sender, receiver) = signalbox_proxy::telemetry::access_log::channel(100);
        let large = bytes::Bytes::from(vec![b'x'; 64 << 20]);
        let backend = Backend::start(move |_| {
            let large = large.clone();
            async { http::Response::new(full(large)) }
        });
        let document = forward_to(backend.address)
            .replace("forward: {", "forward: {timeout: 3s, ")
            .replace("prefix: /", "exact: /");
        let harness = Harness::with_log(&document, Some(sender));
        let mut left = String::new();
        let mut expect_line = async |protocol: &str| {
            until("it is left", || {
                receiver.try_iter().for_each(|bytes| left.push_str(std::str::from_utf8(&bytes).unwrap()));
                left.contains(protocol)
            })
            .await;
            let line = left.lines().find(|line| line.contains(protocol)).unwrap();
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!((&line["status"], &line["flags"]), (&200.into(), &"UT".into()));
        };
        let mut stream = TcpStream::connect(harness.address()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut begun = [0; 12];
        stream.read_exact(&mut begun).await.unwrap();
        assert_eq!(&begun, b"HTTP/1.1 200");
        expect_line("HTTP/1.1").await;
        until("the connection is closed", || harness.proxy.active_connections() == 0).await;
        // Over HTTP/2 only the stream is reset.
        let mut client = Client::connect_http2(harness.address()).await;
        let response = client.start(Request::get("/").body(full("")).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        expect_line("HTTP/2").await;
        assert_eq!(client.get("/nowhere").await.status, 404);
        response.into_body().collect().await.unwrap_err();
    });
}

#[test]
fn an_idle_http2_connection_stays_as_long_as_it_may() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&forward_to(backend.address));
        let mut client = Client::connect_http2(harness.address()).await;
        assert_eq!(client.get("/").await.status, 200);
        let began = Instant::now();
        until("a while has passed", || began.elapsed() > Duration::from_millis(3500)).await;
        assert_eq!(client.get("/").await.status, 200);
        assert_eq!(harness.proxy.active_connections(), 1);
    });
}

#[test]
fn fields_are_counted_over_http2_too() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&forward_to(backend.address));
        let mut client = Client::connect_http2(harness.address()).await;
        for (fields, status) in [(90, 200), (101, 431)] {
            let mut request = Request::get("/").body(full("")).unwrap();
            for number in 0..fields {
                request.headers_mut().append("x-many", number.to_string().parse().unwrap());
            }
            assert_eq!(client.send(request).await.status, status, "{fields}");
        }
    });
}

#[test]
fn the_limits_of_heads_are_those_of_the_listener() {
    block_on(async {
        let backend = Backend::echo();
        let harness = start("{header_count: 20, header_size: 8KiB}", backend.address);
        // However a client splits its cookies, they count as one field.
        let mut request = Request::get("/").body(full("")).unwrap();
        for number in 0..40 {
            request.headers_mut().append("cookie", format!("c{number}=x").parse().unwrap());
        }
        let answer = Client::connect_http2(small(&harness)).await.send(request).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        for (count, size, status) in [(10, 10, 200), (25, 10, 431), (4, 3_000, 431), (4, 6_000, 431)] {
            for mut client in
                [Client::connect(small(&harness)).await, Client::connect_http2(small(&harness)).await]
            {
                let mut request = Request::get("/").body(full("")).unwrap();
                for number in 0..count {
                    let name: http::HeaderName = format!("x-{number}").parse().unwrap();
                    request.headers_mut().insert(name, "y".repeat(size).parse().unwrap());
                }
                // Over HTTP/2 a head that is much too large may end in a reset of its stream.
                let got = match client.start(request).await {
                    Ok(answer) => answer,
                    Err(_) if size == 6_000 => continue,
                    Err(error) => panic!("{count} of {size}: {error}"),
                };
                assert_eq!(got.status(), status);
                if status == 431 && size < 6_000 {
                    assert_eq!(
                        got.headers()["content-type"],
                        "application/problem+json",
                        "{count} of {size}"
                    );
                }
            }
        }
        let mut client = Client::connect(harness.address()).await;
        let request = Request::get("/").header("x", "y".repeat(9_000)).body(full("")).unwrap();
        assert_eq!(client.send(request).await.status, 200, "another listener has limits of its own");
    });
}
