//! All writes of resources: what an operation changes is a function of what is published, and becomes one revision
//! or none.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use signalbox_config::document::Entry;
use signalbox_config::{
    Body, Certificate, Change, Errors, FieldError, Kind, Name, NotCurrent, Problem, Relations, Resource,
    ResourceKey, RevisionId, mentions_placeholder,
};
use signalbox_plugins::Catalog;

use crate::publish::{Published, Publisher, compute};
use crate::store::{StoreError, StoredSet};

/// Makes revisions.
#[derive(Clone)]
pub struct Writer {
    publisher: Arc<Publisher>,
}

/// What is to be done with resources.
#[derive(Debug, Clone)]
pub enum Operation {
    /// Adds a resource that is not there. `spec` has its name.
    Create {
        /// What it is.
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
        /// What must hold before.
        precondition: Precondition,
    },
    /// Changes parts of a resource: a JSON merge patch (RFC 7396).
    Patch {
        /// Which.
        key: ResourceKey,
        /// The patch.
        patch: Value,
        /// What must hold before.
        precondition: Precondition,
    },
    /// Takes a resource out.
    Delete {
        /// Which.
        key: ResourceKey,
        /// What must hold before.
        precondition: Precondition,
    },
    /// Adds or replaces all resources of a document.
    Apply(Document),
    /// Leads back to an earlier set. What a newer version wrote stays as it is.
    Restore(Vec<Arc<Resource>>),
}

/// What must hold of a resource before it is written.
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

/// What becomes of resources that are not in a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prune {
    /// They stay.
    Keep,
    /// They are deleted.
    Delete(MassDelete),
}

/// Whether a document may delete the last listener, or more than half of the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MassDelete {
    /// It may not: a document that was cut short would do that.
    Refused,
    /// It may, for somebody said so.
    Allowed,
}

/// What a document would delete.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Deletions {
    /// How many resources would go.
    pub total: usize,
    /// Of how many.
    pub of: usize,
    /// How many of each kind.
    pub by_kind: BTreeMap<Kind, usize>,
    /// Whether no listener would be left.
    pub last_listener: bool,
}

#[derive(Debug, Clone)]
enum Prepared {
    Parsed(Arc<Resource>),
    /// JSON with the placeholder of a secret in it. The secret is the one that is stored when it is written, so it is
    /// parsed then.
    Unparsed(Kind, Box<str>),
}

/// Who writes, and why.
#[derive(Debug, Clone)]
pub struct Author {
    /// The name of the token, or of who else does it.
    pub name: Arc<str>,
    /// For people; may be empty.
    pub message: String,
    /// What was called: `PUT /api/v1/routes/users`.
    pub action: String,
}

/// Whether a write is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is.
    Store,
    /// It is only checked.
    DryRun,
}

/// What a write did, or would do.
#[derive(Debug, Clone)]
pub struct Written {
    /// The revision it made; `None`: nothing differed, or it was only checked.
    pub revision: Option<u64>,
    /// What is published after it.
    pub published: Arc<Published>,
    /// One for each resource that differs, by kind and name.
    pub changes: Vec<Changed>,
}

/// One difference.
#[derive(Debug, Clone)]
pub struct Changed {
    /// What it concerns.
    pub key: ResourceKey,
    /// `None`: it was not there.
    pub before: Option<Arc<Resource>>,
    /// `None`: it is deleted.
    pub after: Option<Arc<Resource>>,
}

/// Why a write was not made. Nothing was stored, but see [`StoreError::Unavailable`].
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no such resource.
    #[error("{0} does not exist")]
    NotFound(ResourceKey),
    /// There is one of this name.
    #[error("{0} exists already")]
    Exists(ResourceKey),
    /// `If-Match` or `If-None-Match` does not hold.
    #[error("{}", precondition_text(key, current.as_deref()))]
    Precondition {
        /// Which resource.
        key: ResourceKey,
        /// Its version; `None`: it is not there.
        current: Option<String>,
    },
    /// The specification is wrong.
    #[error("the specification is not valid")]
    Invalid(Vec<FieldError>),
    /// It is stored as a newer version wrote it.
    #[error(
        "{0} was written by a newer version, and this version cannot read it: change it there, or replace it without \
         If-Match"
    )]
    Unreadable(ResourceKey),
    /// It conflicts with other resources.
    #[error("{detail}")]
    Conflict {
        /// Why, in one sentence.
        detail: String,
        /// The same, by field.
        errors: Vec<FieldError>,
    },
    /// It would delete the last listener, or more than half of the set.
    #[error("{0}; allow_mass_delete=true allows it")]
    MassDelete(Deletions),
    /// Other writes came first for too long, of this control plane or of others.
    #[error("other writes came first for too long")]
    Busy,
    /// The store did not do it.
    #[error("the revision could not be stored")]
    Store(#[from] StoreError),
}

