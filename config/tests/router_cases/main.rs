//! The route index, case by case.

#[path = "../common/mod.rs"]
mod common;
mod explaining;

use std::time::{Duration, Instant};

use common::route;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::{Value, json};
use signalbox_config::RouteIndex;
use signalbox_config::router::{Explanation, LostBy, Preflight, RequestParts, Slash};

/// `METHOD http://host/path?query [name: value]…`, on the listener `http`.
struct Request {
    method: Method,
    host: String,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
}

impl Request {
    fn of(text: &str) -> Self {
        let (text, headers) = text.split_once(" [").unwrap_or((text, ""));
        let (method, url) = text.split_once(' ').unwrap_or(("GET", text));
        let url = url.strip_prefix("http://").expect("a URL");
        let (host, path) = url.split_at(url.find('/').unwrap_or(url.len()));
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let headers = headers.split(['[', ']']).filter_map(|header| header.split_once(": "));
        Self {
            method: method.parse().expect("a method"),
            host: host.into(),
            path: path.into(),
            query: query.map(Into::into),
            headers: headers
                .map(|(name, value)| {
                    let name: HeaderName = name.parse().expect("a header name");
                    (name, HeaderValue::from_str(value).expect("a header value"))
                })
                .collect(),
        }
    }

    fn parts(&self) -> RequestParts<'_> {
        RequestParts {
            listener: "http",
            method: &self.method,
            host: &self.host,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
        }
    }
}

fn index_of(routes: &[(&str, Value)]) -> RouteIndex<String> {
    let mut index = RouteIndex::new();
    for (name, fields) in routes {
        index.insert(&route(name, fields), (*name).to_owned());
    }
    index
}

/// Each request with the name of its route: `-` for none, with `+/` or `-/` behind it for a redirect.
#[track_caller]
fn check(routes: &[(&str, Value)], requests: &[(&str, &str)]) {
    let index = index_of(routes);
    for (text, wanted) in requests {
        let request = Request::of(text);
        let found = match index.find(&request.parts()) {
            None => "-".to_owned(),
            Some(found) => {
                let slash = match found.slash {
                    None => "",
                    Some(Slash::Add) => " +/",
                    Some(Slash::Remove) => " -/",
                };
                format!("{}{slash}", found.value)
            }
        };
        assert_eq!(found, *wanted, "{text}");
    }
}

fn paths(paths: &[(&str, &str)]) -> Value {
    json!(paths.iter().map(|(kind, path)| json!({*kind: path})).collect::<Vec<_>>())
}

fn path(kind: &str, path: &str) -> Value {
    json!({"match": {"paths": paths(&[(kind, path)])}})
}

fn strict(kind: &str, text: &str) -> Value {
    let mut fields = path(kind, text);
    fields["strict_slash"] = true.into();
    fields
}

#[test]
fn prefixes_match_whole_segments_and_the_longest_wins() {
    check(
        &[("any", json!({})), ("a", path("prefix", "/a")), ("ab", path("prefix", "/a/b/"))],
        &[
            ("http://h/", "any"),
            ("http://h/ab", "any"),
            ("http://h/a", "a"),
            ("http://h/a/", "a"),
            ("http://h/a/bc", "a"),
            ("http://h/a/b", "ab"),
            ("http://h/a/b/", "ab"),
            ("http://h/a/b/c/d", "ab"),
            ("http://h//a", "any"),
        ],
    );
}

#[test]
fn the_length_of_the_prefix_is_told() {
    let index = index_of(&[("any", json!({})), ("a", path("prefix", "/a/")), ("x", path("exact", "/x"))]);
    for (url, len) in
        [("http://h/", 0), ("http://h/b", 0), ("http://h/a", 2), ("http://h/a/b", 2), ("http://h/x", 0)]
    {
        assert_eq!(index.find(&Request::of(url).parts()).map(|found| found.prefix_len), Some(len), "{url}");
    }
}

#[test]
fn kinds_of_paths_rank_exact_template_prefix_regex() {
    let all = [
        ("exact", path("exact", "/v1/users")),
        ("template", path("template", "/v1/{what}")),
        ("prefix", path("prefix", "/v1/users")),
        ("regex", path("regex", "/v1/.*")),
    ];
    for from in 0..4 {
        check(&all[from..], &[("http://h/v1/users", all[from].0)]);
    }
    check(&all[3..], &[("http://h/V1/users", "-"), ("http://h/x/v1/users", "-")]);
}

