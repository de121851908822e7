//! The beginning of rollouts: what follows from a write, and when the rollout of the newest revision may begin.

use std::sync::Arc;
use std::time::Duration;

use signalbox_config::{OnNewWrite, RolloutPolicy, StepSize, Strategy, WhenEmpty};

use super::Machine;
use super::event::{Urgency, Write};
use super::losses::silent;
use super::reason::{Code, Reason};
use super::state::{
    Mode, Outcome, Phase, Revision, Rollout, RolloutState, StepProgress, StepState, Stop, Successor,
};
use crate::members::{self, Members, Proxy};

/// The time that the only canary of an emergency has the revision before the fleet gets it.
const EMERGENCY_SOAK: Duration = Duration::from_secs(10);

impl Machine<'_> {
    /// Folds a write.
    pub(super) fn write(&mut self, write: &Write) {
        let Write { revision, urgency } = write;
        if revision.number <= self.state.head {
            return;
        }
        self.state.head = revision.number;
        if self.state.follows_head {
            // Its proxies have it already.
            self.state.stable = revision.clone();
            return;
        }
        // An urgent write that changes nothing for this fleet is no decision about what waits or was taken back here.
        let is_urgent = *urgency != Urgency::Normal && self.newest_content() != revision.content;
        let urgency = if is_urgent { urgency } else { &Urgency::Normal };
        let older = self.state.queued.take();
        let (mode, text) = match urgency {
            Urgency::Normal => (Mode::Steps, "The revision was written".into()),
            Urgency::Emergency(reason) => (Mode::Emergency, format!("Emergency: {reason}")),
            Urgency::BreakGlass(reason) => (Mode::BreakGlass, format!("Break-glass: {reason}")),
        };
        let mut rollout = self.rollout_of(revision.clone(), 1, mode);
        self.note(&mut rollout, Reason::new(Code::Written, text));
        if let Some(mut older) = older {
            if *urgency == Urgency::Normal && older.revision.content == revision.content {
                self.keep_decisions(&older, &mut rollout);
            }
            older.superseded_by = Some(rollout.as_successor_of(&older));
            self.close(&mut older, Outcome::Superseded, newer(revision));
        }
        let is_immediate = self.context.policy.strategy == Strategy::Immediate;
        if is_immediate && rollout.revision.content != self.state.stable.content {
            self.replace_current(&rollout);
            let reason = Reason::new(Code::Immediate, "The policy gives revisions to all proxies at once");
            return self.end(rollout, Outcome::Succeeded { proven: false }, reason);
        }
        self.state.queued = Some(rollout);
        self.begin_queued();
    }

    /// The content of the newest revision that the machine was told of before.
    fn newest_content(&self) -> Arc<str> {
        let rollout =
            self.state.queued.as_ref().or(self.state.current.as_ref()).map(|rollout| &rollout.revision);
        let held = self.state.hold.as_ref().map(|hold| &hold.revision);
        let held = held.filter(|revision| revision.number > self.state.stable.number);
        Arc::clone(&rollout.or(held).unwrap_or(&self.state.stable).content)
    }

    /// Keeps what people decided about a rollout that waits, for a newer one with the same content: a write that concerns only another
    /// fleet is no decision about this one.
    fn keep_decisions(&mut self, older: &Rollout, rollout: &mut Rollout) {
        (rollout.attempt, rollout.mode) = (older.attempt, older.mode);
        (rollout.stop, rollout.approved) = (older.stop, older.approved);
        if let Some(reason) = older.reason.as_ref().filter(|_| older.stop.is_some()) {
            self.note(rollout, reason.clone());
        }
    }

    /// Begins the rollout of the newest revision if nothing stands against it.
    pub(super) fn begin_queued(&mut self) {
        let Some(mut rollout) = self.state.queued.take() else { return };
        if rollout.revision.content == self.state.stable.content {
            return self.restore(rollout);
        }
        if rollout.attempt == 1
            && rollout.mode == Mode::Steps
            && let Some(hold) = &self.state.hold
            && hold.revision.content == rollout.revision.content
            && self
                .state
                .current
                .as_ref()
                .is_none_or(|current| current.revision.content != rollout.revision.content)
        {
            return self.refuse_same(rollout);
        }
        if rollout.stop.is_some() {
            self.state.queued = Some(rollout);
            return;
        }
        if let Some(reason) = self.obstacle(&rollout) {
            self.note(&mut rollout, reason);
            self.state.queued = Some(rollout);
            return;
        }
        let before = self.replace_current(&rollout);
        let policy = self.context.policy;
        rollout.steps = steps(policy, rollout.mode);
        rollout.bake_ms = millis(policy.bake);
        let held = self.state.hold.as_ref().map(|hold| hold.revision.number);
        rollout.includes = held.filter(|number| *number < rollout.revision.number);
        if rollout.mode != Mode::BreakGlass
            && !members::any_eligible(self.context.proxies)
            && before.is_empty()
        {
            let reason =
                Reason::new(Code::NoProxies, "The fleet has no proxy, so nothing proves the revision");
            return self.end(rollout, Outcome::Succeeded { proven: false }, reason);
        }
        rollout.phase = Phase::Step(0);
        rollout.members = Arc::new(first_members(&rollout, self.context.proxies, &before));
        rollout.lost = silent(self.context.proxies, &Members::new());
        rollout.start_step(0, self.context.proxies.len());
        self.state.round += 1;
        let text = match rollout.includes {
            Some(number) => {
                format!("The first step began. The revision includes {number}, which was taken back")
            }
            None => "The first step began".to_owned(),
        };
        self.note(&mut rollout, Reason::new(Code::Started, text));
        self.state.current = Some(rollout);
    }

    /// A rollout that has not begun. No name contains the `~` of its id, so the id is that of no other fleet's rollout.
    pub(super) fn rollout_of(&self, revision: Revision, attempt: u32, mode: Mode) -> Rollout {
        let (number, fleet) = (revision.number, &self.state.fleet);
        let id =
            if attempt == 1 { format!("{number}-{fleet}") } else { format!("{number}-{fleet}~{attempt}") };
        let policy = self.context.policy;
        Rollout {
            id: id.into(),
            revision,
            attempt,
            mode,
            phase: Phase::Waiting,
            stop: None,
            reason: None,
            approved: false,
            steps: steps(policy, mode),
            members: Arc::default(),
            swapped: Members::new(),
            lost: Members::new(),
            losses: 0,
            rest_losses: 0,
            since_ms: 0,
            unsoaked_ms: 0,
            generation: 0,
            baked_ms: 0,
            bake_ms: millis(policy.bake),
            includes: None,
            superseded_by: None,
        }
    }

    /// The reason why the rollout of the newest revision cannot begin.
    fn obstacle(&self, rollout: &Rollout) -> Option<Reason> {
        let policy = self.context.policy;
        if rollout.mode == Mode::Steps {
            if let Some(current) = &self.state.current
                && !self.may_replace(current, rollout)
            {
                let text = format!("Rollout {} is under way", current.id);
                return Some(Reason::new(Code::Behind, text));
            }
            if self.state.hold.as_ref().is_some_and(|hold| hold.revert.is_some()) {
                return Some(Reason::new(Code::Reverting, "Changes that failed are being taken back"));
            }
            if self.context.is_frozen {
                return Some(Reason::new(Code::Frozen, "A freeze window is open"));
            }
            if policy.needs_approval && !rollout.approved {
                return Some(Reason::new(Code::NeedsApproval, "The rollout needs approval"));
            }
        }
        let can_wait = rollout.mode != Mode::BreakGlass && policy.when_empty == WhenEmpty::Wait;
        let has_proxy = members::any_eligible(self.context.proxies) || !self.upgraded().is_empty();
        (can_wait && !has_proxy).then(|| Reason::new(Code::NoProxies, "No proxy can take the revision"))
    }

    /// True if a rollout under way may make room for the one of a newer revision. One that is held cannot go on by itself. Of the others,
    /// one that all proxies have ends first. The same content is no reason to begin anew, nor to end a pause or a hold.
    fn may_replace(&self, current: &Rollout, newer: &Rollout) -> bool {
        match current.state() {
            _ if current.revision.content == newer.revision.content => false,
            RolloutState::Held => true,
            _ if current.has_whole_fleet() => false,
            RolloutState::Running => {
                self.context.policy.on_new_write == OnNewWrite::Supersede && current.mode == Mode::Steps
            }
            _ => false,
        }
    }

    /// The proxies that are there and have the revision of the rollout under way. They can take a newer one.
    fn upgraded(&self) -> Members {
        let Some(current) = &self.state.current else { return Members::new() };
        let has_it = |id: &Arc<str>| current.has_whole_fleet() || current.members.contains(id);
        let proxies = self.context.proxies.iter().filter(|proxy| !proxy.silent && has_it(proxy.id));
        proxies.map(|proxy| Arc::clone(proxy.id)).collect()
    }

    /// Ends the rollout under way for the one of a newer revision. Returns the proxies that have its revision.
    fn replace_current(&mut self, newest: &Rollout) -> Members {
        let before = self.upgraded();
        if let Some(mut current) = self.state.current.take() {
            current.superseded_by = Some(newest.as_successor_of(&current));
            self.end(current, Outcome::Superseded, newer(&newest.revision));
        }
        before
    }

    /// Gives the fleet a revision with the content of the stable one, at once: no proxy sees a difference to what is known to work.
    fn restore(&mut self, rollout: Rollout) {
        if let Some(mut current) = self.state.current.take() {
            current.superseded_by = Some(rollout.as_successor_of(&current));
            let text = format!("Revision {} has the stable content again", rollout.revision.number);
            self.close(&mut current, Outcome::Superseded, Reason::new(Code::SameAsStable, text));
        }
        let proven = self.state.proven.as_ref().is_some_and(|one| one.content == rollout.revision.content);
        let text = "The revision has the content of the stable one";
        self.end(rollout, Outcome::Succeeded { proven }, Reason::new(Code::SameAsStable, text));
    }

    /// Does not try content again that has failed, unless a person says so.
    fn refuse_same(&mut self, mut rollout: Rollout) {
        let Some(hold) = &mut self.state.hold else { return };
        let text =
            format!("The revision has the content of {}, which was taken back; retry it", hold.rollout);
        (hold.rollout, hold.attempt) = (Arc::clone(&rollout.id), rollout.attempt);
        hold.revision = rollout.revision.clone();
        let outcome = hold.outcome;
        self.close(&mut rollout, outcome, Reason::new(Code::SameAsFailed, text));
    }
}

