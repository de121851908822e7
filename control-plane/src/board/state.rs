//! The board's records and the counts that follow from them: synchronous, over values, O(1) in the number of proxies.
//!
//! A fleet does not look at its proxies to know how it stands. It counts the connected ones by the revision they
//! serve; each event takes a proxy's old contribution out of the counts and puts the new one in.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use imbl::OrdMap;
use signalbox_config::RevisionId;
use signalbox_rollout::{Because, FleetTarget, Plan};

use super::event::Node;
use super::fleet::{Connection, Contribution, Fleet};
use super::proxy::{Duplicate, Proxy};
use super::rollout::{RolloutRecord, reason};
use super::status::{RolloutCounts, RolloutFault, RolloutState};

/// Says if other control planes use the same database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// None: what the store has is from before this start.
    Alone,
    /// Perhaps: they tell each other what they write, and read it.
    Shared,
}

/// The records of the board.
pub(super) struct State {
    pub(super) replica: Arc<str>,
    /// This process, among all that use the database.
    pub(super) instance: Arc<str>,
    pub(super) sharing: Sharing,
    /// The other control planes, by instance.
    pub(super) replicas: HashMap<Arc<str>, Replica>,
    /// Counts the reads of what other control planes wrote, at their beginning.
    pub(super) reads: u64,
    /// The database has not confirmed for so long that this control plane is alive that others take it for dead: streams
    /// are answered without being registered.
    pub(super) lease_lost: bool,
    /// The last write did not succeed in time: streams are answered without being registered. Where control
    /// planes share the database, `lease_lost` says so.
    pub(super) unwritable: bool,
    /// A stream waits for its registration.
    pub(super) registering: bool,
    pub(super) head: Option<RevisionId>,
    pub(super) head_committed_at_us: i64,
    /// The decisions about what the fleets are to serve.
    pub(super) targets: OrdMap<Arc<str>, Arc<FleetTarget>>,
    /// By fleet, the rollout under way that a part of its proxies has, and since when this control plane knows that, in microseconds since 1970.
    pub(super) split_since: HashMap<Arc<str>, (Arc<str>, i64)>,
    pub(super) proxies: HashMap<Arc<str>, Proxy>,
    pub(super) fleets: BTreeMap<Arc<str>, Fleet>,
    /// Something may have ended a wait.
    pub(super) progress: bool,
    pub(super) unsaved: Dirty,
    pub(super) unannounced: Dirty,
    /// Proxies whose traffic or last sign of life is all that changed: written less often.
    pub(super) heartbeats: HashSet<Arc<str>>,
    /// Proxies that serve another revision than their row says, those that wait for longest first.
    pub(super) advanced: VecDeque<Arc<str>>,
    /// Proxies that were seen to share a node id, and are to be warned about.
    pub(super) duplicates: Vec<(Arc<str>, Duplicate)>,
}

/// Another control plane of the same database.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) alive: bool,
    /// When it was seen to be no longer alive.
    pub(super) died: Option<Instant>,
}

/// Keys that changed and were not passed on yet.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub(super) proxies: HashSet<Arc<str>>,
    pub(super) rollouts: BTreeSet<(u64, Arc<str>)>,
    pub(super) forgotten: Vec<Arc<str>>,
    /// Proxies of other control planes that are no longer waited for.
    pub(super) expired: BTreeSet<Arc<str>>,
}

impl State {
    /// How many rollouts are kept for each fleet.
    pub(super) const ROLLOUTS: usize = 200;

    /// The most proxies that are remembered for having rejected a revision.
    pub(super) const REJECTERS: usize = 1000;

    /// How many proxies are known: twice as many as may have a stream.
    pub(super) const PROXIES: usize = 40_000;

    /// How many fleets may have proxies.
    pub(super) const FLEETS: usize = 1_000;

    pub(super) fn new(replica: Arc<str>, instance: Arc<str>, sharing: Sharing) -> Self {
        Self {
            replica,
            instance,
            sharing,
            replicas: HashMap::new(),
            reads: 0,
            lease_lost: false,
            unwritable: false,
            registering: false,
            head: None,
            head_committed_at_us: 0,
            targets: OrdMap::new(),
            split_since: HashMap::new(),
            proxies: HashMap::new(),
            fleets: BTreeMap::new(),
            progress: false,
            unsaved: Dirty::default(),
            unannounced: Dirty::default(),
            heartbeats: HashSet::new(),
            advanced: VecDeque::new(),
            duplicates: Vec::new(),
        }
    }

