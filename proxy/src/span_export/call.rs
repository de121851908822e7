//! Calls to a collector by OTLP: protobuf over HTTP/1.1, or gRPC over HTTP/2.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use rustls::pki_types::ServerName;
use signalbox_config::{OtlpProtocol, TraceExporter};
use signalbox_plugin::grpc;
use signalbox_plugin::otlp;
use signalbox_proto::google::rpc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::secrets::{HostSecrets, header_value};
use crate::telemetry::spans::EXPORTER;
use crate::wire::tls::{self, HTTP1, HTTP2};

/// Calls one collector. It keeps a connection between calls.
pub(super) struct Caller {
    exporter: TraceExporter,
    mark: HeaderValue,
    connection: Option<Sender>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// Why a collector has not taken spans.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("the header {0}: {1}")]
    Header(header::HeaderName, String),
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    #[error("the TLS settings: {0}")]
    Tls(String),
    #[error("the connection failed")]
    Http(#[from] hyper::Error),
    #[error("there was no answer in {0:?}")]
    Timeout(Duration),
    #[error("the answer cannot be read")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("status {0}")]
    Status(StatusCode, Option<Duration>),
    #[error("gRPC status {0}: {1}")]
    Grpc(u32, String, Option<Duration>),
    #[error("the proxy has ended, or its configuration has changed")]
    Ended,
}

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 10;

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// The trailer with details of a status, as base64.
const DETAILS: &str = "grpc-status-details-bin";

impl CallError {
    /// The pause that the collector asks for before the call is made again, if it does. `None`: it must not be made again.
    pub(super) fn retry(&self) -> Option<Option<Duration>> {
        match self {
            Self::Connect(_) | Self::Http(_) | Self::Timeout(_) | Self::Header(..) => Some(None),
            Self::Status(status, after) => otlp::is_retryable(*status).then_some(*after),
            // "OTLP/gRPC Response", of which RESOURCE_EXHAUSTED only with a time.
            Self::Grpc(1 | 4 | 10 | 11 | 14 | 15, _, after) => Some(*after),
            Self::Grpc(8, _, Some(after)) => Some(Some(*after)),
            // The answer may say that the spans were taken, so they must not come twice.
            Self::Grpc(..) | Self::Answer(_) | Self::Tls(_) | Self::Ended => None,
        }
    }
}

impl Caller {
    pub(super) fn new(exporter: TraceExporter, mark: HeaderValue) -> Self {
        Self { exporter, mark, connection: None }
    }

    pub(super) fn url(&self) -> &Uri {
        &self.exporter.url
    }

    /// Sends spans, and returns the number of those that were rejected.
    pub(super) async fn call(&mut self, body: Bytes) -> Result<u64, CallError> {
        let timeout = self.exporter.timeout;
        let called = tokio::time::timeout(timeout, self.exchange(body)).await;
        let called = called.unwrap_or(Err(CallError::Timeout(timeout)));
        if matches!(called, Err(CallError::Timeout(_) | CallError::Http(_) | CallError::Answer(_))) {
            self.connection = None;
        }
        called
    }

    async fn exchange(&mut self, body: Bytes) -> Result<u64, CallError> {
        let request = self.request(body)?;
        let mut connection = match self.take_connection().await {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let response = match &mut connection {
            Sender::Http1(sender) => sender.send_request(request).await?,
            Sender::Http2(sender) => sender.send_request(request).await?,
        };
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(CallError::Answer)?;
        self.connection = Some(connection);
        let trailers = body.trailers().cloned();
        let answer = Response::from_parts(head, body.to_bytes());
        match self.exporter.protocol {
            OtlpProtocol::HttpProtobuf => judge_http(&answer),
            OtlpProtocol::Grpc => judge_grpc(&answer, trailers.as_ref()),
        }
    }

    fn request(&self, body: Bytes) -> Result<Request<Full<Bytes>>, CallError> {
        let is_grpc = self.exporter.protocol == OtlpProtocol::Grpc;
        let body = if is_grpc { grpc::frame(&body) } else { body };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = http::Method::POST;
        let url = &self.exporter.url;
        let headers = request.headers_mut();
        for (name, value) in &self.exporter.headers {
            let value =
                header_value(value, &HostSecrets).map_err(|error| CallError::Header(name.clone(), error))?;
            headers.insert(name, value);
        }
        headers.insert(EXPORTER, self.mark.clone());
        headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static("signalbox"));
        if is_grpc {
            headers.insert(header::CONTENT_TYPE, GRPC);
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = url.clone();
        } else {
            headers.insert(header::CONTENT_TYPE, PROTOBUF);
            let host = url.authority().and_then(|host| HeaderValue::try_from(host.as_str()).ok());
            headers.extend(host.map(|host| (header::HOST, host)));
            *request.uri_mut() = url.path_and_query().cloned().map_or(Uri::from_static("/"), Uri::from);
        }
        Ok(request)
    }

