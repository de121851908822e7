//! Writes take parameters, documents, lists and secrets for nothing else than they are; a dry run says the same.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use signalbox_control_plane::store::KeySource;
use signalbox_control_plane::{rest, store};
use signalbox_tests::control_plane::send;
use signalbox_tests::{Api, ApiAnswer, Postgres, eventually};

use crate::fixture::{Admin, EDITOR, VIEWER, certificate, expect, route, upstream};

#[tokio::test]
async fn a_boolean_parameter_is_true_or_false_at_every_endpoint() {
    let admin = Admin::with_route().await;
    let document: Value = serde_json::from_str(rest::openapi_json()).unwrap();
    let mut known = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            for parameter in operation["parameters"].as_array().unwrap() {
                if parameter["schema"]["type"] != "boolean" {
                    continue;
                }
                let name = parameter["name"].as_str().unwrap();
                assert_eq!(parameter["in"], "query", "{name}");
                known.insert(name.to_owned());
                let path = path.replace("{number}", "1").replace("{name}", "r");
                let method: Method = method.to_uppercase().parse().unwrap();
                for value in
                    ["=", "", "=1", "=0", "=TRUE", "=yes", "=true%20", "=false&NAME=", "=true&NAME=true"]
                {
                    let query = format!("{name}{}", value.replace("NAME", name));
                    let body = json!({"name": "r", "respond": {"status": 204}});
                    let answer = admin.call(method.clone(), &format!("{path}?{query}"), Some(body)).await;
                    expect(&answer, 400);
                    assert_eq!(answer.fields(), [name], "{method} {path}?{query}: {answer}");
                }
            }
        }
    }
    for name in ["dry_run", "prune", "allow_mass_delete"] {
        assert!(known.contains(name), "{known:?}");
    }
    assert_eq!(admin.head(), 2);
    expect(&admin.get("/routes/r").await, 200);
    expect(&admin.delete("/routes/r?dry_run=false").await, 204);
}

#[tokio::test]
async fn prune_needs_a_document_that_says_what_stays() {
    let admin = Admin::with_route().await;
    for document in [
        "routes:",
        "routes:\n",
        "{}",
        "[]",
        "null",
        "{\"routes\":null}",
        "[{}]",
        "[null]",
        "---\n---\n",
        "# listeners:\n",
        "upstreams: [{name: u, targets: [{address: '10.0.0.1:80'}]}]\nroutes:\n",
    ] {
        for query in ["prune=true", "prune=true&allow_mass_delete=true", "prune=true&dry_run=true"] {
            let refused =
                admin.raw(Method::POST, &format!("/apply?{query}"), "application/yaml", document).await;
            expect(&refused, 400);
        }
    }
    // An export that was cut off anywhere deletes nothing.
    let export = admin.get("/export").await.body.as_str().unwrap().to_owned();
    for cut in 0..export.len() {
        let text = export.get(..cut).unwrap();
        let path = "/apply?prune=true&dry_run=true";
        let answer = admin.raw(Method::POST, path, "application/yaml", text).await;
        let changes = answer.body["changes"].as_array().cloned().unwrap_or_default();
        let deletes = changes.iter().any(|change| change["action"] == "deleted");
        assert!(answer.status.is_client_error() || !deletes, "{text:?}: {answer}");
    }
    assert_eq!(admin.head(), 2);
    // Without prune nothing is lost by it.
    expect(&admin.raw(Method::POST, "/apply", "application/yaml", "routes:\n").await, 200);
    assert_eq!(admin.head(), 2);
}

