//! One webhook: its queue, its last attempts, and the task that sends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::Serialize;
use signalbox_config::Webhook;
use signalbox_process::ErrorChain;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::call::post;
use super::event::Event;
use super::host_secret::HostSecrets;
use super::queue::{CAPACITY, Next, Pending, Pushed, Queue};
use super::retry::{Outcome, Verdict, judge};
use crate::clock::{now_us, rfc3339};
use crate::metrics::WebhookCounts;

/// An attempt to deliver an event.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "WebhookAttempt")]
pub struct Attempt {
    /// The time when it began, RFC 3339.
    pub at: String,
    /// The type of the event: `incident.opened`.
    #[serde(rename = "type")]
    pub event: String,
    /// The id of the event, as the receiver gets it in `webhook-id`.
    pub id: String,
    /// The number of the attempt for this event, from 1.
    pub attempt: u32,
    /// The result.
    pub result: AttemptResult,
    /// The status of the receiver's answer. Null: there was no answer.
    pub status: Option<u16>,
    /// The reason why there was no answer.
    pub error: Option<String>,
    /// The time until the answer, or until the attempt failed, in milliseconds.
    pub took_ms: u64,
    /// The time until the next attempt, in milliseconds. Null: there is none.
    pub next_ms: Option<u64>,
}

/// The result of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AttemptResult {
    /// The receiver has the event.
    Delivered,
    /// It failed, and another attempt follows.
    Retried,
    /// The receiver does not want the event: it is not sent again.
    Refused,
    /// It failed, as all attempts of an hour before it: the event is not sent again.
    GaveUp,
    /// It was a test, of which there is one attempt, and the receiver has not taken it.
    Failed,
}

/// One webhook.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// The revision by which the webhook was written when this control plane saw it first.
    since: u64,
    secrets: Arc<HostSecrets>,
    state: Mutex<State>,
    /// Wakes the task.
    changed: Notify,
    /// Cancelled when the webhook is deleted or disabled.
    pub(super) gone: CancellationToken,
}

#[derive(Debug)]
struct State {
    webhook: Arc<Webhook>,
    queue: Queue,
    /// The newest last.
    attempts: VecDeque<Attempt>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    delivered: u64,
    retried: u64,
    refused: u64,
    gave_up: u64,
    dropped: u64,
}

/// The attempts that are kept.
const ATTEMPTS: usize = 50;

/// The longest error that is kept, bytes.
const MAX_ERROR: usize = 500;

/// At the end, events that were never tried are tried within this time.
const END_TIME: Duration = Duration::from_secs(2);

impl Endpoint {
    pub(super) fn new(webhook: Webhook, since: u64, secrets: Arc<HostSecrets>) -> Self {
        let state = State {
            webhook: Arc::new(webhook),
            queue: Queue::default(),
            attempts: VecDeque::new(),
            counts: Counts::default(),
        };
        let (changed, gone) = (Notify::new(), CancellationToken::new());
        Self { since, secrets, state: Mutex::new(state), changed, gone }
    }

    /// Takes a new version of the webhook. Events that wait for another attempt are sent at once: the old version may have been wrong.
    pub(super) fn replace(&self, webhook: &Webhook) {
        let mut state = self.state();
        if *state.webhook == *webhook {
            return;
        }
        state.webhook = Arc::new(webhook.clone());
        state.queue.hurry(Instant::now());
        drop(state);
        self.changed.notify_one();
    }

    pub(super) fn webhook(&self) -> Arc<Webhook> {
        Arc::clone(&self.state().webhook)
    }

    /// True if the webhook is to get the event.
    pub(super) fn wants(&self, event: &Event) -> bool {
        event.is_wanted_by(&self.state().webhook, self.since)
    }

