//! The data plane as a whole: its workers, its sockets, and the revision they serve.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use signalbox_config::{Body, Kind, Listener, Name, ResourceKey, Snapshot};
use signalbox_plugins::States;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;
use tracing::{error, info};

use crate::active::{Active, ActiveListener, RouteStats};
use crate::compile::{Compiled, Services};
use crate::listener;
use crate::source::{Candidate, DataPlane, Rejected, Traffic};
use crate::takeover::Handed;
use crate::telemetry::{Cells, Counter, Histogram, Totals, WorkerStats, access_log};
use crate::tls::ListenerTls;
use crate::upstream::{Checking, Resolver};
use crate::worker::{self, Command, Shared};

/// What a proxy is made of.
pub struct Settings {
    pub workers: usize,
    /// Listener name to the address that overrides the configured one.
    pub listener_overrides: BTreeMap<String, SocketAddr>,
    /// Requests that one worker may have under way; what is beyond is refused.
    pub max_requests: u32,
    /// How long requests may wait for their turn before some are refused; `None`: any time.
    pub max_queue_delay: Option<Duration>,
    /// Where access log lines go; `None`: there is no access log.
    pub access_log: Option<access_log::Sender>,
    /// Client connections at once; beyond, no more are accepted until others end.
    pub max_connections: u64,
    /// Where this proxy is: it prefers targets of the same zone.
    pub zone: Option<String>,
    /// Where names of targets are resolved; none: as this host does it.
    pub dns_servers: Vec<SocketAddr>,
    /// Sockets of the proxy before this one, for listeners at their addresses.
    pub inherited: Vec<Handed>,
    /// Whether sockets may be handed over: see [`Proxy::sockets`].
    pub hands_over: bool,
}

/// The data plane. Dropping it ends the workers without regard to what runs; see [`Proxy::drain`].
pub struct Proxy {
    active: Arc<ArcSwap<Active>>,
    shared: Arc<Shared>,
    workers: Vec<mpsc::UnboundedSender<Command>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    overrides: BTreeMap<String, SocketAddr>,
    control: Mutex<Control>,
    reported: Mutex<Reported>,
}

