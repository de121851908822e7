//! The part of the SQLite store that rollouts use.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{query, query_as, query_scalar};

use super::deadline::{CALL, within};
use super::interface::{RolloutStore, StoreError};
use super::rollout_row::{
    Command, CountsRow, Decided, Decisions, FleetState, FleetTargets, RolloutRun, Term, UrgentRevision,
};
use super::rollout_sql::{
    ADD_COMMAND, ADD_COUNTS, CANCEL_COMMAND, COMMAND_ANSWER, COMMANDS, COMMANDS_KEPT, COUNTS_AFTER,
    COUNTS_KEPT, DELETE_OLD_COMMANDS, DELETE_OLD_COUNTS, DELETE_OLD_RUNS, FIRST_COUNTS, RUN, RUNS, STATES,
    TARGET_CHANGES, TARGETS, UNFINISHED_RUNS, URGENT_AFTER, command, counts, micros, run, state, target,
    urgent,
};
use super::rollout_writes::decide_in_sqlite;
use super::row::{number, to_sql};
use super::sqlite::Sqlite;
use super::sqlite_error::failed;
use crate::clock::now_us;

#[async_trait]
impl RolloutStore for Sqlite {
    async fn fleet_targets(&self, known: u64) -> Result<Option<FleetTargets>, StoreError> {
        within(CALL, async {
            let mut transaction = self.readers().begin().await.map_err(failed)?;
            let changes: i64 =
                query_scalar(TARGET_CHANGES).fetch_one(&mut *transaction).await.map_err(failed)?;
            if number(changes)? == known {
                return Ok(None);
            }
            let rows = query_as(TARGETS).fetch_all(&mut *transaction).await.map_err(failed)?;
            transaction.commit().await.map_err(failed)?;
            let targets = rows.into_iter().map(target).collect::<Result<_, _>>()?;
            Ok(Some(FleetTargets { version: number(changes)?, targets }))
        })
        .await
    }

    async fn lead(&self, holder: &str, lease: Duration) -> Result<Option<Term>, StoreError> {
        within(CALL, async {
            let now_us = now_us();
            let term: Option<i64> = query_scalar(LEAD)
                .bind(holder)
                .bind(now_us.saturating_add(micros(lease)))
                .bind(now_us)
                .fetch_optional(self.writer())
                .await
                .map_err(failed)?;
            term.map(|term| Ok(Term(number(term)?))).transpose()
        })
        .await
    }

    async fn leader(&self) -> Result<Option<String>, StoreError> {
        within(CALL, async {
            query_scalar(LEADER).bind(now_us()).fetch_optional(self.readers()).await.map_err(failed)
        })
        .await
    }

    async fn step_down(&self, holder: &str, term: Term) -> Result<(), StoreError> {
        within(CALL, async {
            query("UPDATE leader SET expires_at_us = 0 WHERE holder = $1 AND term = $2")
                .bind(holder)
                .bind(to_sql(term.0))
                .execute(self.writer())
                .await
                .map_err(failed)?;
            Ok(())
        })
        .await
    }

    async fn decide(&self, holder: &str, term: Term, decisions: &Decisions) -> Result<Decided, StoreError> {
        within(CALL, async {
            // IMMEDIATE: nobody else acquires the lease before this is committed.
            let mut transaction = self.writer().begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
            let leads: Option<i64> = query_scalar(LEADS)
                .bind(holder)
                .bind(to_sql(term.0))
                .bind(now_us())
                .fetch_optional(&mut *transaction)
                .await
                .map_err(failed)?;
            if leads.is_none() {
                return Ok(Decided::NotLeader);
            }
            let decided = decide_in_sqlite(&mut transaction, term, decisions, now_us()).await?;
            if decided == Decided::Done {
                transaction.commit().await.map_err(failed)?;
            }
            Ok(decided)
        })
        .await
    }

    async fn unfinished_runs(&self) -> Result<Vec<RolloutRun>, StoreError> {
        within(CALL, async {
            let rows = query_as(UNFINISHED_RUNS).fetch_all(self.readers()).await.map_err(failed)?;
            rows.into_iter().map(run).collect()
        })
        .await
    }

    async fn rollout_run(&self, id: &str) -> Result<Option<RolloutRun>, StoreError> {
        within(CALL, async {
            let row = query_as(RUN).bind(id).fetch_optional(self.readers()).await.map_err(failed)?;
            row.map(run).transpose()
        })
        .await
    }