/// How often a write is tried. The head moves at most once without the write holding it, once more to a new epoch.
const ATTEMPTS: usize = 4;

/// How long a write waits for those before it.
const TURN: Duration = Duration::from_secs(10);

impl Writer {
    /// Writes what `publisher` then publishes.
    pub fn new(publisher: Arc<Publisher>) -> Self {
        Self { publisher }
    }

    /// Does `operation` as one revision; none, if nothing differs.
    ///
    /// Goes on when it is dropped: a client that hangs up must not leave a revision that is stored but not published.
    pub async fn write(&self, author: Author, operation: Operation, mode: Mode) -> Result<Written, Refused> {
        let publisher = Arc::clone(&self.publisher);
        let task = tokio::spawn(async move { write(&publisher, author, &operation, mode).await });
        task.await
            .unwrap_or_else(|error| Err(StoreError::Broken(format!("the write ended early: {error}")).into()))
    }
}

async fn write(
    publisher: &Publisher,
    author: Author,
    operation: &Operation,
    mode: Mode,
) -> Result<Written, Refused> {
    // With the database away every write takes as long as the store's deadline: those behind must not wait for all.
    let mut turn = tokio::time::timeout(TURN, publisher.turn()).await.map_err(|_| Refused::Busy)?;
    // The usual write goes by what is published, and the store says whether that was the head. Whatever ends without
    // asking the store to commit must know that first.
    let mut verified = false;
    if matches!(operation, Operation::Apply(_) | Operation::Restore(_)) {
        turn.catch_up().await?;
        verified = true;
    }
    for _ in 0..ATTEMPTS {
        let current = turn.current();
        let size = operation.size(&current);
        let plan = compute(size, || {
            let plan = operation.plan(&current)?;
            // A rollback brings back what was, even if it is good for less than it was.
            if !matches!(operation, Operation::Restore(_)) {
                plan.refuse_unfit_certificates(jiff::Timestamp::now())?;
            }
            plan.check(&current)
        });
        let (changes, relations) = match plan {
            Ok((changes, relations)) if mode == Mode::Store && !changes.is_empty() => (changes, relations),
            Ok((changes, _)) if !changes.is_empty() => {
                turn.rehearse(&changes).await?;
                if turn.current().snapshot.id() != current.snapshot.id() {
                    verified = true;
                    continue;
                }
                let changes = changed(&current, &changes);
                return Ok(Written { revision: None, published: current, changes });
            }
            refused_or_nothing_to_do => {
                if !verified {
                    turn.catch_up().await?;
                    verified = true;
                    if turn.current().snapshot.id() != current.snapshot.id() {
                        continue;
                    }
                }
                let (changes, _) = refused_or_nothing_to_do?;
                let changes = changed(&current, &changes);
                return Ok(Written { revision: None, published: current, changes });
            }
        };
        let Author { name, message, action } = author.clone();
        match turn.commit(name, message, action, changes.clone(), relations).await {
            Ok(committed) => {
                tracing::info!(
                    author = %author.name, revision = committed.number, action = author.action,
                    changes = changes.len(), reason = author.message, "a revision was made"
                );
                let changes = changed(&current, &changes);
                return Ok(Written { revision: Some(committed.number), published: turn.current(), changes });
            }
            // Another replica came first. To come first this time, the next attempt holds the head: one that writes
            // without a pause would come first for ever.
            Err(StoreError::Stale) => {
                // The most of it is read while the others can still write.
                turn.catch_up().await?;
                turn.hold().await?;
                verified = true;
            }
            // It may have happened even so: the follower reads the head again.
            Err(error) => return Err(error.into()),
        }
    }
    Err(Refused::Busy)
}

