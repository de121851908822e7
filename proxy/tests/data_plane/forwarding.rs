use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, StreamBody};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::harness::{
    Answer, AnyBody, Backend, Client, Harness, block_on, forward_to, full, raw, read_head, until,
};
use crate::wire::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, frame, literals};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that the test sends frame by frame.
fn fed() -> (mpsc::Sender<Result<Frame<Bytes>, BoxError>>, AnyBody) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, StreamBody::new(ReceiverStream::new(receiver)).boxed())
}

fn header<'a>(told: &'a Value, name: &str) -> Vec<&'a str> {
    let headers = told["headers"].as_array().unwrap();
    headers.iter().filter(|pair| pair[0] == name).map(|pair| pair[1].as_str().unwrap()).collect()
}

#[test]
fn http1_and_http2_share_a_port() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&forward_to(backend.address));
        for mut client in
            [Client::connect(harness.address()).await, Client::connect_http2(harness.address()).await]
        {
            let request = Request::post("/a/b?c=d").header("x-own", "1").body(full("hello")).unwrap();
            let answer = client.send(request).await;
            assert_eq!(answer.status, 200);
            let told = answer.json();
            assert_eq!(
                (&told["method"], &told["target"], &told["body"]),
                (&"POST".into(), &"/a/b?c=d".into(), &"hello".into())
            );
            assert_eq!(header(&told, "host"), ["test.example"]);
            assert_eq!(header(&told, "x-own"), ["1"]);
        }
    });
}

#[test]
fn answers_of_the_proxy_itself_are_whole_messages_over_both_versions() {
    block_on(async {
        let document = "
routes:
- {name: own, match: {paths: [{exact: /own}]}, respond: {body: hello}}
- {name: none, match: {paths: [{exact: /none}]}, respond: {status: 204}}
";
        let harness = Harness::start(document);
        for wire in crate::harness::Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            for (method, path, status, length, body) in [
                ("GET", "/own", 200, Some("5"), "hello"),
                ("HEAD", "/own", 200, Some("5"), ""),
                ("GET", "/none", 204, None, ""),
                ("HEAD", "/nowhere", 404, None, ""),
            ] {
                let request = Request::builder().method(method).uri(path).body(full("")).unwrap();
                let answer = client.send(request).await;
                let told = |name| answer.headers.get(name).map(|value| value.to_str().unwrap());
                assert_eq!((answer.status, answer.text()), (status, body), "{wire:?} {method} {path}");
                assert!(httpdate::parse_http_date(told("date").expect("a date")).is_ok());
                if status == 200 {
                    assert_eq!(told("content-length"), length, "{wire:?} {method} {path}");
                }
            }
            // All of them have completed, and none was given up.
            let metrics = crate::telling::metrics(&harness);
            assert!(!metrics.contains(r#"flags="DC""#), "{metrics}");
        }
    });
}

#[test]
fn the_upstream_is_told_who_asks() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&forward_to(backend.address));
        for mut client in
            [Client::connect(harness.address()).await, Client::connect_http2(harness.address()).await]
        {
            let request = Request::get("/")
                .header("host", "a.example:81")
                .header("x-forwarded-for", "203.0.113.1")
                .header("x-consumer-id", "root")
                .header("x-request-id", "mine")
                .body(full(""))
                .unwrap();
            let told = client.send(request).await.json();
            assert_eq!(header(&told, "x-forwarded-for"), ["127.0.0.1"]);
            assert_eq!(header(&told, "x-forwarded-proto"), ["http"]);
            assert_eq!(header(&told, "x-forwarded-host"), ["a.example:81"]);
            assert_eq!(header(&told, "host"), ["a.example:81"]);
            assert!(header(&told, "x-consumer-id").is_empty());
            assert_eq!(header(&told, "x-request-id")[0].len(), 36);
            // Without tracing there is no span that could be the parent of another.
            assert!(header(&told, "traceparent").is_empty());
        }
    });
}

#[test]
fn cookies_that_http2_splits_are_joined() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&forward_to(backend.address));
        let request =
            Request::get("/").header("cookie", "a=1").header("cookie", "b=2").body(full("")).unwrap();
        let told = Client::connect_http2(harness.address()).await.send(request).await.json();
        assert_eq!(header(&told, "cookie"), ["a=1; b=2"]);
    });
}

