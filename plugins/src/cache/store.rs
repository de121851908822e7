//! The stored responses of a plugin, shared by all workers.
//!
//! Each URL belongs to one of [`SHARDS`] parts, and each part has a lock that is held for a look-up or a change of the table, and
//! never while something waits. All parts share one budget of bytes: a response that is still on its way has its bytes reserved,
//! and to reserve some, entries are evicted that were not used for the longest time (CLOCK).

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use foldhash::quality::RandomState;
use http::HeaderMap;
use signalbox_config::Purge;
use signalbox_plugin::Purgeable;

use super::entry::{Draft, Entry, Shared};
use super::key::Key;
use super::purge::Selector;

/// The stored responses of a plugin.
#[derive(Debug)]
pub(super) struct Store {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    /// The bytes that are in use or reserved.
    used: AtomicUsize,
    capacity: usize,
    /// The part in which the next eviction begins.
    hand: AtomicUsize,
    /// The number of invalidations and purges so far.
    changes: AtomicU64,
    /// The number of the last purge that was not of one URL.
    purged: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    urls: HashMap<Arc<str>, Url, RandomState>,
    /// The entries in the order in which eviction looks at them.
    clock: VecDeque<Weak<Entry>>,
    /// The number of entries.
    count: usize,
    /// The last invalidations: their numbers, and the hashes of their URLs.
    invalidated: VecDeque<(u64, u64)>,
    /// The number of the last invalidation that is not among them.
    forgotten: u64,
    /// By the hash of a key: the monotonic time up to which its responses count as ones that cannot be stored.
    uncacheable: Box<[(u64, Duration)]>,
}

/// The responses of a URL, by the partition of their keys.
type Url = HashMap<Arc<[u8]>, Vec<Shared>, RandomState>;

/// The moment in which a request was sent on. A response that was requested before its URL was invalidated is not stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket(u64);

/// Bytes of the budget. They are given back when it is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    store: Arc<Store>,
    bytes: usize,
}

/// The result of a look-up.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing is stored for the key.
    Nothing,
    /// The stored responses are for requests with other headers.
    Others,
    /// A response that fits.
    Entry(Shared),
}

const SHARDS: usize = 16;
/// The most responses to one key that differ by `Vary`. One more takes the place of the oldest.
const VARIANTS: usize = 32;
/// The most used entries that one eviction passes over before it takes the next one, used or not.
const PASSED_OVER: usize = 64;
/// The number of invalidations that a part remembers one by one.
const REMEMBERED: usize = 256;
/// The places for keys whose responses cannot be stored, in each part.
const UNCACHEABLE: usize = 1024;
/// The time for which a key counts as one whose responses cannot be stored.
const UNCACHEABLE_FOR: Duration = Duration::from_secs(10);

