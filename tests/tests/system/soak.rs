//! Everything at once, for as long as one likes: traffic of all kinds, faults, rotated tokens, full disks, and a revision every
//! second.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::json;
use signalbox_tests::control_plane::PROXY_TOKEN;
use signalbox_tests::{
    Backend, Behaviour, ControlPlane, Echo, Load, Protocol, Proxy, eventually, free_port, get,
};

use crate::certificates::made;
use crate::fixture::{Gateway, forward, upstream, with};
use crate::speakers::{ask_through_tls, call, chat, grpc_server, web_socket_server};

/// How long, seconds, unless `SIGNALBOX_SOAK_SECONDS` says otherwise.
const SECONDS: u64 = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_soak_brings_no_wrong_answer_and_no_growth() {
    let seconds = std::env::var("SIGNALBOX_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let length = Duration::from_secs(seconds.unwrap_or(SECONDS));
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("proxy-tokens");
    give_tokens(&tokens, PROXY_TOKEN);
    let mut control_plane = ControlPlane::builder().prepare().unwrap();
    control_plane.set_arg(&format!("--proxy-token={NOBODYS_TOKEN}"));
    control_plane.set_arg(&format!("--proxy-token-file={}", tokens.display()));
    control_plane.start().await.unwrap();
    let mut gateway = Gateway::on(control_plane, 2).await;
    let edge = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let builder = Proxy::builder().control_plane(&gateway.control_plane).node_id("edge").fleet("edge");
    gateway.proxies.push(builder.listener("https", edge).start().await.unwrap());
    let api = gateway.control_plane.api().clone();
    let (certificate, key) = made(dir.path(), "a.example");
    let (grpc, web_sockets) = (grpc_server().await, web_socket_server().await);
    let steady = Backend::echo("steady").unwrap();
    let flaky = Backend::echo("flaky").unwrap();
    let flaky_at = flaky.address();
    let hanging = Backend::start("hanging", Behaviour::Hang).unwrap();
    let peers = Peers { steady: &steady, flaky: &flaky, hanging: &hanging, grpc, web_sockets, edge };
    let document = document(&peers, &certificate, &key);
    let revision = api.apply(&document).await.unwrap();
    for fleet in ["default", "edge"] {
        api.wait(revision, fleet).await.unwrap();
    }
    let addresses: Vec<SocketAddr> = gateway.proxies.iter().map(Proxy::http).collect();

    let bodies = Load::on(addresses.clone()).request(posted).check(echoed).start().await.unwrap();
    let http2 = Load::on(addresses.clone()).protocol(Protocol::Http2).request(posted).check(echoed);
    let http2 = http2.start().await.unwrap();
    let retried = Load::on(addresses.clone())
        .request(|number| ask(&format!("/flaky/{number}")))
        .check(|answer| Echo::parse(&answer.body).map(drop).map_err(|error| error.to_string()));
    let retried = retried.start().await.unwrap();
    // The newest revision that an answer came from; no later answer of the same proxy may be older.
    let newest = Arc::new(AtomicU64::new(0));
    let generations = watch_generations(addresses[0], Arc::clone(&newest)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let through_tls = Load::on(addresses.clone()).request(posted_through_tls);
    let through_tls = through_tls.check(echoed).start().await.unwrap();
    let isolated = tokio::spawn(ask_the_hanging(addresses[1], Arc::clone(&stop)));
    let speakers = [
        call(addresses[0], &stop),
        call(addresses[1], &stop),
        chat(addresses[1], &stop),
        ask_through_tls(edge, &certificate, &stop),
    ];

    let mut flaky = Some(flaky);
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let mut generation = 0;
    let mut memory = None;
    let begun = Instant::now();
    while begun.elapsed() < length {
        second.tick().await;
        generation += 1;
        // One of the two targets is there half of the time.
        flaky = match flaky.take() {
            Some(_) if generation % 4 == 1 => None,
            None if generation % 4 == 3 => Some(Backend::at("flaky", Behaviour::Echo, flaky_at).unwrap()),
            as_it_is => as_it_is,
        };
        let rewrite =
            json!({"upstreams": [{"name": "echo"}], "rewrite": {"path_prefix": format!("/{generation}")}});
        let route = json!({"match": {"paths": [{"prefix": "/generation"}]}, "forward": rewrite});
        gateway.put("routes", "generation", &route).await;
        match generation % 8 {
            2 => revoke_for_a_moment(&gateway, &tokens).await,
            5 => fill_disks_for_a_moment(&mut gateway, &route).await,
            _ => {}
        }
        if memory.is_none() && begun.elapsed() > length / 3 {
            memory = Some(resident(&gateway.proxies));
        }
    }
    stop.store(true, Ordering::Relaxed);
    isolated.await.unwrap();
    for speaker in speakers {
        let heard = speaker.await.unwrap();
        assert!(heard > 20, "{heard}");
    }
    let (before, after) = (memory.unwrap(), resident(&gateway.proxies));
    for load in [bodies, http2, retried, generations, through_tls] {
        load.finish().assert_flawless(50);
    }
    assert!(newest.load(Ordering::Relaxed) + 2 >= generation, "the last revisions were not seen");
    for (before, after) in before.into_iter().zip(after) {
        println!("{before} KiB after a third, {after} KiB at the end");
        assert!(after < before + before / 10 + 4096, "{before} KiB after a third, {after} KiB at the end");
    }
}

/// The targets of the soak.
struct Peers<'a> {
    steady: &'a Backend,
    flaky: &'a Backend,
    hanging: &'a Backend,
    grpc: SocketAddr,
    web_sockets: SocketAddr,
    edge: SocketAddr,
}

/// The resources of the soak.
fn document(peers: &Peers<'_>, certificate: &str, key: &str) -> serde_json::Value {
    let retry = json!({"retry": {"attempts": 3, "on": ["connect-failure", "reset"], "budget": 1.0}});
    json!({
        "upstreams": [
            with(upstream(&[peers.steady, peers.flaky]), &json!({
                "name": "flaky",
                "health_check": {"passive": {"consecutive_failures": 3, "interval": "1s", "ejection": "1s"}},
            })),
            with(upstream(&[peers.hanging]), &json!({
                "name": "hanging",
                "circuit_breaker": {"error_rate": {
                    "threshold": 0.5, "window": "5s", "min_requests": 3, "open_for": "1s", "timeout": "200ms",
                    "fallback": {"status": 200, "body": "instead"},
                }},
            })),
            {"name": "grpc", "protocol": "http2", "targets": [{"address": peers.grpc.to_string()}]},
            {"name": "web-sockets", "targets": [{"address": peers.web_sockets.to_string()}]},
            {
                "name": "edge", "protocol": "auto", "targets": [{"address": peers.edge.to_string()}],
                "tls": {"sni": "a.example", "ca": certificate},
                "health_check": {"active": {"path": "/healthz", "interval": "1s"}},
            },
        ],
        "listeners": [{"name": "https", "address": "127.0.0.1:8443", "protocol": "https", "fleets": ["edge"]}],
        "certificates": [{"name": "a", "certificate": certificate, "private_key": key}],
        "routes": [
            {
                "name": "grpc",
                "match": {"paths": [{"prefix": "/test.Talk"}]},
                "forward": {"upstreams": [{"name": "grpc"}]},
            },
            {
                "name": "web-sockets",
                "match": {"hosts": ["chat.example"]},
                "forward": {"upstreams": [{"name": "web-sockets"}]},
            },
            {
                "name": "through-tls",
                "match": {"paths": [{"prefix": "/through-tls"}]},
                "forward": {"upstreams": [{"name": "edge"}], "rewrite": {"path_prefix": "/"}},
            },
            with(forward("/"), &json!({"name": "all"})),
            {
                "name": "flaky",
                "match": {"paths": [{"prefix": "/flaky"}]},
                "forward": with(json!({"upstreams": [{"name": "flaky"}]}), &retry),
            },
            {
                "name": "hanging",
                "match": {"paths": [{"prefix": "/hanging"}]},
                "forward": {"upstreams": [{"name": "hanging"}]},
            },
            {
                "name": "generation",
                "match": {"paths": [{"prefix": "/generation"}]},
                "forward": {"upstreams": [{"name": "echo"}], "rewrite": {"path_prefix": "/0"}},
            },
        ],
    })
}

/// Asks one proxy for the newest revision; an answer must not come from an older one than the answer before.
async fn watch_generations(proxy: SocketAddr, newest: Arc<AtomicU64>) -> Load {
    Load::on([proxy])
        .connections(1)
        .request(|_| ask("/generation"))
        .check(move |answer| {
            let echo = Echo::parse(&answer.body).map_err(|error| error.to_string())?;
            let generation = echo.path.trim_start_matches('/').parse().map_err(|_| echo.path.clone())?;
            let before = newest.fetch_max(generation, Ordering::Relaxed);
            if before <= generation { Ok(()) } else { Err(format!("{generation} after {before}")) }
        })
        .start()
        .await
        .unwrap()
}

/// A request that passes the TLS proxy.
fn posted_through_tls(number: u64) -> Request<Full<Bytes>> {
    let (head, body) = posted(number).into_parts();
    let uri = format!("/through-tls{}", head.uri);
    Request::post(uri).header("host", "a").body(body).unwrap()
}

/// A token that no proxy has.
const NOBODYS_TOKEN: &str = "soak-token-that-nobody-has";

/// Writes the file of the proxies' tokens, never half.
fn give_tokens(file: &Path, token: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, format!("{token}\n")).unwrap();
    std::fs::rename(new, file).unwrap();
}

