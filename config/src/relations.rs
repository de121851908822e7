use std::collections::BTreeSet;

use imbl::OrdSet;

use crate::error::FieldError;
use crate::key::ResourceKey;
use crate::resource::Resource;
use crate::snapshot::{Change, Snapshot};

/// The references between the resources of a set, and their claims to things that only one resource may have. Kept in O(change),
/// and cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Relations {
    /// Pairs of (target, referrer).
    references: OrdSet<(ResourceKey, ResourceKey)>,
    /// Pairs of (claim, claimant). Several resources may have one claim if no fleet has two of them.
    claims: OrdSet<(String, ResourceKey)>,
}

/// Why a change cannot be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// `resource` refers to a resource that does not exist, or is not in all of its fleets.
    Dangling {
        /// The referrer.
        resource: ResourceKey,
        /// The field, and the resource that it names.
        error: FieldError,
    },
    /// `resource` claims a thing that `holder` has, and some fleet has both.
    Claimed {
        /// The claimant.
        resource: ResourceKey,
        /// The field, and the claim.
        error: FieldError,
        /// The resource that has it.
        holder: ResourceKey,
    },
    /// `resource` cannot be deleted.
    StillReferenced {
        /// The resource that was to be deleted.
        resource: ResourceKey,
        /// The referrers, up to [`Relations::MAX_NAMED`] of them.
        by: Vec<ResourceKey>,
    },
}

impl Relations {
    /// The most referrers that an error names.
    pub const MAX_NAMED: usize = 10;

    /// The relations of a whole snapshot, which was checked when it was made.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut relations = Self::default();
        for resource in snapshot.iter() {
            relations.insert(resource);
        }
        relations
    }

    /// The relations after `changes`, which lead from `before` to `after`, or everything that forbids them.
    pub fn with(
        &self,
        before: &Snapshot,
        after: &Snapshot,
        changes: &[Change],
    ) -> Result<Self, Vec<Problem>> {
        let mut next = self.clone();
        let mut problems = Vec::new();
        for change in changes {
            if let Some(old) = before.find(change.key()) {
                next.remove(old);
            }
        }
        let mut written: BTreeSet<&ResourceKey> = BTreeSet::new();
        // References may dangle now in the changed resources, and in those that refer to a resource in fewer fleets.
        let mut affected: BTreeSet<ResourceKey> = BTreeSet::new();
        for change in changes {
            let Change::Put(resource) = change else { continue };
            for (claim, field) in resource.claims() {
                if let Some(holder) = next.holder_beside(resource, &claim, after) {
                    let error = FieldError::new(field, format!("{claim} is taken by {holder}"));
                    problems.push(Problem::Claimed { resource: resource.key().clone(), error, holder });
                }
            }
            next.insert(resource);
            written.insert(resource.key());
            affected.insert(resource.key().clone());
        }
        let narrowed = changes.iter().filter(|change| match change {
            Change::Put(resource) => resource.fleets().is_some(),
            Change::Delete(_) => false,
        });
        affected.extend(narrowed.flat_map(|change| next.referrers(change.key()).collect::<Vec<_>>()));
        for resource in affected.iter().filter_map(|key| after.find(key)) {
            problems.extend(dangling(resource, after));
        }
        for change in changes.iter().filter(|change| after.find(change.key()).is_none()) {
            // The dangling references of resources that are written here are reported already.
            let others = next.referrers(change.key()).filter(|key| !written.contains(key));
            let by: Vec<_> = others.take(Self::MAX_NAMED).collect();
            if !by.is_empty() {
                problems.push(Problem::StillReferenced { resource: change.key().clone(), by });
            }
        }
        if problems.is_empty() { Ok(next) } else { Err(problems) }
    }

    /// Another resource with `claim` in a fleet of `resource`.
    fn holder_beside(&self, resource: &Resource, claim: &str, set: &Snapshot) -> Option<ResourceKey> {
        let first = (claim.to_owned(), ResourceKey::lowest());
        let holders = self.claims.range(first..).take_while(|(known, _)| known == claim);
        let mut others = holders.map(|(_, holder)| holder).filter(|holder| *holder != resource.key());
        others.find(|holder| set.find(holder).is_some_and(|holder| share_a_fleet(resource, holder))).cloned()
    }

    /// The resources that refer to `key`, by kind and name.
    pub fn referrers(&self, key: &ResourceKey) -> impl Iterator<Item = ResourceKey> + '_ {
        let key = key.clone();
        self.references
            .range((key.clone(), ResourceKey::lowest())..)
            .take_while(move |(target, _)| *target == key)
            .map(|(_, referrer)| referrer.clone())
    }

    fn insert(&mut self, resource: &Resource) {
        for (target, _) in resource.references() {
            self.references.insert((target, resource.key().clone()));
        }
        for (claim, _) in resource.claims() {
            self.claims.insert((claim, resource.key().clone()));
        }
    }

    fn remove(&mut self, resource: &Resource) {
        for (target, _) in resource.references() {
            self.references.remove(&(target, resource.key().clone()));
        }
        for (claim, _) in resource.claims() {
            self.claims.remove(&(claim, resource.key().clone()));
        }
    }
}

/// True if some fleet gets both. Control planes have all resources, so a resource that is only for them meets every other.
fn share_a_fleet(one: &Resource, other: &Resource) -> bool {
    let [one_is, other_is] = [one, other].map(|resource| resource.key().kind.is_for_proxies());
    match (one.fleets(), other.fleets()) {
        (Some(fleets), Some(others)) if one_is && other_is => {
            fleets.iter().any(|fleet| others.contains(fleet))
        }
        _ => true,
    }
}

/// The references of `resource` that dangle: to resources that do not exist, or are not in all of its fleets.
fn dangling(resource: &Resource, set: &Snapshot) -> Vec<Problem> {
    let mut problems = Vec::new();
    let kind = resource.key().kind;
    for (target, field) in resource.references() {
        let message = match set.find(&target) {
            None => format!("{} {:?} does not exist", target.kind, target.name.as_str()),
            // Control planes have all resources.
            Some(_) if !kind.is_for_proxies() => continue,
            Some(_) if !target.kind.is_for_proxies() => {
                format!("{} {:?} is not for proxies, but this {kind} is", target.kind, target.name.as_str())
            }
            Some(found) => match missing_fleet(resource, found) {
                Some(fleet) => format!(
                    "{} {:?} is not in {fleet}, but this {kind} is",
                    target.kind,
                    target.name.as_str()
                ),
                None => continue,
            },
        };
        problems.push(Problem::Dangling {
            resource: resource.key().clone(),
            error: FieldError::new(field, message),
        });
    }
    problems
}

fn missing_fleet(resource: &Resource, target: &Resource) -> Option<String> {
    let has = target.fleets()?;
    match resource.fleets() {
        None => Some("every fleet".to_owned()),
        Some(needs) => {
            needs.iter().find(|fleet| !has.contains(fleet)).map(|fleet| format!("fleet {fleet:?}"))
        }
    }
}
