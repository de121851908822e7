//! TLS with clients and with targets.

mod certificates;
mod targets;

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore, ServerConfig};
use signalbox_proxy::telemetry::access_log;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::harness::{Answer, Backend, Client, Harness, block_on, block_on_alone, forward_to, full, until};
use crate::ocsp::with_time;
use crate::telling::lines;

pub(crate) type Authority = CertifiedIssuer<'static, KeyPair>;

pub(crate) fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate and its key.
pub(crate) struct Issued {
    certificate: String,
    key: String,
}

pub(crate) fn issued(names: &[&str], by: &Authority) -> Issued {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "alice");
    let certificate = params.signed_by(&key, by).unwrap();
    Issued { certificate: certificate.pem(), key: key.serialize_pem() }
}

impl Issued {
    /// The certificate as a resource.
    pub(crate) fn resource(&self, name: &str) -> String {
        let text = |text: &str| serde_json::to_string(text).unwrap();
        format!(
            "{{name: {name}, certificate: {}, private_key: {}}}",
            text(&self.certificate),
            text(&self.key)
        )
    }

    fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }

    fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }
}

/// A document with an https listener, certificates, and more.
pub(crate) fn https(tls: &str, certificates: &[String], more: &str) -> String {
    format!(
        "listeners: [{{name: http, address: '127.0.0.1:8443', protocol: https, tls: {{{tls}}}}}]
certificates: [{}]
{more}",
        certificates.join(", ")
    )
}

const HELLO: &str = "routes: [{name: all, respond: {body: hello}}]";

fn roots(ca: &Authority) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(ca.as_ref().der().clone()).unwrap();
    roots
}

/// A client that trusts `ca`.
pub(crate) struct Tls {
    config: ClientConfig,
}

impl Tls {
    fn trusting(ca: &Authority) -> Self {
        Self::of(ca, None, rustls::DEFAULT_VERSIONS)
    }

    pub(crate) fn of(
        ca: &Authority,
        shown: Option<&Issued>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots(ca));
        let config = match shown {
            Some(shown) => builder.with_client_auth_cert(vec![shown.der()], shown.key_der()).unwrap(),
            None => builder.with_no_client_auth(),
        };
        Self { config }
    }

    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
        name: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.over(TcpStream::connect(address).await.unwrap(), name).await
    }

    async fn over(&self, stream: TcpStream, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let connector = TlsConnector::from(Arc::new(self.config.clone()));
        connector.connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await
    }

    /// Sends one request over HTTP/1.1, and returns the kind of handshake.
    async fn get(&self, address: SocketAddr, name: &str) -> std::io::Result<(Answer, HandshakeKind)> {
        Self::ask(self.connect(address, name).await?, name).await
    }

    /// A client with one connection over HTTP/1.1.
    pub(crate) async fn client(&self, address: SocketAddr, name: &str) -> Client {
        let stream = self.connect(address, name).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.without_shutdown());
        Client::Http1(sender)
    }

    async fn ask(stream: TlsStream<TcpStream>, name: &str) -> std::io::Result<(Answer, HandshakeKind)> {
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        let connection = tokio::spawn(connection.without_shutdown());
        let mut client = Client::Http1(sender);
        let request = Request::get("/x").header("host", name).body(full("")).unwrap();
        let answer = client.start(request).await.map_err(std::io::Error::other)?;
        let answer = Answer::of(answer).await.map_err(std::io::Error::other)?;
        drop(client);
        let parts = connection.await.unwrap().map_err(std::io::Error::other)?;
        let kind = parts.io.into_inner().get_ref().1.handshake_kind().unwrap();
        Ok((answer, kind))
    }
}

/// The value of a series in the metrics.
fn metric(harness: &Harness, series: &str) -> u64 {
    let text = crate::telling::metrics(harness);
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} is not in {text}")).parse().unwrap()
}

fn failures(harness: &Harness, reason: &str) -> u64 {
    metric(harness, &format!("signalbox_tls_handshake_failures_total{{reason=\"{reason}\"}}"))
}

