//! The counts by generation, from a real proxy to a control plane that asks for what a test wants.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use signalbox_config::{Assignment, Change, Kind, Resource, RevisionId, Snapshot};
use signalbox_plugins::builtin;
use signalbox_proto::NODE_HEADER;
use signalbox_proto::signalbox::report::v1::report_service_server::{ReportService, ReportServiceServer};
use signalbox_proto::signalbox::report::v1::{
    BlobPart, BlobRequest, Counts, CountsRequest, ProxyReport, Purged, Purges, ReportSummary, StatsReport,
    StatsRequest,
};
use signalbox_tests::{Backend, Proxy, free_port, get};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status, Streaming};

use crate::harness::{DEADLINE, eventually, soon};
use crate::scripted::{self, Scripted};

/// The side of a control plane that takes reports.
struct Reports {
    /// `None`: it does not know the call.
    counts: Option<mpsc::Sender<CountsStream>>,
    reports: Arc<AtomicUsize>,
}

/// A stream of counts. Every message is checked against the one before.
struct CountsStream {
    requests: mpsc::Sender<Result<CountsRequest, Status>>,
    counts: Streaming<Counts>,
    last: Option<Counts>,
}

#[tonic::async_trait]
impl ReportService for Reports {
    type CountStream = ReceiverStream<Result<CountsRequest, Status>>;
    type FetchBlobStream = ReceiverStream<Result<BlobPart, Status>>;
    type PurgeStream = ReceiverStream<Result<Purges, Status>>;
    type StatsStream = ReceiverStream<Result<StatsRequest, Status>>;

    async fn report(
        &self,
        request: Request<Streaming<ProxyReport>>,
    ) -> Result<Response<ReportSummary>, Status> {
        let mut reports = request.into_inner();
        while reports.message().await?.is_some() {
            self.reports.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Response::new(ReportSummary {}))
    }

    async fn count(
        &self,
        request: Request<Streaming<Counts>>,
    ) -> Result<Response<Self::CountStream>, Status> {
        let Some(streams) = &self.counts else { return Err(Status::unimplemented("an older version")) };
        assert_eq!(request.metadata().get(NODE_HEADER).unwrap(), "p", "the node id comes before the counts");
        let (requests, outbound) = mpsc::channel(4);
        let stream = CountsStream { requests, counts: request.into_inner(), last: None };
        streams.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(outbound)))
    }

    async fn fetch_blob(&self, _: Request<BlobRequest>) -> Result<Response<Self::FetchBlobStream>, Status> {
        Err(Status::unimplemented("no plugin of these tests uses a file"))
    }

    async fn purge(&self, _: Request<Streaming<Purged>>) -> Result<Response<Self::PurgeStream>, Status> {
        Err(Status::unimplemented("an older version"))
    }

    async fn stats(&self, _: Request<Streaming<StatsReport>>) -> Result<Response<Self::StatsStream>, Status> {
        Err(Status::unimplemented("an older version"))
    }
}

impl CountsStream {
    async fn ask(&self, interval_ms: u32, routes: &[&str], upstreams: &[&str]) {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let request = CountsRequest { interval_ms, routes: names(routes), upstreams: names(upstreams) };
        self.requests.send(Ok(request)).await.unwrap();
    }

    async fn next(&mut self) -> Counts {
        let counts = soon("the proxy sends counts", self.counts.message()).await.unwrap().unwrap();
        for series in &counts.series {
            let sum: u64 = series.bucket_counts.iter().sum();
            assert_eq!(series.requests, sum, "each request has a latency");
            assert!(series.requests > 0 && series.errors + series.not_found <= series.requests, "{series:?}");
            assert_eq!(
                series.cpu_us > 0,
                series.route.is_empty() && series.upstream.is_empty(),
                "{series:?}"
            );
        }
        if let Some(last) = &self.last {
            check_follows(last, &counts);
        }
        self.last = Some(counts.clone());
        counts
    }

    /// Waits until these are the requests, errors and not found of all series.
    async fn until(&mut self, expected: &[(u64, &str, [u64; 3])]) -> Counts {
        let expected: BTreeMap<_, _> = expected
            .iter()
            .map(|(generation, scope, row)| ((*generation, (*scope).to_owned()), *row))
            .collect();
        let started = Instant::now();
        loop {
            let counts = self.next().await;
            if rows(&counts) == expected {
                return counts;
            }
            assert!(started.elapsed() < DEADLINE, "it did not come to {expected:?}: {:?}", rows(&counts));
        }
    }
}

