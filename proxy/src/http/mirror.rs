//! Mirrored requests, whose responses are discarded.
//!
//! A mirrored request is sent by a task of its own after the whole request body has passed, so it cannot delay the
//! original. It is dropped if it would cost too much: too many at once, a large body, or too much time.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, request};
use signalbox_config::UpstreamProtocol;

use super::head::{self, HeaderFlags};
use super::problem;
use super::worker_context::WorkerContext;
use crate::core::failure::Failure;
use crate::core::outcome::Outcome;
use crate::telemetry::{Flag, Key};
use crate::upstream::{Attempt, ExchangeError, Outgoing, Pick, SendRecord, TargetBody, Upstream};
use crate::wire::body::RequestBody;

/// A mirrored request.
struct MirroredRequest {
    worker: Rc<WorkerContext>,
    upstream: Arc<Upstream>,
    /// The hash of its affinity property.
    hash: Option<u64>,
    head: request::Parts,
    /// Header fields that the proxy adds.
    fields: Vec<u8>,
    sent: bool,
}

/// The largest body that is mirrored, in bytes.
const MAX_BODY: usize = 1 << 20;

/// The maximum number of concurrent mirrored requests per worker, including those whose original is still arriving.
const MAX_COPIES: u32 = 64;

/// The timeout of a mirrored request, from sending to the end of the response.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum number of bytes of a response that are read so that the connection can be reused.
const MAX_ANSWER: usize = 1 << 20;

/// The destination of mirrored requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mirror<'a> {
    pub upstream: &'a Arc<Upstream>,
    /// The hash of the affinity property for that upstream.
    pub hash: Option<u64>,
}

/// Starts a mirrored request. `fields` are header fields beyond those of `head`.
pub(super) fn send(
    worker: &Rc<WorkerContext>,
    Mirror { upstream, hash }: Mirror<'_>,
    head: &request::Parts,
    mut fields: Vec<u8>,
    body: &mut RequestBody,
) {
    if worker.mirrors.get() >= MAX_COPIES {
        worker.stats.mirrors_dropped.add(1);
        return;
    }
    worker.mirrors.set(worker.mirrors.get() + 1);
    fields.extend_from_slice(b"x-mirrored-by: signalbox\r\n");
    let mut head = head.clone();
    // The mirrored body has a length, and no trailers.
    head.headers.remove(header::TRAILER);
    let (worker, upstream) = (Rc::clone(worker), Arc::clone(upstream));
    let copy = MirroredRequest { worker, upstream, hash, head, fields, sent: false };
    body.copy(MAX_BODY, move |body| copy.start(body));
}

impl MirroredRequest {
    fn start(mut self, body: Bytes) {
        self.sent = true;
        tokio::task::spawn_local(async move {
            let (status, flag) = match self.run(body).await {
                Ok(status) => (status, Flag::None),
                Err(failure) => (failure.status().as_u16(), failure.flag()),
            };
            let key = Key::new(0, status, flag).without_listener();
            self.upstream.stats.requests.count(self.worker.index, key);
        });
    }

