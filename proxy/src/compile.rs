//! From a candidate to what requests see, at the cost of what changed.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};
use signalbox_config::{
    Action, Body, Change, Consumer, Kind, Name, Resource, ResourceKey, RevisionId, RouteIndex, Secret,
    Snapshot, UpstreamProtocol, check_key, sha256, without_line_break,
};
use signalbox_plugins::{Consumers, Context, PluginType, States, TYPES};

use crate::active::{Active, Chain, CompiledRoute, Map, PluginStats, RouteStats, Step, TypeSet};
use crate::source::{Candidate, Rejected};
use crate::telemetry::{Cells, Histograms};
use crate::tls::{self, Certificates, ListenerTls, Shown, UpstreamTls};
use crate::upstream::{Checking, Resolver, Upstream};

/// A revision, compiled, with what it takes to compile the next one. A clone is cheap.
#[derive(Clone)]
pub struct Compiled {
    pub active: Active,
    pub snapshot: Snapshot,
    /// How many resources of each kind there are.
    pub counts: [u64; Kind::ALL.len()],
    upstreams: Slots<Name>,
    /// Built and enabled plugins.
    plugins: Map<Name, Built>,
    /// The route chains that name a plugin, and the consumers that do.
    plugin_chains: OrdSet<(Name, u32)>,
    plugin_consumers: OrdSet<(Name, Name)>,
    /// The plugin lists that routes have, as written.
    chains: Slots<Arc<[Name]>>,
    /// The list of a slot, and how many routes use it.
    chain_uses: Map<u32, (Arc<[Name]>, u32)>,
    /// Ordered, for that takes a third of the memory of a hash map.
    route_stats: OrdMap<Name, Arc<RouteStats>>,
    certificates: Certificates,
    /// The upstreams that show a certificate.
    certificate_upstreams: OrdSet<(Name, Name)>,
    /// Of the listeners that speak TLS.
    listener_tls: Map<Name, Arc<ListenerTls>>,
    /// Those that are not in use yet.
    changed_upstreams: Vec<Arc<Upstream>>,
}

/// What compiling needs besides the configuration.
pub struct Services {
    /// State of plugins that outlives a revision.
    pub states: States,
    pub resolver: Arc<Resolver>,
    pub checking: Checking,
    /// Where this proxy is.
    pub zone: Option<Box<str>>,
    pub workers: usize,
}

#[derive(Clone)]
struct Built {
    step: Step,
    global: bool,
}

/// Where the targets of these upstreams are.
fn hosts<'a>(upstreams: &[&'a Change]) -> impl Iterator<Item = &'a str> {
    let targets = upstreams.iter().filter_map(|change| match change {
        Change::Put(resource) => match resource.body() {
            Body::Upstream(upstream) => Some(&*upstream.targets),
            _ => None,
        },
        Change::Delete(_) => None,
    });
    targets.flatten().map(|target| &*target.host)
}

/// Numbers for things, the smallest free one first.
#[derive(Clone)]
struct Slots<K: Clone + Eq + std::hash::Hash> {
    numbers: Map<K, u32>,
    free: OrdSet<u32>,
    next: u32,
}

impl Compiled {
    /// Nothing is served.
    pub fn empty() -> Self {
        let snapshot = Snapshot::empty("");
        let mut compiled = Self {
            active: Active {
                id: RevisionId { epoch: "".into(), number: 0 },
                routes: RouteIndex::new(),
                upstreams: Vector::new(),
                chains: Vector::new(),
                consumers: Consumers::default(),
                consumer_chains: Map::default(),
                listeners: Vec::new(),
            },
            snapshot,
            counts: [0; Kind::ALL.len()],
            upstreams: Slots::default(),
            plugins: Map::default(),
            plugin_chains: OrdSet::new(),
            plugin_consumers: OrdSet::new(),
            chains: Slots::default(),
            chain_uses: Map::default(),
            route_stats: OrdMap::new(),
            certificates: Certificates::default(),
            certificate_upstreams: OrdSet::new(),
            listener_tls: Map::default(),
            changed_upstreams: Vec::new(),
        };
        // The chain of routes without plugins stays for good.
        compiled.chains.take(&Arc::from([]));
        compiled.active.chains.push_back(Arc::default());
        compiled
    }

