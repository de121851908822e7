//! The rules for heads: which fields are removed, added or refused.

use std::borrow::Cow;
use std::time::Duration;

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Uri, Version, request};
use signalbox_config::arrival::{
    CLIENT_CERTIFICATE, X_FORWARDED_FOR, X_FORWARDED_HOST, is_misspelt, remove_misspelt, tells_otherwise,
};
pub use signalbox_config::arrival::{Claims, remove_claims};
pub(super) use signalbox_config::arrival::{X_FORWARDED_PROTO, X_REQUEST_ID};
use signalbox_config::{ClientCertificate, host};
use signalbox_plugin::grpc::is_grpc;
use signalbox_plugin::trace_context::{self, TRACEPARENT, TRACESTATE, TraceContext};
use signalbox_plugin::{Consumers, Exchange as PluginNotes};
use smallvec::SmallVec;

use super::trace::TraceFields;
use crate::core::failure::Failure;
use crate::core::fields::{KEEP_ALIVE, PROXY_CONNECTION};

/// Request fields whose values rarely repeat, or that identify a client.
const SELDOM_REPEATED: [HeaderName; 4] = [X_REQUEST_ID, TRACEPARENT, TRACESTATE, X_FORWARDED_FOR];

/// The fields of a head that the proxy has to handle, found in one pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeaderFlags(u32);

impl HeaderFlags {
    const CONNECTION: Self = Self(1);
    const KEEP_ALIVE: Self = Self(1 << 1);
    const PROXY_CONNECTION: Self = Self(1 << 2);
    const TRANSFER_ENCODING: Self = Self(1 << 3);
    const TE: Self = Self(1 << 4);
    const UPGRADE: Self = Self(1 << 5);
    const PROXY_AUTHENTICATE: Self = Self(1 << 6);
    const PROXY_AUTHORIZATION: Self = Self(1 << 7);
    /// One of [`Consumers::HEADERS`].
    const CONSUMER: Self = Self(1 << 8);
    const EXPECT: Self = Self(1 << 9);
    /// `traceparent` or `tracestate`.
    const TRACE: Self = Self(1 << 10);
    const COOKIE: Self = Self(1 << 11);
    const COOKIES: Self = Self(1 << 12);
    const HOST: Self = Self(1 << 13);
    const HOSTS: Self = Self(1 << 14);
    /// One of the forwarded headers, which the proxy sets itself.
    const FORWARDED: Self = Self(1 << 15);
    const LENGTH: Self = Self(1 << 16);
    const LENGTHS: Self = Self(1 << 17);
    const GRPC_TIMEOUT: Self = Self(1 << 18);
    /// A client certificate header, which only the proxy may set.
    const CLIENT_CERTIFICATE: Self = Self(1 << 19);
    /// A field of the above two groups, a claim about a client, or a framing field in another spelling: many servers
    /// take `X_A` for `X-A`.
    const ALTERNATE_SPELLING: Self = Self(1 << 20);
    const HOP_BY_HOP: Self = Self(0b10_1111);

    /// The flags of `headers`.
    #[inline]
    pub fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for (name, _) in headers {
            found.add(name);
        }
        found
    }

    #[inline]
    fn add(&mut self, name: &HeaderName) {
        let flags = match name.as_str() {
            "host" if self.has(Self::HOST) => Self::HOSTS,
            "host" => Self::HOST,
            "content-length" if self.has(Self::LENGTH) => Self::LENGTHS,
            "content-length" => Self::LENGTH,
            "connection" => Self::CONNECTION,
            "keep-alive" => Self::KEEP_ALIVE,
            "proxy-connection" => Self::PROXY_CONNECTION,
            "transfer-encoding" => Self::TRANSFER_ENCODING,
            "te" => Self::TE,
            "upgrade" => Self::UPGRADE,
            "proxy-authenticate" => Self::PROXY_AUTHENTICATE,
            "proxy-authorization" => Self::PROXY_AUTHORIZATION,
            "expect" => Self::EXPECT,
            "traceparent" | "tracestate" => Self::TRACE,
            "grpc-timeout" => Self::GRPC_TIMEOUT,
            "x-request-id" | "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host" | "forwarded" => {
                Self::FORWARDED
            }
            "x-client-cert-subject" | "x-client-cert-san" | "x-client-cert-fingerprint" => {
                Self::CLIENT_CERTIFICATE
            }
            "cookie" if self.has(Self::COOKIE) => Self::COOKIES,
            "cookie" => Self::COOKIE,
            name if name.starts_with("x-") && Consumers::HEADERS.iter().any(|header| *header == name) => {
                Self::CONSUMER
            }
            name if tells_otherwise(name) => Self::FORWARDED,
            name if name.starts_with(['x', 't', 'c']) && is_misspelt(name) => Self::ALTERNATE_SPELLING,
            _ => return,
        };
        self.0 |= flags.0;
    }

    /// True if there are `Connection` and `Upgrade`.
    #[inline]
    pub(super) fn has_upgrade(self) -> bool {
        self.has(Self::UPGRADE) && self.has(Self::CONNECTION)
    }

    /// True if there is a field of a trace context.
    #[inline]
    pub(super) fn has_trace(self) -> bool {
        self.has(Self::TRACE)
    }

    /// True if there is a `Transfer-Encoding`.
    pub(super) fn has_coding(self) -> bool {
        self.has(Self::TRANSFER_ENCODING)
    }

    #[inline]
    fn has(self, what: Self) -> bool {
        self.0 & what.0 != 0
    }
}

