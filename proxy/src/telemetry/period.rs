use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, OnceLock};

use super::counters::Counter;
use super::latencies::{Latencies, Latency};

/// The counts of the requests that began in one period, by worker. A period lasts until the fleet's generation or the watched
/// scopes change; its requests may end later, and still count in it.
#[derive(Debug, Default)]
pub struct Period {
    workers: Box<[Arc<PeriodCounts>]>,
}

/// One worker's counts in a period.
///
/// They are aligned so that no two workers write to one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct PeriodCounts {
    all: RequestCounts,
    /// The counts of the watched scopes, at the places of their marks.
    watched: Box<[WatchedCounts]>,
}

/// The counts of a watched scope.
#[derive(Debug)]
struct WatchedCounts {
    /// `None`: the place is free in this period.
    mark: Option<Mark>,
    /// Memory is allocated on the first request.
    counts: OnceLock<Box<RequestCounts>>,
}

/// Counts of requests that one thread writes and any thread reads.
#[derive(Debug, Default)]
#[repr(align(128))]
struct RequestCounts {
    /// From the last byte of a request's head until the last byte of the response is handed to the socket.
    latencies: Latencies,
    /// Requests answered with a status of 500 and above.
    errors: Counter,
    /// Requests answered with a status from 400 to 499, those without a route among them.
    not_found: Counter,
}

/// Identifies a watched scope: its place in every period in which it is watched, and a number. A scope that takes the place
/// of another has another number, so no request counts for the wrong one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(NonZeroU32);

/// The counts of requests, summed over workers and periods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestSums {
    /// Requests answered with a status of 500 and above.
    pub errors: u64,
    /// Requests answered with a status from 400 to 499, those without a route among them.
    pub not_found: u64,
    /// The buckets of [`Latencies`] that are not empty.
    pub buckets: BTreeMap<u8, u64>,
}

impl Period {
    /// `watched` are the marks of the watched scopes.
    pub fn new(workers: usize, watched: impl IntoIterator<Item = Mark>) -> Self {
        let mut places: Vec<Option<Mark>> = Vec::new();
        for mark in watched {
            places.resize(places.len().max(mark.place() + 1), None);
            if let Some(place) = places.get_mut(mark.place()) {
                *place = Some(mark);
            }
        }
        let watched = || places.iter().map(|mark| WatchedCounts { mark: *mark, counts: OnceLock::new() });
        let counts = |_| Arc::new(PeriodCounts { watched: watched().collect(), ..PeriodCounts::default() });
        Self { workers: (0..workers).map(counts).collect() }
    }

    /// The counts of worker number `worker`.
    pub fn of_worker(&self, worker: usize) -> Arc<PeriodCounts> {
        self.workers.get(worker).cloned().unwrap_or_default()
    }

    /// Returns the sums over all requests.
    pub fn sums(&self) -> RequestSums {
        RequestSums::of(self.workers.iter().map(|worker| &worker.all))
    }

    /// Returns the sums over the requests of the scope with `mark`.
    pub fn sums_of(&self, mark: Mark) -> RequestSums {
        let watched = self.workers.iter().filter_map(|worker| worker.watched_at(mark));
        RequestSums::of(watched.filter_map(|watched| watched.counts.get()).map(Box::as_ref))
    }
}

impl PeriodCounts {
    /// Counts a request. Only the owning worker may call this, and [`PeriodCounts::count_watched`].
    #[inline]
    pub fn count(&self, latency: Latency, status: u16) {
        self.all.count(latency, status);
    }

    /// Counts a request of the scope with `mark`, if it is watched in this period.
    pub fn count_watched(&self, mark: Mark, latency: Latency, status: u16) {
        if let Some(watched) = self.watched_at(mark) {
            watched.counts.get_or_init(Box::default).count(latency, status);
        }
    }

    fn watched_at(&self, mark: Mark) -> Option<&WatchedCounts> {
        self.watched.get(mark.place()).filter(|watched| watched.mark == Some(mark))
    }
}

impl RequestCounts {
    #[inline]
    fn count(&self, latency: Latency, status: u16) {
        self.latencies.record(latency);
        if status >= 400 {
            // A reader that sees the failure sees the request, too.
            fence(Ordering::Release);
            let counter = if status >= 500 { &self.errors } else { &self.not_found };
            counter.add(1);
        }
    }
}