#[tokio::test]
async fn deleting_the_last_listener_or_half_of_the_set_by_prune_must_be_allowed() {
    let admin = Admin::start().await;
    let listener = |name: &str, port: u16| json!({"name": name, "address": format!("127.0.0.1:{port}")});
    let route = |index: usize| json!({"name": format!("r{index}"), "respond": {"status": 204}});
    let set = |listeners: &[Value], routes: usize| json!({"listeners": listeners, "routes": (0..routes).map(route).collect::<Vec<_>>()});
    let (http, other) = (listener("http", 8080), listener("other", 8081));
    expect(&admin.post("/apply", set(&[http.clone(), other.clone()], 8)).await, 200);
    let head = admin.head();

    // Half of ten may go, six may not.
    let six = admin.post("/apply?prune=true", set(&[http.clone(), other.clone()], 2)).await;
    expect(&six, 409);
    let deletions = json!({"total": 6, "of": 10, "by_kind": {"route": 6}, "last_listener": false});
    assert_eq!(six.body["deletions"], deletions, "{six}");
    let detail = "it would delete 6 of 10 resources (6 routes); allow_mass_delete=true allows it";
    assert_eq!(six.body["detail"], detail);
    expect(&admin.post("/apply?prune=true&dry_run=true", set(&[http.clone(), other.clone()], 3)).await, 200);

    // One of two listeners may go, the last may not, unless another comes.
    expect(&admin.post("/apply?prune=true&dry_run=true", set(std::slice::from_ref(&http), 8)).await, 200);
    let last = admin.post("/apply?prune=true", set(&[], 8)).await;
    expect(&last, 409);
    assert_eq!(last.body["deletions"]["last_listener"], true, "{last}");
    assert!(last.body["detail"].as_str().unwrap().contains("and leave no listener"), "{last}");
    let replaced = set(&[listener("third", 8082)], 8);
    expect(&admin.post("/apply?prune=true&dry_run=true", replaced).await, 200);
    assert_eq!(admin.head(), head);

    let allowed = admin.post("/apply?prune=true&allow_mass_delete=true", set(&[], 0)).await;
    expect(&allowed, 200);
    assert_eq!(allowed.body["changes"].as_array().map(Vec::len), Some(10), "{allowed}");
    // An export of nothing is one that may be applied.
    let nothing = admin.get("/export?format=json").await.body;
    let applied = admin.post("/apply?prune=true", nothing).await;
    assert_eq!((applied.status.as_u16(), &applied.body["revision"]), (200, &Value::Null), "{applied}");
}

#[tokio::test]
async fn an_empty_matcher_is_refused_however_it_is_written() {
    let admin = Admin::start().await;
    let spec = json!({"match": {"hosts": ["a.example"], "methods": ["GET"]}, "respond": {"status": 204}});
    expect(&admin.put("/routes/r", spec.clone()).await, 201);
    for (path, empty) in [
        ("match.hosts", json!({"match": {"hosts": []}})),
        ("match.paths", json!({"match": {"paths": []}})),
        ("match.methods", json!({"match": {"methods": []}})),
        ("match.headers", json!({"match": {"headers": []}})),
        ("match.query", json!({"match": {"query": []}})),
        ("listeners", json!({"listeners": []})),
        ("fleets", json!({"fleets": []})),
    ] {
        let patched = admin.call(Method::PATCH, "/routes/r", Some(empty.clone())).await;
        let mut whole = spec.clone();
        for (name, value) in empty.as_object().unwrap() {
            whole[name] = value.clone();
        }
        let put = admin.put("/routes/r", whole.clone()).await;
        whole["name"] = json!("r");
        let created = admin.post("/routes", whole.clone()).await;
        let applied = admin.post("/apply", json!({"routes": [whole.clone()]})).await;
        for (answer, field) in [
            (patched, path.to_owned()),
            (put, path.to_owned()),
            (created, path.to_owned()),
            (applied, format!("routes[0].{path}")),
        ] {
            expect(&answer, 422);
            assert_eq!(answer.fields(), [field], "{answer}");
        }
    }
    assert_eq!(admin.head(), 1);
    // A patch that takes a matcher out says so.
    let without = admin.call(Method::PATCH, "/routes/r", Some(json!({"match": {"hosts": null}}))).await;
    expect(&without, 200);
    assert_eq!(without.body["match"], json!({"methods": ["GET"]}));
}

#[tokio::test]
async fn text_typed_behind_the_placeholder_of_a_secret_is_refused() {
    let admin = Admin::start().await;
    let consumer = |key: &str| json!({"credentials": [{"key_auth": {"id": "k", "key": key}}]});
    expect(&admin.put("/consumers/alice", consumer("open-sesame-1")).await, 201);
    let first = certificate("a.example", 4000);
    expect(&admin.put("/certificates/c", first.clone()).await, 201);
    let head = admin.head();
    let mut wrong_certificate = first.clone();
    wrong_certificate["private_key"] = json!(format!("<redacted>{}", first["private_key"].as_str().unwrap()));
    for (path, body, field) in [
        ("/consumers/alice", consumer("<redacted>x"), "credentials[0].key_auth.key"),
        ("/consumers/alice", consumer("x<redacted>"), "credentials[0].key_auth.key"),
        ("/certificates/c", wrong_certificate, "private_key"),
        (
            "/certificates/c",
            json!({"certificate": first["certificate"], "private_key": "<redacted> "}),
            "private_key",
        ),
    ] {
        for method in [Method::PUT, Method::PATCH] {
            let answer = admin.call(method, path, Some(body.clone())).await;
            expect(&answer, 422);
            assert_eq!(answer.fields(), [field], "{answer}");
            assert!(answer.message(field).contains("<redacted>"), "{answer}");
        }
    }
    let document =
        json!({"consumers": [{"name": "bob", "credentials": [{"key_auth": {"key": "a<redacted>"}}]}]});
    let applied = admin.post("/apply", document).await;
    expect(&applied, 422);
    assert_eq!(applied.fields(), ["consumers[0].credentials[0].key_auth.key"]);
    assert_eq!(admin.head(), head);
    // Exactly the placeholder keeps what is stored.
    let kept = admin.put("/consumers/alice", consumer("<redacted>")).await;
    expect(&kept, 200);
    assert_eq!(admin.head(), head);
}

