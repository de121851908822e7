//! The bound of the entries that wait for a sink.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::settings::QueueSpec;

/// Lets entries into a queue as long as there is room, without a lock.
#[derive(Debug)]
pub(crate) struct Gate {
    max_entries: usize,
    max_size: usize,
    entries: AtomicUsize,
    size: AtomicUsize,
}

/// The entries in a queue, and their size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) entries: usize,
    pub(crate) size: usize,
}

impl Gate {
    pub(crate) fn new(limits: &QueueSpec) -> Self {
        Self {
            max_entries: limits.max_entries as usize,
            max_size: usize::try_from(limits.max_size.0).unwrap_or(usize::MAX),
            entries: AtomicUsize::new(0),
            size: AtomicUsize::new(0),
        }
    }

    /// Lets an entry of this size in. Returns all that waits then. `None`: there is no room.
    pub(crate) fn admit(&self, size: usize) -> Option<Waiting> {
        let entries = self.entries.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let total = self.size.fetch_add(size, Ordering::Relaxed).saturating_add(size);
        if entries > self.max_entries || total > self.max_size {
            self.release(1, size);
            return None;
        }
        Some(Waiting { entries, size: total })
    }

    /// Entries of this size altogether have left.
    pub(crate) fn release(&self, entries: usize, size: usize) {
        self.entries.fetch_sub(entries, Ordering::Relaxed);
        self.size.fetch_sub(size, Ordering::Relaxed);
    }

    /// All that waits.
    pub(crate) fn waiting(&self) -> Waiting {
        Waiting { entries: self.entries.load(Ordering::Relaxed), size: self.size.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use signalbox_config::ByteSize;

    use super::*;

    #[test]
    fn a_queue_is_bounded_by_entries_and_by_bytes() {
        let gate = Gate::new(&QueueSpec { max_entries: 3, max_size: ByteSize(100) });
        assert_eq!(gate.admit(101), None);
        assert_eq!(gate.admit(60), Some(Waiting { entries: 1, size: 60 }));
        assert_eq!(gate.admit(41), None);
        assert_eq!(gate.admit(40), Some(Waiting { entries: 2, size: 100 }));
        assert_eq!(gate.admit(1), None);
        assert_eq!(gate.admit(0), Some(Waiting { entries: 3, size: 100 }));
        assert_eq!(gate.admit(0), None);
        gate.release(2, 100);
        assert_eq!(gate.waiting(), Waiting { entries: 1, size: 0 });
        assert_eq!(gate.admit(100), Some(Waiting { entries: 2, size: 100 }));
    }

    #[test]
    fn a_queue_stays_within_its_bounds_however_many_write_at_once() {
        let gate = Gate::new(&QueueSpec { max_entries: 1000, max_size: ByteSize(5000) });
        let admitted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..1000).filter(|_| gate.admit(10).is_some()).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        // Entries that are turned away hold room for a moment, so that another one may be turned away, too.
        assert!((490..=500).contains(&admitted), "{admitted}");
        assert_eq!(gate.waiting(), Waiting { entries: admitted, size: 10 * admitted });
    }
}
