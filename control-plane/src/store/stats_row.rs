//! Traffic, as the store has it.

use std::sync::Arc;

use bytes::Bytes;

/// The traffic that a control plane took in during some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatsRow {
    /// The number that the store gave it; later rows have greater ones.
    pub id: i64,
    /// The process of the control plane.
    pub instance: Arc<str>,
    /// The length of its slots, in seconds.
    pub resolution: u64,
    /// The number of the first part that it has.
    pub first: u64,
    /// The number of the last part that it has.
    pub last: u64,
    /// When it was made, in seconds since 1970.
    pub at: u64,
    /// The points.
    pub content: Bytes,
}
