//! Counts are exact over several proxies: with one server, behind sentinels, in a cluster.

use serde_json::json;
use signalbox_tests::Redis;
use signalbox_tests::redis::RedisCluster;

use crate::fleet::{Proxy, at_once, config, run, text};

#[test]
fn of_a_thousand_requests_at_once_over_three_proxies_exactly_the_limit_passes() {
    let redis = Redis::start().unwrap();
    let settings = json!({"addresses": [redis.address().to_string()]});
    run(async {
        for (limit, fields, expected) in [
            (100, json!({}), 100),
            (40, json!({}), 40),
            (100, json!({"algorithm": "token-bucket"}), 100),
            (100, json!({"algorithm": "leaky-bucket", "burst": 7, "window": "365d"}), 7),
        ] {
            redis.command(&["FLUSHALL"]).unwrap();
            let fleet = Proxy::fleet(3, &config(limit, "1h", settings.clone(), fields.clone()));
            assert_eq!(at_once(&fleet, 1000).await, expected, "{fields}");
        }
    });
    // No key stays for ever.
    for key in redis.command(&["KEYS", "*"]).unwrap().lines() {
        assert!(redis.command(&["PTTL", key]).unwrap().parse::<i64>().unwrap() > 0, "{key}");
    }
}

#[test]
fn answers_tell_what_is_left_over_all_proxies() {
    let redis = Redis::start().unwrap();
    let settings = json!({"addresses": [redis.address().to_string()]});
    run(async {
        for algorithm in ["sliding-window", "token-bucket"] {
            let fields = json!({"algorithm": algorithm, "ietf_headers": true});
            let fleet = Proxy::fleet(2, &config(3, "300s", settings.clone(), fields));
            for (proxy, remaining) in [(0, "2"), (1, "1"), (0, "0")] {
                let end = fleet[proxy].request().await;
                assert_eq!(end.status, 200);
                assert_eq!(text(&end.headers["ratelimit-remaining"]), remaining, "{algorithm}");
                assert_eq!(text(&end.headers["ratelimit-policy"]), "\"limit\";q=3;w=300");
            }
            let end = fleet[1].request().await;
            assert_eq!(end.status, 429);
            let number = |name: &str| text(&end.headers[name]).parse::<u64>().unwrap();
            let longest = if algorithm == "token-bucket" { 100 } else { 300 };
            assert!((longest - 60..=longest).contains(&number("retry-after")), "{algorithm}: {end:?}");
            assert!(number("ratelimit-reset") > 0);
            let ietf = text(&end.headers["ratelimit"]);
            let more: u64 = ietf.strip_prefix("\"limit\";r=0;t=").unwrap().parse().unwrap();
            assert!(more > 0 && number("retry-after") >= more, "{ietf}");
            // Another client has a limit of its own.
            assert_eq!(fleet[1].request_of("192.0.2.2").await.status, 200);
        }
    });
}

#[test]
fn what_was_used_comes_back_when_its_time_has_passed() {
    let redis = Redis::start().unwrap();
    let settings = json!({"addresses": [redis.address().to_string()]});
    run(async {
        for fields in [json!({}), json!({"algorithm": "token-bucket", "burst": 2})] {
            let proxy = Proxy::new(&config(2, "400ms", settings.clone(), fields.clone()));
            assert_eq!(proxy.status().await, 200);
            assert_eq!(proxy.status().await, 200);
            crate::fleet::eventually("a refusal or a return", async || proxy.status().await == 200).await;
        }
    });
}

#[test]
fn a_changed_limit_keeps_the_counts() {
    let redis = Redis::start().unwrap();
    let settings = json!({"addresses": [redis.address().to_string()]});
    run(async {
        for algorithm in ["sliding-window", "token-bucket"] {
            let proxy =
                |limit| Proxy::new(&config(limit, "1h", settings.clone(), json!({"algorithm": algorithm})));
            assert_eq!(at_once(&[proxy(10)], 8).await, 8, "{algorithm}");
            // A bucket counts what comes back meanwhile, and rounds to the client's disadvantage.
            let more = at_once(&[proxy(30)], 40).await;
            assert!((21..=23).contains(&more), "{algorithm}: {more}");
            let end = proxy(5).request().await;
            assert_eq!((end.status, text(&end.headers["ratelimit-remaining"])), (429, "0"), "{algorithm}");
        }
    });
}

#[test]
fn keys_are_of_one_length_and_begin_with_the_prefix() {
    let redis = Redis::start().unwrap();
    let settings = json!({"addresses": [redis.address().to_string()], "key_prefix": "shop", "database": 3});
    run(async {
        let proxy = Proxy::new(&config(5, "1h", settings, json!({})));
        for client in ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"] {
            assert_eq!(proxy.request_of(client).await.status, 200);
        }
    });
    let keys = redis.command(&["-n", "3", "KEYS", "*"]).unwrap();
    assert_eq!(keys.lines().count(), 3, "{keys}");
    assert!(keys.lines().all(|key| key.len() == "shop:".len() + 32 && key.starts_with("shop:")), "{keys}");
}

#[test]
fn a_password_is_read_from_a_file_at_each_connection() {
    let redis = Redis::with(&["--requirepass", "first"]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "wrong\n").unwrap();
    let settings = json!({"addresses": [redis.address().to_string()], "password": {"file": file}});
    run(async {
        let proxy = Proxy::new(&config(5, "1h", settings, json!({})));
        assert_eq!(proxy.status().await, 503);
        std::fs::write(&file, "first\n").unwrap();
        crate::fleet::eventually("a connection", async || proxy.status().await == 200).await;
    });
}

#[test]
fn a_cluster_counts_as_one_server_does_and_survives_moved_keys() {
    let mut cluster = RedisCluster::start().unwrap();
    // It is enough to know one node.
    let settings = json!({"addresses": [cluster.addresses()[0]], "mode": "cluster"});
    run(async {
        let fleet = Proxy::fleet(3, &config(100, "1h", settings, json!({})));
        assert_eq!(at_once(&fleet, 1000).await, 100);
        // Scripts are forgotten, and clients are spread over all nodes.
        for node in cluster.nodes() {
            node.command(&["SCRIPT", "FLUSH"]).unwrap();
        }
        for number in 0..50 {
            let client = format!("198.51.100.{number}");
            assert_eq!(fleet[number % 3].request_of(&client).await.status, 200, "{client}");
        }
        for node in cluster.nodes() {
            assert_ne!(node.command(&["DBSIZE"]).unwrap(), "0");
        }
        assert_eq!(at_once(&fleet, 10).await, 0);
    });
}
