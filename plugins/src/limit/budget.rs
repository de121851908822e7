//! A limit in numbers, and the decision on a request. Times are nanoseconds.

use std::time::Duration;

/// A client's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(super) method: Method,
    /// The units that a client may use in each window.
    pub(crate) limit: u64,
    pub(crate) window: u64,
}

/// The algorithm with its own numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Method {
    /// `grain`: the time of a request is rounded up to a multiple of it.
    Window { grain: u64 },
    /// `burst`: the number of tokens that the bucket holds.
    Bucket { burst: u64 },
}

/// The number of times that a sliding window tells apart. The grain is one less, for the newest time is rounded up.
pub(super) const LOG_ENTRIES: u64 = 64;

impl Budget {
    /// At most `limit` units in any span of time as long as `window`.
    pub(crate) fn sliding_window(limit: u64, window: u64) -> Self {
        let grain = if limit <= LOG_ENTRIES { 1 } else { window.div_ceil(LOG_ENTRIES - 1).max(1) };
        Self { method: Method::Window { grain }, limit, window }
    }

    /// A bucket of `burst` tokens, refilled evenly with `limit` tokens a window.
    pub(crate) fn bucket(limit: u64, window: u64, burst: u64) -> Self {
        Self { method: Method::Bucket { burst }, limit, window }
    }

    /// The most units that can be taken at once.
    pub(crate) fn most_at_once(&self) -> u64 {
        match self.method {
            Method::Window { .. } => self.limit,
            Method::Bucket { burst } => burst,
        }
    }
}

/// The decision on a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// How many more units would pass now.
    pub(crate) remaining: u64,
    /// The time until more units would pass than now.
    pub(crate) more_in: u64,
    /// The time until nothing is counted any more.
    pub(crate) reset_in: u64,
    /// `None`: it passes. Otherwise the time until it would.
    pub(crate) refused_for: Option<u64>,
    /// Under what time the units were counted, by which they are given back.
    pub(crate) counted_at: u64,
}

pub(super) fn clamp(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    clamp(duration.as_nanos())
}

/// Whole seconds, rounded up: who waits that long has waited long enough.
pub(crate) fn seconds(nanoseconds: u64) -> u64 {
    nanoseconds.div_ceil(1_000_000_000)
}
