use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Errors;
use crate::route::{Respond, RespondSpec};
use crate::values::{HumanDuration, millionths};

/// What keeps an upstream that is in trouble from taking others along.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CircuitBreakerSpec {
    /// How much may be under way at once, over all workers of a proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<UpstreamLimitsSpec>,
    /// Send nothing for a while when too much goes wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_rate: Option<ErrorRateSpec>,
}

/// How much may be under way at once, over all workers of a proxy. What is beyond is answered with 503.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamLimitsSpec {
    /// Connections to its targets, idle ones included; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Requests; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u32>,
    /// Requests that wait for a connection when there are as many as there may be, each for at most `connect_timeout`;
    /// default 1024; 0: none waits.
    #[schemars(example = 1024)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<u32>,
}

/// Opens, so that nothing is sent, when too many requests fail: without an answer, with a status of 500 and above, or
/// later than `timeout`. After a while a few requests are let through; if they succeed it closes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorRateSpec {
    /// It opens when this share of the requests in `window` failed, 0.01 to 1; default 0.5.
    #[schemars(range(min = 0, max = 1), example = 0.5)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// How far back is counted, 100ms to 10m; default 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<HumanDuration>,
    /// How many requests there must have been in `window`; default 20. As many failures in a row open it at once,
    /// whatever came before.
    #[schemars(example = 20)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_requests: Option<u32>,
    /// How long it stays open before requests are let through to try, 10ms to 1h; default 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_for: Option<HumanDuration>,
    /// How long an answer may take to begin; a request that takes longer is broken off and has failed. Absent: as long as
    /// the request may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// What is answered while it is open; absent: 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<RespondSpec>,
}

/// What keeps an upstream that is in trouble from taking others along.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct CircuitBreaker {
    /// How much may be under way.
    pub limits: Option<UpstreamLimits>,
    /// When it opens.
    pub error_rate: Option<ErrorRate>,
}

/// How much may be under way at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UpstreamLimits {
    /// Connections; `u32::MAX`: any number.
    pub connections: u32,
    /// Requests; `u32::MAX`: any number.
    pub requests: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
}

/// When an upstream gets no requests for a while.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ErrorRate {
    /// The share of failures, in millionths.
    pub threshold: u32,
    /// How far back is counted.
    pub window: Duration,
    /// How many requests it takes.
    pub min_requests: u32,
    /// How long it stays open.
    pub open_for: Duration,
    /// For an answer to begin.
    pub timeout: Option<Duration>,
    /// What is answered while it is open.
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
