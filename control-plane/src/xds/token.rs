//! The token that a proxy presents.

use signalbox_config::NodeId;
use signalbox_proto::NODE_HEADER;
use tonic::Status;

use super::grpc::Call;
use super::refusal::Refusal;
use super::shared::Shared;
use crate::auth::Credentials;
use crate::store::{Role, StoredRole};

/// The hash of a token that opens streams.
pub(super) type TokenHash = [u8; 32];

/// The token that the call presents, if it may be here; else it is refused, which is counted and logged.
pub(super) fn authorize(call: &Call, shared: &Shared) -> Result<TokenHash, Status> {
    let text = call
        .header("authorization")
        .and_then(|header| header.strip_prefix("Bearer "))
        .unwrap_or_default()
        .trim();
    let refusal = match shared.credentials.authenticate(text) {
        Some(principal) if opens_streams(&principal.role) => {
            return Ok(signalbox_config::sha256(text.as_bytes()));
        }
        Some(principal) => Refusal::WrongRole { name: principal.name, role: principal.role },
        None if text.is_empty() => Refusal::NoToken,
        None => Refusal::UnknownToken,
    };
    shared.refusals.record(&shared.metrics, call.peer, &refusal);
    Err(Status::unauthenticated(refusal.to_string()))
}

/// The token that the call presents, and the node id of the proxy.
pub(super) fn authorize_node(call: &Call, shared: &Shared) -> Result<(TokenHash, NodeId), Status> {
    let token = authorize(call, shared)?;
    let node = call.header(NODE_HEADER).and_then(|id| id.parse().ok());
    let missing = || Status::invalid_argument(format!("the header {NODE_HEADER} must have the node id"));
    Ok((token, node.ok_or_else(missing)?))
}

/// True if the token that was presented before may still get the configuration.
pub(super) fn may_stream(credentials: &Credentials, token: &TokenHash) -> bool {
    credentials.by_hash(token).is_some_and(|principal| opens_streams(&principal.role))
}

fn opens_streams(role: &StoredRole) -> bool {
    matches!(role.known(), Some(Role::Proxy | Role::Admin))
}
