//! The configuration of `token-limit`.

use std::num::NonZeroU32;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, HumanDuration};

use super::usage_scanner::Tokens;
use crate::limit::{Budget, By, OnStoreError, nanoseconds};
use crate::redis::RedisSettings;

/// The number of tokens in a span of time, and the client that they are counted for.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(
    title = "Token limit",
    example = serde_json::json!({"limit": 100_000}),
    example = serde_json::json!({"limit": 1_000_000, "window": "24h", "count": "completion", "estimate": 2000}),
    example = serde_json::json!({
        "limit": 100_000, "by": "consumer", "store": "redis", "on_store_error": "deny",
        "redis": {"addresses": ["redis:6379"], "password": {"env": "REDIS_PASSWORD"}},
    }),
)]
pub(crate) struct Config {
    /// The number of tokens that a client may use in each window.
    #[schemars(title = "Limit", range(min = 1, max = 1_000_000_000))]
    pub(super) limit: NonZeroU32,
    /// The length of the window, at least 1ms.
    #[serde(default = "default_window")]
    #[schemars(title = "Window")]
    pub(super) window: HumanDuration,
    /// The property that identifies a client. A request without it counts for its IP address.
    #[serde(default)]
    #[schemars(title = "Count by")]
    pub(super) by: By,
    /// The header whose value identifies the client, for `by: header`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Header")]
    pub(super) header: Option<String>,
    /// The tokens that are counted.
    #[serde(default)]
    #[schemars(title = "Count")]
    pub(super) count: Count,
    /// The number of tokens that a request counts for until its response tells the real one, at most `limit`. Absent: 500, or `limit`
    /// if that is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Estimate", range(min = 1, max = 1_000_000_000))]
    pub(super) estimate: Option<NonZeroU32>,
    /// The place where counts are kept.
    #[serde(default)]
    #[schemars(title = "Store")]
    pub(super) store: Store,
    /// The Redis servers, for `store: redis`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Redis")]
    pub(super) redis: Option<RedisSettings>,
    /// The treatment of requests while Redis does not answer.
    #[serde(default)]
    #[schemars(title = "On store error")]
    pub(super) on_store_error: OnStoreError,
    /// Omits all headers about the limit, even `Retry-After`.
    #[serde(default)]
    #[schemars(title = "Hide headers")]
    pub(super) hide_headers: bool,
    /// Adds to responses the IETF draft's `RateLimit-Policy` and `RateLimit`.
    #[serde(default)]
    #[schemars(title = "IETF headers")]
    pub(super) ietf_headers: bool,
}

/// The tokens that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Count {
    /// Those of the prompt and of the completion.
    #[default]
    Total,
    /// Those of the prompt.
    Prompt,
    /// Those of the completion.
    Completion,
}

/// The place where counts are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Store {
    /// Each proxy counts by itself.
    #[default]
    Local,
    /// All proxies count together in Redis. Each request waits for its answer.
    Redis,
}

const MIN_WINDOW: Duration = Duration::from_millis(1);
const DEFAULT_ESTIMATE: u32 = 500;
/// The most tokens that one request counts for, whatever its response says.
const MOST: u64 = 1_000_000_000;

impl Config {
    /// Adds the errors beyond the fields' types to `errors`.
    pub(super) fn check(&self, errors: &mut Errors) {
        if self.window.0 < MIN_WINDOW {
            errors.push("window", "must be at least 1ms");
        }
        if self.estimate.is_some_and(|estimate| estimate > self.limit) {
            errors.push("estimate", "must not be greater than limit");
        }
        self.by.check(self.header.as_deref(), errors);
        match (self.store, &self.redis) {
            (Store::Local, None) => {}
            (Store::Local, Some(_)) => errors.push("redis", "is only used by store redis"),
            (Store::Redis, None) => errors.push("redis", "is required when the store is in Redis"),
            (Store::Redis, Some(redis)) => redis.check(errors),
        }
    }

    /// All that gives a count its meaning but the limit.
    pub(super) fn scope(&self, plugin: &str) -> Box<[u8]> {
        let (count, by, window) = (self.count, self.by, nanoseconds(self.window.0));
        let header = self.header.as_deref().unwrap_or_default().to_ascii_lowercase();
        format!("{plugin}\ntokens {count:?}\n{by:?}\n{header}\n{window}").into_bytes().into()
    }

    pub(super) fn budget(&self) -> Budget {
        Budget::sliding_window(self.limit.get().into(), nanoseconds(self.window.0))
    }

    pub(super) fn estimate(&self) -> u64 {
        self.estimate.map_or(DEFAULT_ESTIMATE.min(self.limit.get()), NonZeroU32::get).into()
    }
}

impl Count {
    /// The number of tokens that are counted of those of a response.
    pub(super) fn of(self, tokens: Tokens) -> Option<u64> {
        let Tokens { prompt, completion, total } = tokens;
        let number = match self {
            Self::Prompt => prompt,
            Self::Completion => completion,
            Self::Total => total.or_else(|| Some(prompt?.saturating_add(completion?))),
        };
        number.map(|number| number.min(MOST))
    }
}

fn default_window() -> HumanDuration {
    HumanDuration(Duration::from_secs(60))
}