/// A write, by which `dry_run` is to be compared.
type Write = (Method, &'static str, Option<Value>, Option<(&'static str, String)>);

/// The part of an answer that is compared: all of a refusal, the changes of a success.
fn outcome(answer: &ApiAnswer) -> Value {
    if answer.status.is_success() {
        json!("done")
    } else {
        json!({"status": answer.status.as_u16(), "problem": answer.body})
    }
}

/// Does each write as a dry run and then for real; returns how many were refused.
async fn in_pairs(admin: &Admin, writes: Vec<Write>) -> usize {
    let mut refused = 0;
    for (method, path, body, header) in writes {
        let call = async |path: &str| {
            let mut request = admin.api.request(method.clone(), path);
            if let Some((name, value)) = &header {
                request = request.header(*name, value);
            }
            if let Some(body) = &body {
                request = request.json(body);
            }
            send(request).await.unwrap()
        };
        let head = admin.store.head().await.map(|head| head.number);
        let separator = if path.contains('?') { '&' } else { '?' };
        let dry = call(&format!("{path}{separator}dry_run=true")).await;
        if let (Ok(before), Ok(after)) = (head, admin.store.head().await) {
            assert_eq!(after.number, before, "a dry run stores nothing");
        }
        let real = call(path).await;
        assert_eq!(outcome(&dry), outcome(&real), "{method} {path} {body:?}");
        refused += usize::from(!real.status.is_success());
    }
    refused
}

#[tokio::test]
async fn a_dry_run_answers_as_the_write_would() {
    let admin = Admin::with_route().await;
    let post = |path, body| (Method::POST, path, Some(body), None);
    let put = |path, body| (Method::PUT, path, Some(body), None);
    let with =
        |method, path, body, name, value: &str| (method, path, Some(body), Some((name, value.to_owned())));
    let respond = || json!({"respond": {"status": 204}});
    let long = "x".repeat(2000);
    let refused = in_pairs(
        &admin,
        vec![
            put("/routes/r", json!({"forward": {"upstreams": [{"name": "missing"}]}})),
            put("/routes/r", json!({"respond": {"status": 99}})),
            put("/routes/r", json!({"name": "other", "respond": {}})),
            put("/routes/No%20Name", respond()),
            put("/routes/r?wait=soon", respond()),
            put("/routes/r?wait=10m", respond()),
            put("/routes/r?unknown=1", respond()),
            with(Method::PUT, "/routes/r", respond(), "X-Signalbox-Message", &long),
            with(Method::PUT, "/routes/r", respond(), "If-Match", "\"0000000000000000\""),
            with(Method::PUT, "/routes/r", respond(), "If-None-Match", "*"),
            with(Method::PUT, "/routes/r", respond(), "If-None-Match", "\"x\""),
            with(Method::PUT, "/routes/r", respond(), "Content-Type", "text/html"),
            with(Method::PATCH, "/routes/r", json!({}), "If-Match", "\"0000000000000000\""),
            with(Method::DELETE, "/routes/r", json!({}), "If-Match", "\"0000000000000000\""),
            (Method::PATCH, "/routes/missing", Some(json!({})), None),
            (Method::PATCH, "/routes/r", Some(json!({"match": {"hosts": []}})), None),
            (Method::PATCH, "/routes/r", Some(json!({"name": "x"})), None),
            (Method::PATCH, "/routes/r", None, None),
            (Method::DELETE, "/routes/missing", None, None),
            (Method::DELETE, "/upstreams/u", None, None),
            (Method::DELETE, "/upstreams/u?wait=soon", None, None),
            post("/routes", json!({"name": "r", "respond": {}})),
            post("/routes", json!({"respond": {}})),
            post("/consumers", json!({"name": "c", "credentials": [{"key_auth": {"key": "<redacted>"}}]})),
            post("/certificates", with_name(certificate("a.example", 2020), "expired")),
            post("/apply", json!({"routes": [{"name": "x", "respond": {"status": 99}}]})),
            post("/apply", json!({"routes": 5})),
            post("/apply?prune=true", json!({"routes": null})),
            post("/apply?prune=true", json!({"routes": []})),
            post("/apply?prune=true&allow_mass_delete=true&wait=x", json!({"routes": []})),
            post("/apply", json!({"certificates": [{"name": "c", "certificate": "", "private_key": {"encrypted": "x"}}]})),
            post("/revisions/99/rollback", json!({})),
            post("/revisions/1/rollback?wait=x", json!({})),
        ],
    )
    .await;
    assert_eq!(refused, 33, "each of these is refused");
    let done = in_pairs(
        &admin,
        vec![
            put("/routes/r", respond()),
            put("/routes/r", respond()),
            put("/routes/s", respond()),
            post("/routes", json!({"name": "t", "respond": {}})),
            (Method::PATCH, "/routes/t", Some(json!({"priority": 1})), None),
            post("/certificates", with_name(certificate("b.example", 4000), "c")),
            post("/apply", json!({"routes": [{"name": "v", "respond": {}}]})),
            (Method::DELETE, "/routes/v", None, None),
            post("/revisions/2/rollback", json!({})),
            post("/apply?prune=true&allow_mass_delete=true", json!({"routes": []})),
        ],
    )
    .await;
    assert_eq!(done, 0, "each of these is done");
}

