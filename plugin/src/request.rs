use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, request, response};
use signalbox_config::{ClientCertificate, Name};

use crate::clock::Clock;
use crate::consumers::{Consumers, Identity};
use crate::exchange::Exchange;
use crate::metrics::Outcomes;
use crate::outbound::{Forwarding, Outbound};

/// A request on its way through the plugins.
#[non_exhaustive]
pub struct PluginRequest<'r> {
    /// Its head: as the client sent it, less the hop-by-hop headers and those that only plugins vouch for.
    pub head: &'r mut request::Parts,
    /// The route that took it.
    pub route: &'r Name,
    /// The listener that it came by.
    pub listener: &'r Name,
    /// The upstream that it goes to; `None`: the route answers it itself.
    pub upstream: Option<&'r Name>,
    /// The id that the proxy gave it, or kept of a trusted peer. A plugin may have chosen another: see [`PluginRequest::id`].
    pub own_id: &'r [u8],
    /// The `X-Request-Id` of a peer that is not trusted, which is not in the head.
    pub claimed_id: Option<&'r HeaderValue>,
    /// True if the peer is a proxy that the listener trusts.
    pub is_peer_trusted: bool,
    /// The client's address, as far as it can be trusted.
    pub client: IpAddr,
    /// True if the client speaks TLS.
    pub https: bool,
    /// The client's verified certificate; `None`: it presented none.
    pub certificate: Option<&'r ClientCertificate>,
    /// Monotonic time since some moment before the process served requests: it never jumps.
    pub now: Duration,
    /// The time, also that of day.
    pub clock: &'r Clock,
    /// The size of the body; `None`: it is not known before it arrives.
    pub body_size: Option<u64>,
    /// True if the client asks for another protocol (WebSocket, `CONNECT`): if the target agrees, bytes follow that no plugin sees.
    pub asks_for_switch: bool,
    /// True if the plugin runs in shadow, so that only its `on_request` is called.
    pub is_shadow: bool,
    /// All consumers of this request's revision.
    pub consumers: &'r Consumers,
    /// Calls to services, under this request's revision.
    pub outbound: &'r Outbound,
    /// The state that outlives the request phase.
    pub exchange: &'r mut Exchange,
    pub(crate) forwarding: Option<&'r dyn Forwarding>,
    pub(crate) outcomes: Option<&'r Outcomes>,
    pub(crate) worker: usize,
}

impl PluginRequest<'_> {
    /// Notes who the client is, and tells the upstream by headers. It replaces an identity that was noted before.
    pub fn authenticate(&mut self, identity: Identity) {
        let defers = self.exchange.defers_identity;
        if self.exchange.identity.replace(identity).is_some() && !defers {
            for name in &Consumers::HEADERS {
                self.head.headers.remove(name);
            }
        }
        if !defers {
            self.write_identity();
        }
    }

    /// The id of the request, as it is in the access log.
    pub fn id(&self) -> &[u8] {
        self.exchange.request_id.as_ref().map_or(self.own_id, HeaderValue::as_bytes)
    }

    /// Counts an outcome of this plugin, one of [`Definition::OUTCOMES`](crate::Definition::OUTCOMES).
    pub fn count(&self, outcome: &'static str) {
        if let Some(outcomes) = self.outcomes {
            outcomes.count(self.worker, outcome);
        }
    }

    /// This request without its body, as a target of the upstream would get it now: with the rewrites of the route, and with the
    /// headers that the proxy adds. It can be sent by an [`Outbound`] when the exchange is over. `None`: the route forwards nothing.
    pub fn as_forwarded(&self) -> Option<Request<Bytes>> {
        let head = self.forwarding?.forwarded(self.head, self.exchange)?;
        Some(Request::from_parts(head, Bytes::new()))
    }

    pub(crate) fn write_identity(&mut self) {
        for (name, value) in self.exchange.identity.iter().flat_map(Identity::headers) {
            self.head.headers.insert(name, value.clone());
        }
    }
}

/// A request that no route takes.
#[non_exhaustive]
pub struct UnroutedRequest<'r> {
    /// Its head: as in [`PluginRequest::head`].
    pub head: &'r request::Parts,
    /// See [`PluginRequest::own_id`].
    pub own_id: &'r [u8],
    /// See [`PluginRequest::claimed_id`].
    pub claimed_id: Option<&'r HeaderValue>,
    /// See [`PluginRequest::is_peer_trusted`].
    pub is_peer_trusted: bool,
    /// The state that the response phase finds.
    pub exchange: &'r mut Exchange,
}

impl UnroutedRequest<'_> {
    /// The id of the request, as it is in the access log.
    pub fn id(&self) -> &[u8] {
        self.exchange.request_id.as_ref().map_or(self.own_id, HeaderValue::as_bytes)
    }
}

/// A response on its way back through the plugins.
#[non_exhaustive]
pub struct PluginResponse<'r> {
    /// Its head.
    pub head: &'r mut response::Parts,
    /// The party that made it.
    pub origin: Origin,
    /// True if `on_request` of this plugin was called for the request. It was not where the request was answered before.
    pub saw_request: bool,
    /// The size of the body; `None`: it is not known.
    pub size: Option<u64>,
    /// The head of the request, as it was sent on; of a request that was answered before that, as it was then.
    pub request: &'r request::Parts,
    /// The route that took the request; `None`: none did, or it was refused before.
    pub route: Option<&'r Name>,
    /// The time, also that of day.
    pub clock: &'r Clock,
    /// Calls to services, under this request's revision.
    pub outbound: &'r Outbound,
    /// The state that the request phase left.
    pub exchange: &'r mut Exchange,
    pub(crate) outcomes: Option<&'r Outcomes>,
    pub(crate) worker: usize,
}

/// The party that made a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A target of the upstream.
    Upstream,
    /// A plugin.
    Plugin,
    /// The proxy: it refused the request, the upstream failed, or the route itself answers.
    Proxy,
}

impl PluginResponse<'_> {
    /// Counts an outcome of this plugin, one of [`Definition::OUTCOMES`](crate::Definition::OUTCOMES).
    pub fn count(&self, outcome: &'static str) {
        if let Some(outcomes) = self.outcomes {
            outcomes.count(self.worker, outcome);
        }
    }
}
