//! How what other control planes wrote, and what was stored before the start, changes what the board knows; and what of it
//! is to be written.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::proxy::{DUPLICATE_WINDOW, Proxy, RECONNECT_GRACE, Registration};
use super::rollout::{RolloutRecord, fault};
use super::state::{Replica, Sharing, State};
use super::status::{ProxyError, RolloutFault};
use crate::store::{ReplicaRow, Stamp};

/// How the proxies' streams are spread over the control planes of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamShare {
    /// Streams to this one.
    pub own: usize,
    /// Streams to this and all others that are alive.
    pub all: usize,
    /// How many control planes are alive, with this one.
    pub replicas: usize,
}

impl State {
    /// A read of what other control planes wrote begins: its number, for what it finds.
    pub(super) fn begin_read(&mut self) -> u64 {
        self.reads += 1;
        self.reads
    }

    /// True if this version of a row was read already.
    pub(super) fn has_read(&self, id: &str, stamp: &Stamp) -> bool {
        // A row that this process wrote is never later than its memory.
        self.proxies.get(id).is_some_and(|known| {
            self.is_own(stamp) || known.stream.is_none() && known.row.as_ref() == Some(stamp)
        })
    }

    /// True if this process wrote the row.
    fn is_own(&self, stamp: &Stamp) -> bool {
        stamp.instance == *self.instance && stamp.replica == *self.replica
    }

    /// Takes in what another control plane wrote of a proxy, or what was stored before the start.
    pub(super) fn apply_row(&mut self, now_us: i64, read: u64, mut proxy: Proxy, stamp: Stamp) {
        let id = proxy.node.id.clone();
        let known = self.proxies.get(&id);
        if let Some(known) = known.filter(|known| known.stream.is_some()) {
            let taken = matches!(known.registration, Registration::Done(at) if read > at);
            if self.is_own(&stamp) || !taken {
                return;
            }
            // The proxy, or another of the same id, opened a stream to another control plane after this one: the latest counts.
            known.link.replaced.cancel();
        }
        let known = self.proxies.get(&id);
        if known.is_none() && self.proxies.len() >= Self::PROXIES {
            return;
        }
        // It may have carried out a purge that is waited for.
        self.progress |= known.is_none_or(|known| known.purged != proxy.purged);
        let before = known.map(|known| self.contribution(known));
        let earlier = known.map(|known| (self.served(known), known.connected_at_us));
        let now = Instant::now();
        // While it is of unknown state, reading the same row again does not begin that anew.
        let same_owner = known.is_some_and(|known| {
            known.stream.is_none() && (&known.instance, &known.replica) == (&proxy.instance, &proxy.replica)
        });
        let unknown = known.filter(|_| same_owner).and_then(|known| known.unknown);
        let first_sight = known.is_none();
        proxy.unknown = self.unknown_for(&proxy, first_sight).map(|length| unknown.unwrap_or((now, length)));
        proxy.row = Some(stamp);
        proxy.row_seen = Some(now);
        let (acked_at_us, number) = (proxy.acked_at_us, self.served(&proxy));
        // They happened at another control plane, and the history is the same at each.
        let mut rejections: Vec<(u64, RolloutFault)> = proxy
            .rejections
            .iter()
            .filter(|rejection| self.head.as_ref().is_some_and(|head| head.epoch == rejection.epoch))
            .map(|rejection| (rejection.revision, rejection.fault.clone()))
            .collect();
        if let Some(ProxyError { revision, resources }) = proxy.error.as_ref().filter(|_| !proxy.drifted) {
            // A version before keeps nothing else.
            rejections.push((*revision, fault(&id, *revision, resources)));
        }
        let fleet = proxy.node.fleet.clone();
        self.proxies.insert(id.clone(), proxy);
        self.add_fleet(fleet);
        for (revision, fault) in rejections {
            self.record_rejection(&id, revision, fault);
        }
        self.clear_rejection(&id, number);
        if let (Some((earlier, since)), Some(acked_at_us)) = (earlier, acked_at_us)
            && number > earlier
        {
            // Only the last ACK's time is known, not when it had come past the revisions before.
            self.record_propagation(&id, number - 1, number, since, acked_at_us);
        }
        self.update_counts(now_us, &id, before);
        self.unannounced.proxies.insert(id);
    }

