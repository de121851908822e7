//! Metrics in Prometheus' text format.

use signalbox_config::{Body, Kind, Name, RevisionId};
use signalbox_process::prometheus::{Exposition, Family, Labels};

use crate::compile::Compiled;
use crate::http::worker_context::Shared;
use crate::source::Status;
use crate::telemetry::spans::SpanResult;
use crate::telemetry::{Class, Flag, HandshakeFailure, Totals, WorkerStats};

/// Writes all metrics of the proxy. `labels` are the listeners' names by their number.
pub fn render(
    shared: &Shared,
    compiled: &Compiled,
    labels: &[Name],
    applies: &Totals,
    status: &Status,
) -> String {
    let mut page = Exposition::with_capacity(16 << 10);
    requests(&mut page, shared, compiled, labels);
    upstreams(&mut page, compiled);
    let stats = || shared.stats.iter().map(|stats| &**stats);
    durations(
        &mut page.histogram(
            "signalbox_request_duration_seconds",
            "Time from the head of a request to the last byte of its response.",
        ),
        &[],
        &Totals::of(stats().map(|stats| &stats.request_duration)),
    );
    durations(
        &mut page.histogram(
            "signalbox_upstream_duration_seconds",
            "Time from forwarding a request to the head of the target's response.",
        ),
        &[],
        &Totals::of(stats().map(|stats| &stats.upstream_duration)),
    );
    plugins(&mut page, compiled);
    workers(&mut page, shared);
    let help = "Revisions that the proxy rejected.";
    page.counter("signalbox_config_rejected_total", help).sample(&[], status.rejected_total);
    let help = "Failed writes of the last good snapshot to disk.";
    page.counter("signalbox_proxy_persist_failures_total", help).sample(&[], status.persistence.failures);
    let help = "1 while the last good snapshot cannot be written to disk, else 0.";
    let failing = u64::from(status.persistence.failing.is_some());
    page.gauge("signalbox_proxy_persist_failing", help).sample(&[], failing);
    traffic(&mut page, shared);
    certificates(&mut page, compiled, status);
    let id = compiled.snapshot.id();
    let help = "Number of the revision that the proxy serves.";
    page.gauge("signalbox_revision", help).sample(&[("epoch", &id.epoch)], id.number);
    let number = |revision: Option<&RevisionId>| revision.map_or(0, |revision| revision.number);
    let help = "Number of the revision that the proxy crashed on and refuses, or 0.";
    let crashed = status.crashed.as_ref().map(|crashed| &crashed.exact.revision);
    page.gauge("signalbox_revision_crashed", help).sample(&[], number(crashed));
    let help = "Number of the last proven revision, or 0.";
    let proven = status.proven.as_ref().map(|exact| &exact.revision);
    page.gauge("signalbox_revision_proven", help).sample(&[], number(proven));
    let mut resources =
        page.gauge("signalbox_resources", "Resources of the revision that the proxy serves, by kind.");
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_for_proxies()) {
        resources.sample(&[("kind", kind.as_str())], compiled.counts[kind as usize]);
    }
    let help = "Time to compile a revision and to begin to serve it.";
    durations(&mut page.histogram("signalbox_config_apply_duration_seconds", help), &[], applies);
    page.into_text()
}

/// Reads one counter of a worker.
type CounterOf = fn(&WorkerStats) -> u64;

/// Adds up a counter of every worker.
fn sum(shared: &Shared, counter: CounterOf) -> u64 {
    shared.stats.iter().map(|stats| counter(stats)).sum()
}

fn workers(page: &mut Exposition, shared: &Shared) {
    let help = "Open connections of clients.";
    let open = sum(shared, |stats| stats.active_connections.value());
    page.gauge("signalbox_active_connections", help).sample(&[], open);
    let counters: [(_, _, CounterOf); 4] = [
        ("signalbox_connections_total", "Connections that clients have opened.", |stats| {
            stats.connections.value()
        }),
        (
            "signalbox_upstream_connections_total",
            "Connections that the proxy has opened to targets.",
            |stats| stats.upstream_connections.value(),
        ),
        (
            "signalbox_access_log_dropped_total",
            "Lines of the access log that were dropped because they could not be written, or not fast enough.",
            |stats| stats.log_dropped.value(),
        ),
        (
            "signalbox_mirrors_dropped_total",
            "Mirrored requests that were dropped because there were too many at once, or they were too large.",
            |stats| stats.mirrors_dropped.value(),
        ),
    ];
    for (name, help, counter) in counters {
        page.counter(name, help).sample(&[], sum(shared, counter));
    }
    let help = "Spans by what became of them.";
    let mut spans = page.counter("signalbox_trace_spans_total", help);
    for result in SpanResult::ALL {
        spans.sample(&[("result", result.as_str())], shared.span_counts.of(result));
    }
    let help = "Lines of the program's own log that could not be written.";
    page.counter("signalbox_log_lines_lost_total", help).sample(&[], signalbox_process::log::lines_lost());
}

