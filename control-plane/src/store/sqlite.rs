//! The store in a file, for one control plane.
//!
//! One connection writes and a few read; in WAL mode neither waits for the other. A second control plane on the file is
//! refused ([`super::FileLock`]); another program that opens it is kept apart by SQLite's locks.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt;
use signalbox_config::RevisionId;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, QueryBuilder, query, query_as, query_scalar, raw_sql};
use tokio::sync::Notify;

use super::access_row::{AuditRow, SessionRow, TokenRow};
use super::deadline::{CALL, LONG_CALL, deadline_for, within};
use super::hint::ProxyHints;
use super::interface::{Held, HeldBy, Store, StoreError};
use super::proxy_row::{ProxyRow, ProxyRows, ReplicaRow, RolloutRow, Stamp};
use super::revision::{Committed, Loaded, NewChange, NewRevision, Revision, RevisionSummary, StoredSet};
use super::rollout_writes::commit_in_sqlite;
use super::row;
use super::row::{new_epoch, to_sql};
use super::sqlite_error::{CANNOT_OPEN, NOT_A_DATABASE, code, failed};
use crate::clock::now_us;

/// The store in a file.
pub(super) struct Sqlite {
    /// One connection.
    writer: SqlitePool,
    readers: SqlitePool,
    /// Never notified: nobody tells of what another process wrote.
    hint: Arc<Notify>,
    /// Likewise.
    proxy_hints: Arc<ProxyHints>,
}

