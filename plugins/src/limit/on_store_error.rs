//! The treatment of requests while a store that proxies share is away.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The treatment of requests while Redis does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnStoreError {
    /// Each proxy counts by itself, from zero.
    #[default]
    Local,
    /// They pass.
    Allow,
    /// They are answered 503.
    Deny,
}
