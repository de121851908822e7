use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU32;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::authorities::parse_authorities;
use crate::authority::is_port;
use crate::balancing::{HashOn, LoadBalancing, LoadBalancingSpec};
use crate::breaker::{CircuitBreaker, CircuitBreakerSpec};
use crate::error::{Errors, FieldError};
use crate::health::{HealthCheck, HealthCheckSpec};
use crate::key::{Name, ResourceKey};
use crate::kind::Kind;
use crate::names::parse_names;
use crate::narrowing::Narrowing;
use crate::specification::{Audience, Context, Specification, common_fields, references_of_list};
use crate::values::{ByteSize, HumanDuration, is_default};

/// An upstream as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamSpec {
    /// The name of the upstream, unique among upstreams.
    pub name: String,
    /// A description for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Labels, by which people find it and lists are filtered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The fleets that get the upstream. Absent: all fleets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleets: Option<Vec<String>>,
    /// The protocol of the targets.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: UpstreamProtocol,
    /// The targets. Requests to an upstream without targets are answered 503.
    pub targets: Vec<TargetSpec>,
    /// The policy by which a target is chosen for each request.
    #[serde(default, skip_serializing_if = "is_default")]
    pub load_balancing: LoadBalancingSpec,
    /// Limits on what is sent to the upstream at once, and the error rate at which nothing is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreakerSpec>,
    /// Health checks of the targets. Absent: all targets count as healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheckSpec>,
    /// The longest time to open a connection; default 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<HumanDuration>,
    /// The longest time that an idle connection is kept for reuse; default 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<HumanDuration>,
    /// The TLS settings for connections to targets. Absent: cleartext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<UpstreamTlsSpec>,
    /// Limits on the heads of the targets' responses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResponseLimitsSpec>,
    /// The names of plugins that run on requests to this upstream. They replace plugins of the listener and global ones of the same
    /// type; those of the route or the consumer replace them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<String>,
}

/// Limits on the heads of targets' responses, as people write them. A request whose response is larger is answered 502.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponseLimitsSpec {
    /// The most header fields of a response; default 1000, at most 10000.
    #[schemars(range(min = 1, max = 10_000), example = 1000)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_count: Option<u16>,
    /// The largest status line and headers together, from 1KiB to 1MiB; default 128KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_size: Option<ByteSize>,
}

/// The TLS settings for connections to targets, as people write them. `{}` suits targets whose certificates the proxy's host
/// trusts.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTlsSpec {
    /// The server name that is sent to targets (SNI) and that their certificates must have. Absent: the host of each target's
    /// address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// The certificate authorities that targets' certificates must chain to, in PEM. Absent: those that the proxy's host trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The name of the client certificate for targets that request one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Verifies the targets' certificates; default true. Without verification anybody between proxy and target can read
    /// and change the traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<bool>,
}

/// The protocol of an upstream's targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamProtocol {
    /// HTTP/1.1
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge. gRPC needs it.
    Http2,
    /// HTTP/2 or HTTP/1.1, as each target chooses by ALPN. Needs `tls`.
    Auto,
}

/// One target as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetSpec {
    /// Host and port: `10.0.0.1:8080`, `[::1]:8080` or `users.internal:8080`. A host name is resolved again whenever its DNS records
    /// expire.
    pub address: String,
    /// The share of requests in relation to the other targets' weights; default 100, at most 65535. 0: no requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// The zone of the target. Proxies in the same zone (`--label zone=NAME`) prefer it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// An upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Upstream {
    /// The protocol of the targets.
    pub protocol: UpstreamProtocol,
    /// The targets, without those of weight 0.
    pub targets: Box<[Target]>,
    /// The policy by which a target is chosen.
    pub load_balancing: LoadBalancing,
    /// Limits, and the error rate at which nothing is sent.
    pub circuit_breaker: CircuitBreaker,
    /// The part of a request that is hashed; always there when the policy needs a hash.
    pub hash_on: Option<HashOn>,
    /// The time until a new target gets its full share.
    pub slow_start: Option<Duration>,
    /// Health checks of the targets.
    pub health_check: HealthCheck,
    /// The longest time to open a connection.
    pub connect_timeout: Duration,
    /// The longest time that an idle connection is kept.
    pub idle_timeout: Duration,
    /// TLS settings; `None`: cleartext.
    pub tls: Option<UpstreamTls>,
    /// Limits on the heads of the targets' responses.
    pub limits: ResponseLimits,
    /// Plugins that run on its requests.
    pub plugins: Box<[Name]>,
}

