//! Which responses are stored (RFC 9111, section 3).

use std::time::{Duration, SystemTime};

use http::header::{AGE, CONTENT_RANGE, DATE, HeaderName, SET_COOKIE};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::directives::ResponseDirectives;
use super::entry::{Draft, tags_of};
use super::freshness::{Defaults, Lifetimes, Received};
use super::key::Key;
use super::vary::Selection;

/// The settings by which responses are chosen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Rules {
    pub(super) defaults: Defaults,
    /// In ascending order.
    pub(super) statuses: Box<[u16]>,
    pub(super) tag_headers: Box<[HeaderName]>,
}

/// The request that a response belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) key: &'a Key,
    pub(super) headers: &'a HeaderMap,
    /// True if it has credentials that are no part of its key.
    pub(super) has_credentials: bool,
}

/// The reason why a response is not stored, as a token for `Cache-Status`.
pub(super) type Refusal = &'static str;

impl Rules {
    /// Drafts the entry of a response that came at the monotonic time `now`.
    pub(super) fn draft(
        &self,
        asked: Asked<'_>,
        status: StatusCode,
        headers: &HeaderMap,
        received: Received,
        now: Duration,
    ) -> Result<Draft, Refusal> {
        let directives = ResponseDirectives::of(headers);
        if self.statuses.binary_search(&status.as_u16()).is_err() || headers.contains_key(CONTENT_RANGE) {
            return Err("status");
        }
        if directives.no_store {
            return Err("no-store");
        }
        if directives.private {
            return Err("private");
        }
        if headers.contains_key(SET_COOKIE) {
            return Err("set-cookie");
        }
        let is_shareable = directives.allows_sharing();
        if asked.has_credentials && !is_shareable {
            return Err("credentials");
        }
        let selection = Selection::of(headers, asked.headers).ok_or("vary")?;
        let lifetimes = Lifetimes::of(status, headers, &directives, received, &self.defaults);
        let lifetimes = lifetimes.ok_or("no-freshness")?;
        Ok(Draft {
            key: asked.key.clone(),
            selection,
            status,
            headers: stored_headers(headers, received.at),
            lifetimes,
            stored_at: now,
            is_shareable,
            tags: tags_of(headers, &self.tag_headers),
        })
    }
}

/// The headers of a response as they are stored: its age is kept apart, and it has the date that it was made at.
fn stored_headers(headers: &HeaderMap, now: SystemTime) -> HeaderMap {
    // The values are copied: as they came, they are parts of the connection's buffer, which each of them would keep in memory.
    let mut copy = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter().filter(|(name, _)| *name != AGE) {
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            copy.append(name.clone(), value);
        }
    }
    let mut headers = copy;
    if !headers.contains_key(DATE)
        && let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now))
    {
        headers.insert(DATE, date);
    }
    headers
}
