//! Sending a request over a connection of a pool: an idle or a new one, of HTTP/1.1 or of HTTP/2.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use signalbox_config::UpstreamProtocol;

use super::connection::Connection;
use super::endpoint::Endpoint;
use super::error::{ConnectError, ExchangeError, SendError};
use super::http1::Head;
use super::http2::AcquireError;
use super::http2::response::ResponseStream;
use super::http2::stream::StreamError;
use super::load::Permit;
use super::outgoing::Outgoing;
use super::pool::Pool;
use super::switched::Switched;
use super::target_body::TargetBody;
use super::transport::Transport;
use crate::wire::tls::Offer;

/// The number of times a request was sent to targets, and the time of the last one.
#[derive(Debug)]
pub struct SendRecord {
    count: Cell<u8>,
    last: Cell<Instant>,
}

/// The result of acquiring a connection.
enum Acquired {
    /// A connection that came back to the pool.
    Idle(Box<Connection>),
    /// A permit to open a new one.
    Permit(Permit),
}

/// The maximum number of times a request is sent when targets say that they have not processed it.
const MAX_SENDS: u32 = 4;

impl SendRecord {
    /// Creates the record of a request that was not sent yet; `now` counts as the time of the first attempt.
    pub fn new(now: Instant) -> Self {
        Self { count: Cell::new(0), last: Cell::new(now) }
    }

    /// The number of times it was sent.
    pub fn count(&self) -> u8 {
        self.count.get()
    }

    /// The time at which it was last sent.
    pub fn last(&self) -> Instant {
        self.last.get()
    }

    fn begin(&self) {
        self.count.set(self.count.get().saturating_add(1));
    }

    /// Removes the last attempt from the count.
    fn undo(&self) {
        self.count.set(self.count.get().saturating_sub(1));
    }

    /// Records that a connection was obtained. The clock is read only from the second attempt on.
    #[inline]
    fn is_connected(&self) {
        if self.count.get() > 1 {
            self.last.set(Instant::now());
        }
    }
}

impl Pool {
    /// Sends a request to `endpoint`, and waits for the response head, which reuses the memory of `headers`. The
    /// request is sent again only if the target has certainly not processed it, or if the target closed an idle
    /// connection while it was being reused and the request may be repeated (RFC 9110, section 9.2.2). The request's
    /// body may still be in transit when this returns.
    #[inline]
    pub async fn send(
        &self,
        transport: &Transport,
        endpoint: Endpoint,
        request: &mut Outgoing,
        headers: &mut HeaderMap,
        record: &SendRecord,
    ) -> Result<(Head, TargetBody), SendError> {
        let chooses = transport.protocol == UpstreamProtocol::Auto;
        // A target that may choose its protocol may change its choice; one such change is allowed per request.
        let mut may_choose = chooses && !request.switches;
        let mut http2 = match transport.protocol {
            UpstreamProtocol::Http1 => false,
            UpstreamProtocol::Http2 => true,
            UpstreamProtocol::Auto => may_choose && self.tries_http2(endpoint, record.last()),
        };
        loop {
            if chooses {
                request.set_http2(http2);
            }
            record.begin();
            let sent = match http2 {
                true => {
                    let sent = self.send_http2(transport, endpoint, request, record).await;
                    sent.map(|(head, answer)| (head, TargetBody::Http2(answer)))
                }
                false => {
                    let sent = self.send_http1(transport, endpoint, request, headers, record).await;
                    sent.map(|(head, connection)| (head, TargetBody::Own(connection)))
                }
            };
            match sent {
                Err(SendError::Connect(ConnectError::OtherProtocol)) if may_choose => {
                    may_choose = false;
                    http2 = !http2;
                    self.remember_protocol(endpoint, http2);
                    record.undo();
                }
                sent => return sent,
            }
        }
    }

    #[inline]
    async fn send_http1(
        &self,
        transport: &Transport,
        endpoint: Endpoint,
        request: &mut Outgoing,
        headers: &mut HeaderMap,
        record: &SendRecord,
    ) -> Result<(Head, Box<Connection>), SendError> {
        let mut idle = self.take(endpoint, record.last());
        loop {
            let (mut connection, reused) = match idle.take() {
                Some(connection) => (connection, true),
                None => {
                    let offer = if request.switches { Offer::Http1 } else { Offer::Any };
                    Box::pin(self.connect(transport, endpoint, offer)).await?
                }
            };
            record.is_connected();
            let error = match connection.send(request, transport.response_limits, headers).await {
                Ok(head) => return Ok((head, connection)),
                Err(error) => error,
            };
            // A target may close an idle connection while it is being reused. That is not a failure of the target.
            let closed = matches!(error, ExchangeError::Closed { answered: false, .. });
            if !(closed && reused && request.rewind()) {
                return Err(SendError::Exchange(error));
            }
            record.begin();
        }
    }

