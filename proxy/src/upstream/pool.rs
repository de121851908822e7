use std::cell::RefCell;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use signalbox_config::UpstreamLimits;
use tokio::sync::Notify;

use super::waiters::Waiters;
use super::{ConnectError, Connection, Load, Upstream, http2};

/// Where a connection leads, and how: what has to be the same for another request to take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// Which settings of TLS; 0: none.
    pub settings: u64,
    /// Where the upstream's limits say how many there may be: the address of its load, which the connections' permits keep
    /// alive. An upstream neither uses up another's connections, nor has more than it may by way of another's. 0: none.
    pub only_of: usize,
}

/// One worker's idle connections. They belong to an endpoint, so they outlive revisions.
pub struct Pool {
    /// The number of the worker.
    worker: usize,
    /// One for each worker: it is told that others wait for connections of which it may have idle ones.
    wanted: Arc<[Notify]>,
    idle: RefCell<HashMap<Endpoint, Vec<Idle>, RandomState>>,
    /// Those that speak HTTP/2, idle or not.
    pub http2: http2::Connections,
    /// What targets that may choose have chosen, and when that was last of use.
    chosen: RefCell<HashMap<Endpoint, Chosen, RandomState>>,
    /// Who waits on this worker for a connection of an upstream that has as many as it may.
    waiters: Rc<Waiters>,
}

/// What a target has chosen to speak.
#[derive(Debug, Clone, Copy)]
struct Chosen {
    http2: bool,
    used: Instant,
}

struct Idle {
    connection: Box<Connection>,
    until: Instant,
}

/// How long it is remembered what a target has chosen to speak.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Most idle connections of one worker to one endpoint; what comes back beyond is closed. As many as a worker's requests at a
/// time by default: fewer, and who serves thousands of clients would open connections all the time.
const MAX_IDLE: usize = 8192;

impl Pool {
    /// That of this worker. `wanted` has one for each.
    pub fn new(worker: usize, wanted: Arc<[Notify]>) -> Self {
        let waiters = Rc::<Waiters>::default();
        Self {
            worker,
            wanted,
            idle: RefCell::default(),
            http2: http2::Connections::new(Rc::clone(&waiters)),
            chosen: RefCell::default(),
            waiters,
        }
    }

    /// The connection that came back last, if one is left that was not idle for too long by `now`, and that the target has not
    /// closed. Those that are found of an upstream that has had limits since are closed.
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

    /// Whether a target that may choose speaks HTTP/2. It is tried, for one connection then serves many requests.
    pub fn speaks_http2(&self, endpoint: Endpoint, now: Instant) -> bool {
        let mut chosen = self.chosen.borrow_mut();
        let chosen = chosen.entry(endpoint).or_insert(Chosen { http2: true, used: now });
        chosen.used = now;
        chosen.http2
    }

    /// Notes what a target has chosen to speak.
    pub fn chose(&self, endpoint: Endpoint, http2: bool) {
        if let Some(chosen) = self.chosen.borrow_mut().get_mut(&endpoint) {
            chosen.http2 = http2;
        }
    }

    /// Keeps a connection for `timeout` from `now`, if it can take another request.
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

    /// Keeps a connection for `timeout` from `now`, if it can take another request. One that is waited for goes to this worker
    /// or to another by how many wait there: to another by being closed, so that that one can open its own.
    #[inline]
    pub fn pass_on(&self, connection: Box<Connection>, now: Instant, timeout: Duration) {
        if !connection.load().is_awaited() {
            return self.put(connection, now, timeout);
        }
        let load = Arc::clone(connection.load());
        if self.waiters.are_drawn(&load) {
            self.put(connection, now, timeout);
            self.waiters.came_back(&load);
        }
    }

    /// Waits until `look` finds a connection to `endpoint`, or a permit to make one, of an upstream that has as many as it may.
    pub async fn wait<T>(
        &self,
        upstream: &Upstream,
        endpoint: Endpoint,
        limits: &UpstreamLimits,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T, ConnectError> {
        let load = &upstream.load;
        // One to another target is of no use: with its permit nobody has to wait.
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
                // It must be waiting before it looks, or it could miss what comes back in between.
                let early = poll_fn(|cx| Poll::Ready(woken.as_mut().poll(cx).is_ready())).await;
                if let Some(found) = look() {
                    load.served(limits.connections);
                    return found;
                }
                if self.give_up_one(load) {
                    continue;
                }
                // Each time: others may have taken what was closed for this one.
                self.ask_others();
                if !early {
                    woken.await;
                }
            }
        };
        let waited = tokio::time::timeout(upstream.connect_timeout, found).await;
        waited.map_err(|_| ConnectError::TooMany)
    }

    /// Has the other workers close idle connections that are waited for.
    fn ask_others(&self) {
        for (worker, wanted) in self.wanted.iter().enumerate() {
            if worker != self.worker {
                wanted.notify_one();
            }
        }
    }

    /// Ends when another worker asks for connections, perhaps several times.
    pub async fn asked(&self) {
        match self.wanted.get(self.worker) {
            Some(wanted) => wanted.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Closes idle connections that other workers wait for: of each upstream as many as are waited for there.
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

    /// Closes an idle connection of the upstream with this `load`, if there is one.
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

    /// Closes what was idle for too long, and what the targets have closed.
    pub fn sweep(&self, now: Instant) {
        self.http2.sweep();
        self.chosen.borrow_mut().retain(|_, chosen| now.saturating_duration_since(chosen.used) < REMEMBERED);
        let mut idle = self.idle.borrow_mut();
        idle.retain(|_, connections| {
            connections.retain_mut(|idle| idle.until > now && idle.connection.is_alive());
            connections.iter_mut().for_each(|idle| idle.connection.rest());
            !connections.is_empty()
        });
    }

    /// Closes all of them.
    pub fn clear(&self) {
        self.http2.clear();
        self.idle.borrow_mut().clear();
    }
}
