//! The socket of a client of HTTP/1.1, shared by its connection's driver and the body of its current request.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use signalbox_config::Limits;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::framing::{BadChunk, Decoded};
use super::request::{self, Framing, Head, Partial};
use crate::core::failure::Failure;
use crate::wire::client_io::ClientIo;
use crate::wire::splice::{Filled, Transfer};

/// The socket, its read buffer, and the state of the current request's body.
///
/// The body is read by its consumer: the connection's task, or a separate task while the response is sent. So they
/// share the socket. Until the body is complete, nothing else reads.
pub struct Link(RefCell<Inner>);

struct Inner {
    io: ClientIo,
    buffer: BytesMut,
    /// The length of the buffer's prefix that is known not to contain a complete head.
    seen: usize,
    /// The number of bytes to read at once.
    read_size: usize,
    /// Counts requests, so that the body of an old one cannot read bytes of the next.
    request: u64,
    framing: Framing,
    /// True if the client waits for `100 Continue`, and the body was not polled yet.
    awaits_continue: bool,
    /// The rest of `100 Continue` that is still to be written.
    interim: &'static [u8],
    input: Input,
    /// Woken when the body is complete, because the connection's task then continues to read.
    driver: Option<Waker>,
}

/// The state of the client's sending half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    Open,
    /// The client has closed its sending half. It may still read.
    Ended,
    Broken,
}

/// The body of a request.
pub struct Incoming {
    link: Rc<Link>,
    request: u64,
}

