//! Connections of the admin address: accepted, bounded, perhaps encrypted, and closed in order.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse as _;
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use signalbox_process::accept::accept;
use signalbox_process::stream::MaybeTls;
use signalbox_process::tls::Reloading;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

/// Where a request's connection comes from.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The service of the admin address: nothing but health while the control plane starts.
#[derive(Debug, Clone, Default)]
pub struct Site(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    router: OnceLock<Router>,
    /// The reason why the start waits.
    waiting: Mutex<&'static str>,
}

impl Site {
    /// Opens it.
    pub fn open(&self, router: Router) {
        // It is opened once, by `main`.
        let _ = self.0.router.set(router);
    }

    /// Says what the start waits for, until the site is opened.
    pub fn wait_for(&self, reason: &'static str) {
        *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    async fn answer(&self, mut request: Request<Incoming>, peer: Peer) -> Response<Body> {
        request.extensions_mut().insert(peer);
        match self.0.router.get() {
            Some(router) => match router.clone().call(request.map(Body::new)).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            None if request.uri().path() == "/healthz" => "ok\n".into_response(),
            None => {
                let retry = [(header::RETRY_AFTER, "1")];
                let text = match *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner) {
                    "" => "the control plane is starting\n".to_owned(),
                    reason => format!("the control plane is starting: {reason}\n"),
                };
                (StatusCode::SERVICE_UNAVAILABLE, retry, text).into_response()
            }
        }
    }
}

/// Connections at once; beyond, they wait to be accepted.
const MAX_CONNECTIONS: usize = 4096;

/// For the head of a request to be complete; also how long a connection may stay without one.
const HEAD_DEADLINE: Duration = Duration::from_secs(75);

/// For a TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long requests under way may take at the end.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Serves until `shutdown`, then finishes what runs.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Reloading<ServerConfig>>>,
    site: Site,
    shutdown: CancellationToken,
) {
    let mut connections = accept(listener, "admin", MAX_CONNECTIONS, &shutdown, |stream, peer, permit| {
        let (site, tls, shutdown) = (site.clone(), tls.clone(), shutdown.clone());
        async move {
            let _permit = permit;
            match handshake(stream, tls).await {
                Ok(stream) => connection(stream, Peer(peer), site, shutdown).await,
                Err(error) => tracing::debug!(%peer, %error, "the TLS handshake failed"),
            }
        }
    })
    .await;
    let drained =
        tokio::time::timeout(DRAIN_DEADLINE, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::warn!(connections = connections.len(), "connections were closed before they were done");
    }
}

async fn handshake(stream: TcpStream, tls: Option<Arc<Reloading<ServerConfig>>>) -> io::Result<MaybeTls> {
    let Some(tls) = tls else { return Ok(MaybeTls::Clear(stream)) };
    let handshake = TlsAcceptor::from(tls.current()).accept(stream);
    tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await?.map(MaybeTls::tls)
}

async fn connection(stream: MaybeTls, peer: Peer, site: Site, shutdown: CancellationToken) {
    let service = service_fn(move |request| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(site.answer(request, peer).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(peer = %peer.0, %error, "a connection ended early");
    }
}
