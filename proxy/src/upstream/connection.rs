//! An HTTP/1.1 connection to a target.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use signalbox_config::{ResponseLimits, UpstreamProtocol};
use tokio::task::AbortHandle;
use tokio_util::io::poll_read_buf;

use super::connect::connect;
use super::endpoint::Endpoint;
use super::error::{ConnectError, ExchangeError};
use super::http1::{self, Framing, Head, Malformed};
use super::load::{Load, Permit};
use super::outgoing::Outgoing;
use super::switched::Switched;
use super::transport::Transport;
use crate::telemetry::WorkerStats;
use crate::wire::http1::framing::Decoded;
use crate::wire::splice::{Filled, Pipes, Transfer};
use crate::wire::stream::Stream;
use crate::wire::tls::{HTTP2, Offer};

/// A connection to a target, which carries one request after another.
///
/// It has no task of its own: the task that waits for a response drives it, which is also the task that serves the
/// client. That saves two wake-ups and two passes through the scheduler per request, and dropping the waiting future
/// cancels the request. While the connection is idle, nothing drives it; [`Connection::is_alive`] checks it.
///
/// It does not use hyper: without channels for the request, the response and the body, a request needs 40 % fewer
/// instructions.
pub struct Connection {
    pub endpoint: Endpoint,
    stream: Stream,
    /// Bytes that were read and not consumed.
    buffer: BytesMut,
    /// The number of bytes to read at once.
    read_size: usize,
    answer: ResponseState,
    stats: Arc<WorkerStats>,
    permit: Permit,
}

/// The state of the response to the last request.
enum ResponseState {
    /// It was read completely, and another request can follow.
    Done,
    /// Its head is expected; or it was abandoned in the middle.
    Expected,
    Body {
        framing: Framing,
        keep_alive: bool,
    },
    /// It was read completely, and no request can follow.
    Last,
}

/// The initial and the maximum number of bytes to read at once: 64 KiB are fast, but cost memory.
const READ: usize = 8 << 10;
const MAX_READ: usize = 64 << 10;

impl Connection {
    /// Opens a connection. `offer` are the protocols that are offered to the target by ALPN.
    pub async fn open(
        endpoint: Endpoint,
        transport: &Transport,
        offer: Offer,
        stats: Arc<WorkerStats>,
        permit: Permit,
    ) -> Result<Box<Self>, ConnectError> {
        let stream = connect(endpoint, transport.tls.as_deref(), offer, transport.connect_timeout).await?;
        if transport.protocol == UpstreamProtocol::Auto && stream.agreed() == Some(HTTP2) {
            return Err(ConnectError::OtherProtocol);
        }
        stats.upstream_connections.add(1);
        let buffer = BytesMut::with_capacity(READ);
        Ok(Box::new(Self {
            endpoint,
            stream,
            buffer,
            read_size: READ,
            answer: ResponseState::Done,
            stats,
            permit,
        }))
    }

    /// The load of the upstream for which it was opened.
    #[inline]
    pub fn load(&self) -> &Arc<Load> {
        self.permit.load()
    }

    /// Sends a request, and waits for the response head, which must be within `limits` and reuses the memory of
    /// `headers`. The request's body may still be in transit then: see [`Outgoing::is_done`].
    ///
    /// If the future is dropped, the connection cannot be reused.
    pub async fn send(
        &mut self,
        request: &mut Outgoing,
        limits: ResponseLimits,
        headers: &mut HeaderMap,
    ) -> Result<Head, ExchangeError> {
        self.answer = ResponseState::Expected;
        let mut answered = false;
        // The number of bytes of the head that were examined.
        let mut seen = 0;
        poll_fn(|cx| {
            // A target that stops reading may have responded already, or still do so.
            if let Poll::Ready(Err(error)) = request.poll_write(&mut self.stream, &self.stats, cx) {
                return Poll::Ready(Err(ExchangeError::RequestBody(error)));
            }
            loop {
                if answered && http1::may_be_whole(&self.buffer, seen, limits) {
                    let (method, switches) = (request.method(), request.switches);
                    if let Some(head) =
                        http1::parse_head(&mut self.buffer, method, switches, limits, headers)?
                    {
                        return Poll::Ready(Ok(head));
                    }
                }
                seen = self.buffer.len();
                match ready!(self.poll_fill(cx)) {
                    Ok(1..) => answered = true,
                    ended => return Poll::Ready(Err(ExchangeError::closed(answered, ended))),
                }
            }
        })
        .await
        .map(|mut head| {
            let framing = std::mem::replace(&mut head.framing, Framing::Length(0));
            let keep_alive = head.keep_alive;
            self.answer = match framing {
                Framing::Length(0) if keep_alive => ResponseState::Done,
                Framing::Length(0) => ResponseState::Last,
                framing => ResponseState::Body { framing, keep_alive },
            };
            head
        })
    }

