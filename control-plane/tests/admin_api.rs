//! The admin API over real connections, on a real SQLite database. What proxies do is told to the board directly.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "admin_api/writes.rs"]
mod writes;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use signalbox_config::Kind;
use signalbox_control_plane::auth::{Credentials, TokenFlags, TokenText};
use signalbox_control_plane::board::{Board, EndedBy, Event, Node, ProxyResourceError, Sharing};
use signalbox_control_plane::metrics::Metrics;
use signalbox_control_plane::publish::Publisher;
use signalbox_control_plane::rest::{self, Services};
use signalbox_control_plane::serve::{self, Site};
use signalbox_control_plane::store::{self, KeySource, NewChange, NewRevision, Role, Store};
use signalbox_control_plane::xds::Xds;
use signalbox_tests::control_plane::{EventsAs, send};
use signalbox_tests::{Api, ApiAnswer, eventually};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A control plane in this process.
struct Admin {
    api: Api,
    url: String,
    publisher: Arc<Publisher>,
    board: Arc<Board>,
    store: Arc<dyn Store>,
    shutdown: CancellationToken,
    database: PathBuf,
    _dir: Arc<TempDir>,
}

const ADMIN: &str = "the-token-of-the-admin";
const EDITOR: &str = "the-token-of-an-editor";
const VIEWER: &str = "the-token-of-a-viewer";
const PROXY: &str = "the-token-of-the-proxies";

impl Drop for Admin {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Admin {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("signalbox.db");
        let url = format!("sqlite://{}", database.display());
        let store = store::open(&url).await.unwrap();
        let store = store::seal(store, KeySource::Made(store::key_beside(&url).unwrap())).await.unwrap();
        Self::start_on(store, database, Arc::new(dir)).await
    }

    async fn start_on(store: Arc<dyn Store>, database: PathBuf, dir: Arc<TempDir>) -> Self {
        let metrics = Arc::new(Metrics::default());
        let flags = TokenFlags::default();
        let credentials = Credentials::load(Arc::clone(&store), Arc::clone(&metrics), flags).await.unwrap();
        for (name, role, text) in [
            ("admin", Role::Admin, ADMIN),
            ("editor", Role::Editor, EDITOR),
            ("viewer", Role::Viewer, VIEWER),
            ("proxy", Role::Proxy, PROXY),
        ] {
            credentials.create(name, role, &TokenText(text.to_owned())).await.unwrap();
        }
        let publisher = Publisher::start(Arc::clone(&store), Arc::clone(&metrics)).await.unwrap();
        let board = Board::open(Arc::clone(&store), "here", Sharing::Alone).await.unwrap();
        let shutdown = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (serves, tells) = (Arc::clone(&publisher), Arc::clone(&board));
        let xds = Xds::new(serves, tells, Arc::clone(&credentials), Arc::clone(&metrics));
        let proxies = TcpListener::bind("127.0.0.1:0").await.unwrap();
        tokio::spawn(xds.serve(proxies, None, shutdown.clone()));
        let site = Site::default();
        let (router, feed) = rest::router(Services {
            publisher: Arc::clone(&publisher),
            store: Arc::clone(&store),
            credentials: Arc::clone(&credentials),
            board: Arc::clone(&board),
            metrics,
            replica: "here".to_owned(),
            tls: false,
            shutdown: shutdown.clone(),
        });
        site.open(router);
        tokio::spawn(feed);
        tokio::spawn(Arc::clone(&publisher).follow(shutdown.clone()));
        tokio::spawn(credentials.follow(shutdown.clone()));
        tokio::spawn(Arc::clone(&board).run(shutdown.clone()));
        tokio::spawn(serve::serve(listener, None, site, shutdown.clone()));
        let api = Api::new(url.clone(), ADMIN).unwrap();
        Self { api, url, publisher, board, store, shutdown, database, _dir: dir }
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> ApiAnswer {
        self.api.call(method, path, body.as_ref()).await.unwrap()
    }

    async fn get(&self, path: &str) -> ApiAnswer {
        self.call(Method::GET, path, None).await
    }

    async fn put(&self, path: &str, body: Value) -> ApiAnswer {
        self.call(Method::PUT, path, Some(body)).await
    }

    async fn post(&self, path: &str, body: Value) -> ApiAnswer {
        self.call(Method::POST, path, Some(body)).await
    }

    async fn delete(&self, path: &str) -> ApiAnswer {
        self.call(Method::DELETE, path, None).await
    }

    async fn with_header(
        &self,
        method: Method,
        path: &str,
        header: (&str, &str),
        body: Option<Value>,
    ) -> ApiAnswer {
        let mut request = self.api.request(method, path).header(header.0, header.1);
        if let Some(body) = body {
            request = request.json(&body);
        }
        send(request).await.unwrap()
    }

    async fn raw(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<Vec<u8>>,
    ) -> ApiAnswer {
        let request = self.api.request(method, path).header("content-type", content_type).body(body.into());
        send(request).await.unwrap()
    }

    fn head(&self) -> u64 {
        self.publisher.current().snapshot.id().number
    }

    /// An upstream `u` and a route `r` to it: revisions 1 and 2.
    async fn with_route() -> Self {
        let admin = Self::start().await;
        expect(&admin.put("/upstreams/u", upstream()).await, 201);
        expect(&admin.put("/routes/r", route("u")).await, 201);
        admin
    }
}

fn upstream() -> Value {
    json!({"targets": [{"address": "10.0.0.1:80"}]})
}

fn route(upstream: &str) -> Value {
    json!({"match": {"hosts": ["a.example.com"]}, "forward": {"upstreams": [{"name": upstream}]}})
}

#[track_caller]
fn expect(answer: &ApiAnswer, status: u16) {
    assert_eq!(answer.status.as_u16(), status, "{answer}");
    if status >= 400 {
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{answer}");
        assert_eq!(answer.body["status"], status, "{answer}");
        assert!(!answer.body["detail"].as_str().unwrap_or_default().is_empty(), "{answer}");
    }
}

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

