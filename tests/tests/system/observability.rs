//! What is shipped for observability: rules, dashboards and configurations, read by the programs that they are for.

mod known;
mod promql;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use signalbox_tests::control_plane::ADMIN_TOKEN;
use signalbox_tests::prometheus::{amtool, promtool};
use signalbox_tests::{Alertmanager, Prometheus, Proxy, eventually, get};

use self::known::Known;
use crate::fixture::{Gateway, forward};

const DEADLINE: Duration = Duration::from_secs(60);

const DASHBOARDS: [&str; 4] = ["fleet", "route", "upstream", "rollout"];

const PROXY_ADMIN_TOKEN: &str = "proxy-admin-token-of-the-system-tests";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn shipped(name: &str) -> PathBuf {
    repository().join("observability").join(name)
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A copy of Prometheus' configuration with its rules and the secrets that it names.
struct Configuration(tempfile::TempDir);

impl Configuration {
    fn new() -> Self {
        let configuration =
            Self(tempfile::Builder::new().prefix("signalbox-configuration-").tempdir().unwrap());
        for folder in ["rules", "secrets"] {
            std::fs::create_dir(configuration.dir().join(folder)).unwrap();
        }
        for name in ["prometheus.yml", "rules/signalbox.rules.yml"] {
            std::fs::copy(shipped(name), configuration.dir().join(name)).unwrap();
        }
        std::fs::write(configuration.dir().join("secrets/viewer-token"), ADMIN_TOKEN).unwrap();
        std::fs::write(configuration.dir().join("secrets/proxy-admin-token"), PROXY_ADMIN_TOKEN).unwrap();
        configuration
    }

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
        });
        configuration.edit("rules/signalbox.rules.yml", |text| {
            text.replace("interval: 1m", "interval: 1s").replace("interval: 5m", "interval: 1s")
        });
        configuration
    }

    /// Names the proxies itself, with the labels that service discovery would give them.
    fn list_proxies(&self, proxies: &[Proxy]) {
        self.edit("prometheus.yml", |text| {
            let (before, after) = text.split_once("    http_sd_configs:\n").unwrap();
            let (_, after) = after.split_once("    # Proxies ask").unwrap();
            let mut listed = format!("{before}    static_configs:\n");
            for proxy in proxies {
                listed.push_str(&format!(
                    "      - {{targets: ['{}'], labels: {{__meta_signalbox_proxy: {}, __meta_signalbox_fleet: default, \
                     __meta_signalbox_label_zone: a}}}}\n",
                    proxy.admin(),
                    proxy.id()
                ));
            }
            format!("{listed}    # Proxies ask{after}")
        });
    }

    fn edit(&self, name: &str, edit: impl Fn(String) -> String) {
        let path = self.dir().join(name);
        let text = read(&path);
        let edited = edit(text.clone());
        assert_ne!(text, edited, "{name} has nothing to replace");
        std::fs::write(path, edited).unwrap();
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    fn file(&self) -> PathBuf {
        self.dir().join("prometheus.yml")
    }
}

#[test]
fn configurations_and_rules_are_valid() {
    let configuration = Configuration::new();
    promtool(configuration.dir(), &["check", "config", "prometheus.yml"]).unwrap();
    promtool(configuration.dir(), &["check", "rules", "rules/signalbox.rules.yml"]).unwrap();
    amtool(&shipped(""), &["check-config", "alertmanager.yml"]).unwrap();
}

#[test]
fn every_alert_fires_in_a_test_and_all_tests_pass() {
    let rules = shipped("rules");
    let mut files: Vec<_> =
        std::fs::read_dir(&rules).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    let tests: Vec<&str> =
        files.iter().filter_map(|file| file.to_str()).filter(|file| file.ends_with(".test.yml")).collect();
    promtool(&rules, &[&["test", "rules"], &*tests].concat()).unwrap();
    let texts: String = tests.iter().map(|file| read(rules.join(file))).collect();
    let alerts = read(rules.join("signalbox.rules.yml"));
    let alerts: Vec<_> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 30, "{alerts:?}");
    let table = read(repository().join("docs/MONITORING.md"));
    for alert in alerts {
        let fires = format!("alertname: {alert}\n        exp_alerts:\n");
        assert!(texts.contains(&fires), "{alert} fires in no test");
        assert!(table.contains(&format!("| `{alert}` |")), "docs/MONITORING.md has no line about {alert}");
    }
}

