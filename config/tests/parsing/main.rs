//! The specifications that are accepted of each kind, and all errors of those that are not, field by field.

mod anything;
#[path = "../common/mod.rs"]
mod common;
mod secrets;

use common::{Catalog, parse};
use secrets::alice;
use serde_json::{Value, json};
use signalbox_config::{Body, Errors, FieldError, Kind, Resource};

/// The errors of a specification, sorted by field, as `field: message`.
fn errors_of(kind: Kind, spec: Value) -> Vec<String> {
    let errors = parse(kind, spec).err().unwrap_or_default();
    let mut errors: Vec<String> = errors.iter().map(FieldError::to_string).collect();
    errors.sort_unstable();
    errors
}

#[track_caller]
fn refused(kind: Kind, spec: Value, wanted: &[&str]) {
    let text: String = spec.to_string().chars().take(2000).collect();
    let mut wanted: Vec<&str> = wanted.to_vec();
    wanted.sort_unstable();
    assert_eq!(errors_of(kind, spec), wanted, "{text}");
}

/// A specification that is right, with `fields` put over it.
fn with(mut base: Value, fields: &Value) -> Value {
    for (name, value) in fields.as_object().expect("fields") {
        base[name] = value.clone();
    }
    base
}

fn a_route(fields: &Value) -> Value {
    with(json!({"name": "r", "respond": {}}), fields)
}

fn forwarding(forward: &Value) -> Value {
    json!({"name": "r", "forward": with(json!({"upstreams": [{"name": "u"}]}), forward)})
}

#[test]
fn all_errors_of_a_route_come_at_once() {
    refused(
        Kind::Route,
        json!({
            "name": "No Name",
            "labels": {"a=b": "c"},
            "fleets": [],
            "enabled": "yes",
            "listeners": ["ok", "Not Ok", "ok"],
            "priorty": 1,
            "match": {
                "hosts": ["ok", "a b", "*.", "x:80", "*"],
                "paths": [{"exakt": "/"}, {"regex": "("}, {"prefix": "no"}, {"template": "/{a}/{a}"}, {"exact": "/?"}, {"exact": 5}],
                "methods": ["get", "A B"],
                "headers": [{"name": "a b", "exact": "x"}, {"name": "x"}, {"name": "x", "exact": "1", "prefix": "2"}, {"exact": "x"}],
                "query": [{"name": "", "present": true}, {"name": "q", "regex": "[", "invert": 1}],
            },
            "plugins": "none",
            "forward": {
                "upstreams": [{"name": "u", "weight": 2_000_000}, {"name": "u"}, {"name": "v", "weight": -1}],
                "rewrite": {"path_prefix": "x", "path": "/y", "host": "a b"},
                "timeout": "5 parsecs",
                "idle_timeout": "5",
                "retry": {
                    "attempts": 11, "on": ["5xx", "4xx"], "per_try_timeout": "0s", "budget": 1.5,
                    "methods": ["GET", "post"], "backoff": "1s",
                },
                "mirror": {"upstream": "No Name", "percent": 101},
            },
        }),
        &[
            "name: \"No Name\" is not a name: lower-case letters, digits, '.', '_' and '-', a letter or digit first and last, at most 128 bytes",
            "labels.a=b: a key has 1 to 128 bytes without '=' and ',', a value up to 256",
            "fleets: must not be empty; leave it out for all fleets",
            "enabled: must be true or false, is a string",
            "listeners[1]: \"Not Ok\" is not a name: lower-case letters, digits, '.', '_' and '-', a letter or digit first and last, at most 128 bytes",
            "listeners[2]: \"ok\" is listed twice",
            "priorty: unknown field; did you mean priority?",
            "match.hosts[1]: \"a b\" is not a host name; write admin.example.com or *.example.org, without a port",
            "match.hosts[2]: \"*.\" is not a host name; write admin.example.com or *.example.org, without a port",
            "match.hosts[3]: \"x:80\" is not a host name; write admin.example.com or *.example.org, without a port",
            "match.hosts[4]: \"*\" is not needed; leave hosts out for any host",
            "match.paths[0]: needs exactly one of exact, prefix, template, regex",
            "match.paths[1].regex: is not a regular expression: unclosed group",
            "match.paths[2].prefix: \"no\" must start with '/'",
            "match.paths[3].template: the variable \"a\" is there twice",
            "match.paths[4].exact: \"/?\" has the character '?'; a path has printable ASCII only (others percent-encoded), without '?' and '#'",
            "match.paths[5].exact: must be a string, is a number",
            "match.methods[0]: \"get\" must be in upper case",
            "match.methods[1]: \"A B\" is not an HTTP method",
            "match.headers[0].name: \"a b\" is not a header name",
            "match.headers[1]: needs exactly one of exact, prefix, regex and present",
            "match.headers[2]: needs exactly one of exact, prefix, regex and present",
            "match.headers[3].name: is required",
            "match.query[0].name: must have 1 to 4096 bytes",
            "match.query[1].regex: is not a regular expression: unclosed character class",
            "match.query[1].invert: must be true or false, is a number",
            "plugins: must be an array, is a string",
            "forward.upstreams[0].weight: must be at most 1000000",
            "forward.upstreams[1].name: \"u\" is listed twice",
            "forward.upstreams[2].weight: must be at least 0",
            "forward.rewrite: takes one of path_prefix, path and path_regex",
            "forward.rewrite.path_prefix: \"x\" must start with '/'",
            "forward.rewrite.host: \"a b\" is not a host name with an optional port",
            "forward.timeout: \"5 parsecs\" is not a duration; write \"800ms\", \"30s\", \"5m\" or \"1h\"",
            "forward.idle_timeout: \"5\" is not a duration; write \"800ms\", \"30s\", \"5m\" or \"1h\"",
            "forward.retry.attempts: must be from 1 to 10",
            "forward.retry.on[1]: must be one of connect-failure, reset, 5xx, gateway-error, retriable-4xx, cancelled, deadline-exceeded, internal, resource-exhausted, unavailable, is \"4xx\"",
            "forward.retry.per_try_timeout: must be at least 1ms",
            "forward.retry.budget: must be at most 1",
            "forward.retry.methods[1]: \"post\" is not an HTTP method in upper case",
            "forward.retry.backoff: unknown field",
            "forward.mirror.upstream: \"No Name\" is not a name: lower-case letters, digits, '.', '_' and '-', a letter or digit first and last, at most 128 bytes",
            "forward.mirror.percent: must be at most 100",
        ],
    );
}

