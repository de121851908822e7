//! The trace of a request: the context that it continues, the decision whether its spans are exported, and the spans.
//!
//! One rule is behind the contexts that targets get: their parent is a span that is exported, or the caller's context as it came.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, request};
use signalbox_config::{BaggageTrust, ParentSampling, PathMatch, TraceContextTrust};
use signalbox_plugin::grpc;
use signalbox_plugin::otlp::nanoseconds;
use signalbox_plugin::otlp::span::{Attributes, Kind, MAX_TEXT, Parent, SpanHead, Status, cut, encode};
use signalbox_plugin::trace_context::{
    RANDOM, SAMPLED, SpanId, TRACEPARENT, TRACESTATE, TraceContext, TraceId, Traceparent, hex_span_id,
};
use smallvec::SmallVec;

use super::worker_context::WorkerContext;
use crate::active::CompiledRoute;
use crate::core::foreign_context::{Claim, ForeignContexts, Form};
use crate::core::identify::Identifier;
use crate::telemetry::Flag;
use crate::telemetry::spans::{ListenerTracing, Sampled};
use crate::upstream::{Target, Upstream};

/// The trace of a request that came by a listener with tracing.
pub(super) struct Trace {
    tracing: Arc<ListenerTracing>,
    /// The caller's context, if it is continued.
    parent: Option<TraceContext>,
    state: SmallVec<[HeaderValue; 1]>,
    /// The contexts of other formats that are passed on.
    foreign: ForeignContexts,
    trace_id: TraceId,
    /// The id of the span of the request itself.
    span_id: SpanId,
    decision: Decision,
    method: Method,
    uri: Uri,
    version: Version,
    /// The number of the route's path that the request matches.
    path: usize,
    /// The request's target as the upstream gets it.
    sent: Option<Uri>,
    attempts: SmallVec<[AttemptSpan; 1]>,
    /// The id of the span of the next attempt.
    next: SpanId,
}

/// The decision whether the spans of a request are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// It waits for the route. With the caller's decision, if that counts.
    Open(Option<bool>),
    /// With the threshold that is told to targets.
    Sampled(Option<u64>),
    NotSampled,
}

/// One attempt.
struct AttemptSpan {
    id: SpanId,
    target: Arc<Target>,
    began: Instant,
    /// `None`: it lasts as long as the request.
    ended: Option<Instant>,
    status: Option<StatusCode>,
    grpc_status: Option<u8>,
    error: Option<&'static str>,
}

/// The fields of a trace context that a target gets in place of the caller's.
#[derive(Debug)]
pub struct TraceFields {
    traceparent: Traceparent,
    state: Option<SmallVec<[u8; 24]>>,
    foreign: Vec<(HeaderName, Vec<u8>)>,
    /// The forms that these are of.
    forms: Vec<Form>,
}

/// A request at its end.
pub(super) struct Ended<'a> {
    pub(super) now: Instant,
    /// The time of day at `now`.
    pub(super) time: Duration,
    pub(super) duration: Duration,
    pub(super) status: u16,
    pub(super) flag: Flag,
    pub(super) grpc_status: Option<u8>,
    /// True if the response did not come to its end, and the client is not to blame.
    pub(super) is_broken: bool,
    /// True if the protocol was switched.
    pub(super) is_switched: bool,
    pub(super) route: Option<&'a CompiledRoute>,
    pub(super) upstream: Option<&'a Upstream>,
    pub(super) upstream_error: &'static str,
    pub(super) client: &'a str,
    pub(super) https: bool,
    pub(super) revision: u64,
}

/// The ids of a trace, as far as they lead somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recorded {
    pub(super) trace_id: TraceId,
    /// `None`: the request's span is not exported.
    pub(super) span_id: Option<SpanId>,
}

/// The longest pattern of a path in the name of a span, in bytes.
const MAX_PATTERN: usize = 256;

/// <https://www.w3.org/TR/baggage/>
static BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// The limits within which everybody must pass baggage on, by W3C's Baggage, 3.3.2.
const MAX_BAGGAGE: usize = 8192;
const MAX_MEMBERS: usize = 64;

