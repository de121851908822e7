use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::failure::LastError;
use crate::core::outcome::Outcome;

/// One address of an upstream, with its state. It outlives revisions that keep the address.
#[derive(Debug)]
pub struct Target {
    /// The configured form: `users.internal:8080`, `[::1]:80`.
    pub label: Box<str>,
    pub address: SocketAddr,
    /// Requests in flight, if a policy needs the count.
    in_flight: AtomicU32,
    latency: Latency,
    /// Consecutive failures, if a policy needs the count.
    failures: AtomicU32,
    /// The number of requests that failed.
    failed: AtomicU64,
    health: Mutex<Health>,
    /// The most recent reason why a request got no response.
    last_error: Mutex<Option<LastError>>,
}

/// A target's health. Only the control side reads it: requests see a view that is made from it.
#[derive(Debug)]
pub struct Health {
    pub checks: Checks,
    /// The task whose results count. Other tasks belong to revisions that are no longer in use.
    pub checked_by: Option<tokio::task::Id>,
    pub ejection: Ejection,
    /// True if the target is to get requests.
    pub healthy: bool,
    /// The time of the last change of `healthy`.
    pub since: Timestamp,
    /// The time at which its slow start began; `None` if it has none.
    pub warming: Option<Instant>,
}

/// The state of active checks.
#[derive(Debug, Default)]
pub struct Checks {
    /// The verdict; `None` before the first check.
    pub passed: Option<bool>,
    /// The number of consecutive checks that contradict the verdict.
    pub against: u32,
    /// The reason why the last check failed, if it did.
    pub failure: Option<String>,
}

/// The state of passive checks.
#[derive(Debug, Default)]
pub struct Ejection {
    pub until: Option<Instant>,
    /// The number of ejections, without those that are forgotten.
    pub count: u32,
    /// The time at which an ejection was last forgotten, or at which the target returned.
    pub forgotten_at: Option<Instant>,
}

/// A moving average of response times, which rises at once on a peak and falls slowly: "peak EWMA" as in Finagle and
/// Linkerd. Several workers write it concurrently; a lost sample does no harm.
#[derive(Debug)]
struct Latency {
    /// Microseconds, as the bits of an `f64`; 0: no sample yet.
    average: AtomicU64,
    /// The time of the last sample: microseconds since `born`.
    at: AtomicU64,
    born: Instant,
}

/// The time constant with which a past latency loses its weight.
const DECAY: Duration = Duration::from_secs(10);

/// The minimum latency that a failed request counts as: a target that fails fast must not look fast.
const FAILED: Duration = Duration::from_secs(1);

/// The cost, in microseconds, of a target without samples that has one request in flight. It gets one request to begin
/// with, and not all.
const UNKNOWN: f64 = 1e9;

/// The weight below which an average is discarded: it is reached after three times [`DECAY`].
const FORGOTTEN: f64 = 0.05;

/// The longest ejection, unless the base ejection is longer; Envoy's `max_ejection_time`.
const MAX_EJECTION: Duration = Duration::from_secs(300);

impl fmt::Display for Target {
    /// Writes the configured form, with the address if that is another: a name may have several.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address.to_string();
        if *self.label == *address { f.write_str(&address) } else { write!(f, "{} ({address})", self.label) }
    }
}

