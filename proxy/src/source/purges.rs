//! The purges of cached responses, on a stream of their own. Without it, responses stay in the caches until they are no longer fresh;
//! requests never wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use signalbox_config::Purge;
use signalbox_proto::NODE_HEADER;
use signalbox_proto::signalbox::report::v1::report_service_client::ReportServiceClient;
use signalbox_proto::signalbox::report::v1::{Purged, Purges};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::authorize::authorize;
use super::data_plane::DataPlane;

/// Carries out the purges of the control plane of this connection.
pub(super) struct PurgeFollower {
    pub(super) node_id: String,
    pub(super) token: Option<MetadataValue<Ascii>>,
    pub(super) data_plane: Arc<dyn DataPlane>,
    pub(super) carried_out: Arc<CarriedOut>,
}

/// The number of the last purge that this process has carried out, over all connections; 0: none.
#[derive(Debug, Default)]
pub(super) struct CarriedOut(AtomicU64);

/// The time until a stream that has ended is opened again.
const REOPEN: Duration = Duration::from_secs(1);

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
        loop {
            match self.follow(channel.clone()).await {
                Ok(()) => tracing::debug!("the stream of purges ended"),
                Err(status) if status.code() == Code::Unimplemented => {
                    tracing::debug!(%status, "this control plane has no purges");
                    return;
                }
                Err(status) => tracing::debug!(%status, "the stream of purges ended"),
            }
            // At random, for the streams of a whole fleet may have ended together.
            tokio::time::sleep(REOPEN.mul_f64(0.5 + fastrand::f64())).await;
        }
    }

    async fn follow(&self, channel: Channel) -> Result<(), Status> {
        let (reports, outbound) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(outbound));
        authorize(&mut request, self.token.as_ref());
        let node =
            self.node_id.parse().map_err(|_| Status::invalid_argument("the node id is no header text"))?;
        request.metadata_mut().insert(NODE_HEADER, node);
        let gone = |_| Status::cancelled("the control plane ended the stream");
        reports.send(self.carried_out.report()).await.map_err(gone)?;
        let mut client = ReportServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let mut purges = client.purge(request).await?.into_inner();
        while let Some(purges) = purges.message().await? {
            let number = purges.number;
            let data_plane = Arc::clone(&self.data_plane);
            let carrying_out = tokio::task::spawn_blocking(move || carry_out(&*data_plane, &purges));
            carrying_out.await.map_err(|error| Status::internal(error.to_string()))?;
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
