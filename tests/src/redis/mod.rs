//! Real Redis servers: single ones, primaries with replicas and sentinels, clusters.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{Daemon, find_program, free_port, wait_until};

/// A Redis server, or a sentinel. Its address stays the same over [`Redis::kill9`] and [`Redis::restart`]; it is gone when this is
/// dropped. It keeps its data in memory only.
#[derive(Debug)]
pub struct Redis {
    // Before the directory, so that the server is gone first.
    server: Option<Daemon>,
    port: u16,
    arguments: Vec<String>,
    clock: Option<File>,
    dir: TempDir,
}

/// Three sentinels that watch a primary by the name `main`.
#[derive(Debug)]
pub struct Sentinels(Vec<Redis>);

/// Three primaries that share the keys.
#[derive(Debug)]
pub struct RedisCluster(Vec<Redis>);

const DEADLINE: Duration = Duration::from_secs(30);

impl Redis {
    /// Starts a server; returns when it answers.
    pub fn start() -> Result<Self> {
        Self::with(&[])
    }

    /// Likewise, with these arguments.
    pub fn with(arguments: &[&str]) -> Result<Self> {
        Self::prepared(arguments)?.started()
    }

    /// Likewise, with a time of day that [`Redis::set_clock`] shifts.
    pub fn with_clock() -> Result<Self> {
        let mut redis = Self::prepared(&[])?;
        let (source, library) = (redis.dir.path().join("clock.c"), redis.dir.path().join("clock.so"));
        std::fs::write(&source, include_str!("clock.c"))?;
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
        let output = compile.output().context("cannot run cc")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let offset = redis.dir.path().join("offset");
        std::fs::write(&offset, 0_i64.to_ne_bytes())?;
        redis.clock = Some(File::options().write(true).open(&offset)?);
        redis.started()
    }

    /// Starts a replica of this server; returns when it has the data.
    pub fn replica(&self) -> Result<Self> {
        let replica = Self::with(&["--replicaof", "127.0.0.1", &self.port.to_string()])?;
        wait_until(DEADLINE, || {
            replica.command(&["INFO", "replication"]).is_ok_and(|info| info.contains("master_link_status:up"))
        })
        .context("the replica does not follow")?;
        Ok(replica)
    }

    /// Makes it a replica of `primary`, as sentinels do, but at once.
    pub fn follow(&self, primary: &Self) -> Result<()> {
        self.command(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]).map(drop)
    }

    fn prepared(arguments: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("signalbox-redis-").tempdir()?;
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Ok(Self { server: None, port: free_port(), arguments, clock: None, dir })
    }

    fn started(mut self) -> Result<Self> {
        self.restart()?;
        Ok(self)
    }

    /// Starts it again after [`Redis::kill9`]; returns when it answers.
    pub fn restart(&mut self) -> Result<()> {
        let program = find_program("redis-server")
            .context("Redis is not installed. On Debian and Ubuntu: apt-get install redis-server")?;
        let mut command = Command::new(program);
        let is_sentinel = self.arguments.first().is_some_and(|argument| argument.ends_with(".conf"));
        command.args(&self.arguments).args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        if !is_sentinel {
            command.args(["--save", "", "--appendonly", "no"]);
        }
        command.arg("--dir").arg(self.dir.path());
        if self.clock.is_some() {
            command.env("LD_PRELOAD", self.dir.path().join("clock.so"));
            command.env("CLOCK_OFFSET_FILE", self.dir.path().join("offset"));
        }
        self.server = Some(Daemon::spawn("redis", &command, &self.dir.path().join("log"))?);
        // A port that accepts is enough: with a password, commands would be refused.
        wait_until(DEADLINE, || TcpStream::connect(self.address()).is_ok()).context("Redis does not start")
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Runs a command by `redis-cli`; its answer without formatting.
    pub fn command(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new("redis-cli");
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]).args(words);
        let output = command.output().context("cannot run redis-cli")?;
        let answer = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(output.status.success(), "{words:?}: {answer} {}", String::from_utf8_lossy(&output.stderr));
        Ok(answer)
    }

    /// Shifts its time of day by so many seconds from the true one.
    pub fn set_clock(&self, offset: i64) -> Result<()> {
        let clock = self.clock.as_ref().context("it was started without a clock of its own")?;
        clock.write_all_at(&offset.to_ne_bytes(), 0)?;
        Ok(())
    }

    /// Kills it like a crash. Its data is lost.
    pub fn kill9(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill9();
        }
    }

    /// Stops it from doing anything, connections stay open.
    pub fn freeze(&mut self) {
        self.signal(Signal::STOP);
    }

    /// Ends [`Redis::freeze`].
    pub fn thaw(&mut self) {
        self.signal(Signal::CONT);
    }

    fn signal(&mut self, signal: Signal) {
        if let Some(server) = &mut self.server {
            server.signal(signal);
        }
    }
}

