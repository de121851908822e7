//! The response to a request, before it is sent.

use bytes::Bytes;
use http::{Response, response};
use signalbox_config::Respond;
use signalbox_plugin::{Origin, Reply as PluginReply};

use super::problem;
use crate::upstream::{Switched, TargetBody};

/// The response to a request.
pub(super) struct Reply {
    pub(super) parts: response::Parts,
    pub(super) content: Content,
    pub(super) origin: Origin,
}

/// The part of a response behind its head.
pub(super) enum Content {
    /// A body that is in memory.
    Whole(Bytes),
    /// The body of a target's response.
    Target(TargetBody),
    /// Both sides switch to another protocol, which the target speaks.
    Switched(Box<Switched>),
}

impl Reply {
    /// A response of the proxy itself.
    pub(super) fn of_proxy(response: Response<Bytes>) -> Self {
        let (parts, body) = response.into_parts();
        Self { parts, content: Content::Whole(body), origin: Origin::Proxy }
    }

    /// The response of a plugin.
    pub(super) fn of_plugin(reply: PluginReply, request_id: &[u8]) -> Self {
        let response = match reply {
            PluginReply::Response(response) => response,
            PluginReply::Problem { status, detail, headers } => {
                let mut response = problem::response(status, &detail, request_id);
                response.headers_mut().extend(headers);
                response
            }
        };
        Self { origin: Origin::Plugin, ..Self::of_proxy(response) }
    }

    /// The response that a `respond` action configures.
    pub(super) fn configured(respond: &Respond) -> Self {
        let mut response = Response::new(respond.body.clone());
        *response.status_mut() = respond.status;
        for (name, value) in &respond.headers {
            response.headers_mut().append(name.clone(), value.clone());
        }
        Self::of_proxy(response)
    }

    /// The response of a target.
    pub(super) fn of_target(parts: response::Parts, content: Content) -> Self {
        Self { parts, content, origin: Origin::Upstream }
    }

    /// True if its body is in memory.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.content, Content::Whole(_))
    }
}
