//! A stored response.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, HeaderName, LAST_MODIFIED,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::freshness::Lifetimes;
use super::key::Key;
use super::vary::Selection;

/// A stored response. It does not change; a validated one is replaced by another that shares its body.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) selection: Selection,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) lifetimes: Lifetimes,
    /// The monotonic time at which it was received.
    pub(super) stored_at: Duration,
    /// True if it may answer requests with credentials that are no part of its key.
    pub(super) is_shareable: bool,
    /// The tags by which it can be purged.
    pub(super) tags: Box<[Box<str>]>,
    /// The bytes that it takes.
    pub(super) size: usize,
    /// True since it was used, until eviction has passed over it.
    pub(super) is_used: AtomicBool,
    /// True once it is no longer in the store.
    pub(super) is_removed: AtomicBool,
    /// The monotonic time, in milliseconds, from which on it may be validated in the background.
    refresh_from: AtomicU64,
}

/// The bytes that an entry takes besides its texts and its body: the structures that hold it, and their free places.
const OVERHEAD: usize = 1024;

/// The most tags that count of a response.
const MOST_TAGS: usize = 64;

/// The parts of an [`Entry`].
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub(super) key: Key,
    pub(super) selection: Selection,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) lifetimes: Lifetimes,
    pub(super) stored_at: Duration,
    pub(super) is_shareable: bool,
    pub(super) tags: Box<[Box<str>]>,
}

impl Draft {
    /// The bytes that the entry takes besides its body.
    pub(super) fn size(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64);
        let tags = self.tags.iter().map(|tag| tag.len() + 16);
        OVERHEAD
            + self.key.url.len()
            + self.key.partition.len()
            + self.selection.size()
            + headers.sum::<usize>()
            + tags.sum::<usize>()
    }

    /// The entry with this body.
    pub(super) fn with_body(self, body: Bytes) -> Entry {
        let size = self.size() + body.len();
        let Self { key, selection, status, headers, lifetimes, stored_at, is_shareable, tags } = self;
        Entry {
            size,
            key,
            selection,
            status,
            headers,
            body,
            lifetimes,
            stored_at,
            is_shareable,
            tags,
            is_used: AtomicBool::new(false),
            is_removed: AtomicBool::new(false),
            refresh_from: AtomicU64::new(0),
        }
    }
}

impl Entry {
    /// Its age at a monotonic time.
    pub(super) fn age(&self, now: Duration) -> Duration {
        self.lifetimes.initial_age + now.saturating_sub(self.stored_at)
    }

    /// The headers of an answer by it.
    pub(super) fn headers_at(&self, now: Duration) -> HeaderMap {
        let mut headers = self.headers.clone();
        headers.insert(AGE, HeaderValue::from(self.age(now).as_secs()));
        headers
    }

    /// Its headers after a validation by a response with headers `newer` (RFC 9111, section 3.2).
    pub(super) fn updated_headers(&self, newer: &HeaderMap) -> HeaderMap {
        const KEPT: [HeaderName; 4] = [CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE];
        let mut headers = self.headers.clone();
        for name in newer.keys().filter(|name| !KEPT.contains(name)) {
            let mut values = newer.get_all(name).iter();
            if let Some(first) = values.next() {
                headers.insert(name.clone(), first.clone());
            }
            for value in values {
                headers.append(name.clone(), value.clone());
            }
        }
        // The stored date is of the response before.
        if !newer.contains_key(DATE) {
            headers.remove(DATE);
        }
        headers
    }

    /// True if a response with these headers, for the same request, has the same representation.
    pub(super) fn matches(&self, headers: &HeaderMap) -> bool {
        let same = |name: &HeaderName| match headers.get(name) {
            Some(value) => self.headers.get(name) == Some(value),
            None => true,
        };
        let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        same(&ETAG) && same(&LAST_MODIFIED) && length.is_none_or(|length| length == self.body.len())
    }

    /// True if the caller is to validate it in the background. Nobody else is told so for the given time.
    pub(super) fn begin_refresh(&self, now: Duration, time: Duration) -> bool {
        let (now, until) = (millis(now), millis(now + time));
        self.refresh_from
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |from| (from <= now).then_some(until))
            .is_ok()
    }

    /// Lets it be validated in the background again, from a monotonic time on.
    pub(super) fn allow_refresh(&self, from: Duration) {
        self.refresh_from.store(millis(from), Ordering::Relaxed);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The tags in these headers of a response. They are parted by commas or spaces.
pub(super) fn tags_of(headers: &HeaderMap, names: &[HeaderName]) -> Box<[Box<str>]> {
    let values = names.iter().flat_map(|name| headers.get_all(name));
    let texts = values.filter_map(|value| value.to_str().ok());
    let tags = texts.flat_map(|text| text.split([',', ' ', '\t']).filter(|tag| !tag.is_empty()));
    tags.take(MOST_TAGS).map(Box::from).collect()
}

/// An entry that is shared with those who read it.
pub(super) type Shared = Arc<Entry>;
