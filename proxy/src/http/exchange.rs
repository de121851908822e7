//! What is known of a request from its head to the last byte of its answer, and told when that has gone.

use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Version, header, request};
use signalbox_config::{Name, UpstreamProtocol};

use super::body::Progress;
use super::connection::Downstream;
use super::head;
use super::identify::{RequestId, Traceparent};
use super::problem::{self, Failure};
use super::switch::Switch;
use super::trust::{self, Client, Told};
use crate::active::{ActiveListener, CompiledRoute};
use crate::deadlines::Deadline;
use crate::telemetry::access_log::{self, Entry};
use crate::telemetry::{Flag, Key};
use crate::upstream::{AnswerBody, InFlight, Outcome, Permit, Target, Upstream, UpstreamError};
use crate::worker::Serving;

/// One request and its answer. When it is dropped before it is over, the client has gone.
pub struct Exchange {
    pub downstream: Rc<Downstream>,
    /// The revision it began with, to its end.
    pub serving: Rc<Serving>,
    pub listener: Arc<ActiveListener>,
    pub started: Instant,
    pub bytes_out: u64,
    /// How often it was sent to a target.
    pub attempts: u8,
    pub progress: Option<Rc<Progress>>,
    in_flight: Option<InFlight>,
    /// For the answer: by it the client is sent to the same target again.
    pub set_cookie: Option<Box<HeaderValue>>,
    /// Of the requests that its upstream may have under way.
    pub running: Option<Permit>,
    /// What there is to tell of it although it was answered.
    pub noted: Flag,
    /// Why the last target that it was sent to did not answer, or not to the end.
    pub upstream_error: Option<UpstreamError>,
    /// Where nothing moving for too long ends it.
    pub idle: Option<Rc<Idle>>,
    /// Whether plugins have seen it.
    pub has_plugins: bool,
    /// What a trusted peer said of the client.
    told: Option<Box<Told>>,
    /// It is a gRPC call: what the proxy answers by itself has to be one of gRPC's statuses.
    pub is_grpc: bool,
    /// What a gRPC call ended with, as far as is known.
    grpc_status: Option<u8>,
    /// What the client wants to switch to, and may.
    pub switch: Option<Switch>,
    request_id: RequestId,
    route: Option<Arc<CompiledRoute>>,
    upstream: Option<Arc<Upstream>>,
    upstream_took: Option<Duration>,
    /// Of HTTP/2; that of HTTP/1.1 is its connection's.
    deadline: Option<Rc<Deadline>>,
    /// Whether the client said how much time it has.
    client_deadline: bool,
    status: u16,
    flag: Flag,
    /// When it ended, if it has.
    ended: Option<Instant>,
    over: bool,
    /// It does not count among the requests that the worker has under way.
    uncounted: bool,
    /// With an access log.
    log: Option<Box<Logged>>,
}

/// Moves the deadline of an exchange on whenever something moves in it.
pub struct Idle {
    downstream: Rc<Downstream>,
    /// As in the exchange.
    deadline: Option<Rc<Deadline>>,
    timeout: Duration,
    /// When its time is over in any case.
    due: Option<Instant>,
}

/// What only the access log tells.
#[derive(Default)]
struct Logged {
    head: access_log::Head,
    trace: Option<Traceparent>,
    target: Option<Arc<Target>>,
    consumer: Option<Name>,
}

/// The status under which it is counted when a client goes away before it was answered; nginx's.
const CLIENT_CLOSED: u16 = 499;

impl Exchange {
    /// The head of a request has come.
    #[inline]
    pub fn begin(downstream: Rc<Downstream>, head: &request::Parts) -> Box<Self> {
        let mut exchange = Self::new(downstream);
        if exchange.downstream.worker.log.is_some() {
            let memory = exchange.downstream.worker.buffer();
            let header = |name| head.headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
            let host = match head.uri.authority() {
                Some(authority) => authority.as_str().as_bytes(),
                None => header(header::HOST),
            };
            let protocol = match head.version {
                Version::HTTP_2 => "HTTP/2",
                Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            };
            let user_agent = header(header::USER_AGENT);
            let (method, path) = (head.method.as_str(), head.uri.path());
            let head = access_log::Head::new(memory, method, host, path, protocol, user_agent);
            exchange.log = Some(Box::new(Logged { head, ..Logged::default() }));
        }
        exchange
    }

    /// Something came that is not the head of a request.
    pub fn begin_refused(downstream: Rc<Downstream>, failure: Failure) -> Box<Self> {
        let mut exchange = Self::new(downstream);
        if exchange.downstream.worker.log.is_some() {
            let head = access_log::Head::new(Vec::new(), "", b"", "", "", b"");
            exchange.log = Some(Box::new(Logged { head, ..Logged::default() }));
        }
        exchange.status = failure.status().as_u16();
        exchange.flag = failure.flag();
        exchange
    }

