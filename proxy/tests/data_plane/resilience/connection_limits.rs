//! Limits on the requests and connections of an upstream, and requests that wait for a connection.

use super::*;

#[test]
fn an_upstream_gets_no_more_requests_than_it_may() {
    block_on(async {
        let (sender, receiver) = access_log::channel(100);
        let release = Arc::new(Semaphore::new(0));
        let held = Arc::<AtomicUsize>::default();
        let (gate, holding) = (Arc::clone(&release), Arc::clone(&held));
        let backend = Backend::start(move |_| {
            let gate = Arc::clone(&gate);
            holding.fetch_add(1, Ordering::Relaxed);
            async move {
                gate.acquire().await.unwrap().forget();
                status(200, "ok")
            }
        });
        let limits = ", circuit_breaker: {limits: {requests: 3}}";
        let mut harness = Harness::with_log(&document(&[backend.address], limits, ""), Some(sender));
        let address = harness.address();
        let mut running = JoinSet::new();
        for _ in 0..3 {
            running.spawn(async move { Client::connect(address).await.get("/").await.status });
        }
        until("they are under way", || held.load(Ordering::Relaxed) == 3).await;
        // This holds for every worker, and over a revision that changes something else.
        for _ in 0..10 {
            assert_eq!(harness.get("/").await.status, 503);
        }
        harness.apply(&document(&[backend.address], &format!("{limits}, idle_timeout: 5s"), "")).unwrap();
        let answer = harness.get("/").await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.headers["retry-after"], "1");
        release.add_permits(4);
        while let Some(status) = running.join_next().await {
            assert_eq!(status.unwrap(), 200);
        }
        assert_eq!(harness.get("/").await.status, 200);
        let lines = lines(&receiver, 15).await;
        assert_eq!(lines.iter().filter(|line| line["flags"] == "UO" && line["status"] == 503).count(), 11);
    });
}

