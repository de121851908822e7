//! The thread that runs the tasks of plugins, with connections of its own.

use std::collections::BTreeMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{LocalBoxFuture, Shared as SharedFuture};
use signalbox_plugin::tasks::{Spawner, Work};
use signalbox_plugin::{Logger, TaskContext};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, warn};

use crate::http::outbound;
use crate::http::worker_context::{Shared, WorkerContext};

/// A task that is to be run until it is over or cancelled.
pub struct NewTask {
    name: String,
    log: Logger,
    /// The time that it has once it is told to end.
    grace: Duration,
    work: Work,
    cancelled: CancellationToken,
}

/// Hands tasks to the thread.
pub struct TaskSender(mpsc::UnboundedSender<NewTask>);

/// The tasks that wait for the thread.
pub type TaskReceiver = mpsc::UnboundedReceiver<NewTask>;

/// A task that runs, as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningTask {
    /// The plugin that has started it.
    pub plugin: String,
    pub name: String,
    /// How often it has panicked.
    pub panics: u64,
    /// True while it waits to be started anew after a panic.
    pub waits: bool,
}

/// The tasks that run.
#[derive(Debug, Clone, Default)]
pub struct RunningTasks(Arc<Mutex<TaskTable>>);

#[derive(Debug, Default)]
struct TaskTable {
    next: u64,
    tasks: BTreeMap<u64, RunningTask>,
}

/// The entry of a task, which ends with it.
struct Entry {
    tasks: RunningTasks,
    number: u64,
}

impl RunningTasks {
    /// All of them, the oldest first.
    pub fn all(&self) -> Vec<RunningTask> {
        self.table().tasks.values().cloned().collect()
    }

    fn add(&self, plugin: String, name: String) -> Entry {
        let mut table = self.table();
        let number = table.next;
        table.next += 1;
        table.tasks.insert(number, RunningTask { plugin, name, panics: 0, waits: false });
        Entry { tasks: self.clone(), number }
    }

    fn table(&self) -> MutexGuard<'_, TaskTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn change(&self, change: impl FnOnce(&mut RunningTask)) {
        self.tasks.table().tasks.get_mut(&self.number).map(change);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.tasks.table().tasks.remove(&self.number);
    }
}

/// A running task; dropping it tells the task to end.
struct Handle {
    _cancel: DropGuard,
}

/// The pause before a task that panicked is started anew: from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A task that ran for so long has recovered.
const RECOVERED: Duration = Duration::from_secs(60);

/// The interval at which expired connections are closed and an old revision is released.
const SWEEP: Duration = Duration::from_secs(1);

/// The two ends between those who start tasks and the thread.
pub fn channel() -> (TaskSender, TaskReceiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (TaskSender(sender), receiver)
}

impl Spawner for TaskSender {
    fn spawn(&self, name: String, log: Logger, grace: Duration, work: Work) -> Box<dyn Send + Sync> {
        let cancelled = CancellationToken::new();
        let handle = Handle { _cancel: cancelled.clone().drop_guard() };
        // The thread is gone only when the proxy ends.
        let _ = self.0.send(NewTask { name, log, grace, work, cancelled });
        Box::new(handle)
    }
}

/// Runs the tasks that come until `stop`, and then those that have something to finish, for as long as each may. `index` is the
/// number by which the thread counts.
pub fn run(
    index: usize,
    shared: Arc<Shared>,
    mut tasks: TaskReceiver,
    known: &RunningTasks,
    stop: &CancellationToken,
) -> io::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    runtime.block_on(async {
        let context = Rc::new(WorkerContext::new(index, shared));
        tokio::task::spawn_local(Rc::clone(&context.deadlines).run());
        tokio::task::spawn_local(sweep(Rc::clone(&context)));
        let ending = stop.child_token();
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                task = tasks.recv() => match task {
                    Some(task) => {
                        let entry = known.add(task.log.plugin().to_string(), task.name.clone());
                        running.spawn_local(supervise(task, entry, Rc::clone(&context), ending.clone()));
                    }
                    None => break,
                },
                Some(_) = running.join_next() => {}
            }
        }
        ending.cancel();
        while running.join_next().await.is_some() {}
    });
    Ok(())
}

/// Runs a task until it returns or has ended as it was told, and starts it anew when it panics.
async fn supervise(task: NewTask, entry: Entry, context: Rc<WorkerContext>, ending: CancellationToken) {
    let NewTask { name, log, grace, work, cancelled } = task;
    let end = async move {
        tokio::select! {
            () = cancelled.cancelled() => {}
            () = ending.cancelled() => {}
        }
    };
    let end: SharedFuture<LocalBoxFuture<'static, ()>> = end.boxed_local().shared();
    let mut pause = FIRST_PAUSE;
    loop {
        let clock = context.shared.clock.clone();
        let began = Instant::now();
        let task = TaskContext::new(clock, outbound::latest(&context), log.clone(), end.clone());
        let mut attempt = Box::pin(AssertUnwindSafe(async { work(task).await }).catch_unwind());
        tokio::select! {
            () = end.clone() => {
                if !grace.is_zero() && tokio::time::timeout(grace, attempt).await.is_err() {
                    warn!(plugin = %log.plugin(), task = name, "a task of a plugin has not ended in time");
                }
                return;
            }
            ended = &mut attempt => if ended.is_ok() { return },
        }
        error!(plugin = %log.plugin(), task = name, again_in = ?pause, "a task of a plugin panicked");
        entry.change(|task| {
            task.panics += 1;
            task.waits = true;
        });
        tokio::select! {
            () = end.clone() => return,
            () = tokio::time::sleep(pause) => {}
        }
        entry.change(|task| task.waits = false);
        pause = if began.elapsed() > RECOVERED { FIRST_PAUSE } else { (2 * pause).min(LONGEST_PAUSE) };
    }
}

async fn sweep(context: Rc<WorkerContext>) {
    let mut interval = tokio::time::interval(SWEEP);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        context.pool.sweep(Instant::now());
        drop(context.serving());
    }
}
