use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use signalbox_config::{Body, Consumer, ConsumerGroup, Kind, Name, Resource, ResourceKey};
use signalbox_plugin::precedence::{Attached as _, Source};
use signalbox_plugin::{Consumers, ResolvedSecret};

use super::credentials::resolve;
use super::plugins::PluginCompiler;
use super::revision::{ChangesByKind, Revision, put};
use super::users::Users;
use crate::active::{Chain, Step};
use crate::core::map::Map;
use crate::secrets::SecretReader;
use crate::source::Rejected;

/// Compiles consumers: their credentials, and the plugins of their own and of their groups.
#[derive(Clone, Default)]
pub(super) struct ConsumerCompiler {
    consumers: Consumers,
    /// The consumers that have enabled plugins.
    chains: Map<Name, Arc<Chain>>,
    /// Which consumers name a plugin.
    by_plugin: Users<Name>,
    /// Which consumers are in a group, if that can be one with plugins.
    by_group: Users<Name>,
    /// Which groups name a plugin.
    groups_by_plugin: Users<Name>,
}

#[derive(Default)]
pub(super) struct ConsumerDelta {
    /// Consumers that are deleted or replaced, as they were.
    removed: Vec<Arc<Resource>>,
    /// Consumers with the secrets of their credentials.
    put: Vec<(Arc<Resource>, Vec<ResolvedSecret>)>,
    /// Groups that are deleted or replaced, as they were, and those that are new.
    removed_groups: Vec<Arc<Resource>>,
    put_groups: Vec<Arc<Resource>>,
    /// `None`: the consumer has no enabled plugins.
    chains: Vec<(Name, Option<Arc<Chain>>)>,
}

impl ConsumerCompiler {
    /// `plugins` are those of the new revision; the chains of consumers that name a changed one, or are in a group that does or that
    /// changed, are compiled too.
    pub(super) fn compile(
        &self,
        changes: &ChangesByKind<'_>,
        revision: Revision<'_>,
        plugins: &PluginCompiler,
        secrets: &dyn SecretReader,
    ) -> Result<ConsumerDelta, Vec<Rejected>> {
        let mut delta = ConsumerDelta::default();
        let mut rejections = Vec::new();
        for change in &changes.consumers {
            delta.removed.extend(revision.replaced_by(change).cloned());
            let Some(resource) = put(change) else { continue };
            let Some(consumer) = consumer(resource) else { continue };
            match resolve(resource.key(), consumer, secrets) {
                Ok(secrets) => delta.put.push((Arc::clone(resource), secrets)),
                Err(errors) => rejections.extend(errors),
            }
        }
        for change in &changes.consumer_groups {
            delta.removed_groups.extend(revision.replaced_by(change).cloned());
            let Some(resource) = put(change) else { continue };
            let Some(group) = group(resource) else { continue };
            rejections.extend(missing_plugins(resource.key(), &group.plugins, revision));
            delta.put_groups.push(Arc::clone(resource));
        }
        let mut shared = SharedChains { plugins, revision, made: BTreeMap::new() };
        for name in self.affected(changes) {
            let key = ResourceKey::new(Kind::Consumer, name.clone());
            let consumer = revision.now.find(&key).and_then(|resource| consumer(resource));
            let chain = consumer.and_then(|consumer| {
                rejections.extend(missing_plugins(&key, &consumer.plugins, revision));
                shared.chain(consumer)
            });
            delta.chains.push((name.clone(), chain));
        }
        if rejections.is_empty() { Ok(delta) } else { Err(rejections) }
    }

    /// The consumers whose chain may differ.
    fn affected<'a>(&'a self, changes: &ChangesByKind<'a>) -> BTreeSet<&'a Name> {
        let own = changes.consumers.iter().map(|change| &change.key().name);
        let changed_plugins = changes.plugins.iter().map(|plugin| &plugin.key().name);
        let with_plugin = changed_plugins.clone().flat_map(|plugin| self.by_plugin.of(plugin));
        let changed_groups = changes.consumer_groups.iter().map(|group| &group.key().name);
        let groups =
            changed_groups.chain(changed_plugins.flat_map(|plugin| self.groups_by_plugin.of(plugin)));
        let groups: BTreeSet<&Name> = groups.collect();
        let in_group = groups.into_iter().flat_map(|group| self.by_group.of(group));
        own.chain(with_plugin).chain(in_group).collect()
    }

