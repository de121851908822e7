use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::certificate::parse_authorities;
use crate::cidr::Cidr;
use crate::error::{Errors, FieldError};
use crate::key::Name;
use crate::path::EscapedSlashes;
use crate::values::{ByteSize, HumanDuration};

/// A listener as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerSpec {
    /// Unique among listeners.
    pub name: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// For people and selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Which fleets get it; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleets: Option<Vec<String>>,
    /// IP address and port: `0.0.0.0:8080`, `[::]:8080`. A proxy's `--listener NAME=ADDRESS` overrides it.
    pub address: String,
    /// What is spoken.
    #[serde(default)]
    pub protocol: ListenerProtocol,
    /// How TLS is spoken, where the protocol is `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTlsSpec>,
    /// Whether connections begin with who the client is, as load balancers for TCP tell it (PROXY protocol, versions 1
    /// and 2); default `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Addresses of proxies before this one, like `10.0.0.0/8`; at most 256. What they say of the client is believed: the
    /// client is the last address of `X-Forwarded-For` that is not among these, and `X-Forwarded-Proto`, `X-Forwarded-Host`
    /// and `X-Request-Id` are kept. What others say is replaced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_proxies: Vec<String>,
    /// Whether paths are brought into one form before they are matched and sent on: `.` and `..` resolved, `//` made `/`,
    /// characters that need no percent-encoding decoded. A path that leads above the root, has a backslash, a control
    /// character or a wrong encoding is answered 400. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalize_path: Option<bool>,
    /// What becomes of `%2F` and `%5C` in paths that are normalised; default `reject`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escaped_slashes: Option<EscapedSlashes>,
    /// What becomes of a request whose client says, over HTTP/1.1, that it sends no more; default `abort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub half_close: Option<HalfClose>,
    /// What a client may send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsSpec>,
}

/// What becomes of a request whose client sends no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HalfClose {
    /// A target's work for it is given up. An answer that is ready, or the proxy's own, is still sent.
    #[default]
    Abort,
    /// It goes on, for the client is taken to wait for its answer.
    Allow,
}

/// Whether connections begin with a PROXY protocol header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// They do not.
    #[default]
    Off,
    /// Those of `trusted_proxies` may; those of others do not.
    Accept,
    /// They must, and come from `trusted_proxies` if any are given; others are closed.
    Require,
}

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ListenerProtocol {
    /// Cleartext HTTP/1.1 and HTTP/2 with prior knowledge.
    #[default]
    Http,
    /// HTTP/1.1 and HTTP/2 over TLS, chosen by ALPN. The certificate is the one whose `snis` have the name that the
    /// client asks for.
    Https,
}

/// How TLS is spoken on a listener, as people write it.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTlsSpec {
    /// The lowest version of TLS that is spoken.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// Whether clients show a certificate of theirs; absent: they are not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_auth: Option<ClientAuthSpec>,
    /// The name of the certificate for clients that ask for no name, or for one that no certificate has. Absent: they
    /// are refused.
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

/// What clients have to show, as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientAuthSpec {
    /// Whether they must.
    #[serde(default)]
    pub mode: ClientAuthMode,
    /// Who may have issued their certificates, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// Whether clients must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuthMode {
    /// They are not asked.
    #[default]
    None,
    /// They may; one that is not trusted is refused.
    Optional,
    /// They must.
    Required,
}

/// What a client of a listener may send, as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsSpec {
    /// Request line and headers together; default 64KiB, at most 1MiB. Beyond: 431.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_size: Option<ByteSize>,
    /// Number of header fields; default 100, at most 1000. Beyond: 431.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_count: Option<u16>,
    /// Request body; absent: no limit, for bodies are streamed. Beyond: 413.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_size: Option<ByteSize>,
    /// The longest pause between parts of a request's body; default 60s. Beyond: 408.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_timeout: Option<HumanDuration>,
    /// From the first byte of a request's head to its last; default 15s. Beyond: 408.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_timeout: Option<HumanDuration>,
    /// How long a connection may stay without a request; default 75s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<HumanDuration>,
}

/// A listener.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listener {
    /// Where it listens, unless the proxy overrides it.
    pub address: SocketAddr,
    /// What it speaks.
    pub protocol: ListenerProtocol,
    /// How it speaks TLS; `None`: it does not.
    pub tls: Option<ListenerTls>,
    /// What a client may send.
    pub limits: Limits,
    /// What is believed of a client, and what is made of its requests before anything else.
    pub edge: Edge,
}

/// What is believed of a client, and what is made of its requests before anything else.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Edge {
    /// Whether connections begin with a PROXY protocol header.
    pub proxy_protocol: ProxyProtocol,
    /// Whose word counts.
    pub trusted_proxies: Box<[Cidr]>,
    /// How paths are normalised; `None`: they are not.
    pub normalize_path: Option<EscapedSlashes>,
    /// What becomes of a request whose client sends no more.
    pub half_close: HalfClose,
}

impl Edge {
    /// Whether what comes from `address` is believed.
    pub fn trusts(&self, address: std::net::IpAddr) -> bool {
        self.trusted_proxies.iter().any(|range| range.contains(address))
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
    /// What clients have to show.
    pub client_auth: ClientAuth,
    /// Where none has the name that a client asks for.
    pub default_certificate: Option<Name>,
}

/// What clients have to show.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum ClientAuth {
    /// Nothing.
    #[default]
    None,
    /// They may show a certificate that one of these issued.
    Optional(Box<[CertificateDer<'static>]>),
    /// They must.
    Required(Box<[CertificateDer<'static>]>),
}

/// What a client of a listener may send.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Request line and headers together, bytes.
    pub header_size: usize,
    /// Number of header fields.
    pub header_count: usize,
    /// Request body, bytes; `None`: no limit.
    pub body_size: Option<u64>,
    /// For the head of a request.
    pub header_timeout: Duration,
    /// Between parts of a request's body.
    pub body_timeout: Duration,
    /// Between requests.
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

impl ListenerSpec {
    pub(crate) fn parse(&self) -> Result<Listener, Vec<FieldError>> {
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
        errors.finish(address.map(|address| Listener { address, protocol: self.protocol, tls, limits, edge }))
    }

    fn edge(&self, errors: &mut Errors) -> Edge {
        if self.trusted_proxies.len() > MAX_TRUSTED {
            errors.push("trusted_proxies", format_args!("has more than {MAX_TRUSTED} ranges"));
        }
        let mut trusted = Vec::new();
        for (index, range) in self.trusted_proxies.iter().take(MAX_TRUSTED).enumerate() {
            match range.parse() {
                Ok(range) => trusted.push(range),
                Err(message) => errors.push(format_args!("trusted_proxies[{index}]"), message),
            }
        }
        let proxy_protocol = self.proxy_protocol.unwrap_or_default();
        if proxy_protocol == ProxyProtocol::Accept && self.trusted_proxies.is_empty() {
            errors.push(
                "proxy_protocol",
                "needs trusted_proxies with accept, for anybody could claim any address",
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

/// How many ranges of trusted proxies a listener may have.
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
        spec.parse().map_err(|errors| errors.into_iter().map(|error| error.field).collect())
    }

    #[test]
    fn nobody_is_trusted_and_paths_are_normalised_by_default() {
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
