//! The known ways in which progressive delivery goes wrong, one after the other.

use std::time::Duration;

use signalbox_config::{OnFailure, OnInconclusive, OnNewWrite, WhenEmpty};
use signalbox_rollout::Verdict::{Failing, Inconclusive, Passing};
use signalbox_rollout::machine::{Action, Event, Outcome, RolloutState, Urgency};
use signalbox_rollout::{GateKind, Plan, Scope};

use crate::world::{World, reading};

const PROVEN: Option<Outcome> = Some(Outcome::Succeeded { proven: true });

/// A fleet of ten whose revision 2 is in the first step.
pub(crate) fn started() -> World {
    let mut world = World::new(10);
    world.write(2, "new");
    world.look(Passing, 1);
    assert_eq!(world.current(), Some(RolloutState::Running));
    assert_eq!(world.serving(2), 1);
    world
}

#[test]
fn a_good_revision_goes_step_by_step_and_is_proven() {
    let mut world = started();
    world.run(Passing, 58);
    assert_eq!(world.serving(2), 1);
    world.run(Passing, 1);
    assert_eq!(world.serving(2), 5);
    world.run(Passing, 60);
    assert_eq!(world.serving(2), 10);
    assert_eq!(world.state.stable.number, 1, "it may have to go back");
    world.run(Passing, 60);
    assert_eq!(world.current(), Some(RolloutState::Baking));
    world.run(Passing, 119);
    assert_eq!(world.state.proven, None);
    world.run(Passing, 1);
    assert_eq!(world.outcome("2-edge"), PROVEN);
    assert_eq!(world.state.stable.number, 2);
    assert_eq!(world.state.proven, Some(world.state.stable.clone()));
    assert_eq!(world.state.current, None);
    let generations: Vec<u64> = world.targets.iter().map(|one| one.generation).collect();
    assert_eq!(generations, [1, 2, 3], "nothing changes for proxies when the bake time ends");
}

#[test]
fn an_abort_in_a_step_a_soak_or_a_promotion_is_obeyed() {
    for seconds in [0, 1, 30, 59, 60, 61, 119, 120, 179, 180, 200] {
        let mut world = started();
        world.run(Passing, seconds);
        world.command("2-edge", Action::Abort).unwrap();
        assert_eq!(world.outcome("2-edge"), Some(Outcome::Aborted), "after {seconds} s");
        assert_eq!(world.serving(2), 0);
        // Nothing brings it back: not time, not a promotion that came too late.
        assert!(world.command("2-edge", Action::Promote).is_err());
        world.run(Passing, 300);
        assert_eq!(world.serving(2), 0);
        assert_eq!(world.state.stable.number, 1);
    }
}

#[test]
fn a_failed_gate_stops_even_the_last_step_and_the_bake_time() {
    for seconds in [0, 58, 61, 125, 179, 181, 298] {
        let mut world = started();
        world.run(Passing, seconds);
        world.look(Failing, 1);
        assert_eq!(world.outcome("2-edge"), Some(Outcome::Failed), "after {seconds} s");
        assert_eq!((world.serving(2), world.state.stable.number, world.state.proven.clone()), (0, 1, None));
        let hold = world.state.hold.as_ref().unwrap();
        assert_eq!((hold.revision.number, hold.reason.route.as_deref()), (2, Some("users")));
    }
}

#[test]
fn a_fault_minutes_after_applying_poisons_no_proven_revision() {
    let mut world = started();
    world.run_until(|world| world.outcome("2-edge") == PROVEN);
    world.write(3, "breaks later");
    world.run_until(|world| world.current() == Some(RolloutState::Baking));
    world.run(Passing, 119);
    world.look(Failing, 1);
    assert_eq!((world.outcome("3-edge"), world.serving(2)), (Some(Outcome::Failed), 10));
    // Nor does what a person lets pass, or a newer revision takes the place of.
    world.write(4, "also");
    world.run_until(|world| world.current() == Some(RolloutState::Baking));
    world.command("4-edge", Action::Promote).unwrap();
    assert_eq!((world.state.stable.number, world.state.proven.as_ref().unwrap().number), (4, 2));
    world.write(5, "five");
    world.run_until(|world| world.current() == Some(RolloutState::Baking));
    world.write_urgently(6, "six", Urgency::BreakGlass("now".into()));
    assert_eq!((world.state.stable.number, world.state.proven.as_ref().unwrap().number), (5, 2));
}

