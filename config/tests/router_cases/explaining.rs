//! Explanations of why a route won or lost, and preflight requests.

use super::*;

// ------------------------------------------------------------------------------------------------------------------
// explain

fn explain(routes: &[(&str, Value)], request: &str) -> Explanation {
    index_of(routes).explain(&Request::of(request).parts())
}

#[test]
fn explain_says_why_each_route_lost() {
    let fields = |matches: Value| json!({"match": matches});
    let winner = json!({
        "priority": 5,
        "match": {"hosts": ["h"], "paths": [{"exact": "/a"}], "methods": ["GET"], "headers": [{"name": "x", "present": true}], "query": [{"name": "q", "present": true}]},
    });
    let at_five = |matches: Value| json!({"priority": 5, "match": matches});
    for (loser, lost_by, reason) in [
        (json!({"listeners": ["other"]}), LostBy::Listener, "is not on this listener"),
        (fields(json!({"methods": ["PUT"]})), LostBy::Method, "does not take this method"),
        (
            fields(json!({"headers": [{"name": "Y", "exact": "1"}]})),
            LostBy::Header,
            "the header \"y\" is not what it asks for",
        ),
        (
            fields(json!({"query": [{"name": "p", "exact": "1"}]})),
            LostBy::Query,
            "the query parameter \"p\" is not what it asks for",
        ),
        (json!({"priority": 4}), LostBy::Priority, "\"winner\" has the higher priority: 5 before 4"),
        (at_five(json!({"hosts": ["*.h"]})), LostBy::HostRank, ""),
        (at_five(json!({})), LostBy::HostRank, "the host of \"winner\" is more specific"),
        (
            at_five(json!({"hosts": ["h"], "paths": [{"prefix": "/a"}]})),
            LostBy::PathKind,
            "\"winner\" matches by exact path, which goes before prefix",
        ),
        (
            at_five(json!({"hosts": ["h"], "paths": [{"exact": "/a"}]})),
            LostBy::MethodRank,
            "\"winner\" names its methods",
        ),
        (
            at_five(json!({"hosts": ["h"], "paths": [{"exact": "/a"}], "methods": ["GET"]})),
            LostBy::HeaderCount,
            "\"winner\" has more header conditions: 1 against 0",
        ),
        (
            at_five(
                json!({"hosts": ["h"], "paths": [{"exact": "/a"}], "methods": ["GET"], "headers": [{"name": "x", "present": true}]}),
            ),
            LostBy::QueryCount,
            "\"winner\" has more query conditions: 1 against 0",
        ),
    ] {
        let explanation =
            explain(&[("winner", winner.clone()), ("loser", loser.clone())], "http://h/a?q [x: 1]");
        assert_eq!(explanation.winner.as_ref().map(|winner| winner.route.as_str()), Some("winner"));
        if reason.is_empty() {
            // Another host's route is no candidate.
            assert!(explanation.losers.is_empty(), "{explanation:?}");
            continue;
        }
        let found: Vec<_> =
            explanation.losers.iter().map(|l| (l.route.as_str(), l.lost_by, l.reason.as_str())).collect();
        assert_eq!(found, [("loser", Some(lost_by), reason)], "{loser}");
    }
}

#[test]
fn explain_says_which_path_is_more_specific() {
    for (winner, loser, request, lost_by, reason) in [
        (
            path("prefix", "/a/b"),
            path("prefix", "/a"),
            "http://h/a/b",
            LostBy::PathRank,
            "the prefix of \"winner\" is longer",
        ),
        (
            path("template", "/a/{x}"),
            path("template", "/{x}/b"),
            "http://h/a/b",
            LostBy::PathRank,
            "the template of \"winner\" has a literal where this one has a variable",
        ),
        (
            path("template", "/{x}/b"),
            path("template", "/{*x}"),
            "http://h/a/b",
            LostBy::PathRank,
            "the template of \"winner\" is more specific; this one takes all that is left",
        ),
        (
            path("exact", "/a/"),
            strict("exact", "/a"),
            "http://h/a/",
            LostBy::SlashRank,
            "\"winner\" has this very form of the path; this one would redirect to its own",
        ),
        (
            path("prefix", "/a"),
            strict("prefix", "/a/"),
            "http://h/a",
            LostBy::SlashRank,
            "\"winner\" has this very form of the path; this one would redirect to its own",
        ),
        (
            json!({}),
            json!({}),
            "http://h/",
            LostBy::Name,
            "all else being equal, the name \"winner\" sorts first",
        ),
    ] {
        let explanation = explain(&[("winner", winner.clone()), ("x-loser", loser)], request);
        assert_eq!(
            explanation.winner.as_ref().map(|winner| winner.route.as_str()),
            Some("winner"),
            "{winner}"
        );
        let found: Vec<_> = explanation.losers.iter().map(|l| (l.lost_by, l.reason.as_str())).collect();
        assert_eq!(found, [(Some(lost_by), reason)]);
    }
}