#[test]
fn an_upstream_gets_no_more_connections_than_it_may_and_who_waits_is_served() {
    block_on(async {
        let (open, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (opened, highest) = (Arc::clone(&open), Arc::clone(&most));
        let targets: Vec<_> = (0..2)
            .map(|_| {
                let (opened, highest) = (Arc::clone(&opened), Arc::clone(&highest));
                Backend::raw(move |mut stream| {
                    let (opened, highest) = (Arc::clone(&opened), Arc::clone(&highest));
                    async move {
                        highest.fetch_max(opened.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        while read_head(&mut stream).await.is_some() {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                            if stream.write_all(answer).await.is_err() {
                                break;
                            }
                        }
                        opened.fetch_sub(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let targets: Vec<_> = targets.iter().map(|target| target.address).collect();
        let upstream = ", connect_timeout: 10s, circuit_breaker: {limits: {connections: 3, pending: 40}}";
        let harness = Harness::start(&document(&targets, upstream, ""));
        let address = harness.address();
        let mut clients = JoinSet::new();
        for _ in 0..40 {
            clients.spawn(async move {
                let mut client = Client::connect(address).await;
                for _ in 0..10 {
                    assert_eq!(client.get("/").await.status, 200);
                }
            });
        }
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
        // A target may see the next connection before it sees that the previous one was closed.
        assert!((1..=6).contains(&most.load(Ordering::SeqCst)), "{most:?}");
    });
}

#[test]
fn a_limit_on_connections_is_that_of_all_workers_together() {
    block_on_alone(async {
        for (wire, protocol) in [(Wire::Http1, "http1"), (Wire::Http2, "http2")] {
            let (backend, release, held) = holding_over(wire);
            let limits = "limits: {connections: 3, pending: 0}";
            let upstream = format!(", protocol: {protocol}, circuit_breaker: {{{limits}}}");
            let harness =
                Harness::with(&document(&[backend.address], &upstream, ""), |settings| settings.workers = 4);
            // Over HTTP/2 a connection carries a hundred of them.
            let count = if wire == Wire::Http1 { 40 } else { 400 };
            let asked: Vec<_> = (0..count).map(|_| ask(harness.address(), "/hang")).collect();
            let refused = || asked.iter().filter(|asked| asked.is_finished()).count();
            let room = if wire == Wire::Http1 { 3 } else { 300 };
            until("all have their answer, or are at the target", || {
                held.load(Ordering::Relaxed) + refused() == count
            })
            .await;
            let held = held.load(Ordering::Relaxed);
            assert_eq!(backend.connections(), 3, "{protocol}");
            assert!(held <= room && (wire == Wire::Http2 || held == room), "{protocol}: {held}");
            release.add_permits(count);
            let mut statuses = BTreeMap::<u16, usize>::new();
            for asked in asked {
                *statuses.entry(asked.await.unwrap()).or_default() += 1;
            }
            assert_eq!(statuses, BTreeMap::from([(200, held), (503, count - held)]), "{protocol}");
        }
    });
}

/// A backend that answers a request for a path with `hang` in it when it may, and others at once; and the number of
/// held requests.
fn holding() -> (Backend, Arc<Semaphore>, Arc<AtomicUsize>) {
    holding_over(Wire::Http1)
}

fn holding_over(wire: Wire) -> (Backend, Arc<Semaphore>, Arc<AtomicUsize>) {
    let (release, held) = (Arc::new(Semaphore::new(0)), Arc::<AtomicUsize>::default());
    let (gate, holding) = (Arc::clone(&release), Arc::clone(&held));
    let backend = Backend::speaking(wire, move |request| {
        let (gate, holding) = (Arc::clone(&gate), Arc::clone(&holding));
        async move {
            if request.uri().path().contains("hang") {
                holding.fetch_add(1, Ordering::Relaxed);
                gate.acquire().await.unwrap().forget();
            }
            status(200, "ok")
        }
    });
    (backend, release, held)
}

/// Sends a request for `path` without waiting for the response.
fn ask(address: SocketAddr, path: &'static str) -> tokio::task::JoinHandle<u16> {
    tokio::spawn(async move { Client::connect(address).await.get(path).await.status })
}

#[test]
fn upstreams_with_a_target_in_common_have_their_own_connections_where_they_are_counted() {
    block_on(async {
        for (first, then) in [("/free", "/limited"), ("/limited", "/free")] {
            let (backend, release, held) = holding();
            let document = format!(
                "
upstreams:
- {{name: free, targets: [{{address: '{0}'}}]}}
- {{name: limited, targets: [{{address: '{0}'}}], circuit_breaker: {{limits: {{connections: 1, pending: 0}}}}}}
routes:
- {{name: free, match: {{paths: [{{prefix: /free}}]}}, forward: {{upstreams: [{{name: free}}]}}}}
- {{name: limited, match: {{paths: [{{prefix: /limited}}]}}, forward: {{upstreams: [{{name: limited}}]}}}}
",
                backend.address
            );
            let harness = Harness::with(&document, |settings| settings.workers = 1);
            let address = harness.address();
            let mut client = Client::connect(address).await;
            // Its connection is idle now.
            assert_eq!(client.get(first).await.status, 200);
            let hang = if then == "/free" { "/free/hang" } else { "/limited/hang" };
            let hanging = ask(address, hang);
            until("it hangs", || held.load(Ordering::Relaxed) == 1).await;
            assert_eq!(backend.connections(), 2, "{first} and {then}");
            // The connection of the upstream with limits is in use, or idle.
            let expected = if then == "/limited" { 503 } else { 200 };
            assert_eq!(client.get("/limited").await.status, expected);
            release.add_permits(1);
            assert_eq!(hanging.await.unwrap(), 200);
        }
    });
}

#[test]
fn an_upstream_that_gets_limits_loses_no_connection_to_others() {
    block_on(async {
        for (wire, protocol) in [(Wire::Http1, "http1"), (Wire::Http2, "http2")] {
            let (backend, release, held) = holding_over(wire);
            let document = |limits: &str| {
                format!(
                    "
upstreams:
- {{name: a, protocol: {protocol}, targets: [{{address: '{0}'}}]{limits}}}
- {{name: b, protocol: {protocol}, targets: [{{address: '{0}'}}]}}
routes:
- {{name: a, match: {{paths: [{{prefix: /a}}]}}, forward: {{upstreams: [{{name: a}}]}}}}
- {{name: b, match: {{paths: [{{prefix: /b}}]}}, forward: {{upstreams: [{{name: b}}]}}}}
",
                    backend.address
                )
            };
            let mut harness = Harness::with(&document(""), |settings| settings.workers = 1);
            assert_eq!(harness.get("/a").await.status, 200);
            let limits = ", circuit_breaker: {limits: {connections: 1, pending: 0}}";
            harness.apply(&document(limits)).unwrap();
            let hanging = ask(harness.address(), "/b/hang");
            until("it hangs", || held.load(Ordering::Relaxed) == 1).await;
            assert_eq!((harness.get("/a").await.status, protocol), (200, protocol));
            release.add_permits(1);
            assert_eq!(hanging.await.unwrap(), 200);
        }
    });
}

#[test]
fn who_waits_gets_a_connection_from_before_there_were_limits() {
    block_on(async {
        let (backend, release, held) = holding();
        let targets = [backend.address];
        let mut harness = Harness::with(&document(&targets, "", ""), |settings| settings.workers = 1);
        let address = harness.address();
        let hanging = ask(address, "/hang");
        until("it hangs", || held.load(Ordering::Relaxed) == 1).await;
        let limits = ", connect_timeout: 10s, circuit_breaker: {limits: {connections: 1}}";
        harness.apply(&document(&targets, limits, "")).unwrap();
        let waiting = ask(address, "/");
        until("it waits", || {
            harness.proxy.counted(|_, compiled, _, _| {
                compiled.active.upstreams.iter().any(|upstream| upstream.transport.load.awaited() == 1)
            })
        })
        .await;
        let began = Instant::now();
        release.add_permits(1);
        assert_eq!((hanging.await.unwrap(), waiting.await.unwrap()), (200, 200));
        assert!(began.elapsed() < Duration::from_secs(5), "at once");
    });
}

#[test]
fn idle_connections_of_another_worker_are_closed_for_all_who_wait() {
    block_on(async {
        const COUNT: usize = 12;
        let (backend, release, held) = holding();
        let upstream = format!(
            ", connect_timeout: 15s, circuit_breaker: {{limits: {{connections: {COUNT}, pending: {COUNT}}}}}"
        );
        let harness = Harness::start(&document(&[backend.address], &upstream, ""));
        // A client's requests are all on one worker, so sooner or later the connections are on the other one.
        for client in 1..=8 {
            let Client::Http2(sender) = Client::connect_http2(harness.address()).await else {
                unreachable!()
            };
            let mut running = JoinSet::new();
            for _ in 0..COUNT {
                let mut client = Client::Http2(sender.clone());
                running.spawn(async move { client.get("/hang").await.status });
            }
            let began = Instant::now();
            until("all have a connection", || held.load(Ordering::Relaxed) == client * COUNT).await;
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
            release.add_permits(COUNT);
            while let Some(status) = running.join_next().await {
                assert_eq!(status.unwrap(), 200);
            }
        }
    });
}

#[test]
fn nobody_is_refused_while_there_is_an_idle_connection_to_another_target() {
    block_on(async {
        let targets = [Backend::text("a"), Backend::text("b")];
        let addresses: Vec<_> = targets.iter().map(|target| target.address).collect();
        let upstream = ", circuit_breaker: {limits: {connections: 1, pending: 0}}";
        let harness = Harness::with(&document(&addresses, upstream, ""), |settings| settings.workers = 1);
        let mut client = Client::connect(harness.address()).await;
        for _ in 0..6 {
            assert_eq!(client.get("/").await.status, 200);
        }
        assert!(targets.iter().all(|target| target.connections() == 3));
    });
}

#[test]
fn who_would_wait_too_long_or_with_too_many_is_refused() {
    block_on(async {
        let backend = Backend::start(|_| std::future::pending());
        let upstream = ", connect_timeout: 3s, circuit_breaker: {limits: {connections: 1, pending: 2}}";
        let harness = Harness::start(&document(&[backend.address], upstream, ""));
        let address = harness.address();
        let hold = tokio::spawn(async move { Client::connect(address).await.get("/").await });
        until("it has the connection", || backend.connections() == 1).await;
        let began = Instant::now();
        let mut clients = JoinSet::new();
        for _ in 0..12 {
            clients.spawn(async move {
                let answer = Client::connect(address).await.get("/").await;
                (answer.status, began.elapsed() >= Duration::from_secs(3))
            });
        }
        let answers: Vec<_> = clients.join_all().await;
        assert!(answers.iter().all(|(status, _)| *status == 503), "{answers:?}");
        assert_eq!(answers.iter().filter(|(_, waited)| *waited).count(), 2, "{answers:?}");
        hold.abort();
    });
}
