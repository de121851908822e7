//! Random orders of everything that can happen: writes, looks, commands, losses of proxies, changes of leaders and policies, crashes before
//! and after a commit, and leaders that were paused and come back with what they knew. After each event the invariants are checked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use signalbox_config::{OnFailure, OnInconclusive, OnNewWrite, RolloutPolicy, Strategy as How, WhenEmpty};
use signalbox_rollout::gate::Swap;
use signalbox_rollout::machine::{
    Action, Command, Context, Decision, Event, Look, Mode, Outcome, Phase, Rollout, State, StepState, Stop,
    Urgency, Write, step,
};
use signalbox_rollout::{GateKind, Plan, Scope, Verdict};

use crate::world::{Node, canaries, judgement, node, policy, proxies_in, reading, revision};

/// Something that happens.
#[derive(Debug, Clone)]
enum Happening {
    /// A write of one of a few contents, so that the same comes back.
    Write(u8, u8),
    /// Looks: the verdict, the seconds between them and their number, and whether the readings are of an older round.
    Looks {
        verdict: u8,
        seconds: u64,
        count: u8,
        late: bool,
    },
    Command(Action, Aim),
    Silence(prop::sample::Index),
    /// A proxy applies nothing more.
    Hang(prop::sample::Index),
    /// All proxies are there, and apply what they get.
    Return,
    Join,
    Lead,
    Freeze(bool),
    Policy(u8),
    Reverted(bool),
    /// A leader computes, and dies before it commits.
    CrashBefore(Box<Happening>),
    /// A leader is paused with what it knows.
    Pause,
    /// It is resumed, folds something, and tries to commit.
    Resume(Box<Happening>),
}

/// The rollout that a command names.
#[derive(Debug, Clone, Copy)]
enum Aim {
    Current,
    Queued,
    Hold,
    None,
}

fn happening() -> impl Strategy<Value = Happening> {
    let action = prop::sample::select(vec![
        Action::Approve,
        Action::Pause,
        Action::Resume,
        Action::Promote,
        Action::Skip,
        Action::Abort,
        Action::Revert,
        Action::Retry,
    ]);
    let aim = prop::sample::select(vec![Aim::Current, Aim::Current, Aim::Queued, Aim::Hold, Aim::None]);
    let looks = (0_u8..10, 0_u64..14, 1_u8..40, prop::bool::weighted(0.1))
        .prop_map(|(verdict, seconds, count, late)| Happening::Looks { verdict, seconds, count, late });
    let one = prop_oneof![
        4 => (0_u8..5, 0_u8..12).prop_map(|(content, urgency)| Happening::Write(content, urgency)),
        8 => looks,
        4 => (action, aim).prop_map(|(action, aim)| Happening::Command(action, aim)),
        2 => any::<prop::sample::Index>().prop_map(Happening::Silence),
        1 => any::<prop::sample::Index>().prop_map(Happening::Hang),
        3 => Just(Happening::Return),
        1 => Just(Happening::Join),
        1 => Just(Happening::Lead),
        1 => any::<bool>().prop_map(Happening::Freeze),
        2 => any::<u8>().prop_map(Happening::Policy),
        1 => any::<bool>().prop_map(Happening::Reverted),
        1 => Just(Happening::Pause),
    ];
    one.prop_recursive(1, 2, 1, |inner| {
        prop_oneof![
            8 => inner.clone(),
            1 => inner.clone().prop_map(|one| Happening::CrashBefore(Box::new(one))),
            1 => inner.prop_map(|one| Happening::Resume(Box::new(one))),
        ]
    })
}

/// A store, the fleet, and what is known of the past.
struct Model {
    policy: RolloutPolicy,
    nodes: Vec<Node>,
    /// The state in the store, which was read from its text.
    stored: State,
    /// The term in the store.
    term: u64,
    is_frozen: bool,
    head: u64,
    /// A paused leader: its state, and its term.
    paused: Option<(State, u64)>,
    /// Revisions that were taken back, and that no person has retried.
    dead: BTreeSet<u64>,
    /// The contents of revisions that a proof was found for.
    proven: BTreeSet<String>,
    /// The number of times that a fleet which followed the head was pinned again.
    pinned_again: usize,
}

