//! The part that the entries of one route share: its rank and the conditions beyond host and path.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use http::{HeaderMap, Method};
use percent_encoding::percent_decode;
use regex::Regex;

use super::preflight::Preflight;
use super::request::{RequestParts, Slash};
use crate::key::Name;
use crate::route::{HeaderMatch, QueryMatch, Route, ValueMatch};

/// One route, as its entries share it.
pub(super) struct Rule {
    pub(super) name: Name,
    pub(super) priority: i32,
    pub(super) strict_slash: bool,
    methods: Methods,
    /// `None` when host, path and method are all that is asked, which is the usual case and then costs nothing.
    conditions: Option<Box<Conditions>>,
}

struct Conditions {
    listeners: Option<Box<[Name]>>,
    headers: Box<[HeaderMatch]>,
    query: Box<[QueryMatch]>,
}

/// The first condition that a request does not meet.
#[derive(Clone, Copy)]
pub(super) enum Mismatch<'i> {
    /// Only told by those who ask for a fleet: a proxy has no routes of others.
    Fleet,
    Listener,
    Method,
    Header(&'i HeaderMatch),
    Query(&'i QueryMatch),
}

impl Rule {
    pub(super) fn new(route: &Route) -> Self {
        let matches = &route.matches;
        let any = route.listeners.is_none() && matches.headers.is_empty() && matches.query.is_empty();
        let conditions = || {
            Box::new(Conditions {
                listeners: route.listeners.clone(),
                headers: matches.headers.clone(),
                query: matches.query.clone(),
            })
        };
        Self {
            name: route.name.clone(),
            priority: route.priority,
            strict_slash: route.strict_slash,
            methods: Methods::new(&matches.methods),
            conditions: (!any).then(conditions),
        }
    }

    /// True if a method is given, then the numbers of header and query matches: more of each wins, in this order.
    pub(super) fn conditions_rank(&self) -> (bool, usize, usize) {
        let conditions = self.conditions.as_ref();
        let (headers, query) = conditions.map_or((0, 0), |all| (all.headers.len(), all.query.len()));
        (!self.methods.is_any(), headers, query)
    }

    /// True if it has a list of methods.
    pub(super) fn names_methods(&self) -> bool {
        !self.methods.is_any()
    }

    pub(super) fn takes(&self, method: &Method) -> bool {
        self.methods.take(method)
    }

    /// Checks the request's conditions. A header that a preflight announces is taken to have the value that is asked for.
    pub(super) fn check<'r>(
        &self,
        request: &RequestParts<'r>,
        preflight: Option<&Preflight<'_>>,
        query: &Query<'r>,
    ) -> Result<(), Mismatch<'_>> {
        if let Some(conditions) = &self.conditions
            && let Some(listeners) = &conditions.listeners
            && !listeners.iter().any(|name| name.as_str() == request.listener)
        {
            return Err(Mismatch::Listener);
        }
        if !self.methods.take(request.method) {
            return Err(Mismatch::Method);
        }
        let Some(conditions) = &self.conditions else { return Ok(()) };
        let header = |wanted: &&HeaderMatch| {
            !header_matches(wanted, request.headers)
                && !preflight.is_some_and(|preflight| preflight.announces(&wanted.name))
        };
        if let Some(missed) = conditions.headers.iter().find(header) {
            return Err(Mismatch::Header(missed));
        }
        let parameter = |wanted: &&QueryMatch| {
            let value = query.first(request.query, wanted.name.as_bytes());
            matches(&wanted.value, value.into_iter()) == wanted.invert
        };
        if let Some(missed) = conditions.query.iter().find(parameter) {
            return Err(Mismatch::Query(missed));
        }
        Ok(())
    }
}

/// Which methods. Those that everybody knows are bits, so that the usual ones cost no further look into memory.
struct Methods {
    known: u16,
    others: Option<Box<[Method]>>,
}

impl Methods {
    fn new(methods: &[Method]) -> Self {
        let others: Box<[Method]> = methods.iter().filter(|method| bit_of(method) == 0).cloned().collect();
        Self {
            known: methods.iter().fold(0, |known, method| known | bit_of(method)),
            others: (!others.is_empty()).then_some(others),
        }
    }

    fn is_any(&self) -> bool {
        self.known == 0 && self.others.is_none()
    }

    fn take(&self, method: &Method) -> bool {
        self.is_any()
            || self.known & bit_of(method) != 0
            || self.others.as_ref().is_some_and(|others| others.contains(method))
    }
}

/// The bit of a method that everybody knows; 0 for others.
fn bit_of(method: &Method) -> u16 {
    match method.as_str() {
        "GET" => 1,
        "POST" => 1 << 1,
        "PUT" => 1 << 2,
        "DELETE" => 1 << 3,
        "HEAD" => 1 << 4,
        "OPTIONS" => 1 << 5,
        "PATCH" => 1 << 6,
        "CONNECT" => 1 << 7,
        "TRACE" => 1 << 8,
        _ => 0,
    }
}

