//! Several control planes on one PostgreSQL.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use signalbox_tests::{ControlPlane, Postgres, Proxy, eventually, get};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

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
async fn a_control_plane_far_from_the_database_gets_its_turn_beside_one_that_writes_without_a_pause() {
    let postgres = Postgres::new().unwrap();
    let near = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    let far = ControlPlane::builder().database(far_away(&postgres).await).start().await.unwrap();

    let api = near.api().clone();
    let before = api.head().await.unwrap();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let count = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&count);
    let busy = tokio::spawn(async move {
        let mut written = Vec::new();
        while stopped.try_recv().is_err() {
            let path = format!("/{}", written.len());
            written.push(api.put("routes", "near", &respond(&path, "near")).await.unwrap());
            counted.store(written.len(), Ordering::Relaxed);
        }
        written
    });
    let mut revisions = BTreeSet::new();
    for index in 0..10 {
        let name = format!("far-{index}");
        revisions.insert(far.api().put("routes", &name, &respond(&format!("/{name}"), &name)).await.unwrap());
    }
    let more = async || count.load(Ordering::Relaxed) > revisions.len();
    assert!(eventually(Duration::from_secs(30), more).await, "the near one is held up");
    stop.send(()).unwrap();
    let written = busy.await.unwrap();
    revisions.extend(written);
    assert_eq!(revisions.len() as u64, near.api().head().await.unwrap() - before);
}

/// The URL of `postgres` over a relay that lets what it is sent and what it answers wait for 10 ms.
async fn far_away(postgres: &Postgres) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (url, near) = (postgres.url(), postgres.address());
    let far = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(near).await.unwrap();
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::spawn(relay(from_client, to_server));
            tokio::spawn(relay(from_server, to_client));
        }
    });
    url.replace(&near.to_string(), &far.to_string())
}

async fn relay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
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
