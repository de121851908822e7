//! The program: reads the flags, starts the parts, and ends them in order.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::args::Args;
use crate::auth::{Credentials, TokenFlags};
use crate::board::{Board, Sharing};
use crate::health_report::HealthReports;
use crate::metrics::Metrics;
use crate::outbound::Collector;
use crate::publish::Publisher;
use crate::rest::{self, Services};
use crate::rollout::Rollouts;
use crate::serve::{self, Site};
use crate::spans::{Spans, follow_rollouts};
use crate::stats::Stats;
use crate::store::{self, FileLock, KeySource, Store, StoreError};
use crate::webhook::Webhooks;
use crate::writer::{Author, Mode, Operation, Rights, WriteError, Writer};
use crate::xds::{Limits, Xds};
use anyhow::{Context as _, Result, bail};
use serde_json::json;
use signalbox_config::Kind;
use signalbox_plugin::{Registry, RegistryError};
use signalbox_process::limits::{self, OpenFiles};
use signalbox_process::tls::{Reloading, ServerFiles};
use signalbox_process::{accept, arguments, health, log};
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

/// How long the parts may take to end.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// Open files: each proxy takes one, and each client of the admin API; 64 are for the database, the log and the runtime.
const OPEN_FILES: OpenFiles = OpenFiles { least: 64 + 64, wanted: 64 + 4096 };

/// Threads beside those of the two runtimes, which have one for each core: SQLite's, and those that may block.
const OTHER_THREADS: u64 = 4;

/// Connections to the xDS address that may wait to be accepted: a whole fleet may connect at once.
const XDS_BACKLOG: u32 = 20_000;

/// Runs the program of a control plane that knows these plugin types, with the arguments of the process.
pub fn run(types: Result<Registry, RegistryError>) -> ExitCode {
    signalbox_process::run(|| start_and_run(arguments::parse(), &types?))
}

