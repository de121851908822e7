//! Prometheus and Alertmanager beside a system, with the shipped configurations.

use std::time::Duration;

use serde_json::{Value, json};
use signalbox_tests::{Alertmanager, Prometheus, Proxy, eventually, get};

use super::shipped::{
    Configuration, DASHBOARDS, PROXY_ADMIN_TOKEN, array, dashboard, expressions, read, shipped, text,
};
use crate::fixture::{Gateway, forward};

const DEADLINE: Duration = Duration::from_secs(60);

impl Configuration {
    /// Names this control plane in the place of both, and hurries: a test does not wait for minutes.
    fn of_system(gateway: &Gateway) -> Self {
        let configuration = Self::new();
        let control_plane = gateway.control_plane.admin_url().replace("http://", "");
        configuration.edit("prometheus.yml", |text| {
            text.replace("control-plane-1:9080, control-plane-2:9080", &control_plane)
                .replace("control-plane-1:9080", &control_plane)
                .replace("control-plane-2:9080", &control_plane)
                .replace("scrape_interval: 15s", "scrape_interval: 1s")
                .replace("scrape_timeout: 10s", "scrape_timeout: 1s")
                .replace("refresh_interval: 15s", "refresh_interval: 1s")
                .replace("evaluation_interval: 30s", "evaluation_interval: 1s")
        });
        configuration.edit("rules/signalbox.rules.yml", |text| {
            text.replace("interval: 1m", "interval: 1s").replace("interval: 5m", "interval: 1s")
        });
        configuration
    }
}

