//! Faults that a canary shows, beside an immediate rollout of the same change.

use std::time::Duration;

use serde_json::{Value, json};
use signalbox_tests::{Backend, Behaviour, Load, free_port};

use super::fleet::{DEADLINE, Fleets, policy, shop};
use crate::fixture::{respond, upstream, with};

/// The soak of steps that are expected to fail: longer than the detection takes on a busy machine.
const SOAK: &str = "60s";

/// Applies a change that hurts `/shop`, and expects that it is taken back from `edge` by this gate. Returns the rollout.
async fn expect_taken_back(fleets: &Fleets, change: (&str, &str, Value), gate: &str) -> Value {
    let edge = fleets.load(&fleets.edge, "/shop/a").await;
    let core = fleets.load(&fleets.core, "/shop/a").await;
    let each = 20 * fleets.edge.len() as u64;
    edge.wait_for(each).await.unwrap();
    core.wait_for(each).await.unwrap();
    assert_eq!((edge.failed(), core.failed()), (0, 0));
    let stable = fleets.api().head().await.unwrap();

    let (kinds, name, spec) = change;
    let revision = fleets.api().put(kinds, name, &spec).await.unwrap();
    let rollout = fleets.until_rollout(revision, "failed").await;
    let failing: Vec<&Value> =
        rollout["gates"].as_array().unwrap().iter().filter(|gate| gate["verdict"] == "failing").collect();
    assert!(failing.iter().any(|failing| failing["name"] == gate), "{gate}: {rollout:#}");
    assert_eq!(rollout["reason"]["code"], "gate_failed", "{rollout:#}");
    assert_eq!(rollout["stable_revision"], stable);
    fleets.until_serving(stable, fleets.edge.len()).await;
    // From now on nobody suffers at the edge.
    let suffered = finish(edge, core).await;
    let after = fleets.load(&fleets.edge, "/shop/a").await;
    after.wait_for(each).await.unwrap();
    assert_eq!(after.finish().failed, 0);
    assert!(
        suffered.0 * 2 < suffered.1,
        "{} requests suffered by the progressive rollout, {} by the immediate one",
        suffered.0,
        suffered.1
    );
    rollout
}

