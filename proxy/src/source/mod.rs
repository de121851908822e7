//! Where the configuration comes from: a control plane, a file, or the last good snapshot on disk.
//!
//! - [`xds`] moves messages between a control plane and [`staging`], which decides what they amount to;
//! - [`last_good`] keeps on disk what was applied last;
//! - [`file`] reads a declarative file instead.

mod apply;
mod choice;
mod connect;
mod file;
mod last_good;
mod report;
mod staging;
mod xds;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use signalbox_config::{Change, Digest, ResourceKey, RevisionId, Snapshot};
use signalbox_process::tls::{Expiry, TlsFileError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Where to get the configuration from.
#[derive(Debug, Clone)]
pub enum Source {
    /// From control planes; until one answers, and when none does, from the data directory.
    ControlPlanes(ControlPlanes),
    /// From a declarative file, and again whenever it changes.
    File {
        /// The file.
        path: PathBuf,
        /// The fleet the proxy belongs to: of the file it serves what is for that.
        fleet: String,
    },
}

/// How to reach the control planes, and who the proxy is to them.
#[derive(Debug, Clone)]
pub struct ControlPlanes {
    /// `http://HOST:PORT` or `https://…`, at least one. Any will do.
    pub addresses: Vec<String>,
    /// What the proxy presents.
    pub token: Option<String>,
    /// For `https://`.
    pub tls: Tls,
    /// Unique per proxy; `None`: made once, and kept in the data directory.
    pub node_id: Option<String>,
    /// The fleet it belongs to.
    pub fleet: String,
    /// What selectors see of it.
    pub labels: BTreeMap<String, String>,
    /// Holds the last good snapshot. No two proxies share one.
    pub data_dir: PathBuf,
}

/// TLS to the control planes: PEM files.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Who may have signed a control plane's certificate. Needed for `https://`: no other root is trusted.
    pub ca: Option<PathBuf>,
    /// The proxy's own certificate chain and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How the source stands.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// What is served; `None` before the first.
    pub serving: Option<Serving>,
    /// Where it comes from now: the control plane's address, the file, or the data directory.
    pub origin: Option<String>,
    /// Whether a control plane's stream is open, or the file could be read.
    pub connected: bool,
    /// How many candidates were rejected since the start.
    pub rejected_total: u64,
    /// Why the last candidate was rejected; empty once a later one is served.
    pub rejected: Vec<Rejected>,
    /// The proxy's identity, once it is known; empty for a file.
    pub node_id: String,
    /// When the certificates for the control planes expire.
    pub certificates: Vec<Expiry>,
    /// Whether what is served is kept on disk.
    pub persistence: Persistence,
}

/// Whether the last good snapshot is kept on disk.
#[derive(Debug, Clone, Default)]
pub struct Persistence {
    /// How often it could not be written since the start.
    pub failures: u64,
    /// Why it cannot be written now.
    pub failing: Option<String>,
}

impl Persistence {
    fn failed(&mut self, reason: String) {
        self.failures = self.failures.saturating_add(1);
        self.failing = Some(reason);
    }
}

impl Status {
    /// What people should know of, although the proxy serves.
    pub fn warnings(&self) -> Vec<String> {
        let persistence = self.persistence.failing.iter().map(|reason| {
            format!(
                "what is served is not kept on disk, so that a restart may serve an older revision: {reason}"
            )
        });
        persistence.collect()
    }
}

/// A revision that is served.
#[derive(Debug, Clone)]
pub struct Serving {
    /// Which; of a file its number counts the times it was applied.
    pub revision: RevisionId,
    /// Of all its resources.
    pub digest: Digest,
    /// How many there are.
    pub resources: usize,
    /// When the pointer was swapped, microseconds since 1970.
    pub applied_at_us: i64,
    /// How long compiling and swapping took.
    pub took: Duration,
}

/// Why there is nothing to start from.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another proxy uses it.
    #[error("the data directory {0} is in use by another proxy; give each its own --data-dir")]
    DataDirInUse(PathBuf),
    /// It cannot be made, read or written.
    #[error("cannot use {path}")]
    Io {
        /// What was used.
        path: PathBuf,
        /// Why not.
        #[source]
        error: std::io::Error,
    },
    /// The certificates for the control planes cannot be used.
    #[error("--tls-ca, --tls-cert, --tls-key")]
    Tls(#[source] TlsFileError),
    /// An argument does not make sense.
    #[error("{0}")]
    Invalid(String),
}

/// Gets configuration from `source` and has it applied, until `shutdown`. Whatever goes wrong later is logged and
/// tried again; an error is one of the start, before anything was applied.
pub async fn run(
    source: Source,
    data_plane: Arc<dyn DataPlane>,
    status: watch::Sender<Status>,
    shutdown: CancellationToken,
) -> Result<(), StartError> {
    match source {
        Source::ControlPlanes(control_planes) => xds::run(control_planes, data_plane, status, shutdown).await,
        Source::File { path, fleet } => file::run(path, fleet, data_plane, status, shutdown).await,
    }
}

/// The data plane as a source of configuration sees it.
pub trait DataPlane: Send + Sync + 'static {
    /// Makes `candidate` what is served: compiles what changed, binds new sockets, swaps the pointer. When it returns
    /// `Ok`, every new request sees it. On an error nothing has changed.
    ///
    /// Blocks while it compiles; called from a thread that may block, never two at once.
    fn apply(&self, candidate: &Candidate) -> Result<(), Vec<Rejected>>;

    /// What was served since the call before.
    fn traffic(&self) -> Traffic;

    /// Listener name to the address it is bound to.
    fn listeners(&self) -> BTreeMap<String, SocketAddr>;
}

/// A revision that could be served.
#[derive(Debug)]
pub struct Candidate {
    /// All of it; its digest was checked.
    pub snapshot: Snapshot,
    /// How it differs from what is served, each key once. From nothing: every resource is a change.
    pub changes: Vec<Change>,
}

/// Why a candidate cannot be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Which resource; `None`: the revision as a whole.
    pub key: Option<ResourceKey>,
    /// Which field; may be empty.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// Traffic over an interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How many requests were answered.
    pub requests: u64,
    /// Of these, with a status of 500 and above.
    pub errors: u64,
    /// Of these, the ones that no route took.
    pub no_route: u64,
    /// Of these, the others with a status from 400 to 499.
    pub client_errors: u64,
    /// Median latency, microseconds; 0 without requests.
    pub p50_us: u64,
    /// 99th percentile, microseconds; 0 without requests.
    pub p99_us: u64,
    /// Connections open now.
    pub active_connections: u64,
}
