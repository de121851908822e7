//! The progress of a rollout from one look at the fleet to the next.

use std::sync::Arc;

use signalbox_config::{OnFailure, OnInconclusive, StepSize};

use super::Machine;
use super::event::{Look, MAX_ELAPSED};
use super::losses::is_partitioned;
use super::reason::{Code, Reason};
use super::start::millis;
use super::state::{Mode, Outcome, Phase, Rollout, StepState, Stop};
use crate::gate::Swap;
use crate::members::{self, Members, Proxy};
use crate::reading::{GateKind, Reading, Verdict};

/// The end of a rollout, and its reason.
pub(super) type End = (Outcome, Reason);

impl Machine<'_> {
    /// Folds a look at the fleet.
    pub(super) fn look(&mut self, look: &Look<'_>) {
        let was_away = look.elapsed > MAX_ELAPSED;
        if was_away {
            self.state.round += 1;
        }
        if let Some(mut rollout) = self.state.current.take() {
            let is_current = !was_away && look.round == self.state.round;
            let mut evidence = Evidence::of(&rollout, look, is_current);
            evidence.is_healthy &= rollout.unapplied(self.context.proxies).next().is_none();
            let elapsed = if was_away { 0 } else { millis(look.elapsed) };
            match self.progress(&mut rollout, evidence, elapsed) {
                // The next one begins when the proxies have had time to go where this end sends them.
                Some((outcome, reason)) => return self.end(rollout, outcome, reason),
                None => self.state.current = Some(rollout),
            }
        }
        self.remind_of_revert();
        self.begin_queued();
    }

    /// The rollout after a look; `Some`: it has ended.
    fn progress(&mut self, rollout: &mut Rollout, mut evidence: Evidence<'_>, elapsed: u64) -> Option<End> {
        if let Some(reason) = evidence.failure {
            // A person decided that the fleet has it, so only a policy takes it back.
            if evidence.is_tolerated && self.context.policy.on_failure == OnFailure::Hold {
                if rollout.stop.is_none() {
                    rollout.stop = Some(Stop::Held);
                    self.note(rollout, reason);
                }
                return None;
            }
            return Some((Outcome::Failed, reason));
        }
        let proxies = self.context.proxies;
        let is_partitioned = is_partitioned(rollout, proxies);
        if !is_partitioned {
            self.count_losses(rollout);
        }
        let lost = rollout.read_lost(&self.context);
        if let Some(lost) = lost.as_ref().filter(|lost| lost.verdict == Verdict::Failing) {
            return Some((Outcome::Failed, Reason::of_gate(lost)));
        }
        evidence.is_healthy &=
            !is_partitioned && lost.is_none_or(|reading| reading.verdict == Verdict::Passing);
        if rollout.stop.is_some() {
            return None;
        }
        let is_done = rollout.soak(&evidence, elapsed);
        if rollout.is_frozen(self.context.is_frozen) {
            return None;
        }
        rollout.since_ms = rollout.since_ms.saturating_add(elapsed);
        let is_late = rollout.since_ms >= rollout.deadline(millis(self.context.policy.step_deadline));
        if is_partitioned {
            let text = if is_late {
                rollout.stop = Some(Stop::Held);
                "All proxies of a control plane were silent at the deadline, so it is held until somebody acts"
            } else {
                "All proxies of a control plane are silent, so nothing goes on"
            };
            self.note(rollout, Reason::new(Code::Partition, text));
            return None;
        }
        if is_done {
            return self.advance(rollout, StepState::Passed);
        }
        if is_late {
            return self.decide_without_evidence(rollout);
        }
        self.fill_step(rollout);
        if let Some(swap) = evidence.swap {
            self.swap(rollout, swap);
        }
        None
    }

    /// Begins the next step, the bake time, or ends the rollout.
    pub(super) fn advance(&mut self, rollout: &mut Rollout, ended: StepState) -> Option<End> {
        let Phase::Step(index) = rollout.phase else {
            let proven = ended == StepState::Passed;
            let reason = if proven {
                Reason::new(Code::Proven, "The bake time has passed")
            } else {
                Reason::new(Code::Unproven, "The bake time ended before there was enough evidence")
            };
            return Some((Outcome::Succeeded { proven }, reason));
        };
        if let Some(step) = rollout.steps.get_mut(index) {
            step.state = ended;
        }
        self.state.round += 1;
        let Some(next) = rollout.steps.get(index + 1) else {
            rollout.phase = Phase::Baking;
            (rollout.since_ms, rollout.unsoaked_ms) = (0, 0);
            self.note(rollout, Reason::new(Code::Advanced, "The bake time began"));
            return None;
        };
        if next.size != StepSize::All {
            rollout.members = Arc::new(rollout.choose(&next.size, self.context.proxies));
        }
        rollout.start_step(index + 1, self.context.proxies.len());
        let text = format!("Step {} of {} began", index + 2, rollout.steps.len());
        self.note(rollout, Reason::new(Code::Advanced, text));
        None
    }

    /// Does what the policy says of a step without enough evidence at its deadline.
    fn decide_without_evidence(&mut self, rollout: &mut Rollout) -> Option<End> {
        let mut unapplied = rollout.unapplied(self.context.proxies);
        let text = match (unapplied.next(), unapplied.count()) {
            (None, _) => "There was too little evidence at the deadline".to_owned(),
            (Some(one), 0) => format!("{one} does not serve the revision at the deadline"),
            (Some(one), more) => {
                format!("{one} and {more} more do not serve the revision at the deadline")
            }
        };
        let reason = Reason::new(Code::Inconclusive, text);
        match self.context.policy.on_inconclusive {
            // A person decided that the fleet has it, so it need not be proven.
            _ if rollout.mode != Mode::Steps && rollout.has_whole_fleet() => {
                self.advance(rollout, StepState::Promoted)
            }
            OnInconclusive::Promote => {
                self.note(rollout, reason);
                self.advance(rollout, StepState::Promoted)
            }
            OnInconclusive::Abort => Some((Outcome::Aborted, reason)),
            OnInconclusive::Hold => {
                rollout.stop = Some(Stop::Held);
                self.note(rollout, reason);
                None
            }
        }
    }

    /// Gives a canary that is sick alone the stable revision again, and lets another proxy take its part.
    fn swap(&mut self, rollout: &mut Rollout, swap: &Swap) {
        let Phase::Step(index) = rollout.phase else { return };
        let Some(size) = rollout.steps.get(index).map(|step| step.size.clone()) else { return };
        if rollout.has_whole_fleet() || !rollout.members.contains(&swap.node) {
            return;
        }
        let before = Arc::clone(&rollout.members);
        let others = before.iter().filter(|id| **id != swap.node).cloned().collect();
        rollout.members = Arc::new(others);
        rollout.swapped.insert(Arc::clone(&swap.node));
        let members = rollout.choose(&size, self.context.proxies);
        if members.is_empty() {
            // It is the only canary, and no other proxy can be one.
            rollout.swapped.remove(&swap.node);
            rollout.members = before;
            return;
        }
        rollout.members = Arc::new(members);
        self.begin_round(rollout);
        let text = format!("{} is worse than the other canaries; another proxy takes its part", swap.node);
        self.note(rollout, Reason::new(Code::MemberSwapped, text));
    }
}

