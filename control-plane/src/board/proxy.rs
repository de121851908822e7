//! The board's record of one proxy; the store has a copy.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::event::{Link, Node};
use super::status::{ProxyError, ProxyTraffic, RolloutFault};
use crate::store::Stamp;

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
    pub(super) lost: bool,
    pub(super) connected_at_us: i64,
    /// The time when it became known; 0: a version before did not say so.
    #[serde(default)]
    pub(super) first_seen_us: i64,
    pub(super) last_seen_us: i64,
    pub(super) sent: u64,
    /// The epoch of `applied`; empty before the first.
    pub(super) epoch: Arc<str>,
    pub(super) applied: u64,
    /// `applied` is known to be the revision that has this number now, see [`Presented`].
    #[serde(default = "verified_by_default")]
    pub(super) verified: bool,
    pub(super) acked_at_us: Option<i64>,
    /// Revision, when it was applied, and how long that took: microseconds, as it reported.
    pub(super) reported: Option<(u64, i64, u64)>,
    pub(super) error: Option<ProxyError>,
    /// The last revisions that it rejected and did not apply later, oldest first: `error` is gone once it serves a later one.
    #[serde(default)]
    pub(super) rejections: Vec<Rejection>,
    pub(super) drifted: bool,
    pub(super) traffic: Option<ProxyTraffic>,
    pub(super) listeners: BTreeMap<String, String>,
    /// The address of its admin server, as it reported it; empty: it did not.
    #[serde(default)]
    pub(super) admin_address: String,
    /// The number of the last purge that it carried out.
    #[serde(default)]
    pub(super) purged: u64,
    /// As it reported. A version before does not know them.
    #[serde(default)]
    pub(super) warnings: Vec<String>,
    /// The process of the proxy, as it says; empty: it says nothing.
    #[serde(default)]
    pub(super) process: Arc<str>,
    /// The processes whose open streams the later ones replaced, the last ones.
    #[serde(default)]
    pub(super) replaced: Vec<Process>,
    /// Another process uses the same node id.
    #[serde(default)]
    pub(super) duplicate: Option<Duplicate>,
    #[serde(skip)]
    pub(super) duplicate_seen: Option<Instant>,
    #[serde(skip)]
    pub(super) duplicate_logged: Option<Instant>,
    /// Its stream to this control plane.
    #[serde(skip)]
    pub(super) stream: Option<u64>,
    #[serde(skip)]
    pub(super) link: Link,
    /// It is in `State::advanced`.
    #[serde(skip)]
    pub(super) is_advance_unsaved: bool,
    /// Says if the database knows of `stream`.
    #[serde(skip)]
    pub(super) registration: Registration,
    /// Set while it is not known if the proxy has a stream: since when, and for how long that may stay so.
    #[serde(skip)]
    pub(super) unknown: Option<(Instant, Duration)>,
    /// The version of the row that was read, if another control plane wrote it.
    #[serde(skip)]
    pub(super) row: Option<Stamp>,
    /// When that was seen to change.
    #[serde(skip)]
    pub(super) row_seen: Option<Instant>,
}

/// A revision that a proxy rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rejection {
    pub(super) epoch: Arc<str>,
    pub(super) revision: u64,
    pub(super) fault: RolloutFault,
}

/// A process of a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) process: Arc<str>,
    pub(super) address: String,
}

/// Two processes with one node id: where they connect from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Duplicate {
    pub(super) addresses: [String; 2],
}

/// Says if the database knows that a proxy has its stream to this control plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Registration {
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

impl Proxy {
    pub(super) fn new(node: &Node) -> Self {
        Self {
            node: Arc::new(node.clone()),
            replica: "".into(),
            instance: "".into(),
            connected: false,
            lost: false,
            connected_at_us: 0,
            first_seen_us: 0,
            last_seen_us: 0,
            sent: 0,
            epoch: "".into(),
            applied: 0,
            verified: false,
            acked_at_us: None,
            reported: None,
            error: None,
            rejections: Vec::new(),
            drifted: false,
            traffic: None,
            listeners: BTreeMap::new(),
            admin_address: String::new(),
            purged: 0,
            warnings: Vec::new(),
            process: "".into(),
            replaced: Vec::new(),
            duplicate: None,
            duplicate_seen: None,
            duplicate_logged: None,
            stream: None,
            link: Link::default(),
            is_advance_unsaved: false,
            registration: Registration::None,
            unknown: None,
            row: None,
            row_seen: None,
        }
    }

    /// Keeps one more rejection, and forgets the oldest of too many.
    pub(super) fn keep_rejection(&mut self, rejection: Rejection) {
        self.rejections
            .retain(|known| known.revision != rejection.revision || known.epoch != rejection.epoch);
        if self.rejections.len() >= MAX_REJECTIONS {
            self.rejections.remove(0);
        }
        self.rejections.push(rejection);
    }

    /// Notes which process of the proxy opens a stream, and whether it is one whose stream another process replaced, that
    /// is there still: two with one node id.
    pub(super) fn record_process(&mut self, node: &Node, process: &Arc<str>) -> Option<Duplicate> {
        let before = std::mem::replace(&mut self.process, process.clone());
        if !self.connected || before.is_empty() || process.is_empty() || before == *process {
            return None;
        }
        let back = self.replaced.iter().any(|replaced| replaced.process == *process);
        let address = self.node.address.clone();
        self.replaced.retain(|replaced| replaced.process != before);
        self.replaced.push(Process { process: before, address: address.clone() });
        if self.replaced.len() > MAX_REPLACED {
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

impl fmt::Display for Duplicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [one, other] = &self.addresses;
        write!(
            f,
            "two proxies use this node id, from {one} and {other}, and end each other's streams: give each its own \
             --node-id and data directory"
        )
    }
}

/// Processes of one proxy that are remembered.
const MAX_REPLACED: usize = 4;

/// How many revisions that a proxy rejected are kept with its state.
pub(super) const MAX_REJECTIONS: usize = 4;

/// For how long a proxy may be of unknown state whose control plane ended or was restarted: many times as long as it
/// takes to connect again.
pub(super) const RECONNECT_GRACE: Duration = Duration::from_secs(60);

/// For how long it is shown that two proxies share a node id, after that was seen last; and how often it is logged.
pub(super) const DUPLICATE_WINDOW: Duration = Duration::from_secs(60);
