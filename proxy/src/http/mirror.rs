//! Copies of requests, to an upstream whose answers nobody sees.
//!
//! A copy is sent by a task of its own once all of the request's body has passed, so nothing it does can hold up the request.
//! What would make it cost too much gives it up: too many of them at once, a large body, time.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, request};
use signalbox_config::UpstreamProtocol;

use super::body::RequestBody;
use super::forward::{Broken, connect, not_answered, not_connected, outcome, tell};
use super::head::{self, Special};
use super::problem::{self, Failure};
use crate::telemetry::{Flag, Key};
use crate::tls::Offer;
use crate::upstream::{
    AnswerBody, ConnectError, Endpoint, ExchangeError, Head, Outcome, Outgoing, Pick, SendError, Upstream,
};
use crate::worker::Worker;

/// A copy to be sent.
struct Copy {
    worker: Rc<Worker>,
    upstream: Arc<Upstream>,
    /// Of what the request is known by.
    hash: Option<u64>,
    head: request::Parts,
    /// Header fields that the proxy says.
    said: Vec<u8>,
    sent: bool,
}

/// The largest body that is copied, bytes.
const MAX_BODY: usize = 1 << 20;

/// Copies of one worker at once, those whose request is still arriving among them.
const MAX_COPIES: u32 = 64;

/// For a copy, from its being sent to the end of its answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How much of an answer is read so that its connection can be used again, bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Where copies go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mirror<'a> {
    pub upstream: &'a Arc<Upstream>,
    /// Of what the request is known by there.
    pub hash: Option<u64>,
}

/// Lets a copy of a request go. `said` are header fields beyond those of `head`.
pub(super) fn send(
    worker: &Rc<Worker>,
    Mirror { upstream, hash }: Mirror<'_>,
    head: &request::Parts,
    mut said: Vec<u8>,
    body: &mut RequestBody,
) {
    if worker.mirrors.get() >= MAX_COPIES {
        worker.stats.mirrors_dropped.add(1);
        return;
    }
    worker.mirrors.set(worker.mirrors.get() + 1);
    said.extend_from_slice(b"x-mirrored-by: signalbox\r\n");
    let mut head = head.clone();
    // The copy of a body has a length, and no trailers.
    head.headers.remove(header::TRAILER);
    let (worker, upstream) = (Rc::clone(worker), Arc::clone(upstream));
    let copy = Copy { worker, upstream, hash, head, said, sent: false };
    body.copy(MAX_BODY, move |body| copy.start(body));
}

impl Copy {
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

    /// Sends it, reads the answer, and judges the target as that of a request is judged. The status as which it is to be counted.
    async fn run(&self, body: Bytes) -> Result<u16, Failure> {
        let (worker, upstream) = (&self.worker, &self.upstream);
        let limit = upstream.limits.map_or(u32::MAX, |limits| limits.requests);
        let _running = upstream.load.request(limit).ok_or(Failure::Overflow)?;
        let trial = match &upstream.breaker {
            Some(breaker) => Some(breaker.admit(Instant::now()).ok_or(Failure::Overflow)?),
            None => None,
        };
        let began = Instant::now();
        let special = Special::of(&self.head.headers);
        let is_grpc = head::is_grpc_call(&self.head.headers, special);
        // A client that is in a hurry is so here, too, and its target is told.
        let time = head::grpc_timeout(&self.head.headers, special).filter(|time| *time < TIMEOUT);
        let hurried = time.is_some();
        let deadline = tokio::time::Instant::from_std(began + time.unwrap_or(TIMEOUT));
        let pick = Pick { worker: worker.index, now: began, hash: self.hash, exclude: &[] };
        let target = Arc::clone(&*upstream.pick(&pick).ok_or(Failure::NoHealthyTarget)?);
        let in_flight = upstream.begin(&target);
        let mut request = self.outgoing(body)?;
        let sending = self.send(upstream.endpoint(&target), &mut request);
        let limit = upstream.breaker.as_ref().and_then(|breaker| breaker.settings.timeout);
        let sending = tokio::time::timeout(limit.unwrap_or(TIMEOUT), sending);
        let mut answer = match tokio::time::timeout_at(deadline, sending).await {
            Err(_) => Err(Broken::Late),
            Ok(Err(_)) => Err(Broken::TryLate),
            Ok(Ok(answer)) => answer.map_err(Broken::Failed),
        };
        let took = answer.is_ok().then(|| began.elapsed());
        let status = answer.as_ref().map(|(_, head)| head.status).map_err(|broken| *broken);
        let fields = answer.as_ref().ok().map(|(_, head)| &head.headers);
        let mut grpc_status = fields.filter(|_| is_grpc).and_then(head::grpc_status);
        let judged =
            |grpc_status| outcome(status, problem::is_targets_failure(grpc_status, hurried), hurried);
        tell(trial, worker.index, judged(grpc_status));
        let mut ended = judged(grpc_status);
        if let Ok((body, _)) = &mut answer {
            // Of one that takes longer, or has more to say, the rest is not waited for.
            match tokio::time::timeout_at(deadline, read_to_end(body)).await {
                Ok(Ok(trailers)) => {
                    let trailers = trailers.filter(|_| is_grpc);
                    grpc_status = trailers.as_ref().and_then(head::grpc_status).or(grpc_status);
                    ended = judged(grpc_status);
                }
                Ok(Err(_)) => ended = Outcome::Reset,
                Err(_) => {}
            }
        }
        if let Some(in_flight) = in_flight {
            upstream.end(&in_flight, ended, took, Instant::now());
        }
        let (body, head) = answer.map_err(|broken| match broken {
            Broken::Late | Broken::TryLate => Failure::Timeout,
            Broken::Failed(failure) => failure,
        })?;
        if request.is_sent()
            && let Some(connection) = body.into_connection()
        {
            worker.pool.pass_on(connection, Instant::now(), upstream.idle_timeout);
        }
        Ok(problem::counted_status(head.status.as_u16(), grpc_status))
    }