    /// True if a stream of this proxy may be opened: names come from the proxies, and must not fill the memory.
    pub(super) fn has_room(&self, node: &Node) -> bool {
        let closed = |proxy: &Proxy| self.connection(proxy) == Connection::Disconnected;
        let proxy = self.proxies.len() < Self::PROXIES
            || self.proxies.contains_key(&node.id)
            || self.proxies.values().any(closed);
        let fleet = self.fleets.len() < Self::FLEETS
            || self.fleets.contains_key(&node.fleet)
            || self.fleets.values().any(|fleet| fleet.total == 0);
        proxy && fleet
    }

    /// The revision of the present epoch that a proxy serves; 0 for none.
    pub(super) fn served(&self, proxy: &Proxy) -> u64 {
        match &self.head {
            Some(head) if head.epoch == proxy.epoch => proxy.applied,
            _ => 0,
        }
    }

    /// The revision that a proxy is to serve, the generation of its fleet, and why.
    pub(super) fn assigned(&self, proxy: &Proxy) -> (u64, u64, Because) {
        let head = self.head.as_ref().map_or(0, |head| head.number);
        match self.targets.get(&proxy.node.fleet) {
            None => (head, 0, Because::Stable),
            Some(decision) => {
                let target = decision.of(&proxy.node.id);
                let split_since = self.split_since.get(&proxy.node.fleet);
                let is_new = split_since.is_some_and(|(_, since)| proxy.first_seen_us > *since);
                let because = match target.because {
                    Because::Stable if is_new => Because::Newcomer,
                    because => because,
                };
                (target.revision.unwrap_or(head), decision.generation, because)
            }
        }
    }

    /// True if decisions say what the proxies of a fleet are to serve, and not the head.
    pub(super) fn is_pinned(&self, fleet: &str) -> bool {
        self.targets.get(fleet).is_some_and(|target| target.plan != Plan::Head)
    }

    pub(super) fn contribution(&self, proxy: &Proxy) -> Contribution {
        Contribution { fleet: proxy.node.fleet.clone(), connection: self.connection(proxy) }
    }

    pub(super) fn connection(&self, proxy: &Proxy) -> Connection {
        if proxy.unknown.is_some() {
            return Connection::Unknown;
        }
        if !proxy.connected {
            return Connection::Disconnected;
        }
        // A proxy that drifted, or was not verified, does not serve its revision.
        let served = if proxy.drifted || !proxy.verified { 0 } else { self.served(proxy) };
        let rejected = proxy
            .error
            .as_ref()
            .map(|error| error.revision)
            // Drift is no verdict on the revision: the proxy is sent everything, and then answers. Nor is what was said
            // on an earlier stream.
            .filter(|revision| *revision > served && !proxy.drifted && proxy.verified);
        Connection::Connected { serves: served, rejected }
    }

    /// Puts into the counts what a proxy contributes now instead of `before`.
    pub(super) fn update_counts(&mut self, now_us: i64, id: &str, before: Option<Contribution>) {
        let after = self.proxies.get(id).map(|proxy| self.contribution(proxy));
        if before == after {
            return;
        }
        for contribution in before.iter().chain(&after) {
            let lowest = self.fleets.get(&contribution.fleet).map(Fleet::convergence_inputs);
            if let Some(fleet) = self.fleets.get_mut(&contribution.fleet) {
                if after.as_ref().is_some_and(|after| std::ptr::eq(after, contribution)) {
                    fleet.add(contribution);
                } else {
                    fleet.subtract(contribution);
                }
                self.progress |= lowest != Some(fleet.convergence_inputs());
            }
        }
        let (before, after) =
            (before.map(|contribution| contribution.fleet), after.map(|contribution| contribution.fleet));
        if let Some(fleet) = &before {
            self.update_rollouts(now_us, fleet);
        }
        if let Some(fleet) = after.filter(|after| before.as_ref() != Some(after)) {
            self.update_rollouts(now_us, &fleet);
        }
    }

    /// Counts everything anew.
    pub(super) fn recount(&mut self) {
        let contributions: Vec<_> = self.proxies.values().map(|proxy| self.contribution(proxy)).collect();
        for fleet in self.fleets.values_mut() {
            fleet.total = 0;
            fleet.connected = 0;
            fleet.unknown = 0;
            fleet.applied.clear();
            fleet.rejected.clear();
        }
        for contribution in &contributions {
            if let Some(fleet) = self.fleets.get_mut(&contribution.fleet) {
                fleet.add(contribution);
            }
        }
    }

