//! Freeze windows, at given times.

use std::time::Duration;

use serde_json::json;
use signalbox_config::{Body, FreezeWindow, Kind, PluginCatalog, Resource};
use signalbox_rollout::frozen_until;

struct NoPlugins;

impl PluginCatalog for NoPlugins {
    fn default_order(&self, _: &str) -> Option<i32> {
        None
    }

    fn type_names(&self) -> Vec<&'static str> {
        Vec::new()
    }

    fn check(&self, _: &str, _: &serde_json::Value) -> Vec<signalbox_config::FieldError> {
        Vec::new()
    }

    fn references(&self, _: &str, _: &serde_json::Value) -> Vec<(signalbox_config::ResourceKey, String)> {
        Vec::new()
    }
}

fn window(cron: &str, length: &str, zone: &str) -> Vec<FreezeWindow> {
    let freeze = json!([{"cron": cron, "for": length, "timezone": zone}]);
    let spec = json!({"name": "edge", "rollout": {"freeze": freeze}});
    let resource = Resource::parse(Kind::Fleet, spec, &NoPlugins).unwrap();
    match resource.body() {
        Body::Fleet(fleet) => fleet.rollout.freeze.to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_window_is_open_from_its_beginning_to_its_end() {
    // Fridays at 18:00 in Shanghai are 10:00 UTC; 60 hours later it is Monday, 6:00.
    let weekend = window("0 18 * * 5", "60h", "Asia/Shanghai");
    for (at, until) in [
        ("2026-11-27T09:59:59Z", None),
        ("2026-11-27T10:00:00Z", Some("2026-11-29T22:00:00Z")),
        ("2026-11-29T21:59:59Z", Some("2026-11-29T22:00:00Z")),
        ("2026-11-29T22:00:00Z", None),
        ("2026-12-01T12:00:00Z", None),
        ("2026-12-04T10:00:00Z", Some("2026-12-06T22:00:00Z")),
    ] {
        let wanted = until.map(|until| until.parse().unwrap());
        assert_eq!(frozen_until(&weekend, at.parse().unwrap()), wanted, "{at}");
    }
}

#[test]
fn the_window_that_ends_last_counts() {
    let mut windows = window("0 0 24 12 *", "3d", "UTC");
    windows.extend(window("0 12 * * *", "1h", "UTC"));
    let until = |at: &str| frozen_until(&windows, at.parse().unwrap()).map(|until| until.to_string());
    assert_eq!(until("2026-12-25T12:30:00Z").unwrap(), "2026-12-27T00:00:00Z");
    assert_eq!(until("2026-12-28T12:30:00Z").unwrap(), "2026-12-28T13:00:00Z");
    assert_eq!(until("2026-12-28T13:30:00Z"), None);
    assert_eq!(frozen_until(&[], "2026-12-28T13:30:00Z".parse().unwrap()), None);
}

#[test]
fn windows_that_follow_each_other_leave_no_gap() {
    let always = window("* * * * *", "1m", "UTC");
    let mut at: jiff::Timestamp = "2026-02-27T23:58:30Z".parse().unwrap();
    for _ in 0..200 {
        assert!(frozen_until(&always, at).is_some(), "{at}");
        at += Duration::from_secs(37);
    }
}

#[test]
fn changes_of_the_clocks_skip_no_window_and_make_none_longer() {
    // In Berlin the clocks skipped 2:00 to 3:00 on 29 March 2026, and had it twice on 25 October.
    let nightly = window("30 2 * * *", "30m", "Europe/Berlin");
    let until = |at: &str| frozen_until(&nightly, at.parse().unwrap()).map(|until| until.to_string());
    assert_eq!(until("2026-03-28T01:30:00Z").unwrap(), "2026-03-28T02:00:00Z");
    assert_eq!(until("2026-03-29T01:30:00Z").unwrap(), "2026-03-29T02:00:00Z");
    assert_eq!(until("2026-03-29T02:00:00Z"), None);
    assert_eq!(until("2026-10-25T00:30:00Z").unwrap(), "2026-10-25T01:00:00Z");
    assert_eq!(until("2026-10-25T01:30:00Z"), None);
}
