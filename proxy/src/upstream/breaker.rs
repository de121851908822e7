//! The error-rate circuit breaker. Closed, it counts failures; open, it refuses requests; half-open, it lets a few
//! probes through.
//!
//! All times are of the monotonic clock. Each worker counts in cells of its own, in buckets that are numbered from the
//! breaker's creation, so that a bucket is either counted as a whole or ignored.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use signalbox_config::{ErrorRate, Name};
use tracing::{info, warn};

/// The circuit breaker of one upstream, shared by all workers. Its state outlives revisions.
#[derive(Debug)]
pub struct Breaker {
    upstream: Name,
    pub settings: ErrorRate,
    state: Arc<State>,
}

/// A request that the breaker let through. If it is dropped without a report, it counts as no result.
#[derive(Debug)]
pub struct Trial {
    breaker: Arc<Breaker>,
    /// True if the breaker was half-open, so that the request is a probe.
    is_probe: bool,
    /// The generation in which it was let through. Its result counts in no other.
    generation: u64,
    over: bool,
}

/// The breaker's state, as the metric shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    Closed = 0,
    HalfOpen = 1,
    Open = 2,
}

#[derive(Debug)]
struct State {
    epoch: Instant,
    word: AtomicU64,
    /// The number of consecutive failures.
    in_a_row: AtomicU32,
    /// The number of times it opened.
    opened: AtomicU64,
    /// A new generation begins when the breaker opens and when it closes. Counts of earlier generations are ignored:
    /// each worker clears its own when it sees a new one.
    generation: AtomicU64,
    bucket: Duration,
    workers: Box<[Counts]>,
}

/// One worker's part of the window, which only that worker writes.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counts {
    generation: AtomicU64,
    buckets: [Bucket; BUCKETS],
}

#[derive(Debug, Default)]
struct Bucket {
    /// The bucket's number, counted from 1; 0: unused.
    number: AtomicU64,
    total: AtomicU64,
    failed: AtomicU64,
}

/// The whole state in one word, so that it changes atomically.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    /// Requests are refused until this time, in milliseconds of the breaker's clock.
    Open {
        until: u64,
    },
    /// The number of probes in flight, and the number that have succeeded.
    HalfOpen {
        since: u64,
        running: u8,
        succeeded: u8,
    },
}

const BUCKETS: usize = 10;

/// The number of probes that are let through; all of them must succeed.
const PROBES: u8 = 3;

impl Breaker {
    /// Creates a breaker that continues from the state of `before`.
    pub fn new(upstream: &Name, settings: &ErrorRate, workers: usize, before: Option<&Self>) -> Self {
        let state = match before {
            Some(before) if before.settings.window == settings.window => Arc::clone(&before.state),
            // Counts of a window of another length cannot be compared; the state can be kept.
            _ => Arc::new(State {
                epoch: before.map_or_else(Instant::now, |before| before.state.epoch),
                word: AtomicU64::new(before.map_or(0, |before| before.state.word.load(Ordering::Relaxed))),
                in_a_row: AtomicU32::new(0),
                opened: AtomicU64::new(before.map_or(0, Self::opened)),
                generation: AtomicU64::new(0),
                bucket: settings.window / BUCKETS as u32,
                workers: (0..workers).map(|_| Counts::default()).collect(),
            }),
        };
        Self { upstream: upstream.clone(), settings: settings.clone(), state }
    }

    /// Asks for permission to send a request. Returns `None` if the breaker refuses it.
    pub fn admit(self: &Arc<Self>, now: Instant) -> Option<Trial> {
        let at = self.state.millis(now);
        // The generation is read before the state: if the state changes in between, the generation differs, and this
        // request's result is ignored.
        let generation = self.state.generation.load(Ordering::Acquire);
        let mut known = self.state.word.load(Ordering::Acquire);
        let is_probe = loop {
            let next = match Phase::of(known) {
                Phase::Closed => break false,
                Phase::Open { until } if at < until => return None,
                Phase::Open { .. } => Phase::HalfOpen { since: at, running: 1, succeeded: 0 },
                Phase::HalfOpen { since, running, succeeded } if running + succeeded < PROBES => {
                    Phase::HalfOpen { since, running: running + 1, succeeded }
                }
                // Some probes hang or are slow: further ones may be sent.
                Phase::HalfOpen { since, succeeded, .. } if at >= since + self.open_for() => {
                    Phase::HalfOpen { since: at, running: 1, succeeded }
                }
                Phase::HalfOpen { .. } => return None,
            };
            match self.change(known, next) {
                Ok(()) => break true,
                Err(other) => known = other,
            }
        };
        Some(Trial { breaker: Arc::clone(self), is_probe, generation, over: false })
    }

