//! How many failures come together.

use serde::{Deserialize, Serialize};

use crate::reading::Counts;

/// The number of cells that proxies are divided into.
const CELLS: usize = 8;

/// The time over which failures are taken together: long enough for a burst, short enough that proxies which are always
/// somewhat worse than others do not look like one.
const BLOCK_MS: u64 = 10_000;

/// The part of the past that is kept at each block: half of it is forgotten in 23 minutes.
const KEPT: f64 = 0.995;

/// Failures that are assumed to have come one by one, so that a few do not decide.
const PRIOR: f64 = 20.0;

/// Measures how many failures come together, as they do when a single proxy has a bad minute.
///
/// The proxies of the rest are divided into eight cells, which do not differ in their configuration. As much as the cells' failures vary
/// more than independent failures would, so many failures count as one: the index of dispersion. An outage that hits all cells alike leaves
/// it as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Dispersion {
    elapsed_ms: u64,
    cells: [Counts; CELLS],
    variance: f64,
    expected: f64,
}

impl Dispersion {
    /// Adds the counts of one proxy, whose cell is made from any fixed number of it.
    pub fn add(&mut self, proxy: u64, counts: Counts) {
        let cell = &mut self.cells[usize::try_from(proxy % CELLS as u64).unwrap_or(0)];
        cell.requests = cell.requests.saturating_add(counts.requests);
        cell.failures = cell.failures.saturating_add(counts.failures.min(counts.requests));
    }

    /// Ends a window, whose counts were added before.
    pub fn end_window(&mut self, length_ms: u64) {
        self.elapsed_ms = self.elapsed_ms.saturating_add(length_ms);
        if self.elapsed_ms < BLOCK_MS {
            return;
        }
        self.elapsed_ms = 0;
        let cells = std::mem::take(&mut self.cells);
        self.variance *= KEPT;
        self.expected *= KEPT;
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let floats = cells.map(|cell| (cell.requests as f64, cell.failures as f64));
        let (requests, failures) =
            floats.iter().fold((0.0, 0.0), |sum, cell| (sum.0 + cell.0, sum.1 + cell.1));
        if failures == 0.0 {
            return;
        }
        for (n, f) in floats {
            let share = n / requests;
            self.variance += (f - failures * share).powi(2);
            // The variance of a cell's failures, given the total, if they are independent.
            self.expected += failures * share * (1.0 - share);
        }
    }

    /// The number of failures that come together: 1 if they are independent.
    #[must_use]
    pub fn index(&self) -> f64 {
        ((self.variance + PRIOR) / (self.expected + PRIOR)).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::random::Random;

    /// The index after an hour of 80 proxies with 20 requests a second, at the failure rate that a function of time and proxy gives.
    fn measure(rate: impl Fn(u64, u64) -> f64) -> f64 {
        let mut random = Random::new(7);
        let mut dispersion = Dispersion::default();
        for second in 0..3600 {
            for proxy in 0..80 {
                dispersion.add(
                    proxy,
                    Counts { requests: 20, failures: random.poisson(20.0 * rate(second, proxy)) },
                );
            }
            dispersion.end_window(1000);
        }
        dispersion.index()
    }

    #[test]
    fn independent_failures_have_the_index_one() {
        let index = measure(|_, _| 0.005);
        assert!(index < 1.1, "{index}");
    }

    #[test]
    fn an_outage_of_all_proxies_is_no_burst() {
        let index = measure(|second, _| if second % 600 < 60 { 0.2 } else { 0.005 });
        assert!(index < 1.2, "{index}");
    }

    #[test]
    fn a_burst_of_one_proxy_counts_as_one() {
        // One proxy fails half of its requests for 10 s, every minute another one: 100 failures in a burst.
        let index = measure(|second, proxy| {
            let bursts = second % 60 < 10 && proxy == (second / 60 * 7) % 80;
            if bursts { 0.5 } else { 0.005 }
        });
        assert!((10.0..100.0).contains(&index), "{index}");
    }

    #[test]
    fn extreme_counts_have_a_finite_index() {
        let mut dispersion = Dispersion::default();
        dispersion.end_window(u64::MAX);
        assert!((dispersion.index() - 1.0).abs() < 1e-9);
        for proxy in 0..3 {
            dispersion.add(proxy, Counts { requests: u64::MAX, failures: u64::MAX });
            dispersion.add(proxy, Counts { requests: 0, failures: 9 });
        }
        dispersion.end_window(u64::MAX);
        assert!(dispersion.index().is_finite());
    }
}
