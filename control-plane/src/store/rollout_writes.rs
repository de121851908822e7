//! The writes of decisions, which are the same for both databases, within the caller's transaction.

use signalbox_rollout::Plan;
use sqlx::postgres::PgConnection;
use sqlx::query;
use sqlx::sqlite::SqliteConnection;

use super::interface::StoreError;
use super::revision::NewRevision;
use super::rollout_row::{Decided, Decisions, Term};
use super::rollout_sql::{
    ADD_URGENT, ANSWER_COMMAND, COUNT_TARGET_CHANGE, FIRST_TARGET, NEED_DECISIONS, NEXT_TARGET, PIN_FLEET,
    SAVE_HISTORY, SAVE_RUN, SAVE_STATE, plan_text,
};
use super::row::to_sql;
use super::{postgres_error, sqlite_error};

/// Makes the writes for one kind of connection: sqlx has no trait that covers what they need of both.
macro_rules! writes {
    ($commit:ident, $decide:ident, $connection:ty, $failed:path) => {
        /// Writes what a revision means for rollouts, within the transaction of its commit: pins the fleets whose policy becomes
        /// progressive with it, and notes that it is urgent.
        pub(super) async fn $commit(
            connection: &mut $connection,
            number: u64,
            revision: &NewRevision,
        ) -> Result<(), StoreError> {
            if let Some(urgent) = &revision.urgent {
                query(ADD_URGENT)
                    .bind(to_sql(number))
                    .bind(urgent.mode.as_str())
                    .bind(&urgent.reason)
                    .execute(&mut *connection)
                    .await
                    .map_err($failed)?;
            }
            let mut pinned = 0;
            for fleet in &revision.pinned {
                let done = query(PIN_FLEET)
                    .bind(&*fleet.fleet)
                    .bind(plan_text(&Plan::Stable { revision: fleet.stable })?)
                    .bind(plan_text(&Plan::Head)?)
                    .execute(&mut *connection)
                    .await
                    .map_err($failed)?;
                pinned += done.rows_affected();
            }
            if pinned > 0 {
                query(NEED_DECISIONS).execute(&mut *connection).await.map_err($failed)?;
                query(COUNT_TARGET_CHANGE).execute(connection).await.map_err($failed)?;
            }
            Ok(())
        }

        /// Writes decisions and states. The transaction is to be committed only after [`Decided::Done`].
        pub(super) async fn $decide(
            connection: &mut $connection,
            term: Term,
            decisions: &Decisions,
            now_us: i64,
        ) -> Result<Decided, StoreError> {
            if !decisions.targets.is_empty() {
                // The head first: a commit that pins a fleet locks it first, too.
                query(COUNT_TARGET_CHANGE).execute(&mut *connection).await.map_err($failed)?;
                query(NEED_DECISIONS).execute(&mut *connection).await.map_err($failed)?;
            }
            for target in &decisions.targets {
                let statement = if target.generation == 1 { FIRST_TARGET } else { NEXT_TARGET };
                let done = query(statement)
                    .bind(&*target.fleet)
                    .bind(to_sql(target.generation))
                    .bind(to_sql(term.0))
                    .bind(plan_text(&target.plan)?)
                    .execute(&mut *connection)
                    .await
                    .map_err($failed)?;
                if done.rows_affected() == 0 {
                    return Ok(Decided::Outdated);
                }
            }
            for (fleet, state) in &decisions.states {
                let save = query(SAVE_STATE).bind(&**fleet).bind(state);
                save.execute(&mut *connection).await.map_err($failed)?;
            }
            for (fleet, history) in &decisions.histories {
                let save = query(SAVE_HISTORY).bind(&**fleet).bind(history);
                save.execute(&mut *connection).await.map_err($failed)?;
            }
            for run in &decisions.runs {
                query(SAVE_RUN)
                    .bind(&run.id)
                    .bind(&run.fleet)
                    .bind(to_sql(run.revision))
                    .bind(run.finished)
                    .bind(&run.state)
                    .execute(&mut *connection)
                    .await
                    .map_err($failed)?;
            }
            for (id, answer) in &decisions.answers {
                let done = query(ANSWER_COMMAND)
                    .bind(to_sql(*id))
                    .bind(answer)
                    .bind(now_us)
                    .execute(&mut *connection)
                    .await
                    .map_err($failed)?;
                if done.rows_affected() == 0 {
                    return Ok(Decided::Outdated);
                }
            }
            Ok(Decided::Done)
        }
    };
}

writes!(commit_in_postgres, decide_in_postgres, PgConnection, postgres_error::failed);
writes!(commit_in_sqlite, decide_in_sqlite, SqliteConnection, sqlite_error::failed);
