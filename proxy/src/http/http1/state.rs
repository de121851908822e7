//! The state of an HTTP/1.1 connection that its requests and the worker use.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::super::downstream::{Downstream, Features, Protocol};

/// An HTTP/1.1 connection, or one whose protocol is not known yet.
#[derive(Debug)]
pub(crate) struct Http1State {
    phase: Cell<Phase>,
    /// True if the client may still be sending bytes that are not read.
    unread: Cell<bool>,
    /// True if a target is processing the current request.
    forwarding: Cell<bool>,
}

/// The phase of an HTTP/1.1 connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waiting for a request.
    Idle,
    /// A head is arriving, and its timeout is running.
    Head,
    /// A request is being answered.
    Request,
    /// The response is complete, but not yet written.
    Flushing,
}

/// The part of an HTTP/1.1 connection whose deadline has expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overdue {
    /// The connection: it was idle for too long, or the client does not read.
    Connection,
    /// The head of a request, which did not arrive in time.
    Head,
    /// The buffers: the connection releases them until bytes arrive.
    Memory,
}

/// An HTTP/1.1 connection that is idle for this long releases its buffers, about 20 KiB, until the next request.
/// Allocating them again takes a microsecond or two, which is negligible for such rare requests.
const RELEASE_MEMORY_AFTER: Duration = Duration::from_secs(1);

static FEATURES: Features =
    Features { is_multiplexed: false, checks_heads: true, has_connection_fields: true };

impl Default for Http1State {
    fn default() -> Self {
        Self { phase: Cell::new(Phase::Idle), unread: Cell::new(false), forwarding: Cell::new(false) }
    }
}

impl Protocol for Http1State {
    fn features(&self) -> &'static Features {
        &FEATURES
    }

    fn request_begins(&self) {
        self.phase.set(Phase::Request);
        self.forwarding.set(false);
    }

    fn requests_end(&self, downstream: &Downstream, now: Instant) {
        self.phase.set(Phase::Flushing);
        downstream.deadline.set(Some(now + downstream.patience().min(RELEASE_MEMORY_AFTER)));
    }

    fn forwarding_begins(&self) {
        self.forwarding.set(true);
    }

    fn start_shutdown(&self, downstream: &Downstream, at: Instant) {
        if matches!(self.phase.get(), Phase::Idle | Phase::Flushing) {
            downstream.deadline.set_no_later_than(at);
        }
    }

    fn is_idle(&self, _downstream: &Downstream) -> bool {
        self.phase.get() == Phase::Idle
    }

    fn mark_unread(&self) {
        self.unread.set(true);
    }
}

impl Http1State {
    /// Records that the first bytes of a head have arrived: its timeout starts.
    pub(in super::super) fn head_begins(&self, downstream: &Downstream) {
        if self.phase.get() != Phase::Head {
            self.phase.set(Phase::Head);
            downstream.deadline.set(Some(Instant::now() + downstream.limits().header_timeout));
        }
    }

    /// Records that the last response was written.
    #[inline]
    pub(super) fn answer_written(&self) {
        if self.phase.get() == Phase::Flushing {
            self.phase.set(Phase::Idle);
        }
    }

    /// True if a target is processing the current request.
    pub(super) fn is_forwarding(&self) -> bool {
        self.forwarding.get()
    }

    /// Records that the rest of the client's request was read.
    pub(super) fn rest_was_read(&self) {
        self.unread.set(false);
    }

    /// True if the client may still be sending bytes that are not read.
    pub(super) fn has_unread(&self) -> bool {
        self.unread.get()
    }

    /// Returns the part of the connection whose deadline has expired, if it has.
    pub(super) fn overdue(&self, downstream: &Downstream) -> Option<Overdue> {
        if !downstream.deadline.passed() {
            return None;
        }
        let now = Instant::now();
        match self.phase.get() {
            // A late request has got its response by now, if one was possible; a late response body cannot be
            // replaced.
            Phase::Request => return Some(Overdue::Connection),
            Phase::Head => return Some(Overdue::Head),
            Phase::Idle if downstream.is_ending() || now >= downstream.idle_until() => {
                return Some(Overdue::Connection);
            }
            Phase::Idle => return Some(Overdue::Memory),
            // The last response is still being written while the client reads.
            Phase::Flushing if downstream.activity.take_written() => {
                downstream.set_idle_until(now + downstream.patience());
            }
            Phase::Flushing if now >= downstream.idle_until() => return Some(Overdue::Connection),
            Phase::Flushing => {}
        }
        downstream.deadline.set(Some(downstream.idle_until()));
        None
    }
}
