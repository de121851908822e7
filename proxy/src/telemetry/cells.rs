use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::flag::Flag;
use super::period::Mark;
use crate::core::prefetch::prefetch;

/// The counters of one route or upstream, split by worker and then by [`Key`]. Memory is allocated on the first
/// request, because most of 100,000 routes never see one.
#[derive(Debug)]
pub struct Cells {
    // 32 bits of each, because there may be 100,000 of these.
    workers: u32,
    /// The [`Mark`] of the route or upstream; 0: it has none.
    mark: AtomicU32,
    blocks: OnceLock<Box<[Block]>>,
}

/// The labels of a counter, besides the route or upstream it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(u32);

/// The class of a status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class(u8);

/// A counter and its labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    pub listener: u16,
    pub class: Class,
    pub flag: Flag,
    pub count: u64,
}

/// A few counters of one worker; most routes need one or two. Further blocks hold more.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Block {
    slots: [Slot; 7],
    more: OnceLock<Box<Block>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// A [`Key`]; 0: free.
    key: AtomicU32,
    count: AtomicU64,
}

impl Cells {
    pub fn new(workers: usize) -> Self {
        let workers = u32::try_from(workers).unwrap_or(u32::MAX);
        Self { workers, mark: AtomicU32::new(0), blocks: OnceLock::new() }
    }

    /// The mark by which a period finds the counts of this route or upstream; `None`: it was never watched.
    #[inline]
    pub fn mark(&self) -> Option<Mark> {
        Mark::from_bits(self.mark.load(Ordering::Relaxed))
    }

    /// Sets the mark, for requests that end from now on.
    pub fn set_mark(&self, mark: Mark) {
        self.mark.store(mark.to_bits(), Ordering::Relaxed);
    }

    /// Counts one request. Only worker number `worker` may call this with that number.
    #[inline]
    pub fn count(&self, worker: usize, key: Key) {
        let blocks = self.blocks.get_or_init(|| (0..self.workers).map(|_| Block::default()).collect());
        if let Some(block) = blocks.get(worker) {
            block.count(key);
        }
    }

    /// Has the processor fetch the worker's counters.
    #[inline]
    pub fn prefetch(&self, worker: usize) {
        if let Some(block) = self.blocks.get().and_then(|blocks| blocks.get(worker)) {
            prefetch(block);
        }
    }

    /// Returns all counters, summed over the workers per key, in no order.
    pub fn read(&self) -> Vec<Counted> {
        let mut sums: Vec<(u32, u64)> = Vec::new();
        for block in self.blocks.get().into_iter().flatten() {
            let mut next = Some(block);
            while let Some(block) = next {
                for slot in &block.slots {
                    let key = slot.key.load(Ordering::Acquire);
                    let count = slot.count.load(Ordering::Relaxed);
                    match sums.iter_mut().find(|(known, _)| *known == key) {
                        _ if key == 0 => {}
                        Some((_, sum)) => *sum += count,
                        None => sums.push((key, count)),
                    }
                }
                next = block.more.get().map(Box::as_ref);
            }
        }
        sums.into_iter().map(|(key, count)| Key(key).counted(count)).collect()
    }
}

impl Block {
    #[inline]
    fn count(&self, key: Key) {
        for slot in &self.slots {
            let known = slot.key.load(Ordering::Relaxed);
            if known == key.0 {
                slot.count.store(slot.count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                return;
            }
            if known == 0 {
                slot.count.store(1, Ordering::Relaxed);
                slot.key.store(key.0, Ordering::Release);
                return;
            }
        }
        self.more.get_or_init(Box::default).count(key);
    }
}

impl Key {
    /// Creates a key. `listener` is the number of a listener's name; `status` is a status code.
    #[inline]
    pub fn new(listener: u16, status: u16, flag: Flag) -> Self {
        let class = Class::of(status).0;
        Self(u32::from(listener) << 16 | u32::from(class) << 8 | flag as u32)
    }

    /// The same key without the listener.
    #[inline]
    #[must_use]
    pub fn without_listener(self) -> Self {
        Self(self.0 & 0xffff)
    }

    fn counted(self, count: u64) -> Counted {
        let [listener_high, listener_low, class, flag] = self.0.to_be_bytes();
        Counted {
            listener: u16::from_be_bytes([listener_high, listener_low]),
            class: Class(class),
            flag: Flag::ALL.get(usize::from(flag)).copied().unwrap_or_default(),
            count,
        }
    }
}

impl Class {
    /// The class of `status`. It is never 0, so that no [`Key`] is 0.
    #[inline]
    pub fn of(status: u16) -> Self {
        Self((status / 100).clamp(1, 5) as u8)
    }

    pub fn as_str(self) -> &'static str {
        match self.0 {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            _ => "5xx",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_summed_over_workers_and_kept_apart_by_label() {
        let cells = Cells::new(2);
        assert!(cells.read().is_empty());
        for worker in [0, 1, 1] {
            cells.count(worker, Key::new(3, 204, Flag::None));
        }
        cells.count(0, Key::new(3, 504, Flag::Timeout));
        let mut read = cells.read();
        read.sort_by_key(|counted| counted.count);
        let timeout = Counted { listener: 3, class: Class::of(504), flag: Flag::Timeout, count: 1 };
        let fine = Counted { listener: 3, class: Class::of(204), flag: Flag::None, count: 3 };
        assert_eq!(read, [timeout, fine]);
    }

    #[test]
    fn more_labels_than_a_block_has_are_counted_too() {
        let cells = Cells::new(1);
        for round in 0..2 {
            for listener in 0..40 {
                cells.count(0, Key::new(listener, 200, Flag::None));
            }
            let read = cells.read();
            assert_eq!(read.len(), 40);
            assert!(read.iter().all(|counted| counted.count == round + 1));
        }
    }
}
