//! `token-limit` over the running proxy: a stream passes as it comes, and its last event is what counts.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::StreamExt as _;

use crate::harness::{Backend, Client, Harness, Wire, block_on, full};

#[test]
fn a_stream_passes_as_it_comes_and_its_usage_counts() {
    block_on(async {
        for wire in Wire::BOTH {
            let (next, parts) = mpsc::channel::<&'static str>(1);
            let parts = Arc::new(Mutex::new(Some(parts)));
            let backend = Backend::start(move |request| {
                let parts = Arc::clone(&parts);
                async move {
                    assert_eq!(request.headers()["accept-encoding"], "identity");
                    let parts = parts.lock().await.take().expect("no second request");
                    let stream = tokio_stream::wrappers::ReceiverStream::new(parts);
                    let frames =
                        stream.map(|part| Ok(http_body::Frame::data(Bytes::from_static(part.as_bytes()))));
                    let body = BoxBody::new(StreamBody::new(frames));
                    Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
                }
            });
            let harness = Harness::start(&format!(
                "
plugins: [{{name: tokens, type: token-limit, config: {{limit: 1000, window: 1h, by: ip, estimate: 100}}}}]
upstreams: [{{name: u, targets: [{{address: '{}'}}]}}]
routes: [{{name: all, match: {{paths: [{{prefix: /}}]}}, plugins: [tokens], forward: {{upstreams: [{{name: u}}]}}}}]
",
                backend.address
            ));
            let ask = || {
                Request::post("/v1/chat/completions")
                    .header("accept-encoding", "gzip")
                    .body(full("{}"))
                    .unwrap()
            };
            let mut client = Client::speaking(wire, harness.address()).await;
            let mut answer = client.start(ask()).await.unwrap();
            assert_eq!(answer.headers()["ratelimit-remaining"], "900");
            let usage = "data: {\"usage\": {\"prompt_tokens\": 400, \"completion_tokens\": 601, \"total_tokens\": 1001}}\n\n";
            for event in ["data: {\"choices\": [\"so\"]}\n\n", usage] {
                next.send(event).await.unwrap();
                let mut come = Vec::new();
                // The next event is sent only when this one is here.
                while come.len() < event.len() {
                    come.extend(answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap());
                }
                assert_eq!(come, event.as_bytes());
            }
            drop(next);
            assert!(answer.into_body().collect().await.unwrap().to_bytes().is_empty());
            let mut other = Client::speaking(wire, harness.address()).await;
            let refused = other.send(ask()).await;
            assert_eq!((refused.status, refused.headers["ratelimit-remaining"].as_bytes()), (429, &b"0"[..]));
            assert!(refused.headers.contains_key("retry-after"));
        }
    });
}
