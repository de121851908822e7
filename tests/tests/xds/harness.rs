//! The parts of the tests: control planes, proxies without a data path, and clients that speak raw xDS.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use serde_json::{Value, json};
use signalbox_config::{Change, Fingerprint, Purge, Resource, ResourceKey, Snapshot};
use signalbox_control_plane::auth::{Credentials, TokenFlags, TokenText};
use signalbox_control_plane::board::{Board, ProxyStatus, Sharing};
use signalbox_control_plane::metrics::Metrics;
use signalbox_control_plane::publish::Publisher;
use signalbox_control_plane::rollout::Rollouts;
use signalbox_control_plane::stats::Stats;
use signalbox_control_plane::store::{self, Role, Store};
use signalbox_control_plane::writer::{Author, Mode, Operation, Precondition, Prune, Rights, Writer};
use signalbox_control_plane::xds::{Limits, Turns, Xds, XdsTls};
use signalbox_plugin::Registry;
use signalbox_plugins::builtin;
use signalbox_proto::RESOURCE_TYPE_URL;
use signalbox_proto::envoy::config::core::v3::Node;
use signalbox_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use signalbox_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use signalbox_proto::google::rpc;
use signalbox_proto::signalbox::config::v1::{Resource as WireResource, Revision, resource::Kind};
use signalbox_proxy::source::{
    self, Answers, BlobDir, Candidate, ControlPlanes, CrashLoops, DataPlane, Rejected, ScopeTraffic, Source,
    StartError, Status, Tls, Traffic,
};
use signalbox_proxy::telemetry::{Scope, Series};
use signalbox_tests::Postgres;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

/// The token that a proxy presents here.
pub(crate) const TOKEN: &str = "a proxy's token";

/// How long anything may take before a test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A database for the length of a test.
pub(crate) enum Database {
    Sqlite(TempDir),
    Postgres(Box<Postgres>),
}

impl Database {
    /// A file, for one control plane.
    pub(crate) fn new() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    /// A server, for several.
    pub(crate) fn postgres() -> Self {
        Self::Postgres(Box::new(Postgres::new().unwrap()))
    }

    pub(crate) fn server(&mut self) -> &mut Postgres {
        match self {
            Self::Postgres(server) => server,
            Self::Sqlite(_) => panic!("it is a file"),
        }
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite(dir) => format!("sqlite://{}/signalbox.db", dir.path().display()),
            Self::Postgres(server) => server.url(),
        }
    }
}

/// A control plane without its admin API.
pub(crate) struct Plane {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) board: Arc<Board>,
    pub(crate) stats: Arc<Stats>,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) address: SocketAddr,
    pub(crate) open_streams: Box<dyn Fn() -> usize + Send + Sync>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) turns: Turns,
    writer: Writer,
    tasks: Vec<JoinHandle<()>>,
    /// The runtime of the server alone, so that it can end as with a crash.
    runtime: ServerRuntime,
    following: bool,
}

struct ServerRuntime(Option<Runtime>);

impl Drop for ServerRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// How a control plane is started.
pub(crate) struct Settings {
    /// Port 0 takes any.
    pub(crate) address: SocketAddr,
    /// True if it follows the writes of others from the start; else it lags until [`Plane::follow`].
    pub(crate) follow: bool,
    pub(crate) sharing: Sharing,
    pub(crate) tls: Option<XdsTls>,
    pub(crate) replica: &'static str,
    pub(crate) limits: Limits,
    pub(crate) types: Registry,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            address: ([127, 0, 0, 1], 0).into(),
            follow: true,
            sharing: Sharing::Alone,
            tls: None,
            replica: "replica-a",
            limits: Limits::default(),
            types: builtin().clone(),
        }
    }
}

impl Plane {
    pub(crate) async fn start(database: &Database) -> Self {
        Self::start_with(database, Settings::default()).await
    }