#[test]
fn a_client_is_shown_the_certificate_of_the_name_it_asks_for() {
    block_on(async {
        let ca = authority("ca");
        let [exact, wildcard, other] =
            [&["a.example.com"][..], &["*.example.com"], &["other.example"]].map(|names| issued(names, &ca));
        let all = [exact.resource("exact"), wildcard.resource("wildcard"), other.resource("other")];
        let mut harness = Harness::start(&https("", &all, HELLO));
        let shown = async |name: &str| {
            let stream = Tls::trusting(&ca).connect(harness.address(), name).await?;
            let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
            Ok::<_, std::io::Error>(shown)
        };
        assert_eq!(shown("a.example.com").await.unwrap(), exact.der());
        assert_eq!(shown("b.example.com").await.unwrap(), wildcard.der());
        for name in ["example.com", "a.b.example.com", "nobody.example", "127.0.0.1"] {
            let error = shown(name).await.unwrap_err();
            assert!(error.to_string().contains("UnrecognisedName"), "{name}: {error}");
        }
        until("they are counted", || failures(&harness, "no_certificate") == 4).await;

        harness.apply(&https("default_certificate: other", &all, HELLO)).unwrap();
        let error = Tls::trusting(&ca).connect(harness.address(), "nobody.example").await.unwrap_err();
        assert!(error.to_string().contains("other.example"), "the default is shown: {error}");
        let rest = [exact.resource("exact")];
        harness.apply(&https("", &rest, HELLO)).unwrap();
        Tls::trusting(&ca).connect(harness.address(), "b.example.com").await.unwrap_err();
        let until = metric(&harness, "signalbox_certificate_not_after_seconds{certificate=\"exact\"}");
        assert!(until > 60_000_000_000, "rcgen's are good until the year 4096: {until}");
    });
}

#[test]
fn requests_come_over_both_protocols_and_say_so() {
    block_on(async {
        let ca = authority("ca");
        let backend = Backend::echo();
        let certificate = [issued(&["a.example"], &ca).resource("c")];
        let harness = Harness::start(&https("", &certificate, &forward_to(backend.address)));
        let (answer, _) = Tls::trusting(&ca).get(harness.address(), "a.example").await.unwrap();
        assert!(answer.text().contains(r#"["x-forwarded-proto","https"]"#), "{}", answer.text());

        let mut tls = Tls::trusting(&ca);
        tls.config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let stream = tls.connect(harness.address(), "a.example").await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut client = Client::Http2(sender);
        // The body is larger than a TLS record, and than the kernel's buffer.
        let body = "x".repeat(1 << 20);
        let answer = client.send(Request::post("/").body(full(body.clone())).unwrap()).await;
        assert_eq!(answer.json()["body"].as_str().map(str::len), Some(body.len()));

        tls.config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = tls.connect(harness.address(), "a.example").await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    });
}

#[test]
fn sessions_are_resumed_by_whichever_worker() {
    block_on(async {
        let ca = authority("ca");
        let certificate = issued(&["a.example"], &ca);
        let mut harness = Harness::start(&https("", &[certificate.resource("c")], HELLO));
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let tls = Tls::of(&ca, None, &[version]);
            let (_, first) = tls.get(harness.address(), "a.example").await.unwrap();
            assert_ne!(first, HandshakeKind::Resumed);
            for _ in 0..8 {
                let (_, again) = tls.get(harness.address(), "a.example").await.unwrap();
                assert_eq!(again, HandshakeKind::Resumed, "{version:?}");
            }
            // This holds beyond a change of the certificate.
            let renewed = issued(&["a.example"], &ca);
            harness.apply(&https("", &[renewed.resource("c")], HELLO)).unwrap();
            let (_, again) = tls.get(harness.address(), "a.example").await.unwrap();
            assert_eq!(again, HandshakeKind::Resumed);
        }
        assert_eq!(metric(&harness, "signalbox_tls_handshakes_total{resumed=\"true\"}"), 18);
    });
}

#[test]
fn a_load_balancer_says_who_the_client_is_before_the_handshake() {
    block_on(async {
        let ca = authority("ca");
        let backend = Backend::echo();
        let certificate = issued(&["a.example"], &ca).resource("c");
        let harness = Harness::start(&format!(
            "listeners: [{{name: http, address: '127.0.0.1:8443', protocol: https, proxy_protocol: accept, \
             trusted_proxies: [127.0.0.1]}}]
certificates: [{certificate}]
{}",
            forward_to(backend.address)
        ));
        for (header, client) in
            [(&b"PROXY TCP4 203.0.113.9 192.0.2.1 1 2\r\n"[..], "203.0.113.9"), (b"", "127.0.0.1")]
        {
            let mut stream = TcpStream::connect(harness.address()).await.unwrap();
            stream.write_all(header).await.unwrap();
            let stream = Tls::trusting(&ca).over(stream, "a.example").await.unwrap();
            let (answer, _) = Tls::ask(stream, "a.example").await.unwrap();
            let told = format!(r#"["x-forwarded-for","{client}"]"#);
            assert!(answer.text().contains(&told), "{told} is not in {}", answer.text());
        }
    });
}

#[test]
fn the_lowest_version_is_kept_to() {
    block_on(async {
        let ca = authority("ca");
        let certificate = [issued(&["a.example"], &ca).resource("c")];
        let mut harness = Harness::start(&https("", &certificate, HELLO));
        let old = Tls::of(&ca, None, &[&rustls::version::TLS12]);
        let stream = old.connect(harness.address(), "a.example").await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_2));
        harness.apply(&https("min_version: '1.3'", &certificate, HELLO)).unwrap();
        old.connect(harness.address(), "a.example").await.unwrap_err();
        Tls::trusting(&ca).connect(harness.address(), "a.example").await.unwrap();
        until("it is counted", || failures(&harness, "incompatible") == 1).await;
    });
}

