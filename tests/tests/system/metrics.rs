//! Metrics of both programs, as they are described and as they are shown.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::json;
use signalbox_process::process_metrics;
use signalbox_process::prometheus::{Metric, table};
use signalbox_tests::client::send;
use signalbox_tests::{Backend, Behaviour, Proxy, eventually, get};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::fixture::{Gateway, forward, respond, upstream};

const DEADLINE: Duration = Duration::from_secs(20);

/// The page of the documentation, without its tables.
const PAGE: [&str; 4] = [
    "# Metrics

Both programs have metrics for Prometheus at `/metrics` of their admin address. This page is made from the tables in the
code (`described.rs`); `SIGNALBOX_RENEW=1 cargo test -p signalbox-tests --test system metrics::the_page` writes it anew.

Counters begin with 0 when the process starts. A series appears with its first count: a route without requests has none. At most
`--metrics-routes` (4096) routes of a proxy have series of their own; further ones are counted together as `_other`, so sums over all
series are right. A route keeps its place while it exists. The counts of a deleted route stay until its last request has ended and
they were shown twice after that.

The header `Accept` of the scraper chooses the format: Prometheus' text (the default), OpenMetrics 1.0, or protobuf. OpenMetrics and
protobuf name traces beside the durations of requests (exemplars): of each power of two of a duration, the last request whose trace is
exported. Protobuf has the durations of proxies as native histograms too, whose buckets are 9 % wide (those of the time to the first byte
double). Prometheus asks for it where native histograms are turned on.

`GET /api/v1/prometheus-targets` of a control plane lists the admin addresses of the proxies, for `http_sd_configs`. It needs a token of the
role viewer; `?fleet=` picks a fleet. Labels say which proxy it is: `__meta_signalbox_proxy`, `_fleet`, `_version`, `_connected` and
`_label_KEY`. A proxy is left out if its admin server listens for its own host alone, as it does by default: start proxies with
`--admin-address 0.0.0.0:9082`, and an `--admin-token`. A proxy on the host of the control plane is listed with its local address, which serves a
Prometheus on that host.

Three kinds of figures are bounded by the configuration alone: those by upstream, by plugin and by certificate. The page is sent in chunks
while it is made, so its size needs no memory. Health and metrics need no token; `--guard-metrics` asks for one at a proxy.

## Both programs

",
    "
## Proxies

",
    "
## Control planes

",
    "
Metrics of a database, of Redis and of hosts come from their own exporters.
",
];

fn page() -> String {
    let tables = [
        process_metrics::ALL,
        signalbox_proxy::metrics::described::ALL,
        signalbox_control_plane::metrics::described::ALL,
    ];
    let mut page = String::new();
    for (index, text) in PAGE.iter().enumerate() {
        page.push_str(text);
        page.push_str(&tables.get(index).map(|metrics| table(metrics)).unwrap_or_default());
    }
    page
}

#[test]
fn the_page_about_metrics_is_made_from_their_tables() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/METRICS.md");
    let page = page();
    if std::env::var_os("SIGNALBOX_RENEW").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page, "docs/METRICS.md is out of date: run this test with SIGNALBOX_RENEW=1");
}

/// Checks a page of metrics against tables: each family is described, and written as it is described. Returns the names.
fn check(text: &str, tables: [&[&'static Metric]; 2]) -> Vec<String> {
    let described: BTreeMap<&str, &Metric> =
        tables.into_iter().flatten().map(|metric| (metric.name, *metric)).collect();
    let mut families = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(rest) = line.strip_prefix("# HELP ") else {
            panic!("{line:?} is not the begin of a family")
        };
        let (name, help) = rest.split_once(' ').unwrap();
        let metric = described.get(name).unwrap_or_else(|| panic!("{name} is not described"));
        assert_eq!(help, metric.help);
        assert_eq!(lines.next().unwrap(), format!("# TYPE {name} {}", metric.kind.as_str()));
        while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
            let (series, value) = sample.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{sample}");
            let labels = series.split_once('{').map_or("", |(_, labels)| labels);
            for label in metric.labels {
                assert!(labels.contains(&format!("{label}=\"")), "{sample} has no {label}");
            }
        }
        families.push(name.to_owned());
    }
    let mut once = families.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), families.len(), "a family is written twice");
    families
}

