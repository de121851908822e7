//! PostgreSQL beyond the contract: it is shared, and it goes away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use signalbox_control_plane::store::{self, Store, StoreError};
use signalbox_tests::Postgres;
use tokio::time::timeout;

use crate::contract::{put, revision};
use crate::places::{OnPostgres, Place};

#[tokio::test]
async fn control_planes_that_start_at_once_make_the_tables_once() {
    let place = OnPostgres::new();
    let url = place.url();
    let stores = join_all((0..10).map(|_| store::open(&url))).await;
    let heads = join_all(stores.iter().map(|store| store.as_ref().unwrap().head())).await;
    for head in &heads {
        assert_eq!(head.as_ref().unwrap(), heads[0].as_ref().unwrap());
    }
    assert_eq!(place.sql("SELECT version FROM signalbox_schema ORDER BY 1"), "1\n2\n3\n4\n5\n6\n7\n8");
}

#[tokio::test]
async fn a_newer_schema_is_refused_unless_it_says_that_this_version_can_use_it() {
    let place = OnPostgres::new();
    place.open().await;
    let refused = async || match store::open(&place.url()).await {
        Err(StoreError::Broken(message)) => {
            assert_eq!(message, "it has schema version 99, made by a newer Signalbox; this one knows 8");
        }
        other => panic!("{:?}", other.err()),
    };
    place.sql("INSERT INTO signalbox_schema VALUES (99, now()); UPDATE schema_compatibility SET oldest = 99");
    refused().await;
    // One that only added to the tables says so.
    place.sql("UPDATE schema_compatibility SET oldest = 3");
    assert_eq!(place.open().await.head().await.unwrap().number, 0);
    // A version that says nothing is not to be trusted.
    place.sql("DROP TABLE schema_compatibility");
    refused().await;
}

#[tokio::test]
async fn a_commit_wakes_who_waits_in_another_process() {
    let place = OnPostgres::new();
    let (one, other) = (place.open().await, place.open().await);
    let hint = other.hint();
    // The first tells that it listens now, so what was before is to be read.
    woken(&hint).await;
    for base in 0..3 {
        put(&*one, base, &[("route/a", &format!("{base}"))]).await;
        woken(&hint).await;
        assert_eq!(other.head().await.unwrap().number, base + 1);
    }
    one.new_epoch().await.unwrap();
    woken(&hint).await;
    one.commit(0, revision(&[("route/a", Some("x"))])).await.unwrap_err();
    one.append_audit("ann", "x", "").await.unwrap();
    assert!(timeout(Duration::from_millis(300), hint.notified()).await.is_err(), "no revision, no hint");
}

#[tokio::test]
async fn the_epoch_changes_with_a_promotion() {
    let mut server = Postgres::new().unwrap();
    let store = store::open(&server.url()).await.unwrap();
    put(&*store, 0, &[("route/a", "1")]).await;
    let before = store.head().await.unwrap();
    assert_eq!(store.load().await.unwrap().head, before);
    server.stop().unwrap();
    server.start().unwrap();
    assert_eq!(available(&*store).await, before, "a restart is no promotion");

    // A recovery that was asked for ends with a promotion. The server's working directory is that of its data.
    server.sql("ALTER SYSTEM SET restore_command = 'false'").unwrap();
    server.sql("COPY (SELECT '') TO PROGRAM 'touch recovery.signal'").unwrap();
    server.stop().unwrap();
    server.start().unwrap();
    let after = available(&*store).await;
    assert_eq!(after.number, before.number);
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(store.load().await.unwrap().head, after);
    assert_eq!(store::open(&server.url()).await.unwrap().head().await.unwrap(), after);
}

#[tokio::test]
async fn a_role_that_may_not_see_the_cluster_has_the_stored_epoch() {
    let place = OnPostgres::new();
    place.open().await;
    let stored = place.sql("SELECT epoch FROM head");
    // Functions are of a database, so this concerns none of the other tests.
    place.sql("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC");
    place.sql("CREATE ROLE modest LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO modest");
    let store = store::open(&place.url().replace("postgres@", "modest@")).await.unwrap();
    assert_eq!(*store.head().await.unwrap().epoch, *stored);
    assert_eq!(put(&*store, 0, &[("route/a", "1")]).await, 1);
}

