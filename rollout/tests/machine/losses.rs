//! Canaries that are lost or sick, and the evidence after others have taken their part.

use signalbox_config::OnInconclusive;
use signalbox_rollout::Verdict::{self, Failing, Inconclusive, Passing};
use signalbox_rollout::machine::{Action, Outcome, Rollout, RolloutState, Urgency};

use crate::cases::started;
use crate::world::{World, reading};

fn current(world: &World) -> &Rollout {
    world.state.current.as_ref().unwrap()
}

#[test]
fn going_back_works_while_canaries_crash() {
    let mut world = started();
    world.run(Passing, 70);
    for id in world.canaries() {
        world.silence(&id, true);
    }
    world.look(Passing, 1);
    assert_eq!(world.outcome("2-edge"), Some(Outcome::Failed));
    assert_eq!(world.serving(1), 10, "they get the stable revision when they return");
    // A fix does not wait for them.
    world.write(3, "a fix");
    assert_eq!(world.current(), Some(RolloutState::Running));
    assert!(world.canaries().iter().all(|id| world.nodes.iter().any(|node| node.id == *id && !node.silent)));
}

#[test]
fn a_person_takes_back_what_silences_or_hangs_all_canaries() {
    type GoBack = fn(&mut World);
    let ways: [GoBack; 3] = [
        |world| world.command("2-edge", Action::Abort).unwrap(),
        |world| world.command("2-edge", Action::Revert).unwrap(),
        |world| world.write(3, "old"),
    ];
    for go_back in ways {
        for hangs in [false, true] {
            let mut world = started();
            world.policy.gates.lost = 10;
            world.run(Passing, 70);
            for id in world.canaries() {
                world.silence(&id, !hangs);
                world.hang(&id, hangs);
            }
            world.run(Inconclusive, 5);
            assert_eq!(world.current(), Some(RolloutState::Running));
            go_back(&mut world);
            assert_eq!((world.serving(2), world.current()), (0, None));
        }
    }
}

#[test]
fn one_lost_canary_is_replaced_and_two_fail() {
    let mut world = started();
    let first = world.canaries().first().unwrap().clone();
    world.silence(&first, true);
    world.look(Passing, 1);
    assert_eq!(world.canaries().len(), 2);
    assert_eq!(world.state.current.as_ref().unwrap().losses, 1);
    // It is one loss, however long it is away, and it has its place when it returns.
    world.run(Passing, 10);
    world.silence(&first, false);
    world.look(Passing, 1);
    assert_eq!((world.target(&first), world.state.current.as_ref().unwrap().losses), (2, 1));
    let second = world.canaries().into_iter().find(|id| *id != first).unwrap();
    world.silence(&second, true);
    world.look(Passing, 1);
    assert_eq!(world.outcome("2-edge"), Some(Outcome::Failed));
}

#[test]
fn a_loss_in_the_same_look_as_a_step_is_counted_first() {
    let mut world = started();
    world.run(Passing, 58);
    world.policy.gates.lost = 0;
    let canary = world.canaries().first().unwrap().clone();
    world.silence(&canary, true);
    world.run(Passing, 1);
    assert_eq!((world.outcome("2-edge"), world.serving(2)), (Some(Outcome::Failed), 0));
}

#[test]
fn a_silent_control_plane_freezes_and_is_not_the_canaries_fault() {
    let mut world = started();
    world.run(Passing, 62);
    assert_eq!(world.serving(2), 5);
    for node in &mut world.nodes {
        node.silent = node.replica == "b";
    }
    world.run(Passing, 200);
    assert_eq!((world.serving(2), world.current()), (5, Some(RolloutState::Running)));
    assert_eq!(world.state.current.as_ref().unwrap().losses, 0);
    // Even then a gate that fails is obeyed.
    let mut failing = World { state: world.state.clone(), nodes: world.nodes.clone(), ..World::new(0) };
    failing.look(Failing, 1);
    assert_eq!(failing.outcome("2-edge"), Some(Outcome::Failed));
    // It does not wait for ever without a word.
    world.policy.on_inconclusive = OnInconclusive::Promote;
    world.run(Passing, 100);
    assert_eq!(world.current(), Some(RolloutState::Held));
    assert!(world.log.last().unwrap().contains("silent at the deadline"), "{:?}", world.log);
    assert_eq!(world.serving(2), 5);
    world.silence_everywhere(false);
    world.command("2-edge", Action::Resume).unwrap();
    world.run_until(|world| world.serving(2) == 10);
}

#[test]
fn a_canary_that_is_sick_alone_is_swapped_once_and_does_not_return() {
    let mut world = started();
    world.run(Passing, 60);
    let before = world.canaries();
    let sick = before.first().unwrap().clone();
    world.swap(&sick);
    let after = world.canaries();
    assert_eq!((after.len(), world.target(&sick)), (before.len(), 1));
    assert_eq!(before.difference(&after).count(), 1, "the others stay");
    // The advice comes once more, late.
    world.swap(&sick);
    assert_eq!(world.canaries(), after);
    // It gets the revision with the whole fleet.
    world.run_until(|world| world.serving(2) == 10);
}

