//! Control planes, as processes, and a client of their API.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::{HeaderMap, Method, StatusCode};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::client::eventually;
use crate::process::{Daemon, free_port, program};

/// How to start a control plane. Without a database, it has one of its own, on SQLite.
#[derive(Debug, Default)]
pub struct ControlPlaneBuilder {
    database: Option<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    program: Option<PathBuf>,
}

/// A running control plane. Its ports stay the same over a restart.
#[derive(Debug)]
pub struct ControlPlane {
    // Before the directory, so that the process is gone first.
    daemon: Option<Daemon>,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    admin_port: u16,
    xds_port: u16,
    dir: Arc<TempDir>,
    api: Api,
}

/// The administrator's token of every control plane of the tests.
pub const ADMIN_TOKEN: &str = "admin-token-of-the-system-tests";
/// The token of the tests' proxies.
pub const PROXY_TOKEN: &str = "proxy-token-of-the-system-tests";
/// The key with which control planes encrypt secrets.
pub const SECRETS_KEY: &str = "5eedc0de5eedc0de5eedc0de5eedc0de5eedc0de5eedc0de5eedc0de5eedc0de";

/// How long a control plane may take to be ready, in a debug build on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(60);

impl ControlPlaneBuilder {
    /// Uses this database: `postgres://…`.
    #[must_use]
    pub fn database(mut self, url: impl Into<String>) -> Self {
        self.database = Some(url.into());
        self
    }

    /// Adds an argument of the command line.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs this program instead of the one that was built beside the tests.
    #[must_use]
    pub fn program(mut self, program: PathBuf) -> Self {
        self.program = Some(program);
        self
    }

    /// Starts it, and returns when it is ready.
    pub async fn start(self) -> Result<ControlPlane> {
        let mut control_plane = self.prepare()?;
        control_plane.start().await?;
        Ok(control_plane)
    }

    /// All but starting it.
    pub fn prepare(self) -> Result<ControlPlane> {
        let dir = tempfile::Builder::new().prefix("signalbox-control-plane-").tempdir()?;
        let (admin_port, xds_port) = (free_port(), free_port());
        let database =
            self.database.unwrap_or_else(|| format!("sqlite://{}/signalbox.db", dir.path().display()));
        let mut arguments = vec![
            format!("--database-url={database}"),
            format!("--admin-address=127.0.0.1:{admin_port}"),
            format!("--xds-address=127.0.0.1:{xds_port}"),
            format!("--admin-token={ADMIN_TOKEN}"),
            format!("--proxy-token={PROXY_TOKEN}"),
            format!("--secrets-key={SECRETS_KEY}"),
            "--log-format=text".to_owned(),
        ];
        arguments.extend(self.arguments);
        Ok(ControlPlane {
            daemon: None,
            program: self.program.map_or_else(|| program("signalbox-control-plane"), Ok)?,
            arguments,
            environment: self.environment,
            admin_port,
            xds_port,
            dir: Arc::new(dir),
            api: Api::new(format!("http://127.0.0.1:{admin_port}"), ADMIN_TOKEN)?,
        })
    }
}

impl ControlPlane {
    /// A builder.
    pub fn builder() -> ControlPlaneBuilder {
        ControlPlaneBuilder::default()
    }

    /// A control plane on SQLite.
    pub async fn sqlite() -> Result<Self> {
        Self::builder().start().await
    }

    /// Changes an argument, `--name=value`, for its next start.
    pub fn set_arg(&mut self, argument: &str) {
        set_argument(&mut self.arguments, argument);
    }

    /// Takes an argument, `--name`, away for its next start.
    pub fn remove_arg(&mut self, name: &str) {
        self.arguments.retain(|known| known.split('=').next() != Some(name));
    }

    /// Starts it again, with the same database and ports; returns when it is ready.
    pub async fn start(&mut self) -> Result<()> {
        self.start_unready()?;
        self.wait_ready().await
    }

    /// Starts it again, and does not wait.
    pub fn start_unready(&mut self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_remove("RUST_LOG").current_dir(self.dir.path());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.daemon = Some(Daemon::spawn("signalbox-control-plane", &command, &self.dir.path().join("log"))?);
        Ok(())
    }

