//! A client's connection as seen by its requests and the worker: the part that all versions of HTTP share.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use signalbox_config::{ClientCertificate, HalfClose, Limits};

use super::trust::Client;
use super::worker_context::WorkerContext;
use crate::active::ActiveListener;
use crate::core::deadlines::Deadline;
use crate::wire::client_io::WriteActivity;

/// A client's connection, of any version of HTTP.
pub struct Downstream {
    pub worker: Rc<WorkerContext>,
    /// The number of the socket on which it was accepted.
    pub socket: u16,
    /// The deadline of the connection. If requests do not run concurrently, it is also theirs.
    pub deadline: Rc<Deadline>,
    pub activity: Rc<WriteActivity>,
    /// True if the connection uses TLS.
    pub https: bool,
    /// The identity from the client's verified certificate.
    pub certificate: OnceCell<ClientCertificate>,
    peer: Peer,
    /// The latest known settings of the listener: a revision may remove it.
    settings: RefCell<Arc<ActiveListener>>,
    protocol: RefCell<Rc<dyn Protocol>>,
    /// The number of running requests.
    running: Cell<u32>,
    /// True if the connection is to end with its next response.
    ending: Cell<bool>,
    /// The time at which it is closed if it is idle.
    idle_until: Cell<Instant>,
}

/// The peer of a connection.
struct Peer {
    client: Client,
    /// The original client, from the PROXY protocol.
    proxied: OnceCell<Client>,
    /// True if the peer's forwarded headers are trusted.
    trusted: Cell<bool>,
}

/// The state of a connection that depends on its version of HTTP, as far as requests and the worker use it. The events
/// are those of [`Downstream`], which does what all versions have in common.
pub trait Protocol {
    fn features(&self) -> &'static Features;

    /// Called when a request begins.
    fn request_begins(&self);

    /// Called when the last byte of the last running response was written.
    fn requests_end(&self, downstream: &Downstream, now: Instant);

    /// Called when a target begins to process a request.
    fn forwarding_begins(&self) {}

    /// Ends the connection with its next response, or at `at` if none is pending.
    fn start_shutdown(&self, downstream: &Downstream, at: Instant);

    /// True if it waits for a request.
    fn is_idle(&self, downstream: &Downstream) -> bool;

    /// True if new requests are refused, because the client was told long ago to open another connection.
    fn refuses_requests(&self) -> bool {
        false
    }

    /// Called when unread request bytes may follow.
    fn mark_unread(&self) {}
}

/// The differences between versions of HTTP that affect the life of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Several requests run concurrently, each with its own deadline; a failed one leaves the connection intact.
    pub is_multiplexed: bool,
    /// Heads were checked against the listener's limits, and targets against RFC 3986, when they were read.
    pub checks_heads: bool,
    /// `Connection` and `Upgrade` are valid in heads.
    pub has_connection_fields: bool,
}

/// How long a closing connection waits for a client that reads nothing of its last response.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(10);

impl Downstream {
    pub fn new(
        worker: Rc<WorkerContext>,
        peer: SocketAddr,
        socket: u16,
        settings: Arc<ActiveListener>,
        protocol: Rc<dyn Protocol>,
    ) -> Self {
        let client = Client::new(peer.ip());
        let trusted = Cell::new(settings.edge.trusts(client.address));
        Self {
            deadline: Rc::new(worker.deadlines.add()),
            peer: Peer { client, proxied: OnceCell::new(), trusted },
            socket,
            activity: Rc::default(),
            https: settings.tls.is_some(),
            certificate: OnceCell::new(),
            settings: RefCell::new(settings),
            protocol: RefCell::new(protocol),
            running: Cell::new(0),
            ending: Cell::new(false),
            idle_until: Cell::new(Instant::now()),
            worker,
        }
    }

    /// Sets the protocol that the client speaks.
    pub(super) fn set_protocol(&self, protocol: Rc<dyn Protocol>) {
        *self.protocol.borrow_mut() = protocol;
    }

