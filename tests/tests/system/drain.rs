//! How a proxy ends.

use std::time::Duration;

use http::StatusCode;
use signalbox_tests::{Backend, Behaviour, Load, Protocol, Proxy, eventually, get};

use crate::fixture::{Gateway, forward, upstream};

async fn drain_under_load(protocol: Protocol) {
    let mut gateway = Gateway::start(2).await;
    let slow = Backend::start("slow", Behaviour::Slow(Duration::from_millis(30))).unwrap();
    gateway.put("upstreams", "echo", &upstream(&[&slow])).await;
    gateway.put("routes", "r", &forward("/")).await;
    let load = Load::on(gateway.proxies.iter().map(Proxy::http))
        .connections(12)
        .pace(Duration::ZERO)
        .protocol(protocol)
        .start()
        .await
        .unwrap();
    for round in 0..2 {
        load.wait_for(50).await.unwrap();
        let proxy = &mut gateway.proxies[round % 2];
        proxy.terminate();
        let code = proxy.wait_exit(Duration::from_secs(20)).unwrap();
        assert_eq!(code, Some(0), "{}", proxy.log());
        load.wait_for(50).await.unwrap();
        proxy.start().await.unwrap();
    }
    load.finish().assert_flawless(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_drain_loses_no_request_over_http1() {
    drain_under_load(Protocol::Http1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_drain_loses_no_request_over_http2() {
    drain_under_load(Protocol::Http2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_drain_lets_a_long_request_end_and_takes_no_new_connection() {
    let mut gateway = Gateway::start(1).await;
    let slow = Backend::start("slow", Behaviour::Slow(Duration::from_secs(6))).unwrap();
    gateway.put("upstreams", "echo", &upstream(&[&slow])).await;
    gateway.put("routes", "r", &forward("/")).await;
    let address = gateway.proxies[0].http();
    let running = tokio::spawn(async move { get(address, "a", "/").await });
    assert!(eventually(Duration::from_secs(10), async || slow.requests() == 1).await);
    gateway.proxies[0].terminate();
    let refused =
        eventually(Duration::from_secs(5), async || tokio::net::TcpStream::connect(address).await.is_err())
            .await;
    assert!(refused, "it still accepts connections");
    assert_eq!(running.await.unwrap().unwrap().status, StatusCode::OK);
    assert_eq!(gateway.proxies[0].wait_exit(Duration::from_secs(10)).unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_drain_ends_at_its_deadline() {
    let mut gateway = Gateway::start(0).await;
    let hanging = Backend::start("hanging", Behaviour::Hang).unwrap();
    gateway.put("upstreams", "echo", &upstream(&[&hanging])).await;
    gateway.put("routes", "r", &forward("/")).await;
    let builder =
        Proxy::builder().control_plane(&gateway.control_plane).node_id("p").arg("--drain-timeout=1s");
    gateway.proxies.push(builder.start().await.unwrap());
    gateway.control_plane.api().wait_in_sync(1).await.unwrap();
    let address = gateway.proxies[0].http();
    let running = tokio::spawn(async move { get(address, "a", "/").await });
    assert!(eventually(Duration::from_secs(10), async || hanging.requests() == 1).await);
    gateway.proxies[0].terminate();
    gateway.proxies[0].wait_exit(Duration::from_secs(10)).unwrap();
    let cut = running.await.unwrap();
    assert!(cut.is_err() || cut.is_ok_and(|answer| !answer.status.is_success()));
}
