//! The status of proxies, fleets and rollouts, read from the board's records.

use std::sync::Arc;

use super::fleet::{Connection, Fleet};
use super::fleet_proxy::FleetProxy;
use super::proxy::{Duplicate, Proxy};
use super::state::State;
use super::status::{
    FleetStatus, ProxyRevision, ProxyState, ProxyStatus, PurgeProgress, Rollout, RolloutCounts, RolloutFault,
    RolloutReason, WaitResult, Waiting,
};
use crate::clock::rfc3339;

impl State {
    pub(super) fn proxies(&self) -> Vec<ProxyStatus> {
        let mut proxies: Vec<_> = self.proxies.values().map(|proxy| self.status(proxy)).collect();
        proxies.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        proxies
    }

    pub(super) fn proxies_without(&self, plugin_type: &str, concerns: impl Fn(&str) -> bool) -> usize {
        let lacks = |proxy: &&Proxy| {
            let known = proxy.node.plugin_types.as_deref();
            let lacks =
                |types: &[Box<str>]| types.binary_search_by(|known| (**known).cmp(plugin_type)).is_err();
            proxy.connected && known.is_some_and(lacks) && concerns(&proxy.node.fleet)
        };
        self.proxies.values().filter(lacks).count()
    }

    pub(super) fn proxy(&self, id: &str) -> Option<ProxyStatus> {
        self.proxies.get(id).map(|proxy| self.status(proxy))
    }

    pub(super) fn rollouts(&self, limit: usize) -> Vec<Rollout> {
        let mut keys: Vec<_> = self
            .fleets
            .iter()
            .flat_map(|(name, fleet)| {
                fleet.rollouts.keys().rev().take(limit).map(move |number| (*number, name))
            })
            .collect();
        keys.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        keys.truncate(limit);
        keys.into_iter().filter_map(|(number, fleet)| self.rollout_status(number, fleet)).collect()
    }

    pub(super) fn rollout(&self, id: &str) -> Option<Rollout> {
        let (number, fleet) = id.split_once('-')?;
        self.rollout_status(number.parse().ok()?, fleet)
    }

    pub(super) fn rollouts_of(&self, revision: u64, fleet: Option<&str>) -> Vec<Rollout> {
        self.fleets
            .keys()
            .filter(|name| fleet.is_none_or(|fleet| *fleet == ***name))
            .filter_map(|name| self.rollout_status(revision, name))
            .collect()
    }

    pub(super) fn rollout_status(&self, number: u64, name: &str) -> Option<Rollout> {
        let fleet = self.fleets.get(name)?;
        let record = fleet.rollouts.get(&number)?;
        Some(Rollout {
            id: format!("{number}-{name}"),
            revision: number,
            base_revision: record.base,
            fleet: name.to_owned(),
            stable_revision: 0,
            generation: 0,
            state: record.state,
            strategy: "immediate".to_owned(),
            step: 0,
            steps: Vec::new(),
            bake: None,
            gates: Vec::new(),
            counts: record.counts.unwrap_or_else(|| self.counts(name, fleet, number)),
            proxies_url: format!("/api/v1/rollouts/{number}-{name}/proxies"),
            started_at: rfc3339(record.committed_at_us),
            finished_at: record.finished_at_us.map(rfc3339),
            propagation_ms: record.propagation(),
            reason: record.reason.as_ref().map(|text| rejected(text, record.fault.as_ref())),
            superseded_by: None,
            revert: None,
            events: Vec::new(),
            fault: record.fault.clone(),
        })
    }

    /// The proxies of a fleet, by id.
    pub(super) fn fleet_proxies(&self, fleet: &str) -> Vec<FleetProxy> {
        let epoch = self.head.as_ref().map(|head| &head.epoch);
        let status = |proxy: &Proxy| {
            let connection = self.connection(proxy);
            let served = match connection {
                Connection::Connected { serves, .. } => serves,
                Connection::Unknown | Connection::Disconnected => self.served(proxy),
            };
            let of_epoch = proxy.rejections.iter().filter(|rejection| Some(&rejection.epoch) == epoch);
            FleetProxy {
                node: Arc::clone(&proxy.node),
                replica: Arc::clone(&proxy.replica),
                connected: matches!(connection, Connection::Connected { .. }),
                served,
                acked_at_us: proxy.acked_at_us,
                rejected: of_epoch.map(|rejection| rejection.revision).collect(),
                drifted: proxy.drifted,
            }
        };
        let members = self.proxies.values().filter(|proxy| *proxy.node.fleet == *fleet);
        let mut proxies: Vec<FleetProxy> = members.map(status).collect();
        proxies.sort_unstable_by(|a, b| a.node.id.cmp(&b.node.id));
        proxies
    }

