//! The rules of delta xDS, over real streams to the real server. Those that need no stream are tested beside `delta`.

use std::time::Duration;

use signalbox_control_plane::auth::TokenText;
use signalbox_control_plane::board::ProxyState;
use signalbox_control_plane::store::Role;
use signalbox_control_plane::xds::Limits;
use signalbox_proto::envoy::config::core::v3::Node;
use signalbox_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use signalbox_proto::{MARKER_NAME, RESOURCE_TYPE_URL, RETRY_HEADER};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::harness::*;

async fn plane_with(database: &Database, routes: &[&str]) -> Plane {
    let plane = Plane::start(database).await;
    for name in routes {
        plane.put(&format!("route/{name}"), route(name)).await;
    }
    plane
}

/// A request of our type that is neither first nor an answer.
fn later(subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: RESOURCE_TYPE_URL.to_owned(),
        resource_names_subscribe: subscribe.iter().map(ToString::to_string).collect(),
        resource_names_unsubscribe: unsubscribe.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

#[tokio::test]
async fn the_first_answer_has_everything_and_the_marker_last() {
    let database = Database::new();
    let plane = plane_with(&database, &["a", "b"]).await;
    let mut raw = Raw::open(&plane, "p", None).await;
    let first = raw.receive_revision().await;
    assert_eq!(first.put, ["route/a", "route/b"]);
    assert_eq!((first.marker.number, first.marker.resource_count, first.marker.full), (2, 2, true));
    assert_eq!(first.last.resources.last().unwrap().name, MARKER_NAME);
    raw.ack(&first.last).await;
    plane.delete("route/a").await;
    let second = raw.receive_revision().await;
    assert_eq!(
        (second.put.len(), second.removed, second.marker.full),
        (0, vec!["route/a".to_owned()], false)
    );
    assert_ne!(first.last.nonce, second.last.nonce);
}

#[tokio::test]
async fn an_empty_set_is_answered_too() {
    let database = Database::new();
    let plane = Plane::start(&database).await;
    let mut raw = Raw::open(&plane, "p", None).await;
    let first = raw.receive_revision().await;
    assert_eq!((first.put.len(), first.marker.number, first.marker.full), (0, 0, true));
}

#[tokio::test]
async fn a_type_that_is_not_known_is_answered_as_empty_once() {
    let database = Database::new();
    let plane = plane_with(&database, &["a"]).await;
    let mut raw = Raw::connect(&plane).await;
    let mut request = first_request("p", None);
    request.type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
    raw.send(request.clone()).await;
    let response = raw.receive().await;
    assert_eq!(response.type_url, request.type_url);
    assert!(response.resources.is_empty() && response.removed_resources.is_empty());
    plane.put("route/b", route("b")).await;
    raw.expect_quiet().await;
    // A name of it does not exist.
    request.resource_names_subscribe = vec!["c".to_owned()];
    request.node = None;
    request.response_nonce = response.nonce;
    raw.send(request).await;
    assert_eq!(raw.receive().await.removed_resources, ["c"]);
}

#[tokio::test]
async fn a_stream_without_a_node_or_with_an_impossible_one_is_refused() {
    let database = Database::new();
    let plane = Plane::start(&database).await;
    for node in [None, Some(Node::default()), Some(Node { id: "a/b".into(), ..Node::default() })] {
        let mut raw = Raw::connect(&plane).await;
        raw.send(DeltaDiscoveryRequest { node, ..first_request("p", None) }).await;
        assert_eq!(raw.try_receive().await.unwrap_err().code(), Code::InvalidArgument);
    }
    assert!(plane.board.proxies().is_empty());
}

#[tokio::test]
async fn only_a_proxys_or_an_admins_token_opens_a_stream() {
    let database = Database::new();
    let plane = Plane::start(&database).await;
    let tokens = [("viewer", Role::Viewer), ("editor", Role::Editor), ("admin", Role::Admin)];
    for (name, role) in tokens {
        assert!(plane.credentials.create(name, role, &TokenText(name.to_owned())).await.unwrap());
    }
    for token in ["viewer", "editor", "unknown", ""] {
        let refused = match Raw::with_token(&plane, token).await {
            Err(status) => status,
            Ok(mut raw) => raw.try_receive().await.unwrap_err(),
        };
        assert_eq!(refused.code(), Code::Unauthenticated, "{token}");
    }
    let mut admin = Raw::with_token(&plane, "admin").await.unwrap();
    admin.send(first_request("p", None)).await;
    admin.receive_revision().await;
}

/// Case 1.
#[tokio::test]
async fn what_was_deleted_while_a_client_was_away_is_removed_when_it_is_back() {
    let database = Database::new();
    let plane = plane_with(&database, &["a", "b"]).await;
    let mut raw = Raw::open(&plane, "p", None).await;
    let before = raw.receive_revision().await;
    raw.ack(&before.last).await;
    drop(raw);
    plane.delete("route/a").await;
    plane.put("route/c", route("c")).await;
    let mut raw = Raw::open(&plane, "p", Some(&before.version())).await;
    let after = raw.receive_revision().await;
    assert_eq!(after.removed, ["route/a"]);
    assert_eq!(after.put, ["route/c"]);
    assert!(!after.marker.full);
}

#[tokio::test]
async fn a_client_that_is_up_to_date_is_sent_its_marker_and_no_resource() {
    let database = Database::new();
    let plane = plane_with(&database, &["a"]).await;
    let mut raw = Raw::open(&plane, "p", None).await;
    let first = raw.receive_revision().await;
    let mut again = Raw::open(&plane, "p", Some(&first.version())).await;
    let answer = again.receive_revision().await;
    assert_eq!((answer.put.len(), answer.removed.len(), answer.marker.full), (0, 0, false));
    assert_eq!(answer.marker.digest, first.marker.digest);
}

/// Cases 2 and 12.
#[tokio::test]
async fn a_replica_that_lags_takes_nothing_from_a_proxy_that_is_ahead() {
    let database = Database::new();
    let ahead = plane_with(&database, &["a"]).await;
    let mut lagging =
        Plane::start_with(&database, Settings { follow: false, replica: "lagging", ..Settings::default() })
            .await;
    ahead.put("route/b", route("b")).await;
    assert_eq!((ahead.head(), lagging.head()), (2, 1));
    let mut raw = Raw::open(&ahead, "p", None).await;
    let served = raw.receive_revision().await;
    raw.ack(&served.last).await;

    let mut raw = Raw::open(&lagging, "p", Some(&served.version())).await;
    raw.expect_quiet().await;
    // After some seconds that is an error, which the board shows; and still nothing is sent.
    eventually("the proxy is shown as ahead", || lagging.proxy("p").state == ProxyState::Drifted).await;
    let error = lagging.proxy("p").error.unwrap();
    assert!(
        error.resources[0]
            .message
            .contains("it serves revision 2, but this control plane has no more than 1")
    );
    raw.expect_quiet().await;
    lagging.follow();
    let caught_up = raw.receive_revision().await;
    assert_eq!((caught_up.put.len(), caught_up.marker.number), (0, 2));
    raw.ack(&caught_up.last).await;
    eventually("it is in sync", || lagging.proxy("p").state == ProxyState::InSync).await;
}

/// Case 3.
#[tokio::test]
async fn a_nonce_of_the_old_stream_is_ignored_on_the_new_one() {
    let database = Database::new();
    let plane = plane_with(&database, &["a"]).await;
    let mut old = Raw::open(&plane, "p", None).await;
    let first = old.receive_revision().await;
    let mut new = Raw::open(&plane, "p", None).await;
    let again = new.receive_revision().await;
    new.ack(&first.last).await;
    new.expect_quiet().await;
    assert_eq!(plane.proxy("p").revision.applied, 0);
    new.ack(&again.last).await;
    eventually("the real nonce counts", || plane.proxy("p").revision.applied == 1).await;
}

/// Case 4.
#[tokio::test]
async fn what_was_removed_and_added_again_as_it_was_is_sent() {
    let database = Database::new();
    let plane = plane_with(&database, &["a"]).await;
    let mut raw = Raw::open(&plane, "p", None).await;
    let first = raw.receive_revision().await;
    raw.ack(&first.last).await;
    plane.delete("route/a").await;
    let removed = raw.receive_revision().await;
    raw.ack(&removed.last).await;
    plane.put("route/a", route("a")).await;
    let added = raw.receive_revision().await;
    assert_eq!(added.put, ["route/a"]);
    assert_eq!(added.marker.digest, first.marker.digest);
}

/// Cases 5 and 6.
#[tokio::test]
async fn a_rejected_revision_is_not_resent_and_the_next_has_all_of_it() {
    let database = Database::new();
    let plane = plane_with(&database, &["a"]).await;
    let mut raw = Raw::open(&plane, "p", None).await;
    let first = raw.receive_revision().await;
    raw.ack(&first.last).await;
    plane.put("route/fine", route("fine")).await;
    let rejected = raw.receive_revision().await;
    raw.nack(&rejected.last, "not here").await;
    raw.expect_quiet().await;
    let status = plane.proxy("p");
    assert_eq!((status.state, status.revision.applied), (ProxyState::Rejected, 1));
    assert_eq!(status.error.unwrap().resources[0].message, "not here");
    plane.put("route/next", route("next")).await;
    let next = raw.receive_revision().await;
    assert_eq!(next.put, ["route/fine", "route/next"]);
    raw.ack(&next.last).await;
    eventually("it has recovered", || plane.proxy("p").state == ProxyState::InSync).await;
}

/// Case 7, and 8: many types and many revisions, and a client that does not read.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_deadlocks_nothing_and_skips_what_is_superseded() {
    let database = Database::new();
    let plane = plane_with(&database, &["a"]).await;
    let mut lazy = Raw::open(&plane, "lazy", None).await;
    for index in 0..14 {
        let type_url = format!("type.googleapis.com/many.Type{index}");
        lazy.send(DeltaDiscoveryRequest { type_url, ..Default::default() }).await;
    }
    let mut brisk = Raw::open(&plane, "brisk", None).await;
    let first = brisk.receive_revision().await;
    brisk.ack(&first.last).await;
    let body = "x".repeat(60_000);
    for round in 0..40 {
        let number = plane.put("route/a", route(&format!("{round}{body}"))).await;
        let received = brisk.receive_revision().await;
        assert_eq!(received.marker.number, number, "the one that reads is not held up");
        brisk.ack(&received.last).await;
    }
    // Now it reads: the revision that was in flight, an answer for each type, and then only the last.
    let mut types = 0;
    let mut numbers = Vec::new();
    while numbers.last() != Some(&plane.head()) {
        let response = lazy.receive().await;
        match response.resources.last() {
            None => types += 1,
            Some(last) => {
                numbers.push(marker_of(last.resource.clone().unwrap().value).unwrap().number);
                lazy.ack(&response).await;
            }
        }
    }
    assert_eq!(types, 14);
    assert!(numbers.len() <= 3, "{numbers:?}");
}

