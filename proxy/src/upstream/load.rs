//! What an upstream has under way, over all workers, and how much it may.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use tokio::sync::Notify;

/// Counted as long as somebody holds a permit. Outlives revisions.
#[derive(Debug, Default)]
pub struct Load {
    /// Requests, of those that are counted: where a limit or a retry budget asks for it.
    requests: AtomicU32,
    retries: AtomicU32,
    connections: AtomicU32,
    /// Requests that wait for a connection.
    pending: AtomicU32,
    /// Whether there is a limit to connections, in the revision in use.
    limited: AtomicBool,
    /// A connection has ended, or could be had from the pool it went back to.
    freed: Notify,
    /// What came of retries, by [`RetryOutcome`].
    outcomes: [AtomicU64; 4],
}

/// What came of a retry, or why there was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryOutcome {
    /// It was answered by something that is not retried.
    Succeeded,
    Failed,
    /// The budget was used up.
    OverBudget,
    /// The request's body is larger than what is kept.
    BodyGone,
}

/// One of what is counted.
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

/// Retries that may run at once however few requests do.
const LEAST_RETRIES: u32 = 3;

impl Load {
    /// For a request; `None`: there are `limit` already.
    pub fn request(self: &Arc<Self>, limit: u32) -> Option<Permit> {
        self.permit(Counted::Request, limit)
    }

    /// For a retry, where `share` millionths of the requests that run may be retries.
    pub fn retry(self: &Arc<Self>, share: u32) -> Option<Permit> {
        let running = u64::from(self.requests.load(Ordering::Relaxed));
        let limit = (running * u64::from(share) / 1_000_000).max(u64::from(LEAST_RETRIES));
        self.permit(Counted::Retry, u32::try_from(limit).unwrap_or(u32::MAX))
    }

    /// For a connection.
    pub fn connection(self: &Arc<Self>, limit: u32) -> Option<Permit> {
        self.permit(Counted::Connection, limit)
    }

    /// To wait for a connection.
    pub fn pending(self: &Arc<Self>, limit: u32) -> Option<Permit> {
        self.permit(Counted::Pending, limit)
    }

    /// Says whether there is a limit to connections from now on.
    pub fn limit_connections(&self, limited: bool) {
        self.limited.store(limited, Ordering::Relaxed);
    }

    /// Whether there is a limit to connections, so that no other upstream is to use them.
    #[inline]
    pub fn limits_connections(&self) -> bool {
        self.limited.load(Ordering::Relaxed)
    }

    /// Whether somebody waits for a connection.
    #[inline]
    pub fn is_awaited(&self) -> bool {
        self.pending.load(Ordering::Relaxed) > 0
    }

    /// How many wait.
    pub fn awaited(&self) -> u32 {
        self.pending.load(Ordering::Relaxed)
    }

    /// One who waited has a connection. If there may be another one, it is the next one's turn: who was woken for it may have
    /// found a connection that came back.
    pub fn served(&self, limit: u32) {
        // Who calls is still counted.
        if self.awaited() > 1 && self.connections.load(Ordering::Acquire) < limit {
            self.freed();
        }
    }

    /// Wakes one who waits, on whatever worker.
    pub fn freed(&self) {
        self.freed.notify_one();
    }

    /// Ends when it was this waiter's turn to be woken.
    pub async fn wait(&self) {
        self.freed.notified().await;
    }

    pub fn count_retry(&self, outcome: RetryOutcome) {
        if let Some(count) = self.outcomes.get(outcome as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often each outcome was counted.
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
            self.load.freed();
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
        // It was woken for the other permit, and had a connection that came back.
        load.served(2);
        load.wait().await;
        let _both = load.connection(2);
        load.served(2);
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
