//! The interface of a store, and its errors.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use signalbox_config::{BlobId, RevisionId};
use tokio::sync::Notify;

use super::access_row::{AuditRow, SessionRow, TokenRow};
use super::blob_row::BlobRow;
use super::hint::ProxyHints;
use super::proxy_row::{ProxyRow, ProxyRows, ReplicaRow, RolloutRow, Stamp};
use super::purge_row::PurgeRow;
use super::revision::{Committed, Loaded, NewChange, NewRevision, Revision, RevisionSummary, StoredSet};
use super::rollout_row::{
    Command, CountsRow, Decided, Decisions, FleetState, FleetTargets, RolloutRun, Term, UrgentRevision,
};
use super::stats_row::StatsRow;

/// Where everything is kept.
///
/// Every call has a deadline of its own (5 s; where it reads a whole set, or writes or reads more than 1,000 changes,
/// 60 s), after which it is [`StoreError::Unavailable`]. Dropping a call's future is safe: what it was to write is
/// written wholly or not at all.
#[async_trait]
pub trait Store: RolloutStore + BlobStore + PurgeStore + StatsStore {
    /// Epoch and number of the last revision.
    async fn head(&self) -> Result<RevisionId, StoreError>;

    /// True if the database answered, but was set to take no writes, when its head was read last.
    fn is_read_only(&self) -> bool;

    /// The current set, and the revision it is of: one consistent read.
    async fn load(&self) -> Result<Loaded, StoreError>;

    /// The revisions after `number`, oldest first, at most `limit`, each with its changes. Fewer than `limit` when
    /// they hold more than 100,000 changes together, but never none while there is one.
    async fn revisions_after(&self, number: u64, limit: u32) -> Result<Vec<Revision>, StoreError>;

    /// Makes the revision after `base`, in one transaction: takes its number by updating the head where it is `base`,
    /// writes the resource versions, the current set, the revision and the audit entry, notifies, commits.
    ///
    /// [`StoreError::Stale`] when the head is not `base`: nothing was written; catch up and try again.
    /// [`StoreError::Unavailable`] leaves open whether it happened (the connection may have been lost between the
    /// database's commit and its answer): read the head before trying again.
    /// [`StoreError::Broken`] when a key is there twice, or one is deleted that is not there: nothing was written.
    async fn commit(&self, base: u64, revision: NewRevision) -> Result<Committed, StoreError>;

    /// Fails where [`Store::commit`] of `changes` would for what is in them: [`StoreError::NoSecretsKey`].
    fn check(&self, _changes: &[NewChange]) -> Result<(), StoreError> {
        Ok(())
    }

    /// Holds the head: until [`Store::commit_held`], or until what this returns is dropped, nobody else moves it, and
    /// who wants to waits (4 s at most, then it is [`StoreError::Unavailable`] to them).
    async fn hold(&self) -> Result<Held, StoreError>;

    /// [`Store::commit`] by who holds the head, which is free again after it.
    async fn commit_held(
        &self,
        held: Held,
        base: u64,
        revision: NewRevision,
    ) -> Result<Committed, StoreError>;

    /// Revisions without their changes, newest first, those before `before`.
    async fn revisions(&self, before: Option<u64>, limit: u32) -> Result<Vec<RevisionSummary>, StoreError>;

    /// One revision with its changes.
    async fn revision(&self, number: u64) -> Result<Option<Revision>, StoreError>;

    /// The whole set as it was at a revision; `None` when there is no such revision.
    async fn set_at(&self, number: u64) -> Result<Option<StoredSet>, StoreError>;

    /// Wakes one waiter when another process may have committed (NOTIFY), and after every connection to the database
    /// that listens for it, for what was told before is lost: only a hint, for there may be none (on SQLite there
    /// never is). It keeps one wake-up for a waiter that comes later.
    fn hint(&self) -> Arc<Notify>;

    /// Likewise, when another process may have changed tokens or sessions.
    fn access_hint(&self) -> Arc<Notify>;

    /// Likewise, when another process may have stored a purge.
    fn purge_hint(&self) -> Arc<Notify>;

    /// Starts a new epoch: for a database whose disk was put back to an earlier state. (On Postgres a promotion, a
    /// restore to a point in time and a restore into another cluster change the epoch by themselves.)
    async fn new_epoch(&self) -> Result<RevisionId, StoreError>;

    /// Writes the last known states of proxies, all or none, and tells the other control planes. The time of writing is
    /// the database's.
    async fn save_proxies(&self, rows: &ProxyRows) -> Result<(), StoreError>;

    /// All last known states, by id.
    async fn proxies(&self) -> Result<Vec<ProxyRow>, StoreError>;

    /// Those of these proxies, by id; of some there may be none.
    async fn proxies_of(&self, ids: &[String]) -> Result<Vec<ProxyRow>, StoreError>;

    /// The last writer of each proxy's state, and the time; by id.
    async fn proxy_stamps(&self) -> Result<Vec<(String, Stamp)>, StoreError>;

    /// Notifications of other control planes about the states of proxies that they wrote.
    fn proxy_hints(&self) -> Arc<ProxyHints>;

