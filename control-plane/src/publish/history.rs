//! The keys that the last revisions changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::Vector;
use signalbox_config::ResourceKey;

/// The keys that the last revisions changed, so that the difference between two is found without comparing sets.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Consecutive numbers, oldest first, at most [`History::LEN`].
    entries: Vector<(u64, Arc<[ResourceKey]>)>,
}

impl History {
    /// How many revisions back a proxy may be and still get a difference instead of everything.
    pub const LEN: usize = 10_000;

    /// How many revisions back it is looked who changed a resource.
    const SEARCHED: usize = 100;

    /// Notes the next revision.
    pub fn push(&mut self, number: u64, changed: Arc<[ResourceKey]>) {
        if self.entries.len() == Self::LEN {
            self.entries.pop_front();
        }
        self.entries.push_back((number, changed));
    }

    /// The last of the latest revisions up to `at` that changed a resource.
    pub(super) fn last_change(&self, key: &ResourceKey, at: u64) -> Option<u64> {
        let earlier = self.entries.iter().rev().skip_while(|(number, _)| *number > at).take(Self::SEARCHED);
        earlier.into_iter().find(|(_, keys)| keys.contains(key)).map(|(number, _)| *number)
    }

    /// The keys that changed after revision `from` up to `to`, each once; `None` when `from` is too old to tell.
    pub fn changed_between(&self, from: u64, to: u64) -> Option<BTreeSet<ResourceKey>> {
        if from == to {
            return Some(Default::default());
        }
        let first = self.entries.front()?.0;
        let start = (from + 1).checked_sub(first)? as usize;
        let end = to.checked_sub(first)? as usize + 1;
        if start > end || end > self.entries.len() {
            return None;
        }
        Some(
            self.entries
                .iter()
                .skip(start)
                .take(end - start)
                .flat_map(|(_, keys)| keys.iter().cloned())
                .collect(),
        )
    }
}
