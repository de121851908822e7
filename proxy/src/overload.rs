//! Load shedding of a worker: the requests that it accepts, and what it does under overload.
//!
//! The measure is the delay of the worker's queue: how long something that is ready waits for its turn. A timer
//! measures it, which runs only while requests arrive. Everything that waits is in that queue, or joins it within one
//! round, because connections are accepted as they arrive. So a waiting client learns soon whether it will be served:
//!
//! 1. When two measures in a row exceed `--max-queue-delay`, requests that have waited longer than half of it are
//!    refused with 503. A single pause, perhaps of the machine, delays one measure and not two. The second measure need
//!    not be complete: a growing queue only gets longer. This goes on until no request has been that late for [`RECOVERY_TIME`].
//!    Each request is judged by its own time in the queue, so accepted requests are answered in bounded time however
//!    many arrive, and as many are accepted as there is time for. (CoDel, RFC 8289, treats packets in this way.)
//! 2. Refusing takes time, too: little compared with a costly request, and up to half of a cheap one on a connection of
//!    its own. If it leaves less than half of the time for accepted requests, there have to be fewer clients: refused
//!    clients are told to close, connections are accepted one by one, and the kernel's accept queue is short. TLS
//!    handshakes cost more than requests, and cannot be refused before they are made, so connections that begin with
//!    one are accepted one by one sooner.
//!
//! In addition, the number of concurrent requests of a worker is limited, whatever they wait for.

use std::cell::Cell;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Overload state of one worker thread.
pub struct Overload {
    /// The limit on concurrent requests.
    most: u32,
    running: Cell<u32>,
    /// The limit on the delay; `None`: requests are not refused for having waited.
    max_delay: Option<Duration>,
    shedding: Cell<Shedding>,
    /// A request whose turn comes after this time has waited too long. `None`: the delay is not measured.
    refuse_after: Cell<Option<Instant>>,
    /// The number of requests since the last measure, and the number of them that were refused for having waited.
    begun: Cell<u32>,
    refused: Cell<u32>,
    plain: Cell<Gate>,
    tls: Cell<Gate>,
    /// True if the timer waits for a request.
    parked: Cell<bool>,
    request: Notify,
    /// Notified when a connection may be accepted.
    accept: Notify,
    /// The time at which refusals were last logged.
    logged: Cell<Option<Instant>>,
}

/// The reason why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It has waited too long, or the limit on concurrent requests is reached.
    Busy,
    /// There are too many clients even to refuse their requests.
    Crowded,
}

/// The beginning of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    Plain,
    /// A TLS handshake.
    Tls,
}

/// The state of refusing requests that have waited too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Shedding {
    /// The number of consecutive measures above the limit.
    above: u32,
    /// While requests are refused: the last time at which one was, or could have been.
    last: Option<Instant>,
    /// The number of requests per second that were served before any was refused.
    capacity: u32,
    /// True if refusing takes so long that less than half of the capacity is served.
    crowded: bool,
}

/// The state of accepting connections one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gate {
    narrow: bool,
    /// The number of measures since the gate was last narrow, up to [`GATE_RECOVERY`].
    calm: u32,
}

/// The result of one measure.
#[derive(Debug, Clone, Copy)]
struct Measure {
    at: Instant,
    delay: Duration,
    /// The number of requests since the previous measure, and the number of them that were refused for having waited.
    begun: u32,
    refused: u32,
}

/// The interval between measures.
const TICK: Duration = Duration::from_millis(20);

/// With fewer requests between two measures, none is refused: they are not the cause of the delay.
const MIN_REQUESTS: u32 = 32;

/// Shedding ends after this time without a request that waited too long.
const RECOVERY_TIME: Duration = Duration::from_secs(1);

/// The delay above which connections that begin with a handshake are accepted one by one, and others if no request is
/// refused.
const MAX_HANDSHAKE_DELAY: Duration = Duration::from_millis(150);

/// The same for other connections, whose requests can be refused.
const MAX_ACCEPT_DELAY: Duration = Duration::from_secs(1);

/// The number of good measures after which the accept queue has its normal length.
const GATE_RECOVERY: u32 = 50;

