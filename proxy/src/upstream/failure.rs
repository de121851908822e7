//! Why targets do not answer: a bounded set of reasons, for the access log, the metrics, the log and `/debug/upstreams`.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustls::{AlertDescription, CertificateError};

use super::http1::Malformed;

/// Why a target did not answer, or not to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum UpstreamError {
    /// Its name has no address.
    NameNotResolved,
    ConnectionRefused,
    /// The TCP connection was not accepted in time.
    ConnectTimeout,
    /// There is no way to its host or network.
    Unreachable,
    /// The connection could not be made for another reason.
    ConnectFailed,
    /// This host has no more files, ports or memory for connections.
    OutOfSockets,
    /// The upstream has as many connections as it may have.
    TooManyConnections,
    TlsTimeout,
    /// The target closed the connection while TLS was set up.
    TlsClosed,
    CertificateExpired,
    CertificateNotYetValid,
    /// The certificate is not for the name that the target is known by.
    CertificateWrongName,
    CertificateUnknownIssuer,
    CertificateRevoked,
    /// The certificate cannot be trusted for another reason.
    CertificateInvalid,
    /// The target takes no certificate of the proxy, or not this one.
    ClientCertificateRefused,
    /// The target speaks none of the protocols that it was offered (ALPN).
    NoCommonProtocol,
    /// The target shares no version or cipher of TLS with the proxy.
    TlsIncompatible,
    /// The target ended the handshake with another alert.
    TlsAlert,
    /// What the target says is not TLS.
    TlsProtocolError,
    /// The target closed the connection, or it broke.
    ConnectionClosed,
    /// What the target says is not HTTP/1.1.
    ResponseMalformed,
    /// The head of the answer is beyond the upstream's `limits`.
    ResponseHeadTooLarge,
    /// The target broke the stream off (HTTP/2).
    StreamReset,
    /// What the target says is not HTTP/2.
    Http2ProtocolError,
}

impl UpstreamError {
    pub const ALL: [Self; 25] = [
        Self::NameNotResolved,
        Self::ConnectionRefused,
        Self::ConnectTimeout,
        Self::Unreachable,
        Self::ConnectFailed,
        Self::OutOfSockets,
        Self::TooManyConnections,
        Self::TlsTimeout,
        Self::TlsClosed,
        Self::CertificateExpired,
        Self::CertificateNotYetValid,
        Self::CertificateWrongName,
        Self::CertificateUnknownIssuer,
        Self::CertificateRevoked,
        Self::CertificateInvalid,
        Self::ClientCertificateRefused,
        Self::NoCommonProtocol,
        Self::TlsIncompatible,
        Self::TlsAlert,
        Self::TlsProtocolError,
        Self::ConnectionClosed,
        Self::ResponseMalformed,
        Self::ResponseHeadTooLarge,
        Self::StreamReset,
        Self::Http2ProtocolError,
    ];