    /// For how long it is not known whether a proxy without a stream to this control plane has one; `None`: it is known.
    fn unknown_for(&self, proxy: &Proxy, first_sight: bool) -> Option<Duration> {
        if proxy.lost {
            return Some(RECONNECT_GRACE);
        }
        if !proxy.connected {
            return None;
        }
        // An earlier process of this control plane, which is gone, and all its streams with it.
        let predecessor = proxy.replica == self.replica || self.sharing == Sharing::Alone;
        if proxy.instance.is_empty() {
            // A version that registers nowhere. If it is there, it writes its rows anew every few seconds.
            return match (predecessor, first_sight) {
                (true, _) => Some(RECONNECT_GRACE),
                (false, true) => Some(OLD_VERSION_GRACE),
                (false, false) => None,
            };
        }
        if self.replicas.get(&proxy.instance).is_some_and(|replica| replica.alive) {
            return None;
        }
        Some(if predecessor { RECONNECT_GRACE } else { DEAD_REPLICA_GRACE })
    }

    /// Takes in which control planes there are.
    pub(super) fn apply_replicas(&mut self, now_us: i64, now: Instant, rows: &[ReplicaRow]) {
        let mut turned = HashSet::new();
        let mut present = HashSet::new();
        for row in rows.iter().filter(|row| *row.instance != *self.instance) {
            // One of the same name is an earlier process of this very control plane, and has no streams any more.
            let predecessor = *row.name == *self.replica;
            let alive = row.age < LEASE && !predecessor;
            present.insert(&*row.instance);
            match self.replicas.get_mut(&*row.instance) {
                Some(known) => {
                    if known.alive != alive {
                        turned.insert(Arc::from(&*row.instance));
                        known.alive = alive;
                        known.died = (!alive && !predecessor).then_some(now);
                    }
                }
                None => {
                    let recent = !alive && row.age < RECENT_DEATH && !predecessor;
                    let died = recent.then_some(now);
                    turned.insert(Arc::from(&*row.instance));
                    self.replicas.insert(Arc::from(&*row.instance), Replica { alive, died });
                }
            }
        }
        let gone: Vec<_> =
            self.replicas.keys().filter(|instance| !present.contains(&***instance)).cloned().collect();
        for instance in gone {
            // It ended in order, and has said what became of its streams.
            self.replicas.remove(&instance);
            turned.insert(instance);
        }
        if turned.is_empty() {
            return;
        }
        self.progress = true;
        let concerned = |proxy: &&Proxy| proxy.stream.is_none() && turned.contains(&proxy.instance);
        let ids: Vec<_> =
            self.proxies.values().filter(concerned).map(|proxy| proxy.node.id.clone()).collect();
        for id in ids {
            let Some(proxy) = self.proxies.get(&id) else { continue };
            let doubt = self.unknown_for(proxy, false);
            self.change(now_us, &id, |proxy| {
                proxy.unknown = doubt.map(|length| proxy.unknown.unwrap_or((now, length)));
            });
        }
    }

    /// True while the database may lack streams: another control plane has just died, and may have had streams
    /// that it could not register; or this one cannot write.
    pub(super) fn is_incomplete(&self, now: Instant) -> bool {
        let recent = |died: Instant| now.saturating_duration_since(died) < RECENT_DEATH;
        self.lease_lost || self.replicas.values().any(|replica| replica.died.is_some_and(recent))
    }

