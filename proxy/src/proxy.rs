//! The data plane as a whole: its workers, its sockets, and the revision they serve.

use std::array;
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use signalbox_config::{Body, Kind, Listener, Name, Purge, Snapshot};
use signalbox_plugin::{Blobs, Clock, Purges, Registry, States};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::active::{Active, RouteStats};
use crate::compile::Compiled;
use crate::core::clock::SystemClock;
use crate::hot_restart::InheritedSockets;
use crate::http::worker_context::Shared;
use crate::resolve::Resolver;
use crate::route_series::{OTHERS, RouteSeries, ShownRoutes};
use crate::secrets::HostSecrets;
use crate::services::{Checking, Services};
use crate::sockets::{BoundSocket, SocketPlan, Wanted};
use crate::source::{Answers, Candidate, DataPlane, Rejected, ScopeTraffic, Traffic, TrafficScope};
use crate::span_export;
use crate::tasks::{self, RunningTask, RunningTasks};
use crate::telemetry::spans;
use crate::telemetry::{
    ConsumerTraffic, Counter, Exemplars, Generations, Histogram, Scope, Series, Totals, TrafficCounts,
    TrafficGroup, TrafficSums, WorkerStats, access_log, process_cpu_us,
};
use crate::worker::{self, Command};

/// The settings of a proxy.
pub struct Settings {
    /// The plugin types that the proxy knows.
    pub types: Registry,
    /// The uploaded files that plugins use.
    pub blobs: Blobs,
    pub workers: usize,
    /// Maps a listener's name to the address that overrides the configured one.
    pub listener_overrides: BTreeMap<String, SocketAddr>,
    /// The maximum number of concurrent requests per worker; further ones are refused.
    pub max_requests: u32,
    /// How long requests may wait for their turn before some are refused; `None`: no limit.
    pub max_queue_delay: Option<Duration>,
    /// The destination of access log lines; `None`: there is no access log.
    pub access_log: Option<access_log::Sender>,
    /// The maximum number of client connections; at the limit, new ones are accepted only as others end.
    pub max_connections: u64,
    /// Pipes of each worker, through which bodies pass from socket to socket without a copy; beyond, they are copied.
    pub pipes: usize,
    /// The zone of this proxy: it prefers targets of the same zone.
    pub zone: Option<String>,
    /// The DNS servers for names of targets; if empty, those of this host.
    pub dns_servers: Vec<SocketAddr>,
    /// The predecessor's sockets, for listeners at their addresses.
    pub inherited: Vec<InheritedSockets>,
    /// True if sockets may be handed over: see [`Proxy::sockets`].
    pub hands_over: bool,
    /// The number of routes with series of their own in the metrics.
    pub metrics_routes: usize,
}

/// The data plane. Dropping it ends the workers without waiting for requests; see [`Proxy::drain`].
pub struct Proxy {
    active: Arc<ArcSwap<Active>>,
    shared: Arc<Shared>,
    workers: Vec<mpsc::UnboundedSender<Command>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// The thread that runs the tasks of plugins, and what ends it.
    task_thread: Option<JoinHandle<()>>,
    stop_tasks: CancellationToken,
    /// The thread that exports spans, and what ends it.
    span_thread: Option<JoinHandle<()>>,
    stop_spans: CancellationToken,
    running_tasks: RunningTasks,
    overrides: BTreeMap<String, SocketAddr>,
    control: Mutex<Control>,
    purges: Purges,
    /// Locked after `control`, and only briefly.
    generations: Mutex<Generations>,
    reported: Mutex<ReportedTotals>,
    /// Locked after `control`, and only briefly.
    series: Mutex<RouteSeries>,
}

/// The state that only the control side sees.
struct Control {
    compiled: Compiled,
    services: Services,
    /// The bound sockets, by number.
    sockets: Vec<Option<BoundSocket>>,
    /// The names of all listeners so far, by number: labels of metrics.
    labels: Vec<Name>,
    /// Revisions that were replaced. A worker must not drop the last reference to one: that could take longer than a
    /// request may.
    retired: Vec<Arc<Active>>,
    /// Deleted routes that the metrics no longer show, until their last requests are read for the time series.
    forgotten: Vec<Arc<RouteStats>>,
    /// How long applying revisions took.
    applies: Histogram,
    /// True if no socket is opened any more.
    draining: bool,
    inherited: Vec<InheritedSockets>,
    /// All listening sockets, by number, if they may be handed over.
    held: Option<BTreeMap<u16, Arc<[TcpListener]>>>,
}