impl Target {
    pub fn new(label: &str, address: SocketAddr, now: Instant) -> Self {
        Self {
            label: label.into(),
            address,
            in_flight: AtomicU32::new(0),
            latency: Latency { average: AtomicU64::new(0), at: AtomicU64::new(0), born: now },
            failures: AtomicU32::new(0),
            failed: AtomicU64::new(0),
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

    /// Its recent latency times the number of requests that it would then have: the cost that peak EWMA compares.
    #[inline]
    pub fn cost(&self, now: Instant) -> f64 {
        let busy = f64::from(self.in_flight());
        match self.latency.now(now) {
            Some(latency) => latency * (busy + 1.0),
            None => UNKNOWN * busy,
        }
    }

    /// Records the time to a response head; `None` if there was none.
    #[inline]
    pub fn record_latency(&self, took: Option<Duration>, outcome: Outcome, now: Instant) {
        match (outcome, took) {
            (Outcome::Abandoned, _) => {}
            (Outcome::Good, Some(took)) => self.latency.record(took, now),
            (_, took) => self.latency.record(took.unwrap_or_default().max(FAILED), now),
        }
    }

    /// Counts a request's outcome. Returns true if this failure is the one that makes `limit` consecutive failures.
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

    /// Counts a request to it that failed.
    pub fn count_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of requests to it that failed since it is known.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// The number of consecutive failures.
    pub fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    pub fn forget_failures(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// The most recent reason why a request got no response, if any. Requests that are answered do not lock it.
    pub fn last_error(&self) -> MutexGuard<'_, Option<LastError>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the target's health; for the control side only.
    pub fn health(&self) -> MutexGuard<'_, Health> {
        // The value behind the lock is consistent after every statement, so poisoning can be ignored.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    /// Sets the health. Returns true if it has changed.
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
    /// Records the result of a check. Returns true if it changes the verdict. The first check decides alone.
    pub fn record(&mut self, result: Result<(), String>, healthy_after: u32, unhealthy_after: u32) -> bool {
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
    /// Ejects the target: for `base` the first time, twice that the second time and so on. One ejection is forgotten
    /// for each `interval` since its return.
    pub fn eject(&mut self, base: Duration, interval: Duration, now: Instant) {
        if let Some(forgotten_at) = self.forgotten_at {
            let intervals =
                now.saturating_duration_since(forgotten_at).as_nanos() / interval.as_nanos().max(1);
            self.count = self.count.saturating_sub(u32::try_from(intervals).unwrap_or(u32::MAX));
        }
        self.count = self.count.saturating_add(1);
        let longest = MAX_EJECTION.max(base);
        self.until = Some(now + base.saturating_mul(self.count).min(longest));
        self.forgotten_at = None;
    }

    /// Returns the target to service when its ejection is over. Returns true if that is now.
    pub fn end_if_due(&mut self, now: Instant) -> bool {
        let over = self.until.is_some_and(|until| until <= now);
        if over {
            self.until = None;
            self.forgotten_at = Some(now);
        }
        over
    }
}

impl Latency {
    fn record(&self, took: Duration, now: Instant) {
        let sample = took.as_micros().max(1) as f64;
        let average = match self.now(now) {
            Some(average) if average > sample => {
                let kept = self.kept(now);
                // The sample makes up for the decay since the last one.
                average + sample * (1.0 - kept)
            }
            _ => sample,
        };
        self.average.store(average.to_bits(), Ordering::Relaxed);
        self.at.store(now.saturating_duration_since(self.born).as_micros() as u64, Ordering::Relaxed);
    }

    /// The average, which decays while there are no samples, so that a slow target is tried again. Returns `None` if
    /// the last sample is too old to say anything.
    fn now(&self, now: Instant) -> Option<f64> {
        let average = f64::from_bits(self.average.load(Ordering::Relaxed));
        let kept = self.kept(now);
        (average > 0.0 && kept > FORGOTTEN).then_some(average * kept)
    }

    /// The remaining weight of the average.
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
        let record =
            |ms: u64, at: Instant| target.record_latency(Some(Duration::from_millis(ms)), Outcome::Good, at);
        assert_eq!(target.cost(now), 0.0, "one that is new is tried");
        target.begin();
        assert!(target.cost(now) >= UNKNOWN, "but not by all at once");
        target.end();
        record(10, now);
        assert!((target.cost(now) - 10_000.0).abs() < 1.0);
        record(200, now);
        assert!((target.cost(now) - 200_000.0).abs() < 1.0, "a peak");
        for second in 1..=60 {
            record(10, now + SECOND * second);
        }
        let settled = target.cost(now + SECOND * 60);
        assert!((9_000.0..12_000.0).contains(&settled), "{settled}");
        assert!(target.cost(now + SECOND * 100) < 500.0, "one that gets nothing is tried again");
        target.record_latency(None, Outcome::ConnectFailure, now + SECOND * 100);
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
            assert_eq!(checks.record(result(first), 2, 3), !first);
            for (index, check) in then.chars().enumerate() {
                let turned = checks.record(result(check == '+'), 2, 3);
                let verdict = expected.chars().nth(index + 1).filter(|it| *it != ' ');
                assert_eq!(turned, verdict.is_some(), "{then} at {index}");
                if let Some(verdict) = verdict {
                    assert_eq!(checks.passed, Some(verdict == 'h'));
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
            assert!(!ejection.end_if_due(now + (lasts - 1) * SECOND));
            now += lasts * SECOND;
            assert!(ejection.end_if_due(now) && !ejection.end_if_due(now));
        }
        for _ in 0..20 {
            ejection.eject(base, interval, now);
            ejection.end_if_due(now + MAX_EJECTION);
        }
        ejection.eject(base, interval, now);
        assert_eq!(ejection.until, Some(now + MAX_EJECTION));
    }
}
