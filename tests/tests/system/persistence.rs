//! A proxy whose data directory cannot be written.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use signalbox_tests::{ControlPlane, Proxy, eventually, get};

use crate::fixture::respond;

const DEADLINE: Duration = Duration::from_secs(60);

/// Reads `/readyz`: its status and its body.
async fn readiness(proxy: &Proxy) -> (u16, Value) {
    let answer = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = answer.get(format!("http://{}/readyz", proxy.admin())).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn failing(proxy: &Proxy) -> f64 {
    proxy.metrics().await.unwrap().sum("signalbox_proxy_persist_failing", &[])
}

fn warned(shown: &Value) -> bool {
    let text =
        shown["warnings"].as_array().and_then(|warnings| warnings.first()?.as_str()).unwrap_or_default();
    text.contains("not kept on disk")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_full_disk_is_told_by_metric_readiness_and_board_until_it_has_room_again() {
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let mut proxy = Proxy::builder().control_plane(&control_plane).node_id("p").prepare().unwrap();
    // The snapshot is written to this file first: every write fails as on a full disk, for root as well.
    let data = proxy.dir().join("data");
    std::fs::create_dir(&data).unwrap();
    std::os::unix::fs::symlink("/dev/full", data.join("snapshot.new")).unwrap();
    proxy.start().await.unwrap();
    let api = control_plane.api();
    let revision = api.put("routes", "r", &respond("/r", "first")).await.unwrap();
    api.wait_default(revision).await.unwrap();
    assert!(eventually(DEADLINE, async || failing(&proxy).await == 1.0).await, "{}", proxy.log());
    let metrics = proxy.metrics().await.unwrap();
    assert!(metrics.sum("signalbox_proxy_persist_failures_total", &[]) >= 1.0);
    let (status, body) = readiness(&proxy).await;
    assert_eq!((status, &body["status"]), (200, &Value::from("ready")));
    assert!(warned(&body) && body.to_string().contains("No space left"), "{body}");
    api.wait_proxy("p", "shown with a warning", warned).await.unwrap();

    std::fs::remove_file(data.join("snapshot.new")).unwrap();
    assert!(eventually(DEADLINE, async || failing(&proxy).await == 0.0).await, "{}", proxy.log());
    assert!(!warned(&readiness(&proxy).await.1));
    api.wait_proxy("p", "shown without a warning", |shown| !warned(shown)).await.unwrap();
    proxy.wait_kept("first").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_proxy_whose_data_directory_cannot_be_made_starts_where_a_control_plane_answers() {
    let mut control_plane = ControlPlane::builder().prepare().unwrap();
    // Nobody can make a directory there, root neither.
    let nowhere = Path::new("/proc/signalbox-proxy-data");
    let mut proxy = Proxy::builder().control_plane(&control_plane).data_dir(nowhere).prepare().unwrap();
    proxy.start_unready().unwrap();
    let said = eventually(DEADLINE, async || proxy.log().contains("the data directory cannot be written"));
    assert!(said.await, "{}", proxy.log());
    control_plane.start().await.unwrap();
    let revision = control_plane.api().put("routes", "r", &respond("/r", "served")).await.unwrap();
    proxy.wait_ready().await.unwrap();
    control_plane.api().wait_default(revision).await.unwrap();
    assert_eq!(get(proxy.http(), "a", "/r").await.unwrap().text(), "served");
    assert_eq!(failing(&proxy).await, 1.0);
    let (status, body) = readiness(&proxy).await;
    assert!(status == 200 && warned(&body), "{body}");
    // Its identity is made for this start.
    let shown = eventually(DEADLINE, async || {
        let shown = control_plane.api().proxies().await.unwrap();
        shown.len() == 1 && warned(&shown[0])
    });
    assert!(shown.await, "{:#?}", control_plane.api().proxies().await);
}
