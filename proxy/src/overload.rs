//! What a worker takes on, and what it does when it is more than it can do.
//!
//! The measure is the lag of the worker's loop: how long something that is ready waits for its turn. It is taken by a timer
//! that runs only while requests come. Refusing a request costs a third to a half of what answering it does, so refusing
//! alone would only use up the time that is short; what helps is to have fewer clients. Hence two steps:
//!
//! 1. Beyond [`LATE`], connections are accepted one by one: others wait in the kernel's queue, which is bounded and costs
//!    nothing.
//! 2. Beyond [`TOO_LATE`], twice in a row, requests are refused with 503 and `Connection: close`, until the lag has halved.
//!
//! Beside that, a worker has a bounded number of requests under way, whatever they wait for.

use std::cell::Cell;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Of one worker.
pub struct Overload {
    /// Requests that may be under way.
    most: u32,
    running: Cell<u32>,
    level: Cell<Level>,
    /// Whether a request began since the lag was measured last.
    busy: Cell<bool>,
    /// The timer waits for a request.
    parked: Cell<bool>,
    request: Notify,
    /// A connection may be accepted.
    accept: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Fine,
    /// Connections are accepted one by one.
    Late,
    /// The next measure decides.
    Suspect,
    /// Requests are refused.
    TooLate,
}

/// The lag beyond which connections are accepted one by one, and that beyond which requests are refused.
const LATE: Duration = Duration::from_millis(150);
const TOO_LATE: Duration = Duration::from_millis(500);

/// How often the lag is measured.
const TICK: Duration = Duration::from_millis(20);

impl Overload {
    /// With at most `most` requests under way.
    pub fn new(most: u32) -> Self {
        Self {
            most,
            running: Cell::new(0),
            level: Cell::new(Level::Fine),
            busy: Cell::new(false),
            parked: Cell::new(true),
            request: Notify::new(),
            accept: Notify::new(),
        }
    }

    /// A request begins.
    #[inline]
    pub fn begin(&self) {
        self.running.set(self.running.get() + 1);
        self.busy.set(true);
        if self.parked.get() {
            self.parked.set(false);
            self.request.notify_one();
        }
    }

    /// A request has ended.
    #[inline]
    pub fn end(&self) {
        self.running.set(self.running.get().saturating_sub(1));
    }

    /// Whether the request that has just begun is to be refused.
    #[inline]
    pub fn refuses(&self) -> bool {
        self.running.get() > self.most || self.is_too_late()
    }

    /// Whether clients are to go elsewhere.
    #[inline]
    pub fn is_too_late(&self) -> bool {
        self.level.get() == Level::TooLate
    }

    /// Waits until another connection may be accepted.
    pub async fn may_accept(&self) {
        if self.level.get() > Level::Fine {
            self.accept.notified().await;
        }
    }

    /// Measures the lag, for ever.
    pub async fn watch(&self) {
        loop {
            self.parked.set(true);
            self.request.notified().await;
            while self.busy.replace(false) || self.level.get() > Level::Fine {
                let due = Instant::now() + TICK;
                tokio::time::sleep_until(due.into()).await;
                self.see(Instant::now().saturating_duration_since(due));
            }
        }
    }

    fn see(&self, lag: Duration) {
        let before = self.level.get();
        let level = before.after(lag);
        self.level.set(level);
        match level {
            Level::Fine if before > Level::Fine => self.accept.notify_waiters(),
            Level::Fine => {}
            Level::Late | Level::Suspect | Level::TooLate => self.accept.notify_one(),
        }
        if (before == Level::TooLate) != (level == Level::TooLate) {
            tracing::debug!(?lag, ?level, "load shedding");
        }
    }
}

impl Level {
    /// The level after a lag of `lag` was seen.
    fn after(self, lag: Duration) -> Self {
        match self {
            Self::Suspect | Self::TooLate if lag > TOO_LATE => Self::TooLate,
            Self::TooLate if lag > TOO_LATE / 2 => Self::TooLate,
            _ if lag > TOO_LATE => Self::Suspect,
            _ if lag > LATE => Self::Late,
            Self::Fine => Self::Fine,
            _ if lag > LATE / 2 => Self::Late,
            _ => Self::Fine,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_follow_the_lag_and_do_not_flap() {
        let mut level = Level::Fine;
        for (millis, expected) in [
            (1, Level::Fine),
            (140, Level::Fine),
            (160, Level::Late),
            (100, Level::Late),
            (70, Level::Fine),
            // A single pause, of the machine perhaps, refuses nobody.
            (900, Level::Suspect),
            (5, Level::Fine),
            (600, Level::Suspect),
            (600, Level::TooLate),
            (300, Level::TooLate),
            (240, Level::Late),
            (10, Level::Fine),
        ] {
            level = level.after(Duration::from_millis(millis));
            assert_eq!(level, expected, "{millis}");
        }
    }

    #[test]
    fn requests_beyond_what_may_be_under_way_are_refused() {
        let overload = Overload::new(2);
        (0..2).for_each(|_| overload.begin());
        assert!(!overload.refuses());
        overload.begin();
        assert!(overload.refuses());
        overload.end();
        assert!(!overload.refuses());
    }
}
