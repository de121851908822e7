use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{Request, Response};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::harness::{Backend, Client, Harness, block_on, forward_to, full, nobody, read_head, until};

/// A document that forwards everything to `targets` by `policy`.
fn balanced(policy: &str, targets: &[(std::net::SocketAddr, u32)]) -> String {
    let targets: Vec<_> = targets
        .iter()
        .map(|(address, weight)| format!("{{address: '{address}', weight: {weight}}}"))
        .collect();
    format!(
        "
upstreams: [{{name: u, load_balancing: {{policy: {policy}}}, targets: [{}]}}]
routes: [{{name: all, forward: {{upstreams: [{{name: u}}]}}}}]
",
        targets.join(", ")
    )
}

async fn shares(client: &mut Client, count: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..count {
        *shares.entry(client.get("/").await.text().to_owned()).or_default() += 1;
    }
    shares
}

#[test]
fn failures_of_an_upstream_have_their_status() {
    block_on(async {
        let closes = Backend::raw(|mut stream| async move {
            read_head(&mut stream).await;
        });
        let talks_nonsense = Backend::raw(|mut stream| async move {
            read_head(&mut stream).await;
            stream.write_all(b"this is not HTTP\r\n\r\n").await.unwrap();
        });
        // The kernel queues one connection for a socket that does not accept, and then no more.
        let silent = tokio::net::TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = silent.listen(0).unwrap();
        let _waiting = tokio::net::TcpStream::connect(silent.local_addr().unwrap()).await.unwrap();
        let harness = Harness::start(&format!(
            "
upstreams:
- {{name: none, targets: []}}
- {{name: unresolved, targets: [{{address: 'does-not-exist.invalid:80'}}]}}
- {{name: refused, targets: [{{address: '{}'}}]}}
- {{name: silent, connect_timeout: 50ms, targets: [{{address: '{}'}}]}}
- {{name: closes, targets: [{{address: '{}'}}]}}
- {{name: nonsense, targets: [{{address: '{}'}}]}}
routes:
- {{name: none, match: {{paths: [{{exact: /none}}]}}, forward: {{upstreams: [{{name: none}}]}}}}
- {{name: unresolved, match: {{paths: [{{exact: /unresolved}}]}}, forward: {{upstreams: [{{name: unresolved}}]}}}}
- {{name: refused, match: {{paths: [{{exact: /refused}}]}}, forward: {{upstreams: [{{name: refused}}]}}}}
- {{name: silent, match: {{paths: [{{exact: /silent}}]}}, forward: {{upstreams: [{{name: silent}}]}}}}
- {{name: closes, match: {{paths: [{{exact: /closes}}]}}, forward: {{upstreams: [{{name: closes}}]}}}}
- {{name: nonsense, match: {{paths: [{{exact: /nonsense}}]}}, forward: {{upstreams: [{{name: nonsense}}]}}}}
",
            nobody(),
            silent.local_addr().unwrap(),
            closes.address,
            talks_nonsense.address
        ));
        for mut client in
            [Client::connect(harness.address()).await, Client::connect_http2(harness.address()).await]
        {
            for (path, status) in [
                ("/nowhere", 404),
                ("/none", 503),
                ("/unresolved", 503),
                ("/refused", 503),
                ("/silent", 503),
                ("/closes", 502),
                ("/nonsense", 502),
            ] {
                let answer = client.get(path).await;
                assert_eq!(answer.status, status, "{path}");
                assert_eq!(answer.headers["content-type"], "application/problem+json");
                let problem = answer.json();
                assert_eq!(problem["status"], status);
                assert!(
                    !answer.text().contains("127.0.0.1") && !answer.text().contains("error"),
                    "{problem}"
                );
            }
        }
    });
}

