//! The part of both stores that has the uploaded files.

use async_trait::async_trait;
use bytes::Bytes;
use signalbox_config::BlobId;
use sqlx::{query, query_as, query_scalar};

use super::blob_row::BlobRow;
use super::deadline::{CALL, LONG_CALL, within};
use super::interface::{BlobStore, Held, HeldBy, StoreError};
use super::postgres::Postgres;
use super::row::{number, to_sql};
use super::sqlite::Sqlite;
use super::{postgres_error, sqlite_error};

type Columns = (String, i64, i64, String);

fn row((id, size, created_at_us, created_by): Columns) -> Result<BlobRow, StoreError> {
    let id =
        id.parse().map_err(|error| StoreError::Broken(format!("the file {id:?} has no name: {error}")))?;
    Ok(BlobRow { id, size: number(size)?, created_at_us, created_by })
}

const SAVE: &str =
    "INSERT INTO blobs (id, size, created_at_us, created_by, content) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (id) DO NOTHING";
const READ: &str = "SELECT content FROM blobs WHERE id = $1";
const LIST: &str = "SELECT id, size, created_at_us, created_by FROM blobs ORDER BY created_at_us DESC, id";
const DELETE: &str = "DELETE FROM blobs WHERE id = $1";

/// Both databases take the same statements.
macro_rules! blob_store {
    ($store:ty, $database:ident, writes: $writes:ident, reads: $reads:ident, $failed:path) => {
        #[async_trait]
        impl BlobStore for $store {
            async fn save_blob(&self, row: &BlobRow, content: &[u8]) -> Result<bool, StoreError> {
                within(LONG_CALL, async {
                    let done = query(SAVE)
                        .bind(row.id.to_string())
                        .bind(to_sql(row.size))
                        .bind(row.created_at_us)
                        .bind(&row.created_by)
                        .bind(content)
                        .execute(self.$writes())
                        .await
                        .map_err($failed)?;
                    Ok(done.rows_affected() > 0)
                })
                .await
            }

            async fn blob(&self, id: BlobId) -> Result<Option<Bytes>, StoreError> {
                within(LONG_CALL, async {
                    let content: Option<Vec<u8>> = query_scalar(READ)
                        .bind(id.to_string())
                        .fetch_optional(self.$reads())
                        .await
                        .map_err($failed)?;
                    Ok(content.map(Bytes::from))
                })
                .await
            }

            async fn blobs(&self) -> Result<Vec<BlobRow>, StoreError> {
                within(CALL, async {
                    let rows: Vec<Columns> =
                        query_as(LIST).fetch_all(self.$reads()).await.map_err($failed)?;
                    rows.into_iter().map(row).collect()
                })
                .await
            }

            async fn delete_blob(&self, held: Held, id: BlobId) -> Result<bool, StoreError> {
                let HeldBy::$database(mut transaction) = held.0 else { return Err(HeldBy::of_another()) };
                within(CALL, async move {
                    let done = query(DELETE)
                        .bind(id.to_string())
                        .execute(&mut *transaction)
                        .await
                        .map_err($failed)?;
                    transaction.commit().await.map_err($failed)?;
                    Ok(done.rows_affected() > 0)
                })
                .await
            }
        }
    };
}

blob_store!(Sqlite, Sqlite, writes: writer, reads: readers, sqlite_error::failed);
blob_store!(Postgres, Postgres, writes: pool, reads: pool, postgres_error::failed);
