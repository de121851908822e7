use std::collections::BTreeMap;

use imbl::{OrdMap, OrdSet};

use crate::error::FieldError;
use crate::key::{Name, ResourceKey};
use crate::resource::Resource;
use crate::snapshot::{Change, Snapshot};

/// Who refers to whom in a set of resources, and who claims what only one may have. Kept in O(change), and
/// cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Relations {
    /// (referred to, refers)
    references: OrdSet<(ResourceKey, ResourceKey)>,
    claims: OrdMap<String, ResourceKey>,
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
    /// `resource` claims what `holder` has.
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
        for change in changes {
            let Change::Put(resource) = change else { continue };
            for (claim, field) in resource.claims() {
                if let Some(holder) = next.claims.get(&claim).filter(|holder| *holder != resource.key()) {
                    let error = FieldError::new(field, format!("{claim} is {holder}'s already"));
                    problems.push(Problem::Claimed {
                        resource: resource.key().clone(),
                        error,
                        holder: holder.clone(),
                    });
                }
            }
            next.insert(resource);
        }
        // What may have come to dangle: the changed resources' own references, and those to what was changed.
        let mut deleted: BTreeMap<ResourceKey, Vec<ResourceKey>> = BTreeMap::new();
        for change in changes {
            match change {
                Change::Put(resource) => {
                    problems.extend(dangling(resource, after));
                    if resource.fleets().is_some() {
                        for referrer in next.referrers(resource.key()).filter_map(|key| after.find(&key)) {
                            problems.extend(dangling(referrer, after));
                        }
                    }
                }
                Change::Delete(key) => {
                    let by: Vec<_> = next.referrers(key).take(Self::MAX_NAMED).collect();
                    if !by.is_empty() {
                        deleted.insert(key.clone(), by);
                    }
                }
            }
        }
        problems.extend(deleted.into_iter().map(|(resource, by)| Problem::StillReferenced { resource, by }));
        if problems.is_empty() { Ok(next) } else { Err(problems) }
    }

    /// Who refers to `key`, by kind and name.
    pub fn referrers(&self, key: &ResourceKey) -> impl Iterator<Item = ResourceKey> + '_ {
        let lowest = ResourceKey::new(crate::key::Kind::Listener, Name::lowest());
        let key = key.clone();
        self.references
            .range((key.clone(), lowest)..)
            .take_while(move |(target, _)| *target == key)
            .map(|(_, referrer)| referrer.clone())
    }

    fn insert(&mut self, resource: &Resource) {
        for (target, _) in resource.references() {
            self.references.insert((target, resource.key().clone()));
        }
        for (claim, _) in resource.claims() {
            self.claims.insert(claim, resource.key().clone());
        }
    }

    fn remove(&mut self, resource: &Resource) {
        for (target, _) in resource.references() {
            self.references.remove(&(target, resource.key().clone()));
        }
        for (claim, _) in resource.claims() {
            if self.claims.get(&claim) == Some(resource.key()) {
                self.claims.remove(&claim);
            }
        }
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
