//! What the board knows, and how each event changes it: synchronous, over values, O(1) in the number of proxies.
//!
//! A fleet does not look at its proxies to know how it stands. It counts the connected ones by the revision they
//! serve; each event takes a proxy's old contribution out of the counts and puts the new one in.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use signalbox_config::RevisionId;
use signalbox_proto::signalbox::report::v1::ProxyReport;

use super::status::{
    FleetStatus, Propagation, ProxyError, ProxyResourceError, ProxyRevision, ProxyState, ProxyStatus,
    ProxyTraffic, Rollout, RolloutCounts, RolloutState, TrafficClasses,
};
use super::{Node, WaitResult};

/// What happened. `stream` tells the streams of one proxy apart: the latest that opened counts, and what an earlier
/// one still has to say is ignored.
#[derive(Debug, Clone)]
pub enum Event {
    /// This control plane published a revision.
    Published {
        /// Which.
        revision: RevisionId,
        /// When it was committed, microseconds since 1970.
        committed_at_us: i64,
    },
    /// A proxy opened a stream.
    Opened {
        /// Of all streams to this control plane.
        stream: u64,
        /// Who it is.
        node: Node,
        /// What it says it serves.
        presented: Option<RevisionId>,
    },
    /// Its stream ended.
    Closed {
        /// See above.
        stream: u64,
        /// The proxy.
        id: Arc<str>,
    },
    /// A revision was written to its stream, whole.
    Sent {
        /// See above.
        stream: u64,
        /// The proxy.
        id: Arc<str>,
        /// Which.
        revision: u64,
    },
    /// It serves a revision.
    Acked {
        /// See above.
        stream: u64,
        /// The proxy.
        id: Arc<str>,
        /// Which.
        revision: RevisionId,
    },
    /// It rejected a revision.
    Rejected {
        /// See above.
        stream: u64,
        /// The proxy.
        id: Arc<str>,
        /// Which.
        revision: u64,
        /// Why.
        resources: Vec<ProxyResourceError>,
    },
    /// What it has is not what any revision is: its digest differs, or it is ahead of this control plane.
    Drifted {
        /// See above.
        stream: u64,
        /// The proxy.
        id: Arc<str>,
        /// Against which.
        revision: u64,
        /// How that was seen.
        message: String,
    },
    /// What it says of itself.
    Reported(Box<ProxyReport>),
    /// A person had it forgotten.
    Forgotten {
        /// The proxy.
        id: Arc<str>,
    },
}

/// What is known.
pub(super) struct State {
    replica: Arc<str>,
    head: Option<RevisionId>,
    head_committed_at_us: i64,
    proxies: HashMap<Arc<str>, Proxy>,
    fleets: BTreeMap<Arc<str>, Fleet>,
    /// Something may have ended a wait.
    pub(super) progress: bool,
    pub(super) unsaved: Dirty,
    pub(super) untold: Dirty,
    /// Proxies whose traffic or last sign of life is all that changed: written less often.
    alive: HashSet<Arc<str>>,
}

/// What changed and was not passed on yet.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub(super) proxies: HashSet<Arc<str>>,
    pub(super) rollouts: BTreeSet<(u64, Arc<str>)>,
    pub(super) forgotten: Vec<Arc<str>>,
}

/// A proxy, as it is also stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Proxy {
    pub(super) node: Arc<Node>,
    /// The control plane it has its stream to, or had.
    pub(super) replica: Arc<str>,
    pub(super) connected: bool,
    connected_at_us: i64,
    last_seen_us: i64,
    sent: u64,
    /// The epoch of `applied`; empty before the first.
    epoch: Arc<str>,
    applied: u64,
    acked_at_us: Option<i64>,
    /// Revision, when it was applied, and how long that took: microseconds, as it reported.
    reported: Option<(u64, i64, u64)>,
    error: Option<ProxyError>,
    drifted: bool,
    traffic: Option<ProxyTraffic>,
    listeners: BTreeMap<String, String>,
    /// As it reported. A version before does not know them.
    #[serde(default)]
    warnings: Vec<String>,
    /// Its stream to this control plane.
    #[serde(skip)]
    stream: Option<u64>,
    /// Of another control plane's row: its time of writing, and when that was seen to change, by our clock.
    #[serde(skip)]
    row: (i64, i64),
}

#[derive(Debug, Default)]
struct Fleet {
    total: u32,
    connected: u32,
    /// The connected ones, by what they serve.
    applied: BTreeMap<u64, u32>,
    /// Those of them that rejected a later one: by what they rejected, and by what they serve.
    rejected: BTreeMap<(u64, u64), u32>,
    ways: BTreeMap<u64, Way>,
    /// Every way up to this revision has its final counts.
    settled: u64,
}

/// A rollout.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Way {
    base: u64,
    committed_at_us: i64,
    state: RolloutState,
    finished_at_us: Option<i64>,
    reason: Option<String>,
    /// Set once nothing can change any more.
    counts: Option<RolloutCounts>,
    propagation: Option<Propagation>,
    /// From the commit to each ACK, microseconds; until the counts are final.
    #[serde(skip)]
    samples: Vec<u32>,
}

/// What a proxy adds to its fleet's counts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Contribution {
    fleet: Arc<str>,
    /// What it serves, and what it rejected after that.
    connected: Option<(u64, Option<u64>)>,
}

impl State {
    /// How many rollouts are kept for each fleet.
    const ROLLOUTS: usize = 200;

    pub(super) fn new(replica: Arc<str>) -> Self {
        Self {
            replica,
            head: None,
            head_committed_at_us: 0,
            proxies: HashMap::new(),
            fleets: BTreeMap::new(),
            progress: false,
            unsaved: Dirty::default(),
            untold: Dirty::default(),
            alive: HashSet::new(),
        }
    }