/// What only the one who applies revisions sees.
struct Control {
    compiled: Compiled,
    services: Services,
    /// By number.
    sockets: Vec<Option<BoundSocket>>,
    /// The names listeners ever had, which are labels of metrics, by number.
    labels: Vec<Name>,
    /// Revisions that were replaced. A worker must not be the last to let go of one: taking it apart could take longer than
    /// a request may.
    retired: Vec<Arc<Active>>,
    /// How long revisions took.
    applies: Histogram,
    /// No socket is opened any more.
    draining: bool,
    inherited: Vec<Handed>,
    /// All that listen, by number, when they may be handed over.
    held: Option<BTreeMap<u16, Arc<[TcpListener]>>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct BoundSocket {
    listener: Name,
    /// As configured or overridden; port 0 is still 0.
    asked: SocketAddr,
    bound: SocketAddr,
}

/// What [`DataPlane::traffic`] told last.
#[derive(Default)]
struct Reported {
    durations: Totals,
    errors: u64,
    no_route: u64,
    client_errors: u64,
}

/// How long closing a socket may take: the workers only have to take what waits.
const CLOSE: Duration = Duration::from_secs(1);

impl Proxy {
    /// Starts the workers, which serve nothing yet. Names are resolved on the runtime this is called in.
    pub fn start(settings: Settings) -> io::Result<Arc<Self>> {
        let handle = tokio::runtime::Handle::current();
        let compiled = Compiled::empty();
        let active = Arc::new(ArcSwap::from_pointee(compiled.active.clone()));
        let shared = Arc::new(Shared {
            active: Arc::clone(&active),
            stats: (0..settings.workers).map(|_| Arc::<WorkerStats>::default()).collect(),
            unrouted: Arc::new(RouteStats { name: "".into(), requests: Cells::new(settings.workers) }),
            epoch: Instant::now(),
            log: settings.access_log,
            max_requests: settings.max_requests,
            max_queue_delay: settings.max_queue_delay,
            connections_wanted: (0..settings.workers).map(|_| Notify::new()).collect(),
            max_connections: settings.max_connections,
        });
        let mut workers = Vec::new();
        let mut threads = Vec::new();
        for index in 0..settings.workers {
            let (sender, receiver) = mpsc::unbounded_channel();
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                if let Err(error) = worker::run(index, shared, receiver) {
                    error!(%error, index, "a worker cannot start");
                }
            })?;
            workers.push(sender);
            threads.push(thread);
        }
        let services = Services {
            states: States::default(),
            resolver: Arc::new(Resolver::new(handle.clone(), settings.dns_servers)),
            checking: Checking::new(handle),
            zone: settings.zone.map(String::into_boxed_str),
            workers: settings.workers,
        };
        let control = Control {
            compiled,
            services,
            sockets: Vec::new(),
            labels: Vec::new(),
            retired: Vec::new(),
            applies: Histogram::default(),
            draining: false,
            inherited: settings.inherited,
            held: settings.hands_over.then(BTreeMap::new),
        };
        Ok(Arc::new(Self {
            active,
            shared,
            workers,
            threads: Mutex::new(threads),
            overrides: settings.listener_overrides,
            control: Mutex::new(control),
            reported: Mutex::default(),
        }))
    }

    /// What is served.
    pub fn snapshot(&self) -> Snapshot {
        self.control().compiled.snapshot.clone()
    }

    /// What is counted, for rendering.
    pub fn counted<T>(&self, read: impl FnOnce(&Shared, &Compiled, &[Name], &Totals) -> T) -> T {
        let control = self.control();
        let (compiled, labels) = (control.compiled.clone(), control.labels.clone());
        let applies = Totals::of([&control.applies]);
        drop(control);
        read(&self.shared, &compiled, &labels, &applies)
    }

    /// Takes apart the revisions that nobody uses any more. To be called now and then.
    pub fn forget_retired(&self) {
        let mut control = self.control();
        let (unused, used) = std::mem::take(&mut control.retired)
            .into_iter()
            .partition(|active: &Arc<Active>| Arc::strong_count(active) == 1);
        control.retired = used;
        drop(control);
        drop::<Vec<_>>(unused);
    }

    /// How many revisions were replaced and are not forgotten.
    pub fn retired(&self) -> usize {
        self.control().retired.len()
    }

    /// The sockets that listen, and where: for a successor. None, unless the settings say that there may be one.
    pub fn sockets(&self) -> Vec<(SocketAddr, Arc<[TcpListener]>)> {
        let control = self.control();
        let held = control.held.iter().flatten();
        held.filter_map(|(number, sockets)| {
            let socket = control.sockets.get(usize::from(*number))?.as_ref()?;
            Some((socket.bound, Arc::clone(sockets)))
        })
        .collect()
    }

    /// Closes inherited sockets that no listener wanted.
    pub fn forget_inherited(&self) {
        self.control().inherited.clear();
    }

    /// Accepts connections for `grace` longer, then no more; lets those there are end with their next answer, and waits for
    /// that up to `limit` in all. Returns whether all ended.
    pub async fn drain(&self, grace: Duration, limit: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + limit;
        tokio::time::sleep(grace.min(limit / 2)).await;
        let closing: Vec<_> = {
            let mut control = self.control();
            control.draining = true;
            control.held = None;
            let sockets = control.sockets.iter().enumerate().filter(|(_, socket)| socket.is_some());
            sockets.flat_map(|(socket, _)| self.unlisten(socket as u16)).collect()
        };
        for closed in closing {
            // A worker that does not answer is waited for below.
            let _ = timeout(CLOSE, closed).await;
        }
        let waiting: Vec<_> = self
            .workers
            .iter()
            .map(|worker| {
                let (done, waiting) = oneshot::channel();
                let _ = worker.send(Command::Drain { done });
                waiting
            })
            .collect();
        let mut all = true;
        for waiting in waiting {
            all &= tokio::time::timeout_at(deadline, waiting).await.is_ok();
        }
        all
    }

    /// Connections that clients have open.
    pub fn active_connections(&self) -> u64 {
        self.shared.stats.iter().map(|stats| stats.active_connections.value()).sum()
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        // What is behind it is only replaced as a whole.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unlisten(&self, socket: u16) -> Vec<oneshot::Receiver<()>> {
        self.workers
            .iter()
            .map(|worker| {
                let (closed, waiting) = oneshot::channel();
                let _ = worker.send(Command::Unlisten { socket, closed });
                waiting
            })
            .collect()
    }

    /// The listeners of `snapshot` at their addresses.
    fn wanted(&self, snapshot: &Snapshot, compiled: &Compiled) -> Vec<Wanted> {
        snapshot
            .of_kind(Kind::Listener, None)
            .filter_map(|resource| {
                let Body::Listener(listener) = resource.body() else { return None };
                let name = resource.key().name.clone();
                let address = self.overrides.get(name.as_str()).copied().unwrap_or(listener.address);
                let tls = compiled.listener_tls(&name).cloned();
                Some((name, address, Listener::clone(listener), tls))
            })
            .collect()
    }
}

