//! Mirrors get copies of requests, and take nothing from the requests.

use super::*;

/// The requests that a mirror got.
type Copies = Arc<Mutex<Vec<(http::request::Parts, Bytes)>>>;

fn shadow() -> (Backend, Copies) {
    let copies = Copies::default();
    let noted = Arc::clone(&copies);
    let backend = Backend::start(move |request| {
        let noted = Arc::clone(&noted);
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            noted.lock().unwrap().push((parts, body));
            status(500, "nobody sees it")
        }
    });
    (backend, copies)
}

fn mirrored(backend: SocketAddr, shadow: SocketAddr, percent: f64) -> String {
    format!(
        "
upstreams: [{{name: u, targets: [{{address: '{backend}'}}]}}, {{name: shadow, targets: [{{address: '{shadow}'}}]}}]
routes: [{{name: all, forward: {{upstreams: [{{name: u}}], rewrite: {{path: /there}}, mirror: {{upstream: shadow, percent: {percent}}}}}}}]
"
    )
}

#[test]
fn a_mirror_gets_copies_with_their_bodies() {
    block_on(async {
        let backend = Backend::start(|request: Request<hyper::body::Incoming>| async move {
            request.into_body().collect().await.unwrap();
            status(200, "ok")
        });
        let (shadow, copies) = shadow();
        let mut harness = Harness::start(&mirrored(backend.address, shadow.address, 100.0));
        let mut client = Client::connect(harness.address()).await;
        for body in [full(""), full("hello"), streamed(50, &[b'x'; 1000]), streamed(1049, &[b'x'; 1000])] {
            let Answer { status, body, .. } = client.send(request("POST", body)).await;
            assert_eq!((status, &*body), (200, &b"ok"[..]));
        }
        until("the copies are there", || copies.lock().unwrap().len() == 3).await;
        {
            let mut copies = copies.lock().unwrap();
            copies.sort_by_key(|(_, body)| body.len());
            assert!(copies[0].1.is_empty() && copies[1].1 == "hello" && copies[2].1 == vec![b'x'; 50_000]);
            for (head, _) in &*copies {
                assert_eq!((head.method.as_str(), head.uri.path()), ("POST", "/there"));
                assert_eq!(head.headers["host"], "test.example");
                assert_eq!(head.headers["x-mirrored-by"], "signalbox");
                assert_eq!(head.headers["x-forwarded-for"], "127.0.0.1");
            }
            copies.clear();
        }
        for line in [
            r#"signalbox_upstream_requests_total{upstream="shadow",code_class="5xx",flags=""} 3"#,
            // The last request was larger than the mirroring limit.
            "signalbox_mirrors_dropped_total 1",
        ] {
            until(line, || metrics(&harness).lines().any(|found| found == line)).await;
        }
        harness.apply(&mirrored(backend.address, shadow.address, 25.0)).unwrap();
        for _ in 0..400 {
            client.get("/").await;
        }
        harness.apply(&mirrored(backend.address, shadow.address, 0.0)).unwrap();
        for _ in 0..20 {
            client.get("/").await;
        }
        until("the copies are there", || copies.lock().unwrap().len() > 50).await;
        assert!(copies.lock().unwrap().len() < 150, "{}", copies.lock().unwrap().len());
    });
}

#[test]
fn a_request_that_wants_to_switch_protocols_is_not_mirrored() {
    block_on(async {
        let backend = Backend::text("ok");
        let (shadow, copies) = shadow();
        let harness = Harness::start(&mirrored(backend.address, shadow.address, 100.0));
        let mut client = Client::connect(harness.address()).await;
        for round in 0..4 {
            let mut request = request("GET", full(""));
            if round < 3 {
                let fields = [
                    ("connection", "upgrade"),
                    ("upgrade", "websocket"),
                    ("sec-websocket-version", "13"),
                    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ];
                for (name, value) in fields {
                    request.headers_mut().insert(name, value.parse().unwrap());
                }
            }
            assert_eq!(client.send(request).await.status, 200);
        }
        until("a copy is there", || !copies.lock().unwrap().is_empty()).await;
        let copies = copies.lock().unwrap();
        assert!(copies.len() == 1 && !copies[0].0.headers.contains_key("upgrade"), "{copies:?}");
    });
}

#[test]
fn a_mirror_that_hangs_or_is_dead_takes_nothing_from_the_requests() {
    block_on(async {
        let backend = Backend::text("ok");
        let hangs = Backend::start(|_| std::future::pending());
        let reset = resets();
        for shadow in [hangs.address, reset.address, nobody()] {
            let harness = Harness::start(&mirrored(backend.address, shadow, 100.0));
            let mut client = Client::connect(harness.address()).await;
            let began = Instant::now();
            for round in 0..500 {
                let body = if round % 2 == 0 { full("") } else { streamed(3, b"part") };
                assert_eq!(client.send(request("POST", body)).await.status, 200);
            }
            // Each mirrored request that hangs does so for ten seconds.
            assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
        }
        assert!(hangs.connections() <= 64, "{}", hangs.connections());
    });
}
