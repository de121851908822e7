//! The counts by which a control plane judges canaries, on a stream of their own. Nothing depends on them: a stream that ends is opened
//! again, and an older control plane does not know the call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::Message;
use signalbox_proto::signalbox::report::v1::report_service_client::ReportServiceClient;
use signalbox_proto::signalbox::report::v1::{Counts, CountsRequest, Series};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

use super::side_stream::{Caller, keep_open};
use crate::telemetry::{self, Scope};

/// Sends counts as often as the control plane of this connection wants them.
pub(super) struct CountsReporter {
    pub(super) caller: Caller,
    pub(super) numbering: Arc<Numbering>,
}

/// Identifies the messages of this process, over all connections.
#[derive(Debug)]
pub(super) struct Numbering {
    boot: u64,
    started: Instant,
    next: AtomicU64,
}

/// The limits of the interval between two messages.
const MIN_INTERVAL: Duration = Duration::from_millis(200);
const MAX_INTERVAL: Duration = Duration::from_secs(60);

/// A message is smaller than this, in bytes.
const MAX_MESSAGE: usize = 1 << 20;

impl Numbering {
    pub(super) fn new() -> Self {
        Self { boot: fastrand::u64(..), started: Instant::now(), next: AtomicU64::new(0) }
    }
}

impl CountsReporter {
    /// Reports for as long as the connection is there, which whoever calls this ends.
    pub(super) async fn run(self, channel: Channel) {
        keep_open("counts", || self.report(channel.clone())).await;
    }

    /// Reports until the control plane ends the stream.
    async fn report(&self, channel: Channel) -> Result<(), Status> {
        let (counts, outbound) = mpsc::channel(1);
        let request = self.caller.request(outbound)?;
        let mut requests = ReportServiceClient::new(channel).count(request).await?.into_inner();
        let mut interval = None;
        let mut due = None;
        loop {
            // No message is made until the last one has been taken.
            let room_when_due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
                counts.reserve().await
            };
            tokio::select! {
                request = requests.message() => {
                    let Some(request) = request? else { return Ok(()) };
                    interval = interval_of(&request);
                    self.watch(&request).await?;
                    due = interval.map(|_| Instant::now());
                }
                room = room_when_due => {
                    let Ok(room) = room else { return Ok(()) };
                    room.send(self.counts().await?);
                    due = interval.map(|interval| Instant::now() + interval);
                }
            }
        }
    }

    async fn watch(&self, request: &CountsRequest) -> Result<(), Status> {
        let scopes = scopes_of(request);
        self.caller.on_data_plane(move |data_plane| data_plane.watch(&scopes)).await
    }

    async fn counts(&self) -> Result<Counts, Status> {
        let series = self.caller.on_data_plane(|data_plane| data_plane.series()).await?;
        let Numbering { boot, started, next } = &*self.numbering;
        let counts = Counts {
            node_id: self.caller.node_id.clone(),
            boot: *boot,
            sequence: next.fetch_add(1, Ordering::Relaxed),
            uptime_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            series: Vec::new(),
        };
        Ok(with_series(counts, series.into_iter().map(encoded)))
    }
}

/// The interval between two messages; `None`: none are wanted.
fn interval_of(request: &CountsRequest) -> Option<Duration> {
    let interval = Duration::from_millis(request.interval_ms.into());
    (!interval.is_zero()).then(|| interval.clamp(MIN_INTERVAL, MAX_INTERVAL))
}

/// The routes and upstreams that are to be counted apart. No resource has a name that is not valid.
fn scopes_of(request: &CountsRequest) -> Vec<Scope> {
    let routes = request.routes.iter().filter_map(|name| name.parse().ok().map(Scope::Route));
    let upstreams = request.upstreams.iter().filter_map(|name| name.parse().ok().map(Scope::Upstream));
    routes.chain(upstreams).collect()
}

fn encoded(series: telemetry::Series) -> Series {
    let telemetry::Series { generation, scope, sums, cpu_us } = series;
    let (route, upstream) = match scope {
        None => (String::new(), String::new()),
        Some(Scope::Route(name)) => (name.as_str().to_owned(), String::new()),
        Some(Scope::Upstream(name)) => (String::new(), name.as_str().to_owned()),
    };
    Series {
        generation,
        route,
        upstream,
        requests: sums.requests(),
        errors: sums.errors,
        not_found: sums.not_found,
        cpu_us,
        buckets: sums.buckets.keys().map(|bucket| u32::from(*bucket)).collect(),
        bucket_counts: sums.buckets.values().copied().collect(),
    }
}

/// Adds as many of `series` as a message may hold. The last are left out first: those of scopes under the oldest generation.
fn with_series(mut counts: Counts, series: impl Iterator<Item = Series>) -> Counts {
    let mut size = counts.encoded_len();
    counts.series.extend(series.take_while(|series| {
        let length = series.encoded_len();
        // The tag of the field is one byte.
        size += 1 + prost::length_delimiter_len(length) + length;
        size < MAX_MESSAGE
    }));
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::RequestSums;

    #[test]
    fn intervals_are_bounded() {
        for (asked, interval) in
            [(0, None), (1, Some(200)), (200, Some(200)), (1500, Some(1500)), (u32::MAX, Some(60_000))]
        {
            let request = CountsRequest { interval_ms: asked, ..CountsRequest::default() };
            assert_eq!(interval_of(&request), interval.map(Duration::from_millis), "{asked}");
        }
    }

    #[test]
    fn names_that_no_resource_can_have_are_ignored() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        let (routes, upstreams) = (names(&["a", "", "No Name"]), names(&["é", "a"]));
        let request = CountsRequest { interval_ms: 1, routes, upstreams };
        let name: signalbox_config::Name = "a".parse().unwrap();
        assert_eq!(scopes_of(&request), [Scope::Route(name.clone()), Scope::Upstream(name)]);
    }

    #[test]
    fn a_series_has_its_scope_its_sums_and_its_buckets() {
        let sums = RequestSums { errors: 2, not_found: 1, buckets: [(7, 3), (255, 1)].into() };
        let scope = Some(Scope::Upstream("u".parse().unwrap()));
        let series = telemetry::Series { generation: 4, scope, sums, cpu_us: 5 };
        let expected = Series {
            generation: 4,
            route: String::new(),
            upstream: "u".to_owned(),
            requests: 4,
            errors: 2,
            not_found: 1,
            cpu_us: 5,
            buckets: vec![7, 255],
            bucket_counts: vec![3, 1],
        };
        assert_eq!(encoded(series), expected);
    }

    #[test]
    fn a_message_is_under_a_mebibyte_whatever_was_counted() {
        let wide = || Series {
            route: "r".repeat(128),
            buckets: (0..256).collect(),
            bucket_counts: vec![u64::MAX / 256; 256],
            ..Series::default()
        };
        let all = (0..8000).map(|number| Series { generation: number, ..wide() });
        let counts = with_series(Counts { node_id: "p".into(), boot: 1, ..Counts::default() }, all);
        let one_more = wide().encoded_len() + 10;
        assert!(counts.encoded_len() < 1 << 20 && counts.encoded_len() + one_more >= 1 << 20);
        let generations: Vec<_> = counts.series.iter().map(|series| series.generation).collect();
        assert_eq!(generations, (0..counts.series.len() as u64).collect::<Vec<_>>(), "the first are kept");
        assert_eq!(with_series(Counts::default(), (0..9).map(|_| wide())).series.len(), 9);
    }
}
