//! The state of a request from its head on.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};

use super::downstream::Downstream;
use super::switch::Switch;
use super::trust::{self, Client, ForwardedClient};
use super::worker_context::Serving;
use crate::active::{ActiveListener, CompiledRoute};
use crate::core::deadlines::Deadline;
use crate::core::failure::Failure;
use crate::core::identify::RequestId;
use crate::core::idle::IdleTimeout;
use crate::wire::body::{AbortedBy, Progress};

/// A request's context: its client, its revision, its destination and its deadline.
pub struct RequestContext {
    pub downstream: Rc<Downstream>,
    /// The revision that it sees from beginning to end.
    pub serving: Rc<Serving>,
    pub listener: Arc<ActiveListener>,
    pub started: Instant,
    request_id: RequestId,
    /// The id that a plugin has chosen in its place.
    chosen_id: Option<Box<HeaderValue>>,
    /// The id that a peer sent which is not trusted.
    pub claimed_id: Option<Box<HeaderValue>>,
    /// The client, as told by a trusted peer.
    forwarded: Option<Box<ForwardedClient>>,
    pub(super) route: Option<Arc<CompiledRoute>>,
    /// True if the client makes a gRPC call: local replies then carry a gRPC status. Targets may get one nevertheless, or none.
    pub is_grpc: bool,
    /// True if plugins have seen the request.
    pub has_plugins: bool,
    /// The protocol switch that the client requests and may make.
    pub switch: Option<Switch>,
    /// The progress of its body; `None`: it has none.
    pub progress: Option<Rc<Progress>>,
    deadline: Rc<Deadline>,
    /// The idle timeout of the exchange, if there is one.
    pub idle: Option<Rc<IdleTimeout>>,
    /// True if the client has set a deadline.
    has_client_deadline: bool,
    /// Where a filter that ends the request's body leaves its answer; made if there is a filter.
    pub(super) filter_abort: OnceCell<AbortedBy>,
}

impl RequestContext {
    /// Creates the context of a request on `downstream`.
    pub(super) fn new(downstream: Rc<Downstream>) -> Self {
        let started = Instant::now();
        let deadline = downstream.request_begins();
        let worker = &downstream.worker;
        let serving = worker.serving();
        let listener = downstream.settings_for(serving.listener(downstream.socket));
        let request_id = worker.identifier.borrow_mut().request_id(started);
        Self {
            serving,
            listener,
            started,
            request_id,
            chosen_id: None,
            claimed_id: None,
            forwarded: None,
            route: None,
            is_grpc: false,
            has_plugins: false,
            switch: None,
            progress: None,
            deadline,
            idle: None,
            has_client_deadline: false,
            filter_abort: OnceCell::new(),
            downstream,
        }
    }

    pub fn request_id(&self) -> &[u8] {
        let kept = || self.forwarded.as_ref().and_then(|forwarded| forwarded.request_id.as_ref());
        match self.chosen_id.as_deref().or_else(kept) {
            Some(id) => id.as_bytes(),
            None => &self.request_id,
        }
    }

    /// Gives the request the id that a plugin has chosen.
    #[cold]
    pub fn set_request_id(&mut self, id: HeaderValue) {
        self.chosen_id = Some(Box::new(id));
    }

    /// Applies the forwarded headers of a trusted peer.
    pub fn apply_forwarded(&mut self, headers: &mut HeaderMap) {
        let forwarded = trust::apply_forwarded(headers, &self.listener.edge, self.downstream.peer());
        self.forwarded = Some(Box::new(forwarded));
    }

    /// True if a trusted peer has forwarded the request.
    #[inline]
    pub fn is_forwarded(&self) -> bool {
        self.forwarded.is_some()
    }

    /// The client that sent the request, as far as it is known.
    #[inline]
    pub fn client(&self) -> &Client {
        self.forwarded.as_ref().map_or_else(|| self.downstream.peer(), |forwarded| &forwarded.client)
    }

    pub fn route(&self) -> Option<&Arc<CompiledRoute>> {
        self.route.as_ref()
    }

    /// Sets the route, and starts its timeouts. `limit` is the client's own timeout.
    #[inline]
    pub fn set_route(&mut self, route: &Arc<CompiledRoute>, limit: Option<Duration>) {
        self.route = Some(Arc::clone(route));
        let mut timeout = route.timeout();
        if let Some(limit) = limit
            && timeout.is_none_or(|timeout| limit < timeout)
        {
            timeout = Some(limit);
            self.has_client_deadline = true;
        }
        let due = timeout.map(|timeout| self.started + timeout);
        let idle = route.idle_timeout.filter(|idle| timeout.is_none_or(|timeout| *idle < timeout));
        let at = match idle {
            Some(idle) => Some(self.started + idle),
            None => due,
        };
        if at.is_some() {
            self.deadline.set(at);
        }
        self.idle = idle.map(|timeout| Rc::new(IdleTimeout::new(Rc::clone(&self.deadline), timeout, due)));
    }

    /// Records that bytes have moved, in either direction. Without an idle timeout the clock is not read.
    #[inline]
    pub fn moved(&self) {
        if let Some(idle) = &self.idle {
            idle.moved(Instant::now());
        }
    }

    #[inline]
    pub fn deadline(&self) -> &Rc<Deadline> {
        &self.deadline
    }

    /// True if the client's own deadline is the one that ends it.
    pub fn has_client_deadline(&self) -> bool {
        self.has_client_deadline
    }

    /// The failure if its deadline has expired. `is_answered`: the head of a target's response has arrived.
    pub(super) fn lateness(&self, is_answered: bool) -> Failure {
        if !is_answered && !self.has_client_deadline && self.is_clients_delay() {
            return Failure::BodyTimeout;
        }
        match &self.idle {
            Some(idle) if idle.is_cause(Instant::now()) => Failure::StreamIdle,
            _ if self.has_client_deadline => Failure::ClientDeadline,
            _ => Failure::Timeout,
        }
    }

    /// True if most of the time was spent waiting for the client's request body. This does not apply to gRPC, where a
    /// client may take its time and the target can respond at any time.
    fn is_clients_delay(&self) -> bool {
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(self.started);
        !self.is_grpc && self.progress.as_ref().is_some_and(|progress| progress.waited(now) * 2 > elapsed)
    }

    /// The protocol that the target is asked to switch to.
    #[inline]
    pub fn upgrade(&self) -> Option<&HeaderValue> {
        match &self.switch {
            Some(Switch::Protocol { name, .. }) => Some(name),
            Some(Switch::Connect) | None => None,
        }
    }
}