/// OpenMetrics' families of counters are named without `_total`: no other family of a page may have such a name.
#[test]
fn no_two_families_have_one_name_in_any_format() {
    let pages = [signalbox_proxy::metrics::described::ALL, signalbox_control_plane::metrics::described::ALL];
    for page in pages {
        let all = process_metrics::ALL.iter().chain(page);
        let mut names: Vec<_> = all.map(|metric| metric.name.trim_end_matches("_total")).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "{names:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_family_that_is_shown_is_described() {
    let gateway = Gateway::start(1).await;
    gateway.put("routes", "all", &forward("/")).await;
    let proxy = &gateway.proxies[0];
    assert_eq!(get(proxy.http(), "a.example", "/").await.unwrap().status, 200);
    let shown = proxy.metrics().await.unwrap();
    let families = check(&shown.0, [process_metrics::ALL, signalbox_proxy::metrics::described::ALL]);
    for name in [
        "signalbox_requests_total",
        "process_open_fds",
        "signalbox_revision_persisted",
        "signalbox_build_info",
    ] {
        assert!(families.iter().any(|family| family == name), "{name} is missing");
    }
    assert_eq!(shown.sum("signalbox_control_plane_connected", &[]), 1.0);
    assert_eq!(shown.sum("signalbox_ready", &[]), 1.0);
    assert_eq!(shown.sum("signalbox_draining", &[]), 0.0);
    let now = jiff_now();
    assert!((now - shown.sum("signalbox_control_plane_last_contact_timestamp_seconds", &[])).abs() < 60.0);
    assert!((now - shown.sum("process_start_time_seconds", &[])).abs() < 600.0);
    let (open, most) = (shown.sum("process_open_fds", &[]), shown.sum("process_max_fds", &[]));
    assert!(open > 10.0 && open < most, "{open} of {most}");
    assert!(shown.sum("process_resident_memory_bytes", &[]) > 1e6);
    let revision = shown.sum("signalbox_revision", &[]);
    assert!(
        eventually(DEADLINE, async || {
            proxy.metrics().await.unwrap().sum("signalbox_revision_persisted", &[]) == revision
        })
        .await
    );

    let shown = gateway.control_plane.api().metrics().await.unwrap();
    check(&shown.0, [process_metrics::ALL, signalbox_control_plane::metrics::described::ALL]);
    assert_eq!(shown.sum("signalbox_proxies", &["fleet=\"default\"", "state=\"in_sync\""]), 1.0);
}

fn jiff_now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}

