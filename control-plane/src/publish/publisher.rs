//! The published state, for all who read it.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use imbl::OrdMap;
use signalbox_config::{Change, FieldError, ResourceKey, RevisionId, Snapshot};
use signalbox_plugin::Registry;
use signalbox_rollout::FleetTarget;
use tokio::sync::{Notify, broadcast, watch};

use super::blobs::UploadedFiles;
use super::decisions::{Pending, earlier};
use super::published::Published;
use super::purges::StoredPurges;
use crate::metrics::Metrics;
use crate::store::{RevisionSummary, Store, StoreError, UnknownKey};

/// Holds the current [`Published`], follows the store's log, and hands out each new state.
pub struct Publisher {
    pub(super) store: Arc<dyn Store>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) current: watch::Sender<Arc<Published>>,
    pub(super) revisions: broadcast::Sender<Arc<RevisionSummary>>,
    pub(super) on_publish: OnceLock<Box<dyn OnPublish>>,
    /// The sets that the fleets got last, while resources name their fleets.
    pub(super) views: Mutex<HashMap<Box<str>, Snapshot>>,
    /// Held by the task that may publish: the follower, or the writer.
    pub(super) commits: tokio::sync::Mutex<()>,
    pub(super) health: watch::Sender<Health>,
    /// Wakes the follower.
    pub(super) wake: Notify,
    /// The database was seen to have less than what is published.
    pub(super) lost: AtomicBool,
    /// Counts how often a restored database took the place of what was published, in the same epoch: the same numbers
    /// then mean other revisions.
    pub(super) reloaded: watch::Sender<u64>,
    files: UploadedFiles,
    purges: StoredPurges,
}

/// A hook that is called before anybody can see a state that is published, so that no consequence is known before its cause.
pub trait OnPublish: Send + Sync {
    /// A revision, and the time of its commit in microseconds since 1970. Revisions come in order.
    fn on_revision(&self, revision: RevisionId, committed_at_us: i64);

    /// The decisions that are in force, whenever they changed.
    fn on_decisions(&self, targets: &OrdMap<Arc<str>, Arc<FleetTarget>>);
}

/// How the publisher stands to the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// The published state is the one that the database had a moment ago.
    InSync,
    /// The database is away: what is published is what it had last.
    Away(String),
    /// The database is read-only: what is published is what it had last while it was not.
    ReadOnly,
    /// The database has less than what is published, so it was restored without a new epoch. Nothing is taken from it.
    Behind(String),
}

/// Fleets whose views are kept; beyond, they are made anew.
const MAX_VIEWS: usize = 1024;

impl Publisher {
    /// Loads the current set.
    pub async fn start(
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
        types: &Registry,
    ) -> Result<Arc<Self>, StoreError> {
        let loaded = load(&store, &metrics, types).await?;
        Ok(Arc::new(Self {
            files: UploadedFiles::new(Arc::clone(&store)),
            purges: StoredPurges::new(Arc::clone(&store)),
            store,
            metrics,
            current: watch::Sender::new(Arc::new(loaded)),
            revisions: broadcast::Sender::new(1024),
            on_publish: OnceLock::new(),
            views: Mutex::default(),
            commits: tokio::sync::Mutex::new(()),
            health: watch::Sender::new(Health::InSync),
            wake: Notify::new(),
            lost: AtomicBool::new(false),
            reloaded: watch::Sender::new(0),
        }))
    }

    /// The uploaded files.
    pub fn files(&self) -> &UploadedFiles {
        &self.files
    }

    /// The purges of cached responses.
    pub fn purges(&self) -> &StoredPurges {
        &self.purges
    }

    /// The published state.
    pub fn current(&self) -> Arc<Published> {
        self.current.borrow().clone()
    }

    /// The state of a revision up to the current one; read from the store if no decision refers to it.
    pub async fn state_of(&self, revision: u64) -> Result<Arc<Published>, StoreError> {
        let current = self.current();
        match current.state_of(revision) {
            Some(state) => Ok(state),
            None => Ok(Arc::new(earlier(revision, &current, &self.store).await?)),
        }
    }

    /// Has the follower look at the store at once: something was written there.
    pub(crate) fn catch_up_soon(&self) {
        self.wake.notify_one();
    }

