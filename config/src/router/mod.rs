//! The route index: which route takes a request, and why.

mod explain;
mod map;
mod preflight;
mod request;
mod rule;
mod search;
mod text;
mod tree;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use self::explain::Record;
pub use self::explain::{Candidate, Explanation, LostBy};
use self::map::{Item, Map};
pub use self::preflight::Preflight;
pub use self::request::{Found, RequestParts, Slash};
use self::rule::{Bucket, Entry, PathRegex, Pattern, Rule};
use self::search::{Best, HostPattern, Nothing, Recorder, Search};
use self::tree::Host;
use crate::key::Name;
use crate::route::{HostMatch, PathMatch, PrefixPath, Route};
use crate::template::Segment;

/// All enabled routes, indexed. Persistent: a clone is cheap, and a change copies only its own way through the index.
///
/// Which route takes a request is decided by, in this order: the highest `priority`; an exact host before a wildcard
/// (the longest first) before none; an exact path before a template before a prefix (the longest first) before a
/// regular expression; a route with methods; more header conditions; more query conditions; the name that sorts
/// first. Of templates, the first segment that differs decides: a literal, then `{x}`, then `{*rest}`. A route with
/// several hosts or paths counts with the one that matches best. With `strict_slash`, a request in the other form of a
/// path comes right behind those that have this very form, and so before a shorter prefix or a vaguer template.
///
/// # What a request costs
///
/// Whatever a client sends, a walk looks up at most 127 suffixes of its host, and in each host that it finds: one node
/// for each segment of the path that leading segments of a configured path have; each node of the templates' tree at
/// most once, and of those only nodes whose segments fit (2ⁿ for templates with n variables at most); all regular
/// expressions of the host, each in time proportional to the path. At each of these places conditions are checked for
/// the entries there, one after the other: thousands of routes that differ in nothing but a header are not fast.
/// Nothing is allocated but for a query that conditions ask for, and for more than 8 nested prefixes.
#[derive(Clone)]
pub struct RouteIndex<T> {
    exact: Map<Host<T>>,
    /// By what follows the star and its dot.
    suffix: Map<Host<T>>,
    any: Arc<Host<T>>,
}

impl<T: Clone> RouteIndex<T> {
    /// An index without routes.
    pub fn new() -> Self {
        Self { exact: Map::new(), suffix: Map::new(), any: Arc::new(Host::new("")) }
    }

    /// Adds a route that is not in the index. A route that is not enabled is not added.
    pub fn insert(&mut self, route: &Route, value: T) {
        if !route.enabled {
            return;
        }
        let rule = Arc::new(Rule::new(route));
        self.modify(route, true, &mut |bucket, pattern, path| {
            bucket.insert(&Entry { rule: Arc::clone(&rule), value: value.clone(), pattern, path });
        });
    }

    /// Takes out a route, given as it was inserted.
    pub fn remove(&mut self, route: &Route) {
        self.modify(route, false, &mut |bucket, _, _| bucket.remove(&route.name));
    }

    /// The route that takes the request, by the precedence of the design.
    pub fn find(&self, request: &RequestParts<'_>) -> Option<Found<'_, T>> {
        self.search(request, None, Nothing).0.map(Best::found)
    }

    /// The route for a CORS preflight request: one that names `OPTIONS` among its methods, if it takes the request; else the
    /// one that would take the request that the browser asks about, if `answers` says that it answers preflights; else what
    /// [`find`](Self::find) finds.
    pub fn find_preflight(
        &self,
        request: &RequestParts<'_>,
        preflight: &Preflight<'_>,
        answers: impl Fn(&T) -> bool,
    ) -> Option<Found<'_, T>> {
        let own = self.search(request, None, Nothing).0;
        if own.as_ref().is_some_and(|own| own.entry.rule.names_methods()) {
            return own.map(Best::found);
        }
        let asked = self.search(&preflight.asked(request), Some(preflight), Nothing).0;
        match asked.filter(|asked| answers(&asked.entry.value)) {
            Some(asked) => {
                let is_preflight_only = !asked.entry.rule.takes(request.method);
                Some(Found { is_preflight_only, ..asked.found() })
            }
            None => own.map(Best::found),
        }
    }

    /// The same as [`find`](Self::find), and every other route that host and path led to, with the reason why not.
    pub fn explain(&self, request: &RequestParts<'_>) -> Explanation {
        self.explain_in(request, &|_| true)
    }

    /// The same for a fleet that has only those routes whose names `has` admits.
    pub fn explain_in(&self, request: &RequestParts<'_>, has: &dyn Fn(&Name) -> bool) -> Explanation {
        self.search(request, None, Record::new(has)).1.explain()
    }

    /// The same for [`find_preflight`](Self::find_preflight). Where the request that the browser asks about decides, losers are
    /// told why they do not take that one.
    pub fn explain_preflight(
        &self,
        request: &RequestParts<'_>,
        preflight: &Preflight<'_>,
        has: &dyn Fn(&Name) -> bool,
        answers: impl Fn(&T) -> bool,
    ) -> Explanation {
        let own = self.search(request, None, Record::new(has)).1;
        if own.winner().is_some_and(|own| own.rule.names_methods()) {
            return own.explain();
        }
        let asked = preflight.asked(request);
        let asked = self.search(&asked, Some(preflight), Record::new(has)).1;
        match asked.winner() {
            Some(entry) if answers(&entry.value) => asked.explain(),
            _ => own.explain(),
        }
    }

