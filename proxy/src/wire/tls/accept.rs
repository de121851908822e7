//! TLS with clients: the choice of the served certificate, and the client certificate that is required.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::server::{
    Acceptor, ClientHello, ProducesTickets, ResolvesServerCert, ServerSessionMemoryCache,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{PeerMisbehaved, ServerConfig, SignatureScheme, crypto::ring::Ticketer};
use signalbox_config::{ClientAuth, Name};
use smallvec::SmallVec;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::{StartHandshake, TlsStream};

use super::server_name::{self, MAX_HELLO, RewrittenHello};
use super::{HTTP1, HTTP2, ServedCertificate, roots, versions};
use crate::core::map::Map;
use crate::telemetry::HandshakeFailure;

/// The certificates of a revision. A clone is cheap.
#[derive(Clone, Default)]
pub struct Certificates {
    by_name: Map<Name, Arc<ServedCertificate>>,
    /// By server name: `example.com`, `*.example.com`. There is one certificate per key type, in order of preference.
    by_sni: Map<Box<str>, SameName>,
}

/// The certificates of one server name, at least one.
type SameName = SmallVec<[Arc<ServedCertificate>; 1]>;

/// A listener's TLS settings. They are replaced when a certificate changes; the state for session resumption is kept.
#[derive(Clone)]
pub struct ListenerTls {
    spec: signalbox_config::ListenerTls,
    config: Arc<ServerConfig>,
    certificates: Arc<Chooser>,
}

/// Chooses a certificate by the client's server name (SNI).
struct Chooser {
    certificates: Certificates,
    /// For clients without a server name, or with one that no certificate has: the listener's own certificate,
    /// followed by others of the same names for clients that cannot verify the former. Empty: there is none.
    default: SameName,
}

/// The number of cached sessions, for TLS 1.2 clients without tickets.
const SESSIONS: usize = 10_000;

/// The initial buffer size in bytes, which fits most ClientHello messages.
const HELLO_BUFFER: usize = 2 << 10;

/// A fatal alert, `unrecognized_name`: RFC 8446, section 6.2.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

impl Certificates {
    pub fn insert(&mut self, shown: &Arc<ServedCertificate>) {
        self.by_name.insert(shown.name.clone(), Arc::clone(shown));
        for sni in &shown.snis {
            let mut same = self.by_sni.get(sni).cloned().unwrap_or_default();
            // A fleet has no two certificates of one type for a name.
            same.retain(|other| other.key_type != shown.key_type);
            same.push(Arc::clone(shown));
            same.sort_by_key(|it| it.key_type);
            self.by_sni.insert(sni.clone(), same);
        }
    }

    pub fn remove(&mut self, name: &Name) {
        let Some(removed) = self.by_name.remove(name) else { return };
        for sni in &removed.snis {
            let Some(mut same) = self.by_sni.get(sni).cloned() else { continue };
            // Another certificate may have got the name in the same revision.
            same.retain(|known| !Arc::ptr_eq(known, &removed));
            match same.is_empty() {
                true => self.by_sni.remove(sni),
                false => self.by_sni.insert(sni.clone(), same),
            };
        }
    }

    pub fn named(&self, name: &Name) -> Option<&Arc<ServedCertificate>> {
        self.by_name.get(name)
    }

    /// The certificates for a server name: those of the name itself, followed by those of its wildcard.
    fn find(&self, sni: &str) -> impl Iterator<Item = &Arc<ServedCertificate>> {
        let wildcard = sni.split_once('.').and_then(|(_, parent)| self.by_sni.get(&*format!("*.{parent}")));
        [self.by_sni.get(sni), wildcard].into_iter().flatten().flatten()
    }

    /// The certificate of this name, followed by those that share its server names.
    fn with_others(&self, name: &Name) -> SameName {
        let Some(own) = self.named(name) else { return SameName::new() };
        let mut all: SameName = std::iter::once(Arc::clone(own)).collect();
        for other in own.snis.iter().filter_map(|sni| self.by_sni.get(sni)).flatten() {
            if all.iter().all(|known| known.key_type != other.key_type) {
                all.push(Arc::clone(other));
            }
        }
        all
    }
}

impl ListenerTls {
    /// Creates the TLS settings of a listener whose previous settings are `before`. The error is readable by the
    /// operator.
    pub fn new(
        spec: &signalbox_config::ListenerTls,
        certificates: &Certificates,
        before: Option<&Self>,
    ) -> Result<Self, String> {
        let default = spec.default_certificate.as_ref().map(|name| certificates.with_others(name));
        let default = default.unwrap_or_default();
        let chooser = Arc::new(Chooser { certificates: certificates.clone(), default });
        let known = before.filter(|before| before.asks(spec));
        let config = match known {
            Some(before) => {
                let mut config = ServerConfig::clone(&before.config);
                config.cert_resolver = Arc::clone(&chooser) as _;
                config
            }
            // A session that began without a client certificate must not be resumed where one is required, so tickets
            // are valid for these settings alone.
            None => new_config(spec, Arc::clone(&chooser))?,
        };
        Ok(Self { spec: spec.clone(), config: Arc::new(config), certificates: chooser })
    }

    /// True if a client that completed a handshake under `other` meets all requirements of this one.
    pub fn asks_the_same(&self, other: &Self) -> bool {
        self.asks(&other.spec)
    }

    /// True if `spec` has the same requirements for clients.
    fn asks(&self, spec: &signalbox_config::ListenerTls) -> bool {
        (self.spec.min_version, &self.spec.client_auth) == (spec.min_version, &spec.client_auth)
    }