#[test]
fn too_little_evidence_never_promotes_unless_the_policy_says_so() {
    for (on_inconclusive, state, outcome, serving) in [
        (OnInconclusive::Hold, Some(RolloutState::Held), None, 1),
        (OnInconclusive::Abort, None, Some(Outcome::Aborted), 0),
        (OnInconclusive::Promote, Some(RolloutState::Running), None, 5),
    ] {
        let mut world = started();
        world.policy.on_inconclusive = on_inconclusive;
        world.run(Inconclusive, 298);
        assert_eq!((world.current(), world.serving(2)), (Some(RolloutState::Running), 1));
        world.run(Inconclusive, 2);
        assert_eq!((world.current(), world.serving(2)), (state, serving), "{on_inconclusive:?}");
        assert_eq!(world.outcome("2-edge"), outcome);
    }
    // Where it goes on without evidence, nothing is proven in the end.
    let mut world = started();
    world.policy.on_inconclusive = OnInconclusive::Promote;
    world.run(Inconclusive, 2000);
    assert_eq!(world.outcome("2-edge"), Some(Outcome::Succeeded { proven: false }));
    assert_eq!(world.state.proven, None);
}

#[test]
fn a_held_rollout_goes_on_with_a_whole_deadline_and_the_soak_it_has() {
    let mut world = started();
    world.run(Passing, 40);
    world.run(Inconclusive, 300);
    assert_eq!(world.current(), Some(RolloutState::Held));
    world.run(Passing, 100);
    assert_eq!(world.serving(2), 1, "it needs a person");
    world.command("2-edge", Action::Resume).unwrap();
    world.run(Passing, 18);
    assert_eq!(world.serving(2), 1);
    world.run(Passing, 1);
    assert_eq!(world.serving(2), 5);
}

#[test]
fn evidence_of_an_earlier_step_or_attempt_satisfies_no_later_one() {
    let mut world = started();
    let first = world.state.round;
    world.run(Passing, 59);
    assert_eq!(world.serving(2), 5);
    // Readings of the first step come late.
    let readings = [reading(Passing)];
    for _ in 0..200 {
        world.look_in(first, &readings, Passing, 1);
    }
    assert_eq!(world.serving(2), 5);
    assert_eq!(world.state.current.as_ref().unwrap().steps[1].healthy_ms, 0);
    // A failure of the first step comes late: it had its judgement then.
    world.look_in(first, &[reading(Failing)], Failing, 1);
    assert_eq!(world.serving(2), 5);

    world.look(Failing, 1);
    world.command("2-edge", Action::Retry).unwrap();
    let retried = world.state.current.as_ref().unwrap();
    assert_eq!((&*retried.id, retried.attempt), ("2-edge~2", 2));
    assert!(retried.steps.iter().all(|step| step.healthy_ms == 0));
    world.run(Passing, 59);
    assert_eq!(world.serving(2), 1);
}

#[test]
fn promoting_gives_no_evidence_to_the_next_step() {
    let mut world = started();
    world.run(Passing, 58);
    world.command("2-edge", Action::Promote).unwrap();
    assert_eq!(world.serving(2), 5);
    world.run(Passing, 59);
    assert_eq!(world.serving(2), 5);
    world.run(Passing, 1);
    assert_eq!(world.serving(2), 10);
}

#[test]
fn new_writes_supersede_or_wait_and_nothing_gets_stuck() {
    let mut world = started();
    // The default: they wait, and only the newest follows.
    world.write(3, "three");
    world.write(4, "four");
    assert_eq!(world.outcome("3-edge"), Some(Outcome::Superseded));
    assert_eq!((world.serving(2), world.serving(4)), (1, 0));
    world.run_until(|world| world.outcome("2-edge") == PROVEN);
    world.run_until(|world| world.outcome("4-edge") == PROVEN);
    assert_eq!(world.state.stable.number, 4);

    let mut world = started();
    world.policy.on_new_write = OnNewWrite::Supersede;
    world.run(Passing, 70);
    let before = world.canaries();
    assert_eq!(before.len(), 5);
    world.write(3, "three");
    assert_eq!(world.outcome("2-edge"), Some(Outcome::Superseded));
    assert_eq!((world.serving(2), world.serving(3)), (0, 1), "evidence begins anew with the first step");
    assert!(world.canaries().is_subset(&before), "with a proxy that is a canary already");
    assert_eq!(world.state.stable.number, 1);
    world.run(Passing, 59);
    assert_eq!(world.serving(3), 1);
    // One that all proxies have is not interrupted.
    world.run_until(|world| world.serving(3) == 10);
    world.write(4, "four");
    assert_eq!((world.serving(3), world.serving(4)), (10, 0));
    world.run_until(|world| world.outcome("4-edge") == PROVEN);
}

