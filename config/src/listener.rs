use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use rustls::pki_types::CertificateDer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::access_log::{AccessLog, AccessLogSpec};
use crate::address_range::{contains, parse_range};
use crate::authorities::parse_authorities;
use crate::error::{Errors, FieldError};
use crate::key::{Name, ResourceKey};
use crate::kind::Kind;
use crate::names::parse_names;
use crate::narrowing::Narrowing;
use crate::path::EscapedSlashes;
use crate::specification::{Audience, Context, Specification, common_fields, references_of_list};
use crate::tracing::{Tracing, TracingSpec};
use crate::values::{ByteSize, HumanDuration};

/// A listener as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerSpec {
    /// The name of the listener, unique among listeners.
    pub name: String,
    /// A description for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Labels, by which people find it and lists are filtered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The fleets that get the listener. Absent: all fleets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleets: Option<Vec<String>>,
    /// IP address and port: `0.0.0.0:8080`, `[::]:8080`. A proxy's `--listener NAME=ADDRESS` overrides it.
    pub address: String,
    /// The protocol of the listener.
    #[serde(default)]
    pub protocol: ListenerProtocol,
    /// The TLS settings, for the protocol `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTlsSpec>,
    /// The PROXY protocol header (versions 1 and 2) of connections, by which TCP load balancers pass on the
    /// client's address. Default `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Addresses of trusted proxies in front of this one, like `10.0.0.0/8`; at most 256. Their forwarded headers are kept: the
    /// client is the last address of `X-Forwarded-For` that is not in this list, and `X-Forwarded-Proto`, `X-Forwarded-Host`
    /// and `X-Request-Id` stay as they are. Those headers are replaced in requests from all other addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_proxies: Vec<String>,
    /// Normalizes paths before they are matched and forwarded: `.` and `..` are resolved, `//` becomes `/`, and
    /// characters that need no percent-encoding are decoded. A request is answered 400 when its path leads above the root, or
    /// has a backslash, a control character or a wrong encoding. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalize_path: Option<bool>,
    /// How `%2F` and `%5C` in normalized paths are handled. Default `reject`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escaped_slashes: Option<EscapedSlashes>,
    /// How a request goes on when its client closes its sending side of an HTTP/1.1 connection. Default `abort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half_close: Option<HalfClose>,
    /// Limits on requests and connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsSpec>,
    /// Tracing of requests: spans by OpenTelemetry's protocol. Absent: no spans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracing: Option<TracingSpec>,
    /// The access log of requests: which of them have a line, and what it shows. Absent: a line of JSON for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLogSpec>,
    /// The names of plugins that run on requests by this listener. They replace global plugins of the same type; those of the
    /// upstream, the route or the consumer replace them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<String>,
}

/// How a request goes on when its client closes its sending side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HalfClose {
    /// The request to the target is canceled. A response that is ready, or a local reply, is still sent.
    #[default]
    Abort,
    /// The request goes on, because the client may wait for the response.
    Allow,
}

/// The use of the PROXY protocol on connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// Connections have no such header.
    #[default]
    Off,
    /// Connections from `trusted_proxies` may have the header, others do not.
    Accept,
    /// Connections must have the header, and come from `trusted_proxies` if there are any. Others are closed.
    Require,
}

/// The protocol of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ListenerProtocol {
    /// Cleartext HTTP/1.1 and HTTP/2 with prior knowledge.
    #[default]
    Http,
    /// HTTP/1.1 and HTTP/2 over TLS, chosen by ALPN. A client gets the certificate whose `snis` have the server name that it
    /// asks for.
    Https,
}

/// The TLS settings of a listener, as people write them.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTlsSpec {
    /// The lowest TLS version that is accepted.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// Authentication of clients by certificates. Absent: no certificate is requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_auth: Option<ClientAuthSpec>,
    /// The name of the certificate for clients that send no server name, or one that no certificate has. Absent: their
    /// handshakes fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_certificate: Option<String>,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum TlsVersion {
    /// TLS 1.2
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3
    #[serde(rename = "1.3")]
    V1_3,
}

/// Authentication of clients by certificates, as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientAuthSpec {
    /// The requirement for clients' certificates.
    #[serde(default)]
    pub mode: ClientAuthMode,
    /// The certificate authorities that clients' certificates must chain to, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// The requirement for clients' certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuthMode {
    /// No certificate is requested.
    #[default]
    None,
    /// A client may send a certificate. One that is not trusted fails the handshake.
    Optional,
    /// A client without a trusted certificate fails the handshake.
    Required,
}