    /// Says that a control plane is alive, if it said so less than `lease` ago; whether it did. One that did not is dead
    /// to the others, and becomes alive by [`Store::save_replica`] only.
    async fn renew_replica(&self, instance: &str, lease: Duration) -> Result<bool, StoreError>;

    /// Says that a control plane is alive from now on.
    async fn save_replica(&self, instance: &str, name: &str) -> Result<(), StoreError>;

    /// The control planes that did not end in order within the last day, by instance.
    async fn replicas(&self) -> Result<Vec<ReplicaRow>, StoreError>;

    /// A control plane ends in order.
    async fn delete_replica(&self, instance: &str) -> Result<(), StoreError>;

    /// Forgets a proxy; whether there was one.
    async fn delete_proxy(&self, id: &str) -> Result<bool, StoreError>;

    /// Writes rollouts, replacing those of the same id.
    async fn save_rollouts(&self, rollouts: &[RolloutRow]) -> Result<(), StoreError>;

    /// The last rollouts, newest revision first.
    async fn rollouts(&self, limit: u32) -> Result<Vec<RolloutRow>, StoreError>;

    /// Stores a token; `false` when its name is in use.
    async fn create_token(&self, token: &TokenRow) -> Result<bool, StoreError>;

    /// All tokens, by name.
    async fn tokens(&self) -> Result<Vec<TokenRow>, StoreError>;

    /// Revokes a token, and ends the sessions that were opened with it; whether there was one of that name.
    async fn delete_token(&self, name: &str) -> Result<bool, StoreError>;

    /// Stores a session. Its id and its hash are random, so none is there already.
    async fn create_session(&self, session: &SessionRow) -> Result<(), StoreError>;

    /// All sessions, oldest first.
    async fn sessions(&self) -> Result<Vec<SessionRow>, StoreError>;

    /// Notes when sessions were used last, microseconds since 1970, by id. An earlier time than the stored one
    /// changes nothing.
    async fn touch_sessions(&self, used: &[(String, i64)]) -> Result<(), StoreError>;

    /// Ends sessions; those that are not there are passed over.
    async fn delete_sessions(&self, ids: &[String]) -> Result<(), StoreError>;

    /// The audit trail, newest first, entries before `before`.
    async fn audit(&self, before: Option<i64>, limit: u32) -> Result<Vec<AuditRow>, StoreError>;

    /// Notes an action that makes no revision (a token created or revoked).
    async fn append_audit(&self, actor: &str, action: &str, detail: &str) -> Result<(), StoreError>;

    /// The value that shows if a key is the one that secrets are encrypted with; `None`: there has been none.
    async fn key_check(&self) -> Result<Option<Vec<u8>>, StoreError>;

    /// Keeps that, unless there is one already; returns the one that is kept.
    async fn keep_key_check(&self, check: &[u8]) -> Result<Vec<u8>, StoreError>;

    /// Ends the connections in order; of SQLite, leaves nothing beside the database file. Nothing is to be called after it.
    async fn close(&self) -> Result<(), StoreError>;
}

/// The part of a store that rollouts use. Deadlines and errors are those of [`Store`].
#[async_trait]
pub trait RolloutStore: Send + Sync {
    /// The decisions in force for all fleets, if they changed since version `known`; 0 is the version of none.
    async fn fleet_targets(&self, known: u64) -> Result<Option<FleetTargets>, StoreError>;

    /// Acquires or renews the lease of the leader, on the database's clock; `None`: another holder has it. Each acquisition has
    /// a term of its own, and so has a renewal that comes after the lease expired.
    async fn lead(&self, holder: &str, lease: Duration) -> Result<Option<Term>, StoreError>;

    /// The holder of the lease; `None`: nobody has it.
    async fn leader(&self) -> Result<Option<String>, StoreError>;

    /// Gives the lease back, if `holder` has it under this term.
    async fn step_down(&self, holder: &str, term: Term) -> Result<(), StoreError>;

    /// Puts decisions in force and stores the states that come with them, all or none, and tells the other control planes. A state is
    /// stored only for a fleet with a decision.
    async fn decide(&self, holder: &str, term: Term, decisions: &Decisions) -> Result<Decided, StoreError>;

    /// The rollouts that have not ended, by id.
    async fn unfinished_runs(&self) -> Result<Vec<RolloutRun>, StoreError>;

    /// The rollout of an id.
    async fn rollout_run(&self, id: &str) -> Result<Option<RolloutRun>, StoreError>;

    /// The revisions after `number` that are to reach progressive fleets otherwise than by their policy, oldest first; at most 100.
    async fn urgent_revisions(&self, number: u64) -> Result<Vec<UrgentRevision>, StoreError>;

    /// Stores a command for the leader, JSON, which expires after `lifetime`. Returns its number.
    async fn add_command(&self, fleet: &str, command: &str, lifetime: Duration) -> Result<u64, StoreError>;

    /// The commands that have no answer and have not expired, oldest first; at most 100.
    async fn commands(&self) -> Result<Vec<Command>, StoreError>;

    /// The answer of the leader to a command, JSON; `None`: there is none yet.
    async fn command_answer(&self, id: u64) -> Result<Option<String>, StoreError>;

