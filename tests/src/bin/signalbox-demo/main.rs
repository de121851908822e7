//! The demo that `make run` starts: a control plane on SQLite, three proxies, two backends and a trickle of traffic, all with
//! fixed ports on 127.0.0.1. Everything ends with it; what it stored stays in `.run/` until the next start. With the argument
//! `rollout` it also shows how a change that hurts is taken back.

#![allow(clippy::print_stdout)]

mod rollout;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::{HeaderValue, Method};
use signalbox_tests::backend::{Backend, Behaviour};
use signalbox_tests::control_plane::Api;
use signalbox_tests::process::{Daemon, program};

use crate::rollout::Seen;

const DIR: &str = ".run";
const ADMIN_TOKEN: &str = "demo-admin-token";
const PROXY_TOKEN: &str = "demo-proxy-token";
const ADMIN: &str = "127.0.0.1:9080";
const XDS: &str = "127.0.0.1:9081";
const PROXIES: [&str; 3] = ["proxy-1", "proxy-2", "proxy-3"];
const CONFIGURATION: &str = include_str!("../../../../examples/demo.yaml");
const START_DEADLINE: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let shows_rollout = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("rollout") => true,
        Some(argument) => bail!(
            "{argument:?} is not known: the only argument is `rollout`, which shows how a change that hurts is taken back. \
             Without it this starts what `make run` starts. Ctrl-C ends everything"
        ),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(run(shows_rollout))
}

async fn run(shows_rollout: bool) -> Result<()> {
    let _ = std::fs::remove_dir_all(DIR);
    std::fs::create_dir_all(DIR)?;
    ensure_free(&[ADMIN.parse()?, XDS.parse()?])?;

    let mut users = Vec::new();
    for (name, port, behaviour) in
        [("backend-1", 8091, Behaviour::Echo), ("backend-2", 8092, Behaviour::Slow(Duration::from_millis(3)))]
    {
        users.push(Backend::at(name, behaviour, SocketAddr::from(([127, 0, 0, 1], port)))?);
    }

    let dir = Path::new(DIR);
    let mut control_plane = Command::new(program("signalbox-control-plane")?);
    control_plane.args(["--admin-address", ADMIN, "--xds-address", XDS]);
    control_plane.args(["--admin-token", ADMIN_TOKEN, "--proxy-token", PROXY_TOKEN]);
    control_plane.arg("--database-url").arg(format!("sqlite://{DIR}/signalbox.db"));
    let mut processes =
        vec![Daemon::spawn("the control plane", &control_plane, &dir.join("control-plane.log"))?];

    let server = format!("http://{ADMIN}");
    let api = Api::new(server.clone(), ADMIN_TOKEN)?;
    ready(&format!("{server}/readyz"), &mut processes).await?;
    let request =
        api.request(Method::POST, "/apply").header("content-type", "application/yaml").body(CONFIGURATION);
    let applied = signalbox_tests::control_plane::send(request.header("x-signalbox-message", "the demo"))
        .await?
        .success()?;
    let revision = applied.revision()?;

    for (index, id) in PROXIES.iter().enumerate() {
        let mut proxy = Command::new(program("signalbox-proxy")?);
        proxy.args(["--control-plane", &format!("http://{XDS}"), "--token", PROXY_TOKEN]);
        proxy.args([
            "--node-id",
            id,
            "--workers",
            "1",
            "--label",
            &format!("zone={}", ["a", "b", "c"][index]),
        ]);
        proxy.args([
            "--data-dir",
            &format!("{DIR}/{id}"),
            "--admin-address",
            &format!("127.0.0.1:918{}", index + 1),
        ]);
        proxy.args(["--listener", &format!("http=127.0.0.1:808{}", index + 1), "--drain-timeout", "2s"]);
        processes.push(Daemon::spawn(id, &proxy, &dir.join(format!("{id}.log")))?);
    }
    for index in 1..=PROXIES.len() {
        ready(&format!("http://127.0.0.1:918{index}/readyz"), &mut processes).await?;
    }

    println!();
    println!("  Admin UI      http://{ADMIN}          log in with the token  {ADMIN_TOKEN}");
    println!("  Admin API     http://{ADMIN}/api/v1");
    println!("  Proxies       http://127.0.0.1:8081  :8082  :8083     (admin on :9181 :9182 :9183)");
    println!("  Try           curl -i http://127.0.0.1:8081/api/users/42");
    println!("                curl -i -H 'apikey: alice-demo-key' http://127.0.0.1:8082/api/orders/7");
    println!("  Logs          {DIR}/*.log");
    if cfg!(debug_assertions) {
        println!("  This is a debug build, several times slower than a release build.");
    }
    println!();
    println!("  Revision {revision} is served by {} proxies. Ctrl-C ends everything.", PROXIES.len());

    let seen = Arc::new(Seen::default());
    let show = async {
        if shows_rollout {
            rollout::show(&api, &seen, PROXIES.len()).await?;
        }
        std::future::pending::<Result<()>>().await
    };
    tokio::select! {
        result = trickle(&seen) => result,
        result = show => result,
        result = watch(&mut processes) => result,
        _ = tokio::signal::ctrl_c() => {
            println!("\n  Ending.");
            processes.iter_mut().for_each(Daemon::terminate);
            for process in &mut processes {
                let _ = process.wait_exit(Duration::from_secs(5));
            }
            Ok(())
        }
    }
}

/// About thirty requests a second over all proxies and routes.
async fn trickle(seen: &Arc<Seen>) -> Result<()> {
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(5))
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    let paths =
        ["/api/users/1", "/api/users/2/address", "/api/orders/7", "/status", "/users/3", "/api/users?page=2"];
    let mut tick = tokio::time::interval(Duration::from_millis(33));
    loop {
        tick.tick().await;
        let url =
            format!("http://127.0.0.1:808{}{}", fastrand::u8(1..=3), paths[fastrand::usize(..paths.len())]);
        let request = client.get(url).header("apikey", HeaderValue::from_static("alice-demo-key"));
        let seen = Arc::clone(seen);
        tokio::spawn(async move {
            let answer = request.send().await;
            if seen.counting.load(Ordering::Relaxed) {
                seen.requests.fetch_add(1, Ordering::Relaxed);
                let failed = answer.is_ok_and(|answer| answer.status().is_server_error());
                seen.failures.fetch_add(u64::from(failed), Ordering::Relaxed);
            }
        });
    }
}

/// Ends when a process has ended by itself.
async fn watch(processes: &mut [Daemon]) -> Result<()> {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        check(processes)?;
    }
}

fn check(processes: &mut [Daemon]) -> Result<()> {
    for process in processes {
        ensure!(process.is_running(), "a process has ended:\n{}", process.log());
    }
    Ok(())
}

async fn ready(url: &str, processes: &mut [Daemon]) -> Result<()> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(1)).build()?;
    let deadline = tokio::time::Instant::now() + START_DEADLINE;
    loop {
        if client.get(url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(());
        }
        check(processes)?;
        ensure!(tokio::time::Instant::now() < deadline, "{url} did not answer within {START_DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn ensure_free(addresses: &[SocketAddr]) -> Result<()> {
    for address in addresses {
        std::net::TcpListener::bind(address)
            .with_context(|| format!("{address} is taken: is another one running?"))?;
    }
    Ok(())
}
