use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::failure::LastError;

/// One address of an upstream, and what is known of it. It outlives revisions that do not take it away.
#[derive(Debug)]
pub struct Target {
    /// As it was configured: `users.internal:8080`, `[::1]:80`.
    pub label: Box<str>,
    pub address: SocketAddr,
    /// Requests that are under way, where somebody asks for it.
    in_flight: AtomicU32,
    latency: Latency,
    /// Requests that failed in a row, where that is watched.
    failures: AtomicU32,
    health: Mutex<Health>,
    /// Why a request got no answer last.
    last_error: Mutex<Option<LastError>>,
}

/// What became of a request, as far as its target is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered with a status below 500.
    Good,
    /// It was answered with a status of 500 or above.
    ServerError,
    /// There was no connection.
    ConnectFailure,
    /// The connection broke, or what came was no answer.
    Reset,
    /// There was no answer in time.
    Timeout,
    /// It was given up for another reason.
    Abandoned,
}

/// A target's health. Only the control side looks at it: requests see a view that is made from it.
#[derive(Debug)]
pub struct Health {
    pub checks: Checks,
    /// The task whose checks count: others are of a revision that is not in use any more.
    pub checked_by: Option<tokio::task::Id>,
    pub ejection: Ejection,
    /// Whether it is to get requests, all in all.
    pub healthy: bool,
    /// Since when that is so.
    pub since: Timestamp,
    /// When its slow start began; `None`: it has none.
    pub warming: Option<Instant>,
}

/// What active checks have found.
#[derive(Debug, Default)]
pub struct Checks {
    /// `None`: there was none yet.
    pub passed: Option<bool>,
    /// Checks in a row that say otherwise.
    pub against: u32,
    /// Why the last one failed, if it did.
    pub failure: Option<String>,
}

/// What passive checks have found.
#[derive(Debug, Default)]
pub struct Ejection {
    pub until: Option<Instant>,
    /// How often it was ejected, those that are forgotten left out.
    pub count: u32,
    /// When one was forgotten last, or it came back.
    pub eased: Option<Instant>,
}

/// A moving average of how long answers take, which a peak lifts at once and which falls slowly. As in Finagle and
/// Linkerd, "peak EWMA". Written by several workers at a time: a sample that is lost does no harm.
#[derive(Debug)]
struct Latency {
    /// Microseconds, the bits of an `f64`; 0: there was no sample.
    average: AtomicU64,
    /// Of the last sample: microseconds since `born`.
    at: AtomicU64,
    born: Instant,
}

/// How long it takes a past latency to lose most of its weight.
const DECAY: Duration = Duration::from_secs(10);

/// What a request that failed counts as at least: a target that fails fast must not look fast.
const FAILED: Duration = Duration::from_secs(1);

/// The cost of a target that has answered nothing, with one request under way, microseconds: it is to get one request to
/// begin with, and not all.
const UNKNOWN: f64 = 1e9;

/// The share of an average below which it is forgotten: after three times [`DECAY`].
const FORGOTTEN: f64 = 0.05;

/// No ejection lasts longer, unless the first one is to; Envoy's `max_ejection_time`.
const MAX_EJECTION: Duration = Duration::from_secs(300);

