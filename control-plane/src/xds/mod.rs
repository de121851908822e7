//! The gRPC server for proxies: delta ADS, and their reports.
//!
//! [`delta`] decides what a proxy is sent; [`stream`] moves it; [`set`] is what there is to send. Every proxy has a
//! cursor and no queue: what it is sent is computed when its stream can be written, so a slow one skips revisions.
//!
//! [`admission`] bounds how many are sent everything at once, and [`balance`] spreads them over the replicas.

mod accept;
mod admission;
mod balance;
mod body;
mod counts;
pub mod delta;
pub mod frames;
mod limits;
mod node;
mod refusal;
mod report;
mod service;
mod set;
mod shared;
mod stream;
mod token;

use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use signalbox_config::RevisionId;
use signalbox_process::tls::Reloading;
use signalbox_proto::signalbox::report::v1::report_service_server::{ReportService, ReportServiceServer};
use signalbox_proto::signalbox::report::v1::{Counts, CountsRequest, ProxyReport, ReportSummary};
use signalbox_rollout::FleetTarget;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::rustls::ServerConfig;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::auth::Credentials;
use crate::board::{Board, Event};
use crate::metrics::Metrics;
use crate::publish::{OnPublish, Publisher};
use crate::rollout::Rollouts;
pub use limits::Limits;
use service::Discovery;
use shared::Shared;
use token::authorize;

/// The xDS server. That it has a [`Publisher`] means that this control plane has loaded the set: before, no proxy is
/// listened to.
pub struct Xds {
    shared: Arc<Shared>,
}

/// The turns to be sent everything, for those who watch the server.
pub struct Turns(Arc<Shared>);

impl Turns {
    /// How many streams wait for theirs.
    pub fn waiting(&self) -> usize {
        self.0.admission.waiting()
    }

    /// Takes a turn as a stream does, and holds it until it is dropped.
    pub async fn take(&self) -> impl Sized + use<> {
        match self.0.admission.enter(0) {
            Ok(turn) => Some(turn.await),
            Err(_) => None,
        }
    }
}

/// TLS for the proxies' connections: the server's certificate, and who may have signed the proxies' certificates.
pub type XdsTls = Arc<Reloading<ServerConfig>>;

/// Why the server has ended.
#[derive(Debug, thiserror::Error)]
#[error("the xDS server cannot run")]
pub struct XdsError(#[source] tonic::transport::Error);

/// Tells the board of what is published.
struct TellBoard(Arc<Board>);

impl OnPublish for TellBoard {
    fn on_revision(&self, revision: RevisionId, committed_at_us: i64) {
        self.0.fold(Event::Published { revision, committed_at_us });
    }

    fn on_decisions(&self, targets: &OrdMap<Arc<str>, Arc<FleetTarget>>) {
        self.0.fold(Event::Decided { targets: targets.clone() });
    }
}

impl Xds {
    /// A server of what `publisher` publishes.
    pub fn new(
        publisher: Arc<Publisher>,
        board: Arc<Board>,
        credentials: Arc<Credentials>,
        rollouts: Arc<Rollouts>,
        metrics: Arc<Metrics>,
        limits: Limits,
    ) -> Self {
        // The board knows a revision before a proxy can have it.
        publisher.on_publish(TellBoard(board.clone()));
        Self { shared: Arc::new(Shared::new(publisher, board, credentials, rollouts, metrics, limits)) }
    }

    /// How many streams are open.
    pub fn open_streams(&self) -> Box<dyn Fn() -> usize + Send + Sync> {
        let shared = self.shared.clone();
        Box::new(move || shared.tasks.len())
    }

    /// The turns to be sent everything.
    pub fn turns(&self) -> Turns {
        Turns(self.shared.clone())
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
        let _balancing = AbortOnDropHandle::new(tokio::spawn(balance::run(Arc::clone(&self.shared))));
        let mut server = Server::builder()
            .http2_keepalive_interval(Some(self.shared.limits.ping_after))
            // Silence ends a connection, and not a late answer: see `process::liveness`.
            .http2_keepalive_timeout(Some(NO_TIMEOUT))
            .max_concurrent_streams(STREAMS_PER_CONNECTION);
        let shared = self.shared;
        let reports = ReportServiceServer::new(Reports(shared.clone())).max_decoding_message_size(MAX_COUNTS);
        let served = server
            .add_service(Discovery(shared.clone()))
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

    type CountStream = ReceiverStream<Result<CountsRequest, Status>>;

    async fn count(
        &self,
        request: Request<Streaming<Counts>>,
    ) -> Result<Response<Self::CountStream>, Status> {
        let token = authorize(&request, &self.0)?;
        let node = counts::node_of(&request)?;
        // One request at a time: a proxy that does not read gets the last one when it does.
        let (requests, stream) = mpsc::channel(1);
        let shared = Arc::clone(&self.0);
        self.0
            .tasks
            .spawn(async move { counts::serve(&shared, request.into_inner(), token, &node, requests).await });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Longer than any connection.
const NO_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// A proxy needs three: its stream, its reports and its counts.
const STREAMS_PER_CONNECTION: u32 = 16;

/// The largest message of a proxy: counts of a thousand scopes under eight generations.
const MAX_COUNTS: usize = 1 << 20;