#[tokio::test]
async fn a_name_that_does_not_exist_yet_is_sent_when_it_is_created() {
    let database = Database::new();
    let plane = plane_with(&database, &["a"]).await;
    let mut raw = Raw::connect(&plane).await;
    let mut first = first_request("p", None);
    first.resource_names_subscribe = vec!["route/a".into(), "route/new".into()];
    raw.send(first).await;
    let answer = raw.receive().await;
    assert_eq!(answer.removed_resources, ["route/new"]);
    assert_eq!(answer.resources.len(), 1, "no marker, for it is not of the whole");
    raw.ack(&answer).await;
    raw.expect_quiet().await;
    plane.put("route/other", route("other")).await;
    plane.put("route/new", route("new")).await;
    let answer = raw.receive().await;
    assert_eq!(answer.resources[0].name, "route/new");
    raw.ack(&answer).await;
    // Subscribed again, it is sent again; unsubscribed twice, nothing happens.
    raw.send(later(&["route/new"], &[])).await;
    let answer = raw.receive().await;
    assert_eq!(answer.resources[0].name, "route/new");
    raw.ack(&answer).await;
    raw.send(later(&[], &["route/new", "route/never"])).await;
    raw.expect_quiet().await;
    plane.put("route/new", route("newer")).await;
    raw.expect_quiet().await;
}