fn start_and_run(args: Args, types: &Registry) -> Result<()> {
    if args.openapi {
        return Ok(writeln!(std::io::stdout(), "{}", rest::openapi_json())?);
    }
    if args.process.check_health {
        return health::check(&args.admin_address.into(), args.admin_tls_cert.as_deref());
    }
    log::start(&args.process.log_level, args.process.log_format);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    limits::require_address_space(OTHER_THREADS.saturating_add(2 * cores as u64))?;
    OPEN_FILES.require(|limit| format!("{} proxies and clients at once", limit.saturating_sub(64)))?;
    let runtime = new_runtime("main")?;
    // A change wakes the streams of all proxies at once. On threads of their own, they delay each other, and neither a write nor a call:
    // the kernel divides the cores.
    let streams = new_runtime("streams")?;
    let result = runtime.block_on(run_locked(args, types, streams.handle()));
    streams.shutdown_timeout(Duration::from_secs(1));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// A runtime with a thread for each core.
fn new_runtime(name: &'static str) -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().thread_name(name).enable_all().build()
}

async fn run_locked(args: Args, types: &Registry, streams: &Handle) -> Result<()> {
    let token_flags = TokenFlags {
        admin: args.admin_token.clone(),
        admin_file: args.admin_token_file.clone(),
        proxy: args.proxy_token.clone(),
        proxy_file: args.proxy_token_file.clone(),
    };
    // Checked before the database is touched: what is wrong with tokens needs no database to be told.
    token_flags.read().map_err(anyhow::Error::msg)?;
    // Kept to the end: another control plane must not use the file before this one has let go of it.
    let _lock = FileLock::take(&args.database_url).context("the database cannot be opened")?;
    let mut store = None;
    let result = run_until_signal(args, token_flags, types, streams, &mut store).await;
    if let Some(store) = store
        && let Err(error) = store.close().await
    {
        tracing::warn!(%error, "the database could not be closed");
    }
    result
}

async fn run_until_signal(
    args: Args,
    token_flags: TokenFlags,
    types: &Registry,
    streams: &Handle,
    store: &mut Option<Arc<dyn Store>>,
) -> Result<()> {
    limits::survive_file_size_limit()?;
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(on_hangup(signal(SignalKind::hangup())?));
    let mut tasks = JoinSet::new();
    let started = start(args, token_flags, types, streams, &shutdown, &mut tasks, store);
    tokio::select! {
        started = started => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        // None of them ends of itself.
        Some(ended) = tasks.join_next() => ended.context("a part of the control plane failed")??,
    }
    tracing::info!("stopping");
    shutdown.cancel();
    let end = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(END_DEADLINE, end).await.is_err() {
        tracing::warn!("some parts of the control plane did not end in time");
    }
    Ok(())
}

/// SIGHUP, which terminals and log rotation send, ends nothing.
async fn on_hangup(mut signals: Signal) {
    while signals.recv().await.is_some() {
        tracing::info!("SIGHUP is ignored; certificate files are read again when they change");
    }
}

/// Loads the certificates of the admin address and of the xDS address, and warns where there are none.
fn load_tls(args: &Args) -> Result<[Option<Arc<Reloading<ServerConfig>>>; 2]> {
    let admin_files =
        args.admin_tls_cert.clone().zip(args.admin_tls_key.clone()).map(|(certificate, key)| ServerFiles {
            name: "admin",
            certificate,
            key,
            client_ca: None,
            alpn: b"http/1.1",
        });
    let tls = admin_files.map(Reloading::server).transpose().context("--admin-tls-cert, --admin-tls-key")?;
    if tls.is_none() && !args.admin_address.ip().is_loopback() {
        tracing::warn!(address = %args.admin_address, "the admin address is open to other hosts without TLS");
    }
    let xds_files = args.xds_tls_cert.clone().zip(args.xds_tls_key.clone()).map(|(certificate, key)| {
        let client_ca = args.xds_tls_client_ca.clone().map(|path| ("xds_client_ca", path));
        ServerFiles { name: "xds", certificate, key, client_ca, alpn: b"h2" }
    });
    let xds_tls = xds_files.map(Reloading::server).transpose();
    let xds_tls = xds_tls.context("--xds-tls-cert, --xds-tls-key, --xds-tls-client-ca")?;
    if xds_tls.is_none() && !args.xds_address.ip().is_loopback() {
        tracing::warn!(address = %args.xds_address, "the xDS address is open to other hosts without TLS");
    }
    Ok([tls, xds_tls])
}

/// Starts every part as a task; `opened` is to be closed when they have ended.
async fn start(
    args: Args,
    token_flags: TokenFlags,
    types: &Registry,
    streams: &Handle,
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<Result<()>>,
    opened: &mut Option<Arc<dyn Store>>,
) -> Result<()> {
    let metrics = Arc::new(Metrics::default());
    let collector = args.collector().map_err(anyhow::Error::msg)?;
    let [tls, xds_tls] = load_tls(&args)?;
    let is_tls = tls.is_some();
    for files in [&tls, &xds_tls].into_iter().flatten() {
        metrics.watch_certificates(Arc::clone(files));
        part(tasks, follow_files(Arc::clone(files), shutdown.clone()));
    }

    // Answers probes while the database is opened.
    let site = Site::default();
    let admin = TcpListener::bind(args.admin_address)
        .await
        .with_context(|| format!("the admin address {} cannot be bound", args.admin_address))?;
    tracing::info!(address = %admin.local_addr()?, tls = is_tls, "the admin API listens");
    part(tasks, serve::serve(admin, tls, site.clone(), shutdown.clone()));

    let store = open(&args.database_url, &site).await?;
    *opened = Some(Arc::clone(&store));
    let store = store::seal(store, key_source(&args)?).await?;
    if args.new_epoch {
        let head = store.new_epoch().await.context("a new epoch could not be started")?;
        tracing::warn!(epoch = %head.epoch, revision = head.number, "a new epoch was started");
    }
    let credentials = Credentials::load(Arc::clone(&store), Arc::clone(&metrics), token_flags).await?;
    for (name, text) in credentials.bootstrap().await.context("the first tokens cannot be stored")? {
        writeln!(std::io::stdout(), "{name} token: {}", text.0)?;
    }
    let publisher = Publisher::start(Arc::clone(&store), Arc::clone(&metrics), types)
        .await
        .context("the set cannot be loaded")?;
    create_first_listener(&publisher).await?;
    let shared = !args.database_url.starts_with("sqlite:");
    let replica = args.replica_name.unwrap_or_else(|| format!("{}:{}", host_name(), args.xds_address.port()));
    let sharing = if shared { Sharing::Shared } else { Sharing::Alone };
    let board =
        Board::open(Arc::clone(&store), &replica, sharing).await.context("the board cannot be read")?;

    let rollouts =
        Rollouts::new(Arc::clone(&store), Arc::clone(&publisher), Arc::clone(&board), Arc::clone(&metrics));

    let stats = Stats::new(Arc::clone(&store), Arc::clone(board.instance()), sharing);

    part(tasks, Arc::clone(&publisher).follow(shutdown.clone()));
    part(tasks, Arc::clone(&credentials).follow(shutdown.clone()));
    part(tasks, Arc::clone(&board).run(shutdown.clone()));
    part(tasks, Arc::clone(&rollouts).run(shutdown.clone()));
    part(tasks, Arc::clone(&stats).run(shutdown.clone()));
    let health = HealthReports::new(
        Arc::clone(&store),
        Arc::clone(&publisher),
        Arc::clone(&board),
        Arc::clone(&stats),
    );
    part(tasks, Arc::clone(&health).run(shutdown.clone()));
    let webhooks = Webhooks::new(
        Arc::clone(&publisher),
        Arc::clone(&board),
        Arc::clone(&rollouts),
        Arc::clone(&health),
        replica.clone(),
        args.webhook_secrets_dir,
        shutdown.clone(),
    );
    part(tasks, Arc::clone(&webhooks).run());
    let spans = start_spans(collector, &replica, (&publisher, &rollouts), shutdown, tasks);

    // Bound only now: who has not loaded the set must not be connected to.
    let listener = {
        let _streams = streams.enter();
        accept::listen(args.xds_address, XDS_BACKLOG)
            .with_context(|| format!("the xDS address {} cannot be bound", args.xds_address))?
    };
    tracing::info!(address = %listener.local_addr()?, tls = xds_tls.is_some(), "the xDS server listens");
    let xds = Xds::new(
        Arc::clone(&publisher),
        Arc::clone(&board),
        Arc::clone(&credentials),
        Arc::clone(&rollouts),
        Arc::clone(&stats),
        Arc::clone(&metrics),
        Limits::default(),
    );
    let serving = streams.spawn(xds.serve(listener, xds_tls, shutdown.clone()));
    tasks.spawn(async { serving.await.context("the xDS server failed") });

    let (router, feed) = rest::router(Services {
        publisher,
        store,
        credentials,
        board,
        rollouts,
        stats,
        health,
        webhooks,
        spans,
        metrics,
        replica,
        tls: is_tls,
        profiling: args.process.profiling,
        shutdown: shutdown.clone(),
    });
    part(tasks, feed);
    site.open(router);
    Ok(())
}

/// Starts what sends spans.
fn start_spans(
    collector: Option<Collector>,
    replica: &str,
    (publisher, rollouts): (&Arc<Publisher>, &Arc<Rollouts>),
    shutdown: &CancellationToken,
    tasks: &mut JoinSet<Result<()>>,
) -> Arc<Spans> {
    let (spans, exporter) = Spans::new(collector, replica);
    if let Some(exporter) = exporter {
        part(tasks, exporter.run(shutdown.clone()));
        let (publisher, rollouts) = (Arc::clone(publisher), Arc::clone(rollouts));
        part(tasks, follow_rollouts(Arc::clone(&spans), publisher, rollouts, shutdown.clone()));
    }
    spans
}

/// Reads certificate files again when they change, until `shutdown`.
async fn follow_files(files: Arc<Reloading<ServerConfig>>, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = files.follow(|_| {}) => {}
    }
}

