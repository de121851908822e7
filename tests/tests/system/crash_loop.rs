//! Proxies that crash with a revision: they start from the proven one, say so, and refuse exactly that revision.
//!
//! The tests kill the proxy with SIGKILL as soon as it serves the revision. To the next start this looks like any other
//! crash.

use std::path::PathBuf;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::Value;
use signalbox_tests::{ControlPlane, Proxy, eventually, get};

use crate::fixture::respond;

const DEADLINE: Duration = Duration::from_secs(60);

/// The revision that a part of `/revision` is about.
async fn shown(proxy: &Proxy, part: &str) -> Option<u64> {
    proxy.revision().await.unwrap()[part]["revision"].as_u64()
}

async fn wait_shown(proxy: &Proxy, part: &str, revision: Option<u64>) {
    let found = eventually(DEADLINE, async || shown(proxy, part).await == revision).await;
    assert!(found, "{part} is not {revision:?}: {:#}\n{}", proxy.revision().await.unwrap(), proxy.log());
}

async fn body(proxy: &Proxy) -> String {
    get(proxy.http(), "a", "/r").await.unwrap().text()
}

fn marker(proxy: &Proxy) -> PathBuf {
    proxy.dir().join("data/starts")
}

async fn wait_completed(proxy: &Proxy) {
    let completed = || std::fs::read_to_string(marker(proxy)).is_ok_and(|text| text.contains("\nyoung 0\n"));
    assert!(eventually(DEADLINE, async || completed()).await, "{:?}", std::fs::read_to_string(marker(proxy)));
}

/// Starts the proxy, and kills it as soon as it serves `revision`.
async fn crash(proxy: &mut Proxy, revision: u64) {
    proxy.start().await.unwrap();
    wait_shown(proxy, "serving", Some(revision)).await;
    proxy.kill9();
}

async fn retry(proxy: &Proxy) -> reqwest::RequestBuilder {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client.post(format!("http://{}/revision/retry", proxy.admin()))
}

