//! The revision that is to blame for what is wrong.

use std::collections::BTreeSet;
use std::sync::Arc;

use signalbox_config::Kind;

use super::facts::{Facts, Failures, RevisionFacts};
use super::finding::{Resource, capitalized, ratio};
use super::significance::{MIN_REQUESTS, Share};
use crate::stats::Dimension;

/// The revision that is to blame, and the sentence that says why: requests fail only where it is served, or it changed something that they pass, and
/// they have failed since.
pub(super) fn culprit<'a>(
    facts: &'a Facts,
    failures: Failures,
    fleet: &Arc<str>,
    resource: &Resource,
) -> Option<(&'a RevisionFacts, String)> {
    let by_revision = facts.parts(failures, fleet, |dimension| matches!(dimension, Dimension::Revision(_)));
    let share_of = |newest: bool, number: u64| {
        let of = by_revision.iter().filter(
            |(dimension, _)| matches!(dimension, Dimension::Revision(other) if (*other >= number) == newest),
        );
        of.fold(Share::default(), |sum, (_, share)| sum.plus(*share))
    };
    for revision in facts.suspects(failures, fleet) {
        let [new, old] = [true, false].map(|newest| share_of(newest, revision.number));
        if new.requests < MIN_REQUESTS {
            continue;
        }
        let are_both_served = old.requests >= MIN_REQUESTS;
        let changed = concerned(revision, resource);
        let by = format!("revision {} of {}", revision.number, revision.author);
        if are_both_served && new.is_worse_than(old) {
            let changes =
                if changed.is_empty() { String::new() } else { format!(", which changed {changed}") };
            let why = format!(
                "Only proxies that serve {by}{changes}, {} ({}, the others {})",
                if matches!(failures, Failures::Slow(_)) { "are so slow" } else { "fail so often" },
                ratio(new),
                ratio(old)
            );
            return Some((revision, why));
        }
        // Where all serve the same, it is no reason why one proxy fails.
        if !are_both_served && !changed.is_empty() && resource.kind != "proxy" {
            let why = format!("{} changed {changed}, {} s ago", capitalized(&by), facts.age_s(revision));
            return Some((revision, why));
        }
    }
    None
}

/// The resources that a revision changed and that may be the reason: the resource itself, or such as many requests pass.
fn concerned(revision: &RevisionFacts, resource: &Resource) -> String {
    // A route that does not lead to an upstream has no part in its failures.
    let leads_there = |route: &str| {
        let found = revision.upstreams.iter().find(|(known, _)| known.as_str() == route);
        found.is_some_and(|(_, upstreams)| upstreams.iter().any(|it| it.as_str() == resource.name))
    };
    let is_concerned = |kind: Kind, name: &str| {
        if kind == Kind::Plugin || kind == Kind::Listener {
            return true;
        }
        let is_route = kind == Kind::Route;
        if !is_route && kind != Kind::Upstream {
            return false;
        }
        match resource.kind.as_str() {
            "route" => !is_route || name == resource.name,
            "upstream" if is_route => leads_there(name),
            "upstream" => name == resource.name,
            _ => true,
        }
    };
    let changed = revision.changed.iter().filter(|key| is_concerned(key.kind, key.name.as_str()));
    let names: BTreeSet<String> = changed.map(|key| format!("{} `{}`", key.kind, key.name)).collect();
    let more = names.len().saturating_sub(3);
    let mut text = names.into_iter().take(3).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// The calls that show what a revision changed, and undo it.
pub(super) fn ways_back(revision: &RevisionFacts) -> Vec<String> {
    vec![
        format!("GET /api/v1/revisions/{}/diff", revision.number),
        format!("POST /api/v1/revisions/{}/rollback", revision.number.saturating_sub(1)),
    ]
}
