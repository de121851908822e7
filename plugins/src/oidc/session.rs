//! The content of a session's cookies.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::client::Tokens;
use super::config::Lifetime;

/// A session. All times are seconds since 1970.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Session {
    /// A text of the login that no other session has. Empty: the session was begun before sessions had one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) id: String,
    /// The refreshes since the login.
    #[serde(default)]
    pub(super) refreshes: u64,
    /// The claims of the user that are told or looked at, `sub` among them.
    pub(super) claims: Map<String, Value>,
    /// The tokens, as far as they are needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) access_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) refresh_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) id_token: Option<String>,
    /// The end of the access token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    /// The time before which no refresh is tried, unless the access token has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry: Option<u64>,
    /// The time of the login.
    created: u64,
    /// The time of a request not long ago.
    seen: u64,
}

/// The tokens that a session keeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    pub(super) access_token: bool,
    pub(super) id_token: bool,
}

/// The time before the end of an access token at which it is refreshed, seconds.
const MARGIN: u64 = 20;

/// The pause before the next refresh after one whose ID token could not be verified, seconds.
const PAUSE: u64 = 2;

impl Session {
    /// The session of a user who has logged in at `now`. `None`: there is no ID token.
    pub(super) fn begin(id: String, tokens: &Tokens, kept: Kept, now: Duration) -> Option<Self> {
        let mut session = Self {
            id,
            refreshes: 0,
            claims: tokens.identity.as_ref()?.claims.clone(),
            access_token: None,
            refresh_token: None,
            id_token: None,
            expires: None,
            retry: None,
            created: now.as_secs(),
            seen: now.as_secs(),
        };
        session.take_over(tokens, kept);
        Some(session)
    }

    /// The session with the tokens that a refresh has brought. What the provider did not send stays.
    pub(super) fn refreshed(mut self, tokens: &Tokens, kept: Kept, now: Duration) -> Self {
        if let Some(identity) = &tokens.identity {
            self.claims.clone_from(&identity.claims);
        }
        self.seen = now.as_secs();
        self.refreshes = self.refreshes.saturating_add(1);
        self.retry = None;
        self.take_over(tokens, kept);
        self
    }

    /// The session with a new refresh token in the place of the old one, which the provider does not accept any more. Nothing else
    /// changes, so it lasts no longer than before.
    pub(super) fn rotated(mut self, refresh_token: &str, now: Duration) -> Self {
        self.refresh_token = Some(refresh_token.to_owned());
        self.refreshes = self.refreshes.saturating_add(1);
        self.retry = Some(now.as_secs().saturating_add(PAUSE));
        self
    }

    fn take_over(&mut self, tokens: &Tokens, kept: Kept) {
        self.expires = tokens.expires;
        if kept.access_token {
            self.access_token.clone_from(&tokens.access_token);
        }
        if tokens.refresh_token.is_some() {
            self.refresh_token.clone_from(&tokens.refresh_token);
        }
        if let Some(identity) = tokens.identity.as_ref().filter(|_| kept.id_token) {
            self.id_token = Some(identity.text.clone());
        }
    }

    /// The user's identifier at the provider.
    pub(super) fn subject(&self) -> Option<&str> {
        self.claims.get("sub").and_then(Value::as_str)
    }

    /// True if it is over at `now`. One that begins in the future is not believed.
    pub(super) fn is_over(&self, lifetime: Lifetime, now: Duration) -> bool {
        let now = now.as_secs();
        let age = |since: u64| now.saturating_sub(since);
        self.created > now.saturating_add(MARGIN)
            || age(self.created) >= lifetime.absolute.as_secs()
            || age(self.seen) >= lifetime.idle.as_secs()
    }

    /// The end of its absolute time, since 1970.
    pub(super) fn end(&self, lifetime: Lifetime) -> Duration {
        Duration::from_secs(self.created).saturating_add(lifetime.absolute)
    }

    /// True if its access token ends soon, or has ended, and can be renewed.
    pub(super) fn needs_refresh(&self, now: Duration) -> bool {
        let is_due = || self.retry.is_none_or(|retry| now.as_secs() >= retry);
        self.refresh_token.is_some() && self.ends_within(MARGIN, now) && (is_due() || self.has_ended(now))
    }

    /// True if its access token has ended.
    pub(super) fn has_ended(&self, now: Duration) -> bool {
        self.ends_within(0, now)
    }

    fn ends_within(&self, margin: u64, now: Duration) -> bool {
        self.expires.is_some_and(|expires| now.as_secs().saturating_add(margin) >= expires)
    }

    /// Notes a request at `now`. True if the cookies must be written anew for it: at most four times in an idle time.
    pub(super) fn touch(&mut self, lifetime: Lifetime, now: Duration) -> bool {
        let is_due = now.as_secs().saturating_sub(self.seen) >= (lifetime.idle.as_secs() / 4).max(1);
        if is_due {
            self.seen = now.as_secs();
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn session() -> Session {
        let fields = json!({"claims": {"sub": "alice"}, "refresh_token": "r", "expires": 1100, "created": 1000, "seen": 1000});
        serde_json::from_value(fields).unwrap()
    }

    #[test]
    fn a_session_is_over_after_its_idle_time_and_its_absolute_time() {
        let lifetime = Lifetime { idle: Duration::from_secs(100), absolute: Duration::from_secs(150) };
        let mut session = session();
        let at = Duration::from_secs;
        for (now, is_over) in [(900, true), (985, false), (1000, false), (1099, false), (1100, true)] {
            assert_eq!(session.is_over(lifetime, at(now)), is_over, "{now}");
        }
        assert!(!session.touch(lifetime, at(1024)) && session.touch(lifetime, at(1025)));
        assert!(!session.is_over(lifetime, at(1120)) && session.is_over(lifetime, at(1125)));
        assert!(session.touch(lifetime, at(1120)) && session.is_over(lifetime, at(1150)));
    }

    #[test]
    fn an_access_token_is_refreshed_before_it_ends_if_it_can_be() {
        let (mut session, at) = (session(), Duration::from_secs);
        assert!(!session.needs_refresh(at(1079)) && session.needs_refresh(at(1080)));
        assert!(!session.has_ended(at(1099)) && session.has_ended(at(1100)));
        session.refresh_token = None;
        assert!(!session.needs_refresh(at(2000)) && session.has_ended(at(2000)));
        session.expires = None;
        assert!(!session.has_ended(at(2000)));
    }

    #[test]
    fn a_new_refresh_token_alone_extends_nothing_and_is_used_after_a_pause() {
        let at = Duration::from_secs;
        let rotated = session().rotated("new", at(1085));
        assert_eq!((rotated.refresh_token.as_deref(), rotated.refreshes), (Some("new"), 1));
        for (now, needs_refresh) in [(1085, false), (1086, false), (1087, true), (1100, true)] {
            assert_eq!(rotated.needs_refresh(at(now)), needs_refresh, "{now}");
        }
        assert!(!rotated.has_ended(at(1099)) && rotated.has_ended(at(1100)));
        let late = session().rotated("new", at(1099));
        assert!(!late.needs_refresh(at(1099)) && late.needs_refresh(at(1100)));
        let lifetime = Lifetime { idle: at(100), absolute: at(150) };
        assert!(rotated.is_over(lifetime, at(1100)), "a request was seen at 1000 only");
    }
}
