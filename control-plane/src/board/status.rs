//! What the board shows, as the admin API serves it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A proxy, as `GET /api/v1/proxies` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProxyStatus {
    /// Its node id.
    pub id: String,
    /// Its fleet.
    pub fleet: String,
    /// As it was started with.
    pub labels: BTreeMap<String, String>,
    /// The version of its program.
    pub version: String,
    /// Where its stream comes from.
    pub address: String,
    /// Whether it has a stream, to any control plane.
    pub connected: bool,
    /// The control plane it has it to, or had.
    pub connected_to: String,
    /// RFC 3339.
    pub last_seen: String,
    /// How it stands to the revision it is assigned.
    pub state: ProxyState,
    /// How far it has come.
    pub revision: ProxyRevision,
    /// How long the last revision took to apply, milliseconds.
    pub apply_ms: Option<f64>,
    /// Why it rejected a revision; gone once it serves a later one.
    pub error: Option<ProxyError>,
    /// Over its last report.
    pub traffic: Option<ProxyTraffic>,
    /// Listener name to the address it is bound to on that host.
    pub listeners: BTreeMap<String, String>,
    /// What people should know of, although the proxy serves: that its disk is full, or its node id another's, too.
    pub warnings: Vec<String>,
}

/// How a proxy stands to the revision it is assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProxyState {
    /// It serves it.
    InSync,
    /// It was not answered for yet.
    Pending,
    /// It rejected it, and serves an earlier one.
    Rejected,
    /// What it has is not what the revision is.
    Drifted,
    /// The control plane that had its stream is gone, or was restarted, and the proxy has not connected again yet. It may
    /// well serve traffic. A wait waits for it.
    Unknown,
    /// It has no stream.
    Disconnected,
}

/// How far a proxy has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProxyRevision {
    /// What it is to serve.
    pub assigned: u64,
    /// What was written to its stream last.
    pub sent: u64,
    /// What it serves, as it acknowledged or presented.
    pub applied: u64,
    /// RFC 3339: since when.
    pub applied_at: Option<String>,
}

/// Why a proxy rejected a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProxyError {
    /// Which.
    pub revision: u64,
    /// What was wrong with which resource.
    pub resources: Vec<ProxyResourceError>,
}

/// What was wrong with a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProxyResourceError {
    /// Its kind; empty when the revision as a whole was wrong.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// The field; may be empty.
    pub field: String,
    /// What was wrong.
    pub message: String,
    /// The revision that wrote this version of the resource: an earlier one than the rejected revision when that only
    /// carried the fault along. Null when it is not known.
    #[serde(default)]
    pub changed_in: Option<u64>,
}

/// A proxy that a wait waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Waiting {
    /// Its node id.
    pub id: String,
    /// Its fleet.
    pub fleet: String,
    /// How it stands.
    pub state: ProxyState,
    /// What it said last that it serves.
    pub applied: u64,
}

/// A proxy's traffic over the interval of its last report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProxyTraffic {
    /// Requests a second.
    pub requests_per_second: f64,
    /// The share of answers with a status of 500 and above.
    pub error_ratio: f64,
    /// Milliseconds.
    pub p99_ms: f64,
    /// The requests that failed, by kind; null: the proxy's version does not count them apart.
    #[serde(default)]
    pub classes: Option<TrafficClasses>,
}

/// Shares of all requests, from 0 to 1. Each request is in one class at most; the rest was answered with a status below
/// 400.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TrafficClasses {
    /// No route took the request.
    pub no_route: f64,
    /// Other answers with a status from 400 to 499.
    #[serde(rename = "4xx")]
    pub client_errors: f64,
    /// Answers with a status of 500 and above: the same number as `error_ratio`.
    #[serde(rename = "5xx")]
    pub server_errors: f64,
}

/// The way of one revision through a fleet, as `GET /api/v1/rollouts` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rollout {
    /// `REVISION-FLEET`.
    pub id: String,
    /// Which.
    pub revision: u64,
    /// The one before.
    pub base_revision: u64,
    /// The fleet.
    pub fleet: String,
    /// How it stands.
    pub state: RolloutState,
    /// `immediate`.
    pub strategy: String,
    /// 0 of `immediate`.
    pub step: u32,
    /// The fleet's proxies by how they stand to it.
    pub counts: RolloutCounts,
    /// RFC 3339: when it was committed.
    pub started_at: String,
    /// RFC 3339: when the last connected proxy served it, or it was superseded.
    pub finished_at: Option<String>,
    /// From the commit to the ACKs, milliseconds.
    pub propagation_ms: Option<Propagation>,
    /// Why it ended otherwise than it should.
    pub reason: Option<String>,
    /// The first rejection of it: which proxy, and which resource is at fault. Null when no proxy rejected it.
    pub fault: Option<RolloutFault>,
}

/// Why a proxy rejected a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutFault {
    /// The proxy that rejected it first.
    pub proxy: String,
    /// The revision that wrote the resource at fault, where it is known; else the rejected one.
    pub revision: u64,
    /// The resource's kind; empty when the revision as a whole was wrong.
    pub kind: String,
    /// The resource's name.
    pub name: String,
    /// The field; may be empty.
    pub field: String,
    /// What was wrong.
    pub message: String,
}

/// How a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// Under way.
    Running,
    /// Halted by a person.
    Paused,
    /// Every connected proxy serves it.
    Succeeded,
    /// A proxy rejected it.
    Failed,
    /// Ended by a person.
    Aborted,
    /// A later revision came before it was everywhere.
    Superseded,
}

/// A fleet's proxies by how they stand to a revision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutCounts {
    /// All that are known.
    pub total: u32,
    /// Serving it, or a later one.
    pub applied: u32,
    /// Not answered yet.
    pub pending: u32,
    /// Rejected it, whatever they serve since.
    pub rejected: u32,
    /// Without a stream.
    pub disconnected: u32,
    /// Of unknown state, see `ProxyState`.
    #[serde(default)]
    pub unknown: u32,
}

/// From the commit to the ACKs, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Propagation {
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The last.
    pub max: f64,
}

/// A named set of proxies, as `GET /api/v1/fleets` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FleetStatus {
    /// Its name.
    pub name: String,
    /// How many proxies are known.
    pub proxies: u32,
    /// How many of them have a stream.
    pub connected: u32,
    /// How many of them are of unknown state.
    pub unknown: u32,
    /// The revision its proxies are to serve.
    pub assigned: u64,
    /// The revision that every connected one serves, or a later one; absent without a connected one.
    pub served: Option<u64>,
}
