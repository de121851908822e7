//! The tracing of a listener's requests: which are sampled, and where their spans go.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use http::{HeaderName, Uri};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Errors;
use crate::header_text::{HeaderTextSpec, parse_headers};
use crate::values::{HumanDuration, millionths};

/// Tracing of a listener's requests: spans by OpenTelemetry's protocol (OTLP). Absent: no spans, and a caller's trace context
/// passes unchanged.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TracingSpec {
    /// The collector that gets the spans.
    pub exporter: TraceExporterSpec,
    /// The requests whose spans are exported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<SamplingSpec>,
    /// The callers whose trace context is continued. Default `trusted_proxies`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_context: Option<TraceContextTrust>,
    /// The formats in which a trace context is read, the first that is found by this order: `w3c`, `b3`, `jaeger`, `xray`. Targets get
    /// W3C's `traceparent`, and the formats that the request came with. Default `[w3c]`, which is always among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation: Option<Vec<TraceFormat>>,
    /// The callers whose `baggage` header targets get, unless it has more than 64 members or 8192 bytes. Default `all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baggage: Option<BaggageTrust>,
    /// Exports requests at their end which sampling has left out. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<LateSpec>,
    /// The resource attribute `service.name`; default `signalbox`.
    #[schemars(example = &"signalbox")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// Further attributes of the resource, such as `deployment.environment.name`; at most 64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resource: BTreeMap<String, String>,
}

/// A collector of spans.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TraceExporterSpec {
    /// The collector's address: `http://collector:4318`, or `https://…` with a certificate that the proxy's host trusts. For
    /// `http/protobuf`, `/v1/traces` is added to its path unless it ends so.
    #[schemars(example = &"http://collector:4318")]
    pub endpoint: String,
    /// The protocol of calls. Default `http/protobuf`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<OtlpProtocol>,
    /// Headers of calls, at most 32: a text, which everybody who may read the listener sees, or a reference to a secret on the
    /// proxy's host.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, HeaderTextSpec>,
    /// The time to wait for an answer, from 10ms to 1m; default 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
}

/// The transport of OTLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum OtlpProtocol {
    /// Protobuf over HTTP/1.1.
    #[default]
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
    /// gRPC over HTTP/2, with prior knowledge where there is no TLS.
    #[serde(rename = "grpc")]
    Grpc,
}

/// The requests whose spans are exported. The first rule that applies decides: `force_header`, the caller's decision, the ratio. What
/// they let through is then limited by `per_second`, except for forced requests.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SamplingSpec {
    /// The share of traces that begin here and are sampled, from 0 to 1, to a millionth; default 1. A route's own ratio replaces it.
    #[schemars(range(min = 0, max = 1), example = 0.01)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// The most requests per second and proxy that are sampled, at most 1000000; default 100. Each worker has its share. 0: no limit.
    #[schemars(range(max = 1_000_000), example = 100)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_second: Option<u32>,
    /// Says if the caller's decision about a trace is followed. Default `follow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentSampling>,
    /// A header by which trusted proxies have a request sampled, whatever its value. It is removed from requests of all others.
    /// Absent: none.
    #[schemars(example = &"x-signalbox-trace")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_header: Option<String>,
    /// Tells targets of a request without a caller's context that it is not sampled, so that they begin no traces of their own. Default
    /// false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tell_not_sampled: Option<bool>,
}

/// The effect of the caller's decision about a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ParentSampling {
    /// The request is sampled if the caller has sampled it.
    #[default]
    Follow,
    /// The ratio decides.
    Ignore,
}

/// The callers whose trace context is continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TraceContextTrust {
    /// Those of the listener's `trusted_proxies`. The requests of all others begin a trace, and the context that they bring is dropped.
    #[default]
    TrustedProxies,
    /// All.
    Trust,
    /// None.
    Restart,
}

/// The callers whose baggage is passed on: what a trace carries along, by W3C's Baggage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BaggageTrust {
    /// All.
    #[default]
    All,
    /// Those of the listener's `trusted_proxies`.
    TrustedProxies,
    /// None.
    None,
}

