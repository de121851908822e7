//! The reasons why TLS handshakes with clients fail, as counted in the metrics.

/// The reason why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum HandshakeFailure {
    /// The client closed the connection.
    Closed,
    /// The handshake did not complete in time.
    Timeout,
    /// Too many handshakes are running.
    Overload,
    /// No certificate matches the client's server name (SNI).
    NoCertificate,
    /// The client sent no certificate, or none that is trusted.
    ClientCertificate,
    /// Client and listener have no TLS version or no cipher suite in common.
    Incompatible,
    /// The client aborted the handshake with an alert; for example, it does not trust the certificate.
    RefusedByClient,
    /// The client's bytes are not TLS.
    Malformed,
}

impl HandshakeFailure {
    pub const ALL: [Self; 8] = [
        Self::Closed,
        Self::Timeout,
        Self::Overload,
        Self::NoCertificate,
        Self::ClientCertificate,
        Self::Incompatible,
        Self::RefusedByClient,
        Self::Malformed,
    ];

    /// The name in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Overload => "overload",
            Self::NoCertificate => "no_certificate",
            Self::ClientCertificate => "client_certificate",
            Self::Incompatible => "incompatible",
            Self::RefusedByClient => "refused_by_client",
            Self::Malformed => "malformed",
        }
    }
}