#[test]
fn templates_rank_by_the_first_segment_that_differs() {
    check(
        &[
            ("literal", path("template", "/a/{x}/c")),
            ("variable", path("template", "/{x}/b/c")),
            ("rest", path("template", "/a/{*rest}")),
            ("all", path("template", "/{*rest}")),
        ],
        &[
            ("http://h/a/b/c", "literal"),
            ("http://h/b/b/c", "variable"),
            ("http://h/a/b/d", "rest"),
            ("http://h/b/b/d", "all"),
            ("http://h/a", "all"),
            // A variable is never empty, nor is what is left.
            ("http://h/a/", "all"),
            ("http://h/a//c", "rest"),
            ("http://h/", "-"),
        ],
    );
}

#[test]
fn hosts_rank_exact_then_the_longest_wildcard_then_any() {
    let host = |hosts: &[&str]| json!({"match": {"hosts": hosts}});
    check(
        &[
            ("any", json!({})),
            ("org", host(&["*.org"])),
            ("example", host(&["*.example.org"])),
            ("exact", host(&["a.example.org", "[::1]"])),
        ],
        &[
            ("http://a.example.org/", "exact"),
            ("http://[::1]/", "exact"),
            ("http://b.example.org/", "example"),
            ("http://b.a.example.org/", "example"),
            // The star stands for at least one label.
            ("http://example.org/", "org"),
            ("http://.example.org/", "org"),
            ("http://org/", "any"),
            ("http:///", "any"),
            // A dot at the end names the same host.
            ("http://a.example.org./", "exact"),
        ],
    );
}

#[test]
fn a_better_host_without_a_match_leaves_it_to_the_next() {
    check(
        &[
            ("exact", json!({"match": {"hosts": ["a.b.c"], "paths": [{"exact": "/x"}]}})),
            ("wild", json!({"match": {"hosts": ["*.c"], "paths": [{"prefix": "/y"}]}})),
            ("any", path("prefix", "/y/z")),
        ],
        &[
            ("http://a.b.c/x", "exact"),
            ("http://a.b.c/y/z", "wild"),
            ("http://a.b/y/z", "any"),
            ("http://a.b.c/z", "-"),
        ],
    );
}

#[test]
fn priority_goes_before_everything() {
    let with = |priority: i32, fields: Value| {
        let mut fields = fields;
        fields["priority"] = priority.into();
        fields
    };
    check(
        &[
            ("exact", json!({"match": {"hosts": ["h"], "paths": [{"exact": "/a/b"}]}})),
            ("template", with(1, json!({"match": {"hosts": ["*.h"], "paths": [{"template": "/a/{x}"}]}}))),
            ("short", with(2, path("prefix", "/a"))),
            ("long", with(1, path("prefix", "/a/b"))),
            ("regex", with(3, path("regex", "/a/b/c"))),
            ("last", with(-1, json!({"match": {"hosts": ["h"]}}))),
        ],
        &[
            ("http://h/a/b", "short"),
            ("http://h/a/b/c", "regex"),
            ("http://x.h/a/b", "short"),
            ("http://h/z", "last"),
            ("http://z/z", "-"),
        ],
    );
}

#[test]
fn more_conditions_win_and_then_the_name() {
    let at = |matches: Value| {
        let mut fields = json!({"match": matches});
        fields["match"]["paths"] = paths(&[("prefix", "/")]);
        fields
    };
    let header = |name: &str| json!({"name": name, "present": true});
    check(
        &[
            ("z-plain", at(json!({}))),
            ("y-plain", at(json!({}))),
            ("get", at(json!({"methods": ["GET"]}))),
            ("one-header", at(json!({"headers": [header("a")]}))),
            ("two-headers", at(json!({"headers": [header("a"), header("b")]}))),
            ("query", at(json!({"query": [header("q")]}))),
            ("header-and-query", at(json!({"headers": [header("a")], "query": [header("q")]}))),
        ],
        &[
            ("POST http://h/", "y-plain"),
            ("GET http://h/?q [a: 1]", "get"),
            ("POST http://h/ [a: 1]", "one-header"),
            ("POST http://h/ [a: 1] [b: 1]", "two-headers"),
            ("POST http://h/?q", "query"),
            ("POST http://h/?q [a: 1]", "header-and-query"),
            ("POST http://h/?q [a: 1] [b: 1]", "two-headers"),
        ],
    );
}

