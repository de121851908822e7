//! How a client leaves HTTP behind: by `Upgrade` or by CONNECT, of HTTP/1.1 or of HTTP/2.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use h2::ext::Protocol;
use http::header::{self, HeaderName};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, request, response};
use ring::digest;
use signalbox_config::Forward;
use smallvec::SmallVec;

use super::head::{Special, announces_body, elements};
use super::problem::Failure;

/// What a client switches to, if the target agrees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Switch {
    /// This protocol, which the target is asked for by `Upgrade` (RFC 9110, section 7.8).
    Protocol {
        name: HeaderValue,
        /// What the target has to prove that it has read, where the client cannot ask that of it itself.
        key: Option<HeaderValue>,
    },
    /// Bytes, straight to and from a target (RFC 9110, section 9.3.6).
    Connect,
}

/// What a CONNECT asks for.
pub(super) enum Asked {
    /// As an `Upgrade` of HTTP/1.1 does (RFC 8441).
    Protocol(Protocol),
    Connect,
}

const KEY: HeaderName = header::SEC_WEBSOCKET_KEY;
const ACCEPT: HeaderName = header::SEC_WEBSOCKET_ACCEPT;

/// Makes of a CONNECT a head that can be routed: an extended one is a GET, as the same would be over HTTP/1.1; a plain one
/// has the path `/`. `None`: it is none.
pub(super) fn asked(head: &mut request::Parts, special: Special) -> Result<Option<Asked>, Failure> {
    if head.method != Method::CONNECT {
        return Ok(None);
    }
    if special.has_coding() || announces_body(&head.headers, special) {
        return Err(Failure::BadRequest("A CONNECT has no body."));
    }
    if let Some(protocol) = head.extensions.remove::<Protocol>() {
        head.method = Method::GET;
        return Ok(Some(Asked::Protocol(protocol)));
    }
    let mut uri = std::mem::take(&mut head.uri).into_parts();
    uri.scheme = Some(Scheme::HTTP);
    uri.path_and_query = Some(PathAndQuery::from_static("/"));
    head.uri =
        Uri::from_parts(uri).map_err(|_| Failure::BadRequest("The request's target is not a host."))?;
    Ok(Some(Asked::Connect))
}

impl Switch {
    /// What a request is to switch to, if the route that takes it allows that; `forward`: what it does with requests.
    pub(super) fn wanted(
        asked: Option<&Asked>,
        head: &request::Parts,
        special: Special,
        forward: Option<&Forward>,
    ) -> Result<Option<Self>, Failure> {
        match asked {
            // All that the route does not allow is only an offer (`h2c`), which a server may pass over.
            None => Ok(forward
                .and_then(|forward| upgrade(head, special, forward))
                .map(|name| Self::Protocol { name, key: None })),
            Some(Asked::Protocol(protocol)) => {
                let name = forward.and_then(|forward| forward.upgrades_to(protocol.as_str().as_bytes()));
                let name = name.ok_or(Failure::NotImplemented("The protocol is not allowed here."))?;
                let key = (name == "websocket").then(new_key);
                Ok(Some(Self::Protocol { name, key }))
            }
            Some(Asked::Connect) if forward.is_some_and(Forward::connects) => Ok(Some(Self::Connect)),
            Some(Asked::Connect) => Err(Failure::NotImplemented("CONNECT is not allowed here.")),
        }
    }

    /// Asks the target for it.
    pub(super) fn insert(&self, headers: &mut HeaderMap) {
        if let Self::Protocol { name, key } = self {
            insert_upgrade(headers, name.clone());
            if let Some(key) = key {
                headers.insert(KEY, key.clone());
            }
        }
    }

