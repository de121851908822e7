//! The proxies' own client against a control plane that says what a test wants, right or wrong.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use serde_json::json;
use signalbox_config::{Change, Kind, Resource, RevisionId, Snapshot, wire};
use signalbox_plugins::builtin;
use signalbox_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use signalbox_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource,
};
use signalbox_proto::google::protobuf::Any;
use signalbox_proto::signalbox::config::v1::Rejection;
use signalbox_proto::{MARKER_NAME, RESOURCE_TYPE_URL};
use signalbox_proxy::source::CrashLoops;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::RoutesBuilder;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::harness::*;

pub(crate) struct Scripted {
    address: SocketAddr,
    streams: mpsc::Receiver<Stream>,
}

pub(crate) struct Stream {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    nonces: usize,
}

struct Service(mpsc::Sender<Stream>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, outbound) = mpsc::channel(16);
        let stream = Stream { requests: request.into_inner(), responses, nonces: 0 };
        self.0.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(outbound)))
    }
}

impl Scripted {
    async fn start() -> Self {
        Self::start_with(RoutesBuilder::default()).await
    }

    /// A control plane that has other services, too.
    pub(crate) async fn start_with(mut services: RoutesBuilder) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::channel(16);
        services.add_service(AggregatedDiscoveryServiceServer::new(Service(sender)));
        let server = Server::builder().add_routes(services.routes());
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        Self { address, streams }
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        vec![format!("http://{}", self.address)]
    }

    /// The next stream, and its first request.
    pub(crate) async fn accept(&mut self) -> (Stream, DeltaDiscoveryRequest) {
        let mut stream = soon("the proxy connects", self.streams.recv()).await.unwrap();
        let first = stream.request().await;
        (stream, first)
    }
}

impl Stream {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        soon("the proxy says something", self.requests.message()).await.unwrap().unwrap()
    }

    /// Sends a response; its nonce.
    pub(crate) async fn send(&mut self, resources: Vec<WireResource>, removed: &[&str]) -> String {
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        let response = DeltaDiscoveryResponse {
            resources,
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            type_url: RESOURCE_TYPE_URL.to_owned(),
            nonce: nonce.clone(),
            ..Default::default()
        };
        self.responses.send(Ok(response)).await.unwrap();
        nonce
    }

    pub(crate) async fn expect_ack(&mut self, nonce: &str) {
        let request = self.request().await;
        assert_eq!((request.response_nonce.as_str(), request.error_detail), (nonce, None));
    }

    async fn expect_nack(&mut self, nonce: &str) -> Rejection {
        let request = self.request().await;
        assert_eq!(request.response_nonce, nonce);
        let detail = request.error_detail.expect("it is rejected").details.remove(0);
        assert_eq!(detail.type_url, "type.googleapis.com/signalbox.config.v1.Rejection");
        Rejection::decode(detail.value).unwrap()
    }
}

fn resource(name: &str, body: &str) -> Arc<Resource> {
    let mut spec = route(body);
    spec["name"] = name.into();
    Arc::new(Resource::parse(Kind::Route, spec, builtin()).unwrap())
}

fn snapshot(number: u64, resources: &[&Arc<Resource>]) -> Snapshot {
    let id = RevisionId { epoch: "e".into(), number };
    Snapshot::empty("e").with(id, 1, resources.iter().map(|resource| Change::Put((*resource).clone())))
}

pub(crate) fn sent(resource: &Resource) -> WireResource {
    named(&resource.key().to_string(), resource.encoded())
}

pub(crate) fn marker(snapshot: &Snapshot, full: bool) -> WireResource {
    named(MARKER_NAME, wire::encode_marker(snapshot, full))
}

fn named(name: &str, value: Bytes) -> WireResource {
    let any = Any { type_url: RESOURCE_TYPE_URL.to_owned(), value };
    WireResource { name: name.to_owned(), resource: Some(any), ..Default::default() }
}

/// A proxy that serves `route/a` of revision 5, and its stream.
async fn serving_five(scripted: &mut Scripted, dir: &std::path::Path) -> (Proxy, Stream, Arc<Resource>) {
    let proxy = Proxy::start(&scripted.urls(), dir, "p");
    let (mut stream, _) = scripted.accept().await;
    let a = resource("a", "one");
    let nonce = stream.send(vec![sent(&a), marker(&snapshot(5, &[&a]), true)], &[]).await;
    stream.expect_ack(&nonce).await;
    (proxy, stream, a)
}

