//! Waiting for a fleet to serve a revision, or for all proxies to carry out a purge.

use std::time::{Duration, Instant};

use signalbox_process::ErrorChain;

use super::service::Board;
use super::state::{Sharing, State};
use super::status::{PurgeProgress, Rollout, WaitResult, Waiting};
use crate::store::StoreError;

/// How a [`Board::wait`] ended.
#[derive(Debug, Clone)]
pub struct WaitOutcome {
    /// How.
    pub result: WaitResult,
    /// The revision's rollouts, one for each fleet that was waited for and has one.
    pub rollouts: Vec<Rollout>,
    /// When the time ran out: some of the proxies that were waited for.
    pub waiting: Vec<Waiting>,
    /// How many those are altogether.
    pub waiting_count: usize,
    /// When the time ran out because it could not be known: why.
    pub unknown: Option<String>,
}

/// The state of something that is waited for, as the board shows it.
enum Look<T> {
    /// It goes on.
    Pending,
    /// It has ended.
    Ended(T),
    /// It has ended unless another control plane knows otherwise.
    EndedHere(T),
}

impl Board {
    /// Waits until every connected proxy of `fleet` (`None`: of all) serves `revision` or a later one, or one has
    /// rejected it, or `deadline` passes. Proxies without a stream hold nothing up; those of unknown state do. Cancel safe.
    pub async fn wait(&self, revision: u64, fleet: Option<&str>, deadline: Instant) -> WaitOutcome {
        let look = |state: &State| match state.convergence(revision, fleet) {
            None => Look::Pending,
            Some(WaitResult::Done) => Look::EndedHere(WaitResult::Done),
            Some(result) => Look::Ended(result),
        };
        let (result, unknown) = self.wait_until(deadline, look).await;
        let result = result.unwrap_or(WaitResult::TimedOut);
        let state = self.state();
        let (waiting, waiting_count) = match result {
            WaitResult::TimedOut => state.waited_for(revision, fleet, Self::SHOWN_WAITING),
            WaitResult::Done | WaitResult::Rejected => (Vec::new(), 0),
        };
        let rollouts = state.rollouts_of(revision, fleet);
        WaitOutcome { result, rollouts, waiting, waiting_count, unknown }
    }

    /// Waits until every connected proxy has carried out the purge of this number, or `deadline` passes. Returns how the proxies stand
    /// to it, and why that could not be known. Proxies without a stream hold nothing up; those of unknown state do. Cancel safe.
    pub async fn wait_purged(&self, number: u64, deadline: Instant) -> (PurgeProgress, Option<String>) {
        let look = |state: &State| match state.is_purge_pending(number) {
            true => Look::Pending,
            false => Look::EndedHere(state.purge_progress(number, Self::SHOWN_WAITING)),
        };
        let (done, unknown) = self.wait_until(deadline, look).await;
        if let Some(done) = done {
            return (done, None);
        }
        let progress = self.state().purge_progress(number, Self::SHOWN_WAITING);
        let incomplete =
            || "a control plane was lost a moment ago, and its proxies may not be known yet".to_owned();
        let unknown = unknown.or_else(|| (progress.pending == 0).then(incomplete));
        (progress, unknown)
    }

    /// How many proxies are named that a wait waited for in vain.
    const SHOWN_WAITING: usize = 20;

    /// Looks at the board whenever something changes, until what is waited for has ended or `deadline` passes. Returns the end, and what kept
    /// it from being known.
    async fn wait_until<T>(
        &self,
        deadline: Instant,
        look: impl Fn(&State) -> Look<T>,
    ) -> (Option<T>, Option<String>) {
        let mut progress = self.progress.subscribe();
        let deadline = tokio::time::Instant::from_std(deadline);
        loop {
            progress.mark_unchanged();
            let seen = look(&self.state());
            let (ended, unknown) = match seen {
                Look::Pending => (None, None),
                Look::Ended(end) => (Some(end), None),
                Look::EndedHere(end) if self.sharing == Sharing::Alone => (Some(end), None),
                Look::EndedHere(_) => {
                    match tokio::time::timeout_at(deadline, self.look_across_replicas(&look)).await {
                        Ok(Ok(ended)) => (ended, None),
                        Ok(Err(error)) => (None, Some(ErrorChain(&error).to_string())),
                        Err(_) => (None, Some("the database did not answer in time".to_owned())),
                    }
                }
            };
            if ended.is_some() {
                return (ended, None);
            }
            let again = if unknown.is_some() { tokio::time::Instant::now() + RETRY } else { deadline };
            match tokio::time::timeout_at(again.min(deadline), progress.changed()).await {
                Err(_) if tokio::time::Instant::now() >= deadline => return (None, unknown),
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Reads what the other control planes wrote, and then looks again.
    async fn look_across_replicas<T>(
        &self,
        look: &impl Fn(&State) -> Look<T>,
    ) -> Result<Option<T>, StoreError> {
        self.refresh().await?;
        let state = self.state();
        if state.is_incomplete(Instant::now()) {
            return Ok(None);
        }
        Ok(match look(&state) {
            Look::Pending => None,
            Look::Ended(end) | Look::EndedHere(end) => Some(end),
        })
    }
}

/// How soon a wait that looks done asks a database again that did not answer.
const RETRY: Duration = Duration::from_millis(200);