    /// Whether a target that switches protocols switches to this, and to nothing else.
    pub(super) fn is_agreed(&self, headers: &HeaderMap) -> bool {
        let Self::Protocol { name, key } = self else { return false };
        let mut told = headers.get_all(header::UPGRADE).iter();
        let same = told.next().is_some_and(|told| told.as_bytes().eq_ignore_ascii_case(name.as_bytes()));
        let proven = key.as_ref().is_none_or(|key| {
            headers
                .get(ACCEPT)
                .is_some_and(|accept| accept.as_bytes() == accept_of(key.as_bytes()).as_bytes())
        });
        same && told.next().is_none() && proven
    }

    /// Says to the client that both switch.
    pub(super) fn tell(&self, head: &mut response::Parts, http2: bool) {
        // What follows has no length, whatever a target says.
        head.headers.remove(header::CONTENT_LENGTH);
        match self {
            Self::Protocol { .. } if http2 => {
                head.status = StatusCode::OK;
                head.headers.remove(ACCEPT);
            }
            Self::Protocol { name, .. } => insert_upgrade(&mut head.headers, name.clone()),
            Self::Connect => {}
        }
    }
}

/// The first protocol that the client wants to switch to by `Upgrade` and may.
fn upgrade(head: &request::Parts, special: Special, forward: &Forward) -> Option<HeaderValue> {
    let asks = special.has_upgrade()
        && head.version == Version::HTTP_11
        && elements(&head.headers, &header::CONNECTION).any(|it| it.eq_ignore_ascii_case(b"upgrade"));
    if !asks {
        return None;
    }
    elements(&head.headers, &header::UPGRADE).find_map(|protocol| forward.upgrades_to(protocol))
}

/// The protocols to one of which a client of HTTP/1.1 must switch, as an answer with the status 426 says (RFC 9110, section 15.5.22).
/// HTTP/2 has no place for them (RFC 9113, section 8.2.2).
pub(super) fn required(head: &response::Parts, http2: bool) -> Option<SmallVec<[HeaderValue; 1]>> {
    if head.status != StatusCode::UPGRADE_REQUIRED || http2 {
        return None;
    }
    Some(head.headers.get_all(header::UPGRADE).iter().cloned().collect())
}

/// Says to the client that it must switch to one of `protocols`, after what concerned the connection to the target was removed.
pub(super) fn require(headers: &mut HeaderMap, protocols: SmallVec<[HeaderValue; 1]>) {
    for protocol in protocols {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.append(header::UPGRADE, protocol);
    }
}

/// Says that the message is about switching to `protocol`.
fn insert_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// RFC 6455, section 4.1: 16 random bytes.
fn new_key() -> HeaderValue {
    let text = BASE64_STANDARD.encode(fastrand::u128(..).to_ne_bytes());
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("c2lnbmFsYm94LXNpZ25hbA=="))
}

/// What answers the key of a handshake: RFC 6455, section 4.2.2.
pub fn accept_of(key: &[u8]) -> String {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key);
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64_STANDARD.encode(context.finish())
}

#[cfg(test)]
mod tests {
    use http::Request;
    use serde_json::json;
    use signalbox_config::{Action, Body, Kind, Resource};
    use signalbox_plugins::Catalog;

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
            let resource = Resource::parse(Kind::Route, spec, &Catalog).unwrap();
            let Body::Route(route) = resource.body() else { panic!("{resource:?}") };
            let Action::Forward(forward) = &route.action else { panic!("{resource:?}") };
            for version in [Version::HTTP_11, Version::HTTP_10] {
                let request = Request::builder().version(version);
                let request = request.header("connection", connection).header("upgrade", upgrade);
                let (head, ()) = request.body(()).unwrap().into_parts();
                let found = super::upgrade(&head, Special::of(&head.headers), forward);
                let wanted = wanted.filter(|_| version == Version::HTTP_11);
                assert_eq!(found.as_ref().map(|it| it.to_str().unwrap()), wanted, "{connection} {upgrade}");
            }
        }
    }

    #[test]
    fn the_key_of_the_rfc_is_accepted_as_there() {
        assert_eq!(accept_of(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(new_key().len(), 24);
    }
}
