use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use signalbox_config::LoadBalancing;

use super::hash::Table;

/// Picks targets by policy and weight.
#[derive(Debug)]
pub(super) struct Balancer {
    policy: LoadBalancing,
    /// The indexes of the targets that have a weight; `None`: all have.
    chosen: Option<Box<[u32]>>,
    /// The weights of the chosen targets.
    weights: Weights,
    /// For round robin: the chosen targets in the order in which they are picked.
    sequence: Box<[u32]>,
    cursors: Arc<Cursors>,
    /// For policies that hash: the table.
    table: Option<Arc<Table>>,
    /// For policies that hash: true for targets that have a weight.
    usable: Box<[bool]>,
}

/// Each worker's position in the round robin sequence. Each has a cache line of its own, so no two workers write to
/// one.
#[derive(Debug)]
pub(super) struct Cursors(Box<[Cursor]>);

#[derive(Debug)]
enum Weights {
    /// Equal weights of this many targets.
    Equal(u32),
    /// Cumulative weights: `[90, 100]` for 90 and 10.
    Sums(Box<[u64]>),
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Cursor(AtomicUsize);

/// The longest sequence that is precomputed; for weights that need a longer one, requests are spread evenly by
/// [`Weights::at`] instead.
const MAX_SEQUENCE: u64 = 4096;

/// The number of further draws when an unwanted target was drawn.
const REDRAWS: usize = 4;

/// The golden ratio's fractional part in 64 bits: multiples of it fill the range most evenly (Knuth, TAOCP 6.4).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Cursors {
    pub(super) fn new(workers: usize) -> Self {
        // The workers start at different targets.
        Self((0..workers).map(|worker| Cursor(AtomicUsize::new(worker))).collect())
    }
}

impl Balancer {
    /// Creates a balancer for targets of these weights; a target of weight 0 is not picked. `table`, for policies that
    /// hash, covers all targets.
    pub(super) fn new(
        policy: LoadBalancing,
        weights: &[u32],
        cursors: Arc<Cursors>,
        table: Option<Arc<Table>>,
    ) -> Self {
        let some = weights.contains(&0);
        let chosen: Vec<u32> =
            (0..).zip(weights).filter(|(_, it)| **it > 0).map(|(index, _)| index).collect();
        let usable = table.is_some().then(|| weights.iter().map(|weight| *weight > 0).collect());
        let weights: Vec<u32> = weights.iter().copied().filter(|weight| *weight > 0).collect();
        Self {
            policy,
            chosen: some.then(|| chosen.into()),
            weights: Weights::of(&weights),
            sequence: match policy {
                LoadBalancing::RoundRobin => sequence(&weights).into(),
                LoadBalancing::LeastRequest
                | LoadBalancing::Random
                | LoadBalancing::PeakEwma
                | LoadBalancing::RingHash
                | LoadBalancing::Maglev => Box::default(),
            },
            cursors,
            table,
            usable: usable.unwrap_or_default(),
        }
    }

    /// Picks a target's index: one that is not `excluded`, if there is any. `hash` is the request's, if it has one;
    /// `cost` returns the cost of a target.
    #[inline]
    pub(super) fn pick(
        &self,
        worker: usize,
        hash: Option<u64>,
        cost: impl Fn(usize) -> f64,
        excluded: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        if let (Some(table), Some(hash)) = (&self.table, hash) {
            let usable = |index: usize| self.usable.get(index).is_some_and(|usable| *usable);
            if let Some(found) = table.find(hash, |index| usable(index) && !excluded(index)) {
                return Some(found);
            }
        }
        let first = self.draw(worker, &cost)?;
        if !excluded(first) {
            return Some(first);
        }
        // Further draws keep to the policy; after those, any other target will do.
        for _ in 0..REDRAWS {
            let other = self.draw(worker, &cost)?;
            if !excluded(other) {
                return Some(other);
            }
        }
        let count = self.weights.count();
        let start = fastrand::usize(..count);
        let mut others = (start..count).chain(0..start).filter_map(|index| self.number(index));
        Some(others.find(|index| !excluded(*index)).unwrap_or(first))
    }

    #[inline]
    fn draw(&self, worker: usize, cost: impl Fn(usize) -> f64) -> Option<usize> {
        if let Weights::Equal(1) = self.weights {
            return self.number(0);
        }
        match self.policy {
            LoadBalancing::RoundRobin => {
                let cursor = &self.cursors.0.get(worker)?.0;
                let position = cursor.load(Ordering::Relaxed);
                cursor.store(position.wrapping_add(1), Ordering::Relaxed);
                let index = match self.sequence.len() {
                    0 => self.weights.at((position as u64).wrapping_mul(GOLDEN)),
                    len => self.sequence.get(position % len).map(|index| *index as usize),
                };
                self.number(index?)
            }
            // For policies that hash, this branch serves requests without a hash.
            LoadBalancing::Random | LoadBalancing::RingHash | LoadBalancing::Maglev => self.by_weight(),
            LoadBalancing::LeastRequest | LoadBalancing::PeakEwma => {
                let (one, other) = (self.by_weight()?, self.by_weight()?);
                Some(if cost(other) < cost(one) { other } else { one })
            }
        }
    }

    #[inline]
    fn by_weight(&self) -> Option<usize> {
        self.number(self.weights.at(fastrand::u64(..))?)
    }

