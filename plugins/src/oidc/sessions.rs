//! Remembers which sessions were logged out, and which cookies of a session are old: a response that comes late must not put an old
//! cookie in the place of a newer one, or of none.
//!
//! The cookies are the sessions, so this memory only adds to what they say. A proxy that has forgotten goes by the cookies alone.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use signalbox_plugin::Context;

use super::config::Lifetime;
use super::session::Session;
use crate::verified::{ProofHash, Verified, hash};

/// The memory of a proxy, kept over revisions. Refreshes have a part of their own, so that they push no logout out.
#[derive(Default)]
pub(super) struct Sessions {
    /// The sessions that were logged out, each with the end of its absolute time since 1970.
    logged_out: Verified<Duration>,
    newest: Verified<Newest>,
}

/// The newest cookie of a session.
#[derive(Clone, Copy)]
struct Newest {
    /// Cookies of the session with fewer refreshes than these are old.
    refreshes: u64,
    /// The end of the session's absolute time since 1970.
    until: Duration,
}

/// A cookie of a session, as the memory knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Version {
    /// `None`: the session was begun before sessions had names.
    id: Option<ProofHash>,
    refreshes: u64,
    until: Duration,
}

impl Version {
    pub(super) fn of(session: &Session, lifetime: Lifetime) -> Self {
        let id = (!session.id.is_empty()).then(|| hash(session.id.as_bytes()));
        Self { id, refreshes: session.refreshes, until: session.end(lifetime) }
    }

    /// The one that takes the place of this one.
    pub(super) fn next(self) -> Self {
        Self { refreshes: self.refreshes.saturating_add(1), ..self }
    }
}

impl Sessions {
    /// The memory for the sessions of this identity.
    pub(super) fn of(identity: &impl Hash, context: &Context<'_>) -> Arc<Self> {
        context.state(identity, Self::default)
    }

    /// Notes that the session was logged out.
    pub(super) fn log_out(&self, session: Version) {
        if let Some(id) = session.id {
            self.logged_out.remember(id, session.until);
        }
    }

    /// True if the session was logged out.
    pub(super) fn is_logged_out(&self, session: Version, now: Duration) -> bool {
        let is_known = |id| self.logged_out.find(&id, |until| (now < *until).then_some(())).is_some();
        session.id.is_some_and(is_known)
    }

    /// Notes that the browser gets a newer cookie in the place of this one, or none.
    pub(super) fn outdate(&self, cookie: Version) {
        self.note(cookie, cookie.next().refreshes);
    }

    /// Notes that the browser has another session in the place of this one.
    pub(super) fn replace(&self, session: Version) {
        self.note(session, u64::MAX);
    }

    fn note(&self, session: Version, refreshes: u64) {
        let Some(id) = session.id else { return };
        self.newest.update(id, |known| {
            let refreshes = known.map_or(0, |known| known.refreshes).max(refreshes);
            Newest { refreshes, until: session.until }
        });
    }

    /// True if a response may give the browser this cookie, or take its cookie away in this one's place.
    pub(super) fn may_set(&self, cookie: Version, now: Duration) -> bool {
        let Some(id) = cookie.id else { return true };
        let newest = self.newest.find(&id, |newest| (now < newest.until).then_some(newest.refreshes));
        newest.is_none_or(|newest| cookie.refreshes >= newest) && !self.is_logged_out(cookie, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    fn cookie(id: &str, refreshes: u64) -> Version {
        Version { id: Some(hash(id.as_bytes())), refreshes, until: Duration::from_secs(2000) }
    }

    #[test]
    fn no_cookie_is_set_over_a_newer_one() {
        let sessions = Sessions::default();
        assert!(sessions.may_set(cookie("a", 0), NOW));
        sessions.outdate(cookie("a", 4));
        // A request with an older cookie was slower.
        sessions.outdate(cookie("a", 2));
        for (cookie, expected) in [
            (cookie("a", 0), false),
            (cookie("a", 4), false),
            (cookie("a", 5), true),
            (cookie("a", 6), true),
            (cookie("b", 0), true),
        ] {
            assert_eq!(sessions.may_set(cookie, NOW), expected, "{cookie:?}");
        }
        sessions.replace(cookie("a", 5));
        assert!(!sessions.may_set(cookie("a", 6), NOW) && !sessions.is_logged_out(cookie("a", 6), NOW));
    }

    #[test]
    fn a_logout_is_remembered_to_the_end_of_the_session_whatever_is_refreshed() {
        let sessions = Sessions::default();
        sessions.log_out(cookie("a", 1));
        for number in 0..100_000 {
            sessions.outdate(cookie(&number.to_string(), 0));
        }
        for (cookie, is_logged_out) in
            [(cookie("a", 0), true), (cookie("a", 2), true), (cookie("b", 0), false)]
        {
            assert_eq!(sessions.is_logged_out(cookie, NOW), is_logged_out, "{cookie:?}");
            assert_eq!(sessions.may_set(cookie, NOW), !is_logged_out, "{cookie:?}");
        }
        assert!(!sessions.is_logged_out(cookie("a", 0), Duration::from_secs(2000)));
    }

    #[test]
    fn a_session_without_a_name_goes_by_its_cookies_alone() {
        let sessions = Sessions::default();
        let nameless = Version { id: None, refreshes: 0, until: Duration::from_secs(2000) };
        sessions.log_out(nameless);
        sessions.outdate(nameless);
        assert!(sessions.may_set(nameless, NOW) && !sessions.is_logged_out(nameless, NOW));
    }
}
