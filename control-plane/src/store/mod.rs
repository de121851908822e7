//! The store: the head, the append-only log of revisions, the current set, and what is known of proxies, rollouts
//! and tokens. One trait, two implementations, one contract suite (`tests/store_contract`) that runs against both.

mod access_row;
mod blob_row;
mod blobs;
mod deadline;
mod file_lock;
mod hint;
mod hosts;
mod interface;
mod pooler;
mod postgres;
mod postgres_error;
mod postgres_listener;
mod postgres_migrations;
mod postgres_rollouts;
mod proxy_row;
mod purge_row;
mod purges;
mod revision;
mod rollout_row;
mod rollout_sql;
mod rollout_writes;
mod row;
mod sealed;
mod sqlite;
mod sqlite_error;
mod sqlite_rollouts;
mod stats;
mod stats_row;

use std::path::PathBuf;
use std::sync::Arc;

pub use access_row::{AuditRow, Role, SessionRow, StoredRole, TokenRow, TokenSource};
pub use blob_row::BlobRow;
pub use file_lock::FileLock;
pub use hint::{Hinted, ProxyHints};
pub use interface::{BlobStore, Held, PurgeStore, RolloutStore, StatsStore, Store, StoreError};
pub use proxy_row::{ProxyRow, ProxyRows, ReplicaRow, RolloutRow, Stamp};
pub use purge_row::PurgeRow;
pub use purges::MAX_PURGES;
pub use revision::{
    Committed, Loaded, Meta, NewChange, NewRevision, Revision, RevisionSummary, StoredChange, StoredResource,
    StoredSet, UnknownChange, UnknownKey, UnknownResource,
};
pub use rollout_row::{
    Command, CountsRow, Decided, Decisions, FleetState, FleetTargets, PinnedFleet, RolloutRun, Term, Urgent,
    UrgentMode, UrgentRevision,
};
pub use sealed::{KeySource, SecretsKey, seal};
pub use stats_row::StatsRow;

/// Opens the store of a URL: `sqlite://PATH`, the path relative to the working directory unless it starts with a
/// slash, or `postgres://…`, which may name several servers (`hosts`). Makes what is not there yet (the file and its directory; the tables) and brings older
/// tables up to date; several control planes may do so at once.
///
/// [`StoreError::Url`] tells of a URL that cannot be, [`StoreError::Broken`] of a file that is no database of this program, and of
/// tables that a newer version made. To be called within a tokio runtime: the pools and the listener live on it.
pub async fn open(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    // Errors are without the URL, for it may hold a password; what precedes `://` holds none.
    match url.split_once(':') {
        Some(("sqlite", _)) => Ok(Arc::new(sqlite::Sqlite::open(url).await?)),
        Some(("postgres" | "postgresql", _)) => Ok(Arc::new(postgres::Postgres::open(url).await?)),
        Some((scheme, rest)) if rest.starts_with("//") => {
            Err(StoreError::Url(format!("has the scheme {scheme:?}; {SCHEMES}")))
        }
        _ => Err(StoreError::Url(format!("has no scheme; {SCHEMES}"))),
    }
}

const SCHEMES: &str = "known are sqlite://PATH, and postgres://USER:PASSWORD@HOST/DATABASE or postgresql://";

/// Where the key for secrets lies when none is given: beside the file of a SQLite database.
pub fn key_beside(url: &str) -> Option<PathBuf> {
    let file = sqlite::file_of(url)?;
    let mut name = file.file_name()?.to_owned();
    name.push(".secrets-key");
    Some(file.with_file_name(name))
}
