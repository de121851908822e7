//! Folds what happens to one fleet into the state of its rollouts, while this control plane leads.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use signalbox_config::RolloutPolicy;
use signalbox_rollout::gate::{
    Delta, Group, History, Judge, Judgement, Members as MemberCounts, Place, Policy, Reference, Step,
    StepKey, Window,
};
use signalbox_rollout::machine::{
    self, Code, Context, Decision, Event, Look, Outcome as End, Phase, Refused, RevertRange, Rollout, State,
};
use signalbox_rollout::members::{Members, Proxy};
use signalbox_rollout::{FleetTarget, Reading, Scope, Verdict, frozen_until};
use tokio::task::JoinHandle;

use super::propagation::PropagationTimes;
use super::run::{Revert, Run, RunEvent};
use super::view::{state, step};
use super::watched::{BUSY, IDLE, Wanted};
use crate::board::{FleetProxy, RolloutCounts, RolloutState};
use crate::clock::now_us;
use crate::store::{Decisions, RolloutRun};
use crate::writer::{WriteError, Written};

/// The time without a stream after which a proxy counts as silent: three intervals between reports.
const SILENT_AFTER: Duration = Duration::from_secs(3);

/// How long proxies have to come back after a control plane was restarted or took over, before they count as silent.
const RECONNECT_GRACE: Duration = Duration::from_secs(30);

/// The state is stored at least so often while a rollout goes on; the more canaries there are, the less often.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// The number of canaries whose ids take another [`SAVE_INTERVAL`] to store.
const MANY_MEMBERS: u32 = 1000;

/// The most counts that wait for a look: two of each of the proxies that one control plane may have.
const MAX_DELTAS: usize = 40_000;

/// The rollouts of one fleet.
pub(super) struct Driver {
    pub(super) state: State,
    /// The records of the rollouts that have not ended, and of the one that holds the fleet.
    pub(super) runs: BTreeMap<Arc<str>, Run>,
    history: History,
    judge: Judge,
    /// The round whose evidence the judge collects, and what it compares the canaries with.
    judged: Option<StepKey>,
    reference: Reference,
    /// The scopes that the rollout under way changes.
    changed: BTreeSet<Scope>,
    /// The time since when each proxy has had no stream, as far as this leader knows.
    gone: HashMap<Arc<str>, Instant>,
    /// The proxies that this leader has seen with a stream.
    seen: Members,
    /// The time since when this leader drives the fleet.
    began: Instant,
    /// The proxies that were there when the rollout under way began, or when this control plane took over.
    present: Option<(Arc<str>, Members)>,
    deltas: Vec<Delta>,
    propagation: PropagationTimes,
    /// The rollout whose changes are being taken back by a new revision.
    pub(super) reverting: Option<(Arc<str>, Reverting)>,
    window_began: Instant,
    last_look: Option<Instant>,
    last_saved: Instant,
}

/// A write that takes changes back.
pub(super) type Reverting = JoinHandle<Result<Written, WriteError>>;

/// The facts of the moment.
pub(super) struct Facts<'a> {
    pub(super) policy: &'a RolloutPolicy,
    pub(super) proxies: &'a [FleetProxy],
    pub(super) now: Instant,
    /// Microseconds since 1970.
    pub(super) now_us: i64,
}

/// The consequences of an event, before they are stored.
pub(super) struct Outcome {
    state: State,
    runs: BTreeMap<Arc<str>, Run>,
    /// To be stored.
    pub(super) decisions: Decisions,
    /// For the log, with the ids of the rollouts.
    events: Vec<(Arc<str>, RunEvent)>,
    /// Changes that are to be taken back by a new revision.
    pub(super) reverts: Vec<(Arc<str>, RevertRange)>,
}

impl Driver {
    pub(super) fn new(state: State, runs: BTreeMap<Arc<str>, Run>, history: History) -> Self {
        let now = Instant::now();
        Self {
            state,
            runs,
            history,
            judge: Judge::default(),
            judged: None,
            reference: Reference::Rest,
            changed: BTreeSet::new(),
            gone: HashMap::new(),
            seen: Members::new(),
            began: now,
            present: None,
            deltas: Vec::new(),
            propagation: PropagationTimes::default(),
            reverting: None,
            window_began: now,
            last_look: None,
            last_saved: now,
        }
    }

