//! Tokens and sessions over several control planes: what ends, where, and how soon.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::json;
use signalbox_tests::control_plane::{ADMIN_TOKEN, EventsAs, PROXY_TOKEN, send};
use signalbox_tests::{ControlPlane, Load, Postgres, Proxy, eventually, get};

use crate::fixture::respond;

const DEADLINE: Duration = Duration::from_secs(30);

/// Two control planes on one database.
async fn replicas(postgres: &Postgres) -> [ControlPlane; 2] {
    let start = async || ControlPlane::builder().database(postgres.url()).start().await.unwrap();
    [start().await, start().await]
}

/// How a session's cookie is answered.
async fn session_status(control_plane: &ControlPlane, cookie: &str) -> StatusCode {
    send(control_plane.api().with_cookie(Method::GET, "/session", cookie)).await.unwrap().status
}

/// Waits until a session's cookie is answered so.
async fn becomes(control_plane: &ControlPlane, cookie: &str, status: StatusCode) {
    let held = eventually(DEADLINE, async || session_status(control_plane, cookie).await == status).await;
    assert!(held, "it did not become {status}: {}", control_plane.log());
}

/// Opens a wait for a revision that is not served yet; its status, and when it was answered.
fn wait_by(
    control_plane: &ControlPlane,
    revision: u64,
    by: EventsAs<'_>,
) -> tokio::task::JoinHandle<(StatusCode, Instant)> {
    let path = format!("/revisions/{revision}/wait?timeout=60s");
    let request = match by {
        EventsAs::Token(token) => control_plane.api().with_token(token).request(Method::GET, &path),
        EventsAs::Cookie(cookie) => control_plane.api().with_cookie(Method::GET, &path, cookie),
    };
    tokio::spawn(async move { (send(request).await.unwrap().status, Instant::now()) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_wait_ends_with_its_token_or_session_at_every_replica_within_a_second() {
    let postgres = Postgres::new().unwrap();
    let [one, two] = replicas(&postgres).await;
    let mut proxy = Proxy::of(&one, "p").await.unwrap();
    one.api().put("routes", "r", &respond("/", "before")).await.unwrap();
    one.api().wait_in_sync(1).await.unwrap();
    // It is connected for some seconds more, and serves nothing new.
    let mut took = Vec::new();
    for round in 0..3 {
        let token = json!({"name": "ci", "role": "editor"});
        let made = one.api().call(Method::POST, "/tokens", Some(&token)).await.unwrap().success().unwrap();
        let ci = made.body["token"].as_str().unwrap();
        let cookie = one.api().log_in(ADMIN_TOKEN).await.unwrap();
        becomes(&two, &cookie, StatusCode::OK).await;
        let known = async || {
            let answer = two.api().with_token(ci).call(Method::GET, "/routes", None).await.unwrap();
            answer.status == 200
        };
        assert!(eventually(DEADLINE, known).await);
        proxy.pause();
        let revision = one.api().put("routes", "r", &respond("/", &round.to_string())).await.unwrap();
        let caught_up = async || two.api().head().await.is_ok_and(|head| head == revision);
        assert!(eventually(DEADLINE, caught_up).await);
        // A write that waits is under way as well.
        let path = "/routes/other?wait=60s";
        let written = one.api().with_token(ci).request(Method::PUT, path).json(&respond("/other", "x"));
        let written = tokio::spawn(async move { send(written).await.unwrap() });
        let other = async || two.api().get("/routes/other").await.is_ok();
        assert!(eventually(DEADLINE, other).await);
        let by_token = [&one, &two].map(|replica| wait_by(replica, revision, EventsAs::Token(ci)));
        let by_session = [&one, &two].map(|replica| wait_by(replica, revision, EventsAs::Cookie(&cookie)));
        let open = async || {
            let waits = by_token.iter().chain(&by_session);
            waits.into_iter().all(|wait| !wait.is_finished())
        };
        assert!(open().await, "a wait was answered though a paused proxy is connected");

        let started = Instant::now();
        two.api().call(Method::DELETE, "/tokens/ci", None).await.unwrap().success().unwrap();
        let written = written.await.unwrap();
        assert_eq!(written.status, StatusCode::UNAUTHORIZED, "{written}");
        assert!(written.body["revision"].as_u64() > Some(revision), "it was written all the same: {written}");
        let mut last = started;
        for wait in by_token {
            let (status, at) = wait.await.unwrap();
            assert_eq!(status, StatusCode::UNAUTHORIZED);
            last = last.max(at);
        }
        took.push(last - started);
        let started = Instant::now();
        let logged_out = send(two.api().with_cookie(Method::DELETE, "/session", &cookie)).await.unwrap();
        assert_eq!(logged_out.status, 204, "{logged_out}");
        let mut last = started;
        for wait in by_session {
            let (status, at) = wait.await.unwrap();
            assert_eq!(status, StatusCode::UNAUTHORIZED);
            last = last.max(at);
        }
        took.push(last - started);
        proxy.resume();
        one.api().delete("routes", "other").await.unwrap();
        one.api().wait_in_sync(1).await.unwrap();
    }
    took.sort();
    println!("waits on both replicas ended after {took:?}");
    assert!(took[2] < Duration::from_secs(1), "{took:?}");
}

/// Reads an event stream to its end; when that came.
async fn end_of(mut stream: reqwest::Response) -> Instant {
    let end = async { while stream.chunk().await.unwrap().is_some() {} };
    tokio::time::timeout(DEADLINE, end).await.expect("the stream goes on");
    Instant::now()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_session_is_good_on_every_replica_and_ends_on_every_one_within_a_second() {
    let postgres = Postgres::new().unwrap();
    let [one, two] = replicas(&postgres).await;
    let mut took = Vec::new();
    for _ in 0..5 {
        let cookie = one.api().log_in(ADMIN_TOKEN).await.unwrap();
        becomes(&two, &cookie, StatusCode::OK).await;
        let mut streams = Vec::new();
        for replica in [&one, &two] {
            streams.push(replica.api().event_stream(EventsAs::Cookie(&cookie)).await.unwrap());
        }
        let started = Instant::now();
        let logged_out = send(one.api().with_cookie(Method::DELETE, "/session", &cookie)).await.unwrap();
        assert_eq!(logged_out.status, 204, "{logged_out}");
        let mut last = started;
        for stream in streams {
            last = last.max(end_of(stream).await);
        }
        took.push(last - started);
        for replica in [&one, &two] {
            assert_eq!(session_status(replica, &cookie).await, 401);
        }
    }
    took.sort();
    println!("streams on both replicas ended after {took:?}");
    assert!(took[2] < Duration::from_secs(1), "{took:?}");

    // One that an administrator ends at the other replica.
    let cookie = one.api().log_in(ADMIN_TOKEN).await.unwrap();
    becomes(&two, &cookie, StatusCode::OK).await;
    let sessions = two.api().get("/sessions").await.unwrap();
    let id = sessions["items"][0]["id"].as_str().unwrap();
    two.api().call(Method::DELETE, &format!("/sessions/{id}"), None).await.unwrap().success().unwrap();
    becomes(&one, &cookie, StatusCode::UNAUTHORIZED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_revoked_token_ends_what_it_opened_at_every_replica_and_its_proxies_serve_on() {
    let postgres = Postgres::new().unwrap();
    let [one, two] = replicas(&postgres).await;
    one.api().put("routes", "r", &respond("/", "served")).await.unwrap();
    let make = async |name: &str, role: &str| {
        let made = one.api().call(Method::POST, "/tokens", Some(&json!({"name": name, "role": role}))).await;
        made.unwrap().success().unwrap().body["token"].as_str().unwrap().to_owned()
    };
    let (ci, edge) = (make("ci", "editor").await, make("edge", "proxy").await);
    let known = async || {
        let answer = two.api().with_token(&ci).call(Method::GET, "/routes", None).await.unwrap();
        answer.status == 200
    };
    assert!(eventually(DEADLINE, known).await);
    let mut proxies = Vec::new();
    for (control_plane, id) in [(&one, "at-one"), (&two, "at-two")] {
        let builder =
            Proxy::builder().control_plane(control_plane).node_id(id).arg(format!("--token={edge}"));
        proxies.push(builder.start().await.unwrap());
    }
    let other = Proxy::of(&two, "other").await.unwrap();
    two.api().wait_in_sync(3).await.unwrap();
    let at_two = two.api().event_stream(EventsAs::Token(&ci)).await.unwrap();

    let started = Instant::now();
    one.api().call(Method::DELETE, "/tokens/ci", None).await.unwrap().success().unwrap();
    println!("the event stream at the other replica ended after {:?}", end_of(at_two).await - started);
    let started = Instant::now();
    one.api().call(Method::DELETE, "/tokens/edge", None).await.unwrap().success().unwrap();
    for (control_plane, proxy) in [&one, &two].into_iter().zip(&proxies) {
        let refused = async || {
            let metrics = control_plane.api().metrics().await.unwrap();
            metrics.sum("signalbox_xds_refused_total", &["reason=\"token_revoked\""]) >= 1.0
        };
        assert!(eventually(DEADLINE, refused).await, "{}", control_plane.log());
        println!("the stream of {} ended after {:?}", proxy.id(), started.elapsed());
        assert!(control_plane.log().contains("the token was revoked"), "{}", control_plane.log());
        control_plane
            .api()
            .wait_proxy(proxy.id(), "gone", |proxy| proxy["connected"] == false)
            .await
            .unwrap();
        assert_eq!(get(proxy.http(), "a", "/").await.unwrap().text(), "served");
    }
    // The proxy with another token is not disturbed.
    assert_eq!(two.api().proxy(other.id()).await.unwrap()["connected"], true);
    let revision = one.api().put("routes", "r", &respond("/", "changed")).await.unwrap();
    let served = async || get(other.http(), "a", "/").await.unwrap().text() == "changed";
    assert!(eventually(DEADLINE, served).await, "revision {revision}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sessions_go_on_while_the_database_is_away_and_a_logout_is_made_good() {
    let mut postgres = Postgres::new().unwrap();
    let [one, two] = replicas(&postgres).await;
    let (stays, goes) =
        (one.api().log_in(ADMIN_TOKEN).await.unwrap(), one.api().log_in(ADMIN_TOKEN).await.unwrap());
    for cookie in [&stays, &goes] {
        becomes(&two, cookie, StatusCode::OK).await;
    }
    postgres.kill9();
    let away = async || {
        let ready = reqwest::get(format!("{}/readyz", one.admin_url())).await.unwrap();
        ready.json::<serde_json::Value>().await.unwrap()["database"] == "away"
    };
    assert!(eventually(DEADLINE, away).await);
    for replica in [&one, &two] {
        assert_eq!(session_status(replica, &stays).await, 200);
    }
    assert!(one.api().log_in(ADMIN_TOKEN).await.unwrap_err().to_string().starts_with("503"));
    let logged_out = send(one.api().with_cookie(Method::DELETE, "/session", &goes)).await.unwrap();
    assert_eq!(logged_out.status, 503, "{logged_out}");
    assert!(logged_out.header("set-cookie").unwrap().contains("Max-Age=0"), "{logged_out}");
    assert_eq!(session_status(&one, &goes).await, 401, "here it has ended");

    postgres.start().unwrap();
    becomes(&two, &goes, StatusCode::UNAUTHORIZED).await;
    for replica in [&one, &two] {
        becomes(replica, &stays, StatusCode::OK).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn proxies_that_are_refused_are_counted_by_reason_and_logged_once() {
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let made = control_plane
        .api()
        .call(Method::POST, "/tokens", Some(&json!({"name": "v", "role": "viewer"})))
        .await;
    let viewer = made.unwrap().success().unwrap().body["token"].as_str().unwrap().to_owned();
    let mut proxies = Vec::new();
    for token in ["a-token-that-nobody-made", &viewer] {
        let builder = Proxy::builder().control_plane(&control_plane).arg(format!("--token={token}"));
        let mut proxy = builder.prepare().unwrap();
        proxy.start_unready().unwrap();
        proxies.push(proxy);
    }
    for reason in ["token_unknown", "token_role"] {
        let label = format!("reason=\"{reason}\"");
        let refused = async || {
            let metrics = control_plane.api().metrics().await.unwrap();
            metrics.sum("signalbox_xds_refused_total", &[&label]) >= 3.0
        };
        assert!(eventually(Duration::from_secs(60), refused).await, "{}", control_plane.log());
    }
    let log = control_plane.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("a proxy was refused")).collect();
    assert_eq!(told.len(), 2, "{told:#?}");
    assert!(
        told.iter().any(|line| line.contains("the token is not known to this control plane")),
        "{told:#?}"
    );
    assert!(told.iter().any(|line| line.contains("\"v\" has the role viewer")), "{told:#?}");
    assert!(!log.contains("a-token-that-nobody-made") && !log.contains(&viewer), "{log}");
}

/// The rotation as docs/OPERATIONS.md tells it: replica by replica, proxy by proxy. One replica has its tokens from a
/// flag and one from a file.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_rotation_of_the_proxies_token_refuses_no_proxy_and_fails_no_request() {
    const NEW: &str = "the-new-proxy-token-of-the-rotation";
    let postgres = Postgres::new().unwrap();
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("proxy-tokens");
    std::fs::write(&file, format!("{PROXY_TOKEN}\n")).unwrap();
    let builder = || ControlPlane::builder().database(postgres.url());
    let mut with_flag = builder().start().await.unwrap();
    let mut with_file = builder().prepare().unwrap();
    with_file.remove_arg("--proxy-token");
    with_file.set_arg(&format!("--proxy-token-file={}", file.display()));
    with_file.start().await.unwrap();
    with_flag.api().put("routes", "r", &respond("/", "served")).await.unwrap();

    let mut proxies = Vec::new();
    for id in ["proxy-0", "proxy-1"] {
        let builder = Proxy::builder().control_plane(&with_flag).control_plane(&with_file).node_id(id);
        proxies.push(builder.start().await.unwrap());
    }
    with_flag.api().wait_in_sync(2).await.unwrap();
    let load = Load::on(proxies.iter().map(Proxy::http)).start().await.unwrap();

    // Add the new one: on every replica, before anybody presents it.
    with_flag.set_arg(&format!("--proxy-token={PROXY_TOKEN},{NEW}"));
    none_refused(&with_flag).await;
    with_flag.stop().unwrap();
    with_flag.start().await.unwrap();
    std::fs::write(&file, format!("{PROXY_TOKEN}\n{NEW}\n")).unwrap();
    tokens_become(&with_file, 2).await;
    tokens_become(&with_flag, 2).await;

    // Move: the proxies, one after the other.
    for proxy in &mut proxies {
        proxy.set_arg(&format!("--token={NEW}"));
        proxy.terminate();
        assert_eq!(proxy.wait_exit(Duration::from_secs(60)).unwrap(), Some(0));
        proxy.start().await.unwrap();
        with_flag.api().wait_in_sync(2).await.unwrap();
        load.wait_for(20).await.unwrap();
    }

    // Remove the old one.
    std::fs::write(&file, format!("{NEW}\n")).unwrap();
    tokens_become(&with_file, 1).await;
    with_flag.set_arg(&format!("--proxy-token={NEW}"));
    none_refused(&with_flag).await;
    with_flag.stop().unwrap();
    with_flag.start().await.unwrap();
    let revision = with_flag.api().put("routes", "r", &respond("/", "after the rotation")).await.unwrap();
    with_flag.api().wait_in_sync(2).await.unwrap();
    with_flag.api().wait_default(revision).await.unwrap();
    for control_plane in [&with_flag, &with_file] {
        none_refused(control_plane).await;
        assert!(!control_plane.log().contains("a proxy was refused"), "{}", control_plane.log());
    }
    load.finish().assert_flawless(100);

    // The old one opens nothing any more, at either.
    for control_plane in [&with_flag, &with_file] {
        let mut late = Proxy::builder().control_plane(control_plane).node_id("late").prepare().unwrap();
        late.start_unready().unwrap();
        let refused = async || {
            let metrics = control_plane.api().metrics().await.unwrap();
            metrics.sum("signalbox_xds_refused_total", &["reason=\"token_unknown\""]) >= 1.0
        };
        assert!(eventually(DEADLINE, refused).await, "{}", control_plane.log());
    }
}

async fn none_refused(control_plane: &ControlPlane) {
    let metrics = control_plane.api().metrics().await.unwrap();
    assert_eq!(metrics.sum("signalbox_xds_refused_total", &[]), 0.0, "{}", control_plane.log());
}

/// Waits until so many proxies' tokens are given to a control plane.
async fn tokens_become(control_plane: &ControlPlane, count: usize) {
    let given = async || {
        let tokens = control_plane.api().get("/tokens").await.unwrap();
        let items = tokens["items"].as_array().unwrap();
        items.iter().filter(|item| item["role"] == "proxy" && item["source"] != "stored").count() == count
    };
    assert!(eventually(DEADLINE, given).await, "{}", control_plane.log());
}
