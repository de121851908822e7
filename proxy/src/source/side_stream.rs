//! The common parts of the streams beside discovery: they name the proxy, call the data plane, and are opened again when they end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use signalbox_proto::NODE_HEADER;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};

use super::authorize::authorize;
use super::data_plane::DataPlane;

/// The proxy as it calls control planes, and the data plane that its calls are about.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) node_id: String,
    pub(super) token: Option<MetadataValue<Ascii>>,
    pub(super) data_plane: Arc<dyn DataPlane>,
}

/// The time until a stream that has ended is opened again: at first, and after it ended again and again.
const REOPEN_FIRST: Duration = Duration::from_secs(1);
const REOPEN_LAST: Duration = Duration::from_secs(60);

impl Caller {
    /// The request of a stream on which the proxy sends these messages.
    pub(super) fn request<M>(
        &self,
        messages: mpsc::Receiver<M>,
    ) -> Result<Request<ReceiverStream<M>>, Status> {
        let mut request = Request::new(ReceiverStream::new(messages));
        authorize(&mut request, self.token.as_ref());
        let node =
            self.node_id.parse().map_err(|_| Status::invalid_argument("the node id is no header text"))?;
        request.metadata_mut().insert(NODE_HEADER, node);
        Ok(request)
    }

    /// Runs `call` on a thread that may block.
    pub(super) async fn on_data_plane<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn DataPlane) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let data_plane = Arc::clone(&self.data_plane);
        let called = tokio::task::spawn_blocking(move || call(&*data_plane)).await;
        called.map_err(|error| Status::internal(error.to_string()))
    }
}

/// Opens the stream of `what` again and again, for as long as the connection is there, which whoever calls this ends. A control plane that does not
/// know the call is not asked again.
pub(super) async fn keep_open<F: Future<Output = Result<(), Status>>>(
    what: &str,
    mut open: impl FnMut() -> F,
) {
    let mut wait = REOPEN_FIRST;
    loop {
        let opened = Instant::now();
        match open().await {
            Ok(()) => tracing::debug!("the stream of {what} ended"),
            Err(status) if status.code() == Code::Unimplemented => {
                tracing::debug!(%status, "the stream of {what} ended: this control plane does not know it");
                return;
            }
            Err(status) => tracing::debug!(%status, "the stream of {what} ended"),
        }
        if opened.elapsed() >= REOPEN_LAST {
            wait = REOPEN_FIRST;
        }
        // At random, for the streams of a whole fleet may have ended together.
        tokio::time::sleep(wait.mul_f64(0.5 + fastrand::f64())).await;
        wait = (wait * 2).min(REOPEN_LAST);
    }
}
