//! The changes of an operation, and the checks that the set may be changed so.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use signalbox_config::{
    Body, Certificate, Change, Errors, FieldError, Kind, NotCurrent, Problem, Relations, Resource,
    ResourceKey, RevisionId, StapleSignature,
};

use super::deletions::Deletions;
use super::error::WriteError;
use super::files::FilesOfPlugin;
use super::rights::Rights;
use crate::publish::Published;

/// The changes of an operation: each resource once, and only those that differ.
#[derive(Debug, Default)]
pub(super) struct Plan {
    changes: Vec<Change>,
    /// Where the resources are in what was sent, for the fields of errors.
    paths: HashMap<ResourceKey, String>,
}

impl Plan {
    pub(super) fn of_one(current: &Published, change: Change) -> Self {
        let mut plan = Self::default();
        match change {
            Change::Put(resource) => plan.put(current, resource, String::new()),
            Change::Delete(key) => {
                plan.paths.insert(key.clone(), String::new());
                plan.changes.push(Change::Delete(key));
            }
        }
        plan
    }

    pub(super) fn put(&mut self, current: &Published, resource: Arc<Resource>, path: String) {
        // A resource that could not be read is stored in another version than the published one.
        if current.unreadable.contains_key(resource.key()) {
            self.push(resource, path);
        } else {
            self.put_if_changed(current, resource, path);
        }
    }

    /// Likewise for a resource of a document: one that is as it is published changes nothing, so that applying what was
    /// exported here does not replace what a newer version wrote.
    pub(super) fn put_if_changed(&mut self, current: &Published, resource: Arc<Resource>, path: String) {
        let known = current.snapshot.find(resource.key());
        if known.is_none_or(|known| known.fingerprint() != resource.fingerprint()) {
            self.push(resource, path);
        }
    }

    pub(super) fn push(&mut self, resource: Arc<Resource>, path: String) {
        self.paths.insert(resource.key().clone(), path);
        self.changes.push(Change::Put(resource));
    }

    pub(super) fn delete(&mut self, key: ResourceKey) {
        self.paths.insert(key.clone(), key.to_string());
        self.changes.push(Change::Delete(key));
    }

    /// Deletes what is not in `kept`. What a newer version wrote stays: it may be missing there only because whoever
    /// made the document could not read it.
    pub(super) fn delete_others(&mut self, current: &Published, kept: &BTreeSet<&ResourceKey>) {
        let known = current.snapshot.iter().map(|resource| resource.key());
        let others = known.filter(|key| !kept.contains(key) && !current.unreadable.contains_key(*key));
        self.changes.extend(others.cloned().map(Change::Delete));
    }

    pub(super) fn deletions(&self, current: &Published) -> Deletions {
        let mut by_kind: BTreeMap<Kind, usize> = BTreeMap::new();
        let mut is_listener_put = false;
        for change in &self.changes {
            match change {
                Change::Delete(key) => *by_kind.entry(key.kind).or_default() += 1,
                Change::Put(resource) => is_listener_put |= resource.key().kind == Kind::Listener,
            }
        }
        let listeners = current.snapshot.of_kind(Kind::Listener, None).count();
        let deleted = by_kind.get(&Kind::Listener).copied().unwrap_or_default();
        Deletions {
            total: by_kind.values().sum(),
            of: current.snapshot.len(),
            last_listener: deleted > 0 && deleted >= listeners && !is_listener_put,
            by_kind,
        }
    }

    /// Refuses changes of kinds that the author may not write. What stays as it is may be in what was sent.
    pub(super) fn refuse_kinds(&self, rights: Rights) -> Result<(), WriteError> {
        if rights == Rights::Administrator {
            return Ok(());
        }
        let refused = self.changes.iter().map(Change::key).find(|key| key.kind.is_for_administrators());
        refused.map_or(Ok(()), |key| Err(WriteError::NotPermitted { kind: key.kind, key: key.clone() }))
    }

