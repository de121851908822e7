//! What is taken out of heads, and put into them, on the way through.

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
use signalbox_plugins::Consumers;
use smallvec::SmallVec;

use super::identify::{Traceparent, is_traceparent};
use super::problem::Failure;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// What is of one connection of HTTP/1.1, and has no place in HTTP/2 (RFC 9113, section 8.2.2) or in trailers.
pub const OF_A_CONNECTION: [HeaderName; 5] =
    [header::CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE];

/// Fields that mean nothing behind a body, or something else there than in front of it: they frame, route or authenticate the message,
/// modify the request, or say how the body is to be read or kept (RFC 9110, section 6.5.1; the groups are those of RFC 7230, section
/// 4.1.2).
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

/// What is in a head that the proxy must see to, found in one pass over it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Special(u32);

impl Special {
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
    const TRACEPARENT: Self = Self(1 << 10);
    const COOKIE: Self = Self(1 << 11);
    const COOKIES: Self = Self(1 << 12);
    const HOST: Self = Self(1 << 13);
    const HOSTS: Self = Self(1 << 14);
    /// One of those that the proxy says itself.
    const FORWARDED: Self = Self(1 << 15);
    const LENGTH: Self = Self(1 << 16);
    const LENGTHS: Self = Self(1 << 17);
    const GRPC_TIMEOUT: Self = Self(1 << 18);
    /// What only the proxy may say of a client's certificate.
    const CLIENT_CERTIFICATE: Self = Self(1 << 19);
    /// One of the above two, of what is said of a client, or of what frames a message, in another spelling: many servers take `X_A`
    /// for `X-A`.
    const MISSPELT: Self = Self(1 << 20);
    const HOP_BY_HOP: Self = Self(0b10_1111);

    /// What of the above `headers` has.
    #[inline]
    pub fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        for (name, _) in headers {
            found.note(name);
        }
        found
    }

    #[inline]
    fn note(&mut self, name: &HeaderName) {
        let special = match name.as_str() {
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
            "traceparent" => Self::TRACEPARENT,
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
            name if name.starts_with(['x', 't', 'c']) && is_misspelt(name) => Self::MISSPELT,
            _ => return,
        };
        self.0 |= special.0;
    }

    /// Whether there are `Connection` and `Upgrade`.
    #[inline]
    pub(super) fn has_upgrade(self) -> bool {
        self.has(Self::UPGRADE) && self.has(Self::CONNECTION)
    }

    /// Whether there is a `Transfer-Encoding`.
    pub(super) fn has_coding(self) -> bool {
        self.has(Self::TRANSFER_ENCODING)
    }

    #[inline]
    fn has(self, what: Self) -> bool {
        self.0 & what.0 != 0
    }
}

/// Refuses what others on the way may read in another way than the proxy does, beyond what is refused where heads are read.
#[inline]
pub fn check(head: &request::Parts, special: Special) -> Result<(), Failure> {
    if special.has(Special::LENGTHS) {
        // That of HTTP/1.1 was refused when it was read; h2 looks at one only.
        return Err(Failure::BadRequest("The request has more than one Content-Length header."));
    }
    let path = head.uri.path();
    if path.starts_with('/') || (path == "*" && head.method == Method::OPTIONS) {
        return Ok(());
    }
    // `GET host` has only an authority, and that is for CONNECT.
    Err(Failure::BadRequest("The request's target is not a path."))
}

/// Whether the head announces a body: one that then does not come would be waited for by the target.
#[inline]
pub fn announces_body(headers: &HeaderMap, special: Special) -> bool {
    special.has(Special::LENGTH)
        && headers
            .get(header::CONTENT_LENGTH)
            .is_some_and(|length| length.as_bytes().iter().any(|digit| *digit != b'0'))
}

/// Removes what only the proxy may say, before anybody goes by it. Unless the peer is `trusted`, nothing that it says of a
/// client before it is kept.
#[inline]
pub fn disbelieve(headers: &mut HeaderMap, special: Special, trusted: bool) {
    let claims =
        Special::CONSUMER.0 | Special::CLIENT_CERTIFICATE.0 | Special::FORWARDED.0 | Special::MISSPELT.0;
    if special.0 & claims == 0 {
        return;
    }
    remove_claims(headers, if trusted { Claims::OfTheProxy } else { Claims::All });
    if special.has(Special::MISSPELT) {
        remove_misspelt(headers);
    }
}