#[test]
fn a_connection_that_the_target_closed_while_idle_fails_no_request() {
    block_on(async {
        // The backend serves one request on each connection and then closes, without announcing it.
        let backend = Backend::raw(|mut stream| async move {
            if read_head(&mut stream).await.is_some() {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
        });
        let harness = Harness::start(&forward_to(backend.address));
        let mut client = Client::connect(harness.address()).await;
        for _ in 0..300 {
            assert_eq!(client.get("/").await.status, 200);
        }
    });
}

#[test]
fn a_connection_that_the_target_closes_on_reuse_fails_no_request() {
    block_on(async {
        // The backend reads the second request of each connection, and closes without a response: the request crossed
        // the close.
        let backend = Backend::raw(|mut stream| async move {
            if read_head(&mut stream).await.is_some() {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                read_head(&mut stream).await;
            }
        });
        let harness = Harness::start(&forward_to(backend.address));
        let mut client = Client::connect(harness.address()).await;
        for round in 0..100 {
            assert_eq!(client.get("/a?b=c").await.status, 200, "{round}");
        }
        assert_eq!(backend.connections(), 100);
        // The same holds with a body, which is read behind the head that it was sent with.
        for round in 0..20 {
            let put = Request::put("/").body(full("said")).unwrap();
            assert_eq!(client.send(put).await.status, 200, "{round}");
        }
        // A request that may have been processed is not sent twice.
        let post = || Request::post("/").body(full("")).unwrap();
        let statuses = [client.send(post()).await.status, client.send(post()).await.status];
        assert_eq!(statuses.iter().filter(|status| **status == 502).count(), 1, "{statuses:?}");
    });
}

#[test]
fn a_new_connection_that_breaks_is_not_tried_again() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            read_head(&mut stream).await;
        });
        let harness = Harness::start(&forward_to(backend.address));
        assert_eq!(harness.get("/").await.status, 502);
        assert_eq!(backend.connections(), 1);
    });
}

#[test]
fn requests_are_spread_by_weight() {
    block_on(async {
        let (a, b) = (Backend::text("a"), Backend::text("b"));
        for (policy, tolerance) in [("round_robin", 0), ("random", 60), ("least_request", 60)] {
            let harness = Harness::start(&balanced(policy, &[(a.address, 3), (b.address, 1)]));
            let shares = shares(&mut Client::connect(harness.address()).await, 400).await;
            assert!(shares["a"].abs_diff(300) <= tolerance, "{policy}: {shares:?}");
        }
    });
}

#[test]
fn upstreams_of_a_route_are_drawn_by_weight() {
    block_on(async {
        let (a, b) = (Backend::text("a"), Backend::text("b"));
        let harness = Harness::start(&format!(
            "
upstreams: [{{name: a, targets: [{{address: '{}'}}]}}, {{name: b, targets: [{{address: '{}'}}]}}]
routes: [{{name: all, forward: {{upstreams: [{{name: a, weight: 90}}, {{name: b, weight: 10}}]}}}}]
",
            a.address, b.address
        ));
        let shares = shares(&mut Client::connect(harness.address()).await, 1000).await;
        assert!(shares["b"].abs_diff(100) <= 50, "{shares:?}");
    });
}

#[test]
fn the_less_busy_target_is_preferred() {
    block_on(async {
        let busy = Arc::<AtomicUsize>::default();
        let hung = Arc::clone(&busy);
        let slow = Backend::start(move |_| {
            hung.fetch_add(1, Ordering::Relaxed);
            std::future::pending::<Response<_>>()
        });
        let fast = Backend::text("fast");
        let harness = Harness::start(&balanced("least_request", &[(slow.address, 1), (fast.address, 1)]));
        let mut clients = JoinSet::new();
        let answered = Arc::<AtomicUsize>::default();
        for count in 1..=400 {
            let (address, counted) = (harness.address(), Arc::clone(&answered));
            clients.spawn(async move {
                Client::connect(address).await.get("/").await;
                counted.fetch_add(1, Ordering::Relaxed);
            });
            until("it went to one of them", || {
                busy.load(Ordering::Relaxed) + answered.load(Ordering::Relaxed) == count
            })
            .await;
        }
        // The busy target gets a request when it is drawn twice, which is a quarter of them; without preference it
        // would be half.
        assert!(busy.load(Ordering::Relaxed) < 150, "{busy:?}");
    });
}

#[test]
fn names_are_resolved() {
    block_on(async {
        let backend = Backend::text("ok");
        let port = backend.address.port();
        let harness = Harness::start(&forward_to(backend.address).replace("127.0.0.1", "localhost"));
        until("the name is resolved", || harness.targets() > 0).await;
        assert_eq!(harness.get("/").await.text(), "ok", "localhost:{port}");
    });
}

#[test]
fn an_idle_connection_to_a_target_is_closed_in_time() {
    block_on(async {
        let (closed, mut was_closed) = tokio::sync::mpsc::channel(1);
        let backend = Backend::raw(move |mut stream| {
            let closed = closed.clone();
            async move {
                read_head(&mut stream).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                assert!(read_head(&mut stream).await.is_none());
                closed.send(Instant::now()).await.unwrap();
            }
        });
        let document =
            forward_to(backend.address).replace("name: u, targets", "name: u, idle_timeout: 200ms, targets");
        let harness = Harness::start(&document);
        let asked = Instant::now();
        assert_eq!(harness.get("/").await.status, 200);
        let closed = was_closed.recv().await.unwrap();
        assert!(closed.duration_since(asked) >= Duration::from_millis(200));
    });
}
