//! Commands of people, and ways around the steps.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use signalbox_tests::control_plane::send;
use signalbox_tests::{Proxy, eventually, get};

use super::fleet::{DEADLINE, Fleets, policy, shop};
use crate::fixture::{respond, with};

/// A policy whose steps nobody ends but a person: there is no traffic in these tests.
fn by_hand() -> Value {
    policy("1h").as_object().map(|fields| with(json!({"step_deadline": "2h"}), &json!(fields))).unwrap()
}

fn canaries(rollout: &Value) -> u64 {
    rollout["counts"]["assigned"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_person_leads_a_rollout_from_step_to_step_and_takes_it_back() {
    let fleets = Fleets::start(4, 0, &by_hand()).await;
    let api = fleets.api();
    let first = api.put("routes", "r", &respond("/r", "first")).await.unwrap();
    fleets.until_serving(first, 1).await;
    let canary = fleets.serving(first).await.remove(0);
    let shown = api.proxy(&canary).await.unwrap();
    assert_eq!(shown["revision"]["assigned_because"], "canary", "{shown}");
    assert_eq!(fleets.bodies("/r").await.iter().filter(|body| *body == "first").count(), 1);

    // Paused, it still obeys; and it is promoted step by step.
    for (action, state) in [("pause", "paused"), ("resume", "running")] {
        let answer = fleets.command(first, action).await;
        assert_eq!((answer.status, &answer.body["state"]), (StatusCode::OK, &state.into()), "{answer}");
        let again = fleets.command(first, action).await;
        assert_eq!((again.status, &again.body["state"]), (StatusCode::CONFLICT, &state.into()), "{again}");
    }
    let answer = fleets.command(first, "promote").await.success().unwrap();
    assert_eq!(canaries(&answer.body), 2, "{answer}");
    fleets.until_serving(first, 2).await;
    assert!(fleets.serving(first).await.contains(&canary), "nobody leaves as the step grows");
    fleets.command(first, "promote").await.success().unwrap();
    fleets.until_serving(first, 4).await;
    fleets.command(first, "promote").await.success().unwrap();
    let answer = fleets.command(first, "promote").await.success().unwrap();
    assert_eq!(answer.body["state"], "succeeded", "{answer}");

    // The next one is aborted: the canary goes back, and the fleet is held.
    let second = api.put("routes", "r", &respond("/r", "second")).await.unwrap();
    fleets.until_serving(second, 1).await;
    let answer = fleets.command(second, "abort").await.success().unwrap();
    assert_eq!(answer.body["state"], "aborted", "{answer}");
    fleets.until_serving(first, 4).await;
    assert_eq!(fleets.bodies("/r").await, ["first"; 4]);
    let events = answer.body["events"].as_array().unwrap();
    let last = events.last().unwrap();
    assert_eq!((&last["actor"], &last["code"]), (&"admin".into(), &"operator".into()), "{answer}");
    let status = api.get("/fleets/edge/status").await.unwrap();
    assert_eq!((&status["stable"], &status["candidate"]), (&first.into(), &Value::Null), "{status}");
    assert_eq!(status["held_by"]["id"], format!("{second}-edge"), "{status}");
    // The same content does not begin by itself again, and a retry does.
    let again = api.put("upstreams", "u", &json!({"targets": []})).await.unwrap();
    fleets.until_serving(again, 1).await;
    fleets.command(again, "abort").await.success().unwrap();
    let answer = fleets.command(again, "retry").await.success().unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    let retried = super::fleet::until_rollout(api, &format!("{again}-edge~2"), "running").await;
    assert_eq!(retried["revision"], again);

    // A revert takes the changes back by a new revision, which has the stable content: it is there at once.
    super::fleet::command(api, &format!("{again}-edge~2"), "revert").await.success().unwrap();
    fleets.until_rollout(again + 1, "succeeded").await;
    fleets.until_serving(again + 1, 4).await;
    assert_eq!(fleets.bodies("/r").await, ["first"; 4]);
    assert_eq!(api.get("/routes/r").await.unwrap()["respond"]["body"], "first");
    assert_eq!(api.call(Method::GET, "/upstreams/u", None).await.unwrap().status, StatusCode::NOT_FOUND);
    let audit = api.get("/audit").await.unwrap_or_default();
    assert!(audit.to_string().contains("a test wants it") || audit.is_null(), "{audit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn commands_that_cannot_be_are_refused_with_the_reason() {
    let fleets = Fleets::start(1, 1, &by_hand()).await;
    let api = fleets.api();
    let revision = api.put("routes", "r", &respond("/r", "r")).await.unwrap();
    fleets.until_rollout(revision, "running").await;
    let call = async |path: &str, body: &Value| api.call(Method::POST, path, Some(body)).await.unwrap();
    let reason = json!({"reason": "x"});
    let unknown = call("/rollouts/9999-edge/abort", &reason).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND, "{unknown}");
    let empty = call(&format!("/rollouts/{revision}-edge/abort"), &json!({"reason": " "})).await;
    assert_eq!((empty.status, empty.fields()), (StatusCode::UNPROCESSABLE_ENTITY, vec!["reason"]));
    let immediate = call(&format!("/rollouts/{revision}-core/abort"), &reason).await;
    assert_eq!(immediate.status, StatusCode::CONFLICT, "{immediate}");
    let approved = fleets.command(revision, "approve").await;
    assert_eq!((approved.status, &approved.body["state"]), (StatusCode::CONFLICT, &"running".into()));
    // Whoever writes around the steps must say why.
    let put = async |query: &str| {
        let request = api.request(Method::PUT, &format!("/routes/r?{query}"));
        send(request.json(&respond("/r", query))).await.unwrap()
    };
    for query in [
        "rollout=emergency",
        "rollout=break-glass",
        "rollout=",
        "rollout=now",
        "wait_for=",
        "wait=1s&wait_for=x",
    ] {
        let refused = put(query).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{query}: {refused}");
    }
    assert_eq!(api.head().await.unwrap(), revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn break_glass_reaches_all_at_once_and_an_emergency_one_canary_first() {
    let fleets = Fleets::start(3, 0, &by_hand()).await;
    let api = fleets.api();
    let urgent = async |mode: &str, body: &str| {
        let request = api.request(Method::PUT, &format!("/routes/r?rollout={mode}"));
        let request = request.header("x-signalbox-reason", "the shop is down").json(&respond("/r", body));
        send(request).await.unwrap().success().unwrap()
    };
    // A rollout under way makes room.
    let slow = api.put("routes", "r", &respond("/r", "slow")).await.unwrap();
    fleets.until_serving(slow, 1).await;
    let answer = urgent("break-glass", "at once").await;
    let revision = answer.revision().unwrap();
    assert_eq!(answer.header("signalbox-rollout"), Some(&*format!("{revision}-edge")));
    fleets.until_serving(revision, 3).await;
    assert_eq!(fleets.bodies("/r").await, ["at once"; 3]);
    let rollout = fleets.until_rollout(revision, "running|baking|succeeded").await;
    assert_eq!(rollout["strategy"], "break-glass", "{rollout}");
    assert!(rollout["events"].to_string().contains("the shop is down"), "{rollout}");
    fleets.until_rollout(slow, "superseded").await;

    let revision = urgent("emergency", "soon").await.revision().unwrap();
    fleets.until_serving(revision, 1).await;
    fleets.until_serving(revision, 3).await;
    let rollout = fleets.until_rollout(revision, "baking|succeeded").await;
    assert_eq!(rollout["strategy"], "emergency", "{rollout}");
    let steps: Vec<_> = rollout["steps"].as_array().unwrap().iter().map(|step| &step["proxies"]).collect();
    assert_eq!(steps, [1, 3], "{rollout}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn in_a_freeze_window_nothing_goes_forward_and_everything_can_be_taken_back() {
    let fleets = Fleets::start(2, 0, &by_hand()).await;
    let api = fleets.api();
    let begun = api.put("routes", "r", &respond("/r", "begun")).await.unwrap();
    fleets.until_serving(begun, 1).await;
    // This window is always open, because another one begins each minute before the last one ends.
    let window = json!({"cron": "* * * * *", "for": "2m", "timezone": "Asia/Shanghai"});
    let frozen = with(by_hand(), &json!({"freeze": [window]}));
    api.put("fleets", "edge", &json!({"rollout": frozen})).await.unwrap();
    let mut refused = fleets.command(begun, "pause").await;
    let is_refused = eventually(DEADLINE, async || {
        refused = fleets.command(begun, "promote").await;
        refused.status == StatusCode::CONFLICT
    });
    assert!(is_refused.await && refused.to_string().contains("a freeze window is open"), "{refused}");
    assert_eq!(fleets.bodies("/r").await.iter().filter(|body| *body == "begun").count(), 1);
    let aborted = fleets.command(begun, "abort").await.success().unwrap();
    assert_eq!(aborted.body["state"], "aborted", "{aborted}");
    fleets.until_serving(begun, 0).await;

    let waits = api.put("routes", "r", &respond("/r", "waits")).await.unwrap();
    let mut reason = Value::Null;
    let is_told = eventually(DEADLINE, async || {
        reason = fleets.until_rollout(waits, "waiting").await["reason"]["text"].take();
        reason == "A freeze window is open"
    });
    assert!(is_told.await, "{reason}");
    let request = api.request(Method::PUT, "/routes/r?rollout=break-glass");
    let request = request.header("x-signalbox-reason", "the shop is down").json(&respond("/r", "urgent"));
    let urgent = send(request).await.unwrap().success().unwrap().revision().unwrap();
    fleets.until_serving(urgent, 2).await;
    assert_eq!(fleets.bodies("/r").await, ["urgent"; 2]);
    // Without the window, what waits goes on as soon as the urgent revision is proven.
    api.put("fleets", "edge", &json!({"rollout": by_hand()})).await.unwrap();
    let later = api.put("routes", "r", &respond("/r", "later")).await.unwrap();
    fleets.until_rollout(later, "waiting").await;
    fleets.until_rollout(urgent, "baking").await;
    fleets.command(urgent, "promote").await.success().unwrap();
    fleets.until_serving(later, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_proxy_that_connects_during_a_rollout_takes_no_part_in_it() {
    let fleets = Fleets::start(2, 0, &by_hand()).await;
    let api = fleets.api();
    let revision = api.put("routes", "r", &respond("/r", "r")).await.unwrap();
    fleets.until_serving(revision, 1).await;
    let builder = Proxy::builder().control_plane(&fleets.control_plane).fleet("edge");
    let late = builder.node_id("edge-late").start().await.unwrap();
    let mut because = Value::Null;
    for expected in ["newcomer", "stable"] {
        let is_told = eventually(DEADLINE, async || {
            because = api.proxy("edge-late").await.unwrap_or_default()["revision"]["assigned_because"].take();
            because == expected
        });
        assert!(is_told.await, "{because} instead of {expected}");
        assert_eq!(get(late.http(), "a", "/shop").await.unwrap().status, StatusCode::OK);
        assert_eq!(get(late.http(), "a", "/r").await.unwrap().status, StatusCode::NOT_FOUND);
        let _ = fleets.command(revision, "abort").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_policy_begins_and_ends_without_a_jump() {
    let fleets = Fleets::start(3, 0, &by_hand()).await;
    let api = fleets.api();
    let tried = api.put("routes", "r", &respond("/r", "tried")).await.unwrap();
    fleets.until_serving(tried, 1).await;
    // Without the policy the newest revision reaches all, also later ones.
    let head = api.delete("fleets", "edge").await.unwrap();
    fleets.until_serving(head, 3).await;
    assert_eq!(fleets.bodies("/r").await, ["tried"; 3]);
    let head = api.put("routes", "r", &respond("/r", "at once")).await.unwrap();
    api.wait(head, "edge").await.unwrap();
    assert_eq!(fleets.bodies("/r").await, ["at once"; 3]);
    // With it again, what is written together with it is rolled out.
    let document = json!([
        {"kind": "fleet", "name": "edge", "rollout": by_hand()},
        {"kind": "route", "name": "r", "match": {"paths": [{"prefix": "/r"}]}, "respond": {"body": "slowly"}},
    ]);
    let slowly = api.apply(&document).await.unwrap();
    fleets.until_serving(slowly, 1).await;
    assert_eq!(fleets.bodies("/r").await.iter().filter(|body| *body == "at once").count(), 2);
    let revision = api.put("routes", "shop", &shop("shop")).await.unwrap();
    assert_eq!(revision, slowly, "nothing differs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_write_waits_for_the_first_step_and_a_script_for_the_end() {
    let fleets = Fleets::start(2, 0, &by_hand()).await;
    let api = fleets.api();
    let put = async |query: &str, body: &str| {
        let request = api.request(Method::PUT, &format!("/routes/r?{query}")).json(&respond("/r", body));
        send(request).await.unwrap()
    };
    let written = put("wait=20s", "one").await.success().unwrap();
    let revision = written.revision().unwrap();
    assert_eq!(fleets.serving(revision).await.len(), 1, "the canary serves it");
    let wait = async |query: &str| {
        api.call(Method::GET, &format!("/rollouts/{revision}-edge/wait?{query}"), None).await.unwrap()
    };
    let step = wait("for=step&timeout=20s").await;
    assert_eq!(step.status, StatusCode::OK, "{step}");
    let late = wait("for=succeeded&timeout=100ms").await;
    assert_eq!(late.status, StatusCode::GATEWAY_TIMEOUT, "{late}");
    fleets.command(revision, "abort").await.success().unwrap();
    let ended = wait("timeout=20s").await;
    assert_eq!(ended.status, StatusCode::CONFLICT, "{ended}");
    assert_eq!(ended.body["rollouts"][0]["state"], "aborted", "{ended}");
    // A write that waits for the end is told that it was taken back.
    let waiting = put("wait=60s&wait_for=succeeded", "two");
    let aborting = async {
        fleets.until_rollout(revision + 1, "running").await;
        fleets.command(revision + 1, "abort").await.success().unwrap()
    };
    let (told, _) = tokio::join!(waiting, aborting);
    assert_eq!(told.status, StatusCode::CONFLICT, "{told}");
    assert_eq!(told.header("signalbox-revision"), Some(&*(revision + 1).to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_revert_takes_back_what_the_fleet_got_and_nothing_else() {
    let mut fleets =
        Fleets::start(2, 1, &with(by_hand(), &json!({"on_failure": "revert", "gates": {"lost": 0}}))).await;
    let api = fleets.api().clone();
    let stable = api.head().await.unwrap();
    let of_core = with(respond("/c", "core"), &json!({"fleets": ["core"]}));
    let document = json!([
        with(of_core, &json!({"kind": "route", "name": "c"})),
        with(respond("/r", "new"), &json!({"kind": "route", "name": "r"})),
        {"kind": "fleet", "name": "edge", "description": "another", "rollout": api.get("/fleets/edge").await.unwrap()["rollout"]},
    ]);
    let revision = api.apply(&document).await.unwrap();
    fleets.until_serving(revision, 1).await;
    let canary = fleets.serving(revision).await.remove(0);
    fleets.edge.iter_mut().find(|proxy| proxy.id() == canary).unwrap().kill9();
    fleets.until_rollout(revision, "failed").await;
    fleets.until_rollout(revision + 1, "succeeded").await;
    let missing = api.call(Method::GET, "/routes/r", None).await.unwrap();
    assert_eq!(missing.status, StatusCode::NOT_FOUND, "{missing}");
    assert_eq!(api.get("/routes/c").await.unwrap()["respond"]["body"], "core");
    assert_eq!(api.get("/fleets/edge").await.unwrap()["description"], "another");
    let summary = api.get(&format!("/revisions/{}", revision + 1)).await.unwrap();
    assert_eq!(summary["author"], "signalbox", "{summary}");
    assert!(stable < revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_urgent_write_for_another_fleet_brings_no_failed_change_to_this_one() {
    let fleets = Fleets::start(2, 1, &by_hand()).await;
    let api = fleets.api();
    let stable = api.head().await.unwrap();
    let failed = api.put("routes", "r", &respond("/r", "bad")).await.unwrap();
    fleets.until_serving(failed, 1).await;
    fleets.command(failed, "abort").await.success().unwrap();
    fleets.until_serving(stable, 2).await;
    let of_core = with(respond("/c", "core"), &json!({"fleets": ["core"]}));
    let request = api.request(Method::PUT, "/routes/c?rollout=break-glass&wait=20s");
    let request = request.header("x-signalbox-reason", "core is down").json(&of_core);
    let written = send(request).await.unwrap().success().unwrap();
    // It waits for the fleet that gets it, and for no other.
    let revision = written.revision().unwrap();
    assert_eq!(written.header("signalbox-rollout"), Some(&*format!("{revision}-core")));
    let decided = fleets.until_rollout(revision, "aborted").await;
    assert_eq!(decided["reason"]["code"], "same_as_failed", "{decided:#}");
    assert_eq!(fleets.serving(stable).await.len(), 2);
}
