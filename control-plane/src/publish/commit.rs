//! The right to publish, which one task has at a time: it follows the store's log, and commits.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use signalbox_config::{BlobId, Body, Change, Kind, Name, Relations, Strategy};
use signalbox_process::ErrorChain;
use tokio::sync::MutexGuard;
use tokio_util::sync::CancellationToken;

use super::decisions::Pending;
use super::published::Published;
use super::publisher::{Health, Publisher, load};
use crate::compute::compute;
use crate::store::{
    Committed, Held, NewChange, NewRevision, PinnedFleet, Revision, RevisionSummary, StoreError,
    StoredChange, Urgent,
};

/// The right to publish, held by one at a time.
pub(crate) struct CommitGuard<'p> {
    publisher: &'p Publisher,
    /// The lock on the store's head, which keeps other replicas from committing.
    held: Option<Held>,
    _guard: MutexGuard<'p, ()>,
}

/// The longest that a revision of another replica goes unseen, when no hint comes.
const POLL: Duration = Duration::from_secs(1);

/// Revisions read from the log at once.
const BATCH: u32 = 256;

impl Publisher {
    /// Follows the store's log, and its purges, until `shutdown`.
    pub async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        tokio::join!(self.follow_revisions(&shutdown), self.purges().follow(&shutdown));
    }

    async fn follow_revisions(&self, shutdown: &CancellationToken) {
        let hint = self.store.hint();
        loop {
            // Made before the log is read: what is hinted at meanwhile is not lost.
            let hinted = hint.notified();
            // Its outcome is in `health`.
            let _ = self.lock_commits().await.catch_up().await;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = hinted => {}
                () = self.wake.notified() => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// Waits for the right to publish.
    pub(crate) async fn lock_commits(&self) -> CommitGuard<'_> {
        CommitGuard { publisher: self, held: None, _guard: self.commits.lock().await }
    }
}