    /// A proxy goes on with a certificate that has expired, but nobody should begin to; likewise with what is stapled to it.
    pub(super) fn refuse_unfit_certificates(&self, now: jiff::Timestamp) -> Result<(), WriteError> {
        let mut errors = Vec::new();
        for change in &self.changes {
            if let Change::Put(resource) = change
                && let Body::Certificate(certificate) = resource.body()
            {
                let found = unfit(certificate, now);
                errors.extend(found.iter().map(|error| self.locate(resource.key(), error)));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(WriteError::Invalid(errors)) }
    }

    /// The changed plugins that use uploaded files.
    pub(super) fn files(&self) -> Vec<FilesOfPlugin> {
        let files = |change: &Change| {
            let Change::Put(resource) = change else { return None };
            let Body::Plugin(plugin) = resource.body() else { return None };
            let path = || self.paths.get(resource.key()).cloned().unwrap_or_default();
            (!plugin.files.is_empty()).then(|| FilesOfPlugin {
                type_name: Arc::clone(&plugin.type_name),
                config: plugin.config.clone(),
                files: plugin.files.clone(),
                path: path(),
            })
        };
        self.changes.iter().filter_map(files).collect()
    }

    /// The changes and the relations after them, or why the set would not be closed.
    pub(super) fn check(self, current: &Published) -> Result<(Vec<Change>, Relations), WriteError> {
        let before = &current.snapshot;
        let next = RevisionId { epoch: before.id().epoch.clone(), number: before.id().number + 1 };
        let after = before.with(next, 0, self.changes.iter().cloned());
        match current.relations.with(before, &after, &self.changes) {
            Ok(relations) => Ok((self.changes, relations)),
            Err(problems) => Err(self.refuse(&problems)),
        }
    }

    pub(super) fn refuse(&self, problems: &[Problem]) -> WriteError {
        let mut dangling = false;
        let errors: Vec<FieldError> = problems
            .iter()
            .map(|problem| match problem {
                Problem::Dangling { resource, error } => {
                    dangling = true;
                    self.locate(resource, error)
                }
                Problem::Claimed { resource, error, .. } => self.locate(resource, error),
                Problem::StillReferenced { resource, by } => {
                    let by: Vec<String> = by.iter().map(ToString::to_string).collect();
                    let more = if by.len() == Relations::MAX_NAMED { ", perhaps more" } else { "" };
                    let message =
                        format!("{resource} cannot be deleted: it is referred to by {}{more}", by.join(", "));
                    self.locate(resource, &FieldError::new("", message))
                }
            })
            .collect();
        if dangling {
            return WriteError::Invalid(errors);
        }
        let detail = errors.first().map(|error| error.message.clone()).unwrap_or_default();
        WriteError::Conflict { detail, errors }
    }

    /// The error's field within what was sent; what is elsewhere is named in the message.
    pub(super) fn locate(&self, resource: &ResourceKey, error: &FieldError) -> FieldError {
        let mut errors = Errors::default();
        match self.paths.get(resource) {
            Some(path) => errors.extend_below(path, [error.clone()]),
            None if error.field.is_empty() => errors.push("", &error.message),
            None => errors.push("", format_args!("{resource}: {error}")),
        }
        errors.finish(None::<()>).err().and_then(|mut found| found.pop()).unwrap_or_else(|| error.clone())
    }
}

/// Why nobody should begin to use a certificate at `now`.
fn unfit(certificate: &Certificate, now: jiff::Timestamp) -> Vec<FieldError> {
    let on = |at: i64| {
        jiff::Timestamp::from_second(at)
            .map_or_else(|_| "at a time that has no name".to_owned(), |at| format!("on {at}"))
    };
    let mut errors = Vec::new();
    if let Some((place, at)) = certificate.expired(now.as_second()) {
        let message = match place {
            1 => format!("expired {}", on(at)),
            _ => format!("is of no use: its certificate {place} expired {}", on(at)),
        };
        errors.push(FieldError::new("certificate", message));
    }
    let staple = certificate.staple().and_then(|staple| {
        let Some(staple) = staple else { return Ok(()) };
        match (staple.check(now.as_second()), staple.signature) {
            (Err(NotCurrent::Expired(at)), _) => Err(format!("expired {}", on(at))),
            (Err(NotCurrent::NotYet(at)), _) => Err(format!("is not good before it was made, {}", on(at))),
            // A proxy staples what was stored before signatures were checked.
            (Ok(()), StapleSignature::IssuerUnknown) => Err(
                "has a signature that cannot be checked: add the issuer's certificate to the chain in certificate"
                    .to_owned(),
            ),
            (Ok(()), StapleSignature::Verified) => Ok(()),
        }
    });
    if let Err(message) = staple {
        errors.push(FieldError::new("ocsp_staple", message));
    }
    errors
}
