//! Validates stored responses beside the requests that they answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Method, Request, StatusCode};
use signalbox_config::Name;
use signalbox_plugin::{CallLimits, Context, Task, TaskContext};
use tokio::sync::{Mutex, mpsc};

use super::entry::Shared;
use super::freshness::Received;
use super::key::Key;
use super::store::{Store, Ticket};
use super::storing::{Asked, Rules};
use super::validation::{Arrived, freshen};

/// Hands responses to the task that validates them.
#[derive(Debug)]
pub(super) struct Refresher {
    jobs: mpsc::Sender<Job>,
    _task: Task,
}

/// A stored response to be validated.
pub(super) struct Job {
    pub(super) entry: Shared,
    pub(super) upstream: Name,
    /// The request with the conditions.
    pub(super) request: Request<Bytes>,
    /// The headers of the request that it was made from.
    pub(super) headers: HeaderMap,
    pub(super) has_credentials: bool,
    pub(super) rules: Arc<Rules>,
    pub(super) largest: usize,
    pub(super) ticket: Ticket,
}

/// The responses that are validated at once, and those that wait for it. Beyond that, one is validated when it is used again.
const AT_ONCE: usize = 8;
const WAITING: usize = 64;
/// The time that a validation may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
/// The pause after a validation that failed.
const PAUSE: Duration = Duration::from_secs(1);

impl Refresher {
    pub(super) fn new(store: &Arc<Store>, context: &Context<'_>) -> Self {
        let (jobs, receiver) = mpsc::channel(WAITING);
        let receiver = Arc::new(Mutex::new(receiver));
        let store = Arc::clone(store);
        let task = context.tasks.spawn("refresh", move |task| {
            let (receiver, store) = (Arc::clone(&receiver), Arc::clone(&store));
            async move {
                join_all((0..AT_ONCE).map(|_| work(&receiver, &store, &task))).await;
            }
        });
        Self { jobs, _task: task }
    }

    /// Has a response validated. `false`: there are too many.
    pub(super) fn begin(&self, job: Job) -> bool {
        self.jobs.try_send(job).is_ok()
    }
}

async fn work(jobs: &Mutex<mpsc::Receiver<Job>>, store: &Arc<Store>, task: &TaskContext) {
    loop {
        let job = jobs.lock().await.recv().await;
        let Some(job) = job else { return };
        let entry = Arc::clone(&job.entry);
        let pause = if validate(job, store, task).await { Duration::ZERO } else { PAUSE };
        entry.allow_refresh(task.clock.monotonic() + pause);
    }
}

/// Validates a response. `false`: the upstream failed.
async fn validate(job: Job, store: &Arc<Store>, task: &TaskContext) -> bool {
    let Job { entry, upstream, mut request, headers, has_credentials, rules, largest, ticket } = job;
    *request.method_mut() = Method::GET;
    let began = task.clock.monotonic();
    let limits = CallLimits { timeout: TIMEOUT, answer_size: largest };
    let Ok(answer) = task.outbound.call(&upstream, request, limits).await else { return false };
    let now = task.clock.monotonic();
    let received = Received { delay: now.saturating_sub(began), at: task.clock.wall() };
    let arrived = Arrived { received, now, ticket };
    let key: &Key = &entry.key;
    let asked = Asked { key, headers: &headers, has_credentials };
    let (head, body) = answer.response.into_parts();
    if head.status == StatusCode::NOT_MODIFIED {
        freshen(store, &rules, asked, &entry, &head.headers, arrived);
        return true;
    }
    if head.status.is_server_error() {
        return false;
    }
    match rules.draft(asked, head.status, &head.headers, received, now) {
        Ok(draft) => {
            if let Some(reservation) = store.reserve(draft.size() + body.len()) {
                // As it came, it may be a part of a larger buffer.
                store.insert(draft, Bytes::copy_from_slice(&body), ticket, reservation);
            }
        }
        // The new response is not to be stored, and the stored one is outdated.
        Err(_) => store.remove(&entry),
    }
    true
}