/// Limits on requests and connections of a listener, as people write them.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsSpec {
    /// The largest request line and headers together; default 64KiB, at most 1MiB. Larger ones are answered 431.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_size: Option<ByteSize>,
    /// The most header fields of a request; default 100, at most 1000. More are answered 431.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_count: Option<u16>,
    /// The largest request body. Absent: no limit, because bodies are streamed. Larger ones are answered 413.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_size: Option<ByteSize>,
    /// The longest pause between two parts of a request body; default 60s. A longer one is answered 408.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_timeout: Option<HumanDuration>,
    /// The longest time from the first byte of a request's head to the last; default 15s. A longer one is answered 408.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_timeout: Option<HumanDuration>,
    /// The longest time that a connection stays open without a request; default 75s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<HumanDuration>,
}

/// A listener.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listener {
    /// The address that proxies listen on unless one overrides it.
    pub address: SocketAddr,
    /// The protocol.
    pub protocol: ListenerProtocol,
    /// TLS settings; `None`: cleartext.
    pub tls: Option<ListenerTls>,
    /// Limits on requests and connections.
    pub limits: Limits,
    /// Trust in what clients claim, and the preparation of requests before they are routed.
    pub edge: Edge,
    /// Tracing of its requests; `None`: there are no spans.
    pub tracing: Option<Tracing>,
    /// The access log of its requests; `None`: a line of JSON for each.
    pub access_log: Option<AccessLog>,
    /// Plugins that run on its requests.
    pub plugins: Box<[Name]>,
}

/// Trust in what clients claim, and the preparation of requests before they are routed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Edge {
    /// The rule for PROXY protocol headers at the begin of connections.
    pub proxy_protocol: ProxyProtocol,
    /// The addresses of trusted proxies.
    pub trusted_proxies: Box<[IpNet]>,
    /// How paths are normalized; `None`: they are left as they are.
    pub normalize_path: Option<EscapedSlashes>,
    /// How a request goes on when its client closes its sending side.
    pub half_close: HalfClose,
}

impl Edge {
    /// True if `address` is that of a trusted proxy.
    pub fn trusts(&self, address: std::net::IpAddr) -> bool {
        self.trusted_proxies.iter().any(|range| contains(range, address))
    }
}

impl Default for Edge {
    fn default() -> Self {
        Self {
            proxy_protocol: ProxyProtocol::Off,
            trusted_proxies: Box::default(),
            normalize_path: Some(EscapedSlashes::Reject),
            half_close: HalfClose::Abort,
        }
    }
}

/// How a listener speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ListenerTls {
    /// The lowest version.
    pub min_version: TlsVersion,
    /// Authentication of clients by certificates.
    pub client_auth: ClientAuth,
    /// The certificate for clients that ask for a name that no certificate has.
    pub default_certificate: Option<Name>,
}

/// Authentication of clients by certificates.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum ClientAuth {
    /// No certificate is requested.
    #[default]
    None,
    /// A client may send a certificate that one of these authorities issued.
    Optional(Box<[CertificateDer<'static>]>),
    /// A client must send one.
    Required(Box<[CertificateDer<'static>]>),
}

/// Limits on requests and connections of a listener.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Request line and headers together, bytes.
    pub header_size: usize,
    /// Number of header fields.
    pub header_count: usize,
    /// Request body, bytes; `None`: no limit.
    pub body_size: Option<u64>,
    /// The longest time for the head of a request.
    pub header_timeout: Duration,
    /// The longest pause between parts of a request body.
    pub body_timeout: Duration,
    /// The longest time between two requests.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_size: 64 << 10,
            header_count: 100,
            body_size: None,
            header_timeout: Duration::from_secs(15),
            body_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(75),
        }
    }
}

impl Specification for ListenerSpec {
    type Parsed = Listener;

    const TITLE: &'static str = "Listener";
    const TITLES: &'static str = "Listeners";
    const ABOUT: &'static str = "A listener is an address on which the proxies accept connections.";
    const AUDIENCE: Audience = Audience::Proxies { wire_tag: 1 };

    common_fields!(ListenerSpec);