#[test]
fn a_clients_certificate_is_asked_for_checked_and_told() {
    block_on(async {
        let ca = authority("ca");
        let clients = authority("clients");
        let (alice, stranger) =
            (issued(&["alice.example"], &clients), issued(&["alice.example"], &authority("clients")));
        let backend = Backend::echo();
        let certificate = [issued(&["a.example"], &ca).resource("c")];
        let asked = |mode: &str| {
            let ca = serde_json::to_string(&clients.as_ref().pem()).unwrap();
            https(
                &format!("client_auth: {{mode: {mode}, ca: {ca}}}"),
                &certificate,
                &forward_to(backend.address),
            )
        };
        let mut harness = Harness::start(&asked("optional"));
        let nobody = Tls::trusting(&ca);
        let with = |shown: &Issued| Tls::of(&ca, Some(shown), rustls::DEFAULT_VERSIONS);
        let address = harness.address();
        let (answer, _) = with(&alice).get(address, "a.example").await.unwrap();
        for told in [
            r#"["x-client-cert-subject","CN=alice"]"#,
            r#"["x-client-cert-san","DNS:alice.example"]"#,
            r#"["x-client-cert-fingerprint",""#,
        ] {
            assert!(answer.text().contains(told), "{told} is not in {}", answer.text());
        }
        let (answer, _) = nobody.get(address, "a.example").await.unwrap();
        assert!(!answer.text().contains("x-client-cert"));
        assert!(with(&stranger).get(address, "a.example").await.is_err());
        until("it is counted", || failures(&harness, "client_certificate") == 1).await;

        // A handshake under weaker requirements is not enough under stronger ones, not even for resumption.
        harness.apply(&asked("required")).unwrap();
        assert!(nobody.get(address, "a.example").await.is_err());
        assert!(with(&stranger).get(address, "a.example").await.is_err());
        let (answer, _) = with(&alice).get(address, "a.example").await.unwrap();
        assert!(answer.text().contains("CN=alice"));
        until("they are counted", || failures(&harness, "client_certificate") == 3).await;
    });
}

