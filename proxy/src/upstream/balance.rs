use std::sync::atomic::{AtomicUsize, Ordering};

use signalbox_config::LoadBalancing;

/// Picks targets by their weights.
#[derive(Debug)]
pub struct Balancer {
    policy: LoadBalancing,
    weights: Weights,
    /// Of round robin: the targets' numbers in the order in which they are picked.
    sequence: Box<[u32]>,
    /// Each worker's place in `sequence`; each has its own, so that no two write to one cache line.
    places: Box<[Place]>,
}

#[derive(Debug)]
enum Weights {
    /// All the same: this many targets.
    Equal(u32),
    /// Added up: `[90, 100]` for 90 and 10.
    Sums(Box<[u64]>),
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Place(AtomicUsize);

/// The longest sequence that is laid out; for weights that need a longer one, requests are spread evenly by
/// [`Weights::at`] instead.
const MAX_SEQUENCE: u64 = 4096;

/// How often it is drawn again when a target was drawn that is not wanted.
const REDRAWS: usize = 4;

/// The golden ratio's fractional part in 64 bits: multiples of it fill the range most evenly (Knuth, TAOCP 6.4).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Balancer {
    /// For targets of these weights, none of which is 0. Goes on where `before` stands.
    pub fn new(policy: LoadBalancing, weights: &[u32], workers: usize, before: Option<&Self>) -> Self {
        let places = (0..workers).map(|worker| {
            let place = match before.and_then(|before| before.places.get(worker)) {
                Some(place) => place.0.load(Ordering::Relaxed),
                // Not all workers begin with the same target.
                None => worker,
            };
            Place(AtomicUsize::new(place))
        });
        Self {
            policy,
            places: places.collect(),
            weights: Weights::of(weights),
            sequence: match policy {
                LoadBalancing::RoundRobin => sequence(weights).into(),
                LoadBalancing::LeastRequest | LoadBalancing::Random => Box::default(),
            },
        }
    }

    pub fn policy(&self) -> LoadBalancing {
        self.policy
    }

    /// The number of a target: one that is not `excluded`, if there is any. `load` says how busy a target is.
    #[inline]
    pub fn pick(
        &self,
        worker: usize,
        load: impl Fn(usize) -> u32,
        excluded: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let first = self.draw(worker, &load)?;
        if !excluded(first) {
            return Some(first);
        }
        // Another draw keeps to the policy; when luck is out, any other will do.
        for _ in 0..REDRAWS {
            let other = self.draw(worker, &load)?;
            if !excluded(other) {
                return Some(other);
            }
        }
        let count = self.weights.count();
        let start = fastrand::usize(..count);
        let other = (start..count).chain(0..start).find(|index| !excluded(*index));
        Some(other.unwrap_or(first))
    }

    #[inline]
    fn draw(&self, worker: usize, load: impl Fn(usize) -> u32) -> Option<usize> {
        if let Weights::Equal(1) = self.weights {
            return Some(0);
        }
        match self.policy {
            LoadBalancing::RoundRobin => {
                let place = &self.places.get(worker)?.0;
                let turn = place.load(Ordering::Relaxed);
                place.store(turn.wrapping_add(1), Ordering::Relaxed);
                match self.sequence.len() {
                    0 => self.weights.at((turn as u64).wrapping_mul(GOLDEN)),
                    len => self.sequence.get(turn % len).map(|index| *index as usize),
                }
            }
            LoadBalancing::Random => self.weights.at(fastrand::u64(..)),
            LoadBalancing::LeastRequest => {
                let (one, other) = (self.weights.at(fastrand::u64(..))?, self.weights.at(fastrand::u64(..))?);
                Some(if load(other) < load(one) { other } else { one })
            }
        }
    }
}

impl Weights {
    fn of(weights: &[u32]) -> Self {
        if weights.windows(2).all(|pair| pair[0] == pair[1]) {
            return Self::Equal(weights.len() as u32);
        }
        let mut sum = 0;
        Self::Sums(
            weights
                .iter()
                .map(|weight| {
                    sum += u64::from(*weight);
                    sum
                })
                .collect(),
        )
    }

    fn count(&self) -> usize {
        match self {
            Self::Equal(count) => *count as usize,
            Self::Sums(sums) => sums.len(),
        }
    }

    /// The target at `point` of the whole range of numbers, of which each has its share.
    #[inline]
    fn at(&self, point: u64) -> Option<usize> {
        let scaled = |total: u64| ((u128::from(point) * u128::from(total)) >> 64) as u64;
        match self {
            Self::Equal(0) => None,
            Self::Equal(count) => Some(scaled(u64::from(*count)) as usize),
            Self::Sums(sums) => {
                let point = scaled(*sums.last()?);
                Some(sums.partition_point(|sum| *sum <= point))
            }
        }
    }
}

