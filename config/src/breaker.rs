use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Errors;
use crate::respond::{Respond, RespondSpec};
use crate::values::{HumanDuration, millionths};

/// Limits that keep an upstream in trouble from exhausting the proxy.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CircuitBreakerSpec {
    /// Limits on what is sent at once, over all workers of a proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<UpstreamLimitsSpec>,
    /// The error rate at which the circuit breaker opens, so that nothing is sent for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_rate: Option<ErrorRateSpec>,
}

/// Limits on what is sent to an upstream at once, over all workers of a proxy. Requests beyond a limit are answered 503.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamLimitsSpec {
    /// The most connections to the targets, idle ones included. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// The most requests at once. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u32>,
    /// The most requests that wait for a connection when `connections` is reached, each for at most `connect_timeout`; default 1024.
    /// 0: no request waits.
    #[schemars(example = 1024)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<u32>,
}

/// The circuit breaker opens, so that nothing is sent, when too many requests fail: without a response, with a status of 500 or
/// more, or after `timeout`. After a while a few requests are let through. If they succeed, the breaker closes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorRateSpec {
    /// The share of failed requests in `window` at which the breaker opens, from 0.01 to 1; default 0.5.
    #[schemars(range(min = 0, max = 1), example = 0.5)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// The time over which requests are counted, from 100ms to 10m; default 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<HumanDuration>,
    /// The fewest requests in `window` for the breaker to open; default 20. So many failures in a row open it at once, whatever came
    /// before.
    #[schemars(example = 20)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_requests: Option<u32>,
    /// The time that the breaker stays open before it lets requests through to try, from 10ms to 1h; default 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_for: Option<HumanDuration>,
    /// The longest time until a response begins. A request that takes longer is canceled and counts as failed. Absent: the timeout of the
    /// request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// The response while the breaker is open. Absent: 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<RespondSpec>,
}

/// Limits that keep an upstream in trouble from exhausting the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct CircuitBreaker {
    /// Limits on what is sent at once.
    pub limits: Option<UpstreamLimits>,
    /// The error rate at which the breaker opens.
    pub error_rate: Option<ErrorRate>,
}

/// Limits on what is sent at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UpstreamLimits {
    /// The most connections; `u32::MAX`: no limit.
    pub connections: u32,
    /// The most requests; `u32::MAX`: no limit.
    pub requests: u32,
    /// The most requests that wait for a connection.
    pub pending: u32,
}

/// The error rate at which an upstream gets no requests for a while.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ErrorRate {
    /// The share of failures, in millionths.
    pub threshold: u32,
    /// The time over which requests are counted.
    pub window: Duration,
    /// The fewest requests for the breaker to open.
    pub min_requests: u32,
    /// The time that the breaker stays open.
    pub open_for: Duration,
    /// The longest time until a response begins.
    pub timeout: Option<Duration>,
    /// The response while the breaker is open; `None`: 503.
    pub fallback: Option<Respond>,
}

const DEFAULT_PENDING: u32 = 1024;
const MAX_LIMIT: u32 = 1_000_000;

impl CircuitBreakerSpec {
    pub(crate) fn parse(&self, field: &str, errors: &mut Errors) -> CircuitBreaker {
        CircuitBreaker {
            limits: self.limits.as_ref().map(|limits| limits.parse(&format!("{field}.limits"), errors)),
            error_rate: self
                .error_rate
                .as_ref()
                .map(|error_rate| error_rate.parse(&format!("{field}.error_rate"), errors)),
        }
    }
}

impl UpstreamLimitsSpec {
    fn parse(&self, field: &str, errors: &mut Errors) -> UpstreamLimits {
        let mut limit = |name: &str, value: Option<u32>, least: u32, default: u32| {
            if value.is_some_and(|value| !(least..=MAX_LIMIT).contains(&value)) {
                errors.push(
                    format_args!("{field}.{name}"),
                    format_args!("must be from {least} to {MAX_LIMIT}"),
                );
            }
            value.unwrap_or(default)
        };
        UpstreamLimits {
            connections: limit("connections", self.connections, 1, u32::MAX),
            requests: limit("requests", self.requests, 1, u32::MAX),
            pending: limit("pending", self.pending, 0, DEFAULT_PENDING),
        }
    }
}

impl ErrorRateSpec {
    fn parse(&self, field: &str, errors: &mut Errors) -> ErrorRate {
        let threshold = self.threshold.map_or(Some(500_000), millionths);
        if threshold.is_none_or(|threshold| threshold < 10_000) {
            errors.push(format_args!("{field}.threshold"), "must be from 0.01 to 1");
        }
        let min_requests = self.min_requests.unwrap_or(20);
        if !(1..=MAX_LIMIT).contains(&min_requests) {
            errors.push(format_args!("{field}.min_requests"), format_args!("must be from 1 to {MAX_LIMIT}"));
        }
        let mut duration = |name: &str, value: Option<HumanDuration>, (least, most): (&str, &str)| {
            let bound = |text: &str| text.parse().unwrap_or(HumanDuration(Duration::ZERO));
            if value.is_some_and(|value| value < bound(least) || value > bound(most)) {
                errors.push(format_args!("{field}.{name}"), format_args!("must be from {least} to {most}"));
            }
            value.map(|value| value.0)
        };
        let window = duration("window", self.window, ("100ms", "10m"));
        let open_for = duration("open_for", self.open_for, ("10ms", "1h"));
        let timeout = duration("timeout", self.timeout, ("1ms", "1h"));
        ErrorRate {
            threshold: threshold.unwrap_or(500_000),
            window: window.unwrap_or(Duration::from_secs(10)),
            min_requests,
            open_for: open_for.unwrap_or(Duration::from_secs(5)),
            timeout,
            fallback: self
                .fallback
                .as_ref()
                .map(|fallback| fallback.parse(&format!("{field}.fallback"), errors)),
        }
    }
}
