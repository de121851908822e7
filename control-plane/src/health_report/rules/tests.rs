mod faults;

use std::collections::{BTreeMap, HashMap};

use signalbox_config::ResourceKey;

use super::look;
use crate::board::{ProxyError, ProxyResourceError, ProxyRevision, ProxyState, ProxyStatus};
use crate::health_report::facts::{Facts, RevisionFacts, Trouble};
use crate::health_report::finding::{Finding, Rule};
use crate::stats::{Dimension, Point, SeriesKey};

/// A part of a fleet with its requests: succeeded, refused with 4xx, without a route, failed.
type Part = (Dimension, [u64; 4]);

/// The present second.
const NOW: u64 = 1_000_000;

fn route(name: &str) -> Dimension {
    Dimension::Route(name.into())
}

fn upstream(name: &str) -> Dimension {
    Dimension::Upstream(name.into())
}

fn proxy_part(name: &str) -> Dimension {
    Dimension::Proxy(name.into())
}

fn points(parts: &[Part]) -> HashMap<SeriesKey, Point> {
    let point = |[succeeded, client_errors, no_route, server_errors]: [u64; 4]| Point {
        succeeded,
        client_errors,
        no_route,
        server_errors,
        ..Point::default()
    };
    let key = |dimension: &Dimension| SeriesKey { fleet: "edge".into(), dimension: dimension.clone() };
    parts.iter().map(|(dimension, counts)| (key(dimension), point(*counts))).collect()
}

fn revision(number: u64, age_s: u64, changed: &[&str]) -> RevisionFacts {
    let changed: Vec<ResourceKey> = changed.iter().map(|key| key.parse().unwrap()).collect();
    let committed_at_us = i64::try_from(NOW - age_s).unwrap() * 1_000_000;
    RevisionFacts { number, author: "alice".into(), committed_at_us, changed, upstreams: HashMap::new() }
}

fn proxy(id: &str, state: ProxyState) -> ProxyStatus {
    ProxyStatus {
        id: id.into(),
        fleet: "edge".into(),
        labels: BTreeMap::new(),
        version: "1".into(),
        address: String::new(),
        connected: state != ProxyState::Disconnected,
        connected_to: String::new(),
        last_seen: jiff::Timestamp::from_second(NOW as i64).unwrap().to_string(),
        state,
        revision: ProxyRevision {
            assigned: 1,
            generation: 0,
            assigned_because: signalbox_rollout::Because::Stable,
            sent: 1,
            applied: 1,
            applied_at: None,
        },
        apply_ms: None,
        error: None,
        traffic: None,
        listeners: BTreeMap::new(),
        admin_address: String::new(),
        warnings: Vec::new(),
    }
}

fn rejecting(id: &str, revision: u64) -> ProxyStatus {
    let resource = ProxyResourceError {
        kind: "listener".into(),
        name: "api".into(),
        field: "address".into(),
        message: "port 443 is taken".into(),
        changed_in: None,
    };
    let error = Some(ProxyError { revision, resources: vec![resource] });
    ProxyStatus { error, ..proxy(id, ProxyState::Rejected) }
}

/// The rule, the resource and the sentence of each finding.
fn found(facts: &Facts) -> Vec<(Rule, String, String)> {
    let row = |finding: Finding| {
        let resource = format!("{}/{}", finding.resource.kind, finding.resource.name);
        assert!((1..=100).contains(&finding.penalty), "{finding:?}");
        (finding.rule, resource, finding.sentence)
    };
    look(facts).into_iter().map(row).collect()
}

/// Traffic of which nothing fails.
const FINE: [u64; 4] = [3000, 10, 5, 1];

