//! How long the proxies took to serve the revision of a rollout, each since the decision that gave it to the proxy.

use std::collections::HashMap;
use std::sync::Arc;

use signalbox_rollout::machine::Rollout;

use crate::board::{FleetProxy, Propagation};

/// The times of the rollout under way. Another leader begins anew.
#[derive(Default)]
pub(super) struct PropagationTimes {
    rollout: Option<Arc<str>>,
    /// The time of the last decision, in microseconds since 1970.
    decided_at_us: i64,
    proxies: HashMap<Arc<str>, Times>,
    count: usize,
    summary: Option<Propagation>,
}

/// Microseconds since 1970.
#[derive(Clone, Copy)]
struct Times {
    assigned_at: i64,
    served_at: Option<i64>,
}

impl PropagationTimes {
    /// Notes that a decision was put in force.
    pub(super) fn decided(&mut self, now_us: i64) {
        self.decided_at_us = now_us;
    }

    /// Notes the proxies that are assigned the revision of the rollout, and those that serve it.
    pub(super) fn see(&mut self, rollout: Option<&Rollout>, proxies: &[FleetProxy]) {
        let id = rollout.map(|rollout| &rollout.id);
        if self.rollout.as_ref() != id {
            *self = Self { rollout: id.cloned(), decided_at_us: self.decided_at_us, ..Self::default() };
        }
        let Some(rollout) = rollout.filter(|_| self.decided_at_us > 0) else { return };
        for proxy in proxies {
            let id = &proxy.node.id;
            if !rollout.has_whole_fleet() && !rollout.members.contains(id) {
                continue;
            }
            let times = match self.proxies.get_mut(id) {
                Some(times) => times,
                None => {
                    let times = Times { assigned_at: self.decided_at_us, served_at: None };
                    self.proxies.entry(Arc::clone(id)).or_insert(times)
                }
            };
            if times.served_at.is_none() && proxy.served == rollout.revision.number {
                // Without the time, or with an earlier one, it had the revision before.
                times.served_at = proxy.acked_at_us.filter(|at| *at >= times.assigned_at);
            }
        }
    }

    /// The times so far; `None`: no proxy serves the revision.
    pub(super) fn summary(&mut self) -> Option<Propagation> {
        let took = |times: &Times| times.served_at.map(|at| at.saturating_sub(times.assigned_at));
        let mut took: Vec<i64> = self.proxies.values().filter_map(took).collect();
        if took.len() != self.count {
            self.count = took.len();
            took.sort_unstable();
            self.summary = summary(&took);
        }
        self.summary
    }
}

/// The quantiles of sorted times in microseconds, by the nearest rank.
#[expect(clippy::cast_precision_loss, reason = "the times need no more digits")]
fn summary(sorted: &[i64]) -> Option<Propagation> {
    let at = |percent: usize| {
        let rank = (sorted.len() * percent).div_ceil(100);
        sorted.get(rank.saturating_sub(1)).map(|micros| *micros as f64 / 1e3)
    };
    Some(Propagation { p50: at(50)?, p99: at(99)?, max: at(100)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_nearest_rank() {
        assert_eq!(summary(&[]), None);
        assert_eq!(summary(&[1500]), Some(Propagation { p50: 1.5, p99: 1.5, max: 1.5 }));
        let many: Vec<i64> = (1..=200).map(|millis| millis * 1000).collect();
        assert_eq!(summary(&many), Some(Propagation { p50: 100.0, p99: 198.0, max: 200.0 }));
    }
}
