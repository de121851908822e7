//! The configuration as a request sees it. Everything that can be resolved beforehand is resolved.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signalbox_config::{Action, Edge, Limits, Name, RevisionId, Route, RouteIndex};
use signalbox_expr::Condition;
use signalbox_plugin::precedence::{Attached, Lane, Source, TypeSet, run_order};
use signalbox_plugin::{Consumers, Hooks, Outcomes, Plugin};
use smallvec::SmallVec;

use crate::core::map::Map;
use crate::core::prefetch::prefetch;
use crate::core::slots::{Slot, SlotTable};
use crate::telemetry::access_log::ListenerLog;
use crate::telemetry::spans::ListenerTracing;
use crate::telemetry::{Cells, Exemplars, Histograms, Period, SeriesCell, TrafficCounts, TrafficGroup};
use crate::upstream::Upstream;
use crate::wire::tls::ListenerTls;

/// The number by which routes refer to an upstream.
pub type UpstreamSlot = Slot<Upstream>;

/// The number by which routes refer to their plugin chain.
pub type ChainSlot = Slot<Chain>;

/// One revision, compiled. A request holds on to one from its first to its last byte.
///
/// A route refers by slot to its upstreams and to its plugin chain, because these may change on their own. So a changed
/// upstream touches no route.
#[derive(Clone)]
pub struct Active {
    pub id: RevisionId,
    pub routes: RouteIndex<Arc<CompiledRoute>>,
    pub upstreams: SlotTable<Upstream>,
    /// The slots of upstreams by name, for calls of plugins.
    pub upstream_slots: Map<Name, UpstreamSlot>,
    /// The chains of routes; [`Chain::GLOBAL`] is always there.
    pub chains: SlotTable<Chain>,
    pub consumers: Consumers,
    /// The chains of the consumers that have plugins.
    pub consumer_chains: Map<Name, Arc<Chain>>,
    /// The chains of the upstreams and the listeners that have plugins.
    pub upstream_chains: Map<Name, Arc<Chain>>,
    pub listener_chains: Map<Name, Arc<Chain>>,
    /// Listeners by the number of their socket; `None`: a free number.
    pub listeners: Vec<Option<Arc<ActiveListener>>>,
    /// The counts of the requests that begin with this revision. Revisions under the same generation share them.
    pub period: Arc<Period>,
}

/// A route in the index.
pub struct CompiledRoute {
    route: Arc<Route>,
    /// The upstreams that share the requests. Empty when the route does not forward.
    pub upstreams: SmallVec<[WeightedSlot; 2]>,
    pub chain: ChainSlot,
    mirror: Option<MirrorSlot>,
    /// The time after which the exchange fails if no bytes move. `None` if the timeout of the whole exchange is not
    /// longer.
    pub idle_timeout: Option<Duration>,
    guarded: bool,
    pub stats: Arc<RouteStats>,
}

/// One of the upstreams that share a route's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightedSlot {
    pub upstream: UpstreamSlot,
    /// The sum of the weights up to this upstream's, its own included; the last entry has the sum of all.
    pub cumulative_weight: u32,
}

/// The upstream that gets mirrored requests, and how many of a million requests are mirrored.
#[derive(Debug, Clone, Copy)]
struct MirrorSlot {
    upstream: UpstreamSlot,
    millionths: u32,
}

/// Counters of a route. They are kept when the route changes.
#[derive(Debug)]
pub struct RouteStats {
    /// The route's name; empty for requests that matched no route.
    pub name: Arc<str>,
    pub requests: Cells,
    pub traffic: TrafficCounts,
    /// Requests whose traces are exported.
    pub exemplars: Exemplars,
    /// The place of its counts in the metrics.
    pub series: SeriesCell,
}

/// Measurements of a plugin. They are kept when the plugin changes.
#[derive(Debug)]
pub struct PluginStats {
    pub name: Name,
    pub durations: Histograms,
    pub outcomes: Outcomes,
    /// True once it has let a request wait.
    waited: AtomicBool,
}

/// A listener as requests see it.
#[derive(Debug, PartialEq, Eq)]
pub struct ActiveListener {
    pub name: Name,
    /// The address that the listener is bound to.
    pub bound: SocketAddr,
    /// The number of the name in counters.
    pub label: u16,
    pub limits: Limits,
    pub edge: Edge,
    /// `None`: the listener does not speak TLS.
    pub tls: Option<Arc<ListenerTls>>,
    /// `None`: its requests have no spans.
    pub tracing: Option<Arc<ListenerTracing>>,
    /// `None`: each of its requests has a line of JSON in the access log.
    pub access_log: Option<Arc<ListenerLog>>,
}

