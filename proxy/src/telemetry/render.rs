//! Metrics in Prometheus' text format.

use std::fmt::Write as _;

use signalbox_config::{Body, Kind, Name};

use super::{Class, Flag, Totals, WorkerStats};
use crate::compile::Compiled;
use crate::source::Status;
use crate::tls::HandshakeFailure;
use crate::worker::Shared;

/// All there is to tell. `labels` are the listeners' names by their number.
pub fn render(
    shared: &Shared,
    compiled: &Compiled,
    labels: &[Name],
    applies: &Totals,
    status: &Status,
) -> String {
    let mut out = String::with_capacity(16 << 10);
    requests(&mut out, shared, compiled, labels);
    upstreams(&mut out, compiled);
    let stats = || shared.stats.iter().map(|stats| &**stats);
    let requests = Totals::of(stats().map(|stats| &stats.request_duration));
    let upstream = Totals::of(stats().map(|stats| &stats.upstream_duration));
    histogram(
        &mut out,
        "signalbox_request_duration_seconds",
        "From the head of a request to the last byte of its answer.",
        &requests,
    );
    histogram(
        &mut out,
        "signalbox_upstream_duration_seconds",
        "From sending a request on to the head of the upstream's answer.",
        &upstream,
    );
    plugins(&mut out, compiled);
    let sum = |of: fn(&WorkerStats) -> u64| stats().map(of).sum::<u64>();
    for (name, kind, help, value) in [
        (
            "signalbox_active_connections",
            "gauge",
            "Connections clients have open.",
            sum(|stats| stats.active_connections.value()),
        ),
        (
            "signalbox_connections_total",
            "counter",
            "Connections accepted from clients.",
            sum(|stats| stats.connections.value()),
        ),
        (
            "signalbox_upstream_connections_total",
            "counter",
            "Connections made to targets.",
            sum(|stats| stats.upstream_connections.value()),
        ),
        (
            "signalbox_access_log_dropped_total",
            "counter",
            "Access log lines dropped because they could not be written fast enough.",
            sum(|stats| stats.log_dropped.value()),
        ),
        (
            "signalbox_mirrors_dropped_total",
            "counter",
            "Copies of requests given up: too many at once, or too large.",
            sum(|stats| stats.mirrors_dropped.value()),
        ),
        (
            "signalbox_config_rejected_total",
            "counter",
            "Revisions that could not be served.",
            status.rejected_total,
        ),
        (
            "signalbox_proxy_persist_failures_total",
            "counter",
            "Times that what is served could not be kept on disk.",
            status.persistence.failures,
        ),
        (
            "signalbox_proxy_persist_failing",
            "gauge",
            "Whether what is served cannot be kept on disk now.",
            u64::from(status.persistence.failing.is_some()),
        ),
    ] {
        head(&mut out, name, kind, help);
        line(&mut out, name, &[], value);
    }
    let name = "signalbox_bytes_total";
    head(&mut out, name, "counter", "Bytes over the network, heads and framing included.");
    for (side, direction, value) in [
        ("downstream", "in", sum(|stats| stats.downstream_in.value())),
        ("downstream", "out", sum(|stats| stats.downstream_out.value())),
        ("upstream", "in", sum(|stats| stats.upstream_in.value())),
        ("upstream", "out", sum(|stats| stats.upstream_out.value())),
    ] {
        line(&mut out, name, &[("side", side), ("direction", direction)], value);
    }
    let name = "signalbox_tls_handshakes_total";
    head(&mut out, name, "counter", "TLS handshakes with clients.");
    let (all, resumed) =
        (sum(|stats| stats.handshakes.value()), sum(|stats| stats.handshakes_resumed.value()));
    line(&mut out, name, &[("resumed", "false")], all.saturating_sub(resumed));
    line(&mut out, name, &[("resumed", "true")], resumed);
    let name = "signalbox_tls_handshake_failures_total";
    head(&mut out, name, "counter", "Clients that got no TLS, by why.");
    for reason in HandshakeFailure::ALL {
        let failures = stats().filter_map(|stats| stats.handshake_failures.get(reason as usize));
        line(&mut out, name, &[("reason", reason.as_str())], failures.map(|it| it.value()).sum());
    }
    let name = "signalbox_tls_certificate_expiry_timestamp_seconds";
    head(&mut out, name, "gauge", "When a certificate for the control planes expires, seconds since 1970.");
    for expiry in &status.certificates {
        line(&mut out, name, &[("use", expiry.name)], u64::try_from(expiry.not_after).unwrap_or(0));
    }
    let name = "signalbox_certificate_not_after_seconds";
    head(&mut out, name, "gauge", "Until when a certificate is good, seconds since 1970.");
    for resource in compiled.snapshot.of_kind(Kind::Certificate, None) {
        if let Body::Certificate(certificate) = resource.body() {
            let until = u64::try_from(certificate.facts.not_after).unwrap_or(0);
            line(&mut out, name, &[("certificate", resource.key().name.as_str())], until);
        }
    }
    let id = compiled.snapshot.id();
    head(&mut out, "signalbox_revision", "gauge", "The number of the revision that is served.");
    line(&mut out, "signalbox_revision", &[("epoch", &id.epoch)], id.number);
    let resources = "signalbox_resources";
    head(&mut out, resources, "gauge", "Resources of the revision that is served.");
    for kind in Kind::ALL {
        let count = compiled.counts[kind as usize];
        line(&mut out, resources, &[("kind", kind.as_str())], count);
    }
    histogram(
        &mut out,
        "signalbox_config_apply_duration_seconds",
        "Compiling a revision and beginning to serve it.",
        applies,
    );
    out
}