/// A format of trace contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TraceFormat {
    /// `traceparent` and `tracestate`.
    W3c,
    /// Zipkin's `b3`, or `x-b3-traceid` and its siblings.
    B3,
    /// Jaeger's `uber-trace-id`.
    Jaeger,
    /// AWS X-Ray's `x-amzn-trace-id`.
    Xray,
}

/// Exports requests at their end which sampling has left out. Only the proxy's own spans are exported then, marked by the attribute
/// `signalbox.late`: its targets were not told to record theirs.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LateSpec {
    /// Exports requests that failed on this side: a status from 500, a response that broke off, or an error of gRPC like them. Default
    /// true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<bool>,
    /// Exports requests that took longer, from 1ms to 1h. Protocol switches do not count. Absent: however long they take.
    #[schemars(example = &"1s")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slower_than: Option<HumanDuration>,
    /// The most requests per second and proxy that are exported late, from 1 to 1000; default 10. Each worker has its share.
    #[schemars(range(min = 1, max = 1000), example = 10)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_second: Option<u32>,
}

/// The tracing of a route's requests.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteTracingSpec {
    /// The share of traces that begin here and are sampled, from 0 to 1, in place of the listener's `tracing.sampling.ratio`. Absent: the
    /// listener's.
    #[schemars(range(min = 0, max = 1), example = 0.01)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
}

/// The tracing of a listener's requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tracing {
    /// Where the spans go.
    pub exporter: TraceExporter,
    /// The requests whose spans are exported.
    pub sampling: Sampling,
    /// The callers whose trace context is continued.
    pub trace_context: TraceContextTrust,
    /// The callers whose baggage is passed on.
    pub baggage: BaggageTrust,
    /// The formats besides W3C's, in the order in which they are read.
    pub foreign_formats: Box<[TraceFormat]>,
    /// The requests that are exported late; `None`: none.
    pub late: Option<LateSampling>,
}

/// Where spans go, and the resource that they are about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TraceExporter {
    /// The URL of calls: with a scheme, a host and a path.
    pub url: Uri,
    /// The transport.
    pub protocol: OtlpProtocol,
    /// Headers of calls.
    pub headers: Box<[(HeaderName, HeaderTextSpec)]>,
    /// The time to wait for an answer.
    pub timeout: Duration,
    /// Attributes of the resource, `service.name` among them.
    pub resource: Box<[(Box<str>, Box<str>)]>,
}

/// The requests whose spans are exported.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sampling {
    /// The share of traces that begin here.
    pub ratio: SampleRatio,
    /// The most requests per second; `None`: no limit.
    pub per_second: Option<u32>,
    /// The effect of the caller's decision.
    pub parent: ParentSampling,
    /// The header by which trusted proxies force sampling.
    pub force_header: Option<HeaderName>,
    /// True if targets are told that a trace which would begin here is not sampled.
    pub tell_not_sampled: bool,
}

/// The requests that are exported late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LateSampling {
    /// True if errors are.
    pub errors: bool,
    /// Requests that take longer are.
    pub slower_than: Option<Duration>,
    /// The most requests per second.
    pub per_second: u32,
}

/// A share of all traces: the number that the last 56 bits of a trace's id must reach for the trace to be sampled ("TraceState:
/// probability sampling" of OpenTelemetry). `None`: no trace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SampleRatio(Option<u64>);

/// The most attributes of a resource, and the longest name or value of one.
const MAX_ATTRIBUTES: usize = 64;
const MAX_ATTRIBUTE: usize = 1024;

/// The headers that the exporter sets itself.
const OWN_HEADERS: [&str; 6] =
    ["content-length", "content-type", "connection", "transfer-encoding", "te", "grpc-timeout"];

const SERVICE_NAME: &str = "service.name";

impl SampleRatio {
    /// All traces.
    pub const ALL: Self = Self(Some(0));

    /// The number that the last 56 bits of a trace's id must reach. `None`: no trace is sampled.
    pub fn threshold(self) -> Option<u64> {
        self.0
    }

