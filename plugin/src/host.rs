//! The functions that only a host of plugins calls: the proxy, and the test harness. It is no part of the promise that the
//! rest of this crate makes to plugins.

use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderValue, request, response};
use signalbox_config::{ClientCertificate, Name};

use crate::clock::Clock;
use crate::consumers::Consumers;
use crate::exchange::Exchange;
pub use crate::exchange::{Kept, PluginKey};
pub use crate::facts::RequestView;
use crate::log_record::{LogRecord, Scope};
use crate::metrics::Outcomes;
use crate::outbound::{Forwarding, Outbound};
use crate::plugin::Plugin;
use crate::request::{Origin, PluginRequest, PluginResponse, UnroutedRequest};

/// The parts of a [`PluginRequest`].
pub struct RequestFields<'r> {
    /// See [`PluginRequest::head`].
    pub head: &'r mut request::Parts,
    /// See [`PluginRequest::route`].
    pub route: &'r Name,
    /// See [`PluginRequest::listener`].
    pub listener: &'r Name,
    /// See [`PluginRequest::upstream`].
    pub upstream: Option<&'r Name>,
    /// See [`PluginRequest::own_id`].
    pub own_id: &'r [u8],
    /// See [`PluginRequest::claimed_id`].
    pub claimed_id: Option<&'r HeaderValue>,
    /// See [`PluginRequest::is_peer_trusted`].
    pub is_peer_trusted: bool,
    /// See [`PluginRequest::client`].
    pub client: IpAddr,
    /// See [`PluginRequest::https`].
    pub https: bool,
    /// See [`PluginRequest::certificate`].
    pub certificate: Option<&'r ClientCertificate>,
    /// See [`PluginRequest::now`].
    pub now: Duration,
    /// See [`PluginRequest::clock`].
    pub clock: &'r Clock,
    /// See [`PluginRequest::body_size`].
    pub body_size: Option<u64>,
    /// See [`PluginRequest::asks_for_switch`].
    pub asks_for_switch: bool,
    /// For [`PluginRequest::as_forwarded`]; `None`: the request goes to no target.
    pub forwarding: Option<&'r dyn Forwarding>,
    /// See [`PluginRequest::consumers`].
    pub consumers: &'r Consumers,
    /// See [`PluginRequest::outbound`].
    pub outbound: &'r Outbound,
    /// See [`PluginRequest::exchange`].
    pub exchange: &'r mut Exchange,
    /// The worker that counts outcomes.
    pub worker: usize,
}

/// The parts of a [`PluginResponse`].
pub struct ResponseFields<'r> {
    /// See [`PluginResponse::head`].
    pub head: &'r mut response::Parts,
    /// See [`PluginResponse::origin`].
    pub origin: Origin,
    /// See [`PluginResponse::size`].
    pub size: Option<u64>,
    /// See [`PluginResponse::request`].
    pub request: &'r request::Parts,
    /// See [`PluginResponse::route`].
    pub route: Option<&'r Name>,
    /// See [`PluginResponse::clock`].
    pub clock: &'r Clock,
    /// See [`PluginResponse::outbound`].
    pub outbound: &'r Outbound,
    /// See [`PluginResponse::exchange`].
    pub exchange: &'r mut Exchange,
    /// The worker that counts outcomes.
    pub worker: usize,
}

/// The key of a plugin's state in an exchange.
#[inline]
pub fn key_of(plugin: &dyn Plugin) -> PluginKey {
    PluginKey(std::ptr::from_ref(plugin).cast::<()>().addr())
}

