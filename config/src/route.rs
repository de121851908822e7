use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Errors, FieldError};
use crate::key::Name;
use crate::matchable::{self, Subject};
use crate::path::{EscapedSlashes, encode, encode_template, normalize};
use crate::plugin::enabled;
use crate::retry::{Retry, RetrySpec};
use crate::router::template::Template;
use crate::values::{HumanDuration, millionths};

/// A route as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// Unique among routes.
    pub name: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// For people and selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Which fleets get it; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleets: Option<Vec<String>>,
    /// A route that is not enabled matches nothing.
    #[serde(default = "enabled", skip_serializing_if = "Clone::clone")]
    pub enabled: bool,
    /// On which listeners; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listeners: Option<Vec<String>>,
    /// Which requests.
    #[serde(default, rename = "match", skip_serializing_if = "MatchSpec::is_empty")]
    pub matches: MatchSpec,
    /// The highest wins, before all else.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// Redirect `/x/` and `/x` to the form the route has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub strict_slash: bool,
    /// The plugins it runs, by name; their order is theirs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plugins: Vec<String>,
    /// Send the request to an upstream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward: Option<ForwardSpec>,
    /// Answer with a redirect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<RedirectSpec>,
    /// Answer as written here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub respond: Option<RespondSpec>,
}

/// Which requests a route takes: one of each list that is there.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MatchSpec {
    /// `admin.example.com`, or `*.example.org` for any number of labels in the star's place; absent: any host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Absent: any path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathSpec>,
    /// Upper case; absent: any method. `HEAD` is a method of its own: `GET` does not stand for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// All of them must match. Of a header that is there several times, any value may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<ValueMatchSpec>,
    /// All of them must match. Names and values are percent-decoded; of several with one name the first counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<ValueMatchSpec>,
}

impl MatchSpec {
    fn is_empty(&self) -> bool {
        self.hosts.is_empty()
            && self.paths.is_empty()
            && self.methods.is_empty()
            && self.headers.is_empty()
            && self.query.is_empty()
    }
}

/// Which paths: an object with one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum PathSpec {
    /// This path.
    Exact(String),
    /// This path and all below it, by whole segments: `/a` takes `/a`, `/a/` and `/a/b`, not `/ab`.
    Prefix(String),
    /// `{name}` stands for one segment, `{*name}` at the end for all that is left (at least one segment).
    Template(String),
    /// A regular expression that must match the whole path.
    Regex(String),
}

/// What a header or a query parameter must be.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValueMatchSpec {
    /// Its name; a header's in any case.
    pub name: String,
    /// This value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// A value that starts so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// A regular expression that must match the whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// Whether it is there at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
    /// Take the requests that do not match, those without the header or parameter among them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub invert: bool,
}

/// Sends the request to an upstream.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForwardSpec {
    /// One of these, drawn by weight for each request.
    pub upstreams: Vec<WeightedSpec>,
    /// What is changed on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<RewriteSpec>,
    /// For the whole request, from its head to the last byte of the answer; default 30s; `0s`: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// How long nothing may move in either direction, from the head of the request on; default 5m; `0s`: any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<HumanDuration>,
    /// When it is sent once more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetrySpec>,
    /// Sends a copy to another upstream, whose answer nobody sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorSpec>,
    /// Which protocols clients may switch to: names as in the header `Upgrade`; and `connect`, by which a CONNECT leads
    /// straight to a target, whatever address it asks for. Default `[websocket]`; empty: none.
    #[schemars(example = ["websocket"])]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrades: Option<Vec<String>>,
}

/// Sends copies of requests to another upstream, whose answers nobody sees. They have the header `x-mirrored-by`. A
/// request whose body is larger than 1 MiB is not copied.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MirrorSpec {
    /// The upstream.
    pub upstream: String,
    /// Of how many requests in a hundred, 0 to 100; default 100.
    #[schemars(range(min = 0, max = 100), example = 100)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
}

/// An upstream and its share.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedSpec {
    /// The upstream.
    pub name: String,
    /// Its share beside the others'; default 1; 0 takes it out; at most 1000000.
    #[schemars(example = 1)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// What of a request is changed before it is sent on.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewriteSpec {
    /// Replaces the part of the path that a `prefix` of the route matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<String>,
    /// Replaces the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Replaces in the path what a regular expression matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_regex: Option<PathRegexSpec>,
    /// Replaces the host; absent: the client's is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

