//! Limits the number of requests that a client may make in a span of time.
//!
//! `limit` requests are allowed in every `window`, counted for each client by itself; `by` defines a client. Each
//! plugin counts on its own, over all routes that it is attached to, and so does each proxy: with `store: local`, a
//! fleet of ten proxies lets through up to ten times the limit.
//!
//! ## Algorithms
//!
//! - `sliding-window` (default): never more than `limit` requests in *any* span of time as long as `window`. Up to a
//!   limit of 64 it is exact to the nanosecond; beyond, a request counts for up to 1/63 of the window longer than it must,
//!   which keeps the memory for a client at about 1 KiB.
//! - `token-bucket`: a bucket of `burst` tokens (absent: `limit`) is filled again evenly, `limit` tokens a window; each
//!   request takes one. In a time t at most `burst` + t × `limit` / `window` requests pass.
//! - `leaky-bucket`: the same with a `burst` of 1 where none is given: requests must come evenly spaced. What comes too
//!   early is refused, not delayed.
//!
//! They hold exactly however many requests come at once: a client's count is read and raised in one step. Time is the
//! proxy's monotonic clock, so a wall clock that is set back or forward changes nothing. Refused requests do not count.
//!
//! ## Clients
//!
//! `ip` is the client's address as far as it can be trusted; an IPv6 client is its /64 network, which is what one client
//! commonly has. `consumer` is who an authentication plugin found, the anonymous consumer included; `credential` tells
//! apart the keys of one consumer. `header` is the value of the header that `header` names, `path` the path of the request
//! as the client wrote it, and `global` is everybody together. A request that has no such thing (no consumer, no such
//! header) counts for its `ip`.
//!
//! ## Answers
//!
//! Every answer carries `RateLimit-Limit` (the `limit`), `RateLimit-Remaining` (how many would pass now) and
//! `RateLimit-Reset` (seconds until nothing is counted any more), and the same as `X-RateLimit-…`. A request too many is
//! answered `429` (or `status`) with `Retry-After`, the seconds after which one will pass. `ietf_headers` adds
//! `RateLimit-Policy` and `RateLimit` as the IETF's draft has them; `hide_headers` leaves all of these out.
//!
//! ## Changes and bounds
//!
//! Counts outlive a change of `limit`, `burst` and all that concerns answers; a change of `by`, `header`, `algorithm` or
//! `window` begins anew, and so does a restart of the proxy. A plugin knows about 65,000 clients at once, and forgets one
//! only when nothing is counted for it any more, so nobody gets a fresh count by coming under many names. Should all be
//! in use, clients that are new share one count in each of 64 groups, until some room is free.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foldhash::{fast, quality};
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, FieldError, HumanDuration};
use signalbox_plugin::{Consumers, Context, Definition, Flow, Plugin, PluginRequest, Reply, hooks};

/// The number of requests in a span of time, and the client that they are counted for.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Rate limit", example = serde_json::json!({"limit": 100}), example = serde_json::json!({
    "limit": 10, "window": "1s", "burst": 50, "by": "consumer", "algorithm": "token-bucket",
}))]
pub(crate) struct Config {
    /// The number of requests that a client may make in each window.
    #[schemars(title = "Limit", range(min = 1, max = 1_000_000_000))]
    limit: NonZeroU32,
    /// The length of the window, at least 1ms.
    #[serde(default = "default_window")]
    #[schemars(title = "Window")]
    window: HumanDuration,
    /// The number of requests that may come at once. Absent: `limit` for a token bucket, 1 for a leaky bucket. A sliding window has
    /// no burst.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Burst", range(min = 1, max = 1_000_000_000))]
    burst: Option<NonZeroU32>,
    /// The property that identifies a client. A request without it counts for its IP address.
    #[serde(default)]
    #[schemars(title = "Count by")]
    by: By,
    /// The header whose value identifies the client, for `by: header`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Header")]
    header: Option<String>,
    /// The algorithm by which requests are counted.
    #[serde(default)]
    #[schemars(title = "Algorithm")]
    algorithm: Algorithm,
    /// The place where counts are kept.
    #[serde(default)]
    #[schemars(title = "Store")]
    store: Store,
    /// The status of the response to a request beyond the limit, from 400 to 599.
    #[serde(default = "default_status")]
    #[schemars(title = "Status", range(min = 400, max = 599))]
    status: NonZeroU16,
    /// Omits all headers about the limit, even `Retry-After`.
    #[serde(default)]
    #[schemars(title = "Hide headers")]
    hide_headers: bool,
    /// Adds to responses the IETF draft's `RateLimit-Policy` and `RateLimit`.
    #[serde(default)]
    #[schemars(title = "IETF headers")]
    ietf_headers: bool,
}

/// The property that identifies a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum By {
    /// The authenticated consumer.
    #[default]
    Consumer,
    /// The IP address, or the /64 network of an IPv6 address.
    Ip,
    /// The value of a header.
    Header,
    /// The path of the request.
    Path,
    /// The credential by which the consumer authenticated.
    Credential,
    /// All clients together.
    Global,
}

/// The algorithm by which requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Algorithm {
    /// At most `limit` requests in any span of time as long as the window.
    #[default]
    SlidingWindow,
    /// A bucket of tokens that is refilled evenly.
    TokenBucket,
    /// A token bucket with a single token unless `burst` is set.
    LeakyBucket,
}