    pub(super) fn add_fleet(&mut self, name: Arc<str>) {
        if self.fleets.contains_key(&name) {
            return;
        }
        if self.fleets.len() >= Self::FLEETS
            && let Some(empty) =
                self.fleets.iter().find(|(_, fleet)| fleet.total == 0).map(|(name, _)| name.clone())
        {
            self.fleets.remove(&empty);
        }
        let mut fleet = Fleet::default();
        if let Some(head) = self.head.as_ref().filter(|head| head.number > 0 && !self.is_pinned(&name)) {
            fleet
                .rollouts
                .insert(head.number, RolloutRecord::new(head.number - 1, self.head_committed_at_us));
            fleet.final_up_to = head.number - 1;
        }
        self.fleets.insert(name, fleet);
    }

    /// Brings the rollouts of a fleet in step with its counts.
    pub(super) fn update_rollouts(&mut self, now_us: i64, name: &Arc<str>) {
        let Some(head) = self.head.as_ref().map(|head| head.number) else { return };
        let Some(fleet) = self.fleets.get_mut(name) else { return };
        let lowest = match fleet.unknown {
            0 => fleet.applied.first_key_value().map_or(u64::MAX, |(number, _)| *number),
            _ => 0,
        };
        let final_up_to = lowest.min(head.saturating_sub(1));
        if final_up_to > fleet.final_up_to {
            let range = (Bound::Excluded(fleet.final_up_to), Bound::Included(final_up_to));
            let numbers: Vec<_> = fleet.rollouts.range(range).map(|(number, _)| *number).collect();
            let counts: Vec<_> = match self.fleets.get(name) {
                Some(fleet) => numbers.iter().map(|number| self.counts(name, fleet, *number)).collect(),
                None => Vec::new(),
            };
            let Some(fleet) = self.fleets.get_mut(name) else { return };
            for (number, counts) in numbers.into_iter().zip(counts) {
                if let Some(record) = fleet.rollouts.get_mut(&number) {
                    record.propagation = record.propagation();
                    record.samples = Vec::new();
                    record.counts = Some(counts);
                    self.unsaved.rollouts.insert((number, name.clone()));
                    self.unannounced.rollouts.insert((number, name.clone()));
                }
            }
            fleet.final_up_to = final_up_to;
        }
        let Some(fleet) = self.fleets.get_mut(name) else { return };
        let counts = fleet.counts(head);
        let Some(record) = fleet.rollouts.get_mut(&head) else { return };
        let before = record.state;
        record.state = if counts.rejected > 0 {
            RolloutState::Failed
        } else if counts.pending == 0 && counts.unknown == 0 {
            RolloutState::Succeeded
        } else if record.state == RolloutState::Succeeded {
            // A proxy that came back, or a new one, is still on its way.
            RolloutState::Succeeded
        } else {
            RolloutState::Running
        };
        if record.state != RolloutState::Failed {
            record.reason = None;
            record.fault = None;
        }
        if record.state == RolloutState::Running {
            record.finished_at_us = None;
        } else if record.finished_at_us.is_none() || before != record.state {
            record.finished_at_us = Some(now_us);
        }
        record.counts = None;
        self.unsaved.rollouts.insert((head, name.clone()));
        self.unannounced.rollouts.insert((head, name.clone()));
    }

    /// Notes how long the revisions after `before` up to `after` took to a proxy that was there when they were
    /// committed.
    pub(super) fn record_propagation(
        &mut self,
        id: &str,
        before: u64,
        after: u64,
        connected_at_us: i64,
        acked_at_us: i64,
    ) {
        let Some(proxy) = self.proxies.get(id) else { return };
        let Some(fleet) = self.fleets.get_mut(&proxy.node.fleet) else { return };
        if before >= after {
            return;
        }
        for record in fleet
            .rollouts
            .range_mut((Bound::Excluded(before), Bound::Included(after)))
            .map(|(_, record)| record)
        {
            // The proxy never served a revision that it rejected, however far it is now.
            let rejected = record.rejected_by.contains(id);
            if connected_at_us <= record.committed_at_us && record.counts.is_none() && !rejected {
                let took = acked_at_us.saturating_sub(record.committed_at_us).clamp(0, i64::from(u32::MAX));
                record.samples.push(u32::try_from(took).unwrap_or(u32::MAX));
            }
        }
    }

