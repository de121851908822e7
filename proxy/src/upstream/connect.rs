//! Opens connections to targets, up to the point at which bytes can be sent.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use super::endpoint::Endpoint;
use super::error::ConnectError;
use crate::wire::stream::Stream;
use crate::wire::tls::{Offer, UpstreamTls};

/// Connects to a target, including the TLS handshake, before the deadline.
pub(super) async fn connect(
    endpoint: Endpoint,
    tls: Option<&UpstreamTls>,
    offer: Offer,
    timeout: Duration,
) -> Result<Stream, ConnectError> {
    let deadline = tokio::time::Instant::now() + timeout;
    let refused = |error| ConnectError::Refused(Arc::new(error));
    let connected = timeout_at(deadline, TcpStream::connect(endpoint.address)).await;
    let stream =
        connected.map_err(|_| ConnectError::Timeout)?.map_err(|error| match is_local_shortage(&error) {
            true => ConnectError::NoRoom(Arc::new(error)),
            false => refused(error),
        })?;
    stream.set_nodelay(true).map_err(refused)?;
    let Some(tls) = tls else { return Ok(Stream::Plain(stream)) };
    // The handshake's future is boxed so that cleartext connections do not carry its size.
    let shaken = timeout_at(deadline, Box::pin(tls.connect(endpoint.settings, offer, stream))).await;
    let stream = shaken.map_err(|_| ConnectError::TlsTimeout)?;
    stream.map(Stream::Tls).map_err(|error| ConnectError::Tls(Arc::new(error)))
}

/// True if this host lacks a resource, so that the failure is not the target's fault.
fn is_local_shortage(error: &io::Error) -> bool {
    let wants = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    wants.iter().any(|want| error.raw_os_error() == Some(want.raw_os_error()))
}