    fn parse(ratio: Option<f64>, field: &str, errors: &mut Errors) -> Option<Self> {
        let ratio = ratio?;
        let parsed = millionths(ratio);
        // Nothing may become zero that was not written so.
        if parsed.is_none_or(|millionths| millionths == 0 && ratio != 0.0) {
            errors.push(field, "must be 0, or from 0.000001 to 1");
        }
        let threshold = |millionths| (u128::from(1_000_000 - millionths) << 56) / 1_000_000;
        parsed.map(|share: u32| Self((share > 0).then(|| threshold(share) as u64)))
    }
}

impl TracingSpec {
    pub(crate) fn parse(&self, errors: &mut Errors) -> Option<Tracing> {
        let exporter = self.exporter(errors);
        let sampling = self.sampling.clone().unwrap_or_default().parse(errors);
        let late = self.late.as_ref().map(|late| late.parse(errors));
        let formats = self.propagation.as_deref().unwrap_or(&[TraceFormat::W3c]);
        if formats.is_empty() {
            errors.push("tracing.propagation", "must not be empty; leave it out for w3c");
        }
        let mut seen = HashSet::new();
        for (index, format) in formats.iter().enumerate() {
            if !seen.insert(format) {
                errors.push(format_args!("tracing.propagation[{index}]"), "is listed twice");
            }
        }
        let mut foreign: Vec<_> =
            seen.into_iter().copied().filter(|format| *format != TraceFormat::W3c).collect();
        foreign.sort_unstable();
        Some(Tracing {
            exporter: exporter?,
            sampling,
            trace_context: self.trace_context.unwrap_or_default(),
            baggage: self.baggage.unwrap_or_default(),
            foreign_formats: foreign.into(),
            late,
        })
    }

    fn exporter(&self, errors: &mut Errors) -> Option<TraceExporter> {
        let spec = &self.exporter;
        let protocol = spec.protocol.unwrap_or_default();
        let url = url(&spec.endpoint, protocol)
            .map_err(|message| errors.push("tracing.exporter.endpoint", message))
            .ok();
        let timeout = spec.timeout.map_or(Duration::from_secs(10), |timeout| timeout.0);
        if !(Duration::from_millis(10)..=Duration::from_secs(60)).contains(&timeout) {
            errors.push("tracing.exporter.timeout", "must be from 10ms to 1m");
        }
        let headers = parse_headers(&spec.headers, "tracing.exporter.headers", "proxy", &OWN_HEADERS, errors);
        let resource = self.resource(errors);
        Some(TraceExporter { url: url?, protocol, headers, timeout, resource })
    }

    fn resource(&self, errors: &mut Errors) -> Box<[(Box<str>, Box<str>)]> {
        if self.resource.len() > MAX_ATTRIBUTES {
            errors.push("tracing.resource", format_args!("has more than {MAX_ATTRIBUTES} attributes"));
        }
        for (name, value) in &self.resource {
            if name.is_empty() || name.len() > MAX_ATTRIBUTE || value.len() > MAX_ATTRIBUTE {
                let message =
                    format_args!("must have a name, and neither is longer than {MAX_ATTRIBUTE} bytes");
                errors.push(format_args!("tracing.resource.{name}"), message);
            }
        }
        let service = self.service_name.as_deref();
        if service.is_some_and(|name| name.is_empty() || name.len() > MAX_ATTRIBUTE) {
            let message = format_args!("must not be empty, and is not longer than {MAX_ATTRIBUTE} bytes");
            errors.push("tracing.service_name", message);
        }
        if service.is_some() && self.resource.contains_key(SERVICE_NAME) {
            errors.push("tracing.service_name", "is given by resource already, as service.name");
        }
        let known = !self.resource.contains_key(SERVICE_NAME);
        let service = known.then(|| (SERVICE_NAME.into(), service.unwrap_or("signalbox").into()));
        let others = self.resource.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into()));
        service.into_iter().chain(others).collect()
    }
}