#[test]
fn the_shape_of_the_whole_is_checked() {
    for kind in Kind::ALL {
        refused(kind, json!([]), &["must be an object, is an array"]);
        refused(kind, json!("x"), &["must be an object, is a string"]);
        let errors = errors_of(kind, json!({}));
        assert!(errors.contains(&"name: is required".to_owned()), "{errors:?}");
        let errors = errors_of(kind, json!({"name": 5, "x": 1}));
        assert!(errors.contains(&"name: must be a string, is a number".to_owned()), "{errors:?}");
        assert!(errors.contains(&"x: unknown field".to_owned()), "{errors:?}");
    }
}

#[test]
fn a_kind_must_agree_with_where_it_stands() {
    assert!(parse(Kind::Route, a_route(&json!({"kind": "route"}))).is_ok());
    refused(
        Kind::Route,
        a_route(&json!({"kind": "upstream"})),
        &["kind: is \"upstream\", but this is a route"],
    );
    refused(Kind::Route, a_route(&json!({"kind": 5})), &["kind: is 5, but this is a route"]);
}

#[test]
fn a_route_has_exactly_one_action() {
    let needs_one = "needs exactly one of forward, redirect and respond";
    refused(Kind::Route, json!({"name": "r"}), &[needs_one]);
    refused(Kind::Route, a_route(&json!({"redirect": {"scheme": "https"}})), &[needs_one]);
    // One that is misshapen is there all the same.
    refused(Kind::Route, json!({"name": "r", "forward": 5}), &["forward: must be an object, is a number"]);
    refused(Kind::Route, json!({"name": "r", "forward": {}}), &["forward.upstreams: is required"]);
}

#[test]
fn paths_are_bounded() {
    let long = format!("/{}", "x".repeat(4096));
    let deep = "/x".repeat(129);
    for kind in ["exact", "prefix", "template"] {
        let route = |path: &str| a_route(&json!({"match": {"paths": [{kind: path}]}}));
        refused(
            Kind::Route,
            route(&long),
            &[&format!("match.paths[0].{kind}: has 4097 bytes; at most 4096")],
        );
        refused(
            Kind::Route,
            route(&deep),
            &[&format!("match.paths[0].{kind}: has 129 segments; at most 128")],
        );
        assert!(parse(Kind::Route, route(&deep[2..])).is_ok());
    }
    for (path, why) in [
        ("/a//b", "is never matched: paths are brought into their normal form before, which is \"/a/b\""),
        (
            "/stra%c3%9fe",
            "is never matched: paths are brought into their normal form before, which is \"/stra%C3%9Fe\"",
        ),
        ("/%7Ebob", "is never matched: paths are brought into their normal form before, which is \"/~bob\""),
        ("/a%2", "is never matched, but answered 400: The path has a % that does not encode a byte."),
    ] {
        for kind in ["exact", "prefix", "template"] {
            refused(
                Kind::Route,
                a_route(&json!({"match": {"paths": [{kind: path}]}})),
                &[&format!("match.paths[0].{kind}: {path:?} {why}")],
            );
        }
    }
    for path in ["/a/", "/%2F", "/.well-known/x", "/a%20b"] {
        assert!(
            parse(Kind::Route, a_route(&json!({"match": {"paths": [{"exact": path}]}}))).is_ok(),
            "{path}"
        );
    }
    let regex = |regex: &str| a_route(&json!({"match": {"paths": [{"regex": regex}]}}));
    refused(
        Kind::Route,
        regex(r"(\w{100}){100}"),
        &["match.paths[0].regex: compiles to more than 1048576 bytes"],
    );
    refused(
        Kind::Route,
        regex("(?=a)"),
        &[
            "match.paths[0].regex: is not a regular expression: look-around, including look-ahead and look-behind, is not supported",
        ],
    );
    let many = vec![json!({"exact": "/"}); 101];
    refused(
        Kind::Route,
        a_route(&json!({"match": {"paths": many}})),
        &["match.paths: has 101 entries; at most 100"],
    );
}

