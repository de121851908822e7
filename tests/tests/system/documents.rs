//! Whole sets: what an export is good for elsewhere, and what a large document costs.

use std::time::Duration;

use http::{Method, Request};
use http_body_util::Full;
use serde_json::{Value, json};
use signalbox_tests::control_plane::send;
use signalbox_tests::{Backend, ControlPlane, Proxy};

use crate::fixture::{Gateway, upstream};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_export_applied_to_an_empty_control_plane_lets_the_same_keys_in() {
    let first = ControlPlane::sqlite().await.unwrap();
    let backend = Backend::echo("echo").unwrap();
    let key = "the-api-key-of-alice";
    let document = json!({
        "upstreams": [{"name": "echo", "targets": upstream(&[&backend])["targets"]}],
        "plugins": [{"name": "keys", "type": "key-auth", "config": {"names": ["x-api-key"]}}],
        "consumers": [{"name": "alice", "credentials": [{"key_auth": {"key": key}}]}],
        "routes": [{"name": "r", "plugins": ["keys"], "forward": {"upstreams": [{"name": "echo"}]}}],
    });
    first.api().apply(&document).await.unwrap();
    for format in ["yaml", "json"] {
        let export = first.api().call(Method::GET, &format!("/export?format={format}"), None).await.unwrap();
        let export = export.success().unwrap();
        let text = export.body.as_str().map_or_else(|| export.body.to_string(), str::to_owned);
        assert!(!text.contains(key), "{text}");
        let second = ControlPlane::sqlite().await.unwrap();
        let request = second.api().request(Method::POST, "/apply?prune=true");
        let request = request.header("content-type", format!("application/{format}")).body(text);
        let revision = send(request).await.unwrap().success().unwrap().revision().unwrap();
        let proxy = Proxy::of(&second, "p").await.unwrap();
        second.api().wait_default(revision).await.unwrap();
        for (key, status) in [(key, 200), ("another-key-of-alice", 401)] {
            let request = Request::get("/").header("host", "a").header("x-api-key", key);
            let answer =
                signalbox_tests::client::send(proxy.http(), request.body(Full::default()).unwrap()).await;
            assert_eq!(answer.unwrap().status.as_u16(), status, "{format}");
        }
    }
}

/// The most memory that a process ever had, bytes.
fn peak_memory(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the peak");
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_document_that_is_wrong_all_over_takes_a_few_times_its_size() {
    let gateway = Gateway::start(0).await;
    let pid = gateway.control_plane.pid().unwrap();
    let api = gateway.control_plane.api();
    // So large that what threads take for themselves, up to 5 MiB, is a small part.
    let size = 4 << 20;
    let json = format!("{{\"routes\":[{}]}}", vec!["{\"n\":1}"; size / 8].join(","));
    let yaml = format!("routes:\n{}", "- n: 1\n".repeat(size / 7));
    // The control plane has allocated before what it needs for any document.
    send(api.request(Method::POST, "/apply").body("routes: [{n: 1}]")).await.unwrap();
    let before = peak_memory(pid);
    let refused = async |body: String, entries: usize| {
        let request = api.request(Method::POST, "/apply").timeout(Duration::from_secs(300)).body(body);
        let answer = send(request).await.unwrap();
        assert_eq!(answer.status.as_u16(), 422, "{answer}");
        assert_eq!(answer.body["errors"].as_array().map(Vec::len), Some(100));
        let omitted = answer.body["errors_omitted"].as_u64().unwrap() as usize;
        // Each resource has three errors; those behind the listed ones count once at least.
        assert!((entries - 34..=3 * entries).contains(&omitted), "{omitted} of {entries}");
        assert!(answer.body["errors"][0]["field"].as_str().unwrap().starts_with("routes[0]."), "{answer}");
    };
    refused(json.clone(), size / 8).await;
    let one = peak_memory(pid) - before;
    // The control plane goes on with its other work meanwhile.
    let other = 1 << 20;
    assert!(one <= 6 * json.len() + other, "{one} bytes for JSON of {}", json.len());
    refused(yaml.clone(), size / 7).await;
    let one = peak_memory(pid) - before;
    assert!(one <= 6 * yaml.len() + other, "{one} bytes for YAML of {}", yaml.len());
    // Three at once.
    let each = || refused(json.clone(), size / 8);
    futures_util::future::join3(each(), each(), each()).await;
    let three = peak_memory(pid) - before;
    assert!(three <= 3 * 6 * json.len(), "{three} bytes for three of {}", json.len());
    // It goes on as if nothing had been.
    api.put("routes", "r", &json!({"respond": {"status": 204}})).await.unwrap();
    let values: Value = serde_json::from_str(&format!("[{}1]", "1,".repeat(200_000))).unwrap();
    let tree = json!({"routes": [{"name": "a", "match": {"hosts": values}}]});
    let answer = api.call(Method::POST, "/apply", Some(&tree)).await.unwrap();
    assert_eq!(answer.status.as_u16(), 400, "{answer}");
    assert!(answer.body["detail"].as_str().unwrap().contains("more than 100000 values"), "{answer}");
}
