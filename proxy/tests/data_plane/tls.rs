//! TLS with clients and with targets.

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
    let text = harness.proxy.counted(|shared, compiled, labels, applies| {
        signalbox_proxy::metrics::render(shared, compiled, labels, applies, &Default::default())
    });
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
fn keys_of_every_usual_kind_and_form_serve() {
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let openssl = |args: &[&str]| {
            let mut command = Command::new("openssl");
            command.args(args).current_dir(&directory).stdin(Stdio::null());
            let output = tokio::task::block_in_place(|| command.output()).expect("openssl is there");
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let read = |file: &str| std::fs::read_to_string(directory.path().join(file)).unwrap();
        for (kind, form, begins) in [
            (&["-newkey", "rsa:2048"][..], &[][..], "-----BEGIN PRIVATE KEY"),
            (&["-newkey", "rsa:3072"], &["rsa", "-traditional"], "-----BEGIN RSA PRIVATE KEY"),
            (&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"], &[], "-----BEGIN PRIVATE KEY"),
            (&["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"], &["ec"], "-----BEGIN EC PRIVATE KEY"),
            (&["-newkey", "ed25519"], &[], "-----BEGIN PRIVATE KEY"),
        ] {
            let made = [
                &["req", "-x509", "-nodes", "-subj", "/CN=a", "-addext", "subjectAltName=DNS:a.example"][..],
                &["-keyout", "key.pem", "-out", "certificate.pem"],
                kind,
            ]
            .concat();
            openssl(&made);
            if !form.is_empty() {
                openssl(&[form, &["-in", "key.pem", "-out", "key.pem"]].concat());
            }
            let own = Issued { certificate: read("certificate.pem"), key: read("key.pem") };
            assert!(own.key.starts_with(begins), "{form:?}");
            let harness = Harness::start(&https("", &[own.resource("c")], HELLO));
            let port = harness.address().port();
            for version in ["--tlsv1.3", "--tls-max"] {
                let mut command = Command::new("curl");
                command.args(["-sS", "--cacert", "certificate.pem", version]);
                command.args((version == "--tls-max").then_some("1.2"));
                command.args(["--resolve", &format!("a.example:{port}:127.0.0.1")]);
                command.arg(format!("https://a.example:{port}/")).current_dir(&directory);
                let output = tokio::task::block_in_place(|| command.output()).expect("curl is there");
                let error = String::from_utf8_lossy(&output.stderr);
                assert_eq!(String::from_utf8_lossy(&output.stdout), "hello", "{kind:?} {version}: {error}");
            }
        }
    });
}

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

fn openssl(arguments: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command.args(arguments).stdin(Stdio::null());
    let output = tokio::task::block_in_place(|| command.output()).expect("openssl is there");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An authority's OCSP response about a certificate that it has issued, for the next seven days, in DER.
fn ocsp_response(ca: &Authority, own: &Issued) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(file("ca.pem"), ca.as_ref().pem()).unwrap();
    std::fs::write(file("ca.key"), ca.key().serialize_pem()).unwrap();
    std::fs::write(file("own.pem"), &own.certificate).unwrap();
    let serial = openssl(&["x509", "-in", &file("own.pem"), "-noout", "-serial"]);
    let serial = serial.trim().trim_start_matches("serial=").to_owned();
    // openssl's own format of an authority's database.
    std::fs::write(file("index"), format!("V\t400101000000Z\t\t{serial}\tunknown\t/CN=alice\n")).unwrap();
    let [index, ca_file, ca_key, own_file, told] =
        ["index", "ca.pem", "ca.key", "own.pem", "ocsp.der"].map(file);
    openssl(&[
        "ocsp", "-index", &index, "-rsigner", &ca_file, "-rkey", &ca_key, "-CA", &ca_file, "-issuer",
        &ca_file, "-cert", &own_file, "-respout", &told, "-ndays", "7",
    ]);
    std::fs::read(told).unwrap()
}

/// `own` as a resource `c` with this response.
fn stapled(own: &Issued, response: &[u8]) -> String {
    use base64::Engine as _;
    let staple = base64::prelude::BASE64_STANDARD.encode(response);
    own.resource("c").replace("private_key:", &format!("ocsp_staple: {staple}, private_key:"))
}

/// openssl's report of the handshake.
fn asked_by_openssl(address: SocketAddr, more: &[&str]) -> String {
    let connect = address.to_string();
    let command = ["s_client", "-connect", &connect, "-servername", "a.example", "-status"];
    openssl(&[&command, more].concat())
}

