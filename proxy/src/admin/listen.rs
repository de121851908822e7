//! The socket of the admin server.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use signalbox_process::admin_address::AdminAddress;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::access::Peer;

/// The socket of the admin server.
pub enum AdminListener {
    /// An IP address and a port.
    Tcp(TcpListener),
    /// A path.
    Unix(UnixListener),
}

/// A connection to the admin server.
pub enum AdminStream {
    /// From an IP address.
    Tcp(TcpStream),
    /// From this host.
    Unix(UnixStream),
}

impl AdminListener {
    /// Listens on `address`, or uses the inherited socket. Returns a copy for a successor, if it is one that can be handed over.
    pub fn open(
        inherited: Option<std::net::TcpListener>,
        address: &AdminAddress,
    ) -> io::Result<(Self, Option<std::net::TcpListener>)> {
        let socket = match (inherited, address) {
            (_, AdminAddress::Unix(path)) => return Ok((Self::Unix(listen_at(path)?), None)),
            (Some(socket), AdminAddress::Tcp(_)) => socket,
            (None, AdminAddress::Tcp(address)) => std::net::TcpListener::bind(address)?,
        };
        socket.set_nonblocking(true)?;
        let copy = socket.try_clone()?;
        Ok((Self::Tcp(TcpListener::from_std(socket)?), Some(copy)))
    }

    /// The next connection, and its client.
    pub async fn accept(&self) -> io::Result<(AdminStream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((AdminStream::Tcp(stream), Peer::Tcp(peer.ip())))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((AdminStream::Unix(stream), Peer::Unix))
            }
        }
    }

    /// The address, with the port that the system chose if it was to choose one.
    pub fn address(&self, configured: &AdminAddress) -> AdminAddress {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| configured.clone(), AdminAddress::Tcp)
            }
            Self::Unix(_) => configured.clone(),
        }
    }

    /// True if other hosts may reach it.
    pub fn is_open_to_other_hosts(&self) -> bool {
        match self {
            Self::Tcp(listener) => listener.local_addr().is_ok_and(|address| !address.ip().is_loopback()),
            Self::Unix(_) => false,
        }
    }
}

/// Listens at `path`, in place of a socket that another process has left or is about to leave. Only this user may connect.
fn listen_at(path: &Path) -> io::Result<UnixListener> {
    // The rename is atomic: clients find the old socket or the new one.
    let mut next = path.as_os_str().to_owned();
    next.push(".new");
    match std::fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&next)?;
    std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&next, path)?;
    Ok(listener)
}
