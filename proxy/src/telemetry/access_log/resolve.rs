//! The addresses of a collector, looked up with a deadline.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Instant;

use super::destination::HostPort;

/// Looks up names in a thread of its own, because the system's resolver has no deadline. There is one look-up at a time: one that is late
/// is waited for again at the next call.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    running: Option<Receiver<io::Result<Vec<SocketAddr>>>>,
}

/// The most addresses of a name that are tried.
const MAX_ADDRESSES: usize = 4;

impl Resolver {
    /// The addresses of `to`, up to [`MAX_ADDRESSES`].
    ///
    /// # Errors
    ///
    /// Those of the system's resolver, and `TimedOut` at the deadline.
    pub(super) fn resolve(&mut self, to: &HostPort, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
        if let Ok(address) = to.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, to.port)]);
        }
        let running = match self.running.take() {
            Some(running) => running,
            None => look_up(to.clone())?,
        };
        match running.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(found) => found,
            Err(RecvTimeoutError::Timeout) => {
                self.running = Some(running);
                Err(io::Error::new(io::ErrorKind::TimedOut, "the name's addresses were not found in time"))
            }
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the look-up of the name failed")),
        }
    }
}

fn look_up(to: HostPort) -> io::Result<Receiver<io::Result<Vec<SocketAddr>>>> {
    let (sender, receiver) = sync_channel(1);
    std::thread::Builder::new().name("access-log-name".into()).spawn(move || {
        let found = (&*to.host, to.port).to_socket_addrs();
        // Nobody may wait for it any more.
        let _ = sender.send(found.map(|found| found.take(MAX_ADDRESSES).collect()));
    })?;
    Ok(receiver)
}