#[tokio::test]
async fn an_ack_means_that_the_revision_is_served() {
    let mut scripted = Scripted::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (proxy, _stream, _) = serving_five(&mut scripted, dir.path()).await;
    assert_eq!(proxy.serves(), Some(5));
}

#[tokio::test]
async fn nothing_of_a_revision_is_served_before_its_marker() {
    let mut scripted = Scripted::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (proxy, mut stream, a) = serving_five(&mut scripted, dir.path()).await;
    let (b, c) = (resource("b", "b"), resource("c", "c"));
    stream.send(vec![sent(&b)], &["route/a"]).await;
    drop(stream);
    // The staged resources are gone with their stream.
    let (mut stream, first) = scripted.accept().await;
    let presented = wire::marker_version(&snapshot(5, &[&a]));
    assert_eq!(first.initial_resource_versions[MARKER_NAME], presented);
    assert!(proxy.has(&snapshot(5, &[&a])));
    stream.send(vec![sent(&c)], &[]).await;
    let nonce = stream.send(vec![marker(&snapshot(6, &[&a, &c]), false)], &[]).await;
    stream.expect_ack(&nonce).await;
    assert!(proxy.has(&snapshot(6, &[&a, &c])));
}

#[tokio::test]
async fn drift_is_reported_and_followed_by_one_full_resync() {
    let mut scripted = Scripted::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (proxy, mut stream, a) = serving_five(&mut scripted, dir.path()).await;
    let (b, c) = (resource("b", "b"), resource("c", "c"));
    // The marker is of a set that has c, too.
    let whole = snapshot(6, &[&a, &b, &c]);
    let nonce = stream.send(vec![sent(&b), marker(&whole, false)], &[]).await;
    let rejection = stream.expect_nack(&nonce).await;
    assert!(rejection.drift);
    assert_eq!(rejection.revision, 6);
    assert!(rejection.errors[0].message.contains("has 2 resources here, and 3"), "{rejection:?}");
    assert_eq!(proxy.serves(), Some(5), "what was served stays");
    drop(stream);
    let (mut stream, first) = scripted.accept().await;
    assert!(first.initial_resource_versions.is_empty(), "it asks for everything");
    let nonce = stream.send(vec![sent(&a), sent(&b), sent(&c), marker(&whole, true)], &[]).await;
    stream.expect_ack(&nonce).await;
    assert!(proxy.has(&whole));
    // Everything was sent, and only the difference was a change.
    assert_eq!(proxy.recorder.with(|recorded| recorded.applied.clone()), [(5, 1), (6, 2)]);
}

/// Case 2.
#[tokio::test]
async fn an_older_revision_of_the_same_epoch_is_never_applied() {
    let mut scripted = Scripted::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (proxy, mut stream, a) = serving_five(&mut scripted, dir.path()).await;
    let old = resource("a", "old");
    for full in [true, false] {
        let nonce = stream.send(vec![sent(&old), marker(&snapshot(4, &[&old]), full)], &[]).await;
        let rejection = stream.expect_nack(&nonce).await;
        assert!(!rejection.drift);
        assert!(rejection.errors[0].message.contains("is older than revision 5"), "{rejection:?}");
    }
    assert!(proxy.has(&snapshot(5, &[&a])));
}

#[tokio::test]
async fn another_epoch_may_count_from_anywhere() {
    let mut scripted = Scripted::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (proxy, mut stream, a) = serving_five(&mut scripted, dir.path()).await;
    let id = RevisionId { epoch: "f".into(), number: 2 };
    let other = Snapshot::empty("f").with(id, 1, [Change::Put(a.clone())]);
    let nonce = stream.send(vec![sent(&a), marker(&other, true)], &[]).await;
    stream.expect_ack(&nonce).await;
    assert_eq!(proxy.serves(), Some(2));
}

