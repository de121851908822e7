//! The configuration of `concurrency-limit`.

use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, HumanDuration};

use super::gradient::Bounds;
use crate::limit::By;

/// The number of requests that may be under way at once.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(
    title = "Concurrency limit",
    example = serde_json::json!({"limit": 100}),
    example = serde_json::json!({"limit": 5, "by": "consumer", "retry_after": "3s"}),
    example = serde_json::json!({"adaptive": {"min": 10, "max": 500}}),
)]
pub(crate) struct Config {
    /// The number of requests of a client that may be under way at once. Either this or `adaptive` is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Limit", range(min = 1, max = 1_000_000))]
    pub(super) limit: Option<NonZeroU32>,
    /// The property that identifies a client. A request without it counts for its IP address.
    #[serde(default = "everybody")]
    #[schemars(title = "Count by")]
    pub(super) by: By,
    /// The header whose value identifies the client, for `by: header`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Header")]
    pub(super) header: Option<String>,
    /// Finds the limit by the latency of the upstream. It is one limit for all clients together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Adaptive")]
    pub(super) adaptive: Option<Adaptive>,
    /// The time after which a refused client is told to try again, from 1s to 1h.
    #[serde(default = "default_retry_after")]
    #[schemars(title = "Retry after")]
    pub(super) retry_after: HumanDuration,
}

/// The bounds of an adaptive limit.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Adaptive limit")]
pub(super) struct Adaptive {
    /// The limit at the beginning, and the lowest one outside of probes.
    #[serde(default = "default_min")]
    #[schemars(title = "Min", range(min = 1, max = 1_000_000))]
    min: NonZeroU32,
    /// The highest limit.
    #[serde(default = "default_max")]
    #[schemars(title = "Max", range(min = 1, max = 1_000_000))]
    max: NonZeroU32,
    /// The latency that is tolerated, as a multiple of the usual one, from 1.25 to 10.
    #[serde(default = "default_tolerance")]
    #[schemars(title = "Tolerance", range(min = 1.25, max = 10.0))]
    tolerance: f64,
    /// The number of requests that may wait at the upstream without making the limit smaller.
    #[serde(default = "default_queue")]
    #[schemars(title = "Queue", range(min = 1, max = 1000))]
    queue: NonZeroU32,
}

/// The most that a number of requests may be.
const MOST: u32 = 1_000_000;
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

impl Config {
    /// Adds the errors beyond the fields' types to `errors`.
    pub(super) fn check(&self, errors: &mut Errors) {
        match (&self.limit, &self.adaptive) {
            (None, None) => errors.push("limit", "is required, unless adaptive is given"),
            (Some(_), Some(_)) => errors.push("adaptive", "cannot be combined with limit"),
            (Some(limit), None) if limit.get() > MOST => {
                errors.push("limit", format_args!("must be at most {MOST}"));
            }
            (Some(_), None) => {}
            (None, Some(adaptive)) => adaptive.check(errors),
        }
        if self.adaptive.is_some() && self.by != By::Global {
            errors.push("by", "must be global, because an adaptive limit is one for all clients");
        }
        self.by.check(self.header.as_deref(), errors);
        if !(Duration::from_secs(1)..=MAX_RETRY_AFTER).contains(&self.retry_after.0) {
            errors.push("retry_after", "must be from 1s to 1h");
        }
    }
}

impl Adaptive {
    fn check(&self, errors: &mut Errors) {
        if self.min > self.max {
            errors.push("adaptive.min", "must not be greater than max");
        }
        if self.max.get() > MOST {
            errors.push("adaptive.max", format_args!("must be at most {MOST}"));
        }
        if !(1.25..=10.0).contains(&self.tolerance) {
            errors.push("adaptive.tolerance", "must be from 1.25 to 10");
        }
        if self.queue.get() > 1000 {
            errors.push("adaptive.queue", "must be at most 1000");
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            min: self.min.get(),
            max: self.max.get(),
            tolerance: self.tolerance,
            queue: self.queue.get().into(),
        }
    }
}

fn everybody() -> By {
    By::Global
}

fn default_retry_after() -> HumanDuration {
    HumanDuration(Duration::from_secs(1))
}

fn default_min() -> NonZeroU32 {
    NonZeroU32::new(20).unwrap_or(NonZeroU32::MIN)
}

fn default_max() -> NonZeroU32 {
    NonZeroU32::new(200).unwrap_or(NonZeroU32::MIN)
}

fn default_tolerance() -> f64 {
    1.5
}

fn default_queue() -> NonZeroU32 {
    NonZeroU32::new(4).unwrap_or(NonZeroU32::MIN)
}
