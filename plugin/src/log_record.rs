use std::any::Any;
use std::time::Duration;

use http::{HeaderValue, Method, StatusCode, Uri, Version};

use crate::exchange::{Kept, PluginKey};
use crate::metrics::Outcomes;

/// An exchange that has ended, as far as the proxy knows it: what its access log has.
///
/// An empty text stands for an absent value.
#[derive(Debug)]
#[non_exhaustive]
pub struct LogRecord<'r> {
    /// The request's method.
    pub method: &'r Method,
    /// Its target, as the first plugin saw it.
    pub uri: &'r Uri,
    /// The version of HTTP that the client speaks.
    pub version: Version,
    /// The host that the client asked for.
    pub host: Option<&'r HeaderValue>,
    /// The client's user agent.
    pub user_agent: Option<&'r HeaderValue>,
    /// The time at which the request's head was complete, since 1970.
    pub time: Duration,
    /// The request's id.
    pub request_id: &'r [u8],
    /// The id of its trace.
    pub trace_id: &'r [u8],
    /// The id of its span, if the proxy exports that.
    pub span_id: &'r [u8],
    /// The client's address.
    pub client: &'r [u8],
    /// The status of the response.
    pub status: StatusCode,
    /// The response flags.
    pub flags: &'r str,
    /// The route.
    pub route: &'r str,
    /// The upstream.
    pub upstream: &'r str,
    /// The reason why the target did not answer.
    pub upstream_error: &'r str,
    /// The target.
    pub target: &'r str,
    /// The number of times that the request was sent.
    pub attempts: u8,
    /// The time from the head of the request to the end of the response.
    pub duration: Duration,
    /// The time that the target took for the head of its response.
    pub upstream_duration: Option<Duration>,
    /// The bytes of the request's body.
    pub bytes_in: u64,
    /// The bytes of the response's body.
    pub bytes_out: u64,
    /// The consumer.
    pub consumer: &'r str,
    /// The plugin that answered or failed.
    pub plugin: &'r str,
    /// The answers that plugins in shadow would have given.
    pub shadow: &'r str,
    /// The revision.
    pub revision: u64,
    pub(crate) scope: Scope<'r>,
}

/// The state of the plugin whose hook is called.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Scope<'r> {
    pub(crate) kept: Option<(&'r Kept, PluginKey)>,
    pub(crate) outcomes: Option<(&'r Outcomes, usize)>,
}

impl<'r> LogRecord<'r> {
    /// The record of an exchange of which nothing else is known.
    pub fn new(method: &'r Method, uri: &'r Uri) -> Self {
        Self {
            method,
            uri,
            version: Version::HTTP_11,
            host: None,
            user_agent: None,
            time: Duration::ZERO,
            request_id: b"",
            trace_id: b"",
            span_id: b"",
            client: b"",
            status: StatusCode::OK,
            flags: "",
            route: "",
            upstream: "",
            upstream_error: "",
            target: "",
            attempts: 0,
            duration: Duration::ZERO,
            upstream_duration: None,
            bytes_in: 0,
            bytes_out: 0,
            consumer: "",
            plugin: "",
            shadow: "",
            revision: 0,
            scope: Scope::default(),
        }
    }

    /// The state that this plugin left in the exchange. A client that goes away while a plugin waits takes it along.
    pub fn get<T: Any>(&self) -> Option<&T> {
        let (kept, key) = self.scope.kept?;
        kept.get(key)
    }

    /// Counts an outcome of this plugin, one of [`Definition::OUTCOMES`](crate::Definition::OUTCOMES).
    pub fn count(&self, outcome: &'static str) {
        if let Some((outcomes, worker)) = self.scope.outcomes {
            outcomes.count(worker, outcome);
        }
    }
}
