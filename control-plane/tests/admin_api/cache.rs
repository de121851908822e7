//! Purges of cached responses.

use serde_json::json;
use signalbox_tests::control_plane::send;

use crate::fixture::{Admin, EDITOR, VIEWER, expect};

#[tokio::test]
async fn a_purge_is_stored_audited_and_answered_when_no_proxy_is_missing() {
    let admin = Admin::start().await;
    expect(&admin.put("/routes/shop", json!({"respond": {"status": 200}})).await, 201);
    let first = admin.post("/cache/purge", json!({"route": "shop", "path": "/a*"})).await;
    expect(&first, 200);
    assert_eq!(first.body["proxies"], 0);
    assert_eq!(first.body["disconnected"], 0);
    let second = admin.post("/cache/purge?timeout=1s", json!({"all": true})).await;
    expect(&second, 200);
    assert!(second.body["number"].as_u64() > first.body["number"].as_u64());
    let audit = admin.get("/audit").await.body.to_string();
    assert!(audit.contains("/a*") && audit.contains("POST /api/v1/cache/purge"), "{audit}");
    assert_eq!(
        admin.get("/revisions").await.body["items"].as_array().unwrap().len(),
        1,
        "no revision is made"
    );
}

#[tokio::test]
async fn a_purge_that_selects_nothing_or_cannot_be_read_is_refused() {
    let admin = Admin::start().await;
    for (body, field) in [
        (json!({}), ""),
        (json!({"all": false}), ""),
        (json!({"tag": ""}), "tag"),
        (json!({"host": "a:80"}), "host"),
        (json!({"path": "a"}), "path"),
        (json!({"route": "missing"}), "route"),
        (json!({"route": "Not A Name"}), "route"),
        (json!({"all": true, "tag": "a"}), "all"),
        (json!({"url": "https://a/"}), "url"),
    ] {
        let answer = admin.post("/cache/purge", body.clone()).await;
        expect(&answer, 422);
        assert_eq!(answer.fields(), [field], "{body}: {answer}");
    }
    expect(&admin.post("/cache/purge?timeout=1h", json!({"all": true})).await, 400);
    for (token, status) in [(VIEWER, 403), (EDITOR, 200)] {
        let url = format!("{}/api/v1/cache/purge", admin.url);
        let request = reqwest::Client::new().post(url).bearer_auth(token).json(&json!({"all": true}));
        expect(&send(request).await.unwrap(), status);
    }
}
