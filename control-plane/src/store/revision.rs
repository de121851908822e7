//! Revisions and resources, as the store has them.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use signalbox_config::{ResourceKey, RevisionId};

use super::rollout_row::{PinnedFleet, Urgent};

/// The current set.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The revision it is of.
    pub head: RevisionId,
    /// When that was committed, microseconds since 1970; 0 for revision 0.
    pub committed_at_us: i64,
    /// By kind and name.
    pub resources: Vec<StoredResource>,
    /// Those that this version cannot name, by kind and name.
    pub unknown: Vec<UnknownResource>,
}

/// The set as it was at a revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredSet {
    /// By kind and name.
    pub resources: Vec<StoredResource>,
    /// Those that this version cannot name, by kind and name.
    pub unknown: Vec<UnknownResource>,
}

/// Kind and name of a resource that a newer version wrote: of a kind, or with a form of name, that this version does
/// not know.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnknownKey {
    /// As it is stored.
    pub kind: Arc<str>,
    /// As it is stored.
    pub name: Arc<str>,
}

impl fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// A resource that a newer version wrote. Its bytes are never shown: they may hold secrets that this version does not
/// know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownResource {
    /// Kind and name.
    pub key: UnknownKey,
    /// As it is stored.
    pub spec: Bytes,
}

/// One change of a resource that a newer version wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownChange {
    /// The resource's key.
    pub key: UnknownKey,
    /// `None`: it was not there.
    pub before: Option<Bytes>,
    /// `None`: it was deleted.
    pub after: Option<Bytes>,
}

/// A resource as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredResource {
    /// Kind and name.
    pub key: ResourceKey,
    /// Canonical JSON; to be kept byte for byte.
    pub spec: Bytes,
    /// The author and the time.
    pub meta: Meta,
}

/// The author and the times of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// The revision that wrote it last.
    pub revision: u64,
    /// Microseconds since 1970; kept over updates, not over a deletion.
    pub created_at_us: i64,
    /// Microseconds since 1970.
    pub updated_at_us: i64,
    /// The author of that revision.
    pub updated_by: Arc<str>,
}

/// A revision to be made.
#[derive(Debug, Clone)]
pub struct NewRevision {
    /// The name of the token, or of who else did it.
    pub author: Arc<str>,
    /// For people; may be empty.
    pub message: String,
    /// The request, for the audit trail: `PUT /api/v1/routes/users`.
    pub action: String,
    /// Never empty; one for each key.
    pub changes: Vec<NewChange>,
    /// Fleets whose policy becomes progressive with it.
    pub pinned: Vec<PinnedFleet>,
    /// Set if progressive fleets are to get it otherwise than by their policy.
    pub urgent: Option<Urgent>,
}

/// One change of a revision to be made.
#[derive(Debug, Clone)]
pub struct NewChange {
    /// The resource's key.
    pub key: ResourceKey,
    /// Canonical JSON; `None`: deleted.
    pub spec: Option<Bytes>,
}

/// A revision that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Its number.
    pub number: u64,
    /// When, by the control plane's clock, microseconds since 1970.
    pub committed_at_us: i64,
}

/// A revision without its changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionSummary {
    /// Its number.
    pub number: u64,
    /// The author.
    pub author: Arc<str>,
    /// For people.
    pub message: String,
    /// Microseconds since 1970.
    pub committed_at_us: i64,
    /// How many resources it changed.
    pub change_count: u32,
}

/// A revision with its changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    /// All but the changes.
    pub summary: RevisionSummary,
    /// By kind and name.
    pub changes: Vec<StoredChange>,
    /// The changes of resources that this version cannot name, by kind and name.
    pub unknown: Vec<UnknownChange>,
}

/// One change: the full before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChange {
    /// The resource's key.
    pub key: ResourceKey,
    /// `None`: it was not there.
    pub before: Option<Bytes>,
    /// `None`: it was deleted.
    pub after: Option<Bytes>,
}