#[tokio::test]
async fn the_node_is_needed_only_once_and_a_stale_nonce_still_subscribes() {
    let database = Database::new();
    let plane = plane_with(&database, &["a", "b"]).await;
    let mut raw = Raw::connect(&plane).await;
    let mut first = first_request("p", None);
    first.resource_names_subscribe = vec!["route/a".into()];
    raw.send(first).await;
    let answer = raw.receive().await;
    raw.ack(&answer).await;
    let mut request = later(&["route/b"], &[]);
    request.response_nonce = "of long ago".into();
    raw.send(request).await;
    assert_eq!(raw.receive().await.resources[0].name, "route/b");
}

/// Case 11.
#[tokio::test]
async fn a_request_beyond_the_limit_ends_its_stream_and_no_other() {
    let database = Database::new();
    let plane = plane_with(&database, &["a"]).await;
    let mut good = Raw::open(&plane, "good", None).await;
    let first = good.receive_revision().await;
    good.ack(&first.last).await;
    let mut bad = Raw::connect(&plane).await;
    let mut request = first_request("bad", None);
    let listed = (0..60_000).map(|index| (format!("route/{index:064}"), "0123456789abcdef".to_owned()));
    request.initial_resource_versions = listed.collect();
    bad.send(request).await;
    assert!(!matches!(bad.try_receive().await, Ok(Some(_))));
    plane.put("route/b", route("b")).await;
    assert_eq!(good.receive_revision().await.marker.number, 2);
}

