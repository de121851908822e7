//! A request on its way to a target.
//!
//! A route that neither retries nor mirrors, to an upstream without a circuit breaker, takes the short way: one target, one
//! attempt. All others take [`guarded`], which asks the limits and the breaker, and decides what becomes of a failure.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request, response};
use signalbox_config::{Forward, Name, Respond, Retry, RetryOn, UpstreamProtocol};
use smallvec::SmallVec;

use super::affinity;
use super::body::{Progress, RequestBody};
use super::exchange::Exchange;
use super::handle::Answer;
use super::head::{self, Forwarded, Special};
use super::mirror::{self, Mirror};
use super::problem::Failure;
use super::rewrite;
use super::switch::Switch;
use crate::active::{Active, CompiledRoute};
use crate::deadlines::Deadline;
use crate::telemetry::Flag;
use crate::tls::Offer;
use crate::upstream::{
    AnswerBody, ConnectError, Connection, Endpoint, ExchangeError, Head, Malformed, Outcome, Outgoing,
    Permit, Pick, RetryOutcome, SendError, Switched, Target, Trial, Upstream,
};
use crate::worker::Worker;

/// A request as it came out of the plugins.
pub(super) struct Request<'a> {
    pub(super) head: &'a mut request::Parts,
    pub(super) special: Special,
    /// What the client asked for.
    pub(super) host: Option<&'a HeaderValue>,
    /// Who the client is.
    pub(super) consumer: Option<&'a Name>,
    pub(super) body: RequestBody,
    /// How much of the path a prefix of the route matched.
    pub(super) prefix_len: usize,
}

/// Retries wait for a random time up to this, doubled for each, as Envoy's do.
const BACKOFF: Duration = Duration::from_millis(25);
const MAX_BACKOFF: Duration = Duration::from_millis(250);

/// Sends a request to one of the route's upstreams.
#[inline]
pub(super) async fn forward(
    exchange: &mut Exchange,
    serving: &Active,
    route: &CompiledRoute,
    forward: &Forward,
    request: Request<'_>,
) -> Result<Answer, Failure> {
    let slot = route.upstream(|total| fastrand::u32(..total)).ok_or(Failure::NoHealthyTarget)?;
    let upstream = serving.upstreams.get(slot as usize).and_then(Option::as_ref);
    let upstream = upstream.ok_or(Failure::NoHealthyTarget)?;
    exchange.upstream(upstream);
    let hash_on = upstream.hash_on.as_ref();
    let hash = hash_on.and_then(|on| affinity::hash(on, exchange, request.head, request.consumer));
    if exchange.switch == Some(Switch::Connect) {
        return Box::pin(connect_client(exchange, upstream, hash)).await;
    }
    if route.is_guarded() || upstream.is_guarded() {
        return Box::pin(guarded(exchange, serving, route, forward, upstream, request, hash)).await;
    }
    let pick = Pick { worker: exchange.downstream.worker.index, now: exchange.started, hash, exclude: &[] };
    let target = upstream.pick(&pick).ok_or_else(|| no_target(exchange, upstream))?;
    exchange.targeted(upstream, &target);
    let endpoint = upstream.endpoint(&target);
    drop(target);
    let Request { head, special, host, body, prefix_len, .. } = request;
    rewrite(forward, head, prefix_len)?;
    let mut outgoing = encode(exchange, head, special, host, body, None)?;
    let (head, body) = attempt(exchange, upstream, endpoint, &mut outgoing, &mut head.headers).await?;
    Ok(answer(exchange, head, body, outgoing))
}

