//! Asks a service of yours whether a request may pass.
//!
//! For each request the proxy sends a check to a target of `upstream`, with that upstream's balancing, health checks, limits, circuit
//! breaker and TLS, and waits for the answer, at most `timeout`.
//!
//! ## Over HTTP
//!
//! The check is `GET` on `path`, without a body. It has the headers of the request (`request_headers` narrows them), each value of a
//! repeated one, and tells the rest in headers: `X-Forwarded-Method`, `X-Forwarded-Proto`, `X-Forwarded-Host`, `X-Forwarded-Uri` (path
//! and query as the route was found by them) and `X-Forwarded-For` (the client's address, as far as it can be trusted). What the
//! client says under these names, or in `Forwarded` and the like, does not reach the service.
//!
//! An answer of `2xx` lets the request pass. Its headers named by `upstream_headers` are put into the request, in the place of what
//! the client sent under these names; where the answer has none, the client's are removed all the same. Those named by
//! `client_headers` are added to the response. Any other answer below `500` goes to the client as it is: status, headers, cookies
//! and body. Redirects are not followed.
//!
//! ## Over gRPC
//!
//! With `grpc: true` the service speaks Envoy's protocol, `envoy.service.auth.v3.Authorization/Check`. The upstream must speak
//! HTTP/2. Headers are sent as bytes in `header_map`, and once more as text in `headers`, values of one name joined by commas. Bytes
//! that are no text are replaced there. A status `OK` lets the request pass, with the changes of `ok_response`. Any other status
//! denies it: with `denied_response`, or with `403`. The service cannot change `Host`, nor headers that frame a message.
//!
//! ## The body of requests
//!
//! With `body` the service also gets the body of the request, up to `body.max_size`. A larger one is answered `413`, or, with
//! `body.allow_partial`, the service gets the first bytes of it. `X-Envoy-Auth-Partial-Body` says if the service sees all of it (`false`)
//! or not (`true`). Over HTTP the check of a request with a body is a `POST` with its `Content-Type`. Over gRPC the body is in
//! `raw_body`, and in `body`, too, if it is UTF-8.
//!
//! Such a request is checked when its body is there: behind the `on_request` of all other plugins, but by its head as it was before
//! them. A plugin behind this one that answers it successfully by itself (`redirect`, `respond`) is overruled: the client gets `403`.
//! With `allow_partial`, the upstream gets a body that is larger than `max_size` in chunks, and it is not sent again by retries.
//!
//! The body of a request that becomes a tunnel (WebSocket, `CONNECT`) is not waited for, nor, with `allow_partial`, that of a gRPC call,
//! which may be a stream that waits for its answer: they are checked by their heads, and are partial. Without `allow_partial` a gRPC
//! stream must end before it is checked. A plugin in shadow checks all requests by their heads.
//!
//! ## When the service fails
//!
//! A service that cannot be reached, does not answer in time, answers `5xx`, or answers what cannot be understood has not denied
//! anything. Then `on_error` decides: `deny` answers `status_on_error`, and `allow` lets the request pass, without any
//! `upstream_headers`.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, FORWARDED, HOST, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, RANGE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, request};
use prost::Message as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use signalbox_config::{ByteSize, Errors, FieldError, HumanDuration, Kind, Name, ResourceKey};
use signalbox_plugin::grpc;
use signalbox_plugin::{
    BodyWish, CallAnswer, CallError, CallLimits, Context, Definition, Flow, Logger, Plugin, PluginRequest,
    PluginResponse, Reply, hooks,
};

use self::protocol::{Append, CheckResponse, Decision, HeaderValueOption};

mod protocol;