/// Case 13.
#[tokio::test(flavor = "multi_thread")]
async fn many_proxies_that_connect_at_once_all_get_everything() {
    let database = Database::new();
    let plane = Plane::start(&database).await;
    let body = "x".repeat(1000);
    // More than is sent without admission, and more proxies than are admitted together.
    let document = (0..800).map(|index| {
        let mut spec = route(&body);
        spec["name"] = format!("r{index}").into();
        spec["kind"] = "route".into();
        spec
    });
    let document = serde_json::to_string(&document.collect::<Vec<_>>()).unwrap();
    plane.apply(&document).await;
    let plane = std::sync::Arc::new(plane);
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..100 {
        let plane = plane.clone();
        tasks.spawn(async move {
            let mut raw = Raw::open(&plane, &format!("p{index}"), None).await;
            let first = raw.receive_revision().await;
            assert_eq!(first.put.len(), 800);
            raw.ack(&first.last).await;
            raw
        });
    }
    // None of them is closed before all have it.
    let streams = soon("all got everything", tasks.join_all()).await;
    eventually("all have acknowledged", || {
        plane.board.proxies().iter().all(|proxy| proxy.state == ProxyState::InSync)
    })
    .await;
    assert_eq!(streams.len(), plane.board.proxies().len());
}

/// Envoy does not decompress zstd.
#[tokio::test]
async fn a_client_that_offers_zstd_gets_everything_in_a_tenth_of_the_bytes() {
    let database = Database::new();
    let plane = plane_with(&database, &[]).await;
    let document = (0..1000).map(|index| {
        let mut spec = route("the same in every route");
        spec["name"] = format!("r{index}").into();
        spec["kind"] = "route".into();
        spec
    });
    plane.apply(&serde_json::to_string(&document.collect::<Vec<_>>()).unwrap()).await;
    let mut sizes = Vec::new();
    for zstd in [false, true] {
        let relay = Relay::start(plane.address).await;
        let channel = Endpoint::from_shared(format!("http://{}", relay.address)).unwrap();
        let mut raw = Raw::offering(channel.connect().await.unwrap(), TOKEN, zstd).await.unwrap();
        raw.send(first_request("p", None)).await;
        let first = raw.receive_revision().await;
        assert_eq!((first.put.len(), first.marker.resource_count), (1000, 1000));
        sizes.push(relay.received());
    }
    assert!(sizes[1] * 10 < sizes[0], "{sizes:?}");
}

