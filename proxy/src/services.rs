//! The services that compiling a revision needs. They outlive every revision.

use std::sync::Arc;

use signalbox_plugin::tasks::Spawner;
use signalbox_plugin::{Blobs, Clock, Registry, States};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::resolve::Resolver;
use crate::secrets::SecretReader;
use crate::telemetry::TrafficGroup;
use crate::telemetry::spans::SpanSinks;

/// Everything that compiling needs besides the revision itself.
pub struct Services {
    /// The plugin types that this proxy knows.
    pub types: Registry,
    /// Plugin state that outlives a revision.
    pub states: States,
    /// The uploaded files that plugins use.
    pub blobs: Blobs,
    /// The time that plugins see.
    pub clock: Clock,
    /// Runs the tasks of plugins.
    pub spawner: Arc<dyn Spawner>,
    /// Reads the secrets that resources refer to.
    pub secrets: Box<dyn SecretReader>,
    /// The queues of spans for collectors.
    pub span_sinks: SpanSinks,
    pub resolver: Arc<Resolver>,
    pub checking: Checking,
    /// The zone that this proxy runs in.
    pub zone: Option<Box<str>>,
    /// The number of threads that count: the workers, and the one that runs the tasks of plugins.
    pub workers: usize,
    /// The routes and the upstreams whose requests are counted apart for time series.
    pub routes: Arc<TrafficGroup>,
    pub upstreams: Arc<TrafficGroup>,
}

/// The runtime on which active health checks run, and the limit on how many run at once.
#[derive(Debug, Clone)]
pub struct Checking {
    handle: Handle,
    permits: Arc<Semaphore>,
}

/// The most health checks that run at once, over all upstreams; more wait. Each needs a socket.
const MAX_RUNNING: usize = 256;

impl Checking {
    /// Checks run on the runtime of `handle`.
    pub fn new(handle: Handle) -> Self {
        Self { handle, permits: Arc::new(Semaphore::new(MAX_RUNNING)) }
    }

    /// The runtime for the tasks.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// A check holds one of these while it runs.
    pub fn permits(&self) -> &Arc<Semaphore> {
        &self.permits
    }
}