#[test]
fn a_pattern_that_nothing_can_match_is_refused_when_it_is_written_and_kept_where_it_is_stored() {
    const PATH: &str = "never matches: paths are matched in their normal form, which begins with '/', has no '//', '.' and '..' \
         segments and no query, and percent-encodes, in upper case, only what has to be";
    const HEADER: &str =
        "never matches: values of headers have no control characters, and no white space at their ends";
    let forward = |pattern: &str| json!({"upstreams": [{"name": "u"}], "rewrite": {"path_regex": {"pattern": pattern, "substitution": "/"}}});
    let spec = json!({
        "name": "r",
        "match": {
            "paths": [
                {"regex": "/caf%c3%a9"}, {"regex": "/[a-z]+"}, {"regex": "/a|b/c"}, {"regex": "/users\\?id=[0-9]+"}, {"regex": "/%2e/a"},
            ],
            "headers": [
                {"name": "x", "regex": " a"}, {"name": "x", "exact": "a\n"}, {"name": "x", "prefix": "\ta", "invert": true},
                {"name": "x", "prefix": "a "}, {"name": "x", "exact": ""},
            ],
            "query": [{"name": "q", "regex": "[^\\s\\S]"}, {"name": "q", "regex": " a\n"}],
        },
        "forward": forward("//+"),
    });
    refused(
        Kind::Route,
        spec.clone(),
        &[
            &format!("match.paths[0].regex: \"/caf%c3%a9\" {PATH}; write \"/caf%C3%A9\""),
            &format!("match.paths[2].regex: its alternative \"b/c\" {PATH}; write \"/b/c\""),
            &format!("match.paths[3].regex: \"/users\\\\?id=[0-9]+\" {PATH}"),
            &format!("match.paths[4].regex: \"/%2e/a\" {PATH}"),
            &format!("match.headers[0].regex: \" a\" {HEADER}"),
            &format!("match.headers[1].exact: \"a\\n\" {HEADER}"),
            &format!("match.headers[2].prefix: \"\\ta\" {HEADER}"),
            "match.query[0].regex: \"[^\\\\s\\\\S]\" never matches: no text fits it",
            &format!("forward.rewrite.path_regex.pattern: \"//+\" {PATH}; write \"/+\""),
        ],
    );
    let stored = serde_json::to_vec(&spec).unwrap();
    assert!(Resource::from_stored(Kind::Route, &stored, &Catalog).is_ok());
}

#[test]
fn templates_are_checked() {
    for (text, message) in [
        ("/a{b}", "\"a{b}\": a variable must be a whole segment, like {id}"),
        ("/{b", "\"{b\": a variable must be a whole segment, like {id}"),
        ("/{}", "\"{}\": a variable's name has letters, digits and '_'"),
        ("/{a-b}", "\"{a-b}\": a variable's name has letters, digits and '_'"),
        ("/{*a}/b", "\"{*a}\" takes all that is left, so it must be the last segment"),
    ] {
        let route = a_route(&json!({"match": {"paths": [{"template": text}]}}));
        refused(Kind::Route, route, &[&format!("match.paths[0].template: {message}")]);
    }
}

