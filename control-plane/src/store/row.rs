//! The common part of the two databases: the queries whose text is the same for both, the columns that come back,
//! and what is made of them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use signalbox_config::ResourceKey;

use super::access_row::{AuditRow, SessionRow, TokenRow, TokenSource};
use super::deadline::PAGE_CHANGES;
use super::interface::StoreError;
use super::proxy_row::{ProxyRow, ReplicaRow, RolloutRow, Stamp};
use super::revision::{
    Meta, Revision, RevisionSummary, StoredChange, StoredResource, StoredSet, UnknownChange, UnknownKey,
    UnknownResource,
};

pub(super) const RESOURCES: &str =
    "SELECT kind, name, spec, revision, created_at_us, updated_at_us, updated_by FROM resources";

/// The last version of each key up to a revision, but for those that are deletions. The inner query is answered by
/// the index of the primary key alone.
pub(super) const RESOURCES_AT: &str = "
    SELECT version.kind, version.name, version.after, version.revision, version.created_at_us,
           revisions.committed_at_us, revisions.author
    FROM (
        SELECT kind, name, MAX(revision) AS revision FROM resource_versions WHERE revision <= $1 GROUP BY kind, name
    ) AS latest
    JOIN resource_versions AS version
      ON version.kind = latest.kind AND version.name = latest.name AND version.revision = latest.revision
    JOIN revisions ON revisions.number = version.revision
    WHERE version.after IS NOT NULL";

/// kind, name, spec, revision, created_at_us, updated_at_us, updated_by
pub(super) type ResourceColumns = (String, String, Vec<u8>, i64, i64, i64, String);

/// Gathers the rows of [`RESOURCES`] or [`RESOURCES_AT`].
#[derive(Default)]
pub(super) struct Resources {
    set: StoredSet,
    /// A set of 100,000 resources has a handful of authors.
    authors: HashSet<Arc<str>>,
}

impl Resources {
    pub(super) fn push(&mut self, columns: ResourceColumns) -> Result<(), StoreError> {
        let (kind, name, spec, revision, created_at_us, updated_at_us, author) = columns;
        let key = match key(&kind, &name) {
            Ok(key) => key,
            Err(key) => {
                self.set.unknown.push(UnknownResource { key, spec: spec.into() });
                return Ok(());
            }
        };
        let updated_by = match self.authors.get(author.as_str()) {
            Some(known) => known.clone(),
            None => {
                let new: Arc<str> = author.into();
                self.authors.insert(new.clone());
                new
            }
        };
        let meta = Meta { revision: number(revision)?, created_at_us, updated_at_us, updated_by };
        self.set.resources.push(StoredResource { key, spec: spec.into(), meta });
        Ok(())
    }

    /// By kind and name. Sorted here, for the databases know nothing of the order of kinds.
    pub(super) fn finish(mut self) -> StoredSet {
        self.set.resources.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        self.set.unknown.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        self.set
    }
}

pub(super) const COMMITTED_AT: &str = "SELECT committed_at_us FROM revisions WHERE number = $1";

pub(super) const REVISION: &str =
    "SELECT number, author, message, committed_at_us, change_count FROM revisions WHERE number = $1";

pub(super) const REVISIONS_AFTER: &str = "SELECT number, author, message, committed_at_us, change_count
    FROM revisions WHERE number > $1 ORDER BY number LIMIT $2";

pub(super) const REVISIONS_BEFORE: &str = "SELECT number, author, message, committed_at_us, change_count
    FROM revisions WHERE number < $1 ORDER BY number DESC LIMIT $2";

/// number, author, message, committed_at_us, change_count
pub(super) type SummaryColumns = (i64, String, String, i64, i64);

pub(super) fn summary(columns: SummaryColumns) -> Result<RevisionSummary, StoreError> {
    let (revision, author, message, committed_at_us, change_count) = columns;
    Ok(RevisionSummary {
        number: number(revision)?,
        author: author.into(),
        message,
        committed_at_us,
        change_count: u32::try_from(change_count).map_err(broken)?,
    })
}

/// The first of a page of revisions, oldest first, as far as their changes may be read at once.
pub(super) fn readable_page(rows: Vec<SummaryColumns>) -> Result<Vec<RevisionSummary>, StoreError> {
    let mut changes = 0;
    let mut page = Vec::with_capacity(rows.len());
    for row in rows {
        let summary = summary(row)?;
        changes += u64::from(summary.change_count);
        if changes > PAGE_CHANGES && !page.is_empty() {
            break;
        }
        page.push(summary);
    }
    Ok(page)
}

