use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Request;
use signalbox_config::{Kind, ResourceKey};
use signalbox_proxy::source::DataPlane as _;
use tokio::task::JoinSet;

use crate::harness::{Answer, Backend, Client, Harness, block_on, forward_to, full, nobody, until};

/// Clients that send one request after another and check each response, until they are told to stop.
struct Load {
    clients: JoinSet<()>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
}

impl Load {
    fn start(address: SocketAddr, check: fn(&crate::harness::Answer)) -> Self {
        let mut load = Self { clients: JoinSet::new(), stop: Arc::default(), answered: Arc::default() };
        for index in 0..8 {
            let (stop, answered) = (Arc::clone(&load.stop), Arc::clone(&load.answered));
            load.clients.spawn(async move {
                let mut client = match index % 2 {
                    0 => Client::connect(address).await,
                    _ => Client::connect_http2(address).await,
                };
                while !stop.load(Ordering::Relaxed) {
                    check(&client.get("/").await);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        load
    }

    /// Waits until more than `least` were answered, and then ends it.
    async fn finish(mut self, least: usize) {
        until("there was load", || self.answered.load(Ordering::Relaxed) > least).await;
        self.stop.store(true, Ordering::Relaxed);
        while let Some(done) = self.clients.join_next().await {
            done.unwrap();
        }
    }
}

#[test]
fn a_request_sees_exactly_one_revision() {
    block_on(async {
        // The route sets the host, the upstream the target. They change together.
        let mixed = Arc::<AtomicUsize>::default();
        let checking = |mine: &'static str| {
            let mixed = Arc::clone(&mixed);
            Backend::start(move |request| {
                let host = request.headers()["host"].to_str().unwrap().to_owned();
                if host != format!("{mine}.example") {
                    mixed.fetch_add(1, Ordering::Relaxed);
                }
                async move { http::Response::new(crate::harness::full(mine)) }
            })
        };
        let (even, odd) = (checking("even"), checking("odd"));
        let document = move |number: usize| {
            let backend = if number.is_multiple_of(2) { &even } else { &odd };
            let name = if number.is_multiple_of(2) { "even" } else { "odd" };
            format!(
                "
upstreams: [{{name: u, targets: [{{address: '{}'}}]}}]
routes: [{{name: all, forward: {{upstreams: [{{name: u}}], rewrite: {{host: '{name}.example'}}}}}}]
",
                backend.address
            )
        };
        let mut harness = Harness::start(&document(0));
        let load = Load::start(harness.address(), |answer| assert_eq!(answer.status, 200));
        for number in 1..=200 {
            harness.apply(&document(number)).unwrap();
            // A response after the change follows the new revision.
            let answer = harness.get("/").await;
            assert_eq!(answer.text(), if number % 2 == 0 { "even" } else { "odd" });
        }
        load.finish(200).await;
        assert_eq!(mixed.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_route_that_comes_and_goes_takes_effect_at_once() {
    block_on(async {
        let respond = |body: &str| format!("routes: [{{name: r, respond: {{body: '{body}'}}}}]");
        let mut harness = Harness::start("{}");
        for round in 0..20 {
            assert_eq!(harness.get("/").await.status, 404);
            harness.apply(&respond("one")).unwrap();
            assert_eq!(harness.get("/").await.text(), "one");
            harness.apply(&respond("two")).unwrap();
            assert_eq!(harness.get("/").await.text(), "two", "{round}");
            harness.apply("routes: [{name: r, enabled: false, respond: {body: hidden}}]").unwrap();
            assert_eq!(harness.get("/").await.status, 404);
            harness.apply("{}").unwrap();
        }
    });
}

#[test]
fn plugin_chains_follow_their_plugins() {
    block_on(async {
        let document = |plugins: &str, attached: &str| {
            format!(
                "plugins: [{plugins}]\nroutes: [{{name: r, plugins: [{attached}], respond: {{body: ok}}}}]"
            )
        };
        let mut harness = Harness::start(&document("", ""));
        for (plugins, attached, status, why) in [
            ("", "", 200, "no plugin"),
            ("{name: k, type: key-auth}", "k", 401, "attached"),
            ("{name: k, type: key-auth, enabled: false}", "k", 200, "disabled"),
            ("{name: k, type: key-auth}", "k", 401, "enabled again"),
            ("{name: k, type: key-auth}", "", 200, "no longer attached"),
            ("{name: k, type: key-auth, global: true}", "", 401, "global"),
            ("{name: k, type: key-auth, global: true, enabled: false}", "", 200, "global, disabled"),
            (
                "{name: k, type: key-auth, global: true}, {name: o, type: key-auth, config: {names: [o]}}",
                "o",
                401,
                "both",
            ),
            ("", "", 200, "gone"),
        ] {
            harness.apply(&document(plugins, attached)).unwrap();
            assert_eq!(harness.get("/").await.status, status, "{why}");
        }
    });
}

#[test]
fn what_this_host_lacks_is_rejected_and_changes_nothing() {
    block_on(async {
        let served = "routes: [{name: r, respond: {body: old}}]";
        let mut harness = Harness::start(served);
        let taken = std::net::TcpListener::bind(nobody()).unwrap();
        let address = taken.local_addr().unwrap();
        let rejected = harness
            .apply(&format!(
                "
listeners: [{{name: more, address: '{address}'}}, {{name: fine, address: '{}'}}]
routes: [{{name: r, respond: {{body: new}}}}]
",
                nobody()
            ))
            .unwrap_err();
        assert_eq!(rejected.len(), 1);
        assert_eq!(rejected[0].key, Some(ResourceKey::new(Kind::Listener, "more".parse().unwrap())));
        assert_eq!(rejected[0].field, "address");
        assert!(rejected[0].message.contains("another process listens there"), "{}", rejected[0].message);
        assert_eq!(harness.proxy.listeners().len(), 1);
        let secret = "
consumers: [{name: c, credentials: [{key_auth: {key: {env: SIGNALBOX_TEST_IS_NOT_SET}}}]}]
routes: [{name: r, respond: {body: new}}]
";
        let rejected = harness.apply(secret).unwrap_err();
        assert_eq!(rejected[0].field, "credentials[0].key_auth.key");
        assert!(rejected[0].message.contains("SIGNALBOX_TEST_IS_NOT_SET"));
        assert_eq!(harness.get("/").await.text(), "old");
        // Once the address is free, the same revision can be served.
        drop(taken);
        harness.apply(&format!("listeners: [{{name: more, address: '{address}'}}]")).unwrap();
        assert_eq!(harness.proxy.listeners()["more"], address);
    });
}

#[test]
fn secrets_are_read_from_files() {
    block_on(async {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret\n").unwrap();
        let harness = Harness::start(&format!(
            "
plugins: [{{name: k, type: key-auth}}]
consumers: [{{name: c, credentials: [{{key_auth: {{key: {{file: '{}'}}}}}}]}}]
routes: [{{name: r, plugins: [k], respond: {{body: ok}}}}]
",
            file.path().display()
        ));
        assert_eq!(harness.get("/?apikey=secret").await.status, 200);
        assert_eq!(harness.get("/?apikey=other").await.status, 401);
    });
}

#[test]
fn listeners_are_added_moved_and_removed_without_a_lost_request() {
    block_on(async {
        let backend = Backend::text("ok");
        let mut harness = Harness::start(&forward_to(backend.address));
        let load = Load::start(harness.address(), |answer| assert_eq!(answer.text(), "ok"));
        let more = |address: SocketAddr| {
            format!("{}\nlisteners: [{{name: more, address: '{address}'}}]", forward_to(backend.address))
        };
        let mut before: Option<SocketAddr> = None;
        for _ in 0..10 {
            let address = nobody();
            harness.apply(&more(address)).unwrap();
            // Clients of the listener that moves keep sending: their connections are answered to the end, and a new
            // connection is either served or refused, never reset.
            assert_eq!(Client::connect(address).await.get("/").await.text(), "ok");
            if let Some(before) = before.replace(address) {
                let refused = || {
                    std::net::TcpStream::connect(before)
                        .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
                };
                until("it is left", refused).await;
            }
        }
        harness.apply(&forward_to(backend.address)).unwrap();
        assert_eq!(harness.proxy.listeners().keys().collect::<Vec<_>>(), ["http"]);
        load.finish(50).await;
    });
}

#[test]
fn clients_of_a_listener_that_goes_are_answered_and_told() {
    block_on(async {
        let backend = Backend::text("ok");
        let address = nobody();
        let with =
            format!("{}\nlisteners: [{{name: more, address: '{address}'}}]", forward_to(backend.address));
        let (harness, sender) = loop {
            let mut harness = Harness::start(&with);
            let mut client = Client::connect(address).await;
            let mut client2 = Client::connect_http2(address).await;
            assert_eq!(client.get("/").await.text(), "ok");
            assert_eq!(client2.get("/").await.text(), "ok");
            let began = Instant::now();
            harness.apply(&forward_to(backend.address)).unwrap();
            let Ok(last) = client.start(Request::get("/").body(full("")).unwrap()).await else {
                // The client has a second for one more request; if the machine pauses, the request is too late.
                assert!(began.elapsed() > Duration::from_millis(900), "it was not answered");
                continue;
            };
            let last = Answer::of(last).await.unwrap();
            assert_eq!((last.text(), &last.headers["connection"]), ("ok", &"close".parse().unwrap()));
            let Client::Http2(sender) = client2 else { unreachable!() };
            break (harness, sender);
        };
        until("GOAWAY has come", || sender.is_closed()).await;
        until("all are closed", || harness.proxy.active_connections() == 0).await;
    });
}

#[test]
fn two_listeners_may_change_places() {
    block_on(async {
        let (one, other) = (nobody(), nobody());
        let document = |a: SocketAddr, b: SocketAddr| {
            format!(
                "
listeners: [{{name: a, address: '{a}'}}, {{name: b, address: '{b}'}}]
routes:
- {{name: of-a, listeners: [a], respond: {{body: a}}}}
- {{name: of-b, listeners: [b], respond: {{body: b}}}}
"
            )
        };
        let mut harness = Harness::start(&document(one, other));
        let mut kept = Client::connect(one).await;
        assert_eq!(kept.get("/").await.text(), "a");
        harness.apply(&document(other, one)).unwrap();
        assert_eq!(kept.get("/").await.text(), "b");
        assert_eq!(Client::connect(other).await.get("/").await.text(), "a");
    });
}

#[test]
fn old_revisions_are_forgotten() {
    block_on(async {
        let mut harness = Harness::start("{}");
        for number in 0..50 {
            harness.apply(&format!("routes: [{{name: r, respond: {{body: '{number}'}}}}]")).unwrap();
            harness.get("/").await;
        }
        until("none is left", || {
            harness.proxy.drop_retired();
            harness.proxy.retired() == 0
        })
        .await;
    });
}
