//! The proxy process: from its arguments to its exit.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use signalbox_plugin::{Blobs, Registry};
use signalbox_process::admin_address::AdminAddress;
use signalbox_process::limits::{self, OpenFiles};
use signalbox_process::{health, log};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::{self, Access, Admin, AdminListener};
use crate::args::Args;
use crate::hot_restart::{self, InheritedSockets, Predecessor};
use crate::proxy::{Proxy, Settings};
use crate::source::{self, BlobDir, ControlPlanes, CrashLoops, DataPlane, Source, StartError, Status, Tls};
use crate::telemetry::access_log;

/// The interval at which unused state is released.
const FORGET_INTERVAL: Duration = Duration::from_secs(1);

/// Threads that are not workers: the control runtime's, those that may block, the access log's and its look-up of a name, that of plugins'
/// tasks, and the one that exports spans.
const OTHER_THREADS: u64 = 7;

/// Open files that are not connections of clients or to targets: the admin server's connections, logs, name lookups.
const OTHER_FILES: u64 = 128;

/// The same per worker: a few listeners' sockets.
const WORKER_FILES: u64 = 16;

/// Pipes of one worker at most: as many bodies for clients that are slower than their targets pass without a copy.
const WORKER_PIPES: u64 = 256;

/// One of this many pairs of files is for a pipe, and the others are for connections.
const PAIRS_FOR_A_PIPE: u64 = 32;

/// The minimum number of client connections without which a proxy does not start.
const MIN_CONNECTIONS: u64 = 16;

/// The number of client connections per worker that the limit on open files should allow.
const WORKER_CONNECTIONS: u64 = 2048;

/// The number of client connections that the limit on open files should allow at most, however many workers there are.
const MAX_WANTED_CONNECTIONS: u64 = 32_768;

