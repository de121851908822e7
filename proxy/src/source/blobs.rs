//! The uploaded files that plugins use. They are not part of revisions: the proxy fetches those that it does not have before it applies
//! a revision that names them, and keeps them in its data directory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use signalbox_config::{BlobId, Body, Change, Kind, Resource, ResourceKey, Snapshot};
use signalbox_plugin::blobs::BlobSource;
use signalbox_proto::signalbox::report::v1::BlobRequest;
use signalbox_proto::signalbox::report::v1::report_service_client::ReportServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::authorize::authorize;
use super::data_plane::{Candidate, Rejected};
use super::last_good::replace_file;

/// The directory of uploaded files, each under its SHA-256.
#[derive(Debug)]
pub struct BlobDir {
    path: PathBuf,
    /// The files that could not be written.
    unsaved: Mutex<HashMap<BlobId, Bytes>>,
}

/// A file that a plugin needs and the proxy does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    id: BlobId,
    plugin: ResourceKey,
    /// The path of the field that names it.
    field: String,
}

impl BlobDir {
    /// The files in the directory `path`, which is made when the first one is saved.
    pub fn new(path: PathBuf) -> Self {
        Self { path, unsaved: Mutex::default() }
    }

    fn unsaved(&self) -> MutexGuard<'_, HashMap<BlobId, Bytes>> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files that these plugins need and that are not here, each once. Blocks.
    fn missing(&self, plugins: &[Arc<Resource>]) -> Vec<Missing> {
        let mut missing: BTreeMap<BlobId, Missing> = BTreeMap::new();
        for resource in plugins {
            for (id, field) in files_of(resource) {
                if !missing.contains_key(id) && self.get(*id).is_none() {
                    let (plugin, field) = (resource.key().clone(), field.clone());
                    missing.insert(*id, Missing { id: *id, plugin, field });
                }
            }
        }
        missing.into_values().collect()
    }

    /// Keeps a file, in memory if it cannot be written. Blocks.
    fn save(&self, id: BlobId, content: Bytes) {
        let path = self.path.join(id.to_string());
        let written = std::fs::create_dir_all(&self.path)
            .and_then(|()| replace_file(&path, |file| file.write_all(&content)).map(drop));
        if let Err(error) = written {
            tracing::error!(path = %path.display(), %error, "an uploaded file cannot be written; it is kept in memory");
            self.unsaved().insert(id, content);
        }
    }

    /// Deletes the files that no plugin of `snapshot` uses, but for those that were written last: the proxy may go back to them.
    /// Blocks.
    fn delete_unused(&self, snapshot: &Snapshot) {
        let plugins = snapshot.of_kind(Kind::Plugin, None);
        let used: HashSet<BlobId> = plugins.flat_map(|plugin| files_of(plugin)).map(|(id, _)| *id).collect();
        self.unsaved().retain(|id, _| used.contains(id));
        let Ok(entries) = std::fs::read_dir(&self.path) else { return };
        let mut unused: Vec<(SystemTime, PathBuf)> = entries
            .filter_map(Result::ok)
            .filter(|entry| {
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse().ok())
                    .is_some_and(|id| !used.contains(&id))
            })
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        unused.sort_unstable_by(|a, b| b.cmp(a));
        for (_, path) in unused.into_iter().skip(KEPT_UNUSED) {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "an uploaded file that is not used cannot be deleted");
            }
        }
    }
}

impl BlobSource for BlobDir {
    fn get(&self, id: BlobId) -> Option<Bytes> {
        if let Some(content) = self.unsaved().get(&id) {
            return Some(content.clone());
        }
        read(&self.path.join(id.to_string())).filter(|content| BlobId::of(content) == id)
    }
}

/// Reads a file that is not larger than uploaded files are.
fn read(path: &Path) -> Option<Bytes> {
    let is_sane = std::fs::metadata(path).ok()?.len() <= BlobId::MAX_SIZE as u64;
    if is_sane { std::fs::read(path).ok().map(Bytes::from) } else { None }
}

/// The files that a resource uses, each with its field. A plugin that is not enabled uses none.
fn files_of(resource: &Resource) -> &[(BlobId, String)] {
    match resource.body() {
        Body::Plugin(plugin) if plugin.enabled => &plugin.files,
        _ => &[],
    }
}

/// Fetches files from a control plane.
pub(super) struct BlobFetcher {
    pub(super) channel: Channel,
    pub(super) token: Option<MetadataValue<Ascii>>,
    pub(super) dir: Arc<BlobDir>,
}

