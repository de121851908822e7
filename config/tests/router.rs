//! The route index against a matcher that looks at every route, and case by case.

mod common;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use common::route;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};
use signalbox_config::path::{EscapedSlashes, normalize};
use signalbox_config::router::{LostBy, RequestParts, Slash};
use signalbox_config::template::{Segment, Template};
use signalbox_config::{
    HeaderMatch, HostMatch, PathMatch, PrefixPath, QueryMatch, Route, RouteIndex, ValueMatch,
};

/// A request that owns its parts.
#[derive(Debug, Clone)]
struct Request {
    listener: String,
    method: Method,
    host: String,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
}

impl Request {
    fn parts(&self) -> RequestParts<'_> {
        RequestParts {
            listener: &self.listener,
            method: &self.method,
            host: &self.host,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
        }
    }
}

/// Name, prefix length and slash of what the index found.
type Answer = Option<(String, usize, Option<Slash>)>;

fn find(index: &RouteIndex<String>, request: &Request) -> Answer {
    index.find(&request.parts()).map(|found| (found.value.clone(), found.prefix_len, found.slash))
}

// ------------------------------------------------------------------------------------------------------------------
// The naive matcher: every route, every host, every path; the smallest rank wins.

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    priority: Reverse<i32>,
    host: (u8, Reverse<usize>),
    kind: u8,
    prefix: Reverse<usize>,
    template: Vec<u8>,
    redirects: bool,
    has_method: Reverse<bool>,
    headers: Reverse<usize>,
    query: Reverse<usize>,
    name: String,
}

fn naive(routes: &[Route], request: &Request) -> Answer {
    let mut best: Option<(Rank, usize, Option<Slash>)> = None;
    for route in routes.iter().filter(|route| route.enabled && conditions_hold(route, request)) {
        for host in &route.matches.hosts {
            let Some(host) = rank_host(host, &request.host) else { continue };
            for path in &route.matches.paths {
                let Some((kind, prefix, template, slash)) =
                    rank_path(path, route.strict_slash, &request.path)
                else {
                    continue;
                };
                let rank = Rank {
                    priority: Reverse(route.priority),
                    host,
                    kind,
                    prefix: Reverse(prefix),
                    template,
                    redirects: slash.is_some(),
                    has_method: Reverse(!route.matches.methods.is_empty()),
                    headers: Reverse(route.matches.headers.len()),
                    query: Reverse(route.matches.query.len()),
                    name: route.name.to_string(),
                };
                if best.as_ref().is_none_or(|(known, ..)| rank < *known) {
                    best = Some((rank, prefix, slash));
                }
            }
        }
    }
    best.map(|(rank, prefix, slash)| (rank.name, prefix, slash))
}

fn conditions_hold(route: &Route, request: &Request) -> bool {
    let listener = match &route.listeners {
        None => true,
        Some(names) => names.iter().any(|name| name.as_str() == request.listener),
    };
    let method = route.matches.methods.is_empty() || route.matches.methods.contains(&request.method);
    let header = |wanted: &HeaderMatch| {
        let values: Vec<&str> = request
            .headers
            .get_all(&wanted.name)
            .iter()
            .map(|value| value.to_str().expect("ASCII"))
            .collect();
        holds(&wanted.value, &values) != wanted.invert
    };
    let parameter = |wanted: &QueryMatch| {
        let pairs = request.query.as_deref().unwrap_or("").split('&').map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        });
        let value: Vec<String> =
            pairs.filter(|(name, _)| **name == *wanted.name).map(|(_, value)| value).take(1).collect();
        let value: Vec<&str> = value.iter().map(String::as_str).collect();
        holds(&wanted.value, &value) != wanted.invert
    };
    listener
        && method
        && route.matches.headers.iter().all(header)
        && route.matches.query.iter().all(parameter)
}

fn holds(wanted: &ValueMatch, values: &[&str]) -> bool {
    match wanted {
        ValueMatch::Present(wanted) => values.is_empty() != *wanted,
        ValueMatch::Exact(text) => values.contains(&&**text),
        ValueMatch::Prefix(text) => values.iter().any(|value| value.starts_with(&**text)),
        ValueMatch::Regex(regex) => values.iter().any(|value| regex.is_match(value)),
    }
}

fn decode(text: &str) -> String {
    text.replace('+', " ").replace("%61", "a").replace("%2B", "+")
}

