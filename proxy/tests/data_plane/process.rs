//! The proxy's program.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::harness::{Backend, Client, block_on, forward_to, full, nobody, read_head, until};

pub(crate) struct Process {
    child: Child,
    pub(crate) address: SocketAddr,
    admin: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Process {
    /// Runs a file with a listener `http` and the given `document`, and waits until it serves.
    pub(crate) async fn start(document: &str, more: &[&str]) -> Self {
        Self::start_by(Command::new(PROGRAM), document, more).await
    }

    pub(crate) async fn start_by(command: Command, document: &str, more: &[&str]) -> Self {
        Self::start_with(command, "", document, more).await
    }

    /// Runs a file whose listener has further fields.
    pub(crate) async fn listening(listener: &str, document: &str) -> Self {
        Self::listening_with(listener, document, &[]).await
    }

    /// The same with further arguments.
    pub(crate) async fn listening_with(listener: &str, document: &str, more: &[&str]) -> Self {
        Self::start_with(Command::new(PROGRAM), listener, document, more).await
    }

    async fn start_with(command: Command, listener: &str, document: &str, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (address, admin) = (nobody(), nobody());
        let file = dir.path().join("config.yaml");
        let listener = format!("listeners:\n- {{name: http, address: '{address}'{listener}}}\n");
        std::fs::write(&file, format!("{listener}{document}")).unwrap();
        let child = spawn(command, &file, admin, more);
        let process = Self { child, address, admin, _dir: dir };
        while process.ask("/readyz").await != Some(200) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        process
    }

    /// The address of the admin server.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Starts a proxy with a limit on open files.
    async fn limited(document: &str, files: u64) -> Self {
        let mut command = Command::new("prlimit");
        command.args([&format!("--nofile={files}:{files}"), PROGRAM]);
        Self::start_by(command, document, &[]).await
    }

    /// Starts another proxy with the same addresses.
    fn successor(&self, document: &str, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        let listener = format!("listeners:\n- {{name: http, address: '{}'}}", self.address);
        std::fs::write(&file, format!("{listener}\n{document}")).unwrap();
        let child = spawn(Command::new(PROGRAM), &file, self.admin, more);
        Self { child, address: self.address, admin: self.admin, _dir: dir }
    }

    /// The process's peak memory, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    /// The CPU time that the process has used, user and system.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks =
            fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum::<u64>();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    async fn ask(&self, path: &str) -> Option<u16> {
        let stream = TcpStream::connect(self.admin).await.ok()?;
        drop(stream);
        Some(Client::connect(self.admin).await.get(path).await.status)
    }

    pub(crate) fn terminate(&self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    }

    pub(crate) async fn ended(&mut self) -> std::process::ExitStatus {
        let mut status = None;
        until("the process has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_signalbox-proxy");

fn spawn(mut command: Command, file: &Path, admin: SocketAddr, more: &[&str]) -> Child {
    command
        .args(["--config", file.to_str().unwrap(), "--admin-address", &admin.to_string()])
        .args(if more.contains(&"--workers") { &[][..] } else { &["--workers", "2"] })
        .args(if more.contains(&"--access-log") { &[][..] } else { &["--access-log", "off"] })
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn the_admin_server_tells_of_the_proxy() {
    block_on(async {
        let document = "
consumers: [{name: alice, credentials: [{key_auth: {key: secret}}]}]
routes: [{name: r, respond: {body: ok}}]";
        let process = Process::start(document, &[]).await;
        let mut admin = Client::connect(process.admin).await;
        let health = admin.get("/healthz").await.json();
        assert_eq!(health["listeners"]["http"], process.address.to_string());
        let config = admin.get("/config").await;
        assert_eq!(config.json()["resources"]["routes"][0]["name"], "r");
        assert!(config.text().contains("<redacted>"), "{}", config.text());
        let revision = admin.get("/revision").await.json();
        assert_eq!(revision["serving"]["revision"], config.json()["revision"]);
        assert_eq!(revision["connected"], true);
        let metrics = admin.get("/metrics").await;
        assert!(metrics.text().contains("signalbox_revision{"));
        assert_eq!(admin.get("/nothing").await.status, 404);
        assert_eq!(admin.get("/drain").await.json()["state"], "serving");
    });
}

#[test]
fn why_a_target_does_not_answer_is_told_by_the_admin_server_and_now_and_then_by_the_log() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let target = nobody();
        let document = format!(
            "upstreams:
- {{name: users, targets: [{{address: '{target}'}}]}}
- {{name: nowhere, targets: [{{address: 'does-not-exist.invalid:80'}}]}}
routes:
- {{name: users, match: {{paths: [{{exact: /users}}]}}, forward: {{upstreams: [{{name: users}}]}}}}
- {{name: nowhere, match: {{paths: [{{exact: /nowhere}}]}}, forward: {{upstreams: [{{name: nowhere}}]}}}}"
        );
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec \"$0\" \"$@\" 2>'{}'", log.display()), PROGRAM]);
        let process = Process::start_by(command, &document, &["--log-format", "json"]).await;
        let mut client = Client::connect(process.address).await;
        const REQUESTS: usize = 30;
        for _ in 0..REQUESTS {
            for path in ["/users", "/nowhere"] {
                assert_eq!(client.get(path).await.status, 503);
            }
        }
        let upstreams = Client::connect(process.admin).await.get("/debug/upstreams").await.json();
        let of = |name: &str| {
            upstreams.as_array().unwrap().iter().find(|it| it["upstream"] == name).unwrap().clone()
        };
        let error = &of("users")["targets"][0]["last_error"];
        assert_eq!(error["reason"], "connection_refused");
        assert!(error["error"].as_str().unwrap().contains("refused"), "{error}");
        error["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        until("the lookup has failed", || {
            let log = std::fs::read_to_string(&log).unwrap();
            log.contains("cannot resolve the name of a target")
        })
        .await;
        let upstreams = Client::connect(process.admin).await.get("/debug/upstreams").await.json();
        let nowhere = upstreams.as_array().unwrap().iter().find(|it| it["upstream"] == "nowhere").unwrap();
        assert_eq!(nowhere["unresolved"][0], "does-not-exist.invalid:80");
        assert_eq!(nowhere["resolution_errors"][0]["target"], "does-not-exist.invalid:80", "{nowhere}");
        let log = std::fs::read_to_string(&log).unwrap();
        for (upstream, target, reason) in [
            ("users", target.to_string(), "connection_refused"),
            ("nowhere", "does-not-exist.invalid:80".to_owned(), "name_not_resolved"),
        ] {
            let names = |line: &&str| {
                [upstream, &target, reason].iter().all(|word| line.contains(word)) && line.contains("WARN")
            };
            let lines = log.lines().filter(names).count();
            assert!((1..REQUESTS).contains(&lines), "{lines} lines of {upstream}: {log}");
        }
    });
}

