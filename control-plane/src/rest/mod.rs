//! The admin API, and what else the admin address serves: metrics, health and the UI.
//!
//! [`TABLE`] is the one list of endpoints. The router and the OpenAPI document are made from it, so they cannot say
//! different things.

mod access;
mod call;
mod documents;
mod endpoint;
mod events;
mod explain;
mod fleet;
mod openapi;
mod problem;
mod resources;
mod revisions;
mod ui;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodFilter, MethodRouter, get, on};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use self::access::{BadTokens, Means, check_origin, presented, suffices, unauthorized};
use self::call::{Call, Caller};
use self::endpoint::{Access, Endpoint, Media, Place};
use self::events::Events;
use self::problem::Problem;
use crate::auth::{Credentials, Use};
use crate::board::Board;
use crate::metrics::{Gauges, Metrics};
use crate::publish::{Health, Publisher};
use crate::serve::Peer;
use crate::store::Store;
use crate::writer::Writer;

/// What the admin API works on.
pub struct Services {
    /// What is published.
    pub publisher: Arc<Publisher>,
    /// For history, which is not in memory.
    pub store: Arc<dyn Store>,
    /// Who may call.
    pub credentials: Arc<Credentials>,
    /// Proxies and rollouts.
    pub board: Arc<Board>,
    /// To be counted and shown.
    pub metrics: Arc<Metrics>,
    /// The name of this control plane, as proxies' `connected_to` has it.
    pub replica: String,
    /// Whether clients come by TLS.
    pub tls: bool,
    /// Ends what goes on for long.
    pub shutdown: CancellationToken,
}

pub(crate) struct App {
    services: Services,
    writer: Writer,
    events: Events,
    bad_tokens: BadTokens,
    /// For those who read or write out a whole set: of 100,000 routes one takes some 300 MB.
    whole_sets: Arc<Semaphore>,
}

impl std::ops::Deref for App {
    type Target = Services;

    fn deref(&self) -> &Services {
        &self.services
    }
}

/// How many whole sets may be read or written out at once, and how long one waits for that.
const WHOLE_SETS: usize = 2;
const WHOLE_SET_WAIT: Duration = Duration::from_secs(10);

impl App {
    /// Waits until a whole set may be read or written out, for as long as what is returned is kept.
    async fn whole_set(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let permit = tokio::time::timeout(WHOLE_SET_WAIT, Arc::clone(&self.whole_sets).acquire_owned()).await;
        let busy = || Problem::unavailable("other whole sets are being read".to_owned(), 5);
        permit.map_err(|_| busy())?.map_err(|_| busy())
    }

    /// Notes in the audit trail what makes no revision. It was done already, so that failing to note it is only logged.
    async fn note(&self, call: &Call, detail: &str) {
        let actor = call.caller.as_ref().map_or("unknown", |caller| &*caller.principal.name);
        let action = format!("{} {}", call.method, call.uri_path);
        tracing::info!(actor, action, detail, "noted");
        let noted = self.metrics.store_call("note", self.store.note(actor, &action, detail)).await;
        if let Err(error) = noted {
            tracing::error!(error = crate::publish::chain(&error), "the audit trail lacks this");
        }
    }

    /// A token was presented in vain.
    fn bad_token(&self, from: IpAddr, detail: &str) -> Problem {
        match self.bad_tokens.note(from, Instant::now()) {
            None => unauthorized(detail),
            Some(seconds) => {
                Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many tokens that are not known")
                    .header(header::RETRY_AFTER, seconds.into())
            }
        }
    }
}

/// Every endpoint below `/api/v1`.
static TABLE: LazyLock<Vec<Endpoint>> = LazyLock::new(|| {
    let document =
        Endpoint::new(Method::GET, "/openapi.json", "getOpenApi", |_| async { Ok(openapi()) }.boxed())
            .text("meta", "This document")
            .access(Access::Public)
            .answer_as(200, "It", "application/json", |_| schemars::json_schema!({"type": "object"}));
    let mut table = resources::endpoints();
    table.extend(documents::endpoints());
    table.extend(revisions::endpoints());
    table.extend(fleet::endpoints());
    table.extend(explain::endpoints());
    table.extend(events::endpoints());
    table.extend(access::endpoints());
    table.push(document);
    table
});

static OPENAPI: LazyLock<String> = LazyLock::new(|| {
    serde_json::to_string_pretty(&openapi::document(&TABLE)).expect("a JSON value can always be written")
});

/// The OpenAPI document of the admin API, JSON.
pub fn openapi_json() -> &'static str {
    &OPENAPI
}

