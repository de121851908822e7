//! The traffic of proxies reaches the time series, once.

use std::time::{SystemTime, UNIX_EPOCH};

use signalbox_control_plane::stats::{Dimension, Query, Select};
use signalbox_proxy::source::{ScopeTraffic, TrafficScope};
use signalbox_proxy::telemetry::TrafficSums;

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
