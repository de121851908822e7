//! Bodies that pass a module part by part.

use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use http::{HeaderMap, StatusCode};
use signalbox_plugin::{Abort, BodyFilter, Outbound, Output, Reply};

use crate::config::OnError;
use crate::context::{Direction, OfBody};
use crate::fault::Fault;
use crate::pause::{Ended, send};
use crate::stream::Stream;
use crate::vm::Verdict;

/// Passes a body to a module part by part. While the module holds parts back, they are collected, up to `max_body`; while one of
/// its calls is under way, the body waits.
pub(crate) struct Streamed {
    stream: Rc<Stream>,
    direction: Direction,
    outbound: Outbound,
    /// The parts that the module holds back.
    held: Bytes,
    is_paused: bool,
    running: FuturesUnordered<LocalBoxFuture<'static, Ended>>,
    /// A failure that happened while the body waited.
    failed: Option<Fault>,
    reply: Option<Verdict>,
}

impl Streamed {
    pub(crate) fn new(stream: Rc<Stream>, direction: Direction, outbound: Outbound) -> Self {
        Self {
            stream,
            direction,
            outbound,
            held: Bytes::new(),
            is_paused: false,
            running: FuturesUnordered::new(),
            failed: None,
            reply: None,
        }
    }

    /// Carries out what the module wants done with the parts that it has seen.
    fn follow(&mut self, verdict: Verdict, out: &mut Output) -> Result<(), Abort> {
        match verdict {
            Verdict::Continue => {
                self.is_paused = false;
                out.push(std::mem::take(&mut self.held));
                Ok(())
            }
            Verdict::Pause => {
                self.is_paused = true;
                Ok(())
            }
            Verdict::Reply(reply) => {
                self.stream.lose();
                Err(Abort::new("the module answered in the midst of the body", Reply::Response(reply)))
            }
            Verdict::Close => {
                self.stream.lose();
                let reply = Reply::problem(StatusCode::INTERNAL_SERVER_ERROR, "a plugin closed the request");
                Err(Abort::new("the module closed the stream", reply))
            }
        }
    }

    /// The module has failed: the body ends, or it passes without the module from here on.
    fn fail(&mut self, fault: &Fault, out: &mut Output) -> Result<(), Abort> {
        let pool = &self.stream.pool;
        pool.note(fault);
        pool.outcomes.count(0, fault.outcome());
        self.stream.lose();
        match pool.on_error {
            OnError::Allow => {
                self.is_paused = false;
                out.push(std::mem::take(&mut self.held));
                Ok(())
            }
            OnError::Deny => {
                let reply = Reply::problem(StatusCode::INTERNAL_SERVER_ERROR, "a plugin failed");
                Err(Abort::new("the module failed", reply))
            }
        }
    }

    /// The module has failed for the other direction of the exchange. Nothing passes then that it has not seen, unless it may fail.
    fn refuse_unseen(&self) -> Result<(), Abort> {
        if !self.stream.is_denied() {
            return Ok(());
        }
        let reply = Reply::problem(StatusCode::INTERNAL_SERVER_ERROR, "a plugin failed");
        Err(Abort::new("the module failed for the other direction", reply))
    }

    /// Carries out the decisions that the module has made while the body waited.
    fn catch_up(&mut self, out: &mut Output) -> Result<(), Abort> {
        if let Some(fault) = self.failed.take() {
            return self.fail(&fault, out);
        }
        if let Some(verdict) = self.reply.take() {
            return self.follow(verdict, out);
        }
        if self.is_paused && !self.stream.is_lost() {
            let direction = self.direction;
            match self.stream.call(|vm, id| Ok(vm.resumed(id, direction))) {
                Ok(None) => {}
                Ok(Some(verdict)) => return self.follow(verdict, out),
                Err(fault) => return self.fail(&fault, out),
            }
        }
        Ok(())
    }

    /// Shows the parts that are held to the module.
    fn show(&mut self, is_end: bool, out: &mut Output) -> Result<(), Abort> {
        let direction = self.direction;
        let mut lend = OfBody { direction, body: &mut self.held, trailers: None };
        let shown = self.stream.call(|vm, id| {
            let verdict = vm.body(id, direction, is_end, &mut lend)?;
            Ok((verdict, vm.take_calls()))
        });
        self.after(shown, out)
    }

