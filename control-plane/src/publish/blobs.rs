//! The uploaded files, as writes check them and proxies get them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use signalbox_config::BlobId;

use crate::store::{BlobRow, Held, Store, StoreError};

/// The uploaded files. Those that were read last are kept in memory, so that a thousand proxies that need a new file do not read it
/// a thousand times.
pub struct UploadedFiles {
    store: Arc<dyn Store>,
    /// The files that were read last, the newest at the end.
    recent: Mutex<VecDeque<(BlobId, Bytes)>>,
    /// Held by the one who reads a file, so that each is read once.
    reading: tokio::sync::Mutex<()>,
}

/// The bytes of all files together.
pub(crate) const MAX_TOTAL: u64 = 1 << 30;

/// The bytes of the files that are kept in memory; the last one is kept in any case.
const MAX_RECENT: usize = 64 << 20;

/// Why a file was not stored.
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
        Self { store, recent: Mutex::default(), reading: tokio::sync::Mutex::default() }
    }

    fn recent(&self) -> MutexGuard<'_, VecDeque<(BlobId, Bytes)>> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find_recent(&self, id: BlobId) -> Option<Bytes> {
        self.recent().iter().find(|(known, _)| *known == id).map(|(_, content)| content.clone())
    }

    /// The content of a file; `None`: there is none of this name. One that another replica has just deleted may still be read.
    pub async fn read(&self, id: BlobId) -> Result<Option<Bytes>, StoreError> {
        if let Some(content) = self.find_recent(id) {
            return Ok(Some(content));
        }
        let _reading = self.reading.lock().await;
        if let Some(content) = self.find_recent(id) {
            return Ok(Some(content));
        }
        let Some(content) = self.store.blob(id).await? else { return Ok(None) };
        let mut recent = self.recent();
        recent.push_back((id, content.clone()));
        while recent.len() > 1 && recent.iter().map(|(_, content)| content.len()).sum::<usize>() > MAX_RECENT
        {
            recent.pop_front();
        }
        Ok(Some(content))
    }

    /// Those of these files that the store does not have.
    pub(crate) async fn missing(&self, ids: &BTreeSet<BlobId>) -> Result<BTreeSet<BlobId>, StoreError> {
        let stored: BTreeSet<BlobId> = self.store.blobs().await?.into_iter().map(|row| row.id).collect();
        Ok(ids - &stored)
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

    /// Deletes a file that no plugin uses; whether it was there.
    pub(super) async fn delete(&self, held: Held, id: BlobId) -> Result<bool, StoreError> {
        // Whoever reads it meanwhile must not bring it back.
        let _reading = self.reading.lock().await;
        let deleted = self.store.delete_blob(held, id).await?;
        self.recent().retain(|(known, _)| *known != id);
        Ok(deleted)
    }
}
