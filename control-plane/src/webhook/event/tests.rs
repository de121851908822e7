use std::sync::Arc;

use signalbox_config::{Kind, Resource};

use super::*;
use crate::board::{RolloutCounts, RolloutReason};
use crate::health_report::{Incident, Resource as Concerned, Rule};

fn webhook(fields: &Value) -> Webhook {
    let mut spec = json!({"name": "w", "url": "http://a", "events": ["revision", "rollout", "incident"]});
    for (field, value) in fields.as_object().unwrap() {
        spec[field] = value.clone();
    }
    match Resource::parse(Kind::Webhook, spec, &signalbox_plugin::Registry::default()).unwrap().body() {
        signalbox_config::Body::Webhook(webhook) => (**webhook).clone(),
        other => panic!("{other:?}"),
    }
}

fn incident(fleet: Option<&str>, penalty: u32) -> IncidentChange {
    IncidentChange::Opened(Incident {
        rule: Rule::Upstream,
        resource: Concerned { kind: "upstream".into(), name: "users".into() },
        fleet: fleet.map(Into::into),
        sentence: "Upstream `users` <fails> & fails".into(),
        last: 0,
        since: 1_700_000_000,
        evidence: json!({"share": 0.5}),
        actions: vec!["GET /api/v1/upstreams/users".into()],
        penalty,
    })
}

fn reason(code: &str, text: &str) -> RolloutReason {
    RolloutReason { code: code.into(), text: text.into(), resource: None, route: None }
}

fn rollout(strategy: &str, state: RolloutState, events: &[(i64, RolloutState, &str)]) -> Rollout {
    let event = |(at, state, code): &(i64, RolloutState, &str)| RolloutEvent {
        at: rfc3339(*at),
        state: *state,
        actor: (*code == "operator").then(|| "alice".to_owned()),
        reason: reason(code, "because"),
    };
    Rollout {
        id: "7-edge".into(),
        revision: 7,
        base_revision: 6,
        fleet: "edge".into(),
        stable_revision: 6,
        generation: 1,
        state,
        strategy: strategy.into(),
        step: 0,
        steps: Vec::new(),
        bake: None,
        gates: Vec::new(),
        counts: RolloutCounts::default(),
        proxies_url: String::new(),
        started_at: rfc3339(1_000_000),
        finished_at: None,
        propagation_ms: None,
        reason: Some(reason("gate_failed", "p1 rejected it")),
        superseded_by: None,
        revert: None,
        events: events.iter().map(event).collect(),
        fault: None,
    }
}

/// The names of the events of a rollout that are new.
fn told(rollout: &Rollout, since: i64, seen: &mut Vec<String>) -> Vec<String> {
    let mut is_new = |key: &str| {
        let is_new = !seen.iter().any(|known| known == key);
        seen.push(key.to_owned());
        is_new
    };
    let events = Event::of_rollout("e", rollout, since, &mut is_new);
    events.iter().map(|event| event.name().to_owned()).collect()
}

#[test]
fn what_happens_to_a_progressive_rollout_is_told_once_and_in_order() {
    use RolloutState::{Baking, Held, Paused, Running, Succeeded, Waiting};
    let mut happened = vec![(1, Waiting, "written"), (2, Waiting, "needs_approval"), (3, Running, "started")];
    let mut seen = Vec::new();
    let first = told(&rollout("progressive", Running, &happened), 0, &mut seen);
    assert_eq!(first, ["rollout.waiting", "rollout.started"]);
    assert!(told(&rollout("progressive", Running, &happened), 0, &mut seen).is_empty());
    happened.extend([
        (4, Running, "member_replaced"),
        (5, Running, "advanced"),
        (6, Paused, "operator"),
        (7, Running, "operator"),
        (8, Held, "inconclusive"),
        (9, Baking, "advanced"),
        (10, Succeeded, "proven"),
    ]);
    let then = told(&rollout("progressive", Succeeded, &happened), 0, &mut seen);
    let wanted = ["step", "paused", "command", "held", "baking", "succeeded"];
    assert_eq!(then, wanted.map(|event| format!("rollout.{event}")));
    // A control plane that began only now tells of nothing that was before.
    let late = told(&rollout("progressive", Succeeded, &happened), 9, &mut Vec::new());
    assert_eq!(late, ["rollout.baking", "rollout.succeeded"]);
}

#[test]
fn of_an_immediate_rollout_only_the_end_is_told() {
    use RolloutState::{Failed, Running, Succeeded, Superseded};
    let mut seen = Vec::new();
    for (state, wanted) in [
        (Running, &[][..]),
        (Failed, &["rollout.failed"]),
        (Failed, &[]),
        (Succeeded, &["rollout.succeeded"]),
        (Superseded, &[]),
    ] {
        assert_eq!(told(&rollout("immediate", state, &[]), 0, &mut seen), wanted, "{state:?}");
    }
    let failed = rollout("immediate", Failed, &[]);
    let event = Event::of_rollout("e", &failed, 0, &mut |_| true).remove(0);
    assert_eq!(event.sentence, "The rollout of revision 7 to fleet edge has failed: p1 rejected it");
}

