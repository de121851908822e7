//! The store: the head, the append-only log of revisions, the current set, and what is known of proxies, rollouts
//! and tokens. One trait, two implementations, one contract suite (`tests/store_contract`) that runs against both.

mod file_lock;
mod hint;
mod hosts;
mod postgres;
mod row;
mod sealed;
mod sqlite;

pub use file_lock::FileLock;
pub use hint::{Hinted, ProxyHints};
pub use sealed::{KeySource, SecretsKey, seal};

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use signalbox_config::{ResourceKey, RevisionId};
use tokio::sync::Notify;

/// Opens the store of a URL: `sqlite://PATH`, the path relative to the working directory unless it starts with a
/// slash, or `postgres://…`, which may name several servers (`hosts`). Makes what is not there yet (the file and its directory; the tables) and brings older
/// tables up to date; several control planes may do so at once.
///
/// [`StoreError::Broken`] tells of a URL that cannot be, of a file that is no database of this program, and of
/// tables that a newer version made. To be called within a tokio runtime: the pools and the listener live on it.
pub async fn open(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    if url.starts_with("sqlite:") {
        Ok(Arc::new(sqlite::Sqlite::open(url).await?))
    } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
        Ok(Arc::new(postgres::Postgres::open(url).await?))
    } else {
        // Without the URL, for it may hold a password.
        Err(StoreError::Broken("its URL starts with neither sqlite:// nor postgres://".into()))
    }
}

/// Where the key for secrets lies when none is given: beside the file of a SQLite database.
pub fn key_beside(url: &str) -> Option<PathBuf> {
    let file = sqlite::file_of(url)?;
    let mut name = file.file_name()?.to_owned();
    name.push(".secrets-key");
    Some(file.with_file_name(name))
}

/// Where everything is kept.
///
/// Every call has a deadline of its own (5 s; where it reads a whole set, or writes or reads more than 1,000 changes,
/// 60 s), after which it is [`StoreError::Unavailable`]. Dropping a call's future is safe: what it was to write is
/// written wholly or not at all.
#[async_trait]
pub trait Store: Send + Sync {
    /// Epoch and number of the last revision.
    async fn head(&self) -> Result<RevisionId, StoreError>;

    /// Whether the database answered, but was set to take no writes, when its head was read last.
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

    /// Who wrote each proxy's state last, and when; by id.
    async fn proxy_stamps(&self) -> Result<Vec<(String, Stamp)>, StoreError>;

    /// What other control planes tell of the states of proxies that they wrote.
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
    async fn note(&self, actor: &str, action: &str, detail: &str) -> Result<(), StoreError>;

    /// What tells whether a key is the one that secrets are encrypted with; `None`: there has been none.
    async fn key_check(&self) -> Result<Option<Vec<u8>>, StoreError>;

    /// Keeps that, unless there is one already; returns the one that is kept.
    async fn keep_key_check(&self, check: &[u8]) -> Result<Vec<u8>, StoreError>;

    /// Ends the connections in order; of SQLite, leaves nothing beside the database file. Nothing is to be called after it.
    async fn close(&self) -> Result<(), StoreError>;
}

/// The head, held by one who is about to commit.
pub struct Held(HeldBy);

enum HeldBy {
    Postgres(sqlx::Transaction<'static, sqlx::Postgres>),
    Sqlite(sqlx::Transaction<'static, sqlx::Sqlite>),
}

impl HeldBy {
    /// What is said of one that another store made.
    fn of_another() -> StoreError {
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
    /// The database answers, but not with what it should have.
    #[error("the database is not as it should be: {0}")]
    Broken(String),
}

/// The current set.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The revision it is of.
    pub head: RevisionId,
    /// When that was committed, microseconds since 1970; 0 for revision 0.
    pub committed_at_us: i64,
    /// By kind and name.
    pub resources: Vec<StoredResource>,
    /// Those that this version cannot name, by kind and name.
    pub unknown: Vec<UnknownResource>,
}

/// The set as it was at a revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredSet {
    /// By kind and name.
    pub resources: Vec<StoredResource>,
    /// Those that this version cannot name, by kind and name.
    pub unknown: Vec<UnknownResource>,
}

/// Kind and name of a resource that a newer version wrote: of a kind, or with a form of name, that this version does
/// not know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnknownKey {
    /// As it is stored.
    pub kind: Arc<str>,
    /// As it is stored.
    pub name: Arc<str>,
}

