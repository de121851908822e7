use std::time::Duration;

use http::HeaderName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Errors;
use crate::health::between;
use crate::values::HumanDuration;

/// How a target is picked, as people write it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadBalancingSpec {
    /// The policy.
    #[serde(default)]
    pub policy: LoadBalancing,
    /// What ring_hash and maglev know a request by; other policies do not look at it. A request without it is sent
    /// anywhere, by weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<HashOnSpec>,
    /// How long it takes until a target that comes back, or is new, gets its full share: it begins with a tenth. Not for
    /// ring_hash and maglev. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<HumanDuration>,
}

/// How a target is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoadBalancing {
    /// In turn, smoothly weighted.
    #[default]
    RoundRobin,
    /// The less busy of two that are drawn by weight.
    LeastRequest,
    /// Drawn by weight.
    Random,
    /// Of two that are drawn by weight, the one that is faster by its latency of late, its peaks above all, and by how
    /// busy it is.
    PeakEwma,
    /// By a hash of the request; when a target leaves, or its weight changes, only its own keys move.
    RingHash,
    /// By a hash of the request, more evenly; when a target leaves, a few other keys move too.
    Maglev,
}

/// What a request is known by, as people write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HashOnSpec {
    /// A header's value.
    Header(String),
    /// A cookie, which is set when the request has none.
    Cookie(CookieSpec),
    /// A query parameter's value.
    Query(String),
    /// The client's address.
    SourceIp,
    /// The consumer's name, as a plugin found it.
    Consumer,
}

/// A cookie as people write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CookieSpec {
    /// Its name.
    pub name: String,
    /// For which paths it is set; default `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// How long it lasts; default: as long as the browser's session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<HumanDuration>,
}

/// What a request is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HashOn {
    /// A header.
    Header(HeaderName),
    /// A cookie.
    Cookie {
        /// A token: RFC 6265, section 4.1.1.
        name: Box<str>,
        /// What follows the value when it is set: `; Path=/; HttpOnly`.
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
    /// Whether it needs a hash of the request.
    pub fn hashes(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }
}

impl LoadBalancingSpec {
    /// What requests are known by, where the policy asks for it, and how long a slow start takes.
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
