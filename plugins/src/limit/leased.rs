//! Counts that proxies share in Redis without asking for each request: each takes a lease, and spends it.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use foldhash::{fast, quality};

use super::budget::{Budget, Verdict, nanoseconds};
use super::by::{Client, ClientId};
use super::lease::{Lease, Returned, Spend};
use super::shared::{SharedCounts, SharedId};
use crate::redis::Unavailable;

/// The leases of a proxy on the counts of all clients.
#[derive(Debug)]
pub(crate) struct LeasedCounts {
    shared: Arc<SharedCounts>,
    budget: Budget,
    /// The most units that are held for a client.
    size: u64,
    /// The time, nanoseconds, within which units that were granted must be spent.
    life: u64,
    started: Instant,
    shards: Box<[Shard]>,
    hashers: [quality::RandomState; 2],
    is_swept: AtomicBool,
}

/// Alone on its cache lines, so that workers do not disturb each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(Mutex<Leases>);

type Leases = HashMap<ClientId, Held, fast::RandomState>;

#[derive(Debug)]
struct Held {
    id: SharedId,
    lease: Lease,
}

/// A request that must ask, because no lease is left.
#[derive(Debug)]
pub(crate) struct Ask {
    leases: Arc<LeasedCounts>,
    client: ClientId,
    id: SharedId,
    extra: u64,
    /// True until the lease knows the answer.
    is_open: bool,
}

const SHARDS: usize = 64;
/// The number of clients in each shard that have leases. Others ask for each request.
const ROOM: usize = 1024;

impl LeasedCounts {
    /// `size`: the most units that this proxy holds for a client.
    pub(crate) fn new(shared: SharedCounts, budget: Budget, size: u64) -> Self {
        let life = (budget.window / 10).clamp(1_000_000, 1_000_000_000);
        Self {
            shared: Arc::new(shared),
            budget,
            size,
            life,
            started: Instant::now(),
            shards: std::iter::repeat_with(Shard::default).take(SHARDS).collect(),
            hashers: Default::default(),
            is_swept: AtomicBool::new(false),
        }
    }

    /// Lets what is not spent in time be given back, from now on.
    pub(crate) fn sweep(self: &Arc<Self>) {
        if !self.is_swept.swap(true, Ordering::Relaxed) {
            self.shared.pool().spawn(give_back_in_time(Arc::downgrade(self)));
        }
    }

    /// Decides on a request, if the proxy can do so by itself. `id` makes the client's number for the shared count.
    pub(crate) fn spend(
        self: &Arc<Self>,
        client: &Client<'_>,
        id: impl FnOnce() -> SharedId,
    ) -> Result<Verdict, Ask> {
        let (client, now) = (client.id(&self.hashers), self.now());
        let mut leases = self.leases(client);
        if leases.len() >= ROOM && !leases.contains_key(&client) {
            drop(leases);
            let (leases, id) = (Arc::clone(self), id());
            return Err(Ask { leases, client, id, extra: 0, is_open: false });
        }
        let held = leases.entry(client).or_insert_with(|| Held { id: id(), lease: Lease::default() });
        let (spend, id) = (held.lease.spend(now, self.size), held.id);
        drop(leases);
        match spend {
            Spend::Decided(verdict) => Ok(verdict),
            Spend::Renew(verdict, extra) => {
                self.renew(client, id, extra);
                Ok(verdict)
            }
            Spend::Ask(extra) => {
                let leases = Arc::clone(self);
                Err(Ask { leases, client, id, extra, is_open: extra > 0 })
            }
        }
    }

    /// Asks for more, without anybody who waits.
    fn renew(self: &Arc<Self>, client: ClientId, id: SharedId, extra: u64) {
        let ask = Ask { leases: Arc::clone(self), client, id, extra, is_open: true };
        // If it cannot run, the lease hears of it when the wish is dropped.
        self.shared.pool().spawn(async move {
            let _ = ask.answer(0).await;
        });
    }

    fn leases(&self, client: ClientId) -> MutexGuard<'_, Leases> {
        let [hasher, _] = &self.hashers;
        let index = hasher.hash_one(client) as usize % SHARDS;
        let shard = self.shards.get(index).unwrap_or(&self.shards[0]);
        shard.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        nanoseconds(self.started.elapsed())
    }

    /// Takes out what was not spent in time, or everything.
    fn take_unspent(&self, now: u64) -> Vec<(SharedId, Returned)> {
        let mut unspent = Vec::new();
        for Shard(shard) in &self.shards {
            let mut leases = shard.lock().unwrap_or_else(PoisonError::into_inner);
            leases.retain(|_, Held { id, lease }| {
                unspent.extend(lease.expired(now).into_iter().map(|returned| (*id, returned)));
                !lease.is_idle(now)
            });
        }
        unspent
    }
}

impl Drop for LeasedCounts {
    fn drop(&mut self) {
        let unspent = self.take_unspent(u64::MAX);
        if !unspent.is_empty() {
            let (shared, budget) = (Arc::clone(&self.shared), self.budget);
            self.shared.pool().spawn(async move { give_back(&shared, &budget, unspent).await });
        }
    }
}

impl Ask {
    /// Asks for the request itself, which costs one unit.
    pub(crate) async fn decide(self) -> Result<Verdict, Unavailable> {
        self.answer(1).await
    }

    async fn answer(mut self, cost: u64) -> Result<Verdict, Unavailable> {
        let LeasedCounts { shared, budget, .. } = &*self.leases;
        let grant = shared.take(self.id, budget, cost, self.extra).await?;
        let now = self.leases.now();
        let life = self.leases.life;
        let asked_extra = std::mem::take(&mut self.is_open);
        if let Some(held) = self.leases.leases(self.client).get_mut(&self.client) {
            held.lease.granted(now, &grant, cost, life, asked_extra);
        }
        Ok(grant.verdict)
    }
}

/// A client that goes away while its request asks must not keep others from a lease.
impl Drop for Ask {
    fn drop(&mut self) {
        if self.is_open
            && let Some(held) = self.leases.leases(self.client).get_mut(&self.client)
        {
            held.lease.failed(true);
        }
    }
}

/// Gives back what is not spent in time, as long as the leases are used.
async fn give_back_in_time(leases: Weak<LeasedCounts>) {
    let Some(life) = leases.upgrade().map(|leases| leases.life) else { return };
    loop {
        tokio::time::sleep(Duration::from_nanos(life / 2)).await;
        let Some(leases) = leases.upgrade() else { return };
        let unspent = leases.take_unspent(leases.now());
        let (shared, budget) = (Arc::clone(&leases.shared), leases.budget);
        // Not held while it waits, so that it can be dropped.
        drop(leases);
        give_back(&shared, &budget, unspent).await;
    }
}

/// Units that cannot be given back count until the window has passed.
async fn give_back(shared: &SharedCounts, budget: &Budget, unspent: Vec<(SharedId, Returned)>) {
    for (id, Returned { units, counted_at }) in unspent {
        if shared.give_back(id, budget, counted_at, units).await.is_err() {
            return;
        }
    }
}
