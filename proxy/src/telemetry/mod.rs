//! What the proxy counts and tells of its requests.
//!
//! Each worker writes its own cells and nobody else does, so counting is a load and a store; the admin server reads
//! all of them at any time. Nothing is allocated for a request: cells are found through what a revision compiled.

pub mod access_log;
mod cells;
mod histogram;
pub mod render;

pub use cells::{Cells, Class, Counted, Key};
pub use histogram::{Histogram, Histograms, Totals};

use std::sync::atomic::{AtomicU64, Ordering};

use crate::tls::HandshakeFailure;

/// One worker's counters that have no labels.
///
/// Aligned so that two workers never write to one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerStats {
    /// From the last byte of a request's head to the last byte of the answer handed to the socket.
    pub request_duration: Histogram,
    /// From the request being sent on to the head of the upstream's answer.
    pub upstream_duration: Histogram,
    /// Requests answered with a status of 500 and above.
    pub errors: Counter,
    /// Requests that no route took.
    pub no_route: Counter,
    /// Other requests answered with a status from 400 to 499.
    pub client_errors: Counter,
    /// Client connections open now.
    pub active_connections: Counter,
    /// Client connections accepted.
    pub connections: Counter,
    /// TLS handshakes with clients that came to their end.
    pub handshakes: Counter,
    /// Those of them that resumed a session.
    pub handshakes_resumed: Counter,
    /// Those that did not, by [`HandshakeFailure`].
    pub handshake_failures: [Counter; HandshakeFailure::ALL.len()],
    /// Connections made to targets.
    pub upstream_connections: Counter,
    /// Bytes read from clients, heads and framing included.
    pub downstream_in: Counter,
    /// Bytes written to clients.
    pub downstream_out: Counter,
    /// Bytes read from targets.
    pub upstream_in: Counter,
    /// Bytes written to targets.
    pub upstream_out: Counter,
    /// Access log lines that were dropped because the writer did not keep up.
    pub log_dropped: Counter,
    /// Copies for mirrors that were given up before they were sent.
    pub mirrors_dropped: Counter,
}

/// A number that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Only the owning worker may call it: a load and a store lose nothing when there is one writer.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Likewise.
    #[inline]
    pub fn subtract(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What went wrong with a request, if anything did: the response flags of the access log and the metrics. They are
/// Envoy's; see "response flags" in its access log documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Flag {
    #[default]
    None,
    NoRoute,
    NoHealthyUpstream,
    ConnectFailure,
    Overflow,
    Timeout,
    UpstreamReset,
    DownstreamClosed,
    DownstreamProtocol,
    StreamIdle,
    Overloaded,
    RetriesExhausted,
    // Retries were exhausted, and this is what the last of them came to.
    ConnectFailureExhausted,
    TimeoutExhausted,
    UpstreamResetExhausted,
    UpstreamProtocol,
    UpstreamProtocolExhausted,
}

impl Flag {
    pub const ALL: [Flag; 17] = [
        Flag::None,
        Flag::NoRoute,
        Flag::NoHealthyUpstream,
        Flag::ConnectFailure,
        Flag::Overflow,
        Flag::Timeout,
        Flag::UpstreamReset,
        Flag::DownstreamClosed,
        Flag::DownstreamProtocol,
        Flag::StreamIdle,
        Flag::Overloaded,
        Flag::RetriesExhausted,
        Flag::ConnectFailureExhausted,
        Flag::TimeoutExhausted,
        Flag::UpstreamResetExhausted,
        Flag::UpstreamProtocol,
        Flag::UpstreamProtocolExhausted,
    ];

    /// The same after as many retries as there may be.
    #[must_use]
    pub fn exhausted(self) -> Self {
        match self {
            Flag::ConnectFailure => Flag::ConnectFailureExhausted,
            Flag::Timeout => Flag::TimeoutExhausted,
            Flag::UpstreamReset => Flag::UpstreamResetExhausted,
            Flag::UpstreamProtocol => Flag::UpstreamProtocolExhausted,
            other => other,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Flag::None => "",
            Flag::NoRoute => "NR",
            Flag::NoHealthyUpstream => "UH",
            Flag::ConnectFailure => "UF",
            Flag::Overflow => "UO",
            Flag::Timeout => "UT",
            Flag::UpstreamReset => "UC",
            Flag::DownstreamClosed => "DC",
            Flag::DownstreamProtocol => "DPE",
            Flag::StreamIdle => "SI",
            Flag::Overloaded => "OM",
            Flag::RetriesExhausted => "URX",
            Flag::ConnectFailureExhausted => "UF,URX",
            Flag::TimeoutExhausted => "UT,URX",
            Flag::UpstreamResetExhausted => "UC,URX",
            Flag::UpstreamProtocol => "UPE",
            Flag::UpstreamProtocolExhausted => "UPE,URX",
        }
    }
}