impl DataPlane for Proxy {
    fn apply(&self, candidate: &Candidate) -> Result<(), Vec<Rejected>> {
        let began = Instant::now();
        let mut control = self.control();
        let control = &mut *control;
        let mut next = control.compiled.next(candidate, &control.services)?;
        let plan = Plan::make(
            &control.sockets,
            &mut control.labels,
            self.wanted(&candidate.snapshot, &next),
            self.workers.len(),
            control.draining,
            &control.inherited,
        )?;
        // From here on nothing fails.
        next.take_over(&control.services.checking);
        next.active.listeners = plan.active;
        let settings = next.active.listeners.clone();
        let active = Arc::new(next.active.clone());
        let before = self.active.swap(active);
        control.compiled = next;
        control.sockets = plan.sockets;
        control.retired.push(before);
        for (socket, listeners) in plan.opened {
            let Some(settings) = settings.get(usize::from(socket)).and_then(Option::as_ref) else { continue };
            if let Some(held) = &mut control.held {
                // Without a file descriptor to spare there is nothing to be handed over, and all else goes on.
                let copies: io::Result<Vec<_>> = listeners.iter().map(TcpListener::try_clone).collect();
                held.extend(copies.ok().map(|copies| (socket, copies.into())));
            }
            // Inherited ones may be more than there are workers.
            for (worker, listener) in self.workers.iter().cycle().zip(listeners) {
                let settings = Arc::clone(settings);
                // A worker that has ended has said so.
                let _ = worker.send(Command::Listen { socket, listener, settings });
            }
        }
        control.applies.record(began.elapsed());
        if let Some(held) = &mut control.held {
            held.retain(|socket, _| !plan.closed.contains(socket));
        }
        let closing: Vec<_> = plan.closed.into_iter().flat_map(|socket| self.unlisten(socket)).collect();
        for worker in &self.workers {
            let _ = worker.send(Command::Refresh);
        }
        // The next revision may want the address elsewhere, so it has to be free when this one is served.
        let deadline = Instant::now() + CLOSE;
        for mut closed in closing {
            while closed.try_recv() == Err(oneshot::error::TryRecvError::Empty) && Instant::now() < deadline {
                thread::sleep(Duration::from_micros(200));
            }
        }
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        let stats = &self.shared.stats;
        let durations = Totals::of(stats.iter().map(|stats| &stats.request_duration));
        let sum = |counter: fn(&WorkerStats) -> &Counter| -> u64 {
            stats.iter().map(|stats| counter(stats).value()).sum()
        };
        let errors = sum(|stats| &stats.errors);
        let no_route = sum(|stats| &stats.no_route);
        let client_errors = sum(|stats| &stats.client_errors);
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let since = durations.since(&reported.durations);
        let traffic = Traffic {
            requests: since.count(),
            errors: errors.saturating_sub(reported.errors),
            no_route: no_route.saturating_sub(reported.no_route),
            client_errors: client_errors.saturating_sub(reported.client_errors),
            p50_us: since.quantile_us(0.5),
            p99_us: since.quantile_us(0.99),
            active_connections: self.active_connections(),
        };
        *reported = Reported { durations, errors, no_route, client_errors };
        traffic
    }

    fn listeners(&self) -> BTreeMap<String, SocketAddr> {
        let control = self.control();
        let sockets = control.sockets.iter().flatten();
        sockets.map(|socket| (socket.listener.as_str().to_owned(), socket.bound)).collect()
    }
}

/// A listener of a revision: its name, its address, and what is spoken there.
type Wanted = (Name, SocketAddr, Listener, Option<Arc<ListenerTls>>);

/// How the sockets of a revision come from those of the one before.
struct Plan {
    sockets: Vec<Option<BoundSocket>>,
    active: Vec<Option<Arc<ActiveListener>>>,
    opened: Vec<(u16, Vec<TcpListener>)>,
    closed: Vec<u16>,
}

