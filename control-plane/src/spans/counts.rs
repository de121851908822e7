//! The number of spans by their result.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::SpanTotals;

/// The number of spans by their result.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) sent: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) dropped: AtomicU64,
}

impl Counts {
    pub(super) fn totals(&self) -> SpanTotals {
        let [sent, failed, dropped] =
            [&self.sent, &self.failed, &self.dropped].map(|count| count.load(Ordering::Relaxed));
        SpanTotals { sent, failed, dropped }
    }
}
