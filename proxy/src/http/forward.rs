//! A request on its way to a target.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use http::{HeaderMap, HeaderValue, Method, Response, header, request, response};
use signalbox_config::Forward;

use super::body::{RequestBody, RequestBodyError};
use super::exchange::Exchange;
use super::head::{self, Forwarded, Special};
use super::problem::Failure;
use super::rewrite;
use crate::active::{Active, CompiledRoute};
use crate::upstream::{
    AnswerBody, ConnectError, Connection, Endpoint, ExchangeError, Outgoing, Pick, Upstream,
};

/// Where a request goes.
pub(super) struct Chosen<'a> {
    upstream: &'a Upstream,
    endpoint: Endpoint,
}

/// Chooses an upstream of the route, and a target of it.
#[inline]
pub(super) fn choose<'a>(
    exchange: &mut Exchange,
    serving: &'a Active,
    route: &CompiledRoute,
) -> Result<Chosen<'a>, Failure> {
    let slot = route.upstream(|total| fastrand::u32(..total)).ok_or(Failure::NoHealthyTarget)?;
    let upstream = serving.upstreams.get(slot as usize).and_then(Option::as_ref);
    let upstream = upstream.ok_or(Failure::NoHealthyTarget)?;
    exchange.upstream(upstream);
    let pick =
        Pick { worker: exchange.downstream.worker.index, now: exchange.started, hash: None, exclude: &[] };
    let target = upstream.pick(&pick).ok_or(Failure::NoHealthyTarget)?;
    exchange.targeted(upstream, &target);
    let address = target.address().ok_or(Failure::NoHealthyTarget)?;
    Ok(Chosen { upstream, endpoint: Endpoint { address, settings: 0 } })
}

/// The request as it is to be written, and the memory of its headers. `host` is what the client asked for.
#[inline]
pub(super) fn outgoing(
    exchange: &mut Exchange,
    forward: &Forward,
    mut head: request::Parts,
    special: Special,
    host: Option<&HeaderValue>,
    body: RequestBody,
    prefix_len: usize,
) -> Result<(Outgoing, HeaderMap), Failure> {
    if let Some(path) = &forward.rewrite.path {
        let path = rewrite::path(path, head.uri.path(), prefix_len);
        head.uri = rewrite::with_path(&head.uri, &path).ok_or(Failure::Misconfigured)?;
    }
    if let Some(host) = &forward.rewrite.host {
        head.headers.insert(header::HOST, host.clone());
    }
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
        client: &exchange.downstream.client,
        host,
        traceparent: made.as_ref(),
    };
    let by_plugins = exchange.has_plugins;
    let buffer = worker.buffers.borrow_mut().pop().unwrap_or_default();
    let request = Outgoing::new(&head, body, buffer, |out| forwarded.write(out, &head.headers, by_plugins));
    let repeatable = is_idempotent(&head.method);
    Ok((request.repeatable(repeatable), head.headers))
}

/// Sends a request to its target. The answer takes the memory of `headers`.
pub(super) async fn send(
    exchange: &mut Exchange,
    Chosen { upstream, endpoint }: Chosen<'_>,
    mut request: Outgoing,
    mut headers: HeaderMap,
) -> Result<(response::Parts, AnswerBody), Failure> {
    let worker = Rc::clone(&exchange.downstream.worker);
    let mut pooled = worker.pool.take(endpoint);
    loop {
        let reused = pooled.is_some();
        let mut connection = match pooled.take() {
            Some(connection) => connection,
            None => in_time(exchange, Box::pin(connect(upstream, endpoint, exchange))).await??,
        };
        exchange.attempts = exchange.attempts.saturating_add(1);
        let sent = if exchange.attempts > 1 { Instant::now() } else { exchange.started };
        let error = match in_time(exchange, connection.send(&mut request, &mut headers)).await? {
            Ok(answer) => {
                exchange.upstream_answered(sent);
                let mut parts = Response::new(()).into_parts().0;
                parts.status = answer.status;
                parts.headers = answer.headers;
                // While the request's body is still on its way, a task of its own sends it: the client may want to send
                // all of it before it reads the answer.
                let body = if request.is_sent() {
                    worker.buffers.borrow_mut().push(request.into_buffer());
                    AnswerBody::Own(connection)
                } else {
                    AnswerBody::Shared(connection.share(request))
                };
                return Ok((parts, body));
            }
            Err(error) => error,
        };
        // A target may close an idle connection at the very moment at which it is used again. That is no failure of the
        // target, so the request is sent again, if it may be: RFC 9110, section 9.2.2.
        let closed = matches!(error, ExchangeError::Closed { answered: false });
        if !(closed && reused && request.rewind()) {
            return Err(match error {
                ExchangeError::RequestBody(RequestBodyError::TooLarge) => Failure::BodyTooLarge,
                ExchangeError::RequestBody(RequestBodyError::Client(_)) => Failure::ClientBroke,
                ExchangeError::Closed { .. } | ExchangeError::Malformed(_) => Failure::Reset,
            });
        }
    }
}

async fn connect(
    upstream: &Upstream,
    endpoint: Endpoint,
    exchange: &Exchange,
) -> Result<Box<Connection>, Failure> {
    let stats = Arc::clone(&exchange.downstream.worker.stats);
    Connection::open(endpoint, upstream.connect_timeout, stats).await.map_err(|error| {
        // Each one would be a line for each request; the flag in the access log and the metrics tell of it.
        tracing::debug!(upstream = %upstream.name, address = %endpoint.address, %error, "cannot connect");
        match error {
            ConnectError::Refused(_) | ConnectError::Timeout => Failure::ConnectFailure,
        }
    })
}

/// Waits for `future` as long as the request may take.
#[inline]
pub(super) async fn in_time<F: Future>(exchange: &Exchange, future: F) -> Result<F::Output, Failure> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending if exchange.is_late(cx) => Poll::Ready(Err(Failure::Timeout)),
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
