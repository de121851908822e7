//! The traffic for time series, on a stream of its own. What was counted is reported once: a report that no control plane has taken is sent
//! again, before the next one is made.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use signalbox_proto::signalbox::report::v1::report_service_client::ReportServiceClient;
use signalbox_proto::signalbox::report::v1::traffic_series::Scope;
use signalbox_proto::signalbox::report::v1::{StatsReport, StatsRequest, TrafficSeries};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::data_plane::{ScopeTraffic, TrafficScope};
use super::side_stream::{Caller, keep_open};
use super::status;
use crate::telemetry::{Flag, TrafficSums};

/// Reports as often as the control plane of this connection wants it.
pub(super) struct StatsReporter {
    pub(super) caller: Caller,
    pub(super) status: watch::Receiver<status::Status>,
    pub(super) ledger: Arc<StatsLedger>,
}

/// The reports of this process, over all connections.
#[derive(Debug)]
pub(super) struct StatsLedger {
    boot: u64,
    state: Mutex<Ledger>,
}

#[derive(Debug)]
struct Ledger {
    /// The sums in the reports that were made.
    reported: BTreeMap<TrafficScope, TrafficSums>,
    /// The number of reports that were made.
    made: u64,
    made_at: Instant,
    /// The last report, until a control plane has taken it.
    untaken: Option<StatsReport>,
}

/// The limits of the interval between two reports, also on different streams.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(300);

/// The largest report, in bytes. Series beyond come with a later one.
const MAX_REPORT: usize = 4 << 20;

/// The most targets of an upstream whose failures are told.
const MAX_TARGETS: usize = 8;

impl StatsLedger {
    pub(super) fn new() -> Self {
        let (made_at, reported) = (Instant::now(), BTreeMap::new());
        let state = Mutex::new(Ledger { reported, made: 0, made_at, untaken: None });
        Self { boot: fastrand::u64(..), state }
    }

    fn state(&self) -> MutexGuard<'_, Ledger> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StatsReporter {
    /// Reports for as long as the connection is there, which whoever calls this ends.
    pub(super) async fn run(self, channel: Channel) {
        keep_open("traffic", || self.report(channel.clone())).await;
    }

    /// Reports until the control plane ends the stream.
    async fn report(&self, channel: Channel) -> Result<(), Status> {
        let (reports, outbound) = mpsc::channel(1);
        let request = self.caller.request(outbound)?;
        let mut answers = ReportServiceClient::new(channel).stats(request).await?.into_inner();
        // It asks, and has taken none yet. Proxies that have connected at once report one after the other.
        let Some(first) = answers.message().await? else { return Ok(()) };
        let spread = Duration::from_millis(first.interval_ms.into()).min(MAX_INTERVAL);
        let mut due = Instant::now() + spread.mul_f64(fastrand::f64());
        loop {
            let report = self.next_report(due).await?;
            let number = report.number;
            if reports.send(report).await.is_err() {
                return Ok(());
            }
            let Some(answer) = self.until_taken(&mut answers, number).await? else { return Ok(()) };
            due = Instant::now() + interval_of(&answer);
        }
    }

    /// The report that no control plane has taken, or else the next one, when it is due.
    async fn next_report(&self, due: Instant) -> Result<StatsReport, Status> {
        tokio::time::sleep_until(due).await;
        let made_at = {
            let ledger = self.ledger.state();
            if let Some(mut report) = ledger.untaken.clone() {
                report.age_ms = millis(ledger.made_at.elapsed());
                return Ok(report);
            }
            ledger.made_at
        };
        tokio::time::sleep_until(made_at + MIN_INTERVAL).await;
        let read = self.caller.on_data_plane(|data_plane| data_plane.scope_traffic()).await?;
        let revision = self.status.borrow().serving.as_ref().map_or(0, |serving| serving.revision.number);
        let mut ledger = self.ledger.state();
        let report = ledger.make(self.ledger.boot, revision, read);
        ledger.untaken = Some(report.clone());
        Ok(report)
    }