/// The minimum time between two log lines about refusals.
const LOG_PAUSE: Duration = Duration::from_secs(10);

impl Overload {
    /// Creates the state with at most `most` concurrent requests, of which none may wait for its turn much longer than
    /// `max_delay`.
    pub fn new(most: u32, max_delay: Option<Duration>) -> Self {
        Self {
            most,
            running: Cell::new(0),
            max_delay,
            shedding: Cell::default(),
            refuse_after: Cell::new(None),
            begun: Cell::new(0),
            refused: Cell::new(0),
            plain: Cell::new(Gate::OPEN),
            tls: Cell::new(Gate::OPEN),
            parked: Cell::new(true),
            request: Notify::new(),
            accept: Notify::new(),
            logged: Cell::new(None),
        }
    }

    /// Records that a request begins.
    #[inline]
    pub fn begin(&self) {
        self.running.set(self.running.get() + 1);
        self.begun.set(self.begun.get().saturating_add(1));
        if self.parked.get() {
            self.parked.set(false);
            self.request.notify_one();
        }
    }

    /// Records that a request has ended.
    #[inline]
    pub fn end(&self) {
        self.running.set(self.running.get().saturating_sub(1));
    }

    /// Returns why the request that has just begun, at `now`, is refused, if it is.
    #[inline]
    pub fn refuses(&self, now: Instant) -> Option<Refusal> {
        if self.refuse_after.get().is_some_and(|at| now > at)
            && (self.begun.get() >= MIN_REQUESTS || self.shedding.get().last.is_some())
        {
            self.refused.set(self.refused.get().saturating_add(1));
            return Some(if self.shedding.get().crowded { Refusal::Crowded } else { Refusal::Busy });
        }
        (self.running.get() > self.most).then_some(Refusal::Busy)
    }

    /// True if the accept queue is to be short.
    pub fn wants_few_waiting(&self, opening: Opening) -> bool {
        self.gate(opening).get().calm < GATE_RECOVERY
    }

    /// Waits until another connection may be accepted.
    pub async fn may_accept(&self, opening: Opening) {
        if self.gate(opening).get().narrow {
            self.accept.notified().await;
        }
    }

    fn gate(&self, opening: Opening) -> &Cell<Gate> {
        match opening {
            Opening::Plain => &self.plain,
            Opening::Tls => &self.tls,
        }
    }

    /// Measures the delay; never returns.
    pub async fn watch(&self) {
        loop {
            self.parked.set(true);
            self.request.notified().await;
            loop {
                let due = Instant::now() + TICK;
                // The timer is queued when it is due, behind everything that was ready before. So anything whose turn
                // comes before the timer's has waited since then at least.
                let allowed = self.max_delay.map(|max_delay| self.shedding.get().allowed(max_delay));
                self.refuse_after.set(allowed.map(|allowed| due + allowed));
                tokio::time::sleep_until(due.into()).await;
                let at = Instant::now();
                let begun = self.begun.replace(0);
                let delay = at.saturating_duration_since(due);
                self.see(Measure { at, delay, begun, refused: self.refused.replace(0) });
                let watches = self.shedding.get() != Shedding::default()
                    || [Opening::Plain, Opening::Tls].into_iter().any(|it| self.wants_few_waiting(it));
                if begun == 0 && !watches {
                    self.refuse_after.set(None);
                    break;
                }
            }
        }
    }

    fn see(&self, measure: Measure) {
        let before = self.shedding.get();
        let shedding = match self.max_delay {
            Some(max_delay) => before.after(measure, max_delay),
            None => Shedding::default(),
        };
        self.shedding.set(shedding);
        if before.last.is_none() && shedding.last.is_some() {
            self.log(measure);
        }
        let limit = if self.max_delay.is_some() { MAX_ACCEPT_DELAY } else { MAX_HANDSHAKE_DELAY };
        let mut opened = false;
        for (gate, limit) in [(&self.plain, limit), (&self.tls, MAX_HANDSHAKE_DELAY)] {
            let before = gate.get();
            let after = before.after(measure.delay, limit, shedding.crowded);
            gate.set(after);
            opened |= before.narrow && !after.narrow;
        }
        if opened {
            self.accept.notify_waiters();
        } else if self.plain.get().narrow || self.tls.get().narrow {
            self.accept.notify_one();
        }
    }

