//! The rules about proxies and the database.

use std::collections::BTreeMap;

use serde_json::json;

use super::facts::Facts;
use super::finding::{Finding, Resource, Rule, counted, percent};
use crate::board::{ProxyState, ProxyStatus};

/// Proxies that were not seen for this time are gone, and not lost, in seconds.
const GONE_AFTER: i64 = 3600;

/// Proxies that refuse a revision: one finding for each revision.
pub(super) fn rejected(facts: &Facts) -> Vec<Finding> {
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
        let is_one_fleet = proxies.windows(2).all(|pair| pair[0].fleet == pair[1].fleet);
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
            fleet: proxies.first().map(|first| first.fleet.as_str().into()).filter(|_| is_one_fleet),
            sentence,
            evidence: json!({"proxies": ids, "count": proxies.len(), "of": all, "error": error}),
            actions: vec![format!("GET /api/v1/revisions/{revision}")],
            penalty: percent(proxies.len(), all).clamp(20, 60),
        })
    };
    by_revision.into_iter().filter_map(finding).collect()
}

/// The database, if it cannot be used.
pub(super) fn database(facts: &Facts) -> Option<Finding> {
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
pub(super) fn lost(facts: &Facts) -> Vec<Finding> {
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
            fleet: Some(fleet.into()),
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
