//! The clock of the Redis server jumps.

use serde_json::json;
use signalbox_tests::Redis;

use crate::fleet::{Proxy, at_once, config, run};

const ALGORITHMS: [&str; 3] = ["sliding-window", "token-bucket", "leaky-bucket"];

#[test]
fn a_clock_that_jumps_back_neither_frees_nor_blocks() {
    let redis = Redis::with_clock().unwrap();
    let settings = json!({"addresses": [redis.address().to_string()]});
    run(async {
        for (algorithm, shift) in ALGORITHMS.into_iter().zip([3600, 86_400, 60]) {
            redis.set_clock(0).unwrap();
            redis.command(&["FLUSHALL"]).unwrap();
            let fields = json!({"algorithm": algorithm});
            let fields = if algorithm == "leaky-bucket" {
                json!({"algorithm": algorithm, "burst": 20})
            } else {
                fields
            };
            let fleet = Proxy::fleet(2, &config(20, "3s", settings.clone(), fields));
            assert_eq!(at_once(&fleet, 15).await, 15, "{algorithm}");
            redis.set_clock(-shift).unwrap();
            // No count is lost: only what was left, and what a bucket got meanwhile, passes.
            let more = at_once(&fleet, 100).await;
            let refilled = if algorithm == "sliding-window" { 5..=5 } else { 5..=19 };
            assert!(refilled.contains(&more), "{algorithm}: {more}");
            // Nor does anybody wait for the time that the clock went back.
            crate::fleet::eventually("that a request passes", async || fleet[0].status().await == 200).await;
        }
    });
}

#[test]
fn a_clock_that_jumps_forward_gives_one_limit_and_no_more() {
    let redis = Redis::with_clock().unwrap();
    let settings = json!({"addresses": [redis.address().to_string()]});
    run(async {
        for algorithm in ["sliding-window", "token-bucket"] {
            redis.set_clock(0).unwrap();
            redis.command(&["FLUSHALL"]).unwrap();
            let fleet = Proxy::fleet(2, &config(20, "1h", settings.clone(), json!({"algorithm": algorithm})));
            assert_eq!(at_once(&fleet, 30).await, 20, "{algorithm}");
            redis.set_clock(86_400).unwrap();
            assert_eq!(at_once(&fleet, 100).await, 20, "{algorithm}");
            // To and fro.
            redis.set_clock(0).unwrap();
            assert_eq!(at_once(&fleet, 100).await, 0, "{algorithm}");
            redis.set_clock(86_400).unwrap();
            assert_eq!(at_once(&fleet, 100).await, 0, "{algorithm}");
        }
    });
}
