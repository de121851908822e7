//! Requests on their way to targets.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::uri::Scheme;
use http::{HeaderValue, Method, request};
use http_body::Body;
use memchr::memmem;
use tokio::io::AsyncWrite;

use super::http1::{self, RequestFraming};
use super::http2::request::RequestSender;
use crate::telemetry::WorkerStats;
use crate::wire::body::{RequestBody, RequestBodyError};
use crate::wire::http1::framing::{encode_chunk_head, encode_end};
use crate::wire::splice::{MIN_SPLICE, Transfer};
use crate::wire::stream::Stream;

/// A request that is being written. The caller keeps it, so that it can be sent again over another connection.
pub struct Outgoing {
    method: Method,
    /// The head, followed and later replaced by the body's framing and small parts of the body.
    buffer: Vec<u8>,
    /// The number of bytes of the buffer that were written.
    written: usize,
    /// True if it may be sent again when its fate is unknown.
    pub repeatable: bool,
    /// True if the target may switch to another protocol.
    pub switches: bool,
    /// True if any byte of the head was written.
    pub(super) begun: bool,
    /// True if any part of the body was taken.
    taken: bool,
    /// A part of the body, which follows the buffer.
    data: Bytes,
    /// The end of a chunk, which follows `data`.
    tail: &'static [u8],
    /// Carries a body of known length between two sockets without TLS.
    transfer: Transfer,
    framing: RequestFraming,
    pub(super) body: RequestBody,
    state: Sending,
    /// The state for sending it again although a part of its body was taken.
    kept: Option<SavedHead>,
    /// The HTTP/2 form of the request, without the body.
    pub(super) http2: Option<Box<RequestSender>>,
    /// The HTTP/2 form while HTTP/1.1 is used, for a request that can take either.
    spare: Option<Box<RequestSender>>,
}

/// The head and the framing of a request, for sending it again.
struct SavedHead {
    head: Box<[u8]>,
    framing: RequestFraming,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    /// Nothing was written.
    Fresh,
    /// The buffer has to be written before more is added.
    Begun,
    Done,
    /// The target no longer reads.
    Broken,
}

/// The maximum number of bytes of a body that are buffered so that the request can be sent again; larger bodies are
/// not.
const RETRY_BUFFER_SIZE: usize = 64 << 10;

/// Parts of a body up to this size in bytes are copied behind the head, because one plain write is faster than a
/// vectored one.
const COPY: usize = 4 << 10;

/// The longest field of a trace context that the proxy writes.
const MAX_CONTEXT: usize = 128;

impl Outgoing {
    /// Writes the head of a request into `buffer`, which is cleared; `more` writes further fields.
    #[inline]
    pub fn new(
        head: &request::Parts,
        body: RequestBody,
        mut buffer: Vec<u8>,
        more: impl FnOnce(&mut Vec<u8>),
    ) -> Self {
        let framing = if body.is_empty() {
            RequestFraming::None
        } else {
            body.size_hint().exact().map_or(RequestFraming::Chunked, RequestFraming::Length)
        };
        buffer.clear();
        http1::encode_head(&mut buffer, head, framing, more);
        Self {
            method: head.method.clone(),
            buffer,
            written: 0,
            repeatable: false,
            switches: false,
            begun: false,
            taken: false,
            data: Bytes::new(),
            tail: b"",
            transfer: Transfer::default(),
            framing,
            body,
            state: Sending::Fresh,
            kept: None,
            http2: None,
            spare: None,
        }
    }

    /// Creates the request for a target of HTTP/2, from all of `head`. Returns `None` if HTTP/2 cannot express it.
    pub fn http2(head: &mut request::Parts, mut body: RequestBody, scheme: &Scheme) -> Option<Self> {
        let method = head.method.clone();
        let sender = RequestSender::new(head, &body, scheme)?;
        // The body is buffered in case the target reports that it has not processed the request.
        body.keep(RETRY_BUFFER_SIZE);
        Some(Self {
            method,
            buffer: Vec::new(),
            written: 0,
            repeatable: false,
            switches: false,
            begun: false,
            taken: false,
            data: Bytes::new(),
            tail: b"",
            transfer: Transfer::default(),
            framing: RequestFraming::None,
            body,
            state: Sending::Fresh,
            kept: None,
            http2: Some(Box::new(sender)),
            spare: None,
        })
    }