async fn requests(gateway: &Gateway) {
    for proxy in &gateway.proxies {
        for (path, status) in [("/", 200), ("/missing", 404)] {
            let host = if status == 200 { "a.example" } else { "nowhere.example" };
            assert_eq!(get(proxy.http(), host, path).await.unwrap().status, status);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_scrapes_a_system_and_answers_the_dashboards() {
    let mut gateway = Gateway::start(0).await;
    for index in 0..2 {
        let proxy = Proxy::builder()
            .control_plane(&gateway.control_plane)
            .node_id(&format!("proxy-{index}"))
            .arg(format!("--admin-token={PROXY_ADMIN_TOKEN}"))
            .arg("--guard-metrics");
        gateway.proxies.push(proxy.start().await.unwrap());
    }
    let mut route = forward("/");
    route["match"]["hosts"] = json!(["a.example"]);
    gateway.put("routes", "all", &route).await;
    let configuration = Configuration::of_system(&gateway);
    let prometheus = Prometheus::start(&configuration.file()).await.unwrap();

    // A rate needs two samples of a series, and some requests between them.
    let rate = "sum by (fleet, route) (fleet_route:signalbox_requests:rate5m{route=\"all\"}) > 0";
    let counted = eventually(DEADLINE, async || {
        requests(&gateway).await;
        prometheus.query(rate).await.unwrap().iter().any(|series| series["metric"]["fleet"] == "default")
    });
    assert!(counted.await, "{}", prometheus.log());

    let targets = prometheus.query("up{job=~\"signalbox.*\"}").await.unwrap();
    let mut targets: Vec<_> = targets
        .iter()
        .map(|target| {
            (text(&target["metric"]["job"]), text(&target["metric"]["instance"]), text(&target["value"][1]))
        })
        .collect();
    targets.sort_unstable();
    let control_plane = gateway.control_plane.admin_url().replace("http://", "");
    assert_eq!(
        targets,
        [
            ("signalbox-control-plane", &*control_plane, "1"),
            ("signalbox-proxy", "proxy-0", "1"),
            ("signalbox-proxy", "proxy-1", "1")
        ]
    );

    for name in DASHBOARDS {
        let mut answered = 0;
        for (expression, _) in expressions(&dashboard(name)) {
            answered += usize::from(!prometheus.query(&expression).await.unwrap().is_empty());
        }
        // Nothing fails here, so panels about failures stay empty.
        assert!(answered >= 5, "{name}: {answered} queries have an answer");
    }
    // Each is evaluated without an error, annotations included.
    let mut rules = Vec::new();
    let evaluated = eventually(DEADLINE, async || {
        let all = prometheus.get("/rules").await.unwrap();
        rules = array(&all["data"]["groups"]).flat_map(|group| array(&group["rules"])).cloned().collect();
        rules.iter().all(|rule| rule["health"] == "ok")
    });
    assert!(evaluated.await, "{rules:#?}");
    for rule in &rules {
        assert_ne!(rule["state"], "firing", "{rule}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_reads_native_histograms_and_the_traces_beside_them() {
    let gateway = Gateway::start(1).await;
    // Nobody takes the spans, but they are exported as far as the proxy knows.
    let listener =
        json!({"address": "0.0.0.0:8080", "tracing": {"exporter": {"endpoint": "http://127.0.0.1:9"}}});
    gateway.put("listeners", "http", &listener).await;
    gateway.put("routes", "all", &forward("/")).await;
    let proxy = &gateway.proxies[0];
    for _ in 0..5 {
        assert_eq!(get(proxy.http(), "a.example", "/").await.unwrap().status, 200);
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("prometheus.yml");
    let scrape = format!(
        "scrape_configs:\n  - {{job_name: proxy, scrape_interval: 1s, static_configs: [{{targets: ['{}']}}]}}\n",
        proxy.admin()
    );
    std::fs::write(&file, scrape).unwrap();
    let features = ["--enable-feature=native-histograms,exemplar-storage"];
    let prometheus = Prometheus::start_with(&file, &features).await.unwrap();
    let value = async |expression: &str| -> f64 {
        let series = prometheus.query(expression).await.unwrap();
        series.first().map_or(0.0, |series| text(&series["value"][1]).parse().unwrap())
    };
    for name in ["signalbox_route_duration_seconds", "signalbox_route_time_to_first_byte_seconds"] {
        let count = format!("histogram_count({name}{{route=\"all\"}})");
        let is_read = eventually(DEADLINE, async || value(&count).await == 5.0).await;
        assert!(is_read, "{count}: {}\n{}", value(&count).await, prometheus.log());
        // All were answered at once, so all are between the bounds of the histogram.
        let within = format!("histogram_fraction(0, 32, {name}{{route=\"all\"}})");
        assert_eq!(value(&within).await, 1.0, "{within}");
        let mean =
            format!("histogram_sum({name}{{route=\"all\"}}) / histogram_count({name}{{route=\"all\"}})");
        let median = format!("histogram_quantile(0.5, {name}{{route=\"all\"}})");
        assert!(value(&mean).await > 0.0 && value(&median).await > 0.0);
    }
    let exemplars = "/query_exemplars?query=signalbox_request_duration_seconds&start=0&end=99999999999";
    let mut answer = Value::Null;
    let has_traces = eventually(DEADLINE, async || {
        answer = prometheus.get(exemplars).await.unwrap();
        let mut all = array(&answer["data"]).flat_map(|series| array(&series["exemplars"]));
        all.any(|exemplar| text(&exemplar["labels"]["trace_id"]).len() == 32)
    });
    assert!(has_traces.await, "{answer}");
}

fn alert(name: &str, severity: &str, cause: &str, more: &Value) -> Value {
    let mut labels = json!({"alertname": name, "severity": severity, "cause": cause});
    labels.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"labels": labels})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn lost_proxies_silence_what_follows_from_them_and_causes_make_groups() {
    let alertmanager = Alertmanager::start(&shipped("alertmanager.yml")).await.unwrap();
    let lost = alert("SignalboxProxiesLost", "page", "lost-proxies", &json!({"fleet": "edge"}));
    let follows = alert("SignalboxErrorBudgetFast", "page", "errors", &json!({"fleet": "edge"}));
    let overload = alert("SignalboxOverload", "page", "overload", &json!({"fleet": "edge"}));
    let elsewhere = alert("SignalboxErrorBudgetFast", "page", "errors", &json!({"fleet": "lab"}));
    let route =
        alert("SignalboxRouteErrorBudgetFast", "page", "errors", &json!({"fleet": "far", "route": "a"}));
    let other =
        alert("SignalboxRouteErrorBudgetFast", "page", "errors", &json!({"fleet": "far", "route": "b"}));
    let target =
        alert("SignalboxNoHealthyTarget", "page", "upstream", &json!({"fleet": "edge", "upstream": "users"}));
    let all = [lost, follows, overload, elsewhere, route, other, target];
    alertmanager.post(&json!(all)).await.unwrap();

    let mut last = Vec::new();
    let silenced = eventually(DEADLINE, async || {
        let alerts = alertmanager.get("/alerts").await.unwrap();
        last = array(&alerts)
            .filter(|alert| alert["status"]["state"] == "suppressed")
            .map(|alert| {
                format!("{} {}", text(&alert["labels"]["alertname"]), text(&alert["labels"]["fleet"]))
            })
            .collect();
        last.sort_unstable();
        last == ["SignalboxErrorBudgetFast edge", "SignalboxOverload edge"]
    });
    assert!(silenced.await, "{last:?}");

    let groups = alertmanager.get("/alerts/groups").await.unwrap();
    let mut groups: Vec<_> = array(&groups)
        .map(|group| {
            let label = |name: &str| text(&group["labels"][name]).to_owned();
            (label("cause"), label("fleet"), label("upstream"), array(&group["alerts"]).count())
        })
        .collect();
    groups.sort_unstable();
    let group = |cause: &str, fleet: &str, upstream: &str, alerts: usize| {
        (cause.to_owned(), fleet.to_owned(), upstream.to_owned(), alerts)
    };
    assert_eq!(
        groups,
        [
            group("errors", "edge", "", 1),
            group("errors", "far", "", 2),
            group("errors", "lab", "", 1),
            group("lost-proxies", "edge", "", 1),
            group("overload", "edge", "", 1),
            group("upstream", "edge", "users", 1),
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_example_of_tracing_is_accepted() {
    let gateway = Gateway::start(0).await;
    let request = gateway.control_plane.api().request(http::Method::POST, "/apply?dry_run=true");
    let request = request.header("content-type", "application/yaml").body(read(shipped("tracing.yaml")));
    let answer = signalbox_tests::control_plane::send(request).await.unwrap();
    assert_eq!(answer.status, 200, "{answer}");
}
