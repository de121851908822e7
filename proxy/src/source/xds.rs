//! The stream to a control plane, and another one when that ends.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use rustls::ClientConfig;
use signalbox_config::{Change, Snapshot, wire};
use signalbox_process::tls::{ClientFiles, Reloading, chain};
use signalbox_proto::envoy::config::core::v3::Node;
use signalbox_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use signalbox_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use signalbox_proto::google::protobuf::Any;
use signalbox_proto::google::rpc;
use signalbox_proto::signalbox::config::v1::Rejection;
use signalbox_proto::{MARKER_NAME, PROCESS_HEADER, RESOURCE_TYPE_URL};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status as GrpcStatus};

use super::apply::{self, Refused};
use super::choice::Choice;
use super::connect::{Connector, Progress};
use super::last_good::{DataDir, Journal, Writer};
use super::report::Reporter;
use super::staging::{self, Staging, Step};
use super::{Candidate, ControlPlanes, DataPlane, StartError, Status, Tls};

/// Serves the last good snapshot, and then what the control planes send.
pub(super) async fn run(
    config: ControlPlanes,
    data_plane: Arc<dyn DataPlane>,
    status: watch::Sender<Status>,
    shutdown: CancellationToken,
) -> Result<(), StartError> {
    let tls = load_tls(&config.addresses, &config.tls)?;
    let endpoints = endpoints(&config.addresses, tls.as_ref())?;
    let token = config.token.as_deref().map(bearer).transpose()?;
    let data_dir = config.data_dir.clone();
    let given_id = config.node_id.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let mut dir = DataDir::open(data_dir)?;
        let node_id = given_id.unwrap_or_else(|| dir.node_id());
        let error = dir.error().map(ToString::to_string);
        let (snapshot, journal) = dir.load();
        Ok((node_id, error, snapshot, journal))
    });
    let (node_id, error, last_good, journal) = opened
        .await
        .map_err(|error| StartError::Invalid(format!("opening the data directory failed: {error}")))??;
    if let Some(reason) = error {
        let path = config.data_dir.display();
        tracing::error!(%path, reason, "the data directory cannot be written; going on without what it should keep");
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
    let client = Client {
        node: node(&config, &node_id),
        token,
        data_plane,
        status,
        shutdown: shutdown.clone(),
        process: process(),
        served: None,
        writer: None,
        drifts: 0,
    };
    client.run(&config, &endpoints, last_good, journal).await
}

