//! Compiles a candidate into what requests see, at the cost of what changed.
//!
//! Each kind of resource has a compiler, which keeps what it compiled of the revision before. `compile` makes a delta of
//! the changes, or says why they are rejected, and leaves the compiler as it is; `apply` takes a delta over, and cannot
//! fail. [`Compiled::next`] runs them one after another.

mod attached;
mod certificates;
mod chains;
mod consumers;
mod credentials;
mod free_slots;
mod listeners;
mod plugins;
mod revision;
mod routes;
#[cfg(test)]
mod tests;
mod upstreams;
mod users;

use std::sync::Arc;

use signalbox_config::{Change, Kind, Name, RevisionId, RouteIndex, Snapshot};
use signalbox_plugin::Consumers;
use signalbox_plugin::precedence::Source;

use crate::active::{Active, PluginStats, RouteStats};
use crate::core::map::Map;
use crate::core::slots::SlotTable;
use crate::services::{Checking, Services};
use crate::source::{Candidate, Rejected};
use crate::telemetry::access_log::ListenerLog;
use crate::telemetry::spans::{ListenerTracing, SpanSink};
use crate::telemetry::{Cells, Scope};
use crate::upstream::Upstream;
use crate::wire::tls::ListenerTls;
use attached::AttachedCompiler;
use certificates::CertificateCompiler;
use chains::ChainCompiler;
use consumers::ConsumerCompiler;
use listeners::ListenerCompiler;
use plugins::PluginCompiler;
use revision::{ChangesByKind, Revision};
use routes::RouteCompiler;
use upstreams::UpstreamCompiler;

/// A revision, compiled, with what it takes to compile the next one. A clone is cheap.
#[derive(Clone)]
pub struct Compiled {
    pub active: Active,
    pub snapshot: Snapshot,
    /// The number of resources of each kind.
    pub counts: [u64; Kind::ALL.len()],
    certificates: CertificateCompiler,
    listeners: ListenerCompiler,
    plugins: PluginCompiler,
    upstreams: UpstreamCompiler,
    consumers: ConsumerCompiler,
    attached: Attached,
    chains: ChainCompiler,
    routes: RouteCompiler,
    /// The upstreams that are new in this revision, until it is activated.
    new_upstreams: Vec<Arc<Upstream>>,
}

/// Compiles what is attached to upstreams and listeners.
#[derive(Clone)]
struct Attached {
    upstreams: AttachedCompiler,
    listeners: AttachedCompiler,
}

/// The reasons against a candidate, from all compilers.
#[derive(Default)]
struct Rejections(Vec<Rejected>);

impl Compiled {
    /// The revision of a proxy that serves nothing.
    pub fn empty() -> Self {
        let chains = ChainCompiler::default();
        let active = Active {
            id: RevisionId { epoch: "".into(), number: 0 },
            routes: RouteIndex::new(),
            upstreams: SlotTable::default(),
            upstream_slots: Map::default(),
            chains: chains.table().clone(),
            consumers: Consumers::default(),
            consumer_chains: Map::default(),
            upstream_chains: Map::default(),
            listener_chains: Map::default(),
            listeners: Vec::new(),
            period: Arc::default(),
        };
        Self {
            active,
            snapshot: Snapshot::empty(""),
            counts: [0; Kind::ALL.len()],
            certificates: CertificateCompiler::default(),
            listeners: ListenerCompiler::default(),
            plugins: PluginCompiler::default(),
            upstreams: UpstreamCompiler::default(),
            consumers: ConsumerCompiler::default(),
            attached: Attached {
                upstreams: AttachedCompiler::new(Kind::Upstream, Source::Upstream),
                listeners: AttachedCompiler::new(Kind::Listener, Source::Listener),
            },
            chains,
            routes: RouteCompiler::default(),
            new_upstreams: Vec::new(),
        }
    }

