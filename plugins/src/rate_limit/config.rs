//! The configuration of `rate-limit`.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, HumanDuration};

use crate::limit::{Budget, By, MAX_SPAN, OnStoreError, nanoseconds};
use crate::redis::RedisSettings;

/// The number of requests in a span of time, and the client that they are counted for.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Rate limit", example = serde_json::json!({"limit": 100}), example = serde_json::json!({
    "limit": 10, "window": "1s", "burst": 50, "by": "consumer", "algorithm": "token-bucket",
}), example = serde_json::json!({
    "limit": 10_000, "window": "1h", "store": "local-with-sync", "lease": 50,
    "redis": {
        "addresses": ["sentinel-1:26379", "sentinel-2:26379", "sentinel-3:26379"],
        "mode": "sentinel", "service": "main", "password": {"env": "REDIS_PASSWORD"}, "tls": {},
    },
}))]
pub(crate) struct Config {
    /// The number of requests that a client may make in each window.
    #[schemars(title = "Limit", range(min = 1, max = 1_000_000_000))]
    pub(super) limit: NonZeroU32,
    /// The length of the window, at least 1ms.
    #[serde(default = "default_window")]
    #[schemars(title = "Window")]
    pub(super) window: HumanDuration,
    /// The number of requests that may come at once. Absent: `limit` for a token bucket, 1 for a leaky bucket. A sliding window has
    /// no burst.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Burst", range(min = 1, max = 1_000_000_000))]
    pub(super) burst: Option<NonZeroU32>,
    /// The property that identifies a client. A request without it counts for its IP address.
    #[serde(default)]
    #[schemars(title = "Count by")]
    pub(super) by: By,
    /// The header whose value identifies the client, for `by: header`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Header")]
    pub(super) header: Option<String>,
    /// The algorithm by which requests are counted.
    #[serde(default)]
    #[schemars(title = "Algorithm")]
    pub(super) algorithm: Algorithm,
    /// The place where counts are kept.
    #[serde(default)]
    #[schemars(title = "Store")]
    pub(super) store: Store,
    /// The Redis servers, for `store: redis` and `local-with-sync`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Redis")]
    pub(super) redis: Option<RedisSettings>,
    /// The treatment of requests while Redis does not answer.
    #[serde(default)]
    #[schemars(title = "On store error")]
    pub(super) on_store_error: OnStoreError,
    /// The most requests that each proxy takes from a client's shared count beforehand, for `store: local-with-sync`. Absent: a
    /// hundredth of `limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Lease", range(min = 1, max = 1_000_000))]
    pub(super) lease: Option<NonZeroU32>,
    /// The status of the response to a request beyond the limit, from 400 to 599.
    #[serde(default = "default_status")]
    #[schemars(title = "Status", range(min = 400, max = 599))]
    pub(super) status: NonZeroU16,
    /// Omits all headers about the limit, even `Retry-After`.
    #[serde(default)]
    #[schemars(title = "Hide headers")]
    pub(super) hide_headers: bool,
    /// Adds to responses the IETF draft's `RateLimit-Policy` and `RateLimit`.
    #[serde(default)]
    #[schemars(title = "IETF headers")]
    pub(super) ietf_headers: bool,
}

/// The algorithm by which requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Algorithm {
    /// At most `limit` requests in any span of time as long as the window.
    #[default]
    SlidingWindow,
    /// A bucket of tokens that is refilled evenly.
    TokenBucket,
    /// A token bucket with a single token unless `burst` is set.
    LeakyBucket,
}

/// The place where counts are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Store {
    /// Each proxy counts by itself.
    #[default]
    Local,
    /// All proxies count together in Redis. Each request waits for its answer.
    Redis,
    /// All proxies count together in Redis. Each takes leases beforehand, so that few requests wait.
    LocalWithSync,
}

const MIN_WINDOW: Duration = Duration::from_millis(1);

impl Config {
    /// Adds the errors beyond the fields' types to `errors`.
    pub(super) fn check(&self, errors: &mut Errors) {
        if self.window.0 < MIN_WINDOW {
            errors.push("window", "must be at least 1ms");
        }
        if self.burst.is_some() && self.algorithm == Algorithm::SlidingWindow {
            errors
                .push("burst", "needs algorithm token-bucket or leaky-bucket: a sliding window has no burst");
        }
        self.by.check(self.header.as_deref(), errors);
        self.check_store(errors);
    }

    pub(super) fn budget(&self) -> Budget {
        let burst = |default| u64::from(self.burst.map_or(default, NonZeroU32::get));
        let (limit, window) = (self.limit.get(), nanoseconds(self.window.0));
        match self.algorithm {
            Algorithm::SlidingWindow => Budget::sliding_window(limit.into(), window),
            Algorithm::TokenBucket => Budget::bucket(limit.into(), window, burst(limit)),
            Algorithm::LeakyBucket => Budget::bucket(limit.into(), window, burst(1)),
        }
    }

    fn check_store(&self, errors: &mut Errors) {
        match (self.store, &self.redis) {
            (Store::Local, Some(_)) => {
                errors.push("redis", "is only used by store redis and local-with-sync");
            }
            (Store::Local, None) => {}
            (_, None) => errors.push("redis", "is required when the store is in Redis"),
            (_, Some(redis)) => redis.check(errors),
        }
        if self.lease.is_some() && self.store != Store::LocalWithSync {
            errors.push("lease", "is only used by store local-with-sync");
        }
        let budget = self.budget();
        let refill = u128::from(budget.most_at_once()) * u128::from(budget.window / 1000);
        let longest = refill / u128::from(budget.limit.max(1));
        if self.store != Store::Local && longest.max(u128::from(budget.window / 1000)) > u128::from(MAX_SPAN)
        {
            errors.push("window", "and the time to refill the burst must be at most 100 years in Redis");
        }
    }

    /// All that gives a count its meaning but the limit.
    pub(super) fn scope(&self, budget: &Budget, plugin: &str) -> Box<[u8]> {
        let (algorithm, by) = (self.algorithm, self.by);
        let header = self.header.as_deref().unwrap_or_default().to_ascii_lowercase();
        format!("{plugin}\n{algorithm:?}\n{by:?}\n{header}\n{}", budget.window).into_bytes().into()
    }
}

fn default_window() -> HumanDuration {
    HumanDuration(Duration::from_secs(60))
}

fn default_status() -> NonZeroU16 {
    NonZeroU16::new(429).unwrap_or(NonZeroU16::MIN)
}
