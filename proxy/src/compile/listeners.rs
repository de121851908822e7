use std::sync::Arc;

use signalbox_config::{Body, Change, Kind, Name, Resource};

use super::certificates::CertificateCompiler;
use super::revision::{Revision, put, rejected};
use crate::core::map::Map;
use crate::source::Rejected;
use crate::wire::tls::ListenerTls;

/// Compiles how listeners speak TLS. Their sockets are not its concern.
#[derive(Clone, Default)]
pub(super) struct ListenerCompiler {
    /// The listeners that speak TLS.
    tls: Map<Name, Arc<ListenerTls>>,
}

#[derive(Default)]
pub(super) struct ListenerDelta {
    /// `None`: the listener does not speak TLS, or is deleted.
    changed: Vec<(Name, Option<Arc<ListenerTls>>)>,
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
        if rejections.is_empty() { Ok(delta) } else { Err(rejections) }
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
    }

    /// The TLS settings of a listener; `None`: cleartext.
    pub(super) fn tls(&self, name: &Name) -> Option<&Arc<ListenerTls>> {
        self.tls.get(name)
    }
}
