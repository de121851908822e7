//! The state of the connection to Redis, as requests see it.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use tokio::sync::Notify;

/// Counts misses, and stops requests from waiting for a Redis that is away.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    state: AtomicU8,
    misses: AtomicU32,
    tripped: Notify,
}

/// Requests wait while the first connection or another one is made; its own time limit ends that.
const CONNECTING: u8 = 0;
const UP: u8 = 1;
/// Requests do not wait.
const DOWN: u8 = 2;

/// The number of misses in a row after which Redis counts as away.
const MAX_MISSES: u32 = 5;

impl Breaker {
    pub(super) fn is_down(&self) -> bool {
        self.state.load(Ordering::Relaxed) == DOWN
    }

    /// An answer came in time. True if Redis was not up before.
    pub(super) fn up(&self) -> bool {
        self.misses.store(0, Ordering::Relaxed);
        self.state.swap(UP, Ordering::Relaxed) != UP
    }

    /// An answer came in time over a connection that is still used.
    pub(super) fn hit(&self) {
        if self.misses.load(Ordering::Relaxed) != 0 {
            self.misses.store(0, Ordering::Relaxed);
        }
    }

    /// No answer came in time.
    pub(super) fn miss(&self) {
        let misses = self.misses.fetch_add(1, Ordering::Relaxed) + 1;
        if misses >= MAX_MISSES
            && self.state.compare_exchange(UP, DOWN, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.tripped.notify_one();
        }
    }

    /// The connection is lost, and another one is made.
    pub(super) fn reconnect(&self) {
        let _ = self.state.compare_exchange(UP, CONNECTING, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Redis cannot be reached. True if that was not known before.
    pub(super) fn down(&self) -> bool {
        self.state.swap(DOWN, Ordering::Relaxed) != DOWN
    }

    /// Waits until misses have made Redis count as away.
    pub(super) async fn tripped(&self) {
        loop {
            let notified = self.tripped.notified();
            if self.is_down() {
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_in_a_row_stop_requests_until_redis_is_up_again() {
        let breaker = Breaker::default();
        assert!(!breaker.is_down() && breaker.up());
        for _ in 0..3 {
            for _ in 1..MAX_MISSES {
                breaker.miss();
            }
            breaker.hit();
        }
        assert!(!breaker.is_down());
        for _ in 0..MAX_MISSES {
            breaker.miss();
        }
        assert!(breaker.is_down());
        // Late misses and lost connections change nothing.
        breaker.miss();
        breaker.reconnect();
        assert!(breaker.is_down() && !breaker.down());
        assert!(breaker.up() && !breaker.up() && !breaker.is_down());
    }
}
