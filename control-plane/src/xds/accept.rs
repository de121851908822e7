//! The proxies' connections: accepted, through their TLS handshake, and handed to the gRPC server. One that cannot be
//! served is logged and counted by its reason.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use signalbox_process::log::Throttle;
use signalbox_process::tls::Reloading;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{Error as TlsError, InvalidMessage, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::refusal::{Handshake, Refusal};
use super::stream::Shared;

/// Accepts connections until `shutdown`, and hands over those that are ready to speak HTTP/2.
pub(super) async fn run(
    listener: TcpListener,
    tls: Option<Arc<Reloading<ServerConfig>>>,
    shared: Arc<Shared>,
    ready: mpsc::Sender<io::Result<Connection>>,
    shutdown: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    let accept_errors = Throttle::new(ACCEPT_LOG_INTERVAL);
    let mut handshakes = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = async {
                let room = Arc::clone(&room).acquire_owned().await;
                (room, listener.accept().await)
            } => accepted,
        };
        while handshakes.try_join_next().is_some() {}
        let (Ok(room), accepted) = accepted else { break };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(not_logged) = accept_errors.admit(()) {
                    tracing::warn!(%error, not_logged, "a proxy's connection could not be accepted");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (tls, shared, ready) = (tls.clone(), Arc::clone(&shared), ready.clone());
        handshakes.spawn(async move {
            let shaken = tokio::time::timeout(HANDSHAKE_DEADLINE, handshake(stream, tls)).await;
            drop(room);
            match shaken.unwrap_or(Err(Some((Handshake::Timeout, "no handshake within 10 s".to_owned())))) {
                // Closed when the server ends.
                Ok(io) => drop(ready.send(Ok(Connection { io, peer })).await),
                Err(Some((reason, detail))) => {
                    let refusal = Refusal::Handshake { reason, detail };
                    shared.refusals.note(&shared.metrics, Some(peer), &refusal);
                }
                Err(None) => tracing::debug!(%peer, "closed before it said anything"),
            }
        });
    }
}

/// Why there is no connection; `None` when the peer closed it without a word, as health checks of load balancers do.
type Refused = Option<(Handshake, String)>;

async fn handshake(stream: TcpStream, tls: Option<Arc<Reloading<ServerConfig>>>) -> Result<Io, Refused> {
    // Answers are small and awaited.
    let _ = stream.set_nodelay(true);
    let mut first = [0];
    if stream.peek(&mut first).await.map_or(0, |read| read) == 0 {
        return Err(None);
    }
    match tls {
        None if first == [TLS_HANDSHAKE] => Err(Some((
            Handshake::TlsOnCleartext,
            "it speaks TLS, and this port does not: https:// for http://".to_owned(),
        ))),
        None => Ok(Io::Plain(stream)),
        Some(tls) => match TlsAcceptor::from(tls.current()).accept(stream).await {
            Ok(stream) => Ok(Io::Tls(Box::new(stream))),
            Err(error) => Err(Some(why(&error))),
        },
    }
}

/// What a failed handshake means.
fn why(error: &io::Error) -> (Handshake, String) {
    let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<TlsError>()) else {
        return (Handshake::Closed, format!("it closed the connection in the handshake: {error}"));
    };
    match cause {
        TlsError::InvalidMessage(InvalidMessage::InvalidContentType) => (
            Handshake::CleartextOnTls,
            "it does not speak TLS, and this port does: http:// for https://".to_owned(),
        ),
        TlsError::NoCertificatesPresented => (
            Handshake::NoCertificate,
            "it presents no certificate: it needs --tls-cert and --tls-key".to_owned(),
        ),
        TlsError::InvalidCertificate(reason) => {
            (Handshake::BadCertificate, format!("its certificate is not accepted: {reason:?}"))
        }
        TlsError::AlertReceived(alert) => {
            (Handshake::ByClient, format!("it does not accept this control plane's certificate: {alert:?}"))
        }
        other => (Handshake::Incompatible, other.to_string()),
    }
}

/// A proxy's connection.
pub(super) struct Connection {
    io: Io,
    peer: SocketAddr,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: None, remote_addr: Some(self.peer) }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Io::Tls(io) => Pin::new(io.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Io::Tls(io) => Pin::new(io.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
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

/// The first byte of a TLS record with a handshake message: RFC 8446, section 5.1.
const TLS_HANDSHAKE: u8 = 22;

/// Connections that may be in their handshake at once; more wait to be accepted.
const HANDSHAKES: usize = 1024;

const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// After an error of `accept`: out of file descriptors, most likely, and trying at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How often it is logged that connections cannot be accepted.
const ACCEPT_LOG_INTERVAL: Duration = Duration::from_secs(10);
