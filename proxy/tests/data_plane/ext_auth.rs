//! `ext-auth` with a service of its own, over HTTP and over gRPC.

use std::sync::{Arc, Mutex};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::harness::{AnyBody, Backend, Client, Harness, Wire, block_on, full, nobody, read_head, until};
use crate::upgrades::{AGREE, ASK};

/// The questions to the service: the lines of headers, bytes that are no text included, and the body.
type Asked = Arc<Mutex<Vec<(String, Vec<(String, Vec<u8>)>, Bytes)>>>;

/// A service that answers by `answer`, and notes what it is asked.
fn service(
    wire: Wire,
    answer: impl Fn(&str) -> Response<AnyBody> + Send + Sync + 'static,
) -> (Backend, Asked) {
    let asked = Asked::default();
    let noted = Arc::clone(&asked);
    let answer = Arc::new(answer);
    let backend = Backend::speaking(wire, move |request: Request<hyper::body::Incoming>| {
        let (noted, answer) = (Arc::clone(&noted), Arc::clone(&answer));
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let headers =
                head.headers.iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
            let target = head.uri.path_and_query().unwrap().to_string();
            let what = head.headers.get("x-do").and_then(|value| value.to_str().ok()).unwrap_or_default();
            let answered = answer(what);
            noted.lock().unwrap().push((target, headers.collect(), body));
            answered
        }
    });
    (backend, asked)
}

/// A proxy whose requests the service decides about.
fn start(service: &str, protocol: &str, config: &str, backend: &Backend) -> Harness {
    Harness::start(&format!(
        "
plugins: [{{name: auth, type: ext-auth, config: {{upstream: service, {config}}}}}]
upstreams:
- {{name: u, targets: [{{address: '{}'}}]}}
- {{name: service, protocol: {protocol}, targets: [{{address: '{service}'}}]}}
routes:
- {{name: admin, match: {{paths: [{{prefix: /admin}}]}}, plugins: [auth], forward: {{upstreams: [{{name: u}}], timeout: 0s}}}}
- {{name: all, match: {{paths: [{{prefix: /}}]}}, plugins: [auth], forward: {{upstreams: [{{name: u}}], timeout: 0s}}}}
",
        backend.address
    ))
}

fn values(headers: &[(String, Vec<u8>)], name: &str) -> Vec<Vec<u8>> {
    headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.clone()).collect()
}

fn request(path: &str, what: &str) -> Request<AnyBody> {
    Request::get(path).header("x-do", what).body(full("")).unwrap()
}

/// The answer of the service, by the request's `x-do`.
fn verdict(what: &str) -> Response<AnyBody> {
    let builder = Response::builder();
    match what {
        "deny" => builder
            .status(302)
            .header("location", "https://login.example/?back")
            .header("set-cookie", "a=1")
            .header("set-cookie", "b=2")
            .header("keep-alive", "timeout=5")
            .header("x-reason", "nobody")
            .body(full("go there"))
            .unwrap(),
        "fail" => builder.status(503).body(full("")).unwrap(),
        "large" => builder.body(full(vec![b'x'; 100_000])).unwrap(),
        _ => builder.header("x-user", "alice").header("x-session", "new").body(full("")).unwrap(),
    }
}

