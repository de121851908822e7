//! What the board knows, and how each event changes it: synchronous, over values, O(1) in the number of proxies.
//!
//! A fleet does not look at its proxies to know how it stands. It counts the connected ones by the revision they
//! serve; each event takes a proxy's old contribution out of the counts and puts the new one in.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use signalbox_config::RevisionId;
use signalbox_proto::signalbox::report::v1::ProxyReport;

use super::status::{
    FleetStatus, Propagation, ProxyError, ProxyResourceError, ProxyRevision, ProxyState, ProxyStatus,
    ProxyTraffic, Rollout, RolloutCounts, RolloutFault, RolloutState, TrafficClasses, Waiting,
};
use super::{Link, Node, Sharing, WaitResult};
use crate::store::{ReplicaRow, Stamp};

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
        presented: Option<Presented>,
        /// Between the board and the stream.
        link: Link,
    },
    /// Its stream ended.
    Closed {
        /// See above.
        stream: u64,
        /// The proxy.
        id: Arc<str>,
        /// Who ended it.
        by: EndedBy,
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

/// What a proxy says it serves when its stream opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented {
    /// Which.
    pub revision: RevisionId,
    /// Its digest is that of the published revision. Until that is known, or the proxy acknowledges something, nothing
    /// counts as served: the number may be of a log that a restored database no longer has.
    pub verified: bool,
}

/// Who ended a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedBy {
    /// The proxy, the network, or a violation of the protocol.
    Proxy,
    /// This control plane, which ends: the proxy is there, and connects again soon.
    Shutdown,
}

/// What is known.
pub(super) struct State {
    replica: Arc<str>,
    /// This process, among all that use the database.
    instance: Arc<str>,
    sharing: Sharing,
    /// The other control planes, by instance.
    replicas: HashMap<Arc<str>, Replica>,
    /// Counts the reads of what other control planes wrote, at their beginning.
    reads: u64,
    /// The database has not confirmed for so long that this control plane is alive that others take it for dead: streams
    /// are answered without being registered.
    lapsed: bool,
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
    /// Proxies that were seen to share a node id, and are to be warned about.
    pub(super) duplicates: Vec<(Arc<str>, Duplicate)>,
}

/// Another control plane of the same database.
#[derive(Debug)]
struct Replica {
    alive: bool,
    /// When it was seen to be no longer alive.
    died: Option<Instant>,
}

/// What changed and was not passed on yet.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub(super) proxies: HashSet<Arc<str>>,
    pub(super) rollouts: BTreeSet<(u64, Arc<str>)>,
    pub(super) forgotten: Vec<Arc<str>>,
    /// Proxies of other control planes that are no longer waited for.
    pub(super) expired: BTreeSet<Arc<str>>,
}

/// A proxy, as it is also stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Proxy {
    pub(super) node: Arc<Node>,
    /// The control plane it has its stream to, or had.
    pub(super) replica: Arc<str>,
    /// The process of that control plane; empty: one of a version that did not say so.
    #[serde(default)]
    pub(super) instance: Arc<str>,
    pub(super) connected: bool,
    /// Its stream ended, and the proxy is there, and connects again soon: its control plane ended, or it drifted.
    #[serde(default)]
    lost: bool,
    connected_at_us: i64,
    last_seen_us: i64,
    sent: u64,
    /// The epoch of `applied`; empty before the first.
    epoch: Arc<str>,
    applied: u64,
    /// `applied` is known to be the revision that has this number now, see [`Presented`].
    #[serde(default = "verified_by_default")]
    verified: bool,
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
    /// The process of the proxy, as it says; empty: it says nothing.
    #[serde(default)]
    process: Arc<str>,
    /// The processes whose open streams the later ones replaced, the last ones.
    #[serde(default)]
    replaced: Vec<Process>,
    /// Another process uses the same node id.
    #[serde(default)]
    duplicate: Option<Duplicate>,
    #[serde(skip)]
    duplicate_seen: Option<Instant>,
    #[serde(skip)]
    duplicate_told: Option<Instant>,
    /// Its stream to this control plane.
    #[serde(skip)]
    stream: Option<u64>,
    #[serde(skip)]
    link: Link,
    /// Whether the database knows of `stream`.
    #[serde(skip)]
    registration: Registration,
    /// Whether it has a stream is not known, since when, and for how long that is so.
    #[serde(skip)]
    unknown: Option<(Instant, Duration)>,
    /// Of another control plane's row: which version of it was read.
    #[serde(skip)]
    row: Option<Stamp>,
    /// When that was seen to change.
    #[serde(skip)]
    row_seen: Option<Instant>,
}

/// A process of a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Process {
    process: Arc<str>,
    address: String,
}

/// Two processes with one node id: where they connect from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Duplicate {
    pub(super) addresses: [String; 2],
}

/// Whether the database knows that a proxy has its stream to this control plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Registration {
    /// There is nothing to register.
    #[default]
    None,
    /// It is to be written.
    Pending,
    /// It was written, when so many reads had begun.
    Done(u64),
}

fn verified_by_default() -> bool {
    true
}

#[derive(Debug, Default)]
struct Fleet {
    total: u32,
    connected: u32,
    unknown: u32,
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
    #[serde(default)]
    fault: Option<RolloutFault>,
    /// Who rejected this very revision, and did not apply it later.
    #[serde(default)]
    rejected_by: BTreeSet<Arc<str>>,
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
    connection: Connection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    Connected {
        serves: u64,
        /// What it rejected after that.
        rejected: Option<u64>,
    },
    Unknown,
    Disconnected,
}

impl State {
    /// How many rollouts are kept for each fleet.
    const ROLLOUTS: usize = 200;

