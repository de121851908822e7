//! Answers requests with a redirect.
//!
//! The location is made of the parts that are configured, and of those of the request for the rest: with `scheme: https` alone, a
//! request goes to the same host, path and query over TLS. A part that is not configured stays as the client asked for it; the port is
//! the exception, for another scheme or host has its own. With neither `scheme`, `host` nor `port` the location is a path on the same
//! server. `location` is a short form for all parts together.
//!
//! `path` and `query` are templates, with the placeholders `{request.method}`, `{request.scheme}`, `{request.host}`, `{request.path}`,
//! `{request.query}`, `{request.query.NAME}`, `{request.header.NAME}`, `{request.cookie.NAME}`, `{request.id}`, `{client.ip}`,
//! `{consumer.name}` and `{route.name}`. What has no value is an empty text, or the text behind `|`: `{request.query.page|1}`. A header,
//! parameter or cookie that is there more than once has no value. `{{` and `}}` stand for braces.
//!
//! No client can choose the host: `host` is a fixed text, values are percent-encoded, and a path that browsers would take for
//! another host (`//evil.example`) is written so that they do not.
//!
//! A request that is already where it would be sent passes, so that `scheme: https` does no harm on a listener with TLS. A `303`
//! still answers other methods than `GET` and `HEAD`, because its client comes back with `GET`. Plugins with a higher order run before.

use std::borrow::Cow;
use std::num::NonZeroU16;

use bytes::Bytes;
use http::header::LOCATION;
use http::{HeaderValue, Method, Response, StatusCode, request};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{Errors, FieldError};
use signalbox_plugin::{Context, Definition, Flow, Plugin, PluginRequest, Reply, hooks};

use crate::origin::is_label;
use crate::template::{Encoding, Side, Template, Values, host, scheme};

/// The location, by its parts or as a whole.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Redirect", example = serde_json::json!({"scheme": "https", "status": 308}),
    example = serde_json::json!({"location": "https://www.example.com/shop{request.path}", "status": 301}),
    example = serde_json::json!({"path": "/search", "query": "q={request.query.term}"}))]
pub(crate) struct Config {
    /// The status: 301, 302, 303, 307 or 308.
    #[serde(default = "default_status")]
    #[schemars(title = "Status")]
    status: u16,
    /// The whole location, a template: `https://HOST/PATH?QUERY` or `/PATH?QUERY`. It takes the place of the fields below. Without a
    /// query it keeps that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Location")]
    location: Option<String>,
    /// The scheme. Absent: that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Scheme")]
    scheme: Option<Scheme>,
    /// The host, without a port. Absent: that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Host")]
    host: Option<String>,
    /// The port. Absent: that of the request, or the usual one of the scheme if `scheme` or `host` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Port", range(min = 1, max = 65535))]
    port: Option<u16>,
    /// The path, a template that begins with `/` or `{request.path}`. Absent: that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Path")]
    path: Option<String>,
    /// The query, a template. Absent: that of the request. Empty: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Query")]
    query: Option<String>,
}

/// The scheme of a location.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Scheme {
    /// Without TLS.
    Http,
    /// With TLS.
    Https,
}

/// Answers requests with a redirect.
pub(crate) struct Redirect {
    status: StatusCode,
    scheme: Option<Scheme>,
    /// Without a port.
    host: Option<Box<str>>,
    port: Option<NonZeroU16>,
    path: Option<Template>,
    query: Option<Template>,
}

#[hooks]
impl Plugin for Redirect {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        let Some(location) = self.location(request) else {
            return Reply::problem(StatusCode::BAD_REQUEST, "the request cannot be redirected").into();
        };
        if location.is_of(request) && !self.changes_method(&request.head.method) {
            return Flow::Continue;
        }
        let Ok(location) = HeaderValue::try_from(location.to_string()) else {
            return Reply::problem(StatusCode::BAD_REQUEST, "the request cannot be redirected").into();
        };
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = self.status;
        response.headers_mut().insert(LOCATION, location);
        Reply::Response(response).into()
    }

    fn uses_consumer_headers(&self) -> bool {
        false
    }
}

