//! An adaptive limit of concurrent requests, by the gradient of their latency.

use std::hash::{Hash, Hasher};
use std::time::Duration;

/// The bounds of the adaptation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bounds {
    pub(super) min: u32,
    pub(super) max: u32,
    /// The latency that counts as normal, as a multiple of the long average. It is never below 1.25, so that the scatter of an
    /// average over few samples does no harm.
    pub(super) tolerance: f64,
    /// The number of requests that may wait at the upstream without a reason to go down.
    pub(super) queue: f64,
}

impl Hash for Bounds {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.min, self.max, self.tolerance.to_bits(), self.queue.to_bits()).hash(state);
    }
}

/// The part of each step that is taken.
const SMOOTHING: f64 = 0.2;
/// The number of samples over which the long average runs, and the number in which it is a plain average.
const LONG_WINDOW: f64 = 600.0;
const WARM_UP: f64 = 10.0;
/// The number of samples that a probe needs, and of updates at the minimum that lead to one.
const PROBE_SAMPLES: f64 = 10.0;
const UPDATES_AT_MIN: u32 = 5;
/// The pause after a probe before the next one: at the minimum, and between the bounds.
const PAUSE_AT_MIN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_secs(60);
/// The bounds of the time that a probe may take.
const PROBE_TIME: [f64; 2] = [10.0, 120.0];
/// No latency counts for more.
const LONGEST: f64 = 3600.0;

/// A request that has been answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// The time at which it began.
    pub(super) began: Duration,
    /// The number of requests that were under way then, itself included.
    pub(super) in_flight: u32,
    pub(super) latency: Duration,
}

