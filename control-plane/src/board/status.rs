//! The views of the board, as the admin API serves them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_rollout::Because;

/// A proxy, as `GET /api/v1/proxies` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProxyStatus {
    /// The node id of the proxy.
    pub id: String,
    /// The fleet of the proxy.
    pub fleet: String,
    /// The labels that the proxy was started with.
    pub labels: BTreeMap<String, String>,
    /// The version of the proxy.
    pub version: String,
    /// The address that its stream comes from.
    pub address: String,
    /// True if the proxy has a stream to a control plane.
    pub connected: bool,
    /// The replica that the proxy has its stream to, or had its last stream to.
    pub connected_to: String,
    /// The time when the proxy was seen last, in RFC 3339.
    pub last_seen: String,
    /// The state of the proxy in relation to its assigned revision.
    pub state: ProxyState,
    /// The revisions that the proxy should serve, was sent, and serves.
    pub revision: ProxyRevision,
    /// The time that the proxy took to apply the last revision, in milliseconds.
    pub apply_ms: Option<f64>,
    /// The reason why the proxy rejected a revision. Null once it serves a later one.
    pub error: Option<ProxyError>,
    /// The traffic over the interval of its last report.
    pub traffic: Option<ProxyTraffic>,
    /// The addresses that listeners are bound to on that host, by name of the listener.
    pub listeners: BTreeMap<String, String>,
    /// The address of its admin server on that host: IP and port, or `unix:` and a path. Empty: the proxy has not reported it.
    #[serde(default)]
    pub admin_address: String,
    /// Problems that do not keep the proxy from serving: a full disk, or a node id that another proxy has, too.
    pub warnings: Vec<String>,
}

/// The state of a proxy in relation to its assigned revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProxyState {
    /// The proxy serves the revision.
    InSync,
    /// The proxy has not answered yet.
    Pending,
    /// The proxy rejected the revision and serves an earlier one.
    Rejected,
    /// The digest of the proxy is not that of the revision.
    Drifted,
    /// The control plane that had its stream is gone, or was restarted, and the proxy has not connected again yet. It may
    /// well serve traffic. A wait waits for it.
    Unknown,
    /// The proxy has no stream.
    Disconnected,
}

impl ProxyState {
    /// The name in the API and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InSync => "in_sync",
            Self::Pending => "pending",
            Self::Rejected => "rejected",
            Self::Drifted => "drifted",
            Self::Unknown => "unknown",
            Self::Disconnected => "disconnected",
        }
    }
}

/// The revisions that a proxy should serve, was sent, and serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProxyRevision {
    /// The revision that the proxy should serve.
    pub assigned: u64,
    /// Counts the decisions about the proxy's fleet; 0 while the fleet follows the head.
    #[serde(default)]
    pub generation: u64,
    /// The reason why the proxy should serve this revision.
    #[serde(default)]
    pub assigned_because: Because,
    /// The revision that was written to its stream last.
    pub sent: u64,
    /// The revision that the proxy serves, as it acknowledged or presented it.
    pub applied: u64,
    /// The time since when the proxy serves it, in RFC 3339.
    pub applied_at: Option<String>,
}

/// The reason why a proxy rejected a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProxyError {
    /// The rejected revision.
    pub revision: u64,
    /// The resources at fault, with their errors.
    pub resources: Vec<ProxyResourceError>,
}

/// An error of a resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProxyResourceError {
    /// The kind of the resource. Empty: the error concerns the revision as a whole.
    pub kind: String,
    /// The name of the resource.
    pub name: String,
    /// The field. Empty: the error concerns the resource as a whole.
    pub field: String,
    /// The error, for a person.
    pub message: String,
    /// The revision that wrote this version of the resource: an earlier one than the rejected revision when that only
    /// carried the fault along. Null when it is not known.
    #[serde(default)]
    pub changed_in: Option<u64>,
}

impl ProxyResourceError {
    /// An error of the revision as a whole.
    pub(crate) fn of_revision(message: String) -> Self {
        Self { kind: String::new(), name: String::new(), field: String::new(), message, changed_in: None }
    }
}

/// A proxy that a wait waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Waiting {
    /// The node id of the proxy.
    pub id: String,
    /// The fleet of the proxy.
    pub fleet: String,
    /// The state of the proxy.
    pub state: ProxyState,
    /// The revision that the proxy serves, as it said last.
    pub applied: u64,
}