    /// The revision after this one. Its listeners are still those of this one, for they need sockets.
    pub fn next(&self, candidate: &Candidate, services: &Services) -> Result<Self, Vec<Rejected>> {
        let mut next = self.clone();
        next.changed_upstreams.clear();
        let mut rejected = Vec::new();
        next.active.id = candidate.snapshot.id().clone();
        next.snapshot = candidate.snapshot.clone();
        // What others refer to comes first.
        let mut changes: [Vec<&Change>; Kind::ALL.len()] = Default::default();
        for change in &candidate.changes {
            let order = match change.key().kind {
                Kind::Plugin => 0,
                Kind::Upstream => 1,
                Kind::Consumer => 2,
                Kind::Route => 3,
                Kind::Listener => 4,
                Kind::Certificate => 5,
            };
            changes[order].push(change);
            let count = &mut next.counts[change.key().kind as usize];
            *count += u64::from(matches!(change, Change::Put(_)));
            *count -= u64::from(self.snapshot.find(change.key()).is_some());
        }
        let [plugins, mut upstreams, consumers, routes, listeners, certificates] = changes;
        next.change_certificates(&certificates, &self.snapshot, &mut rejected);
        if !(certificates.is_empty() && listeners.is_empty()) {
            next.rebuild_listener_tls(!certificates.is_empty(), &mut rejected);
        }
        let with_other_certificate = next.upstreams_that_show(&certificates, &upstreams);
        upstreams.extend(&with_other_certificate);
        let mut affected = Affected::default();
        for change in plugins {
            next.change_plugin(change, services, &mut affected, &mut rejected);
        }
        // A slot freed here must not be given to another upstream before the routes that had it are changed too, so
        // what is new takes its slot first.
        let (added, deleted): (Vec<_>, Vec<_>) =
            upstreams.into_iter().partition(|change| matches!(change, Change::Put(_)));
        // Until their targets use them.
        let _names = services.resolver.prepare(hosts(&added));
        for change in added {
            next.change_upstream(change, &self.snapshot, services, &mut rejected);
        }
        for change in consumers {
            next.change_consumer(change, &self.snapshot, &mut affected, &mut rejected);
        }
        for change in routes {
            next.change_route(change, &self.snapshot, services, &mut affected, &mut rejected);
        }
        for change in deleted {
            next.change_upstream(change, &self.snapshot, services, &mut rejected);
        }
        next.rebuild_chains(&affected, &mut rejected);
        if rejected.is_empty() { Ok(next) } else { Err(rejected) }
    }

    /// It is to be served: its upstreams take over the targets that they share with those before.
    pub fn take_over(&mut self, checking: &Checking) {
        for upstream in std::mem::take(&mut self.changed_upstreams) {
            upstream.take_over(checking);
        }
    }

    /// How a listener speaks TLS; `None`: it does not.
    pub fn listener_tls(&self, name: &Name) -> Option<&Arc<ListenerTls>> {
        self.listener_tls.get(name)
    }

    /// What is counted of routes that saw requests or could.
    pub fn route_stats(&self) -> impl Iterator<Item = &Arc<RouteStats>> {
        self.route_stats.values()
    }

    /// What is measured of enabled plugins.
    pub fn plugin_stats(&self) -> impl Iterator<Item = &Arc<PluginStats>> {
        self.plugins.values().map(|built| &built.step.stats)
    }

    fn change_plugin(
        &mut self,
        change: &Change,
        services: &Services,
        affected: &mut Affected,
        rejected: &mut Vec<Rejected>,
    ) {
        let name = &change.key().name;
        let before = self.plugins.remove(name);
        let built = match change {
            Change::Put(resource) => match build_plugin(resource, before.as_ref(), services) {
                Ok(built) => built,
                Err(errors) => {
                    rejected.extend(errors);
                    return;
                }
            },
            Change::Delete(_) => None,
        };
        affected.all_chains |= [&before, &built].into_iter().flatten().any(|built| built.global);
        affected.plugins.insert(name.clone());
        if let Some(built) = built {
            self.plugins.insert(name.clone(), built);
        }
    }

    fn change_certificates(&mut self, changes: &[&Change], before: &Snapshot, rejected: &mut Vec<Rejected>) {
        // A name may go from one to another.
        for change in changes {
            if let Some(Body::Certificate(certificate)) = before.find(change.key()).map(|it| it.body()) {
                self.certificates.remove(&change.key().name, &certificate.snis);
            }
        }
        for change in changes {
            let Change::Put(resource) = change else { continue };
            let Body::Certificate(certificate) = resource.body() else { continue };
            let key = resource.key();
            match tls::certified(certificate) {
                Ok(certified) => {
                    let shown = Arc::new(Shown::new(&key.name, certificate, certified));
                    self.certificates.insert(&key.name, &certificate.snis, &shown);
                }
                Err(message) => rejected.push(Rejected {
                    key: Some(key.clone()),
                    field: "private_key".to_owned(),
                    message,
                }),
            }
        }
    }

