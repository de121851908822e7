//! Work of plugins beside requests.

use std::fmt;
use std::sync::Arc;

use futures_util::future::LocalBoxFuture;

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
    /// Runs a task until it returns or its handle is dropped. It is started anew, ever later, when it panics.
    fn spawn(&self, name: String, log: Logger, work: Work) -> Box<dyn Send + Sync>;
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
        let work: Work = Box::new(move |context| Box::pin(work(context)));
        Task { _handle: self.spawner.spawn(name.to_owned(), self.log.clone(), work) }
    }
}

impl TaskContext {
    /// The context of a task.
    pub fn new(clock: Clock, outbound: Outbound, log: Logger) -> Self {
        Self { clock, outbound, log }
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
