//! The calls beside the discovery stream.

use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Channel;

use super::Client;
use crate::source::counts::CountsReporter;
use crate::source::purges::PurgeFollower;
use crate::source::report::Reporter;
use crate::source::side_stream::Caller;
use crate::source::stats::StatsReporter;

impl Client {
    /// Starts the reports, and the purges, of a connection. They end when the result is dropped.
    pub(super) fn start_reports(&self, channel: &Channel) -> [AbortOnDropHandle<()>; 4] {
        let reporter = Reporter {
            node_id: self.node.id.clone(),
            admin_address: self.admin_address.clone(),
            token: self.token.clone(),
            data_plane: self.data_plane.clone(),
            status: self.status.subscribe(),
        };
        let caller = Caller {
            node_id: self.node.id.clone(),
            token: self.token.clone(),
            data_plane: self.data_plane.clone(),
        };
        let counts_reporter =
            CountsReporter { caller: caller.clone(), numbering: Arc::clone(&self.numbering) };
        let purge_follower = PurgeFollower { caller: caller.clone(), carried_out: Arc::clone(&self.purged) };
        let stats_reporter =
            StatsReporter { caller, status: self.status.subscribe(), ledger: Arc::clone(&self.stats) };
        [
            tokio::spawn(reporter.run(channel.clone())),
            tokio::spawn(counts_reporter.run(channel.clone())),
            tokio::spawn(purge_follower.run(channel.clone())),
            tokio::spawn(stats_reporter.run(channel.clone())),
        ]
        .map(AbortOnDropHandle::new)
    }
}