#[test]
fn forwarding_is_checked() {
    for (forward, errors) in [
        (json!({"upstreams": []}), &["forward.upstreams: needs at least one"][..]),
        (
            json!({"upstreams": [{"name": "a", "weight": 0}]}),
            &["forward.upstreams: needs at least one with a weight above 0"],
        ),
        (json!({"upstreams": [{}]}), &["forward.upstreams[0].name: is required"]),
        (json!({"upstreams": ["u"]}), &["forward.upstreams[0]: must be an object, is a string"]),
        (json!({"upstreams": {"name": "u"}}), &["forward.upstreams: must be an array, is an object"]),
        (
            json!({"upstreams": [{"name": "a", "weight": 1.5}]}),
            &["forward.upstreams[0].weight: must be an integer, is a number"],
        ),
        (
            json!({"upstreams": [{"name": "a", "weight": 5_000_000_000_u64}]}),
            &["forward.upstreams[0].weight: must be at most 4294967295"],
        ),
        (json!({"mirror": {"percent": 5}}), &["forward.mirror.upstream: is required"]),
        (
            json!({"upgrades": ["WebSocket", "", "h2c", "websocket", "websocket", "connect", "connect"]}),
            &[
                "forward.upgrades[0]: \"WebSocket\" is not the name of a protocol, in lower case",
                "forward.upgrades[1]: \"\" is not the name of a protocol, in lower case",
                "forward.upgrades[2]: is HTTP itself, which is not passed through unseen",
                "forward.upgrades[4]: \"websocket\" is listed twice",
                "forward.upgrades[6]: \"connect\" is listed twice",
            ],
        ),
        (json!({"retry": {"on": []}}), &["forward.retry.on: must not be empty"]),
        (json!({"retry": {"methods": []}}), &["forward.retry.methods: must have from 1 to 20 entries"]),
        (json!({"timeout": 30}), &["forward.timeout: must be a string, is a number"]),
        (json!({"timeout": "0.1us"}), &["forward.timeout: \"0.1us\" is shorter than 1us"]),
        (json!({"timeout": "9999d"}), &["forward.timeout: \"9999d\" is longer than 365d"]),
        (
            json!({"rewrite": {"path_regex": {"pattern": "*", "substitution": ""}}}),
            &[
                "forward.rewrite.path_regex.pattern: is not a regular expression: repetition operator missing expression",
            ],
        ),
        (
            json!({"rewrite": {"path_regex": {"pattern": "a"}}}),
            &["forward.rewrite.path_regex.substitution: is required"],
        ),
        (
            json!({"rewrite": {"path_regex": {"pattern": "^/(u)", "substitution": "/$1_profile"}}}),
            &[
                "forward.rewrite.path_regex.substitution: \"/$1_profile\" refers to the group \"1_profile\", which the pattern does not have; ${1} ends where its brace does",
            ],
        ),
        (
            json!({"rewrite": {"path_regex": {"pattern": "a", "substitution": "/$"}}}),
            &["forward.rewrite.path_regex.substitution: \"/$\" has a $ that names no group; $$ is a dollar"],
        ),
        (
            json!({"rewrite": {"path_regex": {"pattern": "a", "substitution": "/a b"}}}),
            &["forward.rewrite.path_regex.substitution: \"/a b\" has the character ' ', which no path has"],
        ),
        (
            json!({"rewrite": {"host": "a:+1"}}),
            &["forward.rewrite.host: \"a:+1\" is not a host name with an optional port"],
        ),
        (
            json!({"rewrite": {"host": "u@h"}}),
            &["forward.rewrite.host: \"u@h\" is not a host name with an optional port"],
        ),
    ] {
        refused(Kind::Route, forwarding(&forward), errors);
    }
    for upgrades in [json!([]), json!(["websocket", "connect", "speech/1", "irc"])] {
        assert!(parse(Kind::Route, forwarding(&json!({"upgrades": upgrades}))).is_ok(), "{upgrades}");
    }
    for host in ["h", "a.b:80", "[::1]", "[::1]:80", "127.0.0.1:1"] {
        assert!(parse(Kind::Route, forwarding(&json!({"rewrite": {"host": host}}))).is_ok(), "{host}");
    }
}

#[test]
fn redirects_and_responses_are_checked() {
    let nothing = "redirect: changes nothing: needs one of scheme, host, port, path and path_prefix";
    for (redirect, errors) in [
        (json!({}), &[nothing][..]),
        (json!({"status": 301}), &[nothing]),
        (json!({"path": "/a", "path_prefix": "/b"}), &["redirect: takes one of path and path_prefix"]),
        (json!({"path": "a"}), &["redirect.path: \"a\" must start with '/'"]),
        (json!({"scheme": "ftp"}), &["redirect.scheme: \"ftp\" is neither http nor https"]),
        (
            json!({"host": "*.example.org"}),
            &["redirect.host: \"*.example.org\" is not a host name without a port"],
        ),
        (json!({"host": "h:80"}), &["redirect.host: \"h:80\" is not a host name without a port"]),
        (json!({"port": 0}), &["redirect.port: must be from 1 to 65535"]),
        (json!({"port": 70000}), &["redirect.port: must be at most 65535"]),
        (json!({"port": 1, "status": 300}), &["redirect.status: must be 301, 302, 303, 307 or 308"]),
    ] {
        refused(Kind::Route, json!({"name": "r", "redirect": redirect}), errors);
    }
    for (respond, errors) in [
        (json!({"status": 199}), &["respond.status: must be from 200 to 599"][..]),
        (json!({"status": 204, "body": "x"}), &["respond.body: cannot be sent with status 204"]),
        (json!({"body": "x".repeat(65_537)}), &["respond.body: has 65537 bytes; at most 65536"]),
        (
            json!({"headers": {"Content-Length": "5", "a b": "c", "x": "a\nb", "y": 5}}),
            &[
                "respond.headers.Content-Length: is set by the proxy",
                "respond.headers.a b: is not a header name",
                "respond.headers.x: has a character that a header value cannot have",
                "respond.headers.y: must be a string, is a number",
            ],
        ),
    ] {
        refused(Kind::Route, json!({"name": "r", "respond": respond}), errors);
    }
}

