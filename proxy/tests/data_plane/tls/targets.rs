//! TLS with targets: who they are, what they are told, and why there is none.

use super::*;

/// A target with TLS.
struct Target {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    resumed: Arc<AtomicUsize>,
    /// True if it supports only HTTP/1.1.
    is_old: Arc<AtomicBool>,
}

impl Target {
    /// Starts a target that answers "hello" and the client's identity, if it has a certificate. It closes each
    /// connection after `requests`.
    fn start(certificate: &Issued, clients: Option<&Authority>) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            Some(ca) => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)), provider).build().unwrap(),
            ),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(vec![certificate.der()], certificate.key_der()).unwrap();
        let is_old = Arc::<AtomicBool>::default();
        let old = Arc::clone(&is_old);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let old_acceptor = TlsAcceptor::from(Arc::new(config.clone()));
        config.alpn_protocols.insert(0, b"h2".to_vec());
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let [connections, resumed] = [(); 2].map(|()| Arc::<AtomicUsize>::default());
        let target =
            Self { address, connections: Arc::clone(&connections), resumed: Arc::clone(&resumed), is_old };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = if old.load(Ordering::Relaxed) { &old_acceptor } else { &acceptor };
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                connections.fetch_add(1, Ordering::Relaxed);
                let session = stream.get_ref().1;
                if session.handshake_kind() == Some(HandshakeKind::Resumed) {
                    resumed.fetch_add(1, Ordering::Relaxed);
                }
                let name = session.server_name().unwrap_or_default().to_owned();
                let known = session.peer_certificates().is_some();
                let is_http2 = session.alpn_protocol() == Some(b"h2");
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let close = request.uri().path() == "/close";
                    let is_grpc = request.uri().path() == "/grpc.health.v1.Health/Check";
                    let text = format!("{name} {known}");
                    let spoken = format!("{:?} {:?}", request.version(), request.uri().scheme_str());
                    async move {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let mut response =
                            Response::new(full(if body.is_empty() { text.into() } else { body }));
                        if is_grpc {
                            // The status is SERVING.
                            *response.body_mut() = full(&b"\0\0\0\0\x02\x08\x01"[..]);
                            response.headers_mut().insert("grpc-status", "0".parse().unwrap());
                        }
                        response.headers_mut().insert("x-spoken", spoken.parse().unwrap());
                        if close {
                            response.headers_mut().insert("connection", "close".parse().unwrap());
                        }
                        Ok::<_, std::convert::Infallible>(response)
                    }
                });
                if is_http2 {
                    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    tokio::spawn(serving.serve_connection(TokioIo::new(stream), service));
                } else {
                    let serving = hyper::server::conn::http1::Builder::new();
                    tokio::spawn(serving.serve_connection(TokioIo::new(stream), service));
                }
            }
        });
        target
    }

    /// A document with a route to it, as `host`.
    fn document(&self, host: &str, tls: &str, more: &str) -> String {
        format!(
            "upstreams: [{{name: u, targets: [{{address: '{host}:{}'}}], tls: {{{tls}}}}}]
routes: [{{name: all, forward: {{upstreams: [{{name: u}}]}}}}]
{more}",
            self.address.port()
        )
    }
}

fn quoted(ca: &Authority) -> String {
    serde_json::to_string(&ca.as_ref().pem()).unwrap()
}

#[test]
fn a_target_has_to_be_who_it_should_be() {
    block_on(async {
        let ca = authority("ca");
        let target = Target::start(&issued(&["users.internal"], &ca), None);
        let own = format!("ca: {}", quoted(&ca));
        let named = format!("{own}, sni: users.internal");
        let mut harness = Harness::start(&target.document("127.0.0.1", &named, ""));
        let answer = harness.get("/").await;
        assert_eq!((answer.status, answer.text()), (200, "users.internal false"));
        for wrong in [
            // The cases are: another authority, another name, an address that the certificate lacks, the host's roots.
            format!("sni: users.internal, ca: {}", quoted(&authority("ca"))),
            format!("{own}, sni: other.internal"),
            own.clone(),
        ] {
            harness.apply(&target.document("127.0.0.1", &wrong, "")).unwrap();
            let answer = harness.get("/").await;
            assert_eq!(answer.status, 503, "{wrong}: {}", answer.text());
            assert!(!answer.text().contains("internal"), "nothing of the inside is told");
        }
        let refused = "signalbox_upstream_requests_total{upstream=\"u\",code_class=\"5xx\",flags=\"UF\"}";
        assert_eq!(metric(&harness, refused), 3);
        harness.apply(&target.document("127.0.0.1", "verify: false, sni: users.internal", "")).unwrap();
        assert_eq!(harness.get("/").await.status, 200);

        let local = Target::start(&issued(&["localhost"], &ca), None);
        harness.apply(&local.document("localhost", &own, "")).unwrap();
        until("the name is resolved", || harness.targets() > 0).await;
        assert_eq!(harness.get("/").await.text(), "localhost false", "the name is that of the address");
        // It does not work in cleartext at all.
        harness.apply(&forward_to(local.address)).unwrap();
        assert_eq!(harness.get("/").await.status, 502);
    });
}

