//! Checks clients' certificates once more, by other authorities than the listener does.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::UnixTime;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use crate::authorities::parse_authorities;
use crate::certificate::ClientCertificate;

/// The authorities that vouch for clients.
#[derive(Clone)]
pub struct ClientAuthorities(Arc<dyn ClientCertVerifier>);

impl ClientAuthorities {
    /// Reads the certificates of the authorities in PEM; or why they are none.
    pub fn from_pem(pem: &str) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in parse_authorities(pem)? {
            roots.add(certificate).map_err(|error| error.to_string())?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        verifier.map(Self).map_err(|error| error.to_string())
    }

    /// True if one of the authorities has issued the certificate, for a client, and it is valid at `now`, since 1970.
    pub fn vouch_for(&self, certificate: &ClientCertificate, now: Duration) -> bool {
        let Some((own, others)) = certificate.chain.split_first() else { return false };
        self.0.verify_client_cert(own, others, UnixTime::since_unix_epoch(now)).is_ok()
    }
}

impl fmt::Debug for ClientAuthorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientAuthorities")
    }
}
