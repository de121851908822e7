use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use signalbox_config::{Change, Name};
use signalbox_plugin::precedence::{Source, overridden_by};

use super::free_slots::FreeSlots;
use super::plugins::{PluginCompiler, PluginDelta};
use super::revision::{Revision, enabled_route, put};
use super::users::Users;
use crate::active::{Chain, ChainSlot, Step};
use crate::core::map::Map;
use crate::core::slots::SlotTable;

/// Compiles the plugin chains of routes. Routes with equal lists of plugins share a chain.
#[derive(Clone)]
pub(super) struct ChainCompiler {
    table: SlotTable<Chain>,
    /// The lists that enabled routes have, as they are written; the empty list is not among them.
    lists: Map<PluginList, ListUse>,
    free_slots: FreeSlots<Chain>,
    /// Which lists name a plugin.
    by_plugin: Users<PluginList>,
}

type PluginList = Arc<[Name]>;

#[derive(Clone, Copy)]
struct ListUse {
    slot: ChainSlot,
    /// The number of routes with the list.
    routes: u32,
}

pub(super) struct ChainDelta {
    /// The number of routes with a list now; at 0 its chain is freed.
    routes: Vec<(PluginList, u32)>,
    /// Chains that are new, or have a plugin that changed.
    built: Vec<(PluginList, Arc<Chain>)>,
}

impl Default for ChainCompiler {
    /// The chain of routes without plugins of their own is always there.
    fn default() -> Self {
        let mut free_slots = FreeSlots::default();
        let mut table = SlotTable::default();
        table.set(free_slots.take(), Arc::new(Chain::of(Vec::new(), Source::Route)));
        Self { table, lists: Map::default(), free_slots, by_plugin: Users::default() }
    }
}

impl ChainCompiler {
    /// `plugins` are those of the new revision. The references of routes to plugins are checked with the routes, so chains
    /// are never rejected.
    pub(super) fn compile(
        &self,
        route_changes: &[&Change],
        plugin_changes: &[&Change],
        revision: Revision<'_>,
        plugins: &PluginCompiler,
        plugin_delta: &PluginDelta,
    ) -> ChainDelta {
        let mut affected: BTreeSet<PluginList> =
            plugin_changes.iter().flat_map(|plugin| self.by_plugin.of(&plugin.key().name)).cloned().collect();
        if plugin_delta.changes_globals {
            affected.insert(Arc::default());
            affected.extend(self.lists.keys().cloned());
        }
        let mut routes = Vec::new();
        for (list, change) in count_lists(route_changes, revision) {
            let known = self.lists.get_key_value(list);
            let before = known.map_or(0, |(_, list_use)| list_use.routes);
            let now = before.saturating_add_signed(change);
            let list = known.map_or_else(|| list.into(), |(list, _)| Arc::clone(list));
            if now == 0 {
                affected.remove(&list);
            } else if before == 0 {
                affected.insert(Arc::clone(&list));
            }
            routes.push((list, now));
        }
        let globals = if affected.is_empty() { Vec::new() } else { plugins.global_steps() };
        let built = affected.into_iter().map(|list| {
            let chain = route_chain(plugins.steps(&*list, Source::Route), &globals);
            (list, Arc::new(chain))
        });
        ChainDelta { routes, built: built.collect() }
    }

    pub(super) fn apply(&mut self, delta: &ChainDelta) {
        // Routes that had a freed chain have another one in the same revision, so its slot may be given away at once.
        for (list, _) in delta.routes.iter().filter(|(_, routes)| *routes == 0) {
            let Some(ListUse { slot, .. }) = self.lists.remove(list) else { continue };
            self.table.clear(slot);
            self.free_slots.release(slot);
            for plugin in &**list {
                self.by_plugin.remove(plugin, Arc::clone(list));
            }
        }
        for (list, routes) in delta.routes.iter().filter(|(_, routes)| *routes > 0) {
            let slot = match self.lists.get(list) {
                Some(list_use) => list_use.slot,
                None => {
                    for plugin in &**list {
                        self.by_plugin.insert(plugin, Arc::clone(list));
                    }
                    self.free_slots.take()
                }
            };
            self.lists.insert(Arc::clone(list), ListUse { slot, routes: *routes });
        }
        for (list, chain) in &delta.built {
            if let Some(slot) = self.slot(list) {
                self.table.set(slot, Arc::clone(chain));
            }
        }
    }

    /// The chain of routes with this list of plugins.
    pub(super) fn slot(&self, list: &[Name]) -> Option<ChainSlot> {
        if list.is_empty() {
            return Some(Chain::GLOBAL);
        }
        self.lists.get(list).map(|list_use| list_use.slot)
    }

    pub(super) fn table(&self) -> &SlotTable<Chain> {
        &self.table
    }

    #[cfg(test)]
    pub(super) fn has_lists(&self) -> bool {
        !self.lists.is_empty() || !self.by_plugin.is_empty()
    }
}

/// The change of the number of enabled routes with each list.
fn count_lists<'a>(changes: &[&'a Change], revision: Revision<'a>) -> BTreeMap<&'a [Name], i32> {
    let mut counts: BTreeMap<&[Name], i32> = BTreeMap::new();
    for change in changes {
        let before = revision.replaced_by(change).and_then(|resource| enabled_route(resource));
        let now = put(change).and_then(|resource| enabled_route(resource));
        for (route, difference) in [(before, -1), (now, 1)] {
            if let Some(route) = route.filter(|route| !route.plugins.is_empty()) {
                *counts.entry(&route.plugins).or_default() += difference;
            }
        }
    }
    counts.retain(|_, change| *change != 0);
    counts
}

/// The chain of a route with plugins of its own: of a type that it has itself, it has no global plugin.
fn route_chain(mut own: Vec<Step>, globals: &[Step]) -> Chain {
    let beside = globals.iter().filter(|global| overridden_by(*global, &own).is_none());
    let beside: Vec<Step> = beside.cloned().collect();
    own.extend(beside);
    Chain::of(own, Source::Route)
}