    pub fn position(&self) -> Position {
        match Phase::of(self.state.word.load(Ordering::Relaxed)) {
            Phase::Closed => Position::Closed,
            Phase::HalfOpen { .. } => Position::HalfOpen,
            Phase::Open { .. } => Position::Open,
        }
    }

    /// The number of times it opened.
    pub fn opened(&self) -> u64 {
        self.state.opened.load(Ordering::Relaxed)
    }

    fn change(&self, known: u64, next: Phase) -> Result<(), u64> {
        let changed =
            self.state.word.compare_exchange(known, next.pack(), Ordering::AcqRel, Ordering::Acquire);
        changed.map(drop)
    }

    fn open_for(&self) -> u64 {
        (self.settings.open_for.as_millis() as u64).max(1)
    }

    /// Counts a request that ended and that was let through while the breaker was closed.
    fn count(&self, worker: usize, generation: u64, now: Instant, failed: bool) {
        let state = &self.state;
        if state.generation.load(Ordering::Acquire) != generation {
            return;
        }
        let number = state.number(now);
        if let Some(counts) = state.workers.get(worker) {
            counts.add(generation, number, failed);
        }
        if !failed {
            // The store is conditional: with a store per request, the workers would contend for the cache line.
            if state.in_a_row.load(Ordering::Relaxed) != 0 {
                state.in_a_row.store(0, Ordering::Relaxed);
            }
            return;
        }
        let in_a_row = state.in_a_row.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if in_a_row >= self.settings.min_requests || self.is_over(number) {
            self.open(Phase::Closed.pack(), now);
        }
    }

    /// True if too many requests in the window failed.
    fn is_over(&self, number: u64) -> bool {
        let (total, failed) = self.state.sum(number);
        total >= u64::from(self.settings.min_requests)
            && failed * 1_000_000 >= total * u64::from(self.settings.threshold)
    }

    fn open(&self, known: u64, now: Instant) -> bool {
        let until = self.state.millis(now) + self.open_for();
        if self.change(known, Phase::Open { until }).is_err() {
            return false;
        }
        self.state.opened.fetch_add(1, Ordering::Relaxed);
        self.state.clear();
        warn!(upstream = %self.upstream, open_for = ?self.settings.open_for, "circuit breaker: open");
        true
    }

    /// Counts a probe that ended; `None` if its result is unknown.
    fn probed(&self, generation: u64, now: Instant, succeeded: Option<bool>) {
        loop {
            let known = self.state.word.load(Ordering::Acquire);
            let Phase::HalfOpen { since, running, succeeded: before } = Phase::of(known) else { return };
            // The breaker has opened or closed since, so the result does not belong to this half-open phase.
            if self.state.generation.load(Ordering::Acquire) != generation {
                return;
            }
            let running = running.saturating_sub(1);
            let changed = match succeeded {
                Some(false) => self.open(known, now),
                Some(true) if before + 1 >= PROBES => {
                    let closed = self.change(known, Phase::Closed).is_ok();
                    if closed {
                        self.state.clear();
                        info!(upstream = %self.upstream, "circuit breaker: closed");
                    }
                    closed
                }
                Some(true) => {
                    self.change(known, Phase::HalfOpen { since, running, succeeded: before + 1 }).is_ok()
                }
                None => self.change(known, Phase::HalfOpen { since, running, succeeded: before }).is_ok(),
            };
            if changed {
                return;
            }
        }
    }
}

impl Trial {
    /// Reports the request's result.
    pub fn report(mut self, worker: usize, now: Instant, succeeded: bool) {
        self.over = true;
        match self.is_probe {
            false => self.breaker.count(worker, self.generation, now, !succeeded),
            true => self.breaker.probed(self.generation, now, Some(succeeded)),
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if self.is_probe && !self.over {
            self.breaker.probed(self.generation, Instant::now(), None);
        }
    }
}

impl State {
    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_millis() as u64
    }

    /// The number of the bucket for `now`.
    fn number(&self, now: Instant) -> u64 {
        let bucket = self.bucket.as_micros().max(1);
        (now.saturating_duration_since(self.epoch).as_micros() / bucket) as u64 + 1
    }

