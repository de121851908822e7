//! The right to a stream of an HTTP/2 connection, and a request's way over it.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, ready};

use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::{HeaderMap, header, response};

use super::super::error::{ConnectError, ExchangeError};
use super::super::failure::UpstreamError;
use super::super::outgoing::Outgoing;
use super::connection::{Connection, Phase};
use super::request::RequestSender;
use crate::core::fields::CONNECTION_FIELDS;
use crate::wire::body::RequestBodyError;
use crate::wire::http2::Sending;

/// The right to have one stream of a connection.
pub struct StreamPermit(Rc<Connection>);

/// The reason why a stream brought no answer.
#[derive(Debug)]
pub enum StreamError {
    /// The target has surely not processed the request.
    Unprocessed(UpstreamError),
    /// The connection broke.
    Closed(UpstreamError),
    Stream(h2::Error),
    RequestBody(RequestBodyError),
}

impl StreamPermit {
    /// Takes one of `connection`, which must have room.
    pub fn on(connection: &Rc<Connection>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        connection.used.set(true);
        Self(Rc::clone(connection))
    }

    pub fn connection(&self) -> &Rc<Connection> {
        &self.0
    }

    /// Returns true while the connection is not established.
    #[inline]
    pub fn is_connecting(&self) -> bool {
        self.0.phase.get() == Phase::Connecting
    }

    /// Returns true if a response has arrived over the connection before.
    pub fn has_responded(&self) -> bool {
        self.0.responded.get()
    }

    /// Waits until the connection is established.
    pub async fn established(&self) -> Result<(), ConnectError> {
        while self.is_connecting() {
            // Nothing runs between the check and this wait, because there is one thread.
            self.0.established.notified().await;
        }
        self.0.error.borrow().clone().map_or(Ok(()), Err)
    }

    /// Returns true if the target supports other protocols, according to its settings. Also returns true for a closed
    /// connection, because the request finds that out by itself.
    pub async fn supports_extended_connect(&self) -> bool {
        while !self.0.has_settings.get() && self.0.phase.get() == Phase::Open {
            self.0.established.notified().await;
        }
        self.0.sender.borrow().as_ref().is_none_or(SendRequest::is_extended_connect_protocol_enabled)
    }

    /// Sends a request, and waits for the response head. The request's body may still be in transit then.
    pub async fn send(
        &self,
        Outgoing { http2, body, begun, .. }: &mut Outgoing,
    ) -> Result<(response::Parts, RecvStream), StreamError> {
        let Some(sender) = http2 else {
            return Err(StreamError::Closed(UpstreamError::ConnectionClosed));
        };
        let mut answer = self.begin(sender)?;
        // Set before the wait: a caller that stops waiting has to know that the target may have begun.
        *begun = true;
        poll_fn(|cx| {
            // A target that stops reading may have responded already, or still do so.
            if let Poll::Ready(Err(error)) = sender.poll_write(body, cx) {
                return Poll::Ready(Err(StreamError::RequestBody(error)));
            }
            match ready!(Pin::new(&mut answer).poll(cx)) {
                Ok(answer) => Poll::Ready(Ok(answer.into_parts())),
                Err(error) => Poll::Ready(Err(self.stream_error(error))),
            }
        })
        .await
    }

    fn begin(&self, sender: &mut RequestSender) -> Result<ResponseFuture, StreamError> {
        let mut open = self.0.sender.borrow_mut();
        let Some(requests) = &mut *open else { return Err(StreamError::Unprocessed(self.0.ended.get())) };
        let end = !sender.has_body && sender.extended_connect.is_none();
        match requests.send_request(sender.head.clone(), end) {
            Ok((answer, stream)) => {
                match &mut sender.extended_connect {
                    Some(extended_connect) => extended_connect.stream = Some(stream),
                    None => sender.sending = sender.has_body.then(|| Sending::new(stream, None)),
                }
                drop(open);
                self.0.count_sent();
                Ok(answer)
            }
            // The same head is malformed over any connection.
            Err(error) if is_malformed(sender.head.headers()) => Err(StreamError::Stream(error)),
            Err(error) => {
                drop(open);
                if error.is_go_away() || error.is_io() {
                    self.0.drain();
                }
                // Nothing was sent in any case.
                Err(StreamError::Unprocessed(UpstreamError::of_http2(&error)))
            }
        }
    }

    fn stream_error(&self, error: h2::Error) -> StreamError {
        let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
        // A GOAWAY ends only streams that the target has not processed (RFC 9113, section 6.8).
        if error.is_remote() && (refused || error.is_go_away()) {
            if error.is_go_away() {
                self.0.drain();
            }
            return StreamError::Unprocessed(UpstreamError::of_http2(&error));
        }
        if error.is_io() {
            self.0.drain();
            return StreamError::Closed(UpstreamError::of_http2(&error));
        }
        StreamError::Stream(error)
    }

    /// Records that a response has arrived over the connection.
    pub fn note_response(&self) {
        self.0.responded.set(true);
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get().saturating_sub(1));
        if self.0.load.is_awaited() {
            self.0.offer_room();
        }
    }
}

/// Returns true if these fields are forbidden in HTTP/2 (RFC 9113, section 8.2.2). h2 checks the same, but its error
/// does not name the cause.
fn is_malformed(fields: &HeaderMap) -> bool {
    CONNECTION_FIELDS.iter().any(|name| fields.contains_key(name))
        || fields.get(header::TE).is_some_and(|value| value != "trailers")
}

impl From<StreamError> for ExchangeError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Unprocessed(reason) | StreamError::Closed(reason) => {
                Self::Closed { answered: false, reason }
            }
            StreamError::Stream(error) => Self::Http2(error),
            StreamError::RequestBody(error) => Self::RequestBody(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[tokio::test]
    async fn what_is_taken_for_malformed_is_what_h2_does_not_send() {
        let (ours, _theirs) = tokio::io::duplex(1 << 16);
        let (mut sender, _connection) = h2::client::handshake(ours).await.unwrap();
        for (name, value) in [
            ("connection", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("te", "gzip"),
            ("te", "trailers"),
            ("x-other", "connection"),
        ] {
            let request = Request::get("http://a.example/").header(name, value).body(()).unwrap();
            let malformed = is_malformed(request.headers());
            assert_eq!(sender.send_request(request, true).is_err(), malformed, "{name}: {value}");
        }
    }
}
