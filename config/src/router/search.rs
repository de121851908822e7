//! The walk through the index, with or without a recorder.

use smallvec::SmallVec;

use super::preflight::Preflight;
use super::request::{Found, RequestParts, Slash};
use super::rule::{Bucket, Entry, Mismatch, Pattern, Query};
use super::text::Text;
use super::tree::{Host, PathNode, TemplateNode};

/// Told of every entry that the walk reaches, in the order of preference among equal priorities.
pub(super) trait Recorder<'i, 'r, T> {
    /// True if the walk must visit every entry that host and path lead to, and not only those that can still win.
    const ALL: bool;

    /// `outcome`: whether the request meets the rule's conditions.
    fn reached(&mut self, reached: Reached<'i, 'r, T>);
}

/// No recorder, at no cost.
pub(super) struct Nothing;

impl<T> Recorder<'_, '_, T> for Nothing {
    const ALL: bool = false;

    fn reached(&mut self, _: Reached<'_, '_, T>) {}
}

/// An entry that was reached, and how.
pub(super) struct Reached<'i, 'r, T> {
    pub(super) entry: &'i Entry<T>,
    pub(super) host: HostPattern<'i>,
    /// Counts the places: entries of one place have the same number.
    pub(super) place: usize,
    /// The part of the request's path that an exact path or a prefix is compared with.
    pub(super) matched: &'r str,
    pub(super) slash: Option<Slash>,
    pub(super) outcome: Result<(), Mismatch<'i>>,
}

/// The host pattern that led to an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum HostPattern<'i> {
    Exact(&'i Text),
    Suffix(&'i Text),
    Any,
}

/// The best entry so far, and how it was reached.
pub(super) struct Best<'i, T> {
    pub(super) entry: &'i Entry<T>,
    prefix_len: usize,
    slash: Option<Slash>,
}

impl<'i, T> Best<'i, T> {
    pub(super) fn found(self) -> Found<'i, T> {
        let Self { entry, prefix_len, slash } = self;
        Found { value: &entry.value, path: entry.path, prefix_len, slash, is_preflight_only: false }
    }
}

/// The state of one walk. Hosts are visited from the most to the least specific.
pub(super) struct Search<'i, 'r, T, R> {
    request: &'r RequestParts<'r>,
    /// The request is the one that this preflight asks about.
    preflight: Option<&'r Preflight<'r>>,
    query: Query<'r>,
    best: Option<Best<'i, T>>,
    host: HostPattern<'i>,
    place: usize,
    pub(super) recorder: R,
}

impl<'i, 'r, T: Clone, R: Recorder<'i, 'r, T>> Search<'i, 'r, T, R> {
    pub(super) fn new(
        request: &'r RequestParts<'r>,
        preflight: Option<&'r Preflight<'r>>,
        recorder: R,
    ) -> Self {
        let (query, host) = (Query::default(), HostPattern::Any);
        Self { request, preflight, query, best: None, host, place: 0, recorder }
    }

    pub(super) fn finish(self) -> (Option<Best<'i, T>>, R) {
        (self.best, self.recorder)
    }

    /// Visits what the index has for one host pattern, from the most to the least specific kind of path.
    pub(super) fn visit(&mut self, pattern: HostPattern<'i>, host: &'i Host<T>) {
        if self.is_beaten(|| super::map::Item::max_priority(host)) {
            return;
        }
        self.host = pattern;
        let path = self.request.path;
        // Only `OPTIONS *` has a path without a slash in front. It is below nothing, so only routes take it that take all paths.
        if path == "*" {
            self.visit_prefix(&host.paths.prefix, 0);
        } else if let Some(path) = path.strip_prefix('/') {
            let mut prefixes = SmallVec::new();
            self.visit_exact(&host.paths, path, &mut prefixes);
            if let Some(templates) = &host.templates {
                self.visit_template(templates, Some(path));
            }
            for (bucket, len) in prefixes.into_iter().rev() {
                self.visit_prefix(bucket, len);
            }
        }
        self.visit_bucket(&host.regexes, 0, |entry| match &entry.pattern {
            Pattern::Regex(path_regex) if path_regex.regex.is_match(path) => Some(None),
            _ => None,
        });
    }

