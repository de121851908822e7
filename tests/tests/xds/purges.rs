//! Purges of cached responses reach the proxies beside the revisions.

use std::time::Instant;

use signalbox_config::Purge;
use signalbox_control_plane::board::Sharing;

use crate::harness::*;

fn tagged(tag: &str) -> Purge {
    Purge { tag: Some(tag.to_owned()), ..Purge::default() }
}

/// Stores a purge, and waits for so many proxies to carry it out.
async fn purge(plane: &Plane, tag: &str, proxies: usize) {
    let number = plane.publisher.purges().add(&tagged(tag), "e").await.unwrap();
    let (progress, unknown) = plane.board.wait_purged(number, Instant::now() + DEADLINE).await;
    assert_eq!((progress.done, progress.pending, unknown), (proxies, 0, None), "{tag}: {progress:?}");
}

/// Waits until the board knows so many connected proxies, because a purge is waited for on those that are known.
async fn until_connected(plane: &Plane, proxies: usize) {
    eventually("the proxies are connected", || {
        plane.board.proxies().iter().filter(|proxy| proxy.connected).count() == proxies
    })
    .await;
}

fn carried_out(proxy: &Proxy) -> Vec<Purge> {
    proxy.recorder.with(|recorded| recorded.purges.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_purge_is_carried_out_once_by_every_proxy() {
    let database = Database::new();
    let address = ([127, 0, 0, 1], signalbox_tests::free_port()).into();
    let settings = || Settings { address, ..Settings::default() };
    let plane = Plane::start_with(&database, settings()).await;
    let home = tempfile::tempdir().unwrap();
    let proxies = ["a", "b"].map(|id| Proxy::start(&[plane.url()], &home.path().join(id), id));
    for proxy in &proxies {
        proxy.until_serves(0).await;
    }
    purge(&plane, "one", 2).await;
    purge(&plane, "two", 2).await;
    for proxy in &proxies {
        assert_eq!(carried_out(proxy), [tagged("one"), tagged("two")]);
    }
    let before = proxies.each_ref().map(|proxy| carried_out(proxy).len());

    // While the control plane is away, another one on the database takes a purge.
    plane.stop().await;
    let store = signalbox_control_plane::store::open(&database.url()).await.unwrap();
    let text = serde_json::to_string(&tagged("three")).unwrap();
    store.add_purge(0, &text, "e").await.unwrap();
    store.close().await.unwrap();
    let plane = Plane::start_with(&database, settings()).await;
    until_connected(&plane, 2).await;
    purge(&plane, "four", 2).await;
    for (proxy, before) in proxies.iter().zip(before) {
        assert_eq!(carried_out(proxy)[before..], [tagged("three"), tagged("four")]);
    }

    // The caches of a proxy that has carried out none may be older than all purges.
    let new = Proxy::start(&[plane.url()], &home.path().join("new"), "new");
    until_connected(&plane, 3).await;
    purge(&plane, "five", 3).await;
    assert_eq!(carried_out(&new), ["one", "two", "three", "four", "five"].map(tagged));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_that_a_proxy_does_not_understand_empties_its_caches() {
    let database = Database::new();
    let plane = Plane::start(&database).await;
    let home = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&[plane.url()], home.path(), "p");
    proxy.until_serves(0).await;
    purge(&plane, "one", 1).await;
    plane.store.add_purge(0, r#"{"language": "fr"}"#, "e").await.unwrap();
    purge(&plane, "two", 1).await;
    let purges = carried_out(&proxy);
    assert_eq!(purges[purges.len() - 2..], [Purge::everything(), tagged("two")], "{purges:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_covers_the_proxies_of_all_control_planes() {
    let database = Database::postgres();
    let settings = |replica| Settings { sharing: Sharing::Shared, replica, ..Settings::default() };
    let one = Plane::start_with(&database, settings("one")).await;
    let two = Plane::start_with(&database, settings("two")).await;
    let home = tempfile::tempdir().unwrap();
    let at_one = Proxy::start(&[one.url()], &home.path().join("a"), "a");
    let at_two = Proxy::start(&[two.url()], &home.path().join("b"), "b");
    for proxy in [&at_one, &at_two] {
        proxy.until_serves(0).await;
    }
    until_connected(&one, 2).await;
    until_connected(&two, 2).await;
    for round in 0..5 {
        for plane in [&one, &two] {
            let tag = format!("{}-{round}", plane.address);
            purge(plane, &tag, 2).await;
            for proxy in [&at_one, &at_two] {
                assert!(carried_out(proxy).iter().any(|purge| *purge == tagged(&tag)), "{tag}");
            }
        }
    }
}
