//! The body of a discovery stream's response: gRPC messages whose bytes are shared between streams.
//!
//! tonic's own encoder copies each message into a buffer of the stream, and keeps that buffer at the size of the
//! largest message. With 10,000 routes that is a mebibyte for each idle proxy.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body, Frame};
use tokio::sync::mpsc;
use tonic::Status;

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

/// The messages of a stream as an HTTP body. It ends with the status `OK`, or with the one that it receives.
pub(super) struct MessageBody {
    messages: mpsc::Receiver<Result<Message, Status>>,
    /// The parts of the current message that are still to be written, the last one first.
    rest: Vec<Bytes>,
    ended: bool,
}

impl MessageBody {
    pub(super) fn new(messages: mpsc::Receiver<Result<Message, Status>>) -> Self {
        Self { messages, rest: Vec::new(), ended: false }
    }

    /// Begins `message`, and returns its first part.
    fn begin(&mut self, Message { shared, end, compressed }: Message) -> Bytes {
        let length = shared.len() + end.len();
        let copied = if length <= COPIED { length } else { 0 };
        let mut first = BytesMut::with_capacity(PREFIX + copied);
        first.put_u8(compressed.into());
        // A message is at most a few mebibytes: `Subscription::CHUNK` and one resource.
        first.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        if copied > 0 {
            first.put(shared);
            first.put(end);
        } else {
            self.rest = vec![end, shared];
        }
        first.freeze()
    }
}

impl Body for MessageBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(part) = self.rest.pop() {
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = match ready!(self.messages.poll_recv(cx)) {
            Some(Ok(message)) => Frame::data(self.begin(message)),
            ended => {
                self.ended = true;
                let status = ended.and_then(Result::err).unwrap_or_else(|| Status::ok(""));
                Frame::trailers(trailers(&status))
            }
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

fn trailers(status: &Status) -> http::HeaderMap {
    let mut trailers = http::HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // Only a message that no header can hold makes it fail.
        trailers.insert(Status::GRPC_STATUS, http::HeaderValue::from_static("2"));
    }
    trailers
}

/// The length of a gRPC message's prefix: a flag and the message's length, four bytes.
const PREFIX: usize = 5;

/// A message up to this size, in bytes, is copied into one piece: an HTTP/2 frame for each part would cost more.
const COPIED: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn message(shared: &'static [u8], end: &'static [u8]) -> Message {
        Message { shared: Bytes::from_static(shared), end: Bytes::from_static(end), compressed: false }
    }

    async fn read(body: MessageBody) -> (Vec<Bytes>, http::HeaderMap) {
        let mut body = Box::pin(body);
        let (mut parts, mut trailers) = (Vec::new(), http::HeaderMap::new());
        while let Some(Ok(frame)) = body.frame().await {
            match frame.into_data() {
                Ok(part) => parts.push(part),
                Err(frame) => trailers = frame.into_trailers().unwrap(),
            }
        }
        (parts, trailers)
    }

    #[tokio::test]
    async fn a_small_message_is_one_piece_with_its_flag_and_the_end_is_ok() {
        let (sender, messages) = mpsc::channel(2);
        sender.send(Ok(message(b"ab", b"c"))).await.unwrap();
        sender.send(Ok(Message { compressed: true, ..message(b"", b"d") })).await.unwrap();
        drop(sender);
        let (parts, trailers) = read(MessageBody::new(messages)).await;
        assert_eq!(parts, [&b"\0\0\0\0\x03abc"[..], b"\x01\0\0\0\x01d"]);
        assert_eq!(trailers["grpc-status"], "0");
    }

    #[tokio::test]
    async fn the_bytes_of_a_large_message_are_not_copied() {
        static LARGE: [u8; COPIED] = [7; COPIED];
        let (sender, messages) = mpsc::channel(2);
        sender.send(Ok(message(&LARGE, b"end"))).await.unwrap();
        sender.send(Err(Status::unavailable("it shuts down"))).await.unwrap();
        let (parts, trailers) = read(MessageBody::new(messages)).await;
        assert_eq!(parts, [&b"\0\0\0\x10\x03"[..], &LARGE[..], b"end"]);
        assert_eq!(parts[1].as_ptr(), LARGE.as_ptr());
        assert_eq!(
            (&trailers["grpc-status"], &trailers["grpc-message"]),
            (&"14".parse().unwrap(), &"it%20shuts%20down".parse().unwrap())
        );
    }
}
