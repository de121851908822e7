//! The requests that canaries and the rest have served in an interval.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::sample::{Sample, Series};
use crate::reading::Scope;

/// A delta over more than this many intervals does not belong to the window: it tells of another time than the others.
const MAX_INTERVALS: u64 = 5;

/// The round of a fleet that evidence belongs to: a step, or a part of one in which the canaries are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepKey {
    /// The number of the round ([`State::round`](crate::machine::State::round)).
    pub round: u64,
    /// The generation of the fleet's target with which the round's members became canaries.
    pub generation: u64,
}

/// The counts of one proxy between two of its reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// The proxy's node id.
    pub node: Arc<str>,
    /// The time between the reports, by the proxy's own clock.
    pub length_ms: u64,
    /// The counts, without the series in which nothing was counted.
    pub series: Vec<Series>,
}

/// The side of a comparison that a proxy is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// It has the candidate.
    Canary,
    /// It has the stable revision.
    Rest,
}

/// A proxy's place in the comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The side.
    pub group: Group,
    /// The zone: proxies are compared within it.
    pub zone: Arc<str>,
}

/// The requests of one proxy in a window. Without requests, the proxy was there and had nothing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyWindow {
    /// The proxy's node id.
    pub node: Arc<str>,
    /// The proxy's place.
    pub place: Place,
    /// The counts per scope, each scope once.
    pub scopes: Vec<(Scope, Sample)>,
}

/// The requests that canaries and the rest have served in an interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The step whose members are the canaries.
    pub step: StepKey,
    /// The length of the interval in milliseconds.
    pub length_ms: u64,
    /// The proxies that have reported, each once.
    pub proxies: Vec<ProxyWindow>,
}

impl Window {
    /// Sorts the deltas of an interval.
    ///
    /// `place` gives each proxy's place, and `None` for proxies that take no part, such as one that was a canary until a moment ago. Of
    /// a canary, only requests count that began under the step's generation or a later one. Deltas over more than five intervals do not count.
    #[must_use]
    pub fn new(
        step: StepKey,
        length_ms: u64,
        deltas: impl IntoIterator<Item = Delta>,
        place: impl Fn(&str) -> Option<Place>,
    ) -> Self {
        let mut proxies = BTreeMap::<Arc<str>, (Place, BTreeMap<Scope, Sample>)>::new();
        for delta in deltas {
            if delta.length_ms > length_ms.saturating_mul(MAX_INTERVALS) {
                continue;
            }
            let Some(place) = place(&delta.node) else { continue };
            let (place, scopes) = proxies.entry(delta.node).or_insert_with(|| (place, BTreeMap::new()));
            for Series { generation, scope, sample } in delta.series {
                if place.group == Group::Rest || generation >= step.generation {
                    scopes.entry(scope).or_default().add(&sample);
                }
            }
        }
        let proxies = proxies
            .into_iter()
            .map(|(node, (place, scopes))| ProxyWindow { node, place, scopes: scopes.into_iter().collect() })
            .collect();
        Self { step, length_ms, proxies }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(node: &str, length_ms: u64, generation: u64, requests: u64) -> Delta {
        let sample = Sample { requests, ..Sample::default() };
        Delta {
            node: node.into(),
            length_ms,
            series: vec![Series { generation, scope: Scope::Fleet, sample }],
        }
    }

    #[test]
    fn only_requests_under_the_steps_generation_count_for_a_canary() {
        let place = |node: &str| {
            let group = match node {
                "canary" => Group::Canary,
                "rest" => Group::Rest,
                _ => return None,
            };
            Some(Place { group, zone: "z".into() })
        };
        let deltas = [
            delta("canary", 1000, 4, 1),
            delta("canary", 1000, 5, 2),
            delta("canary", 1000, 6, 4),
            delta("canary", 60_000, 6, 8),
            delta("rest", 1000, 3, 16),
            delta("other", 1000, 5, 32),
        ];
        let window = Window::new(StepKey { round: 1, generation: 5 }, 1000, deltas, place);
        let counted = |node: &str| {
            let proxy = window.proxies.iter().find(|proxy| &*proxy.node == node)?;
            proxy.scopes.first().map(|(_, sample)| sample.requests)
        };
        assert_eq!((counted("canary"), counted("rest"), counted("other")), (Some(6), Some(16), None));
    }
}