fn requests(out: &mut String, shared: &Shared, compiled: &Compiled, labels: &[Name]) {
    let name = "signalbox_requests_total";
    head(out, name, "counter", "Requests answered, by their route and what came of them.");
    for stats in compiled.route_stats().chain([&shared.unrouted]) {
        for counted in stats.requests.read() {
            let listener = labels.get(usize::from(counted.listener)).map_or("", Name::as_str);
            outcome(
                out,
                name,
                &[("listener", listener), ("route", &stats.name)],
                counted.class,
                counted.flag,
                counted.count,
            );
        }
    }
}

fn upstreams(out: &mut String, compiled: &Compiled) {
    let upstreams = || compiled.active.upstreams.iter().flatten();
    let name = "signalbox_upstream_requests_total";
    head(out, name, "counter", "Requests meant for an upstream, by what came of them.");
    for upstream in upstreams() {
        for counted in upstream.stats.requests.read() {
            outcome(
                out,
                name,
                &[("upstream", upstream.name.as_str())],
                counted.class,
                counted.flag,
                counted.count,
            );
        }
    }
    let name = "signalbox_upstream_errors_total";
    head(out, name, "counter", "Requests that a target did not answer, or not to the end, by why.");
    for upstream in upstreams() {
        for (reason, count) in upstream.stats.errors.counted() {
            line(out, name, &[("upstream", upstream.name.as_str()), ("reason", reason.as_str())], count);
        }
    }
    let name = "signalbox_upstream_healthy_targets";
    head(out, name, "gauge", "Targets that are healthy.");
    for upstream in upstreams() {
        let healthy = upstream.members.view().healthy;
        line(out, name, &[("upstream", upstream.name.as_str())], healthy as u64);
    }
    let name = "signalbox_upstream_retries_total";
    head(out, name, "counter", "Requests sent again, or not, by what came of it.");
    for upstream in upstreams() {
        for (outcome, count) in upstream.load.retries().into_iter().filter(|(_, count)| *count > 0) {
            line(out, name, &[("upstream", upstream.name.as_str()), ("outcome", outcome)], count);
        }
    }
    let breakers =
        || upstreams().filter_map(|upstream| Some((upstream.name.as_str(), upstream.breaker.as_ref()?)));
    let name = "signalbox_upstream_breaker_state";
    head(out, name, "gauge", "0: closed, 1: half-open, 2: open.");
    for (upstream, breaker) in breakers() {
        line(out, name, &[("upstream", upstream)], breaker.position() as u64);
    }
    let name = "signalbox_upstream_breaker_opened_total";
    head(out, name, "counter", "How often a circuit breaker opened.");
    for (upstream, breaker) in breakers() {
        line(out, name, &[("upstream", upstream)], breaker.opened());
    }
    let name = "signalbox_upstream_targets";
    head(out, name, "gauge", "Targets, healthy or not; a name of DNS counts for each of its addresses.");
    for upstream in upstreams() {
        let count = upstream.members.view().targets.len();
        line(out, name, &[("upstream", upstream.name.as_str())], count as u64);
    }
    let name = "signalbox_upstream_ejections_total";
    head(out, name, "counter", "Targets that were ejected because requests to them failed.");
    for upstream in upstreams() {
        line(out, name, &[("upstream", upstream.name.as_str())], upstream.members.ejections());
    }
}

