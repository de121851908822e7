//! The choice of targets: health, zones, affinity and DNS.

mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::net::UdpSocket;

use crate::harness::{Answer, Backend, Client, Harness, block_on, full, nobody, until};

/// A backend that answers with its name, and can be told to answer 500, to fail its health checks, or to answer
/// slowly.
struct Service {
    backend: Backend,
    broken: Arc<AtomicBool>,
    ill: Arc<AtomicBool>,
    slow_ms: Arc<AtomicU32>,
    requests: Arc<AtomicUsize>,
    checks: Arc<AtomicUsize>,
}

impl Service {
    fn start(name: &'static str) -> Self {
        let (broken, ill) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (slow_ms, requests) = (Arc::<AtomicU32>::default(), Arc::<AtomicUsize>::default());
        let checks = Arc::<AtomicUsize>::default();
        let its = (
            Arc::clone(&broken),
            Arc::clone(&ill),
            Arc::clone(&slow_ms),
            Arc::clone(&requests),
            Arc::clone(&checks),
        );
        let backend = Backend::start(move |request| {
            let (broken, ill, slow_ms, requests, checks) = its.clone();
            async move {
                let check = request.uri().path() == "/health";
                if check {
                    checks.fetch_add(1, Ordering::Relaxed);
                } else {
                    requests.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(slow_ms.load(Ordering::Relaxed).into())).await;
                }
                let mut response = Response::new(full(name));
                if if check { &ill } else { &broken }.load(Ordering::Relaxed) {
                    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                }
                response
            }
        });
        Self { backend, broken, ill, slow_ms, requests, checks }
    }

    fn address(&self) -> SocketAddr {
        self.backend.address
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

/// A document that forwards everything to these targets; `fields` are further fields of the upstream.
fn upstream(targets: &[(SocketAddr, &str)], fields: &str) -> String {
    let targets: Vec<_> =
        targets.iter().map(|(address, fields)| format!("{{address: '{address}'{fields}}}")).collect();
    format!(
        "
upstreams: [{{name: u, targets: [{}]{fields}}}]
routes: [{{name: all, forward: {{upstreams: [{{name: u}}]}}}}]
",
        targets.join(", ")
    )
}

fn of(services: &[&Service], fields: &str) -> String {
    let targets: Vec<_> = services.iter().map(|service| (service.address(), "")).collect();
    upstream(&targets, fields)
}

/// The number of healthy targets of the upstream.
fn healthy(harness: &Harness) -> usize {
    harness.proxy.counted(|_, compiled, _, _| {
        compiled.active.upstreams.iter().map(|upstream| upstream.members.view().healthy).sum()
    })
}

fn ejections(harness: &Harness) -> u64 {
    harness.proxy.counted(|_, compiled, _, _| {
        compiled.active.upstreams.iter().map(|upstream| upstream.members.ejections()).sum()
    })
}

/// The number of `count` requests that each target answers.
async fn shares(client: &mut Client, count: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..count {
        *shares.entry(client.get("/").await.text().to_owned()).or_default() += 1;
    }
    shares
}

async fn get_with(client: &mut Client, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.send(request.body(full("")).unwrap()).await
}

const PASSIVE: &str = ", health_check: {passive: {consecutive_failures: 3, ejection: 2s, interval: 60s}, panic_threshold_percent: 0}";

#[test]
fn a_target_whose_requests_fail_is_ejected_comes_back_and_stays_away_longer_the_next_time() {
    block_on(async {
        let (a, b) = (Service::start("a"), Service::start("b"));
        let harness = Harness::start(&of(&[&a, &b], PASSIVE));
        let mut client = Client::connect(harness.address()).await;
        b.broken.store(true, Ordering::Relaxed);
        let mut away = Vec::new();
        for round in 1..=2 {
            let before = b.requests();
            // This is before the third request that fails.
            let mut ejected = Instant::now();
            while ejections(&harness) < round {
                if b.requests() - before < 3 {
                    ejected = Instant::now();
                }
                client.get("/").await;
            }
            // More requests may have been in flight when the third failed.
            assert!(b.requests() - before >= 3, "three failures in a row");
            assert_eq!(healthy(&harness), 1);
            let failed = b.requests();
            assert_eq!(shares(&mut client, 50).await, BTreeMap::from([("a".to_owned(), 50)]));
            assert_eq!(b.requests(), failed);
            until("it is back", || healthy(&harness) == 2).await;
            away.push(ejected.elapsed());
        }
        assert!(away[0] >= Duration::from_secs(2), "{away:?}");
        assert!(away[1] >= Duration::from_secs(4), "twice that the second time: {away:?}");
        b.broken.store(false, Ordering::Relaxed);
        assert_eq!(shares(&mut client, 50).await["b"], 25);
    });
}

#[test]
fn every_kind_of_failure_ejects() {
    block_on(async {
        let closes = Backend::raw(|mut stream| async move {
            crate::harness::read_head(&mut stream).await;
        });
        let hangs = Backend::start(|_| std::future::pending::<Response<_>>());
        for (kind, bad) in
            [("no connection", nobody()), ("reset", closes.address), ("timeout", hangs.address)]
        {
            let good = Service::start("good");
            let document = upstream(&[(bad, ""), (good.address(), "")], PASSIVE)
                .replace("[{name: u}]}", "[{name: u}], timeout: 50ms}");
            let harness = Harness::start(&document);
            let mut client = Client::connect(harness.address()).await;
            let mut failed = 0;
            while ejections(&harness) == 0 {
                failed += usize::from(client.get("/").await.status >= 500);
                assert!(failed < 10, "{kind} does not eject");
            }
            assert!(failed >= 3, "{kind}");
        }
    });
}

#[test]
fn a_target_that_is_silent_for_too_long_is_ejected_whether_or_not_its_route_retries() {
    block_on(async {
        let hangs = Backend::start(|_| std::future::pending::<Response<_>>());
        for retry in ["", ", retry: {on: [connect-failure]}"] {
            let document = upstream(&[(hangs.address, "")], PASSIVE)
                .replace("[{name: u}]}", &format!("[{{name: u}}], timeout: 0s, idle_timeout: 50ms{retry}}}"));
            let harness = Harness::start(&document);
            let mut client = Client::connect(harness.address()).await;
            for _ in 0..3 {
                assert_eq!((client.get("/").await.status, retry), (504, retry));
            }
            until("it is ejected", || ejections(&harness) == 1).await;
        }
    });
}

#[test]
fn a_client_in_a_hurry_ejects_nothing() {
    block_on(async {
        for retry in ["", ", retry: {on: [reset]}"] {
            let hangs = Backend::start(|_| std::future::pending::<Response<_>>());
            let document = upstream(&[(hangs.address, "")], PASSIVE)
                .replace("[{name: u}]}", &format!("[{{name: u}}], timeout: 100ms{retry}}}"));
            let harness = Harness::start(&document);
            let mut client = Client::connect(harness.address()).await;
            let hurried = [("content-type", "application/grpc"), ("grpc-timeout", "5m")];
            for _ in 0..6 {
                get_with(&mut client, "/", &hurried).await;
            }
            // The route's own timeout applies, and nothing did before.
            for failed in 0..3 {
                assert_eq!((failed, ejections(&harness)), (failed, 0));
                client.get("/").await;
            }
            until("it is ejected", || ejections(&harness) == 1).await;
        }
    });
}

#[test]
fn no_more_targets_are_ejected_than_may_be() {
    block_on(async {
        let services: Vec<_> = ["a", "b", "c", "d"].into_iter().map(Service::start).collect();
        services.iter().for_each(|service| service.broken.store(true, Ordering::Relaxed));
        let fields = ", health_check: {passive: {consecutive_failures: 1, ejection: 1h, max_ejected_percent: 50}, panic_threshold_percent: 0}";
        let harness = Harness::start(&of(&services.iter().collect::<Vec<_>>(), fields));
        let mut client = Client::connect(harness.address()).await;
        while ejections(&harness) < 2 {
            client.get("/").await;
        }
        for _ in 0..100 {
            client.get("/").await;
        }
        assert_eq!((healthy(&harness), ejections(&harness)), (2, 2));
    });
}

#[test]
fn with_too_few_healthy_targets_all_are_used() {
    block_on(async {
        let (a, b, c) = (Service::start("a"), Service::start("b"), Service::start("c"));
        let active = |panic: u8| {
            format!(
                ", health_check: {{active: {{path: /health, interval: 100ms, timeout: 10s, unhealthy_after: 1, healthy_after: 1}}, panic_threshold_percent: {panic}}}"
            )
        };
        let mut harness = Harness::start(&of(&[&a, &b, &c], &active(50)));
        let mut client = Client::connect(harness.address()).await;
        c.ill.store(true, Ordering::Relaxed);
        until("one is ill", || healthy(&harness) == 2).await;
        let shares_now = shares(&mut client, 60).await;
        assert_eq!(shares_now.keys().collect::<Vec<_>>(), ["a", "b"], "{shares_now:?}");
        b.ill.store(true, Ordering::Relaxed);
        until("two are ill", || healthy(&harness) == 1).await;
        assert_eq!(shares(&mut client, 60).await.len(), 3, "a third is less than half: panic");
        harness.apply(&of(&[&a, &b, &c], &active(0))).unwrap();
        assert_eq!(shares(&mut client, 60).await, BTreeMap::from([("a".to_owned(), 60)]));
        a.ill.store(true, Ordering::Relaxed);
        until("all are ill", || healthy(&harness) == 0).await;
        assert_eq!(client.get("/").await.status, 503);
    });
}

#[test]
fn checks_find_out_at_once_what_works() {
    block_on(async {
        let (good, ill, tcp) = (Service::start("good"), Service::start("ill"), Service::start("tcp"));
        ill.ill.store(true, Ordering::Relaxed);
        let serving = GrpcHealth::start("serving");
        let (other, plain) = (GrpcHealth::start("other"), Service::start("plain"));
        for (protocol, check, targets, expected) in [
            ("http1", "type: http, path: /health", vec![good.address(), ill.address(), nobody()], 1),
            (
                "http1",
                "type: http, path: /health, statuses: [200, 500]",
                vec![good.address(), ill.address()],
                2,
            ),
            ("http1", "type: tcp", vec![tcp.address(), ill.address(), nobody()], 2),
            // The first check is of the server as a whole, the second of a service.
            ("http1", "type: grpc", vec![serving.address, other.address, plain.address(), nobody()], 2),
            // Checks use the protocol of the upstream's targets: some know only HTTP/2, and one only HTTP/1.1.
            ("http2", "type: http, path: /health", vec![serving.address, good.address()], 1),
            ("http1", "type: grpc, service: serving", vec![serving.address, other.address], 1),
        ] {
            let targets: Vec<_> = targets.into_iter().map(|address| (address, "")).collect();
            let fields = format!(
                ", protocol: {protocol}, health_check: {{active: {{{check}, interval: 1h, timeout: 10s}}, panic_threshold_percent: 0}}"
            );
            let harness = Harness::start(&upstream(&targets, &fields));
            until(&format!("{expected} are healthy by {check}"), || healthy(&harness) == expected).await;
        }
    });
}

#[test]
fn health_survives_revisions_that_leave_the_target_alone() {
    block_on(async {
        let (a, b, c) = (Service::start("a"), Service::start("b"), Service::start("c"));
        let fields = ", health_check: {active: {path: /health, interval: 1h, timeout: 10s}, passive: {consecutive_failures: 2, ejection: 1h}, panic_threshold_percent: 0}";
        c.ill.store(true, Ordering::Relaxed);
        let all = [&a, &b, &c].map(|service| (service.address(), ""));
        let mut harness = Harness::start(&upstream(&all, fields));
        let mut client = Client::connect(harness.address()).await;
        b.broken.store(true, Ordering::Relaxed);
        while ejections(&harness) == 0 {
            client.get("/").await;
        }
        until("the first check has failed", || healthy(&harness) == 1).await;
        let only_a = |count: usize| BTreeMap::from([("a".to_owned(), count)]);
        let checks = c.checks.load(Ordering::Relaxed);
        // The changes are: an unrelated resource; the weights; the upstream's other settings; another target beside
        // them.
        let other = format!("{}\nconsumers: [{{name: x}}]", upstream(&all, fields));
        let weights =
            [(a.address(), ", weight: 1"), (b.address(), ", weight: 60000"), (c.address(), ", weight: 7")];
        let documents = [
            other,
            upstream(&weights, fields),
            upstream(&weights, &format!("{fields}, load_balancing: {{policy: random}}, idle_timeout: 5s")),
            upstream(&[weights[2], weights[0], weights[1]], fields),
        ];
        for document in documents {
            harness.apply(&document).unwrap();
            assert_eq!(shares(&mut client, 40).await, only_a(40), "{document}");
            assert_eq!((healthy(&harness), ejections(&harness)), (1, 1), "{document}");
        }
        assert_eq!(c.checks.load(Ordering::Relaxed), checks, "the checks go on as they were");
        // A target that is removed and added again is a new one.
        harness.apply(&upstream(&all[..1], fields)).unwrap();
        harness.apply(&upstream(&all[..2], fields)).unwrap();
        assert_eq!(healthy(&harness), 2);
    });
}

/// A request to `target` that is not answered, which keeps its revision in use.
async fn hanging(harness: &Harness, target: &Service) -> impl Drop + use<> {
    struct Hanging(tokio::task::JoinHandle<()>);
    impl Drop for Hanging {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let before = target.requests();
    target.slow_ms.store(60_000, Ordering::Relaxed);
    let address = harness.address();
    let hanging = Hanging(tokio::spawn(async move {
        let mut client = Client::connect(address).await;
        // Other targets answer.
        loop {
            client.get("/").await;
        }
    }));
    until("it has come", || target.requests() == before + 1).await;
    target.slow_ms.store(0, Ordering::Relaxed);
    hanging
}

#[test]
fn only_the_checks_of_the_revision_in_use_count_while_older_ones_have_requests() {
    block_on(async {
        let service = Service::start("a");
        let checked = |path: &str| {
            of(
                &[&service],
                &format!(
                    ", health_check: {{active: {{path: {path}, interval: 100ms, timeout: 10s, statuses: [200], unhealthy_after: 1, healthy_after: 2}}, panic_threshold_percent: 0}}"
                ),
            )
        };
        // No server answers 200 on that path.
        let (wrong, right) = (checked("/wrong"), checked("/health"));
        service.broken.store(true, Ordering::Relaxed);
        let mut harness = Harness::start(&of(&[&service], ""));
        let mut held = vec![hanging(&harness, &service).await];
        for _ in 0..2 {
            harness.apply(&wrong).unwrap();
            until("the wrong checks fail", || healthy(&harness) == 0).await;
            harness.apply(&right).unwrap();
            until("the right checks pass", || healthy(&harness) == 1).await;
            held.push(hanging(&harness, &service).await);
        }
        // The state is stable over several checks of each kind.
        let (checks, wrong_checks) = (service.checks.load(Ordering::Relaxed), service.requests());
        until("it is checked again", || {
            assert_eq!(healthy(&harness), 1);
            service.checks.load(Ordering::Relaxed) > checks + 5
        })
        .await;
        assert_eq!(service.requests(), wrong_checks, "the checks of old revisions have ended");
    });
}

#[test]
fn a_check_that_is_new_decides_though_older_revisions_have_none() {
    block_on(async {
        let (good, ill) = (Service::start("good"), Service::start("ill"));
        ill.ill.store(true, Ordering::Relaxed);
        let services = [&good, &ill];
        // With passive checks, the old revision watches its targets, too.
        let fields = |check: &str| {
            of(
                &services,
                &format!(
                    ", health_check: {{{check}passive: {{consecutive_failures: 2}}, panic_threshold_percent: 0}}"
                ),
            )
        };
        let mut harness = Harness::start(&fields(""));
        let _hanging = hanging(&harness, &good).await;
        harness
            .apply(&fields("active: {path: /health, interval: 100ms, timeout: 10s, unhealthy_after: 1}, "))
            .unwrap();
        until("the check has failed", || healthy(&harness) == 1).await;
        let checks = ill.checks.load(Ordering::Relaxed);
        let mut client = Client::connect(harness.address()).await;
        while ill.checks.load(Ordering::Relaxed) < checks + 5 {
            assert_eq!((healthy(&harness), client.get("/").await.text()), (1, "good"));
        }
    });
}

#[test]
fn a_revision_that_is_rejected_changes_nothing_of_the_targets() {
    block_on(async {
        let (good, ill) = (Service::start("good"), Service::start("ill"));
        ill.ill.store(true, Ordering::Relaxed);
        let check = |path: &str| {
            format!(
                ", health_check: {{active: {{path: {path}, interval: 1h, timeout: 10s}}, panic_threshold_percent: 0}}"
            )
        };
        let document = of(&[&good, &ill], &check("/health"));
        let mut harness = Harness::start(&document);
        until("the check has failed", || healthy(&harness) == 1).await;
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = format!("\nlisteners: [{{name: other, address: '{}'}}]", taken.local_addr().unwrap());
        let requests = good.requests() + ill.requests();
        for fields in ["", &check("/elsewhere")] {
            let rejected = format!("{}{listener}", of(&[&good, &ill], fields));
            harness.apply(&rejected).expect_err("the port is taken");
        }
        // A revision that does not change the check keeps the targets' state.
        harness.apply(&of(&[&good, &ill], &format!("{}, idle_timeout: 5s", check("/health")))).unwrap();
        assert_eq!(healthy(&harness), 1);
        let mut client = Client::connect(harness.address()).await;
        assert_eq!(shares(&mut client, 20).await, BTreeMap::from([("good".to_owned(), 20)]));
        assert_eq!(good.requests() + ill.requests(), requests + 20, "nothing was checked elsewhere");
    });
}

#[test]
fn the_faster_target_gets_more_by_peak_ewma() {
    block_on(async {
        let (fast, slow) = (Service::start("fast"), Service::start("slow"));
        slow.slow_ms.store(40, Ordering::Relaxed);
        // The test is repeated with another proxy if it fails: if the machine pauses during a fast request, the target
        // looks slow for a long time.
        for attempt in 1.. {
            let harness = Harness::start(&of(&[&fast, &slow], ", load_balancing: {policy: peak_ewma}"));
            let mut client = Client::connect(harness.address()).await;
            let (mut by_fast, mut by_slow) = (0, 0);
            while by_fast + by_slow < 200 && by_slow <= 80 {
                match client.get("/").await.text() {
                    "fast" => by_fast += 1,
                    _ => by_slow += 1,
                }
            }
            // The slow target is picked only if it is drawn twice.
            if (20..=80).contains(&by_slow) {
                break;
            }
            assert!(attempt < 5, "{by_fast} by the fast one, {by_slow} by the slow one");
        }
    });
}

#[test]
fn requests_that_are_known_by_the_same_go_to_the_same_target() {
    block_on(async {
        let services: Vec<_> = ["a", "b", "c", "d", "e"].into_iter().map(Service::start).collect();
        let all: Vec<_> = services.iter().collect();
        for policy in ["ring_hash", "maglev"] {
            let fields = |on: &str| format!(", load_balancing: {{policy: {policy}, hash_on: {on}}}");
            let mut harness = Harness::start(&of(&all, &fields("{header: x-user}")));
            let mut client = Client::connect(harness.address()).await;
            let mut homes = BTreeMap::<u32, String>::new();
            // There are enough users that each target has some, whatever its port is.
            for (round, users) in [200, 40, 40].into_iter().enumerate() {
                for user in 0..users {
                    let answer = get_with(&mut client, "/", &[("x-user", &user.to_string())]).await;
                    let home = homes.entry(user).or_insert_with(|| answer.text().to_owned());
                    assert_eq!(*home, answer.text(), "{policy}: user {user} in round {round}");
                }
            }
            assert_eq!(homes.values().collect::<BTreeSet<_>>().len(), 5, "{homes:?}");
            assert_eq!(shares(&mut client, 100).await.len(), 5, "without a key: anywhere");
            // Without one target, hardly any users move but its own.
            harness.apply(&of(&all[1..], &fields("{header: x-user}"))).unwrap();
            let mut moved = 0;
            for (user, home) in homes.range(..40) {
                let now = get_with(&mut client, "/", &[("x-user", &user.to_string())]).await;
                moved += usize::from(home != "a" && now.text() != home);
            }
            assert!(moved <= if policy == "ring_hash" { 0 } else { 4 }, "{policy}: {moved}");

            harness.apply(&of(&all, &fields("{query: user}"))).unwrap();
            let paths: Vec<_> = (0..20).map(|user| format!("/x?a=b&user={user}")).collect();
            for path in &paths {
                let home = client.get(path).await;
                assert_eq!(client.get(&format!("{path}&c")).await.text(), home.text());
            }
            harness.apply(&of(&all, &fields("source_ip"))).unwrap();
            assert_eq!(shares(&mut client, 20).await.len(), 1);
            // The client that a load balancer names is the one that counts.
            let address = harness.address();
            let listener = format!(
                "listeners: [{{name: http, address: '{address}', trusted_proxies: [127.0.0.0/8]}}]\n"
            );
            harness.apply(&(listener + &of(&all, &fields("source_ip")))).unwrap();
            let mut homes = BTreeSet::new();
            for client_number in 0..40 {
                let headers = [("x-forwarded-for", &*format!("198.51.100.{client_number}"))];
                let home = get_with(&mut client, "/", &headers).await.text().to_owned();
                assert_eq!(get_with(&mut client, "/", &headers).await.text(), home);
                homes.insert(home);
            }
            assert!(homes.len() > 2, "{policy}: {homes:?}");
        }
    });
}

#[test]
fn a_cookie_is_set_that_leads_back_to_the_same_target() {
    block_on(async {
        let services: Vec<_> = ["a", "b", "c"].into_iter().map(Service::start).collect();
        let all: Vec<_> = services.iter().collect();
        let fields =
            ", load_balancing: {policy: maglev, hash_on: {cookie: {name: route, path: /app, ttl: 1h}}}";
        let harness = Harness::start(&of(&all, fields));
        let mut client = Client::connect(harness.address()).await;
        let mut homes = BTreeSet::new();
        for _ in 0..60 {
            let first = client.get("/").await;
            let set = first.headers["set-cookie"].to_str().unwrap();
            let (cookie, attributes) = set.split_once(';').unwrap();
            assert!(cookie.starts_with("route=") && cookie.len() == 22, "{set}");
            assert_eq!(attributes, " Path=/app; Max-Age=3600; HttpOnly");
            homes.insert(first.text().to_owned());
            for _ in 0..5 {
                let again = get_with(&mut client, "/", &[("cookie", &format!("x=y; {cookie}"))]).await;
                assert_eq!(again.text(), first.text());
                assert!(!again.headers.contains_key("set-cookie"));
            }
        }
        assert_eq!(homes.len(), 3);
    });
}

#[test]
fn a_consumer_goes_to_the_same_target() {
    block_on(async {
        let services: Vec<_> = ["a", "b", "c", "d"].into_iter().map(Service::start).collect();
        let all: Vec<_> = services.iter().collect();
        let consumers: Vec<_> = (0..60)
            .map(|it| format!("{{name: c{it}, credentials: [{{key_auth: {{key: the-key-of-{it}}}}}]}}"))
            .collect();
        let document = format!(
            "{}\nplugins: [{{name: k, type: key-auth, global: true}}]\nconsumers: [{}]",
            of(&all, ", load_balancing: {policy: ring_hash, hash_on: consumer}"),
            consumers.join(", ")
        );
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        let mut homes = BTreeSet::new();
        for it in 0..60 {
            let key = format!("the-key-of-{it}");
            let first = get_with(&mut client, "/", &[("apikey", &key)]).await;
            assert_eq!(first.status, 200);
            for _ in 0..4 {
                assert_eq!(get_with(&mut client, "/", &[("apikey", &key)]).await.text(), first.text());
            }
            homes.insert(first.text().to_owned());
        }
        assert!(homes.len() >= 3, "{homes:?}");
    });
}

#[test]
fn a_target_that_comes_back_starts_slowly() {
    block_on(async {
        let (a, b) = (Service::start("a"), Service::start("b"));
        b.ill.store(true, Ordering::Relaxed);
        let fields = ", load_balancing: {slow_start: 8s}, health_check: {active: {path: /health, interval: 100ms, timeout: 10s, healthy_after: 1}, panic_threshold_percent: 0}";
        let harness = Harness::start(&of(&[&a, &b], fields));
        let mut client = Client::connect(harness.address()).await;
        until("it is ill", || healthy(&harness) == 1).await;
        b.ill.store(false, Ordering::Relaxed);
        until("it is back", || healthy(&harness) == 2).await;
        let cold = shares(&mut client, 44).await;
        assert!((1..=12).contains(&cold["b"]), "a tenth of its weight to begin with: {cold:?}");
        let share = || {
            harness.proxy.counted(|_, compiled, _, _| {
                compiled.active.upstreams.iter().map(|it| it.members.view().share(1)).sum::<f64>()
            })
        };
        let mut seen = vec![share()];
        until("it has its share", || {
            let now = share();
            if now != seen[seen.len() - 1] {
                seen.push(now);
            }
            (now - 0.5).abs() < 1e-9
        })
        .await;
        assert!(seen.is_sorted() && seen.len() > 5, "it grows: {seen:?}");
        assert_eq!(shares(&mut client, 40).await["b"], 20);
    });
}

#[test]
fn the_own_zone_is_preferred_while_it_is_well() {
    block_on(async {
        let (near, also_near, far) =
            (Service::start("near"), Service::start("also near"), Service::start("far"));
        let targets =
            [(near.address(), ", zone: a"), (also_near.address(), ", zone: a"), (far.address(), ", zone: b")];
        let fields = ", health_check: {active: {path: /health, interval: 100ms, timeout: 10s, unhealthy_after: 1, healthy_after: 1}, panic_threshold_percent: 30}";
        let document = upstream(&targets, fields);
        let harness = Harness::with(&document, |settings| settings.zone = Some("a".to_owned()));
        let mut client = Client::connect(harness.address()).await;
        let all_near = BTreeMap::from([("also near".to_owned(), 50), ("near".to_owned(), 50)]);
        assert_eq!(shares(&mut client, 100).await, all_near);
        also_near.ill.store(true, Ordering::Relaxed);
        until("one is ill", || healthy(&harness) == 2).await;
        let spilled = shares(&mut client, 200).await;
        assert_eq!(spilled["near"] + spilled["far"], 200);
        assert!(spilled["far"].abs_diff(60) < 10, "half of the zone is worth 70 %: {spilled:?}");
        near.ill.store(true, Ordering::Relaxed);
        until("the zone is gone", || healthy(&harness) == 1).await;
        assert_eq!(shares(&mut client, 20).await["far"], 20);
        let elsewhere = Harness::with(&document, |settings| settings.zone = Some("b".to_owned()));
        assert_eq!(shares(&mut Client::connect(elsewhere.address()).await, 20).await["far"], 20);
    });
}

/// A server of `grpc.health.v1.Health` that serves as a whole, and one service by name.
struct GrpcHealth {
    address: SocketAddr,
}

impl GrpcHealth {
    fn start(service: &'static str) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        if request.uri().path() == "/health" {
                            respond.send_response(Response::new(()), true).unwrap();
                            continue;
                        }
                        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                        tokio::spawn(async move {
                            let mut body = request.into_body();
                            let message = body.data().await.unwrap().unwrap();
                            // The frame's head, the field's tag and length, and then the name.
                            let asked = message.get(7..).unwrap_or_default();
                            let known = asked.is_empty() || asked == service.as_bytes();
                            let mut trailers = HeaderMap::new();
                            trailers.insert("grpc-status", if known { "0" } else { "5" }.parse().unwrap());
                            let head = Response::builder().header("content-type", "application/grpc");
                            let mut stream = respond.send_response(head.body(()).unwrap(), false).unwrap();
                            if known {
                                stream.send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]), false).unwrap();
                            }
                            stream.send_trailers(trailers).unwrap();
                        });
                    }
                });
            }
        });
        Self { address }
    }
}
