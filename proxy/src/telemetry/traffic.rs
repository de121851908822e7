use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock};

use super::counters::Counter;
use super::flag::Flag;
use super::latencies::{Latencies, Latency};
use crate::core::prefetch::prefetch;

/// The requests of a route, an upstream or a consumer, for time series. Memory is allocated on the first request.
#[derive(Debug)]
pub struct TrafficCounts {
    group: Arc<TrafficGroup>,
    /// `None`: it counts among the others of its group.
    cells: OnceLock<Option<Cells>>,
}

/// All routes, all upstreams, or all consumers.
#[derive(Debug)]
pub struct TrafficGroup {
    workers: usize,
    /// How many more may be counted apart.
    left: AtomicUsize,
    /// The requests of those that are not counted apart.
    others: OnceLock<Cells>,
}

/// One part for each worker.
type Cells = Box<[WorkerTraffic]>;

/// One worker's counts.
///
/// They are aligned so that no two workers write to one cache line, and in this order, so that those which every request changes are in one.
#[derive(Debug, Default)]
#[repr(C, align(128))]
struct WorkerTraffic {
    ends: [Counter; 4],
    bytes_in: Counter,
    bytes_out: Counter,
    latency_us: Counter,
    first_byte_us: Counter,
    latencies: Latencies,
    /// By octave, which takes an eighth of the memory.
    first_bytes: [Counter; Latencies::OCTAVES],
    /// Requests that went wrong, by the place of their flag in [`Flag::ALL`].
    flags: [Counter; Flag::ALL.len()],
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With a status below 400.
    Success,
    /// With a status from 400 to 499, but for [`End::NoRoute`].
    ClientError,
    /// It matched no route.
    NoRoute,
    /// With a status of 500 and above.
    ServerError,
}

/// A request that has ended.
#[derive(Debug, Clone, Copy)]
pub struct EndedRequest {
    pub latency: Latency,
    /// The time to the first byte of the response.
    pub first_byte: Latency,
    pub end: End,
    pub flag: Flag,
    /// Bytes of its body.
    pub bytes_in: u64,
    /// Bytes of the response's body.
    pub bytes_out: u64,
}

/// Requests that have ended, summed over workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrafficSums {
    /// By [`End`].
    pub ends: [u64; 4],
    /// By the place of the flag in [`Flag::ALL`]. Requests that went well are not among them.
    pub flags: [u64; Flag::ALL.len()],
    /// Targets to which requests failed, by address, and the number of these attempts.
    pub failed_targets: Vec<(Arc<str>, u64)>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// The sum of all latencies, in microseconds.
    pub latency_us: u64,
    /// The buckets of [`Latencies`] that are not empty, in their order.
    pub buckets: Vec<(u8, u64)>,
    /// The sum of the times to the first byte, in microseconds.
    pub first_byte_us: u64,
    /// The number of times to the first byte in each octave; see [`Latencies::OCTAVES`].
    pub first_bytes: [u64; Latencies::OCTAVES],
}

impl End {
    /// The end of a request with a status and a flag.
    #[inline]
    pub fn of(status: u16, flag: Flag) -> Self {
        match status {
            0..400 => Self::Success,
            500.. => Self::ServerError,
            _ if flag == Flag::NoRoute => Self::NoRoute,
            _ => Self::ClientError,
        }
    }
}

impl TrafficGroup {
    /// A group of which `most` are counted apart.
    pub fn new(workers: usize, most: usize) -> Arc<Self> {
        Arc::new(Self { workers, left: AtomicUsize::new(most), others: OnceLock::new() })
    }

    /// The requests of those that are not counted apart; `None`: there were none.
    pub fn others(&self) -> Option<TrafficSums> {
        self.others.get().map(|cells| TrafficSums::of(cells))
    }

    fn cells(&self) -> Cells {
        (0..self.workers).map(|_| WorkerTraffic::default()).collect()
    }

