use std::collections::BTreeSet;
use std::sync::Arc;

use signalbox_config::{Body, Change, Kind, Name, Resource, ResourceKey, UpstreamProtocol};

use super::certificates::CertificateCompiler;
use super::free_slots::FreeSlots;
use super::revision::{Revision, put, rejected};
use super::users::Users;
use crate::active::UpstreamSlot;
use crate::core::map::Map;
use crate::core::slots::SlotTable;
use crate::services::Services;
use crate::source::Rejected;
use crate::upstream::Upstream;
use crate::wire::tls::{self, UpstreamTls};

/// Compiles upstreams, and gives each the slot by which routes refer to it.
#[derive(Clone, Default)]
pub(super) struct UpstreamCompiler {
    table: SlotTable<Upstream>,
    slots: Map<Name, UpstreamSlot>,
    free_slots: FreeSlots<Upstream>,
    /// Which upstreams show a certificate to their targets.
    by_certificate: Users<Name>,
}

#[derive(Default)]
pub(super) struct UpstreamDelta {
    put: Vec<Arc<Upstream>>,
    deleted: Vec<Name>,
    /// Certificate and upstream, as they were and as they are.
    shown_before: Vec<(Name, Name)>,
    shown_now: Vec<(Name, Name)>,
}

impl UpstreamCompiler {
    /// `certificates` are those of the new revision; an upstream that shows a certificate which changed is compiled too.
    pub(super) fn compile(
        &self,
        changes: &[&Change],
        certificate_changes: &[&Change],
        revision: Revision<'_>,
        certificates: &CertificateCompiler,
        services: &Services,
    ) -> Result<UpstreamDelta, Vec<Rejected>> {
        let mut delta = UpstreamDelta::default();
        let mut rejections = Vec::new();
        for change in changes {
            let name = &change.key().name;
            let before = revision.replaced_by(change).and_then(|resource| shown_certificate(resource));
            delta.shown_before.extend(before.map(|certificate| (certificate.clone(), name.clone())));
            let now = put(change).and_then(|resource| shown_certificate(resource));
            delta.shown_now.extend(now.map(|certificate| (certificate.clone(), name.clone())));
            if put(change).is_none() {
                delta.deleted.push(name.clone());
            }
        }
        let mut affected: Vec<&Arc<Resource>> = changes.iter().filter_map(|change| put(change)).collect();
        affected.extend(self.showing(certificate_changes, changes, revision));
        // The names stay resolved until the new upstreams use them.
        let _names = services.resolver.prepare(affected.iter().flat_map(|upstream| hosts(upstream)));
        for resource in affected {
            let Body::Upstream(spec) = resource.body() else { continue };
            let name = &resource.key().name;
            let before = self.get(name);
            let tls_before = before.and_then(|before| before.transport.tls.as_deref());
            match compile_tls(resource.key(), spec, tls_before, revision, certificates) {
                Ok(tls) => delta.put.push(Arc::new(Upstream::new(
                    name,
                    spec,
                    tls,
                    before.map(Arc::as_ref),
                    services,
                ))),
                Err(rejected) => rejections.extend(rejected),
            }
        }
        if rejections.is_empty() { Ok(delta) } else { Err(rejections) }
    }

    pub(super) fn apply(&mut self, delta: &UpstreamDelta) {
        for (certificate, upstream) in &delta.shown_before {
            self.by_certificate.remove(certificate, upstream.clone());
        }
        for (certificate, upstream) in &delta.shown_now {
            self.by_certificate.insert(certificate, upstream.clone());
        }
        // A slot that is freed here goes to an upstream of a later revision at the earliest.
        for upstream in &delta.put {
            let slot = match self.slots.get(&upstream.name) {
                Some(slot) => *slot,
                None => {
                    let slot = self.free_slots.take();
                    self.slots.insert(upstream.name.clone(), slot);
                    slot
                }
            };
            self.table.set(slot, Arc::clone(upstream));
        }
        for name in &delta.deleted {
            if let Some(slot) = self.slots.remove(name) {
                self.free_slots.release(slot);
                self.table.clear(slot);
            }
        }
    }

    pub(super) fn slot(&self, name: &Name) -> Option<UpstreamSlot> {
        self.slots.get(name).copied()
    }

    pub(super) fn table(&self) -> &SlotTable<Upstream> {
        &self.table
    }

    /// The slots by name.
    pub(super) fn slots(&self) -> &Map<Name, UpstreamSlot> {
        &self.slots
    }

    pub(super) fn get(&self, name: &Name) -> Option<&Arc<Upstream>> {
        self.table.get(self.slot(name)?)
    }

    /// The upstreams that show a certificate which changes, but do not change themselves.
    fn showing<'a>(
        &self,
        certificate_changes: &[&Change],
        changes: &[&Change],
        revision: Revision<'a>,
    ) -> Vec<&'a Arc<Resource>> {
        if certificate_changes.is_empty() {
            return Vec::new();
        }
        let changed: BTreeSet<&Name> = changes.iter().map(|change| &change.key().name).collect();
        certificate_changes
            .iter()
            .flat_map(|certificate| self.by_certificate.of(&certificate.key().name))
            .filter(|name| !changed.contains(name))
            .filter_map(|name| revision.now.find(&ResourceKey::new(Kind::Upstream, name.clone())))
            .collect()
    }
}

impl UpstreamDelta {
    /// The new upstreams, which are not in use yet.
    pub(super) fn into_new(self) -> Vec<Arc<Upstream>> {
        self.put
    }
}

/// Compiles the TLS settings for an upstream's targets; `None`: cleartext. An error without reasons means that the
/// revision is rejected already, because of the upstream's client certificate.
fn compile_tls(
    key: &ResourceKey,
    spec: &signalbox_config::Upstream,
    before: Option<&UpstreamTls>,
    revision: Revision<'_>,
    certificates: &CertificateCompiler,
) -> Result<Option<Arc<UpstreamTls>>, Option<Rejected>> {
    let Some(tls) = &spec.tls else { return Ok(None) };
    let certificate = match &tls.certificate {
        None => None,
        Some(name) => {
            let missing = revision.check_reference(key, "tls.certificate", Kind::Certificate, name);
            let resource = revision.now.find(&ResourceKey::new(Kind::Certificate, name.clone()));
            Some(certificates.named(name).zip(resource).ok_or(missing)?)
        }
    };
    let certificate = certificate.map(|(shown, resource)| (&shown.certified, resource.version()));
    let certificate = certificate.as_ref().map(|(certified, version)| (*certified, version.as_str()));
    let protocols: &[&[u8]] = match spec.protocol {
        UpstreamProtocol::Http1 => &[tls::HTTP1],
        UpstreamProtocol::Http2 => &[tls::HTTP2],
        UpstreamProtocol::Auto => &[tls::HTTP2, tls::HTTP1],
    };
    let tls = UpstreamTls::new(tls, certificate, protocols, &spec.targets, before);
    tls.map(|tls| Some(Arc::new(tls))).map_err(|message| Some(rejected(key, "tls", message)))
}

/// The certificate that an upstream shows to its targets.
fn shown_certificate(resource: &Resource) -> Option<&Name> {
    match resource.body() {
        Body::Upstream(upstream) => upstream.tls.as_ref()?.certificate.as_ref(),
        _ => None,
    }
}

/// The hosts of an upstream's targets.
fn hosts(resource: &Resource) -> impl Iterator<Item = &str> {
    let targets = match resource.body() {
        Body::Upstream(upstream) => &*upstream.targets,
        _ => &[],
    };
    targets.iter().map(|target| &*target.host)
}