    /// Converts an index among the chosen into the target's index.
    #[inline]
    fn number(&self, index: usize) -> Option<usize> {
        match &self.chosen {
            None => Some(index),
            Some(chosen) => chosen.get(index).map(|index| *index as usize),
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

    /// The target at `point`, with the whole range of `u64` divided among the targets by weight.
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

/// One round of smooth weighted round robin as in nginx: on each position every target gains its weight; the highest is
/// picked and pays the sum of all. Returns an empty list if the round would be too long.
fn sequence(weights: &[u32]) -> Vec<u32> {
    let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, *weight)).max(1);
    let weights: Vec<i64> = weights.iter().map(|weight| i64::from(weight / divisor)).collect();
    let total: i64 = weights.iter().sum();
    if total as u64 * weights.len() as u64 > MAX_SEQUENCE * 64 || total as u64 > MAX_SEQUENCE {
        // With equal weights, the round is the list itself.
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

    fn balancer(policy: LoadBalancing, weights: &[u32]) -> Balancer {
        Balancer::new(policy, weights, Arc::new(Cursors::new(1)), None)
    }

    fn picks(policy: LoadBalancing, weights: &[u32], count: usize) -> Vec<usize> {
        let balancer = balancer(policy, weights);
        (0..count).map(|_| balancer.pick(0, None, |_| 0.0, |_| false).unwrap()).collect()
    }

    fn shares(picks: &[usize], targets: usize) -> Vec<usize> {
        (0..targets).map(|target| picks.iter().filter(|pick| **pick == target).count()).collect()
    }

    #[test]
    fn round_robin_is_smooth() {
        // This is the sequence that nginx documents for 5, 1, 1.
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
        let balancer = balancer(LoadBalancing::LeastRequest, &[1, 1]);
        let picked: Vec<_> = (0..1000)
            .map(|_| balancer.pick(0, None, |index| if index == 0 { 9.0 } else { 1.0 }, |_| false).unwrap())
            .collect();
        // The busy target is picked only if it was drawn twice.
        assert!((200..300).contains(&shares(&picked, 2)[0]));
    }

    #[test]
    fn without_targets_there_is_nothing_to_pick() {
        for policy in [LoadBalancing::RoundRobin, LoadBalancing::LeastRequest, LoadBalancing::Random] {
            assert_eq!(balancer(policy, &[0]).pick(0, Some(1), |_| 0.0, |_| false), None);
            assert_eq!(balancer(policy, &[]).pick(0, Some(1), |_| 0.0, |_| false), None);
        }
    }

    #[test]
    fn one_that_was_tried_is_picked_only_when_there_is_no_other() {
        for policy in [LoadBalancing::RoundRobin, LoadBalancing::LeastRequest, LoadBalancing::Random] {
            let balancer = balancer(policy, &[65_535, 1, 65_535]);
            for _ in 0..100 {
                assert_eq!(balancer.pick(0, None, |_| 0.0, |index| index != 1), Some(1));
                assert!(balancer.pick(0, None, |_| 0.0, |_| true).is_some());
            }
        }
    }

    #[test]
    fn one_without_weight_is_not_picked() {
        let policies = [
            LoadBalancing::RoundRobin,
            LoadBalancing::LeastRequest,
            LoadBalancing::Random,
            LoadBalancing::PeakEwma,
        ];
        for policy in policies {
            let shares = shares(&picks(policy, &[1, 0, 1, 0], 1000), 4);
            assert_eq!((shares[1], shares[3]), (0, 0), "{policy:?}");
            assert!(shares[0].abs_diff(500) < 80, "{policy:?}: {shares:?}");
        }
        assert_eq!(picks(LoadBalancing::RoundRobin, &[0, 0, 7], 2), [2, 2]);
    }

    #[test]
    fn a_hash_leads_to_its_target_and_past_those_that_are_not_wanted() {
        let targets = [("a", 1), ("b", 1), ("c", 1)];
        for (policy, table) in [
            (LoadBalancing::RingHash, Table::ring(&targets)),
            (LoadBalancing::Maglev, Table::maglev(&targets)),
        ] {
            let (table, cursors) = (Some(Arc::new(table)), Arc::new(Cursors::new(1)));
            let all = Balancer::new(policy, &[1, 1, 1], Arc::clone(&cursors), table.clone());
            let some = Balancer::new(policy, &[1, 0, 1], cursors, table);
            for hash in (0..1000).map(|key: u64| key.wrapping_mul(GOLDEN)) {
                let pick =
                    |of: &Balancer, tried: usize| of.pick(0, Some(hash), |_| 0.0, |index| index == tried);
                let own = pick(&all, 9).unwrap();
                assert_eq!(pick(&all, 9), Some(own));
                assert_ne!(pick(&all, own), Some(own));
                assert_eq!(pick(&some, 9).unwrap() == own, own != 1);
            }
            let anywhere: Vec<_> = (0..300).map(|_| all.pick(0, None, |_| 0.0, |_| false).unwrap()).collect();
            assert!(shares(&anywhere, 3).iter().all(|share| share.abs_diff(100) < 60), "{anywhere:?}");
        }
    }

    #[test]
    fn a_changed_upstream_goes_on_where_it_was() {
        let cursors = Arc::new(Cursors::new(1));
        let of =
            |weights: &[u32]| Balancer::new(LoadBalancing::RoundRobin, weights, Arc::clone(&cursors), None);
        assert_eq!(of(&[1, 1, 1]).pick(0, None, |_| 0.0, |_| false), Some(0));
        assert_eq!(of(&[1, 1, 1]).pick(0, None, |_| 0.0, |_| false), Some(1));
    }
}