    /// Its name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NameNotResolved => "name_not_resolved",
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::Unreachable => "unreachable",
            Self::ConnectFailed => "connect_failed",
            Self::OutOfSockets => "out_of_sockets",
            Self::TooManyConnections => "too_many_connections",
            Self::TlsTimeout => "tls_timeout",
            Self::TlsClosed => "tls_closed",
            Self::CertificateExpired => "tls_certificate_expired",
            Self::CertificateNotYetValid => "tls_certificate_not_yet_valid",
            Self::CertificateWrongName => "tls_certificate_wrong_name",
            Self::CertificateUnknownIssuer => "tls_certificate_unknown_issuer",
            Self::CertificateRevoked => "tls_certificate_revoked",
            Self::CertificateInvalid => "tls_certificate_invalid",
            Self::ClientCertificateRefused => "tls_client_certificate_refused",
            Self::NoCommonProtocol => "tls_no_common_protocol",
            Self::TlsIncompatible => "tls_incompatible",
            Self::TlsAlert => "tls_alert",
            Self::TlsProtocolError => "tls_protocol_error",
            Self::ConnectionClosed => "connection_closed",
            Self::ResponseMalformed => "response_malformed",
            Self::ResponseHeadTooLarge => "response_head_too_large",
            Self::StreamReset => "stream_reset",
            Self::Http2ProtocolError => "http2_protocol_error",
        }
    }

    /// Why a TCP connection was not made.
    pub(super) fn of_connect(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::ConnectionRefused,
            io::ErrorKind::TimedOut => Self::ConnectTimeout,
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => Self::Unreachable,
            _ => Self::ConnectFailed,
        }
    }

    /// Why there was no TLS on a connection that was made.
    pub(super) fn of_handshake(error: &io::Error) -> Self {
        tls_cause(error).map_or(Self::TlsClosed, Self::of_tls)
    }

    /// Why a connection broke that requests are sent over. A target of TLS 1.3 refuses the proxy's certificate only then.
    pub(super) fn of_connection(error: &io::Error) -> Self {
        match tls_cause(error) {
            Some(rustls::Error::AlertReceived(alert)) if is_of_a_certificate(*alert) => {
                Self::ClientCertificateRefused
            }
            _ => Self::ConnectionClosed,
        }
    }

    pub(super) fn of_http1(error: Malformed) -> Self {
        match error {
            Malformed::HeadTooLarge => Self::ResponseHeadTooLarge,
            Malformed::Head
            | Malformed::Length
            | Malformed::Coding
            | Malformed::Chunk(_)
            | Malformed::Upgrade => Self::ResponseMalformed,
        }
    }

    pub(super) fn of_http2(error: &h2::Error) -> Self {
        match error.get_io() {
            Some(error) => Self::of_connection(error),
            None if error.is_remote() && error.is_go_away() => Self::ConnectionClosed,
            None if error.is_remote() => Self::StreamReset,
            None => Self::Http2ProtocolError,
        }
    }

    fn of_tls(error: &rustls::Error) -> Self {
        use AlertDescription as Alert;
        use rustls::Error;
        match error {
            Error::InvalidCertificate(error) => match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    Self::CertificateExpired
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::CertificateNotYetValid
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Self::CertificateWrongName
                }
                CertificateError::UnknownIssuer => Self::CertificateUnknownIssuer,
                CertificateError::Revoked => Self::CertificateRevoked,
                _ => Self::CertificateInvalid,
            },
            Error::NoCertificatesPresented => Self::CertificateInvalid,
            Error::NoApplicationProtocol | Error::AlertReceived(Alert::NoApplicationProtocol) => {
                Self::NoCommonProtocol
            }
            Error::AlertReceived(alert) if is_of_a_certificate(*alert) => Self::ClientCertificateRefused,
            Error::AlertReceived(
                Alert::ProtocolVersion | Alert::HandshakeFailure | Alert::InsufficientSecurity,
            )
            | Error::PeerIncompatible(_) => Self::TlsIncompatible,
            Error::AlertReceived(_) => Self::TlsAlert,
            _ => Self::TlsProtocolError,
        }
    }
}

fn tls_cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Whether an alert says that the proxy's certificate is missing or not trusted (RFC 8446, section 6.2).
fn is_of_a_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::CertificateRequired
            | Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
    )
}

/// What went wrong last with a target.
#[derive(Debug, Clone)]
pub struct LastError {
    pub reason: UpstreamError,
    /// The error with its causes.
    pub detail: Box<str>,
    pub at: Timestamp,
    /// When a line of the log told of the target last.
    told: Instant,
}

/// What went wrong with an upstream's targets, counted by reason, and how much of it the log was told. Kept over revisions.
#[derive(Debug)]
pub struct UpstreamErrors {
    counts: [AtomicU64; UpstreamError::ALL.len()],
    lines: Mutex<Lines>,
}

#[derive(Debug)]
struct Lines {
    window: Instant,
    written: u32,
    suppressed: u64,
}

/// The log has at most so many lines for an upstream in a window, and one for a target unless its reason changes.
const WINDOW: Duration = Duration::from_secs(10);
const LINES: u32 = 10;

impl UpstreamErrors {
    pub fn new(now: Instant) -> Self {
        let lines = Lines { window: now, written: 0, suppressed: 0 };
        Self { counts: Default::default(), lines: Mutex::new(lines) }
    }

    pub fn count(&self, reason: UpstreamError) {
        if let Some(count) = self.counts.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often, by reason; those that were are told.
    pub fn counted(&self) -> impl Iterator<Item = (UpstreamError, u64)> + '_ {
        let counts = UpstreamError::ALL.into_iter().zip(&self.counts);
        counts.map(|(reason, count)| (reason, count.load(Ordering::Relaxed))).filter(|(_, count)| *count > 0)
    }

