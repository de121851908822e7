//! The facts that the rules look at.

use std::collections::HashMap;
use std::sync::Arc;

use signalbox_config::ResourceKey;

use super::significance::Share;
use crate::board::{ProxyState, ProxyStatus};
use crate::stats::{Dimension, Point, SeriesKey};

/// The facts that the rules look at.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) proxies: Vec<ProxyStatus>,
    /// Why the database cannot be used; `None`: it can.
    pub(super) database: Option<String>,
    /// The requests of the last minute, by the fleet and what they have in common.
    pub(super) now: HashMap<SeriesKey, Point>,
    /// Likewise, of the half hour before.
    pub(super) before: HashMap<SeriesKey, Point>,
    /// The last revisions, the newest first.
    pub(super) revisions: Vec<RevisionFacts>,
    /// For each fleet whose requests fail: when that was seen first, in seconds since 1970.
    pub(super) failing_since: HashMap<Arc<str>, u64>,
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
}

/// The failures that a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failures {
    /// Responses with a status of 500 and above.
    Server,
    /// Responses with a status from 400 to 499.
    Client,
    /// Requests without a route.
    NoRoute,
}

/// A revision is blamed for what was seen first at most this long after it, in seconds.
const BLAMED_FOR: u64 = 600;

impl RevisionFacts {
    fn committed_s(&self) -> u64 {
        u64::try_from(self.committed_at_us / 1_000_000).unwrap_or(0)
    }
}

impl Failures {
    pub(super) fn of(self, point: &Point) -> Share {
        let failures = match self {
            Self::Server => point.server_errors,
            Self::Client => point.client_errors,
            Self::NoRoute => point.no_route,
        };
        Share { requests: point.requests(), failures }
    }
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
        [&self.now, &self.before]
            .map(|points| points.get(&key).map(|point| failures.of(point)).unwrap_or_default())
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
    pub(super) fn suspects(&self, fleet: &Arc<str>) -> impl Iterator<Item = &RevisionFacts> {
        let since = self.failing_since.get(fleet).copied().unwrap_or(self.at);
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
