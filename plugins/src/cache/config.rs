//! The configuration of `cache`.

use std::time::Duration;

use http::header::HeaderName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{ByteSize, Errors, HumanDuration};

use super::freshness::Defaults;
use super::purge::{self, ConfiguredPurge};
use super::storing::Rules;

/// The responses that are stored, and how long they are used.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Cache", example = serde_json::json!({}), example = serde_json::json!({
    "max_size": "256MiB", "max_entry": "4MiB", "ttl": "1m",
    "stale_while_revalidate": "30s", "stale_if_error": "10m", "vary": ["x-tenant"],
}), example = serde_json::json!({
    "purges": [{"id": "2026-11-30-1", "tag": "product-12"}, {"id": "2026-11-30-2", "prefix": "https://example.com/shop/"}],
}))]
pub(crate) struct Config {
    /// The memory for stored responses in each proxy, over all its workers. It includes headers, keys and responses that are on
    /// their way into the cache.
    #[serde(default = "default_max_size")]
    #[schemars(title = "Max size")]
    pub(super) max_size: ByteSize,
    /// The largest body that is stored.
    #[serde(default = "default_max_entry")]
    #[schemars(title = "Max entry")]
    pub(super) max_entry: ByteSize,
    /// The time for which a response is fresh that does not say so itself. Absent: it is not fresh, and is validated at each use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "TTL")]
    pub(super) ttl: Option<HumanDuration>,
    /// False: `ttl` applies to all responses, whatever they say of their freshness. What a response says against being stored
    /// (`no-store`, `private`) counts in any case.
    #[serde(default = "yes")]
    #[schemars(title = "Respect Cache-Control")]
    pub(super) respect_cache_control: bool,
    /// True if clients' `Cache-Control` counts, too. False: clients cannot pass by the cache.
    #[serde(default = "yes")]
    #[schemars(title = "Respect the request's Cache-Control")]
    pub(super) respect_request_cache_control: bool,
    /// The statuses of the responses that are stored.
    #[serde(default = "default_statuses")]
    #[schemars(title = "Statuses", length(min = 1))]
    pub(super) statuses: Vec<u16>,
    /// Request headers that tell responses apart, besides those that a response names in `Vary`.
    #[serde(default)]
    #[schemars(title = "Vary")]
    pub(super) vary: Vec<String>,
    /// True if each consumer has responses of its own. False: consumers share responses, but only those that say that they may be
    /// shared (`public`, `s-maxage` or `must-revalidate`).
    #[serde(default = "yes")]
    #[schemars(title = "Per consumer")]
    pub(super) per_consumer: bool,
    /// The time after its freshness in which a response is still used, while it is validated in the background, where the response
    /// does not say otherwise.
    #[serde(default = "zero")]
    #[schemars(title = "Stale while revalidate")]
    pub(super) stale_while_revalidate: HumanDuration,
    /// The time after its freshness in which a response takes the place of an error of the upstream, where the response does not
    /// say otherwise.
    #[serde(default = "zero")]
    #[schemars(title = "Stale if error")]
    pub(super) stale_if_error: HumanDuration,
    /// The longest time for which a request waits for the response to another one like it. `0s`: none waits.
    #[serde(default = "default_wait")]
    #[schemars(title = "Coalesce wait")]
    pub(super) coalesce_wait: HumanDuration,
    /// The response headers that name the tags by which responses can be purged, parted by commas or spaces.
    #[serde(default = "default_tag_headers")]
    #[schemars(title = "Tag headers")]
    pub(super) tag_headers: Vec<String>,
    /// The last purges, the newest at the end. A proxy carries out those that are new to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(title = "Purges")]
    pub(super) purges: Vec<ConfiguredPurge>,
    /// Omits `Cache-Status` and `X-Cache-Status`.
    #[serde(default)]
    #[schemars(title = "Hide headers")]
    pub(super) hide_headers: bool,
}

const SMALLEST: u64 = 64 << 10;
const LARGEST: u64 = 1 << 40;
const MOST_NAMES: usize = 16;

impl Config {
    /// Adds the errors beyond the shape.
    pub(super) fn check(&self, errors: &mut Errors) {
        if !(SMALLEST..=LARGEST).contains(&self.max_size.0) {
            errors.push("max_size", "must be from 64KiB to 1TiB");
        }
        if self.max_entry.0 == 0 || self.max_entry.0 > self.max_size.0 {
            errors.push("max_entry", "must be at least 1 and at most max_size");
        }
        if self.ttl.is_none() && !self.respect_cache_control {
            errors.push("ttl", "is required when respect_cache_control is false");
        }
        if self.ttl.is_some_and(|ttl| ttl.0.is_zero()) {
            errors.push("ttl", "must be longer than 0s");
        }
        if self.statuses.is_empty() {
            errors.push("statuses", "must have at least one status");
        }
        for (index, status) in self.statuses.iter().enumerate() {
            if !(200..600).contains(status) || matches!(status, 206 | 304) {
                errors.push(
                    format_args!("statuses[{index}]"),
                    "must be from 200 to 599, and neither 206 nor 304",
                );
            }
        }
        for (field, names) in [("vary", &self.vary), ("tag_headers", &self.tag_headers)] {
            if names.len() > MOST_NAMES {
                errors.push(field, format_args!("has more than {MOST_NAMES} names"));
            }
            for (index, name) in names.iter().enumerate() {
                if name.parse::<HeaderName>().is_err() {
                    let error = format_args!("{name:?} is not the name of a header");
                    errors.push(format_args!("{field}[{index}]"), error);
                }
            }
        }
        purge::check(&self.purges, errors);
        if self.coalesce_wait.0 > Duration::from_secs(60) {
            errors.push("coalesce_wait", "must be at most 60s");
        }
    }

    /// The rules by which responses are chosen.
    pub(super) fn rules(&self) -> Rules {
        let mut statuses = self.statuses.clone();
        statuses.sort_unstable();
        Rules {
            defaults: Defaults {
                ttl: self.ttl.map(|ttl| ttl.0),
                respects_response: self.respect_cache_control,
                stale_while_revalidate: self.stale_while_revalidate.0,
                stale_if_error: self.stale_if_error.0,
            },
            statuses: statuses.into(),
            tag_headers: names(&self.tag_headers),
        }
    }
}

/// The names of headers, without those that are none.
pub(super) fn names(texts: &[String]) -> Box<[HeaderName]> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn default_max_size() -> ByteSize {
    ByteSize(64 << 20)
}

fn default_max_entry() -> ByteSize {
    ByteSize(1 << 20)
}

fn default_statuses() -> Vec<u16> {
    vec![200, 203, 204, 300, 301, 302, 303, 307, 308, 404, 405, 410, 414, 451, 501]
}

fn default_wait() -> HumanDuration {
    HumanDuration(Duration::from_secs(5))
}

fn default_tag_headers() -> Vec<String> {
    ["cache-tag", "surrogate-key"].map(str::to_owned).to_vec()
}

fn zero() -> HumanDuration {
    HumanDuration(Duration::ZERO)
}

fn yes() -> bool {
    true
}