/// Limits on the heads of targets' responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResponseLimits {
    /// The most header fields.
    pub header_count: usize,
    /// Bytes of the status line and the headers together. Over HTTP/2 they count as RFC 9113, section 6.5.2, has it.
    pub header_size: usize,
}

/// Targets set many cookies, and name many sources in a `Content-Security-Policy`: more than clients send. Envoy takes 100 fields and
/// 60 KiB unless told otherwise, nginx any number of fields in 4 or 8 KiB.
impl Default for ResponseLimits {
    fn default() -> Self {
        Self { header_count: 1000, header_size: 128 << 10 }
    }
}

/// The TLS settings for connections to targets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UpstreamTls {
    /// The server name that their certificates must have; `None`: the host of each target.
    pub sni: Option<Box<str>>,
    /// The authorities that their certificates must chain to; `None`: those that the proxy's host trusts.
    pub ca: Option<Box<[CertificateDer<'static>]>>,
    /// The client certificate.
    pub certificate: Option<Name>,
    /// True if their certificates are verified.
    pub verify: bool,
}

/// One target.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// An IP address, or a name for DNS; without brackets.
    pub host: Box<str>,
    /// The port.
    pub port: u16,
    /// Its weight.
    pub weight: NonZeroU32,
    /// Its zone.
    pub zone: Option<Box<str>>,
}

const DEFAULT_WEIGHT: u32 = 100;
const MAX_WEIGHT: u32 = 65_535;
const MAX_TARGETS: usize = 10_000;
const MAX_ZONE: usize = 128;

impl Specification for UpstreamSpec {
    type Parsed = Upstream;

    const TITLE: &'static str = "Upstream";
    const TITLES: &'static str = "Upstreams";
    const ABOUT: &'static str = "An upstream is a named set of targets and the policy for calling them.";
    const AUDIENCE: Audience = Audience::Proxies { wire_tag: 3 };

    common_fields!(UpstreamSpec);

    fn narrowing(_: &Value) -> &'static [Narrowing] {
        const { &[Narrowing::not_null(&["health_check", "active", "statuses"], "for the default")] }
    }

    fn references(upstream: &Upstream) -> Vec<(ResourceKey, String)> {
        let name = upstream.tls.as_ref().and_then(|tls| tls.certificate.clone());
        let key = name.map(|name| ResourceKey::new(Kind::Certificate, name));
        let certificate = key.into_iter().map(|key| (key, "tls.certificate".to_owned()));
        certificate.chain(references_of_list(Kind::Plugin, &upstream.plugins, "plugins")).collect()
    }

    fn parse(&self, _: &Context<'_>) -> Result<Upstream, Vec<FieldError>> {
        let mut errors = Errors::default();
        let targets = self.parse_targets(&mut errors);
        let circuit_breaker = self.circuit_breaker.as_ref();
        let circuit_breaker = circuit_breaker.map(|spec| spec.parse("circuit_breaker", &mut errors));
        let (hash_on, slow_start) = self.load_balancing.parse(&mut errors);
        let health_check =
            self.health_check.as_ref().map_or_else(HealthCheck::default, |spec| spec.parse(&mut errors));
        let tls = self.tls.as_ref().map(|spec| spec.parse(&mut errors));
        if tls.is_none() && self.protocol == UpstreamProtocol::Auto {
            errors.push(
                "protocol",
                "is auto, which is agreed on while TLS is set up; give tls, or say http1 or http2",
            );
        }
        let plugins = parse_names(&self.plugins, "plugins", &mut errors);
        let mut timeout = |field: &str, value: Option<HumanDuration>, default: Duration| {
            let value = value.map_or(default, |value| value.0);
            if value < Duration::from_millis(1) || value > Duration::from_secs(3600) {
                errors.push(field, "must be from 1ms to 1h");
            }
            value
        };
        let upstream = Upstream {
            plugins,
            protocol: self.protocol,
            tls,
            targets,
            load_balancing: self.load_balancing.policy,
            circuit_breaker: circuit_breaker.unwrap_or_default(),
            hash_on,
            slow_start,
            health_check,
            connect_timeout: timeout("connect_timeout", self.connect_timeout, Duration::from_secs(1)),
            idle_timeout: timeout("idle_timeout", self.idle_timeout, Duration::from_secs(60)),
            limits: self.limits.as_ref().map_or_else(ResponseLimits::default, |spec| spec.parse(&mut errors)),
        };
        errors.finish(Some(upstream))
    }
}