    fn after(
        &mut self,
        shown: Result<(Verdict, Vec<crate::state::Call>), Fault>,
        out: &mut Output,
    ) -> Result<(), Abort> {
        match shown {
            Ok((verdict, calls)) => {
                if matches!(verdict, Verdict::Pause) {
                    let calls = self.stream.own(calls).into_iter();
                    self.running.extend(calls.map(|call| {
                        Box::pin(send(self.outbound.clone(), call)) as LocalBoxFuture<'static, _>
                    }));
                } else {
                    self.stream.hand_over(calls);
                }
                self.follow(verdict, out)
            }
            Err(fault) => self.fail(&fault, out),
        }
    }
}

impl BodyFilter for Streamed {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let direction = self.direction;
        while self.failed.is_none() && self.reply.is_none() && !self.stream.is_lost() {
            match self.running.poll_next_unpin(cx) {
                Poll::Ready(Some(Ended { owner, id, answer })) => {
                    let mut lend = OfBody { direction, body: &mut self.held, trailers: None };
                    let told = self.stream.call(|vm, stream| {
                        vm.answered(owner, id, answer, &mut lend)?;
                        Ok((vm.resumed(stream, direction), vm.take_calls()))
                    });
                    match told {
                        Ok((resumed, calls)) => {
                            let calls = self.stream.own(calls).into_iter();
                            self.running.extend(calls.map(|call| {
                                Box::pin(send(self.outbound.clone(), call)) as LocalBoxFuture<'static, _>
                            }));
                            self.reply = resumed;
                        }
                        Err(fault) => self.failed = Some(fault),
                    }
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending if !self.is_paused => return Poll::Ready(()),
                Poll::Pending => match self.stream.poll_resumed(direction, cx.waker()) {
                    Ok(None) => return Poll::Pending,
                    Ok(Some(verdict)) => self.reply = Some(verdict),
                    Err(fault) => self.failed = Some(fault),
                },
            }
        }
        Poll::Ready(())
    }

    fn on_data(&mut self, data: Bytes, out: &mut Output) -> Result<(), Abort> {
        self.catch_up(out)?;
        self.refuse_unseen()?;
        if self.stream.is_lost() {
            out.push(std::mem::take(&mut self.held));
            out.push(data);
            return Ok(());
        }
        if self.held.is_empty() {
            self.held = data;
        } else {
            if self.held.len() + data.len() > self.stream.pool.setup.max_body {
                let status = match self.direction {
                    Direction::Request => StatusCode::PAYLOAD_TOO_LARGE,
                    Direction::Response => StatusCode::BAD_GATEWAY,
                };
                let reply = Reply::problem(status, "the body is larger than a plugin may hold back");
                return Err(Abort::new("the module holds back more than max_body", reply));
            }
            let mut all = BytesMut::from(std::mem::take(&mut self.held));
            all.extend_from_slice(&data);
            self.held = all.freeze();
        }
        self.show(false, out)
    }

    fn on_pause(&mut self, out: &mut Output) -> Result<(), Abort> {
        self.catch_up(out)
    }

    fn on_end(&mut self, trailers: &mut HeaderMap, out: &mut Output) -> Result<(), Abort> {
        self.catch_up(out)?;
        self.refuse_unseen()?;
        if !self.stream.is_lost() {
            self.show(true, out)?;
        }
        if !self.stream.is_lost() && !trailers.is_empty() {
            let direction = self.direction;
            let mut lend = OfBody { direction, body: &mut self.held, trailers: Some(trailers) };
            let shown = self.stream.call(|vm, id| {
                let verdict = vm.trailers(id, direction, &mut lend)?;
                Ok((verdict, vm.take_calls()))
            });
            self.after(shown, out)?;
        }
        if self.is_paused && !self.stream.is_lost() {
            // Nothing is left that the module could wait for here.
            return self.fail(&Fault::Held, out);
        }
        out.push(std::mem::take(&mut self.held));
        Ok(())
    }
}
