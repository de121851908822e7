use std::collections::BTreeSet;
use std::sync::Arc;

use signalbox_config::{
    Body, Change, Consumer, Kind, Name, Resource, ResourceKey, Secret, check_key, sha256, without_line_break,
};
use signalbox_plugin::Consumers;

use super::plugins::PluginCompiler;
use super::revision::{Revision, put, rejected};
use super::users::Users;
use crate::active::Chain;
use crate::core::map::Map;
use crate::secrets::{SecretReader, SecretSource};
use crate::source::Rejected;

/// Compiles consumers: their credentials, and their own plugins.
#[derive(Clone, Default)]
pub(super) struct ConsumerCompiler {
    consumers: Consumers,
    /// The consumers that have enabled plugins.
    chains: Map<Name, Arc<Chain>>,
    /// Which consumers name a plugin.
    by_plugin: Users<Name>,
}

#[derive(Default)]
pub(super) struct ConsumerDelta {
    /// Consumers that are deleted or replaced, as they were.
    removed: Vec<Arc<Resource>>,
    /// Consumers with the hashes of their API keys.
    put: Vec<(Arc<Resource>, Vec<[u8; 32]>)>,
    /// `None`: the consumer has no enabled plugins.
    chains: Vec<(Name, Option<Arc<Chain>>)>,
}

impl ConsumerCompiler {
    /// `plugins` are those of the new revision; the chains of consumers that name a changed one are compiled too.
    pub(super) fn compile(
        &self,
        changes: &[&Change],
        plugin_changes: &[&Change],
        revision: Revision<'_>,
        plugins: &PluginCompiler,
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
        let own = changes.iter().map(|change| &change.key().name);
        let with_plugin = plugin_changes.iter().flat_map(|plugin| self.by_plugin.of(&plugin.key().name));
        let affected: BTreeSet<&Name> = own.chain(with_plugin).collect();
        for name in affected {
            let key = ResourceKey::new(Kind::Consumer, name.clone());
            let names = revision.now.find(&key).and_then(|resource| consumer(resource));
            let names = names.map_or(&[][..], |consumer| &consumer.plugins);
            let missing =
                names.iter().filter_map(|it| revision.check_reference(&key, "plugins", Kind::Plugin, it));
            rejections.extend(missing);
            let steps = plugins.steps(names);
            let chain = (!steps.is_empty()).then(|| Arc::new(Chain::of(steps)));
            delta.chains.push((name.clone(), chain));
        }
        if rejections.is_empty() { Ok(delta) } else { Err(rejections) }
    }

    pub(super) fn apply(&mut self, delta: &ConsumerDelta) {
        for consumer in delta.removed.iter().filter_map(|resource| consumer(resource)) {
            self.consumers.remove(&consumer.name);
            for plugin in &consumer.plugins {
                self.by_plugin.remove(plugin, consumer.name.clone());
            }
        }
        for (resource, keys) in &delta.put {
            let Some(consumer) = consumer(resource) else { continue };
            self.consumers.insert(consumer, keys);
            for plugin in &consumer.plugins {
                self.by_plugin.insert(plugin, consumer.name.clone());
            }
        }
        for (name, chain) in &delta.chains {
            match chain {
                Some(chain) => self.chains.insert(name.clone(), Arc::clone(chain)),
                None => self.chains.remove(name),
            };
        }
    }

    pub(super) fn all(&self) -> &Consumers {
        &self.consumers
    }

    pub(super) fn chains(&self) -> &Map<Name, Arc<Chain>> {
        &self.chains
    }

    #[cfg(test)]
    pub(super) fn has_references(&self) -> bool {
        !self.by_plugin.is_empty()
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
