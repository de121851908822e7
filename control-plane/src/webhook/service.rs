//! Brings events to webhooks.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use schemars::JsonSchema;
use serde::Serialize;
use signalbox_config::{Kind, Name, ResourceKey, Webhook};
use signalbox_process::ErrorChain;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::endpoint::{Attempt, Endpoint};
use super::event::Event;
use super::held::{Held, HeldEvents};
use super::host_secret::HostSecrets;
use crate::board::{Board, BoardEvent, Rollout};
use crate::clock::now_us;
use crate::health_report::{HealthReports, IncidentChange};
use crate::metrics::WebhookCounts;
use crate::publish::Publisher;
use crate::rollout::Rollouts;
use crate::store::RevisionSummary;

/// Sends events to webhooks while this control plane is the one that does.
pub struct Webhooks {
    publisher: Arc<Publisher>,
    board: Arc<Board>,
    rollouts: Arc<Rollouts>,
    health: Arc<HealthReports>,
    /// The name of this control plane.
    replica: String,
    secrets: Arc<HostSecrets>,
    endpoints: Mutex<BTreeMap<Name, Arc<Endpoint>>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    /// Cancelled after `shutdown`, when the endpoints have all events that came before it.
    end: CancellationToken,
}

/// The deliveries of a webhook, as one control plane knows them.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "WebhookDeliveries")]
pub struct Deliveries {
    /// The name of the control plane that answers. It knows only of its own attempts, since its start.
    pub replica: String,
    /// True if it is the one that sends events at present.
    pub sends: bool,
    /// The name of the control plane that sends. Null: that is not known at the moment.
    pub sender: Option<String>,
    /// The number of events that this control plane is still to deliver.
    pub queued: usize,
    /// The last attempts, at most 50, the newest first.
    pub attempts: Vec<Attempt>,
}

/// Brings events to endpoints while this control plane sends, and keeps them while it does not.
struct Dispatcher<'w> {
    webhooks: &'w Webhooks,
    /// True while this control plane sends.
    sends: bool,
    held: HeldEvents,
    seen: Seen,
    /// The time when the task began, in microseconds since 1970. Older events are not told of.
    began_us: i64,
}

/// Events that were lost on their way here, for they came too fast.
enum Lost {
    Nothing,
    /// So many that cannot be found again.
    Events(u64),
    /// Changes of immediate rollouts, which the board still has.
    Board,
    /// Changes of progressive rollouts, which the store still has.
    Rollouts,
}

/// The immediate rollouts of before its start that the task knows not to tell of.
const KNOWN_ROLLOUTS: usize = 1000;

/// The progressive rollouts that are read again after changes of some were lost. They are many times larger.
const READ_AGAIN: u32 = 100;

impl Webhooks {
    /// Sends nothing before [`Webhooks::run`]. Webhooks may refer to files below `secrets_dir`.
    pub fn new(
        publisher: Arc<Publisher>,
        board: Arc<Board>,
        rollouts: Arc<Rollouts>,
        health: Arc<HealthReports>,
        replica: String,
        secrets_dir: PathBuf,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let secrets = Arc::new(HostSecrets::new(secrets_dir));
        let (endpoints, tasks, end) = (Mutex::default(), TaskTracker::new(), CancellationToken::new());
        Arc::new(Self {
            publisher,
            board,
            rollouts,
            health,
            replica,
            secrets,
            endpoints,
            tasks,
            shutdown,
            end,
        })
    }