    /// Adds what proxies have counted. While nobody can look, only the first counts are kept: they are dropped at the next look, because they
    /// tell of a time in which the leader was away.
    pub(super) fn add(&mut self, deltas: Vec<Delta>) {
        let room = MAX_DELTAS.saturating_sub(self.deltas.len());
        self.deltas.extend(deltas.into_iter().take(room));
    }

    /// The last hour of the fleet under the stable revision.
    pub(super) fn history(&self) -> &History {
        &self.history
    }

    pub(super) fn into_history(self) -> History {
        self.history
    }

    /// The present step of a rollout, as the API shows it, and its state.
    pub(super) fn step_of(&self, rollout: &str) -> Option<(u32, RolloutState)> {
        let run = self.runs.get(rollout)?;
        Some((step(&run.rollout), state(run.rollout.state())))
    }

    /// The counts that are wanted of the fleet's proxies, if this decision is in force.
    pub(super) fn wanted(&self, usual: Arc<[String]>, target: Option<Arc<FleetTarget>>) -> Wanted {
        let is_busy = self.state.current.is_some();
        Wanted::of(is_busy, self.changed.iter().filter(|_| is_busy), usual, target)
    }

    /// The pair of revisions that the rollout under way compares.
    pub(super) fn compared(&self) -> Option<(u64, u64)> {
        let current = self.state.current.as_ref()?;
        Some((self.state.stable.number, current.revision.number))
    }

    /// Sets the scopes that the rollout under way changes.
    pub(super) fn set_changed(&mut self, changed: BTreeSet<Scope>) {
        self.changed = changed;
    }

    /// Notes which proxies are there.
    pub(super) fn see(&mut self, facts: &Facts<'_>) {
        let present: BTreeSet<&Arc<str>> =
            facts.proxies.iter().filter(|proxy| proxy.connected).map(|proxy| &proxy.node.id).collect();
        let known: BTreeSet<&Arc<str>> = facts.proxies.iter().map(|proxy| &proxy.node.id).collect();
        self.gone.retain(|id, _| known.contains(id) && !present.contains(id));
        for proxy in facts.proxies.iter().filter(|proxy| !proxy.connected) {
            // Whoever has just begun to lead does not know if a proxy is gone, or has not found its way back yet.
            let is_seen = self.seen.contains(&proxy.node.id);
            let since = if is_seen { facts.now } else { facts.now.max(self.began + RECONNECT_GRACE) };
            self.gone.entry(Arc::clone(&proxy.node.id)).or_insert(since);
        }
        self.seen.retain(|id| known.contains(id));
        self.seen.extend(present.iter().map(|id| Arc::clone(id)));
        let current = self.state.current.as_ref().map(|rollout| &rollout.id);
        if self.present.as_ref().map(|(rollout, _)| rollout) != current {
            // If the rollout began under another leader, those take part that may only be on their way back.
            let here = facts.proxies.iter().filter(|proxy| !self.is_silent(&proxy.node.id, facts.now));
            let here = here.map(|proxy| Arc::clone(&proxy.node.id)).collect();
            self.present = current.map(|rollout| (Arc::clone(rollout), here));
        }
    }

    /// True if it is time for another look.
    pub(super) fn is_look_due(&self, now: Instant) -> bool {
        self.last_look.is_none_or(|last| now.duration_since(last) >= BUSY)
    }

    /// Looks at the fleet: judges the rollout under way, and lets time pass.
    pub(super) fn look(&mut self, facts: &Facts<'_>) -> Outcome {
        let elapsed = self.last_look.map_or(Duration::ZERO, |last| facts.now.duration_since(last));
        self.last_look = Some(facts.now);
        let judgement = self.judge(facts);
        self.propagation.see(self.state.current.as_ref(), facts.proxies);
        if let Some(propagation) = self.propagation.summary()
            && let Some(current) = &self.state.current
            && let Some(run) = self.runs.get_mut(&current.id)
        {
            run.propagation = Some(propagation);
        }
        let look = Look { round: self.state.round, elapsed, judgement: &judgement };
        // Only commands of people are refused.
        let outcome = self.fold(&Event::Look(look), facts, None, Some(&judgement));
        outcome.unwrap_or_else(|_| self.unchanged())
    }

