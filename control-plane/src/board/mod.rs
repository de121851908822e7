//! The board: what is known of every proxy and of every revision's way through its fleet, folded from what the
//! streams see (sent, ACK, NACK, gone) and what the proxies report.
//!
//! All of it is in memory, and [`fold`] decides it. The store has a copy, written behind: a database that is away
//! holds nothing up. Where several control planes share a database, each writes the proxies it has a stream to, and
//! reads the others'.

mod fold;
mod status;
mod sync;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tokio::sync::{Notify, broadcast, watch};

pub use fold::Event;
pub use status::{
    FleetStatus, Propagation, ProxyError, ProxyResourceError, ProxyRevision, ProxyState, ProxyStatus,
    ProxyTraffic, Rollout, RolloutCounts, RolloutState, TrafficClasses,
};

use crate::store::{Store, StoreError};
use fold::State;

/// What is known of the proxies and the rollouts.
pub struct Board {
    store: Arc<dyn Store>,
    replica: Arc<str>,
    sharing: Sharing,
    state: Mutex<State>,
    /// Counts what may end a [`Board::wait`].
    progress: watch::Sender<u64>,
    /// Wakes [`Board::run`]: there is something to write or to tell.
    changed: Notify,
    events: broadcast::Sender<BoardEvent>,
}

/// Whether other control planes use the same database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// None: what the store has is from before this start.
    Alone,
    /// Perhaps: what they wrote is read every second.
    Shared,
}

/// Who a proxy is, as it says in the first request of its stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Unique, kept over restarts.
    pub id: Arc<str>,
    /// The fleet.
    pub fleet: Arc<str>,
    /// As it was started with.
    pub labels: BTreeMap<String, String>,
    /// The version of its program.
    pub version: String,
    /// Where its stream comes from.
    pub address: String,
}

/// What changed on the board.
#[derive(Debug, Clone)]
pub enum BoardEvent {
    /// A proxy is new, or something about it changed.
    Proxy(Arc<ProxyStatus>),
    /// A proxy was forgotten: its id.
    Forgotten(Arc<str>),
    /// A rollout is new, or got further.
    Rollout(Arc<Rollout>),
}

/// How a [`Board::wait`] ended.
#[derive(Debug, Clone)]
pub struct WaitOutcome {
    /// How.
    pub result: WaitResult,
    /// The revision's rollouts, one for each fleet that was waited for and has one.
    pub rollouts: Vec<Rollout>,
}

/// How a [`Board::wait`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitResult {
    /// Every connected proxy serves the revision, or a later one.
    Done,
    /// A connected proxy rejected it, or the later one it was sent instead.
    Rejected,
    /// Neither came in time.
    TimedOut,
}

/// Why a proxy was not forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// There is none of this id.
    #[error("there is no such proxy")]
    Unknown,
    /// It has a stream: it would be back at once.
    #[error("the proxy is connected")]
    Connected,
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Board {
    /// The board as the store last had it. `replica` names this control plane among others.
    pub async fn open(
        store: Arc<dyn Store>,
        replica: &str,
        sharing: Sharing,
    ) -> Result<Arc<Self>, StoreError> {
        let mut state = State::new(replica.into());
        sync::load(&*store, &mut state).await?;
        Ok(Arc::new(Self {
            store,
            replica: replica.into(),
            sharing,
            state: Mutex::new(state),
            progress: watch::Sender::new(0),
            changed: Notify::new(),
            events: broadcast::Sender::new(Self::EVENT_BUFFER),
        }))
    }

    /// How many events a subscriber may be behind before it loses some.
    const EVENT_BUFFER: usize = 8192;

    /// Takes in what happened. Costs what the event is, not what the board is.
    pub fn fold(&self, event: Event) {
        let mut state = self.state();
        state.fold(now_us(), event);
        let progress = std::mem::take(&mut state.progress);
        drop(state);
        if progress {
            self.progress.send_modify(|count| *count += 1);
        }
        self.changed.notify_one();
    }

    /// All proxies, by id.
    pub fn proxies(&self) -> Vec<ProxyStatus> {
        self.state().proxies()
    }

    /// One proxy.
    pub fn proxy(&self, id: &str) -> Option<ProxyStatus> {
        self.state().proxy(id)
    }

    /// Forgets a proxy that has no stream.
    pub async fn forget(&self, id: &str) -> Result<(), ForgetError> {
        let check = |state: &State| match state.proxy(id) {
            None => Err(ForgetError::Unknown),
            Some(proxy) if proxy.connected => Err(ForgetError::Connected),
            Some(_) => Ok(()),
        };
        check(&self.state())?;
        self.store.delete_proxy(id).await?;
        {
            let mut state = self.state();
            // It may have come back meanwhile; then it is written again.
            check(&state)?;
            state.fold(now_us(), Event::Forgotten { id: id.into() });
        }
        self.changed.notify_one();
        Ok(())
    }

    /// The last rollouts, newest revision first.
    pub fn rollouts(&self, limit: usize) -> Vec<Rollout> {
        self.state().rollouts(limit)
    }

    /// One rollout, by `REVISION-FLEET`.
    pub fn rollout(&self, id: &str) -> Option<Rollout> {
        self.state().rollout(id)
    }

    /// The fleets that have, or had, a proxy; by name.
    pub fn fleets(&self) -> Vec<FleetStatus> {
        self.state().fleets()
    }

    /// Waits until every connected proxy of `fleet` (`None`: of all) serves `revision` or a later one, or one has
    /// rejected it, or `deadline` passes. Proxies without a stream hold nothing up. Cancel safe.
    pub async fn wait(&self, revision: u64, fleet: Option<&str>, deadline: Instant) -> WaitOutcome {
        let mut progress = self.progress.subscribe();
        let deadline = tokio::time::Instant::from_std(deadline);
        loop {
            progress.mark_unchanged();
            let standing = self.state().standing(revision, fleet);
            let result = match standing {
                Some(result) => result,
                None => match tokio::time::timeout_at(deadline, progress.changed()).await {
                    Ok(_) => continue,
                    Err(_) => WaitResult::TimedOut,
                },
            };
            return WaitOutcome { result, rollouts: self.state().rollouts_of(revision, fleet) };
        }
    }

    /// What changes from now on, in batches of at most twenty a second. A subscriber that falls behind is told so
    /// (`Lagged`), and reads everything again.
    pub fn subscribe(&self) -> broadcast::Receiver<BoardEvent> {
        self.events.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while folding leaves numbers that are off at worst; the control plane goes on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Microseconds since 1970.
pub(crate) fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// How often what changed is told to the subscribers.
const EVENT_INTERVAL: Duration = Duration::from_millis(50);
