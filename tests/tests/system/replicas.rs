//! Several control planes on one PostgreSQL.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use signalbox_tests::{ControlPlane, Postgres, Proxy, eventually, get};

use crate::fixture::respond;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_control_planes_see_each_others_writes_and_so_do_their_proxies() {
    let postgres = Postgres::new().unwrap();
    let one = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    let mut two = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    let at_one = Proxy::of(&one, "at-one").await.unwrap();
    let at_two =
        Proxy::builder().control_plane(&two).control_plane(&one).node_id("at-two").start().await.unwrap();
    one.api().wait_in_sync(2).await.unwrap();
    two.api().wait_in_sync(2).await.unwrap();

    for (writer, text) in [(&one, "written at one"), (&two, "written at two")] {
        let revision = writer.api().put("routes", "r", &respond("/", text)).await.unwrap();
        for waiter in [&one, &two] {
            waiter.api().wait_default(revision).await.unwrap();
            let seen = waiter.api().get("/routes/r").await.unwrap();
            assert_eq!(seen["respond"]["body"], text);
        }
        for proxy in [&at_one, &at_two] {
            assert_eq!(get(proxy.http(), "a", "/").await.unwrap().text(), text);
        }
    }

    // Both write at once: no number is given twice or left out, and no write is lost.
    let before = one.api().head().await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for (replica, control_plane) in [&one, &two].into_iter().enumerate() {
        let api = control_plane.api().clone();
        writers.spawn(async move {
            let mut numbers = Vec::new();
            for index in 0..20 {
                let name = format!("r-{replica}-{index}");
                numbers.push(api.put("routes", &name, &respond(&format!("/{name}"), &name)).await.unwrap());
            }
            numbers
        });
    }
    let numbers: BTreeSet<u64> = writers.join_all().await.into_iter().flatten().collect();
    assert_eq!(numbers, (before + 1..=before + 40).collect());
    two.api().wait_default(before + 40).await.unwrap();
    for proxy in [&at_one, &at_two] {
        for replica in 0..2 {
            for index in [0, 19] {
                let name = format!("r-{replica}-{index}");
                assert_eq!(get(proxy.http(), "a", &format!("/{name}")).await.unwrap().text(), name);
            }
        }
    }
    let both = one.api().get("/export?format=json").await.unwrap();
    assert_eq!(both, two.api().get("/export?format=json").await.unwrap());

    // One of them is lost: whoever knows the other goes there, and gets what was written meanwhile.
    two.kill9();
    let revision = one.api().put("routes", "r", &respond("/", "after the loss")).await.unwrap();
    let text =
        || async { get(at_two.http(), "a", "/").await.map(|answer| answer.text()).unwrap_or_default() };
    let moved = eventually(Duration::from_secs(30), async || text().await == "after the loss").await;
    assert!(moved, "the proxy of the lost control plane did not move: {}", at_two.log());
    one.api().wait_in_sync(2).await.unwrap();
    one.api().wait_default(revision).await.unwrap();
    assert_eq!(one.api().proxies().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_control_plane_that_comes_later_has_it_all() {
    let postgres = Postgres::new().unwrap();
    let one = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    let document = json!({"routes": (0..300).map(|index| {
        json!({"name": format!("r{index}"), "match": {"paths": [{"exact": format!("/{index}")}]}, "respond": {"body": "x"}})
    }).collect::<Vec<_>>()});
    one.api().apply(&document).await.unwrap();
    let two = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    let export =
        async |control_plane: &ControlPlane| control_plane.api().get("/export?format=json").await.unwrap();
    assert_eq!(export(&one).await, export(&two).await);
    let proxy = Proxy::of(&two, "p").await.unwrap();
    assert_eq!(get(proxy.http(), "a", "/299").await.unwrap().text(), "x");
}