impl Model {
    fn new(count: usize) -> Self {
        let nodes = (0..count).map(|index| node(index, ["a", "b"][index % 2], ["x", "y"][index / 2 % 2]));
        let state = State::new("edge".into(), revision(1, "content 0"));
        let mut model = Self {
            policy: policy(),
            nodes: nodes.collect(),
            stored: state,
            term: 0,
            is_frozen: false,
            head: 1,
            paused: None,
            dead: BTreeSet::new(),
            proven: BTreeSet::new(),
            pinned_again: 0,
        };
        model.happen(&Happening::Lead);
        model
    }

    fn state(&self) -> State {
        self.stored.clone()
    }

    fn happen(&mut self, happening: &Happening) {
        match happening {
            Happening::CrashBefore(inner) => {
                // The result is lost. The next leader finds the same state, and the same event.
                let state = self.state();
                self.with_event(inner, state.round, |model, event| {
                    let lost = model.fold(&state, event);
                    assert_eq!(lost, model.fold(&model.state(), event), "the next leader decides the same");
                    model.apply(event);
                });
            }
            Happening::Pause => self.paused = Some((self.state(), self.term)),
            Happening::Resume(inner) => {
                let Some((state, term)) = self.paused.clone() else { return };
                self.with_event(inner, state.round, |model, event| {
                    if let Some((next, decisions)) = model.fold(&state, event) {
                        let before = model.stored.clone();
                        let generation = state.generation;
                        let is_stale = term != model.term || generation != model.state().generation;
                        if is_stale {
                            assert!(!model.commit(generation, term, &next, &decisions));
                            assert_eq!(model.stored, before, "a stale leader changes nothing");
                        }
                    }
                });
            }
            Happening::Silence(index) if !self.nodes.is_empty() => {
                let index = index.index(self.nodes.len());
                self.nodes[index].silent = true;
            }
            Happening::Hang(index) if !self.nodes.is_empty() => {
                let index = index.index(self.nodes.len());
                self.nodes[index].hangs = true;
            }
            Happening::Silence(_) | Happening::Hang(_) => {}
            Happening::Return => {
                self.nodes.iter_mut().for_each(|node| (node.silent, node.hangs) = (false, false));
            }
            Happening::Join => {
                let mut new = node(self.nodes.len(), "a", "x");
                new.newcomer = true;
                self.nodes.push(new);
            }
            Happening::Freeze(is_frozen) => self.is_frozen = *is_frozen,
            Happening::Policy(bits) => self.change_policy(*bits),
            Happening::Lead => {
                self.term += 1;
                self.apply(&Event::Lead { term: self.term });
            }
            Happening::Looks { count, late, .. } => {
                for _ in 0..*count {
                    let round = self.state().round.saturating_sub(u64::from(*late));
                    self.with_event(happening, round, Self::apply);
                }
            }
            Happening::Write(..) | Happening::Command(..) | Happening::Reverted(_) => {
                self.with_event(happening, 0, Self::apply);
            }
        }
    }

    fn change_policy(&mut self, bits: u8) {
        let bit = |index: u8| bits & (1 << index) != 0;
        self.policy.on_failure = if bit(0) { OnFailure::Revert } else { OnFailure::Hold };
        self.policy.on_inconclusive = match bits >> 1 & 3 {
            0 | 1 => OnInconclusive::Hold,
            2 => OnInconclusive::Promote,
            _ => OnInconclusive::Abort,
        };
        self.policy.on_new_write = if bit(3) { OnNewWrite::Supersede } else { OnNewWrite::Wait };
        self.policy.when_empty = if bit(4) { WhenEmpty::Promote } else { WhenEmpty::Wait };
        self.policy.needs_approval = bit(5);
        self.policy.strategy = if bit(6) && bit(7) { How::Immediate } else { How::Progressive };
    }

