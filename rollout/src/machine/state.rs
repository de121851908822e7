//! The state of a fleet's rollouts: the values that the leader stores, and from which another one goes on.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use signalbox_config::StepSize;

use super::reason::Reason;
use crate::gate::StepKey;
use crate::members::Members;
use crate::target::{Candidate, FleetTarget, Plan};

/// The state of a fleet's rollouts. A leader stores it in the transaction of the decisions that come with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The fleet.
    pub fleet: Arc<str>,
    /// The number of the decision that is in force for the fleet's proxies.
    pub generation: u64,
    /// The term of the leader that looks after the fleet.
    pub term: u64,
    /// The last revision that reached the whole fleet and was kept.
    pub stable: Revision,
    /// The last revision that was kept after its bake time.
    pub proven: Option<Revision>,
    /// The number of the newest revision that the machine was told of.
    pub head: u64,
    /// True if all proxies serve the newest revision as soon as it is committed. The writer pins the fleet to a revision when its
    /// policy becomes progressive; then a leader begins with a new state.
    pub follows_head: bool,
    /// The rollout that is under way.
    pub current: Option<Rollout>,
    /// The rollout of the newest revision, which has not begun.
    pub queued: Option<Rollout>,
    /// The reason why the newest revision has not reached the fleet though no rollout is under way.
    pub hold: Option<Hold>,
    /// The number of the round: in each round evidence begins anew. Readings of an earlier round have no effect.
    pub round: u64,
}

/// A revision, as one fleet sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// Its number.
    pub number: u64,
    /// The digest of all resources that the fleet's proxies get. Equal content is one thing, whatever its number and however it was
    /// written down.
    pub content: Arc<str>,
}

/// The delivery of one revision to a fleet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// `REVISION-FLEET`, and `REVISION-FLEET~ATTEMPT` from the second attempt on.
    pub id: Arc<str>,
    /// The revision that is delivered.
    pub revision: Revision,
    /// Counts the rollouts of this revision, from 1. One that takes the place of another one with the same content, before that has begun,
    /// has its attempt.
    pub attempt: u32,
    /// The rules that it follows.
    pub mode: Mode,
    /// Its progress.
    pub phase: Phase,
    /// The reason why it does not go on by itself.
    pub stop: Option<Stop>,
    /// The reason of the last thing that happened to it.
    pub reason: Option<Reason>,
    /// True if a person has approved it.
    pub approved: bool,
    /// The steps, from small to large. The last one is the whole fleet.
    pub steps: Vec<StepProgress>,
    /// The proxies that have the revision, until the whole fleet has it.
    pub members: Arc<Members>,
    /// Canaries that were sick alone, and have the stable revision again.
    pub swapped: Members,
    /// Proxies of the fleet that are silent, those that were so when the rollout began included.
    pub lost: Members,
    /// The number of times that a member was lost.
    pub losses: u32,
    /// The number of times that another proxy was lost.
    pub rest_losses: u32,
    /// Milliseconds since the step, or the bake time, began or its deadline was reset. Time in which the rollout could not go on does not
    /// count.
    pub since_ms: u64,
    /// Milliseconds that have passed since the last look without evidence and have not soaked.
    pub unsoaked_ms: u64,
    /// The generation under which a request must have begun to count as evidence.
    pub generation: u64,
    /// The healthy time, with enough requests to judge, of the bake time.
    pub baked_ms: u64,
    /// The bake time that is needed.
    pub bake_ms: u64,
    /// A failed or aborted revision whose changes this one contains.
    pub includes: Option<u64>,
    /// The rollout that took the place of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded_by: Option<Successor>,
}

/// The rollout that took the place of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Successor {
    /// The id.
    pub rollout: Arc<str>,
    /// True if it brings the same content, so that what was decided about the other one holds for it.
    pub same_content: bool,
}

/// The progress of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It has not begun.
    Waiting,
    /// It is in the step of this index.
    Step(usize),
    /// The whole fleet has the revision.
    Baking,
    /// It has ended.
    Ended(Outcome),
}

/// The end of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The fleet keeps the revision.
    Succeeded {
        /// True if the bake time has passed with evidence.
        proven: bool,
    },
    /// A gate failed.
    Failed,
    /// A person, or the policy, ended it.
    Aborted,
    /// A newer revision took its place.
    Superseded,
}

/// The reason why a rollout does not go on by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// A person paused it.
    Paused,
    /// It needs a decision: there was too little evidence, or an earlier revision that it contains was aborted.
    Held,
}

/// The rules that a rollout follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The policy's steps, with all gates.
    Steps,
    /// One canary for a short time, then the whole fleet; only rejections and losses count. Freezes and approval do not matter.
    Emergency,
    /// The whole fleet at once. Freezes and approval do not matter.
    BreakGlass,
}