    pub(crate) async fn start_with(database: &Database, settings: Settings) -> Self {
        let store = store::open(&database.url()).await.unwrap();
        let metrics = Arc::new(Metrics::default());
        let publisher = Publisher::start(store.clone(), metrics.clone(), &settings.types).await.unwrap();
        let flags = TokenFlags::default();
        let credentials = Credentials::load(store.clone(), metrics.clone(), flags).await.unwrap();
        // Another control plane on the database may have made it.
        credentials.create("proxy", Role::Proxy, &TokenText(TOKEN.into())).await.unwrap();
        let board = Board::open(store.clone(), settings.replica, settings.sharing).await.unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.spawn(listen(settings.address)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let rollouts = Rollouts::new(store.clone(), publisher.clone(), board.clone(), metrics.clone());
        let stats = Stats::new(store.clone(), board.instance().clone(), settings.sharing);
        let xds = Xds::new(
            publisher.clone(),
            board.clone(),
            credentials.clone(),
            rollouts,
            stats.clone(),
            metrics,
            settings.limits,
        );
        let open_streams = xds.open_streams();
        let turns = xds.turns();
        let shutdown = CancellationToken::new();
        let serving = xds.serve(listener, settings.tls, shutdown.clone());
        let tasks = vec![
            runtime.spawn(serving),
            tokio::spawn(board.clone().run(shutdown.clone())),
            tokio::spawn(stats.clone().run(shutdown.clone())),
        ];
        let writer = Writer::new(publisher.clone());
        let mut plane = Self {
            store,
            publisher,
            board,
            stats,
            credentials,
            address,
            open_streams,
            shutdown,
            turns,
            writer,
            tasks,
            runtime: ServerRuntime(Some(runtime)),
            following: false,
        };
        if settings.follow {
            plane.follow();
        }
        plane
    }

    pub(crate) fn follow(&mut self) {
        if !std::mem::replace(&mut self.following, true) {
            self.tasks.push(tokio::spawn(self.publisher.clone().follow(self.shutdown.clone())));
            self.tasks.push(tokio::spawn(self.credentials.clone().follow(self.shutdown.clone())));
        }
    }

    /// Ends it in order.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
    }

    /// Ends it as a crash would: nothing is said to anyone.
    pub(crate) fn kill(self) {
        for task in &self.tasks {
            task.abort();
        }
        drop(self.runtime);
    }

    pub(crate) async fn put(&self, key: &str, spec: Value) -> u64 {
        let operation = Operation::Put { key: key.parse().unwrap(), spec, precondition: Precondition::None };
        self.write(operation).await
    }

    pub(crate) async fn delete(&self, key: &str) -> u64 {
        self.write(Operation::Delete { key: key.parse().unwrap(), precondition: Precondition::None }).await
    }

    /// A declarative document, all of it in one revision.
    pub(crate) async fn apply(&self, document: &str) -> u64 {
        let entries = signalbox_config::document::split(document).unwrap();
        self.write(Operation::apply(entries, Prune::Keep, &self.publisher.current()).unwrap()).await
    }

    /// The outcome of these three does not matter: the set may be so already, or another write may come first.
    pub(crate) async fn try_put(&self, key: &str, spec: Value) {
        let operation = Operation::Put { key: key.parse().unwrap(), spec, precondition: Precondition::None };
        let _ = self.writer.write(author(), operation, Mode::Store).await;
    }

    pub(crate) async fn try_delete(&self, key: &str) {
        let operation = Operation::Delete { key: key.parse().unwrap(), precondition: Precondition::None };
        let _ = self.writer.write(author(), operation, Mode::Store).await;
    }

    pub(crate) async fn try_apply(&self, document: &str) {
        let entries = signalbox_config::document::split(document).unwrap();
        let operation = Operation::apply(entries, Prune::Keep, &self.publisher.current()).unwrap();
        let _ = self.writer.write(author(), operation, Mode::Store).await;
    }

    /// The revision it made.
    pub(crate) async fn write(&self, operation: Operation) -> u64 {
        self.writer
            .write(author(), operation, Mode::Store)
            .await
            .unwrap()
            .revision
            .expect("something changes")
    }

    pub(crate) fn head(&self) -> u64 {
        self.publisher.current().snapshot.id().number
    }