/// One round of smooth weighted round robin (as nginx has it: each turn every target gains its weight, the richest is
/// picked and pays the sum of all). Empty when it would be too long.
fn sequence(weights: &[u32]) -> Vec<u32> {
    let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, *weight)).max(1);
    let weights: Vec<i64> = weights.iter().map(|weight| i64::from(weight / divisor)).collect();
    let total: i64 = weights.iter().sum();
    if total as u64 * weights.len() as u64 > MAX_SEQUENCE * 64 || total as u64 > MAX_SEQUENCE {
        // Equal weights need no riches: the round is the list.
        return match weights.iter().all(|weight| *weight == 1) {
            true => (0..weights.len() as u32).collect(),
            false => Vec::new(),
        };
    }
    let mut riches = vec![0i64; weights.len()];
    (0..total)
        .map(|_| {
            let mut richest = 0;
            for index in 0..weights.len() {
                riches[index] += weights[index];
                if riches[index] > riches[richest] {
                    richest = index;
                }
            }
            riches[richest] -= total;
            richest as u32
        })
        .collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picks(policy: LoadBalancing, weights: &[u32], count: usize) -> Vec<usize> {
        let balancer = Balancer::new(policy, weights, 1, None);
        (0..count).map(|_| balancer.pick(0, |_| 0, |_| false).unwrap()).collect()
    }

    fn shares(picks: &[usize], targets: usize) -> Vec<usize> {
        (0..targets).map(|target| picks.iter().filter(|pick| **pick == target).count()).collect()
    }

    #[test]
    fn round_robin_is_smooth() {
        // The sequence that nginx documents for 5, 1, 1.
        assert_eq!(picks(LoadBalancing::RoundRobin, &[5, 1, 1], 7), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(picks(LoadBalancing::RoundRobin, &[100, 100, 100], 4), [0, 1, 2, 0]);
        assert_eq!(picks(LoadBalancing::RoundRobin, &[7], 2), [0, 0]);
    }

    #[test]
    fn round_robin_keeps_to_weights_that_share_no_divisor() {
        let weights = [65_535, 65_534, 1, 30_011];
        let picked = picks(LoadBalancing::RoundRobin, &weights, 100_000);
        let total: u32 = weights.iter().sum();
        for (share, weight) in shares(&picked, 4).into_iter().zip(weights) {
            let expected = 100_000.0 * f64::from(weight) / f64::from(total);
            assert!((share as f64 - expected).abs() < 5.0, "{share} instead of {expected}");
        }
    }

    #[test]
    fn ten_thousand_equal_targets_are_picked_in_turn() {
        let picked = picks(LoadBalancing::RoundRobin, &vec![100; 10_000], 10_001);
        assert_eq!(shares(&picked, 10_000)[1..], vec![1; 9_999]);
    }

    #[test]
    fn random_keeps_to_the_weights() {
        fastrand::seed(7);
        let picked = picks(LoadBalancing::Random, &[80, 20], 20_000);
        let share = shares(&picked, 2)[0];
        assert!((15_700..16_300).contains(&share), "{share}");
        let picked = picks(LoadBalancing::Random, &[5, 5, 5], 30_000);
        assert!(shares(&picked, 3).iter().all(|share| (9_700..10_300).contains(share)));
    }

    #[test]
    fn the_less_busy_of_two_is_picked() {
        fastrand::seed(7);
        let balancer = Balancer::new(LoadBalancing::LeastRequest, &[1, 1], 1, None);
        let picked: Vec<_> = (0..1000)
            .map(|_| balancer.pick(0, |index| if index == 0 { 9 } else { 1 }, |_| false).unwrap())
            .collect();
        // The busy one only when it was drawn twice.
        assert!((200..300).contains(&shares(&picked, 2)[0]));
    }

    #[test]
    fn without_targets_there_is_nothing_to_pick() {
        for policy in [LoadBalancing::RoundRobin, LoadBalancing::LeastRequest, LoadBalancing::Random] {
            assert_eq!(Balancer::new(policy, &[], 1, None).pick(0, |_| 0, |_| false), None);
        }
    }

    #[test]
    fn one_that_was_tried_is_picked_only_when_there_is_no_other() {
        for policy in [LoadBalancing::RoundRobin, LoadBalancing::LeastRequest, LoadBalancing::Random] {
            let balancer = Balancer::new(policy, &[65_535, 1, 65_535], 1, None);
            for _ in 0..100 {
                assert_eq!(balancer.pick(0, |_| 0, |index| index != 1), Some(1));
                assert!(balancer.pick(0, |_| 0, |_| true).is_some());
            }
        }
    }

    #[test]
    fn a_changed_upstream_goes_on_where_it_was() {
        let before = Balancer::new(LoadBalancing::RoundRobin, &[1, 1, 1], 1, None);
        before.pick(0, |_| 0, |_| false);
        let after = Balancer::new(LoadBalancing::RoundRobin, &[1, 1, 1], 1, Some(&before));
        assert_eq!(after.pick(0, |_| 0, |_| false), Some(1));
    }
}