/// The place where counts are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Store {
    /// Each proxy counts by itself.
    #[default]
    Local,
    /// All proxies count together in Redis. Not supported by this version.
    Redis,
}

/// Limits the number of requests that a client may make in a span of time.
pub(crate) struct RateLimit {
    budget: Budget,
    by: By,
    header: Option<HeaderName>,
    counters: Arc<Counters>,
    status: StatusCode,
    headers: Option<AnswerHeaders>,
}

#[hooks]
impl Plugin for RateLimit {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        let client = self.client(request);
        let now = u64::try_from(request.now.as_nanos()).unwrap_or(u64::MAX);
        let verdict = self.counters.take(client, now, &self.budget);
        if let Some(headers) = &self.headers {
            headers.write(&verdict, request);
        }
        match verdict.refused_for {
            None => Flow::Continue,
            Some(wait) => self.refuse(wait),
        }
    }

    fn uses_consumer_headers(&self) -> bool {
        self.header.as_ref().is_some_and(|name| Consumers::HEADERS.contains(name))
    }
}

impl Definition for RateLimit {
    const NAME: &'static str = "rate-limit";
    const DESCRIPTION: &'static str = "Limits how many requests a client may make in a time.";
    const ORDER: i32 = 910;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        if config.window.0 < MIN_WINDOW {
            errors.push("window", "must be at least 1ms");
        }
        if config.burst.is_some() && config.algorithm == Algorithm::SlidingWindow {
            errors
                .push("burst", "needs algorithm token-bucket or leaky-bucket: a sliding window has no burst");
        }
        match (config.by, config.header.as_deref()) {
            (By::Header, None) => errors.push("header", "is required when by is header"),
            (By::Header, Some(name)) if name.parse::<HeaderName>().is_err() => {
                errors.push("header", format_args!("{name:?} is not the name of a header"));
            }
            (By::Header, Some(_)) | (_, None) => {}
            (_, Some(_)) => errors.push("header", "is only used when by is header"),
        }
        if config.store == Store::Redis {
            errors.push("store", "redis is not supported by this version");
        }
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        Self::check(&config, &mut errors);
        let status = StatusCode::from_u16(config.status.get());
        if let Err(error) = &status {
            errors.push("status", error);
        }
        let header: Option<HeaderName> = config.header.as_deref().and_then(|name| name.parse().ok());
        let budget = Budget::of(&config);
        let headers = (!config.hide_headers).then(|| AnswerHeaders::of(&config, context));
        // The limit is not part of it: a changed limit must not give everybody a fresh count.
        let identity = (config.algorithm, budget.window, config.by, &header);
        let counters = context.state(&identity, Counters::default);
        let (by, status) = (config.by, status.unwrap_or(StatusCode::TOO_MANY_REQUESTS));
        errors.finish(Some(Self { budget, by, header, counters, status, headers }))
    }
}

impl RateLimit {
    fn client(&self, request: &PluginRequest<'_>) -> Client {
        let identity = request.exchange.identity.as_ref();
        let texts: Option<[&[u8]; 2]> = match self.by {
            By::Ip => None,
            By::Global => Some([b"", b""]),
            By::Path => Some([request.head.uri.path().as_bytes(), b""]),
            By::Header => {
                let value = self.header.as_ref().and_then(|name| request.head.headers.get(name));
                value.map(|value| [value.as_bytes(), b""])
            }
            By::Consumer => identity.map(|identity| [identity.consumer.name.as_str().as_bytes(), b""]),
            By::Credential => identity.and_then(|identity| {
                let credential = identity.credential.as_ref()?;
                Some([identity.consumer.name.as_str().as_bytes(), credential.as_bytes()])
            }),
        };
        match texts {
            Some(texts) => self.counters.client_of(&texts),
            None => Client::of_address(request.client),
        }
    }

    fn refuse(&self, wait: u64) -> Flow<'static> {
        let mut headers = HeaderMap::new();
        if self.headers.is_some() {
            headers.insert(RETRY_AFTER, decimal(seconds(wait).max(1)));
        }
        Reply::Problem { status: self.status, detail: "too many requests".into(), headers }.into()
    }
}

/// The headers by which answers tell the limit.
struct AnswerHeaders {
    limit: HeaderValue,
    ietf: Option<IetfHeaders>,
}

struct IetfHeaders {
    /// The policy's name, quoted.
    name: Box<str>,
    policy: HeaderValue,
}

const RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RATELIMIT_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

impl AnswerHeaders {
    fn of(config: &Config, context: &Context<'_>) -> Self {
        let limit = config.limit.get();
        // A plugin's name has no character that a quoted string would have to escape.
        let name = format!("\"{}\"", context.name);
        let window = seconds(nanoseconds(config.window.0));
        let policy = HeaderValue::from_str(&format!("{name};q={limit};w={window}"));
        let ietf = policy.ok().filter(|_| config.ietf_headers);
        Self {
            limit: decimal(u64::from(limit)),
            ietf: ietf.map(|policy| IetfHeaders { name: name.into(), policy }),
        }
    }