#[test]
fn a_drain_loses_no_request() {
    block_on(async {
        let backend = Backend::start(|_| async {
            tokio::time::sleep(Duration::from_millis(3)).await;
            http::Response::new(full("ok"))
        });
        let mut process = Process::start(&forward_to(backend.address), &[]).await;
        let address = process.address;
        let ended = Arc::<AtomicBool>::default();
        let answered = Arc::<AtomicUsize>::default();
        let mut clients = JoinSet::new();
        for index in 0..12 {
            let (ended, answered) = (Arc::clone(&ended), Arc::clone(&answered));
            clients.spawn(async move {
                // Clients ask until connections are refused. A client that was told that the connection ends opens
                // another.
                loop {
                    let began = Instant::now();
                    let Ok(stream) = TcpStream::connect(address).await else { return };
                    if index % 3 == 0 {
                        drop(stream);
                        http2_until_goaway(address, &answered).await;
                    } else {
                        // The kernel resets a connection whose handshake ends just when the socket is closed.
                        http1_until_close((began, stream), &answered, true).await;
                    }
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        until("there is load", || answered.load(Ordering::Relaxed) > 500).await;
        process.terminate();
        until("it is not ready any more", || {
            process.child.try_wait().unwrap().is_some() || answered.load(Ordering::Relaxed) > 600
        })
        .await;
        let status = process.ended().await;
        ended.store(true, Ordering::Relaxed);
        assert!(status.success(), "{status}");
        while let Some(done) = clients.join_next().await {
            done.unwrap();
        }
    });
}

/// Sends requests until a response announces the end of the connection. A missing response is an error, unless
/// `refused` allows it for the first request, or the machine paused so long that the connection was closed.
async fn http1_until_close(
    (mut began, mut stream): (Instant, TcpStream),
    answered: &AtomicUsize,
    mut refused: bool,
) {
    loop {
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let asked = began.elapsed();
        let Some(head) = read_head(&mut stream).await else {
            assert!(refused || asked > STOOD_STILL, "no answer to what was asked after {asked:?}");
            return;
        };
        (refused, began) = (false, Instant::now());
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        let mut body = [0; 2];
        stream.read_exact(&mut body).await.unwrap();
        answered.fetch_add(1, Ordering::Relaxed);
        if head.contains("connection: close") {
            return;
        }
    }
}

/// Slightly less than the time for which an idle connection that is to end stays open.
const STOOD_STILL: Duration = Duration::from_millis(900);

/// Sends requests until the connection accepts no more. A request that it accepted must be answered.
async fn http2_until_goaway(address: SocketAddr, answered: &AtomicUsize) {
    let Ok(stream) = TcpStream::connect(address).await else { return };
    let handshake = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    );
    let Ok((mut sender, connection)) = handshake.await else { return };
    tokio::spawn(connection);
    while sender.ready().await.is_ok() && !sender.is_closed() {
        let request = Request::get("http://a/").body(full("")).unwrap();
        match sender.try_send_request(request).await {
            Ok(response) => {
                let answer = crate::harness::Answer::of(response).await.unwrap();
                assert_eq!(answer.text(), "ok");
                answered.fetch_add(1, Ordering::Relaxed);
            }
            // The request arrived after GOAWAY, so it was not processed.
            Err(error) => {
                assert!(
                    error.error().is_canceled() || error.message().is_some() || is_refused(error.error()),
                    "{error:?}"
                );
                return;
            }
        }
    }
}

/// True if a request was refused unprocessed (RFC 9113, section 6.8): the client may send it elsewhere.
fn is_refused(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(h2) = cause.downcast_ref::<h2::Error>() {
            return h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR)
                || h2.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        source = cause.source();
    }
    false
}

#[test]
fn a_drain_waits_for_what_runs_but_not_longer_than_it_may() {
    block_on(async {
        let backend = Backend::start(|_| std::future::pending());
        let mut process = Process::start(&forward_to(backend.address), &["--drain-timeout", "300ms"]).await;
        let mut client = Client::connect(process.address).await;
        let request =
            tokio::spawn(
                async move { client.start(Request::get("/").body(full("")).unwrap()).await.is_ok() },
            );
        until("it runs", || backend.connections() == 1).await;
        let began = std::time::Instant::now();
        process.terminate();
        assert!(process.ended().await.success());
        assert!(began.elapsed() >= Duration::from_millis(300));
        assert!(!request.await.unwrap());
    });
}

#[test]
fn a_tunnel_stays_open_while_draining_until_its_time_is_over() {
    block_on(async {
        let backend = Backend::raw(|mut stream| async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        let document = forward_to(backend.address).replace("{upstreams", "{upgrades: [connect], upstreams");
        let mut process =
            Process::start(&document, &["--drain-timeout", "4s", "--drain-grace", "10ms"]).await;
        let mut stream = TcpStream::connect(process.address).await.unwrap();
        stream.write_all(b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n").await.unwrap();
        assert!(read_head(&mut stream).await.unwrap().starts_with("HTTP/1.1 200 "));
        let began = Instant::now();
        process.terminate();
        until("it is draining", || std::net::TcpStream::connect(process.address).is_err()).await;
        for _ in 0..10 {
            stream.write_all(b"said").await.unwrap();
            let mut heard = [0; 4];
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"said");
        }
        assert!(process.ended().await.success());
        assert!(began.elapsed() >= Duration::from_secs(4));
        assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
    });
}

#[test]
fn a_drain_can_be_asked_for() {
    block_on(async {
        let backend = Backend::start(|_| std::future::pending());
        let mut process = Process::start(&forward_to(backend.address), &["--drain-timeout", "4s"]).await;
        let mut client = Client::connect(process.address).await;
        let request =
            tokio::spawn(
                async move { client.start(Request::get("/").body(full("")).unwrap()).await.is_ok() },
            );
        until("it runs", || backend.connections() == 1).await;
        let mut admin = Client::connect(process.admin).await;
        assert_eq!(admin.send(Request::post("/drain").body(full("")).unwrap()).await.status, 202);
        assert_eq!(admin.get("/readyz").await.status, 503);
        assert!(process.ended().await.success());
        assert!(!request.await.unwrap());
    });
}

#[test]
fn a_port_that_another_proxy_shares_is_taken() {
    block_on(async {
        let process = Process::start("routes: [{name: r, respond: {body: first}}]", &[]).await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, format!("listeners: [{{name: http, address: '{}'}}]", process.address))
            .unwrap();
        let admin = nobody();
        let mut second = Process {
            child: spawn(Command::new(PROGRAM), &file, admin, &[]),
            address: process.address,
            admin,
            _dir: dir,
        };
        loop {
            if second.ask("/readyz").await == Some(503) {
                let revision = Client::connect(admin).await.get("/revision").await.json();
                if let Some(rejected) = revision["rejected"].get(0) {
                    assert_eq!((&rejected["kind"], &rejected["name"]), (&"listener".into(), &"http".into()));
                    assert!(rejected["message"].as_str().unwrap().contains("another process"));
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The first proxy answers all requests.
        for _ in 0..20 {
            assert_eq!(Client::connect(process.address).await.get("/").await.text(), "first");
        }
        second.terminate();
        assert!(second.ended().await.success());
    });
}

#[test]
fn a_hand_over_leaves_what_runs_with_who_began_it() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("takeover.sock");
        let takeover = ["--takeover", path.to_str().unwrap()];
        // The backend answers when a request has arrived completely, with the path, which names the version.
        let backend = Backend::echo();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        let text = |text: &str| serde_json::to_string(text).unwrap();
        let secure = nobody();
        let document = |version: &str| {
            let forward = forward_to(backend.address)
                .replace("{upstreams", &format!("{{rewrite: {{path_prefix: '/{version}'}}, upstreams"));
            let (certificate, key) = (text(&certificate.pem()), text(&key.serialize_pem()));
            format!(
                "- {{name: secure, address: '{secure}', protocol: https, tls: {{default_certificate: c}}}}
certificates: [{{name: c, certificate: {certificate}, private_key: {key}}}]
{forward}"
            )
        };
        let mut first = Process::start(&document("v0"), &takeover).await;
        until("it offers its sockets", || path.exists()).await;
        // There are requests of each kind, whose bodies are half sent.
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let tls = Arc::new(
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth(),
        );
        let shaken = || async {
            let stream = TcpStream::connect(secure).await.unwrap();
            let name = "a.example".try_into().unwrap();
            tokio_rustls::TlsConnector::from(Arc::clone(&tls)).connect(name, stream).await.unwrap()
        };
        let half = b"POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 10\r\n\r\nhalf ";
        let mut plain = TcpStream::connect(first.address).await.unwrap();
        plain.write_all(half).await.unwrap();
        let mut encrypted = shaken().await;
        encrypted.write_all(half).await.unwrap();
        let (parts, body) = tokio::sync::mpsc::channel(2);
        let body = tokio_stream::wrappers::ReceiverStream::new(body);
        let frame =
            |text: &'static str| Ok(http_body::Frame::data(bytes::Bytes::from_static(text.as_bytes())));
        let body = http_body_util::BodyExt::boxed(http_body_util::StreamBody::new(body));
        parts.send(frame("half ")).await.unwrap();
        let mut shared = Client::connect_http2(first.address).await;
        let shared = tokio::spawn(async move { shared.send(Request::post("/").body(body).unwrap()).await });
        until("all three have reached the backend", || backend.connections() == 3).await;

        let next = first.successor(&document("v1"), &takeover);
        // New clients are served by the successor, with TLS and without, as soon as the first proxy has stopped
        // accepting.
        let ask = b"GET / HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n";
        let mut in_a_row = 0;
        let began = Instant::now();
        while in_a_row < 20 {
            assert!(began.elapsed() < Duration::from_secs(10), "the next one does not take over");
            let mut stream = TcpStream::connect(next.address).await.unwrap();
            let mut through_tls = shaken().await;
            for stream in [&mut stream as &mut (dyn Duplex + Unpin), &mut through_tls] {
                stream.write_all(ask).await.unwrap();
                let mut answer = String::new();
                let _ = stream.read_to_string(&mut answer).await;
                assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
                in_a_row = if answer.contains("/v1") { in_a_row + 1 } else { 0 };
            }
        }
        // The other requests run to their end.
        assert!(first.child.try_wait().unwrap().is_none(), "it waits for what it has begun");
        for stream in [&mut plain as &mut (dyn Duplex + Unpin), &mut encrypted] {
            stream.write_all(b"whole").await.unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer).await;
            assert!(answer.contains("half whole") && answer.contains("/v0"), "{answer}");
        }
        parts.send(frame("whole")).await.unwrap();
        drop(parts);
        let answer = shared.await.unwrap();
        assert!(answer.text().contains("half whole") && answer.text().contains("/v0"), "{}", answer.text());
        assert!(first.ended().await.success());
    });
}

trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite> Duplex for T {}

#[test]
fn a_new_version_takes_over_without_a_failed_request() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("takeover.sock");
        let takeover = ["--takeover", path.to_str().unwrap()];
        let document = |version: &str| format!("routes: [{{name: r, respond: {{body: '{version}'}}}}]");
        let mut process = Process::start(&document("v0"), &takeover).await;
        let address = process.address;
        let ended = Arc::<AtomicBool>::default();
        let answered = Arc::<AtomicUsize>::default();
        let mut clients = JoinSet::new();
        for index in 0..8 {
            let (ended, answered) = (Arc::clone(&ended), Arc::clone(&answered));
            clients.spawn(async move {
                while !ended.load(Ordering::Relaxed) {
                    // No request is ever refused, reset, or left without a response.
                    let began = Instant::now();
                    let mut stream = TcpStream::connect(address).await.unwrap();
                    if index % 4 == 0 {
                        // The client asks until it is told that the connection ends.
                        http1_until_close((began, stream), &answered, false).await;
                        continue;
                    }
                    let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
                    let sent = stream.write_all(request).await;
                    let asked = began.elapsed();
                    let mut answer = String::new();
                    let read = stream.read_to_string(&mut answer).await;
                    if asked > STOOD_STILL && answer.is_empty() {
                        continue;
                    }
                    assert!(sent.is_ok() && read.is_ok(), "{sent:?} {read:?}");
                    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        until("there is load", || answered.load(Ordering::Relaxed) > 200).await;
        until("it offers its sockets", || path.exists()).await;
        // A successor that cannot serve changes nothing.
        let mut broken = process.successor("routes: [{name: r, nonsense: 1}]", &takeover);
        let before = answered.load(Ordering::Relaxed);
        until("it goes on", || answered.load(Ordering::Relaxed) > before + 200).await;
        assert!(process.child.try_wait().unwrap().is_none());
        broken.child.kill().unwrap();
        broken.child.wait().unwrap();
        // The number of workers shrinks and grows.
        for (version, workers) in [("v1", "1"), ("v2", "3"), ("v3", "2")] {
            let more = [&takeover[..], &["--workers", workers]].concat();
            let next = process.successor(&document(version), &more);
            assert!(process.ended().await.success());
            process = next;
            let before = answered.load(Ordering::Relaxed);
            until("the load goes on", || answered.load(Ordering::Relaxed) > before + 200).await;
            for _ in 0..8 {
                assert_eq!(Client::connect(address).await.get("/").await.text(), version);
            }
            assert_eq!(process.ask("/readyz").await, Some(200));
        }
        ended.store(true, Ordering::Relaxed);
        process.terminate();
        while let Some(done) = clients.join_next().await {
            done.unwrap();
        }
        assert!(process.ended().await.success());
    });
}

#[test]
fn a_drain_goes_on_accepting_for_a_grace() {
    block_on(async {
        let document = "routes: [{name: r, respond: {body: ok}}]";
        let mut process = Process::start(document, &["--drain-grace", "5s"]).await;
        let mut admin = Client::connect(process.admin).await;
        assert_eq!(admin.send(Request::post("/drain").body(full("")).unwrap()).await.status, 202);
        // A load balancer sees it at once, and may still send.
        assert_eq!(admin.get("/readyz").await.status, 503);
        assert_eq!(admin.get("/drain").await.json()["state"], "draining");
        for _ in 0..20 {
            assert_eq!(Client::connect(process.address).await.get("/").await.text(), "ok");
        }
        assert!(process.ended().await.success());
    });
}

#[test]
fn a_limit_on_open_files_is_lived_with() {
    block_on(async {
        let backend = Backend::text("ok");
        // The limit is half of the rest after 160 files are reserved for other purposes: 220.
        let process = Process::limited(&forward_to(backend.address), 600).await;
        let mut idle = Vec::new();
        for _ in 0..150 {
            let mut client = Client::connect(process.address).await;
            assert_eq!(client.get("/").await.status, 200);
            idle.push(client);
        }
        // Beyond the limit, idle connections make room.
        for _ in 0..100 {
            assert_eq!(Client::connect(process.address).await.get("/").await.status, 200);
        }
        let files = std::fs::read_dir(format!("/proc/{}/fd", process.child.id())).unwrap().count();
        assert!(files < 600, "{files}");
    });
}

/// The open sockets of a process, by inode.
fn sockets(process: &Process) -> BTreeSet<PathBuf> {
    let files = std::fs::read_dir(format!("/proc/{}/fd", process.child.id())).unwrap();
    let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).collect()
}

#[test]
fn a_successor_that_cannot_serve_is_not_asked_whether_it_does() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let takeover = ["--takeover", dir.path().join("takeover.sock").to_str().unwrap()].map(str::to_owned);
        let takeover = takeover.each_ref().map(String::as_str);
        let old = Process::start("routes: [{name: r, respond: {body: old}}]", &takeover).await;
        until("it can be taken over", || Path::new(takeover[1]).exists()).await;
        let new = old.successor("routes: [{name: r, respond: {status: 99}}]", &takeover);
        until("it has the sockets", || !sockets(&old).is_disjoint(&sockets(&new))).await;
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(500) {
            assert_eq!(old.ask("/readyz").await, Some(200));
        }
    });
}

