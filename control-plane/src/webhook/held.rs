//! Events that are kept while another control plane sends, or none.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use signalbox_config::Name;

use super::event::Event;

/// An event for the webhooks that wanted it when it happened.
#[derive(Debug)]
pub(super) struct Held {
    /// The time when this control plane learned of it.
    pub(super) at: Instant,
    pub(super) event: Arc<Event>,
    pub(super) webhooks: Vec<Name>,
}

/// The events that are kept, the oldest first.
#[derive(Debug, Default)]
pub(super) struct HeldEvents(VecDeque<Held>);

/// An event is forgotten when another control plane still led so long after it: that one has sent it. This is longer than the five seconds
/// for which a lease lasts (`rollout/lease.rs`), in which its holder may have died unseen.
const SENT_BY_OTHER: Duration = Duration::from_secs(10);

/// The most events that are kept.
const MAX_HELD: usize = 1000;

impl HeldEvents {
    /// Keeps an event. When they are too many, the oldest makes room.
    pub(super) fn push(&mut self, held: Held) {
        if self.0.len() >= MAX_HELD {
            self.0.pop_front();
        }
        self.0.push_back(held);
    }

    /// Forgets the events that another control plane has sent; `another_led` is the last time when one was seen to lead. Without such a
    /// sight, as in an outage of the database, all are kept: nobody may have sent them.
    pub(super) fn forget_sent(&mut self, another_led: Option<Instant>) {
        let Some(led) = another_led else { return };
        while self.0.front().is_some_and(|held| led.duration_since(held.at) > SENT_BY_OTHER) {
            self.0.pop_front();
        }
    }

    /// Takes all of them, the oldest first.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Held> {
        std::mem::take(&mut self.0).into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(at: Instant) -> Held {
        Held { at, event: Arc::new(Event::test("w", 0)), webhooks: Vec::new() }
    }

    #[test]
    fn events_are_kept_until_another_control_plane_has_sent_them() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        for (another_led, left) in [
            (None, vec![0, 5, 3600]),
            // The other one died with the database, at five seconds.
            (Some(5), vec![0, 5, 3600]),
            (Some(10), vec![0, 5, 3600]),
            (Some(11), vec![5, 3600]),
            (Some(3600), vec![3600]),
            (Some(3611), vec![]),
        ] {
            let mut events = HeldEvents::default();
            for at in [0, 5, 3600] {
                events.push(held(after(at)));
            }
            events.forget_sent(another_led.map(after));
            let found: Vec<_> = events.take().map(|held| held.at).collect();
            assert_eq!(found, left.into_iter().map(after).collect::<Vec<_>>(), "{another_led:?}");
        }
    }

    #[test]
    fn their_number_is_bounded() {
        let began = Instant::now();
        let mut events = HeldEvents::default();
        for second in 0..1500 {
            events.push(held(began + Duration::from_secs(second)));
        }
        let first = events.take().next().map(|held| held.at);
        assert_eq!(first, Some(began + Duration::from_secs(500)));
        assert_eq!(events.take().count(), 0);
    }
}
