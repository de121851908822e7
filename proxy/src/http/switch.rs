//! Protocol switches: by `Upgrade` or by CONNECT, over HTTP/1.1 or HTTP/2.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use h2::ext::Protocol;
use http::header::{self, HeaderName};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, request, response};
use signalbox_config::Forward;
use smallvec::SmallVec;

use super::head::{HeaderFlags, announces_body};
use crate::core::failure::Failure;
use crate::core::fields::elements;
use crate::wire::websocket::accept_of;

/// A protocol switch that the client requests, if the target agrees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Switch {
    /// A switch to this protocol, requested from the target by `Upgrade` (RFC 9110, section 7.8).
    Protocol {
        name: HeaderValue,
        /// The proxy's own WebSocket key, if the client sends none: the target has to prove that it read the
        /// handshake.
        key: Option<HeaderValue>,
    },
    /// Raw bytes to and from a target (RFC 9110, section 9.3.6).
    Connect,
}

/// The kind of a CONNECT request.
pub(super) enum ConnectRequest {
    /// An extended CONNECT, which corresponds to `Upgrade` in HTTP/1.1 (RFC 8441).
    Protocol(Protocol),
    Connect,
}

const KEY: HeaderName = header::SEC_WEBSOCKET_KEY;
const ACCEPT: HeaderName = header::SEC_WEBSOCKET_ACCEPT;

/// Turns a CONNECT into a head that can be routed: an extended one becomes a GET, like its equivalent over HTTP/1.1; a
/// plain one gets the path `/`. Returns `None` if the request is no CONNECT.
pub(super) fn take_connect(
    head: &mut request::Parts,
    flags: HeaderFlags,
) -> Result<Option<ConnectRequest>, Failure> {
    if head.method != Method::CONNECT {
        return Ok(None);
    }
    if flags.has_coding() || announces_body(&head.headers, flags) {
        return Err(Failure::BadRequest("A CONNECT has no body."));
    }
    if let Some(protocol) = head.extensions.remove::<Protocol>() {
        head.method = Method::GET;
        return Ok(Some(ConnectRequest::Protocol(protocol)));
    }
    let mut uri = std::mem::take(&mut head.uri).into_parts();
    uri.scheme = Some(Scheme::HTTP);
    uri.path_and_query = Some(PathAndQuery::from_static("/"));
    head.uri =
        Uri::from_parts(uri).map_err(|_| Failure::BadRequest("The request's target is not a host."))?;
    Ok(Some(ConnectRequest::Connect))
}

impl Switch {
    /// The protocol switch of a request, if its route allows it; `forward` is the route's action.
    pub(super) fn requested(
        connect: Option<&ConnectRequest>,
        head: &request::Parts,
        flags: HeaderFlags,
        forward: Option<&Forward>,
    ) -> Result<Option<Self>, Failure> {
        match connect {
            // A protocol that the route does not allow is only an offer (`h2c`), which a server may ignore.
            None => Ok(forward
                .and_then(|forward| upgrade(head, flags, forward))
                .map(|name| Self::Protocol { name, key: None })),
            Some(ConnectRequest::Protocol(protocol)) => {
                let name = forward.and_then(|forward| forward.upgrades_to(protocol.as_str().as_bytes()));
                let name = name.ok_or(Failure::NotImplemented("The protocol is not allowed here."))?;
                let key = (name == "websocket").then(new_key);
                Ok(Some(Self::Protocol { name, key }))
            }
            Some(ConnectRequest::Connect) if forward.is_some_and(Forward::connects) => {
                Ok(Some(Self::Connect))
            }
            Some(ConnectRequest::Connect) => Err(Failure::NotImplemented("CONNECT is not allowed here.")),
        }
    }

    /// Adds the request for the switch to the target's headers.
    pub(super) fn insert(&self, headers: &mut HeaderMap) {
        if let Self::Protocol { name, key } = self {
            insert_upgrade(headers, name.clone());
            if let Some(key) = key {
                headers.insert(KEY, key.clone());
            }
        }
    }

