use std::array;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Four buckets per power of two of microseconds, up to 2^27 (134 s).
const BUCKETS: usize = 4 * 26;

/// Durations that one thread records and any thread reads. Each bucket is at most a quarter wider than its lower bound.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

/// One histogram per worker, allocated when the first has something to record.
#[derive(Debug)]
pub struct Histograms {
    workers: usize,
    all: OnceLock<Box<[Histogram]>>,
}

/// The contents of histograms at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Totals {
    buckets: [u64; BUCKETS],
    pub sum_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: array::from_fn(|_| AtomicU64::new(0)), sum_us: AtomicU64::new(0) }
    }
}

impl Default for Totals {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum_us: 0 }
    }
}

impl Histogram {
    /// Records a duration. Only the owning worker may call this.
    #[inline]
    pub fn record(&self, duration: Duration) {
        let us = duration.as_micros() as u64;
        let add = |cell: &AtomicU64, n| cell.store(cell.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        if let Some(bucket) = self.buckets.get(bucket_of(us)) {
            add(bucket, 1);
        }
        add(&self.sum_us, us);
    }
}

impl Histograms {
    pub fn new(workers: usize) -> Self {
        Self { workers, all: OnceLock::new() }
    }

    /// Records a duration. Only worker number `worker` may call this with that number.
    pub fn record(&self, worker: usize, duration: Duration) {
        let all = self.all.get_or_init(|| (0..self.workers).map(|_| Histogram::default()).collect());
        if let Some(histogram) = all.get(worker) {
            histogram.record(duration);
        }
    }

    /// Returns the sum over the workers.
    pub fn read(&self) -> Totals {
        Totals::of(self.all.get().into_iter().flatten())
    }
}

impl Totals {
    /// Returns the sum over `histograms`.
    pub fn of<'a>(histograms: impl IntoIterator<Item = &'a Histogram>) -> Self {
        let mut totals = Self::default();
        for histogram in histograms {
            for (total, bucket) in totals.buckets.iter_mut().zip(&histogram.buckets) {
                *total += bucket.load(Ordering::Relaxed);
            }
            totals.sum_us += histogram.sum_us.load(Ordering::Relaxed);
        }
        totals
    }

    /// Returns what was recorded after `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            buckets: array::from_fn(|i| self.buckets[i].saturating_sub(earlier.buckets[i])),
            sum_us: self.sum_us.saturating_sub(earlier.sum_us),
        }
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The duration, in microseconds, that a share of `q` (0 to 1) does not exceed, to the accuracy of a bucket; 0 if
    /// nothing was recorded.
    pub fn quantile_us(&self, q: f64) -> u64 {
        let rank = (self.count() as f64 * q).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return (lower_bound(index) + lower_bound(index + 1)) / 2;
            }
        }
        0
    }

    /// Yields powers of two of microseconds, and the number of durations below each.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut below = 0;
        self.buckets.chunks(4).enumerate().map(move |(octave, buckets)| {
            below += buckets.iter().sum::<u64>();
            (lower_bound(4 * octave + 4), below)
        })
    }
}

/// The bucket of a duration: below 4 µs one per microsecond, then by the highest three bits.
#[inline]
fn bucket_of(us: u64) -> usize {
    if us < 4 {
        return us as usize;
    }
    let exponent = 63 - us.leading_zeros();
    let index = (exponent - 1) * 4 + (us >> (exponent - 2) & 3) as u32;
    (index as usize).min(BUCKETS - 1)
}

fn lower_bound(index: usize) -> u64 {
    let index = index as u64;
    if index < 4 { index } else { (4 + index % 4) << (index / 4 - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_falls_between_the_bounds_of_its_bucket() {
        for us in (0..10_000).chain([99_999, 1_000_000, 60_000_000]) {
            let bucket = bucket_of(us);
            assert!(lower_bound(bucket) <= us && us < lower_bound(bucket + 1), "{us} in {bucket}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_near_the_truth() {
        let histogram = Histogram::default();
        for us in 1..=1000 {
            histogram.record(Duration::from_micros(us));
        }
        let totals = Totals::of([&histogram]);
        assert_eq!(totals.count(), 1000);
        assert_eq!(totals.sum_us, 500_500);
        for (q, truth) in [(0.5, 500.0), (0.99, 990.0)] {
            let found = totals.quantile_us(q) as f64;
            assert!((found - truth).abs() / truth < 0.15, "{q}: {found}");
        }
        assert_eq!(totals.since(&totals).count(), 0);
        assert_eq!(totals.since(&totals).quantile_us(0.99), 0);
    }

    #[test]
    fn cumulative_counts_end_with_all() {
        let histogram = Histogram::default();
        for us in [1, 5, 100, 5_000_000] {
            histogram.record(Duration::from_micros(us));
        }
        let totals = Totals::of([&histogram]);
        let below: Vec<_> = totals.cumulative().collect();
        assert!(below.contains(&(4, 1)) && below.contains(&(8, 2)) && below.contains(&(128, 3)));
        assert_eq!(below.last().unwrap().1, 4);
    }
}
