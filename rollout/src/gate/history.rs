//! The last hour under the stable revision.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::dispersion::Dispersion;
use super::pairs;
use super::sample::Sample;
use super::window::{Group, Window};
use crate::reading::{Counts, Scope};

/// The history is kept in two slots of this length, so it covers the last 30 to 60 minutes.
const SLOT_MS: u64 = 1_800_000;

/// Proxies whose requests in all are kept.
const MAX_PROXIES: usize = 20_000;

/// Samples of routes and upstreams, one per scope and proxy, that a slot holds beside. Beyond it, only those that it knows already are
/// counted.
const MAX_SAMPLES: usize = 20_000;

/// The last hour of the proxies that serve the stable revision.
///
/// It is no evidence for or against a candidate. It says which proxies were worse before, how failures cluster, and which routes have traffic.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    current: Slot,
    previous: Slot,
    #[serde(with = "pairs")]
    dispersions: BTreeMap<Scope, [Dispersion; 2]>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Slot {
    elapsed_ms: u64,
    /// The number of samples of routes and upstreams.
    samples: usize,
    #[serde(with = "pairs")]
    scopes: BTreeMap<Scope, BTreeMap<Arc<str>, Sample>>,
    /// The time that each proxy has reported for, in milliseconds.
    reported_ms: BTreeMap<Arc<str>, u64>,
}

/// The past of a step's canaries and of the rest, before the step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Past {
    #[serde(with = "pairs")]
    pub(super) scopes: BTreeMap<Scope, ScopePast>,
    pub(super) proxies: BTreeMap<Arc<str>, ProxyPast>,
}

/// The past of one scope.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ScopePast {
    pub(super) canary: Sample,
    pub(super) rest: Sample,
    pub(super) errors: Dispersion,
    pub(super) not_found: Dispersion,
}

/// The past of one proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ProxyPast {
    pub(super) reported_ms: u64,
    pub(super) requests: u64,
    pub(super) cpu_us: u64,
}

impl History {
    /// Adds a window. The canaries in it do not count.
    pub fn observe(&mut self, window: &Window) {
        self.current.elapsed_ms = self.current.elapsed_ms.saturating_add(window.length_ms);
        if self.current.elapsed_ms >= SLOT_MS {
            self.previous = std::mem::take(&mut self.current);
        }
        for proxy in window.proxies.iter().filter(|proxy| proxy.place.group == Group::Rest) {
            self.current.report(&proxy.node, window.length_ms);
            let cell = cell_of(&proxy.node);
            for (scope, sample) in &proxy.scopes {
                if self.current.add(scope, &proxy.node, sample) {
                    let [errors, not_found] = self.dispersions.entry(scope.clone()).or_default();
                    errors.add(cell, Counts { requests: sample.requests, failures: sample.errors });
                    not_found.add(cell, Counts { requests: sample.requests, failures: sample.not_found });
                }
            }
        }
        let (current, previous) = (&self.current.scopes, &self.previous.scopes);
        self.dispersions.retain(|scope, dispersions| {
            dispersions.iter_mut().for_each(|dispersion| dispersion.end_window(window.length_ms));
            current.contains_key(scope) || previous.contains_key(scope)
        });
    }

    /// The past of a step's canaries and of the rest.
    #[must_use]
    pub fn past(&self, is_canary: impl Fn(&str) -> bool) -> Past {
        let mut past = Past::default();
        for slot in [&self.previous, &self.current] {
            for (scope, proxies) in &slot.scopes {
                let sums = past.scopes.entry(scope.clone()).or_default();
                for (node, sample) in proxies {
                    if is_canary(node) { &mut sums.canary } else { &mut sums.rest }.add(sample);
                    if *scope == Scope::Fleet {
                        let proxy = past.proxies.entry(node.clone()).or_default();
                        proxy.requests = proxy.requests.saturating_add(sample.requests);
                        proxy.cpu_us = proxy.cpu_us.saturating_add(sample.cpu_us);
                    }
                }
            }
            for (node, ms) in &slot.reported_ms {
                let proxy = past.proxies.entry(node.clone()).or_default();
                proxy.reported_ms = proxy.reported_ms.saturating_add(*ms);
            }
        }
        for (scope, [errors, not_found]) in &self.dispersions {
            let sums = past.scopes.entry(scope.clone()).or_default();
            sums.errors = errors.clone();
            sums.not_found = not_found.clone();
        }
        past
    }
}

