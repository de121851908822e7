//! Where the configuration comes from: a control plane, a file, or the last good snapshot on disk.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use signalbox_config::{Change, ResourceKey, Snapshot};

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

/// Traffic over an interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How many requests were answered.
    pub requests: u64,
    /// Of these, with a status of 500 and above.
    pub errors: u64,
    /// Median latency, microseconds; 0 without requests.
    pub p50_us: u64,
    /// 99th percentile, microseconds; 0 without requests.
    pub p99_us: u64,
    /// Connections open now.
    pub active_connections: u64,
}