/// The totals at the last call of [`DataPlane::traffic`].
#[derive(Default)]
struct ReportedTotals {
    durations: Totals,
    requests: u64,
    errors: u64,
    no_route: u64,
    client_errors: u64,
}

/// How long closing a socket may take: the workers only have to accept the connections in the queue.
const CLOSE: Duration = Duration::from_secs(1);

impl Proxy {
    /// Starts the workers, which serve nothing yet. Names are resolved on the runtime in which this is called.
    pub fn start(settings: Settings) -> io::Result<Arc<Self>> {
        let handle = tokio::runtime::Handle::current();
        let mut compiled = Compiled::empty();
        // The thread that runs the tasks of plugins counts as a worker does.
        let slots = settings.workers + 1;
        let mut generations = Generations::new(slots);
        compiled.active.period = generations.begin(0, process_cpu_us());
        let active = Arc::new(ArcSwap::from_pointee(compiled.active.clone()));
        let epoch = Instant::now();
        let clock = Clock::new(SystemClock(epoch));
        let (span_sinks, new_sinks) = spans::channel();
        let shared = Arc::new(Shared {
            active: Arc::clone(&active),
            stats: (0..slots).map(|_| Arc::<WorkerStats>::default()).collect(),
            unrouted: Arc::new(RouteStats::new("".into(), slots, &TrafficGroup::new(slots, 1))),
            consumers: ConsumerTraffic::new(slots),
            epoch,
            clock: clock.clone(),
            log: settings.access_log,
            span_counts: Arc::clone(span_sinks.counts()),
            exemplars: Exemplars::default(),
            max_requests: settings.max_requests,
            max_queue_delay: settings.max_queue_delay,
            connections_wanted: (0..slots).map(|_| Notify::new()).collect(),
            max_connections: settings.max_connections,
            pipes: settings.pipes,
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
        let (task_sender, task_receiver) = tasks::channel();
        let stop_tasks = CancellationToken::new();
        let (shared_by_tasks, stop) = (Arc::clone(&shared), stop_tasks.clone());
        let running_tasks = RunningTasks::default();
        let known = running_tasks.clone();
        let task_thread = thread::Builder::new().name("plugin-tasks".to_owned()).spawn(move || {
            if let Err(error) = tasks::run(slots - 1, shared_by_tasks, task_receiver, &known, &stop) {
                error!(%error, "the thread for the tasks of plugins cannot start");
            }
        })?;
        let stop_spans = CancellationToken::new();
        let span_thread = span_export::start(new_sinks, stop_spans.clone())?;
        let states = States::default();
        let purges = states.purges().clone();
        let services = Services {
            types: settings.types,
            clock,
            spawner: Arc::new(task_sender),
            states,
            blobs: settings.blobs,
            secrets: Box::new(HostSecrets),
            span_sinks,
            resolver: Arc::new(Resolver::new(handle.clone(), settings.dns_servers)),
            checking: Checking::new(handle),
            zone: settings.zone.map(String::into_boxed_str),
            workers: slots,
            routes: TrafficGroup::new(slots, most_counted_apart(slots)),
            upstreams: TrafficGroup::new(slots, most_counted_apart(slots)),
        };
        let series = Mutex::new(RouteSeries::new(settings.metrics_routes, &services.routes));
        let control = Control {
            compiled,
            services,
            sockets: Vec::new(),
            labels: Vec::new(),
            retired: Vec::new(),
            forgotten: Vec::new(),
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
            task_thread: Some(task_thread),
            stop_tasks,
            span_thread: Some(span_thread),
            stop_spans,
            running_tasks,
            overrides: settings.listener_overrides,
            control: Mutex::new(control),
            purges,
            generations: Mutex::new(generations),
            reported: Mutex::default(),
            series,
        }))
    }

