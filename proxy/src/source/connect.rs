//! The connection to a control plane, below HTTP/2: TCP, and TLS for `https://`. Connection errors are recorded here
//! in readable form, because the layers above only report that the request was cancelled.

use std::error::Error as StdError;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, InvalidMessage};
use signalbox_process::ErrorChain;
use signalbox_process::liveness::{Liveness, set_unacknowledged_limit};
use signalbox_process::stream::MaybeTls;
use signalbox_process::tls::Reloading;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower_service::Service;

/// Connects to a control plane.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    /// The TLS settings for `https://`.
    pub(super) tls: Option<Arc<Reloading<ClientConfig>>>,
    pub(super) progress: Progress,
}

/// The stage of one connection, and its error, shared by everything that works on it.
#[derive(Debug, Clone)]
pub(super) struct Progress(Arc<Mutex<(Stage, Option<String>)>>);

/// The stage that a connection is waiting to complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Tcp,
    Tls,
    Answer,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new((Stage::Tcp, None))))
    }

    /// The error of the connection itself, if it is known.
    pub(super) fn failure(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// A description of the pending stage, for errors.
    pub(super) fn waits_for(&self) -> &'static str {
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).0 {
            Stage::Tcp => "its address takes no connection",
            Stage::Tls => "it accepts connections, but does not answer the TLS handshake",
            Stage::Answer => "it accepts connections, but does not answer",
        }
    }

    fn enter(&self, stage: Stage) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = stage;
    }

    /// Records an error; the first one is kept.
    fn fail(&self, failure: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.get_or_insert(failure);
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { tls, progress } = self.clone();
        Box::pin(async move {
            match connect(&uri, tls, &progress).await {
                Ok(connection) => Ok(TokioIo::new(connection)),
                Err(error) => {
                    progress.fail(explain(&error));
                    Err(error)
                }
            }
        })
    }
}

async fn connect(
    uri: &Uri,
    tls: Option<Arc<Reloading<ClientConfig>>>,
    progress: &Progress,
) -> io::Result<Connection> {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    stream.set_nodelay(true)?;
    set_unacknowledged_limit(&stream, SILENCE);
    let stream = match tls {
        Some(tls) => {
            progress.enter(Stage::Tls);
            let name = ServerName::try_from(host)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            let handshake = TlsConnector::from(tls.current()).connect(name, stream).await;
            MaybeTls::tls(handshake.map_err(|error| io::Error::new(error.kind(), Handshake(error)))?)
        }
        None => MaybeTls::Clear(stream),
    };
    progress.enter(Stage::Answer);
    let stream = Liveness::new(stream, SILENCE);
    Ok(Connection { stream, progress: progress.clone(), heard: false })
}

/// An error of the TLS handshake.
#[derive(Debug, thiserror::Error)]
#[error("the TLS handshake failed")]
struct Handshake(#[source] io::Error);

/// Describes a connection error to the operator.
fn explain(error: &io::Error) -> String {
    let mut source: Option<&(dyn StdError + 'static)> = error.get_ref().map(|error| error as _);
    let mut in_handshake = false;
    while let Some(cause) = source {
        in_handshake |= cause.is::<Handshake>();
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return explain_tls(tls);
        }
        // An I/O error does not return the error that it wraps as its source, but only by this method.
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        source = inner.map(|inner| inner as _).or_else(|| cause.source());
    }
    let closed = matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    );
    if in_handshake && closed {
        return "it closed the connection in the TLS handshake; if that port speaks no TLS, use http://"
            .to_owned();
    }
    ErrorChain(error).to_string()
}

fn explain_tls(error: &rustls::Error) -> String {
    use rustls::Error;
    match error {
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "that port does not speak TLS; use http://, or give the control plane --xds-tls-cert".to_owned()
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate is not signed by an authority of --tls-ca".to_owned()
        }
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired".to_owned()
        }
        Error::InvalidCertificate(_) => format!("its certificate is not accepted: {error}"),
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "it wants a certificate of this proxy: give --tls-cert and --tls-key".to_owned()
        }
        Error::AlertReceived(
            alert @ (AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
            | AlertDescription::UnsupportedCertificate),
        ) => format!("it refuses this proxy's certificate (--tls-cert): {alert:?}"),
        _ => format!("TLS failed: {error}"),
    }
}

/// A connection to a control plane.
pub(super) struct Connection {
    stream: Liveness<MaybeTls>,
    progress: Progress,
    /// True once any bytes were read.
    heard: bool,
}

impl Connection {
    /// Checks that the first bytes are HTTP/2 in cleartext.
    fn check_first(&mut self, first: &[u8]) -> io::Result<()> {
        if std::mem::replace(&mut self.heard, true) || self.stream.get_ref().is_tls() {
            return Ok(());
        }
        // As an HTTP/2 frame, these bytes would announce a length of more than a mebibyte.
        let reason = match first {
            [0x15 | 0x16, 3, ..] => "that port speaks TLS: use https://",
            [b'H', b'T', b'T', b'P', ..] => {
                "that port speaks HTTP/1.1; is it the admin address instead of the xDS address?"
            }
            _ => return Ok(()),
        };
        Err(io::Error::new(io::ErrorKind::InvalidData, reason))
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut this.stream).poll_read(cx, buf));
        let result = match read {
            Ok(()) => {
                let filled = buf.filled().get(before..).unwrap_or_default();
                if filled.is_empty() { Ok(()) } else { this.check_first(filled) }
            }
            Err(error) => Err(error),
        };
        Poll::Ready(result.inspect_err(|error| this.progress.fail(explain(error))))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// After this time without a sign of life, a control plane is asked for one.
pub(super) const PING_AFTER: Duration = Duration::from_secs(5);

/// A control plane that sent no byte for this time is left. It is shorter than the time that a control plane gives to a proxy:
/// when a proxy is too busy to read, that is not the control plane's silence.
const SILENCE: Duration = Duration::from_secs(15);
