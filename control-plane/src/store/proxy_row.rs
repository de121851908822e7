//! Proxies, control planes and rollouts, as the store has them.

use std::time::Duration;

use super::hint::ProxyHints;

/// The last known state of a proxy: its identity, and the rest as JSON that the board reads and writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyRow {
    /// The node id.
    pub id: String,
    /// Its fleet.
    pub fleet: String,
    /// The control plane it has its stream to, or had.
    pub replica: String,
    /// The process of that control plane.
    pub instance: String,
    /// Microseconds since 1970, by the database's clock: set when it is written.
    pub updated_at_us: i64,
    /// JSON.
    pub state: String,
}

/// States of proxies to be written.
#[derive(Debug, Clone)]
pub struct ProxyRows {
    /// The instance of the control plane that writes.
    pub writer: String,
    /// Rows of proxies that opened a stream to the writer: the stored row is replaced.
    pub taken: Vec<ProxyRow>,
    /// Rows of other proxies: each is written if the stored row has the same replica and instance, for else another control
    /// plane has the proxy by now.
    pub changed: Vec<ProxyRow>,
    /// True if the others are notified.
    pub notify: bool,
}

impl ProxyRows {
    /// True if there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.changed.is_empty()
    }

    pub(super) fn texts(&self) -> Vec<String> {
        let ids = self.taken.iter().chain(&self.changed).map(|row| &*row.id).filter(|_| self.notify);
        ProxyHints::texts(&self.writer, ids)
    }
}

/// Which version of a proxy's state it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// See [`ProxyRow`].
    pub replica: String,
    /// See [`ProxyRow`].
    pub instance: String,
    /// See [`ProxyRow`].
    pub updated_at_us: i64,
}

/// A control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaRow {
    /// One for each process.
    pub instance: String,
    /// As its operator calls it.
    pub name: String,
    /// How long ago it said that it is alive, by the database's clock.
    pub age: Duration,
}

/// The way of one revision through a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutRow {
    /// `REVISION-FLEET`.
    pub id: String,
    /// The revision.
    pub revision: u64,
    /// The fleet.
    pub fleet: String,
    /// JSON.
    pub state: String,
}