#[test]
fn the_service_sees_each_header_as_it_is_and_the_path_that_was_routed() {
    block_on(async {
        let (service, asked) = service(Wire::Http1, verdict);
        let backend = Backend::echo();
        let config = "path: /check, upstream_headers: [x-user, x-role], client_headers: [x-session]";
        let harness = start(&service.address.to_string(), "http1", config, &backend);
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            let mut request = request("//x/../admin/%2e/users?q=%20", "");
            let headers = request.headers_mut();
            headers.append("x-many", HeaderValue::from_static("1"));
            headers.append("x-many", HeaderValue::from_bytes(b"\xff\xfe").unwrap());
            for (name, value) in [
                ("x-user", "root"),
                ("x-role", "admin"),
                ("x-forwarded-uri", "/harmless"),
                ("x-forwarded-method", "HEAD"),
                ("x-forwarded-prefix", "/p"),
                ("x-original-url", "/harmless"),
                ("forwarded", "host=evil"),
            ] {
                headers.insert(name, HeaderValue::from_static(value));
            }
            let answer = client.send(request).await;
            assert_eq!((answer.status, answer.headers["x-session"].as_bytes()), (200, &b"new"[..]));
            let told = answer.json();
            // The path that was checked is the one that was routed and sent.
            assert_eq!(told["target"], "/admin/users?q=%20");
            let text = told["headers"].to_string();
            assert!(text.contains(r#"["x-user","alice"]"#), "{text}");
            assert!(!text.contains("x-role") && !text.contains("root"), "{text}");
            let (target, headers, body) = asked.lock().unwrap().pop().unwrap();
            assert_eq!((target.as_str(), body.len()), ("/check", 0));
            assert_eq!(values(&headers, "x-many"), [&b"1"[..], b"\xff\xfe"]);
            for (name, value) in [
                ("x-forwarded-uri", "/admin/users?q=%20"),
                ("x-forwarded-method", "GET"),
                ("x-forwarded-host", "test.example"),
                ("x-forwarded-proto", "http"),
                ("x-forwarded-for", "127.0.0.1"),
            ] {
                assert_eq!(values(&headers, name), [value.as_bytes()], "{name}");
            }
            for name in ["x-forwarded-prefix", "x-original-url", "forwarded"] {
                assert!(values(&headers, name).is_empty(), "{name}");
            }
        }
    });
}

#[test]
fn a_denial_reaches_the_client_whole() {
    block_on(async {
        let (service, _) = service(Wire::Http1, verdict);
        let backend = Backend::text("never");
        let harness = start(&service.address.to_string(), "http1", "", &backend);
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            let answer = client.send(request("/", "deny")).await;
            assert_eq!((answer.status, answer.text()), (302, "go there"));
            assert_eq!(answer.headers["location"], "https://login.example/?back");
            assert_eq!(answer.headers.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
            assert_eq!(answer.headers["content-length"], "8");
            assert_eq!(answer.headers["x-reason"], "nobody");
            assert!(!answer.headers.contains_key("keep-alive"));
            let mut head = request("/", "deny");
            *head.method_mut() = http::Method::HEAD;
            let answer = client.send(head).await;
            assert_eq!((answer.status, answer.text()), (302, ""));
        }
        assert_eq!(backend.connections(), 0);
    });
}

#[test]
fn a_service_that_fails_has_denied_nothing() {
    block_on(async {
        let (service, _) = service(Wire::Http1, verdict);
        let backend = Backend::echo();
        let silent = Backend::raw(|stream| async move {
            let _open = stream;
            std::future::pending::<()>().await;
        });
        let garbage = Backend::raw(|mut stream| async move {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"no HTTP at all\r\n\r\n").await;
        });
        let (service, silent, garbage) =
            (service.address.to_string(), silent.address.to_string(), garbage.address.to_string());
        let nobody = nobody().to_string();
        for (address, what) in
            [(&service, "fail"), (&service, "large"), (&silent, ""), (&garbage, ""), (&nobody, "")]
        {
            for (config, status) in [("", 503), ("status_on_error: 403", 403), ("on_error: allow", 200)] {
                let config = format!("timeout: 300ms, upstream_headers: [x-user], {config}");
                let harness = start(address, "http1", config.trim_end_matches(", "), &backend);
                let mut request = request("/", what);
                request.headers_mut().insert("x-user", HeaderValue::from_static("root"));
                let answer = Client::connect(harness.address()).await.send(request).await;
                assert_eq!(answer.status, status, "{what} {config}");
                assert!(!answer.text().contains("root"));
            }
        }
    });
}

/// The client goes away while the service is asked: the call is cancelled.
#[test]
fn a_client_that_leaves_cancels_the_call() {
    block_on(async {
        let (gone, mut is_gone) = tokio::sync::mpsc::unbounded_channel();
        let service = Backend::raw(move |mut stream| {
            let gone = gone.clone();
            async move {
                let mut all = Vec::new();
                let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut all).await;
                gone.send(all).unwrap();
            }
        });
        let backend = Backend::echo();
        let harness = start(&service.address.to_string(), "http1", "timeout: 10m", &backend);
        let mut client = Client::connect(harness.address()).await;
        let asking = tokio::spawn(async move { client.start(request("/", "")).await });
        until("the service is asked", || service.connections() == 1).await;
        asking.abort();
        assert!(is_gone.recv().await.unwrap().starts_with(b"GET / HTTP/1.1\r\n"));
    });
}

