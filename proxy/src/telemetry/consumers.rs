use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use signalbox_config::Name;

use super::traffic::{TrafficCounts, TrafficGroup, TrafficSums};

/// The requests of the consumers that had some lately.
#[derive(Debug)]
pub struct ConsumerTraffic {
    group: Arc<TrafficGroup>,
    recent: Mutex<HashMap<Name, Recent, RandomState>>,
    /// Changes when workers are to let go of what they use no longer.
    sweeps: AtomicU64,
}

#[derive(Debug)]
struct Recent {
    traffic: Arc<TrafficCounts>,
    /// The requests when it was read last, and how often there were no others since.
    requests: u64,
    quiet: u32,
}

/// The consumers whose requests a worker counted lately, so that it need not lock anything for the next one.
#[derive(Debug, Default)]
pub struct WorkerConsumers {
    known: RefCell<HashMap<Name, Rc<SharedCounts>, RandomState>>,
    sweep: Cell<u64>,
}

/// The counts of a consumer, which all workers share. A worker counts its own uses of them, so that no two workers write to one counter for each
/// request.
#[derive(Debug)]
pub struct SharedCounts(pub Arc<TrafficCounts>);

/// The most consumers that are counted apart.
const MOST: usize = 4096;

/// A consumer that had no requests when it was read so often is forgotten, for another one may need its place.
const QUIET_READS: u32 = 6;

impl ConsumerTraffic {
    pub fn new(workers: usize) -> Self {
        let recent = Mutex::default();
        Self { group: TrafficGroup::new(workers, MOST), recent, sweeps: AtomicU64::new(0) }
    }

    /// The counts of a consumer.
    pub fn of(&self, worker: &WorkerConsumers, name: &Name) -> Rc<SharedCounts> {
        let sweep = self.sweeps.load(Ordering::Relaxed);
        let mut known = worker.known.borrow_mut();
        if worker.sweep.replace(sweep) != sweep {
            known.clear();
        }
        if let Some(traffic) = known.get(name) {
            return Rc::clone(traffic);
        }
        if known.len() >= MOST {
            known.clear();
        }
        let traffic = Rc::new(SharedCounts(self.shared(name)));
        known.insert(name.clone(), Rc::clone(&traffic));
        traffic
    }

    fn shared(&self, name: &Name) -> Arc<TrafficCounts> {
        let mut recent = self.recent();
        if let Some(recent) = recent.get(name) {
            return Arc::clone(&recent.traffic);
        }
        let traffic = Arc::new(TrafficCounts::new(&self.group));
        if recent.len() < MOST {
            let entry = Recent { traffic: Arc::clone(&traffic), requests: 0, quiet: 0 };
            recent.insert(name.clone(), entry);
        }
        traffic
    }

    /// The sums since the start of each consumer that had requests lately, and of the others.
    pub fn read(&self) -> (Vec<(Name, TrafficSums)>, Option<TrafficSums>) {
        // They are summed without the lock, which a worker may want for the next request.
        let shared: Vec<(Name, Arc<TrafficCounts>)> = {
            let recent = self.recent();
            recent.iter().map(|(name, entry)| (name.clone(), Arc::clone(&entry.traffic))).collect()
        };
        let read = |(name, traffic): (Name, Arc<TrafficCounts>)| (name, traffic.read().unwrap_or_default());
        let sums: Vec<(Name, TrafficSums)> = shared.into_iter().map(read).collect();
        let mut recent = self.recent();
        for (name, read) in &sums {
            let Some(entry) = recent.get_mut(name) else { continue };
            entry.quiet = if read.requests() == entry.requests { entry.quiet + 1 } else { 0 };
            entry.requests = read.requests();
            // A worker that still has it may count one more request.
            if entry.quiet > QUIET_READS && Arc::strong_count(&entry.traffic) == 1 {
                recent.remove(name);
            }
        }
        if recent.len() > MOST / 2 {
            self.sweeps.fetch_add(1, Ordering::Relaxed);
        }
        (sums, self.group.others())
    }

    fn recent(&self) -> MutexGuard<'_, HashMap<Name, Recent, RandomState>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::{End, EndedRequest, Flag, Latency};

    #[test]
    fn quiet_consumers_make_room_for_others_and_no_request_is_lost() {
        let consumers = ConsumerTraffic::new(1);
        let worker = WorkerConsumers::default();
        let count = |number: usize| {
            let name: Name = format!("c{number}").parse().unwrap();
            let latency = Latency::of(Duration::from_millis(1));
            let request = EndedRequest {
                latency,
                first_byte: latency,
                end: End::Success,
                flag: Flag::None,
                bytes_in: 0,
                bytes_out: 0,
            };
            consumers.of(&worker, &name).0.count(0, request);
        };
        let requests = || {
            let (apart, others) = consumers.read();
            let apart_sum: u64 = apart.iter().map(|(_, sums)| sums.requests()).sum();
            (apart.len(), apart_sum, others.map_or(0, |sums| sums.requests()))
        };
        (0..MOST + 10).for_each(count);
        count(0);
        assert_eq!(requests(), (MOST, MOST as u64 + 1, 10));
        for _ in 0..=QUIET_READS {
            requests();
        }
        // The worker lets go of those that it knows with its next request.
        count(MOST + 20);
        requests();
        assert!(requests().0 <= 1, "{:?}", requests());
        count(MOST + 30);
        assert!((1..=2).contains(&requests().0), "there is room again");
    }
}
