//! Everything at once, for as long as one likes: traffic of all kinds, faults, and a revision every second.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::json;
use signalbox_tests::{Backend, Behaviour, Echo, Load, Protocol, Proxy, free_port, get};

use crate::certificates::made;
use crate::fixture::{Gateway, forward, upstream, with};
use crate::speakers::{ask_through_tls, call, chat, grpc_server, web_socket_server};

/// How long, seconds, unless `SIGNALBOX_SOAK_SECONDS` says otherwise.
const SECONDS: u64 = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_soak_brings_no_wrong_answer_and_no_growth() {
    let seconds = std::env::var("SIGNALBOX_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    let length = Duration::from_secs(seconds.unwrap_or(SECONDS));
    let mut gateway = Gateway::start(2).await;
    let edge = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let builder = Proxy::builder().control_plane(&gateway.control_plane).node_id("edge").fleet("edge");
    gateway.proxies.push(builder.listener("https", edge).start().await.unwrap());
    let api = gateway.control_plane.api();
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = made(dir.path(), "a.example");
    let (grpc, web_sockets) = (grpc_server().await, web_socket_server().await);
    let steady = Backend::echo("steady").unwrap();
    let flaky = Backend::echo("flaky").unwrap();
    let flaky_at = flaky.address();
    let hanging = Backend::start("hanging", Behaviour::Hang).unwrap();
    let retry = json!({"retry": {"attempts": 3, "on": ["connect-failure", "reset"], "budget": 1.0}});
    let document = json!({
        "upstreams": [
            with(upstream(&[&steady, &flaky]), &json!({
                "name": "flaky",
                "health_check": {"passive": {"consecutive_failures": 3, "interval": "1s", "ejection": "1s"}},
            })),
            with(upstream(&[&hanging]), &json!({
                "name": "hanging",
                "circuit_breaker": {"error_rate": {
                    "threshold": 0.5, "window": "5s", "min_requests": 3, "open_for": "1s", "timeout": "200ms",
                    "fallback": {"status": 200, "body": "instead"},
                }},
            })),
            {"name": "grpc", "protocol": "http2", "targets": [{"address": grpc.to_string()}]},
            {"name": "web-sockets", "targets": [{"address": web_sockets.to_string()}]},
            {
                "name": "edge", "protocol": "auto", "targets": [{"address": edge.to_string()}],
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
    });
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
    // What the newest revision that was answered says; no later answer of the same proxy may be older.
    let newest = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&newest);
    let generations = Load::on([addresses[0]])
        .connections(1)
        .request(|_| ask("/generation"))
        .check(move |answer| {
            let echo = Echo::parse(&answer.body).map_err(|error| error.to_string())?;
            let generation = echo.path.trim_start_matches('/').parse().map_err(|_| echo.path.clone())?;
            let before = seen.fetch_max(generation, Ordering::Relaxed);
            if before <= generation { Ok(()) } else { Err(format!("{generation} after {before}")) }
        })
        .start()
        .await
        .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let through_tls = Load::on(addresses.clone()).request(|number| {
        let (head, body) = posted(number).into_parts();
        let uri = format!("/through-tls{}", head.uri);
        Request::post(uri).header("host", "a").body(body).unwrap()
    });
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
