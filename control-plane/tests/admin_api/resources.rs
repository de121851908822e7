//! Resources are created, read, replaced, patched, deleted and listed.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use signalbox_control_plane::store;
use signalbox_control_plane::store::KeySource;
use signalbox_tests::ApiAnswer;
use signalbox_tests::control_plane::send;

use crate::fixture::{Admin, certificate, expect, raw_request, route, upstream};

#[tokio::test]
async fn a_resource_is_created_read_replaced_patched_and_deleted() {
    let admin = Admin::start().await;
    let created = admin.put("/upstreams/u", upstream()).await;
    expect(&created, 201);
    assert_eq!(created.header("signalbox-revision"), Some("1"));
    let etag = created.header("etag").unwrap().to_owned();
    let meta = &created.body["meta"];
    assert_eq!(format!("\"{}\"", meta["version"].as_str().unwrap()), etag);
    assert_eq!((&meta["revision"], &meta["updated_by"]), (&json!(1), &json!("admin")));
    let moment: jiff::Timestamp = meta["created_at"].as_str().unwrap().parse().unwrap();
    assert!(moment <= jiff::Timestamp::now());

    let read = admin.get("/upstreams/u").await;
    expect(&read, 200);
    assert_eq!((&read.body, read.header("etag")), (&created.body, Some(&*etag)));

    // A resource that was read can be written back as it is: nothing differs, so no revision is made.
    let same = admin.put("/upstreams/u", read.body).await;
    expect(&same, 200);
    assert_eq!((same.header("signalbox-revision"), admin.head()), (Some("1"), 1));

    let replaced = admin.put("/upstreams/u", json!({"targets": [], "description": "empty"})).await;
    expect(&replaced, 200);
    assert_eq!(replaced.body["meta"]["created_at"], created.body["meta"]["created_at"]);
    assert_ne!(replaced.header("etag"), Some(&*etag));

    let patch = json!({"description": null, "connect_timeout": "2s"});
    let patched = admin.raw(Method::PATCH, "/upstreams/u", "application/merge-patch+json", patch.to_string());
    let patched = patched.await;
    expect(&patched, 200);
    assert_eq!(patched.body["connect_timeout"], "2s");
    assert!(patched.body.get("description").is_none(), "{patched}");

    let deleted = admin.delete("/upstreams/u").await;
    expect(&deleted, 204);
    assert_eq!(deleted.header("signalbox-revision"), Some("4"));
    expect(&admin.get("/upstreams/u").await, 404);
    expect(&admin.delete("/upstreams/u").await, 404);
    expect(&admin.call(Method::PATCH, "/upstreams/u", Some(json!({}))).await, 404);
    assert_eq!(admin.head(), 4);
}

#[tokio::test]
async fn post_creates_only_what_is_not_there() {
    let admin = Admin::start().await;
    let mut spec = upstream();
    spec["name"] = json!("u");
    let created = admin.post("/upstreams", spec.clone()).await;
    expect(&created, 201);
    assert_eq!(created.header("location"), Some("/api/v1/upstreams/u"));
    let again = admin.post("/upstreams", spec).await;
    expect(&again, 409);
    assert_eq!(again.fields(), ["name"]);
    let nameless = admin.post("/upstreams", upstream()).await;
    expect(&nameless, 422);
    assert_eq!(nameless.fields(), ["name"]);
    assert_eq!(admin.head(), 1);
}