struct Client {
    node: Node,
    token: Option<MetadataValue<Ascii>>,
    data_plane: Arc<dyn DataPlane>,
    status: watch::Sender<Status>,
    shutdown: CancellationToken,
    /// Tells this run of the program from others, see [`PROCESS_HEADER`].
    process: MetadataValue<Ascii>,
    served: Option<Snapshot>,
    writer: Option<Writer>,
    /// How often in a row what is served did not fit what was sent. Above 0, the next stream asks for everything.
    drifts: u32,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("no connection")]
    Connect(#[source] tonic::transport::Error),
    /// What is wrong with the connection, in words.
    #[error("{0}")]
    Connection(String),
    #[error("no answer within {} s: {waits_for}", OPEN_DEADLINE.as_secs())]
    Silent { waits_for: &'static str },
    #[error("it takes nothing more")]
    Stuck,
    #[error("it ended the stream: {} ({:?})", .0.message(), .0.code())]
    Status(#[source] Box<GrpcStatus>),
    #[error("it ended the stream")]
    Closed,
    #[error("what it sent does not add up to its revision; asking for everything")]
    Drift,
    #[error("shutting down")]
    Shutdown,
}

impl Ended {
    /// Whether it only says that the transport failed, and not why.
    fn is_vague(&self) -> bool {
        match self {
            Self::Connect(_) => true,
            Self::Status(status) => matches!(status.code(), Code::Unknown | Code::Cancelled),
            _ => false,
        }
    }
}

/// The last line of the log about a control plane without a stream.
struct Told {
    reason: String,
    is_vague: bool,
    at: Instant,
}

impl Client {
    async fn run(
        mut self,
        config: &ControlPlanes,
        endpoints: &[ControlPlane],
        last_good: Option<Snapshot>,
        mut journal: Journal,
    ) -> Result<(), StartError> {
        if let Some(snapshot) = last_good
            && !self.serve_last_good(snapshot, config).await
        {
            // What comes next is no difference from what is on disk.
            journal.start_anew();
        }
        let path = config.data_dir.clone();
        let status = self.status.clone();
        let told = move |error: Option<&std::io::Error>| match error {
            Some(error) => status.send_modify(|status| status.persistence.failed(error.to_string())),
            None => drop(status.send_if_modified(|status| status.persistence.failing.take().is_some())),
        };
        let writer = Writer::start(journal, Box::new(told));
        self.writer = Some(writer.map_err(|error| StartError::Io { path, error })?);
        let mut backoff = Backoff::default();
        let mut choice = Choice::new(endpoints.len());
        let mut told: HashMap<&str, Told> = HashMap::new();
        while !self.shutdown.is_cancelled() {
            let index = choice.next(Instant::now());
            let Some(endpoint) = endpoints.get(index) else { break };
            let address = endpoint.address.as_str();
            let mut heard = false;
            let began = Instant::now();
            let ended = self.stream(endpoint, &mut heard).await;
            self.status.send_modify(|status| status.connected = false);
            // One that always ends soon, because another proxy uses this one's id or for whatever reason, is not asked for at once.
            if heard && began.elapsed() >= STABLE {
                backoff = Backoff::default();
                choice.held(index);
            }
            if !matches!(ended, Ended::Drift) {
                choice.failed(index, Instant::now());
            }
            let delay = match &ended {
                Ended::Shutdown => break,
                // Many proxies may have noticed the same; and if everything does not help, asking often will not.
                Ended::Drift => jitter(FIRST_RESYNC, self.drifts.saturating_sub(1), LAST_RESYNC),
                // The others are not to wait for this one.
                _ if choice.has_better_than(index, Instant::now()) => jitter(FIRST_RETRY, 0, FIRST_RETRY),
                _ => backoff.next(),
            };
            let reason = chain(&ended);
            let is_vague = ended.is_vague();
            // The same of the same control plane again and again is logged now and then. One fault may be met while reading,
            // which tells what is wrong, or while writing, which does not: then what is known already is not told less well.
            let known = told.get(address).is_some_and(|before| {
                (before.reason == reason || is_vague && !before.is_vague) && before.at.elapsed() < TELL_AGAIN
            });
            if heard || !known {
                tracing::warn!(
                    control_plane = address,
                    reason,
                    "no stream; what was served last stays, trying on"
                );
                told.insert(address, Told { reason, is_vague, at: Instant::now() });
            }
            tokio::select! {
                () = self.shutdown.cancelled() => {}
                () = tokio::time::sleep(delay) => {}
            }
        }
        // Waits for the last write.
        let writer = self.writer.take();
        let _ = tokio::task::spawn_blocking(move || drop(writer)).await;
        Ok(())
    }

    /// Applies what was on disk; whether it is served now.
    async fn serve_last_good(&mut self, snapshot: Snapshot, config: &ControlPlanes) -> bool {
        let changes = snapshot.iter().cloned().map(Change::Put).collect();
        let origin = config.data_dir.display().to_string();
        let candidate = Candidate { snapshot, changes };
        match apply::apply(&self.data_plane, candidate, &self.status, &origin).await {
            Ok(applied) => {
                tracing::info!(revision = %applied.snapshot.id(), resources = applied.snapshot.len(), "serving the last good snapshot");
                self.served = Some(applied.snapshot);
                true
            }
            Err(refused) => {
                for reason in refused.reasons {
                    tracing::error!(%reason, "the last good snapshot cannot be served");
                }
                false
            }
        }
    }

    /// One stream, from connecting to its end. `heard` becomes whether anything came.
    async fn stream(&mut self, endpoint: &ControlPlane, heard: &mut bool) -> Ended {
        let shutdown = self.shutdown.clone();
        let progress = Progress::new();
        let ended = tokio::select! {
            () = shutdown.cancelled() => return Ended::Shutdown,
            ended = self.stream_until_end(endpoint, &progress, heard) => ended,
        };
        match (ended, progress.failure()) {
            // The layers above the connection only say that the request was cancelled.
            (Ended::Connect(_) | Ended::Status(_) | Ended::Closed, Some(failure)) => {
                Ended::Connection(failure)
            }
            (ended, _) => ended,
        }
    }

    async fn stream_until_end(
        &mut self,
        endpoint: &ControlPlane,
        progress: &Progress,
        heard: &mut bool,
    ) -> Ended {
        let address = endpoint.address.as_str();
        let deadline = Instant::now() + OPEN_DEADLINE;
        let channel = match tokio::time::timeout_at(deadline, endpoint.connect(progress)).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Ended::Connect(error),
            Err(_) => return Ended::Silent { waits_for: progress.waits_for() },
        };
        let (requests, outbound) = mpsc::channel(4);
        let presented = self.served.as_ref().filter(|_| self.drifts == 0);
        if requests.send(self.first_request(presented)).await.is_err() {
            return Ended::Closed;
        }
        let mut request = Request::new(ReceiverStream::new(outbound));
        authorize(&mut request, self.token.as_ref());
        request.metadata_mut().insert(PROCESS_HEADER, self.process.clone());
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel.clone()).max_decoding_message_size(MAX_RESPONSE);
        let opening = tokio::time::timeout_at(deadline, client.delta_aggregated_resources(request)).await;
        let mut responses = match opening {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Ended::Status(Box::new(status)),
            Err(_) => return Ended::Silent { waits_for: progress.waits_for() },
        };
        let reporter = Reporter {
            node_id: self.node.id.clone(),
            token: self.token.clone(),
            data_plane: self.data_plane.clone(),
            status: self.status.subscribe(),
        };
        let _reporting = AbortOnDropHandle::new(tokio::spawn(reporter.run(channel)));
        let mut session =
            Session { client: self, address, staging: Staging::default(), requests, refused: None };
        session.staging = Staging::on(session.client.served.clone());
        loop {
            let retry_at = session.refused.as_ref().map(|refused| refused.retry_at);
            let message = tokio::select! {
                message = responses.message() => message,
                () = sleep_until(retry_at) => {
                    if let Err(ended) = session.retry().await {
                        return ended;
                    }
                    continue;
                }
            };
            let response = match message {
                Ok(Some(response)) => response,
                Ok(None) => return Ended::Closed,
                Err(status) => return Ended::Status(Box::new(status)),
            };
            if !std::mem::replace(heard, true) {
                tracing::info!(control_plane = address, "stream open");
                session.client.status.send_modify(|status| status.connected = true);
            }
            if let Err(ended) = session.on_response(response).await {
                // Half closed, and read to its end: so that what was said last arrives.
                drop(session);
                let until_closed = async { while let Ok(Some(_)) = responses.message().await {} };
                let _ = tokio::time::timeout(CLOSE_TIMEOUT, until_closed).await;
                return ended;
            }
        }
    }

    fn first_request(&self, presented: Option<&Snapshot>) -> DeltaDiscoveryRequest {
        let marker = |snapshot: &Snapshot| {
            (MARKER_NAME.to_owned(), wire::marker_version(snapshot.id(), &snapshot.digest()))
        };
        DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: RESOURCE_TYPE_URL.to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            // One entry, however many resources there are.
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
    refused: Option<Retry>,
}

/// A candidate that was whole, and that the data plane could not apply. The control plane accepted it, so what is in
/// its way is this host: a port that is taken, a file that is missing. That may pass.
struct Retry {
    candidate: Candidate,
    nonce: String,
    retry_at: Instant,
}

impl Session<'_> {
    async fn on_response(&mut self, response: DeltaDiscoveryResponse) -> Result<(), Ended> {
        let nonce = response.nonce.clone();
        // Superseded by what comes now, or part of it.
        self.refused = None;
        match self.stage(response).await {
            // Answered with the last part.
            Step::More => Ok(()),
            Step::Served => self.ack(nonce).await,
            Step::Ready(candidate) => self.apply(*candidate, nonce).await,
            Step::Rejected(rejection) => {
                let reasons = staging::reasons(&rejection);
                for reason in &reasons {
                    tracing::error!(revision = rejection.revision, %reason, "revision rejected; what was served before stays");
                }
                apply::note(&self.client.status, &reasons);
                let drift = rejection.drift;
                self.nack(nonce, rejection).await?;
                if drift {
                    self.client.drifts = self.client.drifts.saturating_add(1);
                    return Err(Ended::Drift);
                }
                Ok(())
            }
        }
    }

    /// Parses on a thread that may block: a large part takes milliseconds.
    async fn stage(&mut self, response: DeltaDiscoveryResponse) -> Step {
        let mut staging = std::mem::take(&mut self.staging);
        let staged = tokio::task::spawn_blocking(move || {
            let step = staging.on_response(response);
            (staging, step)
        });
        match staged.await {
            Ok((staging, step)) => {
                self.staging = staging;
                step
            }
            Err(error) => {
                // What was staged is lost, so that only a new stream can bring it.
                self.staging = Staging::on(self.client.served.clone());
                let message = format!("reading what was sent failed: {error}");
                let errors = vec![signalbox_proto::signalbox::config::v1::ResourceError {
                    message,
                    ..Default::default()
                }];
                Step::Rejected(Rejection { revision: 0, errors, drift: true })
            }
        }
    }

    async fn apply(&mut self, candidate: Candidate, nonce: String) -> Result<(), Ended> {
        let revision = candidate.snapshot.id().clone();
        let client = &mut *self.client;
        match apply::apply(&client.data_plane, candidate, &client.status, self.address).await {
            Ok(applied) => self.on_applied(applied, nonce).await,
            Err(refused) => {
                for reason in &refused.reasons {
                    tracing::error!(%revision, %reason, "revision rejected; what was served before stays");
                }
                let rejection = staging::rejection(revision.number, &refused.reasons);
                self.remember(refused, nonce.clone());
                self.nack(nonce, rejection).await
            }
        }
    }

    fn remember(&mut self, refused: Refused, nonce: String) {
        self.refused = refused.candidate.map(|candidate| Retry {
            candidate,
            nonce,
            retry_at: Instant::now() + RETRY_REFUSED,
        });
    }

    /// Tries the refused candidate again, and acknowledges it late if it works now.
    async fn retry(&mut self) -> Result<(), Ended> {
        let Some(Retry { candidate, nonce, .. }) = self.refused.take() else { return Ok(()) };
        let client = &mut *self.client;
        match apply::apply(&client.data_plane, candidate, &client.status, self.address).await {
            Ok(applied) => self.on_applied(applied, nonce).await,
            Err(refused) => {
                self.remember(refused, nonce);
                Ok(())
            }
        }
    }

    async fn on_applied(&mut self, applied: Candidate, nonce: String) -> Result<(), Ended> {
        let Candidate { snapshot, changes } = applied;
        tracing::info!(revision = %snapshot.id(), changes = changes.len(), resources = snapshot.len(), "revision applied");
        self.staging.serve(snapshot.clone());
        self.client.served = Some(snapshot.clone());
        self.client.drifts = 0;
        let acked = self.ack(nonce).await;
        // After the ACK, which says what is served and not what is on disk.
        if let Some(writer) = &self.client.writer {
            writer.note(snapshot, &changes);
        }
        acked
    }

    async fn ack(&self, nonce: String) -> Result<(), Ended> {
        self.answer(nonce, None).await
    }

    async fn nack(&self, nonce: String, rejection: Rejection) -> Result<(), Ended> {
        let first = rejection.errors.first();
        let message = first.map(|error| error.message.clone()).unwrap_or_default();
        let detail = Any {
            type_url: "type.googleapis.com/signalbox.config.v1.Rejection".to_owned(),
            value: rejection.encode_to_vec().into(),
        };
        let error = rpc::Status { code: tonic::Code::InvalidArgument as i32, message, details: vec![detail] };
        self.answer(nonce, Some(error)).await
    }

    async fn answer(&self, nonce: String, error_detail: Option<rpc::Status>) -> Result<(), Ended> {
        let request = DeltaDiscoveryRequest {
            type_url: RESOURCE_TYPE_URL.to_owned(),
            response_nonce: nonce,
            error_detail,
            ..DeltaDiscoveryRequest::default()
        };
        match tokio::time::timeout(SEND_TIMEOUT, self.requests.send(request)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended::Closed),
            Err(_) => Err(Ended::Stuck),
        }
    }
}

