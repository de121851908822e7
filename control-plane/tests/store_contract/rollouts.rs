//! The contract of the part of the store that rollouts use.

use std::time::Duration;

use signalbox_control_plane::store::{
    Command, Decided, Decisions, NewRevision, PinnedFleet, RolloutRun, Store, Term, Urgent, UrgentMode,
    UrgentRevision,
};
use signalbox_rollout::{Candidate, FleetTarget, Plan};

use crate::contract::revision;
use crate::places::Place;

const LEASE: Duration = Duration::from_secs(60);

fn target(fleet: &str, generation: u64, term: Term, plan: Plan) -> FleetTarget {
    FleetTarget { fleet: fleet.into(), generation, term: term.0, plan }
}

fn one(target: FleetTarget) -> Decisions {
    Decisions { targets: vec![target], ..Decisions::default() }
}

fn run(id: &str, revision: u64, finished: bool, state: &str) -> RolloutRun {
    RolloutRun { id: id.into(), fleet: "edge".into(), revision, finished, state: state.into() }
}

async fn targets(store: &dyn Store) -> Vec<FleetTarget> {
    store.fleet_targets(0).await.unwrap().map(|found| found.targets).unwrap_or_default()
}

pub(crate) async fn one_control_plane_leads_and_each_lead_has_its_own_term(place: &dyn Place) {
    let store = place.open().await;
    assert_eq!(store.leader().await.unwrap(), None);
    let first = store.lead("one", LEASE).await.unwrap().unwrap();
    assert_eq!(store.lead("one", LEASE).await.unwrap(), Some(first), "a renewal is no new term");
    assert_eq!(place.open().await.leader().await.unwrap().as_deref(), Some("one"));
    assert_eq!(place.open().await.lead("two", LEASE).await.unwrap(), None);
    // A lease of no time has expired when it is looked at.
    assert_eq!(store.lead("one", Duration::ZERO).await.unwrap(), Some(first));
    let second = store.lead("one", LEASE).await.unwrap().unwrap();
    assert!(second > first, "the holder, too, acquires a lease anew that has expired");
    store.step_down("one", first).await.unwrap();
    assert_eq!(store.lead("two", LEASE).await.unwrap(), None, "an earlier term gives nothing back");
    store.step_down("two", second).await.unwrap();
    assert_eq!(store.lead("two", LEASE).await.unwrap(), None, "nor does another holder");
    store.step_down("one", second).await.unwrap();
    assert_eq!(store.leader().await.unwrap(), None);
    let third = store.lead("two", LEASE).await.unwrap().unwrap();
    assert!(third > second);
}

pub(crate) async fn a_decision_is_made_by_the_leader_and_from_the_one_before(place: &dyn Place) {
    let store = place.open().await;
    assert_eq!(store.fleet_targets(0).await.unwrap(), None, "no decision was made yet");
    let term = store.lead("one", LEASE).await.unwrap().unwrap();
    let members = ["a".into(), "b".into()].into();
    let candidate = Candidate { revision: 9, rollout: "9-edge".into(), members, emergency: false };
    let stable = target("edge", 1, term, Plan::Stable { revision: 7 });
    let split = target("edge", 2, term, Plan::Split { stable: 7, candidate });
    assert_eq!(store.decide("one", term, &one(split.clone())).await.unwrap(), Decided::Outdated);
    assert_eq!(store.decide("one", term, &one(stable.clone())).await.unwrap(), Decided::Done);
    assert_eq!(store.decide("one", term, &one(stable.clone())).await.unwrap(), Decided::Outdated);
    let decisions = Decisions {
        targets: vec![split.clone(), target("core", 1, term, Plan::Head)],
        states: vec![("edge".into(), "one".into()), ("unknown".into(), "none".into())],
        runs: vec![run("9-edge", 9, false, "running")],
        ..Decisions::default()
    };
    assert_eq!(store.decide("one", term, &decisions).await.unwrap(), Decided::Done);
    let found = place.open().await.fleet_targets(0).await.unwrap().unwrap();
    assert_eq!(found.targets, [target("core", 1, term, Plan::Head), split]);
    assert_eq!(store.fleet_targets(found.version).await.unwrap(), None, "nothing changed since");

    // All or none.
    let partly = Decisions {
        targets: vec![target("core", 2, term, Plan::Head), target("edge", 9, term, Plan::Head)],
        states: vec![("edge".into(), "wrong".into())],
        runs: vec![run("9-edge", 9, true, "wrong")],
        ..Decisions::default()
    };
    assert_eq!(store.decide("one", term, &partly).await.unwrap(), Decided::Outdated);
    assert_eq!(targets(&*store).await, found.targets);
    assert_eq!(store.rollout_runs(None, 9).await.unwrap(), [run("9-edge", 9, false, "running")]);
    let states: Vec<_> = store.fleet_states().await.unwrap().into_iter().map(|fleet| fleet.state).collect();
    assert_eq!(states, [None, Some("one".to_owned())]);

    // Whoever does not lead decides nothing: not another, not under an earlier term, not when the lease has expired.
    let next = one(target("edge", 3, term, Plan::Head));
    assert_eq!(store.decide("two", term, &next).await.unwrap(), Decided::NotLeader);
    store.lead("one", Duration::ZERO).await.unwrap();
    assert_eq!(store.decide("one", term, &next).await.unwrap(), Decided::NotLeader);
    let later = store.lead("two", LEASE).await.unwrap().unwrap();
    assert_eq!(store.decide("two", term, &next).await.unwrap(), Decided::NotLeader);
    assert_eq!(
        store.decide("two", later, &one(target("edge", 3, later, Plan::Head))).await.unwrap(),
        Decided::Done
    );
    assert_eq!(targets(&*store).await[1].term, later.0);
}

