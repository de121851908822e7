//! The validation of stored responses by the upstream (RFC 9111, section 4.3).

use std::sync::Arc;
use std::time::Duration;

use http::header::{ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use http::{HeaderMap, HeaderValue};

use super::entry::{Entry, Shared};
use super::freshness::Received;
use super::store::{Store, Ticket};
use super::storing::{Asked, Rules};

/// Lets a request ask if a stored response is still right, in the place of what its client asked. `false`: the response has nothing to
/// ask by.
pub(super) fn set_conditions(headers: &mut HeaderMap, entry: &Entry) -> bool {
    let etag = entry.headers.get(ETAG);
    let modified = entry.headers.get(LAST_MODIFIED);
    if etag.is_none() && modified.is_none() {
        return false;
    }
    for (name, value) in [(IF_NONE_MATCH, etag), (IF_MODIFIED_SINCE, modified)] {
        match value {
            Some(value) => drop(headers.insert(name, value.clone())),
            None => drop(headers.remove(name)),
        }
    }
    true
}

/// The moments of a response that says that a stored one is still right, or is a new one in its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrived {
    pub(super) received: Received,
    /// The monotonic time.
    pub(super) now: Duration,
    pub(super) ticket: Ticket,
}

/// Makes a stored response fresh by the headers of the one that validated it, and stores it again if it may still be stored. Returns the
/// response to answer by.
pub(super) fn freshen(
    store: &Arc<Store>,
    rules: &Rules,
    asked: Asked<'_>,
    entry: &Shared,
    newer: &HeaderMap,
    Arrived { received, now, ticket }: Arrived,
) -> Shared {
    if !is_about(entry, newer) {
        store.remove(entry);
        return Arc::clone(entry);
    }
    let headers = entry.updated_headers(newer);
    let Ok(draft) = rules.draft(asked, entry.status, &headers, received, now) else {
        store.remove(entry);
        return Arc::clone(entry);
    };
    let answer = Arc::new(draft.clone().with_body(entry.body.clone()));
    if let Some(reservation) = store.reserve(answer.size) {
        store.insert(draft, entry.body.clone(), ticket, reservation);
    }
    answer
}

/// True unless a `304` is about another response than the stored one: it has another strong tag.
fn is_about(entry: &Entry, newer: &HeaderMap) -> bool {
    let strong = |value: &&HeaderValue| value.as_bytes().starts_with(b"\"");
    match (newer.get(ETAG).filter(strong), entry.headers.get(ETAG)) {
        (Some(new), Some(stored)) => opaque(new) == opaque(stored),
        _ => true,
    }
}

fn opaque(etag: &HeaderValue) -> &[u8] {
    etag.as_bytes().strip_prefix(b"W/").unwrap_or(etag.as_bytes())
}