    pub(crate) fn proxy(&self, id: &str) -> ProxyStatus {
        self.board.proxy(id).unwrap_or_else(|| panic!("{id} is not known"))
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn author() -> Author {
    Author {
        name: "test".into(),
        message: String::new(),
        action: "test".into(),
        urgent: None,
        rights: Rights::Administrator,
    }
}

async fn listen(address: SocketAddr) -> TcpListener {
    let started = std::time::Instant::now();
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            // One that was killed may not have let go of it yet.
            Err(error) => assert!(started.elapsed() < DEADLINE, "{address}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A route whose answer's body is `body`.
pub(crate) fn route(body: &str) -> Value {
    json!({"match": {"paths": [{"prefix": "/"}]}, "respond": {"status": 200, "body": body}})
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "it did not come to this: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until no thread of a proxy that has ended holds the lock of its directory: another one could not start.
async fn until_free(data_dir: &Path) {
    if let Ok(lock) = std::fs::File::open(data_dir.join("lock")) {
        eventually("its directory is free", || lock.try_lock().is_ok()).await;
    }
}

/// Waits for `future`, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("it did not come to this: {what}"))
}

/// A client that says what a test wants.
pub(crate) struct Raw {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    probes: usize,
}

impl Raw {
    /// Opens a stream as `id`, and says nothing yet.
    pub(crate) async fn connect(plane: &Plane) -> Self {
        Self::with_token(plane, TOKEN).await.unwrap()
    }

    pub(crate) async fn with_token(plane: &Plane, token: &str) -> Result<Self, tonic::Status> {
        let channel = Endpoint::from_shared(plane.url()).unwrap().connect().await.unwrap();
        Self::over(channel, token).await
    }

    pub(crate) async fn over(channel: Channel, token: &str) -> Result<Self, tonic::Status> {
        Self::offering(channel, token, false).await
    }

    /// Opens a stream that may be compressed, if `zstd`.
    pub(crate) async fn offering(channel: Channel, token: &str, zstd: bool) -> Result<Self, tonic::Status> {
        let (requests, outbound) = mpsc::channel(64);
        let mut request = Request::new(ReceiverStream::new(outbound));
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        if zstd {
            client = client.accept_compressed(CompressionEncoding::Zstd);
        }
        let responses = client.delta_aggregated_resources(request).await?.into_inner();
        Ok(Self { requests, responses, probes: 0 })
    }

    /// Opens a stream as `id`, and subscribes to everything. `presented` is its marker's version.
    pub(crate) async fn open(plane: &Plane, id: &str, presented: Option<&str>) -> Self {
        let mut raw = Self::connect(plane).await;
        raw.send(first_request(id, presented)).await;
        raw
    }

    pub(crate) async fn send(&mut self, request: DeltaDiscoveryRequest) {
        soon("the request is taken", self.requests.send(request)).await.unwrap();
    }

    pub(crate) async fn ack(&mut self, response: &DeltaDiscoveryResponse) {
        self.answer(&response.nonce, None).await;
    }

    pub(crate) async fn nack(&mut self, response: &DeltaDiscoveryResponse, message: &str) {
        let error = rpc::Status { code: 3, message: message.to_owned(), details: Vec::new() };
        self.answer(&response.nonce, Some(error)).await;
    }

    pub(crate) async fn answer(&mut self, nonce: &str, error_detail: Option<rpc::Status>) {
        let request = DeltaDiscoveryRequest {
            type_url: RESOURCE_TYPE_URL.to_owned(),
            response_nonce: nonce.to_owned(),
            error_detail,
            ..Default::default()
        };
        self.send(request).await;
    }

    pub(crate) async fn receive(&mut self) -> DeltaDiscoveryResponse {
        self.try_receive().await.unwrap().expect("the stream is open")
    }

    pub(crate) async fn try_receive(&mut self) -> Result<Option<DeltaDiscoveryResponse>, tonic::Status> {
        soon("a response comes", self.responses.message()).await
    }

    /// The parts of a revision, the marker in the last.
    pub(crate) async fn receive_revision(&mut self) -> Received {
        let mut received = Received::default();
        loop {
            let response = self.receive().await;
            received.removed.extend(response.removed_resources.iter().cloned());
            let mut marker = None;
            for resource in &response.resources {
                match marker_of(resource.resource.as_ref().unwrap().value.clone()) {
                    Some(found) => marker = Some(found),
                    None => received.put.push(resource.name.clone()),
                }
            }
            received.parts += 1;
            if let Some(marker) = marker {
                received.marker = marker;
                received.last = response;
                return received;
            }
        }
    }

    /// Shows that nothing was to be sent: a type that is subscribed now is answered, and nothing comes before.
    pub(crate) async fn expect_quiet(&mut self) {
        self.probes += 1;
        // Sorts behind, and is sent behind, what there is of ours.
        let type_url = format!("type.googleapis.com/zz.Probe{}", self.probes);
        self.send(DeltaDiscoveryRequest { type_url: type_url.clone(), ..Default::default() }).await;
        let response = self.receive().await;
        assert_eq!(response.type_url, type_url, "nothing else was to be sent: {response:?}");
        assert!(response.resources.is_empty());
    }
}

/// Passes one connection on to a control plane, and counts the bytes that come back.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    received: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::new(AtomicUsize::new(0));
        let counter = received.clone();
        let task = tokio::spawn(async move {
            let (near, _) = listener.accept().await.unwrap();
            let far = tokio::net::TcpStream::connect(target).await.unwrap();
            let (mut from_near, mut to_near) = near.into_split();
            let (mut from_far, mut to_far) = far.into_split();
            let forward = tokio::io::copy(&mut from_near, &mut to_far);
            let back = async {
                let mut buffer = vec![0; 16 << 10];
                while let Ok(read @ 1..) = from_far.read(&mut buffer).await {
                    counter.fetch_add(read, Ordering::Relaxed);
                    if to_near.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
            };
            tokio::join!(forward, back).0.ok();
        });
        Self { address, received, task }
    }

    /// Bytes that the control plane has sent.
    pub(crate) fn received(&self) -> usize {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A revision as it came.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) put: Vec<String>,
    pub(crate) removed: Vec<String>,
    pub(crate) marker: Revision,
    pub(crate) parts: usize,
    pub(crate) last: DeltaDiscoveryResponse,
}

impl Received {
    /// The text that a client presents that has it.
    pub(crate) fn version(&self) -> String {
        self.last.resources.last().unwrap().version.clone()
    }
}

pub(crate) fn marker_of(bytes: bytes::Bytes) -> Option<Revision> {
    match WireResource::decode(bytes).unwrap().kind {
        Some(Kind::Revision(marker)) => Some(marker),
        _ => None,
    }
}

pub(crate) fn first_request(id: &str, presented: Option<&str>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node { id: id.to_owned(), ..Node::default() }),
        type_url: RESOURCE_TYPE_URL.to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        initial_resource_versions: presented
            .map(|version| (signalbox_proto::MARKER_NAME.to_owned(), version.to_owned()))
            .into_iter()
            .collect(),
        ..Default::default()
    }
}

/// A data plane that serves nobody, and notes what it is told.
#[derive(Default)]
pub(crate) struct Recorder {
    state: Mutex<Recorded>,
}

#[derive(Default)]
pub(crate) struct Recorded {
    /// The resources that result from applying the changes alone.
    pub(crate) resources: BTreeMap<ResourceKey, Arc<Resource>>,
    /// The revisions it applied, and of how many changes each.
    pub(crate) applied: Vec<(u64, usize)>,
    /// With what it refuses everything.
    pub(crate) refuse: Option<Vec<Rejected>>,
    /// The traffic that it reports.
    pub(crate) traffic: Vec<ScopeTraffic>,
    /// The purges that it carried out.
    pub(crate) purges: Vec<Purge>,
    /// How often it refused.
    pub(crate) refused: usize,
}

impl Recorder {
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Recorded) -> T) -> T {
        look(&mut self.state.lock().unwrap())
    }

    pub(crate) fn refuse(&self, reason: Option<&str>) {
        let refuse = reason.map(|message| {
            let key = Some("listener/http".parse().unwrap());
            vec![Rejected { key, field: "address".into(), message: message.into() }]
        });
        self.with(|recorded| recorded.refuse = refuse);
    }
}

