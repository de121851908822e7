//! The secrets of consumers: what is stored, shown, kept and exported.

use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Admin, expect};

const SECRETS: [&str; 3] =
    ["a password of alice", "a secret of tokens that is long enough", "a secret of signatures"];

fn alice() -> Value {
    let [password, token, signature] = SECRETS;
    json!({"groups": ["staff"], "credentials": [
        {"basic_auth": {"username": "alice", "password": password}},
        {"jwt": {"issuer": "shop", "algorithm": "HS256", "secret": token}},
        {"hmac_auth": {"key_id": "signer", "secret": signature}},
    ]})
}

#[tokio::test]
async fn secrets_of_consumers_are_kept_and_told_to_nobody() {
    let admin = Admin::start().await;
    let created = admin.put("/consumers/alice", alice()).await;
    expect(&created, 201);
    let version = created.body["meta"]["version"].clone();
    for path in ["/consumers/alice", "/consumers", "/revisions/1", "/revisions/2", "/export", "/audit"] {
        let text = admin.get(path).await.body.to_string();
        assert!(SECRETS.iter().all(|secret| !text.contains(secret)), "{path}: {text}");
    }
    let disk = [
        std::fs::read(&admin.database).unwrap(),
        std::fs::read(admin.database.with_extension("db-wal")).unwrap_or_default(),
    ]
    .concat();
    for secret in SECRETS {
        assert!(!disk.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret}");
    }
    // The same password again, in each form of a write, changes nothing.
    let again = admin.put("/consumers/alice", alice()).await;
    expect(&again, 200);
    assert_eq!(again.body["meta"]["version"], version);
    let mut named = alice();
    named["name"] = json!("alice");
    let applied = admin.post("/apply", json!({"consumers": [named.clone()]})).await;
    assert_eq!((applied.status.as_u16(), &applied.body["revision"]), (200, &Value::Null), "{applied}");
    let patch = json!({"credentials": alice()["credentials"]});
    let patched = admin.call(Method::PATCH, "/consumers/alice", Some(patch)).await;
    expect(&patched, 200);
    assert_eq!(patched.body["meta"]["version"], version);
    // A consumer that was read can be written back, and a changed password counts as changed.
    let mut read = admin.get("/consumers/alice").await.body;
    read["description"] = json!("a friend");
    read["credentials"][1]["jwt"]["issuer"] = json!("shop");
    expect(&admin.put("/consumers/alice", read).await, 200);
    let mut other = alice();
    other["credentials"][0]["basic_auth"]["password"] = json!("another password");
    let other = admin.put("/consumers/alice", other).await;
    assert_ne!(other.body["meta"]["version"], version);
    // A user name belongs to one consumer.
    let taken = json!({"credentials": [{"basic_auth": {"username": "alice", "password": "x"}}]});
    let taken = admin.put("/consumers/bob", taken).await;
    expect(&taken, 409);
    assert!(taken.message("credentials[0].basic_auth.username").contains("consumer/alice"), "{taken}");
}

#[tokio::test]
async fn a_group_is_a_resource_like_any_other() {
    let admin = Admin::start().await;
    let limit = json!({"type": "rate-limit", "config": {"limit": 5}});
    expect(&admin.put("/plugins/five", limit).await, 201);
    expect(&admin.put("/consumer_groups/staff", json!({"plugins": ["five"]})).await, 201);
    expect(&admin.put("/consumer_groups/other", json!({"plugins": ["six"]})).await, 422);
    expect(&admin.call(Method::DELETE, "/plugins/five", None).await, 409);
    let exported = admin.get("/export?format=json").await.body;
    assert_eq!(exported["consumer_groups"], json!([{"name": "staff", "plugins": ["five"]}]));
}