/// How large a head of HTTP/2 is, bytes (RFC 9113, section 6.5.2, but for the fields that every request has).
#[inline]
pub fn size(head: &request::Parts) -> usize {
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let fields = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
    target + fields.sum::<usize>()
}

/// Removes from the trailers of an answer what may not stand there.
pub fn remove_forbidden_trailers(trailers: &mut HeaderMap) {
    for name in &NOT_IN_TRAILERS {
        trailers.remove(name);
    }
}

/// Removes fields in which somebody claims something of a client, in every spelling.
pub fn remove_all_claims(fields: &mut HeaderMap) {
    remove_claims(fields, Claims::All);
    remove_misspelt(fields);
}

/// Removes what concerns only the connection to the client.
#[inline]
pub fn prepare_request(headers: &mut HeaderMap, special: Special) {
    // These need nothing, and many requests have nothing else.
    if special.0 & !(Special::HOST.0 | Special::COOKIE.0 | Special::LENGTH.0) != 0 {
        clean_request(headers, special);
    }
}

fn clean_request(headers: &mut HeaderMap, special: Special) {
    if special.has(Special::CONNECTION) {
        remove_named_by_connection(headers);
    }
    remove_hop_by_hop(headers, special);
    if special.has(Special::TE) {
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
    if special.has(Special::PROXY_AUTHORIZATION) {
        headers.remove(header::PROXY_AUTHORIZATION);
    }
    if special.has(Special::EXPECT) {
        // Answered by the proxy, as soon as the upstream takes the body.
        headers.remove(header::EXPECT);
    }
    if special.has(Special::TRACEPARENT)
        && !headers.get(TRACEPARENT).is_some_and(|value| is_traceparent(value.as_bytes()))
    {
        headers.remove(TRACEPARENT);
    }
    join_cookies(headers, special);
}

/// What the proxy tells an upstream of a request. It is written behind the head that the client sent; plugins do not see it,
/// but what a plugin or a trusted proxy says in its place counts.
#[derive(Debug)]
pub struct Forwarded<'a> {
    pub request_id: &'a [u8],
    /// The client's address as text.
    pub client: &'a HeaderValue,
    /// Whether the client spoke TLS.
    pub https: bool,
    /// What the client proved to be with a certificate.
    pub certificate: Option<&'a ClientCertificate>,
    /// The host the client asked for, with its port if it gave one; `None`: it gave none.
    pub host: Option<&'a HeaderValue>,
    /// `None`: the client's is passed on.
    pub traceparent: Option<&'a Traceparent>,
}

impl Forwarded<'_> {
    /// Writes it as header fields, except for what `headers` has already.
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>, headers: &HeaderMap, by_others: bool) {
        self.each(|name, value| {
            if !(by_others && headers.contains_key(name)) {
                out.extend_from_slice(name.as_str().as_bytes());
                out.extend_from_slice(b": ");
                out.extend_from_slice(value);
                out.extend_from_slice(b"\r\n");
            }
        });
    }

    /// Puts it into `headers`, except for what is there already.
    pub fn insert(&self, headers: &mut HeaderMap, by_others: bool) {
        headers.reserve(5);
        self.each(|name, value| {
            if !(by_others && headers.contains_key(name))
                && let Ok(value) = HeaderValue::from_bytes(value)
            {
                headers.insert(name, value);
            }
        });
    }

    #[inline]
    fn each(&self, mut field: impl FnMut(&HeaderName, &[u8])) {
        field(&X_REQUEST_ID, self.request_id);
        field(&X_FORWARDED_FOR, self.client.as_bytes());
        field(&X_FORWARDED_PROTO, if self.https { b"https" } else { b"http" });
        if let Some(host) = self.host {
            field(&X_FORWARDED_HOST, host.as_bytes());
        }
        if let Some(certificate) = self.certificate {
            let [subject, names, fingerprint] = &CLIENT_CERTIFICATE;
            field(subject, certificate.subject.as_bytes());
            if !certificate.names.is_empty() {
                field(names, certificate.names.join(",").as_bytes());
            }
            field(fingerprint, certificate.fingerprint.as_bytes());
        }
        if let Some(traceparent) = self.traceparent {
            field(&TRACEPARENT, traceparent);
        }
    }
}