    fn narrowing(written: &Value) -> &'static [Narrowing] {
        const TLS: Narrowing = Narrowing::not_null(&["tls"], "for TLS with the defaults");
        const CLIENT_AUTH: Narrowing =
            Narrowing::not_empty(&["tls", "client_auth"], "to ask for no certificate");
        const TRUSTED: &[&str] = &["trusted_proxies"];
        // Where connections must come from trusted proxies, none would mean anybody.
        if written.get("proxy_protocol").is_some_and(|mode| mode == "require") {
            const { &[Narrowing::not_empty(TRUSTED, "to take connections from anybody"), TLS, CLIENT_AUTH] }
        } else {
            const { &[Narrowing::not_null(TRUSTED, "to trust none"), TLS, CLIENT_AUTH] }
        }
    }

    fn references(listener: &Listener) -> Vec<(ResourceKey, String)> {
        let name = listener.tls.as_ref().and_then(|tls| tls.default_certificate.clone());
        let key = name.map(|name| ResourceKey::new(Kind::Certificate, name));
        let certificate = key.into_iter().map(|key| (key, "tls.default_certificate".to_owned()));
        certificate.chain(references_of_list(Kind::Plugin, &listener.plugins, "plugins")).collect()
    }

    fn claims(listener: &Listener) -> Vec<(String, String)> {
        vec![(format!("address {}", listener.address), "address".to_owned())]
    }

    fn parse(&self, _: &Context<'_>) -> Result<Listener, Vec<FieldError>> {
        let mut errors = Errors::default();
        let address = match self.address.parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 => {
                errors.push("address", "needs a port other than 0");
                None
            }
            Ok(address) => Some(address),
            Err(_) => {
                errors.push("address", "must be an IP address and a port, like 0.0.0.0:8080 or [::]:8080");
                None
            }
        };
        let limits = self.limits.as_ref().map_or_else(Limits::default, |spec| spec.parse(&mut errors));
        let tls = match (self.protocol, &self.tls) {
            (ListenerProtocol::Https, Some(spec)) => Some(spec.parse(&mut errors)),
            (ListenerProtocol::Https, None) => Some(ListenerTls::default()),
            (ListenerProtocol::Http, None) => None,
            (ListenerProtocol::Http, Some(spec)) => {
                errors.push("tls", "is for the protocol https");
                spec.parse(&mut errors);
                None
            }
        };
        let edge = self.edge(&mut errors);
        let tracing = self.tracing.as_ref().and_then(|tracing| tracing.parse(&mut errors));
        let access_log = self.access_log.as_ref().and_then(|log| log.parse(&mut errors));
        let plugins = parse_names(&self.plugins, "plugins", &mut errors);
        let protocol = self.protocol;
        errors.finish(address.map(|address| Listener {
            address,
            protocol,
            tls,
            limits,
            edge,
            tracing,
            access_log,
            plugins,
        }))
    }
}

impl ListenerSpec {
    fn edge(&self, errors: &mut Errors) -> Edge {
        if self.trusted_proxies.len() > MAX_TRUSTED {
            errors.push("trusted_proxies", format_args!("has more than {MAX_TRUSTED} ranges"));
        }
        let mut trusted = Vec::new();
        for (index, range) in self.trusted_proxies.iter().take(MAX_TRUSTED).enumerate() {
            match parse_range(range) {
                Ok(range) => trusted.push(range),
                Err(message) => errors.push(format_args!("trusted_proxies[{index}]"), message),
            }
        }
        let proxy_protocol = self.proxy_protocol.unwrap_or_default();
        if proxy_protocol == ProxyProtocol::Accept && self.trusted_proxies.is_empty() {
            errors.push(
                "proxy_protocol",
                "needs trusted_proxies with accept, because else anybody could claim any address",
            );
        }
        let normalize = self.normalize_path.unwrap_or(true);
        if !normalize && self.escaped_slashes.is_some() {
            errors.push("escaped_slashes", "needs normalize_path");
        }
        Edge {
            proxy_protocol,
            trusted_proxies: trusted.into(),
            normalize_path: normalize.then(|| self.escaped_slashes.unwrap_or_default()),
            half_close: self.half_close.unwrap_or_default(),
        }
    }
}

impl ListenerTlsSpec {
    fn parse(&self, errors: &mut Errors) -> ListenerTls {
        let default_certificate = self.default_certificate.as_ref().and_then(|name| {
            name.parse().map_err(|message: String| errors.push("tls.default_certificate", message)).ok()
        });
        let client_auth = match &self.client_auth {
            None => ClientAuth::None,
            Some(ClientAuthSpec { mode, ca }) => {
                let field = "tls.client_auth.ca";
                let trusted = ca.as_deref().map(parse_authorities).transpose();
                match (mode, trusted.map_err(|message| errors.push(field, message))) {
                    (ClientAuthMode::Optional, Ok(Some(ca))) => ClientAuth::Optional(ca),
                    (ClientAuthMode::Required, Ok(Some(ca))) => ClientAuth::Required(ca),
                    (ClientAuthMode::Optional | ClientAuthMode::Required, Ok(None)) => {
                        errors.push(field, "is required: who may have issued the clients' certificates");
                        ClientAuth::None
                    }
                    (ClientAuthMode::None, Ok(Some(_))) => {
                        errors.push("tls.client_auth.mode", "must be optional or required with a ca");
                        ClientAuth::None
                    }
                    (ClientAuthMode::None, Ok(None)) | (_, Err(())) => ClientAuth::None,
                }
            }
        };
        ListenerTls { min_version: self.min_version, client_auth, default_certificate }
    }
}

