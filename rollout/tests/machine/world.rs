//! A fleet in memory, whose proxies serve at once what they are assigned, unless they hang.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use signalbox_config::{RolloutPolicy, RolloutStep, StepSize, Strategy};
use signalbox_rollout::gate::{Judgement, Swap};
use signalbox_rollout::machine::{
    Action, Command, Context, Decision, Event, Look, Outcome, Refused, Revision, Rollout, RolloutState,
    State, Urgency, Write, step,
};
use signalbox_rollout::members::{Members, Proxy};
use signalbox_rollout::{Counts, FleetTarget, GateKind, Plan, Reading, Scope, Verdict};

/// A proxy of the fleet.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) id: Arc<str>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) replica: String,
    pub(crate) silent: bool,
    pub(crate) newcomer: bool,
    /// It applies nothing, and says nothing about it.
    pub(crate) hangs: bool,
}

/// A fleet and all that was decided about it.
pub(crate) struct World {
    pub(crate) policy: RolloutPolicy,
    pub(crate) nodes: Vec<Node>,
    pub(crate) state: State,
    pub(crate) is_frozen: bool,
    pub(crate) targets: Vec<FleetTarget>,
    pub(crate) finished: Vec<Rollout>,
    /// The texts of the log.
    pub(crate) log: Vec<String>,
    pub(crate) reverts: usize,
}

/// 10 %, 50 % and all, each for 60 seconds, and then a bake time of 120.
pub(crate) fn policy() -> RolloutPolicy {
    let share = |percent: u32| StepSize::Share { millionths: percent * 10_000, min: 1 };
    let step = |size| RolloutStep { size, soak: Duration::from_secs(60) };
    RolloutPolicy {
        strategy: Strategy::Progressive,
        steps: Box::new([step(share(10)), step(share(50)), step(StepSize::All)]),
        bake: Duration::from_secs(120),
        step_deadline: Duration::from_secs(300),
        ..RolloutPolicy::default()
    }
}

pub(crate) fn node(index: usize, zone: &str, replica: &str) -> Node {
    Node {
        id: format!("p{index}").into(),
        labels: BTreeMap::from([("zone".to_owned(), zone.to_owned())]),
        replica: replica.to_owned(),
        silent: false,
        newcomer: false,
        hangs: false,
    }
}

/// The proxies as a leader sees them: those that serve the stable revision are eligible.
pub(crate) fn proxies<'a>(nodes: &'a [Node], canaries: &Members) -> Vec<Proxy<'a>> {
    let proxy = |node: &'a Node| Proxy {
        id: &node.id,
        labels: &node.labels,
        replica: &node.replica,
        eligible: !node.silent && !node.newcomer && !canaries.contains(&node.id),
        silent: node.silent,
        serves: 0,
    };
    nodes.iter().map(proxy).collect()
}

/// The proxies as a leader sees them. The whole fleet has left the stable revision in the last step.
pub(crate) fn proxies_in<'a>(nodes: &'a [Node], state: &State) -> Vec<Proxy<'a>> {
    let mut proxies = proxies(nodes, &canaries(state));
    let on_stable = !state.current.as_ref().is_some_and(Rollout::has_whole_fleet);
    let target = state.target();
    for (proxy, node) in proxies.iter_mut().zip(nodes) {
        proxy.eligible &= on_stable;
        if !node.hangs {
            proxy.serves = target.of(&node.id).revision.unwrap_or(state.head);
        }
    }
    proxies
}

/// The canaries of the rollout under way, until the whole fleet has its revision.
pub(crate) fn canaries(state: &State) -> Members {
    match state.target().plan {
        Plan::Split { candidate, .. } => candidate.members,
        Plan::Stable { .. } | Plan::Head => Members::new(),
    }
}

pub(crate) fn revision(number: u64, content: &str) -> Revision {
    Revision { number, content: content.into() }
}

/// A reading of the gate on errors.
pub(crate) fn reading(verdict: Verdict) -> Reading {
    Reading {
        gate: GateKind::Errors,
        scope: Scope::Route("users".into()),
        verdict,
        evidence: 0.5,
        limit: 1.0,
        canary: Counts { requests: 100, failures: 40 },
        rest: Counts { requests: 900, failures: 0 },
    }
}

/// A judgement after so much healthy time.
pub(crate) fn judgement(readings: &[Reading], verdict: Verdict, healthy_ms: u64) -> Judgement {
    let healthy_ms = if verdict == Verdict::Passing { healthy_ms } else { 0 };
    Judgement { verdict, readings: readings.to_vec(), swap: None, healthy_ms }
}

impl World {
    /// A fleet of `count` proxies in two zones, on two control planes, at revision 1 with the content `old`.
    pub(crate) fn new(count: usize) -> Self {
        let zones = ["a", "b"];
        let nodes = (0..count).map(|index| node(index, zones[index % 2], zones[index / 2 % 2])).collect();
        let mut world = Self {
            policy: policy(),
            nodes,
            state: State::new("edge".into(), revision(1, "old")),
            is_frozen: false,
            targets: Vec::new(),
            finished: Vec::new(),
            log: Vec::new(),
            reverts: 0,
        };
        world.fold(&Event::Lead { term: 1 }).unwrap();
        world
    }

