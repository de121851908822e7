//! Profiles of the programs under load, and who may take them.

use std::process::Command;
use std::time::Duration;

use http::{Method, StatusCode};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use signalbox_process::profile::Profile;
use signalbox_tests::control_plane::ADMIN_TOKEN;
use signalbox_tests::{ControlPlane, Load, Proxy};

use crate::fixture::{Gateway, forward};

const TOKEN: &str = "the-token-of-the-admin-server";

const PAGES: [&str; 5] = [
    "/debug/pprof/profile?seconds=1",
    "/debug/pprof/heap",
    "/debug/pprof/symbol",
    "/debug/memory",
    "/debug/tasks",
];

async fn ask(url: &str, token: Option<&str>) -> Response {
    let client = Client::builder().no_proxy().timeout(Duration::from_secs(90)).build().unwrap();
    let request = client.get(url);
    let request = match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    request.send().await.unwrap()
}

async fn status(url: &str, token: Option<&str>) -> u16 {
    ask(url, token).await.status().as_u16()
}

fn of_proxy(proxy: &Proxy, page: &str) -> String {
    format!("http://{}{page}", proxy.admin())
}

fn of_control_plane(control_plane: &ControlPlane, page: &str) -> String {
    format!("{}{page}", control_plane.admin_url())
}

