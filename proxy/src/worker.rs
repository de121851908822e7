//! A worker: one thread, one runtime, and all that it shares with nobody.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use slab::Slab;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::warn;

use crate::active::{Active, ActiveListener, RouteStats};
use crate::deadlines::Deadlines;
use crate::http::connection::{self, Downstream};
use crate::http::identify::Identifier;
use crate::listener;
use crate::overload::{Opening, Overload};
use crate::telemetry::WorkerStats;
use crate::telemetry::access_log::{self, Log};
use crate::upstream::Pool;

/// What all workers share.
pub struct Shared {
    pub active: Arc<ArcSwap<Active>>,
    pub stats: Box<[Arc<WorkerStats>]>,
    /// Of requests that no route took.
    pub unrouted: Arc<RouteStats>,
    /// A moment before all requests.
    pub epoch: Instant,
    pub log: Option<access_log::Sender>,
    /// Requests that one worker may have under way.
    pub max_requests: u32,
    /// How long requests may wait for their turn before some are refused; `None`: any time.
    pub max_queue_delay: Option<Duration>,
    /// One for each worker: it is asked to give up idle connections that others wait for.
    pub connections_wanted: Arc<[Notify]>,
    /// Client connections at once, over all workers.
    pub max_connections: u64,
}

/// What only one thread ever sees.
pub struct Worker {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub stats: Arc<WorkerStats>,
    pub deadlines: Rc<Deadlines>,
    pub pool: Pool,
    pub identifier: RefCell<Identifier>,
    pub log: Option<Log>,
    /// For what is written in one piece.
    pub scratch: RefCell<Vec<u8>>,
    /// For the heads of requests: to targets, and in the access log.
    buffers: RefCell<Vec<Vec<u8>>>,
    /// Copies of requests for mirrors that are under way.
    pub mirrors: Cell<u32>,
    pub overload: Overload,
    connections: RefCell<Slab<Rc<Downstream>>>,
    active: RefCell<Cache<Arc<ArcSwap<Active>>, Arc<Active>>>,
    serving: RefCell<Rc<Serving>>,
    draining: Cell<bool>,
    /// When idle connections were let go of for want of room.
    relieved: Cell<Option<Instant>>,
    /// TLS handshakes under way, the oldest first.
    pub handshakes: RefCell<VecDeque<Weak<Downstream>>>,
}

/// A revision as long as requests of this worker use it. Counted by the worker alone, so that no two workers write to one
/// counter for each request.
pub struct Serving(Arc<Active>);

/// What the control side tells a worker.
pub enum Command {
    /// Accept connections on this socket.
    Listen { socket: u16, listener: std::net::TcpListener, settings: Arc<ActiveListener> },
    /// Take what waits to be accepted, then close the socket, and let its connections end with their next answer. Says when
    /// the socket is closed.
    Unlisten { socket: u16, closed: oneshot::Sender<()> },
    /// There is another revision: let go of the one before.
    Refresh,
    /// Let all connections end with their next answer. Says when there are none left.
    Drain { done: oneshot::Sender<()> },
}

/// A socket that accepts.
struct Socket {
    number: u16,
    /// As they were last known: those of a listener that is gone serve who came before.
    settings: Arc<ActiveListener>,
}

/// How long a connection that is to be closed may stay without a request: one may be on its way. After that it is closed.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// How often idle connections to targets are looked through.
const SWEEP: Duration = Duration::from_secs(1);

/// While there are as many connections as there may be, how often it is looked whether there still are, and how often those
/// that are idle are let go of.
const FULL_PAUSE: Duration = Duration::from_millis(20);
const FULL_RELIEF: Duration = Duration::from_millis(500);

/// How many of them are let go of at once, at least.
const MIN_RELIEF: usize = 32;

/// How much memory for heads is kept: so many pieces, of so many bytes at most.
const MAX_BUFFERS: usize = 512;
const MAX_BUFFER: usize = 16 << 10;

/// Connections that are accepted before others have their turn.
const MAX_ACCEPTED: u32 = 512;

/// After `accept` failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Runs worker number `index` until the sender of `commands` is gone.
pub fn run(index: usize, shared: Arc<Shared>, commands: mpsc::UnboundedReceiver<Command>) -> io::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    runtime.block_on(async {
        let worker = Rc::new(Worker::new(index, shared));
        worker.serve(commands).await;
    });
    Ok(())
}