/// The `traceparent` that the client sent, if it is one; see [`prepare_request`].
#[inline]
pub fn traceparent(headers: &HeaderMap, special: Special) -> Option<&HeaderValue> {
    if special.has(Special::TRACEPARENT) { headers.get(TRACEPARENT) } else { None }
}

/// How long a gRPC client waits, if it says so.
#[inline]
pub fn grpc_timeout(headers: &HeaderMap, special: Special) -> Option<Duration> {
    if !special.has(Special::GRPC_TIMEOUT) || !is_grpc(headers) {
        return None;
    }
    parse_grpc_timeout(headers.get("grpc-timeout")?.as_bytes())
}

/// Whether it is a gRPC call, found at no cost for other requests: each call has `te: trailers`.
#[inline]
pub fn is_grpc_call(headers: &HeaderMap, special: Special) -> bool {
    special.has(Special::TE) && is_grpc(headers)
}

/// Whether it is a gRPC call; gRPC-Web is not.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    value.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest, [] | [b'+' | b';', ..]))
}

/// What a gRPC call ended with, if these are its trailers, or stand for them.
pub(super) fn grpc_status(fields: &HeaderMap) -> Option<u8> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// At most eight digits and a unit ("gRPC over HTTP2", Requests).
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

/// Removes what concerns only the connection to the target.
#[inline]
pub fn prepare_response(headers: &mut HeaderMap) {
    let special = Special::of(headers);
    if special == Special::default() {
        return;
    }
    if special.has(Special::CONNECTION) {
        remove_named_by_connection(headers);
    }
    remove_hop_by_hop(headers, special);
    if special.has(Special::TE) {
        headers.remove(header::TE);
    }
    if special.has(Special::PROXY_AUTHENTICATE) {
        headers.remove(header::PROXY_AUTHENTICATE);
    }
}

/// The host of a request, without port, lower-case, without a dot at the end; and the text it came in, as the upstream is
/// to be told. Where the target names one it counts, else the `Host` header (RFC 9112, section 3.2.2).
#[inline]
pub fn host<'a>(head: &'a request::Parts, special: Special) -> Result<Cow<'a, str>, Failure> {
    host::normalize(check_host(head, special)?).ok_or(NO_HOST_NAME)
}

/// The text that the host is in, when there is one host and no more.
#[inline]
fn check_host(head: &request::Parts, special: Special) -> Result<&str, Failure> {
    // RFC 9112, section 3.2: also where the target names a host.
    if special.has(Special::HOSTS) {
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

/// Makes the host that a request's target names the one of its `Host` header, so that nobody goes by another.
#[inline]
pub fn name_host(head: &mut request::Parts, special: Special) -> Result<(), Failure> {
    if let Some(authority) = head.uri.authority() {
        check_host(head, special)?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| NO_HOST_NAME)?;
        head.headers.insert(header::HOST, host);
    }
    Ok(())
}

/// Makes the head one that an HTTP/1.1 target understands: the target is a path, and the host a header; see [`name_host`].
#[inline]
pub fn to_http1(head: &mut request::Parts, special: Special) {
    head.version = Version::HTTP_11;
    if head.uri.authority().is_none() && !special.has(Special::HOST) {
        // RFC 9112, section 3.2: HTTP/1.0 needs none.
        head.headers.insert(header::HOST, HeaderValue::from_static(""));
    }
    if head.uri.authority().is_some() {
        head.uri = head.uri.path_and_query().cloned().map_or(Uri::from_static("/"), Uri::from);
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap, special: Special) {
    static NAMES: [(Special, HeaderName); 5] = [
        (Special::CONNECTION, header::CONNECTION),
        (Special::KEEP_ALIVE, KEEP_ALIVE),
        (Special::PROXY_CONNECTION, PROXY_CONNECTION),
        (Special::TRANSFER_ENCODING, header::TRANSFER_ENCODING),
        (Special::UPGRADE, header::UPGRADE),
    ];
    if !special.has(Special::HOP_BY_HOP) {
        return;
    }
    for (what, name) in &NAMES {
        if special.has(*what) {
            headers.remove(name);
        }
    }
}

/// Removes the headers that `Connection` names. Who sends it must not be able to have removed what frames the message or
/// what the other side relies on; those stay.
fn remove_named_by_connection(headers: &mut HeaderMap) {
    let mut named: SmallVec<[HeaderName; 4]> = SmallVec::new();
    for value in headers.get_all(header::CONNECTION) {
        for name in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            // What it says most of the time.
            if !name.eq_ignore_ascii_case(b"keep-alive") && !name.eq_ignore_ascii_case(b"close") {
                named.extend(HeaderName::from_bytes(name));
            }
        }
    }
    for name in named {
        let needed =
            [header::HOST, header::CONTENT_LENGTH, header::TE, header::AUTHORIZATION, header::COOKIE];
        if !needed.contains(&name) {
            headers.remove(name);
        }
    }
}

/// Whether the client waits to be told before it sends a body.
pub fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(is_continue)
}

