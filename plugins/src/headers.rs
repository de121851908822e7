//! Headers as configurations name them, and as messages have them.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Headers that frame a message or belong to one connection (RFC 9110, section 7.6.1).
const UNTOUCHABLE: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The name of a header that a plugin may change.
pub(crate) fn header_name(name: &str) -> Result<HeaderName, String> {
    let name: HeaderName = name.parse().map_err(|_| format!("{name:?} is not the name of a header"))?;
    match name.as_str() {
        "host" => Err("the host is changed by the route's rewrite.host".to_owned()),
        text if UNTOUCHABLE.contains(&text) => {
            Err(format!("{text} frames the message or belongs to the connection, and cannot be changed"))
        }
        _ => Ok(name),
    }
}

/// The value of a header that is there exactly once.
pub(crate) fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}
