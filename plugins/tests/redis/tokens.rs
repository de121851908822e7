//! `token-limit`: an estimate is taken at once, and replaced by what the response says, over several proxies.

use serde_json::{Value, json};
use signalbox_tests::Redis;

use crate::fleet::{End, Proxy, at_once, config, eventually, run, text};

fn fleet(size: usize, limit: u32, estimate: u32, redis: &Value, fields: Value) -> Vec<Proxy> {
    let mut config = config(limit, "1h", redis.clone(), fields);
    config["estimate"] = json!(estimate);
    (0..size).map(|_| Proxy::with("token-limit", &config)).collect()
}

fn remaining(end: &End) -> u32 {
    text(&end.headers["ratelimit-remaining"]).parse().unwrap()
}

#[test]
fn of_a_thousand_requests_at_once_over_three_proxies_as_many_pass_as_their_estimates_fit() {
    let redis = Redis::start().unwrap();
    let settings = json!({"addresses": [redis.address().to_string()]});
    run(async {
        for (limit, estimate, expected) in [(10_000, 100, 100), (50, 7, 7), (1_000_000_000, 10_000_000, 100)]
        {
            redis.command(&["FLUSHALL"]).unwrap();
            let fleet = fleet(3, limit, estimate, &settings, json!({}));
            assert_eq!(at_once(&fleet, 1000).await, expected, "{limit} {estimate}");
        }
    });
}

#[test]
fn what_a_response_says_counts_on_all_proxies() {
    let redis = Redis::start().unwrap();
    let settings = json!({"addresses": [redis.address().to_string()]});
    run(async {
        for limit in [1000, 50] {
            redis.command(&["FLUSHALL"]).unwrap();
            let estimate = limit / 10;
            let fleet = fleet(2, limit, estimate, &settings, json!({}));
            let [one, other] = &*fleet else { panic!("not two") };
            // Less than the estimate: nothing of it is left counted. A look by another client's plugin would count, too.
            assert_eq!(remaining(&one.exchange(r#"{"usage": {"total_tokens": 0}}"#).await), limit - estimate);
            eventually("a return of the estimate", async || {
                remaining(&other.exchange(r#"{"usage": {"total_tokens": 0}}"#).await) == limit - estimate
            })
            .await;
            // More than there is: nobody passes any more, and what is left does not underflow.
            eventually("an overdraft", async || {
                other.exchange(r#"{"usage": {"total_tokens": 1000000000}}"#).await.status == 429
            })
            .await;
            for proxy in [one, other] {
                let end = proxy.request().await;
                assert_eq!((end.status, remaining(&end)), (429, 0));
                let wait: u64 = text(&end.headers["retry-after"]).parse().unwrap();
                assert!((3000..=3700).contains(&wait), "{wait}");
            }
        }
        // No key stays for ever.
        for key in redis.command(&["KEYS", "*"]).unwrap().lines() {
            assert!(redis.command(&["PTTL", key]).unwrap().parse::<i64>().unwrap() > 0, "{key}");
        }
    });
}

#[test]
fn each_policy_decides_while_redis_is_away() {
    let mut redis = Redis::start().unwrap();
    let settings = json!({"addresses": [redis.address().to_string()]});
    run(async {
        let proxy =
            |policy: &str| fleet(1, 50, 10, &settings, json!({"on_store_error": policy})).pop().unwrap();
        let [deny, allow, local] = ["deny", "allow", "local"].map(proxy);
        for proxy in [&deny, &allow, &local] {
            assert_eq!(proxy.status().await, 200);
        }
        redis.kill9();
        // A response that settles now harms nothing.
        for _ in 0..20 {
            let end = deny.request().await;
            assert_eq!((end.status, end.headers.len()), (503, 0), "{end:?}");
            let end = allow.exchange(r#"{"usage": {"total_tokens": 100}}"#).await;
            assert_eq!((end.status, end.headers.len()), (200, 0), "{end:?}");
        }
        // By itself, from zero: what its responses say counts there.
        assert_eq!(local.exchange(r#"{"usage": {"total_tokens": 20}}"#).await.status, 200);
        assert_eq!(at_once(&[local], 20).await, 3);
        redis.restart().unwrap();
        eventually("counting again", async || {
            allow.request_of("198.51.100.1").await.headers.contains_key("ratelimit-remaining")
        })
        .await;
    });
}
