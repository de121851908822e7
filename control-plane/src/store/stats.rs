//! The part of both stores that has the traffic of the last days.

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::{query, query_as};

use super::deadline::{CALL, LONG_CALL, within};
use super::interface::{StatsStore, StoreError};
use super::postgres::Postgres;
use super::row::{number, to_sql};
use super::sqlite::Sqlite;
use super::stats_row::StatsRow;
use super::{postgres_error, sqlite_error};

type Columns = (i64, String, i64, i64, i64, i64, Vec<u8>);

fn row((id, instance, resolution, first, last, at, content): Columns) -> Result<StatsRow, StoreError> {
    Ok(StatsRow {
        id,
        instance: instance.into(),
        resolution: number(resolution)?,
        first: number(first)?,
        last: number(last)?,
        at: number(at)?,
        content: Bytes::from(content),
    })
}

const SAVE: &str = "INSERT INTO stats_rows (instance, resolution, first, last, made_at, content)
    VALUES ($1, $2, $3, $4, $5, $6)";
const ROWS_OF: &str = "SELECT id, instance, resolution, first, last, made_at, content FROM stats_rows
    WHERE resolution = $1 AND id > $2 ORDER BY id LIMIT $3";
const ROWS_AFTER: &str = "SELECT id, instance, resolution, first, last, made_at, content FROM stats_rows
    WHERE id > $1 AND instance <> $2 ORDER BY id LIMIT $3";
const DELETE: &str = "DELETE FROM stats_rows WHERE resolution = $1 AND made_at < $2";

/// Both databases take the same statements.
macro_rules! stats_store {
    ($store:ty, writes: $writes:ident, reads: $reads:ident, $failed:path) => {
        #[async_trait]
        impl StatsStore for $store {
            async fn save_stats_row(&self, row: &StatsRow) -> Result<(), StoreError> {
                within(CALL, async {
                    query(SAVE)
                        .bind(&*row.instance)
                        .bind(to_sql(row.resolution))
                        .bind(to_sql(row.first))
                        .bind(to_sql(row.last))
                        .bind(to_sql(row.at))
                        .bind(&*row.content)
                        .execute(self.$writes())
                        .await
                        .map_err($failed)?;
                    Ok(())
                })
                .await
            }

            async fn stats_rows_of(
                &self,
                resolution: u64,
                after: i64,
                limit: u32,
            ) -> Result<Vec<StatsRow>, StoreError> {
                within(LONG_CALL, async {
                    let rows: Vec<Columns> = query_as(ROWS_OF)
                        .bind(to_sql(resolution))
                        .bind(after)
                        .bind(i64::from(limit))
                        .fetch_all(self.$reads())
                        .await
                        .map_err($failed)?;
                    rows.into_iter().map(row).collect()
                })
                .await
            }

            async fn stats_rows_after(
                &self,
                after: i64,
                except: &str,
                limit: u32,
            ) -> Result<Vec<StatsRow>, StoreError> {
                within(LONG_CALL, async {
                    let rows: Vec<Columns> = query_as(ROWS_AFTER)
                        .bind(after)
                        .bind(except)
                        .bind(i64::from(limit))
                        .fetch_all(self.$reads())
                        .await
                        .map_err($failed)?;
                    rows.into_iter().map(row).collect()
                })
                .await
            }

            async fn delete_stats_rows(&self, resolution: u64, before: u64) -> Result<(), StoreError> {
                within(CALL, async {
                    query(DELETE)
                        .bind(to_sql(resolution))
                        .bind(to_sql(before))
                        .execute(self.$writes())
                        .await
                        .map_err($failed)?;
                    Ok(())
                })
                .await
            }
        }
    };
}

stats_store!(Sqlite, writes: writer, reads: readers, sqlite_error::failed);
stats_store!(Postgres, writes: pool, reads: pool, postgres_error::failed);