    /// Folds an event, as a leader does: the state goes through the store.
    pub(crate) fn fold(&mut self, event: &Event<'_>) -> Result<(), Refused> {
        let proxies = proxies_in(&self.nodes, &self.state);
        let context = Context { policy: &self.policy, proxies: &proxies, is_frozen: self.is_frozen };
        let (state, decisions) = step(&self.state, event, &context)?;
        let stored = serde_json::to_string(&state).unwrap();
        self.state = serde_json::from_str(&stored).unwrap();
        assert_eq!(self.state, state, "{stored}");
        for decision in decisions {
            match decision {
                Decision::Assign(target) => self.targets.push(target),
                Decision::Finish(rollout) => self.finished.push(*rollout),
                Decision::Log { reason, .. } => self.log.push(reason.text.to_string()),
                Decision::Revert { .. } => self.reverts += 1,
            }
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, number: u64, content: &str) {
        self.write_urgently(number, content, Urgency::Normal);
    }

    pub(crate) fn write_urgently(&mut self, number: u64, content: &str, urgency: Urgency) {
        self.fold(&Event::Write(Write { revision: revision(number, content), urgency })).unwrap();
    }

    pub(crate) fn command(&mut self, rollout: &str, action: Action) -> Result<(), Refused> {
        self.fold(&Event::Operator(Command { rollout: rollout.into(), action, reason: "a test".into() }))
    }

    /// Looks once after some seconds, with a reading of this verdict, made in the present round.
    pub(crate) fn look(&mut self, verdict: Verdict, seconds: u64) {
        let readings = [reading(verdict)];
        self.look_with(&readings, verdict, seconds);
    }

    pub(crate) fn look_with(&mut self, readings: &[Reading], verdict: Verdict, seconds: u64) {
        self.look_in(self.state.round, readings, verdict, seconds);
    }

    /// Looks every second.
    pub(crate) fn run(&mut self, verdict: Verdict, seconds: u64) {
        (0..seconds).for_each(|_| self.look(verdict, 1));
    }

    /// Looks every second, all being well, until a condition holds. The condition must hold within an hour.
    pub(crate) fn run_until(&mut self, condition: impl Fn(&Self) -> bool) {
        for _ in 0..3600 {
            if condition(self) {
                return;
            }
            self.look(Verdict::Passing, 1);
        }
        panic!("{:?}", self.state);
    }

    /// The reading of the gate on lost canaries.
    pub(crate) fn lost_reading(&self) -> Option<Reading> {
        let proxies = proxies_in(&self.nodes, &self.state);
        let context = Context { policy: &self.policy, proxies: &proxies, is_frozen: self.is_frozen };
        self.state.current.as_ref()?.read_lost(&context)
    }

    /// The state of the rollout under way.
    pub(crate) fn current(&self) -> Option<RolloutState> {
        self.state.current.as_ref().map(Rollout::state)
    }

    pub(crate) fn outcome(&self, id: &str) -> Option<Outcome> {
        let found = self.finished.iter().find(|rollout| *rollout.id == *id)?;
        match found.phase {
            signalbox_rollout::machine::Phase::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// The revision that a proxy is assigned.
    pub(crate) fn target(&self, id: &str) -> u64 {
        self.state.target().of(id).revision.unwrap_or(self.state.head)
    }

    /// The number of proxies that are assigned a revision.
    pub(crate) fn serving(&self, number: u64) -> usize {
        self.nodes.iter().filter(|node| self.target(&node.id) == number).count()
    }

    pub(crate) fn canaries(&self) -> Members {
        canaries(&self.state)
    }

    pub(crate) fn silence_everywhere(&mut self, silent: bool) {
        self.nodes.iter_mut().for_each(|node| node.silent = silent);
    }

    /// Lets a proxy apply nothing from now on, or all again.
    pub(crate) fn hang(&mut self, id: &str, hangs: bool) {
        self.nodes.iter_mut().find(|node| *node.id == *id).unwrap().hangs = hangs;
    }

    pub(crate) fn silence(&mut self, id: &str, silent: bool) {
        self.nodes.iter_mut().find(|node| *node.id == *id).unwrap().silent = silent;
    }
}

impl World {
    /// Looks with readings of a round that may not be the present one.
    pub(crate) fn look_in(&mut self, round: u64, readings: &[Reading], verdict: Verdict, seconds: u64) {
        let judgement = judgement(readings, verdict, seconds * 1000);
        let elapsed = Duration::from_secs(seconds);
        self.fold(&Event::Look(Look { round, elapsed, judgement: &judgement })).unwrap();
    }
}

impl World {
    /// Looks when the gates advise to swap a canary.
    pub(crate) fn swap(&mut self, node: &Arc<str>) {
        let mut judgement = judgement(&[reading(Verdict::Passing)], Verdict::Passing, 0);
        judgement.swap = Some(Swap { node: node.clone(), gate: GateKind::Errors, scope: Scope::Fleet });
        let elapsed = Duration::from_secs(1);
        self.fold(&Event::Look(Look { round: self.state.round, elapsed, judgement: &judgement })).unwrap();
    }

    /// Looks when the gates have seen so much healthy time.
    pub(crate) fn look_after(&mut self, healthy_ms: u64, seconds: u64) {
        let judgement = judgement(&[reading(Verdict::Passing)], Verdict::Passing, healthy_ms);
        let elapsed = Duration::from_secs(seconds);
        self.fold(&Event::Look(Look { round: self.state.round, elapsed, judgement: &judgement })).unwrap();
    }
}
