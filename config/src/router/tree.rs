//! The tree of path segments of one host, and the hosts.

use std::sync::Arc;

use super::map::{Item, Map};
use super::rule::Bucket;
use super::text::Text;
use crate::template::Segment;

/// All entries of one host.
#[derive(Clone)]
pub(super) struct Host<T> {
    /// The host, or what follows the star and its dot.
    pattern: Text,
    pub(super) paths: PathNode<T>,
    /// Boxed, for few hosts have any.
    pub(super) templates: Option<Box<TemplateNode<T>>>,
    pub(super) regexes: Bucket<T>,
}

/// Exact paths and prefixes that begin with the same segments.
#[derive(Clone)]
pub(super) struct PathNode<T> {
    segment: Text,
    pub(super) exact: Bucket<T>,
    pub(super) prefix: Bucket<T>,
    pub(super) children: Map<PathNode<T>>,
}

/// Templates that begin with the same segments.
#[derive(Clone)]
pub(super) struct TemplateNode<T> {
    segment: Text,
    /// Boxed, for most nodes only lead on to others.
    pub(super) entries: Option<Box<TemplateEntries<T>>>,
    pub(super) literals: Map<TemplateNode<T>>,
    pub(super) any: Option<Arc<TemplateNode<T>>>,
    /// The highest priority from here on.
    max: Option<i32>,
}

/// The entries of a node of templates itself, without those of its children.
#[derive(Clone)]
pub(super) struct TemplateEntries<T> {
    /// Those that end here.
    pub(super) ends: Bucket<T>,
    /// Those that take all that is left from here.
    pub(super) rest: Bucket<T>,
}

impl<T: Clone> PathNode<T> {
    /// Changes the node of `path`, which is empty or begins with a slash.
    ///
    /// The recursion is as deep as the path has segments, which parsing bounds.
    pub(super) fn modify(&mut self, path: &str, create: bool, change: &mut dyn FnMut(&mut Self)) {
        match path.strip_prefix('/') {
            None => change(self),
            Some(path) => {
                let (segment, rest) = path.split_at(path.find('/').unwrap_or(path.len()));
                self.children.modify(segment, create, &mut |child| child.modify(rest, create, change));
            }
        }
    }
}

impl<T: Clone> TemplateNode<T> {
    /// Changes the bucket of the template with these segments, the other form of its slash included.
    pub(super) fn modify(
        &mut self,
        segments: &[Segment],
        create: bool,
        change: &mut dyn FnMut(&mut Bucket<T>),
    ) {
        match segments {
            [] | [Segment::Rest, ..] => {
                let entries = self.entries.get_or_insert_default();
                change(if segments.is_empty() { &mut entries.ends } else { &mut entries.rest });
                if entries.max_priority().is_none() {
                    self.entries = None;
                }
            }
            [Segment::Literal(text), below @ ..] => {
                self.literals.modify(text, create, &mut |child| child.modify(below, create, change));
            }
            [Segment::Any, below @ ..] => {
                if self.any.is_none() && !create {
                    return;
                }
                let child = Arc::make_mut(self.any.get_or_insert_with(|| Arc::new(Self::new(""))));
                child.modify(below, create, change);
                if child.max.is_none() {
                    self.any = None;
                }
            }
        }
        let any = self.any.as_ref().and_then(|any| any.max);
        let here = self.entries.as_ref().and_then(|entries| entries.max_priority());
        self.max = here.max(self.literals.max_priority()).max(any);
    }
}

impl<T: Clone> TemplateEntries<T> {
    fn max_priority(&self) -> Option<i32> {
        self.ends.max_priority().max(self.rest.max_priority())
    }
}

impl<T> Default for TemplateEntries<T> {
    fn default() -> Self {
        Self { ends: Bucket::Empty, rest: Bucket::Empty }
    }
}

impl<T: Clone> Host<T> {
    pub(super) fn pattern(&self) -> &Text {
        &self.pattern
    }

    pub(super) fn modify_template(
        &mut self,
        segments: &[Segment],
        create: bool,
        change: &mut dyn FnMut(&mut Bucket<T>),
    ) {
        if self.templates.is_none() && !create {
            return;
        }
        let templates = self.templates.get_or_insert_with(|| Box::new(TemplateNode::new("")));
        templates.modify(segments, create, change);
        if templates.max.is_none() {
            self.templates = None;
        }
    }
}

impl<T: Clone> Item for Host<T> {
    fn new(key: &str) -> Self {
        Self { pattern: key.into(), paths: PathNode::new(""), templates: None, regexes: Bucket::Empty }
    }

    fn key(&self) -> &[u8] {
        self.pattern.as_bytes()
    }

    fn max_priority(&self) -> Option<i32> {
        let templates = self.templates.as_ref().and_then(|templates| templates.max);
        self.paths.max_priority().max(templates).max(self.regexes.max_priority())
    }
}

impl<T: Clone> Item for PathNode<T> {
    fn new(key: &str) -> Self {
        Self { segment: key.into(), exact: Bucket::Empty, prefix: Bucket::Empty, children: Map::new() }
    }

    fn key(&self) -> &[u8] {
        self.segment.as_bytes()
    }

    fn max_priority(&self) -> Option<i32> {
        self.exact.max_priority().max(self.prefix.max_priority()).max(self.children.max_priority())
    }
}

impl<T: Clone> Item for TemplateNode<T> {
    fn new(key: &str) -> Self {
        Self { segment: key.into(), entries: None, literals: Map::new(), any: None, max: None }
    }

    fn key(&self) -> &[u8] {
        self.segment.as_bytes()
    }

    fn max_priority(&self) -> Option<i32> {
        self.max
    }
}
