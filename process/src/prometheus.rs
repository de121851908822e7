//! Metrics for Prometheus: their description, and pages of their samples.

mod exposition;
mod format;
mod protobuf;
mod samples;

use std::fmt::Write as _;

pub use exposition::{Exposition, Family, Number, Sink};
pub use format::Format;
pub use samples::{Durations, Exemplar, Labels, Native};

/// A metric as it is described: the source of its HELP and TYPE, and of its line in the documentation. [`metrics!`] defines some.
#[derive(Debug)]
pub struct Metric {
    /// The name.
    pub name: &'static str,
    /// The type.
    pub kind: MetricKind,
    /// The names of its labels, in their order.
    pub labels: &'static [&'static str],
    /// The unit of its values.
    pub unit: &'static str,
    /// A sentence that says what it tells.
    pub help: &'static str,
    /// The advice for an operator.
    pub action: &'static str,
}

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// It only grows while the process runs.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Durations, in buckets.
    Histogram,
}

impl MetricKind {
    /// The name in the text format.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Defines metrics, and `ALL` with all of them: `ID: Kind "name" ["label"] "unit", "help", "advice";`.
#[macro_export]
macro_rules! metrics {
    ($($id:ident: $kind:ident $name:literal [$($label:literal),*] $unit:literal, $help:literal, $action:literal;)*) => {
        $(
            #[doc = $help]
            #[allow(unreachable_pub, reason = "a table may be for one module")]
            pub static $id: $crate::prometheus::Metric = $crate::prometheus::Metric {
                name: $name,
                kind: $crate::prometheus::MetricKind::$kind,
                labels: &[$($label),*],
                unit: $unit,
                help: $help,
                action: $action,
            };
        )*
        /// All metrics of this table, in its order.
        #[allow(dead_code, unreachable_pub, reason = "a table may be for one module, which names each")]
        pub static ALL: &[&$crate::prometheus::Metric] = &[$(&$id),*];
    };
}

/// Writes the table of some metrics for the documentation, in Markdown.
pub fn table(metrics: &[&Metric]) -> String {
    let mut table =
        "| metric | type | labels | unit | meaning | what to do |\n| --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
    for metric in metrics {
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        // Writing to a string does not fail.
        let _ = writeln!(
            table,
            "| `{}` | {} | {} | {} | {} | {} |",
            metric.name,
            metric.kind.as_str(),
            labels.join(", "),
            metric.unit,
            metric.help.replace('|', "\\|"),
            metric.action.replace('|', "\\|"),
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    metrics! {
        REQUESTS: Counter "requests_total" ["route", "code"] "requests", "Requests.", "";
        UP: Gauge "up" [] "", "Whether it is up.", "Start it | again.";
    }

    #[test]
    fn the_table_has_a_row_for_each_metric() {
        let table = table(ALL);
        assert_eq!(table.lines().count(), 2 + ALL.len());
        assert!(
            table.contains("| `requests_total` | counter | `route`, `code` | requests | Requests. |  |\n"),
            "{table}"
        );
        assert!(table.contains("Start it \\| again."), "{table}");
    }
}