    /// True if a target's 101 response switches to this protocol, and to nothing else.
    pub(super) fn is_agreed(&self, headers: &HeaderMap) -> bool {
        let Self::Protocol { name, key } = self else { return false };
        let mut upgrades = headers.get_all(header::UPGRADE).iter();
        let same =
            upgrades.next().is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(name.as_bytes()));
        let proven = key.as_ref().is_none_or(|key| {
            headers
                .get(ACCEPT)
                .is_some_and(|accept| accept.as_bytes() == accept_of(key.as_bytes()).as_bytes())
        });
        same && upgrades.next().is_none() && proven
    }

    /// Confirms the switch to the client.
    pub(super) fn confirm(&self, head: &mut response::Parts, has_connection_fields: bool) {
        // The bytes that follow have no length, whatever a target says.
        head.headers.remove(header::CONTENT_LENGTH);
        match self {
            Self::Protocol { .. } if !has_connection_fields => {
                head.status = StatusCode::OK;
                head.headers.remove(ACCEPT);
            }
            Self::Protocol { name, .. } => insert_upgrade(&mut head.headers, name.clone()),
            Self::Connect => {}
        }
    }
}

/// The first allowed protocol that the client requests by `Upgrade`.
fn upgrade(head: &request::Parts, flags: HeaderFlags, forward: &Forward) -> Option<HeaderValue> {
    let asks = flags.has_upgrade()
        && head.version == Version::HTTP_11
        && elements(&head.headers, &header::CONNECTION).any(|it| it.eq_ignore_ascii_case(b"upgrade"));
    if !asks {
        return None;
    }
    elements(&head.headers, &header::UPGRADE).find_map(|protocol| forward.upgrades_to(protocol))
}

/// The protocols to one of which a client of HTTP/1.1 must switch, as a response with the status 426 lists them (RFC
/// 9110, section 15.5.22). HTTP/2 cannot carry them (RFC 9113, section 8.2.2).
pub(super) fn required(
    head: &response::Parts,
    has_connection_fields: bool,
) -> Option<SmallVec<[HeaderValue; 1]>> {
    if head.status != StatusCode::UPGRADE_REQUIRED || !has_connection_fields {
        return None;
    }
    Some(head.headers.get_all(header::UPGRADE).iter().cloned().collect())
}

/// Lists `protocols` for the client, which must switch to one of them, after the fields of the connection to the
/// target were removed.
pub(super) fn require(headers: &mut HeaderMap, protocols: SmallVec<[HeaderValue; 1]>) {
    for protocol in protocols {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.append(header::UPGRADE, protocol);
    }
}

/// Adds the fields for a switch to `protocol`.
fn insert_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// Generates a key of 16 random bytes: RFC 6455, section 4.1.
fn new_key() -> HeaderValue {
    let text = BASE64_STANDARD.encode(fastrand::u128(..).to_ne_bytes());
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("c2lnbmFsYm94LXNpZ25hbA=="))
}

#[cfg(test)]
mod tests {
    use http::Request;
    use serde_json::json;
    use signalbox_config::{Action, Body, Kind, Resource};
    use signalbox_plugins::builtin;

    use super::*;

    #[test]
    fn what_the_route_allows_is_switched_to() {
        let websocket = json!(null);
        for (allowed, connection, upgrade, wanted) in [
            (&websocket, "upgrade", "websocket", Some("websocket")),
            (&websocket, "keep-alive, Upgrade", "h2c, WebSocket", Some("websocket")),
            (&websocket, "keep-alive", "websocket", None),
            (&websocket, "upgrade", "h2c", None),
            (&websocket, "upgrade", "websocket/13", None),
            (&json!([]), "upgrade", "websocket", None),
            (&json!(["connect"]), "upgrade", "websocket, connect", None),
            (&json!(["speech/1", "websocket"]), "upgrade", "a, Speech/1, websocket", Some("speech/1")),
        ] {
            let mut spec = json!({"name": "r", "forward": {"upstreams": [{"name": "u"}]}});
            if !allowed.is_null() {
                spec["forward"]["upgrades"] = allowed.clone();
            }
            let resource = Resource::parse(Kind::Route, spec, builtin()).unwrap();
            let Body::Route(route) = resource.body() else { panic!("{resource:?}") };
            let Action::Forward(forward) = &route.action else { panic!("{resource:?}") };
            for version in [Version::HTTP_11, Version::HTTP_10] {
                let request = Request::builder().version(version);
                let request = request.header("connection", connection).header("upgrade", upgrade);
                let (head, ()) = request.body(()).unwrap().into_parts();
                let found = super::upgrade(&head, HeaderFlags::of(&head.headers), forward);
                let wanted = wanted.filter(|_| version == Version::HTTP_11);
                assert_eq!(found.as_ref().map(|it| it.to_str().unwrap()), wanted, "{connection} {upgrade}");
            }
        }
    }
}
