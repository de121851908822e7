//! The counts of a fleet, kept in step with its proxies by adding and subtracting what each contributes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::rollout::RolloutRecord;
use super::status::RolloutCounts;

#[derive(Debug, Default)]
pub(super) struct Fleet {
    pub(super) total: u32,
    pub(super) connected: u32,
    pub(super) unknown: u32,
    /// The connected ones, by what they serve.
    pub(super) applied: BTreeMap<u64, u32>,
    /// Those of them that rejected a later one: by what they rejected, and by what they serve.
    pub(super) rejected: BTreeMap<(u64, u64), u32>,
    pub(super) rollouts: BTreeMap<u64, RolloutRecord>,
    /// Every way up to this revision has its final counts.
    pub(super) final_up_to: u64,
}

/// The part of its fleet's counts that one proxy makes up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contribution {
    pub(super) fleet: Arc<str>,
    pub(super) connection: Connection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    Connected {
        serves: u64,
        /// The later revision that it rejected.
        rejected: Option<u64>,
    },
    Unknown,
    Disconnected,
}

impl Fleet {
    pub(super) fn add(&mut self, contribution: &Contribution) {
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

    pub(super) fn subtract(&mut self, contribution: &Contribution) {
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

    /// The counts that a wait depends on.
    pub(super) fn convergence_inputs(&self) -> (Option<u64>, Option<u64>, u32, u32, u32) {
        let lowest = self.applied.first_key_value().map(|(number, _)| *number);
        let highest = self.applied.last_key_value().map(|(number, _)| *number);
        (lowest, highest, self.unknown, self.rejected.values().sum(), self.connected)
    }

    pub(super) fn counts(&self, revision: u64) -> RolloutCounts {
        let applied = self.applied.range(revision..).map(|(_, count)| count).sum();
        let rejected = self.rejections(revision);
        RolloutCounts {
            total: self.total,
            assigned: self.total,
            applied,
            pending: self.connected.saturating_sub(applied).saturating_sub(rejected),
            rejected,
            disconnected: self.total.saturating_sub(self.connected).saturating_sub(self.unknown),
            unknown: self.unknown,
            lost: 0,
        }
    }

    /// How many rejected `revision`, or a later one that was sent instead, and serve an earlier one.
    pub(super) fn rejections(&self, revision: u64) -> u32 {
        self.rejected
            .range((revision, 0)..)
            .filter(|((_, applied), _)| *applied < revision)
            .map(|(_, count)| count)
            .sum()
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
