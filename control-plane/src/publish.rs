//! What this control plane holds in memory and publishes: the current set, kept in step with the store's log.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use imbl::{OrdMap, OrdSet, Vector};
use signalbox_config::{
    Body, Change, FieldError, Name, Relations, Resource, ResourceKey, RevisionId, RouteIndex, Snapshot,
};
use signalbox_plugins::Catalog;
use tokio::sync::{MutexGuard, broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::store::{
    Committed, Held, Loaded, Meta, NewChange, NewRevision, Revision, RevisionSummary, Store, StoreError,
    UnknownKey,
};

/// One published state. Immutable and structurally shared: a revision costs its changes.
#[derive(Debug, Clone)]
pub struct Published {
    /// The set.
    pub snapshot: Snapshot,
    /// Who made each resource, and when.
    pub metas: OrdMap<ResourceKey, Arc<Meta>>,
    /// Who refers to whom.
    pub relations: Relations,
    /// For `explain`.
    pub routes: RouteIndex<Name>,
    /// What the last revisions changed.
    pub history: History,
    /// The resources that name their fleets; without any, every fleet gets the snapshot itself.
    pub scoped: OrdSet<ResourceKey>,
    /// Stored resources that this version cannot read, and why. The set has the version before, if it had one.
    pub unreadable: OrdMap<ResourceKey, Arc<[FieldError]>>,
    /// Stored resources of kinds that this version does not know. They are not in the set, so no proxy gets them from
    /// here, and nothing that is written here changes them.
    pub unknown: OrdSet<UnknownKey>,
}

impl Published {
    /// Nothing, before the first revision.
    pub fn empty(epoch: Arc<str>) -> Self {
        Self {
            snapshot: Snapshot::empty(epoch),
            metas: OrdMap::new(),
            relations: Relations::default(),
            routes: RouteIndex::new(),
            history: History::default(),
            scoped: OrdSet::new(),
            unreadable: OrdMap::new(),
            unknown: OrdSet::new(),
        }
    }

    /// What was loaded, in O(all).
    pub fn of(loaded: Loaded) -> Self {
        let mut published = Self::empty(loaded.head.epoch.clone());
        let mut changes = Vec::with_capacity(loaded.resources.len());
        published.unknown.extend(loaded.unknown.into_iter().map(|resource| resource.key));
        for stored in loaded.resources {
            match Resource::from_stored(stored.key.kind, &stored.spec, &Catalog) {
                Ok(resource) => changes.push(Change::Put(Arc::new(resource))),
                Err(errors) => {
                    published.unreadable.insert(stored.key.clone(), errors.into());
                }
            }
            published.metas.insert(stored.key, Arc::new(stored.meta));
        }
        for change in &changes {
            published.note_body(change);
        }
        published.snapshot = published.snapshot.with(loaded.head, loaded.committed_at_us, changes);
        published.relations = Relations::of(&published.snapshot);
        published
    }

    /// The revision that wrote the version of a resource that revision `at` has, as far back as is remembered.
    pub(crate) fn changed_in(&self, kind: &str, name: &str, at: u64) -> Option<u64> {
        let key: ResourceKey = format!("{kind}/{name}").parse().ok()?;
        let last = self.metas.get(&key)?.revision;
        if last <= at { Some(last) } else { self.history.last_change(&key, at) }
    }

    /// What `fleet` gets, without a cache: in O(1) when no resource names its fleets, else in O(those that do).
    pub fn view(&self, fleet: &str) -> Snapshot {
        if self.scoped.is_empty() {
            return self.snapshot.clone();
        }
        let hidden: Vec<Change> = self
            .scoped
            .iter()
            .filter(|key| self.snapshot.find(key).is_some_and(|resource| !resource.visible_to(fleet)))
            .map(|key| Change::Delete(key.clone()))
            .collect();
        self.snapshot.with(self.snapshot.id().clone(), self.snapshot.committed_at_us(), hidden)
    }

    /// The next state. `relations` are those after the changes, where they are known already.
    fn next(
        &self,
        summary: &RevisionSummary,
        changes: &[Change],
        unreadable: Vec<(ResourceKey, Vec<FieldError>)>,
        relations: Option<Relations>,
    ) -> Self {
        let mut next = self.clone();
        let id = RevisionId { epoch: self.snapshot.id().epoch.clone(), number: summary.number };
        let changed: Arc<[ResourceKey]> = changes.iter().map(|change| change.key().clone()).collect();
        for change in changes {
            next.forget_body(change.key(), &self.snapshot);
            next.note_body(change);
            next.unreadable.remove(change.key());
            match change {
                Change::Put(resource) => next.note_meta(resource.key(), summary),
                Change::Delete(key) => drop(next.metas.remove(key)),
            }
        }
        for (key, errors) in unreadable {
            next.note_meta(&key, summary);
            next.unreadable.insert(key, errors.into());
        }
        next.snapshot = self.snapshot.with(id, summary.committed_at_us, changes.iter().cloned());
        next.relations = relations.unwrap_or_else(|| {
            // Only what could not be read makes this fail, for the log holds nothing but closed sets.
            self.relations
                .with(&self.snapshot, &next.snapshot, changes)
                .unwrap_or_else(|_| Relations::of(&next.snapshot))
        });
        next.history.push(summary.number, changed);
        next
    }

    /// The next state, as the log has it.
    fn next_of_log(&self, revision: &Revision) -> Self {
        let mut changes = Vec::with_capacity(revision.changes.len());
        let mut unreadable = Vec::new();
        for stored in &revision.changes {
            match &stored.after {
                None => changes.push(Change::Delete(stored.key.clone())),
                Some(spec) => match Resource::from_stored(stored.key.kind, spec, &Catalog) {
                    Ok(resource) => changes.push(Change::Put(Arc::new(resource))),
                    Err(errors) => unreadable.push((stored.key.clone(), errors)),
                },
            }
        }
        let mut next = self.next(&revision.summary, &changes, unreadable, None);
        for change in &revision.unknown {
            if change.after.is_some() {
                next.unknown.insert(change.key.clone());
            } else {
                next.unknown.remove(&change.key);
            }
        }
        next
    }

    /// The resources that a newer version wrote and that this one leaves as they are.
    pub fn left_alone(&self) -> Vec<String> {
        let unreadable = self.unreadable.keys().map(ToString::to_string);
        unreadable.chain(self.unknown.iter().map(ToString::to_string)).collect()
    }

    fn forget_body(&mut self, key: &ResourceKey, before: &Snapshot) {
        let Some(old) = before.find(key) else { return };
        if let Body::Route(route) = old.body() {
            self.routes.remove(route);
        }
        self.scoped.remove(key);
    }

    fn note_body(&mut self, change: &Change) {
        let Change::Put(resource) = change else { return };
        if let Body::Route(route) = resource.body() {
            self.routes.insert(route, resource.key().name.clone());
        }
        if resource.fleets().is_some() {
            self.scoped.insert(resource.key().clone());
        }
    }

    fn note_meta(&mut self, key: &ResourceKey, summary: &RevisionSummary) {
        let created_at_us = self.metas.get(key).map_or(summary.committed_at_us, |meta| meta.created_at_us);
        let meta = Meta {
            revision: summary.number,
            created_at_us,
            updated_at_us: summary.committed_at_us,
            updated_by: summary.author.clone(),
        };
        self.metas.insert(key.clone(), Arc::new(meta));
    }
}

/// What the last revisions changed, so that the difference between two is found without comparing sets.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Consecutive numbers, oldest first, at most [`History::LEN`].
    entries: Vector<(u64, Arc<[ResourceKey]>)>,
}

