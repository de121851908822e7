//! The last events, for clients that come back, and those that happen now.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::broadcast;

/// The last events, and those that happen now. Every event has an id that counts up, within one run of the program.
pub(super) struct EventRing {
    /// Tells this run's ids from others'.
    instance: String,
    ring: Mutex<Ring>,
    live: broadcast::Sender<Frame>,
}

#[derive(Default)]
struct Ring {
    /// The number of the last event; the first has 1.
    last: u64,
    frames: VecDeque<Frame>,
}

/// One event as it is sent; shared by all who listen.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) number: u64,
    pub(super) text: Bytes,
}

/// How many events back one can resume.
const RING: usize = 4096;

/// How far a client may be behind before it is dropped; it comes back and resumes from the ring.
const BEHIND: usize = 1024;

impl EventRing {
    pub(super) fn new() -> Self {
        Self {
            instance: format!("{:08x}", fastrand::u32(..)),
            ring: Mutex::default(),
            live: broadcast::Sender::new(BEHIND),
        }
    }

    pub(super) fn push(&self, name: &str, data: &str) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.last += 1;
        let number = ring.last;
        let text = format!("id: {}-{number}\nevent: {name}\ndata: {data}\n\n", self.instance);
        let frame = Frame { number, text: text.into() };
        if ring.frames.len() == RING {
            ring.frames.pop_front();
        }
        ring.frames.push_back(frame.clone());
        // Sent under the lock, so that who subscribes gets each event either from the ring or live, never twice.
        let _ = self.live.send(frame);
    }

    pub(super) fn push_json(&self, name: &str, value: &impl Serialize) {
        if let Ok(data) = serde_json::to_string(value) {
            self.push(name, &data);
        }
    }

    /// The events that came after the event `last`, and those that come.
    pub(super) fn subscribe(&self, last: Option<&str>) -> (VecDeque<Bytes>, broadcast::Receiver<Frame>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.live.subscribe();
        let mut backlog = VecDeque::new();
        if let Some(last) = last {
            let known = last
                .strip_prefix(&self.instance)
                .and_then(|rest| rest.strip_prefix('-'))
                .and_then(|number| number.parse::<u64>().ok())
                .filter(|number| *number <= ring.last)
                .filter(|number| ring.frames.front().is_none_or(|first| first.number <= number + 1));
            match known {
                Some(number) => {
                    let missed = ring.frames.iter().filter(|frame| frame.number > number);
                    backlog.extend(missed.map(|frame| frame.text.clone()));
                }
                None => {
                    let id = format!("{}-{}", self.instance, ring.last);
                    backlog.push_back(format!("id: {id}\nevent: reset\ndata: {{}}\n\n").into());
                }
            }
        }
        (backlog, live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(backlog: &VecDeque<Bytes>) -> Vec<String> {
        backlog.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect()
    }

    #[test]
    fn who_comes_back_gets_what_it_missed() {
        let events = EventRing::new();
        for number in 1..=3 {
            events.push("revision", &number.to_string());
        }
        let (backlog, _) = events.subscribe(Some(&format!("{}-1", events.instance)));
        let texts = texts(&backlog);
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].contains("data: 2\n") && texts[1].contains("data: 3\n"), "{texts:?}");
        let (backlog, _) = events.subscribe(Some(&format!("{}-3", events.instance)));
        assert!(backlog.is_empty());
        let (backlog, _) = events.subscribe(None);
        assert!(backlog.is_empty());
    }

    #[test]
    fn who_missed_too_much_or_comes_from_another_run_is_reset() {
        let events = EventRing::new();
        for number in 0..RING + 2 {
            events.push("revision", &number.to_string());
        }
        let id = |number: u64| format!("{}-{number}", events.instance);
        for last in ["00-1", "nonsense", &id(1), &id(u64::MAX)] {
            let (backlog, _) = events.subscribe(Some(last));
            let texts = texts(&backlog);
            assert_eq!(texts.len(), 1, "{last}");
            assert!(texts[0].contains("event: reset"), "{texts:?}");
        }
        let (backlog, _) = events.subscribe(Some(&id(2)));
        assert_eq!(backlog.len(), RING);
    }
}