impl Sqlite {
    /// Opens the file of a URL, making it and its directory when they are not there.
    pub(super) async fn open(url: &str) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|error| StoreError::Url(format!("cannot be read: {error}")))?;
        // SQLite's databases without a file: each connection would have its own, and none outlives the process.
        if options.get_filename().as_os_str().is_empty() || is_in_memory(url) {
            return Err(StoreError::Url("names no file".into()));
        }
        let options = options
            .create_if_missing(true)
            .foreign_keys(true)
            // A commit that was answered survives a loss of power.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .row_buffer_size(ROW_BUFFER)
            .disable_statement_logging();
        within(LONG_CALL, async {
            make_private(options.get_filename())?;
            migrate(&options).await
        })
        .await?;

        // Connections are never given up: they cost nothing, and opening one reads the whole schema.
        let pool = SqlitePoolOptions::new()
            .idle_timeout(None)
            .max_lifetime(None)
            .acquire_timeout(CALL)
            .test_before_acquire(false);
        let writer = pool
            .clone()
            .max_connections(1)
            .after_connect(|connection, _| {
                Box::pin(async move { raw_sql(WRITER).execute(connection).await.map(drop) })
            })
            // After some errors (a full disk) SQLite has rolled back by itself, which sqlx does not know.
            .after_release(|connection, _| {
                Box::pin(async move {
                    connection.ping().await?;
                    Ok(!connection.is_in_transaction())
                })
            })
            .connect_lazy_with(options.clone());
        let readers = pool.max_connections(READERS).connect_lazy_with(options.pragma("query_only", "ON"));
        Ok(Self { writer, readers, hint: Arc::default(), proxy_hints: Arc::default() })
    }

    pub(super) fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    pub(super) fn writer(&self) -> &SqlitePool {
        &self.writer
    }

    /// Reads the changes of consecutive revisions. What is in the log does not change, so it needs no transaction
    /// with the reading of the revisions themselves.
    async fn with_changes(&self, summaries: Vec<RevisionSummary>) -> Result<Vec<Revision>, StoreError> {
        let (Some(first), Some(last)) = (summaries.first(), summaries.last()) else { return Ok(Vec::new()) };
        let changes: usize = summaries.iter().map(|summary| summary.change_count as usize).sum();
        let rows = within(deadline_for(changes), async {
            query_as(row::CHANGES)
                .bind(to_sql(first.number))
                .bind(to_sql(last.number))
                .fetch_all(&self.readers)
                .await
                .map_err(failed)
        })
        .await?;
        row::revisions(summaries, rows)
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn head(&self) -> Result<RevisionId, StoreError> {
        within(CALL, async {
            let mut connection = self.readers.acquire().await.map_err(failed)?;
            head(&mut connection).await
        })
        .await
    }

    fn is_read_only(&self) -> bool {
        // A write that fails says so.
        false
    }

    async fn load(&self) -> Result<Loaded, StoreError> {
        within(LONG_CALL, async {
            // A read transaction sees the database as it was at its first read.
            let mut transaction = self.readers.begin().await.map_err(failed)?;
            let head = head(&mut transaction).await?;
            let committed_at_us = query_scalar(row::COMMITTED_AT)
                .bind(to_sql(head.number))
                .fetch_optional(&mut *transaction)
                .await
                .map_err(failed)?
                .unwrap_or(0);
            let mut resources = row::Resources::default();
            let mut rows = query_as(row::RESOURCES).fetch(&mut *transaction);
            while let Some(columns) = rows.try_next().await.map_err(failed)? {
                resources.push(columns)?;
            }
            let StoredSet { resources, unknown } = resources.finish();
            Ok(Loaded { head, committed_at_us, resources, unknown })
        })
        .await
    }

    async fn revisions_after(&self, number: u64, limit: u32) -> Result<Vec<Revision>, StoreError> {
        let page = within(CALL, async {
            let rows = query_as(row::REVISIONS_AFTER)
                .bind(to_sql(number))
                .bind(limit)
                .fetch_all(&self.readers)
                .await
                .map_err(failed)?;
            row::readable_page(rows)
        })
        .await?;
        self.with_changes(page).await
    }

    async fn commit(&self, base: u64, revision: NewRevision) -> Result<Committed, StoreError> {
        let held = self.hold().await?;
        self.commit_held(held, base, revision).await
    }

    async fn hold(&self) -> Result<Held, StoreError> {
        within(CALL, async {
            // IMMEDIATE: takes the write lock at once, so that no other process can write between here and the commit.
            let transaction = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
            Ok(Held(HeldBy::Sqlite(transaction)))
        })
        .await
    }

    async fn commit_held(
        &self,
        held: Held,
        base: u64,
        revision: NewRevision,
    ) -> Result<Committed, StoreError> {
        let HeldBy::Sqlite(mut transaction) = held.0 else { return Err(HeldBy::of_another()) };
        within(deadline_for(revision.changes.len()), async move {
            let number: Option<i64> = query_scalar(
                "UPDATE head SET revision = revision + 1 WHERE revision = $1 RETURNING revision",
            )
            .bind(to_sql(base))
            .fetch_optional(&mut *transaction)
            .await
            .map_err(failed)?;
            let Some(number) = number else { return Err(StoreError::Stale) };
            let committed_at_us = now_us();

            for batch in revision.changes.chunks(BATCH) {
                stage(batch, &mut transaction).await?;
            }
            for statement in [LOG_STAGED, PUT_STAGED, DELETE_STAGED, CLEAR_STAGED] {
                query(statement)
                    .bind(number)
                    .bind(committed_at_us)
                    .bind(&*revision.author)
                    .execute(&mut *transaction)
                    .await
                    .map_err(failed)?;
            }
            for statement in [ADD_REVISION, ADD_AUDIT] {
                query(statement)
                    .bind(number)
                    .bind(committed_at_us)
                    .bind(&*revision.author)
                    .bind(&revision.message)
                    .bind(to_sql(revision.changes.len() as u64))
                    .bind(&revision.action)
                    .execute(&mut *transaction)
                    .await
                    .map_err(failed)?;
            }
            commit_in_sqlite(&mut transaction, row::number(number)?, &revision).await?;
            transaction.commit().await.map_err(failed)?;
            Ok(Committed { number: row::number(number)?, committed_at_us })
        })
        .await
    }

    async fn revisions(&self, before: Option<u64>, limit: u32) -> Result<Vec<RevisionSummary>, StoreError> {
        within(CALL, async {
            let rows = query_as(row::REVISIONS_BEFORE)
                .bind(before.map_or(i64::MAX, to_sql))
                .bind(limit)
                .fetch_all(&self.readers)
                .await
                .map_err(failed)?;
            rows.into_iter().map(row::summary).collect()
        })
        .await
    }

    async fn revision(&self, number: u64) -> Result<Option<Revision>, StoreError> {
        let found = within(CALL, async {
            let found = query_as(row::REVISION).bind(to_sql(number)).fetch_optional(&self.readers).await;
            found.map_err(failed)?.map(row::summary).transpose()
        })
        .await?;
        Ok(self.with_changes(found.into_iter().collect()).await?.pop())
    }

    async fn set_at(&self, number: u64) -> Result<Option<StoredSet>, StoreError> {
        within(LONG_CALL, async {
            let mut connection = self.readers.acquire().await.map_err(failed)?;
            // Revisions up to the head never change, so there is nothing to be kept consistent with.
            if number > head(&mut connection).await?.number {
                return Ok(None);
            }
            let mut resources = row::Resources::default();
            let mut rows = query_as(row::RESOURCES_AT).bind(to_sql(number)).fetch(&mut *connection);
            while let Some(columns) = rows.try_next().await.map_err(failed)? {
                resources.push(columns)?;
            }
            Ok(Some(resources.finish()))
        })
        .await
    }

    fn hint(&self) -> Arc<Notify> {
        self.hint.clone()
    }

    fn access_hint(&self) -> Arc<Notify> {
        self.hint.clone()
    }

    fn purge_hint(&self) -> Arc<Notify> {
        self.hint.clone()
    }

    async fn new_epoch(&self) -> Result<RevisionId, StoreError> {
        within(CALL, async {
            let (epoch, revision): (String, i64) =
                query_as("UPDATE head SET epoch = $1 RETURNING epoch, revision")
                    .bind(new_epoch())
                    .fetch_one(&self.writer)
                    .await
                    .map_err(failed)?;
            Ok(RevisionId { epoch: epoch.into(), number: row::number(revision)? })
        })
        .await
    }

    async fn save_proxies(&self, rows: &ProxyRows) -> Result<(), StoreError> {
        let taken = row::last_by_id(&rows.taken, |proxy| &proxy.id);
        let changed = row::last_by_id(&rows.changed, |proxy| &proxy.id);
        within(CALL, async {
            let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
            let now_us = now_us();
            for batch in taken.chunks(BATCH) {
                let mut insert = QueryBuilder::new(
                    "INSERT INTO proxies (id, fleet, replica, instance, updated_at_us, state) ",
                );
                insert.push_values(batch, |mut values, proxy| {
                    values
                        .push_bind(&proxy.id)
                        .push_bind(&proxy.fleet)
                        .push_bind(&proxy.replica)
                        .push_bind(&proxy.instance)
                        .push_bind(now_us)
                        .push_bind(&proxy.state);
                });
                insert.push(
                    " ON CONFLICT (id) DO UPDATE SET fleet = excluded.fleet, replica = excluded.replica,
                      instance = excluded.instance, updated_at_us = excluded.updated_at_us, state = excluded.state",
                );
                insert.build().persistent(false).execute(&mut *transaction).await.map_err(failed)?;
            }
            for proxy in changed {
                query(CHANGE_PROXY)
                    .bind(&proxy.id)
                    .bind(&proxy.fleet)
                    .bind(&proxy.replica)
                    .bind(&proxy.instance)
                    .bind(now_us)
                    .bind(&proxy.state)
                    .execute(&mut *transaction)
                    .await
                    .map_err(failed)?;
            }
            transaction.commit().await.map_err(failed)
        })
        .await
    }

    async fn proxies(&self) -> Result<Vec<ProxyRow>, StoreError> {
        within(CALL, async {
            let rows = query_as(row::PROXIES).fetch_all(&self.readers).await.map_err(failed)?;
            Ok(rows.into_iter().map(row::proxy).collect())
        })
        .await
    }

    async fn proxies_of(&self, ids: &[String]) -> Result<Vec<ProxyRow>, StoreError> {
        let wanted: std::collections::HashSet<&str> = ids.iter().map(String::as_str).collect();
        let mut rows = self.proxies().await?;
        rows.retain(|row| wanted.contains(&*row.id));
        Ok(rows)
    }

    async fn proxy_stamps(&self) -> Result<Vec<(String, Stamp)>, StoreError> {
        within(CALL, async {
            let rows = query_as(row::PROXY_STAMPS).fetch_all(&self.readers).await.map_err(failed)?;
            Ok(rows.into_iter().map(row::stamp).collect())
        })
        .await
    }

    fn proxy_hints(&self) -> Arc<ProxyHints> {
        self.proxy_hints.clone()
    }

    async fn renew_replica(&self, instance: &str, lease: Duration) -> Result<bool, StoreError> {
        within(CALL, async {
            let now_us = now_us();
            let since = now_us.saturating_sub(i64::try_from(lease.as_micros()).unwrap_or(i64::MAX));
            let done = query("UPDATE replicas SET alive_at_us = $2 WHERE instance = $1 AND alive_at_us > $3")
                .bind(instance)
                .bind(now_us)
                .bind(since)
                .execute(&self.writer)
                .await
                .map_err(failed)?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }

    async fn save_replica(&self, instance: &str, name: &str) -> Result<(), StoreError> {
        within(CALL, async {
            let now_us = now_us();
            let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
            query("DELETE FROM replicas WHERE alive_at_us < $1")
                .bind(now_us.saturating_sub(row::REPLICA_KEPT_US))
                .execute(&mut *transaction)
                .await
                .map_err(failed)?;
            query(
                "INSERT INTO replicas (instance, name, alive_at_us) VALUES ($1, $2, $3)
                 ON CONFLICT (instance) DO UPDATE SET name = excluded.name, alive_at_us = excluded.alive_at_us",
            )
            .bind(instance)
            .bind(name)
            .bind(now_us)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
            transaction.commit().await.map_err(failed)
        })
        .await
    }

    async fn replicas(&self) -> Result<Vec<ReplicaRow>, StoreError> {
        within(CALL, async {
            let rows = query_as("SELECT instance, name, $1 - alive_at_us FROM replicas ORDER BY instance")
                .bind(now_us())
                .fetch_all(&self.readers)
                .await
                .map_err(failed)?;
            Ok(rows.into_iter().map(row::replica).collect())
        })
        .await
    }

    async fn delete_replica(&self, instance: &str) -> Result<(), StoreError> {
        within(CALL, async {
            query(row::DELETE_REPLICA).bind(instance).execute(&self.writer).await.map_err(failed)?;
            Ok(())
        })
        .await
    }

    async fn delete_proxy(&self, id: &str) -> Result<bool, StoreError> {
        within(CALL, async {
            let done = query(row::DELETE_PROXY).bind(id).execute(&self.writer).await.map_err(failed)?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }

    async fn save_rollouts(&self, rollouts: &[RolloutRow]) -> Result<(), StoreError> {
        let rollouts = row::last_by_id(rollouts, |rollout| &rollout.id);
        within(CALL, async {
            let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
            for batch in rollouts.chunks(BATCH) {
                let mut insert = QueryBuilder::new("INSERT INTO rollouts (id, revision, fleet, state) ");
                insert.push_values(batch, |mut values, rollout| {
                    values
                        .push_bind(&rollout.id)
                        .push_bind(to_sql(rollout.revision))
                        .push_bind(&rollout.fleet)
                        .push_bind(&rollout.state);
                });
                insert.push(
                    " ON CONFLICT (id) DO UPDATE
                      SET revision = excluded.revision, fleet = excluded.fleet, state = excluded.state",
                );
                insert.build().persistent(false).execute(&mut *transaction).await.map_err(failed)?;
            }
            transaction.commit().await.map_err(failed)
        })
        .await
    }

    async fn rollouts(&self, limit: u32) -> Result<Vec<RolloutRow>, StoreError> {
        within(CALL, async {
            let rows = query_as(row::ROLLOUTS).bind(limit).fetch_all(&self.readers).await.map_err(failed)?;
            rows.into_iter().map(row::rollout).collect()
        })
        .await
    }

    async fn create_token(&self, token: &TokenRow) -> Result<bool, StoreError> {
        within(CALL, async {
            let done = query(row::CREATE_TOKEN)
                .bind(&token.name)
                .bind(token.role.as_str())
                .bind(&*token.hash)
                .bind(token.created_at_us)
                .execute(&self.writer)
                .await
                .map_err(failed)?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }

    async fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        within(CALL, async {
            let rows = query_as(row::TOKENS).fetch_all(&self.readers).await.map_err(failed)?;
            Ok(rows.into_iter().map(row::token).collect())
        })
        .await
    }

    async fn delete_token(&self, name: &str) -> Result<bool, StoreError> {
        within(CALL, async {
            let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
            let done =
                query(row::DELETE_TOKEN).bind(name).execute(&mut *transaction).await.map_err(failed)?;
            query(row::DELETE_SESSIONS_OF).bind(name).execute(&mut *transaction).await.map_err(failed)?;
            transaction.commit().await.map_err(failed)?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }

    async fn create_session(&self, session: &SessionRow) -> Result<(), StoreError> {
        within(CALL, async {
            query(row::CREATE_SESSION)
                .bind(&session.id)
                .bind(&session.hash[..])
                .bind(&session.token)
                .bind(session.token_source.as_str())
                .bind(&session.binding[..])
                .bind(session.created_at_us)
                .bind(session.last_used_at_us)
                .bind(session.expires_at_us)
                .execute(&self.writer)
                .await
                .map_err(failed)?;
            Ok(())
        })
        .await
    }

    async fn sessions(&self) -> Result<Vec<SessionRow>, StoreError> {
        within(CALL, async {
            let rows = query_as(row::SESSIONS).fetch_all(&self.readers).await.map_err(failed)?;
            Ok(rows.into_iter().filter_map(row::session).collect())
        })
        .await
    }

    async fn touch_sessions(&self, used: &[(String, i64)]) -> Result<(), StoreError> {
        within(CALL, async {
            let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
            for (id, at_us) in used {
                query("UPDATE sessions SET last_used_at_us = $2 WHERE id = $1 AND last_used_at_us < $2")
                    .bind(id)
                    .bind(at_us)
                    .execute(&mut *transaction)
                    .await
                    .map_err(failed)?;
            }
            transaction.commit().await.map_err(failed)
        })
        .await
    }

    async fn delete_sessions(&self, ids: &[String]) -> Result<(), StoreError> {
        within(CALL, async {
            let mut transaction = self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
            for id in ids {
                query("DELETE FROM sessions WHERE id = $1")
                    .bind(id)
                    .execute(&mut *transaction)
                    .await
                    .map_err(failed)?;
            }
            transaction.commit().await.map_err(failed)
        })
        .await
    }

    async fn audit(&self, before: Option<i64>, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        within(CALL, async {
            let rows = query_as(row::AUDIT)
                .bind(before.unwrap_or(i64::MAX))
                .bind(limit)
                .fetch_all(&self.readers)
                .await
                .map_err(failed)?;
            rows.into_iter().map(row::audit).collect()
        })
        .await
    }

    async fn append_audit(&self, actor: &str, action: &str, detail: &str) -> Result<(), StoreError> {
        within(CALL, async {
            query(row::NOTE)
                .bind(now_us())
                .bind(actor)
                .bind(action)
                .bind(detail)
                .execute(&self.writer)
                .await
                .map_err(failed)?;
            Ok(())
        })
        .await
    }

    async fn close(&self) -> Result<(), StoreError> {
        within(CALL, async {
            self.readers.close().await;
            let mut connection = self.writer.acquire().await.map_err(failed)?;
            // Into the file with all that is in the log beside it, and that emptied; the last connection deletes it.
            raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *connection).await.map_err(failed)?;
            drop(connection);
            self.writer.close().await;
            Ok(())
        })
        .await
    }

    async fn key_check(&self) -> Result<Option<Vec<u8>>, StoreError> {
        within(CALL, async {
            query_scalar(row::KEY_CHECK).fetch_optional(&self.readers).await.map_err(failed)
        })
        .await
    }

    async fn keep_key_check(&self, check: &[u8]) -> Result<Vec<u8>, StoreError> {
        within(CALL, async {
            query("INSERT INTO secrets (only_row, key_check) VALUES (1, $1) ON CONFLICT DO NOTHING")
                .bind(check)
                .execute(&self.writer)
                .await
                .map_err(failed)?;
            query_scalar(row::KEY_CHECK).fetch_one(&self.writer).await.map_err(failed)
        })
        .await
    }
}

async fn head(connection: &mut SqliteConnection) -> Result<RevisionId, StoreError> {
    let (epoch, revision): (String, i64) =
        query_as("SELECT epoch, revision FROM head").fetch_one(connection).await.map_err(failed)?;
    Ok(RevisionId { epoch: epoch.into(), number: row::number(revision)? })
}

/// Puts changes to be committed into the writer's temporary table, so that a handful of statements can do the rest,
/// however many they are.
async fn stage(changes: &[NewChange], connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let mut insert = QueryBuilder::new("INSERT INTO staged (kind, name, spec) ");
    insert.push_values(changes, |mut values, change| {
        values
            .push_bind(change.key.kind.as_str())
            .push_bind(change.key.name.as_str())
            .push_bind(change.spec.as_deref());
    });
    // Full batches and single changes come again and again; the lengths between would only crowd the cache.
    let again = matches!(changes.len(), 1 | BATCH);
    insert.build().persistent(again).execute(connection).await.map_err(failed)?;
    Ok(())
}

/// Prepares the writing connection: the table for [`stage`], which is emptied by the commit, and by its rollback.
const WRITER: &str = "
    PRAGMA temp_store = MEMORY;
    CREATE TEMP TABLE staged (kind TEXT NOT NULL, name TEXT NOT NULL, spec BLOB, PRIMARY KEY (kind, name)) STRICT;";

// The statements of a commit. $1 is its number, $2 its time, $3 its author.

const LOG_STAGED: &str = "
    INSERT INTO resource_versions (kind, name, revision, created_at_us, before, after)
    SELECT staged.kind, staged.name, $1, COALESCE(resources.created_at_us, $2), resources.spec, staged.spec
    FROM staged LEFT JOIN resources ON resources.kind = staged.kind AND resources.name = staged.name";

const PUT_STAGED: &str = "
    INSERT INTO resources (kind, name, spec, revision, created_at_us, updated_at_us, updated_by)
    SELECT kind, name, spec, $1, $2, $2, $3 FROM staged WHERE spec IS NOT NULL
    ON CONFLICT (kind, name) DO UPDATE SET spec = excluded.spec, revision = excluded.revision,
        updated_at_us = excluded.updated_at_us, updated_by = excluded.updated_by";

const DELETE_STAGED: &str =
    "DELETE FROM resources WHERE (kind, name) IN (SELECT kind, name FROM staged WHERE spec IS NULL)";

const CHANGE_PROXY: &str = "
    UPDATE proxies SET fleet = $2, updated_at_us = $5, state = $6
    WHERE id = $1 AND replica = $3 AND instance = $4";

const CLEAR_STAGED: &str = "DELETE FROM staged";

// Further, $4 is its message, $5 the number of its changes and $6 what was called.

const ADD_REVISION: &str = "
    INSERT INTO revisions (number, author, message, committed_at_us, change_count) VALUES ($1, $3, $4, $2, $5)";

const ADD_AUDIT: &str =
    "INSERT INTO audit (at_us, actor, action, detail, revision) VALUES ($2, $3, $6, $4, $1)";

/// True if a URL names a database of SQLite without a file.
pub(super) fn is_in_memory(url: &str) -> bool {
    url.contains(":memory:") || url.contains("mode=memory")
}

/// The file of a URL, if it is one of SQLite that names one.
pub(super) fn file_of(url: &str) -> Option<PathBuf> {
    let options = url.starts_with("sqlite:").then(|| SqliteConnectOptions::from_str(url).ok())??;
    Some(options.get_filename().to_owned()).filter(|file| !file.as_os_str().is_empty())
}

/// Makes a database file and its directory, for their owner alone, and takes the file and what SQLite keeps beside it from
/// others: they hold what the configuration keeps secret. SQLite gives the files that it makes the mode of the first.
pub(super) fn make_private(file: &Path) -> Result<(), StoreError> {
    let broken = |what: String, error: std::io::Error| StoreError::Broken(format!("{what}: {error}"));
    if let Some(directory) = file.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(directory).map_err(|error| {
            broken(format!("the directory {} cannot be made", directory.display()), error)
        })?;
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
        Ok(_) => {}
        // Whatever is there, SQLite says what is wrong with it.
        Err(_) if file.exists() => {}
        Err(error) => return Err(broken(format!("{} cannot be made", file.display()), error)),
    }
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = file.as_os_str().to_owned();
        name.push(suffix);
        let path = PathBuf::from(name);
        let Ok(metadata) = path.metadata() else { continue };
        if !metadata.is_file() || metadata.permissions().mode() & 0o077 == 0 {
            continue;
        }
        if let Err(error) = std::fs::set_permissions(&path, Permissions::from_mode(0o600)) {
            tracing::warn!(path = %path.display(), %error, "other users may read the database file, and its permissions cannot be changed");
        }
    }
    Ok(())
}

/// Brings the file's tables up to date, in one transaction.
async fn migrate(options: &SqliteConnectOptions) -> Result<(), StoreError> {
    let file = options.get_filename().display();
    let mut connection = options.connect().await.map_err(|error| match code(&error) {
        Some(NOT_A_DATABASE) => StoreError::Broken(format!("{file} is not a SQLite database")),
        Some(CANNOT_OPEN) => StoreError::Broken(format!("{file} cannot be opened: {error}")),
        _ => failed(error),
    })?;
    let mut transaction =
        connection.begin_with("BEGIN IMMEDIATE").await.map_err(|error| match code(&error) {
            Some(NOT_A_DATABASE) => StoreError::Broken(format!("{file} is not a SQLite database")),
            _ => failed(error),
        })?;
    let (application, version, tables): (i64, i64, i64) = query_as(
        "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version),
                (SELECT COUNT(*) FROM sqlite_schema)",
    )
    .fetch_one(&mut *transaction)
    .await
    .map_err(failed)?;
    let new = application == 0 && version == 0 && tables == 0;
    if !new && application != APPLICATION_ID {
        return Err(StoreError::Broken(format!("{file} is a SQLite database of another program")));
    }
    let known = MIGRATIONS.len();
    let applied = usize::try_from(version).unwrap_or(usize::MAX);
    if applied > known {
        // Tables that do not say are not to be used.
        let oldest: Option<i64> = query_scalar(row::OLDEST_SCHEMA).fetch_one(&mut *transaction).await.ok();
        row::check_newer_schema(version, known, oldest)
            .map_err(|message| StoreError::Broken(format!("{file} {message}")))?;
    }
    for migration in MIGRATIONS.get(applied..).unwrap_or_default() {
        raw_sql(*migration).execute(&mut *transaction).await.map_err(failed)?;
    }
    if applied < known {
        let mark = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {known}");
        raw_sql(AssertSqlSafe(mark)).execute(&mut *transaction).await.map_err(failed)?;
    }
    query("INSERT INTO head (only_row, epoch, revision) VALUES (1, $1, 0) ON CONFLICT DO NOTHING")
        .bind(new_epoch())
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    transaction.commit().await.map_err(failed)?;

    // Stays with the file; only now, for a file of another program is to be left as it is.
    raw_sql("PRAGMA journal_mode = WAL").execute(&mut connection).await.map_err(failed)?;
    connection.close().await.map_err(failed)
}

/// Schema version N is made by the first N.
const MIGRATIONS: [&str; 8] = [
    include_str!("../../../migrations/sqlite/0001_store.sql"),
    include_str!("../../../migrations/sqlite/0002_secrets.sql"),
    include_str!("../../../migrations/sqlite/0003_sessions.sql"),
    include_str!("../../../migrations/sqlite/0004_replicas.sql"),
    include_str!("../../../migrations/sqlite/0005_fleet_targets.sql"),
    include_str!("../../../migrations/sqlite/0006_blobs.sql"),
    include_str!("../../../migrations/sqlite/0007_purges.sql"),
    include_str!("../../../migrations/sqlite/0008_stats.sql"),
];

/// The mark of this program's files: "Sgbx".
const APPLICATION_ID: i64 = 0x5367_6278;

/// How long SQLite waits for another process's lock: less than a call, so that the answer says what was the matter.
const BUSY_TIMEOUT: Duration = Duration::from_secs(4);
const READERS: u32 = 4;
/// Rows that a connection's thread reads ahead.
const ROW_BUFFER: usize = 1_000;
/// Rows of one INSERT: five columns of it are well below SQLite's 32,766 parameters.
const BATCH: usize = 1_000;