impl Slot {
    fn report(&mut self, node: &Arc<str>, length_ms: u64) {
        if let Some(ms) = self.reported_ms.get_mut(node) {
            *ms = ms.saturating_add(length_ms);
        } else if self.reported_ms.len() < MAX_PROXIES {
            self.reported_ms.insert(node.clone(), length_ms);
        }
    }

    /// Adds a sample, and says whether there was room for it.
    fn add(&mut self, scope: &Scope, node: &Arc<str>, sample: &Sample) -> bool {
        if let Some(known) = self.scopes.get_mut(scope).and_then(|proxies| proxies.get_mut(node)) {
            known.add(sample);
            return true;
        }
        let room = match scope {
            Scope::Fleet => self.scopes.get(scope).is_none_or(|proxies| proxies.len() < MAX_PROXIES),
            Scope::Route(_) | Scope::Upstream(_) => self.samples < MAX_SAMPLES,
        };
        if room {
            self.samples += usize::from(*scope != Scope::Fleet);
            self.scopes.entry(scope.clone()).or_default().insert(node.clone(), sample.clone());
        }
        room
    }
}

/// A number that decides to which cell of a dispersion a proxy belongs.
pub(super) fn cell_of(node: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::window::{Place, ProxyWindow, StepKey};

    fn window(length_ms: u64, proxies: &[(&str, Group, u64)]) -> Window {
        let proxies = proxies.iter().map(|&(node, group, requests)| ProxyWindow {
            node: node.into(),
            place: Place { group, zone: "".into() },
            scopes: vec![(Scope::Fleet, Sample { requests, ..Sample::default() })],
        });
        Window { step: StepKey { round: 0, generation: 0 }, length_ms, proxies: proxies.collect() }
    }

    fn requests(past: &Past) -> (u64, u64) {
        past.scopes.get(&Scope::Fleet).map_or((0, 0), |scope| (scope.canary.requests, scope.rest.requests))
    }

    #[test]
    fn the_past_is_divided_by_the_canaries_to_be() {
        let mut history = History::default();
        history
            .observe(&window(1000, &[("a", Group::Rest, 5), ("b", Group::Rest, 7), ("c", Group::Canary, 9)]));
        let past = history.past(|node| node == "a");
        assert_eq!(requests(&past), (5, 7));
        assert_eq!(past.proxies["b"], ProxyPast { reported_ms: 1000, requests: 7, cpu_us: 0 });
    }

    #[test]
    fn the_past_ends_after_an_hour() {
        let mut history = History::default();
        history.observe(&window(1000, &[("a", Group::Rest, 5)]));
        history.observe(&window(SLOT_MS, &[("a", Group::Rest, 7)]));
        assert_eq!(requests(&history.past(|_| true)), (12, 0));
        history.observe(&window(SLOT_MS, &[]));
        assert_eq!(requests(&history.past(|_| true)), (7, 0));
        history.observe(&window(SLOT_MS, &[]));
        assert_eq!(requests(&history.past(|_| true)), (0, 0));
    }

    #[test]
    fn many_routes_push_no_proxy_out() {
        let mut history = History::default();
        let names: Vec<_> = (0..100).map(|node| node.to_string()).collect();
        let proxies: Vec<_> = names.iter().map(|name| (name.as_str(), Group::Rest, 5)).collect();
        let mut window = window(1000, &proxies);
        for proxy in &mut window.proxies {
            let sample = Sample { requests: 1, ..Sample::default() };
            proxy
                .scopes
                .extend((0..1000).map(|route| (Scope::Route(route.to_string().into()), sample.clone())));
        }
        history.observe(&window);
        let past = history.past(|node| node == "99");
        assert_eq!(requests(&past), (5, 495));
        assert_eq!(past.proxies["99"].requests, 5);
        assert_eq!(history.current.samples, MAX_SAMPLES);
    }

    #[test]
    fn the_history_is_bounded_and_survives_serde() {
        let mut history = History::default();
        for batch in 0..30 {
            let names: Vec<_> = (0..1000).map(|node| format!("{batch}-{node}")).collect();
            let proxies: Vec<_> = names.iter().map(|name| (name.as_str(), Group::Rest, 1)).collect();
            history.observe(&window(1000, &proxies));
        }
        assert_eq!(history.past(|_| true).proxies.len(), MAX_PROXIES);
        let text = serde_json::to_string(&history).unwrap();
        assert_eq!(serde_json::from_str::<History>(&text).unwrap(), history);
    }
}
