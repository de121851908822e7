//! The rules, in the order in which they speak.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};
use signalbox_config::Kind;

use super::facts::{Facts, Failures, RevisionFacts};
use super::significance::{MIN_REQUESTS, Share};
use crate::board::{ProxyState, ProxyStatus};
use crate::stats::Dimension;

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Proxies refuse a revision.
    Rejected,
    /// The database cannot be used.
    Database,
    /// Proxies are not connected.
    Lost,
    /// More requests fail since a revision, or only with it.
    Revision,
    /// One proxy has most of the failures.
    Proxy,
    /// One upstream has most of the failures.
    Upstream,
    /// One route has most of the failures.
    Route,
    /// More requests of a fleet fail, everywhere.
    Fleet,
    /// More requests match no route.
    NoRoute,
    /// More requests are refused with a status from 400 to 499.
    ClientErrors,
}

/// The resource, proxy or fleet that an incident is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct Resource {
    /// `route`, `upstream`, `proxy`, `fleet`, `revision`, `database`, or another kind of resource.
    pub kind: String,
    /// The name.
    pub name: String,
}

/// The result of a rule that has found something.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finding {
    pub(super) rule: Rule,
    pub(super) resource: Resource,
    /// The fleet whose requests it is about; `None`: it is about something else.
    pub(super) fleet: Option<Arc<str>>,
    pub(super) sentence: String,
    pub(super) evidence: Value,
    /// The calls that may help: method and path.
    pub(super) actions: Vec<String>,
    /// From 0 to 100.
    pub(super) penalty: u32,
}

/// The share of the failures that a part must have to be named.
const MOST: f64 = 0.9;

/// Proxies that were not seen for this time are gone, and not lost, in seconds.
const GONE_AFTER: i64 = 3600;

/// Says if a part is of a kind.
type IsKind = fn(&Dimension) -> bool;

/// Looks at the facts by all rules.
pub(super) fn look(facts: &Facts) -> Vec<Finding> {
    let mut findings = rejected(facts);
    findings.extend(database(facts));
    findings.extend(lost(facts));
    for fleet in facts.fleets() {
        findings.extend(failing(facts, &fleet));
        findings.extend(unmatched(facts, &fleet));
        findings.extend(refused(facts, &fleet));
    }
    findings
}

/// Proxies that refuse a revision: one finding for each revision.
fn rejected(facts: &Facts) -> Vec<Finding> {
    let mut by_revision: BTreeMap<u64, Vec<&ProxyStatus>> = BTreeMap::new();
    for proxy in facts.present() {
        if let Some(error) = &proxy.error {
            by_revision.entry(error.revision).or_default().push(proxy);
        }
    }
    let all = facts.present().count();
    let finding = |(revision, proxies): (u64, Vec<&ProxyStatus>)| {
        let error = proxies.first().and_then(|proxy| proxy.error.as_ref())?.resources.first()?;
        let whose = match error.kind.as_str() {
            "" => String::new(),
            kind => format!("{kind} `{}`, ", error.name),
        };
        let refuse = if proxies.len() == 1 { "refuses" } else { "refuse" };
        let sentence = format!(
            "{} of {} {refuse} revision {revision}: {whose}{}",
            proxies.len(),
            counted(all, "proxy", "proxies"),
            error.message
        );
        let ids: Vec<&str> = proxies.iter().take(20).map(|proxy| proxy.id.as_str()).collect();
        Some(Finding {
            rule: Rule::Rejected,
            resource: Resource { kind: "revision".into(), name: revision.to_string() },
            fleet: None,
            sentence,
            evidence: json!({"proxies": ids, "count": proxies.len(), "of": all, "error": error}),
            actions: vec![format!("GET /api/v1/revisions/{revision}")],
            penalty: percent(proxies.len(), all).clamp(20, 60),
        })
    };
    by_revision.into_iter().filter_map(finding).collect()
}

fn database(facts: &Facts) -> Option<Finding> {
    let reason = facts.database.as_ref()?;
    Some(Finding {
        rule: Rule::Database,
        resource: Resource { kind: "database".into(), name: String::new() },
        fleet: None,
        sentence: format!(
            "The database cannot be used, so nothing can be changed: {reason}. Proxies serve what they have"
        ),
        evidence: json!({"reason": reason}),
        actions: Vec::new(),
        penalty: 30,
    })
}

