//! The rules about the requests of a fleet.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use signalbox_config::Kind;
use signalbox_rollout::gate::histogram::Histogram;

use super::blame::{culprit, ways_back};
use super::facts::{Facts, Failures};
use super::finding::{Finding, Resource, Rule, capitalized, counted, penalty, ratio};
use super::parts::{MOST, PARTS, PROXIES, ROUTES, narrowest, resource_of};
use super::significance::{MIN_FAILURES, MIN_REQUESTS, Share};
use crate::stats::{Dimension, Point, Tally};

/// Requests that proxies refuse because they have too much to do.
pub(super) fn overloaded(facts: &Facts, fleet: &Arc<str>) -> Option<Finding> {
    let failures = Failures::Overload;
    let [now, before] = facts.shares(failures, fleet, &Dimension::All);
    let [failing, _] = facts.shares(Failures::Server, fleet, &Dimension::All);
    // Where more fails for other reasons, these are the first to know.
    if !is_unusual(now, before) || (now.failures as f64) < MOST * failing.failures as f64 {
        return None;
    }
    let proxies = facts.present().filter(|proxy| *proxy.fleet == **fleet).count();
    let per_second = now.requests / WINDOW_S;
    let narrowest = narrowest(facts, failures, fleet, &PROXIES);
    let dimension = narrowest.map_or(Dimension::All, |(_, dimension)| dimension);
    let resource = resource_of(fleet, &dimension);
    let whose = match dimension {
        Dimension::All => String::new(),
        _ => format!(". Most of them were refused by proxy `{}`", resource.name),
    };
    let what = format!(
        "{} of the requests of fleet `{fleet}` are refused because proxies have too much to do (OM): {} for some {per_second} requests per second{whose}",
        ratio(now),
        counted(proxies, "proxy", "proxies"),
    );
    let (why, actions) = match culprit(facts, failures, fleet, &resource) {
        Some((revision, why)) => (format!(". {why}"), ways_back(revision)),
        None => (String::new(), Vec::new()),
    };
    Some(Finding {
        rule: Rule::Overload,
        resource,
        fleet: Some(Arc::clone(fleet)),
        sentence: what + &why,
        evidence: json!({"fleet": fleet, "requests": now.requests, "refused": now.failures, "proxies": proxies}),
        actions,
        penalty: penalty(now),
    })
}

/// The length of the time that is judged, in seconds.
const WINDOW_S: u64 = 60;

/// Requests of a fleet that fail on the side of the servers: the narrowest part that has most of the failures, and the change that brought it.
pub(super) fn failing(facts: &Facts, fleet: &Arc<str>) -> Option<Finding> {
    let failures = Failures::Server;
    let all = facts.shares(failures, fleet, &Dimension::All);
    if all[0].failures < MIN_FAILURES {
        return None;
    }
    let narrowest = narrowest(facts, failures, fleet, &PARTS);
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
    let point = facts.point(fleet, &dimension);
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
        "fleet_requests": all[0].requests, "fleet_failures": all[0].failures, "flags": point.map(|point| by_name(&point.flags)),
        "failed_targets": point.map(|point| by_name(&point.failed_targets)),
    });
    let penalty = penalty(all[0]);
    let cause = point.and_then(cause).map_or_else(String::new, |cause| format!(". {cause}"));
    let what = format!("{what} (before: {}){cause}", ratio(before));
    if let Some((revision, why)) = culprit(facts, failures, fleet, &resource) {
        let sentence = format!("{what}. {why}");
        let (rule, fleet, actions) = (Rule::Revision, Some(Arc::clone(fleet)), ways_back(revision));
        return Some(Finding { rule, resource, fleet, sentence, evidence, actions, penalty });
    }
    let is_wide = matches!(rule, Rule::Upstream | Rule::Fleet);
    let failing_target = failing_target(facts, fleet).filter(|_| is_wide);
    let (fleet, actions) = (Some(Arc::clone(fleet)), Vec::new());
    if let Some((upstream, target, failures)) = failing_target {
        let sentence =
            format!("{what}. {failures} attempts failed at the target {target} of upstream `{upstream}`");
        let resource = Resource { kind: "target".into(), name: format!("{upstream} {target}") };
        return Some(Finding { rule: Rule::Target, resource, fleet, sentence, evidence, actions, penalty });
    }
    let sentence = what;
    Some(Finding { rule, resource, fleet, sentence, evidence, actions, penalty })
}

/// The target at which most of the failed attempts of an upstream with most of the failures were made: the upstream, the target, and the number
/// of these.
fn failing_target(facts: &Facts, fleet: &Arc<str>) -> Option<(String, String, u64)> {
    let [total, _] = facts.shares(Failures::Server, fleet, &Dimension::All);
    let upstreams = facts.parts(Failures::Server, fleet, |it| matches!(it, Dimension::Upstream(_)));
    let (dimension, share) = upstreams.into_iter().max_by_key(|(_, share)| share.failures)?;
    let point = facts.point(fleet, &dimension)?;
    let (target, failures) = point.failed_targets.iter().max_by_key(|(_, failures)| *failures)?;
    let (failed, has_failed) = (share.failures as f64, failures as f64);
    // A request that never came to a target fails without an attempt, and an attempt fails without its request where another one succeeds.
    let has_most = failed >= MOST * total.failures as f64
        && has_failed >= MOST * point.failed_targets.sum() as f64
        && has_failed >= MOST * failed;
    has_most.then(|| (resource_of(fleet, &dimension).name, target.to_owned(), failures))
}

