//! What the rules look at.

use std::collections::BTreeMap;
use std::sync::Arc;

use signalbox_config::ResourceKey;

use super::significance::Share;
use crate::board::{ProxyState, ProxyStatus};
use crate::stats::{Answer, Dimension, Point};

/// What the rules look at, of one fleet or of all.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) proxies: Vec<ProxyStatus>,
    /// Why the database cannot be used; `None`: it can.
    pub(super) database: Option<String>,
    /// The requests of the last minute, by the fleet and what they have in common.
    pub(super) now: BTreeMap<(Arc<str>, Dimension), Point>,
    /// Likewise, of the half hour before.
    pub(super) before: BTreeMap<(Arc<str>, Dimension), Point>,
    /// The last revisions, the newest first.
    pub(super) revisions: Vec<RevisionFacts>,
}

/// A revision.
#[derive(Debug, Clone)]
pub(super) struct RevisionFacts {
    pub(super) number: u64,
    pub(super) author: Arc<str>,
    /// When it was committed, in microseconds since 1970.
    pub(super) committed_at_us: i64,
    /// How long ago that was, in seconds.
    pub(super) age_s: u64,
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
        let all = self.now.keys().filter(|(_, dimension)| *dimension == Dimension::All);
        all.map(|(fleet, _)| Arc::clone(fleet)).collect()
    }

    /// The share of failures of a fleet, or a part of it: now, and before.
    pub(super) fn shares(&self, failures: Failures, fleet: &Arc<str>, dimension: &Dimension) -> [Share; 2] {
        let key = (Arc::clone(fleet), dimension.clone());
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
        let all = self.now.iter().filter(|((of, dimension), _)| of == fleet && is_kind(dimension));
        all.map(|((_, dimension), point)| (dimension.clone(), failures.of(point))).collect()
    }

    /// The proxies that are connected, or of which that is not known.
    pub(super) fn present(&self) -> impl Iterator<Item = &ProxyStatus> {
        self.proxies.iter().filter(|proxy| proxy.state != ProxyState::Disconnected)
    }
}

/// Adds up the points of an answer.
pub(super) fn sums(fleet: &Arc<str>, answer: Answer, into: &mut BTreeMap<(Arc<str>, Dimension), Point>) {
    for series in answer.series {
        let sum = into.entry((Arc::clone(fleet), series.dimension)).or_default();
        series.points.iter().for_each(|(_, point)| sum.add(point));
    }
}