impl Trace {
    /// Begins the trace of a request. `context` is what it brings in W3C's format, and `is_trusted` says that its peer is a trusted
    /// proxy. A context that is not continued is removed. `None`: the request is not traced.
    pub(super) fn begin(
        tracing: &Arc<ListenerTracing>,
        context: Option<TraceContext>,
        head: &mut request::Parts,
        is_trusted: bool,
        identifier: &mut Identifier,
    ) -> Option<Box<Self>> {
        let settings = &tracing.settings;
        if tracing.sink.is_call_of_exporter(&head.headers) {
            return None;
        }
        let force = settings.sampling.force_header.as_ref().filter(|name| head.headers.contains_key(*name));
        if let Some(name) = force.filter(|_| !is_trusted) {
            head.headers.remove(name);
        }
        let is_forced = force.is_some() && is_trusted;
        let continues = match settings.trace_context {
            TraceContextTrust::TrustedProxies => is_trusted,
            TraceContextTrust::Trust => true,
            TraceContextTrust::Restart => false,
        };
        let mut foreign = match &*settings.foreign_formats {
            [] => ForeignContexts::default(),
            formats => ForeignContexts::read(&head.headers, formats),
        };
        let mut claim = context.map(|it| Claim { context: Some(it), is_sampled: Some(it.is_sampled()) });
        claim = claim.or(foreign.first);
        if !continues {
            if context.is_some() {
                head.headers.remove(TRACEPARENT);
                head.headers.remove(TRACESTATE);
            }
            foreign.remove_from(&mut head.headers);
            (foreign, claim) = (ForeignContexts::default(), None);
        }
        let gets_baggage = match settings.baggage {
            BaggageTrust::All => true,
            BaggageTrust::TrustedProxies => is_trusted,
            BaggageTrust::None => false,
        };
        if !(gets_baggage && is_baggage_small(&head.headers)) {
            head.headers.remove(&BAGGAGE);
        }
        let parent = claim.and_then(|claim| claim.context);
        let follows = settings.sampling.parent == ParentSampling::Follow;
        let decided = claim.and_then(|claim| claim.is_sampled).filter(|_| follows);
        let mut state = SmallVec::new();
        if parent.is_some() {
            state.extend(head.headers.get_all(TRACESTATE).iter().cloned());
        }
        Some(Box::new(Self {
            tracing: Arc::clone(tracing),
            parent,
            state,
            foreign,
            trace_id: parent.map_or_else(|| identifier.trace_id(), |parent| parent.trace_id),
            span_id: identifier.span_id(),
            decision: if is_forced { Decision::Sampled(None) } else { Decision::Open(decided) },
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
            path: 0,
            sent: None,
            attempts: SmallVec::new(),
            next: identifier.span_id(),
        }))
    }

    /// Decides whether the spans are exported, once the route is known, or known to be none. `path` is the path that was routed.
    pub(super) fn decide(&mut self, route: Option<&CompiledRoute>, path: usize, worker: &WorkerContext) {
        if let Decision::Open(decided) = self.decision {
            let tracing = &self.tracing;
            let own = route.and_then(|route| route.route().sample_ratio);
            let by_ratio = |ratio| match Sampled::by_ratio(ratio, &self.trace_id) {
                Sampled::No => None,
                Sampled::Yes(threshold) => Some(Some(threshold)),
            };
            let wanted = match decided {
                Some(true) => Some(None),
                Some(false) => None,
                None => by_ratio(own.unwrap_or(tracing.settings.sampling.ratio)),
            };
            let now = || worker.shared.epoch.elapsed();
            self.decision = match wanted.filter(|_| tracing.admits_sampled(worker.index, now())) {
                // Where another rule has a part in it, the share is not known.
                Some(threshold) => {
                    Decision::Sampled(threshold.filter(|_| self.parent.is_none() && tracing.is_share_known()))
                }
                None => Decision::NotSampled,
            };
        }
        self.path = path;
    }

    fn is_sampled(&self) -> bool {
        matches!(self.decision, Decision::Sampled(_))
    }

    fn may_be_exported(&self) -> bool {
        self.decision != Decision::NotSampled || self.tracing.settings.late.is_some()
    }

    /// The flags of contexts that name a span of this proxy.
    fn flags(&self) -> u8 {
        let random = self.parent.map_or(RANDOM, |parent| parent.flags & RANDOM);
        random | if self.is_sampled() { SAMPLED } else { 0 }
    }