    fn write(&self, verdict: &Verdict, request: &mut PluginRequest<'_>) {
        let remaining = decimal(verdict.remaining);
        let reset = decimal(seconds(verdict.reset));
        let exchange = &mut *request.exchange;
        exchange.set_response_header(RATELIMIT_LIMIT, self.limit.clone());
        exchange.set_response_header(RATELIMIT_REMAINING, remaining.clone());
        exchange.set_response_header(RATELIMIT_RESET, reset.clone());
        exchange.set_response_header(X_RATELIMIT_LIMIT, self.limit.clone());
        exchange.set_response_header(X_RATELIMIT_REMAINING, remaining);
        exchange.set_response_header(X_RATELIMIT_RESET, reset);
        if let Some(ietf) = &self.ietf {
            let (name, remaining, reset) = (&ietf.name, verdict.remaining, seconds(verdict.reset));
            if let Ok(value) = HeaderValue::from_str(&format!("{name};r={remaining};t={reset}")) {
                exchange.set_response_header(RATELIMIT, value);
            }
            exchange.set_response_header(RATELIMIT_POLICY, ietf.policy.clone());
        }
    }
}

/// A client's limit, in numbers. Times are nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Budget {
    kind: Kind,
    limit: u64,
    window: u64,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// `grain`: to what multiple of it the time of a request is rounded up.
    Window { grain: u64 },
    /// `burst`: how many tokens the bucket holds.
    Bucket { burst: u64 },
}

impl Budget {
    fn of(config: &Config) -> Self {
        let burst = |default| u64::from(config.burst.map_or(default, NonZeroU32::get));
        let (limit, window) = (config.limit.get(), nanoseconds(config.window.0));
        let kind = match config.algorithm {
            Algorithm::SlidingWindow => Self::window_kind(limit, window),
            Algorithm::TokenBucket => Kind::Bucket { burst: burst(limit) },
            Algorithm::LeakyBucket => Kind::Bucket { burst: burst(1) },
        };
        Self { kind, limit: u64::from(limit), window }
    }

    fn window_kind(limit: u32, window: u64) -> Kind {
        let grain = if limit <= LOG_ENTRIES { 1 } else { window.div_ceil(u64::from(LOG_ENTRIES - 1)).max(1) };
        Kind::Window { grain }
    }
}

/// How many times a sliding window tells apart. The grain is one less, for the newest time is rounded up.
const LOG_ENTRIES: u32 = 64;
const MIN_WINDOW: Duration = Duration::from_millis(1);

/// The decision on a request. Times are nanoseconds.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    /// How many more would pass now.
    remaining: u64,
    /// Until nothing is counted any more.
    reset: u64,
    /// `None`: it passes. Else after what time one would.
    refused_for: Option<u64>,
}

/// A client by a number: an address, or 128 random bits drawn by a keyed hash of what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Client(u128);

impl Client {
    fn of_address(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits() & !u128::from(u64::MAX),
        })
    }
}

/// The counts of all clients. Shared by all workers and kept over revisions; a request takes one short lock, which it
/// shares with 1/64 of the clients.
#[derive(Debug)]
struct Counters {
    shards: Box<[Shard]>,
    /// How many clients a shard may know.
    room: usize,
    hashers: [quality::RandomState; 2],
}

/// Alone on its cache lines, so that workers do not disturb each other.
#[derive(Debug)]
#[repr(align(128))]
struct Shard(Mutex<Clients>);

#[derive(Debug)]
struct Clients {
    /// The latest time seen. A worker that read its clock before another may come after it; time does not go back for it.
    now: u64,
    usages: HashMap<Client, Usage, fast::RandomState>,
    /// The usage that all clients share for which there is no room.
    crowd: Usage,
    /// How many clients there may be before those are forgotten for whom nothing is counted.
    sweep_at: usize,
    /// The earliest time for that.
    sweep_after: u64,
}

const SHARDS: usize = 64;
const CLIENTS_PER_SHARD: usize = 1024;
const FIRST_SWEEP: usize = 64;

impl Default for Counters {
    fn default() -> Self {
        Self::new(SHARDS, CLIENTS_PER_SHARD)
    }
}

impl Counters {
    fn new(shards: usize, room: usize) -> Self {
        let shard = || Shard(Mutex::new(Clients::new(room)));
        Self {
            shards: std::iter::repeat_with(shard).take(shards).collect(),
            room,
            hashers: Default::default(),
        }
    }

    fn client_of(&self, texts: &[&[u8]; 2]) -> Client {
        let [high, low] = &self.hashers;
        Client(u128::from(high.hash_one(texts)) << 64 | u128::from(low.hash_one(texts)))
    }

    /// Counts a request at `now`, if it may pass.
    fn take(&self, client: Client, now: u64, budget: &Budget) -> Verdict {
        let [hasher, _] = &self.hashers;
        let index = hasher.hash_one(client) as usize % self.shards.len().max(1);
        let Some(Shard(shard)) = self.shards.get(index) else {
            return Verdict { remaining: 0, reset: 0, refused_for: None };
        };
        // A panic cannot leave a count half changed: nothing in there panics between two writes.
        let mut clients = shard.lock().unwrap_or_else(PoisonError::into_inner);
        clients.take(client, now, budget, self.room)
    }
}

