//! Redis is killed, frozen, failed over, flushed and restored.

use std::slice::from_ref;
use std::time::{Duration, Instant};

use serde_json::json;
use signalbox_tests::Redis;
use signalbox_tests::redis::Sentinels;

use crate::fleet::{Proxy, at_once, config, eventually, run};

#[test]
fn each_policy_decides_while_redis_is_killed_and_all_count_again_when_it_is_back() {
    let mut redis = Redis::start().unwrap();
    let settings = json!({"addresses": [redis.address().to_string()]});
    run(async {
        let proxy =
            |policy: &str| Proxy::new(&config(5, "1h", settings.clone(), json!({"on_store_error": policy})));
        let [deny, allow, local] = ["deny", "allow", "local"].map(proxy);
        for proxy in [&deny, &allow, &local] {
            assert_eq!(proxy.status().await, 200);
        }
        redis.kill9();
        for _ in 0..20 {
            let end = deny.request().await;
            assert_eq!((end.status, end.headers.len()), (503, 0), "{end:?}");
            let end = allow.request().await;
            assert_eq!((end.status, end.headers.len()), (200, 0), "{end:?}");
        }
        // By itself, from zero, and without headers about a count that is not the shared one.
        assert_eq!(at_once(from_ref(&local), 20).await, 5);
        assert_eq!(local.request().await.headers.keys().collect::<Vec<_>>(), ["retry-after"]);

        redis.restart().unwrap();
        eventually("counting again", async || {
            let end = allow.request_of("198.51.100.1").await;
            end.headers.contains_key("ratelimit-remaining")
        })
        .await;
        for proxy in [&deny, &local] {
            eventually("counting again", async || {
                proxy.request_of("198.51.100.2").await.headers.contains_key("ratelimit-remaining")
            })
            .await;
        }
        assert_eq!(at_once(&[deny, allow, local], 100).await, 5);
    });
}

#[test]
fn a_frozen_redis_costs_a_few_requests_their_time_limit_and_the_others_nothing() {
    let mut redis = Redis::start().unwrap();
    let settings = json!({"addresses": [redis.address().to_string()], "timeout": "300ms"});
    run(async {
        let proxy = Proxy::new(&config(1000, "1h", settings, json!({"on_store_error": "allow"})));
        eventually("the first count", async || !proxy.request().await.headers.is_empty()).await;
        redis.freeze();
        let start = Instant::now();
        for _ in 0..200 {
            assert_eq!(proxy.status().await, 200);
        }
        // If each had waited, it would be a minute.
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        // While Redis is known to be away, nobody waits.
        assert!((0..20).any(|_| proxy.decides_alone()));
        redis.thaw();
        eventually("counting again", async || !proxy.request().await.headers.is_empty()).await;
    });
}

#[test]
fn a_server_that_forgot_its_scripts_gets_them_again_and_no_request_sees_it() {
    let mut redis = Redis::start().unwrap();
    let settings = json!({"addresses": [redis.address().to_string()]});
    run(async {
        let fleet = Proxy::fleet(3, &config(60, "1h", settings, json!({})));
        assert_eq!(at_once(&fleet, 30).await, 30);
        redis.command(&["SCRIPT", "FLUSH"]).unwrap();
        assert_eq!(at_once(&fleet, 100).await, 30);
        redis.kill9();
        redis.restart().unwrap();
        for proxy in &fleet {
            eventually("a connection", async || proxy.request_of("198.51.100.1").await.status == 200).await;
        }
        // Its counts were in its memory only.
        assert_eq!(at_once(&fleet, 100).await, 60);
    });
}

#[test]
fn a_failover_keeps_the_counts_and_the_replica_is_never_asked() {
    let mut primary = Redis::start().unwrap();
    let replica = primary.replica().unwrap();
    let sentinels = Sentinels::of(&primary, 1).unwrap();
    let settings = json!({"addresses": sentinels.addresses(), "mode": "sentinel", "service": "main"});
    run(async {
        let fleet = Proxy::fleet(2, &config(50, "1h", settings, json!({})));
        assert_eq!(at_once(&fleet, 30).await, 30);
        // Writes that the replica does not have yet would be lost with the primary.
        primary.command(&["WAIT", "1", "5000"]).unwrap();
        primary.kill9();
        for proxy in &fleet {
            eventually("a failover", async || proxy.request_of("198.51.100.1").await.status == 200).await;
        }
        assert!(replica.command(&["ROLE"]).unwrap().starts_with("master"));
        assert_eq!(at_once(&fleet, 200).await, 20);
        // The old primary comes back as a replica, and is left alone.
        primary.restart().unwrap();
        primary.follow(&replica).unwrap();
        assert_eq!(at_once(&fleet, 20).await, 0);
    });
}

#[test]
fn a_primary_that_became_a_replica_is_noticed_and_the_request_is_sent_once_more() {
    let primary = Redis::start().unwrap();
    let replica = primary.replica().unwrap();
    let sentinels = Sentinels::of(&primary, 1).unwrap();
    let settings = json!({"addresses": sentinels.addresses(), "mode": "sentinel", "service": "main"});
    run(async {
        let proxy = Proxy::new(&config(50, "1h", settings, json!({})));
        assert_eq!(at_once(from_ref(&proxy), 30).await, 30);
        primary.command(&["WAIT", "1", "5000"]).unwrap();
        sentinels.failover().unwrap();
        eventually("a new primary", async || {
            replica.command(&["ROLE"]).is_ok_and(|role| role.starts_with("master"))
        })
        .await;
        primary.follow(&replica).unwrap();
        let mut passed = 0;
        eventually("the limit", async || {
            let status = proxy.status().await;
            passed += usize::from(status == 200);
            status == 429
        })
        .await;
        assert_eq!(passed, 20);
    });
}