    /// In a box, for it moves from hand to hand.
    fn new(downstream: Rc<Downstream>) -> Box<Self> {
        let started = Instant::now();
        downstream.request_begins();
        let worker = &downstream.worker;
        let serving = worker.serving();
        let listener = downstream.settings(serving.listener(downstream.socket));
        let request_id = worker.identifier.borrow_mut().request_id(started);
        let deadline = downstream.http2.get().then(|| Rc::new(worker.deadlines.add()));
        Box::new(Self {
            serving,
            listener,
            started,
            bytes_out: 0,
            attempts: 0,
            progress: None,
            in_flight: None,
            set_cookie: None,
            running: None,
            noted: Flag::None,
            upstream_error: None,
            idle: None,
            client_deadline: false,
            has_plugins: false,
            told: None,
            is_grpc: false,
            grpc_status: None,
            switch: None,
            request_id,
            route: None,
            upstream: None,
            upstream_took: None,
            deadline,
            status: 0,
            flag: Flag::None,
            ended: None,
            over: false,
            uncounted: false,
            log: None,
            downstream,
        })
    }

    pub fn request_id(&self) -> &[u8] {
        match self.told.as_ref().and_then(|told| told.request_id.as_ref()) {
            Some(kept) => kept.as_bytes(),
            None => &self.request_id,
        }
    }

    /// The peer is trusted: what it says of the client counts.
    pub fn believe(&mut self, headers: &mut HeaderMap) {
        let told = trust::believe(headers, &self.listener.edge, self.downstream.peer());
        self.told = Some(Box::new(told));
    }

    /// Whether a trusted peer spoke for the client.
    #[inline]
    pub fn is_told(&self) -> bool {
        self.told.is_some()
    }

    /// Who sent the request, as far as is known.
    #[inline]
    pub fn client(&self) -> &Client {
        self.told.as_ref().map_or_else(|| self.downstream.peer(), |told| &told.client)
    }

    /// A route takes it: its time is running. `limit`: how much the client gives it.
    #[inline]
    pub fn routed(&mut self, route: &Arc<CompiledRoute>, limit: Option<Duration>) {
        self.route = Some(Arc::clone(route));
        let mut timeout = route.timeout();
        if let Some(limit) = limit
            && timeout.is_none_or(|timeout| limit < timeout)
        {
            timeout = Some(limit);
            self.client_deadline = true;
        }
        let due = timeout.map(|timeout| self.started + timeout);
        let idle = route.idle_timeout.filter(|idle| timeout.is_none_or(|timeout| *idle < timeout));
        let at = match idle {
            Some(idle) => Some(self.started + idle),
            None => due,
        };
        if at.is_some() {
            self.deadline.as_deref().unwrap_or(&self.downstream.deadline).set(at);
        }
        self.idle = idle.map(|timeout| {
            let (downstream, deadline) = (Rc::clone(&self.downstream), self.deadline.clone());
            Rc::new(Idle { downstream, deadline, timeout, due })
        });
    }

    /// Whether for most of the time it was the client that was waited for, to send on of its request. A client of gRPC may take
    /// its time: its target can answer at any.
    fn is_clients_delay(&self) -> bool {
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(self.started);
        !self.is_grpc && self.progress.as_ref().is_some_and(|progress| progress.waited(now) * 2 > elapsed)
    }

    /// Of HTTP/2.
    #[inline]
    pub fn deadline(&self) -> Option<&Rc<Deadline>> {
        self.deadline.as_ref()
    }

    /// Whether the client's own limit is what ends it.
    pub fn has_client_deadline(&self) -> bool {
        self.client_deadline
    }

    /// Why it is late, if it is.
    pub fn lateness(&self) -> Failure {
        if self.upstream_took.is_none() && !self.client_deadline && self.is_clients_delay() {
            return Failure::BodyTimeout;
        }
        match &self.idle {
            Some(idle) if idle.due.is_none_or(|due| Instant::now() < due) => Failure::StreamIdle,
            _ => Failure::Timeout,
        }
    }

    pub fn route(&self) -> Option<&Arc<CompiledRoute>> {
        self.route.as_ref()
    }

    /// It goes to a target.
    #[inline]
    pub fn targeted(&mut self, upstream: &Arc<Upstream>, target: &Arc<Target>) {
        self.in_flight = upstream.begin(target);
        self.downstream.forwarding_begins();
        if self.attempts > 0 {
            // What another target answered before, or did not, is not the end.
            (self.ended, self.upstream_took, self.upstream_error) = (None, None, None);
            if let Some(idle) = &self.idle {
                idle.moved(Instant::now());
            }
        }
        if let Some(log) = &mut self.log {
            log.target = Some(Arc::clone(target));
        }
    }

