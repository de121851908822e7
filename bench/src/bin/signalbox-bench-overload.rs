//! The throughput of a proxy under overload.
//!
//! First, its capacity is measured, with 64 clients that repeat requests without a pause. Then requests are sent at a
//! fixed rate of one, two and three times the capacity, independently of responses, as many users would send them:
//! over a free connection, else over a new one. A response later than two seconds counts as none, because the user has
//! left.
//!
//! The proxy has core 0; load and backend are in this process, on core 1. So that one core can overload another, each
//! request costs the proxy far more than its sender: a JSON body that many plugins change.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::Serialize;
use signalbox_bench::{Quantiles, cpu, publish, raise_open_files, resident, table};
use signalbox_tests::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Measures a proxy under overload.
#[derive(Parser)]
struct Args {
    /// The proxy's program; default: the one that was built beside this program.
    #[arg(long)]
    proxy: Option<PathBuf>,
    /// How long each rate is kept.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The number of plugins that change each request's body.
    #[arg(long, default_value_t = 12)]
    plugins: u32,
    /// The directory of the results.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Serialize)]
struct Measured {
    capacity_per_second: f64,
    rates: Vec<Rate>,
}

#[derive(Serialize)]
struct Rate {
    /// The rate as a multiple of the capacity.
    factor: f64,
    offered_per_second: f64,
    answered_per_second: f64,
    /// The time from when a request was due to its response, in ms.
    latency: Quantiles,
    refused_per_second: f64,
    /// Requests without a connection, or without a response in time.
    given_up_per_second: f64,
    most_connections: u32,
    proxy_memory: u64,
}

/// The results of requests.
#[derive(Default)]
struct Seen {
    answered: RefCell<Vec<Duration>>,
    refused: Cell<u64>,
    given_up: Cell<u64>,
    idle: RefCell<Vec<TcpStream>>,
    open: Cell<u32>,
    most_open: Cell<u32>,
}

/// The time after which a user has left.
const PATIENCE: Duration = Duration::from_secs(2);

const CLIENTS: usize = 64;

/// The size of a request's body, in bytes.
const BODY: usize = 24 << 10;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 100\r\n\r\n\
0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";

fn main() -> Result<()> {
    let args = Args::parse();
    raise_open_files()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, measure(args))
}

async fn measure(args: Args) -> Result<()> {
    let backend = backend().await?;
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("proxy.yaml");
    let names: Vec<_> = (0..args.plugins).map(|number| format!("p{number}")).collect();
    let plugin = |name| {
        format!("{{name: {name}, type: request-transform, config: {{append: {{body: {{seen: {name}}}}}}}}}")
    };
    let plugins: Vec<_> = names.iter().map(plugin).collect();
    std::fs::write(
        &config,
        format!(
            "listeners: [{{name: http, address: '127.0.0.1:8080'}}]
upstreams: [{{name: u, targets: [{{address: '{backend}'}}]}}]
routes: [{{name: r, match: {{paths: [{{prefix: /a}}]}}, plugins: [{}], forward: {{upstreams: [{{name: u}}]}}}}]
plugins: [{}]
",
            names.join(", "),
            plugins.join(", "),
        ),
    )?;
    let mut builder = Proxy::builder().config(&config);
    if let Some(program) = &args.proxy {
        builder = builder.program(program.clone());
    }
    let proxy = builder.start().await?;
    let pid = proxy.pid().context("the proxy has ended")?;
    pin(pid, 0)?;
    pin(std::process::id(), 1)?;
    let time = Duration::from_secs(args.seconds);
    let request: Rc<[u8]> = request().into();
    let before = cpu(std::process::id())?;
    let capacity = capacity(proxy.http(), &request, time).await? / time.as_secs_f64();
    let own = (cpu(std::process::id())? - before).as_secs_f64() / time.as_secs_f64();
    ensure!(own < 0.5, "load and backend take {own:.2} of their core: what is found out would be about them");
    let mut rates = Vec::new();
    for factor in [0.5, 1.0, 2.0, 3.0] {
        rates.push(offer(proxy.http(), &request, factor, capacity * factor, time, pid).await?);
    }
    let result = Measured { capacity_per_second: capacity, rates };
    let rows: Vec<Vec<String>> = result
        .rates
        .iter()
        .map(|rate| {
            vec![
                format!("{}×", rate.factor),
                format!("{:.0}", rate.offered_per_second),
                format!("{:.0}", rate.answered_per_second),
                format!("{:.1}", rate.latency.p50),
                format!("{:.1}", rate.latency.p99),
                format!("{:.0}", rate.refused_per_second),
                format!("{:.0}", rate.given_up_per_second),
                rate.most_connections.to_string(),
                format!("{:.0}", rate.proxy_memory as f64 / f64::from(1 << 20)),
            ]
        })
        .collect();
    let heading = [
        "rate",
        "offered/s",
        "answered/s",
        "p50 ms",
        "p99 ms",
        "refused/s",
        "given up/s",
        "connections",
        "MiB",
    ];
    publish(&args.out, "overload", &result, &table(&heading, &rows))
}

