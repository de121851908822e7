//! Proxies, as processes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::client::eventually;
use crate::control_plane::{ControlPlane, Metrics, PROXY_TOKEN, metrics, set_argument};
use crate::process::{Daemon, free_port, program};

/// How to start a proxy.
#[derive(Debug, Default)]
pub struct ProxyBuilder {
    control_planes: Vec<String>,
    node_id: Option<String>,
    listeners: Vec<(String, SocketAddr)>,
    config: Option<PathBuf>,
    arguments: Vec<String>,
    program: Option<PathBuf>,
    token: Option<String>,
    data_dir: Option<PathBuf>,
}

/// A running proxy. Data directory, node id and ports stay the same over a restart.
#[derive(Debug)]
pub struct Proxy {
    // Before the directory, so that the process is gone first.
    daemon: Option<Daemon>,
    program: PathBuf,
    arguments: Vec<String>,
    node_id: Option<String>,
    admin: SocketAddr,
    http: SocketAddr,
    client: reqwest::Client,
    dir: Arc<TempDir>,
}

const START_DEADLINE: Duration = Duration::from_secs(30);

impl ProxyBuilder {
    /// Connects to this control plane; of several, to one that answers.
    #[must_use]
    pub fn control_plane(mut self, control_plane: &ControlPlane) -> Self {
        self.control_planes.push(control_plane.xds_url());
        self
    }

    /// Connects to a control plane at this URL.
    #[must_use]
    pub fn control_plane_url(mut self, url: impl Into<String>) -> Self {
        self.control_planes.push(url.into());
        self
    }

    /// Presents this token instead of the tests' own.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Keeps its data there, instead of in a directory that lasts as long as it.
    #[must_use]
    pub fn data_dir(mut self, dir: &Path) -> Self {
        self.data_dir = Some(dir.to_owned());
        self
    }

    /// Its identity.
    #[must_use]
    pub fn node_id(mut self, id: &str) -> Self {
        self.node_id = Some(id.to_owned());
        self
    }

    /// Its fleet.
    #[must_use]
    pub fn fleet(self, fleet: &str) -> Self {
        self.arg(format!("--fleet={fleet}"))
    }

    /// Where a listener is on this host, beside `http`, which has a free port.
    #[must_use]
    pub fn listener(mut self, name: &str, address: SocketAddr) -> Self {
        self.listeners.push((name.to_owned(), address));
        self
    }

    /// Serves this file, without a control plane.
    #[must_use]
    pub fn config(mut self, file: &Path) -> Self {
        self.config = Some(file.to_owned());
        self
    }

    /// Adds an argument of the command line.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Runs this program instead of the one that was built beside the tests.
    #[must_use]
    pub fn program(mut self, program: PathBuf) -> Self {
        self.program = Some(program);
        self
    }

    /// Starts it, and returns when it is ready: it has a configuration and listens.
    pub async fn start(self) -> Result<Proxy> {
        let mut proxy = self.prepare()?;
        proxy.start().await?;
        Ok(proxy)
    }

    /// All but starting it.
    pub fn prepare(self) -> Result<Proxy> {
        let dir = tempfile::Builder::new().prefix("signalbox-proxy-").tempdir()?;
        let loopback = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let admin = loopback();
        let given = self.listeners.iter().find(|(name, _)| name == "http").map(|(_, address)| *address);
        let http = given.unwrap_or_else(loopback);
        let mut arguments = vec![
            format!("--admin-address={admin}"),
            format!("--data-dir={}", self.data_dir.unwrap_or_else(|| dir.path().join("data")).display()),
            format!("--token={}", self.token.as_deref().unwrap_or(PROXY_TOKEN)),
            format!("--listener=http={http}"),
            "--log-format=text".to_owned(),
            "--workers=2".to_owned(),
        ];
        arguments.extend(self.control_planes.iter().map(|url| format!("--control-plane={url}")));
        arguments.extend(self.node_id.iter().map(|id| format!("--node-id={id}")));
        let others = self.listeners.iter().filter(|(name, _)| name != "http");
        arguments.extend(others.map(|(name, address)| format!("--listener={name}={address}")));
        arguments.extend(self.config.iter().map(|file| format!("--config={}", file.display())));
        if !self.arguments.iter().any(|argument| argument.starts_with("--access-log")) {
            arguments.push("--access-log=off".to_owned());
        }
        for argument in &self.arguments {
            if argument.starts_with("--token=") {
                set_argument(&mut arguments, argument);
            } else {
                arguments.push(argument.clone());
            }
        }
        Ok(Proxy {
            daemon: None,
            program: self.program.map_or_else(|| program("signalbox-proxy"), Ok)?,
            arguments,
            node_id: self.node_id,
            admin,
            http,
            client: reqwest::Client::builder().timeout(Duration::from_secs(10)).no_proxy().build()?,
            dir: Arc::new(dir),
        })
    }
}

