//! Forwarding a request to a target.
//!
//! If the route neither retries nor mirrors, and the upstream has no limits and no circuit breaker, there is one
//! target and one attempt. All other requests take [`forward_guarded`], which applies the limits and the breaker, and
//! handles failures.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Response, header, request, response};
use signalbox_config::{Forward, UpstreamProtocol};
use signalbox_plugin::Exchange as PluginNotes;
use signalbox_plugin::grpc::is_grpc;
use smallvec::SmallVec;

use super::affinity;
use super::exchange::Exchange;
use super::head::{self, Forwarded, HeaderFlags};
use super::mirror::{self, Mirror};
use super::reply::{Content, Reply};
use super::retry::{Decision, Retries, is_idempotent};
use super::rewrite;
use super::switch::Switch;
use super::worker_context::WorkerContext;
use crate::active::{Active, CompiledRoute};
use crate::core::deadlines::Deadline;
use crate::core::failure::Failure;
use crate::core::outcome::Outcome;
use crate::telemetry::Flag;
use crate::upstream::{
    Attempt, AttemptError, Head, NO_UPGRADES, Outgoing, Permit, Pick, Picked, RetryOutcome, Target,
    TargetBody, Timeout, Trial, Upstream,
};
use crate::wire::body::{Progress, RequestBody};

/// A request after the plugins have run.
pub(super) struct Request<'a> {
    pub(super) head: &'a mut request::Parts,
    pub(super) flags: HeaderFlags,
    /// The host that the client asked for.
    pub(super) host: Option<&'a HeaderValue>,
    /// The notes of the plugins, if there are any.
    pub(super) notes: Option<&'a PluginNotes>,
    pub(super) body: RequestBody,
    /// The number of bytes of the path that a prefix of the route matched.
    pub(super) prefix_len: usize,
    /// True if the head is read once there is a response.
    pub(super) keeps_head: bool,
}

/// A response's head and body.
type TargetResponse = (Head, TargetBody);

/// Sends a request to an upstream of the route.
#[inline]
pub(super) async fn forward(
    exchange: &mut Exchange,
    serving: &Active,
    route: &CompiledRoute,
    forward: &Forward,
    upstream: &Arc<Upstream>,
    request: Request<'_>,
) -> Result<Reply, Failure> {
    exchange.attempts.set_upstream(upstream);
    note_grpc_call(exchange, request.head);
    let hash_on = upstream.hash_on.as_ref();
    let hash = hash_on.and_then(|on| affinity::hash(on, exchange, request.head, request.notes));
    if exchange.request.switch == Some(Switch::Connect) {
        return Box::pin(forward_connect(exchange, upstream, hash)).await;
    }
    if route.is_guarded() || upstream.is_guarded() {
        let guarded = Guarded { serving, route, forward, upstream, hash };
        return Box::pin(forward_guarded(exchange, &guarded, request)).await;
    }
    let attempt = begin(exchange, upstream, hash, &[], None)?.0;
    rewrite(forward, request.head, request.prefix_len)?;
    let (mut memory, mut outgoing) = write(exchange, request, None)?;
    match send(exchange, upstream, &attempt, &mut outgoing, &mut memory).await {
        Ok((head, body)) => Ok(pass_on(exchange, attempt, head, body, outgoing)),
        Err(failure) => Err(fail(exchange, attempt, failure)),
    }
}

/// Records whether targets get a gRPC call: plugins may have made one of another request. Without plugins, the client's head says so.
#[inline]
fn note_grpc_call(exchange: &mut Exchange, head: &request::Parts) {
    let context = &exchange.request;
    let mut has_deadline = context.has_client_deadline();
    let is_grpc = if context.has_plugins {
        let is_grpc = is_grpc(&head.headers) && head.headers.contains_key(header::TE);
        // The proxy keeps only the deadlines of clients that speak gRPC themselves, and targets those of all.
        has_deadline |= is_grpc && !context.is_grpc && head.headers.contains_key("grpc-timeout");
        is_grpc
    } else {
        context.is_grpc
    };
    if is_grpc {
        exchange.attempts.set_grpc_call(has_deadline);
    }
}

