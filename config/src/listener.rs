use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Errors, FieldError};
use crate::values::{ByteSize, HumanDuration};

/// A listener as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerSpec {
    /// Unique among listeners.
    pub name: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// For people and selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Which fleets get it; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleets: Option<Vec<String>>,
    /// IP address and port: `0.0.0.0:8080`, `[::]:8080`. A proxy's `--listener NAME=ADDRESS` overrides it.
    pub address: String,
    /// What is spoken: HTTP/1.1, and HTTP/2 with prior knowledge.
    #[serde(default)]
    pub protocol: ListenerProtocol,
    /// What a client may send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsSpec>,
}

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ListenerProtocol {
    /// Cleartext HTTP/1.1 and HTTP/2 with prior knowledge.
    #[default]
    Http,
}

/// What a client of a listener may send, as people write it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsSpec {
    /// Request line and headers together; default 64KiB, at most 1MiB. Beyond: 431.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_size: Option<ByteSize>,
    /// Number of header fields; default 100, at most 1000. Beyond: 431.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_count: Option<u16>,
    /// Request body; absent: no limit, for bodies are streamed. Beyond: 413.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_size: Option<ByteSize>,
    /// From the first byte of a request's head to its last; default 15s. Beyond: 408.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_timeout: Option<HumanDuration>,
    /// How long a connection may stay without a request; default 75s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<HumanDuration>,
}

/// A listener.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listener {
    /// Where it listens, unless the proxy overrides it.
    pub address: SocketAddr,
    /// What it speaks.
    pub protocol: ListenerProtocol,
    /// What a client may send.
    pub limits: Limits,
}

/// What a client of a listener may send.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Request line and headers together, bytes.
    pub header_size: usize,
    /// Number of header fields.
    pub header_count: usize,
    /// Request body, bytes; `None`: no limit.
    pub body_size: Option<u64>,
    /// For the head of a request.
    pub header_timeout: Duration,
    /// Between requests.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_size: 64 << 10,
            header_count: 100,
            body_size: None,
            header_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(75),
        }
    }
}

impl ListenerSpec {
    pub(crate) fn parse(&self) -> Result<Listener, Vec<FieldError>> {
        let mut errors = Errors::default();
        let address = match self.address.parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 => {
                errors.push("address", "needs a port other than 0");
                None
            }
            Ok(address) => Some(address),
            Err(_) => {
                errors.push("address", "must be an IP address and a port, like 0.0.0.0:8080 or [::]:8080");
                None
            }
        };
        let limits = self.limits.as_ref().map_or_else(Limits::default, |spec| spec.parse(&mut errors));
        errors.finish(address.map(|address| Listener { address, protocol: self.protocol, limits }))
    }
}

impl LimitsSpec {
    fn parse(&self, errors: &mut Errors) -> Limits {
        let default = Limits::default();
        let header_size = self.header_size.map_or(default.header_size, |size| size.0 as usize);
        // hyper's read buffer cannot be smaller than 8 KiB.
        if !(8 << 10..=1 << 20).contains(&header_size) {
            errors.push("limits.header_size", "must be from 8KiB to 1MiB");
        }
        let header_count = self.header_count.map_or(default.header_count, usize::from);
        if !(1..=1000).contains(&header_count) {
            errors.push("limits.header_count", "must be from 1 to 1000");
        }
        let mut timeout = |field: &str, value: Option<HumanDuration>, default: Duration| {
            let value = value.map_or(default, |value| value.0);
            if value < Duration::from_millis(10) || value > Duration::from_secs(3600) {
                errors.push(format_args!("limits.{field}"), "must be from 10ms to 1h");
            }
            value
        };
        Limits {
            header_size,
            header_count,
            body_size: self.body_size.map(|size| size.0),
            header_timeout: timeout("header_timeout", self.header_timeout, default.header_timeout),
            idle_timeout: timeout("idle_timeout", self.idle_timeout, default.idle_timeout),
        }
    }
}
