//! Clients of the data path: single requests, and a constant load that counts whatever goes wrong.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// Asks again and again whether `condition` holds, until it does or `deadline` has passed. Whether it held.
pub async fn eventually(deadline: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    while !condition().await {
        if Instant::now() > end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    true
}

/// An answer of the data path.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A `GET` on a connection of its own.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Result<Answer> {
    let request = Request::get(path).header(header::HOST, host).body(Full::default())?;
    send(address, request).await
}

/// Any request, over HTTP/1.1, on a connection of its own.
pub async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer> {
    let exchange = async {
        let mut sender = Sender::connect(address, Protocol::Http1).await?;
        Ok(sender.exchange(request).await?)
    };
    tokio::time::timeout(REQUEST_DEADLINE, exchange).await.context("no answer in time")?
}

/// No request of a test may take longer; those of a load that do are failures.
const REQUEST_DEADLINE: Duration = Duration::from_secs(15);

/// The protocol of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, kept alive.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

type MakeRequest = dyn Fn(u64) -> Request<Full<Bytes>> + Send + Sync;
type Check = dyn Fn(&Answer) -> Result<(), String> + Send + Sync;

/// How to put load on proxies.
pub struct LoadBuilder {
    addresses: Vec<SocketAddr>,
    connections: usize,
    pace: Duration,
    protocol: Protocol,
    request: Box<MakeRequest>,
    check: Box<Check>,
}

impl LoadBuilder {
    /// How many connections; each sends one request after the other.
    #[must_use]
    pub fn connections(mut self, count: usize) -> Self {
        self.connections = count;
        self
    }

    /// How long a connection waits between an answer and its next request.
    #[must_use]
    pub fn pace(mut self, pace: Duration) -> Self {
        self.pace = pace;
        self
    }

    /// Sets the protocol.
    #[must_use]
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Makes the request of a running number.
    #[must_use]
    pub fn request(mut self, make: impl Fn(u64) -> Request<Full<Bytes>> + Send + Sync + 'static) -> Self {
        self.request = Box::new(make);
        self
    }

    /// Sets a condition for every answer, beside a status of 2xx.
    #[must_use]
    pub fn check(mut self, check: impl Fn(&Answer) -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.check = Box::new(check);
        self
    }

