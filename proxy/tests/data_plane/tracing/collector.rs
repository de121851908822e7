//! A collector: a real server of OTLP, over HTTP or gRPC, that keeps the spans which it gets.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use prost::Message as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic_prost::ProstCodec;
use tower_service::Service;

use crate::harness::{Backend, full, until};

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<RawSpan>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RawSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<SpanStatus>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SpanStatus {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 2, 3")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(int64, tag = "3")]
    Number(i64),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ExportResponse {}

pub(crate) const SERVER: i32 = 2;
pub(crate) const CLIENT: i32 = 3;

/// A span, with ids in hexadecimal digits and attributes as text.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) trace_id: String,
    pub(crate) span_id: String,
    pub(crate) state: String,
    pub(crate) parent: String,
    pub(crate) name: String,
    pub(crate) kind: i32,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) is_error: bool,
    pub(crate) flags: u32,
    pub(crate) service: String,
    attributes: BTreeMap<String, String>,
}

impl Span {
    /// An attribute; empty: the span does not have it.
    pub(crate) fn get(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

/// A collector.
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    calls: Arc<Mutex<Vec<HeaderMap>>>,
    _server: Option<Backend>,
}

/// The answer to a call: a status, headers and a body.
pub(crate) type Answer = (u16, &'static [(&'static str, &'static str)], &'static [u8]);

/// Everything was taken.
pub(crate) const TAKEN: Answer = (200, &[], b"");

impl Collector {
    /// Starts a collector over HTTP.
    pub(crate) fn http() -> Self {
        Self::answering(|_| TAKEN)
    }

    /// Starts a collector over HTTP that answers the call of this number by `answer`. It keeps the spans of calls that it takes.
    pub(crate) fn answering(answer: impl Fn(usize) -> Answer + Send + Sync + 'static) -> Self {
        let (spans, calls) = (Arc::<Mutex<Vec<Span>>>::default(), Arc::<Mutex<Vec<HeaderMap>>>::default());
        let (kept, noted, answer) = (Arc::clone(&spans), Arc::clone(&calls), Arc::new(answer));
        let server = Backend::start(move |request| {
            let (kept, noted, answer) = (Arc::clone(&kept), Arc::clone(&noted), Arc::clone(&answer));
            async move {
                let (head, body) = request.into_parts();
                assert_eq!((head.method.as_str(), head.uri.path()), ("POST", "/v1/traces"));
                assert_eq!(head.headers["content-type"], "application/x-protobuf");
                let body = body.collect().await.unwrap().to_bytes();
                let export = ExportRequest::decode(body).unwrap();
                let number = {
                    let mut noted = noted.lock().unwrap();
                    noted.push(head.headers);
                    noted.len() - 1
                };
                let (status, headers, body) = answer(number);
                if status == 200 {
                    kept.lock().unwrap().extend(read(export));
                }
                let mut response = Response::builder().status(status);
                for (name, value) in headers {
                    response = response.header(*name, *value);
                }
                response.body(full(body)).unwrap()
            }
        });
        Self { address: server.address, spans, calls, _server: Some(server) }
    }

    /// Starts a collector over gRPC.
    pub(crate) async fn grpc() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (spans, calls) = (Arc::<Mutex<Vec<Span>>>::default(), Arc::<Mutex<Vec<HeaderMap>>>::default());
        let service = TraceService { spans: Arc::clone(&spans), calls: Arc::clone(&calls) };
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, spans, calls, _server: None }
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }

    /// The headers of its calls.
    pub(crate) fn calls(&self) -> Vec<HeaderMap> {
        self.calls.lock().unwrap().clone()
    }

    /// Its spans, once there are so many, by kind and time.
    pub(crate) async fn wait(&self, count: usize) -> Vec<Span> {
        until("the spans have arrived", || self.spans.lock().unwrap().len() >= count).await;
        let mut spans = self.spans();
        spans.sort_by_key(|span| (span.kind, span.start));
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }

    /// Forgets its spans.
    pub(crate) fn clear(&self) {
        self.spans.lock().unwrap().clear();
    }
}

fn read(export: ExportRequest) -> Vec<Span> {
    let mut spans = Vec::new();
    for ResourceSpans { resource, scope_spans } in export.resource_spans {
        let resource = texts(resource.unwrap().attributes);
        for ScopeSpans { scope, spans: raw } in scope_spans {
            assert_eq!(scope.unwrap().name, "signalbox");
            for span in raw {
                assert!(span.start <= span.end);
                spans.push(Span {
                    trace_id: hex(&span.trace_id),
                    span_id: hex(&span.span_id),
                    state: span.trace_state,
                    parent: hex(&span.parent_span_id),
                    name: span.name,
                    kind: span.kind,
                    start: span.start,
                    end: span.end,
                    is_error: span.status.is_some_and(|status| status.code == 2),
                    flags: span.flags,
                    service: resource["service.name"].clone(),
                    attributes: texts(span.attributes),
                });
            }
        }
    }
    spans
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let count = attributes.len();
    let texts: BTreeMap<_, _> = attributes
        .into_iter()
        .map(|KeyValue { key, value }| {
            let text = match value.unwrap().value.unwrap() {
                Value::Text(text) => text,
                Value::Bool(is_true) => is_true.to_string(),
                Value::Number(number) => number.to_string(),
            };
            (key, text)
        })
        .collect();
    assert_eq!(texts.len(), count, "no key comes twice");
    texts
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Clone)]
struct TraceService {
    spans: Arc<Mutex<Vec<Span>>>,
    calls: Arc<Mutex<Vec<HeaderMap>>>,
}

type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl tonic::server::NamedService for TraceService {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl Service<Request<Body>> for TraceService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Later<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        assert!(request.uri().path().ends_with("/Export"));
        self.calls.lock().unwrap().push(request.headers().clone());
        let export = Export(Arc::clone(&self.spans));
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<ExportResponse, ExportRequest>::default());
        Box::pin(async move { Ok(grpc.unary(export, request).await) })
    }
}

struct Export(Arc<Mutex<Vec<Span>>>);

impl Service<tonic::Request<ExportRequest>> for Export {
    type Response = tonic::Response<ExportResponse>;
    type Error = tonic::Status;
    type Future = Later<Result<Self::Response, tonic::Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), tonic::Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<ExportRequest>) -> Self::Future {
        self.0.lock().unwrap().extend(read(request.into_inner()));
        Box::pin(async { Ok(tonic::Response::new(ExportResponse {})) })
    }
}