#[test]
fn explain_shows_the_patterns_as_they_were_written() {
    let routes = [
        ("exact", json!({"match": {"hosts": ["a.b"], "paths": [{"exact": "/x/"}]}})),
        ("slashed", json!({"strict_slash": true, "match": {"hosts": ["*.b"], "paths": [{"exact": "/x"}]}})),
        ("template", json!({"match": {"paths": [{"template": "/{what}/"}]}})),
        ("prefix", path("prefix", "/x/")),
        ("any", json!({})),
        ("regex", path("regex", "/[a-z]/")),
    ];
    let explanation = explain(&routes, "http://a.b/x/");
    let all: Vec<Value> = explanation
        .winner
        .iter()
        .chain(&explanation.losers)
        .map(|candidate| {
            let value = serde_json::to_value(candidate).unwrap();
            json!([value["route"], value["host"], value["path"], value["slash"]])
        })
        .collect();
    assert_eq!(
        json!(all),
        json!([
            ["exact", "a.b", {"exact": "/x/"}, null],
            ["slashed", "*.b", {"exact": "/x"}, "remove"],
            ["template", null, {"template": "/{what}/"}, null],
            ["prefix", null, {"prefix": "/x/"}, null],
            ["any", null, {"prefix": "/"}, null],
            ["regex", null, {"regex": "/[a-z]/"}, null],
        ])
    );
}

#[test]
fn explain_lists_the_best_hundred_and_says_that_there_are_more() {
    let names: Vec<String> = (0..150).map(|i| format!("r{i:03}")).collect();
    let routes: Vec<_> = names.iter().map(|name| (name.as_str(), json!({}))).collect();
    let explanation = explain(&routes, "http://h/");
    assert_eq!(explanation.winner.map(|winner| winner.route).as_deref(), Some("r000"));
    assert_eq!(explanation.losers.len(), 100);
    assert_eq!(explanation.losers[0].route, "r001");
    assert!(explanation.truncated);
    assert!(!explain(&routes[..101], "http://h/").truncated);
    assert_eq!(explain(&[], "http://h/"), Explanation { winner: None, losers: vec![], truncated: false });
}

#[test]
fn a_preflight_finds_the_route_of_the_request_that_it_asks_about() {
    let methods = |fields: Value, methods: &[&str]| {
        let mut fields = fields;
        fields["match"]["methods"] = json!(methods);
        fields
    };
    let versioned = json!({"match": {
        "paths": paths(&[("prefix", "/api")]), "methods": ["PUT"], "headers": [{"name": "x-version", "exact": "2"}],
    }});
    let routes = [
        ("all-cors", json!({})),
        ("post-cors", methods(path("prefix", "/api"), &["POST"])),
        ("delete", methods(path("prefix", "/api"), &["DELETE"])),
        ("put-cors", versioned),
        ("own", methods(path("prefix", "/own"), &["OPTIONS"])),
        ("own-post-cors", methods(path("prefix", "/own"), &["POST"])),
        ("any", path("prefix", "/any")),
        ("any-post-cors", methods(path("prefix", "/any"), &["POST"])),
        ("patch-cors", methods(json!({"match": {"hosts": ["p"]}}), &["PATCH"])),
    ];
    let index = index_of(&routes);
    let without_all = index_of(&routes[1..]);
    for (index, request, expected) in [
        // Not the route that takes any method: it would not get the request.
        (&index, "http://h/api/x [access-control-request-method: POST]", "post-cors !"),
        // One that would not answer is not asked.
        (&index, "http://h/api/x [access-control-request-method: DELETE]", "all-cors"),
        (&without_all, "http://h/api/x [access-control-request-method: DELETE]", "-"),
        (&index, "http://h/api/x [access-control-request-method: GET]", "all-cors"),
        // A header that is announced may have the value that is asked for.
        (
            &index,
            "http://h/api/x [access-control-request-method: PUT] [access-control-request-headers: a,X-Version]",
            "put-cors !",
        ),
        (
            &index,
            "http://h/api/x [access-control-request-method: PUT] [access-control-request-headers: x]",
            "all-cors",
        ),
        // A route that lists OPTIONS takes preflights itself.
        (&index, "http://h/own [access-control-request-method: POST]", "own"),
        (&index, "http://h/any [access-control-request-method: POST]", "any-post-cors !"),
        (&index, "http://h/any [access-control-request-method: GET]", "any"),
        (&without_all, "http://p/ [access-control-request-method: PATCH]", "patch-cors !"),
        (&without_all, "http://p/ [access-control-request-method: PUT]", "-"),
        (&index, "http://h/ [access-control-request-method: a b]", "all-cors"),
    ] {
        let request = Request::of(&format!("OPTIONS {request} [origin: https://a.example]"));
        let preflight = Preflight::of(&request.method, &request.headers).expect("a preflight");
        let found = index.find_preflight(&request.parts(), &preflight, |name| name.ends_with("cors"));
        let found = match found {
            None => "-".to_owned(),
            Some(found) => format!("{}{}", found.value, if found.is_preflight_only { " !" } else { "" }),
        };
        assert_eq!(found, expected, "{} {:?}", request.path, request.headers);
        let explanation =
            index.explain_preflight(&request.parts(), &preflight, &|_| true, |name| name.ends_with("cors"));
        let winner = explanation.winner.map_or("-".to_owned(), |winner| winner.route);
        assert_eq!(winner, found.trim_end_matches(" !"), "{} {:?}", request.path, request.headers);
    }
}

#[test]
fn a_preflight_is_an_options_request_with_an_origin_and_a_method() {
    for (text, expected) in [
        ("OPTIONS http://h/ [origin: a] [access-control-request-method: PUT]", true),
        ("OPTIONS http://h/ [origin: a]", false),
        ("OPTIONS http://h/ [access-control-request-method: PUT]", false),
        ("PUT http://h/ [origin: a] [access-control-request-method: PUT]", false),
    ] {
        let request = Request::of(text);
        assert_eq!(Preflight::of(&request.method, &request.headers).is_some(), expected, "{text}");
    }
}
