//! The samples of a metric.

use std::time::Duration;

/// Names and values of labels.
pub type Labels<'l> = &'l [(&'l str, &'l str)];

/// Durations, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Durations<'d> {
    /// Upper bounds, ascending, and how many durations each has, those of the buckets before it included.
    pub buckets: &'d [(f64, u64)],
    /// The sum of all.
    pub sum: f64,
    /// The number of all.
    pub count: u64,
    /// The same as a native histogram, for the formats that have these.
    pub native: Option<Native<'d>>,
    /// Some of the durations, at most one for each bucket.
    pub exemplars: &'d [Exemplar],
}

/// A native histogram: <https://prometheus.io/docs/specs/native_histograms/>.
#[derive(Debug, Clone, Copy)]
pub struct Native<'d> {
    /// The bucket with the index i has the durations in (2^((i-1)/2^schema), 2^(i/2^schema)].
    pub schema: i32,
    /// The buckets that are not empty, by ascending index, and how many durations each has.
    pub buckets: &'d [(i32, u64)],
}

/// A duration with the trace of its request.
#[derive(Debug, Clone, PartialEq)]
pub struct Exemplar {
    /// The trace's id, in hexadecimal digits.
    pub trace_id: String,
    /// The duration, in seconds.
    pub value: f64,
    /// The time at which it was measured, since 1970.
    pub at: Duration,
}

impl Durations<'_> {
    /// The latest exemplar in (lower, upper].
    pub(super) fn exemplar(&self, lower: f64, upper: f64) -> Option<&Exemplar> {
        let within =
            |exemplar: &&Exemplar| (exemplar.value > lower || lower == 0.0) && exemplar.value <= upper;
        self.exemplars.iter().filter(within).max_by_key(|exemplar| exemplar.at)
    }
}
