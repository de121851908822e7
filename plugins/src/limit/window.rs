//! The sliding window.

use std::collections::VecDeque;

use super::budget::{Budget, Verdict};

/// The units that were taken in the last window, by time.
#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    /// Time and number, oldest first. A unit counts until its time is a window ago.
    pub(super) entries: VecDeque<(u64, u64)>,
    /// The sum of the numbers.
    pub(super) total: u64,
}

impl Log {
    /// Takes `cost` units if they fit. Times are rounded up to multiples of `grain`, so that there are few entries.
    #[inline]
    pub(super) fn take(&mut self, now: u64, budget: &Budget, grain: u64, cost: u64) -> Verdict {
        self.expire(now, budget);
        let after = self.total.saturating_add(cost);
        let (refused_for, counted_at) = if after <= budget.limit {
            (None, self.add(rounded_up(now, grain), cost))
        } else {
            (Some(self.time_of(budget, cost).saturating_sub(now)), 0)
        };
        self.verdict(now, budget, refused_for, counted_at)
    }

    /// Counts `cost` units that were used already, whether they fit or not.
    pub(super) fn charge(&mut self, now: u64, budget: &Budget, grain: u64, cost: u64) {
        self.expire(now, budget);
        self.add(rounded_up(now, grain), cost);
    }

    /// Gives back units that were counted at `counted_at`.
    pub(super) fn give_back(&mut self, counted_at: u64, cost: u64) {
        let index = self.entries.partition_point(|(at, _)| *at < counted_at);
        if let Some((at, count)) = self.entries.get_mut(index)
            && *at == counted_at
        {
            let back = cost.min(*count);
            *count -= back;
            self.total -= back;
            if *count == 0 {
                self.entries.remove(index);
            }
        }
    }

    /// The time from which on nothing is counted.
    pub(super) fn idle_at(&self, budget: &Budget) -> u64 {
        self.entries.back().map_or(0, |(at, _)| at.saturating_add(budget.window))
    }

    fn expire(&mut self, now: u64, budget: &Budget) {
        while let Some((at, count)) = self.entries.front()
            && at.saturating_add(budget.window) <= now
        {
            self.total -= count;
            self.entries.pop_front();
        }
    }

    fn add(&mut self, at: u64, cost: u64) -> u64 {
        self.total += cost;
        match self.entries.back_mut() {
            // A coarser grain, from before the limit was changed, may have put the last one later.
            Some((last, count)) if *last >= at => {
                *count += cost;
                *last
            }
            _ => {
                self.entries.push_back((at, cost));
                at
            }
        }
    }

    fn verdict(&self, now: u64, budget: &Budget, refused_for: Option<u64>, counted_at: u64) -> Verdict {
        let more_at = match self.entries.front() {
            None => 0,
            Some((oldest, _)) if self.total <= budget.limit => oldest.saturating_add(budget.window),
            Some(_) => self.time_of(budget, 1),
        };
        Verdict {
            remaining: budget.limit.saturating_sub(self.total),
            more_in: more_at.saturating_sub(now),
            reset_in: self.idle_at(budget).saturating_sub(now),
            refused_for,
            counted_at,
        }
    }

    /// The time when `cost` units fit. After the limit was lowered, several entries may have to go first.
    fn time_of(&self, budget: &Budget, cost: u64) -> u64 {
        let mut left = self.total;
        for (at, count) in &self.entries {
            left = left.saturating_sub(*count);
            if left.saturating_add(cost) <= budget.limit {
                return at.saturating_add(budget.window);
            }
        }
        u64::MAX
    }
}

fn rounded_up(now: u64, grain: u64) -> u64 {
    if grain <= 1 { now } else { now.div_ceil(grain).saturating_mul(grain) }
}