    /// Polls for the next frame of the response body.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let ResponseState::Body { framing, keep_alive } = &mut self.answer else {
            return Poll::Ready(match self.answer {
                ResponseState::Done | ResponseState::Last => None,
                ResponseState::Expected | ResponseState::Body { .. } => {
                    Some(Err(ExchangeError::closed(true, Ok(0))))
                }
            });
        };
        loop {
            let frame = match framing {
                Framing::Length(left) => {
                    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(self.buffer.len());
                    if length > 0 {
                        *left -= length as u64;
                        let data = self.buffer.split_to(length).freeze();
                        if *left == 0 {
                            self.answer = if *keep_alive { ResponseState::Done } else { ResponseState::Last };
                        }
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    None
                }
                Framing::Chunked(chunked) => {
                    let decoded = chunked.decode(&mut self.buffer).map_err(Malformed::from)?;
                    if chunked.is_end() {
                        self.answer = if *keep_alive { ResponseState::Done } else { ResponseState::Last };
                        return Poll::Ready(match decoded {
                            Decoded::Data(data) => Some(Ok(Frame::data(data))),
                            Decoded::Trailers(trailers) => Some(Ok(Frame::trailers(trailers))),
                            Decoded::End | Decoded::More => None,
                        });
                    }
                    match decoded {
                        Decoded::Data(data) => Some(data),
                        Decoded::Trailers(_) | Decoded::End | Decoded::More => None,
                    }
                }
                Framing::Close if self.buffer.is_empty() => None,
                Framing::Close => Some(self.buffer.split().freeze()),
            };
            if let Some(data) = frame {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            // The fields are borrowed separately.
            let filled = fill(&mut self.stream, &mut self.buffer, &mut self.read_size, &self.stats, cx);
            match ready!(filled) {
                Ok(1..) => {}
                Ok(0) if *framing == Framing::Close => {
                    self.answer = ResponseState::Last;
                    return Poll::Ready(None);
                }
                ended => {
                    self.answer = ResponseState::Expected;
                    return Poll::Ready(Some(Err(ExchangeError::closed(true, ended))));
                }
            }
        }
    }

    /// Splices the next part of the answer's body, up to `most` bytes. `None`: it has to be copied.
    pub(super) fn poll_splice(
        &mut self,
        pipes: &Rc<Pipes>,
        transfer: &mut Transfer,
        most: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<usize>, ExchangeError>> {
        let ResponseState::Body { framing: Framing::Length(left), keep_alive } = &mut self.answer else {
            return Poll::Ready(Ok(None));
        };
        let Stream::Plain(socket) = &self.stream else { return Poll::Ready(Ok(None)) };
        if !self.buffer.is_empty() {
            return Poll::Ready(Ok(None));
        }
        match ready!(transfer.poll_fill(pipes, socket, most.min(*left), cx)) {
            Ok(Filled::Unavailable) => Poll::Ready(Ok(None)),
            Ok(Filled::Bytes(filled)) => {
                self.stats.upstream_in.add(filled as u64);
                *left = left.saturating_sub(filled as u64);
                if *left == 0 {
                    self.answer = if *keep_alive { ResponseState::Done } else { ResponseState::Last };
                }
                Poll::Ready(Ok(Some(filled)))
            }
            ended => {
                self.answer = ResponseState::Expected;
                Poll::Ready(Err(ExchangeError::closed(true, ended.map(|_| 0))))
            }
        }
    }

    /// Turns it into the raw byte stream after a protocol switch.
    #[expect(clippy::boxed_local, reason = "it comes in a box")]
    pub(super) fn into_switched(self: Box<Self>) -> Switched {
        let Self { stream, buffer, stats, permit, .. } = *self;
        Switched::new(stream, buffer, Some(stats), permit)
    }

    /// True if the whole response body was read.
    #[inline]
    pub fn is_end(&self) -> bool {
        matches!(self.answer, ResponseState::Done | ResponseState::Last)
    }

    /// The size hint for the rest of the response body.
    pub fn size_hint(&self) -> SizeHint {
        match &self.answer {
            ResponseState::Done | ResponseState::Last => SizeHint::with_exact(0),
            ResponseState::Body { framing: Framing::Length(left), .. } => SizeHint::with_exact(*left),
            ResponseState::Body { .. } | ResponseState::Expected => SizeHint::default(),
        }
    }

    /// True if it can carry another request: the last exchange is complete, and the target has not closed it. This
    /// costs no system call if nothing has happened.
    #[inline]
    pub fn is_alive(&mut self) -> bool {
        if !matches!(self.answer, ResponseState::Done) || !self.buffer.is_empty() {
            return false;
        }
        self.stream.is_idle()
    }

    /// Releases the read buffer of an idle connection.
    pub fn release_memory(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
            self.read_size = READ;
        }
    }

    /// Moves the writing of the rest of `request` to a task of its own, while the response is read.
    pub fn share(self: Box<Self>, mut request: Outgoing) -> Shared {
        let connection = Rc::new(RefCell::new(self));
        let writing = Rc::clone(&connection);
        let in_step = Rc::<Cell<bool>>::default();
        let sent = Rc::clone(&in_step);
        let task = tokio::task::spawn_local(async move {
            let written = poll_fn(|cx| {
                let connection = &mut **writing.borrow_mut();
                request.poll_write(&mut connection.stream, &connection.stats, cx)
            })
            .await;
            if written.is_err() {
                let connection = &mut **writing.borrow_mut();
                // The reader of the response must not take the end of the connection for the end of the body.
                if matches!(connection.answer, ResponseState::Body { .. }) {
                    connection.answer = ResponseState::Expected;
                }
                connection.stream.abort();
            }
            sent.set(request.is_sent());
        });
        Shared { connection: Some(connection), task: task.abort_handle(), in_step }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        fill(&mut self.stream, &mut self.buffer, &mut self.read_size, &self.stats, cx)
    }
}

