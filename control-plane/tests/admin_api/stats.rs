//! Traffic as time series.

use serde_json::json;
use signalbox_proto::signalbox::report::v1::traffic_series::Scope;
use signalbox_proto::signalbox::report::v1::{StatsReport, TrafficSeries};

use crate::fixture::{Admin, expect};

/// A report of ten requests, of which one has failed, of a proxy of a fleet.
fn report(admin: &Admin, fleet: &str, node: &str) {
    let series = |scope: Scope, name: &str| TrafficSeries {
        scope: scope.into(),
        name: name.to_owned(),
        succeeded: 7,
        client_errors: 1,
        no_route: 1,
        server_errors: 1,
        bytes_in: 100,
        bytes_out: 1000,
        buckets: vec![79, 100],
        bucket_counts: vec![9, 1],
        flags: [("UT".to_owned(), 1)].into(),
        failed_targets: [].into(),
    };
    let report = StatsReport {
        boot: 1,
        number: 1,
        length_ms: 2000,
        age_ms: 0,
        revision: 3,
        series: vec![series(Scope::All, ""), series(Scope::Route, "a"), series(Scope::Upstream, "u")],
    };
    admin.stats.take(&fleet.into(), &node.into(), &report);
}

#[tokio::test]
async fn series_have_the_requests_of_what_they_are_asked_for() {
    let admin = Admin::start().await;
    report(&admin, "default", "p");
    report(&admin, "edge", "q");
    for (query, requests, labels) in [
        ("", 20, json!({})),
        ("?fleet=edge", 10, json!({"fleet": "edge"})),
        ("?route=a", 20, json!({"route": "a"})),
        ("?route=*&fleet=default", 10, json!({"route": "a", "fleet": "default"})),
        ("?upstream=u&step=1m", 20, json!({"upstream": "u"})),
        ("?proxy=q", 10, json!({"proxy": "q"})),
        ("?revision=3", 20, json!({"revision": "3"})),
    ] {
        let answer = admin.get(&format!("/stats{query}")).await;
        expect(&answer, 200);
        let series = answer.body["series"].as_array().unwrap();
        assert_eq!(series.len(), 1, "{query}: {answer}");
        assert_eq!(series[0]["labels"], labels, "{query}");
        let points = series[0]["points"].as_array().unwrap();
        let sum = |field: &str| points.iter().map(|point| point[field].as_u64().unwrap()).sum::<u64>();
        assert_eq!(sum("requests"), requests, "{query}: {answer}");
        assert_eq!(sum("bytes_in"), 10 * requests, "{query}");
        let point = &points[0];
        assert_eq!((&point["p50_ms"], &point["p90_ms"]), (&json!(0.977), &json!(0.977)), "{query}");
        assert_eq!(point["p99_ms"], json!(6.024), "{query}");
        assert!(
            point["classes"]["5xx"].as_u64().unwrap() >= 1 && point["at"].as_str().unwrap().ends_with('Z')
        );
    }
    for query in [
        "?consumer=alice",
        "?route=b",
        "?fleet=none",
        "?consumer=*",
        "?from=2026-11-30T00:00:00Z&to=2026-11-30T01:00:00Z",
    ] {
        let answer = admin.get(&format!("/stats{query}")).await;
        // The last one becomes too old.
        if answer.status.as_u16() == 200 {
            assert_eq!(answer.body["series"], json!([]), "{query}");
        }
    }
}

#[tokio::test]
async fn wrong_questions_are_refused_with_the_parameter() {
    let admin = Admin::start().await;
    for (query, parameter) in [
        ("route=a&upstream=b", "upstream"),
        ("route=A%20B", "route"),
        ("route=", "route"),
        ("proxy=", "proxy"),
        ("fleet=", "fleet"),
        ("revision=x", "revision"),
        ("from=yesterday", "from"),
        ("from=2020-01-01T00:00:00Z", "from"),
        ("from=2100-01-01T00:00:00Z", "from"),
        ("step=1s", "step"),
        ("step=1500ms", "step"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
    ] {
        let answer = admin.get(&format!("/stats?{query}")).await;
        expect(&answer, 400);
        assert!(answer.body["detail"].as_str().unwrap().contains(parameter), "{query}: {answer}");
    }
}
