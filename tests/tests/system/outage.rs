//! Outages: the control plane, the database or a proxy is away.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use signalbox_tests::{Api, ControlPlane, Load, Postgres, Proxy, eventually, get};

use crate::fixture::{Gateway, forward, respond};

/// How long the control plane is away under traffic. 15 s, or what SIGNALBOX_TEST_OUTAGE_SECONDS says.
fn outage() -> Duration {
    let seconds = std::env::var("SIGNALBOX_TEST_OUTAGE_SECONDS").ok();
    Duration::from_secs(seconds.map_or(15, |text| text.parse().expect("a number of seconds")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn proxies_serve_and_restart_while_the_control_plane_is_away_and_catch_up_after() {
    let mut gateway = Gateway::start(3).await;
    gateway.put("routes", "echo", &forward("/")).await;
    gateway.put("routes", "text", &respond("/text", "before")).await;
    let load = Load::on(gateway.proxies[..2].iter().map(Proxy::http)).start().await.unwrap();

    gateway.control_plane.kill9();
    let end = Instant::now() + outage();
    let restarted = &mut gateway.proxies[2];
    restarted.wait_kept("before").await.unwrap();
    restarted.kill9();
    restarted.start().await.unwrap();
    while Instant::now() < end {
        assert_eq!(get(restarted.http(), "a", "/text").await.unwrap().text(), "before");
        assert_eq!(get(restarted.http(), "a", "/x").await.unwrap().status, StatusCode::OK);
        load.wait_for(100).await.unwrap();
    }

    gateway.control_plane.start().await.unwrap();
    gateway.put("routes", "text", &respond("/text", "after")).await;
    gateway.control_plane.api().wait_in_sync(3).await.unwrap();
    for proxy in &gateway.proxies {
        assert_eq!(get(proxy.http(), "a", "/text").await.unwrap().text(), "after", "{}", proxy.id());
    }
    load.finish().assert_flawless(1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn while_the_database_is_away_reads_and_streams_go_on_and_writes_are_refused() {
    let mut postgres = Postgres::new().unwrap();
    let control_plane = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    let gateway = Gateway::on(control_plane, 1).await;
    gateway.put("routes", "echo", &forward("/")).await;
    let api = gateway.control_plane.api();
    let load = Load::on([gateway.proxies[0].http()]).start().await.unwrap();
    let export = api.get("/export?format=json").await.unwrap();

    postgres.kill9();
    for _ in 0..3 {
        let answer = api.call(Method::PUT, "/routes/new", Some(&respond("/new", "new"))).await.unwrap();
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer}");
        let retry_after = answer.header("retry-after").expect("when to try again");
        assert!(retry_after.parse::<u32>().is_ok_and(|seconds| (1..=60).contains(&seconds)), "{retry_after}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
    assert_eq!(api.get("/export?format=json").await.unwrap(), export);
    assert_eq!(api.get("/routes/echo").await.unwrap()["forward"], forward("/")["forward"]);
    let shown = api.proxy("proxy-0").await.unwrap();
    assert_eq!(shown["connected"], true, "{shown:#}");
    // A proxy that comes now is served from memory.
    let newcomer = Proxy::of(&gateway.control_plane, "newcomer").await.unwrap();
    assert_eq!(get(newcomer.http(), "a", "/x").await.unwrap().status, StatusCode::OK);

    postgres.start().unwrap();
    let mut written = None;
    let recovered = eventually(Duration::from_secs(30), async || {
        written = api.put("routes", "new", &respond("/new", "new")).await.ok();
        written.is_some()
    })
    .await;
    assert!(recovered, "writes do not work again: {}", gateway.control_plane.log());
    api.wait_default(written.unwrap()).await.unwrap();
    for proxy in [&gateway.proxies[0], &newcomer] {
        assert_eq!(get(proxy.http(), "a", "/new").await.unwrap().text(), "new");
    }
    load.finish().assert_flawless(100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_write_is_there_wholly_or_not_at_all_when_the_control_plane_is_killed_on_sqlite() {
    let mut control_plane = ControlPlane::sqlite().await.unwrap();
    kill_in_writes(&mut control_plane, 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_write_is_there_wholly_or_not_at_all_when_the_control_plane_is_killed_on_postgres() {
    let postgres = Postgres::new().unwrap();
    let mut control_plane = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    kill_in_writes(&mut control_plane, 6).await;
}

/// How many resources every write of [`kill_in_writes`] changes.
const WIDTH: usize = 40;

fn generation(writer: usize, number: u64) -> Value {
    let routes = (0..WIDTH).map(|index| {
        json!({
            "name": format!("w{writer}-r{index}"),
            "match": {"paths": [{"exact": format!("/{writer}/{index}")}]},
            "respond": {"body": number.to_string()},
        })
    });
    json!({"routes": routes.collect::<Vec<_>>()})
}

/// Two clients write; the process is killed somewhere in that, `rounds` times.
async fn kill_in_writes(control_plane: &mut ControlPlane, rounds: u64) {
    let mut next = 1;
    let mut checked = control_plane.api().head().await.unwrap();
    for round in 0..rounds {
        let written = Arc::new(AtomicU64::new(0));
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..2 {
            let api = control_plane.api().clone();
            writers.spawn(write_until_refused(api, writer, next, Arc::clone(&written)));
        }
        let wrote = eventually(Duration::from_secs(30), async || written.load(Ordering::Relaxed) > 0).await;
        assert!(wrote, "round {round} wrote nothing");
        // The moment differs from round to round, over more than the time that one write takes.
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..150))).await;
        control_plane.kill9();
        let answered = writers.join_all().await;
        control_plane.start().await.unwrap();

        let api = control_plane.api();
        let head = api.head().await.unwrap();
        for (writer, (acknowledged, last)) in answered.iter().enumerate() {
            for number in acknowledged {
                assert!(*number <= head, "revision {number} of writer {writer} was acknowledged and is gone");
            }
            next = next.max(last + 1);
        }
        check_log(api, checked + 1, head).await;
        check_set(api).await;
        checked = head;
    }
}

/// Applies one generation after the other until the control plane is gone, and counts in `written` those that were
/// acknowledged. Their revisions, and the last generation that was tried.
async fn write_until_refused(
    api: Api,
    writer: usize,
    first: u64,
    written: Arc<AtomicU64>,
) -> (Vec<u64>, u64) {
    let mut acknowledged = Vec::new();
    let mut number = first;
    loop {
        match api.apply(&generation(writer, number)).await {
            Ok(revision) => acknowledged.push(revision),
            Err(_) => return (acknowledged, number),
        }
        written.fetch_add(1, Ordering::Relaxed);
        number += 1;
    }
}

/// Every number is there, and every revision has all its changes, of one generation.
async fn check_log(api: &Api, from: u64, to: u64) {
    for number in from..=to {
        let revision = api.get(&format!("/revisions/{number}")).await;
        let revision = revision.unwrap_or_else(|error| panic!("the log has a gap at {number}: {error}"));
        assert_eq!(revision["number"], number);
        let changes = revision["changes"].as_array().expect("its changes");
        assert_eq!(changes.len(), WIDTH, "revision {number} is not whole");
        let generations: BTreeSet<&str> =
            changes.iter().filter_map(|change| change["after"]["respond"]["body"].as_str()).collect();
        assert_eq!(generations.len(), 1, "revision {number} is of several generations: {generations:?}");
    }
    // A commit that was under way may end at the database after the control plane has started again, which then follows it;
    // the next round checks it.
    if api.get(&format!("/revisions/{}", to + 1)).await.is_ok() {
        let follows = async || api.head().await.is_ok_and(|head| head > to);
        assert!(eventually(Duration::from_secs(30), follows).await, "there is a revision after the head");
    }
}

/// The current set is that of whole generations.
async fn check_set(api: &Api) {
    let export = api.get("/export?format=json").await.unwrap();
    for writer in 0..2 {
        let prefix = format!("w{writer}-");
        let routes = export["routes"].as_array().into_iter().flatten();
        let own: Vec<&str> = routes
            .filter(|route| route["name"].as_str().is_some_and(|name| name.starts_with(&prefix)))
            .filter_map(|route| route["respond"]["body"].as_str())
            .collect();
        assert!(own.is_empty() || own.len() == WIDTH, "{} routes of writer {writer}", own.len());
        assert!(own.iter().all(|body| *body == own[0]), "a mix of generations of writer {writer}: {own:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_proxy_that_is_killed_and_started_again_is_one_proxy() {
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let api = control_plane.api();
    // Without a node id: it makes one, and keeps it.
    let mut proxy = Proxy::builder().control_plane(&control_plane).start().await.unwrap();
    api.wait_in_sync(1).await.unwrap();
    let id = api.proxies().await.unwrap()[0]["id"].as_str().unwrap().to_owned();
    for _ in 0..2 {
        proxy.kill9();
        api.wait_proxy(&id, "disconnected", |shown| shown["state"] == "disconnected").await.unwrap();
        let revision = api.put("routes", "r", &respond("/", "x")).await.unwrap();
        proxy.start().await.unwrap();
        api.wait_proxy(&id, "back", |shown| {
            shown["revision"]["applied"] == revision && shown["state"] == "in_sync"
        })
        .await
        .unwrap();
        let all = api.proxies().await.unwrap();
        assert_eq!(all.len(), 1, "{all:#?}");
    }
    // A lost one can be forgotten.
    proxy.kill9();
    api.wait_proxy(&id, "disconnected", |shown| shown["state"] == "disconnected").await.unwrap();
    api.call(Method::DELETE, &format!("/proxies/{id}"), None).await.unwrap().success().unwrap();
    assert_eq!(api.proxies().await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_deletion_reaches_a_proxy_that_was_away() {
    let mut gateway = Gateway::start(1).await;
    gateway.put("routes", "kept", &respond("/kept", "kept")).await;
    gateway.put("routes", "gone", &respond("/gone", "gone")).await;
    gateway.proxies[0].kill9();
    let revision = gateway.control_plane.api().delete("routes", "gone").await.unwrap();
    gateway.proxies[0].start().await.unwrap();
    gateway.control_plane.api().wait_in_sync(1).await.unwrap();
    gateway.control_plane.api().wait_default(revision).await.unwrap();
    let proxy = &gateway.proxies[0];
    assert_eq!(get(proxy.http(), "a", "/kept").await.unwrap().text(), "kept");
    assert_eq!(get(proxy.http(), "a", "/gone").await.unwrap().status, StatusCode::NOT_FOUND);
}
