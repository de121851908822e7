//! The machine that decides when a rollout takes its next step, and when it is taken back: a function over values.
//!
//! It reads no clock: each look at a fleet brings the time that has passed. It sees no proxy: the caller brings what it knows of them. An
//! event is folded into the state that is stored, and the decisions come back as data, so that a leader that dies between any two of them
//! leaves nothing half done: the next one folds the same event into the same state.
//!
//! - [`State`] is all that is stored of a fleet; [`State::target`] is a pure function of it;
//! - an [`Event`] is a write, a look, a command of a person, or a change of the leader;
//! - a [`Decision`] is a [`FleetTarget`](crate::FleetTarget), an end of a rollout, a revert, or an entry for the log.

mod command;
mod event;
mod finish;
mod look;
mod losses;
mod reason;
mod start;
mod state;

use std::sync::Arc;

use signalbox_config::Strategy;

pub use event::{Action, Command, Context, Decision, Event, Look, MAX_ELAPSED, Refused, Urgency, Write};
pub use reason::{Code, Reason};
pub use state::{
    Hold, Mode, Outcome, Phase, RevertRange, Revision, Rollout, RolloutState, State, StepProgress, StepState,
    Stop, Successor,
};

/// Folds an event into the state of a fleet. Only commands of people can be refused.
///
/// The new state and the decisions depend on nothing else than the arguments.
pub fn step(
    state: &State,
    event: &Event<'_>,
    context: &Context<'_>,
) -> Result<(State, Vec<Decision>), Refused> {
    let mut machine = Machine { state: state.clone(), context: *context, decisions: Vec::new() };
    match event {
        Event::Lead { term } => machine.lead(*term),
        Event::Write(write) => machine.write(write),
        Event::Look(look) => machine.look(look),
        Event::Operator(command) => machine.operate(command)?,
        Event::Reverted { rollout, result } => machine.reverted(rollout, result),
    }
    machine.assign(state);
    Ok((machine.state, machine.decisions))
}

/// The state while an event is folded.
struct Machine<'a> {
    state: State,
    context: Context<'a>,
    decisions: Vec<Decision>,
}

impl Machine<'_> {
    fn lead(&mut self, term: u64) {
        if term > self.state.term {
            self.state.term = term;
            self.state.round += 1;
        }
    }

    /// Decides anew what the proxies are to serve, if that differs from what it was before the event.
    fn assign(&mut self, before: &State) {
        let state = &mut self.state;
        let is_at_rest = state.current.is_none() && state.queued.is_none() && state.hold.is_none();
        let is_immediate = self.context.policy.strategy == Strategy::Immediate;
        state.follows_head |= is_immediate && is_at_rest && state.stable.number == state.head;
        if self.state.serves_other_than(before) {
            self.state.generation = before.generation + 1;
            self.decisions.push(Decision::Assign(self.state.target()));
        }
        if self.state.round != before.round
            && let Some(rollout) = &mut self.state.current
        {
            rollout.generation = self.state.generation;
        }
    }

    /// Begins evidence anew for other canaries. What has soaked stays: it is the healthy time of the revision in the fleet.
    fn begin_round(&mut self, rollout: &mut Rollout) {
        self.state.round += 1;
        rollout.unsoaked_ms = 0;
    }

    /// Notes what happened to a rollout. The same thing again is not noted.
    fn note(&mut self, rollout: &mut Rollout, reason: Reason) {
        if rollout.reason.as_ref() == Some(&reason) {
            return;
        }
        self.decisions.push(Decision::Log {
            rollout: Arc::clone(&rollout.id),
            state: rollout.state(),
            reason: reason.clone(),
        });
        rollout.reason = Some(reason);
    }
}