/// A stream that lasted so long was not lost to what is wrong all the time.
const STABLE: Duration = Duration::from_secs(5);

/// Full jitter: any time up to a limit that doubles.
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

/// Any time up to `first`, doubled `doublings` times, but no more than `last`.
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
    }
}

/// One of the control planes.
#[derive(Debug)]
struct ControlPlane {
    address: String,
    endpoint: Endpoint,
    /// For `https://`.
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
    // The connector speaks TLS itself, because its files are re-read.
    let endpoint = Endpoint::from_shared(format!("http://{rest}"))
        .map_err(|error| invalid(&chain(&error)))?
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    Ok(ControlPlane { address: address.to_owned(), endpoint, tls: tls.filter(|_| secure.is_some()).cloned() })
}

/// Reads the certificates for `https://` control planes. Files that no control plane would be shown are an error, too:
/// whoever gives them believes that the connection is encrypted.
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
    // Hexadecimal digits always are a header's value.
    id.parse().unwrap_or_else(|_| MetadataValue::from_static("0"))
}

fn bearer(token: &str) -> Result<MetadataValue<Ascii>, StartError> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
        .parse()
        .map_err(|_| StartError::Invalid("the token has characters that no header can have".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

pub(super) fn authorize<T>(request: &mut Request<T>, token: Option<&MetadataValue<Ascii>>) {
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token.clone());
    }
}

/// A control plane that is gone without a word is noticed after twice this.
const KEEPALIVE: Duration = Duration::from_secs(4);

/// For TCP, TLS, HTTP/2 and the first answer together.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);

/// How often it is logged that the same is wrong with the same control plane.
const TELL_AGAIN: Duration = Duration::from_secs(60);

const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

const SEND_TIMEOUT: Duration = Duration::from_secs(10);

const FIRST_RETRY: Duration = Duration::from_millis(100);

const LAST_RETRY: Duration = Duration::from_secs(5);

const FIRST_RESYNC: Duration = Duration::from_secs(1);

const LAST_RESYNC: Duration = Duration::from_secs(60);

const RETRY_REFUSED: Duration = Duration::from_secs(5);

/// A part has at most a mebibyte and one resource more.
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