fn with_name(mut spec: Value, name: &str) -> Value {
    spec["name"] = json!(name);
    spec
}

#[tokio::test]
async fn a_dry_run_is_refused_where_the_database_would_refuse_the_write() {
    use sqlx::Connection as _;
    let admin = Admin::with_route().await;
    let writes = || {
        vec![
            (Method::PUT, "/routes/r", Some(json!({"respond": {"status": 204}})), None),
            (Method::POST, "/routes", Some(json!({"name": "t", "respond": {}})), None),
            (Method::PATCH, "/routes/r", Some(json!({"priority": 7})), None),
            (Method::DELETE, "/routes/r", None, None),
            (Method::POST, "/apply", Some(json!({"routes": [{"name": "v", "respond": {}}]})), None),
            (Method::POST, "/revisions/1/rollback", Some(json!({})), None),
        ]
    };
    // Somebody else holds the database for ever.
    let url = format!("sqlite://{}", admin.database.display());
    let mut lock = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut lock).await.unwrap();
    let two = writes().into_iter().take(2).collect();
    assert_eq!(in_pairs(&admin, two).await, 2);
    sqlx::query("ROLLBACK").execute(&mut lock).await.unwrap();

    // Postgres that may only be read, without a key for secrets.
    let postgres = tokio::task::spawn_blocking(|| Postgres::new().unwrap()).await.unwrap();
    let store = store::open(&postgres.url()).await.unwrap();
    let store = store::seal(store, KeySource::None).await.unwrap();
    let admin = Admin::start_on(store, PathBuf::new(), Arc::new(tempfile::tempdir().unwrap())).await;
    expect(&admin.put("/upstreams/u", upstream()).await, 201);
    expect(&admin.put("/routes/r", route("u")).await, 201);
    let secret = with_name(certificate("a.example", 4000), "c");
    let secrets = vec![
        (Method::PUT, "/certificates/c", Some(secret.clone()), None),
        (Method::POST, "/certificates", Some(secret.clone()), None),
        (Method::POST, "/apply", Some(json!({"certificates": [secret], "routes": []})), None),
    ];
    assert_eq!(in_pairs(&admin, secrets).await, 3);
    postgres.sql("ALTER DATABASE postgres SET default_transaction_read_only = on").unwrap();
    // Only new connections know of it.
    postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'").unwrap();
    let reads = async || admin.store.head().await.is_ok();
    assert!(eventually(Duration::from_secs(20), reads).await, "reads go on");
    let all = writes();
    let count = all.len();
    assert_eq!(in_pairs(&admin, all).await, count);
}