    /// The fields for the next attempt. `None`: the caller's pass as they are.
    #[inline]
    pub(super) fn fields(&mut self, target: &Uri) -> Option<TraceFields> {
        if self.may_be_exported() {
            self.sent = Some(target.clone());
        }
        let threshold = match self.decision {
            Decision::Sampled(threshold) => threshold,
            _ if self.parent.is_none() && self.tracing.settings.sampling.tell_not_sampled => None,
            _ => return None,
        };
        let context = TraceContext { trace_id: self.trace_id, span_id: self.next, flags: self.flags() };
        let mut foreign = Vec::new();
        for form in &self.foreign.forms {
            form.write(&context, |name, value| foreign.push((name, value)));
        }
        let forms = self.foreign.forms.to_vec();
        Some(TraceFields { traceparent: context.traceparent(), state: threshold.map(state), foreign, forms })
    }

    /// Gives the next attempt an id of its own. Returns the id before and the new one, if targets get them.
    #[cold]
    pub(super) fn renew(&mut self, id: SpanId) -> Option<[[u8; 16]; 2]> {
        let before = std::mem::replace(&mut self.next, id);
        self.is_sampled().then(|| [hex_span_id(&before), hex_span_id(&id)])
    }

    /// Records the begin of an attempt.
    #[inline]
    pub(super) fn begin_attempt(&mut self, target: &Arc<Target>) {
        if self.may_be_exported() {
            self.attempts.push(AttemptSpan {
                id: self.next,
                target: Arc::clone(target),
                began: Instant::now(),
                ended: None,
                status: None,
                grpc_status: None,
                error: None,
            });
        }
    }

    /// Records the head of an attempt's response.
    #[inline]
    pub(super) fn attempt_answered(&mut self, status: StatusCode, grpc_status: Option<u8>) {
        if let Some(attempt) = self.attempts.last_mut() {
            (attempt.status, attempt.grpc_status) = (Some(status), grpc_status);
        }
    }

    /// Records the end of an attempt whose response, if there is one, the client does not get.
    #[cold]
    pub(super) fn end_attempt(&mut self, error: Option<&'static str>) {
        if let Some(attempt) = self.attempts.last_mut() {
            (attempt.ended, attempt.error) = (Some(Instant::now()), error);
        }
    }

    /// Writes the spans of the request, if they are exported.
    pub(super) fn finish(mut self: Box<Self>, ended: &Ended<'_>, worker: &WorkerContext) -> Option<Recorded> {
        if let Decision::Open(_) = self.decision {
            // There was no route.
            self.decide(None, 0, worker);
        }
        let error = ended.error();
        let is_late = !self.is_sampled();
        if is_late && !self.is_exported_late(ended, error.is_some(), worker) {
            let trace_id = self.parent.map(|parent| parent.trace_id)?;
            return Some(Recorded { trace_id, span_id: None });
        }
        worker.spans.write(&self.tracing.sink, |out, scratch| {
            self.write_server(out, scratch, ended, error, is_late);
            for index in 0..self.attempts.len() {
                self.write_client(out, scratch, ended, index, is_late);
            }
            1 + self.attempts.len() as u64
        });
        Some(Recorded { trace_id: self.trace_id, span_id: Some(self.span_id) })
    }

    fn is_exported_late(&self, ended: &Ended<'_>, is_error: bool, worker: &WorkerContext) -> bool {
        let Some(late) = &self.tracing.settings.late else { return false };
        let is_slow = !ended.is_switched && late.slower_than.is_some_and(|limit| ended.duration > limit);
        (is_slow || late.errors && is_error)
            && self.tracing.admits_late(worker.index, worker.shared.epoch.elapsed())
    }

    fn write_server(
        &self,
        out: &mut Vec<u8>,
        scratch: &mut Vec<u8>,
        ended: &Ended<'_>,
        error: Option<ErrorType>,
        is_late: bool,
    ) {
        let (method, name) = self.method();
        let [pattern, suffix] = ended.route.map_or([""; 2], |route| pattern(route, self.path));
        let end = nanoseconds(ended.time);
        let span = SpanHead {
            context: TraceContext { trace_id: self.trace_id, span_id: self.span_id, flags: self.flags() },
            parent: self.parent.map_or(Parent::None, |parent| Parent::Remote(parent.span_id)),
            state: &self.state,
            name: [name, if pattern.is_empty() && suffix.is_empty() { "" } else { " " }, pattern, suffix],
            kind: Kind::Server,
            start: end.saturating_sub(nanoseconds(ended.duration)),
            end,
            status: if error.is_some() { Status::Error } else { Status::Unset },
        };
        encode(out, scratch, &span, |attributes| {
            attributes.text("http.request.method", method);
            attributes.text("url.path", self.uri.path());
            attributes.text("url.scheme", if ended.https { "https" } else { "http" });
            attributes.text("network.protocol.version", self.protocol());
            attributes.text("client.address", ended.client);
            // A client that has gone gets no response.
            if ended.status != 0 && ended.flag != Flag::DownstreamClosed {
                attributes.number("http.response.status_code", ended.status.into());
            }
            put_grpc_status(attributes, ended.grpc_status);
            put_error(attributes, error);
            if let Some(route) = ended.route {
                if !(pattern.is_empty() && suffix.is_empty()) {
                    attributes.text_of("http.route", &[pattern, suffix]);
                }
                attributes.text("signalbox.route", &route.stats.name);
            }
            attributes.number("signalbox.revision", ended.revision);
            if ended.flag != Flag::None {
                attributes.text("signalbox.flags", ended.flag.as_str());
            }
            if is_late {
                attributes.flag("signalbox.late");
            }
        });
    }