    /// `all`: a certificate changed. Else only listeners did.
    fn rebuild_listener_tls(&mut self, all: bool, rejected: &mut Vec<Rejected>) {
        let mut rebuilt = Map::default();
        for resource in self.snapshot.of_kind(Kind::Listener, None) {
            let Body::Listener(listener) = resource.body() else { continue };
            let Some(spec) = &listener.tls else { continue };
            let key = resource.key();
            if let Some(missing_name) =
                spec.default_certificate.as_ref().filter(|name| self.certificates.named(name).is_none())
            {
                rejected.push(missing(key, "tls.default_certificate", Kind::Certificate, missing_name));
                continue;
            }
            let before = self.listener_tls.get(&key.name);
            let tls = match before.filter(|before| !all && before.is_of(spec)) {
                Some(same) => Ok(Arc::clone(same)),
                None => ListenerTls::new(spec, &self.certificates, before.map(Arc::as_ref)).map(Arc::new),
            };
            match tls {
                Ok(tls) => {
                    rebuilt.insert(key.name.clone(), tls);
                }
                Err(message) => {
                    rejected.push(Rejected { key: Some(key.clone()), field: "tls".to_owned(), message });
                }
            }
        }
        self.listener_tls = rebuilt;
    }

    /// The upstreams that show one of the changed certificates, but do not change themselves.
    fn upstreams_that_show(&self, certificates: &[&Change], changed: &[&Change]) -> Vec<Change> {
        let lowest: Name = "0".parse().expect("a digit is a name, and none sorts before it");
        let mut found = Vec::new();
        for certificate in certificates {
            let name = &certificate.key().name;
            let upstreams = self
                .certificate_upstreams
                .range((name.clone(), lowest.clone())..)
                .take_while(|(certificate, _)| certificate == name)
                .map(|(_, upstream)| ResourceKey::new(Kind::Upstream, upstream.clone()))
                .filter(|key| changed.iter().all(|change| change.key() != key));
            found.extend(upstreams.filter_map(|key| self.snapshot.find(&key).cloned()).map(Change::Put));
        }
        found
    }

    /// How the targets of an upstream are spoken to through TLS, if they are.
    fn upstream_tls(
        &self,
        spec: &signalbox_config::Upstream,
        before: Option<&UpstreamTls>,
    ) -> Result<Option<Arc<UpstreamTls>>, (&'static str, String)> {
        let Some(tls) = &spec.tls else { return Ok(None) };
        let certificate = match &tls.certificate {
            None => None,
            Some(name) => {
                let key = ResourceKey::new(Kind::Certificate, name.clone());
                let found = self.certificates.named(name).zip(self.snapshot.find(&key));
                let (certified, resource) = found
                    .ok_or_else(|| ("tls.certificate", format!("certificate {name:?} does not exist")))?;
                Some((&certified.certified, resource.version()))
            }
        };
        let certificate = certificate.as_ref().map(|(certified, version)| (*certified, version.as_str()));
        let protocols: &[&[u8]] = match spec.protocol {
            UpstreamProtocol::Http1 => &[tls::HTTP1],
            UpstreamProtocol::Http2 => &[tls::HTTP2],
            UpstreamProtocol::Auto => &[tls::HTTP2, tls::HTTP1],
        };
        let made = UpstreamTls::new(tls, certificate, protocols, &spec.targets, before);
        made.map(|made| Some(Arc::new(made))).map_err(|message| ("tls", message))
    }

    fn change_upstream(
        &mut self,
        change: &Change,
        before: &Snapshot,
        services: &Services,
        rejected: &mut Vec<Rejected>,
    ) {
        let name = &change.key().name;
        if let Some(Body::Upstream(old)) = before.find(change.key()).map(|resource| resource.body())
            && let Some(certificate) = old.tls.as_ref().and_then(|tls| tls.certificate.as_ref())
        {
            self.certificate_upstreams.remove(&(certificate.clone(), name.clone()));
        }
        match change {
            Change::Put(resource) => {
                let Body::Upstream(spec) = resource.body() else { return };
                let slot = self.upstreams.take(name) as usize;
                let before = self.active.upstreams.get(slot).and_then(Option::as_ref);
                let tls = match self.upstream_tls(spec, before.and_then(|before| before.tls.as_deref())) {
                    Ok(tls) => tls,
                    Err((field, message)) => {
                        let key = Some(resource.key().clone());
                        rejected.push(Rejected { key, field: field.to_owned(), message });
                        None
                    }
                };
                let upstream = Arc::new(Upstream::new(name, spec, tls, before.map(Arc::as_ref), services));
                self.changed_upstreams.push(Arc::clone(&upstream));
                if let Some(certificate) = spec.tls.as_ref().and_then(|tls| tls.certificate.as_ref()) {
                    self.certificate_upstreams.insert((certificate.clone(), name.clone()));
                }
                if slot < self.active.upstreams.len() {
                    self.active.upstreams.set(slot, Some(upstream));
                } else {
                    self.active.upstreams.push_back(Some(upstream));
                }
            }
            Change::Delete(key) => {
                if let Some(slot) = self.upstreams.release(&key.name) {
                    self.active.upstreams.set(slot as usize, None);
                }
            }
        }
    }

