//! Bodies on their way through a plugin, part by part.

use std::borrow::Cow;
use std::fmt;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, response};
use smallvec::SmallVec;

use crate::flow::Reply;

/// How a plugin wants to see a body.
#[non_exhaustive]
pub enum BodyWish {
    /// Not at all: it passes as it comes.
    Pass,
    /// Whole, in memory, up to this many bytes. A larger request is answered 413, and in the place of a larger response the
    /// client gets 502. Trailers are dropped.
    Buffered(usize),
    /// Its first bytes in memory, up to this many, before it is sent on. What the plugin leaves in their place is sent, and the rest
    /// follows as it comes; if there is one, the length is then unknown. Only for bodies of requests.
    Start(usize),
    /// Part by part. The length of the body is then unknown.
    Filter(Box<dyn BodyFilter>),
    /// Part by part, as it passes unchanged. The length of the body stays as it is. Only for bodies of responses.
    Observe(Box<dyn BodyObserver>),
}

/// Changes a body while it passes. It lives until the body has passed, on the thread of one worker.
///
/// It may hold back parts, and must bound what it holds. What it puts out is sent at once.
pub trait BodyFilter {
    /// Ready when the next of the other methods may be called, for one part of the body, a pause or its end. A filter that waits for
    /// something else than the body returns `Pending`, and wakes the task; the filters before it and the body then wait, too.
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    /// True if the head of the response waits until the first part of the body is put out, or the body ends: only until then can an
    /// [`Abort`] still have its reply. It has no effect on requests.
    fn holds_head(&self) -> bool {
        false
    }

    /// Changes the head that has waited.
    fn finish_head(&mut self, _head: &mut response::Parts) {}

    /// Takes a part of the body.
    fn on_data(&mut self, data: Bytes, out: &mut Output) -> Result<(), Abort>;

    /// Nothing more has come for now. A filter that collects its output, such as an encoder, puts out what it has, so that the
    /// receiver is not kept waiting by it.
    fn on_pause(&mut self, _out: &mut Output) -> Result<(), Abort> {
        Ok(())
    }

    /// The body is complete. `trailers` are those that come with it; what is there afterwards is sent on.
    fn on_end(&mut self, _trailers: &mut HeaderMap, _out: &mut Output) -> Result<(), Abort> {
        Ok(())
    }
}

/// Sees a body while it passes unchanged. It lives until the body has passed, on the thread of one worker. One that is dropped
/// before [`BodyObserver::on_end`] has seen a body that was broken off.
pub trait BodyObserver {
    /// Sees a part of the body.
    fn on_data(&mut self, data: &Bytes);

    /// The body is complete.
    fn on_end(&mut self, trailers: &HeaderMap);
}

/// The parts of a body that a filter puts out.
#[derive(Debug, Default)]
pub struct Output(SmallVec<[Bytes; 2]>);

impl Output {
    /// Appends a part. An empty one is nothing.
    pub fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.0.push(part);
        }
    }

    /// Takes all parts out, in their order.
    pub fn take(&mut self) -> impl Iterator<Item = Bytes> + use<> {
        std::mem::take(&mut self.0).into_iter()
    }
}

/// A filter ends a body early.
///
/// The client gets the `reply` if its response has not begun: the body is one of a request, or the filter
/// [holds the head](BodyFilter::holds_head) and nothing was put out yet. Otherwise the response is broken off.
#[derive(Debug)]
pub struct Abort {
    /// The reason, for the log.
    pub reason: Cow<'static, str>,
    /// The answer in the place of one that has not begun.
    pub reply: Box<Reply>,
}

impl Abort {
    /// Ends a body for a `reason`, with `reply` for a client that has got nothing yet.
    pub fn new(reason: impl Into<Cow<'static, str>>, reply: Reply) -> Self {
        Self { reason: reason.into(), reply: Box::new(reply) }
    }
}

impl fmt::Debug for BodyWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("Pass"),
            Self::Buffered(cap) => f.debug_tuple("Buffered").field(cap).finish(),
            Self::Start(cap) => f.debug_tuple("Start").field(cap).finish(),
            Self::Filter(_) => f.write_str("Filter"),
            Self::Observe(_) => f.write_str("Observe"),
        }
    }
}
