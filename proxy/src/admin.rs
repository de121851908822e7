//! The admin server: a small HTTP server beside the data path.

mod access;
mod listen;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header, request};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use signalbox_config::Kind;
use signalbox_process::debug::{self, DebugRequest, Page, Refusal};
use signalbox_process::prometheus::{Exposition, Format};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

pub use self::access::Access;
use self::access::{Denied, Peer};
pub use self::listen::AdminListener;
use self::listen::AdminStream;
use crate::http::problem;
use crate::metrics::{self, ProcessState};
use crate::proxy::Proxy;
use crate::source::{CrashedRevision, DataPlane, ExactRevision, Status};
use crate::tasks::RunningTask;
use crate::upstream::{LastError, Target, Upstream};

/// The state that the admin server exposes.
pub struct Admin {
    pub proxy: Arc<Proxy>,
    pub status: watch::Receiver<Status>,
    /// Cancelled to start a drain: by a signal, or by `POST /drain`.
    pub drain: CancellationToken,
    /// Notified to try a refused revision again, by `POST /revision/retry`.
    pub retry: Arc<Notify>,
    /// The rules for clients.
    pub access: Access,
    /// True if the debugging pages of the process are served.
    pub profiling: bool,
}

/// The body of a response.
type Body = BoxBody<Bytes, Infallible>;

/// The maximum number of concurrent connections; more wait.
const MAX_CONNECTIONS: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The lifetime of a connection: the longest profile takes 60 s.
const LIFETIME: Duration = Duration::from_secs(90);

/// Serves until it is dropped.
pub async fn serve(listener: AdminListener, admin: Arc<Admin>) {
    if let Err(error) = listener.publish() {
        error!(%error, "the socket of the admin server cannot be put in its place");
    }
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // They end with the server: each holds the proxy.
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept on the admin address");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let admin = Arc::clone(&admin);
        connections.spawn(async move {
            let _permit = permit;
            match stream {
                AdminStream::Tcp(stream) => serve_connection(stream, peer, &admin).await,
                AdminStream::Unix(stream) => serve_connection(stream, peer, &admin).await,
            }
        });
    }
}