    pub(super) fn fold(&mut self, now_us: i64, event: Event) {
        match event {
            Event::Published { revision, committed_at_us } => {
                self.published(now_us, revision, committed_at_us);
            }
            Event::Opened { stream, node, presented } => self.opened(now_us, stream, node, presented),
            Event::Closed { stream, id } => self.on_stream(now_us, stream, &id, |proxy| {
                proxy.stream = None;
                proxy.connected = false;
            }),
            Event::Sent { stream, id, revision } => {
                self.on_stream(now_us, stream, &id, |proxy| proxy.sent = revision);
            }
            Event::Acked { stream, id, revision } => {
                let before = self.proxies.get(&id).filter(|proxy| proxy.stream == Some(stream));
                let Some(before) = before.map(|proxy| (self.served(proxy), proxy.connected_at_us)) else {
                    return;
                };
                let number = revision.number;
                self.sample(&id, before.0, number, before.1, now_us);
                self.on_stream(now_us, stream, &id, |proxy| {
                    proxy.epoch = revision.epoch;
                    proxy.applied = number;
                    proxy.acked_at_us = Some(now_us);
                    proxy.drifted = false;
                    proxy.error.take_if(|error| error.revision <= number);
                });
            }
            Event::Rejected { stream, id, revision, resources } => {
                let reason = reason(&id, &resources);
                self.on_stream(now_us, stream, &id, |proxy| {
                    proxy.error = Some(ProxyError { revision, resources });
                });
                self.note_reason(&id, revision, reason);
            }
            Event::Drifted { stream, id, revision, message } => {
                let resources = vec![ProxyResourceError {
                    kind: String::new(),
                    name: String::new(),
                    field: String::new(),
                    message,
                }];
                self.on_stream(now_us, stream, &id, |proxy| {
                    proxy.drifted = true;
                    proxy.error = Some(ProxyError { revision, resources });
                });
            }
            Event::Reported(report) => self.reported(now_us, *report),
            Event::Forgotten { id } => self.forget(now_us, &id),
        }
    }

    fn published(&mut self, now_us: i64, revision: RevisionId, committed_at_us: i64) {
        let base = match &self.head {
            Some(head) if head.epoch == revision.epoch && head.number >= revision.number => return,
            Some(head) if head.epoch == revision.epoch => head.number,
            _ => revision.number.saturating_sub(1),
        };
        let new_epoch = self.head.as_ref().is_some_and(|head| head.epoch != revision.epoch);
        let first = self.head.is_none();
        let number = revision.number;
        self.head = Some(revision);
        self.head_committed_at_us = committed_at_us;
        self.progress = true;
        if new_epoch || first {
            self.recount();
        }
        let names: Vec<_> = self.fleets.keys().cloned().collect();
        for name in names {
            let Some(fleet) = self.fleets.get_mut(&name) else { continue };
            if new_epoch {
                // Numbers of the old epoch say nothing about those of the new one.
                fleet.ways.clear();
                fleet.settled = 0;
            }
            for (older, way) in fleet.ways.range_mut(..number).rev() {
                if way.finished_at_us.is_some() && way.state != RolloutState::Failed {
                    break;
                }
                if way.finished_at_us.is_none() {
                    way.state = RolloutState::Superseded;
                    way.finished_at_us = Some(now_us);
                    self.unsaved.rollouts.insert((*older, name.clone()));
                    self.untold.rollouts.insert((*older, name.clone()));
                }
            }
            if number > 0 {
                // Nobody made revision 0.
                fleet.ways.entry(number).or_insert_with(|| Way::new(base, committed_at_us));
            }
            while fleet.ways.len() > Self::ROLLOUTS {
                fleet.ways.pop_first();
            }
            self.settle(now_us, &name);
        }
    }

    fn opened(&mut self, now_us: i64, stream: u64, node: Node, presented: Option<RevisionId>) {
        let id = node.id.clone();
        let fleet = node.fleet.clone();
        let before = self.proxies.get(&id).map(|proxy| self.contribution(proxy));
        let mut proxy = self.proxies.remove(&id).unwrap_or_else(|| Proxy::new(&node));
        let presented = presented.unwrap_or_else(|| RevisionId { epoch: "".into(), number: 0 });
        if (&proxy.epoch, proxy.applied) != (&presented.epoch, presented.number) {
            proxy.acked_at_us = None;
        }
        proxy.node = Arc::new(node);
        proxy.replica = self.replica.clone();
        proxy.stream = Some(stream);
        proxy.connected = true;
        proxy.connected_at_us = now_us;
        proxy.last_seen_us = now_us;
        proxy.sent = presented.number;
        proxy.epoch = presented.epoch;
        proxy.applied = presented.number;
        proxy.drifted = false;
        proxy.error.take_if(|error| error.revision <= presented.number);
        self.proxies.insert(id.clone(), proxy);
        if !self.fleets.contains_key(&fleet) {
            self.add_fleet(fleet);
        }
        self.contribute(now_us, &id, before);
        self.mark(&id);
    }

    /// Changes a proxy, if `stream` is its present one.
    fn on_stream(&mut self, now_us: i64, stream: u64, id: &Arc<str>, change: impl FnOnce(&mut Proxy)) {
        let Some(proxy) = self.proxies.get(id).filter(|proxy| proxy.stream == Some(stream)) else { return };
        let before = self.contribution(proxy);
        if let Some(proxy) = self.proxies.get_mut(id) {
            proxy.last_seen_us = now_us;
            change(proxy);
        }
        self.contribute(now_us, id, Some(before));
        self.mark(id);
    }

    fn reported(&mut self, now_us: i64, report: ProxyReport) {
        let Some(proxy) =
            self.proxies.get_mut(report.node_id.as_str()).filter(|proxy| proxy.stream.is_some())
        else {
            return;
        };
        let id = proxy.node.id.clone();
        proxy.last_seen_us = now_us;
        let reported = Some((report.revision, report.applied_at_us, report.apply_us));
        let listeners: BTreeMap<_, _> = report.listeners.into_iter().collect();
        let lasting =
            proxy.reported != reported || proxy.listeners != listeners || proxy.warnings != report.warnings;
        proxy.reported = reported;
        proxy.listeners = listeners;
        proxy.warnings = report.warnings;
        proxy.traffic = report.traffic.map(|traffic| {
            let share = |count: u64| ratio(count as f64, traffic.requests as f64);
            let classes = traffic.classes.map(|classes| TrafficClasses {
                no_route: share(classes.no_route),
                client_errors: share(classes.client_errors),
                server_errors: share(traffic.errors),
            });
            ProxyTraffic {
                requests_per_second: ratio(traffic.requests as f64 * 1e6, traffic.interval_us as f64),
                error_ratio: share(traffic.errors),
                p99_ms: traffic.p99_us as f64 / 1e3,
                classes,
            }
        });
        if lasting {
            self.mark(&id);
        } else {
            self.untold.proxies.insert(id.clone());
            self.alive.insert(id);
        }
    }

