use std::collections::BTreeSet;
use std::sync::Arc;

use signalbox_config::{Body, Change, Kind, Name, Resource, ResourceKey};
use signalbox_plugin::precedence::Source;

use super::plugins::PluginCompiler;
use super::revision::{Revision, put};
use super::users::Users;
use crate::active::Chain;
use crate::core::map::Map;
use crate::source::Rejected;

/// Compiles the chains of plugins that are attached to the resources of one kind: upstreams or listeners. They join
/// the chains of routes request by request, so nothing is built for pairs of them.
#[derive(Clone)]
pub(super) struct AttachedCompiler {
    kind: Kind,
    source: Source,
    /// The resources that have enabled plugins.
    chains: Map<Name, Arc<Chain>>,
    /// Which resources name a plugin.
    by_plugin: Users<Name>,
}

#[derive(Default)]
pub(super) struct AttachedDelta {
    /// Resource and plugin, as they were and as they are.
    before: Vec<(Name, Name)>,
    now: Vec<(Name, Name)>,
    /// `None`: the resource has no enabled plugins.
    chains: Vec<(Name, Option<Arc<Chain>>)>,
}

impl AttachedCompiler {
    /// Compiles what is attached to resources of `kind`.
    pub(super) fn new(kind: Kind, source: Source) -> Self {
        Self { kind, source, chains: Map::default(), by_plugin: Users::default() }
    }

    /// `plugins` are those of the new revision; the chains of resources that name a changed one are compiled too.
    pub(super) fn compile(
        &self,
        changes: &[&Change],
        plugin_changes: &[&Change],
        revision: Revision<'_>,
        plugins: &PluginCompiler,
    ) -> Result<AttachedDelta, Vec<Rejected>> {
        let mut delta = AttachedDelta::default();
        let mut rejections = Vec::new();
        for change in changes {
            let name = &change.key().name;
            let pairs = |resource: Option<&Arc<Resource>>| {
                let names = resource.map_or(&[][..], |resource| attached(resource));
                names.iter().map(|plugin| (name.clone(), plugin.clone())).collect::<Vec<_>>()
            };
            delta.before.extend(pairs(revision.replaced_by(change)));
            delta.now.extend(pairs(put(change)));
        }
        let own = changes.iter().map(|change| &change.key().name);
        let with_plugin = plugin_changes.iter().flat_map(|plugin| self.by_plugin.of(&plugin.key().name));
        let affected: BTreeSet<&Name> = own.chain(with_plugin).collect();
        for name in affected {
            let key = ResourceKey::new(self.kind, name.clone());
            let names = revision.now.find(&key).map_or(&[][..], |resource| attached(resource));
            let missing =
                names.iter().filter_map(|it| revision.check_reference(&key, "plugins", Kind::Plugin, it));
            rejections.extend(missing);
            let steps = plugins.steps(names, self.source);
            let chain = (!steps.is_empty()).then(|| Arc::new(Chain::of(steps, self.source)));
            delta.chains.push((name.clone(), chain));
        }
        if rejections.is_empty() { Ok(delta) } else { Err(rejections) }
    }

    pub(super) fn apply(&mut self, delta: &AttachedDelta) {
        for (name, plugin) in &delta.before {
            self.by_plugin.remove(plugin, name.clone());
        }
        for (name, plugin) in &delta.now {
            self.by_plugin.insert(plugin, name.clone());
        }
        for (name, chain) in &delta.chains {
            match chain {
                Some(chain) => self.chains.insert(name.clone(), Arc::clone(chain)),
                None => self.chains.remove(name),
            };
        }
    }

    /// The chains by the name of the resource.
    pub(super) fn chains(&self) -> &Map<Name, Arc<Chain>> {
        &self.chains
    }
}

/// The plugins that are attached to a resource.
fn attached(resource: &Resource) -> &[Name] {
    match resource.body() {
        Body::Upstream(upstream) => &upstream.plugins,
        Body::Listener(listener) => &listener.plugins,
        _ => &[],
    }
}