fn traffic(page: &mut Exposition, shared: &Shared) {
    let help = "Bytes on the network, heads and framing included.";
    let mut bytes = page.counter("signalbox_bytes_total", help);
    for (side, direction, value) in [
        ("downstream", "in", sum(shared, |stats| stats.downstream_in.value())),
        ("downstream", "out", sum(shared, |stats| stats.downstream_out.value())),
        ("upstream", "in", sum(shared, |stats| stats.upstream_in.value())),
        ("upstream", "out", sum(shared, |stats| stats.upstream_out.value())),
    ] {
        bytes.sample(&[("side", side), ("direction", direction)], value);
    }
    let all = sum(shared, |stats| stats.handshakes.value());
    let resumed = sum(shared, |stats| stats.handshakes_resumed.value());
    let mut handshakes = page.counter("signalbox_tls_handshakes_total", "TLS handshakes with clients.");
    handshakes.sample(&[("resumed", "false")], all.saturating_sub(resumed));
    handshakes.sample(&[("resumed", "true")], resumed);
    let help = "TLS handshakes with clients that failed, by reason.";
    let mut failures = page.counter("signalbox_tls_handshake_failures_total", help);
    for reason in HandshakeFailure::ALL {
        let counters = shared.stats.iter().filter_map(|stats| stats.handshake_failures.get(reason as usize));
        failures.sample(&[("reason", reason.as_str())], counters.map(|it| it.value()).sum::<u64>());
    }
}

fn certificates(page: &mut Exposition, compiled: &Compiled, status: &Status) {
    let name = "signalbox_tls_certificate_expiry_timestamp_seconds";
    let help = "Time at which a certificate for the control planes expires, in seconds since 1970.";
    let mut expiries = page.gauge(name, help);
    for expiry in &status.certificates {
        expiries.sample(&[("use", expiry.name)], u64::try_from(expiry.not_after).unwrap_or(0));
    }
    let help = "Time at which a certificate of the configuration expires, in seconds since 1970.";
    let mut expiries = page.gauge("signalbox_certificate_not_after_seconds", help);
    for resource in compiled.snapshot.of_kind(Kind::Certificate, None) {
        if let Body::Certificate(certificate) = resource.body() {
            let until = u64::try_from(certificate.facts.not_after).unwrap_or(0);
            expiries.sample(&[("certificate", resource.key().name.as_str())], until);
        }
    }
}

fn requests(page: &mut Exposition, shared: &Shared, compiled: &Compiled, labels: &[Name]) {
    let help = "Requests answered, by route and outcome.";
    let mut family = page.counter("signalbox_requests_total", help);
    for stats in compiled.route_stats().chain([&shared.unrouted]) {
        for counted in stats.requests.read() {
            let listener = labels.get(usize::from(counted.listener)).map_or("", Name::as_str);
            let labels = [("listener", listener), ("route", &*stats.name)];
            outcome(&mut family, &labels, counted.class, counted.flag, counted.count);
        }
    }
}