    fn search<'i, 'r, R: Recorder<'i, 'r, T>>(
        &'i self,
        request: &'r RequestParts<'r>,
        preflight: Option<&'r Preflight<'r>>,
        recorder: R,
    ) -> (Option<Best<'i, T>>, R) {
        let mut search = Search::new(request, preflight, recorder);
        let host = request.host.strip_suffix('.').unwrap_or(request.host);
        if host.len() <= MAX_HOST {
            if let Some(found) = self.exact.find(host) {
                search.visit(HostPattern::Exact(found.pattern()), found);
            }
            if !self.suffix.is_empty() {
                for (at, _) in host.match_indices('.').filter(|(at, _)| *at > 0) {
                    let suffix = host.get(at + 1..).unwrap_or_default();
                    if let Some(found) = self.suffix.find(suffix) {
                        search.visit(HostPattern::Suffix(found.pattern()), found);
                    }
                }
            }
        }
        search.visit(HostPattern::Any, &self.any);
        search.finish()
    }

    /// Changes every bucket that a route has an entry in: with the entry's pattern, and the number of the path that it is of.
    fn modify(
        &mut self,
        route: &Route,
        create: bool,
        change: &mut dyn FnMut(&mut Bucket<T>, Pattern, usize),
    ) {
        let mut change_host = |host: &mut Host<T>| {
            for (index, path) in route.matches.paths.iter().enumerate() {
                let mut change_bucket = |bucket: &mut Bucket<T>, pattern| change(bucket, pattern, index);
                change_path(host, path, route.strict_slash, create, &mut change_bucket);
            }
        };
        for host in &route.matches.hosts {
            match host {
                HostMatch::Exact(name) => self.exact.modify(name, create, &mut change_host),
                HostMatch::Suffix(name) => self.suffix.modify(name, create, &mut change_host),
                HostMatch::Any => change_host(Arc::make_mut(&mut self.any)),
            }
        }
    }
}

impl<T: Clone> Default for RouteIndex<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for RouteIndex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteIndex").finish_non_exhaustive()
    }
}

/// The longest host that a route can name; a longer one is no DNS name, and matches only routes for any host.
const MAX_HOST: usize = 253;

/// Changes every bucket in which a route with this path has an entry.
fn change_path<T: Clone>(
    host: &mut Host<T>,
    path: &PathMatch,
    strict_slash: bool,
    create: bool,
    change: &mut dyn FnMut(&mut Bucket<T>, Pattern),
) {
    match path {
        PathMatch::Exact(path) => {
            host.paths.modify(path, create, &mut |node| change(&mut node.exact, Pattern::Exact(None)));
            if let Some((other, slash)) = other_form(path).filter(|_| strict_slash) {
                let pattern = Pattern::Exact(Some(slash));
                host.paths.modify(&other, create, &mut |node| change(&mut node.exact, pattern.clone()));
            }
        }
        PathMatch::Prefix(PrefixPath { path, trailing_slash }) => {
            let pattern = Pattern::Prefix { trailing_slash: *trailing_slash };
            host.paths.modify(path, create, &mut |node| change(&mut node.prefix, pattern.clone()));
        }
        PathMatch::Template(template) => {
            let text: Arc<str> = template.as_str().into();
            let pattern = |slash| Pattern::Template { slash, text: text.clone() };
            let segments = template.segments();
            host.modify_template(segments, create, &mut |ends| change(ends, pattern(None)));
            if let Some((other, slash)) = other_segments(segments).filter(|_| strict_slash) {
                host.modify_template(&other, create, &mut |ends| change(ends, pattern(Some(slash))));
            }
        }
        PathMatch::Regex(regex, source) => {
            let pattern = PathRegex { regex: regex.clone(), source: source.clone() };
            change(&mut host.regexes, Pattern::Regex(Arc::new(pattern)));
        }
    }
}

/// The path with its last slash taken off or one added, and what then leads a request back. The path `/` has none.
fn other_form(path: &str) -> Option<(Cow<'_, str>, Slash)> {
    match path.strip_suffix('/') {
        Some("" | "/") => None,
        Some(without) => Some((without.into(), Slash::Add)),
        None => Some((format!("{path}/").into(), Slash::Remove)),
    }
}

/// The same for a template; one that takes all that is left has none.
fn other_segments(segments: &[Segment]) -> Option<(Vec<Segment>, Slash)> {
    match segments {
        [] | [.., Segment::Rest] => None,
        [Segment::Literal(only)] if only.is_empty() => None,
        [first, Segment::Literal(last)] if last.is_empty() && *first == Segment::Literal("".into()) => None,
        [without @ .., Segment::Literal(last)] if last.is_empty() => Some((without.to_vec(), Slash::Add)),
        _ => {
            let mut with = segments.to_vec();
            with.push(Segment::Literal("".into()));
            Some((with, Slash::Remove))
        }
    }
}