/// Runs a proxy until it is told to end and has drained.
pub fn run(args: Args, types: Registry) -> Result<()> {
    if args.process.check_health {
        return health::check(&args.admin_address, None);
    }
    log::start(&args.process.log_level, args.process.log_format);
    args.check()?;
    let workers = match args.workers {
        Some(workers) => workers.get(),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    limits::require_address_space(OTHER_THREADS.saturating_add(workers as u64))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(serve(args, types, workers));
    // Name lookups cannot be cancelled, and nothing waits for them.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn serve(args: Args, types: Registry, workers: usize) -> Result<()> {
    limits::survive_file_size_limit()?;
    let OpenFilesUse { max_connections, pipes } = use_open_files(workers, args.max_connections)?;
    let access_log = access_log::start(&args.access_log)
        .with_context(|| format!("cannot open the access log {:?} (--access-log)", args.access_log))?;
    let (log_sender, log_thread) = access_log.unzip();
    tokio::spawn(reopen_log_on_sighup(log_sender.as_ref().map(access_log::Sender::reopening)));
    let (mut inherited, predecessor) = take_over(args.takeover.as_deref())?.unzip();
    let is_successor = predecessor.is_some();
    let admin_socket = inherited.as_mut().and_then(|inherited| admin_socket(inherited, &args.admin_address));
    let blobs = Arc::new(BlobDir::new(args.data_dir.join("blobs")));
    let proxy = Proxy::start(Settings {
        types: types.clone(),
        blobs: Blobs::new(blobs.clone()),
        workers,
        listener_overrides: args.listener_overrides(),
        max_requests: args.max_requests.get(),
        max_queue_delay: args.max_queue_delay.0,
        access_log: log_sender,
        max_connections,
        pipes,
        zone: args.zone().map(str::to_owned),
        dns_servers: args.dns_servers.clone(),
        inherited: inherited.unwrap_or_default(),
        hands_over: args.takeover.is_some(),
        metrics_routes: args.metrics_routes,
    })
    .context("cannot start the workers")?;
    let (listener, admin_copy) = AdminListener::open(admin_socket, &args.admin_address, is_successor)
        .with_context(|| format!("cannot listen on the admin address {}", args.admin_address))?;
    let admin_address = listener.address(&args.admin_address).to_string();
    info!(address = admin_address, workers, max_connections, "admin server");
    let access = access(&args, &listener);
    let (status, watched) = watch::channel(Status::default());
    let serving = watched.clone();
    let drain = CancellationToken::new();
    let retry = Arc::new(Notify::new());
    let admin = Admin {
        proxy: Arc::clone(&proxy),
        status: watched,
        drain: drain.clone(),
        retry: Arc::clone(&retry),
        access,
        profiling: args.process.profiling,
    };
    let mut readable = serving.clone();
    let admin = tokio::spawn(async move {
        // Until this proxy serves, its predecessor answers.
        if is_successor && readable.wait_for(|status| status.serving.is_some()).await.is_err() {
            return;
        }
        admin::serve(listener, Arc::new(admin)).await;
    });
    let forgetting = tokio::spawn(drop_retired(Arc::clone(&proxy)));
    let stop_source = CancellationToken::new();
    let data_plane: Arc<dyn DataPlane> = Arc::clone(&proxy) as _;
    let (drain_grace, drain_timeout) = (args.drain_grace, args.drain_timeout);
    let replaced = CancellationToken::new();
    if let Some(path) = args.takeover.clone() {
        let restart = HotRestart { path, predecessor, admin_copy, replaced: replaced.clone() };
        tokio::spawn(restart.run(Arc::downgrade(&proxy), serving));
    }
    // From here on a signal is an orderly end, before the first start marker is written.
    let end_signal = end_signal()?;
    let source = source_of(args, admin_address, types, blobs, retry);
    let mut source = tokio::spawn(source::run(source, data_plane, status, stop_source.clone()));
    tokio::select! {
        () = end_signal => drain.cancel(),
        () = drain.cancelled() => {}
        () = replaced.cancelled() => {
            drain.cancel();
            // The successor answers at this address.
            admin.abort();
        }
        ended = &mut source => return source_ended(ended),
    }
    info!(timeout = ?drain_timeout, replaced = replaced.is_cancelled(), "draining");
    // The successor accepts connections already.
    let drain_grace = if replaced.is_cancelled() { Duration::ZERO } else { drain_grace };
    stop_source.cancel();
    if proxy.drain(drain_grace, drain_timeout).await {
        info!("drained");
    } else {
        warn!(connections = proxy.active_connections(), "the drain timed out");
    }
    forgetting.abort();
    admin.abort();
    if tokio::time::timeout(Duration::from_secs(2), source).await.is_err() {
        warn!("the source of configuration did not stop in time");
    }
    // Once the workers have ended, nothing writes to the access log.
    let _ = (forgetting.await, admin.await);
    // The connections of the admin server end with it, but not within the same moment.
    let until = Instant::now() + LAST_CONNECTIONS;
    while Arc::strong_count(&proxy) > 1 && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if let Some(proxy) = Arc::into_inner(proxy) {
        drop(proxy);
        log_written(log_thread.as_ref()).await;
    }
    Ok(())
}

/// Takes the sockets of the proxy that runs at this path, if there is one.
fn take_over(path: Option<&Path>) -> Result<Option<(Vec<InheritedSockets>, Predecessor)>> {
    let Some(path) = path else { return Ok(None) };
    hot_restart::take(path).with_context(|| format!("cannot take over from the proxy at {}", path.display()))
}

/// How long the connections of the admin server may take to end.
const LAST_CONNECTIONS: Duration = Duration::from_secs(1);

/// The rules for clients of the admin server.
fn access(args: &Args, listener: &AdminListener) -> Access {
    let access = Access { tokens: args.admin_token.clone(), guards_metrics: args.guard_metrics };
    if access.tokens.is_empty() && listener.is_open_to_other_hosts() {
        warn!(
            "the admin server has no token (--admin-token): other hosts can read health and metrics, and nothing else"
        );
    }
    access
}

/// How long writing the last lines of the access log may take.
const LOG_CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits until the last lines of the access log are written.
async fn log_written(thread: Option<&std::thread::JoinHandle<()>>) {
    let until = Instant::now() + LOG_CLOSE_TIMEOUT;
    while thread.is_some_and(|thread| !thread.is_finished()) {
        if Instant::now() > until {
            warn!("the last lines of the access log were not written in time");
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The number of tries to tell the predecessor that it is replaced.
const REPLACED_TRIES: usize = 3;

/// A hot restart's roles: successor of one proxy, and then predecessor of another.
struct HotRestart {
    path: PathBuf,
    predecessor: Option<Predecessor>,
    /// `None`: the admin server has a Unix socket, which each process makes anew.
    admin_copy: Option<std::net::TcpListener>,
    /// Cancelled once a successor serves.
    replaced: CancellationToken,
}

impl HotRestart {
    /// Tells the predecessor that it is replaced once this proxy serves, and then waits for a successor.
    async fn run(self, proxy: Weak<Proxy>, mut status: watch::Receiver<Status>) {
        if status.wait_for(|status| status.serving.is_some()).await.is_err() {
            return;
        }
        // This thread may wait for a successor forever, and holds nothing that needs an orderly shutdown.
        std::thread::spawn(move || self.succeed(&proxy));
    }

    fn succeed(self, proxy: &Weak<Proxy>) {
        if let Some(proxy) = proxy.upgrade() {
            proxy.close_inherited();
        }
        let mut before = self.predecessor;
        for _ in 0..REPLACED_TRIES {
            let Some(predecessor) = before.take() else { break };
            match predecessor.replaced() {
                Ok(()) => info!("took over from the previous proxy"),
                Err(error) => {
                    warn!(%error, "the previous proxy could not be told that it is replaced");
                    // The predecessor may have stopped waiting for this successor, and still run.
                    before = hot_restart::take(&self.path).ok().flatten().map(|(_, predecessor)| predecessor);
                }
            }
        }
        let offer = match hot_restart::Offer::at(&self.path) {
            Ok(offer) => offer,
            Err(error) => {
                error!(%error, path = %self.path.display(), "no successor will be able to take over");
                return;
            }
        };
        offer.serve(|| {
            let mut sockets = proxy.upgrade().map(|proxy| proxy.sockets()).unwrap_or_default();
            if let Some(admin) = &self.admin_copy
                && let (Ok(address), Ok(copy)) = (admin.local_addr(), admin.try_clone())
            {
                sockets.push((address, Arc::new([copy])));
            }
            sockets
        });
        self.replaced.cancel();
    }
}

/// Takes the admin server's socket out of the inherited ones.
fn admin_socket(
    inherited: &mut Vec<InheritedSockets>,
    address: &AdminAddress,
) -> Option<std::net::TcpListener> {
    let AdminAddress::Tcp(address) = address else { return None };
    let index = inherited.iter().position(|inherited| inherited.address == *address)?;
    inherited.swap_remove(index).sockets.pop()
}

/// The planned use of the open files that the process may have.
struct OpenFilesUse {
    /// Client connections at once.
    max_connections: u64,
    /// Pipes of each worker.
    pipes: usize,
}

/// Divides the limit on open files: a client's connection needs one more to a target, and a pipe has two ends. `configured` overrides
/// the number of connections.
fn use_open_files(workers: usize, configured: Option<NonZeroU64>) -> Result<OpenFilesUse> {
    let workers = u64::try_from(workers).unwrap_or(u64::MAX);
    // Each listener has a socket per worker, and each worker an epoll instance.
    let others = OTHER_FILES.saturating_add(workers.saturating_mul(WORKER_FILES));
    let most_pipes = workers.saturating_mul(WORKER_PIPES);
    let pairs = |limit: u64| limit.saturating_sub(others) / 2;
    let pipes = |limit: u64| (pairs(limit) / PAIRS_FOR_A_PIPE).min(most_pipes);
    let allowed = |limit: u64| pairs(limit) - pipes(limit);
    let needed = |connections: u64| {
        let pipes = (connections / (PAIRS_FOR_A_PIPE - 1)).min(most_pipes);
        others.saturating_add(connections.saturating_add(pipes).saturating_mul(2))
    };
    let configured = configured.map(NonZeroU64::get);
    let wanted = configured.unwrap_or(workers.saturating_mul(WORKER_CONNECTIONS).min(MAX_WANTED_CONNECTIONS));
    let files = OpenFiles { least: needed(MIN_CONNECTIONS), wanted: needed(wanted) };
    let limit = files.require(|limit| format!("{} client connections at once", allowed(limit)))?;
    Ok(OpenFilesUse {
        max_connections: configured.unwrap_or(allowed(limit)),
        pipes: usize::try_from(pipes(limit) / workers.max(1)).unwrap_or(usize::MAX),
    })
}

fn source_ended(ended: Result<Result<(), StartError>, tokio::task::JoinError>) -> Result<()> {
    ended.context("the source of configuration panicked")?.context("cannot get a configuration")?;
    Ok(())
}

/// Catches the signals that end the process, from now on. The future is ready once one has come.
fn end_signal() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Reopens the access log's file on SIGHUP, which log rotation sends.
async fn reopen_log_on_sighup(reopen: Option<Arc<AtomicBool>>) {
    let Ok(mut signals) = signal(SignalKind::hangup()) else { return };
    while signals.recv().await.is_some() {
        match &reopen {
            Some(reopen) => {
                info!("SIGHUP: the access log is reopened");
                reopen.store(true, Ordering::Relaxed);
            }
            None => info!("SIGHUP: there is no access log"),
        }
    }
}

async fn drop_retired(proxy: Arc<Proxy>) {
    let mut interval = tokio::time::interval(FORGET_INTERVAL);
    loop {
        interval.tick().await;
        let proxy = Arc::clone(&proxy);
        let forgotten: JoinHandle<()> = tokio::task::spawn_blocking(move || proxy.drop_retired());
        if forgotten.await.is_err() {
            warn!("dropping an old revision panicked");
        }
    }
}

fn source_of(
    args: Args,
    admin_address: String,
    types: Registry,
    blobs: Arc<BlobDir>,
    retry: Arc<Notify>,
) -> Source {
    match args.config {
        Some(path) => Source::File { path, fleet: args.fleet.as_str().to_owned(), types },
        None => Source::ControlPlanes(Box::new(ControlPlanes {
            addresses: args.control_plane,
            token: args.token,
            tls: Tls { ca: args.tls_ca, identity: args.tls_cert.zip(args.tls_key) },
            node_id: args.node_id.map(|id| id.to_string()),
            fleet: args.fleet.as_str().to_owned(),
            types,
            labels: args.labels.into_iter().map(|label| (label.key, label.value)).collect(),
            admin_address,
            data_dir: args.data_dir,
            blobs,
            crash_loops: CrashLoops {
                crash_window: args.crash_window,
                proven_after: args.proven_after,
                retry,
            },
        })),
    }
}