    /// True if it was made for these settings.
    pub fn is_of(&self, spec: &signalbox_config::ListenerTls) -> bool {
        self.spec == *spec
    }
}

fn new_config(spec: &signalbox_config::ListenerTls, chooser: Arc<Chooser>) -> Result<ServerConfig, String> {
    let builder = ServerConfig::builder_with_provider(server_name::provider())
        .with_protocol_versions(versions(spec.min_version))
        .map_err(|error| error.to_string())?;
    let verifier = |ca| WebPkiClientVerifier::builder_with_provider(roots(ca), server_name::provider());
    let verifier = match &spec.client_auth {
        ClientAuth::None => None,
        ClientAuth::Optional(ca) => Some(verifier(ca).allow_unauthenticated().build()),
        ClientAuth::Required(ca) => Some(verifier(ca).build()),
    };
    let builder = match verifier.transpose().map_err(|error| error.to_string())? {
        Some(verifier) => builder.with_client_cert_verifier(server_name::verifier(verifier)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(chooser);
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    let ticketer: Arc<dyn ProducesTickets> = Ticketer::new().map_err(|error| error.to_string())?;
    config.ticketer = ticketer;
    Ok(config)
}

/// A connection whose ClientHello was read.
pub struct ReceivedHello {
    begun: StartHandshake<TcpStream>,
    /// Set if the port was removed from its server name.
    renamed: Option<RewrittenHello>,
}

/// Reads the ClientHello of a new connection. `begun` are the bytes that were read before.
pub async fn receive_hello(mut stream: TcpStream, begun: &[u8]) -> Result<ReceivedHello, HandshakeFailure> {
    let mut acceptor = Acceptor::default();
    let mut sent = Vec::with_capacity(HELLO_BUFFER.max(begun.len()));
    sent.extend_from_slice(begun);
    // The number of bytes that the acceptor has consumed.
    let mut taken = 0;
    loop {
        let mut more = sent.get(taken..).unwrap_or_default();
        if more.is_empty() {
            if sent.len() >= MAX_HELLO {
                return Err(HandshakeFailure::Malformed);
            }
            match stream.read_buf(&mut sent).await {
                Ok(0) | Err(_) => return Err(HandshakeFailure::Closed),
                Ok(_) => continue,
            }
        }
        taken += acceptor.read_tls(&mut more).map_err(|error| reason(&error))?;
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                return Ok(ReceivedHello {
                    begun: StartHandshake::from_parts(accepted, stream),
                    renamed: None,
                });
            }
            Err((error, mut alert)) => {
                if error == rustls::Error::PeerMisbehaved(PeerMisbehaved::ServerNameMustContainOneHostName)
                    && let Some(renamed) = RewrittenHello::of(&sent)
                    && let Some(accepted) = renamed.accepted()
                {
                    let begun = StartHandshake::from_parts(accepted, stream);
                    return Ok(ReceivedHello { begun, renamed: Some(renamed) });
                }
                let mut bytes = Vec::new();
                let _ = alert.write_all(&mut bytes);
                // The alert reaches the client if it still reads.
                let _ = stream.write_all(&bytes).await;
                return Err(reason_of(&error));
            }
        }
    }
}

/// Runs the handshake with a client.
pub async fn accept(
    tls: &ListenerTls,
    ReceivedHello { begun, renamed }: ReceivedHello,
) -> Result<Box<TlsStream<TcpStream>>, HandshakeFailure> {
    let hello = begun.client_hello();
    if tls.certificates.choose(hello.server_name(), hello.signature_schemes()).is_none() {
        let mut stream = begun.io;
        // The alert reaches the client if it still reads.
        let _ = stream.write_all(&UNRECOGNIZED_NAME).await;
        return Err(HandshakeFailure::NoCertificate);
    }
    let config = Arc::clone(&tls.config);
    let stream = match renamed {
        // In a box, for few need it.
        Some(renamed) => Box::pin(renamed.shake_hands(begun.accepted, config, begun.io)).await,
        None => begun.into_stream(config).await,
    };
    let stream = stream.map_err(|error| reason(&error))?;
    Ok(Box::new(TlsStream::Server(stream)))
}

fn reason(error: &io::Error) -> HandshakeFailure {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    cause.map_or(HandshakeFailure::Closed, reason_of)
}

fn reason_of(error: &rustls::Error) -> HandshakeFailure {
    use rustls::Error;
    match error {
        Error::NoCertificatesPresented | Error::InvalidCertificate(_) => HandshakeFailure::ClientCertificate,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => HandshakeFailure::Incompatible,
        Error::AlertReceived(_) => HandshakeFailure::RefusedByClient,
        _ => HandshakeFailure::Malformed,
    }
}

impl Chooser {
    /// The first certificate for the name that the client can verify, or else the first. If the client can verify
    /// none, the handshake fails with an alert. `None`: there is none for the name.
    fn choose(&self, sni: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Arc<ServedCertificate>> {
        let named = || sni.into_iter().flat_map(|sni| self.certificates.find(sni));
        let first = named().next();
        let default = self.default.iter().filter(|_| first.is_none());
        let all = || named().chain(default.clone());
        all().find(|shown| shown.is_for(schemes)).or_else(|| all().next())
    }
}

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name(), hello.signature_schemes()).map(|shown| Arc::clone(shown.now()))
    }
}

impl fmt::Debug for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chooser").field("names", &self.certificates.by_sni.len()).finish()
    }
}

impl fmt::Debug for ListenerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ListenerTls").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

impl PartialEq for ListenerTls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config)
    }
}

impl Eq for ListenerTls {}