impl Operation {
    /// Reads a document. All that is wrong with any of its resources comes back at once.
    pub fn apply(
        entries: impl IntoIterator<Item = Entry>,
        prune: Prune,
        current: &Published,
    ) -> Result<Self, Refused> {
        let mut errors = Errors::default();
        let mut prepared = Vec::new();
        for Entry { kind, mut spec, path } in entries {
            // Of what is not listed any more it is enough that it is wrong: to say all that is wrong with each of a million
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
        errors.finish(Some(Self::Apply(Document { entries: prepared, prune }))).map_err(Refused::Invalid)
    }

    /// Reads the set of an earlier revision.
    pub fn restore(set: &StoredSet, current: &Published) -> Result<Self, Refused> {
        let mut errors = Errors::default();
        let mut resources = Vec::with_capacity(set.resources.len());
        for stored in &set.resources {
            match Resource::from_stored(stored.key.kind, &stored.spec, &Catalog) {
                Ok(resource) => resources.push(Arc::new(resource)),
                // A newer version wrote it then and now: it stays as it is.
                Err(_) if current.unreadable.contains_key(&stored.key) => {}
                Err(found) => errors.extend_below(&stored.key.to_string(), found),
            }
        }
        errors.finish(Some(Self::Restore(resources))).map_err(Refused::Invalid)
    }

    /// How many resources it has to look at.
    fn size(&self, current: &Published) -> usize {
        match self {
            Self::Create { .. } | Self::Put { .. } | Self::Patch { .. } | Self::Delete { .. } => 1,
            Self::Apply(document) if document.prune == Prune::Keep => document.entries.len(),
            Self::Apply(_) | Self::Restore(_) => current.snapshot.len(),
        }
    }

    /// What it changes.
    fn plan(&self, current: &Published) -> Result<Plan, Refused> {
        match self {
            Self::Create { kind, spec } => {
                let resource = parse_restoring(*kind, spec.clone(), current).map_err(Refused::Invalid)?;
                if is_there(current, resource.key()) {
                    return Err(Refused::Exists(resource.key().clone()));
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
                    return Err(Refused::Unreadable(key.clone()));
                }
                let found = current.snapshot.find(key).ok_or_else(|| Refused::NotFound(key.clone()))?;
                precondition.check(key, current)?;
                let mut spec: Value = serde_json::from_slice(found.spec())
                    .map_err(|error| Refused::Invalid(vec![FieldError::new("", error.to_string())]))?;
                merge(&mut spec, patch);
                put(key, spec, current)
            }
            Self::Delete { key, precondition } => {
                if !is_there(current, key) {
                    return Err(Refused::NotFound(key.clone()));
                }
                precondition.check(key, current)?;
                Ok(Plan::of_one(current, Change::Delete(key.clone())))
            }
            Self::Apply(document) => document.plan(current),
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
    fn plan(&self, current: &Published) -> Result<Plan, Refused> {
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
        let plan = errors.finish(Some(plan)).map_err(Refused::Invalid)?;
        if self.prune == Prune::Delete(MassDelete::Refused) {
            let deletions = plan.deletions(current);
            if deletions.is_mass() {
                return Err(Refused::MassDelete(deletions));
            }
        }
        Ok(plan)
    }
}

impl Deletions {
    fn is_mass(&self) -> bool {
        self.last_listener || self.total * 2 > self.of
    }
}

impl fmt::Display for Deletions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = self
            .by_kind
            .iter()
            .map(|(kind, count)| match count {
                1 => format!("1 {kind}"),
                count => format!("{count} {}", kind.plural()),
            })
            .collect();
        write!(f, "it would delete {} of {} resources ({})", self.total, self.of, each.join(", "))?;
        if self.last_listener { f.write_str(" and leave no listener") } else { Ok(()) }
    }
}

impl Precondition {
    fn check(&self, key: &ResourceKey, current: &Published) -> Result<(), Refused> {
        if matches!(self, Self::Version(_)) && current.unreadable.contains_key(key) {
            // What is stored is another version than the one that is shown.
            return Err(Refused::Unreadable(key.clone()));
        }
        let version = current.snapshot.find(key).map(|resource| resource.version());
        let holds = match (self, &version) {
            (Self::None, _) => true,
            (Self::Absent, version) => version.is_none(),
            (Self::Present, version) => version.is_some(),
            (Self::Version(versions), Some(version)) => versions.contains(version),
            (Self::Version(_), None) => false,
        };
        if holds { Ok(()) } else { Err(Refused::Precondition { key: key.clone(), current: version }) }
    }
}

/// What an operation changes, each resource once, and only what differs.
#[derive(Debug, Default)]
struct Plan {
    changes: Vec<Change>,
    /// Where the resources are in what was sent, for the fields of errors.
    paths: HashMap<ResourceKey, String>,
}

impl Plan {
    fn of_one(current: &Published, change: Change) -> Self {
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

    fn put(&mut self, current: &Published, resource: Arc<Resource>, path: String) {
        // What could not be read is stored otherwise than it is published.
        if current.unreadable.contains_key(resource.key()) {
            self.push(resource, path);
        } else {
            self.put_if_changed(current, resource, path);
        }
    }

    /// Likewise for a resource of a document: one that is as it is published changes nothing, so that applying what was
    /// exported here does not replace what a newer version wrote.
    fn put_if_changed(&mut self, current: &Published, resource: Arc<Resource>, path: String) {
        let known = current.snapshot.find(resource.key());
        if known.is_none_or(|known| known.fingerprint() != resource.fingerprint()) {
            self.push(resource, path);
        }
    }

    fn push(&mut self, resource: Arc<Resource>, path: String) {
        self.paths.insert(resource.key().clone(), path);
        self.changes.push(Change::Put(resource));
    }

    /// Deletes what is not in `kept`. What a newer version wrote stays: it may be missing there only because whoever
    /// made the document could not read it.
    fn delete_others(&mut self, current: &Published, kept: &BTreeSet<&ResourceKey>) {
        let known = current.snapshot.iter().map(|resource| resource.key());
        let others = known.filter(|key| !kept.contains(key) && !current.unreadable.contains_key(*key));
        self.changes.extend(others.cloned().map(Change::Delete));
    }

    fn deletions(&self, current: &Published) -> Deletions {
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

    /// A proxy goes on with a certificate that has expired, but nobody should begin to; likewise with what is stapled to it.
    fn refuse_unfit_certificates(&self, now: jiff::Timestamp) -> Result<(), Refused> {
        let mut errors = Vec::new();
        for change in &self.changes {
            if let Change::Put(resource) = change
                && let Body::Certificate(certificate) = resource.body()
            {
                let found = unfit(certificate, now);
                errors.extend(found.iter().map(|error| self.locate(resource.key(), error)));
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Refused::Invalid(errors)) }
    }

    /// The changes and the relations after them, or why the set would not be closed.
    fn check(self, current: &Published) -> Result<(Vec<Change>, Relations), Refused> {
        let before = &current.snapshot;
        let next = RevisionId { epoch: before.id().epoch.clone(), number: before.id().number + 1 };
        let after = before.with(next, 0, self.changes.iter().cloned());
        match current.relations.with(before, &after, &self.changes) {
            Ok(relations) => Ok((self.changes, relations)),
            Err(problems) => Err(self.refuse(&problems)),
        }
    }

    fn refuse(&self, problems: &[Problem]) -> Refused {
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
            return Refused::Invalid(errors);
        }
        let detail = errors.first().map(|error| error.message.clone()).unwrap_or_default();
        Refused::Conflict { detail, errors }
    }

    /// The error's field within what was sent; what is elsewhere is named in the message.
    fn locate(&self, resource: &ResourceKey, error: &FieldError) -> FieldError {
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
    let staple = certificate.staple().and_then(|staple| match staple.map(|it| it.check(now.as_second())) {
        None | Some(Ok(())) => Ok(()),
        Some(Err(NotCurrent::Expired(at))) => Err(format!("expired {}", on(at))),
        Some(Err(NotCurrent::NotYet(at))) => Err(format!("is not good before it was made, {}", on(at))),
    });
    if let Err(message) = staple {
        errors.push(FieldError::new("ocsp_staple", message));
    }
    errors
}

/// A deep change of `target` by a JSON merge patch (RFC 7396, section 2).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            merge(target.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

fn put(key: &ResourceKey, mut spec: Value, current: &Published) -> Result<Plan, Refused> {
    if let Some(object) = spec.as_object_mut() {
        let name = object.entry("name").or_insert_with(|| key.name.as_str().into());
        if name.as_str().is_some_and(|name| name != key.name.as_str()) {
            let message =
                format!("is {name}, but the path says {:?}; a name cannot change", key.name.as_str());
            return Err(Refused::Invalid(vec![FieldError::new("name", message)]));
        }
    }
    let resource = parse_restoring(key.kind, spec, current).map_err(Refused::Invalid)?;
    Ok(Plan::of_one(current, Change::Put(Arc::new(resource))))
}

/// Reads what a person wrote, with the secrets that are stored where it says to keep them, and without `meta`, which
/// reading a resource gives and writing it back leaves.
fn parse_restoring(kind: Kind, mut spec: Value, current: &Published) -> Result<Resource, Vec<FieldError>> {
    if let Some(object) = spec.as_object_mut() {
        object.remove("meta");
    }
    let name = spec.get("name").and_then(Value::as_str).and_then(|name| name.parse::<Name>().ok());
    if let Some(stored) = name.and_then(|name| current.snapshot.find(&ResourceKey::new(kind, name))) {
        stored.restore_secrets(&mut spec);
    }
    Resource::parse(kind, spec, &Catalog)
}

fn is_there(current: &Published, key: &ResourceKey) -> bool {
    current.snapshot.find(key).is_some() || current.unreadable.contains_key(key)
}

fn changed(current: &Published, changes: &[Change]) -> Vec<Changed> {
    let mut changed: Vec<Changed> = changes
        .iter()
        .map(|change| Changed {
            key: change.key().clone(),
            before: current.snapshot.find(change.key()).cloned(),
            after: match change {
                Change::Put(resource) => Some(Arc::clone(resource)),
                Change::Delete(_) => None,
            },
        })
        .collect();
    changed.sort_by(|a, b| a.key.cmp(&b.key));
    changed
}

fn precondition_text(key: &ResourceKey, current: Option<&str>) -> String {
    match current {
        Some(version) => format!("{key} is at version {version:?}"),
        None => format!("{key} does not exist"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
            merge(&mut merged, &patch);
            assert_eq!(merged, result, "{target} with {patch}");
        }
    }
}