    /// Of how many proxies is remembered that they rejected a revision.
    const REJECTERS: usize = 1000;

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
            lapsed: false,
            head: None,
            head_committed_at_us: 0,
            proxies: HashMap::new(),
            fleets: BTreeMap::new(),
            progress: false,
            unsaved: Dirty::default(),
            untold: Dirty::default(),
            alive: HashSet::new(),
            duplicates: Vec::new(),
        }
    }

    /// Whether a stream of this proxy may be opened: names come from the proxies, and must not fill the memory.
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

    pub(super) fn fold(&mut self, now_us: i64, event: Event) {
        match event {
            Event::Published { revision, committed_at_us } => {
                self.published(now_us, revision, committed_at_us);
            }
            Event::Opened { stream, node, presented, link } => {
                self.opened(now_us, stream, node, presented, link);
            }
            Event::Closed { stream, id, by } => self.on_stream(now_us, stream, &id, |proxy| {
                proxy.stream = None;
                proxy.connected = false;
                proxy.link = Link::default();
                // Not registered yet: whoever has the proxy meanwhile keeps it.
                proxy.registration = Registration::None;
                // One that drifted ends its stream by itself, to be sent everything on the next.
                if by == EndedBy::Shutdown || proxy.drifted {
                    proxy.lost = true;
                    proxy.unknown = Some((Instant::now(), RESTART));
                }
            }),
            Event::Sent { stream, id, revision } => {
                let proxy = self.proxies.get_mut(&id).filter(|proxy| proxy.stream == Some(stream));
                if let Some(proxy) = proxy {
                    proxy.sent = revision;
                    // Soon it is answered, and that is written.
                    self.untold.proxies.insert(id.clone());
                    self.alive.insert(id);
                }
            }
            Event::Acked { stream, id, revision } => {
                let before = self.proxies.get(&id).filter(|proxy| proxy.stream == Some(stream));
                let Some(before) = before.map(|proxy| (self.served(proxy), proxy.connected_at_us)) else {
                    return;
                };
                let number = revision.number;
                self.note_applied_after_all(&id, number);
                self.sample(&id, before.0, number, before.1, now_us);
                self.on_stream(now_us, stream, &id, |proxy| {
                    proxy.epoch = revision.epoch;
                    proxy.applied = number;
                    proxy.verified = true;
                    proxy.acked_at_us = Some(now_us);
                    proxy.drifted = false;
                    proxy.error.take_if(|error| error.revision <= number);
                });
            }
            Event::Rejected { stream, id, revision, resources } => {
                if self.proxies.get(&id).is_none_or(|proxy| proxy.stream != Some(stream)) {
                    return;
                }
                let fault = fault(&id, revision, &resources);
                self.note_rejection(&id, revision, fault);
                self.on_stream(now_us, stream, &id, |proxy| {
                    // It has checked the digest of the whole before it looked at the resources.
                    proxy.verified = true;
                    proxy.error = Some(ProxyError { revision, resources });
                });
            }
            Event::Drifted { stream, id, revision, message } => {
                let resources = vec![ProxyResourceError {
                    kind: String::new(),
                    name: String::new(),
                    field: String::new(),
                    message,
                    changed_in: None,
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

    fn opened(&mut self, now_us: i64, stream: u64, node: Node, presented: Option<Presented>, link: Link) {
        let id = node.id.clone();
        let fleet = node.fleet.clone();
        if !self.proxies.contains_key(&id) {
            self.make_room(now_us);
        }
        let before = self.proxies.get(&id).map(|proxy| self.contribution(proxy));
        let mut proxy = self.proxies.remove(&id).unwrap_or_else(|| Proxy::new(&node));
        let presented = presented.unwrap_or_else(|| Presented {
            revision: RevisionId { epoch: "".into(), number: 0 },
            verified: false,
        });
        let Presented { revision, verified } = presented;
        if (&proxy.epoch, proxy.applied) != (&revision.epoch, revision.number) {
            proxy.acked_at_us = None;
        }
        if let Some(duplicate) = proxy.note_process(&node, &link.process) {
            let told = proxy.duplicate_told.is_some_and(|told| told.elapsed() < DUPLICATE);
            if !told && self.duplicates.len() < MAX_TOLD {
                proxy.duplicate_told = Some(Instant::now());
                self.duplicates.push((id.clone(), duplicate));
            }
        }
        proxy.node = Arc::new(node);
        proxy.replica = self.replica.clone();
        proxy.instance = self.instance.clone();
        proxy.stream = Some(stream);
        proxy.registration = match self.sharing {
            Sharing::Alone => Registration::None,
            Sharing::Shared => Registration::Pending,
        };
        if self.sharing == Sharing::Alone || self.lapsed {
            link.answer.cancel();
        }
        proxy.link = link;
        proxy.connected = true;
        proxy.lost = false;
        proxy.unknown = None;
        proxy.connected_at_us = now_us;
        proxy.last_seen_us = now_us;
        proxy.sent = revision.number;
        let other_epoch = !revision.epoch.is_empty() && proxy.epoch != revision.epoch;
        proxy.error.take_if(|error| other_epoch || error.revision <= revision.number);
        proxy.epoch = revision.epoch;
        proxy.applied = revision.number;
        proxy.verified = verified;
        // Else it is so until it serves a revision.
        proxy.drifted &= !verified;
        self.proxies.insert(id.clone(), proxy);
        self.add_fleet(fleet);
        self.contribute(now_us, &id, before);
        self.mark(&id);
    }

    /// Forgets the proxy that has been without a stream for longest when there are as many as there may be.
    fn make_room(&mut self, now_us: i64) {
        if self.proxies.len() < Self::PROXIES {
            return;
        }
        let closed = self.proxies.values().filter(|proxy| self.connection(proxy) == Connection::Disconnected);
        let oldest = closed.min_by_key(|proxy| proxy.last_seen_us).map(|proxy| proxy.node.id.clone());
        if let Some(id) = oldest {
            self.forget(now_us, &id);
            self.unsaved.forgotten.push(id);
        }
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

    /// A read of what other control planes wrote begins: its number, for what it finds.
    pub(super) fn begin_read(&mut self) -> u64 {
        self.reads += 1;
        self.reads
    }

    /// Whether a row of this version was read already.
    pub(super) fn has_read(&self, id: &str, stamp: &Stamp) -> bool {
        // What this process wrote is never later than what it knows.
        self.proxies.get(id).is_some_and(|known| {
            self.is_own(stamp) || known.stream.is_none() && known.row.as_ref() == Some(stamp)
        })
    }

    /// Whether this process wrote a row.
    fn is_own(&self, stamp: &Stamp) -> bool {
        stamp.instance == *self.instance && stamp.replica == *self.replica
    }

    /// Takes in what another control plane wrote of a proxy, or what was stored before the start.
    pub(super) fn read_row(&mut self, now_us: i64, read: u64, mut proxy: Proxy, stamp: Stamp) {
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
        let before = known.map(|known| self.contribution(known));
        let earlier = known.map(|known| (self.served(known), known.connected_at_us));
        let now = Instant::now();
        // While it is of unknown state, reading the same row again does not begin that anew.
        let same_owner = known.is_some_and(|known| {
            known.stream.is_none() && (&known.instance, &known.replica) == (&proxy.instance, &proxy.replica)
        });
        let unknown = known.filter(|_| same_owner).and_then(|known| known.unknown);
        let first_sight = known.is_none();
        proxy.unknown = self.doubt(&proxy, first_sight).map(|length| unknown.unwrap_or((now, length)));
        proxy.row = Some(stamp);
        proxy.row_seen = Some(now);
        let (acked_at_us, number) = (proxy.acked_at_us, self.served(&proxy));
        let rejection = proxy.error.clone().filter(|_| !proxy.drifted);
        let fleet = proxy.node.fleet.clone();
        self.proxies.insert(id.clone(), proxy);
        self.add_fleet(fleet);
        if let Some(ProxyError { revision, resources }) = rejection {
            // It was rejected at another control plane, and the history is the same at each.
            self.note_rejection(&id, revision, fault(&id, revision, &resources));
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

    /// For how long it is not known whether a proxy without a stream to this control plane has one; `None`: it is known.
    fn doubt(&self, proxy: &Proxy, first_sight: bool) -> Option<Duration> {
        if proxy.lost {
            return Some(RESTART);
        }
        if !proxy.connected {
            return None;
        }
        // An earlier process of this control plane, which is gone, and all its streams with it.
        let predecessor = proxy.replica == self.replica || self.sharing == Sharing::Alone;
        if proxy.instance.is_empty() {
            // A version that registers nowhere. If it is there, it writes its rows anew every few seconds.
            return match (predecessor, first_sight) {
                (true, _) => Some(RESTART),
                (false, true) => Some(OLD_VERSION),
                (false, false) => None,
            };
        }
        if self.replicas.get(&proxy.instance).is_some_and(|replica| replica.alive) {
            return None;
        }
        Some(if predecessor { RESTART } else { DEAD })
    }

    /// Takes in which control planes there are.
    pub(super) fn read_replicas(&mut self, now_us: i64, now: Instant, rows: &[ReplicaRow]) {
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
                    let recent = !alive && row.age < RECENT && !predecessor;
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
            let doubt = self.doubt(proxy, false);
            self.change(now_us, &id, |proxy| {
                proxy.unknown = doubt.map(|length| proxy.unknown.unwrap_or((now, length)));
            });
        }
    }

    /// What the database says of the streams is not all: another control plane has just died, and may have had streams
    /// that it could not register; or this one cannot write.
    pub(super) fn is_unsettled(&self, now: Instant) -> bool {
        let recent = |died: Instant| now.saturating_duration_since(died) < RECENT;
        self.lapsed || self.replicas.values().any(|replica| replica.died.is_some_and(recent))
    }

    /// Lets what is not known for too long be no longer waited for.
    pub(super) fn expire(&mut self, now_us: i64, now: Instant) {
        for replica in self.replicas.values_mut() {
            if replica.died.take_if(|died| now.saturating_duration_since(*died) >= RECENT).is_some() {
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
                && proxy.row_seen.is_some_and(|seen| now.saturating_duration_since(seen) >= OLD_VERSION);
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
                && proxy.duplicate_seen.is_none_or(|seen| now.saturating_duration_since(seen) >= DUPLICATE)
        };
        let ids: Vec<_> = self.proxies.values().filter(quiet).map(|proxy| proxy.node.id.clone()).collect();
        for id in ids {
            if let Some(proxy) = self.proxies.get_mut(&id) {
                proxy.duplicate = None;
                proxy.replaced.clear();
            }
            self.mark(&id);
        }
    }

    /// Changes a proxy that has no stream to this control plane.
    fn change(&mut self, now_us: i64, id: &Arc<str>, change: impl FnOnce(&mut Proxy)) {
        let Some(before) = self.proxies.get(id).map(|proxy| self.contribution(proxy)) else { return };
        if let Some(proxy) = self.proxies.get_mut(id) {
            change(proxy);
        }
        self.contribute(now_us, id, Some(before));
        self.untold.proxies.insert(id.clone());
    }

    /// Compares with the ids of all rows: drops the proxies whose rows are gone, for another control plane forgot them;
    /// those with a stream to this one are registered again.
    pub(super) fn keep_rows(&mut self, now_us: i64, read: u64, ids: &HashSet<&str>) {
        let gone =
            |proxy: &&Proxy| !ids.contains(&*proxy.node.id) && !self.unsaved.proxies.contains(&proxy.node.id);
        let gone: Vec<_> = self.proxies.values().filter(gone).map(|proxy| proxy.node.id.clone()).collect();
        for id in gone {
            self.drop_row(now_us, read, &id);
        }
    }

    /// A proxy has no row.
    pub(super) fn drop_row(&mut self, now_us: i64, read: u64, id: &Arc<str>) {
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
    pub(super) fn set_lapsed(&mut self, lapsed: bool) {
        self.progress |= self.lapsed != lapsed;
        self.lapsed = lapsed;
        if lapsed {
            for proxy in self.proxies.values() {
                proxy.link.answer.cancel();
            }
        }
    }

    /// What is to be written of a proxy, and whether that takes its row over; `None`: another control plane has it.
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
        proxy.link.answer.cancel();
    }

    /// A proxy of another control plane's row that expired here, to be written so.
    pub(super) fn expired_row(&self, id: &str) -> Option<&Proxy> {
        self.proxies.get(id).filter(|proxy| proxy.stream.is_none() && !proxy.connected && !proxy.lost)
    }

    /// Whether a proxy has a stream to this control plane.
    pub(super) fn has_streams(&self) -> bool {
        self.proxies.values().any(|proxy| proxy.stream.is_some())
    }

    /// The stream of a proxy to this control plane.
    pub(super) fn stream_of(&self, id: &str) -> Option<u64> {
        self.proxies.get(id).and_then(|proxy| proxy.stream)
    }

    /// Whether an instance of a control plane is one that was read of.
    pub(super) fn knows_replica(&self, instance: &str) -> bool {
        instance.is_empty() || *instance == *self.instance || self.replicas.contains_key(instance)
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
    fn stored_proxy(&self, id: &str) -> Option<&Proxy> {
        let own = |proxy: &&Proxy| self.sharing == Sharing::Alone || proxy.instance == self.instance;
        self.proxies.get(id).filter(own)
    }

    pub(super) fn stored_way(&self, revision: u64, fleet: &str) -> Option<Way> {
        let found = self.fleets.get(fleet)?;
        let mut way = found.ways.get(&revision)?.clone();
        way.counts = Some(way.counts.unwrap_or_else(|| self.counts(fleet, found, revision)));
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
            counts: way.counts.unwrap_or_else(|| self.counts(name, fleet, number)),
            started_at: time(way.committed_at_us),
            finished_at: way.finished_at_us.map(time),
            propagation_ms: way.propagation(),
            reason: way.reason.clone(),
            fault: way.fault.clone(),
        })
    }

    pub(super) fn fleets(&self) -> Vec<FleetStatus> {
        let assigned = self.head.as_ref().map_or(0, |head| head.number);
        let status = |(name, fleet): (&Arc<str>, &Fleet)| FleetStatus {
            name: name.to_string(),
            proxies: fleet.total,
            connected: fleet.connected,
            unknown: fleet.unknown,
            assigned,
            served: fleet.applied.first_key_value().map(|(number, _)| *number),
        };
        self.fleets.iter().map(status).collect()
    }

    /// How a wait for `revision` stands; `None`: it goes on.
    pub(super) fn standing(&self, revision: u64, fleet: Option<&str>) -> Option<WaitResult> {
        let head = self.head.as_ref().map(|head| head.number).filter(|head| *head >= revision)?;
        let mut done = true;
        for (_, fleet) in self.fleets.iter().filter(|(name, _)| fleet.is_none_or(|fleet| *fleet == ***name)) {
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
                Connection::Connected { serves, .. } => serves < revision || serves > head,
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
        let assigned = self.head.as_ref().map_or(0, |head| head.number);
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
        let assigned = self.head.as_ref().map_or(0, |head| head.number);
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
            traffic: proxy.traffic.clone().filter(|_| connected),
            listeners: proxy.listeners.clone(),
            warnings: proxy
                .duplicate
                .iter()
                .map(Duplicate::to_string)
                .chain(proxy.warnings.iter().cloned())
                .collect(),
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
        Contribution { fleet: proxy.node.fleet.clone(), connection: self.connection(proxy) }
    }

    fn connection(&self, proxy: &Proxy) -> Connection {
        if proxy.unknown.is_some() {
            return Connection::Unknown;
        }
        if !proxy.connected {
            return Connection::Disconnected;
        }
        // What it serves is not what its revision has, or is not known to be.
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

    fn add_fleet(&mut self, name: Arc<str>) {
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
        let lowest = match fleet.unknown {
            0 => fleet.applied.first_key_value().map_or(u64::MAX, |(number, _)| *number),
            _ => 0,
        };
        let settled = lowest.min(head.saturating_sub(1));
        if settled > fleet.settled {
            let range = (Bound::Excluded(fleet.settled), Bound::Included(settled));
            let numbers: Vec<_> = fleet.ways.range(range).map(|(number, _)| *number).collect();
            let counts: Vec<_> = match self.fleets.get(name) {
                Some(fleet) => numbers.iter().map(|number| self.counts(name, fleet, *number)).collect(),
                None => Vec::new(),
            };
            let Some(fleet) = self.fleets.get_mut(name) else { return };
            for (number, counts) in numbers.into_iter().zip(counts) {
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
        let Some(fleet) = self.fleets.get_mut(name) else { return };
        let counts = fleet.counts(head);
        let Some(way) = fleet.ways.get_mut(&head) else { return };
        let before = way.state;
        way.state = if counts.rejected > 0 {
            RolloutState::Failed
        } else if counts.pending == 0 && counts.unknown == 0 {
            RolloutState::Succeeded
        } else if way.state == RolloutState::Succeeded {
            // A proxy that came back, or a new one, is still on its way.
            RolloutState::Succeeded
        } else {
            RolloutState::Running
        };
        if way.state != RolloutState::Failed {
            way.reason = None;
            way.fault = None;
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
            // What it rejected it never served, however far it is now.
            let rejected = way.rejected_by.contains(id);
            if connected_at_us <= way.committed_at_us && way.counts.is_none() && !rejected {
                let took = acked_at_us.saturating_sub(way.committed_at_us).clamp(0, i64::from(u32::MAX));
                way.samples.push(u32::try_from(took).unwrap_or(u32::MAX));
            }
        }
    }

    fn note_rejection(&mut self, id: &Arc<str>, revision: u64, fault: RolloutFault) {
        let Some(proxy) = self.proxies.get(id) else { return };
        let fleet = self.fleets.get_mut(&proxy.node.fleet);
        let Some(way) = fleet.and_then(|fleet| fleet.ways.get_mut(&revision)) else { return };
        if way.rejected_by.len() < Self::REJECTERS {
            way.rejected_by.insert(id.clone());
        }
        if way.reason.is_none() {
            way.reason = Some(reason(&fault, revision));
            way.fault = Some(fault);
        }
    }

    /// A proxy serves this very revision, which it may have rejected before.
    fn note_applied_after_all(&mut self, id: &Arc<str>, revision: u64) {
        let Some(proxy) = self.proxies.get(id) else { return };
        let is_head = self.head.as_ref().is_some_and(|head| head.number == revision);
        let name = proxy.node.fleet.clone();
        let Some(fleet) = self.fleets.get_mut(&name) else { return };
        let Some(way) = fleet.ways.get_mut(&revision) else { return };
        let was_last = way.rejected_by.remove(id) && way.rejected_by.is_empty();
        if was_last && !is_head && way.state == RolloutState::Failed {
            way.state = RolloutState::Superseded;
            way.reason = None;
            way.fault = None;
            self.unsaved.rollouts.insert((revision, name.clone()));
            self.untold.rollouts.insert((revision, name));
        }
    }

    /// A fleet's proxies by how they stand to a revision. Whoever rejected it counts so, though it serves a later one.
    fn counts(&self, name: &str, fleet: &Fleet, revision: u64) -> RolloutCounts {
        let mut counts = fleet.counts(revision);
        let Some(way) = fleet.ways.get(&revision) else { return counts };
        let passed = |id: &&Arc<str>| {
            self.proxies.get(*id).is_some_and(|proxy| {
                let serves_later = matches!(
                    self.connection(proxy),
                    Connection::Connected { serves, .. } if serves >= revision
                );
                *proxy.node.fleet == *name && serves_later
            })
        };
        let passed = way.rejected_by.iter().filter(passed).count() as u32;
        counts.applied = counts.applied.saturating_sub(passed);
        counts.rejected += passed;
        counts
    }

    fn mark(&mut self, id: &Arc<str>) {
        self.unsaved.proxies.insert(id.clone());
        self.untold.proxies.insert(id.clone());
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

impl Proxy {
    fn new(node: &Node) -> Self {
        Self {
            node: Arc::new(node.clone()),
            replica: "".into(),
            instance: "".into(),
            connected: false,
            lost: false,
            connected_at_us: 0,
            last_seen_us: 0,
            sent: 0,
            epoch: "".into(),
            applied: 0,
            verified: false,
            acked_at_us: None,
            reported: None,
            error: None,
            drifted: false,
            traffic: None,
            listeners: BTreeMap::new(),
            warnings: Vec::new(),
            process: "".into(),
            replaced: Vec::new(),
            duplicate: None,
            duplicate_seen: None,
            duplicate_told: None,
            stream: None,
            link: Link::default(),
            registration: Registration::None,
            unknown: None,
            row: None,
            row_seen: None,
        }
    }

    /// Notes which process of the proxy opens a stream, and whether it is one whose stream another process replaced, that
    /// is there still: two with one node id.
    fn note_process(&mut self, node: &Node, process: &Arc<str>) -> Option<Duplicate> {
        let before = std::mem::replace(&mut self.process, process.clone());
        if !self.connected || before.is_empty() || process.is_empty() || before == *process {
            return None;
        }
        let back = self.replaced.iter().any(|replaced| replaced.process == *process);
        let address = self.node.address.clone();
        self.replaced.retain(|replaced| replaced.process != before);
        self.replaced.push(Process { process: before, address: address.clone() });
        if self.replaced.len() > REPLACED {
            self.replaced.remove(0);
        }
        if !back {
            return None;
        }
        let duplicate = Duplicate { addresses: [address, node.address.clone()] };
        self.duplicate = Some(duplicate.clone());
        self.duplicate_seen = Some(Instant::now());
        Some(duplicate)
    }
}

impl std::fmt::Display for Duplicate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [one, other] = &self.addresses;
        write!(
            f,
            "two proxies use this node id, from {one} and {other}, and end each other's streams: give each its own \
             --node-id and data directory"
        )
    }
}

impl Fleet {
    fn add(&mut self, contribution: &Contribution) {
        self.total += 1;
        match contribution.connection {
            Connection::Connected { serves, rejected } => {
                self.connected += 1;
                *self.applied.entry(serves).or_default() += 1;
                if let Some(rejected) = rejected {
                    *self.rejected.entry((rejected, serves)).or_default() += 1;
                }
            }
            Connection::Unknown => self.unknown += 1,
            Connection::Disconnected => {}
        }
    }

    fn subtract(&mut self, contribution: &Contribution) {
        self.total = self.total.saturating_sub(1);
        match contribution.connection {
            Connection::Connected { serves, rejected } => {
                self.connected = self.connected.saturating_sub(1);
                take_one(&mut self.applied, serves);
                if let Some(rejected) = rejected {
                    take_one(&mut self.rejected, (rejected, serves));
                }
            }
            Connection::Unknown => self.unknown = self.unknown.saturating_sub(1),
            Connection::Disconnected => {}
        }
    }

    /// What a wait depends on.
    fn outlook(&self) -> (Option<u64>, Option<u64>, u32, u32) {
        let lowest = self.applied.first_key_value().map(|(number, _)| *number);
        let highest = self.applied.last_key_value().map(|(number, _)| *number);
        (lowest, highest, self.unknown, self.rejected.values().sum())
    }

    fn counts(&self, revision: u64) -> RolloutCounts {
        let applied = self.applied.range(revision..).map(|(_, count)| count).sum();
        let rejected = self.rejections(revision);
        RolloutCounts {
            total: self.total,
            applied,
            pending: self.connected.saturating_sub(applied).saturating_sub(rejected),
            rejected,
            disconnected: self.total.saturating_sub(self.connected).saturating_sub(self.unknown),
            unknown: self.unknown,
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
            fault: None,
            rejected_by: BTreeSet::new(),
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

fn fault(id: &str, revision: u64, resources: &[ProxyResourceError]) -> RolloutFault {
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

fn reason(fault: &RolloutFault, rejected: u64) -> String {
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

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// RFC 3339.
fn time(us: i64) -> String {
    jiff::Timestamp::from_microsecond(us).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

/// How long another control plane counts as alive after it said so last, by the database's clock.
pub(super) const LEASE: Duration = Duration::from_secs(3);

/// For how long a control plane that has just died holds up waits: it may have had streams that it could not register.
const RECENT: Duration = Duration::from_secs(10);

/// For how long a proxy may be of unknown state whose control plane ended or was restarted: many times as long as it
/// takes to connect again.
const RESTART: Duration = Duration::from_secs(60);

/// Likewise, when its control plane is dead to the others: it may only be cut off from the database, and have its streams.
const DEAD: Duration = Duration::from_secs(600);

/// For how long a control plane of a version that only rewrites its rows, every 10 s, may be silent.
const OLD_VERSION: Duration = Duration::from_secs(30);

/// For how long it is shown that two proxies share a node id, after that was seen last; and how often it is logged.
const DUPLICATE: Duration = Duration::from_secs(60);

/// Processes of one proxy that are remembered.
const REPLACED: usize = 4;

/// Duplicates that are logged at once.
const MAX_TOLD: usize = 20;

#[cfg(test)]
mod tests {
    use signalbox_proto::signalbox::report::v1::{ErrorClasses, Traffic};

    use super::*;

    /// Times in these tests are milliseconds.
    const MS: i64 = 1000;

    fn state() -> State {
        State::new("here".into(), "here-1".into(), Sharing::Shared)
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
            self.open_in("default", ms, stream, name, presented);
        }

        fn open_in(&mut self, fleet: &str, ms: i64, stream: u64, name: &str, presented: u64) {
            self.open_as(Link::default(), fleet, ms, stream, name, presented);
        }

        fn open_as(&mut self, link: Link, fleet: &str, ms: i64, stream: u64, name: &str, presented: u64) {
            let verified = self.head.as_ref().is_some_and(|head| head.number == presented);
            let presented = Some(Presented { revision: id(presented), verified });
            self.at(ms, Event::Opened { stream, node: node(name, fleet), presented, link });
        }

        /// The database has taken in what was to be written.
        fn save(&mut self) {
            let unsaved = std::mem::take(&mut self.unsaved);
            for id in unsaved.proxies {
                if let Some((_, true)) = self.row_to_write(&id) {
                    let stream = self.stream_of(&id);
                    self.registered(&id, stream);
                }
            }
        }

        /// Reads a row of another control plane, which the database has at `version`.
        fn read(&mut self, ms: i64, proxy: Proxy, version: i64) {
            let stamp = Stamp {
                replica: proxy.replica.to_string(),
                instance: proxy.instance.to_string(),
                updated_at_us: version,
            };
            let read = self.begin_read();
            if !self.has_read(&proxy.node.id, &stamp) {
                self.read_row(ms * MS, read, proxy, stamp);
            }
        }

        /// Another control plane said so long ago that it is alive.
        fn replica(&mut self, now: Instant, instance: &str, age: Duration) {
            let rows = [ReplicaRow { instance: instance.into(), name: "there".into(), age }];
            self.read_replicas(0, now, &rows);
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
                changed_in: None,
            }];
            self.at(ms, Event::Rejected { stream, id: name.into(), revision, resources });
        }

        fn close(&mut self, ms: i64, stream: u64, name: &str) {
            self.at(ms, Event::Closed { stream, id: name.into(), by: EndedBy::Proxy });
        }

        /// `state total/applied/pending/rejected/disconnected`
        fn brief(&self, number: u64) -> String {
            let rollout = self.way(number, "default").unwrap();
            let RolloutCounts { total, applied, pending, rejected, disconnected, unknown } = rollout.counts;
            assert_eq!(total, applied + pending + rejected + disconnected + unknown, "{rollout:?}");
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
        state.publish(0, 0);
        state.open(1, 1, "a", 0);
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
        // It is without a stream for a moment, and then to be sent everything.
        state.close(2, 1, "a");
        assert_eq!((state.state_of("a"), state.standing(5, None)), (ProxyState::Drifted, None));
        assert!(!state.proxy("a").unwrap().connected);
        state.at(
            2,
            Event::Opened { stream: 2, node: node("a", "default"), presented: None, link: Link::default() },
        );
        assert_eq!((state.state_of("a"), state.standing(5, None)), (ProxyState::Drifted, None));
        assert!(state.proxy("a").unwrap().error.is_some());
        state.publish(3, 10);
        state.ack(4, 2, "a", 10);
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
        state.open_in("one", 1, 1, "a", 1);
        state.open_in("two", 1, 2, "b", 1);
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
        state.open_in("one", 1, 1, "a", 1);
        state.open_in("two", 2, 2, "a", 1);
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

    /// What another control plane would write of a proxy.
    fn row_of(name: &str, applied: u64, acked_ms: i64) -> Proxy {
        let mut other = State::new("there".into(), "there-1".into(), Sharing::Shared);
        other.publish(0, applied);
        other.open(acked_ms - 1, 1, name, 0);
        other.ack(acked_ms, 1, name, applied);
        stored(&other, name)
    }

    fn stored(state: &State, name: &str) -> Proxy {
        serde_json::from_str(&serde_json::to_string(&state.proxies[name]).unwrap()).unwrap()
    }

    const ALIVE: Duration = Duration::ZERO;

    #[test]
    fn the_proxies_of_other_control_planes_count_too() {
        let mut state = state();
        state.replica(Instant::now(), "there-1", ALIVE);
        state.publish(0, 1);
        state.read(5, row_of("b", 1, 4), 1);
        state.publish(10, 2);
        assert_eq!(state.standing(2, None), None);
        assert_eq!(state.proxy("b").unwrap().connected_to, "there");
        state.read(500, row_of("b", 2, 14), 2);
        assert_eq!(state.standing(2, None), Some(WaitResult::Done));
        // From its ACK, not from when that was read.
        assert_eq!(state.way(2, "default").unwrap().propagation_ms.unwrap().max, 4.0);
    }

    #[test]
    fn the_proxies_of_a_dead_control_plane_are_unknown_and_waited_for() {
        let mut state = state();
        let start = Instant::now();
        state.replica(start, "there-1", ALIVE);
        state.publish(0, 1);
        state.read(1, row_of("b", 1, 4), 1);
        assert_eq!(state.state_of("b"), ProxyState::InSync);
        assert_eq!(state.standing(1, None), Some(WaitResult::Done));
        state.replica(start, "there-1", LEASE);
        assert_eq!(state.state_of("b"), ProxyState::Unknown);
        assert!(!state.proxy("b").unwrap().connected);
        assert_eq!(state.standing(1, None), None);
        assert!(state.is_unsettled(start), "it may have had a stream that it could not register");
        let (waiting, count) = state.waited_for(1, None, 10);
        assert_eq!((&*waiting[0].id, waiting[0].state, count), ("b", ProxyState::Unknown, 1));
        assert_eq!(state.way(1, "default").unwrap().counts.unknown, 1);
        // It is alive after all.
        state.replica(start, "there-1", ALIVE);
        assert_eq!(state.state_of("b"), ProxyState::InSync);
        assert!(!state.is_unsettled(start));
        // It is not, for good.
        state.replica(start, "there-1", LEASE);
        state.expire(0, start + RECENT);
        assert!(!state.is_unsettled(start + RECENT));
        state.expire(0, start + DEAD - Duration::from_secs(1));
        assert_eq!(state.standing(1, None), None);
        state.expire(0, start + DEAD);
        assert_eq!(state.state_of("b"), ProxyState::Disconnected);
        assert_eq!(state.standing(1, None), Some(WaitResult::Done));
        assert!(state.unsaved.expired.contains("b"));
    }

    #[test]
    fn a_proxy_of_unknown_state_is_what_it_is_when_it_connects_elsewhere() {
        let mut state = state();
        let now = Instant::now();
        state.publish(0, 1);
        state.replica(now, "there-1", LEASE * 100);
        state.read(1, row_of("a", 1, 4), 1);
        state.read(1, row_of("b", 1, 4), 2);
        assert_eq!((state.state_of("a"), state.state_of("b")), (ProxyState::Unknown, ProxyState::Unknown));
        state.open(2, 1, "a", 1);
        assert_eq!(state.state_of("a"), ProxyState::InSync);
        let mut elsewhere = row_of("b", 1, 4);
        elsewhere.instance = "third-1".into();
        let third = ReplicaRow { instance: "third-1".into(), name: "third".into(), age: ALIVE };
        state.read_replicas(0, now, &[third]);
        state.read(3, elsewhere, 3);
        assert_eq!(state.state_of("b"), ProxyState::InSync);
    }

    #[test]
    fn after_a_restart_the_proxies_that_were_connected_are_waited_for() {
        for sharing in [Sharing::Alone, Sharing::Shared] {
            let mut before = State::new("here".into(), "here-0".into(), sharing);
            before.publish(0, 1);
            for (stream, name) in [(1, "killed"), (2, "ended"), (3, "left")] {
                before.open(1, stream, name, 1);
            }
            before.at(2, Event::Closed { stream: 2, id: "ended".into(), by: EndedBy::Shutdown });
            before.close(2, 3, "left");
            assert_eq!(before.state_of("ended"), ProxyState::Unknown);

            let mut after = State::new("here".into(), "here-1".into(), sharing);
            after.publish(0, 1);
            for name in ["killed", "ended", "left"] {
                after.read(1, stored(&before, name), 1);
            }
            let states = ["killed", "ended", "left"].map(|name| after.state_of(name));
            assert_eq!(states, [ProxyState::Unknown, ProxyState::Unknown, ProxyState::Disconnected]);
            assert_eq!(after.standing(1, None), None);
            after.open(2, 1, "killed", 1);
            assert_eq!(after.standing(1, None), None);
            after.expire(0, Instant::now() + RESTART);
            assert_eq!(after.state_of("ended"), ProxyState::Disconnected);
            assert_eq!(after.standing(1, None), Some(WaitResult::Done));
        }
    }

    #[test]
    fn a_control_plane_of_an_earlier_version_is_alive_while_it_rewrites_its_rows() {
        let mut state = state();
        state.publish(0, 1);
        let mut old = row_of("b", 1, 4);
        old.instance = "".into();
        state.read(1, old.clone(), 1);
        assert_eq!(state.state_of("b"), ProxyState::Unknown, "it may be long gone");
        state.read(2, old, 2);
        assert_eq!(state.state_of("b"), ProxyState::InSync);
        state.expire(0, Instant::now() + OLD_VERSION);
        assert_eq!(state.state_of("b"), ProxyState::Disconnected);
    }

    #[test]
    fn what_is_ahead_of_what_is_published_here_is_not_known_to_be_served() {
        let mut state = state();
        state.replica(Instant::now(), "there-1", ALIVE);
        state.publish(0, 5);
        state.read(1, row_of("b", 6, 4), 1);
        assert_eq!(state.standing(5, None), None);
        // It was only this control plane that was late.
        state.publish(2, 6);
        assert_eq!(state.standing(5, None), Some(WaitResult::Done));

        // What a proxy presents is of a log that is no more, and numbers come again.
        state.open(3, 1, "a", 8);
        for number in 7..=8 {
            state.publish(number as i64, number);
            state.read(number as i64, row_of("b", number, 4), number as i64);
            assert_eq!(state.standing(number, None), None, "{number}");
            assert_eq!(state.state_of("a"), ProxyState::Pending);
        }
        state.ack(9, 1, "a", 8);
        assert_eq!(state.standing(8, None), Some(WaitResult::Done));
    }

    #[test]
    fn a_stream_may_be_answered_once_it_is_registered() {
        let mut state = state();
        state.publish(0, 1);
        let link = Link::default();
        state.open_as(link.clone(), "default", 1, 1, "a", 0);
        assert!(!link.answer.is_cancelled());
        assert!(state.row_to_write("a").is_some_and(|(_, takes)| takes));
        // One that is over before that takes nothing over.
        state.close(2, 1, "a");
        assert!(state.row_to_write("a").is_some_and(|(_, takes)| !takes));
        state.registered("a", Some(1));
        assert!(!link.answer.is_cancelled());
        state.open_as(link.clone(), "default", 3, 2, "a", 0);
        state.save();
        assert!(link.answer.is_cancelled());
        assert!(state.row_to_write("a").is_some_and(|(_, takes)| !takes));

        // While the database is away for long, nobody waits for it; then all is registered anew.
        state.set_lapsed(true);
        let late = Link::default();
        state.open_as(late.clone(), "default", 4, 3, "b", 0);
        assert!(late.answer.is_cancelled());
        assert!(state.is_unsettled(Instant::now()));
        state.progress = false;
        state.set_lapsed(false);
        assert!(state.progress, "waits that were held up by it go on");
        state.register_all();
        for name in ["a", "b"] {
            assert!(state.row_to_write(name).is_some_and(|(_, takes)| takes), "{name}");
        }

        // Alone there is nobody to tell.
        let mut alone = State::new("here".into(), "here-1".into(), Sharing::Alone);
        let link = Link::default();
        alone.open_as(link.clone(), "default", 1, 1, "a", 0);
        assert!(link.answer.is_cancelled());
    }

    #[test]
    fn the_latest_stream_of_a_proxy_counts_and_ends_those_to_other_control_planes() {
        let mut state = state();
        state.replica(Instant::now(), "there-1", ALIVE);
        state.publish(0, 1);
        let link = Link::default();
        state.open_as(link.clone(), "default", 1, 1, "b", 1);
        // It came here after it was there: that row is to be replaced.
        state.read(2, row_of("b", 1, 4), 1);
        assert!(!link.replaced.is_cancelled());
        assert_eq!(state.proxy("b").unwrap().connected_to, "here");
        state.save();
        // What was read before that says nothing either.
        let read = state.begin_read();
        state.unsaved.proxies.insert("b".into());
        state.register_all();
        state.save();
        let stamp = Stamp { replica: "there".into(), instance: "there-1".into(), updated_at_us: 2 };
        state.read_row(3, read, row_of("b", 1, 4), stamp);
        assert!(!link.replaced.is_cancelled());
        // It went there.
        state.read(4, row_of("b", 1, 4), 3);
        assert!(link.replaced.is_cancelled());
        assert_eq!(state.proxy("b").unwrap().connected_to, "there");
        assert!(state.row_to_write("b").is_none(), "the other writes it");
        assert_eq!(state.take_alive(true), []);
        state.close(5, 1, "b");
        assert_eq!(state.state_of("b"), ProxyState::InSync);
    }

    #[test]
    fn a_proxy_that_another_control_plane_forgot_is_gone() {
        let mut state = state();
        let mut row = row_of("b", 1, 4);
        row.connected = false;
        state.read(1, row, 1);
        state.open(2, 1, "a", 0);
        state.save();
        let read = state.begin_read();
        state.keep_rows(3 * MS, read, &HashSet::new());
        let ids: Vec<_> = state.proxies().into_iter().map(|proxy| proxy.id).collect();
        assert_eq!(ids, ["a"]);
        assert!(
            state.row_to_write("a").is_some_and(|(_, takes)| takes),
            "it is connected, and registered again"
        );
    }

    #[test]
    fn two_proxies_with_one_node_id_are_told_from_one_that_was_started_again() {
        let mut state = state();
        state.publish(0, 1);
        let process = |process: &str| Link { process: process.into(), ..Link::default() };
        let mut stream = 0;
        let mut open = |state: &mut State, of: &str| {
            stream += 1;
            let mut node = node("a", "default");
            node.address = format!("10.0.0.1:{stream}");
            let link = process(of);
            state.at(1, Event::Opened { stream, node, presented: None, link });
            std::mem::take(&mut state.duplicates)
                .into_iter()
                .map(|(_, duplicate)| duplicate)
                .collect::<Vec<_>>()
        };
        // It was killed, and its old stream is still open when the new one comes; it connects again.
        assert_eq!(open(&mut state, "one"), []);
        assert_eq!(open(&mut state, "two"), []);
        assert_eq!(open(&mut state, "two"), []);
        assert_eq!(state.proxy("a").unwrap().warnings, Vec::<String>::new());
        // The first is there still.
        let duplicate = Duplicate { addresses: ["10.0.0.1:3".into(), "10.0.0.1:4".into()] };
        assert_eq!(open(&mut state, "one"), [duplicate]);
        let warnings = state.proxy("a").unwrap().warnings;
        assert!(warnings[0].contains("10.0.0.1:3 and 10.0.0.1:4"), "{warnings:?}");
        // It is logged once a minute, and shown as long as it goes on.
        assert_eq!(open(&mut state, "two"), []);
        state.expire(0, Instant::now() + DUPLICATE / 2);
        assert_eq!(state.proxy("a").unwrap().warnings.len(), 1);
        state.expire(0, Instant::now() + DUPLICATE);
        assert_eq!(state.proxy("a").unwrap().warnings, Vec::<String>::new());
        // Of those who say nothing of their process nothing is known.
        for _ in 0..5 {
            assert_eq!(open(&mut state, ""), []);
        }
    }

    #[test]
    fn proxies_and_fleets_are_bounded() {
        let mut state = state();
        for number in 0..State::FLEETS {
            state.open_in(&format!("f{number}"), 0, number as u64, &format!("p{number}"), 0);
        }
        assert!(!state.has_room(&node("new", "one-more")));
        assert!(state.has_room(&node("new", "f0")));
        state.open_in("f1", 0, 5000, "p0", 0);
        assert!(state.has_room(&node("new", "one-more")), "nobody is in f0");
        state.open_in("one-more", 0, 5001, "new", 0);
        assert_eq!(state.fleets.len(), State::FLEETS);

        for number in state.proxies.len()..State::PROXIES {
            state.open_in("f1", 0, number as u64, &format!("p{number}"), 0);
        }
        assert!(!state.has_room(&node("another", "f1")));
        state.close(1, 20_000, "p20000");
        state.close(2, 20_001, "p20001");
        assert!(state.has_room(&node("another", "f1")));
        state.open_in("f1", 3, 60_000, "another", 0);
        assert_eq!(state.proxies.len(), State::PROXIES);
        assert_eq!(state.unsaved.forgotten, ["p20000".into()]);
    }

    #[test]
    fn what_a_proxy_rejected_it_never_served_however_far_it_is_now() {
        let mut state = state();
        state.publish(0, 1);
        state.open(1, 1, "a", 1);
        state.open(1, 2, "b", 1);
        state.publish(2, 2);
        state.ack(3, 1, "a", 2);
        state.nack(4, 2, "b", 2, "the port is taken");
        // It is rolled back, 40 s later; then comes a change that nobody minds.
        state.publish(40_000, 3);
        assert_eq!(state.brief(2), "Failed 2/1/0/1/0");
        state.ack(40_001, 1, "a", 3);
        state.ack(40_001, 2, "b", 3);
        state.publish(50_000, 4);
        state.ack(50_001, 1, "a", 4);
        state.ack(50_001, 2, "b", 4);
        assert_eq!(state.brief(2), "Failed 2/1/0/1/0");
        let rollout = state.way(2, "default").unwrap();
        assert_eq!(rollout.propagation_ms.unwrap().max, 1.0, "that of the one that served it");
        assert!(rollout.reason.unwrap().contains("the port is taken"));
        let fault = rollout.fault.unwrap();
        assert_eq!((&*fault.proxy, fault.revision, &*fault.kind, &*fault.name), ("b", 2, "listener", "http"));
        for number in [3, 4] {
            assert_eq!(state.brief(number), "Succeeded 2/2/0/0/0");
            let rollout = state.way(number, "default").unwrap();
            assert_eq!((rollout.reason, rollout.fault), (None, None));
        }
        // The same when it is told by the store after a restart.
        let way = state.stored_way(2, "default").unwrap();
        let mut later = State::new("here".into(), "here-2".into(), Sharing::Shared);
        later.read_way(
            2,
            "default".into(),
            serde_json::from_str(&serde_json::to_string(&way).unwrap()).unwrap(),
        );
        assert_eq!(later.brief(2), "Failed 2/1/0/1/0");
    }

    #[test]
    fn a_rejection_at_another_control_plane_stays_in_the_history_here() {
        let mut state = state();
        state.replica(Instant::now(), "there-1", ALIVE);
        state.publish(0, 1);
        state.open(1, 1, "a", 1);
        state.read(2, row_of("b", 1, 4), 1);
        state.publish(5, 2);
        state.nack(6, 1, "a", 2, "the port is taken");
        let mut row = row_of("b", 1, 4);
        row.error = Some(ProxyError { revision: 2, resources: Vec::new() });
        state.read(7, row, 2);
        assert_eq!(state.brief(2), "Failed 2/0/0/2/0");
        state.publish(10, 3);
        state.ack(11, 1, "a", 3);
        state.read(12, row_of("b", 3, 11), 3);
        assert_eq!(state.brief(2), "Failed 2/0/0/2/0");
        assert_eq!(state.brief(3), "Succeeded 2/2/0/0/0");
    }

    #[test]
    fn a_revision_that_carries_a_fault_along_names_the_one_that_made_it() {
        let mut state = state();
        state.publish(0, 1);
        state.open(1, 1, "a", 1);
        for number in [2, 3] {
            state.publish(number as i64, number);
            let resources = vec![ProxyResourceError {
                kind: "listener".into(),
                name: "second".into(),
                field: "address".into(),
                message: "it is taken".into(),
                changed_in: Some(2),
            }];
            let rejected = Event::Rejected { stream: 1, id: "a".into(), revision: number, resources };
            state.at(number as i64, rejected);
        }
        let of = |number| state.way(number, "default").unwrap();
        assert_eq!(of(2).reason.unwrap(), "a rejected it: listener/second: address: it is taken");
        assert_eq!(
            of(3).reason.unwrap(),
            "a rejected it: listener/second: address: it is taken (since revision 2)"
        );
        assert_eq!((of(2).fault.unwrap().revision, of(3).fault.unwrap().revision), (2, 2));
    }

    #[test]
    fn a_late_ack_of_a_revision_that_is_not_the_last_takes_the_rejection_back() {
        let mut state = state();
        state.publish(0, 1);
        state.open(1, 1, "a", 1);
        state.publish(2, 2);
        state.nack(3, 1, "a", 2, "x");
        state.publish(4, 3);
        state.ack(5, 1, "a", 2);
        assert_eq!(state.brief(2), "Superseded 1/1/0/0/0");
        assert_eq!(state.way(2, "default").unwrap().fault, None);
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
