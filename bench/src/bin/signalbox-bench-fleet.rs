//! How a control plane serves a large fleet: many simulated proxies in this one process, each with a connection and streams of
//! its own, on one control plane on SQLite, or on several that share a PostgreSQL database.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde::Serialize;
use serde_json::{Value, json};
use signalbox_bench::simulated::{self, Acked, Behaviour};
use signalbox_bench::{Quantiles, cpu, publish, raise_open_files, resident, table};
use signalbox_tests::control_plane::PROXY_TOKEN;
use signalbox_tests::postgres::Durability;
use signalbox_tests::{Api, ControlPlane, Postgres, eventually};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

/// Measures large fleets.
#[derive(Parser)]
struct Args {
    /// The sizes to measure: PROXIESxROUTES.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1000x1000,1000x10000,1000x100000,5000x1000,5000x10000,10000x1000,10000x10000"
    )]
    sizes: Vec<Size>,
    /// The number of timed changes, one at a time.
    #[arg(long, default_value_t = 30)]
    changes: usize,
    /// The rate of changes that do not wait for anyone, each second.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    /// For how long changes come at that rate, seconds.
    #[arg(long, default_value_t = 60)]
    rate_seconds: u64,
    /// How many control planes there are; from two on they share a PostgreSQL database, and the changes are written at
    /// each in turn.
    #[arg(long, default_value_t = 1)]
    replicas: usize,
    /// The simulated proxies do not offer zstd.
    #[arg(long)]
    uncompressed: bool,
    /// They report each revision that they serve at once, beside the reports every two seconds.
    #[arg(long)]
    report_each: bool,
    /// They open the stream of counts, too.
    #[arg(long)]
    counts: bool,
    /// They open the stream of traffic, too, and report the traffic of so many routes as often as the control plane asks for it.
    #[arg(long, default_value_t = 0)]
    series: usize,
    /// The name of the result.
    #[arg(long, default_value = "fleet")]
    name: String,
    /// The directory of the results.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

/// How large a fleet is.
#[derive(Debug, Clone, Copy, Serialize)]
struct Size {
    proxies: usize,
    routes: usize,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (proxies, routes) = text.split_once('x').ok_or("it is PROXIESxROUTES")?;
        let number = |text: &str| text.parse().map_err(|error| format!("{text}: {error}"));
        Ok(Self { proxies: number(proxies)?, routes: number(routes)? })
    }
}

#[derive(Serialize)]
struct Measured {
    size: Size,
    /// The time from the first connection until all proxies had acknowledged everything, in seconds.
    all_serve_s: f64,
    /// The CPU time of the control planes for that, in seconds.
    all_serve_cpu_s: f64,
    /// How many simulated proxies lost a connection or a stream, from the first to the last moment.
    lost: usize,
    /// The share of a core that the control planes use while nothing changes.
    idle_cpu: f64,
    /// The memory of the control planes for each proxy while nothing changes, beyond what they had before the first connected.
    bytes_per_proxy: f64,
    memory_without_proxies: u64,
    /// The time from the start of the PUT to each proxy's ACK, over all changes and proxies, in ms.
    acked: Quantiles,
    /// The CPU time of the control planes for a change and a proxy, without what they use while nothing changes, in µs.
    cpu_us_per_change_and_proxy: f64,
    /// Changes that come all the time.
    sustained: Sustained,
}

#[derive(Serialize)]
struct Sustained {
    /// The number of changes that were written each second.
    rate: f64,
    /// The time from the start of a PUT until a proxy acknowledged it, for the oldest change of each ACK, in ms.
    lag: Quantiles,
    /// The number of ACKs a second, of all proxies.
    acks: f64,
    /// The share of a core that the control planes used.
    cpu: f64,
    /// The time from the last PUT until all proxies had acknowledged it, in ms.
    caught_up_ms: f64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    raise_open_files()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut all = Vec::new();
    for size in &args.sizes {
        all.push(runtime.block_on(measure(&args, *size))?);
        // After each, so that an interrupted run leaves a result.
        publish(&args.out, &args.name, &all, &as_table(&all))?;
    }
    Ok(())
}

