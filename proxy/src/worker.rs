//! A worker: one thread and one runtime, with unshared state.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::active::ActiveListener;
use crate::http::connection;
use crate::http::downstream::Downstream;
use crate::http::worker_context::{Shared, WorkerContext};
use crate::listener;
use crate::overload::Opening;

/// A command from the control side to a worker.
pub enum Command {
    /// Accept connections on this socket.
    Listen { socket: u16, listener: std::net::TcpListener, settings: Arc<ActiveListener> },
    /// Accept the connections in the queue, then close the socket, and let its connections end with their next
    /// response. `closed` is notified when the socket is closed.
    Unlisten { socket: u16, closed: oneshot::Sender<()> },
    /// A new revision is active: release the one before.
    Refresh,
    /// Let all connections end with their next response. `done` is notified when none is left.
    Drain { done: oneshot::Sender<()> },
}

/// A listening socket.
struct Socket {
    number: u16,
    /// The latest known settings: connections of a removed listener keep using them.
    settings: Arc<ActiveListener>,
}

/// How long a connection that is to be closed may stay open without a request, because one may be in transit.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// The interval at which expired idle connections to targets are closed.
const SWEEP: Duration = Duration::from_secs(1);

/// At the connection limit: the interval at which the number of connections is checked, and at which idle ones are
/// closed.
const FULL_PAUSE: Duration = Duration::from_millis(20);
const FULL_RELIEF: Duration = Duration::from_millis(500);

/// The minimum number of idle connections that are closed at once.
const MIN_RELIEF: usize = 32;

/// The number of connections that are accepted before other tasks run.
const MAX_ACCEPTED: u32 = 512;

/// The pause after `accept` failed for lack of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Runs worker number `index` until the sender of `commands` is dropped.
pub fn run(index: usize, shared: Arc<Shared>, commands: mpsc::UnboundedReceiver<Command>) -> io::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    runtime.block_on(async {
        let worker = Rc::new(Worker::new(index, shared));
        worker.serve(commands).await;
    });
    Ok(())
}

/// A worker with its connections.
struct Worker {
    context: Rc<WorkerContext>,
    connections: RefCell<Slab<Rc<Downstream>>>,
    draining: Cell<bool>,
    /// The time at which idle connections were last closed to make room.
    relieved: Cell<Option<Instant>>,
}

impl Worker {
    fn new(index: usize, shared: Arc<Shared>) -> Self {
        Self {
            context: Rc::new(WorkerContext::new(index, shared)),
            connections: RefCell::default(),
            draining: Cell::new(false),
            relieved: Cell::new(None),
        }
    }

    async fn serve(self: Rc<Self>, mut commands: mpsc::UnboundedReceiver<Command>) {
        let context = &self.context;
        tokio::task::spawn_local(Rc::clone(&context.deadlines).run());
        tokio::task::spawn_local(sweep(Rc::clone(context)));
        tokio::task::spawn_local(close_wanted_idle(Rc::clone(context)));
        let watched = Rc::clone(context);
        tokio::task::spawn_local(async move { watched.overload.watch().await });
        let traced = Rc::clone(context);
        tokio::task::spawn_local(async move { traced.spans.flush_when_due().await });
        if let Some(log) = &context.log {
            tokio::task::spawn_local(log.flusher(Arc::clone(&context.stats)));
        }
        let mut accepting: Vec<(u16, oneshot::Sender<oneshot::Sender<()>>)> = Vec::new();
        while let Some(command) = commands.recv().await {
            match command {
                Command::Listen { socket, listener, settings } => match TcpListener::from_std(listener) {
                    Ok(listener) => {
                        let (stop, stopped) = oneshot::channel();
                        accepting.push((socket, stop));
                        let socket = Socket { number: socket, settings };
                        // The accept loop yields by itself: with cooperative budgeting the runtime would stop it after
                        // 128 connections, and those that wait for the next round could not be refused earlier.
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
                Command::Refresh => drop(self.context.serving()),
                Command::Drain { done } => {
                    self.draining.set(true);
                    self.end_connections(|_| true);
                    let worker = Rc::clone(&self);
                    tokio::task::spawn_local(async move {
                        while !worker.connections.borrow().is_empty() {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                        worker.context.pool.clear();
                        worker.context.flush();
                        let _ = done.send(());
                    });
                }
            }
        }
        self.context.flush();
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
            if self.context.overload.wants_few_waiting(opening) != few_waiting {
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
                    self.context.overload.may_accept(opening).await;
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
        // Clients that connected before the socket closes are served; closing it would reset them.
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

    /// True at the connection limit. Workers may exceed it by one connection each.
    fn is_full(&self) -> bool {
        let open: u64 = self.context.shared.stats.iter().map(|stats| stats.active_connections.value()).sum();
        open >= self.context.shared.max_connections
    }

    /// Waits a little, and closes idle connections: clients with a request have precedence over clients without one.
    /// New connections wait in the kernel's queue meanwhile.
    async fn relieve(&self) {
        let now = Instant::now();
        if self.relieved.get().is_none_or(|at| now >= at + FULL_RELIEF) {
            self.relieved.set(Some(now));
            let mut idle: Vec<_> = {
                let connections = self.connections.borrow();
                connections.iter().filter(|(_, it)| it.is_idle()).map(|(_, it)| Rc::clone(it)).collect()
            };
            // Those that have been idle for longest are closed, and not all, because they would all reconnect at once.
            let most = (idle.len() / 8).max(MIN_RELIEF);
            if idle.len() > most {
                idle.select_nth_unstable_by_key(most, |connection| connection.idle_until());
                idle.truncate(most);
            }
            for connection in idle {
                connection.start_shutdown(now + LAST_REQUEST);
            }
        }
        tokio::time::sleep(FULL_PAUSE).await;
    }

    fn begin(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr, socket: &mut Socket) {
        // This fails only when the connection is gone, which the next read reports.
        let _ = stream.set_nodelay(true);
        let context = &self.context;
        if let Some(settings) = context.serving().listener(socket.number) {
            socket.settings = Arc::clone(settings);
        }
        let settings = Arc::clone(&socket.settings);
        let (downstream, serving) =
            connection::open(Rc::clone(context), stream, peer, socket.number, settings);
        let key = self.connections.borrow_mut().insert(Rc::clone(&downstream));
        context.stats.connections.add(1);
        context.stats.active_connections.add(1);
        if self.draining.get() {
            downstream.start_shutdown(Instant::now() + LAST_REQUEST);
        }
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let _open = Open { worker, key };
            serving.await;
        });
    }

    fn end_connections(&self, which: impl Fn(&Downstream) -> bool) {
        let at = Instant::now() + LAST_REQUEST;
        for (_, connection) in &*self.connections.borrow() {
            if which(connection) {
                connection.start_shutdown(at);
            }
        }
    }
}

/// Closes idle connections to targets that other workers wait for.
async fn close_wanted_idle(context: Rc<WorkerContext>) {
    loop {
        context.pool.wanted_elsewhere().await;
        context.pool.give_up_awaited();
    }
}

/// Closes expired idle connections to targets periodically.
async fn sweep(context: Rc<WorkerContext>) {
    let mut interval = tokio::time::interval(SWEEP);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        context.pool.sweep(Instant::now());
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
        self.worker.context.stats.active_connections.subtract(1);
    }
}

/// True for errors of `accept` that concern one connection and not the socket; see accept(2).
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