/// The state of a rollout, as the API shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// It has not begun.
    Waiting,
    /// It is in one of its steps.
    Running,
    /// A person paused it.
    Paused,
    /// It needs a person's decision.
    Held,
    /// The whole fleet has the revision, and it is not proven.
    Baking,
    /// The fleet keeps the revision.
    Succeeded,
    /// A gate failed.
    Failed,
    /// A person, or the policy, ended it.
    Aborted,
    /// A newer revision took its place.
    Superseded,
}

/// The progress of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepProgress {
    /// The size.
    pub size: StepSize,
    /// The healthy time, with enough requests to judge, that is needed, in milliseconds.
    pub soak_ms: u64,
    /// The healthy time so far.
    pub healthy_ms: u64,
    /// The number of members at the start of the step; for the whole fleet, that of the proxies that were there.
    pub proxies: u32,
    /// The state.
    pub state: StepState,
}

/// The state of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// It has not begun.
    Pending,
    /// It is under way.
    Running,
    /// It has soaked.
    Passed,
    /// A person, or the policy, ended it before its evidence was enough.
    Promoted,
    /// It was left out.
    Skipped,
}

/// The reason why the newest revision has not reached the fleet though no rollout is under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    /// The id of the rollout that ended without success.
    pub rollout: Arc<str>,
    /// Its attempt.
    pub attempt: u32,
    /// The revision that is not retried by itself.
    pub revision: Revision,
    /// The end of the rollout.
    pub outcome: Outcome,
    /// The reason of the end, and why the changes could not be taken back, if so.
    pub reason: Reason,
    /// The range of revisions that is to be taken back and has not been yet.
    pub revert: Option<RevertRange>,
}

/// A range of revisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevertRange {
    /// The revision before the first of the range.
    pub after: u64,
    /// The last of the range.
    pub through: u64,
}

impl State {
    /// The state of a fleet that is pinned to `stable`. The generation of the decision that pinned it is to be set.
    pub fn new(fleet: Arc<str>, stable: Revision) -> Self {
        Self {
            fleet,
            generation: 0,
            term: 0,
            head: stable.number,
            follows_head: false,
            stable,
            proven: None,
            current: None,
            queued: None,
            hold: None,
            round: 0,
        }
    }

    /// The decision that is in force for the fleet's proxies.
    pub fn target(&self) -> FleetTarget {
        let (stable, canaries) = self.served();
        let plan = match canaries {
            _ if self.follows_head => Plan::Head,
            None => Plan::Stable { revision: stable.number },
            Some(rollout) => Plan::Split {
                stable: stable.number,
                candidate: Candidate {
                    revision: rollout.revision.number,
                    rollout: Arc::clone(&rollout.id),
                    members: (*rollout.members).clone(),
                    emergency: rollout.mode != Mode::Steps,
                },
            },
        };
        FleetTarget { fleet: Arc::clone(&self.fleet), generation: self.generation, term: self.term, plan }
    }

    /// True if the proxies are to serve other revisions than in the state before.
    pub(super) fn serves_other_than(&self, before: &Self) -> bool {
        if self.follows_head || before.follows_head {
            return self.follows_head != before.follows_head;
        }
        let ((stable, canaries), (old_stable, old_canaries)) = (self.served(), before.served());
        let parts = |rollout: Option<&Rollout>| rollout.map(|one| (one.id.clone(), one.members.clone()));
        stable.number != old_stable.number || parts(canaries) != parts(old_canaries)
    }

    /// The revision of the proxies that are no canaries, and the rollout of those that are.
    fn served(&self) -> (&Revision, Option<&Rollout>) {
        match &self.current {
            Some(rollout) if rollout.has_whole_fleet() => (&rollout.revision, None),
            current => (&self.stable, current.as_ref()),
        }
    }

    /// The key of the evidence that counts at this moment; `None` without a rollout under way.
    pub fn step_key(&self) -> Option<StepKey> {
        self.current.as_ref().map(|rollout| StepKey { round: self.round, generation: rollout.generation })
    }
}

impl Rollout {
    /// The state, as the API shows it.
    pub fn state(&self) -> RolloutState {
        match (self.phase, self.stop) {
            (Phase::Ended(outcome), _) => outcome.state(),
            (_, Some(Stop::Paused)) => RolloutState::Paused,
            (_, Some(Stop::Held)) => RolloutState::Held,
            (Phase::Waiting, None) => RolloutState::Waiting,
            (Phase::Step(_), None) => RolloutState::Running,
            (Phase::Baking, None) => RolloutState::Baking,
        }
    }

    /// True if all proxies of the fleet have the revision.
    pub fn has_whole_fleet(&self) -> bool {
        match self.phase {
            Phase::Step(index) => index + 1 >= self.steps.len(),
            Phase::Baking => true,
            Phase::Waiting | Phase::Ended(_) => false,
        }
    }
}

impl Outcome {
    /// The state of a rollout that ended so.
    pub fn state(self) -> RolloutState {
        match self {
            Self::Succeeded { .. } => RolloutState::Succeeded,
            Self::Failed => RolloutState::Failed,
            Self::Aborted => RolloutState::Aborted,
            Self::Superseded => RolloutState::Superseded,
        }
    }
}