fn rank_host(pattern: &HostMatch, host: &str) -> Option<(u8, Reverse<usize>)> {
    match pattern {
        HostMatch::Exact(name) => (**name == *host).then_some((0, Reverse(0))),
        HostMatch::Suffix(suffix) => {
            let before = host.strip_suffix(&**suffix)?.strip_suffix('.')?;
            (!before.is_empty()).then_some((1, Reverse(suffix.len())))
        }
        HostMatch::Any => Some((2, Reverse(0))),
    }
}

type PathRank = (u8, usize, Vec<u8>, Option<Slash>);

fn rank_path(pattern: &PathMatch, strict: bool, path: &str) -> Option<PathRank> {
    let strict = strict && path != "/";
    match pattern {
        PathMatch::Exact(wanted) if **wanted == *path => Some((0, 0, vec![], None)),
        PathMatch::Exact(wanted) if strict && **wanted == format!("{path}/") => {
            Some((0, 0, vec![], Some(Slash::Add)))
        }
        PathMatch::Exact(wanted) if strict && format!("{wanted}/") == path && !wanted.ends_with('/') => {
            Some((0, 0, vec![], Some(Slash::Remove)))
        }
        PathMatch::Exact(_) => None,
        PathMatch::Prefix(PrefixPath { path: prefix, .. }) if path == "*" => {
            prefix.is_empty().then_some((2, 0, vec![], None))
        }
        PathMatch::Prefix(PrefixPath { path: prefix, trailing_slash }) => {
            let rest = path.strip_prefix(&**prefix)?;
            if !rest.is_empty() && !rest.starts_with('/') {
                return None;
            }
            let slash = match (rest, trailing_slash) {
                ("", true) if strict => Some(Slash::Add),
                ("/", false) if strict => Some(Slash::Remove),
                _ => None,
            };
            Some((2, prefix.len(), vec![], slash))
        }
        PathMatch::Template(template) => {
            let closed = template.as_str().ends_with('/');
            let slash = if fits(template, path) {
                None
            } else if strict && closed && fits(template, &format!("{path}/")) {
                Some(Slash::Add)
            } else if strict && !closed && path.strip_suffix('/').is_some_and(|path| fits(template, path)) {
                // A template that takes all that is left has taken the slash already.
                Some(Slash::Remove).filter(|_| template.segments().last() != Some(&Segment::Rest))
            } else {
                return None;
            };
            if slash.is_none() && !fits(template, path) {
                return None;
            }
            let mut ranks: Vec<u8> = template.segments().iter().map(segment_rank).collect();
            if closed {
                ranks.pop();
            }
            Some((1, 0, ranks, slash))
        }
        PathMatch::Regex(regex, _) => regex.is_match(path).then_some((3, 0, vec![], None)),
    }
}

fn segment_rank(segment: &Segment) -> u8 {
    match segment {
        Segment::Literal(_) => 0,
        Segment::Any => 1,
        Segment::Rest => 2,
    }
}

fn fits(template: &Template, path: &str) -> bool {
    fn fit(segments: &[Segment], path: &[&str]) -> bool {
        match (segments, path) {
            ([], []) => true,
            ([Segment::Rest], rest) => !rest.is_empty() && *rest != [""],
            ([Segment::Literal(wanted), segments @ ..], [first, path @ ..]) => {
                **wanted == **first && fit(segments, path)
            }
            ([Segment::Any, segments @ ..], [first, path @ ..]) => !first.is_empty() && fit(segments, path),
            _ => false,
        }
    }
    let path: Vec<&str> = path[1..].split('/').collect();
    fit(template.segments(), &path)
}

// ------------------------------------------------------------------------------------------------------------------
// Random routes and requests from so few words that they collide all the time.

const HOSTS: [&str; 5] = ["x", "a.x", "b.x", "a.a.x", "a.b.x"];

fn some_path(segments: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::collection::vec(select(segments), 1..4).prop_map(|segments| format!("/{}", segments.join("/")))
}

/// As a route has it.
fn normal(path: &str) -> String {
    normalize(path, EscapedSlashes::Keep).expect("a path").into_owned()
}

