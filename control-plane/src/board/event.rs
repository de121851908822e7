//! Events that the streams and the proxies' reports send to the board.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use signalbox_config::RevisionId;
use signalbox_proto::signalbox::report::v1::ProxyReport;
use signalbox_rollout::FleetTarget;
use tokio_util::sync::CancellationToken;

use super::status::ProxyResourceError;

/// An event. `stream` tells the streams of one proxy apart: the latest that opened counts, and what an earlier
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
    /// This control plane published other decisions about what the fleets are to serve.
    Decided {
        /// All that are in force, by fleet.
        targets: OrdMap<Arc<str>, Arc<FleetTarget>>,
    },
    /// A proxy opened a stream.
    Opened {
        /// The stream's number, unique among the streams to this control plane.
        stream: u64,
        /// The proxy's identity.
        node: Node,
        /// The revision that the proxy says it serves.
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
        /// The side that ended the stream.
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
    /// The proxy has something that is no revision: its digest differs, or it is ahead of this control plane.
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
    /// A proxy carried out purges.
    Purged {
        /// The proxy.
        id: Arc<str>,
        /// The number of the last of them.
        number: u64,
    },
    /// A proxy reported its state.
    Reported(Box<ProxyReport>),
    /// A person had it forgotten.
    Forgotten {
        /// The proxy.
        id: Arc<str>,
    },
}

/// The revision that a proxy says it serves when its stream opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented {
    /// Which.
    pub revision: RevisionId,
    /// Its digest is that of the published revision. Until that is known, or the proxy acknowledges something, nothing
    /// counts as served: the number may be of a log that a restored database no longer has.
    pub verified: bool,
}

/// The side that ended a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedBy {
    /// The proxy, the network, or a violation of the protocol.
    Proxy,
    /// This control plane, which ends, or leaves the proxy to another one: the proxy is there, and connects again soon.
    ControlPlane,
}

/// Between the board and one stream.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// The process of the proxy, as it says; empty: it says nothing.
    pub process: Arc<str>,
    /// Cancelled once the stream may be answered: the database knows of it.
    pub registered: CancellationToken,
    /// Cancelled when the proxy opened a stream to another control plane: this one is to end.
    pub replaced: CancellationToken,
}

/// A proxy's identity, from the first request of its stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Unique, kept over restarts.
    pub id: Arc<str>,
    /// The fleet.
    pub fleet: Arc<str>,
    /// As it was started with.
    pub labels: BTreeMap<String, String>,
    /// The version of its program.
    pub version: String,
    /// Where its stream comes from.
    pub address: String,
    /// The plugin types that it knows, sorted; `None`: it does not say.
    #[serde(default)]
    pub plugin_types: Option<Arc<[Box<str>]>>,
}
