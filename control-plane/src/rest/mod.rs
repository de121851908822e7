//! The admin API, and what else the admin address serves: metrics, health and the UI.
//!
//! [`TABLE`] is the one list of endpoints. The router and the OpenAPI document are made from it, so they cannot say
//! different things.

mod access;
mod app;
mod authorize;
mod bad_tokens;
mod blobs;
mod cache;
mod call;
mod conditions;
mod debugging;
mod documents;
mod endpoint;
mod event_ring;
mod events;
mod explain;
mod fleet;
mod health_report;
mod openapi;
mod presented;
mod problem;
mod prometheus_targets;
mod request;
mod resources;
mod revisions;
mod roles;
mod rollouts;
mod stats;
mod ui;
mod webhooks;
mod whole_set;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodFilter, MethodRouter, any, get, on};
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};
use signalbox_plugin::trace_context::{self, TraceContext};

pub use self::app::Services;

use self::app::App;
use self::authorize::authorize;
use self::call::Call;
use self::endpoint::{Access, Endpoint};
use self::problem::Problem;
use self::request::{check_content_type, query, read};
use signalbox_process::prometheus::Format;

use crate::metrics::Gauges;
use crate::publish::Health;
use crate::serve::Peer;
use crate::spans::{RequestSpan, Spans};

/// Every endpoint below `/api/v1`.
static TABLE: LazyLock<Vec<Endpoint>> = LazyLock::new(|| {
    let document =
        Endpoint::new(Method::GET, "/openapi.json", "getOpenApi", |_| async { Ok(openapi()) }.boxed())
            .text("meta", "Read this OpenAPI document")
            .access(Access::Public)
            .answer_as(
                200,
                "The document",
                "application/json",
                |_| schemars::json_schema!({"type": "object"}),
            );
    let mut table = resources::endpoints();
    table.extend(documents::endpoints());
    table.extend(revisions::endpoints());
    table.extend(fleet::endpoints());
    table.extend(prometheus_targets::endpoints());
    table.extend(rollouts::endpoints());
    table.extend(explain::endpoints());
    table.extend(blobs::endpoints());
    table.extend(cache::endpoints());
    table.extend(stats::endpoints());
    table.extend(health_report::endpoints());
    table.extend(webhooks::endpoints());
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

/// The router of the admin address, and the task that sends events to clients; it ends at shutdown.
pub fn router(services: Services) -> (Router, impl Future<Output = ()> + Send + 'static) {
    let app = Arc::new(App::new(services));
    let mut by_path: BTreeMap<&'static str, Vec<&'static Endpoint>> = BTreeMap::new();
    for endpoint in TABLE.iter() {
        by_path.entry(&endpoint.path).or_default().push(endpoint);
    }
    let mut api = Router::new()
        .fallback(|| async { Problem::not_found("there is no such path in the API").into_response() });
    for (path, endpoints) in by_path {
        api = api.route(path, methods(&endpoints));
    }
    let router = Router::new()
        .nest("/api/v1", api)
        .route("/api/{*rest}", any(|| async { Problem::not_found("the API is at /api/v1").into_response() }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|State(app): State<Arc<App>>| async move { readiness(&app) }))
        .route("/debug", any(debugging::answer))
        .route("/debug/{*rest}", any(debugging::answer))
        .route(
            "/metrics",
            get(|State(app): State<Arc<App>>, headers: HeaderMap| async move { metrics(&app, &headers) }),
        )
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
    let traced = app.spans.is_on().then(|| Traced::of(&request));
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
    app.metrics.http(method, &endpoint.path, response.status().as_u16(), started.elapsed());
    if let Some(traced) = traced {
        traced.end(&app.spans, endpoint, &response, started.elapsed());
    }
    response
}

/// The parts of a request that its span needs.
struct Traced {
    parent: Option<TraceContext>,
    method: Method,
    path: String,
    began: Duration,
}

impl Traced {
    fn of(request: &Request) -> Self {
        Self {
            parent: trace_context::read(request.headers()),
            method: request.method().clone(),
            path: format!("/api/v1{}", request.uri().path()),
            began: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        }
    }

    fn end(self, spans: &Spans, endpoint: &Endpoint, response: &Response, took: Duration) {
        let revision = response.headers().get(resources::REVISION).and_then(|value| value.to_str().ok());
        spans.request(&RequestSpan {
            parent: self.parent,
            method: self.method.as_str(),
            route: &format!("/api/v1{}", endpoint.path),
            operation: &endpoint.id,
            path: &self.path,
            status: response.status().as_u16(),
            revision: revision.and_then(|number| number.parse().ok()),
            began: self.began,
            took,
        });
    }
}

async fn run(app: &Arc<App>, endpoint: &'static Endpoint, request: Request) -> Result<Response, Problem> {
    let (mut parts, body) = request.into_parts();
    let peer = parts.extensions.get::<Peer>().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0.ip());
    let caller = authorize(app, endpoint.access, &endpoint.method, &parts.headers, peer)?;
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

fn readiness(app: &App) -> Response {
    let published = app.publisher.current();
    let health = app.publisher.health();
    let (status, database) = match &health {
        Health::InSync => (StatusCode::OK, "in sync"),
        // The published configuration is good, and goes on being served.
        Health::Away(_) => (StatusCode::OK, "away"),
        Health::ReadOnly => (StatusCode::OK, "read-only"),
        Health::Behind(_) => (StatusCode::SERVICE_UNAVAILABLE, "behind what is published"),
    };
    let body = json!({
        "ready": status == StatusCode::OK,
        "epoch": &*published.snapshot.id().epoch,
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

fn metrics(app: &App, headers: &HeaderMap) -> Response {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = Format::accepted(accept);
    let published = app.publisher.current();
    let (mut connected, mut proxies) = (0, BTreeMap::new());
    for proxy in app.board.proxies() {
        connected += u64::from(proxy.connected && proxy.connected_to == app.replica);
        *proxies.entry((proxy.fleet, proxy.state.as_str())).or_default() += 1;
    }
    let open = app.rollouts.open();
    let page = app.metrics.write(
        format,
        &Gauges {
            profiling: app.profiling,
            proxies,
            connected_proxies: connected,
            head_revision: published.snapshot.id().number,
            resources: published.snapshot.len() as u64,
            leads_rollouts: app.rollouts.leads(),
            rollouts_under_way: open.under_way,
            rollouts_held: open.held,
            rollouts_taken_back: open.taken_back,
            database_up: app.publisher.health() == Health::InSync,
            unreadable_now: published.unreadable.len() as u64,
            unknown_resources: published.unknown.len() as u64,
            unknown_roles: app.credentials.unknown_roles().len() as u64,
            webhooks: app.webhooks.counts(),
            spans: app.spans.is_on().then(|| app.spans.totals()),
        },
    );
    let mut response = Response::new(Body::from(page));
    let media = HeaderValue::from_static(format.content_type());
    response.headers_mut().insert(header::CONTENT_TYPE, media);
    response
}

fn openapi() -> Response {
    let mut response = Response::new(Body::from(openapi_json()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