#[test]
fn a_certificate_is_replaced_without_a_failed_request() {
    block_on(async {
        let ca = authority("ca");
        let backend = Backend::text("hello");
        let document =
            |certificate: &Issued| https("", &[certificate.resource("c")], &forward_to(backend.address));
        let first = issued(&["a.example"], &ca);
        let mut harness = Harness::start(&document(&first));
        let address = harness.address();
        let held = Tls::trusting(&ca).connect(address, "a.example").await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(held)).await.unwrap();
        tokio::spawn(connection);
        let mut held = Client::Http1(sender);

        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let (tls, stop, answered) = (Tls::trusting(&ca), Arc::clone(&stop), Arc::clone(&answered));
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let (answer, _) = tls.get(address, "a.example").await.expect("no failed request");
                        assert_eq!((answer.status, answer.text()), (200, "hello"));
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let mut last = first;
        for _ in 0..10 {
            let before = answered.load(Ordering::Relaxed);
            until("there is load", || answered.load(Ordering::Relaxed) >= before + 10).await;
            last = issued(&["a.example"], &ca);
            harness.apply(&document(&last)).unwrap();
            assert_eq!(held.get("/").await.text(), "hello", "the connection of before goes on");
        }
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.unwrap();
        }
        let stream = Tls::trusting(&ca).connect(address, "a.example").await.unwrap();
        assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], last.der());
    });
}

#[test]
fn who_does_not_come_to_an_end_with_its_handshake_is_left() {
    block_on(async {
        let ca = authority("ca");
        let certificate = issued(&["a.example"], &ca).resource("c");
        let document = format!(
            "listeners: [{{name: http, address: '127.0.0.1:8443', protocol: https, limits: {{header_timeout: 1s}}}}]
certificates: [{certificate}]
{HELLO}"
        );
        let harness = Harness::start(&document);
        let mut silent = TcpStream::connect(harness.address()).await.unwrap();
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
        until("it is counted", || failures(&harness, "timeout") == 1).await;
        let mut plain = TcpStream::connect(harness.address()).await.unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        // The client sees the alert, or a reset.
        let _ = plain.read_to_end(&mut answer).await;
        until("it is counted", || failures(&harness, "malformed") == 1).await;
    });
}

#[test]
fn http_is_redirected_to_https_with_one_field() {
    block_on(async {
        let harness = Harness::start("routes: [{name: all, redirect: {scheme: https}}]");
        let answer = harness.get("/x?y=1").await;
        assert_eq!(answer.headers["location"], "https://test.example/x?y=1");
        assert!((301..=308).contains(&answer.status));
    });
}