impl Store {
    /// A store for as many bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
            hasher: RandomState::default(),
            used: AtomicUsize::new(0),
            capacity,
            hand: AtomicUsize::new(0),
            changes: AtomicU64::new(0),
            purged: AtomicU64::new(0),
        }
    }

    /// The bytes that are in use or reserved.
    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The number of stored responses.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        (0..SHARDS).filter_map(|index| self.shard(index)).map(|shard| shard.count).sum()
    }

    /// Looks for a response to a request with these headers. One of a client that has credentials which are no part of the key
    /// `needs_shareable` responses.
    pub(super) fn find(&self, key: &Key, request: &HeaderMap, needs_shareable: bool) -> Found {
        let Some(shard) = self.shard_of(&key.url) else { return Found::Nothing };
        let entries = shard.urls.get(&*key.url).and_then(|url| url.get(&*key.partition));
        let Some(entries) = entries else { return Found::Nothing };
        let fitting = entries.iter().rev().find(|entry| entry.selection.fits(request));
        match fitting {
            Some(entry) if entry.is_shareable || !needs_shareable => {
                entry.is_used.store(true, Ordering::Relaxed);
                Found::Entry(Arc::clone(entry))
            }
            _ => Found::Others,
        }
    }

    /// The key under which requests wait for each other: that of the store, and the values by which responses are known to differ.
    /// Those with credentials wait only for others with credentials: responses to them are stored by other rules.
    pub(super) fn flight_key(&self, key: &Key, request: &HeaderMap, has_credentials: bool) -> Box<[u8]> {
        let mut whole = Vec::with_capacity(key.url.len() + key.partition.len() + 2);
        whole.extend_from_slice(key.url.as_bytes());
        // No URL has such a byte.
        whole.push(0);
        whole.push(u8::from(has_credentials));
        whole.extend_from_slice(&key.partition);
        let shard = self.shard_of(&key.url);
        let entries = shard.as_ref().and_then(|shard| shard.urls.get(&*key.url)?.get(&*key.partition));
        if let Some(newest) = entries.and_then(|entries| entries.last()) {
            newest.selection.for_request(request).write(&mut whole);
        }
        whole.into()
    }

    /// The present moment, for a request that is sent on now.
    pub(super) fn ticket(&self) -> Ticket {
        Ticket(self.changes.load(Ordering::SeqCst))
    }

    /// Reserves bytes; `None`: there are not as many, even if all is evicted.
    pub(super) fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        self.take(bytes).then(|| Reservation { store: Arc::clone(self), bytes })
    }

    fn take(&self, bytes: usize) -> bool {
        if bytes > self.capacity {
            return false;
        }
        loop {
            let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.capacity)
            });
            if taken.is_ok() {
                return true;
            }
            if !self.evict() {
                return false;
            }
        }
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Stores a response whose bytes were reserved. `false`: its URL was invalidated since it was requested.
    pub(super) fn insert(
        self: &Arc<Self>,
        draft: Draft,
        body: Bytes,
        ticket: Ticket,
        reservation: Reservation,
    ) -> bool {
        let entry = Arc::new(draft.with_body(body));
        let bytes = entry.size;
        // The reservation is as large as the response, or larger.
        let mut reservation = reservation;
        if !reservation.grow(bytes) {
            return false;
        }
        reservation.shrink(bytes);
        let hash = self.hasher.hash_one(&*entry.key.url);
        let Some(mut shard) = self.shard(self.index_of(hash)) else { return false };
        let is_outdated = self.purged.load(Ordering::SeqCst) > ticket.0
            || shard.forgotten > ticket.0
            || shard.invalidated.iter().any(|(number, url)| *number > ticket.0 && *url == hash);
        if is_outdated {
            return false;
        }
        // From here, the bytes are those of the entry.
        reservation.bytes = 0;
        let replaced = shard.insert(entry);
        drop(shard);
        self.release(replaced);
        true
    }

    /// Removes one entry, unless it is gone.
    pub(super) fn remove(&self, entry: &Shared) {
        let Some(mut shard) = self.shard_of(&entry.key.url) else { return };
        let is_there = shard.take_out(entry);
        drop(shard);
        if is_there {
            self.give_back(entry.size);
        }
    }

    /// Removes all responses of a URL, and lets none be stored that is on its way.
    pub(super) fn invalidate(&self, url: &str) {
        let hash = self.hasher.hash_one(url);
        let Some(mut shard) = self.shard(self.index_of(hash)) else { return };
        let number = self.changes.fetch_add(1, Ordering::SeqCst) + 1;
        shard.note_invalidation(number, hash);
        let removed: Vec<Shared> =
            shard.urls.remove(url).into_iter().flatten().flat_map(|(_, it)| it).collect();
        shard.forget(&removed);
        drop(shard);
        self.release(removed);
    }

    /// Removes the responses that `selector` selects, and lets none be stored that is on its way.
    pub(super) fn remove_selected(&self, selector: &Selector) {
        if let Selector::Url(url) = selector {
            return self.invalidate(url);
        }
        let number = self.changes.fetch_add(1, Ordering::SeqCst) + 1;
        self.purged.fetch_max(number, Ordering::SeqCst);
        for index in 0..SHARDS {
            let Some(mut shard) = self.shard(index) else { continue };
            let mut removed = Vec::new();
            shard.urls.retain(|_, url| {
                url.retain(|_, entries| {
                    let selected = |entry: &Shared| {
                        selector.selects(&entry.key, |tag| entry.tags.iter().any(|one| **one == *tag))
                    };
                    removed.extend(entries.extract_if(.., |entry| selected(entry)));
                    !entries.is_empty()
                });
                !url.is_empty()
            });
            shard.forget(&removed);
            drop(shard);
            self.release(removed);
        }
    }

    /// Notes that responses to a key cannot be stored, so that requests for it do not wait for each other for a while.
    pub(super) fn note_uncacheable(&self, flight_key: &[u8], now: Duration) {
        let hash = self.hasher.hash_one(flight_key);
        let Some(mut shard) = self.shard(self.index_of(hash)) else { return };
        if shard.uncacheable.is_empty() {
            shard.uncacheable = vec![(0, Duration::ZERO); UNCACHEABLE].into();
        }
        if let Some(place) = shard.uncacheable.get_mut(place_of(hash)) {
            *place = (hash, now + UNCACHEABLE_FOR);
        }
    }

    /// True if responses to a key could not be stored a short while ago.
    pub(super) fn is_uncacheable(&self, flight_key: &[u8], now: Duration) -> bool {
        let hash = self.hasher.hash_one(flight_key);
        let shard = self.shard(self.index_of(hash));
        shard.is_some_and(|shard| {
            shard.uncacheable.get(place_of(hash)).is_some_and(|(one, until)| *one == hash && now < *until)
        })
    }

    /// Evicts one entry. `false`: there is none.
    fn evict(&self) -> bool {
        let hand = self.hand.fetch_add(1, Ordering::Relaxed);
        // The fuller one of two keeps the parts alike.
        let count = |index| self.shard(index).map_or(0, |shard| shard.count);
        let (one, other) = (hand % SHARDS, (hand / SHARDS + 1 + hand) % SHARDS);
        let start = if count(other) > count(one) { other } else { one };
        // In the second round, what was passed over in the first can go.
        (0..2 * SHARDS).any(|offset| {
            let evicted = self.shard((start + offset) % SHARDS).and_then(|mut shard| shard.evict());
            let is_one = evicted.is_some();
            self.release(evicted);
            is_one
        })
    }

    /// Gives the bytes of removed entries back. It is called without a lock, because large bodies are dropped here.
    fn release(&self, removed: impl IntoIterator<Item = Shared>) {
        removed.into_iter().for_each(|entry| self.give_back(entry.size));
    }

    fn index_of(&self, hash: u64) -> usize {
        (hash >> 32) as usize % SHARDS
    }

    fn shard_of(&self, url: &str) -> Option<MutexGuard<'_, Shard>> {
        self.shard(self.index_of(self.hasher.hash_one(url)))
    }

    fn shard(&self, index: usize) -> Option<MutexGuard<'_, Shard>> {
        self.shards.get(index).map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Purgeable for Store {
    fn purge(&self, purge: &Purge) {
        self.remove_selected(&Selector::Purge(purge.clone()));
    }
}