fn plugins(out: &mut String, compiled: &Compiled) {
    let name = "signalbox_plugin_duration_seconds";
    let help = "What a plugin takes for the head of a request; one request in 64 is measured.";
    head(out, name, "histogram", help);
    for stats in compiled.plugin_stats() {
        let totals = stats.durations.read();
        if totals.count() > 0 {
            buckets(out, name, &[("plugin", stats.name.as_str())], &totals);
        }
    }
}

fn outcome(out: &mut String, name: &str, labels: &[(&str, &str)], class: Class, flag: Flag, count: u64) {
    let mut all = labels.to_vec();
    all.push(("code_class", class.as_str()));
    all.push(("flags", flag.as_str()));
    line(out, name, &all, count);
}

fn histogram(out: &mut String, name: &str, help: &str, totals: &Totals) {
    head(out, name, "histogram", help);
    buckets(out, name, &[], totals);
}

fn buckets(out: &mut String, name: &str, labels: &[(&str, &str)], totals: &Totals) {
    let bucket = format!("{name}_bucket");
    let mut with_bound = |bound: &str, count| {
        let mut all = labels.to_vec();
        all.push(("le", bound));
        line(out, &bucket, &all, count);
    };
    // From 16 microseconds to 34 seconds.
    for (below_us, count) in totals.cumulative().filter(|(us, _)| (16..=1 << 25).contains(us)) {
        with_bound(&format!("{}", below_us as f64 / 1e6), count);
    }
    with_bound("+Inf", totals.count());
    let labels = labels_of(labels);
    // Writing to a string does not fail; nor below.
    let _ = writeln!(out, "{name}_sum{labels} {}", totals.sum_us as f64 / 1e6);
    let _ = writeln!(out, "{name}_count{labels} {}", totals.count());
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &[(&str, &str)], value: u64) {
    let _ = writeln!(out, "{name}{} {value}", labels_of(labels));
}

fn labels_of(labels: &[(&str, &str)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let labels: Vec<_> =
        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    format!("{{{}}}", labels.join(","))
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
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
        let mut out = String::new();
        buckets(&mut out, "x", &[("plugin", "a\"b")], &Totals::of([&durations]));
        assert!(out.starts_with("x_bucket{plugin=\"a\\\"b\",le=\"0.000016\"} 1\n"), "{out}");
        assert!(out.contains("x_bucket{plugin=\"a\\\"b\",le=\"0.000128\"} 2\n"));
        assert!(out.contains("x_bucket{plugin=\"a\\\"b\",le=\"+Inf\"} 3\n"));
        assert!(out.ends_with("x_sum{plugin=\"a\\\"b\"} 90.000103\nx_count{plugin=\"a\\\"b\"} 3\n"));
    }
}
