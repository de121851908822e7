//! Proxies that are refused: counted by reason, and logged without flooding the log.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::Metrics;
use crate::store::StoredRole;

/// Why a proxy is refused. Its text is what the proxy is told.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It presents no token.
    NoToken,
    /// Its token is not valid on this replica.
    UnknownToken,
    /// Its token is not for proxies.
    WrongRole {
        /// The name of the token.
        name: Arc<str>,
        /// Its role.
        role: StoredRole,
    },
    /// Its token was valid when it connected, and is no more.
    RevokedToken,
    /// There is no connection over which it could present a token.
    Handshake {
        /// Why.
        reason: Handshake,
        /// The same for people.
        detail: String,
    },
}

/// Why a connection is refused before a word of HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handshake {
    /// The proxy speaks TLS to a port without.
    TlsOnCleartext,
    /// It speaks no TLS to a port with TLS.
    CleartextOnTls,
    /// It has no certificate, and needs one.
    NoCertificate,
    /// Its certificate is not accepted: expired, or of an unknown authority.
    BadCertificate,
    /// It does not accept this control plane's certificate.
    ByClient,
    /// There is no TLS version or cipher in common, or what it says is not TLS.
    Incompatible,
    /// It closed the connection in the handshake.
    Closed,
    /// It took too long.
    Timeout,
}

impl Refusal {
    /// As the metric has it.
    fn reason(&self) -> &'static str {
        match self {
            Self::NoToken => "token_missing",
            Self::UnknownToken => "token_unknown",
            Self::WrongRole { .. } => "token_role",
            Self::RevokedToken => "token_revoked",
            Self::Handshake { reason, .. } => reason.as_str(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoToken => f.write_str("a token is needed: authorization: Bearer TOKEN"),
            Self::UnknownToken => f.write_str("the token is not known to this control plane"),
            Self::WrongRole { name, role } => write!(
                f,
                "the token {name:?} has the role {}, and only proxy and admin open streams",
                role.as_str()
            ),
            Self::RevokedToken => f.write_str("the token was revoked, or is not given any more"),
            Self::Handshake { detail, .. } => f.write_str(detail),
        }
    }
}

impl Handshake {
    fn as_str(self) -> &'static str {
        match self {
            Self::TlsOnCleartext => "tls_on_cleartext",
            Self::CleartextOnTls => "cleartext_on_tls",
            Self::NoCertificate => "no_certificate",
            Self::BadCertificate => "bad_certificate",
            Self::ByClient => "by_client",
            Self::Incompatible => "incompatible",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
        }
    }
}

/// The recent refusals, by address and reason: each is logged at most once in [`Refusals::WINDOW`].
#[derive(Default)]
pub(super) struct Refusals(Mutex<HashMap<(IpAddr, &'static str), LoggedRefusal>>);

struct LoggedRefusal {
    logged_at: Instant,
    /// Since then.
    unlogged: u64,
}

impl Refusals {
    const WINDOW: Duration = Duration::from_secs(60);
    const MAX_ADDRESSES: usize = 10_000;

    /// Counts a refusal, and logs it unless the same was logged a moment ago.
    pub(super) fn record(&self, metrics: &Metrics, peer: SocketAddr, refusal: &Refusal) {
        metrics.xds_refused.increment(refusal.reason());
        if let Some(since_last) = self.is_due(peer.ip(), refusal.reason(), Instant::now()) {
            tracing::warn!(
                %peer,
                reason = refusal.reason(),
                since_last,
                "a proxy was refused: {refusal}"
            );
        }
    }

    /// `Some` if the refusal is to be logged: how many like it were not logged since the last that was.
    fn is_due(&self, peer: IpAddr, reason: &'static str, now: Instant) -> Option<u64> {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.len() >= Self::MAX_ADDRESSES {
            noted.retain(|_, noted| now.duration_since(noted.logged_at) < Self::WINDOW);
            if noted.len() >= Self::MAX_ADDRESSES {
                noted.clear();
            }
        }
        match noted.get_mut(&(peer, reason)) {
            Some(known) if now.duration_since(known.logged_at) < Self::WINDOW => {
                known.unlogged += 1;
                None
            }
            Some(known) => {
                known.logged_at = now;
                Some(std::mem::take(&mut known.unlogged))
            }
            None => {
                noted.insert((peer, reason), LoggedRefusal { logged_at: now, unlogged: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_logged_once_a_minute_for_each_address() {
        let refusals = Refusals::default();
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let now = Instant::now();
        assert_eq!(refusals.is_due(one, "a", now), Some(0));
        for _ in 0..1000 {
            assert_eq!(refusals.is_due(one, "a", now), None);
        }
        assert_eq!(refusals.is_due(one, "b", now), Some(0));
        assert_eq!(refusals.is_due(other, "a", now), Some(0));
        let later = now + Refusals::WINDOW;
        assert_eq!(refusals.is_due(one, "a", later), Some(1000));
        assert_eq!(refusals.is_due(one, "a", later), None);
    }
}