fn rows(counts: &Counts) -> BTreeMap<(u64, String), [u64; 3]> {
    let scope = |route: &str, upstream: &str| match (route, upstream) {
        ("", "") => "all".to_owned(),
        (route, "") => format!("route/{route}"),
        (_, upstream) => format!("upstream/{upstream}"),
    };
    let series = counts.series.iter();
    let rows: BTreeMap<_, _> = series
        .map(|it| ((it.generation, scope(&it.route, &it.upstream)), [it.requests, it.errors, it.not_found]))
        .collect();
    assert_eq!(rows.len(), counts.series.len(), "no series is there twice");
    rows
}

/// Checks that `counts` is a later message of the same process than `last`.
fn check_follows(last: &Counts, counts: &Counts) {
    assert_eq!((&counts.node_id, counts.boot), (&last.node_id, last.boot));
    assert_eq!(counts.sequence, last.sequence + 1);
    assert!(counts.uptime_ms >= last.uptime_ms);
    let now = rows(counts);
    for (key, before) in rows(last) {
        // A scope that is not watched any longer has no series.
        let now = now.get(&key).copied().unwrap_or(before);
        assert!(
            (0..3).all(|index| now[index] >= before[index]),
            "{key:?} went down from {before:?} to {now:?}"
        );
    }
}

/// A control plane that takes counts, and their streams.
async fn counting() -> (Scripted, mpsc::Receiver<CountsStream>) {
    let (sender, streams) = mpsc::channel(4);
    (reporting(Some(sender), &Arc::default()).await, streams)
}

/// A control plane that takes reports, and counts if there is a channel for their streams.
async fn reporting(counts: Option<mpsc::Sender<CountsStream>>, reports: &Arc<AtomicUsize>) -> Scripted {
    let mut services = RoutesBuilder::default();
    services.add_service(ReportServiceServer::new(Reports { counts, reports: Arc::clone(reports) }));
    Scripted::start_with(services).await
}

/// Waits until two more reports have come, which takes two seconds or more.
async fn two_reports(reports: &AtomicUsize) {
    let before = reports.load(Ordering::Relaxed);
    eventually("reports go on", || reports.load(Ordering::Relaxed) >= before + 2).await;
}

async fn accepted(streams: &mut mpsc::Receiver<CountsStream>) -> CountsStream {
    soon("the proxy opens a stream of counts", streams.recv()).await.unwrap()
}

fn resource(kind: Kind, spec: Value) -> Arc<Resource> {
    Arc::new(Resource::parse(kind, spec, builtin()).unwrap())
}

fn forward(name: &str, upstream: &str) -> Arc<Resource> {
    let paths = json!([{"exact": format!("/{name}")}]);
    let spec =
        json!({"name": name, "match": {"paths": paths}, "forward": {"upstreams": [{"name": upstream}]}});
    resource(Kind::Route, spec)
}

/// A revision with these resources, which is served under `generation`.
fn revision(number: u64, generation: u64, resources: &[Arc<Resource>]) -> Snapshot {
    let id = RevisionId { epoch: "e".into(), number };
    let puts = resources.iter().map(|resource| Change::Put(Arc::clone(resource)));
    let assignment = Assignment { fleet: "default".into(), generation };
    Snapshot::empty("e").with(id, 1, puts).assigned_by(assignment)
}

/// Sends `new` and the marker of `revision`, and waits until it is served.
async fn serve(stream: &mut scripted::Stream, revision: &Snapshot, new: &[Arc<Resource>]) {
    let mut resources: Vec<_> = new.iter().map(|resource| scripted::sent(resource)).collect();
    resources.push(scripted::marker(revision, false));
    let nonce = stream.send(resources, &[]).await;
    stream.expect_ack(&nonce).await;
}

/// A listener, the route `/a` to a backend, and the route `/down` to a target that is not there.
fn resources(backend: &Backend) -> Vec<Arc<Resource>> {
    let upstream = |name: &str, address: String| {
        resource(Kind::Upstream, json!({"name": name, "targets": [{"address": address}]}))
    };
    vec![
        resource(Kind::Listener, json!({"name": "http", "address": "127.0.0.1:8080", "protocol": "http"})),
        upstream("u", backend.address().to_string()),
        upstream("nowhere", format!("127.0.0.1:{}", free_port())),
        forward("a", "u"),
        forward("down", "nowhere"),
    ]
}

async fn status_of(proxy: &Proxy, path: &str) -> u16 {
    get(proxy.http(), "a.example", path).await.unwrap().status.as_u16()
}

/// A request that is running: its backend has its head, and waits for its body.
async fn begin(proxy: &Proxy, backend: &Backend, path: &str) -> TcpStream {
    let before = backend.requests();
    let mut client = TcpStream::connect(proxy.http()).await.unwrap();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: a.example\r\ncontent-length: 2\r\nconnection: close\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    eventually("the backend has the request's head", || backend.requests() == before + 1).await;
    client
}