#[tokio::test]
async fn preconditions_hold_or_nothing_is_written() {
    let admin = Admin::start().await;
    let first = admin.put("/upstreams/u", upstream()).await;
    let etag = first.header("etag").unwrap();
    let other = json!({"targets": []});
    let put =
        |header, value| admin.with_header(Method::PUT, "/upstreams/u", (header, value), Some(other.clone()));

    let refused = put("if-match", "\"0000000000000000\"").await;
    expect(&refused, 412);
    assert_eq!(refused.header("etag"), Some(etag), "the problem says what is there");
    let (weak, listed) = (format!("W/{etag}"), format!("\"x\", {etag}"));
    expect(&put("if-match", &weak).await, 412);
    expect(&put("if-none-match", "*").await, 412);
    expect(&put("if-none-match", etag).await, 400);
    let nowhere = ("if-match", "*");
    expect(&admin.with_header(Method::PUT, "/upstreams/v", nowhere, Some(other.clone())).await, 412);
    let stale = ("if-match", "\"0000000000000000\"");
    expect(&admin.with_header(Method::DELETE, "/upstreams/u", stale, None).await, 412);
    expect(&admin.with_header(Method::PATCH, "/upstreams/u", stale, Some(json!({}))).await, 412);
    assert_eq!(admin.head(), 1);

    expect(&put("if-match", &listed).await, 200);
    expect(&put("if-match", "*").await, 200);
    let absent = ("if-none-match", "*");
    expect(&admin.with_header(Method::PUT, "/upstreams/v", absent, Some(other.clone())).await, 201);
    assert_eq!(admin.head(), 3);

    let now = admin.get("/upstreams/u").await;
    let known = ("if-none-match", now.header("etag").unwrap());
    let unchanged = admin.with_header(Method::GET, "/upstreams/u", known, None).await;
    assert_eq!((unchanged.status, &unchanged.body), (StatusCode::NOT_MODIFIED, &Value::Null));
}

#[tokio::test]
async fn two_writers_with_one_etag_do_not_overwrite_each_other() {
    let admin = Admin::start().await;
    let first = admin.put("/upstreams/u", upstream()).await;
    let etag = ("if-match", first.header("etag").unwrap());
    let write = |text: &str| {
        admin.with_header(Method::PATCH, "/upstreams/u", etag, Some(json!({"description": text})))
    };
    let (a, b) = tokio::join!(write("a"), write("b"));
    let statuses = BTreeSet::from([a.status.as_u16(), b.status.as_u16()]);
    assert_eq!(statuses, BTreeSet::from([200, 412]), "{a} {b}");
}

#[tokio::test]
async fn every_error_of_a_specification_comes_back_with_its_field() {
    let admin = Admin::start().await;
    let wrong = json!({
        "colour": "red",
        "priority": "high",
        "match": {"paths": [{"exact": "/fine"}, {"regex": "("}], "methods": ["get"]},
        "forward": {"upstreams": [{"name": "missing"}]},
    });
    let refused = admin.put("/routes/r", wrong).await;
    expect(&refused, 422);
    let fields: BTreeSet<&str> = refused.fields().into_iter().collect();
    let expected = ["colour", "match.methods[0]", "match.paths[1].regex", "priority"];
    assert_eq!(fields, BTreeSet::from(expected), "{refused}");
    assert_eq!(refused.message("colour"), "unknown field");
    assert!(refused.message("match.paths[1].regex").contains("not a regular expression"), "{refused}");
    assert!(refused.message("priority").contains("must be an integer"), "{refused}");

    let dangling = admin.put("/routes/r", route("missing")).await;
    expect(&dangling, 422);
    assert_eq!(
        dangling.message("forward.upstreams[0].name"),
        "upstream \"missing\" does not exist",
        "{dangling}"
    );

    let renamed = admin.put("/routes/r", json!({"name": "s", "respond": {}})).await;
    expect(&renamed, 422);
    assert_eq!(renamed.fields(), ["name"]);
    let unnameable = admin.put("/routes/R", json!({"respond": {}})).await;
    expect(&unnameable, 422);
    assert_eq!(unnameable.fields(), ["name"]);
    let unknown_type = admin.put("/plugins/p", json!({"type": "rate-limmit", "config": {}})).await;
    expect(&unknown_type, 422);
    assert_eq!(unknown_type.fields(), ["type"]);
    assert_eq!(admin.head(), 0, "nothing was stored");
}