impl Rollout {
    /// The members of a step of this size, with those of the steps before.
    pub(super) fn choose(&self, size: &StepSize, proxies: &[Proxy<'_>]) -> Members {
        if self.swapped.is_empty() {
            return members::choose(&self.id, size, proxies, &self.members);
        }
        let once = |proxy: &Proxy<'_>| !self.swapped.contains(proxy.id);
        let proxies: Vec<Proxy<'_>> =
            proxies.iter().map(|proxy| Proxy { eligible: proxy.eligible && once(proxy), ..*proxy }).collect();
        members::choose(&self.id, size, &proxies, &self.members)
    }

    /// The proxies that are there and are assigned the revision, but do not serve it. While there is one, nothing is known of the revision:
    /// a proxy that hangs may have more to show than the others.
    fn unapplied<'a>(&self, proxies: &[Proxy<'a>]) -> impl Iterator<Item = &'a Arc<str>> {
        let is_assigned = |id: &Arc<str>| self.has_whole_fleet() || self.members.contains(id);
        proxies
            .iter()
            .filter(move |proxy| {
                !proxy.silent && proxy.serves != self.revision.number && is_assigned(proxy.id)
            })
            .map(|proxy| proxy.id)
    }

    /// Counts healthy time. Returns true if the step, or the bake time, has enough evidence.
    fn soak(&mut self, evidence: &Evidence<'_>, elapsed: u64) -> bool {
        let (healthy, needed) = match self.phase {
            Phase::Step(index) => match self.steps.get_mut(index) {
                Some(step) => (&mut step.healthy_ms, step.soak_ms),
                None => return false,
            },
            Phase::Baking => (&mut self.baked_ms, self.bake_ms),
            Phase::Waiting | Phase::Ended(_) => return false,
        };
        if !evidence.is_healthy {
            self.unsoaked_ms = 0;
            return false;
        }
        let passed = self.unsoaked_ms.saturating_add(elapsed);
        let soaked = evidence.healthy_ms.map_or(elapsed, |healthy| healthy.min(passed));
        self.unsoaked_ms = passed.saturating_sub(soaked);
        *healthy = healthy.saturating_add(soaked).min(needed);
        *healthy >= needed
    }

    /// The deadline of the step or of the bake time, in milliseconds since its beginning.
    fn deadline(&self, step_deadline: u64) -> u64 {
        match self.phase {
            Phase::Baking => step_deadline.saturating_add(self.bake_ms),
            Phase::Step(index) => {
                let soak = self.steps.get(index).map_or(0, |step| step.soak_ms);
                // The soak of an emergency, or of a policy that has changed since, may be longer.
                if step_deadline > soak { step_deadline } else { step_deadline.saturating_add(soak) }
            }
            Phase::Waiting | Phase::Ended(_) => step_deadline,
        }
    }
}