impl CommitGuard<'_> {
    /// Publishes what the log has beyond what is published; on an error that stays.
    pub(crate) async fn catch_up(&mut self) -> Result<(), StoreError> {
        let result = self.follow_log().await;
        self.publisher.set_health(match &result {
            Ok(()) if self.publisher.store.is_read_only() => Health::ReadOnly,
            Ok(()) => Health::InSync,
            Err(StoreError::ReadOnly) => Health::ReadOnly,
            Err(error @ (StoreError::Broken(_) | StoreError::Url(_))) => Health::Behind(error.to_string()),
            Err(error) => Health::Away(ErrorChain(error).to_string()),
        });
        result
    }

    async fn follow_log(&mut self) -> Result<(), StoreError> {
        let Publisher { store, metrics, .. } = self.publisher;
        let mut published = self.publisher.current();
        let types = published.types.clone();
        // Read before the head, so that the log has every revision that a decision refers to.
        let version = published.assigned.version;
        let decisions = metrics.store_call("fleet_targets", store.fleet_targets(version)).await?;
        let head = metrics.store_call("head", store.head()).await?;
        let known = published.snapshot.id().clone();
        // The published state does not show which revisions of the log were lost, and which took their place.
        let lost = self.publisher.lost.load(Ordering::Relaxed);
        if lost && head.number >= known.number {
            tracing::warn!(
                revision = head.number,
                "the database had lost revisions that were published; the whole set is loaded again"
            );
            self.publisher.publish(load(store, metrics, &types).await?, Vec::new());
            self.publisher.lost.store(false, Ordering::Relaxed);
            self.publisher.reloaded.send_modify(|count| *count += 1);
            return Ok(());
        }
        if head.epoch != known.epoch {
            tracing::warn!(
                from = %known.epoch, to = %head.epoch, revision = head.number,
                "the database has a new epoch; the whole set is loaded again"
            );
            self.publisher.publish(load(store, metrics, &types).await?, Vec::new());
            return Ok(());
        }
        if head.number < known.number {
            self.publisher.lost.store(true, Ordering::Relaxed);
            return Err(StoreError::Broken(format!(
                "its last revision is {}, but {} is published: was it restored? start with --new-epoch",
                head.number, known.number
            )));
        }
        let mut pending = match decisions {
            Some(decisions) => Some(Pending::load(decisions, &published, store, metrics).await?),
            None => None,
        };
        if let Some(pending) = &pending
            && head.number == known.number
        {
            let mut next = (*published).clone();
            pending.apply(&mut next);
            self.publisher.publish(next, Vec::new());
            return Ok(());
        }
        while published.snapshot.id().number < head.number {
            let after = published.snapshot.id().number;
            let revisions =
                metrics.store_call("revisions_after", store.revisions_after(after, BATCH)).await?;
            if revisions.first().is_none_or(|first| first.summary.number != after + 1) {
                return Err(StoreError::Broken(format!("its log lacks revision {}", after + 1)));
            }
            // A commit may have pinned a fleet after the decisions were read.
            let is_fleet = |change: &StoredChange| change.key.kind == Kind::Fleet;
            if revisions.iter().any(|revision| revision.changes.iter().any(is_fleet)) {
                let version = pending.as_ref().map_or(version, Pending::version);
                let decisions = metrics.store_call("fleet_targets", store.fleet_targets(version)).await?;
                if let Some(decisions) = decisions {
                    pending = Some(Pending::load(decisions, &published, store, metrics).await?);
                }
            }
            let size = revisions.iter().map(|revision| revision.summary.change_count as usize).sum();
            let fold = |state: Published, revision: &Revision| {
                let next = state.next_from_log(revision);
                if let Some(pending) = &mut pending {
                    pending.keep(&next);
                }
                next
            };
            let mut next = compute(size, || revisions.iter().fold((*published).clone(), fold));
            // A fleet that is pinned by one of these revisions is so when the revision is seen.
            if let Some(pending) = &pending {
                pending.apply(&mut next);
            }
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
    pub(crate) async fn check_commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.publisher.store.check(&stored_changes(changes))?;
        self.hold().await?;
        self.held = None;
        Ok(())
    }

    /// Deletes an uploaded file that no plugin uses; whether it was there. Otherwise returns the plugins that use it.
    pub(crate) async fn delete_file(
        &mut self,
        id: BlobId,
    ) -> Result<Result<bool, BTreeSet<Name>>, StoreError> {
        self.hold().await?;
        if let Some(users) = self.current().files_in_use().remove(&id) {
            self.held = None;
            return Ok(Err(users));
        }
        match self.held.take() {
            Some(held) => Ok(Ok(self.publisher.files().delete(held, id).await?)),
            None => Err(StoreError::Stale),
        }
    }

    /// The published state, which nobody else changes meanwhile.
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
        urgent: Option<Urgent>,
    ) -> Result<Committed, StoreError> {
        let Publisher { store, metrics, .. } = self.publisher;
        let current = self.current();
        let pinned = pinned_by(&current, &changes);
        let is_pinned = !pinned.is_empty();
        let revision = NewRevision {
            author: author.clone(),
            message: message.clone(),
            action,
            changes: stored_changes(&changes),
            pinned,
            urgent,
        };
        let base = current.snapshot.id().number;
        let commit = match self.held.take() {
            Some(held) => store.commit_held(held, base, revision),
            None => store.commit(base, revision),
        };
        let committed = metrics.store_call("commit", commit).await?;
        if is_pinned {
            // The revision is published together with the decision that keeps it from the pinned fleets. An error is not the
            // write's: the follower tries again.
            let _ = self.catch_up().await;
            return Ok(committed);
        }
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

/// The fleets that are to stay at the current revision because the changes make their policy progressive.
fn pinned_by(current: &Published, changes: &[Change]) -> Vec<PinnedFleet> {
    let stable = current.snapshot.id().number;
    let fleet = |change: &Change| match change {
        Change::Put(resource) => match resource.body() {
            Body::Fleet(fleet) if fleet.rollout.strategy == Strategy::Progressive => {
                Some(PinnedFleet { fleet: resource.key().name.as_str().into(), stable })
            }
            _ => None,
        },
        Change::Delete(_) => None,
    };
    changes.iter().filter_map(fleet).collect()
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
