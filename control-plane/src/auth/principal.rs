//! The principal behind a token or a session.

use std::sync::Arc;

use crate::store::{StoredRole, TokenSource};

/// A caller that a token or a session authenticates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The name of its token; the author of what it does.
    pub name: Arc<str>,
    /// The role, which says what it may do.
    pub role: StoredRole,
    /// Where its token is from.
    pub source: TokenSource,
}

/// Says if looking up a session counts as its use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Somebody did something.
    Counts,
    /// A stream that was opened before is checked.
    Silent,
}
