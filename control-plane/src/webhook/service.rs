//! Brings events to webhooks.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Serialize;
use signalbox_config::{Kind, Name, ResourceKey, Webhook};
use signalbox_process::ErrorChain;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::endpoint::{Attempt, Endpoint};
use super::event::Event;
use crate::board::{Board, BoardEvent, Rollout};
use crate::clock::now_us;
use crate::health_report::HealthReports;
use crate::metrics::WebhookCounts;
use crate::publish::{Published, Publisher};
use crate::rollout::Rollouts;

/// Sends events to webhooks while this control plane is the one that does.
pub struct Webhooks {
    publisher: Arc<Publisher>,
    board: Arc<Board>,
    rollouts: Arc<Rollouts>,
    health: Arc<HealthReports>,
    /// The name of this control plane.
    replica: String,
    endpoints: Mutex<BTreeMap<Name, Arc<Endpoint>>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
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

/// An event, while another control plane sends, or none yet. The webhooks are those that wanted it when it happened.
struct Held {
    at: Instant,
    event: Arc<Event>,
    webhooks: Vec<Name>,
}

/// What the task remembers.
struct Dispatcher<'w> {
    webhooks: &'w Webhooks,
    /// True while this control plane sends.
    sends: bool,
    /// The last events of [`HELD_FOR`], while it does not.
    held: VecDeque<Held>,
    seen: Seen,
    /// The time when the task began, in microseconds since 1970. What is older is not told of.
    began_us: i64,
}

/// A control plane that begins to send also sends what happened so shortly before: the one before it may have died with it. That is longer
/// than a lease lasts (`rollout/lease.rs`).
const HELD_FOR: Duration = Duration::from_secs(10);

/// The most events that are held.
const MAX_HELD: usize = 1000;

/// The rollouts of before its start that the task knows not to tell of.
const KNOWN_ROLLOUTS: usize = 1000;

impl Webhooks {
    /// Sends nothing before [`Webhooks::run`].
    pub fn new(
        publisher: Arc<Publisher>,
        board: Arc<Board>,
        rollouts: Arc<Rollouts>,
        health: Arc<HealthReports>,
        replica: String,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let (endpoints, tasks) = (Mutex::default(), TaskTracker::new());
        Arc::new(Self { publisher, board, rollouts, health, replica, endpoints, tasks, shutdown })
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
                // What was told before this control plane began to send is then held first.
                biased;
                () = self.shutdown.cancelled() => break,
                revision = revisions.recv() => {
                    taken(revision, |revision| {
                        dispatcher.add(Event::of_revision(&self.publisher.current(), &revision));
                    })
                }
                rollout = rollouts.recv() => taken(rollout, |rollout| dispatcher.add_rollout(&rollout)),
                event = board.recv() => taken(event, |event| {
                    if let BoardEvent::Rollout(rollout) = event {
                        dispatcher.add_rollout(&rollout);
                    }
                }),
                change = incidents.recv() => {
                    taken(change, |change| dispatcher.add(Event::of_incident(&change, now_us())))
                }
                changed = published.changed() => {
                    let current = published.borrow_and_update().clone();
                    self.follow(&current);
                    changed.map(|()| 0).map_err(drop)
                }
                changed = announces.changed() => {
                    let sends = *announces.borrow_and_update();
                    dispatcher.set_sends(sends);
                    changed.map(|()| 0).map_err(drop)
                }
            };
            match lost {
                Ok(0) => {}
                Ok(lost) => tracing::warn!(lost, "events came too fast for webhooks, and some are lost"),
                Err(()) => break,
            }
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Sends a test event at once, whichever control plane sends events; `None`: there is no such webhook.
    pub async fn test(&self, name: &Name) -> Option<Attempt> {
        self.follow(&self.publisher.current());
        let endpoint = self.endpoints().get(name).cloned()?;
        Some(endpoint.test().await)
    }

    /// The deliveries of a webhook; `None`: there is no such webhook.
    pub async fn deliveries(&self, name: &Name) -> Option<Deliveries> {
        self.follow(&self.publisher.current());
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
    fn follow(&self, published: &Published) {
        let mut endpoints = self.endpoints();
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
                    let endpoint = Arc::new(Endpoint::new(webhook.clone(), since));
                    if webhook.enabled {
                        self.tasks.spawn(Arc::clone(&endpoint).run(self.shutdown.clone()));
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

/// Takes what was received. Returns the number of events that were lost before it; an error: there will be no more.
fn taken<T>(received: Result<T, RecvError>, take: impl FnOnce(T)) -> Result<u64, ()> {
    match received {
        Ok(event) => {
            take(event);
            Ok(0)
        }
        Err(RecvError::Lagged(lost)) => Ok(lost),
        Err(RecvError::Closed) => Err(()),
    }
}

impl<'w> Dispatcher<'w> {
    fn new(webhooks: &'w Webhooks) -> Self {
        let current = webhooks.publisher.current();
        webhooks.follow(&current);
        let mut dispatcher = Self {
            webhooks,
            sends: *webhooks.rollouts.announces().borrow(),
            held: VecDeque::new(),
            seen: Seen::default(),
            began_us: now_us(),
        };
        for rollout in webhooks.board.rollouts(KNOWN_ROLLOUTS) {
            let is_new = &mut |key: &str| dispatcher.seen.note(key);
            Event::of_rollout(&current.snapshot.id().epoch, &rollout, i64::MIN, is_new);
        }
        dispatcher
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
        self.webhooks.follow(&self.webhooks.publisher.current());
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
        self.forget_old(held.at);
        if self.held.len() >= MAX_HELD {
            self.held.pop_front();
        }
        self.held.push_back(held);
    }

    fn set_sends(&mut self, sends: bool) {
        if std::mem::replace(&mut self.sends, sends) == sends {
            return;
        }
        if sends {
            self.forget_old(Instant::now());
            for held in std::mem::take(&mut self.held) {
                self.webhooks.send(&held);
            }
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while self.held.front().is_some_and(|held| now.duration_since(held.at) > HELD_FOR) {
            self.held.pop_front();
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