    fn change_consumer(
        &mut self,
        change: &Change,
        before: &Snapshot,
        affected: &mut Affected,
        rejected: &mut Vec<Rejected>,
    ) {
        let key = change.key();
        if let Some(Body::Consumer(consumer)) = before.find(key).map(|resource| resource.body()) {
            self.active.consumers.remove(&key.name);
            for plugin in &consumer.plugins {
                self.plugin_consumers.remove(&(plugin.clone(), key.name.clone()));
            }
        }
        affected.consumers.insert(key.name.clone());
        let Change::Put(resource) = change else { return };
        let Body::Consumer(consumer) = resource.body() else { return };
        match secrets_of(key, consumer) {
            Ok(keys) => self.active.consumers.insert(consumer, &keys),
            Err(errors) => rejected.extend(errors),
        }
        for plugin in &consumer.plugins {
            self.plugin_consumers.insert((plugin.clone(), key.name.clone()));
        }
    }

    fn change_route(
        &mut self,
        change: &Change,
        before: &Snapshot,
        services: &Services,
        affected: &mut Affected,
        rejected: &mut Vec<Rejected>,
    ) {
        let key = change.key();
        if let Some(Body::Route(route)) = before.find(key).map(|resource| resource.body())
            && route.enabled
        {
            self.active.routes.remove(route);
            self.release_chain(&route.plugins);
        }
        let route = match change {
            Change::Put(resource) => match resource.body() {
                Body::Route(route) if route.enabled => (resource, route),
                _ => return,
            },
            Change::Delete(_) => {
                self.route_stats.remove(&key.name);
                return;
            }
        };
        let (resource, route) = route;
        for plugin in &route.plugins {
            if self.snapshot.find(&ResourceKey::new(Kind::Plugin, plugin.clone())).is_none() {
                rejected.push(missing(key, "plugins", Kind::Plugin, plugin));
            }
        }
        let chain = self.take_chain(&route.plugins, affected);
        let mut upstreams = Vec::new();
        if let Action::Forward(forward) = &route.action {
            let mut total = 0u32;
            for upstream in &forward.upstreams {
                total += upstream.weight.get();
                match self.upstreams.numbers.get(&upstream.name) {
                    Some(slot) => upstreams.push((*slot, total)),
                    None => rejected.push(missing(key, "forward.upstreams", Kind::Upstream, &upstream.name)),
                }
            }
        }
        let mirror = match &route.action {
            Action::Forward(forward) => forward.mirror.as_ref(),
            Action::Redirect(_) | Action::Respond(_) => None,
        };
        let mirror = mirror.and_then(|mirror| {
            let slot = self.upstreams.numbers.get(&mirror.upstream).copied();
            if slot.is_none() {
                rejected.push(missing(key, "forward.mirror.upstream", Kind::Upstream, &mirror.upstream));
            }
            slot
        });
        let stats = match self.route_stats.get(&key.name) {
            Some(stats) => Arc::clone(stats),
            None => {
                let stats = Arc::new(RouteStats {
                    name: key.name.clone().into(),
                    requests: Cells::new(services.workers),
                });
                self.route_stats.insert(key.name.clone(), Arc::clone(&stats));
                stats
            }
        };
        if let Some(compiled) =
            CompiledRoute::new(Arc::clone(resource), upstreams.into(), mirror, chain, stats)
        {
            self.active.routes.insert(route, Arc::new(compiled));
        }
    }

    /// The slot of the chain for a route with `plugins`.
    fn take_chain(&mut self, plugins: &[Name], affected: &mut Affected) -> u32 {
        if plugins.is_empty() {
            return 0;
        }
        let list: Arc<[Name]> = plugins.into();
        let slot = self.chains.take(&list);
        let uses = self.chain_uses.get(&slot).map_or(0, |(_, uses)| *uses);
        if uses == 0 {
            affected.chains.insert(slot);
            self.plugin_chains.extend(plugins.iter().map(|plugin| (plugin.clone(), slot)));
        }
        self.chain_uses.insert(slot, (list, uses + 1));
        slot
    }

    fn release_chain(&mut self, plugins: &[Name]) {
        if plugins.is_empty() {
            return;
        }
        let list: Arc<[Name]> = plugins.into();
        let Some(slot) = self.chains.numbers.get(&list).copied() else { return };
        let uses = self.chain_uses.get(&slot).map_or(0, |(_, uses)| *uses);
        if uses > 1 {
            self.chain_uses.insert(slot, (list, uses - 1));
            return;
        }
        self.chain_uses.remove(&slot);
        self.chains.release(&list);
        if (slot as usize) < self.active.chains.len() {
            self.active.chains.set(slot as usize, Arc::default());
        }
        for plugin in plugins {
            self.plugin_chains.remove(&(plugin.clone(), slot));
        }
    }

