//! Bodies on their way through: streamed as they come, without a box around them.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::exchange::Exchange;
use crate::telemetry::Flag;
use crate::upstream::AnswerBody;

/// The body of a request, on its way to a target.
#[derive(Debug)]
pub enum RequestBody {
    Empty,
    /// What a plugin wanted to see whole.
    Whole(Option<Bytes>),
    Stream(Box<Stream>),
}

/// A body as it comes from the client.
#[derive(Debug)]
pub struct Stream {
    incoming: Incoming,
    /// Bytes that may still come; `u64::MAX`: any number.
    left: u64,
    progress: Rc<Progress>,
}

/// How far a request's body has come, for those who no longer have it in their hands.
#[derive(Debug, Default)]
pub struct Progress {
    pub bytes: Cell<u64>,
    pub state: Cell<State>,
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
    #[error("the client broke off")]
    Client(#[source] hyper::Error),
}

impl RequestBody {
    /// Streams `incoming`, up to `limit` bytes of it.
    pub fn stream(incoming: Incoming, limit: Option<u64>, progress: Rc<Progress>) -> Self {
        Self::Stream(Box::new(Stream { incoming, left: limit.unwrap_or(u64::MAX), progress }))
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty | Self::Whole(None))
    }
}

impl Stream {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Pending => {
                if self.progress.state.get() == State::Untouched {
                    self.progress.state.set(State::Streaming);
                }
                return Poll::Pending;
            }
            Poll::Ready(frame) => frame,
        };
        let result = match frame {
            None => {
                self.progress.state.set(State::Done);
                None
            }
            Some(Err(error)) => {
                self.progress.state.set(State::Broken);
                Some(Err(RequestBodyError::Client(error)))
            }
            Some(Ok(frame)) => {
                let size = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.progress.bytes.set(self.progress.bytes.get() + size);
                if size > self.left {
                    self.progress.state.set(State::TooLarge);
                    Some(Err(RequestBodyError::TooLarge))
                } else {
                    self.left -= size;
                    let done = self.incoming.is_end_stream();
                    self.progress.state.set(if done { State::Done } else { State::Streaming });
                    Some(Ok(frame))
                }
            }
        };
        Poll::Ready(result)
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
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => stream.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty | Self::Whole(None) => true,
            Self::Whole(Some(bytes)) => bytes.is_empty(),
            Self::Stream(stream) => stream.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Whole(None) => SizeHint::with_exact(0),
            Self::Whole(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(stream) => stream.incoming.size_hint(),
        }
    }
}

/// The body of an answer, on its way to the client. It ends the exchange it belongs to.
pub struct ResponseBody {
    source: Source,
    /// `None`: the exchange is over.
    exchange: Option<Exchange>,
}

enum Source {
    Empty,
    Whole(Bytes),
    /// From a target.
    Target(AnswerBody),
}

/// The answer cannot be finished: the connection to the client breaks off, for there is no other way to say so.
#[derive(Debug, thiserror::Error)]
#[error("the answer ended early")]
pub struct Aborted;

impl ResponseBody {
    /// An answer of the proxy itself.
    pub fn whole(bytes: Bytes, exchange: Exchange) -> Self {
        if bytes.is_empty() {
            exchange.complete();
            return Self { source: Source::Empty, exchange: None };
        }
        Self { source: Source::Whole(bytes), exchange: Some(exchange) }
    }

    /// What a target answers.
    pub fn target(body: AnswerBody, mut exchange: Exchange) -> Self {
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
            Source::Empty => None,
            Source::Whole(bytes) => Some(Ok(Frame::data(std::mem::take(bytes)))),
            Source::Target(body) => match body.poll(cx) {
                Poll::Ready(frame) => frame.map(|frame| frame.map_err(|_| Aborted)),
                Poll::Pending if exchange.is_late(cx) => {
                    exchange.fail(Flag::Timeout);
                    this.exchange = None;
                    return Poll::Ready(Some(Err(Aborted)));
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
            Some(Ok(frame)) => {
                exchange.bytes_out += frame.data_ref().map_or(0, |data| data.len() as u64);
                let ended = match &this.source {
                    Source::Empty | Source::Whole(_) => true,
                    Source::Target(body) => body.is_end(),
                };
                if ended || frame.is_trailers() {
                    this.complete();
                } else {
                    exchange.goes_on();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(_)) => {
                exchange.fail(Flag::UpstreamReset);
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
            Source::Empty => SizeHint::with_exact(0),
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Target(body) => body.size_hint(),
        }
    }
}