impl BlobFetcher {
    /// Fetches the files that the changed plugins of `candidate` need and that the proxy does not have.
    pub(super) async fn fetch_missing(&self, candidate: &Candidate) -> Result<(), Vec<Rejected>> {
        let plugins = candidate.changes.iter().filter_map(|change| match change {
            Change::Put(resource) => (!files_of(resource).is_empty()).then(|| Arc::clone(resource)),
            Change::Delete(_) => None,
        });
        let plugins: Vec<Arc<Resource>> = plugins.collect();
        if plugins.is_empty() {
            return Ok(());
        }
        let dir = Arc::clone(&self.dir);
        // A panic of it is one of applying the revision, which looks for the files again and reports it.
        let looking = tokio::task::spawn_blocking(move || dir.missing(&plugins));
        let missing = looking.await.unwrap_or_default();
        let mut rejected = Vec::new();
        for file in missing {
            if let Err(reason) = self.fetch(file.id).await {
                let message = format!("the uploaded file {} cannot be fetched: {reason}", file.id);
                rejected.push(Rejected { key: Some(file.plugin), field: file.field, message });
            }
        }
        if rejected.is_empty() { Ok(()) } else { Err(rejected) }
    }

    async fn fetch(&self, id: BlobId) -> Result<(), String> {
        let content = match tokio::time::timeout(DEADLINE, self.download(id)).await {
            Ok(Ok(content)) => content,
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                return Err("this control plane has none; update control planes first".to_owned());
            }
            Ok(Err(status)) => return Err(status.message().to_owned()),
            Err(_) => return Err(format!("it did not come within {} s", DEADLINE.as_secs())),
        };
        if BlobId::of(&content) != id {
            return Err("it has another SHA-256".to_owned());
        }
        tracing::info!(file = %id, bytes = content.len(), "an uploaded file was fetched");
        let dir = Arc::clone(&self.dir);
        let saving = tokio::task::spawn_blocking(move || dir.save(id, content));
        saving.await.map_err(|error| format!("it cannot be kept: {error}"))
    }

    async fn download(&self, id: BlobId) -> Result<Bytes, Status> {
        let mut request = Request::new(BlobRequest { sha256: id.to_string() });
        authorize(&mut request, self.token.as_ref());
        let mut parts =
            ReportServiceClient::new(self.channel.clone()).fetch_blob(request).await?.into_inner();
        let mut content = BytesMut::new();
        while let Some(part) = parts.message().await? {
            if content.len() + part.content.len() > BlobId::MAX_SIZE {
                return Err(Status::out_of_range("it is larger than uploaded files are"));
            }
            content.extend_from_slice(&part.content);
        }
        Ok(content.freeze())
    }

    /// Deletes the files that the applied revision does not use, if its changes may have left any.
    pub(super) async fn delete_unused(&self, snapshot: &Snapshot, changes: &[Change]) {
        if changes.iter().any(|change| change.key().kind == Kind::Plugin) {
            let (dir, snapshot) = (Arc::clone(&self.dir), snapshot.clone());
            // A file that cannot be deleted is only in the way.
            let _ = tokio::task::spawn_blocking(move || dir.delete_unused(&snapshot)).await;
        }
    }
}

/// The time in which a file must be there: the largest one at 6 Mbit/s.
const DEADLINE: Duration = Duration::from_secs(45);

/// The number of files that are kept although no plugin uses them.
const KEPT_UNUSED: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_kept_under_its_digest_and_a_damaged_one_is_missing() {
        let home = tempfile::tempdir().unwrap();
        let dir = BlobDir::new(home.path().join("blobs"));
        let content = Bytes::from_static(b"module");
        let id = BlobId::of(&content);
        assert_eq!(dir.get(id), None);
        dir.save(id, content.clone());
        assert_eq!(dir.get(id), Some(content.clone()));
        std::fs::write(home.path().join("blobs").join(id.to_string()), b"modules").unwrap();
        assert_eq!(dir.get(id), None, "another content");
        dir.save(id, content.clone());
        assert_eq!(dir.get(id), Some(content));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_kept_in_memory() {
        let home = tempfile::tempdir().unwrap();
        let in_the_way = home.path().join("blobs");
        std::fs::write(&in_the_way, b"no directory").unwrap();
        let dir = BlobDir::new(in_the_way);
        let content = Bytes::from_static(b"module");
        dir.save(BlobId::of(&content), content.clone());
        assert_eq!(dir.get(BlobId::of(&content)), Some(content));
        dir.delete_unused(&Snapshot::empty("e"));
        assert_eq!(dir.get(BlobId::of(b"module")), None, "a file that nothing uses is not kept in memory");
    }

    #[test]
    fn only_the_newest_of_the_files_that_nothing_uses_stay() {
        let home = tempfile::tempdir().unwrap();
        let dir = BlobDir::new(home.path().to_owned());
        std::fs::write(home.path().join("note.txt"), b"not ours").unwrap();
        for number in 0..20_u8 {
            dir.save(BlobId::of(&[number]), Bytes::copy_from_slice(&[number]));
        }
        dir.delete_unused(&Snapshot::empty("e"));
        let left = (0..20_u8).filter(|number| dir.get(BlobId::of(&[*number])).is_some()).count();
        assert_eq!(left, KEPT_UNUSED);
        assert!(home.path().join("note.txt").exists());
    }
}
