//! Webhooks: what is accepted, its defaults, the errors, and what the API returns of their secrets.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::time::Duration;

use common::parse;
use serde_json::{Value, json};
use signalbox_config::{
    Body, FieldError, HeaderTextSpec, Kind, PlaceSpec, Resource, Webhook, WebhookFormat, WebhookKey,
    WebhookRolloutEvent, WebhookTopic, WebhookUrl,
};

fn merged(fields: &Value) -> Value {
    let mut spec = json!({"name": "w", "url": "https://hooks.example/x", "events": ["revision"]});
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    spec
}

fn resource(fields: &Value) -> Resource {
    parse(Kind::Webhook, merged(fields)).unwrap_or_else(|errors| panic!("{fields}: {errors:?}"))
}

fn webhook(fields: &Value) -> Webhook {
    match resource(fields).body() {
        Body::Webhook(webhook) => (**webhook).clone(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(fields: &Value, wanted: &str) {
    let errors = parse(Kind::Webhook, merged(fields)).err().unwrap_or_default();
    let errors: Vec<String> = errors.iter().map(FieldError::to_string).collect();
    assert!(errors.len() == 1 && errors[0].starts_with(wanted), "{fields}: {errors:?}");
}

#[test]
fn a_url_and_events_are_enough() {
    let webhook = webhook(&json!({}));
    assert!(webhook.enabled);
    assert_eq!(webhook.url, WebhookUrl::Text("https://hooks.example/x".parse().unwrap()));
    assert_eq!(webhook.format, WebhookFormat::Json);
    assert_eq!(webhook.timeout, Duration::from_secs(5));
    assert!(webhook.fleets.is_none() && webhook.rollout_events.is_none() && webhook.secret.is_none());
    assert!(!resource(&json!({})).is_visible_to_all(), "no proxy gets it");
}

#[test]
fn every_field_is_read() {
    let webhook = webhook(&json!({
        "enabled": false,
        "url": {"file": "/run/secrets/webhooks/url"},
        "format": "slack",
        "events": ["incident", "rollout"],
        "fleets": ["edge"],
        "rollout_events": ["held", "failed"],
        "min_penalty": 20,
        "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "headers": {"X-Team": "gateway", "Authorization": {"env": "SIGNALBOX_WEBHOOK_TOKEN"}},
        "timeout": "30s",
    }));
    assert!(!webhook.enabled);
    assert_eq!(webhook.url, WebhookUrl::File("/run/secrets/webhooks/url".to_owned()));
    assert_eq!(webhook.format, WebhookFormat::Slack);
    assert_eq!(webhook.topics, [WebhookTopic::Rollout, WebhookTopic::Incident].into());
    assert_eq!(webhook.fleets.unwrap()[0].as_str(), "edge");
    let events = [WebhookRolloutEvent::Held, WebhookRolloutEvent::Failed].into();
    assert_eq!(webhook.rollout_events, Some(events));
    assert_eq!(webhook.min_penalty, 20);
    assert_eq!(webhook.headers[0].0, "authorization");
    assert_eq!(
        webhook.headers[0].1,
        HeaderTextSpec::Place(PlaceSpec::Env("SIGNALBOX_WEBHOOK_TOKEN".to_owned()))
    );
    assert_eq!(webhook.timeout, Duration::from_secs(30));
}

#[test]
fn what_is_wrong_is_told_with_its_field() {
    for (fields, error) in [
        (json!({"url": "hooks.example/x"}), "url: is not a URL"),
        (json!({"url": "ftp://hooks.example"}), "url: must begin with http"),
        (json!({"url": "/x"}), "url: must begin with http"),
        (json!({"url": ""}), "url: is not a URL"),
        (json!({"url": "https://"}), "url: is not a URL"),
        (json!({"url": "https://a:b@hooks.example"}), "url: must have no user or password"),
        (json!({"url": "https://hooks.example:0/x"}), "url: has a port"),
        (json!({"url": "https://hooks.example:65536/x"}), "url: "),
        (json!({"url": "https://hooks.example/x#y"}), "url: must have no fragment"),
        (json!({"url": "https://hooks.example/<redacted>"}), "url: has \"<redacted>\" in it"),
        (json!({"url": {"env": ""}}), "url: env and file must not be empty"),
        (json!({"url": format!("https://a/{}", "x".repeat(5000))}), "url: has 5010 bytes"),
        (json!({"events": []}), "events: must not be empty"),
        (json!({"events": ["revision", "revision"]}), "events[1]: is listed twice"),
        (json!({"fleets": []}), "fleets: must not be empty"),
        (json!({"fleets": ["a b"]}), "fleets[0]: "),
        (json!({"rollout_events": ["held"]}), "rollout_events: has a meaning only with rollout"),
        (json!({"events": ["rollout"], "rollout_events": []}), "rollout_events: must not be empty"),
        (json!({"min_penalty": 5}), "min_penalty: has a meaning only with incident"),
        (json!({"events": ["incident"], "min_penalty": 101}), "min_penalty: must be from 0 to 100"),
        (json!({"secret": "short"}), "secret: has 5 bytes; at least 16"),
        (
            json!({"secret": "whsec_!!!!!!!!!!!!"}),
            "secret: begins with whsec_, and what follows is not base64",
        ),
        (json!({"secret": "whsec_c2hvcnQ="}), "secret: has 14 bytes; at least 16"),
        (json!({"secret": "whsec_c2hvcnRlcg=="}), "secret: has 7 bytes; at least 16"),
        (json!({"secret": "<redacted>"}), "secret: is \"<redacted>\", but nothing is stored"),
        (json!({"headers": {"webhook-id": "x"}}), "headers.webhook-id: is set by Signalbox"),
        (json!({"headers": {"Host": "x"}}), "headers.Host: is set by Signalbox"),
        (json!({"headers": {"a b": "x"}}), "headers.a b: is not the name of a header"),
        (json!({"headers": {"authorization": "Bearer x"}}), "headers.authorization: must be a reference"),
        (json!({"timeout": "10ms"}), "timeout: must be from 100ms to 1m"),
        (json!({"timeout": "2m"}), "timeout: must be from 100ms to 1m"),
        (json!({"retries": 3}), "retries: "),
    ] {
        refused(&fields, error);
    }
}

#[test]
fn references_lead_to_secrets_of_webhooks_only() {
    for name in
        ["SIGNALBOX_DATABASE_URL", "DATABASE_URL", "PATH", "SIGNALBOX_WEBHOOK_", "signalbox_webhook_x", " "]
    {
        let place = json!({"env": name});
        let error = format!("env is {name:?}; a webhook may only name environment variables that begin with");
        refused(&json!({"url": place}), &format!("url: {error}"));
        refused(&json!({"secret": place}), &format!("secret: {error}"));
        refused(&json!({"headers": {"x-y": place}}), &format!("headers.x-y: {error}"));
    }
    for path in ["secret", "./x", "/run/secrets/webhooks/../key", "/..", ".."] {
        let place = json!({"file": path});
        let error = format!("file is {path:?}; it must be an absolute path");
        refused(&json!({"url": place}), &format!("url: {error}"));
        refused(&json!({"secret": place}), &format!("secret: {error}"));
        refused(&json!({"headers": {"x-y": place}}), &format!("headers.x-y: {error}"));
    }
    for place in [json!({"env": "SIGNALBOX_WEBHOOK_A"}), json!({"file": "/a/..b/c"})] {
        webhook(&json!({"url": place, "secret": place, "headers": {"x-y": place}}));
    }
}

#[test]
fn the_api_returns_no_secret_and_takes_back_what_it_returned() {
    let secrets =
        json!({"url": "https://hooks.example:8443/services/T0?key=1", "secret": "0123456789abcdef"});
    let stored = resource(&secrets);
    assert!(Kind::Webhook.holds_secret(stored.spec()));
    let mut shown = stored.redacted();
    assert_eq!(shown["url"], "https://hooks.example:8443/<redacted>");
    assert_eq!(shown["secret"], "<redacted>");
    assert!(!format!("{stored:?}").contains("services"), "{stored:?}");
    shown["timeout"] = json!("9s");
    stored.restore_secrets(&mut shown);
    assert_eq!((&shown["url"], &shown["secret"]), (&secrets["url"], &secrets["secret"]));
    // As documents have it.
    let mut exported = merged(&json!({"url": "<redacted>", "secret": "<redacted>"}));
    stored.restore_secrets(&mut exported);
    assert_eq!(exported["url"], secrets["url"]);
    // Another host is not sent the path of this one.
    let mut moved = merged(&json!({"url": "https://evil.example/<redacted>"}));
    stored.restore_secrets(&mut moved);
    assert!(parse(Kind::Webhook, moved).is_err());
    assert_eq!(resource(&json!({"url": "http://a:1"})).redacted()["url"], "http://a:1");
}

#[test]
fn a_secret_is_read_as_standard_webhooks_writes_it_or_as_it_is() {
    let key = WebhookKey::read(b"whsec_MDEyMzQ1Njc4OWFiY2RlZg==").unwrap();
    assert_eq!(key.bytes(), b"0123456789abcdef");
    assert_eq!(WebhookKey::read(b"0123456789abcdef").unwrap(), key);
    assert!(!format!("{key:?}").contains("0123"));
}
