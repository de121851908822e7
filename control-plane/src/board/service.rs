//! The board, as the streams and the admin API use it.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, broadcast, watch};

use super::event::{Event, Node};
use super::fleet_proxy::FleetProxy;
use super::replicas::StreamShare;
use super::state::{Sharing, State};
use super::status::{FleetStatus, ProxyStatus, Rollout, RolloutCounts};
use crate::clock::now_us;
use crate::store::{Store, StoreError};

/// The state of all proxies and rollouts.
pub struct Board {
    pub(super) store: Arc<dyn Store>,
    pub(super) replica: Arc<str>,
    /// This process among all that use the database.
    pub(super) instance: Arc<str>,
    pub(super) sharing: Sharing,
    pub(super) state: Mutex<State>,
    /// Counts what may end a [`Board::wait`].
    pub(super) progress: watch::Sender<u64>,
    /// Wakes [`Board::run`]: there is something to tell.
    pub(super) changed: Notify,
    /// Likewise, something to write.
    pub(super) unsaved: Notify,
    /// One write is under way at a time.
    pub(super) writing: tokio::sync::Mutex<()>,
    /// One read of all rows is under way at a time, and serves all who asked for one before it began.
    pub(super) reading: tokio::sync::Mutex<u64>,
    /// How many reads were asked for.
    pub(super) reads_asked: AtomicU64,
    pub(super) started: Instant,
    /// It was logged that another control plane has the same name.
    pub(super) name_conflict_logged: AtomicBool,
    pub(super) events: broadcast::Sender<BoardEvent>,
}

/// A change on the board.
#[derive(Debug, Clone)]
pub enum BoardEvent {
    /// A proxy is new, or something about it changed.
    Proxy(Arc<ProxyStatus>),
    /// A proxy was forgotten: its id.
    Forgotten(Arc<str>),
    /// A rollout is new, or got further.
    Rollout(Arc<Rollout>),
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
    /// A board that knows nothing yet.
    pub(super) fn new(store: Arc<dyn Store>, replica: &str, sharing: Sharing) -> Self {
        let instance: Arc<str> = uuid::Uuid::new_v4().simple().to_string().into();
        Self {
            store,
            replica: replica.into(),
            instance: instance.clone(),
            sharing,
            state: Mutex::new(State::new(replica.into(), instance, sharing)),
            progress: watch::Sender::new(0),
            changed: Notify::new(),
            unsaved: Notify::new(),
            writing: tokio::sync::Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            reads_asked: AtomicU64::new(0),
            started: Instant::now(),
            name_conflict_logged: AtomicBool::new(false),
            events: broadcast::Sender::new(Self::EVENT_BUFFER),
        }
    }

    /// How many events a subscriber may be behind before it loses some.
    const EVENT_BUFFER: usize = 8192;

    /// Takes in what happened. Costs what the event is, not what the board is.
    pub fn fold(&self, event: Event) {
        let mut state = self.state();
        state.fold(now_us(), event);
        // Alone, it is written in time.
        let unsaved = state.registering || self.sharing == Sharing::Shared && !state.unsaved.is_empty();
        let duplicates = std::mem::take(&mut state.duplicates);
        let progress = std::mem::take(&mut state.progress);
        drop(state);
        if progress {
            self.progress.send_modify(|count| *count += 1);
        }
        self.changed.notify_one();
        if unsaved {
            self.unsaved.notify_one();
        }
        for (node, duplicate) in duplicates {
            tracing::warn!(%node, "{duplicate}");
        }
    }

    /// True if a stream of this proxy may be opened: there are not too many proxies and fleets.
    pub fn has_room(&self, node: &Node) -> bool {
        self.state().has_room(node)
    }

    /// How the streams are spread over the control planes. Costs what the number of proxies is.
    pub fn stream_share(&self) -> StreamShare {
        self.state().stream_share()
    }

    /// Notes that a proxy has carried out the purges up to `number`. `false`: it has no stream to this control plane, at least not yet.
    pub fn note_purged(&self, id: &Arc<str>, number: u64) -> bool {
        let has_stream = self.state().proxies.get(id).is_some_and(|proxy| proxy.stream.is_some());
        if has_stream {
            self.fold(Event::Purged { id: Arc::clone(id), number });
        }
        has_stream
    }

    /// All proxies, by id.
    pub fn proxies(&self) -> Vec<ProxyStatus> {
        self.state().proxies()
    }

    /// The number of connected proxies, of fleets that `concerns` names, which do not know a plugin type. One that does not say
    /// what it knows is not among them.
    pub fn proxies_without(&self, plugin_type: &str, concerns: impl Fn(&str) -> bool) -> usize {
        self.state().proxies_without(plugin_type, concerns)
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

    /// The proxies of a fleet, by id.
    pub fn fleet_proxies(&self, fleet: &str) -> Vec<FleetProxy> {
        self.state().fleet_proxies(fleet)
    }

    /// The fleet of a proxy, and the number of the fleet's proxies; `None`: the proxy is not known.
    pub fn fleet_of(&self, id: &str) -> Option<(Arc<str>, u32)> {
        let state = self.state();
        let fleet = &state.proxies.get(id)?.node.fleet;
        Some((Arc::clone(fleet), state.fleets.get(fleet).map_or(0, |fleet| fleet.total)))
    }

    /// The proxies of a fleet in relation to a revision that a part of them is to serve.
    pub fn assigned_counts(&self, fleet: &str, revision: u64) -> RolloutCounts {
        self.state().assigned_counts(fleet, revision)
    }

    /// The process of this control plane, among all that use the database.
    pub fn instance(&self) -> &Arc<str> {
        &self.instance
    }

    /// Sees what may end a wait.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
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

    /// Subscribes to changes, in batches of at most twenty a second. A subscriber that falls behind is told so
    /// (`Lagged`), and reads everything again.
    pub fn subscribe(&self) -> broadcast::Receiver<BoardEvent> {
        self.events.subscribe()
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A panic while folding leaves numbers that are off at worst; the control plane goes on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