#[test]
fn a_target_is_told_which_protocol_is_to_be_spoken() {
    block_on(async {
        let ca = authority("ca");
        let target = Target::start(&issued(&["users.internal"], &ca), None);
        let tls = format!("ca: {}, sni: users.internal", quoted(&ca));
        let mut harness = Harness::start(&target.document("127.0.0.1", &tls, ""));
        assert_eq!(harness.get("/").await.headers["x-spoken"], "HTTP/1.1 None");
        let tls = format!("{tls}}}, protocol: http2, labels: {{a: b");
        harness.apply(&target.document("127.0.0.1", &tls, "")).unwrap();
        assert_eq!(harness.get("/").await.headers["x-spoken"], "HTTP/2.0 Some(\"https\")");
        let wrong = tls.replacen("users.internal", "other.internal", 1);
        harness.apply(&target.document("127.0.0.1", &wrong, "")).unwrap();
        assert_eq!(harness.get("/").await.status, 503);
    });
}

#[test]
fn a_target_is_shown_the_proxys_certificate() {
    block_on(async {
        let ca = authority("ca");
        let clients = authority("clients");
        let target = Target::start(&issued(&["users.internal"], &ca), Some(&clients));
        let own = format!("ca: {}, sni: users.internal", quoted(&ca));
        let shown = |by: &Authority| {
            let certificates = format!("certificates: [{}]", issued(&["proxy"], by).resource("own"));
            target.document("127.0.0.1", &format!("{own}, certificate: own"), &certificates)
        };
        let mut harness = Harness::start(&target.document("127.0.0.1", &own, ""));
        assert_ne!(harness.get("/").await.status, 200);
        harness.apply(&shown(&authority("clients"))).unwrap();
        assert_ne!(harness.get("/").await.status, 200);
        // Only the certificate changes.
        harness.apply(&shown(&clients)).unwrap();
        assert_eq!(harness.get("/").await.text(), "users.internal true");
    });
}

#[test]
fn connections_and_sessions_to_targets_outlive_revisions() {
    block_on(async {
        let ca = authority("ca");
        let target = Target::start(&issued(&["users.internal"], &ca), None);
        let tls = format!("ca: {}, sni: users.internal", quoted(&ca));
        let document = |more: &str| target.document("127.0.0.1", &tls, more);
        let mut harness = Harness::start(&document(""));
        let mut client = Client::connect(harness.address()).await;
        for round in 0..5 {
            harness
                .apply(&document(&format!("plugins: [{{name: p{round}, type: cors, config: {{}}}}]")))
                .unwrap();
            assert_eq!(client.get("/").await.status, 200);
        }
        assert_eq!(target.connections.load(Ordering::Relaxed), 1);
        for _ in 0..3 {
            assert_eq!(client.get("/close").await.status, 200);
            tokio::time::timeout(Duration::from_secs(5), client.get("/")).await.unwrap();
        }
        let (connections, resumed) =
            (target.connections.load(Ordering::Relaxed), target.resumed.load(Ordering::Relaxed));
        assert_eq!((connections, resumed), (4, 3));
    });
}

