//! Purges of cached responses, with control planes that share a database.

use http::Method;
use serde_json::json;
use signalbox_tests::control_plane::Api;
use signalbox_tests::{Backend, ControlPlane, Postgres, Proxy, get};

use crate::fixture::{forward, upstream, with};

async fn status(proxy: &Proxy, path: &str) -> String {
    let answer = get(proxy.http(), "a.example", path).await.unwrap();
    let status = answer.headers.get("x-cache-status").and_then(|value| value.to_str().ok());
    status.unwrap_or_default().to_owned()
}

/// Has both paths stored by a proxy.
async fn fill(proxy: &Proxy) {
    for path in ["/shop/a", "/other"] {
        status(proxy, path).await;
        assert_eq!(status(proxy, path).await, "Hit", "{path}");
    }
}

async fn purge(api: &Api, body: serde_json::Value) -> serde_json::Value {
    let answer = api.call(Method::POST, "/cache/purge?timeout=20s", Some(&body)).await.unwrap();
    answer.success().unwrap().body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_purge_is_answered_when_the_proxies_of_all_control_planes_have_removed_the_responses() {
    let postgres = Postgres::new().unwrap();
    let one = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    let two = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    let at_one = Proxy::of(&one, "at-one").await.unwrap();
    let mut at_two = Proxy::of(&two, "at-two").await.unwrap();
    one.api().wait_in_sync(2).await.unwrap();
    let backend = Backend::echo("echo").unwrap();
    one.api().put("upstreams", "echo", &upstream(&[&backend])).await.unwrap();
    let cache = json!({"type": "cache", "config": {"ttl": "1h", "respect_cache_control": false}});
    one.api().put("plugins", "cache", &cache).await.unwrap();
    let route = with(forward("/"), &json!({"plugins": ["cache"]}));
    let revision = one.api().put("routes", "r", &route).await.unwrap();
    one.api().wait_default(revision).await.unwrap();

    for proxy in [&at_one, &at_two] {
        fill(proxy).await;
    }
    for (api, number) in [(one.api(), 1), (two.api(), 2)] {
        let outcome = purge(api, json!({"path": "/shop/*", "host": "a.example"})).await;
        assert_eq!(outcome["proxies"], 2, "purge {number}: {outcome}");
        for proxy in [&at_one, &at_two] {
            assert_eq!(status(proxy, "/other").await, "Hit");
            assert_eq!(status(proxy, "/shop/a").await, "Miss", "purge {number}");
            assert_eq!(status(proxy, "/shop/a").await, "Hit");
        }
    }
    // A proxy that does not answer is named, and removes the responses when it can. The next purge is carried out after it.
    at_two.pause();
    let all = json!({"all": true});
    let answer = one.api().call(Method::POST, "/cache/purge?timeout=1s", Some(&all)).await.unwrap();
    assert_eq!(answer.status.as_u16(), 504, "{answer}");
    assert_eq!(answer.body["waiting"], json!(["at-two"]), "{answer}");
    at_two.resume();
    let outcome = purge(two.api(), json!({"tag": "none"})).await;
    assert_eq!(outcome["proxies"], 2, "{outcome}");
    assert_eq!(status(&at_two, "/other").await, "Miss");
}