impl Clients {
    fn new(room: usize) -> Self {
        Self {
            now: 0,
            usages: HashMap::default(),
            crowd: Usage::default(),
            sweep_at: FIRST_SWEEP.min(room),
            sweep_after: 0,
        }
    }

    fn take(&mut self, client: Client, now: u64, budget: &Budget, room: usize) -> Verdict {
        self.now = self.now.max(now);
        let now = self.now;
        if let Some(usage) = self.usages.get_mut(&client) {
            return usage.take(now, budget);
        }
        if self.usages.len() >= self.sweep_at && now >= self.sweep_after {
            self.sweep(budget, room);
        }
        if self.usages.len() >= room {
            return self.crowd.take(now, budget);
        }
        // It may have been in the crowd before: then what it used is in the crowd's count.
        let usage = if self.crowd.idle_at(budget) <= now { Usage::default() } else { self.crowd.clone() };
        self.usages.entry(client).or_insert(usage).take(now, budget)
    }

    /// Forgets the clients for whom nothing is counted.
    fn sweep(&mut self, budget: &Budget, room: usize) {
        let now = self.now;
        self.usages.retain(|_, usage| usage.idle_at(budget) > now);
        let len = self.usages.len();
        if self.usages.capacity() / 8 > len {
            self.usages.shrink_to(2 * len);
        }
        self.sweep_at = (2 * len).clamp(FIRST_SWEEP.min(room), room);
        // Nor is a full shard searched at every request of a new client.
        let pause = (budget.window / 64).max(10_000_000);
        self.sweep_after = if len < room { 0 } else { now.saturating_add(pause) };
    }
}

/// The part of the limit that a client has used. A usage that is like new can be forgotten.
#[derive(Debug, Clone, Default)]
enum Usage {
    #[default]
    None,
    Window(Log),
    Bucket(Level),
}

impl Usage {
    /// Counts a request, if it may pass. `now` does not go back between calls.
    fn take(&mut self, now: u64, budget: &Budget) -> Verdict {
        match budget.kind {
            Kind::Window { grain } => loop {
                if let Self::Window(log) = self {
                    break log.take(now, budget, grain);
                }
                *self = Self::Window(Log::default());
            },
            Kind::Bucket { burst } => loop {
                if let Self::Bucket(level) = self {
                    break level.take(now, budget, burst);
                }
                *self = Self::Bucket(Level::default());
            },
        }
    }

    /// From when on nothing is counted.
    fn idle_at(&self, budget: &Budget) -> u64 {
        match self {
            Self::None => 0,
            Self::Window(log) => log.entries.back().map_or(0, |(at, _)| at.saturating_add(budget.window)),
            Self::Bucket(level) => level.at.saturating_add(level.empty_in(budget)),
        }
    }
}

/// The requests that passed in the last window, by time.
#[derive(Debug, Clone, Default)]
struct Log {
    /// Time and number, oldest first. A request counts until its time is a window ago.
    entries: VecDeque<(u64, u32)>,
    /// The sum of the numbers.
    total: u64,
}

impl Log {
    fn take(&mut self, now: u64, budget: &Budget, grain: u64) -> Verdict {
        while let Some((_, count)) =
            self.entries.front().filter(|(at, _)| at.saturating_add(budget.window) <= now)
        {
            self.total -= u64::from(*count);
            self.entries.pop_front();
        }
        let refused_for = if self.total < budget.limit {
            self.add(now.div_ceil(grain).saturating_mul(grain));
            None
        } else {
            Some(self.room_at(budget).saturating_sub(now))
        };
        let newest = self.entries.back().map_or(0, |(at, _)| at.saturating_add(budget.window));
        Verdict {
            remaining: budget.limit.saturating_sub(self.total),
            reset: newest.saturating_sub(now),
            refused_for,
        }
    }

    fn add(&mut self, at: u64) {
        self.total += 1;
        match self.entries.back_mut() {
            // A coarser grain, from before the limit was changed, may have put the last one later.
            Some((last, count)) if *last >= at && *count < u32::MAX => *count += 1,
            _ => self.entries.push_back((at, 1)),
        }
    }

    /// When there is room for one more. After the limit was lowered, several entries may have to go first.
    fn room_at(&self, budget: &Budget) -> u64 {
        let mut left = self.total;
        for (at, count) in &self.entries {
            left = left.saturating_sub(u64::from(*count));
            if left < budget.limit {
                return at.saturating_add(budget.window);
            }
        }
        0
    }
}

/// The tokens that are missing from a full bucket, at a time.
///
/// One token is `window` units, and `limit` units come back each nanosecond: so nothing is ever rounded, and a unit means
/// the same after the limit was changed.
#[derive(Debug, Clone, Default)]
struct Level {
    missing: u128,
    at: u64,
}

impl Level {
    fn take(&mut self, now: u64, budget: &Budget, burst: u64) -> Verdict {
        let (token, limit) = (u128::from(budget.window), u128::from(budget.limit));
        self.missing = self.missing.saturating_sub(u128::from(now.saturating_sub(self.at)) * limit);
        self.at = now;
        let full = u128::from(burst) * token;
        let after = self.missing + token;
        let refused_for = if after <= full {
            self.missing = after;
            None
        } else {
            Some(clamp((after - full).div_ceil(limit)))
        };
        Verdict {
            remaining: clamp(full.saturating_sub(self.missing) / token.max(1)),
            reset: self.empty_in(budget),
            refused_for,
        }
    }

