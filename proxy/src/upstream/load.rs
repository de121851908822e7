//! The concurrent requests and connections of an upstream, over all workers, and their limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use tokio::sync::Notify;

/// Counts what runs: each permit counts as long as it is held. It outlives revisions.
#[derive(Debug, Default)]
pub struct Load {
    /// Requests in flight, if a limit or a retry budget needs the count.
    requests: AtomicU32,
    retries: AtomicU32,
    connections: AtomicU32,
    /// Requests that wait for a connection.
    pending: AtomicU32,
    /// True if the revision in use limits connections.
    limited: AtomicBool,
    /// Notified when a connection has ended, or is available from the pool.
    freed: Notify,
    /// The results of retries, indexed by [`RetryOutcome`].
    outcomes: [AtomicU64; 4],
}

/// The result of a retry, or the reason why there was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryOutcome {
    /// The retry got a response that is not retried.
    Succeeded,
    Failed,
    /// The retry budget was used up.
    OverBudget,
    /// The request's body is larger than the retry buffer.
    BodyGone,
}

/// One unit of a limited count.
#[derive(Debug)]
pub struct Permit {
    load: Arc<Load>,
    of: Counted,
}

#[derive(Debug, Clone, Copy)]
enum Counted {
    Request,
    Retry,
    Connection,
    Pending,
}

/// The number of concurrent retries that the budget always allows.
const LEAST_RETRIES: u32 = 3;

impl Load {
    /// Takes a permit for a request; `None` if `limit` are taken.
    pub fn request(self: &Arc<Self>, limit: u32) -> Option<Permit> {
        self.permit(Counted::Request, limit)
    }

    /// Takes a permit for a retry, if retries may be `share` millionths of the running requests.
    pub fn retry(self: &Arc<Self>, share: u32) -> Option<Permit> {
        let running = u64::from(self.requests.load(Ordering::Relaxed));
        let limit = (running * u64::from(share) / 1_000_000).max(u64::from(LEAST_RETRIES));
        self.permit(Counted::Retry, u32::try_from(limit).unwrap_or(u32::MAX))
    }

    /// Takes a permit for a connection.
    pub fn connection(self: &Arc<Self>, limit: u32) -> Option<Permit> {
        self.permit(Counted::Connection, limit)
    }

    /// Takes a permit to wait for a connection.
    pub fn pending(self: &Arc<Self>, limit: u32) -> Option<Permit> {
        self.permit(Counted::Pending, limit)
    }

    /// Sets whether connections are limited from now on.
    pub fn limit_connections(&self, limited: bool) {
        self.limited.store(limited, Ordering::Relaxed);
    }

    /// True if connections are limited, so that no other upstream may use them.
    #[inline]
    pub fn limits_connections(&self) -> bool {
        self.limited.load(Ordering::Relaxed)
    }

    /// True if a request waits for a connection.
    #[inline]
    pub fn is_awaited(&self) -> bool {
        self.pending.load(Ordering::Relaxed) > 0
    }

    /// The number of requests that wait for a connection.
    pub fn awaited(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Called by a waiter that has got a connection. If another one may be opened, this wakes the next waiter: the
    /// waiter that was woken for it may have found a connection that came back.
    pub fn acquired(&self, limit: u32) {
        // The caller still counts as waiting.
        if self.awaited() > 1 && self.connections.load(Ordering::Acquire) < limit {
            self.wake_one();
        }
    }

    /// Wakes one waiter, on any worker.
    pub fn wake_one(&self) {
        self.freed.notify_one();
    }

    /// Completes when this waiter is woken.
    pub async fn wait(&self) {
        self.freed.notified().await;
    }

    pub fn count_retry(&self, outcome: RetryOutcome) {
        if let Some(count) = self.outcomes.get(outcome as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The count of each outcome.
    pub fn retries(&self) -> [(&'static str, u64); 4] {
        let [succeeded, failed, over_budget, body_gone] = &self.outcomes;
        [
            ("succeeded", succeeded),
            ("failed", failed),
            ("over_budget", over_budget),
            ("body_too_large", body_gone),
        ]
        .map(|(outcome, count)| (outcome, count.load(Ordering::Relaxed)))
    }

    fn permit(self: &Arc<Self>, of: Counted, limit: u32) -> Option<Permit> {
        if self.cell(of).fetch_add(1, Ordering::AcqRel) >= limit {
            self.cell(of).fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Permit { load: Arc::clone(self), of })
    }

    fn cell(&self, of: Counted) -> &AtomicU32 {
        match of {
            Counted::Request => &self.requests,
            Counted::Retry => &self.retries,
            Counted::Connection => &self.connections,
            Counted::Pending => &self.pending,
        }
    }
}

impl Permit {
    pub fn load(&self) -> &Arc<Load> {
        &self.load
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.load.cell(self.of).fetch_sub(1, Ordering::AcqRel);
        if let Counted::Connection = self.of
            && self.load.is_awaited()
        {
            self.load.wake_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_permits_are_given_than_there_may_be() {
        let load = Arc::<Load>::default();
        let permits: Vec<_> = (0..5).filter_map(|_| load.connection(3)).collect();
        assert_eq!(permits.len(), 3);
        drop(permits);
        assert!(load.connection(1).is_some());
        assert!(load.request(0).is_none());
    }

    #[tokio::test]
    async fn a_permit_that_nobody_took_wakes_the_next_who_waits() {
        let load = Arc::<Load>::default();
        let _waiting: Vec<_> = (0..2).filter_map(|_| load.pending(2)).collect();
        let _open = load.connection(2);
        // This waiter was woken for the other permit, but got a connection that came back.
        load.acquired(2);
        load.wait().await;
        let _both = load.connection(2);
        load.acquired(2);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(1), load.wait()).await.is_err());
    }

    #[test]
    fn retries_are_a_share_of_the_requests_that_run_but_a_few_always_may() {
        for (requests, share, expected) in
            [(0, 0, 3), (10, 200_000, 3), (100, 200_000, 20), (100, 1_000_000, 100)]
        {
            let load = Arc::<Load>::default();
            let _running: Vec<_> = (0..requests).filter_map(|_| load.request(u32::MAX)).collect();
            let retries: Vec<_> = (0..200).filter_map(|_| load.retry(share)).collect();
            assert_eq!(retries.len(), expected, "{requests} {share}");
        }
    }
}
