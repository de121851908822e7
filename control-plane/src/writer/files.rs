//! The check of the uploaded files that a write's plugins use. It reads the store and may take seconds, so it is done without the lock
//! under which revisions are made.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use signalbox_config::{BlobId, Errors, FieldError};
use signalbox_plugin::{Blobs, Registry};

use super::error::WriteError;
use crate::publish::UploadedFiles;
use crate::store::StoreError;

/// A plugin that uses uploaded files.
#[derive(Debug, Clone)]
pub(super) struct FilesOfPlugin {
    pub(super) type_name: Arc<str>,
    /// Its configuration, canonical JSON.
    pub(super) config: Bytes,
    /// The files, each with the field that names it.
    pub(super) files: Box<[(BlobId, String)]>,
    /// The place of the plugin in what was sent.
    pub(super) path: String,
}

impl FilesOfPlugin {
    /// The names of its files.
    pub(super) fn ids(&self) -> impl Iterator<Item = BlobId> {
        self.files.iter().map(|(id, _)| *id)
    }
}

/// The plugins whose files were checked in the course of a write, by type and configuration.
#[derive(Debug, Default)]
pub(super) struct CheckedFiles(HashSet<(Arc<str>, Bytes)>);

impl CheckedFiles {
    pub(super) fn contain(&self, plugin: &FilesOfPlugin) -> bool {
        self.0.contains(&(Arc::clone(&plugin.type_name), plugin.config.clone()))
    }

    /// Checks the files of `plugins`.
    pub(super) async fn check(
        &mut self,
        plugins: Vec<FilesOfPlugin>,
        uploaded: &UploadedFiles,
        types: &Registry,
    ) -> Result<(), WriteError> {
        let mut errors = Errors::default();
        let unknown = uploaded.missing(&plugins.iter().flat_map(FilesOfPlugin::ids).collect()).await?;
        for plugin in plugins {
            let mut contents: HashMap<BlobId, Bytes> = HashMap::new();
            let mut found = Errors::default();
            for (id, field) in &plugin.files {
                let content = if unknown.contains(id) { None } else { uploaded.read(*id).await? };
                match content {
                    Some(content) => drop(contents.insert(*id, content)),
                    None => found.push(field, missing(*id)),
                }
            }
            if found.is_empty() {
                found.extend_below("config", check_contents(&plugin, contents, types.clone()).await?);
            }
            errors.extend_below(&plugin.path, found.finish(Some(())).err().unwrap_or_default());
            self.0.insert((plugin.type_name, plugin.config));
        }
        errors.finish(Some(())).map_err(WriteError::Invalid)
    }
}

fn missing(id: BlobId) -> String {
    format!("there is no uploaded file {id}; upload it with PUT /api/v1/blobs/{id}")
}

/// Lets the plugin type check the files, on a thread that may take its time.
async fn check_contents(
    plugin: &FilesOfPlugin,
    contents: HashMap<BlobId, Bytes>,
    types: Registry,
) -> Result<Vec<FieldError>, WriteError> {
    let (type_name, config) = (Arc::clone(&plugin.type_name), plugin.config.clone());
    let checking = tokio::task::spawn_blocking(move || {
        let config: Value = serde_json::from_slice(&config).unwrap_or_default();
        let blobs = Blobs::new(Arc::new(move |id| contents.get(&id).cloned()));
        types.find(&type_name).map(|plugin_type| plugin_type.check_blobs(&config, &blobs)).unwrap_or_default()
    });
    checking
        .await
        .map_err(|error| StoreError::Broken(format!("an uploaded file cannot be checked: {error}")).into())
}