impl History {
    /// How many revisions back a proxy may be and still get a difference instead of everything.
    pub const LEN: usize = 10_000;

    /// How many revisions back it is looked who changed a resource.
    const SEARCHED: usize = 100;

    /// Notes the next revision.
    pub fn push(&mut self, number: u64, changed: Arc<[ResourceKey]>) {
        if self.entries.len() == Self::LEN {
            self.entries.pop_front();
        }
        self.entries.push_back((number, changed));
    }

    /// The last of the latest revisions up to `at` that changed a resource.
    fn last_change(&self, key: &ResourceKey, at: u64) -> Option<u64> {
        let earlier = self.entries.iter().rev().skip_while(|(number, _)| *number > at).take(Self::SEARCHED);
        earlier.into_iter().find(|(_, keys)| keys.contains(key)).map(|(number, _)| *number)
    }

    /// The keys that changed after revision `from` up to `to`, each once; `None` when `from` is too old to tell.
    pub fn changed_between(&self, from: u64, to: u64) -> Option<BTreeSet<ResourceKey>> {
        if from == to {
            return Some(Default::default());
        }
        let first = self.entries.front()?.0;
        let start = (from + 1).checked_sub(first)? as usize;
        let end = to.checked_sub(first)? as usize + 1;
        if start > end || end > self.entries.len() {
            return None;
        }
        Some(
            self.entries
                .iter()
                .skip(start)
                .take(end - start)
                .flat_map(|(_, keys)| keys.iter().cloned())
                .collect(),
        )
    }
}