    fn log(&self, measure: Measure) {
        if self.logged.get().is_none_or(|at| measure.at.saturating_duration_since(at) > LOG_PAUSE) {
            self.logged.set(Some(measure.at));
            let waited_ms = measure.delay.as_millis();
            tracing::warn!(waited_ms, "overload: requests that wait too long are answered with 503");
        }
    }
}

impl Shedding {
    /// How long a request may have waited when its turn comes.
    fn allowed(self, max_delay: Duration) -> Duration {
        match self {
            Self { last: Some(_), .. } => max_delay / 2,
            // The second measure becomes too late.
            Self { above: 1.., .. } => max_delay,
            // This is longer than a machine's pause usually takes.
            _ => max_delay * 4,
        }
    }

    fn after(self, measure: Measure, max_delay: Duration) -> Self {
        let is_above = measure.delay > max_delay && measure.begun >= MIN_REQUESTS;
        let above = if is_above { self.above.saturating_add(1) } else { 0 };
        let last = match self.last {
            _ if measure.refused > 0 || above >= 2 => Some(measure.at),
            Some(last) if measure.at.saturating_duration_since(last) < RECOVERY_TIME => Some(last),
            Some(_) | None => None,
        };
        let served = u128::from(measure.begun.saturating_sub(measure.refused)) * 1000;
        let served = u32::try_from(served / (TICK + measure.delay).as_millis().max(1)).unwrap_or(u32::MAX);
        let capacity = match (self.last, last) {
            (Some(_), Some(_)) => self.capacity,
            (None, Some(_)) => served,
            (_, None) => 0,
        };
        // When shedding has just begun, there is no figure to compare with.
        let crowded = self.last.is_some() && measure.refused > 0 && served < capacity / 2;
        Self { above, last, capacity, crowded }
    }
}

impl Gate {
    const OPEN: Self = Self { narrow: false, calm: GATE_RECOVERY };