#[test]
fn hop_by_hop_headers_pass_in_neither_direction() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            let Some(head) = read_head(&mut stream).await else { return };
            for gone in ["x-hop", "keep-alive", "proxy-connection", "connection: ", "upgrade"] {
                assert!(!head.to_lowercase().contains(gone), "{head}");
            }
            let answer =
                b"HTTP/1.1 200 OK\r\nconnection: close, x-back\r\nx-back: 1\r\nkeep-alive: timeout=5\r\n\
                x-kept: 1\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(answer).await.unwrap();
        });
        let harness = Harness::start(&forward_to(backend.address));
        let request =
            b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close, X-Hop\r\nx-hop: 1\r\nkeep-alive: 1\r\n\
            proxy-connection: keep-alive\r\nupgrade: h2c\r\n\r\n";
        let answer = raw(harness.address(), request).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("x-kept: 1\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
        assert!(!answer.contains("x-back") && !answer.contains("timeout=5"), "{answer}");
    });
}

#[test]
fn one_client_connection_needs_one_upstream_connection() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&forward_to(backend.address));
        let mut client = Client::connect(harness.address()).await;
        for index in 0..200 {
            let request = match index % 3 {
                0 => Request::get("/").body(full("")).unwrap(),
                1 => Request::post("/").body(full("x".repeat(index * 100))).unwrap(),
                _ => Request::head("/").body(full("")).unwrap(),
            };
            assert_eq!(client.send(request).await.status, 200);
        }
        assert_eq!(backend.connections(), 1);
    });
}

#[test]
fn answers_without_a_body_stay_without() {
    block_on(async {
        let backend = Backend::start(|request| async move {
            let answer = Response::builder();
            match request.uri().path() {
                "/204" => answer.status(204).body(full("")).unwrap(),
                "/304" => answer.status(304).header("etag", "\"x\"").body(full("")).unwrap(),
                _ => answer.header("content-length", "1000").body(full("")).unwrap(),
            }
        });
        let harness = Harness::start(&forward_to(backend.address));
        for mut client in
            [Client::connect(harness.address()).await, Client::connect_http2(harness.address()).await]
        {
            for (method, path, status, length) in
                [("GET", "/204", 204, None), ("GET", "/304", 304, None), ("HEAD", "/", 200, Some("1000"))]
            {
                let request = Request::builder().method(method).uri(path).body(full("")).unwrap();
                let answer = client.send(request).await;
                assert_eq!((answer.status, answer.body.len()), (status, 0));
                let found = answer.headers.get("content-length").map(|value| value.to_str().unwrap());
                assert_eq!(found, length, "{method} {path}");
            }
        }
        // There is one per client at most, because they may be on two workers: the connections can be reused.
        assert!(backend.connections() <= 2);
    });
}

#[test]
fn bodies_stream_both_ways_as_they_come() {
    block_on(async {
        // The backend answers each chunk before the next is sent.
        let backend = Backend::start(|request| async move {
            let (sender, body) = fed();
            tokio::spawn(async move {
                let mut incoming = request.into_body();
                while let Some(Ok(frame)) = incoming.frame().await {
                    let data = frame.into_data().unwrap();
                    sender.send(Ok(Frame::data(data))).await.unwrap();
                }
            });
            Response::new(body)
        });
        let harness = Harness::start(&forward_to(backend.address));
        for mut client in
            [Client::connect(harness.address()).await, Client::connect_http2(harness.address()).await]
        {
            for method in ["POST", "GET"] {
                let (sender, body) = fed();
                let request = Request::builder().method(method).uri("/").body(body).unwrap();
                // hyper's client assumes that a GET has no body unless told otherwise.
                let mut request = request;
                if let Client::Http1(_) = client {
                    request.headers_mut().insert("transfer-encoding", "chunked".parse().unwrap());
                }
                let mut answer = client.start(request).await.unwrap().into_body();
                for chunk in ["one", "two", "three"] {
                    sender.send(Ok(Frame::data(chunk.into()))).await.unwrap();
                    let frame = answer.frame().await.unwrap().unwrap();
                    assert_eq!(frame.into_data().unwrap(), chunk);
                }
                drop(sender);
                // HTTP/2 may end a stream with an empty frame.
                let end = answer.collect().await.unwrap().to_bytes();
                assert!(end.is_empty(), "{method} {end:?}");
            }
        }
    });
}