#[tokio::test]
async fn an_export_has_what_its_reader_may_have_and_names_what_it_leaves_out() {
    let admin = Admin::start().await;
    let key = "a-key-of-alice-1";
    let consumer = json!({"credentials": [
        {"key_auth": {"id": "k", "key": key}}, {"key_auth": {"id": "e", "key": {"env": "KEY"}}},
    ]});
    expect(&admin.put("/consumers/alice", consumer).await, 201);
    let pair = certificate("a.example", 4000);
    expect(&admin.put("/certificates/c", pair.clone()).await, 201);
    let digest =
        signalbox_config::sha256(key.as_bytes()).iter().map(|b| format!("{b:02x}")).collect::<String>();

    let export = admin.get("/export?format=json").await;
    let credentials = &export.body["consumers"][0]["credentials"];
    assert_eq!(credentials[0]["key_auth"]["key"], json!({"sha256": digest}), "{export}");
    assert_eq!(credentials[1]["key_auth"]["key"], json!({"env": "KEY"}), "{export}");
    assert_eq!(export.body["certificates"][0]["private_key"], "<redacted>", "{export}");
    assert_eq!(export.header("signalbox-secrets-omitted"), Some("certificate/c"));
    let yaml = admin.get("/export").await.body.as_str().unwrap().to_owned();
    assert!(yaml.contains("#   certificates[0].private_key  (certificate/c)\n"), "{yaml}");
    let old = admin.get("/export?format=json&revision=1").await;
    assert_eq!(old.body["consumers"], export.body["consumers"], "{old}");
    assert_eq!(old.header("signalbox-secrets-omitted"), None);

    // A viewer could try keys against a digest.
    let viewer = admin.api.with_token(VIEWER);
    let theirs = viewer.call(Method::GET, "/export?format=json", None).await.unwrap();
    assert_eq!(theirs.body["consumers"][0]["credentials"][0]["key_auth"]["key"], "<redacted>", "{theirs}");
    assert_eq!(theirs.header("signalbox-secrets-omitted"), Some("consumer/alice, certificate/c"));

    // Private keys leave it only encrypted, for administrators.
    let passphrase = "correct horse battery";
    let ask = async |api: &Api, path: &str, passphrase: Option<&str>| {
        let request = api.request(Method::GET, path);
        let request = match passphrase {
            Some(passphrase) => request.header("X-Signalbox-Passphrase", passphrase),
            None => request,
        };
        send(request).await.unwrap()
    };
    let path = "/export?format=json&secrets=encrypted";
    expect(&ask(&admin.api.with_token(EDITOR), path, Some(passphrase)).await, 403);
    expect(&ask(&admin.api, path, None).await, 400);
    expect(&ask(&admin.api, path, Some("short")).await, 400);
    expect(&ask(&admin.api, "/export?secrets=plain", Some(passphrase)).await, 400);
    let encrypted = ask(&admin.api, path, Some(passphrase)).await;
    expect(&encrypted, 200);
    assert_eq!(encrypted.header("signalbox-secrets-omitted"), None);
    let text = encrypted.body.to_string();
    assert!(!text.contains("PRIVATE KEY") && !text.contains("<redacted>"), "{text}");

    // Elsewhere each is refused until it is there.
    let other = Admin::start().await;
    let refused = other.post("/apply", export.body.clone()).await;
    expect(&refused, 422);
    assert_eq!(refused.fields(), ["certificates[0].private_key"]);
    let apply = async |passphrase: &str| {
        let request = other.api.request(Method::POST, "/apply?prune=true").json(&encrypted.body);
        send(request.header("X-Signalbox-Passphrase", passphrase)).await.unwrap()
    };
    for refused in [apply("another passphrase").await, other.post("/apply", encrypted.body.clone()).await] {
        expect(&refused, 422);
        assert_eq!(refused.fields(), ["certificates[0].private_key"], "{refused}");
    }
    expect(&apply(passphrase).await, 200);
    for path in ["/consumers/alice", "/certificates/c"] {
        let version = |answer: ApiAnswer| answer.body["meta"]["version"].clone();
        assert_eq!(version(other.get(path).await), version(admin.get(path).await), "{path}");
    }
    let again = apply(passphrase).await;
    assert_eq!((again.status.as_u16(), &again.body["revision"]), (200, &Value::Null), "{again}");
}

