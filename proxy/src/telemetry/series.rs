//! The place of a route's counts in the metrics.

use std::sync::atomic::{AtomicU8, Ordering};

/// The place of a route's counts in the metrics, as it was decided once. A route keeps it, because counters must not go back.
#[derive(Debug, Default)]
pub struct SeriesCell(AtomicU8);

/// A place in the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeriesPlace {
    /// It is decided when the route has served its first request.
    Undecided,
    /// The route has series of its own.
    Own,
    /// The route is counted together with others.
    Others,
    /// The route is gone, and its counts were shown for the last time.
    Ended,
}

impl SeriesCell {
    /// The place.
    pub fn place(&self) -> SeriesPlace {
        match self.0.load(Ordering::Relaxed) {
            0 => SeriesPlace::Undecided,
            1 => SeriesPlace::Own,
            2 => SeriesPlace::Others,
            _ => SeriesPlace::Ended,
        }
    }

    /// Sets the place. The caller holds the lock of the budget.
    pub fn set(&self, place: SeriesPlace) {
        self.0.store(place as u8, Ordering::Relaxed);
    }
}