    fn forget(&mut self, now_us: i64, id: &Arc<str>) {
        let Some(proxy) = self.proxies.get(id) else { return };
        let before = self.contribution(proxy);
        self.proxies.remove(id);
        self.contribute(now_us, id, Some(before));
        for dirty in [&mut self.unsaved, &mut self.untold] {
            dirty.proxies.remove(id);
        }
        self.alive.remove(id);
        self.untold.forgotten.push(id.clone());
    }

    /// Takes in what another control plane wrote of a proxy, or what was stored before the start.
    pub(super) fn read_row(&mut self, now_us: i64, mut proxy: Proxy, updated_at_us: i64) {
        let id = proxy.node.id.clone();
        let known = self.proxies.get(&id);
        if known.is_some_and(|known| known.stream.is_some()) {
            // Ours, whatever the other thinks: it has not seen yet that the proxy came here.
            self.unsaved.proxies.insert(id);
            return;
        }
        let before = known.map(|known| self.contribution(known));
        let earlier = known.map(|known| (self.served(known), known.connected_at_us));
        if known.is_some_and(|known| known.row.0 == updated_at_us) {
            return;
        }
        proxy.row = (updated_at_us, now_us);
        let (acked_at_us, number) = (proxy.acked_at_us, self.served(&proxy));
        let fleet = proxy.node.fleet.clone();
        self.proxies.insert(id.clone(), proxy);
        if !self.fleets.contains_key(&fleet) {
            self.add_fleet(fleet);
        }
        if let (Some((earlier, since)), Some(acked_at_us)) = (earlier, acked_at_us)
            && number > earlier
        {
            // Only the last ACK's time is known, not when it had come past the revisions before.
            self.sample(&id, number - 1, number, since, acked_at_us);
        }
        self.contribute(now_us, &id, before);
        self.untold.proxies.insert(id);
    }

    /// Takes for disconnected what other control planes have said nothing new of for `patience_us`.
    pub(super) fn expire(&mut self, now_us: i64, patience_us: i64) {
        let silent =
            |proxy: &&Proxy| proxy.connected && proxy.stream.is_none() && now_us - proxy.row.1 > patience_us;
        let ids: Vec<_> = self.proxies.values().filter(silent).map(|proxy| proxy.node.id.clone()).collect();
        for id in ids {
            let Some(proxy) = self.proxies.get(&id) else { continue };
            let before = self.contribution(proxy);
            if let Some(proxy) = self.proxies.get_mut(&id) {
                proxy.connected = false;
            }
            self.contribute(now_us, &id, Some(before));
            self.untold.proxies.insert(id);
        }
    }

    /// Drops the proxies whose rows are gone: another control plane forgot them.
    pub(super) fn keep_rows(&mut self, now_us: i64, ids: &HashSet<&str>) {
        let gone = |proxy: &&Proxy| {
            proxy.stream.is_none()
                && !proxy.connected
                && !ids.contains(&*proxy.node.id)
                && !self.unsaved.proxies.contains(&proxy.node.id)
        };
        let gone: Vec<_> = self.proxies.values().filter(gone).map(|proxy| proxy.node.id.clone()).collect();
        for id in gone {
            self.forget(now_us, &id);
        }
    }

    /// Takes in a rollout of before the start.
    pub(super) fn read_way(&mut self, revision: u64, fleet: Arc<str>, way: Way) {
        let fleet = self.fleets.entry(fleet).or_default();
        fleet.ways.insert(revision, way);
        fleet.settled = fleet.settled.max(revision.saturating_sub(1));
    }

    /// Which proxies with a stream to this control plane are to be written anew, for they are alive: those that reported since
    /// this was last asked, or all.
    pub(super) fn take_alive(&mut self, all: bool) -> Vec<Arc<str>> {
        let reported = std::mem::take(&mut self.alive);
        let local = self.proxies.values().filter(|proxy| proxy.stream.is_some());
        local.map(|proxy| &proxy.node.id).filter(|id| all || reported.contains(*id)).cloned().collect()
    }

    /// What to write of a proxy. Nothing of one that went to another control plane: that one writes it.
    pub(super) fn stored_proxy(&self, id: &str) -> Option<&Proxy> {
        self.proxies.get(id).filter(|proxy| proxy.replica == self.replica)
    }

    pub(super) fn stored_way(&self, revision: u64, fleet: &str) -> Option<Way> {
        let found = self.fleets.get(fleet)?;
        let mut way = found.ways.get(&revision)?.clone();
        way.counts = Some(way.counts.unwrap_or_else(|| found.counts(revision)));
        way.propagation = way.propagation();
        Some(way)
    }

    // Reading.

    pub(super) fn proxies(&self) -> Vec<ProxyStatus> {
        let mut proxies: Vec<_> = self.proxies.values().map(|proxy| self.status(proxy)).collect();
        proxies.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        proxies
    }

    pub(super) fn proxy(&self, id: &str) -> Option<ProxyStatus> {
        self.proxies.get(id).map(|proxy| self.status(proxy))
    }

    pub(super) fn rollouts(&self, limit: usize) -> Vec<Rollout> {
        let mut keys: Vec<_> = self
            .fleets
            .iter()
            .flat_map(|(name, fleet)| fleet.ways.keys().rev().take(limit).map(move |number| (*number, name)))
            .collect();
        keys.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        keys.truncate(limit);
        keys.into_iter().filter_map(|(number, fleet)| self.way(number, fleet)).collect()
    }

    pub(super) fn rollout(&self, id: &str) -> Option<Rollout> {
        let (number, fleet) = id.split_once('-')?;
        self.way(number.parse().ok()?, fleet)
    }

    pub(super) fn rollouts_of(&self, revision: u64, fleet: Option<&str>) -> Vec<Rollout> {
        self.fleets
            .keys()
            .filter(|name| fleet.is_none_or(|fleet| *fleet == ***name))
            .filter_map(|name| self.way(revision, name))
            .collect()
    }

    pub(super) fn way(&self, number: u64, name: &str) -> Option<Rollout> {
        let fleet = self.fleets.get(name)?;
        let way = fleet.ways.get(&number)?;
        Some(Rollout {
            id: format!("{number}-{name}"),
            revision: number,
            base_revision: way.base,
            fleet: name.to_owned(),
            state: way.state,
            strategy: "immediate".to_owned(),
            step: 0,
            counts: way.counts.unwrap_or_else(|| fleet.counts(number)),
            started_at: time(way.committed_at_us),
            finished_at: way.finished_at_us.map(time),
            propagation_ms: way.propagation(),
            reason: way.reason.clone(),
        })
    }

