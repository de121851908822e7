mod replicas;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use signalbox_config::RevisionId;
use signalbox_proto::signalbox::report::v1::{Crashed, ErrorClasses, ProxyReport, Traffic};

use crate::board::event::{EndedBy, Event, Link, Node, Presented};
use crate::board::proxy::{DUPLICATE_WINDOW, Duplicate, MAX_REJECTIONS, Proxy, RECONNECT_GRACE};
use crate::board::replicas::{DEAD_REPLICA_GRACE, LEASE, OLD_VERSION_GRACE, RECENT_DEATH};
use crate::board::state::{Dirty, Sharing, State};
use crate::board::status::{
    Propagation, ProxyError, ProxyResourceError, ProxyState, ProxyTraffic, RolloutCounts, TrafficClasses,
    WaitResult,
};
use crate::clock::rfc3339;
use crate::store::{ReplicaRow, Stamp};

/// Times in these tests are milliseconds.
const MS: i64 = 1000;

fn state() -> State {
    State::new("here".into(), "here-1".into(), Sharing::Shared)
}

fn id(number: u64) -> RevisionId {
    RevisionId { epoch: "e".into(), number }
}

fn node(id: &str, fleet: &str) -> Node {
    Node {
        plugin_types: None,
        id: id.into(),
        fleet: fleet.into(),
        labels: BTreeMap::new(),
        version: String::new(),
        address: String::new(),
    }
}

impl State {
    fn at(&mut self, ms: i64, event: Event) {
        self.fold(ms * MS, event);
    }

    fn publish(&mut self, ms: i64, number: u64) {
        self.at(ms, Event::Published { revision: id(number), committed_at_us: ms * MS });
    }

    fn open(&mut self, ms: i64, stream: u64, name: &str, presented: u64) {
        self.open_in("default", ms, stream, name, presented);
    }

    fn open_in(&mut self, fleet: &str, ms: i64, stream: u64, name: &str, presented: u64) {
        self.open_as(Link::default(), fleet, ms, stream, name, presented);
    }

    fn open_as(&mut self, link: Link, fleet: &str, ms: i64, stream: u64, name: &str, presented: u64) {
        let verified = self.head.as_ref().is_some_and(|head| head.number == presented);
        let presented = Some(Presented { revision: id(presented), verified });
        self.at(ms, Event::Opened { stream, node: node(name, fleet), presented, link });
    }

    /// The database has taken in what was to be written.
    fn save(&mut self) {
        let unsaved = std::mem::take(&mut self.unsaved);
        for id in unsaved.proxies {
            if let Some((_, true)) = self.row_to_write(&id) {
                let stream = self.stream_of(&id);
                self.registered(&id, stream);
            }
        }
    }

    /// Reads a row of another control plane, which the database has at `version`.
    fn read(&mut self, ms: i64, proxy: Proxy, version: i64) {
        let stamp = Stamp {
            replica: proxy.replica.to_string(),
            instance: proxy.instance.to_string(),
            updated_at_us: version,
        };
        let read = self.begin_read();
        if !self.has_read(&proxy.node.id, &stamp) {
            self.apply_row(ms * MS, read, proxy, stamp);
        }
    }

    /// Another control plane said so long ago that it is alive.
    fn replica(&mut self, now: Instant, instance: &str, age: Duration) {
        let rows = [ReplicaRow { instance: instance.into(), name: "there".into(), age }];
        self.apply_replicas(0, now, &rows);
    }

    fn ack(&mut self, ms: i64, stream: u64, name: &str, number: u64) {
        self.at(ms, Event::Acked { stream, id: name.into(), revision: id(number) });
    }

    fn nack(&mut self, ms: i64, stream: u64, name: &str, revision: u64, message: &str) {
        let resources = vec![ProxyResourceError {
            kind: "listener".into(),
            name: "http".into(),
            field: "address".into(),
            message: message.into(),
            changed_in: None,
        }];
        self.at(ms, Event::Rejected { stream, id: name.into(), revision, resources });
    }

    fn close(&mut self, ms: i64, stream: u64, name: &str) {
        self.at(ms, Event::Closed { stream, id: name.into(), by: EndedBy::Proxy });
    }