pub(crate) async fn a_commit_pins_a_fleet_unless_a_decision_has(place: &dyn Place) {
    let store = place.open().await;
    let commit = async |base: u64, fleets: &[&str], expected: Option<u64>| {
        let pinned =
            fleets.iter().map(|fleet| PinnedFleet { fleet: (*fleet).into(), stable: base }).collect();
        let new = NewRevision {
            pinned,
            ..revision(&[("route/a", Some(&*format!("{{\"name\":\"a\",\"priority\":{base}}}")))])
        };
        let committed = store.commit(base, new).await;
        assert_eq!(committed.ok().map(|committed| committed.number), expected);
    };
    commit(0, &[], Some(1)).await;
    assert_eq!(store.fleet_targets(0).await.unwrap(), None);
    commit(1, &["edge", "core"], Some(2)).await;
    let pinned =
        |fleet: &str, generation, revision| target(fleet, generation, Term(0), Plan::Stable { revision });
    assert_eq!(targets(&*store).await, [pinned("core", 1, 1), pinned("edge", 1, 1)]);
    // It is pinned already, and stays where it is.
    commit(2, &["edge"], Some(3)).await;
    assert_eq!(targets(&*store).await, [pinned("core", 1, 1), pinned("edge", 1, 1)]);
    // A fleet that followed the head again is pinned by the next decision.
    let term = store.lead("one", LEASE).await.unwrap().unwrap();
    let head = Decisions {
        states: vec![("edge".into(), "state".into())],
        ..one(target("edge", 2, term, Plan::Head))
    };
    assert_eq!(store.decide("one", term, &head).await.unwrap(), Decided::Done);
    let held = store.hold().await.unwrap();
    let new = NewRevision {
        pinned: vec![PinnedFleet { fleet: "edge".into(), stable: 3 }],
        ..revision(&[("route/a", None)])
    };
    assert_eq!(store.commit_held(held, 3, new).await.unwrap().number, 4);
    let last = targets(&*store).await.pop().unwrap();
    assert_eq!((last.generation, last.plan), (3, Plan::Stable { revision: 3 }));
    // The leader's state of it is gone: it was of before.
    assert_eq!(store.fleet_states().await.unwrap().pop().unwrap().state, None);
    // A commit that fails pins nothing.
    commit(2, &["far"], None).await;
    assert_eq!(targets(&*store).await.len(), 2);
}

pub(crate) async fn rollouts_that_ran_are_kept_by_id(place: &dyn Place) {
    let store = place.open().await;
    let term = store.lead("one", LEASE).await.unwrap().unwrap();
    let save = async |runs: Vec<RolloutRun>| {
        let decided = store.decide("one", term, &Decisions { runs, ..Decisions::default() }).await.unwrap();
        assert_eq!(decided, Decided::Done);
    };
    save(vec![run("3-edge", 3, false, "one"), run("10-edge", 10, false, "two")]).await;
    save(vec![run("3-edge", 3, true, "done")]).await;
    assert_eq!(store.fleet_targets(0).await.unwrap(), None, "a state is no decision");
    let all = [run("10-edge", 10, false, "two"), run("3-edge", 3, true, "done")];
    assert_eq!(place.open().await.rollout_runs(None, 10).await.unwrap(), all);
    assert_eq!(store.rollout_runs(Some("edge"), 10).await.unwrap(), all);
    assert_eq!(store.rollout_runs(Some("core"), 10).await.unwrap(), []);
    assert_eq!(store.rollout_runs(None, 1).await.unwrap(), all[..1]);
}