    pub(super) fn fleets(&self) -> Vec<FleetStatus> {
        let assigned = self.head.as_ref().map_or(0, |head| head.number);
        let status = |(name, fleet): (&Arc<str>, &Fleet)| FleetStatus {
            name: name.to_string(),
            proxies: fleet.total,
            connected: fleet.connected,
            assigned,
            served: fleet.applied.first_key_value().map(|(number, _)| *number),
        };
        self.fleets.iter().map(status).collect()
    }

    /// How a wait for `revision` stands; `None`: it goes on.
    pub(super) fn standing(&self, revision: u64, fleet: Option<&str>) -> Option<WaitResult> {
        if self.head.as_ref().is_none_or(|head| head.number < revision) {
            return None;
        }
        let mut done = true;
        for (_, fleet) in self.fleets.iter().filter(|(name, _)| fleet.is_none_or(|fleet| *fleet == ***name)) {
            if fleet.rejections(revision) > 0 {
                return Some(WaitResult::Rejected);
            }
            done &= fleet.applied.first_key_value().is_none_or(|(lowest, _)| *lowest >= revision);
        }
        done.then_some(WaitResult::Done)
    }

    fn status(&self, proxy: &Proxy) -> ProxyStatus {
        let assigned = self.head.as_ref().map_or(0, |head| head.number);
        let served = self.served(proxy);
        let state = if !proxy.connected {
            ProxyState::Disconnected
        } else if proxy.drifted {
            ProxyState::Drifted
        } else if served == assigned && self.head.is_some() && !proxy.epoch.is_empty() {
            ProxyState::InSync
        } else if proxy.error.as_ref().is_some_and(|error| error.revision >= assigned) {
            ProxyState::Rejected
        } else {
            ProxyState::Pending
        };
        let reported = proxy.reported.filter(|(number, ..)| *number == proxy.applied);
        ProxyStatus {
            id: proxy.node.id.to_string(),
            fleet: proxy.node.fleet.to_string(),
            labels: proxy.node.labels.clone(),
            version: proxy.node.version.clone(),
            address: proxy.node.address.clone(),
            connected: proxy.connected,
            connected_to: proxy.replica.to_string(),
            last_seen: time(proxy.last_seen_us),
            state,
            revision: ProxyRevision {
                assigned,
                sent: proxy.sent,
                applied: proxy.applied,
                applied_at: reported.map(|(_, at, _)| at).or(proxy.acked_at_us).map(time),
            },
            apply_ms: reported.map(|(_, _, took)| took as f64 / 1e3),
            error: proxy.error.clone(),
            traffic: proxy.traffic.clone().filter(|_| proxy.connected),
            listeners: proxy.listeners.clone(),
            warnings: proxy.warnings.clone(),
        }
    }

    // Counting.

    /// What of the present epoch a proxy serves.
    fn served(&self, proxy: &Proxy) -> u64 {
        match &self.head {
            Some(head) if head.epoch == proxy.epoch => proxy.applied,
            _ => 0,
        }
    }

    fn contribution(&self, proxy: &Proxy) -> Contribution {
        // What it serves is not what its revision has.
        let served = if proxy.drifted { 0 } else { self.served(proxy) };
        let rejected = proxy
            .error
            .as_ref()
            .map(|error| error.revision)
            // Drift is no verdict on the revision: the proxy is sent everything, and then answers.
            .filter(|revision| *revision > served && !proxy.drifted);
        Contribution {
            fleet: proxy.node.fleet.clone(),
            connected: proxy.connected.then_some((served, rejected)),
        }
    }

    /// Puts into the counts what a proxy contributes now instead of `before`.
    fn contribute(&mut self, now_us: i64, id: &str, before: Option<Contribution>) {
        let after = self.proxies.get(id).map(|proxy| self.contribution(proxy));
        if before == after {
            return;
        }
        for contribution in before.iter().chain(&after) {
            let lowest = self.fleets.get(&contribution.fleet).map(Fleet::outlook);
            if let Some(fleet) = self.fleets.get_mut(&contribution.fleet) {
                if after.as_ref().is_some_and(|after| std::ptr::eq(after, contribution)) {
                    fleet.add(contribution);
                } else {
                    fleet.subtract(contribution);
                }
                self.progress |= lowest != Some(fleet.outlook());
            }
        }
        let fleets: BTreeSet<_> =
            before.into_iter().chain(after).map(|contribution| contribution.fleet).collect();
        for fleet in fleets {
            self.settle(now_us, &fleet);
        }
    }

    /// Counts everything anew.
    fn recount(&mut self) {
        let contributions: Vec<_> = self.proxies.values().map(|proxy| self.contribution(proxy)).collect();
        for fleet in self.fleets.values_mut() {
            fleet.total = 0;
            fleet.connected = 0;
            fleet.applied.clear();
            fleet.rejected.clear();
        }
        for contribution in &contributions {
            if let Some(fleet) = self.fleets.get_mut(&contribution.fleet) {
                fleet.add(contribution);
            }
        }
    }

    fn add_fleet(&mut self, name: Arc<str>) {
        let mut fleet = Fleet::default();
        if let Some(head) = self.head.as_ref().filter(|head| head.number > 0) {
            fleet.ways.insert(head.number, Way::new(head.number - 1, self.head_committed_at_us));
            fleet.settled = head.number - 1;
        }
        self.fleets.insert(name, fleet);
    }

