//! Every documented path, metrics, and the generated copy of the document.

use std::collections::BTreeSet;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use signalbox_config::Kind;
use signalbox_tests::control_plane::send;

use crate::fixture::{Admin, expect, raw_request};

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

#[test]
fn the_ui_knows_every_kind() {
    let copy = concat!(env!("CARGO_MANIFEST_DIR"), "/../admin-ui/src/api/kinds.ts");
    let copy = std::fs::read_to_string(copy).unwrap();
    let document: Value = serde_json::from_str(signalbox_control_plane::rest::openapi_json()).unwrap();
    let kinds = &document["x-signalbox-kinds"];
    assert_eq!(kinds.as_array().unwrap().len(), signalbox_config::Kind::ALL.len());
    let current =
        format!("export const KIND_FACTS = {} as const;\n", serde_json::to_string_pretty(kinds).unwrap());
    assert!(copy.ends_with(&current), "run `npm run refresh` in admin-ui/");
}
