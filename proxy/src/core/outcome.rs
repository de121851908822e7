//! The outcome of an attempt, as far as the target is responsible.

use http::StatusCode;

/// The outcome of a request for its target: the input of passive health checks, latencies and circuit breakers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The response has a status below 500.
    Good,
    /// The response has a status of 500 or above.
    ServerError,
    /// There was no connection.
    ConnectFailure,
    /// The connection broke, or the response was malformed.
    Reset,
    /// There was no response in time.
    Timeout,
    /// The attempt was given up for a reason that is not the target's fault.
    Abandoned,
}

impl Outcome {
    /// The outcome of a response. `grpc_failed`: it ends a gRPC call with a status for which the target is
    /// responsible.
    #[inline]
    pub fn of_answer(status: StatusCode, grpc_failed: bool) -> Self {
        if status.is_server_error() || grpc_failed { Self::ServerError } else { Self::Good }
    }

    /// True if it counts as a success of the target; `None`: it says nothing about the target.
    #[inline]
    pub fn is_success(self) -> Option<bool> {
        match self {
            Self::Good => Some(true),
            Self::ServerError | Self::ConnectFailure | Self::Reset | Self::Timeout => Some(false),
            Self::Abandoned => None,
        }
    }
}