/// A replacement by regular expression.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PathRegexSpec {
    /// What is replaced, wherever it occurs in the path.
    pub pattern: String,
    /// By what; `$1` or `${name}` is a group of the pattern.
    pub substitution: String,
}

/// Answers with a redirect. What is not given is the request's own, but for the port: another scheme or host has its usual
/// one. The query is kept.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedirectSpec {
    /// `http` or `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// The host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The port; default the request's own, with another scheme or host its usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Replaces the part of the path that a `prefix` of the route matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<String>,
    /// 301, 302, 303, 307 or 308; default 302.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

/// Answers as written here.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RespondSpec {
    /// 200 to 599; default 200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// At most 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Response headers; without a `content-type` it is `text/plain; charset=utf-8`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// A route.
#[derive(Debug, Clone)]
pub struct Route {
    /// Its name.
    pub name: Name,
    /// Matches nothing when not.
    pub enabled: bool,
    /// On which listeners; `None`: all.
    pub listeners: Option<Box<[Name]>>,
    /// Which requests.
    pub matches: RouteMatch,
    /// The highest wins.
    pub priority: i32,
    /// Redirect to the form the route has.
    pub strict_slash: bool,
    /// The plugins attached to it, as written.
    pub plugins: Box<[Name]>,
    /// What is done.
    pub action: Action,
}

/// Which requests a route takes.
#[derive(Debug, Clone)]
pub struct RouteMatch {
    /// Never empty: any host is [`HostMatch::Any`].
    pub hosts: Box<[HostMatch]>,
    /// Never empty: any path is the prefix `/`.
    pub paths: Box<[PathMatch]>,
    /// Empty: any.
    pub methods: Box<[Method]>,
    /// All must match.
    pub headers: Box<[HeaderMatch]>,
    /// All must match.
    pub query: Box<[QueryMatch]>,
}

/// Which hosts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostMatch {
    /// This host, lower-case, without a port.
    Exact(Box<str>),
    /// `*.example.org` is `example.org`: any host with one or more labels before it.
    Suffix(Box<str>),
    /// Any host.
    Any,
}

/// Which paths.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// This path.
    Exact(Box<str>),
    /// This path and those below it; without a slash at the end, so `/` is empty.
    Prefix(PrefixPath),
    /// A template.
    Template(Template),
    /// An anchored regular expression, and its source as people wrote it.
    Regex(Arc<Regex>, Box<str>),
}

/// A prefix of whole segments.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PrefixPath {
    /// Without a slash at the end: `/a/b`; the prefix `/` is the empty text.
    pub path: Box<str>,
    /// Whether it was written with a slash at the end, which only `strict_slash` asks.
    pub trailing_slash: bool,
}

/// What a header must be.
#[derive(Debug, Clone)]
pub struct HeaderMatch {
    /// The header.
    pub name: HeaderName,
    /// Its value.
    pub value: ValueMatch,
    /// Take what does not match.
    pub invert: bool,
}

/// What a query parameter must be.
#[derive(Debug, Clone)]
pub struct QueryMatch {
    /// The parameter, decoded.
    pub name: Box<str>,
    /// Its value, decoded.
    pub value: ValueMatch,
    /// Take what does not match.
    pub invert: bool,
}

/// What a value must be.
#[derive(Debug, Clone)]
pub enum ValueMatch {
    /// This.
    Exact(Box<str>),
    /// Starting so.
    Prefix(Box<str>),
    /// Matched as a whole.
    Regex(Arc<Regex>),
    /// There, or not.
    Present(bool),
}

/// What a route does.
#[derive(Debug, Clone)]
pub enum Action {
    /// Sends the request to an upstream.
    Forward(Forward),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Answers itself.
    Respond(Respond),
}

/// Sends the request to an upstream.
#[derive(Debug, Clone)]
pub struct Forward {
    /// Never empty.
    pub upstreams: Box<[WeightedUpstream]>,
    /// Those of weight 0, which get no requests but must exist, each with its place in the list as written.
    pub idle: Box<[(usize, Name)]>,
    /// What is changed on the way; boxed, with the others that few routes have, for there may be 100,000.
    pub rewrite: Option<Box<Rewrite>>,
    /// For the whole request; `None`: none.
    pub timeout: Option<Duration>,
    /// How long nothing may move; `None`: any time.
    pub idle_timeout: Option<Duration>,
    /// When it is sent once more.
    pub retry: Option<Box<Retry>>,
    /// Where copies go.
    pub mirror: Option<Box<Mirror>>,
    /// What clients may switch to; `None`: the usual.
    upgrades: Option<Box<Upgrades>>,
}

