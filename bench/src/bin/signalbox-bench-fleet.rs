//! How long a change takes to a large fleet: many simulated proxies in this one process, each with a connection and
//! a gRPC stream of its own, on one control plane on SQLite.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use prost::Message;
use serde::Serialize;
use serde_json::{Value, json};
use signalbox_bench::{Quantiles, cpu, publish, raise_open_files, resident, table};
use signalbox_proto::envoy::config::core::v3::Node;
use signalbox_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use signalbox_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use signalbox_proto::signalbox::config::v1::{Resource, resource::Kind};
use signalbox_proto::{MARKER_NAME, RESOURCE_TYPE_URL};
use signalbox_tests::control_plane::PROXY_TOKEN;
use signalbox_tests::{Api, ControlPlane, eventually};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

/// Measures a large fleet.
#[derive(Parser)]
struct Args {
    /// How many proxies are simulated.
    #[arg(long, default_value_t = 1000)]
    proxies: usize,
    /// How many routes there are.
    #[arg(long, default_value_t = 1000)]
    routes: usize,
    /// How many changes are timed.
    #[arg(long, default_value_t = 50)]
    changes: usize,
    /// Where the results go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Serialize)]
struct Measured {
    proxies: usize,
    routes: usize,
    /// Until all proxies had everything, s.
    connected_s: f64,
    /// From the PUT's begin to each proxy's ACK, over all changes and proxies, ms: the PUT itself is part of it.
    acked: Quantiles,
    /// From the PUT's begin to the last proxy's ACK, ms.
    acked_by_all: Quantiles,
    /// From the commit to the ACKs, as the control plane's rollouts say it, ms: the worst of all changes.
    propagation_p99_ms: f64,
    control_plane_cpu_ms_per_change: f64,
    control_plane_memory: u64,
    control_plane_memory_without_proxies: u64,
}

/// A proxy has acknowledged this revision.
struct Acked {
    revision: u64,
    at: Instant,
}

fn main() -> Result<()> {
    let args = Args::parse();
    raise_open_files()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(run(&args))
}

async fn run(args: &Args) -> Result<()> {
    let measured = measure(args).await?;
    let ms = |value: f64| format!("{value:.0}");
    let mib = |bytes: u64| format!("{:.0}", bytes as f64 / f64::from(1 << 20));
    let row = vec![
        measured.proxies.to_string(),
        measured.routes.to_string(),
        format!("{:.1}", measured.connected_s),
        ms(measured.acked.p50),
        ms(measured.acked.p99),
        ms(measured.acked.max),
        ms(measured.acked_by_all.p50),
        ms(measured.propagation_p99_ms),
        ms(measured.control_plane_cpu_ms_per_change),
        mib(measured.control_plane_memory),
        mib(measured.control_plane_memory_without_proxies),
    ];
    let text = table(
        &[
            "proxies",
            "routes",
            "all connected, s",
            "ACK, median ms",
            "ACK, p99 ms",
            "ACK, max ms",
            "ACK of all, median ms",
            "commit to ACK, worst p99 ms",
            "control plane CPU a change, ms",
            "control plane, MiB",
            "without proxies, MiB",
        ],
        &[row],
    );
    publish(&args.out, "fleet", &measured, &text)
}

async fn measure(args: &Args) -> Result<Measured> {
    let control_plane = ControlPlane::builder().start().await?;
    let api = control_plane.api();
    let routes: Vec<Value> = (0..args.routes).map(|index| route(index, "first")).collect();
    let mut head = api.apply(&json!({"routes": routes})).await?;
    let pid = control_plane.pid().context("the control plane is down")?;
    let control_plane_memory_without_proxies = resident(pid)?;

    let (acked, mut acks) = mpsc::channel(64 * 1024);
    let begun = Instant::now();
    let mut proxies = tokio::task::JoinSet::new();
    for index in 0..args.proxies {
        proxies.spawn(simulate(index, control_plane.xds_url(), acked.clone()));
    }
    collect(&mut acks, head, args.proxies, &mut proxies).await?;
    let connected_s = begun.elapsed().as_secs_f64();
    settled(api, args.proxies).await?;

    let (mut each, mut all) = (Vec::new(), Vec::new());
    let cpu_before = cpu(pid)?;
    for change in 0..args.changes {
        let begun = Instant::now();
        let spec = route(change % args.routes, &format!("change {change}"));
        let name = spec["name"].as_str().context("it has a name")?;
        head = api.put("routes", name, &spec).await?;
        let mut times: Vec<Duration> = collect(&mut acks, head, args.proxies, &mut proxies)
            .await?
            .into_iter()
            .map(|at| at - begun)
            .collect();
        times.sort_unstable();
        all.extend(times.last().copied());
        each.append(&mut times);
    }
    let cpu_used = cpu(pid)? - cpu_before;
    let propagation_p99_ms = worst_p99(api, args.changes).await?;
    Ok(Measured {
        proxies: args.proxies,
        routes: args.routes,
        connected_s,
        acked: Quantiles::of(&each),
        acked_by_all: Quantiles::of(&all),
        propagation_p99_ms,
        control_plane_cpu_ms_per_change: cpu_used.as_secs_f64() * 1000.0 / args.changes as f64,
        control_plane_memory: resident(pid)?,
        control_plane_memory_without_proxies,
    })
}

fn route(index: usize, body: &str) -> Value {
    json!({
        "name": format!("r-{index}"),
        "match": {"hosts": ["bench.example.com"], "paths": [{"prefix": format!("/service-{index}")}]},
        "respond": {"body": body},
    })
}

/// When each proxy acknowledged `revision`.
async fn collect(
    acks: &mut mpsc::Receiver<Acked>,
    revision: u64,
    proxies: usize,
    tasks: &mut tokio::task::JoinSet<Result<()>>,
) -> Result<Vec<Instant>> {
    let mut times = Vec::with_capacity(proxies);
    let deadline = tokio::time::sleep(Duration::from_secs(120));
    tokio::pin!(deadline);
    while times.len() < proxies {
        tokio::select! {
            acked = acks.recv() => match acked {
                Some(acked) if acked.revision == revision => times.push(acked.at),
                Some(_) => {}
                None => bail!("all proxies are gone"),
            },
            Some(ended) = tasks.join_next() => bail!("a proxy has ended: {ended:?}"),
            () = &mut deadline => bail!("only {} of {proxies} proxies acknowledged revision {revision}", times.len()),
        }
    }
    Ok(times)
}

async fn settled(api: &Api, proxies: usize) -> Result<()> {
    let all = eventually(Duration::from_secs(60), async || {
        let connected = api.metrics().await.map(|metrics| metrics.sum("signalbox_connected_proxies", &[]));
        connected.is_ok_and(|connected| connected as usize == proxies)
    });
    ensure!(all.await, "the control plane does not count {proxies} proxies");
    Ok(())
}

/// Of the last rollouts.
async fn worst_p99(api: &Api, changes: usize) -> Result<f64> {
    let mut worst: f64 = 0.0;
    let done = eventually(Duration::from_secs(30), async || {
        let Ok(rollouts) = api.get(&format!("/rollouts?limit={}", changes.min(100))).await else {
            return false;
        };
        let list = rollouts["items"].as_array().cloned().unwrap_or_default();
        let p99 = |rollout: &Value| rollout["propagation_ms"]["p99"].as_f64();
        worst = list.iter().filter_map(p99).fold(0.0, f64::max);
        !list.is_empty() && list.iter().all(|rollout| rollout["state"] != "running")
    });
    ensure!(done.await, "the rollouts do not end");
    Ok(worst)
}

/// One proxy: takes what comes, and acknowledges every revision when its marker is there.
async fn simulate(index: usize, control_plane: String, acked: mpsc::Sender<Acked>) -> Result<()> {
    let channel = Endpoint::from_shared(control_plane)?.tcp_nodelay(true).connect().await?;
    let token: tonic::metadata::MetadataValue<_> = format!("Bearer {PROXY_TOKEN}").parse()?;
    let mut client =
        AggregatedDiscoveryServiceClient::with_interceptor(channel, move |mut request: tonic::Request<()>| {
            request.metadata_mut().insert("authorization", token.clone());
            Ok(request)
        })
        .max_decoding_message_size(16 << 20);
    let (requests, outbound) = mpsc::channel(4);
    let type_url: Arc<str> = RESOURCE_TYPE_URL.into();
    let node = Node {
        id: format!("simulated-{index}"),
        cluster: "default".to_owned(),
        user_agent_name: "signalbox-proxy".to_owned(),
        ..Node::default()
    };
    let first = DeltaDiscoveryRequest {
        node: Some(node),
        type_url: type_url.to_string(),
        resource_names_subscribe: vec!["*".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(first).await?;
    let mut responses = client.delta_aggregated_resources(ReceiverStream::new(outbound)).await?.into_inner();
    while let Some(response) = responses.message().await? {
        let revision = marker(&response)?;
        let ack = DeltaDiscoveryRequest {
            type_url: type_url.to_string(),
            response_nonce: response.nonce,
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(ack).await?;
        if let Some(revision) = revision {
            acked.send(Acked { revision, at: Instant::now() }).await?;
        }
    }
    bail!("the control plane has closed the stream")
}

/// The number of the revision that a response completes.
fn marker(response: &DeltaDiscoveryResponse) -> Result<Option<u64>> {
    let Some(found) = response.resources.iter().find(|resource| resource.name == MARKER_NAME) else {
        return Ok(None);
    };
    let any = found.resource.as_ref().context("a marker without content")?;
    match Resource::decode(&*any.value)?.kind {
        Some(Kind::Revision(revision)) => Ok(Some(revision.number)),
        other => bail!("not a marker: {other:?}"),
    }
}
