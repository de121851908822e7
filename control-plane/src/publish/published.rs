//! One published state: the set of a revision, and what is looked up in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use signalbox_config::{
    Assignment, BlobId, Body, Change, FieldError, Kind, Name, Relations, Resource, ResourceKey, RevisionId,
    RolloutPolicy, RouteIndex, Snapshot, Strategy, Webhook,
};
use signalbox_plugin::Registry;
use signalbox_rollout::FleetTarget;

use super::history::History;
use crate::store::{Loaded, Meta, Revision, RevisionSummary, UnknownKey};

/// One published state. Immutable and structurally shared: a revision costs its changes.
#[derive(Debug, Clone)]
pub struct Published {
    /// The set.
    pub snapshot: Snapshot,
    /// The author and the time of each resource.
    pub metas: OrdMap<ResourceKey, Arc<Meta>>,
    /// The references between resources.
    pub relations: Relations,
    /// For `explain`.
    pub routes: RouteIndex<Name>,
    /// The keys that the last revisions changed.
    pub history: History,
    /// The resources that not every proxy gets; without any, every fleet gets the snapshot itself.
    pub scoped: OrdSet<ResourceKey>,
    /// Stored resources that this version cannot read, and why. The set has the version before, if it had one.
    pub unreadable: OrdMap<ResourceKey, Arc<[FieldError]>>,
    /// Stored resources of kinds that this version does not know. They are not in the set, so no proxy gets them from
    /// here, and nothing that is written here changes them.
    pub unknown: OrdSet<UnknownKey>,
    /// The decisions about what the fleets are to serve.
    pub assigned: Assigned,
    /// The plugin types that this control plane knows.
    pub types: Registry,
}

impl Published {
    /// Nothing, before the first revision.
    pub fn empty(epoch: Arc<str>, types: &Registry) -> Self {
        Self {
            types: types.clone(),
            snapshot: Snapshot::empty(epoch),
            metas: OrdMap::new(),
            relations: Relations::default(),
            routes: RouteIndex::new(),
            history: History::default(),
            scoped: OrdSet::new(),
            unreadable: OrdMap::new(),
            unknown: OrdSet::new(),
            assigned: Assigned::default(),
        }
    }

    /// Builds the state of a loaded set, in O(all).
    pub fn from_loaded(loaded: Loaded, types: &Registry) -> Self {
        let mut published = Self::empty(loaded.head.epoch.clone(), types);
        let mut changes = Vec::with_capacity(loaded.resources.len());
        published.unknown.extend(loaded.unknown.into_iter().map(|resource| resource.key));
        for stored in loaded.resources {
            match Resource::from_stored(stored.key.kind, &stored.spec, types) {
                Ok(resource) => changes.push(Change::Put(Arc::new(resource))),
                Err(errors) => {
                    published.unreadable.insert(stored.key.clone(), errors.into());
                }
            }
            published.metas.insert(stored.key, Arc::new(stored.meta));
        }
        for change in &changes {
            published.index_body(change);
        }
        published.snapshot = published.snapshot.with(loaded.head, loaded.committed_at_us, changes);
        published.relations = Relations::of(&published.snapshot);
        published
    }

    /// The revision that wrote the version of a resource that revision `at` has, as far back as is remembered.
    pub(crate) fn changed_in(&self, kind: &str, name: &str, at: u64) -> Option<u64> {
        let key: ResourceKey = format!("{kind}/{name}").parse().ok()?;
        let last = self.metas.get(&key)?.revision;
        if last <= at { Some(last) } else { self.history.last_change(&key, at) }
    }

    /// The set that `fleet` gets, without a cache: in O(1) when no resource names its fleets, else in O(those that do).
    pub fn view(&self, fleet: &str) -> Snapshot {
        if self.scoped.is_empty() {
            return self.snapshot.clone();
        }
        let hidden: Vec<Change> = self
            .scoped
            .iter()
            .filter(|key| self.snapshot.find(key).is_some_and(|resource| !resource.visible_to(fleet)))
            .map(|key| Change::Delete(key.clone()))
            .collect();
        self.snapshot.with(self.snapshot.id().clone(), self.snapshot.committed_at_us(), hidden)
    }