/// Answers a CONNECT with a connection to a target.
async fn forward_connect(
    exchange: &mut Exchange,
    upstream: &Arc<Upstream>,
    hash: Option<u64>,
) -> Result<Reply, Failure> {
    let worker = Rc::clone(&exchange.request.downstream.worker);
    exchange.attempts.permit = Some(upstream.admit_request()?);
    let Ok(trial) = upstream.admit_attempt() else { return refuse(exchange, upstream) };
    let (mut attempt, target) = begin(exchange, upstream, hash, &[], trial)?;
    drop(target);
    let opened = exchange.in_time(attempt.open(&worker.pool, upstream)).await;
    match flatten(exchange, opened) {
        Ok(opened) => {
            exchange.upstream_answered();
            attempt.answered(worker.index, Outcome::Good);
            exchange.attempts.keep(attempt, Outcome::Good);
            Ok(Reply::of_target(Response::new(()).into_parts().0, Content::Switched(Box::new(opened))))
        }
        Err(failure) => {
            if let Some(timeout) = Timeout::before_answer(failure, false) {
                exchange.attempts.error = Some(attempt.note_error(upstream, timeout.reason(), &timeout));
            }
            Err(fail(exchange, attempt, failure))
        }
    }
}

/// Picks a target that is not among `tried`, and begins an attempt.
#[inline]
fn begin<'u>(
    exchange: &mut Exchange,
    upstream: &'u Upstream,
    hash: Option<u64>,
    tried: &[Arc<Target>],
    trial: Option<Trial>,
) -> Result<(Attempt, Picked<'u>), Failure> {
    let worker = exchange.request.downstream.worker.index;
    let pick = Pick { worker, now: exchange.request.started, hash, exclude: tried };
    match Attempt::begin(upstream, &pick, trial) {
        Ok((attempt, target)) => {
            exchange.set_target(&target);
            Ok((attempt, target))
        }
        Err(error) => {
            exchange.attempts.note_error(error);
            Err(error.failure)
        }
    }
}

/// Applies the route's rewrites of path and host.
#[inline]
pub(super) fn rewrite(
    forward: &Forward,
    head: &mut request::Parts,
    prefix_len: usize,
) -> Result<(), Failure> {
    let Some(wanted) = &forward.rewrite else { return Ok(()) };
    // `OPTIONS *` has no path to rewrite.
    if let Some(path) = wanted.path.as_ref().filter(|_| head.uri.path() != "*") {
        let path = rewrite::path(path, head.uri.path(), prefix_len);
        head.uri = rewrite::with_path(&head.uri, &path).ok_or(Failure::Misconfigured)?;
    }
    if let Some(host) = &wanted.host {
        head.headers.insert(header::HOST, host.clone());
    }
    Ok(())
}

/// Encodes the request for the wire. The map is memory for the headers of the response.
#[inline]
fn write(
    exchange: &mut Exchange,
    request: Request<'_>,
    mirror: Option<Mirror<'_>>,
) -> Result<(HeaderMap, Outgoing), Failure> {
    if !request.keeps_head {
        let (head, outgoing) = encode(exchange, request, mirror)?;
        return Ok((std::mem::take(&mut head.headers), outgoing));
    }
    // HTTP/2 takes the contents of the head.
    let upstream = exchange.attempts.upstream.as_ref();
    let is_http1 = upstream.is_some_and(|it| it.transport.protocol == UpstreamProtocol::Http1);
    let kept = (!is_http1).then(|| request.head.clone());
    let (head, outgoing) = encode(exchange, request, mirror)?;
    if let Some(kept) = kept {
        *head = kept;
    }
    Ok((exchange.request.downstream.worker.headers(), outgoing))
}

