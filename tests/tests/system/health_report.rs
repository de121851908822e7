//! The health report with real proxies and traffic.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use signalbox_tests::{Backend, Behaviour, Load, eventually};

use crate::fixture::{Gateway, forward, respond, upstream, with};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_change_that_makes_a_route_fail_is_named_and_traffic_is_in_the_series() {
    let gateway = Gateway::start(2).await;
    let api = gateway.control_plane.api().clone();
    gateway.put("routes", "shop", &forward("/shop")).await;
    gateway.put("routes", "fine", &respond("/fine", "fine")).await;
    let report = api.get("/health-report").await.unwrap();
    assert_eq!(report["incidents"], json!([]), "{report}");

    let addresses: Vec<_> = gateway.proxies.iter().map(|proxy| proxy.http()).collect();
    let mut running = Vec::new();
    for path in ["/shop/a", "/fine"] {
        let request = move |_| Request::get(path).header("host", "a").body(Full::<Bytes>::default()).unwrap();
        let load = Load::on(addresses.clone()).request(request).pace(Duration::from_millis(20));
        running.push(load.check(|_| Ok(())).start().await.unwrap());
    }
    for load in &running {
        load.wait_for(200).await.unwrap();
    }
    let broken = json!({"respond": {"status": 500, "body": "broken"}, "forward": null});
    let revision = gateway.put("routes", "shop", &with(respond("/shop", ""), &broken)).await;
    let incident = async || -> Option<Value> {
        let report = api.get("/health-report").await.ok()?;
        let incidents = report["incidents"].as_array()?;
        incidents
            .iter()
            .find(|incident| incident["resource"] == json!({"kind": "route", "name": "shop"}))
            .cloned()
    };
    let is_named = eventually(Duration::from_secs(90), async || incident().await.is_some()).await;
    let report = api.get("/health-report").await.unwrap();
    assert!(is_named, "{report}");
    let incident = incident().await.unwrap();
    assert_eq!(incident["rule"], "revision", "{incident}");
    let sentence = incident["sentence"].as_str().unwrap();
    assert!(
        sentence.contains(&format!("revision {revision}"))
            || sentence.contains(&format!("Revision {revision}")),
        "{sentence}"
    );
    assert!(report["score"].as_u64().unwrap() < 80, "{report}");
    let action = format!("POST /api/v1/revisions/{}/rollback", revision - 1);
    assert!(incident["actions"].as_array().unwrap().contains(&json!(action)), "{incident}");

    // The series have what the clients have sent, by route, upstream and proxy.
    let mut sent = 0;
    for load in running {
        sent += load.finish().requests;
    }
    let requests = async |query: &str| -> u64 {
        let answer = api.get(&format!("/stats?limit=100&{query}")).await.unwrap();
        let series = answer["series"].as_array().unwrap().iter();
        series
            .flat_map(|one| one["points"].as_array().unwrap())
            .map(|point| point["requests"].as_u64().unwrap())
            .sum()
    };
    // The last ones may be under way.
    let all =
        eventually(Duration::from_secs(30), async || (sent..sent + 100).contains(&requests("route=*").await))
            .await;
    assert!(all, "{} of {sent}", requests("route=*").await);
    assert_eq!(requests("proxy=*").await, requests("").await);
    assert!(requests("upstream=echo").await > 0 && requests("upstream=echo").await < sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_report_says_why_requests_fail_and_at_which_target() {
    let gateway = Gateway::start(1).await;
    let api = gateway.control_plane.api().clone();
    let (good, bad) = (Backend::echo("good").unwrap(), Backend::echo("bad").unwrap());
    gateway.put("upstreams", "pair", &upstream(&[&good, &bad])).await;
    let to_pair = json!({"forward": {"upstreams": [{"name": "pair"}]}});
    gateway.put("routes", "pair", &with(forward("/pair"), &to_pair)).await;
    gateway.put("routes", "fine", &respond("/fine", "fine")).await;
    let mut running = Vec::new();
    for path in ["/pair", "/fine"] {
        let request = move |_| Request::get(path).header("host", "a").body(Full::<Bytes>::default()).unwrap();
        let load = Load::on(vec![gateway.proxies[0].http()]).request(request).pace(Duration::from_millis(20));
        running.push(load.check(|_| Ok(())).start().await.unwrap());
    }
    for load in &running {
        load.wait_for(100).await.unwrap();
    }
    let address = bad.address();
    drop(bad);
    let _bad = Backend::at("bad", Behaviour::Drop, address).unwrap();
    let incident = async || -> Option<Value> {
        let report = api.get("/health-report").await.ok()?;
        report["incidents"].as_array()?.first().cloned()
    };
    let is_named = eventually(Duration::from_secs(90), async || incident().await.is_some()).await;
    assert!(is_named, "{}", api.get("/health-report").await.unwrap());
    let incident = incident().await.unwrap();
    assert_eq!(incident["resource"], json!({"kind": "upstream", "name": "pair"}), "{incident}");
    let sentence = incident["sentence"].as_str().unwrap();
    assert!(sentence.contains("Targets end the connection before they answer (UC)"), "{sentence}");
    let evidence = &incident["evidence"];
    let targets = evidence["failed_targets"].as_object().unwrap();
    assert_eq!(targets.keys().collect::<Vec<_>>(), [&address.to_string()], "{incident}");
    assert_eq!(evidence["flags"]["UC"], evidence["failures"], "{incident}");
    for load in running {
        load.finish();
    }
}