    /// The copy as it is written to targets of its upstream.
    fn outgoing(&self, body: Bytes) -> Result<Outgoing, Failure> {
        let body = if body.is_empty() { RequestBody::Empty } else { RequestBody::Whole(Some(body)) };
        let head_with_all = || {
            let mut head = self.head.clone();
            head.headers.extend(fields(&self.said));
            head
        };
        let http1 =
            |body| Outgoing::new(&self.head, body, Vec::new(), |out| out.extend_from_slice(&self.said));
        let scheme = self.upstream.scheme();
        let request = match self.upstream.protocol {
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

/// Reads an answer, up to [`MAX_ANSWER`]; its trailers, if it has some.
async fn read_to_end(body: &mut AnswerBody) -> Result<Option<HeaderMap>, ExchangeError> {
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

impl Copy {
    /// Sends it over what the target speaks.
    async fn send(&self, endpoint: Endpoint, request: &mut Outgoing) -> Result<(AnswerBody, Head), Failure> {
        let (worker, upstream) = (&self.worker, &self.upstream);
        let mut http2 = match upstream.protocol {
            UpstreamProtocol::Http1 => false,
            UpstreamProtocol::Http2 => true,
            UpstreamProtocol::Auto => worker.pool.speaks_http2(endpoint, Instant::now()),
        };
        let mut may_choose = upstream.protocol == UpstreamProtocol::Auto;
        loop {
            if upstream.protocol == UpstreamProtocol::Auto {
                request.speak(http2);
            }
            let sent = match http2 {
                true => {
                    let pool = &worker.pool;
                    let sent = pool.http2.send(pool, endpoint, upstream, request, &worker.stats).await;
                    sent.map(|(head, answer)| (AnswerBody::Http2(answer), head))
                }
                false => self.send_http1(endpoint, request).await,
            };
            match sent {
                Ok(answer) => return Ok(answer),
                Err(SendError::Connect(ConnectError::OtherProtocol)) if may_choose => {
                    may_choose = false;
                    http2 = !http2;
                    worker.pool.chose(endpoint, http2);
                }
                Err(SendError::Connect(error)) => return Err(not_connected(upstream, endpoint, &error)),
                Err(SendError::Exchange(error)) => return Err(not_answered(upstream, endpoint, &error)),
            }
        }
    }

    async fn send_http1(
        &self,
        endpoint: Endpoint,
        request: &mut Outgoing,
    ) -> Result<(AnswerBody, Head), SendError> {
        let (worker, upstream) = (&self.worker, &self.upstream);
        let (mut connection, reused) = match worker.pool.take(endpoint, Instant::now()) {
            Some(connection) => (connection, true),
            None => connect(worker, upstream, endpoint, Offer::Any).await?,
        };
        let limits = upstream.response_limits;
        let mut sent = connection.send(request, limits, &mut HeaderMap::new()).await;
        if reused && matches!(sent, Err(ExchangeError::Closed { answered: false, .. })) && request.rewind() {
            connection = connect(worker, upstream, endpoint, Offer::Any).await?.0;
            sent = connection.send(request, limits, &mut HeaderMap::new()).await;
        }
        let head = sent.map_err(SendError::Exchange)?;
        Ok((AnswerBody::Own(connection), head))
    }
}

/// Header fields that were written.
fn fields(written: &[u8]) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    written.split(|byte| *byte == b'\n').filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at_checked(colon)?;
        let value = HeaderValue::from_bytes(value.get(1..)?.trim_ascii()).ok()?;
        Some((HeaderName::from_bytes(name).ok()?, value))
    })
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.worker.mirrors.set(self.worker.mirrors.get().saturating_sub(1));
        if !self.sent {
            self.worker.stats.mirrors_dropped.add(1);
        }
    }
}