/// A field of a message: its number, and its bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
    out
}

/// A `HeaderValueOption`.
fn option(name: &str, value: &str, action: u8) -> Vec<u8> {
    let header = [field(1, name.as_bytes()), field(2, value.as_bytes())].concat();
    [field(1, &header), vec![3 << 3, action]].concat()
}

/// A gRPC response with this message, or with this status.
fn grpc(message: &[u8], status: &'static str) -> Response<AnyBody> {
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(message.len() as u32);
    body.extend_from_slice(message);
    let trailers = HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static(status),
    )]);
    let body = full(body.freeze()).with_trailers(std::future::ready(Some(Ok(trailers))));
    Response::builder().header("content-type", "application/grpc").body(BoxBody::new(body)).unwrap()
}

fn grpc_verdict(what: &str) -> Response<AnyBody> {
    // Status: a code that is not OK.
    let not_ok = field(1, &[8, 16]);
    match what {
        "deny" => {
            let status = field(1, &[8, 0x91, 0x03]); // 401
            let headers =
                [field(2, &option("set-cookie", "a=1", 0)), field(2, &option("set-cookie", "b=2", 0))];
            let denied = [status, headers.concat(), field(3, b"who are you?")].concat();
            grpc(&[not_ok, field(2, &denied)].concat(), "0")
        }
        "bare" => grpc(&not_ok, "0"),
        "garbage" => grpc(b"\xff\xff\xff", "0"),
        "error" => grpc(b"", "14"),
        "fold" => grpc(&field(3, &field(2, &option("x-user", "a\r\nx-role: admin", 2))), "0"),
        _ => {
            let ok = [
                field(2, &option("x-user", "alice", 2)),
                field(2, &option("x-many", "2", 0)),
                field(2, &option("x-many", "3", 1)),
                field(2, &option("x-none", "4", 3)),
                field(2, &option("host", "evil.example", 2)),
                field(2, &option("content-length", "5", 2)),
                field(5, b"x-secret"),
                field(6, &option("x-session", "new", 0)),
            ];
            grpc(&field(3, &ok.concat()), "0")
        }
    }
}

