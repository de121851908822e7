//! Writes that change nothing for the fleet, because they concern another one.

use signalbox_rollout::Verdict::{Failing, Passing};
use signalbox_rollout::machine::{Action, Outcome, RolloutState, Urgency};

use crate::world::World;

fn urgent() -> [Urgency; 2] {
    [Urgency::BreakGlass("core is down".into()), Urgency::Emergency("core is down".into())]
}

#[test]
fn an_urgent_write_elsewhere_brings_no_failed_change_back() {
    for urgency in urgent() {
        let mut world = World::new(10);
        world.write(2, "bad");
        world.look(Passing, 1);
        world.look(Failing, 1);
        assert_eq!(world.serving(1), 10);
        world.write_urgently(3, "bad", urgency);
        world.run(Passing, 60);
        assert_eq!(world.serving(1), 10, "{:?}", world.log);
    }
}

#[test]
fn an_urgent_write_elsewhere_ends_no_pause_and_no_step() {
    for urgency in urgent() {
        let mut world = World::new(10);
        world.write(2, "new");
        world.look(Passing, 1);
        world.command("2-edge", Action::Pause).unwrap();
        world.write_urgently(3, "new", urgency);
        world.run(Passing, 60);
        assert_eq!((world.serving(2), world.current()), (1, Some(RolloutState::Paused)));
    }
}

#[test]
fn a_write_elsewhere_holds_nothing_while_a_retry_is_under_way() {
    let mut world = World::new(10);
    world.write(2, "new");
    world.look(Passing, 1);
    world.command("2-edge", Action::Abort).unwrap();
    world.command("2-edge", Action::Retry).unwrap();
    world.look(Passing, 1);
    assert_eq!(world.current(), Some(RolloutState::Running));
    world.write(3, "new");
    world.run_until(|world| world.state.current.is_none() && world.state.queued.is_none());
    assert_eq!(world.outcome("2-edge~2"), Some(Outcome::Succeeded { proven: true }));
    assert_eq!(world.state.hold, None, "{:?}", world.log);
    assert_eq!(world.serving(3), 10);
}
