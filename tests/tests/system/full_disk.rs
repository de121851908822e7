//! Disks without room: what cannot be written is refused as a whole, and written again when there is room.
//!
//! A limit on the size of files stands for the full disk, because it needs no privileges: writes of the process are refused by
//! the kernel in the same place.

use std::process::Command;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use signalbox_tests::control_plane::{ADMIN_TOKEN, PROXY_TOKEN};
use signalbox_tests::{Api, ControlPlane, Daemon, Load, Proxy, eventually, free_port, get, program};

use crate::fixture::respond;

const DEADLINE: Duration = Duration::from_secs(60);

/// Everything that a write would change.
async fn state(api: &Api) -> Vec<Value> {
    let mut found = Vec::new();
    for path in ["/export?format=json", "/revisions", "/tokens", "/audit"] {
        found.push(api.get(path).await.unwrap());
    }
    found
}

/// A document with this many routes, larger than what fits on the disk.
fn document(count: usize, body: &str) -> Value {
    let routes = (0..count).map(|index| {
        let mut spec = respond(&format!("/many/{index}"), &body.repeat(200));
        spec["name"] = format!("many-{index}").into();
        spec
    });
    json!({"routes": routes.collect::<Vec<_>>()})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_full_disk_refuses_writes_with_nothing_half_written_and_takes_them_again() {
    let mut control_plane = ControlPlane::sqlite().await.unwrap();
    let api = control_plane.api().clone();
    let mut proxies = vec![Proxy::of(&control_plane, "before").await.unwrap()];
    let revision = api.put("routes", "r", &respond("/", "before")).await.unwrap();
    api.wait_default(revision).await.unwrap();
    let before = state(&api).await;
    let load = Load::on([proxies[0].http()]).start().await.unwrap();

    // Without any room, and with room for a part of what is to be written.
    for room in [0, 64 << 10] {
        control_plane.limit_file_size(Some(room)).unwrap();
        for round in 0..3 {
            let refused = api.call(Method::POST, "/apply", Some(&document(2_000, "x"))).await.unwrap();
            assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "round {round}: {refused}");
            assert_eq!(refused.body["detail"], "the database is not available", "{refused}");
        }
        assert_eq!(state(&api).await, before);
    }
    control_plane.limit_file_size(Some(0)).unwrap();
    let token = json!({"name": "ci", "role": "editor"});
    let (put, route) = (Method::PUT, respond("/", "refused"));
    for (method, path, body) in [
        (&put, "/routes/r", Some(&route)),
        (&Method::DELETE, "/routes/r", None),
        (&Method::POST, "/tokens", Some(&token)),
    ] {
        let refused = api.call(method.clone(), path, body).await.unwrap();
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{path}: {refused}");
    }
    assert!(api.log_in(ADMIN_TOKEN).await.is_err(), "a session that is not stored was opened");
    assert_eq!(state(&api).await, before);
    // Reading goes on, and proxies get what is there, also one that nobody could write down.
    proxies.push(Proxy::of(&control_plane, "newcomer").await.unwrap());
    for proxy in &proxies {
        assert_eq!(get(proxy.http(), "a", "/").await.unwrap().text(), "before");
    }
    api.wait_in_sync(2).await.unwrap();
    let errors = api.metrics().await.unwrap();
    assert!(errors.sum("signalbox_store_errors_total", &["operation=\"commit\""]) >= 1.0);
    assert!(errors.sum("signalbox_log_lines_lost_total", &[]) >= 1.0);

    control_plane.limit_file_size(None).unwrap();
    let revision = api.apply(&document(2_000, "y")).await.unwrap();
    api.wait_default(revision).await.unwrap();
    for proxy in &proxies {
        assert_eq!(get(proxy.http(), "a", "/many/1999").await.unwrap().text(), "y".repeat(200));
    }
    load.finish().assert_flawless(50);
    // All that was committed is there after a crash, and nothing that was refused.
    control_plane.kill9();
    control_plane.start().await.unwrap();
    assert_eq!(api.head().await.unwrap(), revision);
    assert_eq!(api.get("/revisions").await.unwrap()["items"][1], before[1]["items"][0]);
    assert_eq!(api.get("/routes/r").await.unwrap()["respond"]["body"], "before");
    api.wait_in_sync(2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn logs_that_cannot_be_written_stop_nothing_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let [admin, xds, http, proxy_admin] = [(); 4].map(|()| free_port());
    // Standard error and standard output are a device that is always full.
    let start = |name: &str, arguments: &[String]| {
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec \"$0\" \"$@\" >/dev/full 2>&1"])
            .arg(program(name).unwrap())
            .args(arguments);
        command.arg("--log-level=debug");
        Daemon::spawn(name, &command, &dir.path().join(name)).unwrap()
    };
    let mut control_plane = start(
        "signalbox-control-plane",
        &[
            format!("--database-url=sqlite://{}/signalbox.db", dir.path().display()),
            format!("--admin-address=127.0.0.1:{admin}"),
            format!("--xds-address=127.0.0.1:{xds}"),
            format!("--admin-token={ADMIN_TOKEN}"),
            format!("--proxy-token={PROXY_TOKEN}"),
        ],
    );
    let mut proxy = start(
        "signalbox-proxy",
        &[
            format!("--control-plane=http://127.0.0.1:{xds}"),
            format!("--token={PROXY_TOKEN}"),
            format!("--data-dir={}/data", dir.path().display()),
            format!("--listener=http=127.0.0.1:{http}"),
            format!("--admin-address=127.0.0.1:{proxy_admin}"),
            "--workers=1".to_owned(),
        ],
    );
    let api = Api::new(format!("http://127.0.0.1:{admin}"), ADMIN_TOKEN).unwrap();
    let in_sync =
        async || api.proxies().await.is_ok_and(|all| all.iter().any(|proxy| proxy["state"] == "in_sync"));
    assert!(eventually(DEADLINE, in_sync).await);
    let revision = api.put("routes", "r", &respond("/", "served")).await.unwrap();
    api.wait_default(revision).await.unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], http));
    for _ in 0..20 {
        assert_eq!(get(address, "a", "/").await.unwrap().text(), "served");
    }
    assert!(api.metrics().await.unwrap().sum("signalbox_log_lines_lost_total", &[]) >= 1.0);
    let counted = eventually(DEADLINE, async || {
        let text = reqwest::get(format!("http://127.0.0.1:{proxy_admin}/metrics")).await.unwrap();
        let text = text.text().await.unwrap();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<f64>().ok()).unwrap_or_default()
        };
        // The last lines are counted with the next ones.
        let _ = get(address, "a", "/").await;
        value("signalbox_log_lines_lost_total") >= 1.0 && value("signalbox_access_log_dropped_total") >= 20.0
    });
    assert!(counted.await);
    assert!(control_plane.is_running() && proxy.is_running());
}