#[tokio::test]
async fn a_duplicate_name_in_one_response_is_rejected() {
    let mut scripted = Scripted::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (proxy, mut stream, a) = serving_five(&mut scripted, dir.path()).await;
    let b = resource("b", "b");
    let set = snapshot(6, &[&a, &b]);
    let nonce = stream.send(vec![sent(&b), sent(&b), marker(&set, false)], &[]).await;
    let rejection = stream.expect_nack(&nonce).await;
    let error = &rejection.errors[0];
    assert_eq!((&*error.kind, &*error.name, &*error.message), ("route", "b", "is twice in one response"));
    // Named correctly, the same revision is good.
    let nonce = stream.send(vec![sent(&b), marker(&set, false)], &[]).await;
    stream.expect_ack(&nonce).await;
    assert!(proxy.has(&set));
    assert!(proxy.status.borrow().rejected.is_empty());
    assert_eq!(proxy.status.borrow().rejected_total, 1);
}

/// Case 15.
#[tokio::test]
async fn what_a_newer_control_plane_sends_is_rejected_by_name() {
    let mut scripted = Scripted::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (proxy, mut stream, a) = serving_five(&mut scripted, dir.path()).await;
    // A kind of field 9, which is not known here, and a route with a field that is not.
    let policy = named("policy/strict", Bytes::from_static(&[0x4a, 0x02, b'{', b'}']));
    let mut spec = route("b");
    spec["name"] = json!("b");
    spec["teleport"] = json!({"to": "mars"});
    spec["priority"] = json!("high");
    let json = serde_json::to_vec(&spec).unwrap();
    let mut bytes = Vec::new();
    // The field of routes.
    prost::encoding::bytes::encode(2, &json, &mut bytes);
    let newer = named("route/b", bytes.into());
    // In parts, for all that is wrong is told at once.
    stream.send(vec![policy], &[]).await;
    let nonce = stream.send(vec![newer, marker(&snapshot(6, &[&a]), false)], &[]).await;
    let rejection = stream.expect_nack(&nonce).await;
    let errors: Vec<_> = (rejection.errors.iter())
        .map(|error| format!("{}/{} {}: {}", error.kind, error.name, error.field, error.message))
        .collect();
    assert!(
        errors[0].starts_with("policy/strict : ") && errors[0].contains("kind that this version"),
        "{errors:?}"
    );
    assert!(errors.iter().any(|error| error.starts_with("route/b teleport: ")), "{errors:?}");
    assert!(errors.iter().any(|error| error.starts_with("route/b priority: ")), "{errors:?}");
    assert!(!rejection.drift);
    assert!(proxy.has(&snapshot(5, &[&a])));
}

/// Case 11.
#[tokio::test]
async fn a_reconnect_sends_only_the_marker_however_many_resources_there_are() {
    let mut scripted = Scripted::start().await;
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&scripted.urls(), dir.path(), "p");
    let (mut stream, _) = scripted.accept().await;
    let many: Vec<_> = (0..2000).map(|index| resource(&format!("r{index}"), "x")).collect();
    let set = snapshot(1, &many.iter().collect::<Vec<_>>());
    for part in many.chunks(500) {
        stream.send(part.iter().map(|resource| sent(resource)).collect(), &[]).await;
    }
    let nonce = stream.send(vec![marker(&set, true)], &[]).await;
    stream.expect_ack(&nonce).await;
    drop(stream);
    let (_stream, first) = scripted.accept().await;
    assert_eq!(first.initial_resource_versions.len(), 1);
    assert!(first.encoded_len() < 2048, "it names its plugin types, and no resource");
    assert!(proxy.has(&set));
}

#[tokio::test]
async fn an_ack_of_what_is_served_already_applies_nothing() {
    let mut scripted = Scripted::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (proxy, mut stream, a) = serving_five(&mut scripted, dir.path()).await;
    let set = snapshot(5, &[&a]);
    for (resources, full) in [(vec![], false), (vec![sent(&a)], true), (vec![sent(&a)], false)] {
        let mut resources = resources;
        resources.push(marker(&set, full));
        let nonce = stream.send(resources, &[]).await;
        stream.expect_ack(&nonce).await;
    }
    assert_eq!(proxy.recorder.with(|recorded| recorded.applied.len()), 1);
}

/// Settings with which every end of a proxy within a test counts as a crash.
fn watched() -> CrashLoops {
    CrashLoops { crash_window: DEADLINE, proven_after: DEADLINE, retry: Arc::default() }
}