    /// The next state. `relations` are those after the changes, where they are known already.
    pub(super) fn next(
        &self,
        summary: &RevisionSummary,
        changes: &[Change],
        unreadable: Vec<(ResourceKey, Vec<FieldError>)>,
        relations: Option<Relations>,
    ) -> Self {
        let mut next = self.clone();
        let id = RevisionId { epoch: self.snapshot.id().epoch.clone(), number: summary.number };
        let changed: Arc<[ResourceKey]> = changes.iter().map(|change| change.key().clone()).collect();
        next.replace_bodies(&self.snapshot, changes);
        for change in changes {
            next.unreadable.remove(change.key());
            match change {
                Change::Put(resource) => next.update_meta(resource.key(), summary),
                Change::Delete(key) => drop(next.metas.remove(key)),
            }
        }
        for (key, errors) in unreadable {
            next.update_meta(&key, summary);
            next.unreadable.insert(key, errors.into());
        }
        next.snapshot = self.snapshot.with(id, summary.committed_at_us, changes.iter().cloned());
        next.relations = relations.unwrap_or_else(|| {
            // Only what could not be read makes this fail, for the log holds nothing but closed sets.
            self.relations
                .with(&self.snapshot, &next.snapshot, changes)
                .unwrap_or_else(|_| Relations::of(&next.snapshot))
        });
        next.history.push(summary.number, changed);
        next
    }

    /// The next state, as the log has it.
    pub(super) fn next_from_log(&self, revision: &Revision) -> Self {
        let mut changes = Vec::with_capacity(revision.changes.len());
        let mut unreadable = Vec::new();
        for stored in &revision.changes {
            match &stored.after {
                None => changes.push(Change::Delete(stored.key.clone())),
                Some(spec) => match Resource::from_stored(stored.key.kind, spec, &self.types) {
                    Ok(resource) => changes.push(Change::Put(Arc::new(resource))),
                    Err(errors) => unreadable.push((stored.key.clone(), errors)),
                },
            }
        }
        let mut next = self.next(&revision.summary, &changes, unreadable, None);
        for change in &revision.unknown {
            if change.after.is_some() {
                next.unknown.insert(change.key.clone());
            } else {
                next.unknown.remove(&change.key);
            }
        }
        next
    }

    /// The resources that a newer version wrote and that this one leaves as they are.
    pub fn left_alone(&self) -> Vec<String> {
        let unreadable = self.unreadable.keys().map(ToString::to_string);
        unreadable.chain(self.unknown.iter().map(ToString::to_string)).collect()
    }

    /// Brings what is looked up in the resources in step with changes of `before`.
    pub(super) fn replace_bodies(&mut self, before: &Snapshot, changes: &[Change]) {
        for change in changes {
            self.unindex_body(change.key(), before);
            self.index_body(change);
        }
    }

    fn unindex_body(&mut self, key: &ResourceKey, before: &Snapshot) {
        let Some(old) = before.find(key) else { return };
        if let Body::Route(route) = old.body() {
            self.routes.remove(route);
        }
        self.scoped.remove(key);
    }

    fn index_body(&mut self, change: &Change) {
        let Change::Put(resource) = change else { return };
        if let Body::Route(route) = resource.body() {
            self.routes.insert(route, resource.key().name.clone());
        }
        if !resource.is_visible_to_all() {
            self.scoped.insert(resource.key().clone());
        }
    }

    fn update_meta(&mut self, key: &ResourceKey, summary: &RevisionSummary) {
        let created_at_us = self.metas.get(key).map_or(summary.committed_at_us, |meta| meta.created_at_us);
        let meta = Meta {
            revision: summary.number,
            created_at_us,
            updated_at_us: summary.committed_at_us,
            updated_by: summary.author.clone(),
        };
        self.metas.insert(key.clone(), Arc::new(meta));
    }
}

/// The decisions in force, and the states of the revisions that they refer to. Structure is shared between the states.
#[derive(Debug, Clone, Default)]
pub struct Assigned {
    /// The decisions, by fleet. A fleet without one follows the head.
    pub targets: OrdMap<Arc<str>, Arc<FleetTarget>>,
    /// The states of all revisions that a decision refers to, by number.
    pub(super) states: OrdMap<u64, Arc<Published>>,
    /// The store's version of the decisions; 0: none are known.
    pub(super) version: u64,
}

/// The state that one proxy is to serve.
#[derive(Debug, Clone)]
pub struct ProxyTarget {
    /// The state of the revision.
    pub state: Arc<Published>,
    /// The decision.
    pub assignment: Assignment,
    /// True if the revision is the last one because the proxy's fleet follows the head.
    pub follows_head: bool,
}

