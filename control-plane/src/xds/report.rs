//! The reports of proxies.

use std::time::Duration;

use signalbox_config::NodeId;
use signalbox_proto::signalbox::report::v1::{ProxyReport, ReportSummary};
use tonic::Status;

use super::grpc::{Call, Inbound, Message};
use super::refusal::Refusal;
use super::shared::Shared;
use super::token::{TokenHash, authorize, may_stream};
use crate::board::Event;

/// Takes in the reports of one proxy until it ends the stream, is silent for too long, or its token is revoked.
pub(super) async fn serve(shared: &Shared, call: Call) {
    let token = match authorize(&call, shared) {
        Ok(token) => token,
        Err(status) => return call.refuse(status),
    };
    // The client is gone if it cannot be answered.
    let Ok((mut reports, mut outbound)) = call.open(MAX_REPORT, None) else { return };
    let taken = take(shared, &mut reports, token).await;
    let ended = taken.and_then(|()| outbound.begin(Message::of(&ReportSummary {})));
    outbound.end(&ended.err().unwrap_or_else(|| Status::ok("")));
}

async fn take(shared: &Shared, reports: &mut Inbound<ProxyReport>, token: TokenHash) -> Result<(), Status> {
    let mut access = shared.credentials.token_changes();
    loop {
        access.mark_unchanged();
        if !may_stream(&shared.credentials, &token) {
            return Err(Status::unauthenticated(Refusal::RevokedToken.to_string()));
        }
        let next = tokio::select! {
            () = shared.shutdown.cancelled() => return Err(Status::unavailable("this control plane shuts down")),
            _ = access.changed() => continue,
            next = tokio::time::timeout(SILENCE, reports.message()) => next,
        };
        let next = next.map_err(|_| Status::deadline_exceeded("no report came for a minute"))?;
        let Some(mut report) = next? else { return Ok(()) };
        if report.node_id.parse::<NodeId>().is_err() || report.listeners.len() > MAX_LISTENERS {
            return Err(Status::invalid_argument("not a report of a proxy"));
        }
        report.admin_address.truncate(report.admin_address.floor_char_boundary(MAX_ADDRESS));
        report.warnings.truncate(MAX_WARNINGS);
        for warning in &mut report.warnings {
            warning.truncate(warning.floor_char_boundary(MAX_WARNING));
        }
        if let Some(crashed) = &mut report.crashed {
            crashed.message.truncate(crashed.message.floor_char_boundary(MAX_WARNING));
        }
        shared.board.fold(Event::Reported(Box::new(report)));
    }
}

/// Thirty intervals between reports.
const SILENCE: Duration = Duration::from_secs(60);

/// Bytes: more than the path of a Unix socket can have.
const MAX_ADDRESS: usize = 128;

/// Bytes.
const MAX_REPORT: usize = 1 << 20;

const MAX_LISTENERS: usize = 1000;

const MAX_WARNINGS: usize = 16;

/// Bytes.
const MAX_WARNING: usize = 512;