/// Runs a part that cannot fail.
fn part(tasks: &mut JoinSet<Result<()>>, running: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(async {
        running.await;
        Ok(())
    });
}

/// Opens the database; one that is not there yet is waited for.
async fn open(url: &str, site: &Site) -> Result<Arc<dyn Store>> {
    loop {
        match store::open(url).await {
            Ok(store) => return Ok(store),
            Err(StoreError::Unavailable(error)) => {
                tracing::warn!(error, "the database does not answer; trying again");
                site.wait_for("the database does not answer");
            }
            Err(error @ StoreError::ReadOnly) => {
                tracing::warn!("{error}; trying again");
                site.wait_for("the database is read-only");
            }
            Err(error) => bail!(anyhow::Error::new(error).context("the database cannot be opened")),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Where the key for secrets is.
fn key_source(args: &Args) -> Result<KeySource> {
    if let Some(key) = &args.secrets_key {
        return Ok(KeySource::Given(key.clone()));
    }
    if let Some(path) = &args.secrets_key_file {
        let read = std::fs::read_to_string(path);
        let read = read.with_context(|| format!("--secrets-key-file {} cannot be read", path.display()))?;
        return Ok(KeySource::Given(read));
    }
    Ok(store::key_beside(&args.database_url).map_or(KeySource::None, KeySource::Made))
}

/// The first revision of a new database: a listener, so that a route is all that is missing.
async fn create_first_listener(publisher: &Arc<Publisher>) -> Result<()> {
    if publisher.current().snapshot.id().number > 0 {
        return Ok(());
    }
    let author = Author {
        name: "signalbox".into(),
        message: "The default listener".to_owned(),
        action: "first start".to_owned(),
        urgent: None,
        rights: Rights::Administrator,
    };
    let spec = json!({"name": "http", "address": "0.0.0.0:8080"});
    let create = Operation::Create { kind: Kind::Listener, spec };
    match Writer::new(Arc::clone(publisher)).write(author, create, Mode::Store).await {
        // Another control plane was faster.
        Ok(_) | Err(WriteError::Exists(_) | WriteError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error).context("the first revision cannot be made"),
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "control-plane".to_owned(),
        name => name.to_owned(),
    }
}
