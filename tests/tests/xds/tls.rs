//! TLS between the planes, with certificates that were made for these tests and nothing else.

use std::path::{Path, PathBuf};

use signalbox_process::tls::{Reloading, ServerFiles};
use signalbox_proxy::source::{StartError, Tls};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::harness::*;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/xds/tls").join(name)
}

fn server(client_ca: Option<PathBuf>) -> Settings {
    let tls = ServerFiles {
        name: "xds",
        certificate: file("control-plane.pem"),
        key: file("control-plane.key"),
        client_ca: client_ca.map(|path| ("xds_client_ca", path)),
        alpn: b"h2",
    };
    Settings { tls: Some(Reloading::server(tls).unwrap()), ..Settings::default() }
}

fn client() -> Tls {
    Tls { ca: Some(file("ca.pem")), identity: None }
}

fn client_with_certificate() -> Tls {
    Tls { identity: Some((file("proxy.pem"), file("proxy.key"))), ..client() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_trusts_the_authority_it_was_given() {
    let database = Database::new();
    let plane = Plane::start_with(&database, server(None)).await;
    let dir = tempfile::tempdir().unwrap();
    let urls = [format!("https://{}", plane.address)];
    let proxy = Proxy::start_tls(&urls, dir.path(), "p", client());
    proxy.until_serves(0).await;
    let number = plane.put("route/a", route("a")).await;
    proxy.until_serves(number).await;
    // The reports take the same connection.
    eventually("it reports", || plane.proxy("p").traffic.is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_client_certificate_is_asked_for_only_a_proxy_with_one_is_served() {
    let database = Database::new();
    let plane = Plane::start_with(&database, server(Some(file("ca.pem")))).await;
    let urls = [format!("https://{}", plane.address)];
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let without = Proxy::start_tls(&urls, dirs[0].path(), "without", client());
    let with = Proxy::start_tls(&urls, dirs[1].path(), "with", client_with_certificate());
    with.until_serves(0).await;
    let number = plane.put("route/a", route("a")).await;
    with.until_serves(number).await;
    assert_eq!(without.serves(), None);
    let authority = Certificate::from_pem(std::fs::read(file("ca.pem")).unwrap());
    let tls = ClientTlsConfig::new().ca_certificate(authority);
    let endpoint = Endpoint::from_shared(urls[0].clone()).unwrap().tls_config(tls).unwrap();
    // TLS 1.3 lets a client only learn of it with the first read.
    if let Ok(channel) = endpoint.connect().await {
        assert!(Raw::over(channel, TOKEN).await.is_err(), "the token alone does not do");
    }
    assert_eq!(plane.board.proxies().len(), 1);
}

#[tokio::test]
async fn without_an_authority_no_control_plane_is_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let urls = ["https://127.0.0.1:1".to_owned()];
    let proxy = Proxy::start_tls(&urls, dir.path(), "p", Tls::default());
    let error = proxy.ended().await.unwrap_err();
    assert!(matches!(&error, StartError::Invalid(text) if text.contains("--tls-ca")), "{error:?}");
    let missing = Tls { ca: Some(dir.path().join("missing.pem")), identity: None };
    let proxy = Proxy::start_tls(&urls, dir.path(), "p", missing);
    let error = proxy.ended().await.unwrap_err();
    assert!(
        matches!(&error, StartError::Tls(error) if error.to_string().contains("missing.pem")),
        "{error:?}"
    );
}
