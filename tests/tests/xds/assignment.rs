//! The assignment of revisions to proxies, with real control planes and the proxies' own client. Decisions are written straight into the
//! store, as a leader writes them.

use std::time::Duration;

use signalbox_control_plane::board::{ProxyState, Sharing};
use signalbox_control_plane::store::{Decided, Decisions};
use signalbox_rollout::{Because, Candidate, FleetTarget, Plan};

use crate::harness::*;

/// Puts a decision about the fleet `default` in force.
async fn decide(plane: &Plane, generation: u64, plan: Plan) {
    let lease = Duration::from_secs(60);
    let term = soon("there is a leader", plane.store.lead("test", lease)).await.unwrap().unwrap();
    let target = FleetTarget { fleet: "default".into(), generation, term: term.0, plan };
    let decisions = Decisions { targets: vec![target], ..Decisions::default() };
    assert_eq!(plane.store.decide("test", term, &decisions).await.unwrap(), Decided::Done);
}

fn split(stable: u64, revision: u64, members: &[&str]) -> Plan {
    let members = members.iter().map(|member| (*member).into()).collect();
    Plan::Split { stable, candidate: Candidate { revision, rollout: "r".into(), members, emergency: false } }
}

fn generation(proxy: &Proxy) -> u64 {
    proxy.status.borrow().serving.as_ref().map_or(0, |serving| serving.generation)
}

async fn until(proxy: &Proxy, number: u64, wanted: u64) {
    eventually(&format!("revision {number} is served under generation {wanted}"), || {
        proxy.serves() == Some(number) && generation(proxy) == wanted
    })
    .await;
}

