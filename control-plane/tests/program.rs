//! The program itself: what it prints and makes at its starts, and how it ends.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::json;
use signalbox_tests::{Api, Daemon, eventually, free_port};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const PROGRAM: &str = env!("CARGO_BIN_EXE_signalbox-control-plane");

struct Program {
    daemon: Daemon,
    url: String,
}

impl Program {
    async fn start(dir: &Path, log: &str, arguments: &[&str]) -> Self {
        let (admin, xds) = (free_port(), free_port());
        let mut command = Command::new(PROGRAM);
        command
            .arg(format!("--database-url=sqlite://{}/signalbox.db", dir.display()))
            .arg(format!("--admin-address=127.0.0.1:{admin}"))
            .arg(format!("--xds-address=127.0.0.1:{xds}"))
            .args(arguments);
        let daemon = Daemon::spawn("signalbox-control-plane", &command, &dir.join(log)).unwrap();
        let program = Self { daemon, url: format!("http://127.0.0.1:{admin}") };
        let ready = format!("{}/readyz", program.url);
        let is_ready = eventually(Duration::from_secs(30), async || {
            reqwest::get(&ready).await.is_ok_and(|answer| answer.status() == 200)
        });
        assert!(is_ready.await, "{}", program.daemon.log());
        program
    }

    /// The text of a token that was printed.
    fn printed(&self, name: &str) -> Option<String> {
        let prefix = format!("{name} token: ");
        self.daemon.log().lines().find_map(|line| line.strip_prefix(&prefix).map(str::to_owned))
    }

    fn api(&self, token: &str) -> Api {
        Api::new(self.url.clone(), token).unwrap()
    }

    fn stop(mut self) {
        self.daemon.terminate();
        let status = self.daemon.wait_exit(Duration::from_secs(15)).unwrap();
        assert!(status.success(), "{status}\n{}", self.daemon.log());
    }
}

#[tokio::test]
async fn the_first_start_makes_tokens_and_a_listener_and_later_ones_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let first = Program::start(dir.path(), "first", &[]).await;
    let (admin, proxy) = (first.printed("admin").unwrap(), first.printed("proxy").unwrap());
    let api = first.api(&admin);
    let revision = api.get("/revisions/1").await.unwrap();
    assert_eq!((&revision["author"], &revision["changes"][0]["name"]), (&json!("signalbox"), &json!("http")));
    assert_eq!(api.get("/listeners/http").await.unwrap()["address"], "0.0.0.0:8080");
    assert_eq!(first.api(&proxy).call(Method::GET, "/routes", None).await.unwrap().status, 403);
    // A stream that is open does not hold up the end.
    let events = api.request(Method::GET, "/events").send().await.unwrap();
    first.stop();
    drop(events);

    let second = Program::start(dir.path(), "second", &[]).await;
    assert_eq!(second.printed("admin"), None);
    let api = second.api(&admin);
    assert_eq!(api.head().await.unwrap(), 1, "no second listener was made");
    api.delete("listeners", "http").await.unwrap();
    second.stop();

    // What is configured takes the place of what was made.
    let third = Program::start(dir.path(), "third", &["--admin-token=configured-for-the-third"]).await;
    assert_eq!(third.printed("proxy"), None);
    let api = third.api("configured-for-the-third");
    assert_eq!(api.get("/listeners").await.unwrap()["items"], json!([]), "what was deleted stays deleted");
    assert_eq!(third.api(&admin).call(Method::GET, "/routes", None).await.unwrap().status, 401);
    let log = third.daemon.log();
    assert!(!log.contains("configured-for-the-third") && !log.contains(&proxy), "{log}");
    third.stop();
}

#[tokio::test]
async fn a_new_epoch_is_started_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    Program::start(dir.path(), "first", &[]).await.stop();
    let second = Program::start(dir.path(), "second", &["--new-epoch", "--log-format=json"]).await;
    let log = second.daemon.log();
    let line = log.lines().find(|line| line.contains("a new epoch was started")).expect(&log);
    let entry: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(entry["revision"], 1);
    second.stop();
}

#[tokio::test]
async fn the_admin_address_speaks_tls() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (admin, xds) = (free_port(), free_port());
    let mut command = Command::new(PROGRAM);
    command
        .arg(format!("--database-url=sqlite://{}/signalbox.db", dir.path().display()))
        .arg(format!("--admin-address=127.0.0.1:{admin}"))
        .arg(format!("--xds-address=127.0.0.1:{xds}"))
        .arg(format!("--admin-tls-cert={}", cert.display()))
        .arg(format!("--admin-tls-key={}", key.display()));
    let mut daemon = Daemon::spawn("signalbox-control-plane", &command, &dir.path().join("log")).unwrap();

    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let ask = async || -> std::io::Result<String> {
        let stream = TcpStream::connect(("127.0.0.1", admin)).await?;
        let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    let is_ready = eventually(Duration::from_secs(30), async || {
        ask().await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
    });
    assert!(is_ready.await, "{}", daemon.log());
    // A client without TLS gets no answer, and holds nothing up.
    assert!(reqwest::get(format!("http://127.0.0.1:{admin}/readyz")).await.is_err());
    daemon.terminate();
    assert!(daemon.wait_exit(Duration::from_secs(15)).unwrap().success());
}

#[test]
fn the_openapi_document_is_printed_without_starting() {
    let output = Command::new(PROGRAM).arg("--openapi").output().unwrap();
    assert!(output.status.success());
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
}

#[test]
fn a_flag_that_is_wrong_is_told_and_nothing_is_started() {
    for arguments in
        [&["--admin-address=nowhere"][..], &["--admin-tls-cert=x.pem"], &["--database-url=mysql://x"]]
    {
        let output = Command::new(PROGRAM)
            .args(["--admin-address=127.0.0.1:0", "--xds-address=127.0.0.1:0"].iter().filter(|default| {
                !arguments.iter().any(|given| given.split('=').next() == default.split('=').next())
            }))
            .args(arguments)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}
