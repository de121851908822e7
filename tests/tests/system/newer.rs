//! A newer version beside this one on the same database, and the way back: what it wrote is kept, and nothing stops
//! because of it.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use signalbox_tests::{ControlPlane, Postgres, Proxy, eventually, get};

use crate::fixture::respond;

/// Makes the next revision as a newer version would: `policy/p`, of a kind that this version does not know, and
/// beside it a route that it does.
fn newer_write(postgres: &Postgres, policy: Option<&str>, body: &str) {
    let known =
        json!({"name": "beside", "match": {"paths": [{"prefix": "/beside"}]}, "respond": {"body": body}});
    let bytes = |text: &str| format!("convert_to('{text}', 'UTF8')");
    let after = policy.map_or("NULL".to_owned(), bytes);
    let put = match policy {
        Some(text) => format!(
            "INSERT INTO resources SELECT 'policy', 'p', {}, revision, 7, 7, 'newer' FROM head
             ON CONFLICT (kind, name) DO UPDATE SET spec = excluded.spec, revision = excluded.revision;",
            bytes(text)
        ),
        None => "DELETE FROM resources WHERE kind = 'policy';".to_owned(),
    };
    let known = bytes(&known.to_string());
    let statement = format!(
        "BEGIN;
         UPDATE head SET revision = revision + 1;
         INSERT INTO revisions SELECT revision, 'newer', '', 7, 2 FROM head;
         INSERT INTO resource_versions SELECT 'policy', 'p', revision, 7,
             (SELECT spec FROM resources WHERE kind = 'policy'), {after} FROM head;
         INSERT INTO resource_versions SELECT 'route', 'beside', revision, 7,
             (SELECT spec FROM resources WHERE name = 'beside'), {known} FROM head;
         {put}
         INSERT INTO resources SELECT 'route', 'beside', {known}, revision, 7, 7, 'newer' FROM head
             ON CONFLICT (kind, name) DO UPDATE SET spec = excluded.spec, revision = excluded.revision;
         NOTIFY signalbox_revision;
         COMMIT;"
    );
    postgres.sql(&statement).unwrap();
}

/// The policy as it is stored.
fn stored_policy(postgres: &Postgres) -> String {
    postgres.sql("SELECT convert_from(spec, 'UTF8') FROM resources WHERE kind = 'policy'").unwrap()
}

