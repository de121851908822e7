//! What a worker takes on, and what it does when it is more than it can do.
//!
//! The measure is the lag of the worker's loop: how long something that is ready waits for its turn. It is taken by a timer
//! that runs only while requests come. Refusing a request costs a third to a half of what answering it does, so refusing
//! alone would only use up the time that is short; what helps is to have fewer clients. Hence two steps:
//!
//! 1. Beyond [`LATE`], connections are accepted one by one, and the kernel keeps only a few that wait: the others it leaves
//!    unanswered, which costs nothing. A long queue would be full of clients that have left by the time it is their turn.
//! 2. Beyond [`TOO_LATE`], twice in a row, some requests are refused with 503 and `Connection: close`: the more the further it
//!    is to half of that, and at most half of them, so that each round of requests is a smaller one.
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
    /// Which share of the requests is refused, of 256.
    share: Cell<u8>,
    /// Whether a request began since the lag was measured last.
    busy: Cell<bool>,
    /// The timer waits for a request.
    parked: Cell<bool>,
    request: Notify,
    /// A connection may be accepted.
    accept: Notify,
    /// Measures since it was late last, up to [`CALM`].
    calm: Cell<u32>,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// As many as may be are under way.
    TooMany,
    /// There are too many clients.
    TooLate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Fine,
    /// Connections are accepted one by one.
    Late,
    /// The next measure decides.
    Suspect,
    /// Some requests are refused.
    TooLate,
}

/// The lag beyond which connections are accepted one by one, and that beyond which some requests are refused.
const LATE: Duration = Duration::from_millis(150);
const TOO_LATE: Duration = Duration::from_millis(500);

/// How often the lag is measured.
const TICK: Duration = Duration::from_millis(20);

/// After so many measures that were fine it is over.
const CALM: u32 = 50;

impl Overload {
    /// With at most `most` requests under way.
    pub fn new(most: u32) -> Self {
        Self {
            most,
            running: Cell::new(0),
            level: Cell::new(Level::Fine),
            share: Cell::new(0),
            busy: Cell::new(false),
            parked: Cell::new(true),
            request: Notify::new(),
            accept: Notify::new(),
            calm: Cell::new(CALM),
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

    /// Whether the request that has just begun is to be refused; and if so, whether its client is to go elsewhere.
    #[inline]
    pub fn refuses(&self) -> Option<Refusal> {
        match self.share.get() {
            0 if self.running.get() <= self.most => None,
            share if share > 0 && fastrand::u8(..) < share => Some(Refusal::TooLate),
            _ if self.running.get() > self.most => Some(Refusal::TooMany),
            _ => None,
        }
    }

    /// Whether few connections are to wait to be accepted.
    pub fn wants_few_waiting(&self) -> bool {
        self.calm.get() < CALM
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
            while self.busy.replace(false) || self.wants_few_waiting() {
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
        self.share.set(if level == Level::TooLate { excess(lag) } else { 0 });
        self.calm.set(if level == Level::Fine { (self.calm.get() + 1).min(CALM) } else { 0 });
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

/// Half of the share, of 256, by which there are more requests than those that take half of [`TOO_LATE`].
fn excess(lag: Duration) -> u8 {
    let more = lag.saturating_sub(TOO_LATE / 2).as_micros() * 128 / lag.as_micros().max(1);
    u8::try_from(more).unwrap_or(u8::MAX).max(1)
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
        assert_eq!(overload.refuses(), None);
        overload.begin();
        assert_eq!(overload.refuses(), Some(Refusal::TooMany));
        overload.end();
        assert_eq!(overload.refuses(), None);
    }

    #[test]
    fn the_more_is_refused_the_later_it_is_but_at_most_half() {
        let refused = |lag: u64| {
            let overload = Overload::new(10);
            (0..2).for_each(|_| overload.see(Duration::from_millis(lag)));
            (0..10_000).filter(|_| overload.refuses() == Some(Refusal::TooLate)).count()
        };
        fastrand::seed(7);
        for (lag, expected) in [(400, 0..1), (510, 2300..2700), (1000, 3500..4000), (60_000, 4700..5100)] {
            let refused = refused(lag);
            assert!(expected.contains(&refused), "{lag}: {refused}");
        }
    }
}
