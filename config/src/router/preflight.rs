//! CORS preflight requests, by which a browser asks whether it may send another request (Fetch standard, section 3.2.2).

use http::header::{ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use http::{HeaderMap, HeaderName, Method};

use super::request::RequestParts;

/// The request that a preflight asks about.
#[derive(Debug, Clone)]
pub struct Preflight<'a> {
    method: Method,
    /// Those of the preflight itself.
    headers: &'a HeaderMap,
}

impl<'a> Preflight<'a> {
    /// `None`: a request with this method and these headers is no preflight.
    pub fn of(method: &Method, headers: &'a HeaderMap) -> Option<Self> {
        if *method != Method::OPTIONS || !headers.contains_key(ORIGIN) {
            return None;
        }
        let asked = headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
        // Only a route that takes any method takes a preflight for something that is not a method.
        Some(Self { method: Method::from_bytes(asked.as_bytes()).unwrap_or(Method::OPTIONS), headers })
    }

    /// The request that it asks about, as far as it is known: with the headers of the preflight.
    pub(super) fn asked<'r>(&'r self, preflight: &RequestParts<'r>) -> RequestParts<'r> {
        RequestParts { method: &self.method, ..*preflight }
    }

    /// True if the request that it asks about will have this header. The header's value is not known.
    pub(super) fn announces(&self, name: &HeaderName) -> bool {
        let lists = self.headers.get_all(ACCESS_CONTROL_REQUEST_HEADERS);
        let mut names = lists.iter().flat_map(|list| list.as_bytes().split(|byte| *byte == b','));
        names.any(|announced| announced.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
    }
}