impl fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// A resource that a newer version wrote. Its bytes are never shown: they may hold secrets that this version does not
/// know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownResource {
    /// Kind and name.
    pub key: UnknownKey,
    /// As it is stored.
    pub spec: Bytes,
}

/// One change of a resource that a newer version wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownChange {
    /// What it concerns.
    pub key: UnknownKey,
    /// `None`: it was not there.
    pub before: Option<Bytes>,
    /// `None`: it was deleted.
    pub after: Option<Bytes>,
}

/// A resource as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredResource {
    /// Kind and name.
    pub key: ResourceKey,
    /// Canonical JSON; to be kept byte for byte.
    pub spec: Bytes,
    /// Who made it, and when.
    pub meta: Meta,
}

/// Who made a resource, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// The revision that wrote it last.
    pub revision: u64,
    /// Microseconds since 1970; kept over updates, not over a deletion.
    pub created_at_us: i64,
    /// Microseconds since 1970.
    pub updated_at_us: i64,
    /// The author of that revision.
    pub updated_by: Arc<str>,
}

/// A revision to be made.
#[derive(Debug, Clone)]
pub struct NewRevision {
    /// The name of the token, or of who else did it.
    pub author: Arc<str>,
    /// For people; may be empty.
    pub message: String,
    /// What was called, for the audit trail: `PUT /api/v1/routes/users`.
    pub action: String,
    /// Never empty; one for each key.
    pub changes: Vec<NewChange>,
}

/// One change of a revision to be made.
#[derive(Debug, Clone)]
pub struct NewChange {
    /// What it concerns.
    pub key: ResourceKey,
    /// Canonical JSON; `None`: deleted.
    pub spec: Option<Bytes>,
}

/// A revision that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Its number.
    pub number: u64,
    /// When, by the control plane's clock, microseconds since 1970.
    pub committed_at_us: i64,
}

/// A revision without its changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionSummary {
    /// Its number.
    pub number: u64,
    /// Who made it.
    pub author: Arc<str>,
    /// For people.
    pub message: String,
    /// Microseconds since 1970.
    pub committed_at_us: i64,
    /// How many resources it changed.
    pub change_count: u32,
}

/// A revision with its changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    /// All but the changes.
    pub summary: RevisionSummary,
    /// By kind and name.
    pub changes: Vec<StoredChange>,
    /// The changes of resources that this version cannot name, by kind and name.
    pub unknown: Vec<UnknownChange>,
}

/// One change: the full before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChange {
    /// What it concerns.
    pub key: ResourceKey,
    /// `None`: it was not there.
    pub before: Option<Bytes>,
    /// `None`: it was deleted.
    pub after: Option<Bytes>,
}

/// The last known state of a proxy: its identity, and the rest as JSON that the board reads and writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyRow {
    /// The node id.
    pub id: String,
    /// Its fleet.
    pub fleet: String,
    /// The control plane it has its stream to, or had.
    pub replica: String,
    /// The process of that control plane.
    pub instance: String,
    /// Microseconds since 1970, by the database's clock: set when it is written.
    pub updated_at_us: i64,
    /// JSON.
    pub state: String,
}

/// States of proxies to be written.
#[derive(Debug, Clone)]
pub struct ProxyRows {
    /// The instance of the control plane that writes.
    pub writer: String,
    /// Of proxies that opened a stream to it: whatever is there is replaced.
    pub taken: Vec<ProxyRow>,
    /// Of others: each is written if the row that is there has the same replica and instance, for else another control
    /// plane has the proxy by now.
    pub changed: Vec<ProxyRow>,
    /// Whether the others are told.
    pub tell: bool,
}

impl ProxyRows {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.changed.is_empty()
    }

    fn texts(&self) -> Vec<String> {
        let ids = self.taken.iter().chain(&self.changed).map(|row| &*row.id).filter(|_| self.tell);
        ProxyHints::texts(&self.writer, ids)
    }
}

/// Which version of a proxy's state it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// See [`ProxyRow`].
    pub replica: String,
    /// See [`ProxyRow`].
    pub instance: String,
    /// See [`ProxyRow`].
    pub updated_at_us: i64,
}

/// A control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaRow {
    /// One for each process.
    pub instance: String,
    /// As its operator calls it.
    pub name: String,
    /// How long ago it said that it is alive, by the database's clock.
    pub age: Duration,
}

