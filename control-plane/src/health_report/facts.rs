//! The facts that the rules look at.

use std::collections::HashMap;
use std::sync::Arc;

use signalbox_config::{Name, ResourceKey};
use signalbox_rollout::gate::histogram::Histogram;

use super::significance::{MIN_REQUESTS, Share};
use crate::board::{ProxyState, ProxyStatus};
use crate::stats::{Dimension, Point, SeriesKey};

/// Requests by the fleet and what they have in common.
pub(super) type Traffic = HashMap<SeriesKey, Point>;

/// The facts that the rules look at.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) proxies: Vec<ProxyStatus>,
    /// Why the database cannot be used; `None`: it can.
    pub(super) database: Option<String>,
    /// The requests of the last minute, by the fleet and what they have in common.
    pub(super) now: Traffic,
    /// Likewise, of the half hour before.
    pub(super) before: Traffic,
    /// For each fleet with requests that go wrong, by how they do: the requests of the half hour before that began.
    pub(super) pinned: HashMap<(Arc<str>, Trouble), Arc<Traffic>>,
    /// The last revisions, the newest first.
    pub(super) revisions: Vec<RevisionFacts>,
    /// For each fleet with requests that go wrong, by how they do: when that was seen first, in seconds since 1970.
    pub(super) failing_since: HashMap<(Arc<str>, Trouble), u64>,
    /// The present second.
    pub(super) at: u64,
}

/// A revision.
#[derive(Debug, Clone)]
pub(super) struct RevisionFacts {
    pub(super) number: u64,
    pub(super) author: Arc<str>,
    /// When it was committed, in microseconds since 1970.
    pub(super) committed_at_us: i64,
    pub(super) changed: Vec<ResourceKey>,
    /// The upstreams of the changed routes that are still there, by route.
    pub(super) upstreams: HashMap<Name, Vec<Name>>,
}

/// The way in which requests go wrong. Each has a begin of its own, from which the revision before it is blamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Trouble {
    /// They fail with a status of 500 and above.
    Failing,
    /// They are slow.
    Slow,
    /// They match no route.
    Unmatched,
    /// They are refused with a status from 400 to 499.
    Refused,
    /// Clients give them up.
    GivenUp,
}

/// The failures that a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failures {
    /// Responses with a status of 500 and above.
    Server,
    /// Responses with a status from 400 to 499, but for those that clients gave up.
    Client,
    /// Requests without a route.
    NoRoute,
    /// Requests that were refused because a proxy had too much to do: the flag `OM`.
    Overload,
    /// Requests that the client gave up or sent wrong: the flags `DC` and `DPE`.
    Aborted,
    /// Requests with a latency in a bucket above this one.
    Slow(u8),
}

/// The flags of requests that clients gave up or sent wrong.
const ABORTED: [&str; 2] = ["DC", "DPE"];

/// The buckets from a latency to twice that.
const BUCKETS_PER_OCTAVE: u8 = 8;

/// Nobody minds this much, in microseconds.
const SLACK_US: f64 = 5000.0;

/// A revision is blamed for what was seen first at most this long after it, in seconds.
const BLAMED_FOR: u64 = 600;

impl RevisionFacts {
    fn committed_s(&self) -> u64 {
        u64::try_from(self.committed_at_us / 1_000_000).unwrap_or(0)
    }
}

impl Failures {
    pub(super) fn trouble(self) -> Trouble {
        match self {
            Self::Server | Self::Overload => Trouble::Failing,
            Self::Client => Trouble::Refused,
            Self::NoRoute => Trouble::Unmatched,
            Self::Aborted => Trouble::GivenUp,
            Self::Slow(_) => Trouble::Slow,
        }
    }

    pub(super) fn of(self, point: &Point) -> Share {
        // A version of the proxy that does not tell flags says nothing about them.
        let has_no_flags = point.flags.is_empty() && (point.server_errors > 0 || point.client_errors > 0);
        if matches!(self, Self::Overload | Self::Aborted) && has_no_flags {
            return Share::default();
        }
        let failures = match self {
            Self::Server => point.server_errors,
            Self::Client => point.client_errors.saturating_sub(flagged(point, &ABORTED)),
            Self::NoRoute => point.no_route,
            Self::Overload => flagged(point, &["OM"]),
            Self::Aborted => flagged(point, &ABORTED),
            Self::Slow(bucket) => {
                let (requests, [failures]) = point.latency.count_above([bucket]);
                return Share { requests, failures };
            }
        };
        Share { requests: point.requests(), failures }
    }
}