    /// Folds an event that is no look. `actor` is the person who gave a command.
    pub(super) fn event(
        &self,
        event: &Event<'_>,
        facts: &Facts<'_>,
        actor: Option<&str>,
    ) -> Result<Outcome, Refused> {
        self.fold(event, facts, actor, None)
    }

    fn unchanged(&self) -> Outcome {
        Outcome {
            state: self.state.clone(),
            runs: self.runs.clone(),
            decisions: Decisions::default(),
            events: Vec::new(),
            reverts: Vec::new(),
        }
    }

    fn fold(
        &self,
        event: &Event<'_>,
        facts: &Facts<'_>,
        actor: Option<&str>,
        judgement: Option<&Judgement>,
    ) -> Result<Outcome, Refused> {
        let proxies = self.proxies(facts);
        let at = Timestamp::from_microsecond(facts.now_us).unwrap_or(Timestamp::UNIX_EPOCH);
        let is_frozen = frozen_until(&facts.policy.freeze, at).is_some();
        let context = Context { policy: facts.policy, proxies: &proxies, is_frozen };
        let (next, decided) = machine::step(&self.state, event, &context)?;
        let mut runs = self.runs.clone();
        let judged = self.state.current.as_ref().map(|rollout| &rollout.id);
        let set = |run: &mut Run, rollout: &Rollout| {
            run.set(rollout, facts.now_us);
            if let Some(judgement) = judgement.filter(|_| Some(&rollout.id) == judged) {
                run.readings = shown(&judgement.readings);
                run.readings.extend(rollout.read_lost(&context));
            }
        };
        for rollout in [&next.current, &next.queued].into_iter().flatten() {
            set(self.run_of(&mut runs, rollout, facts), rollout);
        }
        let mut reverts = Vec::new();
        let mut decisions = Decisions::default();
        for decision in &decided {
            match decision {
                Decision::Assign(target) => decisions.targets.push(target.clone()),
                Decision::Revert { rollout, range } => {
                    if let Some(run) = runs.get_mut(rollout) {
                        run.revert = Some(Revert::Pending);
                    }
                    reverts.push((Arc::clone(rollout), *range));
                }
                Decision::Finish(rollout) => {
                    let run = self.run_of(&mut runs, rollout, facts);
                    set(run, rollout);
                    run.finished_at_us = Some(facts.now_us);
                    run.counts = Some(self.final_counts(rollout, facts));
                }
                Decision::Log { .. } => {}
            }
        }
        if let Event::Reverted { rollout, result } = event
            && let Some(run) = runs.get_mut(rollout)
        {
            run.revert = Some(match result {
                Ok(()) => Revert::Done,
                Err(text) => Revert::Refused(Arc::clone(text)),
            });
        }
        let mut events = Vec::new();
        for decision in decided {
            if let Decision::Log { rollout, state, reason } = decision {
                let actor = actor.map(str::to_owned);
                let event = RunEvent { at_us: facts.now_us, state, actor, reason };
                if let Some(run) = runs.get_mut(&rollout) {
                    if event.reason.code == Code::RevertRefused {
                        // It has ended, and this is why it holds the fleet still.
                        run.rollout.reason = Some(event.reason.clone());
                    }
                    run.push(event.clone());
                }
                events.push((rollout, event));
            }
        }
        let changed = runs.iter().filter(|(id, run)| self.runs.get(*id) != Some(run));
        let important = changed.clone().any(|(id, run)| {
            self.runs.get(id).is_none_or(|before| before.events.len() != run.events.len())
                || run.finished_at_us.is_some()
        }) || matches!(event, Event::Reverted { .. });
        if important || !decisions.targets.is_empty() || self.is_save_due(facts.now) {
            decisions.runs = changed.filter_map(|(_, run)| stored(run)).collect();
            if next != self.state
                && let Some(text) = json(&next)
            {
                decisions.states.push((Arc::clone(&self.state.fleet), text));
            }
        }
        Ok(Outcome { state: next, runs, decisions, events, reverts })
    }

    fn is_save_due(&self, now: Instant) -> bool {
        let members = self.state.current.as_ref().map_or(0, |rollout| rollout.members.len());
        let slower = u32::try_from(members).unwrap_or(u32::MAX) / MANY_MEMBERS;
        now.duration_since(self.last_saved) >= SAVE_INTERVAL * slower.saturating_add(1)
    }

