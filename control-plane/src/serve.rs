//! Connections of the admin address: accepted, bounded, perhaps encrypted, and closed in order.

use std::convert::Infallible;
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
use signalbox_process::tls::Reloading;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

/// Where a request's connection comes from.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// What is served: nothing but health while the control plane starts.
#[derive(Debug, Clone, Default)]
pub struct Site(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    router: OnceLock<Router>,
    /// What the start waits for.
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
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = async {
                let room = Arc::clone(&room).acquire_owned().await;
                (room, listener.accept().await)
            } => accepted,
        };
        while connections.try_join_next().is_some() {}
        let (Ok(room), accepted) = accepted else { break };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Out of file descriptors, most likely: trying at once would only burn the processor.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Answers are small and awaited.
        let _ = stream.set_nodelay(true);
        let (site, tls, shutdown) = (site.clone(), tls.clone(), shutdown.clone());
        connections.spawn(async move {
            let _room = room;
            match tls {
                None => connection(stream, Peer(peer), site, shutdown).await,
                Some(tls) => match tokio::time::timeout(
                    HANDSHAKE_DEADLINE,
                    TlsAcceptor::from(tls.current()).accept(stream),
                )
                .await
                {
                    Ok(Ok(stream)) => connection(stream, Peer(peer), site, shutdown).await,
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "the TLS handshake failed"),
                    Err(_) => tracing::debug!(%peer, "the TLS handshake took too long"),
                },
            }
        });
    }
    drop(listener);
    let drained =
        tokio::time::timeout(DRAIN_DEADLINE, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::warn!(connections = connections.len(), "connections were closed before they were done");
    }
}

async fn connection<S>(stream: S, peer: Peer, site: Site, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
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
