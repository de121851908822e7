//! The board: what is known of every proxy and of every revision's way through its fleet, folded from what the
//! streams see (sent, ACK, NACK, gone) and what the proxies report.
//!
//! All of it is in memory, and [`fold`] decides it. The store has a copy, written behind: a database that is away
//! holds nothing up. Where several control planes share a database, each writes the proxies it has a stream to, and
//! reads the others' ([`sync`]). Three rules make a wait's answer true for all of them:
//!
//! - A stream is registered in the database before it is answered for the first time. The latest registration of a
//!   proxy counts; a control plane that sees a later one ends its own stream of that proxy.
//! - Whoever says that a revision is served everywhere has read the rows of all proxies after it looked so.
//! - A control plane says every second that it is alive. The proxies of one that does not are of unknown state, and are
//!   waited for. Before it says so again it registers its streams anew.

mod fold;
mod status;
mod sync;

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

pub use fold::{EndedBy, Event, Presented};
pub use status::{
    FleetStatus, Propagation, ProxyError, ProxyResourceError, ProxyRevision, ProxyState, ProxyStatus,
    ProxyTraffic, Rollout, RolloutCounts, RolloutFault, RolloutState, TrafficClasses, Waiting,
};

use crate::publish::chain;
use crate::store::{Store, StoreError};
use fold::State;

/// What is known of the proxies and the rollouts.
pub struct Board {
    store: Arc<dyn Store>,
    replica: Arc<str>,
    /// This process among all that use the database.
    instance: Arc<str>,
    sharing: Sharing,
    state: Mutex<State>,
    /// Counts what may end a [`Board::wait`].
    progress: watch::Sender<u64>,
    /// Wakes [`Board::run`]: there is something to tell.
    changed: Notify,
    /// Likewise, something to write.
    unsaved: Notify,
    /// One write is under way at a time.
    writing: tokio::sync::Mutex<()>,
    /// One read of all rows is under way at a time, and serves all who asked for one before it began.
    reading: tokio::sync::Mutex<u64>,
    /// How many reads were asked for.
    reads_asked: AtomicU64,
    started: Instant,
    /// It was logged that another control plane has the same name.
    namesake_told: AtomicBool,
    events: broadcast::Sender<BoardEvent>,
}

/// Whether other control planes use the same database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// None: what the store has is from before this start.
    Alone,
    /// Perhaps: they tell each other what they write, and read it.
    Shared,
}

/// Between the board and one stream.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// The process of the proxy, as it says; empty: it says nothing.
    pub process: Arc<str>,
    /// Cancelled once the stream may be answered: the database knows of it.
    pub answer: CancellationToken,
    /// Cancelled when the proxy opened a stream to another control plane: this one is to end.
    pub replaced: CancellationToken,
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
    /// When the time ran out: some of the proxies that were waited for.
    pub waiting: Vec<Waiting>,
    /// How many those are altogether.
    pub waiting_count: usize,
    /// When the time ran out because it could not be known: why.
    pub unknown: Option<String>,
}

/// How a [`Board::wait`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitResult {
    /// Every connected proxy serves the revision, or a later one, and none is of unknown state.
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
    /// The board as the store last had it. `replica` names this control plane among others. Where it shares the
    /// database, it is known to the others from here on.
    pub async fn open(
        store: Arc<dyn Store>,
        replica: &str,
        sharing: Sharing,
    ) -> Result<Arc<Self>, StoreError> {
        let instance: Arc<str> = uuid::Uuid::new_v4().simple().to_string().into();
        let board = Arc::new(Self {
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
            namesake_told: AtomicBool::new(false),
            events: broadcast::Sender::new(Self::EVENT_BUFFER),
        });
        board.load().await?;
        Ok(board)
    }

    /// How many events a subscriber may be behind before it loses some.
    const EVENT_BUFFER: usize = 8192;

    /// Takes in what happened. Costs what the event is, not what the board is.
    pub fn fold(&self, event: Event) {
        let mut state = self.state();
        state.fold(now_us(), event);
        let unsaved = !state.unsaved.is_empty();
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

    /// Whether a stream of this proxy may be opened: there are not too many proxies and fleets.
    pub fn has_room(&self, node: &Node) -> bool {
        self.state().has_room(node)
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
    /// rejected it, or `deadline` passes. Proxies without a stream hold nothing up; those of unknown state do. Cancel safe.
    pub async fn wait(&self, revision: u64, fleet: Option<&str>, deadline: Instant) -> WaitOutcome {
        let mut progress = self.progress.subscribe();
        let deadline = tokio::time::Instant::from_std(deadline);
        loop {
            progress.mark_unchanged();
            let standing = self.state().standing(revision, fleet);
            let (standing, unknown) = match standing {
                Some(WaitResult::Done) if self.sharing == Sharing::Shared => {
                    match tokio::time::timeout_at(deadline, self.standing_of_all(revision, fleet)).await {
                        Ok(Ok(standing)) => (standing, None),
                        Ok(Err(error)) => (None, Some(chain(&error))),
                        Err(_) => (None, Some("the database did not answer in time".to_owned())),
                    }
                }
                standing => (standing, None),
            };
            let again = if unknown.is_some() { tokio::time::Instant::now() + RETRY } else { deadline };
            let result = match standing {
                Some(result) => result,
                None => match tokio::time::timeout_at(again.min(deadline), progress.changed()).await {
                    Ok(_) => continue,
                    Err(_) if tokio::time::Instant::now() < deadline => continue,
                    Err(_) => WaitResult::TimedOut,
                },
            };
            let state = self.state();
            let (waiting, waiting_count) = match result {
                WaitResult::TimedOut => state.waited_for(revision, fleet, Self::SHOWN_WAITING),
                WaitResult::Done | WaitResult::Rejected => (Vec::new(), 0),
            };
            let rollouts = state.rollouts_of(revision, fleet);
            return WaitOutcome { result, rollouts, waiting, waiting_count, unknown };
        }
    }

    /// How many proxies are named that a wait waited for in vain.
    const SHOWN_WAITING: usize = 20;

    /// Reads what the other control planes wrote, and then looks how a wait stands.
    async fn standing_of_all(
        &self,
        revision: u64,
        fleet: Option<&str>,
    ) -> Result<Option<WaitResult>, StoreError> {
        self.refresh().await?;
        let state = self.state();
        if state.is_unsettled(Instant::now()) {
            return Ok(None);
        }
        Ok(state.standing(revision, fleet))
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

/// How soon a wait that looks done asks a database again that did not answer.
const RETRY: Duration = Duration::from_millis(200);

/// How often what changed is told to the subscribers.
const EVENT_INTERVAL: Duration = Duration::from_millis(50);