    async fn urgent_revisions(&self, number: u64) -> Result<Vec<UrgentRevision>, StoreError> {
        within(CALL, async {
            let rows = query_as(URGENT_AFTER)
                .bind(to_sql(number))
                .fetch_all(self.readers())
                .await
                .map_err(failed)?;
            rows.into_iter().map(urgent).collect()
        })
        .await
    }

    async fn add_command(&self, fleet: &str, command: &str, lifetime: Duration) -> Result<u64, StoreError> {
        within(CALL, async {
            let id: i64 = query_scalar(ADD_COMMAND)
                .bind(fleet)
                .bind(command)
                .bind(now_us().saturating_add(micros(lifetime)))
                .fetch_one(self.writer())
                .await
                .map_err(failed)?;
            number(id)
        })
        .await
    }

    async fn commands(&self) -> Result<Vec<Command>, StoreError> {
        within(CALL, async {
            let rows = query_as(COMMANDS).bind(now_us()).fetch_all(self.readers()).await.map_err(failed)?;
            rows.into_iter().map(command).collect()
        })
        .await
    }

    async fn command_answer(&self, id: u64) -> Result<Option<String>, StoreError> {
        within(CALL, async {
            let answer: Option<Option<String>> = query_scalar(COMMAND_ANSWER)
                .bind(to_sql(id))
                .fetch_optional(self.readers())
                .await
                .map_err(failed)?;
            Ok(answer.flatten())
        })
        .await
    }

    async fn add_counts(&self, instance: &str, counts: &str) -> Result<(), StoreError> {
        within(CALL, async {
            let add = query(ADD_COUNTS).bind(instance).bind(now_us()).bind(counts);
            add.execute(self.writer()).await.map_err(failed)?;
            Ok(())
        })
        .await
    }

    async fn counts_after(&self, instance: &str, id: Option<u64>) -> Result<Vec<CountsRow>, StoreError> {
        within(CALL, async {
            let oldest = if id.is_some() { COUNTS_KEPT } else { FIRST_COUNTS };
            let rows = query_as(COUNTS_AFTER)
                .bind(instance)
                .bind(to_sql(id.unwrap_or_default()))
                .bind(now_us().saturating_sub(micros(oldest)))
                .fetch_all(self.readers())
                .await
                .map_err(failed)?;
            rows.into_iter().map(counts).collect()
        })
        .await
    }

    async fn delete_old_rollout_rows(&self) -> Result<(), StoreError> {
        within(CALL, async {
            let now_us = now_us();
            for (statement, kept) in [(DELETE_OLD_COUNTS, COUNTS_KEPT), (DELETE_OLD_COMMANDS, COMMANDS_KEPT)]
            {
                let delete = query(statement).bind(now_us.saturating_sub(micros(kept)));
                delete.execute(self.writer()).await.map_err(failed)?;
            }
            query(DELETE_OLD_RUNS).execute(self.writer()).await.map_err(failed)?;
            Ok(())
        })
        .await
    }

    async fn cancel_command(&self, id: u64) -> Result<bool, StoreError> {
        within(CALL, async {
            let done = query(CANCEL_COMMAND).bind(to_sql(id)).execute(self.writer()).await.map_err(failed)?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }

    async fn rollout_runs(&self, fleet: Option<&str>, limit: u32) -> Result<Vec<RolloutRun>, StoreError> {
        within(CALL, async {
            let runs = query_as(RUNS).bind(i64::from(limit)).bind(fleet.unwrap_or_default());
            runs.fetch_all(self.readers()).await.map_err(failed)?.into_iter().map(run).collect()
        })
        .await
    }

    async fn fleet_states(&self) -> Result<Vec<FleetState>, StoreError> {
        within(CALL, async {
            let rows = query_as(STATES).fetch_all(self.readers()).await.map_err(failed)?;
            rows.into_iter().map(state).collect()
        })
        .await
    }
}

/// A lease that has expired is acquired anew, by its holder as by any other. One that lasts for longer than ten minutes is from before
/// the clock was set back.
const LEAD: &str = "
    UPDATE leader SET
        holder = $1,
        term = CASE WHEN holder = $1 AND expires_at_us > $3 THEN term ELSE term + 1 END,
        expires_at_us = $2
    WHERE holder = $1 OR expires_at_us <= $3 OR expires_at_us > $3 + 600000000
    RETURNING term";

const LEADER: &str = "SELECT holder FROM leader WHERE expires_at_us > $1";

const LEADS: &str = "SELECT term FROM leader WHERE holder = $1 AND term = $2 AND expires_at_us > $3";