    /// Visits the entries of the exact path, and gathers the prefixes on the way. It looks at one node for each
    /// segment, up to the first that no path of the configuration has.
    fn visit_exact(
        &mut self,
        root: &'i PathNode<T>,
        path: &str,
        prefixes: &mut SmallVec<[(&'i Bucket<T>, usize); 8]>,
    ) {
        let (mut node, mut left, mut len) = (root, Some(path), 0);
        loop {
            if !node.prefix.is_empty() {
                prefixes.push((&node.prefix, len));
            }
            let Some(path) = left else { break };
            let (segment, below) = split(path);
            let Some(child) = node.children.find(segment) else { return };
            len += 1 + segment.len();
            (node, left) = (child, below);
        }
        self.visit_bucket(&node.exact, 0, |entry| Some(entry.pattern.slash()));
    }

    fn visit_prefix(&mut self, bucket: &'i Bucket<T>, len: usize) {
        // Which form of the slash another one is redirected to; nothing is redirected from `/`.
        let redirect = match self.request.path.len().saturating_sub(len) {
            _ if self.request.path.len() <= 1 => None,
            0 => Some((true, Slash::Add)),
            1 => Some((false, Slash::Remove)),
            _ => None,
        };
        let slash_of = move |entry: &Entry<T>| match (&entry.pattern, redirect) {
            (Pattern::Prefix { trailing_slash }, Some((wrong, slash)))
                if entry.rule.strict_slash && *trailing_slash == wrong =>
            {
                Some(slash)
            }
            _ => None,
        };
        self.visit_bucket(bucket, len, |entry| slash_of(entry).is_none().then_some(None));
        if redirect.is_some() {
            self.visit_same_bucket(bucket, len, |entry| slash_of(entry).map(Some));
        }
    }

    /// Visits templates, those first that have a literal where others have a variable.
    ///
    /// The recursion is as deep as the templates of the configuration are, which parsing bounds; and it comes to each
    /// node of their tree at most once.
    fn visit_template(&mut self, node: &'i TemplateNode<T>, left: Option<&str>) {
        if self.is_beaten(|| super::map::Item::max_priority(node)) {
            return;
        }
        let Some(path) = left else {
            if let Some(entries) = &node.entries {
                self.visit_bucket(&entries.ends, 0, |entry| Some(entry.pattern.slash()));
            }
            return;
        };
        let (segment, below) = split(path);
        if let Some(child) = node.literals.find(segment) {
            self.visit_template(child, below);
        }
        if let Some(child) = node.any.as_deref().filter(|_| !segment.is_empty()) {
            self.visit_template(child, below);
        }
        if let Some(entries) = node.entries.as_ref().filter(|_| !path.is_empty()) {
            self.visit_bucket(&entries.rest, 0, |_| Some(None));
        }
    }

    /// Visits the entries of a place. `takes` says whether the path of an entry is that of the request, and with which
    /// redirect.
    fn visit_bucket(
        &mut self,
        bucket: &'i Bucket<T>,
        prefix_len: usize,
        takes: impl Fn(&'i Entry<T>) -> Option<Option<Slash>>,
    ) {
        self.place += 1;
        self.visit_same_bucket(bucket, prefix_len, takes);
    }

    fn visit_same_bucket(
        &mut self,
        bucket: &'i Bucket<T>,
        prefix_len: usize,
        takes: impl Fn(&'i Entry<T>) -> Option<Option<Slash>>,
    ) {
        for entry in bucket.entries() {
            if self.is_beaten(|| Some(entry.rule.priority)) {
                // The entries are sorted by priority.
                return;
            }
            let outcome = entry.rule.check(self.request, self.preflight, &self.query);
            if !R::ALL && outcome.is_err() {
                continue;
            }
            // After the conditions, for this may have to run a regular expression.
            let Some(slash) = takes(entry) else { continue };
            let (host, place) = (self.host, self.place);
            if R::ALL {
                let path = self.request.path;
                let is_prefix = matches!(entry.pattern, Pattern::Prefix { .. });
                let matched = if is_prefix { path.get(..prefix_len).unwrap_or_default() } else { path };
                self.recorder.reached(Reached { entry, host, place, matched, slash, outcome });
            }
            let wins = match &self.best {
                Some(best) => entry.rule.priority > best.entry.rule.priority,
                None => true,
            };
            if outcome.is_ok() && wins {
                self.best = Some(Best { entry, prefix_len, slash });
            }
        }
    }

    /// True if no entry of at most this priority can win any more: the walk visits more specific entries first.
    fn is_beaten(&self, max_priority: impl FnOnce() -> Option<i32>) -> bool {
        match &self.best {
            Some(best) if !R::ALL => max_priority() <= Some(best.entry.rule.priority),
            _ => false,
        }
    }
}

/// The first segment, and what follows its slash.
fn split(path: &str) -> (&str, Option<&str>) {
    match memchr::memchr(b'/', path.as_bytes()) {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..)),
        None => (path, None),
    }
}
