//! Prometheus and Alertmanager: they read the shipped configurations, and scrape the programs.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::client::eventually;
use crate::process::{Daemon, find_program, free_port};

/// A running Prometheus. It ends when this is dropped.
#[derive(Debug)]
pub struct Prometheus {
    server: Server,
}

/// A running Alertmanager. It ends when this is dropped.
#[derive(Debug)]
pub struct Alertmanager {
    server: Server,
}

#[derive(Debug)]
struct Server {
    name: &'static str,
    address: SocketAddr,
    http: reqwest::Client,
    daemon: Daemon,
    // After the process, so that it is gone first.
    _data: TempDir,
}

const START_DEADLINE: Duration = Duration::from_secs(30);
const CALL_DEADLINE: Duration = Duration::from_secs(30);

impl Prometheus {
    /// Starts it with this configuration; returns when it is ready.
    pub async fn start(configuration: &Path) -> Result<Self> {
        Self::start_with(configuration, &[]).await
    }

    /// Likewise, with further arguments.
    pub async fn start_with(configuration: &Path, arguments: &[&str]) -> Result<Self> {
        let server = Server::start("prometheus", configuration, "--storage.tsdb.path", arguments).await?;
        Ok(Self { server })
    }

    /// The series of an expression, at this moment.
    pub async fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let body = format!("query={}", escaped(expression));
        let url = format!("http://{}/api/v1/query", self.server.address);
        let request = self.server.http.post(url).body(body);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let answer: Value = serde_json::from_slice(&request.send().await?.bytes().await?)?;
        ensure!(answer["status"] == "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().cloned().context("no result")
    }

    /// Reads `/api/v1` + `path`.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.server.get(&format!("/api/v1{path}")).await
    }

    /// All it has printed.
    pub fn log(&self) -> String {
        self.server.daemon.log()
    }
}

impl Alertmanager {
    /// Starts it with this configuration; returns when it is ready.
    pub async fn start(configuration: &Path) -> Result<Self> {
        // Without an address for others of its kind.
        let alone = ["--cluster.listen-address="];
        let server =
            Server::start("prometheus-alertmanager", configuration, "--storage.path", &alone).await?;
        Ok(Self { server })
    }

    /// Reports alerts, as Prometheus does.
    pub async fn post(&self, alerts: &Value) -> Result<()> {
        let url = format!("http://{}/api/v2/alerts", self.server.address);
        let answer = self.server.http.post(url).json(alerts).send().await?;
        let status = answer.status();
        ensure!(status.is_success(), "{status} {}", answer.text().await?);
        Ok(())
    }

    /// Reads `/api/v2` + `path`.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.server.get(&format!("/api/v2{path}")).await
    }
}

impl Server {
    async fn start(name: &'static str, configuration: &Path, data: &str, more: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("signalbox-prometheus-").tempdir()?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = Command::new(installed(name, name)?);
        command.arg(format!("--config.file={}", configuration.display()));
        command.arg(format!("{data}={}", dir.path().join("data").display()));
        command.arg(format!("--web.listen-address={address}")).args(more);
        let daemon = Daemon::spawn(name, &command, &dir.path().join("log"))?;
        let http = reqwest::Client::builder().timeout(CALL_DEADLINE).no_proxy().build()?;
        let mut server = Self { name, address, http, daemon, _data: dir };
        let url = format!("http://{address}/-/ready");
        let ready = eventually(START_DEADLINE, async || {
            !server.daemon.is_running()
                || server.http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success())
        });
        let ready = ready.await && server.daemon.is_running();
        ensure!(ready, "{} is not ready:\n{}", server.name, server.daemon.log());
        Ok(server)
    }

    async fn get(&self, path: &str) -> Result<Value> {
        let answer = self.http.get(format!("http://{}{path}", self.address)).send().await?;
        Ok(serde_json::from_slice(&answer.error_for_status()?.bytes().await?)?)
    }
}

/// Runs `promtool` in a directory. Returns what it printed, which is the error if it failed.
pub fn promtool(directory: &Path, arguments: &[&str]) -> Result<String> {
    run("promtool", "prometheus", directory, arguments)
}

/// Runs `amtool` in a directory. Returns what it printed, which is the error if it failed.
pub fn amtool(directory: &Path, arguments: &[&str]) -> Result<String> {
    run("amtool", "prometheus-alertmanager", directory, arguments)
}

fn run(program: &str, package: &str, directory: &Path, arguments: &[&str]) -> Result<String> {
    let output =
        Command::new(installed(program, package)?).args(arguments).current_dir(directory).output()?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    let _ = write!(text, "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{program} {}:\n{text}", arguments.join(" "));
    Ok(text)
}

/// A program of a Debian package that is installed, or unpacked by scripts/setup.sh.
fn installed(program: &str, package: &str) -> Result<PathBuf> {
    let home = std::env::home_dir().unwrap_or_default();
    let unpacked = home.join(".cache/signalbox").join(package).join("usr/bin").join(program);
    let found = find_program(program).or_else(|| Some(unpacked).filter(|path| path.is_file()));
    found.with_context(|| format!("{program} is missing: scripts/setup.sh test unpacks Debian's {package}"))
}

/// Text for a form.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}
