//! Listens to the notifications of PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::postgres::{PgListener, PgPool, PgPoolOptions};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::deadline::CALL;
use super::hint::ProxyHints;
use super::hosts::Hosts;
use super::interface::StoreError;
use super::postgres_error::failed;

/// The tasks that the listener wakes.
#[derive(Clone, Default)]
pub(super) struct Hints {
    pub(super) revisions: Arc<Notify>,
    pub(super) access: Arc<Notify>,
    pub(super) purges: Arc<Notify>,
    pub(super) proxies: Arc<ProxyHints>,
}

/// Listens for what other processes tell, for ever; connects again when the connection is lost. Each time it looks which
/// server is to be used, and has the pool use it.
pub(super) async fn listen(hosts: Arc<Hosts>, pool: PgPool, hints: Hints) {
    let mut pause = RECONNECT_FIRST;
    let last = if hosts.are_several() { RECONNECT_LAST_OF_SEVERAL } else { RECONNECT_LAST };
    loop {
        let error = match listen_once(&hosts, &pool, &hints, &mut pause).await {
            Ok(()) => "the connection was closed".into(),
            Err(error) => error.to_string(),
        };
        tracing::debug!(error, "the control plane gets no notifications of commits; it polls once a second");
        // Full jitter: after an outage not all control planes come at once.
        tokio::time::sleep(pause.mul_f64(fastrand::f64())).await;
        pause = (pause * 2).min(last);
    }
}

/// Listens until the connection is lost, or is to a server that is no longer to be used.
async fn listen_once(
    hosts: &Hosts,
    users: &PgPool,
    hints: &Hints,
    pause: &mut Duration,
) -> Result<(), StoreError> {
    hosts.connect().await?.close().await.map_err(failed)?;
    users.set_connect_options(hosts.current());
    // The listener connects through a pool only; this one has just its connection.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(CALL)
        .connect_lazy_with(hosts.current());
    let mut listener = PgListener::connect_with(&pool).await.map_err(failed)?;
    listener.eager_reconnect(false);
    listener
        .listen_all([REVISION_CHANNEL, ACCESS_CHANNEL, PROXY_CHANNEL, PURGE_CHANNEL])
        .await
        .map_err(failed)?;
    *pause = RECONNECT_FIRST;
    // Notifications that came while nobody listened are lost.
    hints.revisions.notify_one();
    hints.access.notify_one();
    hints.purges.notify_one();
    hints.proxies.notify_all();
    let (prove_alive, answer) =
        if hosts.are_several() { (PROVE_ALIVE_OF_SEVERAL, ACQUIRE_TIMEOUT) } else { (PROVE_ALIVE, CALL) };
    loop {
        match timeout(prove_alive, listener.try_recv()).await {
            Ok(Ok(Some(notification))) => match notification.channel() {
                ACCESS_CHANNEL => hints.access.notify_one(),
                PURGE_CHANNEL => hints.purges.notify_one(),
                PROXY_CHANNEL => hints.proxies.notify(notification.payload()),
                _ => hints.revisions.notify_one(),
            },
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return Err(failed(error)),
            // Nothing was said for a while: a peer that vanished without a word looks the same.
            Err(_) => match timeout(answer, hosts.is_fit(&mut listener)).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => return Err(StoreError::ReadOnly),
                Ok(Err(error)) => return Err(failed(error)),
                Err(_) => return Err(failed(sqlx::Error::PoolTimedOut)),
            },
        }
    }
}

const REVISION_CHANNEL: &str = "signalbox_revision";
pub(super) const ACCESS_CHANNEL: &str = "signalbox_access";
const PROXY_CHANNEL: &str = "signalbox_proxies";
const PURGE_CHANNEL: &str = "signalbox_purges";

/// To get a connection, from the pool or a new one.
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// After so long without a notification the listener asks whether the server is still there.
const PROVE_ALIVE: Duration = Duration::from_secs(20);
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_LAST: Duration = Duration::from_secs(5);
/// Where there is another server to go to, it is to be found soon.
const PROVE_ALIVE_OF_SEVERAL: Duration = Duration::from_secs(2);
const RECONNECT_LAST_OF_SEVERAL: Duration = Duration::from_secs(1);
