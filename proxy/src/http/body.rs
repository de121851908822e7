//! Bodies on their way through: streamed as they come, without a box around them.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::exchange::{Exchange, Idle};
use super::head;
use super::http1;
use super::problem;
use super::tunnel::Tunnel;
use crate::deadlines::{Deadline, Deadlines};
use crate::http2;
use crate::telemetry::Flag;
use crate::upstream::AnswerBody;

/// A body as the client sends it.
#[derive(Debug)]
pub enum ClientBody {
    None,
    Http1(http1::Incoming),
    Http2(http2::Incoming),
}

/// The body of a request, on its way to a target.
#[derive(Debug)]
pub enum RequestBody {
    Empty,
    /// What a plugin wanted to see whole.
    Whole(Option<Bytes>),
    /// The same, when it may be sent again.
    Replay {
        bytes: Bytes,
        next: Option<Bytes>,
    },
    Stream(Box<Stream>),
}

/// A body as it comes from the client.
#[derive(Debug)]
pub struct Stream {
    incoming: ClientBody,
    /// Bytes that may still come; `u64::MAX`: any number.
    left: u64,
    patience: Patience,
    progress: Rc<Progress>,
    /// Told of what comes.
    idle: Option<Rc<Idle>>,
    /// For sending it again.
    kept: Option<Kept>,
    /// Whether any of it has passed; if not, it can be sent again although it is not kept.
    begun: bool,
    /// For sending a copy elsewhere.
    copy: Option<Copy>,
}

/// What has passed of a body, up to a cap.
#[derive(Debug)]
struct Kept {
    cap: usize,
    size: usize,
    parts: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    /// How many of the parts have passed again.
    replayed: usize,
    /// The client has sent all.
    ended: bool,
    /// It was larger than the cap.
    lost: bool,
}

/// A copy of a body that is made while it passes, and what becomes of it.
struct Copy {
    parts: Vec<Bytes>,
    size: usize,
    cap: usize,
    /// Called with the whole; dropped when it is larger than the cap, or the client breaks off.
    done: Box<dyn FnOnce(Bytes)>,
}

/// How long the next part of a body is waited for. A body that is there at once needs no deadline, so that is made when it
/// is not.
#[derive(Debug)]
pub struct Patience {
    deadlines: Rc<Deadlines>,
    timeout: Duration,
    deadline: Option<Deadline>,
    waiting: bool,
}

/// How far a request's body has come, for those who no longer have it in their hands.
#[derive(Debug, Default)]
pub struct Progress {
    pub bytes: Cell<u64>,
    pub state: Cell<State>,
    /// Since when it is the client that is waited for.
    awaited: Cell<Option<Instant>>,
    /// How long it was, before that.
    waited: Cell<Duration>,
}

impl Progress {
    /// How long the client was waited for, all in all.
    pub fn waited(&self, now: Instant) -> Duration {
        let current = self.awaited.get().map(|since| now.saturating_duration_since(since));
        self.waited.get() + current.unwrap_or_default()
    }

    fn awaits(&self) {
        if self.awaited.get().is_none() {
            self.awaited.set(Some(Instant::now()));
        }
    }

