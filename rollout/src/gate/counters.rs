//! From cumulative reports to what was counted between them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::pairs;
use super::sample::{Sample, Series};
use super::window::Delta;
use crate::reading::Scope;

/// Proxies whose state is kept. A further one takes the place of the one that is silent for longest, or is ignored if none is silent.
const MAX_NODES: usize = 20_000;

/// A proxy is silent if so many reports came since its last one.
const SILENT_AFTER: u64 = 2 * MAX_NODES as u64;

/// Series of a proxy whose state is kept. Beyond it, those of the lowest generations are dropped. Of a single generation, the first ones in
/// their order are kept: the fleet's, and then routes and upstreams.
const MAX_SERIES: usize = 4096;

/// Earlier processes of a proxy that are remembered, so that a late report of theirs is no restart.
const MAX_ENDED: usize = 8;

/// The counts of a proxy since it started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The proxy's node id.
    pub node: Arc<str>,
    /// Identity of the process: another number at each start.
    pub boot: u64,
    /// Number of the report in this process: 0 for the first, whose counts all belong to its interval.
    pub sequence: u64,
    /// Time since the start of the process, by a clock that is never set.
    pub uptime_ms: u64,
    /// The counts.
    pub series: Vec<Series>,
}

/// The last report of each proxy.
///
/// Duplicated, late, lost and repeated reports and restarts do no harm: reports are cumulative, so a lost one is part of the next; one that is
/// not newer than the last is ignored; and counts that went down begin anew. The first report of an unknown process only sets the
/// base, unless it has the sequence 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    nodes: BTreeMap<Arc<str>, Node>,
    /// Counts the reports.
    reports: u64,
    /// Until then, by the count of reports, no proxy is silent.
    crowded_until: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Node {
    /// Counts the reports of all proxies, up to its last one.
    last: u64,
    boot: u64,
    sequence: u64,
    uptime_ms: u64,
    ended: Vec<u64>,
    /// Series of lower generations are ignored.
    oldest: u64,
    #[serde(with = "pairs")]
    series: BTreeMap<(u64, Scope), Sample>,
}

impl Counters {
    /// Takes a report, and returns what was counted since the last one; `None` if the report tells nothing new or sets the base.
    pub fn accept(&mut self, report: Report) -> Option<Delta> {
        self.reports += 1;
        if self.nodes.len() >= MAX_NODES && !self.nodes.contains_key(&report.node) && !self.make_room() {
            return None;
        }
        let last = self.reports;
        let node = match self.nodes.entry(report.node.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let node = entry.insert(Node { last, boot: report.boot, ..Node::default() });
                return node.begin(report);
            }
        };
        node.last = last;
        if node.boot == report.boot {
            (report.sequence > node.sequence).then(|| node.advance(report))
        } else if node.ended.contains(&report.boot) {
            None
        } else {
            let mut ended = std::mem::take(&mut node.ended);
            ended.truncate(MAX_ENDED - 1);
            ended.insert(0, node.boot);
            *node = Node { last, boot: report.boot, ended, ..Node::default() };
            node.begin(report)
        }
    }

    /// Forgets the proxy that is silent for longest. Returns false if none is silent.
    fn make_room(&mut self) -> bool {
        if self.reports < self.crowded_until {
            return false;
        }
        let Some((id, node)) = self.nodes.iter().min_by_key(|(_, node)| node.last) else { return true };
        // Others fall silent later, so this looks at all proxies once in a while, however many reports are ignored.
        self.crowded_until = node.last + SILENT_AFTER;
        if self.reports < self.crowded_until {
            return false;
        }
        let id = Arc::clone(id);
        self.nodes.remove(&id);
        true
    }
}

impl Node {
    fn begin(&mut self, report: Report) -> Option<Delta> {
        let complete = report.sequence == 0;
        let delta = self.advance(report);
        complete.then_some(delta)
    }

    fn advance(&mut self, report: Report) -> Delta {
        let length_ms = report.uptime_ms.saturating_sub(self.uptime_ms);
        self.sequence = report.sequence;
        self.uptime_ms = self.uptime_ms.max(report.uptime_ms);
        let mut changes = Vec::new();
        for Series { generation, scope, sample } in report.series {
            let key = (generation, scope.clone());
            if generation < self.oldest || self.is_left_out(&key) {
                continue;
            }
            let change = match self.series.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(sample.clone());
                    Some(sample)
                }
                Entry::Occupied(mut entry) => {
                    let change = sample.since(entry.get());
                    entry.insert(sample);
                    change
                }
            };
            if let Some(sample) = change.filter(|change| !change.is_empty()) {
                changes.push(Series { generation, scope, sample });
            }
            self.bound();
        }
        Delta { node: report.node, length_ms, series: changes }
    }

    /// Drops whole generations, or the last series of the only one, so that what is dropped is never taken for new.
    fn bound(&mut self) {
        while self.series.len() > MAX_SERIES {
            let Some((lowest, highest)) = self.generations() else { return };
            if lowest == highest {
                self.series.pop_last();
                continue;
            }
            self.oldest = lowest.saturating_add(1);
            self.series.retain(|(generation, _), _| *generation > lowest);
        }
    }

    /// True if the series was dropped, or would be: it comes after as many series of its generation as are kept.
    fn is_left_out(&self, key: &(u64, Scope)) -> bool {
        let is_alone = self.generations() == Some((key.0, key.0));
        is_alone
            && self.series.len() >= MAX_SERIES
            && self.series.last_key_value().is_some_and(|(last, _)| key > last)
    }

    /// The lowest and the highest generation of the series.
    fn generations(&self) -> Option<(u64, u64)> {
        let ((lowest, _), _) = self.series.first_key_value()?;
        let ((highest, _), _) = self.series.last_key_value()?;
        Some((*lowest, *highest))
    }
}

#[cfg(test)]
mod tests;