/// Refuses heads that other servers may interpret differently, beyond what is refused when heads are read.
#[inline]
pub fn check(head: &request::Parts, flags: HeaderFlags) -> Result<(), Failure> {
    if flags.has(HeaderFlags::LENGTHS) {
        // For HTTP/1.1 this was refused when it was read; h2 checks only one.
        return Err(Failure::BadRequest("The request has more than one Content-Length header."));
    }
    let path = head.uri.path();
    if path.starts_with('/') || (path == "*" && head.method == Method::OPTIONS) {
        return Ok(());
    }
    // `GET host` has only an authority, which is valid for CONNECT alone.
    Err(Failure::BadRequest("The request's target is not a path."))
}

/// True if the head announces a body: the target would wait for it.
#[inline]
pub fn announces_body(headers: &HeaderMap, flags: HeaderFlags) -> bool {
    flags.has(HeaderFlags::LENGTH)
        && headers
            .get(header::CONTENT_LENGTH)
            .is_some_and(|length| length.as_bytes().iter().any(|digit| *digit != b'0'))
}

/// Removes the headers that only the proxy may set, before anything uses them. Unless the peer is `trusted`, its
/// claims about the client are removed, too.
#[inline]
pub fn strip_claims(headers: &mut HeaderMap, flags: HeaderFlags, trusted: bool) {
    let claims = HeaderFlags::CONSUMER.0
        | HeaderFlags::CLIENT_CERTIFICATE.0
        | HeaderFlags::FORWARDED.0
        | HeaderFlags::ALTERNATE_SPELLING.0;
    if flags.0 & claims == 0 {
        return;
    }
    remove_claims(headers, if trusted { Claims::OfTheProxy } else { Claims::All });
    if flags.has(HeaderFlags::ALTERNATE_SPELLING) {
        remove_misspelt(headers);
    }
}

/// The id that the request's sender gives it, if it is there once.
#[inline]
pub fn claimed_id(headers: &HeaderMap, flags: HeaderFlags) -> Option<HeaderValue> {
    if !flags.has(HeaderFlags::FORWARDED) {
        return None;
    }
    let mut ids = headers.get_all(X_REQUEST_ID).iter();
    ids.next().filter(|_| ids.next().is_none()).cloned()
}

/// The size of an HTTP/2 head in bytes (RFC 9113, section 6.5.2, without the fields that every request has).
#[inline]
pub fn size(head: &request::Parts) -> usize {
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let fields = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
    target + fields.sum::<usize>()
}

/// Removes the fields that concern only the connection to the client.
#[inline]
pub fn prepare_request(headers: &mut HeaderMap, flags: HeaderFlags) {
    // These fields need no handling here, and many requests have no others.
    let passed = HeaderFlags::HOST.0 | HeaderFlags::COOKIE.0 | HeaderFlags::LENGTH.0 | HeaderFlags::TRACE.0;
    if flags.0 & !passed != 0 {
        clean_request(headers, flags);
    }
}

