//! A PostgreSQL pair: the server that takes writes is found at the start, and again after a failover.

use std::time::Duration;

use http::{Method, StatusCode};
use signalbox_tests::{ControlPlane, Load, Postgres, Proxy, eventually, get};

use crate::fixture::respond;

/// A URL of both servers.
fn url_of(one: &Postgres, other: &Postgres) -> String {
    format!(
        "postgres://postgres@{},{}/postgres?target_session_attrs=read-write",
        one.address(),
        other.address()
    )
}

/// Writes until one write is taken; its revision.
async fn put_eventually(control_plane: &ControlPlane, body: &str) -> u64 {
    let mut written = None;
    let mut last = String::new();
    let done = eventually(Duration::from_secs(60), async || {
        match control_plane.api().put("routes", "r", &respond("/", body)).await {
            Ok(revision) => written = Some(revision),
            Err(error) => last = error.to_string(),
        }
        written.is_some()
    })
    .await;
    assert!(done, "{last}\n{}", control_plane.log());
    written.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn after_a_failover_the_new_primary_is_found_without_a_restart() {
    let mut primary = Postgres::new().unwrap();
    let standby = primary.standby().unwrap();
    // Each begins with another server.
    let one = ControlPlane::builder().database(url_of(&primary, &standby)).start().await.unwrap();
    let two = ControlPlane::builder().database(url_of(&standby, &primary)).start().await.unwrap();
    let at_one = Proxy::of(&one, "at-one").await.unwrap();
    let at_two = Proxy::of(&two, "at-two").await.unwrap();
    let revision = put_eventually(&two, "before").await;
    one.api().wait_default(revision).await.unwrap();
    let caught_up = eventually(Duration::from_secs(30), async || {
        standby.sql("SELECT revision FROM head").is_ok_and(|head| head == revision.to_string())
    });
    assert!(caught_up.await);
    let load = Load::on([at_one.http(), at_two.http()]).start().await.unwrap();

    primary.kill9();
    standby.promote().unwrap();
    let revision = put_eventually(&one, "after").await;
    for control_plane in [&one, &two] {
        let served = eventually(Duration::from_secs(60), async || {
            control_plane.api().wait_default(revision).await.is_ok()
        });
        assert!(served.await, "{}", control_plane.log());
    }
    for proxy in [&at_one, &at_two] {
        assert_eq!(get(proxy.http(), "a", "/").await.unwrap().text(), "after");
    }
    // Each hears of the other's writes at once, by the new server.
    let mut quick = 0;
    for number in 0..20 {
        let revision = put_eventually(&two, &number.to_string()).await;
        let started = std::time::Instant::now();
        one.api().wait_default(revision).await.unwrap();
        quick += u32::from(started.elapsed() < Duration::from_millis(300));
    }
    assert!(quick >= 10, "only {quick} of 20 were told at once");
    assert!(one.log().contains("the database is at another server now"), "{}", one.log());
    load.finish().assert_flawless(100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_standby_alone_is_read_only_and_waited_for() {
    let primary = Postgres::new().unwrap();
    // It has the tables, and a token.
    let mut first = ControlPlane::builder().database(primary.url()).start().await.unwrap();
    first.api().put("routes", "r", &respond("/", "x")).await.unwrap();
    first.stop().unwrap();
    let standby = primary.standby().unwrap();

    let mut control_plane = ControlPlane::builder().database(standby.url()).prepare().unwrap();
    control_plane.start_unready().unwrap();
    let ready = format!("{}/readyz", control_plane.admin_url());
    let says = eventually(Duration::from_secs(30), async || match reqwest::get(&ready).await {
        Ok(answer) => {
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
            answer.text().await.is_ok_and(|text| text.contains("the database is read-only"))
        }
        Err(_) => false,
    });
    assert!(says.await, "{}", control_plane.log());
    assert!(control_plane.is_running());
    assert!(control_plane.log().contains("the database is read-only"), "{}", control_plane.log());
    standby.promote().unwrap();
    control_plane.wait_ready().await.unwrap();
    assert_eq!(control_plane.api().get("/routes/r").await.unwrap()["respond"]["body"], "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_database_that_becomes_read_only_is_shown_so_while_reads_go_on() {
    let postgres = Postgres::new().unwrap();
    let control_plane = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    let proxy = Proxy::of(&control_plane, "p").await.unwrap();
    let revision = put_eventually(&control_plane, "before").await;
    control_plane.api().wait_default(revision).await.unwrap();
    let database = async || {
        let answer = reqwest::get(format!("{}/readyz", control_plane.admin_url())).await.unwrap();
        answer.json::<serde_json::Value>().await.unwrap()["database"].clone()
    };
    let set = |value: &str| {
        postgres.sql(&format!("ALTER SYSTEM SET default_transaction_read_only = {value}")).unwrap();
        postgres.sql("SELECT pg_reload_conf()").unwrap();
    };

    set("on");
    let shown = eventually(Duration::from_secs(30), async || database().await == "read-only").await;
    assert!(shown, "{}", control_plane.log());
    let answer =
        control_plane.api().call(Method::PUT, "/routes/r", Some(&respond("/", "refused"))).await.unwrap();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
    assert!(answer.body["detail"].as_str().is_some_and(|text| text.contains("read-only")), "{answer}");
    assert_eq!(control_plane.api().get("/routes/r").await.unwrap()["respond"]["body"], "before");
    let newcomer = Proxy::of(&control_plane, "newcomer").await.unwrap();
    for proxy in [&proxy, &newcomer] {
        assert_eq!(get(proxy.http(), "a", "/").await.unwrap().text(), "before");
    }
    // Nothing can be written, so nobody else could know of the newcomer.
    let waited = control_plane.api().get(&format!("/revisions/{revision}/wait?timeout=500ms")).await;
    assert!(waited.is_err(), "{waited:?}");

    set("off");
    let revision = put_eventually(&control_plane, "after").await;
    control_plane.api().wait_default(revision).await.unwrap();
    assert_eq!(database().await, "in sync");
}