/// Encodes the request for the wire. Only the memory of the returned head's headers is useful, unless it is HTTP/1.1.
#[inline]
fn encode<'a>(
    exchange: &mut Exchange,
    request: Request<'a>,
    mirror: Option<Mirror<'_>>,
) -> Result<(&'a mut request::Parts, Outgoing), Failure> {
    let Request { head, flags, host, notes, mut body, .. } = request;
    let worker = Rc::clone(&exchange.request.downstream.worker);
    let trace = exchange.trace.as_mut().and_then(|trace| trace.fields(&head.uri));
    let context = &exchange.request;
    let mut forwarded = Forwarded {
        request_id: context.request_id(),
        client: &context.client().text,
        https: context.downstream.https,
        certificate: context.downstream.certificate.get(),
        host,
        notes,
        has_trace: flags.has_trace(),
        trace: None,
    };
    let by_others =
        (context.has_plugins || context.is_forwarded()) && head::has_forwarded_fields(&head.headers);
    // A mirrored request that switches protocols would be of no use, and its fields belong to a connection that it
    // does not have.
    if let Some(mirror) = mirror.filter(|_| context.upgrade().is_none()) {
        let mut fields = Vec::new();
        forwarded.write(&mut fields, &head.headers, by_others);
        mirror::send(&worker, mirror, head, fields, &mut body);
    }
    // A copy has the caller's context: the span of the attempt is not its parent.
    if let Some(trace) = &trace {
        trace.replace_in(&mut head.headers);
        forwarded.trace = Some(trace);
    }
    let repeatable = is_idempotent(&head.method);
    let switches = context.upgrade().is_some();
    let Some(upstream) = &exchange.attempts.upstream else { return Err(Failure::NoHealthyTarget) };
    let transport = &upstream.transport;
    if transport.protocol == UpstreamProtocol::Http2 {
        forwarded.insert(&mut head.headers, by_others);
        let request = Outgoing::http2(head, body, &transport.scheme());
        let mut request = request.ok_or(Failure::Misconfigured)?;
        request.repeatable = repeatable;
        if let Some(protocol) = context.upgrade() {
            request.switch_over_http2(protocol).ok_or(NO_UPGRADES)?;
        }
        return Ok((head, request));
    }
    let buffer = worker.buffer();
    let mut request = Outgoing::new(head, body, buffer, |out| forwarded.write(out, &head.headers, by_others));
    request.repeatable = repeatable;
    request.switches = switches;
    if repeatable {
        // The request is kept in case the target closes an idle connection while it is being reused.
        request.keep();
    }
    if transport.protocol == UpstreamProtocol::Auto && !switches {
        forwarded.insert(&mut head.headers, by_others);
        request.or_http2(head, &transport.scheme()).ok_or(Failure::Misconfigured)?;
    }
    Ok((head, request))
}

/// Waits for the response to an attempt, until the request's deadline. Its headers reuse `memory`.
#[inline]
async fn send(
    exchange: &mut Exchange,
    upstream: &Upstream,
    attempt: &Attempt,
    request: &mut Outgoing,
    memory: &mut HeaderMap,
) -> Result<TargetResponse, Failure> {
    let sending = attempt.send(
        &exchange.request.downstream.worker.pool,
        upstream,
        request,
        memory,
        &exchange.attempts.sends,
    );
    let answered = exchange.in_time(sending).await;
    let answered = flatten(exchange, answered).inspect_err(|failure| {
        if let Some(reason) = attempt.note_timeout(upstream, *failure, request) {
            exchange.attempts.error = Some(reason);
        }
    })?;
    exchange.upstream_answered();
    exchange.read_head(answered.0.status, &answered.0.headers);
    Ok(answered)
}

/// Merges the two layers of errors.
#[inline]
fn flatten<T>(
    exchange: &mut Exchange,
    result: Result<Result<T, AttemptError>, Failure>,
) -> Result<T, Failure> {
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            exchange.attempts.note_error(error);
            Err(error.failure)
        }
        Err(failure) => Err(failure),
    }
}

/// Ends an attempt that brought no response. Returns the reason.
#[cold]
fn fail(exchange: &mut Exchange, attempt: Attempt, failure: Failure) -> Failure {
    let worker = exchange.request.downstream.worker.index;
    exchange.attempt_ended(Some(failure));
    exchange.attempts.end_failed(attempt, worker, failure.outcome());
    failure
}