/// Answers a CONNECT with a connection to a target.
async fn connect_client(
    exchange: &mut Exchange,
    upstream: &Arc<Upstream>,
    hash: Option<u64>,
) -> Result<Answer, Failure> {
    let worker = Rc::clone(&exchange.downstream.worker);
    let limits = upstream.limits.as_ref();
    let running = upstream.load.request(limits.map_or(u32::MAX, |limits| limits.requests));
    exchange.running = Some(running.ok_or(Failure::Overflow)?);
    let Some(trial) = admit(upstream) else { return refuse(exchange, upstream) };
    let pick = Pick { worker: worker.index, now: exchange.started, hash, exclude: &[] };
    let target = Arc::clone(&*upstream.pick(&pick).ok_or_else(|| no_target(exchange, upstream))?);
    exchange.targeted(upstream, &target);
    exchange.attempts = 1;
    let endpoint = upstream.endpoint(&target);
    // An idle connection is of use only in that its end lets another begin.
    let idle = || worker.pool.take(endpoint, Instant::now()).and(None);
    let opening = async {
        match may_connect(&worker, upstream, endpoint, idle).await? {
            Had::Idle(_) => Err(ConnectError::TooMany),
            Had::Permit(permit) => {
                Switched::open(endpoint, upstream, Arc::clone(&worker.stats), permit).await
            }
        }
    };
    let opened = in_time(exchange, opening).await?;
    if let Some(trial) = trial
        && !matches!(opened, Err(ConnectError::TooMany | ConnectError::NoRoom(_)))
    {
        trial.report(worker.index, Instant::now(), opened.is_ok());
    }
    let opened = opened.map_err(|error| connect_failed(exchange, upstream, endpoint, &error))?;
    exchange.upstream_answered(exchange.started);
    Ok(Answer::Connected(Box::new(opened)))
}

/// Does what the route says of path and host.
#[inline]
fn rewrite(forward: &Forward, head: &mut request::Parts, prefix_len: usize) -> Result<(), Failure> {
    let Some(wanted) = &forward.rewrite else { return Ok(()) };
    // `OPTIONS *` has no path that could be another.
    if let Some(path) = wanted.path.as_ref().filter(|_| head.uri.path() != "*") {
        let path = rewrite::path(path, head.uri.path(), prefix_len);
        head.uri = rewrite::with_path(&head.uri, &path).ok_or(Failure::Misconfigured)?;
    }
    if let Some(host) = &wanted.host {
        head.headers.insert(header::HOST, host.clone());
    }
    Ok(())
}

/// The request as it is to be written. The headers of `head` are of no use after it, but for their memory.
#[inline]
fn encode(
    exchange: &mut Exchange,
    head: &mut request::Parts,
    special: Special,
    host: Option<&HeaderValue>,
    mut body: RequestBody,
    mirror: Option<Mirror<'_>>,
) -> Result<Outgoing, Failure> {
    let worker = Rc::clone(&exchange.downstream.worker);
    let made = match head::traceparent(&head.headers, special) {
        Some(trace) => {
            exchange.traced(trace.as_bytes());
            None
        }
        None => {
            let made = worker.identifier.borrow_mut().traceparent();
            exchange.traced(&made);
            Some(made)
        }
    };
    let forwarded = Forwarded {
        request_id: exchange.request_id(),
        client: &exchange.client().text,
        https: exchange.downstream.https,
        certificate: exchange.downstream.certificate.get(),
        host,
        traceparent: made.as_ref(),
    };
    let by_others = exchange.has_plugins || exchange.is_told();
    // A copy that switched would be of no use, and its fields are of a connection that it does not have.
    if let Some(mirror) = mirror.filter(|_| exchange.upgrade().is_none()) {
        let mut said = Vec::new();
        forwarded.write(&mut said, &head.headers, by_others);
        mirror::send(&worker, mirror, head, said, &mut body);
    }
    let repeatable = is_idempotent(&head.method);
    let switches = exchange.upgrade().is_some();
    let (protocol, scheme) = exchange.speaks();
    if protocol == UpstreamProtocol::Http2 {
        forwarded.insert(&mut head.headers, by_others);
        let mut request = Outgoing::http2(head, body, &scheme).ok_or(Failure::Misconfigured)?;
        request.repeatable = repeatable;
        if let Some(protocol) = exchange.upgrade() {
            request.switch_over_http2(protocol).ok_or(NO_UPGRADES)?;
        }
        return Ok(request);
    }
    let buffer = worker.buffer();
    let mut request = Outgoing::new(head, body, buffer, |out| forwarded.write(out, &head.headers, by_others));
    request.repeatable = repeatable;
    request.switches = switches;
    if repeatable {
        // For a target that closes an idle connection just when it is used again.
        request.keep();
    }
    if protocol == UpstreamProtocol::Auto && !switches {
        forwarded.insert(&mut head.headers, by_others);
        request.or_http2(head, &scheme).ok_or(Failure::Misconfigured)?;
    }
    Ok(request)
}

