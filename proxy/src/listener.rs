//! Listening sockets: they are bound before a revision is served, and closed after.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// The length of the accept queue; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The length of the accept queue under overload.
const SHORT_BACKLOG: i32 = 511;

/// Binds one listening socket for each of `workers`, all at one address, among which the kernel spreads connections.
/// Returns the address with the port that the kernel chose, if the configured port is 0.
///
/// `SO_REUSEPORT` alone would let a second proxy of the same user take a share of the connections unnoticed. So the
/// first socket is bound without it, which fails if another process listens there, and gets the option afterwards, so
/// that the others can join. `shared`: this process listens at an overlapping address itself, so that the check cannot
/// be made.
pub fn bind(address: SocketAddr, workers: usize, shared: bool) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let first = socket(address)?;
    if shared {
        first.set_reuse_port(true)?;
    }
    first.bind(&SockAddr::from(address))?;
    first.set_reuse_port(true)?;
    let bound = first.local_addr()?.as_socket().unwrap_or(address);
    let mut sockets = vec![first];
    for _ in 1..workers {
        let next = socket(address)?;
        next.set_reuse_port(true)?;
        next.bind(&SockAddr::from(bound))?;
        sockets.push(next);
    }
    for socket in &sockets {
        socket.listen(BACKLOG)?;
    }
    Ok((bound, sockets.into_iter().map(TcpListener::from).collect()))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Connections of a previous proxy may still be in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are two listeners.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    Ok(socket)
}

/// Sets the length of the accept queue.
pub fn set_backlog(listener: &tokio::net::TcpListener, short: bool) {
    // The socket listens already, so this cannot fail.
    let _ = socket2::SockRef::from(listener).listen(if short { SHORT_BACKLOG } else { BACKLOG });
}

/// True if listening at one address prevents listening at the other.
pub fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

/// Explains to the operator why an address cannot be bound.
pub fn explain(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("cannot listen on {address}: another process listens there"),
        io::ErrorKind::AddrNotAvailable => {
            format!("cannot listen on {address}: this host does not have the address")
        }
        io::ErrorKind::PermissionDenied => {
            format!("cannot listen on {address}: the proxy may not use this port")
        }
        _ => format!("cannot listen on {address}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address at which no other test listens.
    const ANY: &str = "127.0.0.77:0";

    #[test]
    fn every_worker_gets_a_socket_at_one_address() {
        let (address, sockets) = bind(ANY.parse().unwrap(), 3, false).unwrap();
        assert_eq!(sockets.len(), 3);
        assert!(sockets.iter().all(|socket| socket.local_addr().unwrap() == address));
    }

    #[test]
    fn an_address_that_somebody_else_shares_is_taken() {
        let (address, _sockets) = bind(ANY.parse().unwrap(), 2, false).unwrap();
        let error = bind(address, 2, false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(explain(address, &error).contains("another process"));
        // This also holds for the wildcard address.
        assert!(bind(SocketAddr::new([0, 0, 0, 0].into(), address.port()), 1, false).is_err());
        // This process itself may.
        assert!(bind(address, 2, true).is_ok());
    }

    #[test]
    fn an_address_is_free_again_once_it_is_closed() {
        let (address, sockets) = bind(ANY.parse().unwrap(), 2, false).unwrap();
        drop(sockets);
        assert!(bind(address, 2, false).is_ok());
    }

    #[test]
    fn overlaps() {
        for (one, other, expected) in [
            ("1.2.3.4:80", "1.2.3.4:80", true),
            ("0.0.0.0:80", "1.2.3.4:80", true),
            ("[::]:80", "1.2.3.4:80", true),
            ("1.2.3.4:80", "1.2.3.5:80", false),
            ("1.2.3.4:80", "1.2.3.4:81", false),
        ] {
            assert_eq!(overlap(one.parse().unwrap(), other.parse().unwrap()), expected, "{one} {other}");
        }
    }
}
