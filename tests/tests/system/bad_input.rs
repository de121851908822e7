//! A wrong write gets the right status, field and reason, and nothing is stored.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use signalbox_tests::control_plane::send;
use signalbox_tests::{Api, ControlPlane};

use crate::fixture::{forward, respond, with};

struct Case {
    what: &'static str,
    method: Method,
    path: &'static str,
    body: Vec<u8>,
    status: u16,
    /// An error's field, and a part of its message.
    error: Option<(&'static str, &'static str)>,
}

fn case(
    what: &'static str,
    method: Method,
    path: &'static str,
    body: impl Into<Vec<u8>>,
    status: u16,
    error: Option<(&'static str, &'static str)>,
) -> Case {
    Case { what, method, path, body: body.into(), status, error }
}

fn json_bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

/// The fields of a route, with those given.
#[expect(clippy::needless_pass_by_value, reason = "tables of cases read better")]
fn route(fields: Value) -> Vec<u8> {
    json_bytes(&with(respond("/x", "x"), &fields))
}

/// A specification that is wrong in itself.
fn wrong_specifications() -> Vec<Case> {
    vec![
        case(
            "unknown field",
            Method::PUT,
            "/routes/new",
            route(json!({"match": {"hots": ["a"]}})),
            422,
            Some(("match.hots", "unknown field")),
        ),
        case(
            "wrong type",
            Method::PUT,
            "/routes/new",
            route(json!({"priority": "high"})),
            422,
            Some(("priority", "")),
        ),
        case(
            "bad regex",
            Method::PUT,
            "/routes/new",
            route(json!({"match": {"paths": [{"regex": "("}]}})),
            422,
            Some(("match.paths[0].regex", "")),
        ),
        case(
            "regex too large",
            Method::PUT,
            "/routes/new",
            route(json!({"match": {"paths": [{"regex": "(a{1000}){1000}"}]}})),
            422,
            Some(("match.paths[0].regex", "")),
        ),
        case(
            "two actions",
            Method::PUT,
            "/routes/new",
            json_bytes(&with(forward("/x"), &json!({"respond": {}}))),
            422,
            None,
        ),
        case(
            "unknown field of a plugin",
            Method::PUT,
            "/plugins/new",
            json_bytes(
                &json!({"type": "rate-limit", "config": {"limit": 1, "window": "1s", "colour": "red"}}),
            ),
            422,
            Some(("config.colour", "unknown field")),
        ),
        case(
            "a secret that could be guessed",
            Method::PUT,
            "/consumers/new",
            json_bytes(&json!({"credentials": [{"hmac_auth": {"key_id": "a", "secret": "b"}}]})),
            422,
            Some(("credentials[0].hmac_auth.secret", "at least 16")),
        ),
        case(
            "another name in the body",
            Method::PUT,
            "/routes/new",
            route(json!({"name": "other"})),
            422,
            Some(("name", "")),
        ),
        case("bad name", Method::PUT, "/routes/No_Way!", route(json!({})), 422, Some(("name", ""))),
    ]
}

/// A specification that does not fit the others.
fn conflicts() -> Vec<Case> {
    vec![
        case(
            "dangling upstream",
            Method::PUT,
            "/routes/new",
            json_bytes(&json!({"forward": {"upstreams": [{"name": "nowhere"}]}})),
            422,
            Some(("forward.upstreams[0].name", "nowhere")),
        ),
        case(
            "dangling plugin",
            Method::PUT,
            "/routes/new",
            route(json!({"plugins": ["nothing"]})),
            422,
            Some(("plugins[0]", "nothing")),
        ),
        case(
            "dangling listener",
            Method::PUT,
            "/routes/new",
            route(json!({"listeners": ["nowhere"]})),
            422,
            Some(("listeners[0]", "nowhere")),
        ),
        case(
            "unknown plugin type",
            Method::PUT,
            "/plugins/new",
            json_bytes(&json!({"type": "magic"})),
            422,
            Some(("type", "magic")),
        ),
        case("a name in use", Method::POST, "/routes", route(json!({"name": "taken"})), 409, None),
        case(
            "an address in use",
            Method::PUT,
            "/listeners/second",
            json_bytes(&json!({"address": "0.0.0.0:8080"})),
            409,
            None,
        ),
        case("still referenced", Method::DELETE, "/upstreams/used", "", 409, None),
    ]
}