/// Sends a request to a target, once; a second time only if an idle connection turned out to be closed. The answer takes
/// the memory of `headers`.
async fn attempt(
    exchange: &mut Exchange,
    upstream: &Upstream,
    endpoint: Endpoint,
    request: &mut Outgoing,
    headers: &mut HeaderMap,
) -> Result<(Head, AnswerBody), Failure> {
    let worker = Rc::clone(&exchange.downstream.worker);
    // A target that may choose may choose otherwise than it did before; once, in the time of a request.
    let mut may_choose = upstream.protocol == UpstreamProtocol::Auto && exchange.upgrade().is_none();
    let mut http2 = match upstream.protocol {
        UpstreamProtocol::Http1 => false,
        UpstreamProtocol::Http2 => true,
        UpstreamProtocol::Auto => may_choose && worker.pool.speaks_http2(endpoint, exchange.started),
    };
    let mut pooled = None;
    let mut other = |error: &ConnectError, http2: &mut bool| {
        let other = matches!(error, ConnectError::OtherProtocol) && std::mem::take(&mut may_choose);
        if other {
            *http2 = !*http2;
            worker.pool.chose(endpoint, *http2);
        }
        other
    };
    if !http2 {
        pooled = worker.pool.take(endpoint, exchange.started);
    }
    loop {
        if upstream.protocol == UpstreamProtocol::Auto {
            request.speak(http2);
        }
        exchange.attempts = exchange.attempts.saturating_add(1);
        if http2 {
            let sent = if exchange.attempts > 1 { Instant::now() } else { exchange.started };
            let sending = worker.pool.http2.send(&worker.pool, endpoint, upstream, request, &worker.stats);
            match in_time(exchange, sending).await? {
                Ok((head, answer)) => {
                    exchange.upstream_answered(sent);
                    exchange.note_grpc_status(&head.headers);
                    return Ok((head, AnswerBody::Http2(answer)));
                }
                Err(SendError::Connect(error)) if other(&error, &mut http2) => {
                    exchange.attempts -= 1;
                    continue;
                }
                Err(SendError::Connect(error)) => {
                    return Err(connect_failed(exchange, upstream, endpoint, &error));
                }
                Err(SendError::Exchange(error)) => {
                    return Err(exchange_failed(exchange, upstream, endpoint, &error));
                }
            }
        }
        let mut reused = pooled.is_some();
        let mut connection = match pooled.take() {
            Some(connection) => connection,
            None => {
                let offer = if exchange.upgrade().is_some() { Offer::Http1 } else { Offer::Any };
                match in_time(exchange, Box::pin(connect(&worker, upstream, endpoint, offer))).await? {
                    Ok((connection, idle)) => {
                        reused = idle;
                        connection
                    }
                    Err(error) if other(&error, &mut http2) => {
                        exchange.attempts -= 1;
                        continue;
                    }
                    Err(error) => return Err(connect_failed(exchange, upstream, endpoint, &error)),
                }
            }
        };
        let sent = if exchange.attempts > 1 { Instant::now() } else { exchange.started };
        let sending = connection.send(request, upstream.response_limits, headers);
        let error = match in_time(exchange, sending).await? {
            Ok(head) => {
                exchange.upstream_answered(sent);
                exchange.note_grpc_status(&head.headers);
                return Ok((head, AnswerBody::Own(connection)));
            }
            Err(error) => error,
        };
        // A target may close an idle connection at the very moment at which it is used again. That is no failure of the
        // target, so the request is sent again, if it may be: RFC 9110, section 9.2.2.
        let closed = matches!(error, ExchangeError::Closed { answered: false, .. });
        if !(closed && reused && request.rewind()) {
            return Err(exchange_failed(exchange, upstream, endpoint, &error));
        }
    }
}