#[test]
fn a_held_rollout_makes_room_for_a_new_write() {
    let mut world = started();
    world.run(Inconclusive, 300);
    assert_eq!(world.current(), Some(RolloutState::Held));
    world.write(3, "three");
    assert_eq!((world.serving(2), world.serving(3), world.state.stable.number), (0, 1, 1));
    assert_eq!(world.outcome("2-edge"), Some(Outcome::Superseded));
}

#[test]
fn a_held_rollout_that_the_whole_fleet_has_makes_room_for_a_new_write() {
    for baking in [false, true] {
        let mut world = started();
        world.command("2-edge", Action::Skip).unwrap();
        if baking {
            world.run_until(|world| world.current() == Some(RolloutState::Baking));
        }
        world.run(Inconclusive, 500);
        assert_eq!((world.current(), world.serving(2)), (Some(RolloutState::Held), 10));
        world.write(3, "three");
        assert_eq!(world.outcome("2-edge"), Some(Outcome::Superseded));
        assert_eq!((world.serving(2), world.serving(3), world.state.stable.number), (9, 1, 2));
        assert_eq!(world.state.proven, None);
        // The fleet goes back to the revision that it had.
        world.look(Failing, 1);
        assert_eq!(world.serving(2), 10);
    }
}

#[test]
fn what_the_whole_fleet_has_is_not_taken_back_any_more() {
    let mut world = started();
    world.look(Failing, 1);
    world.write(3, "new and more");
    assert_eq!(world.state.current.as_ref().unwrap().includes, Some(2));
    world.command("3-edge", Action::Skip).unwrap();
    world.run(Inconclusive, 300);
    world.write(4, "four");
    assert_eq!((world.state.stable.number, &world.state.hold), (3, &None));
    assert_eq!(world.state.current.as_ref().unwrap().includes, None);
}

#[test]
fn a_write_that_waits_follows_when_the_whole_fleet_is_held() {
    let mut world = started();
    world.command("2-edge", Action::Skip).unwrap();
    world.write(3, "three");
    world.run(Inconclusive, 302);
    assert_eq!((world.serving(2), world.serving(3)), (9, 1));
}

#[test]
fn a_write_without_a_change_for_the_fleet_does_not_end_a_hold_or_a_pause() {
    type Change = fn(&mut World);
    let stops: [(RolloutState, Change); 2] = [
        (RolloutState::Held, |world| world.run(Inconclusive, 300)),
        (RolloutState::Paused, |world| world.command("2-edge", Action::Pause).unwrap()),
    ];
    for (state, stop) in stops {
        for whole_fleet in [false, true] {
            for on_new_write in [OnNewWrite::Wait, OnNewWrite::Supersede] {
                let mut world = started();
                world.policy.on_new_write = on_new_write;
                if whole_fleet {
                    world.command("2-edge", Action::Skip).unwrap();
                }
                stop(&mut world);
                let before = world.state.current.clone();
                world.write(3, "new");
                world.look(Passing, 1);
                world.write(4, "new");
                world.run(Passing, 100);
                assert_eq!((world.current(), &world.state.current), (Some(state), &before));
                // It ends with a decision, and what waits has nothing to add.
                world.command("2-edge", Action::Resume).unwrap();
                world.run_until(|world| world.outcome("2-edge") == PROVEN);
                world.look(Passing, 1);
                assert_eq!((world.state.stable.number, world.state.queued.as_ref()), (4, None));
            }
        }
    }
}