    /// The number of requests that ended in the window up to bucket `number`, and how many of them failed.
    fn sum(&self, number: u64) -> (u64, u64) {
        let generation = self.generation.load(Ordering::Acquire);
        let workers = self.workers.iter();
        let current = workers.filter(|counts| counts.generation.load(Ordering::Acquire) == generation);
        current.flat_map(|counts| &counts.buckets).fold((0, 0), |(total, failed), bucket| {
            let at = bucket.number.load(Ordering::Acquire);
            if at == 0 || at > number || at + BUCKETS as u64 <= number {
                return (total, failed);
            }
            (total + bucket.total.load(Ordering::Relaxed), failed + bucket.failed.load(Ordering::Relaxed))
        })
    }

    fn clear(&self) {
        self.in_a_row.store(0, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

impl Counts {
    fn add(&self, generation: u64, number: u64, failed: bool) {
        if self.generation.load(Ordering::Relaxed) != generation {
            self.buckets.iter().for_each(|bucket| bucket.begin(0));
            self.generation.store(generation, Ordering::Release);
        }
        let Some(bucket) = self.buckets.get(number as usize % BUCKETS) else { return };
        if bucket.number.load(Ordering::Relaxed) != number {
            bucket.begin(number);
        }
        let add = |cell: &AtomicU64, n: u64| cell.store(cell.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        add(&bucket.total, 1);
        add(&bucket.failed, failed.into());
    }
}

impl Bucket {
    fn begin(&self, number: u64) {
        self.total.store(0, Ordering::Relaxed);
        self.failed.store(0, Ordering::Relaxed);
        self.number.store(number, Ordering::Release);
    }
}

impl Phase {
    fn of(word: u64) -> Self {
        let time = word >> 18;
        match word & 3 {
            1 => Self::Open { until: time },
            2 => Self::HalfOpen { since: time, running: (word >> 2) as u8, succeeded: (word >> 10) as u8 },
            _ => Self::Closed,
        }
    }

    fn pack(self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::Open { until } => until << 18 | 1,
            Self::HalfOpen { since, running, succeeded } => {
                since << 18 | u64::from(succeeded) << 10 | u64::from(running) << 2 | 2
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> ErrorRate {
        ErrorRate {
            threshold: 500_000,
            window: Duration::from_secs(1),
            min_requests: 10,
            open_for: Duration::from_secs(5),
            timeout: None,
            fallback: None,
        }
    }

    fn breaker(settings: &ErrorRate) -> Arc<Breaker> {
        Arc::new(Breaker::new(&"u".parse().unwrap(), settings, 2, None))
    }

    /// Runs requests that end at once, on the workers in turn. Returns the number of requests that were let through.
    fn run(breaker: &Arc<Breaker>, at: Instant, outcomes: impl IntoIterator<Item = bool>) -> usize {
        let trials = outcomes.into_iter().enumerate().filter_map(|(index, succeeded)| {
            breaker.admit(at).map(|trial| trial.report(index % 2, at, succeeded))
        });
        trials.count()
    }

    fn after(breaker: &Breaker, millis: u64) -> Instant {
        breaker.state.epoch + Duration::from_millis(millis)
    }

    #[test]
    fn it_opens_at_the_threshold_and_not_before() {
        let breaker = breaker(&settings());
        let at = after(&breaker, 10);
        // Too few requests trip nothing, and failures below the threshold are tolerated.
        assert_eq!(run(&breaker, at, [true, false, false, false, false, true, true, true, true]), 9);
        assert_eq!(breaker.position(), Position::Closed);
        assert_eq!(run(&breaker, at, [true, false]), 2);
        assert_eq!(breaker.position(), Position::Closed, "5 of 11");
        assert_eq!(run(&breaker, at, [false, true]), 1, "6 of 12");
        assert_eq!((breaker.position(), breaker.opened()), (Position::Open, 1));
    }

    #[test]
    fn it_counts_only_what_is_in_the_window() {
        let breaker = breaker(&settings());
        run(&breaker, after(&breaker, 0), [true, false, true, false, true, false, true, false, true]);
        // Half of the window's requests would be enough, but these belong to the previous window.
        run(&breaker, after(&breaker, 1100), [false, true, false]);
        assert_eq!(breaker.position(), Position::Closed);
        // No count is lost between the buckets of one window.
        for bucket in 0..9 {
            run(&breaker, after(&breaker, 3000 + bucket * 100), [bucket % 2 == 0]);
        }
        assert_eq!(breaker.state.sum(breaker.state.number(after(&breaker, 3800))), (9, 4));
    }

    #[test]
    fn failures_in_a_row_open_it_whatever_came_before() {
        let breaker = breaker(&settings());
        let at = after(&breaker, 10);
        run(&breaker, at, vec![true; 10_000]);
        assert_eq!(run(&breaker, at, vec![false; 20]), 10);
        assert_eq!(breaker.position(), Position::Open);
    }

    #[test]
    fn a_few_requests_try_and_close_it_when_all_succeed() {
        let breaker = breaker(&settings());
        run(&breaker, after(&breaker, 0), vec![false; 10]);
        assert!(breaker.admit(after(&breaker, 4999)).is_none());
        let at = after(&breaker, 5000);
        let mut probes: Vec<_> = (0..5).filter_map(|_| breaker.admit(at)).collect();
        assert_eq!((probes.len(), breaker.position()), (3, Position::HalfOpen));
        // A probe that is dropped makes room for another.
        probes.truncate(2);
        probes.extend(breaker.admit(at));
        assert!(breaker.admit(at).is_none());
        probes.into_iter().for_each(|probe| probe.report(0, at, true));
        assert_eq!(breaker.position(), Position::Closed);
        // The window starts over: requests from before the opening do not count.
        assert_eq!(run(&breaker, at, vec![false; 9]), 9);
        assert_eq!(breaker.position(), Position::Closed);
    }

    #[test]
    fn one_failure_of_those_that_try_opens_it_again() {
        let breaker = breaker(&settings());
        run(&breaker, after(&breaker, 0), vec![false; 10]);
        let at = after(&breaker, 6000);
        let probes: Vec<_> = (0..3).filter_map(|_| breaker.admit(at)).collect();
        for (probe, succeeded) in probes.into_iter().zip([true, false, true]) {
            probe.report(1, at, succeeded);
        }
        assert_eq!((breaker.position(), breaker.opened()), (Position::Open, 2));
        assert!(breaker.admit(after(&breaker, 10_999)).is_none());
        assert!(breaker.admit(after(&breaker, 11_000)).is_some());
    }

    #[test]
    fn requests_that_hang_while_trying_do_not_hold_it_half_open() {
        let breaker = breaker(&settings());
        run(&breaker, after(&breaker, 0), vec![false; 10]);
        let hanging: Vec<_> = (0..3).filter_map(|_| breaker.admit(after(&breaker, 5000))).collect();
        assert!(breaker.admit(after(&breaker, 9999)).is_none());
        let at = after(&breaker, 10_000);
        assert_eq!(run(&breaker, at, [true; 3]), 3);
        assert_eq!(breaker.position(), Position::Closed);
        // These results belong to an earlier generation.
        hanging.into_iter().for_each(|trial| trial.report(0, at, false));
        assert_eq!(breaker.position(), Position::Closed);
    }

    #[test]
    fn answers_that_take_longer_than_it_is_open_close_it() {
        let breaker = breaker(&settings());
        run(&breaker, after(&breaker, 0), vec![false; 10]);
        // One request per second, each answered after 8 seconds; the breaker stays open for 5 at a time.
        let mut running = std::collections::VecDeque::new();
        for second in 5..60 {
            let at = after(&breaker, second * 1000);
            while running.front().is_some_and(|(begun, _)| second >= *begun + 8) {
                let (_, trial): (u64, Trial) = running.pop_front().unwrap();
                trial.report(0, at, true);
            }
            running.extend(breaker.admit(at).map(|trial| (second, trial)));
        }
        assert_eq!((breaker.position(), breaker.opened()), (Position::Closed, 1));
    }

    #[test]
    fn requests_from_before_it_opened_say_nothing_once_it_is_closed_again() {
        let breaker = breaker(&settings());
        let slow: Vec<_> = (0..10).filter_map(|_| breaker.admit(after(&breaker, 0))).collect();
        run(&breaker, after(&breaker, 10), vec![false; 10]);
        let at = after(&breaker, 6000);
        assert_eq!(run(&breaker, at, [true; 3]), 3);
        // Nine consecutive failures, which successes from before the opening do not interrupt.
        assert_eq!(run(&breaker, at, [false; 9]), 9);
        for (index, trial) in slow.into_iter().enumerate() {
            trial.report(index % 2, at, index >= 5);
            assert_eq!(breaker.position(), Position::Closed);
        }
        assert_eq!(run(&breaker, at, [false]), 1);
        assert_eq!((breaker.position(), breaker.opened()), (Position::Open, 2));
    }

    #[test]
    fn what_it_knows_outlives_a_revision() {
        let before = breaker(&settings());
        run(&before, after(&before, 0), vec![false; 10]);
        for window in [1, 2] {
            let changed = ErrorRate { window: Duration::from_secs(window), ..settings() };
            let breaker = Arc::new(Breaker::new(&"u".parse().unwrap(), &changed, 2, Some(&*before)));
            assert_eq!(breaker.position(), Position::Open);
            assert!(breaker.admit(after(&before, 4000)).is_none(), "{window}");
        }
    }
}