/// The service, and what is exchanged with it.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "External authorization", example = serde_json::json!({
    "upstream": "auth", "path": "/check", "upstream_headers": ["x-user"],
}), example = serde_json::json!({"upstream": "auth", "grpc": true, "on_error": "allow"}), example = serde_json::json!({
    "upstream": "auth", "path": "/check", "body": {"max_size": "16KiB"},
}))]
pub(crate) struct Config {
    /// The upstream whose targets are the service.
    #[schemars(title = "Upstream")]
    upstream: String,
    /// The path of checks over HTTP.
    #[serde(default = "default_path")]
    #[schemars(title = "Path")]
    path: String,
    /// Speaks Envoy's gRPC protocol instead.
    #[serde(default)]
    #[schemars(title = "gRPC")]
    grpc: bool,
    /// The headers of the request that the service gets. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Request headers")]
    request_headers: Option<Vec<String>>,
    /// The headers of an allowing answer that the upstream gets. What the client sends under these names is removed.
    #[serde(default)]
    #[schemars(title = "Upstream headers")]
    upstream_headers: Vec<String>,
    /// The headers of an allowing answer that the client gets.
    #[serde(default)]
    #[schemars(title = "Client headers")]
    client_headers: Vec<String>,
    /// The body of requests in checks. Absent: checks have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(title = "Body")]
    body: Option<BodySpec>,
    /// The time to wait for the answer, more than zero.
    #[serde(default = "default_timeout")]
    #[schemars(title = "Timeout")]
    timeout: HumanDuration,
    /// The treatment of requests while the service fails.
    #[serde(default)]
    #[schemars(title = "On error")]
    on_error: OnError,
    /// The status of the response while the service fails, from 400 to 599.
    #[serde(default = "default_status")]
    #[schemars(title = "Status on error", range(min = 400, max = 599))]
    status_on_error: u16,
}

/// The body of requests in checks.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Body of the request")]
struct BodySpec {
    /// The most bytes of a body that the service gets, from 1 to 16MiB.
    #[serde(default = "default_body_size")]
    #[schemars(title = "Max size")]
    max_size: ByteSize,
    /// The service gets the first bytes of a larger body. False: the request is answered 413.
    #[serde(default)]
    #[schemars(title = "Allow partial")]
    allow_partial: bool,
}

/// The treatment of requests while the service fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum OnError {
    /// They are refused.
    #[default]
    Deny,
    /// They pass.
    Allow,
}

/// Asks a service whether a request may pass.
pub(crate) struct ExtAuth {
    upstream: Name,
    /// The target of checks, with a host.
    uri: http::Uri,
    is_grpc: bool,
    request_headers: Option<Box<[HeaderName]>>,
    upstream_headers: Box<[HeaderName]>,
    client_headers: Box<[HeaderName]>,
    limits: CallLimits,
    body: Option<BodyLimit>,
    on_error: OnError,
    status_on_error: StatusCode,
    log: Logger,
}

/// The bodies that the service gets.
#[derive(Clone, Copy)]
struct BodyLimit {
    max_size: usize,
    allow_partial: bool,
}

/// A request that is checked once its body is there: its head at the plugin's turn.
struct Unchecked(Box<request::Parts>);

/// The body in a check.
struct CheckedBody {
    bytes: Bytes,
    is_partial: bool,
}

/// The verdict of the service.
enum Verdict {
    Allowed(Changes),
    Denied(Response<Bytes>),
}

/// The changes of an answer that allows the request.
#[derive(Default)]
struct Changes {
    request: Vec<(Append, HeaderName, HeaderValue)>,
    removed: Vec<HeaderName>,
    response: Vec<(Append, HeaderName, HeaderValue)>,
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{0}")]
    Call(#[from] CallError),
    #[error("the service answered {0}")]
    Status(StatusCode),
    #[error("the gRPC call failed with status {0}")]
    Grpc(String),
    #[error("the answer cannot be understood: {0}")]
    Malformed(Cow<'static, str>),
}

#[hooks]
impl Plugin for ExtAuth {
    fn on_request<'a>(&'a self, request: &'a mut PluginRequest<'_>) -> Flow<'a> {
        let Some(limit) = self.body else {
            return Flow::Wait(Box::pin(self.authorize(request, None, None)));
        };
        if waits_for_body(request, limit) {
            request.exchange.insert(Unchecked(Box::new(request.head.clone())));
            self.remove_claims(request);
            return Flow::Continue;
        }
        let is_partial = request.body_size != Some(0) || request.asks_for_switch;
        let body = CheckedBody { bytes: Bytes::new(), is_partial };
        Flow::Wait(Box::pin(self.authorize(request, None, Some(body))))
    }

    fn request_body(&self, request: &mut PluginRequest<'_>) -> BodyWish {
        match self.body {
            Some(limit) if request.exchange.get::<Unchecked>().is_some() => match limit.allow_partial {
                true => BodyWish::Start(limit.max_size + 1),
                false => BodyWish::Buffered(limit.max_size),
            },
            _ => BodyWish::Pass,
        }
    }