    /// The served snapshot.
    pub fn snapshot(&self) -> Snapshot {
        self.control().compiled.snapshot.clone()
    }

    /// Calls `read` with all counters, for rendering.
    pub fn counted<T>(&self, read: impl FnOnce(&Shared, &Compiled, &[Name], &Totals) -> T) -> T {
        let control = self.control();
        let (compiled, labels) = (control.compiled.clone(), control.labels.clone());
        let applies = Totals::of([&control.applies]);
        drop(control);
        read(&self.shared, &compiled, &labels, &applies)
    }

    /// The tasks of plugins that run.
    pub fn plugin_tasks(&self) -> Vec<RunningTask> {
        self.running_tasks.all()
    }

    /// Drops replaced revisions that are no longer in use. To be called periodically.
    pub fn drop_retired(&self) {
        let mut control = self.control();
        let (unused, used) = std::mem::take(&mut control.retired)
            .into_iter()
            .partition(|active: &Arc<Active>| Arc::strong_count(active) == 1);
        control.retired = used;
        self.forget_routes(&mut control, false);
        drop(control);
        drop::<Vec<_>>(unused);
    }

    /// The counts of routes, as the metrics show them.
    pub fn shown_routes(&self, compiled: &Compiled) -> ShownRoutes {
        self.series().read(compiled.route_stats().chain([&self.shared.unrouted]))
    }

    /// Records that all counts were shown: those of deleted routes are shown twice.
    pub fn counts_were_shown(&self) {
        self.forget_routes(&mut self.control(), true);
    }

    fn forget_routes(&self, control: &mut Control, shown: bool) {
        let mut series = self.series();
        for route in control.compiled.forget_routes(shown) {
            series.forget(&route);
            // Its last requests may not be in the time series yet.
            if route.traffic.read().is_some() && control.forgotten.len() < MAX_FORGOTTEN {
                control.forgotten.push(route);
            }
        }
    }

    fn series(&self) -> MutexGuard<'_, RouteSeries> {
        // A panic can leave nothing worse behind than wrong counts.
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of replaced revisions that are not dropped yet.
    pub fn retired(&self) -> usize {
        self.control().retired.len()
    }

    /// The listening sockets and their addresses, for a successor. Empty unless the settings allow a handover.
    pub fn sockets(&self) -> Vec<(SocketAddr, Arc<[TcpListener]>)> {
        let control = self.control();
        let held = control.held.iter().flatten();
        held.filter_map(|(number, sockets)| {
            let socket = control.sockets.get(usize::from(*number))?.as_ref()?;
            Some((socket.bound, Arc::clone(sockets)))
        })
        .collect()
    }

    /// All requests since the start.
    fn all_traffic(&self) -> TrafficSums {
        let stats = &self.shared.stats;
        let sum = |counter: fn(&WorkerStats) -> &Counter| -> u64 {
            stats.iter().map(|stats| counter(stats).value()).sum()
        };
        // A request is counted before it is known as failed, and is read so: it never counts as two.
        let requests: u64 = stats.iter().map(|stats| stats.requests()).sum();
        let failed =
            [sum(|stats| &stats.client_errors), sum(|stats| &stats.no_route), sum(|stats| &stats.errors)];
        let durations = Totals::of(stats.iter().map(|stats| &stats.request_duration));
        let [client_errors, no_route, server_errors] = failed;
        // Tunnels and event streams are requests, too, and have no latency.
        let succeeded = requests.saturating_sub(failed.iter().sum());
        TrafficSums {
            ends: [succeeded, client_errors, no_route, server_errors],
            bytes_in: sum(|stats| &stats.body_in),
            bytes_out: sum(|stats| &stats.body_out),
            flags: array::from_fn(|flag| {
                stats.iter().filter_map(|stats| Some(stats.flags.get(flag)?.value())).sum()
            }),
            buckets: durations.buckets().collect(),
            ..TrafficSums::default()
        }
    }

    /// Closes inherited sockets that no listener uses.
    pub fn close_inherited(&self) {
        self.control().inherited.clear();
    }

