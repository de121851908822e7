//! The part of both stores that has the purges of cached responses.

use async_trait::async_trait;
use sqlx::{query, query_as, query_scalar};

use super::deadline::{CALL, within};
use super::interface::{PurgeStore, StoreError};
use super::postgres::Postgres;
use super::purge_row::PurgeRow;
use super::row::{number, to_sql};
use super::sqlite::Sqlite;
use super::{postgres_error, sqlite_error};

/// The most purges that are kept.
pub const MAX_PURGES: usize = 1000;

const AFTER: &str = "SELECT number, purge FROM purges WHERE number > $1 ORDER BY number";
const LAST: &str = "SELECT COALESCE(MAX(number), 0) FROM purges";
const TRIM: &str =
    "DELETE FROM purges WHERE number <= (SELECT number FROM purges ORDER BY number DESC LIMIT 1 OFFSET 1000)";

/// SQLite has one writer. PostgreSQL must make numbers visible in their order, so that nobody who reads the last one misses one before.
mod sqlite_sql {
    pub(super) const LOCK: Option<&str> = None;
    pub(super) const ADD: &str = "INSERT INTO purges (number, purge, created_by)
        SELECT MAX($1, COALESCE(MAX(number), 0) + 1), $2, $3 FROM purges RETURNING number";
    pub(super) const NOTIFY: Option<&str> = None;
}

mod postgres_sql {
    pub(super) const LOCK: Option<&str> = Some("LOCK TABLE purges IN SHARE ROW EXCLUSIVE MODE");
    pub(super) const ADD: &str = "INSERT INTO purges (number, purge, created_by)
        SELECT GREATEST($1, COALESCE(MAX(number), 0) + 1), $2, $3 FROM purges RETURNING number";
    pub(super) const NOTIFY: Option<&str> = Some("SELECT pg_notify('signalbox_purges', '')");
}

macro_rules! purge_store {
    ($store:ty, $sql:ident, writes: $writes:ident, reads: $reads:ident, $failed:path) => {
        #[async_trait]
        impl PurgeStore for $store {
            async fn add_purge(&self, at_us: i64, purge: &str, created_by: &str) -> Result<u64, StoreError> {
                within(CALL, async {
                    let mut transaction = self.$writes().begin().await.map_err($failed)?;
                    if let Some(lock) = $sql::LOCK {
                        query(lock).execute(&mut *transaction).await.map_err($failed)?;
                    }
                    let added: i64 = query_scalar($sql::ADD)
                        .bind(at_us)
                        .bind(purge)
                        .bind(created_by)
                        .fetch_one(&mut *transaction)
                        .await
                        .map_err($failed)?;
                    query(TRIM).execute(&mut *transaction).await.map_err($failed)?;
                    if let Some(notify) = $sql::NOTIFY {
                        query(notify).execute(&mut *transaction).await.map_err($failed)?;
                    }
                    transaction.commit().await.map_err($failed)?;
                    number(added)
                })
                .await
            }

            async fn last_purge(&self) -> Result<u64, StoreError> {
                within(CALL, async {
                    number(query_scalar(LAST).fetch_one(self.$reads()).await.map_err($failed)?)
                })
                .await
            }

            async fn purges_after(&self, after: u64) -> Result<Vec<PurgeRow>, StoreError> {
                within(CALL, async {
                    let rows: Vec<(i64, String)> = query_as(AFTER)
                        .bind(to_sql(after))
                        .fetch_all(self.$reads())
                        .await
                        .map_err($failed)?;
                    rows.into_iter()
                        .map(|(at, purge)| Ok(PurgeRow { number: number(at)?, purge: purge.into() }))
                        .collect()
                })
                .await
            }
        }
    };
}

purge_store!(Sqlite, sqlite_sql, writes: writer, reads: readers, sqlite_error::failed);
purge_store!(Postgres, postgres_sql, writes: pool, reads: pool, postgres_error::failed);
