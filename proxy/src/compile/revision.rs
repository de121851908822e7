use std::sync::Arc;

use signalbox_config::{Body, Change, Kind, Name, Resource, ResourceKey, Route, Snapshot};

use crate::source::Rejected;

/// The resources before and after the changes that are compiled.
#[derive(Clone, Copy)]
pub(super) struct Revision<'a> {
    pub(super) before: &'a Snapshot,
    pub(super) now: &'a Snapshot,
}

/// The changes of a revision by kind, each kind in the order of the candidate.
pub(super) struct ChangesByKind<'a> {
    pub(super) listeners: Vec<&'a Change>,
    pub(super) routes: Vec<&'a Change>,
    pub(super) upstreams: Vec<&'a Change>,
    pub(super) plugins: Vec<&'a Change>,
    pub(super) consumers: Vec<&'a Change>,
    pub(super) consumer_groups: Vec<&'a Change>,
    pub(super) certificates: Vec<&'a Change>,
}

impl<'a> Revision<'a> {
    /// The resource that `change` replaces or deletes.
    pub(super) fn replaced_by(self, change: &Change) -> Option<&'a Arc<Resource>> {
        self.before.find(change.key())
    }

    pub(super) fn has(self, kind: Kind, name: &Name) -> bool {
        self.now.find(&ResourceKey::new(kind, name.clone())).is_some()
    }

    /// Returns a rejection of `key` if the revision does not have the resource to which it refers at `field`.
    pub(super) fn check_reference(
        self,
        key: &ResourceKey,
        field: &str,
        kind: Kind,
        name: &Name,
    ) -> Option<Rejected> {
        let message = || format!("{kind} {:?} does not exist", name.as_str());
        (!self.has(kind, name)).then(|| rejected(key, field, message()))
    }
}

impl<'a> ChangesByKind<'a> {
    pub(super) fn new(changes: &'a [Change]) -> Self {
        let of_kind = |kind| changes.iter().filter(|change| change.key().kind == kind).collect();
        Self {
            listeners: of_kind(Kind::Listener),
            routes: of_kind(Kind::Route),
            upstreams: of_kind(Kind::Upstream),
            plugins: of_kind(Kind::Plugin),
            consumers: of_kind(Kind::Consumer),
            consumer_groups: of_kind(Kind::ConsumerGroup),
            certificates: of_kind(Kind::Certificate),
        }
    }
}

/// The resource as a route that takes requests.
pub(super) fn enabled_route(resource: &Resource) -> Option<&Arc<Route>> {
    match resource.body() {
        Body::Route(route) if route.enabled => Some(route),
        _ => None,
    }
}

/// The resource that `change` adds or replaces; `None`: it deletes one.
pub(super) fn put(change: &Change) -> Option<&Arc<Resource>> {
    match change {
        Change::Put(resource) => Some(resource),
        Change::Delete(_) => None,
    }
}

pub(super) fn rejected(key: &ResourceKey, field: impl Into<String>, message: impl Into<String>) -> Rejected {
    Rejected { key: Some(key.clone()), field: field.into(), message: message.into() }
}
