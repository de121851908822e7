//! Sends entries to a service, in batches, beside requests.

use std::hash::Hash;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use signalbox_plugin::otlp;
use signalbox_plugin::{CallError, CallLimits, Context, LogRecord, Task, TaskContext};
use tokio::sync::{Mutex, Notify, mpsc};

use super::queue::{Gate, Waiting};
use super::settings::{Endpoint, HeaderError};
use super::{DROPPED, Entry, Losses};

/// The form in which a service takes entries.
pub(crate) trait Format: Clone + Hash + Send + Sync + 'static {
    /// The method and the content type of a call.
    fn call(&self) -> (Method, HeaderValue);

    /// The body of a call.
    fn encode(&self, batch: &[Entry]) -> Bytes;

    /// Reads the answer to a batch.
    fn judge(&self, answer: &Response<Bytes>) -> Taken;
}

/// The treatment of a batch by the service.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It was taken, but for so many entries.
    But(u64, Box<str>),
    /// It may be taken later.
    NotNow,
    /// It will never be taken.
    Never,
}

/// A queue, and the task that sends what is in it. It outlives revisions as long as its configuration stays the same.
pub(crate) struct HttpSink {
    queue: Arc<Queue>,
    _task: Task,
}

struct Queue {
    gate: Gate,
    sender: mpsc::UnboundedSender<Entry>,
    /// The most that a batch holds. As soon as so much waits, the task is woken.
    full: Waiting,
    due: Notify,
    losses: Losses,
    /// True once the task has ended.
    is_over: AtomicBool,
}

/// The task's end of the queue.
struct Outlet {
    receiver: mpsc::UnboundedReceiver<Entry>,
    /// The entry for which the last batch had no room.
    held: Option<Entry>,
}

/// Entries that are sent together. Those that are dropped have failed.
struct Batch<'q> {
    entries: Vec<Entry>,
    size: usize,
    queue: &'q Queue,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum DeliveryError {
    #[error(transparent)]
    Headers(#[from] HeaderError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("status {0}")]
    NotNow(StatusCode, Option<Duration>),
    #[error("status {0}")]
    Never(StatusCode),
    #[error("{0} of {1} entries were rejected: {2}")]
    Rejected(u64, usize, Box<str>),
}

/// The pause before the first retry; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 10;

impl HttpSink {
    /// The sink of this plugin with this configuration, as it was in the revision before, or a new one.
    pub(crate) fn of<F: Format>(endpoint: &Endpoint, format: &F, context: &Context<'_>) -> Arc<Self> {
        context.state(&(endpoint, format), || Self::start(endpoint.clone(), format.clone(), context))
    }

    fn start<F: Format>(endpoint: Endpoint, format: F, context: &Context<'_>) -> Self {
        let (queue, outlet) = queue(&endpoint, context);
        let (queue, outlet) = (Arc::new(queue), Arc::new(Mutex::new(outlet)));
        let (kept, endpoint) = (Arc::clone(&queue), Arc::new((endpoint, format)));
        let work = move |task| {
            let (queue, outlet, endpoint) = (Arc::clone(&kept), Arc::clone(&outlet), Arc::clone(&endpoint));
            async move { run(&queue, &mut *outlet.lock().await, &endpoint.0, &endpoint.1, &task).await }
        };
        Self { queue, _task: context.tasks.spawn_with_grace("log", Task::LONGEST_GRACE, work) }
    }

    /// Puts an entry into the queue. One for which there is no room is counted, and no more.
    pub(crate) fn push(&self, entry: Entry, record: &LogRecord<'_>) {
        if !self.queue.push(entry) {
            record.count(DROPPED);
        }
    }
}

fn queue(endpoint: &Endpoint, context: &Context<'_>) -> (Queue, Outlet) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let Endpoint { batch, queue, .. } = endpoint;
    let queue = Queue {
        gate: Gate::new(queue),
        sender,
        full: Waiting {
            entries: batch.max_entries as usize,
            size: usize::try_from(batch.max_size.0).unwrap_or(usize::MAX),
        },
        due: Notify::new(),
        losses: Losses::new(context.outcomes.clone(), context.log.clone(), context.clock.clone()),
        is_over: AtomicBool::new(false),
    };
    (queue, Outlet { receiver, held: None })
}

impl Queue {
    fn push(&self, entry: Entry) -> bool {
        let admitted = self.gate.admit(entry.len()).filter(|_| !self.is_over.load(Ordering::Relaxed));
        let Some(waiting) = admitted else {
            self.losses.note_dropped();
            return false;
        };
        if self.sender.send(entry).is_err() {
            return false;
        }
        if self.is_full(waiting) {
            self.due.notify_one();
        }
        true
    }

    fn is_full(&self, waiting: Waiting) -> bool {
        waiting.entries >= self.full.entries || waiting.size >= self.full.size
    }
}