fn as_table(all: &[Measured]) -> String {
    let heading = [
        "proxies",
        "routes",
        "all serve, s",
        "CPU of that, s",
        "lost",
        "ACK, median ms",
        "ACK, p99 ms",
        "ACK, max ms",
        "CPU a change and proxy, µs",
        "idle, % of a core",
        "KiB a proxy",
        "changes/s",
        "lag, median ms",
        "lag, p99 ms",
        "lag, max ms",
        "ACKs/s",
        "% of a core",
    ];
    let row = |it: &Measured| {
        let Sustained { rate, lag, acks, cpu, .. } = &it.sustained;
        vec![
            it.size.proxies.to_string(),
            it.size.routes.to_string(),
            format!("{:.1}", it.all_serve_s),
            format!("{:.1}", it.all_serve_cpu_s),
            it.lost.to_string(),
            format!("{:.0}", it.acked.p50),
            format!("{:.0}", it.acked.p99),
            format!("{:.0}", it.acked.max),
            format!("{:.1}", it.cpu_us_per_change_and_proxy),
            format!("{:.0}", it.idle_cpu * 100.0),
            format!("{:.1}", it.bytes_per_proxy / 1024.0),
            format!("{rate:.0}"),
            format!("{:.0}", lag.p50),
            format!("{:.0}", lag.p99),
            format!("{:.0}", lag.max),
            format!("{acks:.0}"),
            format!("{:.0}", cpu * 100.0),
        ]
    };
    table(&heading, &all.iter().map(row).collect::<Vec<_>>())
}

/// The control planes and their simulated proxies.
struct Fleet {
    size: Size,
    // Kept to the end.
    _postgres: Option<Postgres>,
    control_planes: Vec<ControlPlane>,
    proxies: JoinSet<Result<()>>,
    acks: UnboundedReceiver<Acked>,
    lost: usize,
    head: u64,
}

async fn measure(args: &Args, size: Size) -> Result<Measured> {
    let mut fleet = Fleet::start(args, size).await?;
    let memory_without_proxies = fleet.memory()?;
    let cpu_before = fleet.cpu()?;
    let begun = Instant::now();
    fleet.connect(args)?;
    fleet.until_all_acked(|_| {}).await?;
    let all_serve_s = begun.elapsed().as_secs_f64();
    let all_serve_cpu_s = (fleet.cpu()? - cpu_before).as_secs_f64();
    fleet.settled().await?;

    tokio::time::sleep(QUIET).await;
    let (idle_from, idle_cpu_from) = (Instant::now(), fleet.cpu()?);
    tokio::time::sleep(QUIET).await;
    let idle_cpu = (fleet.cpu()? - idle_cpu_from).as_secs_f64() / idle_from.elapsed().as_secs_f64();
    let memory = fleet.memory()?;

    let mut acked = Vec::new();
    let (changes_from, changes_cpu_from) = (Instant::now(), fleet.cpu()?);
    for change in 0..args.changes {
        let begun = Instant::now();
        fleet.put(change).await?;
        fleet.until_all_acked(|ack| acked.push(ack.at - begun)).await?;
        // The next one is a lone change, too.
        tokio::time::sleep(GAP).await;
    }
    let cpu = (fleet.cpu()? - changes_cpu_from).as_secs_f64();
    let cpu = cpu - idle_cpu * changes_from.elapsed().as_secs_f64();
    let sustained = fleet.sustain(args).await?;
    let lost = fleet.lost();
    Ok(Measured {
        size,
        all_serve_s,
        all_serve_cpu_s,
        lost,
        idle_cpu,
        bytes_per_proxy: memory.saturating_sub(memory_without_proxies) as f64 / size.proxies as f64,
        memory_without_proxies,
        acked: Quantiles::of(&acked),
        cpu_us_per_change_and_proxy: cpu * 1e6 / args.changes as f64 / size.proxies as f64,
        sustained,
    })
}