async fn ready(control_plane: &ControlPlane) -> Value {
    let answer = reqwest::get(format!("{}/readyz", control_plane.admin_url())).await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

/// Waits until a proxy answers so.
async fn serves(proxy: &Proxy, path: &str, body: &str) {
    let served = async || get(proxy.http(), "a", path).await.is_ok_and(|answer| answer.text() == body);
    assert!(eventually(Duration::from_secs(30), served).await, "{}", proxy.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_kind_and_a_role_of_a_newer_version_are_kept_and_stop_nothing() {
    let postgres = Postgres::new().unwrap();
    let mut one = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    let proxy = Proxy::of(&one, "p").await.unwrap();
    let api = one.api().clone();
    let before = api.put("routes", "r", &respond("/", "known")).await.unwrap();
    api.wait_default(before).await.unwrap();

    // While a replica runs.
    newer_write(&postgres, Some("{\"of\":\"the future\"}"), "beside it");
    serves(&proxy, "/beside", "beside it").await;
    api.wait_default(before + 1).await.unwrap();
    api.wait_in_sync(1).await.unwrap();
    assert_eq!(ready(&one).await["unknown_resources"], 1);
    assert_eq!(api.metrics().await.unwrap().sum("signalbox_unknown_resources", &[]), 1.0);
    assert!(one.log().contains("policy/p"), "{}", one.log());
    let shown = api.get(&format!("/revisions/{}", before + 1)).await.unwrap();
    assert_eq!(shown["unknown"], json!([{"kind": "policy", "name": "p", "action": "created"}]));
    assert!(!shown.to_string().contains("the future"), "{shown}");
    let diff = api.get(&format!("/revisions/{}/diff?from={before}", before + 1)).await.unwrap();
    assert_eq!(
        (diff["unknown"].as_array().unwrap().len(), diff["changes"].as_array().unwrap().len()),
        (1, 1)
    );

    // Writes of this version leave it as it is.
    let revision = api.put("routes", "r", &respond("/", "written beside it")).await.unwrap();
    assert_eq!(revision, before + 2);
    api.wait_default(revision).await.unwrap();
    serves(&proxy, "/", "written beside it").await;
    let exported = api.call(Method::GET, "/export?format=json", None).await.unwrap();
    assert_eq!(exported.header("signalbox-not-exported"), Some("policy/p"));
    let mut document = exported.body;
    document["routes"].as_array_mut().unwrap().retain(|route| route["name"] != "beside");
    let pruned = api.call(Method::POST, "/apply?prune=true", Some(&document)).await.unwrap();
    let pruned = pruned.success().unwrap();
    assert_eq!(pruned.body["changes"].as_array().unwrap().len(), 1, "{pruned}");
    assert_eq!(pruned.body["left_alone"], json!(["policy/p"]), "{pruned}");
    let path = format!("/revisions/{before}/rollback");
    let back = api.call(Method::POST, &path, None).await.unwrap().success().unwrap();
    assert_eq!(back.body["left_alone"], json!(["policy/p"]), "{back}");
    api.wait_default(back.revision().unwrap()).await.unwrap();
    serves(&proxy, "/", "known").await;
    assert_eq!(stored_policy(&postgres), "{\"of\":\"the future\"}");

    // A role, whose token opens nothing here.
    let token = "a-token-of-an-operator-of-the-future";
    postgres
        .sql(&format!(
            "INSERT INTO tokens VALUES ('op', 'operator', sha256('{token}'), 7);
             INSERT INTO tokens VALUES ('other', 'operator', '\\x1234', 7); NOTIFY signalbox_access"
        ))
        .unwrap();
    let known = async || ready(&one).await["tokens_with_unknown_roles"] == 2;
    assert!(eventually(Duration::from_secs(30), known).await);
    let refused = api.with_token(token).call(Method::GET, "/routes", None).await.unwrap();
    assert_eq!(refused.status, 403, "{refused}");
    assert!(refused.body["detail"].as_str().unwrap().contains("operator"), "{refused}");
    assert!(api.log_in(token).await.unwrap_err().to_string().starts_with("401"));
    let tokens = api.get("/tokens").await.unwrap();
    assert_eq!(
        (&tokens["items"][0]["name"], &tokens["items"][0]["role"]),
        (&json!("op"), &json!("operator"))
    );

    // Before a replica starts.
    one.stop().unwrap();
    newer_write(&postgres, Some("{\"of\":\"a later future\"}"), "while nobody ran");
    one.start().await.unwrap();
    let two = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    for control_plane in [&one, &two] {
        assert_eq!(ready(control_plane).await["unknown_resources"], 1);
        assert_eq!(ready(control_plane).await["tokens_with_unknown_roles"], 2);
    }
    serves(&proxy, "/beside", "while nobody ran").await;
    let head = two.api().head().await.unwrap();
    two.api().wait_default(head).await.unwrap();
    one.api().wait_in_sync(1).await.unwrap();
    assert_eq!(stored_policy(&postgres), "{\"of\":\"a later future\"}");

    // The newer version takes it back.
    newer_write(&postgres, None, "without it");
    serves(&proxy, "/beside", "without it").await;
    for control_plane in [&one, &two] {
        let none = async || ready(control_plane).await["unknown_resources"] == 0;
        assert!(eventually(Duration::from_secs(30), none).await);
    }
    two.api().wait_default(head + 1).await.unwrap();
}

/// A newer version that only added to the tables is no reason for this one not to start: that is the way back.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_tables_of_a_newer_version_that_says_so_can_be_used() {
    let postgres = Postgres::new().unwrap();
    let mut control_plane = ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    control_plane.stop().unwrap();
    postgres
        .sql(
            "INSERT INTO signalbox_schema VALUES (99, now());
             CREATE TABLE of_the_future (x integer);
             ALTER TABLE tokens ADD COLUMN of_the_future integer;
             ALTER TABLE resources ADD COLUMN of_the_future integer",
        )
        .unwrap();
    control_plane.start().await.unwrap();
    assert!(control_plane.log().contains("made by a newer Signalbox"), "{}", control_plane.log());
    let revision = control_plane.api().put("routes", "r", &respond("/", "x")).await.unwrap();
    assert_eq!(revision, 2);
    control_plane.stop().unwrap();
    postgres.sql("UPDATE schema_compatibility SET oldest = 99").unwrap();
    control_plane.start_unready().unwrap();
    let refused = control_plane.wait_ready().await.unwrap_err().to_string();
    assert!(refused.contains("has schema version 99, made by a newer Signalbox"), "{refused}");
}
