//! Targets that fail, and come back, under load.

use std::time::Duration;

use serde_json::{Value, json};
use signalbox_tests::{Load, Nginx, Proxy, eventually, get};

use crate::fixture::Gateway;

const DEADLINE: Duration = Duration::from_secs(20);

/// How many targets of the upstream are healthy.
async fn healthy(proxy: &Proxy) -> f64 {
    let metrics = proxy.metrics().await.unwrap();
    metrics.sum("signalbox_upstream_healthy_targets", &["upstream=\"nginx\""])
}

/// The targets of the upstream that are not healthy, in what `/debug/upstreams` told.
fn ill(told: &Value) -> Vec<&Value> {
    let upstream = told.as_array().unwrap().iter().find(|it| it["upstream"] == "nginx").unwrap();
    upstream["targets"].as_array().unwrap().iter().filter(|it| it["health"] != "healthy").collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nginx_is_killed_hangs_is_slow_and_comes_back_and_no_request_notices() {
    let gateway = Gateway::start(1).await;
    let proxy = &gateway.proxies[0];
    let mut backends: Vec<Nginx> =
        ["a", "b", "c"].into_iter().map(|name| Nginx::start(name).unwrap()).collect();
    let targets: Vec<_> =
        backends.iter().map(|backend| json!({"address": backend.address().to_string()})).collect();
    let upstream = json!({
        "targets": targets,
        "health_check": {
            "active": {"path": "/", "interval": "200ms", "timeout": "300ms", "healthy_after": 2, "unhealthy_after": 2},
            "passive": {"consecutive_failures": 3, "ejection": "500ms"},
        },
    });
    gateway.put("upstreams", "nginx", &upstream).await;
    let retry = json!({"attempts": 3, "on": ["connect-failure", "reset", "5xx"], "per_try_timeout": "300ms", "budget": 1.0});
    let route = json!({
        "match": {"paths": [{"prefix": "/"}]},
        "forward": {"upstreams": [{"name": "nginx"}], "retry": retry, "timeout": "5s"},
    });
    gateway.put("routes", "nginx", &route).await;
    let load = Load::on([proxy.http()])
        .connections(8)
        .pace(Duration::from_millis(4))
        .check(|answer| match answer.text().as_str() {
            "a" | "b" | "c" if answer.status == 200 => Ok(()),
            other => Err(format!("{} {other}", answer.status)),
        })
        .start()
        .await
        .unwrap();
    load.wait_for(200).await.unwrap();
    let all = eventually(DEADLINE, async || healthy(proxy).await == 3.0).await;
    assert!(all, "{}", proxy.metrics().await.unwrap().0);
    for way in ["killed", "frozen"] {
        match way {
            "killed" => backends[1].kill9(),
            _ => backends[1].freeze(),
        }
        let mut told = Value::Null;
        let found = eventually(DEADLINE, async || {
            let answer = get(proxy.admin(), "admin", "/debug/upstreams").await.unwrap();
            told = serde_json::from_slice(&answer.body).unwrap();
            let ill = ill(&told);
            let is_it = ill.len() == 1 && ill[0]["address"] == backends[1].address().to_string();
            is_it && healthy(proxy).await == 2.0
        })
        .await;
        assert!(found, "{way}: {told} {}", proxy.metrics().await.unwrap().0);
        let ill = ill(&told)[0];
        assert!(!ill["why"].as_array().unwrap().is_empty() && ill["since"].is_string(), "{told}");
        load.wait_for(200).await.unwrap();
        match way {
            "killed" => backends[1].restart().unwrap(),
            _ => backends[1].thaw(),
        }
        let back = eventually(DEADLINE, async || healthy(proxy).await == 3.0).await;
        assert!(back, "{way} and back: {}", proxy.metrics().await.unwrap().0);
        load.wait_for(200).await.unwrap();
    }
    // Slowed down to a crawl: it runs for a moment, and stands still for a while, again and again. It stays in use.
    let mut turns = tokio::time::interval(Duration::from_millis(40));
    for turn in 0..50 {
        turns.tick().await;
        if turn % 5 == 0 { backends[1].thaw() } else { backends[1].freeze() }
    }
    backends[1].thaw();
    load.wait_for(200).await.unwrap();
    let report = load.finish();
    report.assert_flawless(1000);
}