/// Holds the current [`Published`], follows the store's log, and hands out each new state.
pub struct Publisher {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    current: watch::Sender<Arc<Published>>,
    revisions: broadcast::Sender<Arc<RevisionSummary>>,
    witness: OnceLock<Witness>,
    /// What the fleets got last, while resources name their fleets.
    views: Mutex<HashMap<Box<str>, Snapshot>>,
    /// Whoever holds it may publish: the follower, or the writer.
    turn: tokio::sync::Mutex<()>,
    health: watch::Sender<Health>,
    /// The database was seen to have less than what is published.
    lost: AtomicBool,
    /// Counts how often a restored database took the place of what was published, in the same epoch: the same numbers
    /// then mean other revisions.
    reloaded: watch::Sender<u64>,
}

/// Told of a revision and when it was committed, microseconds since 1970.
type Witness = Box<dyn Fn(RevisionId, i64) + Send + Sync>;

/// How the publisher stands to the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// What is published is what the database had a moment ago.
    InSync,
    /// The database is away: what is published is what it had last.
    Away(String),
    /// The database is read-only: what is published is what it had last while it was not.
    ReadOnly,
    /// The database has less than what is published, so it was restored without a new epoch. Nothing is taken from it.
    Behind(String),
}

/// The longest that a revision of another replica goes unseen, when no hint comes.
const POLL: Duration = Duration::from_secs(1);

/// Revisions read from the log at once.
const BATCH: u32 = 256;

/// Fleets whose views are kept; beyond, they are made anew.
const MAX_VIEWS: usize = 1024;

impl Publisher {
    /// Loads the current set.
    pub async fn start(store: Arc<dyn Store>, metrics: Arc<Metrics>) -> Result<Arc<Self>, StoreError> {
        let loaded = load(&store, &metrics).await?;
        Ok(Arc::new(Self {
            store,
            metrics,
            current: watch::Sender::new(Arc::new(loaded)),
            revisions: broadcast::Sender::new(1024),
            witness: OnceLock::new(),
            views: Mutex::default(),
            turn: tokio::sync::Mutex::new(()),
            health: watch::Sender::new(Health::InSync),
            lost: AtomicBool::new(false),
            reloaded: watch::Sender::new(0),
        }))
    }