fn facts(now: &[Part], before: &[Part], revisions: Vec<RevisionFacts>) -> Facts {
    Facts { now: points(now), before: points(before), revisions, at: NOW, ..Facts::default() }
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let parts = [(Dimension::All, FINE), (route("a"), FINE)];
    let mut fine = facts(&parts, &parts, vec![revision(7, 1, &["route/a", "plugin/p"])]);
    fine.proxies = vec![proxy("p", ProxyState::InSync), proxy("q", ProxyState::Pending)];
    assert_eq!(found(&fine), []);
    // It has failed as much for long.
    let bad = [(Dimension::All, [900, 0, 0, 100]), (route("a"), [900, 0, 0, 100])];
    assert_eq!(found(&facts(&bad, &bad, Vec::new())), []);
    // Few requests say nothing.
    let few = [(Dimension::All, [0, 0, 0, 40])];
    assert_eq!(found(&facts(&few, &[], Vec::new())), []);
}

#[test]
fn proxies_that_refuse_are_counted_by_revision_and_lost_ones_by_fleet() {
    let mut facts = Facts { at: NOW, ..Facts::default() };
    facts.proxies = vec![
        rejecting("a", 18),
        rejecting("b", 18),
        rejecting("c", 17),
        proxy("d", ProxyState::Disconnected),
    ];
    facts.proxies.push(proxy("e", ProxyState::InSync));
    // A pod of an earlier deployment is gone, and not lost.
    let last_seen = jiff::Timestamp::from_second(NOW as i64 - 4000).unwrap().to_string();
    facts.proxies.push(ProxyStatus { last_seen, ..proxy("f", ProxyState::Disconnected) });
    let sentences: Vec<_> = found(&facts);
    let expected = [
        (
            Rule::Rejected,
            "revision/17",
            "1 of 4 proxies refuses revision 17: listener `api`, port 443 is taken",
        ),
        (
            Rule::Rejected,
            "revision/18",
            "2 of 4 proxies refuse revision 18: listener `api`, port 443 is taken",
        ),
        (Rule::Lost, "fleet/edge", "1 of 5 proxies of fleet `edge` is not connected: d"),
    ];
    let expected =
        expected.map(|(rule, resource, sentence)| (rule, resource.to_owned(), sentence.to_owned()));
    assert_eq!(sentences, expected);
    let away = Facts { database: Some("connection refused".into()), ..Facts::default() };
    let (rule, resource, sentence) = found(&away).remove(0);
    assert_eq!((rule, resource.as_str()), (Rule::Database, "database/"));
    assert!(sentence.contains("connection refused"), "{sentence}");
}

#[test]
fn the_narrowest_part_with_most_of_the_failures_is_named() {
    let failing = [900, 0, 0, 100];
    let fine = [1000, 0, 0, 0];
    let both = |bad: Dimension, good: Dimension| vec![(bad, failing), (good, fine)];
    let all = (Dimension::All, [1900, 0, 0, 100]);
    let table = [
        (vec![], Rule::Fleet, "fleet/edge", "5.0 % of the requests of fleet `edge` fail (before: 0.02 %)"),
        (
            both(proxy_part("p"), proxy_part("q")),
            Rule::Proxy,
            "proxy/p",
            "Proxy `p` has most of the failures of fleet `edge`: 10 % of its requests fail (before: 0 %)",
        ),
        (
            both(upstream("u"), upstream("v")),
            Rule::Upstream,
            "upstream/u",
            "Upstream `u` has most of the failures of fleet `edge`: 10 % of its requests fail (before: 0 %)",
        ),
        (
            both(route("r"), route("s")),
            Rule::Route,
            "route/r",
            "Route `r` has most of the failures of fleet `edge`: 10 % of its requests fail (before: 0 %)",
        ),
        // The only upstream has all requests, so it says nothing.
        (
            [vec![(upstream("u"), [1900, 0, 0, 100])], both(route("r"), route("s"))].concat(),
            Rule::Route,
            "route/r",
            "Route `r` has most of the failures of fleet `edge`: 10 % of its requests fail (before: 0 %)",
        ),
    ];
    for (parts, rule, resource, sentence) in table {
        let now = [vec![all.clone()], parts].concat();
        let before = [(Dimension::All, [60_000, 0, 0, 10])];
        let found = found(&facts(&now, &before, Vec::new()));
        assert_eq!(found, [(rule, resource.to_owned(), sentence.to_owned())]);
    }
}