impl Outlet {
    /// The next batch: as soon as it is full, or `interval` after its first entry. `None`: the task is to end, and nothing waits.
    async fn next<'q>(
        &mut self,
        queue: &'q Queue,
        interval: Duration,
        task: &TaskContext,
    ) -> Option<Batch<'q>> {
        let first = match self.held.take() {
            Some(held) => held,
            None => self.wait(task).await?,
        };
        let mut batch = Batch { size: first.len(), entries: vec![first], queue };
        if !queue.is_full(queue.gate.waiting()) {
            let (full, end) = (pin!(queue.due.notified()), pin!(task.told_to_end()));
            select(select(full, end), pin!(task.clock.sleep(interval))).await;
        }
        while batch.entries.len() < queue.full.entries {
            let Ok(entry) = self.receiver.try_recv() else { break };
            if batch.size + entry.len() > queue.full.size {
                self.held = Some(entry);
                break;
            }
            batch.size += entry.len();
            batch.entries.push(entry);
        }
        Some(batch)
    }

    async fn wait(&mut self, task: &TaskContext) -> Option<Entry> {
        if let Ok(entry) = self.receiver.try_recv() {
            return Some(entry);
        }
        let (end, entry) = (pin!(task.told_to_end()), pin!(self.receiver.recv()));
        match select(end, entry).await {
            Either::Left(_) => None,
            Either::Right((entry, _)) => entry,
        }
    }
}

impl Batch<'_> {
    fn is_taken(&mut self, rejected: u64) {
        let entries = self.entries.len();
        let rejected = usize::try_from(rejected).unwrap_or(usize::MAX).min(entries);
        self.queue.losses.count_sent(entries - rejected);
        self.queue.losses.count_failed(rejected);
        self.leave();
    }

    fn leave(&mut self) {
        self.queue.gate.release(self.entries.len(), self.size);
        self.entries.clear();
        self.size = 0;
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.queue.losses.count_failed(self.entries.len());
        self.leave();
    }
}

/// Sends batches until the task is to end, and then what waits.
async fn run<F: Format>(
    queue: &Queue,
    outlet: &mut Outlet,
    endpoint: &Endpoint,
    format: &F,
    task: &TaskContext,
) {
    // The host cancels the task at the end of its grace.
    let end = Ending(queue);
    while let Some(mut batch) = outlet.next(queue, endpoint.batch.interval.0, task).await {
        let delivered = deliver(endpoint, format, &batch.entries, task).await;
        match &delivered {
            Ok(()) => batch.is_taken(0),
            Err(DeliveryError::Rejected(entries, ..)) => batch.is_taken(*entries),
            Err(_) => drop(batch),
        }
        let cause = delivered.as_ref().err().map(|error| error as &dyn std::fmt::Display);
        queue.losses.report(cause);
    }
    drop(end);
}

/// Counts what is left in the queue when its task has ended for good.
struct Ending<'q>(&'q Queue);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        // A task that panicked is started anew, and goes on with what waits.
        if std::thread::panicking() {
            return;
        }
        self.0.is_over.store(true, Ordering::Relaxed);
        let Waiting { entries, .. } = self.0.gate.waiting();
        self.0.losses.count_dropped(entries);
        self.0.losses.report(None);
    }
}

/// Sends a batch, and once more if it was not taken, with pauses that grow. A task that is to end does not try again.
async fn deliver<F: Format>(
    endpoint: &Endpoint,
    format: &F,
    batch: &[Entry],
    task: &TaskContext,
) -> Result<(), DeliveryError> {
    let body = format.encode(batch);
    let mut retries = 0;
    loop {
        let error = match attempt(endpoint, format, body.clone(), batch.len(), task).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let Some(pause) = error.pause(retries, fastrand::f64()) else { return Err(error) };
        if retries >= endpoint.retries || task.is_told_to_end() {
            return Err(error);
        }
        retries += 1;
        select(pin!(task.clock.sleep(pause)), pin!(task.told_to_end())).await;
    }
}

async fn attempt<F: Format>(
    endpoint: &Endpoint,
    format: &F,
    body: Bytes,
    entries: usize,
    task: &TaskContext,
) -> Result<(), DeliveryError> {
    let mut request = Request::new(body);
    let (method, content_type) = format.call();
    *request.method_mut() = method;
    *request.uri_mut() = endpoint.uri.clone();
    *request.headers_mut() = endpoint.headers()?;
    request.headers_mut().entry(CONTENT_TYPE).or_insert(content_type);
    let limits = CallLimits { timeout: endpoint.timeout, answer_size: MAX_ANSWER };
    let answer = task.outbound.call(&endpoint.upstream, request, limits).await?.response;
    match format.judge(&answer) {
        Taken::But(0, _) => Ok(()),
        Taken::But(rejected, why) => Err(DeliveryError::Rejected(rejected, entries, why)),
        Taken::NotNow => Err(DeliveryError::NotNow(answer.status(), otlp::retry_after(answer.headers()))),
        Taken::Never => Err(DeliveryError::Never(answer.status())),
    }
}

impl DeliveryError {
    /// The pause before the next try, after so many retries. `None`: there must be none.
    fn pause(&self, retries: u8, random: f64) -> Option<Duration> {
        let pause = |asked| otlp::pause(retries, [FIRST_PAUSE, LONGEST_PAUSE], asked, random);
        match self {
            Self::NotNow(_, after) => Some(pause(*after)),
            // The answer may say that the batch was taken, so that it must not come twice.
            Self::Call(CallError::TooLarge(_) | CallError::BadRequest) => None,
            Self::Call(_) | Self::Headers(_) => Some(pause(None)),
            Self::Never(_) | Self::Rejected(..) => None,
        }
    }
}

#[cfg(test)]
mod tests;