#[test]
fn a_successor_whose_first_revision_is_rejected_takes_over_with_the_next() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let takeover = ["--takeover", dir.path().join("takeover.sock").to_str().unwrap()].map(str::to_owned);
        let takeover = takeover.each_ref().map(String::as_str);
        let mut old = Process::start("routes: [{name: r, respond: {body: old}}]", &takeover).await;
        until("it can be taken over", || Path::new(takeover[1]).exists()).await;
        let taken = std::net::TcpListener::bind(nobody()).unwrap();
        let other = taken.local_addr().unwrap();
        let document =
            format!("- {{name: other, address: '{other}'}}\nroutes: [{{name: r, respond: {{body: new}}}}]");
        let new = old.successor(&document, &takeover);
        until("it has the sockets", || !sockets(&old).is_disjoint(&sockets(&new))).await;
        // It tries in vain to bind what it needs beside them.
        let began = Instant::now();
        until("it has tried", || began.elapsed() > Duration::from_secs(1)).await;
        assert_eq!(Client::connect(old.address).await.get("/").await.text(), "old");
        drop(taken);
        let file = new._dir.path().join("config.yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        // The file is replaced atomically, so that no part of it is read.
        std::fs::write(file.with_extension("new"), text.replace("body: new", "body: newest")).unwrap();
        std::fs::rename(file.with_extension("new"), &file).unwrap();
        assert!(old.ended().await.success());
        assert_eq!(Client::connect(new.address).await.get("/").await.text(), "newest");
    });
}

