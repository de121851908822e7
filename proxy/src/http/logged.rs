//! The data of an exchange that only the access log needs.

use std::sync::Arc;

use http::{HeaderValue, Method, Uri, Version, header, request};
use signalbox_config::Name;
use signalbox_plugin::LogRecord;

use crate::telemetry::access_log;
use crate::upstream::Target;

/// The data that is kept for the access log alone.
#[derive(Default)]
pub(super) struct Logged {
    pub(super) head: access_log::Head,
    /// In hexadecimal digits.
    pub(super) trace_id: Option<[u8; 32]>,
    /// The same of the request's span, if that is exported.
    pub(super) span_id: Option<[u8; 16]>,
    pub(super) target: Option<Arc<Target>>,
    pub(super) consumer: Option<Name>,
}

impl Logged {
    /// Copies the logged parts of `head` into `memory`.
    pub(super) fn new(memory: Vec<u8>, head: &request::Parts) -> Self {
        let (mut host, mut user_agent) = (None, None);
        // One pass takes less time than two look-ups.
        for (name, value) in &head.headers {
            if *name == header::HOST {
                host.get_or_insert(value);
            } else if *name == header::USER_AGENT {
                user_agent.get_or_insert(value);
            }
        }
        let host = match head.uri.authority() {
            Some(authority) => authority.as_str().as_bytes(),
            None => host.map_or(&b""[..], HeaderValue::as_bytes),
        };
        let protocol = match head.version {
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        };
        let user_agent = user_agent.map_or(&b""[..], HeaderValue::as_bytes);
        let (method, path) = (head.method.as_str(), head.uri.path());
        let head = access_log::Head::new(memory, method, host, path, protocol, user_agent);
        Self { head, ..Self::default() }
    }

    /// Creates the entry of an exchange without a head.
    pub(super) fn without_head() -> Self {
        Self { head: access_log::Head::new(Vec::new(), "", b"", "", "", b""), ..Self::default() }
    }
}

/// The head of a request in the record that plugins see.
pub(super) struct WatchedHead {
    method: Method,
    uri: Uri,
    version: Version,
    host: Option<HeaderValue>,
    user_agent: Option<HeaderValue>,
}

impl WatchedHead {
    pub(super) fn new(head: &request::Parts) -> Self {
        Self {
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
            host: head.headers.get(header::HOST).cloned(),
            user_agent: head.headers.get(header::USER_AGENT).cloned(),
        }
    }

    /// A record that has nothing else.
    pub(super) fn record(&self) -> LogRecord<'_> {
        let mut record = LogRecord::new(&self.method, &self.uri);
        record.version = self.version;
        record.host = self.host.as_ref();
        record.user_agent = self.user_agent.as_ref();
        record
    }
}