/// Prepares a target's response for the client.
#[inline]
fn pass_on(
    exchange: &mut Exchange,
    mut attempt: Attempt,
    head: Head,
    body: TargetBody,
    request: Outgoing,
) -> Reply {
    let worker = &exchange.request.downstream.worker;
    let outcome = Outcome::of_answer(head.status, exchange.attempts.has_grpc_failed());
    attempt.answered(worker.index, outcome);
    // While the request's body is still in transit, a task of its own sends it: the client may want to send all of it
    // before it reads the response.
    let body = match body {
        TargetBody::Own(connection) if request.is_sent() => {
            worker.keep_buffer(request.into_buffer());
            TargetBody::Own(connection)
        }
        TargetBody::Own(connection) => TargetBody::Shared(connection.share(request)),
        TargetBody::Http2(mut answer) => {
            if !request.is_sent() {
                answer.write_in_background(request);
            }
            TargetBody::Http2(answer)
        }
        shared @ TargetBody::Shared(_) => shared,
    };
    exchange.attempts.keep(attempt, outcome);
    let mut parts: response::Parts = Response::new(()).into_parts().0;
    parts.status = head.status;
    parts.headers = head.headers;
    Reply::of_target(parts, Content::Target(body))
}

/// The policies of a guarded request.
struct Guarded<'a> {
    serving: &'a Active,
    route: &'a CompiledRoute,
    forward: &'a Forward,
    upstream: &'a Arc<Upstream>,
    hash: Option<u64>,
}

impl Guarded<'_> {
    /// The mirror of the request, if it is to be mirrored.
    fn mirror(&self, exchange: &Exchange, request: &Request<'_>) -> Option<Mirror<'_>> {
        let slot = self.route.mirror(|range| fastrand::u32(..range))?;
        let upstream = self.serving.upstreams.get(slot)?;
        let hash_on = upstream.hash_on.as_ref();
        let client = exchange.request.client();
        let hash = hash_on.and_then(|on| affinity::known(on, client, request.head, request.notes));
        Some(Mirror { upstream, hash })
    }

    /// The timeout of one attempt.
    fn attempt_timeout(&self) -> Option<Duration> {
        let of_route = self.forward.retry.as_ref().and_then(|retry| retry.per_try_timeout);
        let of_breaker = self.upstream.breaker.as_ref().and_then(|breaker| breaker.settings.timeout);
        [of_route, of_breaker].into_iter().flatten().min()
    }

    /// Takes a permit for a retry, if the budget allows it and the body is still buffered.
    fn admit_retry(&self, outgoing: &mut Outgoing) -> Option<Permit> {
        let load = &self.upstream.transport.load;
        let retry = self.forward.retry.as_ref()?;
        let Some(permit) = load.retry(retry.budget) else {
            load.count_retry(RetryOutcome::OverBudget);
            return None;
        };
        if !outgoing.restart() {
            load.count_retry(RetryOutcome::BodyGone);
            return None;
        }
        Some(permit)
    }
}