#[test]
fn a_target_that_may_choose_is_spoken_to_as_it_chooses() {
    block_on(async {
        let ca = authority("ca");
        let new = Target::start(&issued(&["users.internal"], &ca), None);
        let old = Target::start(&issued(&["users.internal"], &ca), None);
        old.is_old.store(true, Ordering::Relaxed);
        let tls = format!("ca: {}, sni: users.internal", quoted(&ca));
        let auto = format!("{tls}}}, protocol: auto, labels: {{a: b");
        let document = |target: &Target| target.document("127.0.0.1", &auto, "");
        let mut harness = Harness::with(&document(&new), |settings| settings.workers = 1);
        let spoken = async |harness: &Harness, body: &'static str| {
            let mut client = Client::connect(harness.address()).await;
            let request = Request::post("/").header("host", "test.example").body(full(body)).unwrap();
            let answer = client.send(request).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            if !body.is_empty() {
                assert_eq!(answer.text(), body);
            }
            answer.headers["x-spoken"].to_str().unwrap().split(' ').next().unwrap().to_owned()
        };
        for body in ["", "said"] {
            assert_eq!(spoken(&harness, body).await, "HTTP/2.0");
            assert_eq!(spoken(&harness, body).await, "HTTP/2.0");
        }
        assert_eq!(new.connections.load(Ordering::Relaxed), 1, "one connection for all");
        harness.apply(&document(&old)).unwrap();
        for body in ["", "said"] {
            assert_eq!(spoken(&harness, body).await, "HTTP/1.1");
        }
        // Detection took one more connection; then the protocol is known, and the connection is reused.
        assert_eq!(old.connections.load(Ordering::Relaxed), 2);
        // The old server is replaced by a new one, and vice versa.
        old.is_old.store(false, Ordering::Relaxed);
        assert_eq!(spoken(&harness, "said").await, "HTTP/1.1", "the connection that is there is used on");
        let mut client = Client::connect(harness.address()).await;
        assert_eq!(client.get("/close").await.status, 200);
        assert_eq!(spoken(&harness, "said").await, "HTTP/2.0");
    });
}

#[test]
fn a_retry_goes_to_a_target_that_chooses_otherwise() {
    block_on(async {
        let ca = authority("ca");
        let certificate = issued(&["users.internal"], &ca);
        let targets = [Target::start(&certificate, None), Target::start(&certificate, None)];
        targets[0].is_old.store(true, Ordering::Relaxed);
        let [old, new] = targets.each_ref().map(|target| target.address);
        let down = crate::harness::nobody();
        let document = format!(
            "upstreams: [{{name: u, protocol: auto, targets: [{{address: '{old}'}}, {{address: '{new}'}}, {{address: '{down}'}}],
  tls: {{ca: {}, sni: users.internal}}}}]
routes: [{{name: all, forward: {{upstreams: [{{name: u}}], retry: {{attempts: 3, on: [connect-failure, retriable-4xx], methods: [POST]}}}}}}]",
            quoted(&ca)
        );
        let harness = Harness::start(&document);
        let mut client = Client::connect(harness.address()).await;
        let mut seen = std::collections::BTreeMap::<String, u32>::new();
        for _ in 0..30 {
            let request = Request::post("/").header("host", "test.example").body(full("said")).unwrap();
            let answer = client.send(request).await;
            assert_eq!((answer.status, answer.text()), (200, "said"));
            *seen.entry(answer.headers["x-spoken"].to_str().unwrap()[..8].to_owned()).or_default() += 1;
        }
        assert!(seen["HTTP/1.1"] >= 10 && seen["HTTP/2.0"] >= 10, "{seen:?}");
    });
}

#[test]
fn targets_are_checked_through_tls_too() {
    block_on(async {
        let ca = authority("ca");
        let target = Target::start(&issued(&["users.internal"], &ca), None);
        let tls = format!("ca: {}, sni: users.internal", quoted(&ca));
        let state = |harness: &Harness| metric(harness, "signalbox_upstream_healthy_targets{upstream=\"u\"}");
        let wrong = tls.replace("users.internal", "other.internal");
        for protocol in ["http1", "http2", "auto"] {
            for check in ["type: http, path: /", "type: grpc", "type: tcp"] {
                let document = |tls: &str| {
                    let more = format!(
                        "{tls}}}, protocol: {protocol}, health_check: {{panic_threshold_percent: 0, active: {{{check}, interval: 100ms, timeout: 10s, healthy_after: 1, unhealthy_after: 1}}}}, labels: {{a: b"
                    );
                    target.document("127.0.0.1", &more, "")
                };
                let mut harness = Harness::start(&document(&wrong));
                if check == "type: tcp" {
                    // The connection is accepted from any client.
                    continue;
                }
                until("it is found that it is another", || state(&harness) == 0).await;
                assert_eq!(harness.get("/").await.status, 503);
                // Only the TLS settings have changed.
                harness.apply(&document(&tls)).unwrap();
                until("it is healthy", || state(&harness) == 1).await;
                assert_eq!(harness.get("/").await.status, 200, "{protocol} {check}");
            }
        }
    });
}