    pub(super) fn record_rejection(&mut self, id: &Arc<str>, revision: u64, fault: RolloutFault) {
        let Some(proxy) = self.proxies.get(id) else { return };
        let name = proxy.node.fleet.clone();
        let fleet = self.fleets.get_mut(&name);
        let Some(record) = fleet.and_then(|fleet| fleet.rollouts.get_mut(&revision)) else { return };
        if record.rejected_by.len() < Self::REJECTERS {
            record.rejected_by.insert(id.clone());
        }
        if record.reason.is_none() {
            record.reason = Some(reason(&fault, revision));
            record.fault = Some(fault);
        }
        // A later revision came before the rejection was known here.
        if record.state == RolloutState::Superseded {
            record.state = RolloutState::Failed;
            self.unsaved.rollouts.insert((revision, name.clone()));
            self.unannounced.rollouts.insert((revision, name));
        }
    }

    /// A proxy serves this very revision, which it may have rejected before.
    pub(super) fn clear_rejection(&mut self, id: &Arc<str>, revision: u64) {
        let Some(proxy) = self.proxies.get(id) else { return };
        let is_head = self.head.as_ref().is_some_and(|head| head.number == revision);
        let name = proxy.node.fleet.clone();
        let Some(fleet) = self.fleets.get_mut(&name) else { return };
        let Some(record) = fleet.rollouts.get_mut(&revision) else { return };
        let was_last = record.rejected_by.remove(id) && record.rejected_by.is_empty();
        if was_last && !is_head && record.state == RolloutState::Failed {
            record.state = RolloutState::Superseded;
            record.reason = None;
            record.fault = None;
            self.unsaved.rollouts.insert((revision, name.clone()));
            self.unannounced.rollouts.insert((revision, name));
        }
    }

    /// A fleet's proxies by how they stand to a revision. Whoever rejected it counts so, though it serves a later one.
    pub(super) fn counts(&self, name: &str, fleet: &Fleet, revision: u64) -> RolloutCounts {
        let mut counts = fleet.counts(revision);
        let Some(record) = fleet.rollouts.get(&revision) else { return counts };
        let passed = |id: &&Arc<str>| {
            self.proxies.get(*id).is_some_and(|proxy| {
                let serves_later = matches!(
                    self.connection(proxy),
                    Connection::Connected { serves, .. } if serves >= revision
                );
                *proxy.node.fleet == *name && serves_later
            })
        };
        let passed = record.rejected_by.iter().filter(passed).count() as u32;
        counts.applied = counts.applied.saturating_sub(passed);
        counts.rejected += passed;
        counts
    }

    pub(super) fn mark_changed(&mut self, id: &Arc<str>) {
        self.unsaved.proxies.insert(id.clone());
        self.unannounced.proxies.insert(id.clone());
    }

    /// Marks that a proxy serves another revision. Where no other control plane shares the database, nobody reads that before the next start,
    /// at which the proxy says it again: the row is written in its turn, once for all changes until then.
    pub(super) fn mark_advanced(&mut self, id: &Arc<str>) {
        if self.sharing == Sharing::Shared {
            return self.mark_changed(id);
        }
        self.unannounced.proxies.insert(id.clone());
        if let Some(proxy) = self.proxies.get_mut(id)
            && !std::mem::replace(&mut proxy.is_advance_unsaved, true)
        {
            self.advanced.push_back(id.clone());
        }
    }

    /// Has the rows of up to `count` of these proxies written with the next write.
    pub(super) fn write_advanced(&mut self, count: usize) {
        for id in self.advanced.drain(..count.min(self.advanced.len())) {
            if let Some(proxy) = self.proxies.get_mut(&id) {
                proxy.is_advance_unsaved = false;
                self.unsaved.proxies.insert(id);
            }
        }
    }

    pub(super) fn forget(&mut self, now_us: i64, id: &Arc<str>) {
        let Some(proxy) = self.proxies.get(id) else { return };
        let before = self.contribution(proxy);
        self.proxies.remove(id);
        self.update_counts(now_us, id, Some(before));
        for dirty in [&mut self.unsaved, &mut self.unannounced] {
            dirty.proxies.remove(id);
        }
        self.heartbeats.remove(id);
        self.unannounced.forgotten.push(id.clone());
    }
}

impl Dirty {
    pub(super) fn is_empty(&self) -> bool {
        self.proxies.is_empty()
            && self.rollouts.is_empty()
            && self.forgotten.is_empty()
            && self.expired.is_empty()
    }
}
