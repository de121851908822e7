//! Whole sets are applied as one revision.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};

use crate::fixture::{Admin, expect};

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
