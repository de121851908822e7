//! How revisions reach the proxies: atomically, under load, with rejections shown, fleet by fleet.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use signalbox_tests::{Answer, Api, Backend, ControlPlane, Echo, Load, Proxy, eventually, free_port, get};

use crate::fixture::{Gateway, forward, respond, upstream, with};

/// How many pairs of a route and a plugin the load looks at.
const PAIRS: u64 = 4;

/// A route and its plugin that both name `generation`: the route to the upstream by the host, the plugin by a
/// header. A request that sees two revisions would bring two generations.
fn pair(index: u64, generation: u64) -> [(&'static str, Value); 2] {
    let plugin = json!({
        "name": format!("stamp-{index}"),
        "type": "request-transform",
        "config": {"add": {"headers": {"x-generation": generation.to_string()}}},
    });
    let route = json!({
        "name": format!("pair-{index}"),
        "match": {"paths": [{"prefix": format!("/pair/{index}")}]},
        "plugins": [format!("stamp-{index}")],
        "forward": {"upstreams": [{"name": "echo"}], "rewrite": {"host": format!("generation-{generation}.test")}},
    });
    [("plugins", plugin), ("routes", route)]
}

fn document(resources: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let mut document = json!({});
    for (kinds, spec) in resources {
        match document[kinds].as_array_mut() {
            Some(list) => list.push(spec),
            None => document[kinds] = json!([spec]),
        }
    }
    document
}

fn of_one_generation(answer: &Answer) -> Result<u64, String> {
    let echo = Echo::parse(&answer.body).map_err(|error| error.to_string())?;
    let host = echo.header("host").unwrap_or_default().to_owned();
    let stamp = echo.header("x-generation").unwrap_or_default();
    if host == format!("generation-{stamp}.test") {
        stamp.parse().map_err(|_| format!("no generation in {stamp:?}"))
    } else {
        Err(format!("a mix of revisions: the route says {host}, the plugin {stamp}"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_hundred_random_changes_under_load_fail_no_request_and_mix_no_revisions() {
    let gateway = Gateway::start(2).await;
    let other = Backend::echo("other").unwrap();
    let api = gateway.control_plane.api();
    let mut generation = 1;
    let revision = api.apply(&document((0..PAIRS).flat_map(|index| pair(index, 1)))).await.unwrap();
    api.wait_default(revision).await.unwrap();

    let newest = Arc::new(AtomicU64::new(0));
    let load = Load::on(gateway.proxies.iter().map(Proxy::http))
        .connections(6)
        .request(|number| {
            let path = format!("/pair/{}/{number}", number % PAIRS);
            Request::get(path).header("host", "a").body(Full::default()).unwrap()
        })
        .check({
            let newest = newest.clone();
            move |answer| {
                newest.fetch_max(of_one_generation(answer)?, Ordering::Relaxed);
                Ok(())
            }
        })
        .start()
        .await
        .unwrap();

    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut extra = 0;
    for change in 0..200 {
        let outcome = match random.u8(0..10) {
            // All pairs at once, or one of them.
            0..3 => {
                generation += 1;
                api.apply(&document((0..PAIRS).flat_map(|index| pair(index, generation)))).await
            }
            3..6 => {
                generation += 1;
                api.apply(&document(pair(random.u64(0..PAIRS), generation))).await
            }
            6 => {
                extra += 1;
                api.put("routes", &format!("extra-{extra}"), &respond(&format!("/extra/{extra}"), "x")).await
            }
            7 if extra > 0 => {
                extra -= 1;
                api.delete("routes", &format!("extra-{}", extra + 1)).await
            }
            7 | 8 => {
                let backends: &[&Backend] = match random.u8(0..3) {
                    0 => &[&gateway.backend],
                    1 => &[&other],
                    _ => &[&gateway.backend, &other],
                };
                let policy = ["round_robin", "least_request", "random"][random.usize(0..3)];
                let spec = with(
                    upstream(backends),
                    &json!({"load_balancing": {"policy": policy}, "description": change.to_string()}),
                );
                api.put("upstreams", "echo", &spec).await
            }
            _ => api.put("consumers", "c", &json!({"custom_id": change.to_string()})).await,
        };
        outcome.unwrap_or_else(|error| panic!("change {change} of seed {seed}: {error:#}"));
    }
    let head = api.head().await.unwrap();
    api.wait_default(head).await.unwrap();
    // From here on the load sees the last generation.
    let last = api.apply(&document((0..PAIRS).flat_map(|index| pair(index, generation + 1)))).await.unwrap();
    api.wait_default(last).await.unwrap();
    load.wait_for(50).await.unwrap();
    assert_eq!(newest.load(Ordering::Relaxed), generation + 1);
    let report = load.finish();
    report.assert_flawless(500);
    api.wait_in_sync(2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_rollback_under_load_is_a_new_revision_and_fails_no_request() {
    let gateway = Gateway::start(2).await;
    let api = gateway.control_plane.api();
    let first = gateway.put("routes", "r", &respond("/", "old")).await;
    let second = gateway.put("routes", "r", &respond("/", "new")).await;
    gateway.put("routes", "added", &respond("/added", "added")).await;
    let load = Load::on(gateway.proxies.iter().map(Proxy::http))
        .check(|answer| match answer.text().as_str() {
            "old" | "new" => Ok(()),
            other => Err(format!("neither the old nor the new: {other}")),
        })
        .start()
        .await
        .unwrap();
    let call = format!("/revisions/{first}/rollback");
    let answer = api.call(Method::POST, &call, None).await.unwrap().success().unwrap();
    let third = answer.revision().unwrap();
    assert_eq!(third, second + 2);
    api.wait_default(third).await.unwrap();
    for proxy in &gateway.proxies {
        assert_eq!(get(proxy.http(), "a", "/").await.unwrap().text(), "old");
        assert_eq!(
            get(proxy.http(), "a", "/added").await.unwrap().text(),
            "old",
            "what was added after is gone"
        );
    }
    load.finish().assert_flawless(10);
    // History is as it was.
    let before = api.get(&format!("/revisions/{second}")).await.unwrap();
    assert_eq!(before["changes"][0]["after"]["respond"]["body"], "new");
}

/// A port that is taken, by a socket that shares it with nobody.
fn taken_port() -> (TcpListener, SocketAddr) {
    let socket = TcpListener::bind(("127.0.0.1", free_port())).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_proxy_whose_port_is_taken_rejects_the_revision_is_shown_so_and_recovers() {
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let api = control_plane.api();
    let good = Proxy::builder()
        .control_plane(&control_plane)
        .node_id("good")
        .listener("second", SocketAddr::from(([127, 0, 0, 1], free_port())))
        .start()
        .await
        .unwrap();
    let bad = Proxy::of(&control_plane, "bad").await.unwrap();
    api.wait_in_sync(2).await.unwrap();
    let before = api.put("routes", "r", &respond("/", "before")).await.unwrap();
    api.wait_default(before).await.unwrap();
    let load = Load::on([good.http(), bad.http()]).start().await.unwrap();

    // Where `good` has an address of its own for it, `bad` takes the configured one, which is not free.
    let (_socket, taken) = taken_port();
    let refused = api
        .apply(&json!({
            "listeners": [{"name": "second", "address": taken.to_string()}],
            "routes": [with(respond("/", "after"), &json!({"name": "r"}))],
        }))
        .await
        .unwrap();
    let waited =
        api.call(Method::GET, &format!("/revisions/{refused}/wait?timeout=20s"), None).await.unwrap();
    assert_eq!(waited.status, StatusCode::CONFLICT, "{waited}");
    let shown = api.wait_proxy("bad", "rejected", |shown| shown["state"] == "rejected").await.unwrap();
    assert_eq!(shown["revision"]["applied"], before, "{shown:#}");
    assert_eq!(shown["error"]["revision"], refused);
    let reason = &shown["error"]["resources"][0];
    assert_eq!((&reason["kind"], &reason["name"]), (&json!("listener"), &json!("second")), "{shown:#}");
    assert!(
        reason["message"].as_str().is_some_and(|text| text.contains("another process listens there")),
        "{reason}"
    );
    let shown = api.wait_proxy("good", "in sync", |shown| shown["state"] == "in_sync").await.unwrap();
    assert_eq!(shown["revision"]["applied"], refused);
    // Nothing of the revision is served where it was rejected.
    assert_eq!(get(bad.http(), "a", "/").await.unwrap().text(), "before");
    assert_eq!(get(good.http(), "a", "/").await.unwrap().text(), "after");
    let metrics = bad.metrics().await.unwrap();
    let rejected = metrics.sum("signalbox_config_rejected_total", &[]);
    assert!((1.0..=2.0).contains(&rejected), "it is not sent again and again: {rejected}");

    let fixed = json!({"address": format!("127.0.0.1:{}", free_port())});
    let revision = api.put("listeners", "second", &fixed).await.unwrap();
    api.wait_default(revision).await.unwrap();
    let shown = api.wait_proxy("bad", "in sync", |shown| shown["state"] == "in_sync").await.unwrap();
    assert!(shown["error"].is_null(), "{shown:#}");
    assert_eq!(get(bad.http(), "a", "/").await.unwrap().text(), "after");
    let address: SocketAddr = fixed["address"].as_str().unwrap().parse().unwrap();
    assert_eq!(get(address, "a", "/").await.unwrap().text(), "after");
    load.finish().assert_flawless(10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn listeners_are_added_moved_and_removed_under_load() {
    let gateway = Gateway::start(1).await;
    gateway.put("routes", "echo", &forward("/")).await;
    let load = Load::on([gateway.proxies[0].http()]).start().await.unwrap();
    let (first, second) = (loopback(), loopback());

    gateway.put("listeners", "extra", &json!({"address": first.to_string()})).await;
    assert_eq!(get(first, "a", "/").await.unwrap().status, StatusCode::OK);
    let on_extra = Load::on([first, second]).connections(2).start().await.unwrap();

    gateway.put("listeners", "extra", &json!({"address": second.to_string()})).await;
    assert_eq!(get(second, "a", "/").await.unwrap().status, StatusCode::OK);
    assert!(gone(first).await, "the old address still accepts");
    on_extra.wait_for(50).await.unwrap();
    on_extra.finish().assert_flawless(50);

    // A route of one listener is not on the other.
    let only = with(respond("/only", "here"), &json!({"listeners": ["extra"]}));
    gateway.put("routes", "only", &only).await;
    assert_eq!(get(second, "a", "/only").await.unwrap().text(), "here");
    assert!(Echo::parse(&get(gateway.proxies[0].http(), "a", "/only").await.unwrap().body).is_ok());

    let api = gateway.control_plane.api();
    api.delete("routes", "only").await.unwrap();
    let revision = api.delete("listeners", "extra").await.unwrap();
    api.wait_default(revision).await.unwrap();
    assert!(gone(second).await, "the removed listener still accepts");
    load.finish().assert_flawless(50);
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// True if an address stops to accept.
async fn gone(address: SocketAddr) -> bool {
    eventually(Duration::from_secs(10), async || tokio::net::TcpStream::connect(address).await.is_err()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_fleet_gets_what_is_its() {
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let api = control_plane.api();
    let plain = Proxy::of(&control_plane, "plain").await.unwrap();
    let edge =
        Proxy::builder().control_plane(&control_plane).node_id("edge").fleet("edge").start().await.unwrap();
    api.wait_in_sync(2).await.unwrap();
    let text = async |proxy: &Proxy| get(proxy.http(), "a", "/").await.unwrap().text();

    put_everywhere(api, "all", &respond("/", "all")).await;
    put_everywhere(api, "mine", &with(respond("/", "edge"), &json!({"fleets": ["edge"], "priority": 1})))
        .await;
    assert_eq!((text(&plain).await, text(&edge).await), ("all".to_owned(), "edge".to_owned()));
    // Moved to the other fleet, and then to none.
    put_everywhere(
        api,
        "mine",
        &with(respond("/", "default"), &json!({"fleets": ["default"], "priority": 1})),
    )
    .await;
    assert_eq!((text(&plain).await, text(&edge).await), ("default".to_owned(), "all".to_owned()));
    let revision = api.delete("routes", "mine").await.unwrap();
    for fleet in ["default", "edge"] {
        api.wait(revision, fleet).await.unwrap();
    }
    assert_eq!((text(&plain).await, text(&edge).await), ("all".to_owned(), "all".to_owned()));

    // A resource must be in the fleets of those that it refers to.
    let secret = with(upstream(&[]), &json!({"fleets": ["edge"]}));
    api.put("upstreams", "secret", &secret).await.unwrap();
    let everywhere = json!({"forward": {"upstreams": [{"name": "secret"}]}});
    let answer = api.call(Method::PUT, "/routes/wide", Some(&everywhere)).await.unwrap();
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    let fleets: Vec<Value> = api.get("/fleet-statuses").await.unwrap()["items"].as_array().unwrap().clone();
    let names: Vec<&str> = fleets.iter().filter_map(|fleet| fleet["name"].as_str()).collect();
    assert!(names.contains(&"edge") && names.contains(&"default"), "{names:?}");
}

async fn put_everywhere(api: &Api, name: &str, spec: &Value) {
    let revision = api.put("routes", name, spec).await.unwrap();
    for fleet in ["default", "edge"] {
        api.wait(revision, fleet).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_rollout_is_told_as_it_happens() {
    let gateway = Gateway::start(2).await;
    let api = gateway.control_plane.api();
    let mut events = api.request(Method::GET, "/events").send().await.unwrap();
    assert_eq!(events.status(), StatusCode::OK);
    let revision = gateway.put("routes", "r", &respond("/", "x")).await;
    let mut text = String::new();
    let told = tokio::time::timeout(Duration::from_secs(20), async {
        while let Some(chunk) = events.chunk().await.unwrap() {
            text.push_str(&String::from_utf8_lossy(&chunk));
            if ["event: revision", "event: proxy", "event: rollout"].iter().all(|event| text.contains(event))
                && text.contains("succeeded")
            {
                return;
            }
        }
        panic!("the stream of events ended: {text}");
    });
    assert!(told.await.is_ok(), "not all of it was told: {text}");

    let rollouts = api.get("/rollouts").await.unwrap();
    let rollout =
        rollouts["items"].as_array().unwrap().iter().find(|rollout| rollout["revision"] == revision);
    let rollout = rollout.expect("the revision's rollout");
    assert_eq!(rollout["state"], "succeeded", "{rollout:#}");
    assert_eq!(
        rollout["counts"],
        json!({
            "total": 2, "assigned": 2, "applied": 2, "pending": 0, "rejected": 0, "disconnected": 0, "unknown": 0,
            "lost": 0
        })
    );
    let p99 = rollout["propagation_ms"]["p99"].as_f64().unwrap();
    assert!(p99 > 0.0 && p99 < 10_000.0, "{p99}");
    let metrics = api.metrics().await.unwrap();
    assert_eq!(metrics.sum("signalbox_connected_proxies", &[]), 2.0);
    assert_eq!(metrics.sum("signalbox_head_revision", &[]), revision as f64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_body_that_is_streamed_while_the_revision_changes_stays_with_its_own() {
    let gateway = Gateway::start(1).await;
    let slow = Backend::start("slow", signalbox_tests::Behaviour::Slow(Duration::from_millis(600))).unwrap();
    gateway.put("upstreams", "echo", &upstream(&[&slow])).await;
    gateway.put("routes", "r", &forward("/")).await;
    let address = gateway.proxies[0].http();
    let running = tokio::spawn(async move {
        let request =
            Request::post("/x").header("host", "a").body(Full::from(Bytes::from(vec![b'x'; 300_000])));
        signalbox_tests::client::send(address, request.unwrap()).await
    });
    assert!(eventually(Duration::from_secs(10), async || slow.requests() == 1).await);
    // Its route and its upstream are gone before the answer comes.
    let api = gateway.control_plane.api();
    api.delete("routes", "r").await.unwrap();
    let revision = api.delete("upstreams", "echo").await.unwrap();
    api.wait_default(revision).await.unwrap();
    assert_eq!(get(address, "a", "/x").await.unwrap().status, StatusCode::NOT_FOUND);
    let answer = running.await.unwrap().unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    assert_eq!(Echo::parse(&answer.body).unwrap().body_length, 300_000);
}