const NO_UPGRADES: Failure = Failure::NotImplemented("The service takes no upgrades.");

/// There is no connection for a request.
#[cold]
fn connect_failed(
    exchange: &mut Exchange,
    upstream: &Upstream,
    endpoint: Endpoint,
    error: &ConnectError,
) -> Failure {
    exchange.upstream_error = Some(error.reason());
    not_connected(upstream, endpoint, error)
}

/// There is no answer to a request.
#[cold]
fn exchange_failed(
    exchange: &mut Exchange,
    upstream: &Upstream,
    endpoint: Endpoint,
    error: &ExchangeError,
) -> Failure {
    exchange.upstream_error = error.reason();
    not_answered(upstream, endpoint, error)
}

/// There is no target for a request.
#[cold]
fn no_target(exchange: &mut Exchange, upstream: &Upstream) -> Failure {
    exchange.upstream_error = upstream.note_no_target();
    Failure::NoHealthyTarget
}

pub(super) fn not_answered(upstream: &Upstream, endpoint: Endpoint, error: &ExchangeError) -> Failure {
    if let Some(reason) = error.reason() {
        upstream.note_error(endpoint, reason, error);
    }
    match error {
        ExchangeError::NoProtocols => NO_UPGRADES,
        ExchangeError::RequestBody(error) => Failure::of_body(error),
        ExchangeError::Malformed(Malformed::HeadTooLarge) => Failure::ResponseHeadTooLarge,
        ExchangeError::Closed { .. } | ExchangeError::Malformed(_) | ExchangeError::Http2(_) => {
            Failure::Reset
        }
    }
}

/// A target's answer, for the client.
#[inline]
fn answer(exchange: &Exchange, head: Head, body: AnswerBody, request: Outgoing) -> Answer {
    let mut parts: response::Parts = Response::new(()).into_parts().0;
    parts.status = head.status;
    parts.headers = head.headers;
    // While the request's body is still on its way, a task of its own sends it: the client may want to send all of it
    // before it reads the answer.
    let body = match body {
        AnswerBody::Own(connection) if request.is_sent() => {
            exchange.downstream.worker.keep_buffer(request.into_buffer());
            AnswerBody::Own(connection)
        }
        AnswerBody::Own(connection) => AnswerBody::Shared(connection.share(request)),
        AnswerBody::Http2(mut answer) => {
            if !request.is_sent() {
                answer.write_beside(request);
            }
            AnswerBody::Http2(answer)
        }
        shared @ AnswerBody::Shared(_) => shared,
    };
    Answer::Target(parts, body)
}

/// A connection to a target, and whether it was used before.
pub(super) async fn connect(
    worker: &Worker,
    upstream: &Upstream,
    endpoint: Endpoint,
    offer: Offer,
) -> Result<(Box<Connection>, bool), ConnectError> {
    let idle = || worker.pool.take(endpoint, Instant::now());
    let permit = match may_connect(worker, upstream, endpoint, idle).await? {
        Had::Idle(connection) => return Ok((connection, true)),
        Had::Permit(permit) => permit,
    };
    let opened = Connection::open(endpoint, upstream, offer, Arc::clone(&worker.stats), permit).await;
    Ok((opened?, false))
}

/// What it takes to have a connection, as soon as the upstream's limits let it be had. `idle` is asked for one that came back
/// meanwhile.
async fn may_connect(
    worker: &Worker,
    upstream: &Upstream,
    endpoint: Endpoint,
    mut idle: impl FnMut() -> Option<Box<Connection>>,
) -> Result<Had, ConnectError> {
    let load = &upstream.load;
    let limit = upstream.limits.map_or(u32::MAX, |limits| limits.connections);
    match (load.connection(limit), &upstream.limits) {
        (Some(permit), _) => Ok(Had::Permit(permit)),
        (None, None) => Err(ConnectError::TooMany),
        (None, Some(limits)) => {
            let look = || match idle() {
                Some(connection) => Some(Had::Idle(connection)),
                None => load.connection(limit).map(Had::Permit),
            };
            worker.pool.wait(upstream, endpoint, limits, look).await
        }
    }
}

