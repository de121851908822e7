//! Sessions of the UI: what a cookie stands for, and how long.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use signalbox_config::sha256;

use crate::store::SessionRow;

/// A session ends when it was not used for so long.
const IDLE: Duration = Duration::from_secs(12 * 3600);

/// A session ends so long after its login, however much it is used.
pub const LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// For how long an expired session is kept in the database, so that a replica that has not told yet of its use can.
const KEEP_EXPIRED: Duration = Duration::from_secs(600);

/// A session that may be open.
#[derive(Debug)]
pub struct Session {
    row: SessionRow,
    /// Microseconds since 1970, as this replica knows it.
    last_used_us: AtomicI64,
    /// Microseconds since 1970, as the database has it.
    saved_us: AtomicI64,
}

impl Session {
    /// A session as it is stored.
    pub(super) fn of(row: SessionRow) -> Self {
        let last_used = row.last_used_at_us;
        Self { row, last_used_us: AtomicI64::new(last_used), saved_us: AtomicI64::new(last_used) }
    }

    /// The session as it is stored, but for its last use.
    pub fn row(&self) -> &SessionRow {
        &self.row
    }

    /// Microseconds since 1970.
    pub fn last_used_us(&self) -> i64 {
        self.last_used_us.load(Ordering::Relaxed)
    }

    /// When it ends if it is not used any more, microseconds since 1970.
    pub fn ends_at_us(&self) -> i64 {
        self.row.expires_at_us.min(self.last_used_us().saturating_add(micros(IDLE)))
    }

    /// True while the session is open.
    pub fn is_open(&self, now_us: i64) -> bool {
        now_us < self.ends_at_us()
    }

    /// True if the session ended so long ago that it can be deleted.
    pub(super) fn is_over(&self, now_us: i64) -> bool {
        now_us >= self.ends_at_us().saturating_add(micros(KEEP_EXPIRED))
    }

    /// Notes that it is used.
    pub(super) fn use_at(&self, now_us: i64) {
        self.last_used_us.fetch_max(now_us, Ordering::Relaxed);
    }

    /// Its last use, if the database has one that is older by more than `behind`.
    pub(super) fn unsaved_us(&self, behind: Duration) -> Option<i64> {
        let last_used = self.last_used_us();
        let saved = self.saved_us.load(Ordering::Relaxed);
        (last_used.saturating_sub(saved) > micros(behind)).then_some(last_used)
    }

    /// Notes what the database has, which may be of another replica.
    pub(super) fn set_saved(&self, at_us: i64) {
        self.saved_us.fetch_max(at_us, Ordering::Relaxed);
        self.use_at(at_us);
    }
}

/// Hashes a cookie and a token together: with both the hash can be checked, and it reveals neither.
pub(super) fn binding(cookie: &str, token_hash: &[u8]) -> [u8; 32] {
    sha256(&[cookie.as_bytes(), token_hash].concat())
}

/// A duration of this file, microseconds.
pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::TokenSource;

    const HOUR: i64 = 3_600_000_000;

    fn session() -> Session {
        Session::of(SessionRow {
            id: "s".to_owned(),
            hash: [0; 32],
            token: "admin".to_owned(),
            token_source: TokenSource::Stored,
            binding: [0; 32],
            created_at_us: 0,
            last_used_at_us: 0,
            expires_at_us: micros(LIFETIME),
        })
    }

    #[test]
    fn a_session_ends_when_it_is_idle_and_in_any_case_after_a_week() {
        let idle = session();
        assert!(idle.is_open(12 * HOUR - 1) && !idle.is_open(12 * HOUR));
        let busy = session();
        for hour in 0..24 * 7 {
            assert!(busy.is_open(hour * HOUR), "{hour}");
            busy.use_at(hour * HOUR);
        }
        assert!(!busy.is_open(24 * 7 * HOUR), "used an hour ago, and a week old");
        assert!(!busy.is_over(24 * 7 * HOUR) && busy.is_over(24 * 7 * HOUR + HOUR));
    }

    #[test]
    fn the_last_use_is_stored_when_it_is_a_minute_behind_and_never_goes_back() {
        let session = session();
        let minute = Duration::from_secs(60);
        let second = HOUR / 3600;
        assert_eq!(session.unsaved_us(Duration::ZERO), None);
        session.use_at(60 * second);
        assert_eq!(session.unsaved_us(minute), None);
        session.use_at(61 * second);
        session.use_at(30 * second);
        assert_eq!(session.unsaved_us(minute), Some(61 * second));
        session.set_saved(61 * second);
        assert_eq!(session.unsaved_us(Duration::ZERO), None);
        // Another replica has stored a later use.
        session.set_saved(200 * second);
        assert_eq!(session.last_used_us(), 200 * second);
    }
}