    /// Brings events to webhooks until shutdown.
    pub async fn run(self: Arc<Self>) {
        let mut published = self.publisher.subscribe();
        let mut revisions = self.publisher.revisions();
        let mut rollouts = self.rollouts.subscribe();
        let mut board = self.board.subscribe();
        let mut incidents = self.health.subscribe();
        let mut announces = self.rollouts.announces();
        let mut dispatcher = Dispatcher::new(&self);
        loop {
            let lost = tokio::select! {
                // Events of before this control plane began to send are then held first.
                biased;
                () = self.shutdown.cancelled() => break,
                revision = revisions.recv() => {
                    taken(revision, Lost::Events, |revision| dispatcher.add_revision(&revision))
                }
                rollout = rollouts.recv() => {
                    taken(rollout, |_| Lost::Rollouts, |rollout| dispatcher.add_rollout(&rollout))
                }
                event = board.recv() => {
                    taken(event, |_| Lost::Board, |event| dispatcher.add_of_board(&event))
                }
                change = incidents.recv() => {
                    taken(change, Lost::Events, |change| dispatcher.add_incident(&change))
                }
                changed = published.changed() => {
                    self.follow();
                    changed.map(|()| Lost::Nothing).map_err(drop)
                }
                changed = announces.changed() => {
                    let sends = *announces.borrow_and_update();
                    dispatcher.set_sends(sends);
                    changed.map(|()| Lost::Nothing).map_err(drop)
                }
            };
            match lost {
                Ok(Lost::Nothing) => {}
                Ok(Lost::Events(lost)) => {
                    tracing::warn!(lost, "events came too fast for webhooks, and some are lost");
                }
                Ok(Lost::Board) => dispatcher.read_board(),
                Ok(Lost::Rollouts) => dispatcher.read_rollouts().await,
                Err(()) => break,
            }
        }
        drain(&mut revisions, |revision| dispatcher.add_revision(&revision));
        drain(&mut rollouts, |rollout| dispatcher.add_rollout(&rollout));
        drain(&mut board, |event| dispatcher.add_of_board(&event));
        drain(&mut incidents, |change| dispatcher.add_incident(&change));
        self.end.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Sends a test event at once, whichever control plane sends events; `None`: there is no such webhook.
    pub async fn test(&self, name: &Name) -> Option<Attempt> {
        self.follow();
        let endpoint = self.endpoints().get(name).cloned()?;
        Some(endpoint.test().await)
    }

    /// The deliveries of a webhook; `None`: there is no such webhook.
    pub async fn deliveries(&self, name: &Name) -> Option<Deliveries> {
        self.follow();
        let (queued, attempts) = self.endpoints().get(name)?.deliveries();
        let sends = *self.rollouts.announces().borrow();
        let sender = if sends { Some(self.replica.clone()) } else { self.leader().await };
        Some(Deliveries { replica: self.replica.clone(), sends, sender, queued, attempts })
    }

    async fn leader(&self) -> Option<String> {
        let found = self.rollouts.leader_name().await;
        found.unwrap_or_else(|error| {
            tracing::debug!(error = %ErrorChain(&error), "the leader cannot be read");
            None
        })
    }

    /// For the metrics, by name.
    pub fn counts(&self) -> Vec<WebhookCounts> {
        self.endpoints().values().map(|endpoint| endpoint.counts()).collect()
    }

    /// Takes over which webhooks there are. The task of one that is new or enabled begins, that of one that is gone ends.
    fn follow(&self) {
        let mut endpoints = self.endpoints();
        // Read under the lock: the tasks of calls run this as well, and none may take over a set that is older than the last one's.
        let published = self.publisher.current();
        let current: BTreeMap<&Name, &Webhook> =
            published.webhooks().map(|webhook| (&webhook.name, webhook)).collect();
        endpoints.retain(|name, endpoint| {
            // A webhook that is disabled stays, for tests; its task ends, and another endpoint takes its place when it is enabled.
            let was_enabled = endpoint.webhook().enabled;
            let stays = current.get(name).is_some_and(|webhook| webhook.enabled == was_enabled);
            if !stays {
                endpoint.gone.cancel();
            }
            stays
        });
        for (name, webhook) in current {
            match endpoints.get(name) {
                Some(endpoint) => endpoint.replace(webhook),
                None => {
                    let key = ResourceKey::new(Kind::Webhook, name.clone());
                    let since = published.metas.get(&key).map_or(0, |meta| meta.revision);
                    let endpoint = Arc::new(Endpoint::new(webhook.clone(), since, Arc::clone(&self.secrets)));
                    if webhook.enabled {
                        self.tasks.spawn(Arc::clone(&endpoint).run(self.end.clone()));
                    }
                    endpoints.insert(name.clone(), endpoint);
                }
            }
        }
    }

    fn endpoints(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<Endpoint>>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes what was received. Returns the events that were lost before it; an error: there will be no more.
fn taken<T>(
    received: Result<T, RecvError>,
    lost: impl FnOnce(u64) -> Lost,
    take: impl FnOnce(T),
) -> Result<Lost, ()> {
    match received {
        Ok(event) => {
            take(event);
            Ok(Lost::Nothing)
        }
        Err(RecvError::Lagged(count)) => Ok(lost(count)),
        Err(RecvError::Closed) => Err(()),
    }
}

/// Takes all that has come.
fn drain<T: Clone>(receiver: &mut broadcast::Receiver<T>, mut take: impl FnMut(T)) {
    loop {
        match receiver.try_recv() {
            Ok(event) => take(event),
            Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => return,
        }
    }
}

impl<'w> Dispatcher<'w> {
    fn new(webhooks: &'w Webhooks) -> Self {
        webhooks.follow();
        let current = webhooks.publisher.current();
        let mut dispatcher = Self {
            webhooks,
            sends: *webhooks.rollouts.announces().borrow(),
            held: HeldEvents::default(),
            seen: Seen::default(),
            began_us: now_us(),
        };
        for rollout in webhooks.board.rollouts(KNOWN_ROLLOUTS) {
            let is_new = &mut |key: &str| dispatcher.seen.note(key);
            Event::of_rollout(&current.snapshot.id().epoch, &rollout, i64::MIN, is_new);
        }
        dispatcher
    }

    fn add_revision(&mut self, revision: &RevisionSummary) {
        self.add(Event::of_revision(&self.webhooks.publisher.current(), revision));
    }

    fn add_incident(&mut self, change: &IncidentChange) {
        self.add(Event::of_incident(change, now_us()));
    }

    fn add_of_board(&mut self, event: &BoardEvent) {
        if let BoardEvent::Rollout(rollout) = event {
            self.add_rollout(rollout);
        }
    }

    /// Tells of the last immediate rollouts, for changes of some were lost. Those that were told of are known.
    fn read_board(&mut self) {
        for rollout in self.webhooks.board.rollouts(KNOWN_ROLLOUTS).iter().rev() {
            self.add_rollout(rollout);
        }
    }

    /// Tells of the last progressive rollouts, likewise.
    async fn read_rollouts(&mut self) {
        match self.webhooks.rollouts.list(None, READ_AGAIN).await {
            Ok(rollouts) => rollouts.iter().rev().for_each(|rollout| self.add_rollout(rollout)),
            Err(error) => {
                let error = ErrorChain(&error);
                tracing::warn!(%error, "events of rollouts came too fast for webhooks, and some are lost");
            }
        }
    }

    fn add_rollout(&mut self, rollout: &Rollout) {
        let current = self.webhooks.publisher.current();
        let (seen, since) = (&mut self.seen, self.began_us);
        let epoch = &current.snapshot.id().epoch;
        for event in Event::of_rollout(epoch, rollout, since, &mut |key| seen.note(key)) {
            self.add(event);
        }
    }

    fn add(&mut self, event: Event) {
        // A revision that adds a webhook is told to it, too.
        self.webhooks.follow();
        let endpoints = self.webhooks.endpoints();
        let wanting = endpoints.iter().filter(|(_, endpoint)| endpoint.wants(&event));
        let names: Vec<Name> = wanting.map(|(name, _)| name.clone()).collect();
        drop(endpoints);
        if names.is_empty() {
            return;
        }
        let held = Held { at: Instant::now(), event: Arc::new(event), webhooks: names };
        if self.sends {
            self.webhooks.send(&held);
            return;
        }
        self.held.forget_sent(self.webhooks.rollouts.another_led());
        self.held.push(held);
    }

    fn set_sends(&mut self, sends: bool) {
        if std::mem::replace(&mut self.sends, sends) == sends {
            return;
        }
        if sends {
            self.held.forget_sent(self.webhooks.rollouts.another_led());
            for held in self.held.take() {
                self.webhooks.send(&held);
            }
        }
    }
}

impl Webhooks {
    fn send(&self, held: &Held) {
        let endpoints = self.endpoints();
        for endpoint in held.webhooks.iter().filter_map(|name| endpoints.get(name)) {
            if endpoint.webhook().enabled {
                endpoint.push(Arc::clone(&held.event));
            }
        }
    }
}

/// The keys of the last events of rollouts, for the same are told again and again.
#[derive(Default)]
struct Seen {
    keys: HashSet<Arc<str>>,
    order: VecDeque<Arc<str>>,
}

impl Seen {
    /// The most keys.
    const MOST: usize = 20_000;

    /// Notes a key; `false`: it was known.
    fn note(&mut self, key: &str) -> bool {
        let key: Arc<str> = key.into();
        if !self.keys.insert(Arc::clone(&key)) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > Self::MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
        true
    }
}