    pub(super) fn apply(&mut self, delta: &ConsumerDelta) {
        for consumer in delta.removed.iter().filter_map(|resource| consumer(resource)) {
            self.consumers.remove(consumer);
            for plugin in &consumer.plugins {
                self.by_plugin.remove(plugin, consumer.name.clone());
            }
            for group in named_groups(consumer) {
                self.by_group.remove(&group, consumer.name.clone());
            }
        }
        for (resource, secrets) in &delta.put {
            let Some(consumer) = consumer(resource) else { continue };
            self.consumers.insert(consumer, secrets);
            for plugin in &consumer.plugins {
                self.by_plugin.insert(plugin, consumer.name.clone());
            }
            for group in named_groups(consumer) {
                self.by_group.insert(&group, consumer.name.clone());
            }
        }
        for group in delta.removed_groups.iter().filter_map(|resource| group(resource)) {
            for plugin in &group.plugins {
                self.groups_by_plugin.remove(plugin, group.name.clone());
            }
        }
        for group in delta.put_groups.iter().filter_map(|resource| group(resource)) {
            for plugin in &group.plugins {
                self.groups_by_plugin.insert(plugin, group.name.clone());
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
        !self.by_plugin.is_empty() || !self.by_group.is_empty() || !self.groups_by_plugin.is_empty()
    }
}

/// The chains of one revision. Consumers with the same plugins and groups share a chain.
struct SharedChains<'a> {
    plugins: &'a PluginCompiler,
    revision: Revision<'a>,
    made: BTreeMap<Attachments<'a>, Option<Arc<Chain>>>,
}

/// The plugins and the groups of a consumer, which decide about its chain.
type Attachments<'a> = (&'a [Name], &'a [Box<str>]);

impl<'a> SharedChains<'a> {
    /// The chain of a consumer; `None`: it has no enabled plugins.
    fn chain(&mut self, consumer: &'a Consumer) -> Option<Arc<Chain>> {
        let key = (&*consumer.plugins, &*consumer.groups);
        if let Some(made) = self.made.get(&key) {
            return made.clone();
        }
        let mut steps = self.plugins.steps(&consumer.plugins, Source::Consumer);
        // A plugin of the consumer itself replaces those of its type in the groups, and the first group counts.
        for name in named_groups(consumer) {
            let key = ResourceKey::new(Kind::ConsumerGroup, name);
            let Some(group) = self.revision.now.find(&key).and_then(|resource| group(resource)) else {
                continue;
            };
            let beside: Vec<Step> = self
                .plugins
                .steps(&group.plugins, Source::Consumer)
                .into_iter()
                .filter(|step| !steps.iter().any(|kept| replaces(kept, step)))
                .collect();
            steps.extend(beside);
        }
        let chain = (!steps.is_empty()).then(|| Arc::new(Chain::of(steps, Source::Consumer)));
        self.made.insert(key, chain.clone());
        chain
    }
}

/// True if a group's plugin does not run because of one that the consumer has itself or by an earlier group.
fn replaces(kept: &Step, of_group: &Step) -> bool {
    !kept.is_shadow() && kept.types().intersects(of_group.types())
}

/// The groups of a consumer that a resource can describe: others have names that no resource has.
fn named_groups(consumer: &Consumer) -> impl Iterator<Item = Name> + '_ {
    consumer.groups.iter().filter_map(|group| group.parse().ok())
}

fn missing_plugins(key: &ResourceKey, plugins: &[Name], revision: Revision<'_>) -> Vec<Rejected> {
    let missing = plugins.iter().filter_map(|it| revision.check_reference(key, "plugins", Kind::Plugin, it));
    missing.collect()
}

fn consumer(resource: &Resource) -> Option<&Consumer> {
    match resource.body() {
        Body::Consumer(consumer) => Some(consumer),
        _ => None,
    }
}

fn group(resource: &Resource) -> Option<&ConsumerGroup> {
    match resource.body() {
        Body::ConsumerGroup(group) => Some(group),
        _ => None,
    }
}
