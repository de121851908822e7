//! The idle timeout of an exchange.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::deadlines::Deadline;

/// Extends an exchange's deadline whenever bytes move.
#[derive(Debug)]
pub struct IdleTimeout {
    deadline: Rc<Deadline>,
    timeout: Duration,
    /// The absolute deadline of the exchange.
    due: Option<Instant>,
}

impl IdleTimeout {
    /// Bytes must move at least every `timeout`, and the exchange must end by `due`.
    pub fn new(deadline: Rc<Deadline>, timeout: Duration, due: Option<Instant>) -> Self {
        Self { deadline, timeout, due }
    }

    /// Records that bytes have moved, in either direction.
    pub fn moved(&self, now: Instant) {
        let at = now + self.timeout;
        self.deadline.set(Some(self.due.map_or(at, |due| due.min(at))));
    }

    /// True if the exchange has time left before `due`, so that the idle timeout is the reason why it is late.
    pub fn is_cause(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| now < due)
    }
}
