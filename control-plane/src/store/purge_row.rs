//! A purge of cached responses, as the store has it.

use std::sync::Arc;

/// A purge of cached responses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PurgeRow {
    /// Its number. Later purges have greater ones.
    pub number: u64,
    /// The selection: a [`signalbox_config::Purge`] as JSON.
    pub purge: Arc<str>,
}