    #[inline]
    fn moves(&self) {
        if self.awaited.get().is_some() {
            self.waited.set(self.waited(Instant::now()));
            self.awaited.set(None);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// None of it was read.
    #[default]
    Untouched,
    Streaming,
    /// All of it was read.
    Done,
    /// It is larger than the listener allows.
    TooLarge,
    /// The client broke off.
    Broken,
}

/// Why a request's body ended early.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    #[error("the request's body is larger than the listener allows")]
    TooLarge,
    #[error("the client does not send on")]
    Late,
    #[error("the client broke off")]
    Client(#[source] http1::IncomingError),
    #[error("the client broke off")]
    ClientStream(#[source] h2::Error),
}

impl ClientBody {
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        match self {
            Self::None => Poll::Ready(None),
            Self::Http1(incoming) => incoming.poll(cx).map_err(RequestBodyError::Client),
            Self::Http2(incoming) => incoming.poll(cx).map_err(RequestBodyError::ClientStream),
        }
    }

    #[inline]
    pub fn is_end(&self) -> bool {
        match self {
            Self::None => true,
            Self::Http1(incoming) => incoming.is_end(),
            Self::Http2(incoming) => incoming.is_end(),
        }
    }

    pub fn size_hint(&self) -> SizeHint {
        match self {
            Self::None => SizeHint::with_exact(0),
            Self::Http1(incoming) => incoming.size_hint(),
            Self::Http2(incoming) => incoming.size_hint(),
        }
    }
}

impl RequestBody {
    /// Streams `incoming`, up to `limit` bytes of it.
    pub fn stream(
        incoming: ClientBody,
        limit: Option<u64>,
        patience: Patience,
        progress: Rc<Progress>,
        idle: Option<Rc<Idle>>,
    ) -> Self {
        let left = limit.unwrap_or(u64::MAX);
        let stream =
            Stream { incoming, left, patience, progress, idle, kept: None, begun: false, copy: None };
        Self::Stream(Box::new(stream))
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty | Self::Whole(None))
    }

    /// Keeps up to `cap` bytes of it while they pass, so that it can be sent again.
    pub fn keep(&mut self, cap: usize) {
        match self {
            Self::Empty | Self::Replay { .. } => {}
            Self::Whole(bytes) => {
                let bytes = bytes.take().unwrap_or_default();
                *self = Self::Replay { next: Some(bytes.clone()), bytes };
            }
            Self::Stream(stream) => {
                if stream.incoming.size_hint().lower() <= cap as u64 {
                    stream.kept = Some(Kept {
                        cap,
                        size: 0,
                        parts: Vec::new(),
                        trailers: None,
                        replayed: 0,
                        ended: false,
                        lost: false,
                    });
                }
            }
        }
    }

    /// Lets what has passed pass again. `false`: something has, and was not kept.
    pub fn rewind(&mut self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(_) => false,
            Self::Replay { bytes, next } => {
                *next = Some(bytes.clone());
                true
            }
            Self::Stream(stream) => match &mut stream.kept {
                Some(kept) if !kept.lost => {
                    kept.replayed = 0;
                    true
                }
                _ => !stream.begun,
            },
        }
    }

    /// It is not going to be sent again: what passes from now on is not kept.
    pub fn forget(&mut self) {
        if let Self::Stream(stream) = self
            && stream.kept.as_ref().is_some_and(|kept| kept.is_replayed() && !kept.ended)
        {
            stream.kept = None;
        }
    }

    /// Calls `done` with a copy of it, when all of it has passed and it is not larger than `cap`.
    pub fn copy(&mut self, cap: usize, done: impl FnOnce(Bytes) + 'static) {
        match self {
            Self::Empty | Self::Whole(None) => done(Bytes::new()),
            Self::Whole(Some(bytes)) | Self::Replay { bytes, .. } => {
                if bytes.len() <= cap {
                    done(bytes.clone());
                }
            }
            Self::Stream(stream) => {
                if stream.incoming.size_hint().lower() <= cap as u64 {
                    stream.copy = Some(Copy { parts: Vec::new(), size: 0, cap, done: Box::new(done) });
                }
            }
        }
    }
}

impl Kept {
    /// Notes what passes.
    fn note(&mut self, frame: Option<&Frame<Bytes>>) {
        match frame {
            None => self.ended = true,
            Some(frame) => {
                if let Some(data) = frame.data_ref() {
                    self.size += data.len();
                    if self.size > self.cap {
                        self.lost = true;
                        self.parts = Vec::new();
                    } else if !self.lost {
                        self.parts.push(data.clone());
                    }
                } else {
                    self.trailers = frame.trailers_ref().cloned();
                }
            }
        }
        self.replayed = self.parts.len() + usize::from(self.trailers.is_some());
    }

    /// What passes again.
    fn replay(&mut self) -> Option<Frame<Bytes>> {
        let index = self.replayed;
        let frame = match self.parts.get(index) {
            Some(part) => Frame::data(part.clone()),
            None if index == self.parts.len() => Frame::trailers(self.trailers.clone()?),
            None => return None,
        };
        self.replayed += 1;
        Some(frame)
    }

    /// Whether nothing is to pass again.
    fn is_replayed(&self) -> bool {
        self.replayed >= self.parts.len() + usize::from(self.trailers.is_some())
    }
}

impl Copy {
    /// Notes what passes. `None`: it is too large.
    fn note(mut self, data: &Bytes) -> Option<Self> {
        self.size += data.len();
        self.parts.push(data.clone());
        (self.size <= self.cap).then_some(self)
    }

    fn finish(self) {
        (self.done)(joined(self.parts));
    }
}

impl std::fmt::Debug for Copy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copy").field("size", &self.size).finish_non_exhaustive()
    }
}

