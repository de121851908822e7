//! Which of several stored responses fits a request (RFC 9111, section 4.1).

use http::header::{HeaderName, VARY};
use http::{HeaderMap, HeaderValue};
use signalbox_config::arrival::CLIENT_CERTIFICATE;

/// The request headers that chose a response, each with its value; `None`: the request did not have it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Selection(Box<[(HeaderName, Value)]>);

/// The values of a header in one; `None`: there is none.
type Value = Option<Box<[u8]>>;

/// The most names that `Vary` of a stored response may have.
const MOST_NAMES: usize = 16;

/// The headers that the proxy writes behind the plugins, besides those of a client's certificate, so that a cache cannot tell their
/// values apart.
const WRITTEN_LATER: [&str; 5] = ["forwarded", "traceparent", "x-forwarded-for", "x-real-ip", "x-request-id"];

impl Selection {
    /// The selection by `Vary` of a response to a request. `None`: no other request can be told to fit.
    pub(super) fn of(response: &HeaderMap, request: &HeaderMap) -> Option<Self> {
        let mut names: Vec<HeaderName> = Vec::new();
        for value in response.get_all(VARY) {
            for name in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if name.is_empty() {
                    continue;
                }
                // `*` is a token, so it has to be looked at before the names.
                let name = HeaderName::from_bytes(name).ok().filter(|_| name != b"*")?;
                if WRITTEN_LATER.contains(&name.as_str()) || CLIENT_CERTIFICATE.contains(&name) {
                    return None;
                }
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        if names.len() > MOST_NAMES {
            return None;
        }
        names.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        Some(Self(names.into_iter().map(|name| (name.clone(), combined(request, &name))).collect()))
    }

    /// True if the request has the same values.
    pub(super) fn fits(&self, request: &HeaderMap) -> bool {
        self.0.iter().all(|(name, value)| combined(request, name) == *value)
    }

    /// The selection by the same headers for another request.
    pub(super) fn for_request(&self, request: &HeaderMap) -> Self {
        Self(self.0.iter().map(|(name, _)| (name.clone(), combined(request, name))).collect())
    }

    /// The bytes that it takes in memory.
    pub(super) fn size(&self) -> usize {
        self.0
            .iter()
            .map(|(name, value)| 64 + name.as_str().len() + value.as_ref().map_or(0, |it| it.len()))
            .sum()
    }

    /// Appends it to a key, so that no two selections look alike there.
    pub(super) fn write(&self, key: &mut Vec<u8>) {
        for (name, value) in &self.0 {
            write_text(key, Some(name.as_str().as_bytes()));
            write_text(key, value.as_deref());
        }
    }
}

/// Appends a text and its length to a key.
pub(super) fn write_text(key: &mut Vec<u8>, text: Option<&[u8]>) {
    match text {
        None => key.push(0),
        Some(text) => {
            key.push(1);
            key.extend_from_slice(&(text.len() as u64).to_le_bytes());
            key.extend_from_slice(text);
        }
    }
}

/// All values of a header in one, without the spaces around commas.
pub(super) fn combined(headers: &HeaderMap, name: &HeaderName) -> Value {
    let mut values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let first = values.next()?;
    let mut all: Vec<u8> = Vec::with_capacity(first.len());
    for (index, value) in [first].into_iter().chain(values).enumerate() {
        if index > 0 {
            all.push(b',');
        }
        for (index, part) in value.split(|byte| *byte == b',').enumerate() {
            if index > 0 {
                all.push(b',');
            }
            all.extend_from_slice(part.trim_ascii());
        }
    }
    Some(all.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_request_fits_if_all_named_headers_have_the_same_values() {
        let vary = headers(&[("vary", "A, b"), ("vary", ",a")]);
        let selection = Selection::of(&vary, &headers(&[("a", "1, 2"), ("c", "x")])).unwrap();
        assert!(selection.fits(&headers(&[("a", "1,2")])));
        assert!(selection.fits(&headers(&[("a", "1"), ("a", "2"), ("c", "y")])));
        assert!(!selection.fits(&headers(&[("a", "2, 1")])));
        assert!(!selection.fits(&headers(&[("a", "1, 2"), ("b", "")])));
        assert!(!selection.fits(&headers(&[])));
        assert_eq!(selection.for_request(&headers(&[("a", "1,2")])), selection);
    }

    #[test]
    fn a_response_that_fits_nothing_else_has_no_selection() {
        for vary in ["*", "a, *", "x-forwarded-for", "X-Request-Id", "X-Client-Cert-San", "bad name"] {
            let mut response = HeaderMap::new();
            response.insert("vary", HeaderValue::from_static(vary));
            assert_eq!(Selection::of(&response, &HeaderMap::new()), None, "{vary}");
        }
        assert_eq!(Selection::of(&HeaderMap::new(), &HeaderMap::new()), Some(Selection::default()));
    }

    #[test]
    fn no_two_selections_have_one_key() {
        let key = |fields: &[(&'static str, &'static str)]| {
            let vary = headers(&[("vary", "a, b")]);
            let mut key = Vec::new();
            Selection::of(&vary, &headers(fields)).unwrap().write(&mut key);
            key
        };
        let keys = [key(&[]), key(&[("a", "")]), key(&[("b", "")]), key(&[("a", "1")]), key(&[("a", "b")])];
        for (index, one) in keys.iter().enumerate() {
            assert!(keys.iter().skip(index + 1).all(|other| other != one));
        }
    }
}
