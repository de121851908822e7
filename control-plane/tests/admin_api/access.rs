//! Tokens, roles and sessions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use signalbox_control_plane::store;
use signalbox_control_plane::store::Role;
use signalbox_tests::control_plane::{EventsAs, send};
use signalbox_tests::eventually;

use crate::fixture::{
    ADMIN, Admin, EDITOR, PROXY, VIEWER, expect, expect_status, log_in, raw_request, upstream,
};

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
    // A cookie that was kept opens nothing.
    expect(&browser(Method::GET, "/session", &[]).await, 401);
    expect(&browser(Method::DELETE, "/session", &[]).await, 204);
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