#[test]
fn a_revision_is_blamed_if_only_its_proxies_fail_or_it_changed_what_fails() {
    let now = |parts: Vec<Part>| [vec![(Dimension::All, [1900, 0, 0, 100])], parts].concat();
    let before = [(Dimension::All, [60_000, 0, 0, 10])];
    let served = |number, counts| (Dimension::Revision(number), counts);
    let both = now(vec![served(17, [1000, 0, 0, 0]), served(18, [900, 0, 0, 100])]);
    let blame = |now: &[Part], revisions| {
        let mut found = found(&facts(now, &before, revisions));
        assert_eq!(found.len(), 1, "{found:?}");
        let (rule, _, sentence) = found.remove(0);
        (rule, sentence)
    };
    let (rule, sentence) = blame(&both, vec![revision(18, 30, &["route/r"])]);
    assert_eq!(rule, Rule::Revision);
    assert!(
        sentence.ends_with("Only proxies that serve revision 18 of alice, which changed route `r`, fail so often (10 %, the others 0 %)"),
        "{sentence}"
    );
    // Both fail alike: the rollout is not to blame.
    let alike = now(vec![served(17, [950, 0, 0, 50]), served(18, [950, 0, 0, 50])]);
    assert_eq!(blame(&alike, vec![revision(18, 30, &["route/r"])]).0, Rule::Fleet);
    // Nobody serves the old one any more.
    let after = now(vec![served(18, [1900, 0, 0, 100])]);
    let (rule, sentence) = blame(&after, vec![revision(18, 30, &["upstream/u"])]);
    assert_eq!(
        (rule, sentence.ends_with("Revision 18 of alice changed upstream `u`, 30 s ago")),
        (Rule::Revision, true),
        "{sentence}"
    );
    // It came after the failures.
    let mut earlier = facts(&after, &before, vec![revision(18, 30, &["upstream/u"])]);
    earlier.failing_since.insert(("edge".into(), Trouble::Failing), NOW - 60);
    assert_eq!(found(&earlier)[0].0, Rule::Fleet);
    // It is too long ago, or cannot have to do with it.
    assert_eq!(blame(&after, vec![revision(18, 3600, &["upstream/u"])]).0, Rule::Fleet);
    assert_eq!(blame(&after, vec![revision(18, 30, &["consumer/c"])]).0, Rule::Fleet);
    let narrow = [after, vec![(route("r"), [900, 0, 0, 100]), (route("s"), [1000, 0, 0, 0])]].concat();
    assert_eq!(
        blame(&narrow, vec![revision(18, 30, &["route/s"])]).0,
        Rule::Route,
        "it changed another route"
    );
}

#[test]
fn refused_requests_and_those_without_a_route_are_told_with_what_changed() {
    let before = [(Dimension::All, [60_000, 10, 10, 0])];
    let now =
        [(Dimension::All, [1500, 500, 0, 0]), (route("r"), [500, 500, 0, 0]), (route("s"), [1000, 0, 0, 0])];
    let revisions = vec![revision(19, 60, &["plugin/jwt", "route/x"])];
    assert_eq!(
        found(&facts(&now, &before, revisions)),
        [(
            Rule::ClientErrors,
            "route/r".to_owned(),
            "25 % of the requests of fleet `edge` are refused with 4xx (before: 0.02 %), most of them of route `r`. \
             Revision 19 of alice changed plugin `jwt`, 60 s ago"
                .to_owned()
        )]
    );
    let now = [(Dimension::All, [1500, 0, 500, 0])];
    let (rule, _, sentence) = found(&facts(&now, &before, vec![revision(20, 5, &["route/r"])])).remove(0);
    assert_eq!(rule, Rule::NoRoute);
    assert!(sentence.ends_with("Revision 20 of alice changed routes or listeners, 5 s ago"), "{sentence}");
}
