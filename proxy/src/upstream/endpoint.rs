//! The key of a connection: where it leads.

use std::net::SocketAddr;

/// The address and settings of a connection. A request can reuse only a connection with an equal endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// The number of the TLS settings; 0: cleartext.
    pub settings: u64,
    /// The address of the upstream's `Load`, if the upstream limits its connections; 0 otherwise. The connections'
    /// permits keep the `Load` alive. It keeps upstreams with limits from using each other's connections.
    pub only_of: usize,
}
