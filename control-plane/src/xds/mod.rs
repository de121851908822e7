//! The gRPC server for proxies: delta ADS, and their reports.
//!
//! A [`connection`] has the calls of one proxy, which [`grpc`] reads and writes and [`service`] tells apart. [`delta`] decides what a proxy
//! is sent; [`stream`] moves it; [`set`] is what there is to send. Every proxy has a cursor and no queue: what it is sent is computed when its
//! stream can be written, so a slow one skips revisions.
//!
//! [`admission`] bounds how many are sent everything at once, and [`balance`] spreads them over the replicas.

mod accept;
mod admission;
mod balance;
mod blobs;
mod connection;
mod counts;
pub mod delta;
pub mod frames;
mod grpc;
mod limits;
mod node;
mod node_stream;
mod purges;
mod refusal;
mod report;
mod service;
mod set;
mod shared;
mod stats;
mod stream;
mod token;

use std::sync::Arc;

use imbl::OrdMap;
use signalbox_config::RevisionId;
use signalbox_process::tls::Reloading;
use signalbox_rollout::FleetTarget;
use tokio::net::TcpListener;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::auth::Credentials;
use crate::board::{Board, Event};
use crate::metrics::Metrics;
use crate::publish::{OnPublish, Publisher};
use crate::rollout::Rollouts;
use crate::stats::Stats;
pub use limits::Limits;
use shared::Shared;

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
        stats: Arc<Stats>,
        metrics: Arc<Metrics>,
        limits: Limits,
    ) -> Self {
        // The board knows a revision before a proxy can have it.
        publisher.on_publish(TellBoard(board.clone()));
        Self {
            shared: Arc::new(Shared::new(publisher, board, credentials, rollouts, stats, metrics, limits)),
        }
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
    pub async fn serve(self, listener: TcpListener, tls: Option<XdsTls>, shutdown: CancellationToken) {
        let shared = self.shared;
        let _balancing = AbortOnDropHandle::new(tokio::spawn(balance::run(Arc::clone(&shared))));
        // However it ends, so do the streams.
        let _end = shared.shutdown.clone().drop_guard();
        let end = shared.shutdown.clone();
        let accepting = accept::run(listener, tls, Arc::clone(&shared), shutdown.clone());
        tokio::join!(accepting, async {
            shutdown.cancelled().await;
            end.cancel();
        });
    }
}
