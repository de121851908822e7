//! Decides who may use the admin server.

use std::net::IpAddr;

use http::{HeaderMap, header};

use crate::admin_token::AdminToken;

/// The client of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A client with the address `ip`, connected to our address `own_ip`. Something on this host may pass on the connections of others, but hardly to
    /// the loopback address.
    Tcp { ip: IpAddr, own_ip: IpAddr },
    /// A process of this host, which may open the Unix socket.
    Unix,
}

/// The rules of an admin server.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Each of them opens everything. If there is none, processes of this host may do everything.
    pub tokens: Vec<AdminToken>,
    /// True if metrics need a token, too.
    pub guards_metrics: bool,
}

/// The reasons why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The request has no token.
    NoToken,
    /// The request has another token.
    WrongToken,
    /// The client is on another host, and there is no token that it could present.
    NotLocal,
}

impl Access {
    /// Checks a request for `path`.
    pub fn check(&self, path: &str, peer: Peer, headers: &HeaderMap) -> Result<(), Denied> {
        // Probes and collectors have no token.
        if matches!(path, "/healthz" | "/readyz") || path == "/metrics" && !self.guards_metrics {
            return Ok(());
        }
        if self.tokens.is_empty() {
            return if peer.is_local() { Ok(()) } else { Err(Denied::NotLocal) };
        }
        let presented = bearer(headers).ok_or(Denied::NoToken)?;
        let presented = AdminToken::of(presented);
        if self.tokens.contains(&presented) { Ok(()) } else { Err(Denied::WrongToken) }
    }
}

impl Denied {
    /// The reason, for a person.
    pub fn detail(self) -> &'static str {
        match self {
            Self::NoToken => "This needs the token of the admin server: Authorization: Bearer TOKEN.",
            Self::WrongToken => "The token is not one of the admin server's.",
            Self::NotLocal => {
                "The proxy has no token for its admin server, so only its own host may do this. Set --admin-token \
                 (SIGNALBOX_PROXY_ADMIN_TOKEN) to allow it from other hosts."
            }
        }
    }
}

impl Peer {
    fn is_local(self) -> bool {
        match self {
            Self::Tcp { ip, own_ip } => [ip, own_ip].iter().all(|ip| ip.to_canonical().is_loopback()),
            Self::Unix => true,
        }
    }
}

/// The token in the header `Authorization`.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use http::HeaderValue;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn access(tokens: &[&str], guards_metrics: bool) -> Access {
        Access { tokens: tokens.iter().map(|token| token.parse().unwrap()).collect(), guards_metrics }
    }

    fn presenting(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
    }

    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const FAR: Peer = Peer::Tcp { ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), own_ip: LOCALHOST };
    const NEAR: Peer = Peer::Tcp { ip: LOCALHOST, own_ip: LOCALHOST };

    #[test]
    fn without_a_token_only_this_host_may_change_or_read() {
        let access = access(&[], false);
        let none = HeaderMap::new();
        let mapped = Peer::Tcp { ip: "::ffff:127.0.0.1".parse().unwrap(), own_ip: LOCALHOST };
        for peer in [NEAR, Peer::Unix, mapped] {
            assert_eq!(access.check("/drain", peer, &none), Ok(()), "{peer:?}");
        }
        for path in ["/drain", "/config", "/revision", "/debug/upstreams", "/debug/pprof/profile", "/other"] {
            assert_eq!(access.check(path, FAR, &none), Err(Denied::NotLocal), "{path}");
        }
        for path in ["/healthz", "/readyz", "/metrics"] {
            assert_eq!(access.check(path, FAR, &none), Ok(()), "{path}");
        }
    }

    #[test]
    fn with_a_token_this_host_needs_it_too() {
        let access = access(&[TOKEN, "another-token-of-16"], false);
        for peer in [NEAR, FAR, Peer::Unix] {
            assert_eq!(access.check("/drain", peer, &HeaderMap::new()), Err(Denied::NoToken));
            assert_eq!(access.check("/drain", peer, &presenting("Bearer wrong")), Err(Denied::WrongToken));
            assert_eq!(
                access.check("/drain", peer, &presenting("Basic 0123456789abcdef")),
                Err(Denied::NoToken)
            );
            for right in ["Bearer 0123456789abcdef", "bearer  another-token-of-16 "] {
                assert_eq!(access.check("/drain", peer, &presenting(right)), Ok(()), "{right}");
            }
        }
        assert_eq!(access.check("/metrics", FAR, &HeaderMap::new()), Ok(()));
    }

    #[test]
    fn metrics_can_be_guarded() {
        let access = access(&[TOKEN], true);
        assert_eq!(access.check("/metrics", NEAR, &HeaderMap::new()), Err(Denied::NoToken));
        assert_eq!(access.check("/readyz", FAR, &HeaderMap::new()), Ok(()));
    }
}
