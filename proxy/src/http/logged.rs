//! The data of an exchange that only the access log needs.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Uri, Version, header, request};
use signalbox_config::Name;
use signalbox_plugin::{Exchange as PluginNotes, LogRecord};

use crate::telemetry::access_log::{self, ListenerLog, Parts, without_user};
use crate::upstream::Target;

/// The data that is kept for the access log alone.
#[derive(Default)]
pub(super) struct Logged {
    pub(super) head: access_log::Head,
    /// The parts of heads, in the place of `head`, for a listener with settings of its own.
    pub(super) parts: Option<Box<Parts>>,
    /// In hexadecimal digits.
    pub(super) trace_id: Option<[u8; 32]>,
    /// The same of the request's span, if that is exported.
    pub(super) span_id: Option<[u8; 16]>,
    pub(super) target: Option<Arc<Target>>,
    pub(super) consumer: Option<Name>,
}

impl Logged {
    /// Copies the logged parts of `head` into `memory`. `own` are the listener's settings, if it has any.
    pub(super) fn new(memory: Vec<u8>, head: &request::Parts, own: Option<&ListenerLog>) -> Self {
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
        let host = without_user(host);
        let protocol = match head.version {
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        };
        let user_agent = user_agent.map_or(&b""[..], HeaderValue::as_bytes);
        let (method, path) = (head.method.as_str(), head.uri.path());
        let Some(own) = own else {
            let head = access_log::Head::new(memory, method, host, path, protocol, user_agent);
            return Self { head, ..Self::default() };
        };
        let whole = head.uri.path_and_query().filter(|_| own.settings.query.is_some());
        let path = whole.map_or(path, |whole| whole.as_str());
        let mut parts = Parts::new(memory, method, host, path, protocol, user_agent);
        for name in &own.settings.request_headers {
            let values = head.headers.get_all(name).iter().map(HeaderValue::as_bytes);
            parts.push_header(name, own.settings.query.as_deref(), values);
        }
        Self { parts: Some(Box::new(parts)), ..Self::default() }
    }

    /// Copies the response headers that `own` shows. Those of plugins are in their notes.
    pub(super) fn keep_response(
        &mut self,
        own: &ListenerLog,
        headers: &HeaderMap,
        notes: Option<&PluginNotes>,
    ) {
        let Some(parts) = &mut self.parts else { return };
        for name in &own.settings.response_headers {
            let is_replaced = notes.is_some_and(|notes| notes.replaces(name));
            let targets = headers.get_all(name).iter().filter(|_| !is_replaced);
            let added = notes.into_iter().flat_map(PluginNotes::response_headers);
            let added = added.filter(|(added, _)| *added == name).map(|(_, value)| value);
            let values = targets.chain(added).map(HeaderValue::as_bytes);
            parts.push_header(name, own.settings.query.as_deref(), values);
        }
    }

    /// Returns its memory, for the next head.
    pub(super) fn into_memory(self) -> Vec<u8> {
        match self.parts {
            Some(parts) => parts.into_memory(),
            None => self.head.into_memory(),
        }
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
