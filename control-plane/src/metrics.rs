//! The control plane's metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use signalbox_process::prometheus::{Exposition, Family, Labels};
use signalbox_process::tls::Reloading;
use tokio_rustls::rustls::ServerConfig;

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
        let buckets = BOUNDS_US.into_iter().zip(cumulated);
        family.durations(labels, buckets, self.sum_us.load(Ordering::Relaxed), total);
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

/// Values that are read from elsewhere when the metrics are written.
#[derive(Debug, Clone, Copy)]
pub struct Gauges {
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

    /// All of it, in Prometheus' text format.
    pub fn write(&self, gauges: &Gauges) -> String {
        let mut page = Exposition::with_capacity(8 << 10);
        gauges.write(&mut page);
        for (name, help, counter) in [
            ("signalbox_xds_nacks_total", "Revisions rejected by proxies.", &self.xds_nacks),
            (
                "signalbox_unreadable_resources_total",
                "Failed attempts to read a stored resource.",
                &self.unreadable_resources,
            ),
        ] {
            page.counter(name, help).sample(&[], counter.value());
        }
        let help = "Lines of the program's own log that could not be written.";
        page.counter("signalbox_log_lines_lost_total", help)
            .sample(&[], signalbox_process::log::lines_lost());
        let help = "Connections, streams and reports of proxies that were refused, by reason.";
        self.xds_refused.write(&mut page.counter("signalbox_xds_refused_total", help));
        let name = "signalbox_tls_certificate_expiry_timestamp_seconds";
        let help = "Time at which a certificate of this process expires, in seconds since 1970.";
        let mut expiries = page.gauge(name, help);
        for files in self.certificates.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for expiry in files.expiries() {
                expiries.sample(&[("use", expiry.name)], expiry.not_after);
            }
        }
        let help = "Time from a revision's commit to a proxy's ACK.";
        self.propagation.write(&mut page.histogram("signalbox_propagation_seconds", help), &[]);
        self.write_calls(&mut page);
        page.into_text()
    }

    fn write_calls(&self, page: &mut Exposition) {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let mut took =
            page.histogram("signalbox_store_duration_seconds", "Duration of the calls of the store.");
        for (operation, calls) in store.iter() {
            calls.took.write(&mut took, &[("operation", operation)]);
        }
        let mut errors = page.counter("signalbox_store_errors_total", "Calls of the store that failed.");
        for (operation, calls) in store.iter() {
            errors.sample(&[("operation", operation)], calls.failed);
        }
        drop(store);
        let name = "signalbox_http_request_duration_seconds";
        let mut took = page.histogram(name, "Duration of the requests to the admin API.");
        let http = self.http.lock().unwrap_or_else(PoisonError::into_inner);
        for ((method, path, class), calls) in http.iter() {
            calls.took.write(&mut took, &[("method", method), ("path", path), ("code_class", class)]);
        }
    }
}

impl Gauges {
    fn write(&self, page: &mut Exposition) {
        for (name, help, value) in [
            (
                "signalbox_connected_proxies",
                "Proxies with a stream to this control plane.",
                self.connected_proxies,
            ),
            ("signalbox_head_revision", "Number of the published revision.", self.head_revision),
            ("signalbox_resources", "Resources of the published revision.", self.resources),
            (
                "signalbox_database_up",
                "1 if the database answered the last call, else 0.",
                u64::from(self.database_up),
            ),
            (
                "signalbox_leads_rollouts",
                "1 if this control plane decides about rollouts, else 0.",
                u64::from(self.leads_rollouts),
            ),
            (
                "signalbox_rollouts_under_way",
                "Progressive rollouts that part of a fleet, or all of it, has, and that are not proven yet.",
                self.rollouts_under_way,
            ),
            (
                "signalbox_rollouts_held",
                "Progressive rollouts that need a decision of a person.",
                self.rollouts_held,
            ),
            (
                "signalbox_rollouts_taken_back",
                "Rollouts that were taken back, and hold their fleets at an earlier revision; known to the leader.",
                self.rollouts_taken_back,
            ),
            (
                "signalbox_unreadable_resources",
                "Stored resources that this version cannot read.",
                self.unreadable_now,
            ),
            (
                "signalbox_unknown_resources",
                "Stored resources of a kind that this version does not know.",
                self.unknown_resources,
            ),
            (
                "signalbox_unknown_role_tokens",
                "Stored tokens with a role that this version does not know.",
                self.unknown_roles,
            ),
        ] {
            page.gauge(name, help).sample(&[], value);
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
        histogram.write(&mut page.histogram("x", ""), &[("a", "b")]);
        let out = page.into_text();
        assert!(out.contains("x_bucket{a=\"b\",le=\"0.0005\"} 1\n"), "{out}");
        assert!(out.contains("x_bucket{a=\"b\",le=\"0.001\"} 2\n"), "{out}");
        assert!(out.contains("x_bucket{a=\"b\",le=\"10\"} 2\n"), "{out}");
        assert!(out.contains("x_bucket{a=\"b\",le=\"+Inf\"} 3\n"), "{out}");
        assert!(out.contains("x_sum{a=\"b\"} 11.001001\nx_count{a=\"b\"} 3\n"), "{out}");
    }
}
