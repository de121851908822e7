//! What the control plane counts, and how it is written for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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

    fn write(&self, out: &mut String, name: &str) {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (reason, count) in counts.iter() {
            let _ = writeln!(out, "{name}{{reason=\"{reason}\"}} {count}");
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

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let separator = if labels.is_empty() { "" } else { "," };
        let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let mut total = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            total += bucket.load(Ordering::Relaxed);
            let bound =
                BOUNDS_US.get(index).map_or("+Inf".to_owned(), |us| (*us as f64 / 1_000_000.0).to_string());
            let _ = writeln!(out, "{name}_bucket{{{labels}{separator}le=\"{bound}\"}} {total}");
        }
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1_000_000.0;
        let _ = writeln!(out, "{name}_sum{braces} {sum}");
        let _ = writeln!(out, "{name}_count{braces} {total}");
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

/// What is read from elsewhere when the metrics are written.
#[derive(Debug, Clone, Copy)]
pub struct Gauges {
    /// Proxies with a stream to this control plane.
    pub connected_proxies: u64,
    /// The revision that is published.
    pub head_revision: u64,
    /// Resources of it.
    pub resources: u64,
    /// Whether the database answered when it was asked last.
    pub database_up: bool,
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
        let mut out = String::with_capacity(8 << 10);
        for (name, help, value) in [
            ("signalbox_connected_proxies", "Proxies with a stream to it.", gauges.connected_proxies),
            ("signalbox_head_revision", "The revision that is published.", gauges.head_revision),
            ("signalbox_resources", "Resources of the published revision.", gauges.resources),
            ("signalbox_database_up", "Whether the database answered last.", u64::from(gauges.database_up)),
            (
                "signalbox_unreadable_resources",
                "Stored resources this version cannot read.",
                gauges.unreadable_now,
            ),
            (
                "signalbox_unknown_resources",
                "Stored resources of a kind that this version does not know.",
                gauges.unknown_resources,
            ),
            (
                "signalbox_unknown_role_tokens",
                "Stored tokens with a role that this version does not know.",
                gauges.unknown_roles,
            ),
        ] {
            head(&mut out, name, help, "gauge");
            let _ = writeln!(out, "{name} {value}");
        }
        for (name, help, counter) in [
            ("signalbox_xds_nacks_total", "Revisions rejected by proxies.", &self.xds_nacks),
            (
                "signalbox_unreadable_resources_total",
                "Stored resources that could not be read, each time.",
                &self.unreadable_resources,
            ),
        ] {
            head(&mut out, name, help, "counter");
            let _ = writeln!(out, "{name} {}", counter.value());
        }
        let name = "signalbox_xds_refused_total";
        head(&mut out, name, "Connections, streams and reports of proxies that were refused.", "counter");
        self.xds_refused.write(&mut out, name);
        let name = "signalbox_tls_certificate_expiry_timestamp_seconds";
        head(&mut out, name, "When a certificate of this process expires, seconds since 1970.", "gauge");
        for files in self.certificates.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for expiry in files.expiries() {
                let _ = writeln!(out, "{name}{{use=\"{}\"}} {}", expiry.name, expiry.not_after);
            }
        }
        let name = "signalbox_propagation_seconds";
        head(&mut out, name, "From a revision's commit to a proxy's ACK.", "histogram");
        self.propagation.write(&mut out, name, "");

        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        let name = "signalbox_store_duration_seconds";
        head(&mut out, name, "Calls of the store.", "histogram");
        for (operation, calls) in store.iter() {
            calls.took.write(&mut out, name, &format!("operation=\"{operation}\""));
        }
        let name = "signalbox_store_errors_total";
        head(&mut out, name, "Calls of the store that failed.", "counter");
        for (operation, calls) in store.iter() {
            let _ = writeln!(out, "{name}{{operation=\"{operation}\"}} {}", calls.failed);
        }
        drop(store);

        let http = self.http.lock().unwrap_or_else(PoisonError::into_inner);
        let name = "signalbox_http_request_duration_seconds";
        head(&mut out, name, "Requests of the admin API.", "histogram");
        for ((method, path, class), calls) in http.iter() {
            let labels = format!("method=\"{method}\",path=\"{path}\",code_class=\"{class}\"");
            calls.took.write(&mut out, name, &labels);
        }
        out
    }
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
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
        let mut out = String::new();
        histogram.write(&mut out, "x", "a=\"b\"");
        assert!(out.contains("x_bucket{a=\"b\",le=\"0.0005\"} 1\n"), "{out}");
        assert!(out.contains("x_bucket{a=\"b\",le=\"0.001\"} 2\n"), "{out}");
        assert!(out.contains("x_bucket{a=\"b\",le=\"10\"} 2\n"), "{out}");
        assert!(out.contains("x_bucket{a=\"b\",le=\"+Inf\"} 3\n"), "{out}");
        assert!(out.contains("x_sum{a=\"b\"} 11.001001\nx_count{a=\"b\"} 3\n"), "{out}");
    }
}
