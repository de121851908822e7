use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::consumers::Identity;

/// Facts about a request and its response beyond their heads.
#[derive(Debug, Default)]
pub struct Exchange {
    /// The client's identity, once a plugin has found it out.
    pub identity: Option<Identity>,
    /// True if the headers of the identity are not put into the request's head: no plugin uses them.
    pub(crate) defers_identity: bool,
    /// Inline for the six of `rate-limit` and two more.
    response_headers: SmallVec<[(HeaderName, HeaderValue, Placement); 8]>,
}

#[derive(Debug, Clone, Copy)]
enum Placement {
    Set,
    Append,
}

impl Exchange {
    /// Leaves the headers of the identity to the proxy, because no plugin of the request uses them.
    pub fn defer_identity(&mut self) {
        self.defers_identity = true;
    }

    /// The headers by which the upstream learns the client's identity, as far as they are not in the request's head.
    pub fn deferred_headers(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.identity.iter().filter(|_| self.defers_identity).flat_map(Identity::headers)
    }

    /// Sets a header on whatever answer goes to the client, the proxy's own errors included.
    pub fn set_response_header(&mut self, name: HeaderName, value: HeaderValue) {
        if self.response_headers.iter().any(|(before, ..)| *before == name) {
            self.response_headers.retain(|(before, ..)| *before != name);
        }
        self.response_headers.push((name, value, Placement::Set));
    }

    /// Adds a header beside those of its name (`Vary`).
    pub fn append_response_header(&mut self, name: HeaderName, value: HeaderValue) {
        self.response_headers.push((name, value, Placement::Append));
    }

    /// The headers that were set and added, in this order. They belong on the answer behind its own headers, except
    /// those that one of them [replaces](Self::replaces).
    pub fn response_headers(&self) -> impl ExactSizeIterator<Item = (&HeaderName, &HeaderValue)> {
        self.response_headers.iter().map(|(name, value, _)| (name, value))
    }

    /// True if an answer's own headers of this name are left out.
    pub fn replaces(&self, name: &HeaderName) -> bool {
        self.response_headers
            .iter()
            .any(|(set, _, placement)| matches!(placement, Placement::Set) && set == name)
    }

    /// Puts those headers into the map of an answer. The proxy calls it once, after the `on_response` hooks.
    pub fn write_response_headers(&mut self, headers: &mut HeaderMap) {
        for (name, value, placement) in self.response_headers.drain(..) {
            match placement {
                Placement::Set => headers.insert(name, value).map_or((), drop),
                Placement::Append => drop(headers.append(name, value)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_headers_are_set_or_appended_in_order() {
        let mut exchange = Exchange::default();
        exchange.set_response_header(http::header::SERVER, HeaderValue::from_static("a"));
        exchange.append_response_header(http::header::VARY, HeaderValue::from_static("origin"));
        exchange.set_response_header(http::header::SERVER, HeaderValue::from_static("b"));
        assert!(exchange.replaces(&http::header::SERVER) && !exchange.replaces(&http::header::VARY));
        let texts =
            |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        let added: Vec<_> = exchange.response_headers().map(texts).collect();
        assert_eq!(added, ["vary: origin", "server: b"]);
        let mut headers = HeaderMap::new();
        headers.insert(http::header::SERVER, HeaderValue::from_static("upstream"));
        headers.insert(http::header::VARY, HeaderValue::from_static("accept"));
        exchange.write_response_headers(&mut headers);
        assert_eq!(headers.get_all(http::header::SERVER).iter().collect::<Vec<_>>(), ["b"]);
        assert_eq!(headers.get_all(http::header::VARY).iter().collect::<Vec<_>>(), ["accept", "origin"]);
    }
}
