//! Faults of a fleet, by a script, and the incident that each becomes: one, by the right rule, about the right resource, with the numbers.
//!
//! The fleet `edge` has four proxies and three routes: `users` to the upstream `users`, and `orders` and `items` to the upstream `shop`.

use std::collections::HashMap;

use super::{NOW, proxy, rejecting, revision};
use crate::board::ProxyState;
use crate::health_report::facts::Facts;
use crate::health_report::finding::Rule;
use crate::health_report::incidents::{IncidentChange, Incidents};
use crate::health_report::rules::look;
use crate::stats::{Dimension, Point, SeriesKey, Tally};

/// The requests of a route at a proxy in the last minute.
#[derive(Clone)]
struct Cell {
    proxy: &'static str,
    route: &'static str,
    upstream: &'static str,
    revision: u64,
    point: Point,
}

/// The requests of a cell. With four proxies and three routes, a fleet has 12,000.
const REQUESTS: u64 = 1000;

/// The bucket of the usual latencies, 5 ms.
const USUAL: i32 = 98;

/// The state of the fleet.
struct World {
    now: Vec<Cell>,
    before: Vec<Cell>,
    facts: Facts,
}

/// Picks requests.
type Picked = fn(&Cell) -> bool;

const ALL: Picked = |_| true;
const SHOP: Picked = |cell| cell.upstream == "shop";
const USERS: Picked = |cell| cell.route == "users";
const ITEMS: Picked = |cell| cell.route == "items";
const P1: Picked = |cell| cell.proxy == "p1";
const NEW: Picked = |cell| cell.revision == 8;

impl World {
    /// All is well, and all serve revision 7, which is old.
    fn new() -> Self {
        let mut now = Vec::new();
        for proxy in ["p1", "p2", "p3", "p4"] {
            for (route, upstream) in [("users", "users"), ("orders", "shop"), ("items", "shop")] {
                let latency = vec![(USUAL, REQUESTS * 95 / 100), (USUAL + 4, REQUESTS * 5 / 100)].into();
                let point = Point { succeeded: REQUESTS, latency, ..Point::default() };
                now.push(Cell { proxy, route, upstream, revision: 7, point });
            }
        }
        let proxies = ["p1", "p2", "p3", "p4"].map(|id| proxy(id, ProxyState::InSync)).into();
        let facts = Facts { proxies, at: NOW, ..Facts::default() };
        Self { before: now.clone(), now, facts }
    }

    /// Some of the picked requests change.
    fn change(mut self, picked: Picked, percent: u64, mut change: impl FnMut(&mut Point, u64)) -> Self {
        for cell in self.now.iter_mut().filter(|cell| picked(cell)) {
            let count = REQUESTS * percent / 100;
            change(&mut cell.point, count);
        }
        self
    }

    /// They fail with 5xx; an empty flag: the target answered so.
    fn fail(self, picked: Picked, percent: u64, flag: &'static str) -> Self {
        self.change(picked, percent, |point, count| {
            point.succeeded -= count;
            point.server_errors += count;
            if !flag.is_empty() {
                point.flags.add(&tally(flag, count));
            }
        })
    }

    /// Attempts to reach a target fail.
    fn target(self, picked: Picked, percent: u64, target: &'static str) -> Self {
        self.change(picked, percent, |point, count| point.failed_targets.add(&tally(target, count)))
    }

    /// They take longer by that many buckets.
    fn slow(self, picked: Picked, percent: u64, buckets: i32) -> Self {
        self.change(picked, percent, |point, count| {
            let rest = REQUESTS - count;
            point.latency = vec![(USUAL, rest), (USUAL + buckets, count)].into();
        })
    }

    /// They are refused with 4xx.
    fn refuse(self, picked: Picked, percent: u64) -> Self {
        self.change(picked, percent, |point, count| {
            point.succeeded -= count;
            point.client_errors += count;
        })
    }

    /// Clients give them up, or send nonsense.
    fn abort(self, picked: Picked, percent: u64, flag: &'static str) -> Self {
        self.change(picked, percent, |point, count| {
            point.succeeded -= count;
            point.client_errors += count;
            point.flags.add(&tally(flag, count));
        })
    }

    /// They match no route.
    fn lose_route(self, picked: Picked, percent: u64) -> Self {
        self.change(picked, percent, |point, count| {
            point.succeeded -= count;
            point.no_route += count;
            point.flags.add(&tally("NR", count));
        })
    }

