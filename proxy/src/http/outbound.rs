//! Calls of plugins to services, over the connections of a worker.

use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response, Version, header, request};
use signalbox_config::{Name, UpstreamProtocol};
use signalbox_plugin::outbound::Caller;
use signalbox_plugin::{CallAnswer, CallError, CallLimits, Outbound};
use tokio::time::timeout_at;

use super::head::{self, HeaderFlags};
use super::problem;
use super::retry::is_idempotent;
use super::worker_context::{Serving, WorkerContext};
use crate::core::failure::Failure;
use crate::core::outcome::Outcome;
use crate::telemetry::{Flag, Key};
use crate::upstream::{Attempt, AttemptError, Outgoing, Pick, SendRecord, TargetBody, Upstream};
use crate::wire::body::{RequestBody, joined};

/// Calls under one revision.
struct ServingCaller {
    serving: Weak<Serving>,
    worker: Weak<WorkerContext>,
}

/// Calls under the revision that is served when they begin.
struct LatestCaller {
    worker: Weak<WorkerContext>,
}

/// Calls under the revision `serving`.
#[inline]
pub(super) fn under<'a>(serving: &'a Rc<Serving>, worker: &Rc<WorkerContext>) -> &'a Outbound {
    serving.outbound.get_or_init(|| {
        let (serving, worker) = (Rc::downgrade(serving), Rc::downgrade(worker));
        Outbound::new(Rc::new(ServingCaller { serving, worker }))
    })
}

/// Calls under the revision that is served when they begin.
pub fn latest(worker: &Rc<WorkerContext>) -> Outbound {
    Outbound::new(Rc::new(LatestCaller { worker: Rc::downgrade(worker) }))
}

impl Caller for ServingCaller {
    fn call<'a>(
        &'a self,
        upstream: &'a Name,
        request: Request<Bytes>,
        limits: CallLimits,
    ) -> LocalBoxFuture<'a, Result<CallAnswer, CallError>> {
        let found = self.worker.upgrade().zip(self.serving.upgrade());
        let found = found
            .and_then(|(worker, serving)| Some((worker, serving.upstream_named(upstream).map(Arc::clone)?)));
        call(found, request, limits).boxed_local()
    }
}

impl Caller for LatestCaller {
    fn call<'a>(
        &'a self,
        upstream: &'a Name,
        request: Request<Bytes>,
        limits: CallLimits,
    ) -> LocalBoxFuture<'a, Result<CallAnswer, CallError>> {
        let found = self.worker.upgrade().and_then(|worker| {
            let upstream = worker.serving().upstream_named(upstream).map(Arc::clone)?;
            Some((worker, upstream))
        });
        call(found, request, limits).boxed_local()
    }
}

async fn call(
    found: Option<(Rc<WorkerContext>, Arc<Upstream>)>,
    request: Request<Bytes>,
    limits: CallLimits,
) -> Result<CallAnswer, CallError> {
    let (worker, upstream) = found.ok_or(CallError::NoUpstream)?;
    let called = send(&worker, &upstream, request, limits).await;
    let (status, flag) = match &called {
        Ok(answer) => (answer.response.status().as_u16(), Flag::None),
        Err(error) => status_of(*error),
    };
    let key = Key::new(0, status, flag).without_listener();
    upstream.stats.requests.count(worker.index, key);
    called
}

/// The error that a failed call counts as.
fn status_of(error: CallError) -> (u16, Flag) {
    let failure = match error {
        CallError::NoTarget | CallError::NoUpstream => Failure::NoHealthyTarget,
        CallError::Overflow => Failure::Overflow,
        CallError::Connect => Failure::ConnectFailure,
        CallError::Timeout => Failure::Timeout,
        CallError::BadRequest => Failure::Misconfigured,
        CallError::TooLarge(_) => Failure::ResponseTooLarge,
        _ => Failure::Reset,
    };
    (failure.status().as_u16(), failure.flag())
}

/// The error of a call that failed so.
fn error_of(failure: Failure) -> CallError {
    match failure {
        Failure::NoHealthyTarget => CallError::NoTarget,
        Failure::Overflow | Failure::NoRoom => CallError::Overflow,
        Failure::ConnectFailure => CallError::Connect,
        Failure::Timeout | Failure::AttemptTimeout => CallError::Timeout,
        Failure::Misconfigured => CallError::BadRequest,
        _ => CallError::Reset,
    }
}

