use std::sync::Arc;

use signalbox_config::{Body, Change, Kind, Name, Resource};

use super::certificates::CertificateCompiler;
use super::revision::{Revision, put, rejected};
use crate::core::map::Map;
use crate::secrets::header_value;
use crate::services::Services;
use crate::source::Rejected;
use crate::telemetry::access_log::ListenerLog;
use crate::telemetry::spans::{ListenerTracing, SpanSink};
use crate::wire::tls::ListenerTls;

/// Compiles how listeners speak TLS, trace and log. Their sockets are not its concern.
#[derive(Clone, Default)]
pub(super) struct ListenerCompiler {
    /// The listeners that speak TLS.
    tls: Map<Name, Arc<ListenerTls>>,
    /// The listeners that trace.
    tracing: Map<Name, Arc<ListenerTracing>>,
    /// The listeners with settings of the access log.
    logs: Map<Name, Arc<ListenerLog>>,
}

#[derive(Default)]
pub(super) struct ListenerDelta {
    /// `None`: the listener does not speak TLS, or is deleted.
    changed: Vec<(Name, Option<Arc<ListenerTls>>)>,
    /// The same for listeners that trace.
    traced: Vec<(Name, Option<Arc<ListenerTracing>>)>,
    /// The same for listeners with settings of the access log.
    logged: Vec<(Name, Option<Arc<ListenerLog>>)>,
}

impl ListenerCompiler {
    /// `certificates` are those of the new revision. Every listener that speaks TLS shows them, so when one changed, all
    /// listeners are compiled.
    pub(super) fn compile(
        &self,
        changes: &[&Change],
        revision: Revision<'_>,
        certificates: &CertificateCompiler,
        certificates_changed: bool,
        services: &Services,
    ) -> Result<ListenerDelta, Vec<Rejected>> {
        let mut delta = ListenerDelta::default();
        let mut rejections = Vec::new();
        let deleted = changes.iter().filter(|change| put(change).is_none());
        delta.changed.extend(deleted.map(|change| (change.key().name.clone(), None)));
        let affected: Vec<&Arc<Resource>> = if certificates_changed {
            revision.now.of_kind(Kind::Listener, None).collect()
        } else {
            changes.iter().filter_map(|change| put(change)).collect()
        };
        for listener in affected {
            match self.compile_tls(listener, revision, certificates, certificates_changed) {
                Ok(tls) => delta.changed.push((listener.key().name.clone(), tls)),
                Err(rejected) => rejections.push(rejected),
            }
        }
        for change in changes {
            let tracing = put(change).map(|listener| self.compile_tracing(listener, services)).transpose();
            match tracing {
                Ok(tracing) => delta.traced.push((change.key().name.clone(), tracing.flatten())),
                Err(rejected) => rejections.push(rejected),
            }
            let log = put(change).and_then(|listener| self.compile_log(listener, services));
            delta.logged.push((change.key().name.clone(), log));
        }
        if rejections.is_empty() { Ok(delta) } else { Err(rejections) }
    }

    fn compile_tracing(
        &self,
        listener: &Resource,
        services: &Services,
    ) -> Result<Option<Arc<ListenerTracing>>, Rejected> {
        let key = listener.key();
        let Body::Listener(listener) = listener.body() else { return Ok(None) };
        let Some(settings) = &listener.tracing else { return Ok(None) };
        let before = self.tracing.get(&key.name);
        if let Some(same) = before.filter(|before| before.settings == *settings) {
            return Ok(Some(Arc::clone(same)));
        }
        for (name, value) in &settings.exporter.headers {
            // The exporter reads it anew for each call.
            if let Err(message) = header_value(value, &*services.secrets) {
                return Err(rejected(key, format!("tracing.exporter.headers.{name}"), message));
            }
        }
        let sink = services.span_sinks.sink(&settings.exporter);
        Ok(Some(Arc::new(ListenerTracing::new(settings.clone(), sink, workers(services)))))
    }

    fn compile_log(&self, listener: &Resource, services: &Services) -> Option<Arc<ListenerLog>> {
        let Body::Listener(settings) = listener.body() else { return None };
        let settings = settings.access_log.as_ref()?;
        let before = self.logs.get(&listener.key().name);
        let same = before.filter(|before| before.settings == *settings);
        Some(same.map_or_else(|| Arc::new(ListenerLog::new(settings.clone(), workers(services))), Arc::clone))
    }

    fn compile_tls(
        &self,
        listener: &Resource,
        revision: Revision<'_>,
        certificates: &CertificateCompiler,
        certificates_changed: bool,
    ) -> Result<Option<Arc<ListenerTls>>, Rejected> {
        let key = listener.key();
        let Body::Listener(listener) = listener.body() else { return Ok(None) };
        let Some(spec) = &listener.tls else { return Ok(None) };
        let missing = spec.default_certificate.as_ref().and_then(|name| {
            revision.check_reference(key, "tls.default_certificate", Kind::Certificate, name)
        });
        if let Some(missing) = missing {
            return Err(missing);
        }
        let before = self.tls.get(&key.name);
        if let Some(same) = before.filter(|before| !certificates_changed && before.is_of(spec)) {
            return Ok(Some(Arc::clone(same)));
        }
        ListenerTls::new(spec, certificates.all(), before.map(Arc::as_ref))
            .map(|tls| Some(Arc::new(tls)))
            .map_err(|message| rejected(key, "tls", message))
    }

    pub(super) fn apply(&mut self, delta: &ListenerDelta) {
        for (name, tls) in &delta.changed {
            match tls {
                Some(tls) => self.tls.insert(name.clone(), Arc::clone(tls)),
                None => self.tls.remove(name),
            };
        }
        for (name, tracing) in &delta.traced {
            match tracing {
                Some(tracing) => self.tracing.insert(name.clone(), Arc::clone(tracing)),
                None => self.tracing.remove(name),
            };
        }
        for (name, log) in &delta.logged {
            match log {
                Some(log) => self.logs.insert(name.clone(), Arc::clone(log)),
                None => self.logs.remove(name),
            };
        }
    }

    /// The tracing of a listener; `None`: there is none.
    pub(super) fn tracing(&self, name: &Name) -> Option<&Arc<ListenerTracing>> {
        self.tracing.get(name)
    }

    /// The access log of a listener; `None`: it has no settings of its own.
    pub(super) fn access_log(&self, name: &Name) -> Option<&Arc<ListenerLog>> {
        self.logs.get(name)
    }

    pub(super) fn span_sinks(&self) -> impl Iterator<Item = &Arc<SpanSink>> {
        self.tracing.values().map(|tracing| &tracing.sink)
    }

    /// The TLS settings of a listener; `None`: cleartext.
    pub(super) fn tls(&self, name: &Name) -> Option<&Arc<ListenerTls>> {
        self.tls.get(name)
    }
}

/// The number of threads with requests: that for the tasks of plugins has none.
fn workers(services: &Services) -> usize {
    services.workers.saturating_sub(1)
}