#[test]
fn a_redirect_elsewhere_stays_with_tls() {
    block_on(async {
        let ca = authority("ca");
        let certificate = [issued(&["a.example"], &ca).resource("c")];
        let harness = Harness::start(&https(
            "",
            &certificate,
            "routes: [{name: all, redirect: {host: new.example, port: 8443}}]",
        ));
        let mut stream = Tls::trusting(&ca).connect(harness.address(), "a.example").await.unwrap();
        stream.write_all(b"GET /x HTTP/1.1\r\nhost: a.example\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.contains("location: https://new.example:8443/x\r\n"), "{answer}");
        // A load balancer in front of this proxy may terminate TLS and report it.
        for (trusted, scheme) in [("127.0.0.0/8", "https"), ("192.0.2.1", "http")] {
            let harness = Harness::start(&format!(
                "listeners: [{{name: http, address: '127.0.0.1:8080', trusted_proxies: ['{trusted}']}}]
routes: [{{name: all, redirect: {{host: new.example}}}}]"
            ));
            let request = Request::get("/x").header("x-forwarded-proto", "https").body(full("")).unwrap();
            let answer = Client::connect(harness.address()).await.send(request).await;
            assert_eq!(answer.headers["location"], format!("{scheme}://new.example/x"));
        }
    });
}

#[test]
fn openssl_and_curl_are_served() {
    block_on(async {
        let ca = authority("ca");
        let directory = tempfile::tempdir().unwrap();
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, ca.as_ref().pem()).unwrap();
        let session = directory.path().join("session");
        let certificate = [issued(&["a.example"], &ca).resource("c")];
        let harness = Harness::start(&https("", &certificate, HELLO));
        let port = harness.address().port();
        let openssl = |more: &[&str]| {
            let mut command = Command::new("openssl");
            command.args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-CAfile"]);
            command.arg(&ca_file).args(["-servername", "a.example", "-verify_return_error"]).args(more);
            command.stdin(Stdio::null());
            tokio::task::block_in_place(|| command.output()).expect("openssl is there")
        };
        let stdout = |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
        for version in ["-tls1_2", "-tls1_3"] {
            let first = openssl(&[version, "-alpn", "h2", "-sess_out", session.to_str().unwrap()]);
            assert!(stdout(&first).contains("Verify return code: 0"), "{}", stdout(&first));
            assert!(stdout(&first).contains("ALPN protocol: h2"));
            if version == "-tls1_2" {
                let again = openssl(&[version, "-sess_in", session.to_str().unwrap()]);
                assert!(stdout(&again).contains("Reused, TLSv1.2"), "{}", stdout(&again));
            }
        }
        assert!(!openssl(&["-tls1_1"]).status.success());

        let curl = |more: &[&str]| {
            let mut command = Command::new("curl");
            command.args(["-sS", "--cacert"]).arg(&ca_file).args(more);
            command.args(["--resolve", &format!("a.example:{port}:127.0.0.1")]);
            command.args(["-w", " %{http_version}", &format!("https://a.example:{port}/")]);
            let output = tokio::task::block_in_place(|| command.output()).expect("curl is there");
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(curl(&["--http1.1"]), "hello 1.1");
        assert_eq!(curl(&["--http2"]), "hello 2");
    });
}

#[test]
fn a_port_in_the_server_name_is_ignored() {
    block_on(async {
        let ca = authority("ca");
        let directory = tempfile::tempdir().unwrap();
        let ca_file = directory.path().join("ca.pem");
        std::fs::write(&ca_file, ca.as_ref().pem()).unwrap();
        let session = directory.path().join("session");
        // Each name has its own certificate, so a successful verification shows that the right one was chosen.
        let certificates =
            [("b.example", "b"), ("a.example", "a")].map(|(name, own)| issued(&[name], &ca).resource(own));
        let harness = Harness::start(&https("default_certificate: b", &certificates, HELLO));
        let port = harness.address().port();
        let openssl = |name: &str, more: &[&str]| {
            let mut command = Command::new("openssl");
            command.args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-CAfile"]).arg(&ca_file);
            command.args(["-servername", name, "-verify_return_error", "-verify_hostname", "a.example"]);
            command.args(more).stdin(Stdio::null());
            let output = tokio::task::block_in_place(|| command.output()).expect("openssl is there");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let session = session.to_str().unwrap();
        for version in ["-tls1_2", "-tls1_3"] {
            for name in ["a.example:8443", "a.example:1", "A.example:65535"] {
                let told = openssl(name, &[version, "-alpn", "h2", "-sess_out", session]);
                assert!(told.contains("Verify return code: 0"), "{version} {name}: {told}");
                assert!(told.contains("ALPN protocol: h2"), "{told}");
            }
        }
        let told = openssl("a.example:8443", &["-tls1_2", "-sess_out", session]);
        assert!(told.contains("Verify return code: 0"), "{told}");
        let again = openssl("a.example:8443", &["-tls1_2", "-sess_in", session]);
        assert!(again.contains("Reused, TLSv1.2"), "{again}");
        // A name with an invalid port remains invalid.
        assert!(!openssl("a.example:http", &["-alpn", "h2"]).contains("ALPN protocol: h2"));

        // Data flows in both directions.
        let mut command = Command::new("openssl");
        command.args([
            "s_client",
            "-quiet",
            "-connect",
            &format!("127.0.0.1:{port}"),
            "-servername",
            "a.example:8443",
        ]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let output = tokio::task::block_in_place(|| {
            let mut child = command.spawn().expect("openssl is there");
            let mut input = child.stdin.take().unwrap();
            std::io::Write::write_all(
                &mut input,
                b"GET / HTTP/1.1\r\nhost: a.example:8443\r\nconnection: close\r\n\r\n",
            )
            .unwrap();
            let output = child.wait_with_output().unwrap();
            drop(input);
            output
        });
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
    });
}

/// A way to `to` on which each ClientHello lies in many small records, each in a segment of its own. Returns its address.
async fn splitting_hellos(to: SocketAddr) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(to).await.unwrap();
            server.set_nodelay(true).unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
            tokio::spawn(async move {
                let mut head = [0; 5];
                while from_client.read_exact(&mut head).await.is_ok() {
                    let mut content = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
                    from_client.read_exact(&mut content).await.unwrap();
                    let is_hello = head[0] == 22 && content.first() == Some(&1);
                    for part in content.chunks(if is_hello { 37 } else { content.len().max(1) }) {
                        let length = (part.len() as u16).to_be_bytes();
                        let record = [&head[..3], &length, part].concat();
                        if to_server.write_all(&record).await.is_err() {
                            return;
                        }
                        // The next one comes after this one was read.
                        tokio::task::yield_now().await;
                    }
                }
                let _ = to_server.shutdown().await;
            });
        }
    });
    address
}

