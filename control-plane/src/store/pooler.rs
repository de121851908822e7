//! A pooler between a control plane and its database.

use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Row as _, raw_sql};

use super::hosts::Hosts;
use super::interface::StoreError;
use super::postgres_error::{NO_SESSION, failed};

/// Refuses a pooler that does not keep a connection to the server for its client alone.
///
/// One connection sets a mark, and another one begins a transaction. Without a session of their own, the other one gets the connection with
/// the mark, or the first one gets another connection than before.
pub(super) async fn require_sessions(first: &mut PgConnection, hosts: &Hosts) -> Result<(), StoreError> {
    let mark = uuid::Uuid::new_v4().simple().to_string();
    if let Err(error) = first.execute(raw_sql(sqlx::AssertSqlSafe(format!("SET {SETTING} = '{mark}'")))).await
    {
        tracing::debug!(%error, "it is not known if a pooler keeps sessions");
        return Ok(());
    }
    let mut second = hosts.current().connect().await.map_err(failed)?;
    second.execute(raw_sql("BEGIN")).await.map_err(failed)?;
    let by_second = read_mark(&mut second).await?;
    let by_first = read_mark(first).await?;
    second.execute(raw_sql("ROLLBACK")).await.map_err(failed)?;
    // Its end is no matter.
    let _ = second.close().await;
    if by_second.as_deref() == Some(&*mark) || by_first.as_deref() != Some(&*mark) {
        return Err(StoreError::Broken(NO_SESSION.to_owned()));
    }
    Ok(())
}

async fn read_mark(connection: &mut PgConnection) -> Result<Option<String>, StoreError> {
    // Without a prepared statement, which is what is in question.
    let row = connection.fetch_one(raw_sql("SELECT current_setting('signalbox.session', true)")).await;
    row.and_then(|row| row.try_get(0)).map_err(failed)
}

const SETTING: &str = "signalbox.session";