/// The URL of calls to a collector.
fn url(endpoint: &str, protocol: OtlpProtocol) -> Result<Uri, String> {
    const TRACES: &str = "/v1/traces";
    const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    let uri: Uri = endpoint.parse().map_err(|_| "is not a URL like http://collector:4318".to_owned())?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("must begin with http:// or https://".to_owned());
    }
    let authority = uri.authority().filter(|authority| !authority.host().is_empty());
    let authority = authority.ok_or_else(|| "must have a host".to_owned())?;
    if authority.as_str().contains('@') {
        return Err("must have no user or password; use headers".to_owned());
    }
    if uri.query().is_some() {
        return Err("must have no query".to_owned());
    }
    let path = uri.path().trim_end_matches('/');
    let path = match protocol {
        OtlpProtocol::HttpProtobuf if path.ends_with(TRACES) => path.to_owned(),
        OtlpProtocol::HttpProtobuf => format!("{path}{TRACES}"),
        OtlpProtocol::Grpc if path.is_empty() => EXPORT.to_owned(),
        OtlpProtocol::Grpc => return Err("must have no path with the protocol grpc".to_owned()),
    };
    let mut parts = uri.into_parts();
    parts.path_and_query = path.parse().ok();
    Uri::from_parts(parts).map_err(|error| error.to_string())
}

impl SamplingSpec {
    fn parse(&self, errors: &mut Errors) -> Sampling {
        let ratio = SampleRatio::parse(self.ratio, "tracing.sampling.ratio", errors);
        let per_second = self.per_second.unwrap_or(100);
        if per_second > 1_000_000 {
            errors.push("tracing.sampling.per_second", "must be at most 1000000");
        }
        let force_header = self.force_header.as_ref().and_then(|name| {
            let parsed =
                HeaderName::try_from(name.as_str()).ok().filter(|name| name.as_str().starts_with("x-"));
            if parsed.is_none() {
                errors.push(
                    "tracing.sampling.force_header",
                    "must be the name of a header that begins with x-",
                );
            }
            parsed
        });
        Sampling {
            ratio: ratio.unwrap_or(SampleRatio::ALL),
            per_second: (per_second > 0).then_some(per_second),
            parent: self.parent.unwrap_or_default(),
            force_header,
            tell_not_sampled: self.tell_not_sampled.unwrap_or(false),
        }
    }
}

impl LateSpec {
    fn parse(&self, errors: &mut Errors) -> LateSampling {
        let slower_than = self.slower_than.map(|time| time.0);
        let bounds = Duration::from_millis(1)..=Duration::from_secs(3600);
        if slower_than.is_some_and(|time| !bounds.contains(&time)) {
            errors.push("tracing.late.slower_than", "must be from 1ms to 1h");
        }
        let per_second = self.per_second.unwrap_or(10);
        if !(1..=1000).contains(&per_second) {
            errors.push("tracing.late.per_second", "must be from 1 to 1000");
        }
        let errors_too = self.errors.unwrap_or(true);
        if !errors_too && slower_than.is_none() {
            errors.push("tracing.late", "needs errors or slower_than");
        }
        LateSampling { errors: errors_too, slower_than, per_second }
    }
}

