//! The judgement of one gate at one moment.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The judgement of one gate at one moment, with the numbers that it is made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    /// The gate.
    #[serde(rename = "name")]
    pub gate: GateKind,
    /// The requests that the gate looks at.
    pub scope: Scope,
    /// The judgement.
    pub verdict: Verdict,
    /// The measured value, in the unit of `limit`.
    pub evidence: f64,
    /// The gate fails when `evidence` reaches this value; coverage passes.
    pub limit: f64,
    /// The requests of the canaries; proxies for `Rejected` and `Lost`, looks at proxies for `Cpu` and `Volume`.
    pub canary: Counts,
    /// The same of the other proxies.
    pub rest: Counts,
}

/// Requests, and those among them that count against a gate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// All requests.
    pub requests: u64,
    /// The requests that count against the gate.
    pub failures: u64,
}

/// The gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateKind {
    /// Responses with a status of 500 and above.
    Errors,
    /// Responses that are slower than those of the rest.
    Latency,
    /// Requests without a route, and responses with a status from 400 to 499.
    NotFound,
    /// The requests that the changed routes have served.
    Coverage,
    /// Proxies that rejected the revision, crash on it, or have another digest.
    Rejected,
    /// Canaries that are gone while the rest is there.
    Lost,
    /// CPU time per request.
    Cpu,
    /// Requests that the canaries get, compared with before.
    Volume,
}

/// The requests that a gate looks at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All requests of the fleet.
    Fleet,
    /// The requests of a route.
    Route(Arc<str>),
    /// The requests to an upstream.
    Upstream(Arc<str>),
}

/// The judgement of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The canaries do as well as the rest, within the tolerance.
    Passing,
    /// The canaries do worse than the tolerance allows.
    Failing,
    /// There is not enough evidence. It never counts as success.
    Inconclusive,
}