    /// `state total/applied/pending/rejected/disconnected`
    fn brief(&self, number: u64) -> String {
        let rollout = self.rollout_status(number, "default").unwrap();
        let RolloutCounts { total, applied, pending, rejected, disconnected, unknown, .. } = rollout.counts;
        assert_eq!(total, applied + pending + rejected + disconnected + unknown, "{rollout:?}");
        format!("{:?} {total}/{applied}/{pending}/{rejected}/{disconnected}", rollout.state)
    }

    fn state_of(&self, name: &str) -> ProxyState {
        self.proxy(name).unwrap().state
    }
}

#[test]
fn a_rollout_succeeds_with_the_last_ack() {
    let mut state = state();
    state.publish(0, 1);
    state.open(10, 1, "a", 1);
    state.open(10, 2, "b", 1);
    state.publish(100, 2);
    assert_eq!(state.brief(2), "Running 2/0/2/0/0");
    assert_eq!(state.state_of("a"), ProxyState::Pending);
    state.ack(104, 1, "a", 2);
    assert_eq!(state.brief(2), "Running 2/1/1/0/0");
    assert_eq!(state.convergence(2, None), None);
    state.ack(110, 2, "b", 2);
    assert_eq!(state.brief(2), "Succeeded 2/2/0/0/0");
    assert_eq!(state.state_of("a"), ProxyState::InSync);
    assert_eq!(state.convergence(2, None), Some(WaitResult::Done));
    let rollout = state.rollout_status(2, "default").unwrap();
    assert_eq!(rollout.propagation_ms, Some(Propagation { p50: 4.0, p99: 10.0, max: 10.0 }));
    assert_eq!(rollout.base_revision, 1);
    assert_eq!(rollout.finished_at, Some(rfc3339(110 * MS)));
}

#[test]
fn a_rollout_without_connected_proxies_succeeds_at_once() {
    let mut state = state();
    state.publish(0, 1);
    state.open(1, 1, "a", 1);
    state.close(2, 1, "a");
    state.publish(3, 2);
    assert_eq!(state.brief(2), "Succeeded 1/0/0/0/1");
    assert_eq!(state.convergence(2, None), Some(WaitResult::Done));
}

#[test]
fn the_empty_set_before_the_first_revision_has_no_rollout() {
    let mut state = state();
    state.publish(0, 0);
    state.open(1, 1, "a", 0);
    assert!(state.rollouts(10).is_empty());
    assert_eq!(state.state_of("a"), ProxyState::InSync);
}

#[test]
fn a_wait_for_what_is_not_published_goes_on() {
    let mut state = state();
    assert_eq!(state.convergence(1, None), None);
    state.publish(0, 1);
    assert_eq!(state.convergence(1, None), Some(WaitResult::Done));
    assert_eq!(state.convergence(2, None), None);
}

#[test]
fn a_proxy_that_leaves_holds_nothing_up() {
    let mut state = state();
    state.publish(0, 1);
    state.open(1, 1, "a", 1);
    state.open(1, 2, "b", 1);
    state.publish(2, 2);
    state.ack(3, 1, "a", 2);
    state.progress = false;
    state.close(4, 2, "b");
    assert!(state.progress);
    assert_eq!(state.convergence(2, None), Some(WaitResult::Done));
    assert_eq!(state.brief(2), "Succeeded 2/1/0/0/1");
    assert_eq!(state.state_of("b"), ProxyState::Disconnected);
    // It comes back: the rollout was a success, and stays one.
    state.open(5, 3, "b", 1);
    assert_eq!(state.brief(2), "Succeeded 2/1/1/0/0");
}

#[test]
fn a_rejection_fails_the_rollout_and_a_later_revision_recovers_the_proxy() {
    let mut state = state();
    state.publish(0, 1);
    state.open(1, 1, "a", 1);
    state.open(1, 2, "b", 1);
    state.publish(2, 2);
    state.ack(3, 1, "a", 2);
    state.nack(4, 2, "b", 2, "the port is taken");
    assert_eq!(state.brief(2), "Failed 2/1/0/1/0");
    let reason = state.rollout_status(2, "default").unwrap().reason;
    let reason = reason.unwrap();
    assert_eq!(reason.text, "b rejected it: listener/http: address: the port is taken");
    assert_eq!(reason.resource.as_deref(), Some("listener/http"));
    assert_eq!(state.convergence(2, None), Some(WaitResult::Rejected));
    assert_eq!(state.state_of("b"), ProxyState::Rejected);
    assert_eq!(state.proxy("b").unwrap().error.unwrap().resources[0].field, "address");

    state.publish(5, 3);
    assert_eq!(state.state_of("b"), ProxyState::Pending);
    assert_eq!(state.convergence(3, None), None);
    state.ack(6, 1, "a", 3);
    state.ack(7, 2, "b", 3);
    assert_eq!(state.brief(3), "Succeeded 2/2/0/0/0");
    assert!(state.proxy("b").unwrap().error.is_none());
    assert_eq!(state.convergence(2, None), Some(WaitResult::Done));
}