/// Both ends are inclusive.
pub(super) const CHANGES: &str = "SELECT revision, kind, name, before, after
    FROM resource_versions WHERE revision BETWEEN $1 AND $2 ORDER BY revision";

/// revision, kind, name, before, after
pub(super) type ChangeColumns = (i64, String, String, Option<Vec<u8>>, Option<Vec<u8>>);

/// Puts the rows of [`CHANGES`] to their revisions, which are consecutive.
pub(super) fn revisions(
    summaries: Vec<RevisionSummary>,
    rows: Vec<ChangeColumns>,
) -> Result<Vec<Revision>, StoreError> {
    let mut revisions: Vec<_> = summaries
        .into_iter()
        .map(|summary| Revision { summary, changes: Vec::new(), unknown: Vec::new() })
        .collect();
    let Some(first) = revisions.first().map(|revision| revision.summary.number) else {
        return Ok(revisions);
    };
    for (revision, kind, name, before, after) in rows {
        let at = number(revision)?.checked_sub(first).and_then(|at| usize::try_from(at).ok());
        let revision = at
            .and_then(|at| revisions.get_mut(at))
            .ok_or_else(|| StoreError::Broken(format!("revision {revision} is missing from the log")))?;
        let (before, after) = (before.map(Bytes::from), after.map(Bytes::from));
        match key(&kind, &name) {
            Ok(key) => revision.changes.push(StoredChange { key, before, after }),
            Err(key) => revision.unknown.push(UnknownChange { key, before, after }),
        }
    }
    for revision in &mut revisions {
        let logged = revision.changes.len() + revision.unknown.len();
        if logged != revision.summary.change_count as usize {
            return Err(StoreError::Broken(format!(
                "revision {} has {logged} changes in the log instead of {}",
                revision.summary.number, revision.summary.change_count
            )));
        }
        revision.changes.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        revision.unknown.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    }
    Ok(revisions)
}

pub(super) const PROXIES: &str =
    "SELECT id, fleet, replica, instance, updated_at_us, state FROM proxies ORDER BY id";
pub(super) const PROXY_STAMPS: &str = "SELECT id, replica, instance, updated_at_us FROM proxies ORDER BY id";
pub(super) const DELETE_PROXY: &str = "DELETE FROM proxies WHERE id = $1";

/// id, fleet, replica, instance, updated_at_us, state
pub(super) type ProxyColumns = (String, String, String, String, i64, String);

pub(super) fn proxy((id, fleet, replica, instance, updated_at_us, state): ProxyColumns) -> ProxyRow {
    ProxyRow { id, fleet, replica, instance, updated_at_us, state }
}

/// id, replica, instance, updated_at_us
pub(super) type StampColumns = (String, String, String, i64);

pub(super) fn stamp((id, replica, instance, updated_at_us): StampColumns) -> (String, Stamp) {
    (id, Stamp { replica, instance, updated_at_us })
}

pub(super) const DELETE_REPLICA: &str = "DELETE FROM replicas WHERE instance = $1";

/// After how long a control plane that did not end in order is no longer listed.
pub(super) const REPLICA_KEPT_US: i64 = 24 * 60 * 60 * 1_000_000;

/// instance, name, age in microseconds
pub(super) type ReplicaColumns = (String, String, i64);

pub(super) fn replica((instance, name, age_us): ReplicaColumns) -> ReplicaRow {
    // A clock that was put back makes nobody older than now.
    ReplicaRow { instance, name, age: Duration::from_micros(age_us.max(0).unsigned_abs()) }
}

/// The last of those with the same id, by id: a statement can write a row only once, and writers that take their
/// rows in the same order do not wait for each other in a circle.
pub(super) fn last_by_id<T>(rows: &[T], id: impl Fn(&T) -> &str) -> Vec<&T> {
    let by_id: std::collections::BTreeMap<&str, &T> = rows.iter().map(|row| (id(row), row)).collect();
    by_id.into_values().collect()
}

pub(super) const ROLLOUTS: &str =
    "SELECT id, revision, fleet, state FROM rollouts ORDER BY revision DESC, fleet LIMIT $1";

/// id, revision, fleet, state
pub(super) type RolloutColumns = (String, i64, String, String);

pub(super) fn rollout((id, revision, fleet, state): RolloutColumns) -> Result<RolloutRow, StoreError> {
    Ok(RolloutRow { id, revision: number(revision)?, fleet, state })
}