async fn requests(proxy: &Proxy, labels: &[&str]) -> f64 {
    proxy.metrics().await.unwrap().sum("signalbox_requests_total", labels)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_routes_counts_are_kept_until_its_last_request_was_shown_twice() {
    let gateway = Gateway::start(1).await;
    let api = gateway.control_plane.api();
    let slow = Backend::start("slow", Behaviour::Slow(Duration::from_secs(2))).unwrap();
    gateway.put("upstreams", "echo", &upstream(&[&slow])).await;
    gateway.put("routes", "gone", &forward("/gone")).await;
    let proxy = &gateway.proxies[0];
    let address = proxy.http();
    let under_way = tokio::spawn(async move { get(address, "a.example", "/gone").await });
    assert!(eventually(DEADLINE, async || slow.requests() == 1).await);
    let revision = api.delete("routes", "gone").await.unwrap();
    api.wait_default(revision).await.unwrap();
    let of_route = ["route=\"gone\""];
    for _ in 0..3 {
        assert_eq!(requests(proxy, &of_route).await, 0.0, "it has not ended");
    }
    assert_eq!(under_way.await.unwrap().unwrap().status, 200);
    assert_eq!(requests(proxy, &of_route).await, 1.0, "its last request counts");
    // The old revision is released within a second or two, and then its counts are shown twice.
    assert!(eventually(DEADLINE, async || requests(proxy, &of_route).await == 0.0).await);
    // The request is in the time series, although the metrics have forgotten the route before the next report.
    let in_series = async || {
        let answer = api.get("/stats?route=gone").await.unwrap();
        let points =
            answer["series"].as_array().unwrap().iter().flat_map(|one| one["points"].as_array().unwrap());
        points.map(|point| point["requests"].as_u64().unwrap()).sum::<u64>() == 1
    };
    assert!(eventually(Duration::from_secs(30), in_series).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn routes_beyond_the_limit_are_counted_together() {
    let gateway = Gateway::start(0).await;
    let proxy = Proxy::builder()
        .control_plane(&gateway.control_plane)
        .arg("--metrics-routes=2")
        .start()
        .await
        .unwrap();
    let routes: Vec<_> = (0..4)
        .map(|number| {
            let mut route = respond(&format!("/{number}"), "ok");
            route["name"] = json!(format!("r{number}"));
            route
        })
        .collect();
    let api = gateway.control_plane.api();
    let revision = api.apply(&json!({"routes": routes})).await.unwrap();
    api.wait_default(revision).await.unwrap();
    for round in 1..=2 {
        for number in 0..4 {
            let answer = get(proxy.http(), "a.example", &format!("/{number}")).await.unwrap();
            assert_eq!(answer.status, 200);
        }
        let all = f64::from(round) * 4.0;
        assert!(eventually(DEADLINE, async || requests(&proxy, &[]).await == all).await, "sums agree");
        assert_eq!(requests(&proxy, &["route=\"_other\""]).await, all / 2.0);
    }
}

/// A server whose responses are events for so long.
async fn event_stream(length: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
                stream.write_all(head).await?;
                stream.write_all(b"9\r\ndata: 1\n\n\r\n").await?;
                tokio::time::sleep(length).await;
                stream.write_all(b"0\r\n\r\n").await
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn streams_do_not_count_as_latency() {
    let events = event_stream(Duration::from_millis(600)).await;
    let gateway = Gateway::start(1).await;
    let spec = json!({"targets": [{"address": events.to_string()}]});
    gateway.put("upstreams", "echo", &spec).await;
    gateway.put("routes", "all", &forward("/")).await;
    let proxy = &gateway.proxies[0];
    let request = Request::get("/").header("host", "a.example").body(Full::<Bytes>::default()).unwrap();
    assert_eq!(send(proxy.http(), request).await.unwrap().status, 200);
    let counted = async || {
        let metrics = proxy.metrics().await.unwrap();
        let streams = metrics.sum("signalbox_stream_duration_seconds_count", &["kind=\"event_stream\""]);
        let took = metrics.sum("signalbox_stream_duration_seconds_sum", &["kind=\"event_stream\""]);
        (streams, took > 0.5, metrics.sum("signalbox_request_duration_seconds_count", &[]))
    };
    assert!(
        eventually(DEADLINE, async || counted().await == (1.0, true, 0.0)).await,
        "{:?}",
        counted().await
    );

    let sockets = crate::speakers::web_socket_server().await;
    gateway.put("upstreams", "echo", &json!({"targets": [{"address": sockets.to_string()}]})).await;
    let stop = crate::speakers::Stop::default();
    let chat = crate::speakers::chat(proxy.http(), &stop);
    let tunnels = async || {
        let metrics = proxy.metrics().await.unwrap();
        metrics.sum("signalbox_stream_duration_seconds_count", &["kind=\"tunnel\""])
    };
    assert!(eventually(DEADLINE, async || tunnels().await >= 2.0).await);
    stop.store(true, Ordering::Relaxed);
    chat.await.unwrap();
    assert_eq!(counted().await, (1.0, true, 0.0), "tunnels do not count as latency");
}