fn some_path_match() -> impl Strategy<Value = Value> {
    let template =
        prop::collection::vec(select(&["a", "b", "{}", "{}", "", "{*}"][..]), 1..4).prop_map(|segments| {
            let mut text = String::new();
            for (index, segment) in segments.iter().enumerate() {
                let last = index + 1 == segments.len();
                text.push('/');
                match *segment {
                    "{}" => text.push_str(&format!("{{v{index}}}")),
                    "{*}" if last => text.push_str("{*rest}"),
                    "{*}" => text.push('a'),
                    literal => text.push_str(literal),
                }
            }
            text
        });
    prop_oneof![
        3 => some_path(&["a", "b", ""]).prop_map(|path| json!({"exact": normal(&path)})),
        3 => some_path(&["a", "b", ""]).prop_map(|path| json!({"prefix": normal(&path)})),
        4 => template.prop_map(|text| json!({"template": normal(&text)})),
        1 => select(&["/a.*", "/a", "/[ab]/?", ".*b", "/"][..]).prop_map(|regex| json!({"regex": regex})),
    ]
}

fn some_condition(names: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let value = prop_oneof![
        select(&["a", "a b", ""][..]).prop_map(|text| json!({"exact": text})),
        select(&["a", "a "][..]).prop_map(|text| json!({"prefix": text})),
        select(&["a|b", "a.*"][..]).prop_map(|text| json!({"regex": text})),
        any::<bool>().prop_map(|present| json!({"present": present})),
    ];
    (select(names), value, prop::bool::weighted(0.2)).prop_map(|(name, mut value, invert)| {
        value["name"] = name.into();
        value["invert"] = invert.into();
        value
    })
}

fn some_route() -> impl Strategy<Value = Value> {
    let none_or = |strategy: BoxedStrategy<Vec<Value>>| prop_oneof![3 => Just(Vec::new()), 1 => strategy];
    let hosts = select(&["x", "a.x", "*.x", "*.a.x", "*.b.x", "a.b.x"][..]);
    let matches = (
        prop::collection::vec(hosts, 0..3),
        prop::collection::vec(some_path_match(), 0..4),
        prop_oneof![
            2 => Just(Vec::new()),
            1 => subsequence(vec!["GET", "POST", "HEAD", "PURGE"], 1..=2),
        ],
        none_or(prop::collection::vec(some_condition(&["h", "i"]), 1..3).boxed()),
        none_or(prop::collection::vec(some_condition(&["q", "a"]), 1..3).boxed()),
    );
    let rest = (
        prop_oneof![4 => Just(0), 1 => -1..=1],
        any::<bool>(),
        prop::bool::weighted(0.9),
        prop_oneof![4 => Just(json!(null)), 1 => Just(json!(["http"])), 1 => Just(json!(["other", "more"]))],
    );
    (matches, rest).prop_map(|((hosts, paths, methods, headers, query), (priority, strict, enabled, listeners))| {
        let mut route = json!({
            "match": {"hosts": hosts, "paths": paths, "methods": methods, "headers": headers, "query": query},
            "priority": priority,
            "strict_slash": strict,
            "enabled": enabled,
        });
        if !listeners.is_null() {
            route["listeners"] = listeners;
        }
        // None is written by leaving the list out.
        if let Some(matches) = route["match"].as_object_mut() {
            matches.retain(|_, list| *list != json!([]));
        }
        route
    })
}

fn some_request() -> impl Strategy<Value = Request> {
    let value = select(&["a", "b", "a b", "ab", ""][..]);
    let parameter = (select(&["q", "a", "%61"][..]), select(&["=a", "=a+b", "=%61", "=%2B", "=", ""][..]))
        .prop_map(|(name, value)| format!("{name}{value}"));
    (
        select(&["http", "other"][..]),
        select(&["GET", "POST", "HEAD", "PURGE", "PURGES"][..]),
        select(&HOSTS[..]),
        prop_oneof![9 => some_path(&["a", "b", "c", ""]), 1 => Just("*".to_owned())],
        prop::option::of(prop::collection::vec(parameter, 0..3)),
        prop::collection::vec((select(&["h", "i"][..]), value), 0..3),
    )
        .prop_map(|(listener, method, host, path, query, headers)| Request {
            listener: listener.into(),
            method: method.parse().expect("a method"),
            host: host.into(),
            path,
            query: query.map(|pairs| pairs.join("&")),
            headers: headers
                .into_iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect(),
        })
}