    /// Sends the request, reads the response, and classifies it for the target's health as for any request. Returns
    /// the status to count.
    async fn run(&self, body: Bytes) -> Result<u16, Failure> {
        let (worker, upstream) = (&self.worker, &*self.upstream);
        let _permit = upstream.admit_request()?;
        let trial = upstream.admit_attempt()?;
        let began = Instant::now();
        let flags = HeaderFlags::of(&self.head.headers);
        let is_grpc = head::is_grpc_call(&self.head.headers, flags);
        // The client's deadline also limits this request, and the target gets it.
        let time = head::grpc_timeout(&self.head.headers, flags).filter(|time| *time < TIMEOUT);
        let late = if time.is_some() { Failure::ClientDeadline } else { Failure::Timeout };
        let deadline = tokio::time::Instant::from_std(began + time.unwrap_or(TIMEOUT));
        let pick = Pick { worker: worker.index, now: began, hash: self.hash, exclude: &[] };
        let (mut attempt, target) = Attempt::begin(upstream, &pick, trial).map_err(|error| error.failure)?;
        drop(target);
        let mut request = self.outgoing(body)?;
        let record = SendRecord::new(began);
        let mut headers = HeaderMap::new();
        let sending = attempt.send(&worker.pool, upstream, &mut request, &mut headers, &record);
        let limit = upstream.breaker.as_ref().and_then(|breaker| breaker.settings.timeout);
        let sending = tokio::time::timeout(limit.unwrap_or(TIMEOUT), sending);
        let answered = match tokio::time::timeout_at(deadline, sending).await {
            Err(_) => Err(late),
            Ok(Err(_)) => Err(Failure::AttemptTimeout),
            Ok(Ok(answered)) => answered.map_err(|error| error.failure),
        };
        let (head, mut body) = match answered {
            Ok(answered) => answered,
            Err(failure) => {
                attempt.note_timeout(upstream, failure, &request);
                attempt.end(upstream, worker.index, failure.outcome(), None, Instant::now());
                return Err(failure);
            }
        };
        let took = began.elapsed();
        let mut grpc_status = if is_grpc { head::grpc_status(&head.headers) } else { None };
        let outcome_of = |grpc_status| {
            let grpc_failed = problem::is_targets_failure(grpc_status, time.is_some());
            Outcome::of_answer(head.status, grpc_failed)
        };
        let mut outcome = outcome_of(grpc_status);
        attempt.answered(worker.index, outcome);
        // A longer or slower response is not read to its end.
        match tokio::time::timeout_at(deadline, read_to_end(&mut body)).await {
            Ok(Ok(trailers)) => {
                let trailers = trailers.filter(|_| is_grpc);
                grpc_status = trailers.as_ref().and_then(head::grpc_status).or(grpc_status);
                outcome = outcome_of(grpc_status);
            }
            Ok(Err(_)) => outcome = Failure::Reset.outcome_after_head(),
            Err(_) => {}
        }
        attempt.end(upstream, worker.index, outcome, Some(took), Instant::now());
        if request.is_sent()
            && let Some(connection) = body.into_connection()
        {
            worker.pool.pass_on(connection, Instant::now(), upstream.transport.idle_timeout);
        }
        Ok(problem::counted_status(head.status.as_u16(), grpc_status))
    }

    /// Encodes the mirrored request for targets of its upstream.
    fn outgoing(&self, body: Bytes) -> Result<Outgoing, Failure> {
        let body = if body.is_empty() { RequestBody::Empty } else { RequestBody::Whole(Some(body)) };
        let head_with_all = || {
            let mut head = self.head.clone();
            head.headers.extend(parse_fields(&self.fields));
            head
        };
        let http1 =
            |body| Outgoing::new(&self.head, body, Vec::new(), |out| out.extend_from_slice(&self.fields));
        let scheme = self.upstream.transport.scheme();
        let request = match self.upstream.transport.protocol {
            UpstreamProtocol::Http1 => Some(http1(body)),
            UpstreamProtocol::Http2 => Outgoing::http2(&mut head_with_all(), body, &scheme),
            UpstreamProtocol::Auto => {
                let mut request = http1(body);
                request.or_http2(&mut head_with_all(), &scheme).map(|()| request)
            }
        };
        request.ok_or(Failure::Misconfigured)
    }
}

/// Reads a response, up to [`MAX_ANSWER`], and returns its trailers, if there are any.
async fn read_to_end(body: &mut TargetBody) -> Result<Option<HeaderMap>, ExchangeError> {
    let mut read = 0;
    while let Some(frame) = poll_fn(|cx| body.poll(cx)).await {
        match frame?.into_data() {
            Ok(data) => read += data.len(),
            Err(frame) => return Ok(frame.into_trailers().ok()),
        }
        if read > MAX_ANSWER {
            break;
        }
    }
    Ok(None)
}

/// Parses encoded header fields.
fn parse_fields(written: &[u8]) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    written.split(|byte| *byte == b'\n').filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at_checked(colon)?;
        let value = HeaderValue::from_bytes(value.get(1..)?.trim_ascii()).ok()?;
        Some((HeaderName::from_bytes(name).ok()?, value))
    })
}

impl Drop for MirroredRequest {
    fn drop(&mut self) {
        self.worker.mirrors.set(self.worker.mirrors.get().saturating_sub(1));
        if !self.sent {
            self.worker.stats.mirrors_dropped.add(1);
        }
    }
}