/// A way to reach a rule: one of its paths, at its place in the index.
#[derive(Clone)]
pub(super) struct Entry<T> {
    pub(super) rule: Arc<Rule>,
    /// The value that was stored with the route. It is not in the rule, so that a processor can fetch it while it fetches the rule.
    pub(super) value: T,
    pub(super) pattern: Pattern,
    /// The number of the path among the route's.
    pub(super) path: usize,
}

/// The path of an entry, as far as its place does not say it.
#[derive(Clone)]
pub(super) enum Pattern {
    /// The slash says that the place is not that of the path, but of its other form.
    Exact(Option<Slash>),
    Prefix {
        /// Written with a slash at the end.
        trailing_slash: bool,
    },
    Template {
        slash: Option<Slash>,
        text: Arc<str>,
    },
    Regex(Arc<PathRegex>),
}

pub(super) struct PathRegex {
    pub(super) regex: Arc<Regex>,
    pub(super) source: Box<str>,
}

impl Pattern {
    pub(super) fn slash(&self) -> Option<Slash> {
        match self {
            Self::Exact(slash) | Self::Template { slash, .. } => *slash,
            Self::Prefix { .. } | Self::Regex(_) => None,
        }
    }
}

/// The entries of one place, the one to be preferred first.
#[derive(Clone)]
pub(super) enum Bucket<T> {
    Empty,
    /// As it is nearly everywhere; in place, for that is one miss of the cache less.
    One(Entry<T>),
    Many(Arc<[Entry<T>]>),
}

impl<T: Clone> Bucket<T> {
    pub(super) fn entries(&self) -> &[Entry<T>] {
        match self {
            Self::Empty => &[],
            Self::One(entry) => std::slice::from_ref(entry),
            Self::Many(entries) => entries,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    pub(super) fn max_priority(&self) -> Option<i32> {
        self.entries().first().map(|entry| entry.rule.priority)
    }

    pub(super) fn insert(&mut self, entry: &Entry<T>) {
        let old = self.entries();
        let at = old.partition_point(|known| known.cmp(entry) == Ordering::Less);
        let (before, after) = old.split_at(at);
        *self = match old {
            [] => Self::One(entry.clone()),
            _ => Self::Many(before.iter().chain([entry]).chain(after).cloned().collect()),
        };
    }

    /// Takes out what belongs to the route `name`.
    pub(super) fn remove(&mut self, name: &Name) {
        let left: Vec<_> = self.entries().iter().filter(|entry| entry.rule.name != *name).cloned().collect();
        *self = match <[_; 1]>::try_from(left) {
            Ok([only]) => Self::One(only),
            Err(left) if left.is_empty() => Self::Empty,
            Err(left) => Self::Many(left.into()),
        };
    }
}

impl<T> Entry<T> {
    /// The order of preference at one place.
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |entry: &Self| {
            (
                Reverse(entry.rule.priority),
                entry.pattern.slash().is_some(),
                Reverse(entry.rule.conditions_rank()),
            )
        };
        key(self).cmp(&key(other)).then_with(|| self.rule.name.cmp(&other.rule.name))
    }
}

/// The parameters of a request's query, decoded when the first condition asks for one.
#[derive(Default)]
pub(super) struct Query<'r> {
    /// Sorted by name, each name once.
    parameters: OnceCell<Vec<Parameter<'r>>>,
}

/// Name and value, decoded.
type Parameter<'r> = (Cow<'r, [u8]>, Cow<'r, [u8]>);

impl<'r> Query<'r> {
    /// The value of the first parameter called `name`.
    fn first(&self, query: Option<&'r str>, name: &[u8]) -> Option<&[u8]> {
        let parameters = self.parameters.get_or_init(|| {
            let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
            let mut parameters: Vec<_> = pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect();
            // A stable sort: of one name, the first stays first.
            parameters.sort_by(|a, b| a.0.cmp(&b.0));
            parameters.dedup_by(|later, first| later.0 == first.0);
            parameters
        });
        let at = parameters.binary_search_by(|(known, _)| known.as_ref().cmp(name)).ok()?;
        parameters.get(at).map(|(_, value)| value.as_ref())
    }
}

/// Percent-decoded, a plus sign being a space.
fn decode(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('+') {
        return percent_decode(text.as_bytes()).into();
    }
    let spaced = text.replace('+', " ");
    Cow::Owned(percent_decode(spaced.as_bytes()).collect())
}

/// Any value of a header that is there several times may match.
fn header_matches(wanted: &HeaderMatch, headers: &HeaderMap) -> bool {
    let values = headers.get_all(&wanted.name).iter().map(http::HeaderValue::as_bytes);
    matches(&wanted.value, values) != wanted.invert
}

fn matches<'v>(wanted: &ValueMatch, mut values: impl Iterator<Item = &'v [u8]>) -> bool {
    match wanted {
        ValueMatch::Exact(text) => values.any(|value| value == text.as_bytes()),
        ValueMatch::Prefix(text) => values.any(|value| value.starts_with(text.as_bytes())),
        ValueMatch::Regex(regex) => {
            values.any(|value| std::str::from_utf8(value).is_ok_and(|text| regex.is_match(text)))
        }
        ValueMatch::Present(wanted) => values.next().is_some() == *wanted,
    }
}
