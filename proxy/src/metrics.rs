//! The metrics of a proxy.

pub mod described;

use std::ops::Range;

use signalbox_config::{Body, Kind, Name, RevisionId};
use signalbox_plugin::trace_context::hex_trace_id;
use signalbox_process::process_metrics;
use signalbox_process::prometheus::{Durations, Exemplar, Exposition, Family, Labels, Metric, Native};

use self::described as metric;
use crate::compile::Compiled;
use crate::http::worker_context::Shared;
use crate::proxy::Proxy;
use crate::route_series::{OTHERS, ShownRoutes};
use crate::source::Status;
use crate::telemetry::spans::SpanResult;
use crate::telemetry::{
    Class, Counted, Flag, HandshakeFailure, Latencies, StreamKind, Totals, TracedLatency, TrafficSums,
    WorkerStats,
};

/// The state of the process beside its data plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessState {
    /// True while the proxy drains.
    pub draining: bool,
    /// True if the debugging pages are served.
    pub profiling: bool,
}

/// Writes all metrics of `proxy`. Returns the page, unless it is passed on in chunks.
pub fn write(mut page: Exposition, proxy: &Proxy, status: &Status, process: ProcessState) -> Vec<u8> {
    proxy.counted(|shared, compiled, listeners, applies| {
        let routes = &proxy.shown_routes(compiled);
        write_all(&mut page, &Shown { shared, compiled, listeners, applies, status, routes, process });
    });
    if !page.is_abandoned() {
        proxy.counts_were_shown();
    }
    page.finish()
}

/// The state that metrics are written from.
struct Shown<'s> {
    shared: &'s Shared,
    compiled: &'s Compiled,
    /// The listeners' names by their number.
    listeners: &'s [Name],
    applies: &'s Totals,
    status: &'s Status,
    routes: &'s ShownRoutes,
    process: ProcessState,
}

fn write_all(page: &mut Exposition, shown: &Shown<'_>) {
    let Shown { shared, compiled, status, .. } = shown;
    process_metrics::write(page, env!("CARGO_PKG_VERSION"), shown.process.profiling);
    state(page, shown);
    requests(page, shown);
    route_durations(page, shown);
    upstreams(page, compiled);
    let stats = || shared.stats.iter().map(|stats| &**stats);
    let all = Totals::of(stats().map(|stats| &stats.request_duration));
    traced_durations(&mut page.family(&metric::REQUEST_DURATION), &[], &all, &shared.exemplars.read());
    let mut streams = page.family(&metric::STREAM_DURATION);
    for kind in StreamKind::ALL {
        let totals = Totals::of(stats().filter_map(|stats| stats.stream_duration.get(kind as usize)));
        durations(&mut streams, &[("kind", kind.as_str())], &totals);
    }
    let all = Totals::of(stats().map(|stats| &stats.upstream_duration));
    durations(&mut page.family(&metric::UPSTREAM_DURATION), &[], &all);
    plugins(page, compiled);
    workers(page, shared);
    traffic(page, shared);
    certificates(page, compiled, status);
    configuration(page, shown);
}

fn state(page: &mut Exposition, shown: &Shown<'_>) {
    let Shown { status, process: ProcessState { draining, .. }, .. } = *shown;
    page.single(&metric::READY, u8::from(status.serving.is_some() && !draining));
    page.single(&metric::DRAINING, u8::from(draining));
    // With a file there is no control plane, and no identity.
    if !status.node_id.is_empty() {
        page.single(&metric::CONTROL_PLANE_CONNECTED, u8::from(status.connected));
        if let Some(at_us) = status.last_contact_us() {
            page.single(&metric::LAST_CONTACT, at_us as f64 / 1e6);
        }
    }
}