/// The way of one revision through a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutRow {
    /// `REVISION-FLEET`.
    pub id: String,
    /// The revision.
    pub revision: u64,
    /// The fleet.
    pub fleet: String,
    /// JSON.
    pub state: String,
}

/// Who may do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads, and writes resources.
    Editor,
    /// All.
    Admin,
    /// xDS only.
    Proxy,
}

impl Role {
    const ALL: [Role; 4] = [Role::Viewer, Role::Editor, Role::Admin, Role::Proxy];

    /// `viewer`
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Editor => "editor",
            Role::Admin => "admin",
            Role::Proxy => "proxy",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == s)
            .ok_or_else(|| format!("unknown role {s:?}; known are viewer, editor, admin, proxy"))
    }
}

/// A role as it is stored: a newer version may have written one that this version does not know. Such a role may do
/// nothing here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredRole {
    /// One of this version's.
    Known(Role),
    /// Another.
    Unknown(Arc<str>),
}

impl StoredRole {
    /// `viewer`
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(role) => role.as_str(),
            Self::Unknown(text) => text,
        }
    }

    /// The role, if this version knows it.
    pub fn known(&self) -> Option<Role> {
        match self {
            Self::Known(role) => Some(*role),
            Self::Unknown(_) => None,
        }
    }
}

impl From<Role> for StoredRole {
    fn from(role: Role) -> Self {
        Self::Known(role)
    }
}

impl From<&str> for StoredRole {
    fn from(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Unknown(text.into()), Self::Known)
    }
}

/// A token; its text is not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Unique; the author of what is done with it.
    pub name: String,
    /// What it may do.
    pub role: StoredRole,
    /// SHA-256 of its text. Tokens are 256 random bits, so a fast hash is enough. Of another length when a newer
    /// version made it otherwise; then nothing matches it here.
    pub hash: Vec<u8>,
    /// Microseconds since 1970.
    pub created_at_us: i64,
}

/// A session of the UI; its cookie is not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// What it is called where sessions are listed and ended. It opens nothing.
    pub id: String,
    /// SHA-256 of the cookie, which is 256 random bits.
    pub hash: [u8; 32],
    /// The name of the token it was opened with.
    pub token: String,
    /// Where that token is from.
    pub token_source: TokenSource,
    /// SHA-256 of the cookie and the token's hash: tells the token without storing anything of it.
    pub binding: [u8; 32],
    /// Microseconds since 1970.
    pub created_at_us: i64,
    /// Microseconds since 1970; up to a minute behind.
    pub last_used_at_us: i64,
    /// Microseconds since 1970: the end, however much it is used.
    pub expires_at_us: i64,
}

/// Where a token is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TokenSource {
    /// The database: valid on every replica until it is deleted.
    Stored,
    /// A flag or an environment variable: valid on the replica that has it, as long as it is given.
    Flag,
    /// A file that is re-read: valid on the replica that reads it, as long as it is in there.
    File,
}

impl TokenSource {
    /// `stored`
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Flag => "flag",
            Self::File => "file",
        }
    }
}

/// One entry of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Counts up.
    pub id: i64,
    /// Microseconds since 1970.
    pub at_us: i64,
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// More of it.
    pub detail: String,
    /// The revision it made, if it made one.
    pub revision: Option<u64>,
}

/// The deadline of most calls.
const CALL: Duration = Duration::from_secs(5);
/// The deadline of calls whose work grows with the set.
const LONG_CALL: Duration = Duration::from_secs(60);
/// A call that writes or reads more changes than this has the longer deadline.
const MANY_CHANGES: usize = 1_000;
/// After so many changes a page of revisions ends early.
const PAGE_CHANGES: u64 = 100_000;

/// The deadline of a call that writes or reads so many changes.
fn deadline_for(changes: usize) -> Duration {
    if changes > MANY_CHANGES { LONG_CALL } else { CALL }
}

/// Runs a call to its deadline.
async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(deadline, call).await {
        Ok(result) => result,
        Err(_) => Err(StoreError::Unavailable(format!("no answer within {deadline:?}").into())),
    }
}

/// A new epoch: 128 random bits, without a colon.
fn new_epoch() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// This process's clock, microseconds since 1970.
fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

/// A revision number as the databases have it. What is beyond their range is no revision's number.
fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