    /// Waits until `/readyz` says so; an error when the process ends before.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let url = format!("{}/readyz", self.admin_url());
        let end = tokio::time::Instant::now() + START_DEADLINE;
        loop {
            let daemon = self.daemon.as_mut().context("it was not started")?;
            if !daemon.is_running() {
                bail!("signalbox-control-plane ended at its start:\n{}", daemon.log());
            }
            if self.api.http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if tokio::time::Instant::now() > end {
                bail!("signalbox-control-plane is not ready after {START_DEADLINE:?}:\n{}", daemon.log());
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

    /// See [`Daemon::limit_file_size`].
    pub fn limit_file_size(&mut self, bytes: Option<u64>) -> Result<()> {
        self.daemon.as_mut().context("it was not started")?.limit_file_size(bytes)
    }

    /// Stops all that it does, as if the machine had no time for it, until [`ControlPlane::resume`].
    pub fn pause(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.signal(Signal::STOP);
        }
    }

    /// Goes on after [`ControlPlane::pause`].
    pub fn resume(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.signal(Signal::CONT);
        }
    }

    /// True while its process runs.
    pub fn is_running(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(Daemon::is_running)
    }

    /// Ends it by SIGTERM.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.terminate();
            daemon.wait_exit(Duration::from_secs(30))?;
        }
        Ok(())
    }

    /// Where its API, its UI and its metrics are: `http://127.0.0.1:PORT`.
    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin_port)
    }

    /// Where its proxies connect: `http://127.0.0.1:PORT`.
    pub fn xds_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.xds_port)
    }

    /// Its API, for the administrator.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Its process id; `None` while it is down.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::pid)
    }

    /// All it has printed.
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// A directory that lasts as long as it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

pub(crate) fn set_argument(arguments: &mut Vec<String>, argument: &str) {
    let name = |argument: &str| argument.split('=').next().unwrap_or_default().to_owned();
    arguments.retain(|known| name(known) != name(argument));
    arguments.push(argument.to_owned());
}

/// A client of the API of a control plane. Every call has a deadline.
#[derive(Debug, Clone)]
pub struct Api {
    http: reqwest::Client,
    /// `http://127.0.0.1:PORT`
    server: String,
    token: String,
}

/// With what an event stream is opened.
#[derive(Debug, Clone, Copy)]
pub enum EventsAs<'a> {
    /// A token.
    Token(&'a str),
    /// A session's `Cookie` header.
    Cookie(&'a str),
}

/// An answer of the API.
#[derive(Debug, Clone)]
pub struct ApiAnswer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body; a string when it is not JSON, null when it is empty.
    pub body: Value,
}

/// A call of the API may take so long.
const CALL_DEADLINE: Duration = Duration::from_secs(30);

