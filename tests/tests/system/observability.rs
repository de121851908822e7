//! The rules, dashboards and configurations for observability, read by the programs that they are for.

mod known;
mod promql;
mod running;
mod shipped;

use std::process::Command;

use serde_json::Value;
use signalbox_tests::Prometheus;
use signalbox_tests::prometheus::{amtool, promtool};

use self::known::Known;
use self::shipped::{
    Configuration, DASHBOARDS, array, dashboard, expressions, read, repository, shipped, text,
};

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