impl Proxy {
    /// A builder.
    pub fn builder() -> ProxyBuilder {
        ProxyBuilder::default()
    }

    /// A proxy of a control plane, with an identity.
    pub async fn of(control_plane: &ControlPlane, node_id: &str) -> Result<Self> {
        Self::builder().control_plane(control_plane).node_id(node_id).start().await
    }

    /// Changes an argument, `--name=value`, for its next start.
    pub fn set_arg(&mut self, argument: &str) {
        set_argument(&mut self.arguments, argument);
    }

    /// Starts it again; returns when it is ready.
    pub async fn start(&mut self) -> Result<()> {
        self.start_unready()?;
        self.wait_ready().await
    }

    /// Starts it again, and does not wait.
    pub fn start_unready(&mut self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_remove("RUST_LOG").current_dir(self.dir.path());
        self.daemon = Some(Daemon::spawn("signalbox-proxy", &command, &self.log_file())?);
        Ok(())
    }

    /// Waits until `/readyz` says so; an error when the process ends before.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let url = format!("http://{}/readyz", self.admin);
        let end = tokio::time::Instant::now() + START_DEADLINE;
        loop {
            let daemon = self.daemon.as_mut().context("it was not started")?;
            if !daemon.is_running() {
                bail!("signalbox-proxy ended at its start:\n{}", daemon.log());
            }
            if self.client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if tokio::time::Instant::now() > end {
                bail!("signalbox-proxy is not ready after {START_DEADLINE:?}:\n{}", daemon.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills it like a crash.
    pub fn kill9(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill9();
        }
    }

    /// Sends SIGTERM, at which it drains.
    pub fn terminate(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.terminate();
        }
    }

    /// See [`Daemon::limit_file_size`].
    pub fn limit_file_size(&mut self, bytes: Option<u64>) -> Result<()> {
        self.daemon.as_mut().context("it was not started")?.limit_file_size(bytes)
    }

    /// Stops all that it does, as if the machine had no time for it, until [`Proxy::resume`].
    pub fn pause(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.signal(Signal::STOP);
        }
    }

    /// Goes on after [`Proxy::pause`].
    pub fn resume(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.signal(Signal::CONT);
        }
    }

    /// Waits until it has ended by itself; its exit code.
    pub fn wait_exit(&mut self, deadline: Duration) -> Result<Option<i32>> {
        let mut daemon = self.daemon.take().context("it was not started")?;
        Ok(daemon.wait_exit(deadline)?.code())
    }

    /// Where its listener `http` is.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// `http://` + [`Proxy::http`] + `path`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// Where it tells of itself.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The identity it was started with.
    pub fn id(&self) -> &str {
        self.node_id.as_deref().unwrap_or_default()
    }

    /// Its process id; `None` while it is down.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::pid)
    }

    /// Reads `/metrics`.
    pub async fn metrics(&self) -> Result<Metrics> {
        metrics(&self.client, &format!("http://{}/metrics", self.admin), None).await
    }

    /// Reads `/revision`.
    pub async fn revision(&self) -> Result<Value> {
        let url = format!("http://{}/revision", self.admin);
        Ok(self.client.get(&url).send().await?.error_for_status()?.json().await?)
    }

    /// All it has printed, over restarts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Waits until its data directory holds `text`, and gives the files that do: what it serves is written there soon after it
    /// was acknowledged.
    pub async fn wait_kept(&self, text: &str) -> Result<Vec<PathBuf>> {
        let mut kept = Vec::new();
        let holds = |file: &PathBuf| {
            let bytes = std::fs::read(file).unwrap_or_default();
            bytes.windows(text.len()).any(|part| part == text.as_bytes())
        };
        let found = eventually(Duration::from_secs(30), async || {
            let Ok(entries) = std::fs::read_dir(self.dir().join("data")) else { return false };
            kept = entries.flatten().map(|entry| entry.path()).filter(holds).collect();
            !kept.is_empty()
        });
        ensure!(found.await, "{} does not keep {text:?}: {}", self.id(), self.log());
        Ok(kept)
    }

    /// A directory that lasts as long as it; its data directory is `data` in it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}