fn flagged(point: &Point, flags: &[&str]) -> u64 {
    let counts = point.flags.iter().filter(|(flag, _)| flags.contains(flag));
    counts.fold(0, |sum, (_, count)| sum.saturating_add(count))
}

impl Facts {
    /// The fleets that have traffic.
    pub(super) fn fleets(&self) -> Vec<Arc<str>> {
        let all = self.now.keys().filter(|key| key.dimension == Dimension::All);
        let mut fleets: Vec<_> = all.map(|key| Arc::clone(&key.fleet)).collect();
        fleets.sort_unstable();
        fleets
    }

    /// The share of failures of a fleet, or a part of it: now, and before.
    pub(super) fn shares(&self, failures: Failures, fleet: &Arc<str>, dimension: &Dimension) -> [Share; 2] {
        let key = SeriesKey { fleet: Arc::clone(fleet), dimension: dimension.clone() };
        [&self.now, self.usual(failures.trouble(), fleet)]
            .map(|points| points.get(&key).map(|point| failures.of(point)).unwrap_or_default())
    }

    /// The requests that a trouble of a fleet is compared with.
    fn usual(&self, trouble: Trouble, fleet: &Arc<str>) -> &Traffic {
        self.pinned.get(&(Arc::clone(fleet), trouble)).map_or(&self.before, |pinned| &**pinned)
    }

    /// The requests of a part of a fleet now; `None`: there were none.
    pub(super) fn point(&self, fleet: &Arc<str>, dimension: &Dimension) -> Option<&Point> {
        self.now.get(&SeriesKey { fleet: Arc::clone(fleet), dimension: dimension.clone() })
    }

    /// The bucket above which the latencies of a fleet are unusual: twice its 90th percentile of before, and five milliseconds.
    pub(super) fn usual_latency(&self, fleet: &Arc<str>) -> Option<u8> {
        let key = SeriesKey { fleet: Arc::clone(fleet), dimension: Dimension::All };
        let before = &self.usual(Trouble::Slow, fleet).get(&key)?.latency;
        if before.count() < MIN_REQUESTS {
            return None;
        }
        let usual = before.quantile_bucket(0.9)?;
        Some(Histogram::above(usual.saturating_add(BUCKETS_PER_OCTAVE), SLACK_US))
    }

    /// The parts of a kind, with their shares of failures now.
    pub(super) fn parts(
        &self,
        failures: Failures,
        fleet: &Arc<str>,
        is_kind: fn(&Dimension) -> bool,
    ) -> Vec<(Dimension, Share)> {
        let all = self.now.iter().filter(|(key, _)| key.fleet == *fleet && is_kind(&key.dimension));
        all.map(|(key, point)| (key.dimension.clone(), failures.of(point))).collect()
    }

    /// The last revisions that may be the reason of what is wrong with a fleet: those shortly before it was seen first.
    pub(super) fn suspects(
        &self,
        failures: Failures,
        fleet: &Arc<str>,
    ) -> impl Iterator<Item = &RevisionFacts> {
        let key = (Arc::clone(fleet), failures.trouble());
        let since = self.failing_since.get(&key).copied().unwrap_or(self.at);
        self.revisions.iter().filter(move |revision| {
            let committed = revision.committed_s();
            committed <= since && committed + BLAMED_FOR >= since
        })
    }

    /// How long ago a revision was committed, in seconds.
    pub(super) fn age_s(&self, revision: &RevisionFacts) -> u64 {
        self.at.saturating_sub(revision.committed_s())
    }

    /// The proxies that are connected, or of which that is not known.
    pub(super) fn present(&self) -> impl Iterator<Item = &ProxyStatus> {
        self.proxies.iter().filter(|proxy| proxy.state != ProxyState::Disconnected)
    }
}