impl Definition for Redirect {
    const NAME: &'static str = "redirect";
    const DESCRIPTION: &'static str = "Answers requests with a redirect.";
    const ORDER: i32 = 779;
    const CAN_SHADOW: bool = true;
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        parse(config, errors);
    }

    fn build(config: Config, _: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        let built = parse(&config, &mut errors);
        errors.finish(Some(built))
    }
}

/// A location for one request.
struct Location<'r> {
    /// Scheme and authority; `None`: those of the request, which are not written.
    origin: Option<(&'r str, Cow<'r, str>)>,
    path: Cow<'r, str>,
    query: Option<Cow<'r, str>>,
}

impl Redirect {
    /// The location of a request. `None`: it would be too long, or the request has no host to stay at.
    fn location<'r>(&'r self, request: &'r PluginRequest<'_>) -> Option<Location<'r>> {
        let values = Values::of_request(request);
        let render = |template: &Template| {
            String::from_utf8(template.render_or_empty(&values, Encoding::Url)?).ok().map(Cow::Owned)
        };
        let path = match &self.path {
            Some(template) => render(template)?,
            None => Cow::Borrowed(path(request.head)),
        };
        let query = match &self.query {
            Some(template) => Some(render(template)?).filter(|query| !query.is_empty()),
            None => request.head.uri.query().map(Cow::Borrowed),
        };
        let is_elsewhere = self.scheme.is_some() || self.host.is_some() || self.port.is_some();
        let origin = if is_elsewhere { Some(self.origin(request)?) } else { None };
        Some(Location { origin, path, query })
    }

    /// Scheme and authority of the location.
    fn origin<'r>(&'r self, request: &'r PluginRequest<'_>) -> Option<(&'r str, Cow<'r, str>)> {
        let scheme = self.scheme.map_or_else(|| scheme(request), Scheme::as_str);
        let asked = host(request.head).map(split_port);
        let host = match (&self.host, asked) {
            (Some(host), _) => &**host,
            (None, Some((host, _))) => host,
            (None, None) => return None,
        };
        // A port belongs to the scheme and the host with which it was asked for: others have their own.
        let stays = self.scheme.is_none() && self.host.is_none();
        let asked_port = asked.and_then(|(_, port)| port.parse().ok()).filter(|_| stays);
        let port = self.port.map(NonZeroU16::get).or(asked_port);
        let authority = match port.filter(|port| *port != usual_port(scheme)) {
            Some(port) => Cow::Owned(format!("{host}:{port}")),
            None => Cow::Borrowed(host),
        };
        Some((scheme, authority))
    }

    /// True if a client that follows this redirect sends another method.
    fn changes_method(&self, method: &Method) -> bool {
        self.status == StatusCode::SEE_OTHER && !matches!(*method, Method::GET | Method::HEAD)
    }
}

impl Location<'_> {
    /// True if it is where the request was sent.
    fn is_of(&self, request: &PluginRequest<'_>) -> bool {
        let is_here = self.origin.as_ref().is_none_or(|(to, authority)| {
            let (host, port) = split_port(authority);
            let asked = self::host(request.head).map(split_port).unwrap_or_default();
            let port_of = |port: &str| port.parse().unwrap_or_else(|_| usual_port(to));
            *to == scheme(request) && host.eq_ignore_ascii_case(asked.0) && port_of(port) == port_of(asked.1)
        });
        is_here && self.path == path(request.head) && self.query.as_deref() == request.head.uri.query()
    }
}

impl std::fmt::Display for Location<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.origin {
            Some((scheme, authority)) => write!(f, "{scheme}://{authority}")?,
            // A browser would take what is behind two slashes for a host.
            None if self.path.starts_with("//") || self.path.starts_with("/\\") => f.write_str("/.")?,
            None => {}
        }
        f.write_str(&self.path)?;
        match &self.query {
            Some(query) => write!(f, "?{query}"),
            None => Ok(()),
        }
    }
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

