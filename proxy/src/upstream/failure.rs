//! The reasons why targets do not answer: a bounded set, for the access log, the metrics, the log and
//! `/debug/upstreams`.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustls::{AlertDescription, CertificateError};

use super::http1::Malformed;
use crate::core::failure::Failure;

/// The reason why a target did not answer, or not completely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum UpstreamError {
    /// The target's name has no address.
    NameNotResolved,
    ConnectionRefused,
    /// There was no TCP connection in time.
    ConnectTimeout,
    /// There is no route to the target's host or network.
    Unreachable,
    /// The connection failed for another reason.
    ConnectFailed,
    /// This host has no more files, ports or memory for connections.
    OutOfSockets,
    /// The upstream is at its connection limit.
    TooManyConnections,
    TlsTimeout,
    /// The target closed the connection during the TLS handshake.
    TlsClosed,
    CertificateExpired,
    CertificateNotYetValid,
    /// The certificate is not valid for the target's name.
    CertificateWrongName,
    CertificateUnknownIssuer,
    CertificateRevoked,
    /// The certificate is not trusted for another reason.
    CertificateInvalid,
    /// The target accepts no certificate of the proxy, or not this one.
    ClientCertificateRefused,
    /// The target supports none of the protocols that it was offered (ALPN).
    NoCommonProtocol,
    /// The target shares no TLS version or cipher suite with the proxy.
    TlsIncompatible,
    /// The target ended the handshake with another alert.
    TlsAlert,
    /// The target's bytes are not TLS.
    TlsProtocolError,
    /// The target closed the connection, or it broke.
    ConnectionClosed,
    /// The target's bytes are not HTTP/1.1.
    ResponseMalformed,
    /// The response head exceeds the upstream's `limits`.
    ResponseHeadTooLarge,
    /// The target reset the stream (HTTP/2).
    StreamReset,
    /// The target's bytes are not HTTP/2.
    Http2ProtocolError,
    /// The answer did not begin in the time that the request has.
    ResponseTimeout,
    /// The answer did not begin in the time that one attempt has.
    AttemptTimeout,
    /// The answer did not end in the time that the request has.
    ResponseBodyTimeout,
    /// Nothing of request and answer moved for too long.
    IdleTimeout,
}

/// The limit of time that has passed while a target was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Timeout {
    /// The request's, before there was a connection.
    #[error("there was no connection to the target in the time that the request has")]
    Connect,
    #[error("the target did not begin its answer in the time that the request has")]
    Response,
    #[error("the target did not begin its answer in the time that one attempt has")]
    Attempt,
    #[error("the target did not end its answer in the time that the request has")]
    ResponseBody,
    #[error("the target sent nothing for too long")]
    Idle,
}

impl Timeout {
    /// The one that `failure` came of while the head of an answer was waited for. `None`: it did not come of a time that the target is
    /// given. A client that gives its request little time does not make that a failure of the target, nor does one that is slow to send.
    pub fn before_answer(failure: Failure, has_begun: bool) -> Option<Self> {
        match failure {
            Failure::Timeout if has_begun => Some(Self::Response),
            Failure::Timeout => Some(Self::Connect),
            Failure::AttemptTimeout => Some(Self::Attempt),
            Failure::StreamIdle => Some(Self::Idle),
            _ => None,
        }
    }

    /// The same while the rest of an answer was waited for.
    pub fn after_head(failure: Failure) -> Option<Self> {
        match failure {
            Failure::Timeout => Some(Self::ResponseBody),
            Failure::StreamIdle => Some(Self::Idle),
            _ => None,
        }
    }

    pub fn reason(self) -> UpstreamError {
        match self {
            Self::Connect => UpstreamError::ConnectTimeout,
            Self::Response => UpstreamError::ResponseTimeout,
            Self::Attempt => UpstreamError::AttemptTimeout,
            Self::ResponseBody => UpstreamError::ResponseBodyTimeout,
            Self::Idle => UpstreamError::IdleTimeout,
        }
    }
}

impl UpstreamError {
    pub const ALL: [Self; 29] = [
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
        Self::ResponseTimeout,
        Self::AttemptTimeout,
        Self::ResponseBodyTimeout,
        Self::IdleTimeout,
    ];

    /// The name in logs and metrics.
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
            Self::ResponseTimeout => "response_timeout",
            Self::AttemptTimeout => "attempt_timeout",
            Self::ResponseBodyTimeout => "response_body_timeout",
            Self::IdleTimeout => "idle_timeout",
        }
    }

    /// Classifies the error of a TCP connection attempt.
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

    /// Classifies the error of a TLS handshake.
    pub(super) fn of_handshake(error: &io::Error) -> Self {
        tls_cause(error).map_or(Self::TlsClosed, Self::of_tls)
    }

    /// Classifies the error of an established connection. With TLS 1.3, a target refuses the proxy's certificate only
    /// at this stage.
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

/// True if the alert means that the proxy's certificate is missing or not trusted (RFC 8446, section 6.2).
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

/// The last error of a target.
#[derive(Debug, Clone)]
pub struct LastError {
    pub reason: UpstreamError,
    /// The error with its causes.
    pub detail: Box<str>,
    pub at: Timestamp,
    /// The time of the last log line about the target.
    logged_at: Instant,
}

/// The errors of an upstream's targets, counted by reason, with the limit on its log lines. They are kept over
/// revisions.
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

/// The log has at most a fixed number of lines per upstream in this time, and one per target unless its reason
/// changes.
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

    /// The count of each reason that has occurred.
    pub fn counted(&self) -> impl Iterator<Item = (UpstreamError, u64)> + '_ {
        let counts = UpstreamError::ALL.into_iter().zip(&self.counts);
        counts.map(|(reason, count)| (reason, count.load(Ordering::Relaxed))).filter(|(_, count)| *count > 0)
    }

    /// Asks for permission to write a log line. Returns the number of lines that were suppressed since the last one;
    /// `None` if this line is suppressed.
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

    /// Counts a line that was suppressed because another one said the same a moment ago.
    pub fn suppress(&self) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).suppressed += 1;
    }
}

impl LastError {
    /// Records an error in place of the last one. Returns true if it is to be logged; only then `detail` is called.
    pub fn note(
        last: &mut Option<Self>,
        reason: UpstreamError,
        now: Instant,
        detail: impl FnOnce() -> String,
    ) -> bool {
        let at = Timestamp::now();
        match last {
            Some(last) if last.reason == reason && now.saturating_duration_since(last.logged_at) < WINDOW => {
                last.at = at;
                false
            }
            last => {
                *last = Some(Self { reason, detail: detail().into(), at, logged_at: now });
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
        for (reason, after, logged) in [
            (ConnectionRefused, 0, true),
            (ConnectionRefused, 1, false),
            (ConnectTimeout, 2, true),
            (ConnectTimeout, 11, false),
            (ConnectTimeout, 12, true),
        ] {
            assert_eq!(note(reason, after), logged, "{reason:?} {after}");
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
