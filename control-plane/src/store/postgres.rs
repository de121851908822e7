//! The store in a PostgreSQL database, which several control planes share.
//!
//! The connections keep prepared statements, settings and a LISTEN, so a pooler in between must be in session mode, which is checked at the
//! start.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt;
use signalbox_config::RevisionId;
use sqlx::postgres::{PgConnection, PgExecutor, PgPool, PgPoolOptions};
use sqlx::{Connection, query, query_as, query_scalar, raw_sql};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::access_row::{AuditRow, SessionRow, TokenRow};
use super::deadline::{CALL, LONG_CALL, deadline_for, within};
use super::hint::ProxyHints;
use super::hosts::Hosts;
use super::interface::{Held, HeldBy, Store, StoreError};
use super::pooler::require_sessions;
use super::postgres_error::failed;
use super::postgres_listener::{ACCESS_CHANNEL, ACQUIRE_TIMEOUT, Hints, listen};
use super::postgres_migrations::migrate;
use super::proxy_row::{ProxyRow, ProxyRows, ReplicaRow, RolloutRow, Stamp};
use super::revision::{Committed, Loaded, NewRevision, Revision, RevisionSummary, StoredSet};
use super::rollout_writes::commit_in_postgres;
use super::row;
use super::row::{new_epoch, to_sql};
use crate::clock::now_us;

/// The store in a PostgreSQL database.
pub(super) struct Postgres {
    pool: PgPool,
    /// How to read the head: [`HEAD_OF_CLUSTER`] where that is allowed, else [`HEAD`].
    head: &'static str,
    hints: Hints,
    /// As it was when the head was read last.
    read_only: AtomicBool,
    listener: AbortHandle,
}

impl Postgres {
    /// Opens the database of a URL.
    pub(super) async fn open(url: &str) -> Result<Self, StoreError> {
        let hosts = Arc::new(Hosts::parse(url)?);
        // A connection of its own, for a pool would answer that it waited in vain instead of why.
        let head = within(LONG_CALL, async {
            let mut connection = hosts.connect().await?;
            require_sessions(&mut connection, &hosts).await?;
            migrate(&mut connection).await?;
            // The cluster's identity may be withheld by its administrator, or not exist with a database that
            // only speaks like PostgreSQL. Then the stored epoch has to do.
            let head = match query(HEAD_OF_CLUSTER).fetch_one(&mut connection).await {
                Ok(_) => HEAD_OF_CLUSTER,
                Err(sqlx::Error::Database(error)) if error.code().is_some_and(|code| WITHHELD.contains(&&*code)) => {
                    tracing::warn!(%error, "the cluster's identity cannot be read: a failover that loses commits will not be noticed");
                    HEAD
                }
                Err(error) => return Err(failed(error)),
            };
            connection.close().await.map_err(failed)?;
            Ok(head)
        })
        .await?;

        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // Instead of a round trip before each call, one after a pause.
            .test_before_acquire(false)
            .before_acquire({
                let hosts = hosts.clone();
                move |connection, meta| {
                    let hosts = hosts.clone();
                    Box::pin(async move {
                        if hosts.is_outdated(meta.age) {
                            return Ok(false);
                        }
                        if meta.idle_for >= TEST_AFTER {
                            return hosts.is_fit(connection).await;
                        }
                        Ok(true)
                    })
                }
            })
            .after_connect(|connection, _| {
                Box::pin(async move { raw_sql(SETTINGS).execute(connection).await.map(drop) })
            })
            // A connection whose call ran out of time is tested before it is used again, but not for ever: a server
            // that does not answer would keep it, and then all of them.
            .after_release(|connection, _| {
                Box::pin(async move {
                    Ok(matches!(timeout(ACQUIRE_TIMEOUT, connection.ping()).await, Ok(Ok(()))))
                })
            })
            .connect_lazy_with(hosts.current());
        let hints = Hints::default();
        let listener = tokio::spawn(listen(hosts, pool.clone(), hints.clone())).abort_handle();
        Ok(Self { pool, head, hints, read_only: AtomicBool::new(false), listener })
    }

