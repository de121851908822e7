//! Writes a page of metrics in one of the formats.

use std::fmt::{self, Display};

use prost::Message as _;

use super::format::Format;
use super::protobuf::{METRIC, MetricFamily, Sample};
use super::samples::{Durations, Exemplar, Labels};
use super::{Metric, MetricKind};

/// A page of metrics, which may be passed on in chunks while it is written.
#[derive(Default)]
pub struct Exposition {
    format: Format,
    page: Vec<u8>,
    /// The family that is written, if the format is protobuf: a message has its length before it.
    family: Vec<u8>,
    /// Gets each chunk; `None`: the page is kept as a whole.
    sink: Option<Sink>,
    /// True if nobody wants more chunks.
    is_abandoned: bool,
}

/// Takes a chunk of a page. Returns false if nobody wants more.
pub type Sink = Box<dyn FnMut(Vec<u8>) -> bool + Send>;

/// One metric of a page; its samples, which differ by their labels, are written one after the other.
#[derive(Debug)]
pub struct Family<'e> {
    page: &'e mut Exposition,
    metric: &'static Metric,
}

/// A value of a counter or a gauge.
pub trait Number: Display {
    /// The value as protobuf has it; beyond 2^53 the nearest.
    fn value(&self) -> f64;
}

macro_rules! numbers {
    ($($type:ty),*) => {
        $(impl Number for $type {
            fn value(&self) -> f64 {
                *self as f64
            }
        })*
    };
}

numbers!(u8, u32, u64, i64, usize, f64);

impl<N: Number> Number for &N {
    fn value(&self) -> f64 {
        N::value(self)
    }
}

/// The number of bytes of a chunk, from which on it is passed on.
const CHUNK: usize = 64 << 10;

impl Exposition {
    /// An empty page.
    pub fn new(format: Format) -> Self {
        Self { format, ..Self::default() }
    }

    /// An empty page that is passed on in chunks.
    pub fn chunked(format: Format, sink: Sink) -> Self {
        Self { page: Vec::with_capacity(CHUNK + (CHUNK >> 2)), sink: Some(sink), ..Self::new(format) }
    }

    /// Begins a metric.
    pub fn family(&mut self, metric: &'static Metric) -> Family<'_> {
        self.end_family();
        let Metric { name, kind, help, .. } = metric;
        let name = family_name(metric, self.format).unwrap_or(name);
        match self.format {
            Format::Text => {
                self.push(format_args!("# HELP {name} {help}\n# TYPE {name} {}\n", kind.as_str()));
            }
            Format::OpenMetrics => {
                let help = Escaped(help);
                self.push(format_args!("# HELP {name} {help}\n# TYPE {name} {}\n", kind.as_str()));
            }
            Format::Protobuf => self.family = MetricFamily::new(metric).encode_to_vec(),
        }
        Family { page: self, metric }
    }

    /// Writes a metric that has one sample, without labels.
    pub fn single(&mut self, metric: &'static Metric, value: impl Number) {
        self.family(metric).sample(&[], value);
    }

    /// True if its reader has gone before its end. To be asked at the end.
    pub fn is_abandoned(&mut self) -> bool {
        self.end_family();
        self.pass_on();
        self.is_abandoned
    }

    /// Ends the page. Returns it, if it is not passed on.
    pub fn finish(mut self) -> Vec<u8> {
        self.end_family();
        if self.format == Format::OpenMetrics {
            self.push(format_args!("# EOF\n"));
        }
        if self.sink.is_some() {
            self.pass_on();
        }
        self.page
    }

    /// Ends the metric that is written.
    fn end_family(&mut self) {
        if !self.family.is_empty() {
            // A vector grows as it is needed, so this does not fail; nor below.
            let _ = prost::encode_length_delimiter(self.family.len(), &mut self.page);
            self.page.append(&mut self.family);
            self.pass_on_if_long();
        }
    }

    fn push(&mut self, text: fmt::Arguments<'_>) {
        let _ = std::io::Write::write_fmt(&mut self.page, text);
    }

    fn pass_on_if_long(&mut self) {
        if self.sink.is_some() && self.page.len() >= CHUNK {
            self.pass_on();
        }
    }

    fn pass_on(&mut self) {
        let Some(sink) = &mut self.sink else { return };
        if !self.page.is_empty() && !self.is_abandoned {
            let chunk = std::mem::replace(&mut self.page, Vec::with_capacity(CHUNK + (CHUNK >> 2)));
            self.is_abandoned = !sink(chunk);
        }
        if self.is_abandoned {
            self.page.clear();
        }
    }
}

impl fmt::Debug for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposition").field("format", &self.format).finish_non_exhaustive()
    }
}

