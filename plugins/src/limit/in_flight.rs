//! Requests that are under way, by client.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::{fast, quality};

use super::by::{Client, ClientId};

/// The number of requests that are under way for each client. Shared by all workers and kept over revisions. It knows only
/// clients with a request under way, so its size is bounded by their number.
#[derive(Debug)]
pub(crate) struct InFlight {
    shards: Box<[Shard]>,
    hashers: [quality::RandomState; 2],
    shard_hasher: fast::RandomState,
}

/// Alone on its cache lines, so that workers do not disturb each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(Mutex<HashMap<ClientId, u32, fast::RandomState>>);

/// The permission for one request of a client. It is returned when this is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    in_flight: Arc<InFlight>,
    client: ClientId,
    /// The number of the client's requests under way when this was given, this one included.
    pub(crate) place: u32,
}

const SHARDS: usize = 64;

impl Default for InFlight {
    fn default() -> Self {
        Self {
            shards: std::iter::repeat_with(Shard::default).take(SHARDS).collect(),
            hashers: Default::default(),
            shard_hasher: fast::RandomState::default(),
        }
    }
}

impl InFlight {
    /// Lets a request of this client in, if fewer than `limit` are under way. Count and comparison are one step.
    pub(crate) fn enter(self: &Arc<Self>, client: &Client<'_>, limit: u32) -> Option<Permit> {
        let client = client.id(&self.hashers);
        let place = self.change(client, |counts| {
            let count = counts.get(&client).copied().unwrap_or(0);
            (count < limit).then(|| {
                counts.insert(client, count + 1);
                count + 1
            })
        })?;
        Some(Permit { in_flight: Arc::clone(self), client, place })
    }

    fn leave(&self, client: ClientId) {
        self.change(client, |counts| {
            let left = counts.get_mut(&client)?;
            *left = left.saturating_sub(1);
            if *left == 0 {
                counts.remove(&client);
            }
            Some(())
        });
    }

    fn change<T>(
        &self,
        client: ClientId,
        act: impl FnOnce(&mut HashMap<ClientId, u32, fast::RandomState>) -> Option<T>,
    ) -> Option<T> {
        let index = self.shard_hasher.hash_one(client) as usize % self.shards.len().max(1);
        let Shard(shard) = self.shards.get(index)?;
        // A panic cannot leave a count half changed: nothing in there panics between two writes.
        act(&mut shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    #[cfg(test)]
    pub(crate) fn total(&self) -> u32 {
        self.shards.iter().map(|Shard(shard)| shard.lock().unwrap().values().sum::<u32>()).sum()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.in_flight.leave(self.client);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn workers_together_never_exceed_the_limit_and_leave_nothing_behind() {
        let in_flight = Arc::new(InFlight::default());
        let (now, most) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let permit = in_flight.enter(&Client::Texts([b"a", b""]), 3);
                        if permit.is_some() {
                            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            std::thread::yield_now();
                            now.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert!((1..=3).contains(&most.into_inner()));
        assert_eq!(in_flight.total(), 0);
        assert!(in_flight.shards.iter().all(|Shard(shard)| shard.lock().unwrap().is_empty()));
    }
}
