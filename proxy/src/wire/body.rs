//! Request bodies in transit: streamed as they arrive, without boxing.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use signalbox_config::Name;
use signalbox_plugin::{Abort, BodyFilter, Outcomes};

use super::http1::link;
use super::http2;
use super::splice::Transfer;
use crate::core::deadlines::{Deadline, Deadlines};
use crate::core::failure::Failure;
use crate::core::filters::{FilterError, FilteredError, Filters};
use crate::core::idle::IdleTimeout;

/// A body as the client sends it.
#[derive(Debug)]
pub enum ClientBody {
    None,
    Http1(link::Incoming),
    Http2(http2::Incoming),
}

/// The body of a request, on its way to a target.
#[derive(Debug)]
pub enum RequestBody {
    Empty,
    /// A body that a plugin has buffered.
    Whole(Option<Bytes>),
    /// A buffered body that may be sent again.
    Replay {
        bytes: Bytes,
        next: Option<Bytes>,
    },
    Stream(Box<Stream>),
    /// A body that passes filters of plugins.
    Filtered(Box<FilteredBody>),
}

/// A body that passes filters of plugins.
#[derive(Debug)]
pub struct FilteredBody {
    body: RequestBody,
    filters: Filters,
    aborted: AbortedBy,
    /// True once a part has passed: the filters cannot start over.
    begun: bool,
}

/// Where the plugin stands whose filter has ended a body, with its answer; without one it has panicked.
pub type AbortedBy = Rc<RefCell<Option<(Name, Option<Abort>)>>>;

/// A body as it comes from the client.
#[derive(Debug)]
pub struct Stream {
    incoming: ClientBody,
    /// The number of bytes that may still arrive; `u64::MAX`: no limit.
    left: u64,
    patience: BodyTimeout,
    progress: Rc<Progress>,
    /// The idle timeout, which every received part extends.
    idle: Option<Rc<IdleTimeout>>,
    /// The buffer for sending it again.
    kept: Option<ReplayBuffer>,
    /// True if any part has passed; if not, it can be sent again without a buffer.
    begun: bool,
    /// The buffer for a mirrored request.
    copy: Option<MirrorBuffer>,
}

/// The parts of a body that have passed, up to a limit.
#[derive(Debug)]
struct ReplayBuffer {
    cap: usize,
    size: usize,
    parts: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    /// The number of parts that were replayed.
    replayed: usize,
    /// The client has sent everything.
    ended: bool,
    /// The body exceeded the limit.
    lost: bool,
}

/// A copy of a body for a mirrored request, and the function that gets it.
struct MirrorBuffer {
    parts: Vec<Bytes>,
    size: usize,
    cap: usize,
    /// Called with the complete body; dropped if the body exceeds the limit, or ends early.
    done: Box<dyn FnOnce(Bytes)>,
}

/// The timeout for the next part of a body. Its deadline is created only when a part does not arrive at once.
#[derive(Debug)]
pub struct BodyTimeout {
    deadlines: Rc<Deadlines>,
    timeout: Duration,
    deadline: Option<Deadline>,
    waiting: bool,
}

/// The progress of a request body, for parties that do not own the body.
#[derive(Debug, Default)]
pub struct Progress {
    pub bytes: Cell<u64>,
    pub state: Cell<State>,
    /// The time since when the client's next part is awaited.
    awaited: Cell<Option<Instant>>,
    /// The total time of earlier waits.
    waited: Cell<Duration>,
}

impl Progress {
    /// The total time spent waiting for the client.
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
    /// Nothing was read.
    #[default]
    Untouched,
    Streaming,
    /// The whole body was read.
    Done,
    /// The body exceeds the listener's limit.
    TooLarge,
    /// The client ended it early.
    Broken,
}