#[test]
fn a_write_that_waits_keeps_what_people_decided_if_its_content_stays() {
    // Paused.
    let mut world = started();
    world.write(3, "three");
    world.command("3-edge", Action::Pause).unwrap();
    world.write(4, "three");
    world.run_until(|world| world.outcome("2-edge") == PROVEN);
    world.run(Passing, 100);
    let queued = world.state.queued.as_ref().unwrap();
    assert_eq!((&*queued.id, queued.state(), world.serving(2)), ("4-edge", RolloutState::Paused, 10));
    // Other content is another decision.
    world.write(5, "five");
    assert_eq!(world.serving(5), 1);

    // Held, because it contains what was aborted.
    let mut world = started();
    world.write(3, "three");
    world.command("2-edge", Action::Abort).unwrap();
    world.write(4, "three");
    world.run(Passing, 100);
    let queued = world.state.queued.as_ref().unwrap();
    assert_eq!((&*queued.id, queued.state(), world.serving(1)), ("4-edge", RolloutState::Held, 10));
    assert!(queued.reason.as_ref().unwrap().text.contains("aborted"), "{queued:?}");
    world.write(5, "five");
    assert_eq!(world.serving(5), 1);

    // Approved.
    let mut world = World::new(10);
    world.policy.needs_approval = true;
    world.is_frozen = true;
    world.write(2, "new");
    world.command("2-edge", Action::Approve).unwrap();
    world.write(3, "new");
    world.is_frozen = false;
    world.look(Passing, 1);
    assert_eq!(world.serving(3), 1);
}

#[test]
fn a_retry_or_an_emergency_that_waits_stays_one_if_its_content_stays() {
    let mut world = started();
    world.look(Failing, 1);
    world.is_frozen = true;
    world.command("2-edge", Action::Retry).unwrap();
    world.write(3, "new");
    world.is_frozen = false;
    world.look(Passing, 1);
    assert_eq!(world.serving(3), 1, "a person retried the content");
    world.look(Failing, 1);
    world.command("3-edge", Action::Retry).unwrap();
    assert_eq!(world.serving(3), 1);

    let mut world = World::new(10);
    world.silence_everywhere(true);
    world.write_urgently(2, "a fix", Urgency::Emergency("now".into()));
    world.write(3, "a fix");
    world.silence_everywhere(false);
    world.run(Inconclusive, 12);
    assert_eq!(world.serving(3), 10);

    // An emergency with other content is a decision to begin.
    let mut world = started();
    world.write(3, "a fix");
    world.command("3-edge", Action::Pause).unwrap();
    world.write_urgently(4, "a better fix", Urgency::Emergency("now".into()));
    assert_eq!(world.serving(4), 1);
}

#[test]
fn an_abort_holds_the_write_that_waits_but_not_the_next_one() {
    let mut world = started();
    world.write(3, "new and more");
    world.command("2-edge", Action::Abort).unwrap();
    world.run(Passing, 100);
    assert_eq!(world.serving(1), 10, "3 contains what was aborted");
    assert_eq!(world.state.queued.as_ref().unwrap().state(), RolloutState::Held);
    world.command("3-edge", Action::Resume).unwrap();
    assert_eq!(world.serving(3), 1);
    assert_eq!(world.state.current.as_ref().unwrap().includes, Some(2));

    world.command("3-edge", Action::Abort).unwrap();
    world.write(4, "a fix");
    assert_eq!(world.serving(4), 1);
    assert!(world.log.last().unwrap().contains("includes 3"), "{:?}", world.log);
    world.run_until(|world| world.outcome("4-edge") == PROVEN);
    assert_eq!(world.state.hold, None);
}

#[test]
fn a_fix_that_waits_follows_a_failure() {
    let mut world = started();
    world.write(3, "a fix");
    world.look(Failing, 1);
    assert_eq!((world.serving(2), world.serving(3)), (0, 0), "the canaries return first");
    world.look(Passing, 1);
    assert_eq!(world.serving(3), 1);
}

