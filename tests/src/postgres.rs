//! A real PostgreSQL server, in a directory of its own.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{Daemon, find_program, free_port, wait_until};

/// A PostgreSQL server. Its address stays the same over [`Postgres::kill9`] and [`Postgres::start`]; server and
/// data are gone when this is dropped.
#[derive(Debug)]
pub struct Postgres {
    // Before the directory, so that the server is gone first.
    server: Option<Daemon>,
    programs: PathBuf,
    port: u16,
    durability: Durability,
    dir: TempDir,
}

/// Says if a commit waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It does not: survives the death of the server, not of the machine. For tests.
    Process,
    /// It does, as in production. For measurements.
    Machine,
}

/// How long a server may take to start or to stop.
const DEADLINE: Duration = Duration::from_secs(60);

impl Postgres {
    /// Makes a database cluster and starts its server. Blocks until it answers, one to three seconds.
    ///
    /// Fails when PostgreSQL is not installed, and says so.
    pub fn new() -> Result<Self> {
        Self::with(Durability::Process)
    }

    /// Likewise, with a choice.
    pub fn with(durability: Durability) -> Result<Self> {
        let programs = find_programs()?;
        let dir = tempfile::Builder::new().prefix("signalbox-postgres-").tempdir()?;
        if let Some(user) = other_user()? {
            chown(dir.path(), Some(user.uid), Some(user.gid))?;
        }
        let postgres = Self { server: None, programs, port: free_port(), durability, dir };
        let mut initdb = postgres.program("initdb")?;
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]);
        initdb.arg("--pgdata").arg(postgres.data());
        postgres.started_after(initdb)
    }

    /// Makes a standby of this server, and starts it: it follows what is written here, and takes no writes until it is
    /// promoted.
    pub fn standby(&self) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("signalbox-postgres-").tempdir()?;
        if let Some(user) = other_user()? {
            chown(dir.path(), Some(user.uid), Some(user.gid))?;
        }
        let standby = Self {
            server: None,
            programs: self.programs.clone(),
            port: free_port(),
            durability: self.durability,
            dir,
        };
        let backup = standby.backup_of(self)?;
        standby.started_after(backup)
    }

    /// After [`Postgres::kill9`] or [`Postgres::stop`], starts it anew as a standby of `primary`, at the same address.
    pub fn rejoin(&mut self, primary: &Self) -> Result<()> {
        std::fs::remove_dir_all(self.data())?;
        run(self.backup_of(primary)?)?;
        self.start()
    }

    /// Makes a standby the server that takes writes; returns when it does.
    pub fn promote(&self) -> Result<()> {
        let promoted = self.sql("SELECT pg_promote(true, 60)")?;
        ensure!(promoted == "t", "it was not promoted in time");
        Ok(())
    }

    fn backup_of(&self, primary: &Self) -> Result<Command> {
        let mut backup = self.program("pg_basebackup")?;
        backup
            .args(["--host=127.0.0.1", "--username=postgres", "--no-sync", "--checkpoint=fast"])
            .args(["--wal-method=stream", "--write-recovery-conf"])
            .arg(format!("--port={}", primary.port))
            .arg("--pgdata")
            .arg(self.data());
        Ok(backup)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn program(&self, name: &str) -> Result<Command> {
        let mut command = unprivileged(&self.programs.join(name))?;
        command.current_dir(self.dir.path());
        Ok(command)
    }

    fn started_after(mut self, command: Command) -> Result<Self> {
        run(command)?;
        self.start()?;
        Ok(self)
    }

    /// Where it is: `postgres://postgres@127.0.0.1:PORT/postgres`.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Makes an empty database beside the others, and gives its URL: for tests that share a server.
    pub fn database(&self, name: &str) -> Result<String> {
        self.sql(&format!("CREATE DATABASE \"{name}\""))?;
        Ok(format!("postgres://postgres@{}/{name}", self.address()))
    }

    /// Runs a statement by `psql` in the database `postgres`; the answer is unaligned, without headings.
    pub fn sql(&self, statement: &str) -> Result<String> {
        self.sql_in("postgres", statement)
    }

    /// Likewise, in another database.
    pub fn sql_in(&self, database: &str, statement: &str) -> Result<String> {
        let output = Command::new(self.programs.join("psql"))
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"])
            .args(["--host=127.0.0.1", "--username=postgres"])
            .arg(format!("--port={}", self.port))
            .arg(format!("--dbname={database}"))
            .arg(format!("--command={statement}"))
            .output()
            .context("cannot run psql")?;
        ensure!(output.status.success(), "{statement}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The server's process id; `None` while it is down.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Daemon::pid)
    }

    /// Starts it again after [`Postgres::kill9`] or [`Postgres::stop`]; returns when it answers.
    pub fn start(&mut self) -> Result<()> {
        let mut last_log = String::new();
        let came = wait_until(DEADLINE, || match self.try_start() {
            Ok(server) => {
                self.server = Some(server);
                true
            }
            // After a kill, the old server's children may need a moment to notice.
            Err(error) => {
                last_log = format!("{error:#}");
                false
            }
        });
        came.with_context(|| format!("PostgreSQL does not start: {last_log}"))
    }

    /// Kills it like a crash.
    pub fn kill9(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill9();
        }
    }

    /// Stops it: open connections are closed, what was committed is on disk.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            // "Fast shutdown": https://www.postgresql.org/docs/current/server-shutdown.html
            server.signal(Signal::INT);
            server.wait_exit(DEADLINE)?;
        }
        Ok(())
    }

    fn try_start(&self) -> Result<Daemon> {
        let mut command = self.program("postgres")?;
        command
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.dir.path())
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(["-c", "max_connections=200", "-c", "shared_buffers=32MB"]);
        if self.durability == Durability::Process {
            command.args(["-c", "fsync=off"]);
        }
        let mut server = Daemon::spawn("postgres", &command, &self.dir.path().join("log"))?;
        let mut ended = false;
        wait_until(DEADLINE, || {
            ended = !server.is_running();
            ended || self.answers()
        })?;
        if ended {
            bail!("it ended: {}", server.log());
        }
        Ok(server)
    }

    fn answers(&self) -> bool {
        Command::new(self.programs.join("pg_isready"))
            .args(["--quiet", "--host=127.0.0.1", "--username=postgres"])
            .arg(format!("--port={}", self.port))
            .status()
            .is_ok_and(|status| status.success())
    }
}