#[test]
fn head_is_a_method_of_its_own() {
    check(
        &[
            ("get", json!({"match": {"methods": ["GET"]}})),
            ("both", json!({"match": {"hosts": ["b"], "methods": ["GET", "HEAD"]}})),
            ("own", json!({"match": {"hosts": ["c"], "methods": ["PURGE", "PUT"]}})),
        ],
        &[
            ("HEAD http://a/", "-"),
            ("PURGE http://b/", "-"),
            ("PURGE http://c/", "own"),
            ("PUT http://c/", "own"),
            ("PURGES http://c/", "-"),
            ("GET http://a/", "get"),
            ("HEAD http://b/", "both"),
        ],
    );
}

#[test]
fn headers_match_by_any_of_their_values() {
    let header = |matcher: Value| json!({"match": {"headers": [matcher]}});
    let requests = [
        "http://h/",
        "http://h/ [x-env: beta]",
        "http://h/ [x-env: alpha] [x-env: beta]",
        "http://h/ [X-Env: beta2]",
    ];
    for (matcher, wanted) in [
        (json!({"name": "x-env", "exact": "beta"}), [false, true, true, false]),
        (json!({"name": "X-Env", "exact": "beta", "invert": true}), [true, false, false, true]),
        (json!({"name": "x-env", "prefix": "bet"}), [false, true, true, true]),
        (json!({"name": "x-env", "regex": "a.*|b.*"}), [false, true, true, true]),
        (json!({"name": "x-env", "regex": "et"}), [false, false, false, false]),
        (json!({"name": "x-env", "regex": "alpha|beta"}), [false, true, true, false]),
        (json!({"name": "x-env", "present": true}), [false, true, true, true]),
        (json!({"name": "x-env", "present": false}), [true, false, false, false]),
    ] {
        let index = index_of(&[("r", header(matcher.clone()))]);
        let found = requests.map(|request| index.find(&Request::of(request).parts()).is_some());
        assert_eq!(found, wanted, "{matcher}");
    }
}

#[test]
fn a_header_that_is_no_text_is_no_match_for_a_regex() {
    let index = index_of(&[("r", json!({"match": {"headers": [{"name": "x", "regex": ".*"}]}}))]);
    let mut request = Request::of("http://h/");
    request.headers.insert("x", HeaderValue::from_bytes(b"\xff").unwrap());
    assert!(index.find(&request.parts()).is_none());
}

#[test]
fn query_parameters_are_decoded_and_the_first_of_a_name_counts() {
    check(
        &[("r", json!({"match": {"query": [{"name": "a b", "exact": "1+2 ä"}]}}))],
        &[
            ("http://h/?a+b=1%2B2+%C3%A4", "r"),
            ("http://h/?x&a%20b=1%2b2%20%C3%A4&a+b=3", "r"),
            ("http://h/?a+b=3&a+b=1%2B2+%C3%A4", "-"),
            ("http://h/?", "-"),
            ("http://h/", "-"),
        ],
    );
    check(
        &[(
            "r",
            json!({"match": {"query": [{"name": "q", "present": true}, {"name": "no", "present": false}]}}),
        )],
        &[
            ("http://h/?q", "r"),
            ("http://h/?&&q=", "r"),
            ("http://h/?q=%zz%ff", "r"),
            ("http://h/?q&no", "-"),
            ("http://h/?Q", "-"),
        ],
    );
}

#[test]
fn a_route_is_found_only_on_its_listeners_and_only_when_enabled() {
    check(
        &[
            ("other", json!({"listeners": ["other"], "match": {"paths": [{"exact": "/"}]}})),
            ("off", json!({"enabled": false, "match": {"paths": [{"exact": "/"}]}})),
            ("both", json!({"listeners": ["other", "http"]})),
        ],
        &[("http://h/", "both")],
    );
}

#[test]
fn without_strict_slash_exact_takes_its_own_form_and_a_prefix_both() {
    check(
        &[
            ("x", path("exact", "/x")),
            ("y", path("exact", "/y/")),
            ("t", path("template", "/t/{id}")),
            ("p", path("prefix", "/p/")),
        ],
        &[
            ("http://h/x", "x"),
            ("http://h/x/", "-"),
            ("http://h/y/", "y"),
            ("http://h/y", "-"),
            ("http://h/t/1", "t"),
            ("http://h/t/1/", "-"),
            ("http://h/p", "p"),
            ("http://h/p/", "p"),
        ],
    );
}