impl Target {
    pub fn new(label: &str, address: SocketAddr, now: Instant) -> Self {
        Self {
            label: label.into(),
            address,
            in_flight: AtomicU32::new(0),
            latency: Latency { average: AtomicU64::new(0), at: AtomicU64::new(0), born: now },
            failures: AtomicU32::new(0),
            health: Mutex::new(Health {
                checks: Checks::default(),
                checked_by: None,
                ejection: Ejection::default(),
                healthy: true,
                since: Timestamp::now(),
                warming: None,
            }),
            last_error: Mutex::default(),
        }
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    #[inline]
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    #[inline]
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Its latency of late times the requests it would then have: what peak EWMA compares.
    #[inline]
    pub fn cost(&self, now: Instant) -> f64 {
        let busy = f64::from(self.in_flight());
        match self.latency.now(now) {
            Some(latency) => latency * (busy + 1.0),
            None => UNKNOWN * busy,
        }
    }

    /// Notes how long the head of an answer took; `None`: there was none.
    #[inline]
    pub fn took(&self, took: Option<Duration>, outcome: Outcome, now: Instant) {
        match (outcome, took) {
            (Outcome::Abandoned, _) => {}
            (Outcome::Good, Some(took)) => self.latency.note(took, now),
            (_, took) => self.latency.note(took.unwrap_or_default().max(FAILED), now),
        }
    }

    /// Notes whether a request failed. Whether that makes `limit` failures in a row, this very moment.
    #[inline]
    pub fn count(&self, outcome: Outcome, limit: u32) -> bool {
        match outcome {
            Outcome::Abandoned => false,
            Outcome::Good => {
                // Most of the time there is nothing to write.
                if self.failures.load(Ordering::Relaxed) != 0 {
                    self.failures.store(0, Ordering::Relaxed);
                }
                false
            }
            Outcome::ServerError | Outcome::ConnectFailure | Outcome::Reset | Outcome::Timeout => {
                self.failures.fetch_add(1, Ordering::Relaxed).wrapping_add(1) == limit
            }
        }
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    pub fn forget_failures(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// Why a request got no answer last; `None`: there was none such. Requests that are answered do not look at it.
    pub fn last_error(&self) -> MutexGuard<'_, Option<LastError>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only for the control side.
    pub fn health(&self) -> MutexGuard<'_, Health> {
        // What is behind it is whole after every statement.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    /// Says what it is; whether that is news.
    pub fn set(&mut self, healthy: bool, now: Instant, slow_start: bool) -> bool {
        if self.healthy == healthy {
            return false;
        }
        self.healthy = healthy;
        self.since = Timestamp::now();
        self.warming = (healthy && slow_start).then_some(now);
        true
    }
}

impl Checks {
    /// Notes a check; whether it turns the verdict. The first one decides alone.
    pub fn note(&mut self, result: Result<(), String>, healthy_after: u32, unhealthy_after: u32) -> bool {
        let passed = result.is_ok();
        self.failure = result.err();
        let Some(verdict) = self.passed else {
            self.passed = Some(passed);
            return !passed;
        };
        if verdict == passed {
            self.against = 0;
            return false;
        }
        self.against += 1;
        if self.against < if passed { healthy_after } else { unhealthy_after } {
            return false;
        }
        self.against = 0;
        self.passed = Some(passed);
        true
    }
}

impl Ejection {
    /// Ejects it: for `base` the first time, twice that the second time and so on. One ejection is forgotten for each
    /// `interval` that it was back.
    pub fn eject(&mut self, base: Duration, interval: Duration, now: Instant) {
        if let Some(eased) = self.eased {
            let intervals = now.saturating_duration_since(eased).as_nanos() / interval.as_nanos().max(1);
            self.count = self.count.saturating_sub(u32::try_from(intervals).unwrap_or(u32::MAX));
        }
        self.count = self.count.saturating_add(1);
        let longest = MAX_EJECTION.max(base);
        self.until = Some(now + base.saturating_mul(self.count).min(longest));
        self.eased = None;
    }

    /// Lets it back when its time is over; whether that is now.
    pub fn ease(&mut self, now: Instant) -> bool {
        let over = self.until.is_some_and(|until| until <= now);
        if over {
            self.until = None;
            self.eased = Some(now);
        }
        over
    }
}

impl Latency {
    fn note(&self, took: Duration, now: Instant) {
        let sample = took.as_micros().max(1) as f64;
        let average = match self.now(now) {
            Some(average) if average > sample => {
                let kept = self.kept(now);
                // What it fell by since the last sample is made up for by this one.
                average + sample * (1.0 - kept)
            }
            _ => sample,
        };
        self.average.store(average.to_bits(), Ordering::Relaxed);
        self.at.store(now.saturating_duration_since(self.born).as_micros() as u64, Ordering::Relaxed);
    }

    /// The average, which falls while there are no samples, so that a target that was slow is tried again. `None`: there have
    /// been none for so long that it says nothing any more.
    fn now(&self, now: Instant) -> Option<f64> {
        let average = f64::from_bits(self.average.load(Ordering::Relaxed));
        let kept = self.kept(now);
        (average > 0.0 && kept > FORGOTTEN).then_some(average * kept)
    }

    /// The share of the average that is left.
    fn kept(&self, now: Instant) -> f64 {
        let now = now.saturating_duration_since(self.born).as_micros() as u64;
        let passed = now.saturating_sub(self.at.load(Ordering::Relaxed)) as f64;
        (-passed / DECAY.as_micros() as f64).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn target(now: Instant) -> Target {
        Target::new("a:1", SocketAddr::from(([127, 0, 0, 1], 1)), now)
    }

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let now = Instant::now();
        let target = target(now);
        let note = |ms: u64, at: Instant| target.took(Some(Duration::from_millis(ms)), Outcome::Good, at);
        assert_eq!(target.cost(now), 0.0, "one that is new is tried");
        target.begin();
        assert!(target.cost(now) >= UNKNOWN, "but not by all at once");
        target.end();
        note(10, now);
        assert!((target.cost(now) - 10_000.0).abs() < 1.0);
        note(200, now);
        assert!((target.cost(now) - 200_000.0).abs() < 1.0, "a peak");
        for second in 1..=60 {
            note(10, now + SECOND * second);
        }
        let settled = target.cost(now + SECOND * 60);
        assert!((9_000.0..12_000.0).contains(&settled), "{settled}");
        assert!(target.cost(now + SECOND * 100) < 500.0, "one that gets nothing is tried again");
        target.took(None, Outcome::ConnectFailure, now + SECOND * 100);
        assert!(target.cost(now + SECOND * 100) >= 1e6, "to fail fast is not to be fast");
        target.begin();
        target.begin();
        assert!(target.cost(now + SECOND * 100) >= 3e6, "the busy cost more");
    }

    #[test]
    fn failures_count_in_a_row() {
        let target = target(Instant::now());
        for (outcome, reached) in [
            (Outcome::ServerError, false),
            (Outcome::Timeout, false),
            (Outcome::Good, false),
            (Outcome::Reset, false),
            (Outcome::Abandoned, false),
            (Outcome::ConnectFailure, false),
            (Outcome::ServerError, true),
            (Outcome::ServerError, false),
        ] {
            assert_eq!(target.count(outcome, 3), reached, "{outcome:?}");
        }
        assert_eq!(target.failures(), 4);
    }

    #[test]
    fn the_first_check_decides_alone_and_later_ones_in_a_row() {
        for (first, then, expected) in
            [(true, "--+---", "      u"), (true, "--+--+--", ""), (false, "+-++", "    h"), (false, "-", "")]
        {
            let mut checks = Checks::default();
            let result = |passed: bool| if passed { Ok(()) } else { Err("no".to_owned()) };
            assert_eq!(checks.note(result(first), 2, 3), !first);
            for (index, check) in then.chars().enumerate() {
                let turned = checks.note(result(check == '+'), 2, 3);
                let told = expected.chars().nth(index + 1).filter(|it| *it != ' ');
                assert_eq!(turned, told.is_some(), "{then} at {index}");
                if let Some(told) = told {
                    assert_eq!(checks.passed, Some(told == 'h'));
                }
            }
        }
    }

    #[test]
    fn ejections_grow_and_are_forgotten() {
        let (base, interval) = (30 * SECOND, 10 * SECOND);
        let mut now = Instant::now();
        let mut ejection = Ejection::default();
        for (back, lasts) in [(0, 30), (1, 60), (1, 90), (25, 60), (1000, 30), (0, 60), (0, 90)] {
            now += back * SECOND;
            ejection.eject(base, interval, now);
            assert_eq!(ejection.until, Some(now + lasts * SECOND));
            assert!(!ejection.ease(now + (lasts - 1) * SECOND));
            now += lasts * SECOND;
            assert!(ejection.ease(now) && !ejection.ease(now));
        }
        for _ in 0..20 {
            ejection.eject(base, interval, now);
            ejection.ease(now + MAX_EJECTION);
        }
        ejection.eject(base, interval, now);
        assert_eq!(ejection.until, Some(now + MAX_EJECTION));
    }
}
