//! TLS: proving who the proxy is to clients, and asking targets who they are.

mod accept;
mod connect;
mod server_name;
mod shown;

pub use accept::{Certificates, Greeted, HandshakeFailure, ListenerTls, accept, greeted};
pub use connect::{Offer, UpstreamTls};
pub use shown::Shown;

use std::fs;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, SupportedProtocolVersion};
use signalbox_config::{Certificate, PrivateKey, TlsVersion};

/// What is agreed on by ALPN.
pub const HTTP1: &[u8] = b"http/1.1";
pub const HTTP2: &[u8] = b"h2";

/// A certificate with its key, read from where it is on this host.
pub fn certified(certificate: &Certificate) -> Result<Arc<CertifiedKey>, String> {
    let read;
    let pem = match &certificate.key {
        PrivateKey::Pem(pem) => pem,
        PrivateKey::Env(name) => {
            read = std::env::var(name)
                .map_err(|_| format!("the environment variable {name} of the proxy is not set"))?;
            read.as_str()
        }
        PrivateKey::File(path) => {
            read = fs::read_to_string(path)
                .map_err(|error| format!("the file {path} on the proxy's host cannot be read: {error}"))?;
            read.as_str()
        }
    };
    certificate.certified(pem).map(Arc::new)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn versions(lowest: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
    match lowest {
        TlsVersion::V1_2 => &BOTH,
        TlsVersion::V1_3 => &BOTH[..1],
    }
}

/// They were checked when they were parsed.
fn roots(authorities: &[CertificateDer<'static>]) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(authorities.iter().cloned());
    Arc::new(roots)
}
