//! The reasons why a request gets no response from a target.

use std::io;
use std::sync::Arc;

use super::failure::UpstreamError;
use super::http1::Malformed;
use crate::core::failure::Failure;
use crate::wire::body::RequestBodyError;

/// The reason why a request got no response.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Exchange(ExchangeError),
}

/// The failure for an upgrade to an upstream of `protocol: http2`.
pub const NO_UPGRADES: Failure = Failure::NotImplemented("The service does not support protocol upgrades.");

impl SendError {
    /// The failure from which the client's response and all other consequences follow.
    pub fn failure(&self) -> Failure {
        match self {
            Self::Connect(error) => error.failure(),
            Self::Exchange(error) => error.failure(),
        }
    }

    /// The target's error; `None` if it is not the target's fault.
    pub fn reason(&self) -> Option<UpstreamError> {
        match self {
            Self::Connect(error) => Some(error.reason()),
            Self::Exchange(error) => error.reason(),
        }
    }
}

/// The reason why there is no connection. It is cloned for requests that waited for the same connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    #[error("the target does not accept connections")]
    Refused(#[source] Arc<io::Error>),
    #[error("the target did not accept the connection in time")]
    Timeout,
    #[error("the TLS handshake with the target failed")]
    Tls(#[source] Arc<io::Error>),
    #[error("the TLS handshake with the target timed out")]
    TlsTimeout,
    #[error("the HTTP/2 handshake with the target failed")]
    Http2(#[source] Arc<h2::Error>),
    #[error("the limit on connections to the target is reached, and all are in use")]
    TooMany,
    /// This host is short of files, ports or memory.
    #[error("this host lacks the resources for another connection")]
    NoRoom(#[source] Arc<io::Error>),
    /// The target has chosen the other version of HTTP (`protocol: auto`).
    #[error("the target chose the other version of HTTP")]
    OtherProtocol,
}

impl ConnectError {
    pub fn failure(&self) -> Failure {
        match self {
            Self::Refused(_)
            | Self::Timeout
            | Self::Tls(_)
            | Self::TlsTimeout
            | Self::Http2(_)
            | Self::OtherProtocol => Failure::ConnectFailure,
            Self::TooMany => Failure::Overflow,
            Self::NoRoom(_) => Failure::NoRoom,
        }
    }

    pub fn reason(&self) -> UpstreamError {
        match self {
            Self::Refused(error) => UpstreamError::of_connect(error),
            Self::Timeout => UpstreamError::ConnectTimeout,
            Self::Tls(error) => UpstreamError::of_handshake(error),
            Self::TlsTimeout => UpstreamError::TlsTimeout,
            Self::Http2(error) => UpstreamError::of_http2(error),
            Self::TooMany => UpstreamError::TooManyConnections,
            Self::NoRoom(_) => UpstreamError::OutOfSockets,
            Self::OtherProtocol => UpstreamError::NoCommonProtocol,
        }
    }
}

/// The reason why there is no response, or why it ended early.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The target closed the connection, or it broke. `answered` is true if a part of the response had arrived;
    /// `reason` is the cause.
    #[error("the target closed the connection")]
    Closed { answered: bool, reason: UpstreamError },
    #[error("the target does not speak HTTP/1.1")]
    Malformed(#[from] Malformed),
    #[error("the target reset the stream, or does not speak HTTP/2")]
    Http2(#[source] h2::Error),
    #[error("the request's body cannot be sent")]
    RequestBody(#[from] RequestBodyError),
    /// The request asks for a protocol switch that HTTP/2 cannot carry.
    #[error("the target does not switch to other protocols")]
    NoProtocols,
}

impl ExchangeError {
    pub fn failure(&self) -> Failure {
        match self {
            Self::NoProtocols => NO_UPGRADES,
            Self::RequestBody(error) => Failure::from(error),
            Self::Malformed(Malformed::HeadTooLarge) => Failure::ResponseHeadTooLarge,
            Self::Closed { .. } | Self::Malformed(_) | Self::Http2(_) => Failure::Reset,
        }
    }

    pub(super) fn closed(answered: bool, read: io::Result<usize>) -> Self {
        let reason = match read {
            Ok(_) => UpstreamError::ConnectionClosed,
            Err(error) => UpstreamError::of_connection(&error),
        };
        Self::Closed { answered, reason }
    }

    /// The target's error; `None` if it is not the target's fault.
    pub fn reason(&self) -> Option<UpstreamError> {
        match self {
            Self::Closed { reason, .. } => Some(*reason),
            Self::Malformed(error) => Some(UpstreamError::of_http1(*error)),
            Self::Http2(error) => Some(UpstreamError::of_http2(error)),
            Self::RequestBody(_) | Self::NoProtocols => None,
        }
    }
}
