//! The xDS stream to a control plane, and the switch to another one when it ends.

mod reports;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use rustls::ClientConfig;
use signalbox_config::{Change, Snapshot, wire};
use signalbox_plugin::{PluginType, Registry};
use signalbox_process::ErrorChain;
use signalbox_process::tls::{ClientFiles, Reloading};
use signalbox_proto::envoy::config::core::v3::{Extension, Node};
use signalbox_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use signalbox_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use signalbox_proto::google::protobuf::Any;
use signalbox_proto::google::rpc;
use signalbox_proto::signalbox::config::v1::Rejection;
use signalbox_proto::{MARKER_NAME, PLUGIN_TYPES, PROCESS_HEADER, RESOURCE_TYPE_URL, RETRY_HEADER};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::codec::CompressionEncoding;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status as GrpcStatus};

use super::apply::{self, RefusedCandidate};
use super::authorize::authorize;
use super::blobs::{BlobDir, BlobFetcher};
use super::connect::{Connector, PING_AFTER, Progress};
use super::counts::Numbering;
use super::data_plane::{Candidate, DataPlane};
use super::guard::Guard;
use super::last_good::{Journal, Writer};
use super::open::{self, Opened};
use super::purges::CarriedOut;
use super::selector::Selector;
use super::settings::{ControlPlanes, Tls};
use super::staging::{self, Staging, Step};
use super::starts::{Origin, Start};
use super::stats::StatsLedger;
use super::status::{StartError, Status};

/// Serves the last good snapshot, and then the revisions of the control planes.
pub(super) async fn run(
    config: ControlPlanes,
    data_plane: Arc<dyn DataPlane>,
    status: watch::Sender<Status>,
    shutdown: CancellationToken,
) -> Result<(), StartError> {
    let tls = load_tls(&config.addresses, &config.tls)?;
    let endpoints = endpoints(&config.addresses, tls.as_ref())?;
    let token = config.token.as_deref().map(bearer).transpose()?;
    let (data_dir, given_id) = (config.data_dir.clone(), config.node_id.clone());
    let types = config.types.clone();
    let opened = tokio::task::spawn_blocking(move || open::open(data_dir, given_id, &types));
    let opened = opened
        .await
        .map_err(|error| StartError::Invalid(format!("opening the data directory failed: {error}")))??;
    let Opened { node_id, error, start, snapshot, journal, found } = opened;
    if let Some(reason) = error {
        let path = config.data_dir.display();
        tracing::error!(%path, reason, "the data directory cannot be written; going on without it");
        status.send_modify(|status| status.persistence.failed(reason));
    }
    status.send_modify(|status| status.node_id = node_id.clone());
    let _following = tls.map(|tls| {
        let status = status.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let follow = Arc::clone(&tls).follow(move |expiries| {
                status.send_modify(|status| status.certificates = expiries.to_vec());
            });
            follow.await;
        }))
    });
    let data_dir_error = |error| StartError::Io { path: config.data_dir.clone(), error };
    let guard = Guard::start(found, config.crash_loops.clone(), data_plane, status.clone());
    let guard = Arc::new(guard.map_err(data_dir_error)?);
    let writer = start_writer(journal, &status, &guard).map_err(data_dir_error)?;
    let guarding = tokio::spawn(Arc::clone(&guard).follow(writer.prover(), shutdown.clone()));
    let _guarding = AbortOnDropHandle::new(guarding);
    let client = Client {
        types: config.types.clone(),
        blobs: Arc::clone(&config.blobs),
        admin_address: config.admin_address.clone(),
        node: node(&config, &node_id),
        token,
        data_plane: guard.data_plane(Origin::ControlPlane),
        guard: Arc::clone(&guard),
        status,
        shutdown: shutdown.clone(),
        process: process(),
        numbering: Arc::new(Numbering::new()),
        purged: Arc::default(),
        stats: Arc::new(StatsLedger::new()),
        served: None,
        on_disk: snapshot,
        writer,
        drifts: 0,
    };
    let writer = client.run(&config, &endpoints, start).await;
    // Dropping the writer waits for the last write.
    let closing = tokio::task::spawn_blocking(move || {
        guard.close();
        drop(writer);
    });
    let _ = closing.await;
    Ok(())
}

