//! The configuration as a request sees it: all that can be resolved beforehand is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use imbl::shared_ptr::DefaultSharedPtr;
use imbl::{GenericHashMap, Vector};
use signalbox_config::{Action, Body, Edge, Limits, Name, Resource, RevisionId, Route, RouteIndex};
use signalbox_plugins::{Consumers, Plugin};

use crate::telemetry::{Cells, Histograms};
use crate::tls::ListenerTls;
use crate::upstream::Upstream;

/// A persistent map: a clone is cheap, a change costs itself.
pub type Map<K, V> = GenericHashMap<K, V, foldhash::fast::RandomState, DefaultSharedPtr>;

/// One revision, compiled. A request holds on to one from its first to its last byte.
///
/// What refers to something that may change on its own does so by number: a route to its upstreams and to its plugin
/// chain. So a changed upstream touches no route.
#[derive(Clone)]
pub struct Active {
    pub id: RevisionId,
    pub routes: RouteIndex<Arc<CompiledRoute>>,
    /// By slot; `None`: a free slot.
    pub upstreams: Vector<Option<Arc<Upstream>>>,
    /// By slot. The first is of routes without plugins: the global ones.
    pub chains: Vector<Arc<Chain>>,
    pub consumers: Consumers,
    /// Of the consumers that have plugins.
    pub consumer_chains: Map<Name, Arc<Chain>>,
    /// By the number of the socket; `None`: a free number.
    pub listeners: Vec<Option<Arc<ActiveListener>>>,
}

/// A route in the index.
pub struct CompiledRoute {
    resource: Arc<Resource>,
    /// Slot and weight of the upstreams, weights added up: `[(4, 90), (7, 100)]`. Empty when it does not forward.
    pub upstreams: Box<[(u32, u32)]>,
    /// Slot of the plugin chain.
    pub chain: u32,
    /// Slot of the upstream that gets copies, and of how many requests in a million.
    mirror: Option<(u32, u32)>,
    /// How long nothing may move, where that is less than the whole may take.
    pub idle_timeout: Option<Duration>,
    guarded: bool,
    pub stats: Arc<RouteStats>,
}

/// What is counted of a route; kept when the route changes.
#[derive(Debug)]
pub struct RouteStats {
    /// The route's name; empty for requests that no route took.
    pub name: Arc<str>,
    pub requests: Cells,
}

/// What is measured of a plugin; kept when it changes.
#[derive(Debug)]
pub struct PluginStats {
    pub name: Name,
    pub durations: Histograms,
}

/// A listener as requests see it.
#[derive(Debug, PartialEq, Eq)]
pub struct ActiveListener {
    pub name: Name,
    /// Where it listens.
    pub bound: SocketAddr,
    /// The number of the name, for counting.
    pub label: u16,
    pub limits: Limits,
    pub edge: Edge,
    /// `None`: it speaks in the clear.
    pub tls: Option<Arc<ListenerTls>>,
}

/// Plugins in the order in which they run.
#[derive(Default)]
pub struct Chain {
    pub steps: Box<[Step]>,
    /// The types of all its steps.
    pub types: TypeSet,
    /// The smallest cap of a plugin that may want the request's body.
    pub body_cap: Option<usize>,
    /// Whether a plugin wants to see answers that are made before its turn comes.
    pub wants_local_reply: bool,
    /// Whether a plugin answers CORS preflight requests.
    pub answers_preflights: bool,
}

/// A plugin in a chain.
#[derive(Clone)]
pub struct Step {
    pub name: Name,
    pub plugin: Arc<dyn Plugin>,
    /// Its type, as a set of one.
    pub type_set: TypeSet,
    /// The highest runs first; of equals the lowest name.
    pub order: i32,
    pub wants_response: bool,
    pub wants_local_reply: bool,
    pub answers_preflights: bool,
    pub body_cap: Option<usize>,
    pub stats: Arc<PluginStats>,
}

/// A set of plugin types, by their place in the registry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TypeSet(u128);

