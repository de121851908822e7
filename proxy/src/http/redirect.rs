//! Redirects: those of routes, and those to a route's spelling of a path.

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header, request};
use signalbox_config::Redirect;
use signalbox_config::router::Slash;

use super::exchange::Exchange;
use super::head;
use super::reply::Reply;
use super::rewrite;
use crate::core::failure::Failure;

/// RFC 9110, section 15.4: 301 is used only for methods that all clients keep.
pub(super) fn redirect_slash(slash: Slash, head: &request::Parts) -> Result<Reply, Failure> {
    let status = match head.method {
        Method::GET | Method::HEAD => StatusCode::MOVED_PERMANENTLY,
        _ => StatusCode::PERMANENT_REDIRECT,
    };
    redirect_response(status, &rewrite::slash_location(slash, &head.uri))
}

pub(super) fn redirect_to(
    exchange: &Exchange,
    redirect: &Redirect,
    head: &request::Parts,
    prefix_len: usize,
) -> Result<Reply, Failure> {
    let authority = head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if authority.is_empty()
        && redirect.host.is_none()
        && (redirect.scheme.is_some() || redirect.port.is_some())
    {
        return Err(Failure::BadRequest("The request has no Host header."));
    }
    // The header of a trusted proxy is still there.
    let forwarded_proto = head.headers.get(&head::X_FORWARDED_PROTO);
    let https = forwarded_proto
        .map_or(exchange.request.downstream.https, |forwarded_proto| forwarded_proto == "https");
    let origin = rewrite::Origin { https, authority };
    redirect_response(redirect.status, &rewrite::location(redirect, origin, &head.uri, prefix_len))
}

fn redirect_response(status: StatusCode, location: &str) -> Result<Reply, Failure> {
    let location = HeaderValue::from_str(location).map_err(|_| Failure::Misconfigured)?;
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    response.headers_mut().insert(header::LOCATION, location);
    Ok(Reply::of_proxy(response))
}