/// Reads available bytes; 0 bytes are the end.
#[inline]
fn fill(
    stream: &mut Stream,
    buffer: &mut BytesMut,
    size: &mut usize,
    stats: &WorkerStats,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if buffer.capacity() - buffer.len() < *size / 2 {
        // The memory is reused if nothing holds on to earlier bytes.
        buffer.reserve(*size);
    }
    let room = buffer.capacity() - buffer.len();
    let read = ready!(poll_read_buf(Pin::new(stream), cx, buffer))?;
    if read == room {
        *size = (*size * 2).min(MAX_READ);
    }
    stats.upstream_in.add(read as u64);
    Poll::Ready(Ok(read))
}

/// A connection whose response is read while its request is still being written.
pub struct Shared {
    /// `None` once it was taken out.
    connection: Option<Rc<RefCell<Box<Connection>>>>,
    /// The writing task.
    task: AbortHandle,
    /// True if the target has read the whole request.
    in_step: Rc<Cell<bool>>,
}

impl Shared {
    /// Calls `f` with the connection; `None` if it was taken out.
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        self.connection.as_ref().map(|connection| f(&mut connection.borrow_mut()))
    }
}

impl Shared {
    /// Returns the connection, if the target has read the whole request.
    pub(super) fn into_connection(mut self) -> Option<Box<Connection>> {
        let connection = self.connection.take().filter(|_| self.in_step.get())?;
        Rc::try_unwrap(connection).ok().map(RefCell::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.task.abort();
    }
}
