use std::sync::Arc;

use imbl::OrdMap;
use signalbox_config::{Action, Change, Forward, Kind, Name, Resource, ResourceKey, Route, RouteIndex};

use super::chains::ChainCompiler;
use super::revision::{Revision, enabled_route, put};
use super::upstreams::UpstreamCompiler;
use crate::active::{CompiledRoute, RouteStats, WeightedSlot};
use crate::services::Services;
use crate::source::Rejected;

/// Compiles routes: the index that finds them, with their upstreams and chains by slot.
#[derive(Clone, Default)]
pub(super) struct RouteCompiler {
    index: RouteIndex<Arc<CompiledRoute>>,
    /// An ordered map takes a third of the memory of a hash map.
    stats: OrdMap<Name, Arc<RouteStats>>,
    /// The counters of deleted routes, until they were shown.
    retired: OrdMap<Name, RetiredRoute>,
}

/// The counters of a deleted route.
#[derive(Clone)]
struct RetiredRoute {
    stats: Arc<RouteStats>,
    /// How often its final counts were shown.
    shown: u8,
}

/// The number of times that the final counts of a deleted route are shown: a collector may miss one.
const SHOWN: u8 = 2;

/// The number of deleted routes whose counts are kept at most. Without a collector nobody asks for them.
const MAX_RETIRED: usize = 4096;

#[derive(Default)]
pub(super) struct RouteDelta {
    /// Enabled routes that are deleted or replaced, as they were.
    removed: Vec<Arc<Resource>>,
    put: Vec<Arc<CompiledRoute>>,
    deleted: Vec<Name>,
}

impl RouteCompiler {
    /// `chains` and `upstreams` are those of the new revision.
    pub(super) fn compile(
        &self,
        changes: &[&Change],
        revision: Revision<'_>,
        chains: &ChainCompiler,
        upstreams: &UpstreamCompiler,
        services: &Services,
    ) -> Result<RouteDelta, Vec<Rejected>> {
        let mut delta = RouteDelta::default();
        let mut rejections = Vec::new();
        for change in changes {
            let before = revision.replaced_by(change);
            delta.removed.extend(before.filter(|resource| enabled_route(resource).is_some()).cloned());
            let Some(resource) = put(change) else {
                delta.deleted.push(change.key().name.clone());
                continue;
            };
            let Some(route) = enabled_route(resource) else { continue };
            let missing = missing_references(resource.key(), route, revision);
            if missing.is_empty() {
                let stats = self.kept_stats(&route.name, services);
                delta.put.extend(compile_route(route, chains, upstreams, stats));
            }
            rejections.extend(missing);
        }
        if rejections.is_empty() { Ok(delta) } else { Err(rejections) }
    }

    pub(super) fn apply(&mut self, delta: &RouteDelta) {
        for route in delta.removed.iter().filter_map(|resource| enabled_route(resource)) {
            self.index.remove(route);
        }
        for route in &delta.put {
            self.index.insert(route.route(), Arc::clone(route));
            self.stats.insert(route.route().name.clone(), Arc::clone(&route.stats));
            self.retired.remove(&route.route().name);
        }
        for name in &delta.deleted {
            if let Some(stats) = self.stats.remove(name) {
                self.retired.insert(name.clone(), RetiredRoute { stats, shown: 0 });
            }
        }
    }

    pub(super) fn index(&self) -> &RouteIndex<Arc<CompiledRoute>> {
        &self.index
    }

    pub(super) fn stats(&self) -> impl Iterator<Item = &Arc<RouteStats>> {
        self.stats.values()
    }

    /// The counters of deleted routes.
    pub(super) fn retired(&self) -> impl Iterator<Item = &Arc<RouteStats>> {
        self.retired.values().map(|retired| &retired.stats)
    }

    /// Forgets the deleted routes that no request uses any more, once their final counts were shown twice, or if they have none.
    /// `shown`: all counts were shown just now. Returns those that are forgotten.
    pub(super) fn forget_retired(&mut self, shown: bool) -> Vec<Arc<RouteStats>> {
        let mut forgotten = Vec::new();
        let names: Vec<Name> = self.retired.keys().cloned().collect();
        let mut kept = names.len();
        for name in names {
            let Some(retired) = self.retired.get(&name) else { continue };
            // Revisions that requests use hold it, too.
            if Arc::strong_count(&retired.stats) > 1 {
                continue;
            }
            let shown = retired.shown + u8::from(shown);
            if shown >= SHOWN || kept > MAX_RETIRED || retired.stats.requests.read().is_empty() {
                forgotten.extend(self.retired.remove(&name).map(|retired| retired.stats));
                kept -= 1;
            } else if let Some(retired) = self.retired.get_mut(&name) {
                retired.shown = shown;
            }
        }
        forgotten
    }

    /// The counters of a route; `None`: there is no such route.
    pub(super) fn stats_of(&self, name: &Name) -> Option<&Arc<RouteStats>> {
        self.stats.get(name)
    }

    /// The counters of a route, which are kept when it changes.
    fn kept_stats(&self, name: &Name, services: &Services) -> Arc<RouteStats> {
        let retired = || self.retired.get(name).map(|retired| &retired.stats);
        match self.stats_of(name).or_else(retired) {
            Some(stats) => Arc::clone(stats),
            None => Arc::new(RouteStats::new(name.clone().into(), services.workers, &services.routes)),
        }
    }
}

/// Everything that a route refers to and the revision does not have.
fn missing_references(key: &ResourceKey, route: &Route, revision: Revision<'_>) -> Vec<Rejected> {
    let check = |field, kind, name| revision.check_reference(key, field, kind, name);
    let plugins = route.plugins.iter().filter_map(|name| check("plugins", Kind::Plugin, name));
    let forward = forward(route);
    let upstreams = forward.map_or(&[][..], |forward| &forward.upstreams).iter();
    let upstreams =
        upstreams.filter_map(|upstream| check("forward.upstreams", Kind::Upstream, &upstream.name));
    let mirror = forward.and_then(|forward| forward.mirror.as_ref());
    let mirror = mirror.and_then(|mirror| check("forward.mirror.upstream", Kind::Upstream, &mirror.upstream));
    plugins.chain(upstreams).chain(mirror).collect()
}

/// `None`: the revision is rejected already, for something that the route refers to.
fn compile_route(
    route: &Arc<Route>,
    chains: &ChainCompiler,
    upstreams: &UpstreamCompiler,
    stats: Arc<RouteStats>,
) -> Option<Arc<CompiledRoute>> {
    let chain = chains.slot(&route.plugins)?;
    let forward = forward(route);
    let mut cumulative_weight = 0_u32;
    let weighted = forward.map_or(&[][..], |forward| &forward.upstreams).iter().map(|upstream| {
        cumulative_weight = cumulative_weight.saturating_add(upstream.weight.get());
        Some(WeightedSlot { upstream: upstreams.slot(&upstream.name)?, cumulative_weight })
    });
    let weighted = weighted.collect::<Option<_>>()?;
    let mirror = match forward.and_then(|forward| forward.mirror.as_ref()) {
        Some(mirror) => Some(upstreams.slot(&mirror.upstream)?),
        None => None,
    };
    Some(Arc::new(CompiledRoute::new(Arc::clone(route), weighted, mirror, chain, stats)))
}

fn forward(route: &Route) -> Option<&Forward> {
    match &route.action {
        Action::Forward(forward) => Some(forward),
        Action::Redirect(_) | Action::Respond(_) => None,
    }
}