#[test]
fn a_port_in_the_server_name_is_ignored_however_the_handshake_goes() {
    block_on(async {
        let ca = authority("ca");
        let directory = tempfile::tempdir().unwrap();
        let alice = issued(&["alice"], &ca);
        for (file, text) in
            [("ca.pem", &ca.as_ref().pem()), ("alice.pem", &alice.certificate), ("alice.key", &alice.key)]
        {
            std::fs::write(directory.path().join(file), text).unwrap();
        }
        let text = serde_json::to_string(&ca.as_ref().pem()).unwrap();
        let own = [issued(&["a.example"], &ca).resource("a")];
        let asks = format!("client_auth: {{mode: required, ca: {text}}}");
        let [open, strict] = ["", &asks].map(|tls| Harness::start(&https(tls, &own, HELLO)));
        // A client that first offers a group that the proxy does not have is asked for another.
        let again = ["-groups", "P-521:X25519"];
        let shown = ["-cert", "alice.pem", "-key", "alice.key"];
        for (harness, more, hellos) in [
            (&open, &[][..], 1),
            (&open, &["-tls1_2"], 1),
            (&open, &again, 2),
            (&strict, &shown, 1),
            (&strict, &[&shown[..], &["-tls1_2"]].concat(), 1),
            (&strict, &[&shown[..], &again].concat(), 2),
        ] {
            let split = splitting_hellos(harness.address()).await;
            for address in [harness.address(), split] {
                for name in ["a.example:8443", "a.example"] {
                    let mut command = Command::new("openssl");
                    command.args(["s_client", "-msg", "-ign_eof", "-connect", &address.to_string()]);
                    command.args([
                        "-CAfile",
                        "ca.pem",
                        "-verify_return_error",
                        "-verify_hostname",
                        "a.example",
                    ]);
                    command.args(["-servername", name]).args(more).current_dir(&directory);
                    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
                    let output = tokio::task::block_in_place(|| {
                        let mut child = command.spawn().expect("openssl is there");
                        let request = b"GET / HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n";
                        let written = std::io::Write::write_all(&mut child.stdin.take().unwrap(), request);
                        (child.wait_with_output().unwrap(), written)
                    });
                    let told = String::from_utf8_lossy(&output.0.stdout);
                    let case = format!("{more:?} {name} split: {}: {told}", address == split);
                    assert!(told.contains("HTTP/1.1 200") && told.contains("hello"), "{case}");
                    assert_eq!(told.matches(", ClientHello").count(), hellos, "{case}");
                }
            }
        }
        // A client without a certificate is still refused.
        let mut command = Command::new("openssl");
        command.args(["s_client", "-tls1_2", "-connect", &strict.address().to_string()]);
        command.args(["-servername", "a.example:8443"]).stdin(Stdio::null());
        let output = tokio::task::block_in_place(|| command.output()).expect("openssl is there");
        assert!(!output.status.success());
    });
}

#[test]
fn clients_that_say_nothing_keep_nobody_out() {
    block_on_alone(async {
        let ca = authority("ca");
        let certificate = [issued(&["a.example"], &ca).resource("c")];
        let harness = Harness::with(&https("", &certificate, HELLO), |settings| settings.workers = 1);
        // As many handshakes as allowed are open, some silent, some begun.
        let mut silent = Vec::new();
        let mut hello = Vec::new();
        let name = ServerName::try_from("a.example").unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(Tls::trusting(&ca).config), name).unwrap();
        client.write_tls(&mut hello).unwrap();
        for number in 0..2200 {
            let mut stream = TcpStream::connect(harness.address()).await.unwrap();
            if number % 2 == 1 {
                stream.write_all(&hello).await.unwrap();
            }
            silent.push(stream);
        }
        until("the oldest have given way", || failures(&harness, "overload") >= 76).await;
        for _ in 0..3 {
            let (answer, _) = Tls::trusting(&ca).get(harness.address(), "a.example").await.unwrap();
            assert_eq!(answer.text(), "hello");
        }
        // The newest are still waited for.
        assert!(failures(&harness, "overload") < 200);
        let _ = tokio::time::timeout(Duration::from_secs(5), silent[2199].readable()).await.unwrap();
    });
}