fn clean_request(headers: &mut HeaderMap, flags: HeaderFlags) {
    if flags.has(HeaderFlags::CONNECTION) {
        remove_named_by_connection(headers);
    }
    remove_hop_by_hop(headers, flags);
    if flags.has(HeaderFlags::TE) {
        // All other codings concern only the connection (RFC 9110, section 10.1.4).
        let trailers = headers.get_all(header::TE).iter().any(|value| {
            value.to_str().is_ok_and(|value| {
                value.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
            })
        });
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(header::TE);
        }
    }
    if flags.has(HeaderFlags::PROXY_AUTHORIZATION) {
        headers.remove(header::PROXY_AUTHORIZATION);
    }
    if flags.has(HeaderFlags::EXPECT) {
        // The proxy answers the expectation itself, as soon as the upstream reads the body.
        headers.remove(header::EXPECT);
    }
    join_cookies(headers, flags);
}

/// The fields about a request that the proxy adds for the upstream. They follow the client's head; plugins do not see
/// them, but a field that a plugin or a trusted proxy has set has precedence. The deferred headers about the consumer are among them
/// only if no plugin of the request uses these (`Plugin::uses_consumer_headers`).
#[derive(Debug)]
pub struct Forwarded<'a> {
    pub request_id: &'a [u8],
    /// The client's address as text.
    pub client: &'a HeaderValue,
    /// True if the client used TLS.
    pub https: bool,
    /// The identity from the client's verified certificate.
    pub certificate: Option<&'a ClientCertificate>,
    /// The host that the client asked for, with its port if it gave one; `None`: it gave none.
    pub host: Option<&'a HeaderValue>,
    /// The notes of the plugins, which may have deferred headers.
    pub notes: Option<&'a PluginNotes>,
    /// True if the head may have a trace context.
    pub has_trace: bool,
    /// The context in its place; `None`: it passes.
    pub trace: Option<&'a TraceFields>,
}

impl Forwarded<'_> {
    /// Appends the header fields, except those that `headers` has already.
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>, headers: &HeaderMap, by_others: bool) {
        self.each(|name, value| {
            if !(by_others && headers.contains_key(name)) {
                out.extend_from_slice(name.as_str().as_bytes());
                out.extend_from_slice(b": ");
                out.extend_from_slice(value.as_bytes());
                out.extend_from_slice(b"\r\n");
            }
        });
    }

    /// Puts it into `headers`, for HTTP/2, except for what is there already.
    ///
    /// Values that hardly come again are marked as sensitive, which keeps them out of the table of HPACK (RFC 7541, section
    /// 7.1): they would drive all others out of it, and h2 compares each value with all of the same name in the table.
    pub fn insert(&self, headers: &mut HeaderMap, by_others: bool) {
        headers.reserve(5);
        self.each(|name, value| {
            if !(by_others && headers.contains_key(name))
                && let Some(value) = value.to_header_value()
            {
                headers.insert(name, value);
            }
        });
        // The proxy's own are marked already.
        if by_others || self.has_trace {
            for name in &SELDOM_REPEATED {
                if let Some(value) = headers.get_mut(name) {
                    value.set_sensitive(true);
                }
            }
        }
    }

    #[inline]
    fn each(&self, mut field: impl FnMut(&HeaderName, Text<'_>)) {
        field(&X_REQUEST_ID, Text::Made(self.request_id));
        field(&X_FORWARDED_FOR, Text::Personal(self.client));
        field(&X_FORWARDED_PROTO, Text::Known(if self.https { "https" } else { "http" }));
        if let Some(host) = self.host {
            field(&X_FORWARDED_HOST, Text::Shared(host));
        }
        for (name, value) in self.notes.into_iter().flat_map(PluginNotes::deferred_headers) {
            field(name, Text::Shared(value));
        }
        if let Some(certificate) = self.certificate {
            let [subject, names, fingerprint] = &CLIENT_CERTIFICATE;
            field(subject, Text::Made(certificate.subject.as_bytes()));
            if !certificate.names.is_empty() {
                field(names, Text::Made(certificate.names.join(",").as_bytes()));
            }
            field(fingerprint, Text::Made(certificate.fingerprint.as_bytes()));
        }
        if let Some(trace) = self.trace {
            trace.each(|name, value| field(name, Text::Made(value)));
        }
    }
}