#[tokio::test]
async fn a_killed_server_is_unavailable_soon_and_comes_back_by_itself() {
    let mut server = Postgres::new().unwrap();
    let url = server.url();
    let (one, other) = (store::open(&url).await.unwrap(), store::open(&url).await.unwrap());
    put(&*one, 0, &[("route/a", "1")]).await;
    let hint = other.hint();
    woken(&hint).await;

    for round in 1..3 {
        server.kill9();
        // Its children may answer what has already come.
        eventually(async || one.head().await.is_err() && other.head().await.is_err()).await;
        let start = Instant::now();
        for store in [&one, &other] {
            let change = revision(&[("route/a", Some("x"))]);
            let (head, load, commit, save) = tokio::join!(
                store.head(),
                store.load(),
                store.commit(round, change),
                store.save_replica("1", "cp")
            );
            assert_unavailable(head);
            assert_unavailable(load);
            assert_unavailable(commit);
            assert_unavailable(save);
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
        assert_unavailable(store::open(&url).await.map(drop));

        server.start().unwrap();
        assert_eq!(available(&*one).await.number, round, "what was committed is there");
        available(&*other).await;
        // It listens again, and says that something may have been missed; then that something came.
        woken(&hint).await;
        put(&*one, round, &[("route/a", &format!("{round}"))]).await;
        woken(&hint).await;
    }
}

#[tokio::test]
async fn a_lock_that_another_keeps_is_unavailable() {
    let place = Arc::new(OnPostgres::new());
    let store = place.open().await;
    let keeper = place.clone();
    let keeps = tokio::task::spawn_blocking(move || {
        keeper.sql("BEGIN; UPDATE head SET revision = revision; SELECT pg_sleep(60)");
    });
    eventually(async || {
        place.sql(
            "SELECT count(*) FROM pg_locks WHERE relation = 'head'::regclass AND mode = 'RowExclusiveLock'",
        ) == "1"
    })
    .await;
    let start = Instant::now();
    assert_unavailable(store.commit(0, revision(&[("route/a", Some("1"))])).await);
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_eq!(store.head().await.unwrap().number, 0, "reading goes on");
    place.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()",
    );
    keeps.await.unwrap_err();
    assert_eq!(put(&*store, 0, &[("route/a", "1")]).await, 1);
}

#[tokio::test]
async fn a_balancer_without_a_server_behind_it_is_unavailable() {
    let balancer = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://postgres@{}/postgres", balancer.local_addr().unwrap());
    // It takes who connects, and finds nobody to pass them on to.
    tokio::spawn(async move {
        while let Ok((mut client, _)) = balancer.accept().await {
            let _ = tokio::io::AsyncReadExt::read(&mut client, &mut [0; 64]).await;
        }
    });
    assert_unavailable(store::open(&url).await.map(drop));
}

#[tokio::test]
async fn a_server_that_hangs_is_unavailable_in_time_and_costs_no_connections() {
    let server = Postgres::new().unwrap();
    let store = store::open(&server.url()).await.unwrap();
    put(&*store, 0, &[("route/a", "1")]).await;
    // Twice as many calls as there are connections, so that all of them are open.
    let many = || join_all((0..16).map(|_| store.head()));
    assert!(many().await.iter().all(Result::is_ok));

    // All but workers of autovacuum, which may be gone when they are to be stopped.
    let of_server = "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity
        WHERE pid <> pg_backend_pid() AND backend_type <> 'autovacuum worker'";
    let processes = server.sql(of_server).unwrap();
    let signal = |name: &str| {
        let mut kill = std::process::Command::new("kill");
        kill.arg(format!("-{name}")).arg(server.pid().unwrap().to_string()).args(processes.split(' '));
        assert!(kill.status().unwrap().success());
    };
    signal("STOP");
    let start = Instant::now();
    for result in many().await {
        assert_unavailable(result);
    }
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_unavailable(store.commit(1, revision(&[("route/a", Some("2"))])).await);
    signal("CONT");
    // All connections can be had again.
    eventually(async || many().await.iter().all(Result::is_ok)).await;
}

/// Waits for a hint.
async fn woken(hint: &tokio::sync::Notify) {
    timeout(Duration::from_secs(60), hint.notified()).await.expect("no hint came");
}

/// Waits until the head can be read.
async fn available(store: &dyn Store) -> signalbox_config::RevisionId {
    let mut head = None;
    eventually(async || {
        head = store.head().await.ok();
        head.is_some()
    })
    .await;
    head.unwrap()
}

async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < end, "it did not come to pass");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn assert_unavailable<T>(result: Result<T, StoreError>) {
    match result {
        Err(StoreError::Unavailable(_)) => {}
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it answered"),
    }
}
