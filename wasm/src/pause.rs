//! Waits while a module holds a message: for the answers to its calls, or until it lets the message go.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use signalbox_plugin::{CallAnswer, CallError, CallLimits, Clock, Outbound};

use crate::context::{Direction, Lend};
use crate::fault::Fault;
use crate::state::Call;
use crate::stream::Stream;
use crate::vm::Verdict;

/// The longest time that a module may hold a message.
const MAX_HELD: Duration = Duration::from_secs(60);

/// The largest answer to a call, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// A call that has come to its end.
pub(crate) struct Ended {
    pub(crate) owner: u32,
    pub(crate) id: u32,
    pub(crate) answer: Result<CallAnswer, CallError>,
}

/// Calls a service. It ends by the call's timeout at the latest.
pub(crate) async fn send(outbound: Outbound, call: Call) -> Ended {
    let limits = CallLimits { timeout: call.timeout, answer_size: MAX_ANSWER };
    let answer = outbound.call(&call.upstream, call.request, limits).await;
    Ended { owner: call.owner, id: call.id, answer }
}

/// A message that a module holds.
pub(crate) struct Held<'h> {
    pub(crate) stream: &'h Stream,
    pub(crate) direction: Direction,
    pub(crate) outbound: &'h Outbound,
    pub(crate) clock: &'h Clock,
    /// True if the module will see the body when it has no calls under way.
    pub(crate) sees_body: bool,
}

enum Event {
    Ended(Ended),
    Resumed(Verdict),
    TooLong,
}

impl Held<'_> {
    /// Waits until the module has decided. Its calls that are still under way then are cancelled.
    ///
    /// [`Verdict::Pause`]: it holds the message until it has seen the body.
    pub(crate) async fn decided(&self, mut calls: Vec<Call>, lend: &mut dyn Lend) -> Result<Verdict, Fault> {
        let mut running = FuturesUnordered::new();
        let mut deadline = pin!(self.clock.sleep(MAX_HELD));
        loop {
            calls = self.stream.own(calls);
            running.extend(calls.drain(..).map(|call| send(self.outbound.clone(), call)));
            if running.is_empty() && self.sees_body {
                return Ok(Verdict::Pause);
            }
            let event = poll_fn(|cx| {
                if let Poll::Ready(Some(ended)) = running.poll_next_unpin(cx) {
                    return Poll::Ready(Ok(Event::Ended(ended)));
                }
                match self.stream.poll_resumed(self.direction, cx.waker()) {
                    Ok(None) => {}
                    Ok(Some(verdict)) => return Poll::Ready(Ok(Event::Resumed(verdict))),
                    Err(fault) => return Poll::Ready(Err(fault)),
                }
                deadline.as_mut().poll(cx).map(|()| Ok(Event::TooLong))
            });
            match event.await? {
                Event::Resumed(verdict) => return Ok(verdict),
                Event::TooLong => return Err(Fault::Held),
                Event::Ended(Ended { owner, id, answer }) => {
                    let resumed;
                    (resumed, calls) = self.stream.call(|vm, stream| {
                        vm.answered(owner, id, answer, lend)?;
                        Ok((vm.resumed(stream, self.direction), vm.take_calls()))
                    })?;
                    if let Some(verdict) = resumed {
                        self.stream.hand_over(calls);
                        return Ok(verdict);
                    }
                }
            }
        }
    }
}