#[test]
fn all_errors_of_an_upstream_come_at_once() {
    refused(
        Kind::Upstream,
        json!({
            "name": "u",
            "protocol": "spdy",
            "targets": [
                {"address": "10.0.0.1:80"},
                {"address": "10.0.0.1:80", "weight": 70_000},
                {"address": "nowhere"},
                {"weight": 1},
                {"address": "h:80", "zone": ""},
                7,
            ],
            "load_balancing": {"policy": "maglev", "slow_start": "1ms"},
            "health_check": {
                "active": {"type": "tcp", "path": "x", "statuses": [99], "interval": "1ms", "timeout": "2m", "healthy_after": 0},
                "passive": {"consecutive_failures": 0, "ejection": "2h", "max_ejected_percent": 0},
                "panic_threshold_percent": 101,
            },
            "circuit_breaker": {
                "limits": {"connections": 0, "requests": 2_000_000, "pending": -1},
                "error_rate": {
                    "threshold": 0.001, "window": "10ms", "min_requests": 0, "open_for": "2h", "timeout": "0s",
                    "fallback": {"status": 100, "headers": {"connection": "close"}},
                },
            },
            "tls": {"sni": 1},
            "connect_timeout": "2h",
            "idle_timeout": "0s",
        }),
        &[
            "protocol: must be one of http1, http2, auto, is \"spdy\"",
            "targets[1].address: \"10.0.0.1:80\" is listed twice",
            "targets[1].weight: must be at most 65535",
            "targets[2].address: \"nowhere\" is not HOST:PORT, like 10.0.0.1:8080, [::1]:8080 or users.internal:8080",
            "targets[3].address: is required",
            "targets[4].zone: needs from 1 to 128 characters",
            "targets[5]: must be an object, is a number",
            "load_balancing.hash_on: is needed by ring_hash and maglev",
            "load_balancing.slow_start: must be from 100ms to 1h",
            "health_check.active.path: is only for checks of the type http",
            "health_check.active.statuses: is only for checks of the type http",
            "health_check.active.path: must begin with / and have up to 1024 visible ASCII characters, spaces encoded",
            "health_check.active.statuses[0]: must be from 200 to 599",
            "health_check.active.interval: must be from 100ms to 1h",
            "health_check.active.timeout: must be from 10ms to 1m",
            "health_check.active.healthy_after: must be from 1 to 100",
            "health_check.passive.consecutive_failures: must be from 1 to 10000",
            "health_check.passive.ejection: must be from 100ms to 1h",
            "health_check.passive.max_ejected_percent: must be from 1 to 100",
            "health_check.panic_threshold_percent: must be from 0 to 100",
            "circuit_breaker.limits.connections: must be from 1 to 1000000",
            "circuit_breaker.limits.requests: must be from 1 to 1000000",
            "circuit_breaker.limits.pending: must be at least 0",
            "circuit_breaker.error_rate.threshold: must be from 0.01 to 1",
            "circuit_breaker.error_rate.window: must be from 100ms to 10m",
            "circuit_breaker.error_rate.min_requests: must be from 1 to 1000000",
            "circuit_breaker.error_rate.open_for: must be from 10ms to 1h",
            "circuit_breaker.error_rate.timeout: must be from 1ms to 1h",
            "circuit_breaker.error_rate.fallback.status: must be from 200 to 599",
            "circuit_breaker.error_rate.fallback.headers.connection: is set by the proxy",
            "tls.sni: must be a string, is a number",
            "connect_timeout: must be from 1ms to 1h",
            "idle_timeout: must be from 1ms to 1h",
        ],
    );
    refused(
        Kind::Upstream,
        json!({"name": "u", "targets": [], "load_balancing": {"policy": "fastest"}}),
        &[
            "load_balancing.policy: must be one of round_robin, least_request, random, peak_ewma, ring_hash, maglev, is \"fastest\"",
        ],
    );
    refused(
        Kind::Upstream,
        json!({"name": "u", "targets": [], "load_balancing": {"policy": "maglev", "hash_on": {"cookie": {"name": "a b", "path": "x;y", "ttl": "10ms"}}}}),
        &[
            "load_balancing.hash_on.cookie.name: is not a cookie name",
            "load_balancing.hash_on.cookie.path: is not a path",
            "load_balancing.hash_on.cookie.ttl: must be from 1s to 365d",
        ],
    );
    for (hash_on, error) in [
        (json!({"header": "a b"}), "load_balancing.hash_on.header: \"a b\" is not a header name"),
        (json!({"query": ""}), "load_balancing.hash_on.query: needs from 1 to 256 characters"),
        (json!({"body": "x"}), "load_balancing.hash_on: needs exactly one of header, cookie, query"),
        (json!("client"), "load_balancing.hash_on: must be one of source_ip, consumer, is \"client\""),
    ] {
        let spec = json!({"name": "u", "targets": [], "load_balancing": {"policy": "ring_hash", "hash_on": hash_on}});
        refused(Kind::Upstream, spec, &[error]);
    }
    refused(
        Kind::Upstream,
        json!({"name": "u", "targets": [], "load_balancing": {"policy": 1}}),
        &[
            "load_balancing.policy: must be one of round_robin, least_request, random, peak_ewma, ring_hash, maglev, is a number",
        ],
    );
}

