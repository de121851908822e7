//! One worker's deadlines: of requests, slow request heads and idle connections.
//!
//! Nearly every deadline is moved or dropped long before it expires, so that must cost next to nothing: a deadline is
//! a cell, and one timer sleeps until the earliest moment at which any deadline *may* have expired. It then checks all
//! cells; with timeouts of seconds that happens about once a second.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use slab::Slab;

/// The minimum interval between checks of `count` deadlines. Where thousands expire per second, each may be late by
/// this interval, and they share a check. With 100,000 deadlines a check takes a fraction of a millisecond.
fn coarse(count: usize) -> Duration {
    Duration::from_micros(count as u64 / 4).min(Duration::from_millis(20))
}

/// All deadlines of a worker.
#[derive(Debug, Default)]
pub struct Deadlines {
    entries: RefCell<Slab<Entry>>,
    /// The time of the next check; `None`: there is no deadline.
    earliest: Cell<Option<Instant>>,
    /// The waker of the task in [`Deadlines::run`].
    timer: RefCell<Option<Waker>>,
}

#[derive(Debug, Default)]
struct Entry {
    at: Option<Instant>,
    passed: bool,
    waker: Option<Waker>,
}

/// One deadline, which can be set repeatedly.
#[derive(Debug)]
pub struct Deadline {
    all: Rc<Deadlines>,
    key: usize,
}

impl Deadlines {
    /// Adds a deadline that is not set.
    pub fn add(self: &Rc<Self>) -> Deadline {
        let key = self.entries.borrow_mut().insert(Entry::default());
        Deadline { all: Rc::clone(self), key }
    }

    /// Wakes the tasks whose deadline has expired. Never returns.
    pub async fn run(self: Rc<Self>) {
        let mut sleep = pin!(tokio::time::sleep_until(Instant::now().into()));
        poll_fn::<(), _>(|cx| {
            *self.timer.borrow_mut() = Some(cx.waker().clone());
            while let Some(earliest) = self.earliest.get() {
                sleep.as_mut().reset(earliest.into());
                if sleep.as_mut().poll(cx).is_pending() {
                    break;
                }
                self.look(Instant::now());
            }
            Poll::Pending
        })
        .await;
    }

    fn look(&self, now: Instant) {
        let mut earliest: Option<Instant> = None;
        let mut wake = Vec::new();
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            match entry.at {
                Some(at) if at <= now => {
                    entry.at = None;
                    entry.passed = true;
                    wake.extend(entry.waker.clone());
                }
                Some(at) => earliest = Some(earliest.map_or(at, |earliest| earliest.min(at))),
                None => {}
            }
        }
        let soonest = now + coarse(self.entries.borrow().len());
        self.earliest.set(earliest.map(|earliest| earliest.max(soonest)));
        wake.into_iter().for_each(Waker::wake);
    }
}

impl Deadline {
    /// Sets the deadline; `None`: it never expires.
    #[inline]
    pub fn set(&self, at: Option<Instant>) {
        if let Some(entry) = self.all.entries.borrow_mut().get_mut(self.key) {
            entry.at = at;
            entry.passed = false;
        }
        if let Some(at) = at
            && self.all.earliest.get().is_none_or(|earliest| at < earliest)
        {
            self.all.earliest.set(Some(at));
            if let Some(timer) = &*self.all.timer.borrow() {
                timer.wake_by_ref();
            }
        }
    }

    /// Moves the deadline to `at` unless it is earlier already.
    pub fn set_no_later_than(&self, at: Instant) {
        let before = self.all.entries.borrow().get(self.key).and_then(|entry| entry.at);
        self.set(Some(before.map_or(at, |before| before.min(at))));
    }

    /// True if the deadline is set.
    pub fn is_set(&self) -> bool {
        self.all.entries.borrow().get(self.key).is_some_and(|entry| entry.at.is_some())
    }

    /// True if the deadline has expired since it was set.
    #[inline]
    pub fn passed(&self) -> bool {
        self.all.entries.borrow().get(self.key).is_some_and(|entry| entry.passed)
    }

    /// Registers the waker of the task that is woken on expiry.
    #[inline]
    pub fn register(&self, waker: &Waker) {
        if let Some(entry) = self.all.entries.borrow_mut().get_mut(self.key)
            && entry.waker.as_ref().is_none_or(|known| !known.will_wake(waker))
        {
            entry.waker = Some(waker.clone());
        }
    }

    /// Wakes the registered task.
    pub fn wake(&self) {
        if let Some(waker) = self.all.entries.borrow().get(self.key).and_then(|entry| entry.waker.as_ref()) {
            waker.wake_by_ref();
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.all.entries.borrow_mut().try_remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<F: Future>(test: impl FnOnce(Rc<Deadlines>) -> F) -> F::Output {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().build_local(Default::default()).unwrap();
        runtime.block_on(async {
            let deadlines = Rc::new(Deadlines::default());
            let timer = tokio::task::spawn_local(Rc::clone(&deadlines).run());
            let output = test(deadlines).await;
            timer.abort();
            output
        })
    }

    async fn passes(deadline: &Deadline) -> Instant {
        poll_fn(|cx| {
            deadline.register(cx.waker());
            if deadline.passed() { Poll::Ready(Instant::now()) } else { Poll::Pending }
        })
        .await
    }

    #[test]
    fn an_earlier_deadline_passes_before_one_that_was_set_before_it() {
        run(|deadlines| async move {
            let start = Instant::now();
            let late = deadlines.add();
            late.set(Some(start + Duration::from_secs(60)));
            tokio::task::yield_now().await;
            let early = deadlines.add();
            early.set(Some(start + Duration::from_millis(20)));
            assert!(passes(&early).await >= start + Duration::from_millis(20));
            assert!(!late.passed() && late.is_set());
        });
    }

    #[test]
    fn a_deadline_that_was_moved_or_dropped_does_not_pass_at_its_old_time() {
        run(|deadlines| async move {
            let start = Instant::now();
            let [moved, cleared, dropped] = [deadlines.add(), deadlines.add(), deadlines.add()];
            for deadline in [&moved, &cleared, &dropped] {
                deadline.set(Some(start + Duration::from_millis(10)));
            }
            drop(dropped);
            cleared.set(None);
            moved.set(Some(start + Duration::from_millis(60)));
            assert!(passes(&moved).await >= start + Duration::from_millis(60));
            assert!(!cleared.passed());
            assert!(deadlines.earliest.get().is_none());
        });
    }

    #[test]
    fn set_no_later_than_keeps_the_earlier_of_two() {
        run(|deadlines| async move {
            let start = Instant::now();
            let deadline = deadlines.add();
            deadline.set_no_later_than(start + Duration::from_millis(20));
            deadline.set_no_later_than(start + Duration::from_secs(60));
            assert!(passes(&deadline).await < start + Duration::from_secs(30));
        });
    }
}
