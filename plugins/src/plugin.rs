use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, request, response};
use serde::Serialize;
use signalbox_config::Name;
use smallvec::SmallVec;

use crate::consumers::{Consumers, Identity};

/// A named, configured step in the request's way. One instance serves all workers at once.
///
/// The hooks are called on the data path: they must not block, and the routine request should cost no allocation.
pub trait Plugin: Send + Sync + 'static {
    /// Sees the head of a request before it is sent on.
    fn on_request<'a>(&'a self, _request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        Flow::Continue
    }

    /// The most of a request's body this plugin wants to have in memory, bytes; `None`: it does not want the body,
    /// which is then streamed. A larger body is answered 413.
    fn request_body_cap(&self) -> Option<usize> {
        None
    }

    /// Sees the whole body of a request, when [`Plugin::request_body_cap`] asks for it, after `on_request`.
    fn on_request_body<'a>(&'a self, _request: &'a mut PluginRequest<'_>, _body: &'a mut Bytes) -> Flow<'a> {
        Flow::Continue
    }

    /// Whether [`Plugin::on_response`] is to be called.
    fn wants_response(&self) -> bool {
        false
    }

    /// Sees the head of a response before it goes to the client; in the reverse order of the chain.
    fn on_response(&self, _response: &mut PluginResponse<'_>) {}
}

/// When a plugin is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The head of the request.
    RequestHeaders,
    /// Its body.
    RequestBody,
    /// The head of the response.
    ResponseHeaders,
    /// Its body.
    ResponseBody,
    /// After all.
    Log,
}

/// What becomes of a request.
pub enum Flow<'a> {
    /// It goes on.
    Continue,
    /// It is answered here.
    Respond(Box<Reply>),
    /// It is not known yet. Must not resolve to `Wait` again.
    Wait(LocalBoxFuture<'a, Flow<'static>>),
}

/// A plugin's own answer.
#[derive(Debug)]
pub enum Reply {
    /// An error, which the proxy writes as problem+json with the request's id.
    Problem {
        /// 4xx or 5xx.
        status: StatusCode,
        /// What was wrong, for the client.
        detail: Cow<'static, str>,
        /// Further headers, `WWW-Authenticate`.
        headers: HeaderMap,
    },
    /// An answer as it stands.
    Response(http::Response<Bytes>),
}

impl Reply {
    /// An error without further headers.
    pub fn problem(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::Problem { status, detail: detail.into(), headers: HeaderMap::new() }
    }
}

impl From<Reply> for Flow<'_> {
    fn from(reply: Reply) -> Self {
        Flow::Respond(Box::new(reply))
    }
}

/// A request on its way through the plugins.
pub struct PluginRequest<'r> {
    /// Its head: as the client sent it, less the hop-by-hop headers and those that only plugins vouch for.
    pub head: &'r mut request::Parts,
    /// The route that took it.
    pub route: &'r Name,
    /// The client's address, as far as it can be trusted.
    pub client: IpAddr,
    /// Monotonic time since some moment before the process served requests: it never jumps.
    pub now: Duration,
    /// All consumers of this request's revision.
    pub consumers: &'r Consumers,
    /// What outlives the request phase.
    pub exchange: &'r mut Exchange,
}

impl PluginRequest<'_> {
    /// Notes who the client is, and tells the upstream by headers.
    pub fn authenticate(&mut self, identity: Identity) {
        identity.write_headers(&mut self.head.headers);
        self.exchange.identity = Some(identity);
    }
}

/// What is known of a request and its response beyond their heads.
#[derive(Debug, Default)]
pub struct Exchange {
    /// Who the client is, once a plugin has found out.
    pub identity: Option<Identity>,
    response_headers: SmallVec<[(HeaderName, HeaderValue, Placement); 6]>,
}

#[derive(Debug, Clone, Copy)]
enum Placement {
    Set,
    Append,
}

impl Exchange {
    /// Sets a header on whatever answer goes to the client, the proxy's own errors included.
    pub fn set_response_header(&mut self, name: HeaderName, value: HeaderValue) {
        self.response_headers.push((name, value, Placement::Set));
    }

    /// Adds a header beside those of its name (`Vary`).
    pub fn append_response_header(&mut self, name: HeaderName, value: HeaderValue) {
        self.response_headers.push((name, value, Placement::Append));
    }

    /// Puts those headers on an answer. The proxy calls it once, after the `on_response` hooks.
    pub fn write_response_headers(&mut self, headers: &mut HeaderMap) {
        for (name, value, placement) in self.response_headers.drain(..) {
            match placement {
                Placement::Set => headers.insert(name, value).map_or((), drop),
                Placement::Append => drop(headers.append(name, value)),
            }
        }
    }
}

/// A response on its way back through the plugins.
pub struct PluginResponse<'r> {
    /// Its head.
    pub head: &'r mut response::Parts,
    /// The route that took the request.
    pub route: &'r Name,
    /// What the request phase left.
    pub exchange: &'r mut Exchange,
}
