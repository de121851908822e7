//! The stream to a control plane, and another one when that ends.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use signalbox_config::{Change, Snapshot, wire};
use signalbox_proto::envoy::config::core::v3::Node;
use signalbox_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use signalbox_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use signalbox_proto::google::protobuf::Any;
use signalbox_proto::google::rpc;
use signalbox_proto::signalbox::config::v1::Rejection;
use signalbox_proto::{MARKER_NAME, RESOURCE_TYPE_URL};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status as GrpcStatus};

use super::apply::{self, Refused};
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
    let endpoints = endpoints(&config.addresses, &config.tls)?;
    let token = config.token.as_deref().map(bearer).transpose()?;
    let data_dir = config.data_dir.clone();
    let given_id = config.node_id.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let dir = DataDir::open(data_dir)?;
        let node_id = given_id.map_or_else(|| dir.node_id(), Ok)?;
        let (snapshot, journal) = dir.load();
        Ok((node_id, snapshot, journal))
    });
    let (node_id, last_good, journal) = opened
        .await
        .map_err(|error| StartError::Invalid(format!("opening the data directory failed: {error}")))??;
    status.send_modify(|status| status.node_id = node_id.clone());
    let client = Client {
        node: node(&config, &node_id),
        token,
        data_plane,
        status,
        shutdown: shutdown.clone(),
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
    #[error("it does not answer")]
    Silent,
    #[error("it ended the stream: {} ({:?})", .0.message(), .0.code())]
    Status(#[source] Box<GrpcStatus>),
    #[error("it ended the stream")]
    Closed,
    #[error("what it sent does not add up to its revision; asking for everything")]
    Drift,
    #[error("shutting down")]
    Shutdown,
}

impl Client {
    async fn run(
        mut self,
        config: &ControlPlanes,
        endpoints: &[Endpoint],
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
        self.writer = Some(Writer::start(journal).map_err(|error| StartError::Io { path, error })?);
        let mut backoff = Backoff::default();
        let mut next = fastrand::usize(..endpoints.len().max(1));
        let mut told = String::new();
        while !self.shutdown.is_cancelled() {
            let Some(endpoint) = endpoints.get(next % endpoints.len().max(1)) else { break };
            let address = config.addresses.get(next % endpoints.len().max(1)).map_or("", String::as_str);
            let mut heard = false;
            let began = Instant::now();
            let ended = self.stream(endpoint, address, &mut heard).await;
            self.status.send_modify(|status| status.connected = false);
            // One that always ends soon, because another proxy uses this one's id or for whatever reason, is not asked for at once.
            if heard && began.elapsed() >= STABLE {
                backoff = Backoff::default();
            }
            let delay = match &ended {
                Ended::Shutdown => break,
                // Many proxies may have noticed the same; and if everything does not help, asking often will not.
                Ended::Drift => jitter(FIRST_RESYNC, self.drifts.saturating_sub(1), LAST_RESYNC),
                _ => backoff.next(),
            };
            let text = chain(&ended);
            if heard || text != told {
                tracing::warn!(
                    control_plane = address,
                    reason = text,
                    "no stream; what was served last stays, trying on"
                );
                told = text;
            }
            if !matches!(ended, Ended::Drift) {
                next = next.wrapping_add(1);
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
    async fn stream(&mut self, endpoint: &Endpoint, address: &str, heard: &mut bool) -> Ended {
        let shutdown = self.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => Ended::Shutdown,
            ended = self.stream_until_end(endpoint, address, heard) => ended,
        }
    }

    async fn stream_until_end(&mut self, endpoint: &Endpoint, address: &str, heard: &mut bool) -> Ended {
        let channel = match endpoint.connect().await {
            Ok(channel) => channel,
            Err(error) => return Ended::Connect(error),
        };
        let (requests, outbound) = mpsc::channel(4);
        let presented = self.served.as_ref().filter(|_| self.drifts == 0);
        if requests.send(self.first_request(presented)).await.is_err() {
            return Ended::Closed;
        }
        let mut request = Request::new(ReceiverStream::new(outbound));
        authorize(&mut request, self.token.as_ref());
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel.clone()).max_decoding_message_size(MAX_RESPONSE);
        let opening = tokio::time::timeout(OPEN_TIMEOUT, client.delta_aggregated_resources(request)).await;
        let mut responses = match opening {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Ended::Status(Box::new(status)),
            Err(_) => return Ended::Silent,
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
            Err(_) => Err(Ended::Silent),
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

fn endpoints(addresses: &[String], tls: &Tls) -> Result<Vec<Endpoint>, StartError> {
    if addresses.is_empty() {
        return Err(StartError::Invalid("no control plane is given".to_owned()));
    }
    let tls = tls_config(addresses, tls)?;
    addresses.iter().map(|address| endpoint(address, tls.as_ref())).collect()
}

fn endpoint(address: &str, tls: Option<&ClientTlsConfig>) -> Result<Endpoint, StartError> {
    let invalid = |reason: &dyn fmt::Display| {
        StartError::Invalid(format!(
            "control plane {address:?} is not http://HOST:PORT or https://HOST:PORT: {reason}"
        ))
    };
    if !address.starts_with("http://") && !address.starts_with("https://") {
        return Err(invalid(&"it has neither scheme"));
    }
    let invalid = |error: tonic::transport::Error| invalid(&chain(&error));
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(invalid)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true);
    match tls.filter(|_| address.starts_with("https://")) {
        Some(tls) => endpoint.tls_config(tls.clone()).map_err(invalid),
        None => Ok(endpoint),
    }
}

fn tls_config(addresses: &[String], tls: &Tls) -> Result<Option<ClientTlsConfig>, StartError> {
    if !addresses.iter().any(|address| address.starts_with("https://")) {
        return Ok(None);
    }
    let Some(ca) = &tls.ca else {
        return Err(StartError::Invalid("an https:// control plane needs --tls-ca".to_owned()));
    };
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
    if let Some((certificate, key)) = &tls.identity {
        config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(Some(config))
}

fn read(path: &Path) -> Result<Vec<u8>, StartError> {
    std::fs::read(path).map_err(|error| StartError::Io { path: path.to_owned(), error })
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

/// An error and its causes, for the one place that logs it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A control plane that is gone without a word is noticed after twice this.
const KEEPALIVE: Duration = Duration::from_secs(4);

const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

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
            let error = endpoints(&[bad.to_owned()], &Tls::default()).unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
        assert!(endpoints(&[], &Tls::default()).is_err());
    }
}
