//! Header fields that concern one connection only, or must not be in trailers: rules for both sides.

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};
use signalbox_config::arrival::{Claims, remove_claims, remove_misspelt};

pub const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
pub const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Fields of one HTTP/1.1 connection, which are forbidden in HTTP/2 (RFC 9113, section 8.2.2) and in trailers.
pub const CONNECTION_FIELDS: [HeaderName; 5] =
    [header::CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE];

/// Fields that have no meaning, or another one, after a body: they frame, route or authenticate the message, modify
/// the request, or say how the body is to be read or cached (RFC 9110, section 6.5.1; the groups are those of RFC
/// 7230, section 4.1.2).
const NOT_IN_TRAILERS: [HeaderName; 37] = [
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TRAILER,
    header::CONNECTION,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    header::UPGRADE,
    header::TE,
    header::HOST,
    header::CACHE_CONTROL,
    header::EXPECT,
    header::MAX_FORWARDS,
    header::PRAGMA,
    header::RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::WWW_AUTHENTICATE,
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("authentication-info"),
    HeaderName::from_static("proxy-authentication-info"),
    header::COOKIE,
    header::SET_COOKIE,
    header::AGE,
    header::EXPIRES,
    header::DATE,
    header::LOCATION,
    header::RETRY_AFTER,
    header::VARY,
    header::WARNING,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::CONTENT_RANGE,
];

/// Removes forbidden fields from a response's trailers.
pub fn remove_forbidden_trailers(trailers: &mut HeaderMap) {
    for name in &NOT_IN_TRAILERS {
        trailers.remove(name);
    }
}

/// Removes all fields that make claims about a client, in every spelling.
pub fn remove_all_claims(fields: &mut HeaderMap) {
    remove_claims(fields, Claims::All);
    remove_misspelt(fields);
}

/// True if the client waits for 100 (Continue) before it sends a body.
pub fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(is_continue)
}

/// True if a value of `Expect` is `100-continue`.
pub fn is_continue(expectation: &HeaderValue) -> bool {
    expectation.as_bytes().eq_ignore_ascii_case(b"100-continue")
}

/// The elements of a list header.
pub fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let values = headers.get_all(name).iter();
    values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii))
}
