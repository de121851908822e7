//! Where configuration comes from, and what is said of it: files, `apply`, `export`, `explain`.

use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use signalbox_tests::{Backend, Load, Proxy, eventually, free_port, get};

use crate::fixture::{Gateway, respond, with};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_file_is_served_and_applied_again_when_it_changes() {
    let backend = Backend::echo("echo").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("signalbox.yaml");
    let document = |text: &str| {
        format!(
            "kind: listener\nname: http\naddress: 127.0.0.1:{}\n---\n\
             kind: upstream\nname: echo\ntargets: [{{address: \"{}\"}}]\n---\n\
             kind: route\nname: echo\nforward: {{upstreams: [{{name: echo}}]}}\n---\n\
             kind: route\nname: text\nmatch: {{paths: [{{prefix: /text}}]}}\nrespond: {{body: {text}}}\n",
            free_port(),
            backend.address(),
        )
    };
    std::fs::write(&file, document("one")).unwrap();
    let proxy = Proxy::builder().config(&file).start().await.unwrap();
    let text = async || get(proxy.http(), "a", "/text").await.map(|answer| answer.text()).unwrap_or_default();
    assert_eq!(text().await, "one");
    let load = Load::on([proxy.http()]).start().await.unwrap();

    // Replaced as editors and Kubernetes do it, by a rename, and written in place.
    let next = dir.path().join("next.yaml");
    std::fs::write(&next, document("two")).unwrap();
    std::fs::rename(&next, &file).unwrap();
    assert!(eventually(Duration::from_secs(20), async || text().await == "two").await, "{}", proxy.log());
    std::fs::write(&file, document("three")).unwrap();
    assert!(eventually(Duration::from_secs(20), async || text().await == "three").await, "{}", proxy.log());

    // The fault is logged, and the good state is kept.
    std::fs::write(&file, document("[wrong]")).unwrap();
    let said = eventually(Duration::from_secs(20), async || proxy.log().contains("respond.body")).await;
    assert!(said, "{}", proxy.log());
    assert_eq!(text().await, "three");
    std::fs::write(&file, document("four")).unwrap();
    assert!(eventually(Duration::from_secs(20), async || text().await == "four").await, "{}", proxy.log());
    load.finish().assert_flawless(20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_file_that_is_wrong_at_the_start_ends_the_proxy_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("signalbox.yaml");
    std::fs::write(&file, "kind: route\nname: r\nmatch: {hots: [a]}\nrespond: {}\n").unwrap();
    let error = Proxy::builder().config(&file).start().await.map(drop).unwrap_err();
    assert!(error.to_string().contains("match.hots"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_exported_can_be_applied_and_makes_no_revision() {
    let gateway = Gateway::start(1).await;
    let api = gateway.control_plane.api();
    api.put("routes", "r", &respond("/", "x")).await.unwrap();
    api.put("consumers", "c", &json!({"credentials": [{"key_auth": {"key": "secret-key-of-c"}}]}))
        .await
        .unwrap();
    let head = api.head().await.unwrap();
    let export = api.call(Method::GET, "/export?format=yaml", None).await.unwrap().success().unwrap();
    let yaml = export.body.as_str().expect("YAML is text").to_owned();
    assert!(!yaml.contains("secret-key-of-c"), "{yaml}");
    let request = api.request(Method::POST, "/apply?prune=true").header("content-type", "application/yaml");
    let answer = signalbox_tests::control_plane::send(request.body(yaml)).await.unwrap().success().unwrap();
    assert_eq!(api.head().await.unwrap(), head, "{answer}");

    // With prune, what is absent goes, in one revision with what is new. It is most of the set, which must be meant.
    let document = json!({
        "listeners": [{"name": "http", "address": "0.0.0.0:8080"}],
        "routes": [with(respond("/", "y"), &json!({"name": "other"}))],
    });
    let answer = api
        .call(Method::POST, "/apply?prune=true&allow_mass_delete=true&wait=20s", Some(&document))
        .await
        .unwrap();
    assert_eq!(answer.success().unwrap().revision().unwrap(), head + 1);
    let export = api.get("/export?format=json").await.unwrap();
    assert!(export.get("consumers").is_none() && export.get("upstreams").is_none(), "{export:#}");
    assert_eq!(get(gateway.proxies[0].http(), "a", "/").await.unwrap().text(), "y");
    // And the revision before is still to be had.
    let before = api.get(&format!("/export?format=json&revision={head}")).await.unwrap();
    assert_eq!(before["consumers"][0]["name"], "c", "{before:#}");
}

/// Routes that each answer with their own name, so that what a request meets is seen.
fn crossroads() -> Vec<(&'static str, Value)> {
    vec![
        ("any", json!({})),
        ("host", json!({"match": {"hosts": ["a.example.com"]}})),
        ("wildcard", json!({"match": {"hosts": ["*.example.com"]}})),
        ("longer-wildcard", json!({"match": {"hosts": ["*.b.example.com"]}})),
        ("exact", json!({"match": {"paths": [{"exact": "/users/me"}]}})),
        ("template", json!({"match": {"paths": [{"template": "/users/{id}"}]}})),
        ("tail", json!({"match": {"paths": [{"template": "/files/{*rest}"}]}})),
        ("prefix", json!({"match": {"paths": [{"prefix": "/users"}]}})),
        ("longer-prefix", json!({"match": {"paths": [{"prefix": "/users/me/settings"}]}})),
        // With a host, for without one any path at all comes before it.
        ("regex", json!({"match": {"hosts": ["regex.test"], "paths": [{"regex": "/[a-z]+/[0-9]{3}"}]}})),
        ("method", json!({"match": {"paths": [{"prefix": "/users"}], "methods": ["POST"]}})),
        (
            "header",
            json!({"match": {"paths": [{"prefix": "/users"}], "headers": [{"name": "x-env", "exact": "beta"}]}}),
        ),
        (
            "two-headers",
            json!({"match": {"paths": [{"prefix": "/users"}], "headers": [
                {"name": "x-env", "exact": "beta"}, {"name": "x-debug", "present": true},
            ]}}),
        ),
        (
            "query",
            json!({"match": {"paths": [{"prefix": "/users"}], "query": [{"name": "v", "exact": "2"}]}}),
        ),
        (
            "inverted",
            json!({"match": {"paths": [{"prefix": "/in"}], "headers": [{"name": "x-env", "exact": "beta", "invert": true}]}}),
        ),
        ("priority", json!({"priority": 10, "match": {"paths": [{"prefix": "/first"}]}})),
        ("disabled", json!({"enabled": false, "priority": 99})),
        ("twin-a", json!({"match": {"paths": [{"exact": "/twin"}]}})),
        ("twin-b", json!({"match": {"paths": [{"exact": "/twin"}]}})),
        ("other-listener", json!({"listeners": ["other"], "priority": 50})),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn explain_agrees_with_what_the_proxy_does() {
    let gateway = Gateway::start(1).await;
    let api = gateway.control_plane.api();
    api.put("listeners", "other", &json!({"address": format!("127.0.0.1:{}", free_port())})).await.unwrap();
    let routes: Vec<Value> = crossroads()
        .into_iter()
        .map(|(name, spec)| with(spec, &json!({"name": name, "respond": {"body": name}})))
        .collect();
    let revision = api.apply(&json!({"routes": routes})).await.unwrap();
    api.wait_default(revision).await.unwrap();

    let hosts = [
        "a.example.com",
        "x.example.com",
        "x.b.example.com",
        "elsewhere.test",
        "regex.test",
        "A.Example.COM",
    ];
    let paths = [
        "/",
        "/users",
        "/users/",
        "/users/me",
        "/users/42",
        "/users/me/settings",
        "/users/me/settings/x",
        "/usersx",
        "/abc/123",
        "/files/a/b",
        "/files",
        "/in",
        "/first/x",
        "/twin",
        "/users/me?v=2",
        "/users/x/y?v=2&w=3",
        "/%75sers/me",
        "/x/..//users/./%6de",
    ];
    let headers: [&[(&str, &str)]; 3] = [&[], &[("x-env", "beta")], &[("x-env", "beta"), ("x-debug", "1")]];
    let mut winners = std::collections::BTreeSet::new();
    for method in ["GET", "POST"] {
        for host in hosts {
            for path in paths {
                for headers in headers {
                    let what = format!("{method} {host}{path} {headers:?}");
                    let mut request = Request::builder().method(method).uri(path).header("host", host);
                    for (name, value) in headers {
                        request = request.header(*name, *value);
                    }
                    let request = request.body(Full::default()).unwrap();
                    let served =
                        signalbox_tests::client::send(gateway.proxies[0].http(), request).await.unwrap();
                    let headers: serde_json::Map<String, Value> =
                        headers.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
                    let question = json!({
                        "method": method, "url": format!("http://{host}{path}"), "headers": headers, "listener": "http",
                    });
                    let explained = api.call(Method::POST, "/explain", Some(&question)).await.unwrap();
                    let explained = explained.success().unwrap().body;
                    let winner = explained["winner"]["route"].as_str().map(str::to_owned);
                    let actual = (served.status == StatusCode::OK).then(|| served.text());
                    assert_eq!(winner, actual, "{what}: {explained:#}");
                    winners.extend(winner);
                }
            }
        }
    }
    // The table is one that tells them apart: only what can never win did not.
    let never: Vec<&str> =
        crossroads().into_iter().map(|(name, _)| name).filter(|name| !winners.contains(*name)).collect();
    assert_eq!(never, ["disabled", "twin-b", "other-listener"]);
}
