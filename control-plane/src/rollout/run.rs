//! The record of a rollout, as it is stored for the history and for the API of all control planes.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use signalbox_rollout::Reading;
use signalbox_rollout::machine::{Phase, Reason, Rollout, RolloutState, StepState};

use crate::board::{Propagation, RolloutCounts};

/// Events that are kept of a rollout.
const MAX_EVENTS: usize = 200;

/// The record of a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Run {
    /// The progress, without the ids of the canaries.
    pub(super) rollout: Rollout,
    pub(super) fleet: Arc<str>,
    /// The revision of the proxies that do not have this one.
    pub(super) stable: u64,
    /// The time at which the leader first saw the revision, in microseconds since 1970.
    pub(super) started_at_us: i64,
    pub(super) finished_at_us: Option<i64>,
    /// The last readings of the gates.
    pub(super) readings: Vec<Reading>,
    pub(super) events: VecDeque<RunEvent>,
    /// The counts at the end.
    pub(super) counts: Option<RolloutCounts>,
    /// The time at which each step began, in microseconds since 1970.
    #[serde(default)]
    pub(super) steps_began_us: Vec<Option<i64>>,
    /// How long the proxies took to serve the revision, each since the decision that gave it to the proxy.
    #[serde(default)]
    pub(super) propagation: Option<Propagation>,
    /// The result of taking the changes back by a new revision, if that was asked for.
    #[serde(default)]
    pub(super) revert: Option<Revert>,
}

/// The result of taking the changes of a rollout back by a new revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Revert {
    /// It is not known yet.
    Pending,
    Done,
    /// The reason why not.
    Refused(Arc<str>),
}

/// Something that happened to a rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RunEvent {
    /// Microseconds since 1970.
    pub(super) at_us: i64,
    pub(super) state: RolloutState,
    /// The name of the token of the person who did it.
    pub(super) actor: Option<String>,
    pub(super) reason: Reason,
}

impl Run {
    pub(super) fn new(fleet: Arc<str>, stable: u64, rollout: &Rollout, now_us: i64) -> Self {
        let mut run = Self {
            rollout: without_members(rollout),
            fleet,
            stable,
            started_at_us: now_us,
            finished_at_us: None,
            readings: Vec::new(),
            events: VecDeque::new(),
            counts: None,
            steps_began_us: Vec::new(),
            propagation: None,
            revert: None,
        };
        run.set(rollout, now_us);
        run
    }

    /// Reads a stored record; `None`: another version of the program wrote it.
    pub(super) fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text)
            .inspect_err(|error| tracing::warn!(%error, "the record of a rollout cannot be read"))
            .ok()
    }

    /// True if a part of the fleet, or all of it, has the revision, and it is not known yet if the fleet keeps it.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self.rollout.phase, Phase::Step(_) | Phase::Baking)
    }

    pub(super) fn set(&mut self, rollout: &Rollout, now_us: i64) {
        self.rollout = without_members(rollout);
        self.steps_began_us.resize(rollout.steps.len(), None);
        for (step, began) in rollout.steps.iter().zip(&mut self.steps_began_us) {
            if !matches!(step.state, StepState::Pending | StepState::Skipped) {
                began.get_or_insert(now_us);
            }
        }
    }

    pub(super) fn push(&mut self, event: RunEvent) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

impl RunEvent {
    /// Writes the event to the log of the program. An operator has to know when a revision is taken back, or needs a decision.
    pub(super) fn log(&self, rollout: &str) {
        let (state, reason) = (self.state, &*self.reason.text);
        let actor = self.actor.as_deref().unwrap_or_default();
        match state {
            RolloutState::Failed | RolloutState::Held if self.actor.is_none() => {
                tracing::warn!(rollout, ?state, reason, actor, "a rollout does not go on");
            }
            _ => tracing::info!(rollout, ?state, reason, actor, "a rollout went on"),
        }
    }
}

/// A fleet's canaries may be thousands, and the fleet's target has them.
fn without_members(rollout: &Rollout) -> Rollout {
    Rollout { members: Arc::default(), ..rollout.clone() }
}
