//! Only what is applied soaks.

use signalbox_config::OnInconclusive;
use signalbox_rollout::Verdict::{Failing, Inconclusive, Passing};
use signalbox_rollout::machine::{Action, Outcome, Rollout, RolloutState, Urgency};
use signalbox_rollout::{GateKind, Scope};

use crate::cases::started;
use crate::world::{World, reading};

fn current(world: &World) -> &Rollout {
    world.state.current.as_ref().unwrap()
}

#[test]
fn an_emergency_waits_until_its_canary_has_applied_it() {
    let mut world = World::new(10);
    world.nodes.iter_mut().for_each(|node| node.hangs = true);
    world.write_urgently(2, "a fix", Urgency::Emergency("now".into()));
    let canary = world.canaries().first().unwrap().clone();
    world.run(Inconclusive, 100);
    assert_eq!((world.serving(2), current(&world).steps[0].healthy_ms), (1, 0));
    world.hang(&canary, false);
    world.run(Inconclusive, 9);
    assert_eq!(world.serving(2), 1);
    world.run(Inconclusive, 1);
    assert_eq!(world.serving(2), 10);
}

#[test]
fn an_emergency_whose_canary_rejects_it_fails() {
    let mut world = World::new(10);
    world.nodes.iter_mut().for_each(|node| node.hangs = true);
    world.write_urgently(2, "a fix", Urgency::Emergency("now".into()));
    world.run(Inconclusive, 5);
    let mut rejected = reading(Failing);
    (rejected.gate, rejected.scope) = (GateKind::Rejected, Scope::Fleet);
    world.look_with(&[rejected], Failing, 1);
    assert_eq!((world.outcome("2-edge"), world.serving(1)), (Some(Outcome::Failed), 10));
    assert!(
        world
            .targets
            .iter()
            .all(|target| world.nodes.iter().any(|node| target.of(&node.id).revision == Some(1)))
    );
    world.run(Inconclusive, 1000);
    assert_eq!(world.serving(1), 10, "nothing tries it again");
}

#[test]
fn a_step_waits_until_all_its_canaries_have_applied_it() {
    let mut world = started();
    world.run(Passing, 59);
    assert_eq!(world.serving(2), 5);
    let canary = world.canaries().last().unwrap().clone();
    world.run(Passing, 20);
    world.hang(&canary, true);
    world.run(Passing, 100);
    assert_eq!((world.serving(2), current(&world).steps[1].healthy_ms), (5, 20_000));
    // A proxy that is not a canary does not matter, nor one that is silent.
    world.hang(&canary, false);
    let other = world.nodes.iter().find(|node| world.target(&node.id) == 1).unwrap().id.clone();
    world.hang(&other, true);
    world.run(Passing, 39);
    assert_eq!(world.serving(2), 5);
    world.run(Passing, 1);
    assert_eq!(world.serving(2), 10);
    world.run(Passing, 10);
    assert_eq!(current(&world).steps[2].healthy_ms, 0, "now it has to apply it as well");
    world.silence(&other, true);
    world.run(Passing, 10);
    assert_eq!(current(&world).steps[2].healthy_ms, 10_000);
}

#[test]
fn a_canary_that_never_applies_it_is_named_at_the_deadline() {
    let mut world = started();
    let canary = world.canaries().first().unwrap().clone();
    world.hang(&canary, true);
    world.run(Passing, 300);
    assert_eq!((world.current(), world.serving(2)), (Some(RolloutState::Held), 1));
    let text = format!("{canary} does not serve the revision at the deadline");
    assert_eq!(world.log.last(), Some(&text));
}

#[test]
fn a_proxy_that_lags_in_the_bake_time_only_pauses_it() {
    let mut world = started();
    world.run_until(|world| world.current() == Some(RolloutState::Baking));
    world.run(Passing, 50);
    world.hang("p3", true);
    world.run(Passing, 60);
    assert_eq!((world.current(), current(&world).baked_ms), (Some(RolloutState::Baking), 50_000));
    world.hang("p3", false);
    world.run(Passing, 70);
    assert_eq!(world.outcome("2-edge"), Some(Outcome::Succeeded { proven: true }));
}

#[test]
fn a_proxy_that_hangs_keeps_no_emergency_from_the_rest_of_the_fleet_and_nothing_unproven_is_proven() {
    let urgencies = [Urgency::Emergency("now".into()), Urgency::BreakGlass("now".into())];
    for urgency in urgencies {
        let mut world = World::new(10);
        world.policy.on_inconclusive = OnInconclusive::Hold;
        world.write_urgently(2, "a fix", urgency);
        let hung = world.nodes.iter().find(|node| !world.canaries().contains(&node.id)).unwrap().id.clone();
        world.hang(&hung, true);
        world.run(Passing, 2000);
        assert_eq!(world.outcome("2-edge"), Some(Outcome::Succeeded { proven: false }));
        assert_eq!((world.serving(2), world.state.proven.as_ref()), (10, None));
    }
}

#[test]
fn a_person_can_go_on_without_a_proxy_that_hangs() {
    let mut world = started();
    let canary = world.canaries().first().unwrap().clone();
    world.hang(&canary, true);
    world.run(Passing, 300);
    world.command("2-edge", Action::Promote).unwrap();
    assert_eq!((world.current(), world.serving(2)), (Some(RolloutState::Running), 5));
}