#[test]
fn identical_content_is_not_tried_again_by_itself() {
    let mut world = started();
    world.look(Failing, 1);
    world.run(Passing, 1000);
    assert_eq!(world.serving(1), 10, "time alone tries nothing again");
    // A tool that writes the same again and again makes no difference.
    for number in 3..8 {
        world.write(number, "new");
        world.run(Passing, 100);
        assert_eq!(world.serving(1), 10);
        assert_eq!(world.outcome(&format!("{number}-edge")), Some(Outcome::Failed));
    }
    // But a person may.
    world.command("7-edge", Action::Retry).unwrap();
    assert_eq!(world.serving(7), 1);
    world.run_until(|world| world.outcome("7-edge~2") == PROVEN);
    assert_eq!((world.state.hold.clone(), world.state.stable.number), (None, 7));
}

#[test]
fn restoring_the_stable_content_is_immediate() {
    // In a step, in the bake time, while paused, while the fleet is held, and while a freeze window is open.
    for (seconds, pause, fail) in
        [(0, false, false), (70, false, false), (190, false, false), (70, true, false), (5, false, true)]
    {
        let mut world = started();
        world.run(Passing, seconds);
        if pause {
            world.command("2-edge", Action::Pause).unwrap();
        }
        if fail {
            world.look(Failing, 1);
        }
        world.is_frozen = true;
        world.write(3, "old");
        assert_eq!((world.serving(3), world.state.stable.number), (10, 3));
        assert_eq!((&world.state.hold, &world.state.current, &world.state.queued), (&None, &None, &None));
        assert!(matches!(world.outcome("3-edge"), Some(Outcome::Succeeded { .. })));
    }
}

#[test]
fn a_revision_without_a_change_for_the_fleet_begins_no_rollout() {
    // Another fleet's change, a new version of the program, another spelling: the content is the same.
    let mut world = World::new(10);
    world.write(2, "old");
    assert_eq!((world.state.stable.number, world.serving(2)), (2, 10));
    assert_eq!(world.state.current, None);
    // A write that was read twice is one.
    world.write(2, "something else");
    assert_eq!(world.state.current, None);
}

#[test]
fn a_deadline_is_for_one_step_only() {
    let mut world = World::new(10);
    world.run(Inconclusive, 2000);
    assert_eq!(world.log, [""; 0], "there is none outside a rollout");
    world.write(2, "new");
    world.run(Inconclusive, 250);
    world.command("2-edge", Action::Promote).unwrap();
    world.run(Inconclusive, 299);
    assert_eq!(world.current(), Some(RolloutState::Running), "the promotion gave it the whole time");
    world.run(Inconclusive, 1);
    assert_eq!(world.current(), Some(RolloutState::Held));
    world.command("2-edge", Action::Abort).unwrap();
    world.command("2-edge", Action::Retry).unwrap();
    world.run(Inconclusive, 299);
    assert_eq!(world.current(), Some(RolloutState::Running), "an attempt inherits nothing");
}

#[test]
fn a_failed_canary_never_touches_stable_proxies() {
    let mut world = started();
    world.run(Passing, 70);
    let stable: Vec<_> =
        world.nodes.iter().map(|node| node.id.clone()).filter(|id| world.target(id) == 1).collect();
    assert_eq!(stable.len(), 5);
    world.look(Failing, 1);
    world.run(Passing, 100);
    assert_eq!(world.targets.last().unwrap().plan, Plan::Stable { revision: 1 });
    for target in &world.targets {
        assert!(stable.iter().all(|id| target.of(id).revision == Some(1)), "{target:?}");
    }
}

#[test]
fn no_traffic_missing_readings_and_nan_have_a_stated_result() {
    let mut nan = reading(Passing);
    nan.evidence = f64::NAN;
    let mut infinite = reading(Passing);
    infinite.evidence = f64::INFINITY;
    for readings in [vec![], vec![nan], vec![reading(Passing), infinite]] {
        let mut world = started();
        for _ in 0..299 {
            world.look_with(&readings, Passing, 1);
        }
        assert_eq!(world.current(), Some(RolloutState::Held), "{readings:?}");
        assert_eq!(world.state.current.as_ref().unwrap().steps[0].healthy_ms, 1000);
    }
    // A gate that fails counts even where the others say nothing.
    let mut world = started();
    world.look_with(&[reading(Inconclusive), reading(Failing)], Inconclusive, 1);
    assert_eq!(world.outcome("2-edge"), Some(Outcome::Failed));
}