    /// Builds anew the chains that name a changed plugin, and those of changed consumers.
    fn rebuild_chains(&mut self, affected: &Affected, rejected: &mut Vec<Rejected>) {
        let globals: Vec<Step> =
            self.plugins.values().filter(|built| built.global).map(|built| built.step.clone()).collect();
        let mut slots = affected.chains.clone();
        let mut consumers = affected.consumers.clone();
        let lowest: Name = "0".parse().expect("a digit is a name, and none sorts before it");
        for plugin in &affected.plugins {
            slots.extend(
                self.plugin_chains
                    .range((plugin.clone(), 0)..)
                    .take_while(|(name, _)| name == plugin)
                    .map(|(_, slot)| *slot),
            );
            consumers.extend(
                self.plugin_consumers
                    .range((plugin.clone(), lowest.clone())..)
                    .take_while(|(name, _)| name == plugin)
                    .map(|(_, consumer)| consumer.clone()),
            );
        }
        if affected.all_chains {
            slots.insert(0);
            slots.extend(self.chain_uses.keys().copied());
        }
        for slot in slots {
            let list = match self.chain_uses.get(&slot) {
                Some((list, _)) => Arc::clone(list),
                None if slot == 0 => Arc::from([]),
                // Its last route left it after another had taken it.
                None => continue,
            };
            let mut steps = self.steps_of(&list);
            let own = steps.iter().fold(TypeSet::default(), |types, step| types.with(step.type_set));
            steps.extend(globals.iter().filter(|step| !own.meets(step.type_set)).cloned());
            while self.active.chains.len() <= slot as usize {
                self.active.chains.push_back(Arc::default());
            }
            self.active.chains.set(slot as usize, Arc::new(Chain::of(steps)));
        }
        for name in &consumers {
            self.active.consumer_chains.remove(name);
            let key = ResourceKey::new(Kind::Consumer, name.clone());
            let Some(Body::Consumer(consumer)) = self.snapshot.find(&key).map(|resource| resource.body())
            else {
                continue;
            };
            for plugin in &consumer.plugins {
                if self.snapshot.find(&ResourceKey::new(Kind::Plugin, plugin.clone())).is_none() {
                    rejected.push(missing(&key, "plugins", Kind::Plugin, plugin));
                }
            }
            let steps = self.steps_of(&consumer.plugins);
            if !steps.is_empty() {
                self.active.consumer_chains.insert(name.clone(), Arc::new(Chain::of(steps)));
            }
        }
    }

    /// The enabled ones of `plugins`.
    fn steps_of(&self, plugins: &[Name]) -> Vec<Step> {
        plugins.iter().filter_map(|name| self.plugins.get(name)).map(|built| built.step.clone()).collect()
    }
}

/// What chains must be built anew.
#[derive(Default)]
struct Affected {
    plugins: BTreeSet<Name>,
    chains: BTreeSet<u32>,
    consumers: BTreeSet<Name>,
    /// A global plugin changed.
    all_chains: bool,
}

fn build_plugin(
    resource: &Resource,
    before: Option<&Built>,
    services: &Services,
) -> Result<Option<Built>, Vec<Rejected>> {
    let key = resource.key();
    let Body::Plugin(spec) = resource.body() else { return Ok(None) };
    if !spec.enabled {
        return Ok(None);
    }
    let index = TYPES.iter().position(|plugin_type| *plugin_type.name == *spec.type_name);
    let Some((index, plugin_type)) = index.zip(PluginType::find(&spec.type_name)) else {
        let message = format!("unknown plugin type {:?}", spec.type_name);
        return Err(vec![Rejected { key: Some(key.clone()), field: "type".to_owned(), message }]);
    };
    let context = Context { name: &key.name, states: &services.states };
    let plugin = plugin_type.build(&spec.config, &context).map_err(|errors| {
        errors
            .into_iter()
            .map(|error| Rejected {
                key: Some(key.clone()),
                field: if error.field.is_empty() {
                    "config".to_owned()
                } else {
                    format!("config.{}", error.field)
                },
                message: error.message,
            })
            .collect::<Vec<_>>()
    })?;
    let step = Step {
        name: key.name.clone(),
        type_set: TypeSet::of(index),
        order: spec.order,
        wants_response: plugin.wants_response(),
        wants_local_reply: plugin.wants_local_reply(),
        answers_preflights: plugin_type.answers_preflights,
        body_cap: plugin.request_body_cap(),
        stats: before.map_or_else(
            || Arc::new(PluginStats { name: key.name.clone(), durations: Histograms::new(services.workers) }),
            |before| Arc::clone(&before.step.stats),
        ),
        plugin,
    };
    Ok(Some(Built { step, global: spec.global }))
}

