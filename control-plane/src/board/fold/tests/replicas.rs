//! Several control planes: what they know of each other's proxies.

use super::*;

/// The row that another control plane would write for a proxy.
fn row_of(name: &str, applied: u64, acked_ms: i64) -> Proxy {
    let mut other = State::new("there".into(), "there-1".into(), Sharing::Shared);
    other.publish(0, applied);
    other.open(acked_ms - 1, 1, name, 0);
    other.ack(acked_ms, 1, name, applied);
    stored(&other, name)
}

fn stored(state: &State, name: &str) -> Proxy {
    serde_json::from_str(&serde_json::to_string(&state.proxies[name]).unwrap()).unwrap()
}

const ALIVE: Duration = Duration::ZERO;

#[test]
fn the_proxies_of_other_control_planes_count_too() {
    let mut state = state();
    state.replica(Instant::now(), "there-1", ALIVE);
    state.publish(0, 1);
    state.read(5, row_of("b", 1, 4), 1);
    state.publish(10, 2);
    assert_eq!(state.convergence(2, None), None);
    assert_eq!(state.proxy("b").unwrap().connected_to, "there");
    state.read(500, row_of("b", 2, 14), 2);
    assert_eq!(state.convergence(2, None), Some(WaitResult::Done));
    // From its ACK, not from when that was read.
    assert_eq!(state.rollout_status(2, "default").unwrap().propagation_ms.unwrap().max, 4.0);
}

#[test]
fn the_proxies_of_a_dead_control_plane_are_unknown_and_waited_for() {
    let mut state = state();
    let start = Instant::now();
    state.replica(start, "there-1", ALIVE);
    state.publish(0, 1);
    state.read(1, row_of("b", 1, 4), 1);
    assert_eq!(state.state_of("b"), ProxyState::InSync);
    assert_eq!(state.convergence(1, None), Some(WaitResult::Done));
    state.replica(start, "there-1", LEASE);
    assert_eq!(state.state_of("b"), ProxyState::Unknown);
    assert!(!state.proxy("b").unwrap().connected);
    assert_eq!(state.convergence(1, None), None);
    assert!(state.is_incomplete(start), "it may have had a stream that it could not register");
    let (waiting, count) = state.waited_for(1, None, 10);
    assert_eq!((&*waiting[0].id, waiting[0].state, count), ("b", ProxyState::Unknown, 1));
    assert_eq!(state.rollout_status(1, "default").unwrap().counts.unknown, 1);
    // It is alive after all.
    state.replica(start, "there-1", ALIVE);
    assert_eq!(state.state_of("b"), ProxyState::InSync);
    assert!(!state.is_incomplete(start));
    // It is not, for good.
    state.replica(start, "there-1", LEASE);
    state.expire(0, start + RECENT_DEATH);
    assert!(!state.is_incomplete(start + RECENT_DEATH));
    state.expire(0, start + DEAD_REPLICA_GRACE - Duration::from_secs(1));
    assert_eq!(state.convergence(1, None), None);
    state.expire(0, start + DEAD_REPLICA_GRACE);
    assert_eq!(state.state_of("b"), ProxyState::Disconnected);
    assert_eq!(state.convergence(1, None), Some(WaitResult::Done));
    assert!(state.unsaved.expired.contains("b"));
}

#[test]
fn a_proxy_of_unknown_state_is_what_it_is_when_it_connects_elsewhere() {
    let mut state = state();
    let now = Instant::now();
    state.publish(0, 1);
    state.replica(now, "there-1", LEASE * 100);
    state.read(1, row_of("a", 1, 4), 1);
    state.read(1, row_of("b", 1, 4), 2);
    assert_eq!((state.state_of("a"), state.state_of("b")), (ProxyState::Unknown, ProxyState::Unknown));
    state.open(2, 1, "a", 1);
    assert_eq!(state.state_of("a"), ProxyState::InSync);
    let mut elsewhere = row_of("b", 1, 4);
    elsewhere.instance = "third-1".into();
    let third = ReplicaRow { instance: "third-1".into(), name: "third".into(), age: ALIVE };
    state.apply_replicas(0, now, &[third]);
    state.read(3, elsewhere, 3);
    assert_eq!(state.state_of("b"), ProxyState::InSync);
}