impl Fleet {
    async fn start(args: &Args, size: Size) -> Result<Self> {
        let postgres = if args.replicas > 1 { Some(Postgres::with(Durability::Machine)?) } else { None };
        let mut control_planes = Vec::new();
        for _ in 0..args.replicas.max(1) {
            let mut builder = ControlPlane::builder();
            if let Some(postgres) = &postgres {
                builder = builder.database(postgres.url());
            }
            control_planes.push(builder.start().await?);
        }
        let api = control_planes.first().context("there is one")?.api();
        let routes: Vec<Value> = (0..size.routes).map(|index| route(index, "first")).collect();
        let mut head = 0;
        for part in routes.chunks(5_000) {
            head = api.apply(&json!({"routes": part})).await?;
        }
        let (_, acks) = unbounded_channel();
        Ok(Self { size, _postgres: postgres, control_planes, proxies: JoinSet::new(), acks, lost: 0, head })
    }

    /// Starts all proxies at once.
    fn connect(&mut self, args: &Args) -> Result<()> {
        let (acked, acks) = unbounded_channel();
        self.acks = acks;
        let addresses = self.control_planes.iter().map(|it| {
            let url = it.xds_url();
            url.trim_start_matches("http://").parse().with_context(|| url.clone())
        });
        let addresses: Vec<_> = addresses.collect::<Result<_>>()?;
        for (number, address) in (0..self.size.proxies).zip(addresses.iter().cycle()) {
            let behaviour = Behaviour {
                address: *address,
                token: PROXY_TOKEN.into(),
                zstd: !args.uncompressed,
                report_each: args.report_each,
                counts: args.counts,
                series: args.series,
            };
            self.proxies.spawn(simulated::run(number, behaviour, acked.clone()));
        }
        Ok(())
    }

    /// Waits until all proxies have the last revision; `on_ack` is called for each that gets it.
    async fn until_all_acked(&mut self, mut on_ack: impl FnMut(&Acked)) -> Result<()> {
        let deadline = tokio::time::sleep(DEADLINE);
        tokio::pin!(deadline);
        let mut count = 0;
        while count < self.size.proxies - self.lost {
            tokio::select! {
                ack = self.acks.recv() => {
                    let ack = ack.context("all proxies are gone")?;
                    if ack.revision == self.head {
                        count += 1;
                        on_ack(&ack);
                    }
                }
                Some(ended) = self.proxies.join_next() => self.on_lost(&ended),
                () = &mut deadline => bail!("{count} of {} proxies have revision {}", self.size.proxies, self.head),
            }
        }
        Ok(())
    }

    #[allow(clippy::print_stderr)]
    fn on_lost(&mut self, ended: &Result<Result<()>, tokio::task::JoinError>) {
        self.lost += 1;
        eprintln!("a proxy has ended: {ended:?}");
    }

    /// How many proxies have ended.
    fn lost(&mut self) -> usize {
        while let Some(ended) = self.proxies.try_join_next() {
            self.on_lost(&ended);
        }
        self.lost
    }

    /// Waits until the control planes count all proxies.
    async fn settled(&self) -> Result<()> {
        let all = eventually(Duration::from_secs(60), async || {
            let mut connected = 0.0;
            for control_plane in &self.control_planes {
                let metrics = control_plane.api().metrics().await;
                connected += metrics.map_or(0.0, |metrics| metrics.sum("signalbox_connected_proxies", &[]));
            }
            connected as usize == self.size.proxies - self.lost
        });
        ensure!(all.await, "the control planes do not count {} proxies", self.size.proxies);
        Ok(())
    }

    async fn put(&mut self, change: usize) -> Result<()> {
        let api = self.api(change)?;
        self.head = put(api, self.size, change).await?;
        Ok(())
    }

    fn api(&self, change: usize) -> Result<&Api> {
        let control_plane = self.control_planes.get(change % self.control_planes.len());
        Ok(control_plane.context("there is one")?.api())
    }