fn usual_port(scheme: &str) -> u16 {
    if scheme == "https" { 443 } else { 80 }
}

/// The path of a request; `OPTIONS *` has none.
fn path(head: &request::Parts) -> &str {
    match head.uri.path() {
        "*" => "/",
        path => path,
    }
}

/// Host and port, which may be missing; the brackets of an IPv6 address stay.
fn split_port(authority: &str) -> (&str, &str) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (authority, ""),
    }
}

/// The parts of a location as they are written. Fields of errors are those of the configuration.
#[derive(Default)]
struct Parts<'c> {
    scheme: Option<Scheme>,
    host: Option<&'c str>,
    port: Option<u16>,
    path: Option<&'c str>,
    query: Option<&'c str>,
}

/// Reads a configuration. Parts that are wrong are missing from the result.
fn parse(config: &Config, errors: &mut Errors) -> Redirect {
    if !matches!(config.status, 301 | 302 | 303 | 307 | 308) {
        errors.push("status", "must be 301, 302, 303, 307 or 308");
    }
    let given = Parts {
        scheme: config.scheme,
        host: config.host.as_deref(),
        port: config.port,
        path: config.path.as_deref(),
        query: config.query.as_deref(),
    };
    let has_parts = given.scheme.is_some()
        || given.host.is_some()
        || given.port.is_some()
        || given.path.is_some()
        || given.query.is_some();
    let (parts, field) = match &config.location {
        Some(_) if has_parts => {
            errors.push("location", "takes the place of scheme, host, port, path and query: give either");
            (given, None)
        }
        Some(location) => match split(location) {
            Ok(parts) => (parts, Some("location")),
            Err(message) => {
                errors.push("location", message);
                (Parts::default(), Some("location"))
            }
        },
        None if !has_parts => {
            errors.push("location", "is needed, or one of scheme, host, port, path and query");
            (given, None)
        }
        None => (given, None),
    };
    let host = parts.host.filter(|host| {
        let is_host = is_host(host);
        if !is_host {
            errors.push(field.unwrap_or("host"), format_args!("{host:?} is not a host name without a port"));
        }
        is_host
    });
    let port = parts.port.and_then(|port| {
        let port = NonZeroU16::new(port);
        if port.is_none() {
            errors.push(field.unwrap_or("port"), "must be from 1 to 65535");
        }
        port
    });
    let mut template = |part: Option<&str>, name: &str, check: fn(&Template) -> Result<(), &'static str>| {
        let parsed = Template::parse(part?, Side::Request);
        let checked = parsed.and_then(|it| check(&it).map(|()| it).map_err(str::to_owned));
        checked.map_err(|message| errors.push(field.unwrap_or(name), message)).ok()
    };
    Redirect {
        status: StatusCode::from_u16(config.status).unwrap_or(StatusCode::FOUND),
        scheme: parts.scheme,
        host: host.map(|host| host.to_ascii_lowercase().into()),
        port,
        path: template(parts.path, "path", check_path),
        query: template(parts.query, "query", check_query),
    }
}

/// Splits a whole location.
fn split(location: &str) -> Result<Parts<'_>, &'static str> {
    let (scheme, rest) = match (location.strip_prefix("https://"), location.strip_prefix("http://")) {
        (Some(rest), _) => (Some(Scheme::Https), rest),
        (None, Some(rest)) => (Some(Scheme::Http), rest),
        (None, None) => (None, location),
    };
    let mut parts = Parts { scheme, ..Parts::default() };
    let mut target = rest;
    if scheme.is_some() {
        let end = rest.find(['/', '?', '{']).unwrap_or(rest.len());
        let (authority, behind) = rest.split_at(end);
        let (host, port) = split_port(authority);
        parts.host = Some(host);
        if authority.ends_with(':') || !port.is_empty() {
            parts.port = Some(port.parse().map_err(|_| "has a port that is not from 1 to 65535")?);
        }
        target = behind;
    } else if rest.starts_with("//") || !rest.starts_with(['/', '{']) {
        return Err("must begin with https://HOST, http://HOST, / or {request.path}");
    }
    let (path, query) = split_query(target);
    parts.path = Some(if path.is_empty() { "/" } else { path });
    parts.query = query;
    Ok(parts)
}

