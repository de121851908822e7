//! Approval: of whom, and of what a person has seen.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use signalbox_tests::Api;

use super::fleet::{Fleets, command, policy, until_rollout};
use crate::fixture::{respond, with};

async fn second_person(api: &Api) -> Api {
    let token = json!({"name": "second", "role": "editor"});
    let made = api.call(Method::POST, "/tokens", Some(&token)).await.unwrap().success().unwrap();
    api.with_token(made.body["token"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_person_approves_what_they_saw_under_any_id_and_not_what_they_wrote() {
    let by_hand = json!({"step_deadline": "2h", "approval": {"required": true}});
    let fleets = Fleets::start(1, 1, &with(policy("1h"), &by_hand)).await;
    let api = fleets.api();
    let second = second_person(api).await;
    let seen = api.put("routes", "r", &respond("/r", "seen")).await.unwrap();
    let waiting = fleets.until_rollout(seen, "waiting").await;
    assert_eq!(waiting["proxies_url"], format!("/api/v1/rollouts/{seen}-edge/proxies"), "{waiting}");
    assert_eq!(waiting["steps"][0]["started_at"], Value::Null, "{waiting}");
    let own = fleets.command(seen, "approve").await;
    assert_eq!((own.status, &own.body["revision"]), (StatusCode::FORBIDDEN, &seen.into()), "{own}");

    // A write that concerns only the other fleet gives the rollout that waits another id.
    let elsewhere = with(respond("/c", "c"), &json!({"fleets": ["core"]}));
    let later = api.put("routes", "c", &elsewhere).await.unwrap();
    let superseded = fleets.until_rollout(seen, "superseded").await;
    let successor = json!({"id": format!("{later}-edge"), "same_content": true});
    assert_eq!(superseded["superseded_by"], successor, "{superseded}");
    let approved = command(&second, &format!("{seen}-edge"), "approve").await.success().unwrap();
    assert_eq!(approved.body["id"], format!("{later}-edge"), "{approved}");
    let step = format!("/rollouts/{seen}-edge/wait?for=step&timeout=60s");
    let running = api.call(Method::GET, &step, None).await.unwrap().success().unwrap();
    assert_eq!((&running.body["id"], &running.body["state"]), (&approved.body["id"], &"running".into()));
    assert!(running.body["steps"][0]["started_at"].is_string(), "{running}");

    // Other content is not what the person saw.
    let third = api.put("routes", "r", &respond("/r", "third")).await.unwrap();
    fleets.until_rollout(third, "waiting").await;
    let fourth = api.put("routes", "r", &respond("/r", "fourth")).await.unwrap();
    until_rollout(api, &format!("{third}-edge"), "superseded").await;
    let refused = command(&second, &format!("{third}-edge"), "approve").await;
    assert_eq!(refused.status, StatusCode::CONFLICT, "{refused}");
    let successor = json!({"id": format!("{fourth}-edge"), "same_content": false});
    assert_eq!(refused.body["superseded_by"], successor, "{refused}");
}