    /// Takes over what an event led to, after it was stored. What was not to be stored yet is taken over as well.
    pub(super) fn commit(&mut self, outcome: Outcome, now: Instant) {
        for (rollout, event) in outcome.events {
            event.log(&rollout);
        }
        if !outcome.decisions.states.is_empty() {
            self.last_saved = now;
        }
        if !outcome.decisions.targets.is_empty() {
            self.propagation.decided(now_us());
        }
        self.state = outcome.state;
        self.runs = outcome.runs;
        // More may still happen to the rollout that holds the fleet.
        let held = self.state.hold.as_ref().map(|hold| &hold.rollout);
        self.runs.retain(|id, run| run.finished_at_us.is_none() || Some(id) == held);
    }

    fn run_of<'r>(
        &self,
        runs: &'r mut BTreeMap<Arc<str>, Run>,
        rollout: &Rollout,
        facts: &Facts<'_>,
    ) -> &'r mut Run {
        let stable = self.state.stable.number;
        let new = || Run::new(Arc::clone(&self.state.fleet), stable, rollout, facts.now_us);
        runs.entry(Arc::clone(&rollout.id)).or_insert_with(new)
    }

    /// The proxies as the machine sees them.
    fn proxies<'a>(&self, facts: &Facts<'a>) -> Vec<Proxy<'a>> {
        let was_there = |id: &Arc<str>| self.present.as_ref().is_none_or(|(_, present)| present.contains(id));
        let proxy = |proxy: &'a FleetProxy| {
            let id = &proxy.node.id;
            Proxy {
                id,
                labels: &proxy.node.labels,
                replica: &proxy.replica,
                eligible: proxy.connected
                    && !proxy.drifted
                    && proxy.served == self.state.stable.number
                    && was_there(id),
                silent: self.is_silent(id, facts.now),
                serves: proxy.served,
            }
        };
        // A proxy that was gone before the rollout began does not take part in it.
        let takes_part = |proxy: &&FleetProxy| proxy.connected || was_there(&proxy.node.id);
        facts.proxies.iter().filter(takes_part).map(proxy).collect()
    }

    /// Judges the rollout under way by what was counted.
    fn judge(&mut self, facts: &Facts<'_>) -> Judgement {
        let policy = Policy::from(&facts.policy.gates);
        let length = if self.state.current.is_some() { BUSY } else { IDLE };
        let is_complete = facts.now.duration_since(self.window_began) >= length;
        let key = self.state.step_key();
        let reference = self.reference(facts);
        if self.judged != key || self.reference != reference {
            // The counts so far belong to another step, or were compared with something else.
            self.begin(key, reference, facts);
        }
        if is_complete && !self.deltas.is_empty() {
            let elapsed = facts.now.duration_since(self.window_began);
            self.window_began = facts.now;
            let window = self.window(key, elapsed, facts);
            self.history.observe(&window);
            self.judge.observe(&window, &policy);
        }
        match &self.state.current {
            Some(rollout) => self.judge.look(self.member_counts(rollout, facts), &policy),
            None => {
                Judgement { verdict: Verdict::Inconclusive, readings: Vec::new(), swap: None, healthy_ms: 0 }
            }
        }
    }

    /// The reference of the canaries: their own past if there is no other proxy.
    fn reference(&self, facts: &Facts<'_>) -> Reference {
        let Some(rollout) = &self.state.current else { return Reference::Rest };
        let is_other = |proxy: &&FleetProxy| {
            let id = &proxy.node.id;
            !rollout.members.contains(id) && !self.is_silent(id, facts.now)
        };
        if rollout.has_whole_fleet() || !facts.proxies.iter().any(|proxy| is_other(&proxy)) {
            Reference::Past
        } else {
            Reference::Rest
        }
    }

    fn is_silent(&self, id: &str, now: Instant) -> bool {
        self.gone.get(id).is_some_and(|since| now.saturating_duration_since(*since) >= SILENT_AFTER)
    }

    fn begin(&mut self, key: Option<StepKey>, reference: Reference, facts: &Facts<'_>) {
        (self.judged, self.reference) = (key, reference);
        self.deltas.clear();
        self.window_began = facts.now;
        let (Some(key), Some(rollout)) = (key, &self.state.current) else { return };
        let is_canary = |node: &str| rollout.has_whole_fleet() || rollout.members.contains(node);
        let past = self.history.past(is_canary);
        self.judge.begin(Step { key, changed: self.changed.clone(), reference }, past);
    }

    /// Sorts what was counted into canaries and rest.
    fn window(&mut self, key: Option<StepKey>, elapsed: Duration, facts: &Facts<'_>) -> Window {
        let deltas = std::mem::take(&mut self.deltas);
        let nodes: HashMap<&str, &FleetProxy> =
            facts.proxies.iter().map(|proxy| (&*proxy.node.id, proxy)).collect();
        let (current, stable) = (self.state.current.as_ref(), self.state.stable.number);
        let place = |id: &str| {
            let proxy = nodes.get(id)?;
            let group = match current {
                Some(rollout) if rollout.has_whole_fleet() || rollout.members.contains(id) => Group::Canary,
                // It had the candidate until a moment ago, or has not got the stable revision yet.
                _ if proxy.served != stable || proxy.drifted => return None,
                _ => Group::Rest,
            };
            Some(Place { group, zone: proxy.node.labels.get("zone").map_or("", String::as_str).into() })
        };
        let key = key.unwrap_or(StepKey { round: self.state.round, generation: 0 });
        Window::new(key, u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX), deltas, place)
    }

    fn member_counts(&self, rollout: &Rollout, facts: &Facts<'_>) -> MemberCounts {
        let revision = rollout.revision.number;
        let is_canary =
            |proxy: &&FleetProxy| rollout.has_whole_fleet() || rollout.members.contains(&proxy.node.id);
        let mut counts = MemberCounts { swapped: rollout.swapped.len() as u64, ..MemberCounts::default() };
        for proxy in facts.proxies.iter().filter(is_canary) {
            counts.canaries += 1;
            let rejects = proxy.rejected.contains(&revision) && proxy.served != revision;
            counts.rejected += u64::from(rejects || proxy.drifted);
        }
        counts
    }

    /// The proxies at the end of a rollout in relation to its revision.
    fn final_counts(&self, rollout: &Rollout, facts: &Facts<'_>) -> RolloutCounts {
        let revision = rollout.revision.number;
        let count = |is: &dyn Fn(&&FleetProxy) -> bool| {
            u32::try_from(facts.proxies.iter().filter(is).count()).unwrap_or(u32::MAX)
        };
        let is_kept = matches!(rollout.phase, Phase::Ended(End::Succeeded { .. }));
        let is_assigned = |proxy: &&FleetProxy| is_kept || rollout.members.contains(&proxy.node.id);
        RolloutCounts {
            total: count(&|_| true),
            assigned: count(&is_assigned),
            applied: count(&|proxy| proxy.connected && proxy.served == revision),
            pending: count(&|proxy| is_assigned(proxy) && proxy.connected && proxy.served != revision),
            rejected: count(&|proxy| proxy.rejected.contains(&revision)),
            disconnected: count(&|proxy| !proxy.connected),
            unknown: 0,
            lost: rollout.losses,
        }
    }
}

/// The readings that the record of a rollout has: those of the whole fleet and those that are not passing first.
fn shown(readings: &[Reading]) -> Vec<Reading> {
    let is_important =
        |reading: &&Reading| reading.scope == Scope::Fleet || reading.verdict != Verdict::Passing;
    let (important, others): (Vec<_>, Vec<_>) = readings.iter().partition(is_important);
    important.into_iter().chain(others).take(MAX_READINGS).cloned().collect()
}

/// The most readings in the record of a rollout.
const MAX_READINGS: usize = 100;

/// The record of a rollout as it is stored.
fn stored(run: &Run) -> Option<RolloutRun> {
    Some(RolloutRun {
        id: run.rollout.id.to_string(),
        fleet: run.fleet.to_string(),
        revision: run.rollout.revision.number,
        finished: run.finished_at_us.is_some(),
        state: json(run)?,
    })
}

fn json(value: &impl serde::Serialize) -> Option<String> {
    let text = serde_json::to_string(value);
    text.inspect_err(|error| tracing::error!(%error, "the state of a rollout cannot be stored")).ok()
}
