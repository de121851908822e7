//! The tolerances of the gates.

use signalbox_config::{Gates, RateGate, RolloutPolicy};

/// A canary may get this many times fewer requests than before.
const VOLUME_RATIO: f64 = 2.0;

/// The share of looks at canaries that may find too much CPU time or too few requests.
const LOOKS_FLOOR: f64 = 0.2;

/// The confidence of the gates on CPU time and volume.
const LOOKS_CONFIDENCE: f64 = 0.999;

/// The tolerances of a fleet's gates. The default has the values of a fleet without `gates`.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Responses with a status of 500 and above.
    pub errors: Tolerance,
    /// Responses slower than the rest's p50, p90 and p99.
    pub latency: Tolerance,
    /// Requests without a route, and responses with a status from 400 to 499.
    pub not_found: Tolerance,
    /// Requests that the canaries must have served, in all and of each changed route with traffic.
    pub min_requests: u64,
    /// Canaries that may reject the revision.
    pub rejected: u64,
    /// CPU time per request, relative to the same proxy's before; `floor` is the share of looks at proxies that may exceed it.
    pub cpu: Tolerance,
    /// Requests per second before, relative to the same proxy's now; `floor` as for `cpu`.
    pub volume: Tolerance,
}

/// The tolerance of one gate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// The multiple of the reference that is tolerated, at least 1.
    pub ratio: f64,
    /// The share of requests that may fail in any case, 0 to 1.
    pub floor: f64,
    /// The probability, in each step, that the gate does not fail when the canaries are as good as the rest.
    pub confidence: f64,
}

impl Tolerance {
    /// The probability of a false alarm, within sensible bounds.
    pub(super) fn false_alarms(self) -> f64 {
        let alpha = 1.0 - self.confidence;
        if alpha.is_nan() { 0.001 } else { alpha.clamp(1e-9, 0.5) }
    }
}

impl From<&Gates> for Policy {
    fn from(gates: &Gates) -> Self {
        let looks = |ratio| Tolerance { ratio, floor: LOOKS_FLOOR, confidence: LOOKS_CONFIDENCE };
        let tolerance = |gate: RateGate| Tolerance {
            ratio: gate.tolerated_ratio,
            floor: gate.floor,
            confidence: gate.confidence,
        };
        Self {
            errors: tolerance(gates.errors),
            latency: tolerance(gates.latency),
            not_found: tolerance(gates.not_found),
            min_requests: gates.min_requests.into(),
            rejected: gates.rejected.into(),
            cpu: looks(gates.cpu_ratio),
            volume: looks(VOLUME_RATIO),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::from(&RolloutPolicy::default().gates)
    }
}