/// What clients may switch to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Upgrades {
    /// In lower case.
    protocols: Box<[HeaderValue]>,
    connect: bool,
}

/// Where copies of requests go.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// The upstream.
    pub upstream: Name,
    /// Of how many requests in a million.
    pub millionths: u32,
}

/// An upstream and its share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WeightedUpstream {
    /// The upstream.
    pub name: Name,
    /// Its share.
    pub weight: NonZeroU32,
}

/// What is changed on the way.
#[derive(Debug, Clone, Default)]
pub struct Rewrite {
    /// The path.
    pub path: Option<PathRewrite>,
    /// The host.
    pub host: Option<HeaderValue>,
}

/// How the path is changed.
#[derive(Debug, Clone)]
pub enum PathRewrite {
    /// Replaces what a prefix matched.
    Prefix(Box<str>),
    /// Replaces all.
    Full(Box<str>),
    /// Replaces what matches.
    Regex {
        /// What is replaced.
        pattern: Arc<Regex>,
        /// By what.
        substitution: Box<str>,
    },
}

/// Answers with a redirect.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<Box<str>>,
    /// The host.
    pub host: Option<Box<str>>,
    /// The port.
    pub port: Option<u16>,
    /// The path; never [`PathRewrite::Regex`].
    pub path: Option<PathRewrite>,
    /// The status.
    pub status: StatusCode,
}

/// Answers itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Respond {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub body: Bytes,
    /// The headers, `content-type` among them when there is a body.
    pub headers: Box<[(HeaderName, HeaderValue)]>,
}

const MAX_MATCHES: usize = 100;
const MAX_NAMES: usize = 1000;
const MAX_TEXT: usize = 4096;
const MAX_SEGMENTS: usize = 128;
const MAX_UPGRADES: usize = 16;
const MAX_BODY: usize = 64 << 10;
/// Compiled size of one regular expression; the crate's default is 10 MiB.
const MAX_REGEX: usize = 1 << 20;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Envoy's.
const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

impl RouteSpec {
    pub(crate) fn parse(&self, name: &Name) -> Result<Route, Vec<FieldError>> {
        let mut errors = Errors::default();
        let listeners = self.listeners.as_ref().map(|names| {
            if names.is_empty() {
                errors.push("listeners", "must not be empty; leave it out for all listeners");
            }
            parse_names(names, "listeners", &mut errors)
        });
        let matches = self.matches.parse(&mut errors);
        let plugins = parse_names(&self.plugins, "plugins", &mut errors);
        let has_prefix = matches.paths.iter().all(|path| matches!(path, PathMatch::Prefix(_)));
        let action = match (&self.forward, &self.redirect, &self.respond) {
            (Some(forward), None, None) => Some(Action::Forward(forward.parse(has_prefix, &mut errors))),
            (None, Some(redirect), None) => Some(Action::Redirect(redirect.parse(has_prefix, &mut errors))),
            (None, None, Some(respond)) => Some(Action::Respond(respond.parse("respond", &mut errors))),
            _ => {
                errors.push("", "needs exactly one of forward, redirect and respond");
                None
            }
        };
        errors.finish(action.map(|action| Route {
            name: name.clone(),
            enabled: self.enabled,
            listeners,
            matches,
            priority: self.priority,
            strict_slash: self.strict_slash,
            plugins,
            action,
        }))
    }
}

impl RouteSpec {
    /// Patterns that nothing can match: as a guard they would guard nothing. Those that cannot be read are none of these.
    pub(crate) fn dead_patterns(&self) -> Vec<FieldError> {
        let mut found = Vec::new();
        let check = |found: &mut Vec<_>, field: String, pattern: &str, subject| {
            found.extend(
                matchable::check(pattern, subject).err().map(|message| FieldError::new(field, message)),
            );
        };
        for (index, path) in self.matches.paths.iter().enumerate().take(MAX_MATCHES) {
            if let PathSpec::Regex(pattern) = path {
                check(&mut found, format!("match.paths[{index}].regex"), pattern, Subject::Path);
            }
        }
        for (index, header) in self.matches.headers.iter().enumerate().take(MAX_MATCHES) {
            let field = |kind| format!("match.headers[{index}].{kind}");
            if let Some(pattern) = &header.regex {
                check(&mut found, field("regex"), pattern, Subject::Header);
            }
            for (kind, text) in [("exact", &header.exact), ("prefix", &header.prefix)] {
                let Some(text) = text else { continue };
                if let Err(message) = matchable::check_header_text(text, kind == "prefix") {
                    found.push(FieldError::new(field(kind), message));
                }
            }
        }
        for (index, parameter) in self.matches.query.iter().enumerate().take(MAX_MATCHES) {
            if let Some(pattern) = &parameter.regex {
                check(&mut found, format!("match.query[{index}].regex"), pattern, Subject::Text);
            }
        }
        let rewrite = self.forward.as_ref().and_then(|forward| forward.rewrite.as_ref());
        if let Some(rewrite) = rewrite.and_then(|rewrite| rewrite.path_regex.as_ref()) {
            let field = "forward.rewrite.path_regex.pattern".to_owned();
            check(&mut found, field, &rewrite.pattern, Subject::WithinPath);
        }
        found
    }
}

