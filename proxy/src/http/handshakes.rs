//! The TLS handshakes that run on a worker, with their limit.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use crate::core::deadlines::Deadline;

/// The handshakes of one worker, the oldest first.
#[derive(Debug, Default)]
pub struct Handshakes(RefCell<VecDeque<Weak<Handshake>>>);

/// A handshake that may have to give way to others.
#[derive(Debug)]
struct Handshake {
    /// The deadline of its connection, which wakes the task.
    deadline: Rc<Deadline>,
    given_up: Cell<bool>,
}

/// A handshake permit, held from the client's first message to the end of the handshake.
#[derive(Debug)]
pub struct HandshakePermit<'a> {
    handshakes: &'a Handshakes,
    handshake: Rc<Handshake>,
}

/// The maximum number of concurrent handshakes per worker: one takes some 50 KB and up to a millisecond. Beyond it,
/// the oldest is given up: a client needs milliseconds, so one that is still unfinished after a thousand others have
/// arrived does not mean to finish.
const MAX_HANDSHAKES: usize = 1024;

impl Handshakes {
    /// Takes a permit, if necessary from the oldest handshake.
    pub fn begin(&self, deadline: &Rc<Deadline>) -> HandshakePermit<'_> {
        let mut handshakes = self.0.borrow_mut();
        if handshakes.len() >= MAX_HANDSHAKES
            && let Some(oldest) = handshakes.pop_front().and_then(|oldest| oldest.upgrade())
        {
            oldest.given_up.set(true);
            oldest.deadline.wake();
        }
        let handshake = Rc::new(Handshake { deadline: Rc::clone(deadline), given_up: Cell::new(false) });
        handshakes.push_back(Rc::downgrade(&handshake));
        HandshakePermit { handshakes: self, handshake }
    }
}

impl HandshakePermit<'_> {
    /// True if the permit was given to another handshake.
    pub fn is_revoked(&self) -> bool {
        self.handshake.given_up.get()
    }
}

impl Drop for HandshakePermit<'_> {
    fn drop(&mut self) {
        let mut handshakes = self.handshakes.0.borrow_mut();
        let own = |it: &Weak<Handshake>| std::ptr::eq(it.as_ptr(), Rc::as_ptr(&self.handshake));
        if let Some(index) = handshakes.iter().position(own) {
            handshakes.remove(index);
        }
    }
}
