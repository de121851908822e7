use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Rlimit, getrlimit, setrlimit};
use signalbox_config::{Change, Resource, ResourceKey, RevisionId, Snapshot, document};
use signalbox_plugin::{Blobs, Registry};
use signalbox_plugins::builtin;
use signalbox_proxy::proxy::{Proxy, Settings};
use signalbox_proxy::source::{Candidate, DataPlane, Rejected};
use signalbox_proxy::telemetry::access_log;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The deadline of every wait; nothing in these tests takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Read-locked by every running test, and write-locked by a test that runs alone.
static MACHINE: RwLock<()> = RwLock::new(());

/// Runs an async test. The proxy's workers have threads of their own.
pub(crate) fn block_on<F: Future>(test: F) -> F::Output {
    let _machine = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    run(Box::pin(test))
}

/// Runs an async test while no other test runs: for tests that use the whole machine, so that others would miss their
/// deadlines.
pub(crate) fn block_on_alone<F: Future>(test: F) -> F::Output {
    let _machine = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    run(Box::pin(test))
}

/// Runs a test. Its type is erased, here and in [`Backend`], because the runtime and hyper are compiled once for each
/// type of future: with hundreds of them, these tests took five minutes to compile.
fn run<T>(test: Pin<Box<dyn Future<Output = T> + '_>>) -> T {
    // In some tests this process holds both ends of thousands of connections.
    static FILES: Once = Once::new();
    FILES.call_once(|| {
        let limit = getrlimit(rustix::process::Resource::Nofile);
        let raised = Rlimit { current: limit.maximum, ..limit };
        setrlimit(rustix::process::Resource::Nofile, raised).expect("the soft limit may be the hard one");
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(PATIENCE, test).await.expect("the test is not over in time") })
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE / 2;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A data plane, and the revision that it serves.
pub(crate) struct Harness {
    pub(crate) proxy: Arc<Proxy>,
    types: Registry,
    snapshot: Snapshot,
}

impl Harness {
    /// Starts a data plane with one listener `http` on a port of its own, and two workers.
    pub(crate) fn start(document: &str) -> Self {
        Self::with_log(document, None)
    }

    pub(crate) fn with_log(document: &str, access_log: Option<access_log::Sender>) -> Self {
        Self::with(document, |settings| settings.access_log = access_log)
    }

    /// Starts a data plane with at most `max_requests` concurrent requests per worker.
    pub(crate) fn with_limit(
        document: &str,
        access_log: Option<access_log::Sender>,
        max_requests: u32,
    ) -> Self {
        Self::with(document, |settings| {
            settings.access_log = access_log;
            settings.max_requests = max_requests;
        })
    }

    /// Starts a data plane with other settings.
    pub(crate) fn with(document: &str, change: impl FnOnce(&mut Settings)) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener_overrides = BTreeMap::from([("http".to_owned(), any)]);
        let mut settings = Settings {
            types: builtin().clone(),
            blobs: Blobs::default(),
            workers: 2,
            listener_overrides,
            max_requests: 1000,
            max_queue_delay: Some(Duration::from_millis(250)),
            max_connections: u64::MAX,
            pipes: 16,
            inherited: Vec::new(),
            hands_over: false,
            access_log: None,
            zone: None,
            dns_servers: Vec::new(),
            metrics_routes: 4096,
        };
        change(&mut settings);
        let types = settings.types.clone();
        let proxy = Proxy::start(settings).unwrap();
        let mut harness = Self { proxy, types, snapshot: Snapshot::empty("test") };
        harness.apply(document).expect("the document can be served");
        harness
    }

    /// Serves `document` in place of the current one.
    pub(crate) fn apply(&mut self, document: &str) -> Result<(), Vec<Rejected>> {
        let candidate = self.candidate(document);
        tokio::task::block_in_place(|| self.proxy.apply(&candidate))?;
        self.snapshot = candidate.snapshot;
        Ok(())
    }

    /// `document` as the next revision. A listener `http` is added.
    pub(crate) fn candidate(&self, document: &str) -> Candidate {
        let mut after: BTreeMap<ResourceKey, Arc<Resource>> = BTreeMap::new();
        let listener = document::split("{kind: listener, name: http, address: '127.0.0.1:8080'}").unwrap();
        for entry in listener.into_iter().chain(document::split(document).expect("a document")) {
            let resource = Resource::parse(entry.kind, entry.spec, &self.types).expect("a resource");
            after.insert(resource.key().clone(), Arc::new(resource));
        }
        let mut changes = Vec::new();
        for before in self.snapshot.iter() {
            if !after.contains_key(before.key()) {
                changes.push(Change::Delete(before.key().clone()));
            }
        }
        for resource in after.into_values() {
            let same =
                self.snapshot.find(resource.key()).is_some_and(|it| it.version() == resource.version());
            if !same {
                changes.push(Change::Put(resource));
            }
        }
        let id = RevisionId { epoch: "test".into(), number: self.snapshot.id().number + 1 };
        Candidate { snapshot: self.snapshot.with(id, 0, changes.clone()), changes }
    }

    /// The address of the listener `http`.
    pub(crate) fn address(&self) -> SocketAddr {
        self.proxy.listeners()["http"]
    }

    /// The number of targets; a name is none before it is resolved.
    pub(crate) fn targets(&self) -> usize {
        self.proxy.counted(|_, compiled, _, _| {
            let upstreams = compiled.active.upstreams.iter();
            upstreams.map(|upstream| upstream.members.view().targets.len()).sum()
        })
    }

    /// How often a plugin has counted an outcome.
    pub(crate) fn outcome(&self, plugin: &str, outcome: &str) -> u64 {
        self.proxy.counted(|_, compiled, _, _| {
            let stats = compiled.plugin_stats().find(|stats| stats.name.as_str() == plugin).unwrap();
            stats.outcomes.read().find(|(name, _)| *name == outcome).unwrap().1
        })
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        Client::connect(self.address()).await.get(path).await
    }
}