    /// Brings the rollouts of a fleet in step with its counts.
    fn settle(&mut self, now_us: i64, name: &Arc<str>) {
        let Some(head) = self.head.as_ref().map(|head| head.number) else { return };
        let Some(fleet) = self.fleets.get_mut(name) else { return };
        let lowest = fleet.applied.first_key_value().map_or(u64::MAX, |(number, _)| *number);
        let settled = lowest.min(head.saturating_sub(1));
        if settled > fleet.settled {
            let range = (Bound::Excluded(fleet.settled), Bound::Included(settled));
            let numbers: Vec<_> = fleet.ways.range(range).map(|(number, _)| *number).collect();
            for number in numbers {
                let counts = fleet.counts(number);
                if let Some(way) = fleet.ways.get_mut(&number) {
                    way.propagation = way.propagation();
                    way.samples = Vec::new();
                    way.counts = Some(counts);
                    self.unsaved.rollouts.insert((number, name.clone()));
                    self.untold.rollouts.insert((number, name.clone()));
                }
            }
            fleet.settled = settled;
        }
        let counts = fleet.counts(head);
        let Some(way) = fleet.ways.get_mut(&head) else { return };
        let before = way.state;
        way.state = if counts.rejected > 0 {
            RolloutState::Failed
        } else if counts.pending == 0 {
            RolloutState::Succeeded
        } else if way.state == RolloutState::Succeeded {
            // A proxy that came back, or a new one, is still on its way.
            RolloutState::Succeeded
        } else {
            RolloutState::Running
        };
        if way.state != RolloutState::Failed {
            way.reason = None;
        }
        if way.state == RolloutState::Running {
            way.finished_at_us = None;
        } else if way.finished_at_us.is_none() || before != way.state {
            way.finished_at_us = Some(now_us);
        }
        way.counts = None;
        self.unsaved.rollouts.insert((head, name.clone()));
        self.untold.rollouts.insert((head, name.clone()));
    }

    /// Notes how long the revisions after `before` up to `after` took to a proxy that was there when they were
    /// committed.
    fn sample(&mut self, id: &str, before: u64, after: u64, connected_at_us: i64, acked_at_us: i64) {
        let Some(proxy) = self.proxies.get(id) else { return };
        let Some(fleet) = self.fleets.get_mut(&proxy.node.fleet) else { return };
        if before >= after {
            return;
        }
        for way in fleet.ways.range_mut((Bound::Excluded(before), Bound::Included(after))).map(|(_, way)| way)
        {
            if connected_at_us <= way.committed_at_us && way.counts.is_none() {
                let took = acked_at_us.saturating_sub(way.committed_at_us).clamp(0, i64::from(u32::MAX));
                way.samples.push(u32::try_from(took).unwrap_or(u32::MAX));
            }
        }
    }

    fn note_reason(&mut self, id: &str, revision: u64, reason: String) {
        let Some(proxy) = self.proxies.get(id) else { return };
        let fleet = self.fleets.get_mut(&proxy.node.fleet);
        if let Some(way) = fleet.and_then(|fleet| fleet.ways.get_mut(&revision))
            && way.reason.is_none()
        {
            way.reason = Some(reason);
        }
    }

    fn mark(&mut self, id: &Arc<str>) {
        self.unsaved.proxies.insert(id.clone());
        self.untold.proxies.insert(id.clone());
    }
}

impl Dirty {
    pub(super) fn is_empty(&self) -> bool {
        self.proxies.is_empty() && self.rollouts.is_empty() && self.forgotten.is_empty()
    }
}

impl Proxy {
    fn new(node: &Node) -> Self {
        Self {
            node: Arc::new(node.clone()),
            replica: "".into(),
            connected: false,
            connected_at_us: 0,
            last_seen_us: 0,
            sent: 0,
            epoch: "".into(),
            applied: 0,
            acked_at_us: None,
            reported: None,
            error: None,
            drifted: false,
            traffic: None,
            listeners: BTreeMap::new(),
            warnings: Vec::new(),
            stream: None,
            row: (0, 0),
        }
    }
}

impl Fleet {
    fn add(&mut self, contribution: &Contribution) {
        self.total += 1;
        if let Some((applied, rejected)) = contribution.connected {
            self.connected += 1;
            *self.applied.entry(applied).or_default() += 1;
            if let Some(rejected) = rejected {
                *self.rejected.entry((rejected, applied)).or_default() += 1;
            }
        }
    }

    fn subtract(&mut self, contribution: &Contribution) {
        self.total = self.total.saturating_sub(1);
        if let Some((applied, rejected)) = contribution.connected {
            self.connected = self.connected.saturating_sub(1);
            take_one(&mut self.applied, applied);
            if let Some(rejected) = rejected {
                take_one(&mut self.rejected, (rejected, applied));
            }
        }
    }

    /// What a wait depends on.
    fn outlook(&self) -> (Option<u64>, u32) {
        (self.applied.first_key_value().map(|(number, _)| *number), self.rejected.values().sum())
    }

    fn counts(&self, revision: u64) -> RolloutCounts {
        let applied = self.applied.range(revision..).map(|(_, count)| count).sum();
        let rejected = self.rejections(revision);
        RolloutCounts {
            total: self.total,
            applied,
            pending: self.connected.saturating_sub(applied).saturating_sub(rejected),
            rejected,
            disconnected: self.total.saturating_sub(self.connected),
        }
    }

    /// How many rejected `revision`, or a later one that was sent instead, and serve an earlier one.
    fn rejections(&self, revision: u64) -> u32 {
        self.rejected
            .range((revision, 0)..)
            .filter(|((_, applied), _)| *applied < revision)
            .map(|(_, count)| count)
            .sum()
    }
}

impl Way {
    fn new(base: u64, committed_at_us: i64) -> Self {
        Self {
            base,
            committed_at_us,
            state: RolloutState::Running,
            finished_at_us: None,
            reason: None,
            counts: None,
            propagation: None,
            samples: Vec::new(),
        }
    }