/// The meaning of a look's readings for a rollout.
struct Evidence<'a> {
    /// A gate failed.
    failure: Option<Reason>,
    /// The gate that failed counts for a rollout by its policy, and not for an emergency.
    is_tolerated: bool,
    /// Nothing is wrong, and there were enough requests to judge.
    is_healthy: bool,
    /// The healthy time since the look before; `None`: all of it.
    healthy_ms: Option<u64>,
    /// The advice to replace a canary.
    swap: Option<&'a Swap>,
}

impl<'a> Evidence<'a> {
    fn of(rollout: &Rollout, look: &Look<'a>, is_current: bool) -> Self {
        let judgement = look.judgement;
        let readings = if is_current { &*judgement.readings } else { &[] };
        let is_urgent = rollout.mode != Mode::Steps;
        // While an emergency is on its way to the fleet, only rejections count.
        let all_count = !is_urgent || rollout.phase == Phase::Baking;
        let is_failing = |reading: &&Reading| reading.verdict == Verdict::Failing;
        let is_rejection = |reading: &&Reading| reading.gate == GateKind::Rejected;
        let rejected = readings.iter().filter(is_rejection).find(is_failing);
        let failing = rejected.or_else(|| readings.iter().filter(|_| all_count).find(is_failing));
        let mut failure = failing.map(Reason::of_gate);
        if failure.is_none() && is_current && judgement.verdict == Verdict::Failing && all_count {
            failure = Some(Reason::new(Code::GateFailed, "The gates failed together"));
        }
        let has_evidence = !readings.is_empty()
            && readings.iter().all(|reading| reading.evidence.is_finite())
            && judgement.verdict == Verdict::Passing;
        // An emergency does not wait for requests, except to be proven.
        let needs_evidence = rollout.mode == Mode::Steps || rollout.phase == Phase::Baking;
        Self {
            failure,
            is_tolerated: is_urgent && rejected.is_none(),
            is_healthy: is_current && (has_evidence || !needs_evidence),
            healthy_ms: needs_evidence.then_some(judgement.healthy_ms),
            swap: judgement.swap.as_ref().filter(|_| is_current && rollout.mode == Mode::Steps),
        }
    }
}