#[test]
fn after_a_restart_the_proxies_that_were_connected_are_waited_for() {
    for sharing in [Sharing::Alone, Sharing::Shared] {
        let mut before = State::new("here".into(), "here-0".into(), sharing);
        before.publish(0, 1);
        for (stream, name) in [(1, "killed"), (2, "ended"), (3, "left")] {
            before.open(1, stream, name, 1);
        }
        before.at(2, Event::Closed { stream: 2, id: "ended".into(), by: EndedBy::ControlPlane });
        before.close(2, 3, "left");
        assert_eq!(before.state_of("ended"), ProxyState::Unknown);

        let mut after = State::new("here".into(), "here-1".into(), sharing);
        after.publish(0, 1);
        for name in ["killed", "ended", "left"] {
            after.read(1, stored(&before, name), 1);
        }
        let states = ["killed", "ended", "left"].map(|name| after.state_of(name));
        assert_eq!(states, [ProxyState::Unknown, ProxyState::Unknown, ProxyState::Disconnected]);
        assert_eq!(after.convergence(1, None), None);
        after.open(2, 1, "killed", 1);
        assert_eq!(after.convergence(1, None), None);
        after.expire(0, Instant::now() + RECONNECT_GRACE);
        assert_eq!(after.state_of("ended"), ProxyState::Disconnected);
        assert_eq!(after.convergence(1, None), Some(WaitResult::Done));
    }
}

#[test]
fn a_control_plane_of_an_earlier_version_is_alive_while_it_rewrites_its_rows() {
    let mut state = state();
    state.publish(0, 1);
    let mut old = row_of("b", 1, 4);
    old.instance = "".into();
    state.read(1, old.clone(), 1);
    assert_eq!(state.state_of("b"), ProxyState::Unknown, "it may be long gone");
    state.read(2, old, 2);
    assert_eq!(state.state_of("b"), ProxyState::InSync);
    state.expire(0, Instant::now() + OLD_VERSION_GRACE);
    assert_eq!(state.state_of("b"), ProxyState::Disconnected);
}

#[test]
fn what_is_ahead_of_what_is_published_here_is_not_known_to_be_served() {
    let mut state = state();
    state.replica(Instant::now(), "there-1", ALIVE);
    state.publish(0, 5);
    state.read(1, row_of("b", 6, 4), 1);
    assert_eq!(state.convergence(5, None), None);
    // It was only this control plane that was late.
    state.publish(2, 6);
    assert_eq!(state.convergence(5, None), Some(WaitResult::Done));

    // The proxy presents a revision of a lost log, and numbers are used again.
    state.open(3, 1, "a", 8);
    for number in 7..=8 {
        state.publish(number as i64, number);
        state.read(number as i64, row_of("b", number, 4), number as i64);
        assert_eq!(state.convergence(number, None), None, "{number}");
        assert_eq!(state.state_of("a"), ProxyState::Pending);
    }
    state.ack(9, 1, "a", 8);
    assert_eq!(state.convergence(8, None), Some(WaitResult::Done));
}

