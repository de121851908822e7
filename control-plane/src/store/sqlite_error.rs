//! The meaning of SQLite's errors to the caller.

use super::interface::StoreError;

/// Sorts errors by what the caller can do: wait, or call a person.
pub(super) fn failed(error: sqlx::Error) -> StoreError {
    let away = match &error {
        sqlx::Error::Database(_) => matches!(
            code(&error),
            Some(BUSY | LOCKED | NO_MEMORY | READ_ONLY | IO | FULL | CANNOT_OPEN | LOCK_PROTOCOL)
        ),
        sqlx::Error::Io(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => true,
        _ => false,
    };
    if away { StoreError::Unavailable(error.into()) } else { StoreError::Broken(error.to_string()) }
}

/// The primary result code of an error, which is the low byte of the extended one.
/// <https://www.sqlite.org/rescode.html>
pub(super) fn code(error: &sqlx::Error) -> Option<i32> {
    Some(error.as_database_error()?.code()?.parse::<i32>().ok()? & 0xff)
}

const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const NO_MEMORY: i32 = 7;
const READ_ONLY: i32 = 8;
const IO: i32 = 10;
const FULL: i32 = 13;
pub(super) const CANNOT_OPEN: i32 = 14;
const LOCK_PROTOCOL: i32 = 15;
pub(super) const NOT_A_DATABASE: i32 = 26;