#[test]
fn the_dashboards_are_made_by_their_generator() {
    let made = tempfile::tempdir().unwrap();
    let mut command = Command::new("python3");
    let output = command.arg("-B").arg(shipped("grafana/generate.py")).arg(made.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in DASHBOARDS {
        let file = format!("{name}.json");
        let same = read(made.path().join(&file)) == read(shipped("grafana/dashboards").join(&file));
        assert!(same, "{file} is out of date: run `make dashboards`");
    }
    assert_eq!(std::fs::read_dir(made.path()).unwrap().count(), DASHBOARDS.len());
}

fn dashboard(name: &str) -> Value {
    serde_json::from_str(&read(shipped("grafana/dashboards").join(format!("{name}.json")))).unwrap()
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// An expression of a dashboard, as Grafana sends it when all values are chosen.
fn filled(expression: &str) -> String {
    let filled = ["$fleet", "$instance", "$route", "$upstream"]
        .iter()
        .fold(expression.to_owned(), |text, variable| text.replace(variable, ".*"));
    let filled = filled.replace("$__rate_interval", "1m");
    assert!(!filled.contains('$'), "{expression} has an unknown variable");
    filled
}

/// The expressions of a dashboard's panels and markers, each with the text that names its series.
fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for target in array(&dashboard["panels"]).flat_map(|panel| array(&panel["targets"])) {
        all.push((filled(text(&target["expr"])), text(&target["legendFormat"]).to_owned()));
    }
    for marker in array(&dashboard["annotations"]["list"]) {
        let legend = format!("{} {}", text(&marker["titleFormat"]), text(&marker["textFormat"]));
        all.push((filled(text(&marker["expr"])), legend));
    }
    all
}

/// The rules as Prometheus has read them.
async fn rules() -> Vec<Value> {
    let configuration = Configuration::new();
    let prometheus = Prometheus::start(&configuration.file()).await.unwrap();
    let answer = prometheus.get("/rules").await.unwrap();
    array(&answer["data"]["groups"]).flat_map(|group| array(&group["rules"])).cloned().collect()
}

fn known(rules: &[Value]) -> Known {
    let recorded = rules.iter().filter(|rule| rule["type"] == "recording").map(|rule| text(&rule["name"]));
    Known::with_recorded(recorded)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn all_metrics_and_labels_that_are_named_exist() {
    let rules = rules().await;
    let known = known(&rules);
    for rule in &rules {
        known.check(text(&rule["query"]));
        // Queries in templates stand between backticks.
        for query in text(&rule["annotations"]["description"]).split('`').skip(1).step_by(2) {
            if query.contains('(') {
                known.check(&query.replace("%q", "\"x\""));
            }
        }
    }
    for name in DASHBOARDS {
        for (expression, legend) in expressions(&dashboard(name)) {
            let labels = known.check(&expression);
            for label in legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
                assert!(labels.contains(label), "nothing has the label {label} of {legend:?}: {expression}");
            }
        }
    }
    let mut queries = 0;
    for name in ["keda", "prometheus-adapter"] {
        for line in read(shipped("kubernetes").join(format!("{name}.yaml"))).lines() {
            let line = line.trim_start_matches([' ', '-']);
            let Some((_, query)) = line.split_once("uery: ").filter(|(key, _)| !key.starts_with('#')) else {
                continue;
            };
            known.check(&query.trim_matches('\'').replace("<<.LabelMatchers>>", "fleet=\"a\""));
            queries += 1;
        }
    }
    assert_eq!(queries, 3);
}

/// Names of our metrics that are no metrics of our programs: prometheus-adapter makes this one.
const MADE_ELSEWHERE: &str = "signalbox_offered_requests_per_second";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn texts_name_only_metrics_that_exist() {
    let known = known(&rules().await);
    let mut texts = vec![repository().join("docs/MONITORING.md")];
    for folder in ["", "rules", "kubernetes", "grafana", "grafana/provisioning/datasources"] {
        let files = std::fs::read_dir(shipped(folder)).unwrap().map(|file| file.unwrap().path());
        texts.extend(files.filter(|path| path.is_file()));
    }
    for path in texts {
        let text = read(&path);
        let words =
            text.split(|letter: char| !letter.is_ascii_alphanumeric() && !matches!(letter, '_' | ':'));
        for word in words.filter(|word| word.starts_with("signalbox_") && *word != MADE_ELSEWHERE) {
            let word = word.trim_end_matches(':');
            assert!(known.has(word), "{}: there is no {word}", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_alert_says_what_to_do_and_where_to_read_on() {
    for rule in rules().await.iter().filter(|rule| rule["type"] == "alerting") {
        let name = text(&rule["name"]);
        assert!(["page", "ticket"].contains(&text(&rule["labels"]["severity"])), "{name} has no severity");
        assert!(!text(&rule["labels"]["cause"]).is_empty(), "{name} has no cause");
        for key in ["summary", "description"] {
            assert!(!text(&rule["annotations"][key]).is_empty(), "{name} has no {key}");
        }
        let runbook = text(&rule["annotations"]["runbook"]);
        let (file, section) = runbook.split_once('#').unwrap_or((runbook, ""));
        let page = read(repository().join(file));
        let mut sections = page.lines().filter(|line| line.starts_with('#')).map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let letters =
                title.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-'));
            letters.collect::<String>().replace(' ', "-")
        });
        assert!(
            section.is_empty() || sections.any(|title| title == section),
            "{name}: there is no {runbook}"
        );
    }
}

#[test]
fn panels_have_a_title_a_unit_and_advice_and_do_not_overlap() {
    for name in DASHBOARDS {
        let dashboard = dashboard(name);
        assert_eq!(dashboard["uid"], format!("signalbox-{name}"));
        let mut taken = std::collections::BTreeSet::new();
        for panel in array(&dashboard["panels"]) {
            let title = text(&panel["title"]);
            let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(!title.is_empty() && place("x") + place("w") <= 24, "{name}: {title}");
            for x in place("x")..place("x") + place("w") {
                for y in place("y")..place("y") + place("h") {
                    assert!(taken.insert((x, y)), "{name}: {title} lies over another panel");
                }
            }
            if panel["type"] == "row" {
                continue;
            }
            assert!(
                text(&panel["description"]).ends_with('.') || text(&panel["description"]).ends_with('}'),
                "{name}: {title}"
            );
            assert!(!text(&panel["fieldConfig"]["defaults"]["unit"]).is_empty(), "{name}: {title}");
            assert!(array(&panel["targets"]).count() > 0, "{name}: {title}");
        }
        let variables: Vec<_> =
            array(&dashboard["templating"]["list"]).map(|variable| text(&variable["name"])).collect();
        let whole = dashboard["panels"].to_string();
        for variable in ["fleet", "instance", "route", "upstream"] {
            let used = whole.contains(&format!("${variable}"));
            assert_eq!(used, variables.contains(&variable), "{name}: ${variable}");
        }
    }
}

#[test]
fn the_compose_file_mounts_what_exists_and_pins_versions() {
    let compose = read(repository().join("docker-compose.yml"));
    let mut mounts = 0;
    for line in compose.lines() {
        if let Some((_, path)) = line.split_once("./observability/") {
            let path = path.split(':').next().unwrap_or_default();
            assert!(shipped(path).exists(), "{line}");
            mounts += 1;
        }
        if let Some((_, image)) = line.split_once("image: ") {
            let version = image.split_once(':').map(|(_, version)| version).unwrap_or_default();
            assert!(version.contains(|letter: char| letter.is_ascii_digit()), "{line}");
        }
    }
    assert!(mounts >= 8, "{mounts}");
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
    configuration.list_proxies(&gateway.proxies);
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
    let all = prometheus.get("/rules").await.unwrap();
    for rule in array(&all["data"]["groups"]).flat_map(|group| array(&group["rules"])) {
        assert_ne!(rule["health"], "err", "{rule}");
        assert_ne!(rule["state"], "firing", "{rule}");
    }
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
