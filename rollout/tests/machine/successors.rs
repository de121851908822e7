//! The fate of a rollout whose place another one takes, of a revert that is refused, and of an emergency that does harm.

use signalbox_config::OnFailure;
use signalbox_rollout::Verdict::{Failing, Inconclusive, Passing};
use signalbox_rollout::machine::{Action, Code, Event, Outcome, RolloutState, Successor, Urgency};

use super::world::World;

/// The successor of a rollout that has ended.
fn successor(world: &World, rollout: &str) -> Option<Successor> {
    let ended = world.finished.iter().rev().find(|ended| *ended.id == *rollout);
    ended.unwrap_or_else(|| panic!("{rollout} has not ended")).superseded_by.clone()
}

fn by(rollout: &str, same_content: bool) -> Option<Successor> {
    Some(Successor { rollout: rollout.into(), same_content })
}

#[test]
fn a_rollout_that_is_superseded_names_its_successor_and_says_if_that_brings_the_same() {
    let mut world = World::new(10);
    world.policy.needs_approval = true;
    world.write(2, "new");
    world.write(3, "new");
    world.write(4, "newer");
    assert_eq!(successor(&world, "2-edge"), by("3-edge", true));
    assert_eq!(successor(&world, "3-edge"), by("4-edge", false));

    // One that is under way makes room for an emergency, and for the stable content.
    let mut world = World::new(10);
    world.write(2, "new");
    world.write_urgently(3, "a fix", Urgency::Emergency("now".into()));
    assert_eq!(successor(&world, "2-edge"), by("3-edge", false));
    world.write(4, "old");
    assert_eq!(successor(&world, "3-edge"), by("4-edge", false));
    assert_eq!(successor(&world, "4-edge"), None);
}

#[test]
fn a_revert_that_is_refused_is_the_reason_why_the_fleet_is_held() {
    let mut world = World::new(10);
    world.policy.on_failure = OnFailure::Revert;
    world.write(2, "new");
    world.look(Failing, 1);
    assert_eq!(world.outcome("2-edge"), Some(Outcome::Failed));
    let refused = Err("route/users was written later".into());
    world.fold(&Event::Reverted { rollout: "2-edge".into(), result: refused }).unwrap();
    let reason = &world.state.hold.as_ref().unwrap().reason;
    assert_eq!(reason.code, Code::RevertRefused);
    assert!(reason.text.starts_with("The canaries have more responses"), "{}", reason.text);
    assert!(
        reason.text.ends_with("could not be taken back: route/users was written later"),
        "{}",
        reason.text
    );
    assert_eq!(reason.route.as_deref(), Some("users"), "the gate that failed is still told");
}

#[test]
fn an_emergency_whose_gates_fail_in_the_bake_time_is_held_or_taken_back_as_the_policy_says() {
    let baking = |on_failure| {
        let mut world = World::new(10);
        world.policy.on_failure = on_failure;
        world.write_urgently(2, "a fix", Urgency::Emergency("now".into()));
        world.run(Failing, 10);
        world.run(Inconclusive, 1);
        assert_eq!(world.current(), Some(RolloutState::Baking));
        world.look(Failing, 1);
        world
    };
    let mut held = baking(OnFailure::Hold);
    assert_eq!((held.current(), held.serving(2)), (Some(RolloutState::Held), 10));
    assert!(held.log.last().unwrap().starts_with("The canaries have more responses"), "{:?}", held.log);
    let entries = held.log.len();
    held.run(Failing, 1000);
    assert_eq!((held.current(), held.log.len()), (Some(RolloutState::Held), entries), "it is told once");
    held.command("2-edge", Action::Resume).unwrap();
    held.run(Passing, 200);
    assert_eq!(held.outcome("2-edge"), Some(Outcome::Succeeded { proven: true }));

    let reverted = baking(OnFailure::Revert);
    assert_eq!((reverted.outcome("2-edge"), reverted.serving(1)), (Some(Outcome::Failed), 10));
    assert_eq!(reverted.reverts, 1);
}