/// How the proxies stand to a purge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PurgeProgress {
    /// Connected proxies that have carried it out.
    pub done: usize,
    /// Proxies that have not, or of which it is not known.
    pub pending: usize,
    /// The first of these, by id.
    pub waiting: Vec<String>,
    /// Proxies without a connection.
    pub disconnected: usize,
}

/// A proxy's traffic over the interval of its last report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProxyTraffic {
    /// Requests a second.
    pub requests_per_second: f64,
    /// The share of answers with a status of 500 and above.
    pub error_ratio: f64,
    /// The 99th percentile of the time until a response ends, in milliseconds.
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
    /// The id of the rollout: `REVISION-FLEET`, and `REVISION-FLEET~ATTEMPT` from the second attempt on.
    pub id: String,
    /// The revision that is rolled out.
    pub revision: u64,
    /// The revision before it.
    pub base_revision: u64,
    /// The fleet that gets the revision.
    pub fleet: String,
    /// The revision of the proxies that do not have this one, and to which it is taken back. 0: an immediate rollout has none.
    pub stable_revision: u64,
    /// Counts the decisions about the fleet: the one by which the present step began; 0 for an immediate rollout.
    pub generation: u64,
    /// The state of the rollout.
    pub state: RolloutState,
    /// The strategy: `immediate`, `progressive`, `emergency` or `break-glass`.
    pub strategy: String,
    /// The present step, from 0; the number of steps from the bake time on. An immediate rollout has only step 0.
    pub step: u32,
    /// The steps of a progressive rollout, from small to large. The last one is the whole fleet.
    pub steps: Vec<RolloutStep>,
    /// The time after the last step until the revision is proven, in milliseconds, and how much of it has passed with evidence.
    pub bake: Option<RolloutBake>,
    /// The last readings of the gates of a progressive rollout.
    pub gates: Vec<RolloutGate>,
    /// The number of the fleet's proxies, by state.
    pub counts: RolloutCounts,
    /// The path at which the proxies of the fleet are listed with their place in the rollout.
    pub proxies_url: String,
    /// The time when the revision was committed, in RFC 3339.
    pub started_at: String,
    /// The time when the last connected proxy served the revision, or when it was superseded, in RFC 3339.
    pub finished_at: Option<String>,
    /// The times until the proxies served the revision, in milliseconds: from the commit to the ACKs, and of a progressive rollout from the decision
    /// that gave a proxy the revision to its ACK.
    pub propagation_ms: Option<Propagation>,
    /// The reason of the rollout's state: why it did not succeed, or the last thing that happened to a progressive one.
    pub reason: Option<RolloutReason>,
    /// The rollout that took the place of this one.
    pub superseded_by: Option<RolloutSuccessor>,
    /// The revert of the changes by a new revision. Null: nobody asked for one.
    pub revert: Option<RolloutRevert>,
    /// The events of a progressive rollout, oldest first; the last 200.
    pub events: Vec<RolloutEvent>,
    /// The first rejection of the revision, with the proxy and the resource at fault. Null: no proxy rejected it.
    pub fault: Option<RolloutFault>,
}

/// A step of a progressive rollout: exactly one of `percent`, `count` and `labels` says its size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutStep {
    /// The share of the fleet's proxies, in percent.
    pub percent: Option<f64>,
    /// The number of proxies.
    pub count: Option<u32>,
    /// The labels that the proxies have.
    pub labels: Option<BTreeMap<String, String>>,
    /// The number of proxies that had the revision when the step began; 0 before.
    pub proxies: u32,
    /// The time in which nothing was wrong and there were enough requests to judge, in milliseconds.
    pub healthy_ms: u64,
    /// The healthy time that is needed, in milliseconds.
    pub soak_ms: u64,
    /// The time when the step began, in RFC 3339.
    pub started_at: Option<String>,
    /// The state: `pending`, `running`, `passed`, `promoted` or `skipped`.
    pub state: String,
}

/// The rollout that took the place of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutSuccessor {
    /// The id of the rollout.
    pub id: String,
    /// True if the fleet gets the same content by it. Commands and waits for the other rollout then concern this one.
    pub same_content: bool,
}

