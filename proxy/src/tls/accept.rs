//! The server's side: which certificate a client is shown, and what it has to show.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::server::{
    Accepted, Acceptor, ClientHello, ProducesTickets, ResolvesServerCert, ServerSessionMemoryCache,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{PeerMisbehaved, ServerConfig, SignatureScheme, crypto::ring::Ticketer};
use signalbox_config::{ClientAuth, Name};
use smallvec::SmallVec;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::{StartHandshake, TlsStream};

use super::server_name::{self, Renamed};
use super::{HTTP1, HTTP2, Shown, roots, versions};
use crate::active::Map;

/// The certificates of a revision. A clone is cheap.
#[derive(Clone, Default)]
pub struct Certificates {
    by_name: Map<Name, Arc<Shown>>,
    /// By server name: `example.com`, `*.example.com`. One of each type of key, in their order.
    by_sni: Map<Box<str>, SameName>,
}

/// The certificates of one server name, at least one.
type SameName = SmallVec<[Arc<Shown>; 1]>;

/// How a listener speaks TLS. Replaced when a certificate changes; what clients resume sessions with goes on.
#[derive(Clone)]
pub struct ListenerTls {
    spec: signalbox_config::ListenerTls,
    config: Arc<ServerConfig>,
    certificates: Arc<Chooser>,
}

/// Why there was no handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum HandshakeFailure {
    /// The client closed the connection.
    Closed,
    /// It did not come to its end in time.
    Timeout,
    /// There are too many at once.
    Overload,
    /// There is no certificate for the name that the client asked for.
    NoCertificate,
    /// The client has no certificate, or none that is trusted.
    ClientCertificate,
    /// Client and listener have no version or no cipher in common.
    Incompatible,
    /// The client does not want to go on: it does not trust the certificate, for example.
    RefusedByClient,
    /// What the client sent is not TLS.
    Malformed,
}

/// Chooses a certificate by the name that a client asks for.
struct Chooser {
    certificates: Certificates,
    /// For clients that ask for no name, or for one that no certificate has: the listener's own, and behind it others of the same
    /// names, for those that cannot check the former. Empty: there is none.
    default: SameName,
}

/// Sessions of TLS 1.2 clients that take no tickets.
const SESSIONS: usize = 10_000;

/// Bytes that most clients' first message has room in.
const HELLO: usize = 2 << 10;

/// Bytes after which a client must have said how it wants to shake hands: the most that a handshake message may have, and
/// its records.
const MAX_HELLO: usize = 80 << 10;

/// A fatal alert, `unrecognized_name`: RFC 8446, section 6.2.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

impl Certificates {
    pub fn insert(&mut self, name: &Name, snis: &[Box<str>], shown: &Arc<Shown>) {
        self.by_name.insert(name.clone(), Arc::clone(shown));
        for sni in snis {
            let mut same = self.by_sni.get(sni).cloned().unwrap_or_default();
            // No fleet has two of one type.
            same.retain(|other| other.key_type != shown.key_type);
            same.push(Arc::clone(shown));
            same.sort_by_key(|it| it.key_type);
            self.by_sni.insert(sni.clone(), same);
        }
    }

    pub fn remove(&mut self, name: &Name, snis: &[Box<str>]) {
        let Some(removed) = self.by_name.remove(name) else { return };
        for sni in snis {
            let Some(mut same) = self.by_sni.get(sni).cloned() else { continue };
            // Another may have got the name in the same revision.
            same.retain(|known| !Arc::ptr_eq(known, &removed));
            match same.is_empty() {
                true => self.by_sni.remove(sni),
                false => self.by_sni.insert(sni.clone(), same),
            };
        }
    }

    pub fn named(&self, name: &Name) -> Option<&Arc<Shown>> {
        self.by_name.get(name)
    }

    /// The certificates for a server name: those of the name itself, and behind them those of its wildcard.
    fn find(&self, sni: &str) -> impl Iterator<Item = &Arc<Shown>> {
        let wildcard = sni.split_once('.').and_then(|(_, parent)| self.by_sni.get(&*format!("*.{parent}")));
        [self.by_sni.get(sni), wildcard].into_iter().flatten().flatten()
    }

