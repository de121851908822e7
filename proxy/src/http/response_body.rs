//! Response bodies on their way to the client.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::exchange::Exchange;
use super::problem;
use super::tunnel::Tunnel;
use crate::core::deadlines::Deadline;
use crate::core::failure::Failure;
use crate::core::fields;
use crate::core::filters::{FilteredError, Filters};
use crate::upstream::{TargetBody, Timeout};
use crate::wire::body::State;
use crate::wire::splice::Transfer;

/// The body of a response, on its way to the client. It ends its exchange.
pub struct ResponseBody {
    source: Source,
    /// The filters of plugins that it passes, if there are any.
    filters: Option<Box<Filters>>,
    /// `None` once the exchange is over.
    exchange: Option<Box<Exchange>>,
}

enum Source {
    Empty,
    Whole(Bytes),
    /// The body of a target's response.
    Target(TargetBody),
    /// The bytes of a protocol switch over a stream of HTTP/2, instead of a body.
    Tunnel(Box<Tunnel>),
}

/// The response cannot be completed: the connection to the client is aborted, because there is no other way to report
/// it.
#[derive(Debug, thiserror::Error)]
#[error("the response ended early")]
pub struct Aborted;

impl ResponseBody {
    /// The body of a local response. It passes `filters`, which may have begun to read it.
    pub(super) fn whole(bytes: Bytes, filters: Option<Box<Filters>>, exchange: Box<Exchange>) -> Self {
        if bytes.is_empty() && filters.is_none() {
            exchange.complete();
            return Self::over(Source::Empty);
        }
        Self { source: Source::Whole(bytes), filters, exchange: Some(exchange) }
    }

    /// The body of a response after which the stream carries another protocol.
    pub(super) fn tunnel(tunnel: Box<Tunnel>) -> Self {
        Self::over(Source::Tunnel(tunnel))
    }

    /// A body that belongs to no exchange any more.
    fn over(source: Source) -> Self {
        Self { source, filters: None, exchange: None }
    }

    /// Takes the tunnel out.
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

    /// The deadline of its exchange, unless that is over.
    #[inline]
    pub fn deadline(&self) -> Option<&Rc<Deadline>> {
        Some(self.exchange.as_ref()?.request.deadline())
    }

    /// The body of a target's response. It passes `filters`, which may have begun to read it.
    #[inline]
    pub(super) fn target(
        body: TargetBody,
        filters: Option<Box<Filters>>,
        mut exchange: Box<Exchange>,
    ) -> Self {
        if body.is_end() && filters.is_none() {
            exchange.give_back(body);
            exchange.complete();
            return Self::over(Source::Empty);
        }
        Self { source: Source::Target(body), filters, exchange: Some(exchange) }
    }