/// Parts of a body in one piece.
pub fn joined(mut parts: Vec<Bytes>) -> Bytes {
    match parts.as_mut_slice() {
        [] => Bytes::new(),
        [only] => std::mem::take(only),
        several => {
            let mut whole = BytesMut::with_capacity(several.iter().map(Bytes::len).sum());
            several.iter().for_each(|part| whole.extend_from_slice(part));
            whole.freeze()
        }
    }
}

impl Patience {
    pub fn new(deadlines: &Rc<Deadlines>, timeout: Duration) -> Self {
        Self { deadlines: Rc::clone(deadlines), timeout, deadline: None, waiting: false }
    }

    /// Whether nothing came for too long; else the task is woken when that is so.
    fn is_over(&mut self, cx: &Context<'_>) -> bool {
        let deadline = self.deadline.get_or_insert_with(|| self.deadlines.add());
        if !std::mem::replace(&mut self.waiting, true) {
            deadline.set(Some(Instant::now() + self.timeout));
        }
        deadline.register(cx.waker());
        deadline.passed()
    }
}

impl Stream {
    /// What has not been taken of it.
    pub fn into_incoming(self: Box<Self>) -> ClientBody {
        self.incoming
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        if let Some(kept) = &mut self.kept {
            if let Some(frame) = kept.replay() {
                return Poll::Ready(Some(Ok(frame)));
            }
            if kept.ended {
                return Poll::Ready(None);
            }
        }
        let frame = match self.incoming.poll_frame(cx) {
            Poll::Pending => {
                if self.progress.state.get() == State::Untouched {
                    self.progress.state.set(State::Streaming);
                }
                if !self.patience.is_over(cx) {
                    self.progress.awaits();
                    return Poll::Pending;
                }
                self.progress.state.set(State::Broken);
                return Poll::Ready(Some(Err(RequestBodyError::Late)));
            }
            Poll::Ready(frame) => frame,
        };
        if let Some(idle) = &self.idle {
            idle.moved(Instant::now());
        }
        self.patience.waiting = false;
        self.progress.moves();
        self.begun = true;
        let result = match frame {
            None => {
                self.progress.state.set(State::Done);
                self.passed(None);
                None
            }
            Some(Err(error)) => {
                self.progress.state.set(State::Broken);
                Some(Err(error))
            }
            Some(Ok(frame)) => {
                let size = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.progress.bytes.set(self.progress.bytes.get() + size);
                if size > self.left {
                    self.progress.state.set(State::TooLarge);
                    Some(Err(RequestBodyError::TooLarge))
                } else {
                    self.left -= size;
                    let done = self.incoming.is_end();
                    self.progress.state.set(if done { State::Done } else { State::Streaming });
                    self.passed(Some(&frame));
                    if done {
                        self.passed(None);
                    }
                    Some(Ok(frame))
                }
            }
        };
        Poll::Ready(result)
    }

    /// `None`: all of it has passed.
    #[inline]
    fn passed(&mut self, frame: Option<&Frame<Bytes>>) {
        if let Some(kept) = &mut self.kept {
            kept.note(frame);
        }
        if self.copy.is_some() {
            self.copy = match (self.copy.take(), frame) {
                (Some(copy), Some(frame)) => match frame.data_ref() {
                    Some(data) => copy.note(data),
                    None => Some(copy),
                },
                (Some(copy), None) => {
                    copy.finish();
                    None
                }
                (None, _) => None,
            };
        }
    }

    fn is_end(&self) -> bool {
        match &self.kept {
            Some(kept) => kept.is_replayed() && (kept.ended || self.incoming.is_end()),
            None => self.incoming.is_end(),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) | Self::Replay { next: bytes, .. } => {
                Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Stream(stream) => stream.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Whole(None) => true,
            Self::Whole(Some(bytes)) => bytes.is_empty(),
            Self::Replay { next, .. } => next.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream(stream) => stream.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Whole(None) => SizeHint::with_exact(0),
            Self::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Replay { next, .. } => SizeHint::with_exact(next.as_ref().map_or(0, Bytes::len) as u64),
            Self::Stream(stream) => stream.incoming.size_hint(),
        }
    }
}

/// The body of an answer, on its way to the client. It ends the exchange it belongs to.
pub struct ResponseBody {
    source: Source,
    /// `None`: the exchange is over.
    exchange: Option<Box<Exchange>>,
}

enum Source {
    Empty,
    Whole(Bytes),
    /// From a target.
    Target(AnswerBody),
    /// What comes is no body, but what both sides have agreed to switch to, over a stream of HTTP/2.
    Tunnel(Box<Tunnel>),
}

