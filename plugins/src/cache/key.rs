//! The key under which responses are stored.

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{HOST, HeaderName, HeaderValue};
use signalbox_config::Name;
use signalbox_plugin::PluginRequest;

use super::vary::{combined, write_text};

/// The requests that one stored response could answer, as far as `Vary` says nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// The URL: scheme, host, port, path and query, as text.
    pub(super) url: Arc<str>,
    /// The route that the request took.
    pub(super) route: Name,
    /// The other properties that tell requests for the URL apart: the route, the upstream, the consumer, further headers.
    pub(super) partition: Arc<[u8]>,
}

/// The headers by which servers behind a proxy find out what was asked for. Who could send one that is no part of the key could
/// have an answer stored that is not for others.
const ADDRESSING: [&str; 8] = [
    "forwarded",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-host",
    "x-original-url",
    "x-rewrite-url",
];

/// True if servers find out what was asked for by this header. Some take `_` and `.` in names for `-`.
fn is_addressing(name: &HeaderName) -> bool {
    let name = match name.as_str() {
        name if name.contains(['_', '.']) => Cow::Owned(name.replace(['_', '.'], "-")),
        name => Cow::Borrowed(name),
    };
    ADDRESSING.contains(&&*name) || name.starts_with("x-forwarded-") && name != "x-forwarded-for"
}

impl Key {
    /// The key of a request. `headers` are part of it, and so is the consumer if the cache is kept `per_consumer`.
    pub(super) fn of(request: &PluginRequest<'_>, headers: &[HeaderName], per_consumer: bool) -> Self {
        let mut partition = Vec::with_capacity(64);
        write_text(&mut partition, Some(request.route.as_str().as_bytes()));
        // A plugin may have chosen it.
        write_text(&mut partition, request.upstream.map(|upstream| upstream.as_str().as_bytes()));
        let consumer = request.exchange.identity.as_ref().filter(|_| per_consumer);
        write_text(&mut partition, consumer.map(|identity| identity.consumer.name.as_str().as_bytes()));
        let credential = consumer.and_then(|identity| identity.credential.as_ref());
        write_text(&mut partition, credential.map(HeaderValue::as_bytes));
        for name in headers {
            write_text(&mut partition, combined(&request.head.headers, name).as_deref());
        }
        // Few requests have one of these.
        for name in request.head.headers.keys().filter(|name| is_addressing(name)) {
            write_text(&mut partition, Some(name.as_str().as_bytes()));
            write_text(&mut partition, combined(&request.head.headers, name).as_deref());
        }
        Self { url: url_of(request).into(), route: request.route.clone(), partition: partition.into() }
    }
}

/// The URL of a request.
pub(super) fn url_of(request: &PluginRequest<'_>) -> String {
    let host = request.head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let target = request.head.uri.path_and_query().map_or("/", |target| target.as_str());
    url(request.https, host, target)
}

/// The URL of these parts. The host is in lower case, and the scheme's own port is left out.
pub(super) fn url(https: bool, host: &str, target: &str) -> String {
    let (scheme, port) = if https { ("https", ":443") } else { ("http", ":80") };
    let host = host.strip_suffix(port).unwrap_or(host);
    let host: Cow<'_, str> = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        host.to_ascii_lowercase().into()
    } else {
        host.into()
    };
    format!("{scheme}://{host}{target}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_address_are_known_in_every_spelling() {
        for (name, expected) in [
            ("x-original-url", true),
            ("x_original.url", true),
            ("x-http-method", true),
            ("x-forwarded-ssl", true),
            ("x-forwarded-for", false),
            ("accept", false),
        ] {
            assert_eq!(is_addressing(&HeaderName::from_static(name)), expected, "{name}");
        }
    }

    #[test]
    fn urls_are_written_in_one_way() {
        assert_eq!(url(false, "Example.COM:80", "/A?b=C"), "http://example.com/A?b=C");
        assert_eq!(url(true, "example.com:443", "/"), "https://example.com/");
        assert_eq!(url(true, "example.com:80", "/"), "https://example.com:80/");
        assert_eq!(url(false, "[::1]:8080", "/"), "http://[::1]:8080/");
    }
}
