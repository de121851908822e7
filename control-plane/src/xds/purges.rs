//! The purges of cached responses: sends each proxy those that it has not carried out, and notes those that it has.

use std::sync::Arc;
use std::time::Duration;

use signalbox_config::NodeId;
use signalbox_proto::signalbox::report::v1::{Purged, Purges};
use tonic::Status;

use super::grpc::{Call, Inbound, Message, Outbound};
use super::refusal::Refusal;
use super::shared::Shared;
use super::token::{TokenHash, authorize_node, may_stream};
use crate::publish::Due;

/// Serves one proxy until it ends the stream, does not read or answer, or its token is revoked.
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
    reports: &mut Inbound<Purged>,
    token: TokenHash,
    node: &NodeId,
    outbound: &mut Outbound,
) -> Result<(), Status> {
    let mut access = shared.credentials.token_changes();
    let mut log = shared.publisher.purges().subscribe();
    let id: Arc<str> = node.as_str().into();
    let mut carried_out = None;
    let mut is_noted = true;
    loop {
        access.mark_unchanged();
        if !may_stream(&shared.credentials, &token) {
            return Err(Status::unauthenticated(Refusal::RevokedToken.to_string()));
        }
        let due = carried_out.map(|number| log.borrow_and_update().due(number));
        if let Some(message) = due.and_then(message) {
            outbound.begin(Message::of(&message))?;
            let sent = tokio::time::timeout(SEND_TIMEOUT, outbound.written()).await;
            sent.map_err(|_| Status::aborted("the proxy does not read its purges"))??;
            // Nothing more is sent until it says that these are carried out.
            carried_out = None;
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => {
                return Err(Status::unavailable("this control plane shuts down"));
            }
            _ = access.changed() => {}
            _ = log.changed(), if carried_out.is_some() => {}
            // The discovery stream of a proxy may come a moment later.
            () = tokio::time::sleep(NOTE_AGAIN), if !is_noted => {}
            report = reports.message() => {
                let Some(report) = report? else { return Ok(()) };
                carried_out = Some(report.number);
                shared.publisher.purges().note(report.number);
                is_noted = false;
            }
        }
        if let Some(number) = carried_out
            && !is_noted
        {
            is_noted = shared.board.note_purged(&id, number);
        }
    }
}

/// The message that has these purges; `None`: there are none.
fn message(due: Due) -> Option<Purges> {
    match due {
        Due::Nothing => None,
        Due::Some(purges, number) => {
            let purges = purges.iter().map(ToString::to_string).collect();
            Some(Purges { number, all: false, purges })
        }
        Due::All(number) => Some(Purges { number, all: true, purges: Vec::new() }),
    }
}

/// How long a proxy may take to read a message.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest message of a proxy: a number.
const MAX_REPORT: usize = 1 << 10;

/// How often the board is told again of a proxy that it does not know yet.
const NOTE_AGAIN: Duration = Duration::from_millis(200);