async fn canaries_go_ahead_and_come_back(database: &Database) {
    let plane = Plane::start(database).await;
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let proxies: Vec<_> = (dirs.iter().enumerate())
        .map(|(index, dir)| Proxy::start(&[plane.url()], dir.path(), &format!("p{index}")))
        .collect();
    let stable = plane.put("route/a", route("one")).await;
    let stable_set = plane.publisher.current().snapshot.clone();
    decide(&plane, 1, Plan::Stable { revision: stable }).await;
    for proxy in &proxies {
        until(proxy, stable, 1).await;
    }
    // Nobody gets what is written now: there is no decision about it.
    plane.put("route/a", route("two")).await;
    let candidate = plane.put("route/b", route("new")).await;
    let candidate_set = plane.publisher.current().snapshot.clone();
    decide(&plane, 2, split(stable, candidate, &["p1"])).await;
    until(&proxies[1], candidate, 2).await;
    assert!(proxies[1].has(&candidate_set));
    for index in [0, 2] {
        until(&proxies[index], stable, 2).await;
        assert!(proxies[index].has(&stable_set));
    }
    eventually("the board shows who serves what, and why", || {
        let canary = plane.proxy("p1");
        let other = plane.proxy("p0");
        (canary.state, canary.revision.assigned, canary.revision.assigned_because)
            == (ProxyState::InSync, candidate, Because::Canary)
            && (other.state, other.revision.assigned, other.revision.assigned_because)
                == (ProxyState::InSync, stable, Because::Stable)
            && other.revision.generation == 2
    })
    .await;

    // The canary is taken back: one small change, and it serves what the others serve.
    decide(&plane, 3, Plan::Stable { revision: stable }).await;
    for proxy in &proxies {
        until(proxy, stable, 3).await;
        assert!(proxy.has(&stable_set));
    }
    let applied = proxies[1].recorder.with(|recorded| recorded.applied.clone());
    assert_eq!(applied.last().unwrap(), &(stable, 2), "only the difference was applied");
    assert_eq!(proxies[1].status.borrow().rejected_total, 0);

    // A proxy that never served the candidate has not seen it.
    let seen = proxies[0].recorder.with(|recorded| recorded.applied.clone());
    assert!(seen.iter().all(|(number, _)| *number <= stable), "{seen:?}");

    // The fleet follows the head again.
    decide(&plane, 4, Plan::Head).await;
    for proxy in &proxies {
        until(proxy, candidate, 4).await;
        assert!(proxy.has(&candidate_set));
    }
    let next = plane.put("route/c", route("three")).await;
    for proxy in &proxies {
        until(proxy, next, 4).await;
    }
    for proxy in proxies {
        proxy.stop().await.unwrap();
    }
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn canaries_go_ahead_and_come_back_on_sqlite() {
    canaries_go_ahead_and_come_back(&Database::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn canaries_go_ahead_and_come_back_on_postgres() {
    canaries_go_ahead_and_come_back(&Database::postgres()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_starts_again_knows_the_revisions_that_are_assigned() {
    let database = Database::new();
    let plane = Plane::start(&database).await;
    let stable = plane.put("route/a", route("one")).await;
    let stable_set = plane.publisher.current().snapshot.clone();
    plane.delete("route/a").await;
    let candidate = plane.put("route/b", route("two")).await;
    let candidate_set = plane.publisher.current().snapshot.clone();
    let head = plane.put("route/c", route("three")).await;
    decide(&plane, 1, split(stable, candidate, &["canary"])).await;
    plane.stop().await;

    let plane = Plane::start(&database).await;
    assert_eq!(plane.head(), head);
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let canary = Proxy::start(&[plane.url()], dirs[0].path(), "canary");
    let other = Proxy::start(&[plane.url()], dirs[1].path(), "other");
    until(&canary, candidate, 1).await;
    assert!(canary.has(&candidate_set));
    until(&other, stable, 1).await;
    assert!(other.has(&stable_set));
    // The proxies know their generation, too: a start from disk is not told anything.
    canary.stop().await.unwrap();
    let canary = Proxy::start(&[plane.url()], dirs[0].path(), "canary");
    until(&canary, candidate, 1).await;
    eventually("the board knows", || plane.proxy("canary").state == ProxyState::InSync).await;
    let applied = canary.recorder.with(|recorded| recorded.applied.clone());
    assert_eq!(applied.len(), 1, "{applied:?}");
    for proxy in [canary, other] {
        proxy.stop().await.unwrap();
    }
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_goes_to_a_replica_that_is_behind_takes_nothing_older() {
    let database = Database::postgres();
    let shared = |replica| Settings { sharing: Sharing::Shared, replica, ..Settings::default() };
    let one = Plane::start_with(&database, shared("one")).await;
    let stable = one.put("route/a", route("one")).await;
    let candidate = one.put("route/a", route("two")).await;
    decide(&one, 1, split(stable, candidate, &["p"])).await;
    // It read the store before the next decisions, and follows nothing for now.
    let mut behind = Plane::start_with(&database, Settings { follow: false, ..shared("behind") }).await;
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&[one.url()], dir.path(), "p");
    until(&proxy, candidate, 1).await;
    decide(&one, 2, Plan::Stable { revision: stable }).await;
    until(&proxy, stable, 2).await;
    proxy.stop().await.unwrap();
    one.stop().await;

    // The replica would have it serve the candidate, by a decision that is no longer in force.
    let proxy = Proxy::start(&[behind.url()], dir.path(), "p");
    eventually("the replica knows the proxy", || behind.board.proxy("p").is_some()).await;
    assert_eq!(behind.proxy("p").revision.assigned, candidate);
    until(&proxy, stable, 2).await;
    let mut raw = Raw::open(&behind, "raw", None).await;
    assert_eq!(raw.receive_revision().await.marker.number, stable);
    behind.follow();
    eventually("the replica has caught up", || behind.proxy("p").state == ProxyState::InSync).await;
    let applied = proxy.recorder.with(|recorded| recorded.applied.clone());
    assert!(applied.iter().all(|(number, _)| *number == stable), "{applied:?}");
    proxy.stop().await.unwrap();
    behind.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_followed_while_others_write() {
    let database = Database::postgres();
    let shared = |replica| Settings { sharing: Sharing::Shared, replica, ..Settings::default() };
    let one = Plane::start_with(&database, shared("one")).await;
    let two = Plane::start_with(&database, shared("two")).await;
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(&[two.url()], dir.path(), "p");
    let mut stable = one.put("route/a", route("0")).await;
    for round in 1..20_u64 {
        let plan = match round % 3 {
            0 => Plan::Head,
            1 => Plan::Stable { revision: stable },
            _ => split(stable, one.head(), &["p"]),
        };
        let expected = match &plan {
            Plan::Head => None,
            Plan::Stable { revision } => Some(*revision),
            Plan::Split { candidate, .. } => Some(candidate.revision),
        };
        decide(&one, round, plan).await;
        let head = one.put("route/a", route(&round.to_string())).await;
        until(&proxy, expected.unwrap_or(head), round).await;
        stable = head;
    }
    assert_eq!(proxy.status.borrow().rejected_total, 0);
    proxy.stop().await.unwrap();
    one.stop().await;
    two.stop().await;
}