impl Mark {
    /// The number of places.
    pub const PLACES: usize = 1 << Self::PLACE_BITS;

    const PLACE_BITS: u32 = 10;

    /// The mark at `place`, which is less than [`Mark::PLACES`], with the number `number`, which counts modulo 2^22 - 1.
    pub fn new(place: usize, number: u32) -> Self {
        let number = number % (u32::MAX >> Self::PLACE_BITS) + 1;
        let place = (place % Self::PLACES) as u32;
        Self(NonZeroU32::MIN.saturating_add((number << Self::PLACE_BITS | place) - 1))
    }

    pub(super) fn from_bits(bits: u32) -> Option<Self> {
        NonZeroU32::new(bits).map(Self)
    }

    pub(super) fn to_bits(self) -> u32 {
        self.0.get()
    }

    /// The place of the scope's counts in a period.
    pub fn place(self) -> usize {
        self.0.get() as usize % Self::PLACES
    }
}

impl RequestSums {
    fn of<'a>(counts: impl IntoIterator<Item = &'a RequestCounts>) -> Self {
        let mut sums = Self::default();
        for counts in counts {
            sums.errors += counts.errors.value();
            sums.not_found += counts.not_found.value();
            fence(Ordering::Acquire);
            for (bucket, count) in counts.latencies.buckets() {
                *sums.buckets.entry(bucket).or_default() += count;
            }
        }
        sums
    }

    /// Adds the sums of other requests.
    pub fn add(&mut self, other: &Self) {
        self.errors += other.errors;
        self.not_found += other.not_found;
        for (bucket, count) in &other.buckets {
            *self.buckets.entry(*bucket).or_default() += count;
        }
    }

    /// The number of requests.
    pub fn requests(&self) -> u64 {
        self.buckets.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Latency {
        Latency::of(std::time::Duration::from_millis(count))
    }

    #[test]
    fn counts_are_summed_over_workers() {
        let mark = Mark::new(1, 0);
        let period = Period::new(2, [mark]);
        for (worker, status) in [(0, 200), (1, 404), (1, 499), (1, 500), (0, 503)] {
            period.of_worker(worker).count(ms(1), status);
        }
        period.of_worker(1).count_watched(mark, ms(2), 503);
        let buckets = BTreeMap::from([(80, 5)]);
        assert_eq!(period.sums(), RequestSums { errors: 2, not_found: 2, buckets });
        assert_eq!(period.sums().requests(), 5);
        let buckets = BTreeMap::from([(88, 1)]);
        assert_eq!(period.sums_of(mark), RequestSums { errors: 1, not_found: 0, buckets });
        assert_eq!(period.sums_of(Mark::new(0, 0)), RequestSums::default());
        assert_eq!(period.sums_of(Mark::new(2, 0)), RequestSums::default());
    }

    #[test]
    fn a_request_of_a_scope_that_this_period_does_not_watch_is_not_counted_apart() {
        let (before, now) = (Mark::new(0, 0), Mark::new(0, 1));
        let period = Period::new(1, [before]);
        // It began before another scope took the place of this one.
        period.of_worker(0).count_watched(now, ms(1), 200);
        period.of_worker(0).count_watched(Mark::new(7, 0), ms(1), 200);
        assert_eq!(period.sums_of(now).requests() + period.sums_of(before).requests(), 0);
        period.of_worker(0).count_watched(before, ms(1), 200);
        assert_eq!(period.sums_of(before).requests(), 1);
    }

    #[test]
    fn marks_differ_by_place_and_number() {
        let mark = Mark::new(1023, 5);
        assert_eq!(mark.place(), 1023);
        assert_ne!(mark, Mark::new(1023, 6));
        assert_ne!(mark, Mark::new(1022, 5));
        assert_eq!(Mark::from_bits(mark.to_bits()), Some(mark));
        assert_eq!(Mark::from_bits(0), None, "a route that was never watched");
        for number in [0, (1 << 22) - 2, (1 << 22) - 1, u32::MAX] {
            assert_ne!(Mark::new(0, number).to_bits() >> 10, 0);
        }
    }
}