/// The reason why a request body ended early.
#[derive(Debug, thiserror::Error)]
pub enum IncomingError {
    #[error(transparent)]
    Chunk(#[from] BadChunk),
    #[error("the client closed the connection")]
    Closed,
    #[error("the connection broke")]
    Broken(#[source] io::Error),
}

/// The initial and the maximum number of bytes to read at once.
const READ: usize = 8 << 10;
const MAX_READ: usize = 64 << 10;

/// The minimum room in the buffer when only the end of the connection is expected, in bytes.
const MIN_ROOM: usize = 512;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

impl Link {
    pub fn new(io: ClientIo) -> Rc<Self> {
        Rc::new(Self(RefCell::new(Inner {
            io,
            buffer: BytesMut::with_capacity(READ),
            seen: 0,
            read_size: READ,
            request: 0,
            framing: Framing::Length(0),
            awaits_continue: false,
            interim: b"",
            input: Input::Open,
            driver: None,
        })))
    }

    /// Returns the socket if it is no longer shared.
    pub fn into_io(self: Rc<Self>) -> Result<ClientIo, Rc<Self>> {
        Rc::try_unwrap(self).map(|link| link.0.into_inner().io)
    }

    pub fn input(&self) -> Input {
        self.0.borrow().input
    }

    /// Returns true if the buffer has unconsumed bytes.
    pub fn has_read_ahead(&self) -> bool {
        !self.0.borrow().buffer.is_empty()
    }

    /// Takes the unconsumed bytes.
    pub fn take_read_ahead(&self) -> BytesMut {
        std::mem::take(&mut self.0.borrow_mut().buffer)
    }

    /// Takes the head of the next request once it is complete; `None`: the connection has ended. `headers` is reused
    /// for its memory. `begins` is called while a part of a head is there.
    pub fn poll_head(
        &self,
        limits: &Limits,
        headers: &mut HeaderMap,
        begins: impl Fn(),
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Head>, Failure>> {
        let inner = &mut *self.0.borrow_mut();
        inner.make_room();
        loop {
            if inner.buffer.len() > inner.seen {
                if let Some(head) = inner.take_head(limits, headers)? {
                    return Poll::Ready(Ok(Some(head)));
                }
                if !inner.buffer.is_empty() {
                    begins();
                }
            }
            if inner.input != Input::Open {
                return Poll::Ready(Ok(None));
            }
            // The end is recorded in `input`.
            let _ = ready!(inner.poll_fill(cx));
        }
    }

    /// Returns the body behind `head`; `None` if there is none.
    pub fn begin_request(self: &Rc<Self>, framing: Framing, expects_continue: bool) -> Option<Incoming> {
        let mut inner = self.0.borrow_mut();
        inner.request += 1;
        inner.driver = None;
        inner.awaits_continue = expects_continue && inner.buffer.is_empty() && !framing.is_end();
        inner.interim = b"";
        inner.framing = framing;
        (!inner.framing.is_end()).then(|| Incoming { link: Rc::clone(self), request: inner.request })
    }

    /// Returns the state of the client's sending half while no request is expected, and wakes the task when it
    /// changes. Bytes that arrive meanwhile stay in the buffer.
    pub fn poll_input(&self, cx: &mut Context<'_>) -> Input {
        let inner = &mut *self.0.borrow_mut();
        if !inner.framing.is_end() {
            // The reader of the body notices the end.
            if inner.driver.as_ref().is_none_or(|driver| !driver.will_wake(cx.waker())) {
                inner.driver = Some(cx.waker().clone());
            }
            return inner.input;
        }
        while inner.input == Input::Open && inner.buffer.is_empty() {
            if inner.poll_fill(cx).is_pending() {
                break;
            }
        }
        inner.input
    }

    /// Records that a response begins, so no further `100 Continue` is sent. The rest of one that was partly written
    /// is put into `out`.
    pub fn begin_answer(&self, out: &mut Vec<u8>) {
        let mut inner = self.0.borrow_mut();
        inner.awaits_continue = false;
        if inner.interim.len() < CONTINUE.len() {
            out.extend_from_slice(inner.interim);
        }
        inner.interim = b"";
    }

    /// Drops the part of the current request's body that is in the buffer, and returns true if it was the end.
    pub fn drain_body(&self) -> bool {
        let inner = &mut *self.0.borrow_mut();
        loop {
            match inner.next_frame() {
                Ok(Some(Some(_))) => {}
                Ok(Some(None)) => return true,
                Ok(None) | Err(_) => return false,
            }
        }
    }

    /// Reads and drops the current request's body. Ready when there is no more to read, with true if that was the end
    /// of the body.
    pub fn poll_discard(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let inner = &mut *self.0.borrow_mut();
        loop {
            match inner.next_frame() {
                Ok(Some(Some(_))) => {}
                Ok(Some(None)) => return Poll::Ready(true),
                Err(_) => return Poll::Ready(false),
                Ok(None) if inner.input != Input::Open => return Poll::Ready(false),
                Ok(None) => match ready!(inner.poll_fill(cx)) {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return Poll::Ready(false),
                },
            }
        }
    }

    /// Writes from `slices` as much as the client takes.
    pub fn poll_write(&self, slices: &[IoSlice<'_>], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let io = &mut self.0.borrow_mut().io;
        match slices {
            [only] => Pin::new(io).poll_write(cx, only),
            several => Pin::new(io).poll_write_vectored(cx, several),
        }
    }

    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().io).poll_flush(cx)
    }

    /// Returns true if bytes can be spliced into the socket.
    pub fn is_plain(&self) -> bool {
        self.0.borrow().io.is_plain()
    }

    /// Gives what `transfer` holds on to the client, as much as it takes.
    pub fn poll_drain(&self, transfer: &mut Transfer, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.0.borrow().io.poll_drain(transfer, cx)
    }
}

impl Inner {
    /// Makes room for a head. This allocates nothing if the previous head was dropped.
    fn make_room(&mut self) {
        if self.buffer.is_empty() && self.buffer.capacity() < READ / 2 {
            self.buffer.reserve(READ);
        }
    }

    fn take_head(&mut self, limits: &Limits, headers: &mut HeaderMap) -> Result<Option<Head>, Failure> {
        // Some clients send an empty line behind a body (RFC 9112, section 2.2).
        while let Some(length) = request::empty_line(&self.buffer) {
            self.buffer.advance(length);
            self.seen = 0;
        }
        let scanned = match self.seen {
            0 => Partial::MayBeWhole,
            seen => request::scan_partial(&self.buffer, seen),
        };
        let head = match scanned {
            Partial::Bad => return Err(request::UNREADABLE),
            Partial::More if self.buffer.len() >= limits.header_size => return Err(Failure::HeadTooLarge),
            Partial::More => None,
            Partial::MayBeWhole if self.buffer.is_empty() => None,
            Partial::MayBeWhole => request::take_head(&mut self.buffer, limits, headers)?,
        };
        self.seen = if head.is_some() { 0 } else { self.buffer.len() };
        Ok(head)
    }

    /// Reads bytes into the buffer; 0 bytes are the end. The end is recorded in `input`.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.buffer.capacity() - self.buffer.len() < MIN_ROOM {
            self.buffer.reserve(self.read_size);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        let read = ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.buffer));
        match &read {
            Ok(0) => self.input = Input::Ended,
            Ok(read) if *read == room => self.read_size = (self.read_size * 2).min(MAX_READ),
            Ok(_) => {}
            Err(_) => self.input = Input::Broken,
        }
        Poll::Ready(read)
    }

    /// Takes the next part of the body out of the buffer. `Some(None)`: the body is complete; `None`: more bytes are
    /// needed.
    #[expect(clippy::option_option, reason = "there is more to come, or there is no more")]
    fn next_frame(&mut self) -> Result<Option<Option<Frame<Bytes>>>, BadChunk> {
        match &mut self.framing {
            Framing::Length(0) => Ok(Some(None)),
            Framing::Length(_) if self.buffer.is_empty() => Ok(None),
            Framing::Length(left) => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(self.buffer.len());
                *left -= length as u64;
                Ok(Some(Some(Frame::data(self.buffer.split_to(length).freeze()))))
            }
            Framing::Chunked(chunked) => Ok(match chunked.decode(&mut self.buffer)? {
                Decoded::Data(data) => Some(Some(Frame::data(data))),
                Decoded::Trailers(trailers) => Some(Some(Frame::trailers(trailers))),
                Decoded::End => Some(None),
                Decoded::More => None,
            }),
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, IncomingError>>> {
        loop {
            if let Some(frame) = self.next_frame().map_err(IncomingError::Chunk)? {
                self.on_progress(cx);
                return Poll::Ready(frame.map(Ok));
            }
            if self.input != Input::Open {
                return Poll::Ready(Some(Err(IncomingError::Closed)));
            }
            self.poll_continue(cx);
            match ready!(self.poll_fill(cx)) {
                Ok(0) => return Poll::Ready(Some(Err(IncomingError::Closed))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(IncomingError::Broken(error)))),
            }
        }
    }

    /// Splices the next part of the body, up to `most` bytes. `None`: it has to be copied.
    fn poll_splice(
        &mut self,
        transfer: &mut Transfer,
        most: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<usize>, IncomingError>> {
        let Framing::Length(left @ 1..) = self.framing else { return Poll::Ready(Ok(None)) };
        if !self.buffer.is_empty() || self.input != Input::Open || !self.io.is_plain() {
            return Poll::Ready(Ok(None));
        }
        self.poll_continue(cx);
        match ready!(self.io.poll_fill(transfer, left.min(most), cx)) {
            Ok(Filled::Unavailable) => Poll::Ready(Ok(None)),
            Ok(Filled::Bytes(filled)) => {
                self.framing = Framing::Length(left.saturating_sub(filled as u64));
                self.on_progress(cx);
                Poll::Ready(Ok(Some(filled)))
            }
            Ok(Filled::End) => {
                self.input = Input::Ended;
                Poll::Ready(Err(IncomingError::Closed))
            }
            Err(error) => {
                self.input = Input::Broken;
                Poll::Ready(Err(IncomingError::Broken(error)))
            }
        }
    }

    /// Some of the body has been taken. At its end the connection's task reads on.
    fn on_progress(&mut self, cx: &Context<'_>) {
        self.awaits_continue = false;
        if self.framing.is_end()
            && let Some(driver) = self.driver.take()
            && !driver.will_wake(cx.waker())
        {
            driver.wake();
        }
    }

    /// Sends `100 Continue` to a client that waits for it. Nothing else is being written then.
    fn poll_continue(&mut self, cx: &mut Context<'_>) {
        if std::mem::take(&mut self.awaits_continue) {
            self.interim = CONTINUE;
        }
        while !self.interim.is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, self.interim) {
                Poll::Ready(Ok(written @ 1..)) => {
                    self.interim = self.interim.get(written..).unwrap_or_default();
                }
                // Reading notices that the client has gone.
                Poll::Ready(Ok(0) | Err(_)) => self.interim = b"",
                Poll::Pending => return,
            }
            if self.interim.is_empty() {
                let _ = Pin::new(&mut self.io).poll_flush(cx);
            }
        }
    }
}