    /// What is published now.
    pub fn current(&self) -> Arc<Published> {
        self.current.borrow().clone()
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

    /// Has `witness` told of every revision, in order, before anybody can see it: what follows from a revision can then
    /// not be known before the revision. It is told of the current one at once. There is one witness; a second is
    /// not told anything.
    pub fn witness(&self, witness: impl Fn(RevisionId, i64) + Send + Sync + 'static) {
        if self.witness.set(Box::new(witness)).is_ok() {
            let snapshot = &self.current().snapshot;
            self.tell(snapshot.id().clone(), snapshot.committed_at_us());
        }
    }

    fn tell(&self, revision: RevisionId, committed_at_us: i64) {
        if let Some(witness) = self.witness.get() {
            witness(revision, committed_at_us);
        }
    }

    /// How it stands to the database.
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// What `fleet` gets of a published state: the state itself when no resource names its fleets, else in
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

    /// Follows the store's log until `shutdown`.
    pub async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        let hint = self.store.hint();
        loop {
            // Made before the log is read: what is hinted at meanwhile is not lost.
            let hinted = hint.notified();
            // Its outcome is in `health`.
            let _ = self.turn().await.catch_up().await;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = hinted => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// Waits for the right to publish.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        Turn { publisher: self, held: None, _guard: self.turn.lock().await }
    }

    fn note_health(&self, health: Health) {
        self.health.send_if_modified(|known| {
            if *known == health {
                return false;
            }
            match &health {
                Health::InSync => tracing::info!("the database answers again"),
                // Not every failed poll anew, only that it began.
                Health::Away(reason) if !matches!(known, Health::Away(_)) => {
                    tracing::error!(reason, "the database is away; what is published stays");
                }
                Health::Away(_) => {}
                Health::ReadOnly => {
                    tracing::error!(
                        "the database is read-only: nothing can be written; what is published stays"
                    );
                }
                Health::Behind(reason) => tracing::error!(reason, "the database is not followed"),
            }
            *known = health;
            true
        });
    }

    fn publish(&self, next: Published, summaries: Vec<RevisionSummary>) {
        let before = self.current();
        for (key, errors) in &next.unreadable {
            if !before.unreadable.contains_key(key) {
                note_unreadable(&self.metrics, key, errors);
            }
        }
        for key in next.unknown.iter().filter(|key| !before.unknown.contains(*key)) {
            note_unknown(key);
        }
        let epoch = &next.snapshot.id().epoch;
        for RevisionSummary { number, committed_at_us, .. } in &summaries {
            self.tell(RevisionId { epoch: epoch.clone(), number: *number }, *committed_at_us);
        }
        // After a new epoch there are no summaries.
        self.tell(next.snapshot.id().clone(), next.snapshot.committed_at_us());
        self.current.send_replace(Arc::new(next));
        for summary in summaries {
            // Nobody may be listening.
            let _ = self.revisions.send(Arc::new(summary));
        }
    }
}

/// The right to publish, held by one at a time.
pub(crate) struct Turn<'p> {
    publisher: &'p Publisher,
    /// Of the store's head, against other replicas.
    held: Option<Held>,
    _guard: MutexGuard<'p, ()>,
}

impl Turn<'_> {
    /// Publishes what the log has beyond what is published; on an error that stays.
    pub(crate) async fn catch_up(&mut self) -> Result<(), StoreError> {
        let result = self.follow_log().await;
        self.publisher.note_health(match &result {
            Ok(()) if self.publisher.store.is_read_only() => Health::ReadOnly,
            Ok(()) => Health::InSync,
            Err(StoreError::ReadOnly) => Health::ReadOnly,
            Err(error @ StoreError::Broken(_)) => Health::Behind(error.to_string()),
            Err(error) => Health::Away(chain(error)),
        });
        result
    }

    async fn follow_log(&mut self) -> Result<(), StoreError> {
        let Publisher { store, metrics, .. } = self.publisher;
        let head = metrics.store_call("head", store.head()).await?;
        let mut published = self.publisher.current();
        let known = published.snapshot.id().clone();
        // What was lost of the epoch's log, and what came in its place, cannot be told from what is published.
        let lost = self.publisher.lost.load(Ordering::Relaxed);
        if lost && head.number >= known.number {
            tracing::warn!(
                revision = head.number,
                "the database was behind what is published; loading everything"
            );
            self.publisher.publish(load(store, metrics).await?, Vec::new());
            self.publisher.lost.store(false, Ordering::Relaxed);
            self.publisher.reloaded.send_modify(|count| *count += 1);
            return Ok(());
        }
        if head.epoch != known.epoch {
            tracing::warn!(
                from = %known.epoch, to = %head.epoch, revision = head.number,
                "the database has a new epoch; loading everything"
            );
            self.publisher.publish(load(store, metrics).await?, Vec::new());
            return Ok(());
        }
        if head.number < known.number {
            self.publisher.lost.store(true, Ordering::Relaxed);
            return Err(StoreError::Broken(format!(
                "its last revision is {}, but {} is published: was it restored? start with --new-epoch",
                head.number, known.number
            )));
        }
        while published.snapshot.id().number < head.number {
            let after = published.snapshot.id().number;
            let revisions =
                metrics.store_call("revisions_after", store.revisions_after(after, BATCH)).await?;
            if revisions.first().is_none_or(|first| first.summary.number != after + 1) {
                return Err(StoreError::Broken(format!("its log lacks revision {}", after + 1)));
            }
            let size = revisions.iter().map(|revision| revision.summary.change_count as usize).sum();
            let fold = |state: Published, revision: &Revision| state.next_of_log(revision);
            let next = compute(size, || revisions.iter().fold((*published).clone(), fold));
            self.publisher.publish(next, revisions.into_iter().map(|revision| revision.summary).collect());
            published = self.publisher.current();
        }
        Ok(())
    }

    /// Holds the head of the store, so that the next commit is not overtaken, and catches up.
    pub(crate) async fn hold(&mut self) -> Result<(), StoreError> {
        let Publisher { store, metrics, .. } = self.publisher;
        self.held = Some(metrics.store_call("hold", store.hold()).await?);
        self.catch_up().await
    }

    /// Goes as far with `changes` as a commit does before it writes, and fails where that would: a secret that cannot be
    /// encrypted, a database that is away or cannot be written. Catches up: what is published may be another then.
    pub(crate) async fn rehearse(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.publisher.store.check(&stored_changes(changes))?;
        self.hold().await?;
        self.held = None;
        Ok(())
    }

    /// What is published now; nobody else changes it.
    pub(crate) fn current(&self) -> Arc<Published> {
        self.publisher.current()
    }

    /// Makes the next revision, and publishes it at once. `relations` are those after the changes.
    ///
    /// [`StoreError::Stale`]: nothing was done; hold the head and try again.
    pub(crate) async fn commit(
        &mut self,
        author: Arc<str>,
        message: String,
        action: String,
        changes: Vec<Change>,
        relations: Relations,
    ) -> Result<Committed, StoreError> {
        let Publisher { store, metrics, .. } = self.publisher;
        let current = self.current();
        let revision = NewRevision {
            author: author.clone(),
            message: message.clone(),
            action,
            changes: stored_changes(&changes),
        };
        let base = current.snapshot.id().number;
        let commit = match self.held.take() {
            Some(held) => store.commit_held(held, base, revision),
            None => store.commit(base, revision),
        };
        let committed = metrics.store_call("commit", commit).await?;
        let summary = RevisionSummary {
            number: committed.number,
            author,
            message,
            committed_at_us: committed.committed_at_us,
            change_count: changes.len() as u32,
        };
        let next = compute(changes.len(), || current.next(&summary, &changes, Vec::new(), Some(relations)));
        self.publisher.publish(next, vec![summary]);
        Ok(committed)
    }
}