    /// The proxies of a fleet in relation to a revision that a part of them is to serve.
    pub(super) fn assigned_counts(&self, fleet: &str, revision: u64) -> RolloutCounts {
        let mut counts = RolloutCounts::default();
        for proxy in self.proxies.values().filter(|proxy| *proxy.node.fleet == *fleet) {
            counts.total += 1;
            let is_assigned = self.assigned(proxy).0 >= revision;
            counts.assigned += u32::from(is_assigned);
            match self.connection(proxy) {
                Connection::Disconnected => counts.disconnected += 1,
                Connection::Unknown => counts.unknown += 1,
                Connection::Connected { rejected: Some(number), .. } if number == revision => {
                    counts.rejected += 1;
                }
                Connection::Connected { serves, .. } if serves >= revision => counts.applied += 1,
                Connection::Connected { .. } => counts.pending += u32::from(is_assigned),
            }
        }
        counts
    }

    pub(super) fn fleets(&self) -> Vec<FleetStatus> {
        let head = self.head.as_ref().map_or(0, |head| head.number);
        let status = |(name, fleet): (&Arc<str>, &Fleet)| FleetStatus {
            name: name.to_string(),
            proxies: fleet.total,
            connected: fleet.connected,
            unknown: fleet.unknown,
            assigned: self.targets.get(name).and_then(|target| target.revisions().next()).unwrap_or(head),
            served: fleet.applied.first_key_value().map(|(number, _)| *number),
        };
        self.fleets.iter().map(status).collect()
    }

    /// How a wait for `revision` stands; `None`: it goes on.
    pub(super) fn convergence(&self, revision: u64, fleet: Option<&str>) -> Option<WaitResult> {
        let head = self.head.as_ref().map(|head| head.number).filter(|head| *head >= revision)?;
        let mut done = true;
        for (name, fleet) in
            self.fleets.iter().filter(|(name, _)| fleet.is_none_or(|fleet| *fleet == ***name))
        {
            if self.is_pinned(name) {
                // Gates judge rejections there. Only proxies that are to serve the revision are waited for.
                let counts = self.assigned_counts(name, revision);
                done &= counts.pending == 0 && counts.unknown == 0;
                continue;
            }
            if fleet.rejections(revision) > 0 {
                return Some(WaitResult::Rejected);
            }
            done &= fleet.unknown == 0;
            done &= fleet.applied.first_key_value().is_none_or(|(lowest, _)| *lowest >= revision);
            // Ahead of what is published here: what the proxy has is not known until that has caught up.
            done &= fleet.applied.last_key_value().is_none_or(|(highest, _)| *highest <= head);
        }
        done.then_some(WaitResult::Done)
    }

    /// True if a proxy that is connected, or of which that is not known, has yet to carry out the purge of this number.
    pub(super) fn is_purge_pending(&self, number: u64) -> bool {
        self.proxies.values().any(|proxy| match self.connection(proxy) {
            Connection::Disconnected => false,
            Connection::Connected { .. } => proxy.purged < number,
            Connection::Unknown => true,
        })
    }

    /// How the proxies stand to the purge of this number.
    pub(super) fn purge_progress(&self, number: u64, limit: usize) -> PurgeProgress {
        let mut progress = PurgeProgress::default();
        for proxy in self.proxies.values() {
            match self.connection(proxy) {
                Connection::Disconnected => progress.disconnected += 1,
                Connection::Connected { .. } if proxy.purged >= number => progress.done += 1,
                Connection::Connected { .. } | Connection::Unknown => {
                    progress.pending += 1;
                    progress.waiting.push(proxy.node.id.to_string());
                }
            }
        }
        progress.waiting.sort_unstable();
        progress.waiting.truncate(limit);
        progress
    }