/// Proxies without a connection: one finding for each fleet.
fn lost(facts: &Facts) -> Vec<Finding> {
    let mut fleets: BTreeMap<&str, (usize, Vec<&str>)> = BTreeMap::new();
    let now = i64::try_from(facts.at).unwrap_or(i64::MAX);
    let is_gone = |proxy: &ProxyStatus| {
        let seen = proxy.last_seen.parse::<jiff::Timestamp>().map_or(now, jiff::Timestamp::as_second);
        proxy.state == ProxyState::Disconnected && seen + GONE_AFTER < now
    };
    for proxy in facts.proxies.iter().filter(|proxy| !is_gone(proxy)) {
        let (all, lost) = fleets.entry(&proxy.fleet).or_default();
        *all += 1;
        if proxy.state == ProxyState::Disconnected {
            lost.push(&proxy.id);
        }
    }
    let finding = |(fleet, (all, lost)): (&str, (usize, Vec<&str>))| {
        let are = if lost.len() == 1 { "is" } else { "are" };
        let names = lost.iter().take(3).copied().collect::<Vec<_>>().join(", ");
        let more = if lost.len() > 3 { format!(" and {} more", lost.len() - 3) } else { String::new() };
        Finding {
            rule: Rule::Lost,
            resource: Resource { kind: "fleet".into(), name: fleet.into() },
            fleet: None,
            sentence: format!(
                "{} of {} of fleet `{fleet}` {are} not connected: {names}{more}",
                lost.len(),
                counted(all, "proxy", "proxies")
            ),
            evidence: json!({"proxies": lost.iter().take(20).collect::<Vec<_>>(), "count": lost.len(), "of": all}),
            actions: lost.first().map(|id| format!("DELETE /api/v1/proxies/{id}")).into_iter().collect(),
            penalty: percent(lost.len(), all).clamp(5, 70),
        }
    };
    fleets.into_iter().filter(|(_, (_, lost))| !lost.is_empty()).map(finding).collect()
}

/// Requests of a fleet that fail on the side of the servers: the narrowest part that has most of the failures, and the change that brought it.
fn failing(facts: &Facts, fleet: &Arc<str>) -> Option<Finding> {
    let failures = Failures::Server;
    let all = facts.shares(failures, fleet, &Dimension::All);
    let narrowest = narrowest(facts, failures, fleet);
    let (rule, dimension) = match &narrowest {
        Some((rule, dimension)) => (*rule, dimension.clone()),
        None => (Rule::Fleet, Dimension::All),
    };
    let [now, before] = facts.shares(failures, fleet, &dimension);
    // A part may be much worse although the fleet is hardly so.
    if !now.is_worse_than(before) && !all[0].is_worse_than(all[1]) {
        return None;
    }
    let resource = resource_of(fleet, &dimension);
    let what = match dimension {
        Dimension::All => format!("{} of the requests of fleet `{fleet}` fail", ratio(now)),
        Dimension::Proxy(_) => format!(
            "Proxy `{}` has most of the failures of fleet `{fleet}`: {} of its requests fail",
            resource.name,
            ratio(now)
        ),
        _ => format!(
            "{} `{}` has most of the failures of fleet `{fleet}`: {} of its requests fail",
            capitalized(&resource.kind),
            resource.name,
            ratio(now)
        ),
    };
    let evidence = json!({
        "fleet": fleet, "requests": now.requests, "failures": now.failures, "before": {"requests": before.requests, "failures": before.failures},
        "fleet_requests": all[0].requests, "fleet_failures": all[0].failures,
    });
    let penalty = penalty(all[0]);
    if let Some((revision, why)) = culprit(facts, fleet, &resource) {
        let sentence = format!("{what} (before: {}). {why}", ratio(before));
        let actions = vec![
            format!("GET /api/v1/revisions/{}/diff", revision.number),
            format!("POST /api/v1/revisions/{}/rollback", revision.number.saturating_sub(1)),
        ];
        let (rule, fleet) = (Rule::Revision, Some(Arc::clone(fleet)));
        return Some(Finding { rule, resource, fleet, sentence, evidence, actions, penalty });
    }
    let sentence = format!("{what} (before: {})", ratio(before));
    let (fleet, actions) = (Some(Arc::clone(fleet)), Vec::new());
    Some(Finding { rule, resource, fleet, sentence, evidence, actions, penalty })
}

/// The narrowest part of a fleet with most of its failures; `None`: they are everywhere.
fn narrowest(facts: &Facts, failures: Failures, fleet: &Arc<str>) -> Option<(Rule, Dimension)> {
    let kinds: [(Rule, IsKind); 3] = [
        (Rule::Proxy, |dimension| matches!(dimension, Dimension::Proxy(_))),
        (Rule::Upstream, |dimension| matches!(dimension, Dimension::Upstream(_))),
        (Rule::Route, |dimension| matches!(dimension, Dimension::Route(name) if !name.is_empty())),
    ];
    let total = facts.shares(failures, fleet, &Dimension::All)[0];
    kinds.into_iter().find_map(|(rule, is_kind)| {
        let parts = facts.parts(failures, fleet, is_kind);
        let requests: u64 = parts.iter().map(|(_, share)| share.requests).sum();
        // Those that are not counted apart have nothing in common.
        let is_one =
            |dimension: &Dimension| dimension.label().is_some_and(|(_, name)| name != Dimension::OTHER);
        let ones = parts.iter().filter(|(dimension, _)| is_one(dimension));
        let (dimension, share) = ones.max_by_key(|(_, share)| share.failures)?;
        let has_most = share.failures as f64 >= MOST * total.failures as f64 && share.failures > 0;
        // Whoever has most of the requests has most of the failures anyway.
        let is_narrow = share.requests as f64 <= MOST * requests as f64;
        (has_most && is_narrow).then(|| (rule, dimension.clone()))
    })
}