    // What was read can be written back as it is: nothing differs, so nothing is made.
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
    // What curl names when it is told nothing.
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
async fn apply_is_one_revision_and_none_when_nothing_differs() {
    let admin = Admin::start().await;
    let yaml = "
kind: upstream
name: u
targets: [{address: '10.0.0.1:80'}]
---
kind: route
name: r
forward: {upstreams: [{name: u}]}
---
kind: route
name: s
respond: {status: 204}
";
    let applied = admin.raw(Method::POST, "/apply", "application/yaml", yaml).await;
    expect(&applied, 200);
    assert_eq!(
        (&applied.body["revision"], applied.body["changes"].as_array().map(Vec::len)),
        (&json!(1), Some(3))
    );
    let again = admin.raw(Method::POST, "/apply", "application/yaml", yaml).await;
    assert_eq!((again.status.as_u16(), &again.body["revision"]), (200, &Value::Null), "{again}");
    assert_eq!(again.header("signalbox-revision"), Some("1"));

    // Without prune, what is absent stays; with it, it goes.
    let part = json!({"routes": [{"name": "s", "respond": {"status": 200}}]});
    expect(&admin.post("/apply", part.clone()).await, 200);
    expect(&admin.get("/routes/r").await, 200);
    let pruned = admin.post("/apply?prune=true&allow_mass_delete=true", part).await;
    let actions: Vec<_> = pruned.body["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["name"].clone(), c["action"].clone()))
        .collect();
    assert_eq!(actions, [(json!("r"), json!("deleted")), (json!("u"), json!("deleted"))], "{pruned}");
    expect(&admin.get("/upstreams/u").await, 404);
    assert_eq!(admin.head(), 3);

    // An export is a document that changes nothing.
    let exported = admin.get("/export").await;
    assert_eq!(exported.header("content-type"), Some("application/yaml"));
    let text = exported.body.as_str().unwrap().to_owned();
    let unchanged = admin.raw(Method::POST, "/apply?prune=true", "application/yaml", text).await;
    assert_eq!(unchanged.body["revision"], Value::Null, "{unchanged}");
    let json_export = admin.get("/export?format=json&revision=1").await;
    assert_eq!(json_export.body["routes"].as_array().map(Vec::len), Some(2), "{json_export}");
    expect(&admin.get("/export?revision=99").await, 404);
}

#[tokio::test]
async fn an_apply_with_errors_names_each_and_stores_nothing() {
    let admin = Admin::start().await;
    let document = json!({
        "routes": [
            {"name": "a", "respond": {"status": 204}},
            {"name": "b", "forward": {"upstreams": [{"name": "missing"}]}},
        ],
    });
    let refused = admin.post("/apply", document).await;
    expect(&refused, 422);
    assert_eq!(refused.fields(), ["routes[1].forward.upstreams[0].name"]);

    let document = json!({
        "routes": [{"name": "a", "respond": {"status": 99}}, {"name": "A", "respond": {}}],
        "consumers": [{"name": "c", "unknown": 1}],
    });
    let refused = admin.post("/apply", document).await;
    expect(&refused, 422);
    let fields: BTreeSet<&str> = refused.fields().into_iter().collect();
    assert_eq!(
        fields,
        BTreeSet::from(["consumers[0].unknown", "routes[0].respond.status", "routes[1].name"])
    );

    let twice = json!({"routes": [{"name": "a", "respond": {}}, {"name": "a", "respond": {}}]});
    let refused = admin.post("/apply", twice).await;
    expect(&refused, 422);
    assert_eq!(refused.fields(), ["routes[1].name"]);
    let refused = admin.post("/apply", json!({"rooutes": []})).await;
    expect(&refused, 422);
    assert_eq!(refused.fields(), ["rooutes"]);
    assert_eq!(admin.head(), 0);
}

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

    // What was read is written back with another field: the key stays.
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

/// A certificate for `name`, which is good until a time given in years from 1970, and its key.
fn certificate(name: &str, until: i32) -> Value {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    let made = params.self_signed(&key).unwrap();
    json!({"certificate": made.pem(), "private_key": key.serialize_pem()})
}

#[tokio::test]
async fn a_certificates_key_is_kept_and_told_to_nobody() {
    let admin = Admin::start().await;
    let first = certificate("a.example", 4000);
    let key = first["private_key"].as_str().unwrap().lines().nth(1).unwrap().to_owned();
    let created = admin.put("/certificates/c", first.clone()).await;
    expect(&created, 201);
    assert_eq!(created.body["meta"]["certificate"]["names"], json!(["a.example"]));
    assert_eq!(created.body["meta"]["certificate"]["not_after"], json!(64_060_588_800_i64));
    let one = created.revision().unwrap();

    // Another certificate with its key, and back again.
    expect(&admin.put("/certificates/c", certificate("a.example", 4000)).await, 200);
    for path in [
        "/certificates/c",
        "/certificates",
        "/revisions/1",
        "/revisions/2",
        "/export",
        "/revisions/1/diff",
        "/revisions/2/diff",
        "/export?revision=1",
        "/audit",
    ] {
        let text = admin.get(path).await.body.to_string();
        assert!(path == "/audit" || text.contains("<redacted>"), "{path}: {text}");
        assert!(!text.contains("PRIVATE KEY") && !text.contains(&key), "{path}: {text}");
    }
    expect(&admin.post(&format!("/revisions/{one}/rollback"), json!({})).await, 200);
    let read = admin.get("/certificates/c").await.body;
    assert_eq!(read["meta"]["version"], created.body["meta"]["version"], "the key is the first again");
    let mut again = read.clone();
    again["description"] = json!("renewed by hand");
    expect(&admin.put("/certificates/c", again).await, 200);
    let exported = admin.get("/export?format=json").await.body;
    let unchanged = admin.post("/apply?prune=true", exported).await;
    assert_eq!((unchanged.status.as_u16(), &unchanged.body["revision"]), (200, &Value::Null), "{unchanged}");

    let raw = std::fs::read(&admin.database).unwrap();
    let wal = std::fs::read(admin.database.with_extension("db-wal")).unwrap_or_default();
    let disk = [raw, wal].concat();
    assert!(!disk.windows(key.len()).any(|window| window == key.as_bytes()));
}

#[tokio::test]
async fn a_certificate_that_cannot_serve_is_refused_with_the_reason() {
    let admin = Admin::start().await;
    let expired = admin.put("/certificates/c", certificate("a.example", 2020)).await;
    expect(&expired, 422);
    assert_eq!(expired.message("certificate"), "expired on 2020-01-01T00:00:00Z");
    let document = json!({"certificates": [{"name": "c"}]});
    expect(&admin.post("/apply", document).await, 422);

    // A root that has expired says nothing, an intermediate authority that has makes the chain useless.
    let authority = |name: &str, until| {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        (params, rcgen::KeyPair::generate().unwrap())
    };
    let (params, key) = authority("root", 2020);
    let root = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
    for (until, status) in [(2020, 422), (4000, 201)] {
        let (params, key) = authority("intermediate", until);
        let intermediate = rcgen::CertifiedIssuer::signed_by(params, key, &root).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["chained.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(4000, 1, 1);
        let own = params.signed_by(&key, &intermediate).unwrap();
        let chain = own.pem() + &intermediate.as_ref().pem() + &root.as_ref().pem();
        let spec = json!({"certificate": chain, "private_key": key.serialize_pem()});
        let answer = admin.put("/certificates/chained", spec).await;
        expect(&answer, status);
        if status == 422 {
            let reason = "is of no use: its certificate 2 expired on 2020-01-01T00:00:00Z";
            assert_eq!(answer.message("certificate"), reason);
        }
    }

    expect(&admin.put("/certificates/c", certificate("a.example", 4000)).await, 201);
    let taken = admin.put("/certificates/d", certificate("a.example", 4000)).await;
    expect(&taken, 409);
    assert!(taken.message("snis").contains("certificate/c"), "{taken}");
    let listener =
        json!({"address": "127.0.0.1:8443", "protocol": "https", "tls": {"default_certificate": "x"}});
    let dangling = admin.put("/listeners/https", listener).await;
    expect(&dangling, 422);
    assert_eq!(dangling.fields(), ["tls.default_certificate"]);
    let upstream = json!({"targets": [], "tls": {"certificate": "c"}});
    expect(&admin.put("/upstreams/u", upstream).await, 201);
    expect(&admin.call(Method::DELETE, "/certificates/c", None).await, 409);
}

/// What an authority says in OCSP of a certificate that it has issued, from now on for seven days, in DER.
fn ocsp_response(authority: &rcgen::CertifiedIssuer<'_, rcgen::KeyPair>, own: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let openssl = |arguments: &[&str]| {
        let output =
            std::process::Command::new("openssl").args(arguments).current_dir(&dir).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    std::fs::write(dir.path().join("ca.pem"), authority.as_ref().pem()).unwrap();
    std::fs::write(dir.path().join("ca.key"), authority.key().serialize_pem()).unwrap();
    std::fs::write(dir.path().join("own.pem"), own).unwrap();
    let serial = openssl(&["x509", "-in", "own.pem", "-noout", "-serial"]);
    let serial = serial.trim().trim_start_matches("serial=");
    std::fs::write(dir.path().join("index"), format!("V\t400101000000Z\t\t{serial}\tunknown\t/CN=a\n"))
        .unwrap();
    openssl(&[
        "ocsp", "-index", "index", "-rsigner", "ca.pem", "-rkey", "ca.key", "-CA", "ca.pem", "-issuer",
        "ca.pem", "-cert", "own.pem", "-respout", "told", "-ndays", "7",
    ]);
    std::fs::read(dir.path().join("told")).unwrap()
}

#[tokio::test]
async fn a_staple_of_another_certificate_or_out_of_date_is_refused() {
    let admin = Admin::start().await;
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    let issued = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        (params.signed_by(&key, &authority).unwrap().pem(), key.serialize_pem())
    };
    let (own, key) = issued();
    let good = ocsp_response(&authority, &own);
    let others = ocsp_response(&authority, &issued().0);
    // Times are GeneralizedTime of 15 bytes: when it was made, from when it is good, and until when. The signature does not matter.
    let at = |mut response: Vec<u8>, index: usize, time: &[u8; 15]| {
        let times = response.windows(2).enumerate().filter(|(_, bytes)| *bytes == [0x18, 15]);
        let start = times.map(|(start, _)| start + 2).nth(index).unwrap();
        response[start..start + 15].copy_from_slice(time);
        response
    };
    let expired = at(good.clone(), 2, b"20210101000000Z");
    let early = at(good.clone(), 1, b"20990101000000Z");
    for (response, reason) in [
        (others, "is of another certificate"),
        (expired, "expired on 2021-01-01T00:00:00Z"),
        (early, "is not good before it was made, on 2099-01-01T00:00:00Z"),
    ] {
        let spec = json!({"certificate": own, "private_key": key, "ocsp_staple": base64(&response)});
        for path in ["/certificates/c", "/certificates/c?dry_run=true"] {
            let refused = admin.put(path, spec.clone()).await;
            expect(&refused, 422);
            assert_eq!(refused.fields(), ["ocsp_staple"]);
            assert!(refused.message("ocsp_staple").starts_with(reason), "{refused}");
        }
    }
    let spec = json!({"certificate": own, "private_key": key, "ocsp_staple": base64(&good)});
    expect(&admin.put("/certificates/c", spec).await, 201);
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine as _;
    ::base64::prelude::BASE64_STANDARD.encode(bytes)
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
async fn roles_bound_what_tokens_may_do() {
    let admin = Admin::start().await;
    let status = async |token: &str, method: Method, path: &str, body: Option<Value>| {
        admin.api.with_token(token).call(method, path, body.as_ref()).await.unwrap().status.as_u16()
    };
    for (token, read, write, admin_only) in [
        (VIEWER, 200, 403, 403),
        (EDITOR, 200, 201, 403),
        (ADMIN, 200, 200, 200),
        (PROXY, 403, 403, 403),
        ("x", 401, 401, 401),
    ] {
        assert_eq!(status(token, Method::GET, "/routes", None).await, read, "{token}");
        assert_eq!(status(token, Method::PUT, "/upstreams/u", Some(upstream())).await, write, "{token}");
        assert_eq!(status(token, Method::GET, "/tokens", None).await, admin_only, "{token}");
        assert_eq!(status(token, Method::GET, "/audit", None).await, admin_only, "{token}");
    }
    let unknown = admin.api.with_token("x").call(Method::GET, "/routes", None).await.unwrap();
    expect(&unknown, 401);
    assert_eq!(unknown.header("www-authenticate"), Some("Bearer realm=\"signalbox\""));
}

#[tokio::test]
async fn tokens_are_made_used_and_revoked() {
    let admin = Admin::start().await;
    let made = admin.post("/tokens", json!({"name": "ci", "role": "editor"})).await;
    expect(&made, 201);
    let text = made.body["token"].as_str().unwrap();
    assert!(text.starts_with("sbx_") && text.len() == 68, "{text}");
    let ci = admin.api.with_token(text);
    let written = ci.call(Method::PUT, "/upstreams/u", Some(&upstream())).await.unwrap();
    assert_eq!(written.body["meta"]["updated_by"], "ci");

    expect(&admin.post("/tokens", json!({"name": "ci", "role": "viewer"})).await, 409);
    let refused = admin.post("/tokens", json!({"name": "X", "role": "viewer"})).await;
    expect(&refused, 422);
    assert_eq!(refused.fields(), ["name"]);
    let refused = admin.post("/tokens", json!({"name": "x", "role": "king", "more": 1})).await;
    expect(&refused, 422);
    let fields: BTreeSet<&str> = refused.fields().into_iter().collect();
    assert_eq!(fields, BTreeSet::from(["more", "role"]), "{refused}");

    let listed = admin.get("/tokens").await;
    let names: Vec<&str> =
        listed.body["items"].as_array().unwrap().iter().filter_map(|item| item["name"].as_str()).collect();
    assert_eq!(names, ["admin", "ci", "editor", "proxy", "viewer"]);
    assert!(!listed.body.to_string().contains(text), "no text comes back");

    expect(&admin.delete("/tokens/admin").await, 409);
    expect(&admin.delete("/tokens/ci").await, 204);
    expect(&admin.delete("/tokens/ci").await, 404);
    expect(&ci.call(Method::GET, "/upstreams", None).await.unwrap(), 401);

    let audit = admin.get("/audit").await;
    let entries: Vec<(&Value, &Value)> = audit.body["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (&entry["actor"], &entry["action"]))
        .collect();
    assert_eq!(
        entries,
        [
            (&json!("admin"), &json!("DELETE /api/v1/tokens/ci")),
            (&json!("ci"), &json!("PUT /api/v1/upstreams/u")),
            (&json!("admin"), &json!("POST /api/v1/tokens")),
        ],
        "{audit}"
    );
}

#[tokio::test]
async fn a_session_is_a_cookie_that_other_sites_cannot_use() {
    let admin = Admin::start().await;
    let nobody = admin.api.with_token("");
    let refused = nobody.call(Method::POST, "/session", Some(&json!({"token": "wrong"}))).await.unwrap();
    expect(&refused, 401);
    expect(&nobody.call(Method::POST, "/session", Some(&json!({"token": PROXY}))).await.unwrap(), 401);
    let logged_in = nobody.call(Method::POST, "/session", Some(&json!({"token": EDITOR}))).await.unwrap();
    expect(&logged_in, 200);
    assert_eq!(logged_in.body, json!({"name": "editor", "role": "editor"}));
    let cookie = logged_in.header("set-cookie").unwrap();
    assert!(
        cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict") && cookie.contains("Path=/"),
        "{cookie}"
    );
    let cookie = cookie.split(';').next().unwrap().to_owned();

    let browser = async |method: Method, path: &str, headers: &[(&str, &str)]| {
        let url = format!("{}/api/v1{path}", admin.url);
        // No Authorization header: the client of the harness always has one.
        let mut request = raw_request(&method, &url).header("cookie", &cookie);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if method != Method::GET {
            request = request.body(upstream().to_string());
        }
        send(request).await.unwrap()
    };
    assert_eq!(browser(Method::GET, "/session", &[]).await.body["name"], "editor");
    expect(&browser(Method::PUT, "/upstreams/u", &[]).await, 403);
    expect(&browser(Method::PUT, "/upstreams/u", &[("origin", "http://evil.example")]).await, 403);
    expect(&browser(Method::PUT, "/upstreams/u", &[("sec-fetch-site", "cross-site")]).await, 403);
    expect(&browser(Method::PUT, "/upstreams/u", &[("sec-fetch-site", "same-origin")]).await, 201);
    let origin = admin.url.clone();
    expect(&browser(Method::PUT, "/upstreams/u", &[("origin", &origin)]).await, 200);
    let logged_out = browser(Method::DELETE, "/session", &[]).await;
    expect(&logged_out, 204);
    assert!(logged_out.header("set-cookie").unwrap().contains("Max-Age=0"));
    // Whoever kept the cookie has nothing in hand.
    expect(&browser(Method::GET, "/session", &[]).await, 401);
    expect(&browser(Method::DELETE, "/session", &[]).await, 204);
}

/// Logs in; the `Cookie` header of the session.
async fn log_in(admin: &Admin, token: &str) -> String {
    admin.api.log_in(token).await.unwrap()
}

#[tokio::test]
async fn a_cookie_is_no_token_and_a_token_is_no_cookie() {
    let admin = Admin::start().await;
    let cookie = log_in(&admin, EDITOR).await;
    let (name, value) = cookie.split_once('=').unwrap();
    assert!(value.len() == 64 && value.bytes().all(|byte| byte.is_ascii_hexdigit()), "{value}");
    assert_ne!(cookie, log_in(&admin, EDITOR).await, "each login opens a session of its own");
    let as_token = admin.api.with_token(value).call(Method::GET, "/routes", None).await.unwrap();
    expect(&as_token, 401);
    for forged in [EDITOR, "", &"0".repeat(64), &value[1..], &format!("{value}0")] {
        let cookie = format!("{name}={forged}");
        expect(&send(admin.api.with_cookie(Method::GET, "/routes", &cookie)).await.unwrap(), 401);
    }
    expect(&send(admin.api.with_cookie(Method::GET, "/routes", &cookie)).await.unwrap(), 200);

    // Neither a cookie nor a token's text is in the database.
    let mut raw = Vec::new();
    for file in std::fs::read_dir(admin.database.parent().unwrap()).unwrap() {
        raw.extend(std::fs::read(file.unwrap().path()).unwrap());
    }
    for secret in [value, EDITOR] {
        assert!(!raw.windows(secret.len()).any(|part| part == secret.as_bytes()), "{secret} is stored");
    }
}

#[tokio::test]
async fn an_empty_token_is_nobodys_whatever_is_stored() {
    let admin = Admin::start().await;
    // A version before could store one.
    let empty = signalbox_control_plane::store::TokenRow {
        name: "empty".to_owned(),
        role: Role::Admin.into(),
        hash: signalbox_config::sha256(b"").to_vec(),
        created_at_us: 0,
    };
    assert!(admin.store.create_token(&empty).await.unwrap());
    // Its creation has been seen once a later one has been.
    let made = admin.post("/tokens", json!({"name": "ci", "role": "viewer"})).await;
    expect(&made, 201);
    let nobody = admin.api.with_token("");
    expect(&nobody.call(Method::GET, "/routes", None).await.unwrap(), 401);
    for text in ["", " ", "\n"] {
        let refused = nobody.call(Method::POST, "/session", Some(&json!({"token": text}))).await.unwrap();
        expect(&refused, 401);
        assert!(refused.header("set-cookie").is_none(), "{refused}");
    }
    let cookie = "signalbox_session=";
    expect(&send(admin.api.with_cookie(Method::GET, "/routes", cookie)).await.unwrap(), 401);
    expect(&admin.delete("/tokens/empty").await, 204);
}

#[tokio::test]
async fn sessions_are_listed_and_ended_by_an_administrator() {
    let admin = Admin::start().await;
    let (editor, viewer) = (log_in(&admin, EDITOR).await, log_in(&admin, VIEWER).await);
    let own = log_in(&admin, ADMIN).await;
    let ask = async |method: Method, path: &str, cookie: &str| {
        send(admin.api.with_cookie(method, path, cookie)).await.unwrap()
    };
    let listed = ask(Method::GET, "/sessions", &own).await;
    expect(&listed, 200);
    let items = listed.body["items"].as_array().unwrap();
    let seen: Vec<_> =
        items.iter().map(|item| (item["token"].as_str().unwrap(), item["current"] == true)).collect();
    assert_eq!(seen, [("editor", false), ("viewer", false), ("admin", true)]);
    for cookie in [&editor, &viewer, &own] {
        let value = cookie.split_once('=').unwrap().1;
        assert!(!listed.body.to_string().contains(value), "no cookie comes back");
    }
    let (created, expires) = (&items[0]["created_at"], &items[0]["expires_at"]);
    let moment = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert_eq!(moment(expires).as_second() - moment(created).as_second(), 7 * 24 * 3600);

    expect(&ask(Method::GET, "/sessions", &editor).await, 403);
    expect(&ask(Method::DELETE, "/sessions", &editor).await, 403);
    let id = items[0]["id"].as_str().unwrap();
    expect(&ask(Method::DELETE, &format!("/sessions/{id}"), &viewer).await, 403);
    expect(&ask(Method::DELETE, &format!("/sessions/{id}"), &own).await, 204);
    expect(&ask(Method::DELETE, &format!("/sessions/{id}"), &own).await, 404);
    expect(&ask(Method::GET, "/routes", &editor).await, 401);
    expect(&ask(Method::GET, "/routes", &viewer).await, 200);

    expect(&ask(Method::DELETE, "/sessions", &own).await, 204);
    for cookie in [&viewer, &own] {
        expect(&ask(Method::GET, "/routes", cookie).await, 401);
    }
    assert_eq!(admin.get("/sessions").await.body["items"], json!([]));
    let audit = admin.get("/audit").await;
    assert_eq!(audit.body["items"][0]["detail"], "end all 2 sessions", "{audit}");
}

#[tokio::test]
async fn a_token_that_is_revoked_takes_its_sessions_and_event_streams_with_it() {
    let admin = Admin::start().await;
    let made = admin.post("/tokens", json!({"name": "ci", "role": "editor"})).await;
    let text = made.body["token"].as_str().unwrap();
    let cookie = log_in(&admin, text).await;
    let other = log_in(&admin, EDITOR).await;
    let mut streams = Vec::new();
    for how in [EventsAs::Token(text), EventsAs::Cookie(&cookie)] {
        streams.push(admin.api.event_stream(how).await.unwrap());
    }
    let mut stays = admin.api.event_stream(EventsAs::Cookie(&other)).await.unwrap();
    expect(&admin.delete("/tokens/ci").await, 204);
    for stream in &mut streams {
        ends(stream).await;
    }
    expect(&send(admin.api.with_cookie(Method::GET, "/routes", &cookie)).await.unwrap(), 401);
    assert_eq!(admin.get("/sessions").await.body["items"].as_array().unwrap().len(), 1);
    // A token of the same name does not bring the session back.
    expect(&admin.post("/tokens", json!({"name": "ci", "role": "editor"})).await, 201);
    expect(&send(admin.api.with_cookie(Method::GET, "/routes", &cookie)).await.unwrap(), 401);
    // The others go on.
    expect(&admin.put("/upstreams/u", upstream()).await, 201);
    let told = tokio::time::timeout(Duration::from_secs(30), stays.chunk()).await.unwrap();
    assert!(told.unwrap().is_some());
}

/// Reads an event stream to its end, which must come.
async fn ends(stream: &mut reqwest::Response) {
    let end = async { while stream.chunk().await.unwrap().is_some() {} };
    tokio::time::timeout(Duration::from_secs(10), end).await.expect("the stream goes on");
}

#[tokio::test]
async fn a_session_ends_when_its_time_is_over() {
    use sqlx::Connection as _;
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let database = dir.path().join("signalbox.db");
    let url = format!("sqlite://{}", database.display());
    let start =
        async || Admin::start_on(store::open(&url).await.unwrap(), database.clone(), Arc::clone(&dir)).await;
    let admin = start().await;
    let (idle, old, good) =
        (log_in(&admin, EDITOR).await, log_in(&admin, EDITOR).await, log_in(&admin, EDITOR).await);
    drop(admin);
    let mut sql = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let hash = |cookie: &str| signalbox_config::sha256(cookie.split_once('=').unwrap().1.as_bytes()).to_vec();
    let hours = |hours: i64| jiff::Timestamp::now().as_microsecond() - hours * 3_600_000_000;
    for (cookie, column, value) in [
        (&idle, "last_used_at_us", hours(13)),
        (&good, "last_used_at_us", hours(11)),
        (&old, "expires_at_us", hours(1)),
    ] {
        let statement = format!("UPDATE sessions SET {column} = $1 WHERE hash = $2");
        let done = sqlx::query(sqlx::AssertSqlSafe(statement))
            .bind(value)
            .bind(hash(cookie))
            .execute(&mut sql)
            .await;
        assert_eq!(done.unwrap().rows_affected(), 1);
    }
    let admin = start().await;
    for (cookie, status) in [(&idle, 401), (&old, 401), (&good, 200)] {
        expect_status(&send(admin.api.with_cookie(Method::GET, "/routes", cookie)).await.unwrap(), status);
    }
    // The use is in the database after a while, and what is over is not.
    let last_used: i64 = hours(1);
    let stored = eventually(Duration::from_secs(20), async || {
        let rows: Vec<(i64,)> =
            sqlx::query_as("SELECT last_used_at_us FROM sessions").fetch_all(&mut sql).await.unwrap();
        rows.len() == 1 && rows[0].0 > last_used
    });
    assert!(stored.await);
}

#[track_caller]
fn expect_status(answer: &ApiAnswer, status: u16) {
    assert_eq!(answer.status.as_u16(), status, "{answer}");
}

#[tokio::test]
async fn a_token_has_a_hundred_sessions_at_most() {
    let admin = Admin::start().await;
    let other = log_in(&admin, VIEWER).await;
    let first = log_in(&admin, EDITOR).await;
    let second = log_in(&admin, EDITOR).await;
    for _ in 0..99 {
        log_in(&admin, EDITOR).await;
    }
    for (cookie, status) in [(&first, 401), (&second, 200), (&other, 200)] {
        expect_status(&send(admin.api.with_cookie(Method::GET, "/routes", cookie)).await.unwrap(), status);
    }
}

/// A request without a token.
fn raw_request(method: &Method, url: &str) -> reqwest::RequestBuilder {
    reqwest::Client::new().request(method.clone(), url)
}

#[tokio::test]
async fn too_many_bad_tokens_are_told_to_wait_and_good_ones_are_not() {
    let admin = Admin::start().await;
    let bad = admin.api.with_token("bad");
    let mut statuses = Vec::new();
    for _ in 0..61 {
        statuses.push(bad.call(Method::GET, "/routes", None).await.unwrap());
    }
    let last = statuses.pop().unwrap();
    assert!(statuses.iter().all(|answer| answer.status == StatusCode::UNAUTHORIZED));
    expect(&last, 429);
    assert!(last.header("retry-after").unwrap().parse::<u32>().unwrap() <= 61);
    expect(&admin.get("/routes").await, 200);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    let admin = Admin::start().await;
    expect(&admin.get("/nowhere").await, 404);
    expect(&admin.get("/routes/missing").await, 404);
    expect(&admin.get("/routes/%2F").await, 404);
    expect(&admin.get("/proxies/missing").await, 404);
    expect(&admin.get("/rollouts/9-missing").await, 404);
    expect(&admin.delete("/proxies/missing").await, 404);
    let refused = admin.call(Method::PATCH, "/routes", Some(json!({}))).await;
    expect(&refused, 405);
    let allowed: BTreeSet<&str> = refused.header("allow").unwrap().split(", ").collect();
    assert_eq!(allowed, BTreeSet::from(["GET", "HEAD", "POST"]));
    let answer = send(raw_request(&Method::GET, &format!("{}/api/v2/routes", admin.url))).await.unwrap();
    expect(&answer, 404);
}

#[tokio::test]
async fn explain_names_the_winner_the_losers_and_the_chain() {
    let admin = Admin::with_route().await;
    let document = json!({
        "upstreams": [{"name": "v", "targets": [{"address": "[::1]:81", "weight": 1}, {"address": "b:82", "weight": 3}]}],
        "plugins": [
            {"name": "everywhere", "type": "cors", "global": true, "config": {"origins": ["https://a.example"]}},
            {"name": "own", "type": "cors", "config": {"origins": ["https://b.example"]}},
            {"name": "keys", "type": "key-auth", "config": {}},
        ],
        "routes": [
            {
                "name": "special", "match": {"hosts": ["a.example.com"], "paths": [{"prefix": "/x"}]},
                "plugins": ["own", "keys"],
                "forward": {"upstreams": [{"name": "u", "weight": 1}, {"name": "v", "weight": 3}]},
            },
        ],
    });
    expect(&admin.post("/apply", document).await, 200);
    let answer =
        admin.post("/explain", json!({"method": "GET", "url": "http://A.example.com:80/x/y?q=1"})).await;
    expect(&answer, 200);
    let body = &answer.body;
    assert_eq!(
        (&body["winner"]["route"], &body["action"]),
        (&json!("special"), &json!("forward")),
        "{body:#}"
    );
    assert_eq!(body["losers"][0]["route"], "r", "{body:#}");
    assert_eq!(body["losers"][0]["lost_by"], "path_rank", "{body:#}");
    let chain: Vec<(&Value, bool)> = body["plugins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| (&step["name"], step["skipped"].is_null()))
        .collect();
    assert_eq!(
        chain,
        [(&json!("everywhere"), false), (&json!("own"), true), (&json!("keys"), true)],
        "{body:#}"
    );
    assert_eq!((&body["upstreams"][1]["name"], &body["upstreams"][1]["share"]), (&json!("v"), &json!(0.75)));
    assert_eq!(body["upstreams"][1]["targets"][0], json!({"address": "[::1]:81", "share": 0.25}));

    let before = admin.post("/explain", json!({"url": "http://a.example.com/x/y", "revision": 2})).await;
    assert_eq!(
        (&before.body["winner"]["route"], &before.body["revision"]),
        (&json!("r"), &json!(2)),
        "{before}"
    );
    let nothing = admin.post("/explain", json!({"url": "/", "headers": {"host": "other.example"}})).await;
    assert_eq!((&nothing.body["winner"], &nothing.body["action"]), (&Value::Null, &Value::Null), "{nothing}");
    let wrong =
        admin.post("/explain", json!({"url": "http://[", "method": "a b", "headers": {"a b": "c"}})).await;
    expect(&wrong, 422);
    let fields: BTreeSet<&str> = wrong.fields().into_iter().collect();
    assert_eq!(fields, BTreeSet::from(["headers.a b", "method", "url"]));
    expect(&admin.post("/explain", json!({"url": "/", "revision": 99})).await, 404);
}

#[tokio::test]
async fn explain_says_which_plugin_answers_a_preflight() {
    let admin = Admin::start().await;
    let document = json!({
        "plugins": [
            {"name": "everywhere", "type": "cors", "config": {}},
            {"name": "own", "type": "cors", "config": {"origins": ["https://b.example"]}},
            {"name": "off", "type": "cors", "enabled": false, "config": {}},
        ],
        "routes": [
            {"name": "all", "match": {"paths": [{"prefix": "/a"}]}, "respond": {"body": "x"}},
            {"name": "post", "match": {"paths": [{"prefix": "/a"}], "methods": ["POST"]}, "plugins": ["own"], "respond": {"body": "x"}},
            {"name": "put", "match": {"paths": [{"prefix": "/a"}], "methods": ["PUT"]}, "plugins": ["off"], "respond": {"body": "x"}},
        ],
    });
    expect(&admin.post("/apply", document).await, 200);
    let explain = async |path: &str, asked: &str| {
        let headers = json!({"origin": "https://b.example", "access-control-request-method": asked});
        let question = json!({"method": "OPTIONS", "url": format!("http://h{path}"), "headers": headers});
        let answer = admin.post("/explain", question).await;
        expect(&answer, 200);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        (text(&answer.body["winner"]["route"]), text(&answer.body["preflight_answered_by"]))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(explain("/a", "POST").await, (some("post"), some("own")));
    assert_eq!(explain("/a", "GET").await, (some("all"), None));
    assert_eq!(explain("/a", "PUT").await, (some("all"), None));
    assert_eq!(explain("/b", "PUT").await, (None, None));
    let global = json!({"plugins": [{"name": "everywhere", "type": "cors", "global": true, "config": {}}]});
    expect(&admin.post("/apply", global).await, 200);
    assert_eq!(explain("/b", "PUT").await, (None, some("everywhere")));
    assert_eq!(explain("/a", "PUT").await, (some("put"), some("everywhere")));
    assert_eq!(explain("/a", "POST").await, (some("post"), some("own")));
}

#[tokio::test]
async fn plugin_types_have_schemas() {
    let admin = Admin::start().await;
    let types = admin.get("/plugin-types").await;
    let items = types.body["items"].as_array().unwrap();
    assert_eq!(items.len(), signalbox_plugins::TYPES.len());
    for item in items {
        assert_eq!(item["schema"]["type"], "object", "{item}");
        assert!(
            item["default_order"].is_i64() && item["phases"].as_array().is_some_and(|p| !p.is_empty()),
            "{item}"
        );
    }
}

/// A proxy as the board knows it, without a process.
struct Proxy<'a> {
    admin: &'a Admin,
    id: Arc<str>,
}

impl<'a> Proxy<'a> {
    fn connect(admin: &'a Admin, id: &str) -> Self {
        let node = Node {
            id: id.into(),
            fleet: "default".into(),
            labels: Default::default(),
            version: "1".to_owned(),
            address: "127.0.0.1:1".to_owned(),
        };
        admin.board.fold(Event::Opened { stream: 1, node, presented: None, link: Default::default() });
        Self { admin, id: id.into() }
    }

    fn receive(&self) -> u64 {
        let number = self.admin.head();
        self.admin.board.fold(Event::Sent { stream: 1, id: self.id.clone(), revision: number });
        number
    }

    fn ack(&self) {
        self.receive();
        let revision = self.admin.publisher.current().snapshot.id().clone();
        self.admin.board.fold(Event::Acked { stream: 1, id: self.id.clone(), revision });
    }

    fn reject(&self) {
        let revision = self.receive();
        let resource = ProxyResourceError {
            kind: "listener".to_owned(),
            name: "http".to_owned(),
            field: "address".to_owned(),
            message: "the port is taken".to_owned(),
            changed_in: None,
        };
        let id = self.id.clone();
        self.admin.board.fold(Event::Rejected { stream: 1, id, revision, resources: vec![resource] });
    }
}

#[tokio::test]
async fn a_write_can_wait_until_it_is_served() {
    let admin = Admin::with_route().await;
    expect(&admin.put("/upstreams/w?wait=5s", upstream()).await, 201);
    let proxy = Proxy::connect(&admin, "p");
    proxy.ack();

    let timed_out = admin.put("/upstreams/w?wait=10ms", json!({"targets": []})).await;
    expect(&timed_out, 504);
    assert_eq!(timed_out.header("signalbox-revision"), Some("4"), "the revision stands");
    assert_eq!(admin.head(), 4);
    proxy.receive();
    expect(&admin.get("/revisions/4/wait?timeout=10ms").await, 504);
    proxy.reject();
    let rejected = admin.get("/revisions/4/wait?timeout=10s").await;
    expect(&rejected, 409);
    assert_eq!(rejected.body["rollouts"][0]["state"], "failed", "{rejected}");
    let shown = admin.get("/proxies/p").await;
    assert_eq!(shown.body["error"]["resources"][0]["message"], "the port is taken", "{shown}");

    // It waits, and answers once the proxy has it.
    let waiting = admin.put("/upstreams/w?wait=20s", upstream());
    let acknowledging = async {
        assert!(eventually(Duration::from_secs(10), async || admin.head() == 5).await);
        proxy.ack();
    };
    let (written, ()) = tokio::join!(waiting, acknowledging);
    expect(&written, 200);
    expect(&admin.get("/revisions/5/wait?fleet=typo").await, 404);
    let waited = admin.get("/revisions/5/wait?fleet=default").await;
    expect(&waited, 200);
    assert_eq!(waited.body["rollouts"][0]["state"], "succeeded", "{waited}");
    expect(&admin.get("/revisions/99/wait").await, 404);
    expect(&admin.put("/upstreams/w?wait=6m", upstream()).await, 400);
    expect(&admin.put("/upstreams/w?wait=soon", upstream()).await, 400);

    expect(&admin.delete("/proxies/p").await, 409);
    admin.board.fold(Event::Closed { stream: 1, id: "p".into(), by: EndedBy::Proxy });
    expect(&admin.delete("/proxies/p").await, 204);
    assert_eq!(admin.get("/proxies").await.body["items"], json!([]));
    let fleets = admin.get("/fleets").await;
    assert_eq!(fleets.body["items"][0]["name"], "default", "{fleets}");
    assert_eq!(admin.get("/stats").await.body["resources"]["upstreams"], 2);
}

/// What an event stream tells, until `count` events have come.
async fn events(
    admin: &Admin,
    last: Option<&str>,
    count: usize,
    then: impl AsyncFnOnce(),
) -> Vec<(String, String, Value)> {
    let mut request = admin.api.request(Method::GET, "/events");
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let mut answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    then().await;
    let mut text = String::new();
    let mut events = Vec::new();
    while events.len() < count {
        let chunk = answer.chunk().await.unwrap().expect("the stream goes on");
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        events = text
            .split_terminator("\n\n")
            .filter_map(|frame| {
                let field =
                    |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                Some((
                    field("id")?.to_owned(),
                    field("event")?.to_owned(),
                    serde_json::from_str(field("data")?).ok()?,
                ))
            })
            .collect();
    }
    events
}

#[tokio::test]
async fn events_tell_what_happens_and_what_was_missed() {
    let admin = Admin::start().await;
    let seen = events(&admin, None, 1, async || drop(admin.put("/upstreams/u", upstream()).await)).await;
    let (id, name, data) = &seen[0];
    assert_eq!((name.as_str(), &data["number"], &data["author"]), ("revision", &json!(1), &json!("admin")));

    expect(&admin.put("/upstreams/u", json!({"targets": []})).await, 200);
    expect(&admin.delete("/upstreams/u").await, 204);
    let missed = events(&admin, Some(id), 2, async || {}).await;
    let numbers: Vec<&Value> = missed.iter().map(|(.., data)| &data["number"]).collect();
    assert_eq!(numbers, [&json!(2), &json!(3)]);

    let reset = events(&admin, Some("another-1"), 1, async || {}).await;
    assert_eq!(reset[0].1, "reset");

    let seen = events(&admin, None, 2, async || Proxy::connect(&admin, "p").ack()).await;
    let kinds: BTreeSet<&str> = seen.iter().map(|(_, name, _)| name.as_str()).collect();
    assert!(kinds.contains("proxy"), "{seen:?}");
}

#[tokio::test]
async fn an_event_stream_tells_scripts_at_once_and_again_that_it_is_alive() {
    let admin = Admin::start().await;
    let mut answer = admin.api.request(Method::GET, "/events").send().await.unwrap();
    let mut text = String::new();
    let heartbeats = async {
        // A comment is not seen by a script in a browser, and a heartbeat with an id would be resumed from.
        while text.matches(": heartbeat\nevent: heartbeat\ndata: {}\n\n").count() < 2 {
            let chunk = answer.chunk().await.unwrap().expect("the stream goes on");
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(30), heartbeats).await.expect("two heartbeats come");
    assert!(!text.contains("id:"), "{text}");
}

#[tokio::test]
async fn event_streams_end_when_the_control_plane_stops() {
    let admin = Admin::start().await;
    let mut answer = admin.api.request(Method::GET, "/events").send().await.unwrap();
    admin.shutdown.cancel();
    let end = async { while let Ok(Some(_)) = answer.chunk().await {} };
    tokio::time::timeout(Duration::from_secs(30), end).await.expect("the stream ends");
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

    // What would lose it is refused, or leaves it alone.
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
    let fleets = admin.get("/fleets").await;
    assert!(fleets.body["items"].as_array().unwrap().iter().any(|fleet| fleet["name"] == "us"), "{fleets}");
    expect(&admin.delete("/upstreams/only-eu").await, 204);
    assert_eq!(view("us"), ["route/r", "upstream/u", "upstream/w"]);
}

#[tokio::test]
async fn every_documented_path_answers_and_the_document_is_whole() {
    let admin = Admin::start().await;
    let document =
        send(raw_request(&Method::GET, &format!("{}/api/v1/openapi.json", admin.url))).await.unwrap().body;
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{id} is there twice");
            assert!(
                operation["tags"][0].is_string()
                    && operation["summary"].as_str().is_some_and(|s| !s.is_empty())
            );
            let parameters: Vec<&str> = operation["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|parameter| parameter["in"] == "path")
                .filter_map(|parameter| parameter["name"].as_str())
                .collect();
            let in_path: Vec<&str> =
                path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
            assert_eq!(parameters, in_path, "{path}");
            assert!(
                operation["responses"].as_object().unwrap().keys().any(|status| status.starts_with('2')),
                "{id}"
            );
            // It is routed: without a token it is not "no such path" and not "no such method".
            let url =
                format!("{}/api/v1{}", admin.url, path.replace("{number}", "1").replace(['{', '}'], ""));
            let method: Method = method.to_uppercase().parse().unwrap();
            let answer = send(raw_request(&method, &url)).await.unwrap();
            let is_public = operation["security"] == json!([]);
            assert_eq!(answer.status == StatusCode::UNAUTHORIZED, !is_public, "{method} {path}: {answer}");
            assert!(!matches!(answer.status.as_u16(), 404 | 405), "{method} {path}: {answer}");
        }
    }
    for kind in Kind::ALL {
        let path = &document["paths"][format!("/{}/{{name}}", kind.plural())];
        for method in ["get", "put", "patch", "delete"] {
            assert!(path[method].is_object(), "{method} of {kind}");
        }
    }
    let mut references = BTreeSet::new();
    collect_references(&document, &mut references);
    assert!(references.len() > 20, "{references:?}");
    for reference in references {
        let pointer = reference.strip_prefix('#').expect("references stay within the document");
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    let route = &document["components"]["schemas"]["Route"];
    assert!(route["properties"]["meta"].is_object() && route["properties"]["match"].is_object(), "{route}");
}

fn collect_references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                found.insert(reference.to_owned());
            }
            fields.values().for_each(|field| collect_references(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_references(item, found)),
        _ => {}
    }
}

#[tokio::test]
async fn metrics_count_requests_by_template_and_class() {
    let admin = Admin::with_route().await;
    expect(&admin.get("/routes/r").await, 200);
    expect(&admin.get("/routes/missing").await, 404);
    let metrics = admin.api.metrics().await.unwrap();
    let name = "signalbox_http_request_duration_seconds_count";
    let path = "path=\"/routes/{name}\"";
    assert_eq!(metrics.sum(name, &[path, "method=\"GET\"", "code_class=\"2xx\""]), 1.0);
    assert_eq!(metrics.sum(name, &[path, "method=\"GET\"", "code_class=\"4xx\""]), 1.0);
    assert_eq!(metrics.sum("signalbox_head_revision", &[]), 2.0);
    assert_eq!(metrics.sum("signalbox_store_duration_seconds_count", &["operation=\"commit\""]), 2.0);
    for name in
        ["signalbox_connected_proxies", "signalbox_propagation_seconds_count", "signalbox_xds_nacks_total"]
    {
        assert!(metrics.has(name), "{name}");
    }
}

#[test]
fn the_ui_is_built_from_this_document() {
    let copy = concat!(env!("CARGO_MANIFEST_DIR"), "/../admin-ui/openapi.json");
    let copy = std::fs::read_to_string(copy).unwrap();
    let current = signalbox_control_plane::rest::openapi_json();
    assert!(copy.trim_end() == current.trim_end(), "run `npm run refresh` in admin-ui/");
}
