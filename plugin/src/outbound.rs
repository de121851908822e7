//! Calls of plugins to services, through the upstreams of the configuration.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::{HeaderMap, Request, Response, request};
use signalbox_config::Name;

use crate::exchange::Exchange;

/// Calls a service as a request would: by a named upstream, with its balancing, health, limits, circuit breaker and TLS.
#[derive(Clone)]
pub struct Outbound(Rc<dyn Caller>);

/// Carries out the calls.
pub trait Caller {
    /// Sends `request` to a target of `upstream`, and waits for its whole answer.
    fn call<'a>(
        &'a self,
        upstream: &'a Name,
        request: Request<Bytes>,
        limits: CallLimits,
    ) -> LocalBoxFuture<'a, Result<CallAnswer, CallError>>;
}

/// Turns requests into the form in which targets get them.
pub trait Forwarding {
    /// The head of a request with the rewrites of its route and the headers that the proxy adds. `None`: it goes to no target.
    fn forwarded(&self, head: &request::Parts, exchange: &Exchange) -> Option<request::Parts>;
}

/// The limits of a call. There is no call without them.
#[derive(Debug, Clone, Copy)]
pub struct CallLimits {
    /// The time until the whole answer must be there.
    pub timeout: Duration,
    /// The size of the answer's body, in bytes.
    pub answer_size: usize,
}

/// The answer of a service.
#[derive(Debug)]
#[non_exhaustive]
pub struct CallAnswer {
    /// Its head and its body. Redirects are not followed.
    pub response: Response<Bytes>,
    /// Its trailers, which gRPC has its status in; empty if there are none.
    pub trailers: HeaderMap,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The revision has no upstream of this name.
    #[error("there is no such upstream")]
    NoUpstream,
    /// The upstream has no target that may be used.
    #[error("the upstream has no healthy target")]
    NoTarget,
    /// The upstream is at one of its limits, or its circuit breaker is open.
    #[error("the upstream accepts no more requests now")]
    Overflow,
    /// No connection could be made.
    #[error("the service cannot be reached")]
    Connect,
    /// The time is over.
    #[error("the service did not answer in time")]
    Timeout,
    /// The connection broke, or its bytes were not HTTP.
    #[error("the service failed to answer")]
    Reset,
    /// The answer is larger than the limit.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// The request cannot be sent as it is.
    #[error("the request cannot be sent")]
    BadRequest,
}

impl Outbound {
    /// Calls that `caller` carries out.
    pub fn new(caller: Rc<dyn Caller>) -> Self {
        Self(caller)
    }

    /// Sends `request` to a target of `upstream`, and waits for its whole answer.
    ///
    /// The request's target is a path, or a URL of which only the path counts; `Host` is that of the request's headers, or else of
    /// the URL. A call that is dropped is cancelled.
    pub async fn call(
        &self,
        upstream: &Name,
        request: Request<Bytes>,
        limits: CallLimits,
    ) -> Result<CallAnswer, CallError> {
        self.0.call(upstream, request, limits).await
    }
}

impl CallAnswer {
    /// An answer from its parts.
    pub fn new(response: Response<Bytes>, trailers: HeaderMap) -> Self {
        Self { response, trailers }
    }
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outbound")
    }
}
