//! The keys of a provider, fetched beside requests.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::future::{LocalBoxFuture, select};
use http::header::ACCEPT;
use http::{HeaderValue, Request, StatusCode};
use signalbox_config::Name;
use signalbox_plugin::{CallError, CallLimits, Clock, Context, Outcomes, Task, TaskContext};
use tokio::sync::{Notify, watch};

use super::document::{self, Endpoint, Metadata, NoMetadata};
use super::keys::{self, NoKeys};
use super::schedule::{Schedule, Wish, pause};
use super::settings::{Place, Source};
use crate::token_key::TokenKey;

/// A provider, and the task that keeps what is known of it up to date. All plugins and revisions with the same settings share it.
pub(crate) struct Provider {
    shared: Arc<Shared>,
    _task: Task,
}

/// The documents of a provider, as they were fetched last.
#[derive(PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) keys: Box<[TokenKey]>,
    /// `None`: the keys are fetched from a path, and nothing else.
    pub(crate) metadata: Option<Metadata>,
}

/// The way to a key that is not known.
pub(crate) enum Refetch {
    /// It may be known once the future is done. The future bounds its own waiting.
    Wait(LocalBoxFuture<'static, ()>),
    /// Nothing: the keys were fetched for another such token not long ago.
    TooSoon,
    /// Nothing: the keys could not be fetched at all.
    NoKeys,
}

struct Shared {
    source: Source,
    known: ArcSwapOption<Known>,
    /// Counts the changes of what is known.
    generation: AtomicU64,
    /// Counts the fetches that have succeeded.
    fetches: AtomicU64,
    schedule: Mutex<Schedule>,
    /// The number of fetches that have ended, for those who wait.
    ended: watch::Sender<u64>,
    /// Wakes the task before its time.
    wanted: Notify,
}

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{0} of {1}")]
    Call(CallError, Endpoint),
    #[error("status {0} of {1}")]
    Status(StatusCode, Endpoint),
    #[error(transparent)]
    Keys(#[from] NoKeys),
    #[error(transparent)]
    Metadata(#[from] NoMetadata),
}

/// The largest document that is read, in bytes.
const MAX_DOCUMENT: usize = 256 << 10;

/// The pauses of the task while the revision that has the upstream is not served yet, and their number.
const UNTIL_SERVED: Duration = Duration::from_millis(20);
const TRIES_UNTIL_SERVED: u32 = 100;

impl Provider {
    /// The outcomes that are counted for a plugin with a provider.
    pub(crate) const FETCHED: &'static str = "keys_fetched";
    /// The same for a fetch that failed.
    pub(crate) const FETCH_FAILED: &'static str = "keys_fetch_failed";

    /// The provider of this plugin with this source, as it was in the revision before, or a new one.
    pub(crate) fn of(source: &Source, context: &Context<'_>) -> Arc<Self> {
        context.state(source, || Self::start(source.clone(), context))
    }

    fn start(source: Source, context: &Context<'_>) -> Self {
        let shared = Arc::new(Shared {
            source,
            known: ArcSwapOption::empty(),
            generation: AtomicU64::new(0),
            fetches: AtomicU64::new(0),
            schedule: Mutex::default(),
            ended: watch::Sender::new(0),
            wanted: Notify::new(),
        });
        let (kept, outcomes) = (Arc::clone(&shared), context.outcomes.clone());
        let work = move |task| keep_up(Arc::clone(&kept), outcomes.clone(), task);
        Self { shared, _task: context.tasks.spawn("keys of the provider", work) }
    }

    /// The documents of the provider. `None`: nothing could be fetched so far.
    pub(crate) fn known(&self) -> Option<Arc<Known>> {
        self.shared.known.load_full()
    }

    /// Changes when what is known changes.
    pub(crate) fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    /// The number of fetches that have succeeded, also of those that brought nothing new.
    pub(crate) fn fetches(&self) -> u64 {
        self.shared.fetches.load(Ordering::Acquire)
    }

    /// The upstream whose targets are the provider.
    pub(crate) fn upstream(&self) -> &Name {
        &self.shared.source.upstream
    }

    /// Wishes that the keys be fetched, because one is not known. All who wish it meanwhile wait for the same fetch.
    pub(crate) fn refetch(&self, now: Duration, clock: &Clock) -> Refetch {
        let Shared { source, ended, wanted, .. } = &*self.shared;
        match self.shared.schedule().wish(now, source.cooldown) {
            Wish::TooSoon => Refetch::TooSoon,
            Wish::NoKeys => Refetch::NoKeys,
            Wish::Wait(number, starts) => {
                if starts {
                    wanted.notify_one();
                }
                let (mut ended, clock, timeout) = (ended.subscribe(), clock.clone(), source.timeout);
                Refetch::Wait(Box::pin(async move {
                    let fetched = pin!(ended.wait_for(|ended| *ended >= number));
                    select(fetched, pin!(clock.sleep(timeout))).await;
                }))
            }
        }
    }
}

impl Shared {
    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what was fetched.
    fn learn(&self, known: Known) {
        if self.known.load().as_deref() != Some(&known) {
            self.known.store(Some(Arc::new(known)));
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        self.fetches.fetch_add(1, Ordering::AcqRel);
    }
}

/// Fetches at each interval, when it is wished, and after failures ever later.
async fn keep_up(shared: Arc<Shared>, outcomes: Outcomes, task: TaskContext) {
    let (mut failures, mut tries) = (0_u32, 0);
    loop {
        shared.schedule().begin();
        let fetched = fetch(&shared.source, &task).await;
        if let Err(FetchError::Call(CallError::NoUpstream, _)) = fetched
            && shared.known.load().is_none()
            && tries < TRIES_UNTIL_SERVED
        {
            // A task starts before its revision is served.
            tries += 1;
            task.clock.sleep(UNTIL_SERVED).await;
            continue;
        }
        let is_good = fetched.is_ok();
        match fetched {
            Ok(known) => {
                shared.learn(known);
                failures = 0;
                outcomes.count(0, Provider::FETCHED);
            }
            Err(error) => {
                failures = failures.saturating_add(1);
                outcomes.count(0, Provider::FETCH_FAILED);
                let kept = if shared.known.load().is_some() { "; the last good ones stay" } else { "" };
                task.log.warn(format_args!("the provider's keys could not be fetched: {error}{kept}"));
            }
        }
        let ended = shared.schedule().end(is_good);
        shared.ended.send_replace(ended);
        let pause = pause(failures, shared.source.refresh, fastrand::f64());
        select(pin!(task.clock.sleep(pause)), pin!(shared.wanted.notified())).await;
    }
}

async fn fetch(source: &Source, task: &TaskContext) -> Result<Known, FetchError> {
    match &source.place {
        Place::Keys(endpoint) => {
            let keys = keys::read(&get(source, endpoint, task).await?)?;
            Ok(Known { keys, metadata: None })
        }
        Place::Discovery { issuer, document } => {
            let metadata = document::read(&get(source, document, task).await?, issuer)?;
            let keys = keys::read(&get(source, &metadata.keys, task).await?)?;
            Ok(Known { keys, metadata: Some(metadata) })
        }
    }
}

async fn get(source: &Source, endpoint: &Endpoint, task: &TaskContext) -> Result<Bytes, FetchError> {
    let mut request = Request::new(Bytes::new());
    *request.uri_mut() = endpoint.url.clone();
    request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
    let limits = CallLimits { timeout: source.timeout, answer_size: MAX_DOCUMENT };
    let answer = task.outbound.call(&source.upstream, request, limits).await;
    let response = answer.map_err(|error| FetchError::Call(error, endpoint.clone()))?.response;
    match response.status() {
        StatusCode::OK => Ok(response.into_body()),
        status => Err(FetchError::Status(status, endpoint.clone())),
    }
}
