//! `compress` on the way of real responses.

use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use http_body_util::combinators::BoxBody;

use crate::harness::{AnyBody, Backend, Client, Harness, Wire, block_on, full};

fn start(backend: &Backend) -> Harness {
    Harness::start(&format!(
        "
plugins: [{{name: c, type: compress, global: true}}, {{name: limit, type: rate-limit, config: {{limit: 1000, window: 1h, by: ip}}}}]
upstreams: [{{name: u, targets: [{{address: '{}'}}]}}]
routes:
- {{name: limited, match: {{paths: [{{prefix: /limited}}]}}, plugins: [limit], respond: {{status: 200, body: '{}', headers: {{content-type: text/plain}}}}}}
- {{name: all, match: {{paths: [{{prefix: /}}]}}, forward: {{upstreams: [{{name: u}}]}}}}
",
        backend.address,
        "word ".repeat(1000),
    ))
}

fn get(path: &str, accepted: &str) -> Request<AnyBody> {
    Request::get(path).header("accept-encoding", accepted).body(full("")).unwrap()
}

fn unzipped(bytes: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(bytes).read_to_string(&mut text).unwrap();
    text
}

/// Answers with a text of its own length, or as the path says.
fn texts() -> Backend {
    Backend::start(|request| async move {
        let builder = Response::builder().header("content-type", "text/plain").header("etag", "\"v1\"");
        match (request.uri().path(), request.headers().get("if-none-match")) {
            (_, Some(tags)) if tags.to_str().unwrap().split(", ").any(|tag| tag == "\"v1\"") => {
                builder.status(304).body(full("")).unwrap()
            }
            ("/part", _) => {
                builder.status(206).header("content-range", "bytes 0-4/9").body(full("part!")).unwrap()
            }
            ("/status", _) => builder.status(418).body(full("tea ".repeat(1000))).unwrap(),
            ("/encoded", _) => builder.header("content-encoding", "br").body(full("x".repeat(5000))).unwrap(),
            ("/small", _) => builder.body(full("small")).unwrap(),
            _ => builder.body(full("word ".repeat(1000))).unwrap(),
        }
    })
}

#[test]
fn responses_are_compressed_for_those_who_accept_it() {
    block_on(async {
        let backend = texts();
        let harness = start(&backend);
        for wire in Wire::BOTH {
            let mut client = Client::speaking(wire, harness.address()).await;
            for (path, status, size) in [("/", 200, 5000), ("/status", 418, 4000), ("/limited", 200, 5000)] {
                let answer = client.send(get(path, "gzip")).await;
                assert_eq!(
                    (answer.status, answer.headers["content-encoding"].as_bytes()),
                    (status, &b"gzip"[..])
                );
                assert!(!answer.headers.contains_key("content-length"));
                assert_eq!(answer.headers["vary"], "Accept-Encoding");
                assert_eq!(unzipped(&answer.body).len(), size, "{path}");
                let plain = client.send(get(path, "identity")).await;
                assert_eq!(
                    (plain.body.len(), plain.headers["vary"].as_bytes()),
                    (size, &b"Accept-Encoding"[..])
                );
            }
            for path in ["/part", "/encoded", "/small"] {
                let answer = client.send(get(path, "gzip")).await;
                assert!(answer.headers.get("content-encoding").is_none_or(|coding| coding == "br"), "{path}");
            }
            let mut head = get("/", "gzip");
            *head.method_mut() = http::Method::HEAD;
            let answer = client.send(head).await;
            assert!(answer.body.is_empty() && !answer.headers.contains_key("content-encoding"));
            let tag = client.send(get("/", "gzip")).await.headers["etag"].clone();
            assert_eq!(tag, "W/\"v1\"");
            let mut again = get("/", "gzip");
            again.headers_mut().insert("if-none-match", tag);
            let answer = client.send(again).await;
            assert_eq!((answer.status, answer.headers["etag"].as_bytes()), (304, &b"W/\"v1\""[..]));
        }
    });
}

#[test]
fn events_arrive_while_the_stream_goes_on() {
    block_on(async {
        let (next, parts) = tokio::sync::mpsc::channel::<&'static str>(1);
        let parts = Arc::new(tokio::sync::Mutex::new(Some(parts)));
        let backend = Backend::start(move |_| {
            let parts = Arc::clone(&parts);
            async move {
                let parts = parts.lock().await.take().unwrap();
                let stream = tokio_stream::wrappers::ReceiverStream::new(parts);
                let frames = tokio_stream::StreamExt::map(stream, |part| {
                    Ok(http_body::Frame::data(Bytes::from_static(part.as_bytes())))
                });
                let body = BoxBody::new(http_body_util::StreamBody::new(frames));
                Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
            }
        });
        let harness = start(&backend);
        let mut client = Client::connect(harness.address()).await;
        let mut answer = client.start(get("/", "gzip")).await.unwrap();
        assert_eq!(answer.headers()["content-encoding"], "gzip");
        let mut so_far = Vec::new();
        for event in ["data: one\n\n", "data: two\n\n"] {
            next.send(event).await.unwrap();
            loop {
                so_far.extend(answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap());
                let mut text = String::new();
                // The stream has no end yet.
                let _ = flate2::read::GzDecoder::new(&so_far[..]).read_to_string(&mut text);
                if text.ends_with(event) {
                    break;
                }
            }
        }
        drop(next);
        so_far.extend(answer.into_body().collect().await.unwrap().to_bytes());
        assert_eq!(unzipped(&so_far), "data: one\n\ndata: two\n\n");
    });
}
