//! Why a request got the route that it got.

use std::cmp::Reverse;
use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::request::Slash;
use super::rule::{Entry, Mismatch, Pattern, Rule};
use super::search::{HostPattern, Reached, Recorder};
use crate::key::Name;
use crate::route::PathSpec;

/// The route that takes a request, and the others that host and path led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The route that takes the request. Absent: no route does.
    pub winner: Option<Candidate>,
    /// The other routes whose host and path match, the closest first. Each route is listed once, with its closest match. Routes that
    /// are not enabled are left out.
    pub losers: Vec<Candidate>,
    /// True if there are more such routes than `losers` lists.
    pub truncated: bool,
}

/// A route that host and path of a request lead to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Candidate {
    /// The name of the route.
    pub route: String,
    /// The host pattern that matches, as in a route: `admin.example.com`, `*.example.org`. Absent: any host.
    pub host: Option<String>,
    /// The path that matches, as in a route.
    pub path: PathSpec,
    /// The priority of the route.
    pub priority: i32,
    /// The redirect that `strict_slash` asks for, if the route wins.
    pub slash: Option<Slash>,
    /// The reason why the route does not take the request. Absent: it does.
    pub lost_by: Option<LostBy>,
    /// The reason for a person, in one sentence.
    pub reason: String,
}

/// The reason why a route does not take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LostBy {
    /// The fleet does not get the route.
    Fleet,
    /// The route is for other listeners.
    Listener,
    /// The route does not take the method.
    Method,
    /// A condition on a header is not met.
    Header,
    /// A condition on a query parameter is not met.
    Query,
    /// The winner has a higher priority.
    Priority,
    /// The winner's host is more specific.
    HostRank,
    /// The winner's path has a kind of match that goes first.
    PathKind,
    /// The winner's path is more specific: a longer prefix, or a template with a literal where this has a variable.
    PathRank,
    /// The winner has the same slash at the end of the path. This route would redirect to its own form.
    SlashRank,
    /// The winner names its methods.
    MethodRank,
    /// The winner has more header conditions.
    HeaderCount,
    /// The winner has more query conditions.
    QueryCount,
    /// All else is equal, and the winner's name sorts first.
    Name,
}

impl Explanation {
    /// The most losers that are listed.
    pub const MAX_LOSERS: usize = 100;
}

/// Keeps what the walk reaches, in its order.
pub(super) struct Record<'i, 'r, T> {
    has: &'r dyn Fn(&Name) -> bool,
    reached: Vec<Reached<'i, 'r, T>>,
    /// Index of the best of them whose conditions are met.
    winner: Option<usize>,
    truncated: bool,
}

/// How many entries are kept before the best are picked: enough for any set of routes that people can oversee.
const MAX_REACHED: usize = 10_000;

impl<'r, T> Record<'_, 'r, T> {
    /// Takes only the routes that `has` admits for routes of the proxy.
    pub(super) fn new(has: &'r dyn Fn(&Name) -> bool) -> Self {
        Self { has, reached: Vec::new(), winner: None, truncated: false }
    }
}

impl<'i, 'r, T> Recorder<'i, 'r, T> for Record<'i, 'r, T> {
    const ALL: bool = true;

    fn reached(&mut self, mut reached: Reached<'i, 'r, T>) {
        if !(self.has)(&reached.entry.rule.name) {
            reached.outcome = Err(Mismatch::Fleet);
        }
        let priority = |index: usize| self.reached.get(index).map(|reached| reached.entry.rule.priority);
        let wins =
            reached.outcome.is_ok() && Some(reached.entry.rule.priority) > self.winner.and_then(priority);
        if self.reached.len() >= MAX_REACHED && !wins {
            self.truncated = true;
            return;
        }
        if wins {
            self.winner = Some(self.reached.len());
        }
        self.reached.push(reached);
    }
}

impl<'i, T> Record<'i, '_, T> {
    /// The route that takes the request.
    pub(super) fn winner(&self) -> Option<&'i Entry<T>> {
        Some(self.reached.get(self.winner?)?.entry)
    }

    pub(super) fn explain(self) -> Explanation {
        let winner = self.winner.and_then(|index| self.reached.get(index));
        let mut others: Vec<_> = self.reached.iter().collect();
        // Those whose conditions are met came closer. The sort is stable: among equals the walk's order remains, which
        // is that of preference.
        others.sort_by_key(|reached| (reached.outcome.is_err(), Reverse(reached.entry.rule.priority)));
        let mut seen: HashSet<*const Rule> = HashSet::new();
        seen.extend(winner.map(|winner| std::ptr::from_ref(&*winner.entry.rule)));
        others.retain(|reached| seen.insert(std::ptr::from_ref(&*reached.entry.rule)));
        Explanation {
            winner: winner.map(|winner| winner.candidate(None, "wins".to_owned())),
            truncated: self.truncated || others.len() > Explanation::MAX_LOSERS,
            losers: others
                .into_iter()
                .take(Explanation::MAX_LOSERS)
                .map(|reached| {
                    let (lost_by, reason) = reached.why_not(winner);
                    reached.candidate(Some(lost_by), reason)
                })
                .collect(),
        }
    }
}