#[tokio::test]
async fn what_is_malformed_is_told_by_line_and_column() {
    let admin = Admin::start().await;
    let put = |content_type, body: Vec<u8>| admin.raw(Method::PUT, "/routes/r", content_type, body);

    let broken = put("application/json", b"{\n  \"a\": }".to_vec()).await;
    expect(&broken, 400);
    assert_eq!((&broken.body["line"], &broken.body["column"]), (&json!(2), &json!(8)), "{broken}");
    let binary = put("application/json", b"{\"a\":\n\"\xff\"}".to_vec()).await;
    expect(&binary, 400);
    assert_eq!((&binary.body["line"], &binary.body["column"]), (&json!(2), &json!(2)), "{binary}");
    // Which of two fields of one name counts would be anyone's guess.
    expect(&put("application/json", b"{\"respond\": {}, \"respond\": {}}".to_vec()).await, 400);
    expect(&put("application/json", Vec::new()).await, 400);
    expect(&put("application/json", b"[1]".to_vec()).await, 422);
    expect(&put("multipart/form-data", b"{}".to_vec()).await, 415);
    expect(&put("application/yaml", b"respond: {}".to_vec()).await, 415);
    // The type that curl names by itself.
    expect(&put("application/x-www-form-urlencoded", b"{\"respond\": {}}".to_vec()).await, 201);

    let apply = |content_type, body: &str| admin.raw(Method::POST, "/apply", content_type, body.to_owned());
    expect(&apply("application/yaml", "routes: [").await, 400);
    expect(&apply("application/json", "{\"routes\": [").await, 400);
    expect(&apply("application/yaml", "42").await, 400);
    expect(&apply("image/png", "routes: []").await, 415);
    assert_eq!(admin.head(), 1);
}

#[tokio::test]
async fn bodies_that_are_too_large_are_refused() {
    let admin = Admin::start().await;
    let large = "x".repeat(10 << 20);
    let body = json!({"respond": {"body": large}}).to_string();
    let refused = admin.raw(Method::PUT, "/routes/r", "application/json", body).await;
    expect(&refused, 413);
    let document = json!({"routes": [{"name": "r", "respond": {"body": large}}]}).to_string();
    let refused = admin.raw(Method::POST, "/apply", "application/json", document).await;
    expect(&refused, 422);
    assert_eq!(refused.fields().first(), Some(&"routes[0].respond.body"), "{refused}");
    let refused = admin.raw(Method::POST, "/apply", "application/json", vec![b' '; 33 << 20]).await;
    expect(&refused, 413);
    assert_eq!(admin.head(), 0);
}

#[tokio::test]
async fn what_is_referenced_stays_and_what_is_taken_is_not_taken_twice() {
    let admin = Admin::with_route().await;
    let refused = admin.delete("/upstreams/u").await;
    expect(&refused, 409);
    assert!(refused.body["detail"].as_str().unwrap().contains("route/r"), "{refused}");

    expect(&admin.put("/listeners/a", json!({"address": "127.0.0.1:8000"})).await, 201);
    let refused = admin.put("/listeners/b", json!({"address": "127.0.0.1:8000"})).await;
    expect(&refused, 409);
    assert_eq!(refused.fields(), ["address"]);
    assert!(refused.message("address").contains("listener/a"), "{refused}");

    // Narrowing an upstream to a fleet would leave the route of all fleets without it.
    let narrowed = admin.call(Method::PATCH, "/upstreams/u", Some(json!({"fleets": ["eu"]}))).await;
    expect(&narrowed, 422);
    assert!(narrowed.message("").contains("route/r: forward.upstreams"), "{narrowed}");
    assert_eq!(admin.head(), 3);
}

#[tokio::test]
async fn a_dry_run_says_what_would_change_and_stores_nothing() {
    let admin = Admin::with_route().await;
    let put = admin.put("/routes/r?dry_run=true", json!({"respond": {"status": 204}})).await;
    expect(&put, 200);
    assert_eq!(put.body["revision"], Value::Null);
    let change = &put.body["changes"][0];
    assert_eq!(
        (&change["kind"], &change["name"], &change["action"]),
        (&json!("route"), &json!("r"), &json!("updated"))
    );
    assert!(change["before"]["forward"].is_object() && change["after"]["respond"].is_object(), "{put}");

    let deleted = admin.delete("/routes/r?dry_run=true").await;
    expect(&deleted, 200);
    assert_eq!(deleted.body["changes"][0]["action"], "deleted");
    let applied =
        admin.post("/apply?dry_run=true&prune=true&allow_mass_delete=true", json!({"routes": []})).await;
    expect(&applied, 200);
    assert_eq!(applied.body["changes"].as_array().map(Vec::len), Some(2), "{applied}");
    let back = admin.post("/revisions/1/rollback?dry_run=true", Value::Null).await;
    expect(&back, 200);
    assert_eq!(back.body["changes"][0]["action"], "deleted");
    expect(&admin.delete("/upstreams/u?dry_run=true").await, 409);

    assert_eq!(admin.head(), 2);
    assert_eq!(admin.store.head().await.unwrap().number, 2);
    expect(&admin.get("/routes/r").await, 200);
}

