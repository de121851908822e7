//! Decides if a request may do what it asks for.

use std::net::IpAddr;

use http::{HeaderMap, Method, StatusCode};
use serde_json::json;

use super::app::App;
use super::call::Caller;
use super::endpoint::Access;
use super::presented::{Means, check_origin, presented};
use super::problem::{Problem, unauthorized};
use super::roles::suffices;
use crate::auth::Use;

/// The caller, if it has `access`. `None`: everybody has it.
pub(super) fn authorize(
    app: &App,
    access: Access,
    method: &Method,
    headers: &HeaderMap,
    peer: IpAddr,
) -> Result<Option<Caller>, Problem> {
    let Access::Role(needed) = access else { return Ok(None) };
    let Some(presented) = presented(headers) else {
        return Err(unauthorized("this needs a token: Authorization: Bearer TOKEN"));
    };
    let caller = presented.caller(&app.credentials, Use::Counts).ok_or_else(|| match presented.by {
        // Browsers go on presenting what has ended: that is no guess.
        Means::Cookie => unauthorized("the session has ended; log in again"),
        Means::Header => app.bad_token(peer, "the token is not known"),
    })?;
    let principal = &caller.principal;
    if presented.by == Means::Cookie && *method != Method::GET {
        check_origin(headers)?;
    }
    if !suffices(&principal.role, needed) {
        let detail = format!(
            "the token {:?} has the role {}; this needs {}",
            principal.name,
            json!(principal.role.as_str()),
            json!(needed)
        );
        return Err(Problem::new(StatusCode::FORBIDDEN, detail.replace("\"", "'")));
    }
    Ok(Some(caller))
}
