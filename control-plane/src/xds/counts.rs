//! The counts of proxies: asks for those that rollouts need, and takes them in.

use std::sync::Arc;
use std::time::Duration;

use signalbox_config::NodeId;
use signalbox_proto::signalbox::report::v1::{Counts, CountsRequest, Series};
use tonic::Status;

use super::grpc::{Call, Inbound, Message, Outbound};
use super::refusal::Refusal;
use super::shared::Shared;
use super::token::{TokenHash, authorize_node, may_stream};

/// Serves one proxy until it ends the stream, does not read what it is asked for, or its token is revoked.
pub(super) async fn serve(shared: &Shared, call: Call) {
    let (token, node) = match authorize_node(&call, shared) {
        Ok(checked) => checked,
        Err(status) => return call.refuse(status),
    };
    // The client is gone if it cannot be answered.
    let Ok((mut counts, mut outbound)) = call.open(MAX_COUNTS, None) else { return };
    let ended = exchange(shared, &mut counts, token, &node, &mut outbound).await;
    outbound.end(&ended.err().unwrap_or_else(|| Status::ok("")));
}

async fn exchange(
    shared: &Shared,
    counts: &mut Inbound<Counts>,
    token: TokenHash,
    node: &NodeId,
    outbound: &mut Outbound,
) -> Result<(), Status> {
    let mut access = shared.credentials.token_changes();
    let mut wanted = shared.rollouts.counts_wanted();
    let mut asked = CountsRequest::default();
    loop {
        access.mark_unchanged();
        if !may_stream(&shared.credentials, &token) {
            return Err(Status::unauthenticated(Refusal::RevokedToken.to_string()));
        }
        // The discovery stream of a proxy may come a moment later.
        let fleet = shared.board.fleet_of(node.as_str());
        let is_known = fleet.is_some();
        let request = {
            let wanted = Arc::clone(&wanted.borrow_and_update());
            fleet.map_or_else(CountsRequest::default, |(fleet, proxies)| {
                wanted.request(&fleet, proxies, node.as_str())
            })
        };
        if request != asked {
            outbound.begin(Message::of(&request))?;
            let sent = tokio::time::timeout(SEND_TIMEOUT, outbound.written()).await;
            sent.map_err(|_| Status::aborted("the proxy does not read what it is asked for"))??;
            asked = request;
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => {
                return Err(Status::unavailable("this control plane shuts down"));
            }
            _ = access.changed() => {}
            _ = wanted.changed() => {}
            () = tokio::time::sleep(LOOK_AGAIN), if !is_known => {}
            message = counts.message() => {
                let Some(mut message) = message? else { return Ok(()) };
                message.series.retain(|series| is_asked(&asked, series));
                if message.node_id != node.as_str() || asked.interval_ms == 0 {
                    continue;
                }
                if let Some((fleet, _)) = shared.board.fleet_of(node.as_str()) {
                    shared.rollouts.report(&fleet, message);
                }
            }
        }
    }
}

fn is_asked(asked: &CountsRequest, series: &Series) -> bool {
    // The control plane asks in order.
    let names = |list: &[String], name: &String| name.is_empty() || list.binary_search(name).is_ok();
    names(&asked.routes, &series.route) && names(&asked.upstreams, &series.upstream)
}

/// How long a proxy may take to read what it is asked for.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest message of a proxy: counts of a thousand scopes under eight generations.
const MAX_COUNTS: usize = 1 << 20;

/// How often it is looked if the discovery stream of a proxy is there.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
