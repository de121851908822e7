//! The data plane as a source of configuration sees it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use signalbox_config::{Change, Purge, ResourceKey, Snapshot};

use crate::telemetry::{Scope, Series, TrafficSums};

/// The data plane as a source of configuration sees it.
pub trait DataPlane: Send + Sync + 'static {
    /// Makes `candidate` the served revision: compiles what changed, binds new sockets, swaps the pointer. When it
    /// returns `Ok`, every new request sees it. On an error nothing has changed.
    ///
    /// Blocks while it compiles. It is called from a thread that may block, and never concurrently.
    fn apply(&self, candidate: &Candidate) -> Result<(), Vec<Rejected>>;

    /// Returns the traffic since the previous call.
    fn traffic(&self) -> Traffic;

    /// Returns the number of answers since the start.
    fn answers(&self) -> Answers;

    /// Counts the requests of the first 1,000 of `scopes` apart from now on, and no longer those of others.
    ///
    /// Blocks while a candidate is applied.
    fn watch(&self, scopes: &[Scope]);

    /// Returns the counts of the requests that began under each of the last generations: see [`Generations::read`].
    ///
    /// May block for some milliseconds if many scopes are watched.
    ///
    /// [`Generations::read`]: crate::telemetry::Generations::read
    fn series(&self) -> Vec<Series>;

    /// Returns the requests since the start: all, and those of the routes, upstreams and consumers that had any.
    ///
    /// May block for some milliseconds if there are many.
    fn scope_traffic(&self) -> Vec<ScopeTraffic>;

    /// Removes the responses that `purge` selects from all caches.
    ///
    /// Blocks for as long as it takes to look at all stored responses.
    fn purge(&self, purge: &Purge);

    /// Maps each listener's name to the address that it is bound to.
    fn listeners(&self) -> BTreeMap<String, SocketAddr>;
}

/// A complete revision that may be served.
#[derive(Debug)]
pub struct Candidate {
    /// The whole revision; its digest was verified.
    pub snapshot: Snapshot,
    /// The differences from the served revision, each key once. If nothing is served, every resource is a change.
    pub changes: Vec<Change>,
}

/// A reason why a candidate cannot be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The resource; `None`: the revision as a whole.
    pub key: Option<ResourceKey>,
    /// The field; may be empty.
    pub field: String,
    /// The error message.
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

/// Answers to requests, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answers {
    /// The number of answered requests.
    pub requests: u64,
    /// The number of responses with a status of 500 and above.
    pub errors: u64,
}

/// The requests of a scope since the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopeTraffic {
    /// The scope.
    pub scope: TrafficScope,
    /// The requests.
    pub sums: TrafficSums,
}

/// The requests of which there is a time series.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum TrafficScope {
    /// All.
    All,
    /// Those of a route. `_other` has those that are not counted apart, here and below.
    Route(Arc<str>),
    /// Those for an upstream.
    Upstream(Arc<str>),
    /// Those of a consumer.
    Consumer(Arc<str>),
}

/// Traffic over an interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The number of answered requests.
    pub requests: u64,
    /// The number of responses with a status of 500 and above.
    pub errors: u64,
    /// The number of requests that matched no route.
    pub no_route: u64,
    /// The number of other responses with a status from 400 to 499.
    pub client_errors: u64,
    /// The median latency in microseconds; 0 without requests.
    pub p50_us: u64,
    /// The 99th percentile of the latency in microseconds; 0 without requests.
    pub p99_us: u64,
    /// The number of connections open now.
    pub active_connections: u64,
}
