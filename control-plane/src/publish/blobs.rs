//! The uploaded files, as writes check them and proxies get them.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use signalbox_config::BlobId;

use crate::store::{BlobRow, Store, StoreError};

/// The uploaded files. Those that were read last are kept in memory, so that a thousand proxies that need a new file do not read it
/// a thousand times.
pub struct UploadedFiles {
    store: Arc<dyn Store>,
    /// The files that were read last, the newest at the end. Whoever reads the store holds the lock, so each file is read once.
    recent: tokio::sync::Mutex<VecDeque<(BlobId, Bytes)>>,
}

/// The bytes of all files together.
pub(crate) const MAX_TOTAL: u64 = 1 << 30;

/// The bytes of the files that are kept in memory; the last one is kept in any case.
const MAX_RECENT: usize = 64 << 20;

/// A file that is there, or why it is not.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// All files together would be larger than [`MAX_TOTAL`].
    #[error(
        "all uploaded files together would have {0} bytes, and may have {max}: delete files that no plugin uses",
        max = MAX_TOTAL
    )]
    Full(u64),
    /// The store did not do it.
    #[error("the file could not be stored")]
    Store(#[from] StoreError),
}

impl UploadedFiles {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, recent: tokio::sync::Mutex::default() }
    }

    /// The content of a file; `None`: there is none of this name.
    pub async fn read(&self, id: BlobId) -> Result<Option<Bytes>, StoreError> {
        let mut recent = self.recent.lock().await;
        if let Some((_, content)) = recent.iter().find(|(known, _)| *known == id) {
            return Ok(Some(content.clone()));
        }
        let Some(content) = self.store.blob(id).await? else { return Ok(None) };
        recent.push_back((id, content.clone()));
        while recent.len() > 1 && recent.iter().map(|(_, content)| content.len()).sum::<usize>() > MAX_RECENT
        {
            recent.pop_front();
        }
        Ok(Some(content))
    }

    /// Stores a file; `false`: it is there already.
    pub async fn save(&self, row: &BlobRow, content: &[u8]) -> Result<bool, UploadError> {
        let rows = self.store.blobs().await?;
        if rows.iter().any(|known| known.id == row.id) {
            return Ok(false);
        }
        let total = rows.iter().map(|row| row.size).sum::<u64>() + row.size;
        if total > MAX_TOTAL {
            return Err(UploadError::Full(total));
        }
        Ok(self.store.save_blob(row, content).await?)
    }

    /// All files, the newest first.
    pub async fn list(&self) -> Result<Vec<BlobRow>, StoreError> {
        self.store.blobs().await
    }

    /// Deletes a file; whether it was there.
    pub async fn delete(&self, id: BlobId) -> Result<bool, StoreError> {
        self.recent.lock().await.retain(|(known, _)| *known != id);
        self.store.delete_blob(id).await
    }
}