#[test]
fn all_errors_of_a_listener_come_at_once() {
    refused(
        Kind::Listener,
        json!({
            "name": "l",
            "address": "localhost:80",
            "protocol": "spdy",
            "limits": {"header_size": "1KiB", "header_count": 0, "body_size": "1 GB", "header_timeout": "1ms", "idle_timeout": "2h"},
        }),
        &[
            "address: must be an IP address and a port, like 0.0.0.0:8080 or [::]:8080",
            "protocol: must be one of http, https, is \"spdy\"",
            "limits.header_size: must be from 8KiB to 1MiB",
            "limits.header_count: must be from 1 to 1000",
            "limits.body_size: \"1 GB\" is not a size; write a number of bytes, \"64KiB\" or \"1MiB\"",
            "limits.header_timeout: must be from 10ms to 1h",
            "limits.idle_timeout: must be from 10ms to 1h",
        ],
    );
    refused(
        Kind::Listener,
        json!({"name": "l", "address": "0.0.0.0:0"}),
        &["address: needs a port other than 0"],
    );
    let limits = |limits: Value| json!({"name": "l", "address": "[::]:80", "limits": limits});
    refused(Kind::Listener, limits(json!({"body_size": -1})), &["limits.body_size: must be at least 0"]);
    refused(
        Kind::Listener,
        limits(json!({"body_size": 1.5})),
        &["limits.body_size: must be a string or an integer, is a number"],
    );
    refused(
        Kind::Listener,
        limits(json!({"header_count": 70_000})),
        &["limits.header_count: must be at most 65535"],
    );
    let parsed = parse(Kind::Listener, limits(json!({"header_size": 10_000, "body_size": "1MiB"}))).unwrap();
    let Body::Listener(listener) = parsed.body() else { panic!("{parsed:?}") };
    assert_eq!((listener.limits.header_size, listener.limits.body_size), (10_000, Some(1 << 20)));
}

#[test]
fn all_errors_of_a_plugin_come_at_once() {
    refused(
        Kind::Plugin,
        json!({"name": "p", "type": "limit", "config": {"limit": 0}, "order": "first", "globl": true}),
        &[
            "config.limit: must be at least 1",
            "order: must be an integer, is a string",
            "globl: unknown field; did you mean global?",
        ],
    );
    refused(
        Kind::Plugin,
        json!({"name": "p", "type": "jwt"}),
        &["type: unknown plugin type \"jwt\"; known are limit"],
    );
    refused(Kind::Plugin, json!({"name": "p"}), &["type: is required"]);
    refused(
        Kind::Plugin,
        json!({"name": "p", "type": "limit", "config": {"limit": 1}, "order": 3_000_000_000_i64}),
        &["order: must be at most 2147483647"],
    );
}

