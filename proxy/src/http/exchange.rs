//! A request and its response, from the head of the one to the last byte of the other.

use std::cell::{Cell, OnceCell, RefCell};
use std::fmt::Write as _;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, request};
use http_body::Frame;
use signalbox_config::Name;
use signalbox_plugin::host::{self, Kept};
use signalbox_plugin::trace_context::{TraceContext, TraceId, hex_span_id, hex_trace_id};
use signalbox_plugin::{Exchange as PluginNotes, Hooks, Outcomes};

use super::attempt_record::AttemptRecord;
use super::downstream::Downstream;
use super::head;
use super::logged::{Logged, WatchedHead};
use super::problem;
use super::reply::Reply;
use super::request_context::RequestContext;
use super::trace::{Ended, Trace};
use crate::active::Step;
use crate::core::failure::Failure;
use crate::core::filters::FilterError;
use crate::core::outcome::Outcome;
use crate::telemetry::access_log::{Entry, View};
use crate::telemetry::{End, EndedRequest, Flag, Key, Latency, SharedCounts, StreamKind, TracedLatency};
use crate::upstream::{ExchangeError, Target, TargetBody, UpstreamError};

/// One request and its response. If it is dropped before it is complete, the client has gone.
pub struct Exchange {
    pub request: RequestContext,
    pub attempts: AttemptRecord,
    /// The trace that it belongs to; `None`: it has no spans.
    pub(super) trace: Option<Box<Trace>>,
    accounting: Accounting,
    /// The plugins that take part in it beyond its head, once there are any.
    plugged: OnceCell<Box<Plugged>>,
}

/// The plugins that take part in an exchange to its end.
#[derive(Default)]
struct Plugged {
    /// The plugin that has answered or failed.
    answered_by: RefCell<Option<Name>>,
    /// The answers that plugins in shadow would have given, for the log: `name:status`, with commas.
    shadow_answers: RefCell<String>,
    /// The guards of plugins, which are dropped at the end.
    kept: RefCell<Kept>,
    /// The plugins that see the record of the exchange, with the head that it shows.
    watch: RefCell<Option<Watch>>,
}

/// The plugins that see the record of an exchange.
struct Watch {
    steps: Vec<Step>,
    head: WatchedHead,
}

/// The parts of an exchange that are counted and logged at its end.
struct Accounting {
    status: u16,
    flag: Flag,
    /// A flag for a request that was answered nevertheless.
    noted: Flag,
    bytes_out: u64,
    /// The status that the client of a gRPC call gets, as far as it is known.
    grpc_status: Cell<Option<u8>>,
    is_over: bool,
    /// True if the response was aborted.
    is_aborted: bool,
    /// True once it no longer counts among the worker's running requests.
    load_released: bool,
    /// The counts of its consumer.
    consumer: Option<Rc<SharedCounts>>,
    /// For an exchange that lasts as long as its client likes: its kind, and the time until that began.
    stream: Option<(StreamKind, Duration)>,
    /// The data for the access log and for plugins that log, once there is one of these.
    log: Option<Logged>,
    /// The trace that the client's request brings, for a plugin that logs if the access log has no line.
    trace_id: Option<TraceId>,
}

impl Accounting {
    /// Has the data for plugins that log recorded, whatever the access log does.
    fn log_for_plugins(&mut self) {
        if self.log.is_none() {
            let trace_id = self.trace_id.as_ref().map(hex_trace_id);
            self.log = Some(Logged { trace_id, ..Logged::without_head() });
        }
    }
}

impl Exchange {
    /// Begins an exchange with a request's head. It is boxed, because it moves often.
    #[inline]
    pub fn begin(downstream: Rc<Downstream>, head: &request::Parts) -> Box<Self> {
        let request = RequestContext::new(downstream);
        let (worker, own) = (&request.downstream.worker, request.listener.access_log.as_deref());
        let is_logged = worker.log.is_some() && own.is_none_or(|own| own.settings.enabled);
        let log = is_logged.then(|| Logged::new(worker.buffer(), head, own));
        Self::new(request, log)
    }

    /// Begins an exchange for input that is not a valid request head.
    pub fn begin_refused(downstream: Rc<Downstream>, failure: Failure) -> Box<Self> {
        let log = downstream.worker.log.is_some().then(Logged::without_head);
        let mut exchange = Self::new(RequestContext::new(downstream), log);
        exchange.accounting.status = failure.status().as_u16();
        exchange.accounting.flag = failure.flag();
        exchange
    }