    /// Splices the next part, up to `most` bytes. `None`: it has to be copied.
    pub(super) fn poll_splice(
        &mut self,
        transfer: &mut Transfer,
        most: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<usize>, Aborted>> {
        let (Source::Target(body), Some(exchange)) = (&mut self.source, &mut self.exchange) else {
            return Poll::Ready(Ok(None));
        };
        if self.filters.is_some() {
            return Poll::Ready(Ok(None));
        }
        let pipes = &exchange.request.downstream.worker.pipes;
        match body.poll_splice(pipes, transfer, most, cx) {
            Poll::Pending => self.poll_late(cx).map(|_| Err(Aborted)),
            Poll::Ready(Ok(None)) => Poll::Ready(Ok(None)),
            Poll::Ready(Ok(Some(size))) => {
                let ended = body.is_end();
                exchange.request.moved();
                self.pass(size, ended);
                Poll::Ready(Ok(Some(size)))
            }
            Poll::Ready(Err(error)) => {
                exchange.request.moved();
                exchange.note_broken(&error);
                self.break_off();
                Poll::Ready(Err(Aborted))
            }
        }
    }

    /// Ready once the time of the exchange is over, with what there is to tell the client of it.
    fn poll_late(&mut self, cx: &Context<'_>) -> Poll<Option<HeaderMap>> {
        let Some(exchange) = &mut self.exchange else { return Poll::Ready(None) };
        if !exchange.is_late(cx) {
            exchange.continues_later();
            return Poll::Pending;
        }
        let late = exchange.lateness();
        if let Some(timeout) = Timeout::after_head(late) {
            exchange.attempts.note_broken(timeout.reason(), &timeout);
        }
        // After a reset, a gRPC client would have to guess the status.
        let sends_trailers =
            exchange.request.is_grpc && exchange.request.downstream.features().is_multiplexed;
        let trailers = sends_trailers.then(|| problem::grpc_trailers(late));
        if let Some(trailers) = &trailers {
            exchange.read_grpc_status(trailers);
        }
        exchange.fail(late);
        self.exchange = None;
        Poll::Ready(trailers)
    }

    /// Counts bytes that go to the client. `ended`: they are the last.
    fn pass(&mut self, size: usize, ended: bool) {
        let Some(exchange) = &mut self.exchange else { return };
        exchange.count_sent(size);
        if ended {
            self.complete();
        } else {
            exchange.continues_later();
        }
    }

    /// The target ended early.
    fn break_off(&mut self) {
        if let Some(mut exchange) = self.exchange.take() {
            // If the client resets its request's stream, the target's stream is reset, too.
            let progress = exchange.request.progress.as_ref().map(|progress| progress.state.get());
            let by_client = matches!(progress, Some(State::Broken | State::TooLarge));
            exchange.fail(if by_client { Failure::ClientGone } else { Failure::Reset });
        }
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

    /// The next part behind the filters.
    fn poll_filtered(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        let (Some(filters), Some(exchange)) = (&mut self.filters, &mut self.exchange) else {
            return Poll::Ready(None);
        };
        let source = &mut self.source;
        let next = filters.poll(cx, |cx| match source {
            Source::Empty | Source::Tunnel(_) => Poll::Ready(None),
            Source::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *source = Source::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Source::Target(body) => body.poll(cx).map(|frame| {
                exchange.request.moved();
                frame.map(|frame| {
                    // A filter may turn the trailers into something else.
                    frame
                        .inspect(|frame| exchange.read_target_trailers(frame))
                        .inspect_err(|error| exchange.note_broken(error))
                })
            }),
        });
        match next {
            Poll::Pending => {
                self.poll_late(cx).map(|trailers| Some(trailers.map(Frame::trailers).ok_or(Aborted)))
            }
            Poll::Ready(None) => {
                self.complete();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(mut frame))) => {
                let is_last = match source {
                    Source::Empty => true,
                    Source::Target(body) => body.is_end(),
                    Source::Whole(_) | Source::Tunnel(_) => false,
                };
                if is_last {
                    filters.end_unchanged();
                }
                let size = frame.data_ref().map_or(0, Bytes::len);
                let ended = filters.is_end();
                if let Some(trailers) = frame.trailers_mut() {
                    exchange.read_grpc_status(trailers);
                    fields::remove_forbidden_trailers(trailers);
                }
                self.pass(size, ended);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(FilteredError::Source(_)))) => {
                self.break_off();
                Poll::Ready(Some(Err(Aborted)))
            }
            Poll::Ready(Some(Err(FilteredError::Filter(error)))) => {
                let failure = exchange.note_filter_error(&error);
                exchange.fail(failure);
                self.exchange = None;
                Poll::Ready(Some(Err(Aborted)))
            }
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        let this = self.get_mut();
        if this.filters.is_some() {
            return this.poll_filtered(cx);
        }
        let Some(exchange) = &mut this.exchange else { return Poll::Ready(None) };
        let frame = match &mut this.source {
            Source::Empty | Source::Tunnel(_) => None,
            Source::Whole(bytes) => Some(Ok(Frame::data(std::mem::take(bytes)))),
            Source::Target(body) => match body.poll(cx) {
                Poll::Ready(frame) => {
                    exchange.request.moved();
                    frame.map(|frame| {
                        frame.inspect(|frame| exchange.read_target_trailers(frame)).map_err(|error| {
                            exchange.note_broken(&error);
                            Aborted
                        })
                    })
                }
                Poll::Pending => {
                    let late = this.poll_late(cx);
                    return late.map(|trailers| Some(trailers.map(Frame::trailers).ok_or(Aborted)));
                }
            },
        };
        match frame {
            None => {
                this.complete();
                Poll::Ready(None)
            }
            Some(Ok(mut frame)) => {
                let size = frame.data_ref().map_or(0, Bytes::len);
                let ended = match &this.source {
                    Source::Empty | Source::Whole(_) | Source::Tunnel(_) => true,
                    Source::Target(body) => body.is_end(),
                };
                if let Some(trailers) = frame.trailers_mut() {
                    exchange.read_grpc_status(trailers);
                    fields::remove_forbidden_trailers(trailers);
                }
                this.pass(size, ended || frame.is_trailers());
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(Aborted)) => {
                this.break_off();
                Poll::Ready(Some(Err(Aborted)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.exchange.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            _ if self.filters.as_ref().is_some_and(|filters| filters.may_change()) => SizeHint::default(),
            Source::Empty | Source::Tunnel(_) => SizeHint::with_exact(0),
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Target(body) => body.size_hint(),
        }
    }
}
