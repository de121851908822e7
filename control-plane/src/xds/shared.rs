//! The state that all streams share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::Admission;
use super::limits::Limits;
use super::refusal::Refusals;
use super::set::Views;
use crate::auth::Credentials;
use crate::board::Board;
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::rollout::Rollouts;
use crate::stats::Stats;

/// The state that all streams share.
pub(super) struct Shared {
    pub(super) publisher: Arc<Publisher>,
    pub(super) board: Arc<Board>,
    pub(super) credentials: Arc<Credentials>,
    pub(super) rollouts: Arc<Rollouts>,
    pub(super) stats: Arc<Stats>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) limits: Limits,
    pub(super) refusals: Refusals,
    pub(super) views: Views,
    pub(super) streams: Streams,
    pub(super) admission: Admission,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
}

impl Shared {
    pub(super) fn new(
        publisher: Arc<Publisher>,
        board: Arc<Board>,
        credentials: Arc<Credentials>,
        rollouts: Arc<Rollouts>,
        stats: Arc<Stats>,
        metrics: Arc<Metrics>,
        limits: Limits,
    ) -> Self {
        Self {
            views: Views::new(publisher.clone()),
            publisher,
            board,
            credentials,
            rollouts,
            stats,
            metrics,
            streams: Streams::default(),
            admission: Admission::new(&limits),
            limits,
            refusals: Refusals::default(),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        }
    }
}

/// The present stream of each proxy.
#[derive(Default)]
pub(super) struct Streams {
    by_node: Mutex<HashMap<Arc<str>, OpenStream>>,
}

/// The present stream of a proxy.
struct OpenStream {
    number: u64,
    /// From when on it may be ended for balance.
    old_from: Instant,
    told: ToldToEnd,
}

/// A stream is told to end.
#[derive(Debug, Clone, Default)]
pub(super) struct ToldToEnd {
    /// The proxy has a newer stream.
    pub(super) replaced: CancellationToken,
    /// Another replica is to have the proxy. The stream ends as soon as nothing is on its way.
    pub(super) for_balance: CancellationToken,
}

impl Streams {
    /// Makes the stream of this number the proxy's present one; the one before, if there is one, is told to end.
    pub(super) fn open(&self, id: &Arc<str>, number: u64, old_from: Instant) -> ToldToEnd {
        let told = ToldToEnd::default();
        let stream = OpenStream { number, old_from, told: told.clone() };
        let mut by_node = self.by_node.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = by_node.insert(id.clone(), stream) {
            before.told.replaced.cancel();
        }
        told
    }

    pub(super) fn close(&self, id: &Arc<str>, number: u64) {
        let mut by_node = self.by_node.lock().unwrap_or_else(PoisonError::into_inner);
        if by_node.get(id).is_some_and(|present| present.number == number) {
            by_node.remove(id);
        }
    }

    /// Tells `count` streams to end, or as many as are old enough; how many.
    pub(super) fn end_oldest(&self, count: usize) -> usize {
        let now = Instant::now();
        let by_node = self.by_node.lock().unwrap_or_else(PoisonError::into_inner);
        let mut old: Vec<&OpenStream> = by_node
            .values()
            .filter(|stream| stream.old_from <= now && !stream.told.for_balance.is_cancelled())
            .collect();
        old.sort_unstable_by_key(|stream| stream.old_from);
        old.truncate(count);
        for stream in &old {
            stream.told.for_balance.cancel();
        }
        old.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_oldest_streams_are_ended_and_none_twice() {
        let streams = Streams::default();
        let now = Instant::now();
        let at = |seconds| now - Duration::from_secs(seconds);
        let older = streams.open(&"a".into(), 1, at(2));
        let old = streams.open(&"b".into(), 2, at(1));
        let young = streams.open(&"c".into(), 3, now + Duration::from_secs(3600));
        assert_eq!(streams.end_oldest(1), 1);
        assert!(older.for_balance.is_cancelled() && !old.for_balance.is_cancelled());
        assert_eq!(streams.end_oldest(5), 1);
        assert!(old.for_balance.is_cancelled() && !young.for_balance.is_cancelled());
        assert_eq!(streams.end_oldest(5), 0);
    }
}
