//! Decisions about fleets, their leader and the state of rollouts, as the store has them.

use std::sync::Arc;

use signalbox_rollout::FleetTarget;

/// The decisions in force for all fleets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetTargets {
    /// Rises with every change.
    pub version: u64,
    /// By fleet.
    pub targets: Vec<FleetTarget>,
}

/// The decision in force for a fleet, with the state of the fleet's rollouts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetState {
    /// The decision.
    pub target: FleetTarget,
    /// JSON; `None`: no leader has decided anything since the fleet was pinned.
    pub state: Option<String>,
    /// JSON; what was usual in the last hour.
    pub history: Option<String>,
}

/// The term of a leader. No two leaders have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term(pub u64);

/// Decisions that are put in force together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decisions {
    /// The next decision for each fleet that has one: each takes the place of the decision of the generation before.
    pub targets: Vec<FleetTarget>,
    /// The state of the rollouts of each fleet that it changed for, as the leader reads it again; by fleet.
    pub states: Vec<(Arc<str>, String)>,
    /// The last hour of each fleet, JSON.
    pub histories: Vec<(Arc<str>, String)>,
    /// Rollouts, for the history; each replaces the one of the same id.
    pub runs: Vec<RolloutRun>,
    /// The answers to commands, JSON, by the command's id.
    pub answers: Vec<(u64, String)>,
}

/// The outcome of putting decisions in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    /// All of them are in force.
    Done,
    /// Nothing was written: another leader has a later term, or the lease expired.
    NotLeader,
    /// Nothing was written: the decision in force for a fleet is not the one that the new one was made from.
    Outdated,
}

/// A rollout, for the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutRun {
    /// The id of the rollout.
    pub id: String,
    /// The fleet.
    pub fleet: String,
    /// The revision that is rolled out.
    pub revision: u64,
    /// True if nothing happens with it any more.
    pub finished: bool,
    /// JSON.
    pub state: String,
}

/// A fleet whose policy became progressive with a revision: from its base on, only decisions change what its proxies serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedFleet {
    /// The fleet.
    pub fleet: Arc<str>,
    /// The revision that its proxies go on serving.
    pub stable: u64,
}

/// The way in which a revision is to reach progressive fleets, other than by their policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Urgent {
    /// The way.
    pub mode: UrgentMode,
    /// The reason, as a person gave it.
    pub reason: String,
}

/// A way around the steps of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UrgentMode {
    /// Over one canary, for a short time.
    Emergency,
    /// To all proxies at once.
    BreakGlass,
}

/// A revision that is to reach progressive fleets otherwise than by their policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrgentRevision {
    /// Its number.
    pub number: u64,
    /// The way.
    pub urgent: Urgent,
}

/// A command of a person that the leader has not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Its number.
    pub id: u64,
    /// The fleet.
    pub fleet: String,
    /// JSON.
    pub command: String,
}

/// Counts of proxies that another control plane stored for the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountsRow {
    /// Rises with every row.
    pub id: u64,
    /// JSON.
    pub counts: String,
}

impl UrgentMode {
    /// The name, as it is stored.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Emergency => "emergency",
            Self::BreakGlass => "break_glass",
        }
    }

    /// The mode of a stored name.
    pub(super) fn parse(name: &str) -> Option<Self> {
        [Self::Emergency, Self::BreakGlass].into_iter().find(|mode| mode.as_str() == name)
    }
}