    /// Lets what is not known for too long be no longer waited for.
    pub(super) fn expire(&mut self, now_us: i64, now: Instant) {
        for replica in self.replicas.values_mut() {
            if replica.died.take_if(|died| now.saturating_duration_since(*died) >= RECENT_DEATH).is_some() {
                self.progress = true;
            }
        }
        let over = |proxy: &Proxy| {
            let doubt =
                proxy.unknown.is_some_and(|(since, length)| now.saturating_duration_since(since) >= length);
            let silent = proxy.connected
                && proxy.stream.is_none()
                && proxy.unknown.is_none()
                && proxy.instance.is_empty()
                && proxy
                    .row_seen
                    .is_some_and(|seen| now.saturating_duration_since(seen) >= OLD_VERSION_GRACE);
            doubt || silent
        };
        let ids: Vec<_> =
            (self.proxies.values().filter(|proxy| over(proxy))).map(|proxy| proxy.node.id.clone()).collect();
        for id in ids {
            self.change(now_us, &id, |proxy| {
                proxy.unknown = None;
                proxy.connected = false;
                proxy.lost = false;
            });
            if self.sharing == Sharing::Alone {
                self.unsaved.proxies.insert(id);
            } else {
                self.unsaved.expired.insert(id);
            }
        }
        let quiet = |proxy: &&Proxy| {
            proxy.duplicate.is_some()
                && proxy.stream.is_some()
                && proxy
                    .duplicate_seen
                    .is_none_or(|seen| now.saturating_duration_since(seen) >= DUPLICATE_WINDOW)
        };
        let ids: Vec<_> = self.proxies.values().filter(quiet).map(|proxy| proxy.node.id.clone()).collect();
        for id in ids {
            if let Some(proxy) = self.proxies.get_mut(&id) {
                proxy.duplicate = None;
                proxy.replaced.clear();
            }
            self.mark_changed(&id);
        }
    }

    /// Changes a proxy that has no stream to this control plane.
    fn change(&mut self, now_us: i64, id: &Arc<str>, change: impl FnOnce(&mut Proxy)) {
        let Some(before) = self.proxies.get(id).map(|proxy| self.contribution(proxy)) else { return };
        if let Some(proxy) = self.proxies.get_mut(id) {
            change(proxy);
        }
        self.update_counts(now_us, id, Some(before));
        self.unannounced.proxies.insert(id.clone());
    }

    /// Compares with the ids of all rows: drops the proxies whose rows are gone, for another control plane forgot them;
    /// those with a stream to this one are registered again.
    pub(super) fn retain_rows(&mut self, now_us: i64, read: u64, ids: &HashSet<&str>) {
        let gone =
            |proxy: &&Proxy| !ids.contains(&*proxy.node.id) && !self.unsaved.proxies.contains(&proxy.node.id);
        let gone: Vec<_> = self.proxies.values().filter(gone).map(|proxy| proxy.node.id.clone()).collect();
        for id in gone {
            self.on_missing_row(now_us, read, &id);
        }
    }

    /// A proxy has no row.
    pub(super) fn on_missing_row(&mut self, now_us: i64, read: u64, id: &Arc<str>) {
        let Some(proxy) = self.proxies.get_mut(id) else { return };
        if proxy.stream.is_none() {
            self.forget(now_us, id);
        } else if matches!(proxy.registration, Registration::Done(at) if read > at) {
            proxy.registration = Registration::Pending;
            self.unsaved.proxies.insert(id.clone());
        }
    }

    /// The proxies with a stream to this control plane are registered anew, for others took it for dead.
    pub(super) fn register_all(&mut self) {
        for proxy in self.proxies.values_mut().filter(|proxy| proxy.stream.is_some()) {
            proxy.registration = Registration::Pending;
            self.unsaved.proxies.insert(proxy.node.id.clone());
        }
    }

    /// Others take this control plane for dead from now on, or no longer. While they do, streams are answered at once.
    pub(super) fn set_lease_lost(&mut self, lease_lost: bool) {
        self.progress |= self.lease_lost != lease_lost;
        self.lease_lost = lease_lost;
        if lease_lost {
            for proxy in self.proxies.values() {
                proxy.link.registered.cancel();
            }
        }
    }

    /// Streams are answered without being registered from now on, or no longer: what they change cannot be written.
    pub(super) fn set_unwritable(&mut self, unwritable: bool) {
        self.unwritable = unwritable;
        if unwritable {
            for proxy in self.proxies.values() {
                proxy.link.registered.cancel();
            }
        }
    }

    /// The record of a proxy to be written, and if that takes its row over; `None`: another control plane has the proxy.
    pub(super) fn row_to_write(&self, id: &str) -> Option<(Proxy, bool)> {
        let proxy = self.stored_proxy(id)?;
        let takes = self.sharing == Sharing::Alone || proxy.registration == Registration::Pending;
        Some((proxy.clone(), takes))
    }

