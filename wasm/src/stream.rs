//! The context of an exchange in the instance of its worker, from the first hook to the end of the exchange.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

use http::{request, response};

use crate::config::OnError;
use crate::context::{Direction, Facts, OfLog, copy, response_head};
use crate::fault::Fault;
use crate::pool::{Pool, Slot};
use crate::state::Call;
use crate::vm::{Verdict, Vm};

/// The context of an exchange.
pub(crate) struct Stream {
    pub(crate) pool: Arc<Pool>,
    slot: Arc<Slot>,
    generation: u64,
    pub(crate) id: u32,
    /// True once the module has failed for this exchange: it goes on without the module, or not at all.
    is_lost: Cell<bool>,
    has_ended: Cell<bool>,
    /// True if the module holds the head until it has seen the whole body, by direction.
    holds_for_body: [Cell<bool>; 2],
    /// The heads, for the log.
    heads: RefCell<OfLog>,
}

/// Ends a context when the exchange does.
pub(crate) struct Ending(pub(crate) Rc<Stream>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end(None);
    }
}

impl Stream {
    /// Makes a context in the instance of this thread, and calls it.
    pub(crate) fn open<T>(
        pool: &Arc<Pool>,
        facts: Facts,
        call: impl FnOnce(&mut Vm, u32) -> Result<T, Fault>,
    ) -> Result<(Self, T), Fault> {
        let slot = pool.slot();
        let (generation, id, called) = slot.run(pool, |vm| {
            let id = vm.open(facts)?;
            Ok((vm.generation, id, call(vm, id)?))
        })?;
        Ok((Self::with(pool, slot, generation, id), called))
    }

    fn with(pool: &Arc<Pool>, slot: Arc<Slot>, generation: u64, id: u32) -> Self {
        Self {
            pool: Arc::clone(pool),
            slot,
            generation,
            id,
            is_lost: Cell::new(false),
            has_ended: Cell::new(false),
            holds_for_body: [Cell::new(false), Cell::new(false)],
            heads: RefCell::new(OfLog { request: None, response: None }),
        }
    }

    /// The context of an exchange for which the module failed at once.
    pub(crate) fn lost(pool: &Arc<Pool>) -> Self {
        let stream = Self::with(pool, pool.slot(), u64::MAX, 0);
        stream.is_lost.set(true);
        stream.has_ended.set(true);
        stream
    }

    /// True once the module has failed for this exchange.
    pub(crate) fn is_lost(&self) -> bool {
        self.is_lost.get()
    }

    /// Nothing more is asked of the module for this exchange.
    pub(crate) fn lose(&self) {
        self.is_lost.set(true);
    }

    pub(crate) fn holds_for_body(&self, direction: Direction) -> bool {
        self.holds_for_body[direction as usize].get()
    }

    pub(crate) fn hold_for_body(&self, direction: Direction) {
        self.holds_for_body[direction as usize].set(true);
    }

    /// Calls the module.
    pub(crate) fn call<T>(&self, call: impl FnOnce(&mut Vm, u32) -> Result<T, Fault>) -> Result<T, Fault> {
        let called = self.slot.run_in(&self.pool, self.generation, |vm| call(vm, self.id));
        if called.is_err() {
            self.lose();
        }
        called
    }

    /// The wish of the module for a message that it holds. If it holds it on, `waker` is woken when that changes.
    pub(crate) fn poll_resumed(&self, direction: Direction, waker: &Waker) -> Result<Option<Verdict>, Fault> {
        self.call(|vm, id| Ok(vm.poll_resumed(id, direction, waker)))
    }

    /// Hands calls that this exchange does not wait for to the task beside requests.
    pub(crate) fn hand_over(&self, calls: Vec<Call>) {
        self.pool.hand_over(&self.slot, self.generation, calls);
    }

    /// The calls among these that this exchange began. The others are no business of its client, and go to the task beside requests.
    pub(crate) fn own(&self, calls: Vec<Call>) -> Vec<Call> {
        let (own, others) = calls.into_iter().partition(|call| call.owner == self.id);
        self.hand_over(others);
        own
    }

    /// True if the module has failed for this exchange, and nothing may pass that it has not seen.
    pub(crate) fn is_denied(&self) -> bool {
        self.is_lost() && self.pool.on_error == OnError::Deny
    }

    /// Keeps the heads for the log.
    pub(crate) fn keep(&self, request: &request::Parts, response: &response::Parts) {
        let mut kept = response_head();
        kept.status = response.status;
        kept.headers = response.headers.clone();
        *self.heads.borrow_mut() = OfLog { request: Some(copy(request)), response: Some(kept) };
    }

    /// Ends the context, once. `heads`: those for the log, if none were kept.
    pub(crate) fn end(&self, heads: Option<OfLog>) {
        if self.has_ended.replace(true) {
            return;
        }
        let mut kept = self.heads.replace(OfLog { request: None, response: None });
        if kept.request.is_none()
            && let Some(heads) = heads
        {
            kept = heads;
        }
        let ended = self.slot.run_in(&self.pool, self.generation, |vm| {
            vm.finish(self.id, &mut kept)?;
            Ok(vm.take_calls())
        });
        match ended {
            Ok(calls) => self.hand_over(calls),
            Err(Fault::Lost) => {}
            Err(fault) => {
                self.pool.note(&fault);
                self.pool.outcomes.count(0, fault.outcome());
            }
        }
    }
}
