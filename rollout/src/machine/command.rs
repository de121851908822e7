//! The commands of people.

use std::sync::Arc;

use super::Machine;
use super::event::{Action, Command, Decision, Refused};
use super::look::End;
use super::reason::{Code, Reason};
use super::state::{Mode, Outcome, Phase, RevertRange, Rollout, RolloutState, StepState, Stop};

impl Machine<'_> {
    /// Obeys a command, or refuses it.
    pub(super) fn operate(&mut self, command: &Command) -> Result<(), Refused> {
        let names = |rollout: &Option<Rollout>| rollout.as_ref().is_some_and(|one| one.id == command.rollout);
        if names(&self.state.current)
            && let Some(rollout) = self.state.current.take()
        {
            return self.operate_current(rollout, command);
        }
        if names(&self.state.queued)
            && let Some(rollout) = self.state.queued.take()
        {
            return self.operate_queued(rollout, command);
        }
        if self.state.hold.as_ref().is_some_and(|hold| hold.rollout == command.rollout) {
            return self.operate_held(command);
        }
        let text = format!("no rollout {} is under way, waits, or holds its fleet", command.rollout);
        Err(Refused { state: None, text })
    }

    fn operate_current(&mut self, mut rollout: Rollout, command: &Command) -> Result<(), Refused> {
        let state = rollout.state();
        let by = || Reason::new(Code::Operator, format!("{}: {}", command.action.name(), command.reason));
        let end: Option<End> = match command.action {
            Action::Pause if !rollout.is_paused() => {
                rollout.stop = Some(Stop::Paused);
                self.note(&mut rollout, by());
                None
            }
            Action::Resume if rollout.stop.is_some() => {
                if rollout.stop.take() == Some(Stop::Held) {
                    rollout.since_ms = 0;
                }
                self.note(&mut rollout, by());
                None
            }
            Action::Promote | Action::Skip if rollout.is_frozen(self.context.is_frozen) => {
                return Err(refused(state, "a freeze window is open, in which no rollout goes forward"));
            }
            Action::Promote => {
                rollout.stop = None;
                self.note(&mut rollout, by());
                self.advance(&mut rollout, StepState::Promoted)
            }
            Action::Skip if !rollout.has_whole_fleet() => {
                rollout.stop = None;
                self.note(&mut rollout, by());
                self.skip(&mut rollout)
            }
            Action::Abort | Action::Revert => {
                let range = self.range_through(&rollout);
                self.end(rollout, Outcome::Aborted, by());
                if command.action == Action::Revert {
                    self.ask_for_revert(range);
                }
                self.hold_queued();
                return Ok(());
            }
            Action::Pause | Action::Resume | Action::Skip | Action::Approve | Action::Retry => {
                return Err(refused(state, command.action.misfit()));
            }
        };
        match end {
            Some((outcome, reason)) => self.end(rollout, outcome, reason),
            None => self.state.current = Some(rollout),
        }
        Ok(())
    }

    fn operate_queued(&mut self, mut rollout: Rollout, command: &Command) -> Result<(), Refused> {
        let state = rollout.state();
        let by = Reason::new(Code::Operator, format!("{}: {}", command.action.name(), command.reason));
        match command.action {
            Action::Approve if self.context.policy.needs_approval && !rollout.approved => {
                rollout.approved = true;
            }
            Action::Pause if !rollout.is_paused() => rollout.stop = Some(Stop::Paused),
            Action::Resume if rollout.stop.is_some() => rollout.stop = None,
            Action::Revert if !self.has_room_for_revert(self.range_through(&rollout)) => {
                let text =
                    "other changes are being taken back, and not those before it; try again, or abort it";
                return Err(refused(state, text));
            }
            Action::Abort | Action::Revert => {
                let range = self.range_through(&rollout);
                self.close(&mut rollout, Outcome::Aborted, by.clone());
                self.hold(&rollout, Outcome::Aborted, &by, None);
                if command.action == Action::Revert {
                    self.ask_for_revert(range);
                }
                return Ok(());
            }
            _ => return Err(refused(state, command.action.misfit())),
        }
        self.note(&mut rollout, by);
        self.state.queued = Some(rollout);
        self.begin_queued();
        Ok(())
    }

    /// Obeys a command about a rollout that has ended without success and holds the fleet.
    fn operate_held(&mut self, command: &Command) -> Result<(), Refused> {
        let Some(through) = self.state.hold.as_ref().map(|hold| hold.revision.number) else { return Ok(()) };
        let range = RevertRange { after: self.served_before(through), through };
        let has_room = self.has_room_for_revert(range);
        let Some(hold) = &mut self.state.hold else { return Ok(()) };
        // Those of an older revision may be.
        let is_not_reverted = has_room && hold.revert.is_none_or(|pending| pending.through < through);
        let state = hold.outcome.state();
        let by = Reason::new(Code::Operator, format!("{}: {}", command.action.name(), command.reason));
        match command.action {
            Action::Retry if self.state.current.is_none() => {
                hold.revert = None;
                let (revision, attempt) = (hold.revision.clone(), hold.attempt.saturating_add(1));
                let mut rollout = match self.state.queued.take() {
                    Some(queued) => queued,
                    None => self.rollout_of(revision, attempt, Mode::Steps),
                };
                rollout.stop = None;
                self.note(&mut rollout, by);
                self.state.queued = Some(rollout);
                self.begin_queued();
                Ok(())
            }
            Action::Revert if is_not_reverted => {
                let rollout = Arc::clone(&hold.rollout);
                self.decisions.push(Decision::Log { rollout, state, reason: by });
                self.ask_for_revert(range);
                Ok(())
            }
            action => Err(refused(state, action.misfit())),
        }
    }

    /// Gives the revision to the whole fleet, without the steps that are left.
    fn skip(&mut self, rollout: &mut Rollout) -> Option<End> {
        let last = rollout.steps.len().saturating_sub(1);
        let Phase::Step(index) = rollout.phase else { return None };
        for step in rollout.steps.iter_mut().take(last).skip(index + 1) {
            step.state = StepState::Skipped;
        }
        if let Some(step) = rollout.steps.get_mut(index) {
            step.state = StepState::Promoted;
        }
        self.state.round += 1;
        rollout.start_step(last, self.context.proxies.len());
        self.note(rollout, Reason::new(Code::Advanced, "The whole fleet gets the revision"));
        None
    }

    /// The revisions that a rollout brings to the fleet.
    fn range_through(&self, rollout: &Rollout) -> RevertRange {
        let through = rollout.revision.number;
        RevertRange { after: self.served_before(through), through }
    }

    /// The last revision before this one that proxies are to serve, and that is not to be taken back with it.
    fn served_before(&self, number: u64) -> u64 {
        let current = self.state.current.as_ref().map(|current| current.revision.number);
        current.filter(|current| *current < number).unwrap_or(self.state.stable.number)
    }

    /// True if no changes are being taken back but such as the range contains.
    fn has_room_for_revert(&self, range: RevertRange) -> bool {
        let pending = self.state.hold.as_ref().and_then(|hold| hold.revert);
        pending.is_none_or(|pending| pending.after >= range.after && pending.through <= range.through)
    }

    fn ask_for_revert(&mut self, range: RevertRange) {
        if let Some(hold) = &mut self.state.hold {
            hold.revert = Some(range);
        }
        self.remind_of_revert();
    }
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Approve => "Approved",
            Self::Pause => "Paused",
            Self::Resume => "Resumed",
            Self::Promote => "Promoted",
            Self::Skip => "Skipped to the whole fleet",
            Self::Abort => "Aborted",
            Self::Revert => "Reverted",
            Self::Retry => "Retried",
        }
    }

    /// The reason why the action does not fit the state of a rollout.
    fn misfit(self) -> &'static str {
        match self {
            Self::Approve => "it does not wait for approval",
            Self::Pause => "it is paused already, or has ended",
            Self::Resume => "it is neither paused nor held",
            Self::Promote => "it has not begun, or has ended",
            Self::Skip => "it has not begun, the whole fleet has the revision, or it has ended",
            Self::Abort => "it has ended",
            Self::Revert => "its changes are being taken back already",
            Self::Retry => "it has not ended without success, or another rollout is under way",
        }
    }
}

fn refused(state: RolloutState, text: &str) -> Refused {
    Refused { state: Some(state), text: text.to_owned() }
}
