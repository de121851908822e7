//! The messages of Prometheus' protobuf format: the parts of `io.prometheus.client` that are written here.
//!
//! <https://github.com/prometheus/client_model/blob/master/io/prometheus/client/metrics.proto>

use super::samples::{Durations, Exemplar, Labels, Native};
use super::{Metric, MetricKind};

/// A metric with its name and all its samples. The field `metric`, number 4, is written apart, a sample at a time.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct MetricFamily {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    help: String,
    /// 0 is a counter, 1 a gauge, 4 a histogram.
    #[prost(int32, tag = "3")]
    kind: i32,
}

/// The number of the field `metric` of a family.
pub(super) const METRIC: u32 = 4;

/// One sample.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Sample {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(message, optional, tag = "2")]
    gauge: Option<Value>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Value>,
    #[prost(message, optional, tag = "7")]
    histogram: Option<Histogram>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LabelPair {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// A counter or a gauge.
#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(double, tag = "1")]
    value: f64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Histogram {
    #[prost(uint64, tag = "1")]
    sample_count: u64,
    #[prost(double, tag = "2")]
    sample_sum: f64,
    #[prost(message, repeated, tag = "3")]
    bucket: Vec<Bucket>,
    #[prost(sint32, tag = "5")]
    schema: i32,
    #[prost(message, repeated, tag = "12")]
    positive_span: Vec<BucketSpan>,
    /// The difference of each bucket's count from that of the one before.
    #[prost(sint64, repeated, tag = "13")]
    positive_delta: Vec<i64>,
    #[prost(message, repeated, tag = "16")]
    exemplars: Vec<ExemplarMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Bucket {
    #[prost(uint64, tag = "1")]
    cumulative_count: u64,
    #[prost(double, tag = "2")]
    upper_bound: f64,
    #[prost(message, optional, tag = "3")]
    exemplar: Option<ExemplarMessage>,
}

/// Buckets that follow one another.
#[derive(Clone, PartialEq, prost::Message)]
struct BucketSpan {
    /// The number of empty buckets between the span before and this one; of the first span, the index of its first bucket.
    #[prost(sint32, tag = "1")]
    offset: i32,
    #[prost(uint32, tag = "2")]
    length: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExemplarMessage {
    #[prost(message, repeated, tag = "1")]
    label: Vec<LabelPair>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(message, optional, tag = "3")]
    timestamp: Option<Time>,
}

/// `google.protobuf.Timestamp`.
#[derive(Clone, PartialEq, prost::Message)]
struct Time {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

impl MetricFamily {
    pub(super) fn new(metric: &Metric) -> Self {
        let kind = match metric.kind {
            MetricKind::Counter => 0,
            MetricKind::Gauge => 1,
            MetricKind::Histogram => 4,
        };
        Self { name: metric.name.to_owned(), help: metric.help.to_owned(), kind }
    }
}

impl Sample {
    /// A value of a counter or a gauge.
    pub(super) fn value(kind: MetricKind, labels: Labels<'_>, value: f64) -> Self {
        let value = Some(Value { value });
        let (gauge, counter) = if kind == MetricKind::Counter { (None, value) } else { (value, None) };
        Self { label: pairs(labels), gauge, counter, histogram: None }
    }

    /// The durations of a histogram.
    pub(super) fn durations(labels: Labels<'_>, durations: &Durations<'_>) -> Self {
        let mut lower = 0.0;
        let mut bucket: Vec<_> = durations
            .buckets
            .iter()
            .map(|(upper_bound, cumulative_count)| {
                let exemplar = durations.exemplar(std::mem::replace(&mut lower, *upper_bound), *upper_bound);
                let exemplar = exemplar.map(ExemplarMessage::from);
                Bucket { cumulative_count: *cumulative_count, upper_bound: *upper_bound, exemplar }
            })
            .collect();
        let exemplar = durations.exemplar(lower, f64::INFINITY).map(ExemplarMessage::from);
        bucket.push(Bucket { cumulative_count: durations.count, upper_bound: f64::INFINITY, exemplar });
        let mut histogram = Histogram {
            sample_count: durations.count,
            sample_sum: durations.sum,
            bucket,
            ..Histogram::default()
        };
        if let Some(native) = &durations.native {
            histogram.set_native(native);
            histogram.exemplars = durations.exemplars.iter().map(ExemplarMessage::from).collect();
        }
        Self { label: pairs(labels), histogram: Some(histogram), ..Self::default() }
    }
}

impl Histogram {
    fn set_native(&mut self, native: &Native<'_>) {
        self.schema = native.schema;
        let mut next = 0;
        let mut before = 0;
        for &(index, count) in native.buckets {
            let offset = index.saturating_sub(next);
            match self.positive_span.last_mut() {
                Some(span) if offset == 0 => span.length += 1,
                _ => self.positive_span.push(BucketSpan { offset, length: 1 }),
            }
            next = index.saturating_add(1);
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.positive_delta.push(count - before);
            before = count;
        }
        if self.positive_span.is_empty() {
            // It says that this is a native histogram, though it is empty.
            self.positive_span.push(BucketSpan { offset: 0, length: 0 });
        }
    }
}

impl From<&Exemplar> for ExemplarMessage {
    fn from(exemplar: &Exemplar) -> Self {
        let timestamp = Time {
            seconds: i64::try_from(exemplar.at.as_secs()).unwrap_or(i64::MAX),
            nanos: exemplar.at.subsec_nanos().cast_signed(),
        };
        Self {
            label: pairs(&[("trace_id", &exemplar.trace_id)]),
            value: exemplar.value,
            timestamp: Some(timestamp),
        }
    }
}

fn pairs(labels: Labels<'_>) -> Vec<LabelPair> {
    let pair =
        |(name, value): &(&str, &str)| LabelPair { name: (*name).to_owned(), value: (*value).to_owned() };
    labels.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The native buckets of a histogram, as a reader sees them.
    fn read(histogram: &Histogram) -> Vec<(i32, i64)> {
        let (mut index, mut count) = (0, 0);
        let mut deltas = histogram.positive_delta.iter();
        let mut buckets = Vec::new();
        for span in &histogram.positive_span {
            index += span.offset;
            for _ in 0..span.length {
                count += deltas.next().unwrap();
                buckets.push((index, count));
                index += 1;
            }
        }
        assert_eq!(deltas.next(), None);
        buckets
    }

    #[test]
    fn native_buckets_are_spans_and_differences() {
        for buckets in [
            vec![],
            vec![(0, 1)],
            vec![(-159, 3), (-158, 2), (-150, 9), (0, 1), (1, 1), (96, 5)],
            vec![(7, 4), (9, 4)],
        ] {
            let mut histogram = Histogram::default();
            histogram.set_native(&Native { schema: 3, buckets: &buckets });
            let expected: Vec<_> = buckets.iter().map(|(index, count)| (*index, *count as i64)).collect();
            assert_eq!(read(&histogram), expected);
            assert!(!histogram.positive_span.is_empty());
        }
    }
}