    fn write_client(
        &self,
        out: &mut Vec<u8>,
        scratch: &mut Vec<u8>,
        ended: &Ended<'_>,
        index: usize,
        is_late: bool,
    ) {
        let Some(attempt) = self.attempts.get(index) else { return };
        let (method, name) = self.method();
        let error = attempt.error(ended);
        let before =
            |at: Instant| nanoseconds(ended.time.saturating_sub(ended.now.saturating_duration_since(at)));
        let (start, end) = (before(attempt.began), before(attempt.ended.unwrap_or(ended.now)));
        let span = SpanHead {
            context: TraceContext { trace_id: self.trace_id, span_id: attempt.id, flags: self.flags() },
            parent: Parent::Local(self.span_id),
            state: &self.state,
            name: [name, "", "", ""],
            kind: Kind::Client,
            start,
            end: end.max(start),
            status: if error.is_some() { Status::Error } else { Status::Unset },
        };
        let label = &*attempt.target.label;
        let (host, port) = label.rsplit_once(':').unwrap_or((label, ""));
        encode(out, scratch, &span, |attributes| {
            attributes.text("http.request.method", method);
            attributes.text("server.address", host.trim_start_matches('[').trim_end_matches(']'));
            if let Ok(port) = port.parse::<u16>() {
                attributes.number("server.port", port.into());
            }
            if let Some(upstream) = ended.upstream {
                if let Some(sent) = &self.sent {
                    // Without the query, which may hold secrets.
                    let scheme = if upstream.transport.tls.is_some() { "https://" } else { "http://" };
                    attributes.text_of("url.full", &[scheme, label, cut(sent.path(), MAX_TEXT)]);
                }
                attributes.text("signalbox.upstream", upstream.name.as_str());
            }
            if let Some(status) = attempt.status {
                attributes.number("http.response.status_code", status.as_u16().into());
            }
            put_grpc_status(attributes, attempt.grpc_status(ended));
            put_error(attributes, error);
            if index > 0 {
                attributes.number("http.request.resend_count", index as u64);
            }
            if is_late {
                attributes.flag("signalbox.late");
            }
        });
    }

    /// The method as attribute, and in the names of spans.
    fn method(&self) -> (&str, &str) {
        match self.method.as_str() {
            known @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "TRACE"
            | "PATCH") => (known, known),
            // Clients may invent any number of methods.
            _ => ("_OTHER", "HTTP"),
        }
    }

    fn protocol(&self) -> &'static str {
        match self.version {
            Version::HTTP_2 => "2",
            Version::HTTP_10 => "1.0",
            _ => "1.1",
        }
    }
}

impl TraceFields {
    /// Removes the fields in whose place these are.
    pub(super) fn replace_in(&self, headers: &mut HeaderMap) {
        headers.remove(TRACEPARENT);
        if self.state.is_some() {
            headers.remove(TRACESTATE);
        }
        // A form may have fields that are not written, and that would tell of another span.
        for name in self.forms.iter().flat_map(|form| form.names()) {
            headers.remove(name);
        }
    }

    /// Calls `field` with each field.
    #[inline]
    pub(super) fn each(&self, mut field: impl FnMut(&HeaderName, &[u8])) {
        field(&TRACEPARENT, &self.traceparent);
        if let Some(state) = &self.state {
            field(&TRACESTATE, state);
        }
        for (name, value) in &self.foreign {
            field(name, value);
        }
    }
}

/// True if the baggage of a request is within the limits. More is not cut: the rest could mean something else.
fn is_baggage_small(headers: &HeaderMap) -> bool {
    let values = || headers.get_all(&BAGGAGE).iter();
    let size = values().map(|value| value.len() + 1).sum::<usize>().saturating_sub(1);
    let members = |value: &HeaderValue| value.as_bytes().iter().filter(|byte| **byte == b',').count() + 1;
    size <= MAX_BAGGAGE && values().map(members).sum::<usize>() <= MAX_MEMBERS
}