/// Plugins in the order in which they run.
pub struct Chain {
    pub steps: Box<[Step]>,
    /// The kind of resource that they are attached to. Global plugins may be among those of routes.
    source: Source,
    /// The types of those that are attached to just that, but for those in shadow.
    types: TypeSet,
    /// The hooks of all its steps.
    pub hooks: Hooks,
    /// True if a plugin uses the headers about the consumer, which are then put into the request's head.
    pub uses_consumer_headers: bool,
    /// True if a plugin answers CORS preflight requests.
    pub answers_preflights: bool,
}

/// A plugin in a chain.
#[derive(Clone)]
pub struct Step {
    pub name: Name,
    pub plugin: Arc<dyn Plugin>,
    /// The plugin's type, as a set of one.
    pub type_set: TypeSet,
    /// The kind of resource that it is attached to here.
    pub source: Source,
    /// The highest runs first; of equals the lowest name.
    pub order: i32,
    /// The place on the way out, the lowest first.
    pub response_order: i32,
    pub hooks: Hooks,
    pub answers_preflights: bool,
    /// `None`: it runs for every request.
    pub condition: Option<StepCondition>,
    /// True if it runs on a copy of the request, and its answer is counted and logged but not sent.
    pub is_shadow: bool,
    pub stats: Arc<PluginStats>,
}

/// The condition of a step.
#[derive(Clone)]
pub struct StepCondition {
    pub when: Condition,
    /// True if the step runs for a request for which the condition is neither true nor false.
    pub runs_on_error: bool,
}

impl Active {
    /// The listener at a socket; `None`: this revision has none there.
    #[inline]
    pub fn listener(&self, socket: u16) -> Option<&Arc<ActiveListener>> {
        self.listeners.get(usize::from(socket))?.as_ref()
    }

    /// The upstream of this name.
    pub fn upstream_named(&self, name: &Name) -> Option<&Arc<Upstream>> {
        self.upstreams.get(*self.upstream_slots.get(name)?)
    }

    /// The chain of an upstream's own plugins.
    #[inline]
    pub fn upstream_chain(&self, upstream: &Upstream) -> Option<&Arc<Chain>> {
        if self.upstream_chains.is_empty() { None } else { self.upstream_chains.get(&upstream.name) }
    }

    /// The chain of a listener's own plugins.
    #[inline]
    pub fn listener_chain(&self, listener: &ActiveListener) -> Option<&Arc<Chain>> {
        if self.listener_chains.is_empty() { None } else { self.listener_chains.get(&listener.name) }
    }

    /// True if a plugin answers CORS preflight requests that come by `listener` and whose route is `route`: one of either, or of
    /// each upstream of the route.
    pub fn answers_preflights(&self, route: &CompiledRoute, listener: &ActiveListener) -> bool {
        let of_upstream = |entry: &WeightedSlot| {
            let chain = self.upstreams.get(entry.upstream).and_then(|upstream| self.upstream_chain(upstream));
            chain.is_some_and(|chain| chain.answers_preflights)
        };
        self.chains.get(route.chain).is_some_and(|chain| chain.answers_preflights)
            || self.listener_chain(listener).is_some_and(|chain| chain.answers_preflights)
            || !route.upstreams.is_empty() && route.upstreams.iter().all(of_upstream)
    }
}

impl ActiveListener {
    /// True if a connection that this listener accepted may stay open under `other`, which has the same socket in a
    /// later revision: its requirements for clients must be the same.
    pub fn admits_as(&self, other: &Self) -> bool {
        let same = match (&self.tls, &other.tls) {
            (None, None) => true,
            (Some(before), Some(now)) => before.asks_the_same(now),
            (None, Some(_)) | (Some(_), None) => false,
        };
        same && self.bound == other.bound
    }
}

impl CompiledRoute {
    pub fn new(
        route: Arc<Route>,
        upstreams: SmallVec<[WeightedSlot; 2]>,
        mirror: Option<UpstreamSlot>,
        chain: ChainSlot,
        stats: Arc<RouteStats>,
    ) -> Self {
        let forward = match &route.action {
            Action::Forward(forward) => Some(forward),
            Action::Redirect(_) | Action::Respond(_) => None,
        };
        let idle_timeout = forward.and_then(|forward| {
            forward.idle_timeout.filter(|idle| forward.timeout.is_none_or(|timeout| *idle < timeout))
        });
        let millionths =
            forward.and_then(|forward| forward.mirror.as_ref()).map_or(0, |mirror| mirror.millionths);
        let mirror = mirror.filter(|_| millionths > 0).map(|upstream| MirrorSlot { upstream, millionths });
        let guarded = mirror.is_some() || forward.is_some_and(|forward| forward.retry.is_some());
        Self { route, upstreams, chain, mirror, idle_timeout, guarded, stats }
    }

