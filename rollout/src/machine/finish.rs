//! The end of rollouts: what the fleet keeps, and what holds it.

use std::sync::Arc;

use signalbox_config::OnFailure;

use super::Machine;
use super::event::Decision;
use super::reason::{Code, Reason};
use super::state::{Hold, Outcome, Phase, RevertRange, Rollout, Stop};

impl Machine<'_> {
    /// Ends the rollout that was under way.
    pub(super) fn end(&mut self, mut rollout: Rollout, outcome: Outcome, reason: Reason) {
        match outcome {
            Outcome::Succeeded { proven } => {
                self.keep(&rollout);
                if proven {
                    self.state.proven = Some(rollout.revision.clone());
                }
            }
            Outcome::Failed | Outcome::Aborted => {
                let range = RevertRange { after: self.state.stable.number, through: rollout.revision.number };
                let reverts =
                    outcome == Outcome::Failed && self.context.policy.on_failure == OnFailure::Revert;
                self.hold(&rollout, outcome, &reason, reverts.then_some(range));
            }
            Outcome::Superseded if rollout.has_whole_fleet() => {
                // All proxies have it, so the one that follows is compared with it, and is taken back to it.
                self.keep(&rollout);
            }
            Outcome::Superseded => {}
        }
        self.state.round += 1;
        self.close(&mut rollout, outcome, reason);
    }

    /// Makes the revision of a rollout stable, which ends the hold for one that it contains. A newer one that was aborted before it began
    /// holds the fleet further.
    fn keep(&mut self, rollout: &Rollout) {
        self.state.stable = rollout.revision.clone();
        self.state.hold.take_if(|hold| hold.revision.number <= rollout.revision.number);
    }

    /// Ends a rollout that has not begun, without an effect on the fleet.
    pub(super) fn close(&mut self, rollout: &mut Rollout, outcome: Outcome, reason: Reason) {
        rollout.phase = Phase::Ended(outcome);
        rollout.stop = None;
        self.note(rollout, reason);
        self.decisions.push(Decision::Finish(Box::new(rollout.clone())));
    }

    /// Holds the fleet at its stable revision. A revert that has no result yet is asked for further, unless there is a new one, which
    /// contains it.
    pub(super) fn hold(
        &mut self,
        rollout: &Rollout,
        outcome: Outcome,
        reason: &Reason,
        revert: Option<RevertRange>,
    ) {
        let pending = self.state.hold.take().and_then(|hold| hold.revert);
        self.state.hold = Some(Hold {
            rollout: Arc::clone(&rollout.id),
            attempt: rollout.attempt,
            revision: rollout.revision.clone(),
            outcome,
            reason: reason.clone(),
            revert: revert.or(pending),
        });
        self.remind_of_revert();
    }

    /// Holds the revision that waits, because it contains one that a person aborted.
    pub(super) fn hold_queued(&mut self) {
        if let Some(mut queued) = self.state.queued.take() {
            queued.stop = Some(Stop::Held);
            let text = "It contains the changes of a revision that was aborted; resume it, or write another";
            self.note(&mut queued, Reason::new(Code::IncludesAborted, text));
            self.state.queued = Some(queued);
        }
    }

    /// Asks for the revert that has no result yet.
    pub(super) fn remind_of_revert(&mut self) {
        if let Some(hold) = &self.state.hold
            && let Some(range) = hold.revert
        {
            self.decisions.push(Decision::Revert { rollout: Arc::clone(&hold.rollout), range });
        }
    }

    /// Folds the result of a revert.
    pub(super) fn reverted(&mut self, rollout: &str, result: &Result<(), Arc<str>>) {
        let Some(hold) = &mut self.state.hold else { return };
        if *hold.rollout != *rollout || hold.revert.take().is_none() {
            return;
        }
        if let Err(text) = result {
            let text = format!("{}. Its changes could not be taken back: {text}", hold.reason.text);
            let reason = Reason { code: Code::RevertRefused, text: text.into(), ..hold.reason.clone() };
            hold.reason = reason.clone();
            let (rollout, state) = (Arc::clone(&hold.rollout), hold.outcome.state());
            self.decisions.push(Decision::Log { rollout, state, reason });
        }
        self.begin_queued();
    }
}
