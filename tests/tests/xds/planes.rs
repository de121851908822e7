//! Real control planes and the proxies' own client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use signalbox_control_plane::board::{ForgetError, ProxyState, RolloutState, Sharing, WaitResult};
use signalbox_control_plane::xds::Limits;
use signalbox_proxy::source::StartError;

use crate::harness::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_change_travels_to_every_proxy_and_is_acknowledged() {
    let database = Database::new();
    let plane = Plane::start(&database).await;
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let proxies: Vec<_> = (dirs.iter().enumerate())
        .map(|(index, dir)| Proxy::start(&[plane.url()], dir.path(), &format!("p{index}")))
        .collect();
    for proxy in &proxies {
        proxy.until_serves(0).await;
    }
    let number = plane.put("route/a", route("one")).await;
    let outcome = plane.board.wait(number, None, Instant::now() + DEADLINE).await;
    assert_eq!(outcome.result, WaitResult::Done, "{outcome:?}");
    for proxy in &proxies {
        assert_eq!(proxy.serves(), Some(number));
        assert!(proxy.has(&plane.publisher.current().snapshot));
    }
    let rollout = plane.board.rollout(&format!("{number}-default")).unwrap();
    assert_eq!((rollout.counts.total, rollout.counts.applied), (3, 3));
    assert_eq!(rollout.state, RolloutState::Succeeded);
    assert!(rollout.propagation_ms.is_some());
    eventually("the reports tell how long it took", || {
        plane.board.proxies().iter().all(|proxy| proxy.apply_ms.is_some() && proxy.traffic.is_some())
    })
    .await;
    for proxy in proxies {
        proxy.stop().await.unwrap();
    }
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_set_comes_in_parts_and_is_applied_at_once() {
    let database = Database::new();
    let plane = Plane::start(&database).await;
    let body = "x".repeat(1000);
    let document = (0..3000).map(|index| {
        let mut spec = route(&body);
        spec["name"] = format!("r{index}").into();
        spec["kind"] = "route".into();
        spec
    });
    let number = plane.apply(&serde_json::to_string(&document.collect::<Vec<_>>()).unwrap()).await;
    let mut raw = Raw::open(&plane, "raw", None).await;
    assert!(raw.receive_revision().await.parts >= 3);
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&[plane.url()], dir.path(), "p");
    proxy.until_serves(number).await;
    assert_eq!(proxy.recorder.with(|recorded| recorded.applied.clone()), [(number, 3000)]);
    assert!(proxy.has(&plane.publisher.current().snapshot));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_restarted_without_a_control_plane_serves_from_disk_and_catches_up_by_a_difference() {
    let database = Database::new();
    let address = ([127, 0, 0, 1], signalbox_tests::free_port()).into();
    let plane = Plane::start_with(&database, Settings { address, ..Settings::default() }).await;
    for name in ["a", "b", "c"] {
        plane.put(&format!("route/{name}"), route(name)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&[plane.url()], dir.path(), "p");
    proxy.until_serves(3).await;
    let number = plane.put("route/a", route("changed")).await;
    proxy.until_serves(number).await;
    proxy.stop().await.unwrap();
    let before = plane.publisher.current().snapshot.clone();
    let url = plane.url();
    plane.stop().await;

    let proxy = Proxy::start(&[url], dir.path(), "p");
    proxy.until_serves(number).await;
    assert!(proxy.has(&before));
    assert!(!proxy.status.borrow().connected);
    // The control plane is back, and has forgotten its history; then it makes a revision.
    let plane = Plane::start_with(&database, Settings { address, ..Settings::default() }).await;
    eventually("it is connected", || {
        plane.board.proxy("p").is_some_and(|proxy| proxy.state == ProxyState::InSync)
    })
    .await;
    let next = plane.delete("route/b").await;
    proxy.until_serves(next).await;
    assert!(proxy.has(&plane.publisher.current().snapshot));
    assert_eq!(proxy.recorder.with(|recorded| recorded.applied.clone()), [(number, 3), (next, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_goes_to_another_control_plane_when_its_own_is_gone() {
    let database = Database::postgres();
    let shared = |replica| Settings { sharing: Sharing::Shared, replica, ..Settings::default() };
    let one = Plane::start_with(&database, shared("one")).await;
    let two = Plane::start_with(&database, shared("two")).await;
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&[one.url(), two.url()], dir.path(), "p");
    let number = one.put("route/a", route("a")).await;
    proxy.until_serves(number).await;
    let at_one = one.board.proxy("p").is_some_and(|proxy| proxy.connected);
    let (gone, left) = if at_one { (one, two) } else { (two, one) };
    gone.kill();
    eventually("it is at the other", || left.board.proxy("p").is_some_and(|proxy| proxy.connected)).await;
    eventually("the other knows the revision", || left.head() == number).await;
    let number = left.put("route/b", route("b")).await;
    proxy.until_serves(number).await;
    assert!(proxy.has(&left.publisher.current().snapshot));
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_are_spread_over_a_control_plane_that_comes_later_and_their_revision_stays() {
    let database = Database::postgres();
    // Every stream is old enough at once, and a third of them may be ended in a second.
    let limits =
        Limits { stream_age: Duration::ZERO..=Duration::ZERO, drained_per_second: 0.3, ..Limits::default() };
    let settings = |replica| Settings {
        sharing: Sharing::Shared,
        replica,
        limits: limits.clone(),
        ..Settings::default()
    };
    let first = Plane::start_with(&database, settings("first")).await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], signalbox_tests::free_port()));
    let urls = [first.url(), format!("http://{address}")];
    let number = first.put("route/a", route("a")).await;
    let dirs: Vec<_> = (0..8).map(|_| tempfile::tempdir().unwrap()).collect();
    let proxies: Vec<_> = (dirs.iter().enumerate())
        .map(|(index, dir)| Proxy::start(&urls, dir.path(), &format!("p{index}")))
        .collect();
    for proxy in &proxies {
        proxy.until_serves(number).await;
    }
    eventually("all are connected", || first.board.stream_share().own == 8).await;
    let second = Plane::start_with(&database, Settings { address, ..settings("second") }).await;
    // 1.1 times a half of eight is five.
    eventually("the other has its share", || {
        let share = second.board.stream_share();
        (3..=5).contains(&share.own) && share.all == 8
    })
    .await;
    let number = second.put("route/a", route("b")).await;
    for proxy in &proxies {
        proxy.until_serves(number).await;
    }
    for proxy in proxies {
        proxy.stop().await.unwrap();
    }
}

/// Passes connections on to `target`. When told, those there are fall silent, and stay open.
async fn relay(target: std::net::SocketAddr, silence: Arc<tokio::sync::Notify>) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = tokio::net::TcpStream::connect(target).await.unwrap();
            let silence = silence.clone();
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = silence.notified() => std::future::pending().await,
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_falls_silent_is_given_up_soon() {
    let database = Database::new();
    let plane = Plane::start(&database).await;
    let silence = Arc::new(tokio::sync::Notify::new());
    let address = relay(plane.address, silence.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&[format!("http://{address}")], dir.path(), "p");
    proxy.until_serves(0).await;
    eventually("it is in sync", || {
        plane.board.proxy("p").is_some_and(|proxy| proxy.state == ProxyState::InSync)
    })
    .await;
    silence.notify_waiters();
    let number = plane.put("route/a", route("a")).await;
    // The proxy's keepalive notices it.
    proxy.until_serves(number).await;
    assert_eq!(plane.board.proxies().len(), 1);
}

/// Case 9.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_revision_holds_up_nobody_else_and_the_next_recovers_every_proxy() {
    let database = Database::new();
    let plane = Plane::start(&database).await;
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let good = Proxy::start(&[plane.url()], dirs[0].path(), "good");
    let poor = Proxy::start(&[plane.url()], dirs[1].path(), "poor");
    let first = plane.put("route/a", route("a")).await;
    good.until_serves(first).await;
    poor.until_serves(first).await;
    poor.recorder.refuse(Some("127.0.0.1:80 is taken"));
    let second = plane.put("route/b", route("b")).await;
    good.until_serves(second).await;
    let outcome = plane.board.wait(second, None, Instant::now() + DEADLINE).await;
    assert_eq!(outcome.result, WaitResult::Rejected);
    assert_eq!(outcome.rollouts[0].state, RolloutState::Failed);
    let status = plane.proxy("poor");
    assert_eq!((status.state, status.revision.applied), (ProxyState::Rejected, first));
    let error = &status.error.unwrap().resources[0];
    assert_eq!((&*error.kind, &*error.name, &*error.field), ("listener", "http", "address"));
    assert_eq!(error.message, "127.0.0.1:80 is taken");
    assert_eq!(poor.serves(), Some(first));
    // Others go on meanwhile.
    let third = plane.put("route/c", route("c")).await;
    good.until_serves(third).await;
    poor.recorder.refuse(None);
    let fourth = plane.delete("route/b").await;
    poor.until_serves(fourth).await;
    assert!(poor.has(&plane.publisher.current().snapshot));
    let outcome = plane.board.wait(fourth, None, Instant::now() + DEADLINE).await;
    assert_eq!(outcome.result, WaitResult::Done);
    assert!(plane.proxy("poor").error.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_host_stood_in_the_way_of_is_applied_and_acknowledged_late() {
    let database = Database::new();
    let plane = Plane::start(&database).await;
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::default());
    recorder.refuse(Some("the port is taken"));
    let started = Instant::now();
    let proxy = Proxy::start_with(&[plane.url()], dir.path(), "p", recorder.clone());
    eventually("it is rejected", || {
        plane
            .board
            .proxy("p")
            .is_some_and(|proxy| proxy.state == ProxyState::Rejected || proxy.error.is_some())
    })
    .await;
    // Not sent again in a loop: it is refused once, and then every five seconds by the proxy itself.
    let refused = recorder.with(|recorded| recorded.refused) as u64;
    assert!(refused <= 1 + started.elapsed().as_secs() / 5, "{refused}");
    recorder.refuse(None);
    proxy.until_serves(0).await;
    eventually("the late ACK is seen", || plane.proxy("p").state == ProxyState::InSync).await;
    let number = plane.put("route/a", route("a")).await;
    proxy.until_serves(number).await;
}

#[tokio::test]
async fn two_proxies_cannot_share_a_data_directory() {
    let database = Database::new();
    let plane = Plane::start(&database).await;
    let dir = tempfile::tempdir().unwrap();
    let first = Proxy::start(&[plane.url()], dir.path(), "p");
    first.until_serves(0).await;
    let second = Proxy::start(&[plane.url()], dir.path(), "q");
    let error = second.ended().await.unwrap_err();
    assert!(matches!(error, StartError::DataDirInUse(_)), "{error:?}");
    assert!(error.to_string().contains("in use by another proxy"));
    first.stop().await.unwrap();
    let third = Proxy::start(&[plane.url()], dir.path(), "q");
    third.until_serves(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_killed_and_started_again_is_one_proxy() {
    let database = Database::new();
    let plane = Plane::start(&database).await;
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let proxy = Proxy::start(&[plane.url()], dir.path(), "p");
        eventually("it is connected", || plane.board.proxy("p").is_some_and(|proxy| proxy.connected)).await;
        proxy.until_serves(0).await;
        proxy.kill().await;
    }
    eventually("it is seen as gone", || !plane.proxy("p").connected).await;
    assert_eq!(plane.board.proxies().len(), 1);
    assert_eq!(plane.board.fleets()[0].proxies, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_seen_and_waited_for_at_every_control_plane_of_one_database() {
    let database = Database::postgres();
    let shared = |replica| Settings { sharing: Sharing::Shared, replica, ..Settings::default() };
    let one = Plane::start_with(&database, shared("one")).await;
    let two = Plane::start_with(&database, shared("two")).await;
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&[two.url()], dir.path(), "p");
    eventually("the other sees it", || one.board.proxy("p").is_some_and(|proxy| proxy.connected)).await;
    assert_eq!(one.proxy("p").connected_to, "two");
    let number = one.put("route/a", route("a")).await;
    let outcome = one.board.wait(number, Some("default"), Instant::now() + DEADLINE).await;
    assert_eq!(outcome.result, WaitResult::Done);
    assert_eq!(proxy.serves(), Some(number));
    // It moves, and each of them knows.
    proxy.stop().await.unwrap();
    let proxy = Proxy::start(&[one.url()], dir.path(), "p");
    eventually("both know where it is", || {
        [&one, &two].iter().all(|plane| {
            plane.board.proxy("p").is_some_and(|proxy| proxy.connected && proxy.connected_to == "one")
        })
    })
    .await;
    assert!(matches!(two.board.forget("p").await, Err(ForgetError::Connected)));
    proxy.stop().await.unwrap();
    eventually("both know that it is gone", || {
        [&one, &two].iter().all(|plane| plane.board.proxy("p").is_some_and(|proxy| !proxy.connected))
    })
    .await;
    two.board.forget("p").await.unwrap();
    eventually("both have forgotten it", || one.board.proxies().is_empty() && two.board.proxies().is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_board_outlives_its_control_plane() {
    let database = Database::new();
    let plane = Plane::start(&database).await;
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&[plane.url()], dir.path(), "p");
    proxy.until_serves(0).await;
    let number = plane.put("route/a", route("a")).await;
    plane.board.wait(number, None, Instant::now() + DEADLINE).await;
    let before = plane.board.rollouts(10);
    proxy.stop().await.unwrap();
    // One that has a stream when the control plane ends is taken to come back to the next.
    eventually("it is seen as gone", || !plane.proxy("p").connected).await;
    plane.stop().await;

    let plane = Plane::start(&database).await;
    let known = plane.proxy("p");
    assert_eq!((known.state, known.revision.applied), (ProxyState::Disconnected, number));
    eventually("the head is known", || !plane.board.rollouts(1).is_empty()).await;
    let after = plane.board.rollouts(10);
    assert_eq!(after.len(), before.len());
    assert_eq!(after[0].propagation_ms, before[0].propagation_ms);
    assert_eq!(after[0].state, RolloutState::Succeeded);
    plane.board.forget("p").await.unwrap();
    assert!(plane.board.proxies().is_empty());
    assert!(matches!(plane.board.forget("p").await, Err(ForgetError::Unknown)));
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_of_the_board_see_what_changes() {
    use signalbox_control_plane::board::BoardEvent;
    let database = Database::new();
    let plane = Plane::start(&database).await;
    let mut events = plane.board.subscribe();
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&[plane.url()], dir.path(), "p");
    proxy.until_serves(0).await;
    let number = plane.put("route/a", route("a")).await;
    let (mut in_sync, mut rolled_out) = (false, false);
    while !(in_sync && rolled_out) {
        match soon("the events come", events.recv()).await.unwrap() {
            BoardEvent::Proxy(proxy) => {
                in_sync |= proxy.state == ProxyState::InSync && proxy.revision.applied == number;
            }
            BoardEvent::Rollout(rollout) => {
                rolled_out |= rollout.revision == number && rollout.state == RolloutState::Succeeded;
            }
            BoardEvent::Forgotten(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_elsewhere_waits_for_a_proxy_that_was_just_answered() {
    let database = Database::postgres();
    let shared = |replica| Settings { sharing: Sharing::Shared, replica, ..Settings::default() };
    let one = Plane::start_with(&database, shared("one")).await;
    let two = Plane::start_with(&database, shared("two")).await;
    let number = one.put("route/a", route("a")).await;
    eventually("the other has it", || two.head() == number).await;
    for round in 0..5 {
        let id = format!("p{round}");
        let mut raw = Raw::open(&two, &id, None).await;
        let received = raw.receive_revision().await;
        // From the first answer on, whoever asks waits for it.
        let soon = Instant::now() + std::time::Duration::from_millis(200);
        let outcome = one.board.wait(number, None, soon).await;
        assert_eq!(outcome.result, WaitResult::TimedOut, "{outcome:?}");
        assert_eq!((&*outcome.waiting[0].id, outcome.waiting_count), (&*id, 1));
        raw.ack(&received.last).await;
        let outcome = one.board.wait(number, None, Instant::now() + DEADLINE).await;
        assert_eq!(outcome.result, WaitResult::Done, "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_database_new_proxies_are_served_and_no_wait_says_yes() {
    let mut database = Database::postgres();
    let shared = |replica| Settings { sharing: Sharing::Shared, replica, ..Settings::default() };
    let one = Plane::start_with(&database, shared("one")).await;
    let two = Plane::start_with(&database, shared("two")).await;
    let number = one.put("route/a", route("a")).await;
    eventually("the other has it", || two.head() == number).await;
    database.server().kill9();
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&[two.url()], dir.path(), "p");
    proxy.until_serves(number).await;
    for plane in [&one, &two] {
        let soon = Instant::now() + std::time::Duration::from_millis(500);
        let outcome = plane.board.wait(number, None, soon).await;
        assert_eq!(outcome.result, WaitResult::TimedOut, "{outcome:?}");
        assert!(outcome.unknown.is_some(), "{outcome:?}");
    }
    database.server().start().unwrap();
    // The first that says yes knows the newcomer.
    let outcome = one.board.wait(number, None, Instant::now() + DEADLINE).await;
    assert_eq!((outcome.result, outcome.rollouts[0].counts.applied), (WaitResult::Done, 1), "{outcome:?}");
    assert_eq!(one.proxy("p").state, ProxyState::InSync);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_proxies_with_one_node_id_are_shown_wherever_they_are_connected() {
    let database = Database::postgres();
    let shared = |replica| Settings { sharing: Sharing::Shared, replica, ..Settings::default() };
    let one = Plane::start_with(&database, shared("one")).await;
    let two = Plane::start_with(&database, shared("two")).await;
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for (first, second) in [(&one, &one), (&one, &two)] {
        let id = if first.address == second.address { "together" } else { "apart" };
        let a = Proxy::start(&[first.url()], dirs[0].path(), id);
        let b = Proxy::start(&[second.url()], dirs[1].path(), id);
        for plane in [&one, &two] {
            eventually("both are shown", || {
                plane.board.proxy(id).is_some_and(|proxy| {
                    proxy.warnings.iter().any(|warning| {
                        warning.contains("two proxies use this node id")
                            && warning.matches("127.0.0.1:").count() == 2
                    })
                })
            })
            .await;
        }
        a.stop().await.unwrap();
        b.stop().await.unwrap();
    }
}