/// The reason why most requests fail, as a sentence without its end; `None`: they have several, or their targets answered so.
fn cause(point: &Point) -> Option<&'static str> {
    let of_server = point.flags.iter().filter(|(flag, _)| !matches!(*flag, "NR" | "DC" | "DPE"));
    let (flag, count) = of_server.max_by_key(|(_, count)| *count)?;
    if (count as f64) < MOST * point.server_errors as f64 {
        return None;
    }
    Some(match flag {
        "UH" => "No target is healthy (UH)",
        "UF" => "No connection to a target can be made (UF)",
        "UO" => "A limit of the upstream is reached, or its circuit breaker is open (UO)",
        "UT" => "Targets do not answer in time (UT)",
        "UC" => "Targets end the connection before they answer (UC)",
        "UPE" => "Targets answer with what is not HTTP (UPE)",
        "OM" => "Proxies have too much to do (OM)",
        "PP" => "A plugin panicked (PP)",
        "PA" => "A plugin ended the requests (PA)",
        "SI" => "Streams were idle for too long (SI)",
        _ => return None,
    })
}

fn by_name(tally: &Tally) -> BTreeMap<&str, u64> {
    tally.iter().collect()
}

/// Requests that take much longer than usual.
pub(super) fn slow(facts: &Facts, fleet: &Arc<str>) -> Option<Finding> {
    let bucket = facts.usual_latency(fleet)?;
    let failures = Failures::Slow(bucket);
    let [now, before] = facts.shares(failures, fleet, &Dimension::All);
    if !now.is_worse_than(before) || now.ratio() < MANY {
        return None;
    }
    let narrowest = narrowest(facts, failures, fleet, &PARTS);
    let milliseconds = (Histogram::bound(bucket) / 1000.0).round();
    let dimension = narrowest.map_or(Dimension::All, |(_, dimension)| dimension);
    let resource = resource_of(fleet, &dimension);
    let whose = match dimension {
        Dimension::All => String::new(),
        _ => format!(". Most of them are those of {} `{}`", resource.kind, resource.name),
    };
    let what = format!(
        "{} of the requests of fleet `{fleet}` take longer than {milliseconds} ms (before: {}){whose}",
        ratio(now),
        ratio(before)
    );
    let (why, actions) = match culprit(facts, failures, fleet, &resource) {
        Some((revision, why)) => (format!(". {why}"), ways_back(revision)),
        None => (String::new(), Vec::new()),
    };
    Some(Finding {
        rule: Rule::Slow,
        resource,
        fleet: Some(Arc::clone(fleet)),
        sentence: what + &why,
        evidence: json!({"fleet": fleet, "requests": now.requests, "slow": now.failures, "longer_than_ms": milliseconds}),
        actions,
        penalty: (10.0 + 60.0 * now.ratio()) as u32,
    })
}

/// Requests that match no route.
pub(super) fn unmatched(facts: &Facts, fleet: &Arc<str>) -> Option<Finding> {
    let failures = Failures::NoRoute;
    let [now, before] = facts.shares(failures, fleet, &Dimension::All);
    if !is_unusual(now, before) {
        return None;
    }
    let is_routing = |kind: Kind| kind == Kind::Route || kind == Kind::Listener;
    let deleted = facts
        .suspects(failures, fleet)
        .find(|revision| revision.changed.iter().any(|key| is_routing(key.kind)));
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

/// Requests that are refused with 4xx.
pub(super) fn refused(facts: &Facts, fleet: &Arc<str>) -> Option<Finding> {
    let failures = Failures::Client;
    let [now, before] = facts.shares(failures, fleet, &Dimension::All);
    if !is_unusual(now, before) {
        return None;
    }
    let route = narrowest(facts, failures, fleet, &ROUTES);
    let where_ = route.as_ref().map_or_else(String::new, |(_, dimension)| {
        format!(", most of them of route `{}`", resource_of(fleet, dimension).name)
    });
    let is_access = |kind: Kind| kind == Kind::Plugin || kind == Kind::Consumer;
    let changed = facts
        .suspects(failures, fleet)
        .find(|revision| revision.changed.iter().any(|key| is_access(key.kind)));
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

/// Requests that clients gave up, where nothing else is wrong.
pub(super) fn given_up(facts: &Facts, fleet: &Arc<str>) -> Option<Finding> {
    let [now, before] = facts.shares(Failures::Aborted, fleet, &Dimension::All);
    if !is_unusual(now, before) {
        return None;
    }
    let point = facts.point(fleet, &Dimension::All);
    Some(Finding {
        rule: Rule::Clients,
        resource: Resource { kind: "fleet".into(), name: fleet.to_string() },
        fleet: Some(Arc::clone(fleet)),
        sentence: format!(
            "{} of the requests of fleet `{fleet}` were given up by clients, or are not HTTP (before: {}). Nothing is wrong here: look at the clients, and at what is between them and the proxies",
            ratio(now),
            ratio(before)
        ),
        evidence: json!({"fleet": fleet, "requests": now.requests, "given_up": now.failures, "flags": point.map(|point| by_name(&point.flags))}),
        actions: Vec::new(),
        penalty: 5,
    })
}

/// True if more requests go wrong by what clients do than usual. Where nothing is known of before, some do anyway.
fn is_unusual(now: Share, before: Share) -> bool {
    now.is_worse_than(before) && (before.requests >= MIN_REQUESTS || now.ratio() >= MANY)
}

/// The share of requests that is too many even where nothing is known of before.
const MANY: f64 = 0.1;