#[test]
fn all_errors_of_a_consumer_come_at_once() {
    let key = |key: Value| json!({"key_auth": {"key": key}});
    refused(
        Kind::Consumer,
        json!({
            "name": "c",
            "custom_id": "ä",
            "groups": ["ok", "a,b"],
            "credentials": [
                key(json!("")),
                key(json!(5)),
                key(json!({"env": "A", "file": "b"})),
                key(json!({})),
                key(json!({"env": 5})),
                key(json!({"sha256": "+f".repeat(32)})),
                key(json!("<redacted>")),
                {"basic_auth": {"username": "a:b", "password": ""}},
                {"ley_auth": {}},
                {"key_auth": {"id": "", "key": "k"}},
                {"key_auth": {"id": "one", "key": "l"}},
                {"key_auth": {"id": "one", "key": "m"}},
                {"key_auth": {"id": "two", "key": "m"}},
                {"key_auth": {"key": "n", "ttl": 5}},
            ],
        }),
        &[
            "custom_id: \"ä\" cannot be sent in a header: 1 to 256 printable ASCII characters",
            "groups[1]: must be 1 to 256 printable ASCII characters without a comma",
            "credentials[0].key_auth.key: must not be empty",
            "credentials[1].key_auth.key: must be a string or an object, is a number",
            "credentials[2].key_auth.key: needs exactly one of env, file, sha256",
            "credentials[3].key_auth.key: needs exactly one of env, file, sha256",
            "credentials[4].key_auth.key.env: must be a string, is a number",
            "credentials[5].key_auth.key: sha256 must be 64 hexadecimal digits",
            "credentials[6].key_auth.key: is \"<redacted>\", but nothing is stored that could be kept",
            "credentials[7].basic_auth.username: must not have a colon, which ends it where clients send it",
            "credentials[7].basic_auth.password: must not be empty",
            "credentials[8]: needs exactly one of key_auth, basic_auth, jwt, hmac_auth, mtls",
            "credentials[9].key_auth.id: must be 1 to 256 printable ASCII characters",
            "credentials[11].key_auth.id: \"one\" is used twice",
            "credentials[12].key_auth.key: is the key of another of its credentials",
            "credentials[13].key_auth.ttl: unknown field",
        ],
    );
}

#[test]
fn names_of_every_kind_are_checked_alike() {
    for (name, good) in
        [("a", true), ("a.b_c-9", true), ("", false), ("a/b", false), ("A", false), ("-a", false)]
    {
        let upstream = json!({"name": name, "targets": []});
        assert_eq!(parse(Kind::Upstream, upstream).is_ok(), good, "{name:?}");
    }
    assert!(parse(Kind::Upstream, json!({"name": "x".repeat(129), "targets": []})).is_err());
}

#[test]
fn null_stands_for_a_field_that_is_left_out_only_where_it_may_be() {
    assert!(parse(Kind::Route, a_route(&json!({"description": null, "forward": null}))).is_ok());
    refused(
        Kind::Route,
        a_route(&json!({"match": null, "priority": null})),
        &["match: must be an object, is null", "priority: must be an integer, is null"],
    );
}

#[test]
fn what_narrows_down_and_says_nothing_is_refused() {
    let route = |path: &str, value: Value| -> Value {
        let mut spec = a_route(&json!({"match": {"hosts": ["a"]}}));
        match path.split_once('.') {
            Some((above, name)) => spec[above][name] = value,
            None => spec[path] = value,
        }
        spec
    };
    for (path, instead) in [
        ("fleets", "for all fleets"),
        ("listeners", "for all listeners"),
        ("match.hosts", "for any host"),
        ("match.paths", "for any path"),
        ("match.methods", "for any method"),
        ("match.headers", "for any headers"),
        ("match.query", "for any query"),
    ] {
        for (value, what) in [(json!([]), "empty"), (Value::Null, "null")] {
            let error = format!("{path}: must not be {what}; leave it out {instead}");
            refused(Kind::Route, route(path, value), &[&error]);
        }
    }
    let listener = |fields: Value| with(json!({"name": "l", "address": "0.0.0.0:80"}), &fields);
    let https = |auth: Value| listener(json!({"protocol": "https", "tls": {"client_auth": auth}}));
    let certificate = json!({"name": "c", "snis": null, "certificate": "", "private_key": {"env": "K"}});
    for (kind, spec, error) in [
        (
            Kind::Listener,
            listener(json!({"proxy_protocol": "require", "trusted_proxies": []})),
            "trusted_proxies: must not be empty; leave it out to take connections from anybody",
        ),
        (
            Kind::Listener,
            https(json!({})),
            "tls.client_auth: must not be empty; leave it out to ask for no certificate",
        ),
        (
            Kind::Listener,
            https(Value::Null),
            "tls.client_auth: must not be null; leave it out to ask for no certificate",
        ),
        (
            Kind::Route,
            forwarding(&json!({"upgrades": null})),
            "forward.upgrades: must not be null; leave it out for the default",
        ),
        (
            Kind::Route,
            forwarding(&json!({"retry": {"methods": null}})),
            "forward.retry.methods: must not be null; leave it out for the idempotent ones",
        ),
        (
            Kind::Route,
            a_route(&json!({"match": {"headers": [{"name": "x", "prefix": ""}]}})),
            "match.headers[0].prefix: must not be empty, for every value begins so; use `present: true`",
        ),
        (
            Kind::Plugin,
            json!({"name": "p", "type": "limit", "config": {"limit": 1, "anonymous": null}}),
            "config.anonymous: must not be null; leave it out for its default",
        ),
    ] {
        refused(kind, spec, &[error]);
    }
    let errors = errors_of(Kind::Certificate, certificate);
    assert!(
        errors.contains(&"snis: must not be null; leave it out for all names of the certificate".to_owned()),
        "{errors:?}"
    );
    // None is none where that narrows down to nothing.
    for (kind, spec) in [
        (Kind::Route, forwarding(&json!({"upgrades": []}))),
        (Kind::Route, a_route(&json!({"plugins": [], "match": {}}))),
        (Kind::Listener, listener(json!({"trusted_proxies": []}))),
        (Kind::Upstream, json!({"name": "u", "targets": []})),
        (Kind::Consumer, json!({"name": "c", "groups": [], "credentials": [], "plugins": []})),
    ] {
        assert_eq!(errors_of(kind, spec.clone()), [""; 0], "{spec}");
    }
    // A specification that an earlier version stored is still read.
    let stored = br#"{"name":"r","match":{"hosts":[],"headers":[{"name":"x","prefix":""}]},"respond":{}}"#;
    assert!(Resource::from_stored(Kind::Route, stored, &Catalog).is_ok());
}

