use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Method, request};
use http_body::{Body, Frame, SizeHint};
use rustix::io::Errno;
use signalbox_config::{ResponseLimits, UpstreamProtocol};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout_at;
use tokio_util::io::poll_read_buf;

use super::failure::UpstreamError;
use super::http1::{self, Framing, Head, Malformed, RequestFraming};
use super::http2::{self, Place, Sender};
use super::load::{Load, Permit};
use super::{Endpoint, Upstream};
use crate::http::body::{RequestBody, RequestBodyError};
use crate::http1::{Decoded, encode_chunk_head, encode_end};
use crate::http2::Raw;
use crate::stream::Stream;
use crate::telemetry::WorkerStats;
use crate::tls::{HTTP2, Offer, UpstreamTls};

/// A connection to a target, which carries one request after another.
///
/// It has no task of its own: whoever waits for an answer drives it, in the same task that serves the client. That saves
/// two wake-ups and two passes through the scheduler for each request, and dropping the waiting future is all there is
/// to cancelling a request. While it is idle nobody drives it; [`Connection::is_alive`] looks after it.
///
/// It is not hyper's: with nobody in between there is no channel to send a request through, no other for the answer, and
/// no third for the body, which took 40 % of the instructions that a request needed.
pub struct Connection {
    pub endpoint: Endpoint,
    stream: Stream,
    /// What was read and not taken.
    buffer: BytesMut,
    /// How much to read at once.
    read_size: usize,
    answer: Answer,
    stats: Arc<WorkerStats>,
    permit: Permit,
}

/// How far the answer to the last request has come.
enum Answer {
    /// It was taken whole, and so can be the next.
    Done,
    /// Its head is to come; or it was left in the middle.
    Expected,
    Body {
        framing: Framing,
        keep_alive: bool,
    },
    /// It was taken whole, and is the last.
    Last,
}

/// A way to a target over which another protocol is spoken: a connection, or a stream of one.
pub struct Switched {
    pub stream: Box<dyn Duplex>,
    /// What was read of it already.
    pub buffer: BytesMut,
    /// Where its bytes are counted, of a connection.
    pub stats: Option<Arc<WorkerStats>>,
    _held: Held,
}

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

/// What is let go of when it is over.
enum Held {
    Permit { _permit: Permit },
    Place { _place: Place },
}

impl Switched {
    /// A connection to a target over which nothing was said, for a client that brings its own protocol, and its own TLS.
    pub async fn open(
        endpoint: Endpoint,
        upstream: &Upstream,
        stats: Arc<WorkerStats>,
        permit: Permit,
    ) -> Result<Self, ConnectError> {
        let stream = connect(endpoint, None, Offer::Any, upstream.connect_timeout).await?;
        stats.upstream_connections.add(1);
        Ok(Self::connection(stream, BytesMut::new(), stats, permit))
    }

    fn connection(stream: Stream, buffer: BytesMut, stats: Arc<WorkerStats>, permit: Permit) -> Self {
        Self { stream: Box::new(stream), buffer, stats: Some(stats), _held: Held::Permit { _permit: permit } }
    }

    /// A stream of an HTTP/2 connection, which counts by itself.
    pub(super) fn stream(stream: Raw, place: Place) -> Self {
        let held = Held::Place { _place: place };
        Self { stream: Box::new(stream), buffer: BytesMut::new(), stats: None, _held: held }
    }
}

/// A request as it is written. Kept by who sends it, so that it can be sent again over another connection.
pub struct Outgoing {
    method: Method,
    /// The head; behind it, and then in its place, what frames the body, and small parts of it.
    buffer: Vec<u8>,
    /// How much of the buffer was written.
    written: usize,
    /// Whether it may be sent again when it is not known what became of it.
    pub repeatable: bool,
    /// Whether the target may switch to another protocol.
    pub switches: bool,
    /// Whether any of the head was written.
    pub(super) begun: bool,
    /// Whether any of the body was taken.
    taken: bool,
    /// What comes behind the buffer.
    data: Bytes,
    /// What comes behind that.
    tail: &'static [u8],
    framing: RequestFraming,
    pub(super) body: RequestBody,
    state: Sending,
    /// What it takes to send it again although some of its body was taken.
    kept: Option<Kept>,
    /// For HTTP/2, which has its own form of all of this but the body.
    pub(super) http2: Option<Box<Sender>>,
    /// The same while HTTP/1.1 is spoken, of a request that can go either way.
    spare: Option<Box<Sender>>,
}