impl Family<'_> {
    /// Writes a value.
    pub fn sample(&mut self, labels: Labels<'_>, value: impl Number) {
        match self.page.format {
            Format::Protobuf => {
                self.message(labels, &Sample::value(self.metric.kind, labels, value.value()));
            }
            Format::Text | Format::OpenMetrics if value.value() == f64::INFINITY => {
                self.line("", labels, None, "+Inf", None);
            }
            Format::Text | Format::OpenMetrics => self.line("", labels, None, value, None),
        }
    }

    /// Writes durations: their buckets, sum and count.
    pub fn durations(&mut self, labels: Labels<'_>, durations: &Durations<'_>) {
        if self.page.format == Format::Protobuf {
            return self.message(labels, &Sample::durations(labels, durations));
        }
        let has_exemplars = self.page.format == Format::OpenMetrics;
        let exemplar = |lower, upper| durations.exemplar(lower, upper).filter(|_| has_exemplars);
        let mut lower = 0.0;
        for &(bound, below) in durations.buckets {
            let mut text = bound.to_string();
            if has_exemplars && !text.contains('.') {
                // OpenMetrics' numbers of buckets are floating-point ones.
                text.push_str(".0");
            }
            self.line("_bucket", labels, Some(&text), below, exemplar(lower, bound));
            lower = bound;
        }
        self.line("_bucket", labels, Some("+Inf"), durations.count, exemplar(lower, f64::INFINITY));
        self.line("_sum", labels, None, durations.sum, None);
        self.line("_count", labels, None, durations.count, None);
    }

    fn message(&mut self, labels: Labels<'_>, sample: &Sample) {
        self.check(labels);
        prost::encoding::message::encode(METRIC, sample, &mut self.page.family);
    }

    fn line(
        &mut self,
        suffix: &str,
        labels: Labels<'_>,
        bound: Option<&str>,
        value: impl Display,
        exemplar: Option<&Exemplar>,
    ) {
        self.check(labels);
        let name = self.metric.name;
        self.page.push(format_args!("{name}{suffix}"));
        let mut open = '{';
        for (name, value) in labels.iter().copied().chain(bound.map(|bound| ("le", bound))) {
            self.page.push(format_args!("{open}{name}=\"{}\"", Escaped(value)));
            open = ',';
        }
        if open == ',' {
            self.page.push(format_args!("}}"));
        }
        self.page.push(format_args!(" {value}"));
        if let Some(Exemplar { trace_id, value, at }) = exemplar {
            let trace_id = Escaped(trace_id);
            self.page.push(format_args!(" # {{trace_id=\"{trace_id}\"}} {value} {:.3}", at.as_secs_f64()));
        }
        self.page.push(format_args!("\n"));
        self.page.pass_on_if_long();
    }

    fn check(&self, labels: Labels<'_>) {
        debug_assert!(
            labels.iter().map(|(name, _)| name).eq(self.metric.labels),
            "{} is described with other labels",
            self.metric.name
        );
    }
}

/// The name of a family, if it differs from that of the metric: OpenMetrics' families of counters are named without `_total`.
fn family_name(metric: &Metric, format: Format) -> Option<&'static str> {
    let is_counter = metric.kind == MetricKind::Counter && format == Format::OpenMetrics;
    metric.name.strip_suffix("_total").filter(|_| is_counter)
}

