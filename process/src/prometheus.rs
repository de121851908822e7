//! Writes metrics in Prometheus' text format, version 0.0.4.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>

use std::fmt::{Display, Write as _};

/// A page of metrics.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

/// One metric of a page; its samples, which differ by their labels, are written one after the other.
#[derive(Debug)]
pub struct Family<'e> {
    text: &'e mut String,
    name: &'e str,
}

/// Names and values of labels.
pub type Labels<'l> = &'l [(&'l str, &'l str)];

impl Exposition {
    /// An empty page with room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { text: String::with_capacity(bytes) }
    }

    /// Begins a metric that only grows.
    pub fn counter<'e>(&'e mut self, name: &'e str, help: &str) -> Family<'e> {
        self.family(name, "counter", help)
    }

    /// Begins a metric that goes up and down.
    pub fn gauge<'e>(&'e mut self, name: &'e str, help: &str) -> Family<'e> {
        self.family(name, "gauge", help)
    }

    /// Begins a metric of durations.
    pub fn histogram<'e>(&'e mut self, name: &'e str, help: &str) -> Family<'e> {
        self.family(name, "histogram", help)
    }

    fn family<'e>(&'e mut self, name: &'e str, kind: &str, help: &str) -> Family<'e> {
        // Writing to a string does not fail; nor below.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: &mut self.text, name }
    }

    /// The page.
    pub fn into_text(self) -> String {
        self.text
    }
}

impl Family<'_> {
    /// Writes a value.
    pub fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        self.line("", labels, None, value);
    }

    /// Writes the buckets, sum and count of durations. `buckets` are upper bounds in microseconds, ascending, and how many
    /// durations each has, those of the buckets before it included; `count` durations together took `sum_us` microseconds.
    pub fn durations(
        &mut self,
        labels: Labels<'_>,
        buckets: impl IntoIterator<Item = (u64, u64)>,
        sum_us: u64,
        count: u64,
    ) {
        for (bound_us, below) in buckets {
            self.line("_bucket", labels, Some(&seconds(bound_us).to_string()), below);
        }
        self.line("_bucket", labels, Some("+Inf"), count);
        self.line("_sum", labels, None, seconds(sum_us));
        self.line("_count", labels, None, count);
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, bound: Option<&str>, value: impl Display) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        let mut open = '{';
        for (name, value) in labels.iter().copied().chain(bound.map(|bound| ("le", bound))) {
            self.text.push(open);
            let _ = write!(self.text, "{name}=\"");
            for character in value.chars() {
                match character {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    other => self.text.push(other),
                }
            }
            self.text.push('"');
            open = ',';
        }
        if open == ',' {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_head_for_each_metric_and_a_line_for_each_sample() {
        let mut page = Exposition::default();
        let mut requests = page.counter("requests_total", "Requests.");
        requests.sample(&[("route", "a"), ("code", "2xx")], 3);
        requests.sample(&[("route", "b\"\\\n"), ("code", "")], 0);
        page.gauge("up", "Whether it is up.").sample(&[], 1);
        page.gauge("expiry", "Seconds.").sample(&[], -1);
        assert_eq!(
            page.into_text(),
            "# HELP requests_total Requests.\n# TYPE requests_total counter\n\
             requests_total{route=\"a\",code=\"2xx\"} 3\n\
             requests_total{route=\"b\\\"\\\\\\n\",code=\"\"} 0\n\
             # HELP up Whether it is up.\n# TYPE up gauge\nup 1\n\
             # HELP expiry Seconds.\n# TYPE expiry gauge\nexpiry -1\n"
        );
    }

    #[test]
    fn durations_are_written_in_seconds_with_their_bounds() {
        let mut page = Exposition::default();
        let mut took = page.histogram("took_seconds", "Durations.");
        took.durations(&[("plugin", "a")], [(16, 1), (500_000, 2)], 90_000_103, 3);
        took.durations(&[], [], 0, 0);
        let text = page.into_text();
        let (_, lines) = text.split_once("histogram\n").unwrap();
        assert_eq!(
            lines,
            "took_seconds_bucket{plugin=\"a\",le=\"0.000016\"} 1\n\
             took_seconds_bucket{plugin=\"a\",le=\"0.5\"} 2\n\
             took_seconds_bucket{plugin=\"a\",le=\"+Inf\"} 3\n\
             took_seconds_sum{plugin=\"a\"} 90.000103\n\
             took_seconds_count{plugin=\"a\"} 3\n\
             took_seconds_bucket{le=\"+Inf\"} 0\ntook_seconds_sum 0\ntook_seconds_count 0\n"
        );
    }
}
