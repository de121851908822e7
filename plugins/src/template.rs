//! Texts with placeholders for parts of a request or its response: `https://{request.host}{request.path}`.
//!
//! A template is read once, when its plugin is built. A placeholder whose part is not there has no value, and then the template has
//! none either, unless the placeholder has a default: `{request.header.x-user|nobody}`.

use std::net::IpAddr;

use http::header::{AUTHORIZATION, COOKIE, HOST, PROXY_AUTHORIZATION, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, request};
use signalbox_plugin::{Identity, PluginRequest, PluginResponse};

use crate::headers::only;
use crate::query;

/// A text with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Box<[Part]>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Value { source: Source, default: Option<Box<str>> },
}

/// A part of a request or response.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Method,
    Scheme,
    Host,
    Path,
    Query,
    Parameter(Box<str>),
    Header(HeaderName),
    Cookie(Box<str>),
    RequestId,
    ClientIp,
    ConsumerName,
    RouteName,
    ResponseStatus,
    ResponseHeader(HeaderName),
}

/// The message that a template is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// A request.
    Request,
    /// A response. Its request is known, too, but not all that the proxy knew of the client.
    Response,
}

/// The values of the placeholders of one exchange.
#[derive(Clone, Copy)]
pub(crate) struct Values<'v> {
    head: &'v request::Parts,
    identity: Option<&'v Identity>,
    route: Option<&'v str>,
    client: Option<Client<'v>>,
    response: Option<&'v http::response::Parts>,
}

/// The facts that are known only on the way in.
#[derive(Clone, Copy)]
struct Client<'v> {
    address: IpAddr,
    scheme: &'static str,
    id: &'v [u8],
}

/// The writing of values into the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// As they are.
    Plain,
    /// Percent-encoded, but for the path and the query of the request, which are encoded already.
    Url,
}

/// The largest text that a template may become, in bytes.
pub(crate) const MAX_RENDERED: usize = 8 << 10;

impl Template {
    /// Reads a template. `{{` and `}}` stand for braces.
    pub(crate) fn parse(text: &str, side: Side) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            literal.push_str(before);
            if let Some(behind) = from.strip_prefix("{{") {
                literal.push('{');
                rest = behind;
            } else if let Some(behind) = from.strip_prefix("}}") {
                literal.push('}');
                rest = behind;
            } else {
                let inner =
                    from.strip_prefix('{').ok_or("has a } without a {; write }} for the character")?;
                let (inner, behind) =
                    inner.split_once('}').ok_or("has a { without a }; write {{ for the character")?;
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal).into()));
                }
                parts.push(placeholder(inner, side)?);
                rest = behind;
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal.into()));
        }
        Ok(Self(parts.into()))
    }

    /// The text, if there is no placeholder in it.
    pub(crate) fn as_fixed(&self) -> Option<&str> {
        match &*self.0 {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The text outside of placeholders, and their defaults.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Text(text) => Some(&**text),
            Part::Value { default, .. } => default.as_deref(),
        })
    }

    /// True if it begins with this text, or with the path of the request, which begins with `/`.
    pub(crate) fn begins_as_path(&self) -> bool {
        match self.0.first() {
            Some(Part::Text(text)) => text.starts_with('/'),
            Some(Part::Value { source, .. }) => *source == Source::Path,
            None => false,
        }
    }

    /// True if it has a header of authentication, a cookie, or the whole query.
    pub(crate) fn may_show_credentials(&self) -> bool {
        self.0.iter().any(|part| match part {
            Part::Value { source: Source::Header(name) | Source::ResponseHeader(name), .. } => {
                [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE, SET_COOKIE].contains(name)
            }
            Part::Value { source, .. } => matches!(source, Source::Cookie(_) | Source::Query),
            Part::Text(_) => false,
        })
    }

    /// The text with its values. `None`: a placeholder has neither value nor default, or the text is longer than
    /// [`MAX_RENDERED`].
    pub(crate) fn render(&self, values: &Values<'_>, encoding: Encoding) -> Option<Vec<u8>> {
        self.write(values, encoding, false)
    }

    /// The same with an empty text for what has no value.
    pub(crate) fn render_or_empty(&self, values: &Values<'_>, encoding: Encoding) -> Option<Vec<u8>> {
        self.write(values, encoding, true)
    }

    fn write(&self, values: &Values<'_>, encoding: Encoding, allows_missing: bool) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Value { source, default } => {
                    if !values.write(source, encoding, &mut out) {
                        match default {
                            Some(default) => out.extend_from_slice(default.as_bytes()),
                            None if allows_missing => {}
                            None => return None,
                        }
                    }
                }
            }
            if out.len() > MAX_RENDERED {
                return None;
            }
        }
        Some(out)
    }
}