/// The reason why a request body ended early.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    #[error("the request's body is larger than the listener allows")]
    TooLarge,
    #[error("the client stopped sending")]
    Late,
    #[error("the client aborted the request")]
    Client(#[source] link::IncomingError),
    #[error("the client aborted the request")]
    ClientStream(#[source] h2::Error),
    #[error("a plugin ended the request's body")]
    PluginAborted,
    #[error("a plugin panicked")]
    PluginPanicked,
}

impl From<&RequestBodyError> for Failure {
    fn from(error: &RequestBodyError) -> Self {
        match error {
            RequestBodyError::TooLarge => Self::BodyTooLarge,
            RequestBodyError::Late => Self::BodyTimeout,
            RequestBodyError::Client(_) | RequestBodyError::ClientStream(_) => Self::ClientBroke,
            RequestBodyError::PluginAborted => Self::PluginAborted,
            RequestBodyError::PluginPanicked => Self::PluginPanicked,
        }
    }
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
    /// Streams `incoming`, up to `limit` bytes.
    pub fn stream(
        incoming: ClientBody,
        limit: Option<u64>,
        patience: BodyTimeout,
        progress: Rc<Progress>,
        idle: Option<Rc<IdleTimeout>>,
    ) -> Self {
        let left = limit.unwrap_or(u64::MAX);
        let stream =
            Stream { incoming, left, patience, progress, idle, kept: None, begun: false, copy: None };
        Self::Stream(Box::new(stream))
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty | Self::Whole(None))
    }

    /// Lets the body pass a filter of `plugin`. What ends the body early is left in `aborted`.
    pub fn add_filter(
        &mut self,
        filter: Box<dyn BodyFilter>,
        plugin: &Name,
        outcomes: &Outcomes,
        aborted: &AbortedBy,
    ) {
        if let Self::Filtered(filtered) = self
            && !filtered.filters.has_passed()
        {
            filtered.filters.push(filter, plugin, outcomes);
            return;
        }
        let (body, aborted) = (std::mem::replace(self, Self::Empty), Rc::clone(aborted));
        let mut filters = Filters::default();
        filters.push(filter, plugin, outcomes);
        *self = Self::Filtered(Box::new(FilteredBody { body, filters, aborted, begun: false }));
    }

    /// Puts a part that was read in front of the rest again.
    pub fn put_back(&mut self, part: Bytes) {
        let mut filters = Filters::default();
        if !part.is_empty() {
            filters.begin_with(part);
        }
        let body = std::mem::replace(self, Self::Empty);
        *self =
            Self::Filtered(Box::new(FilteredBody { body, filters, aborted: Rc::default(), begun: false }));
    }

    /// Splices the next part. `None`: it has to be copied.
    pub fn poll_splice(
        &mut self,
        transfer: &mut Transfer,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<usize>, RequestBodyError>> {
        match self {
            Self::Stream(stream) => stream.poll_splice(transfer, cx),
            Self::Empty | Self::Whole(_) | Self::Replay { .. } | Self::Filtered(_) => Poll::Ready(Ok(None)),
        }
    }

    /// Buffers up to `cap` bytes while they pass, so that the body can be sent again.
    pub fn keep(&mut self, cap: usize) {
        match self {
            // Bytes that passed a filter are not kept, so they are not sent again.
            Self::Empty | Self::Replay { .. } | Self::Filtered(_) => {}
            Self::Whole(bytes) => {
                let bytes = bytes.take().unwrap_or_default();
                *self = Self::Replay { next: Some(bytes.clone()), bytes };
            }
            Self::Stream(stream) => {
                if stream.incoming.size_hint().lower() <= cap as u64 {
                    stream.kept = Some(ReplayBuffer {
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

    /// Prepares for sending the body again. Returns `false` if a part that has passed was not kept.
    pub fn rewind(&mut self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(_) => false,
            Self::Filtered(filtered) => !filtered.begun,
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

    /// Stops buffering: the body will not be sent again.
    pub fn forget(&mut self) {
        if let Self::Stream(stream) = self
            && stream.kept.as_ref().is_some_and(|kept| kept.is_replayed() && !kept.ended)
        {
            stream.kept = None;
        }
    }

    /// Calls `done` with a copy of the body when it is complete, unless it exceeds `cap`.
    pub fn copy(&mut self, cap: usize, done: impl FnOnce(Bytes) + 'static) {
        match self {
            Self::Empty | Self::Whole(None) => done(Bytes::new()),
            Self::Whole(Some(bytes)) | Self::Replay { bytes, .. } => {
                if bytes.len() <= cap {
                    done(bytes.clone());
                }
            }
            // The copy would have to pass the filters, too.
            Self::Filtered(_) => drop(done),
            Self::Stream(stream) => {
                if stream.incoming.size_hint().lower() <= cap as u64 {
                    stream.copy =
                        Some(MirrorBuffer { parts: Vec::new(), size: 0, cap, done: Box::new(done) });
                }
            }
        }
    }
}

impl ReplayBuffer {
    /// Records a part that passes.
    fn record(&mut self, frame: Option<&Frame<Bytes>>) {
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

    /// The next part of a replay.
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

    /// True if nothing is left to replay.
    fn is_replayed(&self) -> bool {
        self.replayed >= self.parts.len() + usize::from(self.trailers.is_some())
    }
}

impl MirrorBuffer {
    /// Records a part that passes. Returns `None` if the copy becomes too large.
    fn push(mut self, data: &Bytes) -> Option<Self> {
        self.size += data.len();
        self.parts.push(data.clone());
        (self.size <= self.cap).then_some(self)
    }

    fn finish(self) {
        (self.done)(joined(self.parts));
    }
}

impl std::fmt::Debug for MirrorBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MirrorBuffer").field("size", &self.size).finish_non_exhaustive()
    }
}

/// Joins the parts of a body.
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

impl BodyTimeout {
    pub fn new(deadlines: &Rc<Deadlines>, timeout: Duration) -> Self {
        Self { deadlines: Rc::clone(deadlines), timeout, deadline: None, waiting: false }
    }

    /// True if the timeout has expired; otherwise the task is woken when it does.
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
    /// Returns the unread rest of the body.
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
        let Poll::Ready(frame) = self.incoming.poll_frame(cx) else {
            return self.poll_late(cx).map(|late| Some(Err(late)));
        };
        self.on_arrival();
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
                self.count(size).map_or_else(
                    |error| Some(Err(error)),
                    |done| {
                        self.passed(Some(&frame));
                        if done {
                            self.passed(None);
                        }
                        Some(Ok(frame))
                    },
                )
            }
        };
        Poll::Ready(result)
    }

    /// Splices the next part. `None`: it has to be copied, for the proxy keeps some of it, or it does not come as it is.
    fn poll_splice(
        &mut self,
        transfer: &mut Transfer,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<usize>, RequestBodyError>> {
        let ClientBody::Http1(incoming) = &mut self.incoming else { return Poll::Ready(Ok(None)) };
        if self.kept.is_some() || self.copy.is_some() || self.left == 0 {
            return Poll::Ready(Ok(None));
        }
        let Poll::Ready(spliced) = incoming.poll_splice(transfer, self.left, cx) else {
            return self.poll_late(cx).map(Err);
        };
        match spliced {
            Ok(None) => Poll::Ready(Ok(None)),
            Ok(Some(size)) => {
                self.on_arrival();
                Poll::Ready(self.count(size as u64).map(|_| Some(size)))
            }
            Err(error) => {
                self.on_arrival();
                self.progress.state.set(State::Broken);
                Poll::Ready(Err(RequestBodyError::Client(error)))
            }
        }
    }

    /// Ready once the client has sent nothing for too long.
    fn poll_late(&mut self, cx: &Context<'_>) -> Poll<RequestBodyError> {
        if self.progress.state.get() == State::Untouched {
            self.progress.state.set(State::Streaming);
        }
        if !self.patience.is_over(cx) {
            self.progress.awaits();
            return Poll::Pending;
        }
        self.progress.state.set(State::Broken);
        Poll::Ready(RequestBodyError::Late)
    }

    /// Something came of the client, or its end.
    fn on_arrival(&mut self) {
        if let Some(idle) = &self.idle {
            idle.moved(Instant::now());
        }
        self.patience.waiting = false;
        self.progress.moves();
        self.begun = true;
    }

    /// Counts a part of `size` bytes. Returns whether it was the last.
    fn count(&mut self, size: u64) -> Result<bool, RequestBodyError> {
        self.progress.bytes.set(self.progress.bytes.get() + size);
        if size > self.left {
            self.progress.state.set(State::TooLarge);
            return Err(RequestBodyError::TooLarge);
        }
        self.left -= size;
        let done = self.incoming.is_end();
        self.progress.state.set(if done { State::Done } else { State::Streaming });
        Ok(done)
    }

    /// Records a part that passes; `None`: the body is complete.
    #[inline]
    fn passed(&mut self, frame: Option<&Frame<Bytes>>) {
        if let Some(kept) = &mut self.kept {
            kept.record(frame);
        }
        if self.copy.is_some() {
            self.copy = match (self.copy.take(), frame) {
                (Some(copy), Some(frame)) => match frame.data_ref() {
                    Some(data) => copy.push(data),
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

impl FilteredBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let body = &mut self.body;
        let next = ready!(self.filters.poll(cx, |cx| Pin::new(&mut *body).poll_frame(cx)));
        self.begun = true;
        Poll::Ready(next.map(|next| {
            next.map_err(|error| match error {
                FilteredError::Source(error) => error,
                FilteredError::Filter(FilterError::Aborted(plugin, abort)) => {
                    self.aborted.replace(Some((plugin, Some(abort))));
                    RequestBodyError::PluginAborted
                }
                FilteredError::Filter(FilterError::Panicked(plugin)) => {
                    tracing::error!(%plugin, "a plugin panicked");
                    self.aborted.replace(Some((plugin, None)));
                    RequestBodyError::PluginPanicked
                }
            })
        }))
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
            Self::Filtered(filtered) => filtered.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Whole(None) => true,
            Self::Whole(Some(bytes)) => bytes.is_empty(),
            Self::Replay { next, .. } => next.as_ref().is_none_or(Bytes::is_empty),
            Self::Stream(stream) => stream.is_end(),
            Self::Filtered(filtered) => filtered.filters.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Whole(None) => SizeHint::with_exact(0),
            Self::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Replay { next, .. } => SizeHint::with_exact(next.as_ref().map_or(0, Bytes::len) as u64),
            Self::Stream(stream) => stream.incoming.size_hint(),
            Self::Filtered(_) => SizeHint::default(),
        }
    }
}
