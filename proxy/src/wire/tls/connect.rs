//! TLS to targets: the identity that a target has to prove, and the certificate that it is shown.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use signalbox_config::{Target, TlsVersion};
use signalbox_process::tls::host_authorities;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsConnector, TlsStream as AnyTlsStream};

use super::{HTTP1, HTTP2, provider, roots, versions};
use crate::core::target_label::label;

/// The TLS settings for an upstream's targets. They are kept, with the sessions to resume, while the configuration of
/// TLS stays.
pub struct UpstreamTls {
    /// The client configurations, indexed by [`Offer`].
    configs: [Arc<ClientConfig>; 3],
    /// The hash of everything that the configuration was made from.
    settings: u64,
    /// The names that targets have to prove, by the hash of settings and name.
    names: HashMap<u64, ServerName<'static>>,
    peers: Peers,
}

/// The protocols that are offered to a target by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// All protocols of its upstream.
    Any,
    Http1,
    Http2,
}

/// The mapping of targets to names.
#[derive(Debug)]
enum Peers {
    /// One configured name for all.
    Same(u64),
    /// The host of each target's address, by its label.
    Own(HashMap<Box<str>, u64, foldhash::fast::RandomState>),
}

impl UpstreamTls {
    /// Creates the settings for `targets` of an upstream whose previous settings are `before`. `certificate` is the
    /// client certificate with its version. The error is readable by the operator.
    pub fn new(
        spec: &signalbox_config::UpstreamTls,
        certificate: Option<(&Arc<CertifiedKey>, &str)>,
        protocols: &[&[u8]],
        targets: &[Target],
        before: Option<&Self>,
    ) -> Result<Self, String> {
        let settings =
            hash_of(&format!("{spec:?} {:?} {protocols:?}", certificate.map(|(_, version)| version)));
        let configs = match before.filter(|before| before.settings == settings) {
            Some(before) => before.configs.clone(),
            None => {
                let config = new_config(spec, certificate.map(|(certified, _)| certified))?;
                // All of them share the sessions to resume.
                [protocols, &[HTTP1], &[HTTP2]].map(|protocols| {
                    let mut config = config.clone();
                    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
                    Arc::new(config)
                })
            }
        };
        let mut names = HashMap::new();
        let mut add = |name: &str| {
            let name = ServerName::try_from(name.to_owned())
                .map_err(|_| format!("{name:?} is not a name that a certificate can have; give tls.sni"))?;
            let hash = hash_of(&format!("{settings} {name:?}"));
            names.insert(hash, name);
            Ok::<_, String>(hash)
        };
        let peers = match &spec.sni {
            Some(sni) => Peers::Same(add(sni)?),
            None => {
                let mut peers = HashMap::default();
                for target in targets {
                    let host = target.host.strip_suffix('.').unwrap_or(&target.host);
                    peers.insert(label(target).into(), add(host)?);
                }
                Peers::Own(peers)
            }
        };
        Ok(Self { configs, settings, names, peers })
    }

    /// The key of these settings and the name of the target with this label; never 0.
    #[inline]
    pub fn settings(&self, target: &str) -> u64 {
        match &self.peers {
            Peers::Same(settings) => *settings,
            // The key was made with the targets; with an unknown name no handshake succeeds.
            Peers::Own(peers) => peers.get(target).copied().unwrap_or(u64::MAX),
        }
    }

    /// Runs the handshake over a new connection. `settings` is the target's key.
    pub async fn connect(
        &self,
        settings: u64,
        offer: Offer,
        stream: TcpStream,
    ) -> io::Result<Box<AnyTlsStream<TcpStream>>> {
        let name = self.names.get(&settings).ok_or(io::ErrorKind::NotFound)?;
        let [any, http1, http2] = &self.configs;
        let config = match offer {
            Offer::Any => any,
            Offer::Http1 => http1,
            Offer::Http2 => http2,
        };
        let connector = TlsConnector::from(Arc::clone(config));
        let stream: TlsStream<TcpStream> = connector.connect(name.clone(), stream).await?;
        Ok(Box::new(AnyTlsStream::Client(stream)))
    }
}

/// Two settings are equal if targets are spoken to in the same way; the set of targets does not matter.
impl PartialEq for UpstreamTls {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl Eq for UpstreamTls {}

/// 64 bits of a collision-resistant hash; never 0.
fn hash_of(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    let first = hash.as_bytes().first_chunk().copied().unwrap_or_default();
    u64::from_le_bytes(first).max(1)
}

/// The settings for a service of the operator's, which proves its name by a certificate that this host trusts.
pub fn client_config(protocol: &[u8]) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions(TlsVersion::V1_2))
        .map_err(|error| error.to_string())?;
    let mut config = builder.with_root_certificates(system_roots()?).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(config)
}

fn new_config(
    spec: &signalbox_config::UpstreamTls,
    certificate: Option<&Arc<CertifiedKey>>,
) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions(TlsVersion::V1_2))
        .map_err(|error| error.to_string())?;
    let builder = if spec.verify {
        let roots = match &spec.ca {
            Some(ca) => roots(ca),
            None => system_roots().map_err(|error| format!("{error}; give tls.ca"))?,
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|error| error.to_string())?;
        builder.with_webpki_verifier(verifier)
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider())))
    };
    Ok(match certificate {
        Some(certified) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(certified))))
        }
        None => builder.with_no_client_auth(),
    })
}

/// The authorities that this host trusts.
fn system_roots() -> Result<Arc<RootCertStore>, String> {
    host_authorities().ok_or_else(|| "the proxy's host has no certificate authorities".to_owned())
}

/// A verifier that accepts any certificate, but has the peer prove that it holds the key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for UpstreamTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamTls").field("names", &self.names).finish_non_exhaustive()
    }
}
