//! A wait says that every proxy serves a revision only when that is so: over restarts, lost control planes, restored
//! backups, and wherever it is asked.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use signalbox_tests::{Api, ApiAnswer, ControlPlane, Postgres, Proxy, eventually, get};

use crate::fixture::respond;

/// The answer to a wait of this length.
async fn wait(api: &Api, revision: u64, timeout: &str) -> ApiAnswer {
    api.call(Method::GET, &format!("/revisions/{revision}/wait?timeout={timeout}"), None).await.unwrap()
}

/// A wait is answered 504, and names the proxy and its state.
async fn assert_waits_for(api: &Api, revision: u64, id: &str, state: &str) {
    let answer = wait(api, revision, "700ms").await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT, "{answer}");
    let waiting = &answer.body["waiting"][0];
    assert_eq!((&waiting["id"], &waiting["state"]), (&json!(id), &json!(state)), "{answer}");
    let detail = answer.body["detail"].as_str().unwrap_or_default();
    assert!(detail.contains(&format!("{id} ({state}")), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_wait_at_another_replica_is_answered_as_soon_as_at_its_own() {
    let postgres = Postgres::new().unwrap();
    let one = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    let two = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    let proxy = Proxy::of(&two, "p").await.unwrap();
    one.api().wait_in_sync(1).await.unwrap();
    let mut took = Vec::new();
    for number in 0..50 {
        let body = number.to_string();
        let revision = one.api().put("routes", "r", &respond("/", &body)).await.unwrap();
        let written = Instant::now();
        one.api().wait_default(revision).await.unwrap();
        took.push(written.elapsed());
        assert_eq!(get(proxy.http(), "a", "/").await.unwrap().text(), body, "the answer was right");
    }
    took.sort();
    println!("a wait took {:?} (median), {:?} (99 of 100)", took[25], took[49]);
    // Without being told by the other replica it takes half a second, however fast the machine.
    assert!(took[25] < Duration::from_millis(100), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_proxies_of_a_killed_replica_are_unknown_within_seconds_and_waited_for() {
    let postgres = Postgres::new().unwrap();
    let one = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    let mut two = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    let proxy = Proxy::of(&two, "p").await.unwrap();
    let api = one.api();
    api.wait_in_sync(1).await.unwrap();
    two.kill9();
    let killed = Instant::now();
    let shown = api.wait_proxy("p", "unknown", |shown| shown["state"] == "unknown").await.unwrap();
    // Five seconds, and what a busy machine may add to them.
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    assert_eq!(shown["connected"], false);
    let fleets = api.get("/fleet-statuses").await.unwrap();
    assert_eq!((&fleets["items"][0]["unknown"], &fleets["items"][0]["connected"]), (&json!(1), &json!(0)));

    let revision = api.put("routes", "r", &respond("/", "after the loss")).await.unwrap();
    assert_waits_for(api, revision, "p", "unknown").await;
    // It still serves what it had, and is what it is when its control plane is back.
    assert_eq!(get(proxy.http(), "a", "/").await.unwrap().status, StatusCode::NOT_FOUND);
    two.start().await.unwrap();
    api.wait_default(revision).await.unwrap();
    assert_eq!(get(proxy.http(), "a", "/").await.unwrap().text(), "after the loss");
    api.wait_in_sync(1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn after_a_restart_a_wait_waits_for_the_proxies_that_were_connected() {
    let mut control_plane = ControlPlane::sqlite().await.unwrap();
    let mut proxy = Proxy::of(&control_plane, "p").await.unwrap();
    control_plane.api().wait_in_sync(1).await.unwrap();
    for (round, kill) in [("ended", false), ("killed", true)] {
        // It serves, but is slow to come back.
        proxy.pause();
        if kill {
            control_plane.kill9();
        } else {
            control_plane.stop().unwrap();
        }
        control_plane.start().await.unwrap();
        let api = control_plane.api();
        assert_eq!(api.proxy("p").await.unwrap()["state"], "unknown", "{round}");
        let revision = api.put("routes", "r", &respond("/", round)).await.unwrap();
        assert_waits_for(api, revision, "p", "unknown").await;
        proxy.resume();
        api.wait_default(revision).await.unwrap();
        assert_eq!(get(proxy.http(), "a", "/").await.unwrap().text(), round);
    }
    // One that is gone for good can be forgotten.
    proxy.kill9();
    control_plane
        .api()
        .wait_proxy("p", "disconnected", |shown| shown["state"] == "disconnected")
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_control_plane_that_ends_lets_its_proxies_go_at_once() {
    let mut control_plane = ControlPlane::sqlite().await.unwrap();
    let _proxy = Proxy::of(&control_plane, "p").await.unwrap();
    // Parts end in any order.
    for round in 0..12 {
        control_plane.api().wait_in_sync(1).await.unwrap();
        let begun = Instant::now();
        control_plane.stop().unwrap();
        // Parts that do not end are cut off after 10 s.
        assert!(begun.elapsed() < Duration::from_secs(8), "round {round}");
        control_plane.start().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn of_a_backup_that_is_restored_without_a_new_epoch_nothing_counts_as_served() {
    let mut control_plane = ControlPlane::sqlite().await.unwrap();
    let proxy = Proxy::of(&control_plane, "p").await.unwrap();
    let api = control_plane.api().clone();
    let put = async |body: &str| api.put("routes", "r", &respond("/", body)).await.unwrap();
    let served = async || get(proxy.http(), "a", "/").await.unwrap().text();
    let kept = put("kept").await;
    api.wait_default(kept).await.unwrap();

    // A dump, three writes, and the dump restored.
    control_plane.stop().unwrap();
    let database = control_plane.dir().join("signalbox.db");
    let dump = control_plane.dir().join("dump");
    std::fs::copy(&database, &dump).unwrap();
    control_plane.start().await.unwrap();
    let mut ahead = kept;
    for body in ["lost 1", "lost 2", "lost 3"] {
        ahead = put(body).await;
    }
    api.wait_default(ahead).await.unwrap();
    control_plane.stop().unwrap();
    std::fs::copy(&dump, &database).unwrap();
    control_plane.start().await.unwrap();

    let shown = api.wait_proxy("p", "drifted", |shown| shown["state"] == "drifted").await.unwrap();
    assert_eq!(
        (&shown["connected"], &shown["revision"]["applied"]),
        (&json!(true), &json!(ahead)),
        "{shown}"
    );
    let text = shown["error"]["resources"][0]["message"].as_str().unwrap_or_default().to_owned();
    assert!(text.contains("restored without a new epoch"), "{shown}");
    assert!(control_plane.log().contains("a proxy is ahead"), "{}", control_plane.log());

    // Until what the proxy has is passed, it keeps that, and no wait says yes.
    for body in ["new 1", "new 2"] {
        let revision = put(body).await;
        assert!(revision < ahead);
        assert_waits_for(&api, revision, "p", "drifted").await;
        assert_waits_for(&api, kept, "p", "drifted").await;
        assert_eq!(served().await, "lost 3");
    }
    // The number that the proxy has comes again, and means something else.
    let revision = put("new 3").await;
    assert_eq!(revision, ahead);
    api.wait_default(revision).await.unwrap();
    assert_eq!(served().await, "new 3");
    api.wait_in_sync(1).await.unwrap();
    assert_eq!(api.proxy("p").await.unwrap()["error"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_rows_of_a_restored_backup_say_nothing_of_who_is_connected() {
    let mut control_plane = ControlPlane::sqlite().await.unwrap();
    let api = control_plane.api().clone();
    let mut proxy = Proxy::of(&control_plane, "p").await.unwrap();
    let revision = api.put("routes", "r", &respond("/", "x")).await.unwrap();
    api.wait_default(revision).await.unwrap();
    // A copy of a database in use: its rows say that the proxy is connected and in sync. What happened in the last
    // moment before is not in the file, so it is given time by a restart.
    control_plane.stop().unwrap();
    control_plane.start().await.unwrap();
    api.wait_in_sync(1).await.unwrap();
    control_plane.kill9();
    proxy.kill9();
    control_plane.start().await.unwrap();
    assert_eq!(api.proxy("p").await.unwrap()["state"], "unknown");
    // And the other way round: rows of a time when it was not connected.
    control_plane.stop().unwrap();
    let database = control_plane.dir().join("signalbox.db");
    let dump = control_plane.dir().join("dump");
    std::fs::copy(&database, &dump).unwrap();
    control_plane.start().await.unwrap();
    proxy.start().await.unwrap();
    api.wait_in_sync(1).await.unwrap();
    control_plane.stop().unwrap();
    std::fs::copy(&dump, &database).unwrap();
    control_plane.start().await.unwrap();
    let shown = api.wait_proxy("p", "in sync", |shown| shown["state"] == "in_sync").await.unwrap();
    assert_eq!(shown["connected"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_rejected_revision_is_shown_so_for_good_and_names_what_is_at_fault() {
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let api = control_plane.api();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let own = ([127, 0, 0, 1], signalbox_tests::free_port()).into();
    let builder = Proxy::builder().control_plane(&control_plane).node_id("good").listener("second", own);
    let _good = builder.start().await.unwrap();
    let _bad = Proxy::of(&control_plane, "bad").await.unwrap();
    api.wait_in_sync(2).await.unwrap();
    let before = api.head().await.unwrap();

    let listener = json!({"address": taken.local_addr().unwrap().to_string()});
    let fault = api.put("listeners", "second", &listener).await.unwrap();
    let answer = wait(api, fault, "20s").await;
    assert_eq!(answer.status, StatusCode::CONFLICT, "{answer}");
    // A change that nobody minds carries the fault along.
    let harmless = api.put("routes", "r", &respond("/", "x")).await.unwrap();
    let answer = wait(api, harmless, "20s").await;
    assert_eq!(answer.status, StatusCode::CONFLICT, "{answer}");
    assert!(
        answer.body["detail"].as_str().is_some_and(|detail| detail.contains("listener/second")),
        "{answer}"
    );
    for revision in [fault, harmless] {
        let rollout = api.get(&format!("/rollouts/{revision}-default")).await.unwrap();
        let found = &rollout["fault"];
        assert_eq!(found["revision"], fault, "{rollout:#}");
        assert_eq!(
            (&found["proxy"], &found["kind"], &found["name"]),
            (&json!("bad"), &json!("listener"), &json!("second"))
        );
    }

    let back = api.call(Method::POST, &format!("/revisions/{before}/rollback"), None).await.unwrap();
    let back = back.success().unwrap().revision().unwrap();
    api.wait_default(back).await.unwrap();
    let later = api.put("routes", "later", &respond("/later", "x")).await.unwrap();
    api.wait_default(later).await.unwrap();
    for (revision, state, applied, rejected) in [(fault, "failed", 1, 1), (later, "succeeded", 2, 0)] {
        let rollout = api.get(&format!("/rollouts/{revision}-default")).await.unwrap();
        let counts = &rollout["counts"];
        assert_eq!(
            (&rollout["state"], &counts["applied"], &counts["rejected"]),
            (&json!(state), &json!(applied), &json!(rejected)),
            "{rollout:#}"
        );
        assert_eq!(rollout["fault"].is_null(), rejected == 0, "{rollout:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_proxies_with_one_node_id_are_warned_about() {
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let api = control_plane.api();
    let _one = Proxy::of(&control_plane, "twin").await.unwrap();
    let _other = Proxy::of(&control_plane, "twin").await.unwrap();
    let warned = |shown: &Value| {
        shown["warnings"][0].as_str().is_some_and(|text| text.matches("127.0.0.1:").count() == 2)
    };
    api.wait_proxy("twin", "warned about", warned).await.unwrap();
    let logged = eventually(Duration::from_secs(10), async || {
        control_plane.log().contains("two proxies use this node id")
    });
    assert!(logged.await, "{}", control_plane.log());
}
