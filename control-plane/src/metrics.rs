//! The control plane's metrics.

pub mod described;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use signalbox_process::process_metrics;
use signalbox_process::prometheus::{Durations, Exposition, Family, Format, Labels, Metric};
use signalbox_process::tls::Reloading;
use tokio_rustls::rustls::ServerConfig;

use self::described as metric;

/// All counters of one control plane. What is a state (connected proxies, the head revision) is read when it is
/// written, and is not here.
#[derive(Debug, Default)]
pub struct Metrics {
    /// From a revision's commit to a proxy's ACK of it, once for each ACK.
    pub propagation: Histogram,
    /// Rejections, by any proxy.
    pub xds_nacks: Counter,
    /// Stored resources that this version could not read, each time one was met.
    pub unreadable_resources: Counter,
    /// Proxies that were refused, by reason.
    pub xds_refused: ByReason,
    store: Mutex<BTreeMap<&'static str, StoreCalls>>,
    http: Mutex<BTreeMap<HttpKey, HttpCalls>>,
    /// The TLS files of this process.
    certificates: Mutex<Vec<Arc<Reloading<ServerConfig>>>>,
}

/// Spans by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpanTotals {
    /// The collector has them.
    pub sent: u64,
    /// The collector did not take them.
    pub failed: u64,
    /// The queue was full.
    pub dropped: u64,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Numbers that only grow, by a reason out of a small set.
#[derive(Debug, Default)]
pub struct ByReason(Mutex<BTreeMap<&'static str, u64>>);

impl ByReason {
    /// One more.
    pub fn increment(&self, reason: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(reason).or_default() += 1;
    }

    fn write(&self, family: &mut Family<'_>) {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (reason, count) in counts.iter() {
            family.sample(&[("reason", reason)], count);
        }
    }
}

/// Upper bounds of the buckets, microseconds: half a millisecond to 10 seconds, in steps of about two.
const BOUNDS_US: [u64; 14] = [
    500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000,
    5_000_000, 10_000_000,
];

/// How long something took.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each bound, not cumulated, and one for what is beyond.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Notes one.
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let index = BOUNDS_US.partition_point(|bound| *bound < micros);
        if let Some(bucket) = self.buckets.get(index) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(micros, Ordering::Relaxed);
    }

    fn write(&self, family: &mut Family<'_>, labels: Labels<'_>) {
        let mut total = 0;
        let mut cumulated = [0; BOUNDS_US.len() + 1];
        for (bucket, below) in self.buckets.iter().zip(&mut cumulated) {
            total += bucket.load(Ordering::Relaxed);
            *below = total;
        }
        let mut buckets = [(0.0, 0); BOUNDS_US.len()];
        for ((bucket, bound), below) in buckets.iter_mut().zip(BOUNDS_US).zip(cumulated) {
            *bucket = (bound as f64 / 1e6, below);
        }
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        family.durations(labels, &Durations { buckets: &buckets, sum, count: total, ..Durations::default() });
    }
}

#[derive(Debug, Default)]
struct StoreCalls {
    took: Histogram,
    failed: u64,
}

