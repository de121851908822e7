//! A connection to a target that has switched from HTTP to another protocol.

use std::any::Any;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connect::connect;
use super::endpoint::Endpoint;
use super::error::ConnectError;
use super::load::Permit;
use super::transport::Transport;
use crate::telemetry::WorkerStats;
use crate::wire::tls::Offer;

/// A byte stream to a target that carries another protocol: a connection, or one HTTP/2 stream.
pub struct Switched {
    pub stream: Box<dyn Duplex>,
    /// Bytes that were read already.
    pub buffer: BytesMut,
    /// For a connection: where its bytes are counted.
    pub stats: Option<Arc<WorkerStats>>,
    _permit: Box<dyn Any>,
}

/// A stream of bytes in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

impl Switched {
    /// Wraps a stream; `permit` is released when it ends.
    pub(super) fn new(
        stream: impl Duplex + 'static,
        buffer: BytesMut,
        stats: Option<Arc<WorkerStats>>,
        permit: impl Any,
    ) -> Self {
        Self { stream: Box::new(stream), buffer, stats, _permit: Box::new(permit) }
    }

    /// Opens an unused connection to a target, for a client that brings its own protocol, and its own TLS.
    pub async fn open(
        endpoint: Endpoint,
        transport: &Transport,
        stats: Arc<WorkerStats>,
        permit: Permit,
    ) -> Result<Self, ConnectError> {
        let stream = connect(endpoint, None, Offer::Any, transport.connect_timeout).await?;
        stats.upstream_connections.add(1);
        Ok(Self::new(stream, BytesMut::new(), Some(stats), permit))
    }
}