    /// Sees every state that is published; one that comes before the last was seen replaces it.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Published>> {
        self.current.subscribe()
    }

    /// Sees when revision numbers of the present epoch have come to mean other revisions.
    pub(crate) fn reloaded(&self) -> watch::Receiver<u64> {
        self.reloaded.subscribe()
    }

    /// Sees every revision that is published; who is more than 1024 behind misses some.
    pub fn revisions(&self) -> broadcast::Receiver<Arc<RevisionSummary>> {
        self.revisions.subscribe()
    }

    /// Has `hook` called before each state is published, and at once with the current one. There is one hook; a second is not
    /// called.
    pub fn on_publish(&self, hook: impl OnPublish + 'static) {
        if self.on_publish.set(Box::new(hook)).is_ok()
            && let Some(hook) = self.on_publish.get()
        {
            let current = self.current();
            hook.on_decisions(&current.assigned.targets);
            hook.on_revision(current.snapshot.id().clone(), current.snapshot.committed_at_us());
        }
    }

    /// How it stands to the database.
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// The set that `fleet` gets of a published state: the whole set when no resource names its fleets, else in
    /// O(what changed since this fleet's view was asked for last).
    pub fn view(&self, published: &Published, fleet: &str) -> Snapshot {
        if published.scoped.is_empty() {
            return published.snapshot.clone();
        }
        let id = published.snapshot.id();
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = views.get(fleet).filter(|view| view.id().epoch == id.epoch);
        if let Some(view) = cached.filter(|view| view.id().number == id.number) {
            return view.clone();
        }
        let is_newer = cached.is_none_or(|view| view.id().number < id.number);
        let changed = cached
            .filter(|_| is_newer)
            .and_then(|view| published.history.changed_between(view.id().number, id.number));
        let view = match (cached, changed) {
            (Some(view), Some(keys)) => {
                let changes = keys.into_iter().filter_map(|key| {
                    let visible = published.snapshot.find(&key).filter(|resource| resource.visible_to(fleet));
                    match visible {
                        Some(resource) => Some(Change::Put(resource.clone())),
                        None => view.find(&key).is_some().then_some(Change::Delete(key)),
                    }
                });
                view.with(id.clone(), published.snapshot.committed_at_us(), changes)
            }
            _ => published.view(fleet),
        };
        if is_newer {
            if views.len() >= MAX_VIEWS {
                views.clear();
            }
            views.insert(fleet.into(), view.clone());
        }
        view
    }

    pub(super) fn set_health(&self, health: Health) {
        self.health.send_if_modified(|known| {
            if *known == health {
                return false;
            }
            match &health {
                Health::InSync => tracing::info!("the database answers again"),
                // Not every failed poll anew, only that it began.
                Health::Away(reason) if !matches!(known, Health::Away(_)) => {
                    tracing::error!(reason, "the database is away; the published set stays in use");
                }
                Health::Away(_) => {}
                Health::ReadOnly => {
                    tracing::error!(
                        "the database is read-only and takes no writes; the published set stays in use"
                    );
                }
                Health::Behind(reason) => tracing::error!(
                    reason,
                    "the log of the database cannot be followed; the published set stays in use"
                ),
            }
            *known = health;
            true
        });
    }

    pub(super) fn publish(&self, next: Published, summaries: Vec<RevisionSummary>) {
        let before = self.current();
        for (key, errors) in &next.unreadable {
            if !before.unreadable.contains_key(key) {
                report_unreadable(&self.metrics, key, errors);
            }
        }
        for key in next.unknown.iter().filter(|key| !before.unknown.contains(*key)) {
            warn_of_unknown(key);
        }
        if let Some(hook) = self.on_publish.get() {
            if next.assigned.targets != before.assigned.targets {
                hook.on_decisions(&next.assigned.targets);
            }
            let epoch = &next.snapshot.id().epoch;
            for RevisionSummary { number, committed_at_us, .. } in &summaries {
                hook.on_revision(RevisionId { epoch: epoch.clone(), number: *number }, *committed_at_us);
            }
            // After a new epoch there are no summaries.
            hook.on_revision(next.snapshot.id().clone(), next.snapshot.committed_at_us());
        }
        self.current.send_replace(Arc::new(next));
        for summary in summaries {
            // Nobody may be listening.
            let _ = self.revisions.send(Arc::new(summary));
        }
    }
}

/// Loads the current set, and the revisions that fleets are assigned.
pub(super) async fn load(
    store: &Arc<dyn Store>,
    metrics: &Metrics,
    types: &Registry,
) -> Result<Published, StoreError> {
    for _ in 0..LOADS {
        let mut published = Arc::new(load_set(store, metrics, types).await?);
        let Some(decisions) = store.fleet_targets(0).await? else {
            return Ok(Arc::unwrap_or_clone(published));
        };
        let pending = Pending::load(decisions, &published, store, metrics).await?;
        // Else a decision was made meanwhile about a revision after the loaded one.
        if pending.apply(Arc::make_mut(&mut published)) {
            return Ok(Arc::unwrap_or_clone(published));
        }
    }
    Err(StoreError::Broken(format!("fleets are to serve revisions that it lacks, {LOADS} times in a row")))
}

/// How often the set is read while revisions and decisions come.
const LOADS: usize = 5;

async fn load_set(
    store: &Arc<dyn Store>,
    metrics: &Metrics,
    types: &Registry,
) -> Result<Published, StoreError> {
    let loaded = metrics.store_call("load", store.load()).await?;
    // Parsing 100,000 resources takes a second that the streams should not wait for.
    let types = types.clone();
    let published = tokio::task::spawn_blocking(move || Published::from_loaded(loaded, &types))
        .await
        .map_err(|error| StoreError::Broken(format!("what it has could not be read: {error}")))?;
    for (key, errors) in &published.unreadable {
        report_unreadable(metrics, key, errors);
    }
    published.unknown.iter().for_each(warn_of_unknown);
    Ok(published)
}

fn report_unreadable(metrics: &Metrics, key: &ResourceKey, errors: &[FieldError]) {
    metrics.unreadable_resources.increment();
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    tracing::error!(
        resource = %key, errors = errors.join("; "),
        "a stored resource cannot be read by this version, and is left as it was before"
    );
}

fn warn_of_unknown(key: &UnknownKey) {
    tracing::warn!(
        resource = %key,
        "a stored resource is of a kind that this version does not know: it is kept, and proxies of this control plane \
         do not get it"
    );
}