impl MatchSpec {
    fn parse(&self, errors: &mut Errors) -> RouteMatch {
        for (field, len) in [
            ("hosts", self.hosts.len()),
            ("paths", self.paths.len()),
            ("methods", self.methods.len()),
            ("headers", self.headers.len()),
            ("query", self.query.len()),
        ] {
            if len > MAX_MATCHES {
                errors.push(
                    format_args!("match.{field}"),
                    format_args!("has {len} entries; at most {MAX_MATCHES}"),
                );
            }
        }
        let mut hosts: Vec<HostMatch> = collect(&self.hosts, "match.hosts", errors, parse_host);
        let mut paths: Vec<PathMatch> = Vec::with_capacity(self.paths.len());
        for (index, spec) in self.paths.iter().enumerate() {
            match spec.parse() {
                Ok(path) => paths.push(path),
                Err((field, message)) => errors.push(format_args!("match.paths[{index}].{field}"), message),
            }
        }
        if self.hosts.is_empty() {
            hosts.push(HostMatch::Any);
        }
        if self.paths.is_empty() {
            paths.push(PathMatch::Prefix(PrefixPath { path: "".into(), trailing_slash: true }));
        }
        let methods = collect(&self.methods, "match.methods", errors, |method| {
            if method.bytes().any(|b| b.is_ascii_lowercase()) {
                return Err(format!("{method:?} must be in upper case"));
            }
            Method::from_bytes(method.as_bytes()).map_err(|_| format!("{method:?} is not an HTTP method"))
        });
        let mut headers = Vec::with_capacity(self.headers.len());
        for (index, spec) in self.headers.iter().enumerate() {
            let field = format!("match.headers[{index}]");
            let name = HeaderName::from_bytes(spec.name.as_bytes());
            if name.is_err() {
                errors
                    .push(format_args!("{field}.name"), format_args!("{:?} is not a header name", spec.name));
            }
            if let (Some(value), Ok(name)) = (spec.parse(&field, errors), name) {
                headers.push(HeaderMatch { name, value, invert: spec.invert });
            }
        }
        let mut query = Vec::with_capacity(self.query.len());
        for (index, spec) in self.query.iter().enumerate() {
            let field = format!("match.query[{index}]");
            if spec.name.is_empty() || spec.name.len() > MAX_TEXT {
                errors.push(format_args!("{field}.name"), format_args!("must have 1 to {MAX_TEXT} bytes"));
            }
            if let Some(value) = spec.parse(&field, errors) {
                query.push(QueryMatch { name: spec.name.as_str().into(), value, invert: spec.invert });
            }
        }
        RouteMatch {
            hosts: hosts.into(),
            paths: paths.into(),
            methods: methods.into(),
            headers: headers.into(),
            query: query.into(),
        }
    }
}

impl PathSpec {
    fn parse(&self) -> Result<PathMatch, (&'static str, String)> {
        match self {
            Self::Exact(path) => check_match_path(path)
                .map(|()| PathMatch::Exact(encode(path.as_bytes()).as_ref().unwrap_or(path).as_str().into()))
                .map_err(|e| ("exact", e)),
            Self::Prefix(path) => check_match_path(path).map_err(|e| ("prefix", e)).map(|()| {
                let path = encode(path.as_bytes()).unwrap_or_else(|| path.clone());
                let trimmed = path.strip_suffix('/').unwrap_or(&path);
                PathMatch::Prefix(PrefixPath {
                    path: trimmed.into(),
                    trailing_slash: path.len() != trimmed.len(),
                })
            }),
            Self::Template(text) => check_match_path(text)
                .and_then(|()| encode_template(text).parse())
                .map(PathMatch::Template)
                .map_err(|e| ("template", e)),
            Self::Regex(text) => anchored(text)
                .map(|regex| PathMatch::Regex(regex, text.as_str().into()))
                .map_err(|e| ("regex", e)),
        }
    }
}

