//! The board's record of one rollout; the store has a copy.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::status::{Propagation, ProxyResourceError, RolloutCounts, RolloutFault, RolloutState};

/// A rollout.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RolloutRecord {
    pub(super) base: u64,
    pub(super) committed_at_us: i64,
    pub(super) state: RolloutState,
    pub(super) finished_at_us: Option<i64>,
    pub(super) reason: Option<String>,
    #[serde(default)]
    pub(super) fault: Option<RolloutFault>,
    /// The proxies that rejected this very revision, and did not apply it later.
    #[serde(default)]
    pub(super) rejected_by: BTreeSet<Arc<str>>,
    /// Set once nothing can change any more.
    pub(super) counts: Option<RolloutCounts>,
    pub(super) propagation: Option<Propagation>,
    /// From the commit to each ACK, microseconds; until the counts are final.
    #[serde(skip)]
    pub(super) samples: Vec<u32>,
}

impl RolloutRecord {
    pub(super) fn new(base: u64, committed_at_us: i64) -> Self {
        Self {
            base,
            committed_at_us,
            state: RolloutState::Running,
            finished_at_us: None,
            reason: None,
            fault: None,
            rejected_by: BTreeSet::new(),
            counts: None,
            propagation: None,
            samples: Vec::new(),
        }
    }

    pub(super) fn propagation(&self) -> Option<Propagation> {
        if self.samples.is_empty() {
            return self.propagation;
        }
        let mut sorted = self.samples.clone();
        sorted.sort_unstable();
        let at = |share: f64| {
            // The nearest rank: the smallest sample that at least this share does not exceed.
            let rank = (sorted.len() as f64 * share).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).map_or(0.0, |micros| f64::from(*micros) / 1e3)
        };
        Some(Propagation { p50: at(0.5), p99: at(0.99), max: at(1.0) })
    }
}

pub(super) fn fault(id: &str, revision: u64, resources: &[ProxyResourceError]) -> RolloutFault {
    let first = resources.first();
    let text = |field: fn(&ProxyResourceError) -> &String| first.map(field).cloned().unwrap_or_default();
    RolloutFault {
        proxy: id.to_owned(),
        revision: first.and_then(|first| first.changed_in).unwrap_or(revision),
        kind: text(|first| &first.kind),
        name: text(|first| &first.name),
        field: text(|first| &first.field),
        message: text(|first| &first.message),
    }
}

pub(super) fn reason(fault: &RolloutFault, rejected: u64) -> String {
    let RolloutFault { proxy, revision, kind, name, field, message } = fault;
    let mut text = format!("{proxy} rejected it");
    let resource = if kind.is_empty() { String::new() } else { format!("{kind}/{name}") };
    for part in [&resource, field, message] {
        if !part.is_empty() {
            text.push_str(": ");
            text.push_str(part);
        }
    }
    if *revision != rejected {
        text.push_str(&format!(" (since revision {revision})"));
    }
    text
}
