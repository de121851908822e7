//! The common part of the two databases for rollouts: queries, columns, and what is made of them.

use std::time::Duration;

use signalbox_rollout::{FleetTarget, Plan};

use super::interface::StoreError;
use super::rollout_row::{Command, CountsRow, FleetState, RolloutRun, Urgent, UrgentMode, UrgentRevision};
use super::row;

/// For how long counts are kept, and how old those may be that a new leader reads.
pub(super) const COUNTS_KEPT: Duration = Duration::from_secs(60);
pub(super) const FIRST_COUNTS: Duration = Duration::from_secs(5);

/// For how long commands are kept after they expired.
pub(super) const COMMANDS_KEPT: Duration = Duration::from_secs(3600);

/// fleet, generation, term, plan
pub(super) type TargetColumns = (String, i64, i64, String);

pub(super) const TARGETS: &str = "SELECT fleet, generation, term, plan FROM fleet_targets ORDER BY fleet";

pub(super) const TARGET_CHANGES: &str = "SELECT target_changes FROM head";

/// $2 is the fleet; empty: all fleets. The last attempt comes first.
pub(super) const RUNS: &str = "SELECT id, fleet, revision, finished, state FROM rollout_runs
    WHERE $2 = '' OR fleet = $2 ORDER BY revision DESC, fleet, length(id) DESC, id DESC LIMIT $1";

/// Those of the last revisions are kept, however many rollouts these have.
pub(super) const DELETE_OLD_RUNS: &str = "DELETE FROM rollout_runs WHERE finished AND revision < (
    SELECT min(revision) FROM (SELECT revision FROM rollout_runs ORDER BY revision DESC LIMIT 2000) AS kept)";

pub(super) const UNFINISHED_RUNS: &str = "SELECT id, fleet, revision, finished, state FROM rollout_runs
    WHERE NOT finished ORDER BY id";

pub(super) const RUN: &str = "SELECT id, fleet, revision, finished, state FROM rollout_runs WHERE id = $1";

pub(super) const ADD_URGENT: &str =
    "INSERT INTO urgent_revisions (revision, mode, reason) VALUES ($1, $2, $3)";

/// revision, mode, reason
pub(super) type UrgentColumns = (i64, String, String);

pub(super) const URGENT_AFTER: &str =
    "SELECT revision, mode, reason FROM urgent_revisions WHERE revision > $1 ORDER BY revision LIMIT 100";

pub(super) const ADD_COMMAND: &str =
    "INSERT INTO rollout_commands (fleet, command, expires_at_us) VALUES ($1, $2, $3) RETURNING id";

/// id, fleet, command
pub(super) type CommandColumns = (i64, String, String);

pub(super) const COMMANDS: &str = "SELECT id, fleet, command FROM rollout_commands
    WHERE answer IS NULL AND expires_at_us > $1 ORDER BY id LIMIT 100";

/// A command that has expired must not be answered: whoever gave it was told that nothing happened.
pub(super) const ANSWER_COMMAND: &str =
    "UPDATE rollout_commands SET answer = $2 WHERE id = $1 AND answer IS NULL AND expires_at_us > $3";

pub(super) const CANCEL_COMMAND: &str =
    "UPDATE rollout_commands SET expires_at_us = 0 WHERE id = $1 AND answer IS NULL";

pub(super) const COMMAND_ANSWER: &str = "SELECT answer FROM rollout_commands WHERE id = $1";

pub(super) const ADD_COUNTS: &str =
    "INSERT INTO rollout_counts (instance, at_us, counts) VALUES ($1, $2, $3)";

/// id, counts
pub(super) type CountsColumns = (i64, String);

pub(super) const COUNTS_AFTER: &str = "SELECT id, counts FROM rollout_counts
    WHERE instance <> $1 AND id > $2 AND at_us > $3 ORDER BY id LIMIT 1000";

pub(super) const DELETE_OLD_COUNTS: &str = "DELETE FROM rollout_counts WHERE at_us < $1";

pub(super) const DELETE_OLD_COMMANDS: &str = "DELETE FROM rollout_commands WHERE expires_at_us < $1";