/// Makes a request for hooks.
#[inline]
pub fn request(fields: RequestFields<'_>) -> PluginRequest<'_> {
    let RequestFields { head, route, upstream, client, https, certificate, now, .. } = fields;
    let RequestFields { clock, body_size, forwarding, consumers, outbound, exchange, worker, .. } = fields;
    let RequestFields { listener, own_id, claimed_id, is_peer_trusted, asks_for_switch, .. } = fields;
    PluginRequest {
        head,
        route,
        listener,
        upstream,
        own_id,
        claimed_id,
        is_peer_trusted,
        client,
        https,
        certificate,
        now,
        clock,
        body_size,
        asks_for_switch,
        is_shadow: false,
        consumers,
        outbound,
        exchange,
        forwarding,
        outcomes: None,
        worker,
    }
}

/// A copy of a request for a plugin that runs in shadow, with a head and an exchange of its own.
pub fn copy_for_shadow<'c>(
    request: &'c PluginRequest<'_>,
    head: &'c mut request::Parts,
    exchange: &'c mut Exchange,
) -> PluginRequest<'c> {
    let PluginRequest { route, upstream, client, https, certificate, now, clock, .. } = *request;
    let PluginRequest { body_size, forwarding, consumers, outbound, outcomes, worker, .. } = *request;
    let PluginRequest { listener, own_id, claimed_id, is_peer_trusted, asks_for_switch, .. } = *request;
    exchange.identity.clone_from(&request.exchange.identity);
    exchange.request_id.clone_from(&request.exchange.request_id);
    PluginRequest {
        head,
        route,
        listener,
        upstream,
        own_id,
        claimed_id,
        is_peer_trusted,
        client,
        https,
        certificate,
        now,
        clock,
        body_size,
        asks_for_switch,
        is_shadow: true,
        consumers,
        outbound,
        exchange,
        forwarding,
        outcomes,
        worker,
    }
}

/// Moves what a plugin in shadow wants kept to the end of the exchange into the real exchange. Everything else is dropped.
pub fn keep_of_shadow(exchange: &mut Exchange, mut shadow: Exchange) {
    exchange.kept.append(shadow.take_kept());
}

/// Makes a response for the hook of `plugin`.
pub fn response<'r>(
    fields: ResponseFields<'r>,
    plugin: &dyn Plugin,
    outcomes: &'r Outcomes,
    saw_request: bool,
) -> PluginResponse<'r> {
    let ResponseFields { head, origin, size, request, route, clock, outbound, exchange, worker } = fields;
    exchange.current = key_of(plugin);
    PluginResponse {
        head,
        origin,
        saw_request,
        size,
        request,
        route,
        clock,
        outbound,
        exchange,
        outcomes: Some(outcomes),
        worker,
    }
}

/// The next hook is one of `plugin`.
#[inline]
pub fn enter<'r>(request: &mut PluginRequest<'r>, plugin: &dyn Plugin, outcomes: &'r Outcomes) {
    request.exchange.current = key_of(plugin);
    request.outcomes = Some(outcomes);
}

/// The parts of an [`UnroutedRequest`].
pub struct UnroutedFields<'r> {
    /// See [`UnroutedRequest::head`].
    pub head: &'r request::Parts,
    /// See [`UnroutedRequest::own_id`].
    pub own_id: &'r [u8],
    /// See [`UnroutedRequest::claimed_id`].
    pub claimed_id: Option<&'r HeaderValue>,
    /// See [`UnroutedRequest::is_peer_trusted`].
    pub is_peer_trusted: bool,
    /// See [`UnroutedRequest::exchange`].
    pub exchange: &'r mut Exchange,
}

/// Makes a request without a route for the hook of `plugin`.
pub fn unrouted<'r>(fields: UnroutedFields<'r>, plugin: &dyn Plugin) -> UnroutedRequest<'r> {
    let UnroutedFields { head, own_id, claimed_id, is_peer_trusted, exchange } = fields;
    exchange.current = key_of(plugin);
    UnroutedRequest { head, own_id, claimed_id, is_peer_trusted, exchange }
}

/// Puts the headers of the identity into the request's head, now and whenever one is noted: a plugin follows that uses them.
pub fn stop_deferring_identity(request: &mut PluginRequest<'_>) {
    if std::mem::take(&mut request.exchange.defers_identity) {
        request.write_identity();
    }
}

/// Takes out the id that a plugin has chosen for the request.
#[inline]
pub fn take_request_id(exchange: &mut Exchange) -> Option<HeaderValue> {
    exchange.request_id.take()
}

/// Takes out what plugins want kept to the end of the exchange.
pub fn take_kept(exchange: &mut Exchange) -> Kept {
    exchange.take_kept()
}

/// Tells a plugin's `on_log` what is its own.
pub fn enter_log<'r>(
    record: &mut LogRecord<'r>,
    key: PluginKey,
    kept: Option<&'r Kept>,
    outcomes: &'r Outcomes,
    worker: usize,
) {
    record.scope = Scope { kept: kept.map(|kept| (kept, key)), outcomes: Some((outcomes, worker)) };
}