impl Published {
    /// The state that the proxy with this node id is to serve; `self` is the current one.
    pub fn target(self: &Arc<Self>, fleet: &Arc<str>, node: &str) -> ProxyTarget {
        let decision = self.assigned.targets.get(fleet);
        let generation = decision.map_or(0, |decision| decision.generation);
        let revision = decision.and_then(|decision| decision.of(node).revision);
        // Decisions are published together with the states of their revisions, so the state is there.
        let state = revision.and_then(|revision| self.assigned.states.get(&revision));
        ProxyTarget {
            assignment: Assignment { fleet: fleet.clone(), generation },
            follows_head: state.is_none(),
            state: state.unwrap_or(self).clone(),
        }
    }

    /// The uploaded files that plugins use, of the current set and of the sets that fleets are still to serve, with the plugins.
    pub fn files_in_use(&self) -> BTreeMap<BlobId, BTreeSet<Name>> {
        let mut users: BTreeMap<BlobId, BTreeSet<Name>> = BTreeMap::new();
        let states = std::iter::once(self).chain(self.assigned.states.values().map(|state| &**state));
        for resource in states.flat_map(|state| state.snapshot.of_kind(Kind::Plugin, None)) {
            let Body::Plugin(plugin) = resource.body() else { continue };
            for (id, _) in &plugin.files {
                users.entry(*id).or_default().insert(resource.key().name.clone());
            }
        }
        users
    }

    /// The state of a revision: the current one, or one that a decision refers to; `self` is the current one.
    pub fn state_of(self: &Arc<Self>, revision: u64) -> Option<Arc<Self>> {
        if self.snapshot.id().number == revision {
            return Some(Arc::clone(self));
        }
        self.assigned.states.get(&revision).cloned()
    }

    /// The policy by which revisions reach a fleet; `None`: there is no such resource, so they reach it at once.
    pub fn policy(&self, fleet: &str) -> Option<&RolloutPolicy> {
        let key = ResourceKey::new(Kind::Fleet, fleet.parse().ok()?);
        match self.snapshot.find(&key)?.body() {
            Body::Fleet(fleet) => Some(&fleet.rollout),
            _ => None,
        }
    }

    /// The fleets whose policy is progressive, by name.
    pub fn progressive_fleets(&self) -> impl Iterator<Item = Arc<str>> + '_ {
        let is_progressive = |resource: &&Arc<Resource>| match resource.body() {
            Body::Fleet(fleet) => fleet.rollout.strategy == Strategy::Progressive,
            _ => false,
        };
        let fleets = self.snapshot.of_kind(Kind::Fleet, None).filter(is_progressive);
        fleets.map(|resource| resource.key().name.as_str().into())
    }

    /// The webhooks, enabled or not, by name.
    pub fn webhooks(&self) -> impl Iterator<Item = &Webhook> + '_ {
        self.snapshot.of_kind(Kind::Webhook, None).filter_map(|resource| match resource.body() {
            Body::Webhook(webhook) => Some(&**webhook),
            _ => None,
        })
    }

    /// True if events are to be sent to a webhook.
    pub fn has_webhooks(&self) -> bool {
        self.webhooks().any(|webhook| webhook.enabled)
    }

    /// True if the decision about the fleet refers to the revision.
    pub fn is_assigned(&self, fleet: &str, revision: u64) -> bool {
        let target = self.assigned.targets.get(fleet);
        target.is_some_and(|target| target.revisions().any(|one| one == revision))
    }
}

impl Assigned {
    /// The same, without the states of revisions that no decision refers to.
    pub(super) fn with_targets(mut self, targets: OrdMap<Arc<str>, Arc<FleetTarget>>) -> Self {
        let kept: BTreeSet<u64> = targets.values().flat_map(|target| target.revisions()).collect();
        self.states = self.states.into_iter().filter(|(number, _)| kept.contains(number)).collect();
        self.targets = targets;
        self
    }
}

/// The fleets that resources name, sorted.
pub(crate) fn named_fleets(published: &Published) -> BTreeSet<Box<str>> {
    let resources = published.scoped.iter().filter_map(|key| published.snapshot.find(key));
    resources.flat_map(|resource| resource.fleets().unwrap_or_default().iter().cloned()).collect()
}
