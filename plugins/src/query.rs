//! Reading and editing a URI's query, parameter by parameter, without touching the others.

use std::borrow::Cow;

use http::Uri;
use http::uri::PathAndQuery;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};
use smallvec::SmallVec;

/// One parameter as it stands in a query: `name=value`, `name`, or nothing at all between two `&`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parameter<'a>(&'a str);

/// A decoded value. API keys and the like fit without an allocation.
pub(crate) type Decoded = SmallVec<[u8; 128]>;

/// The characters that need percent-encoding in a query: all but the unreserved ones of RFC 3986, section 2.3.
const ENCODED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The parameters of a query, in order.
pub(crate) fn parameters(query: &str) -> impl Iterator<Item = Parameter<'_>> {
    query.split('&').map(Parameter)
}

/// A name or value as it is written into a query.
pub(crate) fn encode(text: &str) -> Cow<'_, str> {
    utf8_percent_encode(text, &ENCODED).into()
}

/// The same for bytes that may be no text, part by part.
pub(crate) fn encode_bytes(bytes: &[u8]) -> impl Iterator<Item = &str> {
    percent_encode(bytes, &ENCODED)
}

/// The same URI with another query; `None` when there is none to put it on (`OPTIONS *`, `CONNECT`).
pub(crate) fn with_query(uri: &Uri, query: &str) -> Option<Uri> {
    let path = match uri.path_and_query()?.path() {
        "*" => return None,
        path => path,
    };
    let path_and_query = match query {
        "" => PathAndQuery::try_from(path),
        query => PathAndQuery::try_from(format!("{path}?{query}")),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path_and_query.ok()?);
    Uri::from_parts(parts).ok()
}

impl<'a> Parameter<'a> {
    /// As it stands.
    pub(crate) fn text(self) -> &'a str {
        self.0
    }

    /// Its value as it stands; `None` when it has none, not even an empty one.
    pub(crate) fn raw_value(self) -> Option<&'a str> {
        self.0.split_once('=').map(|(_, value)| value)
    }

    /// True if its name is `name` once decoded.
    pub(crate) fn is_named(self, name: &str) -> bool {
        let raw = self.0.split_once('=').map_or(self.0, |(name, _)| name);
        if raw == name {
            return !raw.is_empty() && !needs_decoding(raw);
        }
        needs_decoding(raw) && decode(raw).eq(name.bytes())
    }

    /// Its name and its value, decoded; `None`: they are not UTF-8.
    pub(crate) fn texts(self) -> Option<(String, String)> {
        let text = |raw| String::from_utf8(decode(raw).collect()).ok();
        let (name, value) = self.0.split_once('=').unwrap_or((self.0, ""));
        Some((text(name)?, text(value)?))
    }

    /// Its value, decoded; empty when it has none.
    pub(crate) fn value(self) -> Decoded {
        let raw = self.raw_value().unwrap_or_default();
        if needs_decoding(raw) { decode(raw).collect() } else { Decoded::from_slice(raw.as_bytes()) }
    }
}

fn needs_decoding(raw: &str) -> bool {
    raw.bytes().any(|byte| matches!(byte, b'%' | b'+'))
}

/// As forms are decoded: `+` is a space; a `%` without two hexadecimal digits stays.
fn decode(raw: &str) -> impl Iterator<Item = u8> + '_ {
    raw.split('+').enumerate().flat_map(|(index, part)| {
        (index > 0).then_some(b' ').into_iter().chain(percent_encoding::percent_decode_str(part))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_values_are_decoded() {
        for (text, name, value) in [
            ("a=1", "a", "1"),
            ("a", "a", ""),
            ("a=", "a", ""),
            ("a=b=c", "a", "b=c"),
            ("%61pi+key=x%20y+z", "api key", "x y z"),
            ("a=%zz%4", "a", "%zz%4"),
        ] {
            let parameter = Parameter(text);
            assert!(parameter.is_named(name), "{text}");
            assert_eq!(parameter.value().as_slice(), value.as_bytes(), "{text}");
        }
        assert!(!Parameter("").is_named(""));
        assert!(!Parameter("a+b").is_named("a+b"));
        assert!(Parameter("a%2Bb").is_named("a+b"));
        assert!(!Parameter("A=1").is_named("a"));
    }

    #[test]
    fn a_query_is_put_on_every_form_of_uri_that_has_a_path() {
        for (uri, query, after) in [
            ("/a?b", "c=d", "/a?c=d"),
            ("/a?b", "", "/a"),
            ("http://h:1/a", "c", "http://h:1/a?c"),
            ("http://h", "c", "http://h/?c"),
        ] {
            assert_eq!(with_query(&uri.parse().unwrap(), query).unwrap(), after.parse::<Uri>().unwrap());
        }
        assert!(with_query(&Uri::from_static("*"), "a").is_none());
        assert!(with_query(&Uri::from_static("host:1"), "a").is_none());
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_again(name in "\\PC{1,12}", value in "\\PC{0,12}") {
            let text = format!("{}={}", encode(&name), encode(&value));
            let uri = with_query(&Uri::from_static("/"), &text).unwrap();
            let found = parameters(uri.query().unwrap()).next().unwrap();
            prop_assert!(found.is_named(&name));
            prop_assert_eq!(found.value().to_vec(), value.into_bytes());
        }
    }
}
