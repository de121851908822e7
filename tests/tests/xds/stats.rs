//! The traffic of proxies reaches the time series, once.

use std::time::{SystemTime, UNIX_EPOCH};

use signalbox_control_plane::stats::{Dimension, MIN_INTERVAL, Query, Select};
use signalbox_proto::NODE_HEADER;
use signalbox_proto::signalbox::report::v1::StatsReport;
use signalbox_proto::signalbox::report::v1::report_service_client::ReportServiceClient;
use signalbox_proxy::source::{ScopeTraffic, TrafficScope};
use signalbox_proxy::telemetry::TrafficSums;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::transport::Channel;

use crate::harness::*;

fn counted(requests: u64) -> Vec<ScopeTraffic> {
    let sums =
        TrafficSums { ends: [requests, 0, 0, 0], buckets: vec![(80, requests)], ..TrafficSums::default() };
    [TrafficScope::All, TrafficScope::Route("r".into()), TrafficScope::Consumer("alice".into())]
        .map(|scope| ScopeTraffic { scope, sums: sums.clone() })
        .to_vec()
}

/// The requests of the last two hours.
fn requests(plane: &Plane, dimension: Dimension) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let query = Query {
        fleet: Some("default".into()),
        select: Select::One(dimension),
        from: now - 7200,
        to: now + 60,
        step: Some(60),
        limit: 1,
    };
    let series = plane.stats.answer(&query).series;
    series.iter().flat_map(|series| &series.points).map(|(_, point)| point.requests()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn traffic_is_counted_once_while_control_planes_come_and_go() {
    let database = Database::new();
    let address = ([127, 0, 0, 1], signalbox_tests::free_port()).into();
    let settings = || Settings { address, ..Settings::default() };
    let mut plane = Plane::start_with(&database, settings()).await;
    let home = tempfile::tempdir().unwrap();
    let proxies = ["p", "q"].map(|id| Proxy::start(&[plane.url()], &home.path().join(id), id));
    let mut sum = 0;
    for round in 1..=3_u64 {
        for proxy in &proxies {
            proxy.recorder.with(|recorded| recorded.traffic = counted(10 * round));
            sum += 10;
        }
        plane.stop().await;
        plane = Plane::start_with(&database, settings()).await;
        eventually("the requests are in the series", || requests(&plane, Dimension::All) == sum).await;
    }
    for dimension in [Dimension::Route("r".into()), Dimension::Consumer("alice".into())] {
        assert_eq!(requests(&plane, dimension.clone()), 60, "{dimension:?}");
    }
    for id in ["p", "q"] {
        assert_eq!(requests(&plane, Dimension::Proxy(id.into())), 30);
    }
    // Another process begins its counts anew.
    let [p, q] = proxies;
    p.stop().await.unwrap();
    let again = Proxy::start(&[plane.url()], &home.path().join("p"), "p");
    again.recorder.with(|recorded| recorded.traffic = counted(5));
    plane.stop().await;
    let plane = Plane::start_with(&database, settings()).await;
    eventually("the requests are in the series", || requests(&plane, Dimension::Proxy("p".into())) == 35)
        .await;
    drop(q);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_report_may_come_the_later_the_more_proxies_are_connected() {
    let database = Database::new();
    let plane = Plane::start(&database).await;
    let mut fleet = Vec::new();
    for number in 0..20 {
        let mut raw = Raw::open(&plane, &format!("p{number}"), None).await;
        raw.receive().await;
        fleet.push(raw);
    }
    eventually("all are connected", || plane.board.stream_share().own == 20).await;
    let channel = Channel::from_shared(plane.url()).unwrap().connect().await.unwrap();
    let (reports, outbound) = tokio::sync::mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(outbound));
    request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    request.metadata_mut().insert(NODE_HEADER, "p7".parse().unwrap());
    let mut answers = ReportServiceClient::new(channel).stats(request).await.unwrap().into_inner();
    let mut next = async || soon("an answer comes", answers.message()).await.unwrap().unwrap();
    assert_eq!(next().await.interval_ms, 100);
    reports.send(StatsReport { boot: 1, number: 1, ..StatsReport::default() }).await.unwrap();
    let answer = next().await;
    assert_eq!((answer.interval_ms.into(), answer.taken), (MIN_INTERVAL.as_millis(), 1));
}
