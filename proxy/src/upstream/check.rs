//! Active checks: one task per target, on the control side, while the upstream has the target.

use std::future::{Future, poll_fn};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version, header, response};
use prost::Message;
use signalbox_config::{ActiveCheck, Probe, UpstreamProtocol};
use signalbox_process::ErrorChain;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tracing::warn;

use super::connect::connect;
use super::endpoint::Endpoint;
use super::error::ConnectError;
use super::target::Target;
use crate::resolve::Changes;
use crate::services::Checking;
use crate::wire::tls::{HTTP2, Offer, UpstreamTls};

/// Checks a target periodically until it is dropped.
#[derive(Debug)]
pub(super) struct Checker {
    plan: Plan,
    task: AbortHandle,
}

/// How a target is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) check: ActiveCheck,
    /// The protocol that the upstream's targets speak.
    pub(super) protocol: UpstreamProtocol,
    /// The TLS settings, if TLS is used.
    pub(super) tls: Option<Arc<UpstreamTls>>,
}

/// The message `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// The message `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

/// The maximum size of a response head or a message, in bytes.
const MAX_ANSWER: usize = 64 << 10;

const USER_AGENT: &str = "signalbox-health-check";

impl Checker {
    /// Starts checking; the first check runs at once. `changes` is notified when the verdict changes.
    pub(super) fn start(target: &Arc<Target>, plan: &Plan, changes: &Changes, checking: &Checking) -> Self {
        let permits = Arc::clone(checking.permits());
        let run = run(Arc::clone(target), plan.clone(), Arc::clone(changes), permits);
        Self { plan: plan.clone(), task: checking.handle().spawn(run).abort_handle() }
    }

    /// The task's id, by which the target knows its checker.
    pub(super) fn id(&self) -> tokio::task::Id {
        self.task.id()
    }