pub(super) fn not_connected(upstream: &Upstream, endpoint: Endpoint, error: &ConnectError) -> Failure {
    upstream.note_error(endpoint, error.reason(), error);
    match error {
        ConnectError::Refused(_)
        | ConnectError::Timeout
        | ConnectError::Tls(_)
        | ConnectError::TlsTimeout
        | ConnectError::Http2(_)
        | ConnectError::OtherProtocol => Failure::ConnectFailure,
        ConnectError::TooMany => Failure::Overflow,
        ConnectError::NoRoom(_) => Failure::NoRoom,
    }
}

/// What it takes to have a connection.
enum Had {
    Idle(Box<Connection>),
    /// To open one.
    Permit(Permit),
}

/// What came of an attempt.
type Tried = Result<(Head, AnswerBody), Broken>;

/// Why an attempt brought no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// The request's time is over.
    Late,
    /// The attempt's time is over.
    TryLate,
    Failed(Failure),
}

/// Sends a request as limits, circuit breaker and retries have it.
async fn guarded(
    exchange: &mut Exchange,
    serving: &Active,
    route: &CompiledRoute,
    forward: &Forward,
    upstream: &Arc<Upstream>,
    Request { head, special, host, consumer, body, prefix_len }: Request<'_>,
    hash: Option<u64>,
) -> Result<Answer, Failure> {
    let worker = Rc::clone(&exchange.downstream.worker);
    let retry = forward.retry.as_deref();
    if upstream.limits.is_some() || retry.is_some() {
        let limit = upstream.limits.map_or(u32::MAX, |limits| limits.requests);
        exchange.running = Some(upstream.load.request(limit).ok_or(Failure::Overflow)?);
    }
    let Some(mut trial) = admit(upstream) else { return refuse(exchange, upstream) };
    rewrite(forward, head, prefix_len)?;
    let mirror = route.mirror(|range| fastrand::u32(..range));
    let mirror = mirror.and_then(|slot| {
        let upstream = serving.upstreams.get(slot as usize)?.as_ref()?;
        let hash_on = upstream.hash_on.as_ref();
        let hash = hash_on.and_then(|on| affinity::known(on, exchange.client(), head, consumer));
        Some(Mirror { upstream, hash })
    });
    let mut attempts = retry.map(|retry| Retries::new(retry, head));
    let mut outgoing = encode(exchange, head, special, host, body, mirror)?;
    if retry.is_some() {
        outgoing.keep();
    }
    let mut tried: SmallVec<[Arc<Target>; 4]> = SmallVec::new();
    let mut permit: Option<Permit> = None;
    loop {
        let pick = Pick { worker: worker.index, now: exchange.started, hash, exclude: &tried };
        let target = Arc::clone(&*upstream.pick(&pick).ok_or_else(|| no_target(exchange, upstream))?);
        exchange.targeted(upstream, &target);
        let limit = [
            retry.and_then(|retry| retry.per_try_timeout),
            upstream.breaker.as_ref().and_then(|breaker| breaker.settings.timeout),
        ];
        let limit = limit.into_iter().flatten().min();
        let endpoint = upstream.endpoint(&target);
        let progress = exchange.progress.clone().filter(|_| !exchange.is_grpc);
        let attempt = attempt(exchange, upstream, endpoint, &mut outgoing, &mut head.headers);
        let result = in_try_time(&worker, limit, progress.as_deref(), attempt).await;
        if let Some(outcome) = failed(exchange, &result) {
            exchange.attempt_ended(outcome);
        }
        tell(trial.take(), worker.index, judge(exchange, &result));
        let again = attempts.as_mut().and_then(|attempts| attempts.after(&result, &outgoing));
        if permit.take().is_some() {
            let outcome = if again.is_none() && result.is_ok() {
                RetryOutcome::Succeeded
            } else {
                RetryOutcome::Failed
            };
            upstream.load.count_retry(outcome);
        }
        let in_step = outgoing.is_sent();
        let wait = match again {
            None => None,
            Some(Again::Exhausted) => {
                exchange.noted = Flag::RetriesExhausted;
                None
            }
            Some(Again::After(wait)) => {
                permit = retry.and_then(|retry| upstream.load.retry(retry.budget));
                if permit.is_none() {
                    upstream.load.count_retry(RetryOutcome::OverBudget);
                    None
                } else if !outgoing.restart() {
                    upstream.load.count_retry(RetryOutcome::BodyGone);
                    permit = None;
                    None
                } else {
                    Some(wait)
                }
            }
        };
        let Some(wait) = wait else {
            return match result {
                Ok((head, body)) => Ok(self::answer(exchange, head, body, outgoing)),
                Err(Broken::Late | Broken::TryLate) => Err(Failure::Timeout),
                Err(Broken::Failed(failure)) => Err(failure),
            };
        };
        if let Ok((answer, body)) = result {
            head.headers = answer.headers;
            // A target that still expects some of this request would take the next one for it.
            if in_step {
                discard(&worker, upstream, body);
            }
        }
        tried.push(target);
        in_time(exchange, Box::pin(tokio::time::sleep(wait))).await?;
        let Some(next) = admit(upstream) else { return refuse(exchange, upstream) };
        trial = next;
    }
}

