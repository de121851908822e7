//! gRPC over HTTP/2 streams: calls, the messages that a client sends, and those that it is sent.
//!
//! It is written by hand for two reasons. tonic's encoder copies each message into a buffer of the stream, and keeps that at the size of the
//! largest message: with 10,000 routes that is a mebibyte for each idle proxy. And with hyper each stream has a task of its own beside that of
//! the connection, so a change would wake three tasks for each proxy, and not one.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures_util::future::poll_fn;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Response, header};
use tonic::Status;

/// A call that has not been answered.
pub(super) struct Call {
    /// The path: `/SERVICE/METHOD`.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    /// Where it comes from.
    pub(super) peer: SocketAddr,
    body: RecvStream,
    respond: SendResponse<Bytes>,
}

impl Call {
    pub(super) fn new(
        request: http::Request<RecvStream>,
        respond: SendResponse<Bytes>,
        peer: SocketAddr,
    ) -> Self {
        let (head, body) = request.into_parts();
        Self { path: head.uri.path().to_owned(), headers: head.headers, peer, body, respond }
    }

    /// A header, if it is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Answers with a status alone.
    pub(super) fn refuse(mut self, status: Status) {
        // An error says that the client is gone.
        drop(self.respond.send_response(status.into_http(), true));
    }

    /// Begins the answer. `limit` bounds the client's messages, in bytes; `encoding` is that of compressed answers.
    pub(super) fn open<M>(
        mut self,
        limit: usize,
        encoding: Option<&'static str>,
    ) -> Result<(Inbound<M>, Outbound), Status> {
        let mut response = Response::new(());
        response.headers_mut().insert(header::CONTENT_TYPE, GRPC);
        if let Some(encoding) = encoding {
            response.headers_mut().insert("grpc-encoding", HeaderValue::from_static(encoding));
        }
        let stream = self.respond.send_response(response, false).map_err(|error| status_of(&error))?;
        let inbound = Inbound {
            body: self.body,
            frame: Bytes::new(),
            partial: BytesMut::new(),
            limit,
            message: PhantomData,
        };
        Ok((inbound, Outbound { stream, rest: Vec::new() }))
    }
}

/// The messages that a client sends.
pub(super) struct Inbound<M> {
    body: RecvStream,
    /// The unread rest of the last frame.
    frame: Bytes,
    /// The beginning of a message that does not end within its frame.
    partial: BytesMut,
    limit: usize,
    message: PhantomData<fn() -> M>,
}

impl<M: prost::Message + Default> Inbound<M> {
    /// The next message; `None`: the client has ended its side. Cancel safe.
    pub(super) async fn message(&mut self) -> Result<Option<M>, Status> {
        poll_fn(|cx| self.poll_message(cx)).await
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<M>, Status>> {
        loop {
            if let Some(message) = self.take()? {
                let message = M::decode(message);
                return Poll::Ready(
                    message.map(Some).map_err(|error| Status::internal(format!("not a message: {error}"))),
                );
            }
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(data)) => {
                    // An error says that the stream is gone, and so does the next read.
                    let _ = self.body.flow_control().release_capacity(data.len());
                    if self.partial.is_empty() {
                        self.frame = data;
                    } else {
                        self.partial.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Poll::Ready(Err(status_of(&error))),
                None if self.partial.is_empty() => return Poll::Ready(Ok(None)),
                None => return Poll::Ready(Err(Status::internal("the stream ended within a message"))),
            }
        }
    }

    /// The next message as bytes, if all of it has come.
    fn take(&mut self) -> Result<Option<Bytes>, Status> {
        let is_partial = !self.partial.is_empty();
        let unread: &[u8] = if is_partial { &self.partial } else { &self.frame };
        let Some(end) = end_of_first(unread, self.limit)? else {
            if !is_partial {
                self.partial.extend_from_slice(&std::mem::take(&mut self.frame));
            }
            return Ok(None);
        };
        let mut message = if is_partial {
            let message = self.partial.split_to(end).freeze();
            if self.partial.is_empty() {
                // An idle stream holds no buffer.
                self.partial = BytesMut::new();
            }
            message
        } else {
            self.frame.split_to(end)
        };
        message.advance(PREFIX);
        Ok(Some(message))
    }
}

/// The length of the first message with its prefix; `None`: it is not complete.
fn end_of_first(unread: &[u8], limit: usize) -> Result<Option<usize>, Status> {
    let Some(([flag, length @ ..], rest)) = unread.split_first_chunk::<PREFIX>() else { return Ok(None) };
    if *flag != 0 {
        return Err(Status::unimplemented("requests must not be compressed"));
    }
    let length = u32::from_be_bytes(*length) as usize;
    if length > limit {
        let text = format!("a message of {length} bytes is longer than the limit of {limit} bytes");
        return Err(Status::out_of_range(text));
    }
    Ok((rest.len() >= length).then_some(PREFIX + length))
}

/// One encoded message.
#[derive(Debug)]
pub(super) struct Message {
    /// The part that other streams send, too.
    pub(super) shared: Bytes,
    /// The rest.
    pub(super) end: Bytes,
    /// Both parts are compressed.
    pub(super) compressed: bool,
}

impl Message {
    /// A message that is not shared.
    pub(super) fn of(message: &impl prost::Message) -> Self {
        Self { shared: Bytes::new(), end: message.encode_to_vec().into(), compressed: false }
    }

