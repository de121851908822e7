//! The decision whether a request is retried.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, request};
use signalbox_config::{Retry, RetryOn};
use signalbox_plugin::grpc::is_grpc;

use super::head;
use crate::core::failure::Failure;

/// The maximum delay of the first retry, doubled for each further one; the delay is random below it, as in Envoy.
const BACKOFF: Duration = Duration::from_millis(25);
const MAX_BACKOFF: Duration = Duration::from_millis(250);

/// The retries of one request.
pub(super) struct Retries<'a> {
    policy: &'a Retry,
    /// True if the target may see the request twice.
    repeatable: bool,
    grpc: bool,
    made: u8,
}

/// The decision after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// The attempt's result is final.
    Keep,
    /// The result would be retried, but the limit is reached.
    Exhausted,
    RetryAfter(Duration),
}

impl<'a> Retries<'a> {
    pub(super) fn new(policy: &'a Retry, head: &request::Parts) -> Self {
        let repeatable = match &policy.methods {
            Some(methods) => methods.contains(&head.method),
            None => is_idempotent(&head.method),
        };
        let grpc = policy.on.has_grpc() && is_grpc(&head.headers);
        Self { policy, repeatable, grpc, made: 0 }
    }

    /// Decides after an attempt. `has_begun`: the target may have seen a part of the request.
    pub(super) fn decide(
        &mut self,
        result: Result<(StatusCode, &HeaderMap), Failure>,
        has_begun: bool,
    ) -> Decision {
        if !self.covers(result, has_begun) {
            return Decision::Keep;
        }
        if self.made >= self.policy.attempts {
            return Decision::Exhausted;
        }
        let most = (BACKOFF * 2u32.pow(self.made.into())).min(MAX_BACKOFF);
        self.made += 1;
        Decision::RetryAfter(most.mul_f64(fastrand::f64()))
    }

    fn covers(&self, result: Result<(StatusCode, &HeaderMap), Failure>, has_begun: bool) -> bool {
        let on = self.policy.on;
        match result {
            Ok((status, headers)) => {
                let grpc_status = if self.grpc { head::grpc_status(headers) } else { None };
                (self.repeatable && on.has_status(status.as_u16()))
                    || grpc_status.is_some_and(|status| on.has_grpc_status(status))
            }
            Err(failure) => match failure.retry_condition() {
                None => false,
                Some(RetryOn::Reset) => on.has(RetryOn::Reset) && (self.repeatable || !has_begun),
                Some(condition) => on.has(condition),
            },
        }
    }
}

/// True for idempotent methods: RFC 9110, section 9.2.2.
pub(super) fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

#[cfg(test)]
mod tests {
    use http::Request;
    use serde_json::json;
    use signalbox_config::{Action, Body, Kind, Resource};
    use signalbox_plugins::builtin;

    use super::*;

    /// The status and the fields of an answer, or why there was none.
    type Given<'a> = Result<(u16, &'a [(&'a str, &'a str)]), Failure>;

    /// The decision for one result, if a route retries on `on` and the request has `method`.
    fn covers(on: &[&str], method: &str, result: Given<'_>, has_begun: bool) -> bool {
        let retry = json!({"attempts": 1, "on": on});
        let spec = json!({"name": "r", "forward": {"upstreams": [{"name": "u"}], "retry": retry}});
        let resource = Resource::parse(Kind::Route, spec, builtin()).unwrap();
        let Body::Route(route) = resource.body() else { panic!("{resource:?}") };
        let Action::Forward(forward) = &route.action else { panic!("{resource:?}") };
        let request = Request::builder().method(method).header("content-type", "application/grpc");
        let (head, ()) = request.body(()).unwrap().into_parts();
        let mut retries = Retries::new(forward.retry.as_deref().unwrap(), &head);
        let mut headers = HeaderMap::new();
        if let Ok((_, fields)) = result {
            for (name, value) in fields {
                headers
                    .insert(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
            }
        }
        let result = result.map(|(status, _)| (StatusCode::from_u16(status).unwrap(), &headers));
        let first = retries.decide(result, has_begun);
        // The second attempt reaches the limit.
        let second = retries.decide(result, has_begun);
        match first {
            Decision::Keep => assert_eq!(second, Decision::Keep),
            Decision::RetryAfter(wait) => {
                assert!(wait <= BACKOFF);
                assert_eq!(second, Decision::Exhausted);
            }
            Decision::Exhausted => panic!("it was not sent again yet"),
        }
        first != Decision::Keep
    }

    #[test]
    fn a_request_is_sent_again_only_where_that_is_wanted_and_does_no_harm() {
        let reset = Err(Failure::Reset);
        for (on, method, result, has_begun, expected) in [
            (&["connect-failure"][..], "POST", Err(Failure::ConnectFailure), false, true),
            (&["connect-failure"], "POST", Err(Failure::NoRoom), false, true),
            (&["connect-failure"], "GET", reset, true, false),
            (&["reset"], "GET", reset, true, true),
            (&["reset"], "POST", reset, true, false),
            (&["reset"], "POST", reset, false, true),
            (&["reset"], "GET", Err(Failure::AttemptTimeout), true, true),
            (&["reset"], "GET", Err(Failure::ResponseHeadTooLarge), true, true),
            (&["reset"], "GET", Err(Failure::Timeout), true, false),
            (&["reset"], "GET", Err(Failure::ClientBroke), true, false),
            (&["reset"], "GET", Err(Failure::Overflow), false, false),
            (&["5xx"], "GET", Ok((503, &[][..])), true, true),
            (&["5xx"], "POST", Ok((503, &[])), true, false),
            (&["5xx"], "GET", Ok((404, &[])), true, false),
            (&["unavailable"], "POST", Ok((200, &[("grpc-status", "14")])), true, true),
            (&["unavailable"], "POST", Ok((200, &[("grpc-status", "0")])), true, false),
        ] {
            assert_eq!(
                covers(on, method, result, has_begun),
                expected,
                "{on:?} {method} {result:?} {has_begun}"
            );
        }
    }
}