impl ValueMatchSpec {
    fn parse(&self, field: &str, errors: &mut Errors) -> Option<ValueMatch> {
        let given =
            [self.exact.is_some(), self.prefix.is_some(), self.regex.is_some(), self.present.is_some()];
        if given.iter().filter(|given| **given).count() != 1 {
            errors.push(field, "needs exactly one of exact, prefix, regex and present");
            return None;
        }
        match (&self.exact, &self.prefix, &self.regex, self.present) {
            (Some(text), ..) => Some(ValueMatch::Exact(text.as_str().into())),
            (_, Some(text), ..) => Some(ValueMatch::Prefix(text.as_str().into())),
            (_, _, Some(text), _) => match anchored(text) {
                Ok(regex) => Some(ValueMatch::Regex(regex)),
                Err(message) => {
                    errors.push(format_args!("{field}.regex"), message);
                    None
                }
            },
            (.., present) => present.map(ValueMatch::Present),
        }
    }
}

impl ForwardSpec {
    fn parse(&self, has_prefix: bool, errors: &mut Errors) -> Forward {
        let mut upstreams: Vec<WeightedUpstream> = Vec::with_capacity(self.upstreams.len());
        let mut idle: Vec<(usize, Name)> = Vec::new();
        let mut names: HashSet<&str> = HashSet::new();
        for (index, spec) in self.upstreams.iter().enumerate() {
            let field = format!("forward.upstreams[{index}]");
            let weight = spec.weight.unwrap_or(1);
            if weight > 1_000_000 {
                errors.push(format_args!("{field}.weight"), "must be at most 1000000");
            }
            if !names.insert(&spec.name) {
                errors.push(format_args!("{field}.name"), format_args!("{:?} is listed twice", spec.name));
            }
            match spec.name.parse() {
                Ok(name) => match NonZeroU32::new(weight) {
                    Some(weight) => upstreams.push(WeightedUpstream { name, weight }),
                    None => idle.push((index, name)),
                },
                Err(message) => errors.push(format_args!("{field}.name"), message),
            }
        }
        if self.upstreams.is_empty() {
            errors.push("forward.upstreams", "needs at least one");
        } else if self.upstreams.iter().all(|spec| spec.weight == Some(0)) {
            errors.push("forward.upstreams", "needs at least one with a weight above 0");
        } else if self.upstreams.len() > MAX_MATCHES {
            let len = self.upstreams.len();
            errors.push("forward.upstreams", format_args!("has {len} entries; at most {MAX_MATCHES}"));
        }
        let timeout = self.timeout.map_or(DEFAULT_TIMEOUT, |timeout| timeout.0);
        let idle_timeout = self.idle_timeout.map_or(DEFAULT_IDLE_TIMEOUT, |timeout| timeout.0);
        Forward {
            upstreams: upstreams.into(),
            idle: idle.into(),
            rewrite: self.rewrite.as_ref().map(|rewrite| Box::new(rewrite.parse(has_prefix, errors))),
            timeout: (!timeout.is_zero()).then_some(timeout),
            idle_timeout: (!idle_timeout.is_zero()).then_some(idle_timeout),
            retry: self.retry.as_ref().map(|retry| Box::new(retry.parse("forward.retry", errors))),
            mirror: self
                .mirror
                .as_ref()
                .and_then(|mirror| mirror.parse("forward.mirror", errors))
                .map(Box::new),
            upgrades: self.upgrades.as_ref().map(|list| Box::new(parse_upgrades(list, errors))),
        }
    }
}

impl Forward {
    /// Whether clients may switch to `protocol`; if so, its name.
    pub fn upgrades_to(&self, protocol: &[u8]) -> Option<HeaderValue> {
        static USUAL: HeaderValue = HeaderValue::from_static("websocket");
        let allowed = self.upgrades.as_ref().map_or(std::slice::from_ref(&USUAL), |it| &it.protocols);
        allowed.iter().find(|it| it.as_bytes().eq_ignore_ascii_case(protocol)).cloned()
    }

    /// Whether a CONNECT leads to a target.
    pub fn connects(&self) -> bool {
        self.upgrades.as_ref().is_some_and(|upgrades| upgrades.connect)
    }

