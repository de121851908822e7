//! The attempts of one request and their results.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};

use super::head;
use super::problem;
use crate::core::outcome::Outcome;
use crate::upstream::{Attempt, AttemptError, Permit, SendRecord, Upstream, UpstreamError};

/// The attempts of one request.
pub struct AttemptRecord {
    pub(super) upstream: Option<Arc<Upstream>>,
    /// The number of times it was sent, and the last time.
    pub sends: SendRecord,
    /// The attempt whose response the client gets.
    current: Option<Attempt>,
    outcome: Outcome,
    /// The gRPC call that targets get; `None`: the request is none in the form in which it is sent on.
    grpc: Option<GrpcCall>,
    /// The time to the response head.
    pub(super) took: Option<Duration>,
    /// The time at which the response ended, if it has.
    pub(super) ended: Option<Instant>,
    /// The reason why the last target did not answer, or not completely.
    pub error: Option<UpstreamError>,
    /// The request's permit from its upstream's limit.
    pub permit: Option<Permit>,
    /// A cookie for the response, which sends the client to the same target again.
    pub set_cookie: Option<Box<HeaderValue>>,
}

/// A request that is a gRPC call in the form in which targets get it, whatever its client speaks.
struct GrpcCall {
    /// True if the target gets a deadline of the client.
    has_deadline: bool,
    /// The status that the last target has given, as far as it is known.
    status: Cell<Option<u8>>,
}

impl AttemptRecord {
    /// Creates the record. `started` is the time at which the request began.
    pub(super) fn new(started: Instant) -> Self {
        Self {
            upstream: None,
            sends: SendRecord::new(started),
            current: None,
            outcome: Outcome::Abandoned,
            grpc: None,
            took: None,
            ended: None,
            error: None,
            permit: None,
            set_cookie: None,
        }
    }

    /// The time of the upstream begins now, and not when the request did: it has waited for plugins.
    #[cold]
    pub(super) fn begin_anew(&mut self) {
        self.sends = SendRecord::new(Instant::now());
    }

    #[inline]
    pub fn set_upstream(&mut self, upstream: &Arc<Upstream>) {
        self.upstream = Some(Arc::clone(upstream));
    }

    /// Records that targets get a gRPC call. `has_deadline`: with a deadline of the client.
    #[inline]
    pub(super) fn set_grpc_call(&mut self, has_deadline: bool) {
        self.grpc = Some(GrpcCall { has_deadline, status: Cell::new(None) });
    }

    /// Records the status of the gRPC call as `fields` of a target have it, a response's head or trailers.
    #[inline]
    pub(super) fn read_grpc_status(&self, fields: &HeaderMap) {
        if let Some(call) = &self.grpc {
            call.status.set(head::grpc_status(fields));
        }
    }

    /// The status that the target has given to the gRPC call, as far as it is known.
    #[inline]
    pub(super) fn grpc_status(&self) -> Option<u8> {
        self.grpc.as_ref()?.status.get()
    }

    /// True if the target is responsible for the gRPC call's status, as far as it is known.
    #[inline]
    pub(super) fn has_grpc_failed(&self) -> bool {
        self.grpc
            .as_ref()
            .is_some_and(|call| problem::is_targets_failure(call.status.get(), call.has_deadline))
    }

    /// Prepares for another attempt: the result of the previous one is not final.
    pub(super) fn restart(&mut self) {
        (self.ended, self.took, self.error) = (None, None, None);
        if let Some(call) = &self.grpc {
            call.status.set(None);
        }
    }

    /// Records that a response head has arrived.
    #[inline]
    pub(super) fn answered(&mut self, now: Instant) {
        self.took = Some(now.saturating_duration_since(self.sends.last()));
        self.ended = Some(now);
    }

    /// The time at which the head of the response arrived that the client gets.
    pub(super) fn answered_at(&self) -> Option<Instant> {
        self.took.map(|took| self.sends.last() + took)
    }

    /// Keeps `attempt`, whose response the client gets; its outcome so far is `outcome`.
    #[inline]
    pub fn keep(&mut self, attempt: Attempt, outcome: Outcome) {
        self.current = Some(attempt);
        self.outcome = outcome;
    }

    /// Ends an `attempt` whose response, if any, the client does not get.
    #[cold]
    pub fn end_failed(&mut self, attempt: Attempt, worker: usize, outcome: Outcome) {
        if let Some(upstream) = &self.upstream {
            attempt.end(upstream, worker, outcome, None, Instant::now());
        }
    }

    /// Records why there is no response.
    #[cold]
    pub fn note_error(&mut self, error: AttemptError) {
        self.error = error.reason;
    }

    /// The answer that the client gets does not come to its end.
    #[cold]
    pub(super) fn note_broken(&mut self, reason: UpstreamError, error: &dyn std::error::Error) {
        self.error = Some(reason);
        if let (Some(upstream), Some(attempt)) = (&self.upstream, &self.current) {
            attempt.note_error(upstream, reason, error);
        }
    }

    /// Sets the final outcome of the response.
    pub(super) fn set_outcome(&mut self, outcome: Outcome) {
        // A failure status counts, even if the response then breaks off.
        if self.outcome == Outcome::Good {
            self.outcome = outcome;
        }
    }

    /// Ends the kept attempt, and reports its outcome.
    pub(super) fn end(&mut self, worker: usize, now: Instant) {
        if let (Some(upstream), Some(attempt)) = (&self.upstream, self.current.take()) {
            attempt.end(upstream, worker, self.outcome, self.took, now);
        }
        self.permit = None;
    }

    /// Gives up the kept attempt without reporting an outcome.
    pub(super) fn abandon(&mut self) {
        self.current = None;
    }
}
