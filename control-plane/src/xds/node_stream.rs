//! A stream of a proxy beside discovery: it ends when this control plane does, when its token is revoked, and when the proxy does not read.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::Status;

use super::grpc::{Call, Inbound, Message, Outbound};
use super::refusal::Refusal;
use super::shared::Shared;
use super::token::{TokenHash, authorize_node, may_stream};

/// An open stream of a proxy that sends messages `M`.
pub(super) struct NodeStream<'s, M> {
    shared: &'s Shared,
    token: TokenHash,
    access: watch::Receiver<()>,
    /// The node id of the proxy.
    pub(super) node: Arc<str>,
    inbound: Inbound<M>,
    outbound: Outbound,
}

/// How long a proxy may take to read a message.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

impl<'s, M: prost::Message + Default> NodeStream<'s, M> {
    /// Opens the stream of a call whose messages have at most `most` bytes. `None`: it is refused, or the client is gone.
    pub(super) fn open(shared: &'s Shared, call: Call, most: usize) -> Option<Self> {
        let (token, node) = match authorize_node(&call, shared) {
            Ok(checked) => checked,
            Err(status) => {
                call.refuse(status);
                return None;
            }
        };
        let (inbound, outbound) = call.open(most, None).ok()?;
        let (access, node) = (shared.credentials.token_changes(), node.as_str().into());
        Some(Self { shared, token, access, node, inbound, outbound })
    }

    /// Sends a message.
    pub(super) async fn send(&mut self, message: &impl prost::Message) -> Result<(), Status> {
        self.outbound.begin(Message::of(message))?;
        let sent = tokio::time::timeout(SEND_TIMEOUT, self.outbound.written()).await;
        sent.map_err(|_| Status::aborted("the proxy does not read what it is sent"))?
    }

    /// The next message; `None`: the proxy has ended the stream. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<M>, Status> {
        loop {
            self.access.mark_unchanged();
            if !may_stream(&self.shared.credentials, &self.token) {
                return Err(Status::unauthenticated(Refusal::RevokedToken.to_string()));
            }
            tokio::select! {
                () = self.shared.shutdown.cancelled() => return Err(shutting_down()),
                _ = self.access.changed() => {}
                message = self.inbound.message() => return message,
            }
        }
    }

    /// Waits for `future`, but not beyond the end of this control plane.
    pub(super) async fn until_shutdown<T>(&self, future: impl Future<Output = T>) -> Result<T, Status> {
        tokio::select! {
            () = self.shared.shutdown.cancelled() => Err(shutting_down()),
            output = future => Ok(output),
        }
    }

    /// Ends the stream.
    pub(super) fn end(self, ended: Result<(), Status>) {
        self.outbound.end(&ended.err().unwrap_or_else(|| Status::ok("")));
    }
}

fn shutting_down() -> Status {
    Status::unavailable("this control plane shuts down")
}
