//! The reasons why the proxy itself answers a request, or aborts a response, and everything that follows from each:
//! one table.

use http::StatusCode;
use signalbox_config::RetryOn;

use super::outcome::Outcome;
use crate::telemetry::Flag;

/// The reason why a request cannot be answered as intended, or not completely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    // Failures of the client.
    BadRequest(&'static str),
    NotImplemented(&'static str),
    BodyTooLarge,
    HeadTooLarge,
    UriTooLong,
    HeadTimeout,
    /// The request body ended early or broke its framing.
    ClientBroke,
    BodyTimeout,
    /// The client no longer waits for the response.
    ClientGone,
    /// The deadline that the client itself has set is over.
    ClientDeadline,
    NoRoute,
    // Failures of the upstream.
    NoHealthyTarget,
    ConnectFailure,
    /// The upstream is at one of its limits, or its circuit breaker is open.
    Overflow,
    /// This host lacks the resources for a connection to the target.
    NoRoom,
    /// The timeout of the whole exchange is over.
    Timeout,
    /// The timeout of one attempt is over.
    AttemptTimeout,
    /// No bytes moved for too long.
    StreamIdle,
    Reset,
    /// The response head exceeds the upstream's limits.
    ResponseHeadTooLarge,
    // Failures of the proxy.
    Overloaded,
    Misconfigured,
    // Failures of plugins.
    PluginPanicked,
    /// A plugin's filter ended a body early.
    PluginAborted,
    /// The response is larger than a plugin wants to have in memory.
    ResponseTooLarge,
}

/// The consequences of a [`Failure`].
struct Row {
    status: u16,
    flag: Flag,
    /// The outcome for the target that the request was sent to.
    outcome: Outcome,
    /// The condition under which a route's retries cover it; `None`: it is never retried.
    retry: Option<RetryOn>,
    /// The detail for the client, which reveals nothing internal.
    detail: &'static str,
}

impl Failure {
    const fn row(self) -> Row {
        use Outcome as To;
        let (status, flag, outcome, retry, detail) = match self {
            Self::BadRequest(detail) => (400, Flag::DownstreamProtocol, To::Abandoned, None, detail),
            Self::NotImplemented(detail) => (501, Flag::None, To::Abandoned, None, detail),
            Self::BodyTooLarge => {
                (413, Flag::None, To::Abandoned, None, "The request's body is larger than the limit.")
            }
            Self::HeadTooLarge => (
                431,
                Flag::DownstreamProtocol,
                To::Abandoned,
                None,
                "The request's headers exceed the limit.",
            ),
            Self::UriTooLong => (
                414,
                Flag::DownstreamProtocol,
                To::Abandoned,
                None,
                "The request's target is longer than the limit.",
            ),
            Self::HeadTimeout => (
                408,
                Flag::DownstreamProtocol,
                To::Abandoned,
                None,
                "The request's head did not arrive in time.",
            ),
            Self::ClientBroke => (
                400,
                Flag::DownstreamProtocol,
                To::Abandoned,
                None,
                "The request's body is incomplete or malformed.",
            ),
            Self::BodyTimeout => (
                408,
                Flag::DownstreamProtocol,
                To::Abandoned,
                None,
                "The request's body did not arrive in time.",
            ),
            // 499 is nginx's status for this.
            Self::ClientGone => {
                (499, Flag::DownstreamClosed, To::Abandoned, None, "The client closed the request.")
            }
            // A client with a short deadline must not be able to get a target ejected.
            Self::ClientDeadline => {
                (504, Flag::Timeout, To::Abandoned, None, "The service did not answer in time.")
            }
            Self::NoRoute => (404, Flag::NoRoute, To::Abandoned, None, "No route matches this request."),
            Self::NoHealthyTarget => {
                (503, Flag::NoHealthyUpstream, To::Abandoned, None, "The service is not available.")
            }
            Self::ConnectFailure => (
                503,
                Flag::ConnectFailure,
                To::ConnectFailure,
                Some(RetryOn::ConnectFailure),
                "The service cannot be reached.",
            ),
            Self::Overflow => {
                (503, Flag::Overflow, To::Abandoned, None, "The service accepts no more requests now.")
            }
            Self::NoRoom => (
                503,
                Flag::Overflow,
                To::Abandoned,
                Some(RetryOn::ConnectFailure),
                "The service cannot be reached.",
            ),
            Self::Timeout => (504, Flag::Timeout, To::Timeout, None, "The service did not answer in time."),
            Self::AttemptTimeout => {
                (504, Flag::Timeout, To::Timeout, Some(RetryOn::Reset), "The service did not answer in time.")
            }
            Self::StreamIdle => (504, Flag::StreamIdle, To::Timeout, None, "No data arrived for too long."),
            Self::Reset => {
                (502, Flag::UpstreamReset, To::Reset, Some(RetryOn::Reset), "The service failed to respond.")
            }
            Self::ResponseHeadTooLarge => (
                502,
                Flag::UpstreamProtocol,
                To::Reset,
                Some(RetryOn::Reset),
                "The headers of the service's response exceed the limit.",
            ),
            Self::Overloaded => (503, Flag::Overloaded, To::Abandoned, None, "The gateway is overloaded."),
            Self::Misconfigured => (500, Flag::None, To::Abandoned, None, "The request cannot be forwarded."),
            Self::PluginPanicked => (500, Flag::PluginPanicked, To::Abandoned, None, "The gateway failed."),
            Self::PluginAborted => {
                (500, Flag::PluginAborted, To::Abandoned, None, "The gateway cannot process the request.")
            }
            Self::ResponseTooLarge => (
                502,
                Flag::PluginAborted,
                To::Abandoned,
                None,
                "The service's response is larger than the limit.",
            ),
        };
        Row { status, flag, outcome, retry, detail }
    }

    /// The status of the client's response.
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.row().status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The response flag in the access log and the metrics.
    pub fn flag(self) -> Flag {
        self.row().flag
    }

    /// The detail for the client, which reveals nothing internal.
    pub fn detail(self) -> &'static str {
        self.row().detail
    }

    /// The outcome for a target that has not answered.
    pub fn outcome(self) -> Outcome {
        self.row().outcome
    }

    /// The outcome for a target that has answered, but whose response does not complete.
    pub fn outcome_after_head(self) -> Outcome {
        match self {
            // The duration of the body also depends on the client.
            Self::Timeout | Self::ClientDeadline => Outcome::Good,
            other => other.outcome(),
        }
    }

    /// The condition under which retries cover it; `None`: it is never retried.
    pub fn retry_condition(self) -> Option<RetryOn> {
        self.row().retry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns: status, flag, outcome without a response, outcome after its head, retry condition.
    #[test]
    fn what_follows_from_a_failure_is_what_the_documentation_says() {
        use Outcome::{Abandoned, ConnectFailure, Good, Reset, Timeout};
        let (on_connect, on_reset) = (Some(RetryOn::ConnectFailure), Some(RetryOn::Reset));
        for (failure, status, flag, outcome, after_head, retry) in [
            (Failure::NoRoute, 404, "NR", Abandoned, Abandoned, None),
            (Failure::NoHealthyTarget, 503, "UH", Abandoned, Abandoned, None),
            (Failure::ConnectFailure, 503, "UF", ConnectFailure, ConnectFailure, on_connect),
            (Failure::NoRoom, 503, "UO", Abandoned, Abandoned, on_connect),
            (Failure::Overflow, 503, "UO", Abandoned, Abandoned, None),
            (Failure::Timeout, 504, "UT", Timeout, Good, None),
            (Failure::AttemptTimeout, 504, "UT", Timeout, Timeout, on_reset),
            (Failure::ClientDeadline, 504, "UT", Abandoned, Good, None),
            (Failure::StreamIdle, 504, "SI", Timeout, Timeout, None),
            (Failure::Overloaded, 503, "OM", Abandoned, Abandoned, None),
            (Failure::Reset, 502, "UC", Reset, Reset, on_reset),
            (Failure::ResponseHeadTooLarge, 502, "UPE", Reset, Reset, on_reset),
            (Failure::BodyTooLarge, 413, "", Abandoned, Abandoned, None),
            (Failure::HeadTooLarge, 431, "DPE", Abandoned, Abandoned, None),
            (Failure::BadRequest(""), 400, "DPE", Abandoned, Abandoned, None),
            (Failure::HeadTimeout, 408, "DPE", Abandoned, Abandoned, None),
            (Failure::ClientBroke, 400, "DPE", Abandoned, Abandoned, None),
            (Failure::BodyTimeout, 408, "DPE", Abandoned, Abandoned, None),
            (Failure::ClientGone, 499, "DC", Abandoned, Abandoned, None),
            (Failure::PluginPanicked, 500, "PP", Abandoned, Abandoned, None),
            (Failure::PluginAborted, 500, "PA", Abandoned, Abandoned, None),
            (Failure::ResponseTooLarge, 502, "PA", Abandoned, Abandoned, None),
        ] {
            assert_eq!(failure.status(), status, "{failure:?}");
            assert_eq!(failure.flag().as_str(), flag, "{failure:?}");
            assert_eq!(failure.outcome(), outcome, "{failure:?}");
            assert_eq!(failure.outcome_after_head(), after_head, "{failure:?}");
            assert_eq!(failure.retry_condition(), retry, "{failure:?}");
        }
    }
}
