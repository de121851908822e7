//! Settings of a source.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use signalbox_plugin::Registry;
use tokio::sync::Notify;

use super::blobs::BlobDir;

/// The source of the configuration.
#[derive(Debug, Clone)]
pub enum Source {
    /// Control planes; the data directory serves until one answers, and while none does.
    ControlPlanes(Box<ControlPlanes>),
    /// A declarative file, which is applied again whenever it changes.
    File {
        /// The file's path.
        path: PathBuf,
        /// The proxy's fleet, which selects the resources of the file.
        fleet: String,
        /// The plugin types that the proxy knows.
        types: Registry,
    },
}

/// The addresses of the control planes, and the proxy's identity towards them.
#[derive(Debug, Clone)]
pub struct ControlPlanes {
    /// `http://HOST:PORT` or `https://…`, at least one. The proxy connects to any of them.
    pub addresses: Vec<String>,
    /// The bearer token.
    pub token: Option<String>,
    /// The TLS settings for `https://`.
    pub tls: Tls,
    /// Unique per proxy; `None`: generated once, and kept in the data directory.
    pub node_id: Option<String>,
    /// The fleet that the proxy belongs to.
    pub fleet: String,
    /// The plugin types that the proxy knows.
    pub types: Registry,
    /// The labels that selectors match.
    pub labels: BTreeMap<String, String>,
    /// The address of the admin server, as it is reported.
    pub admin_address: String,
    /// The directory of the last good snapshot. No two proxies share one.
    pub data_dir: PathBuf,
    /// The uploaded files that plugins use.
    pub blobs: Arc<BlobDir>,
    /// The protection against revisions that crash the proxy.
    pub crash_loops: CrashLoops,
}

/// The settings of the protection against revisions that crash the proxy.
#[derive(Debug, Clone)]
pub struct CrashLoops {
    /// The time after a start, and after a revision was applied, in which the end of the process counts as a crash.
    pub crash_window: Duration,
    /// The time for which a revision must be served without a crash until it counts as proven.
    pub proven_after: Duration,
    /// Notified when an operator wants a refused revision to be tried again.
    pub retry: Arc<Notify>,
}

/// The TLS settings for control planes: PEM files.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// The certificate authority of the control planes. Required for `https://`: no other root is trusted.
    pub ca: Option<PathBuf>,
    /// The proxy's own certificate chain and private key.
    pub identity: Option<(PathBuf, PathBuf)>,
}