/// Pins a process to one core.
fn pin(pid: u32, core: u32) -> Result<()> {
    let status = Command::new("taskset")
        .args(["-a", "-p", "-c", &core.to_string(), &pid.to_string()])
        .stdout(Stdio::null())
        .status()
        .context("cannot run taskset")?;
    ensure!(status.success(), "taskset: {status}");
    Ok(())
}

/// A request whose body takes the proxy's plugins a while.
fn request() -> Vec<u8> {
    let members: Vec<_> = (0..BODY / 24).map(|number| format!("\"m{number:06}\":{number:010}.5")).collect();
    let body = format!("{{{}}}", members.join(",")).replace(":0", ":1");
    let head = "POST /a/b HTTP/1.1\r\nhost: test.example\r\ncontent-type: application/json\r\n";
    format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn backend() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // This fails only when the connection is gone.
            let _ = stream.set_nodelay(true);
            tokio::task::spawn_local(async move {
                let mut read = Vec::with_capacity(64 << 10);
                loop {
                    read.clear();
                    while whole(&read).is_none_or(|length| read.len() < length) {
                        match stream.read_buf(&mut read).await {
                            Ok(1..) => {}
                            _ => return,
                        }
                    }
                    if stream.write_all(ANSWER).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}

/// The length of a message, head and body, once its head is complete.
fn whole(message: &[u8]) -> Option<usize> {
    let head = message.windows(4).position(|window| window == b"\r\n\r\n")?;
    let text = std::str::from_utf8(message.get(..head)?).ok()?;
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "))?;
    Some(head + 4 + length.parse::<usize>().ok()?)
}

/// The number of requests that are answered in `time` under constant load.
async fn capacity(address: SocketAddr, request: &Rc<[u8]>, time: Duration) -> Result<f64> {
    let end = Instant::now() + time;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let request = Rc::clone(request);
        clients.spawn_local(async move {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let mut count = 0u32;
            while Instant::now() < end {
                ask(&mut stream, &request).await?;
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut total = 0;
    while let Some(client) = clients.join_next().await {
        total += client??;
    }
    Ok(f64::from(total))
}

/// Sends `rate` requests per second for `time`.
async fn offer(
    address: SocketAddr,
    request: &Rc<[u8]>,
    factor: f64,
    rate: f64,
    time: Duration,
    pid: u32,
) -> Result<Rate> {
    let seen = Rc::<Seen>::default();
    let began = Instant::now();
    let mut sent = 0u64;
    let mut clients = tokio::task::JoinSet::new();
    while began.elapsed() < time {
        let due = (began.elapsed().as_secs_f64() * rate) as u64;
        while sent < due {
            let at = began + Duration::from_secs_f64(sent as f64 / rate);
            clients.spawn_local(one(address, Rc::clone(request), Rc::clone(&seen), at));
            sent += 1;
        }
        while clients.try_join_next().is_some() {}
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let memory = resident(pid)?;
    while clients.join_next().await.is_some() {}
    let seconds = time.as_secs_f64();
    let answered = seen.answered.borrow();
    Ok(Rate {
        factor,
        offered_per_second: sent as f64 / seconds,
        answered_per_second: answered.len() as f64 / seconds,
        latency: Quantiles::of(&answered),
        refused_per_second: seen.refused.get() as f64 / seconds,
        given_up_per_second: seen.given_up.get() as f64 / seconds,
        most_connections: seen.most_open.get(),
        proxy_memory: memory,
    })
}

/// One user's request, due at `at`.
async fn one(address: SocketAddr, request: Rc<[u8]>, seen: Rc<Seen>, at: Instant) {
    let idle = seen.idle.borrow_mut().pop();
    let exchange = async {
        let mut stream = match idle {
            Some(stream) => stream,
            None => {
                seen.open.set(seen.open.get() + 1);
                seen.most_open.set(seen.most_open.get().max(seen.open.get()));
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                stream
            }
        };
        let (status, keep) = ask(&mut stream, &request).await?;
        anyhow::Ok((status, keep.then_some(stream)))
    };
    let kept = match tokio::time::timeout_at((at + PATIENCE).into(), exchange).await {
        Ok(Ok((status, stream))) => {
            match status {
                _ if at.elapsed() > PATIENCE => seen.given_up.set(seen.given_up.get() + 1),
                200 => seen.answered.borrow_mut().push(at.elapsed()),
                _ => seen.refused.set(seen.refused.get() + 1),
            }
            stream
        }
        Ok(Err(_)) | Err(_) => {
            seen.given_up.set(seen.given_up.get() + 1);
            None
        }
    };
    match kept {
        Some(stream) => seen.idle.borrow_mut().push(stream),
        None => seen.open.set(seen.open.get().saturating_sub(1)),
    }
}

/// Sends a request; returns its status, and whether the connection stays open.
async fn ask(stream: &mut TcpStream, request: &[u8]) -> Result<(u16, bool)> {
    stream.write_all(request).await?;
    let mut answer = Vec::with_capacity(1024);
    loop {
        ensure!(stream.read_buf(&mut answer).await? > 0, "it was closed");
        let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(answer.get(..head).unwrap_or_default()).to_ascii_lowercase();
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let length: usize = field("content-length:").context("no length")?.parse()?;
        if answer.len() >= head + 4 + length {
            let status = text.get(9..12).context("no status")?.parse()?;
            return Ok((status, field("connection:") != Some("close")));
        }
    }
}