/// The number of profiles that a test takes in a row.
fn profiles_in_a_row() -> usize {
    std::env::var("SIGNALBOX_TEST_PROFILES").ok().and_then(|count| count.parse().ok()).unwrap_or(3)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn debugging_pages_are_served_only_with_the_switch() {
    let gateway = Gateway::start(1).await;
    for page in PAGES {
        assert_eq!(status(&of_proxy(&gateway.proxies[0], page), None).await, 404, "{page}");
        let url = of_control_plane(&gateway.control_plane, page);
        assert_eq!(status(&url, Some(ADMIN_TOKEN)).await, 404, "{page}");
    }
    let metrics = gateway.proxies[0].metrics().await.unwrap();
    assert_eq!(metrics.sum("signalbox_profiling_enabled", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn debugging_pages_need_an_administrator() {
    let control_plane = ControlPlane::builder().arg("--profiling").start().await.unwrap();
    let proxy = Proxy::builder()
        .control_plane(&control_plane)
        .arg("--profiling")
        .arg(format!("--admin-token={TOKEN}"))
        .start()
        .await
        .unwrap();
    let api = control_plane.api();
    let body = json!({"name": "jobs", "role": "editor"});
    let editor = api.call(Method::POST, "/tokens", Some(&body)).await.unwrap().success().unwrap();
    let editor = editor.body["token"].as_str().unwrap().to_owned();
    for page in PAGES {
        let url = of_proxy(&proxy, page);
        assert_eq!(status(&url, None).await, 401, "{page}");
        assert_eq!(status(&url, Some("another-token-of-16")).await, 401, "{page}");
        let url = of_control_plane(&control_plane, page);
        assert_eq!(status(&url, None).await, 401, "{page}");
        assert_eq!(status(&url, Some(&editor)).await, 403, "{page}");
    }
    for (memory, heap, symbol, token) in [
        (of_proxy(&proxy, PAGES[3]), of_proxy(&proxy, PAGES[1]), of_proxy(&proxy, PAGES[2]), TOKEN),
        (
            of_control_plane(&control_plane, PAGES[3]),
            of_control_plane(&control_plane, PAGES[1]),
            of_control_plane(&control_plane, PAGES[2]),
            ADMIN_TOKEN,
        ),
    ] {
        let page: Value = ask(&memory, Some(token)).await.json().await.unwrap();
        assert!(page["smaps_rollup"]["rss"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{page}");
        assert!(page["allocator"]["committed"].as_u64().is_some_and(|bytes| bytes > 0), "{page}");
        let heap = ask(&heap, Some(token)).await;
        assert_eq!(heap.status(), StatusCode::NOT_IMPLEMENTED);
        assert!(heap.text().await.unwrap().contains("mimalloc"));
        assert_eq!(status(&symbol, Some(token)).await, 404);
    }
    let tasks: Value = ask(&of_proxy(&proxy, "/debug/tasks"), Some(TOKEN)).await.json().await.unwrap();
    let threads = tasks["threads"].as_array().unwrap();
    for name in ["worker-0", "worker-1", "control", "plugin-tasks"] {
        assert!(threads.iter().any(|thread| thread["name"] == name), "{name} is not in {tasks}");
    }
    assert!(tasks["plugin_tasks"].is_array());
    for (url, token) in
        [(of_proxy(&proxy, PAGES[0]), TOKEN), (of_control_plane(&control_plane, PAGES[0]), ADMIN_TOKEN)]
    {
        let head = Client::new().head(&url).bearer_auth(token).send().await.unwrap();
        assert_eq!(
            (head.status().as_u16(), head.headers()["allow"].to_str().unwrap()),
            (405, "GET"),
            "{url}"
        );
    }
    let wrong = of_proxy(&proxy, "/debug/pprof/profile?seconds=61");
    assert_eq!(status(&wrong, Some(TOKEN)).await, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_under_load_has_the_names_of_functions_and_a_second_one_at_once_is_refused() {
    let control_plane = ControlPlane::builder().arg("--profiling").start().await.unwrap();
    let gateway = Gateway::on(control_plane, 0).await;
    let proxy =
        Proxy::builder().control_plane(&gateway.control_plane).arg("--profiling").start().await.unwrap();
    gateway.put("routes", "all", &forward("/")).await;
    let load = Load::on([proxy.http()]).connections(4).start().await.unwrap();
    load.wait_for(100).await.unwrap();
    let url = of_proxy(&proxy, "/debug/pprof/profile?seconds=3&hz=100");
    let first = tokio::spawn(async move { ask(&url, None).await });
    let other = of_proxy(&proxy, "/debug/pprof/profile?seconds=1");
    let mut refused = false;
    while !refused && !first.is_finished() {
        refused = status(&other, None).await == 409;
    }
    let first = first.await.unwrap();
    // The first may have come second, and then it is the one that is refused.
    refused |= first.status() == StatusCode::CONFLICT;
    assert!(refused, "a second profile was taken at once");
    let first = if first.status() == StatusCode::CONFLICT { ask(&other, None).await } else { first };
    assert_eq!(first.status(), StatusCode::OK);
    let bytes = first.bytes().await.unwrap();
    for number in 1..profiles_in_a_row() {
        assert_eq!(status(&other, None).await, 200, "profile {number}");
    }
    let of_streams = of_control_plane(&gateway.control_plane, "/debug/pprof/profile?seconds=1");
    let second = ask(&of_streams, Some(ADMIN_TOKEN)).await;
    assert_eq!(second.status(), StatusCode::OK);
    Profile::from_bytes(&second.bytes().await.unwrap()).unwrap();
    load.finish().assert_flawless(100);

    let profile = Profile::from_bytes(&bytes).unwrap();
    let workers = profile
        .sample
        .iter()
        .filter(|sample| sample.label.iter().any(|label| profile.text(label.str).starts_with("worker-")));
    let stacks: Vec<Vec<&str>> = workers.map(|sample| profile.stack(sample)).collect();
    assert!(stacks.len() > 10, "{} stacks", stacks.len());
    let whole = stacks.iter().filter(|stack| {
        stack.iter().any(|name| name.contains("signalbox_proxy::worker::run"))
            && stack.iter().any(|name| name.contains("signalbox_proxy::http::"))
    });
    let whole = whole.count();
    assert!(2 * whole > stacks.len(), "{whole} of {} stacks are whole: {stacks:#?}", stacks.len());
    go_reads_it(&bytes, "signalbox_proxy::");
}

/// Has Go's own tool read a profile, if it is installed.
fn go_reads_it(profile: &[u8], expected: &str) {
    let cached = std::env::home_dir().unwrap_or_default().join(".cache/signalbox/go/go/bin/go");
    let go = if cached.exists() { cached } else { "go".into() };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), profile).unwrap();
    let mut command = Command::new(go);
    command.args(["tool", "pprof", "-top", "-cum", "-nodecount=500"]).arg(file.path());
    command.env("GOTOOLCHAIN", "local").env("GOFLAGS", "-mod=mod");
    match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        output => {
            let output = output.unwrap();
            let (text, error) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success() && text.contains(expected), "{text}\n{error}");
            assert!(text.contains("Type: cpu"), "{text}");
        }
    }
}