    /// Adds an event that is to be delivered.
    pub(super) fn push(&self, event: Arc<Event>) {
        let mut state = self.state();
        let pushed = state.queue.push(event, Instant::now());
        if pushed != Pushed::Added {
            state.counts.dropped += 1;
        }
        if pushed == Pushed::DroppedFirst {
            let webhook = &state.webhook.name;
            tracing::warn!(%webhook, "{CAPACITY} events wait for a webhook, so the oldest are dropped");
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Sends the events in the queue until `end`, or until the webhook is gone. After `end`, when no event is added any more, those that were
    /// never tried are tried once, as far as that takes no longer than [`END_TIME`].
    pub(super) async fn run(self: Arc<Self>, end: CancellationToken) {
        // The attempt that goes on at the end may wait for an answer in vain, so it holds up no others.
        let sending = async { tokio::join!(self.send_until(&end), self.send_untried_after(&end)) };
        let deadline = async {
            end.cancelled().await;
            tokio::time::sleep(END_TIME).await;
        };
        tokio::select! {
            _ = sending => {}
            () = deadline => {}
            () = self.gone.cancelled() => self.state().queue.clear(),
        }
        let state = self.state();
        let left = state.queue.len();
        if left > 0 && !self.gone.is_cancelled() {
            let webhook = &state.webhook.name;
            tracing::warn!(%webhook, events = left, "the control plane ends, and events are not delivered");
        }
    }

    async fn send_until(&self, end: &CancellationToken) {
        while !end.is_cancelled() {
            let next = self.state().queue.next(Instant::now());
            let wait = match next {
                Next::Send(pending) => {
                    self.deliver(pending).await;
                    continue;
                }
                Next::Empty => None,
                Next::Wait(wait) => Some(wait),
            };
            tokio::select! {
                () = end.cancelled() => {}
                () = self.changed.notified() => {}
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
    }

    async fn send_untried_after(&self, end: &CancellationToken) {
        end.cancelled().await;
        loop {
            let next = self.state().queue.next_untried();
            let Some(pending) = next else { return };
            self.deliver(pending).await;
        }
    }

    /// Makes one attempt, and decides what follows.
    async fn deliver(&self, mut pending: Pending) {
        let webhook = self.webhook();
        let began = Instant::now();
        let first = *pending.began.get_or_insert(began);
        pending.attempts = pending.attempts.saturating_add(1);
        let (mut attempt, outcome) = attempt(&webhook, &pending.event, &self.secrets, pending.attempts).await;
        let verdict = judge(outcome, pending.attempts, first.elapsed(), fastrand::f64());
        let mut state = self.state();
        let counts = &mut state.counts;
        (attempt.result, attempt.next_ms) = match verdict {
            Verdict::Delivered => (AttemptResult::Delivered, None),
            Verdict::Refused => (AttemptResult::Refused, None),
            Verdict::GaveUp => (AttemptResult::GaveUp, None),
            Verdict::Again(pause) => (AttemptResult::Retried, Some(millis(pause))),
        };
        match attempt.result {
            AttemptResult::Delivered => counts.delivered += 1,
            AttemptResult::Retried => counts.retried += 1,
            AttemptResult::Refused => counts.refused += 1,
            AttemptResult::GaveUp | AttemptResult::Failed => counts.gave_up += 1,
        }
        // An outage of the receiver is logged once for each event: at its first attempt, and at its end.
        if attempt.result != AttemptResult::Delivered
            && (attempt.result != AttemptResult::Retried || attempt.attempt == 1)
        {
            let Attempt { result, status, error, id, .. } = &attempt;
            let error = error.as_deref().unwrap_or_default();
            tracing::warn!(webhook = %webhook.name, ?result, status, error, event = id, "an event was not delivered");
        }
        match verdict {
            Verdict::Again(pause) => state.queue.put_back(pending, Instant::now() + pause),
            Verdict::Delivered | Verdict::Refused | Verdict::GaveUp => state.queue.end(),
        }
        state.keep(attempt);
    }

    /// Sends an event once, whatever is in the queue.
    pub(super) async fn test(&self) -> Attempt {
        let webhook = self.webhook();
        let event = Event::test(webhook.name.as_str(), now_us());
        let (mut attempt, outcome) = attempt(&webhook, &event, &self.secrets, 1).await;
        let is_delivered = matches!(outcome, Outcome::Answered(status, _) if status.is_success());
        attempt.result = if is_delivered { AttemptResult::Delivered } else { AttemptResult::Failed };
        self.state().keep(attempt.clone());
        attempt
    }

    /// The number of events that are to be delivered, and the last attempts, the newest first.
    pub(super) fn deliveries(&self) -> (usize, Vec<Attempt>) {
        let state = self.state();
        (state.queue.len(), state.attempts.iter().rev().cloned().collect())
    }

    pub(super) fn counts(&self) -> WebhookCounts {
        let state = self.state();
        let Counts { delivered, retried, refused, gave_up, dropped } = state.counts;
        WebhookCounts {
            webhook: state.webhook.name.to_string(),
            queue: state.queue.len() as u64,
            results: [
                ("delivered", delivered),
                ("retried", retried),
                ("refused", refused),
                ("gave_up", gave_up),
                ("dropped", dropped),
            ],
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn keep(&mut self, attempt: Attempt) {
        if self.attempts.len() >= ATTEMPTS {
            self.attempts.pop_front();
        }
        self.attempts.push_back(attempt);
    }
}

/// Makes one attempt. Its result and the next one are to be filled in.
async fn attempt(webhook: &Webhook, event: &Event, secrets: &HostSecrets, number: u32) -> (Attempt, Outcome) {
    let (at_us, began) = (now_us(), Instant::now());
    let called = post(webhook, event, secrets, at_us / 1_000_000).await;
    let (status, error, outcome) = match called {
        Ok(answer) => {
            let outcome = Outcome::Answered(answer.status, answer.retry_after);
            (Some(answer.status.as_u16()), None, outcome)
        }
        Err(error) => {
            let mut text = ErrorChain(&error).to_string();
            text.truncate(text.floor_char_boundary(MAX_ERROR));
            (None, Some(text), Outcome::Failed)
        }
    };
    let attempt = Attempt {
        at: rfc3339(at_us),
        event: event.name().to_owned(),
        id: event.id_for(&webhook.name),
        attempt: number,
        result: AttemptResult::Retried,
        status,
        error,
        took_ms: millis(began.elapsed()),
        next_ms: None,
    };
    (attempt, outcome)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