#[test]
fn evidence_begins_anew_when_another_proxy_becomes_a_canary() {
    let lose = |world: &mut World| {
        let lost = world.canaries().first().unwrap().clone();
        world.silence(&lost, true);
        world.look(Passing, 1);
    };
    let swap = |world: &mut World| {
        let sick = world.canaries().first().unwrap().clone();
        world.swap(&sick);
    };
    let changes: [&dyn Fn(&mut World); 2] = [&lose, &swap];
    for change in changes {
        let mut world = started();
        assert_eq!((current(&world).generation, world.state.generation), (1, 1));
        world.run(Passing, 59);
        assert_eq!((current(&world).generation, world.state.generation), (2, 2));
        world.run(Passing, 30);
        let before = world.state.step_key().unwrap();
        change(&mut world);
        let after = world.state.step_key().unwrap();
        assert_eq!(
            (after.generation, world.state.generation),
            (3, 3),
            "requests that began before do not count"
        );
        assert_eq!((before.generation, after.round), (2, before.round + 1));
        // The soak stays, and readings of the round before do not count.
        let healthy = current(&world).steps[1].healthy_ms;
        assert!((30_000..=31_000).contains(&healthy), "{healthy}");
        world.look_in(before.round, &[reading(Failing)], Failing, 1);
        world.look_in(before.round, &[reading(Passing)], Passing, 1);
        assert_eq!(current(&world).steps[1].healthy_ms, healthy);
        world.look(Passing, 1);
        assert_eq!(current(&world).steps[1].healthy_ms, healthy + 1000);
    }
}

#[test]
fn the_only_canary_is_not_swapped_without_another_proxy() {
    let mut world = started();
    let before = world.canaries();
    world.nodes.iter_mut().for_each(|node| node.newcomer = true);
    world.swap(before.first().unwrap());
    assert_eq!((world.canaries(), current(&world).swapped.len()), (before, 0));
}

#[test]
fn losses_are_compared_with_those_of_the_other_proxies() {
    let mut world = World::new(20);
    world.write(2, "new");
    world.command("2-edge", Action::Promote).unwrap();
    let verdict = |world: &World| world.lost_reading().map(|reading| reading.verdict);
    let canaries: Vec<_> = world.canaries().into_iter().collect();
    let others: Vec<_> =
        world.nodes.iter().map(|node| node.id.clone()).filter(|id| !canaries.contains(id)).collect();
    assert_eq!((canaries.len(), others.len(), verdict(&world)), (10, 10, Some(Passing)));
    world.nodes.iter_mut().for_each(|node| node.newcomer = true);
    for id in canaries[..2].iter().chain(&others[..2]) {
        world.silence(id, true);
    }
    let healthy = current(&world).steps[1].healthy_ms;
    world.run(Passing, 10);
    assert_eq!((current(&world).losses, current(&world).rest_losses), (2, 2));
    assert_eq!(verdict(&world), Some(Inconclusive), "two are too many, and the others are lost as often");
    assert_eq!(current(&world).steps[1].healthy_ms, healthy, "doubt is no soak");
    world.silence_everywhere(false);
    world.run(Passing, 10);
    assert_eq!(world.current(), Some(RolloutState::Running), "that they have returned makes it no worse");
    for (index, ends) in [(2, false), (3, false), (4, true)] {
        world.silence(&canaries[index], true);
        world.look(Passing, 1);
        assert_eq!(world.outcome("2-edge").is_some(), ends, "{index}");
    }
    assert_eq!(world.outcome("2-edge"), Some(Outcome::Failed));
    let text = "5 of 10 canaries were lost, and 2 of 10 other proxies";
    assert_eq!(&*world.state.hold.as_ref().unwrap().reason.text, text);
}

#[test]
fn proxies_that_were_gone_before_are_not_counted() {
    let mut world = World::new(10);
    world.nodes.iter_mut().take(3).for_each(|node| node.silent = true);
    world.write(2, "new");
    world.run(Passing, 5);
    assert_eq!((current(&world).losses, current(&world).rest_losses), (0, 0));
    let canary = world.canaries().first().unwrap().clone();
    world.policy.gates.lost = 0;
    world.silence(&canary, true);
    world.look(Passing, 1);
    assert_eq!(world.outcome("2-edge"), Some(Outcome::Failed));
}

#[test]
fn nothing_goes_on_while_no_canary_is_left() {
    let verdicts: [(Urgency, Verdict); 2] =
        [(Urgency::Normal, Passing), (Urgency::Emergency("a test".into()), Inconclusive)];
    for (urgency, verdict) in verdicts {
        let mut world = World::new(10);
        world.write_urgently(2, "new", urgency);
        world.nodes.iter_mut().for_each(|node| node.newcomer = true);
        let canary = world.canaries().first().unwrap().clone();
        world.silence(&canary, true);
        world.run(verdict, 100);
        assert_eq!((world.serving(2), world.current()), (1, Some(RolloutState::Running)));
        assert_eq!(world.lost_reading().map(|reading| reading.verdict), Some(Inconclusive));
        world.silence(&canary, false);
        world.nodes.iter_mut().for_each(|node| node.newcomer = false);
        world.run(verdict, 60);
        assert!(world.serving(2) > 1);
    }
}

#[test]
fn the_whole_fleet_has_no_canaries_to_lose() {
    let mut world = World::new(10);
    assert_eq!(world.lost_reading(), None);
    world.write(2, "new");
    world.command("2-edge", Action::Skip).unwrap();
    assert_eq!(world.lost_reading(), None);
}