impl Incoming {
    /// Polls for the next frame.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, IncomingError>>> {
        let mut inner = self.link.0.borrow_mut();
        if inner.request != self.request {
            return Poll::Ready(Some(Err(IncomingError::Closed)));
        }
        inner.poll_body(cx)
    }

    /// Splices the next part, up to `most` bytes. `None`: it has to be copied.
    pub fn poll_splice(
        &mut self,
        transfer: &mut Transfer,
        most: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<usize>, IncomingError>> {
        let mut inner = self.link.0.borrow_mut();
        if inner.request != self.request {
            return Poll::Ready(Err(IncomingError::Closed));
        }
        inner.poll_splice(transfer, most, cx)
    }

    /// Returns true if the whole body was read.
    #[inline]
    pub fn is_end(&self) -> bool {
        let inner = self.link.0.borrow();
        inner.request == self.request && inner.framing.is_end()
    }

    pub fn size_hint(&self) -> SizeHint {
        match &self.link.0.borrow().framing {
            Framing::Length(left) => SizeHint::with_exact(*left),
            Framing::Chunked(chunked) if chunked.is_end() => SizeHint::with_exact(0),
            Framing::Chunked(_) => SizeHint::default(),
        }
    }
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("request", &self.request).finish_non_exhaustive()
    }
}

/// The socket itself, for bytes that belong to no request.
pub struct Raw(pub Rc<Link>);

impl AsyncRead for Raw {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.0.borrow_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Raw {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.0.borrow_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.0.borrow_mut().io).poll_shutdown(cx)
    }
}
