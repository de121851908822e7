//! The counts of proxies: asks for those that rollouts need, and takes them in.

use std::sync::Arc;
use std::time::Duration;

use signalbox_config::NodeId;
use signalbox_proto::NODE_HEADER;
use signalbox_proto::signalbox::report::v1::{Counts, CountsRequest, Series};
use tokio::sync::mpsc;
use tonic::{Request, Status, Streaming};

use super::refusal::Refusal;
use super::shared::Shared;
use super::token::{TokenHash, may_stream};

/// The node id of the proxy that opens a stream of counts.
pub(super) fn node_of<T>(request: &Request<T>) -> Result<NodeId, Status> {
    let header = request.metadata().get(NODE_HEADER).and_then(|value| value.to_str().ok());
    let id = header.and_then(|id| id.parse().ok());
    id.ok_or_else(|| Status::invalid_argument(format!("the header {NODE_HEADER} must have the node id")))
}

/// Serves one proxy until it ends the stream, does not read what it is asked for, or its token is revoked.
pub(super) async fn serve(
    shared: &Shared,
    mut counts: Streaming<Counts>,
    token: TokenHash,
    node: &NodeId,
    requests: mpsc::Sender<Result<CountsRequest, Status>>,
) {
    let ended = exchange(shared, &mut counts, token, node, &requests).await;
    if let Err(status) = ended {
        // A proxy that does not read is not waited for.
        let _ = requests.try_send(Err(status));
    }
}

async fn exchange(
    shared: &Shared,
    counts: &mut Streaming<Counts>,
    token: TokenHash,
    node: &NodeId,
    requests: &mpsc::Sender<Result<CountsRequest, Status>>,
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
            let sent = tokio::time::timeout(SEND_TIMEOUT, requests.send(Ok(request.clone()))).await;
            if !matches!(sent, Ok(Ok(()))) {
                return Ok(());
            }
            asked = request;
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => {
                return Err(Status::unavailable("this control plane shuts down"));
            }
            () = requests.closed() => return Ok(()),
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

/// How often it is looked if the discovery stream of a proxy is there.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