/// fleet, generation, term, plan, state, history
pub(super) type StateColumns = (String, i64, i64, String, Option<String>, Option<String>);

pub(super) const STATES: &str =
    "SELECT fleet, generation, term, plan, state, history FROM fleet_targets ORDER BY fleet";

pub(super) const SAVE_STATE: &str = "UPDATE fleet_targets SET state = $2 WHERE fleet = $1";

pub(super) const SAVE_HISTORY: &str = "UPDATE fleet_targets SET history = $2 WHERE fleet = $1";

pub(super) const SAVE_RUN: &str = "
    INSERT INTO rollout_runs (id, fleet, revision, finished, state) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (id) DO UPDATE SET finished = excluded.finished, state = excluded.state";

/// The first decision about a fleet.
pub(super) const FIRST_TARGET: &str = "
    INSERT INTO fleet_targets (fleet, generation, term, plan) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";

/// A decision that takes the place of the one before.
pub(super) const NEXT_TARGET: &str = "
    UPDATE fleet_targets SET generation = $2, term = $3, plan = $4 WHERE fleet = $1 AND generation = $2 - 1";

/// A fleet with a progressive policy stays at a revision, unless there is a decision about it already.
pub(super) const PIN_FLEET: &str = "
    INSERT INTO fleet_targets (fleet, generation, term, plan) VALUES ($1, 1, 0, $2)
    ON CONFLICT (fleet) DO UPDATE
        SET generation = fleet_targets.generation + 1, term = excluded.term, plan = excluded.plan, state = NULL
    WHERE fleet_targets.plan = $3";

pub(super) const COUNT_TARGET_CHANGE: &str = "UPDATE head SET target_changes = target_changes + 1";

/// A version that does not know of decisions would serve the head to every new proxy. From the first decision on it is not to use
/// the tables.
pub(super) const NEED_DECISIONS: &str = "UPDATE schema_compatibility SET oldest = 5 WHERE oldest < 5";

/// id, fleet, revision, finished, state
pub(super) type RunColumns = (String, String, i64, bool, String);

pub(super) fn run((id, fleet, revision, finished, state): RunColumns) -> Result<RolloutRun, StoreError> {
    Ok(RolloutRun { id, fleet, revision: row::number(revision)?, finished, state })
}

pub(super) fn target((fleet, generation, term, plan): TargetColumns) -> Result<FleetTarget, StoreError> {
    let plan = serde_json::from_str(&plan).map_err(|error| {
        StoreError::Broken(format!("the decision about fleet {fleet} cannot be read: {error}"))
    })?;
    Ok(FleetTarget {
        fleet: fleet.into(),
        generation: row::number(generation)?,
        term: row::number(term)?,
        plan,
    })
}

pub(super) fn state(
    (fleet, generation, term, plan, state, history): StateColumns,
) -> Result<FleetState, StoreError> {
    Ok(FleetState { target: target((fleet, generation, term, plan))?, state, history })
}

pub(super) fn plan_text(plan: &Plan) -> Result<String, StoreError> {
    serde_json::to_string(plan)
        .map_err(|error| StoreError::Broken(format!("a decision cannot be written: {error}")))
}

/// Microseconds, as they are stored.
pub(super) fn micros(lease: Duration) -> i64 {
    i64::try_from(lease.as_micros()).unwrap_or(i64::MAX)
}

pub(super) fn urgent((number, mode, reason): UrgentColumns) -> Result<UrgentRevision, StoreError> {
    let unknown = || StoreError::Broken(format!("revision {number} is urgent in an unknown way: {mode}"));
    let mode = UrgentMode::parse(&mode).ok_or_else(unknown)?;
    Ok(UrgentRevision { number: row::number(number)?, urgent: Urgent { mode, reason } })
}

pub(super) fn command((id, fleet, command): CommandColumns) -> Result<Command, StoreError> {
    Ok(Command { id: row::number(id)?, fleet, command })
}

pub(super) fn counts((id, counts): CountsColumns) -> Result<CountsRow, StoreError> {
    Ok(CountsRow { id: row::number(id)?, counts })
}
