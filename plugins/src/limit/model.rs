//! The algorithms against their definitions.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::budget::{Budget, LOG_ENTRIES};
use super::by::ClientId;
use super::local::Counters;
use super::usage::Usage;

const SECOND: u64 = 1_000_000_000;

#[test]
fn workers_together_lose_no_token_while_time_goes_on() {
    let budget = Budget::bucket(1000, SECOND, 10);
    let counters = Counters::default();
    let clock = AtomicU64::new(0);
    let allowed: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    // Each request is 10 µs after the one before: a hundred of them for each token.
                    let take =
                        || counters.take(ClientId(7), clock.fetch_add(10_000, Ordering::Relaxed), &budget, 1);
                    (0..50_000).filter(|_| take().refused_for.is_none()).count() as u64
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    // The time of the last request is 1.99999 s.
    assert_eq!(allowed, 10 + 1999);
}

/// A sliding window as it is defined, over all that passed.
fn naive_window(passed: &[u64], now: u64, limit: usize, window: u64) -> bool {
    passed.iter().filter(|at| *at + window > now).count() < limit
}

/// A token bucket as it is defined: no interval may have seen more than the burst and what came in meanwhile.
fn naive_bucket(passed: &[u64], now: u64, budget: &Budget, burst: u64) -> bool {
    let fits = |(index, start): (usize, &u64)| {
        let count = (passed.len() - index + 1) as u128;
        let came = u128::from(now - start) * u128::from(budget.limit);
        count * u128::from(budget.window) <= u128::from(burst) * u128::from(budget.window) + came
    };
    burst >= 1 && passed.iter().enumerate().all(fits)
}