impl Rollout {
    /// Begins a step, whose members are chosen already.
    pub(super) fn start_step(&mut self, index: usize, all: usize) {
        self.phase = Phase::Step(index);
        (self.since_ms, self.unsoaked_ms) = (0, 0);
        let count = if self.has_whole_fleet() { all } else { self.members.len() };
        if let Some(step) = self.steps.get_mut(index) {
            step.state = StepState::Running;
            step.proxies = u32::try_from(count).unwrap_or(u32::MAX);
        }
    }

    /// True if the rollout must not go on at this moment though nothing is wrong with it.
    pub(super) fn is_frozen(&self, is_frozen: bool) -> bool {
        is_frozen && self.mode == Mode::Steps
    }

    fn as_successor_of(&self, older: &Self) -> Successor {
        let same_content = self.revision.content == older.revision.content;
        Successor { rollout: Arc::clone(&self.id), same_content }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.stop == Some(Stop::Paused)
    }
}

/// The members of the first step. Proxies that have the revision of the rollout that this one replaces come first.
fn first_members(rollout: &Rollout, proxies: &[Proxy<'_>], before: &Members) -> Members {
    let Some(first) = rollout.steps.first().filter(|step| step.size != StepSize::All) else {
        return Members::new();
    };
    let none = Members::new();
    let proxies: Vec<Proxy<'_>> = proxies
        .iter()
        .map(|proxy| Proxy { eligible: proxy.eligible || before.contains(proxy.id), ..*proxy })
        .collect();
    let chosen = members::choose(&rollout.id, &first.size, &proxies, &none);
    if before.is_empty() || matches!(first.size, StepSize::Labels(_)) {
        return chosen;
    }
    if chosen.len() < before.len() {
        let count = u32::try_from(chosen.len()).unwrap_or(u32::MAX);
        let upgraded: Vec<Proxy<'_>> =
            proxies.iter().filter(|proxy| before.contains(proxy.id)).copied().collect();
        return members::choose(&rollout.id, &StepSize::Count(count), &upgraded, &none);
    }
    members::choose(&rollout.id, &first.size, &proxies, before)
}

fn steps(policy: &RolloutPolicy, mode: Mode) -> Vec<StepProgress> {
    let step = |size, soak| StepProgress {
        size,
        soak_ms: millis(soak),
        healthy_ms: 0,
        proxies: 0,
        state: StepState::Pending,
    };
    match mode {
        Mode::Steps => policy.steps.iter().map(|each| step(each.size.clone(), each.soak)).collect(),
        Mode::Emergency => {
            vec![step(StepSize::Count(1), EMERGENCY_SOAK), step(StepSize::All, Duration::ZERO)]
        }
        Mode::BreakGlass => vec![step(StepSize::All, Duration::ZERO)],
    }
}

fn newer(revision: &Revision) -> Reason {
    Reason::new(Code::NewerRevision, format!("Revision {} took its place", revision.number))
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