impl RouteTracingSpec {
    pub(crate) fn parse(&self, errors: &mut Errors) -> Option<SampleRatio> {
        SampleRatio::parse(self.ratio, "tracing.ratio", errors)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(spec: Value) -> Result<Tracing, Vec<String>> {
        let spec: TracingSpec = serde_json::from_value(spec).unwrap();
        let mut errors = Errors::default();
        let tracing = spec.parse(&mut errors);
        errors.finish(tracing).map_err(|errors| errors.into_iter().map(|error| error.field).collect())
    }

    #[test]
    fn an_endpoint_is_enough() {
        let tracing = parse(json!({"exporter": {"endpoint": "http://collector:4318"}})).unwrap();
        assert_eq!(tracing.exporter.url, "http://collector:4318/v1/traces");
        assert_eq!(tracing.exporter.timeout, Duration::from_secs(10));
        assert_eq!(&*tracing.exporter.resource, [("service.name".into(), "signalbox".into())]);
        assert_eq!(tracing.sampling.ratio, SampleRatio::ALL);
        assert_eq!(tracing.sampling.per_second, Some(100));
        assert_eq!(tracing.trace_context, TraceContextTrust::TrustedProxies);
        assert!(tracing.foreign_formats.is_empty() && tracing.late.is_none());
    }

    #[test]
    fn urls_are_completed() {
        for (endpoint, protocol, url) in [
            ("http://c:4318/", "http/protobuf", Some("http://c:4318/v1/traces")),
            ("https://c/otlp", "http/protobuf", Some("https://c/otlp/v1/traces")),
            ("https://c/otlp/v1/traces", "http/protobuf", Some("https://c/otlp/v1/traces")),
            (
                "http://[::1]:4317",
                "grpc",
                Some("http://[::1]:4317/opentelemetry.proto.collector.trace.v1.TraceService/Export"),
            ),
            ("http://c:4317/x", "grpc", None),
            ("c:4317", "grpc", None),
            ("collector", "http/protobuf", None),
            ("ftp://c", "http/protobuf", None),
            ("http://user:secret@c", "http/protobuf", None),
            ("http://c?x=1", "http/protobuf", None),
            ("", "http/protobuf", None),
        ] {
            let parsed = parse(json!({"exporter": {"endpoint": endpoint, "protocol": protocol}}));
            match url {
                Some(url) => assert_eq!(parsed.unwrap().exporter.url, url),
                None => assert_eq!(parsed.unwrap_err(), ["tracing.exporter.endpoint"], "{endpoint}"),
            }
        }
    }

    #[test]
    fn everything_that_is_wrong_is_told() {
        let wrong = parse(json!({
            "exporter": {
                "endpoint": "collector",
                "timeout": "2m",
                "headers": {
                    "authorization": "Bearer x",
                    "content-type": "text/plain",
                    "x-a": "a\nb",
                    "x-b": {"file": ""},
                    "x-c": {"env": "TOKEN"},
                    "b@d": "x",
                },
            },
            "sampling": {"ratio": 1.5, "per_second": 2_000_000, "force_header": "host"},
            "propagation": ["b3", "b3"],
            "late": {"errors": false, "per_second": 0},
            "service_name": "",
            "resource": {"": "x", "service.name": "y"},
        }));
        let mut wrong = wrong.unwrap_err();
        wrong.sort();
        assert_eq!(
            wrong,
            [
                "tracing.exporter.endpoint",
                "tracing.exporter.headers.authorization",
                "tracing.exporter.headers.b@d",
                "tracing.exporter.headers.content-type",
                "tracing.exporter.headers.x-a",
                "tracing.exporter.headers.x-b",
                "tracing.exporter.timeout",
                "tracing.late",
                "tracing.late.per_second",
                "tracing.propagation[1]",
                "tracing.resource.",
                "tracing.sampling.force_header",
                "tracing.sampling.per_second",
                "tracing.sampling.ratio",
                "tracing.service_name",
                "tracing.service_name",
            ]
        );
    }

    #[test]
    fn thresholds_reject_the_rest() {
        let ratio = |ratio| SampleRatio::parse(Some(ratio), "", &mut Errors::default()).unwrap();
        assert_eq!(ratio(1.0).threshold(), Some(0));
        assert_eq!(ratio(0.5).threshold(), Some(1 << 55));
        assert_eq!(ratio(0.25).threshold(), Some(3 << 54));
        assert_eq!(ratio(0.0).threshold(), None);
        let mut errors = Errors::default();
        SampleRatio::parse(Some(1e-9), "ratio", &mut errors);
        assert!(!errors.is_empty());
    }

    #[test]
    fn foreign_formats_are_read_in_one_order() {
        let spec =
            json!({"exporter": {"endpoint": "http://c"}, "propagation": ["xray", "jaeger", "w3c", "b3"]});
        let formats = parse(spec).unwrap().foreign_formats;
        assert_eq!(&*formats, [TraceFormat::B3, TraceFormat::Jaeger, TraceFormat::Xray]);
    }
}
