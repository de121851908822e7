//! The body of a request between the client and whatever consumes it.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use http::HeaderMap;

use super::exchange::Exchange;
use super::head::{HeaderFlags, announces_body};
use super::request_context::RequestContext;
use crate::core::failure::Failure;
use crate::core::fields::expects_continue;
use crate::wire::body::{BodyTimeout, ClientBody, Progress, RequestBody, State};

/// The body of a request while its destination is decided.
pub(super) struct Inbound {
    client: ClientBody,
    body: RequestBody,
    /// True if there is no body.
    is_empty: bool,
    /// True for a small body, which rarely arrives long after its head. If nothing consumes it, it is waited for
    /// briefly, so that the connection can be reused.
    is_small: bool,
}

/// The maximum size of a small body in bytes, and how long it is waited for.
const SMALL: u64 = 8 << 10;
const DRAIN_GRACE: Duration = Duration::from_millis(50);

impl Inbound {
    #[inline]
    pub(super) fn new(client: ClientBody, headers: &HeaderMap) -> Self {
        let is_empty = client.is_end();
        // A client that expects 100 (Continue) sends nothing before.
        let is_small =
            client.size_hint().exact().is_some_and(|length| length <= SMALL) && !expects_continue(headers);
        Self { client, body: RequestBody::Empty, is_empty, is_small }
    }

    /// Starts reading it, within the listener's limits.
    #[inline]
    pub(super) fn begin(
        &mut self,
        request: &mut RequestContext,
        headers: &HeaderMap,
        flags: HeaderFlags,
    ) -> Result<(), Failure> {
        let client = std::mem::replace(&mut self.client, ClientBody::None);
        if client.is_end() {
            return match announces_body(headers, flags) {
                true => Err(Failure::BadRequest("The request's body is shorter than announced.")),
                false => Ok(()),
            };
        }
        let limits = &request.listener.limits;
        let limit = limits.body_size;
        let patience = BodyTimeout::new(&request.downstream.worker.deadlines, limits.body_timeout);
        let progress = Rc::<Progress>::default();
        request.progress = Some(Rc::clone(&progress));
        if limit.is_some_and(|limit| client.size_hint().lower() > limit) {
            return Err(Failure::BodyTooLarge);
        }
        self.body = RequestBody::stream(client, limit, patience, progress, request.idle.clone());
        Ok(())
    }

    pub(super) fn body_mut(&mut self) -> &mut RequestBody {
        &mut self.body
    }

    pub(super) fn take_body(&mut self) -> RequestBody {
        std::mem::replace(&mut self.body, RequestBody::Empty)
    }

    /// Handles the rest of the body when the request is answered; `is_local`: by the proxy itself. Returns true if the
    /// whole body was read. Over HTTP/1.1, the rest of a small body is drained; otherwise the connection is closed.
    #[inline]
    pub(super) async fn finish(self, exchange: &Exchange, is_local: bool) -> bool {
        let request = &exchange.request;
        let is_read = match &request.progress {
            Some(progress) => progress.state.get() == State::Done,
            None => self.is_empty,
        };
        let downstream = &request.downstream;
        if is_read || !is_local || downstream.features().is_multiplexed {
            return is_read;
        }
        if self.is_small && !downstream.says_close() && Box::pin(self.drain()).await {
            return true;
        }
        // A client that took the connection for reusable would lose a request.
        downstream.end_after_this();
        false
    }

    /// Reads the rest of the body, if it arrives soon. Returns true if it did.
    async fn drain(self) -> bool {
        let mut unread = match self.body {
            RequestBody::Stream(stream) => stream.into_incoming(),
            RequestBody::Empty
            | RequestBody::Whole(_)
            | RequestBody::Replay { .. }
            | RequestBody::Filtered(_) => self.client,
        };
        if matches!(unread, ClientBody::None) {
            return false;
        }
        let end = async {
            loop {
                match poll_fn(|cx| unread.poll_frame(cx)).await {
                    None => return true,
                    Some(Ok(_)) => {}
                    Some(Err(_)) => return false,
                }
            }
        };
        tokio::time::timeout(DRAIN_GRACE, end).await.unwrap_or(false)
    }
}