    /// Calls a function with the event that a happening is.
    fn with_event(&mut self, happening: &Happening, round: u64, then: impl FnOnce(&mut Self, &Event<'_>)) {
        let state = self.state();
        match happening {
            Happening::Write(content, urgency) => {
                let revision = revision(self.head + 1, &format!("content {content}"));
                let urgency = match urgency {
                    0 => Urgency::Emergency("a test".into()),
                    1 => Urgency::BreakGlass("a test".into()),
                    _ => Urgency::Normal,
                };
                then(self, &Event::Write(Write { revision, urgency }));
            }
            Happening::Looks { verdict, seconds, .. } => {
                let verdict = match verdict {
                    0 => Verdict::Failing,
                    1 | 2 => Verdict::Inconclusive,
                    _ => Verdict::Passing,
                };
                // Reports come in batches, so that some looks have no new ones, and others those of a long time.
                let healthy_ms = if seconds % 3 == 0 { 30_000 } else { seconds % 3 * 900 };
                let mut judgement = judgement(&[reading(verdict)], verdict, healthy_ms);
                let members = state.current.map(|rollout| rollout.members).unwrap_or_default();
                judgement.swap = members
                    .first()
                    .filter(|_| *seconds == 5 && verdict == Verdict::Passing)
                    .map(|node| Swap { node: node.clone(), gate: GateKind::Errors, scope: Scope::Fleet });
                let elapsed = Duration::from_secs(*seconds);
                then(self, &Event::Look(Look { round, elapsed, judgement: &judgement }));
            }
            Happening::Command(action, aim) => {
                let id = match aim {
                    Aim::Current => state.current.as_ref().map(|rollout| &rollout.id),
                    Aim::Queued => state.queued.as_ref().map(|rollout| &rollout.id),
                    Aim::Hold => state.hold.as_ref().map(|hold| &hold.rollout),
                    Aim::None => None,
                };
                let rollout = id.map_or_else(|| "0-edge".into(), Clone::clone);
                then(self, &Event::Operator(Command { rollout, action: *action, reason: "a test".into() }));
            }
            Happening::Reverted(is_done) => {
                let rollout = state.hold.map_or_else(|| "0-edge".into(), |hold| hold.rollout);
                let result = if *is_done { Ok(()) } else { Err("it cannot be".into()) };
                then(self, &Event::Reverted { rollout, result });
            }
            Happening::Lead => then(self, &Event::Lead { term: self.term + 1 }),
            _ => {}
        }
    }

    fn fold(&self, state: &State, event: &Event<'_>) -> Option<(State, Vec<Decision>)> {
        let proxies = proxies_in(&self.nodes, state);
        let context = Context { policy: &self.policy, proxies: &proxies, is_frozen: self.is_frozen };
        let first = step(state, event, &context).ok();
        assert_eq!(first, step(state, event, &context).ok(), "it depends on its arguments only");
        first
    }

    /// The transaction of a leader: it fails if the term or the generation is no longer the one that it has seen.
    fn commit(&mut self, seen: u64, term: u64, state: &State, decisions: &[Decision]) -> bool {
        if term != self.term || seen != self.state().generation {
            return false;
        }
        let raised =
            decisions.iter().filter(|decision| matches!(decision, Decision::Assign(_))).count() as u64;
        assert_eq!(state.generation, seen + raised);
        self.stored = serde_json::from_str(&serde_json::to_string(state).unwrap()).unwrap();
        assert_eq!(self.stored, *state, "all of it is stored");
        true
    }

    fn apply(&mut self, event: &Event<'_>) {
        if let Event::Write(write) = event {
            self.head = write.revision.number;
            self.pin();
        }
        let before = self.state();
        let Some((after, decisions)) = self.fold(&before, event) else { return };
        assert!(self.commit(before.generation, self.term, &after, &decisions));
        self.remember(event, &decisions);
        self.check_assignments(&before, &after, &decisions);
        self.check_progress(&before, &after, event);
        self.check_ends(&before, &after, &decisions);
    }

    /// Pins the fleet as the writer does in the transaction of a revision: a fleet whose policy is progressive stays at the revision before.
    fn pin(&mut self) {
        if self.stored.follows_head && self.policy.strategy == How::Progressive {
            let generation = self.stored.generation + 1;
            let new = State::new(self.stored.fleet.clone(), self.stored.stable.clone());
            self.stored = State { generation, ..new };
            self.pinned_again += 1;
        }
    }

    fn remember(&mut self, event: &Event<'_>, decisions: &[Decision]) {
        if let Event::Operator(Command { rollout, action: Action::Retry, .. }) = event {
            let number = rollout.split('-').next().and_then(|number| number.parse().ok());
            self.dead.remove(&number.unwrap_or(0));
        }
        for decision in decisions {
            let Decision::Finish(rollout) = decision else { continue };
            match rollout.phase {
                Phase::Ended(Outcome::Failed | Outcome::Aborted) => {
                    self.dead.insert(rollout.revision.number);
                }
                Phase::Ended(Outcome::Succeeded { proven: true }) => {
                    self.proven.insert(rollout.revision.content.to_string());
                }
                _ => {}
            }
        }
    }

    fn check_assignments(&self, before: &State, after: &State, decisions: &[Decision]) {
        let assigned: Vec<_> = decisions
            .iter()
            .filter_map(|decision| match decision {
                Decision::Assign(target) => Some(target),
                _ => None,
            })
            .collect();
        let (old, new) = (before.target(), after.target());
        match assigned[..] {
            [] => assert_eq!((old.plan, old.generation), (new.plan.clone(), new.generation)),
            [one] => {
                assert_eq!(*one, new);
                assert_eq!(one.generation, before.generation + 1);
                assert_ne!(one.plan, old.plan);
            }
            _ => panic!("{assigned:?}"),
        }
        for number in new.revisions() {
            assert!(!self.dead.contains(&number), "{number} was taken back");
        }
        if after.follows_head {
            assert!(after.current.is_none() && after.queued.is_none() && after.hold.is_none());
            assert_eq!((after.stable.number, new.plan), (self.head, Plan::Head));
        } else {
            let is_at_rest = after.current.is_none() && after.queued.is_none() && after.hold.is_none();
            let is_immediate = self.policy.strategy == How::Immediate;
            assert!(!is_immediate || !is_at_rest, "{after:?}");
        }
        let members = canaries(after);
        let there = self.nodes.iter().filter(|node| !node.silent && members.contains(&node.id)).count();
        let all = self.nodes.iter().filter(|node| !node.silent).count();
        let grew = canaries(before).len() < members.len();
        assert!(all < 2 || there < all || !grew, "there is nobody to compare with");
        if let Some(proven) = &after.proven {
            assert!(!self.dead.contains(&proven.number));
            assert!(self.proven.contains(&*proven.content), "{proven:?} has no proof");
        }
        assert!(after.term >= before.term && after.round >= before.round && after.head >= before.head);
    }

    fn check_progress(&self, before: &State, after: &State, event: &Event<'_>) {
        let elapsed = match event {
            Event::Look(look) if look.elapsed <= Duration::from_secs(10) && look.round == before.round => {
                look.elapsed.as_millis() as u64
            }
            _ => 0,
        };
        let is_passing = matches!(event, Event::Look(look) if look.judgement.verdict == Verdict::Passing);
        let is_applied = before.current.as_ref().is_none_or(|rollout| self.is_applied(rollout));
        let is_healthy = is_passing && is_applied;
        let (Some(old), Some(new)) = (&before.current, &after.current) else {
            if let Some(new) = &after.current {
                assert_fresh(new);
                assert!(!self.is_frozen || new.mode != Mode::Steps, "it began in a freeze window");
                assert!(!self.policy.needs_approval || new.approved || new.mode != Mode::Steps);
            }
            return;
        };
        if old.id != new.id {
            assert_fresh(new);
            assert!(!self.is_frozen || new.mode != Mode::Steps);
            return;
        }
        let left = old.members.difference(&new.members).filter(|id| !new.swapped.contains(*id)).count();
        assert_eq!(left, 0, "nobody leaves but who is swapped");
        assert!(new.swapped.is_superset(&old.swapped) && new.swapped.is_disjoint(&new.members));
        assert!(new.losses >= old.losses && new.rest_losses >= old.rest_losses);
        if old.members != new.members {
            assert!(after.round > before.round && new.generation == after.generation, "evidence goes on");
        }
        let place = |rollout: &Rollout| match rollout.phase {
            Phase::Step(index) => index,
            Phase::Baking => usize::MAX,
            other => panic!("{other:?}"),
        };
        assert!(place(new) >= place(old));
        let has_advanced = place(new) > place(old);
        if self.is_frozen && new.mode == Mode::Steps {
            assert!(!has_advanced && new.members == old.members, "it went on in a freeze window");
        }
        let by_hand =
            matches!(event, Event::Operator(Command { action: Action::Promote | Action::Skip, .. }));
        assert!(old.stop != Some(Stop::Paused) || !has_advanced || by_hand, "it was paused");
        let is_emergency_everywhere = self.is_emergency(before) && old.has_whole_fleet();
        let unsoaked = old.unsoaked_ms;
        for (old, new) in old.steps.iter().zip(&new.steps) {
            let soaked = new.healthy_ms - old.healthy_ms;
            let most =
                if is_healthy || is_applied && self.is_emergency(after) { elapsed + unsoaked } else { 0 };
            assert!(soaked <= most, "{soaked} ms in {most} ms");
            assert!(new.state != StepState::Passed || new.healthy_ms == new.soak_ms);
            let is_ended = |state| matches!(state, StepState::Promoted | StepState::Skipped);
            let is_forced = is_ended(new.state) && !is_ended(old.state);
            let may_be =
                by_hand || self.policy.on_inconclusive == OnInconclusive::Promote || is_emergency_everywhere;
            assert!(!is_forced || may_be, "nobody promoted it");
        }
        assert!(new.baked_ms - old.baked_ms <= if is_healthy { elapsed + unsoaked } else { 0 });
        assert!(new.unsoaked_ms <= old.unsoaked_ms + elapsed);
        assert!(new.generation >= old.generation && new.generation <= after.generation);
        if let Event::Look(look) = event
            && look.judgement.verdict == Verdict::Failing
            && elapsed > 0
        {
            assert!(new.mode != Mode::Steps, "a gate failed, and it goes on");
        }
    }

    /// True if all proxies that are there and have the revision serve it.
    fn is_applied(&self, rollout: &Rollout) -> bool {
        let has_it = |node: &&Node| rollout.has_whole_fleet() || rollout.members.contains(&node.id);
        !self.nodes.iter().filter(has_it).any(|node| node.hangs && !node.silent)
    }

    fn is_emergency(&self, state: &State) -> bool {
        state.current.as_ref().is_some_and(|rollout| rollout.mode != Mode::Steps)
    }

    fn check_ends(&self, before: &State, after: &State, decisions: &[Decision]) {
        for decision in decisions {
            let Decision::Finish(rollout) = decision else { continue };
            let Phase::Ended(outcome) = rollout.phase else { panic!("{rollout:?}") };
            let has_begun = rollout.steps.iter().any(|step| step.state != StepState::Pending);
            if matches!(outcome, Outcome::Succeeded { .. }) {
                let is_done =
                    |state| matches!(state, StepState::Passed | StepState::Promoted | StepState::Skipped);
                let all = rollout.steps.iter().all(|step| is_done(step.state));
                let at_once = self.policy.strategy == How::Immediate
                    || rollout.revision.content == after.stable.content && !has_begun;
                assert!(all || at_once, "{rollout:?}");
                let can_be_canary = |node: &Node| !node.silent && !node.newcomer;
                let needs_canary = rollout.mode == Mode::Emergency
                    && self.policy.strategy == How::Progressive
                    && rollout.revision.content != before.stable.content;
                if needs_canary && !has_begun {
                    assert!(!self.nodes.iter().any(can_be_canary), "it had no canary: {rollout:?}");
                }
                if has_begun && outcome == (Outcome::Succeeded { proven: true }) {
                    assert_eq!(rollout.baked_ms, rollout.bake_ms, "{rollout:?}");
                }
            }
            if matches!(outcome, Outcome::Failed | Outcome::Aborted) {
                assert!(after.hold.is_some());
            }
        }
    }

    /// Lets everything come to rest, and checks that nothing is stuck.
    fn rest(&mut self) {
        self.happen(&Happening::Return);
        self.happen(&Happening::Freeze(false));
        self.happen(&Happening::Policy(0));
        self.nodes.iter_mut().for_each(|node| node.newcomer = false);
        if self.nodes.is_empty() {
            self.happen(&Happening::Join);
            self.nodes[0].newcomer = false;
        }
        for _ in 0..200 {
            for aim in [Aim::Current, Aim::Queued] {
                self.happen(&Happening::Command(Action::Approve, aim));
                self.happen(&Happening::Command(Action::Resume, aim));
            }
            self.happen(&Happening::Reverted(false));
            self.happen(&Happening::Looks { verdict: 9, seconds: 10, count: 5, late: false });
            let state = self.state();
            if state.current.is_none() && state.queued.is_none() {
                let is_explained =
                    state.hold.as_ref().is_some_and(|hold| hold.revision.number > state.stable.number);
                assert!(state.stable.number == self.head || is_explained, "{state:?}");
                return;
            }
        }
        panic!("it is stuck: {:?}", self.state());
    }
}

/// A rollout that begins has nothing of an earlier one.
fn assert_fresh(rollout: &Rollout) {
    assert!(rollout.steps.iter().all(|step| step.healthy_ms == 0), "{rollout:?}");
    assert_eq!((rollout.since_ms, rollout.baked_ms, rollout.losses), (0, 0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_invariants_hold(
        count in 0_usize..12,
        happenings in prop::collection::vec(happening(), 1..60),
    ) {
        let mut model = Model::new(count);
        for happening in &happenings {
            model.happen(happening);
        }
        model.rest();
    }
}

/// The random orders reach every state and end often enough for the invariants to mean something.
#[test]
fn the_model_reaches_everything() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..150 {
        let tree = (2_usize..12, prop::collection::vec(happening(), 60..80)).new_tree(&mut runner).unwrap();
        let (count, happenings) = tree.current();
        let mut model = Model::new(count);
        for happening in &happenings {
            model.happen(happening);
            let state = model.state();
            if state.follows_head {
                *seen.entry("follows head".to_owned()).or_default() += 1;
            }
            for rollout in state.current.iter().chain(&state.queued) {
                *seen.entry(format!("{:?}", rollout.state())).or_default() += 1;
                *seen.entry(format!("{:?}", rollout.mode)).or_default() += 1;
            }
            if let Some(hold) = &state.hold {
                *seen.entry(format!("hold {:?} {}", hold.outcome, hold.revert.is_some())).or_default() += 1;
            }
            if state.proven.is_some() {
                *seen.entry("proven".to_owned()).or_default() += 1;
            }
        }
        *seen.entry("pinned again".to_owned()).or_default() += model.pinned_again;
    }
    for wanted in [
        "Waiting",
        "Running",
        "Paused",
        "Held",
        "Baking",
        "Steps",
        "Emergency",
        "BreakGlass",
        "proven",
        "follows head",
        "pinned again",
        "hold Failed false",
        "hold Failed true",
        "hold Aborted false",
        "hold Aborted true",
    ] {
        assert!(seen.get(wanted).is_some_and(|times| *times > 20), "{wanted}: {seen:?}");
    }
}
