//! The discovery service as gRPC over HTTP: it opens a stream for each call. Written by hand, because the generated
//! server encodes every message for every stream.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderValue, header};
use signalbox_proto::PROCESS_HEADER;
use signalbox_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use signalbox_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::SERVICE_NAME;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codec::BufferSettings;
use tonic::server::NamedService;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstDecoder;
use tower_service::Service;
use tracing::Instrument;

use super::admission::exhausted;
use super::body::MessageBody;
use super::shared::Shared;
use super::stream::{self, Peer};
use super::token::authorize;

/// The discovery service.
#[derive(Clone)]
pub(super) struct Discovery(pub(super) Arc<Shared>);

impl NamedService for Discovery {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for Discovery {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let response = match request.uri().path().rsplit('/').next() {
            Some(DELTA) => self.delta(request),
            _ => Err(Status::unimplemented("this control plane serves DeltaAggregatedResources alone")),
        };
        ready(Ok(response.unwrap_or_else(Status::into_http)))
    }
}

impl Discovery {
    fn delta(&self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let request = Request::from_http(request);
        let token = authorize(&request, &self.0)?;
        if self.0.tasks.len() >= MAX_STREAMS {
            return Err(exhausted("this control plane has all the streams it can take"));
        }
        let encoding = request.metadata().get("grpc-encoding");
        if encoding.is_some_and(|encoding| encoding.as_encoded_bytes() != b"identity") {
            return Err(Status::unimplemented("requests must not be compressed"));
        }
        let address = request.remote_addr();
        let takes_zstd = takes_zstd(&request);
        let peer = Peer { address, token, process: process_of(&request), takes_zstd };
        let decoder =
            ProstDecoder::<DeltaDiscoveryRequest>::new(BufferSettings::new(READ_BUFFER, READ_BUFFER));
        let inbound = Streaming::new_request(decoder, request.into_inner(), None, Some(MAX_REQUEST));
        // One in the channel, one in the transport's hands: more would be computed before it can be written.
        let (outbound, messages) = mpsc::channel(1);
        let span = tracing::info_span!("xds", peer = address.map(tracing::field::display));
        let stream = stream::serve(self.0.clone(), inbound, outbound, peer);
        self.0.tasks.spawn(stream.instrument(span));
        let mut response = http::Response::new(Body::new(MessageBody::new(messages)));
        response.headers_mut().insert(header::CONTENT_TYPE, GRPC);
        if takes_zstd {
            response.headers_mut().insert("grpc-encoding", HeaderValue::from_static(ZSTD));
        }
        Ok(response)
    }
}

/// The process of the proxy, as it says; empty: it says nothing that can be one.
fn process_of<T>(request: &Request<T>) -> Arc<str> {
    let text =
        request.metadata().get(PROCESS_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_id = text.len() <= MAX_PROCESS && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_id { text.into() } else { "".into() }
}

/// True if the client decompresses zstd. Envoy does not.
fn takes_zstd<T>(request: &Request<T>) -> bool {
    let offers = request.metadata().get_all("grpc-accept-encoding").iter();
    let mut offered = offers.filter_map(|offer| offer.to_str().ok()).flat_map(|offer| offer.split(','));
    offered.any(|encoding| encoding.trim() == ZSTD)
}

const ZSTD: &str = "zstd";

const MAX_PROCESS: usize = 64;

const DELTA: &str = "DeltaAggregatedResources";

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// Streams to one control plane.
const MAX_STREAMS: usize = 20_000;

/// A request has names and versions, and no resources. A client that lists more than this is to present a marker.
const MAX_REQUEST: usize = 4 << 20;

/// The initial size of the buffer for a stream's requests, in bytes: an acknowledgement is much smaller.
const READ_BUFFER: usize = 512;
