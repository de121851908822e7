//! `local-with-sync`: proxies spend leases.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use signalbox_tests::Redis;

use crate::fleet::{Proxy, at_once, config, eventually, run};

fn leased(limit: u32, window: &str, redis: &Redis, lease: u32) -> Value {
    let settings = json!({"addresses": [redis.address().to_string()]});
    config(limit, window, settings, json!({"store": "local-with-sync", "lease": lease}))
}

#[test]
fn requests_spend_leases_and_do_not_wait() {
    let redis = Redis::start().unwrap();
    run(async {
        let proxy = Proxy::new(&leased(10_000, "1h", &redis, 100));
        assert_eq!(proxy.status().await, 200);
        // One answer brought a lease: those who follow need none.
        for _ in 0..40 {
            assert!(proxy.decides_alone());
        }
        // The lease is renewed before it is spent.
        eventually("a renewal", async || {
            let calls = redis.command(&["INFO", "commandstats"]).unwrap();
            calls.lines().any(|line| line.starts_with("cmdstat_eval") && line.contains("calls="))
        })
        .await;
        for _ in 0..500 {
            assert_eq!(proxy.status().await, 200);
        }
    });
}

#[test]
fn a_fleet_admits_the_limit_and_no_more_whoever_is_killed() {
    let mut redis = Redis::start().unwrap();
    run(async {
        let mut fleet = Proxy::fleet(3, &leased(300, "1h", &redis, 20));
        let mut passed = 0;
        for _ in 0..3 {
            passed += at_once(&fleet, 30).await;
        }
        assert_eq!(passed, 90);
        // A crash: what it held is lost until the window has passed.
        fleet.remove(0);
        // A partition: each may spend what it holds.
        redis.freeze();
        let mut alone = 0;
        for proxy in &fleet {
            while proxy.decides_alone() {
                alone += 1;
                assert!(alone <= 40, "more than the leases");
            }
        }
        redis.thaw();
        let mut statuses = Vec::new();
        eventually("the limit", async || {
            for proxy in &fleet {
                statuses.push(proxy.status().await);
            }
            statuses.iter().rev().take(40).filter(|status| **status == 429).count() == 40
        })
        .await;
        passed += alone + statuses.iter().filter(|status| **status == 200).count();
        // The count is at most the limit; at least all but the lost leases of it passed.
        assert!((300 - 70..=300).contains(&passed), "{passed}");
    });
}

#[test]
fn what_is_not_spent_comes_back() {
    let redis = Redis::start().unwrap();
    run(async {
        // An idle proxy holds up to 12 of 100.
        let fleet = Proxy::fleet(2, &leased(100, "1h", &redis, 50));
        assert_eq!(fleet[0].status().await, 200);
        let start = Instant::now();
        let mut passed = 1;
        while passed < 100 && start.elapsed() < Duration::from_secs(15) {
            passed += usize::from(fleet[1].status().await == 200);
        }
        assert_eq!(passed, 100);
        eventually("the end", async || fleet[1].status().await == 429).await;
    });
}
