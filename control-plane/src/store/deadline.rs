//! How long a call of the store may take.

use std::time::Duration;

use super::interface::StoreError;

/// The deadline of most calls.
pub(super) const CALL: Duration = Duration::from_secs(5);

/// The deadline of calls whose work grows with the set.
pub(super) const LONG_CALL: Duration = Duration::from_secs(60);

/// A call that writes or reads more changes than this has the longer deadline.
const MANY_CHANGES: usize = 1_000;

/// After so many changes a page of revisions ends early.
pub(super) const PAGE_CHANGES: u64 = 100_000;

/// The deadline of a call that writes or reads so many changes.
pub(super) fn deadline_for(changes: usize) -> Duration {
    if changes > MANY_CHANGES { LONG_CALL } else { CALL }
}

/// Runs a call to its deadline.
pub(super) async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(deadline, call).await {
        Ok(result) => result,
        Err(_) => Err(StoreError::Unavailable(format!("no answer within {deadline:?}").into())),
    }
}
