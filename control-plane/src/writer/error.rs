//! Why a write was not made.

use signalbox_config::{FieldError, Kind, ResourceKey};

use super::deletions::Deletions;
use crate::store::StoreError;

/// Why a write was not made. Nothing was stored, but see [`StoreError::Unavailable`].
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
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
    /// It changes a resource of a kind that only administrators may write.
    #[error("only administrators may write {}, and this would change {key}", kind.plural())]
    NotPermitted {
        /// The kind.
        kind: Kind,
        /// Which resource.
        key: ResourceKey,
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

fn precondition_text(key: &ResourceKey, current: Option<&str>) -> String {
    match current {
        Some(version) => format!("{key} is at version {version:?}"),
        None => format!("{key} does not exist"),
    }
}