impl Sentinels {
    /// Starts them; returns when they agree about the primary and know its replicas, so many.
    pub fn of(primary: &Redis, replicas: usize) -> Result<Self> {
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            let mut sentinel = Redis::prepared(&[])?;
            let file: PathBuf = sentinel.dir.path().join("sentinel.conf");
            // A failover takes as long as a few heartbeats.
            let watched = primary.port;
            let lines = format!(
                "sentinel monitor main 127.0.0.1 {watched} 2\nsentinel down-after-milliseconds main 500\n\
                 sentinel failover-timeout main 3000\n"
            );
            std::fs::write(&file, lines)?;
            sentinel.arguments = vec![file.display().to_string(), "--sentinel".to_owned()];
            sentinels.push(sentinel.started()?);
        }
        let agrees = |sentinel: &Redis| {
            let state = sentinel.command(&["SENTINEL", "MASTER", "main"]).unwrap_or_default();
            let value = |name: &str| state.lines().skip_while(|line| *line != name).nth(1).map(str::to_owned);
            value("num-other-sentinels").as_deref() == Some("2")
                && value("num-slaves") == Some(replicas.to_string())
        };
        wait_until(DEADLINE, || sentinels.iter().all(agrees)).context("the sentinels do not agree")?;
        Ok(Self(sentinels))
    }

    /// Makes a replica the primary, and the primary a replica.
    pub fn failover(&self) -> Result<()> {
        let answer = self.0[0].command(&["SENTINEL", "FAILOVER", "main"])?;
        ensure!(answer == "OK", "{answer}");
        Ok(())
    }

    /// Where they listen.
    pub fn addresses(&self) -> Vec<String> {
        self.0.iter().map(|sentinel| sentinel.address().to_string()).collect()
    }
}

impl RedisCluster {
    /// Starts it; returns when it serves all keys.
    pub fn start() -> Result<Self> {
        let arguments = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
        let nodes: Vec<Redis> = (0..3)
            .map(|_| {
                let mut node = Redis::prepared(&arguments)?;
                // Its second port would lie above those that are free.
                node.arguments.extend(["--cluster-port".to_owned(), free_port().to_string()]);
                node.started()
            })
            .collect::<Result<_>>()?;
        let cluster = Self(nodes);
        let addresses = cluster.addresses();
        let mut create = vec!["--cluster", "create"];
        create.extend(addresses.iter().map(String::as_str));
        create.push("--cluster-yes");
        let output = Command::new("redis-cli").args(&create).output().context("cannot run redis-cli")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let is_ok = |node: &Redis| {
            node.command(&["CLUSTER", "INFO"]).is_ok_and(|info| info.contains("cluster_state:ok"))
        };
        wait_until(DEADLINE, || cluster.0.iter().all(is_ok)).context("the cluster does not serve")?;
        Ok(cluster)
    }

    /// Where its nodes listen.
    pub fn addresses(&self) -> Vec<String> {
        self.0.iter().map(|node| node.address().to_string()).collect()
    }

    /// Its nodes.
    pub fn nodes(&mut self) -> &mut [Redis] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_killed_restarted_frozen_and_shifted_in_time() {
        let mut redis = Redis::with_clock().unwrap();
        let seconds = |redis: &Redis| -> i64 {
            redis.command(&["TIME"]).unwrap().lines().next().unwrap().parse().unwrap()
        };
        let now = seconds(&redis);
        redis.set_clock(3600).unwrap();
        assert!(seconds(&redis) >= now + 3600);
        redis.set_clock(-3600).unwrap();
        assert!(seconds(&redis) < now);
        redis.command(&["SET", "key", "value"]).unwrap();
        redis.freeze();
        redis.thaw();
        assert_eq!(redis.command(&["GET", "key"]).unwrap(), "value");
        redis.kill9();
        assert!(redis.command(&["GET", "key"]).is_err(), "it is away");
        redis.restart().unwrap();
        assert_eq!(redis.command(&["GET", "key"]).unwrap(), "");
    }
}
