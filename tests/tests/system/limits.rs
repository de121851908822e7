//! Limits that several proxies share through Redis.

use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};
use signalbox_tests::{Answer, Redis, eventually, get};

use crate::fixture::{Gateway, forward, respond, with};

const PROXIES: usize = 3;

/// A gateway whose route `/limited` has a limit of `limit` requests an hour, counted in Redis, and whose route `/free` has none.
async fn limited(redis: &Redis, limit: u32, fields: &Value) -> Gateway {
    let gateway = Gateway::start(PROXIES).await;
    let config = json!({
        "limit": limit, "window": "1h", "by": "global", "on_store_error": "deny",
        "redis": {"addresses": [redis.address().to_string()], "timeout": "5s"},
    });
    let plugin = json!({"type": "rate-limit", "config": with(config, fields)});
    gateway.put("plugins", "limit", &plugin).await;
    gateway.put("routes", "limited", &with(forward("/limited"), &json!({"plugins": ["limit"]}))).await;
    gateway.put("routes", "free", &respond("/free", "free")).await;
    gateway
}

/// So many requests at once, spread over the proxies; the number that passed. The others are beyond the limit.
async fn at_once(gateway: &Gateway, requests: usize) -> usize {
    let all = (0..requests)
        .map(|number| get(gateway.proxies[number % gateway.proxies.len()].http(), "a", "/limited"));
    let answers: Vec<Answer> = join_all(all).await.into_iter().map(Result::unwrap).collect();
    let passed = answers.iter().filter(|answer| answer.status == StatusCode::OK).count();
    let refused = answers.iter().filter(|answer| answer.status == StatusCode::TOO_MANY_REQUESTS).count();
    assert_eq!(passed + refused, requests);
    passed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_fleet_counts_together_in_redis_and_another_route_does_not_notice_its_end() {
    let mut redis = Redis::start().unwrap();
    let gateway = limited(&redis, 100, &json!({"store": "redis"})).await;
    assert_eq!(at_once(&gateway, 300).await, 100);
    let answer = get(gateway.proxies[0].http(), "a", "/limited").await.unwrap();
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.header("ratelimit-remaining"), Some("0"));
    assert!(answer.header("retry-after").is_some());

    redis.kill9();
    for proxy in &gateway.proxies {
        let answer = get(proxy.http(), "a", "/limited").await.unwrap();
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.header("ratelimit-remaining"), None);
        assert_eq!(get(proxy.http(), "a", "/free").await.unwrap().status, StatusCode::OK);
    }
    redis.restart().unwrap();
    for proxy in &gateway.proxies {
        let counts = eventually(Duration::from_secs(20), async || {
            get(proxy.http(), "a", "/limited")
                .await
                .is_ok_and(|answer| answer.header("ratelimit-limit").is_some())
        })
        .await;
        assert!(counts, "{}", proxy.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_fleet_with_leases_admits_at_most_the_limit_over_a_crash() {
    const LEASE: usize = 10;
    let redis = Redis::start().unwrap();
    let mut gateway = limited(&redis, 300, &json!({"store": "local-with-sync", "lease": LEASE})).await;
    let mut passed = at_once(&gateway, 120).await;
    assert_eq!(passed, 120);
    gateway.proxies.pop().unwrap().kill9();
    passed += at_once(&gateway, 400).await;
    let all_spent = eventually(Duration::from_secs(20), async || {
        let more = at_once(&gateway, 10).await;
        passed += more;
        more == 0
    })
    .await;
    assert!(all_spent);
    assert!((300 - PROXIES * LEASE..=300).contains(&passed), "{passed}");
}