fn configuration(page: &mut Exposition, shown: &Shown<'_>) {
    let Shown { compiled, status, applies, .. } = *shown;
    page.single(&metric::REJECTED, status.rejected_total);
    page.single(&metric::PERSIST_FAILURES, status.persistence.failures);
    page.single(&metric::PERSIST_FAILING, u8::from(status.persistence.failing.is_some()));
    if let Some(revision) = status.persistence.revision {
        page.single(&metric::REVISION_PERSISTED, revision);
    }
    let id = compiled.snapshot.id();
    page.family(&metric::REVISION).sample(&[("epoch", &id.epoch)], id.number);
    let number = |revision: Option<&RevisionId>| revision.map_or(0, |revision| revision.number);
    let crashed = status.crashed.as_ref().map(|crashed| &crashed.exact.revision);
    page.single(&metric::REVISION_CRASHED, number(crashed));
    let proven = status.proven.as_ref().map(|exact| &exact.revision);
    page.single(&metric::REVISION_PROVEN, number(proven));
    let mut resources = page.family(&metric::RESOURCES);
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_for_proxies()) {
        resources.sample(&[("kind", kind.as_str())], compiled.counts[kind as usize]);
    }
    durations(&mut page.family(&metric::APPLY_DURATION), &[], applies);
}

/// Reads one counter of a worker.
type CounterOf = fn(&WorkerStats) -> u64;

/// Adds up a counter of every worker.
fn sum(shared: &Shared, counter: CounterOf) -> u64 {
    shared.stats.iter().map(|stats| counter(stats)).sum()
}