/// The hashes of a consumer's API keys, references resolved on this host.
fn secrets_of(key: &ResourceKey, consumer: &Consumer) -> Result<Vec<[u8; 32]>, Vec<Rejected>> {
    let mut hashes = Vec::with_capacity(consumer.keys.len());
    let mut rejected = Vec::new();
    for (index, credential) in consumer.keys.iter().enumerate() {
        let found = match &credential.key {
            Secret::Hash(hash) => Ok(*hash),
            Secret::Env(name) => match std::env::var_os(name) {
                Some(value) => hash_of_key(value.as_encoded_bytes())
                    .map_err(|error| format!("the environment variable {name} of the proxy {error}")),
                None => Err(format!("the environment variable {name} of the proxy is not set")),
            },
            Secret::File(path) => match fs::read(path) {
                Ok(bytes) => hash_of_key(&bytes)
                    .map_err(|error| format!("the file {path} on the proxy's host {error}")),
                Err(error) => Err(format!("the file {path} on the proxy's host cannot be read: {error}")),
            },
        };
        match found {
            Ok(hash) => hashes.push(hash),
            Err(message) => rejected.push(Rejected {
                key: Some(key.clone()),
                field: format!("credentials[{index}].key_auth.key"),
                message,
            }),
        }
    }
    if rejected.is_empty() { Ok(hashes) } else { Err(rejected) }
}

/// The hash of an API key as it stands in a file or a variable.
fn hash_of_key(read: &[u8]) -> Result<[u8; 32], String> {
    let key = without_line_break(read);
    match check_key(key) {
        _ if key.is_empty() => Err("is empty".to_owned()),
        Ok(()) => Ok(sha256(key)),
        Err(error) => Err(error),
    }
}

fn missing(key: &ResourceKey, field: &str, kind: Kind, name: &Name) -> Rejected {
    Rejected {
        key: Some(key.clone()),
        field: field.to_owned(),
        message: format!("{kind} {:?} does not exist", name.as_str()),
    }
}

impl<K: Clone + Eq + std::hash::Hash> Default for Slots<K> {
    fn default() -> Self {
        Self { numbers: Map::default(), free: OrdSet::new(), next: 0 }
    }
}

impl<K: Clone + Eq + std::hash::Hash> Slots<K> {
    /// The number of `key`, given now if it has none.
    fn take(&mut self, key: &K) -> u32 {
        if let Some(slot) = self.numbers.get(key) {
            return *slot;
        }
        let slot = match self.free.get_min().copied() {
            Some(slot) => {
                self.free.remove(&slot);
                slot
            }
            None => {
                self.next += 1;
                self.next - 1
            }
        };
        self.numbers.insert(key.clone(), slot);
        slot
    }

    /// Frees the number of `key`.
    fn release(&mut self, key: &K) -> Option<u32> {
        let slot = self.numbers.remove(key)?;
        self.free.insert(slot);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};
    use signalbox_config::document;
    use signalbox_config::router::RequestParts;
    use signalbox_plugins::Catalog;

    use super::*;

    /// Compiles one document after another, each as the change from the one before.
    struct Steps {
        runtime: tokio::runtime::Runtime,
        services: Services,
        compiled: Compiled,
    }

    impl Steps {
        fn start() -> Self {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let resolver = Arc::new(Resolver::new(runtime.handle().clone(), Vec::new()));
            let checking = Checking::new(runtime.handle().clone());
            let services = Services { states: States::default(), resolver, checking, zone: None, workers: 1 };
            Self { runtime, services, compiled: Compiled::empty() }
        }

        fn next(&mut self, text: &str) -> Result<(), Vec<Rejected>> {
            let before = &self.compiled.snapshot;
            let resources: Vec<Arc<Resource>> = document::split(text)
                .unwrap()
                .into_iter()
                .map(|entry| Arc::new(Resource::parse(entry.kind, entry.spec, &Catalog).unwrap()))
                .collect();
            let gone = before.iter().filter(|old| resources.iter().all(|new| new.key() != old.key()));
            let mut changes: Vec<Change> = gone.map(|old| Change::Delete(old.key().clone())).collect();
            changes.extend(
                resources
                    .iter()
                    .filter(|new| before.find(new.key()).is_none_or(|old| old.version() != new.version()))
                    .map(|new| Change::Put(Arc::clone(new))),
            );
            let id = RevisionId { epoch: "e".into(), number: before.id().number + 1 };
            let candidate = Candidate { snapshot: before.with(id, 0, changes.clone()), changes };
            let _entered = self.runtime.enter();
            self.compiled = self.compiled.next(&candidate, &self.services)?;
            Ok(())
        }

        fn route(&self, path: &str) -> &Arc<CompiledRoute> {
            let (method, headers) = (Method::GET, HeaderMap::new());
            let request = RequestParts {
                listener: "http",
                method: &method,
                host: "",
                path,
                query: None,
                headers: &headers,
            };
            self.compiled.active.routes.find(&request).expect("a route").value
        }