    /// The parts that are to be written, the last one first.
    fn into_parts(self) -> Vec<Bytes> {
        let Self { shared, end, compressed } = self;
        let length = shared.len() + end.len();
        let copied = if length <= COPIED { length } else { 0 };
        let mut first = BytesMut::with_capacity(PREFIX + copied);
        first.put_u8(compressed.into());
        // A message is at most a few mebibytes: `Subscription::CHUNK` and one resource.
        first.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        if copied > 0 {
            first.put(shared);
            first.put(end);
            return vec![first.freeze()];
        }
        vec![end, shared, first.freeze()]
    }
}

/// The messages that a client is sent: one at a time, so that no more is computed than can be written.
pub(super) struct Outbound {
    stream: SendStream<Bytes>,
    /// The parts of the message that the transport has not taken yet, the last one first.
    rest: Vec<Bytes>,
}

impl Outbound {
    /// True while the transport has not taken all of the last message.
    pub(super) fn is_busy(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Begins to send a message. [`Self::written`] sends what the transport cannot take at once. Not to be called while it [`Self::is_busy`].
    pub(super) fn begin(&mut self, message: Message) -> Result<(), Status> {
        self.rest = message.into_parts();
        while self.is_busy() && self.write_some()? {}
        Ok(())
    }

    /// Waits until the transport has taken the message. Cancel safe.
    pub(super) async fn written(&mut self) -> Result<(), Status> {
        poll_fn(|cx| {
            while self.is_busy() {
                if self.write_some()? {
                    continue;
                }
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(status_of(&error))),
                    None => return Poll::Ready(Err(Status::cancelled("the client has ended the stream"))),
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Writes as much of the next part as the transport takes; `false`: nothing.
    fn write_some(&mut self) -> Result<bool, Status> {
        let Some(part) = self.rest.last_mut() else { return Ok(false) };
        if !part.is_empty() {
            self.stream.reserve_capacity(part.len());
            let taken = self.stream.capacity().min(part.len());
            if taken == 0 {
                return Ok(false);
            }
            let piece = part.split_to(taken);
            self.stream.send_data(piece, false).map_err(|error| status_of(&error))?;
        }
        if part.is_empty() {
            self.rest.pop();
        }
        if self.rest.is_empty() {
            // An idle stream holds no buffer.
            self.rest = Vec::new();
        }
        Ok(true)
    }

    /// Ends the stream. One whose client does not read is reset, because a status would wait behind what is not read.
    pub(super) fn end(mut self, status: &Status) {
        if self.is_busy() {
            return self.stream.send_reset(Reason::CANCEL);
        }
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            // Only a message that no header can hold makes it fail.
            trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("2"));
        }
        // An error says that the client is gone.
        drop(self.stream.send_trailers(trailers));
    }
}

/// The status of a stream that the transport ended.
fn status_of(error: &h2::Error) -> Status {
    Status::cancelled(format!("the stream ended: {error}"))
}

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// The length of a gRPC message's prefix: a flag and the message's length, four bytes.
const PREFIX: usize = 5;

/// A message up to this size, in bytes, is copied into one piece: an HTTP/2 frame for each part would cost more.
const COPIED: usize = 4 << 10;

#[cfg(test)]
mod tests;
