//! The token bucket, which is the generic cell rate algorithm (GCRA) told from its other end.

use super::budget::{Budget, Verdict, clamp};

/// The tokens that are missing from a full bucket, at a time.
///
/// One token is `window` units, and `limit` units come back each nanosecond: so nothing is ever rounded, and a unit means
/// the same after the limit was changed.
#[derive(Debug, Clone, Default)]
pub(super) struct Level {
    missing: u128,
    at: u64,
}

impl Level {
    /// Takes `cost` tokens if there are so many.
    pub(super) fn take(&mut self, now: u64, budget: &Budget, burst: u64, cost: u64) -> Verdict {
        self.refill(now, budget);
        let (token, limit) = (u128::from(budget.window), u128::from(budget.limit.max(1)));
        let full = u128::from(burst) * token;
        let after = self.missing + token * u128::from(cost);
        let refused_for = if after <= full {
            self.missing = after;
            None
        } else {
            Some(clamp((after - full).div_ceil(limit)))
        };
        let room = full.saturating_sub(self.missing);
        // A part of the next token may be there already.
        let next = self.missing.saturating_sub(full) + token - room % token.max(1);
        Verdict {
            remaining: clamp(room / token.max(1)),
            more_in: clamp(next.min(self.missing).div_ceil(limit)),
            reset_in: self.empty_in(budget),
            refused_for,
            counted_at: now,
        }
    }

    /// Takes `cost` tokens that were used already, whether there are so many or not.
    pub(super) fn charge(&mut self, now: u64, budget: &Budget, cost: u64) {
        self.refill(now, budget);
        self.missing += u128::from(budget.window) * u128::from(cost);
    }

    /// Gives back tokens.
    pub(super) fn give_back(&mut self, now: u64, budget: &Budget, cost: u64) {
        self.refill(now, budget);
        self.missing = self.missing.saturating_sub(u128::from(budget.window) * u128::from(cost));
    }

    /// The time from which on nothing is missing.
    pub(super) fn idle_at(&self, budget: &Budget) -> u64 {
        self.at.saturating_add(self.empty_in(budget))
    }

    fn refill(&mut self, now: u64, budget: &Budget) {
        let elapsed = u128::from(now.saturating_sub(self.at));
        self.missing = self.missing.saturating_sub(elapsed * u128::from(budget.limit));
        self.at = now;
    }

    fn empty_in(&self, budget: &Budget) -> u64 {
        clamp(self.missing.div_ceil(u128::from(budget.limit.max(1))))
    }
}
