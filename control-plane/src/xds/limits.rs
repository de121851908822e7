//! The limits of the xDS server.

use std::ops::RangeInclusive;
use std::time::Duration;

/// The limits and times of the server. Tests have others than the default.
#[derive(Debug, Clone)]
pub struct Limits {
    /// A connection is asked for a sign of life after this time without one.
    pub ping_after: Duration,
    /// A connection over which no byte came for this time is dead. It is long, because a proxy under load is slow to
    /// read, and is not to be disturbed by a new connection then.
    pub silence: Duration,
    /// How many streams may be sent everything at once.
    pub full_sends: usize,
    /// How many bytes, before compression, may be on their way to these streams.
    pub full_bytes: usize,
    /// How many streams may wait for their turn to be sent everything.
    pub waiting: usize,
    /// When changes come faster than this, a stream is sent several together.
    pub change_gap: Duration,
    /// The age at which a stream may be ended for balance: for each stream another one of this range, because those that began
    /// together must not end together.
    pub stream_age: RangeInclusive<Duration>,
    /// The share of its streams that a replica ends in a second at most, while it has too many.
    pub drained_per_second: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ping_after: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            full_sends: 64,
            full_bytes: 256 << 20,
            waiting: 10_000,
            change_gap: Duration::from_millis(50),
            stream_age: Duration::from_secs(30 * 60)..=Duration::from_secs(90 * 60),
            drained_per_second: 0.01,
        }
    }
}
