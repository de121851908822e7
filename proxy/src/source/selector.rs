//! Choosing the control plane to connect to next: one that failed recently comes last.

use std::time::Duration;

use tokio::time::Instant;

/// The recent failures of each control plane.
#[derive(Debug)]
pub(super) struct Selector {
    histories: Vec<History>,
}

#[derive(Debug, Clone, Default)]
struct History {
    /// The number of consecutive failures.
    failures: u32,
    failed_at: Option<Instant>,
}

impl Selector {
    pub(super) fn new(count: usize) -> Self {
        Self { histories: vec![History::default(); count] }
    }

    /// The control plane to connect to now: among those with the fewest recent consecutive failures, the one whose
    /// failure is longest ago. Ties are broken at random, so that proxies are spread over the control planes.
    pub(super) fn next(&self, now: Instant) -> usize {
        let rank = |history: &History| {
            let lately = history.failed_at.filter(|at| now.duration_since(*at) < FORGET_AFTER);
            (lately.map_or(0, |_| history.failures), lately)
        };
        let best = self.histories.iter().map(rank).min();
        let equals: Vec<usize> =
            (0..self.histories.len()).filter(|index| self.histories.get(*index).map(rank) == best).collect();
        equals.get(fastrand::usize(..equals.len().max(1))).copied().unwrap_or(0)
    }

    /// Records that the stream to `index` ended, or could not be opened.
    pub(super) fn failed(&mut self, index: usize, now: Instant) {
        if let Some(history) = self.histories.get_mut(index) {
            history.failures = history.failures.saturating_add(1);
            history.failed_at = Some(now);
        }
    }

    /// Records that the stream to `index` has lasted.
    pub(super) fn lasted(&mut self, index: usize) {
        if let Some(history) = self.histories.get_mut(index) {
            *history = History::default();
        }
    }

    /// True if another control plane than `index` has not failed recently.
    pub(super) fn has_better_than(&self, index: usize, now: Instant) -> bool {
        self.histories.iter().enumerate().any(|(other, history)| {
            other != index && history.failed_at.is_none_or(|at| now.duration_since(at) >= FORGET_AFTER)
        })
    }
}

/// A failure that is older than this is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_failed_lately_comes_last() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut selector = Selector::new(3);
        let first: std::collections::BTreeSet<_> = (0..100).map(|_| selector.next(start)).collect();
        assert_eq!(first.len(), 3, "proxies are spread over all");
        selector.failed(0, at(1));
        selector.failed(1, at(2));
        assert_eq!(selector.next(at(3)), 2);
        selector.failed(2, at(4));
        assert_eq!(selector.next(at(5)), 0, "the failure that is longest ago");
        selector.failed(0, at(6));
        assert_eq!(selector.next(at(7)), 1);
        selector.lasted(1);
        selector.failed(1, at(8));
        assert_eq!(selector.next(at(9)), 2);
        selector.failed(2, at(10));
        assert_eq!(selector.next(at(11)), 1, "it has failed once, the others twice");
        assert!(!selector.has_better_than(1, at(11)));
        assert!(selector.has_better_than(1, at(67)), "0 is forgiven");
        assert_eq!(selector.next(at(67)), 0);
    }

    #[test]
    fn a_single_one_is_asked_again_and_again() {
        let mut selector = Selector::new(1);
        for _ in 0..3 {
            assert_eq!(selector.next(Instant::now()), 0);
            selector.failed(0, Instant::now());
        }
        assert_eq!(Selector::new(0).next(Instant::now()), 0);
    }
}
