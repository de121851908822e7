//! The thread that talks to Redis, and the handle by which requests reach it.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::{ErrorKind, RedisError, ServerErrorKind, Value};
use signalbox_config::Name;
use signalbox_plugin::Context;
use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{error, info, warn};

use super::breaker::Breaker;
use super::connect::{Connection, connect};
use super::settings::{Mode, RedisSettings};

/// A way to Redis that plugins share. Its thread ends with it.
pub(crate) struct RedisPool {
    calls: mpsc::Sender<Pending>,
    tasks: mpsc::Sender<Task>,
    breaker: Arc<Breaker>,
    timeout: Duration,
}

/// A script in Lua.
pub(crate) struct Script {
    text: &'static str,
    /// The name that the server gives it: the SHA-1 of its text.
    hash: String,
}

/// A script with its key and its arguments.
pub(crate) struct Call {
    pub(crate) script: &'static Script,
    pub(crate) key: Box<[u8]>,
    pub(crate) arguments: SmallVec<[u64; 12]>,
}

/// Redis did not answer in time, or not as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store is unavailable")]
pub(crate) struct Unavailable;

impl Script {
    pub(crate) fn new(text: &'static str) -> Self {
        Self { text, hash: redis::Script::new(text).get_hash().to_owned() }
    }
}

type Answer = Result<Vec<i64>, Unavailable>;
type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Pending {
    call: Call,
    answer: oneshot::Sender<Answer>,
}

/// The name under which pools are kept.
static SHARED: LazyLock<Name> = LazyLock::new(|| "redis".parse().expect("it is a name"));

/// The number of calls that may wait to be sent. More are refused at once.
const MAX_WAITING: usize = 4096;
/// The number of calls that are under way at once.
const MAX_IN_FLIGHT: usize = 4096;
const MAX_TASKS: usize = 4096;
/// The pauses between attempts to reach a Redis that is away.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);

impl RedisPool {
    /// The pool with these settings, which plugins share.
    pub(crate) fn shared(context: &Context<'_>, settings: &RedisSettings) -> Arc<Self> {
        // Not under the plugin's own name.
        let name = SHARED.clone();
        let shared = context.named(&name);
        shared.state(settings, || Self::start(settings.clone()))
    }

    fn start(settings: RedisSettings) -> Self {
        let (calls, waiting) = mpsc::channel(MAX_WAITING);
        let (tasks, new_tasks) = mpsc::channel(MAX_TASKS);
        let breaker = Arc::new(Breaker::default());
        let timeout = settings.timeout.0;
        let server = Server { settings, waiting, breaker: Arc::clone(&breaker), retry: None };
        let started = std::thread::Builder::new().name("redis".to_owned()).spawn(move || {
            if let Err(error) = run(server, new_tasks) {
                error!(%error, "cannot run the connection to Redis");
            }
        });
        if let Err(error) = started {
            // All calls fail, because nobody receives them.
            error!(%error, "cannot start the thread of the connection to Redis");
        }
        Self { calls, tasks, breaker, timeout }
    }

    /// Runs a script, and returns the integers that it returns. It waits at most the configured time.
    pub(crate) async fn call(&self, call: Call) -> Answer {
        if self.breaker.is_down() {
            return Err(Unavailable);
        }
        // The time in the queue counts too.
        let deadline = Instant::now() + self.timeout;
        let (answer, answered) = oneshot::channel();
        self.calls.try_send(Pending { call, answer }).map_err(|_| Unavailable)?;
        match timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Unavailable),
            Err(_) => {
                self.breaker.miss();
                Err(Unavailable)
            }
        }
    }

    /// Runs `task` on the pool's thread. It is dropped if too many run, and with the pool.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> bool {
        self.tasks.try_send(Box::pin(task)).is_ok()
    }
}

impl fmt::Debug for RedisPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisPool").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

fn run(server: Server, tasks: mpsc::Receiver<Task>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::spawn(run_tasks(tasks));
        server.serve().await;
    });
    Ok(())
}

async fn run_tasks(mut new: mpsc::Receiver<Task>) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            task = new.recv(), if running.len() < MAX_TASKS => match task {
                Some(task) => running.push(task),
                None => return,
            },
            Some(()) = running.next() => {}
        }
    }
}

/// The part of a pool that lives on its thread.
struct Server {
    settings: RedisSettings,
    waiting: mpsc::Receiver<Pending>,
    breaker: Arc<Breaker>,
    /// A call that met a server that is not the primary any more. It is sent once more.
    retry: Option<Pending>,
}

/// The end of a call.
enum Outcome {
    Done,
    /// The server did not answer in time. The caller counts the miss.
    Late,
    /// The server answered with an error.
    Refused(RedisError),
    /// The connection is of no more use.
    Lost(RedisError),
    /// Likewise, and the call was not executed.
    NotExecuted(RedisError, Pending),
}

