use std::sync::Arc;

use rustls::sign::CertifiedKey;
use signalbox_config::{Body, Certificate, Change, Name, PrivateKey};

use super::revision::{put, rejected};
use crate::secrets::{SecretReader, SecretSource};
use crate::source::Rejected;
use crate::wire::tls::{Certificates, ServedCertificate};

/// Compiles certificates: with their private keys, by name and by server name.
#[derive(Clone, Default)]
pub(super) struct CertificateCompiler {
    certificates: Certificates,
}

#[derive(Default)]
pub(super) struct CertificateDelta {
    removed: Vec<Name>,
    put: Vec<Arc<ServedCertificate>>,
}

impl CertificateCompiler {
    pub(super) fn compile(
        &self,
        changes: &[&Change],
        secrets: &dyn SecretReader,
    ) -> Result<CertificateDelta, Vec<Rejected>> {
        let mut delta = CertificateDelta::default();
        let mut rejections = Vec::new();
        for change in changes {
            let key = change.key();
            if self.named(&key.name).is_some() {
                delta.removed.push(key.name.clone());
            }
            let Some(Body::Certificate(certificate)) = put(change).map(|it| it.body()) else { continue };
            match certified(certificate, secrets) {
                Ok(certified) => {
                    delta.put.push(Arc::new(ServedCertificate::new(&key.name, certificate, certified)));
                }
                Err(message) => rejections.push(rejected(key, "private_key", message)),
            }
        }
        if rejections.is_empty() { Ok(delta) } else { Err(rejections) }
    }

    pub(super) fn apply(&mut self, delta: &CertificateDelta) {
        // A server name may go from one certificate to another, so all are removed before any is added.
        for name in &delta.removed {
            self.certificates.remove(name);
        }
        for shown in &delta.put {
            self.certificates.insert(shown);
        }
    }

    pub(super) fn all(&self) -> &Certificates {
        &self.certificates
    }

    pub(super) fn named(&self, name: &Name) -> Option<&Arc<ServedCertificate>> {
        self.certificates.named(name)
    }
}

/// The certificate with its private key, which is read from where it lies on this host. The error is for people.
fn certified(certificate: &Certificate, secrets: &dyn SecretReader) -> Result<Arc<CertifiedKey>, String> {
    let source = match &certificate.key {
        PrivateKey::Pem(pem) => return certificate.certified(pem).map(Arc::new),
        PrivateKey::Env(name) => SecretSource::Env(name),
        PrivateKey::File(path) => SecretSource::File(path),
    };
    let read = secrets.read(source).map_err(|error| format!("{source} {error}"))?;
    let pem = str::from_utf8(&read).map_err(|_| format!("{source} is not text in UTF-8"))?;
    certificate.certified(pem).map(Arc::new)
}