#[test]
fn a_stream_may_be_answered_once_it_is_registered() {
    let mut state = state();
    state.publish(0, 1);
    let link = Link::default();
    state.open_as(link.clone(), "default", 1, 1, "a", 0);
    assert!(!link.registered.is_cancelled());
    assert!(state.row_to_write("a").is_some_and(|(_, takes)| takes));
    // One that is over before that takes nothing over.
    state.close(2, 1, "a");
    assert!(state.row_to_write("a").is_some_and(|(_, takes)| !takes));
    state.registered("a", Some(1));
    assert!(!link.registered.is_cancelled());
    state.open_as(link.clone(), "default", 3, 2, "a", 0);
    state.save();
    assert!(link.registered.is_cancelled());
    assert!(state.row_to_write("a").is_some_and(|(_, takes)| !takes));

    // While the database is away for long, nobody waits for it; then all is registered anew.
    state.set_lease_lost(true);
    let late = Link::default();
    state.open_as(late.clone(), "default", 4, 3, "b", 0);
    assert!(late.registered.is_cancelled());
    assert!(state.is_incomplete(Instant::now()));
    state.progress = false;
    state.set_lease_lost(false);
    assert!(state.progress, "waits that were held up by it go on");
    state.register_all();
    for name in ["a", "b"] {
        assert!(state.row_to_write(name).is_some_and(|(_, takes)| takes), "{name}");
    }

    // Alone, a control plane that is killed must know its proxies after its next start.
    let mut alone = State::new("here".into(), "here-1".into(), Sharing::Alone);
    let link = Link::default();
    alone.open_as(link.clone(), "default", 1, 1, "a", 0);
    assert!(alone.registering && !link.registered.is_cancelled());
    alone.save();
    assert!(link.registered.is_cancelled());
    // A database that cannot be written delays no stream.
    let [before, after] = [(); 2].map(|()| Link::default());
    alone.open_as(before.clone(), "default", 2, 2, "b", 0);
    alone.set_unwritable(true);
    alone.open_as(after.clone(), "default", 3, 3, "c", 0);
    assert!(before.registered.is_cancelled() && after.registered.is_cancelled());
    assert!(!alone.is_incomplete(Instant::now()));
}

#[test]
fn the_latest_stream_of_a_proxy_counts_and_ends_those_to_other_control_planes() {
    let mut state = state();
    state.replica(Instant::now(), "there-1", ALIVE);
    state.publish(0, 1);
    let link = Link::default();
    state.open_as(link.clone(), "default", 1, 1, "b", 1);
    // It came here after it was there: that row is to be replaced.
    state.read(2, row_of("b", 1, 4), 1);
    assert!(!link.replaced.is_cancelled());
    assert_eq!(state.proxy("b").unwrap().connected_to, "here");
    state.save();
    // A row that was read before that says nothing either.
    let read = state.begin_read();
    state.unsaved.proxies.insert("b".into());
    state.register_all();
    state.save();
    let stamp = Stamp { replica: "there".into(), instance: "there-1".into(), updated_at_us: 2 };
    state.apply_row(3, read, row_of("b", 1, 4), stamp);
    assert!(!link.replaced.is_cancelled());
    // It went there.
    state.read(4, row_of("b", 1, 4), 3);
    assert!(link.replaced.is_cancelled());
    assert_eq!(state.proxy("b").unwrap().connected_to, "there");
    assert!(state.row_to_write("b").is_none(), "the other writes it");
    assert!(state.take_heartbeats(true).is_empty());
    state.close(5, 1, "b");
    assert_eq!(state.state_of("b"), ProxyState::InSync);
}

#[test]
fn a_proxy_that_another_control_plane_forgot_is_gone() {
    let mut state = state();
    let mut row = row_of("b", 1, 4);
    row.connected = false;
    state.read(1, row, 1);
    state.open(2, 1, "a", 0);
    state.save();
    let read = state.begin_read();
    state.retain_rows(3 * MS, read, &HashSet::new());
    let ids: Vec<_> = state.proxies().into_iter().map(|proxy| proxy.id).collect();
    assert_eq!(ids, ["a"]);
    assert!(state.row_to_write("a").is_some_and(|(_, takes)| takes), "it is connected, and registered again");
}