    fn new(request: RequestContext, log: Option<Logged>) -> Box<Self> {
        let attempts = AttemptRecord::new(request.started);
        let accounting = Accounting {
            status: 0,
            flag: Flag::None,
            noted: Flag::None,
            bytes_out: 0,
            grpc_status: Cell::new(None),
            is_over: false,
            is_aborted: false,
            load_released: false,
            consumer: None,
            stream: None,
            log,
            trace_id: None,
        };
        Box::new(Self { request, attempts, trace: None, accounting, plugged: OnceCell::new() })
    }

    /// Records the target of the request.
    #[inline]
    pub fn set_target(&mut self, target: &Arc<Target>) {
        self.request.downstream.forwarding_begins();
        if let Some(route) = &self.request.route {
            // The end of the request needs them.
            route.stats.prefetch_counters(self.request.downstream.worker.index);
        }
        if self.attempts.sends.count() > 0 {
            self.attempts.restart();
            self.request.moved();
        }
        if let Some(log) = &mut self.accounting.log {
            log.target = Some(Arc::clone(target));
        }
        if let Some(trace) = &mut self.trace {
            trace.begin_attempt(target);
        }
    }

    /// Records that the upstream's response has begun.
    #[inline]
    pub fn upstream_answered(&mut self) {
        self.attempts.answered(Instant::now());
        self.request.moved();
    }

    /// Records the head of a target's response.
    #[inline]
    pub(super) fn read_head(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.attempts.read_grpc_status(headers);
        self.read_grpc_status(headers);
        if let Some(trace) = &mut self.trace {
            trace.attempt_answered(status, self.attempts.grpc_status());
        }
    }

    /// Records the status of the client's gRPC call if `fields`, the head or the trailers of its response, contain it.
    #[inline]
    pub fn read_grpc_status(&self, fields: &HeaderMap) {
        if self.request.is_grpc {
            self.accounting.grpc_status.set(head::grpc_status(fields));
        }
    }

    /// Records the status of the gRPC call that targets get, if `frame`, a part of a target's response, has its trailers.
    #[inline]
    pub(super) fn read_target_trailers(&self, frame: &Frame<Bytes>) {
        if let Some(trailers) = frame.trailers_ref() {
            self.attempts.read_grpc_status(trailers);
        }
    }

    /// The status of the gRPC call for the log and the metrics: the one that its client gets, or of a call that a plugin has
    /// made of another request the one of the target.
    #[inline]
    fn grpc_status(&self) -> Option<u8> {
        if self.request.is_grpc { self.accounting.grpc_status.get() } else { self.attempts.grpc_status() }
    }

    /// Drops the cached time, because the response continues later.
    #[inline]
    pub fn continues_later(&mut self) {
        self.attempts.ended = None;
    }

    fn plugged(&self) -> &Plugged {
        self.plugged.get_or_init(Box::default)
    }

    /// Records the plugin that has answered or failed.
    #[cold]
    pub(super) fn set_plugin(&self, plugin: &Name) {
        self.plugged().answered_by.replace(Some(plugin.clone()));
    }

    /// Records what a plugin in shadow would have answered.
    #[cold]
    pub(super) fn note_shadow_answer(&self, plugin: &Name, status: StatusCode) {
        let mut answers = self.plugged().shadow_answers.borrow_mut();
        let separator = if answers.is_empty() { "" } else { "," };
        let _ = write!(answers, "{separator}{plugin}:{}", status.as_u16());
    }