/// Starts the thread that writes to the data directory.
fn start_writer(
    journal: Journal,
    status: &watch::Sender<Status>,
    guard: &Arc<Guard>,
) -> std::io::Result<Writer> {
    let (status, guard) = (status.clone(), Arc::clone(guard));
    let on_write = move |written: Result<u64, &std::io::Error>| match written {
        Ok(revision) => drop(status.send_if_modified(|status| status.persistence.written(revision))),
        Err(error) => status.send_modify(|status| status.persistence.failed(error.to_string())),
    };
    Writer::start(journal, Box::new(on_write), Box::new(move |exact| guard.on_proven(exact)))
}

struct Client {
    node: Node,
    types: Registry,
    blobs: Arc<BlobDir>,
    /// The address of the admin server, for reports.
    admin_address: String,
    token: Option<MetadataValue<Ascii>>,
    data_plane: Arc<dyn DataPlane>,
    guard: Arc<Guard>,
    status: watch::Sender<Status>,
    shutdown: CancellationToken,
    /// Identifies this run of the program, see [`PROCESS_HEADER`].
    process: MetadataValue<Ascii>,
    numbering: Arc<Numbering>,
    purged: Arc<CarriedOut>,
    stats: Arc<StatsLedger>,
    served: Option<Snapshot>,
    /// The snapshot from the data directory, until it is served, or another is.
    on_disk: Option<Snapshot>,
    writer: Writer,
    /// The number of consecutive drifts. Above 0, the next stream requests everything.
    drifts: u32,
}