#[test]
fn a_late_ack_turns_a_failed_rollout_into_a_success() {
    let mut state = state();
    state.publish(0, 1);
    state.open(1, 1, "a", 1);
    state.publish(2, 2);
    state.nack(3, 1, "a", 2, "x");
    state.ack(9, 1, "a", 2);
    assert_eq!(state.brief(2), "Succeeded 1/1/0/0/0");
    let rollout = state.rollout_status(2, "default").unwrap();
    assert_eq!((rollout.reason, rollout.finished_at), (None, Some(rfc3339(9 * MS))));
}

#[test]
fn rejecting_a_later_revision_answers_a_wait_for_one_it_was_sent_with() {
    let mut state = state();
    state.publish(0, 1);
    state.open(1, 1, "a", 1);
    state.publish(2, 2);
    state.publish(2, 3);
    state.nack(3, 1, "a", 3, "x");
    assert_eq!(state.convergence(2, None), Some(WaitResult::Rejected));
    assert_eq!(state.convergence(1, None), Some(WaitResult::Done));
}

#[test]
fn a_revision_that_was_skipped_is_superseded_and_served_with_the_later_one() {
    let mut state = state();
    state.publish(0, 1);
    state.open(1, 1, "a", 1);
    state.publish(2, 2);
    state.publish(4, 3);
    assert_eq!(state.brief(2), "Superseded 1/0/1/0/0");
    state.ack(6, 1, "a", 3);
    assert_eq!(state.brief(2), "Superseded 1/1/0/0/0");
    assert_eq!(state.brief(3), "Succeeded 1/1/0/0/0");
    assert_eq!(state.rollout_status(2, "default").unwrap().propagation_ms.unwrap().max, 4.0);
    assert_eq!(state.rollout_status(3, "default").unwrap().propagation_ms.unwrap().max, 2.0);
    assert_eq!(state.convergence(2, None), Some(WaitResult::Done));
}

#[test]
fn a_proxy_that_comes_after_a_revision_says_nothing_of_its_propagation() {
    let mut state = state();
    state.publish(0, 1);
    state.open(5000, 1, "a", 0);
    state.ack(5001, 1, "a", 1);
    assert_eq!(state.brief(1), "Succeeded 1/1/0/0/0");
    assert_eq!(state.rollout_status(1, "default").unwrap().propagation_ms, None);
}

#[test]
fn what_an_earlier_stream_still_says_is_ignored() {
    let mut state = state();
    state.publish(0, 1);
    state.open(1, 1, "a", 1);
    state.publish(2, 2);
    state.open(3, 2, "a", 1);
    state.ack(4, 1, "a", 2);
    state.close(4, 1, "a");
    assert_eq!(state.state_of("a"), ProxyState::Pending);
    assert_eq!(state.brief(2), "Running 1/0/1/0/0");
    assert_eq!(state.proxies().len(), 1);
}

#[test]
fn a_drifted_proxy_is_shown_so_until_it_serves_a_revision() {
    let mut state = state();
    state.publish(0, 5);
    state.open(1, 1, "a", 9);
    let message = "it is ahead".to_owned();
    state.at(2, Event::Drifted { stream: 1, id: "a".into(), revision: 5, message });
    assert_eq!(state.state_of("a"), ProxyState::Drifted);
    assert_eq!(state.proxy("a").unwrap().error.unwrap().resources[0].message, "it is ahead");
    assert_eq!(state.rollout_status(5, "default").unwrap().counts.rejected, 0);
    // It is without a stream for a moment, and then to be sent everything.
    state.close(2, 1, "a");
    assert_eq!((state.state_of("a"), state.convergence(5, None)), (ProxyState::Drifted, None));
    assert!(!state.proxy("a").unwrap().connected);
    state.at(
        2,
        Event::Opened { stream: 2, node: node("a", "default"), presented: None, link: Link::default() },
    );
    assert_eq!((state.state_of("a"), state.convergence(5, None)), (ProxyState::Drifted, None));
    assert!(state.proxy("a").unwrap().error.is_some());
    state.publish(3, 10);
    state.ack(4, 2, "a", 10);
    assert_eq!(state.state_of("a"), ProxyState::InSync);
    assert!(state.proxy("a").unwrap().error.is_none());
}

