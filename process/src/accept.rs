//! Accepting connections for a program's own servers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::log::Throttle;

/// Listens on `address`. Up to `backlog` connections may wait to be accepted, or as many as the system allows
/// (`net.core.somaxconn`); the kernel does not complete more. To be called within a tokio runtime.
pub fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As with `TcpListener::bind`: the port is free again at once when this process has ended.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

/// Accepts connections of `listener` until `shutdown`, and runs `serve` for each on a task of its own. Then the listener
/// is closed, and the tasks that still run are returned; they are aborted when they are dropped.
///
/// A connection is accepted when one of `limit` permits is free; it counts until `serve` drops the permit.
/// `server` names the server in the log.
pub async fn accept<F>(
    listener: TcpListener,
    server: &'static str,
    limit: usize,
    shutdown: &CancellationToken,
    mut serve: impl FnMut(TcpStream, SocketAddr, OwnedSemaphorePermit) -> F,
) -> JoinSet<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(limit));
    let errors = Throttle::new(LOG_INTERVAL);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return connections,
            accepted = async {
                let permit = Arc::clone(&permits).acquire_owned().await;
                (permit, listener.accept().await)
            } => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            (Ok(permit), Ok((stream, peer))) => {
                // Answers are small and awaited.
                let _ = stream.set_nodelay(true);
                connections.spawn(serve(stream, peer, permit));
            }
            (_, Err(error)) => {
                if let Some(not_logged) = errors.admit(()) {
                    tracing::warn!(%error, server, not_logged, "a connection could not be accepted");
                }
                tokio::time::sleep(PAUSE).await;
            }
            // The semaphore is never closed.
            (Err(_), _) => return connections,
        }
    }
}

/// The pause after an error of `accept`: the process is out of file descriptors, most likely, and trying at once would only
/// burn the processor.
const PAUSE: Duration = Duration::from_millis(50);

/// How often it is logged that connections cannot be accepted.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::mpsc;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn as_many_connections_wait_to_be_accepted_as_the_backlog_says() {
        let system = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
        let files = usize::try_from(crate::limits::raise_open_files()).unwrap_or(usize::MAX);
        // More than the 1024 that `TcpListener::bind` has room for, if the system allows it.
        let clients = 1500.min(system.trim().parse().unwrap()).min(files.saturating_sub(100));
        let listener = listen(([127, 0, 0, 1], 0).into(), 20_000).unwrap();
        let address = listener.local_addr().unwrap();
        let mut connecting = JoinSet::new();
        for _ in 0..clients {
            connecting.spawn(TcpStream::connect(address));
        }
        // Nothing is accepted meanwhile.
        let connected = tokio::time::timeout(DEADLINE, connecting.join_all()).await.unwrap();
        assert_eq!(connected.iter().filter(|result| result.is_ok()).count(), clients);
    }

    #[tokio::test]
    async fn a_connection_beyond_the_limit_is_served_when_another_has_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let (served, mut ports) = mpsc::unbounded_channel();
        let accepting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move {
                accept(listener, "test", 1, &shutdown, |mut stream, peer, permit| {
                    let served = served.clone();
                    async move {
                        let _permit = permit;
                        served.send(peer.port()).unwrap();
                        // Until the client closes.
                        let _ = stream.read(&mut [0]).await;
                    }
                })
                .await
            }
        });
        let next = async |ports: &mut mpsc::UnboundedReceiver<u16>| {
            tokio::time::timeout(DEADLINE, ports.recv()).await.unwrap().unwrap()
        };
        let mut first = TcpStream::connect(address).await.unwrap();
        assert_eq!(next(&mut ports).await, first.local_addr().unwrap().port());
        let second = TcpStream::connect(address).await.unwrap();
        first.shutdown().await.unwrap();
        assert_eq!(next(&mut ports).await, second.local_addr().unwrap().port());
        shutdown.cancel();
        let mut running = tokio::time::timeout(DEADLINE, accepting).await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "the listener is closed");
        drop(second);
        tokio::time::timeout(DEADLINE, running.join_next()).await.unwrap();
    }
}