impl Api {
    /// A client of `server`.
    pub fn new(server: String, token: &str) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(CALL_DEADLINE).no_proxy().build()?;
        Ok(Self { http, server, token: token.to_owned() })
    }

    /// Logs in with a token, as a browser does; gives the `Cookie` header of the session.
    pub async fn log_in(&self, token: &str) -> Result<String> {
        let url = format!("{}/api/v1/session", self.server);
        let answer = send(self.http.post(url).json(&serde_json::json!({"token": token}))).await?.success()?;
        let cookie = answer.header("set-cookie").context("no cookie")?;
        Ok(cookie.split(';').next().unwrap_or_default().to_owned())
    }

    /// Prepares a call of `/api/v1` + `path` with a session's cookie instead of a token, as a browser makes it.
    pub fn with_cookie(&self, method: Method, path: &str, cookie: &str) -> reqwest::RequestBuilder {
        let url = format!("{}/api/v1{path}", self.server);
        self.http.request(method, url).header("cookie", cookie).header("sec-fetch-site", "same-origin")
    }

    /// Opens the event stream of a prepared call, and gives it when its first bytes have come. It has no deadline.
    pub async fn event_stream(&self, how: EventsAs<'_>) -> Result<reqwest::Response> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let request = http.get(format!("{}/api/v1/events", self.server));
        let request = match how {
            EventsAs::Token(token) => request.bearer_auth(token),
            EventsAs::Cookie(cookie) => request.header("cookie", cookie),
        };
        let mut stream = request.send().await?.error_for_status()?;
        stream.chunk().await?.context("it ended at once")?;
        Ok(stream)
    }

    /// The same server, as someone else.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// Prepares a call of `/api/v1` + `path`, to add headers or a body to.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}/api/v1{path}", self.server)).bearer_auth(&self.token)
    }

    /// Calls `/api/v1` + `path`, whatever the answer.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<ApiAnswer> {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(body);
        }
        send(request).await
    }

    /// Reads; an error unless it is 200.
    pub async fn get(&self, path: &str) -> Result<Value> {
        Ok(self.call(Method::GET, path, None).await?.success()?.body)
    }

    /// Writes a resource, and gives the revision it made.
    pub async fn put(&self, kinds: &str, name: &str, spec: &Value) -> Result<u64> {
        self.call(Method::PUT, &format!("/{kinds}/{name}"), Some(spec)).await?.success()?.revision()
    }

    /// Deletes a resource, and gives the revision it made.
    pub async fn delete(&self, kinds: &str, name: &str) -> Result<u64> {
        self.call(Method::DELETE, &format!("/{kinds}/{name}"), None).await?.success()?.revision()
    }

    /// Applies a declarative document, and gives the revision it made.
    pub async fn apply(&self, document: &Value) -> Result<u64> {
        self.call(Method::POST, "/apply", Some(document)).await?.success()?.revision()
    }

    /// Waits until every connected proxy of `fleet` serves `revision` or a later one.
    pub async fn wait(&self, revision: u64, fleet: &str) -> Result<Value> {
        self.get(&format!("/revisions/{revision}/wait?timeout=20s&fleet={fleet}")).await
    }

    /// Likewise, for the fleet `default`.
    pub async fn wait_default(&self, revision: u64) -> Result<Value> {
        self.wait(revision, "default").await
    }

    /// The proxies, by id.
    pub async fn proxies(&self) -> Result<Vec<Value>> {
        let body = self.get("/proxies?limit=1000").await?;
        body["items"].as_array().cloned().context("no items")
    }

    /// One proxy.
    pub async fn proxy(&self, id: &str) -> Result<Value> {
        self.get(&format!("/proxies/{id}")).await
    }

    /// Waits until `condition` holds for what `GET /proxies/{id}` shows, and gives that.
    pub async fn wait_proxy(
        &self,
        id: &str,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let found = eventually(Duration::from_secs(30), async || {
            last = self.proxy(id).await.unwrap_or_default();
            condition(&last)
        })
        .await;
        ensure!(found, "proxy {id} is not {what}: {last:#}");
        Ok(last)
    }

    /// Waits until `count` proxies are connected and in sync.
    pub async fn wait_in_sync(&self, count: usize) -> Result<()> {
        let mut last = Vec::new();
        let found = eventually(Duration::from_secs(30), async || {
            last = self.proxies().await.unwrap_or_default();
            last.iter().filter(|proxy| proxy["state"] == "in_sync").count() == count
        })
        .await;
        ensure!(found, "{count} proxies were to be in sync, but there are {last:#?}");
        Ok(())
    }

    /// The number of the last revision.
    pub async fn head(&self) -> Result<u64> {
        let revisions = self.get("/revisions?limit=1").await?;
        revisions["items"][0]["number"].as_u64().with_context(|| format!("no revision: {revisions}"))
    }

    /// Reads `/metrics`.
    pub async fn metrics(&self) -> Result<Metrics> {
        metrics(&self.http, &format!("{}/metrics", self.server), Some(&self.token)).await
    }
}

/// Sends a prepared call.
pub async fn send(request: reqwest::RequestBuilder) -> Result<ApiAnswer> {
    let answer = request.send().await?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let bytes = answer.bytes().await?;
    let body = if bytes.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()))
    };
    Ok(ApiAnswer { status, headers, body })
}

impl ApiAnswer {
    /// An error unless the status is a success.
    pub fn success(self) -> Result<Self> {
        ensure!(self.status.is_success(), "{self}");
        Ok(self)
    }

    /// The revision that the call made.
    pub fn revision(&self) -> Result<u64> {
        let header = self.header("signalbox-revision").with_context(|| format!("no revision: {self}"))?;
        Ok(header.parse()?)
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The fields of a problem's errors, in their order.
    pub fn fields(&self) -> Vec<&str> {
        let errors = self.body["errors"].as_array();
        errors.into_iter().flatten().filter_map(|error| error["field"].as_str()).collect()
    }

    /// The message of the error of `field`; empty when there is none.
    pub fn message(&self, field: &str) -> &str {
        let errors = self.body["errors"].as_array();
        let found = errors.into_iter().flatten().find(|error| error["field"] == field);
        found.and_then(|error| error["message"].as_str()).unwrap_or_default()
    }
}

impl fmt::Display for ApiAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, self.body)
    }
}

/// Metrics in Prometheus' text form.
#[derive(Debug, Clone)]
pub struct Metrics(pub String);

impl Metrics {
    /// The sum of all series of `name` whose labels contain each of `labels` (`route="a"`).
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let matching = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (metric, rest) = series.split_once('{').unwrap_or((series, ""));
            (metric == name && labels.iter().all(|label| rest.contains(label))).then_some(value)
        });
        matching.filter_map(|value| value.parse::<f64>().ok()).sum()
    }

    /// True if there is a series of `name`.
    pub fn has(&self, name: &str) -> bool {
        self.0.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
    }
}

pub(crate) async fn metrics(http: &reqwest::Client, url: &str, token: Option<&str>) -> Result<Metrics> {
    let mut request = http.get(url);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    Ok(Metrics(request.send().await?.error_for_status()?.text().await?))
}