    fn on_request_body<'a>(&'a self, request: &'a mut PluginRequest<'_>, body: &'a mut Bytes) -> Flow<'a> {
        let max_size = self.body.map_or(0, |limit| limit.max_size);
        let checked =
            CheckedBody { bytes: body.slice(..body.len().min(max_size)), is_partial: body.len() > max_size };
        let head = request.exchange.take::<Unchecked>().map(|unchecked| unchecked.0);
        Flow::Wait(Box::pin(self.authorize(request, head, Some(checked))))
    }

    fn on_response<'a>(&'a self, response: &'a mut PluginResponse<'_>) -> Flow<'a> {
        let is_unchecked = response.exchange.take::<Unchecked>().is_some();
        let status = response.head.status;
        if !is_unchecked || status.is_client_error() || status.is_server_error() {
            return Flow::Continue;
        }
        response.count("denied");
        self.log.warn("another plugin answered a request that was not authorized yet");
        Reply::problem(StatusCode::FORBIDDEN, "the request was answered before it was authorized").into()
    }
}

impl Definition for ExtAuth {
    const NAME: &'static str = "ext-auth";
    const DESCRIPTION: &'static str = "Asks a service of yours whether a request may pass.";
    const ORDER: i32 = 1300;
    const CAN_SHADOW: bool = true;
    const OUTCOMES: &'static [&'static str] = &["allowed", "denied", "failed"];
    type Config = Config;

    fn check(config: &Config, errors: &mut Errors) {
        if let Err(message) = config.upstream.parse::<Name>() {
            errors.push("upstream", message);
        } else if uri(config).is_none() {
            errors.push("path", "must be a path that begins with /");
        }
        if config.timeout.0.is_zero() {
            errors.push("timeout", "must be more than zero");
        }
        if !(400..600).contains(&config.status_on_error) {
            errors.push("status_on_error", "must be from 400 to 599");
        }
        let lists = [
            ("request_headers", config.request_headers.as_deref().unwrap_or_default()),
            ("upstream_headers", &config.upstream_headers),
            ("client_headers", &config.client_headers),
        ];
        for (field, names) in lists {
            for (index, name) in names.iter().enumerate() {
                match name.parse::<HeaderName>() {
                    Err(_) => errors.push(format_args!("{field}[{index}]"), "is not the name of a header"),
                    Ok(name) if field != "request_headers" && is_framing(&name) => {
                        errors.push(format_args!("{field}[{index}]"), "is a header that only the proxy sets");
                    }
                    Ok(_) => {}
                }
            }
        }
        if config.body.is_some_and(|body| !BODY_SIZE.contains(&body.max_size.0)) {
            errors.push("body.max_size", "must be from 1 to 16MiB");
        }
        if config.grpc && config.path != default_path() {
            errors.push("path", "is only used without grpc");
        }
    }

    fn references(config: &Config) -> Vec<(ResourceKey, String)> {
        let upstream = config.upstream.parse().ok().map(|name| ResourceKey::new(Kind::Upstream, name));
        upstream.map(|key| (key, "upstream".to_owned())).into_iter().collect()
    }

    fn build(config: Config, context: &Context<'_>) -> Result<Self, Vec<FieldError>> {
        let mut errors = Errors::default();
        Self::check(&config, &mut errors);
        let names = |names: &[String]| names.iter().filter_map(|name| name.parse().ok()).collect();
        let status = StatusCode::from_u16(config.status_on_error);
        let built = config.upstream.parse().ok().zip(uri(&config)).map(|(upstream, uri)| Self {
            upstream,
            uri,
            is_grpc: config.grpc,
            request_headers: config.request_headers.as_deref().map(names),
            upstream_headers: names(&config.upstream_headers),
            client_headers: names(&config.client_headers),
            limits: CallLimits { timeout: config.timeout.0, answer_size: MAX_ANSWER },
            body: config.body.map(|body| BodyLimit {
                max_size: usize::try_from(body.max_size.0).unwrap_or(usize::MAX),
                allow_partial: body.allow_partial,
            }),
            on_error: config.on_error,
            status_on_error: status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
            log: context.log.clone(),
        });
        errors.finish(built)
    }
}