impl Worker {
    fn new(index: usize, shared: Arc<Shared>) -> Self {
        let active = shared.active.load_full();
        Self {
            index,
            stats: shared.stats.get(index).cloned().unwrap_or_default(),
            deadlines: Rc::default(),
            pool: Pool::new(index, Arc::clone(&shared.connections_wanted)),
            identifier: RefCell::default(),
            log: shared.log.clone().map(Log::new),
            scratch: RefCell::default(),
            mirrors: Cell::new(0),
            overload: Overload::new(shared.max_requests, shared.max_queue_delay),
            buffers: RefCell::default(),
            connections: RefCell::default(),
            active: RefCell::new(Cache::new(Arc::clone(&shared.active))),
            serving: RefCell::new(Rc::new(Serving(active))),
            draining: Cell::new(false),
            relieved: Cell::new(None),
            handshakes: RefCell::default(),
            shared,
        }
    }

    /// Memory for the head of a request.
    #[inline]
    pub fn buffer(&self) -> Vec<u8> {
        self.buffers.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps memory for heads to come. Not more of it than what usually is under way at once.
    #[inline]
    pub fn keep_buffer(&self, buffer: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if buffers.len() < MAX_BUFFERS && (1..=MAX_BUFFER).contains(&buffer.capacity()) {
            buffers.push(buffer);
        }
    }

    /// The revision for a request that begins now.
    #[inline]
    pub fn serving(&self) -> Rc<Serving> {
        let mut cache = self.active.borrow_mut();
        let active = cache.load();
        let mut serving = self.serving.borrow_mut();
        if !Arc::ptr_eq(active, &serving.0) {
            *serving = Rc::new(Serving(Arc::clone(active)));
        }
        Rc::clone(&serving)
    }

    async fn serve(self: Rc<Self>, mut commands: mpsc::UnboundedReceiver<Command>) {
        tokio::task::spawn_local(Rc::clone(&self.deadlines).run());
        tokio::task::spawn_local(Rc::clone(&self).sweep());
        tokio::task::spawn_local(Rc::clone(&self).give_up_wanted());
        let worker = Rc::clone(&self);
        tokio::task::spawn_local(async move { worker.overload.watch().await });
        if let Some(log) = &self.log {
            tokio::task::spawn_local(log.flusher(Arc::clone(&self.stats)));
        }
        let mut accepting: Vec<(u16, oneshot::Sender<oneshot::Sender<()>>)> = Vec::new();
        while let Some(command) = commands.recv().await {
            match command {
                Command::Listen { socket, listener, settings } => match TcpListener::from_std(listener) {
                    Ok(listener) => {
                        let (stop, stopped) = oneshot::channel();
                        accepting.push((socket, stop));
                        let socket = Socket { number: socket, settings };
                        // It yields by itself: the runtime would have it do so after 128 connections, and what waits for
                        // the next round is not refused before.
                        let accept = Rc::clone(&self).accept(socket, listener, stopped);
                        tokio::task::spawn_local(tokio::task::unconstrained(accept));
                    }
                    Err(error) => warn!(%error, "cannot listen"),
                },
                Command::Unlisten { socket, closed } => {
                    let mut closing = Vec::new();
                    while let Some(index) = accepting.iter().position(|(known, _)| *known == socket) {
                        let (sender, receiver) = oneshot::channel();
                        // An accept loop that has ended has closed its socket.
                        if accepting.swap_remove(index).1.send(sender).is_ok() {
                            closing.push(receiver);
                        }
                    }
                    tokio::task::spawn_local(async move {
                        for closed in closing {
                            let _ = closed.await;
                        }
                        let _ = closed.send(());
                    });
                    self.end_connections(|connection| connection.socket == socket);
                }
                Command::Refresh => drop(self.serving()),
                Command::Drain { done } => {
                    self.draining.set(true);
                    self.end_connections(|_| true);
                    let worker = Rc::clone(&self);
                    tokio::task::spawn_local(async move {
                        while !worker.connections.borrow().is_empty() {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                        worker.pool.clear();
                        if let Some(log) = &worker.log {
                            log.flush(&worker.stats);
                        }
                        let _ = done.send(());
                    });
                }
            }
        }
        if let Some(log) = &self.log {
            log.flush(&self.stats);
        }
    }

    async fn accept(
        self: Rc<Self>,
        mut socket: Socket,
        listener: TcpListener,
        mut stopped: oneshot::Receiver<oneshot::Sender<()>>,
    ) {
        let mut few_waiting = false;
        let mut accepted_in_a_row = 0;
        let closed = loop {
            let full = self.is_full();
            let opening = if socket.settings.tls.is_some() { Opening::Tls } else { Opening::Plain };
            if self.overload.wants_few_waiting(opening) != few_waiting {
                few_waiting = !few_waiting;
                listener::set_backlog(&listener, few_waiting);
            }
            tokio::select! {
                biased;
                closed = &mut stopped => break closed.ok(),
                () = self.relieve(), if full => {}
                accepted = async {
                    if accepted_in_a_row == MAX_ACCEPTED {
                        accepted_in_a_row = 0;
                        tokio::task::yield_now().await;
                    }
                    self.overload.may_accept(opening).await;
                    listener.accept().await
                }, if !full => match accepted {
                    Ok((stream, peer)) => {
                        accepted_in_a_row += 1;
                        self.begin(stream, peer, &mut socket);
                    }
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(error) => {
                        warn!(%error, "cannot accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        };
        // Who connected before the socket closes is served; closing it would reset them.
        if let Ok(listener) = listener.into_std() {
            while let Ok((stream, peer)) = listener.accept() {
                let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                if let Ok(stream) = stream {
                    self.begin(stream, peer, &mut socket);
                }
            }
        }
        if let Some(closed) = closed {
            let _ = closed.send(());
        }
        self.end_connections(|connection| connection.socket == socket.number);
    }

    /// Whether there are as many connections as there may be. Workers may exceed it by one each.
    fn is_full(&self) -> bool {
        let open: u64 = self.shared.stats.iter().map(|stats| stats.active_connections.value()).sum();
        open >= self.shared.max_connections
    }

    /// Waits a little, and lets idle connections end: who has a request goes before who has none. New ones wait in the
    /// kernel's queue meanwhile.
    async fn relieve(&self) {
        let now = Instant::now();
        if self.relieved.get().is_none_or(|at| now >= at + FULL_RELIEF) {
            self.relieved.set(Some(now));
            let mut idle: Vec<_> = {
                let connections = self.connections.borrow();
                connections.iter().filter(|(_, it)| it.is_idle()).map(|(_, it)| Rc::clone(it)).collect()
            };
            // Those that have been idle for longest, and not all: they would come back, all at once.
            let most = (idle.len() / 8).max(MIN_RELIEF);
            if idle.len() > most {
                idle.select_nth_unstable_by_key(most, |connection| connection.idle_until());
                idle.truncate(most);
            }
            for connection in idle {
                connection.end_soon(now + LAST_REQUEST);
            }
        }
        tokio::time::sleep(FULL_PAUSE).await;
    }

    fn begin(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr, socket: &mut Socket) {
        // It only fails when the connection is gone, which reading will tell.
        let _ = stream.set_nodelay(true);
        if let Some(settings) = self.serving().listener(socket.number) {
            socket.settings = Arc::clone(settings);
        }
        let settings = Arc::clone(&socket.settings);
        let downstream = Rc::new(Downstream::new(Rc::clone(self), peer, socket.number, settings));
        let key = self.connections.borrow_mut().insert(Rc::clone(&downstream));
        self.stats.connections.add(1);
        self.stats.active_connections.add(1);
        if self.draining.get() {
            downstream.end_soon(Instant::now() + LAST_REQUEST);
        }
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let _open = Open { worker, key };
            connection::serve(downstream, stream).await;
        });
    }

    fn end_connections(&self, which: impl Fn(&Downstream) -> bool) {
        let at = Instant::now() + LAST_REQUEST;
        for (_, connection) in &*self.connections.borrow() {
            if which(connection) {
                connection.end_soon(at);
            }
        }
    }

    async fn give_up_wanted(self: Rc<Self>) {
        loop {
            self.pool.asked().await;
            self.pool.give_up_awaited();
        }
    }

    async fn sweep(self: Rc<Self>) {
        let mut interval = tokio::time::interval(SWEEP);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.pool.sweep(Instant::now());
        }
    }
}

impl std::ops::Deref for Serving {
    type Target = Active;

    fn deref(&self) -> &Active {
        &self.0
    }
}

/// A connection in the worker's list.
struct Open {
    worker: Rc<Worker>,
    key: usize,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.connections.borrow_mut().try_remove(self.key);
        self.worker.stats.active_connections.subtract(1);
    }
}

/// Errors of `accept` that say something of the connection and nothing of the socket; see accept(2).
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