    pub(super) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Tells other control planes that tokens or sessions have changed. It is only a hint, so failing is no matter.
    async fn notify_access(&self) {
        let told = query("SELECT pg_notify($1, '')").bind(ACCESS_CHANNEL).execute(&self.pool).await;
        if let Err(error) = told {
            tracing::debug!(%error, "the other control planes were not notified of a change of tokens; they poll for it");
        }
    }

    async fn head_on(&self, connection: &mut PgConnection) -> Result<RevisionId, StoreError> {
        let (epoch, revision, read_only): (String, i64, bool) =
            query_as(self.head).fetch_one(connection).await.map_err(failed)?;
        self.read_only.store(read_only, Ordering::Relaxed);
        Ok(RevisionId { epoch: epoch.into(), number: row::number(revision)? })
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
                .fetch_all(&self.pool)
                .await
                .map_err(failed)
        })
        .await?;
        row::revisions(summaries, rows)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

#[async_trait]
impl Store for Postgres {
    async fn head(&self) -> Result<RevisionId, StoreError> {
        within(CALL, async {
            let mut connection = self.pool.acquire().await.map_err(failed)?;
            self.head_on(&mut connection).await
        })
        .await
    }

    fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed)
    }

    async fn load(&self) -> Result<Loaded, StoreError> {
        within(LONG_CALL, async {
            let mut transaction = self
                .pool
                .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                .await
                .map_err(failed)?;
            let head = self.head_on(&mut transaction).await?;
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
            drop(rows);
            transaction.commit().await.map_err(failed)?;
            let StoredSet { resources, unknown } = resources.finish();
            Ok(Loaded { head, committed_at_us, resources, unknown })
        })
        .await
    }

    async fn revisions_after(&self, number: u64, limit: u32) -> Result<Vec<Revision>, StoreError> {
        let page = within(CALL, async {
            let rows = query_as(row::REVISIONS_AFTER)
                .bind(to_sql(number))
                .bind(i64::from(limit))
                .fetch_all(&self.pool)
                .await
                .map_err(failed)?;
            row::readable_page(rows)
        })
        .await?;
        self.with_changes(page).await
    }

    async fn commit(&self, base: u64, revision: NewRevision) -> Result<Committed, StoreError> {
        within(deadline_for(revision.changes.len()), async {
            if revision.pinned.is_empty() && revision.urgent.is_none() {
                // One statement is a transaction, and one round trip.
                return commit_on(&self.pool, base, &revision).await;
            }
            let mut transaction = self.pool.begin().await.map_err(failed)?;
            let committed = commit_on(&mut *transaction, base, &revision).await?;
            commit_in_postgres(&mut transaction, committed.number, &revision).await?;
            transaction.commit().await.map_err(failed)?;
            Ok(committed)
        })
        .await
    }

    async fn hold(&self) -> Result<Held, StoreError> {
        within(CALL, async {
            let mut transaction = self.pool.begin().await.map_err(failed)?;
            query("SELECT revision FROM head FOR UPDATE").execute(&mut *transaction).await.map_err(failed)?;
            Ok(Held(HeldBy::Postgres(transaction)))
        })
        .await
    }

    async fn commit_held(
        &self,
        held: Held,
        base: u64,
        revision: NewRevision,
    ) -> Result<Committed, StoreError> {
        let HeldBy::Postgres(mut transaction) = held.0 else { return Err(HeldBy::of_another()) };
        within(deadline_for(revision.changes.len()), async move {
            let committed = commit_on(&mut *transaction, base, &revision).await?;
            commit_in_postgres(&mut transaction, committed.number, &revision).await?;
            transaction.commit().await.map_err(failed)?;
            Ok(committed)
        })
        .await
    }

    async fn revisions(&self, before: Option<u64>, limit: u32) -> Result<Vec<RevisionSummary>, StoreError> {
        within(CALL, async {
            let rows = query_as(row::REVISIONS_BEFORE)
                .bind(before.map_or(i64::MAX, to_sql))
                .bind(i64::from(limit))
                .fetch_all(&self.pool)
                .await
                .map_err(failed)?;
            rows.into_iter().map(row::summary).collect()
        })
        .await
    }

    async fn revision(&self, number: u64) -> Result<Option<Revision>, StoreError> {
        let found = within(CALL, async {
            let found = query_as(row::REVISION).bind(to_sql(number)).fetch_optional(&self.pool).await;
            found.map_err(failed)?.map(row::summary).transpose()
        })
        .await?;
        Ok(self.with_changes(found.into_iter().collect()).await?.pop())
    }

    async fn set_at(&self, number: u64) -> Result<Option<StoredSet>, StoreError> {
        within(LONG_CALL, async {
            let mut connection = self.pool.acquire().await.map_err(failed)?;
            // Revisions up to the head never change, so there is nothing to be kept consistent with.
            if number > self.head_on(&mut connection).await?.number {
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
        self.hints.revisions.clone()
    }

    fn access_hint(&self) -> Arc<Notify> {
        self.hints.access.clone()
    }

    fn purge_hint(&self) -> Arc<Notify> {
        self.hints.purges.clone()
    }

    async fn new_epoch(&self) -> Result<RevisionId, StoreError> {
        within(CALL, async {
            let mut connection = self.pool.acquire().await.map_err(failed)?;
            query(NEW_EPOCH).bind(new_epoch()).fetch_one(&mut *connection).await.map_err(failed)?;
            self.head_on(&mut connection).await
        })
        .await
    }

    async fn save_proxies(&self, rows: &ProxyRows) -> Result<(), StoreError> {
        let taken = row::last_by_id(&rows.taken, |proxy| &proxy.id).into_iter().map(|proxy| (proxy, true));
        let changed =
            row::last_by_id(&rows.changed, |proxy| &proxy.id).into_iter().map(|proxy| (proxy, false));
        let all: Vec<_> = taken.chain(changed).collect();
        if all.is_empty() {
            return Ok(());
        }
        within(CALL, async {
            query(SAVE_PROXIES)
                .bind(all.iter().map(|(proxy, _)| &*proxy.id).collect::<Vec<_>>())
                .bind(all.iter().map(|(proxy, _)| &*proxy.fleet).collect::<Vec<_>>())
                .bind(all.iter().map(|(proxy, _)| &*proxy.replica).collect::<Vec<_>>())
                .bind(all.iter().map(|(proxy, _)| &*proxy.instance).collect::<Vec<_>>())
                .bind(all.iter().map(|(proxy, _)| &*proxy.state).collect::<Vec<_>>())
                .bind(all.iter().map(|(_, takes)| *takes).collect::<Vec<_>>())
                .bind(rows.texts())
                .execute(&self.pool)
                .await
                .map_err(failed)?;
            Ok(())
        })
        .await
    }

    async fn proxies(&self) -> Result<Vec<ProxyRow>, StoreError> {
        within(CALL, async {
            let rows = query_as(row::PROXIES).fetch_all(&self.pool).await.map_err(failed)?;
            Ok(rows.into_iter().map(row::proxy).collect())
        })
        .await
    }

    async fn proxies_of(&self, ids: &[String]) -> Result<Vec<ProxyRow>, StoreError> {
        within(CALL, async {
            let rows = query_as(PROXIES_OF).bind(ids).fetch_all(&self.pool).await.map_err(failed)?;
            Ok(rows.into_iter().map(row::proxy).collect())
        })
        .await
    }

    async fn proxy_stamps(&self) -> Result<Vec<(String, Stamp)>, StoreError> {
        within(CALL, async {
            let rows = query_as(row::PROXY_STAMPS).fetch_all(&self.pool).await.map_err(failed)?;
            Ok(rows.into_iter().map(row::stamp).collect())
        })
        .await
    }

    fn proxy_hints(&self) -> Arc<ProxyHints> {
        self.hints.proxies.clone()
    }

    async fn renew_replica(&self, instance: &str, lease: Duration) -> Result<bool, StoreError> {
        within(CALL, async {
            let lease_us = i64::try_from(lease.as_micros()).unwrap_or(i64::MAX);
            let done = query(RENEW_REPLICA)
                .bind(instance)
                .bind(lease_us)
                .execute(&self.pool)
                .await
                .map_err(failed)?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }

    async fn save_replica(&self, instance: &str, name: &str) -> Result<(), StoreError> {
        within(CALL, async {
            query(SAVE_REPLICA)
                .bind(instance)
                .bind(name)
                .bind(row::REPLICA_KEPT_US)
                .execute(&self.pool)
                .await
                .map_err(failed)?;
            Ok(())
        })
        .await
    }

    async fn replicas(&self) -> Result<Vec<ReplicaRow>, StoreError> {
        within(CALL, async {
            let rows = query_as(REPLICAS).fetch_all(&self.pool).await.map_err(failed)?;
            Ok(rows.into_iter().map(row::replica).collect())
        })
        .await
    }

    async fn delete_replica(&self, instance: &str) -> Result<(), StoreError> {
        within(CALL, async {
            query(row::DELETE_REPLICA).bind(instance).execute(&self.pool).await.map_err(failed)?;
            Ok(())
        })
        .await
    }

    async fn delete_proxy(&self, id: &str) -> Result<bool, StoreError> {
        within(CALL, async {
            let done = query(row::DELETE_PROXY).bind(id).execute(&self.pool).await.map_err(failed)?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }

    async fn save_rollouts(&self, rollouts: &[RolloutRow]) -> Result<(), StoreError> {
        let rollouts = row::last_by_id(rollouts, |rollout| &rollout.id);
        within(CALL, async {
            query(SAVE_ROLLOUTS)
                .bind(rollouts.iter().map(|rollout| &*rollout.id).collect::<Vec<_>>())
                .bind(rollouts.iter().map(|rollout| to_sql(rollout.revision)).collect::<Vec<_>>())
                .bind(rollouts.iter().map(|rollout| &*rollout.fleet).collect::<Vec<_>>())
                .bind(rollouts.iter().map(|rollout| &*rollout.state).collect::<Vec<_>>())
                .execute(&self.pool)
                .await
                .map_err(failed)?;
            Ok(())
        })
        .await
    }

    async fn rollouts(&self, limit: u32) -> Result<Vec<RolloutRow>, StoreError> {
        within(CALL, async {
            let rows =
                query_as(row::ROLLOUTS).bind(i64::from(limit)).fetch_all(&self.pool).await.map_err(failed)?;
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
                .execute(&self.pool)
                .await
                .map_err(failed)?;
            self.notify_access().await;
            Ok(done.rows_affected() > 0)
        })
        .await
    }

    async fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        within(CALL, async {
            let rows = query_as(row::TOKENS).fetch_all(&self.pool).await.map_err(failed)?;
            Ok(rows.into_iter().map(row::token).collect())
        })
        .await
    }

    async fn delete_token(&self, name: &str) -> Result<bool, StoreError> {
        within(CALL, async {
            let mut transaction = self.pool.begin().await.map_err(failed)?;
            let done =
                query(row::DELETE_TOKEN).bind(name).execute(&mut *transaction).await.map_err(failed)?;
            query(row::DELETE_SESSIONS_OF).bind(name).execute(&mut *transaction).await.map_err(failed)?;
            transaction.commit().await.map_err(failed)?;
            self.notify_access().await;
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
                .execute(&self.pool)
                .await
                .map_err(failed)?;
            self.notify_access().await;
            Ok(())
        })
        .await
    }

    async fn sessions(&self) -> Result<Vec<SessionRow>, StoreError> {
        within(CALL, async {
            let rows = query_as(row::SESSIONS).fetch_all(&self.pool).await.map_err(failed)?;
            Ok(rows.into_iter().filter_map(row::session).collect())
        })
        .await
    }

    async fn touch_sessions(&self, used: &[(String, i64)]) -> Result<(), StoreError> {
        within(CALL, async {
            query(TOUCH_SESSIONS)
                .bind(used.iter().map(|(id, _)| &**id).collect::<Vec<_>>())
                .bind(used.iter().map(|(_, at_us)| *at_us).collect::<Vec<_>>())
                .execute(&self.pool)
                .await
                .map_err(failed)?;
            Ok(())
        })
        .await
    }

    async fn delete_sessions(&self, ids: &[String]) -> Result<(), StoreError> {
        within(CALL, async {
            query("DELETE FROM sessions WHERE id = ANY($1)")
                .bind(ids)
                .execute(&self.pool)
                .await
                .map_err(failed)?;
            self.notify_access().await;
            Ok(())
        })
        .await
    }

    async fn audit(&self, before: Option<i64>, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        within(CALL, async {
            let rows = query_as(row::AUDIT)
                .bind(before.unwrap_or(i64::MAX))
                .bind(i64::from(limit))
                .fetch_all(&self.pool)
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
                .execute(&self.pool)
                .await
                .map_err(failed)?;
            Ok(())
        })
        .await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.listener.abort();
        within(CALL, async {
            self.pool.close().await;
            Ok(())
        })
        .await
    }

    async fn key_check(&self) -> Result<Option<Vec<u8>>, StoreError> {
        within(CALL, async { query_scalar(row::KEY_CHECK).fetch_optional(&self.pool).await.map_err(failed) })
            .await
    }

    async fn keep_key_check(&self, check: &[u8]) -> Result<Vec<u8>, StoreError> {
        within(CALL, async {
            query("INSERT INTO secrets (key_check) VALUES ($1) ON CONFLICT DO NOTHING")
                .bind(check)
                .execute(&self.pool)
                .await
                .map_err(failed)?;
            query_scalar(row::KEY_CHECK).fetch_one(&self.pool).await.map_err(failed)
        })
        .await
    }
}

async fn commit_on(
    database: impl PgExecutor<'_>,
    base: u64,
    revision: &NewRevision,
) -> Result<Committed, StoreError> {
    let kinds: Vec<_> = revision.changes.iter().map(|change| change.key.kind.as_str()).collect();
    let names: Vec<_> = revision.changes.iter().map(|change| change.key.name.as_str()).collect();
    let specs: Vec<_> = revision.changes.iter().map(|change| change.spec.as_deref()).collect();
    let committed_at_us = now_us();
    let number: Option<i64> = query_scalar(COMMIT)
        .bind(to_sql(base))
        .bind(kinds)
        .bind(names)
        .bind(specs)
        .bind(committed_at_us)
        .bind(&*revision.author)
        .bind(&revision.message)
        .bind(&revision.action)
        .bind(to_sql(revision.changes.len() as u64))
        .fetch_optional(database)
        .await
        .map_err(failed)?;
    let number = number.ok_or(StoreError::Stale)?;
    Ok(Committed { number: row::number(number)?, committed_at_us })
}

/// A commit, in one statement, which is a transaction and one round trip however many its changes.
///
/// Everything else takes its rows from `next`, so nothing is written where the head is not the base, and nothing
/// before the head's row is locked. All parts see the database as it was when the statement began. That is the state
/// of the base: the head was the base in it, or `next` would be empty, and until the lock was held nobody else
/// committed, or `next` would be empty as well.
const COMMIT: &str = "
    WITH next AS (
        UPDATE head SET revision = revision + 1 WHERE revision = $1 RETURNING revision
    ), change AS (
        SELECT next.revision, new.kind, new.name, new.spec, old.spec AS before,
               COALESCE(old.created_at_us, $5) AS created_at_us
        FROM next
        CROSS JOIN UNNEST($2::text[], $3::text[], $4::bytea[]) AS new (kind, name, spec)
        LEFT JOIN resources AS old ON old.kind = new.kind AND old.name = new.name
    ), logged AS (
        INSERT INTO resource_versions (kind, name, revision, created_at_us, before, after)
        SELECT kind, name, revision, created_at_us, before, spec FROM change
    ), put AS (
        INSERT INTO resources (kind, name, spec, revision, created_at_us, updated_at_us, updated_by)
        SELECT kind, name, spec, revision, $5, $5, $6 FROM change WHERE spec IS NOT NULL
        ON CONFLICT (kind, name) DO UPDATE SET spec = excluded.spec, revision = excluded.revision,
            updated_at_us = excluded.updated_at_us, updated_by = excluded.updated_by
    ), deleted AS (
        DELETE FROM resources USING change
        WHERE change.spec IS NULL AND resources.kind = change.kind AND resources.name = change.name
    ), added AS (
        INSERT INTO revisions (number, author, message, committed_at_us, change_count)
        SELECT revision, $6, $7, $5, $9 FROM next
    ), audited AS (
        INSERT INTO audit (at_us, actor, action, detail, revision)
        SELECT $5, $6, $8, $7, revision FROM next
    )
    SELECT revision, pg_notify('signalbox_revision', revision::text) FROM next";

const TOUCH_SESSIONS: &str = "
    UPDATE sessions SET last_used_at_us = used.at_us
    FROM UNNEST($1::text[], $2::bigint[]) AS used (id, at_us)
    WHERE sessions.id = used.id AND sessions.last_used_at_us < used.at_us";

/// The third column: the database takes no writes. A standby does not get that far.
const HEAD: &str = "
    SELECT epoch, revision, COALESCE(current_setting('default_transaction_read_only', true) = 'on', false)
    FROM head";

/// The epoch is the stored one, the cluster's identity and its timeline. The latter is taken from the log that is
/// written now: a promoted standby has its new timeline there at once, in its control file only after a checkpoint.
const HEAD_OF_CLUSTER: &str = "
    SELECT epoch || '-' || (SELECT system_identifier FROM pg_control_system())
                 || '-' || ltrim(substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), '0'), revision,
           COALESCE(current_setting('default_transaction_read_only', true) = 'on', false)
    FROM head";

const NEW_EPOCH: &str = "
    WITH changed AS (UPDATE head SET epoch = $1 RETURNING revision)
    SELECT pg_notify('signalbox_revision', revision::text) FROM changed";

/// In one statement, which is one round trip. Both parts take their rows in the order of their ids.
const SAVE_PROXIES: &str = "
    WITH new AS (
        SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bool[])
            AS new (id, fleet, replica, instance, state, takes)
    ), taken AS (
        INSERT INTO proxies (id, fleet, replica, instance, updated_at_us, state)
        SELECT id, fleet, replica, instance, (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint, state
        FROM new WHERE takes
        ON CONFLICT (id) DO UPDATE SET fleet = excluded.fleet, replica = excluded.replica,
            instance = excluded.instance, updated_at_us = excluded.updated_at_us, state = excluded.state
    ), changed AS (
        UPDATE proxies SET fleet = new.fleet, state = new.state,
            updated_at_us = (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint
        FROM new
        WHERE NOT new.takes AND proxies.id = new.id
            AND proxies.replica = new.replica AND proxies.instance = new.instance
    )
    SELECT pg_notify('signalbox_proxies', text) FROM UNNEST($7::text[]) AS text";

const PROXIES_OF: &str = "
    SELECT id, fleet, replica, instance, updated_at_us, state FROM proxies WHERE id = ANY($1) ORDER BY id";

const RENEW_REPLICA: &str = "
    UPDATE replicas SET alive_at_us = (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint
    WHERE instance = $1 AND alive_at_us > (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint - $2";

const SAVE_REPLICA: &str = "
    WITH old AS (
        DELETE FROM replicas
        WHERE alive_at_us < (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint - $3 AND instance <> $1
    )
    INSERT INTO replicas (instance, name, alive_at_us)
    VALUES ($1, $2, (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint)
    ON CONFLICT (instance) DO UPDATE SET name = excluded.name, alive_at_us = excluded.alive_at_us";

const REPLICAS: &str = "
    SELECT instance, name, (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint - alive_at_us
    FROM replicas ORDER BY instance";

const SAVE_ROLLOUTS: &str = "
    INSERT INTO rollouts (id, revision, fleet, state)
    SELECT * FROM UNNEST($1::text[], $2::bigint[], $3::text[], $4::text[])
    ON CONFLICT (id) DO UPDATE SET revision = excluded.revision, fleet = excluded.fleet, state = excluded.state";

/// The settings of every connection. A commit that was answered is there after a crash. The server's own limits end what a control plane left behind that hangs or lost
/// its network: it must not hold the head's lock. Plans are made anew for each call: one that was made when the
/// tables were small reads all of them for every commit once they are large (20 ms with 100,000 resources).
const SETTINGS: &str = "
    SET default_transaction_isolation = 'read committed';
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
    SET plan_cache_mode = force_custom_plan;
    SET statement_timeout = '60s';
    SET lock_timeout = '4s';
    SET idle_in_transaction_session_timeout = '10s'";

/// The errors that say that the cluster's identity is withheld, or not known: no privilege, no such function, no such feature.
const WITHHELD: [&str; 3] = ["42501", "42883", "0A000"];

const CONNECTIONS: u32 = 8;
/// A connection that was idle for so long is tested before it is used.
const TEST_AFTER: Duration = Duration::from_secs(1);