/// The answer cannot be finished: the connection to the client breaks off, for there is no other way to say so.
#[derive(Debug, thiserror::Error)]
#[error("the answer ended early")]
pub struct Aborted;

impl ResponseBody {
    /// An answer of the proxy itself.
    pub fn whole(bytes: Bytes, exchange: Box<Exchange>) -> Self {
        if bytes.is_empty() {
            exchange.complete();
            return Self { source: Source::Empty, exchange: None };
        }
        Self { source: Source::Whole(bytes), exchange: Some(exchange) }
    }

    /// Of an answer that has none, and whose exchange goes on elsewhere.
    pub fn none() -> Self {
        Self { source: Source::Empty, exchange: None }
    }

    /// Of an answer behind which the stream is not for messages any more.
    pub(super) fn tunnel(tunnel: Box<Tunnel>) -> Self {
        Self { source: Source::Tunnel(tunnel), exchange: None }
    }

    /// What takes the stream.
    #[inline]
    pub(super) fn take_tunnel(&mut self) -> Option<Box<Tunnel>> {
        match std::mem::replace(&mut self.source, Source::Empty) {
            Source::Tunnel(tunnel) => Some(tunnel),
            other => {
                self.source = other;
                None
            }
        }
    }

    /// The deadline of its exchange, of HTTP/2, unless that is over.
    #[inline]
    pub fn deadline(&self) -> Option<&Rc<Deadline>> {
        self.exchange.as_ref()?.deadline()
    }

    /// What a target answers.
    pub fn target(body: AnswerBody, mut exchange: Box<Exchange>) -> Self {
        if body.is_end() {
            exchange.give_back(body);
            exchange.complete();
            return Self { source: Source::Empty, exchange: None };
        }
        Self { source: Source::Target(body), exchange: Some(exchange) }
    }

    fn complete(&mut self) {
        let source = std::mem::replace(&mut self.source, Source::Empty);
        if let Some(mut exchange) = self.exchange.take() {
            if let Source::Target(body) = source {
                exchange.give_back(body);
            }
            exchange.complete();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        let this = self.get_mut();
        let Some(exchange) = &mut this.exchange else { return Poll::Ready(None) };
        let frame = match &mut this.source {
            Source::Empty | Source::Tunnel(_) => None,
            Source::Whole(bytes) => Some(Ok(Frame::data(std::mem::take(bytes)))),
            Source::Target(body) => match body.poll(cx) {
                Poll::Ready(frame) => {
                    if let Some(idle) = &exchange.idle {
                        idle.moved(Instant::now());
                    }
                    frame.map(|frame| {
                        frame.map_err(|error| {
                            exchange.upstream_error = error.reason();
                            Aborted
                        })
                    })
                }
                Poll::Pending if exchange.is_late(cx) => {
                    let late = exchange.lateness();
                    // A reset would leave a client of gRPC to guess.
                    let told = exchange.is_grpc && exchange.downstream.http2.get();
                    let trailers = told.then(|| problem::grpc_trailers(late));
                    if let Some(trailers) = &trailers {
                        exchange.note_grpc_status(trailers);
                    }
                    exchange.fail(late.flag());
                    this.exchange = None;
                    return Poll::Ready(Some(trailers.map(Frame::trailers).ok_or(Aborted)));
                }
                Poll::Pending => {
                    exchange.goes_on();
                    return Poll::Pending;
                }
            },
        };
        match frame {
            None => {
                this.complete();
                Poll::Ready(None)
            }
            Some(Ok(mut frame)) => {
                exchange.bytes_out += frame.data_ref().map_or(0, |data| data.len() as u64);
                let ended = match &this.source {
                    Source::Empty | Source::Whole(_) | Source::Tunnel(_) => true,
                    Source::Target(body) => body.is_end(),
                };
                if let Some(trailers) = frame.trailers_mut() {
                    exchange.note_grpc_status(trailers);
                    head::remove_forbidden_trailers(trailers);
                }
                if ended || frame.is_trailers() {
                    this.complete();
                } else {
                    exchange.goes_on();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(_)) => {
                // A client that breaks its request off breaks the stream to the target off, too.
                let progress = exchange.progress.as_ref().map(|progress| progress.state.get());
                let by_client = matches!(progress, Some(State::Broken | State::TooLarge));
                exchange.fail(if by_client { Flag::DownstreamClosed } else { Flag::UpstreamReset });
                this.exchange = None;
                Poll::Ready(Some(Err(Aborted)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.exchange.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty | Source::Tunnel(_) => SizeHint::with_exact(0),
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Target(body) => body.size_hint(),
        }
    }
}
