//! Work of plugins beside requests.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{LocalBoxFuture, Shared};

use crate::clock::Clock;
use crate::log::Logger;
use crate::outbound::Outbound;

/// Starts tasks. They run on a thread of their own, so they delay no request.
#[derive(Clone)]
pub struct Tasks {
    spawner: Arc<dyn Spawner>,
    log: Logger,
}

/// Runs the tasks.
pub trait Spawner: Send + Sync {
    /// Runs a task until it returns or its handle is dropped. It is started anew, ever later, when it panics. When it is to end, it
    /// is told so, and goes on for `grace` at most.
    fn spawn(&self, name: String, log: Logger, grace: Duration, work: Work) -> Box<dyn Send + Sync>;
}

/// Makes the future of a task; once more for each start.
pub type Work = Box<dyn Fn(TaskContext) -> LocalBoxFuture<'static, ()> + Send>;

/// The capabilities of a task.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TaskContext {
    /// The time, and pauses.
    pub clock: Clock,
    /// Calls to services, under the revision that is served when a call begins.
    pub outbound: Outbound,
    /// The log, in the plugin's name.
    pub log: Logger,
    end: Shared<LocalBoxFuture<'static, ()>>,
}

/// A running task. It ends when this is dropped: keep it in the plugin, or in a state that outlives revisions.
#[must_use = "a task ends when its handle is dropped"]
pub struct Task {
    _handle: Box<dyn Send + Sync>,
}

impl Tasks {
    /// The tasks of a plugin with this log, which `spawner` runs.
    pub fn new(spawner: Arc<dyn Spawner>, log: Logger) -> Self {
        Self { spawner, log }
    }

    /// Starts a task. `name` is for the log.
    ///
    /// It starts while a revision is compiled, so the revision may still be rejected; then it ends again.
    pub fn spawn<F>(&self, name: &str, work: impl Fn(TaskContext) -> F + Send + 'static) -> Task
    where
        F: Future<Output = ()> + 'static,
    {
        self.spawn_with_grace(name, Duration::ZERO, work)
    }

    /// Starts a task that has something to finish: when its handle is dropped, or the proxy ends, [`TaskContext::told_to_end`] is
    /// ready, and the task goes on for `grace`, at most [`Task::LONGEST_GRACE`].
    pub fn spawn_with_grace<F>(
        &self,
        name: &str,
        grace: Duration,
        work: impl Fn(TaskContext) -> F + Send + 'static,
    ) -> Task
    where
        F: Future<Output = ()> + 'static,
    {
        let work: Work = Box::new(move |context| Box::pin(work(context)));
        let grace = grace.min(Task::LONGEST_GRACE);
        Task { _handle: self.spawner.spawn(name.to_owned(), self.log.clone(), grace, work) }
    }
}

impl Task {
    /// The longest time for which a task goes on after it was told to end.
    pub const LONGEST_GRACE: Duration = Duration::from_secs(2);
}

impl TaskContext {
    /// The context of a task, which is to end when `end` is ready.
    pub fn new(
        clock: Clock,
        outbound: Outbound,
        log: Logger,
        end: impl Future<Output = ()> + 'static,
    ) -> Self {
        Self { clock, outbound, log, end: end.boxed_local().shared() }
    }

    /// Ready once the task is to end, and from then on.
    pub async fn told_to_end(&self) {
        self.end.clone().await;
    }

    /// True once the task is to end.
    pub fn is_told_to_end(&self) -> bool {
        self.told_to_end().now_or_never().is_some()
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tasks")
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Task")
    }
}
