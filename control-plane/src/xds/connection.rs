//! One proxy's HTTP/2 connection, and all its calls: they share a task, so that a change, and the answer to it, wake one.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use h2::{Ping, PingPong, server};
use signalbox_process::liveness::Liveness;
use signalbox_process::stream::MaybeTls;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::MissedTickBehavior;

use super::grpc::Call;
use super::service;
use super::shared::Shared;

/// A connection after its handshakes.
pub(super) struct Connection {
    http2: server::Connection<Heard, Bytes>,
    peer: SocketAddr,
    /// Bytes came since this was looked at last.
    heard: Arc<AtomicBool>,
}

/// Something that happened beside what the connection itself does.
enum Happened {
    CallEnded,
    Shutdown,
}

impl Connection {
    /// Speaks the beginning of HTTP/2.
    pub(super) async fn handshake(stream: Liveness<MaybeTls>, peer: SocketAddr) -> Result<Self, h2::Error> {
        let heard = Arc::new(AtomicBool::new(true));
        let stream = Heard { stream, heard: Arc::clone(&heard) };
        let http2 = server::Builder::new()
            .max_concurrent_streams(CALLS)
            .initial_window_size(CALL_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(HEADERS)
            .handshake(stream)
            .await?;
        Ok(Self { http2, peer, heard })
    }

    /// Serves the proxy's calls until it is gone. At the end of the server, its calls end by themselves, and then the connection does.
    pub(super) async fn serve(mut self, shared: Arc<Shared>) {
        let mut others = FuturesUnordered::<BoxFuture<'static, Happened>>::new();
        let shutdown = shared.shutdown.clone();
        others.push(Box::pin(async move {
            shutdown.cancelled_owned().await;
            Happened::Shutdown
        }));
        if let Some(pings) = self.http2.ping_pong() {
            let pings = ask_for_signs_of_life(pings, Arc::clone(&self.heard), shared.limits.ping_after);
            others.push(Box::pin(pings));
        }
        loop {
            tokio::select! {
                // The frames of all calls are then written at once.
                biased;
                Some(happened) = others.next() => match happened {
                    Happened::CallEnded => {}
                    Happened::Shutdown => self.http2.graceful_shutdown(),
                },
                call = self.http2.accept() => match call {
                    Some(Ok((request, respond))) => {
                        let (shared, call) = (Arc::clone(&shared), Call::new(request, respond, self.peer));
                        others.push(Box::pin(async move {
                            service::serve(shared, call).await;
                            Happened::CallEnded
                        }));
                    }
                    Some(Err(error)) => {
                        tracing::debug!(peer = %self.peer, %error, "a connection ended");
                        return;
                    }
                    None => return,
                },
            }
        }
    }
}

/// Asks a silent peer for a sign of life. That none comes is noticed by [`Liveness`].
async fn ask_for_signs_of_life(mut pings: PingPong, heard: Arc<AtomicBool>, after: Duration) -> Happened {
    let mut looks = tokio::time::interval(after / 2);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silent_looks = 0;
    loop {
        looks.tick().await;
        if heard.swap(false, Ordering::Relaxed) {
            silent_looks = 0;
            continue;
        }
        silent_looks += 1;
        if silent_looks == 2 && pings.ping(Ping::opaque()).await.is_err() {
            // The connection has ended.
            std::future::pending::<()>().await;
        }
    }
}

/// A connection that notes that something came.
struct Heard {
    stream: Liveness<MaybeTls>,
    heard: Arc<AtomicBool>,
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.heard.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Heard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Calls over one connection. A proxy needs four: its stream, its reports, its counts, and the file that it fetches.
const CALLS: u32 = 16;

/// Bytes of one call, and of all of them, that a proxy may send before they are read.
const CALL_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Bytes of one call that wait to be written to the connection.
const SEND_BUFFER: usize = 128 << 10;

/// Bytes of the headers of one call.
const HEADERS: u32 = 16 << 10;
