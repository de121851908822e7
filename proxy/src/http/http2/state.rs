//! The state of an HTTP/2 connection that its requests and the worker use.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::super::downstream::{Downstream, Features, Protocol};
use crate::wire::client_io::LINGER;

/// An HTTP/2 connection.
#[derive(Debug, Default)]
pub(super) struct Http2State {
    /// The number of requests so far.
    begun: Cell<u64>,
    /// The number of requests that the client reset before they were answered.
    client_resets: Cell<u64>,
    /// The time at which the client was told that the connection ends (GOAWAY).
    goaway_at: Cell<Option<Instant>>,
}

/// The maximum number of requests that are accepted while nothing is written: more than may run concurrently, because
/// some may be given up.
const MAX_UNANSWERED: u32 = 1024;

/// A client that has reset this many requests, and half of all, makes targets work in vain: its connection is closed.
/// Envoy has the same limit.
const MAX_CLIENT_RESETS: u64 = 500;

/// Requests that arrive later than this after GOAWAY are not answered.
const GOAWAY_GRACE: Duration = Duration::from_secs(10);

static FEATURES: Features =
    Features { is_multiplexed: true, checks_heads: false, has_connection_fields: false };

impl Protocol for Http2State {
    fn features(&self) -> &'static Features {
        &FEATURES
    }

    fn request_begins(&self) {}

    fn requests_end(&self, downstream: &Downstream, now: Instant) {
        downstream.deadline.set(Some(now + downstream.patience()));
    }

    fn start_shutdown(&self, downstream: &Downstream, _at: Instant) {
        downstream.deadline.wake();
    }

    fn is_idle(&self, downstream: &Downstream) -> bool {
        downstream.running() == 0 && downstream.deadline.is_set()
    }

    /// A client has as much time to process the GOAWAY as a round trip may take.
    fn refuses_requests(&self) -> bool {
        self.goaway_at.get().is_some_and(|since| since.elapsed() > GOAWAY_GRACE)
    }
}

impl Http2State {
    /// Counts a request. Returns `false` if the connection is to be closed: so many requests have arrived while the
    /// client read no response that their state adds up, or the client resets too many.
    pub(super) fn admit_request(&self, downstream: &Downstream) -> bool {
        self.begun.set(self.begun.get() + 1);
        let client_resets = self.client_resets.get();
        downstream.activity.count_request() <= MAX_UNANSWERED
            && (client_resets < MAX_CLIENT_RESETS || client_resets * 2 < self.begun.get())
    }

    /// Counts a request that the client reset before it was answered.
    pub(super) fn count_client_reset(&self) {
        self.client_resets.set(self.client_resets.get() + 1);
    }

    /// Records that the client is told that the connection ends. An idle client has little time to close it.
    pub(super) fn goaway_sent(&self, downstream: &Downstream) {
        let now = Instant::now();
        self.goaway_at.set(Some(now));
        if downstream.running() == 0 {
            downstream.deadline.set(Some(now + LINGER));
        }
    }

    /// True if the connection may be closed: it has had no request, and has written no rest of a response, for the
    /// given time.
    pub(super) fn is_silent(&self, downstream: &Downstream) -> bool {
        if downstream.running() > 0 || !downstream.deadline.passed() {
            return false;
        }
        let now = Instant::now();
        let moved = downstream.activity.take_written();
        let patience = match self.goaway_at.get() {
            None => downstream.patience(),
            // The end of an old response may still be in transit, but the GOAWAY was written, too.
            Some(since) if now < since + downstream.patience() => LINGER,
            Some(_) => return true,
        };
        if moved {
            downstream.deadline.set(Some(now + patience));
        }
        !moved
    }
}