#[test]
fn strict_slash_redirects_to_the_form_the_route_has() {
    check(
        &[
            ("x", strict("exact", "/x")),
            ("y", strict("exact", "/y/")),
            ("t", strict("template", "/t/{id}")),
            ("u", strict("template", "/u/{id}/")),
            ("p", strict("prefix", "/p")),
            ("q", strict("prefix", "/q/")),
            ("rest", strict("template", "/r/{*rest}")),
        ],
        &[
            ("http://h/x", "x"),
            ("http://h/x/", "x -/"),
            ("http://h/x//", "-"),
            ("http://h/y", "y +/"),
            ("http://h/y/", "y"),
            ("http://h/t/1", "t"),
            ("http://h/t/1/", "t -/"),
            ("http://h/u/1", "u +/"),
            ("http://h/u/1/", "u"),
            ("http://h/p", "p"),
            ("http://h/p/", "p -/"),
            ("http://h/p/1/", "p"),
            ("http://h/q", "q +/"),
            ("http://h/q/", "q"),
            ("http://h/q/1", "q"),
            ("http://h/r/1/", "rest"),
            ("http://h/r/", "-"),
        ],
    );
    for kind in ["exact", "prefix", "template"] {
        check(&[("root", strict(kind, "/"))], &[("http://h/", "root")]);
    }
}

#[test]
fn a_redirect_gives_way_to_a_route_of_that_very_form_but_not_to_vaguer_ones() {
    check(
        &[
            ("a", strict("exact", "/x")),
            ("b", path("exact", "/x/")),
            ("c", strict("prefix", "/p/")),
            ("d", path("prefix", "/p")),
            ("e", strict("template", "/t/{id}")),
            ("f", path("template", "/t/{id}/")),
            ("all", json!({})),
            ("most", path("template", "/{*rest}")),
        ],
        &[("http://h/x/", "b"), ("http://h/p", "most"), ("http://h/t/1/", "f")],
    );
    check(&[("a", strict("exact", "/x")), ("all", json!({}))], &[("http://h/x/", "a -/")]);
    check(&[("c", strict("prefix", "/p/")), ("all", json!({}))], &[("http://h/p", "c +/")]);
    check(
        &[("c", strict("prefix", "/p/")), ("d", path("prefix", "/p"))],
        &[("http://h/p", "d"), ("http://h/p/", "c")],
    );
    check(
        &[("e", strict("template", "/t/{id}")), ("most", path("template", "/{*rest}"))],
        &[("http://h/t/1/", "e -/")],
    );
    // Priority goes before the form.
    let mut important = strict("exact", "/x");
    important["priority"] = 1.into();
    check(&[("a", important), ("b", path("exact", "/x/"))], &[("http://h/x/", "a -/")]);
}

#[test]
fn the_best_of_a_routes_own_paths_counts() {
    check(
        &[
            (
                "several",
                json!({"match": {"hosts": ["a", "*.a", "a"], "paths": paths(&[("regex", "/.*"), ("prefix", "/p"), ("exact", "/x"), ("exact", "/x")])}}),
            ),
            ("prefix", path("prefix", "/x")),
            ("template", json!({"match": {"hosts": ["*.a"], "paths": [{"template": "/{x}"}]}})),
        ],
        &[
            ("http://a/x", "several"),
            ("http://b.a/x", "several"),
            ("http://b.a/p", "template"),
            ("http://b.a/p/q", "several"),
            ("http://a/zz", "several"),
        ],
    );
}

#[test]
fn options_of_the_whole_server_is_for_routes_that_take_all_paths() {
    check(&[("any", json!({})), ("template", path("template", "/{*x}"))], &[]);
    let mut request = Request::of("OPTIONS http://h/");
    request.path = "*".into();
    for (fields, takes) in [
        (json!({}), true),
        (path("prefix", "/"), true),
        (json!({"strict_slash": true}), true),
        (path("prefix", "/a"), false),
        (path("exact", "/"), false),
        (path("template", "/{*x}"), false),
        (path("regex", "/.*"), false),
    ] {
        let index = index_of(&[("r", fields.clone())]);
        let found = index.find(&request.parts());
        assert_eq!(
            found.map(|found| (found.prefix_len, found.slash)),
            takes.then_some((0, None)),
            "{fields}"
        );
    }
    let index = index_of(&[("regex", path("regex", r"\*"))]);
    assert_eq!(index.find(&request.parts()).map(|found| found.value.as_str()), Some("regex"));
}

