//! The final step of a response: its headers are set for the client, and its body is framed.

use std::future::poll_fn;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, response};
use signalbox_config::Action;
use signalbox_plugin::Origin;

use super::exchange::Exchange;
use super::head;
use super::problem;
use super::reply::{Content, Reply};
use super::response_body::ResponseBody;
use super::switch::{self, Switch};
use super::tunnel::Tunnel;
use crate::core::filters::Filters;
use crate::telemetry::StreamKind;
use crate::upstream::{Switched, TargetBody};

/// The maximum number of empty frames that a target may send where no body is allowed.
const MAX_EMPTY_FRAMES: usize = 8;

/// Prepares a response's headers for the plugins.
#[inline]
pub(super) fn prepare(reply: &mut Reply, exchange: &Exchange) {
    let Reply { parts, content, origin } = reply;
    match content {
        Content::Whole(body) => {
            head::prepare_response(&mut parts.headers);
            if exchange.request.is_grpc && *origin != Origin::Upstream {
                problem::to_grpc(parts, body);
                exchange.read_grpc_status(&parts.headers);
            }
        }
        Content::Target(_) => prepare_target(parts, exchange, None),
        // The answer to a CONNECT is the proxy's own.
        Content::Switched(_) if exchange.request.switch == Some(Switch::Connect) => {}
        Content::Switched(_) => prepare_target(parts, exchange, exchange.request.switch.as_ref()),
    }
}

/// The same for a target's response. `switch` is the protocol switch that it agrees to.
#[inline]
fn prepare_target(parts: &mut response::Parts, exchange: &Exchange, switch: Option<&Switch>) {
    let has_connection_fields = exchange.request.downstream.features().has_connection_fields;
    let required = switch::required(parts, has_connection_fields);
    head::prepare_response(&mut parts.headers);
    if let Some(protocols) = required {
        switch::require(&mut parts.headers, protocols);
    }
    if parts.status == StatusCode::NO_CONTENT {
        // RFC 9110, section 8.6: clients of HTTP/2 would take the response for incomplete.
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    if let Some(switch) = switch {
        switch.confirm(parts, has_connection_fields);
    }
}

/// Completes a response's headers, after the plugins.
#[inline]
pub(super) fn finalise(reply: &mut Reply, exchange: &mut Exchange) {
    if let Some(cookie) = exchange.attempts.set_cookie.take()
        && reply.origin == Origin::Upstream
    {
        reply.parts.headers.append(header::SET_COOKIE, *cookie);
    }
    add_headers(&mut reply.parts.headers, exchange);
}

/// Adds the headers that every response has.
#[inline]
fn add_headers(headers: &mut HeaderMap, exchange: &Exchange) {
    let request = &exchange.request;
    if request.downstream.says_close() && !(request.switch.is_some() && headers.contains_key(header::UPGRADE))
    {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Combines a response with its body, which passes `filters` and ends the exchange. `is_head`: the request's method is HEAD.
#[inline]
pub(super) fn frame(
    reply: Reply,
    filters: Option<Box<Filters>>,
    mut exchange: Box<Exchange>,
    is_head: bool,
) -> Response<ResponseBody> {
    let Reply { mut parts, content, .. } = reply;
    // A plugin may have taken the body away that another one filters.
    let filters = filters.filter(|_| !is_head && !has_no_body(parts.status));
    let body = match content {
        Content::Whole(mut body) => {
            let may_change = filters.as_ref().is_some_and(|filters| filters.may_change());
            frame_whole(&mut parts, &mut body, is_head, !may_change);
            ResponseBody::whole(body, filters, exchange)
        }
        Content::Target(body) => {
            // Most responses have a length, and then no header has to be found.
            if body.size_hint().exact().is_none() && is_event_stream(&parts.headers) {
                exchange.becomes_stream(StreamKind::Events);
            }
            ResponseBody::target(body, filters, exchange)
        }
        Content::Switched(target) => ResponseBody::tunnel(tunnel(*target, exchange)),
    };
    Response::from_parts(parts, body)
}

/// True for the type of server-sent events.
fn is_event_stream(headers: &HeaderMap) -> bool {
    let media = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let essence = media.split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
}

/// Sets the length of a response in memory, unless a filter may change it, and drops the body where none is allowed (RFC 9112,
/// section 6.3).
fn frame_whole(parts: &mut response::Parts, body: &mut Bytes, is_head: bool, has_length: bool) {
    let bodiless = has_no_body(parts.status);
    if has_length && !body.is_empty() && !bodiless && !parts.headers.contains_key(header::CONTENT_LENGTH) {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    if is_head || bodiless {
        body.clear();
    }
}

/// True for statuses without a body: RFC 9110, section 6.4.1.
pub(super) fn has_no_body(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Reads the end of a stream that must not have a body.
pub(super) async fn read_end(exchange: &Exchange, body: &mut TargetBody) {
    for _ in 0..MAX_EMPTY_FRAMES {
        // The result does not change the response.
        let part = exchange.in_time(poll_fn(|cx| body.poll(cx))).await;
        if !matches!(part, Ok(Some(Ok(_)))) {
            return;
        }
    }
}

/// Builds the tunnel after both sides have agreed to switch to another protocol, which `target` speaks.
fn tunnel(target: Switched, mut exchange: Box<Exchange>) -> Box<Tunnel> {
    exchange.release_load();
    exchange.becomes_stream(StreamKind::Tunnel);
    let idle_timeout = exchange.request.route().and_then(|route| match &route.route().action {
        Action::Forward(forward) => forward.idle_timeout,
        Action::Redirect(_) | Action::Respond(_) => None,
    });
    Box::new(Tunnel::new(exchange, target, idle_timeout))
}