    /// Starts it, and returns once every connection has had an answer.
    pub async fn start(self) -> Result<Load> {
        let connections = self.connections as u64;
        let shared = Arc::new(Shared { builder: self, ..Shared::default() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("load".to_owned()).spawn({
            let shared = shared.clone();
            move || {
                runtime.block_on(async {
                    let mut tasks = tokio::task::JoinSet::new();
                    for index in 0..shared.builder.connections {
                        tasks.spawn(shared.clone().run(index));
                    }
                    tasks.join_all().await;
                });
            }
        })?;
        let load = Load { shared, thread: Some(thread) };
        let started = eventually(REQUEST_DEADLINE, async || load.requests() >= connections).await;
        if !started || load.failed() > 0 {
            bail!("the load does not start: {:?}", load.finish());
        }
        Ok(load)
    }
}

/// A running load. It ends when this is dropped.
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// The result of a load.
#[derive(Debug)]
pub struct LoadReport {
    /// All requests that were sent.
    pub requests: u64,
    /// Those that were not answered, not with 2xx, or not as they should be.
    pub failed: u64,
    /// The faults of the first of those.
    pub failures: Vec<String>,
    /// The slowest answer.
    pub slowest: Duration,
}

impl LoadReport {
    /// Panics unless every request succeeded, of `at_least` so many.
    #[track_caller]
    pub fn assert_flawless(&self, at_least: u64) {
        assert!(
            self.failed == 0,
            "{} of {} requests failed:\n{}",
            self.failed,
            self.requests,
            self.failures.join("\n")
        );
        assert!(self.requests >= at_least, "only {} requests were sent", self.requests);
    }
}

impl Load {
    /// Load on these proxies: each connection goes to one of them, in turn, and to another when it does not
    /// accept any more.
    pub fn on(addresses: impl IntoIterator<Item = SocketAddr>) -> LoadBuilder {
        LoadBuilder {
            addresses: addresses.into_iter().collect(),
            connections: 4,
            pace: Duration::from_millis(2),
            protocol: Protocol::Http1,
            request: Box::new(|_| {
                let request = Request::get("/").header(header::HOST, "example.com").body(Full::default());
                request.expect("its parts are constants")
            }),
            check: Box::new(|_| Ok(())),
        }
    }

    /// How many requests were answered so far, or have failed.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// How many have failed so far.
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Waits until so many more requests have been made.
    pub async fn wait_for(&self, more: u64) -> Result<()> {
        let until = self.requests() + more;
        let came = eventually(Duration::from_secs(60), async || self.requests() >= until).await;
        if came { Ok(()) } else { bail!("the load stands still at {} requests", self.requests()) }
    }

    /// Lets running requests end, and says what became of all.
    pub fn finish(mut self) -> LoadReport {
        self.stop();
        let failures = self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let slowest = Duration::from_micros(self.shared.slowest_us.load(Ordering::Relaxed));
        LoadReport { requests: self.requests(), failed: self.failed(), failures, slowest }
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Shared {
    builder: LoadBuilder,
    stop: AtomicBool,
    next: AtomicU64,
    requests: AtomicU64,
    failed: AtomicU64,
    slowest_us: AtomicU64,
    /// The first [`Shared::KEPT`].
    failures: Mutex<Vec<String>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            builder: Load::on([]),
            stop: AtomicBool::default(),
            next: AtomicU64::default(),
            requests: AtomicU64::default(),
            failed: AtomicU64::default(),
            slowest_us: AtomicU64::default(),
            failures: Mutex::default(),
        }
    }
}

impl Shared {
    const KEPT: usize = 20;

    async fn run(self: Arc<Self>, index: usize) {
        let mut sender = None;
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let started = Instant::now();
            let outcome = tokio::time::timeout(REQUEST_DEADLINE, self.once(index, number, &mut sender)).await;
            let outcome = outcome.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.slowest_us.fetch_max(micros, Ordering::Relaxed);
            self.requests.fetch_add(1, Ordering::Relaxed);
            if let Err(failure) = outcome {
                self.failed.fetch_add(1, Ordering::Relaxed);
                sender = None;
                let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
                if failures.len() < Self::KEPT {
                    failures.push(format!("request {number}: {failure}"));
                }
            }
            tokio::time::sleep(self.builder.pace).await;
        }
    }

    /// One request, on the connection that is there, or else on a new one.
    async fn once(&self, index: usize, number: u64, kept: &mut Option<Sender>) -> Result<(), String> {
        // A connection that the server has closed, before anything was sent on it, costs no request.
        let usable = match kept {
            Some(sender) => sender.is_ready().await,
            None => false,
        };
        let mut sender = match kept.take() {
            Some(sender) if usable => sender,
            _ => self.connect(index).await?,
        };
        let answer = match sender.exchange((self.builder.request)(number)).await {
            Ok(answer) => answer,
            // Never sent: the server said before that this connection takes no more.
            Err(error) if error.is_canceled() => {
                sender = self.connect(index).await?;
                let again = sender.exchange((self.builder.request)(number)).await;
                again.map_err(|error| format!("{error:?}"))?
            }
            Err(error) => return Err(format!("{error:?}")),
        };
        if !answer.status.is_success() {
            return Err(format!("{} {:?} {}", answer.status, answer.headers, answer.text()));
        }
        (self.builder.check)(&answer)?;
        if !answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            *kept = Some(sender);
        }
        Ok(())
    }

    async fn connect(&self, index: usize) -> Result<Sender, String> {
        let mut last = "there is no proxy".to_owned();
        let addresses = &self.builder.addresses;
        for attempt in 0..addresses.len() {
            let address = addresses[(index + attempt) % addresses.len()];
            match Sender::connect(address, self.builder.protocol).await {
                Ok(sender) => return Ok(sender),
                Err(error) => last = format!("cannot connect to {address}: {error:#}"),
            }
        }
        Err(last)
    }
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn connect(address: SocketAddr, protocol: Protocol) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let io = TokioIo::new(stream);
        Ok(match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection);
                Self::Http1(sender)
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                Self::Http2(sender)
            }
        })
    }

    async fn is_ready(&mut self) -> bool {
        match self {
            Self::Http1(sender) => sender.ready().await.is_ok(),
            Self::Http2(sender) => sender.ready().await.is_ok(),
        }
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, hyper::Error> {
        let response = match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(absolute(request)).await?
            }
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }
}

/// HTTP/2 has the host in the URI (RFC 9113, section 8.3.1).
fn absolute(request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    let (mut head, body) = request.into_parts();
    if let Some(host) = head.headers.remove(header::HOST)
        && let Some(path) = head.uri.path_and_query()
        && let Ok(host) = host.to_str()
        && let Ok(uri) = format!("http://{host}{path}").parse()
    {
        head.uri = uri;
    }
    Request::from_parts(head, body)
}
