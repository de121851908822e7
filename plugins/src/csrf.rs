//! Refuses requests that pages of other sites make browsers send (cross-site request forgery).
//!
//! A browser sends a user's cookies with a request whichever page made it. This plugin answers `403` to requests that change
//! something and come from a page of another origin. No token is needed, neither in forms nor in cookies:
//!
//! 1. `GET`, `HEAD` and `OPTIONS` pass, because they must not change anything (RFC 9110, section 9.2.1).
//! 2. A request of one of the `trusted_origins` passes.
//! 3. `Sec-Fetch-Site` says how the page relates to the server, and no page can set it: `same-origin` passes, and `none`,
//!    for what the user entered or chose from a bookmark. `same-site` does not, for a sister domain is another origin.
//! 4. Without it, `Origin` must be the origin that the request was sent to. `null` is the origin of a page that hides its own, and does
//!    not pass. A page without TLS is of another origin than a request over TLS: the client speaks TLS with the proxy, or with a proxy
//!    before it that is among the listener's `trusted_proxies` and says so in `X-Forwarded-Proto`. A page over TLS passes in any case,
//!    because a load balancer may end TLS without a word of it. Behind one that sends no `X-Forwarded-Proto`, a page without TLS of the
//!    same host passes, too; there, send all browsers to https (`Strict-Transport-Security`).
//! 5. With neither of them the request does not come from a browser of this decade, and passes: programs have no
//!    cookies that somebody else could make them send.
//!
//! To leave out a path, for example of a webhook, give it a route without this plugin.

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, FieldError};
use signalbox_plugin::{Context, Definition, Flow, Plugin, PluginRequest, Reply, hooks};

use crate::origin::{is_origin, without_usual_port};

/// The origins whose pages may send requests that change something.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "CSRF protection", example = serde_json::json!({}),
    example = serde_json::json!({"trusted_origins": ["https://login.example.com"]}))]
pub(crate) struct Config {
    /// Other origins whose pages may send such requests, as `https://host` or `https://host:port`.
    #[serde(default)]
    #[schemars(title = "Trusted origins")]
    trusted_origins: Vec<String>,
}

/// Refuses requests that pages of other sites make browsers send.
pub(crate) struct Csrf {
    /// In lower case, without the usual port of the scheme, as browsers write them.
    trusted: Box<[Box<str>]>,
}

#[hooks]
impl Plugin for Csrf {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        if is_safe(&request.head.method) {
            return Flow::Continue;
        }
        match self.judge(&request.head.headers, request.scheme() == "https") {
            Ok(()) => Flow::Continue,
            Err(detail) => Reply::problem(StatusCode::FORBIDDEN, detail).into(),
        }
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }
}

impl Definition for Csrf {
    const NAME: &'static str = "csrf";
    const DESCRIPTION: &'static str = "Refuses requests that pages of other sites make browsers send.";
    const ORDER: i32 = 1900;
    const CAN_SHADOW: bool = true;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        parse(config, errors);
    }

    fn build(config: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let built = parse(&config, &mut errors);
        errors.finish(Some(built))
    }
}

impl Csrf {
    /// Says why a request that changes something is refused. `https`: the client sent it over TLS, as far as is known.
    fn judge(&self, headers: &HeaderMap, https: bool) -> Result<(), &'static str> {
        let origin = only(headers, &ORIGIN).map_err(|()| "the request has more than one Origin")?;
        if origin.is_some_and(|origin| self.trusts(origin)) {
            return Ok(());
        }
        match only(headers, &SEC_FETCH_SITE).map_err(|()| "the request has more than one Sec-Fetch-Site")? {
            Some(site) if site == "same-origin" || site == "none" => return Ok(()),
            Some(_) => return Err("the request comes from a page of another origin"),
            None => {}
        }
        match (origin, headers.get(HOST)) {
            (None, _) => Ok(()),
            (Some(origin), Some(host)) if is_origin_of(origin.as_bytes(), host.as_bytes(), https) => Ok(()),
            (Some(_), _) => Err("the request comes from a page of another origin"),
        }
    }

    fn trusts(&self, origin: &HeaderValue) -> bool {
        self.trusted.iter().any(|trusted| origin.as_bytes() == trusted.as_bytes())
    }
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The safe methods of RFC 9110, section 9.2.1, without TRACE, which browsers do not send.
fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// The only value of a header; an error if there are several.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h HeaderValue>, ()> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(()) } else { Ok(first) }
}

/// True if a page of `origin` and a request to `host` have one origin. An origin is written without the usual port of its
/// scheme, and a `Host` may have it. A page that came without TLS is of another origin than a request over TLS. The other way around
/// both may be one origin: a load balancer before the proxy may end TLS.
fn is_origin_of(origin: &[u8], host: &[u8], https: bool) -> bool {
    let (authority, usual_port) = match (origin.strip_prefix(b"https://"), origin.strip_prefix(b"http://")) {
        (Some(authority), _) => (authority, &b":443"[..]),
        (None, Some(authority)) if !https => (authority, &b":80"[..]),
        (None, _) => return false,
    };
    !authority.is_empty() && authority.eq_ignore_ascii_case(host.strip_suffix(usual_port).unwrap_or(host))
}

