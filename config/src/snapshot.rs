use std::fmt;
use std::sync::Arc;

use imbl::OrdMap;

use crate::digest::Digest;
use crate::key::{Name, ResourceKey};
use crate::kind::Kind;
use crate::resource::Resource;

/// Identifies a revision. Numbers count only within their epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RevisionId {
    /// Changes when the database was restored or promoted.
    pub epoch: Arc<str>,
    /// Counts up without gaps; 0 is the empty set before the first write.
    pub number: u64,
}

impl fmt::Display for RevisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number)
    }
}

/// The decision by which proxies of a fleet serve a revision.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Assignment {
    /// The fleet; empty where none is known, as in a file of resources.
    pub fleet: Arc<str>,
    /// Counts the decisions about the fleet; 0 while it follows the head. It orders what a proxy is told within an epoch, before
    /// the revision's number, so that going back to a lower number is a later decision and never an accident.
    pub generation: u64,
}

/// All resources at one revision. Cloning is cheap, and what did not change is shared.
#[derive(Debug, Clone)]
pub struct Snapshot {
    id: RevisionId,
    committed_at_us: i64,
    resources: OrdMap<ResourceKey, Arc<Resource>>,
    digest: Digest,
    assignment: Assignment,
}

/// One step from a snapshot to the next.
#[derive(Debug, Clone)]
pub enum Change {
    /// Adds it, or replaces the one of the same key.
    Put(Arc<Resource>),
    /// Takes it out.
    Delete(ResourceKey),
}

impl Change {
    /// The key of the resource that changes.
    pub fn key(&self) -> &ResourceKey {
        match self {
            Self::Put(resource) => resource.key(),
            Self::Delete(key) => key,
        }
    }
}

impl Snapshot {
    /// The empty set.
    pub fn empty(epoch: impl Into<Arc<str>>) -> Self {
        Self {
            id: RevisionId { epoch: epoch.into(), number: 0 },
            committed_at_us: 0,
            resources: OrdMap::new(),
            digest: Digest::default(),
            assignment: Assignment::default(),
        }
    }

    /// The next revision: this one with `changes`, in O(changes).
    #[must_use]
    pub fn with(
        &self,
        id: RevisionId,
        committed_at_us: i64,
        changes: impl IntoIterator<Item = Change>,
    ) -> Self {
        let mut next = Self { id, committed_at_us, ..self.clone() };
        for change in changes {
            let before = match change {
                Change::Put(resource) => {
                    next.digest.add(resource.fingerprint());
                    next.resources.insert(resource.key().clone(), resource)
                }
                Change::Delete(key) => next.resources.remove(&key),
            };
            if let Some(before) = before {
                next.digest.subtract(before.fingerprint());
            }
        }
        next
    }

    /// The part of it that proxies of `fleet` get, in O(all).
    #[must_use]
    pub fn visible_to(&self, fleet: &str) -> Self {
        let resources =
            self.resources.values().filter(|resource| resource.visible_to(fleet)).cloned().map(Change::Put);
        Self::empty(self.id.epoch.clone()).with(self.id.clone(), self.committed_at_us, resources)
    }

    /// The keys of the resources that are not the same in both, in O(all).
    pub fn differences(&self, other: &Self) -> Vec<ResourceKey> {
        let is_same = |resource: &Arc<Resource>| {
            let found = other.find(resource.key());
            found.is_some_and(|found| {
                Arc::ptr_eq(found, resource) || found.fingerprint() == resource.fingerprint()
            })
        };
        let changed = self.iter().filter(|resource| !is_same(resource));
        let added = other.iter().filter(|resource| self.find(resource.key()).is_none());
        changed.chain(added).map(|resource| resource.key().clone()).collect()
    }

    /// The same revision, assigned by another decision.
    #[must_use]
    pub fn assigned_by(self, assignment: Assignment) -> Self {
        Self { assignment, ..self }
    }

    /// The decision by which proxies serve it.
    pub fn assignment(&self) -> &Assignment {
        &self.assignment
    }

    /// The revision.
    pub fn id(&self) -> &RevisionId {
        &self.id
    }

    /// When it was committed, microseconds since 1970.
    pub fn committed_at_us(&self) -> i64 {
        self.committed_at_us
    }

    /// The hash of all its resources.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The number of resources.
    pub fn len(&self) -> usize {
        self.resources.len()
    }

    /// True if there are no resources.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// The resource of this key.
    pub fn find(&self, key: &ResourceKey) -> Option<&Arc<Resource>> {
        self.resources.get(key)
    }

    /// All resources, by kind and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// The resources of one kind whose names come after `after`, by name.
    pub fn of_kind(&self, kind: Kind, after: Option<&Name>) -> impl Iterator<Item = &Arc<Resource>> {
        use std::ops::Bound;
        // Names start with a letter or a digit, so no name of this kind sorts before "0".
        let start = match after {
            Some(name) => Bound::Excluded(ResourceKey::new(kind, name.clone())),
            None => Bound::Included(ResourceKey::new(kind, Name::lowest())),
        };
        self.resources
            .range((start, Bound::Unbounded))
            .map(|(_, resource)| resource)
            .take_while(move |resource| resource.key().kind == kind)
    }
}
