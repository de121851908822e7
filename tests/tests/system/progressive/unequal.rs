//! Proxies that are unequal, and a change that hurts nobody.

use std::time::Duration;

use serde_json::{Value, json};
use signalbox_tests::{Load, Proxy};

use super::fleet::{Fleets, policy, shop};
use crate::fixture::with;

/// The pace of each proxy's requests, and the number of requests of which one fails: from 0.5 % at one proxy to 12.5 % at another.
const PROXIES: [(Duration, u64); 4] = [
    (Duration::from_millis(25), 200),
    (Duration::from_millis(40), 50),
    (Duration::from_millis(60), 20),
    (Duration::from_millis(90), 8),
];

/// The rollouts of one run; `SIGNALBOX_UNEQUAL_ROLLOUTS` may ask for more.
const ROLLOUTS: u64 = 1;

async fn load(proxy: &Proxy, (pace, one_fails_of): (Duration, u64)) -> Load {
    let request = move |number: u64| {
        let path = if (number + 1).is_multiple_of(one_fails_of) { "/broken" } else { "/shop/a" };
        http::Request::get(path).header("host", "a").body(http_body_util::Full::default()).unwrap()
    };
    Load::on(vec![proxy.http()]).connections(1).pace(pace).request(request).start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_hurts_nobody_is_not_taken_back_from_unequal_proxies() {
    let fleets = Fleets::start(PROXIES.len(), 0, &policy("1s")).await;
    let api = fleets.api();
    let plugin = json!({"name": "broken", "type": "fault", "config": {"abort": {"status": 503}}});
    let broken = json!({
        "name": "broken",
        "match": {"paths": [{"exact": "/broken"}]},
        "plugins": ["broken"],
        "respond": {"body": ""},
    });
    let head = api.apply(&json!({"plugins": [plugin], "routes": [broken]})).await.unwrap();
    fleets.promote(head).await;
    let mut loads = Vec::new();
    for (proxy, what) in fleets.edge.iter().zip(PROXIES) {
        loads.push(load(proxy, what).await);
    }
    // The proxies are compared with their own past, too. Reports come every ten seconds while nothing is rolled out.
    for (load, (pace, _)) in loads.iter().zip(PROXIES) {
        load.wait_for(Duration::from_secs(25).as_millis() as u64 / pace.as_millis() as u64).await.unwrap();
    }
    let rollouts = std::env::var("SIGNALBOX_UNEQUAL_ROLLOUTS").ok();
    for number in 0..rollouts.map_or(ROLLOUTS, |rollouts| rollouts.parse().unwrap()) {
        let harmless = with(shop("shop"), &json!({"labels": {"number": number.to_string()}}));
        let revision = api.put("routes", "shop", &harmless).await.unwrap();
        let rollout: Value = fleets.until_rollout(revision, "succeeded|failed|held").await;
        assert_eq!(rollout["state"], "succeeded", "rollout {number}: {rollout:#}");
    }
}