    /// Drains: accepts connections for `grace` longer, then lets all connections end with their next response, and
    /// waits for that up to `limit` in all. Returns true if all ended.
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

    /// The number of open client connections.
    pub fn active_connections(&self) -> u64 {
        self.shared.stats.iter().map(|stats| stats.active_connections.value()).sum()
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        // The value behind the lock is only replaced as a whole, so poisoning can be ignored.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn generations(&self) -> MutexGuard<'_, Generations> {
        // A panic can leave nothing worse behind than wrong counts.
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets requests see `active` from now on, and has the revision before it dropped later.
    fn swap(&self, active: Active, retired: &mut Vec<Arc<Active>>) {
        retired.push(self.active.swap(Arc::new(active)));
    }

    /// Has the workers release the revision before.
    fn refresh(&self) {
        for worker in &self.workers {
            let _ = worker.send(Command::Refresh);
        }
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

    /// The listeners of `snapshot` with their addresses.
    fn wanted(&self, snapshot: &Snapshot, compiled: &Compiled) -> Vec<Wanted> {
        snapshot
            .of_kind(Kind::Listener, None)
            .filter_map(|resource| {
                let Body::Listener(listener) = resource.body() else { return None };
                let name = resource.key().name.clone();
                let address = self.overrides.get(name.as_str()).copied().unwrap_or(listener.address);
                let tls = compiled.listener_tls(&name).cloned();
                let tracing = compiled.listener_tracing(&name).cloned();
                let access_log = compiled.listener_log(&name).cloned();
                let listener = Listener::clone(listener);
                Some(Wanted { name, address, listener, tls, tracing, access_log })
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
        let plan = SocketPlan::make(
            &control.sockets,
            &mut control.labels,
            self.wanted(&candidate.snapshot, &next),
            self.workers.len(),
            control.draining,
            &control.inherited,
        )?;
        // From here on nothing fails.
        next.activate(&control.services.checking);
        next.active.listeners = plan.active;
        let settings = next.active.listeners.clone();
        {
            let mut generations = self.generations();
            let generation = candidate.snapshot.assignment().generation;
            next.active.period = generations.begin(generation, process_cpu_us());
            mark(&next, &generations);
        }
        self.swap(next.active.clone(), &mut control.retired);
        control.services.span_sinks.retire_others(next.span_sinks());
        control.compiled = next;
        control.sockets = plan.sockets;
        for (socket, listeners) in plan.opened {
            let Some(settings) = settings.get(usize::from(socket)).and_then(Option::as_ref) else { continue };
            if let Some(held) = &mut control.held {
                // Without a spare file descriptor there is nothing to hand over, and everything else goes on.
                let copies: io::Result<Vec<_>> = listeners.iter().map(TcpListener::try_clone).collect();
                held.extend(copies.ok().map(|copies| (socket, copies.into())));
            }
            // There may be more inherited sockets than workers.
            for (worker, listener) in self.workers.iter().cycle().zip(listeners) {
                let settings = Arc::clone(settings);
                // A worker that has ended has logged that.
                let _ = worker.send(Command::Listen { socket, listener, settings });
            }
        }
        control.applies.record(began.elapsed());
        if let Some(held) = &mut control.held {
            held.retain(|socket, _| !plan.closed.contains(socket));
        }
        let closing: Vec<_> = plan.closed.into_iter().flat_map(|socket| self.unlisten(socket)).collect();
        self.refresh();
        // The next revision may bind the address again, so it has to be free when this one is served.
        let deadline = Instant::now() + CLOSE;
        for mut closed in closing {
            while closed.try_recv() == Err(oneshot::error::TryRecvError::Empty) && Instant::now() < deadline {
                thread::sleep(Duration::from_micros(200));
            }
        }
        Ok(())
    }

    fn scope_traffic(&self) -> Vec<ScopeTraffic> {
        let mut control = self.control();
        let (compiled, forgotten) = (control.compiled.clone(), std::mem::take(&mut control.forgotten));
        let [routes, upstreams] = [&control.services.routes, &control.services.upstreams].map(Arc::clone);
        drop(control);
        let mut traffic = vec![ScopeTraffic { scope: TrafficScope::All, sums: self.all_traffic() }];
        let mut add = |scope: fn(Arc<str>) -> TrafficScope, name: Arc<str>, sums: Option<TrafficSums>| {
            traffic.extend(sums.map(|sums| ScopeTraffic { scope: scope(name), sums }));
        };
        // Another route may have the name of a forgotten one by now, and comes after it.
        for stats in forgotten.iter().chain(compiled.route_stats()) {
            add(TrafficScope::Route, Arc::clone(&stats.name), stats.traffic.read());
        }
        for upstream in compiled.active.upstreams.iter() {
            let sums = upstream.stats.traffic.read().map(|mut sums| {
                let view = upstream.members.view();
                let failed = view.targets.iter().filter(|target| target.failed() > 0);
                sums.failed_targets =
                    failed.map(|target| (target.to_string().into(), target.failed())).collect();
                sums
            });
            add(TrafficScope::Upstream, upstream.name.as_str().into(), sums);
        }
        let (consumers, other_consumers) = self.shared.consumers.read();
        for (name, sums) in consumers {
            add(TrafficScope::Consumer, name.as_str().into(), Some(sums));
        }
        add(TrafficScope::Route, OTHERS.into(), routes.others());
        add(TrafficScope::Upstream, OTHERS.into(), upstreams.others());
        add(TrafficScope::Consumer, OTHERS.into(), other_consumers);
        traffic
    }

    fn purge(&self, purge: &Purge) {
        self.purges.carry_out(purge);
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
        let requests = stats.iter().map(|stats| stats.requests()).sum::<u64>();
        let traffic = Traffic {
            requests: requests.saturating_sub(reported.requests),
            errors: errors.saturating_sub(reported.errors),
            no_route: no_route.saturating_sub(reported.no_route),
            client_errors: client_errors.saturating_sub(reported.client_errors),
            p50_us: since.quantile_us(0.5),
            p99_us: since.quantile_us(0.99),
            active_connections: self.active_connections(),
        };
        *reported = ReportedTotals { durations, requests, errors, no_route, client_errors };
        traffic
    }

    fn watch(&self, scopes: &[Scope]) {
        let mut control = self.control();
        let control = &mut *control;
        {
            let mut generations = self.generations();
            let Some(period) = generations.watch(scopes) else { return };
            control.compiled.active.period = period;
            mark(&control.compiled, &generations);
        }
        self.swap(control.compiled.active.clone(), &mut control.retired);
        self.refresh();
    }

    fn series(&self) -> Vec<Series> {
        self.generations().read(process_cpu_us())
    }

    fn answers(&self) -> Answers {
        let stats = &self.shared.stats;
        Answers {
            requests: stats.iter().map(|stats| stats.requests()).sum(),
            errors: stats.iter().map(|stats| stats.errors.value()).sum(),
        }
    }

    fn listeners(&self) -> BTreeMap<String, SocketAddr> {
        let control = self.control();
        let sockets = control.sockets.iter().flatten();
        sockets.map(|socket| (socket.listener.as_str().to_owned(), socket.bound)).collect()
    }
}

/// The most deleted routes whose last requests are kept for the time series, which nobody may read.
const MAX_FORGOTTEN: usize = 4096;

/// The most routes, and the most upstreams, whose requests are counted apart for time series: at most 4,096, and at most 256 MiB.
fn most_counted_apart(workers: usize) -> usize {
    ((256 << 20) / (workers.max(1) * TrafficCounts::SIZE)).min(4096)
}

/// Marks the counters of the watched routes and upstreams, as far as `compiled` has them.
fn mark(compiled: &Compiled, generations: &Generations) {
    for (scope, mark) in generations.watched() {
        if let Some(cells) = compiled.cells(scope) {
            cells.set_mark(mark);
        }
    }
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
        // The last requests have left plugins something to send.
        self.stop_tasks.cancel();
        if self.task_thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the thread for the tasks of plugins panicked");
        }
        // Now all spans are in their queues.
        self.stop_spans.cancel();
        if self.span_thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the thread that exports spans panicked");
        }
    }
}
