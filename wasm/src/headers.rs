//! The headers that modules see, and the rules for changing them.
//!
//! A module sees `:method`, `:path`, `:authority` and `:scheme` among the headers of a request, and `:status` among those of a
//! response. `Host` is the same as `:authority`.

use bytes::Bytes;
use http::header::HOST;
use http::uri::{Authority, PathAndQuery};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, request, response,
};
use signalbox_config::arrival;
use smallvec::SmallVec;

use crate::pairs::{MAX_PAIRS, Pair};
use crate::status::Status;

/// A value on its way to a module.
pub(crate) type Text = SmallVec<[u8; 128]>;
/// Pairs on their way to a module.
pub(crate) type Pairs<'p> = SmallVec<[Pair<'p>; 24]>;

/// The longest value, in bytes.
const MAX_VALUE: usize = 16 << 10;

/// Headers that frame a message or belong to one connection (RFC 9110, section 7.6.1). The proxy writes them itself.
const FRAMING: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Headers, read by a module.
#[derive(Clone, Copy)]
pub(crate) enum Map<'m> {
    Request {
        head: &'m request::Parts,
        https: bool,
    },
    Response(&'m response::Parts),
    /// Headers of an answer to a call, with its status.
    Answer(&'m StatusCode, &'m HeaderMap),
    Fields(&'m HeaderMap),
}

/// Headers that a module may change.
pub(crate) enum MapMut<'m> {
    Request(&'m mut request::Parts),
    Response(&'m mut response::Parts),
    Fields(&'m mut HeaderMap),
}

/// The effect of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Add,
    Replace,
    Remove,
}

enum Rule {
    Free,
    /// A change has no effect. Modules often remove `content-length` when they change a body, and the proxy does that anyway.
    Ignored,
    /// Only the proxy says it.
    Refused,
}

fn scheme(https: bool) -> &'static [u8] {
    if https { b"https" } else { b"http" }
}

fn authority(head: &request::Parts) -> Option<&[u8]> {
    match head.uri.authority() {
        Some(authority) => Some(authority.as_str().as_bytes()),
        None => head.headers.get(HOST).map(HeaderValue::as_bytes),
    }
}

impl<'m> Map<'m> {
    fn fields(self) -> &'m HeaderMap {
        match self {
            Self::Request { head, .. } => &head.headers,
            Self::Response(head) => &head.headers,
            Self::Answer(_, fields) | Self::Fields(fields) => fields,
        }
    }

    /// The number of pairs.
    pub(crate) fn len(self) -> u32 {
        let fields = self.fields().len();
        let all = match self {
            Self::Request { head, .. } => {
                fields + 3 + usize::from(authority(head).is_some())
                    - head.headers.get_all(HOST).iter().count()
            }
            Self::Response(_) | Self::Answer(..) => fields + 1,
            Self::Fields(_) => fields,
        };
        u32::try_from(all).unwrap_or(u32::MAX)
    }

    /// All pairs.
    pub(crate) fn pairs(self) -> Pairs<'m> {
        let mut pairs = Pairs::new();
        let is_request = matches!(self, Self::Request { .. });
        match self {
            Self::Request { head, https } => {
                pairs.push((b":method", head.method.as_str().as_bytes()));
                pairs.push((b":path", path(head)));
                pairs.push((b":scheme", scheme(https)));
                pairs.extend(authority(head).map(|authority| (&b":authority"[..], authority)));
            }
            Self::Response(response::Parts { status, .. }) | Self::Answer(status, _) => {
                pairs.push((b":status", status.as_str().as_bytes()));
            }
            Self::Fields(_) => {}
        }
        let fields = self.fields().iter().filter(|(name, _)| !is_request || **name != HOST);
        pairs.extend(fields.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())));
        pairs
    }

    /// The value of a name; several are joined by commas.
    pub(crate) fn get(self, name: &[u8]) -> Option<Text> {
        let text = |bytes: &[u8]| Some(Text::from_slice(bytes));
        match (self, name) {
            (Self::Request { head, .. }, b":method") => return text(head.method.as_str().as_bytes()),
            (Self::Request { head, .. }, b":path") => return text(path(head)),
            (Self::Request { https, .. }, b":scheme") => return text(scheme(https)),
            (Self::Request { head, .. }, b":authority") => return authority(head).and_then(text),
            (Self::Request { head, .. }, name) if name.eq_ignore_ascii_case(b"host") => {
                return authority(head).and_then(text);
            }
            (Self::Response(response::Parts { status, .. }) | Self::Answer(status, _), b":status") => {
                return text(status.as_str().as_bytes());
            }
            _ => {}
        }
        let name = HeaderName::from_bytes(name).ok()?;
        let mut values = self.fields().get_all(name).iter();
        let mut joined = Text::from_slice(values.next()?.as_bytes());
        for value in values {
            joined.push(b',');
            joined.extend_from_slice(value.as_bytes());
        }
        Some(joined)
    }
}