    /// Asks to write a line. `Some`: it may be written, and so many were not since the last one.
    pub fn may_write(&self, now: Instant) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(lines.window) >= WINDOW {
            (lines.window, lines.written) = (now, 0);
        }
        if lines.written >= LINES {
            lines.suppressed += 1;
            return None;
        }
        lines.written += 1;
        Some(std::mem::take(&mut lines.suppressed))
    }

    /// A line was not asked for, because another told the same a moment ago.
    pub fn suppress(&self) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).suppressed += 1;
    }
}

impl LastError {
    /// Notes an error in the place of the last one. Whether the log should tell of it. `detail` is only asked for then.
    pub fn note(
        last: &mut Option<Self>,
        reason: UpstreamError,
        now: Instant,
        detail: impl FnOnce() -> String,
    ) -> bool {
        let at = Timestamp::now();
        match last {
            Some(last) if last.reason == reason && now.saturating_duration_since(last.told) < WINDOW => {
                last.at = at;
                false
            }
            last => {
                *last = Some(Self { reason, detail: detail().into(), at, told: now });
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_place_and_a_name_of_its_own() {
        let mut names: Vec<_> = UpstreamError::ALL.iter().map(|reason| reason.as_str()).collect();
        for (index, reason) in UpstreamError::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{reason:?}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), UpstreamError::ALL.len());
    }

    #[test]
    fn errors_of_tls_are_told_apart() {
        use AlertDescription as Alert;
        use UpstreamError as Reason;
        use rustls::Error;
        for (error, at_handshake, later) in [
            (Error::InvalidCertificate(CertificateError::Expired), Reason::CertificateExpired, None),
            (Error::InvalidCertificate(CertificateError::NotValidYet), Reason::CertificateNotYetValid, None),
            (
                Error::InvalidCertificate(CertificateError::NotValidForName),
                Reason::CertificateWrongName,
                None,
            ),
            (
                Error::InvalidCertificate(CertificateError::UnknownIssuer),
                Reason::CertificateUnknownIssuer,
                None,
            ),
            (Error::InvalidCertificate(CertificateError::BadEncoding), Reason::CertificateInvalid, None),
            (Error::AlertReceived(Alert::NoApplicationProtocol), Reason::NoCommonProtocol, None),
            (
                Error::AlertReceived(Alert::CertificateRequired),
                Reason::ClientCertificateRefused,
                Some(Reason::ClientCertificateRefused),
            ),
            (
                Error::AlertReceived(Alert::UnknownCA),
                Reason::ClientCertificateRefused,
                Some(Reason::ClientCertificateRefused),
            ),
            (Error::AlertReceived(Alert::ProtocolVersion), Reason::TlsIncompatible, None),
            (Error::AlertReceived(Alert::InternalError), Reason::TlsAlert, None),
            (Error::General("x".to_owned()), Reason::TlsProtocolError, None),
        ] {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            assert_eq!(Reason::of_handshake(&error), at_handshake, "{error}");
            assert_eq!(Reason::of_connection(&error), later.unwrap_or(Reason::ConnectionClosed), "{error}");
        }
        let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert_eq!(Reason::of_handshake(&closed), Reason::TlsClosed);
    }

    #[test]
    fn the_log_is_told_of_a_target_now_and_then_and_when_the_reason_changes() {
        use UpstreamError::{ConnectTimeout, ConnectionRefused};
        let now = Instant::now();
        let mut last = None;
        let mut note = |reason, after: u64| {
            LastError::note(&mut last, reason, now + Duration::from_secs(after), || "it is so".to_owned())
        };
        for (reason, after, told) in [
            (ConnectionRefused, 0, true),
            (ConnectionRefused, 1, false),
            (ConnectTimeout, 2, true),
            (ConnectTimeout, 11, false),
            (ConnectTimeout, 12, true),
        ] {
            assert_eq!(note(reason, after), told, "{reason:?} {after}");
        }
    }

    #[test]
    fn the_log_has_few_lines_for_an_upstream_and_counts_the_others() {
        let now = Instant::now();
        let errors = UpstreamErrors::new(now);
        for _ in 0..LINES {
            assert_eq!(errors.may_write(now), Some(0));
        }
        assert_eq!((errors.may_write(now), errors.may_write(now)), (None, None));
        errors.suppress();
        assert_eq!(errors.may_write(now + WINDOW), Some(3));
        assert_eq!(errors.may_write(now + WINDOW), Some(0));
    }
}
