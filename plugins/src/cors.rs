//! Lets pages of other origins call an API from the browser, as the Fetch standard has it (cross-origin resource
//! sharing).
//!
//! A preflight request (`OPTIONS` with `Origin` and `Access-Control-Request-Method`) is answered here with `204`, before
//! any authentication, and does not reach the upstream. Its answer allows `methods` and `headers`; without `headers`,
//! those are allowed that the browser asks for. All other requests go on, and their answers carry the headers by which
//! the browser lets the page see them, errors that the proxy makes included.
//!
//! A preflight belongs to the route that would take the request it asks about, by the method in
//! `Access-Control-Request-Method`; a route for `POST` alone needs no `OPTIONS` among its methods. Header conditions of a
//! route count as met where `Access-Control-Request-Headers` names the header. A route that does name `OPTIONS` goes
//! first, and a route without this plugin takes only the preflights that its methods allow.
//!
//! With `global: true` answers to requests that no route takes carry the headers too, as do those to requests that are
//! refused before any plugin runs, such as a body that is too large (413) or too much load (503); and preflights that no route takes
//! are answered `204`. An answer to what cannot be read as a request has none of these headers: there is no `Origin` to go by.
//!
//! `origins` are exact (`https://app.example.com`), have a wildcard for subdomains or for the port
//! (`https://*.example.com`, `http://localhost:*`), are regular expressions behind a `~` (`~https://(a|b)\.example\.com`)
//! that must match the whole origin, or are `*` for any. A request of another origin is not refused, for it is the browser
//! that guards the page: its answer lacks the headers. `*` together with `credentials` would let any page act in its
//! visitors' names, and is refused.
//!
//! Answers that depend on the origin carry `Vary: Origin`, whatever the origin was, so that no cache gives one page
//! another's answer. CORS headers of the upstream are taken out: there is one policy, this one.

use foldhash::{HashSet, HashSetExt as _};
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, request};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::router::Preflight;
use signalbox_config::{Errors, FieldError, HumanDuration};
use signalbox_plugin::{
    Context, Definition, Exchange, Flow, OnConditionError, Plugin, PluginRequest, PluginResponse, Reply,
    UnroutedRequest, hooks,
};

use crate::origin::{is_label, is_origin, is_port, without_usual_port};

/// The pages that may call, and what they may send and read.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "CORS", example = serde_json::json!({}), example = serde_json::json!({
    "origins": ["https://app.example.com", "https://*.example.org"], "credentials": true, "max_age": "10m",
}))]
pub(crate) struct Config {
    /// The origins of pages that may call: exact, with a wildcard (`https://*.example.com`, `http://localhost:*`), a regular
    /// expression behind a `~`, or `*` for any.
    #[serde(default = "default_origins")]
    #[schemars(title = "Origins", length(min = 1))]
    origins: Vec<String>,
    /// The methods that pages may use.
    #[serde(default = "default_methods")]
    #[schemars(title = "Methods", length(min = 1))]
    methods: Vec<String>,
    /// The request headers that pages may set. Absent: all that they ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Request headers")]
    headers: Option<Vec<String>>,
    /// The response headers that pages may read, beside those that they may always read.
    #[serde(default)]
    #[schemars(title = "Exposed headers")]
    exposed_headers: Vec<String>,
    /// Allows credentials such as cookies in requests. Not together with the origin `*`.
    #[serde(default)]
    #[schemars(title = "Credentials")]
    credentials: bool,
    /// The time that browsers may cache the response to a preflight request, in whole seconds. Absent: the browser's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Max age")]
    max_age: Option<HumanDuration>,
    /// Allows pages of public sites to call into the private network.
    #[serde(default)]
    #[schemars(title = "Private network")]
    private_network: bool,
}

/// Lets pages of other origins call an API from the browser.
pub(crate) struct Cors {
    origins: Origins,
    methods: HeaderValue,
    headers: Option<HeaderValue>,
    exposed_headers: Option<HeaderValue>,
    credentials: bool,
    max_age: Option<HeaderValue>,
    private_network: bool,
}