fn index_of(routes: &[Route]) -> RouteIndex<String> {
    let mut index = RouteIndex::new();
    for route in routes {
        index.insert(route, route.name.to_string());
    }
    index
}

/// Asks `naive`. `OPTIONS *` has no path, so only regular expressions and routes that take all paths are left for it.
fn expected(routes: &[Route], request: &Request) -> Answer {
    if request.path.starts_with('/') {
        return naive(routes, request);
    }
    let takes = |path: &&PathMatch| match path {
        PathMatch::Regex(..) => true,
        PathMatch::Prefix(prefix) => prefix.path.is_empty(),
        PathMatch::Exact(_) | PathMatch::Template(_) => false,
    };
    let left: Vec<Route> = routes
        .iter()
        .cloned()
        .filter_map(|mut route| {
            let left: Vec<_> = route.matches.paths.iter().filter(takes).cloned().collect();
            route.matches.paths = left.into();
            (!route.matches.paths.is_empty()).then_some(route)
        })
        .collect();
    naive(&left, request)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_index_agrees_with_the_naive_matcher(
        specs in prop::collection::vec(some_route(), 1..14),
        requests in prop::collection::vec(some_request(), 40),
    ) {
        let routes: Vec<Route> =
            specs.iter().enumerate().map(|(i, spec)| route(&format!("r{i}"), spec)).collect();
        let index = index_of(&routes);
        for request in &requests {
            prop_assert_eq!(find(&index, request), expected(&routes, request), "{:?}", request);
        }
    }

    #[test]
    fn changes_leave_older_clones_as_they_were(
        specs in prop::collection::vec(some_route(), 4..10),
        changes in prop::collection::vec((0..10_usize, any::<bool>()), 1..20),
        requests in prop::collection::vec(some_request(), 12),
    ) {
        let all: Vec<Route> =
            specs.iter().enumerate().map(|(i, spec)| route(&format!("r{i}"), spec)).collect();
        let mut present: BTreeMap<usize, Route> = BTreeMap::new();
        let mut index = RouteIndex::new();
        let mut versions = Vec::new();
        for (at, removes) in changes {
            let at = at % all.len();
            if let Some(old) = present.remove(&at) {
                index.remove(&old);
            }
            if !removes {
                index.insert(&all[at], all[at].name.to_string());
                present.insert(at, all[at].clone());
            }
            versions.push((index.clone(), present.values().cloned().collect::<Vec<_>>()));
        }
        for (index, routes) in &versions {
            for request in &requests {
                prop_assert_eq!(find(index, request), expected(routes, request), "{:?}", request);
            }
        }
    }

    #[test]
    fn explain_names_the_same_winner_and_every_route_that_host_and_path_lead_to(
        specs in prop::collection::vec(some_route(), 1..14),
        requests in prop::collection::vec(some_request(), 20),
    ) {
        let routes: Vec<Route> =
            specs.iter().enumerate().map(|(i, spec)| route(&format!("r{i}"), spec)).collect();
        let index = index_of(&routes);
        for request in requests.iter().filter(|request| request.path.starts_with('/')) {
            let explanation = index.explain(&request.parts());
            let winner = explanation.winner.as_ref().map(|winner| winner.route.clone());
            prop_assert_eq!(&winner, &find(&index, request).map(|(name, ..)| name));
            let mut named: Vec<String> =
                explanation.losers.iter().map(|loser| loser.route.clone()).chain(winner).collect();
            named.sort_unstable();
            let reached = |route: &&Route| {
                let host = route.matches.hosts.iter().any(|host| rank_host(host, &request.host).is_some());
                let path = |path| rank_path(path, route.strict_slash, &request.path).is_some();
                route.enabled && host && route.matches.paths.iter().any(path)
            };
            let mut wanted: Vec<String> =
                routes.iter().filter(reached).map(|route| route.name.to_string()).collect();
            wanted.sort_unstable();
            prop_assert_eq!(named, wanted);
            for loser in &explanation.losers {
                let met = routes
                    .iter()
                    .find(|route| route.name.as_str() == loser.route)
                    .is_some_and(|route| conditions_hold(route, request));
                let by_condition = matches!(
                    loser.lost_by,
                    Some(LostBy::Listener | LostBy::Method | LostBy::Header | LostBy::Query)
                );
                prop_assert_eq!(met, !by_condition, "{:?}", loser);
            }
        }
    }
}