/// Reads a configuration. Origins that are wrong are missing from the result.
fn parse(config: &Config, errors: &mut Errors) -> Csrf {
    let mut trusted = Vec::with_capacity(config.trusted_origins.len());
    for (index, origin) in config.trusted_origins.iter().enumerate() {
        let origin = without_usual_port(origin.to_ascii_lowercase());
        if is_origin(&origin) && !origin.contains('*') {
            trusted.push(origin.into());
        } else {
            errors.push(
                format_args!("trusted_origins[{index}]"),
                "must be SCHEME://HOST or SCHEME://HOST:PORT, with nothing behind it, and without wildcards",
            );
        }
    }
    Csrf { trusted: trusted.into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::{Client, build, refused};

    #[test]
    fn the_origin_of_the_page_decides() {
        let plugin = build("csrf", json!({"trusted_origins": ["https://Login.example:443"]}));
        let site = "sec-fetch-site";
        for (method, host, headers, expected) in [
            // Newer browsers.
            ("POST", "a.example", &[(site, "same-origin")][..], 200),
            ("POST", "a.example", &[(site, "none")], 200),
            ("POST", "a.example", &[(site, "same-site")], 403),
            ("POST", "a.example", &[(site, "cross-site")], 403),
            ("POST", "a.example", &[(site, "")], 403),
            ("POST", "a.example", &[(site, "same-origin"), (site, "cross-site")], 403),
            ("POST", "a.example", &[(site, "cross-site"), ("origin", "https://a.example")], 403),
            ("POST", "a.example", &[(site, "cross-site"), ("origin", "https://login.example")], 200),
            ("POST", "a.example", &[(site, "cross-site"), ("origin", "http://login.example")], 403),
            ("POST", "a.example", &[(site, "cross-site"), ("origin", "https://login.example.evil")], 403),
            ("POST", "a.example", &[("origin", "https://login.example"), ("origin", "https://evil")], 403),
            // Older ones.
            ("POST", "a.example", &[("origin", "https://a.example")], 200),
            ("POST", "A.example:443", &[("origin", "https://a.example")], 200),
            ("POST", "a.example:80", &[("origin", "http://a.example")], 200),
            ("POST", "a.example:80", &[("origin", "https://a.example")], 403),
            ("POST", "a.example:8443", &[("origin", "https://a.example:8443")], 200),
            ("POST", "a.example:8443", &[("origin", "https://a.example")], 403),
            ("POST", "a.example", &[("origin", "https://evil.example")], 403),
            ("POST", "a.example", &[("origin", "https://a.example.evil")], 403),
            ("POST", "a.example", &[("origin", "null")], 403),
            ("POST", "", &[("origin", "https://")], 403),
            ("POST", "a.example", &[("origin", "")], 403),
            // Programs.
            ("POST", "a.example", &[], 200),
            // Methods.
            ("GET", "a.example", &[(site, "cross-site")], 200),
            ("HEAD", "a.example", &[(site, "cross-site")], 200),
            ("OPTIONS", "a.example", &[(site, "cross-site")], 200),
            ("DELETE", "a.example", &[(site, "cross-site")], 403),
            ("get", "a.example", &[(site, "cross-site")], 403),
        ] {
            let mut client = Client::new(method, "/").header("host", host);
            for (name, value) in headers {
                client = client.header(name, value);
            }
            let status = client.meets(&*plugin).map_or(200, |answer| answer.status);
            assert_eq!(status, expected, "{method} {host} {headers:?}");
        }
    }

    #[test]
    fn a_page_without_tls_is_of_another_origin_than_a_request_over_tls() {
        let plugin = build("csrf", json!({}));
        for (https, forwarded, origin, expected) in [
            (true, None, "https://a.example", 200),
            (true, None, "http://a.example", 403),
            (false, None, "http://a.example", 200),
            // A load balancer before the proxy ended TLS.
            (false, None, "https://a.example", 200),
            (false, Some("https"), "https://a.example", 200),
            (false, Some("https"), "http://a.example", 403),
            // The last of several proxies says how the one before it came.
            (false, Some("http"), "https://a.example", 200),
            (true, Some("http"), "http://a.example", 200),
        ] {
            let mut client = Client::new("POST", "/").header("host", "a.example").header("origin", origin);
            client.https = https;
            if let Some(scheme) = forwarded {
                client = client.header("x-forwarded-proto", scheme);
            }
            let status = client.meets(&*plugin).map_or(200, |answer| answer.status);
            assert_eq!(status, expected, "{https} {forwarded:?} {origin}");
        }
        // An origin that is trusted is trusted with its scheme.
        let plugin = build("csrf", json!({"trusted_origins": ["http://a.example"]}));
        let mut client =
            Client::new("POST", "/").header("host", "a.example").header("origin", "http://a.example");
        client.https = true;
        assert!(client.meets(&*plugin).is_none());
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for bad in ["a.example", "https://a.example/", "https://*.a.example", "null", "", "*", "https://"] {
            let errors = refused("csrf", json!({"trusted_origins": [bad]}));
            assert!(errors.starts_with("trusted_origins[0]: "), "{bad}: {errors}");
        }
    }
}