/// What a target is to blame for, if an attempt failed.
fn failed(exchange: &Exchange, result: &Tried) -> Option<Outcome> {
    Some(judge(exchange, result)).filter(|outcome| *outcome != Outcome::Good)
}

fn judge(exchange: &Exchange, result: &Tried) -> Outcome {
    let status = result.as_ref().map(|(head, _)| head.status).map_err(|broken| *broken);
    outcome(status, exchange.has_grpc_failed(), exchange.has_client_deadline())
}

/// What a target is to blame for after an attempt. `hurried`: it was the client that said how much time there is.
pub(super) fn outcome(result: Result<StatusCode, Broken>, has_grpc_failed: bool, hurried: bool) -> Outcome {
    match result {
        Ok(status) if status.is_server_error() || has_grpc_failed => Outcome::ServerError,
        Ok(_) => Outcome::Good,
        Err(Broken::Late) if hurried => Outcome::Abandoned,
        Err(Broken::Late | Broken::TryLate | Broken::Failed(Failure::StreamIdle)) => Outcome::Timeout,
        Err(Broken::Failed(Failure::ConnectFailure)) => Outcome::ConnectFailure,
        Err(Broken::Failed(Failure::Reset | Failure::ResponseHeadTooLarge)) => Outcome::Reset,
        Err(Broken::Failed(_)) => Outcome::Abandoned,
    }
}

/// Asks the breaker. `None`: nothing is to be sent.
#[expect(clippy::option_option, reason = "a breaker that lets the request through, and none at all")]
fn admit(upstream: &Upstream) -> Option<Option<Trial>> {
    match &upstream.breaker {
        None => Some(None),
        Some(breaker) => breaker.admit(Instant::now()).map(Some),
    }
}

/// What is answered when nothing may be sent.
fn refuse(exchange: &mut Exchange, upstream: &Upstream) -> Result<Answer, Failure> {
    let fallback = upstream.breaker.as_ref().and_then(|breaker| breaker.settings.fallback.as_ref());
    // A call of gRPC that is answered with success, and without a message, would be a broken one.
    let fallback = fallback.filter(|fallback| !(exchange.is_grpc && fallback.status.is_success()));
    let Some(fallback) = fallback else { return Err(Failure::Overflow) };
    exchange.noted = Flag::Overflow;
    Ok(Answer::Own(respond(fallback)))
}

/// An answer as the configuration has it.
pub(super) fn respond(respond: &Respond) -> Response<Bytes> {
    let mut response = Response::new(respond.body.clone());
    *response.status_mut() = respond.status;
    for (name, value) in &respond.headers {
        response.headers_mut().append(name.clone(), value.clone());
    }
    response
}

