//! pgbouncer, a pooler in front of a PostgreSQL server.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::postgres::{Postgres, unprivileged};
use crate::process::{Daemon, find_program, free_port, wait_until};

/// A pooler. It ends when this is dropped.
#[derive(Debug)]
pub struct PgBouncer {
    address: SocketAddr,
    _daemon: Daemon,
    _dir: TempDir,
}

/// When a pooler gives a client's connection to the server to another client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// When the client disconnects.
    Session,
    /// After each transaction.
    Transaction,
}

impl PgBouncer {
    /// Starts a pooler in front of `server`; returns when it accepts connections.
    pub fn start(server: &Postgres, mode: PoolMode) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        // As root it is run by another user.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777))?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (at, port) = (dir.path().display(), address.port());
        let mode = match mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
        };
        let configuration = format!(
            "[databases]
* = host={} port={}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
ignore_startup_parameters = extra_float_digits
logfile = {at}/pgbouncer.log
",
            server.address().ip(),
            server.address().port(),
        );
        // With this type of authentication all clients are this user to the server.
        let configuration = configuration.replace("* = ", "* = user=postgres ");
        let file = dir.path().join("pgbouncer.ini");
        std::fs::write(&file, configuration)?;
        let sbin = || Some(PathBuf::from("/usr/sbin/pgbouncer")).filter(|path| path.is_file());
        let program = find_program("pgbouncer").or_else(sbin).context("pgbouncer is not installed")?;
        let mut command: Command = unprivileged(&program)?;
        command.arg(&file).current_dir(dir.path());
        let daemon = Daemon::spawn("pgbouncer", &command, &dir.path().join("log"))?;
        wait_until(Duration::from_secs(10), || std::net::TcpStream::connect(address).is_ok())
            .with_context(|| format!("pgbouncer does not accept connections:\n{}", daemon.log()))?;
        Ok(Self { address, _daemon: daemon, _dir: dir })
    }

    /// Where it is: `postgres://postgres@127.0.0.1:PORT/postgres`.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address)
    }
}
