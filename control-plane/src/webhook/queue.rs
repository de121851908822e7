//! The events that a webhook is still to get.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::event::Event;

/// The events that a webhook is still to get, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Pending>,
    /// The events that were taken out, and whose attempts go on.
    sending: usize,
    /// True from the first event that was dropped until the queue is half empty.
    is_dropping: bool,
}

/// An event that is to be delivered.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) event: Arc<Event>,
    /// Attempts that have ended.
    pub(super) attempts: u32,
    /// The begin of the first attempt.
    pub(super) began: Option<Instant>,
    /// The next attempt is not made before.
    due: Instant,
}

/// The result of adding an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// There was room.
    Added,
    /// The oldest was dropped, as many before it.
    Dropped,
    /// The oldest was dropped, and it is the first one for a while.
    DroppedFirst,
}

/// The next step of a webhook's task.
#[derive(Debug)]
pub(super) enum Next {
    /// It sends this.
    Send(Pending),
    /// Nothing is due before.
    Wait(Duration),
    /// There is nothing to send.
    Empty,
}

/// The most events of a webhook, with those that are being sent.
pub(super) const CAPACITY: usize = 1000;

impl Queue {
    /// Adds an event. When the queue is full, the oldest makes room.
    pub(super) fn push(&mut self, event: Arc<Event>, now: Instant) -> Pushed {
        let mut pushed = Pushed::Added;
        if self.len() >= CAPACITY {
            self.waiting.pop_front();
            let was_dropping = std::mem::replace(&mut self.is_dropping, true);
            pushed = if was_dropping { Pushed::Dropped } else { Pushed::DroppedFirst };
        } else if self.len() < CAPACITY / 2 {
            self.is_dropping = false;
        }
        self.waiting.push_back(Pending { event, attempts: 0, began: None, due: now });
        pushed
    }

    /// Takes the oldest event that is due. Those that wait for another attempt hold up no others.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        if let Some(index) = self.waiting.iter().position(|pending| pending.due <= now)
            && let Some(pending) = self.waiting.remove(index)
        {
            self.sending += 1;
            return Next::Send(pending);
        }
        let first = self.waiting.iter().map(|pending| pending.due).min();
        first.map_or(Next::Empty, |due| Next::Wait(due.duration_since(now)))
    }

    /// Takes the oldest event of which no attempt was made.
    pub(super) fn next_untried(&mut self) -> Option<Pending> {
        let index = self.waiting.iter().position(|pending| pending.attempts == 0)?;
        let pending = self.waiting.remove(index)?;
        self.sending += 1;
        Some(pending)
    }

    /// The attempt has ended, and with it the event.
    pub(super) fn end(&mut self) {
        self.sending = self.sending.saturating_sub(1);
    }

    /// The attempt has ended, and another one is to follow.
    pub(super) fn put_back(&mut self, pending: Pending, due: Instant) {
        self.sending = self.sending.saturating_sub(1);
        // It was one of the oldest.
        self.waiting.push_front(Pending { due, ..pending });
    }

    /// Makes everything due: the webhook was changed, perhaps because it failed.
    pub(super) fn hurry(&mut self, now: Instant) {
        for pending in &mut self.waiting {
            pending.due = pending.due.min(now);
        }
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// The number of events, with those that are being sent.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.sending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: usize) -> Arc<Event> {
        Arc::new(Event::test(&number.to_string(), 0))
    }

    fn number(pending: &Pending) -> usize {
        pending.event.key().split('/').nth(1).unwrap().parse().unwrap()
    }

    fn sent(queue: &mut Queue, now: Instant) -> Option<Pending> {
        match queue.next(now) {
            Next::Send(pending) => Some(pending),
            Next::Wait(_) | Next::Empty => None,
        }
    }

    #[test]
    fn a_full_queue_drops_the_oldest_and_says_so_once() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for number in 0..CAPACITY {
            assert_eq!(queue.push(event(number), now), Pushed::Added);
        }
        // One of them is being sent.
        let first = sent(&mut queue, now).unwrap();
        assert_eq!(queue.len(), CAPACITY);
        assert_eq!(queue.push(event(CAPACITY), now), Pushed::DroppedFirst);
        assert_eq!(queue.push(event(CAPACITY + 1), now), Pushed::Dropped);
        assert_eq!(queue.len(), CAPACITY);
        queue.put_back(first, now);
        assert_eq!(queue.len(), CAPACITY);
        assert_eq!(number(&sent(&mut queue, now).unwrap()), 0);
        queue.end();
        assert_eq!(number(&sent(&mut queue, now).unwrap()), 3);
        queue.end();
        // It is a new burst only after the queue was half empty.
        while queue.len() > CAPACITY / 2 {
            queue.push(event(7), now);
            for _ in 0..2 {
                sent(&mut queue, now).unwrap();
                queue.end();
            }
        }
        sent(&mut queue, now).unwrap();
        queue.end();
        while queue.len() < CAPACITY {
            assert_eq!(queue.push(event(8), now), Pushed::Added);
        }
        assert_eq!(queue.push(event(9), now), Pushed::DroppedFirst);
    }

    #[test]
    fn one_that_waits_holds_up_no_other() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let later = now + Duration::from_secs(30);
        queue.push(event(1), now);
        queue.push(event(2), now);
        let first = sent(&mut queue, now).unwrap();
        queue.put_back(first, later);
        assert_eq!(number(&sent(&mut queue, now).unwrap()), 2);
        queue.end();
        assert!(matches!(queue.next(now), Next::Wait(wait) if wait == Duration::from_secs(30)));
        queue.hurry(now);
        assert_eq!(number(&sent(&mut queue, now).unwrap()), 1);
        queue.end();
        assert!(matches!(queue.next(later), Next::Empty));
    }

    #[test]
    fn at_the_end_only_those_are_taken_that_were_never_tried() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for number in 1..=4 {
            queue.push(event(number), now);
        }
        let mut failed = sent(&mut queue, now).unwrap();
        failed.attempts = 1;
        queue.put_back(failed, now);
        // The attempt of the second one goes on.
        let mut failed = sent(&mut queue, now).unwrap();
        assert_eq!(number(&failed), 1);
        failed.attempts = 2;
        queue.put_back(failed, now + Duration::from_secs(9));
        sent(&mut queue, now).unwrap();
        assert_eq!(number(&queue.next_untried().unwrap()), 3);
        assert_eq!(number(&queue.next_untried().unwrap()), 4);
        assert!(queue.next_untried().is_none());
        assert_eq!(queue.len(), 4);
        for _ in 0..3 {
            queue.end();
        }
        assert_eq!(queue.len(), 1);
    }
}