    /// Takes the place of one that is counted apart. `false`: there is none left.
    fn take_place(&self) -> bool {
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

impl TrafficCounts {
    /// The memory for each worker, in bytes.
    pub const SIZE: usize = size_of::<WorkerTraffic>();

    pub fn new(group: &Arc<TrafficGroup>) -> Self {
        Self { group: Arc::clone(group), cells: OnceLock::new() }
    }

    /// Counts a request. Only worker number `worker` may call this with that number.
    #[inline]
    pub fn count(&self, worker: usize, request: EndedRequest) {
        let apart = self.cells.get_or_init(|| self.group.take_place().then(|| self.group.cells()));
        let cells = apart.as_ref().unwrap_or_else(|| self.group.others.get_or_init(|| self.group.cells()));
        if let Some(cell) = cells.get(worker) {
            cell.count(request);
        }
    }

    /// Has the processor fetch those of the worker's counts that every request changes.
    #[inline]
    pub fn prefetch(&self, worker: usize) {
        if let Some(Some(cells)) = self.cells.get()
            && let Some(cell) = cells.get(worker)
        {
            prefetch(cell);
        }
    }

    /// The sums over all workers; `None`: there was no request, or it is not counted apart.
    pub fn read(&self) -> Option<TrafficSums> {
        self.cells.get()?.as_ref().map(|cells| TrafficSums::of(cells))
    }
}

impl Drop for TrafficCounts {
    fn drop(&mut self) {
        if matches!(self.cells.get(), Some(Some(_))) {
            self.group.left.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl WorkerTraffic {
    #[inline]
    fn count(&self, request: EndedRequest) {
        self.latencies.record(request.latency);
        self.latency_us.add(request.latency.us());
        if let Some(counter) = self.first_bytes.get(request.first_byte.octave()) {
            counter.add(1);
        }
        self.first_byte_us.add(request.first_byte.us());
        // A reader that sees the end sees the latency, too.
        fence(Ordering::Release);
        if let Some(counter) = self.ends.get(request.end as usize) {
            counter.add(1);
        }
        if request.flag != Flag::None
            && let Some(counter) = self.flags.get(request.flag as usize)
        {
            counter.add(1);
        }
        self.bytes_in.add(request.bytes_in);
        self.bytes_out.add(request.bytes_out);
    }
}

impl TrafficSums {
    fn of(cells: &[WorkerTraffic]) -> Self {
        let mut sums = Self::default();
        let mut buckets = [0_u64; Latencies::BUCKETS];
        for cell in cells {
            for (sum, counter) in sums.ends.iter_mut().zip(&cell.ends) {
                *sum += counter.value();
            }
            for (sum, counter) in sums.flags.iter_mut().zip(&cell.flags) {
                *sum += counter.value();
            }
            sums.bytes_in += cell.bytes_in.value();
            sums.bytes_out += cell.bytes_out.value();
            fence(Ordering::Acquire);
            sums.latency_us += cell.latency_us.value();
            sums.first_byte_us += cell.first_byte_us.value();
            for (sum, counter) in sums.first_bytes.iter_mut().zip(&cell.first_bytes) {
                *sum += counter.value();
            }
            for (bucket, count) in cell.latencies.buckets() {
                if let Some(sum) = buckets.get_mut(usize::from(bucket)) {
                    *sum += count;
                }
            }
        }
        sums.buckets = (0..=u8::MAX).zip(buckets).filter(|(_, count)| *count > 0).collect();
        sums
    }

    /// Adds the requests of another.
    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.ends.iter_mut().zip(other.ends) {
            *sum += count;
        }
        for (sum, count) in self.flags.iter_mut().zip(other.flags) {
            *sum += count;
        }
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.latency_us += other.latency_us;
        self.first_byte_us += other.first_byte_us;
        for (sum, count) in self.first_bytes.iter_mut().zip(other.first_bytes) {
            *sum += count;
        }
        for &(bucket, count) in &other.buckets {
            match self.buckets.binary_search_by_key(&bucket, |(known, _)| *known) {
                Ok(place) => self.buckets.get_mut(place).into_iter().for_each(|(_, sum)| *sum += count),
                Err(place) => self.buckets.insert(place, (bucket, count)),
            }
        }
    }

    /// The number of requests.
    pub fn requests(&self) -> u64 {
        self.ends.iter().sum()
    }

    /// The requests since an earlier state. If that was of something else by the same name, which had more requests, it is all.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        if earlier.requests() > self.requests() {
            return self.clone();
        }
        let mut sums = self.clone();
        for (sum, before) in sums.ends.iter_mut().zip(earlier.ends) {
            *sum = sum.saturating_sub(before);
        }
        for (sum, before) in sums.flags.iter_mut().zip(earlier.flags) {
            *sum = sum.saturating_sub(before);
        }
        for (target, count) in &mut sums.failed_targets {
            let before = earlier.failed_targets.iter().find(|(known, _)| known == target);
            // Another target may have the address of one that is gone.
            *count = before.and_then(|(_, before)| count.checked_sub(*before)).unwrap_or(*count);
        }
        sums.failed_targets.retain(|(_, count)| *count > 0);
        sums.bytes_in = sums.bytes_in.saturating_sub(earlier.bytes_in);
        sums.bytes_out = sums.bytes_out.saturating_sub(earlier.bytes_out);
        sums.latency_us = sums.latency_us.saturating_sub(earlier.latency_us);
        sums.first_byte_us = sums.first_byte_us.saturating_sub(earlier.first_byte_us);
        for (sum, before) in sums.first_bytes.iter_mut().zip(earlier.first_bytes) {
            *sum = sum.saturating_sub(before);
        }
        let before = |bucket: u8| {
            let place = earlier.buckets.binary_search_by_key(&bucket, |(known, _)| *known);
            place.ok().and_then(|place| earlier.buckets.get(place)).map_or(0, |(_, count)| *count)
        };
        for (bucket, count) in &mut sums.buckets {
            *count = count.saturating_sub(before(*bucket));
        }
        sums.buckets.retain(|(_, count)| *count > 0);
        sums
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ended(status: u16, flag: Flag) -> EndedRequest {
        let latency = Latency::of(Duration::from_millis(1));
        let first_byte = Latency::of(Duration::from_micros(500));
        EndedRequest { latency, first_byte, end: End::of(status, flag), flag, bytes_in: 1, bytes_out: 10 }
    }

    /// The sums of some requests of a millisecond.
    fn sums_of(ends: [u64; 4], requests: u64) -> TrafficSums {
        let mut first_bytes = [0; Latencies::OCTAVES];
        first_bytes[9] = requests;
        TrafficSums {
            ends,
            flags: [0; Flag::ALL.len()],
            failed_targets: Vec::new(),
            bytes_in: requests,
            bytes_out: 10 * requests,
            latency_us: 1000 * requests,
            buckets: vec![(80, requests)],
            first_byte_us: 500 * requests,
            first_bytes,
        }
    }

    #[test]
    fn requests_are_summed_over_workers_by_their_end() {
        let traffic = TrafficCounts::new(&TrafficGroup::new(2, 10));
        assert_eq!(traffic.read(), None);
        for (worker, status, flag) in [
            (0, 200, Flag::None),
            (1, 304, Flag::None),
            (1, 404, Flag::None),
            (0, 404, Flag::NoRoute),
            (0, 503, Flag::NoRoute),
            (1, 500, Flag::None),
        ] {
            traffic.count(worker, ended(status, flag));
        }
        let sums = traffic.read().unwrap();
        let mut expected = sums_of([2, 1, 1, 2], 6);
        expected.flags[Flag::NoRoute as usize] = 2;
        assert_eq!(sums, expected);
        traffic.count(0, ended(200, Flag::None));
        let later = traffic.read().unwrap();
        let expected = sums_of([1, 0, 0, 0], 1);
        assert_eq!(later.since(&sums), expected);
        assert_eq!(sums.since(&later), sums, "another of the same name");
        assert_eq!(later.since(&later), TrafficSums::default());
        let mut sum = later.since(&sums);
        sum.add(&sums);
        assert_eq!(sum, later);
    }

    #[test]
    fn failures_of_targets_are_those_since_an_earlier_state() {
        let sums = |targets: &[(&str, u64)]| TrafficSums {
            failed_targets: targets.iter().map(|(target, count)| ((*target).into(), *count)).collect(),
            ..TrafficSums::default()
        };
        let earlier = sums(&[("a", 3), ("b", 7), ("c", 5)]);
        let later = sums(&[("a", 5), ("b", 7), ("c", 2), ("d", 1)]);
        assert_eq!(
            later.since(&earlier).failed_targets,
            sums(&[("a", 2), ("c", 2), ("d", 1)]).failed_targets
        );
    }

    #[test]
    fn those_beyond_the_most_are_counted_together_until_another_goes() {
        let group = TrafficGroup::new(1, 2);
        let mut all: Vec<_> = (0..4).map(|_| TrafficCounts::new(&group)).collect();
        for traffic in &all {
            traffic.count(0, ended(200, Flag::None));
        }
        let apart = all.iter().filter_map(TrafficCounts::read).map(|sums| sums.requests());
        assert_eq!(apart.sum::<u64>() + group.others().unwrap().requests(), 4);
        assert_eq!(group.others().unwrap().requests(), 2);
        all.remove(0);
        let next = TrafficCounts::new(&group);
        next.count(0, ended(200, Flag::None));
        assert!(next.read().is_some());
        drop((all, next));
        assert_eq!(group.left.load(Ordering::Relaxed), 2);
    }
}
