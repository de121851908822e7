//! The messages of `envoy.service.auth.v3.Authorization/Check`, as far as they are used.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CheckRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) attributes: Option<AttributeContext>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AttributeContext {
    #[prost(message, optional, tag = "1")]
    source: Option<Peer>,
    #[prost(message, optional, tag = "4")]
    request: Option<RequestContext>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Peer {
    #[prost(message, optional, tag = "1")]
    address: Option<Address>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Address {
    #[prost(message, optional, tag = "1")]
    socket_address: Option<SocketAddress>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SocketAddress {
    #[prost(string, tag = "2")]
    address: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RequestContext {
    #[prost(message, optional, tag = "1")]
    time: Option<Timestamp>,
    #[prost(message, optional, tag = "2")]
    http: Option<HttpRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Timestamp {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HttpRequest {
    #[prost(string, tag = "2")]
    method: String,
    #[prost(map = "string, string", tag = "3")]
    headers: HashMap<String, String>,
    #[prost(string, tag = "4")]
    path: String,
    #[prost(string, tag = "5")]
    host: String,
    #[prost(string, tag = "6")]
    scheme: String,
    /// -1: it is not known.
    #[prost(int64, tag = "9")]
    size: i64,
    #[prost(string, tag = "10")]
    protocol: String,
    #[prost(string, tag = "11")]
    body: String,
    #[prost(bytes = "bytes", tag = "12")]
    raw_body: Bytes,
    #[prost(message, optional, tag = "13")]
    header_map: Option<RawHeaders>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RawHeaders {
    #[prost(message, repeated, tag = "1")]
    headers: Vec<Header>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Header {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(string, tag = "2")]
    pub(super) value: String,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) raw_value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HeaderValueOption {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<Header>,
    /// The older form of `append_action`.
    #[prost(message, optional, tag = "2")]
    append: Option<BoolValue>,
    #[prost(int32, tag = "3")]
    append_action: i32,
    #[prost(bool, tag = "4")]
    pub(super) keep_empty_value: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BoolValue {
    #[prost(bool, tag = "1")]
    value: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct CheckResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(message, optional, tag = "2")]
    denied_response: Option<DeniedResponse>,
    #[prost(message, optional, tag = "3")]
    ok_response: Option<OkResponse>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeniedResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<HttpStatus>,
    #[prost(message, repeated, tag = "2")]
    pub(super) headers: Vec<HeaderValueOption>,
    #[prost(string, tag = "3")]
    pub(super) body: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HttpStatus {
    #[prost(int32, tag = "1")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct OkResponse {
    #[prost(message, repeated, tag = "2")]
    pub(super) headers: Vec<HeaderValueOption>,
    #[prost(string, repeated, tag = "5")]
    pub(super) headers_to_remove: Vec<String>,
    #[prost(message, repeated, tag = "6")]
    pub(super) response_headers_to_add: Vec<HeaderValueOption>,
}

/// A request that a service is asked about.
pub(super) struct Asked<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) host: &'a [u8],
    pub(super) scheme: &'a str,
    pub(super) protocol: &'a str,
    pub(super) headers: &'a HeaderMap,
    pub(super) client: IpAddr,
    pub(super) now: SystemTime,
    /// The size of the whole body; `None`: it is not known.
    pub(super) size: Option<u64>,
    pub(super) body: Bytes,
}

/// The answer of a service.
pub(super) enum Decision {
    Allowed(OkResponse),
    Denied { status: StatusCode, denied: DeniedResponse },
}

/// How a header joins those of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Append {
    /// Beside them.
    Always,
    /// If there is none.
    IfAbsent,
    /// In their place.
    Overwrite,
    /// In their place, if there is one.
    IfPresent,
}

impl Append {
    pub(super) fn apply(self, headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
        let is_present = headers.contains_key(&name);
        match self {
            Self::Always => drop(headers.append(name, value)),
            Self::Overwrite => drop(headers.insert(name, value)),
            Self::IfAbsent if !is_present => drop(headers.insert(name, value)),
            Self::IfPresent if is_present => drop(headers.insert(name, value)),
            Self::IfAbsent | Self::IfPresent => {}
        }
    }
}

impl HeaderValueOption {
    /// How the header joins those of its name.
    pub(super) fn append(&self) -> Append {
        match (&self.append, self.append_action) {
            (Some(append), _) if append.value => Append::Always,
            (Some(_), _) | (None, 2) => Append::Overwrite,
            (None, 1) => Append::IfAbsent,
            (None, 3) => Append::IfPresent,
            (None, _) => Append::Always,
        }
    }
}

impl CheckResponse {
    /// OK without more lets pass, and anything else without more is 403.
    pub(super) fn decision(self) -> Decision {
        let code = self.status.map_or(0, |status| status.code);
        match (code, self.denied_response) {
            (0, None) => Decision::Allowed(self.ok_response.unwrap_or_default()),
            (_, denied) => {
                let denied = denied.unwrap_or_default();
                let status = denied.status.as_ref().and_then(|status| u16::try_from(status.code).ok());
                let status = status.and_then(|code| StatusCode::from_u16(code).ok());
                let status = status.filter(|status| status.as_u16() >= 200).unwrap_or(StatusCode::FORBIDDEN);
                Decision::Denied { status, denied }
            }
        }
    }
}

/// The message for a request.
pub(super) fn check_request(asked: &Asked<'_>) -> CheckRequest {
    let since = asked.now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let raw = asked.headers.iter().map(|(name, value)| Header {
        key: name.as_str().to_owned(),
        value: String::new(),
        raw_value: value.as_bytes().to_vec(),
    });
    let joined = asked.headers.keys().map(|name| {
        let values: Vec<_> = asked
            .headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        (name.as_str().to_owned(), values.join(","))
    });
    let http = HttpRequest {
        method: asked.method.to_owned(),
        headers: joined.collect(),
        path: asked.path.to_owned(),
        host: String::from_utf8_lossy(asked.host).into_owned(),
        scheme: asked.scheme.to_owned(),
        protocol: asked.protocol.to_owned(),
        size: asked.size.map_or(-1, |size| i64::try_from(size).unwrap_or(i64::MAX)),
        body: std::str::from_utf8(&asked.body).unwrap_or_default().to_owned(),
        raw_body: asked.body.clone(),
        header_map: Some(RawHeaders { headers: raw.collect() }),
    };
    let time = Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    };
    let socket_address = Some(SocketAddress { address: asked.client.to_string() });
    let source = Some(Peer { address: Some(Address { socket_address }) });
    let request = Some(RequestContext { time: Some(time), http: Some(http) });
    CheckRequest { attributes: Some(AttributeContext { source, request }) }
}