    #[inline]
    pub fn upstream(&mut self, upstream: &Arc<Upstream>) {
        self.upstream = Some(Arc::clone(upstream));
    }

    /// The protocol that the target is asked to switch to.
    #[inline]
    pub fn upgrade(&self) -> Option<&HeaderValue> {
        match &self.switch {
            Some(Switch::Protocol { name, .. }) => Some(name),
            Some(Switch::Connect) | None => None,
        }
    }

    /// What its upstream's targets speak, and what a request is said to be there.
    #[inline]
    pub fn speaks(&self) -> (UpstreamProtocol, Scheme) {
        let upstream = self.upstream.as_ref();
        upstream.map_or((UpstreamProtocol::Http1, Scheme::HTTP), |it| (it.protocol, it.scheme()))
    }

    /// What became of the request at its target, if that is to be told before the exchange is over: another target gets
    /// it.
    pub fn attempt_ended(&mut self, outcome: Outcome) {
        if let (Some(upstream), Some(in_flight)) = (&self.upstream, self.in_flight.take()) {
            upstream.end(&in_flight, outcome, None, Instant::now());
        }
    }

    /// The upstream's answer has begun.
    #[inline]
    pub fn upstream_answered(&mut self, sent: Instant) {
        let now = Instant::now();
        self.upstream_took = Some(now.saturating_duration_since(sent));
        self.ended = Some(now);
        if let Some(idle) = &self.idle {
            idle.moved(now);
        }
    }

    /// What a gRPC call ended with, if `fields`, an answer's head or its trailers, say that.
    #[inline]
    pub fn note_grpc_status(&mut self, fields: &HeaderMap) {
        if self.is_grpc {
            self.grpc_status = head::grpc_status(fields);
        }
    }

    /// Whether the target is to blame for how a gRPC call ended, as far as is known.
    #[inline]
    pub fn has_grpc_failed(&self) -> bool {
        problem::is_targets_failure(self.grpc_status, self.client_deadline)
    }

    /// The status as which it is counted: 200 says nothing of a gRPC call.
    #[inline]
    fn counted_status(&self) -> u16 {
        problem::counted_status(self.status, self.grpc_status)
    }

    /// The answer goes on later: what the clock said is not now any more.
    #[inline]
    pub fn goes_on(&mut self) {
        self.ended = None;
    }

    /// Who the client is, for the log.
    pub fn consumer(&mut self, consumer: &Name) {
        if let Some(log) = &mut self.log {
            log.consumer = Some(consumer.clone());
        }
    }

    /// The trace as the upstream is told of it, for the log.
    #[inline]
    pub fn traced(&mut self, traceparent: &[u8]) {
        if let Some(log) = &mut self.log {
            log.trace = traceparent.first_chunk().copied();
        }
    }

    /// What the client is answered.
    #[inline]
    pub fn answered(&mut self, status: u16, flag: Flag) {
        self.status = status;
        self.flag = flag;
    }

    /// Whether its time is over; else the task is woken when it is.
    #[inline]
    pub fn is_late(&self, cx: &Context<'_>) -> bool {
        match &self.deadline {
            Some(deadline) => {
                deadline.register(cx.waker());
                deadline.passed()
            }
            None => !self.downstream.http2.get() && self.downstream.deadline.passed(),
        }
    }

    /// The answer has come: its connection can take another request.
    #[inline]
    pub fn give_back(&mut self, body: AnswerBody) {
        let (Some(connection), Some(upstream)) = (body.into_connection(), &self.upstream) else { return };
        let now = *self.ended.get_or_insert_with(Instant::now);
        self.downstream.worker.pool.pass_on(connection, now, upstream.idle_timeout);
    }

    /// It is no request any more to who counts those that are under way: it is over, or became a tunnel.
    pub fn leaves_load(&mut self) {
        if !std::mem::replace(&mut self.uncounted, true) {
            self.downstream.worker.overload.end();
        }
    }

    /// The last byte of the answer was handed over.
    #[inline]
    pub fn complete(mut self: Box<Self>) {
        self.end();
    }

    /// So many bytes of the client passed after it had switched to another protocol.
    pub fn tunnelled(&mut self, bytes: u64) {
        let progress = self.progress.get_or_insert_default();
        progress.bytes.set(progress.bytes.get() + bytes);
    }