pub(super) const TOKENS: &str = "SELECT name, role, hash, created_at_us FROM tokens ORDER BY name";
pub(super) const CREATE_TOKEN: &str =
    "INSERT INTO tokens (name, role, hash, created_at_us) VALUES ($1, $2, $3, $4)
    ON CONFLICT (name) DO NOTHING";
pub(super) const DELETE_TOKEN: &str = "DELETE FROM tokens WHERE name = $1";

/// name, role, hash, created_at_us
pub(super) type TokenColumns = (String, String, Vec<u8>, i64);

pub(super) fn token((name, role, hash, created_at_us): TokenColumns) -> TokenRow {
    TokenRow { name, role: role.as_str().into(), hash, created_at_us }
}

pub(super) const SESSIONS: &str =
    "SELECT id, hash, token, token_source, binding, created_at_us, last_used_at_us, expires_at_us
    FROM sessions ORDER BY created_at_us, id";
pub(super) const CREATE_SESSION: &str = "INSERT INTO sessions
    (id, hash, token, token_source, binding, created_at_us, last_used_at_us, expires_at_us)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
pub(super) const DELETE_SESSIONS_OF: &str =
    "DELETE FROM sessions WHERE token = $1 AND token_source = 'stored'";

/// id, hash, token, token_source, binding, created_at_us, last_used_at_us, expires_at_us
pub(super) type SessionColumns = (String, Vec<u8>, String, String, Vec<u8>, i64, i64, i64);

/// A session; `None` for one that a newer version made in a way that this one cannot check.
pub(super) fn session(columns: SessionColumns) -> Option<SessionRow> {
    let (id, hash, token, source, binding, created_at_us, last_used_at_us, expires_at_us) = columns;
    let sources = [TokenSource::Stored, TokenSource::Flag, TokenSource::File];
    Some(SessionRow {
        id,
        hash: hash.try_into().ok()?,
        token,
        token_source: sources.into_iter().find(|known| known.as_str() == source)?,
        binding: binding.try_into().ok()?,
        created_at_us,
        last_used_at_us,
        expires_at_us,
    })
}

pub(super) const KEY_CHECK: &str = "SELECT key_check FROM secrets";

pub(super) const AUDIT: &str =
    "SELECT id, at_us, actor, action, detail, revision FROM audit WHERE id < $1 ORDER BY id DESC LIMIT $2";
pub(super) const NOTE: &str = "INSERT INTO audit (at_us, actor, action, detail) VALUES ($1, $2, $3, $4)";

/// id, at_us, actor, action, detail, revision
pub(super) type AuditColumns = (i64, i64, String, String, String, Option<i64>);

pub(super) fn audit(columns: AuditColumns) -> Result<AuditRow, StoreError> {
    let (id, at_us, actor, action, detail, revision) = columns;
    Ok(AuditRow { id, at_us, actor, action, detail, revision: revision.map(number).transpose()? })
}

/// A revision's number as it is stored.
pub(super) fn number(stored: i64) -> Result<u64, StoreError> {
    u64::try_from(stored).map_err(|_| StoreError::Broken(format!("a revision has the number {stored}")))
}

fn key(kind: &str, name: &str) -> Result<ResourceKey, UnknownKey> {
    match (kind.parse(), name.parse()) {
        (Ok(kind), Ok(name)) => Ok(ResourceKey::new(kind, name)),
        _ => Err(UnknownKey { kind: kind.into(), name: name.into() }),
    }
}

/// The oldest schema version whose programs can work with the tables.
pub(super) const OLDEST_SCHEMA: &str = "SELECT CAST(oldest AS BIGINT) FROM schema_compatibility";

/// Refuses the tables of a newer version, unless that says that this one can work with them. `oldest` is the oldest
/// version that can, if the tables tell.
pub(super) fn check_newer_schema(version: i64, known: usize, oldest: Option<i64>) -> Result<(), String> {
    if oldest.is_some_and(|oldest| usize::try_from(oldest).is_ok_and(|oldest| oldest <= known)) {
        tracing::warn!(
            version,
            known,
            "the database was made by a newer Signalbox that says that this one can work with it"
        );
        return Ok(());
    }
    Err(format!("has schema version {version}, made by a newer Signalbox; this one knows {known}"))
}

fn broken(error: impl std::fmt::Display) -> StoreError {
    StoreError::Broken(error.to_string())
}

/// A new epoch: 128 random bits, without a colon.
pub(super) fn new_epoch() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// A revision number as the databases have it. What is beyond their range is no revision's number.
pub(super) fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
