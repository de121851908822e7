//! Requests that wait for the response to another one like them.
//!
//! The first request for something that is not stored leads, and the others wait until its response is stored or cannot be. They are
//! then freed all at once. Whoever waited takes only what a look-up finds for it, so nobody gets a response that is not for it.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use tokio::sync::watch;

use super::vary::Selection;

/// The requests that others wait for.
#[derive(Debug)]
pub(super) struct Flights {
    shards: Box<[Mutex<Leading>]>,
    hasher: RandomState,
}

type Leading = HashMap<Arc<[u8]>, Wait, RandomState>;

/// Tells when the response to another request is there. What it tells first is the selection of the response, once its head is known;
/// it closes when the response is stored or cannot be.
pub(super) type Wait = watch::Receiver<Option<Arc<Selection>>>;

/// The request that others wait for. They are freed when this is dropped.
#[derive(Debug)]
pub(super) struct Lead {
    flights: Arc<Flights>,
    key: Arc<[u8]>,
    teller: watch::Sender<Option<Arc<Selection>>>,
}

/// The part of a request in a flight.
#[derive(Debug)]
pub(super) enum Joined {
    /// Others wait for it.
    Leads(Lead),
    /// It waits for another.
    Waits(Wait),
}

const SHARDS: usize = 16;

impl Default for Flights {
    fn default() -> Self {
        Self {
            shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
            hasher: RandomState::default(),
        }
    }
}

impl Flights {
    /// Lets a request lead, or else wait for the one that does. `None`: neither is possible.
    pub(super) fn join(self: &Arc<Self>, key: &[u8]) -> Option<Joined> {
        let mut leading = self.shard(key)?;
        // A closed one belongs to a leader that is about to remove it.
        if let Some(wait) = leading.get(key).filter(|wait| wait.has_changed().is_ok()) {
            return Some(Joined::Waits(wait.clone()));
        }
        let key: Arc<[u8]> = key.into();
        let (teller, wait) = watch::channel(None);
        leading.insert(Arc::clone(&key), wait);
        drop(leading);
        Some(Joined::Leads(Lead { flights: Arc::clone(self), key, teller }))
    }

    fn shard(&self, key: &[u8]) -> Option<MutexGuard<'_, Leading>> {
        let index = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards.get(index).map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().len()).sum()
    }
}

impl Lead {
    /// Tells by which headers the response was chosen. Those who wait with other values go on by themselves.
    pub(super) fn tell(&self, selection: &Selection) {
        self.teller.send_replace(Some(Arc::new(selection.clone())));
    }

    /// The key that it leads for.
    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let Some(mut leading) = self.flights.shard(&self.key) else { return };
        if leading.get(&self.key).is_some_and(|wait| wait.same_channel(&self.teller.subscribe())) {
            leading.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_leads_and_the_others_wait_until_it_is_gone() {
        let flights = Arc::new(Flights::default());
        let Some(Joined::Leads(lead)) = flights.join(b"k") else { panic!("the first leads") };
        let Some(Joined::Waits(wait)) = flights.join(b"k") else { panic!("the second waits") };
        assert!(matches!(flights.join(b"other"), Some(Joined::Leads(_))));
        assert_eq!(wait.has_changed().ok(), Some(false));
        lead.tell(&Selection::default());
        assert_eq!(wait.has_changed().ok(), Some(true));
        drop(lead);
        assert!(wait.has_changed().is_err());
        assert_eq!(flights.len(), 0, "a flight leaves nothing behind");
        assert!(matches!(flights.join(b"k"), Some(Joined::Leads(_))));
    }
}