#[test]
fn numbers_of_another_epoch_do_not_count() {
    let mut state = state();
    state.publish(0, 7);
    state.open(1, 1, "a", 7);
    let revision = RevisionId { epoch: "f".into(), number: 3 };
    state.at(2, Event::Published { revision: revision.clone(), committed_at_us: 2 * MS });
    assert_eq!(state.state_of("a"), ProxyState::Pending);
    assert_eq!(state.convergence(3, None), None);
    state.at(3, Event::Acked { stream: 1, id: "a".into(), revision });
    assert_eq!(state.convergence(3, None), Some(WaitResult::Done));
    assert_eq!(state.brief(3), "Succeeded 1/1/0/0/0");
    assert!(state.rollout_status(7, "default").is_none());
}

#[test]
fn fleets_do_not_hold_each_other_up() {
    let mut state = state();
    state.publish(0, 1);
    state.open_in("one", 1, 1, "a", 1);
    state.open_in("two", 1, 2, "b", 1);
    state.publish(2, 2);
    state.ack(3, 1, "a", 2);
    assert_eq!(state.convergence(2, Some("one")), Some(WaitResult::Done));
    assert_eq!(state.convergence(2, Some("two")), None);
    assert_eq!(state.convergence(2, None), None);
    let fleets = state.fleets();
    assert_eq!((&*fleets[0].name, fleets[0].served), ("one", Some(2)));
    assert_eq!((&*fleets[1].name, fleets[1].served), ("two", Some(1)));
    assert_eq!(
        state.rollouts(3).iter().map(|rollout| &*rollout.id).collect::<Vec<_>>(),
        ["2-one", "2-two", "1-one"]
    );
}

#[test]
fn a_proxy_that_changes_its_fleet_counts_in_the_new_one() {
    let mut state = state();
    state.publish(0, 1);
    state.open_in("one", 1, 1, "a", 1);
    state.open_in("two", 2, 2, "a", 1);
    let fleets = state.fleets();
    assert_eq!((fleets[0].proxies, fleets[1].proxies), (0, 1));
}

#[test]
fn a_report_tells_traffic_and_when_the_revision_was_applied() {
    let mut state = state();
    state.publish(0, 1);
    state.open(1, 1, "a", 0);
    let report = |revision, requests| ProxyReport {
        node_id: "a".into(),
        revision,
        applied_at_us: 5,
        apply_us: 1500,
        traffic: Some(Traffic {
            interval_us: 2_000_000,
            requests,
            errors: 1,
            p99_us: 700,
            classes: Some(ErrorClasses { no_route: 2, client_errors: 1 }),
            ..Traffic::default()
        }),
        ..ProxyReport::default()
    };
    // It may be faster than the ACK.
    state.at(2, Event::Reported(Box::new(report(1, 4))));
    assert_eq!(state.proxy("a").unwrap().apply_ms, None);
    state.ack(3, 1, "a", 1);
    let proxy = state.proxy("a").unwrap();
    assert_eq!(proxy.apply_ms, Some(1.5));
    assert_eq!(proxy.revision.applied_at, Some(rfc3339(5)));
    let classes = Some(TrafficClasses { no_route: 0.5, client_errors: 0.25, server_errors: 0.25 });
    let traffic = ProxyTraffic { requests_per_second: 2.0, error_ratio: 0.25, p99_ms: 0.7, classes };
    assert_eq!(proxy.traffic, Some(traffic));
    state.unsaved = Dirty::default();
    state.at(4, Event::Reported(Box::new(report(1, 0))));
    assert!(state.unsaved.is_empty(), "traffic alone is written less often");
    assert_eq!(state.heartbeats.len(), 1);
    assert_eq!(state.proxy("a").unwrap().traffic.unwrap().error_ratio, 0.0);
}