#[hooks]
impl Plugin for Cors {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        match self.leave_headers(request.head, request.exchange) {
            Some(reply) => reply.into(),
            None => Flow::Continue,
        }
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }

    fn on_response<'a>(&'a self, response: &'a mut PluginResponse<'_>) -> Flow<'a> {
        for name in &OF_OTHERS {
            response.head.headers.remove(name);
        }
        if !response.saw_request {
            // The answer to a preflight that is refused before stays what it is.
            self.leave_headers(response.request, response.exchange);
        }
        Flow::Continue
    }

    fn on_no_route(&self, request: &mut UnroutedRequest<'_>) -> Option<Reply> {
        Preflight::of(&request.head.method, &request.head.headers).map(|_| Reply::Response(no_content()))
    }
}

impl Definition for Cors {
    const NAME: &'static str = "cors";
    const DESCRIPTION: &'static str = "Lets pages of other origins call an API from the browser.";
    const ORDER: i32 = 2000;
    const ANSWERS_PREFLIGHTS: bool = true;
    const ON_CONDITION_ERROR: OnConditionError = OnConditionError::Skip;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        parse(config, errors);
    }

    fn build(config: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let built = parse(&config, &mut errors);
        errors.finish(built)
    }
}

impl Cors {
    /// Leaves what the answer is to carry. `Some`: the request is a preflight, and this is the answer.
    fn leave_headers(&self, head: &request::Parts, exchange: &mut Exchange) -> Option<Reply> {
        let headers = &head.headers;
        let is_preflight = Preflight::of(&head.method, headers).is_some();
        let allowed = match (&self.origins, headers.get(ORIGIN)) {
            // Said to everybody, pages or not, so that one cached answer serves all.
            (Origins::Any, _) => Some(ANY),
            (Origins::Some(origins), Some(origin)) if origins.contain(origin) => Some(origin.clone()),
            (Origins::Some(_), _) => None,
        };
        if is_preflight {
            exchange.append_response_header(VARY, VARY_OF_PREFLIGHT);
        } else if let Origins::Some(_) = self.origins {
            exchange.append_response_header(VARY, VARY_OF_ANSWER);
        }
        if let Some(origin) = allowed {
            exchange.set_response_header(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            if self.credentials {
                exchange.set_response_header(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
            }
            match (is_preflight, &self.exposed_headers) {
                (true, _) => {
                    for (name, value) in self.preflight_headers(headers) {
                        exchange.set_response_header(name, value);
                    }
                }
                (false, Some(exposed)) => {
                    exchange.set_response_header(ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
                }
                (false, None) => {}
            }
        }
        is_preflight.then(|| Reply::Response(no_content()))
    }

    /// The headers by which an answer to a preflight request allows more than the origin.
    fn preflight_headers(&self, asked: &HeaderMap) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let headers = self.headers.as_ref().or_else(|| asked.get(ACCESS_CONTROL_REQUEST_HEADERS));
        let private = self.private_network && asked.get(REQUEST_PRIVATE_NETWORK).is_some_and(|v| v == TRUE);
        [
            Some((ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone())),
            headers.map(|headers| (ACCESS_CONTROL_ALLOW_HEADERS, headers.clone())),
            self.max_age.as_ref().map(|max_age| (ACCESS_CONTROL_MAX_AGE, max_age.clone())),
            private.then_some((ALLOW_PRIVATE_NETWORK, TRUE)),
        ]
        .into_iter()
        .flatten()
    }
}

const ANY: HeaderValue = HeaderValue::from_static("*");
const TRUE: HeaderValue = HeaderValue::from_static("true");
const VARY_OF_ANSWER: HeaderValue = HeaderValue::from_static("Origin");
const VARY_OF_PREFLIGHT: HeaderValue = HeaderValue::from_static(
    "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, \
     Access-Control-Request-Private-Network",
);
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");
const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");

/// The headers that an upstream may have set itself, or a plugin in its place.
static OF_OTHERS: [HeaderName; 7] = [
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
    ALLOW_PRIVATE_NETWORK,
];

/// The origins that may call.
enum Origins {
    Any,
    Some(OriginSet),
}

#[derive(Default)]
struct OriginSet {
    exact: HashSet<Box<[u8]>>,
    wildcards: Vec<Wildcard>,
    patterns: Vec<Regex>,
}

/// The part of an origin that a wildcard stands for, with the text before and behind it.
enum Wildcard {
    /// `https://` `*` `.example.com`: one or more labels.
    Subdomains { before: Box<[u8]>, behind: Box<[u8]> },
    /// `http://localhost:` `*`: a port.
    Port { before: Box<[u8]> },
}

impl OriginSet {
    fn contain(&self, origin: &HeaderValue) -> bool {
        let origin = origin.as_bytes();
        self.exact.contains(origin)
            || self.wildcards.iter().any(|wildcard| wildcard.matches(origin))
            || std::str::from_utf8(origin)
                .is_ok_and(|origin| self.patterns.iter().any(|pattern| pattern.is_match(origin)))
    }
}

impl Wildcard {
    fn matches(&self, origin: &[u8]) -> bool {
        match self {
            Self::Subdomains { before, behind } => origin
                .strip_prefix(&**before)
                .and_then(|rest| rest.strip_suffix(&**behind))
                .is_some_and(|labels| labels.split(|byte| *byte == b'.').all(is_label)),
            Self::Port { before } => origin.strip_prefix(&**before).is_some_and(is_port),
        }
    }
}

fn parse(config: &Config, errors: &mut Errors) -> Option<Cors> {
    let origins = parse_origins(config, errors);
    if config.methods.is_empty() {
        errors.push("methods", "must have at least one method");
    }
    for (index, method) in config.methods.iter().enumerate() {
        if method.parse::<Method>().is_err() {
            errors.push(format_args!("methods[{index}]"), format_args!("{method:?} is not a method"));
        } else if method == "*" && config.credentials {
            errors.push(format_args!("methods[{index}]"), "\"*\" means nothing to browsers with credentials");
        }
    }
    let mut header_names = |field: &str, names: &[String]| {
        for (index, name) in names.iter().enumerate() {
            if name.parse::<HeaderName>().is_err() {
                errors.push(
                    format_args!("{field}[{index}]"),
                    format_args!("{name:?} is not the name of a header"),
                );
            } else if name == "*" && config.credentials {
                errors.push(
                    format_args!("{field}[{index}]"),
                    "\"*\" means nothing to browsers with credentials",
                );
            }
        }
    };
    header_names("headers", config.headers.as_deref().unwrap_or_default());
    header_names("exposed_headers", &config.exposed_headers);
    let list = |texts: &[String]| HeaderValue::from_str(&texts.join(", ")).ok();
    Some(Cors {
        origins,
        methods: list(&config.methods)?,
        headers: config.headers.as_deref().and_then(list),
        exposed_headers: Some(&*config.exposed_headers).filter(|names| !names.is_empty()).and_then(list),
        credentials: config.credentials,
        max_age: config.max_age.map(|max_age| HeaderValue::from(max_age.0.as_secs())),
        private_network: config.private_network,
    })
}

fn parse_origins(config: &Config, errors: &mut Errors) -> Origins {
    if config.origins.is_empty() {
        errors.push("origins", "must have at least one origin");
    }
    let mut any = false;
    let mut set = OriginSet { exact: HashSet::new(), ..OriginSet::default() };
    for (index, origin) in config.origins.iter().enumerate() {
        let field = format!("origins[{index}]");
        if origin == "*" {
            any = true;
            if config.credentials {
                errors.push(
                    field,
                    "\"*\" together with credentials would let any page act in its visitors' names",
                );
            }
        } else if let Some(pattern) = origin.strip_prefix('~') {
            // By itself first: `a)|(b` would end the group around it, and match anywhere.
            match Regex::new(pattern).and_then(|_| Regex::new(&format!("^(?:{pattern})$"))) {
                Ok(pattern) => set.patterns.push(pattern),
                Err(error) => errors.push(field, format_args!("is not a regular expression: {error}")),
            }
        } else {
            let origin = without_usual_port(origin.to_ascii_lowercase());
            if !is_origin(&origin) {
                errors.push(
                    field,
                    "must be SCHEME://HOST or SCHEME://HOST:PORT, with nothing behind it; a wildcard stands for \
                     subdomains (https://*.example.com) or for the port (http://localhost:*)",
                );
            } else if let Some(before) = origin.strip_suffix('*') {
                set.wildcards.push(Wildcard::Port { before: before.as_bytes().into() });
            } else if let Some((before, behind)) = origin.split_once('*') {
                let (before, behind) = (before.as_bytes().into(), behind.as_bytes().into());
                set.wildcards.push(Wildcard::Subdomains { before, behind });
            } else {
                set.exact.insert(origin.into_bytes().into());
            }
        }
    }
    if any { Origins::Any } else { Origins::Some(set) }
}

fn no_content() -> http::Response<bytes::Bytes> {
    let mut response = http::Response::new(bytes::Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn default_origins() -> Vec<String> {
    vec!["*".to_owned()]
}

fn default_methods() -> Vec<String> {
    ["GET", "HEAD", "PUT", "PATCH", "POST", "DELETE", "OPTIONS"].map(str::to_owned).into()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Response;
    use serde_json::{Value, json};
    use signalbox_plugin::Origin;

    use super::*;
    use crate::testing::{Client, build, refused};

    fn preflight(origin: &str) -> Client {
        Client::new("OPTIONS", "/").header("origin", origin).header("access-control-request-method", "PUT")
    }

    /// The headers of the answer to a preflight request; its status is 204.
    fn preflight_answer(config: Value, mut client: Client) -> HeaderMap {
        let answer = client.meets(&*build("cors", config)).expect("an answer");
        assert_eq!((answer.status, answer.detail.as_str()), (204, ""));
        assert!(answer.headers.is_empty());
        client.answer_headers(&[])
    }

    /// The headers that are put on the answer to a request that goes on.
    fn simple_answer(config: Value, mut client: Client) -> HeaderMap {
        assert!(client.meets(&*build("cors", config)).is_none());
        client.answer_headers(&[])
    }

    fn texts(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    #[test]
    fn a_preflight_request_is_answered_here() {
        let config = json!({
            "origins": ["https://a.example"], "methods": ["GET", "PUT"], "headers": ["X-A", "X-B"],
            "exposed_headers": ["X-C"], "credentials": true, "max_age": "10m", "private_network": true,
        });
        let client = preflight("https://a.example")
            .header("access-control-request-headers", "x-z")
            .header("access-control-request-private-network", "true");
        assert_eq!(
            texts(&preflight_answer(config, client)),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-headers: X-A, X-B",
                "access-control-allow-methods: GET, PUT",
                "access-control-allow-origin: https://a.example",
                "access-control-allow-private-network: true",
                "access-control-max-age: 600",
                "vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers, \
                 Access-Control-Request-Private-Network",
            ]
        );
    }

    #[test]
    fn by_default_any_origin_may_send_any_header() {
        let client = preflight("https://a.example").header("access-control-request-headers", "x-z, x-y");
        let headers = preflight_answer(json!({}), client);
        assert_eq!(headers["access-control-allow-origin"], "*");
        assert_eq!(headers["access-control-allow-headers"], "x-z, x-y");
        assert_eq!(headers["access-control-allow-methods"], "GET, HEAD, PUT, PATCH, POST, DELETE, OPTIONS");
        assert!(!headers.contains_key("access-control-max-age"));
        assert!(!headers.contains_key("access-control-allow-private-network"));
        let headers = preflight_answer(json!({"headers": []}), preflight("https://a.example"));
        assert_eq!(headers["access-control-allow-headers"], "");
    }

    #[test]
    fn a_preflight_request_of_a_stranger_allows_nothing() {
        let headers =
            preflight_answer(json!({"origins": ["https://a.example"]}), preflight("https://b.example"));
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["vary"]);
    }

    #[test]
    fn options_that_is_no_preflight_goes_on() {
        for client in [
            Client::new("OPTIONS", "/").header("origin", "https://a.example"),
            Client::new("OPTIONS", "/").header("access-control-request-method", "PUT"),
            Client::new("PUT", "/")
                .header("origin", "https://a.example")
                .header("access-control-request-method", "PUT"),
        ] {
            simple_answer(json!({}), client);
        }
    }

    #[test]
    fn answers_to_simple_requests_carry_what_the_origin_may() {
        let config = || json!({"origins": ["https://a.example"], "exposed_headers": ["X-C", "X-D"], "credentials": true});
        let get = || Client::new("GET", "/");
        assert_eq!(
            texts(&simple_answer(config(), get().header("origin", "https://a.example"))),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-origin: https://a.example",
                "access-control-expose-headers: X-C, X-D",
                "vary: Origin",
            ]
        );
        assert_eq!(
            texts(&simple_answer(config(), get().header("origin", "https://b.example"))),
            ["vary: Origin"]
        );
        assert_eq!(texts(&simple_answer(config(), get())), ["vary: Origin"]);
        assert_eq!(texts(&simple_answer(json!({}), get())), ["access-control-allow-origin: *"]);
    }

    #[test]
    fn an_answer_that_is_made_before_its_turn_carries_the_same_headers() {
        let plugin = build("cors", json!({"origins": ["https://a.example"], "exposed_headers": ["X-C"]}));
        let answer = |client: &mut Client| client.refused(&*plugin, Response::new(Bytes::new()));
        let mut simple = Client::new("GET", "/").header("origin", "https://a.example");
        assert_eq!(
            texts(answer(&mut simple).headers()),
            [
                "access-control-allow-origin: https://a.example",
                "access-control-expose-headers: X-C",
                "vary: Origin"
            ]
        );
        let mut preflight = preflight("https://a.example");
        let reply = preflight.finds_no_route(&*plugin).expect("a preflight is answered");
        assert_eq!(reply.status, 204);
        assert_eq!(answer(&mut preflight).headers()["access-control-allow-origin"], "https://a.example");
        assert!(Client::new("GET", "/").finds_no_route(&*plugin).is_none());
    }

    #[test]
    fn vary_is_added_beside_the_upstreams() {
        let mut client = Client::new("GET", "/");
        assert!(client.meets(&*build("cors", json!({"origins": ["https://a.example"]}))).is_none());
        let headers = client.answer_headers(&[("vary", "Accept-Encoding")]);
        assert_eq!(headers.get_all("vary").iter().collect::<Vec<_>>(), ["Accept-Encoding", "Origin"]);
    }

    #[test]
    fn what_the_upstream_says_of_cors_is_taken_out() {
        let plugin = build("cors", json!({"origins": ["https://a.example"]}));
        let mut client = Client::new("GET", "/").header("origin", "https://evil.example");
        assert!(client.meets(&*plugin).is_none());
        let response = Response::builder()
            .header("access-control-allow-origin", "*")
            .header("access-control-allow-credentials", "true")
            .header("access-control-expose-headers", "x-secret")
            .header("x-other", "1")
            .body(Bytes::new())
            .unwrap();
        let response = client.receives(&*plugin, Origin::Upstream, response);
        assert_eq!(texts(response.headers()), ["vary: Origin", "x-other: 1"]);
    }

    #[test]
    fn origins_are_exact_have_a_wildcard_or_are_regular_expressions() {
        for (origin, good, bad) in [
            (
                "https://A.example:8443",
                &["https://a.example:8443"][..],
                &["https://a.example", "http://a.example:8443", "https://a.example:84430", "null", ""][..],
            ),
            (
                "https://*.a.example",
                &["https://x.a.example", "https://x.y.a.example", "https://X-1.a.example"],
                &[
                    "https://a.example",
                    "https://.a.example.evil",
                    "https://xa.example",
                    "https://evil/.a.example",
                    "https://evil:1.a.example",
                    "https://evil#.a.example",
                    "https://user@x.a.example",
                    "https://..a.example",
                    "https://x..a.example",
                    "https://.x.a.example",
                    "http://x.a.example",
                ],
            ),
            (
                "http://localhost:*",
                &["http://localhost:3000", "http://localhost:1", "http://localhost:65535"],
                &[
                    "http://localhost",
                    "http://localhost:",
                    "http://localhost:1@evil",
                    "http://localhost:evil",
                    "http://localhost:3000a",
                    "http://localhost:65536",
                    "http://localhost:100000",
                    "http://localhost:0",
                    "http://localhost:080",
                    "http://localhost:+80",
                    "http://localhost:-1",
                    "http://localhost:80.evil",
                    "http://localhost:_",
                    "http://localhost:8080 ",
                ],
            ),
            (
                "http://[::1]:*",
                &["http://[::1]:8080"],
                &["http://[::1]", "http://[::2]:80", "http://[::1]:a"],
            ),
            ("https://a.example:443", &["https://a.example"], &["https://a.example:443", "http://a.example"]),
            ("http://a.example:80", &["http://a.example"], &["https://a.example"]),
            ("http://a.example:443", &["http://a.example:443"], &["http://a.example"]),
            (
                r"~https://(a|b)\.example",
                &["https://a.example", "https://b.example"],
                &["https://a.example.evil", "xhttps://a.example", "https://aXexample", "https://a.example\n"],
            ),
        ] {
            let mut errors = Errors::default();
            let config: Config = serde_json::from_value(json!({"origins": [origin]})).unwrap();
            let Some(Cors { origins: Origins::Some(set), .. }) = parse(&config, &mut errors) else {
                panic!("{origin}")
            };
            assert!(errors.is_empty(), "{errors:?}");
            for text in good {
                assert!(set.contain(&HeaderValue::from_str(text).unwrap()), "{origin}: {text}");
            }
            for text in bad {
                let Ok(value) = HeaderValue::from_str(text) else { continue };
                assert!(!set.contain(&value), "{origin}: {text}");
            }
        }
    }

    #[test]
    fn any_origin_with_credentials_is_refused() {
        let error = refused("cors", json!({"origins": ["https://a.example", "*"], "credentials": true}));
        assert!(error.starts_with("origins[1]: ") && error.contains("credentials"), "{error}");
        assert!(refused("cors", json!({"credentials": true})).starts_with("origins[0]: "));
    }

    #[test]
    fn bad_configurations_are_refused_with_all_that_is_wrong() {
        let bad_origins = [
            "a.example",
            "https://a.example/",
            "https://*",
            "https://a*.example",
            "https://*.a.example:*",
            "https://",
            "https://a.example:x",
            "https://a.example:+1",
            "https://a.example:0",
            "https://a.example:65536",
            "https://a..example",
            "https://.a.example",
            "https://u@a.example",
            "https://*.*.a.example",
            "~(",
            "~https://a)|(b",
            "null",
        ];
        let all = refused(
            "cors",
            json!({
                "origins": bad_origins, "methods": ["G T"], "headers": ["a b"], "exposed_headers": [""],
                "max_age": "x",
            }),
        );
        for (index, origin) in bad_origins.iter().enumerate() {
            assert!(all.contains(&format!("origins[{index}]: ")), "{origin} in {all}");
        }
        for expected in ["methods[0]: ", "headers[0]: ", "exposed_headers[0]: ", "max_age: "] {
            assert!(all.contains(expected), "{expected} in {all}");
        }
        assert_eq!(refused("cors", json!({"methods": []})), "methods: must have at least one method");
        let star = json!({"origins": ["https://a.example"], "credentials": true, "methods": ["*"], "headers": ["*"]});
        assert_eq!(refused("cors", star).lines().count(), 2);
    }
}