#[test]
fn what_is_cut_off_when_a_drain_ends_is_in_the_access_log() {
    block_on(async {
        let backend = Backend::start(|_| std::future::pending());
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("access.log");
        let more = ["--drain-timeout", "100ms", "--access-log", log.to_str().unwrap()];
        let mut process = Process::start(&forward_to(backend.address), &more).await;
        let mut client = Client::connect(process.address).await;
        let request = Request::get("/cut").body(full("")).unwrap();
        let request = tokio::spawn(async move { client.start(request).await.is_ok() });
        until("it runs", || backend.connections() == 1).await;
        process.terminate();
        assert!(process.ended().await.success());
        assert!(!request.await.unwrap());
        let log = std::fs::read_to_string(&log).unwrap();
        assert!(log.contains("\"path\":\"/cut\",") && log.contains("\"flags\":\"DC\""), "{log:?}");
    });
}

#[test]
fn a_client_of_http2_that_is_gone_does_not_hold_up_a_drain() {
    block_on(async {
        let mut process =
            Process::start("routes: [{name: r, respond: {body: ok}}]", &["--drain-timeout", "60s"]).await;
        let mut silent = TcpStream::connect(process.address).await.unwrap();
        // The client sends the preface and empty SETTINGS, and answers nothing.
        silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        silent.read_u8().await.unwrap();
        process.terminate();
        assert!(process.ended().await.success());
    });
}