/// A text with its quotes, backslashes and ends of lines escaped.
struct Escaped<'t>(&'t str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(['\\', '"', '\n']) {
            let (before, special) = rest.split_at(at);
            f.write_str(before)?;
            f.write_str(match special.as_bytes().first() {
                Some(b'\\') => "\\\\",
                Some(b'"') => "\\\"",
                _ => "\\n",
            })?;
            rest = special.get(1..).unwrap_or_default();
        }
        f.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics;

    metrics! {
        REQUESTS: Counter "requests_total" ["route", "code"] "requests", "Requests.", "";
        UP: Gauge "up" [] "", "A \"state\".", "";
        EXPIRY: Gauge "expiry" [] "seconds", "Seconds.", "";
        TOOK: Histogram "took_seconds" ["plugin"] "seconds", "Durations.", "";
    }

    fn text(page: Exposition) -> String {
        String::from_utf8(page.finish()).unwrap()
    }

    #[test]
    fn a_page_has_a_head_for_each_metric_and_a_line_for_each_sample() {
        let mut page = Exposition::default();
        let mut requests = page.family(&REQUESTS);
        requests.sample(&[("route", "a"), ("code", "2xx")], 3_u64);
        requests.sample(&[("route", "b\"\\\nc"), ("code", "")], 0_u64);
        page.single(&UP, 1_u8);
        page.single(&EXPIRY, -1_i64);
        assert_eq!(
            text(page),
            "# HELP requests_total Requests.\n# TYPE requests_total counter\n\
             requests_total{route=\"a\",code=\"2xx\"} 3\n\
             requests_total{route=\"b\\\"\\\\\\nc\",code=\"\"} 0\n\
             # HELP up A \"state\".\n# TYPE up gauge\nup 1\n\
             # HELP expiry Seconds.\n# TYPE expiry gauge\nexpiry -1\n"
        );
    }

    #[test]
    fn durations_are_written_in_seconds_with_their_bounds() {
        let mut page = Exposition::default();
        let mut took = page.family(&TOOK);
        let durations = Durations {
            buckets: &[(0.0625, 1), (1.0, 2)],
            sum: 90.000_103,
            count: 3,
            ..Durations::default()
        };
        took.durations(&[("plugin", "a")], &durations);
        took.durations(&[("plugin", "b")], &Durations::default());
        let text = text(page);
        let (_, lines) = text.split_once("histogram\n").unwrap();
        assert_eq!(
            lines,
            "took_seconds_bucket{plugin=\"a\",le=\"0.0625\"} 1\n\
             took_seconds_bucket{plugin=\"a\",le=\"1\"} 2\n\
             took_seconds_bucket{plugin=\"a\",le=\"+Inf\"} 3\n\
             took_seconds_sum{plugin=\"a\"} 90.000103\n\
             took_seconds_count{plugin=\"a\"} 3\n\
             took_seconds_bucket{plugin=\"b\",le=\"+Inf\"} 0\n\
             took_seconds_sum{plugin=\"b\"} 0\ntook_seconds_count{plugin=\"b\"} 0\n"
        );
    }

    #[test]
    fn openmetrics_has_exemplars_in_their_buckets_and_an_end() {
        let mut page = Exposition::new(Format::OpenMetrics);
        page.family(&REQUESTS).sample(&[("route", "a"), ("code", "2xx")], 3_u64);
        page.single(&UP, 1_u8);
        let exemplar =
            |value, at| Exemplar { trace_id: "4bf9".to_owned(), value, at: Duration::from_millis(at) };
        let durations = Durations {
            buckets: &[(0.5, 1), (1.0, 2), (2.0, 3)],
            sum: 5.5,
            count: 4,
            exemplars: &[exemplar(0.7, 5_000), exemplar(0.6, 6_500), exemplar(2.0, 5_000), exemplar(4.0, 1)],
            ..Durations::default()
        };
        page.family(&TOOK).durations(&[("plugin", "a")], &durations);
        assert_eq!(
            text(page),
            "# HELP requests Requests.\n# TYPE requests counter\n\
             requests_total{route=\"a\",code=\"2xx\"} 3\n\
             # HELP up A \\\"state\\\".\n# TYPE up gauge\nup 1\n\
             # HELP took_seconds Durations.\n# TYPE took_seconds histogram\n\
             took_seconds_bucket{plugin=\"a\",le=\"0.5\"} 1\n\
             took_seconds_bucket{plugin=\"a\",le=\"1.0\"} 2 # {trace_id=\"4bf9\"} 0.6 6.500\n\
             took_seconds_bucket{plugin=\"a\",le=\"2.0\"} 3 # {trace_id=\"4bf9\"} 2 5.000\n\
             took_seconds_bucket{plugin=\"a\",le=\"+Inf\"} 4 # {trace_id=\"4bf9\"} 4 0.001\n\
             took_seconds_sum{plugin=\"a\"} 5.5\ntook_seconds_count{plugin=\"a\"} 4\n# EOF\n"
        );
    }

    #[test]
    fn protobuf_has_a_message_for_each_family() {
        let mut page = Exposition::new(Format::Protobuf);
        page.family(&REQUESTS).sample(&[("route", "a"), ("code", "2xx")], 3_u64);
        page.single(&UP, 1_u8);
        page.family(&TOOK);
        let bytes = page.finish();
        let mut rest = bytes.as_slice();
        let mut families = Vec::new();
        while !rest.is_empty() {
            let length = prost::decode_length_delimiter(&mut rest).unwrap();
            let (family, after) = rest.split_at(length);
            families.push(family.to_vec());
            rest = after;
        }
        // name = 1, help = 2, type = 3 (a counter has the default), metric = 4: label = 1, counter = 3.
        let requests = [
            b"\x0a\x0erequests_total\x12\x09Requests.\x22\x24".as_slice(),
            b"\x0a\x0a\x0a\x05route\x12\x01a\x0a\x0b\x0a\x04code\x12\x032xx\x1a\x09\x09",
            &3_f64.to_le_bytes(),
        ];
        assert_eq!(families[0], requests.concat());
        assert_eq!(families.len(), 3);
        assert_eq!(families[2], b"\x0a\x0ctook_seconds\x12\x0aDurations.\x18\x04");
    }

    #[test]
    fn a_long_page_is_passed_on_in_chunks_until_nobody_wants_more() {
        let written = |wanted: usize| {
            let (sender, chunks) = std::sync::mpsc::channel();
            let mut left = wanted;
            let sink = move |chunk| {
                left = left.saturating_sub(1);
                sender.send(chunk).is_ok() && left > 0
            };
            let mut page = Exposition::chunked(Format::Text, Box::new(sink));
            let mut requests = page.family(&REQUESTS);
            for number in 0..10_000_u64 {
                requests.sample(&[("route", &format!("r{number}")), ("code", "2xx")], number);
            }
            assert!(page.finish().is_empty());
            chunks.iter().collect::<Vec<Vec<u8>>>()
        };
        let chunks = written(usize::MAX);
        assert!(chunks.len() > 3 && chunks.iter().all(|chunk| chunk.len() < CHUNK + 100));
        assert_eq!(String::from_utf8(chunks.concat()).unwrap().lines().count(), 10_002);
        assert_eq!(written(2).len(), 2);
    }
}
