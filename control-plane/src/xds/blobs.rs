//! The uploaded files, as proxies fetch them.

use std::time::Duration;

use bytes::Bytes;
use signalbox_config::{BlobId, NotABlobId};
use signalbox_proto::signalbox::report::v1::{BlobPart, BlobRequest};
use tonic::Status;

use super::grpc::{Call, Inbound, Message, Outbound};
use super::shared::Shared;
use super::token::authorize;

/// Sends one file.
pub(super) async fn serve(shared: &Shared, call: Call) {
    if let Err(status) = authorize(&call, shared) {
        return call.refuse(status);
    }
    // The client is gone if it cannot be answered.
    let Ok((mut requests, mut outbound)) = call.open(MAX_REQUEST, None) else { return };
    let sent = tokio::select! {
        () = shared.shutdown.cancelled() => Err(Status::unavailable("this control plane shuts down")),
        sent = tokio::time::timeout(DEADLINE, send(shared, &mut requests, &mut outbound)) => {
            sent.unwrap_or_else(|_| Err(Status::deadline_exceeded("the file was not read in time")))
        }
    };
    outbound.end(&sent.err().unwrap_or_else(|| Status::ok("")));
}

async fn send(
    shared: &Shared,
    requests: &mut Inbound<BlobRequest>,
    outbound: &mut Outbound,
) -> Result<(), Status> {
    let request = requests.message().await?.ok_or_else(|| Status::invalid_argument("no file is named"))?;
    let id: BlobId =
        request.sha256.parse().map_err(|error: NotABlobId| Status::invalid_argument(error.to_string()))?;
    let content = shared.publisher.files().read(id).await;
    let content = content.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut content = content.ok_or_else(|| Status::not_found(format!("there is no uploaded file {id}")))?;
    while !content.is_empty() {
        let part: Bytes = content.split_to(content.len().min(PART));
        outbound.begin(Message::of(&BlobPart { content: part }))?;
        outbound.written().await?;
    }
    Ok(())
}

/// Bytes of a request: a name and little else.
const MAX_REQUEST: usize = 1 << 10;

/// Bytes of the file in one message.
const PART: usize = 256 << 10;

/// A proxy gives up after a minute, too.
const DEADLINE: Duration = Duration::from_secs(60);
