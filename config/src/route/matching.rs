//! The match of a route: the requests that it takes.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderName, Method};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::text::{MAX_TEXT, anchored, check_path};
use crate::authority::{is_host_name, v6_address};
use crate::error::{Errors, FieldError};
use crate::matchable::{self, Subject};
use crate::names::parse_each;
use crate::path::{EscapedSlashes, encode, encode_template, normalize};
use crate::template::Template;

/// The requests that a route takes. A request matches when it fits one entry of each list of hosts, paths and methods, and all
/// entries of headers and query.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MatchSpec {
    /// Host names: `admin.example.com`, or `*.example.org`, whose star stands for one or more labels. Absent: any host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Paths, each by one of four kinds of match. Absent: any path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathSpec>,
    /// HTTP methods in upper case. `GET` does not include `HEAD`. Absent: any method.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Conditions on headers, which must all hold. If a header is there several times, one of its values must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<ValueMatchSpec>,
    /// Conditions on query parameters, which must all hold. Names and values are percent-decoded. If a parameter is there several
    /// times, its first value counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<ValueMatchSpec>,
}

impl MatchSpec {
    pub(super) fn is_empty(&self) -> bool {
        self.hosts.is_empty()
            && self.paths.is_empty()
            && self.methods.is_empty()
            && self.headers.is_empty()
            && self.query.is_empty()
    }
}

/// A match on the path: an object with one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum PathSpec {
    /// Matches this path only.
    Exact(String),
    /// Matches this path and all paths below it, by whole segments: `/a` matches `/a`, `/a/` and `/a/b`, but not `/ab`.
    Prefix(String),
    /// Matches a template: `{name}` stands for one segment, `{*name}` at the end for all remaining segments, at least one.
    Template(String),
    /// Matches a regular expression against the whole path.
    Regex(String),
}

/// A condition on a header or a query parameter. It has exactly one of `exact`, `prefix`, `regex` and `present`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValueMatchSpec {
    /// The name of the header or parameter. Upper and lower case do not matter in names of headers.
    pub name: String,
    /// Matches this value only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// Matches values that start with this text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Matches a regular expression against the whole value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// True: the header or parameter must be present. False: it must be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<bool>,
    /// Inverts the condition: it holds for requests that do not match, also those without the header or parameter.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub invert: bool,
}

/// The requests that a route takes.
#[derive(Debug, Clone)]
pub struct RouteMatch {
    /// Never empty: any host is [`HostMatch::Any`].
    pub hosts: Box<[HostMatch]>,
    /// Never empty: any path is the prefix `/`.
    pub paths: Box<[PathMatch]>,
    /// Empty: any method.
    pub methods: Box<[Method]>,
    /// Conditions that must all hold.
    pub headers: Box<[HeaderMatch]>,
    /// Conditions that must all hold.
    pub query: Box<[QueryMatch]>,
}

/// A match on the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostMatch {
    /// This host only, in lower case and without a port.
    Exact(Box<str>),
    /// `*.example.org` is `example.org`: any host with one or more labels before it.
    Suffix(Box<str>),
    /// Any host.
    Any,
}

/// A match on the path.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// This path only.
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
    /// True if it was written with a slash at the end, which matters only with `strict_slash`.
    pub trailing_slash: bool,
}

/// A condition on a header.
#[derive(Debug, Clone)]
pub struct HeaderMatch {
    /// The name of the header.
    pub name: HeaderName,
    /// The condition on its value.
    pub value: ValueMatch,
    /// True if the condition holds for requests that do not match.
    pub invert: bool,
}

/// A condition on a query parameter.
#[derive(Debug, Clone)]
pub struct QueryMatch {
    /// The name of the parameter, decoded.
    pub name: Box<str>,
    /// The condition on its decoded value.
    pub value: ValueMatch,
    /// True if the condition holds for requests that do not match.
    pub invert: bool,
}

/// A condition on a value.
#[derive(Debug, Clone)]
pub enum ValueMatch {
    /// The value is this text.
    Exact(Box<str>),
    /// The value starts with this text.
    Prefix(Box<str>),
    /// The expression matches the whole value.
    Regex(Arc<Regex>),
    /// The header or parameter is there (true) or is not (false).
    Present(bool),
}

/// The most entries in a list of a match.
pub(super) const MAX_MATCHES: usize = 100;
const MAX_SEGMENTS: usize = 128;

impl MatchSpec {
    /// Finds patterns that match nothing, and header texts that no header has.
    pub(super) fn check_written(&self) -> Vec<FieldError> {
        let mut found = Vec::new();
        let mut check = |field: String, result: Result<(), String>| {
            found.extend(result.err().map(|message| FieldError::new(field, message)));
        };
        for (index, path) in self.paths.iter().enumerate().take(MAX_MATCHES) {
            if let PathSpec::Regex(pattern) = path {
                check(format!("match.paths[{index}].regex"), matchable::check(pattern, Subject::Path));
            }
        }
        for (index, header) in self.headers.iter().enumerate().take(MAX_MATCHES) {
            let field = |kind| format!("match.headers[{index}].{kind}");
            if let Some(pattern) = &header.regex {
                check(field("regex"), matchable::check(pattern, Subject::Header));
            }
            for (kind, text) in [("exact", &header.exact), ("prefix", &header.prefix)] {
                let Some(text) = text else { continue };
                check(field(kind), matchable::check_header_text(text, kind == "prefix"));
            }
        }
        for (index, parameter) in self.query.iter().enumerate().take(MAX_MATCHES) {
            if let Some(pattern) = &parameter.regex {
                check(format!("match.query[{index}].regex"), matchable::check(pattern, Subject::Text));
            }
        }
        for (list, matches) in [("headers", &self.headers), ("query", &self.query)] {
            for (index, wanted) in matches.iter().enumerate() {
                if wanted.prefix.as_deref() == Some("") {
                    let message = "must not be empty, for every value begins so; use `present: true`";
                    check(format!("match.{list}[{index}].prefix"), Err(message.to_owned()));
                }
            }
        }
        found
    }

    pub(super) fn parse(&self, errors: &mut Errors) -> RouteMatch {
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
        let mut hosts: Vec<HostMatch> = parse_each(&self.hosts, "match.hosts", errors, parse_host);
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
        let methods = parse_each(&self.methods, "match.methods", errors, |method| {
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