    /// Stores counts of proxies for the leader, JSON.
    async fn add_counts(&self, instance: &str, counts: &str) -> Result<(), StoreError>;

    /// The counts that others than `instance` have stored after the row `id`, oldest first; at most 1,000. `None`: those of the last
    /// five seconds.
    async fn counts_after(&self, instance: &str, id: Option<u64>) -> Result<Vec<CountsRow>, StoreError>;

    /// Deletes counts older than a minute, commands that expired an hour ago, and rollouts that have ended, but for those of the last 2,000
    /// rollouts' revisions.
    async fn delete_old_rollout_rows(&self) -> Result<(), StoreError>;

    /// Lets a command expire; `false`: it has an answer.
    async fn cancel_command(&self, id: u64) -> Result<bool, StoreError>;

    /// The last rollouts of a fleet (`None`: of all), newest revision first.
    async fn rollout_runs(&self, fleet: Option<&str>, limit: u32) -> Result<Vec<RolloutRun>, StoreError>;

    /// The decisions in force for all fleets with the state of their rollouts, by fleet.
    async fn fleet_states(&self) -> Result<Vec<FleetState>, StoreError>;
}

/// The part of a store that has the uploaded files. Deadlines and errors are those of [`Store`]; a content is read and written within 60 s.
#[async_trait]
pub trait BlobStore: Send + Sync {
    /// Stores a file; `false` if it is there already.
    async fn save_blob(&self, row: &BlobRow, content: &[u8]) -> Result<bool, StoreError>;

    /// The content of a file.
    async fn blob(&self, id: BlobId) -> Result<Option<Bytes>, StoreError>;

    /// All files without their contents, the newest first.
    async fn blobs(&self) -> Result<Vec<BlobRow>, StoreError>;

    /// Deletes a file; whether it was there. Who does it holds the head, so that no revision begins to use the file meanwhile.
    async fn delete_blob(&self, held: Held, id: BlobId) -> Result<bool, StoreError>;
}

/// The part of a store that has the purges of cached responses. Deadlines and errors are those of [`Store`].
#[async_trait]
pub trait PurgeStore: Send + Sync {
    /// Stores a purge, JSON, and tells the other control planes. Its number, which is returned, is `at_us` (microseconds since 1970), or
    /// the one after the last number if that is not smaller. Only the newest [`MAX_PURGES`](super::MAX_PURGES) are kept.
    async fn add_purge(&self, at_us: i64, purge: &str, created_by: &str) -> Result<u64, StoreError>;

    /// The number of the last purge; 0: there is none.
    async fn last_purge(&self) -> Result<u64, StoreError>;

    /// The purges after the number `after`, the oldest first.
    async fn purges_after(&self, after: u64) -> Result<Vec<PurgeRow>, StoreError>;
}

/// The part of a store that has the traffic of the last days. Deadlines and errors are those of [`Store`]; many rows are read within 60 s.
#[async_trait]
pub trait StatsStore: Send + Sync {
    /// Stores a row, under a number of its own.
    async fn save_stats_row(&self, row: &StatsRow) -> Result<(), StoreError>;

    /// The rows with slots of `resolution` seconds after the number `after`, in the order of their numbers; at most `limit`.
    async fn stats_rows_of(
        &self,
        resolution: u64,
        after: i64,
        limit: u32,
    ) -> Result<Vec<StatsRow>, StoreError>;

    /// The rows of others than the instance `except` after the number `after`, in the order of their numbers; at most `limit`.
    async fn stats_rows_after(
        &self,
        after: i64,
        except: &str,
        limit: u32,
    ) -> Result<Vec<StatsRow>, StoreError>;

    /// Deletes the rows with slots of `resolution` seconds that were made before the second `before`.
    async fn delete_stats_rows(&self, resolution: u64, before: u64) -> Result<(), StoreError>;
}

/// The head, held by one who is about to commit.
pub struct Held(pub(super) HeldBy);

pub(super) enum HeldBy {
    Postgres(sqlx::Transaction<'static, sqlx::Postgres>),
    Sqlite(sqlx::Transaction<'static, sqlx::Sqlite>),
}

impl HeldBy {
    /// The error for a lock that another store made.
    pub(super) fn of_another() -> StoreError {
        StoreError::Broken("its head is not held".into())
    }
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The head moved meanwhile: nothing was written.
    #[error("another write came first")]
    Stale,
    /// The database is away, or too slow. A commit may or may not have happened: read the head to know.
    #[error("the database is not available")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database answers, and takes no writes: it is a standby that was not promoted, or set so. Nothing was written.
    #[error("the database is read-only: it is a standby, or is set so")]
    ReadOnly,
    /// A secret is to be stored, and there is no key to encrypt it with.
    #[error(
        "a secret cannot be stored without a key: start the control plane with --secrets-key or --secrets-key-file"
    )]
    NoSecretsKey,
    /// The URL of the database cannot be used. The text follows "the database URL", and never has a password.
    #[error("the database URL {0}")]
    Url(String),
    /// The database answers, but not with what it should have.
    #[error("the database cannot be used: {0}")]
    Broken(String),
}