async fn serve_connection(stream: impl AsyncRead + AsyncWrite + Unpin, peer: Peer, admin: &Arc<Admin>) {
    let service = service_fn(|request| {
        let (admin, head) = (Arc::clone(admin), request.into_parts().0);
        async move { Ok::<_, Infallible>(admin.respond(head, peer).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // Errors of a connection concern only its client. A client that does not read must not hold its permit forever.
    if tokio::time::timeout(LIFETIME, &mut connection).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(HEAD_TIMEOUT, connection).await;
    }
}

fn metrics_page(format: Format, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let content_type = HeaderValue::from_static(format.content_type());
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// The format of metrics that a client likes best.
fn accepted(headers: &HeaderMap) -> Format {
    Format::accepted(headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()))
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).boxed()
}

fn refuse(denied: Denied) -> Response<Body> {
    let status = match denied {
        Denied::NoToken | Denied::WrongToken => StatusCode::UNAUTHORIZED,
        Denied::NotLocal => StatusCode::FORBIDDEN,
    };
    let mut response = problem::response(status, denied.detail(), b"");
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response.map(whole)
}

/// The response if handling the request panicked.
fn internal_error() -> Response<Body> {
    let detail = "The answer could not be made.";
    problem::response(StatusCode::INTERNAL_SERVER_ERROR, detail, b"").map(whole)
}

/// True if a browser sent it on behalf of a page.
fn is_from_browser(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.get("sec-fetch-site").is_some_and(|site| site != "none")
}

impl Admin {
    async fn respond(self: Arc<Self>, head: request::Parts, peer: Peer) -> Response<Body> {
        if let Err(denied) = self.access.check(head.uri.path(), peer, &head.headers) {
            return refuse(denied);
        }
        let wanted = DebugRequest::parse(head.uri.path(), head.uri.query()).filter(|_| self.profiling);
        if let Some(wanted) = wanted {
            // A profile takes a minute, so none is taken for its head.
            return if head.method == Method::GET { self.debug(wanted).await } else { not_allowed("GET") };
        }
        if head.uri.path() == "/metrics" {
            return match head.method {
                Method::GET => self.metrics(accepted(&head.headers)),
                // Counts of deleted routes are not shown by it.
                Method::HEAD => metrics_page(accepted(&head.headers), whole(Bytes::new())),
                _ => not_allowed("GET, HEAD"),
            };
        }
        // This may wait for a revision that is being applied, which in turn may wait for other tasks of this runtime.
        let answer = tokio::task::spawn_blocking(move || self.answer(&head));
        answer.await.unwrap_or_else(|_| internal_error())
    }

    async fn debug(&self, wanted: Result<DebugRequest, Refusal>) -> Response<Body> {
        let page = match wanted {
            Ok(request) => debug::answer(request, self.plugin_tasks()).await,
            Err(refusal) => Err(refusal),
        };
        match page {
            Ok(Page { content_type, body }) => {
                let mut response = Response::new(whole(body.into()));
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
                response
            }
            Err(Refusal { status, detail }) => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                problem::response(status, &detail, b"").map(whole)
            }
        }
    }

    fn plugin_tasks(&self) -> Vec<Value> {
        let tasks = self.proxy.plugin_tasks().into_iter();
        let report = |task: RunningTask| json!({"plugin": task.plugin, "task": task.name, "panics": task.panics, "waits_after_panic": task.waits});
        tasks.map(report).collect()
    }

    fn answer(&self, request: &request::Parts) -> Response<Body> {
        let get = matches!(request.method, Method::GET | Method::HEAD);
        match request.uri.path() {
            // A page that is open in a browser on this host may send this request; headers that browsers add reveal
            // it.
            "/drain" | "/revision/retry"
                if request.method == Method::POST && is_from_browser(&request.headers) =>
            {
                let response =
                    problem::response(StatusCode::FORBIDDEN, "Pages may not control a proxy.", b"");
                response.map(whole)
            }
            "/drain" if request.method == Method::POST => {
                self.drain.cancel();
                let body = json!({"state": "draining", "connections": self.proxy.active_connections()});
                json_response(StatusCode::ACCEPTED, &body)
            }
            "/drain" if get => {
                let state = if self.drain.is_cancelled() { "draining" } else { "serving" };
                let body = json!({"state": state, "connections": self.proxy.active_connections()});
                json_response(StatusCode::OK, &body)
            }
            "/drain" => not_allowed("GET, HEAD, POST"),
            "/revision/retry" if request.method == Method::POST => self.retry(),
            "/revision/retry" => not_allowed("POST"),
            "/healthz" | "/readyz" | "/config" | "/revision" | "/debug/upstreams" if !get => {
                not_allowed("GET, HEAD")
            }
            "/healthz" => {
                let body = json!({"status": "ok", "listeners": self.proxy.listeners()});
                json_response(StatusCode::OK, &body)
            }
            "/readyz" => self.readiness(),
            "/config" => json_response(StatusCode::OK, &self.config()),
            "/revision" => json_response(StatusCode::OK, &self.revision()),
            "/debug/upstreams" => json_response(StatusCode::OK, &self.upstreams()),
            _ => {
                let response = problem::response(StatusCode::NOT_FOUND, "There is nothing here.", b"");
                response.map(whole)
            }
        }
    }

    fn readiness(&self) -> Response<Body> {
        let (status, state) = if self.drain.is_cancelled() {
            (StatusCode::SERVICE_UNAVAILABLE, "draining")
        } else if self.status.borrow().serving.is_none() {
            (StatusCode::SERVICE_UNAVAILABLE, "no revision yet")
        } else {
            (StatusCode::OK, "ready")
        };
        let mut body = json!({"status": state});
        let warnings = self.status.borrow().warnings();
        if !warnings.is_empty() {
            body["warnings"] = warnings.into();
        }
        json_response(status, &body)
    }

    /// Ends the refusal of a revision that the proxy crashed on.
    fn retry(&self) -> Response<Body> {
        let Some(crashed) = self.status.borrow().crashed.as_ref().map(crashed_report) else {
            return problem::response(StatusCode::CONFLICT, "No revision is refused.", b"").map(whole);
        };
        self.retry.notify_one();
        json_response(StatusCode::ACCEPTED, &json!({"retried": crashed}))
    }

    /// Writes the metrics in chunks, each when the client has taken the one before: there may be many upstreams.
    fn metrics(self: Arc<Self>, format: Format) -> Response<Body> {
        let (sender, chunks) = mpsc::channel(2);
        tokio::task::spawn_blocking(move || {
            let sink =
                move |chunk: Vec<u8>| sender.blocking_send(Ok(Frame::data(Bytes::from(chunk)))).is_ok();
            let status = self.status.borrow().clone();
            let process = ProcessState { draining: self.drain.is_cancelled(), profiling: self.profiling };
            metrics::write(Exposition::chunked(format, Box::new(sink)), &self.proxy, &status, process);
        });
        metrics_page(format, StreamBody::new(ReceiverStream::new(chunks)).boxed())
    }

    /// The served configuration, with secrets redacted.
    fn config(&self) -> Value {
        let snapshot = self.proxy.snapshot();
        let resources: BTreeMap<_, Vec<_>> = Kind::ALL
            .into_iter()
            .map(|kind| {
                (kind.plural(), snapshot.of_kind(kind, None).map(|resource| resource.redacted()).collect())
            })
            .collect();
        json!({
            "epoch": &*snapshot.id().epoch,
            "revision": snapshot.id().number,
            "digest": snapshot.digest().to_string(),
            "resources": resources,
        })
    }

    /// The upstreams with their targets and their state.
    fn upstreams(&self) -> Value {
        let mut upstreams: Vec<_> = self
            .proxy
            .counted(|_, compiled, _, _| compiled.active.upstreams.iter().map(Arc::clone).collect());
        upstreams.sort_by(|a, b| a.name.cmp(&b.name));
        upstreams.iter().map(|upstream| upstream_report(upstream)).collect()
    }

    fn revision(&self) -> Value {
        let status = self.status.borrow();
        let rejected: Vec<_> = status
            .rejected
            .iter()
            .map(|rejected| {
                json!({
                    "kind": rejected.key.as_ref().map(|key| key.kind.as_str()),
                    "name": rejected.key.as_ref().map(|key| key.name.as_str()),
                    "field": rejected.field,
                    "message": rejected.message,
                })
            })
            .collect();
        let serving = status.serving.as_ref().map(|serving| {
            json!({
                "epoch": &*serving.revision.epoch,
                "revision": serving.revision.number,
                "generation": serving.generation,
                "digest": serving.digest.to_string(),
                "resources": serving.resources,
                "applied_at": jiff::Timestamp::from_microsecond(serving.applied_at_us).ok().map(|at| at.to_string()),
                "apply_ms": serving.took.as_secs_f64() * 1e3,
            })
        });
        json!({
            "node_id": status.node_id,
            "serving": serving,
            "origin": status.origin,
            "connected": status.connected,
            "rejected": rejected,
            "crashed": status.crashed.as_ref().map(crashed_report),
            "proven": status.proven.as_ref().map(exact_report),
        })
    }
}

fn exact_report(exact: &ExactRevision) -> Value {
    json!({"epoch": &*exact.revision.epoch, "revision": exact.revision.number, "digest": exact.digest})
}

fn crashed_report(crashed: &CrashedRevision) -> Value {
    let mut report = exact_report(&crashed.exact);
    report["crashes"] = crashed.times.into();
    report["message"] = crashed.message.as_str().into();
    report
}

fn upstream_report(upstream: &Upstream) -> Value {
    let view = upstream.members.view();
    let now = Instant::now();
    let target = |(index, target): (usize, &Arc<Target>)| {
        let health = target.health();
        let mut why = Vec::new();
        if health.checks.passed == Some(false) {
            why.push(format!(
                "its checks fail: {}",
                health.checks.failure.as_deref().unwrap_or("now and then")
            ));
        }
        if let Some(until) = health.ejection.until {
            let left = until.saturating_duration_since(now).as_secs_f64();
            why.push(format!("requests to it failed: ejected for another {left:.1} s"));
        }
        json!({
            "target": target.label,
            "address": target.address,
            "health": if health.healthy { "healthy" } else { "unhealthy" },
            "why": why,
            "since": health.since.to_string(),
            "checked": health.checks.passed,
            "warming": health.warming.is_some(),
            "failures": target.failures(),
            "share": view.share(index),
            "in_flight": upstream.counts_in_flight().then(|| target.in_flight()),
            "last_error": target.last_error().as_ref().map(error_report),
        })
    };
    json!({
        "upstream": upstream.name.as_str(),
        "healthy": view.healthy,
        "panic": view.panic,
        "ejections": upstream.members.ejections(),
        "unresolved": upstream.members.unresolved(),
        "resolution_errors": upstream.members.resolution_errors().into_iter().map(|(target, error, at)| {
            json!({"target": target, "error": error, "at": at.to_string()})
        }).collect::<Vec<_>>(),
        "targets": view.targets.iter().enumerate().map(target).collect::<Vec<_>>(),
    })
}

/// The reason why a target did not answer.
fn error_report(error: &LastError) -> Value {
    json!({"reason": error.reason.as_str(), "error": error.detail, "at": error.at.to_string()})
}

fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(whole(body.to_string().into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn not_allowed(allow: &'static str) -> Response<Body> {
    let mut response = problem::response(StatusCode::METHOD_NOT_ALLOWED, "Use another method.", b"");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response.map(whole)
}