#[test]
fn trailers_that_http2_does_not_have_hold_up_nothing() {
    block_on(async {
        use crate::harness::{Wire, forward_over};
        // Trailers pass from a client of HTTP/1.1 to a target of HTTP/2.
        let backend = Backend::speaking(Wire::Http2, |request| async move {
            let body = request.into_body().collect().await.unwrap();
            let names: Vec<_> = body.trailers().unwrap().keys().map(ToString::to_string).collect();
            Response::new(full(names.join(",")))
        });
        let harness = Harness::start(&forward_over(Wire::Http2, backend.address));
        let head = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
        let trailers = "keep-alive: x\r\nproxy-connection: x\r\nte: gzip\r\nupgrade: x\r\nx-sum: 1\r\n";
        let answer = raw(harness.address(), format!("{head}1\r\nx\r\n0\r\n{trailers}\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nx-sum"), "{answer}");
        // Trailers pass from a target of HTTP/1.1 to a client of HTTP/2.
        let backend = Backend::raw(move |mut stream| async move {
            read_head(&mut stream).await.unwrap();
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            let answer = format!("{head}1\r\nx\r\n0\r\n{trailers}\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let harness = Harness::start(&forward_to(backend.address));
        let answer = Client::connect_http2(harness.address()).await.get("/").await;
        assert_eq!((answer.status, answer.text()), (200, "x"));
        assert_eq!(answer.trailers.unwrap().keys().collect::<Vec<_>>(), ["x-sum"]);
    });
}

#[test]
fn fields_of_a_connection_in_configured_answers_break_nothing() {
    block_on(async {
        let document = "
routes: [{name: own, respond: {headers: {keep-alive: x, proxy-connection: x, x-own: '1'}, body: hello}}]";
        let harness = Harness::start(document);
        for wire in crate::harness::Wire::BOTH {
            let answer = Client::speaking(wire, harness.address()).await.get("/").await;
            assert_eq!((answer.text(), answer.headers["x-own"].as_bytes()), ("hello", &b"1"[..]), "{wire:?}");
            assert!(!answer.headers.contains_key("keep-alive"));
        }
    });
}

#[test]
fn trailers_pass_both_ways() {
    block_on(async {
        let backend = Backend::start(|request| async move {
            let trailers = request.into_body().collect().await.unwrap().trailers().cloned();
            let sum = trailers
                .and_then(|trailers| trailers.get("x-sum").cloned())
                .unwrap_or("none".parse().unwrap());
            let (sender, body) = fed();
            tokio::spawn(async move {
                sender.send(Ok(Frame::data("data".into()))).await.unwrap();
                let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), sum)]);
                sender.send(Ok(Frame::trailers(trailers))).await.unwrap();
            });
            Response::builder().header("trailer", "x-sum").body(body).unwrap()
        });
        let harness = Harness::start(&forward_to(backend.address));
        for mut client in
            [Client::connect(harness.address()).await, Client::connect_http2(harness.address()).await]
        {
            let (sender, body) = fed();
            tokio::spawn(async move {
                sender.send(Ok(Frame::data("data".into()))).await.unwrap();
                let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())]);
                sender.send(Ok(Frame::trailers(trailers))).await.unwrap();
            });
            let request =
                Request::post("/").header("te", "trailers").header("trailer", "x-sum").body(body).unwrap();
            let answer = client.send(request).await;
            assert_eq!(answer.text(), "data");
            assert_eq!(answer.trailers.unwrap()["x-sum"], "42");
        }
    });
}

/// A body without end that counts the bytes that are read of it.
struct Endless(Arc<AtomicU64>);

impl Body for Endless {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        static CHUNK: [u8; 16 << 10] = [b'x'; 16 << 10];
        self.0.fetch_add(CHUNK.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&CHUNK)))))
    }
}