    fn after(self, delay: Duration, limit: Duration, crowded: bool) -> Self {
        let narrow = crowded || delay > if self.narrow { limit / 2 } else { limit };
        Self { narrow, calm: if narrow { 0 } else { (self.calm + 1).min(GATE_RECOVERY) } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_millis(250);

    /// A measure at a time, in ms, with a delay, in ms.
    fn measure(start: Instant, at: u64, delay: u64) -> Measure {
        let (at, delay) = (start + Duration::from_millis(at), Duration::from_millis(delay));
        Measure { at, delay, begun: 100, refused: 0 }
    }

    #[test]
    fn two_measures_in_a_row_begin_it_and_a_second_without_a_refusal_ends_it() {
        let start = Instant::now();
        let mut shedding = Shedding::default();
        for (at, delay, begun, refused, expected) in [
            (0, 10, 100, 0, false),
            // A single pause, however long, refuses no request, nor do the requests that it has delayed.
            (5000, 5000, 100, 0, false),
            (5200, 200, 100, 0, false),
            (5400, 400, 100, 0, false),
            (5500, 100, 100, 0, false),
            (6000, 300, 100, 0, false),
            // A few requests do not count as overload.
            (6500, 500, 31, 0, false),
            (7000, 500, 100, 0, false),
            (7300, 300, 100, 0, true),
            (7400, 130, 100, 5, true),
            (8000, 130, 100, 5, true),
            (8500, 100, 100, 0, true),
            (8990, 20, 100, 0, true),
            (9010, 20, 100, 0, false),
            (9400, 400, 100, 0, false),
        ] {
            shedding = shedding.after(Measure { begun, refused, ..measure(start, at, delay) }, MAX);
            assert_eq!(shedding.last.is_some(), expected, "at {at}: {shedding:?}");
        }
    }

    #[test]
    fn the_second_measure_need_not_be_complete() {
        let (start, calm) = (Instant::now(), Shedding::default());
        assert_eq!(calm.allowed(MAX), MAX * 4);
        let late = calm.after(measure(start, 0, 260), MAX);
        assert_eq!((late.last, late.allowed(MAX)), (None, MAX));
        // Requests were refused before the measure was due.
        let shedding = late.after(Measure { refused: 1, ..measure(start, 500, 260) }, MAX);
        assert_eq!(shedding.allowed(MAX), MAX / 2);
        let fine = late.after(measure(start, 500, 100), MAX);
        assert_eq!(fine.allowed(MAX), MAX * 4);
        // The first few requests are served however late it is.
        let overload = Overload::new(1000, Some(MAX));
        overload.refuse_after.set(Some(start));
        let refused = (0..100).filter(|_| {
            overload.begin();
            overload.refuses(start + Duration::from_secs(1)).is_some()
        });
        assert_eq!(refused.count(), 69);
    }

    #[test]
    fn connections_are_accepted_one_by_one_beyond_a_limit_and_it_does_not_flap() {
        let mut gate = Gate::OPEN;
        for (delay, narrow) in
            [(10, false), (150, false), (151, true), (100, true), (76, true), (75, false), (140, false)]
        {
            gate = gate.after(Duration::from_millis(delay), MAX_HANDSHAKE_DELAY, false);
            assert_eq!(gate.narrow, narrow, "{delay}");
        }
        assert_eq!(gate.calm, 2);
        (0..100).for_each(|_| gate = gate.after(Duration::ZERO, MAX_HANDSHAKE_DELAY, false));
        assert_eq!(gate, Gate::OPEN);
        assert!(gate.after(Duration::ZERO, MAX_HANDSHAKE_DELAY, true).narrow);
    }

    #[test]
    fn handshakes_are_held_back_before_connections_whose_requests_can_be_refused() {
        let start = Instant::now();
        for (max_delay, delay, plain, tls) in [
            (Some(MAX), 140, false, false),
            (Some(MAX), 200, false, true),
            (Some(MAX), 900, false, true),
            (Some(MAX), 1100, true, true),
            (None, 140, false, false),
            (None, 200, true, true),
        ] {
            let overload = Overload::new(10, max_delay);
            overload.see(measure(start, 0, delay));
            let narrow = |opening| overload.gate(opening).get().narrow;
            assert_eq!((narrow(Opening::Plain), narrow(Opening::Tls)), (plain, tls), "{max_delay:?} {delay}");
        }
    }

    #[test]
    fn requests_beyond_what_may_be_under_way_are_refused() {
        let (overload, now) = (Overload::new(2, Some(MAX)), Instant::now());
        (0..2).for_each(|_| overload.begin());
        assert_eq!(overload.refuses(now), None);
        overload.begin();
        assert_eq!(overload.refuses(now), Some(Refusal::Busy));
        overload.end();
        assert_eq!(overload.refuses(now), None);
    }

    #[test]
    fn where_refusing_takes_more_than_half_of_the_time_clients_are_sent_away() {
        let start = Instant::now();
        let mut shedding = Shedding::default();
        // 1000 requests per second, while all are served.
        for (at, delay, begun, refused, crowded) in [
            (0, 480, 500, 0, false),
            (500, 480, 500, 0, false),
            (700, 180, 400, 250, false),
            (900, 180, 1000, 920, true),
            (1100, 180, 300, 150, false),
            (1300, 180, 10, 0, false),
        ] {
            shedding = shedding.after(Measure { begun, refused, ..measure(start, at, delay) }, MAX);
            assert_eq!(shedding.crowded, crowded, "at {at}: {shedding:?}");
        }
        assert_eq!(shedding.capacity, 1000);
    }

    #[test]
    fn without_a_limit_no_request_is_refused_for_having_waited() {
        let start = Instant::now();
        let refused = |max_delay| {
            let overload = Overload::new(10, max_delay);
            (0..5).for_each(|number| overload.see(measure(start, number * 600, 600)));
            overload.shedding.get().last.is_some()
        };
        assert!(refused(Some(MAX)));
        assert!(!refused(None));
    }
}
