//! Webhooks: who may write them, what is shown of them, and the endpoints beside them.

use http::Method;
use serde_json::{Value, json};
use signalbox_tests::{Receiver, Reply, eventually};

use crate::fixture::{Admin, EDITOR, VIEWER, expect, upstream};

fn webhook(url: &str) -> Value {
    json!({"url": url, "events": ["revision"], "secret": "0123456789abcdef"})
}

#[tokio::test]
async fn only_administrators_write_webhooks() {
    let admin = Admin::start().await;
    let receiver = Receiver::start().unwrap();
    expect(&admin.put("/upstreams/before", upstream()).await, 201);
    expect(&admin.put("/webhooks/w", webhook(&receiver.url("/x?key=1"))).await, 201);
    let editor = admin.api.with_token(EDITOR);
    for (method, path, body) in [
        (Method::PUT, "/webhooks/w", Some(webhook("http://elsewhere"))),
        (Method::POST, "/webhooks", Some(json!({"name": "v", "url": "http://a", "events": ["revision"]}))),
        (Method::DELETE, "/webhooks/w", None),
        (Method::POST, "/webhooks/w/test", None),
    ] {
        expect(&editor.call(method, path, body.as_ref()).await.unwrap(), 403);
    }
    // A document may have it as it is, but not change it.
    let document = |url: &str| {
        json!({
            "webhooks": [{"name": "w", "url": url, "events": ["revision"], "secret": "<redacted>"}],
            "upstreams": [{"name": "u", "targets": [{"address": "127.0.0.1:1"}]}],
        })
    };
    let apply = async |url: &str| editor.call(Method::POST, "/apply", Some(&document(url))).await.unwrap();
    let refused = apply("http://elsewhere").await;
    expect(&refused, 403);
    assert!(refused.to_string().contains("webhook/w"), "{refused}");
    expect(&apply("<redacted>").await, 200);
    // Nor may a rollback.
    let rollback = "/revisions/1/rollback";
    expect(&editor.call(Method::POST, rollback, None).await.unwrap(), 403);
    expect(&admin.call(Method::POST, rollback, None).await, 200);
    expect(&admin.get("/webhooks/w").await, 404);
}

#[tokio::test]
async fn secrets_of_webhooks_are_not_shown_and_are_kept() {
    let admin = Admin::start().await;
    let receiver = Receiver::start().unwrap();
    expect(&admin.put("/webhooks/w", webhook(&receiver.url("/services/T0?key=1"))).await, 201);
    let mut shown = admin.api.with_token(VIEWER).get("/webhooks/w").await.unwrap();
    assert_eq!(shown["url"], receiver.url("/<redacted>"));
    assert_eq!(shown["secret"], "<redacted>");
    let all = admin.get("/revisions/1").await.body.to_string() + &admin.get("/export").await.body.to_string();
    assert!(!all.contains("services") && !all.contains("0123456789abcdef"), "{all}");
    shown.as_object_mut().unwrap().remove("meta");
    shown["timeout"] = json!("9s");
    expect(&admin.put("/webhooks/w", shown).await, 200);
    let tested = admin.call(Method::POST, "/webhooks/w/test", None).await;
    assert_eq!(tested.body["result"], "delivered", "{tested}");
    assert!(receiver.received().iter().all(|request| request.path == "/services/T0?key=1"));
    assert!(receiver.received().iter().any(|request| !request.header("webhook-signature").is_empty()));
}

#[tokio::test]
async fn webhooks_send_no_other_secrets_of_the_host() {
    let admin = Admin::start().await;
    let receiver = Receiver::start().unwrap();
    let with_header = |place: Value| {
        let url = receiver.url("/");
        json!({"url": url, "events": ["revision"], "enabled": false, "headers": {"x-secret": place}})
    };
    let refused = admin.put("/webhooks/w", with_header(json!({"env": "SIGNALBOX_DATABASE_URL"}))).await;
    expect(&refused, 422);
    assert!(refused.to_string().contains("headers.x-secret"), "{refused}");
    assert!(refused.to_string().contains("begin with SIGNALBOX_WEBHOOK_"), "{refused}");
    let dir = admin.database.with_file_name("webhooks");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("good"), "for webhooks\n").unwrap();
    std::os::unix::fs::symlink(&admin.database, dir.join("link")).unwrap();
    for (path, status, is_sent) in
        [(dir.join("good"), 201, true), (dir.join("link"), 200, false), (admin.database.clone(), 200, false)]
    {
        expect(&admin.put("/webhooks/w", with_header(json!({"file": path}))).await, status);
        let tested = admin.call(Method::POST, "/webhooks/w/test", None).await;
        assert_eq!(tested.body["result"], if is_sent { "delivered" } else { "failed" }, "{tested}");
        let error = tested.body["error"].as_str().unwrap_or_default();
        assert_eq!(error.contains("x-secret") && error.contains("is not below"), !is_sent, "{tested}");
    }
    let received = receiver.received();
    assert_eq!(
        received.iter().map(|request| request.header("x-secret")).collect::<Vec<_>>(),
        ["for webhooks"]
    );
}