    /// After what time nothing is missing.
    fn empty_in(&self, budget: &Budget) -> u64 {
        clamp(self.missing.div_ceil(u128::from(budget.limit.max(1))))
    }
}

fn clamp(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

fn nanoseconds(duration: Duration) -> u64 {
    clamp(duration.as_nanos())
}

/// Whole seconds, rounded up: who waits that long has waited long enough.
fn seconds(nanoseconds: u64) -> u64 {
    nanoseconds.div_ceil(1_000_000_000)
}

/// `number` as a header's value, without an allocation up to 9,999.
fn decimal(number: u64) -> HeaderValue {
    let width = match number {
        0..10 => 1,
        10..100 => 2,
        100..1000 => 3,
        1000..10_000 => 4,
        _ => return HeaderValue::from(number),
    };
    let end = number as usize * 4 + 4;
    let text = DECIMALS.get(end - width..end).and_then(|digits| std::str::from_utf8(digits).ok());
    text.map_or_else(|| HeaderValue::from(number), HeaderValue::from_static)
}

/// The numbers from 0 to 9,999, four digits each.
static DECIMALS: [u8; 40_000] = {
    let mut digits = [b'0'; 40_000];
    let mut number = 0;
    while number < 10_000 {
        let (mut rest, mut place) = (number, 4);
        while place > 0 {
            place -= 1;
            digits[number * 4 + place] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        number += 1;
    }
    digits
};

fn default_window() -> HumanDuration {
    HumanDuration(Duration::from_secs(60))
}

fn default_status() -> NonZeroU16 {
    NonZeroU16::new(429).unwrap_or(NonZeroU16::MIN)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{Client as TestClient, build, build_in, consumers, refused};
    use signalbox_plugin::States;

    const SECOND: u64 = 1_000_000_000;

    fn at(seconds: f64) -> TestClient {
        TestClient::new("GET", "/").at(Duration::from_secs(1000) + Duration::from_secs_f64(seconds))
    }

    /// How many of `clients` pass, one after another.
    fn passing(plugin: &dyn Plugin, clients: impl IntoIterator<Item = TestClient>) -> usize {
        clients.into_iter().filter_map(|mut client| client.meets(plugin).is_none().then_some(())).count()
    }

    #[test]
    fn the_limit_is_let_through_and_no_more_until_the_window_has_passed() {
        let plugin = build("rate-limit", json!({"limit": 3, "window": "10s"}));
        assert_eq!(passing(&*plugin, [0., 1., 2., 3., 9.999].map(at)), 3);
        assert_eq!(passing(&*plugin, [10., 10.5, 11., 12., 12.].map(at)), 3);
    }

    #[test]
    fn answers_say_what_is_left() {
        let plugin = build("rate-limit", json!({"limit": 2, "window": "10s"}));
        let mut first = at(0.);
        assert!(first.meets(&*plugin).is_none());
        let headers = first.answer_headers(&[("ratelimit-limit", "the upstream's")]);
        for prefix in ["", "x-"] {
            let values =
                ["limit", "remaining", "reset"].map(|name| &headers[format!("{prefix}ratelimit-{name}")]);
            assert_eq!(values, ["2", "1", "10"]);
        }
        assert_eq!(headers.len(), 6);
        assert!(at(4.).meets(&*plugin).is_none());
        let mut third = at(6.5);
        let answer = third.meets(&*plugin).unwrap();
        assert_eq!((answer.status, &answer.headers["retry-after"]), (429, &HeaderValue::from_static("4")));
        let headers = third.answer_headers(&[]);
        assert_eq!(
            (&headers["ratelimit-remaining"], &headers["ratelimit-reset"]),
            (&"0".parse().unwrap(), &"8".parse().unwrap())
        );
        assert!(at(10.5).meets(&*plugin).is_none());
    }

    #[test]
    fn the_headers_of_the_ietf_come_on_request_and_all_can_be_hidden() {
        let plugin = build("rate-limit", json!({"limit": 2, "window": "10s", "ietf_headers": true}));
        let mut client = at(0.);
        client.meets(&*plugin);
        let headers = client.answer_headers(&[]);
        assert_eq!(headers["ratelimit-policy"], "\"p\";q=2;w=10");
        assert_eq!(headers["ratelimit"], "\"p\";r=1;t=10");

        let plugin = build(
            "rate-limit",
            json!({"limit": 1, "hide_headers": true, "ietf_headers": true, "status": 503}),
        );
        let mut client = at(0.);
        assert!(client.meets(&*plugin).is_none());
        let answer = client.meets(&*plugin).unwrap();
        assert_eq!(answer.status, 503);
        assert!(answer.headers.is_empty() && client.answer_headers(&[]).is_empty());
    }

    #[test]
    fn a_token_bucket_fills_evenly_up_to_its_burst() {
        let plugin = build(
            "rate-limit",
            json!({"limit": 10, "window": "10s", "burst": 3, "algorithm": "token-bucket"}),
        );
        assert_eq!(passing(&*plugin, [0.; 5].map(at)), 3);
        let mut early = at(0.9);
        assert_eq!(early.meets(&*plugin).unwrap().headers["retry-after"], "1");
        assert_eq!(passing(&*plugin, [1., 1., 2., 2.5].map(at)), 2);
        assert_eq!(passing(&*plugin, [100.; 5].map(at)), 3);
        // Without a burst the bucket holds the limit.
        let plugin = build("rate-limit", json!({"limit": 10, "algorithm": "token-bucket"}));
        assert_eq!(passing(&*plugin, [0.; 20].map(at)), 10);
    }

    #[test]
    fn a_leaky_bucket_wants_requests_evenly_spaced() {
        let plugin = build("rate-limit", json!({"limit": 10, "window": "10s", "algorithm": "leaky-bucket"}));
        assert_eq!(passing(&*plugin, [0., 0.5, 1., 1.9, 2., 2., 3.].map(at)), 4);
        let plugin = build(
            "rate-limit",
            json!({"limit": 10, "window": "10s", "algorithm": "leaky-bucket", "burst": 2}),
        );
        assert_eq!(passing(&*plugin, [0., 0., 0., 1., 1.].map(at)), 3);
    }

    #[test]
    fn time_that_goes_back_neither_frees_nor_blocks() {
        for algorithm in ["sliding-window", "token-bucket"] {
            let plugin = build("rate-limit", json!({"limit": 2, "window": "10s", "algorithm": algorithm}));
            assert_eq!(passing(&*plugin, [5., 0., 4.9, 0., 5.].map(at)), 2, "{algorithm}");
            assert_eq!(passing(&*plugin, [15., 14., 5., 15.].map(at)), 2, "{algorithm}");
        }
    }

    /// Checks that two requests count as one client's exactly if `expected` is true.
    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "configurations are written in place")]
    fn one_client(config: Value, mut one: TestClient, mut other: TestClient, expected: bool) {
        let plugin = build("rate-limit", config.clone());
        assert!(one.meets(&*plugin).is_none());
        assert_eq!(other.meets(&*plugin).is_some(), expected, "{config}");
    }

    #[test]
    fn clients_are_told_apart_as_configured() {
        let get = |uri: &str| TestClient::new("GET", uri);
        let by = |by: &str| json!({"limit": 1, "by": by});
        let from = |address: &str| get("/").from(address);
        one_client(by("ip"), from("192.0.2.1"), from("192.0.2.2"), false);
        one_client(by("ip"), from("192.0.2.1"), from("192.0.2.1"), true);
        one_client(by("ip"), from("192.0.2.1"), from("::ffff:192.0.2.1"), true);
        one_client(by("ip"), from("2001:db8:0:1::1"), from("2001:db8:0:1:ffff::2"), true);
        one_client(by("ip"), from("2001:db8:0:1::1"), from("2001:db8:0:2::1"), false);
        one_client(by("global"), from("192.0.2.1"), from("2001:db8::1"), true);
        one_client(by("path"), get("/a?x"), get("/a?y"), true);
        one_client(by("path"), get("/a"), get("/b"), false);
        let header = || json!({"limit": 1, "by": "header", "header": "X-User"});
        one_client(header(), get("/").header("x-user", "a"), get("/").header("x-user", "b"), false);
        one_client(
            header(),
            from("192.0.2.1").header("x-user", "a"),
            from("192.0.2.2").header("x-user", "a"),
            true,
        );
        one_client(header(), from("192.0.2.1"), from("192.0.2.1"), true);
        one_client(header(), from("192.0.2.1"), from("192.0.2.2"), false);
    }

    #[test]
    fn consumers_and_their_credentials_are_told_apart_and_strangers_by_address() {
        let known = consumers(&[("alice", &["k1", "k2"]), ("bob", &["k3"])]);
        let auth = build("key-auth", json!({"anonymous": "bob"}));
        let with = |key: &str, address: &str| {
            let mut client = TestClient::new("GET", "/").header("apikey", key).from(address).knowing(&known);
            client.meets(&*auth);
            client
        };
        let by = |by: &str| json!({"limit": 1, "by": by});
        one_client(by("consumer"), with("k1", "192.0.2.1"), with("k2", "192.0.2.2"), true);
        one_client(by("consumer"), with("k1", "192.0.2.1"), with("k3", "192.0.2.1"), false);
        one_client(by("consumer"), with("wrong", "192.0.2.1"), with("k3", "192.0.2.1"), true);
        one_client(by("credential"), with("k1", "192.0.2.1"), with("k2", "192.0.2.1"), false);
        one_client(by("credential"), with("k1", "192.0.2.1"), with("k1", "192.0.2.2"), true);
        one_client(by("credential"), with("wrong", "192.0.2.1"), with("wrong", "192.0.2.2"), false);
        let stranger = |address: &str| TestClient::new("GET", "/").from(address);
        one_client(by("consumer"), stranger("192.0.2.1"), stranger("192.0.2.1"), true);
        one_client(by("consumer"), stranger("192.0.2.1"), stranger("192.0.2.2"), false);
    }

    #[test]
    fn a_changed_limit_keeps_the_counts_and_a_changed_window_does_not() {
        for algorithm in ["sliding-window", "token-bucket"] {
            let states = States::default();
            let config =
                |limit: u32, window: &str| json!({"limit": limit, "window": window, "algorithm": algorithm});
            let before = build_in(&states, "rate-limit", config(5, "10s"));
            assert_eq!(passing(&*before, [0.; 4].map(at)), 4);
            let raised = build_in(&states, "rate-limit", config(200, "10s"));
            assert_eq!(passing(&*raised, std::iter::repeat_with(|| at(0.)).take(300)), 196, "{algorithm}");
            let lowered = build_in(&states, "rate-limit", config(3, "10s"));
            assert_eq!(passing(&*lowered, [0., 5.].map(at)), 0, "{algorithm}");
            let other = build_in(&states, "rate-limit", config(3, "20s"));
            assert_eq!(passing(&*other, [0.; 5].map(at)), 3, "{algorithm}");
        }
    }

    #[test]
    fn a_client_waits_as_long_as_told_after_the_limit_was_lowered() {
        let states = States::default();
        let before = build_in(&states, "rate-limit", json!({"limit": 4, "window": "10s"}));
        assert_eq!(passing(&*before, [0., 1., 2., 3.].map(at)), 4);
        let lowered = build_in(&states, "rate-limit", json!({"limit": 2, "window": "10s"}));
        let answer = at(4.).meets(&*lowered).unwrap();
        assert_eq!(answer.headers["retry-after"], "8");
        assert_eq!(passing(&*lowered, [11.9, 12.].map(at)), 1);
    }

    #[test]
    fn workers_together_let_through_exactly_the_limit() {
        for (config, expected) in [
            (json!({"limit": 1000, "window": "1h", "by": "ip"}), 1000),
            (json!({"limit": 50, "window": "1h", "by": "ip"}), 50),
            (json!({"limit": 1000, "window": "365d", "by": "ip", "algorithm": "token-bucket"}), 1000),
            (
                json!({"limit": 10, "window": "365d", "burst": 77, "by": "ip", "algorithm": "leaky-bucket"}),
                77,
            ),
        ] {
            let plugin = build("rate-limit", config.clone());
            let allowed: usize = std::thread::scope(|scope| {
                let workers: Vec<_> = (0..4_u64)
                    .map(|worker| {
                        let plugin = &plugin;
                        scope.spawn(move || {
                            // Clocks that disagree, and go to and fro.
                            let now = |i: u64| {
                                Duration::from_micros(1_000_000 + (i * 7919 + worker * 104_729) % 5000)
                            };
                            passing(&**plugin, (0..2000).map(|i| TestClient::new("GET", "/").at(now(i))))
                        })
                    })
                    .collect();
                workers.into_iter().map(|worker| worker.join().unwrap()).sum()
            });
            assert_eq!(allowed, expected, "{config}");
        }
    }

    #[test]
    fn workers_together_lose_no_token_while_time_goes_on() {
        let budget = Budget { kind: Kind::Bucket { burst: 10 }, limit: 1000, window: SECOND };
        let counters = Counters::default();
        let clock = AtomicU64::new(0);
        let allowed: u64 = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        // Each request is 10 µs after the one before: a hundred of them for each token.
                        let take =
                            || counters.take(Client(7), clock.fetch_add(10_000, Ordering::Relaxed), &budget);
                        (0..50_000).filter(|_| take().refused_for.is_none()).count() as u64
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        // The time of the last request is 1.99999 s.
        assert_eq!(allowed, 10 + 1999);
    }

    #[test]
    fn a_crowd_of_clients_frees_nobody_and_is_forgotten_later() {
        let plugin = build("rate-limit", json!({"limit": 1, "window": "1m", "by": "path"}));
        let path = |i: u32, at: u64| TestClient::new("GET", &format!("/{i}")).at(Duration::from_secs(at));
        assert_eq!(passing(&*plugin, [path(0, 1)]), 1);
        let crowd = passing(&*plugin, (1..100_000).map(|i| path(i, 2)));
        // Each of 64 groups has room for 1024, and one more request for those who share.
        assert_eq!(crowd, 64 * 1025 - 1);
        assert_eq!(passing(&*plugin, [path(0, 3)]), 0);
        assert_eq!(passing(&*plugin, (200_000..200_100).map(|i| path(i, 100))), 100);
    }

    /// A sliding window as it is defined, over all that passed.
    fn naive_window(passed: &[u64], now: u64, limit: usize, window: u64) -> bool {
        passed.iter().filter(|at| *at + window > now).count() < limit
    }

    /// A token bucket as it is defined: no interval may have seen more than the burst and what came in meanwhile.
    fn naive_bucket(passed: &[u64], now: u64, budget: &Budget, burst: u64) -> bool {
        let fits = |(index, start): (usize, &u64)| {
            let count = (passed.len() - index + 1) as u128;
            let came = u128::from(now - start) * u128::from(budget.limit);
            count * u128::from(budget.window) <= u128::from(burst) * u128::from(budget.window) + came
        };
        burst >= 1 && passed.iter().enumerate().all(fits)
    }

    /// Requests at ever later times, often at once, sometimes after a pause.
    fn times() -> impl Strategy<Value = Vec<u64>> {
        let step = prop_oneof![4 => Just(0), 4 => 0..SECOND / 50, 1 => 0..3 * SECOND, 1 => Just(SECOND)];
        prop::collection::vec(step, 1..400).prop_map(|steps| {
            steps
                .iter()
                .scan(SECOND, |now, step| {
                    *now += step;
                    Some(*now)
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn a_small_sliding_window_is_the_naive_one(limit in 1_u32..=64, times in times()) {
            let budget = Budget { kind: Budget::window_kind(limit, SECOND), limit: limit.into(), window: SECOND };
            let (mut usage, mut passed) = (Usage::default(), Vec::new());
            for now in times {
                let expected = naive_window(&passed, now, limit as usize, SECOND);
                let verdict = usage.take(now, &budget);
                prop_assert_eq!(verdict.refused_for.is_none(), expected);
                if expected {
                    passed.push(now);
                }
                if let Some(wait) = verdict.refused_for {
                    prop_assert!(naive_window(&passed, now + wait, limit as usize, SECOND));
                    prop_assert!(!naive_window(&passed, now + wait - 1, limit as usize, SECOND));
                }
            }
        }

        #[test]
        fn a_large_sliding_window_is_never_too_wide_and_hardly_too_narrow(limit in 65_u32..150, times in times()) {
            let budget = Budget { kind: Budget::window_kind(limit, SECOND), limit: limit.into(), window: SECOND };
            let (mut usage, mut passed) = (Usage::default(), Vec::new());
            for now in times {
                if usage.take(now, &budget).refused_for.is_none() {
                    prop_assert!(naive_window(&passed, now, limit as usize, SECOND));
                    passed.push(now);
                } else {
                    prop_assert!(!naive_window(&passed, now, limit as usize, SECOND + SECOND / 63 + 1));
                }
                let Usage::Window(log) = &usage else { panic!("another kind") };
                prop_assert!(log.entries.len() <= LOG_ENTRIES as usize);
                prop_assert_eq!(log.total, log.entries.iter().map(|(_, count)| u64::from(*count)).sum::<u64>());
            }
        }

        #[test]
        fn a_bucket_is_the_naive_one(limit in 1_u64..2000, burst in 1_u64..50, times in times()) {
            let budget = Budget { kind: Kind::Bucket { burst }, limit, window: SECOND };
            let (mut usage, mut passed) = (Usage::default(), Vec::new());
            for now in times {
                let expected = naive_bucket(&passed, now, &budget, burst);
                let verdict = usage.take(now, &budget);
                prop_assert_eq!(verdict.refused_for.is_none(), expected);
                if expected {
                    passed.push(now);
                }
                if let Some(wait) = verdict.refused_for {
                    prop_assert!(naive_bucket(&passed, now + wait, &budget, burst));
                    prop_assert!(!naive_bucket(&passed, now + wait - 1, &budget, burst));
                }
            }
        }

        /// With room for three clients and twelve that come, nobody gets more than the limit.
        #[test]
        fn forgetting_clients_frees_nobody(
            limit in 1_u32..5,
            bucket: bool,
            times in times(),
            clients in prop::collection::vec(0_u128..12, 400),
        ) {
            let burst = u64::from(limit);
            let kind = if bucket { Kind::Bucket { burst } } else { Budget::window_kind(limit, SECOND) };
            let budget = Budget { kind, limit: limit.into(), window: SECOND };
            let counters = Counters::new(1, 3);
            let mut passed: HashMap<u128, Vec<u64>> = HashMap::new();
            for (now, client) in times.into_iter().zip(clients) {
                let passed = passed.entry(client).or_default();
                if counters.take(Client(client), now, &budget).refused_for.is_none() {
                    let allowed = match bucket {
                        true => naive_bucket(passed, now, &budget, burst),
                        false => naive_window(passed, now, limit as usize, SECOND),
                    };
                    prop_assert!(allowed, "client {} at {}", client, now);
                    passed.push(now);
                }
                prop_assert!(counters.shards[0].0.lock().unwrap().usages.len() <= 3);
            }
        }

        #[test]
        fn numbers_are_written_as_numbers(number in prop_oneof![0_u64..20_000, any::<u64>()]) {
            prop_assert_eq!(decimal(number), number.to_string());
        }
    }

    #[test]
    fn bad_configurations_are_refused_with_all_that_is_wrong() {
        let all = refused(
            "rate-limit",
            json!({"limit": 0, "window": "0s", "burst": 5, "by": "header", "store": "redis", "status": 200}),
        );
        for expected in ["limit: must be at least 1", "status: must be at least 400"] {
            assert!(all.contains(expected), "{expected} in {all}");
        }
        let all = refused(
            "rate-limit",
            json!({"limit": 1, "window": "0s", "burst": 5, "by": "header", "store": "redis"}),
        );
        for expected in [
            "window: must be at least 1ms",
            "burst: needs algorithm",
            "header: is required",
            "store: redis is not supported by this version",
        ] {
            assert!(all.contains(expected), "{expected} in {all}");
        }
        assert_eq!(refused("rate-limit", json!({})), "limit: is required");
        assert!(refused("rate-limit", json!({"limit": 1, "header": "x"})).starts_with("header: is only"));
        assert!(
            refused("rate-limit", json!({"limit": 1, "by": "header", "header": "a b"}))
                .starts_with("header: ")
        );
        assert!(refused("rate-limit", json!({"limit": 2_000_000_000})).contains("at most 1000000000"));
    }
}
