//! Counts in the memory of a proxy.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::{Mutex, PoisonError};

use foldhash::{fast, quality};

use super::budget::{Budget, Verdict};
use super::by::{Client, ClientId};
use super::usage::Usage;

/// The counts of all clients. Shared by all workers and kept over revisions; a request takes one short lock, which it
/// shares with 1/64 of the clients.
#[derive(Debug)]
pub(crate) struct Counters {
    shards: Box<[Shard]>,
    /// The number of clients that a shard may know.
    room: usize,
    hashers: [quality::RandomState; 2],
    shard_hasher: fast::RandomState,
}

/// Alone on its cache lines, so that workers do not disturb each other.
#[derive(Debug)]
#[repr(align(128))]
struct Shard(Mutex<Clients>);

#[derive(Debug)]
struct Clients {
    /// The latest time seen. A worker that read its clock before another may come after it; time does not go back for it.
    now: u64,
    usages: HashMap<ClientId, Usage, fast::RandomState>,
    /// The usage that all clients share for which there is no room.
    crowd: Usage,
    /// The number of clients from which on those are forgotten for whom nothing is counted.
    sweep_at: usize,
    /// The earliest time for that.
    sweep_after: u64,
}

const SHARDS: usize = 64;
const CLIENTS_PER_SHARD: usize = 1024;
const FIRST_SWEEP: usize = 64;

impl Default for Counters {
    fn default() -> Self {
        Self::new(SHARDS, CLIENTS_PER_SHARD)
    }
}

impl Counters {
    pub(super) fn new(shards: usize, room: usize) -> Self {
        let shard = || Shard(Mutex::new(Clients::new(room)));
        Self {
            shards: std::iter::repeat_with(shard).take(shards.max(1)).collect(),
            room,
            hashers: Default::default(),
            shard_hasher: fast::RandomState::default(),
        }
    }

    /// The number under which this client is counted.
    #[inline]
    pub(crate) fn id(&self, client: &Client<'_>) -> ClientId {
        client.id(&self.hashers)
    }

    /// Takes `cost` units at `now`, if they fit.
    pub(crate) fn take(&self, client: ClientId, now: u64, budget: &Budget, cost: u64) -> Verdict {
        self.with(client, |clients| clients.take(client, now, budget, cost, self.room)).unwrap_or(NOTHING)
    }

    /// Counts units that were used already, whether they fit or not.
    pub(crate) fn charge(&self, client: ClientId, now: u64, budget: &Budget, cost: u64) {
        self.with(client, |clients| {
            let now = clients.advance(now);
            clients.usage(client, now, budget, self.room).charge(now, budget, cost);
        });
    }

    /// Gives back units that were counted at `counted_at`.
    pub(crate) fn give_back(&self, client: ClientId, now: u64, budget: &Budget, counted_at: u64, cost: u64) {
        self.with(client, |clients| {
            let now = clients.advance(now);
            let usage = clients.usages.get_mut(&client);
            usage.unwrap_or(&mut clients.crowd).give_back(now, budget, counted_at, cost);
        });
    }

    #[inline]
    fn with<T>(&self, client: ClientId, act: impl FnOnce(&mut Clients) -> T) -> Option<T> {
        let index = self.shard_hasher.hash_one(client) as usize % self.shards.len().max(1);
        let Shard(shard) = self.shards.get(index)?;
        // A panic cannot leave a count half changed: nothing in there panics between two writes.
        Some(act(&mut shard.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.shards.iter().map(|Shard(shard)| shard.lock().unwrap().usages.len()).sum()
    }
}

/// The verdict of counters without a shard, which do not exist.
const NOTHING: Verdict = Verdict { remaining: 0, more_in: 0, reset_in: 0, refused_for: None, counted_at: 0 };

impl Clients {
    fn new(room: usize) -> Self {
        Self {
            now: 0,
            usages: HashMap::default(),
            crowd: Usage::default(),
            sweep_at: FIRST_SWEEP.min(room),
            sweep_after: 0,
        }
    }

    fn advance(&mut self, now: u64) -> u64 {
        self.now = self.now.max(now);
        self.now
    }

    #[inline]
    fn take(&mut self, client: ClientId, now: u64, budget: &Budget, cost: u64, room: usize) -> Verdict {
        let now = self.advance(now);
        if let Some(usage) = self.usages.get_mut(&client) {
            return usage.take(now, budget, cost);
        }
        self.usage(client, now, budget, room).take(now, budget, cost)
    }

    /// The usage of a client, which is the crowd's if there is no room for another client.
    fn usage(&mut self, client: ClientId, now: u64, budget: &Budget, room: usize) -> &mut Usage {
        if !self.usages.contains_key(&client) {
            if self.usages.len() >= self.sweep_at && now >= self.sweep_after {
                self.sweep(budget, room);
            }
            if self.usages.len() >= room {
                return &mut self.crowd;
            }
        }
        // It may have been in the crowd before: then what it used is in the crowd's count.
        let crowd = &self.crowd;
        self.usages
            .entry(client)
            .or_insert_with(|| if crowd.idle_at(budget) <= now { Usage::default() } else { crowd.clone() })
    }

    /// Forgets the clients for whom nothing is counted.
    fn sweep(&mut self, budget: &Budget, room: usize) {
        let now = self.now;
        self.usages.retain(|_, usage| usage.idle_at(budget) > now);
        let len = self.usages.len();
        if self.usages.capacity() / 8 > len {
            self.usages.shrink_to(2 * len);
        }
        self.sweep_at = (2 * len).clamp(FIRST_SWEEP.min(room), room);
        // Nor is a full shard searched at every request of a new client.
        let pause = (budget.window / 64).max(10_000_000);
        self.sweep_after = if len < room { 0 } else { now.saturating_add(pause) };
    }
}
