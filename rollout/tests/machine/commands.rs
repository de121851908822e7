//! The commands of people, and when they are refused.

use signalbox_rollout::Verdict::{Failing, Inconclusive, Passing};
use signalbox_rollout::machine::{Action, Outcome, RolloutState, StepState};

use crate::world::World;

const ALL: [Action; 8] = [
    Action::Approve,
    Action::Pause,
    Action::Resume,
    Action::Promote,
    Action::Skip,
    Action::Abort,
    Action::Revert,
    Action::Retry,
];

/// The commands that are obeyed, of all.
fn obeyed(state: &World, rollout: &str) -> Vec<Action> {
    let is_obeyed = |action: &Action| {
        let mut world = World { state: state.state.clone(), nodes: state.nodes.clone(), ..World::new(0) };
        world.policy.clone_from(&state.policy);
        let before = world.state.clone();
        match world.command(rollout, *action) {
            Ok(()) => {
                assert_ne!(world.state, before, "{action:?} did nothing");
                true
            }
            Err(refused) => {
                assert_eq!(world.state, before);
                assert!(!refused.text.is_empty());
                false
            }
        }
    };
    ALL.into_iter().filter(is_obeyed).collect()
}

#[test]
fn each_state_has_its_commands() {
    use Action::{Abort, Approve, Pause, Promote, Resume, Retry, Revert, Skip};

    let mut world = World::new(10);
    world.policy.needs_approval = true;
    world.write(2, "new");
    assert_eq!(world.state.queued.as_ref().unwrap().state(), RolloutState::Waiting);
    assert_eq!(obeyed(&world, "2-edge"), [Approve, Pause, Abort, Revert]);
    world.command("2-edge", Approve).unwrap();
    assert_eq!(world.current(), Some(RolloutState::Running));
    assert_eq!(obeyed(&world, "2-edge"), [Pause, Promote, Skip, Abort, Revert]);
    world.command("2-edge", Pause).unwrap();
    assert_eq!(obeyed(&world, "2-edge"), [Resume, Promote, Skip, Abort, Revert]);
    world.command("2-edge", Resume).unwrap();
    world.run(Inconclusive, 300);
    assert_eq!(world.current(), Some(RolloutState::Held));
    assert_eq!(obeyed(&world, "2-edge"), [Pause, Resume, Promote, Skip, Abort, Revert]);
    world.command("2-edge", Skip).unwrap();
    assert_eq!(obeyed(&world, "2-edge"), [Pause, Promote, Abort, Revert]);
    world.run_until(|world| world.current() == Some(RolloutState::Baking));
    assert_eq!(obeyed(&world, "2-edge"), [Pause, Promote, Abort, Revert]);
    world.look(Failing, 1);
    assert_eq!(obeyed(&world, "2-edge"), [Revert, Retry]);
    world.command("2-edge", Revert).unwrap();
    assert_eq!(obeyed(&world, "2-edge"), [Retry]);
    assert_eq!(obeyed(&world, "1-edge"), []);
    assert_eq!(obeyed(&world, "3-edge"), []);
}

#[test]
fn a_refusal_says_the_state() {
    let mut world = World::new(10);
    assert_eq!(world.command("9-edge", Action::Abort).unwrap_err().state, None);
    world.write(2, "new");
    let refused = world.command("2-edge", Action::Resume).unwrap_err();
    assert_eq!(refused.state, Some(RolloutState::Running));
}

#[test]
fn skipping_leaves_steps_out_and_not_the_bake_time() {
    let mut world = World::new(10);
    world.write(2, "new");
    world.command("2-edge", Action::Skip).unwrap();
    assert_eq!(world.serving(2), 10);
    let states = |world: &World| {
        world.state.current.as_ref().unwrap().steps.iter().map(|step| step.state).collect::<Vec<_>>()
    };
    assert_eq!(states(&world), [StepState::Promoted, StepState::Skipped, StepState::Running]);
    assert_eq!(world.state.current.as_ref().unwrap().steps[2].proxies, 10);
    world.run(Passing, 60);
    assert_eq!(world.current(), Some(RolloutState::Baking));
}

#[test]
fn promoting_out_of_the_bake_time_proves_nothing() {
    let mut world = World::new(10);
    world.write(2, "new");
    world.run_until(|world| world.current() == Some(RolloutState::Baking));
    world.command("2-edge", Action::Promote).unwrap();
    assert_eq!(world.outcome("2-edge"), Some(Outcome::Succeeded { proven: false }));
    assert_eq!((world.state.stable.number, world.state.proven.as_ref()), (2, None));
}

#[test]
fn approval_is_for_one_revision() {
    let mut world = World::new(10);
    world.policy.needs_approval = true;
    world.write(2, "new");
    world.command("2-edge", Action::Pause).unwrap();
    world.command("2-edge", Action::Approve).unwrap();
    world.write(3, "newer");
    world.run(Passing, 100);
    assert_eq!(world.serving(1), 10);
    assert!(world.command("2-edge", Action::Approve).is_err());
    world.command("3-edge", Action::Approve).unwrap();
    assert_eq!(world.serving(3), 1);
    // An abort needs none, and a retry needs another.
    world.command("3-edge", Action::Abort).unwrap();
    world.command("3-edge", Action::Retry).unwrap();
    assert_eq!(world.serving(1), 10);
    world.command("3-edge~2", Action::Approve).unwrap();
    assert_eq!(world.serving(3), 1);
}

#[test]
fn a_revert_by_hand_aborts_and_asks_for_a_revision() {
    let mut world = World::new(10);
    world.write(2, "new");
    world.command("2-edge", Action::Revert).unwrap();
    assert_eq!((world.serving(1), world.reverts), (10, 1));
    assert_eq!(world.outcome("2-edge"), Some(Outcome::Aborted));
    world.write(3, "old");
    assert_eq!((world.serving(3), &world.state.hold), (10, &None));
    world.run(Passing, 3);
    assert_eq!(world.reverts, 1);
}

#[test]
fn a_write_that_waits_can_be_aborted_alone() {
    let mut world = World::new(10);
    world.write(2, "new");
    world.write(3, "newer");
    world.command("3-edge", Action::Abort).unwrap();
    assert_eq!((world.serving(2), world.current()), (1, Some(RolloutState::Running)));
    world.run_until(|world| world.outcome("2-edge").is_some());
    assert_eq!(world.state.stable.number, 2);
    world.run(Passing, 100);
    assert_eq!(world.serving(2), 10);
    assert_eq!(world.state.hold.as_ref().unwrap().revision.number, 3);
    world.command("3-edge", Action::Retry).unwrap();
    assert_eq!(world.serving(3), 1);
}