#[tokio::test]
async fn lists_go_on_where_the_page_before_ended() {
    let admin = Admin::start().await;
    let routes: Vec<Value> = (0..25)
        .map(|i| {
            json!({
                "name": format!("r{i:02}"),
                "labels": {"parity": if i % 2 == 0 { "even" } else { "odd" }},
                "match": {"hosts": [format!("h{i}.example.com")]},
                "respond": {},
            })
        })
        .collect();
    expect(&admin.post("/apply", json!({"routes": routes})).await, 200);
    let names = |page: &ApiAnswer| -> Vec<String> {
        let items = page.body["items"].as_array().unwrap();
        items.iter().filter_map(|item| item["name"].as_str().map(str::to_owned)).collect()
    };
    let mut seen = Vec::new();
    let mut path = "/routes?limit=10".to_owned();
    loop {
        let page = admin.get(&path).await;
        expect(&page, 200);
        seen.extend(names(&page));
        let Some(cursor) = page.body["next_cursor"].as_str() else { break };
        path = format!("/routes?limit=10&cursor={cursor}");
    }
    let expected: Vec<String> = (0..25).map(|i| format!("r{i:02}")).collect();
    assert_eq!(seen, expected);
    // Exactly full: there is no next page.
    assert_eq!(admin.get("/routes?limit=25").await.body["next_cursor"], Value::Null);

    assert_eq!(names(&admin.get("/routes?q=H7.EXAMPLE").await), ["r07"]);
    assert_eq!(names(&admin.get("/routes?label=parity=odd").await).len(), 12);
    assert_eq!(names(&admin.get("/routes?label=parity=odd&q=r1").await).len(), 5);
    assert_eq!(names(&admin.get("/routes?label=parity=odd&label=parity=even").await).len(), 0);
    assert_eq!(names(&admin.get("/upstreams").await).len(), 0);
    for wrong in
        ["limit=0", "limit=1001", "limit=x", "cursor=%2F", "label=x", "limit=1&limit=2", "colour=red"]
    {
        let refused = admin.get(&format!("/routes?{wrong}")).await;
        expect(&refused, 400);
        assert_eq!(refused.fields(), [wrong.split('=').next().unwrap()], "{refused}");
    }
}

#[tokio::test]
async fn secrets_do_not_come_back_and_stay_when_they_are_not_written() {
    let admin = Admin::start().await;
    let consumer = json!({"credentials": [{"key_auth": {"id": "k", "key": "open-sesame"}}]});
    let created = admin.put("/consumers/alice", consumer).await;
    expect(&created, 201);
    let version = created.body["meta"]["version"].clone();
    let hash =
        signalbox_config::sha256(b"open-sesame").iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for path in ["/consumers/alice", "/consumers", "/revisions/1", "/revisions/1/diff"] {
        let text = admin.get(path).await.body.to_string();
        assert!(text.contains("<redacted>"), "{path}: {text}");
        assert!(!text.contains("open-sesame") && !text.contains(&hash), "{path}: {text}");
    }
    assert_eq!(admin.get(&format!("/consumers?q={hash}")).await.body["items"], json!([]));

    // The resource that was read is written back with another field: the key stays.
    let mut read = admin.get("/consumers/alice").await.body;
    read["custom_id"] = json!("4711");
    expect(&admin.put("/consumers/alice", read).await, 200);
    let exported = admin.get("/export?format=json").await.body;
    let unchanged = admin.post("/apply?prune=true", exported).await;
    assert_eq!((unchanged.status.as_u16(), &unchanged.body["revision"]), (200, &Value::Null), "{unchanged}");
    let back = admin.call(Method::PATCH, "/consumers/alice", Some(json!({"custom_id": null}))).await;
    assert_eq!(back.body["meta"]["version"], version, "the key is the one that was stored first");

    let nothing_kept =
        admin.put("/consumers/bob", json!({"credentials": [{"key_auth": {"key": "<redacted>"}}]})).await;
    expect(&nothing_kept, 422);
    assert_eq!(nothing_kept.fields(), ["credentials[0].key_auth.key"]);
    let same_key =
        admin.put("/consumers/bob", json!({"credentials": [{"key_auth": {"key": "open-sesame"}}]})).await;
    expect(&same_key, 409);
    assert!(same_key.message("credentials[0].key_auth.key").contains("consumer/alice"), "{same_key}");
}

