//! Traces of requests, for the histograms of their durations.

use std::array;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::latencies::{Latencies, Latency};

/// For each octave of latencies the last request whose trace is exported. Memory is allocated on the first.
#[derive(Debug, Default)]
pub struct Exemplars(OnceLock<Box<Mutex<Slots>>>);

type Slots = [Option<TracedLatency>; Latencies::OCTAVES];

/// The latency of a request whose trace is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TracedLatency {
    pub latency: Latency,
    pub trace_id: [u8; 16],
    /// The time at which the request ended, since 1970.
    pub at: Duration,
}

impl Exemplars {
    /// Keeps a request. It never waits: while another thread writes or reads, the request is left out.
    pub fn record(&self, traced: TracedLatency) {
        let slots = self.0.get_or_init(|| Box::new(Mutex::new(array::from_fn(|_| None))));
        if let Ok(mut slots) = slots.try_lock()
            && let Some(slot) = slots.get_mut(traced.latency.octave())
        {
            *slot = Some(traced);
        }
    }

    /// The requests that are kept, by ascending latency.
    pub fn read(&self) -> Vec<TracedLatency> {
        let Some(slots) = self.0.get() else { return Vec::new() };
        slots.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_request_of_each_octave_is_kept() {
        let exemplars = Exemplars::default();
        assert_eq!(exemplars.read(), []);
        let traced = |us, number| TracedLatency {
            latency: Latency::of(Duration::from_micros(us)),
            trace_id: [number; 16],
            at: Duration::from_secs(number.into()),
        };
        for (us, number) in [(900_000, 1), (10, 2), (600_000, 3)] {
            exemplars.record(traced(us, number));
        }
        assert_eq!(exemplars.read(), [traced(10, 2), traced(600_000, 3)]);
    }
}