impl<T> Reached<'_, '_, T> {
    fn candidate(&self, lost_by: Option<LostBy>, reason: String) -> Candidate {
        Candidate {
            route: self.entry.rule.name.to_string(),
            host: match self.host {
                HostPattern::Exact(host) => Some(host.as_str().to_owned()),
                HostPattern::Suffix(suffix) => Some(format!("*.{}", suffix.as_str())),
                HostPattern::Any => None,
            },
            path: self.path(),
            priority: self.entry.rule.priority,
            slash: self.slash,
            lost_by,
            reason,
        }
    }

    fn why_not(&self, winner: Option<&Self>) -> (LostBy, String) {
        match (&self.outcome, winner) {
            (Err(Mismatch::Fleet), _) => (LostBy::Fleet, "is not in this fleet".to_owned()),
            (Err(Mismatch::Listener), _) => (LostBy::Listener, "is not on this listener".to_owned()),
            (Err(Mismatch::Method), _) => (LostBy::Method, "does not take this method".to_owned()),
            (Err(Mismatch::Header(header)), _) => {
                (LostBy::Header, format!("the header {:?} is not what it asks for", header.name.as_str()))
            }
            (Err(Mismatch::Query(query)), _) => {
                (LostBy::Query, format!("the query parameter {:?} is not what it asks for", query.name))
            }
            (Ok(()), Some(winner)) => self.outranked_by(winner),
            // Not reached: where an entry's conditions are met there is a winner.
            (Ok(()), None) => (LostBy::Name, "does not win".to_owned()),
        }
    }

    /// The first part of the precedence in which `winner` is ahead.
    fn outranked_by(&self, winner: &Self) -> (LostBy, String) {
        let (rule, best) = (&self.entry.rule, &winner.entry.rule);
        let name = best.name.as_str();
        if best.priority != rule.priority {
            let reason =
                format!("{name:?} has the higher priority: {} before {}", best.priority, rule.priority);
            return (LostBy::Priority, reason);
        }
        if winner.host != self.host {
            return (LostBy::HostRank, format!("the host of {name:?} is more specific"));
        }
        let (kind, best_kind) = (self.kind(), winner.kind());
        if kind != best_kind {
            return (LostBy::PathKind, format!("{name:?} matches by {best_kind}, which goes before {kind}"));
        }
        if winner.place != self.place {
            let takes_rest = |template: &str| template.ends_with('}') && template.contains("/{*");
            let reason = match &self.entry.pattern {
                Pattern::Template { text, .. } if takes_rest(text) => {
                    format!("the template of {name:?} is more specific; this one takes all that is left")
                }
                Pattern::Template { .. } => {
                    format!("the template of {name:?} has a literal where this one has a variable")
                }
                _ => format!("the prefix of {name:?} is longer"),
            };
            return (LostBy::PathRank, reason);
        }
        if winner.slash.is_none() && self.slash.is_some() {
            let reason =
                format!("{name:?} has this very form of the path; this one would redirect to its own");
            return (LostBy::SlashRank, reason);
        }
        let ((method, headers, query), (best_method, best_headers, best_query)) =
            (rule.conditions_rank(), best.conditions_rank());
        if best_method != method {
            return (LostBy::MethodRank, format!("{name:?} names its methods"));
        }
        if best_headers != headers {
            let reason = format!("{name:?} has more header conditions: {best_headers} against {headers}");
            return (LostBy::HeaderCount, reason);
        }
        if best_query != query {
            let reason = format!("{name:?} has more query conditions: {best_query} against {query}");
            return (LostBy::QueryCount, reason);
        }
        (LostBy::Name, format!("all else being equal, the name {name:?} sorts first"))
    }

    fn kind(&self) -> &'static str {
        match self.entry.pattern {
            Pattern::Exact(_) => "exact path",
            Pattern::Template { .. } => "template",
            Pattern::Prefix { .. } => "prefix",
            Pattern::Regex(_) => "regular expression",
        }
    }

    /// The path as the route has it.
    fn path(&self) -> PathSpec {
        match &self.entry.pattern {
            Pattern::Exact(None) => PathSpec::Exact(self.matched.to_owned()),
            Pattern::Exact(Some(Slash::Add)) => PathSpec::Exact(format!("{}/", self.matched)),
            Pattern::Exact(Some(Slash::Remove)) => {
                PathSpec::Exact(self.matched.strip_suffix('/').unwrap_or(self.matched).to_owned())
            }
            Pattern::Prefix { trailing_slash: false } => PathSpec::Prefix(self.matched.to_owned()),
            Pattern::Prefix { trailing_slash: true } => PathSpec::Prefix(format!("{}/", self.matched)),
            Pattern::Template { text, .. } => PathSpec::Template(text.to_string()),
            Pattern::Regex(regex) => PathSpec::Regex(regex.source.to_string()),
        }
    }
}
