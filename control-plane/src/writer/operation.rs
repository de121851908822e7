//! Operations on resources, and the plans that they make over the published state.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;
use signalbox_config::document::Entry;
use signalbox_config::{Change, Errors, FieldError, Kind, Name, Resource, ResourceKey, mentions_placeholder};

use super::error::WriteError;
use super::plan::Plan;
use crate::publish::Published;
use crate::store::StoredSet;

/// An operation on resources.
#[derive(Debug, Clone)]
pub enum Operation {
    /// Adds a resource that is not there. `spec` has its name.
    Create {
        /// The resource's kind.
        kind: Kind,
        /// As people wrote it.
        spec: Value,
    },
    /// Adds or replaces a resource.
    Put {
        /// Which.
        key: ResourceKey,
        /// As people wrote it; its name may be left out.
        spec: Value,
        /// The condition for the write.
        precondition: Precondition,
    },
    /// Changes parts of a resource: a JSON merge patch (RFC 7396).
    Patch {
        /// Which.
        key: ResourceKey,
        /// The patch.
        patch: Value,
        /// The condition for the write.
        precondition: Precondition,
    },
    /// Takes a resource out.
    Delete {
        /// Which.
        key: ResourceKey,
        /// The condition for the write.
        precondition: Precondition,
    },
    /// Adds or replaces all resources of a document.
    Apply(Document),
    /// Takes back the changes between two states, unless later writes touch the same resources.
    TakeBack {
        /// The state before the changes.
        before: Arc<Published>,
        /// The state after them.
        after: Arc<Published>,
        /// Only what this fleet gets is taken back.
        fleet: Arc<str>,
    },
    /// Leads back to an earlier set. What a newer version wrote stays as it is.
    Restore(Vec<Arc<Resource>>),
}

/// A condition that must hold before a resource is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing.
    None,
    /// `If-None-Match: *`: it is not there.
    Absent,
    /// `If-Match: *`: it is there.
    Present,
    /// `If-Match`: it has one of these versions.
    Version(Vec<String>),
}

/// The resources of a declarative document, parsed.
#[derive(Debug, Clone)]
pub struct Document {
    entries: Vec<(String, Prepared)>,
    prune: Prune,
}

/// The treatment of resources that are not in a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prune {
    /// They stay.
    Keep,
    /// They are deleted.
    Delete(MassDelete),
}

/// Says if a document may delete the last listener, or more than half of the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MassDelete {
    /// It may not: a document that was cut short would do that.
    Refused,
    /// It may, for somebody said so.
    Allowed,
}

#[derive(Debug, Clone)]
enum Prepared {
    Parsed(Arc<Resource>),
    /// JSON with the placeholder of a secret in it. The secret is the one that is stored when it is written, so it is
    /// parsed then.
    Unparsed(Kind, Box<str>),
}

impl Operation {
    /// Reads a document. All that is wrong with any of its resources comes back at once.
    pub fn apply(
        entries: impl IntoIterator<Item = Entry>,
        prune: Prune,
        current: &Published,
    ) -> Result<Self, WriteError> {
        let mut errors = Errors::default();
        let mut prepared = Vec::new();
        for Entry { kind, mut spec, path } in entries {
            // Once the list of errors is full, it is enough to find that a resource is wrong: all errors of each of a million
            // would take minutes. A `kind` and `meta` are taken off when a resource is parsed.
            if errors.is_full() {
                if let Some(fields) = spec.as_object_mut() {
                    fields.remove("kind");
                    fields.remove("meta");
                }
                if !Resource::has_shape(kind, &spec) {
                    errors.push(&path, "does not have the shape of its kind");
                    continue;
                }
            }
            let name = named_in(&spec);
            hash_passwords(kind, &mut spec, name, current);
            let kept = mentions_placeholder(&spec).then(|| spec.to_string().into());
            match parse_restoring(kind, spec, current) {
                // Once something is wrong, what is right is not needed.
                Ok(_) if !errors.is_empty() => prepared = Vec::new(),
                Ok(resource) => {
                    let entry = match kept {
                        Some(spec) => Prepared::Unparsed(kind, spec),
                        None => Prepared::Parsed(Arc::new(resource)),
                    };
                    prepared.push((path, entry));
                }
                Err(found) => errors.extend_below(&path, found),
            }
        }
        errors.finish(Some(Self::Apply(Document { entries: prepared, prune }))).map_err(WriteError::Invalid)
    }

    /// True if [`Operation::hash_passwords`] may have something to do.
    pub(super) fn may_have_passwords(&self) -> bool {
        match self {
            Self::Create { kind, .. } => kind.has_secrets(),
            Self::Put { key, .. } | Self::Patch { key, .. } => key.kind.has_secrets(),
            Self::Delete { .. } | Self::Apply(_) | Self::TakeBack { .. } | Self::Restore(_) => false,
        }
    }

