//! The counts of proxies: asks for those that rollouts need, and takes them in.

use std::sync::Arc;
use std::time::Duration;

use signalbox_proto::signalbox::report::v1::{Counts, CountsRequest, Series};
use tonic::Status;

use super::grpc::Call;
use super::node_stream::NodeStream;
use super::shared::Shared;

/// Serves one proxy until it ends the stream, does not read what it is asked for, or its token is revoked.
pub(super) async fn serve(shared: &Shared, call: Call) {
    let Some(mut stream) = NodeStream::open(shared, call, MAX_COUNTS) else { return };
    let ended = exchange(shared, &mut stream).await;
    stream.end(ended);
}

async fn exchange(shared: &Shared, stream: &mut NodeStream<'_, Counts>) -> Result<(), Status> {
    let node = Arc::clone(&stream.node);
    let mut wanted = shared.rollouts.counts_wanted();
    let mut asked = CountsRequest::default();
    loop {
        // The discovery stream of a proxy may come a moment later.
        let fleet = shared.board.fleet_of(&node);
        let is_known = fleet.is_some();
        let request = {
            let wanted = Arc::clone(&wanted.borrow_and_update());
            fleet.map_or_else(CountsRequest::default, |(fleet, proxies)| {
                wanted.request(&fleet, proxies, &node)
            })
        };
        if request != asked {
            stream.send(&request).await?;
            asked = request;
        }
        tokio::select! {
            _ = wanted.changed() => {}
            () = tokio::time::sleep(LOOK_AGAIN), if !is_known => {}
            message = stream.next() => {
                let Some(mut message) = message? else { return Ok(()) };
                message.series.retain(|series| is_asked(&asked, series));
                if *message.node_id != *node || asked.interval_ms == 0 {
                    continue;
                }
                if let Some((fleet, _)) = shared.board.fleet_of(&node) {
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

/// The largest message of a proxy: counts of a thousand scopes under eight generations.
const MAX_COUNTS: usize = 1 << 20;

/// How often it is looked if the discovery stream of a proxy is there.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
