use std::collections::BTreeSet;

use imbl::OrdSet;

use crate::error::FieldError;
use crate::key::ResourceKey;
use crate::resource::Resource;
use crate::snapshot::{Change, Snapshot};

/// Who refers to whom in a set of resources, and who claims what only one may have. Kept in O(change), and
/// cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Relations {
    /// (referred to, refers)
    references: OrdSet<(ResourceKey, ResourceKey)>,
    /// (what is claimed, by whom): several may, if no fleet has two of them.
    claims: OrdSet<(String, ResourceKey)>,
}

/// Why a change cannot be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// `resource` refers to what is not there, or not in all the fleets it is in.
    Dangling {
        /// Who refers.
        resource: ResourceKey,
        /// With which field, and to what.
        error: FieldError,
    },
    /// `resource` claims what `holder` has, and some fleet has both.
    Claimed {
        /// Who claims.
        resource: ResourceKey,
        /// With which field, and what.
        error: FieldError,
        /// Who has it.
        holder: ResourceKey,
    },
    /// `resource` cannot be deleted.
    StillReferenced {
        /// What was to be deleted.
        resource: ResourceKey,
        /// By whom, up to [`Relations::MAX_NAMED`] of them.
        by: Vec<ResourceKey>,
    },
}

impl Relations {
    /// How many referrers an error names.
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
        // Whose references may have come to dangle: the changed resources, and those that refer to one of which
        // the fleets may be fewer now.
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
            // What is written here has been told already that its reference dangles.
            let others = next.referrers(change.key()).filter(|key| !written.contains(key));
            let by: Vec<_> = others.take(Self::MAX_NAMED).collect();
            if !by.is_empty() {
                problems.push(Problem::StillReferenced { resource: change.key().clone(), by });
            }
        }
        if problems.is_empty() { Ok(next) } else { Err(problems) }
    }

    /// Who else has `claim` in a fleet that `resource` is in.
    fn holder_beside(&self, resource: &Resource, claim: &str, set: &Snapshot) -> Option<ResourceKey> {
        let first = (claim.to_owned(), ResourceKey::lowest());
        let holders = self.claims.range(first..).take_while(|(known, _)| known == claim);
        let mut others = holders.map(|(_, holder)| holder).filter(|holder| *holder != resource.key());
        others.find(|holder| set.find(holder).is_some_and(|holder| share_a_fleet(resource, holder))).cloned()
    }

    /// Who refers to `key`, by kind and name.
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

/// Whether some fleet gets both.
fn share_a_fleet(one: &Resource, other: &Resource) -> bool {
    match (one.fleets(), other.fleets()) {
        (Some(fleets), Some(others)) => fleets.iter().any(|fleet| others.contains(fleet)),
        _ => true,
    }
}

/// What `resource` refers to in vain: nothing there, or not in all of its fleets.
fn dangling(resource: &Resource, set: &Snapshot) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (target, field) in resource.references() {
        let message = match set.find(&target) {
            None => format!("{} {:?} does not exist", target.kind, target.name.as_str()),
            Some(found) => match missing_fleet(resource, found) {
                Some(fleet) => format!(
                    "{} {:?} is not in {fleet}, but this {} is",
                    target.kind,
                    target.name.as_str(),
                    resource.key().kind
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
