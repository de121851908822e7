use std::sync::Arc;

use imbl::OrdMap;
use signalbox_config::{Action, Change, Forward, Kind, Name, Resource, ResourceKey, Route, RouteIndex};

use super::chains::ChainCompiler;
use super::revision::{Revision, enabled_route, put};
use super::upstreams::UpstreamCompiler;
use crate::active::{CompiledRoute, RouteStats, WeightedSlot};
use crate::services::Services;
use crate::source::Rejected;
use crate::telemetry::{Cells, TrafficCounts};

/// Compiles routes: the index that finds them, with their upstreams and chains by slot.
#[derive(Clone, Default)]
pub(super) struct RouteCompiler {
    index: RouteIndex<Arc<CompiledRoute>>,
    /// An ordered map takes a third of the memory of a hash map.
    stats: OrdMap<Name, Arc<RouteStats>>,
}

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
                delta.put.extend(compile_route(resource, route, chains, upstreams, stats));
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
        }
        for name in &delta.deleted {
            self.stats.remove(name);
        }
    }

    pub(super) fn index(&self) -> &RouteIndex<Arc<CompiledRoute>> {
        &self.index
    }

    pub(super) fn stats(&self) -> impl Iterator<Item = &Arc<RouteStats>> {
        self.stats.values()
    }

    /// The counters of a route; `None`: there is no such route.
    pub(super) fn stats_of(&self, name: &Name) -> Option<&Arc<RouteStats>> {
        self.stats.get(name)
    }

    /// The counters of a route, which are kept when it changes.
    fn kept_stats(&self, name: &Name, services: &Services) -> Arc<RouteStats> {
        match self.stats_of(name) {
            Some(stats) => Arc::clone(stats),
            None => Arc::new(RouteStats {
                name: name.clone().into(),
                requests: Cells::new(services.workers),
                traffic: TrafficCounts::new(&services.routes),
            }),
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
    resource: &Arc<Resource>,
    route: &Route,
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
    let weighted: Box<[WeightedSlot]> = weighted.collect::<Option<_>>()?;
    let mirror = match forward.and_then(|forward| forward.mirror.as_ref()) {
        Some(mirror) => Some(upstreams.slot(&mirror.upstream)?),
        None => None,
    };
    CompiledRoute::new(Arc::clone(resource), weighted, mirror, chain, stats).map(Arc::new)
}

fn forward(route: &Route) -> Option<&Forward> {
    match &route.action {
        Action::Forward(forward) => Some(forward),
        Action::Redirect(_) | Action::Respond(_) => None,
    }
}