/// The number of bytes that are read of a source in the end, while nobody reads the result.
async fn settled(taken: &AtomicU64) -> u64 {
    let mut last = 0;
    let mut quiet = 0;
    until("no more is taken", || {
        let now = taken.load(Ordering::Relaxed);
        quiet = if now == last && now > 0 { quiet + 1 } else { 0 };
        last = now;
        quiet > 150
    })
    .await;
    last
}

#[test]
fn a_client_that_does_not_read_holds_the_upstream_back() {
    block_on(async {
        let taken = Arc::<AtomicU64>::default();
        let source = Arc::clone(&taken);
        let backend = Backend::start(move |_| {
            let body = Endless(Arc::clone(&source)).boxed();
            async move { Response::new(body) }
        });
        let harness = Harness::start(&forward_to(backend.address));
        let mut stream = tokio::net::TcpStream::connect(harness.address()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        stream.read_u8().await.unwrap();
        // The kernel's buffers of two connections take their share, up to 6 MiB each on loopback.
        let settled = settled(&taken).await;
        assert!(settled < 24 << 20, "{settled} bytes were taken");
        // The proxy drops it when the client leaves.
        drop(stream);
        until("the connection is gone", || harness.proxy.active_connections() == 0).await;
    });
}

#[test]
fn an_upstream_that_does_not_read_holds_the_client_back() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            read_head(&mut stream).await;
            std::future::pending::<()>().await;
        });
        let harness = Harness::start(&forward_to(backend.address));
        for mut client in
            [Client::connect(harness.address()).await, Client::connect_http2(harness.address()).await]
        {
            let taken = Arc::<AtomicU64>::default();
            let body = Endless(Arc::clone(&taken)).boxed();
            let sending =
                tokio::spawn(
                    async move { client.start(Request::post("/").body(body).unwrap()).await.map(drop) },
                );
            let settled = settled(&taken).await;
            assert!(settled < 24 << 20, "{settled} bytes were taken");
            sending.abort();
        }
    });
}

#[test]
fn a_client_may_send_everything_before_it_reads() {
    block_on(async {
        // The backend answers while it reads, with more than all buffers hold.
        const SIZE: usize = 32 << 20;
        let backend = Backend::start(|request| async move {
            let (sender, body) = fed();
            tokio::spawn(async move {
                let mut incoming = request.into_body();
                let mut size = 0;
                while let Some(Ok(frame)) = incoming.frame().await {
                    size += frame.into_data().map_or(0, |data| data.len());
                }
                let _ = sender.send(Ok(Frame::data(size.to_string().into()))).await;
            });
            Response::new(body)
        });
        let harness = Harness::start(&forward_to(backend.address));
        let mut client = Client::connect(harness.address()).await;
        let answer = client.send(Request::post("/").body(full(vec![b'x'; SIZE])).unwrap()).await;
        assert_eq!(answer.text(), SIZE.to_string());
    });
}

#[test]
fn a_client_that_goes_away_takes_its_request_with_it() {
    block_on(async {
        let (came, mut has_come) = mpsc::channel(1);
        let (gone, mut was_gone) = mpsc::channel(1);
        let backend = Backend::raw(move |mut stream| {
            let (came, gone) = (came.clone(), gone.clone());
            async move {
                read_head(&mut stream).await.unwrap();
                came.send(()).await.unwrap();
                // Nothing more arrives; then the connection ends.
                assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
                gone.send(()).await.unwrap();
            }
        });
        let harness = Harness::start(&forward_to(backend.address));
        for mut client in
            [Client::connect(harness.address()).await, Client::connect_http2(harness.address()).await]
        {
            let request = client.start(Request::get("/").body(full("")).unwrap());
            tokio::select! {
                _ = request => panic!("there is no answer"),
                it = has_come.recv() => it.unwrap(),
            }
            drop(client);
            was_gone.recv().await.unwrap();
        }
    });
}

