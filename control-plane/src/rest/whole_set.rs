//! Sets of earlier revisions, and tasks over whole sets.

use http::StatusCode;

use super::call::Call;
use super::problem::Problem;
use crate::store::StoredSet;

/// The set as it was at a revision.
pub(super) async fn set_at(call: &Call, number: u64) -> Result<StoredSet, Problem> {
    let found = call.app.metrics.store_call("set_at", call.app.store.set_at(number)).await?;
    found.ok_or_else(|| no_revision(number))
}

pub(super) fn no_revision(number: u64) -> Problem {
    Problem::not_found(format!("there is no revision {number}"))
}

/// A task that panicked.
pub(super) fn gave_up(error: &tokio::task::JoinError) -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "it ended early; the control plane's log says more")
        .because(error.to_string())
}