/// Lets a proxy of `dir` crash three times on `revision`, as soon as it has acknowledged and stored it.
async fn crash_on(
    scripted: &mut Scripted,
    dir: &std::path::Path,
    revision: &Snapshot,
    resources: &[&Arc<Resource>],
) {
    for _ in 0..3 {
        let proxy = Proxy::start_watched(&scripted.urls(), dir, watched());
        let (mut stream, _) = scripted.accept().await;
        let mut all: Vec<_> = resources.iter().map(|resource| sent(resource)).collect();
        all.push(marker(revision, true));
        let nonce = stream.send(all, &[]).await;
        stream.expect_ack(&nonce).await;
        // The next start has it on disk, which must not come before what the control plane sends.
        eventually("it is on disk", || dir.join("snapshot").exists()).await;
        proxy.kill().await;
    }
}

#[tokio::test]
async fn a_proxy_refuses_exactly_the_revision_that_it_crashed_on() {
    let mut scripted = Scripted::start().await;
    let dir = tempfile::tempdir().unwrap();
    // Revision 5 is proven at once.
    let proven =
        CrashLoops { crash_window: Duration::ZERO, proven_after: Duration::ZERO, retry: Arc::default() };
    let proxy = Proxy::start_watched(&scripted.urls(), dir.path(), proven);
    let (mut stream, _) = scripted.accept().await;
    let (a, b, c) = (resource("a", "one"), resource("b", "b"), resource("c", "c"));
    let five = snapshot(5, &[&a]);
    let nonce = stream.send(vec![sent(&a), marker(&five, true)], &[]).await;
    stream.expect_ack(&nonce).await;
    eventually("it is proven", || proxy.status.borrow().proven.is_some()).await;
    proxy.stop().await.unwrap();

    let six = snapshot(6, &[&a, &b]);
    crash_on(&mut scripted, dir.path(), &six, &[&a, &b]).await;
    let proxy = Proxy::start_watched(&scripted.urls(), dir.path(), watched());
    let (mut stream, first) = scripted.accept().await;
    assert_eq!(proxy.serves(), Some(5));
    let presented = wire::marker_version(&five);
    assert_eq!(first.initial_resource_versions[MARKER_NAME], presented);
    for full in [true, false] {
        let mut resources = vec![sent(&b), marker(&six, full)];
        resources.splice(0..0, full.then(|| sent(&a)));
        let nonce = stream.send(resources, &[]).await;
        let rejection = stream.expect_nack(&nonce).await;
        assert_eq!((rejection.revision, rejection.drift), (6, false));
        assert!(rejection.errors[0].message.contains("crashed 3 times"), "{rejection:?}");
    }
    assert_eq!(proxy.status.borrow().crashed.as_ref().map(|crashed| crashed.exact.revision.number), Some(6));
    // Its number with other content is another revision.
    let other = snapshot(6, &[&a, &c]);
    let nonce = stream.send(vec![sent(&c), marker(&other, false)], &[]).await;
    stream.expect_ack(&nonce).await;
    assert!(proxy.has(&other));
}

#[tokio::test]
async fn without_a_proven_revision_the_same_one_is_refused_only_for_a_while() {
    let mut scripted = Scripted::start().await;
    let dir = tempfile::tempdir().unwrap();
    let a = resource("a", "one");
    let five = snapshot(5, &[&a]);
    crash_on(&mut scripted, dir.path(), &five, &[&a]).await;
    let proxy = Proxy::start_watched(&scripted.urls(), dir.path(), watched());
    let (mut stream, first) = scripted.accept().await;
    assert!(first.initial_resource_versions.is_empty(), "it serves nothing yet");
    let nonce = stream.send(vec![sent(&a), marker(&five, true)], &[]).await;
    let rejection = stream.expect_nack(&nonce).await;
    assert!(rejection.errors[0].message.contains("it is tried again soon"), "{rejection:?}");
    stream.expect_ack(&nonce).await;
    assert!(proxy.has(&five));
    proxy.kill().await;
    // The same from disk, while no control plane answers; and another revision is taken at once.
    let proxy = Proxy::start_watched(&["http://127.0.0.1:1".to_owned()], dir.path(), watched());
    proxy.until_serves(5).await;
    proxy.kill().await;
    let proxy = Proxy::start_watched(&scripted.urls(), dir.path(), watched());
    let (mut stream, _) = scripted.accept().await;
    let six = snapshot(6, &[&a]);
    let nonce = stream.send(vec![sent(&a), marker(&six, true)], &[]).await;
    stream.expect_ack(&nonce).await;
    assert!(proxy.has(&six));
}
