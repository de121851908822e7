//! The current set in memory, kept in step with the store's log, and published to all who read it.

mod blobs;
mod commit;
mod decisions;
mod history;
mod published;
mod publisher;
mod purges;

pub use blobs::{UploadError, UploadedFiles};
pub use history::History;
pub(crate) use published::named_fleets;
pub use published::{Assigned, ProxyTarget, Published};
pub use publisher::{Health, OnPublish, Publisher};
pub use purges::{Due, PurgeLog, StoredPurges};
