//! A request's target as the request line has it (RFC 9112, section 3.2).

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Method, Uri};

use crate::path;

/// Why a target cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadTarget {
    /// It is longer than it may be.
    TooLong,
    /// It is no target.
    Malformed,
}

/// Reads a target of at most `limit` bytes. Characters that no target has, but that clients send all the same, are
/// percent-encoded.
pub fn read(raw: Bytes, method: &Method, limit: usize) -> Result<Uri, BadTarget> {
    if raw.len() > limit {
        return Err(BadTarget::TooLong);
    }
    if raw.first() != Some(&b'/') && *method != Method::CONNECT {
        return read_absolute(&raw, method, limit);
    }
    let raw = match path::encode(&raw) {
        None => raw,
        Some(encoded) if encoded.len() > limit => return Err(BadTarget::TooLong),
        Some(encoded) => Bytes::from(encoded),
    };
    Uri::from_maybe_shared(raw).map_err(|_| BadTarget::Malformed)
}

/// Reads a target that is no path: `http://host/path`, or `*`.
fn read_absolute(raw: &[u8], method: &Method, limit: usize) -> Result<Uri, BadTarget> {
    let (origin, path) = split_origin(raw);
    let is_absolute = origin.contains(&b':');
    let mut target = origin.to_vec();
    if is_absolute && matches!(path.first(), Some(b'?' | b'#')) {
        // An empty path is `/` (RFC 9110, section 4.2.3).
        target.push(b'/');
    }
    match path::encode(path) {
        Some(encoded) => target.extend_from_slice(encoded.as_bytes()),
        None => target.extend_from_slice(path),
    }
    if target.len() > limit {
        return Err(BadTarget::TooLong);
    }
    let uri = Uri::from_maybe_shared(target).map_err(|_| BadTarget::Malformed)?;
    if *method != Method::OPTIONS || !is_absolute || !path.is_empty() {
        return Ok(uri);
    }
    // `OPTIONS http://host` asks for the host as a whole (RFC 9112, section 3.2.4); `OPTIONS http://host/` does not.
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static("*"));
    Uri::from_parts(parts).map_err(|_| BadTarget::Malformed)
}

/// Splits a target into scheme with authority, and the rest, which alone may be encoded.
pub fn split_origin(target: &[u8]) -> (&[u8], &[u8]) {
    let scheme = match target.first() {
        Some(b'/') | None => 0,
        Some(_) => target.windows(3).position(|three| three == b"://").map_or(target.len(), |at| at + 3),
    };
    let rest = target.get(scheme..).unwrap_or_default();
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    target.split_at(scheme + end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read() {
        for (method, raw, expected) in [
            (Method::GET, "/a?b", Ok("/a?b")),
            (Method::GET, "/a|b", Ok("/a%7Cb")),
            (Method::GET, "/a b", Err(BadTarget::Malformed)),
            (Method::GET, "http://h/a|b", Ok("http://h/a%7Cb")),
            (Method::GET, "http://h/a b", Err(BadTarget::Malformed)),
            (Method::GET, "http://h?q", Ok("http://h/?q")),
            (Method::GET, "http://h", Ok("http://h/")),
            (Method::GET, "http://a b/", Err(BadTarget::Malformed)),
            (Method::GET, "", Err(BadTarget::Malformed)),
            (Method::GET, "/0123456789012345", Err(BadTarget::TooLong)),
            (Method::GET, "/\u{e4}\u{e4}\u{e4}", Err(BadTarget::TooLong)),
            (Method::OPTIONS, "*", Ok("*")),
            (Method::OPTIONS, "http://h/", Ok("http://h/")),
            (Method::CONNECT, "h:443", Ok("h:443")),
        ] {
            let read = read(Bytes::from(raw), &method, 16).map(|uri| uri.to_string());
            assert_eq!(read, expected.map(str::to_owned), "{method} {raw}");
        }
        let whole = read(Bytes::from_static(b"http://h"), &Method::OPTIONS, 16).unwrap();
        assert_eq!((whole.host(), whole.path()), (Some("h"), "*"));
    }
}