/// The `tracestate` that tells a threshold: 14 hexadecimal digits without zeros at their end.
fn state(threshold: u64) -> SmallVec<[u8; 24]> {
    let mut state = SmallVec::from_slice(b"ot=th:");
    let digits = hex_span_id(&(threshold << 8).to_be_bytes());
    let significant = digits.iter().rposition(|digit| *digit != b'0').map_or(1, |last| last + 1);
    state.extend_from_slice(digits.get(..significant).unwrap_or_default());
    state
}

/// The value of `error.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ErrorType {
    Status(u16),
    Grpc(u8),
    Reason(&'static str),
}

impl Ended<'_> {
    /// The error of the request on this side; a client that made one, or has gone, is none.
    fn error(&self) -> Option<ErrorType> {
        match self.grpc_status {
            _ if self.flag == Flag::DownstreamClosed => None,
            Some(status) if grpc::http_of_status(status) >= 500 => Some(ErrorType::Grpc(status)),
            _ if self.status >= 500 => Some(ErrorType::Status(self.status)),
            _ if self.is_broken => Some(ErrorType::Reason(self.reason())),
            _ => None,
        }
    }

    fn reason(&self) -> &'static str {
        if self.upstream_error.is_empty() { self.flag.as_str() } else { self.upstream_error }
    }
}

impl AttemptSpan {
    /// The error of the attempt. For a client an answer from 400 is one.
    fn error(&self, ended: &Ended<'_>) -> Option<ErrorType> {
        if let Some(reason) = self.error {
            return Some(ErrorType::Reason(reason));
        }
        let is_kept = self.ended.is_none();
        match self.grpc_status(ended) {
            _ if is_kept && ended.flag == Flag::DownstreamClosed => None,
            Some(status @ 1..) => Some(ErrorType::Grpc(status)),
            _ => match self.status {
                Some(status) if status.as_u16() >= 400 => Some(ErrorType::Status(status.as_u16())),
                _ if is_kept && ended.is_broken => Some(ErrorType::Reason(ended.reason())),
                _ => None,
            },
        }
    }

    /// The status of the attempt's gRPC call, which may have come with the trailers.
    fn grpc_status(&self, ended: &Ended<'_>) -> Option<u8> {
        if self.ended.is_none() { ended.grpc_status } else { self.grpc_status }
    }
}

fn put_error(attributes: &mut Attributes<'_>, error: Option<ErrorType>) {
    let mut digits = [b'0'; 3];
    let text = match error {
        None => return,
        Some(ErrorType::Reason(reason)) => reason,
        Some(ErrorType::Grpc(status)) => grpc_status_name(status),
        Some(ErrorType::Status(status)) => {
            let mut rest = status;
            for digit in digits.iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
            std::str::from_utf8(&digits).unwrap_or_default()
        }
    };
    attributes.text("error.type", text);
}

fn put_grpc_status(attributes: &mut Attributes<'_>, status: Option<u8>) {
    if let Some(status) = status {
        attributes.text("rpc.response.status_code", grpc_status_name(status));
    }
}

/// The name of a status (`google.rpc.Code`).
fn grpc_status_name(status: u8) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.get(usize::from(status)).copied().unwrap_or("UNKNOWN")
}

/// The pattern of a route's path, in two parts.
fn pattern(route: &CompiledRoute, index: usize) -> [&str; 2] {
    match route.route().matches.paths.get(index) {
        Some(PathMatch::Exact(path)) => [cut(path, MAX_PATTERN), ""],
        Some(PathMatch::Prefix(prefix)) => [cut(&prefix.path, MAX_PATTERN), "/*"],
        Some(PathMatch::Template(template)) => [cut(template.as_str(), MAX_PATTERN), ""],
        Some(PathMatch::Regex(_, source)) => [cut(source, MAX_PATTERN), ""],
        None => [""; 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_told_without_zeros_at_their_end() {
        for (threshold, expected) in [
            (0, "ot=th:0"),
            (1 << 55, "ot=th:8"),
            (3 << 54, "ot=th:c"),
            (0xfd_70a3_d70a_3d70, "ot=th:fd70a3d70a3d7"),
        ] {
            assert_eq!(std::str::from_utf8(&state(threshold)).unwrap(), expected);
        }
    }
}
