//! The idle connections of one worker.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use signalbox_config::UpstreamLimits;
use tokio::sync::Notify;

use super::connection::Connection;
use super::endpoint::Endpoint;
use super::error::ConnectError;
use super::http2;
use super::load::Load;
use super::transport::Transport;
use super::waiters::Waiters;
use crate::telemetry::WorkerStats;

/// One worker's idle connections. They are keyed by endpoint, so they outlive revisions.
pub struct Pool {
    /// The worker's number.
    worker: usize,
    pub(super) stats: Arc<WorkerStats>,
    /// One per worker: notified when other workers wait for connections that this worker may hold idle.
    wanted: Arc<[Notify]>,
    idle: RefCell<HashMap<Endpoint, Vec<Idle>, RandomState>>,
    /// All HTTP/2 connections, idle or in use.
    pub http2: http2::Connections,
    /// The protocols that targets of `protocol: auto` have chosen, with the time of their last use.
    protocols: RefCell<HashMap<Endpoint, ChosenProtocol, RandomState>>,
    /// The requests on this worker that wait for a connection of an upstream at its connection limit.
    waiters: Rc<Waiters>,
}

/// The protocol that a target has chosen.
#[derive(Debug, Clone, Copy)]
struct ChosenProtocol {
    http2: bool,
    used: Instant,
}

struct Idle {
    connection: Box<Connection>,
    until: Instant,
}

/// How long a target's chosen protocol is remembered after its last use.
const PROTOCOL_LIFETIME: Duration = Duration::from_secs(3600);

/// The maximum number of idle connections of one worker to one endpoint; further ones are closed. It equals the
/// default limit of concurrent requests per worker: with a smaller number, a worker with thousands of clients would
/// open connections all the time.
const MAX_IDLE: usize = 8192;

impl Pool {
    /// Creates the pool of one worker. `wanted` has one entry per worker.
    pub fn new(worker: usize, wanted: Arc<[Notify]>, stats: Arc<WorkerStats>) -> Self {
        let waiters = Rc::<Waiters>::default();
        Self {
            worker,
            stats,
            wanted,
            idle: RefCell::default(),
            http2: http2::Connections::new(Rc::clone(&waiters)),
            protocols: RefCell::default(),
            waiters,
        }
    }