pub(crate) async fn a_command_is_answered_once_and_in_time(place: &dyn Place) {
    let store = place.open().await;
    let term = store.lead("one", LEASE).await.unwrap().unwrap();
    let first = store.add_command("edge", "pause", LEASE).await.unwrap();
    let expired = store.add_command("edge", "late", Duration::ZERO).await.unwrap();
    assert_eq!(
        place.open().await.commands().await.unwrap(),
        [Command { id: first, fleet: "edge".into(), command: "pause".into() }],
        "one that has expired is not carried out"
    );
    assert_eq!(store.command_answer(first).await.unwrap(), None);
    let answer = |id: u64, text: &str| Decisions { answers: vec![(id, text.into())], ..Decisions::default() };
    assert_eq!(store.decide("one", term, &answer(first, "done")).await.unwrap(), Decided::Done);
    assert_eq!(store.command_answer(first).await.unwrap().as_deref(), Some("done"));
    assert_eq!(store.commands().await.unwrap(), []);
    // Decisions with an answer that is too late must not happen: whoever gave the command was told so.
    for id in [first, expired] {
        let late = Decisions { runs: vec![run("9-edge", 9, true, "late")], ..answer(id, "again") };
        assert_eq!(store.decide("one", term, &late).await.unwrap(), Decided::Outdated);
    }
    assert_eq!(store.rollout_runs(None, 9).await.unwrap(), []);
    // Whoever gives up learns whether it was carried out at the last moment.
    assert!(!store.cancel_command(first).await.unwrap(), "it has an answer");
    let second = store.add_command("edge", "abort", LEASE).await.unwrap();
    assert!(store.cancel_command(second).await.unwrap());
    assert_eq!(store.commands().await.unwrap(), []);
    assert_eq!(store.decide("one", term, &answer(second, "done")).await.unwrap(), Decided::Outdated);
    store.delete_old_rollout_rows().await.unwrap();
    assert_eq!(store.command_answer(first).await.unwrap().as_deref(), Some("done"), "it is kept for a while");
}

pub(crate) async fn an_urgent_revision_is_noted_with_its_commit(place: &dyn Place) {
    let store = place.open().await;
    let urgent = Urgent { mode: UrgentMode::Emergency, reason: "the shop is down".into() };
    let change = |priority: u64| {
        revision(&[("route/a", Some(&*format!("{{\"name\":\"a\",\"priority\":{priority}}}")))])
    };
    store.commit(0, change(1)).await.unwrap();
    let new = NewRevision { urgent: Some(urgent.clone()), ..change(2) };
    assert!(store.commit(0, new.clone()).await.is_err());
    assert_eq!(store.urgent_revisions(0).await.unwrap(), [], "a commit that failed notes nothing");
    store.commit(1, new).await.unwrap();
    store.commit(2, change(3)).await.unwrap();
    assert_eq!(store.urgent_revisions(0).await.unwrap(), [UrgentRevision { number: 2, urgent }]);
    assert_eq!(store.urgent_revisions(2).await.unwrap(), []);
}

pub(crate) async fn counts_reach_the_other_control_planes(place: &dyn Place) {
    let store = place.open().await;
    for (instance, counts) in [("one", "1"), ("two", "2"), ("three", "3")] {
        store.add_counts(instance, counts).await.unwrap();
    }
    let read = async |instance: &str, after: Option<u64>| {
        let rows = store.counts_after(instance, after).await.unwrap();
        (rows.iter().map(|row| row.counts.clone()).collect::<Vec<_>>(), rows.last().map(|row| row.id))
    };
    let (counts, last) = read("one", None).await;
    assert_eq!(counts, ["2", "3"]);
    assert_eq!(read("one", last).await.0, Vec::<String>::new());
    store.delete_old_rollout_rows().await.unwrap();
    assert_eq!(read("two", None).await.0, ["1", "3"], "those of the last minute are kept");
}
