//! The unlabelled counters of one worker.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::flag::Flag;
use super::handshake::HandshakeFailure;
use super::histogram::Histogram;

/// One worker's unlabelled counters.
///
/// They are aligned so that no two workers write to one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerStats {
    /// From the last byte of a request's head until the last byte of the response is handed to the socket. Streams are not among
    /// them.
    pub request_duration: Histogram,
    /// The same for streams, which last as long as their clients like, indexed by [`StreamKind`].
    pub stream_duration: [Histogram; StreamKind::ALL.len()],
    /// From sending the request to the target until the head of its response.
    pub upstream_duration: Histogram,
    /// Requests answered with a status of 500 and above.
    pub errors: Counter,
    /// Requests that matched no route.
    pub no_route: Counter,
    /// Other requests answered with a status from 400 to 499.
    pub client_errors: Counter,
    /// Requests that went wrong, by the place of their flag in [`Flag::ALL`].
    pub flags: [Counter; Flag::ALL.len()],
    /// Client connections open now.
    pub active_connections: Counter,
    /// Client connections accepted.
    pub connections: Counter,
    /// TLS handshakes with clients that completed.
    pub handshakes: Counter,
    /// Completed TLS handshakes that resumed a session.
    pub handshakes_resumed: Counter,
    /// Failed TLS handshakes, indexed by [`HandshakeFailure`].
    pub handshake_failures: [Counter; HandshakeFailure::ALL.len()],
    /// Connections made to targets.
    pub upstream_connections: Counter,
    /// Bytes of the bodies of requests that have ended.
    pub body_in: Counter,
    /// Bytes of the bodies of their responses.
    pub body_out: Counter,
    /// Bytes read from clients, heads and framing included.
    pub downstream_in: Counter,
    /// Bytes written to clients.
    pub downstream_out: Counter,
    /// Bytes read from targets.
    pub upstream_in: Counter,
    /// Bytes written to targets.
    pub upstream_out: Counter,
    /// Access log lines that were dropped because the writer fell behind.
    pub log_dropped: Counter,
    /// Mirrored requests that were given up before they were sent.
    pub mirrors_dropped: Counter,
}

/// The kind of an exchange that lasts as long as its client likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum StreamKind {
    /// A WebSocket, another upgrade, or CONNECT.
    Tunnel,
    /// A response of the type `text/event-stream`.
    Events,
}

impl StreamKind {
    pub const ALL: [Self; 2] = [Self::Tunnel, Self::Events];

    /// The name in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Events => "event_stream",
        }
    }
}

impl WorkerStats {
    /// The number of requests that are over, streams among them.
    pub fn requests(&self) -> u64 {
        let streams: u64 = self.stream_duration.iter().map(Histogram::count).sum();
        self.request_duration.count() + streams
    }

    /// Counts a request that went wrong. Only the owning worker may call this.
    #[inline]
    pub fn count_flag(&self, flag: Flag) {
        if flag != Flag::None
            && let Some(counter) = self.flags.get(flag as usize)
        {
            counter.add(1);
        }
    }

    /// Records how long a stream lasted. Only the owning worker may call this.
    pub fn record_stream(&self, kind: StreamKind, duration: Duration) {
        if let Some(histogram) = self.stream_duration.get(kind as usize) {
            histogram.record(duration);
        }
    }
}

/// A number that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker may call this: with one writer, a load and a store lose nothing.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Subtracts `n`, under the same condition.
    #[inline]
    pub fn subtract(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