    /// Writes changes at a rate, whether or not the proxies have those before.
    async fn sustain(&mut self, args: &Args) -> Result<Sustained> {
        if args.rate_seconds == 0 {
            let lag = Quantiles::of_ms(&[]);
            return Ok(Sustained { rate: 0.0, lag, acks: 0.0, cpu: 0.0, caught_up_ms: 0.0 });
        }
        let first = self.head + 1;
        let (cpu_before, from) = (self.cpu()?, Instant::now());
        let length = Duration::from_secs(args.rate_seconds);
        let mut writing = tokio::spawn(write(self.api(0)?.clone(), self.size, args.rate, length));
        let mut acks = Vec::new();
        let begun = loop {
            tokio::select! {
                begun = &mut writing => break begun??,
                ack = self.acks.recv() => acks.push(ack.context("all proxies are gone")?),
                Some(ended) = self.proxies.join_next() => self.on_lost(&ended),
            }
        };
        let wrote_for = from.elapsed().as_secs_f64();
        let cpu = (self.cpu()? - cpu_before).as_secs_f64() / wrote_for;
        let acks_while_written = acks.len() as f64 / wrote_for;
        let last = Instant::now();
        self.head = begun.keys().last().copied().unwrap_or(self.head);
        let mut at_head = acks.iter().filter(|ack| ack.revision == self.head).count();
        while at_head < self.size.proxies - self.lost() {
            let ack = tokio::time::timeout_at(last + DEADLINE, self.acks.recv()).await;
            let ack = ack.with_context(|| format!("only {at_head} proxies have revision {}", self.head))?;
            let ack = ack.context("all proxies are gone")?;
            at_head += usize::from(ack.revision == self.head);
            acks.push(ack);
        }
        let caught_up_ms = last.elapsed().as_secs_f64() * 1000.0;
        let lag = |ack: &Acked| {
            let oldest = begun.get(&(ack.before + 1).max(first))?;
            Some(ack.at.saturating_duration_since(*oldest).as_secs_f64() * 1000.0)
        };
        let lag = Quantiles::of_ms(&acks.iter().filter_map(lag).collect::<Vec<_>>());
        Ok(Sustained {
            rate: begun.len() as f64 / wrote_for,
            lag,
            acks: acks_while_written,
            cpu,
            caught_up_ms,
        })
    }

    fn cpu(&self) -> Result<Duration> {
        self.control_planes.iter().map(|it| cpu(it.pid().context("a control plane is down")?)).sum()
    }

    fn memory(&self) -> Result<u64> {
        self.control_planes.iter().map(|it| resident(it.pid().context("a control plane is down")?)).sum()
    }
}

/// Writes changes at a rate, several at a time if one takes longer. When the PUT of each revision began.
async fn write(api: Api, size: Size, rate: u32, length: Duration) -> Result<BTreeMap<u64, Instant>> {
    let mut interval = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
    interval.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let end = Instant::now() + length;
    let mut begun = BTreeMap::new();
    let mut writing = JoinSet::new();
    let mut change = 0;
    while Instant::now() < end {
        interval.tick().await;
        while writing.len() >= WRITERS
            && let Some(written) = writing.join_next().await
        {
            begun.extend(written?);
        }
        while let Some(written) = writing.try_join_next() {
            begun.extend(written?);
        }
        let api = api.clone();
        writing.spawn(async move {
            let at = Instant::now();
            // An overloaded control plane refuses some, and they do not count.
            put(&api, size, change).await.ok().map(|revision| (revision, at))
        });
        change += 1;
    }
    while let Some(written) = writing.join_next().await {
        begun.extend(written?);
    }
    Ok(begun)
}

async fn put(api: &Api, size: Size, change: usize) -> Result<u64> {
    // Never what it is already.
    let spec = route(change % size.routes, &format!("{change} {}", fastrand::u64(..)));
    let name = spec["name"].as_str().context("it has a name")?;
    api.put("routes", name, &spec).await
}

fn route(index: usize, body: &str) -> Value {
    json!({
        "name": format!("r-{index}"),
        "match": {"hosts": ["bench.example.com"], "paths": [{"prefix": format!("/service-{index}")}]},
        "respond": {"body": body},
    })
}

/// Nothing may take longer.
const DEADLINE: Duration = Duration::from_secs(300);

/// Rest before and during what is measured of an idle fleet.
const QUIET: Duration = Duration::from_secs(6);

/// Changes that are written at a time.
const WRITERS: usize = 16;

/// Rest after each lone change.
const GAP: Duration = Duration::from_millis(200);
