//! The time of day.

use std::time::{Duration, UNIX_EPOCH};

use signalbox_plugin::Clock;

/// The time since 1970 by a clock; zero if the clock is set to an earlier year.
pub(crate) fn since_1970(clock: &Clock) -> Duration {
    clock.wall().duration_since(UNIX_EPOCH).unwrap_or_default()
}
