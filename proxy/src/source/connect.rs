//! The connection to a control plane, below HTTP/2: TCP, and TLS for `https://`. What is wrong with it is kept here in
//! plain words, for the layers above only say that the request was cancelled.

use std::error::Error as StdError;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, InvalidMessage};
use signalbox_process::tls::{Reloading, chain};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower_service::Service;

/// Connects to a control plane.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    /// For `https://`.
    pub(super) tls: Option<Arc<Reloading<ClientConfig>>>,
    pub(super) progress: Progress,
}

/// How far one connection has come, and what was wrong with it. Shared by all who work on it.
#[derive(Debug, Clone)]
pub(super) struct Progress(Arc<Mutex<(Stage, Option<String>)>>);

/// What a connection waits for.
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

    /// What was wrong with the connection itself, if that is known.
    pub(super) fn failure(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// What is waited for, in words.
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

    /// Notes what is wrong; the first counts.
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
    let io = match tls {
        Some(tls) => {
            progress.enter(Stage::Tls);
            let name = ServerName::try_from(host)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            let handshake = TlsConnector::from(tls.current()).connect(name, stream).await;
            Io::Tls(Box::new(handshake.map_err(|error| io::Error::new(error.kind(), Handshake(error)))?))
        }
        None => Io::Plain(stream),
    };
    progress.enter(Stage::Answer);
    Ok(Connection { io, progress: progress.clone(), heard: false })
}

/// An error of the TLS handshake.
#[derive(Debug, thiserror::Error)]
#[error("the TLS handshake failed")]
struct Handshake(#[source] io::Error);

/// What an error of a connection means, for people.
fn explain(error: &io::Error) -> String {
    let mut source: Option<&(dyn StdError + 'static)> = error.get_ref().map(|error| error as _);
    let mut in_handshake = false;
    while let Some(cause) = source {
        in_handshake |= cause.is::<Handshake>();
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return explain_tls(tls);
        }
        // An I/O error shows what it wraps only by this way, not as its source.
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
    chain(error)
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
    io: Io,
    progress: Progress,
    /// Whether anything was read.
    heard: bool,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Connection {
    /// Looks at the first bytes of a server that should speak HTTP/2 in the clear.
    fn check_first(&mut self, first: &[u8]) -> io::Result<()> {
        if std::mem::replace(&mut self.heard, true) || matches!(self.io, Io::Tls(_)) {
            return Ok(());
        }
        // An HTTP/2 frame would begin with a length of more than a mebibyte.
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
        let read = ready!(match &mut this.io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io.as_mut()).poll_read(cx, buf),
        });
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
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Io::Tls(io) => Pin::new(io.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io.as_mut()).poll_shutdown(cx),
        }
    }
}
