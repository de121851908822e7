//! Copies of requests, to an upstream whose answers nobody sees.
//!
//! A copy is sent by a task of its own once all of the request's body has passed, so nothing it does can hold up the request.
//! What would make it cost too much gives it up: too many of them at once, a large body, time.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, request};
use signalbox_config::UpstreamProtocol;

use super::body::RequestBody;
use super::forward::{connect, not_connected};
use super::problem::Failure;
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
            let (status, flag) = match tokio::time::timeout(TIMEOUT, self.run(body)).await {
                Ok(Ok(status)) => (status, Flag::None),
                Ok(Err(failure)) => (failure.status().as_u16(), failure.flag()),
                Err(_) => (Failure::Timeout.status().as_u16(), Flag::Timeout),
            };
            let key = Key::new(0, status, flag).without_listener();
            self.upstream.stats.requests.count(self.worker.index, key);
        });
    }

    async fn run(&self, body: Bytes) -> Result<u16, Failure> {
        let (worker, upstream) = (&self.worker, &self.upstream);
        let limit = upstream.limits.map_or(u32::MAX, |limits| limits.requests);
        let _running = upstream.load.request(limit).ok_or(Failure::Overflow)?;
        let trial = match &upstream.breaker {
            Some(breaker) => Some(breaker.admit(Instant::now()).ok_or(Failure::Overflow)?),
            None => None,
        };
        let began = Instant::now();
        let pick = Pick { worker: worker.index, now: began, hash: self.hash, exclude: &[] };
        let target = Arc::clone(&*upstream.pick(&pick).ok_or(Failure::NoHealthyTarget)?);
        let in_flight = upstream.begin(&target);
        let endpoint = upstream.endpoint(&target);
        let body = if body.is_empty() { RequestBody::Empty } else { RequestBody::Whole(Some(body)) };
        let head_with_all = || {
            let mut head = self.head.clone();
            head.headers.extend(fields(&self.said));
            head
        };
        let http1 =
            |body| Outgoing::new(&self.head, body, Vec::new(), |out| out.extend_from_slice(&self.said));
        let request = match upstream.protocol {
            UpstreamProtocol::Http1 => Some(http1(body)),
            UpstreamProtocol::Http2 => Outgoing::http2(&mut head_with_all(), body, &upstream.scheme()),
            UpstreamProtocol::Auto => {
                let mut request = http1(body);
                request.or_http2(&mut head_with_all(), &upstream.scheme()).map(|()| request)
            }
        };
        let mut request = request.ok_or(Failure::Misconfigured)?;
        let limit = upstream.breaker.as_ref().and_then(|breaker| breaker.settings.timeout);
        let answer = self.send(endpoint, &mut request);
        let answer = tokio::time::timeout(limit.unwrap_or(TIMEOUT), answer).await;
        let answer = answer.map_err(|_| Failure::Timeout).flatten();
        if let Some(trial) = trial {
            let succeeded = answer.as_ref().is_ok_and(|(_, head)| !head.status.is_server_error());
            trial.report(worker.index, Instant::now(), succeeded);
        }
        if let Some(in_flight) = in_flight {
            let now = Instant::now();
            let took = answer.is_ok().then(|| now.saturating_duration_since(began));
            upstream.end(&in_flight, outcome(&answer), took, now);
        }
        let (mut answer, head) = answer?;
        let mut read = 0;
        while let Some(Ok(frame)) = std::future::poll_fn(|cx| answer.poll(cx)).await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > MAX_ANSWER {
                break;
            }
        }
        if request.is_sent()
            && let Some(connection) = answer.into_connection()
        {
            worker.pool.pass_on(connection, Instant::now(), upstream.idle_timeout);
        }
        Ok(head.status.as_u16())
    }
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
                Err(SendError::Exchange(_)) => return Err(Failure::Reset),
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
        let mut sent = connection.send(request, &mut HeaderMap::new()).await;
        if reused && matches!(sent, Err(ExchangeError::Closed { answered: false })) && request.rewind() {
            connection = connect(worker, upstream, endpoint, Offer::Any).await?.0;
            sent = connection.send(request, &mut HeaderMap::new()).await;
        }
        let head = sent.map_err(SendError::Exchange)?;
        Ok((AnswerBody::Own(connection), head))
    }
}

/// What the target of a copy is to blame for.
fn outcome(answer: &Result<(AnswerBody, Head), Failure>) -> Outcome {
    match answer {
        Ok((_, head)) if head.status.is_server_error() => Outcome::ServerError,
        Ok(_) => Outcome::Good,
        Err(Failure::ConnectFailure) => Outcome::ConnectFailure,
        Err(Failure::Reset) => Outcome::Reset,
        Err(Failure::Timeout) => Outcome::Timeout,
        Err(_) => Outcome::Abandoned,
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