    /// Compiles the revision after this one. Its listeners and its period are still those of this one: listeners need sockets,
    /// and a period may be the next one's.
    ///
    /// The error has all reasons at once: when a compiler rejects its changes, the others go on with an empty delta in its
    /// place.
    pub fn next(&self, candidate: &Candidate, services: &Services) -> Result<Self, Vec<Rejected>> {
        let revision = Revision { before: &self.snapshot, now: &candidate.snapshot };
        let changes = ChangesByKind::new(&candidate.changes);
        let secrets = &*services.secrets;
        let mut rejections = Rejections::default();
        let mut next = self.clone();

        // Kinds are compiled in the order of their dependencies: first those to which others refer.
        let certificates = rejections.delta(next.certificates.compile(&changes.certificates, secrets));
        next.certificates.apply(&certificates);

        let certificates_changed = !changes.certificates.is_empty();
        let listeners = next.listeners.compile(
            &changes.listeners,
            revision,
            &next.certificates,
            certificates_changed,
            services,
        );
        next.listeners.apply(&rejections.delta(listeners));

        let plugins = rejections.delta(next.plugins.compile(&changes.plugins, services));
        next.plugins.apply(&plugins);

        let upstreams = rejections.delta(next.upstreams.compile(
            &changes.upstreams,
            &changes.certificates,
            revision,
            &next.certificates,
            services,
        ));
        next.upstreams.apply(&upstreams);

        let consumers = next.consumers.compile(&changes, revision, &next.plugins, secrets);
        next.consumers.apply(&rejections.delta(consumers));

        let Attached { upstreams: of_upstreams, listeners } = &mut next.attached;
        for (compiler, own) in [(of_upstreams, &changes.upstreams), (listeners, &changes.listeners)] {
            let attached = compiler.compile(own, &changes.plugins, revision, &next.plugins);
            compiler.apply(&rejections.delta(attached));
        }

        let chains =
            next.chains.compile(&changes.routes, &changes.plugins, revision, &next.plugins, &plugins);
        next.chains.apply(&chains);

        let routes = next.routes.compile(&changes.routes, revision, &next.chains, &next.upstreams, services);
        next.routes.apply(&rejections.delta(routes));

        rejections.into_result()?;
        next.count(&candidate.changes, revision);
        next.snapshot = candidate.snapshot.clone();
        next.new_upstreams = upstreams.into_new();
        next.active = next.assemble();
        Ok(next)
    }

    /// Begins to serve the revision: its new upstreams take over the targets that they share with those before.
    pub fn activate(&mut self, checking: &Checking) {
        for upstream in std::mem::take(&mut self.new_upstreams) {
            upstream.activate(checking);
        }
    }

    /// The TLS settings of a listener; `None`: cleartext.
    pub fn listener_tls(&self, name: &Name) -> Option<&Arc<ListenerTls>> {
        self.listeners.tls(name)
    }

    /// The access log of a listener; `None`: it has no settings of its own.
    pub fn listener_log(&self, name: &Name) -> Option<&Arc<ListenerLog>> {
        self.listeners.access_log(name)
    }

    /// The tracing of a listener; `None`: there is none.
    pub fn listener_tracing(&self, name: &Name) -> Option<&Arc<ListenerTracing>> {
        self.listeners.tracing(name)
    }

    /// The queues of spans that listeners use.
    pub fn span_sinks(&self) -> impl Iterator<Item = &Arc<SpanSink>> {
        self.listeners.span_sinks()
    }

    /// The counters of the routes, and of deleted ones whose counts are still to be shown.
    pub fn route_stats(&self) -> impl Iterator<Item = &Arc<RouteStats>> {
        self.routes.stats().chain(self.routes.retired())
    }

    /// Forgets deleted routes, see [`RouteCompiler::forget_retired`].
    pub fn forget_routes(&mut self, shown: bool) -> Vec<Arc<RouteStats>> {
        self.routes.forget_retired(shown)
    }

    /// The counters of a route or an upstream; `None`: this revision does not have it.
    pub fn cells(&self, scope: &Scope) -> Option<&Cells> {
        match scope {
            Scope::Route(name) => self.routes.stats_of(name).map(|stats| &stats.requests),
            Scope::Upstream(name) => self.upstreams.get(name).map(|upstream| &upstream.stats.requests),
        }
    }

    /// The measurements of enabled plugins.
    pub fn plugin_stats(&self) -> impl Iterator<Item = &Arc<PluginStats>> {
        self.plugins.stats()
    }

    /// Builds the active configuration from the compilers' current state.
    fn assemble(&self) -> Active {
        Active {
            id: self.snapshot.id().clone(),
            routes: self.routes.index().clone(),
            upstreams: self.upstreams.table().clone(),
            upstream_slots: self.upstreams.slots().clone(),
            chains: self.chains.table().clone(),
            consumers: self.consumers.all().clone(),
            consumer_chains: self.consumers.chains().clone(),
            upstream_chains: self.attached.upstreams.chains().clone(),
            listener_chains: self.attached.listeners.chains().clone(),
            listeners: self.active.listeners.clone(),
            period: Arc::clone(&self.active.period),
        }
    }

    fn count(&mut self, changes: &[Change], revision: Revision<'_>) {
        for change in changes {
            let count = &mut self.counts[change.key().kind as usize];
            *count += u64::from(matches!(change, Change::Put(_)));
            *count -= u64::from(revision.replaced_by(change).is_some());
        }
    }
}

impl Rejections {
    /// The delta of a compiler. When it was rejected, an empty one.
    fn delta<D: Default>(&mut self, compiled: Result<D, Vec<Rejected>>) -> D {
        compiled.unwrap_or_else(|reasons| {
            self.0.extend(reasons);
            D::default()
        })
    }

    fn into_result(self) -> Result<(), Vec<Rejected>> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }
}