/// Takes the proxies' token away: all streams end and the proxies serve on; and gives it again: all come back.
async fn revoke_for_a_moment(gateway: &Gateway, tokens: &Path) {
    let api = gateway.control_plane.api();
    give_tokens(tokens, NOBODYS_TOKEN);
    let none = async || {
        api.proxies().await.is_ok_and(|proxies| proxies.iter().all(|proxy| proxy["connected"] == false))
    };
    assert!(eventually(DEADLINE, none).await, "a proxy keeps its stream: {}", gateway.control_plane.log());
    give_tokens(tokens, PROXY_TOKEN);
    api.wait_in_sync(gateway.proxies.len()).await.unwrap();
}

/// Nothing can be written: no revision, no snapshot of a proxy, no line of a log. Then all of it can again.
async fn fill_disks_for_a_moment(gateway: &mut Gateway, route: &serde_json::Value) {
    let api = gateway.control_plane.api().clone();
    let head = api.head().await.unwrap();
    gateway.control_plane.limit_file_size(Some(0)).unwrap();
    for proxy in &mut gateway.proxies {
        proxy.limit_file_size(Some(0)).unwrap();
    }
    let mut other = route.clone();
    other["description"] = "refused".into();
    let refused = api.call(http::Method::PUT, "/routes/generation", Some(&other)).await.unwrap();
    assert_eq!(refused.status, 503, "{refused}");
    assert_eq!(api.head().await.unwrap(), head);
    gateway.control_plane.limit_file_size(None).unwrap();
    // The proxies apply this one, and cannot keep it.
    let put = async || api.put("routes", "full-disk", &forward("/full-disk")).await.is_ok();
    assert!(eventually(DEADLINE, put).await, "{}", gateway.control_plane.log());
    api.wait_in_sync(gateway.proxies.len()).await.unwrap();
    for proxy in &mut gateway.proxies {
        proxy.limit_file_size(None).unwrap();
    }
    api.delete("routes", "full-disk").await.unwrap();
}

