//! The purges of cached responses, on a stream of their own. Without it, responses stay in the caches until they are no longer fresh;
//! requests never wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use signalbox_config::Purge;
use signalbox_proto::signalbox::report::v1::report_service_client::ReportServiceClient;
use signalbox_proto::signalbox::report::v1::{Purged, Purges};
use tokio::sync::mpsc;
use tonic::Status;
use tonic::transport::Channel;

use super::data_plane::DataPlane;
use super::side_stream::{Caller, keep_open};

/// Carries out the purges of the control plane of this connection.
pub(super) struct PurgeFollower {
    pub(super) caller: Caller,
    pub(super) carried_out: Arc<CarriedOut>,
}

/// The number of the last purge that this process has carried out, over all connections; 0: none.
#[derive(Debug, Default)]
pub(super) struct CarriedOut(AtomicU64);

/// The largest message of a control plane, in bytes: a thousand purges.
const MAX_MESSAGE: usize = 16 << 20;

impl CarriedOut {
    fn report(&self) -> Purged {
        Purged { number: self.0.load(Ordering::Relaxed) }
    }
}

impl PurgeFollower {
    /// Carries out purges for as long as the connection is there, which whoever calls this ends.
    pub(super) async fn run(self, channel: Channel) {
        keep_open("purges", || self.follow(channel.clone())).await;
    }

    async fn follow(&self, channel: Channel) -> Result<(), Status> {
        let (reports, outbound) = mpsc::channel(1);
        let request = self.caller.request(outbound)?;
        let gone = |_| Status::cancelled("the control plane ended the stream");
        reports.send(self.carried_out.report()).await.map_err(gone)?;
        let mut client = ReportServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let mut purges = client.purge(request).await?.into_inner();
        while let Some(purges) = purges.message().await? {
            let number = purges.number;
            self.caller.on_data_plane(move |data_plane| carry_out(data_plane, &purges)).await?;
            self.carried_out.0.store(number, Ordering::Relaxed);
            reports.send(self.carried_out.report()).await.map_err(gone)?;
        }
        Ok(())
    }
}

fn carry_out(data_plane: &dyn DataPlane, Purges { all, purges, number }: &Purges) {
    if *all {
        data_plane.purge(&Purge::everything());
        return;
    }
    for text in purges {
        match serde_json::from_str(text) {
            Ok(purge) => data_plane.purge(&purge),
            Err(error) => {
                // A newer control plane may select responses in other ways. Too many are removed rather than too few.
                tracing::warn!(%error, "a purge is not understood; all cached responses are removed");
                data_plane.purge(&Purge::everything());
            }
        }
    }
    tracing::debug!(purges = purges.len(), number, "cached responses were purged");
}