impl fmt::Display for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url())
    }
}

fn run(mut command: Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Where `initdb`, `postgres` and `psql` are: Debian keeps the servers of all versions out of PATH.
fn find_programs() -> Result<PathBuf> {
    let has_all = |dir: &PathBuf| {
        ["initdb", "postgres", "psql", "pg_isready", "pg_basebackup"]
            .iter()
            .all(|name| dir.join(name).is_file())
    };
    let mut dirs: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path().join("bin")))
        .collect();
    dirs.sort();
    let in_path = find_program("postgres").and_then(|file| file.canonicalize().ok());
    dirs.extend(in_path.as_deref().and_then(Path::parent).map(Path::to_owned));
    dirs.into_iter().rev().find(has_all).context(
        "PostgreSQL is not installed: initdb, postgres, psql, pg_isready and pg_basebackup must be in PATH or in \
         /usr/lib/postgresql/VERSION/bin. On Debian and Ubuntu: apt-get install postgresql",
    )
}

/// A command that does not run as root, which PostgreSQL refuses.
pub(crate) fn unprivileged(program: &Path) -> Result<Command> {
    let Some(user) = other_user()? else { return Ok(Command::new(program)) };
    let setpriv = find_program("setpriv").context(
        "as root, the tests need setpriv to run PostgreSQL as another user. On Debian: apt-get install util-linux",
    )?;
    let mut command = Command::new(setpriv);
    command
        .args([format!("--reuid={}", user.uid), format!("--regid={}", user.gid)])
        .arg("--clear-groups")
        .arg("--")
        .arg(program);
    Ok(command)
}

struct User {
    uid: u32,
    gid: u32,
}

/// Whom to run the server as when the tests run as root; `None` when they do not.
fn other_user() -> Result<Option<User>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let find = |wanted: &str| {
        users.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, ..] = fields.as_slice() else { return None };
            (*name == wanted).then_some(User { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
        })
    };
    let user = find("postgres").or_else(|| find("nobody"));
    user.map(Some).context("there is neither a user postgres nor nobody to run PostgreSQL as")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_committed_outlives_a_kill() {
        let mut postgres = Postgres::new().unwrap();
        postgres.database("other").unwrap();
        postgres.sql_in("other", "CREATE TABLE t (x int)").unwrap();
        postgres.sql_in("other", "INSERT INTO t VALUES (42)").unwrap();
        postgres.kill9();
        assert!(postgres.sql("SELECT 1").is_err(), "it is away");
        postgres.start().unwrap();
        assert_eq!(postgres.sql_in("other", "SELECT x FROM t").unwrap(), "42");
        postgres.stop().unwrap();
        assert!(postgres.sql("SELECT 1").is_err(), "it is away again");
    }
}
