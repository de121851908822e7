//! Connects to Redis: to one server, to the primary that sentinels name, or to a cluster.

use std::time::Duration;

use super::settings::{Mode, RedisSettings, TlsSettings, host_and_port};
use crate::reference::{ReferenceError, resolve};
use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo as _, RedisConnectionInfo, TlsCertificates, TlsMode, Value,
};

/// A connection; clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// The reason why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error(transparent)]
    Redis(#[from] redis::RedisError),
    #[error(transparent)]
    Secret(#[from] ReferenceError),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

impl Connection {
    pub(super) async fn send(&mut self, command: &Cmd) -> redis::RedisResult<Value> {
        let answer = match self {
            Self::Server(connection) => connection.req_packed_command(command).await,
            Self::Cluster(connection) => connection.req_packed_command(command).await,
        };
        answer.and_then(Value::extract_error)
    }
}

/// The least time for each step of connecting, however short the time of a call is.
const MIN_TIMEOUT: Duration = Duration::from_millis(500);

/// Makes a connection over which an answer came within the time of a call.
pub(super) async fn connect(settings: &RedisSettings) -> Result<Connection, ConnectError> {
    let timeout = settings.timeout.0.max(MIN_TIMEOUT);
    let connection = async {
        match settings.mode {
            Mode::Single => to_server(settings, timeout).await,
            Mode::Sentinel => to_primary(settings, timeout).await,
            Mode::Cluster => to_cluster(settings, timeout).await,
        }
    };
    // Servers that are away are asked one after another.
    let whole = timeout * (settings.addresses.len() as u32 + 2);
    let connection = tokio::time::timeout(whole, connection).await;
    let mut connection = connection.map_err(|_| ConnectError::Timeout(whole))??;
    let ping = redis::cmd("PING");
    let answer = tokio::time::timeout(settings.timeout.0, connection.send(&ping)).await;
    answer.map_err(|_| ConnectError::Timeout(settings.timeout.0))??;
    Ok(connection)
}

async fn to_server(settings: &RedisSettings, timeout: Duration) -> Result<Connection, ConnectError> {
    let address = addresses(settings).into_iter().next();
    let info = address.unwrap_or(ConnectionAddr::Tcp(String::new(), 0)).into_connection_info()?;
    let info = info.set_redis_settings(login(settings)?);
    let client = match certificates(settings.tls.as_ref())? {
        None => Client::open(info)?,
        Some(certificates) => Client::build_with_tls(info, certificates)?,
    };
    let connection =
        client.get_multiplexed_async_connection_with_config(&config(timeout, settings.timeout.0)).await?;
    Ok(Connection::Server(connection))
}

async fn to_primary(settings: &RedisSettings, timeout: Duration) -> Result<Connection, ConnectError> {
    let service = settings.service.as_deref().unwrap_or_default();
    let mut builder = SentinelClientBuilder::new(addresses(settings), service, SentinelServerType::Master)?
        .set_client_to_redis_db(settings.database.into());
    if let Some(username) = &settings.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = resolve(settings.password.as_ref())? {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(username) = &settings.sentinel_username {
        builder = builder.set_client_to_sentinel_username(username);
    }
    if let Some(password) = resolve(settings.sentinel_password.as_ref())? {
        builder = builder.set_client_to_sentinel_password(password);
    }
    if let Some(certificates) = certificates(settings.tls.as_ref())? {
        builder = builder
            .set_client_to_redis_tls_mode(TlsMode::Secure)
            .set_client_to_redis_certificates(certificates.clone())
            .set_client_to_sentinel_tls_mode(TlsMode::Secure)
            .set_client_to_sentinel_certificates(certificates);
    }
    let mut sentinels = builder.build()?;
    let config = config(timeout, settings.timeout.0);
    Ok(Connection::Server(sentinels.get_async_connection_with_config(&config).await?))
}

async fn to_cluster(settings: &RedisSettings, timeout: Duration) -> Result<Connection, ConnectError> {
    let nodes: Result<Vec<ConnectionInfo>, _> =
        addresses(settings).into_iter().map(ConnectionAddr::into_connection_info).collect();
    let mut builder = ClusterClientBuilder::new(nodes?)
        .connection_timeout(timeout)
        .response_timeout(settings.timeout.0)
        // One for the redirection, one for a node that is gone.
        .retries(2)
        .min_retry_wait(1)
        .max_retry_wait(10);
    if let Some(username) = &settings.username {
        builder = builder.username(username);
    }
    if let Some(password) = resolve(settings.password.as_ref())? {
        builder = builder.password(password);
    }
    if let Some(certificates) = certificates(settings.tls.as_ref())? {
        builder = builder.tls(TlsMode::Secure).certs(certificates);
    }
    let client = builder.build()?;
    Ok(Connection::Cluster(client.get_async_connection().await?))
}

fn config(timeout: Duration, response: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(timeout)).set_response_timeout(Some(response))
}

fn addresses(settings: &RedisSettings) -> Vec<ConnectionAddr> {
    let addresses = settings.addresses.iter().filter_map(|address| host_and_port(address));
    addresses
        .map(|(host, port)| match settings.tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        })
        .collect()
}

fn login(settings: &RedisSettings) -> Result<RedisConnectionInfo, ConnectError> {
    let mut login = RedisConnectionInfo::default().set_db(settings.database.into());
    if let Some(username) = &settings.username {
        login = login.set_username(username);
    }
    if let Some(password) = resolve(settings.password.as_ref())? {
        login = login.set_password(password);
    }
    Ok(login)
}

fn certificates(tls: Option<&TlsSettings>) -> Result<Option<TlsCertificates>, ConnectError> {
    let Some(tls) = tls else { return Ok(None) };
    let key = resolve(tls.private_key.as_ref())?;
    let client_tls = tls.certificate.clone().zip(key).map(|(certificate, key)| ClientTlsConfig {
        client_cert: certificate.into_bytes(),
        client_key: key.into_bytes(),
    });
    Ok(Some(TlsCertificates { client_tls, root_cert: tls.ca.clone().map(String::into_bytes) }))
}
