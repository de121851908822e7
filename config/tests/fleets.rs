//! The policy of a fleet: what is accepted, its defaults, and the errors, each with its field.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::time::Duration;

use common::parse;
use serde_json::{Value, json};
use signalbox_config::{
    Body, FieldError, Kind, OnFailure, OnInconclusive, OnNewWrite, RateGate, RolloutPolicy, StepSize,
    Strategy, WhenEmpty,
};

fn policy(rollout: &Value) -> RolloutPolicy {
    let resource = parse(Kind::Fleet, json!({"name": "edge", "rollout": rollout}));
    match resource.unwrap_or_else(|errors| panic!("{errors:?}")).body() {
        Body::Fleet(fleet) => fleet.rollout.clone(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(rollout: &Value, wanted: &[&str]) {
    let text = rollout.to_string();
    let errors = parse(Kind::Fleet, json!({"name": "edge", "rollout": rollout})).err().unwrap_or_default();
    let errors: Vec<String> = errors.iter().map(FieldError::to_string).collect();
    let wanted: Vec<String> = wanted.iter().map(|error| format!("rollout.{error}")).collect();
    assert_eq!(errors, wanted, "{text}");
}

fn steps(steps: &Value) -> Value {
    json!({"strategy": "progressive", "steps": steps})
}

#[test]
fn every_field_is_read() {
    let policy = policy(&json!({
        "strategy": "progressive",
        "steps": [
            {"labels": {"zone": "a"}, "soak": "10m"},
            {"count": 3, "soak": "0s"},
            {"percent": 0.5, "min": 2},
            {"percent": 100, "soak": "1m"},
        ],
        "bake": "1h",
        "gates": {
            "errors": {"tolerated_ratio": 2, "floor": 0.01, "confidence": 0.99},
            "latency": {"tolerated_ratio": 3},
            "coverage": {"min_requests": 7},
            "rejected": 4,
            "lost": 5,
            "cpu": {"tolerated_ratio": 6},
        },
        "on_failure": "revert",
        "on_inconclusive": "abort",
        "on_new_write": "supersede",
        "when_empty": "promote",
        "step_deadline": "20m",
        "freeze": [{"cron": "0 18 * * 5", "for": "60h", "timezone": "Asia/Shanghai"}, {"cron": "0 0 1 1 *", "for": "1d"}],
        "approval": {"required": true},
    }));
    assert_eq!(policy.strategy, Strategy::Progressive);
    let sizes: Vec<&StepSize> = policy.steps.iter().map(|step| &step.size).collect();
    let labels = [("zone".into(), "a".into())].into();
    let share = StepSize::Share { millionths: 5000, min: 2 };
    assert_eq!(sizes, [&StepSize::Labels(labels), &StepSize::Count(3), &share, &StepSize::All]);
    let soaks: Vec<u64> = policy.steps.iter().map(|step| step.soak.as_secs()).collect();
    assert_eq!(soaks, [600, 0, 60, 60]);
    assert_eq!(policy.bake, Duration::from_secs(3600));
    let gates = policy.gates;
    assert_eq!(
        (gates.errors.tolerated_ratio, gates.errors.floor, gates.errors.confidence),
        (2.0, 0.01, 0.99)
    );
    assert_eq!((gates.latency.tolerated_ratio, gates.latency.confidence), (3.0, 0.999));
    assert_eq!(gates.not_found.tolerated_ratio, 2.0);
    assert_eq!((gates.min_requests, gates.rejected, gates.lost, gates.cpu_ratio), (7, 4, 5, 6.0));
    assert_eq!(policy.on_failure, OnFailure::Revert);
    assert_eq!(policy.on_inconclusive, OnInconclusive::Abort);
    assert_eq!(policy.on_new_write, OnNewWrite::Supersede);
    assert_eq!(policy.when_empty, WhenEmpty::Promote);
    assert_eq!(policy.step_deadline, Duration::from_secs(1200));
    assert_eq!(policy.freeze[0].zone.as_str(), "Asia/Shanghai");
    assert_eq!(policy.freeze[0].length, Duration::from_secs(60 * 3600));
    assert!(policy.freeze[0].zone.rules().starts_with(b"TZif"));
    assert_eq!(policy.freeze[1].zone.as_str(), "UTC");
    assert!(policy.needs_approval);
}

#[test]
fn what_is_absent_has_its_default() {
    let absent = RolloutPolicy::default();
    assert_eq!(absent.strategy, Strategy::Immediate);
    let progressive = policy(&json!({"strategy": "progressive"}));
    assert_eq!(progressive, RolloutPolicy { strategy: Strategy::Progressive, ..absent.clone() });
    let shares: Vec<&StepSize> = progressive.steps.iter().map(|step| &step.size).collect();
    let share = |percent: u32| StepSize::Share { millionths: percent * 10_000, min: 1 };
    assert_eq!(shares, [&share(10), &share(50), &StepSize::All]);
    assert_eq!(progressive.bake, Duration::from_secs(300));
    let gates = progressive.gates;
    let rate = |gate: RateGate| (gate.tolerated_ratio, gate.floor, gate.confidence);
    assert_eq!(rate(gates.errors), (1.25, 0.001, 0.999));
    assert_eq!(rate(gates.latency), (1.25, 0.002, 0.999));
    assert_eq!(rate(gates.not_found), (2.0, 0.01, 0.999));
    assert_eq!((gates.min_requests, gates.rejected, gates.lost, gates.cpu_ratio), (50, 0, 1, 1.5));
    assert_eq!(policy(&json!({"gates": {}})), absent);
    assert_eq!(policy(&json!({"gates": {"errors": {}, "coverage": {}}})), absent);
    let bare = parse(Kind::Fleet, json!({"name": "edge"})).unwrap();
    let Body::Fleet(fleet) = bare.body() else { panic!("{bare:?}") };
    assert_eq!(fleet.rollout, absent);
}

#[test]
fn steps_must_grow() {
    for (given, wanted) in [
        (json!([{"percent": 0}]), &["steps[0].percent: must be above 0 and at most 100"][..]),
        (json!([{"percent": -1}]), &["steps[0].percent: must be above 0 and at most 100"]),
        (json!([{"percent": 100.5}]), &["steps[0].percent: must be above 0 and at most 100"]),
        (
            json!([{"percent": 10}, {"percent": 10}]),
            &["steps[1].percent: must be more than that of steps[0], 10"],
        ),
        (
            json!([{"percent": 20}, {"count": 5}, {"percent": 12.5}]),
            &["steps[2].percent: must be more than that of steps[0], 20"],
        ),
        (json!([{"count": 3}, {"count": 2}]), &["steps[1].count: must be more than that of steps[0], 3"]),
        (
            json!([{"percent": 100}, {"count": 2}]),
            &["steps[1]: comes after steps[0], which has the whole fleet already"],
        ),
        (
            json!([{"labels": {"zone": "a"}}, {"labels": {"zone": "a", "rack": "1"}}]),
            &["steps[1].labels: adds no proxy to steps[0], whose labels they have too"],
        ),
        (json!([]), &["steps: must not be empty; leave it out for the default steps"]),
        (json!(null), &["steps: must not be null; leave it out for the default steps"]),
        (json!([{}]), &["steps[0]: needs exactly one of percent, count and labels"]),
        (json!([{"percent": 5, "count": 1}]), &["steps[0]: needs exactly one of percent, count and labels"]),
        (json!([{"count": 0}]), &["steps[0].count: must be from 1 to 1000000"]),
        (json!([{"count": 1, "min": 1}]), &["steps[0].min: has a meaning only with percent"]),
        (json!([{"percent": 5, "min": 0}]), &["steps[0].min: must be from 1 to 1000000"]),
        (json!([{"labels": {}}]), &["steps[0].labels: must have from 1 to 64 labels"]),
        (
            json!([{"count": 1, "soak": "8d"}]),
            &[
                "steps[0].soak: must be from 0s to 7d",
                "step_deadline: must be longer than the longest soak, 8d; no step could end in time",
            ],
        ),
    ] {
        refused(&steps(&given), wanted);
    }
    let many: Vec<Value> = (1..=21).map(|count| json!({"count": count})).collect();
    refused(&steps(&json!(many)), &["steps: has 21 entries; at most 20"]);
    policy(&steps(
        &json!([{"labels": {"zone": "a", "rack": "1"}}, {"labels": {"zone": "a"}}, {"percent": 1}]),
    ));
}

#[test]
fn other_fields_are_checked() {
    for (given, wanted) in [
        (json!({"strategy": "careful"}), "strategy: must be one of immediate, progressive, is \"careful\""),
        (json!({"on_failure": "panic"}), "on_failure: must be one of hold, revert, is \"panic\""),
        (
            json!({"on_inconclusive": "wait"}),
            "on_inconclusive: must be one of hold, promote, abort, is \"wait\"",
        ),
        (json!({"on_new_write": "drop"}), "on_new_write: must be one of wait, supersede, is \"drop\""),
        (json!({"when_empty": "drop"}), "when_empty: must be one of wait, promote, is \"drop\""),
        (json!({"bake": "8d"}), "bake: must be from 0s to 7d"),
        (json!({"step_deadline": "31d"}), "step_deadline: must be from 1s to 30d"),
        (
            json!({"step_deadline": "2m"}),
            "step_deadline: must be longer than the longest soak, 2m; no step could end in time",
        ),
        (
            json!({"gates": {"errors": {"tolerated_ratio": 0.9}}}),
            "gates.errors.tolerated_ratio: must be from 1 to 100",
        ),
        (
            json!({"gates": {"latency": {"confidence": 1}}}),
            "gates.latency.confidence: must be from 0.5 to 0.999999",
        ),
        (json!({"gates": {"not_found": {"floor": 2}}}), "gates.not_found.floor: must be from 0 to 1"),
        (
            json!({"gates": {"cpu": {"tolerated_ratio": 101}}}),
            "gates.cpu.tolerated_ratio: must be from 1 to 100",
        ),
        (json!({"gates": {"rejected": -1}}), "gates.rejected: must be at least 0"),
        (json!({"gates": {"lost": 1001}}), "gates.lost: must be from 0 to 1000"),
        (json!({"gates": {"coverage": {"requests": 5}}}), "gates.coverage.requests: unknown field"),
        (
            json!({"freeze": [{"cron": "0 18 * *", "for": "1h"}]}),
            "freeze[0].cron: \"0 18 * *\" has 4 fields; it needs five: minute, hour, day of the month, month, day of the week",
        ),
        (json!({"freeze": [{"cron": "0 18 * * 5", "for": "32d"}]}), "freeze[0].for: must be from 1m to 31d"),
        (json!({"freeze": [{"cron": "0 18 * * 5"}]}), "freeze[0].for: is required"),
        (
            json!({"freeze": [{"cron": "0 18 * * 5", "for": "1h", "timezone": "Mars/Olympus"}]}),
            "freeze[0].timezone: \"Mars/Olympus\" is not a time zone of the IANA database, like Asia/Shanghai",
        ),
        (json!({"approval": {"required": "yes"}}), "approval.required: must be true or false, is a string"),
    ] {
        refused(&given, &[wanted]);
    }
}

#[test]
fn a_fleet_is_in_no_fleet() {
    let errors = parse(Kind::Fleet, json!({"name": "edge", "fleets": ["edge"]})).unwrap_err();
    assert_eq!(errors.iter().map(FieldError::to_string).collect::<Vec<_>>(), ["fleets: unknown field"]);
}