#[test]
fn what_was_removed_leaves_nothing_behind() {
    let mut index: RouteIndex<String> = RouteIndex::new();
    let fields = json!({
        "strict_slash": true,
        "match": {
            "hosts": ["a", "*.b"],
            "paths": paths(&[("exact", "/x/y"), ("prefix", "/p/"), ("template", "/{a}/b/{*c}"), ("template", "/{a}"), ("regex", "/r.*")]),
        },
    });
    let removed = route("removed", &fields);
    index.insert(&removed, "removed".into());
    let urls =
        ["http://a/x/y", "http://c.b/x/y/", "http://a/p", "http://a/1/b/2/3", "http://a/1/", "http://c.b/r"];
    for url in urls {
        assert!(index.find(&Request::of(url).parts()).is_some(), "{url}");
    }
    index.remove(&removed);
    for url in urls {
        assert!(index.find(&Request::of(url).parts()).is_none(), "{url}");
    }
    // An entry that is not there can be removed.
    index.remove(&removed);
    index.insert(&removed, "again".into());
    assert_eq!(index.find(&Request::of(urls[0]).parts()).map(|found| found.value.as_str()), Some("again"));
}

#[test]
fn fifty_thousand_siblings_are_each_found_and_removed() {
    let routes: Vec<_> = (0..50_000)
        .map(|i| {
            let kind = ["exact", "prefix", "template"][i % 3];
            route(&format!("r{i}"), &path(kind, &format!("/api/v1/x{i:05}")))
        })
        .collect();
    let mut index = RouteIndex::new();
    for (i, route) in routes.iter().enumerate() {
        index.insert(route, i);
    }
    let all = index.clone();
    for route in routes.iter().step_by(2) {
        index.remove(route);
    }
    for i in 0..routes.len() {
        let request = Request::of(&format!("http://h/api/v1/x{i:05}"));
        assert_eq!(all.find(&request.parts()).map(|found| *found.value), Some(i));
        assert_eq!(index.find(&request.parts()).map(|found| *found.value), (i % 2 == 1).then_some(i));
    }
}

/// Far above what it takes, and far below what work that grows with the square or worse would take.
const A_MOMENT: Duration = Duration::from_secs(20);

#[test]
fn no_request_makes_it_work_long() {
    let mut routes = vec![
        ("deep", path("prefix", &"/a".repeat(128))),
        ("wild", json!({"match": {"hosts": ["*.a"], "query": [{"name": "zz", "present": true}]}})),
        ("regex", path("regex", "/(a*)*(a|aa)+b")),
    ];
    // Every combination of a literal and a variable, eight segments deep, and none that matches.
    let names: Vec<String> = (0..256).map(|i| format!("t{i}")).collect();
    for (bits, name) in names.iter().enumerate() {
        let segment = |i: usize| if bits >> i & 1 == 0 { "/a".to_owned() } else { format!("/{{v{i}}}") };
        let text: String = (0..8).map(segment).collect();
        routes.push((name, path("template", &format!("{text}/end"))));
    }
    let index = index_of(&routes);
    let long_query = "a=1&".repeat(30_000);
    let long_host = "a.".repeat(30_000);
    let start = Instant::now();
    for (host, path, query) in [
        ("h", "/a".repeat(10_000), None),
        ("h", "/".repeat(20_000), None),
        ("h", "/a".repeat(9), None),
        ("h", format!("/{}", "a".repeat(60_000)), None),
        (&long_host, "/".to_owned(), None),
        ("b.a", "/".to_owned(), Some(long_query.as_str())),
    ] {
        let request = RequestParts {
            listener: "http",
            method: &Method::GET,
            host,
            path: &path,
            query,
            headers: &HeaderMap::new(),
        };
        let found = index.find(&request).map(|found| found.value.as_str());
        assert_eq!(found, path.starts_with(&"/a".repeat(128)).then_some("deep"));
        index.explain(&request);
    }
    assert!(start.elapsed() < A_MOMENT, "{:?}", start.elapsed());
}
