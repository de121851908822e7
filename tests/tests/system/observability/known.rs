//! The series that queries can be about, and their labels.

use std::collections::{BTreeMap, BTreeSet};

use signalbox_process::process_metrics;
use signalbox_process::prometheus::MetricKind;

use super::promql::{Names, names};

/// The labels that a target has, by the shipped configuration of Prometheus.
const OF_TARGETS: [&str; 4] = ["job", "instance", "fleet", "zone"];

/// Series with their labels.
#[derive(Debug)]
pub(super) struct Known(BTreeMap<String, BTreeSet<String>>);

impl Known {
    /// The metrics that the tables of both programs describe, those that Prometheus makes itself, and recorded ones. The name of a
    /// recorded series begins with its labels: `fleet_route:…`.
    pub(super) fn with_recorded<'a>(recorded: impl IntoIterator<Item = &'a str>) -> Self {
        let mut known = Self(BTreeMap::new());
        let tables = [
            process_metrics::ALL,
            signalbox_proxy::metrics::described::ALL,
            signalbox_control_plane::metrics::described::ALL,
        ];
        for metric in tables.into_iter().flatten() {
            let labels = metric.labels.iter().chain(&OF_TARGETS).copied();
            match metric.kind {
                MetricKind::Counter | MetricKind::Gauge => known.add(metric.name, labels),
                MetricKind::Histogram => {
                    for suffix in ["bucket", "sum", "count"] {
                        let le = Some("le").filter(|_| suffix == "bucket");
                        known.add(&format!("{}_{suffix}", metric.name), labels.clone().chain(le));
                    }
                }
            }
        }
        known.add("up", OF_TARGETS);
        known.add("ALERTS", ["alertname", "alertstate", "severity", "fleet", "route", "upstream"]);
        for name in recorded {
            let level = name.split(':').next().unwrap_or_default();
            known.add(name, level.split('_').filter(|label| *label != "signalbox"));
        }
        known
    }

    fn add<'a>(&mut self, name: &str, labels: impl IntoIterator<Item = &'a str>) {
        self.0.entry(name.to_owned()).or_default().extend(labels.into_iter().map(str::to_owned));
    }

    /// True if there is a metric of this name, or a histogram of it.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name) || self.0.contains_key(&format!("{name}_bucket"))
    }

    /// Checks an expression. Returns the labels that its series may have.
    pub(super) fn check(&self, expression: &str) -> BTreeSet<&str> {
        let Names { metrics, labels } = names(expression);
        let mut all = BTreeSet::new();
        for (metric, selected) in &metrics {
            let known = self.0.get(metric).unwrap_or_else(|| panic!("there is no {metric}: {expression}"));
            for label in selected {
                assert!(known.contains(label), "{metric} has no label {label}: {expression}");
            }
            all.extend(known.iter().map(String::as_str));
        }
        for label in &labels {
            assert!(all.contains(label.as_str()), "nothing has the label {label}: {expression}");
        }
        all
    }
}
