//! The memory that large and slow bodies cost.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;

use crate::harness::{AnyBody, Backend, Client, Harness, Wire, block_on, forward_over, full, until};

/// A body without end that counts the bytes that are read of it.
fn endless(taken: std::sync::Arc<std::sync::atomic::AtomicU64>) -> AnyBody {
    let part = Bytes::from(vec![b'x'; 16 << 10]);
    let parts = tokio_stream::StreamExt::map(tokio_stream::iter(0..6400), move |_| {
        taken.fetch_add(part.len() as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(http_body::Frame::data(part.clone()))
    });
    http_body_util::StreamBody::new(parts).boxed()
}

/// Waits until `count` no longer grows.
async fn settled(count: &std::sync::atomic::AtomicU64) -> u64 {
    let mut last = u64::MAX;
    let mut same = 0;
    while same < 20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = count.load(std::sync::atomic::Ordering::Relaxed);
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

/// The kernel's buffers on both sides of the proxy, the windows of HTTP/2, and the buffers of the proxy and its peers:
/// all of it is a small part of 100 MiB.
const AT_MOST: u64 = 24 << 20;

#[test]
fn who_does_not_take_holds_back_who_sends() {
    block_on(async {
        for (from, to) in Wire::BOTH.into_iter().flat_map(|from| Wire::BOTH.map(|to| (from, to))) {
            let taken = std::sync::Arc::<std::sync::atomic::AtomicU64>::default();
            // The response is fast, and the client does not read it.
            let given = std::sync::Arc::clone(&taken);
            let backend = Backend::speaking(to, move |request| {
                let body = endless(std::sync::Arc::clone(&given));
                async move {
                    if request.uri().path() == "/down" {
                        return Response::new(body);
                    }
                    // The backend holds the request without reading it.
                    let _held = request;
                    std::future::pending().await
                }
            });
            let harness = Harness::start(&forward_over(to, backend.address));
            let mut client = Client::speaking(from, harness.address()).await;
            let answer = client.start(Request::get("/down").body(full("")).unwrap()).await.expect("a head");
            let held = settled(&taken).await;
            assert!(held < AT_MOST, "{from:?} to {to:?}: {held} of the answer");
            drop((answer, client));
            // The client is fast, and the target does not read.
            let sent = std::sync::Arc::<std::sync::atomic::AtomicU64>::default();
            let mut client = Client::speaking(from, harness.address()).await;
            let request = Request::post("/up").body(endless(std::sync::Arc::clone(&sent))).unwrap();
            let started = client.start(request);
            tokio::select! {
                _ = started => panic!("there is no answer"),
                held = settled(&sent) => assert!(held < AT_MOST, "{from:?} to {to:?}: {held} of the request"),
            }
        }
    });
}

#[test]
fn an_upload_that_is_not_taken_holds_up_no_other_of_its_connection() {
    block_on(async {
        let sent = std::sync::Arc::<std::sync::atomic::AtomicU64>::default();
        let backend = Backend::start(|request| async move {
            if request.uri().path() == "/stalled" {
                let _held = request;
                return std::future::pending().await;
            }
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Response::new(full(body.len().to_string()))
        });
        let harness = Harness::start(&forward_over(Wire::Http1, backend.address));
        let mut client = Client::connect_http2(harness.address()).await;
        let Client::Http2(sender) = &client else { unreachable!() };
        let mut stalled = Client::Http2(sender.clone());
        let body = endless(std::sync::Arc::clone(&sent));
        let _stalled = tokio::spawn(async move {
            stalled.start(Request::post("/stalled").body(body).unwrap()).await.is_ok()
        });
        // The buffers of the kernel and the proxy, and the stream's window, are full.
        until("some was taken", || sent.load(std::sync::atomic::Ordering::Relaxed) > 1 << 20).await;
        settled(&sent).await;
        let request = Request::post("/taken").body(full(vec![b'x'; 3 << 20])).unwrap();
        assert_eq!(client.send(request).await.text(), (3 << 20).to_string());
    });
}