/// A document with a fault in one of its resources.
fn wrong_documents() -> Vec<Case> {
    vec![
        case(
            "duplicate name in a document",
            Method::POST,
            "/apply",
            json_bytes(&json!({"routes": [
                with(respond("/a", "a"), &json!({"name": "twin"})),
                with(respond("/b", "b"), &json!({"name": "twin"})),
            ]})),
            422,
            Some(("routes[1].name", "twice")),
        ),
        case(
            "one bad resource of two in a document",
            Method::POST,
            "/apply",
            json_bytes(&json!({"routes": [
                with(respond("/a", "a"), &json!({"name": "good"})),
                with(respond("/b", "b"), &json!({"name": "bad", "priority": 1.5})),
            ]})),
            422,
            Some(("routes[1].priority", "")),
        ),
    ]
}

/// A request that cannot be read, or whose path leads nowhere.
fn wrong_requests() -> Vec<Case> {
    let mut invalid_utf8 = json_bytes(&respond("/x", "?"));
    let at = invalid_utf8.iter().position(|byte| *byte == b'?').unwrap();
    invalid_utf8[at] = 0xff;
    vec![
        case("not JSON", Method::PUT, "/routes/new", "{\"match\": ", 400, None),
        case("not an object", Method::PUT, "/routes/new", "[]", 422, None),
        case("no body", Method::PUT, "/routes/new", "", 400, None),
        case("invalid UTF-8", Method::PUT, "/routes/new", invalid_utf8, 400, None),
        case("nested too deep", Method::PUT, "/routes/new", "[".repeat(100_000), 400, None),
        case(
            "a specification of 600 KB",
            Method::PUT,
            "/routes/new",
            route(json!({"description": "x".repeat(600 << 10)})),
            422,
            Some(("description", "")),
        ),
        case(
            "10 MB",
            Method::PUT,
            "/routes/new",
            route(json!({"description": "x".repeat(10 << 20)})),
            413,
            None,
        ),
        case("unknown resource", Method::DELETE, "/routes/nobody", "", 404, None),
        case("unknown kind", Method::PUT, "/rutes/new", route(json!({})), 404, None),
    ]
}