    /// Takes the most recently returned connection that has not expired by `now` and that the target has not closed.
    /// Connections of an upstream that has got a connection limit since are closed.
    #[inline]
    pub fn take(&self, endpoint: Endpoint, now: Instant) -> Option<Box<Connection>> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&endpoint)?;
        while let Some(Idle { mut connection, until }) = connections.pop() {
            let of_others = endpoint.only_of == 0 && connection.load().limits_connections();
            if now < until && !of_others && connection.is_alive() {
                return Some(connection);
            }
        }
        None
    }

    /// True if HTTP/2 is to be used with a target that may choose. HTTP/2 is tried first, because one connection then
    /// serves many requests.
    pub fn tries_http2(&self, endpoint: Endpoint, now: Instant) -> bool {
        let mut chosen = self.protocols.borrow_mut();
        let chosen = chosen.entry(endpoint).or_insert(ChosenProtocol { http2: true, used: now });
        chosen.used = now;
        chosen.http2
    }

    /// Remembers the protocol that a target has chosen.
    pub fn remember_protocol(&self, endpoint: Endpoint, http2: bool) {
        if let Some(chosen) = self.protocols.borrow_mut().get_mut(&endpoint) {
            chosen.http2 = http2;
        }
    }

    /// Keeps a connection for `timeout` from `now`, if it can carry another request.
    #[inline]
    fn put(&self, mut connection: Box<Connection>, now: Instant, timeout: Duration) {
        if !connection.is_alive() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(connection.endpoint).or_default();
        if connections.len() < MAX_IDLE {
            connections.push(Idle { connection, until: now + timeout });
        }
    }

    /// Keeps a connection for `timeout` from `now`, if it can carry another request. If requests wait for it, a random
    /// draw, weighted by the number of waiters, decides between this worker and the others. If another worker wins,
    /// the connection is closed so that the other worker can open its own.
    #[inline]
    pub fn pass_on(&self, connection: Box<Connection>, now: Instant, timeout: Duration) {
        if !connection.load().is_awaited() {
            return self.put(connection, now, timeout);
        }
        let load = Arc::clone(connection.load());
        if self.waiters.win_draw(&load) {
            self.put(connection, now, timeout);
            self.waiters.connection_returned(&load);
        }
    }

    /// Waits until `look` finds a connection to `endpoint`, or a permit to open one, for an upstream at its connection
    /// limit.
    pub async fn wait<T>(
        &self,
        transport: &Transport,
        endpoint: Endpoint,
        limits: &UpstreamLimits,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T, ConnectError> {
        let load = &transport.load;
        // A connection to another target cannot be used itself, but its permit ends the wait.
        if self.give_up_one(load)
            && let Some(found) = look()
        {
            return Ok(found);
        }
        let _pending = load.pending(limits.pending).ok_or(ConnectError::TooMany)?;
        let awaiting = self.waiters.join(load, endpoint);
        let found = async {
            loop {
                let mut woken = pin!(awaiting.wait());
                // The waiter registers before it looks; otherwise it could miss a connection that comes back in
                // between.
                let early = poll_fn(|cx| Poll::Ready(woken.as_mut().poll(cx).is_ready())).await;
                if let Some(found) = look() {
                    load.acquired(limits.connections);
                    return found;
                }
                if self.give_up_one(load) {
                    continue;
                }
                // The request is repeated each time, because others may have taken the permit that was freed for this
                // waiter.
                self.request_connections();
                if !early {
                    woken.await;
                }
            }
        };
        let waited = tokio::time::timeout(transport.connect_timeout, found).await;
        waited.map_err(|_| ConnectError::TooMany)
    }

    /// Asks the other workers to close idle connections that are waited for.
    fn request_connections(&self) {
        for (worker, wanted) in self.wanted.iter().enumerate() {
            if worker != self.worker {
                wanted.notify_one();
            }
        }
    }

    /// Completes when another worker asks for connections. One completion may stand for several requests.
    pub async fn wanted_elsewhere(&self) {
        match self.wanted.get(self.worker) {
            Some(wanted) => wanted.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Closes idle connections that other workers wait for: for each upstream, as many as have waiters.
    pub fn give_up_awaited(&self) {
        let mut wanted: Vec<(Arc<Load>, u32)> = Vec::new();
        let mut is_wanted = |load: &Arc<Load>| {
            if !load.is_awaited() {
                return false;
            }
            let known = wanted.iter().position(|(known, _)| Arc::ptr_eq(known, load));
            let index = known.unwrap_or_else(|| {
                let elsewhere = load.awaited().saturating_sub(self.waiters.count(load));
                wanted.push((Arc::clone(load), elsewhere));
                wanted.len() - 1
            });
            let Some((_, left)) = wanted.get_mut(index).filter(|(_, left)| *left > 0) else { return false };
            *left -= 1;
            true
        };
        for connections in self.idle.borrow_mut().values_mut() {
            connections.retain(|idle| !is_wanted(idle.connection.load()));
        }
        self.http2.give_up_idle(|load| is_wanted(load), usize::MAX);
    }

    /// Closes one idle connection of the upstream with this `load`, if there is one.
    fn give_up_one(&self, load: &Arc<Load>) -> bool {
        let mut idle = self.idle.borrow_mut();
        for connections in idle.values_mut() {
            if let Some(index) = connections.iter().position(|idle| Arc::ptr_eq(idle.connection.load(), load))
            {
                connections.swap_remove(index);
                return true;
            }
        }
        self.http2.give_up_idle(|of| Arc::ptr_eq(of, load), 1) > 0
    }

    /// Closes connections that have expired, and those that their targets have closed.
    pub fn sweep(&self, now: Instant) {
        self.http2.sweep();
        self.protocols
            .borrow_mut()
            .retain(|_, chosen| now.saturating_duration_since(chosen.used) < PROTOCOL_LIFETIME);
        let mut idle = self.idle.borrow_mut();
        idle.retain(|_, connections| {
            connections.retain_mut(|idle| idle.until > now && idle.connection.is_alive());
            connections.iter_mut().for_each(|idle| idle.connection.release_memory());
            !connections.is_empty()
        });
    }

    /// Closes all idle connections.
    pub fn clear(&self) {
        self.http2.clear();
        self.idle.borrow_mut().clear();
    }
}