    /// True if requests are mirrored, or may be retried.
    #[inline]
    pub fn is_guarded(&self) -> bool {
        self.guarded
    }

    /// The upstream to which a request is mirrored, if it is; `draw` draws a number below another.
    pub fn mirror(&self, draw: impl FnOnce(u32) -> u32) -> Option<UpstreamSlot> {
        let MirrorSlot { upstream, millionths } = self.mirror?;
        (millionths >= 1_000_000 || draw(1_000_000) < millionths).then_some(upstream)
    }

    pub fn route(&self) -> &Route {
        &self.route
    }

    /// The timeout of the whole exchange; `None`: no limit.
    pub fn timeout(&self) -> Option<Duration> {
        match &self.route().action {
            Action::Forward(forward) => forward.timeout,
            Action::Redirect(_) | Action::Respond(_) => None,
        }
    }

    /// The upstream for a request, by weight; `draw` draws a number below another.
    #[inline]
    pub fn upstream(&self, draw: impl FnOnce(u32) -> u32) -> Option<UpstreamSlot> {
        match &*self.upstreams {
            [only] => Some(only.upstream),
            [] => None,
            [.., last] => {
                let point = draw(last.cumulative_weight);
                let drawn = self.upstreams.iter().find(|entry| point < entry.cumulative_weight);
                Some(drawn.unwrap_or(last).upstream)
            }
        }
    }
}

impl Chain {
    /// The chain of routes that have no plugins of their own: it has the global plugins.
    pub const GLOBAL: ChainSlot = Slot::new(0);

    /// Sorts `steps` into a chain of what is attached to `source`.
    pub fn of(mut steps: Vec<Step>, source: Source) -> Self {
        steps.sort_by(run_order);
        let own = steps.iter().filter(|step| step.source == source && !step.is_shadow);
        let types = own.fold(TypeSet::default(), |types, step| types.with(step.type_set));
        let uses_consumer_headers = steps.iter().any(|step| step.plugin.uses_consumer_headers());
        let hooks = steps.iter().fold(Hooks::NONE, |hooks, step| hooks.with(step.hooks));
        let answers_preflights = steps.iter().any(|step| step.answers_preflights);
        Self { steps: steps.into(), source, types, hooks, uses_consumer_headers, answers_preflights }
    }

    /// Its plugins, as one lane of a request's.
    #[inline]
    pub fn lane(&self) -> Lane<'_, Step> {
        Lane::new(&self.steps, self.source, self.types)
    }
}

impl Attached for Step {
    #[inline]
    fn name(&self) -> &Name {
        &self.name
    }

    #[inline]
    fn order(&self) -> i32 {
        self.order
    }

    #[inline]
    fn response_order(&self) -> i32 {
        self.response_order
    }

    #[inline]
    fn types(&self) -> TypeSet {
        self.type_set
    }

    #[inline]
    fn source(&self) -> Source {
        self.source
    }

    #[inline]
    fn is_shadow(&self) -> bool {
        self.is_shadow
    }
}

impl RouteStats {
    /// The counters of a route that has served nothing yet.
    pub fn new(name: Arc<str>, workers: usize, group: &Arc<TrafficGroup>) -> Self {
        let (requests, traffic) = (Cells::new(workers), TrafficCounts::new(group));
        Self { name, requests, traffic, exemplars: Exemplars::default(), series: SeriesCell::default() }
    }

    /// Has the processor fetch what leads to the counters.
    #[inline]
    pub fn prefetch(&self) {
        prefetch(&self.requests);
        prefetch(&self.traffic);
    }

    /// Has the processor fetch the counters of a worker.
    #[inline]
    pub fn prefetch_counters(&self, worker: usize) {
        self.requests.prefetch(worker);
        self.traffic.prefetch(worker);
    }
}

impl PluginStats {
    /// The measurements of a plugin with these outcomes.
    pub fn new(name: &Name, outcomes: &[&'static str], workers: usize) -> Self {
        Self {
            name: name.clone(),
            durations: Histograms::new(workers),
            outcomes: Outcomes::new(outcomes, workers),
            waited: AtomicBool::new(false),
        }
    }

    /// True if the plugin has ever let a request wait.
    #[inline]
    pub fn has_waited(&self) -> bool {
        self.waited.load(Ordering::Relaxed)
    }

    /// Records that it lets a request wait.
    pub fn note_wait(&self) {
        if !self.has_waited() {
            self.waited.store(true, Ordering::Relaxed);
        }
    }
}
