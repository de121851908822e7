//! The response to a request, before it is finalised.

use bytes::Bytes;
use http::{Response, response};
use signalbox_config::Respond;
use signalbox_plugin::Reply as PluginReply;

use super::problem;
use crate::upstream::{Switched, TargetBody};

/// The response to a request.
pub(super) enum Reply {
    /// Created by the proxy or a plugin.
    Local(Response<Bytes>),
    /// The response of a target.
    Target(response::Parts, TargetBody),
    /// Both sides switch to another protocol, which the target speaks.
    Switched(response::Parts, Box<Switched>),
}

impl Reply {
    /// The response of a plugin.
    pub(super) fn of_plugin(reply: PluginReply, request_id: &[u8]) -> Self {
        Self::Local(match reply {
            PluginReply::Response(response) => response,
            PluginReply::Problem { status, detail, headers } => {
                let mut response = problem::response(status, &detail, request_id);
                response.headers_mut().extend(headers);
                response
            }
        })
    }

    /// The response that a `respond` action configures.
    pub(super) fn configured(respond: &Respond) -> Self {
        let mut response = Response::new(respond.body.clone());
        *response.status_mut() = respond.status;
        for (name, value) in &respond.headers {
            response.headers_mut().append(name.clone(), value.clone());
        }
        Self::Local(response)
    }
}