async fn end(mut client: TcpStream) {
    client.write_all(b"ok").await.unwrap();
    let mut answer = String::new();
    soon("the response comes", client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_counts_under_the_generation_with_which_it_began() {
    let (mut plane, mut streams) = counting().await;
    let backend = Backend::echo("b").unwrap();
    let mut proxy = Proxy::builder().control_plane_url(&plane.urls()[0]).node_id("p").prepare().unwrap();
    proxy.start_unready().unwrap();
    let (mut stream, _) = plane.accept().await;
    let mut all = resources(&backend);
    serve(&mut stream, &revision(1, 1, &all), &all).await;
    proxy.wait_ready().await.unwrap();
    let mut counts = accepted(&mut streams).await;
    // The route `later` comes with another revision.
    counts.ask(200, &["a", "down", "later"], &["u"]).await;
    let first = counts.next().await;
    assert_eq!((first.node_id.as_str(), first.sequence, first.series.len()), ("p", 0, 0));

    let running = begin(&proxy, &backend, "/a").await;
    let began = Instant::now();
    assert_eq!(status_of(&proxy, "/a").await, 200);
    assert_eq!(status_of(&proxy, "/nowhere").await, 404);
    assert!(matches!(status_of(&proxy, "/down").await, 502 | 503));
    let under_one = [
        (1, "all", [3, 1, 1]),
        (1, "route/a", [1, 0, 0]),
        (1, "route/down", [1, 1, 0]),
        (1, "upstream/u", [1, 0, 0]),
    ];
    counts.until(&under_one).await;

    let later = forward("later", "u");
    all.push(Arc::clone(&later));
    serve(&mut stream, &revision(2, 2, &all), &[later]).await;
    assert_eq!(status_of(&proxy, "/a").await, 200);
    assert_eq!(status_of(&proxy, "/later").await, 200);
    assert_eq!(status_of(&proxy, "/nowhere").await, 404);
    let under_two = [
        (2, "all", [3, 0, 1]),
        (2, "route/a", [1, 0, 0]),
        (2, "route/later", [1, 0, 0]),
        (2, "upstream/u", [2, 0, 0]),
    ];
    counts.until(&[under_one, under_two].concat()).await;

    let waited = began.elapsed();
    end(running).await;
    let under_one = [
        (1, "all", [4, 1, 1]),
        (1, "route/a", [2, 0, 0]),
        (1, "route/down", [1, 1, 0]),
        (1, "upstream/u", [2, 0, 0]),
    ];
    let counted = counts.until(&[under_one, under_two].concat()).await;
    let took = counted.series.iter().find(|series| series.generation == 1 && series.route == "a").unwrap();
    let longest = f64::from(took.buckets.last().unwrap() + 1);
    assert!((longest / 8.0).exp2() >= waited.as_micros() as f64, "{took:?} in {waited:?}");

    // The marker alone brings another generation of the same revision.
    serve(&mut stream, &revision(2, 3, &all), &[]).await;
    assert_eq!(status_of(&proxy, "/a").await, 200);
    let under_three = [(3, "all", [1, 0, 0]), (3, "route/a", [1, 0, 0]), (3, "upstream/u", [1, 0, 0])];
    counts.until(&[&under_one[..], &under_two, &under_three].concat()).await;
    let metrics = proxy.metrics().await.unwrap();
    let requests = metrics.sum("signalbox_request_duration_seconds_count", &[]);
    assert_eq!(requests, 8.0, "metrics count all generations");
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_sent_as_the_control_plane_asks() {
    let (sender, mut streams) = mpsc::channel(4);
    let reports = Arc::default();
    let mut plane = reporting(Some(sender), &reports).await;
    let backend = Backend::echo("b").unwrap();
    let mut proxy = Proxy::builder().control_plane_url(&plane.urls()[0]).node_id("p").prepare().unwrap();
    proxy.start_unready().unwrap();
    let (mut stream, _) = plane.accept().await;
    let all = resources(&backend);
    serve(&mut stream, &revision(1, 0, &all), &all).await;
    proxy.wait_ready().await.unwrap();
    let mut counts = accepted(&mut streams).await;
    assert_eq!(status_of(&proxy, "/a").await, 200);
    // A request is answered long before its interval has passed, and not at all if that is 0.
    let started = Instant::now();
    counts.ask(60_000, &[], &["u"]).await;
    assert_eq!(counts.next().await.sequence, 0);
    counts.ask(0, &["a"], &["u"]).await;
    two_reports(&reports).await;
    assert_eq!(status_of(&proxy, "/a").await, 200);
    let is_counted = async || {
        let metrics = proxy.metrics().await.unwrap();
        metrics.sum("signalbox_request_duration_seconds_count", &[]) == 2.0
    };
    assert!(signalbox_tests::eventually(DEADLINE, is_counted).await);
    counts.ask(60_000, &["a"], &["u"]).await;
    let next = counts.next().await;
    assert_eq!(next.sequence, 1);
    // The first request ended before anything was watched.
    let expected = [("all", [2, 0, 0]), ("route/a", [1, 0, 0]), ("upstream/u", [1, 0, 0])];
    assert_eq!(rows(&next), expected.map(|(scope, row)| ((0, scope.to_owned()), row)).into());
    assert!(started.elapsed().as_secs() < 60);
    counts.ask(200, &[], &[]).await;
    counts.until(&[(0, "all", [2, 0, 0])]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_go_on_over_a_reconnect_and_begin_anew_with_the_process() {
    let (mut plane, mut streams) = counting().await;
    let backend = Backend::echo("b").unwrap();
    let mut proxy = Proxy::builder().control_plane_url(&plane.urls()[0]).node_id("p").prepare().unwrap();
    proxy.start_unready().unwrap();
    let (mut stream, _) = plane.accept().await;
    let all = resources(&backend);
    serve(&mut stream, &revision(1, 4, &all), &all).await;
    proxy.wait_ready().await.unwrap();
    let mut counts = accepted(&mut streams).await;
    counts.ask(200, &["a"], &[]).await;
    counts.next().await;
    assert_eq!(status_of(&proxy, "/a").await, 200);
    let last = counts.until(&[(4, "all", [1, 0, 0]), (4, "route/a", [1, 0, 0])]).await;

    drop((stream, counts));
    let (stream, _) = plane.accept().await;
    let mut counts = accepted(&mut streams).await;
    assert_eq!(status_of(&proxy, "/a").await, 200);
    counts.ask(200, &["a"], &[]).await;
    let now = counts.until(&[(4, "all", [2, 0, 0]), (4, "route/a", [2, 0, 0])]).await;
    assert_eq!(now.boot, last.boot);
    assert!(now.sequence > last.sequence && now.uptime_ms >= last.uptime_ms, "{now:?} after {last:?}");

    proxy.kill9();
    drop((stream, counts));
    proxy.start_unready().unwrap();
    let (_stream, _) = plane.accept().await;
    let mut counts = accepted(&mut streams).await;
    proxy.wait_ready().await.unwrap();
    counts.ask(200, &["a"], &[]).await;
    let first = counts.next().await;
    assert_ne!(first.boot, last.boot);
    assert_eq!((first.sequence, first.series.len()), (0, 0));
    assert_eq!(status_of(&proxy, "/a").await, 200);
    // The snapshot on disk has the generation.
    counts.until(&[(4, "all", [1, 0, 0]), (4, "route/a", [1, 0, 0])]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_that_the_control_plane_ends_begin_again_on_the_same_connection() {
    let (mut plane, mut streams) = counting().await;
    let backend = Backend::echo("b").unwrap();
    let mut proxy = Proxy::builder().control_plane_url(&plane.urls()[0]).node_id("p").prepare().unwrap();
    proxy.start_unready().unwrap();
    let (mut stream, _) = plane.accept().await;
    let all = resources(&backend);
    serve(&mut stream, &revision(1, 4, &all), &all).await;
    proxy.wait_ready().await.unwrap();
    let mut counts = accepted(&mut streams).await;
    counts.ask(200, &["a"], &[]).await;
    counts.next().await;
    counts.requests.send(Err(Status::internal("a test"))).await.unwrap();
    drop(counts);
    let mut counts = accepted(&mut streams).await;
    assert_eq!(status_of(&proxy, "/a").await, 200);
    counts.ask(200, &["a"], &[]).await;
    counts.until(&[(4, "all", [1, 0, 0]), (4, "route/a", [1, 0, 0])]).await;
    // The discovery stream has not noticed.
    serve(&mut stream, &revision(2, 5, &all), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_wants_no_counts_gets_all_else() {
    let reports = Arc::default();
    let mut plane = reporting(None, &reports).await;
    let backend = Backend::echo("b").unwrap();
    let url = &plane.urls()[0];
    let builder = Proxy::builder().control_plane_url(url).node_id("p").arg("--log-level=debug");
    let mut proxy = builder.prepare().unwrap();
    proxy.start_unready().unwrap();
    let (mut stream, _) = plane.accept().await;
    let mut all = resources(&backend);
    serve(&mut stream, &revision(1, 1, &all), &all).await;
    proxy.wait_ready().await.unwrap();
    eventually("the call was refused", || proxy.log().contains("the stream of counts ended")).await;
    assert!(
        !proxy
            .log()
            .lines()
            .any(|line| line.contains("the stream of counts ended") && !line.contains("DEBUG"))
    );
    two_reports(&reports).await;
    let later = forward("later", "u");
    all.push(Arc::clone(&later));
    serve(&mut stream, &revision(2, 2, &all), &[later]).await;
    assert_eq!(status_of(&proxy, "/later").await, 200);
}