#[test]
fn routes_rewrite_redirect_and_respond() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&format!(
            "
upstreams: [{{name: u, targets: [{{address: '{}'}}]}}]
routes:
- {{name: prefix, match: {{paths: [{{prefix: /api}}]}},
   forward: {{upstreams: [{{name: u}}], rewrite: {{path_prefix: /v1, host: inner.example}}}}}}
- {{name: regex, match: {{paths: [{{prefix: /users}}]}},
   forward: {{upstreams: [{{name: u}}], rewrite: {{path_regex: {{pattern: '^/users/(\\d+)$', substitution: '/u/$1'}}}}}}}}
- {{name: away, match: {{paths: [{{exact: /away}}]}}, redirect: {{scheme: https, host: new.example, status: 301}}}}
- {{name: here, match: {{paths: [{{exact: /here}}]}}, respond: {{status: 418, body: short, headers: {{x-tea: pot}}}}}}
- {{name: slash, match: {{paths: [{{exact: /slash/}}]}}, strict_slash: true, respond: {{body: ok}}}}
",
            backend.address
        ));
        let mut client = Client::connect(harness.address()).await;
        let told = client.get("/api/x?q=1").await.json();
        assert_eq!(told["target"], "/v1/x?q=1");
        assert_eq!(header(&told, "host"), ["inner.example"]);
        assert_eq!(header(&told, "x-forwarded-host"), ["test.example"]);
        assert_eq!(client.get("/users/7").await.json()["target"], "/u/7");
        let away = client.get("/away?q=1").await;
        assert_eq!(
            (away.status, away.headers["location"].to_str().unwrap()),
            (301, "https://new.example/away?q=1")
        );
        let here = client.get("/here").await;
        assert_eq!(
            (here.status, here.text(), &here.headers["x-tea"]),
            (418, "short", &"pot".parse().unwrap())
        );
        for (method, status) in [("GET", 301), ("POST", 308)] {
            let request = Request::builder().method(method).uri("/slash?q=1").body(full("")).unwrap();
            let answer = client.send(request).await;
            assert_eq!(
                (answer.status, answer.headers["location"].to_str().unwrap()),
                (status, "/slash/?q=1")
            );
        }
        assert_eq!(client.get("/slash/").await.text(), "ok");
    });
}

#[test]
fn what_the_proxy_cannot_do_it_refuses() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&forward_to(backend.address));
        let connect = b"CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\nconnection: close\r\n\r\n";
        assert!(raw(harness.address(), connect).await.starts_with("HTTP/1.1 501 "));
    });
}

#[test]
fn expect_continue_is_answered_once_the_body_is_wanted() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&forward_to(backend.address));
        let mut stream = tokio::net::TcpStream::connect(harness.address()).await.unwrap();
        let head = b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\nconnection: close\r\n\r\n";
        stream.write_all(head).await.unwrap();
        assert_eq!(read_head(&mut stream).await.unwrap(), "HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"hello").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains(r#""body":"hello""#), "{answer}");
        assert!(!answer.contains("expect"));
    });
}

#[test]
fn an_answer_without_a_body_has_no_length_whatever_the_target_says() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            while read_head(&mut stream).await.is_some() {
                let answer = b"HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
        });
        let harness = Harness::start(&forward_to(backend.address));
        for mut client in
            [Client::connect(harness.address()).await, Client::connect_http2(harness.address()).await]
        {
            let answer = client.get("/").await;
            assert_eq!((answer.status, answer.headers.get("content-length")), (204, None));
        }
    });
}

#[test]
fn expect_continue_is_answered_over_http2_too() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&forward_to(backend.address));
        let mut frames = Frames::connect(harness.address(), &[]).await;
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "a"),
            ("expect", "100-continue"),
        ];
        assert!(frames.send(&frame(HEADERS, END_HEADERS, 1, &literals(&fields))).await);
        let heads = async |frames: &mut Frames, kind: u8| loop {
            let next = frames.next_within(Duration::from_secs(10)).await.expect("a frame");
            if next.kind == kind {
                return next;
            }
        };
        let go_on = heads(&mut frames, HEADERS).await;
        assert_eq!(go_on.flags & END_STREAM, 0);
        assert!(go_on.payload.ends_with(b"100") || go_on.payload.len() < 6, "{:?}", go_on.payload);
        assert!(frames.send(&frame(DATA, END_STREAM, 1, b"hello")).await);
        heads(&mut frames, HEADERS).await;
        let body = heads(&mut frames, DATA).await;
        assert!(String::from_utf8_lossy(&body.payload).contains(r#""body":"hello""#), "{:?}", body.payload);
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&forward_to(backend.address));
        let requests =
            b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\nPOST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nok\
            GET /3 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let answer = raw(harness.address(), requests).await;
        let targets: Vec<_> =
            answer.match_indices(r#""target":"/"#).map(|(at, _)| &answer[at + 11..at + 12]).collect();
        assert_eq!(targets, ["1", "2", "3"]);
    });
}