/// The revert of a rollout's changes by a new revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutRevert {
    /// The state: `pending`, `done` or `refused`.
    pub state: String,
    /// The reason why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The bake time of a progressive rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutBake {
    /// The healthy time so far, in milliseconds.
    pub healthy_ms: u64,
    /// The healthy time that is needed, in milliseconds.
    pub needed_ms: u64,
}

/// The last reading of a gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutGate {
    /// The gate: `errors`, `latency`, `not_found`, `coverage`, `rejected`, `lost`, `cpu` or `volume`.
    pub name: String,
    /// The requests that it looks at: `fleet`, `route` or `upstream`.
    pub scope: String,
    /// The name of the route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The name of the upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// The judgement: `passing`, `failing` or `inconclusive`.
    pub verdict: String,
    /// The measured value, in the unit of `limit`.
    pub evidence: f64,
    /// The gate fails when `evidence` reaches this value; `coverage` passes.
    pub limit: f64,
    /// The requests of the canaries; of `rejected` and `lost` proxies, of `cpu` and `volume` looks at proxies.
    pub canary: RolloutGateCounts,
    /// The same of the other proxies.
    pub rest: RolloutGateCounts,
}

/// The requests that a gate has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutGateCounts {
    /// All of them.
    pub requests: u64,
    /// Those that count against the gate.
    pub failures: u64,
}

/// The reason of something that happened to a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutReason {
    /// The reason for programs, for instance `gate_failed`.
    pub code: String,
    /// The reason for people.
    pub text: String,
    /// The resource that it concerns: `upstream/users`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The name of the route that it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
}

/// Something that happened to a progressive rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutEvent {
    /// The time, in RFC 3339.
    pub at: String,
    /// The state of the rollout after it.
    pub state: RolloutState,
    /// The name of the token by which a person did it; absent: nobody did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The reason.
    #[serde(flatten)]
    pub reason: RolloutReason,
}

/// The reason why a proxy rejected a revision.
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
    /// The error, for a person.
    pub message: String,
}

/// The state of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// It has not begun: another rollout is under way, a freeze window is open, it needs approval, or no proxy is there.
    Waiting,
    /// The rollout is under way.
    Running,
    /// A person halted it.
    Paused,
    /// It needs a decision of a person, for instance because there was too little evidence.
    Held,
    /// The whole fleet has the revision, and it is not proven yet.
    Baking,
    /// Every connected proxy serves the revision; of a progressive rollout: the fleet keeps it.
    Succeeded,
    /// A proxy rejected the revision, or a gate failed.
    Failed,
    /// A person, or the policy, ended it.
    Aborted,
    /// A later revision took its place.
    Superseded,
}

/// The number of a fleet's proxies, by their state in relation to a revision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RolloutCounts {
    /// All known proxies.
    pub total: u32,
    /// Proxies that should serve the revision or a later one.
    #[serde(default)]
    pub assigned: u32,
    /// Proxies that serve the revision or a later one.
    pub applied: u32,
    /// Proxies that have not answered yet.
    pub pending: u32,
    /// Proxies that rejected the revision, whatever they serve since.
    pub rejected: u32,
    /// Proxies without a stream.
    pub disconnected: u32,
    /// Proxies of unknown state, see `ProxyState`.
    #[serde(default)]
    pub unknown: u32,
    /// Canaries that are gone while the others are there.
    #[serde(default)]
    pub lost: u32,
}

/// The times from the commit to the ACKs, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Propagation {
    /// The median.
    pub p50: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The time to the last ACK.
    pub max: f64,
}

/// A named set of proxies, as `GET /api/v1/fleet-statuses` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FleetStatus {
    /// The name of the fleet.
    pub name: String,
    /// The number of known proxies.
    pub proxies: u32,
    /// The number of proxies that have a stream.
    pub connected: u32,
    /// The number of proxies of unknown state.
    pub unknown: u32,
    /// The revision that its proxies should serve.
    pub assigned: u64,
    /// The revision that every connected proxy serves, or a later one. Absent: no proxy is connected.
    pub served: Option<u64>,
}

/// How a wait for a revision ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitResult {
    /// Every connected proxy serves the revision, or a later one, and none is of unknown state.
    Done,
    /// A connected proxy rejected it, or the later one it was sent instead.
    Rejected,
    /// Neither came in time.
    TimedOut,
}
