//! Writes metrics in Prometheus' text format, version 0.0.4.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>

use std::fmt::{self, Display, Write as _};

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
        #[allow(unreachable_pub, reason = "a table may be for one module")]
        pub static ALL: &[&$crate::prometheus::Metric] = &[$(&$id),*];
    };
}

/// A page of metrics, which may be passed on in chunks while it is written.
#[derive(Default)]
pub struct Exposition {
    text: String,
    /// Gets each chunk; `None`: the page is kept as a whole.
    sink: Option<Sink>,
    /// True if nobody wants more chunks.
    is_abandoned: bool,
}

/// Takes a chunk of a page. Returns false if nobody wants more.
pub type Sink = Box<dyn FnMut(String) -> bool + Send>;

/// One metric of a page; its samples, which differ by their labels, are written one after the other.
#[derive(Debug)]
pub struct Family<'e> {
    page: &'e mut Exposition,
    metric: &'static Metric,
}

/// Names and values of labels.
pub type Labels<'l> = &'l [(&'l str, &'l str)];

/// The number of bytes of a chunk, from which on it is passed on.
const CHUNK: usize = 64 << 10;

impl Exposition {
    /// An empty page that is passed on in chunks.
    pub fn chunked(sink: Sink) -> Self {
        Self { text: String::with_capacity(CHUNK + (CHUNK >> 2)), sink: Some(sink), is_abandoned: false }
    }

    /// Begins a metric.
    pub fn family(&mut self, metric: &'static Metric) -> Family<'_> {
        let Metric { name, kind, help, .. } = metric;
        // Writing to a string does not fail; nor below.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str());
        Family { page: self, metric }
    }

    /// Writes a metric that has one sample, without labels.
    pub fn single(&mut self, metric: &'static Metric, value: impl Display) {
        self.family(metric).sample(&[], value);
    }

    /// True if its reader has gone before its end. To be asked at the end.
    pub fn is_abandoned(&mut self) -> bool {
        self.pass_on();
        self.is_abandoned
    }

    /// The page, if it is not passed on; else the rest of it is passed on, and nothing is returned.
    pub fn into_text(mut self) -> String {
        if self.sink.is_some() {
            self.pass_on();
        }
        self.text
    }

    fn pass_on(&mut self) {
        let Some(sink) = &mut self.sink else { return };
        if !self.text.is_empty() && !self.is_abandoned {
            let chunk = std::mem::replace(&mut self.text, String::with_capacity(CHUNK + (CHUNK >> 2)));
            self.is_abandoned = !sink(chunk);
        }
        if self.is_abandoned {
            self.text.clear();
        }
    }
}

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposition").field("text", &self.text).finish_non_exhaustive()
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
        debug_assert!(
            labels.iter().map(|(name, _)| name).eq(self.metric.labels),
            "{} is described with other labels",
            self.metric.name
        );
        let text = &mut self.page.text;
        text.push_str(self.metric.name);
        text.push_str(suffix);
        let mut open = '{';
        for (name, value) in labels.iter().copied().chain(bound.map(|bound| ("le", bound))) {
            text.push(open);
            let _ = write!(text, "{name}=\"");
            for character in value.chars() {
                match character {
                    '\\' => text.push_str("\\\\"),
                    '"' => text.push_str("\\\""),
                    '\n' => text.push_str("\\n"),
                    other => text.push(other),
                }
            }
            text.push('"');
            open = ',';
        }
        if open == ',' {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
        if self.page.sink.is_some() && self.page.text.len() >= CHUNK {
            self.page.pass_on();
        }
    }
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// Writes the table of some metrics for the documentation, in Markdown.
pub fn table(metrics: &[&Metric]) -> String {
    let mut table =
        "| metric | type | labels | unit | meaning | what to do |\n| --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
    for metric in metrics {
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
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
        EXPIRY: Gauge "expiry" [] "seconds", "Seconds.", "";
        TOOK: Histogram "took_seconds" ["plugin"] "seconds", "Durations.", "";
    }

    #[test]
    fn a_page_has_a_head_for_each_metric_and_a_line_for_each_sample() {
        let mut page = Exposition::default();
        let mut requests = page.family(&REQUESTS);
        requests.sample(&[("route", "a"), ("code", "2xx")], 3);
        requests.sample(&[("route", "b\"\\\n"), ("code", "")], 0);
        page.single(&UP, 1);
        page.single(&EXPIRY, -1);
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
        let mut took = page.family(&TOOK);
        took.durations(&[("plugin", "a")], [(16, 1), (500_000, 2)], 90_000_103, 3);
        took.durations(&[("plugin", "b")], [], 0, 0);
        let text = page.into_text();
        let (_, lines) = text.split_once("histogram\n").unwrap();
        assert_eq!(
            lines,
            "took_seconds_bucket{plugin=\"a\",le=\"0.000016\"} 1\n\
             took_seconds_bucket{plugin=\"a\",le=\"0.5\"} 2\n\
             took_seconds_bucket{plugin=\"a\",le=\"+Inf\"} 3\n\
             took_seconds_sum{plugin=\"a\"} 90.000103\n\
             took_seconds_count{plugin=\"a\"} 3\n\
             took_seconds_bucket{plugin=\"b\",le=\"+Inf\"} 0\n\
             took_seconds_sum{plugin=\"b\"} 0\ntook_seconds_count{plugin=\"b\"} 0\n"
        );
    }

    #[test]
    fn a_long_page_is_passed_on_in_chunks_until_nobody_wants_more() {
        let written = |wanted: usize| {
            let (sender, chunks) = std::sync::mpsc::channel();
            let mut left = wanted;
            let mut page = Exposition::chunked(Box::new(move |chunk| {
                left = left.saturating_sub(1);
                sender.send(chunk).is_ok() && left > 0
            }));
            let mut requests = page.family(&REQUESTS);
            for number in 0..10_000 {
                requests.sample(&[("route", &format!("r{number}")), ("code", "2xx")], number);
            }
            assert_eq!(page.into_text(), "");
            chunks.iter().collect::<Vec<String>>()
        };
        let chunks = written(usize::MAX);
        assert!(chunks.len() > 3 && chunks.iter().all(|chunk| chunk.len() < CHUNK + 100));
        assert_eq!(chunks.concat().lines().count(), 10_002);
        assert_eq!(written(2).len(), 2);
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