/// The revision that is to blame, and the sentence that says why: requests fail only where it is served, or it changed something that they pass, and
/// they have failed since.
fn culprit<'a>(
    facts: &'a Facts,
    fleet: &Arc<str>,
    resource: &Resource,
) -> Option<(&'a RevisionFacts, String)> {
    let failures = Failures::Server;
    let by_revision = facts.parts(failures, fleet, |dimension| matches!(dimension, Dimension::Revision(_)));
    let share_of = |newest: bool, number: u64| {
        let of = by_revision.iter().filter(
            |(dimension, _)| matches!(dimension, Dimension::Revision(other) if (*other >= number) == newest),
        );
        of.fold(Share::default(), |sum, (_, share)| sum.plus(*share))
    };
    for revision in facts.suspects(fleet) {
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
                "Only proxies that serve {by}{changes}, fail so often ({}, the others {})",
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
            "upstream" => is_route || name == resource.name,
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

fn unmatched(facts: &Facts, fleet: &Arc<str>) -> Option<Finding> {
    let [now, before] = facts.shares(Failures::NoRoute, fleet, &Dimension::All);
    if !now.is_worse_than(before) {
        return None;
    }
    let is_routing = |kind: Kind| kind == Kind::Route || kind == Kind::Listener;
    let deleted =
        facts.suspects(fleet).find(|revision| revision.changed.iter().any(|key| is_routing(key.kind)));
    let why = deleted.map(|revision| {
        format!(
            ". Revision {} of {} changed routes or listeners, {} s ago",
            revision.number,
            revision.author,
            facts.age_s(revision)
        )
    });
    let actions = deleted.map(|revision| format!("GET /api/v1/revisions/{}/diff", revision.number));
    Some(Finding {
        rule: Rule::NoRoute,
        resource: Resource { kind: "fleet".into(), name: fleet.to_string() },
        fleet: Some(Arc::clone(fleet)),
        sentence: format!(
            "{} of the requests of fleet `{fleet}` match no route (before: {}){}",
            ratio(now),
            ratio(before),
            why.unwrap_or_default()
        ),
        evidence: json!({"fleet": fleet, "requests": now.requests, "no_route": now.failures}),
        actions: actions.into_iter().collect(),
        penalty: penalty(now) / 2,
    })
}

fn refused(facts: &Facts, fleet: &Arc<str>) -> Option<Finding> {
    let failures = Failures::Client;
    let [now, before] = facts.shares(failures, fleet, &Dimension::All);
    if !now.is_worse_than(before) {
        return None;
    }
    let route = narrowest(facts, failures, fleet).filter(|(rule, _)| *rule == Rule::Route);
    let where_ = route.as_ref().map_or_else(String::new, |(_, dimension)| {
        format!(", most of them of route `{}`", resource_of(fleet, dimension).name)
    });
    let is_access = |kind: Kind| kind == Kind::Plugin || kind == Kind::Consumer;
    let changed =
        facts.suspects(fleet).find(|revision| revision.changed.iter().any(|key| is_access(key.kind)));
    let why = changed.map(|revision| {
        let names: Vec<String> = revision
            .changed
            .iter()
            .filter(|key| is_access(key.kind))
            .take(3)
            .map(|key| format!("{} `{}`", key.kind, key.name))
            .collect();
        format!(
            ". Revision {} of {} changed {}, {} s ago",
            revision.number,
            revision.author,
            names.join(", "),
            facts.age_s(revision)
        )
    });
    let resource = match &route {
        Some((_, dimension)) => resource_of(fleet, dimension),
        None => Resource { kind: "fleet".into(), name: fleet.to_string() },
    };
    Some(Finding {
        rule: Rule::ClientErrors,
        resource,
        fleet: Some(Arc::clone(fleet)),
        sentence: format!(
            "{} of the requests of fleet `{fleet}` are refused with 4xx (before: {}){where_}{}",
            ratio(now),
            ratio(before),
            why.unwrap_or_default()
        ),
        evidence: json!({"fleet": fleet, "requests": now.requests, "client_errors": now.failures}),
        actions: changed
            .map(|revision| format!("GET /api/v1/revisions/{}/diff", revision.number))
            .into_iter()
            .collect(),
        penalty: penalty(now) / 2,
    })
}

fn resource_of(fleet: &Arc<str>, dimension: &Dimension) -> Resource {
    let (kind, name) = dimension.label().unwrap_or_else(|| ("fleet", fleet.to_string()));
    Resource { kind: kind.into(), name }
}

/// The part of the score that failures take away: 20, and more the more requests fail.
fn penalty(share: Share) -> u32 {
    (20.0 + 200.0 * share.ratio()).min(95.0) as u32
}

fn percent(part: usize, whole: usize) -> u32 {
    u32::try_from(100 * part / whole.max(1)).unwrap_or(100)
}

fn ratio(share: Share) -> String {
    let percent = 100.0 * share.ratio();
    let decimals = match percent {
        0.0 => 0,
        ..1.0 => 2,
        ..10.0 => 1,
        _ => 0,
    };
    format!("{percent:.decimals$} %")
}

fn counted(count: usize, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests;