impl Active {
    /// The listener at a socket; `None`: this revision has none there.
    #[inline]
    pub fn listener(&self, socket: u16) -> Option<&Arc<ActiveListener>> {
        self.listeners.get(usize::from(socket))?.as_ref()
    }

    /// Whether a plugin of the route answers CORS preflight requests.
    pub fn answers_preflights(&self, route: &CompiledRoute) -> bool {
        self.chains.get(route.chain as usize).is_some_and(|chain| chain.answers_preflights)
    }
}

impl ActiveListener {
    /// Whether who was let in by this one would have been by `other` too, which now has the number of its socket.
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
    /// `None`: `resource` is no route.
    pub fn new(
        resource: Arc<Resource>,
        upstreams: Box<[(u32, u32)]>,
        mirror: Option<u32>,
        chain: u32,
        stats: Arc<RouteStats>,
    ) -> Option<Self> {
        let Body::Route(route) = resource.body() else { return None };
        let forward = match &route.action {
            Action::Forward(forward) => Some(forward),
            Action::Redirect(_) | Action::Respond(_) => None,
        };
        let idle_timeout = forward.and_then(|forward| {
            forward.idle_timeout.filter(|idle| forward.timeout.is_none_or(|timeout| *idle < timeout))
        });
        let share = forward.and_then(|forward| forward.mirror.as_ref()).map_or(0, |mirror| mirror.millionths);
        let mirror = mirror.filter(|_| share > 0).map(|slot| (slot, share));
        let guarded = mirror.is_some() || forward.is_some_and(|forward| forward.retry.is_some());
        Some(Self { resource, upstreams, chain, mirror, idle_timeout, guarded, stats })
    }

    /// Whether it asks for more than that requests are sent on.
    #[inline]
    pub fn is_guarded(&self) -> bool {
        self.guarded
    }

    /// The slot of the upstream that gets a copy of a request, if this one is copied; `draw` draws a number below another.
    pub fn mirror(&self, draw: impl FnOnce(u32) -> u32) -> Option<u32> {
        let (slot, share) = self.mirror?;
        (share >= 1_000_000 || draw(1_000_000) < share).then_some(slot)
    }

    pub fn route(&self) -> &Route {
        match self.resource.body() {
            Body::Route(route) => route,
            _ => unreachable!("checked when it was made"),
        }
    }

    /// For the whole exchange; `None`: no limit.
    pub fn timeout(&self) -> Option<Duration> {
        match &self.route().action {
            Action::Forward(forward) => forward.timeout,
            Action::Redirect(_) | Action::Respond(_) => None,
        }
    }

    /// The slot of the upstream that `draw` falls to, where `draw` is any number.
    #[inline]
    pub fn upstream(&self, draw: impl FnOnce(u32) -> u32) -> Option<u32> {
        match &*self.upstreams {
            [(only, _)] => Some(*only),
            [] => None,
            [.., (last, total)] => {
                let point = draw(*total);
                Some(self.upstreams.iter().find(|(_, up_to)| point < *up_to).map_or(*last, |(slot, _)| *slot))
            }
        }
    }
}

impl Chain {
    /// Sorts `steps` into a chain.
    pub fn of(mut steps: Vec<Step>) -> Self {
        steps.sort_by(|a, b| b.order.cmp(&a.order).then_with(|| a.name.cmp(&b.name)));
        let types = steps.iter().fold(TypeSet::default(), |types, step| types.with(step.type_set));
        let body_cap = steps.iter().filter_map(|step| step.body_cap).min();
        let wants_local_reply = steps.iter().any(|step| step.wants_local_reply);
        let answers_preflights = steps.iter().any(|step| step.answers_preflights);
        Self { steps: steps.into(), types, body_cap, wants_local_reply, answers_preflights }
    }
}

impl Step {
    /// Whether it runs before `other`.
    pub fn precedes(&self, other: &Self) -> bool {
        (other.order, &self.name) < (self.order, &other.name)
    }
}

impl TypeSet {
    /// The type at `index` of the registry. There are fewer than 128.
    pub fn of(index: usize) -> Self {
        Self(1 << (index % 128))
    }

    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[inline]
    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}
