//! The time from the response to a PUT until the first request that sees the change, and the change's costs: bytes
//! sent, time to apply, delay of other requests, memory. The databases are SQLite and PostgreSQL, with many routes on
//! one host.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::{Value, json};
use signalbox_bench::{Quantiles, publish, raise_open_files, resident, table};
use signalbox_tests::postgres::Durability;
use signalbox_tests::{Api, ControlPlane, Load, Postgres, Proxy};
use tokio::net::{TcpListener, TcpStream};

/// Measures the propagation of changes.
#[derive(Parser)]
struct Args {
    /// The numbers of routes, on one host.
    #[arg(long, value_delimiter = ',', default_value = "10000,100000")]
    routes: Vec<usize>,
    /// The number of timed changes.
    #[arg(long, default_value_t = 500)]
    changes: usize,
    /// The number of changes for measuring the growth of memory.
    #[arg(long, default_value_t = 1000)]
    churn: usize,
    /// The databases: `sqlite`, `postgres`.
    #[arg(long, value_delimiter = ',', default_value = "sqlite,postgres")]
    databases: Vec<String>,
    /// The directory of the results.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Serialize)]
struct Measured {
    database: String,
    routes: usize,
    /// The time from the PUT's response to the first 200 through the proxy, in ms.
    live: Quantiles,
    /// The time of the PUT itself, in ms.
    put: Quantiles,
    /// The time in the proxy from receiving to the swap, in ms.
    apply: Quantiles,
    bytes_per_change: f64,
    /// The slowest of the requests on 2 connections: during the changes, and for as long without any.
    slowest_request_ms: f64,
    slowest_request_at_rest_ms: f64,
    requests_during_changes: u64,
    /// The resident memory of the proxy.
    memory: Memory,
    control_plane_memory: u64,
}

#[derive(Serialize)]
struct Memory {
    empty: u64,
    loaded: u64,
    /// The memory after the timed changes, which have brought every part of the proxy into use.
    before_churn: u64,
    after_churn: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    raise_open_files()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(run(&args))
}

async fn run(args: &Args) -> Result<()> {
    let mut results = Vec::new();
    for database in &args.databases {
        for routes in &args.routes {
            results.push(measure(args, database, *routes).await?);
        }
    }
    let ms = |value: f64| format!("{value:.1}");
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let rows: Vec<Vec<String>> = results
        .iter()
        .map(|r| {
            vec![
                r.database.clone(),
                r.routes.to_string(),
                ms(r.live.p50),
                ms(r.live.p99),
                ms(r.put.p50),
                ms(r.put.p99),
                ms(r.apply.p50),
                ms(r.apply.max),
                format!("{:.0}", r.bytes_per_change),
                ms(r.slowest_request_ms),
                ms(r.slowest_request_at_rest_ms),
            ]
        })
        .collect();
    let live = table(
        &[
            "database",
            "routes",
            "live, median ms",
            "live, p99 ms",
            "PUT, median ms",
            "PUT, p99 ms",
            "apply, median ms",
            "apply, max ms",
            "bytes a change",
            "slowest request, ms",
            "the same at rest, ms",
        ],
        &rows,
    );
    let rows: Vec<Vec<String>> = results
        .iter()
        .map(|r| {
            vec![
                r.database.clone(),
                r.routes.to_string(),
                mib(r.memory.empty),
                mib(r.memory.loaded),
                mib(r.memory.before_churn),
                mib(r.memory.after_churn),
                mib(r.control_plane_memory),
            ]
        })
        .collect();
    let churned = format!("proxy after {} more changes, MiB", args.churn);
    let memory = table(
        &[
            "database",
            "routes",
            "proxy without routes, MiB",
            "proxy with all, MiB",
            "proxy after the timed changes, MiB",
            &churned,
            "control plane, MiB",
        ],
        &rows,
    );
    publish(&args.out, "live", &results, &format!("{live}\n{memory}"))
}

async fn measure(args: &Args, database: &str, routes: usize) -> Result<Measured> {
    let postgres = if database == "postgres" { Some(Postgres::with(Durability::Machine)?) } else { None };
    let mut builder = ControlPlane::builder();
    if let Some(postgres) = &postgres {
        builder = builder.database(postgres.url());
    }
    let control_plane = builder.start().await?;
    let api = control_plane.api();
    let proxy = Proxy::of(&control_plane, "measured").await?;
    api.wait_in_sync(1).await?;
    let pid = proxy.pid().context("the proxy is down")?;
    let empty = resident(pid)?;

    load_routes(api, routes).await?;
    let loaded = resident(pid)?;
    let at_rest = quiet_load(proxy.http(), Duration::from_secs(5)).await?;

    let load = background(proxy.http()).await?;
    let mut probe = Probe::connect(proxy.http()).await?;
    let (mut live, mut put, mut apply) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..args.changes {
        let path = format!("/live/{index}");
        ensure!(probe.status(&path).await? == 404, "{path} is there already");
        let begun = Instant::now();
        let revision = api.put("routes", &format!("live-{index}"), &route(&path, "live")).await?;
        let answered = Instant::now();
        while probe.status(&path).await? != 200 {
            ensure!(answered.elapsed() < Duration::from_secs(10), "{path} does not come");
        }
        live.push(answered.elapsed());
        put.push(answered - begun);
        let shown = api
            .wait_proxy("measured", "at it", |shown| shown["revision"]["applied"].as_u64() >= Some(revision))
            .await?;
        apply.extend(shown["apply_ms"].as_f64());
        tokio::time::sleep(GAP).await;
    }
    let report = load.finish();
    ensure!(report.failed == 0, "requests failed: {:?}", report.failures);

    let before_churn = resident(pid)?;
    for index in 0..args.churn {
        let name = index % 100;
        api.put("routes", &format!("churn-{name}"), &route(&format!("/churn/{name}"), &index.to_string()))
            .await?;
    }
    api.wait_in_sync(1).await?;
    let after_churn = resident(pid)?;
    let control_plane_memory = resident(control_plane.pid().context("the control plane is down")?)?;
    drop(proxy);
    let bytes_per_change = bytes_per_change(&control_plane, 100).await?;
    Ok(Measured {
        database: database.to_owned(),
        routes,
        live: Quantiles::of(&live),
        put: Quantiles::of(&put),
        apply: Quantiles::of_ms(&apply),
        bytes_per_change,
        slowest_request_ms: report.slowest.as_secs_f64() * 1000.0,
        slowest_request_at_rest_ms: at_rest.as_secs_f64() * 1000.0,
        requests_during_changes: report.requests,
        memory: Memory { empty, loaded, before_churn, after_churn },
        control_plane_memory,
    })
}

/// The control plane sends changes together that come faster, and this measures lone ones.
const GAP: Duration = Duration::from_millis(60);

fn route(path: &str, body: &str) -> Value {
    json!({
        "match": {"hosts": ["bench.example.com"], "paths": [{"prefix": path}]},
        "respond": {"body": body},
    })
}

async fn load_routes(api: &Api, count: usize) -> Result<()> {
    let all: Vec<Value> = (0..count)
        .map(|index| {
            let mut route = route(&format!("/api/v{}/service-{index}", index % 7), "here");
            route["name"] = json!(format!("r-{index}"));
            route
        })
        .collect();
    let mut revision = 0;
    for part in all.chunks(5_000) {
        revision = api.apply(&json!({"routes": part})).await?;
    }
    api.wait_default(revision).await?;
    Ok(())
}

/// Sends requests to a route that no change touches.
async fn background(proxy: SocketAddr) -> Result<Load> {
    Load::on([proxy])
        .connections(2)
        .pace(Duration::from_millis(1))
        .request(|_| {
            let request = Request::get("/api/v0/service-0/x").header("host", "bench.example.com");
            request.body(Full::default()).expect("its parts are constants")
        })
        .start()
        .await
}

async fn quiet_load(proxy: SocketAddr, time: Duration) -> Result<Duration> {
    let load = background(proxy).await?;
    tokio::time::sleep(time).await;
    let report = load.finish();
    ensure!(report.failed == 0, "requests failed: {:?}", report.failures);
    Ok(report.slowest)
}

/// One connection that repeats a request.
struct Probe {
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Probe {
    async fn connect(proxy: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(proxy).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    async fn status(&mut self, path: &str) -> Result<u16> {
        let request = Request::get(path).header("host", "bench.example.com").body(Full::default())?;
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let status = answer.status().as_u16();
        answer.into_body().collect().await?;
        Ok(status)
    }
}

/// The bytes that the control plane sends to a proxy for one change, including the transport, counted by a relay
/// between the two.
async fn bytes_per_change(control_plane: &ControlPlane, changes: u64) -> Result<f64> {
    let api = control_plane.api();
    let counted = Arc::new(AtomicU64::new(0));
    let relay = TcpListener::bind("127.0.0.1:0").await?;
    let address = relay.local_addr()?;
    let upstream = control_plane.xds_url().trim_start_matches("http://").to_owned();
    let task = tokio::spawn(serve_relay(relay, upstream, counted.clone()));
    let builder = Proxy::builder().node_id("counted").arg(format!("--control-plane=http://{address}"));
    let proxy = builder.start().await?;
    api.wait_proxy("counted", "in sync", |shown| shown["state"] == "in_sync").await?;
    let before = counted.load(Ordering::Relaxed);
    for index in 0..changes {
        let spec = route(&format!("/counted/{}", index % 10), &index.to_string());
        let revision = api.put("routes", &format!("counted-{}", index % 10), &spec).await?;
        api.wait_default(revision).await?;
    }
    let bytes = counted.load(Ordering::Relaxed) - before;
    task.abort();
    drop(proxy);
    Ok(bytes as f64 / changes as f64)
}

async fn serve_relay(relay: TcpListener, upstream: String, counted: Arc<AtomicU64>) -> Result<()> {
    loop {
        let (mut near, _) = relay.accept().await?;
        let mut far = TcpStream::connect(&upstream).await?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let counted = counted.clone();
        tokio::spawn(async move {
            let (mut far_read, mut far_write) = far.split();
            let (mut near_read, mut near_write) = near.split();
            let down = async {
                let mut buffer = vec![0; 64 << 10];
                loop {
                    let count = tokio::io::AsyncReadExt::read(&mut far_read, &mut buffer).await?;
                    if count == 0 {
                        return std::io::Result::Ok(());
                    }
                    counted.fetch_add(count as u64, Ordering::Relaxed);
                    tokio::io::AsyncWriteExt::write_all(&mut near_write, &buffer[..count]).await?;
                }
            };
            let up = tokio::io::copy(&mut near_read, &mut far_write);
            // The end of either side ends the connection.
            tokio::select! {
                _ = down => {}
                _ = up => {}
            }
        });
    }
}