/// What the admin address serves, and the task that tells who listens of what happens; it ends at shutdown.
pub fn router(services: Services) -> (Router, impl Future<Output = ()> + Send + 'static) {
    let writer = Writer::new(Arc::clone(&services.publisher));
    let app = Arc::new(App {
        services,
        writer,
        events: Events::new(),
        bad_tokens: BadTokens::default(),
        whole_sets: Arc::new(Semaphore::new(WHOLE_SETS)),
    });
    let mut by_path: BTreeMap<&'static str, Vec<&'static Endpoint>> = BTreeMap::new();
    for endpoint in TABLE.iter() {
        by_path.entry(endpoint.path).or_default().push(endpoint);
    }
    let mut api = Router::new()
        .fallback(|| async { Problem::not_found("there is no such path in the API").into_response() });
    for (path, endpoints) in by_path {
        api = api.route(path, methods(&endpoints));
    }
    let router = Router::new()
        .nest("/api/v1", api)
        .route(
            "/api/{*rest}",
            axum::routing::any(|| async { Problem::not_found("the API is at /api/v1").into_response() }),
        )
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|State(app): State<Arc<App>>| async move { readiness(&app) }))
        .route("/metrics", get(|State(app): State<Arc<App>>| async move { metrics(&app) }))
        .fallback(|request: Request| async move {
            ui::answer(request.method(), request.uri().path(), request.headers())
        })
        .with_state(Arc::clone(&app));
    (router, events::feed(app))
}

fn methods(endpoints: &[&'static Endpoint]) -> MethodRouter<Arc<App>> {
    let mut allowed: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.method.as_str()).collect();
    if allowed.contains(&"GET") {
        allowed.push("HEAD");
    }
    let allow = HeaderValue::from_str(&allowed.join(", ")).expect("names of methods are header text");
    let refuse = move || {
        let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not have this method");
        std::future::ready(problem.header(header::ALLOW, allow.clone()).into_response())
    };
    let mut methods = MethodRouter::new().fallback(refuse);
    for endpoint in endpoints.iter().copied() {
        let filter = MethodFilter::try_from(endpoint.method.clone()).expect("a usual method");
        let handler = move |State(app): State<Arc<App>>, request: Request| answer(app, endpoint, request);
        methods = methods.merge(on(filter, handler));
    }
    methods
}

/// Answers a request to an endpoint, and counts it.
async fn answer(app: Arc<App>, endpoint: &'static Endpoint, request: Request) -> Response {
    let started = Instant::now();
    let mut response = match run(&app, endpoint, request).await {
        Ok(response) => response,
        Err(problem) => {
            if let Some(cause) = problem.cause() {
                tracing::error!(operation = endpoint.id, cause, "a request could not be served");
            }
            problem.into_response()
        }
    };
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let method = match endpoint.method {
        Method::GET => "GET",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    };
    app.metrics.http(method, endpoint.path, response.status().as_u16(), started.elapsed());
    response
}

async fn run(app: &Arc<App>, endpoint: &'static Endpoint, request: Request) -> Result<Response, Problem> {
    let (mut parts, body) = request.into_parts();
    let peer = parts.extensions.get::<Peer>().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0.ip());
    let caller = authorize(app, endpoint, &parts.headers, peer)?;
    let path = if endpoint.path.contains('{') {
        use axum::extract::FromRequestParts as _;
        Path::<Vec<(String, String)>>::from_request_parts(&mut parts, &())
            .await
            .map_err(|_| Problem::malformed("the path is not UTF-8"))?
            .0
    } else {
        Vec::new()
    };
    let query = query(endpoint, &parts.uri)?;
    let body = match &endpoint.body {
        None => bytes::Bytes::new(),
        Some(wanted) => {
            check_content_type(wanted.media, &parts.headers)?;
            read(body, wanted.limit, &parts.headers).await?
        }
    };
    let call = Call {
        app: Arc::clone(app),
        kind: endpoint.kind,
        caller,
        peer,
        method: parts.method,
        // Without what nesting the router took off it.
        uri_path: format!("/api/v1{}", parts.uri.path()),
        path,
        query,
        headers: parts.headers,
        body,
    };
    (endpoint.run)(call).await
}

/// Who calls, if the endpoint is for them.
fn authorize(
    app: &App,
    endpoint: &Endpoint,
    headers: &HeaderMap,
    peer: IpAddr,
) -> Result<Option<Caller>, Problem> {
    let Access::Role(needed) = endpoint.access else { return Ok(None) };
    let Some(presented) = presented(headers) else {
        return Err(unauthorized("this needs a token: Authorization: Bearer TOKEN"));
    };
    let caller = presented.caller(&app.credentials, Use::Counts).ok_or_else(|| match presented.by {
        // Browsers go on presenting what has ended: that is no guess.
        Means::Cookie => unauthorized("the session has ended; log in again"),
        Means::Header => app.bad_token(peer, "the token is not known"),
    })?;
    let principal = &caller.principal;
    if presented.by == Means::Cookie && endpoint.method != Method::GET {
        check_origin(headers)?;
    }
    if !suffices(&principal.role, needed) {
        let detail = format!(
            "the token {:?} has the role {}; this needs {}",
            principal.name,
            json!(principal.role.as_str()),
            json!(needed)
        );
        return Err(Problem::new(StatusCode::FORBIDDEN, detail.replace("\"", "'")));
    }
    Ok(Some(caller))
}

