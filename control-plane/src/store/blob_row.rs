//! Uploaded files, as the store has them.

use signalbox_config::BlobId;

/// An uploaded file without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRow {
    /// The SHA-256 of the content.
    pub id: BlobId,
    /// The length of the content in bytes.
    pub size: u64,
    /// The time of the upload, microseconds since 1970.
    pub created_at_us: i64,
    /// The name of the token that uploaded it.
    pub created_by: String,
}