const BODY_SIZE: std::ops::RangeInclusive<u64> = 1..=16 << 20;

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// The most headers of a request after the changes of the service, and their largest size.
const MAX_HEADERS: usize = 200;
const MAX_HEADER_SIZE: usize = 64 << 10;

const PARTIAL_BODY: HeaderName = HeaderName::from_static("x-envoy-auth-partial-body");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

impl ExtAuth {
    /// Decides about a request. `head` is its head where that is not the current one.
    async fn authorize(
        &self,
        request: &mut PluginRequest<'_>,
        head: Option<Box<request::Parts>>,
        body: Option<CheckedBody>,
    ) -> Flow<'static> {
        let head = head.as_deref().unwrap_or(request.head);
        let verdict = match self.is_grpc {
            false => self.ask_http(request, head, body).await,
            true => self.ask_grpc(request, head, body).await,
        };
        self.remove_claims(request);
        match verdict.and_then(|verdict| self.apply(verdict, request)) {
            Ok(None) => {
                request.count("allowed");
                request.exchange.is_personal = true;
                Flow::Continue
            }
            Ok(Some(denied)) => {
                request.count("denied");
                Reply::Response(denied).into()
            }
            Err(error) => {
                request.count("failed");
                self.log.warn(format_args!("the service could not be asked: {error}"));
                match self.on_error {
                    OnError::Allow => Flow::Continue,
                    OnError::Deny => {
                        Reply::problem(self.status_on_error, "the request could not be authorized").into()
                    }
                }
            }
        }
    }

    /// Whatever the service says, the client does not speak in its name.
    fn remove_claims(&self, request: &mut PluginRequest<'_>) {
        for name in &self.upstream_headers {
            request.head.headers.remove(name);
        }
    }

    async fn ask_http(
        &self,
        request: &PluginRequest<'_>,
        head: &request::Parts,
        body: Option<CheckedBody>,
    ) -> Result<Verdict, Failed> {
        let mut check = Request::new(Bytes::new());
        *check.uri_mut() = self.uri.clone();
        *check.headers_mut() = self.shown_headers(head, body.as_ref());
        if let Some(body) = body.filter(|body| !body.bytes.is_empty()) {
            *check.method_mut() = Method::POST;
            *check.body_mut() = body.bytes;
        }
        let headers = check.headers_mut();
        headers.insert(X_FORWARDED_METHOD, value(head.method.as_str())?);
        headers.insert(X_FORWARDED_PROTO, value(scheme(request, head))?);
        if let Some(host) = head.headers.get(HOST) {
            headers.insert(X_FORWARDED_HOST, host.clone());
        }
        headers.insert(X_FORWARDED_URI, value(path(head))?);
        headers.insert(X_FORWARDED_FOR, value(&request.client.to_string())?);
        let CallAnswer { response, .. } = request.outbound.call(&self.upstream, check, self.limits).await?;
        let status = response.status();
        if status.is_server_error() || status.is_informational() {
            return Err(Failed::Status(status));
        }
        if !status.is_success() {
            return Ok(Verdict::Denied(response));
        }
        let taken = |names: &[HeaderName]| {
            let all = names
                .iter()
                .flat_map(|name| response.headers().get_all(name).iter().map(move |it| (name, it)));
            all.map(|(name, value)| (Append::Always, name.clone(), value.clone())).collect()
        };
        let (request, response) = (taken(&self.upstream_headers), taken(&self.client_headers));
        Ok(Verdict::Allowed(Changes { request, removed: Vec::new(), response }))
    }

    async fn ask_grpc(
        &self,
        request: &PluginRequest<'_>,
        head: &request::Parts,
        body: Option<CheckedBody>,
    ) -> Result<Verdict, Failed> {
        let message = self.check_request(request, head, body).encode_to_vec();
        let mut check = Request::new(grpc::frame(&message));
        *check.method_mut() = Method::POST;
        *check.uri_mut() = self.uri.clone();
        let headers = check.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        let CallAnswer { response, trailers, .. } =
            request.outbound.call(&self.upstream, check, self.limits).await?;
        if response.status() != StatusCode::OK {
            return Err(Failed::Status(response.status()));
        }
        let status = trailers.get("grpc-status").or_else(|| response.headers().get("grpc-status"));
        if status.is_none_or(|status| status != "0") {
            let status = status.map(|status| String::from_utf8_lossy(status.as_bytes()).into_owned());
            return Err(Failed::Grpc(status.unwrap_or_else(|| "that is missing".to_owned())));
        }
        let message = match response.body().split_first_chunk::<5>() {
            Some(([0, ..], message)) => message,
            _ => return Err(Failed::Malformed("it is not one plain message".into())),
        };
        let answer =
            CheckResponse::decode(message).map_err(|error| Failed::Malformed(error.to_string().into()))?;
        match answer.decision() {
            Decision::Allowed(ok) => Ok(Verdict::Allowed(Changes {
                request: changes(ok.headers)?,
                removed: ok.headers_to_remove.iter().filter_map(|name| name.parse().ok()).collect(),
                response: changes(ok.response_headers_to_add)?,
            })),
            Decision::Denied { status, denied } => {
                let mut response = Response::new(Bytes::from(denied.body));
                *response.status_mut() = status;
                for (append, name, value) in changes(denied.headers)? {
                    append.apply(response.headers_mut(), name, value);
                }
                Ok(Verdict::Denied(response))
            }
        }
    }

    /// The message by which the service is asked over gRPC.
    fn check_request(
        &self,
        request: &PluginRequest<'_>,
        head: &request::Parts,
        body: Option<CheckedBody>,
    ) -> protocol::CheckRequest {
        let headers = self.shown_headers(head, body.as_ref());
        protocol::check_request(&protocol::Asked {
            method: head.method.as_str(),
            path: path(head),
            host: head.headers.get(HOST).map_or(&b""[..], HeaderValue::as_bytes),
            scheme: scheme(request, head),
            protocol: match head.version {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_2 => "HTTP/2",
                _ => "HTTP/1.1",
            },
            headers: &headers,
            client: request.client,
            now: request.clock.wall(),
            size: request.body_size,
            body: body.map(|body| body.bytes).unwrap_or_default(),
        })
    }

    /// The headers of a request that the service sees: without those that frame a message, and without what a client could claim.
    fn shown_headers(&self, head: &request::Parts, body: Option<&CheckedBody>) -> HeaderMap {
        let all = head.headers.iter().filter(|(name, _)| match &self.request_headers {
            None => true,
            Some(names) => names.contains(name),
        });
        let shown = all.filter(|(name, _)| {
            !is_framing(name)
                && **name != EXPECT
                && **name != RANGE
                && **name != FORWARDED
                && **name != PARTIAL_BODY
                && !name.as_str().starts_with("x-forwarded-")
                && !name.as_str().starts_with("x-original-")
                && !name.as_str().starts_with("x-rewrite-")
        });
        let mut headers = HeaderMap::new();
        for (name, value) in shown {
            headers.append(name, value.clone());
        }
        if let Some(body) = body {
            let is_partial = if body.is_partial { "true" } else { "false" };
            headers.insert(PARTIAL_BODY, HeaderValue::from_static(is_partial));
        }
        headers
    }

    /// Applies a verdict to the request. Returns the answer of the service if it denies.
    fn apply(
        &self,
        verdict: Verdict,
        request: &mut PluginRequest<'_>,
    ) -> Result<Option<Response<Bytes>>, Failed> {
        match verdict {
            Verdict::Denied(mut response) => {
                for name in
                    response.headers().keys().filter(|name| is_framing(name)).cloned().collect::<Vec<_>>()
                {
                    response.headers_mut().remove(name);
                }
                Ok(Some(response))
            }
            Verdict::Allowed(Changes { request: set, removed, response }) => {
                let headers = &mut request.head.headers;
                for name in removed.into_iter().filter(|name| !is_framing(name)) {
                    headers.remove(name);
                }
                for (append, name, value) in set.into_iter().filter(|(_, name, _)| !is_framing(name)) {
                    append.apply(headers, name, value);
                }
                let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
                if headers.len() > MAX_HEADERS || size > MAX_HEADER_SIZE {
                    return Err(Failed::Malformed("it makes the request's headers too large".into()));
                }
                for (append, name, value) in response.into_iter().filter(|(_, name, _)| !is_framing(name)) {
                    match append {
                        Append::Overwrite => request.exchange.set_response_header(name, value),
                        _ => request.exchange.append_response_header(name, value),
                    }
                }
                Ok(None)
            }
        }
    }
}