const DEADLINE: Duration = Duration::from_secs(60);

fn ask(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "a").body(Full::default()).unwrap()
}

/// A request with up to 300 KB, whose path says how many.
fn posted(number: u64) -> Request<Full<Bytes>> {
    let body = Bytes::from(vec![b'x'; (number as usize % 11).pow(2) * 3_000]);
    Request::post(format!("/{}", body.len())).header("host", "a").body(Full::from(body)).unwrap()
}

fn echoed(answer: &signalbox_tests::Answer) -> Result<(), String> {
    let echo = Echo::parse(&answer.body).map_err(|error| error.to_string())?;
    if echo.path == format!("/{}", echo.body_length) { Ok(()) } else { Err(format!("{echo:?}")) }
}

/// Asks for what never answers, each time on a connection of its own: it is given up in time, or answered in its stead.
async fn ask_the_hanging(address: SocketAddr, stop: Arc<AtomicBool>) {
    let mut instead = 0;
    while !stop.load(Ordering::Relaxed) {
        let answer = get(address, "a", "/hanging").await.unwrap();
        match answer.status.as_u16() {
            504 => {}
            200 if answer.text() == "instead" => instead += 1,
            status => panic!("{status}: {}", answer.text()),
        }
    }
    assert!(instead > 50, "{instead}");
}

/// Memory of each proxy, KiB.
fn resident(proxies: &[Proxy]) -> Vec<u64> {
    proxies
        .iter()
        .map(|proxy| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid().unwrap())).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        })
        .collect()
}
