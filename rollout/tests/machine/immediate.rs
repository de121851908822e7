//! Fleets that follow the head, and those that begin or cease to.

use signalbox_config::Strategy;
use signalbox_rollout::Plan;
use signalbox_rollout::Verdict::{Failing, Inconclusive, Passing};
use signalbox_rollout::machine::{Action, Event, Outcome, RolloutState, State};

use crate::cases::started;
use crate::world::{World, policy, revision};

/// A fleet of ten that follows the head.
fn immediate() -> World {
    let mut world = World::new(10);
    world.policy.strategy = Strategy::Immediate;
    world.look(Inconclusive, 1);
    world
}

fn plan(world: &World) -> Plan {
    world.state.target().plan
}

#[test]
fn an_immediate_policy_costs_one_decision_and_no_more() {
    let mut world = immediate();
    assert_eq!((plan(&world), world.state.generation), (Plan::Head, 1));
    for number in 2..5 {
        world.write(number, &format!("content {number}"));
        world.look(Failing, 1);
        assert_eq!((world.serving(number), world.state.generation), (10, 1));
        assert_eq!(world.state.target().revisions().count(), 0);
    }
    assert_eq!((world.log.len(), world.finished.len(), world.targets.len()), (0, 0, 1));
}

#[test]
fn a_fleet_that_was_pinned_has_no_decision_until_something_differs() {
    let mut world = World::new(10);
    world.state = State { generation: 7, ..State::new("edge".into(), revision(4, "old")) };
    assert_eq!(plan(&world), Plan::Stable { revision: 4 });
    world.fold(&Event::Lead { term: 3 }).unwrap();
    world.run(Passing, 20);
    assert_eq!((world.targets.len(), world.state.generation), (0, 7));
    world.write(5, "new");
    assert_eq!(world.targets.iter().map(|target| target.generation).collect::<Vec<_>>(), [8]);
    assert_eq!((world.serving(4), world.serving(5)), (9, 1));
    assert_eq!(world.state.current.as_ref().unwrap().generation, 8);
}

#[test]
fn a_fleet_whose_policy_becomes_progressive_is_pinned_by_the_writer() {
    let mut world = immediate();
    world.write(2, "two");
    world.policy = policy();
    world.run(Passing, 20);
    assert_eq!((plan(&world), world.targets.len()), (Plan::Head, 1), "the writer has not pinned it");
    let State { generation, stable, .. } = world.state.clone();
    world.state = State { generation: generation + 1, ..State::new("edge".into(), stable) };
    world.write(3, "three");
    assert_eq!((world.serving(2), world.serving(3), world.state.generation), (9, 1, 3));
}

#[test]
fn a_write_under_an_immediate_policy_ends_what_was_under_way() {
    type Change = fn(&mut World);
    let changes: [(&str, Change); 7] = [
        ("in a step", |_| {}),
        ("in the bake time", |world| world.run_until(|world| world.current() == Some(RolloutState::Baking))),
        ("paused", |world| world.command("2-edge", Action::Pause).unwrap()),
        ("held", |world| world.run(Inconclusive, 300)),
        ("failed", |world| world.look(Failing, 1)),
        ("aborted", |world| world.command("2-edge", Action::Abort).unwrap()),
        ("with one that waits", |world| world.write(3, "three")),
    ];
    for (name, change) in changes {
        for content in ["four", "new", "old"] {
            let mut world = started();
            change(&mut world);
            world.policy.strategy = Strategy::Immediate;
            let decisions = world.targets.len();
            world.write(4, content);
            assert_eq!((plan(&world), world.serving(4)), (Plan::Head, 10), "{name}, {content}");
            assert_eq!(world.targets.len(), decisions + 1);
            assert_eq!((&world.state.current, &world.state.queued, &world.state.hold), (&None, &None, &None));
        }
    }
}

#[test]
fn without_a_write_a_rollout_under_way_goes_on_by_its_steps() {
    // A policy that is read wrongly for a moment gives nothing to the whole fleet.
    let mut world = started();
    world.policy.strategy = Strategy::Immediate;
    world.run(Passing, 10);
    assert_eq!(world.serving(2), 1);
    world.run_until(|world| world.outcome("2-edge").is_some());
    assert_eq!(world.outcome("2-edge"), Some(Outcome::Succeeded { proven: true }));
    assert_eq!((plan(&world), world.serving(2)), (Plan::Head, 10));

    let mut world = started();
    world.look(Failing, 1);
    world.policy.strategy = Strategy::Immediate;
    world.run(Passing, 100);
    assert_eq!(plan(&world), Plan::Stable { revision: 1 }, "what was taken back stays so");
}