/// Method, route template, status class: all from small sets.
type HttpKey = (&'static str, &'static str, &'static str);

#[derive(Debug, Default)]
struct HttpCalls {
    took: Histogram,
}

/// The deliveries of a webhook.
#[derive(Debug, Clone)]
pub struct WebhookCounts {
    /// Its name.
    pub webhook: String,
    /// Events that are still to be delivered.
    pub queue: u64,
    /// Events and attempts, by result.
    pub results: [(&'static str, u64); 5],
}

/// Values that are read from elsewhere when the metrics are written.
#[derive(Debug, Clone)]
pub struct Gauges {
    /// True if the debugging pages are served.
    pub profiling: bool,
    /// Proxies by fleet and state.
    pub proxies: BTreeMap<(String, &'static str), u64>,
    /// Proxies with a stream to this control plane.
    pub connected_proxies: u64,
    /// The revision that is published.
    pub head_revision: u64,
    /// Resources of it.
    pub resources: u64,
    /// True if the database answered the last call.
    pub database_up: bool,
    /// True if this control plane decides about rollouts.
    pub leads_rollouts: bool,
    /// Progressive rollouts under way.
    pub rollouts_under_way: u64,
    /// Progressive rollouts that need a decision of a person.
    pub rollouts_held: u64,
    /// Rollouts that were taken back, and hold their fleets.
    pub rollouts_taken_back: u64,
    /// Stored resources that this version cannot read now.
    pub unreadable_now: u64,
    /// Stored resources of a kind that this version does not know.
    pub unknown_resources: u64,
    /// Stored tokens with a role that this version does not know.
    pub unknown_roles: u64,
    /// Spans; `None`: there is no collector.
    pub spans: Option<SpanTotals>,
    /// The deliveries of each webhook.
    pub webhooks: Vec<WebhookCounts>,
}

impl Metrics {
    /// Runs a call of the store, and notes how long it took and whether it failed.
    pub async fn store_call<T, E>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let started = Instant::now();
        let result = call.await;
        let mut calls = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = calls.entry(operation).or_default();
        calls.took.observe(started.elapsed());
        calls.failed += u64::from(result.is_err());
        result
    }

    /// Notes an answered request of the admin API. `path` is the template it was routed by.
    pub fn http(&self, method: &'static str, path: &'static str, status: u16, took: Duration) {
        let class = match status {
            ..200 => "1xx",
            200..300 => "2xx",
            300..400 => "3xx",
            400..500 => "4xx",
            500.. => "5xx",
        };
        let mut calls = self.http.lock().unwrap_or_else(PoisonError::into_inner);
        calls.entry((method, path, class)).or_default().took.observe(took);
    }

    /// Has the expiry of these files' certificates shown.
    pub fn watch_certificates(&self, files: Arc<Reloading<ServerConfig>>) {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner).push(files);
    }

    /// All of it.
    pub fn write(&self, format: Format, gauges: &Gauges) -> Vec<u8> {
        let mut page = Exposition::new(format);
        process_metrics::write(&mut page, env!("CARGO_PKG_VERSION"), gauges.profiling);
        gauges.write(&mut page);
        page.single(&metric::NACKS, self.xds_nacks.value());
        page.single(&metric::UNREADABLE, self.unreadable_resources.value());
        self.xds_refused.write(&mut page.family(&metric::REFUSED));
        let mut expiries = page.family(&metric::TLS_EXPIRY);
        for files in self.certificates.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for expiry in files.expiries() {
                expiries.sample(&[("use", expiry.name)], expiry.not_after);
            }
        }
        self.propagation.write(&mut page.family(&metric::PROPAGATION), &[]);
        self.write_calls(&mut page);
        page.finish()
    }

    fn write_calls(&self, page: &mut Exposition) {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let mut took = page.family(&metric::STORE_DURATION);
        for (operation, calls) in store.iter() {
            calls.took.write(&mut took, &[("operation", operation)]);
        }
        let mut errors = page.family(&metric::STORE_ERRORS);
        for (operation, calls) in store.iter() {
            errors.sample(&[("operation", operation)], calls.failed);
        }
        drop(store);
        let mut took = page.family(&metric::HTTP_DURATION);
        let http = self.http.lock().unwrap_or_else(PoisonError::into_inner);
        for ((method, path, class), calls) in http.iter() {
            calls.took.write(&mut took, &[("method", method), ("path", path), ("code_class", class)]);
        }
    }
}

impl Gauges {
    fn write(&self, page: &mut Exposition) {
        let mut proxies = page.family(&metric::PROXIES);
        for ((fleet, state), count) in &self.proxies {
            proxies.sample(&[("fleet", fleet), ("state", state)], count);
        }
        let gauges: [(&'static Metric, u64); 11] = [
            (&metric::CONNECTED_PROXIES, self.connected_proxies),
            (&metric::HEAD_REVISION, self.head_revision),
            (&metric::RESOURCES, self.resources),
            (&metric::DATABASE_UP, u64::from(self.database_up)),
            (&metric::LEADS, u64::from(self.leads_rollouts)),
            (&metric::UNDER_WAY, self.rollouts_under_way),
            (&metric::HELD, self.rollouts_held),
            (&metric::TAKEN_BACK, self.rollouts_taken_back),
            (&metric::UNREADABLE_NOW, self.unreadable_now),
            (&metric::UNKNOWN, self.unknown_resources),
            (&metric::UNKNOWN_ROLES, self.unknown_roles),
        ];
        for (metric, value) in gauges {
            page.single(metric, value);
        }
        if let Some(SpanTotals { sent, failed, dropped }) = self.spans {
            let mut spans = page.family(&metric::TRACE_SPANS);
            for (result, count) in [("sent", sent), ("failed", failed), ("dropped", dropped)] {
                spans.sample(&[("result", result)], count);
            }
        }
        let mut deliveries = page.family(&metric::WEBHOOK_DELIVERIES);
        for WebhookCounts { webhook, results, .. } in &self.webhooks {
            for (result, count) in results {
                deliveries.sample(&[("webhook", webhook), ("result", result)], count);
            }
        }
        let mut queue = page.family(&metric::WEBHOOK_QUEUE);
        for WebhookCounts { webhook, queue: waiting, .. } in &self.webhooks {
            queue.sample(&[("webhook", webhook)], waiting);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulated_and_bounds_belong_to_their_bucket() {
        let histogram = Histogram::default();
        for micros in [500, 501, 11_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut page = Exposition::default();
        histogram.write(&mut page.family(&metric::STORE_DURATION), &[("operation", "b")]);
        let out = String::from_utf8(page.finish()).unwrap();
        assert!(
            out.contains("signalbox_store_duration_seconds_bucket{operation=\"b\",le=\"0.0005\"} 1\n"),
            "{out}"
        );
        assert!(
            out.contains("signalbox_store_duration_seconds_bucket{operation=\"b\",le=\"0.001\"} 2\n"),
            "{out}"
        );
        assert!(
            out.contains("signalbox_store_duration_seconds_bucket{operation=\"b\",le=\"10\"} 2\n"),
            "{out}"
        );
        assert!(
            out.contains("signalbox_store_duration_seconds_bucket{operation=\"b\",le=\"+Inf\"} 3\n"),
            "{out}"
        );
        assert!(out.contains("signalbox_store_duration_seconds_sum{operation=\"b\"} 11.001001\nsignalbox_store_duration_seconds_count{operation=\"b\"} 3\n"), "{out}");
    }
}