    /// Has those of `steps` that want it see the record of this exchange, in which the request's head is as it is now.
    #[inline]
    pub(super) fn watch<'s>(&mut self, steps: impl IntoIterator<Item = &'s Step>, head: &request::Parts) {
        let mut steps = steps.into_iter().filter(|step| step.hooks.intersects(Hooks::LOG)).peekable();
        let before = self.plugged.get().and_then(|plugged| plugged.watch.take());
        if steps.peek().is_some() {
            let steps = steps.cloned().collect();
            let head = before.map_or_else(|| WatchedHead::new(head), |watch| watch.head);
            self.plugged().watch.replace(Some(Watch { steps, head }));
            self.accounting.log_for_plugins();
        }
    }

    /// Keeps what plugins want kept to its end.
    pub(super) fn keep(&mut self, kept: Kept) {
        if !kept.is_empty() {
            self.plugged().kept.replace(kept);
        }
    }

    /// The answer of the plugin whose filter has ended the request's body, if it is one that has an answer.
    pub(super) fn aborted_reply(&self) -> Option<Reply> {
        let (plugin, abort) = self.request.filter_abort.get()?.borrow_mut().take()?;
        self.set_plugin(&plugin);
        Some(Reply::of_plugin(*abort?.reply, self.request.request_id()))
    }

    /// Records why a filter has not let a body pass. Returns the failure.
    #[cold]
    pub(super) fn note_filter_error(&self, error: &FilterError) -> Failure {
        match error {
            FilterError::Aborted(plugin, _) => {
                tracing::debug!("{error}");
                self.set_plugin(plugin);
                Failure::PluginAborted
            }
            FilterError::Panicked(plugin) => {
                tracing::error!(%plugin, "a plugin panicked");
                self.set_plugin(plugin);
                Failure::PluginPanicked
            }
        }
    }

    /// Records that the target's response does not come to its end.
    #[cold]
    pub(super) fn note_broken(&mut self, error: &ExchangeError) {
        if let Some(reason) = error.reason() {
            self.attempts.note_broken(reason, error);
        }
    }

    /// Records the client's consumer.
    pub fn set_consumer(&mut self, consumer: &Name) {
        let worker = &self.request.downstream.worker;
        self.accounting.consumer = Some(worker.shared.consumers.of(&worker.consumers, consumer));
        // The consumer's own plugins are watched later, when its target is known too.
        if self.accounting.log.is_none()
            && let Some(chain) = self.request.serving.consumer_chains.get(consumer)
            && chain.hooks.intersects(Hooks::LOG)
        {
            self.accounting.log_for_plugins();
        }
        if let Some(log) = &mut self.accounting.log {
            log.consumer = Some(consumer.clone());
        }
    }

    /// Records the trace context that the client's request brings.
    #[inline]
    pub(super) fn set_trace(&mut self, context: Option<TraceContext>, head: &mut request::Parts) {
        if let Some(tracing) = &self.request.listener.tracing {
            let downstream = &self.request.downstream;
            let mut identifier = downstream.worker.identifier.borrow_mut();
            self.trace = Trace::begin(tracing, context, head, downstream.trusts_peer(), &mut identifier);
        } else if let Some(context) = context {
            match &mut self.accounting.log {
                Some(log) => log.trace_id = Some(hex_trace_id(&context.trace_id)),
                None => self.accounting.trace_id = Some(context.trace_id),
            }
        }
    }

    /// Decides whether its spans are exported: its route is known. `path` is the number of the route's path that matched.
    #[inline]
    pub(super) fn decide_trace(&mut self, path: usize) {
        if let Some(trace) = &mut self.trace {
            trace.decide(self.request.route.as_deref(), path, &self.request.downstream.worker);
        }
    }

    /// Records for its trace that an attempt has ended, whose response the client does not get.
    #[inline]
    pub(super) fn attempt_ended(&mut self, failure: Option<Failure>) {
        if let Some(trace) = &mut self.trace {
            let error = self.attempts.error.map(UpstreamError::as_str);
            trace.end_attempt(failure.map(|failure| error.unwrap_or(failure.flag().as_str())));
        }
    }

    /// Sets a flag for a request that is answered nevertheless.
    pub fn set_flag_for_answer(&mut self, flag: Flag) {
        self.accounting.noted = flag;
    }

    /// The flag of a response that is passed on, or of `failure`.
    pub(super) fn flag_of(&self, failure: Option<Failure>) -> Flag {
        match (failure, self.accounting.noted) {
            (None, noted) => noted,
            (Some(failure), Flag::RetriesExhausted) => failure.flag().exhausted(),
            (Some(failure), _) => failure.flag(),
        }
    }

    /// Records the response's headers, as far as the access log shows them. `notes` have those that plugins add.
    #[inline]
    pub(super) fn note_headers(&mut self, headers: &HeaderMap, notes: Option<&PluginNotes>) {
        if let Some(own) = &self.request.listener.access_log
            && let Some(log) = &mut self.accounting.log
        {
            log.keep_response(own, headers, notes);
        }
    }

    /// Records the response's status and flag.
    #[inline]
    pub fn set_answer(&mut self, status: u16, flag: Flag) {
        self.accounting.status = status;
        self.accounting.flag = flag;
    }

    #[inline]
    pub fn count_sent(&mut self, bytes: usize) {
        self.accounting.bytes_out += bytes as u64;
    }

    /// The failure if its deadline has expired.
    pub fn lateness(&self) -> Failure {
        self.request.lateness(self.attempts.took.is_some())
    }

    /// True if its deadline has expired; otherwise the task is woken on expiry.
    #[inline]
    pub fn is_late(&self, cx: &Context<'_>) -> bool {
        let deadline = self.request.deadline();
        deadline.register(cx.waker());
        deadline.passed()
    }

    /// Waits for `future` until the request's deadline.
    #[inline]
    pub(super) async fn in_time<F: Future>(&self, future: F) -> Result<F::Output, Failure> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending if self.is_late(cx) => Poll::Ready(Err(self.lateness())),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Returns the connection of a completed response to the pool.
    #[inline]
    pub fn give_back(&mut self, body: TargetBody) {
        let (Some(connection), Some(upstream)) = (body.into_connection(), &self.attempts.upstream) else {
            return;
        };
        let now = *self.attempts.ended.get_or_insert_with(Instant::now);
        self.request.downstream.worker.pool.pass_on(connection, now, upstream.transport.idle_timeout);
    }

    /// Removes it from the worker's running requests: it has ended, or became a tunnel.
    pub fn release_load(&mut self) {
        if !std::mem::replace(&mut self.accounting.load_released, true) {
            self.request.downstream.worker.overload.end();
        }
    }

    /// Records that it lasts as long as its client likes from now on, so that its duration is no latency.
    pub(super) fn becomes_stream(&mut self, kind: StreamKind) {
        self.accounting.stream = Some((kind, self.request.started.elapsed()));
    }

    /// Completes the exchange: the last byte of the response was written.
    #[inline]
    pub fn complete(mut self: Box<Self>) {
        self.judge_grpc();
        self.end();
    }

    /// The status of a gRPC call counts for its target, whatever the client gets.
    #[inline]
    fn judge_grpc(&mut self) {
        if self.attempts.has_grpc_failed() {
            self.attempts.set_outcome(Outcome::ServerError);
        }
    }

    /// Records the number of bytes that passed in each direction after a protocol switch.
    pub fn tunnelled(&mut self, from_client: u64, to_client: u64) {
        let progress = self.request.progress.get_or_insert_default();
        progress.bytes.set(progress.bytes.get() + from_client);
        self.accounting.bytes_out += to_client;
    }

    /// Ends the exchange: the response was aborted.
    pub fn fail(&mut self, failure: Failure) {
        self.accounting.flag = failure.flag();
        self.accounting.is_aborted = true;
        self.judge_grpc();
        self.attempts.set_outcome(failure.outcome_after_head());
        self.end();
    }

    fn end(&mut self) {
        if std::mem::replace(&mut self.accounting.is_over, true) {
            return;
        }
        self.release_load();
        let now = self.attempts.ended.unwrap_or_else(Instant::now);
        let worker = Rc::clone(&self.request.downstream.worker);
        let duration = now.saturating_duration_since(self.request.started);
        let (latency, first_byte) = match self.accounting.stream {
            None => {
                let latency = Latency::of(duration);
                worker.stats.request_duration.record_latency(latency);
                let answered = self.attempts.answered_at();
                let until = |answered: Instant| answered.saturating_duration_since(self.request.started);
                (latency, answered.map_or(latency, |answered| Latency::of(until(answered))))
            }
            Some((kind, until_begun)) => {
                worker.stats.record_stream(kind, duration);
                let until_begun = Latency::of(until_begun);
                (until_begun, until_begun)
            }
        };
        // The counted status differs for gRPC, where 200 says nothing.
        let status = problem::counted_status(self.accounting.status, self.grpc_status());
        if status >= 400 {
            let stats = &worker.stats;
            let counter = match self.accounting.flag {
                _ if status >= 500 => &stats.errors,
                Flag::NoRoute => &stats.no_route,
                _ => &stats.client_errors,
            };
            counter.add(1);
        }
        let counts = &self.request.serving.counts;
        counts.count(latency, status);
        let key = Key::new(self.request.listener.label, status, self.accounting.flag);
        let stats = self.request.route.as_ref().map_or(&worker.shared.unrouted, |route| &route.stats);
        stats.requests.count(worker.index, key);
        let ended = EndedRequest {
            latency,
            first_byte,
            end: End::of(status, self.accounting.flag),
            // A response that broke off counts by its status, and so has no flag here.
            flag: if status < 400 { Flag::None } else { self.accounting.flag },
            bytes_in: self.request.progress.as_ref().map_or(0, |progress| progress.bytes.get()),
            bytes_out: self.accounting.bytes_out,
        };
        worker.stats.count_flag(ended.flag);
        worker.stats.body_in.add(ended.bytes_in);
        worker.stats.body_out.add(ended.bytes_out);
        stats.traffic.count(worker.index, ended);
        if let Some(consumer) = &self.accounting.consumer {
            consumer.0.count(worker.index, ended);
        }
        if let Some(mark) = stats.requests.mark() {
            counts.count_watched(mark, latency, status);
        }
        if let Some(upstream) = &self.attempts.upstream {
            let requests = &upstream.stats.requests;
            requests.count(worker.index, key.without_listener());
            upstream.stats.traffic.count(worker.index, ended);
            if let Some(mark) = requests.mark() {
                counts.count_watched(mark, latency, status);
            }
        }
        if let Some(took) = self.attempts.took {
            worker.stats.upstream_duration.record(took);
        }
        self.attempts.end(worker.index, now);
        if let Some(trace) = self.trace.take() {
            self.end_trace(trace, now, duration, latency);
        }
        let plugged = self.plugged.take();
        if let Some(entry) = self.accounting.log.take() {
            let time = worker.identifier.borrow_mut().time_of_day(self.request.started);
            let culprit = plugged.as_ref().and_then(|plugged| plugged.answered_by.take());
            let culprit = culprit.as_ref().map_or("", Name::as_str);
            let shadow = plugged.as_ref().map(|plugged| plugged.shadow_answers.take()).unwrap_or_default();
            let shown = self.entry(&entry, time, duration, (culprit, &shadow));
            self.write_line(&entry, &shown);
            if let Some(plugged) = &plugged
                && let Some(watch) = plugged.watch.take()
            {
                watch.show(&shown, &plugged.kept.borrow(), worker.index);
            }
            worker.keep_buffer(entry.into_memory());
        }
        if let Some(plugged) = plugged {
            drop_kept(plugged.kept.take());
        }
        self.request.downstream.request_ends(now);
    }

    /// Writes its line of the access log, if it has one.
    #[inline]
    fn write_line(&self, logged: &Logged, entry: &Entry<'_>) {
        let worker = &self.request.downstream.worker;
        let Some(log) = &worker.log else { return };
        match &self.request.listener.access_log {
            None => log.write(&worker.stats, &logged.head, entry),
            Some(own) => {
                if let Some(weight) = own.weight(entry, worker.index) {
                    let (settings, parts) = (&own.settings, logged.parts.as_deref());
                    log.write_as(&worker.stats, View { settings, parts, entry, weight });
                }
            }
        }
    }

    /// Exports the spans, and records for the log where they are.
    fn end_trace(&mut self, trace: Box<Trace>, now: Instant, duration: Duration, latency: Latency) {
        let grpc_status = self.grpc_status();
        let Self { request, attempts, accounting, .. } = self;
        let worker = &request.downstream.worker;
        let (status, flag) = (accounting.status, accounting.flag);
        let is_clients = matches!(flag, Flag::DownstreamClosed | Flag::DownstreamProtocol);
        let ended = Ended {
            now,
            time: worker.identifier.borrow_mut().time_of_day(now),
            duration,
            status,
            flag,
            grpc_status,
            is_broken: accounting.is_aborted && !is_clients,
            is_switched: request.switch.is_some() && (status == 101 || (200..300).contains(&status)),
            route: request.route.as_deref(),
            upstream: attempts.upstream.as_deref(),
            upstream_error: attempts.error.map_or("", UpstreamError::as_str),
            client: std::str::from_utf8(request.client().text.as_bytes()).unwrap_or_default(),
            https: request.downstream.https,
            revision: request.serving.id.number,
        };
        let at = ended.time;
        let Some(recorded) = trace.finish(&ended, worker) else { return };
        if recorded.span_id.is_some() {
            let traced = TracedLatency { latency, trace_id: recorded.trace_id, at };
            if accounting.stream.is_none() {
                worker.shared.exemplars.record(traced);
            }
            if let Some(route) = &request.route {
                route.stats.exemplars.record(traced);
            }
        }
        if let Some(log) = &mut accounting.log {
            log.trace_id = Some(hex_trace_id(&recorded.trace_id));
            log.span_id = recorded.span_id.map(|id| hex_span_id(&id));
        }
    }

    fn entry<'a>(
        &'a self,
        log: &'a Logged,
        time: Duration,
        duration: Duration,
        (plugin, shadow): (&'a str, &'a str),
    ) -> Entry<'a> {
        let Self { request, attempts, accounting, .. } = self;
        Entry {
            time,
            request_id: request.request_id(),
            trace_id: log.trace_id.as_ref().map_or(b"", |id| id),
            span_id: log.span_id.as_ref().map_or(b"", |id| id),
            client: request.client().text.as_bytes(),
            status: accounting.status,
            flags: accounting.flag.as_str(),
            grpc_status: self.grpc_status(),
            route: request.route.as_ref().map_or("", |route| &route.stats.name),
            upstream: attempts.upstream.as_ref().map_or("", |upstream| upstream.name.as_str()),
            upstream_error: attempts.error.map_or("", UpstreamError::as_str),
            target: log.target.as_ref().map_or("", |target| &target.label),
            attempts: attempts.sends.count(),
            duration,
            upstream_duration: attempts.took,
            bytes_in: request.progress.as_ref().map_or(0, |progress| progress.bytes.get()),
            bytes_out: accounting.bytes_out,
            consumer: log.consumer.as_ref().map_or("", Name::as_str),
            plugin,
            shadow,
            revision: request.serving.id.number,
        }
    }
}

