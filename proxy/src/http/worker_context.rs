//! The state of one worker (one thread) that its connections and requests use.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use http::HeaderMap;
use signalbox_plugin::{Clock, Outbound};
use tokio::sync::Notify;

use super::handshakes::Handshakes;
use crate::active::{Active, RouteStats};
use crate::core::deadlines::Deadlines;
use crate::core::identify::Identifier;
use crate::overload::Overload;
use crate::telemetry::access_log::{self, Log};
use crate::telemetry::spans::{SpanBuffers, SpanCounts};
use crate::telemetry::{ConsumerTraffic, Exemplars, PeriodCounts, WorkerConsumers, WorkerStats};
use crate::upstream::Pool;
use crate::wire::splice::Pipes;

/// The state that all workers share.
pub struct Shared {
    pub active: Arc<ArcSwap<Active>>,
    pub stats: Box<[Arc<WorkerStats>]>,
    /// The counters of requests without a route.
    pub unrouted: Arc<RouteStats>,
    pub consumers: ConsumerTraffic,
    /// A moment before all requests, from which times are measured.
    pub epoch: Instant,
    /// The time that plugins see.
    pub clock: Clock,
    pub log: Option<access_log::Sender>,
    /// The spans by what became of them.
    pub span_counts: Arc<SpanCounts>,
    /// Requests whose traces are exported.
    pub exemplars: Exemplars,
    /// The maximum number of concurrent requests per worker.
    pub max_requests: u32,
    /// How long requests may wait for their turn before some are refused; `None`: no limit.
    pub max_queue_delay: Option<Duration>,
    /// One per worker: notified to close idle connections that other workers wait for.
    pub connections_wanted: Arc<[Notify]>,
    /// The maximum number of client connections, over all workers.
    pub max_connections: u64,
    /// Pipes of one worker, through which bodies are spliced.
    pub pipes: usize,
}

/// The state of one worker that its connections and requests use. No other thread accesses it.
pub struct WorkerContext {
    pub index: usize,
    pub shared: Arc<Shared>,
    pub stats: Arc<WorkerStats>,
    pub consumers: WorkerConsumers,
    pub deadlines: Rc<Deadlines>,
    pub pool: Pool,
    pub pipes: Rc<Pipes>,
    pub identifier: RefCell<Identifier>,
    pub log: Option<Log>,
    /// Spans on their way to the exporter.
    pub spans: SpanBuffers,
    /// A buffer for writes of one piece.
    pub scratch: Rc<RefCell<Vec<u8>>>,
    /// Buffers for request heads: to targets, and in the access log.
    buffers: RefCell<Vec<Vec<u8>>>,
    /// Maps for the headers of responses.
    header_maps: RefCell<Vec<HeaderMap>>,
    /// The number of running mirrored requests.
    pub mirrors: Cell<u32>,
    pub overload: Overload,
    active: RefCell<Cache<Arc<ArcSwap<Active>>, Arc<Active>>>,
    serving: RefCell<Rc<Serving>>,
    /// The running TLS handshakes.
    pub handshakes: Handshakes,
}

/// A revision in use by requests of this worker. The reference count is the worker's own, so that no two workers write
/// to one counter for each request.
pub struct Serving {
    /// This worker's counts of the requests that begin with this revision. They are dropped before the revision, whose
    /// last reference is never a worker's, so nor is theirs.
    pub counts: Arc<PeriodCounts>,
    /// Calls of plugins under this revision, once there was one.
    pub outbound: OnceCell<Outbound>,
    active: Arc<Active>,
}

/// The maximum number of buffers for heads that are kept, and their maximum size in bytes.
const MAX_BUFFERS: usize = 512;
const MAX_BUFFER: usize = 16 << 10;

/// The same for maps of headers; the size is in entries.
const MAX_MAPS: usize = 64;
const MAX_MAP: usize = 128;

impl WorkerContext {
    pub fn new(index: usize, shared: Arc<Shared>) -> Self {
        let active = shared.active.load_full();
        let stats = shared.stats.get(index).cloned().unwrap_or_default();
        Self {
            index,
            pool: Pool::new(index, Arc::clone(&shared.connections_wanted), Arc::clone(&stats)),
            stats,
            consumers: WorkerConsumers::default(),
            pipes: Pipes::new(shared.pipes),
            deadlines: Rc::default(),
            identifier: RefCell::default(),
            log: shared.log.clone().map(Log::new),
            spans: SpanBuffers::default(),
            scratch: Rc::default(),
            mirrors: Cell::new(0),
            overload: Overload::new(shared.max_requests, shared.max_queue_delay),
            buffers: RefCell::default(),
            header_maps: RefCell::default(),
            active: RefCell::new(Cache::new(Arc::clone(&shared.active))),
            serving: RefCell::new(Rc::new(Serving::new(active, index))),
            handshakes: Handshakes::default(),
            shared,
        }
    }

    /// Takes a buffer for a request's head.
    #[inline]
    pub fn buffer(&self) -> Vec<u8> {
        self.buffers.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps a buffer for later heads, up to the number that are usually in use at once.
    #[inline]
    pub fn keep_buffer(&self, buffer: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if buffers.len() < MAX_BUFFERS && (1..=MAX_BUFFER).contains(&buffer.capacity()) {
            buffers.push(buffer);
        }
    }

    /// Takes an empty map for the headers of a response.
    #[inline]
    pub fn headers(&self) -> HeaderMap {
        self.header_maps.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps the memory of a map of headers.
    #[inline]
    pub fn keep_headers(&self, mut headers: HeaderMap) {
        let mut maps = self.header_maps.borrow_mut();
        if maps.len() < MAX_MAPS && (1..=MAX_MAP).contains(&headers.capacity()) {
            headers.clear();
            maps.push(headers);
        }
    }

    /// Sends the buffered lines to the access log's writer, and the buffered spans to their exporters.
    pub fn flush(&self) {
        self.spans.flush();
        if let Some(log) = &self.log {
            log.flush(&self.stats);
        }
    }

    /// The revision for a request that begins now.
    #[inline]
    pub fn serving(&self) -> Rc<Serving> {
        let mut cache = self.active.borrow_mut();
        let active = cache.load();
        let mut serving = self.serving.borrow_mut();
        if !Arc::ptr_eq(active, &serving.active) {
            *serving = Rc::new(Serving::new(Arc::clone(active), self.index));
        }
        Rc::clone(&serving)
    }
}

impl Serving {
    fn new(active: Arc<Active>, worker: usize) -> Self {
        let counts = active.period.of_worker(worker);
        Self { counts, outbound: OnceCell::new(), active }
    }
}

impl std::ops::Deref for Serving {
    type Target = Active;

    fn deref(&self) -> &Active {
        &self.active
    }
}
