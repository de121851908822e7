//! The past of fleets, over changes of the leader and restarts.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use signalbox_rollout::gate::History;

/// An older past says nothing about what is usual.
const MAX_AGE: Duration = Duration::from_secs(3600);

/// The longest text that is stored, in bytes.
const MAX_TEXT: usize = 4 << 20;

/// The past of a fleet that has no driver at the moment.
pub(super) struct Kept {
    history: History,
    since: Instant,
}

/// The past of a fleet, as it is stored.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredHistory<H = History> {
    /// Microseconds since 1970.
    at_us: i64,
    history: H,
}

impl Kept {
    pub(super) fn now(history: History) -> Self {
        Self { history, since: Instant::now() }
    }

    /// The past, if it is not too old.
    pub(super) fn recent(self) -> Option<History> {
        (self.since.elapsed() < MAX_AGE).then_some(self.history)
    }
}

impl StoredHistory {
    /// The text of a past; `None`: it is too long, so the next leader has to begin anew.
    pub(super) fn text(history: &History, now_us: i64) -> Option<String> {
        let stored = StoredHistory { at_us: now_us, history };
        serde_json::to_string(&stored).ok().filter(|text| text.len() <= MAX_TEXT)
    }

    /// Reads a stored past, if it is not too old.
    pub(super) fn read(text: &str, now_us: i64) -> Option<History> {
        let stored: Self = serde_json::from_str(text).ok()?;
        let age_us = now_us.saturating_sub(stored.at_us).unsigned_abs();
        (Duration::from_micros(age_us) < MAX_AGE).then_some(stored.history)
    }
}