impl Server {
    /// Serves until the handle is dropped.
    async fn serve(mut self) {
        while let Some(connection) = self.connect().await {
            match self.forward(&connection).await {
                End::HandleDropped => return,
                End::Lost(error) => {
                    info!(%error, "connection to Redis lost");
                    self.breaker.reconnect();
                }
                End::Tripped => warn!(addresses = ?self.settings.addresses, "Redis does not answer in time"),
            }
        }
    }

    /// Connects, however long it takes. `None`: the handle was dropped.
    async fn connect(&mut self) -> Option<Connection> {
        let mut pause = FIRST_PAUSE;
        loop {
            if self.waiting.is_closed() {
                return None;
            }
            match connect(&self.settings).await {
                Ok(connection) => {
                    if self.breaker.up() {
                        info!(addresses = ?self.settings.addresses, "connected to Redis");
                    }
                    return Some(connection);
                }
                Err(error) => {
                    if self.breaker.down() {
                        warn!(addresses = ?self.settings.addresses, %error, "cannot connect to Redis");
                    }
                }
            }
            // The callers have given up.
            while self.waiting.try_recv().is_ok() {}
            self.retry = None;
            sleep(pause).await;
            pause = (2 * pause).min(LAST_PAUSE);
        }
    }

    /// Sends calls over `connection` while it is of use.
    async fn forward(&mut self, connection: &Connection) -> End {
        let mut running = FuturesUnordered::new();
        // Sentinels may know another primary.
        let may_retry = self.settings.mode == Mode::Sentinel;
        let mut is_refused = false;
        if let Some(again) = self.retry.take() {
            running.push(execute(connection.clone(), again, false));
        }
        loop {
            tokio::select! {
                pending = self.waiting.recv(), if running.len() < MAX_IN_FLIGHT => match pending {
                    None => return End::HandleDropped,
                    // Nobody waits any more: Redis is spared the work.
                    Some(pending) if pending.answer.is_closed() => {}
                    Some(pending) => running.push(execute(connection.clone(), pending, may_retry)),
                },
                Some(outcome) = running.next() => match outcome {
                    Outcome::Done => {
                        is_refused = false;
                        self.breaker.hit();
                    }
                    Outcome::Late => {}
                    Outcome::Refused(error) => {
                        // Once, not for each request.
                        if !is_refused {
                            warn!(%error, "Redis refuses a script");
                        }
                        is_refused = true;
                    }
                    Outcome::Lost(error) => return End::Lost(error),
                    Outcome::NotExecuted(error, pending) => {
                        self.retry = Some(pending);
                        return End::Lost(error);
                    }
                },
                () = self.breaker.tripped() => return End::Tripped,
            }
        }
    }
}

/// The reason why a connection is not used any more.
enum End {
    HandleDropped,
    Lost(RedisError),
    Tripped,
}

/// Sends a call; by its text if the server does not know its hash. What comes too late goes to nobody.
async fn execute(mut connection: Connection, pending: Pending, may_retry: bool) -> Outcome {
    let mut result = connection.send(&command("EVALSHA", &pending.call)).await;
    if matches!(&result, Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)) {
        result = connection.send(&command("EVAL", &pending.call)).await;
    }
    match result.and_then(integers) {
        Ok(answer) => {
            let _ = pending.answer.send(Ok(answer));
            Outcome::Done
        }
        // A primary that became a replica.
        Err(error) if may_retry && error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) => {
            Outcome::NotExecuted(error, pending)
        }
        Err(error) if error.is_timeout() => Outcome::Late,
        Err(error) if error.is_unrecoverable_error() || error.is_io_error() => {
            let _ = pending.answer.send(Err(Unavailable));
            Outcome::Lost(error)
        }
        Err(error) => {
            let _ = pending.answer.send(Err(Unavailable));
            Outcome::Refused(error)
        }
    }
}

fn command(name: &str, call: &Call) -> redis::Cmd {
    let mut command = redis::cmd(name);
    match name {
        "EVAL" => command.arg(call.script.text),
        _ => command.arg(&call.script.hash),
    };
    command.arg(1).arg(&*call.key);
    for argument in &call.arguments {
        command.arg(*argument);
    }
    command
}

fn integers(value: Value) -> Result<Vec<i64>, RedisError> {
    let wrong = || RedisError::from((ErrorKind::UnexpectedReturnType, "a script returned no integers"));
    let Value::Array(values) = value else { return Err(wrong()) };
    let integer = |value| if let Value::Int(integer) = value { Ok(integer) } else { Err(wrong()) };
    values.into_iter().map(integer).collect()
}
