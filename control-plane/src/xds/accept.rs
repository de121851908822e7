//! The proxies' connections: accepted, through their TLS handshake, and handed to the gRPC server. One that cannot be
//! served is logged and counted by its reason.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use signalbox_process::accept::accept;
use signalbox_process::liveness::{Liveness, set_unacknowledged_limit};
use signalbox_process::stream::MaybeTls;
use signalbox_process::tls::Reloading;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{Error as TlsError, InvalidMessage, ServerConfig};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::refusal::{Handshake, Refusal};
use super::shared::Shared;

/// Accepts connections until `shutdown`, and hands over those that are ready to speak HTTP/2.
pub(super) async fn run(
    listener: TcpListener,
    tls: Option<Arc<Reloading<ServerConfig>>>,
    shared: Arc<Shared>,
    ready: mpsc::Sender<io::Result<Connection>>,
    shutdown: CancellationToken,
) {
    let limit = shared.limits.silence;
    let handshakes = accept(listener, "xds", HANDSHAKES, &shutdown, |stream, peer, permit| {
        let (tls, shared, ready) = (tls.clone(), Arc::clone(&shared), ready.clone());
        set_unacknowledged_limit(&stream, limit);
        async move {
            let shaken = tokio::time::timeout(HANDSHAKE_DEADLINE, handshake(stream, tls)).await;
            drop(permit);
            match shaken.unwrap_or(Err(Some((Handshake::Timeout, "no handshake within 10 s".to_owned())))) {
                // Closed when the server ends.
                Ok(stream) => {
                    let stream = Liveness::new(stream, limit);
                    drop(ready.send(Ok(Connection { stream, peer })).await);
                }
                Err(Some((reason, detail))) => {
                    let refusal = Refusal::Handshake { reason, detail };
                    shared.refusals.record(&shared.metrics, Some(peer), &refusal);
                }
                Err(None) => tracing::debug!(%peer, "a client closed the connection before it sent anything"),
            }
        }
    });
    // Handshakes that still run are given up with it.
    drop(handshakes.await);
}

/// Why there is no connection; `None` when the peer closed it without a word, as health checks of load balancers do.
type HandshakeFailure = Option<(Handshake, String)>;

async fn handshake(
    stream: TcpStream,
    tls: Option<Arc<Reloading<ServerConfig>>>,
) -> Result<MaybeTls, HandshakeFailure> {
    let mut first = [0];
    if stream.peek(&mut first).await.map_or(0, |read| read) == 0 {
        return Err(None);
    }
    match tls {
        None if first == [TLS_HANDSHAKE] => Err(Some((
            Handshake::TlsOnCleartext,
            "it speaks TLS, and this port does not: https:// for http://".to_owned(),
        ))),
        None => Ok(MaybeTls::Clear(stream)),
        Some(tls) => match TlsAcceptor::from(tls.current()).accept(stream).await {
            Ok(stream) => Ok(MaybeTls::tls(stream)),
            Err(error) => Err(Some(explain(&error))),
        },
    }
}

/// Explains a failed handshake.
fn explain(error: &io::Error) -> (Handshake, String) {
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
    stream: Liveness<MaybeTls>,
    peer: SocketAddr,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: None, remote_addr: Some(self.peer) }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// The first byte of a TLS record with a handshake message: RFC 8446, section 5.1.
const TLS_HANDSHAKE: u8 = 22;

/// Connections that may be in their handshake at once; more wait to be accepted.
const HANDSHAKES: usize = 1024;

const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