fn path(head: &request::Parts) -> &[u8] {
    head.uri.path_and_query().map_or(&b""[..], |path| path.as_str().as_bytes())
}

impl MapMut<'_> {
    fn rule(&self, name: &HeaderName) -> Rule {
        let is_vouched = || {
            arrival::CONSUMER.contains(name)
                || arrival::CLIENT_CERTIFICATE.contains(name)
                || arrival::TOLD.contains(name)
                || arrival::tells_otherwise(name.as_str())
                || arrival::is_misspelt(name.as_str())
        };
        match self {
            _ if FRAMING.contains(&name.as_str()) => Rule::Ignored,
            Self::Request(_) if is_vouched() => Rule::Refused,
            _ => Rule::Free,
        }
    }

    fn fields(&mut self) -> &mut HeaderMap {
        match self {
            Self::Request(head) => &mut head.headers,
            Self::Response(head) => &mut head.headers,
            Self::Fields(fields) => fields,
        }
    }

    /// Changes one header. A refused change has no effect.
    pub(crate) fn change(&mut self, change: Change, name: &[u8], value: &[u8]) -> Result<(), Status> {
        let is_host = matches!(self, Self::Request(_)) && name.eq_ignore_ascii_case(b"host");
        if name.starts_with(b":") || is_host {
            return match change {
                Change::Remove => Err(Status::BadArgument),
                Change::Add | Change::Replace => {
                    self.set_pseudo(if is_host { b":authority" } else { name }, value)
                }
            };
        }
        let name = HeaderName::from_bytes(name).map_err(|_| Status::BadArgument)?;
        match self.rule(&name) {
            Rule::Free => {}
            Rule::Ignored => return Ok(()),
            Rule::Refused => return Err(Status::BadArgument),
        }
        let fields = self.fields();
        if change == Change::Remove {
            fields.remove(name);
            return Ok(());
        }
        let value = field_value(value)?;
        if fields.len() >= MAX_PAIRS {
            return Err(Status::BadArgument);
        }
        match change {
            Change::Add => fields.try_append(name, value).map(drop),
            Change::Replace | Change::Remove => fields.try_insert(name, value).map(drop),
        }
        .map_err(|_| Status::BadArgument)
    }

    fn set_pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), Status> {
        let bad = Status::BadArgument;
        match (self, name) {
            (Self::Request(head), b":method") => {
                head.method =
                    Method::from_bytes(value).ok().filter(|method| *method != Method::CONNECT).ok_or(bad)?;
            }
            (Self::Request(head), b":path") => {
                if !value.starts_with(b"/") || value.len() > MAX_VALUE {
                    return Err(bad);
                }
                let mut parts = head.uri.clone().into_parts();
                parts.path_and_query = Some(PathAndQuery::try_from(value).map_err(|_| bad)?);
                head.uri = Uri::from_parts(parts).map_err(|_| bad)?;
            }
            (Self::Request(head), b":authority") => {
                let authority = Authority::try_from(value).map_err(|_| bad)?;
                if authority.as_str().contains('@') {
                    return Err(bad);
                }
                let field = field_value(value)?;
                if head.uri.authority().is_some() {
                    let mut parts = head.uri.clone().into_parts();
                    parts.authority = Some(authority);
                    head.uri = Uri::from_parts(parts).map_err(|_| bad)?;
                }
                if head.uri.authority().is_none() || head.headers.contains_key(HOST) {
                    head.headers.insert(HOST, field);
                }
            }
            // The proxy knows how the client has come.
            (Self::Request(_), b":scheme") => {}
            (Self::Response(head), b":status") => {
                head.status = StatusCode::from_bytes(value)
                    .ok()
                    .filter(|status| (200..600).contains(&status.as_u16()))
                    .ok_or(bad)?;
            }
            _ => return Err(bad),
        }
        Ok(())
    }

    /// Puts `pairs` in the place of all headers but those that only the proxy changes. If it refuses one, nothing changes.
    pub(crate) fn set_all(&mut self, pairs: &[Pair<'_>]) -> Result<(), Status> {
        let is_request = matches!(self, Self::Request(_));
        let mut kept = self.fields().clone();
        let is_free =
            |name: &&HeaderName| matches!(self.rule(name), Rule::Free) && !(is_request && **name == HOST);
        let free: Vec<HeaderName> = kept.keys().filter(is_free).cloned().collect();
        free.iter().for_each(|name| drop(kept.remove(name)));
        match self {
            Self::Request(head) => {
                let mut changed = head.clone();
                changed.headers = kept;
                MapMut::Request(&mut changed).add_all(pairs)?;
                **head = changed;
            }
            Self::Response(head) => {
                let mut changed = head.clone();
                changed.headers = kept;
                MapMut::Response(&mut changed).add_all(pairs)?;
                **head = changed;
            }
            Self::Fields(fields) => {
                MapMut::Fields(&mut kept).add_all(pairs)?;
                **fields = kept;
            }
        }
        Ok(())
    }

    fn add_all(&mut self, pairs: &[Pair<'_>]) -> Result<(), Status> {
        for (name, value) in pairs {
            let is_kept =
                HeaderName::from_bytes(name).is_ok_and(|name| !matches!(self.rule(&name), Rule::Free));
            if !is_kept {
                self.change(Change::Add, name, value)?;
            }
        }
        Ok(())
    }
}

fn field_value(value: &[u8]) -> Result<HeaderValue, Status> {
    if value.len() > MAX_VALUE {
        return Err(Status::BadArgument);
    }
    HeaderValue::from_bytes(value).map_err(|_| Status::BadArgument)
}

/// The response that a module sends by itself.
pub(crate) fn local_response(
    status: u32,
    pairs: &[Pair<'_>],
    body: Bytes,
) -> Result<Response<Bytes>, Status> {
    let status = u16::try_from(status).ok().filter(|status| (200..600).contains(status));
    let status = status.and_then(|status| StatusCode::from_u16(status).ok()).ok_or(Status::BadArgument)?;
    let mut fields = HeaderMap::new();
    let named = pairs.iter().filter(|(name, _)| !name.starts_with(b":"));
    named
        .into_iter()
        .try_for_each(|(name, value)| MapMut::Fields(&mut fields).change(Change::Add, name, value))?;
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    Ok(response)
}

/// The request of a call to a service.
pub(crate) fn call_request(pairs: &[Pair<'_>], body: Bytes) -> Result<Request<Bytes>, Status> {
    let bad = Status::BadArgument;
    let pseudo = |wanted: &[u8]| pairs.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
    let method = pseudo(b":method").and_then(|method| Method::from_bytes(method).ok()).ok_or(bad)?;
    let path = pseudo(b":path").filter(|path| path.starts_with(b"/")).ok_or(bad)?;
    let path = PathAndQuery::try_from(path).map_err(|_| bad)?;
    let authority = pseudo(b":authority").ok_or(bad)?;
    Authority::try_from(authority).map_err(|_| bad)?;
    if method == Method::CONNECT {
        return Err(bad);
    }
    let mut fields = HeaderMap::new();
    for (name, value) in pairs.iter().filter(|(name, _)| !name.starts_with(b":")) {
        if !name.eq_ignore_ascii_case(b"host") {
            MapMut::Fields(&mut fields).change(Change::Add, name, value)?;
        }
    }
    fields.insert(HOST, field_value(authority)?);
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = path.into();
    *request.headers_mut() = fields;
    Ok(request)
}