        fn target(&self, path: &str) -> String {
            let slot = self.route(path).upstreams[0].0;
            let upstream = self.compiled.active.upstreams[slot as usize].as_ref().expect("an upstream");
            upstream.members.view().targets[0].label.to_string()
        }

        fn chain(&self, path: &str) -> Vec<&str> {
            let chain = &self.compiled.active.chains[self.route(path).chain as usize];
            chain.steps.iter().map(|step| step.name.as_str()).collect()
        }
    }

    const TWO_ROUTES: &str = "
routes:
- {name: a, match: {paths: [{exact: /a}]}, forward: {upstreams: [{name: u}]}}
- {name: b, match: {paths: [{exact: /b}]}, forward: {upstreams: [{name: v}]}}
";

    fn with_upstreams(u: &str, v: &str) -> String {
        format!(
            "upstreams: [{{name: u, targets: [{{address: '{u}'}}]}}, {{name: v, targets: [{{address: '{v}'}}]}}]{TWO_ROUTES}"
        )
    }

    #[test]
    fn a_changed_upstream_touches_no_route() {
        let mut steps = Steps::start();
        steps.next(&with_upstreams("10.0.0.1:80", "10.0.0.2:80")).unwrap();
        let (a, b) = (Arc::clone(steps.route("/a")), Arc::clone(steps.route("/b")));
        let stats =
            Arc::clone(&steps.compiled.active.upstreams[a.upstreams[0].0 as usize].as_ref().unwrap().stats);
        steps.next(&with_upstreams("10.0.0.9:80", "10.0.0.2:80")).unwrap();
        assert!(Arc::ptr_eq(&a, steps.route("/a")) && Arc::ptr_eq(&b, steps.route("/b")));
        assert_eq!(
            (steps.target("/a").as_str(), steps.target("/b").as_str()),
            ("10.0.0.9:80", "10.0.0.2:80")
        );
        let after = steps.compiled.active.upstreams[a.upstreams[0].0 as usize].as_ref().unwrap();
        assert!(Arc::ptr_eq(&stats, &after.stats), "its counters go on");
    }

    #[test]
    fn targets_that_stay_are_kept() {
        let mut steps = Steps::start();
        let upstream = |targets: &str| format!("upstreams: [{{name: u, targets: [{targets}]}}]");
        let target = |steps: &Steps, index: usize| {
            Arc::clone(&steps.compiled.active.upstreams[0].as_ref().unwrap().members.view().targets[index])
        };
        steps.next(&upstream("{address: '10.0.0.1:80'}, {address: '10.0.0.2:80'}")).unwrap();
        let second = target(&steps, 1);
        steps.next(&upstream("{address: '10.0.0.2:80', weight: 5}, {address: '10.0.0.3:80'}")).unwrap();
        assert!(Arc::ptr_eq(&second, &target(&steps, 0)));
    }

    #[test]
    fn a_freed_slot_is_never_that_of_two_upstreams() {
        let mut steps = Steps::start();
        let one = |name: &str, port: u16| {
            format!(
                "upstreams: [{{name: {name}, targets: [{{address: '10.0.0.1:{port}'}}]}}]
routes: [{{name: r, forward: {{upstreams: [{{name: {name}}}]}}}}]"
            )
        };
        for port in 1..50 {
            steps.next(&one(&format!("u{port}"), port)).unwrap();
            assert_eq!(steps.target("/"), format!("10.0.0.1:{port}"));
        }
        assert!(steps.compiled.active.upstreams.len() <= 2);
    }

    #[test]
    fn equal_plugin_lists_share_a_chain_that_goes_with_its_last_route() {
        let mut steps = Steps::start();
        let plugins = "plugins: [{name: k, type: key-auth}, {name: g, type: cors, global: true, config: {origins: ['*']}}]";
        let route = |name: &str, list: &str| {
            format!(
                "{{name: {name}, match: {{paths: [{{exact: /{name}}}]}}, plugins: [{list}], respond: {{body: x}}}}"
            )
        };
        let document = |routes: &[String]| format!("{plugins}\nroutes: [{}]", routes.join(", "));
        steps.next(&document(&[route("a", "k"), route("b", "k"), route("c", "")])).unwrap();
        assert_eq!(steps.route("/a").chain, steps.route("/b").chain);
        assert_eq!((steps.chain("/a"), steps.chain("/c")), (vec!["g", "k"], vec!["g"]));
        steps.next(&document(&[route("b", "k"), route("c", "")])).unwrap();
        assert_eq!(steps.chain("/b"), ["g", "k"]);
        let chain = steps.route("/b").chain;
        steps.next(&document(&[route("b", ""), route("c", "")])).unwrap();
        assert_eq!(steps.chain("/b"), ["g"]);
        assert!(steps.compiled.active.chains[chain as usize].steps.is_empty());
        assert!(steps.compiled.chain_uses.is_empty() && steps.compiled.plugin_chains.is_empty());
        // The next one takes its place.
        steps.next(&document(&[route("b", ""), route("c", "k, g")])).unwrap();
        assert_eq!((steps.chain("/c"), steps.route("/c").chain), (vec!["g", "k"], chain));
    }