fn place_of(hash: u64) -> usize {
    hash as usize % UNCACHEABLE
}

impl Shard {
    /// Inserts an entry. Returns those whose place it takes.
    fn insert(&mut self, entry: Shared) -> Vec<Shared> {
        let url = self.urls.entry(Arc::clone(&entry.key.url)).or_default();
        let entries = url.entry(Arc::clone(&entry.key.partition)).or_default();
        let mut replaced: Vec<Shared> =
            entries.extract_if(.., |other| other.selection == entry.selection).collect();
        if entries.len() >= VARIANTS {
            replaced.extend(entries.drain(..1));
        }
        self.clock.push_back(Arc::downgrade(&entry));
        self.count += 1;
        entries.push(entry);
        self.forget(&replaced);
        replaced
    }

    /// Takes an entry out of the table. `false`: it was not there any more.
    fn take_out(&mut self, entry: &Shared) -> bool {
        let Some(url) = self.urls.get_mut(&*entry.key.url) else { return false };
        let Some(entries) = url.get_mut(&*entry.key.partition) else { return false };
        let before = entries.len();
        entries.retain(|other| !Arc::ptr_eq(other, entry));
        let is_there = entries.len() < before;
        if entries.is_empty() {
            url.remove(&*entry.key.partition);
        }
        if url.is_empty() {
            self.urls.remove(&*entry.key.url);
        }
        if is_there {
            self.forget(std::slice::from_ref(entry));
        }
        is_there
    }

    /// Entries were taken out of the table.
    fn forget(&mut self, removed: &[Shared]) {
        self.count = self.count.saturating_sub(removed.len());
        removed.iter().for_each(|entry| entry.is_removed.store(true, Ordering::Relaxed));
        if self.clock.len() > 2 * self.count + PASSED_OVER {
            self.clock.retain(|entry| {
                entry.upgrade().is_some_and(|entry| !entry.is_removed.load(Ordering::Relaxed))
            });
        }
    }

    /// Evicts the first entry that was not used since eviction last passed over it. `None`: all were, or there is none.
    fn evict(&mut self) -> Option<Shared> {
        let mut passed_over = 0;
        for _ in 0..self.clock.len() {
            let next = self.clock.pop_front()?;
            let Some(entry) = next.upgrade().filter(|entry| !entry.is_removed.load(Ordering::Relaxed)) else {
                continue;
            };
            if entry.is_used.swap(false, Ordering::Relaxed) && passed_over < PASSED_OVER {
                passed_over += 1;
                self.clock.push_back(next);
                continue;
            }
            self.take_out(&entry);
            return Some(entry);
        }
        None
    }

    fn note_invalidation(&mut self, number: u64, url: u64) {
        if self.invalidated.len() >= REMEMBERED
            && let Some((oldest, _)) = self.invalidated.pop_front()
        {
            self.forgotten = oldest;
        }
        self.invalidated.push_back((number, url));
    }
}

impl Reservation {
    /// Reserves more, up to `bytes` in all. `false`: there are not as many.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if !self.store.take(more) {
            return false;
        }
        self.bytes += more;
        true
    }

    /// Gives back all beyond `bytes`.
    fn shrink(&mut self, bytes: usize) {
        self.store.give_back(self.bytes.saturating_sub(bytes));
        self.bytes = self.bytes.min(bytes);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.store.give_back(self.bytes);
    }
}
