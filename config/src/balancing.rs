use std::time::Duration;

use http::HeaderName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bounds::between;
use crate::error::Errors;
use crate::values::HumanDuration;

/// The policy by which a target is chosen, as people write it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadBalancingSpec {
    /// The load-balancing policy.
    #[serde(default)]
    pub policy: LoadBalancing,
    /// The part of a request that `ring_hash` and `maglev` hash; other policies ignore it. A request without that part goes to any
    /// target, by weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<HashOnSpec>,
    /// The time until a target that is new, or healthy again, gets its full share; it begins with a tenth. Not for `ring_hash` and
    /// `maglev`. Absent: it gets its full share at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<HumanDuration>,
}

/// The policy by which a target is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoadBalancing {
    /// Each target in turn, as often as its weight says.
    #[default]
    RoundRobin,
    /// The one with fewer requests of two targets that are drawn by weight.
    LeastRequest,
    /// A target that is drawn by weight.
    Random,
    /// The one of two targets that are drawn by weight with the lower product of recent latency and requests. Peaks of latency count
    /// most.
    PeakEwma,
    /// The target that a hash of the request leads to. When a target leaves or its weight changes, only its own keys move.
    RingHash,
    /// The target that a hash of the request leads to, with more even shares. When a target leaves, a few other keys move, too.
    Maglev,
}

/// The part of a request that is hashed, as people write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HashOnSpec {
    /// The value of a header.
    Header(String),
    /// The value of a cookie. The proxy sets the cookie if the request does not have it.
    Cookie(CookieSpec),
    /// The value of a query parameter.
    Query(String),
    /// The client's address.
    SourceIp,
    /// The name of the consumer that a plugin authenticated.
    Consumer,
}

/// A cookie as people write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CookieSpec {
    /// The name of the cookie.
    pub name: String,
    /// The path of the cookie; default `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The lifetime of the cookie. Absent: the browser's session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<HumanDuration>,
}

/// The part of a request that is hashed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HashOn {
    /// A header.
    Header(HeaderName),
    /// A cookie.
    Cookie {
        /// A token: RFC 6265, section 4.1.1.
        name: Box<str>,
        /// The text behind the value when the cookie is set: `; Path=/; HttpOnly`.
        attributes: Box<str>,
    },
    /// A query parameter.
    Query(Box<str>),
    /// The client's address.
    SourceIp,
    /// The consumer.
    Consumer,
}

impl LoadBalancing {
    /// True if it needs a hash of the request.
    pub fn hashes(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }
}

impl LoadBalancingSpec {
    /// The part of a request that is hashed, if the policy hashes, and the time of a slow start.
    pub(crate) fn parse(&self, errors: &mut Errors) -> (Option<HashOn>, Option<Duration>) {
        let field = "load_balancing.hash_on";
        let hash_on = self.hash_on.as_ref().and_then(|hash_on| hash_on.parse(field, errors));
        if self.policy.hashes() && self.hash_on.is_none() {
            errors.push(field, "is needed by ring_hash and maglev");
        }
        let slow_start = self
            .slow_start
            .map(|given| between(Some(given), 0, 100, 3_600_000, "load_balancing.slow_start", errors));
        (hash_on.filter(|_| self.policy.hashes()), slow_start.filter(|_| !self.policy.hashes()))
    }
}

impl HashOnSpec {
    fn parse(&self, field: &str, errors: &mut Errors) -> Option<HashOn> {
        Some(match self {
            Self::Header(name) => match HeaderName::from_bytes(name.as_bytes()) {
                Ok(name) => HashOn::Header(name),
                Err(_) => {
                    errors
                        .push(format_args!("{field}.header"), format_args!("{name:?} is not a header name"));
                    return None;
                }
            },
            Self::Cookie(cookie) => {
                let field = format!("{field}.cookie");
                // A cookie's name has the characters of a header's.
                if cookie.name.len() > 256 || HeaderName::from_bytes(cookie.name.as_bytes()).is_err() {
                    errors.push(format_args!("{field}.name"), "is not a cookie name");
                }
                let path = cookie.path.as_deref().unwrap_or("/");
                let fits = |b: u8| b.is_ascii_graphic() && b != b';';
                if !path.starts_with('/') || path.len() > 1024 || !path.bytes().all(fits) {
                    errors.push(format_args!("{field}.path"), "is not a path");
                }
                let mut attributes = format!("; Path={path}");
                if let Some(ttl) = cookie.ttl {
                    let ttl = between(Some(ttl), 0, 1_000, 31_536_000_000, &format!("{field}.ttl"), errors);
                    attributes.push_str(&format!("; Max-Age={}", ttl.as_secs()));
                }
                attributes.push_str("; HttpOnly");
                HashOn::Cookie { name: cookie.name.as_str().into(), attributes: attributes.into() }
            }
            Self::Query(name) => {
                if name.is_empty() || name.len() > 256 {
                    errors.push(format_args!("{field}.query"), "needs from 1 to 256 characters");
                }
                HashOn::Query(name.as_str().into())
            }
            Self::SourceIp => HashOn::SourceIp,
            Self::Consumer => HashOn::Consumer,
        })
    }
}