/// Reads what stands between braces.
fn placeholder(inner: &str, side: Side) -> Result<Part, String> {
    let (name, default) = match inner.split_once('|') {
        Some((name, default)) => (name, Some(default.into())),
        None => (inner, None),
    };
    let header = |name: &str| {
        name.parse::<HeaderName>().map_err(|_| format!("{{{inner}}}: {name:?} is not the name of a header"))
    };
    let named = |name: &str| match name {
        "" => Err(format!("{{{inner}}} lacks a name")),
        name => Ok(name.into()),
    };
    let source = match name {
        "request.method" => Source::Method,
        "request.host" => Source::Host,
        "request.path" => Source::Path,
        "request.query" => Source::Query,
        "consumer.name" => Source::ConsumerName,
        "route.name" => Source::RouteName,
        "request.scheme" if side == Side::Request => Source::Scheme,
        "request.id" if side == Side::Request => Source::RequestId,
        "client.ip" if side == Side::Request => Source::ClientIp,
        "response.status" if side == Side::Response => Source::ResponseStatus,
        _ => {
            if let Some(name) = name.strip_prefix("request.header.") {
                Source::Header(header(name)?)
            } else if let Some(name) = name.strip_prefix("request.query.") {
                Source::Parameter(named(name)?)
            } else if let Some(name) = name.strip_prefix("request.cookie.") {
                Source::Cookie(named(name)?)
            } else if let Some(name) =
                name.strip_prefix("response.header.").filter(|_| side == Side::Response)
            {
                Source::ResponseHeader(header(name)?)
            } else {
                return Err(format!("{{{inner}}} is no placeholder; there are {}", side.placeholders()));
            }
        }
    };
    Ok(Part::Value { source, default })
}

impl Side {
    fn placeholders(self) -> &'static str {
        match self {
            Self::Request => {
                "request.method, .scheme, .host, .path, .query, .query.NAME, .header.NAME, .cookie.NAME, .id, client.ip, \
                 consumer.name and route.name"
            }
            Self::Response => {
                "response.status, response.header.NAME, request.method, .host, .path, .query, .query.NAME, .header.NAME, \
                 .cookie.NAME, consumer.name and route.name"
            }
        }
    }
}

impl<'v> Values<'v> {
    /// The values of a request.
    pub(crate) fn of_request(request: &'v PluginRequest<'_>) -> Self {
        Self {
            head: request.head,
            identity: request.exchange.identity.as_ref(),
            route: Some(request.route.as_str()),
            client: Some(Client { address: request.client, scheme: scheme(request), id: request.id() }),
            response: None,
        }
    }

    /// The values of a response.
    pub(crate) fn of_response(response: &'v PluginResponse<'_>) -> Self {
        Self {
            head: response.request,
            identity: response.exchange.identity.as_ref(),
            route: response.route.map(signalbox_config::Name::as_str),
            client: None,
            response: Some(response.head),
        }
    }

    /// Appends the value of a placeholder. False: it has none.
    fn write(&self, source: &Source, encoding: Encoding, out: &mut Vec<u8>) -> bool {
        let Self { head, identity, route, client, response } = self;
        let mut put = |value: &[u8]| {
            match encoding {
                Encoding::Plain => out.extend_from_slice(value),
                Encoding::Url => out.extend(query::encode_bytes(value).flat_map(str::bytes)),
            }
            true
        };
        match source {
            Source::Method => put(head.method.as_str().as_bytes()),
            Source::Host => host(head).is_some_and(|host| put(host.as_bytes())),
            Source::Parameter(name) => parameter(head, name).is_some_and(|value| put(&value)),
            Source::Header(name) => header(&head.headers, name, *identity).is_some_and(put),
            Source::Cookie(name) => cookie(&head.headers, name).is_some_and(put),
            Source::ConsumerName => identity.is_some_and(|it| put(it.consumer.name.as_str().as_bytes())),
            Source::RouteName => route.is_some_and(|name| put(name.as_bytes())),
            Source::Scheme => client.is_some_and(|client| put(client.scheme.as_bytes())),
            Source::RequestId => client.is_some_and(|client| put(client.id)),
            Source::ClientIp => client.is_some_and(|client| put(client.address.to_string().as_bytes())),
            Source::ResponseStatus => response.is_some_and(|head| put(head.status.as_str().as_bytes())),
            Source::ResponseHeader(name) => {
                response.and_then(|head| only(&head.headers, name)).is_some_and(|value| put(value.as_bytes()))
            }
            // They are encoded as the client has written them.
            Source::Path => {
                out.extend_from_slice(head.uri.path().as_bytes());
                true
            }
            Source::Query => head.uri.query().is_some_and(|query| {
                out.extend_from_slice(query.as_bytes());
                true
            }),
        }
    }
}

