//! The body of an answer that comes over HTTP/2.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use http_body::{Frame, SizeHint};
use signalbox_config::ResponseLimits;
use tokio::task::AbortHandle;

use super::super::error::ExchangeError;
use super::super::http1::Malformed;
use super::super::outgoing::Outgoing;
use super::super::switched::Switched;
use super::stream::StreamPermit;
use crate::wire::http2::{Chunk, Incoming, Raw};

/// The body of an answer, with its stream.
pub struct ResponseStream {
    body: Incoming,
    /// The task that sends the rest of the request.
    writer: Option<WriterTask>,
    /// The sending half of the stream, if the target has switched to another protocol.
    switched: Option<SendStream<Chunk>>,
    permit: StreamPermit,
}

/// A task that ends with its owner. Dropping the sender resets the stream, if it was not complete.
struct WriterTask(AbortHandle);

impl Drop for WriterTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ResponseStream {
    /// The rest of the answer that `head` begins. `switched` is the sending half of the stream, if the target has switched to
    /// another protocol.
    pub fn new(
        permit: StreamPermit,
        head: &HeaderMap,
        body: RecvStream,
        switched: Option<SendStream<Chunk>>,
    ) -> Self {
        permit.note_response();
        Self { body: Incoming::new(body, head), writer: None, switched, permit }
    }

    /// Refuses an answer whose head is beyond `limits`, or whose announced length no reader could count.
    pub fn check_head(&self, headers: &HeaderMap, limits: ResponseLimits) -> Result<(), Malformed> {
        // RFC 9113, section 6.5.2, counts them in this way.
        let size = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 32;
        let too_large = headers.iter().map(size).sum::<usize>() > limits.header_size;
        if headers.len() > limits.header_count || too_large {
            return Err(Malformed::HeadTooLarge);
        }
        // Other proxies may read a larger one with a sign.
        if self.body.size_hint().exact().is_some_and(|length| length > i64::MAX as u64) {
            return Err(Malformed::Length);
        }
        Ok(())
    }

    /// Moves the sending of the rest of the request to a task of its own, while the response is read: the client may
    /// want to send all of it before it reads the response.
    pub fn write_in_background(&mut self, request: Outgoing) {
        let Outgoing { http2: Some(mut sender), mut body, .. } = request else { return };
        body.forget();
        let task = tokio::task::spawn_local(async move {
            // A body that breaks off resets the stream, which the reader of the answer sees.
            let _ = poll_fn(|cx| sender.poll_write(&mut body, cx)).await;
        });
        self.writer = Some(WriterTask(task.abort_handle()));
    }

    /// Returns the next part.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        self.body.poll(cx).map_err(ExchangeError::Http2)
    }

    #[inline]
    pub fn is_end(&self) -> bool {
        self.body.is_end()
    }

    pub fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    /// The stream itself, if the target has switched to another protocol.
    #[expect(clippy::boxed_local, reason = "it comes in a box")]
    pub fn into_switched(self: Box<Self>) -> Option<Switched> {
        let Self { body, switched, permit, .. } = *self;
        let raw = Raw::new(body, switched?, None);
        // A stream's bytes are counted by its connection.
        Some(Switched::new(raw, BytesMut::new(), None, permit))
    }
}