#[test]
fn a_target_is_not_blamed_for_files_that_this_host_lacks() {
    block_on(async {
        let (allowed, waiting) = (Arc::new(Semaphore::new(0)), Arc::<AtomicUsize>::default());
        let (allow, count) = (Arc::clone(&allowed), Arc::clone(&waiting));
        let backend = Backend::start(move |_| {
            let (allow, count) = (Arc::clone(&allow), Arc::clone(&count));
            async move {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = allow.acquire().await;
                http::Response::new(full("ok"))
            }
        });
        let strict = "{name: u, connect_timeout: 10s, health_check: {passive: {consecutive_failures: 3, ejection: 1h}, \
                      active: {type: tcp, interval: 100ms, timeout: 10s, unhealthy_after: 1}, panic_threshold_percent: 0}, targets";
        let document = forward_to(backend.address).replace("{name: u, targets", strict);
        let process = Process::limited(&document, 400).await;
        let mut running = JoinSet::new();
        for _ in 0..3 {
            let Client::Http2(sender) = Client::connect_http2(process.address).await else { unreachable!() };
            for _ in 0..200 {
                let mut client = Client::Http2(sender.clone());
                running.spawn(async move { client.get("/").await.status });
            }
        }
        // Clients for which there is no file descriptor are told at once.
        for _ in 0..100 {
            assert_eq!(running.join_next().await.unwrap().unwrap(), 503);
        }
        allowed.add_permits(Semaphore::MAX_PERMITS / 2);
        let mut answered = 0;
        while let Some(status) = running.join_next().await {
            answered += usize::from(status.unwrap() == 200);
        }
        assert!(answered > 100, "{answered}");
        // Until the opened connections are closed, file descriptors may still be lacking.
        let began = Instant::now();
        while Client::connect(process.address).await.get("/").await.status != 200 {
            let told = Client::connect(process.admin).await.get("/debug/upstreams").await;
            assert!(began.elapsed() < Duration::from_secs(10), "it is ejected: {}", told.text());
        }
    });
}

#[test]
fn an_access_log_that_is_moved_away_is_opened_anew() {
    block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (log, moved) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let document = "routes: [{name: r, respond: {body: ok}}]";
        let process = Process::start(document, &["--access-log", log.to_str().unwrap()]).await;
        let has =
            |file: &Path, path: &str| std::fs::read_to_string(file).is_ok_and(|text| text.contains(path));
        let mut client = Client::connect(process.address).await;
        client.get("/before").await;
        until("it is logged", || has(&log, "/before")).await;
        std::fs::rename(&log, &moved).unwrap();
        let id = process.child.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &id]).status().unwrap().success());
        // The signal takes a moment, and earlier lines are still in the old file.
        let deadline = Instant::now() + Duration::from_secs(10);
        while !has(&log, "/after") {
            assert!(Instant::now() < deadline, "it is not opened anew");
            assert_eq!(client.get("/after").await.status, 200, "the same connection");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}
