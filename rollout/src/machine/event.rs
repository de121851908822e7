//! The events that the machine folds, and the decisions that it makes.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use signalbox_config::RolloutPolicy;

use super::reason::Reason;
use super::state::{RevertRange, Revision, Rollout, RolloutState};
use crate::gate::Judgement;
use crate::members::Proxy;
use crate::target::FleetTarget;

/// Something that happened to a fleet.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// A leader took over. Evidence begins anew; soak time and deadlines go on. A term that is not higher than the one before has no
    /// effect.
    Lead {
        /// The leader's term.
        term: u64,
    },
    /// A revision was committed. One that is not newer than the head has no effect.
    Write(Write),
    /// Time has passed.
    Look(Look<'a>),
    /// A person gave a command.
    Operator(Command),
    /// The changes of a range were taken back by a new revision, or could not be: the reason.
    Reverted {
        /// The id of the rollout that the decision named.
        rollout: Arc<str>,
        /// The result.
        result: Result<(), Arc<str>>,
    },
}

/// A committed revision.
#[derive(Debug, Clone)]
pub struct Write {
    /// The revision.
    pub revision: Revision,
    /// The way in which it is to reach the fleet.
    pub urgency: Urgency,
}

/// The way in which a revision is to reach a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Urgency {
    /// As the policy says.
    Normal,
    /// Over one canary, for a short time. The reason is for the log.
    Emergency(Arc<str>),
    /// At once. The reason is for the log.
    BreakGlass(Arc<str>),
}

/// One look at a fleet.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// The round ([`State::round`](super::State::round)) in which the readings were made.
    pub round: u64,
    /// The time since the look before, by the monotonic clock of the leader; zero for a leader's first look.
    pub elapsed: Duration,
    /// The judgement of the gates. Its healthy time counts as soak, but never more of it than time has passed.
    pub judgement: &'a Judgement,
}

/// The longest time between two looks that counts. After a longer one the leader was away: nothing of it counts, and evidence begins
/// anew.
pub const MAX_ELAPSED: Duration = Duration::from_secs(10);

/// A command of a person.
#[derive(Debug, Clone)]
pub struct Command {
    /// The id of the rollout.
    pub rollout: Arc<str>,
    /// The action.
    pub action: Action,
    /// The reason, for the log.
    pub reason: Arc<str>,
}

/// The action of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Lets a rollout begin that needs approval.
    Approve,
    /// Stops the clocks of a rollout. Gates are still watched.
    Pause,
    /// Lets a rollout go on that is paused or held. A step that was held has its whole deadline again.
    Resume,
    /// Ends the step, or the bake time, without waiting for more evidence.
    Promote,
    /// Gives the revision to the whole fleet without the steps that are left.
    Skip,
    /// Takes the revision back from its canaries, and holds the fleet.
    Abort,
    /// Aborts, and takes the changes back by a new revision.
    Revert,
    /// Begins a rollout anew that has failed or was aborted. Nothing of its evidence counts.
    Retry,
}

/// The facts of the moment, beside the event.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The fleet's policy.
    pub policy: &'a RolloutPolicy,
    /// The proxies of the fleet that have a stream, or had one since the rollout under way began. They do not matter, and may be left out,
    /// if the strategy is immediate and no rollout is under way.
    pub proxies: &'a [Proxy<'a>],
    /// True if a freeze window is open.
    pub is_frozen: bool,
}

/// A decision. Those of one event are stored in one transaction with the state that comes with them, which fails if the state in the store
/// is no longer the one before.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Proxies get other revisions. There is at most one in the decisions of an event.
    Assign(FleetTarget),
    /// The changes of a range are to be taken back by a new revision, after the transaction. The decision is repeated at each look until
    /// [`Event::Reverted`] tells the result.
    Revert {
        /// The id of the rollout.
        rollout: Arc<str>,
        /// The range.
        range: RevertRange,
    },
    /// A rollout has ended.
    Finish(Box<Rollout>),
    /// An entry for the log of a rollout.
    Log {
        /// The id of the rollout.
        rollout: Arc<str>,
        /// The state of the rollout after the entry.
        state: RolloutState,
        /// The reason.
        reason: Reason,
    },
}

/// A command that cannot be obeyed. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The state of the rollout; `None`: no rollout of this id is under way, waits, or holds the fleet.
    pub state: Option<RolloutState>,
    /// The reason, for a person.
    pub text: String,
}
