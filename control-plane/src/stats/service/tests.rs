use signalbox_proto::signalbox::report::v1::TrafficSeries;

use super::*;
use crate::stats::Select;
use crate::store;

fn report(boot: u64, number: u64, succeeded: u64) -> StatsReport {
    let series = |scope: Scope, name: &str| TrafficSeries {
        scope: scope.into(),
        name: name.to_owned(),
        succeeded,
        buckets: vec![80],
        bucket_counts: vec![succeeded],
        ..TrafficSeries::default()
    };
    StatsReport {
        boot,
        number,
        length_ms: 10_000,
        age_ms: 0,
        revision: 7,
        series: vec![series(Scope::All, ""), series(Scope::Route, "r")],
    }
}

async fn stats(url: &str, instance: &str, sharing: Sharing) -> Arc<Stats> {
    Stats::new(store::open(url).await.unwrap(), instance.into(), sharing)
}

/// The requests of the last hour, by the resolution that `step` leads to.
fn requests(stats: &Stats, dimension: Dimension, step: u64) -> u64 {
    let (from, to) = (now_s() - 3500, now_s() + 10);
    let query = Query { fleet: None, select: Select::One(dimension), from, to, step: Some(step), limit: 1 };
    let series = stats.answer(&query).series;
    series.iter().flat_map(|series| &series.points).map(|(_, point)| point.requests()).sum()
}

#[tokio::test]
async fn a_report_is_taken_once_and_counts_in_all_its_dimensions() {
    let dir = tempfile::tempdir().unwrap();
    let stats = stats(&format!("sqlite://{}/a.db", dir.path().display()), "a", Sharing::Alone).await;
    let (fleet, node): (Arc<str>, Arc<str>) = ("default".into(), "p".into());
    assert_eq!(stats.take(&fleet, &node, &report(1, 1, 10)), 1);
    assert_eq!(stats.take(&fleet, &node, &report(1, 1, 10)), 1, "it was sent again");
    assert_eq!(stats.take(&fleet, &node, &report(1, 3, 5)), 3, "another control plane has the second");
    assert_eq!(stats.take(&fleet, &node, &report(1, 2, 5)), 3);
    assert_eq!(stats.take(&fleet, &node, &report(2, 1, 2)), 1, "another process");
    for dimension in
        [Dimension::All, Dimension::Route("r".into()), Dimension::Proxy("p".into()), Dimension::Revision(7)]
    {
        assert_eq!(requests(&stats, dimension.clone(), 60), 17, "{dimension:?}");
    }
    assert_eq!(requests(&stats, Dimension::Upstream("r".into()), 60), 0);
}

#[tokio::test]
async fn traffic_is_there_again_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/a.db", dir.path().display());
    let (fleet, node): (Arc<str>, Arc<str>) = ("default".into(), "p".into());
    let first = stats(&url, "a", Sharing::Alone).await;
    for number in 1..=70 {
        first.take(&fleet, &node, &report(1, number, 1));
        first.end_part(false);
    }
    first.take(&fleet, &node, &report(1, 71, 1));
    first.end_part(true);
    first.write().await.unwrap();
    let second = stats(&url, "b", Sharing::Alone).await;
    second.read_all().await.unwrap();
    assert_eq!(requests(&second, Dimension::Route("r".into()), 60), 71);
    assert_eq!(requests(&second, Dimension::All, 600), 71);
    second.read_all().await.unwrap();
    assert_eq!(requests(&second, Dimension::All, 60), 71, "reading twice adds nothing");
}

#[tokio::test]
async fn control_planes_add_what_the_others_have_taken() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/a.db", dir.path().display());
    let planes = [stats(&url, "a", Sharing::Shared).await, stats(&url, "b", Sharing::Shared).await];
    let fleet: Arc<str> = "default".into();
    for number in 1..=20 {
        for (plane, node) in planes.iter().zip(["p", "q"]) {
            plane.take(&fleet, &node.into(), &report(1, number, 1));
            plane.end_part(false);
            plane.synchronize().await.unwrap();
        }
    }
    for plane in &planes {
        plane.synchronize().await.unwrap();
        for step in [60, 600] {
            assert_eq!(requests(plane, Dimension::All, step), 40, "{step}");
        }
    }
    // One that starts later reads everything, and then what comes.
    let late = stats(&url, "c", Sharing::Shared).await;
    late.read_all().await.unwrap();
    planes[0].take(&fleet, &"p".into(), &report(1, 21, 1));
    planes[0].end_part(false);
    planes[0].synchronize().await.unwrap();
    late.synchronize().await.unwrap();
    assert_eq!(requests(&late, Dimension::All, 60), 41);
    assert_eq!(requests(&late, Dimension::Proxy("q".into()), 60), 20);
}

#[test]
fn a_long_report_is_spread_over_its_time() {
    let at = |length_ms, age_ms| {
        let report = StatsReport { length_ms, age_ms, ..StatsReport::default() };
        slots_of(1_000_000_000_000, &report)
    };
    assert_eq!(at(10_000, 0), [999_999_995]);
    assert_eq!(at(0, 0), [1_000_000_000]);
    assert_eq!(at(30_000, 5_000), [999_999_970, 999_999_980, 999_999_990]);
    assert_eq!(at(3_600_000, 0).len(), 60);
    let week = at(u64::MAX, 0);
    assert_eq!(week.len(), 1008);
    assert_eq!(week.last(), Some(&999_999_700));
}
