//! Waiting for a fleet to serve a revision.

use std::time::{Duration, Instant};

use signalbox_process::ErrorChain;

use super::service::Board;
use super::state::Sharing;
use super::status::{Rollout, WaitResult, Waiting};
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

impl Board {
    /// Waits until every connected proxy of `fleet` (`None`: of all) serves `revision` or a later one, or one has
    /// rejected it, or `deadline` passes. Proxies without a stream hold nothing up; those of unknown state do. Cancel safe.
    pub async fn wait(&self, revision: u64, fleet: Option<&str>, deadline: Instant) -> WaitOutcome {
        let mut progress = self.progress.subscribe();
        let deadline = tokio::time::Instant::from_std(deadline);
        loop {
            progress.mark_unchanged();
            let convergence = self.state().convergence(revision, fleet);
            let (convergence, unknown) = match convergence {
                Some(WaitResult::Done) if self.sharing == Sharing::Shared => {
                    match tokio::time::timeout_at(deadline, self.convergence_across_replicas(revision, fleet))
                        .await
                    {
                        Ok(Ok(convergence)) => (convergence, None),
                        Ok(Err(error)) => (None, Some(ErrorChain(&error).to_string())),
                        Err(_) => (None, Some("the database did not answer in time".to_owned())),
                    }
                }
                convergence => (convergence, None),
            };
            let again = if unknown.is_some() { tokio::time::Instant::now() + RETRY } else { deadline };
            let result = match convergence {
                Some(result) => result,
                None => match tokio::time::timeout_at(again.min(deadline), progress.changed()).await {
                    Ok(_) => continue,
                    Err(_) if tokio::time::Instant::now() < deadline => continue,
                    Err(_) => WaitResult::TimedOut,
                },
            };
            let state = self.state();
            let (waiting, waiting_count) = match result {
                WaitResult::TimedOut => state.waited_for(revision, fleet, Self::SHOWN_WAITING),
                WaitResult::Done | WaitResult::Rejected => (Vec::new(), 0),
            };
            let rollouts = state.rollouts_of(revision, fleet);
            return WaitOutcome { result, rollouts, waiting, waiting_count, unknown };
        }
    }

    /// How many proxies are named that a wait waited for in vain.
    const SHOWN_WAITING: usize = 20;

    /// Reads what the other control planes wrote, and then looks how a wait stands.
    async fn convergence_across_replicas(
        &self,
        revision: u64,
        fleet: Option<&str>,
    ) -> Result<Option<WaitResult>, StoreError> {
        self.refresh().await?;
        let state = self.state();
        if state.is_incomplete(Instant::now()) {
            return Ok(None);
        }
        Ok(state.convergence(revision, fleet))
    }
}

/// How soon a wait that looks done asks a database again that did not answer.
const RETRY: Duration = Duration::from_millis(200);
