//! The PEM files that a program's own TLS uses, re-read when they change.
//!
//! A certificate and its key are two files, so whoever renews them writes one after the other. What is read is put in use
//! only as a whole: files that do not fit together leave the configuration that was built last, and are warned about once
//! they have stayed so.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::time::{Instant, MissedTickBehavior};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::error_chain::ErrorChain;

/// The authorities that this host trusts, read on first use. `None`: it has none.
pub fn host_authorities() -> Option<Arc<RootCertStore>> {
    static FOUND: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "cannot read all of the host's certificate authorities");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        Arc::new(roots)
    });
    (!FOUND.is_empty()).then(|| Arc::clone(&FOUND))
}

/// A server's certificate, and who may have signed those of its clients.
#[derive(Debug, Clone)]
pub struct ServerFiles {
    /// The use of the certificate, as metrics and logs name it: `admin`.
    pub name: &'static str,
    /// The server's certificate chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority of clients' certificates, which they must then present. Its name in metrics, and the file.
    pub client_ca: Option<(&'static str, PathBuf)>,
    /// The protocol that ALPN agrees on.
    pub alpn: &'static [u8],
}

/// Whom a client trusts, and its own certificate.
#[derive(Debug, Clone)]
pub struct ClientFiles {
    /// The authority of the servers' certificates. Its name in metrics, and the file.
    pub ca: (&'static str, PathBuf),
    /// The client's own certificate chain and key. Its name in metrics, and the files.
    pub identity: Option<(&'static str, PathBuf, PathBuf)>,
    /// The protocol that ALPN agrees on.
    pub alpn: &'static [u8],
}

/// Why PEM files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// A file has not what it should have.
    #[error("{path}: {reason}")]
    Content {
        /// Which.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
}

/// When a certificate expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expiry {
    /// Which, as [`ServerFiles`] and [`ClientFiles`] name it.
    pub name: &'static str,
    /// Seconds since 1970. Of a chain the certificate that expires first, of several authorities the one that expires last.
    pub not_after: i64,
}

/// A TLS configuration built from files, and built anew when they change.
pub struct Reloading<C> {
    build: Build<C>,
    files: Vec<PathBuf>,
    current: ArcSwap<C>,
    state: Mutex<State>,
}

/// Builds a configuration from the files' contents.
type Build<C> = Box<dyn Fn(&[Vec<u8>]) -> Result<Built<C>, TlsFileError> + Send + Sync>;

struct State {
    /// The contents of the files when they were read last.
    contents: Vec<Vec<u8>>,
    expiries: Vec<Expiry>,
    /// Why the files cannot be used now, and whether that was logged.
    failure: Option<(String, bool)>,
}

struct Built<C> {
    config: C,
    expiries: Vec<Expiry>,
}

impl Reloading<ServerConfig> {
    /// Reads a server's files.
    pub fn server(files: ServerFiles) -> Result<Arc<Self>, TlsFileError> {
        let mut paths = vec![files.certificate.clone(), files.key.clone()];
        paths.extend(files.client_ca.iter().map(|(_, path)| path.clone()));
        Self::new(paths, move |contents| build_server(&files, contents))
    }
}

impl Reloading<ClientConfig> {
    /// Reads a client's files.
    pub fn client(files: ClientFiles) -> Result<Arc<Self>, TlsFileError> {
        let mut paths = vec![files.ca.1.clone()];
        paths.extend(
            files.identity.iter().flat_map(|(_, certificate, key)| [certificate.clone(), key.clone()]),
        );
        Self::new(paths, move |contents| build_client(&files, contents))
    }
}

impl<C: Send + Sync + 'static> Reloading<C> {
    fn new(
        files: Vec<PathBuf>,
        build: impl Fn(&[Vec<u8>]) -> Result<Built<C>, TlsFileError> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, TlsFileError> {
        let contents = read_all(&files)?;
        let Built { config, expiries } = build(&contents)?;
        let state = State { contents, expiries, failure: None };
        let current = ArcSwap::from_pointee(config);
        Ok(Arc::new(Self { build: Box::new(build), files, current, state: Mutex::new(state) }))
    }

    /// The configuration in use, for the next handshake.
    pub fn current(&self) -> Arc<C> {
        self.current.load_full()
    }

    /// When the certificates in use expire.
    pub fn expiries(&self) -> Vec<Expiry> {
        self.state().expiries.clone()
    }

    /// Reads the files now and then, and warns of certificates that expire soon. `seen` is told the expiries, now and when the
    /// files have changed. Ends when it is dropped.
    pub async fn follow(self: Arc<Self>, seen: impl Fn(&[Expiry])) {
        seen(&self.expiries());
        let mut interval = tokio::time::interval(POLL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut warn_at = Instant::now();
        loop {
            interval.tick().await;
            let this = Arc::clone(&self);
            // Files may lie on a disk that is slow or away. A panic leaves what is in use.
            let reloaded = tokio::task::spawn_blocking(move || this.reload()).await.unwrap_or(false);
            if reloaded {
                seen(&self.expiries());
            }
            if reloaded || Instant::now() >= warn_at {
                warn_at = Instant::now() + WARN_AGAIN;
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                for expiry in self.expiries() {
                    warn_of_expiry(expiry, i64::try_from(now).unwrap_or(i64::MAX));
                }
            }
        }
    }

    /// Reads the files, and puts them in use if they have changed and fit together. Whether they were put in use.
    fn reload(&self) -> bool {
        let read = read_all(&self.files);
        let mut state = self.state();
        let same = read.as_ref().is_ok_and(|contents| *contents == state.contents);
        if same && state.failure.is_none() {
            return false;
        }
        if let Ok(contents) = &read
            && !same
        {
            state.contents = contents.clone();
        }
        let files =
            || self.files.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        match read.and_then(|contents| (self.build)(&contents)) {
            Ok(Built { config, expiries }) => {
                self.current.store(Arc::new(config));
                state.expiries = expiries;
                state.failure = None;
                tracing::info!(files = files(), "the certificate files have changed and are in use");
                true
            }
            Err(error) => {
                let reason = ErrorChain(&error).to_string();
                // The first failure is not logged: whoever renews the files may be writing the second one.
                let repeated = state.failure.as_ref().is_some_and(|(before, _)| *before == reason);
                let logged = state.failure.as_ref().is_some_and(|(_, logged)| repeated && *logged);
                if repeated && !logged {
                    tracing::warn!(
                        files = files(),
                        reason,
                        "the certificate files cannot be used; those read before stay in use"
                    );
                }
                state.failure = Some((reason, repeated));
                false
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> std::fmt::Debug for Reloading<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloading").field("files", &self.files).finish_non_exhaustive()
    }
}

fn build_server(files: &ServerFiles, contents: &[Vec<u8>]) -> Result<Built<ServerConfig>, TlsFileError> {
    let content = |index: usize| contents.get(index).map_or(&[][..], Vec::as_slice);
    let chain = certificates(&files.certificate, content(0))?;
    let key = private_key(&files.key, content(1))?;
    let mut expiries =
        vec![Expiry { name: files.name, not_after: first_expiry(&files.certificate, &chain)? }];
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&files.certificate, &error))?;
    let builder = match &files.client_ca {
        Some((name, path)) => {
            let authorities = certificates(path, content(2))?;
            expiries.push(Expiry { name, not_after: last_expiry(path, &authorities)? });
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots(path, authorities)?), provider());
            builder.with_client_cert_verifier(verifier.build().map_err(|error| unusable(path, &error))?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config =
        builder.with_single_cert(chain, key).map_err(|error| unusable(&files.certificate, &error))?;
    config.alpn_protocols = vec![files.alpn.to_vec()];
    Ok(Built { config, expiries })
}

fn build_client(files: &ClientFiles, contents: &[Vec<u8>]) -> Result<Built<ClientConfig>, TlsFileError> {
    let content = |index: usize| contents.get(index).map_or(&[][..], Vec::as_slice);
    let (name, path) = &files.ca;
    let authorities = certificates(path, content(0))?;
    let mut expiries = vec![Expiry { name, not_after: last_expiry(path, &authorities)? }];
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(path, &error))?
        .with_root_certificates(roots(path, authorities)?);
    let mut config = match &files.identity {
        Some((name, certificate, key)) => {
            let chain = certificates(certificate, content(1))?;
            expiries.push(Expiry { name, not_after: first_expiry(certificate, &chain)? });
            let key = private_key(key, content(2))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| unusable(certificate, &error))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![files.alpn.to_vec()];
    Ok(Built { config, expiries })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn read_all(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, TlsFileError> {
    files
        .iter()
        .map(|path| read(path).map_err(|error| TlsFileError::Read { path: path.clone(), error }))
        .collect()
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut content = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE).read_to_end(&mut content)?;
    Ok(content)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let content = |reason| TlsFileError::Content { path: path.to_owned(), reason };
    let certificates =
        read.map_err(|error| content(format!("it has no certificates that can be read: {error}")))?;
    if certificates.is_empty() {
        return Err(content("it has no PEM certificate".to_owned()));
    }
    Ok(certificates)
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| TlsFileError::Content {
        path: path.to_owned(),
        reason: format!("it has no private key that can be read: {error}"),
    })
}

fn roots(path: &Path, authorities: Vec<CertificateDer<'static>>) -> Result<RootCertStore, TlsFileError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority).map_err(|error| unusable(path, &error))?;
    }
    Ok(roots)
}

fn unusable(path: &Path, error: &dyn std::error::Error) -> TlsFileError {
    TlsFileError::Content { path: path.to_owned(), reason: ErrorChain(error).to_string() }
}

fn first_expiry(path: &Path, chain: &[CertificateDer<'_>]) -> Result<i64, TlsFileError> {
    Ok(expiries(path, chain)?.into_iter().min().unwrap_or(i64::MAX))
}

fn last_expiry(path: &Path, authorities: &[CertificateDer<'_>]) -> Result<i64, TlsFileError> {
    Ok(expiries(path, authorities)?.into_iter().max().unwrap_or(i64::MIN))
}

fn expiries(path: &Path, certificates: &[CertificateDer<'_>]) -> Result<Vec<i64>, TlsFileError> {
    let not_after = |certificate: &CertificateDer<'_>| match X509Certificate::from_der(certificate) {
        Ok((_, certificate)) => Ok(certificate.validity().not_after.timestamp()),
        Err(error) => Err(unusable(path, &error)),
    };
    certificates.iter().map(not_after).collect()
}

fn warn_of_expiry(Expiry { name, not_after }: Expiry, now: i64) {
    let left = not_after.saturating_sub(now);
    if left <= 0 {
        tracing::error!(certificate = name, "the certificate has expired");
    } else if left < WARN_BELOW {
        let days = left / (24 * 60 * 60);
        tracing::warn!(certificate = name, days_left = days, "the certificate expires in less than 14 days");
    }
}

/// How often files are read.
const POLL: Duration = Duration::from_secs(2);

/// How often an expiry that is near is warned about.
const WARN_AGAIN: Duration = Duration::from_secs(24 * 60 * 60);

/// From when on an expiry is warned about, seconds.
const WARN_BELOW: i64 = 14 * 24 * 60 * 60;

/// Bytes that are read of a file.
const MAX_FILE: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    struct Pair {
        certificate: String,
        key: String,
    }

    fn pair(name: &str, year: i32) -> Pair {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        Pair { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }

    struct Files {
        dir: tempfile::TempDir,
    }

    impl Files {
        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.dir.path().join(name), text).unwrap();
        }

        fn load(&self) -> Arc<Reloading<ServerConfig>> {
            let path = |name: &str| self.dir.path().join(name);
            let client_ca = Some(("clients", path("ca")));
            let (certificate, key) = (path("cert"), path("key"));
            Reloading::server(ServerFiles { name: "own", certificate, key, client_ca, alpn: b"h2" }).unwrap()
        }
    }

    fn files(own: &Pair) -> Files {
        let files = Files { dir: tempfile::tempdir().unwrap() };
        files.write("cert", &own.certificate);
        files.write("key", &own.key);
        files.write("ca", &pair("ca", 2050).certificate);
        files
    }

    #[test]
    fn a_renewed_pair_is_put_in_use_as_a_whole_and_half_of_it_is_not() {
        let (old, new) = (pair("a", 2040), pair("a", 2045));
        let files = files(&old);
        let loaded = files.load();
        let before = loaded.current();
        assert!(!loaded.reload(), "nothing has changed");
        files.write("cert", &new.certificate);
        for _ in 0..3 {
            assert!(!loaded.reload(), "the key is still that of the other certificate");
        }
        assert!(Arc::ptr_eq(&loaded.current(), &before));
        files.write("key", "");
        assert!(!loaded.reload());
        files.write("key", &new.key);
        assert!(loaded.reload());
        assert!(!Arc::ptr_eq(&loaded.current(), &before));
        assert!(!loaded.reload());
    }

    #[test]
    fn files_that_are_gone_for_a_while_leave_what_is_in_use() {
        let own = pair("a", 2040);
        let files = files(&own);
        let loaded = files.load();
        let before = loaded.current();
        std::fs::remove_file(files.dir.path().join("ca")).unwrap();
        assert!(!loaded.reload() && !loaded.reload());
        assert!(Arc::ptr_eq(&loaded.current(), &before));
        files.write("ca", &own.certificate);
        assert!(loaded.reload());
    }

    #[test]
    fn the_expiry_of_a_chain_is_its_first_and_that_of_authorities_their_last() {
        let (own, other) = (pair("a", 2040), pair("b", 2035));
        let files = files(&own);
        files.write("cert", &format!("{}{}", own.certificate, other.certificate));
        files.write("ca", &format!("{}{}", own.certificate, other.certificate));
        let at = |year| rcgen::date_time_ymd(year, 1, 1).unix_timestamp();
        let expected =
            [Expiry { name: "own", not_after: at(2035) }, Expiry { name: "clients", not_after: at(2040) }];
        assert_eq!(files.load().expiries(), expected);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let own = pair("a", 2040);
        for (name, text) in [("cert", ""), ("cert", "nonsense"), ("key", "nonsense"), ("ca", "")] {
            let files = files(&own);
            files.write(name, text);
            let path = |name: &str| files.dir.path().join(name);
            let client_ca = Some(("clients", path("ca")));
            let (certificate, key) = (path("cert"), path("key"));
            let loaded =
                Reloading::server(ServerFiles { name: "own", certificate, key, client_ca, alpn: b"h2" });
            let error = loaded.unwrap_err().to_string();
            assert!(error.contains(path(name).to_str().unwrap()), "{name}: {error}");
        }
    }
}