#[test]
fn an_old_client_gets_an_answer_that_it_can_read() {
    block_on(async {
        let backend = Backend::start(|_| async {
            let (sender, body) = fed();
            tokio::spawn(async move {
                for part in ["in ", "two parts"] {
                    sender.send(Ok(Frame::data(part.into()))).await.unwrap();
                }
            });
            Response::new(body)
        });
        let harness = Harness::start(&forward_to(backend.address));
        let answer = raw(harness.address(), b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(
            answer.starts_with("HTTP/1.0 200 OK") && answer.ends_with("\r\n\r\nin two parts"),
            "{answer}"
        );
        assert!(!answer.contains("chunked"));
    });
}

#[test]
fn an_answer_that_ends_with_the_connection_is_passed_on_whole() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nuntil the end").await.unwrap();
        });
        let harness = Harness::start(&forward_to(backend.address));
        for mut client in
            [Client::connect(harness.address()).await, Client::connect_http2(harness.address()).await]
        {
            for _ in 0..3 {
                assert_eq!(client.get("/").await.text(), "until the end");
            }
        }
        assert_eq!(backend.connections(), 6);
    });
}

#[test]
fn an_answer_that_ends_early_does_not_look_whole() {
    block_on(async {
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nnonsense",
        ] {
            let backend = Backend::raw(move |mut stream| async move {
                read_head(&mut stream).await;
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
            let harness = Harness::start(&forward_to(backend.address));
            for mut client in
                [Client::connect(harness.address()).await, Client::connect_http2(harness.address()).await]
            {
                // If the failure is known before the head is written, the response is not begun.
                if let Ok(response) = client.start(Request::get("/").body(full("")).unwrap()).await {
                    assert_eq!(response.status(), 200);
                    response.into_body().collect().await.unwrap_err();
                }
            }
        }
    });
}

#[test]
fn a_target_may_answer_before_it_has_the_whole_request() {
    block_on(async {
        // The backend reads the head, refuses, and closes, while the client is still sending.
        let backend = Backend::raw(|mut stream| async move {
            read_head(&mut stream).await;
            let answer = b"HTTP/1.1 413 Too Large\r\ncontent-length: 7\r\nconnection: close\r\n\r\nrefused";
            stream.write_all(answer).await.unwrap();
            let _ = stream.shutdown().await;
            // It reads on for a while, as servers do, so that the response is not lost to a reset.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        });
        let harness = Harness::start(&forward_to(backend.address));
        for mut client in
            [Client::connect(harness.address()).await, Client::connect_http2(harness.address()).await]
        {
            let body = full(vec![b'x'; 4 << 20]);
            let answer = client.send(Request::post("/").body(body).unwrap()).await;
            assert_eq!((answer.status, answer.text()), (413, "refused"));
        }
    });
}

#[test]
fn plugins_and_consumers_take_part() {
    block_on(async {
        let backend = Backend::echo();
        let document = |key: &str| {
            format!(
                "
upstreams: [{{name: u, targets: [{{address: '{}'}}]}}]
plugins: [{{name: key, type: key-auth, config: {{hide_credentials: true}}}}]
consumers: [{{name: alice, custom_id: '4711', credentials: [{{key_auth: {{key: {key}}}}}]}}]
routes: [{{name: all, plugins: [key], forward: {{upstreams: [{{name: u}}]}}}}]
",
                backend.address
            )
        };
        let mut harness = Harness::start(&document("secret-1"));
        let mut client = Client::connect(harness.address()).await;
        let with = |key: &str| Request::get("/").header("apikey", key).body(full("")).unwrap();
        let refused = client.get("/").await;
        assert_eq!(refused.status, 401);
        assert_eq!(refused.headers["content-type"], "application/problem+json");
        assert!(refused.headers.contains_key("www-authenticate"));
        assert_eq!(refused.json()["request_id"].as_str().unwrap().len(), 36);
        let told = client.send(with("secret-1")).await.json();
        assert_eq!(header(&told, "x-consumer-username"), ["alice"]);
        assert_eq!(header(&told, "x-consumer-custom-id"), ["4711"]);
        assert!(header(&told, "apikey").is_empty());
        harness.apply(&document("secret-2")).unwrap();
        assert_eq!(client.send(with("secret-1")).await.status, 401);
        assert_eq!(client.send(with("secret-2")).await.status, 200);
    });
}

#[test]
fn the_target_gets_each_header_about_the_consumer_once_whether_plugins_use_it_or_not() {
    block_on(async {
        let backend = Backend::echo();
        let document = format!(
            "
upstreams: [{{name: u, targets: [{{address: '{}'}}]}}]
plugins:
- {{name: key, type: key-auth}}
- {{name: limit, type: rate-limit, config: {{limit: 100}}}}
- {{name: early, type: request-transform, order: 2000, config: {{add: {{headers: {{x-consumer-id: forged}}}}}}}}
- {{name: late, type: request-transform, config: {{rename: {{headers: {{x-consumer-id: x-user}}}}}}}}
consumers:
- {{name: alice, credentials: [{{key_auth: {{key: of-alice}}}}]}}
- {{name: bob, plugins: [late], credentials: [{{key_auth: {{key: of-bob}}}}]}}
routes:
- {{name: none, match: {{paths: [{{prefix: /none}}]}}, plugins: [key, limit], forward: {{upstreams: [{{name: u}}]}}}}
- {{name: early, match: {{paths: [{{prefix: /early}}]}}, plugins: [early, key], forward: {{upstreams: [{{name: u}}]}}}}
- {{name: late, match: {{paths: [{{prefix: /late}}]}}, plugins: [key, late], forward: {{upstreams: [{{name: u}}]}}}}
",
            backend.address
        );
        let harness = Harness::start(&document);
        for (path, key, id, user) in [
            ("/none", "of-alice", &["alice"][..], &[][..]),
            ("/none", "of-bob", &[], &["bob"]),
            ("/early", "of-alice", &["alice"], &[]),
            // The consumer's plugin does not run after one of its type.
            ("/early", "of-bob", &["bob"], &[]),
            ("/late", "of-alice", &[], &["alice"]),
        ] {
            for mut client in
                [Client::connect(harness.address()).await, Client::connect_http2(harness.address()).await]
            {
                let request = Request::get(path).header("apikey", key).header("x-consumer-id", "root");
                let answer = client.send(request.body(full("")).unwrap()).await;
                assert_eq!(answer.headers.contains_key("ratelimit-limit"), path == "/none");
                let told = answer.json();
                assert_eq!(header(&told, "x-consumer-id"), id, "{path} {key}");
                assert_eq!(header(&told, "x-user"), user, "{path} {key}");
                assert_eq!(header(&told, "x-consumer-username").len(), 1);
                assert_eq!(header(&told, "x-credential-identifier").len(), 1);
            }
        }
    });
}

#[test]
fn many_streams_share_a_connection() {
    block_on(async {
        let backend = Backend::echo();
        let harness = Harness::start(&forward_to(backend.address));
        let Client::Http2(sender) = Client::connect_http2(harness.address()).await else { unreachable!() };
        let mut tasks = tokio::task::JoinSet::new();
        for index in 0..100 {
            let mut sender = sender.clone();
            tasks.spawn(async move {
                sender.ready().await.unwrap();
                let request =
                    Request::post(format!("http://a/{index}")).body(full("x".repeat(1000))).unwrap();
                let answer = Answer::of(sender.send_request(request).await.unwrap()).await.unwrap();
                assert_eq!(answer.json()["target"], format!("/{index}"));
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    });
}
