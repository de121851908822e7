use std::array;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::latencies::{Latencies, Latency};

/// Durations that one thread records and any thread reads, with their sum.
#[derive(Debug, Default)]
pub struct Histogram {
    latencies: Latencies,
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
    buckets: [u64; Latencies::BUCKETS],
    pub sum_us: u64,
}

impl Default for Totals {
    fn default() -> Self {
        Self { buckets: [0; Latencies::BUCKETS], sum_us: 0 }
    }
}

impl Histogram {
    /// Records a duration. Only the owning worker may call this.
    #[inline]
    pub fn record(&self, duration: Duration) {
        self.record_latency(Latency::of(duration));
    }

    /// Likewise, one whose bucket is known.
    #[inline]
    pub fn record_latency(&self, latency: Latency) {
        self.latencies.record(latency);
        self.sum_us.store(self.sum_us.load(Ordering::Relaxed) + latency.us(), Ordering::Relaxed);
    }

    /// The number of durations that were recorded.
    pub fn count(&self) -> u64 {
        self.latencies.buckets().map(|(_, count)| count).sum()
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
            for (bucket, count) in histogram.latencies.buckets() {
                if let Some(total) = totals.buckets.get_mut(usize::from(bucket)) {
                    *total += count;
                }
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

    /// The duration, in microseconds, that a share of `q` (0 to 1) does not exceed: at most 9 % too high; 0 if nothing was recorded.
    pub fn quantile_us(&self, q: f64) -> u64 {
        let rank = (self.count() as f64 * q).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return (Latencies::upper_bound(index) as u64).max(1);
            }
        }
        0
    }

    /// The number of durations in each octave; see [`Latencies::OCTAVES`].
    pub fn octaves(&self) -> [u64; Latencies::OCTAVES] {
        let (octaves, _) = self.buckets.as_chunks::<{ Latencies::PER_OCTAVE }>();
        array::from_fn(|octave| octaves.get(octave).into_iter().flatten().sum())
    }

    /// The buckets that are not empty, with their counts; see [`Latencies`].
    pub fn buckets(&self) -> impl Iterator<Item = (u8, u64)> + '_ {
        (0..=u8::MAX).zip(self.buckets).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn octaves_have_all() {
        let histogram = Histogram::default();
        for us in [1, 5, 100, 5_000_000] {
            histogram.record(Duration::from_micros(us));
        }
        let octaves = Totals::of([&histogram]).octaves();
        let counted: Vec<_> = (0..).zip(octaves).filter(|(_, count)| *count > 0).collect();
        // 5 s are in (4 s, 8 s].
        assert_eq!(counted, [(0, 1), (2, 1), (6, 1), (22, 1)]);
    }
}