/// True if one of the fields that [`Forwarded`] adds, besides the deferred ones, may be among `headers`. One pass takes less time than to look up each.
pub fn has_forwarded_fields(headers: &HeaderMap) -> bool {
    headers.keys().map(HeaderName::as_str).any(|name| {
        name.starts_with("x-forwarded-") || name.starts_with("x-client-cert-") || name == "x-request-id"
    })
}

/// The value of a field that the proxy adds to a request.
#[derive(Debug, Clone, Copy)]
enum Text<'a> {
    Known(&'static str),
    Shared(&'a HeaderValue),
    /// It identifies the client.
    Personal(&'a HeaderValue),
    /// It was generated for this request.
    Made(&'a [u8]),
}

impl Text<'_> {
    #[inline]
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Known(text) => text.as_bytes(),
            Self::Shared(value) | Self::Personal(value) => value.as_bytes(),
            Self::Made(bytes) => bytes,
        }
    }

    /// `None`: it has a byte that a field cannot have.
    #[inline]
    fn to_header_value(self) -> Option<HeaderValue> {
        let mut value = match self {
            Self::Known(text) => return Some(HeaderValue::from_static(text)),
            Self::Shared(value) => return Some(value.clone()),
            Self::Personal(value) => value.clone(),
            Self::Made(bytes) => HeaderValue::from_bytes(bytes).ok()?,
        };
        value.set_sensitive(true);
        Some(value)
    }
}

/// The trace context that the request brings. Fields that are no context are removed: see [`trace_context::take`].
#[inline]
pub fn take_trace(headers: &mut HeaderMap, flags: HeaderFlags) -> Option<TraceContext> {
    if flags.has(HeaderFlags::TRACE) { trace_context::take(headers) } else { None }
}

/// The deadline of a gRPC client, if it sends one.
#[inline]
pub fn grpc_timeout(headers: &HeaderMap, flags: HeaderFlags) -> Option<Duration> {
    if !flags.has(HeaderFlags::GRPC_TIMEOUT) || !is_grpc(headers) {
        return None;
    }
    parse_grpc_timeout(headers.get("grpc-timeout")?.as_bytes())
}

/// True for a gRPC call. Other requests are ruled out at no cost: each call has `te: trailers`.
#[inline]
pub fn is_grpc_call(headers: &HeaderMap, flags: HeaderFlags) -> bool {
    flags.has(HeaderFlags::TE) && is_grpc(headers)
}

/// The status of a gRPC call, if these are its trailers, or headers in their place.
pub(super) fn grpc_status(fields: &HeaderMap) -> Option<u8> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Parses at most eight digits and a unit ("gRPC over HTTP2", Requests).
fn parse_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Removes the fields that concern only the connection to the target.
#[inline]
pub fn prepare_response(headers: &mut HeaderMap) {
    let flags = HeaderFlags::of(headers);
    if flags == HeaderFlags::default() {
        return;
    }
    if flags.has(HeaderFlags::CONNECTION) {
        remove_named_by_connection(headers);
    }
    remove_hop_by_hop(headers, flags);
    if flags.has(HeaderFlags::TE) {
        headers.remove(header::TE);
    }
    if flags.has(HeaderFlags::PROXY_AUTHENTICATE) {
        headers.remove(header::PROXY_AUTHENTICATE);
    }
}

/// The host of a request, without port, lower-case, without a trailing dot. If the request target names a host, it has
/// precedence over the `Host` header (RFC 9112, section 3.2.2).
#[inline]
pub fn host<'a>(head: &'a request::Parts, flags: HeaderFlags) -> Result<Cow<'a, str>, Failure> {
    host::normalize(check_host(head, flags)?).ok_or(NO_HOST_NAME)
}