#[tokio::test]
async fn a_test_says_what_the_receiver_answered() {
    let admin = Admin::start().await;
    expect(&admin.call(Method::POST, "/webhooks/w/test", None).await, 404);
    expect(&admin.get("/webhooks/w/deliveries").await, 404);
    let receiver = Receiver::answering(Reply::Status(500), []).unwrap();
    let disabled = |timeout: &str| json!({"url": receiver.url("/"), "events": ["incident"], "enabled": false, "timeout": timeout});
    expect(&admin.put("/webhooks/w", disabled("1m")).await, 201);
    for (reply, timeout, status, error) in [
        (Reply::Status(500), "1m", json!(500), ""),
        (Reply::Redirect(302), "1m", json!(302), ""),
        (Reply::Never, "1s", Value::Null, "there was no answer in 1s"),
    ] {
        expect(&admin.put("/webhooks/w", disabled(timeout)).await, 200);
        receiver.reply(reply);
        let tested = admin.call(Method::POST, "/webhooks/w/test", None).await;
        expect(&tested, 200);
        assert_eq!((&tested.body["result"], &tested.body["status"]), (&json!("failed"), &status), "{tested}");
        assert_eq!(tested.body["error"].as_str().unwrap_or_default(), error, "{tested}");
    }
    expect(&admin.put("/webhooks/w", disabled("1m")).await, 200);
    // A redirect is not followed.
    assert!(receiver.received().iter().all(|request| request.path == "/"));
    let sent = receiver.received().remove(0).json().unwrap();
    assert_eq!((&sent["type"], &sent["data"]["webhook"]), (&json!("test"), &json!("w")));
    let gone = receiver.url("/");
    drop(receiver);
    let tested = admin.call(Method::POST, "/webhooks/w/test", None).await;
    assert!(tested.body["error"].as_str().unwrap().contains("cannot connect"), "{gone}: {tested}");
    let deliveries = admin.get("/webhooks/w/deliveries").await;
    assert_eq!(deliveries.body["attempts"].as_array().unwrap().len(), 4, "{deliveries}");
    assert_eq!(deliveries.body["attempts"][0], tested.body);
    assert_eq!((&deliveries.body["replica"], &deliveries.body["queued"]), (&json!("here"), &json!(0)));
}

#[tokio::test]
async fn events_are_sent_while_there_is_a_webhook_and_refusals_are_final() {
    let admin = Admin::start().await;
    expect(&admin.put("/upstreams/before", upstream()).await, 201);
    let receiver = Receiver::answering(Reply::Status(410), []).unwrap();
    expect(&admin.put("/webhooks/w", webhook(&receiver.url("/"))).await, 201);
    let attempts = async |count: usize| {
        let mut last = Value::Null;
        let found = eventually(std::time::Duration::from_secs(30), async || {
            last = admin.get("/webhooks/w/deliveries").await.body;
            last["attempts"].as_array().is_some_and(|attempts| attempts.len() >= count)
        });
        assert!(found.await, "{last}");
        last
    };
    // The revision that made it is told to it, and nothing before.
    let first = attempts(1).await;
    assert_eq!((&first["sends"], &first["sender"]), (&json!(true), &json!("here")));
    expect(&admin.put("/upstreams/u", upstream()).await, 201);
    let deliveries = attempts(2).await;
    for attempt in deliveries["attempts"].as_array().unwrap() {
        assert_eq!((&attempt["result"], &attempt["status"]), (&json!("refused"), &json!(410)), "{attempt}");
        assert_eq!((&attempt["attempt"], &attempt["next_ms"]), (&json!(1), &Value::Null), "{attempt}");
    }
    let numbers: Vec<Value> =
        receiver.received().iter().map(|request| request.json().unwrap()["data"]["number"].clone()).collect();
    assert_eq!(numbers, [json!(2), json!(3)]);
    let metrics = admin.api.metrics().await.unwrap();
    let refused = metrics.sum("signalbox_webhook_deliveries_total", &["webhook=\"w\"", "result=\"refused\""]);
    assert_eq!((refused, metrics.sum("signalbox_webhook_queue", &[])), (2.0, 0.0));
    assert!(metrics.has("signalbox_webhook_queue"));
}
