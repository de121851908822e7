//! The counts of this control plane's proxies since the leader asked last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use signalbox_proto::signalbox::report::v1 as wire;
use signalbox_rollout::Scope;
use signalbox_rollout::gate::histogram::Histogram;
use signalbox_rollout::gate::{Counters, Delta, Report, Sample, Series};

/// Counts of proxies by fleet.
pub(super) type Deltas = BTreeMap<Arc<str>, Vec<Delta>>;

/// The most reports that wait to be taken.
const MAX_DELTAS: usize = 40_000;

/// How long reports may wait.
const MAX_WAIT: Duration = Duration::from_secs(15);

/// The size of a text that is stored for the leader, in bytes, and the most of them in a second.
const PART: usize = 1 << 20;
const MAX_PARTS: usize = 16;

/// The usual size of a series in such a text.
const BYTES_OF_SERIES: usize = 250;

/// The most series of one report; further ones are ignored.
const MAX_SERIES: usize = 4096;

/// Takes in the reports of proxies.
#[derive(Default)]
pub(super) struct Counts {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    counters: Counters,
    deltas: Deltas,
    len: usize,
    /// The time of the first report that waits.
    since: Option<Instant>,
}

impl Counts {
    /// Takes in a report of a proxy of `fleet`.
    pub(super) fn report(&self, fleet: &Arc<str>, report: wire::Counts) {
        let report = read(report);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { counters, deltas, len, since } = &mut *state;
        // A report that is not taken in is part of the next one.
        if *len >= MAX_DELTAS {
            return;
        }
        let Some(delta) = counters.accept(report) else { return };
        since.get_or_insert_with(Instant::now);
        *len += 1;
        deltas.entry(Arc::clone(fleet)).or_default().push(delta);
    }

    /// Takes what was counted since this was called last. What waited for long, because the database was away, tells of another time than what
    /// others have counted, and is lost.
    pub(super) fn take(&self) -> Deltas {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.len = 0;
        let is_fresh = state.since.take().is_none_or(|since| since.elapsed() < MAX_WAIT);
        let deltas = std::mem::take(&mut state.deltas);
        if is_fresh { deltas } else { Deltas::new() }
    }
}

/// The texts in which deltas are stored for the leader, none of them much longer than [`PART`].
pub(super) fn in_parts(deltas: Deltas) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = Deltas::new();
    let mut size = 0;
    let mut end = |part: &mut Deltas, size: &mut usize| {
        *size = 0;
        let whole = std::mem::take(part);
        if !whole.is_empty()
            && let Ok(text) = serde_json::to_string(&whole)
        {
            parts.push(text);
        }
    };
    for (fleet, deltas) in deltas {
        for delta in deltas {
            size += BYTES_OF_SERIES * (1 + delta.series.len());
            part.entry(Arc::clone(&fleet)).or_default().push(delta);
            if size >= PART {
                end(&mut part, &mut size);
            }
        }
    }
    end(&mut part, &mut size);
    parts.truncate(MAX_PARTS);
    parts
}

fn read(report: wire::Counts) -> Report {
    let series = report.series.into_iter().take(MAX_SERIES).map(|series| {
        let index = |bucket: u32| i32::try_from(bucket).unwrap_or(i32::MAX);
        let buckets: Vec<(i32, u64)> =
            series.buckets.into_iter().map(index).zip(series.bucket_counts).collect();
        let scope = match (series.route.as_str(), series.upstream.as_str()) {
            ("", "") => Scope::Fleet,
            ("", upstream) => Scope::Upstream(upstream.into()),
            (route, _) => Scope::Route(route.into()),
        };
        let sample = Sample {
            requests: series.requests,
            errors: series.errors,
            not_found: series.not_found,
            cpu_us: series.cpu_us,
            latency: Histogram::from(buckets),
        };
        Series { generation: series.generation, scope, sample }
    });
    Report {
        node: report.node_id.into(),
        boot: report.boot,
        sequence: report.sequence,
        uptime_ms: report.uptime_ms,
        series: series.collect(),
    }
}