#[tokio::test]
async fn explain_asks_a_proxy_of_the_fleet_by_a_listener_it_has() {
    let admin = Admin::start().await;
    let document = json!({
        "listeners": [
            {"name": "a-eu", "address": "127.0.0.1:8081", "fleets": ["eu"]},
            {"name": "http", "address": "127.0.0.1:8080"},
            {"name": "raw", "address": "127.0.0.1:8082", "normalize_path": false},
        ],
        "upstreams": [{"name": "u", "targets": []}],
        "routes": [
            {"name": "eu", "fleets": ["eu"], "priority": 1, "respond": {}},
            {"name": "get", "match": {"paths": [{"prefix": "/m"}], "methods": ["GET"]}, "respond": {}},
            {"name": "any", "respond": {}},
            {"name": "tunnel", "match": {"hosts": ["t.example"], "methods": ["CONNECT"]},
             "forward": {"upstreams": [{"name": "u"}], "upgrades": ["connect"]}},
            {"name": "claims", "match": {"headers": [{"name": "x-consumer-id", "present": true}]}, "respond": {}},
            {"name": "ip", "match": {"headers": [{"name": "x_real_ip", "present": true}]}, "respond": {}},
        ],
        "plugins": [{"name": "eu-only", "type": "cors", "global": true, "fleets": ["eu"], "config": {}}],
    });
    expect(&admin.post("/apply", document).await, 200);
    for (question, winner, refused) in [
        (json!({"url": "/"}), "any", 0),
        (json!({"url": "/", "fleet": "eu"}), "eu", 0),
        (json!({"url": "/", "fleet": "eu", "listener": "http"}), "eu", 0),
        (json!({"url": "/m"}), "get", 0),
        (json!({"url": "/m", "method": "get"}), "any", 0),
        (json!({"url": "t.example:443", "method": "CONNECT"}), "tunnel", 0),
        (json!({"url": "http://t.example/m", "method": "CONNECT"}), "tunnel", 0),
        (json!({"url": "u.example:443", "method": "CONNECT"}), "any", 501),
        (json!({"url": "/m", "method": "CONNECT"}), "", 400),
        (json!({"url": "/..", "headers": {"host": "a"}}), "", 400),
        (json!({"url": "/..", "headers": {"host": "a"}, "listener": "raw"}), "any", 0),
        (json!({"url": "http://user@a/"}), "", 400),
        (json!({"url": "/", "headers": {"host": "a b"}}), "", 400),
        (json!({"url": "*", "method": "OPTIONS"}), "any", 0),
        (json!({"url": "http://a", "method": "OPTIONS"}), "any", 0),
        (json!({"url": "/m\"ä", "headers": {"host": "a"}}), "any", 0),
        (json!({"url": "*", "method": "GET"}), "", 400),
        // A client's word for what only the proxy may say is not heard.
        (json!({"url": "/", "headers": {"X-Consumer-Id": "alice", "x_real_ip": "1"}}), "any", 0),
    ] {
        let answer = admin.post("/explain", question.clone()).await;
        expect(&answer, 200);
        let got = (
            answer.body["winner"]["route"].as_str().unwrap_or_default(),
            answer.body["refused"]["status"].as_u64().unwrap_or_default(),
        );
        assert_eq!(got, (winner, refused), "{question}: {answer}");
    }
    let eu = admin.post("/explain", json!({"url": "/", "fleet": "eu"})).await;
    assert_eq!((&eu.body["fleet"], &eu.body["listener"]), (&json!("eu"), &json!("a-eu")), "{eu}");
    assert_eq!(eu.body["plugins"][0]["name"], "eu-only", "{eu}");
    let default = admin.post("/explain", json!({"url": "/"})).await;
    assert_eq!(
        (&default.body["listener"], &default.body["plugins"]),
        (&json!("http"), &json!([])),
        "{default}"
    );
    let loser = default.body["losers"].as_array().unwrap().iter().find(|loser| loser["route"] == "eu");
    assert_eq!(loser.map(|loser| &loser["lost_by"]), Some(&json!("fleet")), "{default}");
    for (question, field) in [
        (json!({"url": "/", "fleet": "us"}), "fleet"),
        (json!({"url": "/", "fleet": ""}), "fleet"),
        (json!({"url": "/", "listener": "nowhere"}), "listener"),
        (json!({"url": "/", "listener": "a-eu"}), "listener"),
        (json!({"url": "/", "method": ""}), "method"),
    ] {
        let answer = admin.post("/explain", question).await;
        expect(&answer, 422);
        assert_eq!(answer.fields(), [field], "{answer}");
    }
}