/// The changes of headers that a service wants.
fn changes(options: Vec<HeaderValueOption>) -> Result<Vec<(Append, HeaderName, HeaderValue)>, Failed> {
    let malformed = |message: &'static str| Failed::Malformed(message.into());
    let mut changes = Vec::with_capacity(options.len());
    for option in options {
        let append = option.append();
        let Some(header) = option.header else { continue };
        let text = if header.raw_value.is_empty() { header.value.into_bytes() } else { header.raw_value };
        if text.is_empty() && !option.keep_empty_value {
            continue;
        }
        let name = header.key.parse().map_err(|_| malformed("a header has no good name"))?;
        let value = HeaderValue::try_from(text).map_err(|_| malformed("a header has no good value"))?;
        changes.push((append, name, value));
    }
    Ok(changes)
}

/// True for headers that frame a message or belong to a connection, and for the host: the service has no say in them.
fn is_framing(name: &HeaderName) -> bool {
    let names = [
        CONNECTION,
        CONTENT_LENGTH,
        HOST,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    names.contains(name) || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

fn value(text: &str) -> Result<HeaderValue, Failed> {
    HeaderValue::from_str(text).map_err(|_| Failed::Malformed("the request cannot be described".into()))
}

/// Path and query, as the route was found by them.
fn path(head: &request::Parts) -> &str {
    head.uri.path_and_query().map_or("/", |path| path.as_str())
}

/// The scheme that the client used. The header of a trusted proxy in front is still there.
fn scheme<'a>(request: &PluginRequest<'_>, head: &'a request::Parts) -> &'a str {
    let told = head.headers.get(X_FORWARDED_PROTO).and_then(|value| value.to_str().ok());
    match told {
        Some("https") => "https",
        Some("http") => "http",
        _ if request.https => "https",
        _ => "http",
    }
}

/// True if a request is checked with its body, and the body is not there yet.
fn waits_for_body(request: &PluginRequest<'_>, limit: BodyLimit) -> bool {
    let is_unread = request.is_shadow || request.asks_for_switch;
    let is_stream = limit.allow_partial && grpc::is_grpc(&request.head.headers);
    request.body_size != Some(0) && !is_unread && !is_stream
}

/// The target of checks. Its host is the name of the upstream, unless the request's own is shown.
fn uri(config: &Config) -> Option<http::Uri> {
    let path = if config.grpc { "/envoy.service.auth.v3.Authorization/Check" } else { &config.path };
    let uri = format!("http://{}{path}", config.upstream).parse().ok()?;
    path.starts_with('/').then_some(uri)
}

fn default_path() -> String {
    "/".to_owned()
}

fn default_timeout() -> HumanDuration {
    HumanDuration(Duration::from_secs(1))
}

fn default_body_size() -> ByteSize {
    ByteSize(64 << 10)
}

fn default_status() -> u16 {
    503
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Client, build, refused};

    #[test]
    fn the_client_does_not_speak_for_the_service() {
        for (status, on_error) in [(204, "deny"), (500, "allow")] {
            let plugin = build(
                "ext-auth",
                json!({"upstream": "auth", "upstream_headers": ["x-user", "x-role"], "on_error": on_error}),
            );
            let mut client = Client::new("POST", "/a?b")
                .header("host", "shop.example")
                .header("x-user", "root")
                .header("x-role", "admin")
                .header("x-other", "1")
                .header("x-forwarded-uri", "/harmless")
                .header("forwarded", "for=127.0.0.1")
                .answering(move |upstream, check| {
                    assert_eq!((upstream.as_str(), check.uri().path()), ("auth", "/"));
                    let told = ["x-forwarded-method", "x-forwarded-host", "x-forwarded-uri", "x-other"];
                    let told = told.map(|name| check.headers()[name].to_str().unwrap());
                    assert_eq!(told, ["POST", "shop.example", "/a?b", "1"]);
                    assert!(!check.headers().contains_key("forwarded"));
                    Ok(Response::builder()
                        .status(status)
                        .header("x-user", "alice")
                        .body(Bytes::new())
                        .unwrap())
                });
            assert!(client.meets(&*plugin).is_none());
            let user = client.head.headers.get("x-user").map(|value| value.to_str().unwrap());
            assert_eq!(user, (status == 204).then_some("alice"));
            assert!(!client.head.headers.contains_key("x-role"));
            assert_eq!(client.head.headers["x-other"], "1");
        }
    }

    /// A request is checked with the head that it had at the plugin's turn, and with its body, or the start of it.
    #[test]
    fn a_check_has_the_body_and_the_head_that_was_there_before_other_plugins() {
        for (limit, sent, checked, partial) in [
            (json!({"max_size": 4}), "1234", "1234", "false"),
            (json!({"max_size": 4, "allow_partial": true}), "1234", "1234", "false"),
            (json!({"max_size": 4, "allow_partial": true}), "12345678", "1234", "true"),
        ] {
            let plugin =
                build("ext-auth", json!({"upstream": "auth", "upstream_headers": ["x-user"], "body": limit}));
            let mut client = Client::new("PUT", "/a")
                .header("x-user", "root")
                .header("x-envoy-auth-partial-body", "never")
                .answering(move |_, check| {
                    assert_eq!((check.method(), check.body()), (&Method::POST, &Bytes::from(checked)));
                    assert_eq!(check.headers()["x-envoy-auth-partial-body"], partial);
                    assert_eq!(check.headers()["x-forwarded-uri"], "/a");
                    assert!(!check.headers().contains_key("x-added"));
                    Ok(Response::builder().header("x-user", "alice").body(Bytes::new()).unwrap())
                });
            client.body_size = None;
            assert!(client.meets(&*plugin).is_none());
            assert!(!client.head.headers.contains_key("x-user"), "the client's is gone at once");
            client.head.headers.insert("x-added", HeaderValue::from_static("by another plugin"));
            client.head.uri = "/b".parse().unwrap();
            assert_eq!(client.sends(&*plugin, sent).unwrap(), sent);
            assert_eq!(client.head.headers["x-user"], "alice");
            assert_eq!(client.head.uri, "/b");
        }
    }

    #[test]
    fn what_cannot_be_waited_for_is_checked_by_its_head() {
        for (name, value, allow_partial, is_asked) in [
            ("content-type", "application/grpc", true, true),
            ("content-type", "application/grpc+proto", true, true),
            ("content-type", "application/grpc", false, false),
            ("content-type", "application/grpc-web", true, false),
            ("sec-websocket-version", "13", false, true),
            ("x-a", "b", true, false),
        ] {
            let asked = std::rc::Rc::new(std::cell::Cell::new(false));
            let noted = std::rc::Rc::clone(&asked);
            let config = json!({"upstream": "auth", "body": {"allow_partial": allow_partial}});
            let plugin = build("ext-auth", config);
            let mut client = Client::new("POST", "/").header(name, value).answering(move |_, check| {
                noted.set(true);
                assert!(check.body().is_empty());
                assert_eq!(check.headers()["x-envoy-auth-partial-body"], "true");
                Ok(Response::new(Bytes::new()))
            });
            client.asks_for_switch = name == "sec-websocket-version";
            // A request for another protocol has no body of its own.
            client.body_size = client.asks_for_switch.then_some(0);
            assert!(client.meets(&*plugin).is_none());
            assert_eq!(asked.get(), is_asked, "{name}: {value}");
        }
    }

    #[test]
    fn bad_configurations_are_refused_with_all_that_is_wrong() {
        let all = refused(
            "ext-auth",
            json!({"upstream": "a", "path": "x", "timeout": "0s", "status_on_error": 200,
                   "client_headers": ["content-length"], "upstream_headers": ["a b"]}),
        );
        for field in
            ["path: ", "timeout: ", "status_on_error: ", "client_headers[0]: ", "upstream_headers[0]: "]
        {
            assert!(all.contains(field), "{field} in {all}");
        }
        for size in [json!(0), json!("17MiB")] {
            let config = json!({"upstream": "a", "body": {"max_size": size}});
            assert!(refused("ext-auth", config).starts_with("body.max_size: "));
        }
        assert_eq!(refused("ext-auth", json!({})), "upstream: is required");
        assert!(
            refused("ext-auth", json!({"upstream": "a", "grpc": true, "path": "/x"})).starts_with("path: ")
        );
    }
}