    /// Waits until the control plane has taken the report of this number; `None`: it ends the stream.
    async fn until_taken(
        &self,
        answers: &mut Streaming<StatsRequest>,
        number: u64,
    ) -> Result<Option<StatsRequest>, Status> {
        while let Some(answer) = answers.message().await? {
            if answer.taken >= number {
                self.ledger.state().untaken = None;
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }
}

impl Ledger {
    /// Makes the next report, of what was counted since the one before.
    fn make(&mut self, boot: u64, revision: u64, read: Vec<ScopeTraffic>) -> StatsReport {
        self.made += 1;
        let length = std::mem::replace(&mut self.made_at, Instant::now()).elapsed();
        let mut report = StatsReport {
            boot,
            number: self.made,
            length_ms: millis(length),
            age_ms: 0,
            revision,
            series: Vec::new(),
        };
        let mut size = report.encoded_len();
        let mut reported = BTreeMap::new();
        for ScopeTraffic { scope, sums } in read {
            let before = self.reported.remove(&scope).unwrap_or_default();
            let new = sums.since(&before);
            if new.requests() == 0 {
                reported.insert(scope, before);
                continue;
            }
            let series = encoded(&scope, &new);
            let length = series.encoded_len();
            size += 1 + prost::length_delimiter_len(length) + length;
            if size > MAX_REPORT {
                reported.insert(scope, before);
                continue;
            }
            report.series.push(series);
            reported.insert(scope, sums);
        }
        // Those that are not there any more are forgotten.
        self.reported = reported;
        report
    }
}

fn encoded(scope: &TrafficScope, sums: &TrafficSums) -> TrafficSeries {
    let (scope, name) = match scope {
        TrafficScope::All => (Scope::All, ""),
        TrafficScope::Route(name) => (Scope::Route, &**name),
        TrafficScope::Upstream(name) => (Scope::Upstream, &**name),
        TrafficScope::Consumer(name) => (Scope::Consumer, &**name),
    };
    let mut flags = HashMap::new();
    for (flag, count) in Flag::ALL.iter().zip(sums.flags).filter(|(_, count)| *count > 0) {
        *flags.entry(flag.cause().to_owned()).or_default() += count;
    }
    let mut targets = sums.failed_targets.clone();
    targets.sort_by(|(_, one), (_, other)| other.cmp(one));
    let failed_targets =
        targets.into_iter().take(MAX_TARGETS).map(|(target, count)| (target.to_string(), count)).collect();
    let [succeeded, client_errors, no_route, server_errors] = sums.ends;
    TrafficSeries {
        scope: scope.into(),
        name: name.to_owned(),
        succeeded,
        client_errors,
        no_route,
        server_errors,
        bytes_in: sums.bytes_in,
        bytes_out: sums.bytes_out,
        buckets: sums.buckets.iter().map(|(bucket, _)| u32::from(*bucket)).collect(),
        bucket_counts: sums.buckets.iter().map(|(_, count)| *count).collect(),
        flags,
        failed_targets,
    }
}

fn interval_of(request: &StatsRequest) -> Duration {
    Duration::from_millis(request.interval_ms.into()).clamp(MIN_INTERVAL, MAX_INTERVAL)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(scope: TrafficScope, succeeded: u64) -> ScopeTraffic {
        let sums = TrafficSums {
            ends: [succeeded, 0, 0, 0],
            buckets: vec![(7, succeeded)],
            ..TrafficSums::default()
        };
        ScopeTraffic { scope, sums }
    }

    fn requests(report: &StatsReport) -> Vec<(&str, u64)> {
        report.series.iter().map(|series| (series.name.as_str(), series.succeeded)).collect()
    }

    #[test]
    fn each_report_has_what_was_counted_since_the_one_before() {
        let ledger = StatsLedger::new();
        let mut state = ledger.state();
        let route = |name: &str| TrafficScope::Route(name.into());
        let first = state.make(1, 7, vec![traffic(route("a"), 5), traffic(route("b"), 1)]);
        assert_eq!((first.number, first.revision, requests(&first)), (1, 7, vec![("a", 5), ("b", 1)]));
        let second = state.make(1, 7, vec![traffic(route("a"), 7), traffic(route("b"), 1)]);
        assert_eq!((second.number, requests(&second)), (2, vec![("a", 2)]));
        assert_eq!(second.series[0].bucket_counts, [2]);
        // The route is deleted, and made again.
        assert_eq!(requests(&state.make(1, 8, vec![traffic(route("b"), 2)])), [("b", 1)]);
        assert_eq!(requests(&state.make(1, 9, vec![traffic(route("a"), 3)])), [("a", 3)]);
    }

    #[test]
    fn a_report_is_bounded_and_the_rest_comes_with_the_next() {
        let ledger = StatsLedger::new();
        let mut state = ledger.state();
        let all = || {
            let scope = |number: usize| TrafficScope::Consumer(format!("{number:0>120}").into());
            (0..40_000).map(|number| traffic(scope(number), 1)).collect::<Vec<_>>()
        };
        let first = state.make(1, 0, all());
        assert!(first.encoded_len() <= MAX_REPORT);
        let second = state.make(1, 0, all());
        assert_eq!(first.series.len() + second.series.len(), 40_000);
        assert!(state.make(1, 0, all()).series.is_empty());
    }
}
