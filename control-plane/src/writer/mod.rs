//! All writes of resources: what an operation changes is a function of what is published, and becomes one revision
//! or none.

mod deletions;
mod error;
mod files;
mod operation;
mod plan;
mod rights;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use signalbox_config::{BlobId, Change, Name, Resource, ResourceKey};

pub use deletions::Deletions;
pub use error::WriteError;
pub use operation::{Document, MassDelete, Operation, Precondition, Prune};
pub use rights::Rights;

use self::files::{CheckedFiles, FilesOfPlugin};
use crate::compute::compute;
use crate::publish::{Published, Publisher};
use crate::store::{StoreError, Urgent};

/// Makes revisions.
#[derive(Clone)]
pub struct Writer {
    publisher: Arc<Publisher>,
}

/// The author of a write, and the reason.
#[derive(Debug, Clone)]
pub struct Author {
    /// The name of the token, or of who else does it.
    pub name: Arc<str>,
    /// For people; may be empty.
    pub message: String,
    /// The request: `PUT /api/v1/routes/users`.
    pub action: String,
    /// Set if progressive fleets are to get the write otherwise than by their policy.
    pub urgent: Option<Urgent>,
    /// The kinds that the author may write.
    pub rights: Rights,
}

/// Says if a write is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is.
    Store,
    /// It is only checked.
    DryRun,
}

/// The result of a write, or of a dry run.
#[derive(Debug, Clone)]
pub struct Written {
    /// The revision it made; `None`: nothing differed, or it was only checked.
    pub revision: Option<u64>,
    /// The published state after the write.
    pub published: Arc<Published>,
    /// One for each resource that differs, by kind and name.
    pub changes: Vec<Changed>,
}

/// One difference.
#[derive(Debug, Clone)]
pub struct Changed {
    /// The resource's key.
    pub key: ResourceKey,
    /// `None`: it was not there.
    pub before: Option<Arc<Resource>>,
    /// `None`: it is deleted.
    pub after: Option<Arc<Resource>>,
}

/// How often a write is tried. The head moves at most once without the write holding it, once more to a new epoch.
const ATTEMPTS: usize = 4;

/// How long a write waits for those before it.
const COMMIT_WAIT: Duration = Duration::from_secs(10);

impl Writer {
    /// Writes what `publisher` then publishes.
    pub fn new(publisher: Arc<Publisher>) -> Self {
        Self { publisher }
    }

    /// Deletes an uploaded file; whether it was there. One that plugins use stays, and they are returned.
    ///
    /// Goes on when it is dropped, as [`Writer::write`] does.
    pub async fn delete_file(&self, id: BlobId) -> Result<Result<bool, BTreeSet<Name>>, WriteError> {
        let publisher = Arc::clone(&self.publisher);
        let task = tokio::spawn(async move {
            let guard = tokio::time::timeout(COMMIT_WAIT, publisher.lock_commits()).await;
            Ok(guard.map_err(|_| WriteError::Busy)?.delete_file(id).await?)
        });
        task.await.unwrap_or_else(|error| {
            Err(StoreError::Broken(format!("the deletion ended early: {error}")).into())
        })
    }

    /// Does `operation` as one revision; none, if nothing differs.
    ///
    /// Goes on when it is dropped: a client that hangs up must not leave a revision that is stored but not published.
    pub async fn write(
        &self,
        author: Author,
        mut operation: Operation,
        mode: Mode,
    ) -> Result<Written, WriteError> {
        let publisher = Arc::clone(&self.publisher);
        let task = tokio::spawn(async move {
            if operation.may_have_passwords() {
                let current = publisher.current();
                let hashed = tokio::task::spawn_blocking(move || {
                    operation.hash_passwords(&current);
                    operation
                });
                operation = hashed
                    .await
                    .map_err(|error| StoreError::Broken(format!("a password cannot be hashed: {error}")))?;
            }
            let mut checked = CheckedFiles::default();
            for _ in 0..ATTEMPTS {
                match write(&publisher, author.clone(), &operation, mode, &checked).await? {
                    Attempt::Ended(written) => return Ok(written),
                    Attempt::NeedsFiles(plugins) => {
                        let types = publisher.current().types.clone();
                        checked.check(plugins, publisher.files(), &types).await?;
                    }
                }
            }
            Err(WriteError::Busy)
        });
        task.await
            .unwrap_or_else(|error| Err(StoreError::Broken(format!("the write ended early: {error}")).into()))
    }
}