#[test]
fn a_fleet_without_proxies_waits_or_takes_the_revision_unproven() {
    let mut world = World::new(0);
    world.write(2, "new");
    world.run(Inconclusive, 1000);
    assert_eq!(world.state.queued.as_ref().unwrap().state(), RolloutState::Waiting);
    assert_eq!(world.state.stable.number, 1);
    world.policy.when_empty = WhenEmpty::Promote;
    world.look(Inconclusive, 1);
    assert_eq!(world.state.stable.number, 2);
    assert_eq!(world.outcome("2-edge"), Some(Outcome::Succeeded { proven: false }));
    assert_eq!(world.state.proven, None);
}

#[test]
fn the_only_proxy_is_the_canary() {
    let mut world = World::new(1);
    world.write(2, "new");
    assert_eq!((world.serving(2), world.state.stable.number), (1, 1));
    world.look(Failing, 1);
    assert_eq!(world.serving(1), 1);
    world.write(3, "better");
    world.run_until(|world| world.outcome("3-edge") == PROVEN);
}

#[test]
fn a_leader_that_was_away_judges_fresh_evidence_only() {
    let mut world = started();
    world.run(Passing, 30);
    let round = world.state.round;
    // An hour without a look is no hour of soak.
    world.look(Passing, 3600);
    assert_eq!(world.serving(2), 1);
    assert!(world.state.round > round, "evidence begins anew");
    let healthy = |world: &World| world.state.current.as_ref().unwrap().steps[0].healthy_ms;
    assert_eq!(healthy(&world), 31_000, "and what had soaked stays");
    world.look_in(round, &[reading(Passing)], Passing, 1);
    assert_eq!(healthy(&world), 31_000);

    let round = world.state.round;
    world.fold(&Event::Lead { term: 2 }).unwrap();
    assert!(world.state.round > round);
    world.run(Passing, 28);
    assert_eq!(world.serving(2), 1);
    world.run(Passing, 1);
    assert_eq!(world.serving(2), 5, "60 seconds in all");
}

#[test]
fn soak_counts_healthy_time_only_and_a_pause_keeps_it() {
    let mut world = started();
    world.run(Passing, 20);
    world.run(Inconclusive, 50);
    world.command("2-edge", Action::Pause).unwrap();
    world.run(Passing, 500);
    assert_eq!((world.serving(2), world.current()), (1, Some(RolloutState::Paused)));
    world.command("2-edge", Action::Resume).unwrap();
    world.run(Passing, 38);
    assert_eq!(world.serving(2), 1);
    world.run(Passing, 1);
    assert_eq!(world.serving(2), 5);
}

#[test]
fn a_delayed_event_of_an_older_term_changes_nothing() {
    let mut world = started();
    world.fold(&Event::Lead { term: 5 }).unwrap();
    let before = world.state.clone();
    for term in [0, 4, 5] {
        world.fold(&Event::Lead { term }).unwrap();
        assert_eq!(world.state, before);
    }
}

#[test]
fn gates_are_watched_during_a_pause() {
    for state in ["paused", "frozen", "held"] {
        let mut world = started();
        match state {
            "paused" => world.command("2-edge", Action::Pause).unwrap(),
            "frozen" => world.is_frozen = true,
            _ => world.run(Inconclusive, 300),
        }
        world.look(Failing, 1);
        assert_eq!((world.outcome("2-edge"), world.serving(2)), (Some(Outcome::Failed), 0), "{state}");
    }
}

#[test]
fn a_freeze_stops_what_goes_forward_and_nothing_else() {
    let mut world = World::new(10);
    world.is_frozen = true;
    world.write(2, "new");
    world.run(Passing, 1000);
    assert_eq!((world.serving(1), world.current()), (10, None));
    world.is_frozen = false;
    world.look(Passing, 1);
    assert_eq!(world.serving(2), 1);
    world.is_frozen = true;
    world.run(Passing, 1000);
    assert_eq!((world.serving(2), world.current()), (1, Some(RolloutState::Running)));
    assert!(world.command("2-edge", Action::Promote).is_err());
    assert!(world.command("2-edge", Action::Skip).is_err());
    world.is_frozen = false;
    world.look(Passing, 1);
    assert_eq!(world.serving(2), 5, "it had soaked");
    world.is_frozen = true;
    world.command("2-edge", Action::Abort).unwrap();
    assert_eq!(world.serving(1), 10);
}