    /// A stream was registered: it may be answered.
    pub(super) fn registered(&mut self, id: &str, stream: Option<u64>) {
        let reads = self.reads;
        let Some(proxy) = self.proxies.get_mut(id).filter(|proxy| proxy.stream == stream) else { return };
        if proxy.registration == Registration::Pending {
            proxy.registration = Registration::Done(reads);
        }
        proxy.link.registered.cancel();
    }

    /// A proxy of another control plane's row that expired here, to be written so.
    pub(super) fn expired_row(&self, id: &str) -> Option<&Proxy> {
        self.proxies.get(id).filter(|proxy| proxy.stream.is_none() && !proxy.connected && !proxy.lost)
    }

    /// True if a proxy has a stream to this control plane.
    pub(super) fn has_streams(&self) -> bool {
        self.proxies.values().any(|proxy| proxy.stream.is_some())
    }

    /// How the streams are spread over the control planes that are there.
    pub(super) fn stream_share(&self) -> StreamShare {
        let alive = |instance: &Arc<str>| self.replicas.get(instance).is_some_and(|replica| replica.alive);
        let own = self.proxies.values().filter(|proxy| proxy.stream.is_some()).count();
        // One that this control plane ended is soon somewhere else.
        let elsewhere = |proxy: &&Proxy| {
            proxy.stream.is_none() && (proxy.lost || proxy.connected && alive(&proxy.instance))
        };
        let all = own + self.proxies.values().filter(elsewhere).count();
        let replicas = 1 + self.replicas.values().filter(|replica| replica.alive).count();
        StreamShare { own, all, replicas }
    }

    /// The stream of a proxy to this control plane.
    pub(super) fn stream_of(&self, id: &str) -> Option<u64> {
        self.proxies.get(id).and_then(|proxy| proxy.stream)
    }

    /// True if this instance of a control plane is known.
    pub(super) fn knows_replica(&self, instance: &str) -> bool {
        instance.is_empty() || *instance == *self.instance || self.replicas.contains_key(instance)
    }

    /// Takes in a rollout of before the start.
    pub(super) fn restore_rollout(&mut self, revision: u64, fleet: Arc<str>, record: RolloutRecord) {
        let fleet = self.fleets.entry(fleet).or_default();
        fleet.rollouts.insert(revision, record);
        fleet.final_up_to = fleet.final_up_to.max(revision.saturating_sub(1));
    }

    /// Which proxies with a stream to this control plane are to be written anew, for they are alive: those that reported since
    /// this was last asked, or all.
    pub(super) fn take_heartbeats(&mut self, all: bool) -> Vec<Arc<str>> {
        let reported = std::mem::take(&mut self.heartbeats);
        let local = self.proxies.values().filter(|proxy| proxy.stream.is_some());
        local.map(|proxy| &proxy.node.id).filter(|id| all || reported.contains(*id)).cloned().collect()
    }

    /// The record of a proxy to be written; `None` for one that went to another control plane, which writes it.
    fn stored_proxy(&self, id: &str) -> Option<&Proxy> {
        let own = |proxy: &&Proxy| self.sharing == Sharing::Alone || proxy.instance == self.instance;
        self.proxies.get(id).filter(own)
    }

    pub(super) fn rollout_to_store(&self, revision: u64, fleet: &str) -> Option<RolloutRecord> {
        let found = self.fleets.get(fleet)?;
        let mut record = found.rollouts.get(&revision)?.clone();
        record.counts = Some(record.counts.unwrap_or_else(|| self.counts(fleet, found, revision)));
        record.propagation = record.propagation();
        Some(record)
    }
}

/// How long another control plane counts as alive after it said so last, by the database's clock.
pub(super) const LEASE: Duration = Duration::from_secs(3);

/// For how long a control plane that has just died holds up waits: it may have had streams that it could not register.
pub(super) const RECENT_DEATH: Duration = Duration::from_secs(10);

/// Likewise, when its control plane is dead to the others: it may only be cut off from the database, and have its streams.
pub(super) const DEAD_REPLICA_GRACE: Duration = Duration::from_secs(600);

/// For how long a control plane of a version that only rewrites its rows, every 10 s, may be silent.
pub(super) const OLD_VERSION_GRACE: Duration = Duration::from_secs(30);
