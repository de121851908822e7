//! `Cache-Status` (RFC 9211) and `X-Cache-Status`.

use std::fmt::Write as _;
use std::time::Duration;

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::entry::Entry;

/// The way in which the cache handled a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handled {
    /// It was answered by a stored response.
    Hit,
    /// It was answered by a stored response that is stale.
    Stale,
    /// It was forwarded, and the stored response was found to be still right.
    Revalidated,
    /// It was forwarded for this reason.
    Forwarded(Reason),
}

/// The reason why a request was forwarded, as a token of RFC 9211.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    Stale,
    Request,
}

/// Writes the headers, in the name of a plugin.
#[derive(Debug)]
pub(super) struct StatusHeaders {
    /// The plugin's name, in quotes.
    name: Box<str>,
}

/// Further facts for `Cache-Status`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Facts<'a> {
    pub(super) entry: Option<(&'a Entry, Duration)>,
    /// The status of the upstream's response.
    pub(super) status: Option<StatusCode>,
    pub(super) is_stored: bool,
    pub(super) has_waited: bool,
    pub(super) detail: Option<&'static str>,
}

static CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
static X_CACHE_STATUS: HeaderName = HeaderName::from_static("x-cache-status");

impl Reason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Stale => "stale",
            Self::Request => "request",
        }
    }
}

impl Handled {
    /// The outcome that it counts as.
    pub(super) const fn outcome(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Revalidated => "revalidated",
            Self::Forwarded(Reason::Bypass | Reason::Method) => "bypass",
            Self::Forwarded(_) => "miss",
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Hit => "Hit",
            Self::Stale => "Stale",
            Self::Revalidated => "Revalidated",
            Self::Forwarded(Reason::Bypass | Reason::Method) => "Bypass",
            Self::Forwarded(_) => "Miss",
        }
    }
}

impl StatusHeaders {
    pub(super) fn new(plugin: &str) -> Self {
        Self { name: format!("\"{plugin}\"").into() }
    }

    /// Adds the headers to those of a response.
    pub(super) fn write(&self, headers: &mut HeaderMap, handled: Handled, facts: &Facts<'_>) {
        let mut text = self.name.to_string();
        match handled {
            Handled::Hit | Handled::Stale => text.push_str("; hit"),
            Handled::Revalidated => text.push_str("; fwd=stale"),
            Handled::Forwarded(reason) => {
                text.push_str("; fwd=");
                text.push_str(reason.as_str());
            }
        }
        // Writing into a text does not fail.
        if let Some(status) = facts.status {
            let _ = write!(text, "; fwd-status={}", status.as_u16());
        }
        if let Some((entry, now)) = facts.entry {
            let left = entry.lifetimes.lifetime.as_secs() as i64 - entry.age(now).as_secs() as i64;
            let _ = write!(text, "; ttl={left}");
        }
        for (is_so, word) in [(facts.is_stored, "; stored"), (facts.has_waited, "; collapsed")] {
            if is_so {
                text.push_str(word);
            }
        }
        if let Some(detail) = facts.detail {
            let _ = write!(text, "; detail={detail}");
        }
        if let Ok(value) = HeaderValue::try_from(text) {
            // It names the caches on the way, the one nearest to the client last.
            headers.append(&CACHE_STATUS, value);
        }
        headers.insert(&X_CACHE_STATUS, HeaderValue::from_static(handled.word()));
    }
}