#[test]
fn an_emergency_goes_over_one_canary_and_break_glass_over_none() {
    let mut world = started();
    world.is_frozen = true;
    world.policy.needs_approval = true;
    world.write_urgently(3, "a fix", Urgency::Emergency("the shop is down".into()));
    assert_eq!(world.outcome("2-edge"), Some(Outcome::Superseded));
    assert_eq!((world.serving(2), world.serving(3)), (0, 1));
    assert!(world.log.iter().any(|text| text == "Emergency: the shop is down"));
    assert!(
        matches!(&world.targets.last().unwrap().plan, Plan::Split { candidate, .. } if candidate.emergency)
    );
    world.run(Failing, 9);
    assert_eq!(world.serving(3), 1, "everything fails anyhow, so soft gates do not count");
    world.run(Inconclusive, 1);
    assert_eq!(world.serving(3), 10);
    world.run(Inconclusive, 1000);
    assert_eq!(world.outcome("3-edge"), Some(Outcome::Succeeded { proven: false }));

    world.write_urgently(4, "worse", Urgency::Emergency("again".into()));
    let mut rejected = reading(Failing);
    (rejected.gate, rejected.scope) = (GateKind::Rejected, Scope::Fleet);
    world.look_with(&[rejected], Failing, 1);
    assert_eq!((world.outcome("4-edge"), world.serving(3)), (Some(Outcome::Failed), 10));

    world.write_urgently(5, "now", Urgency::BreakGlass("all else failed".into()));
    assert_eq!(world.serving(5), 10);
    world.run(Passing, 300);
    assert_eq!(world.outcome("5-edge"), PROVEN);
}

#[test]
fn an_emergency_always_has_a_canary() {
    // The whole fleet left the stable revision in the only step, so no proxy serves it.
    let mut world = World::new(10);
    world.policy.steps = world.policy.steps.iter().skip(2).cloned().collect();
    world.write(2, "new");
    world.look(Passing, 1);
    assert_eq!(world.serving(2), 10);
    world.write_urgently(3, "a fix", Urgency::Emergency("now".into()));
    assert_eq!((world.serving(2), world.serving(3)), (9, 1));

    // Without a proxy that could be one, it waits.
    let mut world = started();
    world.silence_everywhere(true);
    world.write_urgently(3, "a fix", Urgency::Emergency("now".into()));
    world.run(Inconclusive, 100);
    assert_eq!(world.serving(3), 0);
    world.silence_everywhere(false);
    world.look(Inconclusive, 1);
    assert_eq!(world.serving(3), 1);
}

#[test]
fn an_emergency_soaks_under_a_deadline_that_is_shorter() {
    for seconds in [1, 9, 10] {
        let mut world = World::new(10);
        world.policy.step_deadline = Duration::from_secs(seconds);
        world.write_urgently(2, "a fix", Urgency::Emergency("now".into()));
        // A pause of a second in the soak.
        world.silence_everywhere(true);
        world.run(Inconclusive, 1);
        world.silence_everywhere(false);
        world.run(Inconclusive, 10);
        assert_eq!(world.serving(2), 10, "{seconds} s");
    }
}

#[test]
fn an_emergency_during_the_bake_time_does_not_send_the_fleet_back() {
    let mut world = started();
    world.run_until(|world| world.current() == Some(RolloutState::Baking));
    world.write_urgently(3, "a fix", Urgency::Emergency("now".into()));
    assert_eq!((world.serving(1), world.serving(2), world.serving(3)), (0, 9, 1));
    world.command("3-edge", Action::Abort).unwrap();
    assert_eq!(world.serving(2), 10);
    assert_eq!(world.state.proven, None);
}

#[test]
fn a_failure_can_revert_what_was_written() {
    let mut world = started();
    world.policy.on_failure = OnFailure::Revert;
    world.write(3, "new and more");
    world.look(Failing, 1);
    assert_eq!(world.reverts, 1);
    let hold = world.state.hold.clone().unwrap();
    assert_eq!(hold.revert.map(|range| (range.after, range.through)), Some((1, 2)));
    // Until the result is known the leader is told again, and what contains the failed change waits.
    world.run(Passing, 5);
    assert_eq!((world.reverts, world.serving(1)), (6, 10));
    // The revert is a write like others.
    world.write(4, "more");
    world.fold(&Event::Reverted { rollout: "2-edge".into(), result: Ok(()) }).unwrap();
    assert_eq!((world.serving(4), world.state.hold.as_ref().unwrap().revert), (1, None));
    world.run_until(|world| world.outcome("4-edge") == PROVEN);
    assert_eq!(world.state.hold, None);

    let mut world = started();
    world.policy.on_failure = OnFailure::Revert;
    world.look(Failing, 1);
    world.write(3, "old");
    assert_eq!((world.serving(3), &world.state.hold), (10, &None));
}