    /// Requests a switch to `protocol` over HTTP/2. Returns `None` if the request cannot express that.
    pub fn switch_over_http2(&mut self, protocol: &HeaderValue) -> Option<()> {
        self.switches = true;
        self.http2.as_mut()?.extended_connect(protocol)
    }

    /// Adds the HTTP/2 form, so that the request can use either version: see [`Outgoing::set_http2`]. The contents of
    /// `head` are taken. Returns `None` if HTTP/2 cannot express the request.
    pub fn or_http2(&mut self, head: &mut request::Parts, scheme: &Scheme) -> Option<()> {
        self.spare = Some(Box::new(RequestSender::new(head, &self.body, scheme)?));
        self.keep();
        Some(())
    }

    /// Sets the version of HTTP for a request that can use either and is at its beginning.
    pub fn set_http2(&mut self, http2: bool) {
        if http2 != self.http2.is_some() {
            std::mem::swap(&mut self.http2, &mut self.spare);
        }
    }

    pub(super) fn method(&self) -> &Method {
        &self.method
    }

    /// Returns the buffer, for the next request.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    /// True if all of it was written, or as much as the target reads.
    #[inline]
    pub fn is_done(&self) -> bool {
        matches!(self.state, Sending::Done | Sending::Broken)
    }

    /// True if the target has read the whole request, so that the connection can be reused.
    #[inline]
    pub fn is_sent(&self) -> bool {
        if let Some(sender) = &self.http2 {
            return sender.is_done();
        }
        self.state == Sending::Done
    }

    /// Buffers the body while it passes, so that the request can be sent again.
    pub fn keep(&mut self) {
        // Without a body, the head stays in the buffer.
        if self.framing != RequestFraming::None && self.kept.is_none() {
            self.body.keep(RETRY_BUFFER_SIZE);
            self.kept = Some(SavedHead { head: self.buffer.as_slice().into(), framing: self.framing });
        }
    }

    /// True if the target may have seen a part of it.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Starts over for another connection, if that is possible: nothing was written, or it is repeatable, and its body
    /// is complete. Returns true on success.
    pub fn rewind(&mut self) -> bool {
        (self.repeatable || !self.begun) && self.restart()
    }

    /// Starts over whatever the target has seen, if its body is complete. Returns true on success.
    pub fn restart(&mut self) -> bool {
        if let Some(sender) = &mut self.http2 {
            self.begun = false;
            sender.restart();
            return self.body.rewind();
        }
        if self.taken {
            let Some(kept) = &self.kept else { return false };
            if !self.body.rewind() {
                return false;
            }
            self.buffer.clear();
            self.buffer.extend_from_slice(&kept.head);
            self.framing = kept.framing;
            self.data = Bytes::new();
            self.tail = b"";
            self.transfer = Transfer::default();
            self.taken = false;
        }
        self.written = 0;
        self.begun = false;
        self.state = Sending::Fresh;
        true
    }

    /// Puts another id in the place of a span's in the fields of the head. The request is at its beginning: see
    /// [`Outgoing::restart`].
    #[cold]
    pub fn replace_span_id(&mut self, before: &[u8; 16], next: &[u8; 16]) {
        let replace = |text: &mut [u8]| {
            let found: Vec<usize> = memmem::find_iter(text, before).collect();
            for at in &found {
                if let Some(place) = text.get_mut(*at..at + next.len()) {
                    place.copy_from_slice(next);
                }
            }
            !found.is_empty()
        };
        replace(&mut self.buffer);
        if let Some(kept) = &mut self.kept {
            replace(&mut kept.head);
        }
        for sender in [&mut self.http2, &mut self.spare].into_iter().flatten() {
            for value in sender.head.headers_mut().values_mut().filter(|value| value.len() <= MAX_CONTEXT) {
                let mut text = value.as_bytes().to_vec();
                if replace(&mut text)
                    && let Ok(mut replaced) = HeaderValue::from_bytes(&text)
                {
                    replaced.set_sensitive(value.is_sensitive());
                    *value = replaced;
                }
            }
        }
    }