fn workers(page: &mut Exposition, shared: &Shared) {
    let counters: [(&'static Metric, CounterOf); 5] = [
        (&metric::ACTIVE_CONNECTIONS, |stats| stats.active_connections.value()),
        (&metric::CONNECTIONS, |stats| stats.connections.value()),
        (&metric::UPSTREAM_CONNECTIONS, |stats| stats.upstream_connections.value()),
        (&metric::LOG_DROPPED, |stats| stats.log_dropped.value()),
        (&metric::MIRRORS_DROPPED, |stats| stats.mirrors_dropped.value()),
    ];
    for (metric, counter) in counters {
        page.single(metric, sum(shared, counter));
    }
    let mut spans = page.family(&metric::TRACE_SPANS);
    for result in SpanResult::ALL {
        spans.sample(&[("result", result.as_str())], shared.span_counts.of(result));
    }
}

fn traffic(page: &mut Exposition, shared: &Shared) {
    let mut bytes = page.family(&metric::BYTES);
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
    let mut handshakes = page.family(&metric::HANDSHAKES);
    handshakes.sample(&[("resumed", "false")], all.saturating_sub(resumed));
    handshakes.sample(&[("resumed", "true")], resumed);
    let mut failures = page.family(&metric::HANDSHAKE_FAILURES);
    for reason in HandshakeFailure::ALL {
        let counters = shared.stats.iter().filter_map(|stats| stats.handshake_failures.get(reason as usize));
        failures.sample(&[("reason", reason.as_str())], counters.map(|it| it.value()).sum::<u64>());
    }
}

fn certificates(page: &mut Exposition, compiled: &Compiled, status: &Status) {
    let mut expiries = page.family(&metric::TLS_EXPIRY);
    for expiry in &status.certificates {
        expiries.sample(&[("use", expiry.name)], u64::try_from(expiry.not_after).unwrap_or(0));
    }
    let mut expiries = page.family(&metric::CERTIFICATE_EXPIRY);
    for resource in compiled.snapshot.of_kind(Kind::Certificate, None) {
        if let Body::Certificate(certificate) = resource.body() {
            let until = u64::try_from(certificate.facts.not_after).unwrap_or(0);
            expiries.sample(&[("certificate", resource.key().name.as_str())], until);
        }
    }
}

fn requests(page: &mut Exposition, shown: &Shown<'_>) {
    let mut family = page.family(&metric::REQUESTS);
    let own = shown.routes.own.iter().map(|(route, counted)| (&*route.name, counted));
    for (route, counted) in own.chain([(OTHERS, &shown.routes.others)]) {
        for Counted { listener, class, flag, count } in counted.iter().copied() {
            let listener = shown.listeners.get(usize::from(listener)).map_or("", Name::as_str);
            outcome(&mut family, &[("listener", listener), ("route", route)], class, flag, count);
        }
    }
}

fn route_durations(page: &mut Exposition, shown: &Shown<'_>) {
    let ShownRoutes { own, others_traffic, .. } = shown.routes;
    // They are read once: to read them takes the memory from the caches of the workers.
    let own: Vec<_> = own.iter().filter_map(|(route, _)| Some((route, route.traffic.read()?))).collect();
    let mut family = page.family(&metric::ROUTE_DURATION);
    for (route, sums) in &own {
        let exemplars = exemplars(&route.exemplars.read());
        route_duration(&mut family, &route.name, sums, &exemplars);
    }
    if others_traffic.requests() > 0 {
        route_duration(&mut family, OTHERS, others_traffic, &[]);
    }
    let mut family = page.family(&metric::ROUTE_FIRST_BYTE);
    for (route, sums) in &own {
        route_first_byte(&mut family, &route.name, sums);
    }
    if others_traffic.requests() > 0 {
        route_first_byte(&mut family, OTHERS, others_traffic);
    }
}

fn route_duration(family: &mut Family<'_>, route: &str, sums: &TrafficSums, exemplars: &[Exemplar]) {
    let mut octaves = [0; Latencies::OCTAVES];
    for &(bucket, count) in &sums.buckets {
        if let Some(octave) = octaves.get_mut(usize::from(bucket) / Latencies::PER_OCTAVE) {
            *octave += count;
        }
    }
    let buckets = native(sums.buckets.iter().copied());
    family.durations(
        &[("route", route)],
        &Durations {
            buckets: &cumulated(&octaves, ROUTE_OCTAVES),
            sum: sums.latency_us as f64 / 1e6,
            count: octaves.iter().sum(),
            native: Some(Native { schema: 3, buckets: &buckets }),
            exemplars,
        },
    );
}

fn route_first_byte(family: &mut Family<'_>, route: &str, sums: &TrafficSums) {
    let octaves = (0..).zip(sums.first_bytes).filter(|(_, count)| *count > 0);
    let buckets: Vec<_> = octaves.map(|(octave, count)| (Latencies::native_octave(octave), count)).collect();
    family.durations(
        &[("route", route)],
        &Durations {
            buckets: &cumulated(&sums.first_bytes, ROUTE_OCTAVES),
            sum: sums.first_byte_us as f64 / 1e6,
            count: sums.first_bytes.iter().sum(),
            native: Some(Native { schema: 0, buckets: &buckets }),
            exemplars: &[],
        },
    );
}

fn upstreams(page: &mut Exposition, compiled: &Compiled) {
    let upstreams = || compiled.active.upstreams.iter();
    let mut family = page.family(&metric::UPSTREAM_REQUESTS);
    for upstream in upstreams() {
        for counted in upstream.stats.requests.read() {
            let labels = [("upstream", upstream.name.as_str())];
            outcome(&mut family, &labels, counted.class, counted.flag, counted.count);
        }
    }
    let mut family = page.family(&metric::UPSTREAM_ERRORS);
    for upstream in upstreams() {
        for (reason, count) in upstream.stats.errors.counted() {
            family.sample(&[("upstream", upstream.name.as_str()), ("reason", reason.as_str())], count);
        }
    }
    let mut family = page.family(&metric::HEALTHY_TARGETS);
    for upstream in upstreams() {
        family.sample(&[("upstream", upstream.name.as_str())], upstream.members.view().healthy);
    }
    let mut family = page.family(&metric::RETRIES);
    for upstream in upstreams() {
        for (outcome, count) in upstream.transport.load.retries().into_iter().filter(|(_, count)| *count > 0)
        {
            family.sample(&[("upstream", upstream.name.as_str()), ("outcome", outcome)], count);
        }
    }
    breakers(page, compiled);
    let mut family = page.family(&metric::TARGETS);
    for upstream in upstreams() {
        family.sample(&[("upstream", upstream.name.as_str())], upstream.members.view().targets.len());
    }
    let mut family = page.family(&metric::EJECTIONS);
    for upstream in upstreams() {
        family.sample(&[("upstream", upstream.name.as_str())], upstream.members.ejections());
    }
}

fn breakers(page: &mut Exposition, compiled: &Compiled) {
    let upstreams = || compiled.active.upstreams.iter();
    let breakers =
        || upstreams().filter_map(|upstream| Some((upstream.name.as_str(), upstream.breaker.as_ref()?)));
    let mut family = page.family(&metric::BREAKER_STATE);
    for (upstream, breaker) in breakers() {
        family.sample(&[("upstream", upstream)], breaker.position() as u64);
    }
    let mut family = page.family(&metric::BREAKER_OPENED);
    for (upstream, breaker) in breakers() {
        family.sample(&[("upstream", upstream)], breaker.opened());
    }
}

fn plugins(page: &mut Exposition, compiled: &Compiled) {
    let mut family = page.family(&metric::PLUGIN_DURATION);
    for stats in compiled.plugin_stats() {
        let totals = stats.durations.read();
        if totals.count() > 0 {
            durations(&mut family, &[("plugin", stats.name.as_str())], &totals);
        }
    }
    let mut family = page.family(&metric::PLUGIN_OUTCOMES);
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

/// The octaves whose bounds are those of buckets: from 15 microseconds, 2^-16 s, to 32 seconds.
const OCTAVES: Range<usize> = 3..25;

/// Likewise for each route, as there may be thousands: from 0.2 milliseconds, 2^-12 s, in steps of four, to 16 seconds.
const ROUTE_OCTAVES: [usize; 9] = [7, 9, 11, 13, 15, 17, 19, 21, 23];

fn durations(family: &mut Family<'_>, labels: Labels<'_>, totals: &Totals) {
    traced_durations(family, labels, totals, &[]);
}

/// Writes durations, with the traces of some.
fn traced_durations(family: &mut Family<'_>, labels: Labels<'_>, totals: &Totals, traced: &[TracedLatency]) {
    let buckets = native(totals.buckets());
    family.durations(
        labels,
        &Durations {
            buckets: &cumulated(&totals.octaves(), OCTAVES),
            sum: totals.sum_us as f64 / 1e6,
            count: totals.count(),
            native: Some(Native { schema: 3, buckets: &buckets }),
            exemplars: &exemplars(traced),
        },
    );
}

/// The bounds of some octaves, in seconds, with the number of durations up to each.
fn cumulated(
    counts: &[u64; Latencies::OCTAVES],
    octaves: impl IntoIterator<Item = usize>,
) -> Vec<(f64, u64)> {
    let upto = |octave| (Latencies::octave_bound(octave), counts.iter().take(octave + 1).sum());
    octaves.into_iter().map(upto).collect()
}

fn native(buckets: impl Iterator<Item = (u8, u64)>) -> Vec<(i32, u64)> {
    buckets.map(|(bucket, count)| (Latencies::native_index(bucket), count)).collect()
}

fn exemplars(traced: &[TracedLatency]) -> Vec<Exemplar> {
    let exemplar = |traced: &TracedLatency| Exemplar {
        trace_id: String::from_utf8_lossy(&hex_trace_id(&traced.trace_id)).into_owned(),
        value: traced.latency.us() as f64 / 1e6,
        at: traced.at,
    };
    traced.iter().map(exemplar).collect()
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
        let totals = Totals::of([&durations]);
        super::durations(&mut page.family(&metric::PLUGIN_DURATION), &[("plugin", "a\"b")], &totals);
        let text = String::from_utf8(page.finish()).unwrap();
        let (_, out) = text.split_once("histogram\n").unwrap();
        assert!(
            out.starts_with(
                "signalbox_plugin_duration_seconds_bucket{plugin=\"a\\\"b\",le=\"0.0000152587890625\"} 1\n"
            ),
            "{out}"
        );
        assert!(out.contains(
            "signalbox_plugin_duration_seconds_bucket{plugin=\"a\\\"b\",le=\"0.0001220703125\"} 2\n"
        ));
        assert!(
            out.contains("signalbox_plugin_duration_seconds_bucket{plugin=\"a\\\"b\",le=\"32\"} 2\n"),
            "{out}"
        );
        assert!(out.contains("signalbox_plugin_duration_seconds_bucket{plugin=\"a\\\"b\",le=\"+Inf\"} 3\n"));
        assert!(out.ends_with("signalbox_plugin_duration_seconds_sum{plugin=\"a\\\"b\"} 90.000103\nsignalbox_plugin_duration_seconds_count{plugin=\"a\\\"b\"} 3\n"));
    }
}
