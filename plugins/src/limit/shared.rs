//! Counts that all proxies share in Redis.

use std::sync::{Arc, LazyLock};

use smallvec::SmallVec;

use super::budget::{Budget, Method, Verdict};
use crate::redis::{Call, RedisPool, Script, Unavailable};

/// The counts of all clients in Redis. A request is counted by one script, which reads and raises its client's count in one
/// step, by the server's clock.
#[derive(Debug)]
pub(crate) struct SharedCounts {
    pool: Arc<RedisPool>,
    /// The beginning of all keys.
    prefix: Box<str>,
}

/// A client by a number that is the same on all proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SharedId(pub(crate) u128);

/// The answer to a wish for units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The units that were taken.
    pub(super) granted: u64,
    pub(crate) verdict: Verdict,
}

/// The change that a script makes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    /// Takes `cost` units if they fit, and up to `extra` more, but not more than an eighth of what is left then.
    Take { cost: u64, extra: u64 },
    /// Gives back units that were counted at a time.
    GiveBack { cost: u64, counted_at: u64 },
    /// Takes `cost` units that were used already, whether they fit or not.
    Charge { cost: u64 },
}

static WINDOW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("window.lua")));
static BUCKET: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("bucket.lua")));

/// The share of what is left that a script takes beyond a request's own cost, at most: one of so many parts.
#[cfg(test)]
pub(super) const EXTRA_SHARE: u64 = 8;

/// The longest time that the scripts count with exact numbers.
pub(crate) const MAX_SPAN: u64 = 100 * 365 * 24 * 3600 * 1_000_000;
/// The most units of one request with which the scripts count by exact numbers.
const MAX_WINDOW_COST: u64 = 1_000_000_000;
const MAX_BUCKET_COST: u64 = 1_000_000;

impl SharedCounts {
    pub(crate) fn new(pool: Arc<RedisPool>, prefix: &str) -> Self {
        Self { pool, prefix: prefix.into() }
    }

    /// Takes `cost` units, and up to `extra` more.
    pub(crate) async fn take(
        &self,
        client: SharedId,
        budget: &Budget,
        cost: u64,
        extra: u64,
    ) -> Result<Grant, Unavailable> {
        self.change(client, budget, Change::Take { cost, extra }).await
    }

    /// Gives back units that were counted at `counted_at`.
    pub(crate) async fn give_back(
        &self,
        client: SharedId,
        budget: &Budget,
        counted_at: u64,
        cost: u64,
    ) -> Result<Grant, Unavailable> {
        self.change(client, budget, Change::GiveBack { cost, counted_at }).await
    }

    /// Counts units that were used already, whether they fit or not.
    pub(crate) async fn charge(
        &self,
        client: SharedId,
        budget: &Budget,
        cost: u64,
    ) -> Result<Grant, Unavailable> {
        self.change(client, budget, Change::Charge { cost }).await
    }

    pub(crate) fn pool(&self) -> &RedisPool {
        &self.pool
    }

    async fn change(&self, client: SharedId, budget: &Budget, change: Change) -> Result<Grant, Unavailable> {
        let (script, arguments) = match budget.method {
            Method::Window { grain } => (&*WINDOW, window_arguments(budget, grain, change)),
            Method::Bucket { burst } => (&*BUCKET, bucket_arguments(budget, burst, change)),
        };
        let key = format!("{}:{:032x}", self.prefix, client.0).into_bytes().into_boxed_slice();
        let answer = self.pool.call(Call { script, key, arguments }).await?;
        Grant::from_answer(&answer).ok_or(Unavailable)
    }
}

impl Change {
    /// Cost, extra and mode, as the scripts have them.
    fn numbers(self, most: u64) -> [u64; 3] {
        match self {
            Self::Take { cost, extra } => [cost.min(most), extra.min(most), 0],
            Self::GiveBack { cost, .. } => [cost.min(most), 0, 1],
            Self::Charge { cost } => [cost.min(most), 0, 2],
        }
    }
}

fn window_arguments(budget: &Budget, grain: u64, change: Change) -> SmallVec<[u64; 12]> {
    let [cost, extra, mode] = change.numbers(MAX_WINDOW_COST);
    let counted_at = if let Change::GiveBack { counted_at, .. } = change { counted_at } else { 0 };
    let (window, grain) = (microseconds(budget.window), microseconds(grain));
    SmallVec::from_slice(&[budget.limit, window, grain, cost, extra, mode, counted_at])
}

fn bucket_arguments(budget: &Budget, burst: u64, change: Change) -> SmallVec<[u64; 12]> {
    let [cost, extra, mode] = change.numbers(MAX_BUCKET_COST);
    let (limit, window) = (budget.limit.max(1), microseconds(budget.window));
    let full = u128::from(burst) * u128::from(window);
    let whole = u64::try_from(full / u128::from(limit)).unwrap_or(MAX_SPAN).min(MAX_SPAN);
    let part = u64::try_from(full % u128::from(limit)).unwrap_or(0);
    SmallVec::from_slice(&[
        limit,
        window,
        burst,
        window / limit,
        window % limit,
        whole,
        part,
        cost,
        extra,
        mode,
    ])
}

impl Grant {
    fn from_answer(answer: &[i64]) -> Option<Self> {
        let &[granted, remaining, more_in, reset_in, refused_for, counted_at] = answer else { return None };
        let number = |value: i64| u64::try_from(value).ok();
        let time = |value: i64| Some(number(value)?.saturating_mul(1000));
        Some(Self {
            granted: number(granted)?,
            verdict: Verdict {
                remaining: number(remaining)?,
                more_in: time(more_in)?,
                reset_in: time(reset_in)?,
                refused_for: if refused_for < 0 { None } else { time(refused_for) },
                counted_at: number(counted_at)?,
            },
        })
    }
}

/// Whole microseconds, rounded up, at least one.
fn microseconds(nanoseconds: u64) -> u64 {
    nanoseconds.div_ceil(1000).max(1)
}