#[test]
fn a_secret_with_the_placeholder_in_it_is_refused() {
    let mixed = "has \"<redacted>\" in it, which stands for the secret that is stored: send exactly that to keep it, \
                 or the new secret alone";
    for key in [
        json!("<redacted>x"),
        json!("x<redacted>"),
        json!(" <redacted>"),
        json!("<redacted>\n"),
        json!("a <REDACTED> b"),
        json!({"env": "<redacted>"}),
        json!({"file": "/run/<redacted>"}),
    ] {
        let error = format!("credentials[0].key_auth.key: {mixed}");
        let credentials = json!([{"key_auth": {"key": key}}]);
        let errors = errors_of(Kind::Consumer, alice(&credentials));
        assert_eq!(errors, [error], "{key}");
        let certificate = json!({"name": "c", "certificate": "", "private_key": key});
        let errors = errors_of(Kind::Certificate, certificate);
        assert!(errors.contains(&format!("private_key: {mixed}")), "{key}: {errors:?}");
    }
    // Elsewhere the text is one like any other.
    let described = with(alice(&json!([])), &json!({"description": "<redacted>x"}));
    assert_eq!(errors_of(Kind::Consumer, described), [""; 0]);
}

#[test]
fn large_lists_are_refused_in_a_moment() {
    let start = std::time::Instant::now();
    let names: Vec<String> = (0..25_000).map(|i| format!("n{i}")).collect();
    refused(Kind::Route, a_route(&json!({"plugins": names})), &["plugins: has 25000 entries; at most 1000"]);
    let targets: Vec<Value> = (0..10_000).map(|i| json!({"address": format!("h{i}:80")})).collect();
    assert!(parse(Kind::Upstream, json!({"name": "u", "targets": targets})).is_ok());
    let weighted: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
    refused(
        Kind::Route,
        forwarding(&json!({"upstreams": weighted})),
        &["forward.upstreams: has 25000 entries; at most 100"],
    );
    let credentials: Vec<Value> = names.iter().map(|name| json!({"key_auth": {"key": name}})).collect();
    refused(
        Kind::Consumer,
        json!({"name": "c", "credentials": credentials}),
        &["credentials: has 25000 entries; at most 1000", "is larger than 524288 bytes"],
    );
    // And what is wrong with each of very many is not told of all.
    let wrong: Vec<Value> = (0..100_000).map(|_| json!({"adress": "a:1"})).collect();
    let errors = parse(Kind::Upstream, json!({"name": "u", "targets": wrong})).unwrap_err();
    assert_eq!(errors.len(), Errors::MAX + 1);
    assert!(
        errors.last().is_some_and(|last| last.message.ends_with("more errors, not listed here")),
        "{:?}",
        errors.last()
    );
    // Far above what it takes; comparing each with each takes minutes.
    assert!(start.elapsed() < std::time::Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn errors_quote_long_texts_only_in_part() {
    let errors = parse(
        Kind::Route,
        a_route(&json!({"x".repeat(100_000): 1, "match": {"hosts": ["ä".repeat(100_000)]}})),
    )
    .unwrap_err();
    assert_eq!(errors.len(), 2);
    for error in errors {
        assert!(error.field.len() + error.message.len() < 2_200, "{error}");
    }
}

#[test]
fn a_specification_has_at_most_512_kib() {
    let headers: serde_json::Map<String, Value> =
        (0..700).map(|i| (format!("h{i}"), "x".repeat(1000).into())).collect();
    refused(
        Kind::Route,
        a_route(&json!({"respond": {"headers": headers}})),
        &["is larger than 524288 bytes"],
    );
}

// ------------------------------------------------------------------------------------------------------------------