async fn finish(edge: Load, core: Load) -> (u64, u64) {
    (edge.finish().failed, core.finish().failed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_a_route_are_taken_back() {
    let fleets = Fleets::start(4, 4, &policy(SOAK)).await;
    let api = fleets.api();
    let dead = json!({"targets": [{"address": format!("127.0.0.1:{}", free_port())}]});
    api.put("upstreams", "dead", &dead).await.unwrap();
    let head = api.head().await.unwrap();
    fleets.promote(head).await;
    let rollout = expect_taken_back(&fleets, ("routes", "shop", shop("dead")), "errors").await;
    assert!(
        rollout["reason"]["text"].as_str().unwrap().contains("shop")
            || rollout["reason"]["route"] == "shop"
            || rollout["reason"]["route"].is_null(),
        "{rollout:#}"
    );
    let canary = rollout["steps"][0]["proxies"].as_u64();
    assert_eq!(canary, Some(1), "{rollout:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_that_refuses_everybody_is_taken_back() {
    let fleets = Fleets::start(4, 4, &policy(SOAK)).await;
    fleets.api().put("plugins", "key", &json!({"type": "key-auth"})).await.unwrap();
    let head = fleets.api().head().await.unwrap();
    fleets.promote(head).await;
    let with_key = with(shop("shop"), &json!({"plugins": ["key"]}));
    expect_taken_back(&fleets, ("routes", "shop", with_key), "not_found").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_answers_of_an_upstream_are_taken_back() {
    let policy = with(policy(SOAK), &json!({"gates": {"coverage": {"min_requests": 10}}}));
    let fleets = Fleets::start(4, 0, &policy).await;
    let slow = Backend::start("slow", Behaviour::Slow(Duration::from_millis(400))).unwrap();
    let load = fleets.load(&fleets.edge, "/shop/a").await;
    load.wait_for(200).await.unwrap();
    let stable = fleets.api().head().await.unwrap();
    let revision = fleets.api().put("upstreams", "shop", &upstream(&[&slow])).await.unwrap();
    let rollout = fleets.until_rollout(revision, "failed").await;
    let gates = rollout["gates"].as_array().unwrap();
    assert!(
        gates.iter().any(|gate| gate["name"] == "latency" && gate["verdict"] == "failing"),
        "{rollout:#}"
    );
    fleets.until_serving(stable, 4).await;
    assert_eq!(load.finish().failed, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_rejected_listener_reaches_one_proxy() {
    let fleets = Fleets::start(3, 0, &policy(SOAK)).await;
    let stable = fleets.api().head().await.unwrap();
    let taken = json!({"address": fleets.backend.address().to_string()});
    let revision = fleets.api().put("listeners", "taken", &taken).await.unwrap();
    let rollout = fleets.until_rollout(revision, "failed").await;
    assert_eq!(rollout["counts"]["rejected"], 1, "{rollout:#}");
    assert!(rollout["reason"]["text"].as_str().unwrap().contains("reject"), "{rollout:#}");
    fleets.until_serving(stable, 3).await;
    fleets.until_in_sync().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_canary_that_is_gone_takes_the_revision_back() {
    let policy = with(policy(SOAK), &json!({"gates": {"lost": 0}}));
    let mut fleets = Fleets::start(3, 0, &policy).await;
    let stable = fleets.api().head().await.unwrap();
    let revision = fleets.api().put("routes", "r", &respond("/r", "r")).await.unwrap();
    fleets.until_serving(revision, 1).await;
    let canary = fleets.serving(revision).await.remove(0);
    let proxy = fleets.edge.iter_mut().find(|proxy| proxy.id() == canary).unwrap();
    proxy.kill9();
    let rollout = fleets.until_rollout(revision, "failed").await;
    let gates = rollout["gates"].as_array().unwrap();
    assert!(gates.iter().any(|gate| gate["name"] == "lost" && gate["verdict"] == "failing"), "{rollout:#}");
    // It comes back with the revision on disk, and gets the stable one at once.
    let proxy = fleets.edge.iter_mut().find(|proxy| proxy.id() == canary).unwrap();
    proxy.start().await.unwrap();
    fleets.until_serving(stable, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_traffic_nothing_goes_on_and_nothing_is_taken_for_success() {
    let policy = with(policy("1s"), &json!({"step_deadline": "4s"}));
    let fleets = Fleets::start(2, 0, &policy).await;
    let revision = fleets.api().put("routes", "r", &respond("/r", "r")).await.unwrap();
    let rollout = fleets.until_rollout(revision, "held").await;
    assert_eq!((&rollout["step"], &rollout["reason"]["code"]), (&0.into(), &"inconclusive".into()));
    assert_eq!(fleets.serving(revision).await.len(), 1);
    fleets.command(revision, "abort").await.success().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_revision_is_proven_and_an_untried_route_holds_it() {
    let policy = with(policy("2s"), &json!({"step_deadline": "60s"}));
    let fleets = Fleets::start(3, 0, &policy).await;
    let shop_load = fleets.load(&fleets.edge, "/shop/a").await;
    let good = with(shop("shop"), &json!({"labels": {"team": "shop"}}));
    let revision = fleets.api().put("routes", "shop", &good).await.unwrap();
    let rollout = fleets.until_rollout(revision, "succeeded").await;
    assert_eq!(rollout["reason"]["code"], "proven", "{rollout:#}");
    let states: Vec<&Value> =
        rollout["steps"].as_array().unwrap().iter().map(|step| &step["state"]).collect();
    assert_eq!(states, ["passed"; 3], "{rollout:#}");

    // A route that others use, and no canary: nothing is known of it, whatever the rest says.
    let unproven = fleets.api().put("routes", "rare", &respond("/rare", "r")).await.unwrap();
    fleets.until_rollout(unproven, "succeeded").await;
    let changed = fleets.api().put("routes", "rare", &respond("/rare", "changed")).await.unwrap();
    fleets.until_serving(changed, 1).await;
    let canary = fleets.serving(changed).await.remove(0);
    let others: Vec<_> =
        fleets.edge.iter().filter(|proxy| proxy.id() != canary).map(|proxy| proxy.http()).collect();
    let rare = Load::on(others).connections(2).pace(Duration::from_millis(50)).request(|_| {
        http::Request::get("/rare").header("host", "a").body(http_body_util::Full::default()).unwrap()
    });
    let rare = rare.start().await.unwrap();
    let coverage = |rollout: &Value| {
        let gates = rollout["gates"].as_array().cloned().unwrap_or_default();
        gates.into_iter().find(|gate| gate["name"] == "coverage" && gate["route"] == "rare")
    };
    let mut last = Value::Null;
    let found = signalbox_tests::eventually(DEADLINE, async || {
        last = fleets.api().get(&format!("/rollouts/{changed}-edge")).await.unwrap();
        coverage(&last).is_some_and(|gate| {
            gate["verdict"] == "inconclusive" && gate["rest"]["requests"].as_u64() > Some(100)
        })
    });
    assert!(found.await, "{last:#}");
    assert_eq!((&last["state"], &last["step"]), (&"running".into(), &0.into()), "{last:#}");
    rare.finish();
    shop_load.finish().assert_flawless(100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_fleet_of_one_proxy_is_compared_with_its_own_past() {
    let fleets = Fleets::start(1, 0, &policy(SOAK)).await;
    let load = fleets.load(&fleets.edge, "/shop/a").await;
    // Reports come every ten seconds while nothing is rolled out. Of these requests, some are in two of them.
    load.wait_for(20 * 25).await.unwrap();
    let stable = fleets.api().head().await.unwrap();
    let dead = json!({"targets": [{"address": format!("127.0.0.1:{}", free_port())}]});
    let revision = fleets.api().put("upstreams", "shop", &dead).await.unwrap();
    let rollout = fleets.until_rollout(revision, "failed").await;
    let text = rollout["reason"]["text"].as_str().unwrap();
    assert!(text.contains("status 500 and above") && text.contains("than before"), "{rollout:#}");
    fleets.until_serving(stable, 1).await;
}
