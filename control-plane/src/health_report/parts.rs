//! The parts of a fleet, and the narrowest that has most of the failures.

use std::sync::Arc;

use super::facts::{Facts, Failures};
use super::finding::{Resource, Rule};
use crate::stats::Dimension;

/// The share of the failures that a part must have to be named.
pub(super) const MOST: f64 = 0.9;

/// Says if a part is of a kind.
pub(super) type IsKind = fn(&Dimension) -> bool;

/// The parts of a fleet that may have most of its failures.
pub(super) const PARTS: [(Rule, IsKind); 3] = [
    (Rule::Proxy, |dimension| matches!(dimension, Dimension::Proxy(_))),
    (Rule::Upstream, |dimension| matches!(dimension, Dimension::Upstream(_))),
    ROUTES[0],
];

/// The proxies alone.
pub(super) const PROXIES: [(Rule, IsKind); 1] = [PARTS[0]];

/// The routes alone.
pub(super) const ROUTES: [(Rule, IsKind); 1] =
    [(Rule::Route, |dimension| matches!(dimension, Dimension::Route(name) if !name.is_empty()))];

/// The narrowest part of a fleet with most of its failures; `None`: they are everywhere.
pub(super) fn narrowest(
    facts: &Facts,
    failures: Failures,
    fleet: &Arc<str>,
    kinds: &[(Rule, IsKind)],
) -> Option<(Rule, Dimension)> {
    let total = facts.shares(failures, fleet, &Dimension::All)[0];
    let candidates = kinds.iter().filter_map(|(rule, is_kind)| {
        let parts = facts.parts(failures, fleet, *is_kind);
        // Those that are not counted apart have nothing in common.
        let is_one =
            |dimension: &Dimension| dimension.label().is_some_and(|(_, name)| name != Dimension::OTHER);
        let ones = parts.into_iter().filter(|(dimension, _)| is_one(dimension));
        let (dimension, share) = ones.max_by_key(|(_, share)| share.failures)?;
        let has_most = share.failures as f64 >= MOST * total.failures as f64 && share.failures > 0;
        // Whoever has most of the requests has most of the failures anyway.
        let is_narrow = share.requests as f64 <= MOST * total.requests as f64;
        (has_most && is_narrow).then_some((*rule, dimension, share.requests))
    });
    // A route is named in the place of its upstream only if it has a clear part of the upstream's requests.
    let narrower = candidates.reduce(
        |widest, other| {
            if (other.2 as f64) < MOST * widest.2 as f64 { other } else { widest }
        },
    );
    narrower.map(|(rule, dimension, _)| (rule, dimension))
}

/// The resource of a part; of all requests it is the fleet.
pub(super) fn resource_of(fleet: &Arc<str>, dimension: &Dimension) -> Resource {
    let (kind, name) = dimension.label().unwrap_or_else(|| ("fleet", fleet.to_string()));
    Resource { kind: kind.into(), name }
}