async fn send(
    worker: &WorkerContext,
    upstream: &Upstream,
    request: Request<Bytes>,
    limits: CallLimits,
) -> Result<CallAnswer, CallError> {
    let _permit = upstream.admit_request().map_err(error_of)?;
    let trial = upstream.admit_attempt().map_err(error_of)?;
    let began = Instant::now();
    let deadline = tokio::time::Instant::from_std(began + limits.timeout);
    let (mut outgoing, is_grpc) = outgoing(upstream, request)?;
    let pick = Pick { worker: worker.index, now: began, hash: None, exclude: &[] };
    let begun = Attempt::begin(upstream, &pick, trial);
    let (mut attempt, target) = begun.map_err(|error| error_of(error.failure))?;
    drop(target);
    let record = SendRecord::new(began);
    let mut memory = HeaderMap::new();
    let sending = attempt.send(&worker.pool, upstream, &mut outgoing, &mut memory, &record);
    let answered = match timeout_at(deadline, sending).await {
        Ok(answered) => answered.map_err(|AttemptError { failure, .. }| failure),
        Err(_) => Err(Failure::Timeout),
    };
    let (head, mut body) = match answered {
        Ok(answered) => answered,
        Err(failure) => {
            attempt.note_timeout(upstream, failure, &outgoing);
            attempt.end(upstream, worker.index, failure.outcome(), None, Instant::now());
            return Err(error_of(failure));
        }
    };
    let took = began.elapsed();
    let failed =
        |fields: &HeaderMap| is_grpc && problem::is_targets_failure(head::grpc_status(fields), false);
    let mut outcome = Outcome::of_answer(head.status, failed(&head.headers));
    attempt.answered(worker.index, outcome);
    let read = timeout_at(deadline, read_whole(&mut body, limits.answer_size)).await;
    let read = read.unwrap_or(Err(CallError::Timeout));
    match &read {
        Ok((_, trailers)) if failed(trailers) => outcome = Outcome::of_answer(head.status, true),
        Err(CallError::Reset) => outcome = Failure::Reset.outcome_after_head(),
        Ok(_) | Err(_) => {}
    }
    attempt.end(upstream, worker.index, outcome, Some(took), Instant::now());
    let (whole, trailers) = read?;
    if outgoing.is_sent()
        && let Some(connection) = body.into_connection()
    {
        worker.pool.pass_on(connection, Instant::now(), upstream.transport.idle_timeout);
    }
    let mut response = Response::new(whole);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    head::prepare_response(response.headers_mut());
    Ok(CallAnswer::new(response, trailers))
}

/// Encodes a call for targets of its upstream. The flag says that it is one of gRPC.
fn outgoing(upstream: &Upstream, request: Request<Bytes>) -> Result<(Outgoing, bool), CallError> {
    let (mut head, body) = request.into_parts();
    prepare(&mut head, &body)?;
    let is_grpc = head::is_grpc_call(&head.headers, HeaderFlags::of(&head.headers));
    let repeatable = is_idempotent(&head.method);
    let body = || match body.is_empty() {
        true => RequestBody::Empty,
        false => RequestBody::Whole(Some(body.clone())),
    };
    let scheme = upstream.transport.scheme();
    let outgoing = match upstream.transport.protocol {
        UpstreamProtocol::Http1 => Some(Outgoing::new(&head, body(), Vec::new(), |_| {})),
        UpstreamProtocol::Http2 => Outgoing::http2(&mut head, body(), &scheme),
        UpstreamProtocol::Auto => {
            let mut outgoing = Outgoing::new(&head, body(), Vec::new(), |_| {});
            outgoing.or_http2(&mut head, &scheme).map(|()| outgoing)
        }
    };
    let mut outgoing = outgoing.ok_or(CallError::BadRequest)?;
    outgoing.repeatable = repeatable;
    if repeatable {
        outgoing.keep();
    }
    Ok((outgoing, is_grpc))
}

/// Makes a head as it is written to targets: only the path of its target, a host, and the length of its body.
fn prepare(head: &mut request::Parts, body: &Bytes) -> Result<(), CallError> {
    if !head.headers.contains_key(header::HOST) {
        let host = head.uri.authority().ok_or(CallError::BadRequest)?;
        let host = HeaderValue::from_str(host.as_str()).map_err(|_| CallError::BadRequest)?;
        head.headers.insert(header::HOST, host);
    }
    let path = head.uri.path_and_query().ok_or(CallError::BadRequest)?;
    head.uri = path.clone().into();
    head.version = Version::HTTP_11;
    if body.is_empty() {
        head.headers.remove(header::CONTENT_LENGTH);
    } else {
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    head.headers.remove(header::TRANSFER_ENCODING);
    Ok(())
}

/// Reads an answer's body, up to `cap` bytes, and its trailers.
async fn read_whole(body: &mut TargetBody, cap: usize) -> Result<(Bytes, HeaderMap), CallError> {
    let (mut parts, mut size) = (Vec::new(), 0);
    while let Some(frame) = poll_fn(|cx| body.poll(cx)).await {
        match frame.map_err(|_| CallError::Reset)?.into_data() {
            Ok(data) => {
                size += data.len();
                if size > cap {
                    return Err(CallError::TooLarge(cap));
                }
                parts.push(data);
            }
            Err(frame) => return Ok((joined(parts), frame.into_trailers().unwrap_or_default())),
        }
    }
    Ok((joined(parts), HeaderMap::new()))
}