/// The reason why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error("no connection")]
    Connect(#[source] tonic::transport::Error),
    /// The connection failed, with a description.
    #[error("{0}")]
    Connection(String),
    #[error("no answer within {} s: {waits_for}", OPEN_DEADLINE.as_secs())]
    Silent { waits_for: &'static str },
    #[error("it stopped reading")]
    Stuck,
    #[error("it ended the stream: {} ({:?})", .0.message(), .0.code())]
    Status(#[source] Box<GrpcStatus>),
    #[error("it sent nothing that can be served; serving the snapshot from disk")]
    NothingServed,
    #[error("it ended the stream")]
    Closed,
    #[error("the received changes do not add up to the revision; requesting everything")]
    Drift,
    #[error("shutting down")]
    Shutdown,
}

impl StreamEnd {
    /// True if it only reports that the transport failed, and not why.
    fn is_vague(&self) -> bool {
        match self {
            Self::Connect(_) => true,
            Self::Status(status) => matches!(status.code(), Code::Unknown | Code::Cancelled),
            _ => false,
        }
    }
}

/// The last log line about a control plane without a stream.
struct LoggedFailure {
    reason: String,
    is_vague: bool,
    at: Instant,
}

impl Client {
    /// Returns the writer, whose last write is still to be waited for.
    async fn run(mut self, config: &ControlPlanes, endpoints: &[ControlPlane], start: Start) -> Writer {
        if start != Start::AskFirst {
            self.serve_from_disk(start, config).await;
        }
        let mut backoff = Backoff::default();
        let mut selector = Selector::new(endpoints.len());
        let mut logged: HashMap<&str, LoggedFailure> = HashMap::new();
        while !self.shutdown.is_cancelled() {
            if self.asks_until().is_some_and(|until| Instant::now() >= until) {
                self.serve_from_disk(start, config).await;
            }
            let index = selector.next(Instant::now());
            let Some(endpoint) = endpoints.get(index) else { break };
            let address = endpoint.address.as_str();
            let mut heard = false;
            let began = Instant::now();
            let ended = self.stream(endpoint, &mut heard).await;
            self.status.send_modify(Status::disconnected);
            // A control plane whose streams always end soon, for instance because another proxy uses the same node id,
            // is not reconnected at once.
            if heard && began.elapsed() >= STABLE {
                backoff = Backoff::default();
                selector.lasted(index);
            }
            if !matches!(ended, StreamEnd::Drift) {
                selector.failed(index, Instant::now());
            }
            let delay = match &ended {
                StreamEnd::Shutdown => break,
                // Many proxies may have seen the same drift; and if a full resend does not help, frequent ones will
                // not.
                StreamEnd::Drift => jitter(FIRST_RESYNC, self.drifts.saturating_sub(1), LAST_RESYNC),
                // The next control plane is tried without waiting for this one.
                _ if selector.has_better_than(index, Instant::now()) => jitter(FIRST_RETRY, 0, FIRST_RETRY),
                StreamEnd::Status(status) => backoff.next().max(asked_delay(status)),
                _ => backoff.next(),
            };
            let reason = ErrorChain(&ended).to_string();
            let is_vague = ended.is_vague();
            // A repeated failure of the same control plane is logged only now and then. One failure may show while
            // reading, with its cause, or while writing, without it; a cause that is known is not replaced by a vaguer
            // one.
            let known = logged.get(address).is_some_and(|before| {
                (before.reason == reason || is_vague && !before.is_vague)
                    && before.at.elapsed() < LOG_INTERVAL
            });
            if heard || !known {
                tracing::warn!(
                    control_plane = address,
                    reason,
                    "no stream; the served revision stays, retrying"
                );
                logged.insert(address, LoggedFailure { reason, is_vague, at: Instant::now() });
            }
            tokio::select! {
                () = self.shutdown.cancelled() => {}
                () = tokio::time::sleep(delay) => {}
                () = sleep_until(self.asks_until()) => {}
            }
        }
        self.writer
    }

    /// The time at which the snapshot from disk is to be served, if it waits for what control planes send.
    fn asks_until(&self) -> Option<Instant> {
        let asks = self.on_disk.is_some() && self.served.is_none();
        asks.then(|| self.guard.ask_until())
    }

    /// Applies the snapshot from disk, unless one is served.
    async fn serve_from_disk(&mut self, start: Start, config: &ControlPlanes) {
        let Some(snapshot) = self.on_disk.take().filter(|_| self.served.is_none()) else { return };
        let what = match start {
            Start::Applied => "the last good snapshot",
            Start::Proven => {
                "the last proven snapshot, because the last applied one crashed the proxy or cannot be read"
            }
            Start::AskFirst => "the snapshot that the proxy crashed with, because there is no other",
        };
        let changes = snapshot.iter().cloned().map(Change::Put).collect();
        let origin = config.data_dir.display().to_string();
        let candidate = Candidate { snapshot, changes };
        let data_plane = self.guard.data_plane(Origin::Disk);
        match apply::apply(&data_plane, candidate, &self.status, &origin).await {
            Ok(applied) => {
                let (revision, resources) = (applied.snapshot.id(), applied.snapshot.len());
                if start == Start::Applied {
                    tracing::info!(%revision, resources, "serving {what}");
                } else {
                    tracing::warn!(%revision, resources, "serving {what}");
                }
                self.served = Some(applied.snapshot);
            }
            Err(refused) => {
                // The next revision is not a difference from the one on disk.
                self.writer.start_anew();
                for reason in refused.reasons {
                    tracing::error!(%reason, "{what} cannot be served");
                }
            }
        }
    }

    /// Runs one stream, from connecting to its end. Sets `heard` if any message arrived.
    async fn stream(&mut self, endpoint: &ControlPlane, heard: &mut bool) -> StreamEnd {
        let shutdown = self.shutdown.clone();
        let progress = Progress::new();
        let ended = tokio::select! {
            () = shutdown.cancelled() => return StreamEnd::Shutdown,
            ended = self.stream_until_end(endpoint, &progress, heard) => ended,
        };
        match (ended, progress.failure()) {
            // The layers above the connection only report that the request was cancelled.
            (StreamEnd::Connect(_) | StreamEnd::Status(_) | StreamEnd::Closed, Some(failure)) => {
                StreamEnd::Connection(failure)
            }
            (ended, _) => ended,
        }
    }

    async fn stream_until_end(
        &mut self,
        endpoint: &ControlPlane,
        progress: &Progress,
        heard: &mut bool,
    ) -> StreamEnd {
        let address = endpoint.address.as_str();
        let deadline = Instant::now() + OPEN_DEADLINE;
        let channel = match tokio::time::timeout_at(deadline, endpoint.connect(progress)).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return StreamEnd::Connect(error),
            Err(_) => return StreamEnd::Silent { waits_for: progress.waits_for() },
        };
        let (requests, outbound) = mpsc::channel(4);
        // The revision of another fleet is no basis for a difference.
        let of_this_fleet = |served: &&Snapshot| {
            let fleet = &served.assignment().fleet;
            fleet.is_empty() || **fleet == *self.node.cluster
        };
        let presented = self.served.as_ref().filter(of_this_fleet).filter(|_| self.drifts == 0);
        if requests.send(self.first_request(presented)).await.is_err() {
            return StreamEnd::Closed;
        }
        let mut request = Request::new(ReceiverStream::new(outbound));
        authorize(&mut request, self.token.as_ref());
        request.metadata_mut().insert(PROCESS_HEADER, self.process.clone());
        let mut client = AggregatedDiscoveryServiceClient::new(channel.clone())
            .max_decoding_message_size(MAX_RESPONSE)
            .accept_compressed(CompressionEncoding::Zstd);
        let opening = tokio::time::timeout_at(deadline, client.delta_aggregated_resources(request)).await;
        let mut responses = match opening {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return StreamEnd::Status(Box::new(status)),
            Err(_) => return StreamEnd::Silent { waits_for: progress.waits_for() },
        };
        let _reporting = self.start_reports(&channel);
        let staging = Staging::on(self.served.clone(), &self.types);
        let fetcher = BlobFetcher { channel, token: self.token.clone(), dir: Arc::clone(&self.blobs) };
        let mut session = Session { client: self, address, staging, requests, fetcher, refused: None };
        loop {
            let retry_at = session.refused.as_ref().map(|refused| refused.retry_at);
            let asks_until = session.client.asks_until();
            let message = tokio::select! {
                message = responses.message() => message,
                () = sleep_until(asks_until) => {
                    // The candidate that was refused until now comes before the snapshot from disk.
                    if let Err(ended) = session.retry().await {
                        return ended;
                    }
                    if session.client.served.is_none() {
                        return StreamEnd::NothingServed;
                    }
                    continue;
                }
                () = sleep_until(retry_at) => {
                    if let Err(ended) = session.retry().await {
                        return ended;
                    }
                    continue;
                }
            };
            let response = match message {
                Ok(Some(response)) => response,
                Ok(None) => return StreamEnd::Closed,
                Err(status) => return StreamEnd::Status(Box::new(status)),
            };
            if !std::mem::replace(heard, true) {
                tracing::info!(control_plane = address, "stream open");
                session.client.status.send_modify(|status| status.connected = true);
            }
            if let Err(ended) = session.on_response(response).await {
                // The stream is half-closed, and read to its end, so that the last messages arrive.
                drop(session);
                let until_closed = async { while let Ok(Some(_)) = responses.message().await {} };
                let _ = tokio::time::timeout(CLOSE_TIMEOUT, until_closed).await;
                return ended;
            }
        }
    }

    fn first_request(&self, presented: Option<&Snapshot>) -> DeltaDiscoveryRequest {
        let marker = |snapshot: &Snapshot| (MARKER_NAME.to_owned(), wire::marker_version(snapshot));
        DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: RESOURCE_TYPE_URL.to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            // There is one entry, however many resources there are.
            initial_resource_versions: presented.map(marker).into_iter().collect::<HashMap<_, _>>(),
            ..DeltaDiscoveryRequest::default()
        }
    }
}