    /// Every upstream as written, in that order.
    pub fn listed(&self) -> impl Iterator<Item = &Name> {
        let mut idle = self.idle.iter().peekable();
        let mut active = self.upstreams.iter();
        (0..self.upstreams.len() + self.idle.len()).filter_map(move |place| {
            match idle.next_if(|(index, _)| *index == place) {
                Some((_, name)) => Some(name),
                None => active.next().map(|upstream| &upstream.name),
            }
        })
    }
}

fn parse_upgrades(list: &[String], errors: &mut Errors) -> Upgrades {
    let mut upgrades = Upgrades { protocols: Box::default(), connect: false };
    let mut protocols: Vec<HeaderValue> = Vec::new();
    if list.len() > MAX_UPGRADES {
        errors.push("forward.upgrades", format_args!("has {} entries; at most {MAX_UPGRADES}", list.len()));
    }
    for (index, name) in list.iter().enumerate() {
        let field = format!("forward.upgrades[{index}]");
        let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._~+!/".contains(&b);
        match (name.as_str(), HeaderValue::from_str(name)) {
            ("connect", _) if !upgrades.connect => upgrades.connect = true,
            // What it switches to is HTTP again, of which nothing would be seen or checked.
            ("h2c" | "h2" | "http/2.0" | "http/2", _) => {
                errors.push(field, "is HTTP itself, which is not passed through unseen");
            }
            (_, Ok(value)) if !name.is_empty() && name.len() <= 64 && name.bytes().all(is_name) => {
                if upgrades.connect && name == "connect" || protocols.contains(&value) {
                    errors.push(field, format_args!("{name:?} is listed twice"));
                }
                protocols.push(value);
            }
            _ => errors.push(field, format_args!("{name:?} is not the name of a protocol, in lower case")),
        }
    }
    upgrades.protocols = protocols.into();
    upgrades
}

impl MirrorSpec {
    fn parse(&self, field: &str, errors: &mut Errors) -> Option<Mirror> {
        let millionths = millionths(self.percent.unwrap_or(100.0) / 100.0);
        if millionths.is_none() {
            errors.push(format_args!("{field}.percent"), "must be from 0 to 100");
        }
        match self.upstream.parse() {
            Ok(upstream) => Some(Mirror { upstream, millionths: millionths? }),
            Err(message) => {
                errors.push(format_args!("{field}.upstream"), message);
                None
            }
        }
    }
}

impl RewriteSpec {
    fn parse(&self, has_prefix: bool, errors: &mut Errors) -> Rewrite {
        let field = "forward.rewrite";
        let given = [self.path_prefix.is_some(), self.path.is_some(), self.path_regex.is_some()];
        if given.iter().filter(|given| **given).count() > 1 {
            errors.push(field, "takes one of path_prefix, path and path_regex");
        }
        let mut path =
            parse_path_rewrite(self.path_prefix.as_deref(), self.path.as_deref(), has_prefix, field, errors);
        if let Some(spec) = &self.path_regex {
            match regex(&spec.pattern) {
                Ok(pattern) => {
                    if let Err(message) = check_substitution(&spec.substitution, &pattern) {
                        errors.push(format_args!("{field}.path_regex.substitution"), message);
                    }
                    path = Some(PathRewrite::Regex {
                        pattern: Arc::new(pattern),
                        substitution: spec.substitution.as_str().into(),
                    });
                }
                Err(message) => errors.push(format_args!("{field}.path_regex.pattern"), message),
            }
        }
        let host = self.host.as_deref().and_then(|host| match check_authority(host) {
            Ok(()) => HeaderValue::from_str(host).ok(),
            Err(message) => {
                errors.push(format_args!("{field}.host"), message);
                None
            }
        });
        Rewrite { path, host }
    }
}

impl RedirectSpec {
    fn parse(&self, has_prefix: bool, errors: &mut Errors) -> Redirect {
        let status = self.status.unwrap_or(302);
        if !matches!(status, 301 | 302 | 303 | 307 | 308) {
            errors.push("redirect.status", "must be 301, 302, 303, 307 or 308");
        }
        if let Some(scheme) = self.scheme.as_deref().filter(|scheme| !matches!(*scheme, "http" | "https")) {
            errors.push("redirect.scheme", format_args!("{scheme:?} is neither http nor https"));
        }
        if let Some(host) = self.host.as_deref().filter(|host| !is_host_name(host)) {
            errors.push("redirect.host", format_args!("{host:?} is not a host name without a port"));
        }
        if self.port == Some(0) {
            errors.push("redirect.port", "must be from 1 to 65535");
        }
        if self.path.is_some() && self.path_prefix.is_some() {
            errors.push("redirect", "takes one of path and path_prefix");
        }
        if self.scheme.is_none()
            && self.host.is_none()
            && self.port.is_none()
            && self.path.is_none()
            && self.path_prefix.is_none()
        {
            errors.push("redirect", "changes nothing: needs one of scheme, host, port, path and path_prefix");
        }
        Redirect {
            scheme: self.scheme.as_deref().map(Into::into),
            host: self.host.as_deref().map(Into::into),
            port: self.port,
            path: parse_path_rewrite(
                self.path_prefix.as_deref(),
                self.path.as_deref(),
                has_prefix,
                "redirect",
                errors,
            ),
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::FOUND),
        }
    }
}