impl Plan {
    /// Binds what is new. A socket whose address is still wanted stays, whatever its listener is called now.
    fn make(
        sockets: &[Option<BoundSocket>],
        labels: &mut Vec<Name>,
        wanted: Vec<Wanted>,
        workers: usize,
        draining: bool,
        inherited: &[Handed],
    ) -> Result<Self, Vec<Rejected>> {
        let mut plan =
            Self { sockets: sockets.to_vec(), active: Vec::new(), opened: Vec::new(), closed: Vec::new() };
        let mut rejected = Vec::new();
        let mut kept = BTreeSet::new();
        let mut to_bind = Vec::new();
        let mut listeners: Vec<(usize, ActiveListener)> = Vec::new();
        for (name, asked, listener, tls) in wanted {
            let known = sockets.iter().enumerate().find_map(|(index, socket)| {
                let socket = socket.as_ref()?;
                // Any free port is another one for each listener.
                let same = socket.asked == asked && (asked.port() != 0 || socket.listener == name);
                (same && !kept.contains(&index)).then_some(index)
            });
            let label = label_of(labels, &name);
            let Listener { limits, edge, .. } = listener;
            let bound = known.and_then(|index| sockets.get(index)?.as_ref()).map_or(asked, |it| it.bound);
            let settings = ActiveListener { name, bound, label, limits, edge, tls };
            match known {
                Some(index) => {
                    kept.insert(index);
                    listeners.push((index, settings));
                }
                None => to_bind.push((asked, settings)),
            }
        }
        for (asked, mut settings) in to_bind {
            if draining {
                continue;
            }
            let shared = plan.sockets.iter().flatten().any(|socket| listener::overlap(socket.bound, asked));
            match take_or_bind(inherited, asked, workers, shared) {
                Ok((bound, opened)) => {
                    settings.bound = bound;
                    let socket = BoundSocket { listener: settings.name.clone(), asked, bound };
                    // Numbers of sockets that are to be closed are still in use.
                    let index = match plan.sockets.iter().position(Option::is_none) {
                        Some(free) => free,
                        None => {
                            plan.sockets.push(None);
                            plan.sockets.len() - 1
                        }
                    };
                    plan.sockets[index] = Some(socket);
                    kept.insert(index);
                    plan.opened.push((index as u16, opened));
                    info!(listener = %settings.name, address = %bound, "listening");
                    listeners.push((index, settings));
                }
                Err(error) => rejected.push(Rejected {
                    key: Some(ResourceKey::new(Kind::Listener, settings.name)),
                    field: "address".to_owned(),
                    message: listener::explain(asked, &error),
                }),
            }
        }
        if !rejected.is_empty() {
            return Err(rejected);
        }
        plan.active.resize_with(plan.sockets.len(), || None);
        for (index, settings) in listeners {
            if let Some(socket) = &mut plan.sockets[index] {
                socket.listener = settings.name.clone();
            }
            plan.active[index] = Some(Arc::new(settings));
        }
        for (index, socket) in plan.sockets.iter_mut().enumerate() {
            if !kept.contains(&index)
                && let Some(socket) = socket.take()
            {
                info!(listener = %socket.listener, address = %socket.bound, "no longer listening");
                plan.closed.push(index as u16);
            }
        }
        Ok(plan)
    }
}

/// The sockets of the proxy before this one, if it listened at `address`; else new ones. They are copies: a revision that is
/// rejected for another listener leaves those that were inherited for the next.
fn take_or_bind(
    inherited: &[Handed],
    address: SocketAddr,
    workers: usize,
    shared: bool,
) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let Some(handed) = inherited.iter().find(|handed| handed.address == address) else {
        return listener::bind(address, workers, shared);
    };
    let mut sockets = handed.sockets.iter().map(TcpListener::try_clone).collect::<io::Result<Vec<_>>>()?;
    if let Some(missing) = workers.checked_sub(sockets.len()).filter(|missing| *missing > 0) {
        sockets.extend(listener::bind(address, missing, true)?.1);
    }
    Ok((address, sockets))
}

/// The number of a listener's name.
fn label_of(labels: &mut Vec<Name>, name: &Name) -> u16 {
    let index = labels.iter().position(|known| known == name).unwrap_or_else(|| {
        labels.push(name.clone());
        labels.len() - 1
    });
    // Beyond that many names the last one stands for all.
    u16::try_from(index).unwrap_or(u16::MAX)
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.workers.clear();
        let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                error!("a worker panicked");
            }
        }
    }
}