impl UpstreamSpec {
    fn parse_targets(&self, errors: &mut Errors) -> Box<[Target]> {
        if self.targets.len() > MAX_TARGETS {
            errors.push("targets", format_args!("has {} entries; at most {MAX_TARGETS}", self.targets.len()));
        }
        let mut addresses: HashSet<&str> = HashSet::new();
        let mut targets: Vec<Target> = Vec::with_capacity(self.targets.len());
        for (index, spec) in self.targets.iter().enumerate() {
            let weight = spec.weight.unwrap_or(DEFAULT_WEIGHT);
            if weight > MAX_WEIGHT {
                errors.push(
                    format_args!("targets[{index}].weight"),
                    format_args!("must be at most {MAX_WEIGHT}"),
                );
            }
            let Some((host, port)) = parse_address(&spec.address) else {
                errors.push(
                    format_args!("targets[{index}].address"),
                    format_args!(
                        "{:?} is not HOST:PORT, like 10.0.0.1:8080, [::1]:8080 or users.internal:8080",
                        spec.address
                    ),
                );
                continue;
            };
            if !addresses.insert(&spec.address) {
                errors.push(
                    format_args!("targets[{index}].address"),
                    format_args!("{:?} is listed twice", spec.address),
                );
            }
            if spec.zone.as_ref().is_some_and(|zone| zone.is_empty() || zone.len() > MAX_ZONE) {
                errors.push(
                    format_args!("targets[{index}].zone"),
                    format_args!("needs from 1 to {MAX_ZONE} characters"),
                );
            }
            if let Some(weight) = NonZeroU32::new(weight) {
                let zone = spec.zone.as_deref().map(Box::from);
                targets.push(Target { host: host.into(), port, weight, zone });
            }
        }
        targets.into()
    }
}

impl ResponseLimitsSpec {
    fn parse(&self, errors: &mut Errors) -> ResponseLimits {
        let default = ResponseLimits::default();
        let header_count = self.response_header_count.map_or(default.header_count, usize::from);
        if !(1..=10_000).contains(&header_count) {
            errors.push("limits.response_header_count", "must be from 1 to 10000");
        }
        let size = self.response_header_size.map_or(default.header_size as u64, |size| size.0);
        if !(1 << 10..=1 << 20).contains(&size) {
            errors.push("limits.response_header_size", "must be from 1KiB to 1MiB");
        }
        ResponseLimits { header_count, header_size: usize::try_from(size).unwrap_or(default.header_size) }
    }
}

impl UpstreamTlsSpec {
    fn parse(&self, errors: &mut Errors) -> UpstreamTls {
        let verify = self.verify.unwrap_or(true);
        if let Some(sni) = self.sni.as_ref().filter(|sni| ServerName::try_from(sni.as_str()).is_err()) {
            errors.push("tls.sni", format_args!("{sni:?} is not a host name"));
        }
        let ca = self
            .ca
            .as_deref()
            .and_then(|pem| parse_authorities(pem).map_err(|message| errors.push("tls.ca", message)).ok());
        if !verify && self.ca.is_some() {
            errors.push("tls.ca", "is not used where verify is false");
        }
        let certificate = self.certificate.as_ref().and_then(|name| {
            name.parse().map_err(|message: String| errors.push("tls.certificate", message)).ok()
        });
        UpstreamTls { sni: self.sni.as_deref().map(Into::into), ca, certificate, verify }
    }
}

/// Host without brackets, and port.
fn parse_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port = Some(port).filter(|port| is_port(port))?.parse().ok()?;
    if let Some(v6) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        v6.parse::<std::net::Ipv6Addr>().ok()?;
        return Some((v6, port));
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    (host.len() <= 253 && host.strip_suffix('.').unwrap_or(host).split('.').all(label))
        .then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(parse_address("10.0.0.1:80"), Some(("10.0.0.1", 80)));
        assert_eq!(parse_address("[::1]:80"), Some(("::1", 80)));
        assert_eq!(parse_address("users.internal:8080"), Some(("users.internal", 8080)));
        for bad in [
            "",
            "a",
            "a:0",
            "a:99999",
            "a:+80",
            ":80",
            "::1:80",
            "[x]:80",
            "a b:80",
            "http://a:80",
            "a..b:80",
        ] {
            assert_eq!(parse_address(bad), None, "{bad}");
        }
    }
}