impl DataPlane for Recorder {
    fn apply(&self, candidate: &Candidate) -> Result<(), Vec<Rejected>> {
        self.with(|recorded| {
            if let Some(reasons) = &recorded.refuse {
                recorded.refused += 1;
                return Err(reasons.clone());
            }
            for change in &candidate.changes {
                match change {
                    Change::Put(resource) => {
                        recorded.resources.insert(resource.key().clone(), resource.clone())
                    }
                    Change::Delete(key) => recorded.resources.remove(key),
                };
            }
            // The changes must lead to the snapshot. If they do not, this shows as a revision that is never applied.
            assert_eq!(content(recorded.resources.values()), content(candidate.snapshot.iter()));
            recorded.applied.push((candidate.snapshot.id().number, candidate.changes.len()));
            Ok(())
        })
    }

    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    fn answers(&self) -> Answers {
        Answers::default()
    }

    fn scope_traffic(&self) -> Vec<ScopeTraffic> {
        self.with(|recorded| recorded.traffic.clone())
    }

    fn purge(&self, purge: &Purge) {
        self.with(|recorded| recorded.purges.push(purge.clone()));
    }

    fn watch(&self, _: &[Scope]) {}

    fn series(&self) -> Vec<Series> {
        Vec::new()
    }

    fn listeners(&self) -> BTreeMap<String, SocketAddr> {
        BTreeMap::new()
    }
}

pub(crate) fn content<'a>(
    resources: impl IntoIterator<Item = &'a Arc<Resource>>,
) -> BTreeMap<ResourceKey, Fingerprint> {
    resources.into_iter().map(|resource| (resource.key().clone(), *resource.fingerprint())).collect()
}