fn upstreams(page: &mut Exposition, compiled: &Compiled) {
    let upstreams = || compiled.active.upstreams.iter();
    let help = "Requests for an upstream, by outcome.";
    let mut family = page.counter("signalbox_upstream_requests_total", help);
    for upstream in upstreams() {
        for counted in upstream.stats.requests.read() {
            let labels = [("upstream", upstream.name.as_str())];
            outcome(&mut family, &labels, counted.class, counted.flag, counted.count);
        }
    }
    let help = "Requests without a complete response of a target, by reason.";
    let mut family = page.counter("signalbox_upstream_errors_total", help);
    for upstream in upstreams() {
        for (reason, count) in upstream.stats.errors.counted() {
            family.sample(&[("upstream", upstream.name.as_str()), ("reason", reason.as_str())], count);
        }
    }
    let mut family = page.gauge("signalbox_upstream_healthy_targets", "Healthy targets.");
    for upstream in upstreams() {
        family.sample(&[("upstream", upstream.name.as_str())], upstream.members.view().healthy);
    }
    let mut family = page.counter("signalbox_upstream_retries_total", "Retries, by outcome.");
    for upstream in upstreams() {
        for (outcome, count) in upstream.transport.load.retries().into_iter().filter(|(_, count)| *count > 0)
        {
            family.sample(&[("upstream", upstream.name.as_str()), ("outcome", outcome)], count);
        }
    }
    breakers(page, compiled);
    let help = "All targets, healthy or not. A DNS name counts once for each of its addresses.";
    let mut family = page.gauge("signalbox_upstream_targets", help);
    for upstream in upstreams() {
        family.sample(&[("upstream", upstream.name.as_str())], upstream.members.view().targets.len());
    }
    let help = "Ejections of targets because requests to them failed.";
    let mut family = page.counter("signalbox_upstream_ejections_total", help);
    for upstream in upstreams() {
        family.sample(&[("upstream", upstream.name.as_str())], upstream.members.ejections());
    }
}

fn breakers(page: &mut Exposition, compiled: &Compiled) {
    let upstreams = || compiled.active.upstreams.iter();
    let breakers =
        || upstreams().filter_map(|upstream| Some((upstream.name.as_str(), upstream.breaker.as_ref()?)));
    let mut family = page.gauge(
        "signalbox_upstream_breaker_state",
        "State of the circuit breaker: 0 is closed, 1 is half-open, 2 is open.",
    );
    for (upstream, breaker) in breakers() {
        family.sample(&[("upstream", upstream)], breaker.position() as u64);
    }
    let help = "Times that the circuit breaker opened.";
    let mut family = page.counter("signalbox_upstream_breaker_opened_total", help);
    for (upstream, breaker) in breakers() {
        family.sample(&[("upstream", upstream)], breaker.opened());
    }
}

fn plugins(page: &mut Exposition, compiled: &Compiled) {
    let help = "Time that a plugin takes for a request, its waiting included. Of a plugin that never waits, one request in 64 is measured.";
    let mut family = page.histogram("signalbox_plugin_duration_seconds", help);
    for stats in compiled.plugin_stats() {
        let totals = stats.durations.read();
        if totals.count() > 0 {
            durations(&mut family, &[("plugin", stats.name.as_str())], &totals);
        }
    }
    let help = "What plugins have done with requests, by outcome. Every plugin counts those that it answered and those that it failed.";
    let mut family = page.counter("signalbox_plugin_outcomes_total", help);
    for stats in compiled.plugin_stats() {
        for (outcome, count) in stats.outcomes.read() {
            family.sample(&[("plugin", stats.name.as_str()), ("outcome", outcome)], count);
        }
    }
}

fn outcome(family: &mut Family<'_>, labels: Labels<'_>, class: Class, flag: Flag, count: u64) {
    let mut all = labels.to_vec();
    all.push(("code_class", class.as_str()));
    all.push(("flags", flag.as_str()));
    family.sample(&all, count);
}

/// Writes durations with buckets from 16 microseconds to 34 seconds.
fn durations(family: &mut Family<'_>, labels: Labels<'_>, totals: &Totals) {
    let buckets = totals.cumulative().filter(|(us, _)| (16..=1 << 25).contains(us));
    family.durations(labels, buckets, totals.sum_us, totals.count());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::Histogram;

    #[test]
    fn a_histogram_is_written_with_its_bounds() {
        let durations = Histogram::default();
        for us in [3, 100, 90_000_000] {
            durations.record(Duration::from_micros(us));
        }
        let mut page = Exposition::default();
        super::durations(&mut page.histogram("x", ""), &[("plugin", "a\"b")], &Totals::of([&durations]));
        let text = page.into_text();
        let (_, out) = text.split_once("histogram\n").unwrap();
        assert!(out.starts_with("x_bucket{plugin=\"a\\\"b\",le=\"0.000016\"} 1\n"), "{out}");
        assert!(out.contains("x_bucket{plugin=\"a\\\"b\",le=\"0.000128\"} 2\n"));
        assert!(out.contains("x_bucket{plugin=\"a\\\"b\",le=\"+Inf\"} 3\n"));
        assert!(out.ends_with("x_sum{plugin=\"a\\\"b\"} 90.000103\nx_count{plugin=\"a\\\"b\"} 3\n"));
    }
}
