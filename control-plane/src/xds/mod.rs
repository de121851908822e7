//! The gRPC server for proxies: delta ADS, and their reports.
//!
//! [`delta`] decides what a proxy is sent; [`stream`] moves it; [`set`] is what there is to send. Every proxy has a
//! cursor and no queue: what it is sent is computed when its stream can be written, so a slow one skips revisions.

mod accept;
pub mod delta;
mod node;
mod refusal;
mod report;
mod set;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use signalbox_process::tls::Reloading;
use signalbox_proto::PROCESS_HEADER;
use signalbox_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use signalbox_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use signalbox_proto::signalbox::report::v1::report_service_server::{ReportService, ReportServiceServer};
use signalbox_proto::signalbox::report::v1::{ProxyReport, ReportSummary};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::rustls::ServerConfig;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use crate::auth::Credentials;
use crate::board::{Board, Event};
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::store::{Role, StoredRole};
use refusal::Refusal;
use stream::{Peer, Shared};

/// The xDS server. That it has a [`Publisher`] means that this control plane has loaded the set: before, no proxy is
/// listened to.
pub struct Xds {
    shared: Arc<Shared>,
}

/// TLS for the proxies' connections: the server's certificate, and who may have signed the proxies' certificates.
pub type XdsTls = Arc<Reloading<ServerConfig>>;

/// Why the server has ended.
#[derive(Debug, thiserror::Error)]
#[error("the xDS server cannot run")]
pub struct XdsError(#[source] tonic::transport::Error);

impl Xds {
    /// A server of what `publisher` publishes.
    pub fn new(
        publisher: Arc<Publisher>,
        board: Arc<Board>,
        credentials: Arc<Credentials>,
        metrics: Arc<Metrics>,
    ) -> Self {
        // The board knows a revision before a proxy can have it.
        let witness = Arc::clone(&board);
        publisher.witness(move |revision, committed_at_us| {
            witness.fold(Event::Published { revision, committed_at_us });
        });
        Self { shared: Arc::new(Shared::new(publisher, board, credentials, metrics)) }
    }

    /// How many streams are open.
    pub fn open_streams(&self) -> Box<dyn Fn() -> usize + Send + Sync> {
        let shared = self.shared.clone();
        Box::new(move || shared.tasks.len())
    }

    /// Serves until `shutdown`; then closes all streams, so that the proxies go elsewhere.
    pub async fn serve(
        self,
        listener: TcpListener,
        tls: Option<XdsTls>,
        shutdown: CancellationToken,
    ) -> Result<(), XdsError> {
        let (ready, incoming) = mpsc::channel(1);
        // The server stops watching for its end when no more connections come, so the streams are told first.
        let stop_accepting = CancellationToken::new();
        let _stop_if_dropped = stop_accepting.clone().drop_guard();
        let accepting = accept::run(listener, tls, Arc::clone(&self.shared), ready, stop_accepting.clone());
        let accepting = tokio::spawn(accepting);
        let mut server = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .max_concurrent_streams(STREAMS_PER_CONNECTION);
        let shared = self.shared;
        let discovery = AggregatedDiscoveryServiceServer::new(Discovery(shared.clone()))
            .max_decoding_message_size(MAX_REQUEST);
        let reports = ReportServiceServer::new(Reports(shared.clone())).max_decoding_message_size(MAX_REPORT);
        let served = server
            .add_service(discovery)
            .add_service(reports)
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming), async {
                shutdown.cancelled().await;
                shared.shutdown.cancel();
                stop_accepting.cancel();
            })
            .await;
        shared.shutdown.cancel();
        shared.tasks.close();
        shared.tasks.wait().await;
        stop_accepting.cancel();
        // With it the listening socket is closed: another process may have the port now.
        if accepting.await.is_err() {
            tracing::error!("accepting the proxies' connections panicked");
        }
        served.map_err(XdsError)
    }
}

struct Discovery(Arc<Shared>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let token = authorize(&request, &self.0)?;
        if self.0.tasks.len() >= MAX_STREAMS {
            return Err(Status::resource_exhausted("this control plane has all the streams it can take"));
        }
        let address = request.remote_addr();
        let peer = Peer { address, token, process: process_of(&request) };
        // One in the channel, one in the transport's hands: more would be computed before it can be written.
        let (outbound, responses) = mpsc::channel(1);
        let span = tracing::info_span!("xds", peer = address.map(tracing::field::display));
        let stream = stream::serve(self.0.clone(), request.into_inner(), outbound, peer);
        self.0.tasks.spawn(stream.instrument(span));
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

struct Reports(Arc<Shared>);

#[tonic::async_trait]
impl ReportService for Reports {
    async fn report(
        &self,
        request: Request<Streaming<ProxyReport>>,
    ) -> Result<Response<ReportSummary>, Status> {
        let token = authorize(&request, &self.0)?;
        report::serve(&self.0, request.into_inner(), token).await?;
        Ok(Response::new(ReportSummary {}))
    }
}

/// The hash of a token that opens streams.
type TokenHash = [u8; 32];

/// The token that the call presents, if it may be here; else it is refused, which is counted and logged.
fn authorize<T>(request: &Request<T>, shared: &Shared) -> Result<TokenHash, Status> {
    let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
    let text = header.and_then(|header| header.strip_prefix("Bearer ")).unwrap_or_default().trim();
    let refusal = match shared.credentials.authenticate(text) {
        Some(principal) if opens_streams(&principal.role) => {
            return Ok(signalbox_config::sha256(text.as_bytes()));
        }
        Some(principal) => Refusal::WrongRole { name: principal.name, role: principal.role },
        None if text.is_empty() => Refusal::NoToken,
        None => Refusal::UnknownToken,
    };
    shared.refusals.note(&shared.metrics, request.remote_addr(), &refusal);
    Err(Status::unauthenticated(refusal.to_string()))
}

/// The process of the proxy, as it says; empty: it says nothing that can be one.
fn process_of<T>(request: &Request<T>) -> Arc<str> {
    let text =
        request.metadata().get(PROCESS_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_id = text.len() <= MAX_PROCESS && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_id { text.into() } else { "".into() }
}

/// Whether the token that was presented before may still get the configuration.
fn may_stream(credentials: &Credentials, token: &TokenHash) -> bool {
    credentials.by_hash(token).is_some_and(|principal| opens_streams(&principal.role))
}

fn opens_streams(role: &StoredRole) -> bool {
    matches!(role.known(), Some(Role::Proxy | Role::Admin))
}

const MAX_PROCESS: usize = 64;

/// A proxy that is gone without a word is noticed after twice this.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A proxy needs two: its stream and its reports.
const STREAMS_PER_CONNECTION: u32 = 16;

/// Streams to one control plane.
const MAX_STREAMS: usize = 20_000;

/// A request has names and versions, and no resources. A client that lists more than this is to present a marker.
const MAX_REQUEST: usize = 4 << 20;

const MAX_REPORT: usize = 64 << 10;
