//! Real control planes and the proxies' own client.

use crate::harness::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_change_travels_to_every_proxy_and_is_acknowledged() {
    let database = Database::new();
    let plane = Plane::start(&database).await;
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let proxies: Vec<_> = (dirs.iter().enumerate())
        .map(|(index, dir)| Proxy::start(&[plane.url()], dir.path(), &format!("p{index}")))
        .collect();
    eventually("all are connected", || {
        plane.board.proxies().iter().filter(|proxy| proxy.connected).count() == 3
    })
    .await;
    let number = plane.put("route/a", route("one")).await;
    let deadline = std::time::Instant::now() + DEADLINE;
    let outcome = plane.board.wait(number, None, deadline).await;
    assert_eq!(outcome.result, signalbox_control_plane::board::WaitResult::Done, "{outcome:?}");
    for proxy in &proxies {
        assert_eq!(proxy.serves(), Some(number));
        assert!(proxy.has(&plane.publisher.current().snapshot));
    }
    let rollout = plane.board.rollout(&format!("{number}-default")).unwrap();
    assert_eq!((rollout.counts.total, rollout.counts.applied), (3, 3));
    assert!(rollout.propagation_ms.is_some());
    for proxy in proxies {
        proxy.stop().await.unwrap();
    }
    plane.stop().await;
}