async fn state(api: &Api) -> (u64, Value) {
    (api.head().await.unwrap(), api.get("/export?format=json").await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_wrong_is_named_and_nothing_of_it_is_stored() {
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let api = control_plane.api();
    api.put("upstreams", "used", &json!({"targets": [{"address": "127.0.0.1:9"}]})).await.unwrap();
    let used = json!({"forward": {"upstreams": [{"name": "used"}]}});
    api.put("routes", "user", &used).await.unwrap();
    api.put("routes", "taken", &respond("/taken", "taken")).await.unwrap();
    let before = state(api).await;

    let mut wrong = Vec::new();
    let cases = [wrong_specifications(), conflicts(), wrong_documents(), wrong_requests()];
    for case in cases.into_iter().flatten() {
        let request = api.request(case.method, case.path).header("content-type", "application/json");
        let answer = match send(request.body(case.body)).await {
            Ok(answer) => answer,
            Err(error) => {
                wrong.push(format!("{}: {error:#}", case.what));
                continue;
            }
        };
        if answer.status.as_u16() != case.status {
            wrong.push(format!("{}: not {}: {answer}", case.what, case.status));
        }
        if answer.header("content-type") != Some("application/problem+json") {
            wrong.push(format!("{}: not a problem: {:?}", case.what, answer.headers));
        }
        if let Some((field, part)) = case.error {
            let found = answer.fields().into_iter().find(|found| found.starts_with(field));
            if !found.is_some_and(|found| answer.message(found).contains(part)) {
                wrong.push(format!("{}: no error at {field} that says {part:?}: {answer}", case.what));
            }
        } else if answer.body["detail"].as_str().or(answer.body["title"].as_str()).is_none_or(str::is_empty) {
            wrong.push(format!("{}: gives no reason: {answer}", case.what));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(state(api).await, before, "something was stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn all_errors_come_at_once() {
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let spec = json!({
        "priority": "high",
        "match": {"paths": [{"prefix": "/ok"}, {"regex": "["}], "hots": ["a"]},
        "forward": {"upstreams": []},
    });
    let answer = control_plane.api().call(Method::PUT, "/routes/x", Some(&spec)).await.unwrap();
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    for field in ["priority", "match.paths[1].regex", "match.hots", "forward.upstreams"] {
        assert!(answer.fields().contains(&field), "{field} is not among {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_still_refers_to_a_resource_is_said() {
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let api = control_plane.api();
    api.put("upstreams", "echo", &json!({"targets": []})).await.unwrap();
    api.put("routes", "the-user", &forward("/")).await.unwrap();
    let answer = api.call(Method::DELETE, "/upstreams/echo", None).await.unwrap();
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert!(answer.to_string().contains("the-user"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn of_two_conflicting_writes_one_wins() {
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let api = control_plane.api();
    api.put("routes", "r", &respond("/", "first")).await.unwrap();
    let etag = api.call(Method::GET, "/routes/r", None).await.unwrap().header("etag").unwrap().to_owned();
    let head = api.head().await.unwrap();

    // All of them saw the same version.
    let mut writers = tokio::task::JoinSet::new();
    for index in 0..8 {
        let request = api.request(Method::PUT, "/routes/r").header("if-match", &etag);
        let request = request.json(&respond("/", &format!("writer {index}")));
        writers.spawn(async move { (index, send(request).await.unwrap()) });
    }
    let answers = writers.join_all().await;
    let (won, lost): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|(_, answer)| answer.status.is_success());
    assert_eq!(won.len(), 1, "{won:?}");
    for (_, answer) in &lost {
        assert_eq!(answer.status, StatusCode::PRECONDITION_FAILED, "{answer}");
    }
    let stored = api.get("/routes/r").await.unwrap();
    assert_eq!(stored["respond"]["body"], format!("writer {}", won[0].0));
    assert_eq!(api.head().await.unwrap(), head + 1, "the others left no revision");

    // And what is to be new is not written over what is there.
    let request =
        api.request(Method::PUT, "/routes/r").header("if-none-match", "*").json(&respond("/", "new"));
    assert_eq!(send(request).await.unwrap().status, StatusCode::PRECONDITION_FAILED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nobody_writes_without_the_right_to() {
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let api = control_plane.api();
    let before = api.head().await.unwrap();
    let made =
        api.call(Method::POST, "/tokens", Some(&json!({"name": "reader", "role": "viewer"}))).await.unwrap();
    let made = made.success().unwrap();
    let viewer = api.with_token(made.body["token"].as_str().expect("the text is shown once"));

    assert!(viewer.get("/routes").await.is_ok());
    let answer = viewer.call(Method::PUT, "/routes/r", Some(&respond("/", ""))).await.unwrap();
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "{answer}");
    for nobody in [api.with_token("a-token-that-nobody-has-made"), api.with_token("")] {
        let answer = nobody.call(Method::PUT, "/routes/r", Some(&respond("/", ""))).await.unwrap();
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{answer}");
        let answer = nobody.call(Method::GET, "/routes", None).await.unwrap();
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{answer}");
    }
    assert_eq!(api.head().await.unwrap(), before);
}
