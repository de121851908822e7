//! Brings the tables of PostgreSQL up to date.

use sqlx::postgres::PgConnection;
use sqlx::{Connection, query, query_scalar, raw_sql};

use super::interface::StoreError;
use super::postgres_error::failed;
use super::row;
use super::row::new_epoch;

/// Brings the tables up to date, in one transaction. Of several control planes that start at once one does it, and
/// the others wait.
pub(super) async fn migrate(connection: &mut PgConnection) -> Result<(), StoreError> {
    let mut transaction = connection.begin().await.map_err(failed)?;
    query("SELECT pg_advisory_xact_lock($1)")
        .bind(MIGRATION_LOCK)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    // Looked for first, so that a role that may not create tables can still use them.
    let migrated: bool = query_scalar("SELECT to_regclass('signalbox_schema') IS NOT NULL")
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed)?;
    if !migrated {
        raw_sql(
            "CREATE TABLE signalbox_schema (version integer PRIMARY KEY, applied_at timestamptz NOT NULL)",
        )
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    }
    let version: i32 = query_scalar("SELECT COALESCE(MAX(version), 0) FROM signalbox_schema")
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed)?;
    let known = MIGRATIONS.len();
    let applied = usize::try_from(version).unwrap_or(usize::MAX);
    if applied > known {
        // Tables that do not say are not to be used. Looked for first, for an error would end the transaction.
        let says: bool = query_scalar("SELECT to_regclass('schema_compatibility') IS NOT NULL")
            .fetch_one(&mut *transaction)
            .await
            .map_err(failed)?;
        let oldest: Option<i64> = if says {
            query_scalar(row::OLDEST_SCHEMA).fetch_optional(&mut *transaction).await.map_err(failed)?
        } else {
            None
        };
        row::check_newer_schema(version.into(), known, oldest)
            .map_err(|message| StoreError::Broken(format!("it {message}")))?;
    }
    for (migration, version) in MIGRATIONS.iter().zip(1_i32..).skip(applied) {
        raw_sql(*migration).execute(&mut *transaction).await.map_err(failed)?;
        query("INSERT INTO signalbox_schema (version, applied_at) VALUES ($1, now())")
            .bind(version)
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
    }
    query("INSERT INTO head (epoch, revision) VALUES ($1, 0) ON CONFLICT DO NOTHING")
        .bind(new_epoch())
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    transaction.commit().await.map_err(failed)
}

/// Schema version N is made by the first N.
const MIGRATIONS: [&str; 8] = [
    include_str!("../../../migrations/postgres/0001_store.sql"),
    include_str!("../../../migrations/postgres/0002_secrets.sql"),
    include_str!("../../../migrations/postgres/0003_sessions.sql"),
    include_str!("../../../migrations/postgres/0004_replicas.sql"),
    include_str!("../../../migrations/postgres/0005_fleet_targets.sql"),
    include_str!("../../../migrations/postgres/0006_blobs.sql"),
    include_str!("../../../migrations/postgres/0007_purges.sql"),
    include_str!("../../../migrations/postgres/0008_stats.sql"),
];

/// "signalbx"
const MIGRATION_LOCK: i64 = 0x7369_676e_616c_6278;
