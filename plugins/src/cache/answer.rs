//! Answers by stored responses: conditions, parts, and requests for the head alone (RFC 9110, sections 13 and 14).

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use super::entry::Entry;
use super::freshness::parse_date;

/// The answer to a request with these headers by a stored response.
pub(super) fn answer(entry: &Entry, method: &Method, request: &HeaderMap, now: Duration) -> Response<Bytes> {
    let mut response = Response::new(entry.body.clone());
    *response.status_mut() = entry.status;
    *response.headers_mut() = entry.headers_at(now);
    if entry.status != StatusCode::OK {
        return response;
    }
    if is_unmodified(entry, request) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response.headers_mut().remove(CONTENT_LENGTH);
        *response.body_mut() = Bytes::new();
        return response;
    }
    let range = request.get(RANGE).filter(|_| *method == Method::GET && may_be_part(entry, request));
    match range.and_then(|range| parse_range(range.as_bytes(), entry.body.len() as u64)) {
        None => {}
        Some(Some((from, to))) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let size = entry.body.len();
            set(response.headers_mut(), &format!("bytes {from}-{}/{size}", to - 1));
            // The bounds are within the body, whose size is one of memory.
            *response.body_mut() = entry.body.slice(from as usize..to as usize);
        }
        Some(None) => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            set(response.headers_mut(), &format!("bytes */{}", entry.body.len()));
            for name in [CONTENT_TYPE, CONTENT_ENCODING] {
                response.headers_mut().remove(name);
            }
            *response.body_mut() = Bytes::new();
        }
    }
    response
}

fn set(headers: &mut HeaderMap, range: &str) {
    headers.remove(CONTENT_LENGTH);
    if let Ok(value) = HeaderValue::from_str(range) {
        headers.insert(CONTENT_RANGE, value);
    }
}

/// True if the client has the stored response already.
fn is_unmodified(entry: &Entry, request: &HeaderMap) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        let tags: Vec<&HeaderValue> = request.get_all(IF_NONE_MATCH).iter().collect();
        return tags.iter().any(|tags| tags.as_bytes().trim_ascii() == b"*")
            || entry.headers.get(ETAG).is_some_and(|etag| names_tag(request, etag));
    }
    let since = request.get(IF_MODIFIED_SINCE).and_then(parse_date);
    since.zip(modified_at(entry)).is_some_and(|(since, modified)| modified <= since)
}

fn modified_at(entry: &Entry) -> Option<SystemTime> {
    let modified = entry.headers.get(LAST_MODIFIED).or_else(|| entry.headers.get(DATE));
    modified.and_then(parse_date)
}

/// True if `If-None-Match` of a request names a tag, by the weak comparison.
pub(super) fn names_tag(request: &HeaderMap, etag: &HeaderValue) -> bool {
    let wanted = opaque(etag.as_bytes());
    request.get_all(IF_NONE_MATCH).iter().any(|value| tags(value.as_bytes()).any(|tag| opaque(tag) == wanted))
}

/// A tag without the mark of a weak one.
fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// The tags of a list. A comma within quotes parts nothing.
fn tags(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut is_quoted = false;
    let parts = list.split(move |byte| {
        is_quoted ^= *byte == b'"';
        *byte == b',' && !is_quoted
    });
    parts.map(<[u8]>::trim_ascii).filter(|tag| !tag.is_empty())
}

/// True if a part of the stored response would fit what the client has.
fn may_be_part(entry: &Entry, request: &HeaderMap) -> bool {
    let Some(condition) = request.get(IF_RANGE) else { return true };
    let bytes = condition.as_bytes();
    if bytes.starts_with(b"\"") {
        // The strong comparison: neither may be weak.
        return entry.headers.get(ETAG) == Some(condition);
    }
    !bytes.starts_with(b"W/") && entry.headers.get(LAST_MODIFIED) == Some(condition)
}

/// The bounds of the one range that a request names. `None`: it names none, or several, which are answered by the whole;
/// `Some(None)`: there are no such bytes.
fn parse_range(value: &[u8], size: u64) -> Option<Option<(u64, u64)>> {
    let text = std::str::from_utf8(value).ok()?;
    let (unit, range) = text.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    let (first, last) = (first.trim(), last.trim());
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !unit.trim().eq_ignore_ascii_case("bytes") || !is_number(first) || !is_number(last) {
        return None;
    }
    let number = |text: &str| text.parse().unwrap_or(u64::MAX);
    let bounds = match (first.is_empty(), last.is_empty()) {
        (true, true) => return None,
        (true, false) => (size.saturating_sub(number(last)), size),
        (false, true) => (number(first), size),
        (false, false) if number(first) > number(last) => return None,
        (false, false) => (number(first), number(last).saturating_add(1).min(size)),
    };
    Some(Some(bounds).filter(|(from, to)| from < to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_understood() {
        for (value, expected) in [
            ("bytes=0-3", Some(Some((0, 4)))),
            ("bytes=2-", Some(Some((2, 10)))),
            ("bytes=-3", Some(Some((7, 10)))),
            ("bytes=-30", Some(Some((0, 10)))),
            ("bytes=4-99999999999999999999", Some(Some((4, 10)))),
            ("bytes=10-", Some(None)),
            ("bytes=-0", Some(None)),
            ("bytes=3-2", None),
            ("bytes=0-1,4-5", None),
            ("bytes=-", None),
            ("bytes=a-b", None),
            ("lines=0-3", None),
            ("bytes", None),
        ] {
            assert_eq!(parse_range(value.as_bytes(), 10), expected, "{value}");
        }
        assert_eq!(parse_range(b"bytes=0-", 0), Some(None));
    }

    #[test]
    fn tags_are_compared_without_their_weakness() {
        let request = |value| {
            let mut headers = HeaderMap::new();
            headers.insert(IF_NONE_MATCH, HeaderValue::from_static(value));
            headers
        };
        let etag = HeaderValue::from_static("\"a,b\"");
        for given in ["\"a,b\"", "W/\"a,b\"", "\"x\", \"a,b\"", "\"x\" ,W/\"a,b\""] {
            assert!(names_tag(&request(given), &etag), "{given}");
        }
        for given in ["\"a\"", "\"a, b\"", "a,b", ""] {
            assert!(!names_tag(&request(given), &etag), "{given}");
        }
    }
}