/// A control plane with a set that is too large to be sent without admission.
async fn plane_with_large_set(database: &Database, limits: Limits) -> Plane {
    let plane = Plane::start_with(database, Settings { limits, ..Settings::default() }).await;
    let document = (0..600).map(|index| {
        let mut spec = route("the same in every route");
        spec["name"] = format!("r{index}").into();
        spec["kind"] = "route".into();
        spec
    });
    plane.apply(&serde_json::to_string(&document.collect::<Vec<_>>()).unwrap()).await;
    plane
}

#[tokio::test]
async fn beyond_so_many_that_wait_a_client_is_told_when_to_come_back() {
    let database = Database::new();
    let limits = Limits { full_sends: 1, waiting: 1, ..Limits::default() };
    let plane = plane_with_large_set(&database, limits).await;
    let turn = plane.turns.take().await;
    let mut waiting = Raw::open(&plane, "waits", None).await;
    eventually("it waits", || plane.turns.waiting() == 1).await;
    let mut refused = Raw::open(&plane, "refused", None).await;
    let status = refused.try_receive().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let hint = status.metadata().get(RETRY_HEADER).unwrap().to_str().unwrap().parse::<u64>().unwrap();
    assert!(hint >= 1000, "{hint} ms");
    // The one that waits still has its stream.
    drop(turn);
    assert_eq!(waiting.receive_revision().await.put.len(), 600);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_bytes_suffice_for_one_at_a_time_all_get_everything() {
    let database = Database::new();
    let plane = plane_with_large_set(&database, Limits { full_bytes: 1, ..Limits::default() }).await;
    let mut streams = Vec::new();
    for index in 0..10 {
        streams.push(Raw::open(&plane, &format!("p{index}"), None).await);
    }
    for raw in &mut streams {
        assert_eq!(raw.receive_revision().await.put.len(), 600);
    }
}

#[tokio::test]
async fn a_client_that_takes_back_what_it_waits_for_leaves_its_turn_to_others() {
    let database = Database::new();
    let plane = plane_with_large_set(&database, Limits { full_sends: 1, ..Limits::default() }).await;
    let turn = plane.turns.take().await;
    let mut fickle = Raw::open(&plane, "fickle", None).await;
    eventually("it waits", || plane.turns.waiting() == 1).await;
    fickle.send(later(&[], &["*"])).await;
    eventually("it waits no more", || plane.turns.waiting() == 0).await;
    drop(turn);
    let mut other = Raw::open(&plane, "other", None).await;
    assert_eq!(other.receive_revision().await.put.len(), 600);
    fickle.expect_quiet().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_come_fast_are_sent_together() {
    let database = Database::new();
    let limits = Limits { change_gap: Duration::from_secs(5), ..Limits::default() };
    let plane = Plane::start_with(&database, Settings { limits, ..Settings::default() }).await;
    let mut raw = Raw::open(&plane, "p", None).await;
    let first = raw.receive_revision().await;
    raw.ack(&first.last).await;
    for index in 0..20 {
        plane.put("route/a", route(&index.to_string())).await;
    }
    let mut parts = 0;
    loop {
        let received = raw.receive_revision().await;
        raw.ack(&received.last).await;
        parts += 1;
        if received.marker.number == plane.head() {
            break;
        }
    }
    assert!(parts < 10, "{parts} responses for 20 changes");
}

/// Case 14.
#[tokio::test(flavor = "multi_thread")]
async fn closing_a_stream_leaks_no_task() {
    let database = Database::new();
    let plane = plane_with(&database, &["a"]).await;
    let idle = (plane.open_streams)();
    let mut streams = Vec::new();
    for index in 0..20 {
        let mut raw = Raw::open(&plane, &format!("p{index}"), None).await;
        if index % 2 == 0 {
            let first = raw.receive_revision().await;
            raw.ack(&first.last).await;
        }
        streams.push(raw);
    }
    // One that never says who it is.
    streams.push(Raw::connect(&plane).await);
    eventually("all have their task", || (plane.open_streams)() == idle + 21).await;
    drop(streams);
    eventually("no task is left", || (plane.open_streams)() == idle).await;
    eventually("all are shown as gone", || plane.board.proxies().iter().all(|proxy| !proxy.connected)).await;
    plane.stop().await;
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_gone_and_one_that_does_stays() {
    let database = Database::new();
    let limits = Limits {
        ping_after: Duration::from_millis(200),
        silence: Duration::from_secs(4),
        ..Limits::default()
    };
    let plane = Plane::start_with(&database, Settings { limits, ..Settings::default() }).await;
    let mut alive = Raw::open(&plane, "p", None).await;
    let first = alive.receive_revision().await;
    alive.ack(&first.last).await;
    let mut silent = TcpStream::connect(plane.address).await.unwrap();
    // RFC 9113: the preface, and an empty SETTINGS frame.
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut read = Vec::new();
    // The connection may be reset, too.
    let _ = soon("the connection is closed", silent.read_to_end(&mut read)).await;
    let ping = b"\0\0\x08\x06\0\0\0\0\0";
    assert!(read.windows(ping.len()).any(|bytes| bytes == ping), "it was asked for a sign of life: {read:?}");
    plane.put("route/a", route("a")).await;
    assert_eq!(alive.receive_revision().await.put, ["route/a"]);
}

#[tokio::test]
async fn a_second_stream_of_a_node_ends_the_first() {
    let database = Database::new();
    let plane = plane_with(&database, &["a"]).await;
    let mut old = Raw::open(&plane, "p", None).await;
    let first = old.receive_revision().await;
    old.ack(&first.last).await;
    let mut new = Raw::open(&plane, "p", Some(&first.version())).await;
    let second = new.receive_revision().await;
    new.ack(&second.last).await;
    assert_eq!(old.try_receive().await.unwrap_err().code(), Code::Aborted);
    new.expect_quiet().await;
    let proxies = plane.board.proxies();
    assert_eq!(proxies.len(), 1);
    assert!(proxies[0].connected);
}

#[tokio::test]
async fn a_control_plane_that_ends_says_so_to_its_streams() {
    let database = Database::new();
    let plane = plane_with(&database, &["a"]).await;
    let mut raw = Raw::open(&plane, "p", None).await;
    raw.receive_revision().await;
    soon("it ends though a stream is open", plane.stop()).await;
    assert_eq!(raw.try_receive().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn another_epoch_is_sent_whole_even_if_the_number_is_the_same() {
    let database = Database::new();
    let plane = plane_with(&database, &["a"]).await;
    let mut raw = Raw::open(&plane, "p", None).await;
    let first = raw.receive_revision().await;
    raw.ack(&first.last).await;
    plane.store.new_epoch().await.unwrap();
    let again = raw.receive_revision().await;
    assert_eq!((again.marker.number, again.marker.full), (1, true));
    assert_ne!(again.marker.epoch, first.marker.epoch);
    raw.ack(&again.last).await;
    eventually("it is in sync", || plane.proxy("p").state == ProxyState::InSync).await;
}