/// Changes as they are stored.
fn stored_changes(changes: &[Change]) -> Vec<NewChange> {
    let stored = |change: &Change| match change {
        Change::Put(resource) => {
            NewChange { key: resource.key().clone(), spec: Some(Bytes::copy_from_slice(resource.spec())) }
        }
        Change::Delete(key) => NewChange { key: key.clone(), spec: None },
    };
    changes.iter().map(stored).collect()
}

async fn load(store: &Arc<dyn Store>, metrics: &Metrics) -> Result<Published, StoreError> {
    let loaded = metrics.store_call("load", store.load()).await?;
    // Parsing 100,000 resources takes a second that the streams should not wait for.
    let published = tokio::task::spawn_blocking(|| Published::of(loaded))
        .await
        .map_err(|error| StoreError::Broken(format!("what it has could not be read: {error}")))?;
    for (key, errors) in &published.unreadable {
        note_unreadable(metrics, key, errors);
    }
    published.unknown.iter().for_each(note_unknown);
    Ok(published)
}

fn note_unreadable(metrics: &Metrics, key: &ResourceKey, errors: &[FieldError]) {
    metrics.unreadable_resources.increment();
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    tracing::error!(
        resource = %key, errors = errors.join("; "),
        "a stored resource cannot be read by this version, and is left as it was before"
    );
}

fn note_unknown(key: &UnknownKey) {
    tracing::warn!(
        resource = %key,
        "a stored resource is of a kind that this version does not know: it is kept, and proxies of this control plane \
         do not get it"
    );
}

/// Runs what takes long for `size` resources, so that other tasks of this thread go elsewhere meanwhile.
pub(crate) fn compute<T>(size: usize, work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    // A runtime of one thread has no elsewhere.
    let has_others =
        Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if size >= 1000 && has_others { tokio::task::block_in_place(work) } else { work() }
}

/// An error and its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// The fleets that resources name, sorted.
pub(crate) fn named_fleets(published: &Published) -> BTreeSet<Box<str>> {
    let resources = published.scoped.iter().filter_map(|key| published.snapshot.find(key));
    resources.flat_map(|resource| resource.fleets().unwrap_or_default().iter().cloned()).collect()
}