#[test]
fn two_proxies_with_one_node_id_are_told_from_one_that_was_started_again() {
    let mut state = state();
    state.publish(0, 1);
    let process = |process: &str| Link { process: process.into(), ..Link::default() };
    let mut stream = 0;
    let mut open = |state: &mut State, of: &str| {
        stream += 1;
        let mut node = node("a", "default");
        node.address = format!("10.0.0.1:{stream}");
        let link = process(of);
        state.at(1, Event::Opened { stream, node, presented: None, link });
        std::mem::take(&mut state.duplicates).into_iter().map(|(_, duplicate)| duplicate).collect::<Vec<_>>()
    };
    // It was killed, and its old stream is still open when the new one comes; it connects again.
    assert_eq!(open(&mut state, "one"), []);
    assert_eq!(open(&mut state, "two"), []);
    assert_eq!(open(&mut state, "two"), []);
    assert_eq!(state.proxy("a").unwrap().warnings, Vec::<String>::new());
    // The first is there still.
    let duplicate = Duplicate { addresses: ["10.0.0.1:3".into(), "10.0.0.1:4".into()] };
    assert_eq!(open(&mut state, "one"), [duplicate]);
    let warnings = state.proxy("a").unwrap().warnings;
    assert!(warnings[0].contains("10.0.0.1:3 and 10.0.0.1:4"), "{warnings:?}");
    // It is logged once a minute, and shown as long as it goes on.
    assert_eq!(open(&mut state, "two"), []);
    state.expire(0, Instant::now() + DUPLICATE_WINDOW / 2);
    assert_eq!(state.proxy("a").unwrap().warnings.len(), 1);
    state.expire(0, Instant::now() + DUPLICATE_WINDOW);
    assert_eq!(state.proxy("a").unwrap().warnings, Vec::<String>::new());
    // Proxies that do not name their process are not told apart.
    for _ in 0..5 {
        assert_eq!(open(&mut state, ""), []);
    }
}

#[test]
fn a_rejection_at_another_control_plane_stays_in_the_history_here() {
    let mut state = state();
    state.replica(Instant::now(), "there-1", ALIVE);
    state.publish(0, 1);
    state.open(1, 1, "a", 1);
    state.read(2, row_of("b", 1, 4), 1);
    state.publish(5, 2);
    state.nack(6, 1, "a", 2, "the port is taken");
    let mut row = row_of("b", 1, 4);
    row.error = Some(ProxyError { revision: 2, resources: Vec::new() });
    state.read(7, row, 2);
    assert_eq!(state.brief(2), "Failed 2/0/0/2/0");
    state.publish(10, 3);
    state.ack(11, 1, "a", 3);
    state.read(12, row_of("b", 3, 11), 3);
    assert_eq!(state.brief(2), "Failed 2/0/0/2/0");
    assert_eq!(state.brief(3), "Succeeded 2/2/0/0/0");
}

#[test]
fn a_rejection_that_was_taken_back_before_its_row_was_read_counts_here_too() {
    let mut state = state();
    let mut there = State::new("there".into(), "there-1".into(), Sharing::Shared);
    let stored = |there: &State| -> Proxy {
        serde_json::from_str(&serde_json::to_string(&there.proxies["b"]).unwrap()).unwrap()
    };
    state.replica(Instant::now(), "there-1", ALIVE);
    for state in [&mut state, &mut there] {
        state.publish(0, 1);
    }
    there.open(1, 1, "b", 1);
    state.read(1, stored(&there), 1);
    // It rejects two revisions, applies one of them after all, and serves a later one before its row is read.
    for number in 2..=4 {
        for state in [&mut state, &mut there] {
            state.publish(number * 10, number.unsigned_abs());
        }
        if number < 4 {
            there.nack(number * 10 + 1, 1, "b", number.unsigned_abs(), "the port is taken");
        }
    }
    there.ack(44, 1, "b", 3);
    there.ack(45, 1, "b", 4);
    state.read(46, stored(&there), 2);
    for state in [&state, &there] {
        assert_eq!(state.brief(2), "Failed 1/0/0/1/0");
        assert_eq!(state.brief(3), "Superseded 1/1/0/0/0");
        assert_eq!(state.brief(4), "Succeeded 1/1/0/0/0");
    }
    // Numbers of another epoch mean other revisions.
    let mut other = stored(&there);
    for rejection in &mut other.rejections {
        (rejection.epoch, rejection.revision) = ("before".into(), 4);
    }
    state.read(50, other, 3);
    assert_eq!(state.brief(4), "Succeeded 1/1/0/0/0");
    // The last ones are kept when there are very many.
    for number in 10..30 {
        there.nack(100, 1, "b", number, "the port is taken");
    }
    assert_eq!(there.proxies["b"].rejections.len(), MAX_REJECTIONS);
}