/// The host's text, if there is exactly one host.
#[inline]
fn check_host(head: &request::Parts, flags: HeaderFlags) -> Result<&str, Failure> {
    // RFC 9112, section 3.2: this also holds if the request target names a host.
    if flags.has(HeaderFlags::HOSTS) {
        return Err(Failure::BadRequest("The request has more than one Host header."));
    }
    let header = head.headers.get(header::HOST);
    match (head.uri.authority(), header) {
        (Some(authority), header) => {
            if head.version == Version::HTTP_2 {
                // RFC 9113, section 8.3.1.
                let authority = authority.as_str().as_bytes();
                if header.is_some_and(|host| !host.as_bytes().eq_ignore_ascii_case(authority)) {
                    return Err(Failure::BadRequest("The Host header and :authority disagree."));
                }
            } else if header.is_none() && head.version == Version::HTTP_11 {
                return Err(Failure::BadRequest("The request has no Host header."));
            }
            Ok(authority.as_str())
        }
        (None, Some(host)) => host.to_str().map_err(|_| NO_HOST_NAME),
        (None, None) if head.version == Version::HTTP_10 => Ok(""),
        (None, None) => Err(Failure::BadRequest("The request has no Host header.")),
    }
}

const NO_HOST_NAME: Failure = Failure::BadRequest("The request's host is not a host name.");

/// Sets the `Host` header to the host of the request target, so that nothing uses another one.
#[inline]
pub fn name_host(head: &mut request::Parts, flags: HeaderFlags) -> Result<(), Failure> {
    if let Some(authority) = head.uri.authority() {
        check_host(head, flags)?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| NO_HOST_NAME)?;
        head.headers.insert(header::HOST, host);
    }
    Ok(())
}

/// Converts the head to the form for an HTTP/1.1 target: the request target is a path, and the host a header; see
/// [`name_host`].
#[inline]
pub fn to_http1(head: &mut request::Parts, flags: HeaderFlags) {
    head.version = Version::HTTP_11;
    if head.uri.authority().is_none() && !flags.has(HeaderFlags::HOST) {
        // RFC 9112, section 3.2: HTTP/1.0 needs no Host header.
        head.headers.insert(header::HOST, HeaderValue::from_static(""));
    }
    if head.uri.authority().is_some() {
        head.uri = head.uri.path_and_query().cloned().map_or(Uri::from_static("/"), Uri::from);
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap, flags: HeaderFlags) {
    static NAMES: [(HeaderFlags, HeaderName); 5] = [
        (HeaderFlags::CONNECTION, header::CONNECTION),
        (HeaderFlags::KEEP_ALIVE, KEEP_ALIVE),
        (HeaderFlags::PROXY_CONNECTION, PROXY_CONNECTION),
        (HeaderFlags::TRANSFER_ENCODING, header::TRANSFER_ENCODING),
        (HeaderFlags::UPGRADE, header::UPGRADE),
    ];
    if !flags.has(HeaderFlags::HOP_BY_HOP) {
        return;
    }
    for (what, name) in &NAMES {
        if flags.has(*what) {
            headers.remove(name);
        }
    }
}

/// Removes the headers that `Connection` names, except those that frame the message or that the other side relies on:
/// a client must not be able to have them removed.
fn remove_named_by_connection(headers: &mut HeaderMap) {
    let mut named: SmallVec<[HeaderName; 4]> = SmallVec::new();
    for value in headers.get_all(header::CONNECTION) {
        for name in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            // These are the most frequent values.
            if !name.eq_ignore_ascii_case(b"keep-alive") && !name.eq_ignore_ascii_case(b"close") {
                named.extend(HeaderName::from_bytes(name));
            }
        }
    }
    for name in named {
        let needed =
            [header::HOST, header::CONTENT_LENGTH, header::TE, header::AUTHORIZATION, header::COOKIE];
        if !needed.contains(&name) {
            headers.remove(&name);
        }
        if name == TRACEPARENT {
            // Without the one the other says nothing.
            headers.remove(TRACESTATE);
        }
    }
}

