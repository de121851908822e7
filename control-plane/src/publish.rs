//! What this control plane holds in memory and publishes: the current set, kept in step with the store's log.

use std::sync::Arc;

use imbl::{OrdMap, Vector};
use signalbox_config::{Name, Relations, ResourceKey, RouteIndex, Snapshot};

use crate::store::Meta;

/// One published state. Immutable and structurally shared: a revision costs its changes.
#[derive(Debug, Clone)]
pub struct Published {
    /// The set.
    pub snapshot: Snapshot,
    /// Who made each resource, and when.
    pub metas: OrdMap<ResourceKey, Arc<Meta>>,
    /// Who refers to whom.
    pub relations: Relations,
    /// For `explain`.
    pub routes: RouteIndex<Name>,
    /// What the last revisions changed.
    pub history: History,
}

/// What the last revisions changed, so that the difference between two is found without comparing sets.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Consecutive numbers, oldest first, at most [`History::LEN`].
    entries: Vector<(u64, Arc<[ResourceKey]>)>,
}

impl History {
    /// How many revisions back a proxy may be and still get a difference instead of everything.
    pub const LEN: usize = 10_000;

    /// Notes the next revision.
    pub fn push(&mut self, number: u64, changed: Arc<[ResourceKey]>) {
        if self.entries.len() == Self::LEN {
            self.entries.pop_front();
        }
        self.entries.push_back((number, changed));
    }

    /// The keys that changed after revision `from` up to `to`, each once; `None` when `from` is too old to tell.
    pub fn changed_between(&self, from: u64, to: u64) -> Option<std::collections::BTreeSet<ResourceKey>> {
        if from == to {
            return Some(Default::default());
        }
        let first = self.entries.front()?.0;
        let start = (from + 1).checked_sub(first)? as usize;
        let end = to.checked_sub(first)? as usize + 1;
        if start > end || end > self.entries.len() {
            return None;
        }
        Some(self.entries.iter().skip(start).take(end - start).flat_map(|(_, keys)| keys.iter().cloned()).collect())
    }
}