    fn propagation(&self) -> Option<Propagation> {
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

fn take_one<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) {
    if let std::collections::btree_map::Entry::Occupied(mut entry) = counts.entry(key) {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

fn reason(id: &str, resources: &[ProxyResourceError]) -> String {
    let Some(first) = resources.first() else { return format!("{id} rejected it") };
    let resource = match first.kind.as_str() {
        "" => String::new(),
        kind => format!("{kind}/{}: ", first.name),
    };
    let field = if first.field.is_empty() { String::new() } else { format!("{}: ", first.field) };
    format!("{id} rejected it: {resource}{field}{}", first.message)
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// RFC 3339.
fn time(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

#[cfg(test)]
mod tests {
    use signalbox_proto::signalbox::report::v1::{ErrorClasses, Traffic};

    use super::*;

    /// Times in these tests are milliseconds.
    const MS: i64 = 1000;

    fn state() -> State {
        State::new("here".into())
    }

    fn id(number: u64) -> RevisionId {
        RevisionId { epoch: "e".into(), number }
    }

    fn node(id: &str, fleet: &str) -> Node {
        Node {
            id: id.into(),
            fleet: fleet.into(),
            labels: BTreeMap::new(),
            version: String::new(),
            address: String::new(),
        }
    }

    impl State {
        fn at(&mut self, ms: i64, event: Event) {
            self.fold(ms * MS, event);
        }

        fn publish(&mut self, ms: i64, number: u64) {
            self.at(ms, Event::Published { revision: id(number), committed_at_us: ms * MS });
        }

        fn open(&mut self, ms: i64, stream: u64, name: &str, presented: u64) {
            self.at(
                ms,
                Event::Opened { stream, node: node(name, "default"), presented: Some(id(presented)) },
            );
        }

        fn ack(&mut self, ms: i64, stream: u64, name: &str, number: u64) {
            self.at(ms, Event::Acked { stream, id: name.into(), revision: id(number) });
        }

        fn nack(&mut self, ms: i64, stream: u64, name: &str, revision: u64, message: &str) {
            let resources = vec![ProxyResourceError {
                kind: "listener".into(),
                name: "http".into(),
                field: "address".into(),
                message: message.into(),
            }];
            self.at(ms, Event::Rejected { stream, id: name.into(), revision, resources });
        }

        fn close(&mut self, ms: i64, stream: u64, name: &str) {
            self.at(ms, Event::Closed { stream, id: name.into() });
        }

        /// `state total/applied/pending/rejected/disconnected`
        fn brief(&self, number: u64) -> String {
            let rollout = self.way(number, "default").unwrap();
            let RolloutCounts { total, applied, pending, rejected, disconnected } = rollout.counts;
            format!("{:?} {total}/{applied}/{pending}/{rejected}/{disconnected}", rollout.state)
        }

        fn state_of(&self, name: &str) -> ProxyState {
            self.proxy(name).unwrap().state
        }
    }

    #[test]
    fn a_rollout_succeeds_with_the_last_ack() {
        let mut state = state();
        state.publish(0, 1);
        state.open(10, 1, "a", 1);
        state.open(10, 2, "b", 1);
        state.publish(100, 2);
        assert_eq!(state.brief(2), "Running 2/0/2/0/0");
        assert_eq!(state.state_of("a"), ProxyState::Pending);
        state.ack(104, 1, "a", 2);
        assert_eq!(state.brief(2), "Running 2/1/1/0/0");
        assert_eq!(state.standing(2, None), None);
        state.ack(110, 2, "b", 2);
        assert_eq!(state.brief(2), "Succeeded 2/2/0/0/0");
        assert_eq!(state.state_of("a"), ProxyState::InSync);
        assert_eq!(state.standing(2, None), Some(WaitResult::Done));
        let rollout = state.way(2, "default").unwrap();
        assert_eq!(rollout.propagation_ms, Some(Propagation { p50: 4.0, p99: 10.0, max: 10.0 }));
        assert_eq!(rollout.base_revision, 1);
        assert_eq!(rollout.finished_at, Some(time(110 * MS)));
    }

    #[test]
    fn a_rollout_without_connected_proxies_succeeds_at_once() {
        let mut state = state();
        state.publish(0, 1);
        state.open(1, 1, "a", 1);
        state.close(2, 1, "a");
        state.publish(3, 2);
        assert_eq!(state.brief(2), "Succeeded 1/0/0/0/1");
        assert_eq!(state.standing(2, None), Some(WaitResult::Done));
    }

    #[test]
    fn the_empty_set_before_the_first_revision_has_no_rollout() {
        let mut state = state();
        state.open(0, 1, "a", 0);
        state.publish(1, 0);
        assert!(state.rollouts(10).is_empty());
        assert_eq!(state.state_of("a"), ProxyState::InSync);
    }

    #[test]
    fn a_wait_for_what_is_not_published_goes_on() {
        let mut state = state();
        assert_eq!(state.standing(1, None), None);
        state.publish(0, 1);
        assert_eq!(state.standing(1, None), Some(WaitResult::Done));
        assert_eq!(state.standing(2, None), None);
    }

    #[test]
    fn a_proxy_that_leaves_holds_nothing_up() {
        let mut state = state();
        state.publish(0, 1);
        state.open(1, 1, "a", 1);
        state.open(1, 2, "b", 1);
        state.publish(2, 2);
        state.ack(3, 1, "a", 2);
        state.progress = false;
        state.close(4, 2, "b");
        assert!(state.progress);
        assert_eq!(state.standing(2, None), Some(WaitResult::Done));
        assert_eq!(state.brief(2), "Succeeded 2/1/0/0/1");
        assert_eq!(state.state_of("b"), ProxyState::Disconnected);
        // It comes back: the rollout was a success, and stays one.
        state.open(5, 3, "b", 1);
        assert_eq!(state.brief(2), "Succeeded 2/1/1/0/0");
    }

    #[test]
    fn a_rejection_fails_the_rollout_and_a_later_revision_recovers_the_proxy() {
        let mut state = state();
        state.publish(0, 1);
        state.open(1, 1, "a", 1);
        state.open(1, 2, "b", 1);
        state.publish(2, 2);
        state.ack(3, 1, "a", 2);
        state.nack(4, 2, "b", 2, "the port is taken");
        assert_eq!(state.brief(2), "Failed 2/1/0/1/0");
        let reason = state.way(2, "default").unwrap().reason;
        assert_eq!(reason.as_deref(), Some("b rejected it: listener/http: address: the port is taken"));
        assert_eq!(state.standing(2, None), Some(WaitResult::Rejected));
        assert_eq!(state.state_of("b"), ProxyState::Rejected);
        assert_eq!(state.proxy("b").unwrap().error.unwrap().resources[0].field, "address");

        state.publish(5, 3);
        assert_eq!(state.state_of("b"), ProxyState::Pending);
        assert_eq!(state.standing(3, None), None);
        state.ack(6, 1, "a", 3);
        state.ack(7, 2, "b", 3);
        assert_eq!(state.brief(3), "Succeeded 2/2/0/0/0");
        assert!(state.proxy("b").unwrap().error.is_none());
        assert_eq!(state.standing(2, None), Some(WaitResult::Done));
    }

    #[test]
    fn a_late_ack_turns_a_failed_rollout_into_a_success() {
        let mut state = state();
        state.publish(0, 1);
        state.open(1, 1, "a", 1);
        state.publish(2, 2);
        state.nack(3, 1, "a", 2, "x");
        state.ack(9, 1, "a", 2);
        assert_eq!(state.brief(2), "Succeeded 1/1/0/0/0");
        let rollout = state.way(2, "default").unwrap();
        assert_eq!((rollout.reason, rollout.finished_at), (None, Some(time(9 * MS))));
    }

    #[test]
    fn rejecting_a_later_revision_answers_a_wait_for_one_it_was_sent_with() {
        let mut state = state();
        state.publish(0, 1);
        state.open(1, 1, "a", 1);
        state.publish(2, 2);
        state.publish(2, 3);
        state.nack(3, 1, "a", 3, "x");
        assert_eq!(state.standing(2, None), Some(WaitResult::Rejected));
        assert_eq!(state.standing(1, None), Some(WaitResult::Done));
    }

    #[test]
    fn a_revision_that_was_skipped_is_superseded_and_served_with_the_later_one() {
        let mut state = state();
        state.publish(0, 1);
        state.open(1, 1, "a", 1);
        state.publish(2, 2);
        state.publish(4, 3);
        assert_eq!(state.brief(2), "Superseded 1/0/1/0/0");
        state.ack(6, 1, "a", 3);
        assert_eq!(state.brief(2), "Superseded 1/1/0/0/0");
        assert_eq!(state.brief(3), "Succeeded 1/1/0/0/0");
        assert_eq!(state.way(2, "default").unwrap().propagation_ms.unwrap().max, 4.0);
        assert_eq!(state.way(3, "default").unwrap().propagation_ms.unwrap().max, 2.0);
        assert_eq!(state.standing(2, None), Some(WaitResult::Done));
    }

    #[test]
    fn a_proxy_that_comes_after_a_revision_says_nothing_of_its_propagation() {
        let mut state = state();
        state.publish(0, 1);
        state.open(5000, 1, "a", 0);
        state.ack(5001, 1, "a", 1);
        assert_eq!(state.brief(1), "Succeeded 1/1/0/0/0");
        assert_eq!(state.way(1, "default").unwrap().propagation_ms, None);
    }

    #[test]
    fn what_an_earlier_stream_still_says_is_ignored() {
        let mut state = state();
        state.publish(0, 1);
        state.open(1, 1, "a", 1);
        state.publish(2, 2);
        state.open(3, 2, "a", 1);
        state.ack(4, 1, "a", 2);
        state.close(4, 1, "a");
        assert_eq!(state.state_of("a"), ProxyState::Pending);
        assert_eq!(state.brief(2), "Running 1/0/1/0/0");
        assert_eq!(state.proxies().len(), 1);
    }

    #[test]
    fn a_drifted_proxy_is_shown_so_until_it_serves_a_revision() {
        let mut state = state();
        state.publish(0, 5);
        state.open(1, 1, "a", 9);
        let message = "it is ahead".to_owned();
        state.at(2, Event::Drifted { stream: 1, id: "a".into(), revision: 5, message });
        assert_eq!(state.state_of("a"), ProxyState::Drifted);
        assert_eq!(state.proxy("a").unwrap().error.unwrap().resources[0].message, "it is ahead");
        assert_eq!(state.way(5, "default").unwrap().counts.rejected, 0);
        state.publish(3, 10);
        state.ack(4, 1, "a", 10);
        assert_eq!(state.state_of("a"), ProxyState::InSync);
        assert!(state.proxy("a").unwrap().error.is_none());
    }

    #[test]
    fn numbers_of_another_epoch_do_not_count() {
        let mut state = state();
        state.publish(0, 7);
        state.open(1, 1, "a", 7);
        let revision = RevisionId { epoch: "f".into(), number: 3 };
        state.at(2, Event::Published { revision: revision.clone(), committed_at_us: 2 * MS });
        assert_eq!(state.state_of("a"), ProxyState::Pending);
        assert_eq!(state.standing(3, None), None);
        state.at(3, Event::Acked { stream: 1, id: "a".into(), revision });
        assert_eq!(state.standing(3, None), Some(WaitResult::Done));
        assert_eq!(state.brief(3), "Succeeded 1/1/0/0/0");
        assert!(state.way(7, "default").is_none());
    }

    #[test]
    fn fleets_do_not_hold_each_other_up() {
        let mut state = state();
        state.publish(0, 1);
        state.at(1, Event::Opened { stream: 1, node: node("a", "one"), presented: Some(id(1)) });
        state.at(1, Event::Opened { stream: 2, node: node("b", "two"), presented: Some(id(1)) });
        state.publish(2, 2);
        state.ack(3, 1, "a", 2);
        assert_eq!(state.standing(2, Some("one")), Some(WaitResult::Done));
        assert_eq!(state.standing(2, Some("two")), None);
        assert_eq!(state.standing(2, None), None);
        let fleets = state.fleets();
        assert_eq!((&*fleets[0].name, fleets[0].served), ("one", Some(2)));
        assert_eq!((&*fleets[1].name, fleets[1].served), ("two", Some(1)));
        assert_eq!(
            state.rollouts(3).iter().map(|rollout| &*rollout.id).collect::<Vec<_>>(),
            ["2-one", "2-two", "1-one"]
        );
    }

    #[test]
    fn a_proxy_that_changes_its_fleet_counts_in_the_new_one() {
        let mut state = state();
        state.publish(0, 1);
        state.at(1, Event::Opened { stream: 1, node: node("a", "one"), presented: Some(id(1)) });
        state.at(2, Event::Opened { stream: 2, node: node("a", "two"), presented: Some(id(1)) });
        let fleets = state.fleets();
        assert_eq!((fleets[0].proxies, fleets[1].proxies), (0, 1));
    }

    #[test]
    fn a_report_tells_traffic_and_when_the_revision_was_applied() {
        let mut state = state();
        state.publish(0, 1);
        state.open(1, 1, "a", 0);
        let report = |revision, requests| ProxyReport {
            node_id: "a".into(),
            revision,
            applied_at_us: 5,
            apply_us: 1500,
            traffic: Some(Traffic {
                interval_us: 2_000_000,
                requests,
                errors: 1,
                p99_us: 700,
                classes: Some(ErrorClasses { no_route: 2, client_errors: 1 }),
                ..Traffic::default()
            }),
            ..ProxyReport::default()
        };
        // It may be faster than the ACK.
        state.at(2, Event::Reported(Box::new(report(1, 4))));
        assert_eq!(state.proxy("a").unwrap().apply_ms, None);
        state.ack(3, 1, "a", 1);
        let proxy = state.proxy("a").unwrap();
        assert_eq!(proxy.apply_ms, Some(1.5));
        assert_eq!(proxy.revision.applied_at, Some(time(5)));
        let classes = Some(TrafficClasses { no_route: 0.5, client_errors: 0.25, server_errors: 0.25 });
        let traffic = ProxyTraffic { requests_per_second: 2.0, error_ratio: 0.25, p99_ms: 0.7, classes };
        assert_eq!(proxy.traffic, Some(traffic));
        state.unsaved = Dirty::default();
        state.at(4, Event::Reported(Box::new(report(1, 0))));
        assert!(state.unsaved.is_empty(), "traffic alone is written less often");
        assert_eq!(state.alive.len(), 1);
        assert_eq!(state.proxy("a").unwrap().traffic.unwrap().error_ratio, 0.0);
    }

    #[test]
    fn a_forgotten_proxy_is_gone_from_the_counts() {
        let mut state = state();
        state.publish(0, 1);
        state.open(1, 1, "a", 1);
        state.close(2, 1, "a");
        state.at(3, Event::Forgotten { id: "a".into() });
        assert!(state.proxies().is_empty());
        assert_eq!(state.brief(1), "Succeeded 0/0/0/0/0");
    }

    /// What another control plane would write of a proxy of its own.
    fn row_of(name: &str, applied: u64, acked_ms: i64) -> Proxy {
        let mut other = State::new("there".into());
        other.publish(0, applied);
        other.open(acked_ms - 1, 1, name, 0);
        other.ack(acked_ms, 1, name, applied);
        serde_json::from_str(&serde_json::to_string(&other.proxies[name]).unwrap()).unwrap()
    }

    #[test]
    fn the_proxies_of_other_control_planes_count_too() {
        let mut state = state();
        state.publish(0, 1);
        state.read_row(5 * MS, row_of("b", 1, 4), 1);
        state.publish(10, 2);
        assert_eq!(state.standing(2, None), None);
        assert_eq!(state.proxy("b").unwrap().connected_to, "there");
        state.read_row(500 * MS, row_of("b", 2, 14), 2);
        assert_eq!(state.standing(2, None), Some(WaitResult::Done));
        // From its ACK, not from when that was read.
        assert_eq!(state.way(2, "default").unwrap().propagation_ms.unwrap().max, 4.0);
    }

    #[test]
    fn a_control_plane_that_is_silent_has_lost_its_proxies() {
        let mut state = state();
        state.publish(0, 1);
        state.read_row(MS, row_of("b", 1, 4), 1);
        // Read again, and nothing new in it.
        state.read_row(900 * MS, row_of("b", 1, 4), 1);
        state.expire(1000 * MS, 1000 * MS);
        assert!(state.proxy("b").unwrap().connected);
        state.expire(1002 * MS, 1000 * MS);
        assert_eq!(state.state_of("b"), ProxyState::Disconnected);
    }

    #[test]
    fn a_proxy_that_is_connected_here_is_not_overwritten_by_what_another_wrote() {
        let mut state = state();
        state.publish(0, 1);
        state.open(1, 1, "b", 1);
        state.unsaved = Dirty::default();
        let mut gone = row_of("b", 1, 4);
        gone.connected = false;
        state.read_row(5 * MS, gone, 1);
        assert!(state.proxy("b").unwrap().connected);
        assert!(state.unsaved.proxies.contains("b"), "written again, so that the other sees it");
    }

    #[test]
    fn a_proxy_that_went_to_another_control_plane_is_not_written_here() {
        let mut state = state();
        state.publish(0, 1);
        state.open(1, 1, "b", 1);
        state.at(2, Event::Reported(Box::new(ProxyReport { node_id: "b".into(), ..ProxyReport::default() })));
        assert!(state.stored_proxy("b").is_some());
        state.close(3, 1, "b");
        assert!(state.stored_proxy("b").is_some(), "it may have gone for good");
        state.read_row(5 * MS, row_of("b", 1, 4), 1);
        assert!(state.stored_proxy("b").is_none());
        assert_eq!(state.take_alive(true), []);
        state.open(6, 2, "b", 1);
        assert!(state.stored_proxy("b").is_some());
        assert_eq!(state.take_alive(true), ["b".into()]);
        assert_eq!(state.take_alive(false), [], "it has not reported since");
    }

    #[test]
    fn a_proxy_that_another_control_plane_forgot_is_gone() {
        let mut state = state();
        let mut row = row_of("b", 1, 4);
        row.connected = false;
        state.read_row(MS, row, 1);
        state.open(2, 1, "a", 0);
        state.keep_rows(3 * MS, &HashSet::new());
        let ids: Vec<_> = state.proxies().into_iter().map(|proxy| proxy.id).collect();
        assert_eq!(ids, ["a"]);
    }

    #[test]
    fn the_last_rollouts_are_kept() {
        let mut state = state();
        state.open(0, 1, "a", 0);
        for number in 1..=300 {
            state.publish(number, number as u64);
            state.ack(number, 1, "a", number as u64);
        }
        assert_eq!(state.rollouts(1000).len(), State::ROLLOUTS);
        assert_eq!(state.rollouts(1)[0].id, "300-default");
    }

    /// The counts are kept step by step; they must be what counting anew gives.
    #[test]
    fn counts_kept_step_by_step_are_those_of_counting_anew() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut state = state();
        let mut number = 1;
        state.publish(0, number);
        for step in 0..4000 {
            let name = format!("p{}", random.u8(..12));
            let stream = state.proxies.get(&*name).and_then(|proxy| proxy.stream);
            match (random.u8(..6), stream) {
                (0, _) => {
                    number += 1;
                    state.publish(step, number);
                }
                (1, _) => state.open(step, step as u64 + 1, &name, random.u64(..=number)),
                (2, Some(stream)) => state.close(step, stream, &name),
                (3 | 4, Some(stream)) => state.ack(step, stream, &name, random.u64(1..=number)),
                (5, Some(stream)) => state.nack(step, stream, &name, number, "x"),
                _ => {}
            }
            let kept = (state.way(number, "default"), state.standing(number, None));
            state.recount();
            assert_eq!((state.way(number, "default"), state.standing(number, None)), kept, "step {step}");
        }
    }
}