    /// Replaces the passwords that people wrote by their hashes. It takes a moment for each, so it is done before the operation
    /// waits for others. A document's are hashed when it is read.
    pub(super) fn hash_passwords(&mut self, current: &Published) {
        match self {
            Self::Create { kind, spec } => {
                let name = named_in(spec);
                hash_passwords(*kind, spec, name, current);
            }
            Self::Put { key, spec: written, .. } | Self::Patch { key, patch: written, .. } => {
                hash_passwords(key.kind, written, Some(key.name.clone()), current);
            }
            Self::Delete { .. } | Self::Apply(_) | Self::TakeBack { .. } | Self::Restore(_) => {}
        }
    }

    /// Reads the set of an earlier revision.
    pub fn restore(set: &StoredSet, current: &Published) -> Result<Self, WriteError> {
        let mut errors = Errors::default();
        let mut resources = Vec::with_capacity(set.resources.len());
        for stored in &set.resources {
            match Resource::from_stored(stored.key.kind, &stored.spec, &current.types) {
                Ok(resource) => resources.push(Arc::new(resource)),
                // A newer version wrote it then and now: it stays as it is.
                Err(_) if current.unreadable.contains_key(&stored.key) => {}
                Err(found) => errors.extend_below(&stored.key.to_string(), found),
            }
        }
        errors.finish(Some(Self::Restore(resources))).map_err(WriteError::Invalid)
    }

    /// How many resources it has to look at.
    pub(super) fn size(&self, current: &Published) -> usize {
        match self {
            Self::Create { .. } | Self::Put { .. } | Self::Patch { .. } | Self::Delete { .. } => 1,
            Self::Apply(document) if document.prune == Prune::Keep => document.entries.len(),
            Self::Apply(_) | Self::Restore(_) | Self::TakeBack { .. } => current.snapshot.len(),
        }
    }

    /// Plans the changes.
    pub(super) fn plan(&self, current: &Published) -> Result<Plan, WriteError> {
        match self {
            Self::Create { kind, spec } => {
                let resource = parse_restoring(*kind, spec.clone(), current).map_err(WriteError::Invalid)?;
                if is_there(current, resource.key()) {
                    return Err(WriteError::Exists(resource.key().clone()));
                }
                Ok(Plan::of_one(current, Change::Put(Arc::new(resource))))
            }
            Self::Put { key, spec, precondition } => {
                precondition.check(key, current)?;
                put(key, spec.clone(), current)
            }
            Self::Patch { key, patch, precondition } => {
                if current.unreadable.contains_key(key) {
                    // A patch of the version before would lose what the newer one says.
                    return Err(WriteError::Unreadable(key.clone()));
                }
                let found = current.snapshot.find(key).ok_or_else(|| WriteError::NotFound(key.clone()))?;
                precondition.check(key, current)?;
                let mut spec: Value = serde_json::from_slice(found.spec())
                    .map_err(|error| WriteError::Invalid(vec![FieldError::new("", error.to_string())]))?;
                json_patch::merge(&mut spec, patch);
                put(key, spec, current)
            }
            Self::Delete { key, precondition } => {
                if !is_there(current, key) {
                    return Err(WriteError::NotFound(key.clone()));
                }
                precondition.check(key, current)?;
                Ok(Plan::of_one(current, Change::Delete(key.clone())))
            }
            Self::Apply(document) => document.plan(current),
            Self::TakeBack { before, after, fleet } => take_back(before, after, fleet, current),
            Self::Restore(resources) => {
                let mut plan = Plan::default();
                let kept: BTreeSet<&ResourceKey> = resources.iter().map(|resource| resource.key()).collect();
                for resource in resources {
                    plan.put(current, Arc::clone(resource), resource.key().to_string());
                }
                plan.delete_others(current, &kept);
                Ok(plan)
            }
        }
    }
}

impl Document {
    fn plan(&self, current: &Published) -> Result<Plan, WriteError> {
        let mut plan = Plan::default();
        let mut errors = Errors::default();
        let mut names: Vec<ResourceKey> = Vec::with_capacity(self.entries.len());
        for (path, entry) in &self.entries {
            let resource = match entry {
                Prepared::Parsed(resource) => Arc::clone(resource),
                Prepared::Unparsed(kind, spec) => {
                    // It was written by this module, so it can be read.
                    let spec = serde_json::from_str(spec).unwrap_or_default();
                    match parse_restoring(*kind, spec, current) {
                        Ok(resource) => Arc::new(resource),
                        Err(found) => {
                            errors.extend_below(path, found);
                            continue;
                        }
                    }
                }
            };
            names.push(resource.key().clone());
            plan.put_if_changed(current, resource, path.clone());
        }
        if let Prune::Delete(_) = self.prune {
            plan.delete_others(current, &names.iter().collect());
        }
        let plan = errors.finish(Some(plan)).map_err(WriteError::Invalid)?;
        if self.prune == Prune::Delete(MassDelete::Refused) {
            let deletions = plan.deletions(current);
            if deletions.is_mass() {
                return Err(WriteError::MassDelete(deletions));
            }
        }
        Ok(plan)
    }
}

