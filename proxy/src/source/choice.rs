//! Which control plane is asked next: one that failed lately comes last.

use std::time::Duration;

use tokio::time::Instant;

/// How the control planes stood when they were asked last.
#[derive(Debug)]
pub(super) struct Choice {
    standings: Vec<Standing>,
}

#[derive(Debug, Clone, Default)]
struct Standing {
    /// In a row.
    failures: u32,
    failed_at: Option<Instant>,
}

impl Choice {
    pub(super) fn new(count: usize) -> Self {
        Self { standings: vec![Standing::default(); count] }
    }

    /// The control plane to ask now: of those that have failed least often in a row lately the one whose failure is longest
    /// ago. Among equals any, so that proxies are spread over them.
    pub(super) fn next(&self, now: Instant) -> usize {
        let rank = |standing: &Standing| {
            let lately = standing.failed_at.filter(|at| now.duration_since(*at) < FORGIVEN);
            (lately.map_or(0, |_| standing.failures), lately)
        };
        let best = self.standings.iter().map(rank).min();
        let equals: Vec<usize> =
            (0..self.standings.len()).filter(|index| self.standings.get(*index).map(rank) == best).collect();
        equals.get(fastrand::usize(..equals.len().max(1))).copied().unwrap_or(0)
    }

    /// The stream to `index` ended, or there was none.
    pub(super) fn failed(&mut self, index: usize, now: Instant) {
        if let Some(standing) = self.standings.get_mut(index) {
            standing.failures = standing.failures.saturating_add(1);
            standing.failed_at = Some(now);
        }
    }

    /// Its stream has lasted.
    pub(super) fn held(&mut self, index: usize) {
        if let Some(standing) = self.standings.get_mut(index) {
            *standing = Standing::default();
        }
    }

    /// Whether another one than `index` has not failed lately.
    pub(super) fn has_better_than(&self, index: usize, now: Instant) -> bool {
        self.standings.iter().enumerate().any(|(other, standing)| {
            other != index && standing.failed_at.is_none_or(|at| now.duration_since(at) >= FORGIVEN)
        })
    }
}

/// A failure that is so long ago does not count any more.
const FORGIVEN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_failed_lately_comes_last() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut choice = Choice::new(3);
        let first: std::collections::BTreeSet<_> = (0..100).map(|_| choice.next(start)).collect();
        assert_eq!(first.len(), 3, "proxies are spread over all");
        choice.failed(0, at(1));
        choice.failed(1, at(2));
        assert_eq!(choice.next(at(3)), 2);
        choice.failed(2, at(4));
        assert_eq!(choice.next(at(5)), 0, "the failure that is longest ago");
        choice.failed(0, at(6));
        assert_eq!(choice.next(at(7)), 1);
        choice.held(1);
        choice.failed(1, at(8));
        assert_eq!(choice.next(at(9)), 2);
        choice.failed(2, at(10));
        assert_eq!(choice.next(at(11)), 1, "it has failed once, the others twice");
        assert!(!choice.has_better_than(1, at(11)));
        assert!(choice.has_better_than(1, at(67)), "0 is forgiven");
        assert_eq!(choice.next(at(67)), 0);
    }

    #[test]
    fn a_single_one_is_asked_again_and_again() {
        let mut choice = Choice::new(1);
        for _ in 0..3 {
            assert_eq!(choice.next(Instant::now()), 0);
            choice.failed(0, Instant::now());
        }
        assert_eq!(Choice::new(0).next(Instant::now()), 0);
    }
}