/// Whether a value of `Expect` says so.
pub(super) fn is_continue(expectation: &HeaderValue) -> bool {
    expectation.as_bytes().eq_ignore_ascii_case(b"100-continue")
}

/// HTTP/2 may split cookies over several fields; HTTP/1.1 has one (RFC 9113, section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap, special: Special) {
    if !special.has(Special::COOKIES) {
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

/// The elements of a header that is a list.
pub(super) fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let values = headers.get_all(name).iter();
    values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::super::identify::Identifier;
    use super::*;

    fn parts(build: impl FnOnce(http::request::Builder) -> http::request::Builder) -> request::Parts {
        build(Request::builder()).body(()).unwrap().into_parts().0
    }

    /// What the upstream gets of `headers`.
    fn prepared(headers: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let host = map.get(header::HOST).cloned();
        let special = Special::of(&map);
        disbelieve(&mut map, special, false);
        prepare_request(&mut map, special);
        let made = Identifier::default().traceparent();
        let own = traceparent(&map, special).is_some();
        let forwarded = Forwarded {
            request_id: b"01890a5d-ac96-774b-bcce-b302099a8057",
            client: &HeaderValue::from_static("192.0.2.1"),
            https: false,
            certificate: None,
            host: host.as_ref(),
            traceparent: (!own).then_some(&made),
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
    fn the_target_names_the_host_before_the_header_does() {
        let head = parts(|b| b.uri("http://Target.example:81/x").header("host", "other.example"));
        assert_eq!(host(&head, Special::of(&head.headers)).unwrap(), "target.example");
        let head = parts(|b| b.uri("http://user@target.example/x").header("host", "target.example"));
        assert!(host(&head, Special::of(&head.headers)).is_err());
        let head = parts(|b| b.uri("/x").header("host", "Host.example"));
        assert_eq!(host(&head, Special::of(&head.headers)).unwrap(), "host.example");
    }

    #[test]
    fn a_host_that_is_missing_or_doubled_is_a_bad_request() {
        let none = parts(|b| b.uri("/"));
        assert!(host(&none, Special::of(&none.headers)).is_err());
        let old = parts(|b| b.uri("/").version(Version::HTTP_10));
        assert_eq!(host(&old, Special::of(&old.headers)).unwrap(), "");
        let two = parts(|b| b.uri("/").header("host", "a").header("host", "a"));
        assert!(host(&two, Special::of(&two.headers)).is_err());
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
        assert!(is_traceparent(map["traceparent"].as_bytes()));
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
            traceparent: None,
        };
        let mut written = Vec::new();
        forwarded.write(&mut written, &headers, true);
        assert_eq!(written, b"x-forwarded-for: 192.0.2.1\r\nx-forwarded-proto: http\r\n");
    }

    #[test]
    fn a_trace_goes_on() {
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        assert_eq!(prepared(&[("host", "a"), ("traceparent", trace)])["traceparent"], trace);
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
            let special = Special::of(&head.headers);
            name_host(&mut head, special).unwrap();
            to_http1(&mut head, special);
            assert_eq!(head.uri.to_string(), expected);
            assert_eq!(head.headers["host"], "a.example:81");
        }
        let mut head = parts(|b| b.uri("/x").header("host", "b"));
        let special = Special::of(&head.headers);
        to_http1(&mut head, special);
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
            assert_eq!(grpc_timeout(&call, Special::of(&call)), expected, "{text}");
            let other = head("application/grpc-web");
            assert_eq!(grpc_timeout(&other, Special::of(&other)), None);
        }
    }
}