/// A response that was read completely.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<http::HeaderMap>,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    pub(crate) async fn of(response: Response<Incoming>) -> Result<Self, hyper::Error> {
        let (parts, body) = response.into_parts();
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned();
        Ok(Self {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: collected.to_bytes(),
            trailers,
        })
    }
}

pub(crate) type AnyBody = BoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> AnyBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// The protocol of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Http1,
    Http2,
}

impl Wire {
    pub(crate) const BOTH: [Self; 2] = [Self::Http1, Self::Http2];
}

/// A client with one connection.
pub(crate) enum Client {
    Http1(http1::SendRequest<AnyBody>),
    Http2(http2::SendRequest<AnyBody>),
}

impl Client {
    pub(crate) async fn speaking(wire: Wire, address: SocketAddr) -> Self {
        match wire {
            Wire::Http1 => Self::connect(address).await,
            Wire::Http2 => Self::connect_http2(address).await,
        }
    }

    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self::Http1(sender)
    }

    pub(crate) async fn connect_http2(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self::Http2(sender)
    }

    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.send(Request::get(path).body(full("")).unwrap()).await
    }

    pub(crate) async fn send(&mut self, request: Request<AnyBody>) -> Answer {
        Answer::of(self.start(request).await.expect("an answer")).await.expect("a whole answer")
    }

    /// Sends a request for a path, and returns once the response head has arrived.
    pub(crate) async fn start(
        &mut self,
        mut request: Request<AnyBody>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        match self {
            Self::Http1(sender) => {
                if !request.headers().contains_key("host") {
                    request.headers_mut().insert("host", "test.example".parse().unwrap());
                }
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Http2(sender) => {
                let host = request.headers_mut().remove("host");
                let host = host.as_ref().map_or("test.example", |host| host.to_str().unwrap());
                *request.uri_mut() = format!("http://{host}{}", request.uri()).parse().unwrap();
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

/// Sends `bytes` unchanged, and returns the response up to the proxy's close.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The proxy may answer, and close, before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer that is not reset");
    String::from_utf8(answer).unwrap()
}

/// A server behind the proxy.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Answering = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<Response<AnyBody>> + Send + Sync>;

impl Backend {
    /// Starts a backend that answers by `answer`, over HTTP/1.1.
    pub(crate) fn start<F>(answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<AnyBody>> + Send + 'static,
    {
        Self::speaking(Wire::Http1, answer)
    }

    /// Starts a backend that answers by `answer`, over `wire`.
    pub(crate) fn speaking<F>(
        wire: Wire,
        answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<AnyBody>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let connections = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&connections);
        let answer: Answering = Arc::new(move |request| Box::pin(answer(request)));
        tokio::spawn(accept(listener, counted, move |stream| serve(wire, stream, Arc::clone(&answer))));
        Self { address, connections }
    }

    /// Starts a backend that describes each request in its response: a JSON object with method, target, headers and
    /// body.
    pub(crate) fn echo() -> Self {
        Self::start(|request| async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let headers: Vec<_> = parts
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
                .collect();
            let told = serde_json::json!({
                "method": parts.method.as_str(),
                "target": parts.uri.to_string(),
                "headers": headers,
                "body": String::from_utf8_lossy(&body),
            });
            Response::new(full(told.to_string()))
        })
    }

    /// Starts a backend that answers every request with `text`.
    pub(crate) fn text(text: &'static str) -> Self {
        Self::start(move |_| async move { Response::new(full(text)) })
    }

    /// Starts a backend that serves each connection by `serve`, byte by byte.
    pub(crate) fn raw<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let connections = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&connections);
        let serve: Box<dyn Fn(TcpStream) -> BoxFuture<()> + Send> =
            Box::new(move |stream| Box::pin(serve(stream)));
        tokio::spawn(accept(listener, counted, move |stream| drop(tokio::spawn(serve(stream)))));
        Self { address, connections }
    }

    /// The number of connections that were made to it.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Counts the connections that arrive, and passes each to `serve`.
async fn accept(
    listener: tokio::net::TcpListener,
    connections: Arc<AtomicUsize>,
    serve: impl Fn(TcpStream) + Send,
) {
    while let Ok((stream, _)) = listener.accept().await {
        connections.fetch_add(1, Ordering::Relaxed);
        serve(stream);
    }
}

/// Serves HTTP on a connection.
fn serve(wire: Wire, stream: TcpStream, answer: Answering) {
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let io = TokioIo::new(stream);
    match wire {
        Wire::Http1 => {
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
        Wire::Http2 => {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(io, service));
        }
    }
}

/// Reads the head of a request.
pub(crate) async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return None,
        }
    }
    Some(String::from_utf8(head).unwrap())
}

/// An address on which nothing listens.
///
/// Its port is below those that the kernel picks, at port 0 or for a client: such a port could belong to another test
/// by the time that it is used. No address is returned twice.
pub(crate) fn nobody() -> SocketAddr {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap();
    loop {
        let port = fastrand::u16(10_000..32_000);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if given.insert(port) && TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// The same with a backend that speaks `wire`.
pub(crate) fn forward_over(wire: Wire, backend: SocketAddr) -> String {
    let protocol = match wire {
        Wire::Http1 => "http1",
        Wire::Http2 => "http2",
    };
    forward_to(backend).replace("{name: u, targets", &format!("{{name: u, protocol: {protocol}, targets"))
}

/// A document with one route that forwards everything to `backend`.
pub(crate) fn forward_to(backend: SocketAddr) -> String {
    format!(
        "
upstreams: [{{name: u, targets: [{{address: '{backend}'}}]}}]
routes: [{{name: all, match: {{paths: [{{prefix: /}}]}}, forward: {{upstreams: [{{name: u}}]}}}}]
"
    )
}