/// Sends a request with limits, circuit breaker and retries.
async fn forward_guarded(
    exchange: &mut Exchange,
    guarded: &Guarded<'_>,
    request: Request<'_>,
) -> Result<Reply, Failure> {
    let Guarded { forward, upstream, hash, .. } = *guarded;
    let worker = Rc::clone(&exchange.request.downstream.worker);
    let retry = forward.retry.as_deref();
    if upstream.transport.limits.is_some() || retry.is_some() {
        exchange.attempts.permit = Some(upstream.admit_request()?);
    }
    let Ok(mut trial) = upstream.admit_attempt() else { return refuse(exchange, upstream) };
    rewrite(forward, request.head, request.prefix_len)?;
    let mirror = guarded.mirror(exchange, &request);
    let mut retries = retry.map(|retry| Retries::new(retry, request.head));
    let (mut memory, mut outgoing) = write(exchange, request, mirror)?;
    if retry.is_some() {
        outgoing.keep();
    }
    let mut tried: SmallVec<[Arc<Target>; 4]> = SmallVec::new();
    let mut permit: Option<Permit> = None;
    loop {
        let (attempt, target) = begin(exchange, upstream, hash, &tried, trial)?;
        let target = Arc::clone(&*target);
        let progress = exchange.request.progress.clone().filter(|_| !exchange.request.is_grpc);
        let sending = send(exchange, upstream, &attempt, &mut outgoing, &mut memory);
        let result = within(&worker, guarded.attempt_timeout(), progress.as_deref(), sending).await;
        if let Err(Failure::AttemptTimeout) = result {
            exchange.attempts.error = attempt.note_timeout(upstream, Failure::AttemptTimeout, &outgoing);
        }
        let has_begun = outgoing.has_begun();
        let seen = result.as_ref().map(|(head, _)| (head.status, &head.headers)).map_err(|failure| *failure);
        let decision = match &mut retries {
            Some(retries) => retries.decide(seen, has_begun),
            None => Decision::Keep,
        };
        if permit.take().is_some() {
            let succeeded = decision == Decision::Keep && result.is_ok();
            let outcome = if succeeded { RetryOutcome::Succeeded } else { RetryOutcome::Failed };
            upstream.transport.load.count_retry(outcome);
        }
        let is_in_step = outgoing.is_sent();
        let wait = match decision {
            Decision::Keep => None,
            Decision::Exhausted => {
                exchange.set_flag_for_answer(Flag::RetriesExhausted);
                None
            }
            Decision::RetryAfter(wait) => {
                permit = guarded.admit_retry(&mut outgoing);
                permit.as_ref().map(|_| wait)
            }
        };
        let Some(wait) = wait else {
            return match result {
                Ok((head, body)) => Ok(pass_on(exchange, attempt, head, body, outgoing)),
                Err(failure) => Err(fail(exchange, attempt, failure)),
            };
        };
        let outcome = match &result {
            Ok((head, _)) => Outcome::of_answer(head.status, exchange.attempts.has_grpc_failed()),
            Err(failure) => failure.outcome(),
        };
        exchange.attempt_ended(result.as_ref().err().copied());
        exchange.attempts.end_failed(attempt, worker.index, outcome);
        if let Some(trace) = &mut exchange.trace
            && let Some([before, next]) = trace.renew(worker.identifier.borrow_mut().span_id())
        {
            outgoing.replace_span_id(&before, &next);
        }
        if let Ok((answer, body)) = result {
            memory = answer.headers;
            // If the target still expects a part of this request, it would take the next one for it.
            if is_in_step {
                discard(&worker, upstream, body);
            }
        }
        tried.push(target);
        exchange.in_time(Box::pin(tokio::time::sleep(wait))).await?;
        let Ok(next) = upstream.admit_attempt() else { return refuse(exchange, upstream) };
        trial = next;
    }
}

/// The response while the circuit breaker is open.
fn refuse(exchange: &mut Exchange, upstream: &Upstream) -> Result<Reply, Failure> {
    let fallback = upstream.breaker.as_ref().and_then(|breaker| breaker.settings.fallback.as_ref());
    // A gRPC call that is answered with success, and without a message, would be malformed.
    let fallback = fallback.filter(|fallback| !(exchange.request.is_grpc && fallback.status.is_success()));
    let Some(fallback) = fallback else { return Err(Failure::Overflow) };
    exchange.set_flag_for_answer(Flag::Overflow);
    Ok(Reply::configured(fallback))
}

/// Discards a response; its connection is kept if the whole response has arrived.
fn discard(worker: &WorkerContext, upstream: &Upstream, mut body: TargetBody) {
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(Ok(_))) = body.poll(&mut cx) {}
    if body.is_end()
        && let Some(connection) = body.into_connection()
    {
        worker.pool.pass_on(connection, Instant::now(), upstream.transport.idle_timeout);
    }
}

/// Waits for an attempt up to its timeout. Time in which the client is the one that has to send does not count.
async fn within<T>(
    worker: &WorkerContext,
    limit: Option<Duration>,
    progress: Option<&Progress>,
    attempt: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut attempt = pin!(attempt);
    let began = Instant::now();
    let before = progress.map_or(Duration::ZERO, |progress| progress.waited(began));
    let deadline: Option<Deadline> = limit.map(|limit| {
        let deadline = worker.deadlines.add();
        deadline.set(Some(began + limit));
        deadline
    });
    poll_fn(|cx| {
        if let Poll::Ready(result) = attempt.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        if let (Some(deadline), Some(limit)) = (&deadline, limit) {
            deadline.register(cx.waker());
            if deadline.passed() {
                let waited =
                    progress.map_or(Duration::ZERO, |it| it.waited(Instant::now()).saturating_sub(before));
                let due = began + limit + waited;
                if due <= Instant::now() {
                    return Poll::Ready(Err(Failure::AttemptTimeout));
                }
                deadline.set(Some(due));
            }
        }
        Poll::Pending
    })
    .await
}