/// The most ranges of trusted proxies that a listener may have.
const MAX_TRUSTED: usize = 256;

impl LimitsSpec {
    fn parse(&self, errors: &mut Errors) -> Limits {
        let default = Limits::default();
        let header_size = self.header_size.map_or(default.header_size, |size| size.0 as usize);
        // Browsers send some KiB.
        if !(8 << 10..=1 << 20).contains(&header_size) {
            errors.push("limits.header_size", "must be from 8KiB to 1MiB");
        }
        let header_count = self.header_count.map_or(default.header_count, usize::from);
        if !(1..=1000).contains(&header_count) {
            errors.push("limits.header_count", "must be from 1 to 1000");
        }
        let mut timeout = |field: &str, value: Option<HumanDuration>, default: Duration| {
            let value = value.map_or(default, |value| value.0);
            if value < Duration::from_millis(10) || value > Duration::from_secs(3600) {
                errors.push(format_args!("limits.{field}"), "must be from 10ms to 1h");
            }
            value
        };
        Limits {
            header_size,
            header_count,
            body_size: self.body_size.map(|size| size.0),
            header_timeout: timeout("header_timeout", self.header_timeout, default.header_timeout),
            body_timeout: timeout("body_timeout", self.body_timeout, default.body_timeout),
            idle_timeout: timeout("idle_timeout", self.idle_timeout, default.idle_timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &serde_json::Value) -> Result<Listener, Vec<String>> {
        let mut spec = serde_json::json!({"name": "http", "address": "0.0.0.0:8080"});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let spec: ListenerSpec = serde_json::from_value(spec).unwrap();
        let name = "http".parse().unwrap();
        let context = Context { name: &name, catalog: &crate::catalog::NoPlugins };
        spec.parse(&context).map_err(|errors| errors.into_iter().map(|error| error.field).collect())
    }

    #[test]
    fn nobody_is_trusted_and_paths_are_normalized_by_default() {
        let listener = parse(&serde_json::json!({})).unwrap();
        assert_eq!(listener.edge, Edge::default());
        assert!(!listener.edge.trusts([127, 0, 0, 1].into()));
        assert_eq!(listener.limits.body_timeout, Duration::from_secs(60));
    }

    #[test]
    fn what_the_edge_is_told_is_read() {
        let edge = parse(&serde_json::json!({
            "proxy_protocol": "accept",
            "trusted_proxies": ["10.0.0.0/8", "::1"],
            "escaped_slashes": "keep",
            "half_close": "allow",
            "limits": {"body_timeout": "5s"},
        }))
        .unwrap()
        .edge;
        assert_eq!(edge.proxy_protocol, ProxyProtocol::Accept);
        assert!(edge.trusts([10, 1, 1, 1].into()) && !edge.trusts([11, 1, 1, 1].into()));
        assert_eq!(edge.normalize_path, Some(EscapedSlashes::Keep));
        assert_eq!(edge.half_close, HalfClose::Allow);
        assert_eq!(parse(&serde_json::json!({"normalize_path": false})).unwrap().edge.normalize_path, None);
    }

    #[test]
    fn everything_that_is_wrong_with_the_edge_is_told() {
        let wrong = parse(&serde_json::json!({
            "proxy_protocol": "accept",
            "normalize_path": false,
            "escaped_slashes": "keep",
            "limits": {"body_timeout": "2h"},
        }));
        assert_eq!(wrong.unwrap_err(), ["limits.body_timeout", "proxy_protocol", "escaped_slashes"]);
        let ranges =
            parse(&serde_json::json!({"trusted_proxies": ["10.0.0.0/8", "10.0.0.1/8", "example.com"]}));
        assert_eq!(ranges.unwrap_err(), ["trusted_proxies[1]", "trusted_proxies[2]"]);
        assert_eq!(
            parse(&serde_json::json!({"trusted_proxies": vec!["::1"; 257]})).unwrap_err(),
            ["trusted_proxies"]
        );
    }
}