/// Drops what plugins wanted kept. A guard that panics then must not take the connection along.
fn drop_kept(kept: Kept) {
    if catch_unwind(AssertUnwindSafe(|| drop(kept))).is_err() {
        tracing::error!("a plugin's guard panicked");
    }
}

impl Watch {
    /// Shows the record of an exchange to the plugins that want it.
    fn show(&self, entry: &Entry<'_>, kept: &Kept, worker: usize) {
        let mut record = self.head.record();
        record.time = entry.time;
        record.request_id = entry.request_id;
        record.trace_id = entry.trace_id;
        record.span_id = entry.span_id;
        record.client = entry.client;
        record.status = StatusCode::from_u16(entry.status).unwrap_or_default();
        record.flags = entry.flags;
        record.route = entry.route;
        record.upstream = entry.upstream;
        record.upstream_error = entry.upstream_error;
        record.target = entry.target;
        record.attempts = entry.attempts;
        record.duration = entry.duration;
        record.upstream_duration = entry.upstream_duration;
        record.bytes_in = entry.bytes_in;
        record.bytes_out = entry.bytes_out;
        record.consumer = entry.consumer;
        record.plugin = entry.plugin;
        record.shadow = entry.shadow;
        record.revision = entry.revision;
        for step in &self.steps {
            let plugin = &*step.plugin;
            host::enter_log(&mut record, host::key_of(plugin), Some(kept), &step.stats.outcomes, worker);
            if catch_unwind(AssertUnwindSafe(|| plugin.on_log(&record))).is_err() {
                step.stats.outcomes.count(worker, Outcomes::PANICKED);
                tracing::error!(plugin = %step.name, "a plugin panicked");
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.accounting.is_over {
            return;
        }
        let is_late = self.request.deadline().passed();
        let failure = if is_late { self.lateness() } else { Failure::ClientGone };
        self.accounting.flag = failure.flag();
        self.accounting.is_aborted = true;
        // The client left before the target's result was known.
        self.attempts.abandon();
        if self.accounting.status == 0 {
            self.accounting.status = Failure::ClientGone.status().as_u16();
        }
        self.end();
    }
}