impl RespondSpec {
    pub(crate) fn parse(&self, at: &str, errors: &mut Errors) -> Respond {
        let status = self.status.unwrap_or(200);
        if !(200..600).contains(&status) {
            errors.push(format_args!("{at}.status"), "must be from 200 to 599");
        }
        let body = self.body.clone().unwrap_or_default();
        if body.len() > MAX_BODY {
            errors.push(
                format_args!("{at}.body"),
                format_args!("has {} bytes; at most {MAX_BODY}", body.len()),
            );
        }
        if matches!(status, 204 | 205 | 304) && !body.is_empty() {
            errors.push(format_args!("{at}.body"), format_args!("cannot be sent with status {status}"));
        }
        let mut headers = Vec::with_capacity(self.headers.len() + 1);
        for (name, value) in &self.headers {
            let field = format!("{at}.headers.{name}");
            match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                (Ok(name), _) if is_framing(&name) => errors.push(field, "is set by the proxy"),
                (Ok(name), Ok(value)) => headers.push((name, value)),
                (Err(_), _) => errors.push(field, "is not a header name"),
                (_, Err(_)) => errors.push(field, "has a character that a header value cannot have"),
            }
        }
        if !body.is_empty() && !headers.iter().any(|(name, _)| name == http::header::CONTENT_TYPE) {
            headers.push((http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")));
        }
        Respond {
            status: StatusCode::from_u16(status).unwrap_or_default(),
            body: body.into(),
            headers: headers.into(),
        }
    }
}

/// Headers that frame a message or belong to one connection, which no configuration may set.
fn is_framing(name: &HeaderName) -> bool {
    use http::header;
    [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
    ]
    .contains(name)
}

fn parse_path_rewrite(
    path_prefix: Option<&str>,
    path: Option<&str>,
    has_prefix: bool,
    field: &str,
    errors: &mut Errors,
) -> Option<PathRewrite> {
    if let Some(prefix) = path_prefix {
        if let Err(message) = check_path(prefix) {
            errors.push(format_args!("{field}.path_prefix"), message);
        }
        if !has_prefix {
            errors.push(format_args!("{field}.path_prefix"), "needs every one of match.paths to be a prefix");
        }
        return Some(PathRewrite::Prefix(prefix.into()));
    }
    let path = path?;
    if let Err(message) = check_path(path) {
        errors.push(format_args!("{field}.path"), message);
    }
    Some(PathRewrite::Full(path.into()))
}

fn parse_host(host: &str) -> Result<HostMatch, String> {
    let lower = host.to_ascii_lowercase();
    if let Some(suffix) = lower.strip_prefix("*.").filter(|suffix| is_host_name(suffix)) {
        return Ok(HostMatch::Suffix(suffix.into()));
    }
    if let Some(address) = v6_address(&lower) {
        // An address has many spellings; this is the one that clients use.
        return Ok(HostMatch::Exact(format!("[{address}]").into()));
    }
    if is_host_name(&lower) {
        return Ok(HostMatch::Exact(lower.into()));
    }
    Err(match host {
        "*" => "\"*\" is not needed; leave hosts out for any host".to_owned(),
        _ => format!("{host:?} is not a host name; write admin.example.com or *.example.org, without a port"),
    })
}

/// A name of labels, an IPv4 address, or an IPv6 address in brackets.
pub(crate) fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    v6_address(host).is_some() || (host.len() <= 253 && host.split('.').all(label))
}

fn v6_address(host: &str) -> Option<std::net::Ipv6Addr> {
    host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

/// A host with an optional port, for the `Host` header.
fn check_authority(host: &str) -> Result<(), String> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => Some(name).filter(|_| is_port(port)),
        _ => Some(host),
    };
    match name.is_some_and(is_host_name) {
        true => Ok(()),
        false => Err(format!("{host:?} is not a host name with an optional port")),
    }
}