#[tokio::test]
async fn without_a_key_a_secret_is_refused_and_the_flag_named() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("signalbox.db");
    let store = store::open(&format!("sqlite://{}", database.display())).await.unwrap();
    let store = store::seal(store, KeySource::None).await.unwrap();
    let admin = Admin::start_on(store, database, Arc::new(dir)).await;
    let refused = admin.put("/certificates/c", certificate("a.example", 4000)).await;
    expect(&refused, 422);
    assert!(refused.to_string().contains("--secrets-key-file"), "{refused}");
}

#[tokio::test]
async fn plugin_types_have_schemas() {
    let admin = Admin::start().await;
    let types = admin.get("/plugin-types").await;
    let items = types.body["items"].as_array().unwrap();
    assert_eq!(items.len(), signalbox_plugins::builtin().types().len());
    for item in items {
        assert_eq!(item["schema"]["type"], "object", "{item}");
        assert!(
            item["default_order"].is_i64() && item["phases"].as_array().is_some_and(|p| !p.is_empty()),
            "{item}"
        );
    }
}

#[tokio::test]
async fn while_the_database_is_away_reads_go_on_and_writes_are_told_to_try_again() {
    use sqlx::Connection as _;
    let admin = Admin::with_route().await;
    let url = format!("sqlite://{}", admin.database.display());
    let mut lock = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("BEGIN EXCLUSIVE").execute(&mut lock).await.unwrap();
    let refused = admin.put("/upstreams/u", json!({"targets": []})).await;
    expect(&refused, 503);
    assert!(refused.header("retry-after").is_some());
    expect(&admin.get("/routes/r").await, 200);
    let ready = send(raw_request(&Method::GET, &format!("{}/healthz", admin.url))).await.unwrap();
    assert_eq!(ready.status, StatusCode::OK);
    sqlx::query("ROLLBACK").execute(&mut lock).await.unwrap();
    expect(&admin.put("/upstreams/u", json!({"targets": []})).await, 200);
    assert_eq!(admin.head(), 3);
}

#[tokio::test]
async fn fleets_get_what_they_are_named_for() {
    let admin = Admin::with_route().await;
    let view = |fleet: &str| {
        let published = admin.publisher.current();
        let view = admin.publisher.view(&published, fleet);
        assert_eq!(
            view.digest(),
            published.snapshot.visible_to(fleet).digest(),
            "the cache agrees with the rule"
        );
        view.iter().map(|resource| resource.key().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(view("eu"), ["route/r", "upstream/u"]);
    expect(&admin.put("/upstreams/only-eu", json!({"targets": [], "fleets": ["eu"]})).await, 201);
    assert_eq!(view("eu"), ["route/r", "upstream/only-eu", "upstream/u"]);
    assert_eq!(view("us"), ["route/r", "upstream/u"]);
    expect(&admin.put("/upstreams/only-eu", json!({"targets": [], "fleets": ["us"]})).await, 200);
    assert_eq!(view("eu"), ["route/r", "upstream/u"]);
    assert_eq!(view("us"), ["route/r", "upstream/only-eu", "upstream/u"]);
    expect(&admin.put("/upstreams/w", upstream()).await, 201);
    assert_eq!(view("us"), ["route/r", "upstream/only-eu", "upstream/u", "upstream/w"]);
    let fleets = admin.get("/fleet-statuses").await;
    assert!(fleets.body["items"].as_array().unwrap().iter().any(|fleet| fleet["name"] == "us"), "{fleets}");
    expect(&admin.delete("/upstreams/only-eu").await, 204);
    assert_eq!(view("us"), ["route/r", "upstream/u", "upstream/w"]);
}
