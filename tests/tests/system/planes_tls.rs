//! TLS between the planes and of the admin address: what is refused and who says so, and files that are renewed.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use signalbox_tests::{ControlPlane, Proxy, eventually};

use crate::authority::{Authority, PemFiles, Until};
use crate::fixture::respond;

const DEADLINE: Duration = Duration::from_secs(60);
const GOOD: Until = Until::Year(2080);

/// A control plane whose xDS address has a certificate of `ca`, and asks proxies for one of `ca`.
async fn with_client_certificates(files: &PemFiles, ca: &Authority) -> ControlPlane {
    files.write("ca.pem", &ca.pem());
    files.put("cp", &ca.issue(&GOOD));
    ControlPlane::builder()
        .arg(files.flag("xds-tls-cert", "cp.pem"))
        .arg(files.flag("xds-tls-key", "cp.key"))
        .arg(files.flag("xds-tls-client-ca", "ca.pem"))
        .start()
        .await
        .unwrap()
}

fn https(control_plane: &ControlPlane) -> String {
    control_plane.xds_url().replace("http://", "https://")
}

/// Waits until both sides say what is wrong, and the control plane counts it.
async fn refused(
    control_plane: &ControlPlane,
    mut proxy: Proxy,
    reason: &str,
    proxy_says: &str,
    plane_says: &str,
) {
    proxy.start_unready().unwrap();
    let said = eventually(DEADLINE, async || proxy.log().contains(proxy_says));
    assert!(said.await, "{reason}: the proxy does not say {proxy_says:?}:\n{}", proxy.log());
    let log = proxy.log();
    let line = log.lines().find(|line| line.contains(proxy_says)).unwrap();
    assert!(line.contains("WARN") && line.contains("control_plane="), "{line}");
    let label = format!("reason=\"{reason}\"");
    let counted = eventually(DEADLINE, async || {
        let metrics = control_plane.api().metrics().await;
        metrics.is_ok_and(|metrics| metrics.sum("signalbox_xds_refused_total", &[&label]) >= 1.0)
    });
    assert!(counted.await, "{reason} is not counted");
    let log = control_plane.log();
    let line = log.lines().find(|line| line.contains(&format!("reason={reason:?}"))).unwrap_or(&log);
    assert!(line.contains("WARN") && line.contains(plane_says) && line.contains("peer=127.0.0.1:"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_wrong_token_is_told_on_both_sides() {
    let control_plane = ControlPlane::sqlite().await.unwrap();
    let proxy =
        Proxy::builder().control_plane(&control_plane).token("a-token-that-nobody-knows").prepare().unwrap();
    refused(&control_plane, proxy, "token_unknown", "the token is not known", "the token is not known").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn tls_to_a_port_without_and_cleartext_to_one_with_tls_are_told_on_both_sides() {
    let (files, ca) = (PemFiles::new(), Authority::new("ca"));
    files.write("ca.pem", &ca.pem());
    let cleartext = ControlPlane::sqlite().await.unwrap();
    let proxy = Proxy::builder()
        .control_plane_url(https(&cleartext))
        .arg(files.flag("tls-ca", "ca.pem"))
        .prepare()
        .unwrap();
    refused(&cleartext, proxy, "tls_on_cleartext", "use http://", "https:// for http://").await;

    files.put("cp", &ca.issue(&GOOD));
    let encrypted = ControlPlane::builder()
        .arg(files.flag("xds-tls-cert", "cp.pem"))
        .arg(files.flag("xds-tls-key", "cp.key"))
        .start()
        .await
        .unwrap();
    let proxy = Proxy::builder().control_plane(&encrypted).prepare().unwrap();
    refused(
        &encrypted,
        proxy,
        "cleartext_on_tls",
        "that port speaks TLS: use https://",
        "http:// for https://",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn certificates_that_are_not_accepted_are_told_on_both_sides() {
    let (files, ca, other) = (PemFiles::new(), Authority::new("ca"), Authority::new("other"));
    let control_plane = with_client_certificates(&files, &ca).await;
    files.write("other-ca.pem", &other.pem());
    files.put("good", &ca.issue(&GOOD));
    files.put("foreign", &other.issue(&GOOD));
    files.put("expired", &ca.issue(&Until::Year(2020)));
    for (own, trusted, reason, proxy_says, plane_says) in [
        (Some("good"), "other-ca.pem", "by_client", "not signed by an authority of --tls-ca", "UnknownCA"),
        (None, "ca.pem", "no_certificate", "it wants a certificate of this proxy", "presents no certificate"),
        (
            Some("foreign"),
            "ca.pem",
            "bad_certificate",
            "refuses this proxy's certificate (--tls-cert)",
            "UnknownIssuer",
        ),
    ] {
        let mut proxy =
            Proxy::builder().control_plane_url(https(&control_plane)).arg(files.flag("tls-ca", trusted));
        if let Some(own) = own {
            proxy = proxy
                .arg(files.flag("tls-cert", &format!("{own}.pem")))
                .arg(files.flag("tls-key", &format!("{own}.key")));
        }
        refused(&control_plane, proxy.prepare().unwrap(), reason, proxy_says, plane_says).await;
    }
    let mut expired = Proxy::builder()
        .control_plane_url(https(&control_plane))
        .arg(files.flag("tls-ca", "ca.pem"))
        .arg(files.flag("tls-cert", "expired.pem"))
        .arg(files.flag("tls-key", "expired.key"))
        .prepare()
        .unwrap();
    expired.start_unready().unwrap();
    let said = eventually(DEADLINE, async || {
        let log = expired.log();
        log.contains("refuses this proxy's certificate (--tls-cert): CertificateExpired")
            && log.contains("the certificate has expired")
    });
    assert!(said.await, "{}", expired.log());
}

/// The certificate that a server shows, DER.
async fn shown(address: &str, trusted: &str, alpn: &[u8]) -> Option<CertificateDer<'static>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(trusted.as_bytes()).map(Result::unwrap));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    stream.get_ref().1.peer_certificates()?.first().cloned().map(CertificateDer::into_owned)
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn address_of(url: &str) -> &str {
    url.split_once("://").unwrap().1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn renewed_certificates_of_a_control_plane_are_shown_without_a_restart_and_half_renewed_ones_are_not() {
    let (files, ca) = (PemFiles::new(), Authority::new("ca"));
    let (old, new) = (ca.issue(&GOOD), ca.issue(&Until::Year(2085)));
    files.put("admin", &old);
    files.put("xds", &old);
    let mut control_plane = ControlPlane::builder()
        .arg(files.flag("admin-tls-cert", "admin.pem"))
        .arg(files.flag("admin-tls-key", "admin.key"))
        .arg(files.flag("xds-tls-cert", "xds.pem"))
        .arg(files.flag("xds-tls-key", "xds.key"))
        .prepare()
        .unwrap();
    control_plane.start_unready().unwrap();
    let (admin_url, xds_url) = (control_plane.admin_url(), control_plane.xds_url());
    let ports = [(address_of(&admin_url), "admin", &b"http/1.1"[..]), (address_of(&xds_url), "xds", b"h2")];
    let shows = async |address: &str, alpn: &[u8], expected: &str| {
        eventually(DEADLINE, async || shown(address, &ca.pem(), alpn).await == Some(der(expected))).await
    };
    for (address, name, alpn) in ports {
        assert!(shows(address, alpn, &old.certificate).await, "{name}: {}", control_plane.log());
        // The certificate is renewed, and its key is not yet.
        files.write(&format!("{name}.pem"), &new.certificate);
    }
    let warned = || control_plane.log().matches("those read before stay in use").count();
    assert!(eventually(DEADLINE, async || warned() >= 2).await, "{}", control_plane.log());
    for (address, name, alpn) in ports {
        assert_eq!(shown(address, &ca.pem(), alpn).await, Some(der(&old.certificate)), "{name}");
        files.write(&format!("{name}.key"), &new.key);
        assert!(shows(address, alpn, &new.certificate).await, "{name}: {}", control_plane.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_proxy_re_reads_its_certificate_and_authority_and_both_planes_tell_when_they_expire() {
    let (files, ca, next) = (PemFiles::new(), Authority::new("ca"), Authority::new("next"));
    let mut control_plane = with_client_certificates(&files, &ca).await;
    files.write("proxy-ca.pem", &ca.pem());
    files.put("proxy", &ca.issue(&Until::DaysFromNow(5)));
    let proxy = Proxy::builder()
        .control_plane_url(https(&control_plane))
        .node_id("p")
        .arg(files.flag("tls-ca", "proxy-ca.pem"))
        .arg(files.flag("tls-cert", "proxy.pem"))
        .arg(files.flag("tls-key", "proxy.key"))
        .start()
        .await
        .unwrap();
    let name = "signalbox_tls_certificate_expiry_timestamp_seconds";
    let at = |year| rcgen::date_time_ymd(year, 1, 1).unix_timestamp() as f64;
    let warned = eventually(DEADLINE, async || proxy.log().contains("expires in less than 14 days")).await;
    assert!(warned, "{}", proxy.log());
    let metrics = proxy.metrics().await.unwrap();
    assert_eq!(metrics.sum(name, &["use=\"control_plane_ca\""]), at(2090));
    let plane_metrics = control_plane.api().metrics().await.unwrap();
    assert_eq!(plane_metrics.sum(name, &["use=\"xds\""]), at(2080));
    assert_eq!(plane_metrics.sum(name, &["use=\"xds_client_ca\""]), at(2090));

    // Another authority for everything, while the control plane is away.
    control_plane.stop().unwrap();
    files.write("ca.pem", &next.pem());
    files.put("cp", &next.issue(&GOOD));
    files.write("proxy-ca.pem", &next.pem());
    files.put("proxy", &next.issue(&Until::Year(2070)));
    control_plane.start().await.unwrap();
    let revision = control_plane.api().put("routes", "r", &respond("/r", "after")).await.unwrap();
    let shown =
        |proxy: &serde_json::Value| proxy["connected"] == true && proxy["revision"]["applied"] == revision;
    control_plane.api().wait_proxy("p", "connected by its new certificate", shown).await.unwrap();
    let metrics = proxy.metrics().await.unwrap();
    assert_eq!(metrics.sum(name, &["use=\"client\""]), at(2070));
}