/// The limit, as far as samples have brought it. It compares each latency with the long average of latencies: while the
/// upstream is as fast as usual, the limit grows by `queue` at a time; as it becomes slower, the limit shrinks in proportion.
///
/// A probe measures the normal latency anew, with few requests under way, so that no queue is part of it. It begins when the
/// limit stays at the minimum, and from time to time while the limit is below the maximum.
#[derive(Debug, Clone)]
pub(super) struct Gradient {
    bounds: Bounds,
    limit: f64,
    /// Seconds; of no meaning before the first sample.
    long: f64,
    samples: f64,
    /// The number of updates in a row that left the limit at the minimum.
    updates_at_min: u32,
    probe: Option<Probe>,
    /// The beginning of the last probe. What began before it says nothing about the time since.
    valid_from: Duration,
    /// The end of the last probe, or the time of the first sample.
    probed_at: Option<Duration>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Probe {
    sum: f64,
    samples: f64,
}

impl Gradient {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            limit: f64::from(bounds.min),
            long: 0.0,
            samples: 0.0,
            updates_at_min: 0,
            probe: None,
            valid_from: Duration::ZERO,
            probed_at: None,
        }
    }

    /// The number of requests that may be under way. A probe lets a quarter of the minimum through.
    pub(super) fn limit(&mut self, now: Duration) -> u32 {
        let longest = (3.0 * self.long).clamp(PROBE_TIME[0], PROBE_TIME[1]);
        if self.probe.is_some() && now.saturating_sub(self.valid_from).as_secs_f64() > longest {
            self.end_probe(now);
        }
        match self.probe {
            Some(_) => (self.bounds.min / 4).max(1),
            // Between the bounds, and so in range.
            None => self.limit as u32,
        }
    }

    /// Learns from a request that was answered at `now`.
    pub(super) fn learn(&mut self, sample: Sample, now: Duration) {
        if sample.began < self.valid_from {
            return;
        }
        let short = sample.latency.as_secs_f64().clamp(1e-6, LONGEST);
        match &mut self.probe {
            Some(probe) => {
                probe.sum += short;
                probe.samples += 1.0;
                if probe.samples >= PROBE_SAMPLES {
                    self.end_probe(now);
                }
            }
            None => {
                self.update(short, sample.in_flight);
                self.probe_if_due(now);
            }
        }
    }

    fn update(&mut self, short: f64, in_flight: u32) {
        let min = f64::from(self.bounds.min);
        let fills_half = f64::from(in_flight) >= self.limit / 2.0;
        // Latency under a high load says nothing about the normal one, unless it is lower: otherwise the average would follow the
        // queue that the limit itself lets grow, and the limit would grow for ever.
        if !fills_half || self.limit <= 1.5 * min || short < self.long {
            self.samples += 1.0;
            let weight = if self.samples <= WARM_UP { 1.0 / self.samples } else { 2.0 / (LONG_WINDOW + 1.0) };
            self.long += (short - self.long) * weight;
        }
        // After a load that lasted, the average comes down faster.
        if self.long > 2.0 * short {
            self.long *= 0.95;
        }
        // Load below half of the limit says nothing about the upstream at the limit.
        if !fills_half {
            return;
        }
        let gradient = (self.bounds.tolerance * self.long / short).clamp(0.5, 1.0);
        let wanted = self.limit * gradient + self.bounds.queue;
        let next = self.limit * (1.0 - SMOOTHING) + wanted * SMOOTHING;
        self.updates_at_min = if next < min { self.updates_at_min + 1 } else { 0 };
        self.limit = next.clamp(min, f64::from(self.bounds.max));
    }

    fn probe_if_due(&mut self, now: Duration) {
        let since = now.saturating_sub(*self.probed_at.get_or_insert(now));
        let is_first = self.valid_from == Duration::ZERO;
        let at_min = self.updates_at_min >= UPDATES_AT_MIN && (is_first || since >= PAUSE_AT_MIN);
        let is_periodic = since >= PAUSE && self.limit < f64::from(self.bounds.max);
        if at_min || is_periodic {
            self.probe = Some(Probe::default());
            self.valid_from = now;
            self.updates_at_min = 0;
        }
    }

    /// Takes over what the probe found, if it found anything.
    fn end_probe(&mut self, now: Duration) {
        if let Some(Probe { sum, samples }) = self.probe.take()
            && samples > 0.0
        {
            self.long = sum / samples;
        }
        self.probed_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { min: 20, max: 200, tolerance: 1.5, queue: 4.0 };

    /// Clients and their upstream, and the time that passes.
    struct Simulation {
        gradient: Gradient,
        now: Duration,
    }

    impl Simulation {
        fn new() -> Self {
            Self { gradient: Gradient::new(BOUNDS), now: Duration::from_secs(1000) }
        }

        fn limit(&mut self) -> u32 {
            self.gradient.limit(self.now)
        }

        /// One round after another in which clients fill the limit as far as `demand` allows. The upstream serves `capacity`
        /// requests at a time, each in `latency`; the others wait for their turn.
        fn serve(&mut self, latency: Duration, capacity: u32, demand: u32, rounds: usize) {
            for _ in 0..rounds {
                let in_flight = self.limit().min(demand);
                let turns = (f64::from(in_flight) / f64::from(capacity)).max(1.0);
                let latency = latency.mul_f64(turns);
                let began = self.now;
                self.now += latency;
                self.gradient.learn(Sample { began, in_flight, latency }, self.now);
            }
        }
    }

    const FAST: Duration = Duration::from_millis(10);
    const SLOW: Duration = Duration::from_millis(100);
    const MANY: u32 = 1000;

    #[test]
    fn a_limit_grows_while_the_upstream_is_as_fast_as_usual() {
        let mut simulation = Simulation::new();
        simulation.serve(FAST, MANY, MANY, 500);
        assert_eq!(simulation.limit(), 200);
    }

    #[test]
    fn a_limit_settles_near_what_the_upstream_can_do() {
        let mut simulation = Simulation::new();
        for _ in 0..100 {
            simulation.serve(FAST, 60, MANY, 100);
            let limit = simulation.limit();
            assert!(simulation.gradient.probe.is_some() || (60..=140).contains(&limit), "{limit}");
        }
    }

    #[test]
    fn a_limit_goes_down_at_once_when_the_upstream_becomes_slow_and_comes_back() {
        let mut simulation = Simulation::new();
        simulation.serve(FAST, MANY, MANY, 1000);
        simulation.serve(FAST, 20, MANY, 40);
        let slow = simulation.limit();
        assert!(slow < 60, "{slow}");
        simulation.serve(FAST, MANY, MANY, 500);
        assert_eq!(simulation.limit(), 200);
    }

    #[test]
    fn an_upstream_that_stays_slower_is_the_new_normal() {
        let mut simulation = Simulation::new();
        simulation.serve(FAST, MANY, MANY, 1000);
        simulation.serve(SLOW, MANY, MANY, 400);
        assert_eq!(simulation.limit(), 200);
        // Nor does one that is a little slower keep the limit down, without a way to the minimum.
        simulation.serve(SLOW.mul_f64(1.8), MANY, MANY, 30);
        let low = simulation.limit();
        assert!((21..180).contains(&low), "{low}");
        simulation.serve(SLOW.mul_f64(1.8), MANY, MANY, 1000);
        assert_eq!(simulation.limit(), 200);
    }

    #[test]
    fn a_probe_discards_what_began_before_it_and_ends_in_time() {
        let mut simulation = Simulation::new();
        simulation.serve(FAST, MANY, MANY, 1000);
        while simulation.gradient.probe.is_none() {
            simulation.serve(SLOW, MANY, MANY, 1);
        }
        assert_eq!(simulation.limit(), 5, "a probe has a limit of its own, which is not the minimum");
        let (long, began) = (simulation.gradient.long, simulation.now - Duration::from_secs(1));
        for _ in 0..20 {
            let sample = Sample { began, in_flight: 20, latency: Duration::from_secs(9) };
            simulation.gradient.learn(sample, simulation.now);
        }
        assert!(simulation.gradient.probe.is_some());
        simulation.now += Duration::from_secs(11);
        assert_eq!(simulation.limit(), 20, "without a sample it ends, and changes nothing");
        assert!((simulation.gradient.long - long).abs() < f64::EPSILON);
    }

    #[test]
    fn an_idle_client_changes_nothing() {
        let mut simulation = Simulation::new();
        simulation.serve(FAST, MANY, MANY, 100);
        let before = simulation.limit();
        assert!(before > 40);
        simulation.serve(FAST, MANY, 3, 1000);
        assert_eq!(simulation.limit(), before);
    }

    #[test]
    fn a_limit_stays_within_its_bounds_whatever_comes() {
        let mut gradient = Gradient::new(BOUNDS);
        let mut now = Duration::from_secs(1000);
        for round in 0..5000_u32 {
            let latency = Duration::from_micros(u64::from(round.wrapping_mul(2_654_435_761) % 5_000_000));
            let in_flight = gradient.limit(now);
            assert!(in_flight == 5 && gradient.probe.is_some() || (20..=200).contains(&in_flight));
            let began = now;
            now += latency;
            gradient.learn(Sample { began, in_flight, latency }, now);
        }
        for latency in [Duration::ZERO, Duration::MAX] {
            gradient.learn(Sample { began: now, in_flight: 200, latency }, now);
            assert!(gradient.long.is_finite());
            assert!((5..=200).contains(&gradient.limit(now)));
        }
    }
}
