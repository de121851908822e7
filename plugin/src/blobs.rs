//! The uploaded files that plugins use: modules, descriptor sets.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use signalbox_config::BlobId;

/// The files that the host has. A plugin names those that it uses in [`Definition::blobs`](crate::Definition::blobs), and the host
/// has them before it calls [`Definition::build`](crate::Definition::build).
#[derive(Clone)]
pub struct Blobs(Arc<dyn BlobSource>);

/// Where a host has its files.
pub trait BlobSource: Send + Sync {
    /// The content of a file; `None` if the host does not have it.
    fn get(&self, id: BlobId) -> Option<Bytes>;
}

impl Blobs {
    /// The files of `source`.
    pub fn new(source: Arc<dyn BlobSource>) -> Self {
        Self(source)
    }

    /// The content of a file; `None` if the host does not have it.
    pub fn get(&self, id: BlobId) -> Option<Bytes> {
        self.0.get(id)
    }
}

/// No files at all.
impl Default for Blobs {
    fn default() -> Self {
        Self(Arc::new(|_| None))
    }
}

impl<F: Fn(BlobId) -> Option<Bytes> + Send + Sync> BlobSource for F {
    fn get(&self, id: BlobId) -> Option<Bytes> {
        self(id)
    }
}

impl fmt::Debug for Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Blobs")
    }
}
