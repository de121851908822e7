use std::sync::Arc;

use signalbox_config::{
    Body, Change, Consumer, Resource, ResourceKey, Secret, check_key, sha256, without_line_break,
};
use signalbox_plugin::Consumers;

use super::revision::{Revision, put, rejected};
use crate::secrets::{SecretReader, SecretSource};
use crate::source::Rejected;

/// Compiles consumers and their credentials.
#[derive(Clone, Default)]
pub(super) struct ConsumerCompiler {
    consumers: Consumers,
}

#[derive(Default)]
pub(super) struct ConsumerDelta {
    /// Consumers that are deleted or replaced, as they were.
    removed: Vec<Arc<Resource>>,
    /// Consumers with the hashes of their API keys.
    put: Vec<(Arc<Resource>, Vec<[u8; 32]>)>,
}

impl ConsumerCompiler {
    pub(super) fn compile(
        changes: &[&Change],
        revision: Revision<'_>,
        secrets: &dyn SecretReader,
    ) -> Result<ConsumerDelta, Vec<Rejected>> {
        let mut delta = ConsumerDelta::default();
        let mut rejections = Vec::new();
        for change in changes {
            delta.removed.extend(revision.replaced_by(change).cloned());
            let Some(resource) = put(change) else { continue };
            let Some(consumer) = consumer(resource) else { continue };
            match hash_keys(resource.key(), consumer, secrets) {
                Ok(keys) => delta.put.push((Arc::clone(resource), keys)),
                Err(errors) => rejections.extend(errors),
            }
        }
        if rejections.is_empty() { Ok(delta) } else { Err(rejections) }
    }

    pub(super) fn apply(&mut self, delta: &ConsumerDelta) {
        for consumer in delta.removed.iter().filter_map(|resource| consumer(resource)) {
            self.consumers.remove(&consumer.name);
        }
        for (resource, keys) in &delta.put {
            if let Some(consumer) = consumer(resource) {
                self.consumers.insert(consumer, keys);
            }
        }
    }

    pub(super) fn all(&self) -> &Consumers {
        &self.consumers
    }
}

fn consumer(resource: &Resource) -> Option<&Consumer> {
    match resource.body() {
        Body::Consumer(consumer) => Some(consumer),
        _ => None,
    }
}

/// The hashes of a consumer's API keys. Keys that lie on this host are read there.
fn hash_keys(
    key: &ResourceKey,
    consumer: &Consumer,
    secrets: &dyn SecretReader,
) -> Result<Vec<[u8; 32]>, Vec<Rejected>> {
    let mut hashes = Vec::with_capacity(consumer.keys.len());
    let mut rejections = Vec::new();
    for (index, credential) in consumer.keys.iter().enumerate() {
        let hash = match &credential.key {
            Secret::Hash(hash) => Ok(*hash),
            Secret::Env(name) => hash_secret(SecretSource::Env(name), secrets),
            Secret::File(path) => hash_secret(SecretSource::File(path), secrets),
        };
        match hash {
            Ok(hash) => hashes.push(hash),
            Err(message) => {
                rejections.push(rejected(key, format!("credentials[{index}].key_auth.key"), message));
            }
        }
    }
    if rejections.is_empty() { Ok(hashes) } else { Err(rejections) }
}

/// The hash of the API key that lies at `source`, without the line break that ends it. The error is for people.
fn hash_secret(source: SecretSource<'_>, secrets: &dyn SecretReader) -> Result<[u8; 32], String> {
    let read = secrets.read(source).map_err(|error| format!("{source} {error}"))?;
    let key = without_line_break(&read);
    if key.is_empty() {
        return Err(format!("{source} is empty"));
    }
    check_key(key).map_err(|error| format!("{source} {error}"))?;
    Ok(sha256(key))
}
