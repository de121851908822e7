//! Revisions are listed, shown, compared and gone back to; other processes make revisions too.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use signalbox_control_plane::store;
use signalbox_control_plane::store::{NewChange, NewRevision};
use signalbox_tests::control_plane::send;
use signalbox_tests::{ApiAnswer, eventually};

use crate::fixture::{Admin, expect, raw_request, upstream};

#[tokio::test]
async fn history_is_listed_shown_compared_and_gone_back_to() {
    let admin = Admin::with_route().await;
    let message = ("x-signalbox-message", "Move to caf\u{e9}%20%2B plain");
    let changed = json!({"respond": {"status": 204}});
    expect(&admin.with_header(Method::PUT, "/routes/r", message, Some(changed)).await, 200);
    expect(&admin.delete("/upstreams/u").await, 204);

    let page = admin.get("/revisions?limit=3").await;
    let numbers = |page: &ApiAnswer| -> Vec<u64> {
        page.body["items"].as_array().unwrap().iter().filter_map(|item| item["number"].as_u64()).collect()
    };
    assert_eq!(numbers(&page), [4, 3, 2]);
    assert_eq!(page.body["items"][1]["message"], "Move to caf\u{e9} + plain");
    assert_eq!(page.body["items"][1]["author"], "admin");
    let cursor = page.body["next_cursor"].as_str().unwrap();
    let rest = admin.get(&format!("/revisions?limit=3&cursor={cursor}")).await;
    assert_eq!((numbers(&rest), &rest.body["next_cursor"]), (vec![1], &Value::Null));

    let one = admin.get("/revisions/3").await;
    assert_eq!((&one.body["number"], &one.body["change_count"]), (&json!(3), &json!(1)), "{one}");
    assert!(one.body["changes"][0]["before"]["forward"].is_object(), "{one}");
    assert_eq!(one.body["changes"][0]["after"]["respond"]["status"], 204);
    expect(&admin.get("/revisions/99").await, 404);
    expect(&admin.get("/revisions/x").await, 404);

    let diff = admin.get("/revisions/4/diff?from=1").await;
    let actions: Vec<&Value> =
        diff.body["changes"].as_array().unwrap().iter().map(|c| &c["action"]).collect();
    assert_eq!(actions, [&json!("created"), &json!("deleted")], "{diff}");
    let reverse = admin.get("/revisions/1/diff?from=4").await;
    assert_eq!(reverse.body["changes"][0]["action"], "deleted", "{reverse}");
    expect(&admin.get("/revisions/99/diff").await, 404);

    let back = admin.post("/revisions/2/rollback", Value::Null).await;
    expect(&back, 200);
    assert_eq!((&back.body["revision"], admin.head()), (&json!(5), 5));
    assert!(admin.get("/routes/r").await.body["forward"].is_object());
    expect(&admin.get("/upstreams/u").await, 200);
    let none = admin.post("/revisions/2/rollback", Value::Null).await;
    assert_eq!(none.body["revision"], Value::Null, "{none}");
    expect(&admin.post("/revisions/99/rollback", Value::Null).await, 404);
    let empty = admin.get("/revisions/5/diff?from=2").await;
    assert_eq!(empty.body["changes"], json!([]));
}

#[tokio::test]
async fn messages_are_bounded_text() {
    let admin = Admin::start().await;
    for (message, status) in
        [("x".repeat(1025), 400), ("%FF".to_owned(), 400), ("a%07b".to_owned(), 400), ("x".repeat(1024), 201)]
    {
        let header = ("x-signalbox-message", &*message);
        let answer = admin.with_header(Method::PUT, "/upstreams/u", header, Some(upstream())).await;
        expect(&answer, status);
    }
    assert_eq!(admin.head(), 1);
}