    #[test]
    fn a_routes_plugin_takes_the_place_of_the_global_one_of_its_type() {
        let mut steps = Steps::start();
        let document = |own: &str| {
            format!(
                "plugins: [{{name: everywhere, type: key-auth, global: true}}, {{name: own, type: key-auth{own}}}]
routes: [{{name: r, plugins: [own], respond: {{body: x}}}}]"
            )
        };
        steps.next(&document("")).unwrap();
        assert_eq!(steps.chain("/"), ["own"]);
        steps.next(&document(", enabled: false")).unwrap();
        assert_eq!(steps.chain("/"), ["everywhere"]);
    }

    #[test]
    fn consumers_chains_follow_their_plugins() {
        let mut steps = Steps::start();
        let document = |plugin: &str| {
            format!("plugins: [{plugin}]\nconsumers: [{{name: alice, plugins: [c]}}, {{name: bob}}]")
        };
        let alice =
            |steps: &Steps| steps.compiled.active.consumer_chains.get("alice").map(|chain| chain.steps.len());
        steps.next(&document("{name: c, type: cors, config: {origins: ['*']}}")).unwrap();
        assert_eq!(alice(&steps), Some(1));
        steps.next(&document("{name: c, type: cors, enabled: false, config: {origins: ['*']}}")).unwrap();
        assert_eq!(alice(&steps), None);
        steps.next(&document("{name: c, type: cors, config: {origins: ['*']}}")).unwrap();
        assert_eq!(alice(&steps), Some(1));
        steps.next("plugins: [{name: c, type: cors, config: {origins: ['*']}}]").unwrap();
        assert_eq!(alice(&steps), None);
        assert!(steps.compiled.plugin_consumers.is_empty());
    }

    #[test]
    fn a_key_that_is_read_on_the_host_is_one_that_clients_can_send_or_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let document = format!(
            "consumers: [{{name: c, credentials: [{{key_auth: {{key: {{file: '{}'}}}}}}]}}]",
            path.display()
        );
        for (content, key) in [("k1", "k1"), ("k2\n", "k2"), ("k3\r\n", "k3")] {
            fs::write(&path, content).unwrap();
            let mut steps = Steps::start();
            steps.next(&document).unwrap();
            let owner = steps.compiled.active.consumers.by_key(&sha256(key.as_bytes()));
            assert_eq!(owner.map(|owner| owner.consumer.name.as_str()), Some("c"), "{content:?}");
        }
        for (content, reason) in [
            ("", "is empty"),
            ("\n", "is empty"),
            ("k \n", "ends with white space"),
            (" k", "begins with white space"),
            ("k\n\n", "ends with a line break"),
            ("a\nb", "has the control character U+000A"),
        ] {
            fs::write(&path, content).unwrap();
            let rejected = Steps::start().next(&document).unwrap_err();
            assert_eq!(rejected[0].field, "credentials[0].key_auth.key");
            assert!(rejected[0].message.contains(reason), "{content:?}: {}", rejected[0].message);
        }
    }

    #[test]
    fn what_is_not_there_is_rejected_by_name() {
        let mut steps = Steps::start();
        let rejected = steps
            .next("routes: [{name: r, plugins: [p], forward: {upstreams: [{name: u}]}}]\nconsumers: [{name: c, plugins: [q]}]")
            .unwrap_err();
        let told: Vec<_> = rejected
            .iter()
            .map(|it| (it.key.as_ref().unwrap().to_string(), it.field.as_str(), it.message.as_str()))
            .collect();
        for expected in [
            ("route/r".to_owned(), "plugins", "plugin \"p\" does not exist"),
            ("route/r".to_owned(), "forward.upstreams", "upstream \"u\" does not exist"),
            ("consumer/c".to_owned(), "plugins", "plugin \"q\" does not exist"),
        ] {
            assert!(told.contains(&expected), "{told:?}");
        }
        assert_eq!(steps.compiled.snapshot.len(), 0);
    }

    #[test]
    fn resources_are_counted() {
        let mut steps = Steps::start();
        steps.next(&with_upstreams("10.0.0.1:80", "10.0.0.2:80")).unwrap();
        steps.next(&with_upstreams("10.0.0.3:80", "10.0.0.2:80")).unwrap();
        assert_eq!(steps.compiled.counts, [0, 2, 2, 0, 0, 0]);
        steps.next("routes: []").unwrap();
        assert_eq!(steps.compiled.counts, [0; 6]);
    }
}
