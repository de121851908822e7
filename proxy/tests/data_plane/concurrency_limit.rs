//! `concurrency-limit` over the running proxy: the permit comes back, however an exchange ends.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::harness::{AnyBody, Backend, Client, Harness, Wire, block_on, full, raw, read_head, until};

/// A target that treats a request as its path says, and the number of requests that it holds.
struct Target {
    backend: Backend,
    held: Arc<AtomicUsize>,
}

impl Target {
    fn start() -> Self {
        let held = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&held);
        let backend = Backend::raw(move |stream| serve(stream, Arc::clone(&counted)));
        Self { backend, held }
    }

    fn document(&self, config: &str) -> String {
        let address = self.backend.address;
        format!(
            "
plugins: [{{name: limit, type: concurrency-limit, config: {config}}}]
upstreams: [{{name: u, targets: [{{address: '{address}'}}]}}]
routes:
- name: all
  match: {{paths: [{{prefix: /}}]}}
  plugins: [limit]
  forward: {{upstreams: [{{name: u}}], timeout: 0s}}
- name: quick
  match: {{paths: [{{prefix: /quick}}]}}
  plugins: [limit]
  forward: {{upstreams: [{{name: u}}], timeout: 50ms}}
"
        )
    }

    async fn holds(&self, number: usize) {
        until("the target holds the requests", || self.held.load(Ordering::SeqCst) == number).await;
    }
}

/// Serves one connection, one request after another.
async fn serve(mut stream: TcpStream, held: Arc<AtomicUsize>) {
    while let Some(head) = read_head(&mut stream).await {
        let begun: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun";
        match head.split(' ').nth(1).unwrap_or_default() {
            "/reset" => return,
            "/broken" => return drop(stream.write_all(begun).await),
            path @ ("/hold" | "/quick" | "/stream") => {
                if path == "/stream" {
                    let _ = stream.write_all(begun).await;
                }
                held.fetch_add(1, Ordering::SeqCst);
                // Until the proxy gives up.
                let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                held.fetch_sub(1, Ordering::SeqCst);
                return;
            }
            _ => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        }
    }
}

fn get(path: &str) -> Request<AnyBody> {
    Request::get(path).body(full("")).unwrap()
}

/// Sends a request until it is let in: the one before may have ended for its client a little earlier than for the proxy.
async fn enter(
    wire: Wire,
    address: SocketAddr,
    make: impl Fn() -> Request<AnyBody>,
) -> (Client, Response<Incoming>) {
    loop {
        let mut client = Client::speaking(wire, address).await;
        let response = client.start(make()).await.unwrap();
        if response.status() != 503 {
            return (client, response);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until a request is let in, and sees that it is the only one: the permit was returned, and only once.
async fn is_free(harness: &Harness, target: &Target) {
    target.holds(0).await;
    let held = tokio::spawn(enter(Wire::Http2, harness.address(), || get("/hold")));
    target.holds(1).await;
    let refused = harness.get("/").await;
    assert_eq!((refused.status, refused.headers["retry-after"].as_bytes()), (503, &b"1"[..]));
    held.abort();
    target.holds(0).await;
}

#[test]
fn a_permit_comes_back_however_an_exchange_ends() {
    block_on(async {
        let target = Target::start();
        let harness = Harness::start(&target.document("{limit: 1}"));
        let address = harness.address();
        for wire in Wire::BOTH {
            for (path, status) in [("/", 200), ("/reset", 502), ("/quick", 504)] {
                let (_, response) = enter(wire, address, || get(path)).await;
                assert_eq!(response.status(), status, "{path}");
                is_free(&harness, &target).await;
            }
            let (_client, broken) = enter(wire, address, || get("/broken")).await;
            assert!(broken.into_body().collect().await.is_err());
            is_free(&harness, &target).await;
            // The client goes away in the midst of the response, before it, and before its own body is complete.
            let half_read = enter(wire, address, || get("/stream")).await;
            target.holds(1).await;
            drop(half_read);
            is_free(&harness, &target).await;
            for body_is_complete in [true, false] {
                let make = move || match body_is_complete {
                    true => get("/hold"),
                    false => Request::post("/hold").body(endless()).unwrap(),
                };
                let waiting = tokio::spawn(enter(wire, address, make));
                target.holds(1).await;
                waiting.abort();
                is_free(&harness, &target).await;
            }
        }
        let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let burst: Vec<_> = (0..50).map(|_| tokio::spawn(raw(address, request))).collect();
        for answer in burst {
            let answer = answer.await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.1 503"), "{answer}");
        }
        is_free(&harness, &target).await;
    });
}

/// A body that begins and never ends.
fn endless() -> AnyBody {
    let begun = tokio_stream::once(Ok(Frame::data(Bytes::from_static(b"begun"))));
    BoxBody::new(StreamBody::new(tokio_stream::StreamExt::chain(begun, tokio_stream::pending())))
}

#[test]
fn an_adaptive_limit_grows_with_the_load_that_the_target_bears() {
    block_on(async {
        let target = Target::start();
        let harness =
            Harness::start(&target.document("{adaptive: {min: 2, max: 4, queue: 10, tolerance: 10}}"));
        let hold = |number| {
            let address = harness.address();
            let start = move |_| {
                tokio::spawn(
                    async move { Client::connect(address).await.start(get("/hold")).await.map(drop) },
                )
            };
            (0..number).map(start).collect::<Vec<_>>()
        };
        // At its beginning it is the minimum.
        let held = hold(2);
        target.holds(2).await;
        assert_eq!(harness.get("/").await.status, 503);
        held.iter().for_each(tokio::task::JoinHandle::abort);
        target.holds(0).await;
        // One request at a time is half of the minimum, with which the limit grows as far as that is half of it.
        let mut client = Client::connect(harness.address()).await;
        for _ in 0..20 {
            while client.send(get("/")).await.status != 200 {}
        }
        let held = hold(4);
        target.holds(4).await;
        assert_eq!(harness.get("/").await.status, 503);
        drop(held);
    });
}
