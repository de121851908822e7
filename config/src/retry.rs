use std::time::Duration;

use http::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Errors;
use crate::values::{HumanDuration, millionths};

/// The failures after which a request is tried again, as people write them.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetrySpec {
    /// The most retries of a request, from 1 to 10; default 1.
    #[schemars(example = 1)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// The failures after which a request is tried again; default `[connect-failure, reset, gateway-error]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<Vec<RetryOn>>,
    /// The longest time until the response of one attempt begins. Absent: the timeout of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<HumanDuration>,
    /// The largest share of retries among the requests that run, from 0 to 1; default 0.2. It is counted over the upstream's requests of
    /// routes that retry. Three retries at once are always allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1), example = 0.2)]
    pub budget: Option<f64>,
    /// The methods that are tried again although the target may have seen the request. Absent: the idempotent methods. A gRPC call
    /// whose status is in `on` is tried again whatever its method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
}

/// A failure after which a request is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// No connection could be opened. The target cannot have seen the request, so the method does not matter.
    ConnectFailure,
    /// The target closed the connection before it responded, its response is malformed, or it did not begin in `per_try_timeout`.
    Reset,
    /// The status is 500 or more. Includes `reset` and `connect-failure`.
    #[serde(rename = "5xx")]
    ServerError,
    /// The status is 502, 503 or 504. Includes `reset` and `connect-failure`.
    GatewayError,
    /// The status is 409.
    #[serde(rename = "retriable-4xx")]
    Retriable4xx,
    /// The response is gRPC status 1 without a message.
    Cancelled,
    /// The response is gRPC status 4 without a message.
    DeadlineExceeded,
    /// The response is gRPC status 13 without a message.
    Internal,
    /// The response is gRPC status 8 without a message.
    ResourceExhausted,
    /// The response is gRPC status 14 without a message.
    Unavailable,
}

/// The failures after which a request is tried again.
#[derive(Debug, Clone)]
pub struct Retry {
    /// The most retries of a request.
    pub attempts: u8,
    /// After what.
    pub on: RetrySet,
    /// For one attempt, until its answer begins.
    pub per_try_timeout: Option<Duration>,
    /// The share of running requests that may be retries, in millionths.
    pub budget: u32,
    /// The methods that are tried again; `None`: the idempotent ones.
    pub methods: Option<Box<[Method]>>,
}

/// A set of [`RetryOn`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetrySet(u16);

const MAX_ATTEMPTS: u32 = 10;
const MAX_METHODS: usize = 20;
const DEFAULT_BUDGET: u32 = 200_000;

impl RetrySpec {
    pub(crate) fn parse(&self, field: &str, errors: &mut Errors) -> Retry {
        let attempts = self.attempts.unwrap_or(1);
        if !(1..=MAX_ATTEMPTS).contains(&attempts) {
            errors.push(format_args!("{field}.attempts"), format_args!("must be from 1 to {MAX_ATTEMPTS}"));
        }
        let on = match &self.on {
            None => RetrySet::default().with(RetryOn::Reset).with(RetryOn::GatewayError),
            Some(on) => {
                if on.is_empty() {
                    errors.push(format_args!("{field}.on"), "must not be empty");
                }
                on.iter().fold(RetrySet::default(), |set, on| set.with(*on))
            }
        };
        let per_try_timeout = self.per_try_timeout.map(|timeout| timeout.0);
        if per_try_timeout.is_some_and(|timeout| timeout < Duration::from_millis(1)) {
            errors.push(format_args!("{field}.per_try_timeout"), "must be at least 1ms");
        }
        let budget = self.budget.map_or(Some(DEFAULT_BUDGET), millionths);
        if budget.is_none() {
            errors.push(format_args!("{field}.budget"), "must be from 0 to 1");
        }
        let methods = self.methods.as_ref().map(|names| {
            if names.is_empty() || names.len() > MAX_METHODS {
                errors.push(
                    format_args!("{field}.methods"),
                    format_args!("must have from 1 to {MAX_METHODS} entries"),
                );
            }
            let mut methods = Vec::with_capacity(names.len());
            for (index, name) in names.iter().enumerate() {
                match Method::from_bytes(name.as_bytes()) {
                    Ok(method) if !name.bytes().any(|b| b.is_ascii_lowercase()) => methods.push(method),
                    _ => errors.push(
                        format_args!("{field}.methods[{index}]"),
                        format_args!("{name:?} is not an HTTP method in upper case"),
                    ),
                }
            }
            methods.into()
        });
        Retry {
            attempts: attempts.min(MAX_ATTEMPTS) as u8,
            on,
            per_try_timeout,
            budget: budget.unwrap_or(DEFAULT_BUDGET),
            methods,
        }
    }
}

impl RetrySet {
    /// Adds a failure, and those that it includes.
    #[must_use]
    pub fn with(self, on: RetryOn) -> Self {
        let all = match on {
            RetryOn::ServerError | RetryOn::GatewayError => {
                1 << RetryOn::Reset as u16 | 1 << RetryOn::ConnectFailure as u16
            }
            _ => 0,
        };
        Self(self.0 | all | 1 << on as u16)
    }

    /// True if it has `on`.
    pub fn has(self, on: RetryOn) -> bool {
        self.0 & 1 << on as u16 != 0
    }

    /// True if a request whose response has `status` is retried.
    pub fn has_status(self, status: u16) -> bool {
        match status {
            409 => self.has(RetryOn::Retriable4xx),
            502..=504 => self.has(RetryOn::GatewayError) || self.has(RetryOn::ServerError),
            500.. => self.has(RetryOn::ServerError),
            _ => false,
        }
    }

    /// True if a gRPC call that ended with `status` is retried.
    pub fn has_grpc_status(self, status: u8) -> bool {
        let on = match status {
            1 => RetryOn::Cancelled,
            4 => RetryOn::DeadlineExceeded,
            8 => RetryOn::ResourceExhausted,
            13 => RetryOn::Internal,
            14 => RetryOn::Unavailable,
            _ => return false,
        };
        self.has(on)
    }

    /// True if any gRPC status is in it.
    pub fn has_grpc(self) -> bool {
        [1, 4, 8, 13, 14].into_iter().any(|status| self.has_grpc_status(status))
    }
}
