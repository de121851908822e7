//! The meaning of PostgreSQL's errors to the caller.

use super::interface::StoreError;

/// Sorts errors by what the caller can do: try again, wait, or call a person.
pub(super) fn failed(error: sqlx::Error) -> StoreError {
    let away = match &error {
        sqlx::Error::Database(database) => match database.code().as_deref() {
            // A standby, which may be promoted.
            Some(NOT_IN_THIS_STATE | "25006") => return StoreError::ReadOnly,
            Some(PREPARED_BY_ANOTHER | PREPARED_ELSEWHERE) => return StoreError::Broken(NO_SESSION.to_owned()),
            // A lock that was not to be had in time.
            Some("55P03") => true,
            // Connection, authorization, rolled back for the sake of others, resources, operator's intervention
            // (shutting down, starting up, a timeout), the system around it.
            // <https://www.postgresql.org/docs/current/errcodes-appendix.html>
            Some(code) => ["08", "28", "40", "53", "57", "58"].contains(&code.get(..2).unwrap_or_default()),
            None => false,
        },
        sqlx::Error::Io(_)
        // Somebody in between accepts for a server that is not there.
        | sqlx::Error::Protocol(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::BeginFailed => true,
        _ => false,
    };
    if away { StoreError::Unavailable(error.into()) } else { StoreError::Broken(error.to_string()) }
}

/// The reason why a pooler in transaction mode is refused. LISTEN would be heard by nobody, and settings and prepared statements would be those
/// of somebody else.
pub(super) const NO_SESSION: &str = "a pooler gives its connections to other clients between two transactions; \
     set it to session mode, or name the database server itself";

/// A prepared statement of this name is there already, or is not: the connection to the server is not always the same one.
const PREPARED_BY_ANOTHER: &str = "42P05";
const PREPARED_ELSEWHERE: &str = "26000";

/// The error of a standby that was not promoted: it is not the place to write, but may become it.
const NOT_IN_THIS_STATE: &str = "55000";
