//! The part of a limit that a client has used.

use super::bucket::Level;
use super::budget::{Budget, Method, Verdict};
use super::window::Log;

/// The part of the limit that a client has used. A usage that is like new can be forgotten.
#[derive(Debug, Clone, Default)]
pub(super) enum Usage {
    #[default]
    None,
    Window(Log),
    Bucket(Level),
}

impl Usage {
    /// Takes `cost` units if they fit. `now` does not go back between calls.
    #[inline]
    pub(super) fn take(&mut self, now: u64, budget: &Budget, cost: u64) -> Verdict {
        match budget.method {
            Method::Window { grain } => loop {
                if let Self::Window(log) = self {
                    break log.take(now, budget, grain, cost);
                }
                *self = Self::Window(Log::default());
            },
            Method::Bucket { burst } => loop {
                if let Self::Bucket(level) = self {
                    break level.take(now, budget, burst, cost);
                }
                *self = Self::Bucket(Level::default());
            },
        }
    }

    /// Counts units that were used already, whether they fit or not.
    pub(super) fn charge(&mut self, now: u64, budget: &Budget, cost: u64) {
        match budget.method {
            Method::Window { grain } => loop {
                if let Self::Window(log) = self {
                    break log.charge(now, budget, grain, cost);
                }
                *self = Self::Window(Log::default());
            },
            Method::Bucket { .. } => loop {
                if let Self::Bucket(level) = self {
                    break level.charge(now, budget, cost);
                }
                *self = Self::Bucket(Level::default());
            },
        }
    }

    /// Gives back units that were counted at `counted_at`.
    pub(super) fn give_back(&mut self, now: u64, budget: &Budget, counted_at: u64, cost: u64) {
        match self {
            Self::None => {}
            Self::Window(log) => log.give_back(counted_at, cost),
            Self::Bucket(level) => level.give_back(now, budget, cost),
        }
    }

    /// The time from which on nothing is counted.
    pub(super) fn idle_at(&self, budget: &Budget) -> u64 {
        match self {
            Self::None => 0,
            Self::Window(log) => log.idle_at(budget),
            Self::Bucket(level) => level.idle_at(budget),
        }
    }
}