    /// For whom a wait for `revision` goes on: the first `limit`, by id, and how many there are.
    pub(super) fn waited_for(
        &self,
        revision: u64,
        fleet: Option<&str>,
        limit: usize,
    ) -> (Vec<Waiting>, usize) {
        let head = self.head.as_ref().map_or(0, |head| head.number);
        let mut found: Vec<&Proxy> = (self.proxies.values())
            .filter(|proxy| fleet.is_none_or(|fleet| *proxy.node.fleet == *fleet))
            .filter(|proxy| match self.connection(proxy) {
                Connection::Connected { serves, .. } => {
                    serves > head || serves < revision && self.assigned(proxy).0 >= revision
                }
                Connection::Unknown => true,
                Connection::Disconnected => false,
            })
            .collect();
        let total = found.len();
        found.sort_unstable_by(|a, b| a.node.id.cmp(&b.node.id));
        found.truncate(limit);
        let waiting = |proxy: &Proxy| Waiting {
            id: proxy.node.id.to_string(),
            fleet: proxy.node.fleet.to_string(),
            state: self.proxy_state(proxy),
            applied: proxy.applied,
        };
        (found.into_iter().map(waiting).collect(), total)
    }

    fn proxy_state(&self, proxy: &Proxy) -> ProxyState {
        let (assigned, ..) = self.assigned(proxy);
        match self.connection(proxy) {
            Connection::Disconnected => ProxyState::Disconnected,
            Connection::Unknown if !proxy.drifted => ProxyState::Unknown,
            Connection::Unknown => ProxyState::Drifted,
            Connection::Connected { .. } if proxy.drifted => ProxyState::Drifted,
            Connection::Connected { serves, .. }
                if serves == assigned && proxy.verified && self.head.is_some() && !proxy.epoch.is_empty() =>
            {
                ProxyState::InSync
            }
            Connection::Connected { .. }
                if proxy.error.as_ref().is_some_and(|error| error.revision >= assigned) =>
            {
                ProxyState::Rejected
            }
            Connection::Connected { .. } => ProxyState::Pending,
        }
    }

    fn status(&self, proxy: &Proxy) -> ProxyStatus {
        let (assigned, generation, assigned_because) = self.assigned(proxy);
        let state = self.proxy_state(proxy);
        let connected = matches!(self.connection(proxy), Connection::Connected { .. });
        let reported = proxy.reported.filter(|(number, ..)| *number == proxy.applied);
        ProxyStatus {
            id: proxy.node.id.to_string(),
            fleet: proxy.node.fleet.to_string(),
            labels: proxy.node.labels.clone(),
            version: proxy.node.version.clone(),
            address: proxy.node.address.clone(),
            connected,
            connected_to: proxy.replica.to_string(),
            last_seen: rfc3339(proxy.last_seen_us),
            state,
            revision: ProxyRevision {
                assigned,
                generation,
                assigned_because,
                sent: proxy.sent,
                applied: proxy.applied,
                applied_at: reported.map(|(_, at, _)| at).or(proxy.acked_at_us).map(rfc3339),
            },
            apply_ms: reported.map(|(_, _, took)| took as f64 / 1e3),
            error: proxy.error.clone(),
            traffic: proxy.traffic.clone().filter(|_| connected),
            listeners: proxy.listeners.clone(),
            admin_address: proxy.admin_address.clone(),
            warnings: proxy
                .duplicate
                .iter()
                .map(Duplicate::to_string)
                .chain(proxy.warnings.iter().cloned())
                .collect(),
        }
    }
}

fn rejected(text: &str, fault: Option<&RolloutFault>) -> RolloutReason {
    let fault = fault.filter(|fault| !fault.kind.is_empty());
    RolloutReason {
        code: "rejected".to_owned(),
        text: text.to_owned(),
        resource: fault.map(|fault| format!("{}/{}", fault.kind, fault.name)),
        route: fault.filter(|fault| fault.kind == "route").map(|fault| fault.name.clone()),
    }
}