/// The scheme of the client's request. The header of a trusted proxy counts; that of another client is not there any more.
pub(crate) fn scheme(request: &PluginRequest<'_>) -> &'static str {
    let forwarded = request.head.headers.get("x-forwarded-proto");
    if forwarded.map_or(request.https, |scheme| scheme == "https") { "https" } else { "http" }
}

/// The host that the client asked for, with its port if it gave one.
pub(crate) fn host(head: &request::Parts) -> Option<&str> {
    let host = match head.uri.authority() {
        Some(authority) => authority.as_str(),
        None => only(&head.headers, &HOST)?.to_str().ok()?,
    };
    Some(host).filter(|host| !host.is_empty())
}

/// The value of a header that is there exactly once. Those about the consumer may not be among the headers of the request.
fn header<'h>(headers: &'h HeaderMap, name: &HeaderName, identity: Option<&'h Identity>) -> Option<&'h [u8]> {
    let of_identity = || identity?.headers().find(|(known, _)| *known == name).map(|(_, value)| value);
    only(headers, name).or_else(of_identity).map(HeaderValue::as_bytes)
}

/// The decoded value of a query parameter that is there exactly once.
pub(crate) fn parameter(head: &request::Parts, name: &str) -> Option<query::Decoded> {
    let mut found = query::parameters(head.uri.query()?).filter(|parameter| parameter.is_named(name));
    found.next().filter(|_| found.next().is_none()).map(query::Parameter::value)
}

/// The value of a cookie that is there exactly once.
pub(crate) fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let pairs = headers.get_all(COOKIE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
    let mut found =
        pairs.filter_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="));
    found.next().filter(|_| found.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Client;

    fn rendered(template: &str, client: &mut Client, encoding: Encoding) -> Option<String> {
        let template = Template::parse(template, Side::Request).unwrap();
        let request = client.request();
        let bytes = template.render(&Values::of_request(&request), encoding)?;
        Some(String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn placeholders_have_the_values_of_the_request() {
        for (template, plain, url) in [
            ("", Some(""), Some("")),
            ("a{{b}}c", Some("a{b}c"), Some("a{b}c")),
            ("{request.method} {request.path}?{request.query}", Some("PUT /a%20b?q=x%26y&d=1&d=2"), None),
            ("{request.host}", Some("h.example:81"), Some("h.example%3A81")),
            ("{request.scheme}", Some("http"), Some("http")),
            ("{request.query.q}", Some("x&y"), Some("x%26y")),
            ("{request.query.d}", None, None),
            ("{request.header.x-a}", Some("1/2"), Some("1%2F2")),
            ("{request.header.X-A}", Some("1/2"), Some("1%2F2")),
            ("{request.header.x-two}", None, None),
            ("{request.header.x-none|a b}", Some("a b"), Some("a b")),
            ("{request.header.x-none|}", Some(""), Some("")),
            ("{request.cookie.sid}", Some("s1"), Some("s1")),
            ("{request.cookie.id}", None, None),
            ("{client.ip}", Some("192.0.2.1"), Some("192.0.2.1")),
            ("{route.name}", Some("route"), Some("route")),
            ("{consumer.name|nobody}", Some("nobody"), Some("nobody")),
        ] {
            let mut client = Client::new("PUT", "/a%20b?q=x%26y&d=1&d=2")
                .header("host", "h.example:81")
                .header("x-a", "1/2")
                .header("x-two", "1")
                .header("x-two", "2")
                .header("cookie", "a=b; sid=s1");
            assert_eq!(rendered(template, &mut client, Encoding::Plain).as_deref(), plain, "{template}");
            if url.is_some() {
                assert_eq!(rendered(template, &mut client, Encoding::Url).as_deref(), url, "{template}");
            }
        }
    }

    #[test]
    fn a_text_that_becomes_too_long_has_no_value() {
        let value = "x".repeat(MAX_RENDERED);
        let mut client = Client::new("GET", "/").header("x-long", &value);
        assert_eq!(rendered("{request.header.x-long}", &mut client, Encoding::Plain), Some(value));
        assert_eq!(rendered("{request.header.x-long}y", &mut client, Encoding::Plain), None);
    }

    #[test]
    fn bad_templates_are_refused() {
        for (bad, message) in [
            ("{", "has a { without"),
            ("a}", "has a } without"),
            ("{}", "{} is no placeholder"),
            ("{request.body}", "{request.body} is no placeholder"),
            ("{response.status}", "{response.status} is no placeholder"),
            ("{request.header.a b}", "{request.header.a b}: \"a b\" is not"),
            ("{request.query.}", "{request.query.} lacks a name"),
        ] {
            let error = Template::parse(bad, Side::Request).unwrap_err();
            assert!(error.starts_with(message), "{bad}: {error}");
        }
        assert!(Template::parse("{client.ip}", Side::Response).is_err());
        assert!(Template::parse("{response.status}", Side::Response).is_ok());
    }
}
