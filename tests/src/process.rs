//! Processes that end with the test, and ports for them to listen on.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, kill_process_group, prlimit};

/// A running program. Its process group is killed when this is dropped, and also when the test process itself
/// is killed. When a test panics, the end of its log is printed.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    pid: Pid,
    log: PathBuf,
    exit: Option<ExitStatus>,
}

impl Daemon {
    /// Starts `command` as `name` in a process group of its own; what it prints is appended to the file `log`.
    pub fn spawn(name: &str, command: &Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let mut command = leashed(command);
        command.process_group(0).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = spawn_on_lasting_thread(command).with_context(|| format!("cannot start {name}"))?;
        let pid = Pid::from_child(&child);
        Ok(Self { name: name.to_owned(), child, pid, log: log.to_owned(), exit: None })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it has printed so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    /// True while it has not ended.
    pub fn is_running(&mut self) -> bool {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().ok().flatten();
        }
        self.exit.is_none()
    }

    /// Sends SIGTERM.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    /// Sends any signal to the process itself, not to its group.
    pub fn signal(&mut self, signal: Signal) {
        // A process that was waited for is gone, and its number may be another's.
        if self.is_running() {
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Lets no file of the process grow beyond so many bytes: a write that would is refused, as on a full disk. `None` ends
    /// that. Its log is such a file as well.
    pub fn limit_file_size(&mut self, bytes: Option<u64>) -> Result<()> {
        if self.is_running() {
            let limit = Rlimit { current: bytes, maximum: None };
            prlimit(Some(self.pid), Resource::Fsize, limit)
                .context("the limit on file sizes cannot be set")?;
        }
        Ok(())
    }

    /// Kills its whole group with SIGKILL and waits until it is gone.
    pub fn kill9(&mut self) {
        if self.is_running() {
            let _ = kill_process_group(self.pid, Signal::KILL);
            self.exit = self.child.wait().ok();
        }
    }

    /// Waits until it has ended by itself.
    pub fn wait_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        wait_until(deadline, || !self.is_running())
            .with_context(|| format!("{} still runs after {deadline:?}", self.name))?;
        self.exit.context("it ended without a status")
    }
}

impl Drop for Daemon {
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n");
            eprintln!("--- the last of {}'s log ---\n{tail}\n---", self.name);
        }
    }
}

/// Blocks until `condition` holds; an error after `deadline`.
pub fn wait_until(deadline: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + deadline;
    while !condition() {
        if Instant::now() > end {
            bail!("it did not come to pass within {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A port on 127.0.0.1 that nothing listens on.
///
/// It lies below the range from which the kernel picks ports for outgoing connections: one of that range could be
/// taken by a client while the server that had it is restarted. No port is given twice by one process.
pub fn free_port() -> u16 {
    static GIVEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let port = fastrand::u16(10_000..32_000);
        if !given.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            given.insert(port);
            return port;
        }
    }
}

/// Wraps `command` so that the kernel kills it when the thread that started it is gone, where `setpriv`
/// (util-linux) can ask for that.
fn leashed(command: &Command) -> Command {
    let Some(setpriv) = find_program("setpriv") else { return copied(command.get_program(), command, []) };
    let first = [OsStr::new("--pdeathsig"), OsStr::new("KILL")];
    if command.get_program() == setpriv {
        return copied(setpriv.as_os_str(), command, first);
    }
    let mut wrapped = Command::new(&setpriv);
    wrapped.args(first).arg("--").arg(command.get_program());
    copy_settings(command, &mut wrapped);
    wrapped
}

fn copied<'a>(program: &OsStr, from: &Command, first: impl IntoIterator<Item = &'a OsStr>) -> Command {
    let mut to = Command::new(program);
    to.args(first);
    copy_settings(from, &mut to);
    to
}

fn copy_settings(from: &Command, to: &mut Command) {
    to.args(from.get_args());
    for (key, value) in from.get_envs() {
        match value {
            Some(value) => to.env(key, value),
            None => to.env_remove(key),
        };
    }
    if let Some(dir) = from.get_current_dir() {
        to.current_dir(dir);
    }
}

/// Starts it on a thread that lives as long as the process: the kernel's "parent death" is that of a thread, and
/// a test's thread may end before what it started should.
fn spawn_on_lasting_thread(mut command: Command) -> std::io::Result<Child> {
    type Job = Box<dyn FnOnce() + Send>;
    static JOBS: LazyLock<mpsc::Sender<Job>> = LazyLock::new(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::spawn(move || queue.into_iter().for_each(|job| job()));
        jobs
    });
    let (answer, answered) = mpsc::sync_channel(1);
    let job = Box::new(move || {
        let _ = answer.send(command.spawn());
    });
    let gone = |_| std::io::Error::other("the thread that starts processes is gone");
    JOBS.send(job).map_err(|error| gone(error.to_string()))?;
    answered.recv().map_err(|error| gone(error.to_string()))?
}

/// The program `name` in PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// The program `name` of this workspace, as it was built beside the running test.
pub fn program(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    // target/debug/deps/TEST, or target/debug/PROGRAM
    let found = test.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.with_context(|| {
        let release = if cfg!(debug_assertions) { "" } else { " --release" };
        format!("{name} is not built: run `cargo build --bins{release}` first, as `make test` does")
    })
}
