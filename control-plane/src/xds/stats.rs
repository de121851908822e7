//! The traffic of proxies for time series: takes in their reports, and says how often they are to come.

use std::time::Duration;

use signalbox_proto::signalbox::report::v1::{StatsReport, StatsRequest};
use tokio::time::Instant;
use tonic::Status;

use super::grpc::Call;
use super::node_stream::NodeStream;
use super::shared::Shared;

/// Serves one proxy until it ends the stream, does not read the answers, or its token is revoked.
pub(super) async fn serve(shared: &Shared, call: Call) {
    let Some(mut stream) = NodeStream::open(shared, call, MAX_REPORT) else { return };
    let ended = exchange(shared, &mut stream).await;
    stream.end(ended);
}

async fn exchange(shared: &Shared, stream: &mut NodeStream<'_, StatsReport>) -> Result<(), Status> {
    let mut taken = 0;
    let mut answered_at = Instant::now();
    // After an outage of the control plane, the reports of all proxies would come at once.
    let streams = u32::try_from(shared.board.stream_share().own).unwrap_or(u32::MAX);
    let mut pace = SPREAD_OF_A_STREAM.saturating_mul(streams).min(MAX_SPREAD);
    loop {
        stream
            .send(&StatsRequest { interval_ms: u32::try_from(pace.as_millis()).unwrap_or(u32::MAX), taken })
            .await?;
        pace = shared.stats.interval();
        let Some(report) = stream.next().await? else { return Ok(()) };
        if taken > 0 {
            // One that reports without a pause is read no faster than twice as often as it is asked to.
            stream.until_shutdown(tokio::time::sleep_until(answered_at + pace / 2)).await?;
        }
        // The discovery stream of a proxy may come a moment later.
        let fleet = async {
            loop {
                match shared.board.fleet_of(&stream.node) {
                    Some((fleet, _)) => return fleet,
                    None => tokio::time::sleep(LOOK_AGAIN).await,
                }
            }
        };
        let fleet = stream.until_shutdown(tokio::time::timeout(UNKNOWN_LIMIT, fleet)).await?;
        let fleet = fleet.map_err(|_| Status::unavailable("the proxy has no discovery stream"))?;
        taken = shared.stats.take(&fleet, &stream.node, &report);
        answered_at = Instant::now();
    }
}

/// The time over which the first reports of proxies are spread, for each proxy that is connected, and at most. A report with a thousand
/// series takes half of it to take in.
const SPREAD_OF_A_STREAM: Duration = Duration::from_millis(5);
const MAX_SPREAD: Duration = Duration::from_secs(60);

/// The largest report: some 20,000 series.
const MAX_REPORT: usize = 8 << 20;

/// How often it is looked if the discovery stream of a proxy is there, and for how long.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
const UNKNOWN_LIMIT: Duration = Duration::from_secs(30);