#[test]
fn a_session_is_not_resumed_after_the_clients_certificate_has_expired() {
    block_on(async {
        let ca = authority("ca");
        let clients = authority("clients");
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["alice.example".to_owned()]).unwrap();
        let until_then = std::time::SystemTime::now() + Duration::from_secs(8);
        params.not_after = until_then.into();
        let certificate = params.signed_by(&key, &clients).unwrap();
        let alice = Issued { certificate: certificate.pem(), key: key.serialize_pem() };
        let text = serde_json::to_string(&clients.as_ref().pem()).unwrap();
        let own = [issued(&["a.example"], &ca).resource("c")];
        let harness =
            Harness::start(&https(&format!("client_auth: {{mode: required, ca: {text}}}"), &own, HELLO));
        let client = Tls::of(&ca, Some(&alice), rustls::DEFAULT_VERSIONS);
        let (_, kind) = client.get(harness.address(), "a.example").await.unwrap();
        assert_eq!(kind, HandshakeKind::Full);
        let (_, kind) = client.get(harness.address(), "a.example").await.unwrap();
        assert_eq!(kind, HandshakeKind::Resumed);
        until("it has expired", || std::time::SystemTime::now() > until_then + Duration::from_millis(1100))
            .await;
        client.get(harness.address(), "a.example").await.unwrap_err();
        until("it is counted", || failures(&harness, "client_certificate") == 1).await;
    });
}

#[test]
fn an_open_connection_does_not_pass_for_one_that_has_shown_more() {
    block_on(async {
        let ca = authority("ca");
        let clients = authority("clients");
        let text = serde_json::to_string(&clients.as_ref().pem()).unwrap();
        let certificate = [issued(&["a.example"], &ca).resource("c")];
        let mut harness = Harness::start(&https("", &certificate, HELLO));
        let stream = Tls::trusting(&ca).connect(harness.address(), "a.example").await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut client = Client::Http1(sender);
        assert_eq!(client.get("/").await.text(), "hello");
        harness
            .apply(&https(&format!("client_auth: {{mode: required, ca: {text}}}"), &certificate, HELLO))
            .unwrap();
        // The next request is answered under the listener's old settings, and is the last.
        let answer = client.get("/").await;
        assert_eq!(
            (answer.text(), &answer.headers["connection"]),
            ("hello", &"close".parse::<http::HeaderValue>().unwrap())
        );
        tokio::time::timeout(Duration::from_secs(5), connection).await.unwrap().unwrap().unwrap();
    });
}

#[test]
fn an_answer_that_is_taken_slowly_through_tls_arrives_whole() {
    block_on(async {
        let ca = authority("ca");
        let certificate = [issued(&["a.example"], &ca).resource("c")];
        let size = 8 << 20;
        let backend = Backend::start(move |_| async move { Response::new(full(vec![b'x'; size])) });
        let harness = Harness::start(&https("", &certificate, &forward_to(backend.address)));
        let mut stream = Tls::trusting(&ca).connect(harness.address(), "a.example").await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await.unwrap();
        // The response is read until only the sockets' buffers hold some, so that the proxy has the last part and
        // waits; then nothing is read for longer than an idle connection keeps its buffers.
        let mut read = vec![0; 1 << 16];
        let mut left = size;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        for rest in [7 << 20, 6 << 20, 4 << 20, 3 << 20, 2 << 20, 1 << 20, 600 << 10, 300 << 10, 0_usize] {
            let began = Instant::now();
            until("the client pauses", || began.elapsed() > Duration::from_millis(1300)).await;
            while left > rest {
                let got = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut read)).await;
                let got = got.expect("the answer goes on").unwrap();
                assert!(got > 0, "{left} bytes are missing");
                left -= got;
            }
        }
    });
}