#[test]
fn a_revision_that_is_acknowledged_again_is_served_since_the_first_time() {
    let mut state = state();
    state.publish(0, 1);
    state.open(1, 1, "a", 0);
    let applied_at = |state: &State| state.proxy("a").unwrap().revision.applied_at;
    state.ack(3, 1, "a", 1);
    state.ack(7, 1, "a", 1);
    assert_eq!(applied_at(&state), Some(rfc3339(3 * MS)));
    state.publish(8, 2);
    state.ack(9, 1, "a", 2);
    assert_eq!(applied_at(&state), Some(rfc3339(9 * MS)));
}

#[test]
fn a_crash_that_a_proxy_reports_is_a_rejection_until_it_serves_a_later_revision() {
    let mut state = state();
    state.publish(0, 1);
    for (stream, name) in [(1, "a"), (2, "b")] {
        state.open(1, stream, name, 1);
    }
    state.publish(2, 2);
    state.ack(3, 2, "b", 2);
    let report = |epoch: &str, revision| {
        let crashed = Crashed { epoch: epoch.into(), revision, message: "the proxy crashed".into() };
        let report = ProxyReport { node_id: "a".into(), crashed: Some(crashed), ..ProxyReport::default() };
        Event::Reported(Box::new(report))
    };
    state.at(4, report("another", 2));
    assert_eq!(state.state_of("a"), ProxyState::Pending, "the number is of another epoch");
    state.at(5, report("e", 2));
    assert_eq!(state.state_of("a"), ProxyState::Rejected);
    let error = state.proxy("a").unwrap().error.unwrap();
    assert_eq!((error.revision, error.resources[0].message.as_str()), (2, "the proxy crashed"));
    assert_eq!(state.convergence(2, None), Some(WaitResult::Rejected));
    assert_eq!(state.brief(2), "Failed 2/1/0/1/0");
    state.unsaved = Dirty::default();
    state.at(6, report("e", 2));
    assert!(state.unsaved.is_empty(), "the repetition changes nothing");
    // The revision after is served, while the proxy still refuses the one before.
    state.publish(7, 3);
    for (stream, name) in [(1, "a"), (2, "b")] {
        state.ack(8, stream, name, 3);
    }
    state.at(9, report("e", 2));
    assert_eq!(state.state_of("a"), ProxyState::InSync);
    assert_eq!(state.brief(2), "Failed 2/1/0/1/0");
    assert_eq!(state.brief(3), "Succeeded 2/2/0/0/0");
}

#[test]
fn a_forgotten_proxy_is_gone_from_the_counts() {
    let mut state = state();
    state.publish(0, 1);
    state.open(1, 1, "a", 1);
    state.close(2, 1, "a");
    state.at(3, Event::Forgotten { id: "a".into() });
    assert!(state.proxies().is_empty());
    assert_eq!(state.brief(1), "Succeeded 0/0/0/0/0");
}

#[test]
fn proxies_and_fleets_are_bounded() {
    let mut state = state();
    for number in 0..State::FLEETS {
        state.open_in(&format!("f{number}"), 0, number as u64, &format!("p{number}"), 0);
    }
    assert!(!state.has_room(&node("new", "one-more")));
    assert!(state.has_room(&node("new", "f0")));
    state.open_in("f1", 0, 5000, "p0", 0);
    assert!(state.has_room(&node("new", "one-more")), "nobody is in f0");
    state.open_in("one-more", 0, 5001, "new", 0);
    assert_eq!(state.fleets.len(), State::FLEETS);

    for number in state.proxies.len()..State::PROXIES {
        state.open_in("f1", 0, number as u64, &format!("p{number}"), 0);
    }
    assert!(!state.has_room(&node("another", "f1")));
    state.close(1, 20_000, "p20000");
    state.close(2, 20_001, "p20001");
    assert!(state.has_room(&node("another", "f1")));
    state.open_in("f1", 3, 60_000, "another", 0);
    assert_eq!(state.proxies.len(), State::PROXIES);
    assert_eq!(state.unsaved.forgotten, [Arc::from("p20000")]);
}