/// The end of an attempt that met no error.
enum Attempt {
    Ended(Written),
    /// The files of these plugins are to be checked first.
    NeedsFiles(Vec<FilesOfPlugin>),
}

async fn write(
    publisher: &Publisher,
    author: Author,
    operation: &Operation,
    mode: Mode,
    checked: &CheckedFiles,
) -> Result<Attempt, WriteError> {
    // With the database away every write takes as long as the store's deadline: those behind must not wait for all.
    let mut guard =
        tokio::time::timeout(COMMIT_WAIT, publisher.lock_commits()).await.map_err(|_| WriteError::Busy)?;
    // The usual write goes by what is published, and the store says whether that was the head. Whatever ends without
    // asking the store to commit must know that first.
    let mut verified = false;
    if matches!(operation, Operation::Apply(_) | Operation::Restore(_)) {
        guard.catch_up().await?;
        verified = true;
    }
    for _ in 0..ATTEMPTS {
        let current = guard.current();
        let size = operation.size(&current);
        let plan = compute(size, || -> Result<_, WriteError> {
            let plan = operation.plan(&current)?;
            plan.refuse_kinds(author.rights)?;
            // A rollback brings back what was, even if it is good for less than it was.
            if !matches!(operation, Operation::Restore(_)) {
                plan.refuse_unfit_certificates(jiff::Timestamp::now())?;
            }
            let files = plan.files();
            plan.check(&current).map(|(changes, relations)| (changes, relations, files))
        });
        let (changes, relations, files) = match plan {
            Ok((.., files)) if !files.iter().all(|files| checked.contain(files)) => {
                return Ok(Attempt::NeedsFiles(files));
            }
            Ok(plan) if mode == Mode::Store && !plan.0.is_empty() => plan,
            Ok((changes, ..)) if !changes.is_empty() => {
                guard.check_commit(&changes).await?;
                if guard.current().snapshot.id() != current.snapshot.id() {
                    verified = true;
                    continue;
                }
                let changes = differences(&current, &changes);
                return Ok(Attempt::Ended(Written { revision: None, published: current, changes }));
            }
            refused_or_nothing_to_do => {
                if !verified {
                    guard.catch_up().await?;
                    verified = true;
                    if guard.current().snapshot.id() != current.snapshot.id() {
                        continue;
                    }
                }
                let (changes, ..) = refused_or_nothing_to_do?;
                let changes = differences(&current, &changes);
                return Ok(Attempt::Ended(Written { revision: None, published: current, changes }));
            }
        };
        if !files.is_empty() {
            // Nobody deletes a file while the head is held.
            guard.hold().await?;
            let ids = files.iter().flat_map(FilesOfPlugin::ids).collect();
            if !publisher.files().missing(&ids).await?.is_empty() {
                return Ok(Attempt::NeedsFiles(files));
            }
        }
        let Author { name, message, action, urgent, rights: _ } = author.clone();
        match guard.commit(name, message, action, changes.clone(), relations, urgent).await {
            Ok(committed) => {
                tracing::info!(
                    author = %author.name, revision = committed.number, action = author.action,
                    changes = changes.len(), reason = author.message, "a revision was made"
                );
                let changes = differences(&current, &changes);
                let (revision, published) = (Some(committed.number), guard.current());
                return Ok(Attempt::Ended(Written { revision, published, changes }));
            }
            // Another replica came first. To come first this time, the next attempt holds the head: one that writes
            // without a pause would come first for ever.
            Err(StoreError::Stale) => {
                // The most of it is read while the others can still write.
                guard.catch_up().await?;
                guard.hold().await?;
                verified = true;
            }
            // It may have happened even so: the follower reads the head again.
            Err(error) => return Err(error.into()),
        }
    }
    Err(WriteError::Busy)
}

fn differences(current: &Published, changes: &[Change]) -> Vec<Changed> {
    let mut changed: Vec<Changed> = changes
        .iter()
        .map(|change| Changed {
            key: change.key().clone(),
            before: current.snapshot.find(change.key()).cloned(),
            after: match change {
                Change::Put(resource) => Some(Arc::clone(resource)),
                Change::Delete(_) => None,
            },
        })
        .collect();
    changed.sort_by(|a, b| a.key.cmp(&b.key));
    changed
}