    /// The connection of the call before, if it still is one.
    async fn take_connection(&mut self) -> Option<Sender> {
        let mut connection = self.connection.take()?;
        let is_ready = match &mut connection {
            Sender::Http1(sender) => sender.ready().await.is_ok(),
            Sender::Http2(sender) => sender.ready().await.is_ok(),
        };
        is_ready.then_some(connection)
    }

    async fn connect(&self) -> Result<Sender, CallError> {
        let url = &self.exporter.url;
        let is_tls = url.scheme_str() == Some("https");
        let host = url.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = url.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await.map_err(CallError::Connect)?;
        // This fails only when the connection is gone, which the next write reports.
        let _ = stream.set_nodelay(true);
        if !is_tls {
            return self.handshake(stream).await;
        }
        let protocol = match self.exporter.protocol {
            OtlpProtocol::HttpProtobuf => HTTP1,
            OtlpProtocol::Grpc => HTTP2,
        };
        let config = tls::client_config(protocol).map_err(CallError::Tls)?;
        let name =
            ServerName::try_from(host.to_owned()).map_err(|error| CallError::Tls(error.to_string()))?;
        let connector = TlsConnector::from(Arc::new(config));
        self.handshake(connector.connect(name, stream).await.map_err(CallError::Connect)?).await
    }

    async fn handshake<S>(&self, stream: S) -> Result<Sender, CallError>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        // The tasks end with their senders.
        Ok(match self.exporter.protocol {
            OtlpProtocol::HttpProtobuf => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection);
                Sender::Http1(sender)
            }
            OtlpProtocol::Grpc => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                Sender::Http2(sender)
            }
        })
    }
}

fn judge_http(answer: &Response<Bytes>) -> Result<u64, CallError> {
    if !answer.status().is_success() {
        return Err(CallError::Status(answer.status(), retry_after(answer.headers())));
    }
    Ok(otlp::rejected(answer.body()))
}

fn judge_grpc(answer: &Response<Bytes>, trailers: Option<&HeaderMap>) -> Result<u64, CallError> {
    if !answer.status().is_success() {
        return Err(CallError::Status(answer.status(), retry_after(answer.headers())));
    }
    // A call that fails may have its status in place of the headers.
    let fields = trailers.filter(|fields| fields.contains_key(grpc::GRPC_STATUS)).unwrap_or(answer.headers());
    let text = |name: &str| fields.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").and_then(|status| status.parse().ok()) {
        Some(0) => {
            // Behind the flag and the length of the only message.
            Ok(otlp::rejected(answer.body().get(5..).unwrap_or_default()))
        }
        status => {
            let message = text("grpc-message").unwrap_or_default().to_owned();
            let details = text(DETAILS).and_then(retry_delay);
            // UNKNOWN
            Err(CallError::Grpc(status.unwrap_or(2), message, details))
        }
    }
}

/// The pause of `Retry-After`, which is a number of seconds or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    otlp::retry_after(headers).or_else(|| {
        let date = httpdate::parse_http_date(headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim()).ok()?;
        Some(date.duration_since(SystemTime::now()).unwrap_or_default())
    })
}

/// `google.rpc.RetryInfo`
#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

/// The pause of the details of a gRPC status.
fn retry_delay(details: &str) -> Option<Duration> {
    let text = details.trim_end_matches('=');
    let bytes = STANDARD_NO_PAD.decode(text).or_else(|_| STANDARD.decode(details)).ok()?;
    let status = rpc::Status::decode(&*bytes).ok()?;
    let info = status.details.iter().find(|detail| detail.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(&*info.value).ok()?.retry_delay?;
    Duration::try_from(delay).ok()
}