/// The parameters of the query, all of which the endpoint must have.
fn query(endpoint: &Endpoint, uri: &http::Uri) -> Result<Vec<(String, String)>, Problem> {
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|_| Problem::malformed("the query is not UTF-8"))?;
    let known = || {
        endpoint
            .parameters
            .iter()
            .filter(|parameter| parameter.place == Place::Query)
            .map(|parameter| parameter.name)
    };
    if let Some((name, _)) = pairs.iter().find(|(name, _)| !known().any(|known| known == name)) {
        let known: Vec<&str> = known().collect();
        let known = if known.is_empty() {
            "this takes none".to_owned()
        } else {
            format!("known are {}", known.join(", "))
        };
        return Err(Problem::parameter(name, format!("is not known; {known}")));
    }
    // Here, so that no endpoint can take something else for `true`, and none passes over what is wrong.
    let is_boolean =
        |parameter: &endpoint::Parameter| (parameter.schema)().get("type").is_some_and(|it| it == "boolean");
    for parameter in endpoint.parameters.iter().filter(|parameter| parameter.place == Place::Query) {
        let mut given = pairs.iter().filter(|(name, _)| name == parameter.name);
        if let Some((name, text)) = given.next()
            && is_boolean(parameter)
        {
            call::parse_flag(name, text)?;
            if given.next().is_some() {
                return Err(Problem::parameter(name, "is there twice"));
            }
        }
    }
    Ok(pairs)
}

/// Refuses only what cannot be meant: clients that name no type, or the one their library names by itself, are served.
fn check_content_type(media: Media, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
    let essence = text.split(';').next().unwrap_or_default().trim();
    let (kind, subtype) = essence.split_once('/').unwrap_or((essence, ""));
    let is_yaml = subtype.contains("yaml");
    let wrong = matches!(kind, "multipart" | "image" | "audio" | "video" | "font")
        || matches!(subtype, "html" | "xml" | "pdf" | "zip" | "gzip" | "x-protobuf" | "grpc")
        || (is_yaml && media != Media::Document);
    if !wrong {
        return Ok(());
    }
    let accepted = media.names().join(", ");
    let detail = format!("{essence} is not accepted here; send {accepted}");
    let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail);
    Err(match HeaderValue::from_str(&accepted) {
        Ok(value) => problem.header(header::ACCEPT, value),
        Err(_) => problem,
    })
}

/// How long a body may take to come.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// How much of a body that is too large is taken in, bytes.
const MAX_DISCARDED: usize = 32 << 20;

async fn read(body: Body, limit: usize, headers: &HeaderMap) -> Result<bytes::Bytes, Problem> {
    let too_large =
        || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {limit} bytes"));
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    let waits = headers.contains_key(header::EXPECT);
    if waits && announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let deadline = tokio::time::Instant::now() + BODY_DEADLINE;
    let late = |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");
    let mut body = body;
    let mut collected = Vec::with_capacity(announced.unwrap_or(0).min(limit as u64) as usize);
    let mut len = 0;
    while let Some(frame) = tokio::time::timeout_at(deadline, body.frame()).await.map_err(late)? {
        let frame = frame.map_err(|error| Problem::malformed(format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        len += data.len();
        if len <= limit {
            collected.extend_from_slice(&data);
        } else if len > limit + MAX_DISCARDED {
            break;
        } else {
            // Clients that are still sending read no answer: what is left is taken in and thrown away.
            collected = Vec::new();
        }
    }
    if len <= limit { Ok(collected.into()) } else { Err(too_large()) }
}

fn readiness(app: &App) -> Response {
    let published = app.publisher.current();
    let health = app.publisher.health();
    let (status, database) = match &health {
        Health::InSync => (StatusCode::OK, "in sync"),
        // What is published is good, and goes on being served.
        Health::Away(_) => (StatusCode::OK, "away"),
        Health::ReadOnly => (StatusCode::OK, "read-only"),
        Health::Behind(_) => (StatusCode::SERVICE_UNAVAILABLE, "behind what is published"),
    };
    let body = json!({
        "ready": status == StatusCode::OK,
        "revision": published.snapshot.id().number,
        "database": database,
        "unreadable_resources": published.unreadable.len(),
        "unknown_resources": published.unknown.len(),
        "tokens_with_unknown_roles": app.credentials.unknown_roles().len(),
    });
    json_with(status, &body)
}

fn json_with(status: StatusCode, body: &Value) -> Response {
    call::json_response(status, body).unwrap_or_else(|problem| problem.into_response())
}

fn metrics(app: &App) -> Response {
    let published = app.publisher.current();
    let connected = app
        .board
        .proxies()
        .iter()
        .filter(|proxy| proxy.connected && proxy.connected_to == app.replica)
        .count();
    let text = app.metrics.write(&Gauges {
        connected_proxies: connected as u64,
        head_revision: published.snapshot.id().number,
        resources: published.snapshot.len() as u64,
        database_up: app.publisher.health() == Health::InSync,
        unreadable_now: published.unreadable.len() as u64,
        unknown_resources: published.unknown.len() as u64,
        unknown_roles: app.credentials.unknown_roles().len() as u64,
    });
    let mut response = Response::new(Body::from(text));
    let media = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, media);
    response
}

fn openapi() -> Response {
    let mut response = Response::new(Body::from(openapi_json()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
