//! A request in the form in which it is sent over HTTP/2 (RFC 9113).

use std::task::{Context, Poll, ready};

use h2::ext::Protocol;
use h2::{Reason, SendStream};
use http::header;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, StatusCode, Uri, Version, request, response};

use crate::wire::body::{RequestBody, RequestBodyError};
use crate::wire::http1::framing::remove_unfit_trailers;
use crate::wire::http2::{Chunk, Sending, Stopped};
use crate::wire::websocket::accept_of;

/// A request that is being sent, with what is needed to send it again.
pub struct RequestSender {
    pub head: Request<()>,
    pub has_body: bool,
    pub sending: Option<Sending>,
    pub extended_connect: Option<Box<ExtendedConnect>>,
}

/// A request to switch protocols by an extended CONNECT (RFC 8441).
pub struct ExtendedConnect {
    protocol: HeaderValue,
    /// The `Sec-WebSocket-Accept` value that proves the switch to a client of HTTP/1.1.
    accept: Option<HeaderValue>,
    /// The stream's sending half.
    pub stream: Option<SendStream<Chunk>>,
}

impl RequestSender {
    /// Takes the contents of `head`, which is in the form for an HTTP/1.1 target. Returns `None` if HTTP/2 cannot
    /// express it.
    pub fn new(head: &mut request::Parts, body: &RequestBody, scheme: &Scheme) -> Option<Self> {
        let mut request = Request::new(());
        *request.method_mut() = head.method.clone();
        *request.version_mut() = head.version;
        // An empty Host header stands for a missing one; h2 would then take the request for HTTP/1.1.
        let host = head.headers.remove(header::HOST).filter(|host| !host.is_empty());
        *request.headers_mut() = std::mem::take(&mut head.headers);
        let uri = std::mem::take(&mut head.uri);
        *request.uri_mut() = match host {
            None => uri,
            Some(host) => {
                *request.version_mut() = Version::HTTP_2;
                let mut parts = http::uri::Parts::default();
                parts.scheme = Some(scheme.clone());
                parts.authority = Some(Authority::try_from(host.as_bytes()).ok()?);
                parts.path_and_query = match uri.into_parts().path_and_query {
                    Some(path) => Some(path),
                    None => Some(PathAndQuery::from_static("/")),
                };
                Uri::from_parts(parts).ok()?
            }
        };
        Some(Self { head: request, has_body: !body.is_empty(), sending: None, extended_connect: None })
    }

    /// Asks the target to switch to `protocol`: the `Upgrade` of HTTP/1.1 becomes an extended CONNECT. Returns `None`
    /// if the request has a body, or HTTP/2 has no name for the protocol.
    pub fn extended_connect(&mut self, protocol: &HeaderValue) -> Option<()> {
        if self.has_body {
            return None;
        }
        let name = Protocol::from(protocol.to_str().ok()?);
        *self.head.method_mut() = Method::CONNECT;
        self.head.extensions_mut().insert(name);
        let headers = self.head.headers_mut();
        headers.remove(header::CONNECTION);
        headers.remove(header::UPGRADE);
        let key = headers.remove(header::SEC_WEBSOCKET_KEY);
        let accept = key.and_then(|key| HeaderValue::try_from(accept_of(key.as_bytes())).ok());
        self.extended_connect =
            Some(Box::new(ExtendedConnect { protocol: protocol.clone(), accept, stream: None }));
        Some(())
    }

    /// Turns the response to an extended CONNECT into the response of an HTTP/1.1 target, and returns the stream's
    /// sending half. Returns `None` if the target has not switched.
    pub fn switched(&mut self, head: &mut response::Parts) -> Option<SendStream<Chunk>> {
        let extended_connect = self.extended_connect.as_mut()?;
        let mut stream = extended_connect.stream.take()?;
        if !head.status.is_success() {
            // No data is sent on this stream.
            let _ = stream.send_data(Chunk::empty(), true);
            return None;
        }
        head.status = StatusCode::SWITCHING_PROTOCOLS;
        head.headers.remove(header::CONTENT_LENGTH);
        head.headers.insert(header::UPGRADE, extended_connect.protocol.clone());
        if let Some(accept) = &extended_connect.accept {
            head.headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept.clone());
        }
        Some(stream)
    }

    /// Sends as much as the target's window allows. Ready when the whole body has been sent.
    #[inline]
    pub fn poll_write(
        &mut self,
        body: &mut RequestBody,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), RequestBodyError>> {
        let Some(sending) = &mut self.sending else { return Poll::Ready(Ok(())) };
        let sent = match ready!(sending.poll(body, remove_unfit_trailers, cx)) {
            // The target has stopped reading. The response, or its absence, says why.
            Ok(()) | Err(Stopped::ByPeer) => Ok(()),
            Err(Stopped::Body(error)) => {
                sending.reset(Reason::CANCEL);
                Err(error)
            }
        };
        self.sending = None;
        Poll::Ready(sent)
    }

    /// True if the whole request has been sent.
    #[inline]
    pub fn is_done(&self) -> bool {
        self.sending.is_none()
    }

    /// Starts over from the first byte. The caller also has to rewind the body.
    pub fn restart(&mut self) {
        self.sending = None;
        if let Some(extended_connect) = &mut self.extended_connect {
            extended_connect.stream = None;
        }
    }
}