#[tokio::test]
async fn what_another_process_commits_is_published_here() {
    let admin = Admin::with_route().await;
    let url = format!("sqlite://{}", admin.database.display());
    let other = store::open(&url).await.unwrap();
    let key = "upstream/theirs".parse().unwrap();
    let spec = Some(r#"{"name":"theirs","targets":[]}"#.into());
    let change = NewRevision {
        author: "other".into(),
        message: String::new(),
        action: "test".to_owned(),
        changes: vec![NewChange { key, spec }],
        pinned: Vec::new(),
        urgent: None,
    };
    other.commit(2, change).await.unwrap();
    // A write that goes by what is published here is overtaken, catches up, and is made after it.
    let written = admin.put("/upstreams/mine", upstream()).await;
    expect(&written, 201);
    assert_eq!(written.header("signalbox-revision"), Some("4"));
    let theirs = admin.get("/upstreams/theirs").await;
    assert_eq!(
        (&theirs.body["meta"]["revision"], &theirs.body["meta"]["updated_by"]),
        (&json!(3), &json!("other"))
    );

    // Nothing is written here: the poll finds it.
    let gone = NewRevision {
        author: "other".into(),
        message: String::new(),
        action: "test".to_owned(),
        changes: vec![NewChange { key: "upstream/theirs".parse().unwrap(), spec: None }],
        pinned: Vec::new(),
        urgent: None,
    };
    other.commit(4, gone).await.unwrap();
    assert!(eventually(Duration::from_secs(10), async || admin.head() == 5).await);
    expect(&admin.get("/upstreams/theirs").await, 404);
}

#[tokio::test]
async fn a_new_epoch_is_followed_and_written_in() {
    let admin = Admin::with_route().await;
    let before = admin.publisher.current().snapshot.clone();
    let head = admin.store.new_epoch().await.unwrap();
    assert!(
        eventually(Duration::from_secs(10), async || *admin.publisher.current().snapshot.id() == head).await
    );
    let after = admin.publisher.current().snapshot.clone();
    assert_ne!(after.id().epoch, before.id().epoch);
    assert_eq!(after.digest(), before.digest());
    let written = admin.put("/upstreams/u", json!({"targets": []})).await;
    expect(&written, 200);
    assert_eq!(written.header("signalbox-revision"), Some(&*(head.number + 1).to_string()));
}

#[tokio::test]
async fn what_this_version_cannot_read_is_left_as_it_was() {
    let admin = Admin::with_route().await;
    let commit = async |base, key: &str, spec: &str| {
        let change = NewChange { key: key.parse().unwrap(), spec: Some(spec.to_owned().into()) };
        let revision = NewRevision {
            author: "newer".into(),
            message: String::new(),
            action: "test".to_owned(),
            changes: vec![change],
            pinned: Vec::new(),
            urgent: None,
        };
        admin.store.commit(base, revision).await.unwrap();
    };
    commit(2, "upstream/u", r#"{"name":"u","targets":[],"of_the_future":1}"#).await;
    commit(3, "upstream/new", r#"{"name":"new","targets":[],"of_the_future":1}"#).await;
    assert!(eventually(Duration::from_secs(10), async || admin.head() == 4).await);
    assert_eq!(admin.get("/upstreams/u").await.body["targets"][0]["address"], "10.0.0.1:80");
    let missing = admin.get("/upstreams/new").await;
    expect(&missing, 404);
    assert_eq!(missing.fields(), ["of_the_future"]);
    let ready = send(raw_request(&Method::GET, &format!("{}/readyz", admin.url))).await.unwrap();
    assert_eq!((ready.status.as_u16(), &ready.body["unreadable_resources"]), (200, &json!(2)), "{ready}");

    // A write that would lose it is refused, or leaves it alone.
    expect(&admin.call(Method::PATCH, "/upstreams/u", Some(json!({"description": "x"}))).await, 409);
    let shown = admin.get("/upstreams/u").await;
    let tag = shown.header("etag").unwrap();
    expect(&admin.with_header(Method::PUT, "/upstreams/u", ("if-match", tag), Some(upstream())).await, 409);
    expect(&admin.with_header(Method::DELETE, "/upstreams/u", ("if-match", tag), None).await, 409);
    let exported = admin.get("/export?format=json").await;
    assert_eq!(exported.header("signalbox-not-exported"), Some("upstream/new, upstream/u"), "{exported}");
    let applied = admin.post("/apply?prune=true", exported.body).await;
    expect(&applied, 200);
    assert_eq!(applied.body["changes"], json!([]), "{applied}");
    assert_eq!(applied.body["left_alone"], json!(["upstream/new", "upstream/u"]), "{applied}");
    let back = admin.post("/revisions/4/rollback", json!(null)).await;
    expect(&back, 200);
    assert_eq!(back.body["changes"], json!([]), "{back}");

    // Nor is it shown what may be a secret in it.
    let key = r#"{"name":"c","certificate":"x","private_key":"very secret","of_the_future":1}"#;
    commit(4, "certificate/c", key).await;
    assert!(eventually(Duration::from_secs(10), async || admin.head() == 5).await);
    for path in ["/revisions/5", "/revisions/5/diff?from=4"] {
        let shown = admin.get(path).await;
        expect(&shown, 200);
        assert!(!shown.body.to_string().contains("very secret"), "{shown}");
    }
    expect(&admin.delete("/certificates/c").await, 204);

    // Writing it anew, or deleting it, mends it.
    expect(&admin.put("/upstreams/u", upstream()).await, 200);
    expect(&admin.delete("/upstreams/new").await, 204);
    let ready = send(raw_request(&Method::GET, &format!("{}/readyz", admin.url))).await.unwrap();
    assert_eq!(ready.body["unreadable_resources"], 0, "{ready}");
}