    /// Sends a request over HTTP/2. If the target has certainly not processed it, it goes over another connection.
    #[inline]
    async fn send_http2(
        &self,
        transport: &Transport,
        endpoint: Endpoint,
        request: &mut Outgoing,
        record: &SendRecord,
    ) -> Result<(Head, Box<ResponseStream>), SendError> {
        let mut avoid = None;
        for left in (0..MAX_SENDS).rev() {
            let stream = match self.http2.acquire(endpoint, transport, avoid.as_ref(), &self.stats) {
                Ok(stream) => stream,
                Err(AcquireError::TooManyConnections) => return Err(ConnectError::TooMany.into()),
                Err(AcquireError::OverLimits(limits)) => {
                    let look = || self.http2.acquire(endpoint, transport, avoid.as_ref(), &self.stats).ok();
                    Box::pin(self.wait(transport, endpoint, limits, look)).await?
                }
            };
            if stream.is_connecting() {
                Box::pin(stream.established()).await?;
            }
            if request.switches && !Box::pin(stream.supports_extended_connect()).await {
                return Err(SendError::Exchange(ExchangeError::NoProtocols));
            }
            record.is_connected();
            let has_responded = stream.has_responded();
            let error = match stream.send(request).await {
                Ok((mut head, body)) => {
                    let switched = request.http2.as_mut().and_then(|sender| sender.switched(&mut head));
                    let response = Box::new(ResponseStream::new(stream, &head.headers, body, switched));
                    response
                        .check_head(&head.headers, transport.response_limits)
                        .map_err(|error| SendError::Exchange(error.into()))?;
                    return Ok((Head::over_http2(head), response));
                }
                Err(error) => error,
            };
            request.begun = !matches!(error, StreamError::Unprocessed(_));
            let resend = match &error {
                StreamError::Unprocessed(_) => request.restart(),
                // The rule is the same as for an idle connection that the target closes while it is being reused: RFC
                // 9110, section 9.2.2.
                StreamError::Closed(_) => has_responded && request.rewind(),
                StreamError::Stream(_) | StreamError::RequestBody(_) => false,
            };
            if left == 0 || !resend {
                return Err(SendError::Exchange(error.into()));
            }
            avoid = Some(Rc::clone(stream.connection()));
        }
        Err(SendError::Connect(ConnectError::TooMany))
    }

    /// Returns a connection to a target, and whether it was used before.
    async fn connect(
        &self,
        transport: &Transport,
        endpoint: Endpoint,
        offer: Offer,
    ) -> Result<(Box<Connection>, bool), ConnectError> {
        let idle = || self.take(endpoint, Instant::now());
        match self.acquire(transport, endpoint, idle).await? {
            Acquired::Idle(connection) => Ok((connection, true)),
            Acquired::Permit(permit) => {
                let stats = Arc::clone(&self.stats);
                Ok((Connection::open(endpoint, transport, offer, stats, permit).await?, false))
            }
        }
    }

    /// Opens a connection to a target that has not carried any bytes.
    pub(super) async fn open(
        &self,
        transport: &Transport,
        endpoint: Endpoint,
    ) -> Result<Switched, ConnectError> {
        // An idle connection is useful only because closing it allows another one to be opened.
        let idle = || self.take(endpoint, Instant::now()).and(None);
        match self.acquire(transport, endpoint, idle).await? {
            Acquired::Idle(_) => Err(ConnectError::TooMany),
            Acquired::Permit(permit) => {
                Switched::open(endpoint, transport, Arc::clone(&self.stats), permit).await
            }
        }
    }

    /// Waits until the upstream's limits allow a connection. `idle` looks for one that came back to the pool.
    async fn acquire(
        &self,
        transport: &Transport,
        endpoint: Endpoint,
        mut idle: impl FnMut() -> Option<Box<Connection>>,
    ) -> Result<Acquired, ConnectError> {
        let load = &transport.load;
        let limit = transport.limits.map_or(u32::MAX, |limits| limits.connections);
        match (load.connection(limit), &transport.limits) {
            (Some(permit), _) => Ok(Acquired::Permit(permit)),
            (None, None) => Err(ConnectError::TooMany),
            (None, Some(limits)) => {
                let look = || match idle() {
                    Some(connection) => Some(Acquired::Idle(connection)),
                    None => load.connection(limit).map(Acquired::Permit),
                };
                self.wait(transport, endpoint, limits, look).await
            }
        }
    }
}
