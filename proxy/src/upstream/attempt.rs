//! One attempt to send a request to a target: picking the target, sending, and reporting the result.

use std::time::{Duration, Instant};

use http::HeaderMap;

use super::breaker::Trial;
use super::cluster::{InFlight, Upstream};
use super::endpoint::Endpoint;
use super::error::SendError;
use super::failure::{Timeout, UpstreamError};
use super::http1::Head;
use super::load::Permit;
use super::members::{Pick, Picked};
use super::outgoing::Outgoing;
use super::pool::Pool;
use super::send::SendRecord;
use super::switched::Switched;
use super::target_body::TargetBody;
use crate::core::failure::Failure;
use crate::core::outcome::Outcome;

/// One attempt. An attempt that is dropped before [`Attempt::end`] reports nothing about its target.
#[derive(Debug)]
pub struct Attempt {
    endpoint: Endpoint,
    in_flight: Option<InFlight>,
    /// The circuit breaker's permit, until the result is reported to it.
    trial: Option<Trial>,
}

/// The reason why an attempt got no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttemptError {
    pub failure: Failure,
    /// The target's error; `None` if the failure is not the target's fault.
    pub reason: Option<UpstreamError>,
}

impl From<Failure> for AttemptError {
    fn from(failure: Failure) -> Self {
        Self { failure, reason: None }
    }
}

impl Upstream {
    /// Takes a permit from the upstream's limit on concurrent requests.
    pub fn admit_request(&self) -> Result<Permit, Failure> {
        let limit = self.transport.limits.map_or(u32::MAX, |limits| limits.requests);
        self.transport.load.request(limit).ok_or(Failure::Overflow)
    }

    /// Asks the upstream's circuit breaker, if it has one, for permission to send.
    pub fn admit_attempt(&self) -> Result<Option<Trial>, Failure> {
        match &self.breaker {
            None => Ok(None),
            Some(breaker) => breaker.admit(Instant::now()).map(Some).ok_or(Failure::Overflow),
        }
    }
}

impl Attempt {
    /// Picks a target. `trial` is the circuit breaker's permit.
    #[inline]
    pub fn begin<'a>(
        upstream: &'a Upstream,
        pick: &Pick<'_>,
        trial: Option<Trial>,
    ) -> Result<(Self, Picked<'a>), AttemptError> {
        let Some(target) = upstream.pick(pick) else {
            return Err(AttemptError {
                failure: Failure::NoHealthyTarget,
                reason: upstream.note_no_target(),
            });
        };
        let in_flight = upstream.begin(&target);
        Ok((Self { endpoint: upstream.transport.endpoint(&target), in_flight, trial }, target))
    }

    /// Sends a request to the target, and waits for the response head: see [`Pool::send`].
    #[inline]
    pub async fn send(
        &self,
        pool: &Pool,
        upstream: &Upstream,
        request: &mut Outgoing,
        headers: &mut HeaderMap,
        record: &SendRecord,
    ) -> Result<(Head, TargetBody), AttemptError> {
        let sent = pool.send(&upstream.transport, self.endpoint, request, headers, record).await;
        sent.map_err(|error| self.failed(upstream, &error))
    }

    /// Opens an unused connection to the target for a CONNECT request.
    pub async fn open(&self, pool: &Pool, upstream: &Upstream) -> Result<Switched, AttemptError> {
        let opened = pool.open(&upstream.transport, self.endpoint).await;
        opened.map_err(|error| self.failed(upstream, &error.into()))
    }

    #[cold]
    fn failed(&self, upstream: &Upstream, error: &SendError) -> AttemptError {
        let reason = error.reason();
        if let Some(reason) = reason {
            upstream.note_error(self.endpoint, reason, error);
        }
        AttemptError { failure: error.failure(), reason }
    }

    /// Records why the target did not answer, or not completely, and returns the reason.
    #[cold]
    pub fn note_error(
        &self,
        upstream: &Upstream,
        reason: UpstreamError,
        error: &dyn std::error::Error,
    ) -> UpstreamError {
        upstream.note_error(self.endpoint, reason, error);
        reason
    }

    /// The same where `failure` is that a time was over. `None`: it is another, or the target has no part in it.
    #[cold]
    pub fn note_timeout(
        &self,
        upstream: &Upstream,
        failure: Failure,
        request: &Outgoing,
    ) -> Option<UpstreamError> {
        let timeout = Timeout::before_answer(failure, request.has_begun())?;
        Some(self.note_error(upstream, timeout.reason(), &timeout))
    }

    /// Reports to the circuit breaker that the response head has arrived; the breaker does not wait for the body.
    #[inline]
    pub fn answered(&mut self, worker: usize, outcome: Outcome) {
        if let (Some(trial), Some(succeeded)) = (self.trial.take(), outcome.is_success()) {
            trial.report(worker, Instant::now(), succeeded);
        }
    }

    /// Ends the attempt and reports its outcome. `took` is the time to the response head; `None` if there was none.
    #[inline]
    pub fn end(
        mut self,
        upstream: &Upstream,
        worker: usize,
        outcome: Outcome,
        took: Option<Duration>,
        now: Instant,
    ) {
        self.answered(worker, outcome);
        if outcome.is_success() == Some(false) {
            upstream.count_failed(self.endpoint);
        }
        if let Some(in_flight) = &self.in_flight {
            upstream.end(in_flight, outcome, took, now);
        }
    }
}