    /// The answer ended early, or with nothing to be given back.
    pub fn fail(&mut self, flag: Flag) {
        self.flag = flag;
        self.end();
    }

    fn end(&mut self) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        self.leaves_load();
        let now = self.ended.unwrap_or_else(Instant::now);
        let worker = &self.downstream.worker;
        let duration = now.saturating_duration_since(self.started);
        worker.stats.request_duration.record(duration);
        let status = self.counted_status();
        if status >= 400 {
            let stats = &worker.stats;
            let counter = match self.flag {
                _ if status >= 500 => &stats.errors,
                Flag::NoRoute => &stats.no_route,
                _ => &stats.client_errors,
            };
            counter.add(1);
        }
        let key = Key::new(self.listener.label, status, self.flag);
        let stats = self.route.as_ref().map_or(&worker.shared.unrouted, |route| &route.stats);
        stats.requests.count(worker.index, key);
        if let Some(upstream) = &self.upstream {
            upstream.stats.requests.count(worker.index, key.without_listener());
        }
        if let Some(took) = self.upstream_took {
            worker.stats.upstream_duration.record(took);
        }
        if let (Some(upstream), Some(in_flight)) = (&self.upstream, self.in_flight.take()) {
            upstream.end(&in_flight, self.outcome(), self.upstream_took, now);
        }
        self.running = None;
        if let (Some(log), Some(entry)) = (&worker.log, self.log.take()) {
            let time = worker.identifier.borrow_mut().time_of_day(self.started);
            log.write(&worker.stats, &self.entry(&entry, time, duration));
            worker.keep_buffer(entry.head.into_memory());
        }
        self.downstream.request_ends(now);
    }

    fn entry<'a>(&'a self, log: &'a Logged, time: Duration, duration: Duration) -> Entry<'a> {
        Entry {
            time,
            request_id: self.request_id(),
            // Version, trace, span, flags.
            trace_id: log.trace.as_ref().and_then(|trace| trace.get(3..35)).unwrap_or_default(),
            client: self.client().text.as_bytes(),
            head: &log.head,
            status: self.status,
            flags: self.flag.as_str(),
            route: self.route.as_ref().map_or("", |route| &route.stats.name),
            upstream: self.upstream.as_ref().map_or("", |upstream| upstream.name.as_str()),
            upstream_error: self.upstream_error.map_or("", UpstreamError::as_str),
            target: log.target.as_ref().map_or("", |target| &target.label),
            attempts: self.attempts,
            duration,
            upstream_duration: self.upstream_took,
            bytes_in: self.progress.as_ref().map_or(0, |progress| progress.bytes.get()),
            bytes_out: self.bytes_out,
            consumer: log.consumer.as_ref().map_or("", Name::as_str),
            revision: self.serving.id.number,
        }
    }
}

impl Idle {
    /// Something has moved, in either direction.
    pub fn moved(&self, now: Instant) {
        let at = now + self.timeout;
        let at = self.due.map_or(at, |due| due.min(at));
        self.deadline.as_deref().unwrap_or(&self.downstream.deadline).set(Some(at));
    }
}

impl std::fmt::Debug for Idle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Idle").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Exchange {
    /// What its target is to blame for.
    fn outcome(&self) -> Outcome {
        match self.flag {
            Flag::None if self.upstream_took.is_none() => Outcome::Abandoned,
            Flag::None | Flag::RetriesExhausted if self.status >= 500 || self.has_grpc_failed() => {
                Outcome::ServerError
            }
            Flag::None | Flag::RetriesExhausted => Outcome::Good,
            // It has answered; how long the rest takes is the client's doing, too.
            Flag::Timeout if self.upstream_took.is_some() && self.status < 500 => Outcome::Good,
            Flag::ConnectFailure | Flag::ConnectFailureExhausted => Outcome::ConnectFailure,
            Flag::UpstreamReset
            | Flag::UpstreamResetExhausted
            | Flag::UpstreamProtocol
            | Flag::UpstreamProtocolExhausted => Outcome::Reset,
            // A client that is in a hurry must not be able to get a target ejected.
            Flag::Timeout if self.client_deadline => Outcome::Abandoned,
            Flag::Timeout | Flag::TimeoutExhausted | Flag::StreamIdle => Outcome::Timeout,
            _ => Outcome::Abandoned,
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let late = match &self.deadline {
            Some(deadline) => deadline.passed(),
            None => self.downstream.deadline.passed(),
        };
        self.flag = if late { self.lateness().flag() } else { Flag::DownstreamClosed };
        // Had its target been waited for, it would have been told.
        self.attempt_ended(Outcome::Abandoned);
        if self.status == 0 {
            self.status = CLIENT_CLOSED;
        }
        self.end();
    }
}