#[test]
fn a_revert_that_is_refused_is_said_and_stops_nothing() {
    let mut world = started();
    world.policy.on_failure = OnFailure::Revert;
    world.write(3, "later");
    world.look(Failing, 1);
    let refused =
        Event::Reverted { rollout: "2-edge".into(), result: Err("route/users was written later".into()) };
    world.fold(&refused).unwrap();
    assert!(world.log.iter().any(|text| text.ends_with("route/users was written later")));
    assert_eq!(world.serving(3), 1);
    let state = world.state.clone();
    world.fold(&refused).unwrap();
    assert_eq!(world.state, state, "a second result has no effect");
}

#[test]
fn an_abort_of_what_waits_forgets_no_revert() {
    let failed = || {
        let mut world = started();
        world.policy.on_failure = OnFailure::Revert;
        world.write(3, "three");
        world.look(Failing, 1);
        world
    };
    let range = |world: &World| {
        let hold = world.state.hold.as_ref().unwrap();
        hold.revert.map(|range| (&*hold.rollout == "3-edge", range.after, range.through))
    };
    let mut world = failed();
    world.command("3-edge", Action::Abort).unwrap();
    assert_eq!(range(&world), Some((true, 1, 2)));
    // The result of the first request comes late: the leader asks once more, which finds nothing to do.
    world.fold(&Event::Reverted { rollout: "2-edge".into(), result: Ok(()) }).unwrap();
    let reverts = world.reverts;
    world.look(Passing, 1);
    assert_eq!(world.reverts, reverts + 1);
    world.fold(&Event::Reverted { rollout: "3-edge".into(), result: Ok(()) }).unwrap();
    assert_eq!(range(&world), None);

    // A revert of what was aborted takes back both, and so does one of what waits.
    let mut world = failed();
    world.command("3-edge", Action::Abort).unwrap();
    world.command("3-edge", Action::Revert).unwrap();
    assert_eq!(range(&world), Some((true, 1, 3)));
    assert!(world.command("3-edge", Action::Revert).is_err());
    let mut world = failed();
    world.command("3-edge", Action::Revert).unwrap();
    assert_eq!(range(&world), Some((true, 1, 3)));
}

#[test]
fn a_revert_never_takes_back_what_is_under_way_between() {
    // An emergency passes by the revert of 2, and the revision after it is to be taken back.
    let mut world = started();
    world.policy.on_failure = OnFailure::Revert;
    world.look(Failing, 1);
    world.write_urgently(3, "a fix", Urgency::Emergency("now".into()));
    world.write(4, "four");
    let refused = world.command("4-edge", Action::Revert).unwrap_err();
    assert!(refused.text.contains("being taken back"), "{refused:?}");
    world.fold(&Event::Reverted { rollout: "2-edge".into(), result: Ok(()) }).unwrap();
    world.command("4-edge", Action::Abort).unwrap();
    world.command("4-edge", Action::Revert).unwrap();
    let range = world.state.hold.as_ref().unwrap().revert.unwrap();
    assert_eq!((range.after, range.through, world.serving(3)), (3, 4, 1));
}

#[test]
fn reports_that_come_in_batches_soak_no_more_time_than_has_passed() {
    let mut world = started();
    let healthy = |world: &World| world.state.current.as_ref().unwrap().steps[0].healthy_ms;
    // A report of ten seconds comes in the tenth second.
    for second in 1..=30 {
        world.look_after(if second % 10 == 0 { 10_000 } else { 0 }, 1);
        assert_eq!(healthy(&world), 1000 + second / 10 * 10_000);
    }
    world.look_after(3_600_000, 1);
    assert_eq!(healthy(&world), 32_000);
}