/// Settings with which no end of a proxy counts as a crash.
fn never_crashing() -> CrashLoops {
    CrashLoops { crash_window: Duration::ZERO, proven_after: DEADLINE, retry: Arc::default() }
}

/// A proxy without a data path.
pub(crate) struct Proxy {
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) status: watch::Receiver<Status>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), StartError>>,
    data_dir: PathBuf,
}

impl Proxy {
    pub(crate) fn start(addresses: &[String], data_dir: &Path, id: &str) -> Self {
        Self::start_with(addresses, data_dir, id, Arc::default())
    }

    pub(crate) fn start_with(
        addresses: &[String],
        data_dir: &Path,
        id: &str,
        recorder: Arc<Recorder>,
    ) -> Self {
        Self::start_as(addresses, data_dir, id, Tls::default(), recorder, never_crashing())
    }

    pub(crate) fn start_tls(addresses: &[String], data_dir: &Path, id: &str, tls: Tls) -> Self {
        Self::start_as(addresses, data_dir, id, tls, Arc::default(), never_crashing())
    }

    /// Starts it with a crash window of this length, in which its end counts as a crash.
    pub(crate) fn start_watched(addresses: &[String], data_dir: &Path, crash_loops: CrashLoops) -> Self {
        Self::start_as(addresses, data_dir, "p", Tls::default(), Arc::default(), crash_loops)
    }

    fn start_as(
        addresses: &[String],
        data_dir: &Path,
        id: &str,
        tls: Tls,
        recorder: Arc<Recorder>,
        crash_loops: CrashLoops,
    ) -> Self {
        Self::start_knowing(builtin(), addresses, tls, data_dir, id, recorder, crash_loops)
    }

    /// Starts one that knows these plugin types.
    pub(crate) fn knowing(types: &Registry, url: &str, data_dir: &Path, id: &str) -> Self {
        let (addresses, recorder) = ([url.to_owned()], Arc::default());
        Self::start_knowing(types, &addresses, Tls::default(), data_dir, id, recorder, never_crashing())
    }

    fn start_knowing(
        types: &Registry,
        addresses: &[String],
        tls: Tls,
        data_dir: &Path,
        id: &str,
        recorder: Arc<Recorder>,
        crash_loops: CrashLoops,
    ) -> Self {
        let source = Source::ControlPlanes(Box::new(ControlPlanes {
            addresses: addresses.to_vec(),
            token: Some(TOKEN.to_owned()),
            tls,
            node_id: Some(id.to_owned()),
            fleet: "default".to_owned(),
            types: types.clone(),
            labels: BTreeMap::new(),
            admin_address: String::new(),
            data_dir: data_dir.to_owned(),
            blobs: Arc::new(BlobDir::new(data_dir.join("blobs"))),
            crash_loops,
        }));
        let (sender, status) = watch::channel(Status::default());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(source::run(source, recorder.clone(), sender, shutdown.clone()));
        Self { recorder, status, shutdown, task, data_dir: data_dir.to_owned() }
    }

    pub(crate) fn serves(&self) -> Option<u64> {
        self.status.borrow().serving.as_ref().map(|serving| serving.revision.number)
    }

    pub(crate) async fn until_serves(&self, number: u64) {
        let mut status = self.status.clone();
        let serves = |status: &Status| {
            status.serving.as_ref().is_some_and(|serving| serving.revision.number == number)
        };
        let waited = tokio::time::timeout(DEADLINE, status.wait_for(serves)).await;
        assert!(waited.is_ok(), "revision {number} is not served: {:?}", self.status.borrow());
    }

    /// True if its resources are those of `snapshot`.
    pub(crate) fn has(&self, snapshot: &Snapshot) -> bool {
        self.recorder.with(|recorded| content(recorded.resources.values()) == content(snapshot.iter()))
    }

    /// Ends it as a crash would.
    pub(crate) async fn kill(self) {
        // The thread that opens the directory would go on without the task.
        let mut status = self.status.clone();
        soon("it has begun", status.wait_for(|status| !status.node_id.is_empty())).await.unwrap();
        self.task.abort();
        assert!(soon("it is gone", self.task).await.unwrap_err().is_cancelled());
        until_free(&self.data_dir).await;
    }

    /// Ends it in order.
    pub(crate) async fn stop(self) -> Result<(), StartError> {
        self.shutdown.cancel();
        let ended = soon("the proxy ends", self.task).await.unwrap();
        until_free(&self.data_dir).await;
        ended
    }

    /// How it ended by itself.
    pub(crate) async fn ended(self) -> Result<(), StartError> {
        soon("the proxy ends", self.task).await.unwrap()
    }
}