    /// The picked cells have a revision that is new.
    fn revise(mut self, picked: Picked, changed: &[&str]) -> Self {
        for cell in self.now.iter_mut().filter(|cell| picked(cell)) {
            cell.revision = 8;
        }
        self.facts.revisions.push(revision(8, 20, changed));
        self
    }

    /// A revision that is too old to be blamed.
    fn revised_before(mut self, changed: &[&str]) -> Self {
        self.facts.revisions.push(revision(6, 3600, changed));
        self
    }

    fn proxies(mut self, state: ProxyState, ids: &[&'static str]) -> Self {
        for known in self.facts.proxies.iter_mut().filter(|known| ids.contains(&known.id.as_str())) {
            *known = proxy(&known.id, state);
        }
        self
    }

    fn rejecting(mut self, ids: &[&'static str]) -> Self {
        for known in self.facts.proxies.iter_mut().filter(|known| ids.contains(&known.id.as_str())) {
            *known = rejecting(&known.id, 8);
        }
        self
    }

    fn database(mut self, reason: &str) -> Self {
        self.facts.database = Some(reason.to_owned());
        self
    }

    /// The same share of failures was usual before.
    fn always(mut self) -> Self {
        self.before = self.now.clone();
        self
    }

    /// The same share failed before, when proxies did not tell why.
    fn before_without_flags(mut self) -> Self {
        self.before = self.now.clone();
        self.before.iter_mut().for_each(|cell| cell.point.flags = Tally::default());
        self
    }

    /// There was no traffic before.
    fn new_fleet(mut self) -> Self {
        self.before.clear();
        self
    }

    /// Only one request in so many comes.
    fn quiet(mut self, one_in: u64) -> Self {
        for cell in &mut self.now {
            let part = cell.point.split(one_in).swap_remove(0);
            cell.point = part;
        }
        self
    }

    /// The incidents after the rules have looked three times.
    fn incidents(mut self) -> Vec<(Rule, String, String)> {
        (self.facts.now, self.facts.before) = (series(&self.now, 1), series(&self.before, 30));
        let mut incidents = Incidents::default();
        let mut opened = Vec::new();
        for look_number in 0..3 {
            for change in incidents.fold(NOW + 10 * look_number, look(&self.facts)) {
                match change {
                    IncidentChange::Opened(incident) => {
                        let resource = format!("{}/{}", incident.resource.kind, incident.resource.name);
                        opened.push((incident.rule, resource, incident.sentence));
                    }
                    IncidentChange::Closed(incident) => panic!("it has ended: {}", incident.sentence),
                }
            }
        }
        opened
    }
}

fn tally(name: &str, count: u64) -> Tally {
    Tally::from(&HashMap::from([(name.to_owned(), count)]))
}

/// The series of cells, each `times` times.
fn series(cells: &[Cell], times: u64) -> HashMap<SeriesKey, Point> {
    let mut series = HashMap::<SeriesKey, Point>::new();
    for cell in cells {
        for dimension in [
            Dimension::All,
            Dimension::Proxy(cell.proxy.into()),
            Dimension::Route(cell.route.into()),
            Dimension::Upstream(cell.upstream.into()),
            Dimension::Revision(cell.revision),
        ] {
            let sum = series.entry(SeriesKey { fleet: "edge".into(), dimension }).or_default();
            (0..times).for_each(|_| sum.add(&cell.point));
        }
    }
    series
}

/// A fault, the rule and the resource of its incident, and parts of the sentence.
type Fault = (&'static str, World, Rule, &'static str, &'static [&'static str]);

/// Proxies, control planes and overload.
fn faults_of_the_fleet() -> Vec<Fault> {
    let world = World::new;
    vec![
        (
            "one proxy refuses a revision",
            world().rejecting(&["p1"]),
            Rule::Rejected,
            "revision/8",
            &["1 of 4 proxies refuses revision 8: listener `api`, port 443 is taken"],
        ),
        (
            "all proxies refuse a revision",
            world().rejecting(&["p1", "p2", "p3", "p4"]),
            Rule::Rejected,
            "revision/8",
            &["4 of 4 proxies refuse"],
        ),
        (
            "the database is away",
            world().database("connection refused"),
            Rule::Database,
            "database/",
            &["connection refused"],
        ),
        (
            "one proxy is lost",
            world().proxies(ProxyState::Disconnected, &["p3"]),
            Rule::Lost,
            "fleet/edge",
            &["1 of 4 proxies", "p3"],
        ),
        (
            "three proxies are lost",
            world().proxies(ProxyState::Disconnected, &["p1", "p2", "p3"]),
            Rule::Lost,
            "fleet/edge",
            &["3 of 4 proxies", "p1, p2, p3"],
        ),
        (
            "all proxies have too much to do",
            world().fail(ALL, 20, "OM"),
            Rule::Overload,
            "fleet/edge",
            &["20 %", "(OM)", "4 proxies for some 200 requests per second"],
        ),
        (
            "one proxy is too weak",
            world().fail(P1, 40, "OM"),
            Rule::Overload,
            "proxy/p1",
            &["10 %", "Most of them were refused by proxy `p1`"],
        ),
        (
            "canaries have too much to do",
            world().revise(P1, &["plugin/wasm"]).fail(NEW, 40, "OM"),
            Rule::Overload,
            "proxy/p1",
            &["Only proxies that serve revision 8 of alice, which changed plugin `wasm`, fail so often"],
        ),
        (
            "a limit is reached, and one attempt failed besides",
            world().fail(SHOP, 20, "UO").target(ITEMS, 1, "10.0.0.7:80"),
            Rule::Upstream,
            "upstream/shop",
            &["A limit of the upstream is reached"],
        ),
        (
            "few requests are refused for overload",
            world().fail(ALL, 2, "OM"),
            Rule::Overload,
            "fleet/edge",
            &["2.0 %"],
        ),
        (
            "overload in a new fleet",
            world().new_fleet().fail(ALL, 50, "OM"),
            Rule::Overload,
            "fleet/edge",
            &["50 %"],
        ),
    ]
}

/// Upstreams, targets and plugins.
fn faults_of_upstreams() -> Vec<Fault> {
    let world = World::new;
    vec![
        (
            "one target cannot be reached",
            world().fail(SHOP, 30, "UF").target(SHOP, 30, "10.0.0.7:80"),
            Rule::Target,
            "target/shop 10.0.0.7:80",
            &[
                "Upstream `shop`",
                "30 %",
                "No connection to a target can be made (UF)",
                "2400 attempts failed at the target 10.0.0.7:80 of upstream `shop`",
            ],
        ),
        (
            "one target answers 500",
            world().fail(SHOP, 25, "").target(SHOP, 25, "10.0.0.7:80"),
            Rule::Target,
            "target/shop 10.0.0.7:80",
            &["25 %", "2000 attempts"],
        ),
        (
            "one target hangs",
            world().fail(USERS, 50, "UT").target(USERS, 50, "b:80"),
            Rule::Target,
            "target/users b:80",
            &["50 %", "in time (UT)"],
        ),
        (
            "two targets fail alike",
            world().fail(SHOP, 30, "UF").target(SHOP, 15, "a:80").target(SHOP, 15, "b:80"),
            Rule::Upstream,
            "upstream/shop",
            &["Upstream `shop` has most of the failures of fleet `edge`: 30 %"],
        ),
        (
            "no target is healthy",
            world().fail(USERS, 100, "UH"),
            Rule::Upstream,
            "upstream/users",
            &["100 %", "(before: 0 %)", "No target is healthy (UH)"],
        ),
        (
            "a limit is reached",
            world().fail(SHOP, 10, "UO"),
            Rule::Upstream,
            "upstream/shop",
            &["10 %", "A limit of the upstream is reached"],
        ),
        (
            "targets end connections",
            world().fail(SHOP, 5, "UC"),
            Rule::Upstream,
            "upstream/shop",
            &["5.0 %", "(UC)"],
        ),
        (
            "targets speak something else",
            world().fail(USERS, 100, "UPE"),
            Rule::Upstream,
            "upstream/users",
            &["what is not HTTP (UPE)"],
        ),
        (
            "an application fails by itself",
            world().fail(USERS, 8, ""),
            Rule::Upstream,
            "upstream/users",
            &["8.0 %"],
        ),
    ]
}

/// Routes, proxies and the whole.
fn faults_of_routes_and_proxies() -> Vec<Fault> {
    let world = World::new;
    vec![
        (
            "one route of an upstream fails",
            world().fail(ITEMS, 40, ""),
            Rule::Route,
            "route/items",
            &["Route `items` has most of the failures", "40 %"],
        ),
        (
            "a plugin panics on a route",
            world().fail(ITEMS, 90, "PP"),
            Rule::Route,
            "route/items",
            &["90 %", "A plugin panicked (PP)"],
        ),
        ("a plugin ends responses", world().fail(ITEMS, 12, "PA"), Rule::Route, "route/items", &["(PA)"]),
        ("streams are idle", world().fail(ITEMS, 30, "SI"), Rule::Route, "route/items", &["(SI)"]),
        (
            "one proxy cannot reach anything",
            world().fail(P1, 60, "UF"),
            Rule::Proxy,
            "proxy/p1",
            &["Proxy `p1`", "60 %", "(UF)"],
        ),
        (
            "everything fails",
            world().fail(ALL, 70, ""),
            Rule::Fleet,
            "fleet/edge",
            &["70 % of the requests of fleet `edge` fail"],
        ),
        (
            "everything fails for two reasons",
            world().fail(ALL, 20, "UT").fail(ALL, 20, "UF"),
            Rule::Fleet,
            "fleet/edge",
            &["40 %"],
        ),
        (
            "failures in a new fleet",
            world().new_fleet().fail(USERS, 50, "UT"),
            Rule::Upstream,
            "upstream/users",
            &["50 %"],
        ),
    ]
}

/// Changes of the configuration.
fn faults_of_changes() -> Vec<Fault> {
    let world = World::new;
    vec![
        (
            "canaries fail",
            world().revise(P1, &["upstream/shop"]).fail(NEW, 30, ""),
            Rule::Revision,
            "proxy/p1",
            &[
                "Only proxies that serve revision 8 of alice, which changed upstream `shop`, fail so often (30 %, the others 0 %)",
            ],
        ),
        (
            "a change of a route breaks it",
            world().revise(ALL, &["route/items"]).fail(ITEMS, 100, ""),
            Rule::Revision,
            "route/items",
            &["Revision 8 of alice changed route `items`, 20 s ago"],
        ),
        (
            "a change of an upstream breaks it",
            world().revise(ALL, &["upstream/users"]).fail(USERS, 100, "UF"),
            Rule::Revision,
            "upstream/users",
            &["(UF)", "changed upstream `users`"],
        ),
        (
            "a change of a target breaks it",
            world().revise(ALL, &["upstream/users"]).fail(USERS, 40, "UF").target(USERS, 40, "typo:80"),
            Rule::Revision,
            "upstream/users",
            &["changed upstream `users`, 20 s ago"],
        ),
        (
            "a plugin breaks everything",
            world().revise(ALL, &["plugin/auth"]).fail(ALL, 100, "PP"),
            Rule::Revision,
            "fleet/edge",
            &["plugin `auth`", "(PP)"],
        ),
        (
            "a route that leads elsewhere is not to blame",
            world().revise(ALL, &["route/items"]).fail(USERS, 60, "UT"),
            Rule::Upstream,
            "upstream/users",
            &["60 %"],
        ),
        (
            "an old change is not to blame",
            world().revised_before(&["upstream/users"]).fail(USERS, 60, "UT"),
            Rule::Upstream,
            "upstream/users",
            &["60 %"],
        ),
        (
            "a change of something else is not to blame",
            world().revise(ALL, &["upstream/shop"]).fail(USERS, 60, "UT"),
            Rule::Upstream,
            "upstream/users",
            &["60 %"],
        ),
        (
            "canaries are not to blame if all fail alike",
            world().revise(P1, &["consumer/c"]).fail(ALL, 60, "UT"),
            Rule::Fleet,
            "fleet/edge",
            &["60 %", "(UT)"],
        ),
    ]
}

/// Changes that concern clients, and clients that are wrong by themselves.
fn faults_of_access() -> Vec<Fault> {
    let world = World::new;
    vec![
        (
            "a route was deleted",
            world().revise(ALL, &["route/old"]).lose_route(ALL, 20),
            Rule::NoRoute,
            "fleet/edge",
            &[
                "20 % of the requests of fleet `edge` match no route",
                "Revision 8 of alice changed routes or listeners",
            ],
        ),
        (
            "clients ask for what never was",
            world().lose_route(ALL, 30),
            Rule::NoRoute,
            "fleet/edge",
            &["30 %"],
        ),
        (
            "a plugin refuses clients",
            world().revise(ALL, &["plugin/key-auth"]).refuse(USERS, 80),
            Rule::ClientErrors,
            "route/users",
            &["route `users`", "changed plugin `key-auth`"],
        ),
        (
            "a consumer has lost access",
            world().revise(ALL, &["consumer/app"]).refuse(ALL, 10),
            Rule::ClientErrors,
            "fleet/edge",
            &["10 %", "consumer `app`"],
        ),
        (
            "clients send wrong requests",
            world().refuse(ITEMS, 50),
            Rule::ClientErrors,
            "route/items",
            &["route `items`"],
        ),
    ]
}

/// Latencies and clients.
fn faults_of_latency_and_clients() -> Vec<Fault> {
    let world = World::new;
    vec![
        (
            "everything is slow",
            world().slow(ALL, 60, 40),
            Rule::Slow,
            "fleet/edge",
            &["60 % of the requests of fleet `edge` take longer than", "ms (before: 0 %)"],
        ),
        (
            "an upstream is slow",
            world().slow(SHOP, 50, 40),
            Rule::Slow,
            "upstream/shop",
            &["33 %", "those of upstream `shop`"],
        ),
        (
            "a route is slow",
            world().slow(ITEMS, 90, 40),
            Rule::Slow,
            "route/items",
            &["30 %", "route `items`"],
        ),
        ("a proxy is slow", world().slow(P1, 100, 40), Rule::Slow, "proxy/p1", &["25 %", "proxy `p1`"]),
        (
            "canaries are slow",
            world().revise(P1, &["plugin/p"]).slow(NEW, 100, 40),
            Rule::Slow,
            "proxy/p1",
            &["Only proxies that serve revision 8 of alice, which changed plugin `p`, are so slow"],
        ),
        (
            "a change makes a route slow",
            world().revise(ALL, &["route/items"]).slow(ITEMS, 100, 40),
            Rule::Slow,
            "route/items",
            &["Revision 8 of alice changed route `items`"],
        ),
        (
            "timeouts are failures first",
            world().fail(SHOP, 40, "UT").slow(SHOP, 40, 80),
            Rule::Upstream,
            "upstream/shop",
            &["(UT)"],
        ),
        (
            "clients give up",
            world().abort(ALL, 10, "DC"),
            Rule::Clients,
            "fleet/edge",
            &["10 %", "look at the clients"],
        ),
        (
            "clients speak something else",
            world().abort(ALL, 5, "DPE"),
            Rule::Clients,
            "fleet/edge",
            &["5.0 %"],
        ),
        (
            "clients give up because it fails",
            world().fail(USERS, 50, "UT").abort(USERS, 20, "DC"),
            Rule::Upstream,
            "upstream/users",
            &["50 %", "(UT)"],
        ),
    ]
}

#[test]
fn each_fault_becomes_one_incident_by_the_right_rule() {
    let mut faults = faults_of_the_fleet();
    faults.extend(faults_of_upstreams());
    faults.extend(faults_of_routes_and_proxies());
    faults.extend(faults_of_changes());
    faults.extend(faults_of_access());
    faults.extend(faults_of_latency_and_clients());
    assert!(faults.len() >= 40, "{}", faults.len());
    for (name, world, rule, resource, fragments) in faults {
        let incidents = world.incidents();
        let [(found_rule, found_resource, sentence)] = &incidents[..] else {
            panic!("{name}: {incidents:#?}")
        };
        assert_eq!((*found_rule, found_resource.as_str()), (rule, resource), "{name}: {sentence}");
        for fragment in fragments {
            assert!(sentence.contains(fragment), "{name}: {fragment:?} is not in {sentence:?}");
        }
    }
}

#[test]
fn what_is_usual_or_too_little_is_no_incident() {
    let world = World::new;
    for (name, world) in [
        ("all is well", world()),
        ("the same failures as always", world().fail(USERS, 30, "UT").always()),
        (
            "proxies that told no flags before",
            world().fail(ALL, 2, "").abort(ALL, 3, "DC").before_without_flags(),
        ),
        ("the same latencies as always", world().slow(ALL, 60, 40).always()),
        (
            "a few failures",
            world().change(ALL, 0, |_, _| {}).fail(|cell| cell.proxy == "p1" && ITEMS(cell), 1, "UT"),
        ),
        ("few requests", world().fail(ALL, 50, "UF").quiet(400)),
        ("a little slower", world().slow(ALL, 100, 6)),
        ("a new fleet that is slow has nothing to compare with", world().new_fleet().slow(ALL, 100, 60)),
        ("a new fleet with a few wrong requests", world().new_fleet().refuse(ALL, 3).lose_route(ALL, 2)),
        ("a change without harm", world().revise(ALL, &["plugin/auth", "route/items"])),
        ("canaries without harm", world().revise(P1, &["upstream/shop"])),
        ("proxies that are behind", world().proxies(ProxyState::Pending, &["p1", "p2"])),
        ("some clients give up", world().abort(ITEMS, 1, "DC")),
    ] {
        assert_eq!(world.incidents(), [], "{name}");
    }
}
