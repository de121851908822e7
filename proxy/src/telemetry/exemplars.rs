//! Traces of requests, for the histograms of their durations.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::latencies::{Latencies, Latency};

/// For each octave of latencies the last request whose trace is exported. Memory is allocated on the first.
#[derive(Debug, Default)]
pub struct Exemplars(OnceLock<Box<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// The time of the last one of each octave, in milliseconds since 1970.
    last_ms: [AtomicU64; Latencies::OCTAVES],
    slots: Mutex<[Option<TracedLatency>; Latencies::OCTAVES]>,
}

/// The time between two that are kept, in milliseconds.
const PAUSE_MS: u64 = 100;

/// The latency of a request whose trace is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TracedLatency {
    pub latency: Latency,
    pub trace_id: [u8; 16],
    /// The time at which the request ended, since 1970.
    pub at: Duration,
}

impl Exemplars {
    /// Keeps a request, at most one of an octave in a tenth of a second. It never waits: while another thread writes or reads, the request is left out.
    pub fn record(&self, traced: TracedLatency) {
        let kept = self.0.get_or_init(Box::default);
        let at = traced.at.as_millis() as u64;
        let Some(last) = kept.last_ms.get(traced.latency.octave()) else { return };
        // Workers that write all the time would take the memory from each other. The clock may have been set back.
        if at.abs_diff(last.load(Ordering::Relaxed)) < PAUSE_MS {
            return;
        }
        last.store(at, Ordering::Relaxed);
        if let Ok(mut slots) = kept.slots.try_lock()
            && let Some(slot) = slots.get_mut(traced.latency.octave())
        {
            *slot = Some(traced);
        }
    }

    /// The requests that are kept, by ascending latency.
    pub fn read(&self) -> Vec<TracedLatency> {
        let Some(kept) = self.0.get() else { return Vec::new() };
        kept.slots.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().flatten().collect()
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
