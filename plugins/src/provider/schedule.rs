//! Decides when the keys of a provider are fetched: functions over values.

use std::time::Duration;

/// The fetches that were made, and the next one.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// The fetches that have ended.
    ended: u64,
    is_fetching: bool,
    /// The fetch that answers those who do not know a key, by its number.
    wanted: u64,
    /// The time from which another fetch may be wanted.
    next_wish: Duration,
    /// True once a fetch has succeeded.
    has_keys: bool,
}

/// The treatment of a token whose key is not known.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// It waits until this many fetches have ended. True: the fetch must be started.
    Wait(u64, bool),
    /// A fetch was made for such a token not long ago.
    TooSoon,
    /// No fetch has succeeded, and the next one is not near.
    NoKeys,
}

/// The pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Schedule {
    pub(super) fn begin(&mut self) {
        self.is_fetching = true;
    }

    /// The fetches that have ended, with the one that ends now.
    pub(super) fn end(&mut self, succeeded: bool) -> u64 {
        self.is_fetching = false;
        self.has_keys |= succeeded;
        self.ended += 1;
        self.ended
    }

    /// A request at `now` has a token whose key is not known.
    pub(super) fn wish(&mut self, now: Duration, cooldown: Duration) -> Wish {
        if !self.has_keys {
            // The first fetch is under way, or begins at once.
            return if self.ended == 0 || self.is_fetching {
                Wish::Wait(self.ended + 1, false)
            } else {
                Wish::NoKeys
            };
        }
        if self.wanted > self.ended {
            return Wish::Wait(self.wanted, false);
        }
        if now < self.next_wish {
            return Wish::TooSoon;
        }
        self.next_wish = now + cooldown;
        // A fetch that is under way may have begun before the key was there.
        self.wanted = self.ended + 1 + u64::from(self.is_fetching);
        Wish::Wait(self.wanted, true)
    }
}

/// The pause before the next fetch, after so many failures in a row; `random`: from 0 to 1. The pauses of proxies that were started
/// together differ.
pub(super) fn pause(failures: u32, refresh: Duration, random: f64) -> Duration {
    match failures {
        0 => refresh.mul_f64(1.0 - 0.1 * random),
        _ => {
            let doubled = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(10));
            doubled.min(LONGEST_PAUSE).mul_f64(1.0 - 0.5 * random)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOLDOWN: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn all_who_do_not_know_a_key_share_a_fetch_and_the_next_comes_after_the_cooldown() {
        let mut schedule = Schedule::default();
        schedule.begin();
        assert_eq!(schedule.end(true), 1);
        assert_eq!(schedule.wish(at(100), COOLDOWN), Wish::Wait(2, true));
        assert_eq!(schedule.wish(at(100), COOLDOWN), Wish::Wait(2, false));
        schedule.begin();
        assert_eq!(schedule.wish(at(101), COOLDOWN), Wish::Wait(2, false));
        assert_eq!(schedule.end(true), 2);
        let fetches = (0..10_000).filter(|_| schedule.wish(at(129), COOLDOWN) != Wish::TooSoon);
        assert_eq!(fetches.count(), 0);
        assert_eq!(schedule.wish(at(130), COOLDOWN), Wish::Wait(3, true));
    }

    #[test]
    fn a_fetch_that_began_before_is_not_enough() {
        let mut schedule = Schedule::default();
        schedule.end(true);
        schedule.begin();
        assert_eq!(schedule.wish(at(0), COOLDOWN), Wish::Wait(3, true));
    }

    #[test]
    fn without_keys_requests_wait_for_the_first_fetch_and_not_for_the_pauses_after_failures() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.wish(at(0), COOLDOWN), Wish::Wait(1, false));
        schedule.begin();
        assert_eq!(schedule.wish(at(0), COOLDOWN), Wish::Wait(1, false));
        schedule.end(false);
        assert_eq!(schedule.wish(at(1), COOLDOWN), Wish::NoKeys);
        schedule.begin();
        assert_eq!(schedule.wish(at(2), COOLDOWN), Wish::Wait(2, false));
        schedule.end(true);
        assert_eq!(schedule.wish(at(2), COOLDOWN), Wish::Wait(3, true));
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_vary() {
        let refresh = Duration::from_secs(600);
        for (failures, random, millis) in [
            (0, 0.0, 600_000),
            (0, 1.0, 540_000),
            (1, 0.0, 250),
            (1, 1.0, 125),
            (2, 0.0, 500),
            (4, 0.0, 2_000),
            (8, 0.0, 30_000),
            (9, 1.0, 15_000),
            (u32::MAX, 0.0, 30_000),
        ] {
            assert_eq!(pause(failures, refresh, random).as_millis(), millis, "{failures} {random}");
        }
    }
}