#[test]
fn what_an_authority_says_of_revocation_is_stapled_as_long_as_it_is_good() {
    block_on(async {
        let ca = authority("ca");
        let own = issued(&["a.example"], &ca);
        let response = ocsp_response(&ca, &own);
        let mut harness = Harness::start(&https("", &[stapled(&own, &response)], HELLO));
        let address = harness.address();
        for version in ["-tls1_2", "-tls1_3"] {
            let said = asked_by_openssl(address, &[version]);
            assert!(said.contains("OCSP Response Status: successful"), "{said}");
            assert!(said.contains("Cert Status: good"), "{said}");
        }
        // The chain includes the issuer's certificate, whose key the response names.
        let chain =
            Issued { certificate: own.certificate.clone() + &ca.as_ref().pem(), key: own.key.clone() };
        harness.apply(&https("", &[stapled(&chain, &response)], HELLO)).unwrap();
        assert!(asked_by_openssl(address, &[]).contains("Cert Status: good"));

        let other = issued(&["a.example"], &ca);
        let expired = with_time(response.clone(), 2, b"20210101000000Z", ca.key());
        let forged = with_time(response.clone(), 2, b"20990101000000Z", &rcgen::KeyPair::generate().unwrap());
        for (what, resource) in [
            ("another's", stapled(&other, &response)),
            ("expired", stapled(&own, &expired)),
            ("signed by somebody else", stapled(&own, &forged)),
        ] {
            harness.apply(&https("", &[resource], HELLO)).unwrap();
            let said = asked_by_openssl(address, &[]);
            assert!(said.contains("OCSP response: no response sent"), "{what}: {said}");
        }
        // The response expires while it is in use.
        let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(4);
        let soon = soon.strftime("%Y%m%d%H%M%SZ").to_string();
        let soon = with_time(response, 2, soon.as_bytes().try_into().unwrap(), ca.key());
        harness.apply(&https("", &[stapled(&own, &soon)], HELLO)).unwrap();
        until("it is not stapled any more", || {
            asked_by_openssl(address, &[]).contains("OCSP response: no response sent")
        })
        .await;
    });
}

#[test]
fn a_name_has_a_certificate_for_each_type_of_key() {
    block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        openssl(&[
            "req",
            "-x509",
            "-nodes",
            "-newkey",
            "rsa:2048",
            "-subj",
            "/CN=theirs",
            "-addext",
            "subjectAltName=DNS:a.example",
            "-keyout",
            &file("key"),
            "-out",
            &file("certificate"),
        ]);
        let read = |name: &str| std::fs::read_to_string(file(name)).unwrap();
        let rsa = Issued { certificate: read("certificate"), key: read("key") };
        let ca = authority("ca");
        let ecdsa = issued(&["a.example"], &ca);
        let both = [rsa.resource("rsa"), ecdsa.resource("ecdsa")];
        let mut harness = Harness::start(&https("default_certificate: ecdsa", &both, HELLO));
        let address = harness.address();
        // The subject of the served certificate.
        let shown = |more: &[&str]| {
            let connect = address.to_string();
            let said = openssl(&[&["s_client", "-connect", &connect], more].concat());
            said.lines().find(|line| line.starts_with("subject=")).unwrap_or_default().replace(' ', "")
        };
        let (theirs, alice) = ("subject=CN=theirs", "CN=alice");
        // The listener's default is for clients without a server name.
        for name in [&["-servername", "a.example"][..], &["-noservername"]] {
            let shown = |more: &[&str]| shown(&[name, more].concat());
            for version in ["-tls1_2", "-tls1_3"] {
                assert!(shown(&[version]).contains(alice), "who can check both gets the one that costs less");
            }
            assert_eq!(shown(&["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"]), theirs);
            assert_eq!(shown(&["-tls1_3", "-sigalgs", "RSA-PSS+SHA256"]), theirs);
            assert!(shown(&["-tls1_3", "-sigalgs", "ECDSA+SHA256"]).contains(alice));
        }
        Tls::trusting(&ca).connect(address, "a.example").await.unwrap();
        // Without one of them, the other is served to all.
        harness.apply(&https("", &[rsa.resource("rsa")], HELLO)).unwrap();
        assert_eq!(shown(&["-servername", "a.example"]), theirs);
        harness.apply(&https("", &[ecdsa.resource("ecdsa")], HELLO)).unwrap();
        assert!(shown(&["-servername", "a.example"]).contains(alice));
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