/// A control plane, and a stopped proxy `p` with a proven revision, which answers `good`.
async fn proven() -> (ControlPlane, Proxy, u64) {
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let good = control_plane.api().put("routes", "r", &respond("/r", "good")).await.unwrap();
    let builder = Proxy::builder().control_plane(&control_plane).node_id("p");
    let mut proxy = builder.arg("--crash-window=50ms").arg("--proven-after=50ms").prepare().unwrap();
    proxy.start().await.unwrap();
    wait_shown(&proxy, "proven", Some(good)).await;
    proxy.terminate();
    proxy.wait_exit(DEADLINE).unwrap();
    // No test takes so long that a run is not young.
    proxy.set_arg("--crash-window=1000s");
    (control_plane, proxy, good)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn after_three_crashes_a_proxy_serves_the_proven_revision_and_refuses_the_other_until_the_next() {
    let (mut control_plane, mut proxy, good) = proven().await;
    let bad = control_plane.api().put("routes", "r", &respond("/r", "bad")).await.unwrap();
    // The first crash is with the revision from the control plane, the others are with that from disk.
    proxy.start().await.unwrap();
    wait_shown(&proxy, "serving", Some(bad)).await;
    proxy.wait_kept("bad").await.unwrap();
    proxy.kill9();
    control_plane.kill9();
    crash(&mut proxy, bad).await;
    crash(&mut proxy, bad).await;

    proxy.start().await.unwrap();
    assert_eq!(body(&proxy).await, "good");
    let revision = proxy.revision().await.unwrap();
    let crashed = &revision["crashed"];
    assert_eq!(
        (crashed["revision"].as_u64(), crashed["crashes"].as_u64()),
        (Some(bad), Some(3)),
        "{revision}"
    );
    assert_eq!(
        (&revision["serving"]["revision"], &revision["proven"]["revision"]),
        (&good.into(), &good.into())
    );
    let metrics = proxy.metrics().await.unwrap();
    assert_eq!(metrics.sum("signalbox_revision_crashed", &[]), bad as f64);
    assert_eq!(metrics.sum("signalbox_revision_proven", &[]), good as f64);
    let ready: Value =
        reqwest::get(format!("http://{}/readyz", proxy.admin())).await.unwrap().json().await.unwrap();
    let reason = "the proxy crashed 3 times within 1000 s of starting with it";
    assert!(ready["warnings"][0].as_str().unwrap().contains(reason), "{ready}");
    assert!(proxy.log().contains("because the last applied one crashed the proxy"), "{}", proxy.log());
    // A clean restart changes nothing.
    proxy.terminate();
    proxy.wait_exit(DEADLINE).unwrap();
    proxy.start().await.unwrap();
    assert_eq!(body(&proxy).await, "good");

    // The control plane sends the revision again, and gets a NACK, also on a later try.
    control_plane.start().await.unwrap();
    let api = control_plane.api();
    let shown = api.wait_proxy("p", "rejected", |shown| shown["state"] == "rejected").await.unwrap();
    assert_eq!(shown["error"]["revision"], bad, "{shown}");
    assert_eq!(shown["error"]["resources"][0]["message"], reason, "{shown}");
    let wait = api.call(Method::GET, &format!("/revisions/{bad}/wait?timeout=20s"), None).await.unwrap();
    assert_eq!(wait.status, StatusCode::CONFLICT, "{wait}");
    let tried = async || proxy.metrics().await.unwrap().sum("signalbox_config_rejected_total", &[]) >= 2.0;
    assert!(eventually(DEADLINE, tried).await, "{}", proxy.log());
    assert_eq!(body(&proxy).await, "good");

    // The next revision is applied, and after the crash window the refusal is over.
    let repaired = api.put("routes", "r", &respond("/r", "repaired")).await.unwrap();
    api.wait_default(repaired).await.unwrap();
    assert_eq!(body(&proxy).await, "repaired");
    let shown = api.wait_proxy("p", "in sync", |shown| shown["state"] == "in_sync").await.unwrap();
    assert_eq!(shown["error"], Value::Null, "{shown}");
    let rollout = api.get(&format!("/rollouts/{bad}-default")).await.unwrap();
    assert_eq!(
        (&rollout["state"], &rollout["counts"]["rejected"]),
        (&"failed".into(), &1.into()),
        "{rollout}"
    );
    proxy.wait_kept("repaired").await.unwrap();
    proxy.terminate();
    proxy.wait_exit(DEADLINE).unwrap();
    proxy.set_arg("--crash-window=50ms");
    proxy.start().await.unwrap();
    let last = api.put("routes", "r", &respond("/r", "last")).await.unwrap();
    api.wait_default(last).await.unwrap();
    wait_shown(&proxy, "crashed", None).await;
    wait_shown(&proxy, "proven", Some(last)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_revision_that_never_got_to_the_disk_is_refused_as_well_until_an_operator_wants_it() {
    let (control_plane, mut proxy, _) = proven().await;
    // The last good snapshot cannot be written, so every crash is with the revision from the control plane.
    std::os::unix::fs::symlink("/dev/full", proxy.dir().join("data/snapshot.new")).unwrap();
    std::fs::remove_file(proxy.dir().join("data/journal")).unwrap();
    let api = control_plane.api();
    let bad = api.put("routes", "r", &respond("/r", "bad")).await.unwrap();
    for _ in 0..3 {
        crash(&mut proxy, bad).await;
    }
    proxy.start().await.unwrap();
    api.wait_proxy("p", "rejected", |shown| shown["state"] == "rejected").await.unwrap();
    assert_eq!(body(&proxy).await, "good");

    let page = retry(&proxy).await.header("origin", "http://example.com").send().await.unwrap();
    assert_eq!(page.status(), 403);
    assert_eq!(shown(&proxy, "crashed").await, Some(bad));
    let accepted = retry(&proxy).await.send().await.unwrap();
    assert_eq!(accepted.status(), 202);
    let accepted: Value = accepted.json().await.unwrap();
    assert_eq!(accepted["retried"]["revision"], bad, "{accepted}");
    api.wait_proxy("p", "in sync", |shown| shown["state"] == "in_sync").await.unwrap();
    assert_eq!(body(&proxy).await, "bad");
    assert_eq!(retry(&proxy).await.send().await.unwrap().status(), 409);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn orderly_ends_never_count_as_crashes() {
    let (control_plane, mut proxy, _) = proven().await;
    let new = control_plane.api().put("routes", "r", &respond("/r", "new")).await.unwrap();
    // By a signal, and by a request.
    for by_signal in [true, false, true, false] {
        proxy.start().await.unwrap();
        wait_shown(&proxy, "serving", Some(new)).await;
        if by_signal {
            proxy.terminate();
        } else {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let drain = client.post(format!("http://{}/drain", proxy.admin())).send().await.unwrap();
            assert_eq!(drain.status(), 202);
        }
        assert_eq!(proxy.wait_exit(DEADLINE).unwrap(), Some(0));
    }
    // The supervisor kills it in the middle of its drain.
    proxy.set_arg("--drain-grace=60s");
    for _ in 0..4 {
        proxy.start().await.unwrap();
        wait_shown(&proxy, "serving", Some(new)).await;
        proxy.terminate();
        wait_completed(&proxy).await;
        proxy.kill9();
    }
    // It is killed after the crash window.
    proxy.set_arg("--crash-window=50ms");
    for _ in 0..4 {
        proxy.start().await.unwrap();
        wait_completed(&proxy).await;
        proxy.kill9();
    }
    proxy.start().await.unwrap();
    wait_shown(&proxy, "serving", Some(new)).await;
    assert_eq!(shown(&proxy, "crashed").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_marker_that_is_torn_or_cannot_be_written_stops_nothing() {
    let (control_plane, mut proxy, _) = proven().await;
    let api = control_plane.api();
    let bad = api.put("routes", "r", &respond("/r", "bad")).await.unwrap();
    for _ in 0..3 {
        crash(&mut proxy, bad).await;
    }
    // Without the marker, nothing is known of the crashes.
    let whole = std::fs::read(marker(&proxy)).unwrap();
    std::fs::write(marker(&proxy), &whole[..100]).unwrap();
    proxy.start().await.unwrap();
    wait_shown(&proxy, "serving", Some(bad)).await;
    assert!(proxy.log().contains("the start marker is torn"), "{}", proxy.log());
    proxy.kill9();

    // A disk without room, for every write of the marker.
    std::fs::remove_file(marker(&proxy)).unwrap();
    std::os::unix::fs::symlink("/dev/full", marker(&proxy)).unwrap();
    for round in 0..4 {
        proxy.start().await.unwrap();
        let revision = api.put("routes", "r", &respond("/r", &format!("round {round}"))).await.unwrap();
        api.wait_default(revision).await.unwrap();
        assert_eq!(body(&proxy).await, format!("round {round}"));
        assert_eq!(shown(&proxy, "crashed").await, None);
        proxy.kill9();
    }
    assert!(proxy.log().contains("the start marker cannot be written"), "{}", proxy.log());
}
