//! The decision whether a request has a line.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use signalbox_config::AccessLog;

use super::entry::Entry;

/// The access log of a listener, as requests see it. It is kept while its configuration stays.
#[derive(Debug)]
pub struct ListenerLog {
    pub settings: AccessLog,
    /// One for each worker; none without sampling.
    turns: Box<[Turn]>,
}

/// The place in the current run of requests, in the upper half, and the place of the one that has a line. Only its worker writes it, to
/// a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Turn(AtomicU64);

impl ListenerLog {
    pub fn new(settings: AccessLog, workers: usize) -> Self {
        let turns = if settings.sample.is_some() { workers } else { 0 };
        Self { settings, turns: (0..turns).map(|_| Turn::default()).collect() }
    }

    /// The number of requests that the line of this one stands for; `None`: it has no line.
    pub fn weight(&self, entry: &Entry<'_>, worker: usize) -> Option<u32> {
        if !self.settings.enabled {
            return None;
        }
        let Some(sample) = &self.settings.sample else { return Some(1) };
        let is_ordinary = (200..300).contains(&entry.status)
            && entry.flags.is_empty()
            && entry.grpc_status.is_none_or(|status| status == 0)
            && entry.duration < sample.slow;
        match self.turns.get(worker).filter(|_| is_ordinary) {
            Some(turn) => turn.comes(sample.every).then_some(sample.every.get()),
            None => Some(1),
        }
    }
}

impl PartialEq for ListenerLog {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl Eq for ListenerLog {}

impl Turn {
    /// True for exactly one of each `every` calls. Its place is drawn anew for each run, because traffic may have a rhythm.
    fn comes(&self, every: NonZeroU32) -> bool {
        let state = self.0.load(Ordering::Relaxed);
        let place = (state >> 32) as u32;
        let chosen = if place == 0 { fastrand::u32(..every.get()) } else { state as u32 };
        let next = if place + 1 >= every.get() { 0 } else { place + 1 };
        self.0.store(u64::from(next) << 32 | u64::from(chosen), Ordering::Relaxed);
        place == chosen
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use signalbox_config::{LogFormat, LogSample};

    use super::*;

    fn log(every: u32, workers: usize) -> ListenerLog {
        let sample = LogSample { every: NonZeroU32::new(every).unwrap(), slow: Duration::from_secs(1) };
        let settings = AccessLog {
            enabled: true,
            sample: Some(sample),
            query: None,
            request_headers: Box::default(),
            response_headers: Box::default(),
            format: LogFormat::Json,
        };
        ListenerLog::new(settings, workers)
    }

    fn entry(status: u16) -> Entry<'static> {
        Entry { status, ..Entry::default() }
    }

    #[test]
    fn weights_add_up_to_the_number_of_requests() {
        for every in [1, 2, 7, 100] {
            let log = log(every, 2);
            for round in 1..=50_u32 {
                for worker in 0..2 {
                    let weights = (0..every).filter_map(|_| log.weight(&entry(200), worker));
                    assert_eq!(weights.collect::<Vec<_>>(), [every], "{round}");
                }
            }
        }
    }

    #[test]
    fn each_place_has_its_turn() {
        let log = log(2, 1);
        let firsts = (0..1000).filter(|_| {
            let first = log.weight(&entry(200), 0).is_some();
            assert_ne!(log.weight(&entry(200), 0).is_some(), first);
            first
        });
        let firsts = firsts.count();
        assert!((350..650).contains(&firsts), "{firsts}");
    }

    #[test]
    fn everything_out_of_the_ordinary_has_a_line() {
        let log = log(1_000_000, 1);
        let slow = Entry { duration: Duration::from_secs(1), ..entry(200) };
        let flagged = Entry { flags: "UT", ..entry(200) };
        let grpc = Entry { grpc_status: Some(14), ..entry(200) };
        let others = [entry(101), entry(304), entry(404), entry(500), entry(0), slow, flagged, grpc];
        for entry in others {
            assert_eq!(log.weight(&entry, 0), Some(1), "{}", entry.status);
        }
        let fine = [entry(204), Entry { grpc_status: Some(0), ..entry(200) }];
        for entry in fine.iter().cycle().take(100) {
            assert_ne!(log.weight(entry, 0), Some(1));
        }
        let off = AccessLog { enabled: false, ..log.settings };
        assert_eq!(ListenerLog::new(off, 1).weight(&entry(500), 0), None);
    }
}
