//! Renews the tokens of sessions: once for each refresh token, whatever number of requests on whatever workers need it.
//!
//! A provider that gives a new refresh token with each refresh takes the old one for stolen if it comes twice, and a browser sends
//! requests with its old cookie until it has the new one. So the results are remembered for a while. The calls are made beside
//! requests: a client that goes away does not take the only copy of a new token with it.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{LocalBoxFuture, select};
use futures_util::stream::FuturesUnordered;
use signalbox_plugin::{Clock, Context, Task, TaskContext};
use tokio::sync::{Notify, watch};

use super::client::{Client, TokenError, Tokens};
use crate::verified::{ProofHash, hash};

/// The refreshes of all sessions, kept over revisions.
pub(super) struct Refreshes {
    shared: Arc<Shared>,
    _task: Task,
}

/// The result of a refresh.
#[derive(Clone)]
pub(super) enum Refreshed {
    Tokens(Arc<Tokens>),
    /// The provider has sent a new refresh token, with an ID token that cannot be verified yet. The old refresh token may be used up,
    /// so the session goes on with the new one, and is not extended.
    Rotated(Arc<str>),
    /// The provider does not accept the refresh token, or its ID token is wrong: the session is over.
    Ended,
    /// The provider could not be asked. The session stays.
    Unavailable,
}

struct Shared {
    client: Arc<Client>,
    state: Mutex<State>,
    queued: Notify,
}

#[derive(Default)]
struct State {
    entries: HashMap<ProofHash, Entry>,
    /// The keys of `entries`, the oldest first.
    order: VecDeque<ProofHash>,
    queue: VecDeque<Job>,
}

struct Entry {
    /// The time until which it is remembered, once its result is there.
    until: Duration,
    result: watch::Receiver<Option<Refreshed>>,
}

struct Job {
    refresh_token: String,
    subject: String,
    result: watch::Sender<Option<Refreshed>>,
}

/// The most results that are remembered, and the time for which they are.
const MAX_ENTRIES: usize = 4096;
const MEMORY: Duration = Duration::from_secs(300);
/// The time before a refresh that failed is tried again.
const COOLDOWN: Duration = Duration::from_secs(1);

/// The refreshes that are under way at a time.
const MAX_RUNNING: usize = 32;

impl Refreshes {
    pub(super) fn of(client: &Arc<Client>, context: &Context<'_>) -> Arc<Self> {
        context.state(&(&client.registration, client.provider.upstream()), || {
            let state = Mutex::default();
            let shared = Arc::new(Shared { client: Arc::clone(client), state, queued: Notify::new() });
            let kept = Arc::clone(&shared);
            let task =
                context.tasks.spawn("refreshes of sessions", move |task| work(Arc::clone(&kept), task));
            Self { shared, _task: task }
        })
    }

    /// The result for this refresh token: one that is remembered or under way, or that of a new refresh.
    pub(super) fn result(
        &self,
        refresh_token: &str,
        subject: &str,
        clock: &Clock,
    ) -> LocalBoxFuture<'static, Refreshed> {
        let now = clock.monotonic();
        let mut receiver = match self.shared.entry(refresh_token, subject, now) {
            Some(receiver) => receiver,
            None => return Box::pin(std::future::ready(Refreshed::Unavailable)),
        };
        // The call, and a fetch of keys with it.
        let (clock, patience) = (clock.clone(), self.shared.client.registration.timeout * 2);
        Box::pin(async move {
            let answered = pin!(receiver.wait_for(Option::is_some));
            match select(answered, pin!(clock.sleep(patience))).await {
                futures_util::future::Either::Left((Ok(result), _)) => {
                    result.clone().unwrap_or(Refreshed::Unavailable)
                }
                _ => Refreshed::Unavailable,
            }
        })
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The place where the result will be. `None`: too many refreshes are under way.
    fn entry(
        &self,
        refresh_token: &str,
        subject: &str,
        now: Duration,
    ) -> Option<watch::Receiver<Option<Refreshed>>> {
        let hash = hash(refresh_token.as_bytes());
        let mut state = self.state();
        if let Some(entry) = state.entries.get(&hash).filter(|entry| entry.counts(now)) {
            return Some(entry.result.clone());
        }
        if state.entries.len() >= MAX_ENTRIES && !state.forget_oldest() {
            return None;
        }
        let (sender, result) = watch::channel(None);
        let entry = Entry { until: now + MEMORY, result: result.clone() };
        if state.entries.insert(hash, entry).is_none() {
            state.order.push_back(hash);
        }
        let (refresh_token, subject) = (refresh_token.to_owned(), subject.to_owned());
        state.queue.push_back(Job { refresh_token, subject, result: sender });
        self.queued.notify_one();
        Some(result)
    }
}

impl State {
    /// Forgets the oldest result. Returns false if all refreshes are under way.
    fn forget_oldest(&mut self) -> bool {
        for _ in 0..self.order.len() {
            let Some(hash) = self.order.pop_front() else { return false };
            if self.entries.get(&hash).is_some_and(Entry::is_under_way) {
                self.order.push_back(hash);
            } else {
                self.entries.remove(&hash);
                return true;
            }
        }
        false
    }
}

impl Entry {
    fn is_under_way(&self) -> bool {
        self.result.borrow().is_none() && self.result.has_changed().is_ok()
    }

    /// True if a request at `now` goes by this refresh.
    fn counts(&self, now: Duration) -> bool {
        let until = match &*self.result.borrow() {
            Some(Refreshed::Unavailable) => self.until.saturating_sub(MEMORY) + COOLDOWN,
            Some(Refreshed::Tokens(_) | Refreshed::Rotated(_) | Refreshed::Ended) => self.until,
            // Under way, unless its task is gone.
            None => return self.result.has_changed().is_ok(),
        };
        now < until
    }
}

/// Carries out refreshes as they come.
async fn work(shared: Arc<Shared>, task: TaskContext) {
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < MAX_RUNNING {
            let Some(job) = shared.state().queue.pop_front() else { break };
            running.push(refresh(&shared.client, job, &task));
        }
        let queued = pin!(shared.queued.notified());
        match running.is_empty() {
            true => queued.await,
            false => _ = select(running.next(), queued).await,
        }
    }
}

async fn refresh(client: &Client, job: Job, task: &TaskContext) {
    let refreshed = client.refresh(&job.refresh_token, &job.subject, &task.outbound, &task.clock).await;
    let result = match refreshed {
        Ok(tokens) => Refreshed::Tokens(Arc::new(tokens)),
        Err(TokenError::Refused(_)) => Refreshed::Ended,
        // To try again would not help, and the refresh token may be used up.
        Err(error @ TokenError::Untrusted(_)) => {
            task.log.warn(format_args!("a session ends, because it cannot be refreshed: {error}"));
            Refreshed::Ended
        }
        Err(error @ (TokenError::Unavailable(_) | TokenError::Unproven { .. })) => {
            task.log.warn(format_args!("a session could not be refreshed: {error}"));
            match error {
                TokenError::Unproven { refresh_token: Some(token) } => Refreshed::Rotated(token.into()),
                _ => Refreshed::Unavailable,
            }
        }
    };
    job.result.send_replace(Some(result));
}