impl Precondition {
    fn check(&self, key: &ResourceKey, current: &Published) -> Result<(), WriteError> {
        if matches!(self, Self::Version(_)) && current.unreadable.contains_key(key) {
            // The stored version is another than the one that is shown.
            return Err(WriteError::Unreadable(key.clone()));
        }
        let version = current.snapshot.find(key).map(|resource| resource.version());
        let holds = match (self, &version) {
            (Self::None, _) => true,
            (Self::Absent, version) => version.is_none(),
            (Self::Present, version) => version.is_some(),
            (Self::Version(versions), Some(version)) => versions.contains(version),
            (Self::Version(_), None) => false,
        };
        if holds { Ok(()) } else { Err(WriteError::Precondition { key: key.clone(), current: version }) }
    }
}

fn put(key: &ResourceKey, mut spec: Value, current: &Published) -> Result<Plan, WriteError> {
    if let Some(object) = spec.as_object_mut() {
        let name = object.entry("name").or_insert_with(|| key.name.as_str().into());
        if name.as_str().is_some_and(|name| name != key.name.as_str()) {
            let message =
                format!("is {name}, but the path says {:?}; a name cannot change", key.name.as_str());
            return Err(WriteError::Invalid(vec![FieldError::new("name", message)]));
        }
    }
    let resource = parse_restoring(key.kind, spec, current).map_err(WriteError::Invalid)?;
    Ok(Plan::of_one(current, Change::Put(Arc::new(resource))))
}

/// Reads what a person wrote, with the secrets that are stored where it says to keep them, and without `meta`, which
/// reading a resource gives and writing it back leaves.
fn parse_restoring(kind: Kind, mut spec: Value, current: &Published) -> Result<Resource, Vec<FieldError>> {
    if let Some(object) = spec.as_object_mut() {
        object.remove("meta");
    }
    if let Some(stored) =
        named_in(&spec).and_then(|name| current.snapshot.find(&ResourceKey::new(kind, name)))
    {
        stored.restore_secrets(&mut spec);
    }
    Resource::parse(kind, spec, &current.types)
}

/// The name that a specification gives.
fn named_in(spec: &Value) -> Option<Name> {
    spec.get("name").and_then(Value::as_str).and_then(|name| name.parse().ok())
}

fn hash_passwords(kind: Kind, spec: &mut Value, name: Option<Name>, current: &Published) {
    if kind.has_secrets() {
        let stored = name.and_then(|name| current.snapshot.find(&ResourceKey::new(kind, name)));
        kind.hash_passwords(spec, stored.map(|stored| stored.spec()));
    }
}

/// Plans to bring back, of each resource of the fleet that differs between `before` and `after`, the version of `before`.
fn take_back(
    before: &Published,
    after: &Published,
    fleet: &str,
    current: &Published,
) -> Result<Plan, WriteError> {
    let mut plan = Plan::default();
    let mut errors = Errors::default();
    for key in before.snapshot.differences(&after.snapshot) {
        let version = |state: &Published| state.snapshot.find(&key).cloned();
        let (old, new, present) = (version(before), version(after), version(current));
        if ![&old, &new].into_iter().flatten().any(|resource| resource.visible_to(fleet)) {
            continue;
        }
        if same_version(present.as_ref(), old.as_ref()) {
            continue;
        }
        if !same_version(present.as_ref(), new.as_ref()) || current.unreadable.contains_key(&key) {
            errors.push("", format_args!("{key} was written again later; take the change back by hand"));
            continue;
        }
        match old {
            Some(resource) => plan.push(resource, key.to_string()),
            None => plan.delete(key),
        }
    }
    errors.finish(Some(plan)).map_err(|errors| WriteError::Conflict {
        detail: "later writes touch the same resources".to_owned(),
        errors,
    })
}

fn same_version(one: Option<&Arc<Resource>>, other: Option<&Arc<Resource>>) -> bool {
    one.map(|one| one.fingerprint()) == other.map(|other| other.fingerprint())
}

fn is_there(current: &Published, key: &ResourceKey) -> bool {
    current.snapshot.find(key).is_some() || current.unreadable.contains_key(key)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn merge_patch_follows_the_examples_of_its_rfc() {
        // RFC 7396, appendix A.
        for (target, patch, result) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a":"b"}), json!(["c"]), json!(["c"])),
            (json!({"a":"foo"}), json!(null), json!(null)),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!([1, 2]), json!({"a":"b","c":null}), json!({"a":"b"})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ] {
            let mut merged = target.clone();
            json_patch::merge(&mut merged, &patch);
            assert_eq!(merged, result, "{target} with {patch}");
        }
    }
}
