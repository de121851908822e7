//! The proxies' connections: accepted, through their handshakes, and served. One that cannot be served is logged and counted by its
//! reason.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use signalbox_process::accept::accept;
use signalbox_process::liveness::{Liveness, set_unacknowledged_limit};
use signalbox_process::stream::MaybeTls;
use signalbox_process::tls::Reloading;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{Error as TlsError, InvalidMessage, ServerConfig};
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::refusal::{Handshake, Refusal};
use super::shared::Shared;

/// Accepts connections until `shutdown`, and serves them. Then it waits until those that are open have ended, which are told to.
pub(super) async fn run(
    listener: TcpListener,
    tls: Option<Arc<Reloading<ServerConfig>>>,
    shared: Arc<Shared>,
    shutdown: CancellationToken,
) {
    let limit = shared.limits.silence;
    let accepting = accept(listener, "xds", HANDSHAKES, &shutdown, |stream, peer, permit| {
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        set_unacknowledged_limit(&stream, limit);
        async move {
            let shaken = tokio::time::timeout(HANDSHAKE_DEADLINE, async {
                let stream = Liveness::new(handshake(stream, tls).await?, limit);
                Ok(Connection::handshake(stream, peer).await)
            });
            let shaken = shaken.await;
            drop(permit);
            match shaken.unwrap_or(Err(Some((Handshake::Timeout, "no handshake within 10 s".to_owned())))) {
                // It holds the future of the handshake no longer.
                Ok(Ok(connection)) => Box::pin(connection.serve(shared)).await,
                Ok(Err(error)) => tracing::debug!(%peer, %error, "a client does not speak HTTP/2"),
                Err(Some((reason, detail))) => {
                    let refusal = Refusal::Handshake { reason, detail };
                    shared.refusals.record(&shared.metrics, peer, &refusal);
                }
                Err(None) => tracing::debug!(%peer, "a client closed the connection before it sent anything"),
            }
        }
    });
    let mut connections = accepting.await;
    let ended = async { while connections.join_next().await.is_some() {} };
    // A peer that does not read is not waited for.
    let _ = tokio::time::timeout(END_DEADLINE, ended).await;
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

/// The first byte of a TLS record with a handshake message: RFC 8446, section 5.1.
const TLS_HANDSHAKE: u8 = 22;

/// Connections that may be in their handshake at once; more wait to be accepted.
const HANDSHAKES: usize = 1024;

const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long connections may take to end.
const END_DEADLINE: Duration = Duration::from_secs(3);