    #[inline]
    pub fn features(&self) -> &'static Features {
        self.protocol.borrow().features()
    }

    /// The listener's settings for a request under a revision that has `listener` at this socket.
    #[inline]
    pub fn settings_for(&self, listener: Option<&Arc<ActiveListener>>) -> Arc<ActiveListener> {
        let mut settings = self.settings.borrow_mut();
        if let Some(listener) = listener
            && !Arc::ptr_eq(listener, &settings)
        {
            if settings.admits_as(listener) {
                *settings = Arc::clone(listener);
                self.peer.trusted.set(listener.edge.trusts(self.peer().address));
            } else {
                // The connection does not meet the new TLS requirements: it keeps its settings, and closes so that the
                // client reconnects.
                let before = Arc::clone(&settings);
                drop(settings);
                self.start_shutdown(Instant::now());
                return before;
            }
        }
        Arc::clone(&settings)
    }

    /// The latest known settings of the listener.
    pub(super) fn settings(&self) -> Arc<ActiveListener> {
        Arc::clone(&self.settings.borrow())
    }

    pub(super) fn limits(&self) -> Limits {
        self.settings.borrow().limits.clone()
    }

    pub(super) fn half_close(&self) -> HalfClose {
        self.settings.borrow().edge.half_close
    }

    /// The client as far as it is known without a request: the peer, or the PROXY protocol's source.
    #[inline]
    pub fn peer(&self) -> &Client {
        self.peer.proxied.get().unwrap_or(&self.peer.client)
    }

    /// True if the peer's forwarded headers are trusted.
    #[inline]
    pub fn trusts_peer(&self) -> bool {
        self.peer.trusted.get()
    }

    /// Sets the source address from the PROXY protocol.
    pub(super) fn set_proxied_peer(&self, source: SocketAddr) {
        let client = self.peer.proxied.get_or_init(|| Client::new(source.ip()));
        self.peer.trusted.set(self.settings.borrow().edge.trusts(client.address));
    }

    /// Ends the connection with its next response, or at `at` if none is pending.
    pub fn start_shutdown(&self, at: Instant) {
        self.ending.set(true);
        self.protocol.borrow().start_shutdown(self, at);
    }

    /// True if it is to end with its next response.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.get()
    }

    /// True if it waits for a request.
    pub fn is_idle(&self) -> bool {
        self.protocol.borrow().is_idle(self)
    }

    /// The time at which it is closed if it stays idle.
    pub fn idle_until(&self) -> Instant {
        self.idle_until.get()
    }

    pub(super) fn set_idle_until(&self, at: Instant) {
        self.idle_until.set(at);
    }

    /// Closes an HTTP/1.1 connection after this response, because the request is ambiguous, or the bytes behind it are
    /// not HTTP.
    pub fn close_without_reuse(&self) {
        if !self.features().is_multiplexed {
            self.ending.set(true);
            self.mark_unread();
        }
    }

    /// Ends the connection with the response to the request that has just begun, unless requests run concurrently.
    pub fn end_after_this(&self) {
        if !self.features().is_multiplexed {
            self.ending.set(true);
        }
    }

    /// True if responses must announce that the connection closes.
    #[inline]
    pub fn says_close(&self) -> bool {
        self.ending.get() && self.features().has_connection_fields
    }

    /// Records that a request begins. Returns its deadline.
    #[inline]
    pub fn request_begins(&self) -> Rc<Deadline> {
        self.worker.overload.begin();
        self.running.set(self.running.get() + 1);
        let protocol = self.protocol.borrow();
        protocol.request_begins();
        self.deadline.set(None);
        match protocol.features().is_multiplexed {
            true => Rc::new(self.worker.deadlines.add()),
            false => Rc::clone(&self.deadline),
        }
    }

    /// Records that a target begins to process a request.
    #[inline]
    pub fn forwarding_begins(&self) {
        self.protocol.borrow().forwarding_begins();
    }

    /// Records that the last byte of a response was written.
    #[inline]
    pub fn request_ends(&self, now: Instant) {
        let running = self.running.get().saturating_sub(1);
        self.running.set(running);
        if running > 0 {
            return;
        }
        self.idle_until.set(now + self.patience());
        self.activity.take_written();
        self.protocol.borrow().requests_end(self, now);
    }

    /// The number of running requests.
    pub(super) fn running(&self) -> u32 {
        self.running.get()
    }

    /// How long the connection may stay without a request, or with a response that the client does not read.
    pub(super) fn patience(&self) -> Duration {
        if self.ending.get() { UNREAD_TIMEOUT } else { self.settings.borrow().limits.idle_timeout }
    }

    /// True if new requests are refused, because the client was told long ago to open another connection.
    pub fn refuses_requests(&self) -> bool {
        self.protocol.borrow().refuses_requests()
    }

    /// Records that the client was told to close while it may still be sending.
    pub fn mark_unread(&self) {
        self.protocol.borrow().mark_unread();
    }
}