/// The head of a request and how its body is framed, for sending it again.
struct Kept {
    head: Box<[u8]>,
    framing: RequestFraming,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    /// Nothing was written.
    Fresh,
    /// What is in the buffer is to be written before there is more.
    Begun,
    Done,
    /// The target takes no more.
    Broken,
}

/// Why there is no connection. A clone is for another request that waited for the same connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    #[error("the target does not accept connections")]
    Refused(#[source] Arc<io::Error>),
    #[error("the target did not accept the connection in time")]
    Timeout,
    #[error("the target is not who it should be, or does not speak TLS with us")]
    Tls(#[source] Arc<io::Error>),
    #[error("the target did not set up TLS in time")]
    TlsTimeout,
    #[error("HTTP/2 cannot be begun with the target")]
    Http2(#[source] Arc<h2::Error>),
    #[error("there are as many connections to the target as there may be, and all are in use")]
    TooMany,
    /// For want of files, ports or memory.
    #[error("this host has no room for another connection")]
    NoRoom(#[source] Arc<io::Error>),
    /// Of an upstream whose targets choose.
    #[error("the target chose to speak the other version of HTTP")]
    OtherProtocol,
}

impl ConnectError {
    pub fn reason(&self) -> UpstreamError {
        match self {
            Self::Refused(error) => UpstreamError::of_connect(error),
            Self::Timeout => UpstreamError::ConnectTimeout,
            Self::Tls(error) => UpstreamError::of_handshake(error),
            Self::TlsTimeout => UpstreamError::TlsTimeout,
            Self::Http2(error) => UpstreamError::of_http2(error),
            Self::TooMany => UpstreamError::TooManyConnections,
            Self::NoRoom(_) => UpstreamError::OutOfSockets,
            Self::OtherProtocol => UpstreamError::NoCommonProtocol,
        }
    }
}

/// Why there is no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The target closed the connection, or it broke. `answered`: something had come of the answer. `reason` says why.
    #[error("the target closed the connection")]
    Closed { answered: bool, reason: UpstreamError },
    #[error("the target does not speak HTTP/1.1")]
    Malformed(#[from] Malformed),
    #[error("the target broke the stream off, or does not speak HTTP/2")]
    Http2(#[source] h2::Error),
    #[error("the request's body cannot be sent")]
    RequestBody(#[from] RequestBodyError),
    /// Over HTTP/2.
    #[error("the target does not switch to other protocols")]
    NoProtocols,
}

impl ExchangeError {
    fn closed(answered: bool, read: io::Result<usize>) -> Self {
        let reason = match read {
            Ok(_) => UpstreamError::ConnectionClosed,
            Err(error) => UpstreamError::of_connection(&error),
        };
        Self::Closed { answered, reason }
    }

    /// What the target did. `None`: it is not the target's doing.
    pub fn reason(&self) -> Option<UpstreamError> {
        match self {
            Self::Closed { reason, .. } => Some(*reason),
            Self::Malformed(error) => Some(UpstreamError::of_http1(*error)),
            Self::Http2(error) => Some(UpstreamError::of_http2(error)),
            Self::RequestBody(_) | Self::NoProtocols => None,
        }
    }
}

/// Bytes to read at once, to begin with and at most: 64 KiB at a time are fast, and memory for few.
const READ: usize = 8 << 10;
const MAX_READ: usize = 64 << 10;

/// How much of a request's body is kept so that it can be sent again, bytes; larger ones are not.
const KEEP: usize = 64 << 10;

/// Parts of a body up to this size, bytes, are copied behind the head, for one plain write is faster than a vectored one.
const COPY: usize = 4 << 10;

impl Connection {
    /// `offer` is what the target may choose from, where it may.
    pub async fn open(
        endpoint: Endpoint,
        upstream: &Upstream,
        offer: Offer,
        stats: Arc<WorkerStats>,
        permit: Permit,
    ) -> Result<Box<Self>, ConnectError> {
        let stream = connect(endpoint, upstream.tls.as_deref(), offer, upstream.connect_timeout).await?;
        if upstream.protocol == UpstreamProtocol::Auto && stream.agreed() == Some(HTTP2) {
            return Err(ConnectError::OtherProtocol);
        }
        stats.upstream_connections.add(1);
        let buffer = BytesMut::with_capacity(READ);
        Ok(Box::new(Self { endpoint, stream, buffer, read_size: READ, answer: Answer::Done, stats, permit }))
    }

    /// Of the upstream that it was made for.
    #[inline]
    pub fn load(&self) -> &Arc<Load> {
        self.permit.load()
    }

    /// Sends a request, and waits for the head of its answer, which is taken up to `limits`, and takes the memory of `headers`. The
    /// request's body may still be on its way then: see [`Outgoing::is_done`].
    ///
    /// Dropping the future leaves the connection useless.
    pub async fn send(
        &mut self,
        request: &mut Outgoing,
        limits: ResponseLimits,
        headers: &mut HeaderMap,
    ) -> Result<Head, ExchangeError> {
        self.answer = Answer::Expected;
        let mut answered = false;
        // How much of the head has been looked at.
        let mut seen = 0;
        poll_fn(|cx| {
            // A target that takes no more may have answered already, or still do so.
            if let Poll::Ready(Err(error)) = request.poll_write(&mut self.stream, &self.stats, cx) {
                return Poll::Ready(Err(ExchangeError::RequestBody(error)));
            }
            loop {
                if answered && http1::may_be_whole(&self.buffer, seen, limits) {
                    let Outgoing { method, switches, .. } = request;
                    if let Some(head) =
                        http1::parse_head(&mut self.buffer, method, *switches, limits, headers)?
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
                Framing::Length(0) if keep_alive => Answer::Done,
                Framing::Length(0) => Answer::Last,
                framing => Answer::Body { framing, keep_alive },
            };
            head
        })
    }

    /// Reads on in the answer's body.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let Answer::Body { framing, keep_alive } = &mut self.answer else {
            return Poll::Ready(match self.answer {
                Answer::Done | Answer::Last => None,
                Answer::Expected | Answer::Body { .. } => Some(Err(ExchangeError::closed(true, Ok(0)))),
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
                            self.answer = if *keep_alive { Answer::Done } else { Answer::Last };
                        }
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    None
                }
                Framing::Chunked(chunked) => {
                    let decoded = chunked.decode(&mut self.buffer).map_err(Malformed::from)?;
                    if chunked.is_end() {
                        self.answer = if *keep_alive { Answer::Done } else { Answer::Last };
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
            // The connection is borrowed in parts.
            let filled = fill(&mut self.stream, &mut self.buffer, &mut self.read_size, &self.stats, cx);
            match ready!(filled) {
                Ok(1..) => {}
                Ok(0) if *framing == Framing::Close => {
                    self.answer = Answer::Last;
                    return Poll::Ready(None);
                }
                ended => {
                    self.answer = Answer::Expected;
                    return Poll::Ready(Some(Err(ExchangeError::closed(true, ended))));
                }
            }
        }
    }

    /// What is left of it when both sides speak something else from now on.
    #[expect(clippy::boxed_local, reason = "it comes in a box")]
    fn into_switched(self: Box<Self>) -> Switched {
        let Self { stream, buffer, stats, permit, .. } = *self;
        Switched::connection(stream, buffer, stats, permit)
    }

    /// Whether all of the answer's body was taken.
    #[inline]
    pub fn is_end(&self) -> bool {
        matches!(self.answer, Answer::Done | Answer::Last)
    }

    /// How much of the answer's body is to come.
    pub fn size_hint(&self) -> SizeHint {
        match &self.answer {
            Answer::Done | Answer::Last => SizeHint::with_exact(0),
            Answer::Body { framing: Framing::Length(left), .. } => SizeHint::with_exact(*left),
            Answer::Body { .. } | Answer::Expected => SizeHint::default(),
        }
    }

    /// Whether it can take another request: the last exchange is over, and the target has not closed it, as far as is
    /// known without a system call when nothing has happened.
    #[inline]
    pub fn is_alive(&mut self) -> bool {
        if !matches!(self.answer, Answer::Done) || !self.buffer.is_empty() {
            return false;
        }
        self.stream.is_quiet()
    }

    /// Gives up the memory for reading, of a connection that is idle.
    pub fn rest(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
            self.read_size = READ;
        }
    }

    /// Lets the rest of `request` be written by a task of its own, while the answer is read.
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
                // Who reads the answer is not to take the end of the connection for its.
                if matches!(connection.answer, Answer::Body { .. }) {
                    connection.answer = Answer::Expected;
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

/// Makes a connection that bytes can be sent over, TLS included, in so much time.
pub(super) async fn connect(
    endpoint: Endpoint,
    tls: Option<&UpstreamTls>,
    offer: Offer,
    timeout: Duration,
) -> Result<Stream, ConnectError> {
    let deadline = tokio::time::Instant::now() + timeout;
    let refused = |error| ConnectError::Refused(Arc::new(error));
    let connected = timeout_at(deadline, TcpStream::connect(endpoint.address)).await;
    let stream =
        connected.map_err(|_| ConnectError::Timeout)?.map_err(|error| match is_for_want(&error) {
            true => ConnectError::NoRoom(Arc::new(error)),
            false => refused(error),
        })?;
    stream.set_nodelay(true).map_err(refused)?;
    let Some(tls) = tls else { return Ok(Stream::Plain(stream)) };
    // In a box of its own, which those that speak in the clear do without.
    let shaken = timeout_at(deadline, Box::pin(tls.connect(endpoint.settings, offer, stream))).await;
    let stream = shaken.map_err(|_| ConnectError::TlsTimeout)?;
    stream.map(Stream::Tls).map_err(|error| ConnectError::Tls(Arc::new(error)))
}

/// Whether this host, and not the target, is why there is no connection.
fn is_for_want(error: &io::Error) -> bool {
    let wants = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    wants.iter().any(|want| error.raw_os_error() == Some(want.raw_os_error()))
}

/// Reads what has come; 0 bytes are the end.
#[inline]
fn fill(
    stream: &mut Stream,
    buffer: &mut BytesMut,
    size: &mut usize,
    stats: &WorkerStats,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if buffer.capacity() - buffer.len() < *size / 2 {
        // The memory is used again when nobody holds on to what was read before.
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

/// A connection whose answer is read while its request is still being written.
pub struct Shared {
    /// `None`: it was taken out.
    connection: Option<Rc<RefCell<Box<Connection>>>>,
    /// Writes.
    task: AbortHandle,
    /// Whether the target has taken all of the request.
    in_step: Rc<Cell<bool>>,
}

impl Shared {
    /// Does something with the connection; `None`: it was taken out.
    fn with<T>(&self, f: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        self.connection.as_ref().map(|connection| f(&mut connection.borrow_mut()))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The body of an answer, with the connection it comes over.
pub enum AnswerBody {
    Own(Box<Connection>),
    Shared(Shared),
    Http2(Box<http2::Answer>),
}

impl AnswerBody {
    #[inline]
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        match self {
            Self::Own(connection) => connection.poll_body(cx),
            Self::Shared(shared) => {
                shared.with(|connection| connection.poll_body(cx)).unwrap_or(Poll::Ready(None))
            }
            Self::Http2(answer) => answer.poll(cx),
        }
    }

    #[inline]
    pub fn is_end(&self) -> bool {
        match self {
            Self::Own(connection) => connection.is_end(),
            Self::Shared(shared) => shared.with(|connection| connection.is_end()).unwrap_or(true),
            Self::Http2(answer) => answer.is_end(),
        }
    }

    /// The connection, if it can carry another request once the answer has been taken.
    #[inline]
    pub fn into_connection(self) -> Option<Box<Connection>> {
        match self {
            Self::Own(connection) => Some(connection),
            Self::Shared(mut shared) if shared.in_step.get() => {
                Rc::try_unwrap(shared.connection.take()?).ok().map(RefCell::into_inner)
            }
            Self::Shared(_) | Self::Http2(_) => None,
        }
    }

    /// What is left of it when both sides speak something else from now on.
    pub fn into_switched(self) -> Option<Switched> {
        match self {
            Self::Http2(answer) => answer.into_switched(),
            Self::Own(_) | Self::Shared(_) => self.into_connection().map(Connection::into_switched),
        }
    }

    pub fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(connection) => connection.size_hint(),
            Self::Shared(shared) => shared.with(|connection| connection.size_hint()).unwrap_or_default(),
            Self::Http2(answer) => answer.size_hint(),
        }
    }
}

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
            framing,
            body,
            state: Sending::Fresh,
            kept: None,
            http2: None,
            spare: None,
        }
    }

    /// The same for a target that speaks HTTP/2, with all that is in `head`. `None`: the head has no form there.
    pub fn http2(head: &mut request::Parts, mut body: RequestBody, scheme: &Scheme) -> Option<Self> {
        let method = head.method.clone();
        let sender = Sender::new(head, &body, scheme)?;
        // For a target that says that it has not looked at it.
        body.keep(KEEP);
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
            framing: RequestFraming::None,
            body,
            state: Sending::Fresh,
            kept: None,
            http2: Some(Box::new(sender)),
            spare: None,
        })
    }

    /// Lets the target of a request over HTTP/2 switch to `protocol`. `None`: the request cannot say so.
    pub fn switch_over_http2(&mut self, protocol: &HeaderValue) -> Option<()> {
        self.switches = true;
        self.http2.as_mut()?.switch_to(protocol)
    }

    /// Lets it go to a target that speaks HTTP/2, too: see [`Outgoing::speak`]. All that is in `head` is taken. `None`: it has
    /// no form there.
    pub fn or_http2(&mut self, head: &mut request::Parts, scheme: &Scheme) -> Option<()> {
        self.spare = Some(Box::new(Sender::new(head, &self.body, scheme)?));
        self.keep();
        Some(())
    }

    /// Says what is spoken from now on, of a request that can go either way and is at its beginning.
    pub fn speak(&mut self, http2: bool) {
        if http2 != self.http2.is_some() {
            std::mem::swap(&mut self.http2, &mut self.spare);
        }
    }

    /// The buffer, for the next request.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    /// Whether all of it was written, or as much as the target takes.
    #[inline]
    pub fn is_done(&self) -> bool {
        matches!(self.state, Sending::Done | Sending::Broken)
    }

    /// Whether the target has taken all of it, so that the connection is in step.
    #[inline]
    pub fn is_sent(&self) -> bool {
        if let Some(sender) = &self.http2 {
            return sender.is_done();
        }
        self.state == Sending::Done
    }

    /// Lets it be sent again after its body was taken, which is kept while it passes.
    pub fn keep(&mut self) {
        // Without a body the head stays where it is.
        if self.framing != RequestFraming::None && self.kept.is_none() {
            self.body.keep(KEEP);
            self.kept = Some(Kept { head: self.buffer.as_slice().into(), framing: self.framing });
        }
    }

    /// Whether the target may have seen some of it.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Begins anew, for another connection, if that is possible: nothing was written, or it is repeatable, and its body is
    /// still whole.
    pub fn rewind(&mut self) -> bool {
        (self.repeatable || !self.begun) && self.restart()
    }

    /// Begins anew whatever the target has seen, if its body is still whole.
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
            self.taken = false;
        }
        self.written = 0;
        self.begun = false;
        self.state = Sending::Fresh;
        true
    }

    /// Writes as much as the target takes. Ready when there is no more to write.
    #[inline]
    fn poll_write(
        &mut self,
        stream: &mut Stream,
        stats: &WorkerStats,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), RequestBodyError>> {
        loop {
            if self.is_done() {
                return Poll::Ready(Ok(()));
            }
            // The first part of a body that is there already goes with the head.
            if self.is_flushed() || self.state == Sending::Fresh && self.framing != RequestFraming::None {
                self.state = Sending::Begun;
                if self.framing == RequestFraming::None {
                    self.state = match ready!(Pin::new(&mut *stream).poll_flush(cx)) {
                        Ok(()) => Sending::Done,
                        Err(_) => Sending::Broken,
                    };
                } else if self.poll_next(cx)?.is_pending() && self.is_flushed() {
                    // What is left in it goes on when the socket or the body does.
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
                // What the target has to say of it is in the answer, or in the lack of one.
                Ok(0) | Err(_) => self.state = Sending::Broken,
            }
        }
    }

    fn is_flushed(&self) -> bool {
        self.written == self.buffer.len() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Takes the next part of the body behind what is to be written.
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

    /// There is no more of the body.
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