#[test]
fn what_a_proxy_rejected_it_never_served_however_far_it_is_now() {
    let mut state = state();
    state.publish(0, 1);
    state.open(1, 1, "a", 1);
    state.open(1, 2, "b", 1);
    state.publish(2, 2);
    state.ack(3, 1, "a", 2);
    state.nack(4, 2, "b", 2, "the port is taken");
    // It is rolled back, 40 s later; then comes a change that nobody minds.
    state.publish(40_000, 3);
    assert_eq!(state.brief(2), "Failed 2/1/0/1/0");
    state.ack(40_001, 1, "a", 3);
    state.ack(40_001, 2, "b", 3);
    state.publish(50_000, 4);
    state.ack(50_001, 1, "a", 4);
    state.ack(50_001, 2, "b", 4);
    assert_eq!(state.brief(2), "Failed 2/1/0/1/0");
    let rollout = state.rollout_status(2, "default").unwrap();
    assert_eq!(rollout.propagation_ms.unwrap().max, 1.0, "that of the one that served it");
    assert!(rollout.reason.unwrap().text.contains("the port is taken"));
    let fault = rollout.fault.unwrap();
    assert_eq!((&*fault.proxy, fault.revision, &*fault.kind, &*fault.name), ("b", 2, "listener", "http"));
    for number in [3, 4] {
        assert_eq!(state.brief(number), "Succeeded 2/2/0/0/0");
        let rollout = state.rollout_status(number, "default").unwrap();
        assert_eq!((rollout.reason, rollout.fault), (None, None));
    }
    // The same when it is told by the store after a restart.
    let record = state.rollout_to_store(2, "default").unwrap();
    let mut later = State::new("here".into(), "here-2".into(), Sharing::Shared);
    later.restore_rollout(
        2,
        "default".into(),
        serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap(),
    );
    assert_eq!(later.brief(2), "Failed 2/1/0/1/0");
}

#[test]
fn a_revision_that_carries_a_fault_along_names_the_one_that_made_it() {
    let mut state = state();
    state.publish(0, 1);
    state.open(1, 1, "a", 1);
    for number in [2, 3] {
        state.publish(number as i64, number);
        let resources = vec![ProxyResourceError {
            kind: "listener".into(),
            name: "second".into(),
            field: "address".into(),
            message: "it is taken".into(),
            changed_in: Some(2),
        }];
        let rejected = Event::Rejected { stream: 1, id: "a".into(), revision: number, resources };
        state.at(number as i64, rejected);
    }
    let of = |number| state.rollout_status(number, "default").unwrap();
    assert_eq!(of(2).reason.unwrap().text, "a rejected it: listener/second: address: it is taken");
    assert_eq!(
        of(3).reason.unwrap().text,
        "a rejected it: listener/second: address: it is taken (since revision 2)"
    );
    assert_eq!((of(2).fault.unwrap().revision, of(3).fault.unwrap().revision), (2, 2));
}

#[test]
fn a_late_ack_of_a_revision_that_is_not_the_last_takes_the_rejection_back() {
    let mut state = state();
    state.publish(0, 1);
    state.open(1, 1, "a", 1);
    state.publish(2, 2);
    state.nack(3, 1, "a", 2, "x");
    state.publish(4, 3);
    state.ack(5, 1, "a", 2);
    assert_eq!(state.brief(2), "Superseded 1/1/0/0/0");
    assert_eq!(state.rollout_status(2, "default").unwrap().fault, None);
}

#[test]
fn the_last_rollouts_are_kept() {
    let mut state = state();
    state.open(0, 1, "a", 0);
    for number in 1..=300 {
        state.publish(number, number as u64);
        state.ack(number, 1, "a", number as u64);
    }
    assert_eq!(state.rollouts(1000).len(), State::ROLLOUTS);
    assert_eq!(state.rollouts(1)[0].id, "300-default");
}

/// The counts are kept step by step; they must be what counting anew gives.
#[test]
fn counts_kept_step_by_step_are_those_of_counting_anew() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut state = state();
    let mut number = 1;
    state.publish(0, number);
    for step in 0..4000 {
        let name = format!("p{}", random.u8(..12));
        let stream = state.proxies.get(&*name).and_then(|proxy| proxy.stream);
        match (random.u8(..6), stream) {
            (0, _) => {
                number += 1;
                state.publish(step, number);
            }
            (1, _) => state.open(step, step as u64 + 1, &name, random.u64(..=number)),
            (2, Some(stream)) => state.close(step, stream, &name),
            (3 | 4, Some(stream)) => state.ack(step, stream, &name, random.u64(1..=number)),
            (5, Some(stream)) => state.nack(step, stream, &name, number, "x"),
            _ => {}
        }
        let kept = (state.rollout_status(number, "default"), state.convergence(number, None));
        state.recount();
        assert_eq!(
            (state.rollout_status(number, "default"), state.convergence(number, None)),
            kept,
            "step {step}"
        );
    }
}