/// An open stream.
struct Session<'c> {
    client: &'c mut Client,
    address: &'c str,
    staging: Staging,
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    fetcher: BlobFetcher,
    refused: Option<Retry>,
}

/// A complete candidate that the data plane could not apply. The control plane accepted it, so the obstacle is on this
/// host: a port that is taken, a file that is missing. It may pass.
struct Retry {
    candidate: Candidate,
    nonce: String,
    retry_at: Instant,
}

impl Session<'_> {
    async fn on_response(&mut self, response: DeltaDiscoveryResponse) -> Result<(), StreamEnd> {
        let nonce = response.nonce.clone();
        // The new response supersedes the refused candidate, or continues it.
        self.refused = None;
        match self.stage(response).await {
            // A partial revision is acknowledged with its last part.
            Step::More => Ok(()),
            Step::Served => self.ack(nonce).await,
            Step::Ready(candidate) => self.apply(*candidate, nonce).await,
            Step::Rejected(rejection) => {
                let reasons = staging::reasons(&rejection);
                for reason in &reasons {
                    tracing::error!(revision = rejection.revision, %reason, "revision rejected; the served revision stays");
                }
                apply::record_rejection(&self.client.status, &reasons);
                let drift = rejection.drift;
                self.nack(nonce, rejection).await?;
                if drift {
                    self.client.drifts = self.client.drifts.saturating_add(1);
                    return Err(StreamEnd::Drift);
                }
                Ok(())
            }
        }
    }

    /// Parses on a thread that may block: a large part takes milliseconds.
    async fn stage(&mut self, response: DeltaDiscoveryResponse) -> Step {
        let mut staging = std::mem::take(&mut self.staging);
        let guard = Arc::clone(&self.client.guard);
        let staged = tokio::task::spawn_blocking(move || {
            let step = staging.on_response(response);
            if let Step::Ready(candidate) = &step {
                guard.announce(&candidate.snapshot);
            }
            (staging, step)
        });
        match staged.await {
            Ok((staging, step)) => {
                self.staging = staging;
                step
            }
            Err(error) => {
                // The staged resources are lost, so only a new stream can bring them.
                self.staging = Staging::on(self.client.served.clone(), &self.client.types);
                let message = format!("reading the response failed: {error}");
                let errors = vec![signalbox_proto::signalbox::config::v1::ResourceError {
                    message,
                    ..Default::default()
                }];
                Step::Rejected(Rejection { revision: 0, errors, drift: true })
            }
        }
    }

    async fn apply(&mut self, candidate: Candidate, nonce: String) -> Result<(), StreamEnd> {
        let revision = candidate.snapshot.id().clone();
        match self.try_candidate(candidate).await {
            Ok(applied) => self.on_applied(applied, nonce).await,
            Err(refused) => {
                for reason in &refused.reasons {
                    tracing::error!(%revision, %reason, "revision rejected; the served revision stays");
                }
                let rejection = staging::rejection(revision.number, &refused.reasons);
                self.remember(refused, nonce.clone());
                self.nack(nonce, rejection).await
            }
        }
    }

    /// Fetches the files that a candidate needs, and applies it.
    async fn try_candidate(&mut self, candidate: Candidate) -> Result<Candidate, RefusedCandidate> {
        let client = &mut *self.client;
        if let Err(reasons) = self.fetcher.fetch_missing(&candidate).await {
            apply::record_rejection(&client.status, &reasons);
            return Err(RefusedCandidate { candidate: Some(candidate), reasons });
        }
        apply::apply(&client.data_plane, candidate, &client.status, self.address).await
    }

    fn remember(&mut self, refused: RefusedCandidate, nonce: String) {
        self.refused = refused.candidate.map(|candidate| Retry {
            candidate,
            nonce,
            retry_at: Instant::now() + RETRY_REFUSED,
        });
    }

    /// Tries the refused candidate again, and acknowledges it late on success.
    async fn retry(&mut self) -> Result<(), StreamEnd> {
        let Some(Retry { candidate, nonce, .. }) = self.refused.take() else { return Ok(()) };
        match self.try_candidate(candidate).await {
            Ok(applied) => self.on_applied(applied, nonce).await,
            Err(refused) => {
                self.remember(refused, nonce);
                Ok(())
            }
        }
    }

    async fn on_applied(&mut self, applied: Candidate, nonce: String) -> Result<(), StreamEnd> {
        let Candidate { snapshot, changes } = applied;
        tracing::info!(revision = %snapshot.id(), changes = changes.len(), resources = snapshot.len(), "revision applied");
        self.staging.serve(snapshot.clone());
        self.client.served = Some(snapshot.clone());
        self.client.drifts = 0;
        let acked = self.ack(nonce).await;
        // The write follows the ACK, which reports what is served and not what is on disk.
        self.client.writer.enqueue(snapshot.clone(), &changes);
        self.fetcher.delete_unused(&snapshot, &changes).await;
        acked
    }

    async fn ack(&self, nonce: String) -> Result<(), StreamEnd> {
        self.answer(nonce, None).await
    }

    async fn nack(&self, nonce: String, rejection: Rejection) -> Result<(), StreamEnd> {
        let first = rejection.errors.first();
        let message = first.map(|error| error.message.clone()).unwrap_or_default();
        let detail = Any {
            type_url: "type.googleapis.com/signalbox.config.v1.Rejection".to_owned(),
            value: rejection.encode_to_vec().into(),
        };
        let error = rpc::Status { code: tonic::Code::InvalidArgument as i32, message, details: vec![detail] };
        self.answer(nonce, Some(error)).await
    }

    async fn answer(&self, nonce: String, error_detail: Option<rpc::Status>) -> Result<(), StreamEnd> {
        let request = DeltaDiscoveryRequest {
            type_url: RESOURCE_TYPE_URL.to_owned(),
            response_nonce: nonce,
            error_detail,
            ..DeltaDiscoveryRequest::default()
        };
        match tokio::time::timeout(SEND_TIMEOUT, self.requests.send(request)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(StreamEnd::Closed),
            Err(_) => Err(StreamEnd::Stuck),
        }
    }
}

