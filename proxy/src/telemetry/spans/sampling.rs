//! The decision whether a request's spans are exported.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use signalbox_config::{SampleRatio, Tracing};
use signalbox_plugin::trace_context::TraceId;

use super::sink::SpanSink;

/// The tracing of a listener, as requests see it. It is kept while its configuration stays.
#[derive(Debug)]
pub struct ListenerTracing {
    pub settings: Tracing,
    /// Where the spans go.
    pub sink: Arc<SpanSink>,
    /// `None`: no limit.
    sampled: Option<Buckets>,
    late: Option<Buckets>,
}

/// The decision by a ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampled {
    No,
    /// With the threshold that the trace's id has reached.
    Yes(u64),
}

/// Token buckets, one for each worker, which share a rate.
#[derive(Debug)]
struct Buckets {
    workers: Box<[Bucket]>,
    /// Nanoseconds between two tokens of a worker.
    interval: u64,
}

/// The time at which the bucket will be full again, in nanoseconds. Only its worker writes it, to a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Bucket(AtomicU64);

/// A bucket holds the tokens of this time, and one at least.
const BURST: u64 = 1_000_000_000;

impl ListenerTracing {
    pub fn new(settings: Tracing, sink: Arc<SpanSink>, workers: usize) -> Self {
        let sampled = settings.sampling.per_second.map(|rate| Buckets::new(rate, workers));
        let late = settings.late.as_ref().map(|late| Buckets::new(late.per_second, workers));
        Self { settings, sink, sampled, late }
    }

    /// True if the rate allows another sampled request of this worker. `now` is the time since a moment before all requests.
    #[inline]
    pub fn admits_sampled(&self, worker: usize, now: Duration) -> bool {
        self.sampled.as_ref().is_none_or(|buckets| buckets.take(worker, now))
    }

    /// The same for a request that is exported late.
    pub fn admits_late(&self, worker: usize, now: Duration) -> bool {
        self.late.as_ref().is_some_and(|buckets| buckets.take(worker, now))
    }

    /// True if the share of sampled traces is that of the ratio alone, so that it may be told.
    pub fn is_share_known(&self) -> bool {
        self.sampled.is_none()
    }
}

impl PartialEq for ListenerTracing {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings && Arc::ptr_eq(&self.sink, &other.sink)
    }
}

impl Eq for ListenerTracing {}

impl Sampled {
    /// Compares the last 56 bits of a trace's id with the ratio's threshold ("TraceState: probability sampling" of OpenTelemetry): so
    /// all that sample by the same ratio sample the same traces.
    #[inline]
    pub fn by_ratio(ratio: SampleRatio, trace_id: &TraceId) -> Self {
        let randomness = u128::from_be_bytes(*trace_id) as u64 & ((1 << 56) - 1);
        match ratio.threshold() {
            Some(threshold) if randomness >= threshold => Self::Yes(threshold),
            _ => Self::No,
        }
    }
}

impl Buckets {
    fn new(per_second: u32, workers: usize) -> Self {
        let workers = workers.max(1);
        let interval = 1_000_000_000 * workers as u64 / u64::from(per_second.max(1));
        Self { workers: (0..workers).map(|_| Bucket::default()).collect(), interval }
    }

    /// Takes a token (the "generic cell rate algorithm").
    fn take(&self, worker: usize, now: Duration) -> bool {
        let Some(Bucket(full_at)) = self.workers.get(worker) else { return false };
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let next = full_at.load(Ordering::Relaxed).max(now).saturating_add(self.interval);
        let is_there = next - now <= BURST.max(self.interval);
        if is_there {
            full_at.store(next, Ordering::Relaxed);
        }
        is_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_rate() {
        for (per_second, workers, burst, second) in
            [(100, 1, 100, 100), (10, 2, 5, 5), (1, 4, 1, 0), (3, 1, 3, 3)]
        {
            let buckets = Buckets::new(per_second, workers);
            let taken = |from: u64, to: u64| {
                let times = (from..to).map(Duration::from_micros);
                times.filter(|now| buckets.take(0, *now)).count()
            };
            assert_eq!(taken(0, 1000), burst, "{per_second}/{workers}");
            let next = taken(1000, 1_001_000);
            assert!(next.abs_diff(second) <= 1, "{per_second}/{workers}: {next}");
        }
        // Each worker has its own.
        let buckets = Buckets::new(2, 2);
        assert!(buckets.take(0, Duration::ZERO) && buckets.take(1, Duration::ZERO));
        assert!(!buckets.take(0, Duration::ZERO));
        assert!(!buckets.take(2, Duration::ZERO));
    }

    #[test]
    fn a_ratio_samples_its_share_and_the_same_traces_each_time() {
        let spec = |ratio: f64| {
            let spec = serde_json::json!({
                "name": "http", "address": "0.0.0.0:80",
                "tracing": {"exporter": {"endpoint": "http://c"}, "sampling": {"ratio": ratio}},
            });
            let types = signalbox_plugins::builtin();
            let resource =
                signalbox_config::Resource::parse(signalbox_config::Kind::Listener, spec, types).unwrap();
            let signalbox_config::Body::Listener(listener) = resource.body() else { panic!() };
            listener.tracing.clone().unwrap().sampling.ratio
        };
        let mut random = fastrand::Rng::with_seed(7);
        for (ratio, least, most) in [(0.0, 0, 0), (0.01, 50, 150), (0.5, 4800, 5200), (1.0, 10_000, 10_000)] {
            let ratio = spec(ratio);
            let ids: Vec<TraceId> = (0..10_000).map(|_| random.u128(..).to_be_bytes()).collect();
            let sampled = |id: &&TraceId| matches!(Sampled::by_ratio(ratio, id), Sampled::Yes(_));
            let count = ids.iter().filter(sampled).count();
            assert!((least..=most).contains(&count), "{ratio:?}: {count}");
            // A trace of a lower ratio is one of each higher ratio.
            let higher = spec(1.0);
            assert!(ids.iter().filter(sampled).all(|id| Sampled::by_ratio(higher, id) != Sampled::No));
        }
    }
}
