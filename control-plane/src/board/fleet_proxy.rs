//! A proxy, as the leader of rollouts sees it.

use std::sync::Arc;

use super::event::Node;

/// A proxy, as the leader of rollouts sees it.
#[derive(Debug, Clone)]
pub struct FleetProxy {
    /// The identity of the proxy.
    pub node: Arc<Node>,
    /// The control plane that it has or had its stream to.
    pub replica: Arc<str>,
    /// True if it has a stream.
    pub connected: bool,
    /// The revision that it serves; 0: none of the present epoch.
    pub served: u64,
    /// The time of its last acknowledgement of another revision, in microseconds since 1970.
    pub acked_at_us: Option<i64>,
    /// Revisions of the present epoch that it rejected or crashed on, and has not applied since.
    pub rejected: Vec<u64>,
    /// True if the digest of what it serves is not that of its revision.
    pub drifted: bool,
}