/// Requests at ever later times, often at once, sometimes after a pause.
fn times() -> impl Strategy<Value = Vec<u64>> {
    let step = prop_oneof![4 => Just(0), 4 => 0..SECOND / 50, 1 => 0..3 * SECOND, 1 => Just(SECOND)];
    prop::collection::vec(step, 1..400).prop_map(|steps| {
        steps
            .iter()
            .scan(SECOND, |now, step| {
                *now += step;
                Some(*now)
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn a_small_sliding_window_is_the_naive_one(limit in 1_u32..=64, times in times()) {
        let budget = Budget::sliding_window(limit.into(), SECOND);
        let (mut usage, mut passed) = (Usage::default(), Vec::new());
        for now in times {
            let expected = naive_window(&passed, now, limit as usize, SECOND);
            let verdict = usage.take(now, &budget, 1);
            prop_assert_eq!(verdict.refused_for.is_none(), expected);
            if expected {
                passed.push(now);
            }
            if let Some(wait) = verdict.refused_for {
                prop_assert!(naive_window(&passed, now + wait, limit as usize, SECOND));
                prop_assert!(!naive_window(&passed, now + wait - 1, limit as usize, SECOND));
            }
        }
    }

    #[test]
    fn a_large_sliding_window_is_never_too_wide_and_hardly_too_narrow(limit in 65_u32..150, times in times()) {
        let budget = Budget::sliding_window(limit.into(), SECOND);
        let (mut usage, mut passed) = (Usage::default(), Vec::new());
        for now in times {
            if usage.take(now, &budget, 1).refused_for.is_none() {
                prop_assert!(naive_window(&passed, now, limit as usize, SECOND));
                passed.push(now);
            } else {
                prop_assert!(!naive_window(&passed, now, limit as usize, SECOND + SECOND / 63 + 1));
            }
            let Usage::Window(log) = &usage else { panic!("another kind") };
            prop_assert!(log.entries.len() <= LOG_ENTRIES as usize);
            prop_assert_eq!(log.total, log.entries.iter().map(|(_, count)| *count).sum::<u64>());
        }
    }

    #[test]
    fn a_bucket_is_the_naive_one(limit in 1_u64..2000, burst in 1_u64..50, times in times()) {
        let budget = Budget::bucket(limit, SECOND, burst);
        let (mut usage, mut passed) = (Usage::default(), Vec::new());
        for now in times {
            let expected = naive_bucket(&passed, now, &budget, burst);
            let verdict = usage.take(now, &budget, 1);
            prop_assert_eq!(verdict.refused_for.is_none(), expected);
            if expected {
                passed.push(now);
            }
            if let Some(wait) = verdict.refused_for {
                prop_assert!(naive_bucket(&passed, now + wait, &budget, burst));
                prop_assert!(!naive_bucket(&passed, now + wait - 1, &budget, burst));
            }
        }
    }

    /// With room for three clients and twelve that come, nobody gets more than the limit.
    #[test]
    fn forgetting_clients_frees_nobody(
        limit in 1_u32..5,
        bucket: bool,
        times in times(),
        clients in prop::collection::vec(0_u128..12, 400),
    ) {
        let burst = u64::from(limit);
        let budget = match bucket {
            true => Budget::bucket(burst, SECOND, burst),
            false => Budget::sliding_window(burst, SECOND),
        };
        let counters = Counters::new(1, 3);
        let mut passed: HashMap<u128, Vec<u64>> = HashMap::new();
        for (now, client) in times.into_iter().zip(clients) {
            let passed = passed.entry(client).or_default();
            if counters.take(ClientId(client), now, &budget, 1).refused_for.is_none() {
                let allowed = match bucket {
                    true => naive_bucket(passed, now, &budget, burst),
                    false => naive_window(passed, now, limit as usize, SECOND),
                };
                prop_assert!(allowed, "client {} at {}", client, now);
                passed.push(now);
            }
            prop_assert!(counters.known() <= 3);
        }
    }
}

/// Any budget, small enough for its edges to be met.
fn budgets() -> impl Strategy<Value = Budget> {
    (1_u64..150, 1_u64..50, any::<bool>()).prop_map(|(limit, burst, bucket)| match bucket {
        true => Budget::bucket(limit, SECOND, burst),
        false => Budget::sliding_window(limit, SECOND),
    })
}

proptest! {
    /// `more_in` is the very time at which more is left than now, if nothing is taken meanwhile.
    #[test]
    fn more_comes_when_it_is_told(budget in budgets(), times in times(), costs in prop::collection::vec(1_u64..4, 400)) {
        let mut usage = Usage::default();
        // A cost that never fits takes nothing, but tells what is left.
        let look = |usage: &Usage, now| usage.clone().take(now, &budget, 1 << 40).remaining;
        for (now, cost) in times.into_iter().zip(costs) {
            let verdict = usage.take(now, &budget, cost.min(budget.most_at_once()));
            prop_assert_eq!(look(&usage, now), verdict.remaining);
            if verdict.more_in > 0 {
                prop_assert!(look(&usage, now + verdict.more_in) > verdict.remaining);
                prop_assert_eq!(look(&usage, now + verdict.more_in - 1), verdict.remaining);
            } else {
                prop_assert_eq!(verdict.remaining, budget.most_at_once());
            }
            prop_assert!(verdict.refused_for.is_none_or(|wait| wait >= verdict.more_in));
        }
    }

    /// A request of several units passes exactly if as many requests of one unit would.
    #[test]
    fn several_units_are_several_times_one(budget in budgets(), times in times(), costs in prop::collection::vec(1_u64..9, 400)) {
        let mut usage = Usage::default();
        for (now, cost) in times.into_iter().zip(costs) {
            let mut one_by_one = usage.clone();
            let fits = (0..cost).all(|_| one_by_one.take(now, &budget, 1).refused_for.is_none());
            let verdict = usage.take(now, &budget, cost);
            prop_assert_eq!(verdict.refused_for.is_none(), fits);
            if let Some(wait) = verdict.refused_for && cost <= budget.most_at_once() {
                prop_assert!(usage.clone().take(now + wait, &budget, cost).refused_for.is_none());
                prop_assert!(usage.clone().take(now + wait - 1, &budget, cost).refused_for.is_some());
            }
        }
    }

    /// Units that are given back at once count as never taken, and a charge counts as if it had passed.
    #[test]
    fn a_charge_counts_and_what_is_given_back_does_not(
        budget in budgets(),
        times in times(),
        charged in 1_u64..200,
        kept in 0_u64..5,
    ) {
        let mut usage = Usage::default();
        for now in &times {
            usage.take(*now, &budget, 1);
        }
        let now = times.last().copied().unwrap_or_default();
        let look = |usage: &Usage| usage.clone().take(now, &budget, 1 << 40);
        let before = look(&usage);
        let mut charged_usage = usage.clone();
        charged_usage.charge(now, &budget, charged);
        prop_assert_eq!(look(&charged_usage).remaining, before.remaining.saturating_sub(charged));

        let cost = before.remaining;
        let taken = usage.take(now, &budget, cost);
        prop_assert_eq!(taken.refused_for, None);
        let kept = kept.min(cost);
        usage.give_back(now, &budget, taken.counted_at, cost - kept);
        prop_assert_eq!(look(&usage).remaining, before.remaining - kept);
        // Units that were not taken cannot be given back.
        usage.give_back(now, &budget, taken.counted_at, 1 << 20);
        prop_assert!(look(&usage).remaining <= budget.most_at_once());
    }
}
