//! The traffic of proxies for time series: takes in their reports, and says how often they are to come.

use std::sync::Arc;
use std::time::Duration;

use signalbox_config::NodeId;
use signalbox_proto::signalbox::report::v1::{StatsReport, StatsRequest};
use tonic::Status;

use super::grpc::{Call, Inbound, Message, Outbound};
use super::refusal::Refusal;
use super::shared::Shared;
use super::token::{TokenHash, authorize_node, may_stream};

/// Serves one proxy until it ends the stream, does not read the answers, or its token is revoked.
pub(super) async fn serve(shared: &Shared, call: Call) {
    let (token, node) = match authorize_node(&call, shared) {
        Ok(checked) => checked,
        Err(status) => return call.refuse(status),
    };
    // The client is gone if it cannot be answered.
    let Ok((mut reports, mut outbound)) = call.open(MAX_REPORT, None) else { return };
    let ended = exchange(shared, &mut reports, token, &node, &mut outbound).await;
    outbound.end(&ended.err().unwrap_or_else(|| Status::ok("")));
}

async fn exchange(
    shared: &Shared,
    reports: &mut Inbound<StatsReport>,
    token: TokenHash,
    node: &NodeId,
    outbound: &mut Outbound,
) -> Result<(), Status> {
    let mut access = shared.credentials.token_changes();
    let id: Arc<str> = node.as_str().into();
    let mut taken = 0;
    let mut taken_at = tokio::time::Instant::now();
    loop {
        let pace = shared.stats.interval();
        let interval = u32::try_from(pace.as_millis()).unwrap_or(u32::MAX);
        outbound.begin(Message::of(&StatsRequest { interval_ms: interval, taken }))?;
        let sent = tokio::time::timeout(SEND_TIMEOUT, outbound.written()).await;
        sent.map_err(|_| Status::aborted("the proxy does not read what it is asked for"))??;
        let report = loop {
            access.mark_unchanged();
            if !may_stream(&shared.credentials, &token) {
                return Err(Status::unauthenticated(Refusal::RevokedToken.to_string()));
            }
            tokio::select! {
                () = shared.shutdown.cancelled() => {
                    return Err(Status::unavailable("this control plane shuts down"));
                }
                _ = access.changed() => {}
                report = reports.message() => match report? {
                    Some(report) => break report,
                    None => return Ok(()),
                },
            }
        };
        // The discovery stream of a proxy may come a moment later.
        let fleet = async {
            loop {
                match shared.board.fleet_of(&id) {
                    Some((fleet, _)) => return fleet,
                    None => tokio::time::sleep(LOOK_AGAIN).await,
                }
            }
        };
        let fleet = tokio::time::timeout(UNKNOWN_LIMIT, fleet).await;
        let fleet = fleet.map_err(|_| Status::unavailable("the proxy has no discovery stream"))?;
        let taken_before = taken;
        taken = shared.stats.take(&fleet, &id, &report);
        if taken_before > 0 {
            // One that reports without a pause is read no faster than twice as often as it is asked to.
            tokio::select! {
                () = shared.shutdown.cancelled() => {
                    return Err(Status::unavailable("this control plane shuts down"));
                }
                () = tokio::time::sleep_until(taken_at + pace / 2) => {}
            }
        }
        taken_at = tokio::time::Instant::now();
    }
}

/// How long a proxy may take to read an answer.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest report: some 20,000 series.
const MAX_REPORT: usize = 8 << 20;

/// How often it is looked if the discovery stream of a proxy is there, and for how long.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
const UNKNOWN_LIMIT: Duration = Duration::from_secs(30);