/// A stream that lasted this long did not fail for a permanent reason.
const STABLE: Duration = Duration::from_secs(5);

/// Full jitter: a random delay up to a limit that doubles.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let delay = jitter(FIRST_RETRY, self.failures, LAST_RETRY);
        self.failures = self.failures.saturating_add(1);
        delay
    }
}

/// The delay that a control plane without room asks for.
fn asked_delay(status: &GrpcStatus) -> Duration {
    let asked = status.metadata().get(RETRY_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
    asked
        .filter(|_| status.code() == Code::ResourceExhausted)
        .map_or(Duration::ZERO, |millis| Duration::from_millis(millis).min(LONGEST_ASKED))
}

/// A random delay up to `first`, doubled `doublings` times, but at most up to `last`.
fn jitter(first: Duration, doublings: u32, last: Duration) -> Duration {
    first.saturating_mul(1 << doublings.min(16)).min(last).mul_f64(fastrand::f64())
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn node(config: &ControlPlanes, id: &str) -> Node {
    let label = |(key, value): (&String, &String)| {
        let kind = Some(prost_types::value::Kind::StringValue(value.clone()));
        (key.clone(), prost_types::Value { kind })
    };
    Node {
        id: id.to_owned(),
        cluster: config.fleet.clone(),
        metadata: Some(prost_types::Struct { fields: config.labels.iter().map(label).collect() }),
        user_agent_name: "signalbox-proxy".to_owned(),
        user_agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: config.types.types().iter().map(extension).collect(),
    }
}

/// A plugin type, as a control plane is told of it.
fn extension(plugin_type: &PluginType) -> Extension {
    Extension { name: plugin_type.name.to_owned(), category: PLUGIN_TYPES.to_owned() }
}

/// One of the control planes.
#[derive(Debug)]
struct ControlPlane {
    address: String,
    endpoint: Endpoint,
    /// The TLS settings for `https://`.
    tls: Option<Arc<Reloading<ClientConfig>>>,
}

impl ControlPlane {
    async fn connect(&self, progress: &Progress) -> Result<Channel, tonic::transport::Error> {
        let connector = Connector { tls: self.tls.clone(), progress: progress.clone() };
        self.endpoint.connect_with_connector(connector).await
    }
}

fn endpoints(
    addresses: &[String],
    tls: Option<&Arc<Reloading<ClientConfig>>>,
) -> Result<Vec<ControlPlane>, StartError> {
    if addresses.is_empty() {
        return Err(StartError::Invalid("no control plane is given".to_owned()));
    }
    addresses.iter().map(|address| endpoint(address, tls)).collect()
}

fn endpoint(address: &str, tls: Option<&Arc<Reloading<ClientConfig>>>) -> Result<ControlPlane, StartError> {
    let invalid = |reason: &dyn fmt::Display| {
        StartError::Invalid(format!(
            "control plane {address:?} is not http://HOST:PORT or https://HOST:PORT: {reason}"
        ))
    };
    let secure = address.strip_prefix("https://");
    let rest = secure.or_else(|| address.strip_prefix("http://"));
    let rest = rest.ok_or_else(|| invalid(&"it has neither scheme"))?;
    // The connector does TLS itself, because its files are reloaded.
    let endpoint = Endpoint::from_shared(format!("http://{rest}"))
        .map_err(|error| invalid(&ErrorChain(&error).to_string()))?
        .http2_keep_alive_interval(PING_AFTER)
        // Silence ends a connection, and not a late answer: see `process::liveness`.
        .keep_alive_timeout(NO_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(ControlPlane { address: address.to_owned(), endpoint, tls: tls.filter(|_| secure.is_some()).cloned() })
}

/// Reads the certificates for `https://` control planes. Files that would be used for no control plane are an error,
/// too: the operator who configures them believes that the connection is encrypted.
fn load_tls(addresses: &[String], tls: &Tls) -> Result<Option<Arc<Reloading<ClientConfig>>>, StartError> {
    if !addresses.iter().any(|address| address.starts_with("https://")) {
        let flag = match tls {
            Tls { ca: Some(_), .. } => "--tls-ca",
            Tls { identity: Some(_), .. } => "--tls-cert",
            Tls { .. } => return Ok(None),
        };
        let text =
            format!("{flag} is given, but every control plane is http://: use https://, or leave it out");
        return Err(StartError::Invalid(text));
    }
    let Some(ca) = &tls.ca else {
        return Err(StartError::Invalid("an https:// control plane needs --tls-ca".to_owned()));
    };
    let identity = tls.identity.clone().map(|(certificate, key)| ("client", certificate, key));
    let files = ClientFiles { ca: ("control_plane_ca", ca.clone()), identity, alpn: b"h2" };
    Reloading::client(files).map(Some).map_err(StartError::Tls)
}

fn process() -> MetadataValue<Ascii> {
    let id = uuid::Uuid::new_v4().simple().to_string();
    // Hexadecimal digits are always a valid header value.
    id.parse().unwrap_or_else(|_| MetadataValue::from_static("0"))
}

fn bearer(token: &str) -> Result<MetadataValue<Ascii>, StartError> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
        .parse()
        .map_err(|_| StartError::Invalid("the token has characters that no header can have".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Longer than any connection.
const NO_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// The deadline for TCP, TLS, HTTP/2 and the first response together.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);

/// How often the same failure of the same control plane is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

const SEND_TIMEOUT: Duration = Duration::from_secs(10);

const FIRST_RETRY: Duration = Duration::from_millis(100);

const LAST_RETRY: Duration = Duration::from_secs(5);

/// A control plane may ask for no longer delay.
const LONGEST_ASKED: Duration = Duration::from_secs(60);

const FIRST_RESYNC: Duration = Duration::from_secs(1);

const LAST_RESYNC: Duration = Duration::from_secs(60);

const RETRY_REFUSED: Duration = Duration::from_secs(5);

/// A part holds at most a mebibyte, plus one more resource.
const MAX_RESPONSE: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_spread_and_bounded() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..1000).map(|_| backoff.next()).collect();
        assert!(delays[0] <= FIRST_RETRY);
        assert!(delays.iter().all(|delay| *delay <= LAST_RETRY));
        let late = &delays[10..];
        assert!(late.iter().any(|delay| *delay < LAST_RETRY / 4), "any time up to the limit, not the limit");
        assert!(late.iter().any(|delay| *delay > LAST_RETRY / 2));
    }

    #[test]
    fn a_control_plane_without_room_says_when_to_come_back() {
        let with = |mut status: GrpcStatus, hint: &'static str| {
            status.metadata_mut().insert(RETRY_HEADER, MetadataValue::from_static(hint));
            asked_delay(&status)
        };
        let full = || GrpcStatus::resource_exhausted("full");
        assert_eq!(asked_delay(&full()), Duration::ZERO);
        assert_eq!(with(full(), "7000"), Duration::from_secs(7));
        assert_eq!(with(full(), "99999999"), LONGEST_ASKED);
        assert_eq!(with(full(), "-1"), Duration::ZERO);
        assert_eq!(with(GrpcStatus::unavailable("it ends"), "7000"), Duration::ZERO);
    }

    #[test]
    fn an_address_that_is_none_is_named() {
        for bad in ["", "not a url", "127.0.0.1:9081", "http://a b", "ftp://a:1"] {
            let error = endpoints(&[bad.to_owned()], None).unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
        assert!(endpoints(&[], None).is_err());
    }

    #[test]
    fn tls_flags_that_contradict_the_addresses_are_refused() {
        let (http, https) = ("http://a:1".to_owned(), "https://a:1".to_owned());
        let with_ca = Tls { ca: Some("ca.pem".into()), identity: None };
        let with_identity = Tls { ca: None, identity: Some(("a.pem".into(), "a.key".into())) };
        for (addresses, tls, flag) in [
            (vec![http.clone()], &with_ca, "--tls-ca"),
            (vec![http.clone(), http.clone()], &with_identity, "--tls-cert"),
            (vec![https.clone()], &Tls::default(), "--tls-ca"),
            (vec![http, https], &with_identity, "--tls-ca"),
        ] {
            let error = load_tls(&addresses, tls).unwrap_err();
            assert!(matches!(&error, StartError::Invalid(text) if text.contains(flag)), "{error}");
        }
    }
}