/// Tells the breaker what came of a request. Nothing is known of an upstream that is not to blame.
pub(super) fn tell(trial: Option<Trial>, worker: usize, outcome: Outcome) {
    let succeeded = match outcome {
        Outcome::Good => true,
        Outcome::ServerError | Outcome::ConnectFailure | Outcome::Reset | Outcome::Timeout => false,
        Outcome::Abandoned => return,
    };
    if let Some(trial) = trial {
        trial.report(worker, Instant::now(), succeeded);
    }
}

/// What a route's retries have come to.
struct Retries<'a> {
    policy: &'a Retry,
    /// Whether the target may see the request twice.
    repeatable: bool,
    grpc: bool,
    made: u8,
}

/// A request is to be sent again.
enum Again {
    After(Duration),
    /// It was sent often enough.
    Exhausted,
}

impl<'a> Retries<'a> {
    fn new(policy: &'a Retry, head: &request::Parts) -> Self {
        let repeatable = match &policy.methods {
            Some(methods) => methods.contains(&head.method),
            None => is_idempotent(&head.method),
        };
        let grpc = policy.on.has_grpc() && head::is_grpc(&head.headers);
        Self { policy, repeatable, grpc, made: 0 }
    }

    /// Whether to send the request again after `result`.
    fn after(&mut self, result: &Tried, request: &Outgoing) -> Option<Again> {
        let on = self.policy.on;
        let wanted = match result {
            Ok((head, _)) => {
                (self.repeatable && on.has_status(head.status.as_u16()))
                    || (self.grpc
                        && head::grpc_status(&head.headers).is_some_and(|status| on.has_grpc_status(status)))
            }
            Err(Broken::Failed(Failure::ConnectFailure | Failure::NoRoom)) => on.has(RetryOn::ConnectFailure),
            Err(Broken::Failed(Failure::Reset | Failure::ResponseHeadTooLarge) | Broken::TryLate) => {
                on.has(RetryOn::Reset) && (self.repeatable || !request.has_begun())
            }
            Err(Broken::Failed(_) | Broken::Late) => false,
        };
        if !wanted {
            return None;
        }
        if self.made >= self.policy.attempts {
            return Some(Again::Exhausted);
        }
        let most = (BACKOFF * 2u32.pow(self.made.into())).min(MAX_BACKOFF);
        self.made += 1;
        Some(Again::After(most.mul_f64(fastrand::f64())))
    }
}

/// Lets go of an answer that is not wanted; its connection is kept if all of it has come.
fn discard(worker: &Worker, upstream: &Upstream, mut body: AnswerBody) {
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(Ok(_))) = body.poll(&mut cx) {}
    if body.is_end()
        && let Some(connection) = body.into_connection()
    {
        worker.pool.pass_on(connection, Instant::now(), upstream.idle_timeout);
    }
}

/// Waits for an attempt as long as it may take. While it is the client that has to send on, that is not counted.
async fn in_try_time<T>(
    worker: &Worker,
    limit: Option<Duration>,
    progress: Option<&Progress>,
    attempt: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Broken> {
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
            return Poll::Ready(result.map_err(|failure| match failure {
                Failure::Timeout => Broken::Late,
                failure => Broken::Failed(failure),
            }));
        }
        if let (Some(deadline), Some(limit)) = (&deadline, limit) {
            deadline.register(cx.waker());
            if deadline.passed() {
                let waited =
                    progress.map_or(Duration::ZERO, |it| it.waited(Instant::now()).saturating_sub(before));
                let due = began + limit + waited;
                if due <= Instant::now() {
                    return Poll::Ready(Err(Broken::TryLate));
                }
                deadline.set(Some(due));
            }
        }
        Poll::Pending
    })
    .await
}

/// Waits for `future` as long as the request may take.
#[inline]
pub(super) async fn in_time<F: Future>(exchange: &Exchange, future: F) -> Result<F::Output, Failure> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending if exchange.is_late(cx) => Poll::Ready(Err(exchange.lateness())),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// RFC 9110, section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}
