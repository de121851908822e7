//! The process: from its arguments to its end.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use signalbox_process::limits::{self, OpenFiles};
use signalbox_process::{health, log};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::{self, Admin};
use crate::args::Args;
use crate::proxy::{Proxy, Settings};
use crate::source::{self, ControlPlanes, DataPlane, Source, StartError, Status, Tls};
use crate::takeover::{self, Handed, Predecessor};
use crate::telemetry::access_log;

/// How often what nobody uses any more is looked for.
const FORGET: Duration = Duration::from_secs(1);

/// Threads that are no workers: the control runtime's, those that may block, the access log's.
const OTHER_THREADS: u64 = 4;

/// Open files that are no connection of a client or to a target: the admin server's connections, logs, name lookups.
const OTHER_FILES: u64 = 128;

/// Likewise, for each worker: a few listeners' sockets.
const WORKER_FILES: u64 = 16;

/// With fewer client connections than this a proxy does not start.
const LEAST_CONNECTIONS: u64 = 16;

/// Client connections of one worker that the limit on open files should allow.
const WORKER_CONNECTIONS: u64 = 2048;

/// Client connections that the limit on open files should allow, however many workers there are.
const MOST_WANTED: u64 = 32_768;

/// Runs a proxy until it is told to end, and has drained.
pub fn run(args: Args) -> Result<()> {
    if args.process.check_health {
        return health::check(args.admin_address, None);
    }
    log::start(&args.process);
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
    let result = runtime.block_on(serve(args, workers));
    // Lookups of names cannot be broken off, and nobody waits for them.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn serve(args: Args, workers: usize) -> Result<()> {
    let max_connections = max_connections(workers, args.max_connections)?;
    let access_log = access_log::start(&args.access_log).context("cannot open the access log")?;
    let (log_sender, log_thread) = access_log.unzip();
    tokio::spawn(hang_up(log_sender.as_ref().map(access_log::Sender::reopening)));
    let taken = match &args.takeover {
        Some(path) => takeover::take(path)
            .with_context(|| format!("cannot take over from the proxy at {}", path.display()))?,
        None => None,
    };
    let (mut inherited, predecessor) = taken.unzip();
    let admin_socket = inherited.as_mut().and_then(|handed| admin_socket(handed, args.admin_address));
    let proxy = Proxy::start(Settings {
        workers,
        listener_overrides: args.listener_overrides(),
        max_requests: args.max_requests.get(),
        max_queue_delay: args.max_queue_delay.0,
        access_log: log_sender,
        max_connections,
        zone: args.zone().map(str::to_owned),
        dns_servers: args.dns_servers.clone(),
        inherited: inherited.unwrap_or_default(),
        hands_over: args.takeover.is_some(),
    })
    .context("cannot start the workers")?;
    let is_successor = admin_socket.is_some();
    let listener = match admin_socket {
        Some(socket) => Ok(socket),
        None => std::net::TcpListener::bind(args.admin_address),
    };
    let listener = listener
        .and_then(|listener| {
            listener.set_nonblocking(true)?;
            let copy = listener.try_clone()?;
            Ok((TcpListener::from_std(listener)?, copy))
        })
        .with_context(|| format!("cannot listen on the admin address {}", args.admin_address));
    let (listener, admin_copy) = listener?;
    info!(address = %listener.local_addr()?, workers, max_connections, "admin server");
    if !listener.local_addr()?.ip().is_loopback() {
        warn!("whoever reaches the admin address can read the configuration and drain this proxy");
    }
    let (status, watched) = watch::channel(Status::default());
    let serving = watched.clone();
    let drain = CancellationToken::new();
    let admin = Admin { proxy: Arc::clone(&proxy), status: watched, drain: drain.clone() };
    let mut readable = serving.clone();
    let admin = tokio::spawn(async move {
        // Until this proxy serves it is the one before that is asked.
        if is_successor && readable.wait_for(|status| status.serving.is_some()).await.is_err() {
            return;
        }
        admin::serve(listener, Arc::new(admin)).await;
    });
    let forgetting = tokio::spawn(forget_retired(Arc::clone(&proxy)));
    let stop_source = CancellationToken::new();
    let data_plane: Arc<dyn DataPlane> = Arc::clone(&proxy) as _;
    let (drain_grace, drain_timeout) = (args.drain_grace, args.drain_timeout);
    let replaced = CancellationToken::new();
    if let Some(path) = args.takeover.clone() {
        let succession = Succession { path, predecessor, admin_copy, replaced: replaced.clone() };
        tokio::spawn(succession.run(Arc::downgrade(&proxy), serving));
    }
    let mut source = tokio::spawn(source::run(source_of(args), data_plane, status, stop_source.clone()));
    tokio::select! {
        signal = end_signal() => {
            signal?;
            drain.cancel();
        }
        () = drain.cancelled() => {}
        () = replaced.cancelled() => {
            drain.cancel();
            // Its successor answers there.
            admin.abort();
        }
        ended = &mut source => return source_ended(ended),
    }
    info!(timeout = ?drain_timeout, replaced = replaced.is_cancelled(), "draining");
    // Who replaces it accepts already.
    let drain_grace = if replaced.is_cancelled() { Duration::ZERO } else { drain_grace };
    stop_source.cancel();
    if proxy.drain(drain_grace, drain_timeout).await {
        info!("drained");
    } else {
        warn!(connections = proxy.active_connections(), "the time for draining is over");
    }
    forgetting.abort();
    admin.abort();
    if tokio::time::timeout(Duration::from_secs(2), source).await.is_err() {
        warn!("the source of configuration does not end");
    }
    // Once the workers are gone nobody writes to the access log.
    let _ = (forgetting.await, admin.await);
    if let Some(proxy) = Arc::into_inner(proxy) {
        drop(proxy);
        let until = Instant::now() + LAST_LINES;
        while log_thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if Instant::now() > until {
                warn!("the last lines of the access log are not taken");
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    Ok(())
}

/// How long the last lines of the access log may take to be written.
const LAST_LINES: Duration = Duration::from_secs(5);

/// How often the proxy before is told that it is replaced.
const FAREWELLS: usize = 3;

/// From the proxy before this one to the one after it.
struct Succession {
    path: PathBuf,
    predecessor: Option<Predecessor>,
    admin_copy: std::net::TcpListener,
    /// Cancelled once a successor serves.
    replaced: CancellationToken,
}

impl Succession {
    /// Lets the predecessor go once this proxy serves, and then waits for a successor.
    async fn run(self, proxy: Weak<Proxy>, mut status: watch::Receiver<Status>) {
        if status.wait_for(|status| status.serving.is_some()).await.is_err() {
            return;
        }
        // It may wait for a successor for good, and has nothing that must be ended in order.
        std::thread::spawn(move || self.succeed(&proxy));
    }

    fn succeed(self, proxy: &Weak<Proxy>) {
        if let Some(proxy) = proxy.upgrade() {
            proxy.forget_inherited();
        }
        let mut before = self.predecessor;
        for _ in 0..FAREWELLS {
            let Some(predecessor) = before.take() else { break };
            match predecessor.replaced() {
                Ok(()) => info!("took over from the proxy before"),
                Err(error) => {
                    warn!(%error, "the proxy before does not know that it is replaced");
                    // It may have waited for too long, and be there even so.
                    before = takeover::take(&self.path).ok().flatten().map(|(_, predecessor)| predecessor);
                }
            }
        }
        let offer = match takeover::Offer::at(&self.path) {
            Ok(offer) => offer,
            Err(error) => {
                error!(%error, path = %self.path.display(), "no successor will be able to take over");
                return;
            }
        };
        offer.serve(|| {
            let mut sockets = proxy.upgrade().map(|proxy| proxy.sockets()).unwrap_or_default();
            if let (Ok(address), Ok(copy)) = (self.admin_copy.local_addr(), self.admin_copy.try_clone()) {
                sockets.push((address, Arc::new([copy])));
            }
            sockets
        });
        self.replaced.cancel();
    }
}

/// The admin server's socket among those that were handed over.
fn admin_socket(handed: &mut Vec<Handed>, address: SocketAddr) -> Option<std::net::TcpListener> {
    let index = handed.iter().position(|handed| handed.address == address)?;
    handed.swap_remove(index).sockets.pop()
}

/// How many clients' connections the limit on open files allows, when each needs one more to a target; or `asked`.
fn max_connections(workers: usize, asked: Option<NonZeroU64>) -> Result<u64> {
    let workers = u64::try_from(workers).unwrap_or(u64::MAX);
    // Each listener has a socket for each worker, and each worker an epoll instance.
    let others = OTHER_FILES.saturating_add(workers.saturating_mul(WORKER_FILES));
    let allowed = |limit: u64| limit.saturating_sub(others) / 2;
    let asked = asked.map(NonZeroU64::get);
    let wanted = asked.unwrap_or(workers.saturating_mul(WORKER_CONNECTIONS).min(MOST_WANTED));
    let files = OpenFiles {
        least: others.saturating_add(2 * LEAST_CONNECTIONS),
        wanted: others.saturating_add(wanted.saturating_mul(2)),
    };
    let limit = files.require(|limit| format!("{} client connections at once", allowed(limit)))?;
    Ok(asked.unwrap_or(allowed(limit)))
}

fn source_ended(ended: Result<Result<(), StartError>, tokio::task::JoinError>) -> Result<()> {
    ended.context("the source of configuration panicked")?.context("cannot get a configuration")?;
    Ok(())
}

async fn end_signal() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// On SIGHUP, which who moves logs sends: the access log's file is opened anew.
async fn hang_up(reopen: Option<Arc<AtomicBool>>) {
    let Ok(mut signals) = signal(SignalKind::hangup()) else { return };
    while signals.recv().await.is_some() {
        match &reopen {
            Some(reopen) => {
                info!("SIGHUP: the access log is opened anew");
                reopen.store(true, Ordering::Relaxed);
            }
            None => info!("SIGHUP: there is no access log"),
        }
    }
}

async fn forget_retired(proxy: Arc<Proxy>) {
    let mut interval = tokio::time::interval(FORGET);
    loop {
        interval.tick().await;
        let proxy = Arc::clone(&proxy);
        let forgotten: JoinHandle<()> = tokio::task::spawn_blocking(move || proxy.forget_retired());
        if forgotten.await.is_err() {
            warn!("taking an old revision apart panicked");
        }
    }
}

fn source_of(args: Args) -> Source {
    match args.config {
        Some(path) => Source::File { path, fleet: args.fleet.as_str().to_owned() },
        None => Source::ControlPlanes(ControlPlanes {
            addresses: args.control_plane,
            token: args.token,
            tls: Tls { ca: args.tls_ca, identity: args.tls_cert.zip(args.tls_key) },
            node_id: args.node_id,
            fleet: args.fleet.as_str().to_owned(),
            labels: args.labels.into_iter().map(|label| (label.key, label.value)).collect(),
            data_dir: args.data_dir,
        }),
    }
}
