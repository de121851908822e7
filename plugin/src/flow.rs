use std::borrow::Cow;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::{HeaderMap, StatusCode};

/// The next step of a request.
pub enum Flow<'a> {
    /// It goes on.
    Continue,
    /// It is answered here. In a hook of a response: this takes its place.
    Respond(Box<Reply>),
    /// It is not known yet. Must not resolve to `Wait` again: the proxy takes that for an error of its own (500).
    ///
    /// The future may borrow the plugin and the request. It runs on the worker's own thread, so it need not be `Send`;
    /// it bounds its own waiting, which the timeout of the route ends at the latest. When the client goes away it is dropped at its next
    /// await.
    Wait(LocalBoxFuture<'a, Flow<'static>>),
}

/// A plugin's own answer.
#[derive(Debug)]
pub enum Reply {
    /// An error, which the proxy writes as problem+json with the request's id.
    Problem {
        /// 4xx or 5xx.
        status: StatusCode,
        /// The error, for the client.
        detail: Cow<'static, str>,
        /// Further headers, `WWW-Authenticate`.
        headers: HeaderMap,
    },
    /// An answer as it stands.
    Response(http::Response<Bytes>),
}

impl Reply {
    /// An error without further headers.
    pub fn problem(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::Problem { status, detail: detail.into(), headers: HeaderMap::new() }
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Problem { status, .. } => *status,
            Self::Response(response) => response.status(),
        }
    }
}

impl From<Reply> for Flow<'_> {
    fn from(reply: Reply) -> Self {
        Flow::Respond(Box::new(reply))
    }
}