    /// Writes as much as the target takes. Ready when everything was written.
    #[inline]
    pub(super) fn poll_write(
        &mut self,
        stream: &mut Stream,
        stats: &WorkerStats,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), RequestBodyError>> {
        loop {
            if self.is_done() {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_splice(stream, stats, cx))? {
                continue;
            }
            // The first available part of a body is written together with the head.
            if self.is_flushed() || self.state == Sending::Fresh && self.framing != RequestFraming::None {
                self.state = Sending::Begun;
                if self.framing == RequestFraming::None {
                    self.state = match ready!(Pin::new(&mut *stream).poll_flush(cx)) {
                        Ok(()) => Sending::Done,
                        Err(_) => Sending::Broken,
                    };
                } else if self.poll_next(cx)?.is_pending() && self.is_flushed() {
                    // Buffered bytes are flushed when the task is woken for the socket or the body.
                    let _ = Pin::new(&mut *stream).poll_flush(cx);
                    return Poll::Pending;
                }
                continue;
            }
            self.state = Sending::Begun;
            match ready!(self.poll_flush(stream, cx)) {
                Ok(n @ 1..) => {
                    stats.upstream_out.add(n as u64);
                    self.begun = true;
                    self.advance(n);
                }
                // The response, or its absence, says why.
                Ok(0) | Err(_) => self.state = Sending::Broken,
            }
        }
    }

    /// Moves a part of the body on without a copy. `false`: there is something else to be written first, or it has to be copied.
    fn poll_splice(
        &mut self,
        stream: &Stream,
        stats: &WorkerStats,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, RequestBodyError>> {
        let Stream::Plain(socket) = stream else { return Poll::Ready(Ok(false)) };
        if self.transfer.is_holding() {
            match ready!(self.transfer.poll_drain(socket, cx)) {
                Ok(n) => stats.upstream_out.add(n as u64),
                Err(_) => self.state = Sending::Broken,
            }
            return Poll::Ready(Ok(true));
        }
        let pays = matches!(self.framing, RequestFraming::Length(MIN_SPLICE..));
        if !pays || !self.is_flushed() {
            return Poll::Ready(Ok(false));
        }
        let spliced = ready!(self.body.poll_splice(&mut self.transfer, cx))?.is_some();
        if spliced {
            self.taken = true;
            if self.body.is_end_stream() {
                self.end();
            }
        }
        Poll::Ready(Ok(spliced))
    }

    fn is_flushed(&self) -> bool {
        self.written == self.buffer.len() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Appends the next part of the body.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RequestBodyError>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.taken = true;
        if self.written == self.buffer.len() {
            self.buffer.clear();
            self.written = 0;
        }
        let chunked = self.framing == RequestFraming::Chunked;
        match frame {
            None => {
                if chunked {
                    encode_end(&mut self.buffer, None);
                }
                self.end();
            }
            Some(Err(error)) => return Poll::Ready(Err(error)),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    if chunked {
                        encode_chunk_head(&mut self.buffer, data.len());
                    }
                    let end = self.body.is_end_stream();
                    let tail: &'static [u8] = match (chunked, end) {
                        (true, true) => b"\r\n0\r\n\r\n",
                        (true, false) => b"\r\n",
                        (false, _) => b"",
                    };
                    if data.len() <= COPY {
                        self.buffer.extend_from_slice(&data);
                        self.buffer.extend_from_slice(tail);
                    } else {
                        self.data = data;
                        self.tail = tail;
                    }
                    if end {
                        self.end();
                    }
                }
                Err(frame) => {
                    if chunked {
                        encode_end(&mut self.buffer, frame.into_trailers().ok());
                    }
                    self.end();
                }
            },
        }
        Poll::Ready(Ok(()))
    }

    /// Handles the end of the body.
    fn end(&mut self) {
        self.framing = RequestFraming::None;
    }

    fn poll_flush(&self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let rest = self.buffer.get(self.written..).unwrap_or_default();
        if self.data.is_empty() && self.tail.is_empty() {
            return Pin::new(stream).poll_write(cx, rest);
        }
        let slices = [IoSlice::new(rest), IoSlice::new(&self.data), IoSlice::new(self.tail)];
        Pin::new(stream).poll_write_vectored(cx, &slices)
    }

    fn advance(&mut self, n: usize) {
        let of_buffer = n.min(self.buffer.len() - self.written);
        self.written += of_buffer;
        let of_data = (n - of_buffer).min(self.data.len());
        self.data.advance(of_data);
        let of_tail = (n - of_buffer - of_data).min(self.tail.len());
        self.tail = self.tail.get(of_tail..).unwrap_or_default();
    }
}