    /// True if it follows this plan.
    pub(super) fn is(&self, plan: &Plan) -> bool {
        self.plan == *plan
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(target: Arc<Target>, plan: Plan, changes: Changes, permits: Arc<Semaphore>) {
    let check = &plan.check;
    loop {
        let Ok(permit) = permits.acquire().await else { return };
        let result = match tokio::time::timeout(check.timeout, probe(&target, &plan)).await {
            Ok(Ok(())) => Some(Ok(())),
            Ok(Err(ProbeError::Target(reason))) => Some(Err(reason)),
            Ok(Err(ProbeError::Local(error))) => {
                warn!(target = %target.label, error = %ErrorChain(&error), "cannot check the target");
                None
            }
            Err(_) => Some(Err("no answer in time".to_owned())),
        };
        drop(permit);
        let turned = result.is_some_and(|result| {
            let mut health = target.health();
            health.checked_by == tokio::task::try_id()
                && health.checks.record(result, check.healthy_after, check.unhealthy_after)
        });
        if turned {
            changes.send_replace(());
        }
        tokio::time::sleep(jittered(check.interval)).await;
    }
}

/// Varies the interval by ±10 %, so that the checks of many proxies do not coincide.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * fastrand::f64())
}

/// The reason why a check did not succeed.
enum ProbeError {
    Target(String),
    /// The check could not be made, which says nothing about the target.
    Local(ConnectError),
}

impl From<String> for ProbeError {
    fn from(reason: String) -> Self {
        Self::Target(reason)
    }
}

/// Makes one check.
async fn probe(target: &Target, Plan { check, protocol, tls }: &Plan) -> Result<(), ProbeError> {
    // gRPC needs HTTP/2, whatever else the target speaks.
    let offer = if matches!(check.probe, Probe::Grpc { .. }) { Offer::Http2 } else { Offer::Any };
    // A TCP check asks only for an accepted connection, so it makes no TLS handshake.
    let tls = tls.as_deref().filter(|_| check.probe != Probe::Tcp);
    let settings = tls.map_or(0, |tls| tls.settings(&target.label));
    let endpoint = Endpoint { address: target.address, settings, only_of: 0 };
    let stream = connect(endpoint, tls, offer, check.timeout).await.map_err(|error| match &error {
        // Ports run out per destination, and an address may be missing for a whole family, so this does not concern
        // all targets.
        ConnectError::NoRoom(io) if io.kind() == io::ErrorKind::AddrNotAvailable => {
            ProbeError::Target(format!("cannot connect: {}", ErrorChain(io)))
        }
        ConnectError::NoRoom(_) => ProbeError::Local(error),
        error => ProbeError::Target(format!("cannot connect: {}", ErrorChain(error))),
    })?;
    let host = check.host.as_deref().unwrap_or(&target.label);
    let scheme = if tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
    match &check.probe {
        Probe::Tcp => Ok(()),
        Probe::Http { path, statuses } => {
            let http2 = match protocol {
                UpstreamProtocol::Http1 => false,
                UpstreamProtocol::Http2 => true,
                UpstreamProtocol::Auto => stream.agreed() == Some(HTTP2),
            };
            let status = match http2 {
                false => get(stream, host, path).await?,
                true => get_http2(stream, scheme, host, path).await?,
            };
            if statuses.contains(&status) { Ok(()) } else { Err(format!("answers {status}").into()) }
        }
        Probe::Grpc { service } => Ok(grpc(stream, scheme, host, service).await?),
    }
}

/// Returns the status of a GET over HTTP/1.1.
async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin, host: &str, path: &str) -> Result<u16, String> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: {USER_AGENT}\r\naccept: */*\r\nconnection: close\r\n\r\n"
    );
    let sent = async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await
    };
    sent.await.map_err(|error| format!("cannot send: {error}"))?;
    let mut buffer = BytesMut::with_capacity(4 << 10);
    loop {
        let read = stream.read_buf(&mut buffer).await.map_err(|error| format!("no answer: {error}"))?;
        if read == 0 {
            return Err("closed without an answer".to_owned());
        }
        let mut headers = [httparse::EMPTY_HEADER; 128];
        let mut head = httparse::Response::new(&mut headers);
        match head.parse(&buffer) {
            // An interim response is skipped.
            Ok(httparse::Status::Complete(length)) if head.code.is_some_and(|code| code < 200) => {
                drop(buffer.split_to(length));
            }
            Ok(httparse::Status::Complete(_)) => {
                return head.code.ok_or_else(|| "answers without a status".to_owned());
            }
            Ok(httparse::Status::Partial) if buffer.len() < MAX_ANSWER => {}
            Ok(httparse::Status::Partial) => return Err("answers with too large a head".to_owned()),
            Err(error) => return Err(format!("does not speak HTTP/1.1: {error}")),
        }
    }
}

/// Returns the status of a GET over HTTP/2.
async fn get_http2(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    scheme: Scheme,
    host: &str,
    path: &str,
) -> Result<u16, String> {
    let (head, _, _) = exchange(stream, request(Method::GET, scheme, host, path)?, None).await?;
    Ok(head.status.as_u16())
}

/// Builds the head of a request over HTTP/2.
fn request(method: Method, scheme: Scheme, host: &str, path: &str) -> Result<Request<()>, String> {
    let uri = Uri::builder().scheme(scheme).authority(host).path_and_query(path).build();
    let uri = uri.map_err(|error| format!("the request cannot be built: {error}"))?;
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    Ok(request)
}

/// Calls `grpc.health.v1.Health`.
async fn grpc(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    scheme: Scheme,
    host: &str,
    service: &str,
) -> Result<(), String> {
    let mut request = request(Method::POST, scheme, host, "/grpc.health.v1.Health/Check")?;
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    let message = HealthCheckRequest { service: service.to_owned() };
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(message.encoded_len() as u32);
    body.extend_from_slice(&message.encode_to_vec());
    let (head, data, trailers) = exchange(stream, request, Some(body.freeze())).await?;
    if head.status != StatusCode::OK {
        return Err(format!("answers {}", head.status.as_u16()));
    }
    let headers = head.headers;
    let status =
        trailers.as_ref().unwrap_or(&headers).get("grpc-status").or_else(|| headers.get("grpc-status"));
    match status.and_then(|status| status.to_str().ok()) {
        Some("0") => {}
        // NOT_FOUND in the gRPC health checking protocol: the server does not know the service.
        Some("5") => return Err(format!("does not know the service {service:?}")),
        Some(status) => return Err(format!("answers with the gRPC status {status}")),
        None => return Err("answers without a gRPC status".to_owned()),
    }
    let message = data.get(5..).ok_or("answers with no message")?;
    match HealthCheckResponse::decode(message) {
        Ok(HealthCheckResponse { status: SERVING }) => Ok(()),
        Ok(HealthCheckResponse { status }) => Err(format!("reports that it is not serving ({status})")),
        Err(error) => Err(format!("sends an invalid message: {error}")),
    }
}

/// Makes one request over HTTP/2, on a connection of its own.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<()>,
    body: Option<Bytes>,
) -> Result<(response::Parts, Bytes, Option<HeaderMap>), String> {
    let wrong = |error: h2::Error| format!("does not speak HTTP/2: {error}");
    let (sender, mut connection) = h2::client::handshake(stream).await.map_err(wrong)?;
    let talk = async {
        let mut sender = sender.ready().await.map_err(wrong)?;
        let (response, mut sending) = sender.send_request(request, body.is_none()).map_err(wrong)?;
        if let Some(body) = body {
            sending.send_data(body, true).map_err(wrong)?;
        }
        let (head, mut answer) = response.await.map_err(wrong)?.into_parts();
        let mut data = BytesMut::new();
        while let Some(part) = answer.data().await {
            let part = part.map_err(wrong)?;
            // Releasing capacity fails only when the stream is over.
            let _ = answer.flow_control().release_capacity(part.len());
            data.extend_from_slice(&part);
            if data.len() > MAX_ANSWER {
                return Err("answers with too long a message".to_owned());
            }
        }
        let trailers = answer.trailers().await.map_err(wrong)?;
        Ok((head, data.freeze(), trailers))
    };
    tokio::select! {
        biased;
        answer = talk => answer,
        ended = poll_fn(|cx| std::pin::Pin::new(&mut connection).poll(cx)) => Err(match ended {
            Ok(()) => "closed without an answer".to_owned(),
            Err(error) => wrong(error),
        }),
    }
}