    /// The certificate of this name, and behind it those that share its server names.
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
    /// For a listener of these settings that was `before`. The error is for people.
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
            // A session that began without a client's certificate must not go on where one is required, so tickets are
            // good for these settings alone.
            None => new_config(spec, Arc::clone(&chooser))?,
        };
        Ok(Self { spec: spec.clone(), config: Arc::new(config), certificates: chooser })
    }

    /// Whether a client that shook hands as `other` asks has done all that this asks.
    pub fn asks_the_same(&self, other: &Self) -> bool {
        self.asks(&other.spec)
    }

    /// Whether `spec` asks of clients what this does.
    fn asks(&self, spec: &signalbox_config::ListenerTls) -> bool {
        (self.spec.min_version, &self.spec.client_auth) == (spec.min_version, &spec.client_auth)
    }

    /// Whether it was made for these settings.
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
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(chooser);
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    let ticketer: Arc<dyn ProducesTickets> = Ticketer::new().map_err(|error| error.to_string())?;
    config.ticketer = ticketer;
    Ok(config)
}

/// A client that has said how it wants to shake hands.
pub struct Greeted {
    begun: StartHandshake<TcpStream>,
    /// The port of its server name was taken out.
    renamed: Option<Renamed>,
}

/// Waits for the first words of a client that has just connected. `begun` was read of it.
pub async fn greeted(mut stream: TcpStream, begun: &[u8]) -> Result<Greeted, HandshakeFailure> {
    let mut acceptor = Acceptor::default();
    let mut sent = Vec::with_capacity(HELLO.max(begun.len()));
    sent.extend_from_slice(begun);
    // How much of it the acceptor has.
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
                return Ok(Greeted { begun: StartHandshake::from_parts(accepted, stream), renamed: None });
            }
            Err((error, mut alert)) => {
                if error == rustls::Error::PeerMisbehaved(PeerMisbehaved::ServerNameMustContainOneHostName)
                    && let Some(renamed) = Renamed::of(&sent)
                    && let Some(accepted) = accept_renamed(&renamed)
                {
                    let begun = StartHandshake::from_parts(accepted, stream);
                    return Ok(Greeted { begun, renamed: Some(renamed) });
                }
                let mut bytes = Vec::new();
                let _ = alert.write_all(&mut bytes);
                // The client is told why, if it still listens.
                let _ = stream.write_all(&bytes).await;
                return Err(reason_of(&error));
            }
        }
    }
}

fn accept_renamed(renamed: &Renamed) -> Option<Accepted> {
    let mut acceptor = Acceptor::default();
    let mut bytes = renamed.bytes.as_slice();
    while !bytes.is_empty() {
        acceptor.read_tls(&mut bytes).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            return Some(accepted);
        }
    }
    None
}

/// Shakes hands with a client.
pub async fn accept(
    tls: &ListenerTls,
    Greeted { begun, renamed }: Greeted,
) -> Result<Box<TlsStream<TcpStream>>, HandshakeFailure> {
    let hello = begun.client_hello();
    if tls.certificates.choose(hello.server_name(), hello.signature_schemes()).is_none() {
        let mut stream = begun.io;
        // The client is told why, if it still listens.
        let _ = stream.write_all(&UNRECOGNIZED_NAME).await;
        return Err(HandshakeFailure::NoCertificate);
    }
    let config = Arc::clone(&tls.config);
    let handshake = match renamed {
        Some(renamed) => renamed.hashing_the_original(|| begun.into_stream(config)),
        None => begun.into_stream(config),
    };
    let stream = handshake.await.map_err(|error| reason(&error))?;
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

impl HandshakeFailure {
    pub const ALL: [Self; 8] = [
        Self::Closed,
        Self::Timeout,
        Self::Overload,
        Self::NoCertificate,
        Self::ClientCertificate,
        Self::Incompatible,
        Self::RefusedByClient,
        Self::Malformed,
    ];

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Overload => "overload",
            Self::NoCertificate => "no_certificate",
            Self::ClientCertificate => "client_certificate",
            Self::Incompatible => "incompatible",
            Self::RefusedByClient => "refused_by_client",
            Self::Malformed => "malformed",
        }
    }
}

impl Chooser {
    /// The first certificate for the name that a client can check, or else the first. One that can check none is told so by the
    /// handshake. `None`: there is none for the name.
    fn choose(&self, sni: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Arc<Shown>> {
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