/// HTTP/2 may split cookies over several fields; HTTP/1.1 has one (RFC 9113, section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap, flags: HeaderFlags) {
    if !flags.has(HeaderFlags::COOKIES) {
        return;
    }
    let mut joined = Vec::new();
    for cookie in headers.get_all(header::COOKIE) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(build: impl FnOnce(http::request::Builder) -> http::request::Builder) -> request::Parts {
        build(Request::builder()).body(()).unwrap().into_parts().0
    }

    /// The fields that the upstream gets of `headers`.
    fn prepared(headers: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let host = map.get(header::HOST).cloned();
        let flags = HeaderFlags::of(&map);
        take_trace(&mut map, flags);
        strip_claims(&mut map, flags, false);
        prepare_request(&mut map, flags);
        let forwarded = Forwarded {
            request_id: b"01890a5d-ac96-774b-bcce-b302099a8057",
            client: &HeaderValue::from_static("192.0.2.1"),
            https: false,
            certificate: None,
            host: host.as_ref(),
            notes: None,
            has_trace: flags.has_trace(),
            trace: None,
        };
        let mut written = Vec::new();
        forwarded.write(&mut written, &map, false);
        for line in std::str::from_utf8(&written).unwrap().lines() {
            let (name, value) = line.split_once(": ").unwrap();
            map.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn fields_are_the_same_over_both_protocols_and_those_that_hardly_come_again_stay_out_of_tables() {
        let host = HeaderValue::from_static("a.example");
        let forwarded = Forwarded {
            request_id: b"01890a5d-ac96-774b-bcce-b302099a8057",
            client: &HeaderValue::from_static("192.0.2.1"),
            https: true,
            certificate: None,
            host: Some(&host),
            notes: None,
            has_trace: true,
            trace: None,
        };
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static("the client's"));
        headers.insert(TRACESTATE, HeaderValue::from_static("a=b"));
        headers.insert("x-other", HeaderValue::from_static("c"));
        let mut written = Vec::new();
        forwarded.write(&mut written, &headers, false);
        forwarded.insert(&mut headers, false);
        for line in std::str::from_utf8(&written).unwrap().lines() {
            let (name, value) = line.split_once(": ").unwrap();
            assert_eq!(headers[name], value);
        }
        let sensitive = headers.iter().filter(|(_, value)| value.is_sensitive());
        let mut names: Vec<_> = sensitive.map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["traceparent", "tracestate", "x-forwarded-for", "x-request-id"]);
    }

    #[test]
    fn the_target_names_the_host_before_the_header_does() {
        let head = parts(|b| b.uri("http://Target.example:81/x").header("host", "other.example"));
        assert_eq!(host(&head, HeaderFlags::of(&head.headers)).unwrap(), "target.example");
        let head = parts(|b| b.uri("http://user@target.example/x").header("host", "target.example"));
        assert!(host(&head, HeaderFlags::of(&head.headers)).is_err());
        let head = parts(|b| b.uri("/x").header("host", "Host.example"));
        assert_eq!(host(&head, HeaderFlags::of(&head.headers)).unwrap(), "host.example");
    }

    #[test]
    fn a_host_that_is_missing_or_doubled_is_a_bad_request() {
        let none = parts(|b| b.uri("/"));
        assert!(host(&none, HeaderFlags::of(&none.headers)).is_err());
        let old = parts(|b| b.uri("/").version(Version::HTTP_10));
        assert_eq!(host(&old, HeaderFlags::of(&old.headers)).unwrap(), "");
        let two = parts(|b| b.uri("/").header("host", "a").header("host", "a"));
        assert!(host(&two, HeaderFlags::of(&two.headers)).is_err());
    }

    #[test]
    fn hop_by_hop_headers_do_not_pass() {
        let map = prepared(&[
            ("host", "a"),
            ("connection", "close, X-Hop ,keep-alive, host, content-length"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "gzip, trailers"),
            ("expect", "100-continue"),
            ("content-length", "3"),
            ("accept", "*/*"),
        ]);
        for gone in [
            "connection",
            "x-hop",
            "keep-alive",
            "proxy-connection",
            "proxy-authorization",
            "transfer-encoding",
            "upgrade",
            "expect",
        ] {
            assert!(!map.contains_key(gone), "{gone}");
        }
        for (kept, value) in [("host", "a"), ("te", "trailers"), ("content-length", "3"), ("accept", "*/*")] {
            assert_eq!(map[kept], value);
        }
        assert!(!prepared(&[("host", "a"), ("te", "gzip")]).contains_key("te"));
    }

    #[test]
    fn a_client_cannot_speak_for_the_proxy() {
        let map = prepared(&[
            ("host", "a:81"),
            ("x-consumer-id", "admin"),
            ("x-anonymous-consumer", "true"),
            ("x-client-cert-subject", "CN=admin"),
            ("x-client-cert-san", "DNS:admin"),
            ("x-client-cert-fingerprint", "00"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "b"),
            ("forwarded", "for=203.0.113.9"),
            ("x-request-id", "mine"),
            ("traceparent", "nonsense"),
            ("tracestate", "a=b"),
        ]);
        assert!(Consumers::HEADERS.iter().chain(&CLIENT_CERTIFICATE).all(|name| !map.contains_key(name)));
        assert!(!map.contains_key("forwarded"));
        for (name, value) in [
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "a:81"),
            ("x-request-id", "01890a5d-ac96-774b-bcce-b302099a8057"),
        ] {
            assert_eq!(map.get_all(name).iter().collect::<Vec<_>>(), [value], "{name}");
        }
        assert!(!map.contains_key(TRACEPARENT) && !map.contains_key(TRACESTATE));
    }

    #[test]
    fn what_a_plugin_says_counts() {
        let id = HeaderValue::from_static("from-a-plugin");
        let headers = HeaderMap::from_iter([(X_REQUEST_ID, id)]);
        let client = HeaderValue::from_static("192.0.2.1");
        let forwarded = Forwarded {
            request_id: &[b'x'; 36],
            client: &client,
            https: false,
            certificate: None,
            host: None,
            notes: None,
            has_trace: false,
            trace: None,
        };
        let mut written = Vec::new();
        assert!(has_forwarded_fields(&headers));
        forwarded.write(&mut written, &headers, true);
        assert_eq!(written, b"x-forwarded-for: 192.0.2.1\r\nx-forwarded-proto: http\r\n");
    }

    #[test]
    fn a_trace_goes_on_and_none_is_made() {
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        let map = prepared(&[("host", "a"), ("traceparent", trace), ("tracestate", "a=b")]);
        assert_eq!(
            (map[TRACEPARENT].as_bytes(), map[TRACESTATE].as_bytes()),
            (trace.as_bytes(), &b"a=b"[..])
        );
        assert!(!prepared(&[("host", "a")]).contains_key(TRACEPARENT));
        let parent_is_hop_by_hop =
            [("connection", "traceparent"), ("traceparent", trace), ("tracestate", "a=b")];
        let map = prepared(&parent_is_hop_by_hop);
        assert!(!map.contains_key(TRACEPARENT) && !map.contains_key(TRACESTATE));
    }

    #[test]
    fn cookies_are_joined() {
        let map = prepared(&[("host", "a"), ("cookie", "a=1"), ("cookie", "b=2")]);
        assert_eq!(map.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn answers_lose_what_is_of_the_connection() {
        let mut map = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("content-type", "text/plain"),
            ("server", "backend"),
        ] {
            map.append(name, HeaderValue::from_static(value));
        }
        prepare_response(&mut map);
        let mut names: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-type", "server"]);
    }

    #[test]
    fn targets_become_paths() {
        for (method, uri, expected) in [
            ("GET", "http://a.example:81/x?y=1", "/x?y=1"),
            ("GET", "http://a.example:81", "/"),
            ("OPTIONS", "http://a.example:81/", "/"),
        ] {
            let mut head = parts(|b| b.method(method).uri(uri).header("host", "b"));
            let flags = HeaderFlags::of(&head.headers);
            name_host(&mut head, flags).unwrap();
            to_http1(&mut head, flags);
            assert_eq!(head.uri.to_string(), expected);
            assert_eq!(head.headers["host"], "a.example:81");
        }
        let mut head = parts(|b| b.uri("/x").header("host", "b"));
        let flags = HeaderFlags::of(&head.headers);
        to_http1(&mut head, flags);
        assert_eq!(
            (head.uri.to_string().as_str(), &head.headers["host"]),
            ("/x", &HeaderValue::from_static("b"))
        );
    }

    #[test]
    fn grpc_timeouts_are_read() {
        for (text, expected) in [
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("250m", Some(Duration::from_millis(250))),
            ("7u", Some(Duration::from_micros(7))),
            ("2M", Some(Duration::from_secs(120))),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
            ("123456789S", None),
        ] {
            let head = |content_type: &'static str| {
                parts(|b| b.header("content-type", content_type).header("grpc-timeout", text)).headers
            };
            let call = head("application/grpc+proto");
            assert_eq!(grpc_timeout(&call, HeaderFlags::of(&call)), expected, "{text}");
            let other = head("application/grpc-web");
            assert_eq!(grpc_timeout(&other, HeaderFlags::of(&other)), None);
        }
    }
}
