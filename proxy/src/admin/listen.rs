//! The socket of the admin server.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use signalbox_process::admin_address::AdminAddress;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::access::Peer;

/// The socket of the admin server.
pub enum AdminListener {
    /// An IP address and a port.
    Tcp(TcpListener),
    /// A socket that is at `made_at` until [`AdminListener::publish`] puts it at `path`.
    Unix { listener: UnixListener, made_at: PathBuf, path: PathBuf },
}

/// A connection to the admin server.
pub enum AdminStream {
    /// From an IP address.
    Tcp(TcpStream),
    /// From this host.
    Unix(UnixStream),
}

impl AdminListener {
    /// Listens on `address`, or uses the inherited socket. Returns a copy for a successor, if it is one that can be handed over. A path at which a
    /// process listens is taken from it only by its successor.
    pub fn open(
        inherited: Option<std::net::TcpListener>,
        address: &AdminAddress,
        is_successor: bool,
    ) -> io::Result<(Self, Option<std::net::TcpListener>)> {
        let socket = match (inherited, address) {
            (_, AdminAddress::Unix(path)) => {
                if !is_successor && std::os::unix::net::UnixStream::connect(path).is_ok() {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                return Ok((listen_for(path)?, None));
            }
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
                let own_ip = stream.local_addr()?.ip();
                Ok((AdminStream::Tcp(stream), Peer::Tcp { ip: peer.ip(), own_ip }))
            }
            Self::Unix { listener, .. } => {
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
            Self::Unix { .. } => configured.clone(),
        }
    }

    /// True if other hosts may reach it.
    pub fn is_open_to_other_hosts(&self) -> bool {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().is_ok_and(|address| !address.ip().to_canonical().is_loopback())
            }
            Self::Unix { .. } => false,
        }
    }

    /// Puts a socket at its path. The rename is atomic: clients find the old socket or the new one.
    pub fn publish(&self) -> io::Result<()> {
        match self {
            Self::Tcp(_) => Ok(()),
            Self::Unix { made_at, path, .. } => std::fs::rename(made_at, path),
        }
    }
}

/// Listens beside `path`, which a process may use that is about to leave, or has left its socket there. Only this user may connect.
fn listen_for(path: &Path) -> io::Result<AdminListener> {
    let mut made_at = path.as_os_str().to_owned();
    made_at.push(".new");
    let made_at = PathBuf::from(made_at);
    match std::fs::remove_file(&made_at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&made_at)?;
    std::fs::set_permissions(&made_at, std::fs::Permissions::from_mode(0o600))?;
    Ok(AdminListener::Unix { listener, made_at, path: path.to_owned() })
}
