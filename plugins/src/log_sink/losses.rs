//! Says in the program's log that entries were lost, at most once a minute.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use signalbox_plugin::{Clock, Logger, Outcomes};

use super::{DROPPED, FAILED, SENT};

/// Counts the entries of a log, and tells of those that were lost.
#[derive(Debug)]
pub(crate) struct Losses {
    outcomes: Outcomes,
    log: Logger,
    clock: Clock,
    dropped: AtomicU64,
    failed: AtomicU64,
    /// The time from which the next line may be written, in milliseconds.
    next: AtomicU64,
}

/// The least time between two lines.
const PAUSE: Duration = Duration::from_secs(60);

impl Losses {
    pub(crate) fn new(outcomes: Outcomes, log: Logger, clock: Clock) -> Self {
        Self { outcomes, log, clock, dropped: 0.into(), failed: 0.into(), next: 0.into() }
    }

    /// The sink has taken this many entries.
    pub(crate) fn count_sent(&self, entries: usize) {
        self.outcomes.add(0, SENT, entries as u64);
    }

    /// The queue had no room for an entry. The caller counts the outcome.
    pub(crate) fn note_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// The sink has not taken this many entries.
    pub(crate) fn count_failed(&self, entries: usize) {
        self.outcomes.add(0, FAILED, entries as u64);
        self.failed.fetch_add(entries as u64, Ordering::Relaxed);
    }

    /// Counts an entry outside of a hook for which the queue had no room.
    pub(crate) fn count_dropped(&self, entries: usize) {
        self.outcomes.add(0, DROPPED, entries as u64);
        self.dropped.fetch_add(entries as u64, Ordering::Relaxed);
    }

    /// Writes a line if entries were lost, unless there was one not long ago. `cause` is the last error of the sink.
    pub(crate) fn report(&self, cause: Option<&dyn Display>) {
        let lost = [&self.dropped, &self.failed].map(|count| count.load(Ordering::Relaxed));
        let now = u64::try_from(self.clock.monotonic().as_millis()).unwrap_or(u64::MAX);
        let next = self.next.load(Ordering::Relaxed);
        let later = now.saturating_add(PAUSE.as_millis() as u64);
        if lost == [0, 0]
            || now < next
            || self.next.compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        let [dropped, failed] = [&self.dropped, &self.failed].map(|count| count.swap(0, Ordering::Relaxed));
        let lost = format_args!(
            "entries of the log were lost: the queue had no room for {dropped}, and the sink did not take {failed}"
        );
        match cause {
            Some(cause) => self.log.warn(format_args!("{lost}; the last error: {cause}")),
            None => self.log.warn(lost),
        }
    }
}