/// Splits a template at the question mark that is in no placeholder.
fn split_query(target: &str) -> (&str, Option<&str>) {
    let mut depth = 0_usize;
    for (at, character) in target.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            '?' if depth == 0 => {
                let (path, query) = target.split_at(at);
                return (path, query.strip_prefix('?'));
            }
            _ => {}
        }
    }
    (target, None)
}

fn check_path(template: &Template) -> Result<(), &'static str> {
    if !template.begins_as_path() {
        return Err("must begin with / or {request.path}");
    }
    if template.texts().any(|text| !is_url_text(text) || text.contains('?')) {
        return Err("has a character that a path cannot have; write it percent-encoded");
    }
    Ok(())
}

fn check_query(template: &Template) -> Result<(), &'static str> {
    if template.texts().all(is_url_text) {
        Ok(())
    } else {
        Err("has a character that a query cannot have; write it percent-encoded")
    }
}

/// True for text that may stand in a path or query as it is.
fn is_url_text(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"#<>\\^`{|}".contains(&byte))
}

/// A name of labels, an IPv4 address, or an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.len() <= 253 && host.as_bytes().split(|byte| *byte == b'.').all(is_label),
    }
}

fn default_status() -> u16 {
    StatusCode::FOUND.as_u16()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testing::{Client, build, refused};

    /// Status and location; `None`: the request passes.
    fn redirected(config: Value, method: &str, uri: &str, headers: &[(&str, &str)]) -> Option<(u16, String)> {
        let mut client = Client::new(method, uri);
        for (name, value) in headers {
            client = client.header(name, value);
        }
        let answer = client.meets(&*build("redirect", config))?;
        let location = answer.headers.get("location").map(|it| it.to_str().unwrap().to_owned());
        Some((answer.status, location.unwrap_or_default()))
    }

    #[test]
    fn a_location_is_made_of_configured_parts_and_those_of_the_request() {
        let host = &[("host", "a.example:8080")][..];
        for (config, uri, location) in [
            (json!({"scheme": "https"}), "/p?q=1", "https://a.example/p?q=1"),
            (json!({"scheme": "https", "port": 8443}), "/p", "https://a.example:8443/p"),
            (json!({"scheme": "https", "port": 443}), "/p", "https://a.example/p"),
            (json!({"port": 81}), "/p", "http://a.example:81/p"),
            (json!({"host": "B.example"}), "/p?q", "http://b.example/p?q"),
            (json!({"host": "[2001:db8::1]"}), "/p", "http://[2001:db8::1]/p"),
            (json!({"path": "/new"}), "/p?q=%20", "/new?q=%20"),
            (json!({"path": "/new{request.path}", "query": ""}), "/p?q", "/new/p"),
            (
                json!({"query": "from={request.path}&to={request.query.q}"}),
                "/p?q=a%26b",
                "/p?from=/p&to=a%26b",
            ),
            (json!({"location": "https://b.example{request.path}"}), "/p?q", "https://b.example/p?q"),
            (json!({"location": "https://b.example:81"}), "/p", "https://b.example:81/"),
            (json!({"location": "https://b.example?q=2"}), "/p?q", "https://b.example/?q=2"),
            (json!({"location": "/x?{request.query}&y={request.header.x-none|0}"}), "/p?q", "/x?q&y=0"),
            (json!({"path": "/x/{request.header.x-none}/y"}), "/p", "/x//y"),
            (json!({"path": "/new"}), "*", "/new"),
        ] {
            let found = redirected(config.clone(), "GET", uri, host).map(|(_, location)| location);
            assert_eq!(found.as_deref(), Some(location), "{config}");
        }
    }

    #[test]
    fn no_client_chooses_the_host() {
        let path = json!({"path": "{request.path}", "query": "x"});
        let param = json!({"path": "/{request.query.next}"});
        for (config, uri, location) in [
            (path, "//evil.example/a", "/.//evil.example/a?x"),
            (json!({"path": "/{request.path}", "query": "x"}), "/evil.example", "/.//evil.example?x"),
            (param.clone(), "/?next=/evil.example", "/%2Fevil.example?next=/evil.example"),
            (param.clone(), "/?next=%5Cevil.example", "/%5Cevil.example?next=%5Cevil.example"),
            (param, "/?next=%0d%0aset-cookie:a", "/%0D%0Aset-cookie%3Aa?next=%0d%0aset-cookie:a"),
            (
                json!({"location": "https://a.example/{request.query.n}"}),
                "/?n=@evil",
                "https://a.example/%40evil?n=@evil",
            ),
            (
                json!({"location": "https://a.example{request.path}"}),
                "//evil.example",
                "https://a.example//evil.example",
            ),
        ] {
            let found = redirected(config.clone(), "GET", uri, &[("host", "a.example")]);
            assert_eq!(found.map(|(_, location)| location).as_deref(), Some(location), "{config} {uri}");
        }
    }

    #[test]
    fn a_request_that_is_already_there_passes() {
        let https = [("host", "A.example:443"), ("x-forwarded-proto", "https")];
        for (config, method, uri, headers, passes) in [
            (json!({"scheme": "https"}), "GET", "/p?q", &https[..], true),
            (json!({"scheme": "https"}), "GET", "/p?q", &https[..1], false),
            (json!({"host": "a.example"}), "GET", "/p", &[("host", "a.example:80")], true),
            (json!({"host": "a.example"}), "GET", "/p", &[("host", "a.example:8080")], false),
            (json!({"path": "/p"}), "GET", "/p?q", &https, true),
            (json!({"path": "/p", "query": ""}), "GET", "/p?q", &https, false),
            (json!({"path": "/p", "status": 303}), "GET", "/p", &https, true),
            (json!({"path": "/p", "status": 303}), "POST", "/p", &https, false),
        ] {
            let found = redirected(config.clone(), method, uri, headers);
            assert_eq!(found.is_none(), passes, "{config} {method} {uri} {found:?}");
        }
    }

    #[test]
    fn what_cannot_be_redirected_is_refused() {
        let long = format!("/?a={}", "x".repeat(9000));
        let config = json!({"query": "{request.query.a}"});
        assert_eq!(redirected(config, "GET", &long, &[]).unwrap().0, 400);
        // There is no host to stay at.
        assert_eq!(redirected(json!({"scheme": "https"}), "GET", "/", &[]).unwrap().0, 400);
    }

    #[test]
    fn bad_configurations_are_refused() {
        for (config, field) in [
            (json!({}), "location: "),
            (json!({"status": 301}), "location: "),
            (json!({"path": "/a", "status": 304}), "status: "),
            (json!({"path": "/a", "location": "/b"}), "location: "),
            (json!({"location": "//evil.example"}), "location: "),
            (json!({"location": "{request.header.x-next}"}), "location: "),
            (json!({"location": "https://{request.host}/"}), "location: "),
            (json!({"location": "https://a.example:0/"}), "location: "),
            (json!({"location": "https://a.example:x/"}), "location: "),
            (json!({"location": "ftp://a.example/"}), "location: "),
            (json!({"location": "https://a b/"}), "location: "),
            (json!({"host": "a.example:80"}), "host: "),
            (json!({"host": ""}), "host: "),
            (json!({"port": 0}), "port: "),
            (json!({"path": "a"}), "path: "),
            (json!({"path": "/a?b"}), "path: "),
            (json!({"path": "/a#b"}), "path: "),
            (json!({"path": "/a\r\nb"}), "path: "),
            (json!({"path": "/{request.header.x|a b}"}), "path: "),
            (json!({"path": "/{body}"}), "path: {body} is no placeholder"),
            (json!({"query": "a=ä"}), "query: "),
        ] {
            let errors = refused("redirect", config.clone());
            assert!(errors.starts_with(field), "{config}: {errors}");
        }
    }
}