/// A decimal number from 1 to 65535, and nothing else that would be read as one.
pub(crate) fn is_port(port: &str) -> bool {
    port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// A path that the route index can hold, which follows its segments by recursion.
fn check_match_path(path: &str) -> Result<(), String> {
    check_path(path)?;
    match normalize(path, EscapedSlashes::Keep) {
        Ok(Cow::Borrowed(_)) => {}
        Ok(Cow::Owned(form)) => {
            return Err(format!(
                "{path:?} is never matched: paths are brought into their normal form before, which is {form:?}"
            ));
        }
        Err(bad) => return Err(format!("{path:?} is never matched, but answered 400: {}", bad.as_str())),
    }
    let segments = path.split('/').count() - 1;
    if segments > MAX_SEGMENTS {
        Err(format!("has {segments} segments; at most {MAX_SEGMENTS}"))
    } else {
        Ok(())
    }
}

/// A path that can stand in a request line.
fn check_path(path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err(format!("{path:?} must start with '/'"));
    }
    if path.len() > MAX_TEXT {
        return Err(format!("has {} bytes; at most {MAX_TEXT}", path.len()));
    }
    if let Some(bad) = path.chars().find(|c| !c.is_ascii_graphic() || matches!(c, '?' | '#')) {
        return Err(format!(
            "{path:?} has the character {bad:?}; a path has printable ASCII only (others percent-encoded), without '?' and '#'"
        ));
    }
    Ok(())
}

/// What replaces the matches of a pattern: text of a path, and groups that the pattern has.
fn check_substitution(text: &str, pattern: &Regex) -> Result<(), String> {
    if text.len() > MAX_TEXT {
        return Err(format!("has {} bytes; at most {MAX_TEXT}", text.len()));
    }
    if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
        return Err(format!("{text:?} has the character {bad:?}, which no path has"));
    }
    let mut parts = text.split('$').skip(1);
    while let Some(part) = parts.next() {
        let group = match part.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
            Some((group, _)) => group,
            None => {
                let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                part.get(..end.unwrap_or(part.len())).unwrap_or_default()
            }
        };
        if group.is_empty() {
            // `$$` is a dollar.
            if part.is_empty() && parts.next().is_some() {
                continue;
            }
            return Err(format!("{text:?} has a $ that names no group; $$ is a dollar"));
        }
        let is_there = match group.parse::<usize>() {
            Ok(number) => number < pattern.captures_len(),
            Err(_) => pattern.capture_names().flatten().any(|name| name == group),
        };
        if !is_there {
            return Err(format!(
                "{text:?} refers to the group {group:?}, which the pattern does not have; ${{1}} ends where its brace does"
            ));
        }
    }
    Ok(())
}

/// A regular expression that must match the whole.
fn anchored(text: &str) -> Result<Arc<Regex>, String> {
    regex(text)?;
    regex(&format!("^(?:{text})$")).map(Arc::new)
}

fn regex(text: &str) -> Result<Regex, String> {
    if text.len() > MAX_TEXT {
        return Err(format!("has {} bytes; at most {MAX_TEXT}", text.len()));
    }
    regex::RegexBuilder::new(text).size_limit(MAX_REGEX).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(limit) => format!("compiles to more than {limit} bytes"),
        // The library draws the place over several lines; its last line is the reason.
        error => {
            let text = error.to_string();
            let reason = text.lines().last().unwrap_or_default().trim();
            format!("is not a regular expression: {}", reason.strip_prefix("error: ").unwrap_or(reason))
        }
    })
}

pub(crate) fn parse_names(names: &[String], field: &str, errors: &mut Errors) -> Box<[Name]> {
    if names.len() > MAX_NAMES {
        errors.push(field, format_args!("has {} entries; at most {MAX_NAMES}", names.len()));
    }
    let parsed = collect(names, field, errors, |name| name.parse::<Name>());
    let mut seen = HashSet::new();
    for (index, name) in names.iter().enumerate() {
        if !seen.insert(name) {
            errors.push(format_args!("{field}[{index}]"), format_args!("{name:?} is listed twice"));
        }
    }
    parsed.into()
}

fn collect<T>(
    texts: &[String],
    field: &str,
    errors: &mut Errors,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let mut parsed = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match parse(text) {
            Ok(value) => parsed.push(value),
            Err(message) => errors.push(format_args!("{field}[{index}]"), message),
        }
    }
    parsed
}

fn is_zero(value: &i32) -> bool {
    *value == 0
}