#[test]
fn a_service_decides_over_grpc() {
    block_on(async {
        let (service, asked) = service(Wire::Http2, |_| grpc_verdict(""));
        let backend = Backend::echo();
        let harness = start(&service.address.to_string(), "http2", "grpc: true", &backend);
        let mut client = Client::connect(harness.address()).await;
        for _ in 0..3 {
            let mut request = request("/admin?q", "");
            let headers = request.headers_mut();
            headers.append("x-many", HeaderValue::from_static("1"));
            headers.append("x-many", HeaderValue::from_bytes(b"\xff").unwrap());
            headers.insert("x-secret", HeaderValue::from_static("s"));
            let answer = client.send(request).await;
            assert_eq!((answer.status, answer.headers["x-session"].as_bytes()), (200, &b"new"[..]));
            let text = answer.json()["headers"].to_string();
            assert!(
                text.contains(r#"["x-user","alice"]"#) && text.contains(r#"["host","test.example"]"#),
                "{text}"
            );
            assert!(text.contains(r#"["x-many","2"]"#) && !text.contains(r#"["x-many","3"]"#), "{text}");
            assert!(
                !text.contains("x-none") && !text.contains("x-secret") && !text.contains("content-length"),
                "{text}"
            );
            let (target, _, body) = asked.lock().unwrap().pop().unwrap();
            assert_eq!(target, "/envoy.service.auth.v3.Authorization/Check");
            // The bytes of the value as they came, in `header_map`, and the path.
            let header = [field(1, b"x-many"), field(3, b"\xff")].concat();
            for part in [field(1, &header), field(4, b"/admin?q"), field(5, b"test.example")] {
                assert!(body.windows(part.len()).any(|window| window == part), "{part:?} in {body:?}");
            }
        }
        assert_eq!(service.connections(), 1);
    });
}

#[test]
fn denials_and_failures_over_grpc_differ() {
    block_on(async {
        for (what, status, text) in [
            ("deny", 401, "who are you?"),
            ("bare", 403, ""),
            ("garbage", 503, ""),
            ("error", 503, ""),
            ("fold", 503, ""),
        ] {
            let (service, _) = service(Wire::Http2, move |_| grpc_verdict(what));
            let backend = Backend::text("never");
            let harness = start(&service.address.to_string(), "http2", "grpc: true", &backend);
            let answer = Client::connect(harness.address()).await.send(request("/", "")).await;
            assert_eq!(answer.status, status, "{what}");
            if status < 500 {
                assert_eq!(answer.text(), text);
            }
            if what == "deny" {
                assert_eq!(answer.headers.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
            }
            assert_eq!(backend.connections(), 0, "{what}");
        }
    });
}

/// A body of unknown length, in parts.
fn parts(parts: Vec<Bytes>) -> AnyBody {
    let frames = parts.into_iter().map(|part| Ok(http_body::Frame::data(part)));
    BoxBody::new(StreamBody::new(futures_util::stream::iter(frames)))
}

#[test]
fn the_service_sees_the_body_and_the_upstream_gets_it_once() {
    block_on(async {
        let large: Bytes = (0..1_000_000).map(|index| b'a' + (index % 23) as u8).collect::<Vec<_>>().into();
        for (protocol, service_wire) in [("http1", Wire::Http1), ("http2", Wire::Http2)] {
            let is_grpc = service_wire == Wire::Http2;
            let (service, asked) = service(service_wire, move |what| match is_grpc {
                true => grpc_verdict(what),
                false => verdict(what),
            });
            let backend = Backend::echo();
            for (body, sent, seen, partial) in [
                ("{max_size: 1000}", Bytes::from_static(b"hello"), 5, Some("false")),
                ("{max_size: 1000}", large.slice(..1000), 1000, Some("false")),
                ("{max_size: 1000}", large.slice(..1001), 0, None),
                ("{max_size: 1000, allow_partial: true}", large.slice(..1000), 1000, Some("false")),
                ("{max_size: 1000, allow_partial: true}", large.slice(..1001), 1000, Some("true")),
                ("{max_size: 1000, allow_partial: true}", large.clone(), 1000, Some("true")),
            ] {
                let config = format!("grpc: {is_grpc}, upstream_headers: [x-user], body: {body}");
                let harness = start(&service.address.to_string(), protocol, &config, &backend);
                for (wire, is_known) in Wire::BOTH.into_iter().flat_map(|wire| [(wire, true), (wire, false)])
                {
                    let told = format!("{protocol} {body} {} {wire:?} {is_known}", sent.len());
                    let sending = match is_known {
                        true => full(sent.clone()),
                        false => parts(sent.chunks(700).map(Bytes::copy_from_slice).collect()),
                    };
                    let request = Request::post("/p").body(sending).unwrap();
                    let answer = Client::speaking(wire, harness.address()).await.send(request).await;
                    let mut asked = std::mem::take(&mut *asked.lock().unwrap());
                    let Some(partial) = partial else {
                        assert_eq!((answer.status, asked.len()), (413, 0), "{told}");
                        continue;
                    };
                    assert_eq!(answer.status, 200, "{told}");
                    assert_eq!(answer.json()["body"].as_str().unwrap().as_bytes(), sent, "{told}");
                    assert!(answer.json()["headers"].to_string().contains(r#"["x-user","alice"]"#), "{told}");
                    assert_eq!(asked.len(), 1, "{told}");
                    let (_, headers, body) = asked.pop().unwrap();
                    let seen = sent.slice(..seen);
                    if is_grpc {
                        let raw = field(12, &seen);
                        assert!(body.windows(raw.len()).any(|window| window == raw), "{told}");
                        let header =
                            [field(1, b"x-envoy-auth-partial-body"), field(3, partial.as_bytes())].concat();
                        assert!(body.windows(header.len()).any(|window| window == header), "{told}");
                    } else {
                        assert_eq!(body, seen, "{told}");
                        assert_eq!(values(&headers, "x-envoy-auth-partial-body"), [partial.as_bytes()]);
                    }
                }
            }
        }
    });
}

#[test]
fn a_request_with_a_body_that_is_denied_reaches_neither_the_upstream_nor_a_plugin_that_answers() {
    block_on(async {
        let (service, asked) = service(Wire::Http1, verdict);
        let backend = Backend::text("never");
        for body in ["{max_size: 10}", "{max_size: 1, allow_partial: true}"] {
            let harness = start(&service.address.to_string(), "http1", &format!("body: {body}"), &backend);
            for wire in Wire::BOTH {
                let request = Request::post("/").header("x-do", "deny").body(full("12345")).unwrap();
                let answer = Client::speaking(wire, harness.address()).await.send(request).await;
                assert_eq!((answer.status, answer.text()), (302, "go there"));
            }
        }
        assert_eq!((backend.connections(), asked.lock().unwrap().len()), (0, 4));
        let document = format!(
            "
plugins:
- {{name: auth, type: ext-auth, config: {{upstream: service, body: {{}}}}}}
- {{name: answer, type: respond, config: {{body: secret}}}}
upstreams: [{{name: service, targets: [{{address: '{}'}}]}}]
routes: [{{name: all, match: {{paths: [{{prefix: /}}]}}, plugins: [auth, answer], respond: {{}}}}]
",
            service.address
        );
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        let post = Request::post("/").body(full("12345")).unwrap();
        assert_eq!(client.send(post).await.status, 403);
        assert_eq!(client.get("/").await.text(), "secret");
    });
}

#[test]
fn a_grpc_client_learns_of_a_denial_by_its_status_and_its_stream_is_not_waited_for() {
    block_on(async {
        for (what, status) in [("deny", "16"), ("bare", "7")] {
            let (service, asked) = service(Wire::Http2, move |_| grpc_verdict(what));
            let backend = Backend::text("never");
            let config = "grpc: true, body: {allow_partial: true}";
            let harness = start(&service.address.to_string(), "http2", config, &backend);
            // The stream does not end before the answer.
            let open = StreamBody::new(futures_util::stream::pending());
            let request = Request::post("/a.Service/Call")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(BoxBody::new(open))
                .unwrap();
            let answer = Client::connect_http2(harness.address()).await.send(request).await;
            assert_eq!((answer.status, answer.headers["grpc-status"].as_bytes()), (200, status.as_bytes()));
            assert_eq!(answer.headers["content-type"], "application/grpc");
            assert!(answer.body.is_empty());
            assert_eq!((backend.connections(), asked.lock().unwrap().len()), (0, 1));
        }
    });
}

/// The service does not take what follows a protocol switch for a body that it has seen.
#[test]
fn a_request_for_another_protocol_is_checked_as_one_that_is_not_seen_whole() {
    block_on(async {
        let (service, asked) = service(Wire::Http1, verdict);
        let backend = Backend::raw(|mut stream| async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(AGREE).await.unwrap();
        });
        let harness = start(&service.address.to_string(), "http1", "body: {}", &backend);
        for (request, is_partial) in [(ASK, "true"), ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", "false")] {
            let mut stream = TcpStream::connect(harness.address()).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            read_head(&mut stream).await.unwrap();
            let (_, headers, body) = asked.lock().unwrap().pop().unwrap();
            assert_eq!(values(&headers, "x-envoy-auth-partial-body"), [is_partial.as_bytes()], "{request}");
            assert!(body.is_empty());
        }
    });
}

/// A client that waits for the answer before it sends the rest of a body.
#[test]
fn the_start_of_a_partial_body_goes_on_before_the_rest_comes() {
    block_on(async {
        let (service, _) = service(Wire::Http1, verdict);
        let backend = Backend::start(|request| async move {
            let mut body = request.into_body();
            let mut start = Vec::new();
            while start.len() < 5 {
                start.extend_from_slice(&body.frame().await.unwrap().unwrap().into_data().unwrap());
            }
            Response::new(full(start))
        });
        let config = "body: {max_size: 2, allow_partial: true}";
        let harness = start(&service.address.to_string(), "http1", config, &backend);
        let mut client = Client::connect_http2(harness.address()).await;
        let first = futures_util::stream::iter([Ok(http_body::Frame::data(Bytes::from_static(b"12345")))]);
        let open = futures_util::StreamExt::chain(first, futures_util::stream::pending());
        let request = Request::post("/").body(BoxBody::new(StreamBody::new(open))).unwrap();
        assert_eq!(client.send(request).await.text(), "12345");
    });
}