/// The access log's flags and reason for a request to a target.
async fn told(document: &str) -> (String, String) {
    let (sender, receiver) = access_log::channel(10);
    let harness = Harness::with_log(document, Some(sender));
    harness.get("/").await;
    let line = lines(&receiver, 1).await.remove(0);
    let text = |field: &str| line[field].as_str().unwrap().to_owned();
    (text("flags"), text("upstream_error"))
}

#[test]
fn why_there_is_no_tls_with_a_target_is_told() {
    block_on(async {
        let ca = authority("ca");
        let trusted = format!("sni: localhost, ca: {}", quoted(&ca));
        let at = |names: &[&str], from: i32, until: i32| {
            let key = KeyPair::generate().unwrap();
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
            let certificate = params.signed_by(&key, &ca).unwrap();
            Issued { certificate: certificate.pem(), key: key.serialize_pem() }
        };
        let good = || at(&["localhost"], 2020, 4000);
        for (own, tls, reason) in [
            (at(&["localhost"], 2020, 2021), trusted.as_str(), "tls_certificate_expired"),
            (at(&["localhost"], 3000, 4000), &trusted, "tls_certificate_not_yet_valid"),
            (at(&["other.example"], 2020, 4000), &trusted, "tls_certificate_wrong_name"),
            (issued(&["localhost"], &authority("other")), &trusted, "tls_certificate_unknown_issuer"),
        ] {
            let target = Target::start(&own, None);
            let (flags, told) = told(&target.document("127.0.0.1", tls, "")).await;
            assert_eq!((flags.as_str(), told.as_str()), ("UF", reason));
        }
        // The target supports only HTTP/1.1, and reports that.
        let target = Target::start(&good(), None);
        target.is_old.store(true, Ordering::Relaxed);
        let document = target.document("127.0.0.1", &trusted, "");
        let document = document.replace("{name: u, ", "{name: u, protocol: http2, ");
        assert_eq!(told(&document).await, ("UF".to_owned(), "tls_no_common_protocol".to_owned()));
        // The target requires a certificate. With TLS 1.3 that is known only after the handshake.
        let target = Target::start(&good(), Some(&ca));
        let (_, reason) = told(&target.document("127.0.0.1", &trusted, "")).await;
        assert_eq!(reason, "tls_client_certificate_refused");
        // The targets: one without TLS, one that closes, one that is silent.
        let document = |backend: &Backend| {
            format!(
                "upstreams: [{{name: u, connect_timeout: 500ms, targets: [{{address: '{}'}}], tls: {{{trusted}}}}}]
routes: [{{name: all, forward: {{upstreams: [{{name: u}}]}}}}]",
                backend.address
            )
        };
        let plain = Backend::raw(|mut stream| async move {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let closing = Backend::raw(|mut stream| async move {
            let _ = stream.read(&mut [0; 1024]).await;
        });
        let silent = Backend::raw(|mut stream| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        for (backend, reason) in
            [(&plain, "tls_protocol_error"), (&closing, "tls_closed"), (&silent, "tls_timeout")]
        {
            assert_eq!(told(&document(backend)).await, ("UF".to_owned(), reason.to_owned()));
        }
    });
}

#[test]
fn without_an_authority_of_its_own_a_target_is_checked_by_the_hosts() {
    block_on(async {
        let ca = authority("ca");
        let target = Target::start(&issued(&["users.internal"], &ca), None);
        let harness = Harness::start(&target.document("127.0.0.1", "sni: users.internal", ""));
        assert_eq!(harness.get("/").await.status, 503);
        assert_eq!(target.connections.load(Ordering::Relaxed), 0, "no handshake came to its end");
    });
}