#[test]
fn a_webhook_gets_what_it_asks_for() {
    let failed = rollout("immediate", RolloutState::Failed, &[]);
    let failed = Event::of_rollout("e", &failed, 0, &mut |_| true).remove(0);
    let here = Event::of_incident(&incident(Some("edge"), 40), 0);
    let nowhere = Event::of_incident(&incident(None, 40), 0);
    for (fields, wanted) in [
        (json!({}), [true, true, true]),
        (json!({"enabled": false}), [false, false, false]),
        (json!({"events": ["revision"]}), [false, false, false]),
        (json!({"events": ["rollout"]}), [true, false, false]),
        (json!({"fleets": ["edge"]}), [true, true, true]),
        (json!({"fleets": ["core"]}), [false, false, true]),
        (json!({"rollout_events": ["held"]}), [false, true, true]),
        (json!({"rollout_events": ["held", "failed"]}), [true, true, true]),
        (json!({"min_penalty": 40}), [true, true, true]),
        (json!({"min_penalty": 41}), [true, false, false]),
    ] {
        let webhook = webhook(&fields);
        let found = [&failed, &here, &nowhere].map(|event| event.is_wanted_by(&webhook, 7));
        assert_eq!(found, wanted, "{fields}");
    }
}

#[test]
fn bodies_are_json_or_a_message() {
    let event = Event::of_incident(&incident(Some("edge"), 40), 1_700_000_100_000_000);
    let json = webhook(&json!({}));
    let body: Value = serde_json::from_str(&event.body(&json)).unwrap();
    assert_eq!(body["type"], "incident.opened");
    assert_eq!(body["timestamp"], "2023-11-14T22:15:00Z");
    assert_eq!(body["id"], event.id_for(&json.name));
    assert_eq!(body["data"]["rule"], "upstream");
    assert_eq!(body["data"]["since"], "2023-11-14T22:13:20Z");
    assert_eq!(body["data"]["resource"], json!({"kind": "upstream", "name": "users"}));
    assert_eq!(body["data"]["actions"][0], "GET /api/v1/upstreams/users");
    let slack: Value = serde_json::from_str(&event.body(&webhook(&json!({"format": "slack"})))).unwrap();
    assert_eq!(slack, json!({"text": "Incident: Upstream `users` &lt;fails&gt; &amp; fails"}));
}

#[test]
fn ids_are_the_same_for_each_attempt_and_differ_by_webhook_and_event() {
    let (opened, again) =
        (Event::of_incident(&incident(None, 1), 1), Event::of_incident(&incident(None, 9), 2));
    let IncidentChange::Opened(incident) = incident(None, 1) else { panic!() };
    let closed = Event::of_incident(&IncidentChange::Closed(incident), 3);
    let [one, two]: [Name; 2] = ["one", "two"].map(|name| name.parse().unwrap());
    assert_eq!(opened.id_for(&one), again.id_for(&one));
    assert_ne!(opened.id_for(&one), opened.id_for(&two));
    assert_ne!(opened.id_for(&one), closed.id_for(&one));
}

#[test]
fn what_is_large_is_left_out() {
    let IncidentChange::Opened(mut incident) = incident(None, 1) else { panic!() };
    incident.sentence = "x".repeat(100_000);
    incident.evidence = json!({"text": "y".repeat(100_000)});
    let event = Event::of_incident(&IncidentChange::Opened(incident), 0);
    assert_eq!(event.data["evidence"], Value::Null);
    assert!(event.sentence.len() < MAX_SENTENCE + 10);
}

#[test]
fn a_revision_says_what_it_changed() {
    let types = signalbox_plugin::Registry::default();
    let mut published = Published::empty("e".into(), &types);
    let summary = |number, change_count, message: &str| RevisionSummary {
        number,
        author: "alice".into(),
        message: message.into(),
        committed_at_us: 0,
        change_count,
    };
    let key = |text: &str| text.parse::<signalbox_config::ResourceKey>().unwrap();
    let changed: Arc<[_]> = ["route/a", "route/b", "upstream/u"].map(key).into();
    published.history.push(1, changed);
    published.history.push(2, [key("route/a")].into());
    let event = Event::of_revision(&published, &summary(1, 3, "Move <users>"));
    assert_eq!(event.sentence, "Revision 1 of alice has 3 changes (2 routes, 1 upstream): Move <users>");
    assert_eq!(event.data["changes_by_kind"], json!({"route": 2, "upstream": 1}));
    let event = Event::of_revision(&published, &summary(2, 1, ""));
    assert_eq!(event.sentence, "Revision 2 of alice has 1 change (1 route)");
    let webhook = webhook(&json!({}));
    assert!(
        event.is_wanted_by(&webhook, 2) && !event.is_wanted_by(&webhook, 3),
        "it is older than the webhook"
    );
    let unknown = Event::of_revision(&published, &summary(9, 5, ""));
    assert_eq!(unknown.sentence, "Revision 9 of alice has 5 changes");
}
